//! Other settings for a lane that runs: proven first, then taken.
//!
//! A second connection with the new settings has to stand before the first one is given up, so that a wrong
//! address, password or certificate leaves gorouter hearing of every route; and over it a registration and a withdrawal
//! of nothing have to pass, so that a user without the right to speak does as well.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::Instant;
use tracing::{info, warn};

use super::super::bus::{Bus, BusError, Heard, SendError};
use super::super::wire;
use super::{Files, HttpLane};
use crate::causes::chain;
use crate::config::NatsConfig;
use crate::outside::Outside;
use crate::settings::Follower;

/// A connection that stands is found at the next look.
const LOOK: Duration = Duration::from_millis(50);
/// A connection that has not come to stand by then is told of; the client goes on trying, at its own pace.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long an echo may take; where the server denies us our inbox none ever comes.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// How much later than the echo the client tells of what the server denied before it: a task of its own does.
const DENIAL_WAIT: Duration = Duration::from_millis(200);
/// No echo of the lane's has this number: its own begin at 1.
const ECHO: u64 = 0;

/// What is wanted, and how far it is.
pub(in super::super) struct Follow {
    follower: Follower<NatsConfig>,
    outside: Arc<dyn Outside>,
    used: NatsConfig,
    trial: Option<Trial>,
}

/// Settings that work, and the connection that shows it, where the old one cannot go on.
pub(in super::super) struct Proven {
    config: NatsConfig,
    bus: Option<Box<dyn Bus>>,
}

struct Trial {
    outside: Arc<dyn Outside>,
    config: NatsConfig,
    opening: BoxFuture<'static, Result<Box<dyn Bus>, BusError>>,
    bus: Option<Box<dyn Bus>>,
    /// When it is told why the connection does not stand. It lies here, as whoever waits is dropped again and again.
    tell_at: Instant,
    /// When it is asked next whether we may speak.
    ask_at: Instant,
    /// It was, and this is when no answer means yes.
    asked: Option<(u64, Instant)>,
}

// === impl Follow ===

impl Follow {
    pub(in super::super) fn new(
        mut follower: Follower<NatsConfig>,
        outside: Arc<dyn Outside>,
    ) -> Self {
        Self {
            used: follower.get(),
            outside,
            follower,
            trial: None,
        }
    }

    /// What the lane begins with.
    pub(in super::super) fn used(&self) -> NatsConfig {
        self.used.clone()
    }

    /// Waits for other settings that work. Safe to drop at any time.
    pub(in super::super) async fn proven(&mut self) -> Proven {
        loop {
            let trial = async {
                match &mut self.trial {
                    Some(trial) => trial.step().await,
                    None => pending().await,
                }
            };
            // The newest wish first: what it replaces need not be tried any more.
            tokio::select! {
                biased;
                config = self.follower.changed() => {
                    self.trial = None;
                    if connects_as(&self.used, &config) {
                        return self.take(config, None);
                    }
                    self.trial = Some(Trial::of(self.outside.clone(), config));
                }
                stands = trial => match stands {
                    Ok(()) => {
                        if let Some(Trial { config, bus, .. }) = self.trial.take() {
                            return self.take(config, bus);
                        }
                    }
                    Err(why) => self.refuse(&why),
                }
            }
        }
    }

    fn take(&mut self, config: NatsConfig, bus: Option<Box<dyn Bus>>) -> Proven {
        self.used = config.clone();
        self.follower.in_use();
        Proven { config, bus }
    }

    fn refuse(&self, why: &str) {
        if self.follower.refuse(why) {
            warn!(
                lane = "http",
                error = why,
                "new settings do not work, the last ones serve"
            );
        }
    }
}

/// Whether one connection serves both.
fn connects_as(one: &NatsConfig, other: &NatsConfig) -> bool {
    one.servers == other.servers && one.tls == other.tls
}

// === impl Trial ===

impl Trial {
    fn of(outside: Arc<dyn Outside>, config: NatsConfig) -> Self {
        let opening = open(outside.clone(), config.clone(), Duration::ZERO);
        Self {
            outside,
            config,
            opening,
            bus: None,
            tell_at: Instant::now() + PATIENCE,
            ask_at: Instant::now(),
            asked: None,
        }
    }

    /// Until the connection stands and lets us speak, or there is something to tell of why it does not.
    async fn step(&mut self) -> Result<(), String> {
        if self.bus.is_none() {
            match (&mut self.opening).await {
                Ok(bus) => self.bus = Some(bus),
                Err(error) => {
                    self.opening = open(self.outside.clone(), self.config.clone(), PATIENCE);
                    return Err(chain(&error));
                }
            }
        }
        let Some(bus) = &mut self.bus else {
            return Ok(());
        };
        if self.asked.is_none() {
            tokio::time::sleep_until(self.ask_at).await;
            let stands = async {
                while bus.epoch().is_none() {
                    tokio::time::sleep(LOOK).await;
                }
            };
            if tokio::time::timeout_at(self.tell_at, stands).await.is_err() {
                self.tell_at = Instant::now() + PATIENCE;
                let error = bus.error();
                if bus.has_ended() {
                    self.opening = open(self.outside.clone(), self.config.clone(), PATIENCE);
                    self.bus = None;
                }
                return Err(
                    error.unwrap_or_else(|| "no connection to NATS comes to stand".to_owned())
                );
            }
            self.ask_at = Instant::now() + PATIENCE;
            let epoch = ask(&**bus).await.map_err(|error| error.to_string())?;
            self.asked = Some((epoch, Instant::now() + ANSWER_WAIT));
        }
        if let Some((epoch, until)) = self.asked {
            let echo = async {
                loop {
                    match bus.hear().await {
                        Heard::Echo(ECHO) => return,
                        // They are ready again at once until they are taken.
                        Heard::Others => while bus.overheard().is_some() {},
                        _ => {}
                    }
                }
            };
            if tokio::time::timeout_at(until, echo).await.is_ok() {
                // What the server denies comes before the echo, but another way.
                self.asked = Some((epoch, until.min(Instant::now() + DENIAL_WAIT)));
                tokio::time::sleep(DENIAL_WAIT).await;
            }
            // Silence proves nothing of a connection that is no more.
            if bus.epoch() != Some(epoch) {
                self.asked = None;
                let error = bus.error();
                return Err(error.unwrap_or_else(|| "the new connection did not last".to_owned()));
            }
        }
        match bus.denied(PATIENCE) {
            None => Ok(()),
            Some(subject) => {
                self.asked = None;
                Err(format!("NATS denies publishing to `{subject}`"))
            }
        }
    }
}

/// Says what is later said of routes, of no route; over which connection.
async fn ask(bus: &dyn Bus) -> Result<u64, SendError> {
    let epoch = bus.epoch().ok_or(SendError::Gone)?;
    for subject in [wire::REGISTER, wire::UNREGISTER] {
        let nothing = Bytes::from_static(wire::NOTHING);
        bus.publish(epoch, subject, nothing).await?;
    }
    bus.echo(epoch, ECHO).await?;
    Ok(epoch)
}

fn open(
    outside: Arc<dyn Outside>,
    config: NatsConfig,
    wait: Duration,
) -> BoxFuture<'static, Result<Box<dyn Bus>, BusError>> {
    Box::pin(async move {
        tokio::time::sleep(wait).await;
        outside.nats(&config).await
    })
}

// === impl HttpLane ===

impl HttpLane {
    /// Goes on with other settings, over their connection where there is one. Everything is said anew over it,
    /// as after any reconnect.
    pub(in super::super) async fn take_over(&mut self, proven: Proven) {
        let Proven { config, bus } = proven;
        info!(
            lane = "http",
            reconnected = bus.is_some(),
            "new settings taken"
        );
        let now = self.clock.now();
        self.schedule.set_pace(config.messages_per_second);
        self.routers.set_default(config.default_interval);
        let joins = self.config.join_foreign != config.join_foreign;
        self.config = config;
        if joins {
            self.announce_recorded();
        }
        let Some(bus) = bus else { return };
        if let (Some(epoch), Some(old)) = (self.epoch.take(), &self.bus) {
            // Else what it still holds would arrive after what the new one says of the same route.
            let _ = old.flush(epoch).await;
            self.schedule.disconnected(now);
            self.routers.disconnected();
        }
        (self.denied, self.leave_at, self.given_up) = (None, None, None);
        self.files = Files::of(&self.config, now);
        self.bus = Some(bus);
    }
}
