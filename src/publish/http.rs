//! The HTTP lane: announces the desired table to gorouter over NATS, and never ends because NATS does.
//!
//! ```text
//!  Desired ──▶ schedule (pure: what, when) ──▶ lane ──▶ bus (one connection, gated, echoed) ──▶ NATS ──▶ gorouter
//!                  ▲ confirmed ── proof (pure) ──┘ ▲
//!                  └──────── interval ── routers (pure) ── greet, start
//!        lane ◀──▶ journal: the TLS keys, on disk before they are announced
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
mod tls_keys;
pub mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::NatsConfig;
use crate::desired::Desired;
use crate::lifecycle::Clock;
use crate::route::Lane;
use crate::status::LaneReport;
use journal::Journal;
use lane::HttpLane;

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
}

/// Runs the lane until `stop`. Routes stay as they are then: gorouter keeps them for 120 s, which bridges a
/// restart.
///
/// `desired` holds `None` until the first complete view of the cluster; nothing is announced or withdrawn before.
pub async fn run(
    config: NatsConfig,
    mut desired: watch::Receiver<Option<Arc<Desired>>>,
    report: watch::Sender<LaneReport>,
    clock: Clock,
    counters: Arc<HttpCounters>,
    stop: CancellationToken,
) {
    report.send_replace(LaneReport::new(Lane::Http));
    let journal = match &config.state_dir {
        Some(folder) => Some(Journal::open(folder).await),
        None => None,
    };
    let mut lane = HttpLane::new(config, journal, report, clock, counters);
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
        // The order: to stop, then the newest table, then what NATS says, then time. Sending needs no turn here,
        // as every round sends what is due, so that nothing above can starve it.
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            changed = desired.changed(), if upstream => {
                if changed.is_err() {
                    upstream = false;
                } else {
                    desired.mark_changed();
                }
            }
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

/// FNV-1a with a final mix, because its low bits alone are too regular to spread short keys over slots.
fn fnv(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}
