//! The TCP router's own table: what it believes the routing API holds.
//!
//! Pure but for the clock it is handed. Router group and isolation segment are ignored. Weak spots
//! of the real one are kept: pruning changes no configuration, and a sync notices missing rows only
//! by the number of ports.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::balancer::{Config, Target};
use crate::routing_api::{ModificationTag, TcpRoute};

type Front = (u16, Option<String>);

#[derive(Default)]
pub(super) struct Table {
    fronts: BTreeMap<Front, BTreeMap<BackendKey, Backend>>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct BackendKey {
    target: Target,
    instance_id: String,
}

struct Backend {
    tag: ModificationTag,
    expires_at: Instant,
}

// === impl BackendKey ===

impl BackendKey {
    /// With a TLS port only where the router's `backend_tls` is on, which it is not here.
    fn is_written(&self) -> bool {
        is_host(&self.target.ip) && self.target.tls_port <= 0
    }
}

// === impl Table ===

impl Table {
    /// Whether a reload is needed: only for a backend not known before.
    pub(super) fn upsert(&mut self, route: &TcpRoute, ttl: Duration, now: Instant) -> bool {
        let ttl = match route.ttl.and_then(|secs| u64::try_from(secs).ok()) {
            Some(secs) if secs > 0 => Duration::from_secs(secs),
            _ => ttl,
        };
        let fresh = Backend {
            tag: route.modification_tag.clone(),
            expires_at: now + ttl,
        };
        let backends = self.fronts.entry(front(route)).or_default();
        match backends.get_mut(&backend(route)) {
            None => {
                backends.insert(backend(route), fresh);
                true
            }
            Some(known) => {
                if succeeds(&route.modification_tag, &known.tag) {
                    *known = fresh;
                }
                false
            }
        }
    }

    /// Whether a reload is needed: a delete of the known tag, or of one after it.
    pub(super) fn delete(&mut self, route: &TcpRoute) -> bool {
        let front = front(route);
        let Some(backends) = self.fronts.get_mut(&front) else {
            return false;
        };
        let tag = &route.modification_tag;
        let known = backends.get(&backend(route));
        if !known.is_some_and(|known| *tag == known.tag || succeeds(tag, &known.tag)) {
            return false;
        }
        backends.remove(&backend(route));
        if backends.is_empty() {
            self.fronts.remove(&front);
        }
        true
    }

    /// The list as the new table. Rows gone are noticed only when a whole port is.
    pub(super) fn replace(&mut self, routes: &[TcpRoute], ttl: Duration, now: Instant) -> bool {
        let mut next = Self::default();
        let mut added = false;
        for route in routes {
            next.upsert(route, ttl, now);
            let known = self.fronts.get(&front(route));
            added |= !known.is_some_and(|known| known.contains_key(&backend(route)));
        }
        let changed = added || next.fronts.len() != self.fronts.len();
        *self = next;
        changed
    }

    pub(super) fn prune(&mut self, now: Instant) {
        self.fronts.retain(|_, backends| {
            backends.retain(|_, backend| backend.expires_at > now);
            !backends.is_empty()
        });
    }

    /// What HAProxy is given. A literal IPv6 address does not pass for a host name and is left out.
    pub(super) fn config(&self) -> Config {
        let mut config = Config::new();
        for ((port, _), backends) in &self.fronts {
            let backends = backends.keys().filter(|backend| backend.is_written());
            let targets = backends.map(|backend| backend.target.clone());
            // Two instances behind one address and TLS port are one server line.
            for target in targets {
                let servers = config.entry(*port).or_default();
                if !servers.contains(&target) {
                    servers.push(target);
                }
            }
        }
        config
    }
}

fn front(route: &TcpRoute) -> Front {
    let sni = route.backend_sni_hostname.clone();
    (route.port, sni.filter(|sni| !sni.is_empty()))
}

fn backend(route: &TcpRoute) -> BackendKey {
    BackendKey {
        target: Target {
            ip: route.backend_ip.clone(),
            port: route.backend_port,
            tls_port: route.backend_tls_port,
        },
        instance_id: route.instance_id.clone(),
    }
}

fn succeeds(new: &ModificationTag, old: &ModificationTag) -> bool {
    new.guid != old.guid || new.index > old.index
}

fn is_host(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    !text.is_empty() && text.bytes().all(plain)
}
