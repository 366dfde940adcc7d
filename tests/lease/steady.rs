//! For tests whose subject is right to react when its process stands still: what it then does proves nothing.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::Instant;

const TICK: Duration = Duration::from_millis(100);
/// Below everything that an instance here takes for a crash of another one or for a standstill of its own.
const STANDSTILL: Duration = Duration::from_secs(1);
const RUNS_MAX: usize = 4;

/// Runs a test, and once more only where it failed and its own runtime stood still meanwhile.
pub(crate) async fn steady(test: impl AsyncFn()) {
    for run in 1.. {
        let longest = Arc::new(AtomicU64::new(0));
        let ticker = tokio::spawn(tick(longest.clone()));
        let ended = AssertUnwindSafe(test()).catch_unwind().await;
        // The tick that a standstill fell into ends after it.
        tokio::time::sleep(2 * TICK).await;
        ticker.abort();
        let longest = Duration::from_millis(longest.load(Ordering::Relaxed));
        match ended {
            Ok(()) => return,
            Err(_) if run < RUNS_MAX && longest > STANDSTILL => {}
            Err(panic) => resume_unwind(panic),
        }
    }
}

async fn tick(longest: Arc<AtomicU64>) {
    loop {
        let started = Instant::now();
        tokio::time::sleep(TICK).await;
        let took = started.elapsed().as_millis();
        let took = u64::try_from(took).unwrap_or(u64::MAX);
        longest.fetch_max(took, Ordering::Relaxed);
    }
}
