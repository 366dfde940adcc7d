//! Where the commands meet the parts that do I/O: each part's own shape on one side, channels on the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::plan::{Tcp, TcpRow};
use crate::config::{KubernetesConfig, NatsConfig, RoutingApiConfig, UaaConfig};
use crate::desired::{Desired, Finding};
use crate::kubernetes::{self, snapshot::Snapshot};
use crate::lifecycle::{Clock, Tasks};
use crate::metrics::{Counter, Counters};
use crate::plan;
use crate::publish::http::{self, HttpCounters};
use crate::publish::tcp::{self, TcpCounters, TcpLane};
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
    let (watches, receivers) = kubernetes::watch(config, clock, &counts);
    tasks.spawn("kubernetes", watches.run(tasks.stop_token()));
    (receivers.snapshot, receivers.report)
}

/// Starts the TCP lane. Certificates that cannot be used are a mistake of the configuration.
pub(super) fn tcp(
    uaa: &UaaConfig,
    api: RoutingApiConfig,
    desired: Tables,
    clock: Clock,
    counters: &mut Counters,
    tasks: &mut Tasks,
) -> Result<watch::Receiver<LaneReport>, tcp::ConnectError> {
    type Count = fn(&TcpCounters) -> &AtomicU64;
    let counts = Arc::new(TcpCounters::default());
    let read: [(Counter, Count); 11] = [
        (Counter::RoutingApiRequests, |counts| &counts.requests),
        (Counter::RoutingApiFailures, |counts| &counts.failures),
        (Counter::RoutingApiUnauthorized, |counts| {
            &counts.unauthorized
        }),
        (Counter::RoutingApiLists, |counts| &counts.lists),
        (Counter::TcpRowsAdded, |counts| &counts.rows_added),
        (Counter::TcpRowsRemoved, |counts| &counts.rows_removed),
        (Counter::TcpRowsRefreshed, |counts| &counts.rows_refreshed),
        (Counter::TcpRowsRefused, |counts| &counts.rows_refused),
        (Counter::TcpRowsDuplicate, |counts| &counts.duplicates),
        (Counter::TcpRowsDrifted, |counts| &counts.drift),
        (Counter::UaaTokenFailures, |counts| &counts.token_failures),
    ];
    for (counter, count) in read {
        let counts = counts.clone();
        counters.add(counter, move || count(&counts).load(Ordering::Relaxed));
    }
    let (report_tx, report) = watch::channel(LaneReport::new(Lane::Tcp));
    let lane = TcpLane::new(api, uaa, counts)?;
    tasks.spawn(
        "tcp",
        lane.run(desired, report_tx, clock, tasks.stop_token()),
    );
    Ok(report)
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
    uaa: &UaaConfig,
    api: &RoutingApiConfig,
    desired: &Desired,
) -> anyhow::Result<(Tcp, Vec<Finding>)> {
    let observed = tcp::observe_once(api, uaa).await?;
    let readable = observed.rows.is_some();
    let plan = match observed.plan(api, desired) {
        Ok(plan) => plan,
        Err(finding) => {
            let blocked = Tcp {
                readable,
                blocked: true,
                ..Tcp::default()
            };
            return Ok((blocked, vec![finding]));
        }
    };
    let rows = |rows: &[plan::TcpRow]| rows.iter().map(shown).collect::<Vec<_>>();
    let mut add = rows(&plan.restore);
    add.extend(rows(&plan.add));
    let mut keep = rows(&plan.keep);
    keep.extend(rows(&plan.refresh));
    let remove = plan.clear.iter().chain(&plan.remove);
    let tcp = Tcp {
        readable,
        blocked: false,
        add,
        remove: remove.map(|owned| shown(owned.get())).collect(),
        keep,
        held: plan.held.iter().map(|port| port.get()).collect(),
    };
    Ok((tcp, plan.findings))
}

fn shown(row: &plan::TcpRow) -> TcpRow {
    TcpRow {
        port: row.port.get(),
        backend: row.backend(),
    }
}
