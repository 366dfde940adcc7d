//! What operators approved, from one instance to the next: an approval outlives the instance that it was given to.
//!
//! Instances guard by themselves, and one may see two losses where another saw one, under other hashes. So what was
//! approved is told route by route, each as a plan of its own, and lets go just these wherever they are held. It is
//! good for one loss: whoever sees the route asked for again takes nothing more from it. Another cluster is approved
//! of as the successor of one other alone. Whoever passes this on sees to it that it is no word of long ago.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Guard, Name, PlanHash};
use crate::Uptime;
use crate::route::{RouteTable, ServiceKey};

/// Longer than two lists take at `kubernetes.rescan_interval` (5 minutes), after which whoever holds the same lets it
/// go by itself, and than a state is good for (`state.max_age`, 10 minutes).
const KEPT: Duration = Duration::from_mins(15);

/// What an instance lets the others know of what operators approved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Approvals {
    /// Whose routes these are: the UID of the cluster's `kube-system`.
    pub kube_system: Option<String>,
    /// Whose routes were given up for that cluster's.
    pub instead_of: Option<String>,
    /// Each route that was approved to go, as the plan of its removal alone.
    pub routes: BTreeSet<PlanHash>,
}

/// What one guard knows of it.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// Routes whose removal was approved here, and when it went through.
    ours: BTreeMap<PlanHash, Uptime>,
    /// The cluster whose routes were given up here, and when.
    given_up: Option<(String, Uptime)>,
    /// What the instance that acts told last, as far as it is still good, and when.
    theirs: (Approvals, Uptime),
    /// Routes that were asked for again after that, as long as they are told.
    void: BTreeSet<PlanHash>,
}

// === impl Approvals ===

impl Approvals {
    /// Whether nothing was approved.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.instead_of.is_none() && self.routes.is_empty()
    }
}

// === impl Guard ===

impl Guard {
    /// Takes in what the instance that acts tells, in place of what it told before.
    pub fn adopt(&mut self, told: Approvals, now: Uptime) {
        let words = &mut self.words;
        let mut theirs = told;
        words.void.retain(|route| theirs.routes.contains(route));
        theirs.routes.retain(|route| !words.void.contains(route));
        words.theirs = (theirs, now);
    }

    /// What was approved here, for the other instances.
    #[must_use]
    pub fn approvals(&self) -> Approvals {
        let Words { ours, given_up, .. } = &self.words;
        if ours.is_empty() && given_up.is_none() {
            return Approvals::default();
        }
        Approvals {
            kube_system: self.kube_system.clone(),
            instead_of: given_up.as_ref().map(|(cluster, _)| cluster.clone()),
            routes: ours.keys().copied().collect(),
        }
    }
}

// === impl Words ===

impl Words {
    /// Forgets what is too old, and what this table asks for again.
    pub(super) fn forget(&mut self, wanted: &RouteTable, now: Uptime) {
        self.ours.retain(|_, at| is_good(*at, now));
        self.given_up.take_if(|(_, at)| !is_good(*at, now));
        if !is_good(self.theirs.1, now) {
            self.theirs = Default::default();
        }
        if self.ours.is_empty() && self.theirs.0.routes.is_empty() {
            return;
        }
        for route in plans(wanted) {
            let ours = self.ours.remove(&route).is_some();
            if self.theirs.0.routes.remove(&route) || ours {
                self.void.insert(route);
            }
        }
    }

    /// Notes that the removal of a route was approved here and went through.
    pub(super) fn note(&mut self, name: &Name, service: &ServiceKey, now: Uptime) {
        self.ours.insert(PlanHash::of_one(name, service), now);
    }

    /// Notes that a cluster's routes were given up for another's, by somebody's word. What was told before is used up.
    pub(super) fn note_given_up(&mut self, cluster: Option<String>, now: Uptime) {
        *self = Self {
            given_up: cluster.map(|cluster| (cluster, now)),
            ..Self::default()
        };
    }

    /// Whether another instance was told to let this route of this cluster go.
    pub(super) fn let_go(
        &self,
        kube_system: Option<&str>,
        name: &Name,
        service: &ServiceKey,
    ) -> bool {
        let (theirs, _) = &self.theirs;
        !theirs.routes.is_empty()
            && theirs.kube_system.as_deref() == kube_system
            && theirs.routes.contains(&PlanHash::of_one(name, service))
    }

    /// Whether another instance was told to give up the first cluster's routes for the other's.
    pub(super) fn give_up(&self, known: &str, seen: &str, now: Uptime) -> bool {
        let (theirs, at) = &self.theirs;
        let clusters = (theirs.instead_of.as_deref(), theirs.kube_system.as_deref());
        clusters == (Some(known), Some(seen)) && is_good(*at, now)
    }
}

fn is_good(at: Uptime, now: Uptime) -> bool {
    at + KEPT > now
}

/// The plan of each route's removal alone.
fn plans(table: &RouteTable) -> impl Iterator<Item = PlanHash> {
    let http = table.http.iter();
    let http = http.map(|(uri, route)| (Name::Http(uri.clone()), &route.service.key));
    let tcp = table.tcp.iter();
    let tcp = tcp.map(|(port, route)| (Name::Tcp(*port), &route.service.key));
    let named = http.chain(tcp);
    named.map(|(name, service)| PlanHash::of_one(&name, service))
}
