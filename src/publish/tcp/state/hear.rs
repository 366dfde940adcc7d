//! What events teach about the table, and what they do not.
//!
//! An event edits the image of the table and nothing else; what follows from that is the plan's to say, with its
//! own proof of ownership. Three things keep it from saying too much:
//!
//! - Every write of ours comes back as an event, a few milliseconds later (measured), before its answer or after
//!   it. While a row is being written and for a moment after, the last event on it waits; what then agrees with
//!   the image was an echo and costs nothing.
//! - A `Delete` on a stranger's row may mean one of several under one identity (rows without our "no TLS" stand
//!   many times on some versions), so on a port of ours it calls for a list and edits nothing.
//! - Whoever deletes a row of ours again and again is not fought for ever.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::super::events::{Event, Heard, Loss};
use super::State;
use crate::Uptime;
use crate::causes::chain;
use crate::desired::{Code, Finding, Subject};
use crate::plan::{Observed, TcpRow};
use crate::route::Lane;

/// How long after a write its echo may take. Measured at 5 ms; much more would delay the mending of a loss that
/// follows a refresh.
const ECHO_WAIT: Duration = Duration::from_millis(500);
/// Events that arrive within this time are planned on together: comparing 27 000 rows takes about as long.
const TOGETHER: Duration = Duration::from_millis(20);
/// Rows that were heard of while a list was made; more call for another list.
const DURING_MAX: usize = 4096;
/// A row that is lost more often than this within [`ROUNDS_WINDOW`] is somebody's intention.
const ROUNDS_MAX: usize = 5;
const ROUNDS_WINDOW: Duration = Duration::from_mins(10);

/// What was heard and is not done with.
#[derive(Debug, Default)]
pub(in super::super) struct Ear {
    /// Since when the stream stands.
    open: Option<Uptime>,
    /// Since when it has not given a single event, and what was last wrong.
    failing: Option<(Uptime, String)>,
    /// When something may last have happened that only a list can tell.
    unsure: Option<Uptime>,
    /// Rows written lately, and until when events on them may be echoes.
    settling: BTreeMap<TcpRow, Uptime>,
    /// The last event on rows that are being written, or were lately.
    waiting: BTreeMap<TcpRow, Event>,
    /// The last event on each row since the list under way was asked for.
    during: BTreeMap<TcpRow, Event>,
    /// When rows of ours were deleted by somebody, each time with its life not over.
    rounds: BTreeMap<TcpRow, Vec<Uptime>>,
}

// === impl State ===

impl State {
    /// Whether there is a table that events could refine. Without the right to read it the stream is refused too.
    pub(in super::super) fn listens(&mut self) -> bool {
        let listens = self.image.is_some() && !self.blind;
        if !listens {
            self.ear.open = None;
            self.ear.failing = None;
        }
        listens
    }

    /// Takes in what was heard; when a turn is called for, if one is.
    pub(in super::super) fn hear(&mut self, heard: Heard, now: Uptime) -> Option<Uptime> {
        match heard {
            Heard::Open => {
                self.counters.streams.fetch_add(1, Relaxed);
                self.ear.open = Some(now);
                // What happened since the last list is told to nobody.
                if !self.unreadable() {
                    self.list_due = now;
                }
                Some(now)
            }
            Heard::Lost(loss) => {
                self.lost_stream(&loss, now);
                Some(now)
            }
            Heard::Events(events) => {
                self.counters.events.fetch_add(events.len() as u64, Relaxed);
                let told = self.ear.failing.take().map(|_| now);
                let turns = events
                    .into_iter()
                    .filter_map(|event| self.event(event, now));
                turns.min().into_iter().chain(told).min()
            }
        }
    }

    fn lost_stream(&mut self, loss: &Loss, now: Uptime) {
        let stood = self.ear.open.take();
        // Where no row lives nothing is told either.
        let quiet = self.image.as_ref().is_some_and(Observed::is_empty);
        let text = chain(loss);
        if matches!(loss, Loss::Silent(_)) && quiet {
            tracing::debug!(lane = "tcp", "no events, and no rows to tell of");
            return;
        }
        if stood.is_some_and(|since| since + self.pace.events_retry <= now) {
            self.ear.failing = None;
        }
        match &mut self.ear.failing {
            Some((_, old)) if *old == text => {
                tracing::debug!(lane = "tcp", error = text, "events lost");
            }
            Some((_, old)) => {
                tracing::info!(lane = "tcp", error = text, "events lost");
                *old = text;
            }
            failing @ None => {
                tracing::info!(lane = "tcp", error = text, "events lost");
                *failing = Some((now, text));
            }
        }
    }

    fn event(&mut self, event: Event, now: Uptime) -> Option<Uptime> {
        let (Event::Upsert(row, _) | Event::Delete(row)) = &event else {
            return self.ask(now);
        };
        if self.busy.contains(row) {
            // Its answer calls for a turn.
            self.ear.waiting.insert(row.clone(), event);
            return None;
        }
        match self.ear.settling.get(row).copied() {
            Some(until) if until > now => {
                if self.agrees(&event) {
                    self.ear.waiting.remove(row);
                    return None;
                }
                self.ear.waiting.insert(row.clone(), event);
                Some(until)
            }
            _ => self.apply(event, now),
        }
    }

    /// Whether the image says the same already.
    fn agrees(&self, event: &Event) -> bool {
        let image = self.image.as_ref();
        image.is_none_or(|image| match event {
            Event::Upsert(row, _) => image.contains_key(row),
            Event::Delete(row) => !image.contains_key(row),
            Event::Unreadable => true,
        })
    }

    /// Edits the image.
    fn apply(&mut self, event: Event, now: Uptime) -> Option<Uptime> {
        self.note_for_the_list(&event, now);
        if self.agrees(&event) {
            return None;
        }
        match event {
            Event::Upsert(row, stamp) => self.appeared(row, stamp, now),
            Event::Delete(row) => self.vanished_row(&row, now),
            Event::Unreadable => None,
        }
    }

    fn appeared(&mut self, row: TcpRow, stamp: Option<String>, now: Uptime) -> Option<Uptime> {
        let ours = self.is_ours(&row, stamp.as_deref());
        let matters = self.calmed.table.contains_key(&row.port);
        // Older versions keep no id; a list says of every row at once whose it may be.
        if matters && stamp.is_none() {
            return self.ask(now);
        }
        self.admission_stale |= ours;
        if let Some(image) = &mut self.image {
            image.insert(row, stamp);
        }
        (ours || matters).then_some(now + TOGETHER)
    }

    fn vanished_row(&mut self, row: &TcpRow, now: Uptime) -> Option<Uptime> {
        let stamp = self.image.as_ref()?.get(row)?.clone();
        let ours = self.is_ours(row, stamp.as_deref());
        if !ours && self.calmed.table.contains_key(&row.port) {
            return self.ask(now);
        }
        if let Some(image) = &mut self.image {
            image.remove(row);
        }
        if !ours {
            return None;
        }
        self.touched.remove(row);
        self.admission_stale = true;
        if self.wants(row) {
            tracing::warn!(port = %row.port, backend = row.backend(), "tcp row deleted by somebody");
            self.drifted(row, now);
        } else {
            self.journal.confirmed.remove(row);
        }
        Some(now + TOGETHER)
    }

    /// Counts a row that this process had confirmed and that is gone. One whose life was over was lost by our
    /// own lateness, which is nobody's intention.
    pub(super) fn drifted(&mut self, row: &TcpRow, now: Uptime) {
        // What the instance that leads has removed was not lost.
        if !self.role.is_active() {
            return;
        }
        let Some(confirmed) = self.journal.confirmed.get(row) else {
            return;
        };
        self.counters.drift.fetch_add(1, Relaxed);
        if *confirmed + self.ttl <= now {
            return;
        }
        let rounds = self.ear.rounds.entry(row.clone()).or_default();
        rounds.retain(|at| *at + ROUNDS_WINDOW > now);
        rounds.push(now);
        if rounds.len() > ROUNDS_MAX {
            let until = rounds.remove(0) + ROUNDS_WINDOW;
            self.journal.contested.insert(row.clone(), until);
        }
    }

    fn wants(&self, row: &TcpRow) -> bool {
        let wanted = self.admission.wanted.get(&row.port);
        wanted.is_some_and(|port| port.rows.contains(row))
    }

    pub(super) fn is_ours(&self, row: &TcpRow, stamp: Option<&str>) -> bool {
        match stamp {
            Some(stamp) => self
                .instance
                .as_ref()
                .is_some_and(|us| us.as_str() == stamp),
            None => self.journal.confirmed.contains_key(row),
        }
    }

    /// Asks for a list soon; one that is under way may have missed it.
    fn ask(&mut self, now: Uptime) -> Option<Uptime> {
        self.ear.unsure = Some(now);
        if self.unreadable() {
            return None;
        }
        let soon = now.max(self.listed_at + self.pace.legacy_look);
        self.list_due = self.list_due.min(soon);
        Some(self.list_due)
    }

    // === with lists ===

    fn note_for_the_list(&mut self, event: &Event, now: Uptime) {
        if !self.list_asked {
            return;
        }
        let full = self.ear.during.len() >= DURING_MAX;
        let (Event::Upsert(row, _) | Event::Delete(row)) = event else {
            return;
        };
        match self.ear.during.entry(row.clone()) {
            Entry::Occupied(mut entry) => {
                entry.insert(event.clone());
            }
            Entry::Vacant(entry) if !full => {
                entry.insert(event.clone());
            }
            Entry::Vacant(_) => self.ear.unsure = Some(now),
        }
    }

    /// A list is asked for now.
    pub(super) fn list_begins(&mut self, now: Uptime) {
        self.ear.during.clear();
        let recent = |at: &Uptime| *at + ROUNDS_WINDOW > now;
        self.ear
            .rounds
            .retain(|_, rounds| rounds.iter().any(recent));
    }

    /// Adds to a list what was heard while it was made: it may be from before.
    pub(super) fn add_heard(&mut self, rows: &mut Observed, now: Uptime) {
        for event in std::mem::take(&mut self.ear.during).into_values() {
            match event {
                Event::Upsert(row, stamp) if !rows.contains_key(&row) => {
                    if stamp.is_none() && self.calmed.table.contains_key(&row.port) {
                        self.ear.unsure = Some(now);
                    } else {
                        rows.insert(row, stamp);
                    }
                }
                Event::Delete(row) => {
                    let stamp = rows.get(&row).cloned().flatten();
                    let ours = self.is_ours(&row, stamp.as_deref());
                    if ours || !self.calmed.table.contains_key(&row.port) {
                        rows.remove(&row);
                    } else if rows.contains_key(&row) {
                        self.ear.unsure = Some(now);
                    }
                }
                Event::Upsert(..) | Event::Unreadable => {}
            }
        }
    }

    /// When to list again after a list that started then.
    pub(super) fn list_again(&mut self, started: Uptime, now: Uptime) -> Option<Uptime> {
        let again = self.ear.unsure.take().filter(|at| *at >= started);
        let again = again.map(|_| now + self.pace.legacy_look);
        let unseen = self.ear.open.filter(|open| *open > started);
        unseen.map(|_| now).or(again)
    }

    // === with our own writes ===

    /// Rows were written, or not; their echoes may still be on their way.
    pub(super) fn settles(&mut self, rows: &[TcpRow], now: Uptime) {
        if self.ear.open.is_none() {
            return;
        }
        for row in rows {
            self.ear.settling.insert(row.clone(), now + ECHO_WAIT);
        }
    }

    /// Forgets echoes of what is known from the answer.
    pub(super) fn forget_echoes(&mut self) {
        let waiting = std::mem::take(&mut self.ear.waiting);
        let open = |(row, event): &(TcpRow, Event)| self.busy.contains(row) || !self.agrees(event);
        self.ear.waiting = waiting.into_iter().filter(open).collect();
    }

    /// Believes what was no echo, and tells when to look again.
    pub(super) fn settle(&mut self, now: Uptime, wake: &mut Uptime) {
        self.ear.settling.retain(|_, until| *until > now);
        self.journal.contested.retain(|_, until| *until > now);
        let mut settled = Vec::new();
        for row in self.ear.waiting.keys() {
            match self.ear.settling.get(row) {
                _ if self.busy.contains(row) => {}
                Some(until) => *wake = (*wake).min(*until),
                None => settled.push(row.clone()),
            }
        }
        for row in settled {
            if let Some(event) = self.ear.waiting.remove(&row) {
                self.apply(event, now);
            }
        }
        self.judge_stream(now, wake);
    }

    /// A stream that stands for long is well, even if there is nothing to tell.
    fn judge_stream(&mut self, now: Uptime, wake: &mut Uptime) {
        let Some((since, _)) = self.ear.failing else {
            return;
        };
        let told = since + self.pace.events_patience;
        let well = self.ear.open.map(|open| open + self.pace.events_retry);
        if well.is_some_and(|well| well <= now) {
            self.ear.failing = None;
            return;
        }
        let changes = [Some(told), well].into_iter().flatten();
        let next = changes.filter(|moment| *moment > now).min();
        *wake = next.map_or(*wake, |next| (*wake).min(next));
    }

    // === in the report ===

    /// What it means that the stream has been away for long.
    pub(in super::super) fn events_finding(&self, now: Uptime) -> Option<Finding> {
        let (since, error) = self.ear.failing.as_ref()?;
        if *since + self.pace.events_patience > now {
            return None;
        }
        let every = self.pace.list_every.as_secs();
        let message = format!(
            "the routing API's events cannot be had: {error}; what others do to TCP rows is seen every {every} s only"
        );
        let finding = Finding::new(Code::EventsUnavailable, Subject::Lane(Lane::Tcp), message);
        Some(finding.hint("let proxies pass `/routing/v1/tcp_routes/events` unbuffered"))
    }

    /// In one word and a reason.
    pub(in super::super) fn events_fact(&self) -> String {
        match (&self.ear.failing, self.ear.open) {
            (Some((_, error)), _) => format!("degraded: {error}"),
            (None, Some(_)) => "followed".to_owned(),
            (None, None) => "not followed".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
