//! What has to change so that the routing API's table leads where it should. Pure: no I/O, no clock.
//!
//! Everything is judged per router port, whatever its router group, because tcp-router serves them all alike.
//! One line of this table is one line of the exhaustive test.
//!
//! | wanted | observed on the port          | whose              | plan says                                       |
//! |--------|-------------------------------|--------------------|-------------------------------------------------|
//! | yes    | nothing                       |                    | add; restore if we had confirmed it, or the     |
//! |        |                               |                    | process before us; hold if somebody deletes it  |
//! |        |                               |                    | again and again                                 |
//! | yes    | unseen                        |                    | wait 75 s from the start; restore what was      |
//! |        |                               |                    | wanted then, add what came later                |
//! | yes    | the same row                  | anyone's           | keep, or refresh once due                       |
//! | yes    | same `ip:port`, other identity| ours or legacy     | clear it first, add once a list shows it gone   |
//! | yes    | the same after it was cleared | legacy            | its writer still runs: take ours out, wait      |
//! | yes    | other backends                | a stranger's       | hold, unless we already serve the port, join or |
//! |        |                               |                    | share it                                        |
//! | yes    | other node, same node port    | ours               | keep alive; remove once one wanted row stands   |
//! | yes    | a node port that yields it    | ours               | keep alive; remove once one wanted row stands   |
//! | yes    | other node port               | ours               | remove at once: another Service's or a dead one |
//! | no     | a row                         | ours               | remove; keep refreshing while removals are held |
//! |        |                               |                    | or the port is undecided                        |
//! | no     | a row                         | not ours           | nothing, ever                                   |
//!
//! "Legacy" is a row at one of our nodes and at the Service's own node port that does not carry our id: the
//! job before us wrote it. HAProxy refuses its whole file where one `ip:port` stands twice behind one front
//! (measured, 2.6), which stops every tenant's changes; hence "clear first".

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::Uptime;
use crate::desired::{Code, Finding};
use crate::route::{NodePort, RouterPort, ServiceKey, ServiceRef, stable_hash};

pub mod admission;
pub mod flap;
mod ownership;
#[cfg(test)]
mod tests;

pub use ownership::{InstanceId, Owned};

/// A row is not asked to go again before this: a delete that did nothing will do nothing a second later
/// either, and the row lapses by itself.
const REMOVE_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// No TLS towards the backend, said outright. With 0 or nothing, some versions of the routing API (2024-09,
/// 2026-08) insert another row at each refresh and delete none (measured).
pub const NO_TLS: i32 = -1;

/// The identity of a row of the routing API. Ours hold a node's address; strangers' hold whatever they sent,
/// since the API does not parse it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TcpRow {
    /// The port clients dial.
    pub port: RouterPort,
    /// The backend's address, as written.
    pub ip: String,
    /// The backend's port.
    pub backend_port: u16,
    /// [`NO_TLS`] in ours; 0 where the row holds none.
    pub tls_port: i32,
    /// Never set in ours.
    pub sni: Option<String>,
    /// GUID of the router group.
    pub group: String,
}

/// Rows of the routing API, each with the `instance_id` of whoever wrote it first.
pub type Observed = BTreeMap<TcpRow, Option<String>>;

/// The rows one Service wants behind one router port, most preferred first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedPort {
    /// Who wants it.
    pub service: ServiceKey,
    /// Never empty, never two alike.
    pub rows: Vec<TcpRow>,
}

/// How much of the routing API's table can be seen.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// Not read yet: nothing new is published, nothing removed.
    Unknown,
    /// It may not be read: rows of an older job, which live 75 s at most, may still stand until `creates_from`.
    Blind {
        /// When a first row may be published.
        creates_from: Uptime,
        /// Rows wanted since the start: those of the process before us most likely stand, and lapse soon.
        inherited: &'a BTreeSet<TcpRow>,
    },
    /// The last list, with what we have done since.
    Seen(&'a Observed),
}

/// What this process itself has learnt about rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journal {
    /// When a row was last confirmed by the API.
    pub confirmed: BTreeMap<TcpRow, Uptime>,
    /// Rows that the last process had confirmed and this one has not: ours, but when they lapse nobody knows.
    pub inherited: BTreeSet<TcpRow>,
    /// Rows the API refuses.
    pub refused: BTreeMap<TcpRow, Refusal>,
    /// When a row was last asked to go.
    pub tried: BTreeMap<TcpRow, Uptime>,
    /// Rows that stood in the way of ours, for as long as whoever wrote them may write them again.
    pub cleared: BTreeMap<TcpRow, Cleared>,
    /// Rows of others that no list shows any more, and until when tcp-router may still hold them: a list hides
    /// a row as soon as its life is over, but routers are told by the pruner, up to 11 s later (measured).
    pub lapsing: BTreeMap<TcpRow, Uptime>,
    /// Rows of ours that somebody deletes as often as they are restored, and until when they are left alone: each
    /// round costs every tenant two HAProxy reloads.
    pub contested: BTreeMap<TcpRow, Uptime>,
}

/// What became of a row that stood in the way of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleared {
    /// Asked to go; no list has shown it gone yet.
    Asked,
    /// Gone since then.
    Gone(Uptime),
    /// Gone and written again: its writer still runs, and would write it again after each deletion.
    Back,
}

/// Why a row is left alone for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// When it is tried again.
    pub until: Uptime,
    /// What the API said.
    pub message: String,
}

/// What is done about a port that others serve already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnForeign {
    /// Nothing is published there, unless we serve it as well already.
    Hold,
    /// We join them, and say so.
    Join,
    /// They are peers, each with backends of its own: that is how the port is meant to be served.
    Share,
}

/// What an operator and the API's pace decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What is done about ports that others serve.
    pub on_foreign: OnForeign,
    /// Remove nothing for now, and keep alive what should go.
    pub hold_removals: bool,
    /// How long a row lives without a refresh.
    pub ttl: Duration,
    /// The age at which a row is refreshed.
    pub refresh_after: Duration,
    /// Rows due within this time are refreshed together with those that are due.
    pub slack: Duration,
}

/// Everything a plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Our mark.
    pub instance: &'a InstanceId,
    /// What should live.
    pub wanted: &'a BTreeMap<RouterPort, WantedPort>,
    /// What lives.
    pub view: View<'a>,
    /// What this process knows of it.
    pub journal: &'a Journal,
    /// Every address of every Node of our cluster.
    pub node_ips: &'a BTreeMap<IpAddr, String>,
    /// The node ports of our labelled Services.
    pub node_ports: &'a BTreeMap<NodePort, Arc<ServiceRef>>,
    /// Node ports of Services that gave a router port to the one that wants it.
    pub yielding: &'a BTreeMap<RouterPort, BTreeSet<NodePort>>,
    /// Ports of which nobody can say yet whether they should be served.
    pub undecided: &'a BTreeSet<RouterPort>,
    /// What was decided.
    pub policy: Policy,
    /// When.
    pub now: Uptime,
}

/// What to do. Every list is ordered; `add` goes breadth first: the first backend of every port before the
/// second of any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Rows at the very place of one of ours, to be gone before it is added.
    pub clear: Vec<Owned<TcpRow>>,
    /// Rows that lived and lapsed, or that a start cannot see but most likely stand; they go before anything new.
    pub restore: Vec<TcpRow>,
    /// Rows never seen before.
    pub add: Vec<TcpRow>,
    /// Rows that live and are due.
    pub refresh: Vec<TcpRow>,
    /// Rows that should go.
    pub remove: Vec<Owned<TcpRow>>,
    /// Rows that live and are not due.
    pub keep: Vec<TcpRow>,
    /// Ports with rows that may not be published now.
    pub held: BTreeSet<RouterPort>,
    /// What is wrong or odd.
    pub findings: Vec<Finding>,
    /// When time alone changes the plan.
    pub wait: Option<Uptime>,
    /// A conflict stands that only another look at the table can resolve.
    pub look_again: Option<Look>,
}

/// How soon the table should be looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Look {
    /// Rows in the way are about to lapse.
    Soon,
    /// A stranger serves a port of ours; he may leave one day.
    Later,
}

/// Whose a row is, for the Service that wants its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Ours,
    Legacy,
    Foreign,
}

struct Planner<'a> {
    input: Input<'a>,
    by_port: BTreeMap<RouterPort, Vec<(&'a TcpRow, Option<&'a str>)>>,
    add: Vec<(usize, TcpRow)>,
    plan: Plan,
}

/// Compares what should live with what lives.
#[must_use]
pub fn plan(input: Input<'_>) -> Plan {
    let mut planner = Planner::new(input);
    for (&port, wanted) in input.wanted {
        planner.port(port, wanted);
    }
    planner.surplus();
    planner.finish()
}

// === impl TcpRow ===

impl TcpRow {
    /// Whether HAProxy would give both the same server name behind the same front.
    #[must_use]
    pub fn same_server(&self, other: &Self) -> bool {
        let sni = |row: &Self| row.sni.clone().unwrap_or_default();
        (self.port, &self.ip, self.backend_port) == (other.port, &other.ip, other.backend_port)
            && sni(self) == sni(other)
    }

    /// `ip:port` of the backend.
    #[must_use]
    pub fn backend(&self) -> String {
        match self.ip.parse() {
            Ok(ip) => std::net::SocketAddr::new(ip, self.backend_port).to_string(),
            Err(_) => format!("{}:{}", self.ip, self.backend_port),
        }
    }
}

// === impl Plan ===

impl Plan {
    /// Whether nothing would be opened or closed; refreshes change nothing that a client could see.
    #[must_use]
    pub fn in_sync(&self) -> bool {
        self.clear.is_empty()
            && self.restore.is_empty()
            && self.add.is_empty()
            && self.remove.is_empty()
    }

    fn look(&mut self, look: Look) {
        self.look_again = Some(self.look_again.map_or(look, |other| other.min(look)));
    }

    fn wait_until(&mut self, moment: Uptime) {
        self.wait = Some(self.wait.map_or(moment, |other| other.min(moment)));
    }
}

// === impl Journal ===

impl Journal {
    /// Whether a row is ours by what we, or the process before us, did.
    #[must_use]
    pub fn holds(&self, row: &TcpRow) -> bool {
        self.confirmed.contains_key(row) || self.inherited.contains(row)
    }
}

// === impl Policy ===

impl Policy {
    /// When a row confirmed then is due again. Up to a tenth early, by the row itself, so that rows born
    /// together do not come due together for ever.
    fn due(&self, row: &TcpRow, confirmed: Uptime) -> Uptime {
        const STEPS: u64 = 1000;
        let ports = [row.port.get(), row.backend_port].map(u16::to_be_bytes);
        let bytes = row.ip.bytes().chain(ports.into_iter().flatten());
        let early = self.refresh_after / 10
            * u32::try_from(stable_hash(bytes) % STEPS).unwrap_or(0)
            / u32::try_from(STEPS).unwrap_or(1);
        confirmed + self.refresh_after.saturating_sub(early)
    }
}

// === impl Planner ===

impl<'a> Planner<'a> {
    fn new(input: Input<'a>) -> Self {
        let mut by_port: BTreeMap<_, Vec<_>> = BTreeMap::new();
        if let View::Seen(observed) = input.view {
            for (row, stamp) in observed {
                by_port
                    .entry(row.port)
                    .or_default()
                    .push((row, stamp.as_deref()));
            }
        }
        Self {
            input,
            by_port,
            add: Vec::new(),
            plan: Plan::default(),
        }
    }

    fn port(&mut self, port: RouterPort, wanted: &WantedPort) {
        let standing = self.by_port.get(&port).cloned().unwrap_or_default();
        let judged: Vec<_> = standing
            .iter()
            .map(|&(row, stamp)| (row, self.standing(row, stamp, wanted)))
            .collect();
        if !self.enter(port, wanted, &judged) {
            self.plan.held.insert(port);
            return;
        }
        let mut legacy = Vec::new();
        for (rank, row) in wanted.rows.iter().enumerate() {
            if let Some(refusal) = self.input.journal.refused.get(row)
                && refusal.until > self.input.now
            {
                let message = format!(
                    "the routing API refuses {}: {}",
                    row.backend(),
                    refusal.message
                );
                self.find(Code::RouteRefused, wanted, message, None);
                self.plan.held.insert(port);
                self.plan.wait_until(refusal.until);
                continue;
            }
            if self.contested(row, wanted) {
                continue;
            }
            let (mut in_the_way, mut yields) = (false, false);
            for (other, standing) in &judged {
                if *other != row && other.same_server(row) {
                    in_the_way = true;
                    let theirs = *standing != Standing::Ours;
                    if theirs && self.input.journal.cleared.get(*other) == Some(&Cleared::Back) {
                        yields = true;
                    } else {
                        self.clear(other, row);
                    }
                    if theirs {
                        legacy.push(row.backend());
                    }
                }
            }
            if let Some(until) = self.lapses(row) {
                in_the_way = true;
                legacy.push(row.backend());
                self.plan.wait_until(until);
            }
            let ours = standing.iter().find(|(other, _)| *other == row);
            match ours.filter(|_| yields) {
                Some((_, stamp)) => self.give_way(row, *stamp),
                None => self.row(rank, row, in_the_way),
            }
        }
        if !legacy.is_empty() {
            let message = format!(
                "rows of an older job for {} stand in the way of port `{port}`",
                legacy.join(", ")
            );
            let hint = "stop the older job; its rows lapse within 75 s";
            self.find(Code::LegacyRows, wanted, message, Some(hint));
        }
    }

    /// Whether we may publish on the port, given who else is there.
    fn enter(
        &mut self,
        port: RouterPort,
        wanted: &WantedPort,
        judged: &[(&TcpRow, Standing)],
    ) -> bool {
        let strangers: BTreeSet<_> = judged
            .iter()
            .filter(|(_, standing)| *standing == Standing::Foreign)
            .map(|(row, _)| row.backend())
            .collect();
        if strangers.is_empty() || self.input.policy.on_foreign == OnForeign::Share {
            return true;
        }
        self.plan.look(Look::Later);
        let incumbent = judged
            .iter()
            .any(|(_, standing)| *standing != Standing::Foreign)
            || wanted.rows.iter().any(|row| self.input.journal.holds(row));
        let names = strangers.into_iter().collect::<Vec<_>>().join(", ");
        if incumbent || self.input.policy.on_foreign == OnForeign::Join {
            let message = format!("port `{port}` also leads to {names}, which is not ours");
            self.find(Code::ForeignJoined, wanted, message, None);
            return true;
        }
        let message = format!("port `{port}` already leads to {names}, which is not ours");
        let hint = "choose another port, or set `tcp.on_foreign_backend: join`";
        self.find(Code::ForeignBackend, wanted, message, Some(hint));
        false
    }

    /// Whether it is gone because somebody deletes it again and again.
    fn contested(&mut self, row: &TcpRow, wanted: &WantedPort) -> bool {
        let until = self.input.journal.contested.get(row).copied();
        let Some(until) = until.filter(|until| *until > self.input.now && !self.stands(row)) else {
            return false;
        };
        let message = format!(
            "somebody deletes {} behind port `{}` as often as it is restored; it is left alone for a while",
            row.backend(),
            row.port
        );
        let hint = "find out who else writes to the routing API";
        self.find(Code::RouteContested, wanted, message, Some(hint));
        self.plan.held.insert(row.port);
        self.plan.wait_until(until);
        true
    }

    fn row(&mut self, rank: usize, row: &TcpRow, in_the_way: bool) {
        let Input { journal, now, .. } = self.input;
        let confirmed = journal.confirmed.get(row).copied();
        if self.stands(row) {
            self.live(row, confirmed);
            return;
        }
        if in_the_way {
            self.plan.held.insert(row.port);
            self.plan.look(Look::Soon);
            return;
        }
        match (self.input.view, confirmed) {
            (View::Unknown, _) => {}
            // What stood before us needs no wait for an older job's rows: that wait was the last process's.
            (_, None) if journal.inherited.contains(row) => self.plan.restore.push(row.clone()),
            (View::Blind { creates_from, .. }, None) if now < creates_from => {
                self.plan.held.insert(row.port);
                self.plan.wait_until(creates_from);
            }
            (View::Blind { inherited, .. }, None) if inherited.contains(row) => {
                self.plan.restore.push(row.clone());
            }
            (_, Some(_)) => self.plan.restore.push(row.clone()),
            (_, None) => self.add.push((rank, row.clone())),
        }
    }

    /// A row that stands: kept, or refreshed once due, unless that was refused lately.
    fn live(&mut self, row: &TcpRow, confirmed: Option<Uptime>) {
        let Input {
            policy,
            now,
            journal,
            ..
        } = self.input;
        if let Some(refusal) = journal.refused.get(row).filter(|it| it.until > now) {
            self.plan.keep.push(row.clone());
            self.plan.wait_until(refusal.until);
            return;
        }
        match confirmed.map(|at| policy.due(row, at)) {
            Some(due) if due > now + policy.slack => {
                self.plan.keep.push(row.clone());
                self.plan.wait_until(due);
            }
            _ => self.plan.refresh.push(row.clone()),
        }
    }

    /// Takes a row of ours out of the way of an older job's that comes back: both together would keep HAProxy from
    /// every change of every tenant, and the older job's leads to the same place.
    fn give_way(&mut self, row: &TcpRow, stamp: Option<&str>) {
        self.plan.held.insert(row.port);
        self.plan.look(Look::Soon);
        let Input {
            instance, journal, ..
        } = self.input;
        if let Some(owned) = Owned::prove(row, stamp, instance, journal)
            && !self.tried(row)
        {
            self.plan.remove.push(owned);
        }
    }

    /// Until when a row at this very place may still stand in tcp-router's table, though in no list.
    fn lapses(&self, row: &TcpRow) -> Option<Uptime> {
        let lapsing = self.input.journal.lapsing.iter();
        lapsing
            .filter(|(other, until)| {
                *other != row && other.same_server(row) && **until > self.input.now
            })
            .map(|(_, until)| *until)
            .max()
            .filter(|_| !self.stands(row))
    }

    /// Asks a row to go that stands at the very place of one of ours.
    fn clear(&mut self, row: &TcpRow, wanted: &TcpRow) {
        let asked = self.plan.clear.iter().any(|owned| owned.get() == row);
        if asked || self.input.policy.hold_removals || self.tried(row) {
            return;
        }
        self.plan.clear.extend(Owned::in_the_way(row, wanted));
    }

    /// Whether it was asked to go so short a time ago that asking again would tell nothing.
    fn tried(&mut self, row: &TcpRow) -> bool {
        let Some(again) = self
            .input
            .journal
            .tried
            .get(row)
            .map(|at| *at + REMOVE_AGAIN_AFTER)
        else {
            return false;
        };
        if again <= self.input.now {
            return false;
        }
        self.plan.wait_until(again);
        self.plan.look(Look::Soon);
        true
    }

    /// Rows that are ours and that nobody wants.
    fn surplus(&mut self) {
        let wanted = self.input.wanted;
        let wants = |row: &TcpRow| {
            let port = wanted.get(&row.port);
            port.is_some_and(|port| port.rows.contains(row))
        };
        let candidates: Vec<(&TcpRow, Option<&str>)> = match self.input.view {
            View::Unknown => Vec::new(),
            View::Blind { .. } => {
                let Journal {
                    confirmed,
                    inherited,
                    ..
                } = self.input.journal;
                // One that is only to be kept alive must live, which nobody can tell of those.
                let inherited = inherited.iter().filter(|row| !self.kept(row.port));
                let rows = confirmed.keys().chain(inherited);
                rows.map(|row| (row, None)).collect()
            }
            View::Seen(observed) => observed
                .iter()
                .map(|(row, stamp)| (row, stamp.as_deref()))
                .collect(),
        };
        for (row, stamp) in candidates {
            if wants(row) || self.plan.clear.iter().any(|owned| owned.get() == row) {
                continue;
            }
            let Some(owned) = Owned::prove(row, stamp, self.input.instance, self.input.journal)
            else {
                continue;
            };
            if self.kept(row.port) {
                self.plan.held.insert(row.port);
                self.live(row, self.input.journal.confirmed.get(row).copied());
            } else if self.last_of_its_port(row) {
                self.keep_alive(row);
            } else if !self.tried(row) {
                self.plan.remove.push(owned);
            }
        }
    }

    /// Whether nothing of the port may be removed now.
    fn kept(&self, port: RouterPort) -> bool {
        self.input.policy.hold_removals || self.input.undecided.contains(&port)
    }

    /// Whether the port would close, if the row went before its successors stand. A row at another node port
    /// is no loss: it leads to another Service or nowhere, unless that Service gave the port away itself.
    fn last_of_its_port(&self, row: &TcpRow) -> bool {
        let yields = NodePort::new(row.backend_port).is_some_and(|node_port| {
            let yielding = self.input.yielding.get(&row.port);
            yielding.is_some_and(|ports| ports.contains(&node_port))
        });
        self.input.wanted.get(&row.port).is_some_and(|port| {
            let mut rows = port.rows.iter();
            (yields || rows.all(|other| other.backend_port == row.backend_port))
                && !port.rows.iter().any(|other| self.stands(other))
        })
    }

    /// A row that nobody wants, but that its port cannot do without yet. One of a router group that is no
    /// longer ours is left to itself: the API may not know that group any more.
    fn keep_alive(&mut self, row: &TcpRow) {
        let wanted = self.input.wanted.get(&row.port);
        let current =
            wanted.is_some_and(|port| port.rows.iter().any(|other| other.group == row.group));
        if current && self.stands(row) {
            self.live(row, self.input.journal.confirmed.get(row).copied());
        }
    }

    fn stands(&self, row: &TcpRow) -> bool {
        let confirmed = self.input.journal.confirmed.get(row);
        match self.input.view {
            View::Unknown => confirmed.is_some(),
            View::Blind { .. } => {
                confirmed.is_some_and(|at| *at + self.input.policy.ttl > self.input.now)
            }
            View::Seen(observed) => observed.contains_key(row),
        }
    }

    fn standing(&self, row: &TcpRow, stamp: Option<&str>, wanted: &WantedPort) -> Standing {
        if Owned::prove(row, stamp, self.input.instance, self.input.journal).is_some() {
            return Standing::Ours;
        }
        let our_node = row
            .ip
            .parse()
            .is_ok_and(|ip: IpAddr| self.input.node_ips.contains_key(&ip));
        let its_port = NodePort::new(row.backend_port)
            .and_then(|port| self.input.node_ports.get(&port))
            .is_some_and(|service| service.key == wanted.service);
        let ours_at_heart = wanted.rows.iter().any(|other| other.same_server(row));
        if (our_node && its_port) || ours_at_heart {
            Standing::Legacy
        } else {
            Standing::Foreign
        }
    }

    fn find(&mut self, code: Code, wanted: &WantedPort, message: String, hint: Option<&str>) {
        let finding = Finding::on_service(code, &wanted.service, message);
        self.plan.findings.push(match hint {
            Some(hint) => finding.hint(hint),
            None => finding,
        });
    }

    fn finish(mut self) -> Plan {
        if !self.input.journal.cleared.is_empty() && matches!(self.input.view, View::Seen(_)) {
            self.plan.look(Look::Soon);
        }
        self.add.sort();
        self.plan.add = self.add.into_iter().map(|(_, row)| row).collect();
        self.plan.findings.sort();
        self.plan
    }
}
