//! The lane and the process's state: what it goes on with after a start, and what it notes for the next one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::HttpLane;
use crate::Uptime;
use crate::desired::Desired;
use crate::publish::http::Inheritance;
use crate::publish::http::schedule::Schedule;
use crate::state::{HttpEntry, Withdrawal};

/// Withdrawals come and go in bulk, and each note copies them all.
const NOTE_APART: Duration = Duration::from_millis(250);

/// What the lane has noted.
#[derive(Default)]
pub(super) struct Kept {
    ledger: Option<watch::Sender<HttpEntry>>,
    /// The table is the last process's: what it lacks may be wanted all the same.
    provisional: bool,
    /// The table to be noted next.
    applied: Option<Arc<Desired>>,
    /// The schedule's withdrawals as they were noted last.
    revision: u64,
    note_at: Uptime,
}

// === impl Kept ===

impl Kept {
    /// Kubernetes has answered, here or in the process before: this is what is wanted.
    pub(super) fn took(&mut self, desired: &Arc<Desired>) {
        self.provisional = false;
        self.note(desired);
    }

    /// This is what is announced, whoever wanted it.
    pub(super) fn note(&mut self, desired: &Arc<Desired>) {
        self.applied = Some(desired.clone());
    }

    pub(super) fn is_provisional(&self) -> bool {
        self.provisional
    }

    /// When there is something to note.
    pub(super) fn deadline(&self, schedule: &Schedule) -> Option<Uptime> {
        let differs = self.revision != schedule.withdrawal_revision() || self.applied.is_some();
        (differs && self.ledger.is_some()).then_some(self.note_at)
    }
}

// === impl HttpLane ===

impl HttpLane {
    /// Goes on where the last process ended.
    pub(in crate::publish::http) async fn inherit(&mut self, inheritance: Inheritance) {
        let Inheritance {
            warm,
            ledger,
            roles,
            instances,
        } = inheritance;
        self.kept.ledger = ledger;
        self.begin_as(roles, instances);
        let Some(table) = warm.table else {
            return;
        };
        self.kept.provisional = true;
        self.take(&table).await;
        let now = self.clock.now();
        let withdrawals = warm.withdrawals.iter();
        let keys = withdrawals.map(|key| (&key.uri, key.addr, key.tls));
        self.schedule.resume(keys, now);
        self.kept.revision = self.schedule.withdrawal_revision();
    }

    /// Notes what the next process needs: the table and its withdrawals together, since a route that left the one
    /// must be found among the other.
    pub(super) fn keep(&mut self) {
        let now = self.clock.now();
        let due = self.kept.deadline(&self.schedule);
        let Some(ledger) = self
            .kept
            .ledger
            .as_ref()
            .filter(|_| due.is_some_and(|at| at <= now))
        else {
            return;
        };
        let applied = self.kept.applied.take();
        let withdrawals = self.schedule.withdrawing();
        let withdrawals = withdrawals.map(|(uri, addr, tls)| Withdrawal {
            uri: uri.clone(),
            addr,
            tls,
        });
        let withdrawals = withdrawals.collect();
        ledger.send_modify(|entry| {
            entry.applied = applied.or_else(|| entry.applied.take());
            entry.withdrawals = withdrawals;
        });
        self.kept.revision = self.schedule.withdrawal_revision();
        self.kept.note_at = now + NOTE_APART;
    }
}
