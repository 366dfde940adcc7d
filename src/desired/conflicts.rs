//! Who gets a name that several Services ask for.
//!
//! Whoever holds it keeps it, so that nothing flaps; with no holder the oldest Service wins, then the order of
//! names. A loser is told whom it lost to and takes over in the very pass in which the winner goes.

use std::collections::BTreeMap;

use super::{Code, Finding, Options, policy};
use crate::route::{RouterPort, ServiceKey, Uri};

/// Who held what after the last pass.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
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
pub(super) struct Won<'a> {
    pub http: BTreeMap<&'a Uri, &'a ServiceKey>,
    pub tcp: BTreeMap<RouterPort, &'a ServiceKey>,
}

/// What ranks claimants: age, then name.
type Rank<'a> = (i64, &'a ServiceKey);

/// Claims of one pass, sorted by name and then by rank.
type Claims<'a, N> = Vec<(N, Rank<'a>)>;

/// Gives every name to one Service. Who may not have a name at all is told first and does not compete.
pub(super) fn settle<'a>(
    claimants: &[Claimant<'a>],
    options: &Options,
    memory: &mut Memory,
    findings: &mut Vec<Finding>,
) -> Won<'a> {
    let mut uris: Claims<'a, &'a Uri> = Vec::new();
    let mut ports: Claims<'a, RouterPort> = Vec::new();
    for claimant in claimants {
        let rank = (claimant.created_seconds, claimant.key);
        for uri in &claimant.http {
            match policy::host_refusal(uri, &claimant.key.namespace, options) {
                Some(refusal) => findings.push(refusal.on(claimant.key)),
                None => uris.push((uri, rank)),
            }
        }
        for port in &claimant.tcp {
            match policy::port_refusal(*port, &claimant.key.namespace, options) {
                Some(refusal) => findings.push(refusal.on(claimant.key)),
                None => ports.push((*port, rank)),
            }
        }
    }
    uris.sort_unstable();
    ports.sort_unstable();
    let mut undetermined = BTreeMap::new();
    let won = Won {
        http: settle_uris(&uris, memory, &mut undetermined, findings),
        tcp: settle_ports(&ports, memory, &mut undetermined, findings),
    };
    for (name, winner) in &undetermined {
        let text = format!(
            "several Services claimed {name} before this process knew who held it; the oldest won"
        );
        findings.push(Finding::on_service(Code::WinnerUndetermined, winner, text));
    }
    memory.undetermined = undetermined;
    memory.recorded = true;
    remember(&mut memory.uris, &won.http);
    remember(&mut memory.ports, &won.tcp);
    won
}

/// A host with all its paths belongs to one namespace; a uri in it to one Service.
fn settle_uris<'a>(
    claims: &Claims<'a, &'a Uri>,
    memory: &Memory,
    undetermined: &mut BTreeMap<String, ServiceKey>,
    findings: &mut Vec<Finding>,
) -> BTreeMap<&'a Uri, &'a ServiceKey> {
    let mut won = Vec::new();
    for of_host in claims.chunk_by(|a, b| a.0.same_host(b.0)) {
        let holding = |(uri, (_, key)): &&(&Uri, Rank<'_>)| memory.uris.get(*uri) == Some(*key);
        let incumbent = of_host.iter().find(holding).map(|(_, rank)| *rank);
        let oldest = of_host.iter().map(|(_, rank)| *rank).min();
        let Some((_, first)) = incumbent.or(oldest) else {
            continue;
        };
        let namespace = &first.namespace;
        let strangers = of_host
            .iter()
            .any(|(_, (_, key))| key.namespace != *namespace);
        for claims in of_host.chunk_by(|a, b| a.0 == b.0) {
            let uri = claims[0].0;
            let inside = |(_, (_, key)): &&(&Uri, Rank<'_>)| key.namespace == *namespace;
            let winner = holder(claims.iter().filter(inside), memory.uris.get(uri));
            for (_, (_, loser)) in claims.iter().filter(|(_, (_, key))| Some(*key) != winner) {
                let text = match winner {
                    Some(winner) => format!("`{uri}` belongs to service {winner}"),
                    None => format!(
                        "host `{}` belongs to namespace `{namespace}`",
                        uri.whole_host()
                    ),
                };
                findings.push(lost(Code::HostConflict, loser, text));
            }
            let Some(winner) = winner else { continue };
            if strangers || claims.len() > 1 {
                memory.note(format!("`{uri}`"), winner, undetermined);
            }
            won.push((uri, winner));
        }
    }
    won.into_iter().collect()
}

fn settle_ports<'a>(
    claims: &Claims<'a, RouterPort>,
    memory: &Memory,
    undetermined: &mut BTreeMap<String, ServiceKey>,
    findings: &mut Vec<Finding>,
) -> BTreeMap<RouterPort, &'a ServiceKey> {
    let mut won = BTreeMap::new();
    for claims in claims.chunk_by(|a, b| a.0 == b.0) {
        let port = claims[0].0;
        let Some(winner) = holder(claims.iter(), memory.ports.get(&port)) else {
            continue;
        };
        for (_, (_, loser)) in claims.iter().filter(|(_, (_, key))| *key != winner) {
            let text = format!("router port {port} belongs to service {winner}");
            findings.push(lost(Code::PortConflict, loser, text));
        }
        if claims.len() > 1 {
            memory.note(format!("router port {port}"), winner, undetermined);
        }
        won.insert(port, winner);
    }
    won
}

fn lost(code: Code, loser: &ServiceKey, text: String) -> Finding {
    Finding::on_service(code, loser, text)
        .hint("choose another, or remove the winner's claim: this Service then takes over at once")
}

/// The incumbent if it still claims the name, else the first by rank.
fn holder<'c, 'a: 'c, N: 'c>(
    claims: impl Iterator<Item = &'c (N, Rank<'a>)>,
    incumbent: Option<&ServiceKey>,
) -> Option<&'a ServiceKey> {
    let mut ranked = claims.map(|(_, (_, key))| *key).peekable();
    let first = ranked.peek().copied();
    ranked.find(|key| Some(*key) == incumbent).or(first)
}

/// Brings the record up to date, touching only what changed.
fn remember<N: Ord + Clone>(
    record: &mut BTreeMap<N, ServiceKey>,
    won: &BTreeMap<impl Ord + std::borrow::Borrow<N>, &ServiceKey>,
) {
    if record.len() == won.len()
        && record
            .iter()
            .zip(won)
            .all(|(a, b)| a.0 == b.0.borrow() && a.1 == *b.1)
    {
        return;
    }
    let copy = won
        .iter()
        .map(|(name, key)| (name.borrow().clone(), (*key).clone()));
    *record = copy.collect();
}

impl Memory {
    /// Keeps a contest in mind that age alone decided, as long as it goes on.
    fn note(
        &self,
        name: String,
        winner: &ServiceKey,
        undetermined: &mut BTreeMap<String, ServiceKey>,
    ) {
        if !self.recorded || self.undetermined.get(&name) == Some(winner) {
            undetermined.insert(name, winner.clone());
        }
    }
}
