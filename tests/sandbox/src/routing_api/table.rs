//! The rows of `tcp_routes` and the events their changes make.
//!
//! Owns identity, modification tags and expiry. The trap of `host_tls_port` lives here: two of the
//! three dialects store a zero as NULL and then look for `= 0`, so a client that sends no
//! `backend_tls_port`, or 0, inserts a further row with each refresh and deletes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::Instant;

use super::wire::{ModificationTag, TcpRoute};
use super::{Dialect, RouterGroup};
use crate::uaa::random_guid;

/// A subscriber further behind than this is cut off (routing-api's own event buffer).
pub(super) const EVENTS_BEHIND_MAX: usize = 1024;
/// The pruner leaves a row alone until it has been expired for this long.
const EXPIRED_FOR: Duration = Duration::from_secs(1);

/// Several rows under one identity; the word's case changed with the versions.
const DUPLICATE: &str = "Have duplicate tcp route mappings";
const DUPLICATE_2026_08: &str = "have duplicate tcp route mappings";

#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) name: &'static str,
    pub(super) route: TcpRoute,
}

pub(super) struct Table {
    pub(super) dialect: Dialect,
    pub(super) groups: Vec<RouterGroup>,
    pub(super) ttl_max: i64,
    rows: BTreeMap<u64, Row>,
    /// Row numbers by identity: a batch of thousands must not scan the table for each mapping.
    identities: BTreeMap<Identity, Vec<u64>>,
    inserted: u64,
    events: broadcast::Sender<Event>,
}

struct Row {
    route: TcpRoute,
    expires_at: Instant,
    /// As the column holds it; `None` is NULL.
    tls_port: Option<i64>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Identity {
    group: String,
    port: u16,
    ip: String,
    backend_port: u16,
    tls_port: Option<i64>,
    sni: Option<String>,
}

// === impl Table ===

impl Table {
    pub(super) fn new(dialect: Dialect, groups: Vec<RouterGroup>, ttl_max: i64) -> Self {
        Self {
            dialect,
            groups,
            ttl_max,
            rows: BTreeMap::new(),
            identities: BTreeMap::new(),
            inserted: 0,
            events: broadcast::channel(EVENTS_BEHIND_MAX).0,
        }
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// What a list shows: nothing expired, in the order of insertion.
    pub(super) fn live(&self) -> Vec<TcpRoute> {
        let now = Instant::now();
        let live = self.rows.values().filter(|row| row.expires_at > now);
        live.map(|row| row.route.clone()).collect()
    }

    pub(super) fn save(&mut self, route: TcpRoute) -> Result<(), &'static str> {
        let found = self.find(&route)?;
        let ttl = route.ttl.unwrap_or(self.ttl_max);
        let expires_at = Instant::now() + Duration::from_secs(ttl.unsigned_abs());
        let Some(row) = found.and_then(|number| self.rows.get_mut(&number)) else {
            self.insert(TcpRoute {
                ttl: Some(ttl),
                modification_tag: ModificationTag {
                    guid: random_guid(),
                    index: 0,
                },
                ..route
            });
            return Ok(());
        };
        row.expires_at = expires_at;
        row.route.ttl = Some(ttl);
        row.route.isolation_segment = route.isolation_segment;
        row.route.modification_tag.index += 1;
        let route = row.route.clone();
        self.tell("Upsert", route);
        Ok(())
    }

    /// A row that is not there is no error.
    pub(super) fn delete(&mut self, route: &TcpRoute) -> Result<(), &'static str> {
        if let Some(number) = self.find(route)? {
            self.remove(number);
        }
        Ok(())
    }

    /// Stores the row as it is, whatever else is there.
    pub(super) fn insert(&mut self, route: TcpRoute) {
        let ttl = route.ttl.unwrap_or(self.ttl_max).unsigned_abs();
        let tls_port = match self.dialect {
            Dialect::Fixed2026_03 => Some(route.backend_tls_port),
            Dialect::Release2024 | Dialect::Head2026_08 => {
                Some(route.backend_tls_port).filter(|port| *port != 0)
            }
        };
        self.inserted += 1;
        let numbers = self
            .identities
            .entry(identity(&route, tls_port))
            .or_default();
        numbers.push(self.inserted);
        let row = Row {
            route: route.clone(),
            expires_at: Instant::now() + Duration::from_secs(ttl),
            tls_port,
        };
        self.rows.insert(self.inserted, row);
        self.tell("Upsert", route);
    }

    pub(super) fn delete_where(&mut self, mut matches: impl FnMut(&TcpRoute) -> bool) -> usize {
        let doomed = self.rows.iter().filter(|(_, row)| matches(&row.route));
        let doomed: Vec<u64> = doomed.map(|(number, _)| *number).collect();
        for number in &doomed {
            self.remove(*number);
        }
        doomed.len()
    }

    pub(super) fn prune(&mut self) {
        let now = Instant::now();
        let doomed = self.rows.iter();
        let doomed = doomed.filter(|(_, row)| row.expires_at + EXPIRED_FOR < now);
        let doomed: Vec<u64> = doomed.map(|(number, _)| *number).collect();
        for number in doomed {
            self.remove(number);
        }
    }

    /// The row a mapping stands for, by the dialect's own lookup.
    fn find(&self, route: &TcpRoute) -> Result<Option<u64>, &'static str> {
        let mut numbers = Vec::new();
        let mut look = |tls_port| {
            let found = self.identities.get(&identity(route, tls_port));
            numbers.extend(found.into_iter().flatten().copied());
        };
        look(Some(route.backend_tls_port));
        // Rows an older version left with NULL count as zero once the column's default is repaired.
        if self.dialect == Dialect::Fixed2026_03 && route.backend_tls_port == 0 {
            look(None);
        }
        match numbers[..] {
            [] => Ok(None),
            [number] => Ok(Some(number)),
            _ if self.dialect == Dialect::Head2026_08 => Err(DUPLICATE_2026_08),
            _ => Err(DUPLICATE),
        }
    }

    fn remove(&mut self, number: u64) {
        let Some(row) = self.rows.remove(&number) else {
            return;
        };
        let identity = identity(&row.route, row.tls_port);
        if let Some(numbers) = self.identities.get_mut(&identity) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.identities.remove(&identity);
            }
        }
        self.tell("Delete", row.route);
    }

    fn tell(&self, name: &'static str, route: TcpRoute) {
        // No subscriber is no error.
        let _ = self.events.send(Event { name, route });
    }
}

fn identity(route: &TcpRoute, tls_port: Option<i64>) -> Identity {
    Identity {
        group: route.router_group_guid.clone(),
        port: route.port,
        ip: route.backend_ip.clone(),
        backend_port: route.backend_port,
        tls_port,
        sni: route.backend_sni_hostname.clone(),
    }
}
