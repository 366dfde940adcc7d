//! Who gets a name that several Services ask for.
//!
//! Whoever holds it keeps it, so that nothing flaps; with no holder the oldest Service wins, then the order of
//! names. A loser is told whom it lost to and takes over in the very pass in which the winner goes.

use std::collections::BTreeMap;

use super::claims::Wish;
use super::{Code, Finding, Options, policy};
use crate::kubernetes::snapshot::Service;
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
    pub service: &'a Service,
    pub wish: Wish,
}

/// Who has what, in the order of names.
pub(super) struct Won<'a> {
    pub http: Vec<(&'a Uri, &'a Claimant<'a>)>,
    pub tcp: Vec<(RouterPort, &'a Claimant<'a>)>,
}

/// Claims of one pass, sorted by name and then by rank.
type Claims<'a, N> = Vec<(N, &'a Claimant<'a>)>;

/// Gives every name to one Service. Who may not have a name at all is told first and does not compete.
pub(super) fn settle<'a>(
    claimants: &'a [Claimant<'a>],
    options: &Options,
    memory: &mut Memory,
    findings: &mut Vec<Finding>,
) -> Won<'a> {
    let mut uris: Claims<'a, &'a Uri> = Vec::with_capacity(claimants.len());
    let mut ports: Claims<'a, RouterPort> = Vec::new();
    for claimant in claimants {
        let key = claimant.key();
        for uri in claimant.wish.http.keys() {
            match policy::host_refusal(uri, &key.namespace, options) {
                Some(refusal) => findings.push(refusal.on(key)),
                None => uris.push((uri, claimant)),
            }
        }
        for port in claimant.wish.tcp.keys() {
            match policy::port_refusal(*port, &key.namespace, options) {
                Some(refusal) => findings.push(refusal.on(key)),
                None => ports.push((*port, claimant)),
            }
        }
    }
    sort(&mut uris);
    sort(&mut ports);
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

/// By name; of those that claim one name, the first by rank first.
fn sort<N: Ord + Copy>(claims: &mut Claims<'_, N>) {
    claims.sort_unstable_by(|(a, first), (b, second)| {
        a.cmp(b).then_with(|| first.rank().cmp(&second.rank()))
    });
}

/// A host with all its paths belongs to one namespace; a uri in it to one Service.
fn settle_uris<'a>(
    claims: &Claims<'a, &'a Uri>,
    memory: &Memory,
    undetermined: &mut BTreeMap<String, ServiceKey>,
    findings: &mut Vec<Finding>,
) -> Vec<(&'a Uri, &'a Claimant<'a>)> {
    let mut won = Vec::with_capacity(claims.len());
    for of_host in claims.chunk_by(|a, b| a.0.same_host(b.0)) {
        // Most hosts have one claimant, whose record need not be looked up.
        if let [alone] = of_host {
            won.push(*alone);
            continue;
        }
        let holding = |(uri, claimant): &&(&Uri, &Claimant<'_>)| {
            memory.uris.get(*uri) == Some(claimant.key())
        };
        let incumbent = of_host.iter().find(holding);
        let oldest = of_host.iter().min_by_key(|(_, claimant)| claimant.rank());
        let Some((_, first)) = incumbent.or(oldest) else {
            continue;
        };
        let namespace = &first.key().namespace;
        let is_inside = |claimant: &Claimant<'_>| claimant.key().namespace == *namespace;
        let strangers = !of_host.iter().all(|(_, claimant)| is_inside(claimant));
        for claims in of_host.chunk_by(|a, b| a.0 == b.0) {
            let uri = claims[0].0;
            let inside = claims.iter().filter(|(_, claimant)| is_inside(claimant));
            let winner = holder(inside, memory.uris.get(uri));
            for loser in losers(claims, winner) {
                let text = match winner {
                    Some(winner) => format!("`{uri}` belongs to service {}", winner.key()),
                    None => format!(
                        "host `{}` belongs to namespace `{namespace}`",
                        uri.whole_host()
                    ),
                };
                findings.push(lost(Code::HostConflict, loser, text));
            }
            let Some(winner) = winner else { continue };
            if strangers || claims.len() > 1 {
                memory.note(format!("`{uri}`"), winner.key(), undetermined);
            }
            won.push((uri, winner));
        }
    }
    won
}

fn settle_ports<'a>(
    claims: &Claims<'a, RouterPort>,
    memory: &Memory,
    undetermined: &mut BTreeMap<String, ServiceKey>,
    findings: &mut Vec<Finding>,
) -> Vec<(RouterPort, &'a Claimant<'a>)> {
    let mut won = Vec::with_capacity(claims.len());
    for claims in claims.chunk_by(|a, b| a.0 == b.0) {
        let port = claims[0].0;
        let Some(winner) = holder(claims.iter(), memory.ports.get(&port)) else {
            continue;
        };
        for loser in losers(claims, Some(winner)) {
            let text = format!("router port {port} belongs to service {}", winner.key());
            findings.push(lost(Code::PortConflict, loser, text));
        }
        if claims.len() > 1 {
            memory.note(format!("router port {port}"), winner.key(), undetermined);
        }
        won.push((port, winner));
    }
    won
}

fn losers<'c, 'a, N>(
    claims: &'c [(N, &'a Claimant<'a>)],
    winner: Option<&'c Claimant<'a>>,
) -> impl Iterator<Item = &'a ServiceKey> {
    let winner = winner.map(Claimant::key);
    let keys = claims.iter().map(|(_, claimant)| claimant.key());
    keys.filter(move |key| Some(*key) != winner)
}

fn lost(code: Code, loser: &ServiceKey, text: String) -> Finding {
    Finding::on_service(code, loser, text)
        .hint("choose another, or remove the winner's claim: this Service then takes over at once")
}

/// The incumbent if it still claims the name, else the first by rank.
fn holder<'c, 'a: 'c, N: 'c>(
    claims: impl Iterator<Item = &'c (N, &'a Claimant<'a>)>,
    incumbent: Option<&ServiceKey>,
) -> Option<&'a Claimant<'a>> {
    let mut ranked = claims.map(|(_, claimant)| *claimant).peekable();
    let first = ranked.peek().copied();
    ranked
        .find(|claimant| Some(claimant.key()) == incumbent)
        .or(first)
}

/// Brings the record up to date, touching only what changed.
fn remember<N: Ord + Clone>(
    record: &mut BTreeMap<N, ServiceKey>,
    won: &[(impl std::borrow::Borrow<N>, &Claimant<'_>)],
) {
    let same = |((name, key), (won, claimant)): ((&N, &ServiceKey), &(_, &Claimant<'_>))| {
        name == std::borrow::Borrow::borrow(won) && key == claimant.key()
    };
    if record.len() == won.len() && record.iter().zip(won).all(same) {
        return;
    }
    let copy = won
        .iter()
        .map(|(name, claimant)| (name.borrow().clone(), claimant.key().clone()));
    *record = copy.collect();
}

// === impl Claimant ===

impl<'a> Claimant<'a> {
    fn key(&self) -> &'a ServiceKey {
        &self.service.service.key
    }

    /// What ranks claimants: age, then name.
    fn rank(&self) -> (i64, &'a ServiceKey) {
        (self.service.created_seconds, self.key())
    }
}

// === impl Memory ===

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
