//! The task that asks the apiserver what [`Elector`] wants to know, and tells everyone what follows.
//!
//! One request at a time, each bounded by the client's own timeout, and none of them keeps a word from another
//! instance waiting. At the end the Lease is released, once the lanes have ended: then nothing of ours is on its
//! way any more.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::elect::{Answer, Ask, Elector, Heard, Sight};
use super::role::UNTOLD_MAX;
use super::{Role, Term, Timing, approvals, holders};
use crate::Uptime;
use crate::causes::chain;
use crate::desired::guard::Approvals;
use crate::desired::{Code, Contested, Finding, Subject};
use crate::kubernetes::ApiError;
use crate::kubernetes::lease::{Draft, LeaseObject, Notes};
use crate::lifecycle::Clock;
use crate::news;
use crate::outside::Outside;
use crate::status::Drain;

/// The wall clock is compared this often, however long there is nothing to ask: a machine that stood still goes on with
/// old proof until then.
const WALL_EVERY: Duration = Duration::from_millis(500);
/// How long the lanes may take to end before the Lease is released all the same; they take 2 s at most.
const LANES_WAIT: Duration = Duration::from_secs(3);
/// How long the last write may take; who waits longer is stopped with everything else.
const RELEASE_WAIT: Duration = Duration::from_secs(2);
/// Another instance that acts is told of for this long after it was last heard: three intervals of 20 s.
const RIVAL_TOLD: Duration = Duration::from_mins(1);
/// Words of other instances that may wait to be read: one an interval is usual.
const HEARD_MAX: usize = 16;
/// An identity is a label of a log line, not a text.
const HOSTNAME_BYTES_MAX: usize = 128;

/// What the Lease is to this instance, for whoever asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseReport {
    /// Who we are.
    pub identity: String,
    /// What we may do.
    pub role: Role,
    /// Who holds it; nobody is empty, and `None` is not known.
    pub holder: Option<String>,
    /// How often it changed hands.
    pub generation: Option<u64>,
    /// When the renewal was sent that was last confirmed, as long as we hold it.
    pub renewed: Option<Uptime>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// What the next process needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Who we are: whoever comes back under the same name need not wait for itself.
    pub identity: String,
    /// Under which we held the Lease last.
    pub generation: u64,
    /// Whether we acted when this was noted.
    pub held: bool,
}

/// The task's ends of its channels.
pub struct Channels {
    /// To the lanes.
    pub roles: watch::Sender<Role>,
    /// To whoever asks.
    pub report: watch::Sender<LeaseReport>,
    /// From the lane that hears other instances.
    pub heard: mpsc::Receiver<Term>,
    /// Who holds which contested name by our own table; `None` before there is one.
    pub contested: watch::Receiver<Option<Contested>>,
    /// What an operator drained this instance to: it keeps the Lease that it has and takes none.
    pub drained: watch::Receiver<Option<Drain>>,
    /// And by the Lease; `None` before it was asked.
    pub names: watch::Sender<Option<Contested>>,
    /// What operators approved here.
    pub approved: watch::Receiver<Approvals>,
    /// And where another instance acts, as long as it is seen to.
    pub approved_elsewhere: watch::Sender<Approvals>,
    /// To whoever keeps it for the next process.
    pub kept: Option<watch::Sender<Option<Kept>>>,
}

/// How a lane tells other instances of ours, and us of them.
#[derive(Clone, Debug)]
pub struct Instances {
    /// Who we are.
    pub identity: String,
    /// To the task.
    pub heard: mpsc::Sender<Term>,
}

/// The task.
pub struct Lease {
    elector: Elector,
    identity: String,
    name: String,
    namespace: String,
    timing: Timing,
    channels: Channels,
    /// Absent while a request is under way.
    object: Option<LeaseObject>,
    asking: Option<BoxFuture<'static, Asked>>,
    error: Option<Failure>,
    /// When somebody last answered.
    answered: Uptime,
    /// When the Lease was last read or written.
    seen: Uptime,
    rival: Option<(Term, Uptime)>,
    /// The process before this one left a table.
    warm: bool,
    wall: WallClock,
}

/// Notices that time went by elsewhere which our own clock did not count.
struct WallClock {
    outside: Arc<dyn Outside>,
    last: (Duration, Uptime),
}

/// A request that came back.
struct Asked {
    object: LeaseObject,
    ask: Ask,
    sent: Uptime,
    answer: Answer,
    failure: Option<Failure>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    /// The verb that is forbidden, if that is what is wrong.
    forbidden: Option<&'static str>,
    text: String,
}

/// Who this instance is, where neither configuration nor state say so.
#[must_use]
pub fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().take(HOSTNAME_BYTES_MAX).collect();
    let host = if host.is_empty() { "unknown" } else { &host };
    format!("{host}-{:08x}", fastrand::u32(..))
}

// === impl LeaseReport ===

impl LeaseReport {
    /// Before anything was asked.
    #[must_use]
    pub fn new(identity: String, role: Role) -> Self {
        Self {
            identity,
            role,
            holder: None,
            generation: None,
            renewed: None,
            findings: Vec::new(),
        }
    }
}

// === impl Instances ===

impl Instances {
    /// Both ends.
    #[must_use]
    pub fn new(identity: String) -> (Self, mpsc::Receiver<Term>) {
        let (heard, receiver) = mpsc::channel(HEARD_MAX);
        (Self { identity, heard }, receiver)
    }
}

// === impl Lease ===

impl Lease {
    /// Asks nobody anything yet. `inherited` is the generation under which the process before this one held it when
    /// it last said so.
    #[must_use]
    pub fn new(
        object: LeaseObject,
        identity: String,
        inherited: Option<u64>,
        timing: Timing,
        channels: Channels,
    ) -> Self {
        Self {
            elector: Elector::new(identity.clone(), timing, inherited),
            identity,
            name: object.full_name(),
            namespace: object.namespace().to_owned(),
            timing,
            channels,
            wall: WallClock {
                outside: object.outside(),
                last: (Duration::ZERO, Uptime::ZERO),
            },
            object: Some(object),
            asking: None,
            error: None,
            answered: Uptime::ZERO,
            seen: Uptime::ZERO,
            rival: None,
            warm: false,
        }
    }

    /// With whether the process before this one left a table: then there is something to publish from the start.
    #[must_use]
    pub fn with_warm_table(mut self, warm: bool) -> Self {
        self.warm = warm;
        self
    }

    /// Runs until `stop`, and releases the Lease then.
    pub async fn run(mut self, clock: Clock, stop: CancellationToken) {
        info!(
            lease = self.name,
            identity = self.identity,
            "leader election"
        );
        self.wall.jumped(clock.now());
        loop {
            let now = clock.now();
            self.elector.allow(self.may_take(), now);
            self.ask(clock, now);
            self.tell(now);
            let wake = self.wake(now).min(now + WALL_EVERY).max(now);
            let asked = async {
                match &mut self.asking {
                    Some(asking) => asking.await,
                    None => std::future::pending().await,
                }
            };
            // To stop comes first, then what ends a term, then what may begin or renew one.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(term) = self.channels.heard.recv() => self.hear(term, clock.now()),
                asked = asked => self.learn(asked, clock.now()),
                // Whoever derives or drains may have ended first.
                Ok(()) = self.channels.contested.changed() => {}
                Ok(()) = self.channels.drained.changed() => {}
                () = clock.sleep_until(wake) => {}
            }
            // Nothing here takes long: a moment that was missed by so much was missed by the whole process.
            let now = clock.now();
            let missed = now > wake + UNTOLD_MAX && !self.elector.role(now).is_active();
            let jumped = self.wall.jumped(now);
            if missed || jumped {
                let what = if jumped { "machine" } else { "process" };
                warn!(
                    lease = self.name,
                    "this {what} stood still or its time was set, standing by until it knows who leads"
                );
                self.elector.thaw(now);
            }
        }
        self.release(clock).await;
    }

    /// An instance without a table would let every route lapse that another one could keep alive.
    fn may_take(&self) -> bool {
        let warm = self.warm || self.channels.contested.borrow().is_some();
        warm && self.channels.drained.borrow().is_none()
    }

    fn wake(&self, now: Uptime) -> Uptime {
        let asks = self.elector.asks_at();
        let asks = self.asking.is_none().then_some(asks);
        let told = self.rival.as_ref().map(|(_, at)| *at + RIVAL_TOLD);
        let told = told.filter(|told| *told > now);
        let moments = [asks, self.elector.changes_at(now), told];
        let wake = moments.into_iter().flatten().min();
        wake.unwrap_or(now + self.timing.retry)
    }

    fn ask(&mut self, clock: Clock, now: Uptime) {
        if self.asking.is_some() {
            return;
        }
        let Some(ask) = self.elector.ask(now) else {
            return;
        };
        let Some(object) = self.object.take() else {
            return;
        };
        let notes = match &ask {
            Ask::Look => Notes::default(),
            Ask::Write(draft) => self.notes(draft),
        };
        self.asking = Some(Box::pin(request(object, ask, notes, clock)));
    }

    fn notes(&self, draft: &Draft) -> Notes {
        // Before there is a table of ours, what stands there says more.
        let names = self.channels.contested.borrow();
        Notes {
            names: names.as_ref().map(holders::encode),
            approvals: approvals::encode(&self.channels.approved.borrow(), draft.generation),
        }
    }

    fn learn(&mut self, asked: Asked, now: Uptime) {
        let Asked {
            object,
            ask,
            sent,
            answer,
            failure,
        } = asked;
        self.asking = None;
        self.object = Some(object);
        let approved = self.approved(&answer, now);
        if let Answer::Seen(_) | Answer::Written(_) = &answer {
            self.seen = now;
        }
        if failure.is_none() {
            self.answered = now;
        }
        self.error = failure;
        let told = match &answer {
            Answer::Seen(record) => Some(record.names.as_deref().map(holders::decode)),
            _ => None,
        };
        self.elector.absorb(&ask, sent, answer, now);
        // The holder's own table is what the record is made of.
        let acts = self.elector.role(now).is_active();
        if let Some(approved) = approved.filter(|_| !acts) {
            news::tell(&self.channels.approved_elsewhere, approved);
        }
        self.channels.names.send_if_modified(|names| {
            let told = told.filter(|_| !acts).map(Option::unwrap_or_default);
            let new = match (told, names.as_ref()) {
                (None, None) => Contested::default(),
                (Some(told), old) if old != Some(&told) => told,
                _ => return false,
            };
            *names = Some(new);
            true
        });
    }

    /// What a look says of approvals given elsewhere; nothing where it says what the last one said. What was there
    /// when we came, or came again, may have been written long ago, and lets nothing go.
    fn approved(&self, answer: &Answer, now: Uptime) -> Option<Approvals> {
        let record = match answer {
            Answer::Seen(record) => record,
            Answer::Absent => return Some(Approvals::default()),
            _ => return None,
        };
        match self.elector.sight(record) {
            Sight::Same => None,
            Sight::Fresh if now <= self.seen + self.timing.lease => {
                let text = record.approvals.as_deref();
                Some(text.map_or_else(Approvals::default, |text| {
                    approvals::decode(text, record.generation)
                }))
            }
            Sight::First | Sight::Fresh => Some(Approvals::default()),
        }
    }

    fn hear(&mut self, term: Term, now: Uptime) {
        match self.elector.hear(&term, now) {
            Heard::Nothing => {}
            Heard::Deposed => self.rival = Some((term, now)),
            Heard::StoodDown => {
                if self.rival.is_none() {
                    let Term { generation, holder } = &term;
                    warn!(holder, generation, "another instance leads, standing down");
                }
                self.rival = self.elector.is_alone().then_some((term, now));
            }
        }
    }

    /// Tells the lanes first: what they may no longer do must not wait.
    fn tell(&mut self, now: Uptime) {
        let role = self.elector.role(now);
        let mut before = role;
        self.channels.roles.send_if_modified(|old| {
            before = std::mem::replace(old, role);
            before.differs(role)
        });
        if before.differs(role) {
            let holder = self.elector.holder().unwrap_or_default();
            info!(
                lease = self.name,
                role = role.as_str(),
                before = before.as_str(),
                generation = role.generation(),
                holder,
                "role"
            );
        }
        let report = LeaseReport {
            identity: self.identity.clone(),
            role,
            holder: self.elector.holder().map(str::to_owned),
            generation: self.elector.generation(),
            renewed: self.elector.renewed(),
            findings: self.findings(role, now),
        };
        self.channels.report.send_if_modified(|old| {
            // Each renewal is one; nobody needs to be woken for it.
            let woken = old.findings != report.findings || old.role.differs(report.role);
            *old = report;
            woken
        });
        if let Some(kept) = &self.channels.kept {
            let new = Kept {
                identity: self.identity.clone(),
                generation: role.generation().unwrap_or_default(),
                held: !role.is_standby(),
            };
            news::tell(kept, Some(new));
        }
    }

    fn findings(&self, role: Role, now: Uptime) -> Vec<Finding> {
        let about = Subject::Source("leases");
        let (name, namespace) = (&self.name, &self.namespace);
        let mut findings = Vec::new();
        match &self.error {
            Some(Failure { forbidden, text }) if self.elector.is_alone() => {
                let consequence = "this instance acts as the only one";
                findings.push(match forbidden {
                    Some(verb) => Finding::new(
                        Code::RightMissing,
                        about.clone(),
                        format!(
                            "no right to `{verb}` resource `leases` in apiGroup `coordination.k8s.io`, namespace `{namespace}`: {consequence}"
                        ),
                    )
                    .hint("grant it, or set `leader_election.enabled: false` where there is but one instance"),
                    None => Finding::new(
                        Code::LeaseUnavailable,
                        about.clone(),
                        format!("the Lease `{name}` cannot be had: {text}; {consequence}"),
                    ),
                });
            }
            Some(Failure { text, .. }) if self.answered + self.timing.renew <= now => {
                let consequence = match role {
                    Role::Active { .. } => "another instance may take over",
                    Role::Standby => "this instance cannot take over",
                    Role::Cautious { .. } => {
                        "what lives is kept alive, nothing is added or removed"
                    }
                };
                let text = format!("the Lease `{name}` cannot be renewed: {text}; {consequence}");
                findings.push(Finding::new(Code::LeaseUnavailable, about.clone(), text));
            }
            Some(_) | None => {}
        }
        if let Some((Term { generation, holder }, at)) = &self.rival
            && now < *at + RIVAL_TOLD
        {
            let text = if *holder == self.identity {
                format!("another instance acts under our own name `{holder}`")
            } else {
                format!(
                    "instance `{holder}` still acts, under generation {generation} of the Lease"
                )
            };
            findings.push(
                Finding::new(Code::SplitBrain, about, text)
                    .hint("look whether it reaches the apiserver; each instance needs a `leader_election.identity` of its own"),
            );
        }
        findings
    }

    /// Lets another take over at once.
    async fn release(mut self, clock: Clock) {
        let ended = async {
            // An answer may be on its way that says under which version to release.
            if let Some(asking) = self.asking.take() {
                let asked = tokio::time::timeout(RELEASE_WAIT, asking).await;
                if let Ok(asked) = asked {
                    let Asked {
                        object,
                        ask,
                        sent,
                        answer,
                        ..
                    } = asked;
                    self.object = Some(object);
                    self.elector.absorb(&ask, sent, answer, clock.now());
                }
            }
        };
        let lanes = tokio::time::timeout(LANES_WAIT, self.channels.roles.closed());
        let ((), _) = tokio::join!(ended, lanes);
        let (Some(draft), Some(mut object)) = (self.elector.release(), self.object.take()) else {
            return;
        };
        let notes = self.notes(&draft);
        let released = tokio::time::timeout(RELEASE_WAIT, object.write(&draft, &notes)).await;
        match released {
            Ok(Ok(_)) => info!(lease = self.name, "lease released"),
            Ok(Err(error)) => {
                let error = chain(&error);
                warn!(
                    error,
                    "lease not released, another instance takes over later"
                );
            }
            Err(_) => warn!("lease not released in time, another instance takes over later"),
        }
    }
}

// === impl WallClock ===

impl WallClock {
    /// Whether it went on by another time than our own since the last look, to either side.
    fn jumped(&mut self, now: Uptime) -> bool {
        let wall = self.outside.wall_clock();
        let (wall_before, before) = std::mem::replace(&mut self.last, (wall, now));
        let gone = now.saturating_sub(before);
        wall.checked_sub(wall_before)
            .is_none_or(|wall| wall.abs_diff(gone) > UNTOLD_MAX)
    }
}

/// Carries out one request.
async fn request(mut object: LeaseObject, ask: Ask, notes: Notes, clock: Clock) -> Asked {
    let sent = clock.now();
    let (verb, answered) = match &ask {
        Ask::Look => ("get", object.read().await.map(Answer::Seen)),
        Ask::Write(draft) => {
            let verb = match draft.version {
                Some(_) => "update",
                None => "create",
            };
            let written = object.write(draft, &notes).await;
            (verb, written.map(Answer::Written))
        }
    };
    let (answer, failure) = match answered {
        Ok(answer) => (answer, None),
        Err(error) => judge(&error, verb),
    };
    Asked {
        object,
        ask,
        sent,
        answer,
        failure,
    }
}

/// What an error means for the Lease.
fn judge(error: &ApiError, verb: &'static str) -> (Answer, Option<Failure>) {
    let failure = |forbidden| {
        Some(Failure {
            forbidden,
            text: chain(error),
        })
    };
    match error {
        ApiError::Forbidden(_) => (Answer::Denied, failure(Some(verb))),
        // No such API, or no such namespace.
        ApiError::NotServed => (Answer::Denied, failure(None)),
        ApiError::NotFound if verb == "create" => (Answer::Denied, failure(None)),
        ApiError::NotFound => (Answer::Absent, None),
        ApiError::Status { code: 409, .. } | ApiError::NoObject => (Answer::Conflict, None),
        _ => (Answer::Failed, failure(None)),
    }
}
