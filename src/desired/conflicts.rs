//! Who gets a name that several Services ask for.
//!
//! Whoever holds it keeps it, so that nothing flaps; with no holder the oldest Service wins, then the order of
//! names. A loser is told whom it lost to and takes over in the very pass in which the winner goes. Whoever holds
//! a name may give it away ([`super::hand_over`]).

use std::collections::{BTreeMap, BTreeSet};

use super::claims::Wish;
use super::hand_over::HandOvers;
use super::{Code, Finding, Options, policy};
use crate::kubernetes::snapshot::{Endpoints, Service};
use crate::route::{NodePort, RouteTable, RouterPort, ServiceKey, Uri};

/// Who held what after the last pass.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    uris: BTreeMap<Uri, ServiceKey>,
    ports: BTreeMap<RouterPort, ServiceKey>,
    /// Names that were contested when this process had no holder on record, with whom age chose.
    undetermined: BTreeMap<String, ServiceKey>,
    /// A pass has been made; from then on the record tells who held a name.
    recorded: bool,
    /// What the last pass found contested.
    contested: Contested,
    /// What another instance's record told.
    told: Contested,
}

/// Names that several Services claim, each with the one that holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contested {
    /// Hosts and paths.
    pub uris: BTreeMap<Uri, ServiceKey>,
    /// Router ports.
    pub ports: BTreeMap<RouterPort, ServiceKey>,
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
    /// Node ports of those who gave a router port away: they serve it until the new one does.
    pub yielding: BTreeMap<RouterPort, BTreeSet<NodePort>>,
}

/// What every contest of a pass is settled with.
struct Contest<'c, 'a> {
    memory: &'c Memory,
    hand_overs: HandOvers<'a>,
    undetermined: BTreeMap<String, ServiceKey>,
    contested: Contested,
    findings: &'c mut Vec<Finding>,
}

/// Claims of one pass, sorted by name and then by rank.
type Claims<'a, N> = Vec<(N, &'a Claimant<'a>)>;

/// Gives every name to one Service. Who may not have a name at all is told first and does not compete.
pub(super) fn settle<'a>(
    claimants: &'a [Claimant<'a>],
    endpoints: Option<&'a BTreeMap<ServiceKey, Endpoints>>,
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
    let mut contest = Contest {
        memory,
        hand_overs: HandOvers::of(claimants, endpoints),
        undetermined: BTreeMap::new(),
        contested: Contested::default(),
        findings,
    };
    let http = contest.uris(&uris);
    let (tcp, yielding) = contest.ports(&ports);
    let won = Won {
        http,
        tcp,
        yielding,
    };
    let Contest {
        hand_overs,
        undetermined,
        contested,
        ..
    } = contest;
    hand_overs.tell(findings);
    for (name, winner) in &undetermined {
        let text = format!(
            "several Services claimed {name} before this process knew who held it; the oldest won"
        );
        findings.push(Finding::on_service(Code::WinnerUndetermined, winner, text));
    }
    memory.undetermined = undetermined;
    memory.contested = contested;
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

// === impl Contest ===

impl<'a> Contest<'_, 'a> {
    fn uris(&mut self, claims: &Claims<'a, &'a Uri>) -> Claims<'a, &'a Uri> {
        let mut won = Vec::with_capacity(claims.len());
        for of_host in claims.chunk_by(|a, b| a.0.same_host(b.0)) {
            // Most hosts have one claimant, whose record need not be looked up.
            match of_host {
                [(uri, alone)] if self.hand_overs.is_empty() => won.push((*uri, *alone)),
                _ => self.host(of_host, &mut won),
            }
        }
        won
    }

    /// A host with all its paths belongs to one namespace; a uri in it to one Service.
    fn host(&mut self, of_host: &[(&'a Uri, &'a Claimant<'a>)], won: &mut Claims<'a, &'a Uri>) {
        let uris = &self.memory.uris;
        let holding =
            |(uri, claimant): &&(&Uri, &Claimant<'_>)| uris.get(*uri) == Some(claimant.key());
        let incumbent = of_host.iter().find(holding);
        let oldest = of_host.iter().min_by_key(|(_, claimant)| claimant.rank());
        let Some((_, first)) = incumbent.or(oldest) else {
            return;
        };
        let before = &first.key().namespace;
        let claimed = |uri: &Uri, by: &Claimant<'_>| {
            let mut claims = of_host.iter();
            claims.any(|(other, claimant)| **other == *uri && claimant.key() == by.key())
        };
        let of_uri = |(a, _): &(&Uri, _), (b, _): &(&Uri, _)| a == b;
        let held = of_host.chunk_by(of_uri).filter_map(|claims| {
            let inside = inside(claims, before);
            Some((claims[0].0, holder(inside, uris.get(claims[0].0))?))
        });
        let held: BTreeMap<_, _> = held.collect();
        let moved = if self.hand_overs.is_empty() {
            None
        } else {
            let held: Vec<_> = held.iter().map(|(uri, holder)| (*uri, *holder)).collect();
            self.hand_overs.moves_to(&held, claimed)
        };
        let namespace = moved.unwrap_or(before);
        let is_inside = |claimant: &Claimant<'_>| claimant.key().namespace == namespace;
        let strangers = !of_host.iter().all(|(_, claimant)| is_inside(claimant));
        for claims in of_host.chunk_by(of_uri) {
            let uri = claims[0].0;
            let winner = match held.get(uri) {
                Some(holder) => Some(self.hand_overs.settle(
                    || uri.to_string(),
                    holder,
                    |heir| heir.wish.http.contains_key(uri),
                    |heir| is_inside(heir) && claimed(uri, heir),
                )),
                None => holder(inside(claims, namespace), uris.get(uri)),
            };
            for loser in losers(claims, winner) {
                let text = match winner {
                    Some(winner) if self.hand_overs.gave(loser, winner.key()) => continue,
                    Some(winner) => format!("`{uri}` belongs to service {}", winner.key()),
                    None => format!(
                        "host `{}` belongs to namespace `{namespace}`",
                        uri.whole_host()
                    ),
                };
                self.findings.push(lost(Code::HostConflict, loser, text));
            }
            let Some(winner) = winner else { continue };
            let rivals = if strangers { of_host } else { claims };
            if rivals.len() > 1 {
                let holder = winner.key().clone();
                self.contested.uris.insert(uri.clone(), holder);
            }
            if self.has_rivals(rivals, winner) {
                let told = self.memory.told.uris.get(uri);
                self.note(format!("`{uri}`"), winner.key(), told);
            }
            won.push((uri, winner));
        }
    }

    fn ports(
        &mut self,
        claims: &Claims<'a, RouterPort>,
    ) -> (
        Claims<'a, RouterPort>,
        BTreeMap<RouterPort, BTreeSet<NodePort>>,
    ) {
        let mut won = Vec::with_capacity(claims.len());
        let mut yielding: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for claims in claims.chunk_by(|a, b| a.0 == b.0) {
            let port = claims[0].0;
            let Some(holder) = holder(claims.iter(), self.memory.ports.get(&port)) else {
                continue;
            };
            let claimed = |heir: &Claimant<'_>| claims.iter().any(|(_, it)| it.key() == heir.key());
            let winner = self.hand_overs.settle(
                || port.to_string(),
                holder,
                |heir| heir.wish.tcp.contains_key(&port),
                claimed,
            );
            for (_, loser) in claims.iter().filter(|(_, it)| it.key() != winner.key()) {
                if self.hand_overs.gave(loser.key(), winner.key()) {
                    let of_port = yielding.entry(port).or_default();
                    of_port.insert(loser.wish.tcp[&port]);
                    continue;
                }
                let text = format!("router port {port} belongs to service {}", winner.key());
                let finding = lost(Code::PortConflict, loser.key(), text);
                self.findings.push(finding);
            }
            if claims.len() > 1 {
                let holder = winner.key().clone();
                self.contested.ports.insert(port, holder);
            }
            if self.has_rivals(claims, winner) {
                let told = self.memory.told.ports.get(&port);
                self.note(format!("router port {port}"), winner.key(), told);
            }
            won.push((port, winner));
        }
        (won, yielding)
    }

    /// Whether anybody claims it of whom no word tells, from or to the winner.
    fn has_rivals<N>(&self, claims: &[(N, &'a Claimant<'a>)], winner: &Claimant<'_>) -> bool {
        let mut losers = losers(claims, Some(winner));
        let told = |a, b| self.hand_overs.gave(a, b) || self.hand_overs.gave(b, a);
        losers.any(|loser| !told(loser, winner.key()))
    }

    /// Keeps a contest in mind that age alone decided, as long as it goes on and no record `told` the same.
    fn note(&mut self, name: String, winner: &ServiceKey, told: Option<&ServiceKey>) {
        if told == Some(winner) {
            return;
        }
        if !self.memory.recorded || self.memory.undetermined.get(&name) == Some(winner) {
            self.undetermined.insert(name, winner.clone());
        }
    }
}

fn inside<'c, 'a, N>(
    claims: &'c [(N, &'a Claimant<'a>)],
    namespace: &str,
) -> impl Iterator<Item = &'c (N, &'a Claimant<'a>)> {
    let claims = claims.iter();
    claims.filter(move |(_, claimant)| claimant.key().namespace == namespace)
}

fn losers<'a, N>(
    claims: &[(N, &'a Claimant<'a>)],
    winner: Option<&Claimant<'_>>,
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
    pub(super) fn key(&self) -> &'a ServiceKey {
        &self.service.service.key
    }

    /// What ranks claimants: age, then name.
    fn rank(&self) -> (i64, &'a ServiceKey) {
        (self.service.created_seconds, self.key())
    }
}

// === impl Memory ===

impl Memory {
    /// As if the pass that gave this table had been made here.
    pub(super) fn of(table: &RouteTable) -> Self {
        let uris = table.http.iter();
        let ports = table.tcp.iter();
        Self {
            uris: uris
                .map(|(uri, route)| (uri.clone(), route.service.key.clone()))
                .collect(),
            ports: ports
                .map(|(port, route)| (*port, route.service.key.clone()))
                .collect(),
            recorded: true,
            ..Self::default()
        }
    }

    /// Takes over who holds what by another instance's record.
    pub(super) fn adopt(&mut self, told: &Contested) {
        let uris = told.uris.iter();
        self.uris
            .extend(uris.map(|(uri, holder)| (uri.clone(), holder.clone())));
        let ports = told.ports.iter();
        self.ports
            .extend(ports.map(|(port, holder)| (*port, holder.clone())));
        self.told.clone_from(told);
    }

    /// What the last pass found contested.
    pub(super) fn contested(&self) -> &Contested {
        &self.contested
    }
}
