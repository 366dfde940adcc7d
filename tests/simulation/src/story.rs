//! What happens in a life: drawn from the seed, and laid out so that a right controller can always keep its routes.
//!
//! Every row and every registration lives 120 s and is refreshed four times or more in that time. So no obstacle
//! between the controller and a lane's remote lasts a minute, and each is followed by a minute without: whatever
//! lapses then was forgotten, not prevented.

mod cluster;

use std::time::Duration;

use fastrand::Rng;
use route_sync::plan::{NO_TLS, TcpRow};
use route_sync::route::RouterPort;

use crate::judge::{Front, Judge};
use crate::world::links::{Remote, Way, Whom, fails};
use crate::world::nats::{self, Stranger};
use crate::world::routing::{self, Other, PORT_FIRST};
use crate::world::{World, cluster as kubernetes};
use crate::{Moment, Traits};

pub use cluster::populate;

/// Hosts and ports that Services and strangers ask for: few, so that they meet.
const HOSTS: u32 = 6;
const PORTS: u16 = 6;
/// After an obstacle to a lane, so much time without one.
const RESPITE: Duration = Duration::from_secs(60);
/// A read that was refused is tried again after three minutes, until when lists take its place.
const REFUSED_LATELY: Duration = Duration::from_secs(200);

/// As long as it may take until another leads and has told everybody: 15 s without a sign of the one before, 2 s
/// between two looks, and what a process needs that has just started.
pub const TAKES_OVER: Duration = Duration::from_secs(40);
/// By then every instance has seen the Lease renewed.
const LEASE_KNOWN: Duration = Duration::from_secs(60);

/// What happens at one moment.
#[derive(Clone, Debug)]
pub enum Action {
    /// A process.
    Process(usize, Does),
    /// What is reached.
    Link((Remote, Whom), Way, Duration),
    Kubernetes(Trouble, Duration),
    Api(Annoyance, Duration),
    Loss(f64, Duration),
    RouterStops(usize),
    RouterStarts(usize),
    RouterDeafens(usize, Duration),
    Disk(usize, Damage),
    /// The Lease.
    LeaseDeleted,
    LeaseForbidden(Duration),
    LeaseUnanswered(Duration),
    /// Others.
    StrangerHost(Duration),
    StrangerRows(Duration),
    OlderJob(Duration),
    Vandal,
    RowDoubles,
    /// The cluster.
    Change,
    /// Everything is as it should be from now on.
    Calm,
}

/// What becomes of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    Start,
    Stop,
    Die,
    Freeze(Duration),
}

/// What becomes of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    Full(Duration),
    Slow(Duration),
    Lost,
    Torn,
}

/// What the apiserver can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Forbidden,
    GetForbidden,
    WatchForbidden,
    ListsEmpty,
    ListsLack,
    AllEmpty,
    Broken,
    Slow,
    Silent,
    Lag,
    Compacted,
    Cut,
}

/// What the routing API can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Annoyance {
    AnswersLost,
    Database,
    Refuses,
    EventsDenied,
    Slow,
}

pub struct Story {
    pub actions: Vec<(Moment, Action)>,
    pub calm: Moment,
    /// State is there and true whenever a process starts.
    pub keeps: bool,
}

/// Where obstacles may still be put.
struct Plan<'a> {
    rng: &'a mut Rng,
    traits: &'a Traits,
    actions: Vec<(Moment, Action)>,
    /// From when each lane may be obstructed again.
    http: Moment,
    tcp: Moment,
    kubernetes: Moment,
    /// Until when the apiserver may say what is not so.
    lies: Moment,
    /// Until when objects are not read one by one, as that was refused lately.
    lists_alone: Moment,
    router: Moment,
    /// From when one of two may fail again.
    crew: Moment,
    calm: Moment,
    /// Nothing but processes, the cluster and strangers give trouble.
    lanes_are_well: bool,
    /// The state is there and true whenever a process starts.
    keeps: bool,
}

// === impl Story ===

impl Story {
    pub fn draw(rng: &mut Rng, traits: &Traits) -> Self {
        let calm = seconds(rng, 120, 420);
        let disk_fails = traits.state && rng.u32(..4) == 0;
        let mut plan = Plan {
            traits,
            actions: Vec::new(),
            http: seconds(rng, 10, 60),
            tcp: seconds(rng, 10, 60),
            kubernetes: seconds(rng, 2, 30),
            lies: Moment::ZERO,
            lists_alone: Moment::ZERO,
            router: seconds(rng, 10, 60),
            crew: TAKES_OVER,
            calm,
            lanes_are_well: traits.instances > 1 && rng.u32(..4) > 0,
            keeps: traits.state && !disk_fails,
            rng,
        };
        if plan.rng.u32(..4) == 0 {
            let span = seconds(plan.rng, 10, 60);
            plan.actions.push((Moment::ZERO, Action::OlderJob(span)));
        }
        if plan.rng.u32(..4) == 0 {
            // Long enough that all others lapse whom it harms.
            let at = seconds(plan.rng, 20, 60);
            let refuses = Action::Api(Annoyance::Refuses, calm - at);
            plan.actions.push((at, refuses));
        }
        plan.changes();
        plan.obstacles(disk_fails);
        plan.actions.push((calm, Action::Calm));
        // As they were drawn where two come together.
        plan.actions.sort_by_key(|(at, _)| *at);
        Self {
            keeps: plan.keeps,
            actions: plan.actions,
            calm,
        }
    }
}

// === impl Plan ===

impl Plan<'_> {
    fn changes(&mut self) {
        // A route that nobody touches for minutes is what shows whether it is kept alive.
        let (least, most) = if self.lanes_are_well && self.rng.bool() {
            (20, 60)
        } else {
            (2, 12)
        };
        let pause = seconds(self.rng, least, most);
        let mut now = Moment::ZERO;
        loop {
            now += pause.mul_f64(0.1 + 1.8 * self.rng.f64());
            if now >= self.calm {
                return;
            }
            // Some at once.
            for _ in 0..1 + self.rng.usize(..8) / 6 {
                self.actions.push((now, Action::Change));
            }
        }
    }

    fn obstacles(&mut self, disk_fails: bool) {
        let mut now = seconds(self.rng, 2, 15);
        while now + Duration::from_secs(60) < self.calm {
            match self.rng.u32(..20) {
                // What two are there for; whatever hinders both leaves little room for it.
                5..=7 if self.lanes_are_well => self.one_of_two_fails(now),
                8..=10 if self.lanes_are_well => self.lease_fails(now),
                0..=4 => self.kubernetes_fails(now),
                5..=7 => self.api_fails(now),
                8..=10 => self.nats_fails(now),
                11 => self.router_fails(now),
                12..=14 => self.process_fails(now),
                15 if disk_fails => self.disk_fails(now),
                15 | 16 => {
                    // Long enough that they have to be known.
                    let span = self.span(180);
                    self.actions.push((now, Action::StrangerHost(span)));
                }
                17 => self.other(now, Action::StrangerRows),
                18 => self.other(now, Action::OlderJob),
                _ => {
                    let doubles = self.rng.u32(..4) == 0;
                    let one = if doubles {
                        Action::RowDoubles
                    } else {
                        Action::Vandal
                    };
                    self.actions.push((now, one));
                }
            }
            now += seconds(self.rng, 1, 7);
        }
    }

    fn span(&mut self, most: u64) -> Duration {
        seconds(self.rng, 1, most)
    }

    fn tcp_span(&mut self, most: u64) -> Duration {
        // A row that lives half as long stands less.
        let most = if self.traits.short_ttl {
            most.min(18)
        } else {
            most
        };
        self.span(most)
    }

    fn other(&mut self, now: Moment, action: impl FnOnce(Duration) -> Action) {
        let span = self.span(60);
        self.actions.push((now, action(span)));
    }

    fn kubernetes_fails(&mut self, now: Moment) {
        if now < self.kubernetes {
            return;
        }
        let troubles = [
            (Trouble::Forbidden, 60),
            (Trouble::GetForbidden, 90),
            (Trouble::WatchForbidden, 60),
            (Trouble::ListsEmpty, 40),
            (Trouble::ListsLack, 40),
            (Trouble::AllEmpty, 45),
            (Trouble::Broken, 60),
            (Trouble::Slow, 60),
            (Trouble::Silent, 30),
            (Trouble::Lag, 40),
            (Trouble::Compacted, 1),
            (Trouble::Cut, 1),
        ];
        let pick = self.rng.usize(..troubles.len() + 4);
        let (action, span) = if let Some((trouble, most)) = troubles.get(pick) {
            let span = self.span(*most);
            if *trouble == Trouble::GetForbidden {
                self.lists_alone = now + span + REFUSED_LATELY;
            }
            // Where objects may not be read one by one a list is believed.
            if *trouble == Trouble::ListsLack && now < self.lists_alone {
                return;
            }
            let lies = [Trouble::AllEmpty, Trouble::ListsEmpty, Trouble::ListsLack];
            if lies.contains(trouble) {
                self.lies = now + span;
            }
            (Action::Kubernetes(*trouble, span), span)
        } else {
            let span = self.span(60);
            let way = self.way();
            (
                Action::Link((Remote::Kubernetes, Whom::All), way, span),
                span,
            )
        };
        self.kubernetes = now + span + seconds(self.rng, 1, 20);
        self.actions.push((now, action));
    }

    fn way(&mut self) -> Way {
        if self.rng.bool() {
            Way::Down
        } else {
            Way::Frozen
        }
    }

    fn api_fails(&mut self, now: Moment) {
        if now < self.tcp {
            return;
        }
        let annoyances = [
            (Annoyance::AnswersLost, 25),
            (Annoyance::Database, 25),
            (Annoyance::Refuses, 200),
            (Annoyance::EventsDenied, 90),
            (Annoyance::Slow, 40),
        ];
        let pick = self.rng.usize(..annoyances.len() + 4);
        let (action, span) = match annoyances.get(pick) {
            // What is refused to one port is no obstacle to the others, however long.
            Some((Annoyance::Refuses, most)) => {
                let most_left = self.calm.saturating_sub(now) + Duration::from_secs(25);
                let span = self.span(*most).min(most_left);
                let action = Action::Api(Annoyance::Refuses, span);
                return self.actions.push((now, action));
            }
            Some((annoyance, most)) => {
                let span = self.tcp_span(*most);
                (Action::Api(*annoyance, span), span)
            }
            // A token that could not be had is asked for again after up to 30 s.
            None if pick == annoyances.len() => {
                let (span, way) = (self.tcp_span(30), self.way());
                (Action::Link((Remote::Uaa, Whom::All), way, span), span)
            }
            None => {
                let (span, way) = (self.tcp_span(50), self.way());
                (
                    Action::Link((Remote::RoutingApi, Whom::All), way, span),
                    span,
                )
            }
        };
        self.tcp = now + span + RESPITE;
        self.actions.push((now, action));
    }

    fn nats_fails(&mut self, now: Moment) {
        if now < self.http {
            return;
        }
        let (action, span) = if self.rng.bool() {
            let span = self.span(25);
            (Action::Loss(0.2 + 0.6 * self.rng.f64(), span), span)
        } else {
            let (span, way) = (self.span(50), self.way());
            (Action::Link((Remote::Nats, Whom::All), way, span), span)
        };
        self.http = now + span + RESPITE;
        self.actions.push((now, action));
    }

    fn router_fails(&mut self, now: Moment) {
        if now < self.router {
            return;
        }
        let router = self.rng.usize(..self.traits.routers);
        let span = self.span(40);
        if self.rng.bool() {
            self.actions.push((now, Action::RouterStops(router)));
            self.actions
                .push((now + span, Action::RouterStarts(router)));
        } else {
            self.actions
                .push((now, Action::RouterDeafens(router, span)));
        }
        self.router = now + span + RESPITE;
    }

    fn process_fails(&mut self, now: Moment) {
        if self.traits.instances > 1 {
            return self.one_of_two_fails(now);
        }
        if now < self.http.max(self.tcp).max(self.lies) {
            return;
        }
        let span = self.tcp_span(40);
        let kind = self.rng.u32(..3);
        if kind == 0 {
            self.does(now, 0, Does::Freeze(span));
        } else {
            // Without state nothing is known before the apiserver answers.
            if !self.keeps && now < self.kubernetes {
                return;
            }
            let end = if kind == 1 { Does::Die } else { Does::Stop };
            self.ends(now, 0, end, span);
            self.lies = self.lies.max(now);
            self.kubernetes = self.kubernetes.max(now + span + Duration::from_secs(40));
        }
        (self.http, self.tcp) = (now + span + RESPITE, now + span + RESPITE);
    }

    /// The other one goes on, or takes over: however long this one is away, nothing lapses, as long as the other one
    /// can be told that it leads.
    fn one_of_two_fails(&mut self, now: Moment) {
        let free = [self.http, self.tcp, self.lies, self.kubernetes, self.crew];
        if free.iter().any(|free| now < *free) {
            return;
        }
        let left = self.calm.saturating_sub(now + Duration::from_secs(20));
        let span = self.span(240).min(left);
        let instance = self.rng.usize(..self.traits.instances);
        match self.rng.u32(..5) {
            0 => self.does(now, instance, Does::Freeze(span)),
            1 => self.ends(now, instance, Does::Die, span),
            2 => self.ends(now, instance, Does::Stop, span),
            _ => {
                let link = (Remote::Kubernetes, Whom::Only(instance));
                let way = self.way();
                self.actions.push((now, Action::Link(link, way, span)));
            }
        }
        self.crew = now + span + TAKES_OVER;
        let settled = now + TAKES_OVER;
        (self.http, self.tcp) = (settled + RESPITE, settled + RESPITE);
        self.kubernetes = self.kubernetes.max(settled);
        self.lies = self.lies.max(now);
    }

    fn does(&mut self, now: Moment, instance: usize, does: Does) {
        self.actions.push((now, Action::Process(instance, does)));
    }

    /// A stop takes a moment, and what has not stopped by then is killed.
    fn ends(&mut self, now: Moment, instance: usize, end: Does, span: Duration) {
        let stopped = Duration::from_secs(9);
        self.does(now, instance, end);
        self.does(now + stopped, instance, Does::Die);
        self.does(now + stopped.max(span), instance, Does::Start);
    }

    fn disk_fails(&mut self, now: Moment) {
        let damage = match self.rng.u32(..4) {
            0 => Damage::Full(self.span(60)),
            1 => Damage::Slow(self.span(60)),
            2 => Damage::Lost,
            _ => Damage::Torn,
        };
        let instance = match self.traits.instances {
            1 => 0,
            several => self.rng.usize(..several),
        };
        self.actions.push((now, Action::Disk(instance, damage)));
    }

    /// What befalls the Lease alone ends nobody's term for longer than it takes to come by another.
    fn lease_fails(&mut self, now: Moment) {
        if now < self.kubernetes.max(self.crew).max(LEASE_KNOWN) {
            return;
        }
        let span = self.span(60);
        let action = match self.rng.u32(..6) {
            0 => Action::LeaseDeleted,
            1 => Action::LeaseForbidden(span),
            2 => Action::LeaseUnanswered(span),
            _ => return self.one_of_two_fails(now),
        };
        self.actions.push((now, action));
        self.crew = now + span + TAKES_OVER;
        self.kubernetes = self.crew;
    }
}

/// Lets it happen.
pub fn happens(world: &mut World, judge: &mut Judge, action: Action) {
    let now = world.now();
    match action {
        // Whoever lives is the life's own affair.
        Action::Process(..) => {}
        Action::Link(link, way, span) => fails(world, link, way, span),
        Action::Kubernetes(trouble, span) => troubles(world, trouble, span),
        Action::Api(annoyance, span) => annoys(world, judge, annoyance, span),
        Action::Loss(share, span) => {
            world.nats.loss = (now + span, share);
            world.note(format_args!("routers lose {share:.2} for {span:?}"));
        }
        Action::RouterStops(router) => nats::router_stops(world, router),
        Action::RouterStarts(router) => nats::router_starts(world, router),
        Action::RouterDeafens(router, span) => nats::router_deafens(world, router, span),
        Action::Disk(instance, damage) => damages(world, instance, damage),
        Action::LeaseDeleted => kubernetes::lease::delete(world),
        Action::LeaseForbidden(span) => world.cluster.lease.forbidden = now + span,
        Action::LeaseUnanswered(span) => world.cluster.lease.unanswered = now + span,
        Action::StrangerHost(span) => stranger_on_host(world, span),
        Action::StrangerRows(span) => stranger_on_port(world, span),
        Action::OlderJob(span) => older_job(world, judge, span),
        Action::Vandal => vandal(world, judge),
        Action::RowDoubles => {
            if let Some(port) = routing::double(world) {
                // Both lapse, and are left alone until then.
                judge.excuse(Front::Port(port), now + Duration::from_secs(330));
            }
        }
        Action::Change => cluster::change(world),
        Action::Calm => cluster::calm(world),
    }
}

fn troubles(world: &mut World, trouble: Trouble, span: Duration) {
    let until = world.now() + span;
    let wait = Duration::from_millis(world.rng.u64(200..2500));
    world.note(format_args!("apiserver: {trouble:?} for {span:?}"));
    let faults = &mut world.cluster.faults;
    match trouble {
        Trouble::Forbidden => faults.forbidden = until,
        Trouble::GetForbidden => faults.get_forbidden = until,
        Trouble::WatchForbidden => faults.watch_forbidden = until,
        Trouble::ListsEmpty => faults.lists_empty = until,
        Trouble::ListsLack => faults.lists_lack = until,
        Trouble::AllEmpty => faults.all_empty = until,
        Trouble::Broken => faults.broken = until,
        Trouble::Slow => faults.slow = (until, wait),
        Trouble::Silent => faults.silent = until,
        Trouble::Lag => faults.lag = (until, wait * 8),
        Trouble::Compacted | Trouble::Cut => {}
    }
    match trouble {
        // Only who lists again is told what is not so.
        Trouble::Compacted | Trouble::ListsEmpty | Trouble::ListsLack | Trouble::AllEmpty => {
            kubernetes::compact(world);
        }
        Trouble::Lag | Trouble::Silent | Trouble::GetForbidden => {}
        _ => kubernetes::cut(world),
    }
}

fn annoys(world: &mut World, judge: &mut Judge, annoyance: Annoyance, span: Duration) {
    let until = world.now() + span;
    let wait = Duration::from_millis(world.rng.u64(300..4000));
    let port = port(&mut world.rng);
    world.note(format_args!("routing API: {annoyance:?} for {span:?}"));
    let faults = &mut world.routing.faults;
    match annoyance {
        Annoyance::AnswersLost => faults.answers_lost = until,
        Annoyance::Database => faults.database = until,
        Annoyance::EventsDenied => faults.events_denied = until,
        Annoyance::Slow => faults.slow = (until, wait),
        Annoyance::Refuses => {
            faults.refuses = Some((port, until));
            // What was refused when it was new is left alone for five minutes.
            judge.excuse(Front::Port(port), until + Duration::from_secs(330));
        }
    }
}

fn damages(world: &mut World, instance: usize, damage: Damage) {
    let now = world.now();
    let disk = &mut world.disks[instance];
    match damage {
        Damage::Full(span) => disk.full = now + span,
        Damage::Slow(span) => disk.slow = now + span,
        Damage::Lost => disk.contents = None,
        Damage::Torn => tears(world, instance),
    }
}

/// The disk was full at the wrong moment, or worse.
fn tears(world: &mut World, instance: usize) {
    let Some(contents) = &mut world.disks[instance].contents else {
        return;
    };
    let at = world.rng.usize(..contents.len().max(1));
    if world.rng.bool() {
        contents.truncate(at);
    } else if let Some(byte) = contents.get_mut(at) {
        *byte ^= 1 << world.rng.u32(..8);
    }
    world.note(format_args!("disk: torn"));
}

fn stranger_on_host(world: &mut World, span: Duration) {
    let now = world.now();
    let host = world.rng.u32(..HOSTS);
    let stranger = Stranger {
        uri: format!("host-{host}.apps.test"),
        address: format!("10.9.0.{}:8080", world.rng.u8(1..9)),
        since: now,
        until: now + span,
    };
    nats::stranger_comes(world, stranger);
}

fn stranger_on_port(world: &mut World, span: Duration) {
    let now = world.now();
    let port = port(&mut world.rng);
    let group = world.routing.groups[0].guid.clone();
    let rows = (1..=world.rng.u8(1..=2)).map(|number| TcpRow {
        port: RouterPort::new(port).expect("a port of the group must be one"),
        ip: format!("10.9.1.{number}"),
        backend_port: 5432,
        tls_port: NO_TLS,
        sni: None,
        group: group.clone(),
    });
    let other = Other {
        rows: rows.collect(),
        stamp: Some("somebody-else".to_owned()),
        ttl: Duration::from_secs(60),
        since: now,
        until: now + span,
        legacy: false,
    };
    routing::joins(world, other);
}

/// The job before us still writes its rows for our routes.
fn older_job(world: &mut World, judge: &mut Judge, span: Duration) {
    let now = world.now();
    let group = world.routing.groups[0].guid.clone();
    let mut rows = Vec::new();
    for (_, service) in world.cluster.services() {
        let Some(port) = service.port.and_then(RouterPort::new) else {
            continue;
        };
        // Its rows go first, and then ours come: a gap, but never both.
        judge.excuse(
            Front::Port(port.get()),
            now + span + Duration::from_secs(240),
        );
        rows.extend(world.cluster.nodes().map(|(_, node)| TcpRow {
            port,
            ip: node.ip.clone(),
            backend_port: service.node_port,
            tls_port: 0,
            sni: None,
            group: group.clone(),
        }));
    }
    let other = Other {
        rows,
        stamp: None,
        ttl: Duration::from_secs(60),
        since: now,
        until: now + span,
        legacy: true,
    };
    routing::joins(world, other);
}

/// What is deleted comes back at once where events tell of it, and else with the next list.
fn vandal(world: &mut World, judge: &mut Judge) {
    let now = world.now();
    let deaf = now < world.routing.faults.events_denied + Duration::from_secs(70);
    let wait = if deaf { 330 } else { 90 };
    if let Some(port) = routing::vandal(world) {
        judge.excuse(Front::Port(port), now + Duration::from_secs(wait));
    }
}

fn port(rng: &mut Rng) -> u16 {
    PORT_FIRST + rng.u16(..PORTS)
}

fn seconds(rng: &mut Rng, least: u64, most: u64) -> Duration {
    Duration::from_millis(rng.u64(least * 1000..=most * 1000))
}
