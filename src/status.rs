//! What each part of the process says of itself, for whoever asks.
//!
//! Every task owns one report behind a `watch` channel and replaces it whole; readers never wait and writers
//! never block. Wire formats are the readers' affair.

pub mod propagation;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;

use crate::Uptime;
use crate::desired::{Desired, Finding};
use crate::kubernetes::snapshot::Snapshot;
use crate::lease::LeaseReport;
use crate::lifecycle::Clock;
use crate::route::{Lane, ServiceKey};

mod drain;

pub use drain::{Drain, Draining, Withdrawn};

/// Every report of the process, for readers.
#[derive(Clone, Debug)]
pub struct Status {
    /// What ages are told by.
    pub clock: Clock,
    sources: watch::Receiver<SourceReport>,
    snapshot: Option<watch::Receiver<Option<Arc<Snapshot>>>>,
    desired: watch::Receiver<Option<Arc<Desired>>>,
    lanes: Vec<watch::Receiver<LaneReport>>,
    state: Option<watch::Receiver<Vec<Finding>>>,
    config: Option<watch::Receiver<Vec<Finding>>>,
    draining: Option<Draining>,
    lease: Option<watch::Receiver<LeaseReport>>,
}

/// One lane, as it sees itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneReport {
    /// Which one.
    pub lane: Lane,
    /// Whether it knows all that it needs to take over from another instance.
    pub warm: bool,
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
    /// When the first registered entry lapses if nothing more is sent; `None` where none would.
    pub lapses_at: Option<Uptime>,
    /// Every route the lane knows, by its name (`host/path` or port).
    pub routes: BTreeMap<String, RouteReport>,
    /// What only the lane can find: strangers, refusals, missing scopes.
    pub findings: Vec<Finding>,
    /// What the other side told: router group, interval, TTL.
    pub facts: BTreeMap<&'static str, String>,
    /// Once it is to withdraw everything: how far it is.
    pub withdrawn: Option<Withdrawn>,
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

/// What the source of the table says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceReport {
    /// Each resource.
    pub sources: BTreeMap<&'static str, SourceState>,
    /// Which cluster, or that there is none.
    pub cluster: Option<String>,
    /// What is wrong, as long as there is no snapshot that could tell.
    pub findings: Vec<Finding>,
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
    /// `watch`, `poll` or `probe`.
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
            warm: false,
            confirmed_once: false,
            last_attempt: None,
            last_success: None,
            lapses_at: None,
            consecutive_failures: 0,
            last_error: None,
            routes: BTreeMap::new(),
            findings: Vec::new(),
            facts: BTreeMap::new(),
            withdrawn: None,
        }
    }
}

/// Why nothing goes, where an instance is drained that held the Lease and no longer has proof of it.
pub const NO_PROOF: &str = "the Lease cannot be renewed, so nothing may be withdrawn";

// === impl Status ===

impl Status {
    /// Reads these reports from now on; `lanes` holds the enabled ones.
    #[must_use]
    pub fn new(
        clock: Clock,
        sources: watch::Receiver<SourceReport>,
        desired: watch::Receiver<Option<Arc<Desired>>>,
        lanes: Vec<watch::Receiver<LaneReport>>,
    ) -> Self {
        Self {
            clock,
            sources,
            snapshot: None,
            desired,
            lanes,
            state: None,
            config: None,
            draining: None,
            lease: None,
        }
    }

    /// The same with the view of a cluster.
    #[must_use]
    pub fn with_snapshot(mut self, snapshot: watch::Receiver<Option<Arc<Snapshot>>>) -> Self {
        self.snapshot = Some(snapshot);
        self
    }

    /// The same with what is wrong with the state file.
    #[must_use]
    pub fn with_state(mut self, state: watch::Receiver<Vec<Finding>>) -> Self {
        self.state = Some(state);
        self
    }

    /// The same with what of the configuration file is not in use.
    #[must_use]
    pub fn with_config(mut self, config: watch::Receiver<Vec<Finding>>) -> Self {
        self.config = Some(config);
        self
    }

    /// Whether something of the configuration file is not in use.
    #[must_use]
    pub fn config_is_stale(&self) -> bool {
        let config = self.config.as_ref();
        config.is_some_and(|findings| !findings.borrow().is_empty())
    }

    /// The same with what the Lease is to this instance.
    #[must_use]
    pub fn with_lease(mut self, lease: watch::Receiver<LeaseReport>) -> Self {
        self.lease = Some(lease);
        self
    }

    /// What the Lease is to this instance; nothing where it is the only one by its configuration.
    #[must_use]
    pub fn lease(&self) -> Option<LeaseReport> {
        let lease = self.lease.as_ref()?.borrow().clone();
        Some(LeaseReport {
            role: lease.role.at(self.clock.now()),
            ..lease
        })
    }

    /// Who acts instead of this instance, where it stands by; empty where nobody is known to.
    #[must_use]
    pub fn leader_instead(&self) -> Option<String> {
        let lease = self.lease().filter(|lease| lease.role.is_standby())?;
        Some(lease.holder.unwrap_or_default())
    }

    /// Every enabled lane.
    #[must_use]
    pub fn lanes(&self) -> Vec<LaneReport> {
        self.lanes
            .iter()
            .map(|lane| lane.borrow().clone())
            .collect()
    }

    /// Kubernetes' side.
    #[must_use]
    pub fn sources(&self) -> SourceReport {
        self.sources.borrow().clone()
    }

    /// The last view of the cluster, where there is one.
    #[must_use]
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.as_ref()?.borrow().clone()
    }

    /// The last table.
    #[must_use]
    pub fn desired(&self) -> Option<Arc<Desired>> {
        self.desired.borrow().clone()
    }

    /// Everything anybody found, each once.
    #[must_use]
    pub fn findings(&self) -> BTreeSet<Finding> {
        let mut findings = BTreeSet::new();
        findings.extend(self.sources.borrow().findings.iter().cloned());
        findings.extend(
            self.snapshot()
                .iter()
                .flat_map(|view| view.findings.clone()),
        );
        findings.extend(
            self.desired()
                .iter()
                .flat_map(|table| table.findings.clone()),
        );
        for lane in &self.lanes {
            findings.extend(lane.borrow().findings.iter().cloned());
        }
        for more in self.state.iter().chain(&self.config) {
            findings.extend(more.borrow().iter().cloned());
        }
        findings.extend(self.drain().map(Drain::finding));
        if let Some(lease) = &self.lease {
            findings.extend(lease.borrow().findings.iter().cloned());
        }
        findings
    }

    /// What is still missing before the process does its job; empty is ready. A lane that was confirmed once
    /// stays so: a router that went away is no reason to be restarted. Where another instance acts it is enough to be
    /// able to take over.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if let Some(drain) = self.drain() {
            missing.push(format!("drained: {}", drain.finding().message));
        }
        let sources = self.sources();
        if sources.sources.is_empty() {
            missing.push("source: nothing has been heard of the apiserver".to_owned());
        }
        for (resource, source) in &sources.sources {
            if source.required && !source.synced {
                let why = source
                    .error
                    .as_ref()
                    .map_or_else(String::new, |error| format!(": {error}"));
                missing.push(format!("source {resource}: not complete yet{why}"));
            }
        }
        let leader = self.leader_instead();
        if leader.as_ref().is_some_and(String::is_empty) {
            missing.push("lease: nobody is known to hold it".to_owned());
        }
        for lane in &self.lanes {
            let lane = lane.borrow();
            let stands_by = leader.is_some() && lane.warm;
            if !lane.confirmed_once && !stands_by {
                let why = lane
                    .last_error
                    .as_ref()
                    .map_or_else(String::new, |error| format!(": {error}"));
                missing.push(format!("lane {}: not confirmed yet{why}", lane.lane));
            }
        }
        missing
    }

    /// Waits until any report changed. Readers that tell of changes take this; `false` once nobody reports.
    pub async fn changed(&mut self) -> bool {
        let Self {
            clock: _,
            sources,
            snapshot,
            desired,
            lanes,
            state,
            config,
            draining,
            lease,
            ..
        } = self;
        let lane_changed = async {
            if lanes.is_empty() {
                return std::future::pending().await;
            }
            let each = lanes.iter_mut().map(|lane| Box::pin(lane.changed()));
            futures::future::select_all(each).await.0
        };
        let seen = async {
            match snapshot {
                Some(snapshot) => snapshot.changed().await,
                None => std::future::pending().await,
            }
        };
        let state_changed = async {
            match state {
                Some(state) => state.changed().await,
                None => std::future::pending().await,
            }
        };
        let config_changed = async {
            match config {
                Some(config) => config.changed().await,
                None => std::future::pending().await,
            }
        };
        let drained = async {
            match draining {
                Some(draining) => draining.asked.changed().await,
                None => std::future::pending().await,
            }
        };
        let lease_changed = async {
            match lease {
                Some(lease) => lease.changed().await,
                None => std::future::pending().await,
            }
        };
        // The order does not matter: every one of them only wakes the reader, who then looks at all.
        let woken = tokio::select! {
            changed = sources.changed() => changed,
            changed = seen => changed,
            changed = desired.changed() => changed,
            changed = lane_changed => changed,
            changed = state_changed => changed,
            changed = config_changed => changed,
            changed = drained => changed,
            changed = lease_changed => changed,
        };
        woken.is_ok()
    }
}

impl RouteState {
    /// Every state.
    pub const ALL: &[Self] = &[Self::Pending, Self::Live, Self::Held, Self::Withdrawing];

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Code, Subject};

    #[tokio::test]
    async fn what_the_sources_find_before_the_first_snapshot_is_told_once() {
        let (sources, sources_rx) = watch::channel(SourceReport::default());
        let (_snapshot, snapshot_rx) = watch::channel(None);
        let (_desired, desired_rx) = watch::channel(None);
        let status = Status::new(Clock::start(), sources_rx, desired_rx, Vec::new());
        let mut status = status.with_snapshot(snapshot_rx);
        let finding = Finding::new(Code::RightMissing, Subject::Source("services"), "no right");
        // Two sources read Services, and both lack the right.
        sources.send_modify(|report| report.findings = vec![finding.clone(), finding.clone()]);
        assert!(status.changed().await);
        assert_eq!(status.findings(), BTreeSet::from([finding]));
    }
}
