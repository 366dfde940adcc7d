//! What may never be, and what must be in the end.
//!
//! Never, looked at each second against what really stands in the cluster:
//! - a route that was served and whose Service did not change leads nowhere;
//! - an address stays announced that no Service asks for any more, longer than it takes to be told and to tell;
//! - what is a stranger's is touched (judged where it happens: `world::routing`, `world::nats`).
//!
//! In the end, once faults have stopped: routers hold what the cluster asks for and nothing else.
//!
//! A bound counts only while nothing stands in the way of keeping it: each second in which something does begins it
//! anew. The story leaves enough time between two obstacles that no route must lapse.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::Moment;
use crate::process::NAMES;
use crate::story::TAKES_OVER;
use crate::world::World;
use crate::world::cluster::{Kind, Node, Object, Service};
use crate::world::links::{Remote, Way};
use crate::world::routing::Writer;

/// What replaces an endpoint is told again before each withdrawal of it, so that only a router that goes on losing
/// messages can miss it each time and hear the withdrawal. What leads nowhere there by the time the loss ends, or was
/// on its way then, is told by the next beat, of which there is one in 20 s.
const ROUTER_CATCHES_UP: Duration = Duration::from_secs(25);
/// A Service that is new, or new behind a front, is known to the controller after so long with nothing in the way:
/// until then what leads to it is left over from another.
const KNOWN_AFTER: Duration = Duration::from_secs(20);
/// A route that changes hands may lead nowhere for a moment.
const GAP_MAX: Duration = Duration::from_secs(5);
/// A router that starts and says so is told everything within 250 ms and a fifth of an interval, which leaves it time
/// before it serves: with the gap that any route may have, 6 s. One that nobody heard of learns it by and by.
const ROUTER_TOLD: Duration = Duration::from_secs(1);
const ROUTER_LEARNS: Duration = Duration::from_secs(45);
/// From the change of a Service until routers have forgotten it, with nothing in the way: a backoff of 30 s, a
/// fresh read, and a withdrawal that is lost and repeated; well below the 120 s after which all goes by itself.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(100);
/// The same although a lane's remote is away: nothing is repeated any more, and what is not repeated goes.
const LAPSED_WITHIN: Duration = Duration::from_secs(260);
/// Removals that a list alone tells of, and that take all of a lane, wait for two further lists.
const HELD_FOR: Duration = Duration::from_secs(220);
/// What happens without an event is found by the list of each minute.
const RESCAN: Duration = Duration::from_secs(80);
/// A Service has its host for sure after so long.
const INCUMBENT_AFTER: Duration = Duration::from_secs(60);
/// As long as a stranger is remembered that was heard last, and some.
const STRANGER_FORGOTTEN: Duration = Duration::from_secs(150);
/// A conflict may be decided anew by a process that remembers nothing, and while one of the two is not seen a stranger
/// may come.
const CONFLICT_LASTS: Duration = Duration::from_mins(5);
/// From the last fault until all is well: rows that stood twice are left alone for 135 s, those that were refused
/// for 300 s, and each is followed by a list.
const SETTLED_WITHIN: Duration = Duration::from_secs(420);
/// And it stays so.
const SETTLED_FOR: Duration = Duration::from_secs(20);
/// Who leads says so each interval of 20 s, and whoever does not falls silent.
const STANDS_DOWN_WITHIN: Duration = Duration::from_secs(45);
/// As many nodes serve a TCP route.
const TCP_BACKENDS: usize = 3;

/// What clients dial.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Front {
    Host(String),
    Port(u16),
}

/// A Service with its node port, as long as both stay.
type Claim = (u64, u16);

/// Where each front leads.
type Led = BTreeMap<Front, Vec<(String, u16)>>;

/// A router, or the routing API's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Router(usize),
    Table,
}

/// Since when an address is announced that nobody asks for.
#[derive(Clone, Copy, Debug)]
struct Astray {
    since: Moment,
    /// And since when it leads to another Service.
    elsewhere: Option<Moment>,
}

pub struct Judge {
    calm: Moment,
    process_started: Moment,
    /// What a process was withdrawing outlives it.
    keeps: Keeps,
    /// Since when each claim stands.
    claimed: BTreeMap<(Front, Claim), Moment>,
    /// Who last asked for each front with each node port.
    last: BTreeMap<(Front, u16), u64>,
    /// Fronts that need not be served until then, and why is the story's affair.
    excused: BTreeMap<Front, Moment>,
    served: BTreeSet<(Place, Front, Claim)>,
    dark: BTreeMap<(Place, Front), Moment>,
    stale: BTreeMap<(Place, Front, String, u16), Astray>,
    /// When there last was no process, or none that ran.
    absent: Moment,
    /// When something last stood in the way of reading the cluster.
    blind: Moment,
    /// And of believing what was read: the change guard waits.
    unknowing: Moment,
    /// And of telling it, for each lane.
    mute: [Moment; 2],
    /// When a router last may have missed a message.
    missed: Moment,
    /// When routers last could not be expected to forget.
    unforgetting: Moment,
    /// Who leads, since when.
    holder: Option<(usize, Moment)>,
    /// Since when each could have said something to the other, and have been told.
    heard: Vec<Moment>,
    /// Which of several instances live and see the cluster, and when that last changed.
    well: Vec<bool>,
    turned: Moment,
    well_since: Option<Moment>,
    over: bool,
}

/// What the next process knows of what the last one withdrew.
#[derive(Clone, Copy, Debug)]
pub struct Keeps {
    /// Its state tells.
    pub state: bool,
    /// The routing API tells whose each row is.
    pub stamps: bool,
}

const HTTP: usize = 0;
const TCP: usize = 1;

// === impl Judge ===

impl Judge {
    pub fn new(calm: Moment, keeps: Keeps) -> Self {
        Self {
            calm,
            process_started: Moment::ZERO,
            keeps,
            claimed: BTreeMap::new(),
            last: BTreeMap::new(),
            excused: BTreeMap::new(),
            served: BTreeSet::new(),
            dark: BTreeMap::new(),
            stale: BTreeMap::new(),
            absent: Moment::ZERO,
            blind: Moment::ZERO,
            unknowing: Moment::ZERO,
            mute: [Moment::ZERO; 2],
            missed: Moment::ZERO,
            unforgetting: Moment::ZERO,
            holder: None,
            heard: Vec::new(),
            well: Vec::new(),
            turned: Moment::ZERO,
            well_since: None,
            over: false,
        }
    }

    pub fn process_started(&mut self, now: Moment) {
        self.process_started = now;
        if self.keeps.state {
            // The first view is compared with what the last process told.
            self.unknowing_until(now + HELD_FOR);
        }
    }

    /// That front need not be served for a while.
    pub fn excuse(&mut self, front: Front, until: Moment) {
        let known = self.excused.entry(front).or_default();
        *known = (*known).max(until);
    }

    fn blind_until(&mut self, until: Moment) {
        self.blind = self.blind.max(until);
        self.unknowing_until(until);
    }

    fn unknowing_until(&mut self, until: Moment) {
        self.unknowing = self.unknowing.max(until);
    }

    pub fn is_over(&self) -> bool {
        self.over
    }

    pub fn settled_after(&self) -> Option<Duration> {
        self.well_since.map(|at| at.saturating_sub(self.calm))
    }

    pub fn look(&mut self, world: &mut World, alive: &[bool]) {
        let now = world.now();
        let truth = Truth::of(world);
        let served = self.is_somebody_there(world, alive);
        self.obstacles(world, &truth, served);
        for (instance, alive) in alive.iter().enumerate() {
            let way = world.links.way_of(instance, Remote::Kubernetes).0;
            if !alive || way != Way::Up || self.blind >= now {
                world.nats.blind[instance] = now;
            }
        }
        world.routing.disturbed = self.mute[TCP].max(self.absent);
        for (front, claims) in &truth.claims {
            if claims.len() > 1 {
                self.excuse(front.clone(), now + CONFLICT_LASTS);
            }
            for claim in claims {
                self.last.insert((front.clone(), claim.1), claim.0);
                let claim = (front.clone(), *claim);
                let since = *self.claimed.entry(claim).or_insert(now);
                // Who asks for what strangers serve does not get it before they have left and been forgotten; what
                // is left over from another Service fades meanwhile.
                let leave = world.nats.strangers.iter().filter(|stranger| {
                    *front == Front::Host(stranger.uri.clone())
                        && since + INCUMBENT_AFTER > stranger.since
                });
                if let Some(leave) = leave.map(|stranger| stranger.until).max() {
                    let known = self.excused.entry(front.clone()).or_default();
                    *known = (*known).max(leave + STRANGER_FORGOTTEN);
                }
            }
        }
        self.claimed
            .retain(|(front, claim), _| truth.has(front, claim));
        let mut learning = BTreeSet::new();
        let mut held: BTreeMap<Place, Led> = BTreeMap::new();
        for (index, router) in world.nats.routers.iter().enumerate() {
            let place = Place::Router(index);
            let heard = self.mute[HTTP].max(self.absent) <= router.started;
            let learns = if heard { ROUTER_TOLD } else { ROUTER_LEARNS };
            if !router.up || router.started + learns > now {
                self.dark.retain(|(other, _), _| *other != place);
                learning.insert(place);
            }
            let fronts = held.entry(place).or_default();
            for ((uri, address), endpoint) in &router.pools {
                let backend = split(address).filter(|_| endpoint.ours);
                let of_front = fronts.entry(Front::Host(uri.clone())).or_default();
                of_front.extend(backend);
            }
        }
        let fronts = held.entry(Place::Table).or_default();
        for row in world
            .routing
            .live(now)
            .filter(|row| row.writer == Writer::Us)
        {
            let front = Front::Port(row.row.port.get());
            let backend = (row.row.ip.clone(), row.row.backend_port);
            fronts.entry(front).or_default().push(backend);
        }
        let mut wrongs = Vec::new();
        if let Some((holder, since)) = self.holder {
            self.usurped(world, holder, since, &mut wrongs);
        }
        for (place, fronts) in &held {
            if !learning.contains(place) {
                self.dark(*place, fronts, &truth, now, &mut wrongs);
            }
            self.stale(*place, fronts, &truth, now, &mut wrongs);
        }
        for wrong in wrongs {
            world.wrong(wrong);
        }
        if now >= self.calm {
            self.settle(world, &held, &truth);
        }
    }

    /// Whether a process is there that can do what it should: the only one, or, where there are two, one that had
    /// the time to take over since the last of them came, went, or lost sight of the cluster.
    fn is_somebody_there(&mut self, world: &World, alive: &[bool]) -> bool {
        let now = world.now();
        if let [alive] = alive {
            return *alive;
        }
        let holder = world.cluster.lease.holder;
        if holder != self.holder {
            // Of what the one before withdrew the new one may know nothing.
            self.process_started = now;
            self.holder = holder;
        }
        let nats = world.links.way(Remote::Nats) == Way::Up;
        self.heard.resize(alive.len(), now);
        for (heard, alive) in self.heard.iter_mut().zip(alive) {
            if !alive || !nats {
                *heard = now;
            }
        }
        let lease = &world.cluster.lease;
        let sees = |instance| world.links.way_of(instance, Remote::Kubernetes).0 == Way::Up;
        let well: Vec<bool> = (0..)
            .zip(alive)
            .map(|(i, alive)| *alive && sees(i))
            .collect();
        if well != self.well || now < lease.forbidden.max(lease.unanswered) || holder.is_none() {
            self.turned = now;
            self.well = well;
        }
        self.well.contains(&true) && now >= self.turned + TAKES_OVER
    }

    fn obstacles(&mut self, world: &World, truth: &Truth, alive: bool) {
        let now = world.now();
        let cluster = &world.cluster.faults;
        let faults = [
            cluster.forbidden,
            cluster.get_forbidden,
            cluster.watch_forbidden,
            cluster.broken,
            cluster.slow.0,
            cluster.lag.0,
        ];
        if !alive {
            self.absent = now;
        }
        let up = |remote| world.links.way(remote) == Way::Up;
        if !alive || !up(Remote::Kubernetes) || faults.iter().any(|until| now < *until) {
            self.blind_until(now);
        }
        // Where objects may not be read one by one, lists alone tell.
        let lies = [cluster.all_empty, cluster.lists_empty, cluster.lists_lack];
        if lies.iter().any(|until| now < *until) {
            self.blind_until(now);
            self.unknowing_until(now + HELD_FOR);
        }
        if now < cluster.silent {
            self.blind_until(now + RESCAN);
        }
        let has = |http: bool| {
            truth
                .claims
                .keys()
                .any(|front| matches!(front, Front::Host(_)) == http)
        };
        if !has(true) || !has(false) {
            self.unknowing_until(now + HELD_FOR);
        }
        // One that is down forgets everything.
        let routers = &world.nats.routers;
        let deaf = routers.iter().any(|router| router.up && !router.hears(now));
        if !up(Remote::Nats) || now < world.nats.loss.0 || deaf {
            self.mute[HTTP] = now;
        }
        if now < world.nats.loss.0 || deaf {
            self.missed = now;
        }
        if world.links.way(Remote::Nats) == Way::Down || deaf {
            self.unforgetting = now;
        }
        let api = &world.routing.faults;
        let faults = [
            api.answers_lost,
            api.database,
            api.slow.0,
            api.events_denied,
        ];
        if !up(Remote::RoutingApi) || !up(Remote::Uaa) || faults.iter().any(|until| now < *until) {
            self.mute[TCP] = now;
        }
        if world.links.way(Remote::RoutingApi) == Way::Frozen {
            self.unforgetting = now;
        }
    }

    /// An instance goes on announcing though another leads that could tell it so.
    fn usurped(&self, world: &World, holder: usize, since: Moment, wrongs: &mut Vec<String>) {
        for (instance, said) in world.nats.said.iter().enumerate() {
            let since = since.max(self.heard[holder]).max(self.heard[instance]);
            if instance != holder && *said > since + STANDS_DOWN_WITHIN {
                let (name, holder) = (NAMES[instance], NAMES[holder]);
                wrongs.push(format!("{name} announces though {holder} leads"));
            }
        }
    }

    /// A route that was served, of a Service that is as it was, leads nowhere.
    fn dark(
        &mut self,
        place: Place,
        fronts: &Led,
        truth: &Truth,
        now: Moment,
        wrongs: &mut Vec<String>,
    ) {
        self.served
            .retain(|(other, front, claim)| *other != place || truth.has(front, claim));
        for (front, claims) in &truth.claims {
            if matches!(front, Front::Host(_)) == (place == Place::Table) {
                continue;
            }
            let backends = fronts.get(front).map(Vec::as_slice).unwrap_or_default();
            let leads = |claim: &&Claim| backends.iter().any(|(_, port)| *port == claim.1);
            let mut led = false;
            for claim in claims.iter().filter(leads) {
                led = true;
                let since = self.claimed[&(front.clone(), *claim)];
                if now.saturating_sub(since.max(self.unknowing)) > KNOWN_AFTER {
                    self.served.insert((place, front.clone(), *claim));
                }
            }
            let key = (place, front.clone());
            let excused = self.excuses(front, now);
            let served = |claim: &Claim| self.served.contains(&(place, front.clone(), *claim));
            if led || excused || !claims.iter().any(served) {
                self.dark.remove(&key);
                continue;
            }
            let since = *self.dark.entry(key).or_insert(now);
            // One that went dark while messages were lost, and has not heard its beat since.
            let missed = place != Place::Table
                && since <= self.missed + crate::TICK
                && now < self.missed + ROUTER_CATCHES_UP;
            if now - since > GAP_MAX && !missed {
                wrongs.push(format!(
                    "{front:?} leads nowhere at {place:?} since {since:?}"
                ));
            }
        }
    }

    /// An address is announced that nobody asks for.
    fn stale(
        &mut self,
        place: Place,
        fronts: &Led,
        truth: &Truth,
        now: Moment,
        wrongs: &mut Vec<String>,
    ) {
        let mut seen = BTreeSet::new();
        for (front, backends) in fronts {
            for (ip, port) in backends {
                let key = (place, front.clone(), ip.clone(), *port);
                if truth.wants(front, ip, *port) {
                    continue;
                }
                let mut astray = *self.stale.entry(key.clone()).or_insert(Astray {
                    since: now,
                    elsewhere: None,
                });
                astray.elsewhere = match astray.elsewhere {
                    _ if !self.is_anothers(front, *port, truth) => None,
                    None => Some(now),
                    since => since,
                };
                self.stale.insert(key.clone(), astray);
                seen.insert(key);
                if self.too_long(place, astray, now) && !self.excuses(front, now) {
                    wrongs.push(format!(
                        "{front:?} leads to {ip}:{port} at {place:?}, wanted by nobody: {astray:?}"
                    ));
                }
            }
        }
        self.stale
            .retain(|key, _| key.0 != place || seen.contains(key));
    }

    /// Whether that node port leads to another Service than the one that last asked for the route.
    fn is_anothers(&self, front: &Front, port: u16, truth: &Truth) -> bool {
        let owner = truth.owners.get(&port);
        let last = self.last.get(&(front.clone(), port));
        owner.is_some() && owner != last
    }

    fn too_long(&self, place: Place, astray: Astray, now: Moment) -> bool {
        let Astray { since, elsewhere } = astray;
        let after = |moment: Moment| now.saturating_sub(moment);
        let mute = self.mute[usize::from(place == Place::Table)];
        let Keeps { state, stamps } = self.keeps;
        // Of what the last process withdrew the next one may know nothing, and of what it wrote without ever being
        // told so this one does not: it goes by itself.
        let knows = match place {
            Place::Table => stamps,
            // A router that was away may have missed every repetition, and takes what it has for fresh.
            Place::Router(_) => {
                since > self.unforgetting && (state || since > self.process_started)
            }
        };
        let known = since.max(self.unknowing);
        let late = knows && after(known.max(mute)) > FORGOTTEN_WITHIN;
        // What leads to another Service is held by nobody and for nothing.
        let misled = elsewhere.map(|since| since.max(self.blind).max(mute));
        let misled = knows && misled.is_some_and(|since| after(since) > FORGOTTEN_WITHIN);
        let lapsed = after(known.max(self.unforgetting)) > LAPSED_WITHIN;
        late || misled || lapsed
    }

    fn excuses(&self, front: &Front, now: Moment) -> bool {
        self.excused.get(front).is_some_and(|until| now < *until)
    }

    /// Is all as it should be?
    fn settle(&mut self, world: &mut World, held: &BTreeMap<Place, Led>, truth: &Truth) {
        let now = world.now();
        let amiss = held.iter().find_map(|(place, fronts)| {
            let amiss = truth.amiss(fronts, *place == Place::Table)?;
            Some(format!("{amiss} at {place:?}"))
        });
        let Some(amiss) = amiss else {
            let since = *self.well_since.get_or_insert(now);
            self.over = now - since >= SETTLED_FOR;
            return;
        };
        self.well_since = None;
        if now - self.calm > SETTLED_WITHIN {
            world.wrong(format!("after {SETTLED_WITHIN:?} of calm: {amiss}"));
        }
    }
}

/// What the cluster asks for.
struct Truth {
    claims: BTreeMap<Front, Vec<Claim>>,
    /// Whom each node port leads to.
    owners: BTreeMap<u16, u64>,
    /// Addresses of the nodes that may serve.
    nodes: BTreeSet<String>,
}

// === impl Truth ===

impl Truth {
    fn of(world: &World) -> Self {
        let mut claims: BTreeMap<Front, Vec<Claim>> = BTreeMap::new();
        let mut nodes = BTreeSet::new();
        let mut owners = BTreeMap::new();
        for ((kind, ..), (_, object)) in &world.cluster.objects {
            match (kind, object) {
                (Kind::Service, Object::Service(service)) => {
                    owners.insert(service.node_port, service.uid);
                    for front in fronts(service) {
                        let claim = (service.uid, service.node_port);
                        claims.entry(front).or_default().push(claim);
                    }
                }
                (
                    _,
                    Object::Node(Node {
                        ip,
                        excluded: false,
                        ..
                    }),
                ) => {
                    nodes.insert(ip.clone());
                }
                _ => {}
            }
        }
        Self {
            claims,
            owners,
            nodes,
        }
    }

    fn has(&self, front: &Front, claim: &Claim) -> bool {
        let claims = self.claims.get(front);
        claims.is_some_and(|claims| claims.contains(claim))
    }

    fn wants(&self, front: &Front, ip: &str, port: u16) -> bool {
        let claims = self.claims.get(front);
        claims.is_some_and(|claims| claims.iter().any(|claim| claim.1 == port))
            && self.nodes.contains(ip)
    }

    /// The first thing that is not as it should be.
    fn amiss(&self, fronts: &Led, table: bool) -> Option<String> {
        let surplus = fronts
            .iter()
            .find(|(front, backends)| !backends.is_empty() && !self.claims.contains_key(front));
        if let Some((front, backends)) = surplus {
            return Some(format!("{front:?} leads to {backends:?}, wanted by nobody"));
        }
        for (front, claims) in &self.claims {
            if matches!(front, Front::Host(_)) == table {
                continue;
            }
            let backends = fronts.get(front).map(Vec::as_slice).unwrap_or_default();
            let all = self.nodes.len();
            let count = if table { all.min(TCP_BACKENDS) } else { all };
            let right = |claim: &&Claim| {
                let to_it = backends
                    .iter()
                    .filter(|(ip, port)| *port == claim.1 && self.nodes.contains(ip));
                to_it.count() == count && backends.len() == count
            };
            if !claims.iter().any(|claim| right(&claim)) {
                return Some(format!(
                    "{front:?} leads to {backends:?}, claimed by {claims:?}"
                ));
            }
        }
        None
    }
}

pub fn fronts(service: &Service) -> impl Iterator<Item = Front> {
    let host = service
        .host
        .as_ref()
        .map(|host| Front::Host(format!("{host}.apps.test")));
    host.into_iter().chain(service.port.map(Front::Port))
}

fn split(address: &str) -> Option<(String, u16)> {
    let (ip, port) = address.split_once(':')?;
    Some((ip.to_owned(), port.parse().ok()?))
}
