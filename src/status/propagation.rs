//! How long a new route takes: from the view of the cluster that first held it, to its first message or request,
//! to the other side's word that it stands.
//!
//! Whoever derives tables notes what is new, the lanes note what they sent and what lives. Only routes that are
//! new while the process runs are measured: what stood at its start had no beginning that anybody saw, and a
//! route that is held waits for people.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use super::RouteState;
use crate::Uptime;
use crate::desired::Desired;
use crate::route::Lane;

/// Upper bounds in seconds. A single change takes milliseconds; a cold start of bulk goes at 8 TCP rows a second,
/// and 120 s is the life of a route that nobody repeats.
pub const BOUNDS: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
];

/// How far a route has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Its first registration left.
    Sent,
    /// The other side has it.
    Confirmed,
}

/// What was measured so far, and what is on its way.
#[derive(Debug, Default)]
pub struct Propagation(Mutex<Inner>);

/// One histogram.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// How many fell below each of [`BOUNDS`] and above the one before; the last is for whatever took longer.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// All of them together, in seconds.
    pub sum: f64,
}

#[derive(Debug, Default)]
struct Inner {
    /// At most one for each route of the table.
    pending: BTreeMap<Lane, BTreeMap<String, Pending>>,
    done: BTreeMap<(Lane, Stage), Histogram>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    seen: Uptime,
    sent: bool,
}

// === impl Propagation ===

impl Propagation {
    /// A table takes another's place: what is new in it was seen at that moment.
    pub fn seen(&self, old: Option<&Desired>, new: &Desired, at: Uptime) {
        let Some(old) = old else { return };
        let mut inner = self.lock();
        let (was, is) = (&old.table.http, &new.table.http);
        inner.turn(
            Lane::Http,
            is.keys().filter(|uri| !was.contains_key(*uri)),
            was.keys().filter(|uri| !is.contains_key(*uri)),
            at,
        );
        let (was, is) = (&old.table.tcp, &new.table.tcp);
        inner.turn(
            Lane::Tcp,
            is.keys().filter(|port| !was.contains_key(*port)),
            was.keys().filter(|port| !is.contains_key(*port)),
            at,
        );
    }

    /// What another instance told first is not measured here.
    pub fn forget(&self, lane: Lane) {
        self.lock().pending.remove(&lane);
    }

    /// Something of these routes went out.
    pub fn sent<T: ToString>(&self, lane: Lane, names: impl IntoIterator<Item = T>, now: Uptime) {
        let mut inner = self.lock();
        if inner.waits(lane) {
            for name in names {
                inner.sent(lane, &name.to_string(), now);
            }
        }
    }

    /// These routes are now in these states.
    pub fn reported<T: ToString>(
        &self,
        lane: Lane,
        routes: impl IntoIterator<Item = (T, RouteState)>,
        now: Uptime,
    ) {
        let mut inner = self.lock();
        if inner.waits(lane) {
            for (name, state) in routes {
                inner.reported(lane, &name.to_string(), state, now);
            }
        }
    }

    /// What was measured, for every lane given and both stages.
    pub fn measured(&self, lanes: &BTreeSet<Lane>) -> Vec<(Lane, Stage, Histogram)> {
        let inner = self.lock();
        let stages = [Stage::Sent, Stage::Confirmed];
        let each = lanes
            .iter()
            .flat_map(|lane| stages.map(|stage| (*lane, stage)));
        each.map(|key| {
            (
                key.0,
                key.1,
                inner.done.get(&key).cloned().unwrap_or_default(),
            )
        })
        .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A std mutex, because no await is held; whoever panicked under it left it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl Inner {
    fn turn<'a, T: ToString + 'a>(
        &mut self,
        lane: Lane,
        new: impl Iterator<Item = &'a T>,
        gone: impl Iterator<Item = &'a T>,
        seen: Uptime,
    ) {
        let pending = self.pending.entry(lane).or_default();
        for name in gone {
            pending.remove(&name.to_string());
        }
        let begun = Pending { seen, sent: false };
        pending.extend(new.map(|name| (name.to_string(), begun)));
    }

    fn waits(&self, lane: Lane) -> bool {
        self.pending.get(&lane).is_some_and(|it| !it.is_empty())
    }

    fn sent(&mut self, lane: Lane, name: &str, now: Uptime) {
        let pending = self.pending.get_mut(&lane).and_then(|it| it.get_mut(name));
        if let Some(pending) = pending.filter(|pending| !pending.sent) {
            pending.sent = true;
            let took = now.saturating_sub(pending.seen).as_secs_f64();
            self.done.entry((lane, Stage::Sent)).or_default().add(took);
        }
    }

    fn reported(&mut self, lane: Lane, name: &str, state: RouteState, now: Uptime) {
        if state == RouteState::Pending {
            return;
        }
        let pending = self.pending.get_mut(&lane).and_then(|it| it.remove(name));
        // What lived already, as a row that the last process wrote, was sent by nobody.
        if let Some(pending) = pending.filter(|it| it.sent && state == RouteState::Live) {
            let took = now.saturating_sub(pending.seen).as_secs_f64();
            let done = self.done.entry((lane, Stage::Confirmed)).or_default();
            done.add(took);
        }
    }
}

// === impl Histogram ===

impl Histogram {
    fn add(&mut self, seconds: f64) {
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound);
        self.buckets[bucket.unwrap_or(BOUNDS.len())] += 1;
        self.sum += seconds;
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

// === impl Stage ===

impl Stage {
    /// As the label has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Confirmed => "confirmed",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NAME: &str = "2222";

    const fn at(millis: u64) -> Uptime {
        Duration::from_millis(millis)
    }

    fn begun(names: &[&'static str]) -> Propagation {
        let propagation = Propagation::default();
        let none: [&&str; 0] = [];
        let new = names.iter();
        propagation
            .lock()
            .turn(Lane::Tcp, new, none.into_iter(), at(1000));
        propagation
    }

    fn counts(propagation: &Propagation) -> [u64; 2] {
        let measured = propagation.measured(&BTreeSet::from([Lane::Tcp]));
        [measured[0].2.count(), measured[1].2.count()]
    }

    #[test]
    fn each_stage_is_measured_once_from_the_view_that_held_the_route() {
        let propagation = begun(&[NAME]);
        propagation.reported(Lane::Tcp, [(NAME, RouteState::Pending)], at(1001));
        propagation.sent(Lane::Tcp, [NAME], at(1005));
        propagation.sent(Lane::Tcp, [NAME], at(1400));
        propagation.reported(Lane::Tcp, [(NAME, RouteState::Live)], at(1500));
        propagation.reported(Lane::Tcp, [(NAME, RouteState::Live)], at(9000));
        assert_eq!(counts(&propagation), [1, 1]);
        let measured = propagation.measured(&BTreeSet::from([Lane::Tcp]));
        assert_eq!(measured[0].2.buckets[0], 1, "5 ms");
        assert!((measured[1].2.sum - 0.5).abs() < 1e-9);
    }

    #[test]
    fn what_is_held_gone_or_was_live_before_counts_for_nothing() {
        let propagation = begun(&["1", "2", "3"]);
        propagation.reported(Lane::Tcp, [("1", RouteState::Held)], at(1001));
        propagation.reported(Lane::Tcp, [("2", RouteState::Live)], at(1001));
        let none: [&&str; 0] = [];
        propagation
            .lock()
            .turn(Lane::Tcp, none.into_iter(), ["3"].iter(), at(1002));
        propagation.sent(Lane::Tcp, ["1", "2", "3"], at(1003));
        assert_eq!(counts(&propagation), [0, 0]);
    }

    #[test]
    fn what_takes_longer_than_every_bound_is_counted_all_the_same() {
        let propagation = begun(&[NAME]);
        propagation.sent(Lane::Tcp, [NAME], at(1_000_000));
        let measured = propagation.measured(&BTreeSet::from([Lane::Tcp]));
        assert_eq!(measured[0].2.buckets[BOUNDS.len()], 1);
    }
}
