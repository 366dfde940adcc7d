//! Watching Kubernetes: what we watch, with which rights, and what is made of it.
//!
//! | resource | how | right | without it |
//! |---|---|---|---|
//! | services | two watches, by label | `list` | nothing runs |
//! | services | | `watch` | polled, finding `right-missing` |
//! | services | confirming that one is gone | `get` | confirmed by a list |
//! | nodes | one watch | `list`, `watch` | as services |
//! | endpointslices, else endpoints | two watches, by label | `list`, `watch` | every node is taken |
//! | namespaces | UID of `kube-system`, once | `get` or `list` | the apiserver's address names the cluster |
//!
//! [`watch()`] yields [`snapshot::Snapshot`]s and a report; [`snapshot_once`] looks once;
//! [`snapshot_of_manifests`] reads files instead. Nothing here knows what a route is.

mod api;
mod client;
mod manifests;
pub mod snapshot;
mod timing;
mod watch;
mod wire;

use std::time::Duration;

pub use api::ApiError;
pub use client::{ConnectError, connect};
pub use manifests::{ManifestError, ManifestErrors, snapshot_of_manifests};
pub use timing::Timing;
pub use watch::{
    Receivers, SnapshotError, WatchCounters, Watches, snapshot_once, watch, watch_with,
};

/// A duration as people write it.
fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f32())
}
