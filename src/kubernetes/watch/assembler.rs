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
use super::identity::{Identity, Learnt, identify, identify_again, patience};
use super::source::Change;
use super::view::{Absence, SourceId, View, right_missing};
use crate::Uptime;
use crate::desired::{Code, Finding, Subject};
use crate::kubernetes::api::Api;
use crate::kubernetes::snapshot::Snapshot;
use crate::lifecycle::Clock;
use crate::news;
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
    /// Sources whose list is refused, and since when without a break.
    refused: BTreeMap<SourceId, Uptime>,
    identity: Option<Identity>,
    identifying: Option<BoxFuture<'static, Identity>>,
    /// Something began anew: nothing is shown before it is known who answers.
    again_due: bool,
    again: Option<BoxFuture<'static, Option<Identity>>>,
    /// Since when nothing is shown for that reason.
    withheld_since: Option<Instant>,
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
    /// Since when lists show no Node, and whether the last ones are kept nevertheless.
    nodeless_since: Option<Instant>,
    nodes_kept: bool,
    findings_changed: bool,
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
            refused: BTreeMap::new(),
            identity: None,
            again_due: false,
            again: None,
            withheld_since: None,
            confirming: None,
            confirm_backoff,
            undecided: BTreeSet::new(),
            undecided_again: Instant::now(),
            relist_due: BTreeSet::new(),
            relist_at: Instant::now(),
            get_forbidden: BTreeMap::new(),
            nodeless_since: None,
            nodes_kept: false,
            findings_changed: false,
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
                again = ended(&mut self.again) => self.recognise(again),
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
            self.ask_again();
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
                self.again_due = true;
                self.heard.insert(source, now);
            }
            Change::Agreed(source) => self.view.agreed(source),
            Change::Applied(source, item) => {
                self.view.applied(source, item);
                self.heard.insert(source, now);
            }
            Change::Deleted(source, key) => {
                self.view.left(source, &key);
                self.heard.insert(source, now);
            }
            Change::Opened => self.again_due = true,
            Change::Heard(source) => {
                self.heard.insert(source, now);
            }
            Change::Status(source, status) => {
                if status.is_refused() {
                    self.refused.entry(source).or_insert(now);
                } else {
                    self.refused.remove(&source);
                }
                self.view.set_status(source, status);
            }
        }
    }

    /// Asks who answers, where something began anew. The first answer is on its way, or there is nothing to compare.
    fn ask_again(&mut self) {
        if self.identity.is_none() || self.api.config.cluster_id.is_some() {
            self.again_due = false;
        } else if self.again.is_none() && std::mem::take(&mut self.again_due) {
            self.again = Some(Box::pin(identify_again(Arc::clone(&self.api))));
        }
    }

    fn recognise(&mut self, again: Option<Identity>) {
        let (Some(identity), Some(again)) = (&mut self.identity, again) else {
            return;
        };
        match identity.learn(again) {
            Learnt::Nothing => {}
            Learnt::Rights => self.findings_changed = true,
            Learnt::Another => {
                let cluster = &identity.cluster.0;
                tracing::warn!(cluster, "another cluster answers: all is listed anew");
                self.findings_changed = true;
                self.view.forget();
                self.undecided.clear();
                self.confirming = None;
                for relist in self.relist.values() {
                    relist.notify_one();
                }
            }
        }
    }

    /// Begins a fresh read of whatever left, unless one is under way.
    fn confirm_absences(&mut self) {
        if self.confirming.is_some() {
            return;
        }
        let keeps_nodes = self.keeps_nodes();
        let mut absences = self.view.absences(keeps_nodes);
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
        self.findings_changed |= self.get_forbidden.len() != before;
        let list_only: BTreeSet<&'static str> = self.get_forbidden.keys().copied().collect();
        let api = Arc::clone(&self.api);
        let undecided = self.undecided.clone();
        let reading = async move { confirm(&api, absences, &list_only, &undecided).await };
        self.confirming = Some(Box::pin(reading));
    }

    /// Whether the last Nodes are kept though the list shows none. A cluster that works has Nodes, so an apiserver
    /// that shows none has lost its data, and would confirm it; and those of which a watch then tells, one after the
    /// other, must not stand for all: only another list does.
    fn keeps_nodes(&mut self) -> bool {
        let since = self.nodeless_since.unwrap_or_else(Instant::now);
        self.nodeless_since = self.view.is_nodeless().then_some(since);
        let after = self.api.timing.nodeless_after;
        let keeps = self
            .nodeless_since
            .is_some_and(|since| since.elapsed() < after);
        self.findings_changed |= keeps != std::mem::replace(&mut self.nodes_kept, keeps);
        keeps
    }

    fn judge(&mut self, confirmation: Confirmation) {
        for gone in &confirmation.gone {
            self.view.confirmed(gone);
        }
        for absence in &confirmation.there {
            self.view.refuted(absence);
            // The watch says gone and the apiserver says there: the watch has to prove itself.
            self.relist_due.insert(absence.source);
        }
        for resource in confirmation.get_forbidden {
            self.findings_changed = true;
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
        for source in SourceId::ALL {
            let stale_after = self.stale_after(source);
            let long_ago = |since: &Uptime| now.saturating_sub(*since) >= stale_after;
            let stale = match self.heard.get(&source) {
                Some(heard) => long_ago(heard),
                None => self.view.failing(source) && now >= self.api.timing.list_timeout,
            };
            self.view.set_stale(source, stale);
            // An apiserver that starts may refuse for a moment.
            if self.refused.get(&source).is_some_and(long_ago) {
                self.view.refused_for_long(source);
            }
        }
    }

    /// A source that is polled is heard of once in an interval; two of them are one poll that failed.
    fn stale_after(&self, source: SourceId) -> Duration {
        let stale_after = self.api.timing.stale_after;
        match self.view.status(source) {
            Some(status) if status.polling => stale_after.max(self.api.config.poll_interval * 2),
            _ => stale_after,
        }
    }

    /// The required sources are back from an outage; the others may still sleep after their last failure.
    fn wake_optional_sources(&self) {
        for (source, relist) in &self.relist {
            let status = self.view.status(*source);
            let failed = status.is_some_and(|status| status.error.is_some());
            if failed && !self.view.synced(*source) {
                relist.notify_one();
            }
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
            let until = since + timing.optional_wait;
            if until > now {
                wake = wake.min(until);
            }
        }
        wake
    }

    /// The apiserver is back: whoever sleeps after a failure asks at once.
    fn completed(&mut self) -> Instant {
        self.wake_optional_sources();
        if self.identity.is_none() {
            self.identifying = Some(Box::pin(identify(Arc::clone(&self.api))));
        }
        *self.complete_since.insert(Instant::now())
    }

    fn publish(&mut self) {
        if !self.view.complete() {
            return;
        }
        let since = match self.complete_since {
            Some(since) => since,
            None => self.completed(),
        };
        let Some(identity) = &self.identity else {
            return;
        };
        if self.again.is_none() && !self.again_due {
            self.withheld_since = None;
        } else if self
            .withheld_since
            .get_or_insert_with(Instant::now)
            .elapsed()
            < patience(&self.api.timing)
        {
            // Watches that begin again and again must not keep the view back for ever.
            return;
        }
        let first = self.snapshots.borrow().is_none();
        if first && !self.view.settled() && since.elapsed() < self.api.timing.optional_wait {
            return;
        }
        let changed = self.view.take_changed() | std::mem::take(&mut self.findings_changed);
        if !changed && !first {
            return;
        }
        let findings = self.findings(identity);
        let mut snapshot = self.view.snapshot(identity.cluster.clone(), &findings);
        snapshot
            .evidence
            .kube_system
            .clone_from(&identity.kube_system);
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
        if self.nodes_kept {
            let text = "the apiserver lists no Node; traffic still goes to the last known";
            let finding = Finding::new(Code::NodesNotReadyHeld, Subject::Cluster, text);
            findings.push(
                finding.hint("look at the control plane first: most likely it lost its data"),
            );
        }
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

    /// What no snapshot tells, because none can be made now.
    fn unshown_findings(&self) -> Vec<Finding> {
        if self.snapshots.borrow().is_none() {
            return self.view.findings();
        }
        let (Some(identity), false) = (&self.identity, self.view.complete()) else {
            return Vec::new();
        };
        let mut findings = self.view.findings();
        findings.push(identity.not_listed_yet());
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
            findings: self.unshown_findings(),
        };
        news::tell(&self.reports, report);
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
