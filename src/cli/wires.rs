//! Where the commands meet the parts that do I/O: each part's own shape on one side, channels on the other.

mod lease;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::join_all;
use tokio::sync::watch;

use super::plan::{Tcp, TcpRow};
use super::run::Others;
use crate::config::{
    KubernetesConfig, NatsConfig, RoutingApiConfig, Source, StaticRoute, UaaConfig,
};
use crate::desired::{Desired, Finding};
use crate::kubernetes::{self, snapshot::Snapshot};
use crate::lease::{Instances, Roles};
use crate::lifecycle::{Clock, Tasks};
use crate::metrics::{Counter, Counters};
use crate::outside::{Network, Outside};
use crate::plan;
use crate::publish::http::{self, HttpCounters, Inheritance};
use crate::publish::tcp::{self, TcpCounters, TcpLane, TcpSettings};
use crate::route::Lane;
use crate::settings::Settings;
use crate::state::{self, Foundation, Opened, Place, Warm};
use crate::static_routes;
use crate::status::{LaneReport, SourceReport};
pub(super) use lease::{Shared, lease};

type Snapshots = watch::Receiver<Option<Arc<Snapshot>>>;
type Tables = watch::Receiver<Option<Arc<Desired>>>;

/// What a lane is connected to.
pub(super) struct Wiring<'a> {
    pub(super) outside: Arc<dyn Outside>,
    /// What the last process left, and where it is noted what the next one needs.
    pub(super) state: Option<&'a Opened>,
    /// What the Lease lets it do.
    pub(super) roles: Roles,
    /// The other instances, where there are any.
    pub(super) instances: Option<Instances>,
    pub(super) desired: Tables,
    pub(super) clock: Clock,
    pub(super) counters: &'a mut Counters,
    pub(super) tasks: &'a mut Tasks,
}

/// Starts the watches.
pub(super) fn watch(
    outside: Arc<dyn Outside>,
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
    let (watches, receivers) = kubernetes::watch_over(outside, config, clock, &counts);
    tasks.spawn("kubernetes", watches.run(tasks.stop_token()));
    (receivers.snapshot, receivers.report)
}

/// Reads the state folder, if there is one.
pub(super) async fn state(
    outside: &dyn Outside,
    place: Option<Place>,
    source: &Source,
    api: Option<&RoutingApiConfig>,
) -> Option<Opened> {
    let place = place?;
    let (apiserver, app_domain) = match source {
        Source::Static(_) => (static_routes::NO_CLUSTER.to_owned(), String::new()),
        Source::Cluster(cluster) => {
            let apiserver = match &cluster.kubernetes.cluster_id {
                Some(id) => id.clone(),
                // Who cannot be told cannot be the same: nothing is announced before it answers.
                None => kubernetes::server_url(&cluster.kubernetes)
                    .await
                    .unwrap_or_default(),
            };
            (apiserver, cluster.routes.app_domain.to_string())
        }
    };
    let foundation = Foundation {
        apiserver,
        app_domain,
        router_group: api.map(|api| api.router_group.clone()),
        routing_api: api.map(|api| api.url.clone()),
    };
    let disk = outside.disk(&place.dir);
    let opened = state::open_on(disk, place, foundation).await;
    Some(match source {
        Source::Static(_) => opened.rows_alone(),
        Source::Cluster(_) => opened,
    })
}

/// Starts what looks whose all node ports are, whenever that has to be known.
pub(super) fn node_ports(
    outside: Arc<dyn Outside>,
    config: KubernetesConfig,
    tasks: &mut Tasks,
) -> Others {
    let (needed, needed_rx) = watch::channel(false);
    let (ports_tx, ports) = watch::channel(kubernetes::NodePorts::new());
    let stop = tasks.stop_token();
    let looking = kubernetes::watch_node_ports(outside, config, needed_rx, ports_tx, stop);
    tasks.spawn("node-ports", looking);
    Others { needed, ports }
}

/// Starts the TCP lane. Certificates that cannot be used are a mistake of the configuration.
pub(super) fn tcp(
    settings: &Settings<TcpSettings>,
    wiring: &mut Wiring<'_>,
) -> Result<watch::Receiver<LaneReport>, tcp::ConnectError> {
    type Count = fn(&TcpCounters) -> &AtomicU64;
    let counts = Arc::new(TcpCounters {
        propagation: wiring.counters.propagation(),
        ..TcpCounters::default()
    });
    let read: [(Counter, Count); 13] = [
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
        (Counter::RoutingApiEvents, |counts| &counts.events),
        (Counter::RoutingApiEventStreams, |counts| &counts.streams),
        (Counter::UaaTokenFailures, |counts| &counts.token_failures),
    ];
    for (counter, count) in read {
        let counts = counts.clone();
        wiring
            .counters
            .add(counter, move || count(&counts).load(Ordering::Relaxed));
    }
    let (report_tx, report) = watch::channel(LaneReport::new(Lane::Tcp));
    let mut follower = settings.follower();
    let TcpSettings { api, uaa } = follower.get();
    let lane = TcpLane::over(wiring.outside.clone(), api, &uaa, counts)?;
    let mut lane = lane
        .with_settings(follower)
        .with_roles(wiring.roles.clone());
    if let Some(state) = wiring.state {
        lane = lane.with_state(state.warm.clone(), state.ledgers.rows.clone());
    }
    let (desired, stop) = (wiring.desired.clone(), wiring.tasks.stop_token());
    let lane = lane.run(desired, report_tx, wiring.clock, stop);
    wiring.tasks.spawn("tcp", lane);
    Ok(report)
}

/// Starts the HTTP lane.
pub(super) fn http(
    settings: &Settings<NatsConfig>,
    wiring: &mut Wiring<'_>,
) -> watch::Receiver<LaneReport> {
    type Count = fn(&HttpCounters) -> &AtomicU64;
    let counts = Arc::new(HttpCounters {
        propagation: wiring.counters.propagation(),
        ..HttpCounters::default()
    });
    let read: [(Counter, Count); 17] = [
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
        (Counter::NatsOverheard, |counts| &counts.overheard),
        (Counter::NatsOverheardDropped, |counts| {
            &counts.overheard_dropped
        }),
        (Counter::NatsStrangers, |counts| &counts.strangers),
    ];
    for (counter, count) in read {
        let counts = counts.clone();
        wiring
            .counters
            .add(counter, move || count(&counts).load(Ordering::Relaxed));
    }
    let (report_tx, report) = watch::channel(LaneReport::new(Lane::Http));
    let state = wiring.state;
    let inheritance = Inheritance {
        warm: state.map_or_else(Warm::default, |state| state.warm.clone()),
        ledger: state.map(|state| state.ledgers.http.clone()),
        roles: wiring.roles.clone(),
        instances: wiring.instances.take(),
    };
    let setup = http::Setup {
        settings: settings.follower(),
        outside: wiring.outside.clone(),
        inheritance,
    };
    let (desired, stop) = (wiring.desired.clone(), wiring.tasks.stop_token());
    let lane = http::run_over(setup, desired, report_tx, wiring.clock, counts, stop);
    wiring.tasks.spawn("http", lane);
    report
}

/// One complete view of the cluster.
pub(super) async fn snapshot_once(config: &KubernetesConfig) -> anyhow::Result<Snapshot> {
    Ok(kubernetes::snapshot_once(config).await?)
}

/// The table of static routes after one question each: who does not answer well is undecided.
pub(super) async fn health_once(
    routes: &[StaticRoute],
) -> Result<Desired, static_routes::SetupError> {
    let known = watch::Sender::new(static_routes::unasked(routes));
    let mut watches = static_routes::watches(routes, &Network)?;
    let clock = Clock::start();
    join_all(watches.iter_mut().map(|watch| watch.ask(&known, clock))).await;
    Ok(static_routes::table(routes, &known.borrow()))
}

/// The view that manifests give, with findings on what cannot be read; each text with the name of its file.
pub(super) fn snapshot_of_manifests(texts: &[(String, String)]) -> Snapshot {
    let files = texts
        .iter()
        .map(|(file, text)| (file.as_str(), text.as_str()));
    kubernetes::snapshot_of_manifests(files)
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
