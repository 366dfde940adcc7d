//! What is announced or withdrawn next, and when.
//!
//! Pure: no I/O, no clock, no randomness; the same calls give the same messages in the same order. The lane
//! hands in tables, connections, confirmations and the time, and takes out one message after the other.
//!
//! ```text
//!   table ──apply──▶ wanted messages ──┬─ new or changed ──▶ queue (by band, then breadth first) ──pop──▶ wire
//!                        │             └─ beats: one slot of the interval each ──▶ ▲
//!                        └─ uri@endpoint no longer wanted ──▶ withdrawals, repeated ┘
//! ```
//!
//! A withdrawal of a host that stays follows an announcement of it, each time (`bridge`).
//!
//! Everything is keyed by (uri, host:port), as gorouter keys its pools. What is wanted is never withdrawn: a
//! key is either in a wanted message or among the withdrawals, never in both.

mod adopt;
mod apply;
mod bridge;
mod lapse;
mod pace;
mod withdrawals;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::wire::{self, Entry, Identity};
use crate::Uptime;
use crate::desired::Desired;
use crate::route::{Backend, ClusterId, HttpRoute, ServiceKey, Uri};
use crate::status::{RouteReport, RouteState};
use lapse::Sendings;
use pace::Pace;
use withdrawals::Withdrawals;

/// Beats are gathered into slots of this length, so that a large table wakes the process ten times a second
/// and not a thousand times.
const TICK: Duration = Duration::from_millis(100);
/// How long further `router.start` messages join the first: routers of one foundation restart together.
const START_GATHER: Duration = Duration::from_millis(250);
/// Routers that have started wait a whole interval before they serve; a fifth of it, as Diego's route-emitter
/// takes, spreads all senders of a foundation and leaves time for ourselves.
const START_JITTER_SHARE: f64 = 0.2;
/// And never more than this.
const START_JITTER_MAX: Duration = Duration::from_secs(4);

/// One message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Announce or withdraw.
    pub subject: &'static str,
    /// The body.
    pub payload: Bytes,
    /// Whether it is nothing but a beat.
    pub beat: bool,
    /// Counts up with every message; what [`Schedule::confirm`] is told.
    pub number: u64,
}

/// What a new table changed, for whoever tells people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Uris not wanted before.
    pub added: Vec<Arc<Uri>>,
    /// Uris whose backends, options or Service changed.
    pub changed: Vec<Arc<Uri>>,
    /// Uris no longer wanted, with the Service they came from.
    pub removed: Vec<(Arc<Uri>, ServiceKey)>,
}

/// All announcements and withdrawals of the lane.
pub struct Schedule {
    identity: Identity,
    wanted: Option<Arc<Desired>>,
    routes: BTreeMap<Arc<Uri>, Route>,
    messages: BTreeMap<MessageKey, Message>,
    withdrawals: Withdrawals,
    queue: BTreeSet<Job>,
    beats: BTreeSet<(u64, MessageKey)>,
    slots: u64,
    ticked: u64,
    pace: Pace,
    connected: bool,
    /// Nothing is withdrawn for now.
    holds: bool,
    /// Announcements arrive nowhere.
    unheard: bool,
    /// The last announcement that was made for a withdrawal's sake.
    bridge: Option<(u64, MessageKey)>,
    restart_at: Option<Uptime>,
    sent: u64,
    /// The highest number that was confirmed.
    confirmed: u64,
    unconfirmed: VecDeque<(u64, Arc<Uri>)>,
    touched: BTreeSet<Arc<Uri>>,
    tls_revision: u64,
    /// Keys wanted again while there was no connection. A withdrawal of theirs may still wait inside the client
    /// library, which sends it ahead of everything once it connects.
    recalled: BTreeSet<(SocketAddr, Arc<Uri>)>,
}

/// A route as people see it, as long as it is wanted or being withdrawn.
struct Route {
    service: ServiceKey,
    state: RouteState,
    since: Uptime,
    /// The first message of this connection that carried it.
    announced: Option<u64>,
}

/// One endpoint, and which of its messages where one does not hold all its uris.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct MessageKey {
    addr: SocketAddr,
    part: u16,
}

struct Message {
    uris: Box<[Arc<Uri>]>,
    /// Of the rendered message. The bytes themselves are made anew for each sending: kept for every endpoint of
    /// the largest cluster they would be a fifth of the process.
    fingerprint: u64,
    tls: bool,
    /// How soon any of its routes prefers this backend; 0 is the first.
    rank: u16,
    queued: Option<Band>,
    sendings: Sendings,
}

/// What goes before what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Band {
    /// Makes a route reachable, or replaces an endpoint that is about to be withdrawn.
    First,
    /// A withdrawal's first sending.
    Withdrawal,
    /// Any other new or changed endpoint.
    Change,
    /// A withdrawal's repetition.
    Repeat,
    /// Everything again, for a router or a connection that is new.
    Sweep,
    /// A beat.
    Beat,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Job {
    band: Band,
    rank: u16,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Register(MessageKey),
    Withdraw(SocketAddr, Arc<Uri>),
}

// === impl Schedule ===

impl Schedule {
    /// Nothing wanted, not connected.
    #[must_use]
    pub fn new(send_app: bool, interval: Duration, messages_per_second: u32) -> Self {
        Self {
            identity: Identity {
                cluster: ClusterId(String::new()),
                send_app,
            },
            wanted: None,
            routes: BTreeMap::new(),
            messages: BTreeMap::new(),
            withdrawals: Withdrawals::default(),
            queue: BTreeSet::new(),
            beats: BTreeSet::new(),
            slots: slots(interval),
            ticked: 0,
            pace: Pace::new(messages_per_second),
            connected: false,
            holds: false,
            unheard: false,
            bridge: None,
            restart_at: None,
            sent: 0,
            confirmed: 0,
            unconfirmed: VecDeque::new(),
            touched: BTreeSet::new(),
            tls_revision: 0,
            recalled: BTreeSet::new(),
        }
    }

    /// The connection is lost: whatever was on its way may be, too. Nothing is queued until the next one.
    pub fn disconnected(&mut self, now: Uptime) {
        self.connected = false;
        self.restart_at = None;
        self.queue.clear();
        for message in self.messages.values_mut() {
            message.queued = None;
        }
        self.withdrawals.start_over(now);
        self.doubt(now);
    }

    /// What was sent was refused, whatever the echo says: no route counts as announced before it is sent again.
    pub fn doubt(&mut self, now: Uptime) {
        self.unconfirmed.clear();
        self.lose_unproven();
        for (uri, route) in &mut self.routes {
            route.announced = None;
            if route.state == RouteState::Live {
                (route.state, route.since) = (RouteState::Pending, now);
                self.touched.insert(uri.clone());
            }
        }
    }

    /// A connection stands: everything goes out anew, replacements and withdrawals first, because a client
    /// library may have replayed an announcement that is no longer true; and before them what it may have
    /// withdrawn although it is wanted again.
    pub fn connected(&mut self, now: Uptime) {
        self.connected = true;
        self.ticked = tick(now);
        self.announce_all();
    }

    /// Whether withdrawals wait: whoever has no proof that it leads withdraws nothing. Those that were under way begin
    /// anew afterwards.
    pub fn hold_withdrawals(&mut self, hold: bool, now: Uptime) {
        if std::mem::replace(&mut self.holds, hold) == hold {
            return;
        }
        if hold {
            self.queue
                .retain(|job| matches!(job.what, What::Register(_)));
            self.withdrawals.start_over(now);
        } else if self.connected {
            self.enqueue_withdrawals();
        }
    }

    /// Forgets withdrawals that were never sent and that have been due since before then: another instance made them,
    /// and routers have pruned what they are about.
    pub fn forget_withdrawals(&mut self, before: Uptime) {
        let forgotten = self.withdrawals.forget_unsent(before);
        for uri in forgotten {
            self.forget_if_gone(&uri);
            self.touched.insert(uri);
        }
    }

    /// The table that was last taken.
    #[must_use]
    pub fn table(&self) -> Option<&Arc<Desired>> {
        self.wanted.as_ref()
    }

    /// A router started and knows nothing. `jitter` lies in 0..1. However many start, one sweep answers them.
    pub fn router_started(&mut self, now: Uptime, jitter: f64) {
        if self.connected && self.restart_at.is_none() {
            let share = self.interval().mul_f64(START_JITTER_SHARE);
            let spread = share.min(START_JITTER_MAX).mul_f64(jitter.clamp(0.0, 1.0));
            self.restart_at = Some(now + START_GATHER + spread);
        }
    }

    /// Adopts another interval between two beats of one endpoint, in whole ticks. Whether it is another.
    pub fn set_interval(&mut self, interval: Duration) -> bool {
        let another = slots(interval) != self.slots;
        if another {
            self.slots = slots(interval);
            self.beats = self.messages.keys().map(|key| self.beat_of(*key)).collect();
        }
        another
    }

    /// Adopts another bound of messages per second.
    pub fn set_pace(&mut self, messages_per_second: u32) {
        self.pace.adopt(messages_per_second);
    }

    /// The next message, if one is due and the pace allows it.
    pub fn pop(&mut self, now: Uptime) -> Option<Outgoing> {
        if !self.connected {
            return None;
        }
        self.advance(now);
        if self.queue.is_empty() || !self.pace.take(now) {
            return None;
        }
        let job = match self.next_bridge(now) {
            Some(bridge) => bridge,
            None => self.queue.pop_first()?,
        };
        self.sent += 1;
        Some(match job.what {
            What::Register(key) => self.send_registration(key, job.band, now),
            What::Withdraw(addr, uri) => self.send_withdrawal(addr, uri, job.band, now),
        })
    }

    /// When [`Self::pop`] should be asked next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Uptime> {
        if !self.connected {
            return None;
        }
        if !self.queue.is_empty() {
            return Some(self.pace.ready_at(self.queue.len()));
        }
        let beat = self.next_beat_tick().map(|tick| TICK * clamped(tick));
        let others = [self.withdrawals.next_due(), self.restart_at];
        others.into_iter().flatten().chain(beat).min()
    }

    /// The other side has every message up to this number.
    pub fn confirm(&mut self, number: u64, now: Uptime) {
        self.confirmed = self.confirmed.max(number);
        while let Some((sent, uri)) = self.unconfirmed.pop_front_if(|(sent, _)| *sent <= number) {
            let Some(route) = self.routes.get_mut(&uri) else {
                continue;
            };
            if route.announced == Some(sent) && route.state == RouteState::Pending {
                (route.state, route.since) = (RouteState::Live, now);
                self.touched.insert(uri);
            }
        }
        // Until then another loss may bring the replay about again.
        if self.sent > 0 && self.queue.first().is_none_or(|job| job.band != Band::First) {
            self.recalled.clear();
        }
    }

    /// The message taken out last was not sent: it announced nothing. Its beats try again.
    pub fn refused(&mut self, number: u64, now: Uptime) {
        self.lose(number);
        self.unbridge(number, now);
        while let Some((_, uri)) = self.unconfirmed.pop_back_if(|(sent, _)| *sent == number) {
            if let Some(route) = self.routes.get_mut(&uri) {
                route.announced = None;
            }
        }
    }

    /// The number of the last message taken out.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether a table was ever taken.
    #[must_use]
    pub fn has_table(&self) -> bool {
        self.wanted.is_some()
    }

    /// Whether there is a table of which nothing but beats is left to send.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.has_table()
            && self.connected
            && self.queue.first().is_none_or(|job| job.band == Band::Beat)
    }

    /// The interval between two beats of one endpoint.
    #[must_use]
    pub fn interval(&self) -> Duration {
        TICK * clamped(self.slots)
    }

    /// Messages a whole sweep takes.
    #[must_use]
    pub fn message_count(&self) -> usize {
        self.messages.len()
    }

    /// Keys still being withdrawn.
    #[must_use]
    pub fn withdrawal_count(&self) -> usize {
        self.withdrawals.len()
    }

    /// Whether a route is wanted or being withdrawn.
    #[must_use]
    pub fn knows(&self, uri: &Uri) -> bool {
        self.routes.contains_key(uri)
    }

    /// The routes whose report changed since the last call; `None` for those that are no more.
    pub fn take_reports(&mut self) -> Vec<(Arc<Uri>, Option<RouteReport>)> {
        let touched = std::mem::take(&mut self.touched);
        let report = |uri: Arc<Uri>| {
            let report = self.routes.get(&uri).map(|route| self.report(&uri, route));
            (uri, report)
        };
        touched.into_iter().map(report).collect()
    }

    // --- everything anew ---------------------------------------------------------------------------------------

    fn announce_all(&mut self) {
        let bridges: BTreeSet<MessageKey> = self
            .withdrawals
            .uris()
            .filter_map(|uri| self.first_message(uri))
            .collect();
        let withdrawn = if self.holds {
            Vec::new()
        } else {
            self.withdrawals.keys()
        };
        for (uri, addr) in withdrawn {
            if let Some(band) = self.withdrawals.queued(&uri, addr, Band::Withdrawal) {
                self.queue.remove(&withdrawal(band, &uri, addr));
            }
            self.queue.insert(withdrawal(Band::Withdrawal, &uri, addr));
        }
        let first = |(key, message): (&MessageKey, &Message)| {
            let recalled = |uri: &Arc<Uri>| self.recalled.contains(&(key.addr, uri.clone()));
            let first = bridges.contains(key)
                || (!self.recalled.is_empty() && message.uris.iter().any(recalled));
            (*key, if first { Band::First } else { Band::Sweep })
        };
        let all: Vec<_> = self.messages.iter().map(first).collect();
        for (key, band) in all {
            self.enqueue(key, band);
        }
    }

    // --- time ----------------------------------------------------------------------------------------------------

    /// Moves everything that is due into the queue.
    fn advance(&mut self, now: Uptime) {
        if self.restart_at.is_some_and(|at| at <= now) {
            self.restart_at = None;
            self.announce_all();
        }
        for (uri, addr) in self.withdrawals.take_due(now) {
            self.queue.insert(withdrawal(Band::Repeat, &uri, addr));
            self.withdrawals.queued(&uri, addr, Band::Repeat);
        }
        let last = tick(now);
        // After a long pause once round is enough.
        let from = (self.ticked + 1).max((last + 1).saturating_sub(self.slots));
        for tick in from..=last {
            let slot = tick % self.slots;
            let keys: Vec<_> = self
                .beats
                .range((slot, MessageKey::FIRST)..)
                .take_while(|(other, _)| *other == slot)
                .map(|(_, key)| *key)
                .collect();
            for key in keys {
                self.enqueue(key, Band::Beat);
            }
        }
        self.ticked = self.ticked.max(last);
    }

    fn next_beat_tick(&self) -> Option<u64> {
        let next = self.ticked + 1;
        let slot = next % self.slots;
        let ahead = self.beats.range((slot, MessageKey::FIRST)..).next();
        match ahead {
            Some((other, _)) => Some(next + other - slot),
            None => Some(next + self.slots - slot + self.beats.first()?.0),
        }
    }

    fn beat_of(&self, key: MessageKey) -> (u64, MessageKey) {
        let hash = super::mixed_hash(format!("{}/{}", key.addr, key.part).as_bytes());
        (hash % self.slots, key)
    }

    /// Queues a message unless it already waits at least as far in front.
    fn enqueue(&mut self, key: MessageKey, band: Band) {
        let message = self.messages.get_mut(&key).expect("it must be wanted");
        if let Some(waiting) = message.queued {
            // A changed rank left the queue together with the message; inserting twice is harmless.
            let band = band.min(waiting);
            self.queue.remove(&job(key, message, waiting));
            message.queued = Some(band);
            self.queue.insert(job(key, message, band));
        } else {
            message.queued = Some(band);
            self.queue.insert(job(key, message, band));
        }
    }

    // --- sending -------------------------------------------------------------------------------------------------

    fn send_registration(&mut self, key: MessageKey, band: Band, now: Uptime) -> Outgoing {
        let payload = self.render(key);
        let message = self.messages.get_mut(&key).expect("it must be wanted");
        message.queued = None;
        message.sendings.sent(self.sent, now, self.confirmed);
        for uri in &message.uris {
            let route = self
                .routes
                .get_mut(uri)
                .expect("a wanted route must be known");
            if route.announced.is_none() {
                route.announced = Some(self.sent);
                self.unconfirmed.push_back((self.sent, uri.clone()));
            }
        }
        Outgoing {
            subject: wire::REGISTER,
            payload,
            beat: band == Band::Beat,
            number: self.sent,
        }
    }

    /// The same bytes at each call, until a table changes one of the message's routes.
    fn render(&self, key: MessageKey) -> Bytes {
        let wanted = self.wanted.as_ref().expect("a message must have a table");
        let uris = &self.messages[&key].uris;
        let route = &wanted.table.http[&*uris[0]];
        let backend = route.backends.iter().find(|b| address(b) == key.addr);
        let entry = Entry {
            uri: &uris[0],
            route,
            backend: backend.expect("an endpoint must be its route's"),
        };
        wire::registration(&self.identity, &entry, uris)
    }

    /// Withdraws one key, and with it those that wait right behind it for the same endpoint.
    fn send_withdrawal(
        &mut self,
        addr: SocketAddr,
        uri: Arc<Uri>,
        band: Band,
        now: Uptime,
    ) -> Outgoing {
        let tls = self.withdrawals.is_tls(&uri, addr);
        let mut uris = vec![uri];
        while let Some(next) = self.queue.first() {
            let What::Withdraw(other, uri) = &next.what else {
                break;
            };
            let fits = next.band == band && *other == addr && self.is_bridged(uri, addr);
            if !fits || self.withdrawals.is_tls(uri, addr) != tls {
                break;
            }
            uris.push(uri.clone());
            if wire::unregistrations(addr, tls, &uris).len() > 1 {
                uris.pop();
                break;
            }
            self.queue.pop_first();
        }
        let mut payloads = wire::unregistrations(addr, tls, &uris);
        for uri in &uris {
            if self.withdrawals.sent(uri, addr, now) {
                self.tls_revision += u64::from(tls);
                self.forget_if_gone(uri);
                self.touched.insert(uri.clone());
            }
        }
        Outgoing {
            subject: wire::UNREGISTER,
            payload: payloads.swap_remove(0),
            beat: false,
            number: self.sent,
        }
    }

    fn cancel_withdrawal(&mut self, uri: &Arc<Uri>, addr: SocketAddr) {
        if !self.connected && self.withdrawals.holds(uri, addr) {
            self.recalled.insert((addr, uri.clone()));
        }
        if let Some(band) = self.withdrawals.cancel(uri, addr) {
            self.queue.remove(&withdrawal(band, uri, addr));
        }
    }

    /// Forgets a route that is neither wanted nor being withdrawn.
    fn forget_if_gone(&mut self, uri: &Arc<Uri>) {
        let wanted = self.wanted.as_ref();
        let wanted = wanted.is_some_and(|desired| desired.table.http.contains_key::<Uri>(uri));
        if !wanted && self.withdrawals.of(uri).next().is_none() {
            self.routes.remove(uri);
            self.touched.insert(uri.clone());
        }
    }

    fn report(&self, uri: &Arc<Uri>, route: &Route) -> RouteReport {
        let wanted = self.wanted.as_ref();
        let backends = match wanted.and_then(|desired| desired.table.http.get::<Uri>(uri)) {
            Some(route) => route.backends.iter().map(ToString::to_string).collect(),
            None => self.withdrawals.of(uri).map(|a| a.to_string()).collect(),
        };
        RouteReport {
            service: route.service.clone(),
            state: route.state,
            backends,
            since: route.since,
        }
    }
}

// === impl MessageKey ===

impl MessageKey {
    /// Before every other key.
    const FIRST: Self = Self {
        addr: SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0),
        part: 0,
    };
}

fn address(backend: &Backend) -> SocketAddr {
    SocketAddr::new(backend.ip, backend.port.get())
}

/// Where this route has that endpoint, if it does.
fn rank_of(route: &HttpRoute, addr: SocketAddr) -> Option<u16> {
    let at = route.backends.iter().position(|b| address(b) == addr)?;
    Some(u16::try_from(at).unwrap_or(u16::MAX))
}

fn job(key: MessageKey, message: &Message, band: Band) -> Job {
    Job {
        band,
        // Beats and the like need no order; a sweep goes breadth first as a cold start does.
        rank: message.rank,
        what: What::Register(key),
    }
}

fn withdrawal(band: Band, uri: &Arc<Uri>, addr: SocketAddr) -> Job {
    Job {
        band,
        rank: 0,
        what: What::Withdraw(addr, uri.clone()),
    }
}

fn slots(interval: Duration) -> u64 {
    (tick(interval)).max(1)
}

fn tick(now: Uptime) -> u64 {
    u64::try_from(now.as_nanos() / TICK.as_nanos()).unwrap_or(u64::MAX)
}

/// Ticks fit 32 bits for thirteen years.
fn clamped(ticks: u64) -> u32 {
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
