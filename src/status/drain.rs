//! Draining as everybody sees it: what an operator asked for, and how far each lane is with it.

use std::collections::BTreeSet;

use tokio::sync::watch;

use super::Status;
use crate::desired::{Code, Finding, Subject};
use crate::route::Lane;

/// What an operator wants done with the routes before the process is stopped. A restart ends either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drain {
    /// They are kept alive just as they are; no change of the cluster is followed any more.
    Keep,
    /// They are withdrawn, and nothing is announced any more.
    Unregister,
}

/// How far a lane is that is to withdraw everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Withdrawn {
    /// Names of routes that are not proven gone.
    pub left: BTreeSet<String>,
    /// Nothing of ours stands any more, and the other side has shown it.
    pub proven: bool,
    /// What keeps that from being proven, beyond the lane's last error.
    pub why: Option<String>,
}

/// What the process knows of being drained.
#[derive(Clone, Debug)]
pub struct Draining {
    /// What was asked for.
    pub asked: watch::Receiver<Option<Drain>>,
    /// Whether the state file holds no more routes; `None` where there is none.
    pub on_record: Option<watch::Receiver<bool>>,
}

// === impl Drain ===

impl Drain {
    /// Either.
    pub const ALL: &[Self] = &[Self::Keep, Self::Unregister];

    /// As it is written everywhere.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Unregister => "unregister",
        }
    }

    /// Reads it back.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|drain| drain.as_str() == text)
    }

    pub(super) fn finding(self) -> Finding {
        let (code, text, hint) = match self {
            Self::Keep => (
                Code::DrainedKept,
                "routes are kept alive as they were when an operator drained this process, and no change is followed",
                "stop the process, or restart it to follow the cluster again",
            ),
            Self::Unregister => (
                Code::Drained,
                "every route was withdrawn when an operator drained this process",
                "stop the process, or restart it to announce everything again",
            ),
        };
        Finding::new(code, Subject::Cluster, text).hint(hint)
    }
}

// === impl Status ===

impl Status {
    /// The same with whether an operator drained the process.
    #[must_use]
    pub fn with_drain(mut self, draining: Draining) -> Self {
        self.draining = Some(draining);
        self
    }

    /// What an operator asked for, if anything.
    #[must_use]
    pub fn drain(&self) -> Option<Drain> {
        let draining = self.draining.as_ref()?;
        *draining.asked.borrow()
    }

    /// How far each enabled lane is with withdrawing everything; `None` for one that was told of no table yet.
    #[must_use]
    pub fn withdrawn(&self) -> Vec<(Lane, Option<Withdrawn>, Option<String>)> {
        let lanes = self.lanes.iter().map(watch::Receiver::borrow);
        lanes
            .map(|lane| (lane.lane, lane.withdrawn.clone(), lane.last_error.clone()))
            .collect()
    }

    /// Whether the next process would find nothing to announce; also where it would not look.
    #[must_use]
    pub fn nothing_on_record(&self) -> bool {
        let on_record = self.draining.as_ref().and_then(|it| it.on_record.as_ref());
        on_record.is_none_or(|on_record| *on_record.borrow())
    }
}
