//! What others announce on NATS, kept apart from what we say and from what is said to us.
//!
//! A foundation says thousands of registrations a second. They wait in channels of their own, whose overflow is
//! dropped and counted, and are taken out in batches: nothing of ours ever waits for them. Where the server denies
//! the subscription the ears stay open, in case the right is granted.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::client::SubscribeError;
use async_nats::{Client, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::PUBLISH_WAIT;
use crate::publish::http::wire;

/// Between two batches. A stranger is told within this; a wake for each message would cost more than reading it.
const REST: Duration = Duration::from_millis(100);
/// What the server denied is asked for again so often.
const ASK_AGAIN: Duration = Duration::from_mins(1);

/// One message of somebody's.
#[derive(Clone, Debug)]
pub struct Overheard {
    /// An unregistration; else a registration.
    pub withdrawal: bool,
    /// As it was sent.
    pub body: Bytes,
}

pub(super) struct Ears {
    registered: Subscriber,
    withdrawn: Subscriber,
    first: Option<Overheard>,
    rest_until: Instant,
    ask_at: Instant,
}

// === impl Ears ===

impl Ears {
    pub(super) async fn open(client: &Client) -> Result<Self, SubscribeError> {
        let now = Instant::now();
        Ok(Self {
            registered: client.subscribe(wire::REGISTER).await?,
            withdrawn: client.subscribe(wire::UNREGISTER).await?,
            first: None,
            rest_until: now,
            ask_at: now + ASK_AGAIN,
        })
    }

    /// Waits until a batch can be taken. Safe to drop at any time.
    pub(super) async fn ready(&mut self) {
        sleep_until(self.rest_until).await;
        if self.first.is_none() {
            self.first = Some(tokio::select! {
                biased;
                Some(message) = self.withdrawn.next() => withdrawal(message),
                Some(message) = self.registered.next() => registration(message),
                // The client ended; whoever waits for it elsewhere is told.
                else => std::future::pending().await,
            });
        }
    }

    /// The next message that is already here. Withdrawals come first: who withdraws and registers again within one
    /// batch stays known.
    pub(super) fn take(&mut self) -> Option<Overheard> {
        let next = self.first.take();
        let next = next.or_else(|| here(&mut self.withdrawn).map(withdrawal));
        let next = next.or_else(|| here(&mut self.registered).map(registration));
        if next.is_none() {
            self.rest_until = Instant::now() + REST;
        }
        next
    }

    /// Subscribes anew to what was denied, from time to time: the right may have been granted meanwhile.
    pub(super) async fn ask_again(&mut self, client: &Client, denied: &BTreeSet<&'static str>) {
        let now = Instant::now();
        if denied.is_empty() || now < self.ask_at {
            return;
        }
        self.ask_at = now + ASK_AGAIN;
        for (subject, subscriber) in [
            (wire::REGISTER, &mut self.registered),
            (wire::UNREGISTER, &mut self.withdrawn),
        ] {
            if denied.contains(subject)
                && let Ok(Ok(again)) = timeout(PUBLISH_WAIT, client.subscribe(subject)).await
            {
                *subscriber = again;
            }
        }
    }
}

/// Tokio's budget would end a batch after 128 messages, and the next would wait for a whole round of the lane.
fn here(subscriber: &mut Subscriber) -> Option<async_nats::Message> {
    tokio::task::unconstrained(subscriber.next())
        .now_or_never()
        .flatten()
}

fn withdrawal(message: async_nats::Message) -> Overheard {
    Overheard {
        withdrawal: true,
        body: message.payload,
    }
}

fn registration(message: async_nats::Message) -> Overheard {
    Overheard {
        withdrawal: false,
        body: message.payload,
    }
}
