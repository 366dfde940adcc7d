//! Where a route leads: a node's address and the node port that every node opens for the Service.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::NodePort;

/// The identity of a Node object; a machine that comes back under the same name has another one. Shared,
/// because every route names several of a few nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeUid(pub Arc<str>);

/// One node serving one route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The node's internal address.
    pub ip: IpAddr,
    /// The Service's node port.
    pub port: NodePort,
    /// Which Node it is.
    pub node: NodeUid,
    /// Its `topology.kubernetes.io/zone`, if it has one.
    pub zone: Option<Arc<str>>,
}

/// The backends of one route: never none, no address twice, in order of preference. The first is announced
/// first when everything has to be announced at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backends(Vec<Backend>);

// === impl Backend ===

/// `ip:port`, bracketed for IPv6.
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::net::SocketAddr::new(self.ip, self.port.get()))
    }
}

// === impl Backends ===

impl Backends {
    /// A set of backends in their order of preference; the first of two with one address stays. `None` when
    /// there is none, because a route without backends is not a route.
    #[must_use]
    pub fn new(backends: impl IntoIterator<Item = Backend>) -> Option<Self> {
        let backends = backends.into_iter();
        let mut kept: Vec<Backend> = Vec::with_capacity(backends.size_hint().0);
        for backend in backends {
            if !kept
                .iter()
                .any(|other| (other.ip, other.port) == (backend.ip, backend.port))
            {
                kept.push(backend);
            }
        }
        (!kept.is_empty()).then_some(Self(kept))
    }

    /// The backends, most preferred first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Backend> {
        self.0.iter()
    }

    /// How many; at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
