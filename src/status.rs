//! What each part of the process says of itself, for whoever asks.
//!
//! Every task owns one report behind a `watch` channel and replaces it whole; readers never wait and writers
//! never block. Wire formats are the readers' affair.

use std::collections::BTreeMap;

use crate::Uptime;
use crate::desired::Finding;
use crate::route::{Lane, ServiceKey};

/// One lane, as it sees itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneReport {
    /// Which one.
    pub lane: Lane,
    /// Whether what was wanted has once been confirmed by the other side.
    pub confirmed_once: bool,
    /// When the lane last tried.
    pub last_attempt: Option<Uptime>,
    /// When the other side last confirmed.
    pub last_success: Option<Uptime>,
    /// Attempts since then that failed.
    pub consecutive_failures: u32,
    /// Why the last one failed; the whole chain of causes, no secret.
    pub last_error: Option<String>,
    /// Every route the lane knows, by its name (`host/path` or port).
    pub routes: BTreeMap<String, RouteReport>,
    /// What only the lane can find: strangers, refusals, missing scopes.
    pub findings: Vec<Finding>,
    /// What the other side told: router group, interval, TTL.
    pub facts: BTreeMap<&'static str, String>,
}

/// One route, as its lane sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteReport {
    /// The Service it comes from.
    pub service: ServiceKey,
    /// How far it is.
    pub state: RouteState,
    /// Where it leads, as text.
    pub backends: Vec<String>,
    /// Since when it is in this state.
    pub since: Uptime,
}

/// How far a route is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteState {
    /// Wanted, not yet confirmed.
    Pending,
    /// Confirmed by the other side.
    Live,
    /// Kept from being published by a finding.
    Held,
    /// No longer wanted; its withdrawal is still being repeated.
    Withdrawing,
}

/// What Kubernetes' side says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceReport {
    /// Each resource.
    pub sources: BTreeMap<&'static str, SourceState>,
    /// Which cluster.
    pub cluster: Option<String>,
}

/// One watched resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// Whether nothing is published before it is complete.
    pub required: bool,
    /// It has delivered one complete list.
    pub synced: bool,
    /// When it was last heard of: an event, a bookmark, or a list.
    pub last_heard: Option<Uptime>,
    /// `watch` or `poll`.
    pub mode: &'static str,
    /// What went wrong last, while it is still wrong.
    pub error: Option<String>,
}

impl LaneReport {
    /// A lane that has done nothing yet.
    #[must_use]
    pub fn new(lane: Lane) -> Self {
        Self {
            lane,
            confirmed_once: false,
            last_attempt: None,
            last_success: None,
            consecutive_failures: 0,
            last_error: None,
            routes: BTreeMap::new(),
            findings: Vec::new(),
            facts: BTreeMap::new(),
        }
    }
}

impl RouteState {
    /// As it is written everywhere.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Live => "live",
            Self::Held => "held",
            Self::Withdrawing => "withdrawing",
        }
    }
}
