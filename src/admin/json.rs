//! `/status.json`: a format of its own, so that inner types may change without breaking whoever reads it.
//!
//! Keys are only ever added under one [`FORMAT`]. Ages are seconds before the moment of the answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Uptime;
use crate::desired::{self, Subject, guard};
use crate::lease::LeaseReport;
use crate::status::{Drain, LaneReport, SourceState, Status};

/// The version of this format.
pub const FORMAT: u32 = 1;

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// Of the process.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: f64,
    /// Whether `/ready` says so.
    pub ready: bool,
    /// What is missing, where it is not.
    pub missing: Vec<String>,
    /// Which cluster.
    pub cluster: Option<String>,
    /// Whether the configuration file says something that is not in use.
    #[serde(default)]
    pub config_stale: bool,
    /// Each watched resource.
    pub sources: BTreeMap<String, Source>,
    /// Each enabled lane.
    pub lanes: BTreeMap<String, Lane>,
    /// Removals that are held, if any.
    #[serde(default)]
    pub held: Option<Held>,
    /// `keep` or `unregister`, once an operator drained the process.
    #[serde(default)]
    pub drain: Option<String>,
    /// Who acts, where several instances share the work.
    #[serde(default)]
    pub lease: Option<Lease>,
    /// Everything wrong or odd.
    pub findings: Vec<Finding>,
}

/// What came of draining.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drained {
    /// `keep` or `unregister`.
    pub drain: String,
    /// All that was asked for is done, and proven.
    pub complete: bool,
    /// Routes that are kept, or gone.
    pub routes: Vec<DrainedRoute>,
    /// Routes that are not proven gone.
    pub left: Vec<DrainedRoute>,
    /// Why it is not complete.
    pub troubles: Vec<String>,
}

/// A route of a process that was drained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrainedRoute {
    /// `http` or `tcp`.
    pub lane: String,
    /// Host and path, or port.
    pub name: String,
    /// `namespace/name` of the Service it came from, where that is known.
    pub service: Option<String>,
}

/// Why nothing was drained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NotDrained {
    /// In words.
    pub reason: String,
}

/// The Lease by which several instances agree on who acts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// What this instance is called in it.
    pub identity: String,
    /// `active`, `cautious` or `standby`.
    pub role: String,
    /// Who holds it; empty is nobody, absent is not known.
    pub holder: Option<String>,
    /// How often it changed hands.
    pub generation: Option<u64>,
    /// Since the last confirmed renewal, where this instance holds it.
    pub renewed_seconds_ago: Option<f64>,
}

/// Why an instance that stands by does not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StandsBy {
    /// Who would; empty where nobody is known to.
    pub holder: String,
}

/// Removals that are held until somebody approves them, or further lists agree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// What `approve` is told.
    pub plan: String,
    /// Why.
    pub reasons: Vec<String>,
    /// Which.
    pub routes: Vec<HeldRoute>,
}

/// A route that nothing asks for and that is kept alive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldRoute {
    /// `http` or `tcp`.
    pub lane: String,
    /// Host and path, or port.
    pub name: String,
    /// `namespace/name` of the Service it came from.
    pub service: String,
}

/// What an approval let go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Approved {
    /// The plan.
    pub plan: String,
    /// Its routes.
    pub routes: Vec<HeldRoute>,
}

/// Why an approval let nothing go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NotApproved {
    /// The plan that is held instead, if any.
    pub pending: Option<String>,
}

/// One watched resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Nothing is published before it is complete.
    pub required: bool,
    /// It has been complete.
    pub synced: bool,
    /// `watch` or `poll`.
    pub mode: String,
    /// Since it was last heard of.
    pub heard_seconds_ago: Option<f64>,
    /// What is wrong now.
    pub error: Option<String>,
}

/// One lane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lane {
    /// The other side has confirmed once.
    pub confirmed: bool,
    /// Since the last attempt.
    pub attempt_seconds_ago: Option<f64>,
    /// Since the last confirmed one.
    pub success_seconds_ago: Option<f64>,
    /// Failed since then.
    pub consecutive_failures: u32,
    /// Why.
    pub error: Option<String>,
    /// Until the first registered entry would lapse if nothing more were sent; absent where none would.
    #[serde(default)]
    pub headroom_seconds: Option<f64>,
    /// What the other side told.
    pub facts: BTreeMap<String, String>,
    /// By host and path, or port.
    pub routes: BTreeMap<String, Route>,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// `namespace/name`.
    pub service: String,
    /// `pending`, `live`, `held` or `withdrawing`.
    pub state: String,
    /// `address:port` of each.
    pub backends: Vec<String>,
    /// Since it is in this state.
    pub since_seconds_ago: f64,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The stable code.
    pub code: String,
    /// `error` or `warning`.
    pub severity: String,
    /// `service`, `node`, `resource`, `lane`, `cluster` or `configuration`.
    pub kind: String,
    /// Which one; empty for the last two.
    pub subject: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

// === impl Report ===

impl Report {
    /// As it is now.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        let now = status.clock.now();
        let sources = status.sources();
        let missing = status.missing();
        let source =
            |(name, state): (&&str, &SourceState)| ((*name).to_owned(), Source::of(state, now));
        let lane = |report: LaneReport| (report.lane.to_string(), Lane::of(&report, now));
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: now.as_secs_f64(),
            ready: missing.is_empty(),
            missing,
            sources: sources.sources.iter().map(source).collect(),
            cluster: sources.cluster,
            config_stale: status.config_is_stale(),
            lanes: status.lanes().into_iter().map(lane).collect(),
            held: status
                .desired()
                .and_then(|desired| desired.held.as_ref().map(Held::of)),
            drain: status.drain().map(|drain| drain.as_str().to_owned()),
            lease: status.lease().map(|lease| Lease::of(lease, now)),
            findings: status.findings().iter().map(Finding::of).collect(),
        }
    }
}

impl Held {
    fn of(held: &guard::Held) -> Self {
        Self {
            plan: held.plan.to_string(),
            reasons: held.why(),
            routes: held.routes.iter().map(HeldRoute::of).collect(),
        }
    }
}

impl Drained {
    /// Nothing changes any more.
    #[must_use]
    pub fn kept(routes: Vec<DrainedRoute>) -> Self {
        Self {
            drain: Drain::Keep.as_str().to_owned(),
            complete: true,
            routes,
            left: Vec::new(),
            troubles: Vec::new(),
        }
    }
}

impl Lease {
    fn of(lease: LeaseReport, now: Uptime) -> Self {
        let LeaseReport {
            identity,
            role,
            holder,
            generation,
            renewed,
            findings: _,
        } = lease;
        Self {
            identity,
            role: role.as_str().to_owned(),
            holder,
            generation,
            renewed_seconds_ago: renewed.map(|then| ago(now, then)),
        }
    }
}

impl HeldRoute {
    /// As others read it.
    #[must_use]
    pub fn of(route: &guard::HeldRoute) -> Self {
        Self {
            lane: route.name.lane().to_string(),
            name: route.name.to_string(),
            service: route.service.to_string(),
        }
    }
}

impl Source {
    fn of(state: &SourceState, now: Uptime) -> Self {
        Self {
            required: state.required,
            synced: state.synced,
            mode: state.mode.to_owned(),
            heard_seconds_ago: state.last_heard.map(|then| ago(now, then)),
            error: state.error.clone(),
        }
    }
}

impl Lane {
    fn of(report: &LaneReport, now: Uptime) -> Self {
        let fact = |(key, value): (&&str, &String)| ((*key).to_owned(), value.clone());
        let route = |(name, route): (&String, &crate::status::RouteReport)| {
            let shown = Route {
                service: route.service.to_string(),
                state: route.state.as_str().to_owned(),
                backends: route.backends.clone(),
                since_seconds_ago: ago(now, route.since),
            };
            (name.clone(), shown)
        };
        Self {
            confirmed: report.confirmed_once,
            attempt_seconds_ago: report.last_attempt.map(|then| ago(now, then)),
            success_seconds_ago: report.last_success.map(|then| ago(now, then)),
            consecutive_failures: report.consecutive_failures,
            error: report.last_error.clone(),
            headroom_seconds: report.lapses_at.map(|moment| ago(moment, now)),
            facts: report.facts.iter().map(fact).collect(),
            routes: report.routes.iter().map(route).collect(),
        }
    }
}

impl Finding {
    /// As others read it.
    #[must_use]
    pub fn of(finding: &desired::Finding) -> Self {
        let (kind, subject) = match &finding.subject {
            Subject::Service(key) if key.is_static_route() => ("static-route", key.to_string()),
            Subject::Service(key) => ("service", key.to_string()),
            Subject::Node(name) => ("node", name.clone()),
            Subject::Source(resource) => ("resource", (*resource).to_owned()),
            Subject::Lane(lane) => ("lane", lane.to_string()),
            Subject::Cluster => ("cluster", String::new()),
            Subject::Configuration => ("configuration", String::new()),
        };
        Self {
            code: finding.code.to_string(),
            severity: finding.code.severity().as_str().to_owned(),
            kind: kind.to_owned(),
            subject,
            message: finding.message.clone(),
            hint: finding.hint.clone(),
        }
    }
}

fn ago(now: Uptime, then: Uptime) -> f64 {
    // Milliseconds are enough for people and keep the text short.
    (now.saturating_sub(then).as_secs_f64() * 1000.0).round() / 1000.0
}
