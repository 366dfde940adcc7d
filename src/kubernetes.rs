//! Watching Kubernetes: what we watch, with which rights, and what is made of it.
//!
//! | resource | how | right | without it |
//! |---|---|---|---|
//! | services | two watches, by label | `list` | nothing runs |
//! | services | | `watch` | polled, finding `right-missing` |
//! | services | confirming that one is gone | `get` | confirmed by a list |
//! | services | all of them, while removals are held | `list` | a held route may outlive its node port |
//! | nodes | one watch | `list`, `watch` | as services |
//! | endpointslices, else endpoints | two watches, by label | `list`, `watch` | every node is taken |
//! | namespaces | UID of `kube-system`, at each list and watch | `get` or `list` | the apiserver's address names the cluster |
//! | namespaces | whether one went with its Services | `get` or `list` | their removal counts as any other |
//! | namespaces, services, endpointslices | those of a smoke test | `create`, `delete` | no `smoke-test` end to end |
//! | leases | one, where `leader_election` is on | `get`, `create`, `update` | this instance acts as the only one |
//!
//! [`watch_over`] yields [`snapshot::Snapshot`]s and a report; [`snapshot_once`] looks once;
//! [`snapshot_of_manifests`] reads files instead; [`trial`] makes the objects of a smoke test. Nothing here knows what a route is.

mod api;
mod client;
mod kubeconfig;
pub mod lease;
mod manifests;
mod node_ports;
pub mod snapshot;
mod timing;
pub mod trial;
mod watch;
pub mod wire;

use std::time::Duration;

pub use api::ApiError;
pub(crate) use client::connect_with;
pub use client::{ConnectError, PluginError, client_over, connect, server_url};
pub use kube::Client;
pub(crate) use kubeconfig::check_kubeconfig;
pub use manifests::snapshot_of_manifests;
pub use node_ports::{NodePorts, watch_node_ports};
pub use timing::Timing;
pub use watch::{
    Receivers, SnapshotError, WatchCounters, Watches, snapshot_once, watch_over, watch_with,
};

/// A duration as people write it.
fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f32())
}
