//! Who gets a name that several Services ask for.
//!
//! Whoever holds it keeps it, so that nothing flaps; with no holder the oldest Service wins, then the order of
//! names. A loser is told whom it lost to and takes over in the very pass in which the winner goes.

use std::collections::{BTreeMap, BTreeSet};

use super::{Code, Finding, Options, policy};
use crate::route::{RouterPort, ServiceKey, Uri};

/// Who held what after the last pass.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    hosts: BTreeMap<String, String>,
    uris: BTreeMap<Uri, ServiceKey>,
    ports: BTreeMap<RouterPort, ServiceKey>,
    /// Names that were contested when this process had no holder on record, with whom age chose.
    undetermined: BTreeMap<String, ServiceKey>,
    /// A pass has been made; from then on the record tells who held a name.
    recorded: bool,
}

/// One Service and what it asks for.
pub(super) struct Claimant<'a> {
    pub key: &'a ServiceKey,
    pub created_seconds: i64,
    pub http: Vec<&'a Uri>,
    pub tcp: Vec<RouterPort>,
}

/// Who has what.
pub(super) struct Won {
    pub http: BTreeMap<Uri, ServiceKey>,
    pub tcp: BTreeMap<RouterPort, ServiceKey>,
}

type Rank<'a> = (i64, &'a ServiceKey);

/// Gives every name to one Service. Who may not have a name at all is told first and does not compete.
pub(super) fn settle(
    claimants: &[Claimant<'_>],
    options: &Options,
    memory: &mut Memory,
    findings: &mut Vec<Finding>,
) -> Won {
    let mut uris: BTreeMap<&Uri, BTreeSet<Rank<'_>>> = BTreeMap::new();
    let mut ports: BTreeMap<RouterPort, BTreeSet<Rank<'_>>> = BTreeMap::new();
    for claimant in claimants {
        let rank = (claimant.created_seconds, claimant.key);
        for uri in &claimant.http {
            match policy::host_refusal(uri, &claimant.key.namespace, options) {
                Some(refusal) => findings.push(refusal.on(claimant.key)),
                None => drop(uris.entry(uri).or_default().insert(rank)),
            }
        }
        for port in &claimant.tcp {
            match policy::port_refusal(*port, &claimant.key.namespace, options) {
                Some(refusal) => findings.push(refusal.on(claimant.key)),
                None => drop(ports.entry(*port).or_default().insert(rank)),
            }
        }
    }
    let mut undetermined = BTreeMap::new();
    let http = settle_uris(&uris, memory, &mut undetermined, findings);
    let tcp = settle_ports(&ports, memory, &mut undetermined, findings);
    for (name, winner) in &undetermined {
        let text = format!(
            "several Services claimed {name} before this process knew who held it; the oldest won"
        );
        findings.push(Finding::on_service(Code::WinnerUndetermined, winner, text));
    }
    memory.undetermined = undetermined;
    memory.recorded = true;
    memory.hosts = http
        .iter()
        .map(|(uri, key)| (host_of(uri), key.namespace.clone()))
        .collect();
    memory.uris.clone_from(&http);
    memory.ports.clone_from(&tcp);
    Won { http, tcp }
}

/// A host with all its paths belongs to one namespace; a uri in it to one Service.
fn settle_uris(
    uris: &BTreeMap<&Uri, BTreeSet<Rank<'_>>>,
    memory: &Memory,
    undetermined: &mut BTreeMap<String, ServiceKey>,
    findings: &mut Vec<Finding>,
) -> BTreeMap<Uri, ServiceKey> {
    let mut hosts: BTreeMap<String, BTreeSet<Rank<'_>>> = BTreeMap::new();
    for (uri, ranks) in uris {
        hosts.entry(host_of(uri)).or_default().extend(ranks);
    }
    let mut won = BTreeMap::new();
    for (uri, ranks) in uris {
        let host = host_of(uri);
        let all = &hosts[&host];
        let incumbent = memory.hosts.get(&host);
        let namespace = incumbent
            .filter(|namespace| all.iter().any(|(_, key)| key.namespace == **namespace))
            .unwrap_or(&oldest(all).namespace);
        let within: BTreeSet<Rank<'_>> = ranks
            .iter()
            .filter(|(_, key)| key.namespace == *namespace)
            .copied()
            .collect();
        let winner = (!within.is_empty()).then(|| holder(&within, memory.uris.get(*uri)));
        for (_, loser) in ranks.iter().filter(|(_, key)| Some(*key) != winner) {
            let text = match winner {
                Some(winner) => format!("`{uri}` belongs to service {winner}"),
                None => format!("host `{host}` belongs to namespace `{namespace}`"),
            };
            findings.push(lost(Code::HostConflict, loser, text));
        }
        let Some(winner) = winner else { continue };
        let contested = all
            .iter()
            .any(|(_, key)| *key != winner && key.namespace != *namespace)
            || ranks.len() > 1;
        memory.note(&format!("`{uri}`"), contested, winner, undetermined);
        won.insert((*uri).clone(), winner.clone());
    }
    won
}

fn settle_ports(
    ports: &BTreeMap<RouterPort, BTreeSet<Rank<'_>>>,
    memory: &Memory,
    undetermined: &mut BTreeMap<String, ServiceKey>,
    findings: &mut Vec<Finding>,
) -> BTreeMap<RouterPort, ServiceKey> {
    let mut won = BTreeMap::new();
    for (port, ranks) in ports {
        let winner = holder(ranks, memory.ports.get(port));
        for (_, loser) in ranks.iter().filter(|(_, key)| *key != winner) {
            let text = format!("router port {port} belongs to service {winner}");
            findings.push(lost(Code::PortConflict, loser, text));
        }
        memory.note(
            &format!("router port {port}"),
            ranks.len() > 1,
            winner,
            undetermined,
        );
        won.insert(*port, winner.clone());
    }
    won
}

fn lost(code: Code, loser: &ServiceKey, text: String) -> Finding {
    Finding::on_service(code, loser, text)
        .hint("choose another, or remove the winner's claim: this Service then takes over at once")
}

fn holder<'a>(ranks: &BTreeSet<Rank<'a>>, incumbent: Option<&ServiceKey>) -> &'a ServiceKey {
    let still = ranks
        .iter()
        .map(|(_, key)| *key)
        .find(|key| Some(*key) == incumbent);
    still.unwrap_or_else(|| oldest(ranks))
}

fn oldest<'a>(ranks: &BTreeSet<Rank<'a>>) -> &'a ServiceKey {
    ranks
        .first()
        .expect("a name under which somebody stands must have a first claimant")
        .1
}

/// A wildcard and the host it stands below are two names, as for gorouter.
fn host_of(uri: &Uri) -> String {
    let star = if uri.is_wildcard() { "*." } else { "" };
    format!("{star}{}", uri.host())
}

impl Memory {
    /// Keeps a contest in mind that age alone decided, as long as it goes on.
    fn note(
        &self,
        name: &str,
        contested: bool,
        winner: &ServiceKey,
        undetermined: &mut BTreeMap<String, ServiceKey>,
    ) {
        let open = !self.recorded || self.undetermined.get(name) == Some(winner);
        if contested && open {
            undetermined.insert(name.to_owned(), winner.clone());
        }
    }
}
