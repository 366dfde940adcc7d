//! What stands before the lanes: everything that makes the table of routes, of a cluster or of the configuration.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::derive::{self, Inherited};
use super::drain::Gate;
use super::fixed;
use crate::admin::Approval;
use crate::cli::wires;
use crate::config::{ClusterConfig, StaticRoute};
use crate::desired::{Desired, Memory, Options};
use crate::kubernetes::snapshot::Snapshot;
use crate::lease::{Instances, LeaseReport, Roles};
use crate::lifecycle::{Clock, Tasks};
use crate::metrics::Counters;
use crate::outside::Outside;
use crate::settings::Settings;
use crate::state::Opened;
use crate::static_routes;
use crate::status::{Drain, SourceReport};

/// What it is connected to.
pub(super) struct Base<'a> {
    pub(super) outside: Arc<dyn Outside>,
    /// What the last process left, and where it is noted what the next one needs.
    pub(super) state: Option<&'a Opened>,
    /// Operators' words before a stop, and where they are put in.
    pub(super) gate: Gate,
    pub(super) drained: watch::Receiver<Option<Drain>>,
    /// Operators' words about what is held.
    pub(super) approvals: mpsc::Receiver<Approval>,
    /// Where the table goes.
    pub(super) desired: watch::Sender<Option<Arc<Desired>>>,
    pub(super) clock: Clock,
    pub(super) counters: &'a mut Counters,
    pub(super) tasks: &'a mut Tasks,
}

/// What the lanes and the status have of it.
pub(super) struct Upstream {
    /// What it says of itself.
    pub(super) sources: watch::Receiver<SourceReport>,
    /// The view of the cluster, where there is one.
    pub(super) snapshot: Option<watch::Receiver<Option<Arc<Snapshot>>>>,
    /// What the Lease lets the lanes do.
    pub(super) roles: Roles,
    /// The other instances, where there are any.
    pub(super) instances: Option<Instances>,
    /// What the Lease is to this instance, where there is one.
    pub(super) lease: Option<watch::Receiver<LeaseReport>>,
}

/// Watches a cluster and derives the table from its Services.
pub(super) fn of_cluster(
    config: ClusterConfig,
    options: &Settings<Options>,
    base: Base<'_>,
) -> Upstream {
    let ClusterConfig {
        kubernetes,
        // Whoever derives and the HTTP lane follow what these become.
        routes: _,
        nats: _,
        leader_election,
    } = config;
    let leading = wires::lease(
        base.outside.clone(),
        leader_election,
        &kubernetes,
        base.state,
        base.drained,
        base.clock,
        base.tasks,
    );
    let others = wires::node_ports(base.outside.clone(), kubernetes.clone(), base.tasks);
    let (snapshot, sources) = wires::watch(
        base.outside,
        kubernetes,
        base.clock,
        base.counters,
        base.tasks,
    );
    let deriving = derive::run(
        snapshot.clone(),
        options.follower(),
        known_holders(base.state),
        base.clock,
        base.desired,
        derive::Told {
            approvals: base.approvals,
            others,
            propagation: base.counters.propagation(),
            gate: base.gate,
            shared: leading.shared,
            inherited: base.state.map(Inherited::of),
        },
        base.tasks.stop_token(),
    );
    base.tasks.spawn("derive", deriving);
    Upstream {
        sources,
        snapshot: Some(snapshot),
        roles: leading.roles,
        instances: leading.instances,
        lease: leading.report,
    }
}

/// Asks for the health of static routes and makes the table of those that are up.
pub(super) fn of_static_routes(
    routes: Vec<StaticRoute>,
    base: Base<'_>,
) -> Result<Upstream, static_routes::SetupError> {
    let known = watch::Sender::new(static_routes::unasked(&routes));
    let stop = base.tasks.stop_token();
    for watch in static_routes::watches(&routes, &*base.outside)? {
        let asking = watch.run(known.clone(), base.clock, stop.clone());
        base.tasks.spawn("health", asking);
    }
    let (report, sources) = watch::channel(SourceReport::default());
    let told = fixed::Told {
        report,
        propagation: base.counters.propagation(),
        approvals: base.approvals,
        gate: base.gate,
    };
    let deciding = fixed::run(routes, known, base.desired, told, base.clock, stop);
    base.tasks.spawn("static-routes", deciding);
    Ok(Upstream {
        sources,
        snapshot: None,
        roles: Roles::alone(),
        instances: None,
        lease: None,
    })
}

/// Who held which name when the last process ended.
fn known_holders(state: Option<&Opened>) -> Memory {
    let known = state.and_then(|state| state.warm.holders.as_ref());
    known.map_or_else(Memory::default, |known| Memory::of_holders(&known.table))
}
