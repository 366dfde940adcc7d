//! The TCP lane: observe → plan → apply, for as long as the process lives.
//!
//! ```text
//!   Desired ──▶ flaps ──▶ admission ──▶ plan ──▶ budget ──▶ requests (≤ 4) ──▶ state ──▶ LaneReport
//!                                        ▲                                       │
//!                                        └────────── image of the table ◀────────┘
//! ```
//!
//! One loop owns all state; requests are futures it polls itself, so that none outlives it and a request that
//! hangs delays nothing but its own rows. The table is listed at start, after errors, after deletes and every
//! five minutes, never before a change: between lists the image is kept by what the API confirmed, and by the
//! events that it tells of everybody's rows, where they can be had. Whatever a remote does, the loop goes on; only
//! `stop` ends it, and then every row stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Uptime;
use crate::config::{RoutingApiConfig, UaaConfig};
use crate::desired::{Desired, Finding};
use crate::lease::Roles;
use crate::lifecycle::Clock;
use crate::news;
use crate::outside::{Network, Outside};
use crate::plan::admission::{self, Gate, RouterGroup};
use crate::plan::{self, Journal, Observed, Plan, TcpRow, View};
use crate::route::Lane;
use crate::settings::Follower;
use crate::state::Warm;
use crate::status::LaneReport;
use crate::status::propagation::Propagation;
use crate::uaa::UaaSetupError;

mod batch;
mod budget;
mod client;
pub mod events;
mod follow;
mod report;
mod state;
pub mod wire;

pub use client::{ApiError, Client, EventBytes, RequestId, RoutingApi};
pub use follow::TcpSettings;

use events::{Heard, Loss};
use follow::Follow;
use state::{Done, Op, State};

/// How long requests under way may still take once the process is asked to stop.
const STOP_WAIT: Duration = Duration::from_secs(2);
/// The loop never turns faster than this on its own account.
const TURN_MIN: Duration = Duration::from_millis(5);

/// The lane, ready to run.
pub struct TcpLane {
    config: RoutingApiConfig,
    api: Arc<dyn RoutingApi>,
    counters: Arc<TcpCounters>,
    pace: Pace,
    warm: Warm,
    follow: Follow,
    ledger: Option<watch::Sender<BTreeSet<TcpRow>>>,
    roles: Roles,
}

/// What the lane has counted since the start.
#[derive(Debug, Default)]
pub struct TcpCounters {
    /// Requests to the routing API.
    pub requests: AtomicU64,
    /// Those that did not succeed.
    pub failures: AtomicU64,
    /// Tokens that were refused.
    pub unauthorized: AtomicU64,
    /// Lists of the whole table.
    pub lists: AtomicU64,
    /// Rows created.
    pub rows_added: AtomicU64,
    /// Rows deleted.
    pub rows_removed: AtomicU64,
    /// Rows refreshed.
    pub rows_refreshed: AtomicU64,
    /// Rows the API refused.
    pub rows_refused: AtomicU64,
    /// Rows that stood twice in the API's table.
    pub duplicates: AtomicU64,
    /// Confirmed rows that a list or an event showed gone.
    pub drift: AtomicU64,
    /// Events heard, those of our own writes included.
    pub events: AtomicU64,
    /// Streams of events that came to stand.
    pub streams: AtomicU64,
    /// Early renewals of the token that failed.
    pub token_failures: AtomicU64,
    /// How long new routes take.
    pub propagation: Arc<Propagation>,
}

/// Every wait of the lane that tests may want shorter.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two lists when nothing calls for one: 240 bytes a row.
    pub list_every: Duration,
    /// Between two lists while a stranger holds a port that is wanted.
    pub foreign_look: Duration,
    /// Between two lists while rows in the way are about to lapse.
    pub legacy_look: Duration,
    /// Between two looks at the router groups: operators change their ranges.
    pub groups_every: Duration,
    /// Until a refused row is tried again.
    pub quarantine: Duration,
    /// Until a missing scope is tried again.
    pub scope_retry: Duration,
    /// How long rows of an older job may live: its TTL of 60 s and the pruner's 10 s and some.
    pub legacy_life: Duration,
    /// How long after its TTL a row may still block its double: the pruner's 10 s and some.
    pub prune_margin: Duration,
    /// The longest wait until a lost stream of events is asked for again; one that stood for less counts as none.
    pub events_retry: Duration,
    /// How long the stream may say nothing. Every row that lives is refreshed or lapses within 120 s, the longest
    /// TTL, and the pruner's 10 s, and either is an event: a longer silence is an empty table or a dead stream.
    pub events_silence: Duration,
    /// How long the stream may be away before that is a finding.
    pub events_patience: Duration,
}

/// Why the lane cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No way to tokens.
    #[error("`uaa` cannot be used")]
    Uaa(#[from] UaaSetupError),
    /// No way to the API.
    #[error("`routing_api` cannot be used")]
    Tls(#[from] super::tls::TlsError),
}

/// What stands at the routing API at one moment, for a plan that is only shown.
#[derive(Clone, Debug)]
pub struct Observation {
    /// Every group of type tcp.
    pub groups: Vec<RouterGroup>,
    /// The table; `None` where it may not be read.
    pub rows: Option<Observed>,
}

/// Runs the lane until `stop`.
///
/// # Errors
/// Only where it cannot be set up; never because of a remote.
pub async fn run(
    config: RoutingApiConfig,
    uaa: &UaaConfig,
    desired: watch::Receiver<Option<Arc<Desired>>>,
    report: watch::Sender<LaneReport>,
    clock: Clock,
    counters: Arc<TcpCounters>,
    stop: CancellationToken,
) -> Result<(), ConnectError> {
    TcpLane::new(config, uaa, counters)?
        .run(desired, report, clock, stop)
        .await;
    Ok(())
}

/// Reads what stands, once, and writes nothing.
///
/// # Errors
/// Where the lane cannot be set up, or the API cannot be read.
pub async fn observe_once(
    config: &RoutingApiConfig,
    uaa: &UaaConfig,
) -> Result<Observation, ObserveError> {
    let lane = TcpLane::new(config.clone(), uaa, Arc::default())?;
    let groups = lane.api.router_groups().await?;
    let rows = match lane.api.list().await {
        Ok(rows) => Some(rows),
        Err(ApiError::Unauthorized { scope: Some(_), .. }) => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Observation { groups, rows })
}

/// Why nothing could be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// It cannot be set up.
    #[error("the TCP lane cannot be set up")]
    Connect(#[from] ConnectError),
    /// It cannot be read.
    #[error("the routing API cannot be read")]
    Api(#[from] ApiError),
}

// === impl TcpLane ===

impl TcpLane {
    /// Reads certificates and builds clients; asks nobody anything.
    ///
    /// # Errors
    /// Where a file or URL cannot be used.
    pub fn new(
        config: RoutingApiConfig,
        uaa: &UaaConfig,
        counters: Arc<TcpCounters>,
    ) -> Result<Self, ConnectError> {
        Self::over(Arc::new(Network), config, uaa, counters)
    }

    /// The same, over whatever leads outside.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn over(
        outside: Arc<dyn Outside>,
        config: RoutingApiConfig,
        uaa: &UaaConfig,
        counters: Arc<TcpCounters>,
    ) -> Result<Self, ConnectError> {
        let api = outside.routing_api(&config, uaa, &counters)?;
        let used = TcpSettings {
            api: config.clone(),
            uaa: uaa.clone(),
        };
        let follow = Follow::new(used, outside, counters.clone());
        Ok(Self {
            api,
            config,
            counters,
            pace: Pace::default(),
            warm: Warm::default(),
            follow,
            ledger: None,
            roles: Roles::alone(),
        })
    }

    /// The same with other waits.
    #[must_use]
    pub fn with_pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// The same, going on with what the last process left, and noting what the next one needs.
    #[must_use]
    pub fn with_state(mut self, warm: Warm, ledger: watch::Sender<BTreeSet<TcpRow>>) -> Self {
        self.warm = warm;
        self.ledger = Some(ledger);
        self
    }

    /// The same, following settings that began with those it was made of.
    #[must_use]
    pub fn with_settings(mut self, settings: Follower<TcpSettings>) -> Self {
        self.follow = self.follow.follow(settings);
        self
    }

    /// The same, acting as its role allows.
    #[must_use]
    pub fn with_roles(mut self, roles: Roles) -> Self {
        self.roles = roles;
        self
    }

    /// Runs until `stop`; keeps every row when it ends.
    pub async fn run(
        mut self,
        mut desired: watch::Receiver<Option<Arc<Desired>>>,
        report: watch::Sender<LaneReport>,
        clock: Clock,
        stop: CancellationToken,
    ) {
        let mut state = State::new(self.config, self.pace, self.counters.clone(), clock.now());
        let mut ops: FuturesUnordered<BoxFuture<'static, Done>> = FuturesUnordered::new();
        let mut speaks = true;
        let mut events: Option<BoxStream<'static, Heard>> = None;
        state.inherit_state(self.warm, clock.now());
        state.adopt(desired.borrow_and_update().clone(), clock.now());
        'turns: loop {
            if let Some(ledger) = &self.ledger {
                note(ledger, state.take_noted());
            }
            state.missing_by_token(self.api.missing_scopes());
            state.act_as(self.roles.at(clock.now()), clock.now());
            let renew_in = self.api.renew_token_in();
            let renew_at = renew_in.map(|wait| clock.now() + wait);
            if let Some(spared) = state.still_spared() {
                self.follow.taken(spared);
            }
            let (next, wake) = state.turn(renew_at, clock.now());
            tell_sent(&self.counters.propagation, &next, clock.now());
            let perform = |op| perform(op, self.api.clone(), self.roles.clone(), clock);
            ops.extend(next.into_iter().map(perform));
            if !state.listens() {
                events = None;
            } else if events.is_none() {
                events = Some(events::listen(self.api.clone(), self.pace));
            }
            news::tell(&report, state.report(clock.now()));
            let earliest = clock.now() + TURN_MIN;
            let mut wake = wake.max(earliest);
            // Events alone end no turn: most are echoes, and what they do call for may wait for the next ones.
            loop {
                tokio::select! {
                    // Stop before all else; what came back before what is wanted next, so that the next turn
                    // plans on what is known; then time, which a flood of events must not keep from passing.
                    biased;
                    () = stop.cancelled() => break 'turns,
                    () = self.roles.changed() => {}
                    Some(done) = ops.next(), if !ops.is_empty() => state.absorb(done, clock.now()),
                    proven = self.follow.proven() => {
                        self.follow.taken(state.reconfigure(&proven, clock.now()));
                        if let Some(api) = proven.client {
                            self.api = api;
                            events = None;
                        }
                    }
                    changed = desired.changed(), if speaks => match changed {
                        Ok(()) => state.adopt(desired.borrow_and_update().clone(), clock.now()),
                        // Nobody derives any more: the process is ending, and what lives is kept till then.
                        Err(_) => speaks = false,
                    },
                    () = clock.sleep_until(wake) => {}
                    Some(heard) = hear(&mut events) => {
                        if let Some(turn) = state.hear(heard, clock.now()) {
                            wake = wake.min(turn.max(earliest));
                        }
                        continue;
                    }
                }
                break;
            }
        }
        let finish = async { while ops.next().await.is_some() {} };
        // Whatever is cut off here is idempotent, and read back at the next start.
        let _ = tokio::time::timeout(STOP_WAIT, finish).await;
    }
}

/// What the stream says next; nothing, and never, without one.
async fn hear(events: &mut Option<BoxStream<'static, Heard>>) -> Option<Heard> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

/// Tells which rows became ours, and which are no more.
fn note(ledger: &watch::Sender<BTreeSet<TcpRow>>, (ours, gone): (Vec<TcpRow>, Vec<TcpRow>)) {
    if ours.is_empty() && gone.is_empty() {
        return;
    }
    ledger.send_modify(|rows| {
        for row in &gone {
            rows.remove(row);
        }
        rows.extend(ours);
    });
}

/// Notes which routes are on their way.
fn tell_sent(propagation: &Propagation, ops: &[Op], now: Uptime) {
    for op in ops {
        if let Op::Create { rows, .. } = op {
            propagation.sent(Lane::Tcp, rows.iter().map(|row| row.port), now);
        }
    }
}

/// Carries out one request, or a few that belong together.
fn perform(
    op: Op,
    api: Arc<dyn RoutingApi>,
    roles: Roles,
    clock: Clock,
) -> BoxFuture<'static, Done> {
    Box::pin(async move {
        let started = clock.now();
        match op {
            Op::Groups => Done::Groups(api.router_groups().await),
            Op::List => Done::List {
                started,
                answer: api.list().await,
            },
            Op::Renew => Done::Renewed(api.renew_token().await),
            Op::Create {
                rows,
                instance,
                ttl,
                kind,
            } => {
                let written = batch::create(&*api, rows.clone(), &instance, ttl).await;
                Done::Created {
                    started,
                    rows,
                    written,
                    kind,
                }
            }
            Op::Delete { rows, clearing } => {
                let written = batch::delete(&*api, rows.clone(), &roles, clock).await;
                Done::Deleted {
                    rows,
                    written,
                    clearing,
                }
            }
        }
    })
}

// === impl Observation ===

impl Observation {
    /// What a start would do now, with everything wrong that only the lane can see.
    ///
    /// # Errors
    /// The finding that keeps the whole lane waiting: no router group to be had.
    pub fn plan(&self, config: &RoutingApiConfig, desired: &Desired) -> Result<Plan, Finding> {
        let default = config.router_group_is_default;
        let chosen = admission::choose(&self.groups, &config.router_group, default)?;
        let instance = config.mark(&desired.cluster);
        let rows = self.rows.as_ref();
        let live = rows
            .map(|rows| state::live_ports(rows, &instance))
            .unwrap_or_default();
        let gate = Gate {
            groups: &self.groups,
            vanished: &[],
            chosen: &chosen,
            reserved: &config.reserved_ports,
            live: &live,
        };
        let admission = admission::admit(&desired.table.tcp, gate);
        let mut plan = plan::plan(plan::Input {
            instance: &instance,
            wanted: &admission.wanted,
            view: rows.map_or(
                View::Blind {
                    creates_from: Duration::ZERO,
                    inherited: &BTreeSet::new(),
                },
                View::Seen,
            ),
            journal: &Journal::default(),
            node_ips: &desired.node_ips,
            node_ports: &desired.node_ports,
            yielding: &desired.yielding,
            undecided: &desired.undecided,
            policy: state::policy(config, config.ttl, config.ttl / state::REFRESHES_PER_TTL),
            now: Duration::ZERO,
        });
        plan.findings.extend(admission.findings);
        plan.findings.sort();
        Ok(plan)
    }
}

// === impl TcpCounters ===

impl TcpCounters {
    /// Every counter by its name.
    #[must_use]
    pub fn values(&self) -> BTreeMap<&'static str, u64> {
        let load = |counter: &AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        BTreeMap::from([
            ("requests", load(&self.requests)),
            ("failures", load(&self.failures)),
            ("unauthorized", load(&self.unauthorized)),
            ("lists", load(&self.lists)),
            ("rows_added", load(&self.rows_added)),
            ("rows_removed", load(&self.rows_removed)),
            ("rows_refreshed", load(&self.rows_refreshed)),
            ("rows_refused", load(&self.rows_refused)),
            ("duplicates", load(&self.duplicates)),
            ("drift", load(&self.drift)),
            ("events", load(&self.events)),
            ("streams", load(&self.streams)),
            ("token_failures", load(&self.token_failures)),
        ])
    }
}

// === impl Pace ===

impl Default for Pace {
    fn default() -> Self {
        Self {
            list_every: Duration::from_mins(5),
            foreign_look: Duration::from_mins(1),
            legacy_look: Duration::from_secs(5),
            groups_every: Duration::from_mins(5),
            quarantine: Duration::from_mins(5),
            scope_retry: Duration::from_mins(1),
            legacy_life: Duration::from_secs(75),
            prune_margin: Duration::from_secs(15),
            events_retry: Duration::from_mins(1),
            events_silence: Duration::from_secs(150),
            events_patience: Duration::from_mins(5),
        }
    }
}
