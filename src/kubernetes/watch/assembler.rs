//! Puts what the sources deliver together and tells the world when it amounts to something new.
//!
//! One task owns the [`View`]. It acts on the first change at once and takes whatever else has queued up
//! together with it; absences go through a fresh read first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::absence::{Confirmation, confirm};
use super::identity::{Identity, by_address, identify};
use super::source::Change;
use super::view::{Absence, SourceId, View, right_missing};
use crate::Uptime;
use crate::desired::Finding;
use crate::kubernetes::api::Api;
use crate::kubernetes::snapshot::Snapshot;
use crate::lifecycle::Clock;
use crate::retry::Backoff;
use crate::status::{SourceReport, SourceState};

/// Changes taken together at most; the rest is taken right after.
const BATCH_MAX: usize = 1024;

/// Never looks again sooner for time's sake alone, so that a wait in the past cannot spin.
const WAKE_MIN: Duration = Duration::from_millis(10);

/// The task that makes snapshots.
pub(super) struct Assembler {
    pub(super) api: Arc<Api>,
    pub(super) clock: Clock,
    pub(super) relist: BTreeMap<SourceId, Arc<Notify>>,
    pub(super) snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    pub(super) reports: watch::Sender<SourceReport>,
    view: View,
    heard: BTreeMap<SourceId, Uptime>,
    identity: Option<Identity>,
    identifying: Option<BoxFuture<'static, Identity>>,
    confirming: Option<BoxFuture<'static, Confirmation>>,
    confirm_backoff: Backoff,
    /// What a read could not decide, and when it is read again; what leaves meanwhile does not wait for it.
    undecided: BTreeSet<Absence>,
    undecided_again: Instant,
    /// Sources that have to list anew, and when: two apiservers may disagree for long.
    relist_due: BTreeSet<SourceId>,
    relist_at: Instant,
    /// Resources whose objects may not be read one by one, and since when that is known.
    get_forbidden: BTreeMap<&'static str, Instant>,
    rights_changed: bool,
    complete_since: Option<Instant>,
}

// === impl Assembler ===

impl Assembler {
    pub(super) fn new(
        api: Arc<Api>,
        clock: Clock,
        relist: BTreeMap<SourceId, Arc<Notify>>,
        snapshots: watch::Sender<Option<Arc<Snapshot>>>,
        reports: watch::Sender<SourceReport>,
    ) -> Self {
        let confirm_backoff = Backoff::new(api.timing.backoff_first, api.timing.backoff_max);
        Self {
            identifying: Some(Box::pin(identify(Arc::clone(&api)))),
            api,
            clock,
            relist,
            snapshots,
            reports,
            view: View::default(),
            heard: BTreeMap::new(),
            identity: None,
            confirming: None,
            confirm_backoff,
            undecided: BTreeSet::new(),
            undecided_again: Instant::now(),
            relist_due: BTreeSet::new(),
            relist_at: Instant::now(),
            get_forbidden: BTreeMap::new(),
            rights_changed: false,
            complete_since: None,
        }
    }

    /// Runs until every source has ended.
    pub(super) async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        let mut batch = Vec::new();
        loop {
            let wake = self.wake();
            tokio::select! {
                // What completes something first: a flood of changes must not hold a removal back.
                biased;
                confirmation = ended(&mut self.confirming) => self.judge(confirmation),
                identity = ended(&mut self.identifying) => self.identity = Some(identity),
                taken = changes.recv_many(&mut batch, BATCH_MAX) => {
                    if taken == 0 {
                        return;
                    }
                    for change in batch.drain(..) {
                        self.take(change);
                    }
                }
                () = sleep_until(wake) => {}
            }
            self.look_for_stale();
            self.ask_for_lists();
            self.confirm_absences();
            self.publish();
            self.report();
        }
    }

    fn take(&mut self, change: Change) {
        let now = self.clock.now();
        match change {
            Change::Listed(source, items) => {
                self.view.listed(source, items);
                self.heard.insert(source, now);
            }
            Change::Applied(source, item) => {
                self.view.applied(source, item);
                self.heard.insert(source, now);
            }
            Change::Deleted(source, key) => {
                self.view.left(source, &key);
                self.heard.insert(source, now);
            }
            Change::Heard(source) => {
                self.heard.insert(source, now);
            }
            Change::Status(source, status) => self.view.set_status(source, status),
        }
    }

    /// Begins a fresh read of whatever left, unless one is under way.
    fn confirm_absences(&mut self) {
        if self.confirming.is_some() {
            return;
        }
        let mut absences = self.view.absences();
        self.undecided.retain(|it| absences.contains(it));
        if Instant::now() < self.undecided_again {
            absences.retain(|it| !self.undecided.contains(it));
        }
        if absences.is_empty() {
            return;
        }
        let retry = self.api.timing.watch_retry;
        // A right that was granted meanwhile shows in the next read.
        let before = self.get_forbidden.len();
        self.get_forbidden
            .retain(|_, since| since.elapsed() < retry);
        self.rights_changed |= self.get_forbidden.len() != before;
        let list_only: BTreeSet<&'static str> = self.get_forbidden.keys().copied().collect();
        let api = Arc::clone(&self.api);
        let undecided = self.undecided.clone();
        let reading = async move { confirm(&api, absences, &list_only, &undecided).await };
        self.confirming = Some(Box::pin(reading));
    }

    fn judge(&mut self, confirmation: Confirmation) {
        for absence in &confirmation.gone {
            self.view.confirmed(absence);
        }
        for absence in &confirmation.there {
            self.view.refuted(absence);
            // The watch says gone and the apiserver says there: the watch has to prove itself.
            self.relist_due.insert(absence.source);
        }
        for resource in confirmation.get_forbidden {
            self.rights_changed = true;
            self.get_forbidden.insert(resource, Instant::now());
        }
        if confirmation.error.is_none() && confirmation.there.is_empty() {
            if self.undecided.is_empty() {
                self.confirm_backoff.succeed();
            }
            return;
        }
        let again = Instant::now() + self.confirm_backoff.fail();
        if !confirmation.there.is_empty() {
            self.relist_at = again;
        }
        if let Some(error) = confirmation.error {
            tracing::debug!(error, "a removal cannot be confirmed yet");
            self.undecided_again = again;
            self.undecided.extend(confirmation.undecided);
        }
    }

    fn ask_for_lists(&mut self) {
        if Instant::now() < self.relist_at {
            return;
        }
        for source in std::mem::take(&mut self.relist_due) {
            if let Some(relist) = self.relist.get(&source) {
                relist.notify_one();
            }
        }
    }

    fn look_for_stale(&mut self) {
        let now = self.clock.now();
        for (source, heard) in &self.heard {
            let stale = now.saturating_sub(*heard) >= self.api.timing.stale_after;
            self.view.set_stale(*source, stale);
        }
    }

    /// When to look again although nothing happened.
    fn wake(&self) -> Instant {
        let now = Instant::now();
        let timing = &self.api.timing;
        let mut wake = now + timing.stale_after / 4;
        if self.confirming.is_none() && !self.undecided.is_empty() {
            wake = wake.min(self.undecided_again.max(now + WAKE_MIN));
        }
        if !self.relist_due.is_empty() {
            wake = wake.min(self.relist_at.max(now + WAKE_MIN));
        }
        if let (Some(since), None) = (self.complete_since, &*self.snapshots.borrow()) {
            let waits = [timing.optional_wait, timing.identity_wait];
            let ahead = waits.into_iter().map(|wait| since + wait);
            wake = ahead.filter(|at| *at > now).fold(wake, Instant::min);
        }
        wake
    }

    fn publish(&mut self) {
        if !self.view.complete() {
            return;
        }
        let since = *self.complete_since.get_or_insert_with(Instant::now);
        let Some(identity) = &self.identity else {
            if since.elapsed() >= self.api.timing.identity_wait {
                // From here on it keeps this name: a name that changes would disown every row.
                self.identifying = Some(Box::pin(name_by_address(Arc::clone(&self.api))));
            }
            return;
        };
        let first = self.snapshots.borrow().is_none();
        if first && !self.view.settled() && since.elapsed() < self.api.timing.optional_wait {
            return;
        }
        let changed = self.view.take_changed() | std::mem::take(&mut self.rights_changed);
        if !changed && !first {
            return;
        }
        let findings = self.findings(identity);
        let snapshot = self.view.snapshot(identity.cluster.clone(), &findings);
        self.snapshots.send_if_modified(|current| {
            let new = current.as_deref() != Some(&snapshot);
            if new {
                *current = Some(Arc::new(snapshot));
            }
            new
        });
    }

    /// What neither a source nor an object has to say.
    fn findings(&self, identity: &Identity) -> Vec<Finding> {
        let mut findings: Vec<Finding> = identity.finding.iter().cloned().collect();
        for source in [SourceId::HttpServices, SourceId::Nodes] {
            let Some(resource) = source.resource() else {
                continue;
            };
            if self.get_forbidden.contains_key(resource.name()) {
                let consequence = "removals are confirmed by lists instead";
                findings.push(right_missing("get", resource, consequence));
            }
        }
        findings
    }

    fn report(&self) {
        let sources = SourceId::ALL.into_iter().map(|source| {
            let status = self.view.status(source);
            let state = SourceState {
                required: source.required(),
                synced: self.view.synced(source),
                last_heard: self.heard.get(&source).copied(),
                mode: match status {
                    Some(status) if status.polling => "poll",
                    _ => "watch",
                },
                error: status.and_then(|status| status.error.clone()),
            };
            (source.name(), state)
        });
        let report = SourceReport {
            sources: sources.collect(),
            cluster: self.identity.as_ref().map(|it| it.cluster.0.clone()),
        };
        self.reports.send_if_modified(|current| {
            let new = *current != report;
            if new {
                *current = report;
            }
            new
        });
    }
}

async fn name_by_address(api: Arc<Api>) -> Identity {
    match by_address(&api).await {
        Ok(identity) => identity,
        // The kubeconfig was readable a moment ago; whoever took it away may bring it back.
        Err(_) => identify(api).await,
    }
}

/// Waits for what is under way and puts it away; for ever if nothing is.
async fn ended<T>(under_way: &mut Option<BoxFuture<'static, T>>) -> T {
    let Some(future) = under_way else {
        return std::future::pending().await;
    };
    let result = future.await;
    *under_way = None;
    result
}
