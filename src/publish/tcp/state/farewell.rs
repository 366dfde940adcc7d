//! The lane that is to withdraw everything: what still stands, and when it is proven that nothing does.
//!
//! Without any budget, which protects the other tenants from our haste: an operator who drains wants to be done, and
//! the process is about to end. Once nothing of ours stands the lane rests, since a row under our id that appears
//! later is that of another process of this cluster.

use std::collections::BTreeSet;

use super::{Op, State, free};
use crate::Uptime;
use crate::plan::{Owned, TcpRow};
use crate::status::Withdrawn;

/// How far it is.
#[derive(Debug, Default)]
pub(super) struct Farewell {
    /// When it was asked for.
    since: Option<Uptime>,
    /// When the last list was asked for that came.
    listed: Uptime,
    /// When a deletion was last taken.
    deleted: Uptime,
    /// Nothing of ours stands any more.
    pub(super) done: bool,
}

// === impl Farewell ===

impl Farewell {
    pub(super) fn listed(&mut self, started: Uptime) {
        self.listed = started;
    }

    pub(super) fn deleted(&mut self, now: Uptime) {
        self.deleted = now;
    }

    /// Whether a deletion was taken after a list was asked for.
    pub(super) fn is_later(&self, listed: Uptime) -> bool {
        self.deleted > listed
    }
}

// === impl State ===

impl State {
    pub(super) fn is_drained(&self) -> bool {
        self.farewell.since.is_some()
    }

    /// Everything is to go. What stands is looked at anew, and at once: there is little time.
    pub(super) fn say_farewell(&mut self, now: Uptime) {
        if self.is_drained() {
            return;
        }
        self.farewell.since = Some(now);
        (self.list_due, self.not_before, self.write_not_before) = (now, now, now);
    }

    /// Deletes what the plan says, as fast as the API takes it.
    pub(super) fn withdraw(&mut self, ops: &mut Vec<Op>) {
        let rows = self.plan.clear.iter().chain(&self.plan.remove);
        let rows: Vec<_> = rows.map(Owned::get).cloned().collect();
        self.delete(&free(&rows, &self.busy), false, ops);
    }

    /// How far that is; `None` before it was asked for.
    pub(in super::super) fn withdrawn(&mut self) -> Option<Withdrawn> {
        let since = self.farewell.since?;
        if self.farewell.done {
            return Some(Withdrawn {
                proven: true,
                ..Withdrawn::default()
            });
        }
        let left: BTreeSet<String> = self.standing().map(|row| row.port.to_string()).collect();
        let Farewell {
            listed, deleted, ..
        } = self.farewell;
        let seen = self.image.is_some() && !self.blind && !self.suspect;
        let fresh = listed >= since && listed >= deleted && self.writes == 0;
        let why = if self.blind {
            Some("the table may not be read, so that nothing can be seen gone".to_owned())
        } else if self.chosen.is_none() {
            let finding = self.group_finding.as_ref();
            finding.map(|finding| finding.message.clone())
        } else {
            None
        };
        let withdrawn = Withdrawn {
            proven: seen && fresh && left.is_empty(),
            left,
            why,
        };
        self.farewell.done = withdrawn.proven;
        if withdrawn.proven {
            tracing::info!(lane = "tcp", "every row of ours is gone");
        }
        Some(withdrawn)
    }

    /// Rows of ours, as far as anything tells.
    fn standing(&self) -> impl Iterator<Item = &TcpRow> {
        let seen = self.image.iter().flatten();
        let seen = seen.filter(|(row, stamp)| self.is_ours(row, stamp.as_deref()));
        let journal = self.journal.confirmed.keys().chain(&self.journal.inherited);
        let to_go = self.plan.remove.iter().map(Owned::get);
        seen.map(|(row, _)| row).chain(journal).chain(to_go)
    }
}
