//! The connection to NATS: endless, gated, and proven by echo.
//!
//! Owns what async-nats 0.51 needs around it to be trusted with routes (all measured): it queues publishes while
//! disconnected and replays them later, its `flush` succeeds against a frozen server, its credentials are one
//! for all servers, and it tells why a connection failed in one place only. Knows nothing of routes or messages.
//!
//! Whoever publishes names the *epoch*, the connection it means. A publish for another one is refused here, so
//! that nothing stale can be sent after a reconnect.
//!
//! [`Bus`] is what the lane needs of a connection; [`NatsBus`] is the one to real servers.

mod dial;
mod ears;
mod tls;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::client::{PublishError, PublishErrorKind};
use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt};
use tokio::time::timeout;

use super::wire;
use crate::config::NatsConfig;
use crate::publish::tls::TlsError;

use dial::{Dial, Signals};
use ears::Ears;
pub use ears::Overheard;

/// Detects a dead peer at the third tick, 30 s, well before gorouter prunes at 120 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// For TCP, TLS and the NATS greeting together.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// Messages inside the client at most. They are all that could ever be replayed after a reconnect.
const QUEUE: usize = 64;
/// Messages received and not yet read, for each subscription: greetings and starts of every router of a foundation,
/// and others' registrations between two batches, 4 MB at their usual size.
const HEARD_MAX: usize = 4096;
/// A publish that finds the client's queue full for so long meets a stalled connection.
const PUBLISH_WAIT: Duration = Duration::from_secs(1);
/// How long a flush may take where it has to stand in for the echo.
const FLUSH_WAIT: Duration = Duration::from_secs(2);

/// Why the lane cannot have a connection at all; whatever may pass by itself is not among it.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
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
pub enum SendError {
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
pub enum Heard {
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
    /// Others announced something; [`Bus::overheard`] has it.
    Others,
    /// Another instance of ours, or this one, says that it leads.
    Instance(Bytes),
}

/// One client, connected or trying to be.
pub trait Bus: Send + Sync {
    /// The connection that stands, if one does. No two have the same number.
    fn epoch(&self) -> Option<u64>;

    /// Sends one message over exactly this connection.
    ///
    /// # Errors
    /// When that connection is gone or takes nothing.
    fn publish(
        &self,
        epoch: u64,
        subject: &'static str,
        payload: Bytes,
    ) -> BoxFuture<'_, Result<(), SendError>>;

    /// The same on a subject that only this foundation has. Where there is but one instance nobody asks for it.
    ///
    /// # Errors
    /// As [`Self::publish`].
    fn publish_at(
        &self,
        _epoch: u64,
        _subject: String,
        _payload: Bytes,
    ) -> BoxFuture<'_, Result<(), SendError>> {
        std::future::ready(Ok(())).boxed()
    }

    /// Listens to what other instances say, from now on; heard as [`Heard::Instance`].
    fn hear_instances(&mut self, _subject: String) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }

    /// Whether [`Self::hear_instances`] was asked for on this subject.
    fn hears_instances(&self, _subject: &str) -> bool {
        true
    }

    /// Whether the server said within the time given that we may not use the subject of instances.
    fn instances_denied(&self, _within: Duration) -> bool {
        false
    }

    /// An instance was heard: whatever the server said before, it lets us hear them now.
    fn hears_an_instance(&self) {}

    /// Greets every router; answers are heard as [`Heard::Greeted`].
    ///
    /// # Errors
    /// As [`Self::publish`].
    fn greet(&self, epoch: u64) -> BoxFuture<'_, Result<(), SendError>>;

    /// Sends a message to ourselves. Where we may not hear ourselves, [`Self::may_echo`] says so, and no echo
    /// ever comes.
    ///
    /// # Errors
    /// As [`Self::publish`].
    fn echo(&self, epoch: u64, number: u64) -> BoxFuture<'_, Result<(), SendError>>;

    /// Whether the server lets us hear ourselves.
    fn may_echo(&self) -> bool;

    /// The subject the server said within the time given that we may not publish to: an echo proves nothing then.
    fn denied(&self, within: Duration) -> Option<&'static str>;

    /// Hands all bytes to the operating system. Proves far less than an echo: a frozen server takes them, too.
    ///
    /// # Errors
    /// As [`Self::publish`].
    fn flush(&self, epoch: u64) -> BoxFuture<'_, Result<(), SendError>>;

    /// Waits for what comes in. Safe to drop at any time.
    fn hear(&mut self) -> BoxFuture<'_, Heard>;

    /// The next message of others that is already here.
    fn overheard(&mut self) -> Option<Overheard>;

    /// The subject the server does not let us hear; that of registrations first.
    fn cannot_hear(&self) -> Option<&'static str>;

    /// Asks again for what the server did not let us hear, from time to time.
    fn ask_to_hear(&mut self) -> BoxFuture<'_, ()>;

    /// Messages that came faster than they were read.
    fn dropped(&self) -> u64;

    /// Gives the connection up and makes another; certificates and passwords are read anew.
    fn reconnect(&self) -> BoxFuture<'_, ()>;

    /// Whether the client ended by itself and connects no more.
    fn has_ended(&self) -> bool;

    /// Why there is no connection, or what the server refused last; never a secret.
    fn error(&self) -> Option<String>;

    /// Forgets why there was no connection.
    fn stands(&self);

    /// Failed attempts to connect since the last connection.
    fn failures(&self) -> u32;

    /// Which server we talk to.
    fn server(&self) -> String;
}

/// The client of real servers.
pub(crate) struct NatsBus {
    client: Client,
    statistics: Arc<async_nats::Statistics>,
    inbox: String,
    inbound: Subscriber,
    starts: Subscriber,
    ears: Ears,
    instances: Option<Subscriber>,
    /// The subject that it listens to; another cluster has another.
    heard_on: Option<String>,
    signals: Arc<Signals>,
    ended: bool,
}

// === impl NatsBus ===

impl NatsBus {
    /// Starts to connect and never stops trying.
    ///
    /// # Errors
    /// Only for what no waiting can mend.
    pub(crate) async fn open(config: &NatsConfig) -> Result<Self, BusError> {
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
        let ears = Ears::open(&client).await;
        Ok(Self {
            statistics: client.statistics(),
            inbound: inbound.map_err(failed)?,
            starts: starts.map_err(failed)?,
            ears: ears.map_err(failed)?,
            instances: None,
            heard_on: None,
            client,
            inbox,
            signals,
            ended: false,
        })
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

    async fn next(&mut self) -> Heard {
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
                Some(message) = instance(&mut self.instances) => {
                    Some(Heard::Instance(message.payload))
                }
                // Last, so that no flood of others' keeps anything of ours waiting.
                () = self.ears.ready() => Some(Heard::Others),
            };
            if let Some(heard) = heard {
                return heard;
            }
        }
    }
}

impl Bus for NatsBus {
    fn epoch(&self) -> Option<u64> {
        let connected = self.client.connection_state() == State::Connected;
        connected.then(|| self.statistics.connects.load(Ordering::Relaxed))
    }

    fn publish(
        &self,
        epoch: u64,
        subject: &'static str,
        payload: Bytes,
    ) -> BoxFuture<'_, Result<(), SendError>> {
        let (subject, bytes) = (Subject::from_static(subject), payload.len());
        let publish = self.client.publish(subject, payload);
        self.gated(epoch, bytes, publish).boxed()
    }

    fn publish_at(
        &self,
        epoch: u64,
        subject: String,
        payload: Bytes,
    ) -> BoxFuture<'_, Result<(), SendError>> {
        let bytes = payload.len();
        let publish = self.client.publish(subject, payload);
        self.gated(epoch, bytes, publish).boxed()
    }

    fn hear_instances(&mut self, subject: String) -> BoxFuture<'_, ()> {
        let subscribe = async move {
            let subscribe = self.client.subscribe(subject.clone());
            let subscribed = timeout(PUBLISH_WAIT, subscribe).await;
            self.instances = subscribed.ok().and_then(Result::ok);
            self.heard_on = Some(subject);
        };
        subscribe.boxed()
    }

    fn hears_instances(&self, subject: &str) -> bool {
        self.instances.is_some() && self.heard_on.as_deref() == Some(subject)
    }

    fn instances_denied(&self, within: Duration) -> bool {
        self.signals.instances_denied(within)
    }

    fn hears_an_instance(&self) {
        self.signals.hears_an_instance();
    }

    fn greet(&self, epoch: u64) -> BoxFuture<'_, Result<(), SendError>> {
        let reply = format!("{}.greet", self.inbox);
        let body = Bytes::from_static(wire::GREETING);
        let greet = self.client.publish_with_reply(wire::GREET, reply, body);
        self.gated(epoch, wire::GREETING.len(), greet).boxed()
    }

    fn echo(&self, epoch: u64, number: u64) -> BoxFuture<'_, Result<(), SendError>> {
        let subject = format!("{}.{number}", self.inbox);
        let publish = self.client.publish(subject, Bytes::new());
        self.gated(epoch, 0, publish).boxed()
    }

    fn may_echo(&self) -> bool {
        !self.signals.inbox_denied()
    }

    fn denied(&self, within: Duration) -> Option<&'static str> {
        self.signals.denied(within)
    }

    fn flush(&self, epoch: u64) -> BoxFuture<'_, Result<(), SendError>> {
        let flush = async move {
            match timeout(FLUSH_WAIT, self.client.flush()).await {
                Ok(Ok(())) if self.epoch() == Some(epoch) => Ok(()),
                Ok(_) => Err(SendError::Gone),
                Err(_) => Err(SendError::Stalled),
            }
        };
        flush.boxed()
    }

    fn hear(&mut self) -> BoxFuture<'_, Heard> {
        self.next().boxed()
    }

    fn overheard(&mut self) -> Option<Overheard> {
        let message = self.ears.take()?;
        let subject = if message.withdrawal {
            wire::UNREGISTER
        } else {
            wire::REGISTER
        };
        self.signals.hears(subject);
        Some(message)
    }

    fn cannot_hear(&self) -> Option<&'static str> {
        self.signals.unheard().first().copied()
    }

    fn ask_to_hear(&mut self) -> BoxFuture<'_, ()> {
        let unheard = self.signals.unheard();
        let ask = async move { self.ears.ask_again(&self.client, &unheard).await };
        ask.boxed()
    }

    fn dropped(&self) -> u64 {
        self.signals.dropped()
    }

    fn reconnect(&self) -> BoxFuture<'_, ()> {
        // A client too stalled to take the wish is caught by its own pings.
        let reconnect = async {
            let _ = timeout(PUBLISH_WAIT, self.client.force_reconnect()).await;
        };
        reconnect.boxed()
    }

    fn has_ended(&self) -> bool {
        self.ended
    }

    fn error(&self) -> Option<String> {
        self.signals.error()
    }

    fn stands(&self) {
        self.signals.stands();
    }

    fn failures(&self) -> u32 {
        self.signals.failures()
    }

    fn server(&self) -> String {
        self.signals.server()
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

async fn instance(instances: &mut Option<Subscriber>) -> Option<Message> {
    match instances {
        Some(instances) => instances.next().await,
        None => std::future::pending().await,
    }
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
