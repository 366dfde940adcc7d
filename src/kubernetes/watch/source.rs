//! One watched resource: list, watch, and list again whenever the watch cannot be trusted.
//!
//! ```text
//!         ┌──────────── refused, broken: wait, growing ───────────┐
//!         ▼                                                       │
//!   discover ──▶ list ──complete──▶ watch ──ended──▶ watch on from the last version
//!                 ▲  ▲                │ 410 · five failures · silence · a re-list that found more
//!                 │  └────────────────┘
//!                 └── poll ◀── `watch` is forbidden
//! ```
//!
//! The waits grow across lists: a list that succeeds does not excuse a watch that fails; a watch that lives
//! excuses everything before it. kube's own watcher
//! (kube-runtime 5.0.0) resets its backoff with each list, asks again without any wait when a watch ends at
//! once, and never lists anew when the watch request itself is answered 410; hence this loop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::WatchCounters;
use super::view::{SourceId, Status};
use crate::causes::chain;
use crate::kubernetes::api::{Api, ApiError, Listed, Resource};
use crate::kubernetes::wire::{Event, Item, Kind, ObjectKey};
use crate::retry::Backoff;

/// So many failed watches in a row, and a list is asked for instead: it may work, or tell more.
const FAILURES_MAX: u32 = 5;
/// A re-list or poll comes up to a fifth sooner, so that sources and instances spread.
const JITTER: f64 = 0.2;

/// What a source tells.
pub(super) enum Change {
    /// A complete list.
    Listed(SourceId, Vec<Item>),
    /// A complete list that shows just what was delivered before.
    Agreed(SourceId),
    /// An object as it is now.
    Applied(SourceId, Item),
    /// An object left.
    Deleted(SourceId, ObjectKey),
    /// A watch begins: whoever answers it may be another than before.
    Opened,
    /// Nothing changed, but the apiserver spoke.
    Heard(SourceId),
    /// How the source fares.
    Status(SourceId, Status),
}

/// One watched resource.
pub(super) struct Source {
    id: SourceId,
    api: Arc<Api>,
    counters: WatchCounters,
    changes: mpsc::Sender<Change>,
    relist: Arc<Notify>,
    status: Status,
    backoff: Backoff,
    /// The resource version of each object, as last delivered.
    known: BTreeMap<ObjectKey, String>,
    /// Objects delivered since the running re-list began.
    touched: BTreeSet<ObjectKey>,
    /// Where a watch goes on.
    resource_version: String,
    last_heard: Instant,
}

/// Why one watch ended.
enum Ended {
    /// In good order.
    Closed,
    /// At once, and it brought nothing.
    Brief,
    Failed(ApiError),
    Gone,
    Forbidden(ApiError),
    Relist(&'static str),
}

/// Why watching was given up.
enum Unfollowed {
    Relist(&'static str),
    Forbidden,
}

/// The independent re-list, step by step.
enum Rescan {
    Due(Instant),
    Listing(BoxFuture<'static, Result<Listed, ApiError>>),
    /// What differed, with the version we had then.
    Settling(Instant, Vec<(ObjectKey, Option<String>)>),
}

/// What a step of the re-list came to.
enum Rescanned {
    Undecided,
    /// What the watch delivered is what is there.
    Agreed,
    /// It found what the watch should have delivered.
    Missed,
}

enum Step {
    Begin,
    Listed(Result<Listed, ApiError>),
    Settled,
}

// === impl Source ===

impl Source {
    pub(super) fn new(
        id: SourceId,
        api: Arc<Api>,
        counters: WatchCounters,
        changes: mpsc::Sender<Change>,
        relist: Arc<Notify>,
    ) -> Self {
        let backoff = Backoff::new(api.timing.backoff_first, api.timing.backoff_max);
        Self {
            id,
            api,
            counters,
            changes,
            relist,
            status: Status::new(id),
            backoff,
            known: BTreeMap::new(),
            touched: BTreeSet::new(),
            resource_version: String::new(),
            last_heard: Instant::now(),
        }
    }

    /// Runs until nobody listens any more.
    pub(super) async fn run(mut self) {
        self.tell_status().await;
        while !self.changes.is_closed() {
            let Some(resource) = self.resource().await else {
                continue;
            };
            if !self.list(resource).await {
                continue;
            }
            match self.follow(resource).await {
                Unfollowed::Relist(why) => {
                    tracing::debug!(source = self.id.name(), why, "listing anew");
                    WatchCounters::add(&self.counters.watch_restarts, 1);
                }
                Unfollowed::Forbidden => self.poll(resource).await,
            }
        }
    }

    async fn resource(&mut self) -> Option<Resource> {
        if self.status.resource.is_none() {
            match discover_endpoints(&self.api, self.id.label()).await {
                Ok(resource) => self.status.resource = Some(resource),
                Err(error) => self.failed("discover", &error).await,
            }
        }
        self.status.resource
    }

    async fn list(&mut self, resource: Resource) -> bool {
        WatchCounters::add(&self.counters.lists, 1);
        match self.api.list(resource).await {
            Ok(listed) => {
                self.deliver_list(listed).await;
                true
            }
            Err(error) => {
                if matches!(error, ApiError::NotFound | ApiError::NotServed) {
                    // An apiserver of another version took over: the API may be gone or come.
                    self.status.resource = self.id.resource();
                }
                self.failed("list", &error).await;
                false
            }
        }
    }

    async fn deliver_list(&mut self, listed: Listed) {
        let unreadable = listed.items.iter().filter(|item| item.object.is_err());
        WatchCounters::add(&self.counters.undecodable, unreadable.count() as u64);
        self.known = versions(&listed.items);
        self.resource_version = listed.resource_version;
        self.last_heard = Instant::now();
        self.send(Change::Listed(self.id, listed.items)).await;
        self.status.forbidden = self.status.polling.then_some("watch");
        self.status.error = None;
        self.tell_status().await;
    }

    /// Watches until a fresh list is needed.
    async fn follow(&mut self, resource: Resource) -> Unfollowed {
        let mut rescan = Rescan::due(self.api.config.rescan_interval);
        loop {
            match self.watch_once(resource, &mut rescan).await {
                Ended::Closed => {}
                Ended::Brief => self.failed_watch("the watch ended at once").await,
                Ended::Failed(error) => self.failed_watch(&chain(&error)).await,
                Ended::Gone => {
                    // The first time at once: a fresh list is just what is asked for.
                    let wait = self.backoff.fail();
                    if self.backoff.failures() > 1 {
                        sleep(wait).await;
                    }
                    return Unfollowed::Relist("the resource version expired");
                }
                Ended::Forbidden(error) => {
                    tracing::debug!(source = self.id.name(), error = %error, "watch refused");
                    return Unfollowed::Forbidden;
                }
                Ended::Relist(why) => return Unfollowed::Relist(why),
            }
            if self.backoff.failures() >= FAILURES_MAX {
                return Unfollowed::Relist("watching failed repeatedly");
            }
            if self.last_heard.elapsed() >= self.api.timing.silence_max {
                return Unfollowed::Relist("silence");
            }
            if self.changes.is_closed() {
                return Unfollowed::Relist("stopping");
            }
        }
    }

    async fn watch_once(&mut self, resource: Resource, rescan: &mut Rescan) -> Ended {
        let timing = &self.api.timing;
        let timeout = timing.watch_timeout + timing.watch_jitter.mul_f64(fastrand::f64());
        let (brief, healthy) = (timing.brief_watch, timing.healthy_watch);
        let started = Instant::now();
        // The apiserver closes the watch in time; if nothing comes after that, nobody is there.
        let deadline = started + timeout + timing.watch_grace;
        WatchCounters::add(&self.counters.watch_starts, 1);
        let watch = self.api.watch(resource, &self.resource_version, timeout);
        let mut lines = match watch.await {
            Ok(lines) => lines,
            Err(ApiError::Gone) => return Ended::Gone,
            Err(error @ ApiError::Forbidden(_)) => return Ended::Forbidden(error),
            Err(error) => return Ended::Failed(error),
        };
        self.send(Change::Opened).await;
        if self.status.polling {
            self.status = Status::new(self.id);
            self.status.resource = Some(resource);
            self.tell_status().await;
        }
        let mut events = 0_u64;
        loop {
            let to_excuse = self.status.error.is_some() || self.backoff.failures() > 0;
            let silent = self.last_heard + self.api.timing.silence_max;
            let line = tokio::select! {
                // What was delivered first: a re-list is judged by it.
                biased;
                line = timeout_at(deadline.min(silent), lines.next()) => line,
                step = rescan.step() => {
                    match self.rescan(resource, rescan, step) {
                        Rescanned::Missed => {
                            return Ended::Relist("a re-list found what the watch had missed");
                        }
                        Rescanned::Agreed => self.send(Change::Agreed(self.id)).await,
                        Rescanned::Undecided => {}
                    }
                    continue;
                }
                () = self.relist.notified() => return Ended::Relist("asked to"),
                () = sleep_until(started + healthy), if to_excuse => {
                    self.recovered().await;
                    continue;
                }
            };
            match line {
                Err(_) if Instant::now() >= silent => return Ended::Relist("silence"),
                Err(_) => return Ended::Failed(ApiError::Timeout(deadline - started)),
                Ok(Err(error)) => return Ended::Failed(error),
                Ok(Ok(None)) => break,
                Ok(Ok(Some(Event::Error { code, message }))) => {
                    return match ApiError::from_status(code, message) {
                        ApiError::Gone => Ended::Gone,
                        error => Ended::Failed(error),
                    };
                }
                Ok(Ok(Some(event))) => {
                    events += u64::from(!matches!(event, Event::Bookmark(_)));
                    self.deliver(event).await;
                }
            }
        }
        let lived = started.elapsed();
        if events > 0 || lived >= healthy {
            self.recovered().await;
        }
        if lived < brief {
            Ended::Brief
        } else {
            Ended::Closed
        }
    }

    async fn deliver(&mut self, event: Event) {
        self.last_heard = Instant::now();
        let change = match event {
            Event::Applied(item) => {
                if item.object.is_err() {
                    WatchCounters::add(&self.counters.undecodable, 1);
                }
                self.proceed(&item.resource_version);
                self.touched.insert(item.key.clone());
                self.known
                    .insert(item.key.clone(), item.resource_version.clone());
                Change::Applied(self.id, item)
            }
            Event::Deleted(item) => {
                self.proceed(&item.resource_version);
                self.touched.insert(item.key.clone());
                self.known.remove(&item.key);
                Change::Deleted(self.id, item.key)
            }
            Event::Bookmark(version) => {
                self.proceed(&version);
                Change::Heard(self.id)
            }
            Event::Error { .. } => return,
        };
        self.send(change).await;
    }

    /// An empty version would start the next watch at any state.
    fn proceed(&mut self, version: &str) {
        if !version.is_empty() {
            version.clone_into(&mut self.resource_version);
        }
    }

    /// One step of the independent re-list.
    fn rescan(&mut self, resource: Resource, rescan: &mut Rescan, step: Step) -> Rescanned {
        let interval = self.api.config.rescan_interval;
        match step {
            Step::Begin => {
                WatchCounters::add(&self.counters.lists, 1);
                self.touched.clear();
                let api = Arc::clone(&self.api);
                *rescan = Rescan::Listing(Box::pin(async move { api.list(resource).await }));
                Rescanned::Undecided
            }
            Step::Listed(Err(error)) => {
                let error = chain(&error);
                tracing::debug!(source = self.id.name(), error, "re-list failed");
                *rescan = Rescan::due(interval);
                Rescanned::Undecided
            }
            Step::Listed(Ok(listed)) => {
                let suspects = self.differences(&versions(&listed.items));
                if suspects.is_empty() {
                    *rescan = Rescan::due(interval);
                    return Rescanned::Agreed;
                }
                let settled = Instant::now() + self.api.timing.settle;
                *rescan = Rescan::Settling(settled, suspects);
                Rescanned::Undecided
            }
            Step::Settled => {
                let before = std::mem::replace(rescan, Rescan::due(interval));
                let Rescan::Settling(_, suspects) = before else {
                    return Rescanned::Undecided;
                };
                let still = |(key, version): &&(ObjectKey, Option<String>)| {
                    self.known.get(key) == version.as_ref()
                };
                let missed = suspects.iter().filter(still).count();
                WatchCounters::add(&self.counters.watch_missed, missed as u64);
                if missed > 0 {
                    tracing::warn!(source = self.id.name(), missed, "the watch missed changes");
                    return Rescanned::Missed;
                }
                Rescanned::Agreed
            }
        }
    }

    /// Where a list differs from what we know, leaving out what changed while it was read.
    fn differences(
        &self,
        listed: &BTreeMap<ObjectKey, String>,
    ) -> Vec<(ObjectKey, Option<String>)> {
        let keys: BTreeSet<&ObjectKey> = listed.keys().chain(self.known.keys()).collect();
        keys.into_iter()
            .filter(|key| !self.touched.contains(*key))
            .filter(|key| listed.get(*key) != self.known.get(*key))
            .map(|key| (key.clone(), self.known.get(key).cloned()))
            .collect()
    }

    /// Lists again and again until it is time to try watching once more.
    async fn poll(&mut self, resource: Resource) {
        if !self.status.polling {
            tracing::warn!(source = self.id.name(), "`watch` is refused: polling");
        }
        self.status.polling = true;
        self.status.forbidden = Some("watch");
        self.tell_status().await;
        let retry = Instant::now() + self.api.timing.watch_retry;
        let mut next = Instant::now();
        loop {
            next += jittered(self.api.config.poll_interval);
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.relist.notified() => {}
                () = self.changes.closed() => return,
            }
            // Whoever calls lists first and watches then, so this poll is not left out.
            if Instant::now() >= retry {
                return;
            }
            if self.list(resource).await {
                self.backoff.succeed();
            } else if self.status.resource.is_none() {
                return;
            }
            next = Instant::now();
        }
    }

    /// Remembers a failed request and waits.
    async fn failed(&mut self, verb: &'static str, error: &ApiError) {
        self.status.error = Some(format!("{verb}: {}", chain(error)));
        self.status.forbidden = match (verb, error) {
            ("list", ApiError::Forbidden(_)) => Some("list"),
            // An apiserver that is away refuses nothing.
            _ => self.status.polling.then_some("watch"),
        };
        // A list comes next, so whoever asks for one need not wait. Polls go on at their own pace.
        let wakeable = !self.status.polling;
        self.pause(wakeable).await;
    }

    async fn failed_watch(&mut self, error: &str) {
        self.status.error = Some(format!("watch: {error}"));
        // Asked for a list, the next watch ends at once.
        self.pause(false).await;
    }

    async fn pause(&mut self, wakeable: bool) {
        let wait = self.backoff.fail();
        let (name, failures) = (self.id.name(), self.backoff.failures());
        let error = self.status.error.as_deref();
        // An apiserver that restarts is nothing to wake anyone for; one that stays away is.
        if failures == FAILURES_MAX {
            tracing::warn!(
                source = name,
                failures,
                error,
                "kubernetes source keeps failing"
            );
        } else {
            tracing::debug!(source = name, failures, error, "kubernetes source failed");
        }
        self.tell_status().await;
        tokio::select! {
            () = sleep(wait) => {}
            () = self.relist.notified(), if wakeable => {}
            () = self.changes.closed() => {}
        }
    }

    async fn recovered(&mut self) {
        if self.backoff.failures() >= FAILURES_MAX {
            tracing::info!(source = self.id.name(), "kubernetes source works again");
        }
        self.backoff.succeed();
        self.status.error = None;
        self.tell_status().await;
    }

    async fn tell_status(&mut self) {
        self.send(Change::Status(self.id, self.status.clone()))
            .await;
    }

    /// Whoever no longer listens needs nothing; [`run`](Self::run) ends by itself then.
    async fn send(&self, change: Change) {
        let _ = self.changes.send(change).await;
    }
}

/// Where endpoints are to be had: chosen by what the apiserver serves, never by its version.
pub(in crate::kubernetes) async fn discover_endpoints(
    api: &Api,
    label: Option<&'static str>,
) -> Result<Resource, ApiError> {
    let kind = match api.get_json("/apis/discovery.k8s.io/v1").await {
        Ok(group) => {
            let mut resources = group["resources"].as_array().into_iter().flatten();
            if resources.any(|resource| resource["name"] == "endpointslices") {
                Kind::EndpointSlice
            } else {
                Kind::Endpoints
            }
        }
        // Up to Kubernetes 1.20.
        Err(ApiError::NotFound | ApiError::NotServed) => Kind::Endpoints,
        // Everyone may discover by default; who may not is told by the list.
        Err(ApiError::Forbidden(_)) => Kind::EndpointSlice,
        Err(error) => return Err(error),
    };
    Ok(Resource { kind, label })
}

fn versions(items: &[Item]) -> BTreeMap<ObjectKey, String> {
    let version = |item: &Item| (item.key.clone(), item.resource_version.clone());
    items.iter().map(version).collect()
}

fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(1.0 - JITTER * fastrand::f64())
}

// === impl Rescan ===

impl Rescan {
    fn due(interval: Duration) -> Self {
        Self::Due(Instant::now() + jittered(interval))
    }

    /// Nothing is lost if the wait is given up.
    async fn step(&mut self) -> Step {
        match self {
            Self::Due(at) => {
                sleep_until(*at).await;
                Step::Begin
            }
            Self::Listing(list) => Step::Listed(list.await),
            Self::Settling(at, _) => {
                sleep_until(*at).await;
                Step::Settled
            }
        }
    }
}
