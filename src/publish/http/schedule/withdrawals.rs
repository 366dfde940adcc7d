//! What must no longer lead anywhere, and how often that has been said.
//!
//! An unregister can be lost anywhere on its way without an error, so it is repeated: for plain endpoints until
//! gorouter's own pruning (120 s) has taken over, for TLS endpoints, which gorouter never prunes, for ten minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Band;
use crate::Uptime;
use crate::route::Uri;

/// Seconds after the first sending, for plain endpoints.
const PLAIN_REPEATS_SECS: [u64; 7] = [0, 1, 5, 15, 30, 60, 120];
/// TLS endpoints start like plain ones …
const TLS_QUICK_REPEATS: usize = 4;
/// … and go on every 30 s …
const TLS_EACH_SECS: u64 = 30;
/// … for ten minutes, as Diego's route-emitter does.
const TLS_LAST_SECS: u64 = 600;
/// Two repetitions that a slow connection delayed keep at least this apart.
const APART: Duration = Duration::from_millis(500);
/// Keys remembered at most, far above any cluster (2,768 node ports on 100 nodes). What exceeds it is left to
/// gorouter's pruning.
const KEYS_MAX: usize = 500_000;

type Key = (Arc<Uri>, SocketAddr);

#[derive(Default)]
pub(super) struct Withdrawals {
    keys: BTreeMap<Key, Withdrawal>,
    timers: BTreeSet<(Uptime, Key)>,
    unsent: BTreeSet<Key>,
    /// Counts up whenever a key comes or goes.
    revision: u64,
}

struct Withdrawal {
    tls: bool,
    first_sent: Option<Uptime>,
    sendings: usize,
    due: Uptime,
    queued: Option<Band>,
    /// An endpoint that stays was announced since this one waits.
    bridged: bool,
}

// === impl Withdrawals ===

impl Withdrawals {
    pub(super) fn add(&mut self, uri: &Arc<Uri>, addr: SocketAddr, tls: bool, now: Uptime) {
        if self.keys.len() >= KEYS_MAX {
            return;
        }
        let withdrawal = Withdrawal {
            tls,
            first_sent: None,
            sendings: 0,
            due: now,
            queued: None,
            bridged: false,
        };
        self.keys.insert((uri.clone(), addr), withdrawal);
        self.revision += 1;
        self.unsent.insert((uri.clone(), addr));
    }

    /// Forgets a key that is wanted again; tells where it waited, if it did.
    pub(super) fn cancel(&mut self, uri: &Arc<Uri>, addr: SocketAddr) -> Option<Band> {
        let key = (uri.clone(), addr);
        let withdrawal = self.keys.remove(&key)?;
        self.revision += 1;
        self.unsent.remove(&key);
        self.timers.remove(&(withdrawal.due, key));
        withdrawal.queued
    }

    /// Notes that a key was sent. True if that was the last time.
    pub(super) fn sent(&mut self, uri: &Arc<Uri>, addr: SocketAddr, now: Uptime) -> bool {
        let key = (uri.clone(), addr);
        self.unsent.remove(&key);
        let Some(withdrawal) = self.keys.get_mut(&key) else {
            return false;
        };
        (withdrawal.queued, withdrawal.bridged) = (None, false);
        if now < withdrawal.due {
            // Sent out of turn, for a router that started; the timer still stands.
            return false;
        }
        self.timers.remove(&(withdrawal.due, key.clone()));
        let first = *withdrawal.first_sent.get_or_insert(now);
        withdrawal.sendings += 1;
        let Some(offset) = repeat_offset(withdrawal.sendings, withdrawal.tls) else {
            self.keys.remove(&key);
            self.revision += 1;
            return true;
        };
        withdrawal.due = (first + offset).max(now + APART);
        self.timers.insert((withdrawal.due, key));
        false
    }

    /// After a lost connection nothing is known to have arrived.
    pub(super) fn start_over(&mut self, now: Uptime) {
        self.timers.clear();
        for (key, withdrawal) in &mut self.keys {
            *withdrawal = Withdrawal {
                tls: withdrawal.tls,
                first_sent: None,
                sendings: 0,
                due: now,
                queued: None,
                bridged: false,
            };
            self.unsent.insert(key.clone());
        }
    }

    /// Forgets keys that wait for nothing, were never sent, and have been due since before then; their uris. Not those
    /// of TLS endpoints: no router prunes them by age, and whoever withdrew them first may not have reached every one.
    pub(super) fn forget_unsent(&mut self, before: Uptime) -> BTreeSet<Arc<Uri>> {
        let old = |key: &&Key| {
            let known = self.keys.get(*key);
            known.is_some_and(|w| !w.tls && w.due < before)
        };
        let old: Vec<_> = self.unsent.iter().filter(old).cloned().collect();
        for key in &old {
            self.unsent.remove(key);
            self.keys.remove(key);
            self.revision += 1;
        }
        old.into_iter().map(|(uri, _)| uri).collect()
    }

    /// Notes where a key waits now; tells where it waited before.
    pub(super) fn queued(&mut self, uri: &Arc<Uri>, addr: SocketAddr, band: Band) -> Option<Band> {
        let key = (uri.clone(), addr);
        self.unsent.remove(&key);
        self.keys.get_mut(&key)?.queued.replace(band)
    }

    /// An endpoint of a uri that stays was announced: all that waits of it may go.
    pub(super) fn bridge(&mut self, uri: &Arc<Uri>) {
        for withdrawal in self.waiting(uri).map(|(_, withdrawal)| withdrawal) {
            withdrawal.bridged = true;
        }
    }

    /// How often a key was sent, if nothing was announced for its sake since it waits.
    pub(super) fn unbridged(&self, uri: &Arc<Uri>, addr: SocketAddr) -> Option<usize> {
        let withdrawal = self.keys.get(&(uri.clone(), addr))?;
        (!withdrawal.bridged).then_some(withdrawal.sendings)
    }

    /// Lets what waits of a uri wait for another time; where each waited.
    pub(super) fn put_off(&mut self, uri: &Arc<Uri>, until: Uptime) -> Vec<(SocketAddr, Band)> {
        let mut off = Vec::new();
        let mut timers = std::mem::take(&mut self.timers);
        for (key, withdrawal) in self.waiting(uri) {
            timers.remove(&(withdrawal.due, key.clone()));
            timers.insert((until, key.clone()));
            off.extend(withdrawal.queued.take().map(|band| (key.1, band)));
            (withdrawal.due, withdrawal.bridged) = (until, false);
        }
        self.timers = timers;
        off
    }

    fn waiting(&mut self, uri: &Arc<Uri>) -> impl Iterator<Item = (&Key, &mut Withdrawal)> {
        let all = self
            .keys
            .range_mut((uri.clone(), super::MessageKey::FIRST.addr)..);
        let of_uri = all.take_while({
            let uri = uri.clone();
            move |((other, _), _)| *other == uri
        });
        of_uri.filter(|(_, withdrawal)| withdrawal.queued.is_some())
    }

    /// The keys whose repetition is due and that do not wait already. Each is told once.
    pub(super) fn take_due(&mut self, now: Uptime) -> Vec<Key> {
        let mut due = Vec::new();
        while let Some((at, key)) = self.timers.pop_first() {
            if at > now {
                self.timers.insert((at, key));
                break;
            }
            if self.keys.get(&key).is_some_and(|w| w.queued.is_none()) {
                due.push(key);
            }
        }
        due
    }

    /// When the next repetition is due.
    pub(super) fn next_due(&self) -> Option<Uptime> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Keys that wait for nothing yet.
    pub(super) fn unsent(&self) -> Vec<Key> {
        self.unsent.iter().cloned().collect()
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        self.keys.keys().cloned().collect()
    }

    pub(super) fn uris(&self) -> impl Iterator<Item = &Arc<Uri>> {
        self.keys.keys().map(|(uri, _)| uri)
    }

    /// The endpoints from which a uri is being withdrawn.
    pub(super) fn of(&self, uri: &Arc<Uri>) -> impl Iterator<Item = SocketAddr> {
        self.keys
            .range((uri.clone(), super::MessageKey::FIRST.addr)..)
            .take_while({
                let uri = uri.clone();
                move |((other, _), _)| *other == uri
            })
            .map(|((_, addr), _)| *addr)
    }

    /// Every key, in order, and whether it is TLS.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<Uri>, SocketAddr, bool)> {
        let keys = self.keys.iter();
        keys.map(|((uri, addr), withdrawal)| (uri, *addr, withdrawal.tls))
    }

    /// The uris of keys that were sent less often than this.
    pub(super) fn sent_less_than(&self, sendings: usize) -> impl Iterator<Item = &Arc<Uri>> {
        let keys = self.keys.iter();
        keys.filter(move |(_, withdrawal)| withdrawal.sendings < sendings)
            .map(|((uri, _), _)| uri)
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The keys of TLS endpoints.
    pub(super) fn tls_keys(&self) -> impl Iterator<Item = (&Arc<Uri>, SocketAddr)> {
        let tls = self.keys.iter().filter(|(_, withdrawal)| withdrawal.tls);
        tls.map(|((uri, addr), _)| (uri, *addr))
    }

    pub(super) fn holds(&self, uri: &Arc<Uri>, addr: SocketAddr) -> bool {
        self.keys.contains_key(&(uri.clone(), addr))
    }

    pub(super) fn is_tls(&self, uri: &Arc<Uri>, addr: SocketAddr) -> bool {
        self.keys
            .get(&(uri.clone(), addr))
            .is_some_and(|withdrawal| withdrawal.tls)
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}

/// How long after the first sending the next one goes, after so many.
fn repeat_offset(sendings: usize, tls: bool) -> Option<Duration> {
    let seconds = if tls && sendings >= TLS_QUICK_REPEATS {
        let step = (sendings - TLS_QUICK_REPEATS + 1) as u64;
        Some(step * TLS_EACH_SECS).filter(|seconds| *seconds <= TLS_LAST_SECS)
    } else {
        PLAIN_REPEATS_SECS.get(sendings).copied()
    };
    seconds.map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_endpoints_are_withdrawn_seven_times_and_tls_ones_for_ten_minutes() {
        let all = |tls| {
            (0..)
                .map_while(|n| repeat_offset(n, tls))
                .map(|offset| offset.as_secs())
                .collect::<Vec<_>>()
        };
        assert_eq!(all(false), [0, 1, 5, 15, 30, 60, 120]);
        let tls = all(true);
        assert_eq!(tls[..6], [0, 1, 5, 15, 30, 60]);
        assert_eq!((tls.len(), tls.last()), (24, Some(&600)));
    }

    #[test]
    fn only_what_routers_prune_by_themselves_is_forgotten_unsent() {
        let mut withdrawals = Withdrawals::default();
        let uri = |host| Arc::new(Uri::parse(host).unwrap());
        let addr = SocketAddr::from(([10, 0, 0, 1], 30001));
        let (plain, tls) = (uri("plain.test"), uri("tls.test"));
        withdrawals.add(&plain, addr, false, Uptime::ZERO);
        withdrawals.add(&tls, addr, true, Uptime::ZERO);
        let forgotten = withdrawals.forget_unsent(Duration::from_hours(1));
        assert_eq!(forgotten, BTreeSet::from([plain]));
        assert!(withdrawals.holds(&tls, addr));
        assert_eq!(withdrawals.unsent(), [(tls, addr)]);
    }
}
