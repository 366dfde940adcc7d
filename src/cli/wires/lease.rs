//! The Lease and everyone who has to do with it: the lanes, the derivation, the state file, the status.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::{KubernetesConfig, LeaderElectionConfig};
use crate::desired::Contested;
use crate::desired::guard::Approvals;
use crate::kubernetes::lease::LeaseObject;
use crate::lease::{self, Instances, Lease, LeaseReport, Role, Roles};
use crate::lifecycle::{Clock, Tasks};
use crate::outside::Outside;
use crate::state::Opened;
use crate::status::Drain;

/// What the other parts have of the Lease.
pub(in crate::cli) struct Leading {
    /// For the lanes.
    pub(in crate::cli) roles: Roles,
    /// For the lane that tells other instances; `None` where there are none.
    pub(in crate::cli) instances: Option<Instances>,
    /// For whoever asks.
    pub(in crate::cli) report: Option<watch::Receiver<LeaseReport>>,
    /// For whoever derives the table.
    pub(in crate::cli) shared: Shared,
}

/// What instances tell each other by the Lease.
pub(in crate::cli) struct Shared {
    /// Who holds which contested name by the Lease; `None` before it was asked.
    pub(in crate::cli) names: watch::Receiver<Option<Contested>>,
    /// And by our own table.
    pub(in crate::cli) contested: watch::Sender<Option<Contested>>,
    /// What operators approved where another instance acts.
    pub(in crate::cli) approved_elsewhere: watch::Receiver<Approvals>,
    /// And what they approved here.
    pub(in crate::cli) approved: watch::Sender<Approvals>,
}

/// Starts what holds the Lease, where several instances share the work.
pub(in crate::cli) fn lease(
    outside: Arc<dyn Outside>,
    config: Option<LeaderElectionConfig>,
    kubernetes: &KubernetesConfig,
    state: Option<&Opened>,
    drained: watch::Receiver<Option<Drain>>,
    clock: Clock,
    tasks: &mut Tasks,
) -> Leading {
    let (contested, contested_rx) = watch::channel(None);
    let (approved, approved_rx) = watch::channel(Approvals::default());
    let (elsewhere, approved_elsewhere) = watch::channel(Approvals::default());
    let Some(config) = config else {
        return Leading {
            roles: Roles::alone(),
            instances: None,
            report: None,
            shared: Shared {
                names: watch::channel(Some(Contested::default())).1,
                contested,
                approved_elsewhere,
                approved,
            },
        };
    };
    let before = state.and_then(|state| state.warm.lease.clone());
    let held = before.as_ref().filter(|before| before.held);
    let inherited = held.map(|before| before.generation);
    let identity = config.identity;
    let identity = identity.or_else(|| before.as_ref().map(|before| before.identity.clone()));
    let identity = identity.unwrap_or_else(lease::identity);
    let role = inherited.map_or(Role::Standby, |generation| Role::Cautious { generation });
    let (instances, heard) = Instances::new(identity.clone());
    let (roles, roles_rx) = watch::channel(role);
    let (report, report_rx) = watch::channel(LeaseReport::new(identity.clone(), role));
    let (names, names_rx) = watch::channel(None);
    let timing = lease::Timing::default();
    let seconds = timing.lease.as_secs();
    let object = LeaseObject::new(
        outside,
        kubernetes.clone(),
        (&config.namespace, &config.name),
        seconds,
    );
    let channels = lease::Channels {
        roles,
        report,
        heard,
        contested: contested_rx,
        drained,
        names,
        approved: approved_rx,
        approved_elsewhere: elsewhere,
        kept: state.map(|state| state.ledgers.lease.clone()),
    };
    let warm = state.is_some_and(|state| state.warm.table.is_some());
    let lease = Lease::new(object, identity, inherited, timing, channels).with_warm_table(warm);
    tasks.spawn("lease", lease.run(clock, tasks.stop_token()));
    Leading {
        roles: Roles::new(roles_rx),
        instances: Some(instances),
        report: Some(report_rx),
        shared: Shared {
            names: names_rx,
            contested,
            approved_elsewhere,
            approved,
        },
    }
}
