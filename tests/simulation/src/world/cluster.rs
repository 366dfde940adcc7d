//! The Kubernetes cluster: Services and Nodes, every version they ever had, and what the apiserver says of them.
//!
//! Reads are answered as the real one does: lists and objects from the newest version, watches from the version
//! they go on from. Labels and node ports are all that is modelled of Services.

mod apiserver;
mod json;
pub mod lease;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Notify;

use super::World;
use super::links::{Way, Whom};
use crate::Moment;
use crate::process::NAMES;

pub use apiserver::client;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Service,
    Node,
}

/// Namespace, empty for nodes, and name.
pub type Key = (Kind, &'static str, String);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub uid: u64,
    pub created: Moment,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub node_port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub uid: u64,
    pub ip: String,
    pub ready: bool,
    pub excluded: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Service(Service),
    Node(Node),
}

/// One change.
pub struct Version {
    pub key: Key,
    pub before: Option<(u64, Object)>,
    pub after: Option<Object>,
}

/// What is wrong with the apiserver, until when.
#[derive(Default)]
pub struct Faults {
    /// Every request about objects is forbidden.
    pub forbidden: Moment,
    /// Objects may not be read one by one.
    pub get_forbidden: Moment,
    /// Watches may not be held.
    pub watch_forbidden: Moment,
    /// Lists show nothing.
    pub lists_empty: Moment,
    /// Lists lack every other Service.
    pub lists_lack: Moment,
    /// Nothing shows anything: the database was lost, and will come back.
    pub all_empty: Moment,
    /// Requests are answered with 500.
    pub broken: Moment,
    /// Answers take so long.
    pub slow: (Moment, Moment),
    /// Watches say nothing of what happens, ever.
    pub silent: Moment,
    /// Watches are this late.
    pub lag: (Moment, Moment),
}

#[derive(Default)]
pub struct Cluster {
    pub objects: BTreeMap<Key, (u64, Object)>,
    /// Version `n` stands at `n - 1`, with when it was made and whether watches tell of it.
    history: Vec<(Moment, bool, Version)>,
    /// Watches cannot go on from before this version.
    compacted: usize,
    /// Namespaces that are gone.
    pub gone: Vec<&'static str>,
    pub faults: Faults,
    pub lease: lease::Lease,
    uids: u64,
    /// Counts up whenever every watch is cut.
    cuts: u64,
    changed: Arc<Notify>,
}

/// Where Services are.
pub const NAMESPACES: [&str; 2] = ["blue", "green"];
/// As node ports are numbered.
pub const NODE_PORT_FIRST: u16 = 30_000;
/// Few, so that a port that was freed soon leads to somebody else.
pub const NODE_PORTS: u16 = 12;

// === impl Cluster ===

impl Cluster {
    pub fn uid(&mut self) -> u64 {
        self.uids += 1;
        self.uids
    }

    pub fn services(&self) -> impl Iterator<Item = (&Key, &Service)> {
        self.objects
            .iter()
            .filter_map(|(key, (_, object))| match object {
                Object::Service(service) => Some((key, service)),
                Object::Node(_) => None,
            })
    }

    pub fn nodes(&self) -> impl Iterator<Item = (&Key, &Node)> {
        self.objects
            .iter()
            .filter_map(|(key, (_, object))| match object {
                Object::Node(node) => Some((key, node)),
                Object::Service(_) => None,
            })
    }

    /// Node ports that nobody has.
    pub fn free_node_ports(&self) -> Vec<u16> {
        let all = NODE_PORT_FIRST..NODE_PORT_FIRST + NODE_PORTS;
        all.filter(|port| {
            self.services()
                .all(|(_, service)| service.node_port != *port)
        })
        .collect()
    }

    fn version(&self) -> usize {
        self.history.len()
    }
}

/// Writes an object, or removes it.
pub fn put(world: &mut World, key: Key, object: Option<Object>) {
    let now = world.now();
    let cluster = &mut world.cluster;
    let before = match &object {
        Some(object) => {
            let version = cluster.history.len() as u64 + 1;
            cluster
                .objects
                .insert(key.clone(), (version, object.clone()))
        }
        None => cluster.objects.remove(&key),
    };
    let told = now >= cluster.faults.silent;
    let version = Version {
        key,
        before,
        after: object,
    };
    cluster.history.push((now, told, version));
    cluster.changed.notify_waiters();
    let (_, _, Version { key, after, .. }) = &cluster.history[cluster.history.len() - 1];
    let (kind, namespace, name) = key;
    world.trace.note(
        now,
        format_args!("cluster {kind:?} {namespace}/{name}: {after:?}"),
    );
}

/// Watches cannot go on from where they are.
pub fn compact(world: &mut World) {
    world.cluster.compacted = world.cluster.version();
    cut(world);
    world.note(format_args!("cluster history compacted"));
}

/// Every watch ends.
pub fn cut(world: &mut World) {
    world.cluster.cuts += 1;
    world.cluster.changed.notify_waiters();
}

pub fn link_changed(world: &mut World, whom: Whom, way: Way) {
    if way == Way::Down && whom == Whom::All {
        world.cluster.cuts += 1;
    }
    world.cluster.changed.notify_waiters();
}

/// Whoever removes anything holds the Lease, or nobody does.
pub fn judge_removal(world: &mut World, instance: usize) {
    if let Some((holder, since)) = world.cluster.lease.holder
        && holder != instance
    {
        let (name, holder) = (NAMES[instance], NAMES[holder]);
        world.wrong(format!(
            "instance {name} removes something though the Lease is {holder}'s since {since:?}"
        ));
    }
}
