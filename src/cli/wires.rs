//! Where the commands meet the parts that do I/O: each part's own shape on one side, channels on the other.

use std::sync::Arc;

use anyhow::bail;
use tokio::sync::watch;

use super::plan::Tcp;
use crate::config::{KubernetesConfig, NatsConfig, RoutingApiConfig, UaaConfig};
use crate::desired::{Desired, Finding};
use crate::kubernetes::snapshot::Snapshot;
use crate::lifecycle::{Clock, Tasks};
use crate::metrics::Counters;
use crate::route::Lane;
use crate::status::{LaneReport, SourceReport};

type Snapshots = watch::Receiver<Option<Arc<Snapshot>>>;
type Tables = watch::Receiver<Option<Arc<Desired>>>;

/// Starts the watches.
pub(super) fn watch(
    _config: KubernetesConfig,
    _clock: Clock,
    _counters: &mut Counters,
    tasks: &mut Tasks,
) -> (Snapshots, watch::Receiver<SourceReport>) {
    let (snapshot_tx, snapshot) = watch::channel(None);
    let (sources_tx, sources) = watch::channel(SourceReport::default());
    let stop = tasks.stop_token();
    tasks.spawn("kubernetes", async move {
        let _held = (snapshot_tx, sources_tx);
        stop.cancelled().await;
    });
    (snapshot, sources)
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
    _nats: NatsConfig,
    desired: Tables,
    _clock: Clock,
    _counters: &mut Counters,
    tasks: &mut Tasks,
) -> anyhow::Result<watch::Receiver<LaneReport>> {
    Ok(idle(Lane::Http, "http", desired, tasks))
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
pub(super) async fn snapshot_once(_config: &KubernetesConfig) -> anyhow::Result<Snapshot> {
    bail!("looking at a cluster once is not connected")
}

/// The view that manifests give; each text with the name of its file.
pub(super) fn snapshot_of_manifests(_texts: &[(String, String)]) -> anyhow::Result<Snapshot> {
    bail!("reading manifests is not connected")
}

/// What the TCP lane would change now, and what it found.
pub(super) async fn tcp_changes(
    _uaa: &UaaConfig,
    _api: &RoutingApiConfig,
    _desired: &Desired,
) -> anyhow::Result<(Tcp, Vec<Finding>)> {
    bail!("looking at the routing API once is not connected")
}
