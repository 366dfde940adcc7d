//! Which nodes may serve at all.
//!
//! A Node leaves at once when it is deleted or excluded: somebody decided that. Readiness is only heard of
//! through the control plane, so it is damped, and believed of a minority only: when most nodes stop being
//! ready together, it is far likelier that the control plane lost them than that they all stopped forwarding.
//! An address that is no longer told is not known to be gone: the last one stays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::{Code, Finding, Subject, earliest, listed};
use crate::Uptime;
use crate::kubernetes::snapshot::Node;
use crate::route::NodeUid;

/// How long a node may be not ready before it leaves. A black-holed backend costs each client 120 s on
/// tcp-router and 5 s on gorouter (measured), so not much longer than a kubelet's restart.
pub(super) const NOT_READY_GRACE: Duration = Duration::from_secs(10);
/// How long a node that left must be ready before it returns, so that flapping costs no reloads.
pub(super) const READY_GRACE: Duration = Duration::from_secs(30);

/// How long each node has been as it is, and whom we sent traffic to.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    nodes: BTreeMap<NodeUid, Standing>,
    addresses: BTreeMap<NodeUid, IpAddr>,
    served: BTreeSet<NodeUid>,
    /// The last set was kept although most of it is not ready.
    held: bool,
}

#[derive(Clone, Copy, Debug)]
struct Standing {
    /// It takes traffic as far as its readiness goes.
    in_use: bool,
    /// Since when its readiness contradicts `in_use`.
    contradicted_since: Option<Uptime>,
}

/// The nodes that take traffic.
#[derive(Debug)]
pub(super) struct EligibleNodes<'a> {
    /// In order of their names.
    pub nodes: Vec<EligibleNode<'a>>,
    /// When damping may change the set.
    pub revisit: Option<Uptime>,
}

/// A node that takes traffic.
#[derive(Clone, Copy, Debug)]
pub(super) struct EligibleNode<'a> {
    /// Endpoints name their nodes.
    pub name: &'a str,
    pub node: &'a Node,
    pub ip: IpAddr,
}

/// Judges every node anew.
pub(super) fn eligible<'a>(
    nodes: &'a BTreeMap<String, Node>,
    ipv6: bool,
    memory: &mut Memory,
    now: Uptime,
    findings: &mut Vec<Finding>,
) -> EligibleNodes<'a> {
    let known: BTreeSet<&NodeUid> = nodes.values().map(|node| &node.uid).collect();
    memory.nodes.retain(|uid, _| known.contains(uid));
    memory.addresses.retain(|uid, _| known.contains(uid));
    let candidates = candidates(nodes, ipv6, memory, findings);
    let deadlines = nodes.values().filter_map(|node| memory.stand(node, now));
    let mut revisit = deadlines.min();
    // Nodes that fail together are reported one after the other, so those whose grace still runs count too:
    // else the first few would have left before the rest made it a majority. Nodes that left long ago do not.
    let serving: Vec<_> = candidates
        .iter()
        .copied()
        .filter(|candidate| memory.serves(candidate.node))
        .collect();
    let failing: Vec<&str> = serving
        .iter()
        .filter(|candidate| !candidate.node.ready || !memory.in_use(candidate.node))
        .map(|candidate| candidate.name)
        .collect();
    let leaving = serving
        .iter()
        .any(|candidate| !memory.in_use(candidate.node));
    // Nobody was served yet and nobody is ready: then all of them, rather than none.
    let nobody = serving.is_empty()
        && !candidates
            .iter()
            .any(|candidate| memory.in_use(candidate.node));
    let held = nobody || (leaving && failing.len() * 2 > serving.len());
    if memory.held && !held {
        // Nodes that were lost together come back one after the other: those still to come have not failed alone.
        let late = serving
            .iter()
            .filter(|candidate| !memory.in_use(candidate.node));
        let late: Vec<_> = late.map(|candidate| &candidate.node.uid).collect();
        for uid in late {
            let deadline = memory.excuse(uid, now);
            revisit = earliest(revisit, Some(deadline));
        }
    }
    memory.held = held;
    if held && !candidates.is_empty() {
        let names = candidates.iter().map(|candidate| candidate.name);
        let failing = if nobody { names.collect() } else { failing };
        findings.push(held_finding(&failing, candidates.len()));
    }
    let keep = |candidate: &EligibleNode<'_>| {
        memory.in_use(candidate.node) || (held && (nobody || memory.serves(candidate.node)))
    };
    let nodes: Vec<_> = candidates.into_iter().filter(keep).collect();
    memory.served = nodes.iter().map(|chosen| chosen.node.uid.clone()).collect();
    EligibleNodes { nodes, revisit }
}

/// Nodes that nobody took away and that have an address of the wanted family.
fn candidates<'a>(
    nodes: &'a BTreeMap<String, Node>,
    ipv6: bool,
    memory: &mut Memory,
    findings: &mut Vec<Finding>,
) -> Vec<EligibleNode<'a>> {
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let present = nodes
        .iter()
        .filter(|(_, node)| !node.deleting && !node.excluded);
    let mut candidates = Vec::with_capacity(nodes.len());
    for (name, node) in present {
        let told = node.internal_ips.iter().find(|ip| ip.is_ipv6() == ipv6);
        if let Some(ip) = told {
            memory.addresses.insert(node.uid.clone(), *ip);
        }
        let known = memory.addresses.get(&node.uid).copied();
        if told.is_none() {
            let fate = match known {
                Some(ip) => format!("it keeps the last one, {ip}"),
                None => "it serves no route".to_owned(),
            };
            findings.push(
                Finding::new(
                    Code::NodeWithoutAddress,
                    Subject::Node(name.clone()),
                    format!("it has no {family} address of type `InternalIP`; {fate}"),
                )
                .hint("set the node's address, or `routes.address_family`"),
            );
        }
        candidates.extend(known.map(|ip| EligibleNode { name, node, ip }));
    }
    candidates
}

fn held_finding(out: &[&str], all: usize) -> Finding {
    Finding::new(
        Code::NodesNotReadyHeld,
        Subject::Cluster,
        format!(
            "{} of {all} nodes are not ready at once ({}); traffic still goes to them",
            out.len(),
            listed(out.iter().copied())
        ),
    )
    .hint("look at the control plane first: most likely it lost sight of them")
}

// === impl Memory ===

impl Memory {
    fn in_use(&self, node: &Node) -> bool {
        self.nodes
            .get(&node.uid)
            .is_some_and(|standing| standing.in_use)
    }

    fn serves(&self, node: &Node) -> bool {
        self.served.contains(&node.uid)
    }

    /// Brings one node's standing up to date; returns when it may change by itself.
    fn stand(&mut self, node: &Node, now: Uptime) -> Option<Uptime> {
        let first = Standing {
            in_use: node.ready,
            contradicted_since: None,
        };
        let never_left = self.serves(node);
        let standing = self.nodes.entry(node.uid.clone()).or_insert(first);
        if node.ready && never_left {
            standing.in_use = true;
        }
        if node.ready == standing.in_use {
            standing.contradicted_since = None;
            return None;
        }
        let grace = if standing.in_use {
            NOT_READY_GRACE
        } else {
            READY_GRACE
        };
        let deadline = *standing.contradicted_since.get_or_insert(now) + grace;
        if now < deadline {
            return Some(deadline);
        }
        *standing = first;
        None
    }

    /// Lets a node be not ready for another grace; returns when that ends.
    fn excuse(&mut self, uid: &NodeUid, now: Uptime) -> Uptime {
        let excused = Standing {
            in_use: true,
            contradicted_since: Some(now),
        };
        self.nodes.insert(uid.clone(), excused);
        now + NOT_READY_GRACE
    }
}
