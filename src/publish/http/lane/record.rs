//! The lane and its journal: no TLS backend is announced before it is on record, none leaves the record before
//! its withdrawal is proven.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::info;

use super::HttpLane;
use crate::desired::{Code, Desired, Finding};
use crate::publish::http::tls_keys::{Announceable, Held, TlsKeys};
use crate::route::Uri;
use crate::status::{RouteReport, RouteState};

// === impl HttpLane ===

impl HttpLane {
    /// Takes the newest table.
    pub(in crate::publish::http) async fn apply(&mut self, desired: &Arc<Desired>) {
        self.desired = Some(desired.clone());
        if let Some(journal) = &mut self.journal {
            let wanted = TlsKeys::wanted(desired);
            journal.record(&wanted, self.clock).await;
        }
        self.announce_recorded();
    }

    /// Hands the newest table to the schedule, as far as it is on record.
    fn announce_recorded(&mut self) {
        let Some(desired) = &self.desired else {
            return;
        };
        let now = self.clock.now();
        let announceable = match &self.journal {
            Some(journal) => Announceable::of(desired, journal.recorded()),
            None => Announceable::all(desired),
        };
        let changes = self.schedule.apply(&announceable.table, now);
        super::tell_changes(&changes, &announceable.table);
        self.held = announceable.held;
        if let Some(journal) = &mut self.journal {
            // Nothing is left after the first table.
            let left = journal.take_left();
            if !left.is_empty() {
                let adopted = self.schedule.adopt(&left, now);
                for (uri, addrs) in adopted.by_uri() {
                    let backends = addrs.len();
                    info!(route = %uri, backends, "tls route of an earlier run withdrawn");
                }
            }
        }
        self.judge_load();
    }

    /// Keeps the journal in step with the schedule.
    pub(super) fn record(&mut self) {
        let (Some(journal), Some(desired)) = (&self.journal, &self.desired) else {
            return;
        };
        let revision = Some(self.schedule.tls_revision());
        if self.needed_at != revision {
            self.needed = TlsKeys::wanted(desired);
            self.needed.extend(&self.schedule.tls_keys());
            self.needed_at = revision;
        }
        let recorded = journal.recorded();
        let of_held = |(uri, held): (&Uri, &Held)| {
            let mut backends = held.backends.iter();
            backends.any(|addr| recorded.contains(uri, *addr))
        };
        if self.held.iter().any(of_held) {
            self.announce_recorded();
        }
        // An earlier announcement may still be on its way as long as nothing later is proven.
        let proven = self.epoch.is_some() && self.schedule.is_settled() && self.proof.is_complete();
        let now = self.clock.now();
        if let Some(journal) = &mut self.journal {
            journal.grow(&self.needed, now);
            if proven {
                journal.shrink(&self.needed, now);
            }
        }
    }

    /// The routes of which nothing is announced, as people see them.
    pub(super) fn held_reports(&self) -> BTreeMap<String, RouteReport> {
        let held = self.held.iter();
        held.filter(|(uri, held)| held.of == held.backends.len() && !self.schedule.knows(uri))
            .map(|(uri, held)| {
                let name = uri.to_string();
                let before = self.held_told.get(&name);
                let report = RouteReport {
                    service: held.service.clone(),
                    state: RouteState::Held,
                    backends: held.backends.iter().map(ToString::to_string).collect(),
                    since: before.map_or(self.clock.now(), |before| before.since),
                };
                (name, report)
            })
            .collect()
    }

    pub(super) fn held_findings(&self) -> impl Iterator<Item = Finding> {
        let error = self.journal.as_ref().and_then(|journal| journal.error());
        let why = error.unwrap_or("the write has not ended yet");
        self.held.iter().map(move |(uri, held)| {
            let (missing, of) = (held.backends.len(), held.of);
            let text = format!(
                "{missing} of {of} TLS backends of `{uri}` are not announced, as their withdrawal could not survive a restart: {why}"
            );
            Finding::on_service(Code::StateUnwritable, &held.service, text)
                .hint("an operator can make `state.dir` a folder that can be written")
        })
    }

    /// What the journal holds, or why it cannot be written; nothing where it was never needed.
    pub(super) fn journal_fact(&self) -> Option<String> {
        let journal = self.journal.as_ref()?;
        match (journal.error(), journal.recorded().len()) {
            (Some(error), _) => Some(format!("degraded: {error}")),
            (None, 0) => None,
            (None, keys) => Some(format!("{keys} tls keys on record")),
        }
    }
}
