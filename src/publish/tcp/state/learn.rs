//! What came back, and what it teaches. Whatever an answer says, the lane goes on; it decides only how long to
//! wait, and with what.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::super::batch::Written;
use super::super::client::ApiError;
use super::{Done, Kind, LIST_FAILURES_MAX, SCOPE_GROUPS, SCOPE_READ, SCOPE_WRITE, State};
use crate::Uptime;
use crate::causes::chain;
use crate::plan::admission::{self, RouterGroup};
use crate::plan::{Cleared, NO_TLS, Observed, Refusal, TcpRow};
use crate::route::PortRanges;

/// Deletions are looked after this often: a bulk of them, eight a second, must not list the whole table each
/// time.
const VERIFY_EVERY: Duration = Duration::from_secs(1);

impl State {
    /// Learns from what came back.
    pub(in super::super) fn absorb(&mut self, done: Done, now: Uptime) {
        self.told.last_attempt = Some(now);
        match done {
            Done::Groups(answer) => {
                self.groups_asked = false;
                match answer {
                    Ok(groups) => self.learn_groups(groups, now),
                    Err(error) => self.fail(&error, now),
                }
            }
            Done::List { started, answer } => {
                self.list_asked = false;
                match answer {
                    Ok(rows) => self.learn_table(rows, started, now),
                    Err(error) => {
                        // Without a token nothing could be written blindly either.
                        if !matches!(error, ApiError::Token(_)) {
                            self.list_failures = self.list_failures.saturating_add(1);
                        }
                        // Who is drained has nothing to write blindly, and must see that it is gone.
                        if self.list_failures >= LIST_FAILURES_MAX && !self.is_drained() {
                            self.list_due = now + self.pace.scope_retry;
                        }
                        self.fail(&error, now);
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
                mut written,
                kind,
            } => {
                self.release(&rows, now);
                let vanished = |row: &TcpRow| self.vanished.iter().any(|g| g.guid == row.group);
                if let Some(ApiError::GroupUnknown { message, .. }) = &written.error
                    && rows.iter().all(vanished)
                {
                    self.set_aside(rows, &message.clone(), now);
                    written.error = None;
                }
                self.refreshes -= usize::from(kind == Kind::Refresh);
                self.created(written, kind, started, now);
            }
            Done::Deleted {
                rows,
                written,
                clearing,
            } => {
                self.release(&rows, now);
                self.deleted(written, clearing, now);
            }
        }
        self.forget_echoes();
    }

    fn release(&mut self, rows: &[TcpRow], now: Uptime) {
        self.writes -= 1;
        self.settles(rows, now);
        for row in rows {
            self.busy.remove(row);
        }
    }

    fn learn_groups(&mut self, groups: Vec<RouterGroup>, now: Uptime) {
        self.missing.remove(SCOPE_GROUPS);
        self.groups_due = now + self.pace.groups_every;
        // The API is back: what was given up while all of it was away is read at once.
        if self.list_failures > 0 {
            self.list_due = now;
        }
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
                let before = std::mem::replace(&mut self.groups, groups);
                self.remember(before, now);
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

    /// Keeps what was known of groups that are listed no more, for as long as rows of ours stand in them.
    fn remember(&mut self, before: Vec<RouterGroup>, now: Uptime) {
        let mut known = std::mem::take(&mut self.vanished);
        for group in &before {
            if admission::only(&before, &group.name).is_some() {
                known.retain(|other| other.name != group.name);
                known.push(group.clone());
            }
        }
        known.retain(|group| {
            let rows = self.journal.confirmed.iter();
            let stands =
                rows.filter(|(row, _)| row.group == group.guid)
                    .any(|(row, at)| match &self.image {
                        Some(image) => image.contains_key(row),
                        None => *at + self.ttl > now,
                    });
            stands && admission::only(&self.groups, &group.name).is_none()
        });
        self.vanished = known;
    }

    /// Leaves rows alone for a while whose group is not listed and not known to the API either: their refusal
    /// must not make everybody else wait.
    fn set_aside(&mut self, rows: Vec<TcpRow>, message: &str, now: Uptime) {
        self.groups_due = now;
        self.list_due = now;
        let until = now + self.refresh_after();
        for row in rows {
            self.refuse(row, message.to_owned(), until);
        }
    }

    /// Takes a list for the truth, except about rows that were written while it was made.
    fn learn_table(&mut self, mut rows: Observed, started: Uptime, now: Uptime) {
        self.missing.remove(SCOPE_READ);
        self.farewell.listed(started);
        let instance = self.instance.as_ref().map(|id| id.as_str().to_owned());
        self.touched.retain(|_, at| *at >= started);
        for row in self.touched.keys() {
            rows.entry(row.clone()).or_insert_with(|| instance.clone());
        }
        self.add_heard(&mut rows, now);
        // Once each: what is being restored is missing from the image as well.
        let stood = |row: &&TcpRow| {
            self.image
                .as_ref()
                .is_some_and(|old| old.contains_key(*row))
        };
        let confirmed = self.journal.confirmed.keys();
        let lost = confirmed
            .filter(|row| !rows.contains_key(*row))
            .filter(stood);
        let lost: Vec<_> = lost.cloned().collect();
        if !lost.is_empty() {
            let rows = lost.len();
            tracing::warn!(rows, "confirmed rows are missing from the table");
        }
        for row in lost {
            self.drifted(&row, now);
        }
        let wanted: BTreeSet<_> = self
            .admission
            .wanted
            .values()
            .flat_map(|port| &port.rows)
            .cloned()
            .collect();
        let noted = &mut self.noted;
        let mut stays = |row: &TcpRow| {
            let stays = rows.contains_key(row) || wanted.contains(row);
            if !stays {
                noted.insert(row.clone());
            }
            stays
        };
        self.journal.confirmed.retain(|row, _| stays(row));
        // Before Kubernetes and the router groups were heard of, nobody knows what is wanted.
        if self.desired.is_some() && !self.provisional && self.chosen.is_some() {
            self.journal.inherited.retain(|row| stays(row));
        }
        self.journal.tried.retain(|row, _| rows.contains_key(row));
        // What nobody wants any more may be kept alive as the last of its port.
        let refusable = |row: &TcpRow| wanted.contains(row) || rows.contains_key(row);
        self.journal.refused.retain(|row, _| refusable(row));
        self.follow_cleared(&rows, now);
        self.note_lapsing(&rows, now);
        self.image = Some(rows);
        self.blind = false;
        self.suspect = false;
        self.list_failures = 0;
        self.listed_at = now;
        let again = self.list_again(started, now);
        // What was deleted while this list was under way only the next one shows gone.
        let verify = self.farewell.is_later(started).then(|| now + VERIFY_EVERY);
        let next = again.into_iter().chain(verify).min();
        self.list_due = next.unwrap_or(now + self.pace.list_every);
        self.admission_stale = true;
        if self.plan.in_sync() && self.plan.refresh.is_empty() {
            self.write_failed = false;
        }
        self.succeed(now);
    }

    /// An older job that still runs writes its rows again, within its TTL at the latest.
    fn follow_cleared(&mut self, rows: &Observed, now: Uptime) {
        let life = self.pace.legacy_life;
        self.journal.cleared.retain(|row, cleared| {
            *cleared = match (*cleared, rows.contains_key(row)) {
                (Cleared::Asked, true) => Cleared::Asked,
                (Cleared::Gone(_) | Cleared::Back, true) => Cleared::Back,
                (Cleared::Gone(since), false) => Cleared::Gone(since),
                (Cleared::Asked | Cleared::Back, false) => Cleared::Gone(now),
            };
            !matches!(*cleared, Cleared::Gone(since) if since + life <= now)
        });
    }

    /// Remembers rows of others that this list has lost: tcp-router learns of it from the pruner only.
    fn note_lapsing(&mut self, rows: &Observed, now: Uptime) {
        let instance = self.instance.as_ref().map(crate::plan::InstanceId::as_str);
        let until = now + self.pace.prune_margin;
        let lapsing = &mut self.journal.lapsing;
        lapsing.retain(|row, until| *until > now && !rows.contains_key(row));
        for (row, stamp) in self.image.iter().flatten() {
            if !rows.contains_key(row) && stamp.as_deref() != instance {
                lapsing.insert(row.clone(), until);
            }
        }
    }

    fn created(&mut self, written: Written, kind: Kind, started: Uptime, now: Uptime) {
        let stamp = self.instance.as_ref().map(|id| id.as_str().to_owned());
        let mut added = Vec::new();
        let count = written.confirmed.len();
        for row in written.confirmed {
            self.journal.refused.remove(&row);
            self.journal.tried.remove(&row);
            if let Some(inherited) = &mut self.inherited {
                inherited.remove(&row);
            }
            self.touched.insert(row.clone(), now);
            self.journal.inherited.remove(&row);
            let mut new = self
                .journal
                .confirmed
                .insert(row.clone(), started)
                .is_none();
            if new {
                self.noted.insert(row.clone());
            }
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
            self.write_failed = false;
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
            // What still stands gets the further tries that its life has room for.
            let wait = match kind {
                Kind::Change => self.pace.quarantine,
                Kind::Refresh => self.refresh_after().min(self.pace.quarantine),
            };
            self.refuse(row, message, now + wait);
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
            self.write_failed = true;
            self.fail(&error, now);
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
            // Until a list shows it gone: who writes it anew must not draw us into a hot loop. Who cannot read
            // never sees it again.
            if self.image.is_some() {
                self.journal.tried.insert(row.clone(), now);
            }
            if clearing {
                let cleared = &mut self.journal.cleared;
                cleared.entry(row.clone()).or_insert(Cleared::Asked);
            }
            self.journal.confirmed.remove(&row);
            self.journal.inherited.remove(&row);
            self.noted.insert(row.clone());
            self.touched.remove(&row);
            // A row without our own "no TLS" may outlive its deletion on some versions: only a list tells.
            if !clearing
                && row.tls_port == NO_TLS
                && let Some(image) = &mut self.image
            {
                image.remove(&row);
            }
            removed.push(row);
        }
        if !removed.is_empty() {
            self.farewell.deleted(now);
            self.missing.remove(SCOPE_WRITE);
            self.write_failed = false;
            self.counters
                .rows_removed
                .fetch_add(removed.len() as u64, Relaxed);
            self.tell_removed(&removed, clearing);
            if !self.unreadable() || (self.is_drained() && !self.blind) {
                let soon = now.max(self.listed_at + VERIFY_EVERY);
                self.list_due = self.list_due.min(soon);
            }
            self.succeed(now);
        }
        if let Some(error) = written.error {
            self.write_failed = true;
            self.fail(&error, now);
        }
    }

    fn succeed(&mut self, now: Uptime) {
        if !self.write_failed {
            self.backoff.succeed();
            self.told.succeed(now);
        }
    }

    /// Answers an error with the wait it calls for; nothing ever ends the lane.
    fn fail(&mut self, error: &ApiError, now: Uptime) {
        let text = chain(error);
        let request = error.request_id();
        // One line for a run of alike failures, with an id to look for in the API's own log.
        if self.told.last_error.as_ref() == Some(&text) {
            tracing::debug!(lane = "tcp", error = text, request, "request failed");
        } else {
            tracing::info!(lane = "tcp", error = text, request, "request failed");
        }
        match error {
            // Several batches may be told at once; what the first one taught is no outage for the others.
            ApiError::MaxTtl { secs } if Duration::from_secs(*secs) <= self.ttl => {
                if Duration::from_secs(*secs) < self.ttl {
                    tracing::warn!(secs, "the routing API allows a shorter TTL only; adopted");
                    self.ttl = Duration::from_secs(*secs);
                } else {
                    // One that keeps saying so is not asked in a hot loop.
                    self.write_not_before = now + self.backoff.fail();
                }
                self.write_failed = false;
                return;
            }
            ApiError::Unauthorized {
                scope: Some(scope), ..
            } => {
                self.scope_missing(scope, now);
                // To run blind is degraded, not failing.
                if *scope == SCOPE_READ {
                    return;
                }
            }
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
