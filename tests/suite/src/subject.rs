//! What a scenario labels: a Service with its backends on the first two nodes, and the name it should get.
//!
//! A [`Site`] is for the HTTP router, a [`Line`] for the TCP router. Neither is labelled at first.

use std::net::SocketAddr;

use anyhow::Result;

use crate::backend::{Echo, Web};
use crate::foundation::Foundation;
use crate::poll::eventually;
use crate::probe::{HttpLoop, TcpLoop, http_status, tcp_line};

/// A Service that answers HTTP.
pub struct Site {
    /// `namespace/name`.
    pub service: String,
    /// The label's value.
    pub label: String,
    /// The host below the app domain.
    pub host: String,
    _web: Web,
}

/// A Service that greets TCP connections.
pub struct Line {
    /// `namespace/name`.
    pub service: String,
    /// The router's port.
    pub port: u16,
    _echo: Echo,
}

// === impl Site ===

impl Site {
    /// A Service `sites/<name>`.
    pub async fn new(foundation: &Foundation, name: &str, node_port: u16) -> Result<Self> {
        let label = foundation.name(name);
        let service = format!("sites/{label}");
        foundation.cluster.service(&service, node_port).await?;
        let web = Web::start(&on_nodes(node_port), name).await?;
        Ok(Self {
            service,
            host: foundation.host(&label),
            label,
            _web: web,
        })
    }

    /// Labels it.
    pub async fn label(&self, foundation: &Foundation) {
        let label = foundation
            .cluster
            .label(&self.service, "http-route-sync", Some(&self.label));
        label.await.expect("the label must be taken");
    }

    /// Takes the label away.
    pub async fn unlabel(&self, foundation: &Foundation) {
        let label = foundation
            .cluster
            .label(&self.service, "http-route-sync", None);
        label.await.expect("the label must go");
    }

    /// Waits until the host answers.
    #[track_caller]
    pub fn answers(&self, foundation: &Foundation) -> impl Future<Output = ()> {
        let router = foundation.http();
        eventually(&self.host, async move || {
            http_status(router, &self.host).await == 200
        })
    }

    /// Waits until the host is unknown to the router.
    #[track_caller]
    pub fn gone(&self, foundation: &Foundation) -> impl Future<Output = ()> {
        let router = foundation.http();
        let gone = async move || matches!(http_status(router, &self.host).await, 404 | 503);
        eventually(&self.host, gone)
    }

    /// Requests it from now on.
    pub fn requested(&self, foundation: &Foundation) -> HttpLoop {
        HttpLoop::start(foundation.http(), &self.host)
    }
}

// === impl Line ===

impl Line {
    /// A Service `lines/<name>`, for a port that no scenario has used yet.
    pub async fn new(foundation: &mut Foundation, name: &str, node_port: u16) -> Result<Self> {
        let service = format!("lines/{}", foundation.name(name));
        foundation.cluster.service(&service, node_port).await?;
        let echo = Echo::start(&on_nodes(node_port), name).await?;
        Ok(Self {
            service,
            port: foundation.port(),
            _echo: echo,
        })
    }

    /// Labels it.
    pub async fn label(&self, foundation: &Foundation) {
        let port = self.port.to_string();
        let label = foundation
            .cluster
            .label(&self.service, "tcp-route-sync", Some(&port));
        label.await.expect("the label must be taken");
    }

    /// Takes the label away.
    pub async fn unlabel(&self, foundation: &Foundation) {
        let label = foundation
            .cluster
            .label(&self.service, "tcp-route-sync", None);
        label.await.expect("the label must go");
    }

    /// Waits until the port answers.
    #[track_caller]
    pub fn answers(&self, foundation: &Foundation) -> impl Future<Output = ()> {
        let address = foundation.tcp(self.port);
        eventually(&self.service, async move || {
            tcp_line(address).await.is_some()
        })
    }

    /// Waits until the port is closed.
    #[track_caller]
    pub fn gone(&self, foundation: &Foundation) -> impl Future<Output = ()> {
        let address = foundation.tcp(self.port);
        eventually(&self.service, async move || {
            tcp_line(address).await.is_none()
        })
    }

    /// Connects to it from now on.
    pub fn requested(&self, foundation: &Foundation) -> TcpLoop {
        TcpLoop::start(foundation.tcp(self.port))
    }
}

fn on_nodes(port: u16) -> [SocketAddr; 2] {
    [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| SocketAddr::from((ip, port)))
}
