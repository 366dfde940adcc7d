//! Keeps a view of the cluster and publishes every snapshot that differs from the last.
//!
//! ```text
//!   source × 5 (list, watch, poll) ──Change──▶ assembler ──▶ Option<Arc<Snapshot>>
//!                                                │  ▲    └──▶ SourceReport
//!                                                ▼  │
//!                                       confirm that it is gone
//! ```
//!
//! Services are watched once per label, because selectors cannot say "or"; Nodes; and endpoints once per
//! label, as the endpoints controllers copy the Service's labels. What becomes of a snapshot is unknown here.

mod absence;
mod assembler;
mod identity;
mod source;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, mpsc, watch as channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::assembler::Assembler;
pub(super) use self::source::discover_endpoints;
use self::source::{Change, Source};
use self::view::{SourceId, Status, View};
use super::Timing;
use super::api::{Api, ApiError};
use super::snapshot::Snapshot;
use crate::config::KubernetesConfig;
use crate::lifecycle::Clock;
use crate::outside::{Network, Outside};
use crate::status::SourceReport;

/// Changes that may wait for the assembler; a source that finds it full stops reading its watch.
const CHANGES_MAX: usize = 4096;

/// Everything that keeps the view; it does nothing before [`run`](Self::run).
pub struct Watches {
    sources: Vec<Source>,
    assembler: Assembler,
    changes: mpsc::Receiver<Change>,
}

/// Where what the watches find is read.
#[derive(Clone, Debug)]
pub struct Receivers {
    /// `None` until every required source has delivered a complete list.
    pub snapshot: channel::Receiver<Option<Arc<Snapshot>>>,
    /// How the sources fare.
    pub report: channel::Receiver<SourceReport>,
}

/// What the watches count, for whoever tells it.
#[derive(Clone, Debug, Default)]
pub struct WatchCounters {
    /// Lists asked for.
    pub lists: Arc<AtomicU64>,
    /// Watch requests sent.
    pub watch_starts: Arc<AtomicU64>,
    /// Changes that a list found and the watch should have delivered.
    pub watch_missed: Arc<AtomicU64>,
    /// Deliveries of objects that could not be read.
    pub undecodable: Arc<AtomicU64>,
    /// Watches given up for a fresh list.
    pub watch_restarts: Arc<AtomicU64>,
}

/// Why no complete snapshot could be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot list {resource}")]
pub struct SnapshotError {
    /// Which resource.
    pub resource: &'static str,
    /// Why.
    #[source]
    pub source: ApiError,
}

/// Prepares the watches.
#[must_use]
pub fn watch_over(
    outside: Arc<dyn Outside>,
    config: KubernetesConfig,
    clock: Clock,
    counters: &WatchCounters,
) -> (Watches, Receivers) {
    let api = Api::new(config, Timing::default(), outside);
    prepare(api, clock, counters)
}

/// The same over the network, under other times.
#[must_use]
pub fn watch_with(
    config: KubernetesConfig,
    clock: Clock,
    counters: &WatchCounters,
    timing: Timing,
) -> (Watches, Receivers) {
    let api = Api::new(config, timing, Arc::new(Network));
    prepare(api, clock, counters)
}

fn prepare(api: Api, clock: Clock, counters: &WatchCounters) -> (Watches, Receivers) {
    let api = Arc::new(api);
    let (changes_tx, changes) = mpsc::channel(CHANGES_MAX);
    let (snapshots, snapshot) = channel::channel(None);
    let (reports, report) = channel::channel(SourceReport::default());
    let relist: BTreeMap<SourceId, Arc<Notify>> = SourceId::ALL
        .into_iter()
        .map(|id| (id, Arc::default()))
        .collect();
    let source = |(id, relist): (&SourceId, &Arc<Notify>)| {
        let (api, counters) = (Arc::clone(&api), counters.clone());
        Source::new(*id, api, counters, changes_tx.clone(), Arc::clone(relist))
    };
    let watches = Watches {
        sources: relist.iter().map(source).collect(),
        assembler: Assembler::new(Arc::clone(&api), clock, relist, snapshots, reports),
        changes,
    };
    (watches, Receivers { snapshot, report })
}

/// Lists everything once.
///
/// # Errors
/// When a required resource cannot be listed completely. Endpoints that cannot be seen are a finding.
pub async fn snapshot_once(config: &KubernetesConfig) -> Result<Snapshot, SnapshotError> {
    let api = Api::new(config.clone(), Timing::default(), Arc::new(Network));
    let mut view = View::default();
    for source in SourceId::ALL {
        let listed = list_once(&api, source, &mut view).await;
        if source.required() {
            listed?;
        }
    }
    let identity = identity::ask(&api).await.map_err(|source| SnapshotError {
        resource: "namespaces",
        source,
    })?;
    let findings: Vec<_> = identity.finding.into_iter().collect();
    let mut snapshot = view.snapshot(identity.cluster, &findings);
    snapshot.evidence.kube_system = identity.kube_system;
    Ok(snapshot)
}

async fn list_once(api: &Api, source: SourceId, view: &mut View) -> Result<(), SnapshotError> {
    let failed = |resource, source| SnapshotError { resource, source };
    let resource = match source.resource() {
        Some(resource) => resource,
        None => discover_endpoints(api, source.label())
            .await
            .map_err(|error| failed("endpoints", error))?,
    };
    let mut status = Status::new(source);
    status.resource = Some(resource);
    match api.list(resource).await {
        Ok(listed) => view.listed(source, listed.items),
        Err(error) => {
            if let ApiError::Forbidden(_) = error {
                status.forbidden = Some("list");
            }
            view.set_status(source, status);
            return Err(failed(resource.name(), error));
        }
    }
    Ok(())
}

// === impl Watches ===

impl Watches {
    /// Watches until asked to stop. Returns unasked only if one of its tasks ended; a panic in one of them is
    /// passed on, so that whoever supervises this sees it.
    pub async fn run(self, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        for source in self.sources {
            tasks.spawn(source.run());
        }
        tasks.spawn(self.assembler.run(self.changes));
        tokio::select! {
            () = stop.cancelled() => {}
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended
                    && let Ok(panic) = error.try_into_panic()
                {
                    std::panic::resume_unwind(panic);
                }
            }
        }
        // Whatever still runs only waits for the apiserver.
        tasks.shutdown().await;
    }
}

// === impl WatchCounters ===

impl WatchCounters {
    fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}
