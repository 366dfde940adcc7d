//! How fast messages may leave: a token bucket in whole nanoseconds, so that the same input gives the same
//! answer on every machine.

use std::time::Duration;

use crate::Uptime;

/// Messages that may leave in one go. gorouter buffers 131,072 for all senders of the foundation together.
const BURST_MAX: u32 = 500;
/// Waking for each single token would cost more than sending; this much is gathered instead.
const GATHER: Duration = Duration::from_millis(5);

/// The bucket, kept as the moment at which it would be empty again (GCRA).
#[derive(Clone, Debug)]
pub(super) struct Pace {
    each: Duration,
    burst: u32,
    drained_until: Uptime,
}

impl Pace {
    pub(super) fn new(messages_per_second: u32) -> Self {
        let rate = messages_per_second.max(1);
        Self {
            each: Duration::from_secs(1) / rate,
            burst: (rate / 10).clamp(10, BURST_MAX),
            drained_until: Uptime::ZERO,
        }
    }

    /// Takes one token if there is one.
    pub(super) fn take(&mut self, now: Uptime) -> bool {
        let until = self.drained_until.max(now) + self.each;
        let free = until <= now + self.each * self.burst;
        if free {
            self.drained_until = until;
        }
        free
    }

    /// When enough tokens for `waiting` messages, or for a worthwhile part of them, will be there.
    pub(super) fn ready_at(&self, waiting: usize) -> Uptime {
        let gather = GATHER.as_nanos() / self.each.as_nanos().max(1);
        let gather = u32::try_from(gather)
            .unwrap_or(self.burst)
            .clamp(1, self.burst);
        let wanted = u32::try_from(waiting).unwrap_or(u32::MAX).clamp(1, gather);
        (self.drained_until + self.each * wanted).saturating_sub(self.each * self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_bounded_and_the_rate_holds_after_it() {
        let mut pace = Pace::new(1000);
        let start = Duration::from_mins(1);
        assert_eq!((0..1000).filter(|_| pace.take(start)).count(), 100);
        let later = start + Duration::from_millis(10);
        assert_eq!((0..1000).filter(|_| pace.take(later)).count(), 10);
        let ready = pace.ready_at(1000);
        assert_eq!(ready, later + GATHER);
        assert!((0..5).all(|_| pace.take(ready)) && !pace.take(ready));
    }
}
