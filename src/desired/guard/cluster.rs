//! Another cluster behind the same address: an etcd begun anew, an exchanged kubeconfig, a name that was moved.
//!
//! What it lacks is no reason to remove anything, and what it asks for is not published either: it may be the
//! wrong one. The lanes keep what they were told, under the name they were told it by, until the cluster is put
//! back or an operator approves. No number of lists says that for him, since the wrong cluster would repeat itself.
//!
//! Nodes may be the same machines as before. A backend is let go where such a machine's node port now belongs to
//! another Service; elsewhere the new cluster's node ports mean nothing. Who may not read `kube-system` is not
//! told, and has the [`guard`](super) alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Guard, Held, HeldRoute, Limits, Name, PlanHash, Reason};
use crate::Uptime;
use crate::desired::{Code, Desired, Finding, Subject};
use crate::kubernetes::snapshot::Snapshot;
use crate::route::{Backend, Backends, NodePort, RouteTable, ServiceRef};

// === impl Guard ===

impl Guard {
    /// Whether another cluster speaks than the one whose routes the lanes were told, and nobody approved of it.
    #[must_use]
    pub fn is_strangers(&self, snapshot: &Snapshot, now: Uptime) -> bool {
        let (Some(known), Some(seen)) = (&self.kube_system, &snapshot.evidence.kube_system) else {
            return false;
        };
        let routes = self
            .told
            .as_ref()
            .is_some_and(|told| !is_empty(&told.table));
        let approved = self.approved_cluster.as_ref() == Some(seen);
        known != seen && routes && !approved && !self.words.give_up(known, seen, now)
    }

    /// Keeps what the lanes were told, whatever this cluster wants.
    pub(super) fn stay(
        &mut self,
        desired: &Desired,
        snapshot: &Snapshot,
        others: &BTreeMap<NodePort, Arc<ServiceRef>>,
    ) -> Arc<Desired> {
        self.approved_cluster = None;
        let (Some(told), Some(stranger)) = (self.told.take(), &snapshot.evidence.kube_system)
        else {
            return self.tell(None, desired.clone());
        };
        let mut table = told.table.clone();
        let led = Led { desired, others };
        table.http.retain(|_, route| {
            let backends = led.home(&route.backends, &route.service);
            backends.map(|backends| route.backends = backends).is_some()
        });
        table.tcp.retain(|_, route| {
            let backends = led.home(&route.backends, &route.service);
            backends.map(|backends| route.backends = backends).is_some()
        });
        let mut next = Desired {
            findings: snapshot.findings.clone(),
            node_ips: told.node_ips.clone(),
            node_ports: told.node_ports.clone(),
            yielding: told.yielding.clone(),
            ..Desired::of(told.cluster.clone(), table)
        };
        self.stranger = Some(stranger.clone());
        if !is_empty(&next.table) {
            let known = self.kube_system.as_deref().unwrap_or_default();
            let routes = all(&next.table);
            let plan = PlanHash::of_switch(stranger, &routes);
            next.findings
                .push(finding(known, stranger, routes.len(), plan));
            next.findings.sort();
            next.held = Some(Held {
                plan,
                limits: Limits::default(),
                reasons: BTreeSet::from([Reason::AnotherCluster]),
                routes,
            });
        }
        self.tell(Some(told), next)
    }

    /// Notes whose routes these are. The name that the lanes know ours by stays, because their rows carry it: it
    /// may be an address that stood in for a UID nobody could read then.
    pub(super) fn recognise(&mut self, desired: &mut Desired, snapshot: &Snapshot, now: Uptime) {
        let seen = &snapshot.evidence.kube_system;
        let same = self.kube_system.is_none() || seen.is_none() || self.kube_system == *seen;
        self.stranger = None;
        let approved = self.approved_cluster.take();
        let approved = approved.is_some() && approved == *seen;
        let before = self.kube_system.clone();
        if seen.is_some() {
            self.kube_system.clone_from(seen);
        }
        if same {
            if let Some(told) = &self.told {
                desired.cluster.clone_from(&told.cluster);
            }
        } else {
            // Approved, or there is nothing to lose: nothing of the old one is counted or held any more.
            self.words.note_given_up(before.filter(|_| approved), now);
            self.told = None;
            self.held.clear();
            self.let_go.clear();
            self.pending = None;
        }
    }
}

/// Where old backends lead now.
struct Led<'a> {
    desired: &'a Desired,
    others: &'a BTreeMap<NodePort, Arc<ServiceRef>>,
}

// === impl Led ===

impl Led<'_> {
    /// The backends that do not lead to another Service. One of the same name is the same, set up anew.
    fn home(&self, backends: &Backends, service: &ServiceRef) -> Option<Backends> {
        let stays = |backend: &&Backend| {
            let labelled = self.desired.node_ports.get(&backend.port);
            let owner = labelled.or_else(|| self.others.get(&backend.port));
            let taken = owner.is_some_and(|owner| owner.key != service.key);
            !(taken && self.desired.node_ips.contains_key(&backend.ip))
        };
        Backends::new(backends.iter().filter(stays).cloned())
    }
}

fn is_empty(table: &RouteTable) -> bool {
    table.http.is_empty() && table.tcp.is_empty()
}

fn all(table: &RouteTable) -> Vec<HeldRoute> {
    let http = table.http.iter().map(|(uri, route)| HeldRoute {
        name: Name::Http(uri.clone()),
        service: route.service.key.clone(),
    });
    let tcp = table.tcp.iter().map(|(port, route)| HeldRoute {
        name: Name::Tcp(*port),
        service: route.service.key.clone(),
    });
    http.chain(tcp).collect()
}

fn finding(known: &str, stranger: &str, routes: usize, plan: PlanHash) -> Finding {
    let routes = match routes {
        1 => "1 route stays as it was".to_owned(),
        count => format!("{count} routes stay as they were"),
    };
    let text = format!(
        "the apiserver answers as cluster `{stranger}`, not `{known}`: {routes}, and none of its own is published"
    );
    let hint = format!(
        "put the cluster back, or give these routes up for the new one's with `route-sync approve {plan}`"
    );
    Finding::new(Code::AnotherCluster, Subject::Cluster, text).hint(hint)
}
