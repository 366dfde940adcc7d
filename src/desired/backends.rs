//! Which of the eligible nodes one route gets.
//!
//! Any node forwards a node port to any pod, so a route needs a few nodes, not all: each more costs a heartbeat
//! every 20 s, a row in the routing API, and a HAProxy reload for the whole foundation. Rendezvous hashing picks
//! them, so that a node that comes or goes touches only the routes it is picked for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use super::nodes::{EligibleNode, EligibleNodes};
use super::{Code, earliest};
use crate::Uptime;
use crate::kubernetes::snapshot::{Endpoints, Service, Snapshot};
use crate::route::{Backend, Backends, NodePort, NodeUid, ServiceKey, stable_hash};

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
    /// By zone.
    pool: Vec<Ranked<'a>>,
    /// Where each zone lies in the pool.
    zones: Vec<Range<usize>>,
    /// Room for ranking, by zone; kept to be used again.
    best: Vec<Vec<Rank>>,
    /// What was picked last; kept to be used again.
    picked: Vec<Rank>,
    endpoints: Option<&'a BTreeMap<ServiceKey, Endpoints>>,
    memory: &'a mut Memory,
    seen: BTreeSet<ServiceKey>,
    revisit: Option<Uptime>,
    now: Uptime,
}

/// An eligible node with what ranking it needs.
struct Ranked<'a> {
    chosen: EligibleNode<'a>,
    hash: u64,
}

/// Which nodes of the pool a route may lead to.
enum Allowed {
    All,
    Only(BTreeSet<NodeUid>),
}

type Told = Option<(Code, String)>;

impl<'a> Placements<'a> {
    pub(super) fn new(
        snapshot: &'a Snapshot,
        eligible: &EligibleNodes<'a>,
        memory: &'a mut Memory,
        now: Uptime,
    ) -> Self {
        let ranked = |chosen: &EligibleNode<'a>| Ranked {
            chosen: *chosen,
            hash: stable_hash(chosen.node.uid.0.bytes()),
        };
        let mut pool: Vec<Ranked<'a>> = eligible.nodes.iter().map(ranked).collect();
        pool.sort_by(|a, b| a.zone().cmp(&b.zone()));
        let mut zones = Vec::new();
        for of_zone in pool.chunk_by(|a, b| a.zone() == b.zone()) {
            let start = zones.last().map_or(0, |zone: &Range<usize>| zone.end);
            zones.push(start..start + of_zone.len());
        }
        Self {
            best: vec![Vec::new(); zones.len()],
            pool,
            zones,
            picked: Vec::new(),
            endpoints: snapshot.endpoints.as_ref(),
            memory,
            seen: BTreeSet::new(),
            revisit: None,
            now,
        }
    }

    /// The backends of one route, and what its Service should be told.
    pub(super) fn place(&mut self, placement: &Placement<'_>) -> (Option<Backends>, Told) {
        let (allowed, told) = self.allowed(placement);
        self.pick(&placement.service.service.uid, &allowed, placement.cap);
        let picked = self
            .picked
            .iter()
            .map(|rank| &self.pool[rank.index()].chosen);
        let backends = Backends::new(picked.map(|chosen| Backend {
            ip: chosen.ip,
            port: placement.node_port,
            node: chosen.node.uid.clone(),
            zone: chosen.node.zone.clone(),
        }));
        let nothing = || {
            (
                Code::NoBackend,
                "no node of the cluster can serve it".to_owned(),
            )
        };
        let told = if backends.is_none() {
            told.or_else(|| Some(nothing()))
        } else {
            told
        };
        (backends, told)
    }

    /// Ends the pass: forgets Services that are gone, and says when time alone may change the answer.
    pub(super) fn finish(self) -> Option<Uptime> {
        self.memory.0.retain(|key, _| self.seen.contains(key));
        self.revisit
    }

    /// Every node that may serve this Service, before any is picked.
    fn allowed(&mut self, placement: &Placement<'_>) -> (Allowed, Told) {
        let service = placement.service;
        if !service.local_traffic_only && !placement.require_ready {
            return (Allowed::All, None);
        }
        let key = &service.service.key;
        let Some(endpoints) = self.endpoints.and_then(|all| all.get(key)) else {
            return (
                Allowed::All,
                Some((Code::EndpointsUnknown, unknown_text(service))),
            );
        };
        let nodes = if service.local_traffic_only {
            self.on(&endpoints.ready_nodes)
                .or_else(|| self.on(&endpoints.terminating_nodes))
        } else {
            endpoints.any_ready.then(|| self.uids(|_| true))
        };
        self.seen.insert(key.clone());
        let last = self.memory.0.entry(key.clone()).or_default();
        if let Some(nodes) = nodes {
            last.empty_since = None;
            last.nodes.clone_from(&nodes);
            return (Allowed::Only(nodes), None);
        }
        let deadline = *last.empty_since.get_or_insert(self.now) + NO_ENDPOINT_GRACE;
        if self.now >= deadline {
            last.nodes.clear();
        } else {
            self.revisit = earliest(self.revisit, Some(deadline));
        }
        let kept = last.nodes.clone();
        let fate = if kept.is_empty() {
            "it has no route"
        } else {
            "its routes go within 30 s"
        };
        (
            Allowed::Only(kept),
            Some((
                Code::NoReadyEndpoint,
                format!("none of its pods is ready; {fate}"),
            )),
        )
    }

    fn on(&self, names: &BTreeSet<String>) -> Option<BTreeSet<NodeUid>> {
        let found = self.uids(|chosen| names.contains(chosen.name));
        (!found.is_empty()).then_some(found)
    }

    fn uids(&self, wanted: impl Fn(&EligibleNode<'_>) -> bool) -> BTreeSet<NodeUid> {
        let nodes = self.pool.iter().map(|ranked| &ranked.chosen);
        nodes
            .filter(|chosen| wanted(chosen))
            .map(|chosen| chosen.node.uid.clone())
            .collect()
    }

    /// Picks the `cap` nodes that rank highest for this Service, highest first, spread over zones: the best of
    /// every zone before the second of any.
    fn pick(&mut self, service_uid: &str, allowed: &Allowed, cap: usize) {
        let all = self.pool.len();
        let cap = if cap == 0 { all } else { cap.min(all) };
        let depth = match allowed {
            Allowed::All => self.depth(cap),
            Allowed::Only(_) => cap,
        };
        let service = stable_hash(service_uid.bytes());
        for (zone, best) in self.zones.iter().zip(&mut self.best) {
            let nodes = zone.clone().zip(&self.pool[zone.clone()]);
            let nodes = nodes.filter(|(_, ranked)| allowed.allows(&ranked.chosen.node.uid));
            let ranks = nodes.map(|(index, ranked)| Rank::new(mix(ranked.hash ^ service), index));
            highest(ranks, depth, best);
        }
        let rounds = self.best.iter().map(Vec::len).max().unwrap_or(0);
        self.picked.clear();
        for round in 0..rounds {
            let start = self.picked.len();
            let of_round = self.best.iter().filter_map(|zone| zone.get(round));
            self.picked.extend(of_round);
            self.picked[start..].sort_unstable();
            if self.picked.len() >= cap {
                break;
            }
        }
        self.picked.truncate(cap);
    }

    /// How many nodes of a zone can be picked at most, where every zone gives its best before any gives a second.
    fn depth(&self, cap: usize) -> usize {
        let enough = |depth: &usize| {
            let given = self.zones.iter().map(|zone| zone.len().min(*depth));
            given.sum::<usize>() >= cap
        };
        (1..=cap).find(enough).unwrap_or(cap)
    }
}

// === impl Ranked ===

impl Ranked<'_> {
    fn zone(&self) -> Option<&str> {
        self.chosen.node.zone.as_deref()
    }
}

// === impl Allowed ===

impl Allowed {
    fn allows(&self, uid: &NodeUid) -> bool {
        match self {
            Self::All => true,
            Self::Only(uids) => uids.contains(uid),
        }
    }
}

/// The `cap` highest, in order.
fn highest(ranks: impl Iterator<Item = Rank>, cap: usize, best: &mut Vec<Rank>) {
    /// Up to here it is cheaper to keep a few in order than to sort all (100 nodes, 8 of them: a third of the
    /// instructions).
    const FEW: usize = 64;
    best.clear();
    if cap > FEW {
        best.extend(ranks);
        best.sort_unstable();
        best.truncate(cap);
        return;
    }
    for rank in ranks {
        if best.len() < cap {
            best.push(rank);
        } else if best.last().is_some_and(|last| rank < *last) {
            best[cap - 1] = rank;
        } else {
            continue;
        }
        let mut place = best.len() - 1;
        while place > 0 && best[place - 1] > rank {
            best.swap(place - 1, place);
            place -= 1;
        }
    }
}

/// A node's place for one Service: highest rank first when sorted. One word, because a pass of a large cluster
/// makes a million of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(u64);

impl Rank {
    /// Bits that hold the node's index. Kubernetes ends at 5,000 nodes.
    const INDEX_BITS: u32 = 16;

    fn new(score: u64, index: usize) -> Self {
        let index = index as u64 & ((1 << Self::INDEX_BITS) - 1);
        Self((!score >> Self::INDEX_BITS << Self::INDEX_BITS) | index)
    }

    fn index(self) -> usize {
        usize::try_from(self.0 & ((1 << Self::INDEX_BITS) - 1)).unwrap_or(0)
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

/// A 64-bit finalizer (the constants are MurmurHash3's), because FNV ranks similar texts alike.
fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}
