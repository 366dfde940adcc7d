//! Which ports may be published at all. The routing API checks neither its groups' ranges nor what listens on
//! the router's machine (measured: port 80 in group `1024-1033` is a 201), and one port that HAProxy cannot
//! bind freezes the TCP routes of the whole foundation. So it is checked here.

use std::collections::{BTreeMap, BTreeSet};

use super::{NO_TLS, TcpRow, WantedPort};
use crate::desired::{Code, Finding, Subject};
use crate::route::{Lane, PortRanges, RouterPort, TcpRoute};

/// The ports of system components that share the routers' machine or network: the default of routing-api's
/// property `reserved_system_component_ports`.
pub const SYSTEM_PORTS: &str = "2822,2825,3457-3461,8853,9100,14726,14727,14821-14824,14829,14830,\
                                14920,14922,15821,17002,53035,53080";

/// The lowest port a router group may reserve.
pub const LOWEST_PORT: u16 = 1024;

/// A router group of type tcp.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouterGroup {
    /// What rows refer to.
    pub guid: String,
    /// What operators call it.
    pub name: String,
    /// Its ports, as written.
    pub reservable_ports: String,
}

/// What may be published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// By router port.
    pub wanted: BTreeMap<RouterPort, WantedPort>,
    /// Why others may not.
    pub findings: Vec<Finding>,
}

/// What decides about ports.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// Every group of type tcp.
    pub groups: &'a [RouterGroup],
    /// The one that routes get which ask for none.
    pub chosen: &'a RouterGroup,
    /// The operator's reserved ports, on top of [`SYSTEM_PORTS`].
    pub reserved: &'a PortRanges,
    /// Ports on which rows of ours live: a range that shrinks closes none of them.
    pub live: &'a BTreeSet<RouterPort>,
}

/// The group by name; else, where nobody chose a name, the only one there is.
///
/// # Errors
/// A finding that lists the names.
pub fn choose(groups: &[RouterGroup], name: &str, default: bool) -> Result<RouterGroup, Finding> {
    let named: Vec<_> = groups.iter().filter(|group| group.name == name).collect();
    match (named.as_slice(), groups) {
        ([group], _) => return Ok((*group).clone()),
        ([], [only]) if default => return Ok(only.clone()),
        _ => {}
    }
    let existing = names(groups);
    let message = match named.len() {
        0 => format!("there is no router group `{name}` of type tcp; there is {existing}"),
        n => format!("{n} router groups are called `{name}`; there is {existing}"),
    };
    Err(
        Finding::new(Code::RouterGroupUnknown, Subject::Lane(Lane::Tcp), message)
            .hint("set `routing_api.router_group` to one of them"),
    )
}

/// Sorts out which routes may be published.
///
/// # Panics
/// Never: the list of system ports is a constant, and tests parse it.
#[must_use]
pub fn admit(table: &BTreeMap<RouterPort, TcpRoute>, gate: Gate<'_>) -> Admission {
    let system = PortRanges::parse(SYSTEM_PORTS).expect("the list of system ports must be valid");
    let mut admission = Admission::default();
    for (&port, route) in table {
        match gate.judge(port, route, &system) {
            Ok((group, finding)) => {
                let rows = rows(port, route, group);
                let service = route.service.key.clone();
                admission.wanted.insert(port, WantedPort { service, rows });
                admission.findings.extend(finding);
            }
            Err(finding) => admission.findings.push(finding),
        }
    }
    admission
}

fn rows(port: RouterPort, route: &TcpRoute, group: &RouterGroup) -> Vec<TcpRow> {
    let row = |backend: &crate::route::Backend| TcpRow {
        port,
        ip: backend.ip.to_string(),
        backend_port: backend.port.get(),
        tls_port: NO_TLS,
        sni: None,
        group: group.guid.clone(),
    };
    route.backends.iter().map(row).collect()
}

fn names(groups: &[RouterGroup]) -> String {
    if groups.is_empty() {
        return "none".to_owned();
    }
    let names: Vec<_> = groups
        .iter()
        .map(|group| format!("`{}`", group.name))
        .collect();
    names.join(", ")
}

// === impl Gate ===

impl<'a> Gate<'a> {
    /// The group a route goes to, with what is odd about it; else why it goes nowhere.
    fn judge(
        &self,
        port: RouterPort,
        route: &TcpRoute,
        system: &PortRanges,
    ) -> Result<(&'a RouterGroup, Option<Finding>), Finding> {
        let key = &route.service.key;
        let find = |code, message| Finding::on_service(code, key, message);
        let number = port.get();
        if number < LOWEST_PORT || system.contains(number) || self.reserved.contains(number) {
            let message = format!("port `{port}` belongs to the platform's own components");
            return Err(find(Code::PortReserved, message));
        }
        let group = match &route.router_group {
            None => self.chosen,
            Some(name) => {
                if let [group] = self
                    .groups
                    .iter()
                    .filter(|group| group.name == *name)
                    .collect::<Vec<_>>()[..]
                {
                    group
                } else {
                    let message = format!(
                        "there is not one router group `{name}` of type tcp; there is {}",
                        names(self.groups)
                    );
                    return Err(find(Code::RouterGroupUnknown, message));
                }
            }
        };
        let RouterGroup {
            name,
            reservable_ports,
            ..
        } = group;
        // A range that cannot be read holds nothing: better no route than one that freezes the foundation.
        let inside =
            PortRanges::parse(reservable_ports).is_ok_and(|ranges| ranges.contains(number));
        if inside {
            return Ok((group, None));
        }
        if self.live.contains(&port) {
            let message = format!(
                "port `{port}` lives, but router group `{name}` now reserves only `{reservable_ports}`"
            );
            return Ok((group, Some(find(Code::PortNoLongerReservable, message))));
        }
        let message =
            format!("router group `{name}` reserves only `{reservable_ports}`, not port `{port}`");
        Err(find(Code::PortNotReservable, message)
            .hint("choose a port of the group, or widen the group"))
    }
}
