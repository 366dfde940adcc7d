//! From one table to the next: which endpoints differ, and what that means for messages, withdrawals and routes.
//!
//! Touches only the endpoints of routes that differ, so that one label in a large cluster costs one comparison of
//! the tables and a handful of messages.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::{
    Band, Changes, Message, MessageKey, Route, Schedule, address, job, rank_of, withdrawal,
};
use crate::Uptime;
use crate::desired::Desired;
use crate::publish::http::fnv;
use crate::publish::http::wire::{self, Entry};
use crate::route::{Backend, HttpRoute, Uri};
use crate::status::RouteState;

/// What one table does to the endpoints.
#[derive(Default)]
struct Pass {
    /// Endpoints to look at, each with a uri that was or is to be there. One flat set: a cold start puts every
    /// endpoint of the cluster here.
    endpoints: BTreeSet<(SocketAddr, Arc<Uri>)>,
    /// Messages that are new or differ.
    fresh: Vec<MessageKey>,
    /// Uris that lose an endpoint.
    losing: BTreeSet<Arc<Uri>>,
}

// === impl Schedule ===

impl Schedule {
    /// Takes a new table: what is new goes out at once, what is gone is withdrawn after it.
    pub fn apply(&mut self, desired: &Arc<Desired>, now: Uptime) -> Changes {
        let before = self.wanted.replace(desired.clone());
        let renamed = self.identity.cluster != desired.cluster;
        self.identity.cluster.clone_from(&desired.cluster);
        let mut pass = Pass::default();
        let mut changes = Changes::default();
        let none = BTreeMap::new();
        let old = before.as_ref().map_or(&none, |before| &before.table.http);
        for (uri, old, new) in differences(old, &desired.table.http, renamed) {
            let uri = self.told(uri, old, new, now, &mut changes);
            for backend in old.into_iter().chain(new).flat_map(|r| r.backends.iter()) {
                pass.endpoints.insert((address(backend), uri.clone()));
            }
        }
        self.tls_revision += 1;
        let mut endpoints = std::mem::take(&mut pass.endpoints).into_iter().peekable();
        while let Some((addr, uri)) = endpoints.next() {
            let mut uris = BTreeSet::from([uri]);
            while let Some((_, uri)) = endpoints.next_if(|(other, _)| *other == addr) {
                uris.insert(uri);
            }
            self.rebuild(addr, uris, desired, now, &mut pass);
        }
        if self.connected {
            self.enqueue_pass(&pass);
        }
        for (uri, _) in &changes.removed {
            self.forget_if_gone(uri);
        }
        changes
    }

    /// Notes what one difference means for the route people see.
    fn told(
        &mut self,
        uri: &Uri,
        old: Option<&HttpRoute>,
        new: Option<&HttpRoute>,
        now: Uptime,
        changes: &mut Changes,
    ) -> Arc<Uri> {
        let known = self.routes.get_key_value(uri).map(|(uri, _)| uri.clone());
        let uri = known.unwrap_or_else(|| Arc::new(uri.clone()));
        let Some(new_route) = new.or(old) else {
            return uri;
        };
        let fresh = || Route {
            service: new_route.service.key.clone(),
            state: RouteState::Pending,
            since: now,
            announced: None,
        };
        let route = self.routes.entry(uri.clone()).or_insert_with(fresh);
        let starts_anew = match (old, new) {
            (Some(old), Some(new)) => {
                changes.changed.push(uri.clone());
                let kept = |b: &Backend| rank_of(old, address(b)).is_some();
                !new.backends.iter().any(kept)
            }
            (None, Some(_)) => {
                changes.added.push(uri.clone());
                true
            }
            (_, None) => {
                changes
                    .removed
                    .push((uri.clone(), new_route.service.key.clone()));
                (route.state, route.since) = (RouteState::Withdrawing, now);
                false
            }
        };
        route.service.clone_from(&new_route.service.key);
        if starts_anew {
            route.announced = None;
            if route.state != RouteState::Pending {
                (route.state, route.since) = (RouteState::Pending, now);
            }
        }
        self.touched.insert(uri.clone());
        uri
    }

    /// Renders one endpoint's messages anew and notes which of them, and which keys, changed.
    fn rebuild(
        &mut self,
        addr: SocketAddr,
        mut uris: BTreeSet<Arc<Uri>>,
        desired: &Desired,
        now: Uptime,
        pass: &mut Pass,
    ) {
        let old = self.take_messages(addr);
        let was: BTreeMap<Arc<Uri>, bool> = old
            .values()
            .flat_map(|message| message.uris.iter().map(|uri| (uri.clone(), message.tls)))
            .collect();
        uris.extend(was.keys().cloned());
        let mut entries = Vec::new();
        for uri in &uris {
            let route = desired.table.http.get::<Uri>(uri);
            let ranked = route.and_then(|route| Some((route, rank_of(route, addr)?)));
            let Some((route, rank)) = ranked else {
                continue;
            };
            let backend = route.backends.iter().nth(rank.into());
            entries.extend(backend.map(|backend| {
                let entry = Entry {
                    uri,
                    route,
                    backend,
                };
                (rank, entry)
            }));
        }
        let ranks: BTreeMap<&Uri, u16> = entries.iter().map(|(r, e)| (&**e.uri, *r)).collect();
        let entries: Vec<_> = entries.iter().map(|(_, entry)| *entry).collect();
        for (part, new) in (0..).zip(wire::registrations(&self.identity, &entries)) {
            let key = MessageKey { addr, part };
            let rank = new.uris.iter().map(|uri| ranks[&**uri]).min();
            let fingerprint = fnv(&new.payload);
            let same = old.get(&key).filter(|old| old.fingerprint == fingerprint);
            let message = Message {
                rank: rank.expect("a message must carry a uri"),
                queued: same.and_then(|old| old.queued),
                fingerprint,
                uris: new.uris,
                tls: new.tls,
            };
            // A message still waiting from before moves with its rank, and before withdrawals of its uris.
            if same.is_none() || message.queued.is_some_and(|band| band < Band::Beat) {
                pass.fresh.push(key);
            } else if message.queued.is_some() {
                self.queue.insert(job(key, &message, Band::Beat));
            }
            self.messages.insert(key, message);
            self.beats.insert(self.beat_of(key));
        }
        let wanted: BTreeSet<&Uri> = ranks.into_keys().collect();
        for uri in &uris {
            if wanted.contains(&**uri) {
                self.cancel_withdrawal(uri, addr);
            } else if let Some(tls) = was.get(uri) {
                self.withdrawals.add(uri, addr, *tls, now);
                pass.losing.insert(uri.clone());
                self.touched.insert(uri.clone());
            }
        }
    }

    /// Takes one endpoint's messages out of every index.
    fn take_messages(&mut self, addr: SocketAddr) -> BTreeMap<MessageKey, Message> {
        let all = MessageKey { addr, part: 0 }..=MessageKey {
            addr,
            part: u16::MAX,
        };
        let keys: Vec<_> = self.messages.range(all).map(|(key, _)| *key).collect();
        let mut taken = BTreeMap::new();
        for key in keys {
            let message = self.messages.remove(&key).expect("its key must be there");
            if let Some(band) = message.queued {
                self.queue.remove(&job(key, &message, band));
            }
            self.beats.remove(&self.beat_of(key));
            taken.insert(key, message);
        }
        taken
    }

    fn enqueue_pass(&mut self, pass: &Pass) {
        for key in &pass.fresh {
            let message = &self.messages[key];
            let replaces = message.uris.iter().any(|uri| pass.losing.contains(uri));
            let band = if message.rank == 0 || replaces {
                Band::First
            } else {
                Band::Change
            };
            self.enqueue(*key, band);
        }
        self.enqueue_withdrawals();
    }

    pub(super) fn enqueue_withdrawals(&mut self) {
        for (uri, addr) in self.withdrawals.unsent() {
            self.queue.insert(withdrawal(Band::Withdrawal, &uri, addr));
            self.withdrawals.queued(&uri, addr, Band::Withdrawal);
        }
    }
}

/// Every uri whose route differs between two tables, in order; every uri of either if `all`.
fn differences<'a>(
    old: &'a BTreeMap<Uri, HttpRoute>,
    new: &'a BTreeMap<Uri, HttpRoute>,
    all: bool,
) -> Vec<(&'a Uri, Option<&'a HttpRoute>, Option<&'a HttpRoute>)> {
    let mut found = Vec::new();
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => return found,
        };
        let before = if order.is_le() { old.next() } else { None };
        let after = if order.is_ge() { new.next() } else { None };
        let uri = before.or(after).map(|(uri, _)| uri);
        let (before, after) = (before.map(|(_, r)| r), after.map(|(_, r)| r));
        if let Some(uri) = uri.filter(|_| all || before != after) {
            found.push((uri, before, after));
        }
    }
}
