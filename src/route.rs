//! What a route is: the vocabulary every other module speaks.
//!
//! Pure values: parsed once, ordered, without I/O, clock or wire format. Whoever holds a [`Hostname`] or a
//! [`RouterPort`] need not check it again. How a Service comes to want a route is told in [`crate::desired`];
//! how it is announced, in [`crate::publish`].

mod backend;
mod hash;
mod hostname;
mod port;
mod table;

pub use backend::{Backend, Backends, NodeUid};
pub use hash::stable_hash;
pub use hostname::{Hostname, HostnameError, Uri, UriError};
pub use port::{NodePort, PortRanges, PortRangesError, RouterPort};
pub use table::{
    ClusterId, HttpOptions, HttpProtocol, HttpRoute, Lane, LoadBalancing, RouteTable, ServiceKey,
    ServiceRef, TcpRoute, is_dns_label,
};
