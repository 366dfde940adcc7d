//! Who gets a name because its holder says so.
//!
//! The annotation `hand-over-to: namespace/name` of the Service that holds a name gives it to the one it names,
//! as soon as that one asks for it, may have it, and has a ready pod as far as that can be seen. Level, not edge:
//! as long as the annotation stands, so does the word of it, and whoever is named keeps the name by holding it.
//!
//! | the Service named                             | the name goes | finding on the holder  |
//! |-----------------------------------------------|---------------|------------------------|
//! | carries no label of ours, or is not there     | no            | `hand-over-unknown`    |
//! | does not ask for the name                     | no            | `hand-over-unclaimed`  |
//! | may not have it: policy, or a host with paths | no            | `hand-over-denied`     |
//! | that stay in the holder's namespace           |               |                        |
//! | hands it over in turn, and so on in a circle  | no            | `hand-over-cycle`      |
//! | has no ready pod                              | not yet       | `hand-over-waits`      |
//! | anything else                                 | yes           |                        |
//!
//! Who is named may name another; then the name goes as far as it can.

use std::collections::{BTreeMap, BTreeSet};

use super::conflicts::Claimant;
use super::{Code, Finding, listed};
use crate::kubernetes::snapshot::Endpoints;
use crate::route::{ServiceKey, Uri};

/// What Services say of who shall have their names.
pub(super) struct HandOvers<'a> {
    /// Each Service that names another.
    to: BTreeMap<&'a ServiceKey, &'a ServiceKey>,
    /// Every Service that is named or names one; nobody else is looked up.
    involved: BTreeMap<&'a ServiceKey, &'a Claimant<'a>>,
    endpoints: Option<&'a BTreeMap<ServiceKey, Endpoints>>,
    /// Why a name stayed: by holder, then by what is wrong, the names and whom it is about.
    stayed: BTreeMap<(&'a ServiceKey, Code), Stayed<'a>>,
}

/// Names that stayed with their holder.
struct Stayed<'a> {
    to: &'a ServiceKey,
    names: BTreeSet<String>,
}

/// Where a name ends, beginning with a holder, and why it goes no further, if that one names another.
type End<'a> = (&'a Claimant<'a>, Option<Code>);

// === impl HandOvers ===

impl<'a> HandOvers<'a> {
    pub(super) fn of(
        claimants: &'a [Claimant<'a>],
        endpoints: Option<&'a BTreeMap<ServiceKey, Endpoints>>,
    ) -> Self {
        let wished = |claimant: &'a Claimant<'a>| {
            let to = claimant.wish.hand_over_to.as_ref()?;
            Some((claimant.key(), to))
        };
        let to: BTreeMap<_, _> = claimants.iter().filter_map(wished).collect();
        let named: BTreeSet<&ServiceKey> = to.values().copied().collect();
        let is_involved = |claimant: &&'a Claimant<'a>| {
            to.contains_key(claimant.key()) || named.contains(claimant.key())
        };
        let involved = claimants.iter().filter(|_| !to.is_empty());
        Self {
            involved: involved
                .filter(is_involved)
                .map(|claimant| (claimant.key(), claimant))
                .collect(),
            to,
            endpoints,
            stayed: BTreeMap::new(),
        }
    }

    /// Whether nobody says anything, as is most often so.
    pub(super) fn is_empty(&self) -> bool {
        self.to.is_empty()
    }

    /// Who has a name, given who holds it and who claims it and may have it.
    pub(super) fn settle(
        &mut self,
        name: impl FnOnce() -> String,
        holder: &'a Claimant<'a>,
        wishes: impl Fn(&Claimant<'a>) -> bool,
        may_have: impl Fn(&Claimant<'a>) -> bool,
    ) -> &'a Claimant<'a> {
        if !self.to.contains_key(holder.key()) {
            return holder;
        }
        let (end, why) = self.end(holder, wishes, may_have);
        if let Some(code) = why {
            self.stays(name(), end, code);
        }
        end
    }

    /// Whether all that the holders of a host's uris have goes to one other namespace; which one.
    ///
    /// A host with all its paths belongs to one namespace, so that it moves whole or not at all.
    pub(super) fn moves_to(
        &self,
        held: &[(&'a Uri, &'a Claimant<'a>)],
        claims: impl Fn(&Uri, &Claimant<'a>) -> bool,
    ) -> Option<&'a str> {
        let end = |(uri, holder): &(&'a Uri, &'a Claimant<'a>)| {
            let wishes = |heir: &Claimant<'a>| heir.wish.http.contains_key(*uri);
            let (end, _) = self.end(holder, wishes, |heir| claims(uri, heir));
            end.key().namespace.as_str()
        };
        let mut ends = held.iter().map(end);
        let first = ends.next()?;
        ends.all(|other| other == first).then_some(first)
    }

    /// Whether a Service lost a name to whom it gave it, directly or not.
    pub(super) fn gave(&self, from: &ServiceKey, to: &ServiceKey) -> bool {
        let mut seen = BTreeSet::new();
        let mut at = from;
        while let Some(next) = self.to.get(at) {
            if *next == to {
                return true;
            }
            if !seen.insert(*next) {
                return false;
            }
            at = next;
        }
        false
    }

    /// Tells each holder of the names that stayed with it.
    pub(super) fn tell(self, findings: &mut Vec<Finding>) {
        for ((holder, code), Stayed { to, names }) in self.stayed {
            let names = listed(names.iter().map(String::as_str));
            let (text, hint) = match code {
                Code::HandOverUnknown => (
                    format!("is to hand {names} over to `{to}`, which is no labelled Service"),
                    "give that Service the label, or take the annotation away",
                ),
                Code::HandOverUnclaimed => (
                    format!("is to hand {names} over to `{to}`, which does not ask for it"),
                    "let that Service ask for the same name",
                ),
                Code::HandOverDenied => (
                    format!("is to hand {names} over to `{to}`, which may not have it"),
                    "`policy` must grant it, and a host moves to another namespace with all its paths or not at all",
                ),
                Code::HandOverWaits => (
                    format!("hands {names} over to `{to}` once a pod of that Service is ready"),
                    "see to that Service's pods",
                ),
                _ => (
                    format!("is to hand {names} over to `{to}`, and so on in a circle"),
                    "take one of the annotations away",
                ),
            };
            findings.push(Finding::on_service(code, holder, text).hint(hint));
        }
    }

    fn end(
        &self,
        holder: &'a Claimant<'a>,
        wishes: impl Fn(&Claimant<'a>) -> bool,
        may_have: impl Fn(&Claimant<'a>) -> bool,
    ) -> End<'a> {
        let mut seen = BTreeSet::from([holder.key()]);
        let mut at = holder;
        while let Some(next) = self.to.get(at.key()) {
            if !seen.insert(*next) {
                return (holder, Some(Code::HandOverCycle));
            }
            let Some(heir) = self.involved.get(next).copied() else {
                return (at, Some(Code::HandOverUnknown));
            };
            if !wishes(heir) {
                return (at, Some(Code::HandOverUnclaimed));
            }
            if !may_have(heir) {
                return (at, Some(Code::HandOverDenied));
            }
            if !self.is_ready(next) {
                return (at, Some(Code::HandOverWaits));
            }
            at = heir;
        }
        (at, None)
    }

    /// What cannot be seen is no reason to wait.
    fn is_ready(&self, key: &ServiceKey) -> bool {
        let endpoints = self.endpoints.and_then(|all| all.get(key));
        endpoints.is_none_or(|endpoints| endpoints.any_ready)
    }

    fn stays(&mut self, name: String, holder: &'a Claimant<'a>, code: Code) {
        let Some(to) = self.to.get(holder.key()).copied() else {
            return;
        };
        let stayed = self.stayed.entry((holder.key(), code));
        let stayed = stayed.or_insert_with(|| Stayed {
            to,
            names: BTreeSet::new(),
        });
        stayed.names.insert(name);
    }
}
