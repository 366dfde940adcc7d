//! Where the commands meet the parts that do I/O: each part's own shape on one side, channels on the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::bail;
use tokio::sync::watch;

use super::plan::Tcp;
use crate::config::{KubernetesConfig, NatsConfig, RoutingApiConfig, UaaConfig};
use crate::desired::{Desired, Finding};
use crate::kubernetes::{self, snapshot::Snapshot};
use crate::lifecycle::{Clock, Tasks};
use crate::metrics::{Counter, Counters};
use crate::publish::http::{self, HttpCounters};
use crate::route::Lane;
use crate::status::{LaneReport, SourceReport};

type Snapshots = watch::Receiver<Option<Arc<Snapshot>>>;
type Tables = watch::Receiver<Option<Arc<Desired>>>;

/// Starts the watches.
pub(super) fn watch(
    config: KubernetesConfig,
    clock: Clock,
    counters: &mut Counters,
    tasks: &mut Tasks,
) -> (Snapshots, watch::Receiver<SourceReport>) {
    let counts = kubernetes::WatchCounters::default();
    for (counter, count) in [
        (Counter::Lists, &counts.lists),
        (Counter::WatchStarts, &counts.watch_starts),
        (Counter::WatchRestarts, &counts.watch_restarts),
        (Counter::WatchMissed, &counts.watch_missed),
        (Counter::Undecodable, &counts.undecodable),
    ] {
        let count = count.clone();
        counters.add(counter, move || count.load(Ordering::Relaxed));
    }
    let (watches, receivers) = kubernetes::watch(config, clock, counts);
    tasks.spawn("kubernetes", watches.run(tasks.stop_token()));
    (receivers.snapshot, receivers.report)
}

/// Starts the TCP lane.
pub(super) fn tcp(
    _uaa: UaaConfig,
    _api: RoutingApiConfig,
    desired: Tables,
    _clock: Clock,
    _counters: &mut Counters,
    tasks: &mut Tasks,
) -> anyhow::Result<watch::Receiver<LaneReport>> {
    Ok(idle(Lane::Tcp, "tcp", desired, tasks))
}

/// Starts the HTTP lane.
pub(super) fn http(
    nats: NatsConfig,
    desired: Tables,
    clock: Clock,
    counters: &mut Counters,
    tasks: &mut Tasks,
) -> watch::Receiver<LaneReport> {
    type Count = fn(&HttpCounters) -> &AtomicU64;
    let counts = Arc::new(HttpCounters::default());
    let read: [(Counter, Count); 14] = [
        (Counter::NatsAnnouncements, |counts| &counts.announcements),
        (Counter::NatsBeats, |counts| &counts.beats),
        (Counter::NatsWithdrawals, |counts| &counts.withdrawals),
        (Counter::NatsSendFailures, |counts| &counts.send_failures),
        (Counter::NatsEchoes, |counts| &counts.echoes),
        (Counter::NatsEchoesMissed, |counts| &counts.echo_misses),
        (Counter::NatsConnections, |counts| &counts.connections),
        (Counter::NatsRouterStarts, |counts| &counts.router_starts),
        (Counter::NatsConnected, |counts| &counts.connected),
        (Counter::NatsSweepMessages, |counts| &counts.messages),
        (Counter::NatsWithdrawalsPending, |counts| {
            &counts.withdrawals_pending
        }),
        (Counter::NatsRouters, |counts| &counts.routers),
        (Counter::NatsIntervalMilliseconds, |counts| {
            &counts.interval_millis
        }),
        (Counter::NatsEchoMicroseconds, |counts| &counts.echo_micros),
    ];
    for (counter, count) in read {
        let counts = counts.clone();
        counters.add(counter, move || count(&counts).load(Ordering::Relaxed));
    }
    let (report_tx, report) = watch::channel(LaneReport::new(Lane::Http));
    let lane = http::run(nats, desired, report_tx, clock, counts, tasks.stop_token());
    tasks.spawn("http", lane);
    report
}

fn idle(
    lane: Lane,
    name: &'static str,
    desired: Tables,
    tasks: &mut Tasks,
) -> watch::Receiver<LaneReport> {
    let (report_tx, report) = watch::channel(LaneReport::new(lane));
    let stop = tasks.stop_token();
    tasks.spawn(name, async move {
        let _held = (report_tx, desired);
        stop.cancelled().await;
    });
    report
}

/// One complete view of the cluster.
pub(super) async fn snapshot_once(config: &KubernetesConfig) -> anyhow::Result<Snapshot> {
    Ok(kubernetes::snapshot_once(config).await?)
}

/// The view that manifests give; each text with the name of its file.
pub(super) fn snapshot_of_manifests(texts: &[(String, String)]) -> anyhow::Result<Snapshot> {
    let files = texts
        .iter()
        .map(|(file, text)| (file.as_str(), text.as_str()));
    Ok(kubernetes::snapshot_of_manifests(files)?)
}

/// What the TCP lane would change now, and what it found.
pub(super) async fn tcp_changes(
    _uaa: &UaaConfig,
    _api: &RoutingApiConfig,
    _desired: &Desired,
) -> anyhow::Result<(Tcp, Vec<Finding>)> {
    bail!("looking at the routing API once is not connected")
}
