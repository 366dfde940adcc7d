//! Which of the eligible nodes one route gets.
//!
//! Any node forwards a node port to any pod, so a route needs a few nodes, not all: each more costs a heartbeat
//! every 20 s, a row in the routing API, and a HAProxy reload for the whole foundation. Rendezvous hashing picks
//! them, so that a node that comes or goes touches only the routes it is picked for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::nodes::EligibleNodes;
use super::{Code, earliest};
use crate::Uptime;
use crate::kubernetes::snapshot::{Endpoints, Node, Service, Snapshot};
use crate::route::{Backend, Backends, NodePort, NodeUid, ServiceKey};

/// How long a Service may be without a ready pod before its routes go. A rolling update of a single replica
/// takes less.
pub(super) const NO_ENDPOINT_GRACE: Duration = Duration::from_secs(30);

/// Where each Service's traffic went last, and since when nobody is ready to take it.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(BTreeMap<ServiceKey, Last>);

#[derive(Clone, Debug, Default)]
struct Last {
    nodes: BTreeSet<NodeUid>,
    empty_since: Option<Uptime>,
}

/// What one route asks of the nodes.
pub(super) struct Placement<'a> {
    /// Whose route it is.
    pub service: &'a Service,
    /// The port on each node.
    pub node_port: NodePort,
    /// At most so many; 0 is all.
    pub cap: usize,
    /// The Service wants no route while no pod is ready.
    pub require_ready: bool,
}

/// Places all routes of one pass.
pub(super) struct Placements<'a> {
    eligible: &'a EligibleNodes<'a>,
    endpoints: Option<&'a BTreeMap<ServiceKey, Endpoints>>,
    memory: &'a mut Memory,
    seen: BTreeSet<ServiceKey>,
    revisit: Option<Uptime>,
    now: Uptime,
}

type Chosen<'a> = Vec<(&'a Node, IpAddr)>;
type Told = Option<(Code, String)>;

impl<'a> Placements<'a> {
    pub(super) fn new(
        snapshot: &'a Snapshot,
        eligible: &'a EligibleNodes<'a>,
        memory: &'a mut Memory,
        now: Uptime,
    ) -> Self {
        let endpoints = snapshot.endpoints.as_ref();
        Self {
            eligible,
            endpoints,
            memory,
            seen: BTreeSet::new(),
            revisit: None,
            now,
        }
    }

    /// The backends of one route, and what its Service should be told.
    pub(super) fn place(&mut self, placement: &Placement<'_>) -> (Option<Backends>, Told) {
        let (nodes, told) = self.nodes_for(placement);
        if nodes.is_empty() {
            let told = told.or_else(|| {
                Some((
                    Code::NoBackend,
                    "no node of the cluster can serve it".to_owned(),
                ))
            });
            return (None, told);
        }
        let uid = &placement.service.service.uid;
        let picked = pick(uid, nodes, placement.cap)
            .into_iter()
            .map(|(node, ip)| Backend {
                ip,
                port: placement.node_port,
                node: node.uid.clone(),
                zone: node.zone.clone(),
            });
        (Backends::new(picked), told)
    }

    /// Ends the pass: forgets Services that are gone, and says when time alone may change the answer.
    pub(super) fn finish(self) -> Option<Uptime> {
        self.memory.0.retain(|key, _| self.seen.contains(key));
        self.revisit
    }

    /// Every node that may serve this Service, before any is picked.
    fn nodes_for(&mut self, placement: &Placement<'_>) -> (Chosen<'a>, Told) {
        let service = placement.service;
        let all = || {
            self.eligible
                .nodes
                .values()
                .copied()
                .collect::<Chosen<'a>>()
        };
        if !service.local_traffic_only && !placement.require_ready {
            return (all(), None);
        }
        let key = &service.service.key;
        let Some(endpoints) = self.endpoints.and_then(|all| all.get(key)) else {
            return (all(), Some((Code::EndpointsUnknown, unknown_text(service))));
        };
        let nodes = if service.local_traffic_only {
            self.on(&endpoints.ready_nodes)
                .or_else(|| self.on(&endpoints.terminating_nodes))
        } else {
            endpoints.any_ready.then(all)
        };
        self.seen.insert(key.clone());
        let last = self.memory.0.entry(key.clone()).or_default();
        if let Some(nodes) = nodes {
            last.empty_since = None;
            last.nodes = nodes.iter().map(|(node, _)| node.uid.clone()).collect();
            return (nodes, None);
        }
        let deadline = *last.empty_since.get_or_insert(self.now) + NO_ENDPOINT_GRACE;
        if self.now >= deadline {
            last.nodes.clear();
        } else {
            self.revisit = earliest(self.revisit, Some(deadline));
        }
        let still = self.eligible.nodes.values().copied();
        let kept: Chosen<'a> = still
            .filter(|(node, _)| last.nodes.contains(&node.uid))
            .collect();
        let fate = if kept.is_empty() {
            "it has no route"
        } else {
            "its routes go in 30 s"
        };
        (
            kept,
            Some((
                Code::NoReadyEndpoint,
                format!("none of its pods is ready; {fate}"),
            )),
        )
    }

    fn on(&self, names: &BTreeSet<String>) -> Option<Chosen<'a>> {
        let found: Chosen<'a> = names
            .iter()
            .filter_map(|name| self.eligible.nodes.get(name.as_str()).copied())
            .collect();
        (!found.is_empty()).then_some(found)
    }
}

fn unknown_text(service: &Service) -> String {
    let why = if service.local_traffic_only {
        "`externalTrafficPolicy: Local`"
    } else {
        "`require-ready-endpoints`"
    };
    format!("{why} cannot be honoured: where its pods are is not known, so every node is taken")
}

/// The `cap` nodes that rank highest for this Service, highest first, spread over zones: the best of every
/// zone before the second of any.
fn pick<'a>(service_uid: &str, nodes: Chosen<'a>, cap: usize) -> Chosen<'a> {
    let mut ranked: Vec<(Reverse<u64>, &Node, IpAddr)> = nodes
        .into_iter()
        .map(|(node, ip)| (Reverse(rank(service_uid, &node.uid)), node, ip))
        .collect();
    ranked.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.uid.cmp(&b.1.uid)));
    let mut rounds: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    let round_of = |node: &'a Node| {
        let round = rounds.entry(node.zone.as_deref()).or_default();
        *round += 1;
        *round
    };
    let rounds: Vec<usize> = ranked
        .iter()
        .map(|(_, node, _)| *node)
        .map(round_of)
        .collect();
    let mut order: Vec<usize> = (0..ranked.len()).collect();
    // Stable: within a round the ranking stays.
    order.sort_by_key(|index| rounds[*index]);
    let cap = if cap == 0 { usize::MAX } else { cap };
    order
        .into_iter()
        .take(cap)
        .map(|index| (ranked[index].1, ranked[index].2))
        .collect()
}

/// FNV-1a over both identities, then a finalizer, because FNV alone ranks similar texts alike. Ours rather than
/// the standard library's hash, which may change with the toolchain: every instance must pick the same nodes.
fn rank(service_uid: &str, node: &NodeUid) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = service_uid.bytes().chain([0]).chain(node.0.bytes());
    let mut hash = bytes.fold(OFFSET, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    });
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}
