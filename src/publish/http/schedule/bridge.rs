//! What keeps a host reachable while endpoints of it are withdrawn.
//!
//! Routers lose messages without a word. One that missed what replaced an endpoint, and then hears its withdrawal,
//! has nothing left to lead the host to before the next beat. So directly before endpoints of a host are withdrawn,
//! each time they are, one that stays is announced again: only who misses both is left without, and only until its
//! beat. One announcement covers all that waits of its hosts at that moment, so that there is never more than one for
//! each withdrawal; all are paced alike.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Band, Job, MessageKey, Schedule, What, address, job, withdrawal};
use crate::Uptime;
use crate::route::Uri;

// === impl Schedule ===

impl Schedule {
    /// Whether announcements are known to arrive nowhere: then nothing is withdrawn that they would make up for.
    pub fn set_unheard(&mut self, unheard: bool) {
        self.unheard = unheard;
    }

    /// What has to go before the withdrawal that is next, if something has to.
    pub(super) fn next_bridge(&mut self, now: Uptime) -> Option<Job> {
        loop {
            let What::Withdraw(addr, uri) = self.queue.first()?.what.clone() else {
                return None;
            };
            let key = self.bridge_of(&uri, addr)?;
            if self.unheard {
                self.queue.pop_first();
                self.put_off(&uri, now);
                continue;
            }
            let message = self.messages.get_mut(&key)?;
            let bridge = job(key, message, Band::First);
            if let Some(band) = message.queued.take() {
                self.queue.remove(&job(key, message, band));
            }
            for uri in &message.uris {
                self.withdrawals.bridge(uri);
            }
            self.bridge = Some((self.sent + 1, key));
            return Some(bridge);
        }
    }

    /// Whether a key may be withdrawn as things stand.
    pub(super) fn is_bridged(&self, uri: &Arc<Uri>, addr: SocketAddr) -> bool {
        self.bridge_of(uri, addr).is_none()
    }

    /// The message of a route's most preferred backend.
    pub(super) fn first_message(&self, uri: &Uri) -> Option<MessageKey> {
        self.message_of(uri, 0)
    }

    /// An announcement was not sent: what it was to make up for stays until the next attempt.
    pub(super) fn unbridge(&mut self, number: u64, now: Uptime) {
        let Some((_, key)) = self.bridge.take_if(|(sent, _)| *sent == number) else {
            return;
        };
        let message = self.messages.get(&key);
        let uris = message.map_or_else(Vec::new, |message| message.uris.to_vec());
        for uri in uris {
            self.put_off(&uri, now);
        }
    }

    /// Withdraws what waits of a host an interval later.
    fn put_off(&mut self, uri: &Arc<Uri>, now: Uptime) {
        let until = now + self.interval();
        for (addr, band) in self.withdrawals.put_off(uri, until) {
            self.queue.remove(&withdrawal(band, uri, addr));
        }
    }

    /// Each time another endpoint, as one may be dead; the first time the second, as the first has just been announced
    /// where it is new.
    fn bridge_of(&self, uri: &Arc<Uri>, addr: SocketAddr) -> Option<MessageKey> {
        let sendings = self.withdrawals.unbridged(uri, addr)?;
        self.message_of(uri, sendings + 1)
    }

    /// The message of one of a route's backends, counted round and round.
    fn message_of(&self, uri: &Uri, nth: usize) -> Option<MessageKey> {
        let route = self.wanted.as_ref()?.table.http.get(uri)?;
        let nth = nth % route.backends.len();
        let addr = address(route.backends.iter().nth(nth)?);
        let from = MessageKey { addr, part: 0 };
        self.messages
            .range(from..)
            .take_while(|(key, _)| key.addr == addr)
            .find(|(_, message)| message.uris.iter().any(|other| **other == *uri))
            .map(|(key, _)| *key)
    }
}
