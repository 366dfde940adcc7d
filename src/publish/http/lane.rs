//! The lane's one task: hands tables, time and what NATS says to the pure parts, and sends what they ask for.
//!
//! Owns the connection, the report and the counters. Everything that could be decided without them is decided
//! elsewhere.

mod farewell;
mod files;
mod follow;
mod foreign;
mod keep;
mod measure;
mod record;
mod role;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::bus::{Bus, Heard, SendError};
use super::journal::Journal;
use super::proof::{Proof, Step};
use super::routers::Routers;
use super::schedule::{Changes, Schedule};
use super::tls_keys::{Held, TlsKeys};
use super::wire;
use super::{HttpCounters, add, set};
use crate::Uptime;
use crate::causes::chain;
use crate::config::NatsConfig;
use crate::desired::{Code, Desired, Finding, Subject};
use crate::lifecycle::Clock;
use crate::outside::Outside;
use crate::route::{Lane, Uri};
use crate::status::{LaneReport, RouteReport, RouteState};
use farewell::Farewell;
use files::Files;
pub(super) use follow::Follow;
use foreign::Foreign;
use keep::Kept;
use role::Acting;

/// Messages sent before a newer table is looked for.
const SEND_CHUNK: usize = 256;
/// While there is no connection the state is looked at this often: the client's events may get lost.
const LOOK: Duration = Duration::from_millis(50);
/// A connection given up that still stands then has a client that hangs; another one is opened.
const GIVE_UP_WAIT: Duration = Duration::from_secs(15);
/// A server about to stop is left within this, each client at its own moment.
const LAME_DUCK_SPREAD: Duration = Duration::from_secs(5);
/// A client that cannot be set up is tried again after this: a file may come.
const OPEN_AGAIN: Duration = Duration::from_secs(5);
/// Every message goes out once per interval, and a server that denies it says so each time. Silence for so many
/// intervals means that the right was granted.
const DENIED_INTERVALS: u32 = 2;
/// How long a stop may wait for the last echo. gorouter does not mind; the platform kills after 20 s.
const FINISH_WAIT: Duration = Duration::from_secs(1);

pub(super) struct HttpLane {
    config: NatsConfig,
    clock: Clock,
    counters: Arc<HttpCounters>,
    report: watch::Sender<LaneReport>,
    schedule: Schedule,
    proof: Proof,
    routers: Routers,
    journal: Option<Journal>,
    /// The newest table, held routes included.
    desired: Option<Arc<Desired>>,
    held: BTreeMap<Uri, Held>,
    held_told: BTreeMap<String, RouteReport>,
    foreign: Foreign,
    farewell: Farewell,
    /// What the journal must hold, and the schedule's revision it was taken at.
    needed: TlsKeys,
    needed_at: Option<u64>,
    kept: Kept,
    acting: Acting,
    outside: Arc<dyn Outside>,
    bus: Option<Box<dyn Bus>>,
    open_at: Uptime,
    /// The connection the schedule is told of.
    epoch: Option<u64>,
    /// A connection found dead that the client has not left yet.
    given_up: Option<(u64, Uptime)>,
    leave_at: Option<Uptime>,
    files: Files,
    error: Option<String>,
    /// The subject the server does not let us publish to, for as long as it says so.
    denied: Option<&'static str>,
    overloaded: bool,
}

// === impl HttpLane ===

impl HttpLane {
    pub(super) fn new(
        config: NatsConfig,
        outside: Arc<dyn Outside>,
        journal: Option<Journal>,
        report: watch::Sender<LaneReport>,
        clock: Clock,
        counters: Arc<HttpCounters>,
    ) -> Self {
        let interval = config.default_interval;
        Self {
            schedule: Schedule::new(config.send_app, interval, config.messages_per_second),
            proof: Proof::default(),
            routers: Routers::new(interval),
            journal,
            desired: None,
            held: BTreeMap::new(),
            held_told: BTreeMap::new(),
            foreign: Foreign::default(),
            farewell: Farewell::default(),
            needed: TlsKeys::default(),
            needed_at: None,
            kept: Kept::default(),
            acting: Acting::default(),
            outside,
            bus: None,
            open_at: Uptime::ZERO,
            epoch: None,
            given_up: None,
            leave_at: None,
            files: Files::default(),
            error: None,
            denied: None,
            overloaded: false,
            config,
            clock,
            counters,
            report,
        }
    }

    /// Does everything that is due.
    pub(super) async fn step(&mut self) {
        self.open().await;
        self.look();
        self.act().await;
        self.leave_if_due().await;
        self.listen().await;
        self.greet().await;
        self.send().await;
        self.prove().await;
        self.record();
        self.keep();
        self.tell();
        self.tell_withdrawn();
    }

    /// Waits until something is due or NATS says something, and takes that in.
    pub(super) async fn wait(&mut self) {
        let deadline = self.deadline();
        let (bus, journal, clock) = (&mut self.bus, &mut self.journal, self.clock);
        let hear = async {
            match bus {
                Some(bus) => bus.hear().await,
                None => std::future::pending().await,
            }
        };
        let written = async {
            match journal {
                Some(journal) => journal.written(clock).await,
                None => std::future::pending().await,
            }
        };
        // A write ends seldom, so that it cannot starve what NATS says.
        let heard = tokio::select! {
            biased;
            () = written => return,
            heard = hear => heard,
            () = clock.sleep_until(deadline) => return,
        };
        self.hear(heard);
    }

    /// Sends what still waits, and waits for the proof, both for a second at most.
    pub(super) async fn finish(&mut self) {
        let all = async {
            while self.epoch.is_some()
                && !self.acting.is_silent(self.clock.now())
                && self.schedule.has_table()
                && !(self.schedule.is_settled() && self.proof.is_complete())
            {
                self.wait().await;
                self.step().await;
            }
        };
        let done = tokio::time::timeout(FINISH_WAIT, all).await.is_ok();
        let kept = self.desired.as_ref().is_none_or(|table| !table.drained);
        info!(
            confirmed = done && self.epoch.is_some(),
            "http lane stopped, routes {}",
            if kept { "kept" } else { "withdrawn before" }
        );
    }

    // --- the connection ----------------------------------------------------------------------------------------

    async fn open(&mut self) {
        let now = self.clock.now();
        if let Some((epoch, until)) = self.given_up
            && now >= until
            && self.bus.as_deref().and_then(Bus::epoch) == Some(epoch)
        {
            warn!("nats client hangs, opening another");
            self.bus = None;
            self.open_at = now;
        }
        if self.bus.is_some() || now < self.open_at {
            return;
        }
        self.given_up = None;
        self.files = Files::of(&self.config, now);
        match self.outside.nats(&self.config).await {
            Ok(bus) => self.bus = Some(bus),
            Err(error) => {
                self.open_at = now + OPEN_AGAIN;
                self.fail(chain(&error));
            }
        }
    }

    /// Compares the connection that stands with the one the schedule knows.
    fn look(&mut self) {
        let now = self.clock.now();
        let standing = self.bus.as_deref().and_then(Bus::epoch);
        if self
            .given_up
            .is_some_and(|(epoch, _)| standing != Some(epoch))
        {
            self.given_up = None;
        }
        let standing = standing.filter(|_| self.given_up.is_none());
        if standing != self.epoch {
            if self.epoch.take().is_some() {
                self.lost(now);
            }
            if let (Some(epoch), Some(bus)) = (standing, &self.bus) {
                info!(server = bus.server(), "nats connected");
                self.epoch = Some(epoch);
                self.error = None;
                bus.stands();
                self.proof.restart();
                self.routers.connected(now);
                self.acting.tell_soon(now);
                if !self.acting.is_silent(now) {
                    self.schedule.connected(now);
                }
                add(&self.counters.connections, 1);
            }
        }
        self.look_for_denial(now);
        let error = self.bus.as_deref().and_then(Bus::error);
        let error = error.filter(|_| self.denied.is_none());
        if let Some(error) = error.filter(|error| Some(error) != self.error.as_ref()) {
            self.fail(error);
        }
    }

    /// A message that is denied arrives nowhere, and the echo comes back all the same.
    fn look_for_denial(&mut self, now: Uptime) {
        let within = self.schedule.interval() * DENIED_INTERVALS;
        let bus = self.bus.as_ref().filter(|_| self.epoch.is_some());
        let denied = bus.and_then(|bus| bus.denied(within));
        self.schedule.set_unheard(denied == Some(wire::REGISTER));
        if denied == self.denied {
            return;
        }
        self.denied = denied;
        match denied {
            Some(subject) => {
                if subject == wire::REGISTER {
                    self.schedule.doubt(now);
                }
                self.fail(format!(
                    "NATS denies publishing to `{subject}`; hint: grant it to the user of `nats`"
                ));
            }
            None => self.error = None,
        }
    }

    fn lost(&mut self, now: Uptime) {
        self.epoch = None;
        self.denied = None;
        self.leave_at = None;
        self.schedule.disconnected(now);
        self.routers.disconnected();
        warn!("nats connection lost, routes stay until gorouter prunes them");
    }

    fn fail(&mut self, error: String) {
        warn!(%error, "http lane fails");
        self.error = Some(error);
    }

    /// Gives up a connection that the client still believes in.
    async fn give_up(&mut self, why: &str) {
        let (Some(epoch), Some(bus)) = (self.epoch, &self.bus) else {
            return;
        };
        bus.reconnect().await;
        let now = self.clock.now();
        self.given_up = Some((epoch, now + GIVE_UP_WAIT));
        self.fail(why.to_owned());
        self.lost(now);
    }

    async fn leave_if_due(&mut self) {
        let now = self.clock.now();
        self.leave_for_new_files(now);
        if self.leave_at.is_some_and(|at| at <= now) {
            self.leave_at = None;
            if let Some(bus) = &self.bus {
                bus.reconnect().await;
            }
        }
    }

    // --- what comes in -----------------------------------------------------------------------------------------

    fn hear(&mut self, heard: Heard) {
        let now = self.clock.now();
        match heard {
            Heard::Started(body) => {
                add(&self.counters.router_starts, 1);
                self.routers.started(&body, now);
                self.schedule.router_started(now, fastrand::f64());
                info!(router = wire::router_told(&body).id, "router started");
            }
            Heard::Greeted(body) => self.routers.answered(&body),
            Heard::NobodyGreets => {
                debug!("no router answers the greeting");
                self.routers.nobody(now);
            }
            Heard::Echo(number) => self.echoed(number, now),
            Heard::LameDuck => {
                let spread = LAME_DUCK_SPREAD.mul_f64(fastrand::f64());
                self.leave_at.get_or_insert(now + spread);
                info!("nats server is about to stop");
            }
            Heard::Others => self.overhear(),
            Heard::Instance(body) => self.hear_instance(&body, now),
            Heard::Changed => {
                // A client that ended by itself is replaced.
                if self.bus.as_deref().is_some_and(Bus::has_ended) {
                    self.bus = None;
                    self.open_at = now + OPEN_AGAIN;
                }
            }
        }
    }

    fn echoed(&mut self, number: u64, now: Uptime) {
        let Some(proven) = self.proof.echoed(number, now) else {
            return;
        };
        add(&self.counters.echoes, 1);
        set(&self.counters.echo_micros, proven.took.as_micros());
        self.look_for_denial(now);
        if self.denied == Some(wire::REGISTER) {
            return;
        }
        self.schedule.confirm(proven.covers, now);
        let lapses_at = self.schedule.lapses_at();
        let confirmed = proven.settled;
        self.report.send_if_modified(|report| {
            let first = confirmed && !report.confirmed_once;
            report.confirmed_once |= confirmed;
            report.last_success = Some(now);
            report.lapses_at = lapses_at;
            report.consecutive_failures = 0;
            first
        });
        debug!(messages = proven.covers, took = ?proven.took, "echo");
    }

    // --- what goes out -----------------------------------------------------------------------------------------

    async fn greet(&mut self) {
        let now = self.clock.now();
        if self.routers.must_greet(now)
            && let (Some(epoch), Some(bus)) = (self.epoch, &self.bus)
            && let Err(error) = bus.greet(epoch).await
        {
            self.unsent(error).await;
        }
        if self.schedule.set_interval(self.routers.interval()) {
            let interval = self.schedule.interval();
            info!(
                ?interval,
                routers = self.routers.count(),
                "interval adopted"
            );
            self.judge_load();
        }
    }

    async fn send(&mut self) {
        for _ in 0..SEND_CHUNK {
            // Proof may end between two messages.
            if !self.may_say_anything() {
                return;
            }
            let (Some(epoch), Some(bus)) = (self.epoch, &self.bus) else {
                return;
            };
            let Some(message) = self.schedule.pop(self.clock.now()) else {
                return;
            };
            let sent = bus.publish(epoch, message.subject, message.payload).await;
            match sent {
                Ok(()) => {}
                Err(error @ SendError::TooLarge { .. }) => {
                    self.refused(message.number, error);
                    continue;
                }
                Err(error) => {
                    self.unsent(error).await;
                    return;
                }
            }
            self.proof.sent(message.number, message.beat);
            self.tell_sent(message.number);
            let counter = match (message.subject, message.beat) {
                (wire::UNREGISTER, _) => &self.counters.withdrawals,
                (_, true) => &self.counters.beats,
                (_, false) => &self.counters.announcements,
            };
            add(counter, 1);
        }
    }

    /// The server never takes this message: those behind it must not wait for it. It is told where it is news, as
    /// its beats are refused, too.
    fn refused(&mut self, number: u64, error: SendError) {
        add(&self.counters.send_failures, 1);
        self.schedule.refused(number, self.clock.now());
        let error = error.to_string();
        if self.denied.is_none() && self.error.as_ref() != Some(&error) {
            self.fail(error);
        }
    }

    async fn prove(&mut self) {
        let Some(epoch) = self.epoch else {
            return;
        };
        let (sent, settled) = (self.schedule.sent(), self.schedule.is_settled());
        let now = self.clock.now();
        let mut step = self.proof.step(now, sent, settled);
        if step == Step::Missed {
            self.missed(now);
            step = self.proof.step(now, sent, settled);
        }
        match step {
            Step::Wait | Step::Missed => {}
            Step::Ask(number) => self.ask(epoch, number).await,
            Step::Dead => {
                self.missed(now);
                self.give_up("NATS does not echo any more, the connection is given up")
                    .await;
            }
        }
    }

    async fn ask(&mut self, epoch: u64, number: u64) {
        let Some(bus) = &self.bus else {
            return;
        };
        let may_echo = bus.may_echo();
        let asked = if may_echo {
            bus.echo(epoch, number).await
        } else {
            bus.flush(epoch).await
        };
        match asked {
            Err(error) => self.unsent(error).await,
            // The best that can be had then; the report says so.
            Ok(()) if !may_echo => self.echoed(number, self.clock.now()),
            Ok(()) => {
                let now = self.clock.now();
                self.report.send_if_modified(|report| {
                    report.last_attempt = Some(now);
                    false
                });
            }
        }
    }

    fn missed(&mut self, now: Uptime) {
        add(&self.counters.echo_misses, 1);
        warn!("nats did not echo in time");
        self.report.send_modify(|report| {
            report.last_attempt = Some(now);
            report.consecutive_failures = report.consecutive_failures.saturating_add(1);
        });
    }

    /// A message did not go out: the connection is gone, or as good as gone. The next one says everything anew.
    async fn unsent(&mut self, error: SendError) {
        add(&self.counters.send_failures, 1);
        match error {
            SendError::Gone => self.lost(self.clock.now()),
            SendError::Stalled => self.give_up(&error.to_string()).await,
            // No greeting and no echo is as large as that.
            SendError::TooLarge { .. } => self.fail(error.to_string()),
        }
    }

    // --- what is told ------------------------------------------------------------------------------------------

    /// When the next round is due at the latest.
    fn deadline(&self) -> Uptime {
        let now = self.clock.now();
        let settled = self.schedule.is_settled();
        let unconnected = self.epoch.is_none().then_some(now + LOOK);
        let connected = self.epoch.map(|_| self.proof.deadline(settled));
        [
            unconnected,
            connected,
            self.schedule.next_deadline(),
            self.routers.deadline(),
            self.leave_at,
            self.listen_deadline(),
            self.journal.as_ref().and_then(Journal::deadline),
            self.kept.deadline(&self.schedule),
            self.files.deadline(),
            self.acting_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(now + files::LOOK)
    }

    /// Brings the report up to date; readers are woken only where they would see a difference.
    fn tell(&mut self) {
        let counters = &self.counters;
        set(&counters.connected, u64::from(self.epoch.is_some()));
        set(&counters.messages, self.schedule.message_count());
        set(
            &counters.withdrawals_pending,
            self.schedule.withdrawal_count(),
        );
        set(&counters.routers, self.routers.count());
        set(
            &counters.interval_millis,
            self.schedule.interval().as_millis(),
        );
        let reports = self.schedule.take_reports();
        self.tell_propagation(&reports);
        let failures = self.bus.as_deref().map_or(0, Bus::failures);
        let error = self.error.as_ref();
        let findings = self.findings();
        let facts = self.facts();
        let warm = self.epoch.is_some() && self.desired.is_some();
        let mut held = self.held_reports();
        held.extend(self.foreign_reports());
        let was_held = std::mem::replace(&mut self.held_told, held.clone());
        self.report.send_if_modified(|report| {
            let mut changed = !reports.is_empty();
            for (uri, route) in reports {
                match route {
                    Some(route) => report.routes.insert(uri.to_string(), route),
                    None => report.routes.remove(&uri.to_string()),
                };
            }
            if report.last_error.as_ref() != error {
                report.last_error = error.cloned();
                changed = true;
            }
            if failures > report.consecutive_failures {
                report.consecutive_failures = failures;
                report.last_attempt = Some(self.clock.now());
            }
            changed |= was_held != held;
            for uri in was_held.keys().filter(|uri| !held.contains_key(*uri)) {
                let told = report.routes.get(uri);
                if told.is_some_and(|route| route.state == RouteState::Held) {
                    report.routes.remove(uri);
                }
            }
            report.routes.extend(held);
            changed |= report.findings != findings || report.facts != facts;
            changed |= report.warm != warm;
            report.warm = warm;
            report.findings = findings;
            report.facts = facts;
            changed
        });
    }

    fn findings(&self) -> Vec<Finding> {
        let down = self.epoch.is_none() || self.denied.is_some();
        let down = self.error.as_ref().filter(|_| down);
        let finding = |error: &String| {
            Finding::new(Code::LaneDown, Subject::Lane(Lane::Http), error.as_str())
        };
        let down = down.map(finding).into_iter();
        let down = down.chain(self.held_findings());
        let down = down.chain(self.foreign_findings());
        down.chain(self.unheard_finding()).collect()
    }

    fn facts(&self) -> BTreeMap<&'static str, String> {
        let mut facts = BTreeMap::new();
        let seconds = self.schedule.interval().as_secs_f64();
        facts.insert("interval", format!("{seconds} s"));
        facts.insert("routers", self.routers.count().to_string());
        if let (Some(_), Some(bus)) = (self.epoch, &self.bus) {
            facts.insert("server", bus.server());
            facts.insert("strangers", self.foreign_fact());
            let delivery = if bus.may_echo() {
                "proven by echo"
            } else {
                "degraded: the server denies our inbox, so delivery is not proven"
            };
            facts.insert("delivery", delivery.to_owned());
        }
        facts.extend(self.journal_fact().map(|fact| ("journal", fact)));
        if self.kept.is_provisional() {
            facts.insert("source", "the last process's state".to_owned());
        }
        facts
    }

    /// Says once that beats cannot keep up with the table.
    fn judge_load(&mut self) {
        let sweep = self.schedule.message_count() / self.config.messages_per_second.max(1) as usize;
        let overloaded = sweep as u64 > self.schedule.interval().as_secs() / 2;
        if overloaded && !self.overloaded {
            let messages = self.schedule.message_count();
            warn!(
                messages,
                rate = self.config.messages_per_second,
                "one sweep takes over half an interval; hint: raise `nats.messages_per_second`"
            );
        }
        self.overloaded = overloaded;
    }
}

fn tell_changes(changes: &Changes, desired: &Desired) {
    for (uris, what) in [(&changes.added, "announced"), (&changes.changed, "changed")] {
        for uri in uris {
            let Some(route) = desired.table.http.get::<crate::route::Uri>(uri) else {
                continue;
            };
            let backends = route.backends.len();
            info!(route = %uri, service = %route.service.key, backends, "http route {what}");
        }
    }
    for (uri, service) in &changes.removed {
        info!(route = %uri, %service, "http route withdrawn");
    }
    if *changes != Changes::default() {
        info!(
            added = changes.added.len(),
            changed = changes.changed.len(),
            removed = changes.removed.len(),
            routes = desired.table.http.len(),
            "http table applied"
        );
    }
}
