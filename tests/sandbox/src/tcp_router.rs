//! cf-tcp-router of routing-release 2024-10 with its HAProxy.
//!
//! Owns the external TCP ports; believes the routing API in everything. It lists once, then
//! follows the events, lists again every minute. Each event that adds or removes a backend costs
//! one reload, one after the other: a backlog of them is visible.

mod balancer;
mod table;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::routing_api::TcpRoute;
use balancer::Balancer;
use table::Table;

/// One list of 276 800 rows (240 B each) fits, nothing endless does.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// The event stream has no end of its own; a client's total timeout would cut it, and what happens
/// until the next subscription would be missed until the next sync.
const STREAM_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Events read ahead of the reloads, as many as the API itself keeps for a subscriber.
const EVENTS_AHEAD_MAX: usize = 1024;
/// An event is one route of a few hundred bytes.
const EVENT_BYTES_MAX: usize = 64 * 1024;

/// A future of a token.
pub type TokenFuture = Pin<Box<dyn Future<Output = anyhow::Result<String>> + Send>>;

/// Where the bearer tokens come from.
pub enum TokenSource {
    /// UAA's client credentials, asked for with the router's own HTTP client.
    Uaa {
        url: String,
        client_id: String,
        client_secret: String,
    },
    Function(Box<dyn Fn() -> TokenFuture + Send + Sync>),
}

pub struct TcpRouterOptions {
    pub bind_ip: IpAddr,
    pub routing_api_url: String,
    /// Carries the CA, and the client identity for mTLS.
    pub client: reqwest::Client,
    pub token: TokenSource,
    /// What one reload takes (45 ms measured with few ports, 120 ms with a thousand).
    pub reload_cost: Duration,
    pub sync_interval: Duration,
    pub subscription_retry: Duration,
    pub stale_check_interval: Duration,
    pub default_route_expiry: Duration,
    /// Between two attempts at a server that refuses.
    pub connect_retry_pause: Duration,
}

pub struct TcpRouter {
    state: Arc<State>,
    tasks: tokio::sync::Mutex<Option<JoinSet<()>>>,
    balancer: Arc<tokio::sync::Mutex<Option<Balancer>>>,
}

struct State {
    options: TcpRouterOptions,
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
    open_ports: Mutex<Vec<u16>>,
    last_failure: Mutex<Option<String>>,
}

enum Event {
    Upsert(TcpRoute),
    Delete(TcpRoute),
}

/// The one task that touches table and balancer.
struct Follower {
    state: Arc<State>,
    balancer: Arc<tokio::sync::Mutex<Option<Balancer>>>,
    table: Table,
    events: mpsc::Receiver<Event>,
}

// === impl TcpRouterOptions ===

impl TcpRouterOptions {
    /// On 127.0.0.1 with the real intervals.
    pub fn new(routing_api_url: &str, client: reqwest::Client, token: TokenSource) -> Self {
        Self {
            bind_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            routing_api_url: routing_api_url.trim_end_matches('/').to_owned(),
            client,
            token,
            reload_cost: Duration::from_millis(45),
            sync_interval: Duration::from_secs(60),
            subscription_retry: Duration::from_secs(5),
            stale_check_interval: Duration::from_secs(30),
            default_route_expiry: Duration::from_secs(120),
            connect_retry_pause: Duration::from_secs(1),
        }
    }
}

// === impl TcpRouter ===

impl TcpRouter {
    /// Starts at once; a routing API that is not there is asked again.
    pub async fn start(options: TcpRouterOptions) -> anyhow::Result<Self> {
        let router = Self {
            state: Arc::new(State {
                options,
                reloads: AtomicU64::new(0),
                failed_reloads: AtomicU64::new(0),
                open_ports: Mutex::default(),
                last_failure: Mutex::default(),
            }),
            tasks: tokio::sync::Mutex::default(),
            balancer: Arc::default(),
        };
        router.start_again().await?;
        Ok(router)
    }

    /// Reloads that were taken.
    pub fn reloads(&self) -> u64 {
        self.state.reloads.load(Ordering::Relaxed)
    }

    /// Reloads that HAProxy refused: everything went on as before.
    pub fn failed_reloads(&self) -> u64 {
        self.state.failed_reloads.load(Ordering::Relaxed)
    }

    /// What HAProxy said of the latest refused reload.
    pub fn last_failure(&self) -> Option<String> {
        let failure = self.state.last_failure.lock();
        failure.expect("lock must not be poisoned").clone()
    }

    /// The external ports listened on, in order.
    pub fn open_ports(&self) -> Vec<u16> {
        let ports = self.state.open_ports.lock();
        ports.expect("lock must not be poisoned").clone()
    }

    /// Every port closes, every connection ends.
    pub async fn stop(&self) {
        if let Some(mut tasks) = self.tasks.lock().await.take() {
            tasks.shutdown().await;
        }
        if let Some(balancer) = self.balancer.lock().await.take() {
            balancer.stop().await;
        }
        self.state.set_open_ports(Vec::new());
    }

    /// With an empty table, from a new list.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        let mut tasks = self.tasks.lock().await;
        if tasks.is_some() {
            return Ok(());
        }
        let options = &self.state.options;
        let balancer = Balancer::new(options.bind_ip, options.connect_retry_pause);
        *self.balancer.lock().await = Some(balancer);
        let (told, events) = mpsc::channel(EVENTS_AHEAD_MAX);
        let follower = Follower {
            state: self.state.clone(),
            balancer: self.balancer.clone(),
            table: Table::default(),
            events,
        };
        let mut started = JoinSet::new();
        started.spawn(self.state.clone().subscribe(told));
        started.spawn(follower.follow());
        *tasks = Some(started);
        Ok(())
    }

    pub async fn restart(&self) -> anyhow::Result<()> {
        self.stop().await;
        self.start_again().await
    }
}

// === impl Follower ===

impl Follower {
    async fn follow(mut self) {
        let options = &self.state.clone().options;
        let mut sync = tokio::time::interval(options.sync_interval);
        let mut stale = tokio::time::interval(options.stale_check_interval);
        loop {
            tokio::select! {
                // A sync first: it takes the waiting events with it in one reload.
                biased;
                _ = sync.tick() => {
                    // The real one waits for its next sync too; only the first is tried again.
                    if self.sync().await.is_err() && self.state.reloads.load(Ordering::Relaxed) == 0 {
                        sync.reset_after(options.subscription_retry.min(options.sync_interval));
                    }
                }
                _ = stale.tick() => self.table.prune(Instant::now()),
                Some(event) = self.events.recv() => {
                    if self.apply(&event) {
                        self.reload().await;
                    }
                }
            }
        }
    }

    async fn sync(&mut self) -> anyhow::Result<()> {
        let routes = self.state.list().await?;
        let ttl = self.state.options.default_route_expiry;
        let mut changed = self.table.replace(&routes, ttl, Instant::now());
        while let Ok(event) = self.events.try_recv() {
            changed |= self.apply(&event);
        }
        if changed {
            self.reload().await;
        }
        Ok(())
    }

    fn apply(&mut self, event: &Event) -> bool {
        let ttl = self.state.options.default_route_expiry;
        match event {
            Event::Upsert(route) => self.table.upsert(route, ttl, Instant::now()),
            Event::Delete(route) => self.table.delete(route),
        }
    }

    async fn reload(&mut self) {
        tokio::time::sleep(self.state.options.reload_cost).await;
        let config = self.table.config();
        let ports = config.keys().copied().collect();
        let mut balancer = self.balancer.lock().await;
        let Some(balancer) = balancer.as_mut() else {
            return;
        };
        match balancer.reload(config).await {
            Ok(()) => {
                self.state.set_open_ports(ports);
                self.state.reloads.fetch_add(1, Ordering::Relaxed);
            }
            Err(failure) => {
                self.state.failed_reloads.fetch_add(1, Ordering::Relaxed);
                let mut last = self.state.last_failure.lock();
                last.as_mut()
                    .expect("lock must not be poisoned")
                    .replace(failure);
            }
        }
    }
}

// === impl State ===

impl State {
    fn set_open_ports(&self, ports: Vec<u16>) {
        *self.open_ports.lock().expect("lock must not be poisoned") = ports;
    }

    async fn list(&self) -> anyhow::Result<Vec<TcpRoute>> {
        let response = self.get("/routing/v1/tcp_routes", LIST_TIMEOUT).await?;
        let routes: Option<Vec<TcpRoute>> = response.json().await?;
        Ok(routes.unwrap_or_default())
    }

    /// Until the router stops: subscribe, read to the end, wait, again.
    async fn subscribe(self: Arc<Self>, told: mpsc::Sender<Event>) {
        loop {
            // However the stream ended, the answer is another.
            let _ = self.read_events(&told).await;
            tokio::time::sleep(self.options.subscription_retry).await;
        }
    }

    async fn read_events(&self, told: &mpsc::Sender<Event>) -> anyhow::Result<()> {
        let response = self
            .get("/routing/v1/tcp_routes/events", STREAM_TIMEOUT)
            .await?;
        let mut chunks = response.bytes_stream();
        let mut buffer = Vec::new();
        while let Some(chunk) = chunks.next().await {
            buffer.extend_from_slice(&chunk?);
            while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = buffer.drain(..end + 2).collect();
                if let Some(event) = parse_event(&String::from_utf8_lossy(&block)) {
                    told.send(event).await.context("the router stopped")?;
                }
            }
            if buffer.len() > EVENT_BYTES_MAX {
                bail!("an event of more than {EVENT_BYTES_MAX} bytes");
            }
        }
        Ok(())
    }

    async fn get(&self, path: &str, limit: Duration) -> anyhow::Result<reqwest::Response> {
        let token = self.token().await?;
        let url = format!("{}{path}", self.options.routing_api_url);
        let request = self.options.client.get(url).bearer_auth(token);
        Ok(request.timeout(limit).send().await?.error_for_status()?)
    }

    async fn token(&self) -> anyhow::Result<String> {
        let (url, client_id, client_secret) = match &self.options.token {
            TokenSource::Function(token) => return token().await,
            TokenSource::Uaa {
                url,
                client_id,
                client_secret,
            } => (url, client_id, client_secret),
        };
        let form = crate::uaa::encode_form(&[
            ("grant_type", "client_credentials"),
            ("client_id", client_id),
            ("client_secret", client_secret),
        ]);
        let request = self
            .options
            .client
            .post(format!("{url}/oauth/token"))
            .header("content-type", "application/x-www-form-urlencoded")
            .timeout(LIST_TIMEOUT)
            .body(form);
        let answer: Value = request.send().await?.error_for_status()?.json().await?;
        let token = answer["access_token"].as_str();
        token.map(str::to_owned).context("uaa: no token")
    }
}

fn parse_event(block: &str) -> Option<Event> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
    let route = serde_json::from_str(field("data: ")?).ok()?;
    match field("event: ")? {
        "Upsert" => Some(Event::Upsert(route)),
        "Delete" => Some(Event::Delete(route)),
        _ => None,
    }
}
