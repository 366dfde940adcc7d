//! Which of the eligible nodes one route gets.
//!
//! Any node forwards a node port to any pod, so a route needs a few nodes, not all: each more costs a heartbeat
//! every 20 s, a row in the routing API, and a HAProxy reload for the whole foundation. Rendezvous hashing picks
//! them, so that a node that comes or goes touches only the routes it is picked for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::nodes::{EligibleNode, EligibleNodes};
use super::{Code, earliest};
use crate::Uptime;
use crate::kubernetes::snapshot::{Endpoints, Service, Snapshot};
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
    pool: Vec<Ranked<'a>>,
    /// Room for ranking, by zone; kept to be used again.
    best: Vec<Vec<Rank>>,
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
    zone: usize,
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
        let names: BTreeSet<Option<&str>> = eligible
            .nodes
            .iter()
            .map(|chosen| chosen.node.zone.as_deref())
            .collect();
        let zones: BTreeMap<Option<&str>, usize> = names
            .into_iter()
            .enumerate()
            .map(|(index, zone)| (zone, index))
            .collect();
        let ranked = |chosen: &EligibleNode<'a>| Ranked {
            chosen: *chosen,
            hash: hash(&chosen.node.uid.0),
            zone: zones[&chosen.node.zone.as_deref()],
        };
        Self {
            pool: eligible.nodes.iter().map(ranked).collect(),
            best: vec![Vec::with_capacity(eligible.nodes.len()); zones.len()],
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
        let picked = self.pick(&placement.service.service.uid, &allowed, placement.cap);
        let backends = Backends::new(picked.into_iter().map(|chosen| Backend {
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

    /// The `cap` nodes that rank highest for this Service, highest first, spread over zones: the best of
    /// every zone before the second of any.
    fn pick(&mut self, service_uid: &str, allowed: &Allowed, cap: usize) -> Vec<EligibleNode<'a>> {
        let cap = if cap == 0 { usize::MAX } else { cap };
        let service = hash(service_uid);
        self.best.iter_mut().for_each(Vec::clear);
        for (index, ranked) in self.pool.iter().enumerate() {
            if matches!(allowed, Allowed::Only(uids) if !uids.contains(&ranked.chosen.node.uid)) {
                continue;
            }
            self.best[ranked.zone].push(Rank::new(mix(ranked.hash ^ service), index));
        }
        for zone in &mut self.best {
            if zone.len() > cap {
                zone.select_nth_unstable(cap - 1);
                zone.truncate(cap);
            }
            zone.sort_unstable();
        }
        let rounds = self.best.iter().map(Vec::len).max().unwrap_or(0);
        let mut picked = Vec::with_capacity(cap.min(self.pool.len()));
        for round in 0..rounds {
            let start = picked.len();
            picked.extend(self.best.iter().filter_map(|zone| zone.get(round)));
            picked[start..].sort_unstable();
            if picked.len() >= cap {
                break;
            }
        }
        picked.truncate(cap);
        picked
            .into_iter()
            .map(|rank: Rank| self.pool[rank.index()].chosen)
            .collect()
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

/// FNV-1a. Ours rather than the standard library's, which may change with the toolchain: every instance must
/// pick the same nodes.
fn hash(text: &str) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    text.bytes().fold(OFFSET, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    })
}

/// A 64-bit finalizer (the constants are MurmurHash3's), because FNV ranks similar texts alike.
fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}
