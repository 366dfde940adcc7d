//! How long to wait before trying again.

use std::time::Duration;

/// Exponential waiting with jitter: between a quarter of a bound that doubles up to a maximum and all of it.
/// Wide, so that many clients of one server that went away do not come back together; never nothing, so that a
/// broken server is not asked in a hot loop.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

/// After this many doublings the bound is far above any maximum; more would overflow.
const DOUBLINGS_MAX: u32 = 16;

impl Backoff {
    /// Starts at `first` and never waits longer than `max`.
    #[must_use]
    pub fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max: max.max(first),
            failures: 0,
        }
    }

    /// The wait after one more failure.
    pub fn fail(&mut self) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(0.25 + 0.75 * fastrand::f64())
    }

    /// Forgets all failures.
    pub fn succeed(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    fn bound(&self) -> Duration {
        self.first
            .saturating_mul(1 << self.failures.min(DOUBLINGS_MAX))
            .min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        for bound in [1, 2, 4, 5, 5] {
            let wait = backoff.fail();
            assert!(wait <= Duration::from_secs(bound) && wait >= Duration::from_secs(bound) / 4);
        }
        backoff.succeed();
        assert!(backoff.fail() <= Duration::from_secs(1));
    }
}
