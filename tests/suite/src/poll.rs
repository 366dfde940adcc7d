//! Waiting for what must come, and watching what must stay.

use std::time::Duration;

use tokio::time::Instant;

/// Longer than anything here takes on a noisy machine with two cores; a test that waits this long has failed.
pub const DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// Asks again and again until the answer is yes.
#[track_caller]
pub fn eventually<'a, F>(what: &'a str, ask: F) -> impl Future<Output = ()> + 'a
where
    F: AsyncFnMut() -> bool + 'a,
{
    within(DEADLINE, what, ask)
}

/// The same with a deadline of its own.
#[track_caller]
pub fn within<'a, F>(deadline: Duration, what: &'a str, mut ask: F) -> impl Future<Output = ()> + 'a
where
    F: AsyncFnMut() -> bool + 'a,
{
    let place = std::panic::Location::caller();
    async move {
        let end = Instant::now() + deadline;
        while !ask().await {
            assert!(
                Instant::now() < end,
                "{place}: not within {deadline:?}: {what}"
            );
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Asks again and again for a while; every answer must be yes.
#[track_caller]
pub fn stays<'a, F>(span: Duration, what: &'a str, mut ask: F) -> impl Future<Output = ()> + 'a
where
    F: AsyncFnMut() -> bool + 'a,
{
    let place = std::panic::Location::caller();
    async move {
        let end = Instant::now() + span;
        while Instant::now() < end {
            assert!(ask().await, "{place}: no longer true: {what}");
            tokio::time::sleep(PAUSE).await;
        }
    }
}
