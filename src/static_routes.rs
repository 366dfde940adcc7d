//! Static routes: a table that the configuration names and the backends' health decides about.
//!
//! ```text
//!   a task for each route: ask ──Answer──▶ health (pure) ──▶ Known ──▶ table (pure) ──▶ the TCP lane
//! ```
//!
//! How an answer is judged stands in [`health`], how a question is asked in [`probe`]. What becomes of the table is
//! the TCP lane's affair, as it is for a cluster's: nothing here knows the routing API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::Uptime;
use crate::config::{HealthConfig, StaticRoute};
use crate::desired::{Code, Desired, Finding};
use crate::lifecycle::Clock;
use crate::outside::Outside;
use crate::publish::tls::TlsError;
use crate::route::{ClusterId, RouteTable, ServiceKey, ServiceRef, TcpRoute};
use crate::status::{SourceReport, SourceState};

pub mod health;
pub mod probe;

use health::{Health, Verdict};
use probe::Probe;

/// The page that older apiservers lack.
const READYZ: &str = "/readyz";
/// What reports call the static routes among the sources of a table.
const SOURCE: &str = "static_routes";
/// What stands in place of a cluster's id.
pub const NO_CLUSTER: &str = "none (static routes)";

/// Everything known of every route, by name.
pub type Known = BTreeMap<String, Heard>;

/// What is known of one route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Whether it may be published.
    pub verdict: Verdict,
    /// When it was last answered for.
    pub at: Option<Uptime>,
    /// Why the last answer was no success.
    pub error: Option<String>,
}

/// A route's health cannot be asked for.
#[derive(Debug, thiserror::Error)]
#[error("`health` of the static route `{name}` cannot be used")]
pub struct SetupError {
    name: String,
    source: TlsError,
}

/// One route's questions.
pub struct Watch {
    name: String,
    probe: Arc<dyn Probe>,
    health: Health,
    interval: Duration,
}

/// What is known before anybody was asked: who is not to be asked is up.
#[must_use]
pub fn unasked(routes: &[StaticRoute]) -> Known {
    let known = |route: &StaticRoute| {
        let verdict = match route.health {
            Some(_) => Verdict::Undecided,
            None => Verdict::Up,
        };
        let heard = Heard {
            verdict,
            ..Heard::default()
        };
        (route.name.clone(), heard)
    };
    routes.iter().map(known).collect()
}

/// Sets up every route's questions; asks nobody anything.
///
/// # Errors
/// Where a file cannot be used.
pub fn watches(routes: &[StaticRoute], outside: &dyn Outside) -> Result<Vec<Watch>, SetupError> {
    let asked = routes.iter().filter_map(|route| {
        let health = route.health.as_ref()?;
        Some(Watch::new(&route.name, health, outside))
    });
    asked.collect()
}

/// The table of the routes that may be published, what is wrong with the others, and where nobody knows yet.
#[must_use]
pub fn table(routes: &[StaticRoute], known: &Known) -> Desired {
    let mut desired = Desired::of(ClusterId(NO_CLUSTER.to_owned()), RouteTable::default());
    for route in routes {
        let key = ServiceKey::of_static_route(&route.name);
        match known.get(&route.name).map(|heard| &heard.verdict) {
            None | Some(Verdict::Undecided) => {
                desired.undecided.insert(route.port);
                continue;
            }
            Some(Verdict::Down(why)) => {
                let message = format!("its backends are withdrawn, as their health failed: {why}");
                let finding = Finding::on_service(Code::HealthFailed, &key, message);
                desired.findings.push(finding);
                continue;
            }
            Some(Verdict::Unproven(status)) => {
                let message = format!("its health is answered by {status}, which counts as up");
                let hint =
                    "give `health` a `token_file`, or `cert_file` and `key_file`, that may ask";
                let finding = Finding::on_service(Code::HealthUnproven, &key, message);
                desired.findings.push(finding.hint(hint));
            }
            Some(Verdict::Up) => {}
        }
        let holder = ServiceRef {
            key,
            uid: String::new(),
        };
        let route_of_table = TcpRoute {
            service: Arc::new(holder),
            router_group: None,
            backends: route.backends.clone(),
        };
        desired.table.tcp.insert(route.port, route_of_table);
    }
    desired.findings.sort();
    desired
}

/// What a process that has these routes says of its source.
#[must_use]
pub fn report(known: &Known) -> SourceReport {
    let undecided = |heard: &Heard| heard.verdict == Verdict::Undecided;
    let error = |(name, heard): (&String, &Heard)| {
        let error = heard.error.as_ref()?;
        Some(format!("{name}: {error}"))
    };
    let errors: Vec<_> = known.iter().filter_map(error).collect();
    let state = SourceState {
        required: true,
        synced: !known.values().any(undecided),
        last_heard: known.values().filter_map(|heard| heard.at).max(),
        mode: "probe",
        error: (!errors.is_empty()).then(|| errors.join("; ")),
    };
    SourceReport {
        sources: BTreeMap::from([(SOURCE, state)]),
        cluster: Some(NO_CLUSTER.to_owned()),
        findings: Vec::new(),
    }
}

// === impl Watch ===

impl Watch {
    fn new(name: &str, config: &HealthConfig, outside: &dyn Outside) -> Result<Self, SetupError> {
        let probe = outside.health(config).map_err(|source| SetupError {
            name: name.to_owned(),
            source,
        })?;
        Ok(Self {
            name: name.to_owned(),
            probe,
            health: Health::new(config.url.path() == READYZ),
            interval: config.interval,
        })
    }

    /// Asks once, and again where the first answer only says whom to ask.
    pub async fn ask(&mut self, known: &watch::Sender<Known>, clock: Clock) {
        loop {
            let answer = self.probe.ask(self.health.question()).await;
            let again = self.health.hear(&answer);
            debug!(target: "route_sync", route = self.name, ?answer, "health");
            if !again {
                self.tell(known, health::failure(&answer), clock.now());
                return;
            }
        }
    }

    fn tell(&self, known: &watch::Sender<Known>, error: Option<String>, now: Uptime) {
        let heard = Heard {
            verdict: self.health.verdict().clone(),
            at: Some(now),
            error,
        };
        known.send_modify(|known| {
            let before = known.insert(self.name.clone(), heard.clone());
            let before = before.unwrap_or_default().verdict;
            if before != heard.verdict {
                let (was, is) = (before.as_str(), heard.verdict.as_str());
                info!(target: "route_sync", route = self.name, was, is, "health");
            }
        });
    }

    /// Asks until `stop`.
    pub async fn run(mut self, known: watch::Sender<Known>, clock: Clock, stop: CancellationToken) {
        loop {
            let round = async {
                self.ask(&known, clock).await;
                clock.sleep_until(clock.now() + self.interval).await;
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = round => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
