//! The connection to NATS: endless, gated, and proven by echo.
//!
//! Owns what async-nats 0.51 needs around it to be trusted with routes (all measured): it queues publishes while
//! disconnected and replays them later, its `flush` succeeds against a frozen server, its credentials are one
//! for all servers, and it tells why a connection failed in one place only. Knows nothing of routes or messages.
//!
//! Whoever publishes names the *epoch*, the connection it means. A publish for another one is refused here, so
//! that nothing stale can be sent after a reconnect.

mod dial;
mod tls;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::client::{PublishError, PublishErrorKind};
use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::timeout;

use super::wire;
use crate::config::NatsConfig;
use crate::publish::tls::TlsError;

use dial::{Dial, Signals};

/// Detects a dead peer at the third tick, 30 s, well before gorouter prunes at 120 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// For TCP, TLS and the NATS greeting together.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// Messages inside the client at most. They are all that could ever be replayed after a reconnect.
const QUEUE: usize = 64;
/// Messages received and not yet read: greetings and starts of every router of a foundation.
const HEARD_MAX: usize = 1024;
/// A publish that finds the client's queue full for so long meets a stalled connection.
const PUBLISH_WAIT: Duration = Duration::from_secs(1);
/// How long a flush may take where it has to stand in for the echo.
const FLUSH_WAIT: Duration = Duration::from_secs(2);

/// Why the lane cannot have a connection at all; whatever may pass by itself is not among it.
#[derive(Debug, thiserror::Error)]
pub(super) enum BusError {
    /// No server can be dialled under that name.
    #[error("`{0}` is no address of a NATS server")]
    Address(String),
    /// Certificates or names do not fit together.
    #[error("cannot prepare TLS for NATS")]
    Tls(#[from] TlsError),
    /// The client refuses to be set up.
    #[error("cannot set up the NATS client: {0}")]
    Setup(String),
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SendError {
    /// That connection is no more.
    #[error("the connection to NATS was lost")]
    Gone,
    /// The connection takes nothing any more.
    #[error("the connection to NATS takes nothing any more")]
    Stalled,
    /// The connection stands, but this message will never go over it.
    #[error(
        "a message of {bytes} bytes is larger than NATS takes; hint: raise the server's `max_payload`"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

/// What comes in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A router started; what it told.
    Started(Bytes),
    /// A router answered our greeting.
    Greeted(Bytes),
    /// The server says that no router listens.
    NobodyGreets,
    /// Our own message is back: the server has everything sent before it.
    Echo(u64),
    /// The connection, or what is known of it, changed.
    Changed,
    /// The server is about to stop.
    LameDuck,
}

/// One client, connected or trying to be.
pub(super) struct Bus {
    client: Client,
    statistics: Arc<async_nats::Statistics>,
    inbox: String,
    inbound: Subscriber,
    starts: Subscriber,
    signals: Arc<Signals>,
    ended: bool,
}

// === impl Bus ===

impl Bus {
    /// Starts to connect and never stops trying.
    ///
    /// # Errors
    /// Only for what no waiting can mend.
    pub(super) async fn open(config: &NatsConfig) -> Result<Self, BusError> {
        let dial = Dial::new(&config.servers)?;
        let signals = Arc::new(Signals::new(config.tls.is_some()));
        let options = options(config, &dial, &signals)?;
        let client = options
            .connect(dial.servers())
            .await
            .map_err(|error| BusError::Setup(error.to_string()))?;
        let inbox = client.new_inbox();
        signals.watch_inbox(&inbox);
        let failed = |error: async_nats::SubscribeError| BusError::Setup(error.to_string());
        let inbound = client.subscribe(format!("{inbox}.*")).await;
        let starts = client.subscribe(wire::START).await;
        Ok(Self {
            statistics: client.statistics(),
            inbound: inbound.map_err(failed)?,
            starts: starts.map_err(failed)?,
            client,
            inbox,
            signals,
            ended: false,
        })
    }

    /// The connection that stands, if one does. No two have the same number.
    #[must_use]
    pub(super) fn epoch(&self) -> Option<u64> {
        let connected = self.client.connection_state() == State::Connected;
        connected.then(|| self.statistics.connects.load(Ordering::Relaxed))
    }

    /// Sends one message over exactly this connection.
    ///
    /// # Errors
    /// When that connection is gone or takes nothing.
    pub(super) async fn publish(
        &self,
        epoch: u64,
        subject: &'static str,
        payload: Bytes,
    ) -> Result<(), SendError> {
        let (subject, bytes) = (Subject::from_static(subject), payload.len());
        self.gated(epoch, bytes, self.client.publish(subject, payload))
            .await
    }

    /// Greets every router; answers are heard as [`Heard::Greeted`].
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub(super) async fn greet(&self, epoch: u64) -> Result<(), SendError> {
        let reply = format!("{}.greet", self.inbox);
        let body = Bytes::from_static(wire::GREETING);
        let greet = self.client.publish_with_reply(wire::GREET, reply, body);
        self.gated(epoch, wire::GREETING.len(), greet).await
    }

    /// Sends a message to ourselves. Where we may not hear ourselves, [`Self::may_echo`] says so, and no echo
    /// ever comes.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub(super) async fn echo(&self, epoch: u64, number: u64) -> Result<(), SendError> {
        let subject = format!("{}.{number}", self.inbox);
        self.gated(epoch, 0, self.client.publish(subject, Bytes::new()))
            .await
    }

    /// Whether the server lets us hear ourselves.
    #[must_use]
    pub(super) fn may_echo(&self) -> bool {
        !self.signals.inbox_denied()
    }

    /// The subject the server said within the time given that we may not publish to: an echo proves nothing then.
    #[must_use]
    pub(super) fn denied(&self, within: Duration) -> Option<&'static str> {
        self.signals.denied(within)
    }

    /// Hands all bytes to the operating system. Proves far less than an echo: a frozen server takes them, too.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub(super) async fn flush(&self, epoch: u64) -> Result<(), SendError> {
        match timeout(FLUSH_WAIT, self.client.flush()).await {
            Ok(Ok(())) if self.epoch() == Some(epoch) => Ok(()),
            Ok(_) => Err(SendError::Gone),
            Err(_) => Err(SendError::Stalled),
        }
    }

    /// Waits for what comes in. Safe to drop at any time.
    pub(super) async fn hear(&mut self) -> Heard {
        loop {
            if self.ended {
                // The client ended; it is told once, and the lane opens another.
                std::future::pending::<()>().await;
            }
            let heard = tokio::select! {
                biased;
                message = self.inbound.next() => if let Some(message) = message {
                    from_inbox(&self.inbox, &message)
                } else {
                    self.ended = true;
                    Some(Heard::Changed)
                },
                Some(message) = self.starts.next() => Some(Heard::Started(message.payload)),
                heard = self.signals.changed() => Some(heard),
            };
            if let Some(heard) = heard {
                return heard;
            }
        }
    }

    /// Gives the connection up and makes another; certificates and passwords are read anew.
    pub(super) async fn reconnect(&self) {
        // A client too stalled to take the wish is caught by its own pings.
        let _ = timeout(PUBLISH_WAIT, self.client.force_reconnect()).await;
    }

    /// Whether the client ended by itself and connects no more.
    #[must_use]
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Why there is no connection, or what the server refused last; never a secret.
    #[must_use]
    pub(super) fn error(&self) -> Option<String> {
        self.signals.error()
    }

    /// Forgets why there was no connection.
    pub(super) fn stands(&self) {
        self.signals.stands();
    }

    /// Failed attempts to connect since the last connection.
    #[must_use]
    pub(super) fn failures(&self) -> u32 {
        self.signals.failures()
    }

    /// Which server we talk to.
    #[must_use]
    pub(super) fn server(&self) -> String {
        self.signals.server()
    }

    /// A send that belongs to one connection and never waits for another.
    async fn gated(
        &self,
        epoch: u64,
        bytes: usize,
        send: impl Future<Output = Result<(), PublishError>>,
    ) -> Result<(), SendError> {
        if self.epoch() != Some(epoch) {
            return Err(SendError::Gone);
        }
        match timeout(PUBLISH_WAIT, send).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                Err(SendError::TooLarge { bytes })
            }
            // Dropping the send takes the message back: it was not queued.
            Err(_) if self.epoch() == Some(epoch) => Err(SendError::Stalled),
            Ok(Err(_)) | Err(_) => Err(SendError::Gone),
        }
    }
}

fn options(
    config: &NatsConfig,
    dial: &Arc<Dial>,
    signals: &Arc<Signals>,
) -> Result<ConnectOptions, BusError> {
    let login = dial.clone();
    // A callback, because options hold one login for all servers and URLs' logins are ignored.
    let options = ConnectOptions::with_auth_callback(move |_nonce| {
        let auth = login.auth();
        async move { Ok(auth) }
    });
    let (dial, pool_signals, event_signals) = (dial.clone(), signals.clone(), signals.clone());
    let options = options
        .name("route-sync")
        .ping_interval(PING_INTERVAL)
        .connection_timeout(CONNECT_WAIT)
        .client_capacity(QUEUE)
        .subscription_capacity(HEARD_MAX)
        .ignore_discovered_servers()
        .retry_on_initial_connect()
        // Our subjects are constants and our own inbox.
        .skip_subject_validation(true)
        .reconnect_to_server_callback(move |pool, _info| {
            let next = dial.next(&pool, &pool_signals);
            async move { Some(next) }
        })
        .event_callback(move |event: Event| {
            event_signals.take(event);
            async {}
        });
    Ok(match &config.tls {
        Some(tls) => tls::apply(options, tls)?,
        None => options,
    })
}

fn from_inbox(inbox: &str, message: &Message) -> Option<Heard> {
    let token = message.subject.strip_prefix(inbox)?.strip_prefix('.')?;
    if token == "greet" {
        let nobody = message.status == Some(StatusCode::NO_RESPONDERS);
        return Some(if nobody {
            Heard::NobodyGreets
        } else {
            Heard::Greeted(message.payload.clone())
        });
    }
    token.parse().ok().map(Heard::Echo)
}
