//! A Service that answers: the object in the cluster, and what listens behind its node port.

use std::net::SocketAddr;

use crate::backend::Echo;
use crate::foundation::Foundation;
use crate::poll::eventually;
use crate::probe::tcp_line;

/// The label that asks for a TCP route.
pub const TCP_LABEL: &str = "tcp-route-sync";

/// A Service without a label yet, whose node port greets with its name.
pub struct Served {
    /// `namespace/name`.
    pub service: String,
    /// Its line.
    pub line: String,
    /// The router port it is meant for.
    pub port: u16,
    /// Its node port.
    pub node_port: u16,
    _echo: Echo,
}

/// The same port of the nodes `n1` to `n<count>`.
pub fn on_nodes(count: u8, port: u16) -> Vec<SocketAddr> {
    (1..=count)
        .map(|index| SocketAddr::from(([10, 0, 0, index], port)))
        .collect()
}

/// Waits until the router port leads to whoever greets with this line.
#[track_caller]
pub fn leads_to<'a>(
    foundation: &'a Foundation,
    port: u16,
    line: &'a str,
) -> impl Future<Output = ()> + 'a {
    let address = foundation.tcp(port);
    eventually("the port leads to its Service", async move || {
        tcp_line(address).await.as_deref() == Some(line)
    })
}

/// Waits until nothing answers at the router port.
#[track_caller]
pub fn closes(foundation: &Foundation, port: u16) -> impl Future<Output = ()> {
    let address = foundation.tcp(port);
    eventually("the port is closed", async move || {
        tcp_line(address).await.is_none()
    })
}

// === impl Served ===

impl Served {
    /// `name` within a namespace of the same name, on the nodes `n1` to `n<nodes>`.
    pub async fn start(foundation: &mut Foundation, name: &str, node_port: u16, nodes: u8) -> Self {
        let name = foundation.name(name);
        let service = format!("{name}/{name}");
        let (port, node_port) = (foundation.port(), foundation.node_port(node_port));
        foundation
            .cluster
            .service(&service, node_port)
            .await
            .expect("a Service must be taken");
        let echo = Echo::start(&on_nodes(nodes, node_port), &name).await;
        let echo = echo.expect("node ports must be free");
        Self {
            service,
            line: name,
            port,
            node_port,
            _echo: echo,
        }
    }

    /// Labels it with its own port.
    pub async fn label(&self, foundation: &Foundation) {
        self.label_with(foundation, &self.port.to_string()).await;
    }

    /// Labels it.
    pub async fn label_with(&self, foundation: &Foundation, value: &str) {
        let labelled = foundation
            .cluster
            .label(&self.service, TCP_LABEL, Some(value))
            .await;
        labelled.expect("a label must be taken");
    }

    /// Takes the label away.
    pub async fn unlabel(&self, foundation: &Foundation) {
        let unlabelled = foundation
            .cluster
            .label(&self.service, TCP_LABEL, None)
            .await;
        unlabelled.expect("a label must be taken away");
    }

    /// Labels it and waits until its port leads to it.
    pub async fn open(&self, foundation: &Foundation) {
        self.label(foundation).await;
        leads_to(foundation, self.port, &self.line).await;
    }
}
