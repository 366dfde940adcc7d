//! The process's life: one clock, every task by name, and how it ends.
//!
//! The process's tasks are spawned here. What the watches spawn below theirs (`kubernetes/watch.rs`) ends with it
//! and ends it, and the log's writer is a thread that outlives them all. A task that ends unasked stops the
//! process with that task's name: a lane that silently died would otherwise let its routes lapse while everything
//! looks healthy.

use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Uptime;

/// How long tasks may take to stop once asked: well below the 15 s after which BPM sends the next signal
/// (`DefaultStopTimeout` of its `commands/stop.go`).
const STOP_WAIT: Duration = Duration::from_secs(8);

/// Reads the process's clock at the rim; it can be paused in tests.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

/// Reads the wall clock at the rim, as time since 1970. It tells people and other instances when something was written,
/// how old a file is, and that the machine stood still, as a process's own clock does with it (`CLOCK_MONOTONIC` of
/// Linux). It may jump, so nothing else is made of it.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "no decision is made of it but to be careful"
)]
pub fn wall_clock() -> Duration {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default()
}

/// Every task of the process.
pub struct Tasks {
    set: JoinSet<&'static str>,
    /// A task that panicked returns no name.
    names: Vec<(Id, &'static str)>,
    stop: CancellationToken,
}

/// Why the tasks ended.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// It returned although nobody asked it to stop.
    #[error("task `{0}` ended unasked")]
    Ended(&'static str),
    /// It panicked.
    #[error("task `{task}` panicked: {reason}")]
    Panicked {
        /// Which.
        task: &'static str,
        /// As tokio tells it.
        reason: String,
    },
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
            names: Vec::new(),
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
        let handle = self.set.spawn(async move {
            task.await;
            name
        });
        self.names.push((handle.id(), name));
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
                Err(error) => {
                    let mut names = self.names.iter();
                    let name = names.find(|(id, _)| *id == error.id());
                    TaskError::Panicked {
                        task: name.map_or("unknown", |(_, name)| *name),
                        reason: error.to_string(),
                    }
                }
            }),
        };
        self.stop.cancel();
        let all = async { while self.set.join_next().await.is_some() {} };
        // Whoever does not stop in time is aborted by dropping the set.
        let _ = tokio::time::timeout(STOP_WAIT, all).await;
        failed.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_named() {
        let mut tasks = Tasks::default();
        let stop = tasks.stop_token();
        tasks.spawn("steady", async move { stop.cancelled().await });
        tasks.spawn("restless", async {});
        let ended = tasks.run_until(std::future::pending());
        assert_eq!(
            ended.await.unwrap_err().to_string(),
            "task `restless` ended unasked"
        );

        let mut tasks = Tasks::default();
        let stop = tasks.stop_token();
        tasks.spawn("steady", async move { stop.cancelled().await });
        tasks.spawn("broken", async { panic!("as the test wants it") });
        let ended = tasks.run_until(std::future::pending()).await.unwrap_err();
        let text = ended.to_string();
        assert!(text.starts_with("task `broken` panicked: "), "{text}");
    }
}
