//! Everything the lane knows, and what it does next. No I/O: requests go out as [`Op`] and come back as
//! [`Done`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::batch::Written;
use super::budget::Budget;
use super::client::ApiError;
use super::report::Told;
use super::{Pace, TcpCounters};
use crate::Uptime;
use crate::config::RoutingApiConfig;
use crate::desired::{Desired, Finding};
use crate::lease::Role;
use crate::plan::admission::{self, Admission, Gate, RouterGroup};
use crate::plan::flap::{Calmed, Flaps};
use crate::plan::{InstanceId, Journal, Look, Observed, Plan, Policy, TcpRow, View};
use crate::retry::Backoff;
use crate::route::{PortRanges, RouterPort};
use crate::state::Warm;
use crate::uaa::UaaError;

mod farewell;
mod hear;
mod learn;
mod role;
mod write;

use farewell::Farewell;
use hear::Ear;
use write::free;

/// Writes under way at once. Modest batches side by side are what the API is fastest with (measured).
const WRITES_MAX: usize = 4;
/// Refreshes leave one write to whatever changes meanwhile.
const REFRESHES_MAX: usize = WRITES_MAX - 1;
/// A row is refreshed this often in its life: three may fail before it lapses.
pub(super) const REFRESHES_PER_TTL: u32 = 4;
/// Where the API is slow, at least this often.
const REFRESHES_PER_TTL_MIN: u32 = 2;
/// Rows due within this time go together, so that rows born one by one do not cost a request each.
const SLACK_MAX: Duration = Duration::from_secs(2);
/// A list that failed so often in a row is given up for now: writing blindly beats letting rows lapse.
const LIST_FAILURES_MAX: u32 = 3;
/// Waits after a failure: the first and the longest. Routes lapse within two minutes, so never longer.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// Where nothing was inherited.
static NO_ROWS: BTreeSet<TcpRow> = BTreeSet::new();

const SCOPE_GROUPS: &str = crate::uaa::SCOPES[0];
const SCOPE_READ: &str = crate::uaa::SCOPES[1];
const SCOPE_WRITE: &str = crate::uaa::SCOPES[2];

/// A request to be made.
#[derive(Debug)]
pub(super) enum Op {
    Groups,
    List,
    Renew,
    Create {
        rows: Vec<TcpRow>,
        instance: InstanceId,
        ttl: Duration,
        kind: Kind,
    },
    Delete {
        rows: Vec<TcpRow>,
        clearing: bool,
    },
}

/// Why rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Change,
    Refresh,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Done {
    Groups(Result<Vec<RouterGroup>, ApiError>),
    List {
        started: Uptime,
        answer: Result<Observed, ApiError>,
    },
    Renewed(Result<(), UaaError>),
    Created {
        started: Uptime,
        rows: Vec<TcpRow>,
        written: Written,
        kind: Kind,
    },
    Deleted {
        rows: Vec<TcpRow>,
        written: Written,
        clearing: bool,
    },
}

/// Which share of the budget a waiting port draws from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Single,
    Bulk,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    class: Class,
    turn: u64,
}

/// The lane's mind.
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent of one another"
)]
pub(super) struct State {
    pub(super) config: RoutingApiConfig,
    /// All ports that the configuration reserves.
    pub(super) reserved: PortRanges,
    /// Of those, the ones that lived before they were: they are served until their routes go.
    pub(super) spared: BTreeSet<RouterPort>,
    pace: Pace,
    pub(super) counters: Arc<TcpCounters>,
    started: Uptime,

    pub(super) desired: Option<Arc<Desired>>,
    flaps: Flaps,
    pub(super) calmed: Calmed,
    pub(super) instance: Option<InstanceId>,

    groups: Vec<RouterGroup>,
    /// Those that are listed no more while rows of ours stand in them.
    vanished: Vec<RouterGroup>,
    pub(super) chosen: Option<RouterGroup>,
    pub(super) group_finding: Option<Finding>,
    groups_due: Uptime,
    groups_asked: bool,

    /// The table as the last list showed it and as confirmed requests changed it since.
    pub(super) image: Option<Observed>,
    pub(super) blind: bool,
    /// What was wanted when rows were first published without a table: rows of the process before us.
    inherited: Option<BTreeSet<TcpRow>>,
    /// Rows confirmed since some list started, which that list may not know.
    touched: BTreeMap<TcpRow, Uptime>,
    list_due: Uptime,
    listed_at: Uptime,
    list_asked: bool,
    list_failures: u32,
    /// Something failed since the last list: what stands is not known for sure.
    suspect: bool,
    /// The last write failed; that reading works does not end the waiting.
    write_failed: bool,

    pub(super) journal: Journal,
    /// Rows that became ours, or are no more, since that was last noted.
    noted: BTreeSet<TcpRow>,
    /// The table is the last process's: what it lacks may be wanted all the same.
    pub(super) provisional: bool,
    /// As of this turn.
    role: Role,
    pub(super) busy: BTreeSet<TcpRow>,
    writes: usize,
    refreshes: usize,
    renewing: bool,
    pub(super) ttl: Duration,
    /// Seconds that a refresh takes per row, lately.
    per_row: f64,

    budget: Budget,
    waiting: BTreeMap<RouterPort, Waiting>,
    turns: u64,
    /// Whose turn it is in bulk.
    removal_next: bool,

    backoff: Backoff,
    not_before: Uptime,
    write_not_before: Uptime,
    pub(super) missing: BTreeSet<&'static str>,
    pub(super) missing_by_token: BTreeSet<&'static str>,

    pub(super) admission: Admission,
    pub(super) admission_stale: bool,
    pub(super) plan: Plan,
    pub(super) told: Told,
    ear: Ear,
    farewell: Farewell,
}

/// Ports on which rows of ours stand.
pub(super) fn live_ports(rows: &Observed, instance: &InstanceId) -> BTreeSet<RouterPort> {
    let ours = |(row, stamp): (&TcpRow, &Option<String>)| {
        (stamp.as_deref() == Some(instance.as_str())).then_some(row.port)
    };
    rows.iter().filter_map(ours).collect()
}

/// What the configuration and the API's pace decide.
pub(super) fn policy(config: &RoutingApiConfig, ttl: Duration, refresh_after: Duration) -> Policy {
    Policy {
        on_foreign: config.on_foreign,
        // What may go is judged before it reaches this lane: all that it is asked to remove was confirmed gone.
        hold_removals: false,
        ttl,
        refresh_after,
        slack: SLACK_MAX.min(refresh_after / 4),
    }
}

/// The age at which rows are refreshed: a quarter of their life, up to half of it where the whole table takes
/// longer than half of that quarter.
fn refresh_after(ttl: Duration, rows: usize, per_row: f64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "an estimate of a duration")]
    let whole = Duration::from_secs_f64((rows as f64 * per_row / REFRESHES_MAX as f64).min(1e6));
    (whole * 2).clamp(ttl / REFRESHES_PER_TTL, ttl / REFRESHES_PER_TTL_MIN)
}

// === impl State ===

impl State {
    pub(super) fn new(
        config: RoutingApiConfig,
        pace: Pace,
        counters: Arc<TcpCounters>,
        now: Uptime,
    ) -> Self {
        let ttl = config.ttl;
        Self {
            reserved: config.reserved_ports.clone(),
            spared: BTreeSet::new(),
            config,
            pace,
            counters,
            started: now,
            desired: None,
            flaps: Flaps::default(),
            calmed: Calmed::default(),
            instance: None,
            groups: Vec::new(),
            vanished: Vec::new(),
            chosen: None,
            group_finding: None,
            groups_due: now,
            groups_asked: false,
            image: None,
            blind: false,
            inherited: None,
            touched: BTreeMap::new(),
            list_due: now,
            listed_at: now,
            list_asked: false,
            list_failures: 0,
            suspect: false,
            write_failed: false,
            journal: Journal::default(),
            noted: BTreeSet::new(),
            provisional: false,
            role: Role::ALONE,
            busy: BTreeSet::new(),
            writes: 0,
            refreshes: 0,
            renewing: false,
            ttl,
            per_row: 0.0,
            budget: Budget::new(now),
            waiting: BTreeMap::new(),
            turns: 0,
            removal_next: false,
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            not_before: now,
            write_not_before: now,
            missing: BTreeSet::new(),
            missing_by_token: BTreeSet::new(),
            admission: Admission::default(),
            admission_stale: true,
            plan: Plan::default(),
            told: Told::default(),
            ear: Ear::default(),
            farewell: Farewell::default(),
        }
    }

    /// Goes on where the last process ended: its rows are ours, and its table is kept up, though nothing is
    /// removed for its sake.
    pub(super) fn inherit_state(&mut self, warm: Warm, now: Uptime) {
        self.journal.inherited = warm.rows;
        // Of a process that was drained, or that had nothing: what still stands is left to its life until Kubernetes
        // tells what is wanted.
        let table = warm.table.filter(|desired| !desired.table.tcp.is_empty());
        if let Some(table) = table {
            self.provisional = true;
            self.take(table, now);
        }
    }

    /// Looks at everything again now, whatever failed before.
    pub(super) fn look_now(&mut self, now: Uptime) {
        (self.groups_due, self.list_due) = (now, now);
        (self.not_before, self.write_not_before) = (now, now);
    }

    /// Takes over what is wanted now.
    pub(super) fn adopt(&mut self, desired: Option<Arc<Desired>>, now: Uptime) {
        let Some(desired) = desired else { return };
        self.provisional = false;
        self.take(desired, now);
    }

    fn take(&mut self, desired: Arc<Desired>, now: Uptime) {
        let id = self.config.mark(&desired.cluster);
        self.instance = Some(match self.instance.take() {
            Some(earlier) => id.formerly(earlier),
            None => id,
        });
        if desired.drained {
            self.calmed = Calmed::default();
            self.say_farewell(now);
        } else {
            self.calmed = self.flaps.calm(&desired.table.tcp, now);
        }
        self.desired = Some(desired);
        self.admission_stale = true;
    }

    pub(super) fn missing_by_token(&mut self, scopes: Vec<&'static str>) {
        self.missing_by_token = scopes.into_iter().collect();
    }

    /// What to ask now, and when to look again if nothing happens.
    pub(super) fn turn(&mut self, renew_at: Option<Uptime>, now: Uptime) -> (Vec<Op>, Uptime) {
        let mut ops = Vec::new();
        let mut wake = now + self.pace.list_every;
        if let Some(renew_at) = renew_at.filter(|_| !self.renewing) {
            if renew_at <= now {
                self.renewing = true;
                ops.push(Op::Renew);
            } else {
                wake = wake.min(renew_at);
            }
        }
        self.calm_again(now, &mut wake);
        self.settle(now, &mut wake);
        self.replan(now);
        if now < self.not_before {
            return (ops, wake.min(self.not_before));
        }
        self.look(now, &mut ops, &mut wake);
        if now < self.write_not_before {
            wake = wake.min(self.write_not_before);
        } else if self.chosen.is_some() {
            self.write_as(now, &mut ops, &mut wake);
        }
        wake = self.plan.wait.map_or(wake, |wait| wake.min(wait));
        (ops, wake)
    }

    fn calm_again(&mut self, now: Uptime, wake: &mut Uptime) {
        if self.calmed.revisit.is_some_and(|revisit| revisit <= now) {
            self.desired
                .clone()
                .into_iter()
                .for_each(|desired| self.take(desired, now));
        }
        if let Some(revisit) = self.calmed.revisit {
            *wake = (*wake).min(revisit);
        }
    }

    /// Compares anew.
    fn replan(&mut self, now: Uptime) {
        let (Some(desired), Some(instance), Some(chosen)) = (
            self.desired.clone(),
            self.instance.clone(),
            self.chosen.clone(),
        ) else {
            self.plan = Plan::default();
            return;
        };
        if self.admission_stale {
            let live = self.live();
            let gate = Gate {
                groups: &self.groups,
                vanished: &self.vanished,
                chosen: &chosen,
                reserved: &self.config.reserved_ports,
                live: &live,
            };
            self.admission = admission::admit(&self.calmed.table, gate);
            self.admission_stale = false;
        }
        if self.farewell.done {
            self.plan = Plan::default();
            return;
        }
        self.inherit(now);
        let blind = View::Blind {
            creates_from: self.creates_from(),
            inherited: self.inherited.as_ref().unwrap_or(&NO_ROWS),
        };
        let view = match &self.image {
            _ if self.blind => blind,
            Some(image) => View::Seen(image),
            None if self.unreadable() => blind,
            None => View::Unknown,
        };
        self.plan = crate::plan::plan(crate::plan::Input {
            instance: &instance,
            wanted: &self.admission.wanted,
            view,
            journal: &self.journal,
            node_ips: &desired.node_ips,
            node_ports: &desired.node_ports,
            yielding: &desired.yielding,
            undecided: &desired.undecided,
            policy: Policy {
                hold_removals: self.provisional || !self.role.is_active(),
                ..self.pace_as(policy(&self.config, self.ttl, self.refresh_after()))
            },
            now,
        });
    }

    /// Ports on which rows of ours stand, as far as is known.
    pub(super) fn live(&self) -> BTreeSet<RouterPort> {
        let Journal {
            confirmed,
            inherited,
            ..
        } = &self.journal;
        let rows = confirmed.keys().chain(inherited);
        let mut live: BTreeSet<_> = rows.map(|row| row.port).collect();
        if let (Some(image), Some(instance)) = (&self.image, &self.instance) {
            live.extend(live_ports(image, instance));
        }
        live
    }

    /// What the next process must know: rows that became ours since the last call, and rows that are no more.
    pub(super) fn take_noted(&mut self) -> (Vec<TcpRow>, Vec<TcpRow>) {
        let noted = std::mem::take(&mut self.noted).into_iter();
        noted.partition(|row| self.journal.holds(row))
    }

    fn creates_from(&self) -> Uptime {
        self.started + self.pace.legacy_life
    }

    /// Takes what is wanted as what already stands, once and only where no table was ever read: after a restart
    /// row by row within the budget, the last would lapse before its turn.
    fn inherit(&mut self, now: Uptime) {
        let first = self.inherited.is_none() && self.image.is_none() && self.unreadable();
        if first && now >= self.creates_from() {
            let rows = self.admission.wanted.values().flat_map(|port| &port.rows);
            self.inherited = Some(rows.cloned().collect());
        }
    }

    /// Whether reading is given up for now.
    fn unreadable(&self) -> bool {
        self.blind || self.list_failures >= LIST_FAILURES_MAX
    }

    pub(super) fn refresh_after(&self) -> Duration {
        refresh_after(self.ttl, self.journal.confirmed.len(), self.per_row)
    }

    /// Router groups and the table, where it is time to read them.
    fn look(&mut self, now: Uptime, ops: &mut Vec<Op>, wake: &mut Uptime) {
        if !self.groups_asked {
            if self.groups_due <= now {
                self.groups_asked = true;
                ops.push(Op::Groups);
            } else {
                *wake = (*wake).min(self.groups_due);
            }
        }
        if self.list_asked {
            return;
        }
        let due = match self.plan.look_again {
            _ if self.blind => self.list_due,
            Some(Look::Soon) => self.list_due.min(self.listed_at + self.pace.legacy_look),
            Some(Look::Later) => self.list_due.min(self.listed_at + self.pace.foreign_look),
            None => self.list_due,
        };
        if due <= now {
            self.list_asked = true;
            self.list_begins(now);
            ops.push(Op::List);
        } else {
            *wake = (*wake).min(due);
        }
    }
}

#[cfg(test)]
mod tests;
