//! The task that writes: it gathers what the lanes noted and replaces the file, never more than one write at once.
//!
//! The first change is written at once, what comes meanwhile together next. A file that nothing changes is written
//! again all the same, because its stamp tells that a process lived, which is what a restart asks.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::file::StateError;
use super::format::{self, Record};
use super::{Disk, Foundation, HttpEntry, Ledgers, Place, Warm};
use crate::Uptime;
use crate::causes::chain;
use crate::desired::guard::Remembered;
use crate::desired::{Code, Desired, Finding, Subject};
use crate::lease::Kept;
use crate::lifecycle::Clock;
use crate::plan::TcpRow;

/// Between two writes at least: a rollout changes the table many times a second.
const APART_MIN: Duration = Duration::from_millis(500);
/// And this many times as long as the last one took, so that a slow disk has its rest.
const APART_SHARE: u32 = 10;
/// But no longer than this.
const APART_MAX: Duration = Duration::from_secs(10);
/// The stamp is renewed so often in the time that a state is good for …
const STAMPS_PER_AGE: u32 = 10;
/// … and at least this often.
const STAMP_MAX: Duration = Duration::from_mins(1);
/// A write that failed is tried again after this: the disk may be mended.
const WRITE_AGAIN: Duration = Duration::from_secs(10);
/// A write that takes longer than this is told of.
const OVERDUE: Duration = Duration::from_secs(10);
/// How long a stop may wait for the last write.
const FINISH_WAIT: Duration = Duration::from_secs(1);

/// Keeps the file of one folder.
pub struct Keeper {
    place: Place,
    disk: Arc<dyn Disk>,
    foundation: Foundation,
    ledgers: Ledgers,
    /// The last process's table, while there is no newer.
    table: Option<Arc<Desired>>,
    writing: Option<Writing>,
    error: Option<String>,
    findings: watch::Sender<Vec<Finding>>,
    /// The file holds the empty table of a process that was drained.
    drained: watch::Sender<bool>,
}

struct Writing {
    task: BoxFuture<'static, Result<(), StateError>>,
    since: Uptime,
    told: bool,
    drained: bool,
}

/// What is owned by a write.
struct Parts {
    http: Arc<Desired>,
    rest: Arc<Desired>,
    entry: HttpEntry,
    rows: std::collections::BTreeSet<TcpRow>,
    lease: Option<Kept>,
    guard: Remembered,
}

// === impl Keeper ===

impl Keeper {
    pub(super) fn new(
        (place, disk): (Place, Arc<dyn Disk>),
        foundation: Foundation,
        warm: &Warm,
        ledgers: Ledgers,
        unread: Option<String>,
    ) -> Self {
        let keeper = Self {
            place,
            disk,
            foundation,
            ledgers,
            table: warm.table.clone(),
            writing: None,
            error: None,
            findings: watch::Sender::new(Vec::new()),
            drained: watch::Sender::new(false),
        };
        if let Some(error) = unread {
            let text = format!("what the last process left cannot be used: {error}");
            keeper.tell(Finding::new(Code::StateNotKept, Subject::Cluster, text));
        }
        keeper
    }

    /// What is wrong with the file.
    #[must_use]
    pub fn findings(&self) -> watch::Receiver<Vec<Finding>> {
        self.findings.subscribe()
    }

    /// Whether the next process would find no route to announce, because this one was drained.
    #[must_use]
    pub fn drained(&self) -> watch::Receiver<bool> {
        self.drained.subscribe()
    }

    /// Writes until `stop`, and then once more.
    pub async fn run(
        mut self,
        mut desired: watch::Receiver<Option<Arc<Desired>>>,
        clock: Clock,
        stop: CancellationToken,
    ) {
        // The ledgers' senders live as long as this task: their channels never close.
        let mut http = self.ledgers.http.subscribe();
        let mut rows = self.ledgers.rows.subscribe();
        let mut lease = self.ledgers.lease.subscribe();
        let mut guard = self.ledgers.guard.subscribe();
        let stamp = STAMP_MAX.min(self.place.max_age / STAMPS_PER_AGE);
        let (mut upstream, mut dirty) = (true, self.table.is_some());
        let (mut earliest, mut stamp_at) = (clock.now(), clock.now() + stamp);
        desired.mark_changed();
        loop {
            let now = clock.now();
            self.tell_overdue(now);
            if self.writing.is_none() && (dirty || now >= stamp_at) && now >= earliest {
                (dirty, stamp_at) = (false, now + stamp);
                if let Some(parts) = self.parts(&desired) {
                    self.write(parts, now);
                }
            }
            let wake = match &self.writing {
                Some(writing) if writing.told => stamp_at.max(now + OVERDUE),
                Some(writing) => writing.since + OVERDUE,
                None if dirty => earliest,
                None => stamp_at.max(earliest),
            };
            // Nobody's end is to be waited for here but a stop's.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                (ended, since) = self.written() => {
                    let took = clock.now().saturating_sub(since);
                    let well = self.learn(ended);
                    dirty |= !well;
                    let apart = (took * APART_SHARE).clamp(APART_MIN, APART_MAX);
                    earliest = clock.now() + if well { apart } else { WRITE_AGAIN };
                }
                changed = desired.changed(), if upstream => match changed {
                    Ok(()) => dirty |= desired.borrow_and_update().is_some(),
                    Err(_) => upstream = false,
                },
                Ok(()) = http.changed() => dirty = true,
                Ok(()) = rows.changed() => dirty = true,
                Ok(()) = lease.changed() => dirty = true,
                Ok(()) = guard.changed() => dirty = true,
                () = clock.sleep_until(wake) => {}
            }
        }
        let last = async {
            if self.writing.is_some() {
                let (ended, _) = self.written().await;
                self.learn(ended);
            }
            if let Some(parts) = self.parts(&desired) {
                self.write(parts, clock.now());
                let (ended, _) = self.written().await;
                self.learn(ended);
            }
        };
        // A write cut off leaves the file before it.
        let _ = tokio::time::timeout(FINISH_WAIT, last).await;
    }

    /// What is to be written; nothing before there is a table of this process's own or one it took over, so that
    /// a start without Kubernetes does not make an old state look young.
    fn parts(&self, desired: &watch::Receiver<Option<Arc<Desired>>>) -> Option<Parts> {
        let rest = desired.borrow().clone().or_else(|| self.table.clone())?;
        let entry = self.ledgers.http.borrow().clone();
        // Where the HTTP lane is off, or has not looked yet, what it would take.
        let http = entry.applied.clone().unwrap_or_else(|| rest.clone());
        let rows = self.ledgers.rows.borrow().clone();
        let lease = self.ledgers.lease.borrow().clone();
        let guard = self.ledgers.guard.borrow().clone();
        Some(Parts {
            http,
            rest,
            entry,
            rows,
            lease,
            guard,
        })
    }

    fn write(&mut self, parts: Parts, now: Uptime) {
        let foundation = self.foundation.clone();
        let drained = parts.http.drained && parts.rest.drained;
        let encode = move |written_secs| {
            format::encode(Record {
                written_secs,
                foundation: &foundation,
                http: &parts.http,
                rest: &parts.rest,
                withdrawals: &parts.entry.withdrawals,
                rows: &parts.rows,
                lease: parts.lease.as_ref(),
                guard: &parts.guard,
            })
        };
        self.writing = Some(Writing {
            task: self.disk.write(Box::new(encode)),
            since: now,
            told: false,
            drained,
        });
    }

    /// Waits until the write in flight has ended, and tells when it began; for ever where there is none. May be
    /// dropped at any time.
    async fn written(&mut self) -> (Result<(), StateError>, Uptime) {
        let Some(writing) = &mut self.writing else {
            return std::future::pending().await;
        };
        let (ended, since) = ((&mut writing.task).await, writing.since);
        if ended.is_ok() && writing.drained {
            self.drained.send_replace(true);
        }
        self.writing = None;
        (ended, since)
    }

    /// Whether it went well.
    fn learn(&mut self, ended: Result<(), StateError>) -> bool {
        match ended {
            Ok(()) => {
                if self.error.take().is_some() {
                    info!("state can be written again");
                }
                self.findings.send_if_modified(|findings| {
                    let changed = !findings.is_empty();
                    findings.clear();
                    changed
                });
                true
            }
            Err(error) => {
                self.fail(chain(&error));
                false
            }
        }
    }

    fn tell_overdue(&mut self, now: Uptime) {
        if let Some(writing) = &mut self.writing
            && !writing.told
            && now >= writing.since + OVERDUE
        {
            writing.told = true;
            let error = StateError::Silent(self.place.dir.clone());
            self.fail(chain(&error));
        }
    }

    fn fail(&mut self, error: String) {
        if self.error.as_ref() != Some(&error) {
            warn!(%error, "state not written; a restart would wait for Kubernetes");
            let text = format!("routes would not survive a restart: {error}");
            let hint = "make `state.dir` a folder that can be written, on a disk with room";
            self.tell(Finding::new(Code::StateNotKept, Subject::Cluster, text).hint(hint));
        }
        self.error = Some(error);
    }

    fn tell(&self, finding: Finding) {
        self.findings.send_replace(vec![finding]);
    }
}
