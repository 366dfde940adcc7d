//! The table of all routes that should live, each with the Service it comes from.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::{Backends, Hostname, RouterPort, Uri};

/// Octets of a name of Kubernetes (RFC 1123).
const DNS_LABEL_MAX: usize = 63;

/// The two ways a route reaches a router. Nothing of one lane may wait for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// gorouter, over NATS.
    Http,
    /// tcp-router, through the routing API.
    Tcp,
}

/// Which cluster speaks: the UID of the namespace `kube-system` where it can be read, else the apiserver's
/// address. It marks what is ours in the routing API and in gorouter's table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub String);

/// A Service by name, or a static route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Its namespace; none where it is a static route.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A Service by name and identity: one deleted and made again under the same name is another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceRef {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `metadata.uid`.
    pub uid: String,
}

/// A port of the tcp-router that leads to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpRoute {
    /// The Service it comes from.
    pub service: Arc<ServiceRef>,
    /// The router group the Service asked for; `None` is the configured one.
    pub router_group: Option<String>,
    /// Where it leads.
    pub backends: Backends,
}

/// A uri of gorouter that leads to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRoute {
    /// The Service it comes from.
    pub service: Arc<ServiceRef>,
    /// Where it leads.
    pub backends: Backends,
    /// How gorouter should treat it.
    pub options: HttpOptions,
}

/// What a Service may say about its HTTP routes beyond their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpOptions {
    /// What the backend speaks.
    pub protocol: HttpProtocol,
    /// The name in the backend's certificate; with it gorouter speaks TLS to the backend.
    pub tls_server_name: Option<Hostname>,
    /// How gorouter spreads requests; `None` is the router's own setting.
    pub loadbalancing: Option<LoadBalancing>,
    /// An `https` address that gorouter sends each request through first.
    pub route_service_url: Option<String>,
}

/// What a backend speaks. gorouter knows HTTP/2 over TLS alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, by ALPN.
    Http2,
}

/// gorouter's ways to spread requests over the backends of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadBalancing {
    /// One after the other; the only one that sets a dead plain backend aside (measured, 2024-10).
    RoundRobin,
    /// The one with the fewest connections.
    LeastConnection,
}

/// Every route that should live. Ports ignore the router group, because every tcp-router serves them all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTable {
    /// By router port.
    pub tcp: BTreeMap<RouterPort, TcpRoute>,
    /// By uri.
    pub http: BTreeMap<Uri, HttpRoute>,
}

impl Lane {
    /// Its name in logs, metrics and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}

impl LoadBalancing {
    /// gorouter's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::LeastConnection => "least-connection",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ServiceKey {
    /// A static route, which lies in no namespace: what is routed is no Service of a cluster.
    #[must_use]
    pub fn of_static_route(name: &str) -> Self {
        Self {
            namespace: String::new(),
            name: name.to_owned(),
        }
    }

    /// Whether it is no Service but a static route.
    #[must_use]
    pub fn is_static_route(&self) -> bool {
        self.namespace.is_empty()
    }

    /// Reads `namespace/name`, each as Kubernetes allows it: a DNS label.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        (is_dns_label(namespace) && is_dns_label(name)).then(|| Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// Whether a text is a name as Kubernetes gives them (RFC 1123).
#[must_use]
pub fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=DNS_LABEL_MAX).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_static_route() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
