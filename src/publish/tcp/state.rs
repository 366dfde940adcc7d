//! Everything the lane knows, and what it does next. No I/O: requests go out as [`Op`] and come back as
//! [`Done`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::batch::{BATCH_MAX, Written};
use super::budget::{Budget, SINGLE_ROWS_MAX, SINGLES_AT_ONCE, SINGLES_WAITING_MAX};
use super::client::ApiError;
use super::report::Told;
use super::{Pace, TcpCounters};
use crate::Uptime;
use crate::config::RoutingApiConfig;
use crate::desired::{Desired, Finding};
use crate::plan::admission::{self, Admission, Gate, RouterGroup};
use crate::plan::flap::{Calmed, Flaps};
use crate::plan::{
    InstanceId, Journal, Look, NO_TLS, Observed, Plan, Policy, Refusal, TcpRow, View,
};
use crate::publish::tls;
use crate::retry::Backoff;
use crate::route::{PortRanges, RouterPort};
use crate::uaa::UaaError;

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
pub(super) struct State {
    pub(super) config: RoutingApiConfig,
    pace: Pace,
    counters: Arc<TcpCounters>,
    started: Uptime,

    pub(super) desired: Option<Arc<Desired>>,
    flaps: Flaps,
    pub(super) calmed: Calmed,
    pub(super) instance: Option<InstanceId>,

    groups: Vec<RouterGroup>,
    pub(super) chosen: Option<RouterGroup>,
    pub(super) group_finding: Option<Finding>,
    groups_due: Uptime,
    groups_asked: bool,

    /// The table as the last list showed it and as confirmed requests changed it since.
    pub(super) image: Option<Observed>,
    pub(super) blind: bool,
    /// Rows confirmed since some list started, which that list may not know.
    touched: BTreeMap<TcpRow, Uptime>,
    list_due: Uptime,
    listed_at: Uptime,
    list_asked: bool,
    list_failures: u32,
    /// Something failed since the last list: what stands is not known for sure.
    suspect: bool,

    pub(super) journal: Journal,
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

    backoff: Backoff,
    not_before: Uptime,
    write_not_before: Uptime,
    pub(super) missing: BTreeSet<&'static str>,
    pub(super) missing_by_token: BTreeSet<&'static str>,

    pub(super) admission: Admission,
    admission_stale: bool,
    pub(super) plan: Plan,
    pub(super) told: Told,
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
        join_foreign: config.join_foreign,
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
            config,
            pace,
            counters,
            started: now,
            desired: None,
            flaps: Flaps::default(),
            calmed: Calmed::default(),
            instance: None,
            groups: Vec::new(),
            chosen: None,
            group_finding: None,
            groups_due: now,
            groups_asked: false,
            image: None,
            blind: false,
            touched: BTreeMap::new(),
            list_due: now,
            listed_at: now,
            list_asked: false,
            list_failures: 0,
            suspect: false,
            journal: Journal::default(),
            busy: BTreeSet::new(),
            writes: 0,
            refreshes: 0,
            renewing: false,
            ttl,
            per_row: 0.0,
            budget: Budget::new(now),
            waiting: BTreeMap::new(),
            turns: 0,
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            not_before: now,
            write_not_before: now,
            missing: BTreeSet::new(),
            missing_by_token: BTreeSet::new(),
            admission: Admission::default(),
            admission_stale: true,
            plan: Plan::default(),
            told: Told::default(),
        }
    }

    /// Takes over what is wanted now.
    pub(super) fn adopt(&mut self, desired: Option<Arc<Desired>>, now: Uptime) {
        let Some(desired) = desired else { return };
        self.instance = Some(InstanceId::of(&desired.cluster));
        self.calmed = self.flaps.calm(&desired.table.tcp, now);
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
        self.replan(now);
        if now < self.not_before {
            return (ops, wake.min(self.not_before));
        }
        self.look(now, &mut ops, &mut wake);
        let writable = self.chosen.is_some() && !(self.suspect && !self.unreadable());
        if now < self.write_not_before {
            wake = wake.min(self.write_not_before);
        } else if writable {
            self.write(now, &mut ops, &mut wake);
        }
        wake = self.plan.wait.map_or(wake, |wait| wake.min(wait));
        (ops, wake)
    }

    fn calm_again(&mut self, now: Uptime, wake: &mut Uptime) {
        if self.calmed.revisit.is_some_and(|revisit| revisit <= now) {
            self.adopt(self.desired.clone(), now);
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
            let mut live: BTreeSet<_> = self.journal.confirmed.keys().map(|row| row.port).collect();
            live.extend(
                self.image
                    .iter()
                    .flat_map(|image| live_ports(image, &instance)),
            );
            let gate = Gate {
                groups: &self.groups,
                chosen: &chosen,
                reserved: &self.config.reserved_ports,
                live: &live,
            };
            self.admission = admission::admit(&self.calmed.table, gate);
            self.admission_stale = false;
        }
        let view = match &self.image {
            _ if self.blind => self.blind_view(),
            Some(image) => View::Seen(image),
            None if self.unreadable() => self.blind_view(),
            None => View::Unknown,
        };
        self.plan = crate::plan::plan(crate::plan::Input {
            instance: &instance,
            wanted: &self.admission.wanted,
            view,
            journal: &self.journal,
            node_ips: &desired.node_ips,
            node_ports: &desired.node_ports,
            policy: policy(&self.config, self.ttl, self.refresh_after()),
            now,
        });
    }

    fn blind_view(&self) -> View<'static> {
        View::Blind {
            creates_from: self.started + self.pace.legacy_life,
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
            ops.push(Op::List);
        } else {
            *wake = (*wake).min(due);
        }
    }

    /// Rows in the way first, then what lapsed, what is new, and what is due.
    fn write(&mut self, now: Uptime, ops: &mut Vec<Op>, wake: &mut Uptime) {
        let free = |rows: &[TcpRow], busy: &BTreeSet<TcpRow>| -> Vec<TcpRow> {
            rows.iter()
                .filter(|row| !busy.contains(row))
                .cloned()
                .collect()
        };
        let clear: Vec<_> = self
            .plan
            .clear
            .iter()
            .map(|owned| owned.get().clone())
            .collect();
        self.delete(free(&clear, &self.busy), true, ops);
        let restore = free(&self.plan.restore, &self.busy);
        // While rows that lived are missing, nothing new goes: tcp-router drops what it has pruned at its next
        // change, so the first new row would close the lapsed ones for good.
        let lapsed = !self.plan.restore.is_empty();
        self.create(restore, Kind::Change, ops);
        if !lapsed {
            self.changes(now, ops, wake);
        }
        let refresh = free(&self.plan.refresh, &self.busy);
        self.create(refresh, Kind::Refresh, ops);
    }

    /// New and surplus rows, as far as the budget goes.
    fn changes(&mut self, now: Uptime, ops: &mut Vec<Op>, wake: &mut Uptime) {
        let mut changed: BTreeMap<RouterPort, (Vec<TcpRow>, Vec<TcpRow>)> = BTreeMap::new();
        for row in self.plan.add.iter().filter(|row| !self.busy.contains(*row)) {
            changed.entry(row.port).or_default().0.push(row.clone());
        }
        for row in self.plan.remove.iter().map(crate::plan::Owned::get) {
            if !self.busy.contains(row) {
                changed.entry(row.port).or_default().1.push(row.clone());
            }
        }
        self.queue(&changed);
        let (mut add, mut remove) = (Vec::new(), Vec::new());
        let mut singles: Vec<_> = self
            .waiting
            .iter()
            .filter(|(port, waiting)| waiting.class == Class::Single && changed.contains_key(port))
            .map(|(port, waiting)| (waiting.turn, *port))
            .collect();
        singles.sort_unstable();
        for (_, port) in singles {
            let (adds, removes) = &changed[&port];
            let rows = (adds.len() + removes.len()).min(SINGLE_ROWS_MAX);
            if self.writes >= WRITES_MAX || !self.budget.single(rows, now) {
                *wake = (*wake).min(self.budget.single_at());
                break;
            }
            add.extend(adds.iter().take(rows).cloned());
            remove.extend(
                removes
                    .iter()
                    .take(rows.saturating_sub(adds.len()))
                    .cloned(),
            );
            if adds.len() + removes.len() > rows {
                self.demote(port);
            }
        }
        let bulk = |waiting: &BTreeMap<RouterPort, Waiting>, row: &TcpRow| {
            changed.contains_key(&row.port)
                && waiting
                    .get(&row.port)
                    .is_some_and(|waiting| waiting.class == Class::Bulk)
        };
        let removes = self
            .plan
            .remove
            .iter()
            .map(crate::plan::Owned::get)
            .map(|row| (row, false));
        for (row, is_add) in self.plan.add.iter().map(|row| (row, true)).chain(removes) {
            let taken = self.busy.contains(row) || add.contains(row) || remove.contains(row);
            if taken || !bulk(&self.waiting, row) {
                continue;
            }
            if self.writes >= WRITES_MAX || !self.budget.bulk(now) {
                *wake = (*wake).min(self.budget.bulk_at());
                break;
            }
            if is_add { &mut add } else { &mut remove }.push(row.clone());
        }
        self.create(add, Kind::Change, ops);
        self.delete(remove, false, ops);
    }

    /// Sorts ports that newly wait: few at once are single changes, many are bulk.
    fn queue(&mut self, changed: &BTreeMap<RouterPort, (Vec<TcpRow>, Vec<TcpRow>)>) {
        let busy: BTreeSet<_> = self.busy.iter().map(|row| row.port).collect();
        self.waiting
            .retain(|port, _| changed.contains_key(port) || busy.contains(port));
        let new: Vec<_> = changed
            .keys()
            .filter(|port| !self.waiting.contains_key(port))
            .copied()
            .collect();
        let singles = self
            .waiting
            .values()
            .filter(|waiting| waiting.class == Class::Single)
            .count();
        let few =
            new.len() <= SINGLES_AT_ONCE as usize && singles + new.len() <= SINGLES_WAITING_MAX;
        for port in new {
            self.turns += 1;
            let class = if few { Class::Single } else { Class::Bulk };
            self.waiting.insert(
                port,
                Waiting {
                    class,
                    turn: self.turns,
                },
            );
        }
    }

    fn demote(&mut self, port: RouterPort) {
        if let Some(waiting) = self.waiting.get_mut(&port) {
            waiting.class = Class::Bulk;
        }
    }

    fn create(&mut self, rows: Vec<TcpRow>, kind: Kind, ops: &mut Vec<Op>) {
        let Some(instance) = self.instance.clone() else {
            return;
        };
        for rows in rows.chunks(BATCH_MAX) {
            let full = kind == Kind::Refresh && self.refreshes >= REFRESHES_MAX;
            if full || self.writes >= WRITES_MAX {
                return;
            }
            self.writes += 1;
            self.refreshes += usize::from(kind == Kind::Refresh);
            self.busy.extend(rows.iter().cloned());
            let (rows, instance) = (rows.to_vec(), instance.clone());
            ops.push(Op::Create {
                rows,
                instance,
                ttl: self.ttl,
                kind,
            });
        }
    }

    fn delete(&mut self, rows: Vec<TcpRow>, clearing: bool, ops: &mut Vec<Op>) {
        for rows in rows.chunks(BATCH_MAX) {
            if self.writes >= WRITES_MAX {
                return;
            }
            self.writes += 1;
            self.busy.extend(rows.iter().cloned());
            ops.push(Op::Delete {
                rows: rows.to_vec(),
                clearing,
            });
        }
    }

    /// Learns from what came back.
    pub(super) fn absorb(&mut self, done: Done, now: Uptime) {
        self.told.last_attempt = Some(now);
        match done {
            Done::Groups(answer) => {
                self.groups_asked = false;
                match answer {
                    Ok(groups) => self.learn_groups(groups, now),
                    Err(error) => self.fail(error, now),
                }
            }
            Done::List { started, answer } => {
                self.list_asked = false;
                match answer {
                    Ok(rows) => self.learn_table(rows, started, now),
                    Err(error) => {
                        self.list_failures = self.list_failures.saturating_add(1);
                        if self.list_failures >= LIST_FAILURES_MAX {
                            self.list_due = now + self.pace.scope_retry;
                        }
                        self.fail(error, now);
                    }
                }
            }
            Done::Renewed(answer) => {
                self.renewing = false;
                if let Err(error) = answer {
                    self.counters.token_failures.fetch_add(1, Relaxed);
                    tracing::warn!(%error, "token not renewed, the old one still serves");
                }
            }
            Done::Created {
                started,
                rows,
                written,
                kind,
            } => {
                self.release(&rows);
                self.refreshes -= usize::from(kind == Kind::Refresh);
                self.created(written, kind, started, now);
            }
            Done::Deleted {
                rows,
                written,
                clearing,
            } => {
                self.release(&rows);
                self.deleted(written, clearing, now);
            }
        }
    }

    fn release(&mut self, rows: &[TcpRow]) {
        self.writes -= 1;
        for row in rows {
            self.busy.remove(row);
        }
    }

    fn learn_groups(&mut self, groups: Vec<RouterGroup>, now: Uptime) {
        self.missing.remove(SCOPE_GROUPS);
        self.groups_due = now + self.pace.groups_every;
        let (name, default) = (
            &self.config.router_group,
            self.config.router_group_is_default,
        );
        match admission::choose(&groups, name, default) {
            Ok(chosen) => {
                for group in &groups {
                    if let Err(error) = PortRanges::parse(&group.reservable_ports) {
                        tracing::warn!(group = group.name, %error, "router group's ports unreadable");
                    }
                }
                if self.chosen.as_ref() != Some(&chosen) {
                    let RouterGroup {
                        guid,
                        name,
                        reservable_ports,
                    } = &chosen;
                    tracing::info!(group = name, %guid, ports = %reservable_ports, "router group");
                }
                self.chosen = Some(chosen);
                self.group_finding = None;
                self.groups = groups;
                self.admission_stale = true;
            }
            Err(finding) => {
                // One that was known is kept: a group that vanished for a moment must close nothing.
                self.groups_due = now + self.pace.scope_retry;
                self.group_finding = Some(finding);
            }
        }
        self.succeed(now);
    }

    /// Takes a list for the truth, except about rows that were written while it was made.
    fn learn_table(&mut self, mut rows: Observed, started: Uptime, now: Uptime) {
        self.missing.remove(SCOPE_READ);
        let instance = self.instance.as_ref().map(|id| id.as_str().to_owned());
        self.touched.retain(|_, at| *at >= started);
        for row in self.touched.keys() {
            rows.entry(row.clone()).or_insert_with(|| instance.clone());
        }
        let lost = self
            .journal
            .confirmed
            .keys()
            .filter(|row| !rows.contains_key(*row))
            .count();
        if lost > 0 && self.image.is_some() {
            self.counters.drift.fetch_add(lost as u64, Relaxed);
            tracing::warn!(rows = lost, "confirmed rows are missing from the table");
        }
        let wanted: BTreeSet<_> = self
            .admission
            .wanted
            .values()
            .flat_map(|port| &port.rows)
            .cloned()
            .collect();
        self.journal
            .confirmed
            .retain(|row, _| rows.contains_key(row) || wanted.contains(row));
        self.journal.tried.retain(|row, _| rows.contains_key(row));
        self.journal.refused.retain(|row, _| wanted.contains(row));
        self.image = Some(rows);
        self.blind = false;
        self.suspect = false;
        self.list_failures = 0;
        self.listed_at = now;
        self.list_due = now + self.pace.list_every;
        self.admission_stale = true;
        self.succeed(now);
    }

    fn created(&mut self, written: Written, kind: Kind, started: Uptime, now: Uptime) {
        let stamp = self.instance.as_ref().map(|id| id.as_str().to_owned());
        let mut added = Vec::new();
        let count = written.confirmed.len();
        for row in written.confirmed {
            self.journal.refused.remove(&row);
            self.journal.tried.remove(&row);
            self.touched.insert(row.clone(), now);
            let mut new = self
                .journal
                .confirmed
                .insert(row.clone(), started)
                .is_none();
            if let Some(image) = &mut self.image {
                new = !image.contains_key(&row);
                image.entry(row.clone()).or_insert_with(|| stamp.clone());
            }
            if new {
                added.push(row);
            }
        }
        if count > 0 {
            self.missing.remove(SCOPE_WRITE);
            self.succeed(now);
        }
        self.counters
            .rows_added
            .fetch_add(added.len() as u64, Relaxed);
        self.counters
            .rows_refreshed
            .fetch_add((count - added.len()) as u64, Relaxed);
        if kind == Kind::Refresh && count > 0 {
            #[expect(clippy::cast_precision_loss, reason = "an estimate of a duration")]
            let took = now.saturating_sub(started).as_secs_f64() / count as f64;
            // An eighth of each new value: one slow request changes nothing, a slow API soon does.
            self.per_row += (took - self.per_row) / 8.0;
        }
        self.tell_added(&added);
        for (row, message) in written.refused {
            self.counters.rows_refused.fetch_add(1, Relaxed);
            tracing::warn!(port = %row.port, backend = row.backend(), message, "row refused");
            self.refuse(row, message, now + self.pace.quarantine);
        }
        for row in written.duplicate {
            self.counters.duplicates.fetch_add(1, Relaxed);
            tracing::warn!(port = %row.port, backend = row.backend(), "row stands twice");
            let until = now + self.ttl + self.pace.prune_margin;
            self.refuse(
                row,
                "it stands twice in its table until both lapse".to_owned(),
                until,
            );
        }
        if let Some(error) = written.error {
            self.fail(error, now);
        }
    }

    fn refuse(&mut self, row: TcpRow, message: String, until: Uptime) {
        self.journal.refused.insert(row, Refusal { until, message });
    }

    fn deleted(&mut self, written: Written, clearing: bool, now: Uptime) {
        let unsure = written
            .refused
            .into_iter()
            .map(|(row, _)| row)
            .chain(written.duplicate);
        for row in unsure {
            self.journal.tried.insert(row, now);
        }
        let mut removed = Vec::new();
        for row in written.confirmed {
            self.journal.tried.insert(row.clone(), now);
            self.journal.confirmed.remove(&row);
            self.touched.remove(&row);
            // A row without our own "no TLS" may outlive its deletion on some versions: only a list tells.
            if !clearing && row.tls_port == NO_TLS {
                if let Some(image) = &mut self.image {
                    image.remove(&row);
                }
                self.journal.tried.remove(&row);
            }
            removed.push(row);
        }
        if !removed.is_empty() {
            self.missing.remove(SCOPE_WRITE);
            self.counters
                .rows_removed
                .fetch_add(removed.len() as u64, Relaxed);
            self.tell_removed(&removed, clearing);
            if !self.unreadable() {
                self.list_due = now;
            }
            self.succeed(now);
        }
        if let Some(error) = written.error {
            self.fail(error, now);
        }
    }

    fn succeed(&mut self, now: Uptime) {
        self.backoff.succeed();
        self.told.succeed(now);
    }

    /// Answers an error with the wait it calls for; nothing ever ends the lane.
    fn fail(&mut self, error: ApiError, now: Uptime) {
        let text = tls::chain(&error);
        tracing::debug!(error = text, "request failed");
        match error {
            ApiError::MaxTtl { secs } if Duration::from_secs(secs) < self.ttl => {
                tracing::warn!(secs, "the routing API allows a shorter TTL only; adopted");
                self.ttl = Duration::from_secs(secs);
                return;
            }
            ApiError::Unauthorized {
                scope: Some(scope), ..
            } => self.scope_missing(scope, now),
            ApiError::GroupUnknown { .. } => {
                self.groups_due = now;
                self.not_before = now + self.backoff.fail();
            }
            _ => {
                self.suspect = true;
                self.not_before = now + self.backoff.fail();
                // A list as soon as the wait is over; it also tells whether the API is back.
                if !self.unreadable() {
                    self.list_due = now;
                }
            }
        }
        self.told.fail(text);
    }

    fn scope_missing(&mut self, scope: &'static str, now: Uptime) {
        let again = now + self.pace.scope_retry;
        self.missing.insert(scope);
        if scope == SCOPE_READ {
            self.blind = true;
            self.suspect = false;
            self.list_due = again;
        } else if scope == SCOPE_GROUPS {
            self.groups_due = again;
        } else {
            self.write_not_before = again;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refresh_stretches_from_a_quarter_to_half_of_the_life() {
        let ttl = Duration::from_secs(120);
        assert_eq!(refresh_after(ttl, 12, 0.003), Duration::from_secs(30));
        assert_eq!(refresh_after(ttl, 30_000, 0.003), Duration::from_secs(60));
        let between = refresh_after(ttl, 10_000, 0.006);
        assert_eq!(between, Duration::from_secs(40));
    }
}
