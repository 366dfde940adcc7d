//! When the first endpoint would be pruned if nothing more were sent.
//!
//! Each message notes when it went out last, and when the last of its sendings that is proven did. Whether a number
//! is proven by now is looked up when somebody asks, so that an echo costs nothing for each message it proves.

use super::{Schedule, TICK, clamped, tick};
use crate::Uptime;

/// What gorouter's `droplet_stale_threshold` is on every foundation: the job has no property for it.
const PRUNE_AFTER: Uptime = Uptime::from_mins(2);
/// A message that was never sent over this connection, or that is known to be lost.
const NEVER: u64 = u64::MAX;

/// The sendings of one message. Times are in ticks, because there is one for each endpoint of the cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sendings {
    number: u64,
    last: u32,
    proven: Option<std::num::NonZeroU32>,
}

impl Default for Sendings {
    fn default() -> Self {
        Self {
            number: NEVER,
            last: 0,
            proven: None,
        }
    }
}

impl Sendings {
    pub(super) fn sent(&mut self, number: u64, now: Uptime, confirmed: u64) {
        self.settle(confirmed);
        (self.number, self.last) = (number, clamped(tick(now)));
    }

    /// Takes over what is proven by now.
    fn settle(&mut self, confirmed: u64) {
        if self.number <= confirmed {
            // The very first tick counts as the second, which is the price of four bytes saved.
            self.proven = std::num::NonZeroU32::new(self.last.max(1));
        }
    }
}

// === impl Schedule ===

impl Schedule {
    /// When the first of the endpoints that routers have would be pruned. TLS endpoints never are.
    pub fn lapses_at(&mut self) -> Option<Uptime> {
        let confirmed = self.confirmed;
        let plain = self.messages.values_mut().filter(|message| !message.tls);
        let proven = plain.filter_map(|message| {
            message.sendings.settle(confirmed);
            message.sendings.proven
        });
        let first = proven.min()?;
        Some(TICK * first.get() + PRUNE_AFTER)
    }

    /// The routes that a message was the first to carry, while nobody has confirmed it.
    pub fn announced_by(&self, number: u64) -> impl Iterator<Item = &crate::route::Uri> {
        let last = self.unconfirmed.iter().rev();
        last.take_while(move |(sent, _)| *sent == number)
            .map(|(_, uri)| &**uri)
    }

    /// What was on its way and is not proven never arrives.
    pub(super) fn lose_unproven(&mut self) {
        for message in self.messages.values_mut() {
            message.sendings.settle(self.confirmed);
            message.sendings.number = NEVER;
        }
    }

    /// A message was not sent after all.
    pub(super) fn lose(&mut self, number: u64) {
        let sendings = self.messages.values_mut().map(|it| &mut it.sendings);
        for sendings in sendings.filter(|it| it.number == number) {
            sendings.number = NEVER;
        }
    }
}
