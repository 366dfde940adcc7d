//! From a view of the cluster to the table of routes that should live.
//!
//! Pure: no I/O, no clock, ordered maps only; the same input gives the same bytes. Nothing here can fail: what is
//! wrong with one Service becomes a [`Finding`] on that Service and can never touch another's route. It knows
//! nothing of routers: whether a router group reserves a port, or a stranger holds it, only the lanes can tell.
//!
//! ```text
//! labels, annotations ──claims──▶ policy ──▶ conflicts ──▶ winners ──┐
//! Nodes ──nodes──▶ eligible ──backends (per Service)──▶ chosen ──────┴──▶ RouteTable
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::Uptime;
use crate::kubernetes::snapshot::{Node, Protocol, ServicePort, Snapshot};
use crate::route::{
    Backends, ClusterId, Hostname, HttpRoute, NodePort, PortRanges, RouteTable, RouterPort,
    ServiceRef, TcpRoute, Uri,
};

mod backends;
mod claims;
mod conflicts;
mod findings;
pub mod guard;
mod hand_over;
mod nodes;
mod policy;
#[cfg(test)]
mod tests;

pub use conflicts::Contested;
pub use findings::{Code, Finding, Severity, Subject};

use backends::{Placement, Placements};
use conflicts::Claimant;

/// The labels that opt a Service in, and the prefix of what annotations may add.
pub const HTTP_LABEL: &str = "http-route-sync";
/// See [`HTTP_LABEL`].
pub const TCP_LABEL: &str = "tcp-route-sync";
/// See [`HTTP_LABEL`].
pub const ANNOTATION_PREFIX: &str = "route-sync.cloudfoundry.org/";

/// What should live, and what is wrong with what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Which cluster speaks.
    pub cluster: ClusterId,
    /// Every route that should live.
    pub table: RouteTable,
    /// Everything wrong or odd, in order.
    pub findings: Vec<Finding>,
    /// Every address of every Node of the cluster, eligible or not: what tells rows of this cluster from a
    /// stranger's.
    pub node_ips: BTreeMap<IpAddr, String>,
    /// The TCP node ports of every labelled Service.
    pub node_ports: BTreeMap<NodePort, Arc<ServiceRef>>,
    /// Node ports of Services that gave a router port of the table to another: their rows stand until its do.
    pub yielding: BTreeMap<RouterPort, BTreeSet<NodePort>>,
    /// Ports of which nobody can say yet whether they should be served: what of ours stands there stays, and nothing
    /// new comes.
    pub undecided: BTreeSet<RouterPort>,
    /// Routes of the table that nothing asks for any more, kept alive by the [`guard`].
    pub held: Option<guard::Held>,
    /// An operator wants every route withdrawn: the table is empty, and nothing waits for any budget.
    pub drained: bool,
    /// When time alone may change the answer.
    pub revisit: Option<Uptime>,
}

impl Desired {
    /// A table of which nothing else is said.
    #[must_use]
    pub const fn of(cluster: ClusterId, table: RouteTable) -> Self {
        Self {
            cluster,
            table,
            findings: Vec::new(),
            node_ips: BTreeMap::new(),
            node_ports: BTreeMap::new(),
            yielding: BTreeMap::new(),
            undecided: BTreeSet::new(),
            held: None,
            drained: false,
            revisit: None,
        }
    }
}

/// What an operator decides about deriving routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The domain that bare hosts get.
    pub app_domain: Hostname,
    /// Domains whose names an annotation may write in full; holds the app domain.
    pub domains: Vec<Hostname>,
    /// Hosts that no label may claim unless granted: the platform's own and every host the configuration names.
    pub reserved_hosts: Vec<Hostname>,
    /// Whole domains that no label may enter unless granted, such as the system domain.
    pub reserved_domains: Vec<Hostname>,
    /// Who may claim which host.
    pub host_grants: Vec<HostGrant>,
    /// Who may claim which router port.
    pub port_grants: Vec<PortGrant>,
    /// Backends per HTTP route; 0 is all.
    pub max_backends: usize,
    /// Backends per TCP route; 0 is all.
    pub max_tcp_backends: usize,
    /// Whether nodes' IPv6 addresses are taken instead of IPv4; tcp-router drops those silently.
    pub ipv6: bool,
    /// Whether withdrawals survive a restart, without which no TLS backend may be announced.
    pub state_survives: bool,
    /// How many routes may go together before the [`guard`] holds them.
    pub removals: guard::Limits,
}

/// Hosts that belong to the named namespaces alone; lifts the reservation of reserved hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostGrant {
    /// Namespace names; a trailing `*` stands for any ending.
    pub namespaces: Vec<String>,
    /// Bare hosts or full names; a leading `*.` stands for everything below, the wildcard included.
    pub hosts: Vec<String>,
}

/// Router ports that belong to the named namespaces alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortGrant {
    /// Namespace names; a trailing `*` stands for any ending.
    pub namespaces: Vec<String>,
    /// The ports.
    pub ports: PortRanges,
}

/// What earlier passes have to tell the next: who holds a name, how long a node has been as it is, and where
/// a Service's traffic went while nobody knew better.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    nodes: nodes::Memory,
    backends: backends::Memory,
    holders: conflicts::Memory,
}

impl Memory {
    /// Begins with who held which name in a table of the last process.
    #[must_use]
    pub fn of_holders(table: &RouteTable) -> Self {
        Self {
            holders: conflicts::Memory::of(table),
            ..Self::default()
        }
    }

    /// Takes over who holds which contested name by the record of another instance, whose table this one may have
    /// to go on with.
    pub fn adopt(&mut self, told: &Contested) {
        self.holders.adopt(told);
    }

    /// Who holds which contested name since the last pass.
    #[must_use]
    pub fn contested(&self) -> &Contested {
        self.holders.contested()
    }
}

/// Derives the table. Never fails: bad input becomes a finding and harms nothing else.
pub fn derive(snapshot: &Snapshot, memory: &mut Memory, options: &Options, now: Uptime) -> Desired {
    let mut findings = snapshot.findings.clone();
    let read = |service| Claimant {
        service,
        wish: claims::read(service, options, &mut findings),
    };
    let claimants: Vec<Claimant<'_>> = snapshot.services.values().map(read).collect();
    let endpoints = snapshot.endpoints.as_ref();
    let won = conflicts::settle(
        &claimants,
        endpoints,
        options,
        &mut memory.holders,
        &mut findings,
    );
    let eligible = nodes::eligible(
        &snapshot.nodes,
        options.ipv6,
        &mut memory.nodes,
        now,
        &mut findings,
    );
    let mut placements = backends::Placements::new(snapshot, &eligible, &mut memory.backends, now);
    let table = RouteTable {
        tcp: tcp_routes(won.tcp, options, &mut placements, &mut findings),
        http: http_routes(won.http, options, &mut placements, &mut findings),
    };
    let revisit = earliest(eligible.revisit, placements.finish());
    findings.sort();
    findings.dedup();
    Desired {
        cluster: snapshot.cluster.clone(),
        table,
        findings,
        node_ips: all_addresses(snapshot),
        node_ports: all_node_ports(snapshot),
        yielding: won.yielding,
        undecided: BTreeSet::new(),
        held: None,
        drained: false,
        revisit,
    }
}

fn tcp_routes(
    won: Vec<(RouterPort, &Claimant<'_>)>,
    options: &Options,
    placements: &mut Placements<'_>,
    findings: &mut Vec<Finding>,
) -> BTreeMap<RouterPort, TcpRoute> {
    let route = |(port, claimant): (RouterPort, &Claimant<'_>)| {
        let Claimant { service, wish } = claimant;
        let placement = Placement {
            service,
            node_port: wish.tcp[&port],
            cap: wish.max_backends.unwrap_or(options.max_tcp_backends),
            require_ready: wish.require_ready_endpoints,
        };
        let backends = place(placements, &placement, findings)?;
        let route = TcpRoute {
            service: service.service.clone(),
            router_group: wish.router_group.clone(),
            backends,
        };
        Some((port, route))
    };
    won.into_iter().filter_map(route).collect()
}

fn http_routes(
    won: Vec<(&Uri, &Claimant<'_>)>,
    options: &Options,
    placements: &mut Placements<'_>,
    findings: &mut Vec<Finding>,
) -> BTreeMap<Uri, HttpRoute> {
    let route = |(uri, claimant): (&Uri, &Claimant<'_>)| {
        let Claimant { service, wish } = claimant;
        let placement = Placement {
            service,
            node_port: wish.http[uri],
            cap: wish.max_backends.unwrap_or(options.max_backends),
            require_ready: wish.require_ready_endpoints,
        };
        let backends = place(placements, &placement, findings)?;
        let route = HttpRoute {
            service: service.service.clone(),
            backends,
            options: wish.http_options.clone(),
        };
        Some((uri.clone(), route))
    };
    won.into_iter().filter_map(route).collect()
}

/// The backends of one route; a route without any is not published, and its Service is told why.
fn place(
    placements: &mut Placements<'_>,
    placement: &Placement<'_>,
    findings: &mut Vec<Finding>,
) -> Option<Backends> {
    let (backends, told) = placements.place(placement);
    let key = &placement.service.service.key;
    findings.extend(told.map(|(code, message)| Finding::on_service(code, key, message)));
    backends
}

fn all_addresses(snapshot: &Snapshot) -> BTreeMap<IpAddr, String> {
    let addresses = |(name, node): (&String, &Node)| {
        let addresses = node.internal_ips.iter();
        addresses.map(|ip| (*ip, name.clone())).collect::<Vec<_>>()
    };
    snapshot.nodes.iter().flat_map(addresses).collect()
}

fn all_node_ports(snapshot: &Snapshot) -> BTreeMap<NodePort, Arc<ServiceRef>> {
    let mut all = BTreeMap::new();
    for service in snapshot.services.values() {
        // TCP and UDP count their node ports apart, and routers lead to TCP alone.
        let tcp = |port: &&ServicePort| port.protocol == Protocol::Tcp;
        let open = service
            .ports
            .iter()
            .filter(tcp)
            .filter_map(|port| port.node_port);
        all.extend(open.map(|port| (port, service.service.clone())));
    }
    all
}

fn earliest(a: Option<Uptime>, b: Option<Uptime>) -> Option<Uptime> {
    a.into_iter().chain(b).min()
}

/// Names for a sentence: `a`, `b` and 3 more.
fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    /// As many as an operator reads; a cluster may have thousands.
    const NAMES_MAX: usize = 5;
    let all: BTreeSet<&str> = names.into_iter().collect();
    let shown: Vec<String> = all
        .iter()
        .take(NAMES_MAX)
        .map(|name| format!("`{name}`"))
        .collect();
    match all.len().saturating_sub(NAMES_MAX) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
