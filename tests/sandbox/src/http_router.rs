//! gorouter of routing-release 2024-10, as a client of whichever NATS it is given.
//!
//! Owns the table of HTTP routes and the proxying by Host header; refuses to know who registers.
//! `router.start` goes out at the start and after every reconnect, `router.greet` is answered.
//! Not played: HTTP/2, websockets, sticky sessions, route services, `X-CF-App-Instance`.

mod bus;
mod message;
mod proxy;
mod registry;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::listen::Server;
use crate::tls::{self, Identity};
use crate::uaa::random_guid;
use bus::{Bus, Message};
use message::Registration;
use registry::{Lifetimes, Registry};

pub use bus::{NatsClientOptions, NatsClientTls};

/// As many rejected messages are remembered.
const REJECTED_MAX: usize = 4096;
/// Answers to greetings waiting for the socket; one a greeting.
const OUTGOING_MAX: usize = 1024;
/// A refused backend is set aside for this part of the stale threshold (30 s of 120 s).
const SET_ASIDE_PART: u32 = 4;

pub struct HttpRouterOptions {
    pub addr: SocketAddr,
    pub tls: Option<Identity>,
    pub nats: NatsClientOptions,
    /// Told to clients as `minimumRegisterIntervalInSeconds`.
    pub start_response_delay_secs: u64,
    /// Told to clients as `pruneThresholdInSeconds`.
    pub droplet_stale_threshold_secs: u64,
    pub prune_interval: Duration,
    pub suspend_pruning_if_nats_unavailable: bool,
    /// How long an empty pool answers 503 before a prune tick makes it 404. At zero (the job's
    /// default) the last unregister makes it 404 at once.
    pub empty_pool_timeout: Duration,
    /// gorouter listens only after its start response delay; the box does not wait for nothing.
    pub listen_delay: Duration,
    /// Trusted for TLS backends (PEM).
    pub backend_ca_pem: Option<String>,
    /// Shown to TLS backends that ask for a client certificate.
    pub backend_identity: Option<Identity>,
}

pub struct HttpRouter {
    options: HttpRouterOptions,
    state: Arc<State>,
    addr: SocketAddr,
    running: tokio::sync::Mutex<Option<Running>>,
}

/// A message gorouter would have logged as `validation-error`.
#[derive(Clone, Debug)]
pub struct Rejected {
    pub subject: String,
    pub payload: Bytes,
    pub reason: String,
}

struct Running {
    server: Server,
    /// Dropping it ends the bus, the reading of messages and the pruning.
    tasks: JoinSet<()>,
}

struct State {
    registry: Mutex<Registry>,
    lifetimes: Lifetimes,
    rejected: Mutex<VecDeque<Rejected>>,
    dropped: Arc<AtomicU64>,
    suspend_pruning: bool,
    pruning_suspended: AtomicBool,
    secure: bool,
    backends: Arc<rustls::ClientConfig>,
    backends_any_name: Arc<rustls::ClientConfig>,
    /// Connections to backends; they end with the router.
    connections: Mutex<JoinSet<()>>,
}

// === impl HttpRouterOptions ===

impl HttpRouterOptions {
    /// Production's intervals, except that nothing waits before listening and that an emptied pool
    /// shows its 503 for a while.
    pub fn new(addr: SocketAddr, nats: NatsClientOptions) -> Self {
        Self {
            addr,
            tls: None,
            nats,
            start_response_delay_secs: 20,
            droplet_stale_threshold_secs: 120,
            prune_interval: Duration::from_secs(30),
            suspend_pruning_if_nats_unavailable: true,
            empty_pool_timeout: Duration::from_secs(5),
            listen_delay: Duration::ZERO,
            backend_ca_pem: None,
            backend_identity: None,
        }
    }
}

// === impl HttpRouter ===

impl HttpRouter {
    /// Fails when NATS is not there, as gorouter exits then.
    pub async fn start(options: HttpRouterOptions) -> anyhow::Result<Self> {
        let ca = options.backend_ca_pem.as_deref();
        let identity = options.backend_identity.as_ref();
        let backends = Arc::new(tls::client_config(ca, identity));
        let backends_any_name = match ca {
            Some(ca) => Arc::new(tls::client_config_any_name(ca, identity)),
            None => backends.clone(),
        };
        let state = Arc::new(State {
            registry: Mutex::default(),
            lifetimes: Lifetimes {
                stale_threshold: Duration::from_secs(options.droplet_stale_threshold_secs),
                empty_pool_timeout: options.empty_pool_timeout,
            },
            rejected: Mutex::default(),
            dropped: Arc::default(),
            suspend_pruning: options.suspend_pruning_if_nats_unavailable,
            pruning_suspended: AtomicBool::new(false),
            secure: options.tls.is_some(),
            backends,
            backends_any_name,
            connections: Mutex::default(),
        });
        let mut router = Self {
            addr: options.addr,
            options,
            state,
            running: tokio::sync::Mutex::default(),
        };
        router.addr = router.run().await?;
        Ok(router)
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self) -> String {
        let scheme = if self.state.secure { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    /// The table as `/routes` shows it.
    pub fn routes(&self) -> Value {
        self.state.registry().to_json()
    }

    /// The latest messages that were not understood, oldest first.
    pub fn rejected(&self) -> Vec<Rejected> {
        let rejected = self.state.rejected.lock();
        let rejected = rejected.expect("lock must not be poisoned");
        rejected.iter().cloned().collect()
    }

    /// Messages lost in a burst, of which nobody else learns.
    pub fn dropped(&self) -> u64 {
        self.state.dropped.load(Ordering::Relaxed)
    }

    /// The table is lost; nobody is told.
    pub async fn stop(&self) {
        if let Some(mut running) = self.running.lock().await.take() {
            running.server.stop().await;
            running.tasks.shutdown().await;
            self.state.registry().clear();
            self.state.connections().abort_all();
        }
    }

    /// With an empty table, on the same address.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        self.run().await.map(drop)
    }

    pub async fn restart(&self) -> anyhow::Result<()> {
        self.stop().await;
        self.start_again().await
    }

    async fn run(&self) -> anyhow::Result<SocketAddr> {
        let mut running = self.running.lock().await;
        if let Some(running) = &*running {
            return Ok(running.server.addr());
        }
        let mut tasks = JoinSet::new();
        let start = self.start_message();
        let (incoming, messages) = mpsc::channel(bus::PENDING_MAX);
        let (answers, outgoing) = mpsc::channel(OUTGOING_MAX);
        let dropped = self.state.dropped.clone();
        let nats = self.options.nats.clone();
        let bus = Arc::new(Bus::new(nats, incoming, dropped, start.clone()));
        let connected = bus.connected.subscribe();
        let conversation = bus.connect(outgoing).await.context("HTTP router: nats")?;
        tasks.spawn(conversation);
        tasks.spawn(self.state.clone().receive(messages, answers, start));
        let period = self.options.prune_interval;
        tasks.spawn(self.state.clone().prune(period, connected));
        tokio::time::sleep(self.options.listen_delay).await;
        let state = self.state.clone();
        let tls = self.options.tls.as_ref();
        let tls = tls.map(|identity| tls::server_config(identity, None));
        let server = Server::http(self.addr, tls, move |request, peer| {
            let state = state.clone();
            async move { proxy::respond(&state, request, peer).await }
        });
        let server = server.await.context("HTTP router")?;
        let addr = server.addr();
        *running = Some(Running { server, tasks });
        Ok(addr)
    }

    fn start_message(&self) -> Bytes {
        let message = json!({
            "id": format!("0-{}", random_guid()),
            "hosts": [self.addr.ip().to_string()],
            "minimumRegisterIntervalInSeconds": self.options.start_response_delay_secs,
            "pruneThresholdInSeconds": self.options.droplet_stale_threshold_secs,
        });
        Bytes::from(message.to_string())
    }
}

// === impl State ===

impl State {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().expect("lock must not be poisoned")
    }

    fn connections(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.connections.lock().expect("lock must not be poisoned")
    }

    fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let mut connections = self.connections();
        while connections.try_join_next().is_some() {}
        connections.spawn(connection);
    }

    fn set_aside_for(&self) -> Duration {
        self.lifetimes.stale_threshold / SET_ASIDE_PART
    }

    async fn receive(
        self: Arc<Self>,
        mut messages: mpsc::Receiver<Message>,
        answers: mpsc::Sender<(String, Bytes)>,
        start: Bytes,
    ) {
        while let Some(message) = messages.recv().await {
            if message.subject == "greet" {
                if let Some(reply) = message.reply {
                    // A router that is behind with its answers leaves one out.
                    let _ = answers.try_send((reply, start.clone()));
                }
                continue;
            }
            self.take(&message);
        }
    }

    /// Everything under `router.*` is decoded first and only then told apart, so that a greeting
    /// with an empty body is a validation error too.
    fn take(&self, message: &Message) {
        let registration = match Registration::parse(&message.payload) {
            Ok(registration) => registration,
            Err(reason) => return self.reject(message, reason),
        };
        let (mut registry, now) = (self.registry(), Instant::now());
        match message.subject.as_str() {
            "router.register" => registry.register(&registration, self.lifetimes, now),
            "router.unregister" => registry.unregister(&registration, self.lifetimes, now),
            _ => {}
        }
    }

    fn reject(&self, message: &Message, reason: String) {
        let mut rejected = self.rejected.lock().expect("lock must not be poisoned");
        if rejected.len() == REJECTED_MAX {
            rejected.pop_front();
        }
        rejected.push_back(Rejected {
            subject: message.subject.clone(),
            payload: message.payload.clone(),
            reason,
        });
    }

    async fn prune(self: Arc<Self>, period: Duration, connected: watch::Receiver<bool>) {
        loop {
            tokio::time::sleep(period).await;
            if self.suspend_pruning && !*connected.borrow() {
                self.pruning_suspended.store(true, Ordering::Relaxed);
                continue;
            }
            let now = Instant::now();
            let mut registry = self.registry();
            if self.pruning_suspended.swap(false, Ordering::Relaxed) {
                registry.freshen(now);
            }
            registry.prune(self.lifetimes, now);
        }
    }
}
