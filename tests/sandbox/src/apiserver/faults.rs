//! What a test may do to the server's answers: refuse, stall or cut lists and watches.
//!
//! A fault stands until it is cleared. Resources are named by their plural; `*` means any.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// What becomes of a watch that is opened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WatchFault {
    /// The request is answered with this code instead of a stream: 410, 500, 503 …
    Status(u16),
    /// A stream of one ERROR event with this code.
    InStream(u16),
    /// The stream ends at once, without an event.
    EndsAtOnce,
    /// Headers, and then nothing for ever.
    BlackHole,
    /// Not even headers.
    NoAnswer,
    /// The first event is cut in its middle and the connection with it.
    CutMidObject,
}

/// What becomes of a list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ListFault {
    /// The request is refused with this code: 429, 500, 503 …
    Status(u16),
    /// It is answered after this time.
    Slow(Duration),
    /// It is never answered.
    Hang,
    /// The page breaks off in its middle and the connection with it.
    Truncated,
}

/// How the watches that are open now end.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Ending {
    /// As when the server's own time limit is reached.
    #[default]
    Plain,
    /// In the middle of an event.
    Cut,
}

/// The handle a test holds.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<State>,
    /// Each send ends every watch open at that moment.
    endings: watch::Sender<Ending>,
}

#[derive(Debug, Default)]
struct State {
    watches: BTreeMap<String, WatchFault>,
    lists: BTreeMap<String, ListFault>,
    watch_forbidden: bool,
    write_refusal: Option<u16>,
}

// === impl Faults ===

impl Faults {
    /// Each watch of `resource` opened from now on meets `fault`.
    pub fn watch(&self, resource: &str, fault: WatchFault) {
        self.state().watches.insert(resource.to_owned(), fault);
    }

    /// Each list of `resource` from now on meets `fault`.
    pub fn list(&self, resource: &str, fault: ListFault) {
        self.state().lists.insert(resource.to_owned(), fault);
    }

    /// Answers 403 to every `watch`, whatever the token's rules say.
    pub fn forbid_watch(&self, forbidden: bool) {
        self.state().watch_forbidden = forbidden;
    }

    /// Refuses creates, updates, patches and deletes with this code.
    pub fn refuse_writes(&self, code: Option<u16>) {
        self.state().write_refusal = code;
    }

    /// Takes every fault back.
    pub fn clear(&self) {
        *self.state() = State::default();
    }

    /// Ends every open watch as the server's time limit does.
    pub fn end_watches(&self) {
        self.endings.send_replace(Ending::Plain);
    }

    /// Breaks every open watch in the middle of an event.
    pub fn cut_watches(&self) {
        self.endings.send_replace(Ending::Cut);
    }

    pub(super) fn endings(&self) -> watch::Receiver<Ending> {
        self.endings.subscribe()
    }

    pub(super) fn of_watch(&self, resource: &str) -> Option<WatchFault> {
        let state = self.state();
        state
            .watches
            .get(resource)
            .or_else(|| state.watches.get("*"))
            .copied()
    }

    pub(super) fn of_list(&self, resource: &str) -> Option<ListFault> {
        let state = self.state();
        state
            .lists
            .get(resource)
            .or_else(|| state.lists.get("*"))
            .copied()
    }

    pub(super) fn watch_forbidden(&self) -> bool {
        self.state().watch_forbidden
    }

    pub(super) fn write_refusal(&self) -> Option<u16> {
        self.state().write_refusal
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
