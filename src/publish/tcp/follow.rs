//! Other settings for a lane that runs: proven first, then taken.
//!
//! A client of the new settings has to get a token and read the router groups before the old one is given up, so
//! that a wrong secret, an unreachable UAA or a certificate of somebody else costs no refresh. Until then, and
//! however long that takes, the old settings serve. Which settings can change at all is the configuration's affair.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::{ApiError, ConnectError, Heard, Loss, RoutingApi, State, TcpCounters};
use crate::Uptime;
use crate::causes::chain;
use crate::config::{RoutingApiConfig, UaaConfig};
use crate::outside::Outside;
use crate::retry::Backoff;
use crate::route::RouterPort;
use crate::settings::Follower;
use crate::uaa::UaaError;

/// Waits between two trials: the first, and the longest.
const TRIALS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// Until a client that UAA refuses is tried again: some UAAs lock a client out after five failures within an hour,
/// and the client may be the one that serves.
const REFUSED_AGAIN: Duration = Duration::from_mins(20);

/// What the lane is set up with.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpSettings {
    /// The routing API.
    pub api: RoutingApiConfig,
    /// Where tokens come from.
    pub uaa: UaaConfig,
}

/// Settings that work.
pub(super) struct Proven {
    pub(super) api: RoutingApiConfig,
    /// Where the old one cannot go on.
    pub(super) client: Option<Arc<dyn RoutingApi>>,
}

/// Why settings do not work.
#[derive(Debug, thiserror::Error)]
enum TrialError {
    /// No client can be made of them.
    #[error(transparent)]
    Setup(#[from] ConnectError),
    /// It is of no use.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// What is wanted, and how far it is.
pub(super) struct Follow {
    follower: Follower<TcpSettings>,
    outside: Arc<dyn Outside>,
    used: TcpSettings,
    counters: Arc<TcpCounters>,
    backoff: Backoff,
    trial: Option<BoxFuture<'static, Tried>>,
}

/// What was tried, and what came of it.
type Tried = (TcpSettings, Result<Arc<dyn RoutingApi>, TrialError>);

// === impl Follow ===

impl Follow {
    /// What is used never changes.
    pub(super) fn new(
        used: TcpSettings,
        outside: Arc<dyn Outside>,
        counters: Arc<TcpCounters>,
    ) -> Self {
        Self {
            follower: used.clone().into(),
            outside,
            used,
            counters,
            backoff: Backoff::new(TRIALS.0, TRIALS.1),
            trial: None,
        }
    }

    /// What is used changes with these.
    pub(super) fn follow(self, follower: Follower<TcpSettings>) -> Self {
        Self { follower, ..self }
    }

    /// Waits for other settings that work. Safe to drop at any time.
    pub(super) async fn proven(&mut self) -> Proven {
        loop {
            let trial = async {
                match &mut self.trial {
                    Some(trial) => trial.await,
                    None => pending().await,
                }
            };
            // The newest wish first: what it replaces need not be tried any more.
            tokio::select! {
                biased;
                wanted = self.follower.changed() => {
                    self.backoff.succeed();
                    self.trial = None;
                    if self.used.connects_as(&wanted) {
                        return self.take(wanted, None);
                    }
                    self.trial = Some(attempt(self.outside.clone(), wanted, self.counters.clone(), Duration::ZERO));
                }
                (wanted, tried) = trial => {
                    self.trial = None;
                    match tried {
                        Ok(client) => return self.take(wanted, Some(client)),
                        Err(error) => {
                            self.refuse(&chain(&error));
                            let wait = self.backoff.fail();
                            let wait = if error.is_refusal() { REFUSED_AGAIN } else { wait };
                            self.trial = Some(attempt(self.outside.clone(), wanted, self.counters.clone(), wait));
                        }
                    }
                }
            }
        }
    }

    fn refuse(&self, why: &str) {
        if self.follower.refuse(why) {
            tracing::warn!(
                lane = "tcp",
                error = why,
                "new settings do not work, the last ones serve"
            );
        }
    }

    fn take(&mut self, settings: TcpSettings, client: Option<Arc<dyn RoutingApi>>) -> Proven {
        tracing::info!(
            lane = "tcp",
            reconnected = client.is_some(),
            "new settings taken"
        );
        let api = settings.api.clone();
        self.used = settings;
        Proven { api, client }
    }

    /// What was proven is in use, but for ports that live and were not reserved before.
    pub(super) fn taken(&self, spared: &BTreeSet<RouterPort>) {
        if spared.is_empty() {
            self.follower.in_use();
            return;
        }
        let ports: Vec<_> = spared.iter().map(|port| format!("`{port}`")).collect();
        let ports = ports.join(", ");
        let why = format!(
            "routes live on {ports}, which `routing_api.reserved_ports` names: it is heeded at the next start"
        );
        if self.follower.refuse(&why) {
            tracing::warn!(lane = "tcp", %ports, "ports reserved meanwhile stay open till the next start");
        }
    }
}

fn attempt(
    outside: Arc<dyn Outside>,
    settings: TcpSettings,
    counters: Arc<TcpCounters>,
    wait: Duration,
) -> BoxFuture<'static, Tried> {
    Box::pin(async move {
        tokio::time::sleep(wait).await;
        let client = try_out(&*outside, &settings, counters).await;
        (settings, client)
    })
}

async fn try_out(
    outside: &dyn Outside,
    settings: &TcpSettings,
    counters: Arc<TcpCounters>,
) -> Result<Arc<dyn RoutingApi>, TrialError> {
    let client = outside.routing_api(&settings.api, &settings.uaa, &counters)?;
    client.router_groups().await?;
    Ok(client)
}

// === impl TrialError ===

impl TrialError {
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Api(ApiError::Token(UaaError::Refused { .. })))
    }
}

// === impl TcpSettings ===

impl TcpSettings {
    /// Whether one client serves both.
    fn connects_as(&self, other: &Self) -> bool {
        let api = |settings: &Self| (settings.api.url.clone(), settings.api.tls.clone());
        self.uaa == other.uaa && api(self) == api(other)
    }
}

// === impl State ===

impl State {
    /// Goes on with other settings: what is known stays known, and is looked at anew. Gives the ports that live
    /// although they are to be reserved: a slip in a file that is read while routes live should close none.
    pub(super) fn reconfigure(&mut self, proven: &Proven, now: Uptime) -> &BTreeSet<RouterPort> {
        let (mut api, before) = (proven.api.clone(), &self.config.reserved_ports);
        let newly = |port: &RouterPort| {
            api.reserved_ports.contains(port.get()) && !before.contains(port.get())
        };
        let spared: BTreeSet<_> = self.live().into_iter().filter(newly).collect();
        self.reserved = std::mem::take(&mut api.reserved_ports);
        self.config = api;
        self.spare(spared);
        if proven.client.is_some() {
            // What the old client could not do need not wait for the new one.
            self.missing.clear();
            self.hear(Heard::Lost(Loss::Ended), now);
            self.look_now(now);
        }
        &self.spared
    }

    /// The ports that are still spared, if some are no more: whose route went is reserved from then on.
    pub(super) fn still_spared(&mut self) -> Option<&BTreeSet<RouterPort>> {
        if self.spared.is_empty() {
            return None;
        }
        let live = self.live();
        let still: BTreeSet<_> = self.spared.intersection(&live).copied().collect();
        if still.len() == self.spared.len() {
            return None;
        }
        self.spare(still);
        Some(&self.spared)
    }

    fn spare(&mut self, ports: BTreeSet<RouterPort>) {
        let all = self.reserved.clone();
        let spared = ports.iter();
        self.config.reserved_ports = spared.fold(all, |all, port| all.without(port.get()));
        self.spared = ports;
        self.admission_stale = true;
    }
}
