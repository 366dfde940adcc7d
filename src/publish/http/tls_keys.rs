//! TLS backends by what gorouter keys them by, and which of a table's may be announced.
//!
//! gorouter never prunes a TLS backend by age: what was announced once stays until it is withdrawn. So no such key
//! is announced before it is on record. Pure; the record itself is the journal's affair.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::desired::Desired;
use crate::route::{Backend, Backends, HttpRoute, ServiceKey, Uri};

/// Keys of TLS backends: each uri with the endpoints it has, never none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsKeys(BTreeMap<Arc<Uri>, BTreeSet<SocketAddr>>);

/// A route of which not every backend may be announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Where it comes from.
    pub(super) service: ServiceKey,
    /// What is not announced; never empty.
    pub(super) backends: Vec<SocketAddr>,
    /// How many backends it has.
    pub(super) of: usize,
}

/// A table without what must not be announced yet.
pub(super) struct Announceable {
    pub(super) table: Arc<Desired>,
    pub(super) held: BTreeMap<Uri, Held>,
}

// === impl TlsKeys ===

impl TlsKeys {
    /// What a table wants.
    pub(super) fn wanted(desired: &Desired) -> Self {
        let mut keys = Self::default();
        for (uri, route) in tls_routes(desired) {
            let uri = Arc::new(uri.clone());
            for backend in route.backends.iter() {
                keys.insert(&uri, address(backend));
            }
        }
        keys
    }

    pub(super) fn insert(&mut self, uri: &Arc<Uri>, addr: SocketAddr) {
        self.0.entry(uri.clone()).or_default().insert(addr);
    }

    /// Takes in the other's keys.
    pub(super) fn extend(&mut self, other: &Self) {
        for (uri, addr) in other.iter() {
            self.insert(uri, addr);
        }
    }

    /// Keeps what the other has as well.
    pub(super) fn retain_common(&mut self, other: &Self) {
        self.0.retain(|uri, addrs| {
            addrs.retain(|addr| other.contains(uri, *addr));
            !addrs.is_empty()
        });
    }

    pub(super) fn contains(&self, uri: &Uri, addr: SocketAddr) -> bool {
        self.0.get(uri).is_some_and(|addrs| addrs.contains(&addr))
    }

    pub(super) fn contains_all(&self, other: &Self) -> bool {
        other.iter().all(|(uri, addr)| self.contains(uri, addr))
    }

    /// Every key, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<Uri>, SocketAddr)> {
        self.by_uri()
            .flat_map(|(uri, addrs)| addrs.iter().map(move |addr| (uri, *addr)))
    }

    /// Every uri with its endpoints, in order.
    pub(super) fn by_uri(&self) -> impl Iterator<Item = (&Arc<Uri>, &BTreeSet<SocketAddr>)> {
        self.0.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

// === impl Announceable ===

impl Announceable {
    /// The whole table: nobody asks for a record.
    pub(super) fn all(desired: &Arc<Desired>) -> Self {
        Self {
            table: desired.clone(),
            held: BTreeMap::new(),
        }
    }

    /// Leaves out every TLS backend that is not on record. Nothing else differs: other backends of the same
    /// route stay, and a route that has none left is not announced at all.
    pub(super) fn of(desired: &Arc<Desired>, recorded: &TlsKeys) -> Self {
        let mut held = BTreeMap::new();
        for (uri, route) in tls_routes(desired) {
            let addresses = route.backends.iter().map(address);
            let missing = |addr: &SocketAddr| !recorded.contains(uri, *addr);
            let backends: Vec<_> = addresses.filter(missing).collect();
            if !backends.is_empty() {
                let service = route.service.key.clone();
                let of = route.backends.len();
                held.insert(
                    uri.clone(),
                    Held {
                        service,
                        backends,
                        of,
                    },
                );
            }
        }
        if held.is_empty() {
            return Self::all(desired);
        }
        let mut table = Desired::clone(desired);
        table.table.http.retain(|uri, route| {
            let Some(held) = held.get(uri) else {
                return true;
            };
            let kept = |backend: &&Backend| !held.backends.contains(&address(backend));
            let kept = Backends::new(route.backends.iter().filter(kept).cloned());
            kept.map(|kept| route.backends = kept).is_some()
        });
        Self {
            table: Arc::new(table),
            held,
        }
    }

    /// Lets a route of which nothing may be announced yet lead where it did, as long as the Service it led to still
    /// opens those ports: what shall replace it is not there.
    pub(super) fn or_as_before(mut self, before: Option<&Desired>, desired: &Desired) -> Self {
        let Some(before) = before.filter(|_| !self.held.is_empty()) else {
            return self;
        };
        for (uri, held) in &self.held {
            let Some(route) = before.table.http.get(uri) else {
                continue;
            };
            let still_open = |backend: &Backend| {
                let owner = desired.node_ports.get(&backend.port);
                owner.is_some_and(|owner| owner.key == route.service.key)
            };
            if held.of == held.backends.len() && route.backends.iter().all(still_open) {
                let table = Arc::make_mut(&mut self.table);
                table.table.http.insert(uri.clone(), route.clone());
            }
        }
        self
    }
}

fn tls_routes(desired: &Desired) -> impl Iterator<Item = (&Uri, &HttpRoute)> {
    let routes = desired.table.http.iter();
    routes.filter(|(_, route)| route.options.tls_server_name.is_some())
}

fn address(backend: &Backend) -> SocketAddr {
    SocketAddr::new(backend.ip, backend.port.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{
        ClusterId, Hostname, HttpOptions, NodePort, NodeUid, RouteTable, ServiceRef,
    };

    fn table(routes: &[(&str, bool, &[u8])]) -> Arc<Desired> {
        let route = |(host, tls, nodes): &(&str, bool, &[u8])| {
            let backend = |node: &u8| Backend {
                ip: [10, 0, 0, *node].into(),
                port: NodePort::new(30001).unwrap(),
                node: NodeUid(format!("node-{node}").into()),
                zone: None,
            };
            let key = ServiceKey {
                namespace: "default".to_owned(),
                name: (*host).to_owned(),
            };
            let name = Hostname::parse("web.internal").unwrap();
            let route = HttpRoute {
                service: Arc::new(ServiceRef {
                    key,
                    uid: String::new(),
                }),
                backends: Backends::new(nodes.iter().map(backend)).unwrap(),
                options: HttpOptions {
                    tls_server_name: tls.then_some(name),
                    ..HttpOptions::default()
                },
            };
            (Uri::of_host(Hostname::parse(host).unwrap()), route)
        };
        let table = RouteTable {
            http: routes.iter().map(route).collect(),
            ..RouteTable::default()
        };
        Arc::new(Desired::of(ClusterId("kube".to_owned()), table))
    }

    #[test]
    fn only_tls_backends_off_the_record_are_held_and_a_route_without_any_is_left_out() {
        let desired = table(&[
            ("a.test", true, &[1, 2]),
            ("b.test", true, &[3]),
            ("c.test", false, &[4]),
            ("d.test", true, &[5]),
        ]);
        let recorded = TlsKeys::wanted(&table(&[("a.test", true, &[2]), ("d.test", true, &[5])]));
        let announceable = Announceable::of(&desired, &recorded);
        let rest = table(&[
            ("a.test", true, &[2]),
            ("c.test", false, &[4]),
            ("d.test", true, &[5]),
        ]);
        assert_eq!(announceable.table.table.http, rest.table.http);
        let held: Vec<_> = announceable.held.iter().collect();
        let told = |(uri, held): &(&Uri, &Held)| (uri.to_string(), held.backends.len(), held.of);
        assert_eq!(
            held.iter().map(told).collect::<Vec<_>>(),
            [("a.test".to_owned(), 1, 2), ("b.test".to_owned(), 1, 1)]
        );
    }

    #[test]
    fn what_cannot_be_announced_yet_replaces_nothing_whose_service_still_opens_its_ports() {
        let before = table(&[("a.test", false, &[1]), ("b.test", true, &[2])]);
        let owner = before.table.http.values().next().unwrap().service.clone();
        let mut desired = Desired::clone(&table(&[
            ("a.test", true, &[3]),
            ("b.test", true, &[4]),
            ("c.test", true, &[5]),
        ]));
        // All have one node port here, which is the first one's.
        desired.node_ports = BTreeMap::from([(NodePort::new(30001).unwrap(), owner)]);
        let desired = Arc::new(desired);
        let nothing = TlsKeys::default();
        let kept = Announceable::of(&desired, &nothing).or_as_before(Some(&before), &desired);
        let expected = table(&[("a.test", false, &[1])]);
        assert_eq!(kept.table.table.http, expected.table.http);
        assert_eq!(kept.held.len(), 3, "it is told all the same");
        let all = Announceable::of(&desired, &TlsKeys::wanted(&desired));
        let all = all.or_as_before(Some(&before), &desired);
        assert!(Arc::ptr_eq(&all.table, &desired));
    }

    #[test]
    fn a_table_that_is_on_record_goes_out_as_it_is() {
        let desired = table(&[("a.test", true, &[1]), ("c.test", false, &[4])]);
        let announceable = Announceable::of(&desired, &TlsKeys::wanted(&desired));
        assert!(Arc::ptr_eq(&announceable.table, &desired) && announceable.held.is_empty());
    }
}
