//! The controller's HTTP lane, connected to a NATS that takes everything and brings nothing but what others register:
//! whatever is measured is the lane's own, without sockets, TLS and the client's work.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use route_sync::config::{
    HealthConfig, KubernetesConfig, NatsConfig, NatsServer, RoutingApiConfig, UaaConfig,
};
use route_sync::desired::Desired;
use route_sync::kubernetes::{self, Timing};
use route_sync::lifecycle::{Clock, Tasks};
use route_sync::outside::{Network, Outside};
use route_sync::publish::http::{
    Bus, BusError, Heard, HttpCounters, Inheritance, Overheard, SendError, Setup, run_over,
};
use route_sync::publish::tcp::{self, RoutingApi, TcpCounters};
use route_sync::publish::tls::TlsError;
use route_sync::route::Lane;
use route_sync::settings::Follower;
use route_sync::state::Disk;
use route_sync::static_routes::probe::Probe;
use route_sync::status::LaneReport;
use tokio::sync::{Notify, watch};

/// Registrations handed over at once: what comes within the 100 ms between two of the real connection's batches, at
/// 5,000 a second.
const BATCH: usize = 500;

/// A lane that listens.
pub struct Listening {
    line: Arc<Line>,
    counters: Arc<HttpCounters>,
    _desired: watch::Sender<Option<Arc<Desired>>>,
    _tasks: Tasks,
}

/// What lies between the lane and whoever speaks to it.
struct Line {
    said: Mutex<VecDeque<Overheard>>,
    echoes: Mutex<VecDeque<u64>>,
    came: Notify,
    /// The lane has done all that was due and waits.
    waits: AtomicBool,
    taken: Notify,
}

struct Connection(Arc<Line>);

/// Leads to that connection; nothing else is asked for.
struct Ways(Arc<Line>);

// === impl Listening ===

impl Listening {
    /// Returns once the lane has announced that table.
    pub async fn start(desired: Desired) -> Self {
        let line = Arc::new(Line {
            said: Mutex::new(VecDeque::with_capacity(BATCH)),
            echoes: Mutex::default(),
            came: Notify::new(),
            waits: AtomicBool::new(false),
            taken: Notify::new(),
        });
        let (desired, desired_rx) = watch::channel(Some(Arc::new(desired)));
        let (report_tx, mut report) = watch::channel(LaneReport::new(Lane::Http));
        let counters = Arc::new(HttpCounters::default());
        let setup = Setup {
            settings: Follower::from(config()),
            outside: Arc::new(Ways(line.clone())),
            inheritance: Inheritance::default(),
        };
        let mut tasks = Tasks::default();
        let (clock, stop) = (Clock::start(), tasks.stop_token());
        tasks.spawn(
            "http lane",
            run_over(setup, desired_rx, report_tx, clock, counters.clone(), stop),
        );
        let announced = report.wait_for(|report| report.confirmed_once).await;
        announced.expect("the lane must go on");
        Self {
            line,
            counters,
            _desired: desired,
            _tasks: tasks,
        }
    }

    /// Has it hear these registrations, and returns once it has read them all.
    pub async fn hear(&self, bodies: impl IntoIterator<Item = Bytes>) {
        let mut bodies = bodies.into_iter().peekable();
        while bodies.peek().is_some() {
            let batch = bodies.by_ref().take(BATCH).map(|body| Overheard {
                withdrawal: false,
                body,
            });
            lock(&self.line.said).extend(batch);
            self.line.waits.store(false, Ordering::Relaxed);
            self.line.came.notify_one();
            while !self.line.waits.load(Ordering::Relaxed) {
                self.line.taken.notified().await;
            }
        }
    }

    /// Strangers' endpoints that are remembered, each with each of its uris.
    pub fn known(&self) -> u64 {
        self.counters.strangers.load(Ordering::Relaxed)
    }
}

fn config() -> NatsConfig {
    NatsConfig {
        servers: vec![NatsServer {
            host: "nats.test".to_owned(),
            port: 4222,
            login: None,
        }],
        tls: None,
        default_interval: Duration::from_secs(20),
        messages_per_second: 5000,
        send_app: true,
        join_foreign: false,
        state_dir: None,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn done() -> BoxFuture<'static, Result<(), SendError>> {
    ready(Ok(())).boxed()
}

// === impl Connection ===

impl Bus for Connection {
    fn epoch(&self) -> Option<u64> {
        Some(1)
    }

    fn publish(
        &self,
        _epoch: u64,
        _subject: &'static str,
        _payload: Bytes,
    ) -> BoxFuture<'_, Result<(), SendError>> {
        done()
    }

    fn greet(&self, _epoch: u64) -> BoxFuture<'_, Result<(), SendError>> {
        done()
    }

    fn echo(&self, _epoch: u64, number: u64) -> BoxFuture<'_, Result<(), SendError>> {
        lock(&self.0.echoes).push_back(number);
        done()
    }

    fn may_echo(&self) -> bool {
        true
    }

    fn denied(&self, _within: Duration) -> Option<&'static str> {
        None
    }

    fn flush(&self, _epoch: u64) -> BoxFuture<'_, Result<(), SendError>> {
        done()
    }

    fn hear(&mut self) -> BoxFuture<'_, Heard> {
        let hear = async {
            loop {
                if let Some(number) = lock(&self.0.echoes).pop_front() {
                    return Heard::Echo(number);
                }
                if !lock(&self.0.said).is_empty() {
                    return Heard::Others;
                }
                self.0.waits.store(true, Ordering::Relaxed);
                self.0.taken.notify_one();
                self.0.came.notified().await;
            }
        };
        hear.boxed()
    }

    fn overheard(&mut self) -> Option<Overheard> {
        lock(&self.0.said).pop_front()
    }

    fn cannot_hear(&self) -> Option<&'static str> {
        None
    }

    fn ask_to_hear(&mut self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }

    fn dropped(&self) -> u64 {
        0
    }

    fn reconnect(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }

    fn has_ended(&self) -> bool {
        false
    }

    fn error(&self) -> Option<String> {
        None
    }

    fn stands(&self) {}

    fn failures(&self) -> u32 {
        0
    }

    fn server(&self) -> String {
        "nats.test:4222".to_owned()
    }
}

// === impl Ways ===

impl Outside for Ways {
    fn apiserver(
        &self,
        config: &KubernetesConfig,
        timing: &Timing,
    ) -> BoxFuture<'static, Result<kubernetes::Client, kubernetes::ConnectError>> {
        Network.apiserver(config, timing)
    }

    fn routing_api(
        &self,
        config: &RoutingApiConfig,
        uaa: &UaaConfig,
        counters: &Arc<TcpCounters>,
    ) -> Result<Arc<dyn RoutingApi>, tcp::ConnectError> {
        Network.routing_api(config, uaa, counters)
    }

    fn nats<'a>(
        &'a self,
        _config: &'a NatsConfig,
    ) -> BoxFuture<'a, Result<Box<dyn Bus>, BusError>> {
        let connection: Box<dyn Bus> = Box::new(Connection(self.0.clone()));
        ready(Ok(connection)).boxed()
    }

    fn health(&self, config: &HealthConfig) -> Result<Arc<dyn Probe>, TlsError> {
        Network.health(config)
    }

    fn disk(&self, folder: &Path) -> Arc<dyn Disk> {
        Network.disk(folder)
    }

    fn wall_clock(&self) -> Duration {
        Network.wall_clock()
    }
}
