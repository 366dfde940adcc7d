//! One watch: the stream of events from a revision on.
//!
//! Nothing runs beside the stream: it is polled by the connection that serves it and gone with it.
//! A watch with a selector tells an object that begins to match as ADDED, one that ceases to
//! match as DELETED (the object as it last matched, with the new revision), as measured on 1.36.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::faults::{Ending, WatchFault};
use super::kinds::Kind;
use super::selector::Selector;
use super::status::Status;
use super::store::Change;

/// The server's own limit where the client sets none (`--min-request-timeout`, 1800 s).
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(1_800);
/// The watch cache sends a last bookmark this long before the limit is reached.
const LAST_BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);

/// hyper drops what it has not sent yet when a body fails: time for it to be sent.
const BEFORE_BREAK: Duration = Duration::from_millis(20);

/// What a client asked to watch.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) kind: &'static Kind,
    pub(super) namespace: Option<String>,
    pub(super) selector: Selector,
    /// None: the present state first, as ADDED events.
    pub(super) revision: Option<u64>,
    pub(super) bookmarks: bool,
    pub(super) timeout: Option<Duration>,
    pub(super) initial_events: bool,
}

/// A watch that is being served.
pub(super) struct Watching {
    shared: Arc<Shared>,
    wanted: Wanted,
    cursor: u64,
    began: u64,
    head: watch::Receiver<u64>,
    endings: watch::Receiver<Ending>,
    pending: VecDeque<Bytes>,
    fault: Option<WatchFault>,
    deadline: Instant,
    next_bookmark: Option<Instant>,
    last_bookmark_sent: bool,
    over: Over,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Over {
    No,
    /// What is pending is sent, then the stream ends.
    AfterPending,
    /// The next poll breaks the connection.
    Broken,
}

type Chunk = io::Result<Frame<Bytes>>;

// === impl Watching ===

impl Watching {
    pub(super) fn new(shared: Arc<Shared>, wanted: Wanted) -> Self {
        let fault = shared.faults.of_watch(wanted.kind.plural);
        let (head, revision, initial) = {
            let store = shared.store();
            let initial = wanted
                .revision
                .is_none()
                .then(|| store.list(wanted.kind, wanted.namespace.as_deref(), &wanted.selector));
            (store.head(), store.revision(), initial)
        };
        let now = Instant::now();
        let deadline = now + wanted.timeout.unwrap_or(TIMEOUT_DEFAULT);
        let mut watching = Self {
            cursor: wanted.revision.unwrap_or(revision),
            began: wanted.revision.unwrap_or(revision),
            head,
            endings: shared.faults.endings(),
            pending: VecDeque::new(),
            fault,
            deadline,
            next_bookmark: wanted.bookmarks.then(|| now + shared.bookmark_interval),
            last_bookmark_sent: false,
            over: Over::No,
            shared,
            wanted,
        };
        watching.shared.watch_opened(watching.wanted.kind.plural, 1);
        if watching.wanted.initial_events {
            // Streaming lists need etcd 3.5 with progress requests; measured on etcd 3.4.
            let why = "required storage feature RequestWatchProgress is disabled";
            watching.fail(&Status::new(500, "", why));
        }
        for object in initial.into_iter().flatten() {
            watching.push("ADDED", &object);
        }
        watching.meet_fault();
        watching
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = Chunk> + Send {
        futures::stream::unfold(self, |mut watching| async move {
            watching.next().await.map(|chunk| (chunk, watching))
        })
    }

    async fn next(&mut self) -> Option<Chunk> {
        loop {
            if self.over == Over::Broken {
                tokio::time::sleep(BEFORE_BREAK).await;
                return Some(Err(io::Error::other("the watch is cut by a fault")));
            }
            if let Some(line) = self.pending.pop_front() {
                if self.fault == Some(WatchFault::CutMidObject) {
                    self.over = Over::Broken;
                    return Some(Ok(Frame::data(line.slice(..line.len() / 2))));
                }
                return Some(Ok(Frame::data(line)));
            }
            if self.over == Over::AfterPending {
                return None;
            }
            if self.fault == Some(WatchFault::BlackHole) {
                std::future::pending::<()>().await;
            }
            self.collect();
            if self.pending.is_empty() && self.over == Over::No {
                self.wait().await;
            }
        }
    }

    /// Sleeps until there may be something to send.
    async fn wait(&mut self) {
        let bookmark = self.next_bookmark.unwrap_or(self.deadline);
        let last = (self.wanted.bookmarks && !self.last_bookmark_sent)
            .then(|| self.deadline.checked_sub(LAST_BOOKMARK_BEFORE_END))
            .flatten()
            .unwrap_or(self.deadline);
        tokio::select! {
            // An ending outranks news: after it nothing more may be sent.
            biased;
            ended = self.endings.changed() => {
                let how = *self.endings.borrow_and_update();
                if ended.is_ok() && how == Ending::Cut {
                    self.pending.push_back(Bytes::from_static(b"{\"type\":\"MODIFIED\",\"obj"));
                    self.fault = Some(WatchFault::CutMidObject);
                } else {
                    self.over = Over::AfterPending;
                }
            }
            changed = self.head.changed() => {
                if changed.is_err() {
                    self.over = Over::AfterPending;
                }
            }
            () = sleep_until(self.deadline.min(bookmark).min(last)) => self.on_time(),
        }
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        if now >= self.deadline {
            self.over = Over::AfterPending;
            return;
        }
        if self.wanted.bookmarks {
            self.push_bookmark();
            self.last_bookmark_sent |= now + LAST_BOOKMARK_BEFORE_END >= self.deadline;
            self.next_bookmark = Some(now + self.shared.bookmark_interval);
        }
    }

    /// Takes over what happened since the cursor.
    fn collect(&mut self) {
        let shared = self.shared.clone();
        let store = shared.store();
        match store.changes_after(self.cursor) {
            Ok(changes) => {
                for change in changes {
                    self.tell(change);
                }
                self.cursor = self.cursor.max(store.revision());
            }
            // Also for a watch that starts too far back: it is a 200 with an ERROR event.
            Err(status) => self.fail(&status),
        }
    }

    fn tell(&mut self, change: &Change) {
        let same_kind = std::ptr::eq(change.kind, self.wanted.kind);
        let namespace = change.object["metadata"]["namespace"].as_str();
        let elsewhere =
            self.wanted.namespace.is_some() && self.wanted.namespace.as_deref() != namespace;
        if change.silent || !same_kind || elsewhere {
            return;
        }
        let matched = change
            .before
            .as_ref()
            .is_some_and(|b| self.wanted.selector.matches(b));
        let matches = !change.deleted && self.wanted.selector.matches(&change.object);
        match (matched, matches) {
            (false, true) => self.push("ADDED", &change.object),
            (true, true) => self.push("MODIFIED", &change.object),
            (true, false) => {
                let mut last = change.before.as_deref().cloned().unwrap_or_default();
                last["metadata"]["resourceVersion"] = json!(change.revision.to_string());
                self.push("DELETED", &last);
            }
            (false, false) => {}
        }
    }

    fn push(&mut self, event: &str, object: &Value) {
        let mut line = json!({"type": event, "object": object}).to_string();
        line.push('\n');
        self.pending.push_back(Bytes::from(line));
    }

    /// Only past the watch's own beginning: where nothing happened since, the real server sends
    /// none.
    fn push_bookmark(&mut self) {
        if self.cursor <= self.began {
            return;
        }
        let kind = self.wanted.kind;
        let object = json!({
            "kind": kind.kind, "apiVersion": kind.api_version(),
            "metadata": {"resourceVersion": self.cursor.to_string(), "creationTimestamp": null},
        });
        self.push("BOOKMARK", &object);
    }

    fn fail(&mut self, status: &Status) {
        self.push("ERROR", &status.to_json());
        self.over = Over::AfterPending;
    }

    fn meet_fault(&mut self) {
        match self.fault {
            Some(WatchFault::InStream(code)) => {
                self.pending.clear();
                self.fail(&Status::fault(code));
            }
            Some(WatchFault::EndsAtOnce) => {
                self.pending.clear();
                self.over = Over::AfterPending;
            }
            Some(WatchFault::BlackHole) => self.pending.clear(),
            _ => {}
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.shared.watch_opened(self.wanted.kind.plural, -1);
    }
}
