//! The routing table: pools of endpoints by uri, as gorouter keeps and prunes them.
//!
//! Pure but for the clock it is handed. A uri's key is lower-case, without query and without one
//! trailing slash; paths match by the longest prefix of whole segments; an exact host beats `*.`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::message::Registration;

#[derive(Default)]
pub(super) struct Registry {
    pools: BTreeMap<String, Pool>,
}

struct Pool {
    endpoints: Vec<Entry>,
    next: usize,
    updated: Instant,
}

struct Entry {
    endpoint: Endpoint,
    updated: Instant,
    /// Set aside since then, after a refused connection.
    failed: Option<Instant>,
}

/// What a request needs to know of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: String,
    pub(super) tls: bool,
    /// `None` for a threshold below zero: stale at the next tick.
    stale_after: Option<Duration>,
    pub(super) registration: Registration,
}

/// How long things last; gorouter's configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetimes {
    pub(super) stale_threshold: Duration,
    pub(super) empty_pool_timeout: Duration,
}

pub(super) enum Lookup {
    UnknownRoute,
    NoEndpoints,
    Pool(String),
}

// === impl Registry ===

impl Registry {
    pub(super) fn register(&mut self, message: &Registration, lifetimes: Lifetimes, now: Instant) {
        let threshold = lifetimes.stale_threshold;
        let asked = message.stale_threshold_in_seconds;
        let stale_after = match u64::try_from(asked) {
            Err(_) => None,
            Ok(0) => Some(threshold),
            Ok(secs) => Some(threshold.min(Duration::from_secs(secs))),
        };
        let endpoint = Endpoint {
            address: message.address(),
            tls: message.tls_port != 0,
            stale_after,
            registration: message.clone(),
        };
        for uri in message.uris.iter().filter(|uri| !uri.is_empty()) {
            let pool = self.pools.entry(key(uri)).or_insert_with(|| Pool {
                endpoints: Vec::new(),
                next: 0,
                updated: now,
            });
            pool.updated = now;
            let mut entries = pool.endpoints.iter_mut();
            match entries.find(|entry| entry.endpoint.address == endpoint.address) {
                // Any difference replaces the endpoint, and with it its record of failures.
                Some(entry) => {
                    entry.updated = now;
                    if entry.endpoint != endpoint {
                        entry.endpoint = endpoint.clone();
                        entry.failed = None;
                    }
                }
                None => pool.endpoints.push(Entry {
                    endpoint: endpoint.clone(),
                    updated: now,
                    failed: None,
                }),
            }
        }
    }

    /// By uri and `host:port` alone: neither app, nor instance, nor age is compared.
    pub(super) fn unregister(
        &mut self,
        message: &Registration,
        lifetimes: Lifetimes,
        now: Instant,
    ) {
        let address = message.address();
        for uri in &message.uris {
            self.remove(&key(uri), &address, now);
            let empty = |pool: &Pool| pool.endpoints.is_empty();
            if lifetimes.empty_pool_timeout.is_zero()
                && self.pools.get(&key(uri)).is_some_and(empty)
            {
                self.pools.remove(&key(uri));
            }
        }
    }

    pub(super) fn remove(&mut self, pool: &str, address: &str, now: Instant) {
        if let Some(pool) = self.pools.get_mut(pool) {
            let before = pool.endpoints.len();
            pool.endpoints
                .retain(|entry| entry.endpoint.address != address);
            if pool.endpoints.len() < before {
                pool.updated = now;
            }
        }
    }

    /// TLS endpoints are never stale.
    pub(super) fn prune(&mut self, lifetimes: Lifetimes, now: Instant) {
        self.pools.retain(|_, pool| {
            pool.endpoints.retain(|entry| {
                let age = now.duration_since(entry.updated);
                let stale = entry.endpoint.stale_after.is_none_or(|after| age > after);
                entry.endpoint.tls || !stale
            });
            !pool.endpoints.is_empty()
                || now.duration_since(pool.updated) <= lifetimes.empty_pool_timeout
        });
    }

    /// As if everything had just been registered (after NATS was away).
    pub(super) fn freshen(&mut self, now: Instant) {
        for pool in self.pools.values_mut() {
            pool.updated = now;
            for entry in &mut pool.endpoints {
                entry.updated = now;
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.pools.clear();
    }

    /// Which pool answers a request: first the host itself, then its wildcards from near to far.
    pub(super) fn lookup(&self, host: &str, path: &str) -> Lookup {
        let mut uri = key(&format!("{host}{path}"));
        loop {
            match self.longest_prefix(&uri) {
                Lookup::UnknownRoute => {}
                found => return found,
            }
            let rest = uri.strip_prefix("*.").unwrap_or(&uri);
            match rest.find('.') {
                Some(dot) => uri = format!("*{}", &rest[dot..]),
                None => return Lookup::UnknownRoute,
            }
        }
    }

    /// An empty pool counts only when no shorter path has a pool that is not.
    fn longest_prefix(&self, uri: &str) -> Lookup {
        let mut empty = false;
        let mut prefix = uri;
        loop {
            match self.pools.get(prefix) {
                Some(pool) if !pool.endpoints.is_empty() => {
                    return Lookup::Pool(prefix.to_owned());
                }
                Some(_) => empty = true,
                None => {}
            }
            match prefix.rfind('/') {
                Some(slash) => prefix = &prefix[..slash],
                None if empty => return Lookup::NoEndpoints,
                None => return Lookup::UnknownRoute,
            }
        }
    }

    /// The next endpoint in turn, passing over those set aside unless all of them are.
    pub(super) fn next(&mut self, pool: &str, aside: Duration, now: Instant) -> Option<Endpoint> {
        let pool = self.pools.get_mut(pool)?;
        let count = pool.endpoints.len();
        for offset in 0..count {
            let at = (pool.next + offset) % count;
            let entry = &mut pool.endpoints[at];
            if entry
                .failed
                .is_some_and(|since| now.duration_since(since) >= aside)
            {
                entry.failed = None;
            }
            if entry.failed.is_none() {
                pool.next = (at + 1) % count;
                return Some(entry.endpoint.clone());
            }
        }
        for entry in &mut pool.endpoints {
            entry.failed = None;
        }
        let at = pool.next.checked_rem(count)?;
        pool.next = (at + 1) % count;
        Some(pool.endpoints[at].endpoint.clone())
    }

    pub(super) fn size(&self, pool: &str) -> usize {
        self.pools.get(pool).map_or(0, |pool| pool.endpoints.len())
    }

    pub(super) fn set_aside(&mut self, pool: &str, address: &str, now: Instant) {
        let pool = self.pools.get_mut(pool);
        let mut entries = pool.into_iter().flat_map(|pool| pool.endpoints.iter_mut());
        if let Some(entry) = entries.find(|entry| entry.endpoint.address == address) {
            entry.failed = Some(now);
        }
    }

    /// As `/routes` shows it.
    pub(super) fn to_json(&self) -> Value {
        let pools = self.pools.iter();
        let pools = pools.map(|(uri, pool)| {
            let entries = pool.endpoints.iter();
            (
                uri.clone(),
                entries.map(|entry| entry.endpoint.to_json()).collect(),
            )
        });
        Value::Object(pools.collect::<Map<_, _>>())
    }
}

// === impl Endpoint ===

impl Endpoint {
    fn to_json(&self) -> Value {
        let message = &self.registration;
        let protocol = match message.protocol.as_str() {
            "" => "http1",
            other => other,
        };
        let ttl = match self.stale_after {
            Some(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            None => message.stale_threshold_in_seconds,
        };
        let mut shown = json!({
            "address": self.address,
            "availability_zone": message.availability_zone,
            "protocol": protocol,
            "tls": self.tls,
            "ttl": ttl,
            "tags": message.tags,
        });
        for (name, value) in [
            ("route_service_url", &message.route_service_url),
            ("isolation_segment", &message.isolation_segment),
            ("private_instance_id", &message.private_instance_id),
            ("server_cert_domain_san", &message.server_cert_domain_san),
        ] {
            if !value.is_empty() {
                shown[name] = json!(value);
            }
        }
        shown
    }
}

/// The key of a uri. A `:port` stays, which is why such a registration never matches a request.
fn key(uri: &str) -> String {
    let uri = uri.split('?').next().unwrap_or_default();
    let uri = uri.strip_suffix('/').unwrap_or(uri);
    uri.strip_prefix('/').unwrap_or(uri).to_lowercase()
}
