//! Waiting for what must come, with a deadline no noisy machine misses.

use std::time::Duration;

use tokio::time::Instant;

/// Far more than anything waited for takes.
const DEADLINE: Duration = Duration::from_secs(20);

pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < DEADLINE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
