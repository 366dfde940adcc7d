//! From a view of the cluster to the table of routes that should live.

mod findings;

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::Uptime;
use crate::kubernetes::snapshot::Snapshot;
use crate::route::{ClusterId, Hostname, NodePort, PortRanges, RouteTable, ServiceKey};

pub use findings::{Code, Finding, Severity, Subject};

/// What should live, and what is wrong with what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Which cluster speaks.
    pub cluster: ClusterId,
    /// Every route that should live.
    pub table: RouteTable,
    /// Everything wrong or odd.
    pub findings: Vec<Finding>,
    /// Every address of every Node of the cluster, eligible or not: what tells rows of this cluster from a
    /// stranger's.
    pub node_ips: BTreeMap<IpAddr, String>,
    /// The node ports of every labelled Service.
    pub node_ports: BTreeMap<NodePort, ServiceKey>,
    /// When time alone may change the answer.
    pub revisit: Option<Uptime>,
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
    /// Whole domains below the app domain that no label may enter unless granted: the system domain.
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
}

/// Hosts that belong to the named namespaces alone; lifts the reservation of reserved hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostGrant {
    /// Namespace names; a trailing `*` stands for any ending.
    pub namespaces: Vec<String>,
    /// Bare hosts or full names; a leading `*.` also grants the wildcard.
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

/// What earlier passes have to tell the next: incumbents, and how long a node has been as it is.
#[derive(Clone, Debug, Default)]
pub struct Memory {}

/// Derives the table. Never fails: bad input becomes a finding and harms nothing else.
pub fn derive(
    _snapshot: &Snapshot,
    _memory: &mut Memory,
    _options: &Options,
    _now: Uptime,
) -> Desired {
    unimplemented!()
}
