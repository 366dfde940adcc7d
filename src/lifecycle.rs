//! The process's life: one clock, every task by name, and how it ends.
//!
//! The process's tasks are spawned here. What the watches spawn below theirs (`kubernetes/watch.rs`) ends with it
//! and ends it, and the log's writer is a thread that outlives them all. A task that ends unasked stops the process with that task's name: a lane that
//! silently died would otherwise let its routes lapse while everything looks healthy.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Uptime;

/// How long tasks may take to stop once asked. Below the 20 s after which BPM kills.
const STOP_WAIT: Duration = Duration::from_secs(8);

/// Reads the process's clock at the rim; it can be paused in tests.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

/// Every task of the process.
pub struct Tasks {
    set: JoinSet<&'static str>,
    stop: CancellationToken,
}

/// Why the tasks ended.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// It returned although nobody asked it to stop.
    #[error("task `{0}` ended unasked")]
    Ended(&'static str),
    /// It panicked.
    #[error("a task panicked: {0}")]
    Panicked(String),
}

// === impl Clock ===

impl Clock {
    /// Starts at zero now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    #[must_use]
    pub fn now(&self) -> Uptime {
        self.0.elapsed()
    }

    /// Waits until a moment; at once if it has passed.
    pub async fn sleep_until(&self, moment: Uptime) {
        tokio::time::sleep_until(self.0 + moment).await;
    }
}

// === impl Tasks ===

impl Default for Tasks {
    fn default() -> Self {
        Self {
            set: JoinSet::new(),
            stop: CancellationToken::new(),
        }
    }
}

impl Tasks {
    /// What tasks watch to know that they should stop.
    #[must_use]
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task under a name.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until `stop` completes or a task ends unasked, then lets every task stop.
    ///
    /// # Errors
    /// Names the task that ended or panicked first.
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) -> Result<(), TaskError> {
        let failed = tokio::select! {
            () = stop => None,
            Some(ended) = self.set.join_next() => Some(match ended {
                Ok(name) => TaskError::Ended(name),
                Err(error) => TaskError::Panicked(error.to_string()),
            }),
        };
        self.stop.cancel();
        let all = async { while self.set.join_next().await.is_some() {} };
        // Whoever does not stop in time is aborted by dropping the set.
        let _ = tokio::time::timeout(STOP_WAIT, all).await;
        failed.map_or(Ok(()), Err)
    }
}
