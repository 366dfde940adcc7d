//! kube-proxy, played: the node ports of Services lead to what their EndpointSlices name.
//!
//! An apiserver alone opens no node port. Only Services that carry a label of the scenario's choosing are served, so
//! that it takes no port of a backend that a test plays itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::backend::node_addresses;
use crate::cluster::Cluster;

/// A real one hears of changes by its watch, about as soon.
const PAUSE: Duration = Duration::from_millis(20);

/// Serves until it is dropped.
pub struct KubeProxy {
    task: JoinHandle<()>,
}

/// The listeners of one Service, and where they lead.
struct Open {
    endpoint: SocketAddr,
    _listeners: JoinSet<()>,
}

// === impl KubeProxy ===

impl KubeProxy {
    /// Serves Services with this label on the first `nodes` nodes.
    pub fn start(cluster: &Cluster, label: &'static str, nodes: u8) -> Self {
        let cluster = cluster.clone();
        let task = tokio::spawn(async move {
            let mut open: BTreeMap<u16, Open> = BTreeMap::new();
            loop {
                if let Some(wanted) = wanted(&cluster, label).await {
                    open.retain(|port, open| wanted.get(port) == Some(&open.endpoint));
                    for (port, endpoint) in wanted {
                        if !open.contains_key(&port)
                            && let Ok(listeners) = listen(nodes, port, endpoint).await
                        {
                            let _listeners = listeners;
                            open.insert(
                                port,
                                Open {
                                    endpoint,
                                    _listeners,
                                },
                            );
                        }
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { task }
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Endpoints by node port; nothing where the apiserver does not tell.
async fn wanted(cluster: &Cluster, label: &str) -> Option<BTreeMap<u16, SocketAddr>> {
    let services = cluster.list("Service").await.ok()?;
    let slices = cluster.list("EndpointSlice").await.ok()?;
    let labelled = services
        .iter()
        .filter(|service| service["metadata"]["labels"][label].is_string());
    Some(
        labelled
            .filter_map(|service| {
                let port = service["spec"]["ports"][0]["nodePort"].as_u64()?;
                let slice = slices.iter().find(|slice| is_of(slice, service))?;
                let ip = slice["endpoints"][0]["addresses"][0].as_str()?;
                let endpoint = slice["ports"][0]["port"].as_u64()?;
                let endpoint = SocketAddr::new(ip.parse().ok()?, u16::try_from(endpoint).ok()?);
                Some((u16::try_from(port).ok()?, endpoint))
            })
            .collect(),
    )
}

fn is_of(slice: &Value, service: &Value) -> bool {
    let (slice, service) = (&slice["metadata"], &service["metadata"]);
    slice["namespace"] == service["namespace"]
        && slice["labels"]["kubernetes.io/service-name"] == service["name"]
}

async fn listen(nodes: u8, port: u16, endpoint: SocketAddr) -> std::io::Result<JoinSet<()>> {
    let mut listeners = JoinSet::new();
    for address in node_addresses(nodes, port) {
        let listener = TcpListener::bind(address).await?;
        listeners.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut visitor, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut backend) = TcpStream::connect(endpoint).await {
                        let _ = copy_bidirectional(&mut visitor, &mut backend).await;
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
    }
    Ok(listeners)
}
