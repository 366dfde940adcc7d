//! The change guard: a mistake made once must not take every route with it.
//!
//! Between what is derived and what the lanes are told. A route that nothing asks for any more goes at once,
//! unless too many go together; then it stays in the table, so that both lanes keep it alive without knowing why.
//!
//! | a route nobody asks for any more                                 | what becomes of it                    |
//! |------------------------------------------------------------------|---------------------------------------|
//! | its node port belongs to another Service, or its host to another | goes at once: it leads elsewhere      |
//! | namespace                                                        |                                       |
//! | another cluster speaks behind the same address                   | all stay (`cluster`)                  |
//! | a list lacks it, and every other route of its lane is gone too   | held, however few they are            |
//! | its namespace is deleted                                         | goes, uncounted                       |
//! | at most ten, or 30 %, of its lane within 60 s ([`Limits`])       | goes                                  |
//! | more than that                                                   | held, all of the pass                 |
//! | held, and `approve` names just this plan                         | goes                                  |
//! | approved where another instance acts (`approvals`)               | goes                                  |
//! | held, and two further complete lists come to the same plan, not  | goes                                  |
//! | within those 60 s                                                |                                       |
//!
//! Pure: what it knows of the past it has in itself, and of time what it is told. It knows neither lanes'
//! protocols nor why a route is no longer asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Code, Desired, Finding, listed};
use crate::Uptime;
use crate::kubernetes::snapshot::{Departure, Snapshot};
use crate::route::{Backends, Lane, NodePort, ServiceKey, ServiceRef, Uri};

mod approvals;
mod cluster;
mod held;
#[cfg(test)]
mod tests;

use approvals::Words;

pub use approvals::Approvals;
pub use held::{Held, HeldRoute, Name, PlanHash, Reason};

/// As many routes of a lane may go together unless the configuration says otherwise: a rollout of a handful.
const FREE_REMOVALS: usize = 10;
/// Of a larger lane as many hundredths.
const FREE_PERCENT: usize = 30;
/// Removals within this time count as one: the time in which a mistaken pipeline does its work.
const WINDOW: Duration = Duration::from_mins(1);
/// Complete lists of each required source after which a plan that is still the same is believed.
const AGREEING_LISTS: u64 = 2;

/// What the lanes were told last, and what is held of it.
#[derive(Debug, Default)]
pub struct Guard {
    told: Option<Arc<Desired>>,
    /// Whose routes those are: the UID of the cluster's `kube-system`, once it could be read.
    kube_system: Option<String>,
    held: BTreeMap<Name, Reason>,
    /// What was let go because it was little, when, as long as it counts. What came back was no loss.
    let_go: BTreeMap<Name, Uptime>,
    /// The plan that is held, and the lists complete when it was first.
    pending: Option<(PlanHash, BTreeMap<&'static str, u64>, Uptime)>,
    /// Approved, and let go by the next pass.
    approved: BTreeSet<Name>,
    /// The cluster that speaks instead of ours.
    stranger: Option<String>,
    /// The one whose routes may replace ours with the next pass.
    approved_cluster: Option<String>,
    /// What operators told this instance and others.
    words: Words,
}

/// What of a guard outlives its process, beside the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Whose the routes are: the UID of the cluster's `kube-system`.
    pub kube_system: Option<String>,
    /// What is held, and why.
    pub held: BTreeMap<Name, Reason>,
}

/// How many routes of a lane may go together without anybody's word: the larger of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// So many.
    pub routes: usize,
    /// So many hundredths of the lane.
    pub percent: usize,
    /// Removals within this time count together.
    pub window: Duration,
}

/// Why nothing was approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotPending {
    /// Nothing is held.
    Nothing,
    /// This is held instead.
    Another(PlanHash),
}

/// A route of the last table that the next one lacks.
struct Gone<'a> {
    name: Name,
    service: &'a Arc<ServiceRef>,
    backends: &'a Backends,
}

/// What one pass looks at.
struct Pass<'a> {
    desired: &'a Desired,
    snapshot: &'a Snapshot,
    /// Node ports of Services that carry no label of ours, as far as they are known.
    others: &'a BTreeMap<NodePort, Arc<ServiceRef>>,
    /// Hosts asked for below which something was lost, with the namespace that has them now.
    hosts: BTreeMap<Uri, &'a str>,
    limits: Limits,
    now: Uptime,
}

// === impl Guard ===

impl Guard {
    /// Goes on from what the last process told its lanes and remembered.
    #[must_use]
    pub fn of_last_process(told: Option<Arc<Desired>>, remembered: Remembered) -> Self {
        let Remembered {
            kube_system,
            mut held,
        } = remembered;
        held.retain(|name, _| told.as_ref().is_some_and(|told| name.is_in(&told.table)));
        Self {
            told,
            kube_system,
            held,
            ..Self::default()
        }
    }

    /// Brings up to date what is to outlive the process; gives whether that changed.
    pub fn remember(&self, known: &mut Remembered) -> bool {
        let changed = known.kube_system != self.kube_system || known.held != self.held;
        if changed {
            known.kube_system.clone_from(&self.kube_system);
            known.held.clone_from(&self.held);
        }
        changed
    }

    /// Gives what the lanes are told: what is wanted, and what is held. `others` are the node ports of all Services,
    /// as far as they are known.
    pub fn pass(
        &mut self,
        mut desired: Desired,
        snapshot: &Snapshot,
        others: &BTreeMap<NodePort, Arc<ServiceRef>>,
        limits: Limits,
        now: Uptime,
    ) -> Arc<Desired> {
        if self.is_strangers(snapshot, now) {
            return self.stay(&desired, snapshot, others);
        }
        self.recognise(&mut desired, snapshot, now);
        self.words.forget(&desired.table, now);
        let told = self.told.take();
        let approved = std::mem::take(&mut self.approved);
        let before = std::mem::take(&mut self.held);
        self.let_go
            .retain(|name, at| *at + limits.window > now && !name.is_in(&desired.table));
        if let Some(told) = &told {
            let lanes = [http_gone(told, &desired), tcp_gone(told, &desired)];
            if lanes.iter().any(|gone| !gone.is_empty()) {
                let pass = Pass::new(&desired, snapshot, others, (limits, now), &lanes[0]);
                for (lane, gone) in [Lane::Http, Lane::Tcp].into_iter().zip(&lanes) {
                    let size = match lane {
                        Lane::Http => told.table.http.len(),
                        Lane::Tcp => told.table.tcp.len(),
                    };
                    let (free, gone): (Vec<_>, Vec<_>) =
                        gone.iter().partition(|it| self.is_free(it, &approved, now));
                    self.lane(lane, &gone, size - free.len(), &before, &pass);
                }
            }
            self.agree(snapshot, told, limits.window, now);
            self.keep(&mut desired, told, limits);
        }
        self.tell(told, desired)
    }

    /// A table that is as it was is kept once, and wakes nobody.
    fn tell(&mut self, told: Option<Arc<Desired>>, desired: Desired) -> Arc<Desired> {
        let told = told.filter(|told| **told == desired);
        let told = told.unwrap_or_else(|| Arc::new(desired));
        self.told = Some(told.clone());
        told
    }

    /// Lets go just this plan with the next pass; gives its routes.
    ///
    /// # Errors
    /// When something else, or nothing, is held.
    pub fn approve(&mut self, plan: &str) -> Result<Vec<HeldRoute>, NotPending> {
        let held = self.told.as_ref().and_then(|told| told.held.as_ref());
        let held = held.ok_or(NotPending::Nothing)?;
        if held.plan.to_string() != plan {
            return Err(NotPending::Another(held.plan));
        }
        match &self.stranger {
            Some(stranger) => self.approved_cluster = Some(stranger.clone()),
            None => self.approved = self.held.keys().cloned().collect(),
        }
        Ok(held.routes.clone())
    }

    /// Whether an operator has let this route go, here or where another instance acts.
    fn is_free(&mut self, gone: &Gone<'_>, approved: &BTreeSet<Name>, now: Uptime) -> bool {
        let (name, service) = (&gone.name, &gone.service.key);
        let here = approved.contains(name);
        if here {
            self.words.note(name, service, now);
        }
        here || self
            .words
            .let_go(self.kube_system.as_deref(), name, service)
    }

    /// Decides about the routes of one lane that nothing asks for any more.
    fn lane(
        &mut self,
        lane: Lane,
        gone: &[&Gone<'_>],
        size: usize,
        before: &BTreeMap<Name, Reason>,
        pass: &Pass<'_>,
    ) {
        let every = gone.len() == size;
        let mut counted = Vec::new();
        for gone in gone {
            if pass.leads_elsewhere(gone) {
                continue;
            }
            let departure = pass.departure(lane, gone);
            if let Some(reason) = before.get(&gone.name) {
                self.held.insert(gone.name.clone(), *reason);
            } else if every && departure.by_list {
                let reason = Reason::EveryRoute(lane);
                self.held.insert(gone.name.clone(), reason);
            } else if !departure.namespace_gone {
                counted.push(&gone.name);
            }
        }
        if counted.is_empty() {
            return;
        }
        let recent = self
            .let_go
            .keys()
            .filter(|name| name.lane() == lane)
            .count();
        let allowed = pass.limits.of(size + recent);
        let names = counted.iter().copied().cloned();
        if recent + counted.len() > allowed {
            let reason = Reason::TooMany(lane);
            self.held.extend(names.map(|name| (name, reason)));
        } else {
            self.let_go.extend(names.map(|name| (name, pass.now)));
        }
    }

    /// Lets everything go that was held as the same plan while each source was listed often enough.
    fn agree(&mut self, snapshot: &Snapshot, told: &Desired, window: Duration, now: Uptime) {
        let lists = &snapshot.evidence.lists;
        if self.held.is_empty() {
            self.pending = None;
            return;
        }
        let plan = PlanHash::of(self.held.keys(), told);
        match &self.pending {
            Some((pending, since, held_at)) if *pending == plan => {
                let further = |(source, count): (&&str, &u64)| {
                    since.get(source).copied().unwrap_or(0) + AGREEING_LISTS <= *count
                };
                // Lists that follow each other closely, as polls do and those after a watch that failed, look at the
                // same mistake twice.
                let late = *held_at + window <= now;
                if late && !lists.is_empty() && lists.iter().all(further) {
                    self.held.clear();
                    self.pending = None;
                }
            }
            _ => self.pending = Some((plan, lists.clone(), now)),
        }
    }

    /// Puts what is held back into the table, and says so.
    fn keep(&self, desired: &mut Desired, told: &Desired, limits: Limits) {
        let mut routes = Vec::with_capacity(self.held.len());
        let mut by_service: BTreeMap<ServiceKey, Vec<String>> = BTreeMap::new();
        for name in self.held.keys() {
            let service = match name {
                Name::Http(uri) => {
                    let mut route = told.table.http[uri].clone();
                    route.backends = still_there(&route.backends, desired);
                    let service = route.service.key.clone();
                    desired.table.http.insert(uri.clone(), route);
                    service
                }
                Name::Tcp(port) => {
                    let mut route = told.table.tcp[port].clone();
                    route.backends = still_there(&route.backends, desired);
                    let service = route.service.key.clone();
                    desired.table.tcp.insert(*port, route);
                    service
                }
            };
            let names = by_service.entry(service.clone()).or_default();
            names.push(name.to_string());
            let name = name.clone();
            routes.push(HeldRoute { name, service });
        }
        let Some((plan, ..)) = &self.pending else {
            return;
        };
        let held = Held {
            plan: *plan,
            limits,
            reasons: self.held.values().copied().collect(),
            routes,
        };
        desired.findings.push(held.finding());
        for (service, names) in &by_service {
            let names = listed(names.iter().map(String::as_str));
            let text = format!("nothing asks for {names} any more, but the removal is held");
            desired
                .findings
                .push(Finding::on_service(Code::RemovalHeld, service, text));
        }
        desired.findings.sort();
        desired.held = Some(held);
    }
}

/// The backends at nodes of the cluster; all of them where none is left, as nobody knows better.
fn still_there(backends: &Backends, desired: &Desired) -> Backends {
    let there = |backend: &&crate::route::Backend| desired.node_ips.contains_key(&backend.ip);
    Backends::new(backends.iter().filter(there).cloned()).unwrap_or_else(|| backends.clone())
}

fn http_gone<'a>(told: &'a Desired, desired: &Desired) -> Vec<Gone<'a>> {
    missing(&told.table.http, &desired.table.http)
        .map(|(uri, route)| Gone {
            name: Name::Http(uri.clone()),
            service: &route.service,
            backends: &route.backends,
        })
        .collect()
}

fn tcp_gone<'a>(told: &'a Desired, desired: &Desired) -> Vec<Gone<'a>> {
    missing(&told.table.tcp, &desired.table.tcp)
        .map(|(port, route)| Gone {
            name: Name::Tcp(*port),
            service: &route.service,
            backends: &route.backends,
        })
        .collect()
}

/// What only the first holds, in order, by one walk over both: tables are large and mostly alike.
fn missing<'a, K: Ord, V>(
    old: &'a BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let mut new = new.keys().peekable();
    old.iter().filter(move |(name, _)| {
        while new.next_if(|other| other < name).is_some() {}
        new.next_if(|other| other == name).is_none()
    })
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            routes: FREE_REMOVALS,
            percent: FREE_PERCENT,
            window: WINDOW,
        }
    }
}

impl Limits {
    /// As many routes of a lane of this size.
    fn of(self, size: usize) -> usize {
        self.routes.max(size * self.percent / 100)
    }
}

// === impl Pass ===

impl<'a> Pass<'a> {
    fn new(
        desired: &'a Desired,
        snapshot: &'a Snapshot,
        others: &'a BTreeMap<NodePort, Arc<ServiceRef>>,
        (limits, now): (Limits, Uptime),
        gone: &[Gone<'_>],
    ) -> Self {
        let lost = gone.iter().filter_map(|gone| match &gone.name {
            Name::Http(uri) => Some(uri.whole_host()),
            Name::Tcp(_) => None,
        });
        let lost: BTreeSet<Uri> = lost.collect();
        let mut hosts = BTreeMap::new();
        if !lost.is_empty() {
            for (uri, route) in &desired.table.http {
                let host = uri.whole_host();
                if lost.contains(&host) {
                    hosts.insert(host, route.service.key.namespace.as_str());
                }
            }
        }
        Self {
            desired,
            snapshot,
            others,
            hosts,
            limits,
            now,
        }
    }

    /// Whether traffic to the route would reach somebody it was not meant for.
    fn leads_elsewhere(&self, gone: &Gone<'_>) -> bool {
        let owner = |port| {
            let labelled = self.desired.node_ports.get(port);
            labelled.or_else(|| self.others.get(port))
        };
        let taken = gone
            .backends
            .iter()
            .any(|backend| owner(&backend.port).is_some_and(|owner| owner != gone.service));
        let host_lost = match &gone.name {
            Name::Http(uri) => self
                .hosts
                .get(&uri.whole_host())
                .is_some_and(|namespace| *namespace != gone.service.key.namespace),
            Name::Tcp(_) => false,
        };
        taken || host_lost
    }

    /// How the route was lost. What nobody can tell any more counts as missing in a list.
    fn departure(&self, lane: Lane, gone: &Gone<'_>) -> Departure {
        let key = &gone.service.key;
        let evidence = &self.snapshot.evidence;
        if let Some(departure) = evidence.left.get(&(lane, key.clone())) {
            return *departure;
        }
        let service = self.snapshot.services.get(key);
        let labelled = service.is_some_and(|service| match lane {
            Lane::Http => service.http_label.is_some(),
            Lane::Tcp => service.tcp_label.is_some(),
        });
        let nodes_lost = self.snapshot.nodes.is_empty() && evidence.nodes_by_list;
        Departure {
            by_list: !labelled || nodes_lost,
            namespace_gone: false,
        }
    }
}
