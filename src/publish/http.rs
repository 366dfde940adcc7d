//! The HTTP lane: announces the desired table to gorouter over NATS, and never ends because NATS does.
//!
//! ```text
//!  Desired ──▶ schedule (pure: what, when) ──▶ lane ──▶ bus (one connection, gated, echoed) ──▶ NATS ──▶ gorouter
//!                  ▲ confirmed ── proof (pure) ──┘ ▲
//!                  └──────── interval ── routers (pure) ── greet, start
//!        lane ◀──▶ journal: the TLS keys, on disk before they are announced
//!         ▲ who else serves a host ── strangers (pure) ── others' registrations
//! ```
//!
//! gorouter's table is soft state that cannot be read back: what is not announced again fades after 120 s. So the
//! lane has no plan to compare with; it keeps a schedule. A route counts as live once an echo has proven that its
//! announcement reached the server over the connection that stands.

mod bus;
mod journal;
mod lane;
mod proof;
mod routers;
pub mod schedule;
mod strangers;
mod tls_keys;
pub mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::NatsConfig;
use crate::desired::Desired;
use crate::lease::{Instances, Roles};
use crate::lifecycle::Clock;
use crate::outside::{Network, Outside};
use crate::route::{Lane, stable_hash};
use crate::settings::Follower;
use crate::state::{HttpEntry, Warm};
use crate::status::LaneReport;
use crate::status::propagation::Propagation;
use journal::Journal;
use lane::{Follow, HttpLane};

pub(crate) use bus::NatsBus;
pub use bus::{Bus, BusError, Heard, Overheard, SendError};

/// What the lane counts. Plain numbers: how they are called outside is the metrics' affair.
#[derive(Debug, Default)]
pub struct HttpCounters {
    /// Registrations sent because something was new or had to be said anew.
    pub announcements: AtomicU64,
    /// Registrations sent as beats.
    pub beats: AtomicU64,
    /// Unregistrations sent, repetitions included.
    pub withdrawals: AtomicU64,
    /// Messages that could not be sent.
    pub send_failures: AtomicU64,
    /// Echoes that came.
    pub echoes: AtomicU64,
    /// Echoes that did not.
    pub echo_misses: AtomicU64,
    /// Connections that came to stand.
    pub connections: AtomicU64,
    /// `router.start` messages heard.
    pub router_starts: AtomicU64,
    /// Whether there is a connection now: 0 or 1.
    pub connected: AtomicU64,
    /// Messages one sweep over all endpoints takes.
    pub messages: AtomicU64,
    /// Keys whose withdrawal is still being repeated.
    pub withdrawals_pending: AtomicU64,
    /// Routers that told of themselves.
    pub routers: AtomicU64,
    /// The interval between two beats, in milliseconds.
    pub interval_millis: AtomicU64,
    /// How long the last echo took, in microseconds.
    pub echo_micros: AtomicU64,
    /// Others' registrations and unregistrations that were read, our own among them.
    pub overheard: AtomicU64,
    /// Those that came faster than they could be read.
    pub overheard_dropped: AtomicU64,
    /// Strangers' endpoints that are remembered now, each with each of its uris.
    pub strangers: AtomicU64,
    /// How long new routes take.
    pub propagation: Arc<Propagation>,
}

/// What the lane goes on with from the last process, and where it notes what the next one needs.
#[derive(Clone, Debug, Default)]
pub struct Inheritance {
    /// What the last process left.
    pub warm: Warm,
    /// Where to note; `None` where nothing survives.
    pub ledger: Option<watch::Sender<HttpEntry>>,
    /// What the lane may do.
    pub roles: Roles,
    /// How other instances are heard and told; `None` where there are none.
    pub instances: Option<Instances>,
}

/// What the lane is made of.
pub struct Setup {
    /// How NATS is reached, and how much is said there; it may change.
    pub settings: Follower<NatsConfig>,
    /// By what it is reached.
    pub outside: Arc<dyn Outside>,
    /// What it goes on with.
    pub inheritance: Inheritance,
}

/// Runs the lane until `stop`. Routes stay as they are then: gorouter keeps them for 120 s, which bridges a
/// restart.
///
/// `desired` holds `None` until the first complete view of the cluster; nothing is announced or withdrawn before.
pub async fn run(
    config: NatsConfig,
    desired: watch::Receiver<Option<Arc<Desired>>>,
    report: watch::Sender<LaneReport>,
    clock: Clock,
    counters: Arc<HttpCounters>,
    stop: CancellationToken,
) {
    let none = Inheritance::default();
    run_with(config, none, desired, report, clock, counters, stop).await;
}

/// The same, but what the last process left is announced, and withdrawn, before the first complete view, and the
/// settings may change.
pub async fn run_with(
    settings: impl Into<Follower<NatsConfig>>,
    inheritance: Inheritance,
    desired: watch::Receiver<Option<Arc<Desired>>>,
    report: watch::Sender<LaneReport>,
    clock: Clock,
    counters: Arc<HttpCounters>,
    stop: CancellationToken,
) {
    let setup = Setup {
        settings: settings.into(),
        outside: Arc::new(Network),
        inheritance,
    };
    run_over(setup, desired, report, clock, counters, stop).await;
}

/// The same, over whatever leads outside.
pub async fn run_over(
    setup: Setup,
    mut desired: watch::Receiver<Option<Arc<Desired>>>,
    report: watch::Sender<LaneReport>,
    clock: Clock,
    counters: Arc<HttpCounters>,
    stop: CancellationToken,
) {
    let Setup {
        settings,
        outside,
        inheritance,
    } = setup;
    report.send_replace(LaneReport::new(Lane::Http));
    let mut follow = Follow::new(settings, outside.clone());
    let config = follow.used();
    let journal = match &config.state_dir {
        Some(folder) => Some(Journal::open(folder).await),
        None => None,
    };
    let mut roles = inheritance.roles.clone();
    let mut lane = HttpLane::new(config, outside, journal, report, clock, counters);
    lane.inherit(inheritance).await;
    desired.mark_changed();
    let mut upstream = true;
    loop {
        if upstream && desired.has_changed().unwrap_or(false) {
            let table = desired.borrow_and_update().clone();
            if let Some(table) = table {
                lane.apply(&table).await;
            }
        }
        lane.step().await;
        // The order: to stop, then the newest table and settings, then what NATS says, then time. Sending needs no turn here,
        // as every round sends what is due, so that nothing above can starve it.
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = roles.changed() => {}
            changed = desired.changed(), if upstream => {
                if changed.is_err() {
                    upstream = false;
                } else {
                    desired.mark_changed();
                }
            }
            proven = follow.proven() => lane.take_over(proven).await,
            () = lane.wait() => {}
        }
    }
    lane.finish().await;
}

/// The whole chain of causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn set(gauge: &AtomicU64, value: impl TryInto<u64>) {
    gauge.store(value.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// The stable hash with a final mix, because its low bits alone are too regular to spread short keys over slots.
fn mixed_hash(bytes: &[u8]) -> u64 {
    let hash = stable_hash(bytes.iter().copied());
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}
