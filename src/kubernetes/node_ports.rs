//! Whose node ports are, of all Services and not of the labelled ones alone.
//!
//! Looked at only while removals are held: a held route's Service may be deleted, and the cluster may give its
//! node port to any other, of which the watches by label would know nothing. Traffic for the one must not reach
//! the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Timing;
use super::api::{Api, ApiError, Resource};
use super::snapshot::Protocol;
use super::wire::{Kind, Object};
use crate::causes::chain;
use crate::config::KubernetesConfig;
use crate::news;
use crate::outside::Outside;
use crate::route::{NodePort, ServiceRef};

/// Between two looks: one list of all Services. A port that was just freed is given away at random, one among
/// 2,768 (30000 to 32767), so that less would be seldom sooner.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Who has which TCP node port.
pub type NodePorts = BTreeMap<NodePort, Arc<ServiceRef>>;

/// Looks again and again while `needed`; forgets what it saw once it is not. A look that fails changes nothing.
pub async fn watch_node_ports(
    outside: Arc<dyn Outside>,
    config: KubernetesConfig,
    mut needed: watch::Receiver<bool>,
    ports: watch::Sender<NodePorts>,
    stop: CancellationToken,
) {
    let api = Api::new(config, Timing::default(), outside);
    let looking = async {
        while needed.wait_for(|needed| *needed).await.is_ok() {
            match look(&api).await {
                Ok(seen) => {
                    news::tell(&ports, seen);
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::debug!(error, "node ports not seen");
                }
            }
            let over = needed.wait_for(|needed| !*needed);
            if tokio::time::timeout(LOOK_EVERY, over).await.is_ok() {
                news::tell(&ports, NodePorts::new());
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = looking => stop.cancelled().await,
    }
}

async fn look(api: &Api) -> Result<NodePorts, ApiError> {
    let services = Resource {
        kind: Kind::Service,
        label: None,
    };
    let mut ports = NodePorts::new();
    for item in api.list(services).await?.items {
        let Ok(Object::Service(service)) = item.object else {
            continue;
        };
        let tcp = service.ports.iter();
        let tcp = tcp.filter(|port| port.protocol == Protocol::Tcp);
        let open = tcp.filter_map(|port| port.node_port);
        ports.extend(open.map(|port| (port, service.service.clone())));
    }
    Ok(ports)
}
