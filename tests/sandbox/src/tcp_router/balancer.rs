//! HAProxy as cf-tcp-router runs it: one port, one set of servers, round robin, no health checks.
//!
//! Owns the external ports. A configuration is taken as a whole or not at all; connections that
//! are established outlive every reload and the deletion of their own route.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::listen;

/// HAProxy's `retries`: a refused connect is tried again this often, on the same server.
const RETRIES: u32 = 3;
/// `timeout connect` of the tcp-router's HAProxy configuration.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// One `server` line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) ip: String,
    pub(super) port: u16,
    pub(super) tls_port: i64,
}

/// The whole of a configuration: external port to servers.
pub(super) type Config = BTreeMap<u16, Vec<Target>>;

pub(super) struct Balancer {
    bind_ip: IpAddr,
    /// Between two attempts at a refused server (1 s in HAProxy).
    retry_pause: Duration,
    fronts: BTreeMap<u16, Front>,
    connections: Arc<Mutex<JoinSet<()>>>,
}

struct Front {
    targets: Arc<RwLock<Vec<Target>>>,
    /// The accept loop alone; the port is free once it is gone.
    task: JoinSet<()>,
}

// === impl Balancer ===

impl Balancer {
    pub(super) fn new(bind_ip: IpAddr, retry_pause: Duration) -> Self {
        Self {
            bind_ip,
            retry_pause,
            fronts: BTreeMap::new(),
            connections: Arc::default(),
        }
    }

    /// The error is HAProxy's; the old configuration goes on then.
    pub(super) async fn reload(&mut self, config: Config) -> Result<(), String> {
        check(&config)?;
        let mut opened = Vec::new();
        for port in config.keys().filter(|port| !self.fronts.contains_key(port)) {
            let addr = SocketAddr::new(self.bind_ip, *port);
            match listen::bind_once(addr) {
                Ok(listener) => opened.push((*port, listener)),
                Err(error) => return Err(format!("cannot bind socket [{addr}]: {error}")),
            }
        }
        let closed = self.fronts.keys().filter(|port| !config.contains_key(port));
        for port in closed.copied().collect::<Vec<_>>() {
            if let Some(mut front) = self.fronts.remove(&port) {
                front.task.shutdown().await;
            }
        }
        for (port, listener) in opened {
            let front = self.open(listener);
            self.fronts.insert(port, front);
        }
        for (port, targets) in config {
            if let Some(front) = self.fronts.get(&port) {
                *front.targets.write().expect("lock must not be poisoned") = targets;
            }
        }
        Ok(())
    }

    fn open(&self, listener: TcpListener) -> Front {
        let targets: Arc<RwLock<Vec<Target>>> = Arc::default();
        let mut task = JoinSet::new();
        task.spawn(accept(
            listener,
            targets.clone(),
            self.connections.clone(),
            self.retry_pause,
        ));
        Front { targets, task }
    }

    pub(super) async fn stop(mut self) {
        for front in self.fronts.values_mut() {
            front.task.shutdown().await;
        }
        let connections = self.connections.lock();
        connections.expect("lock must not be poisoned").abort_all();
    }
}

/// Two servers of one name are fatal: rows with TLS port 0 and -1 have the same. So is a name for
/// an address: a box has no name service.
fn check(config: &Config) -> Result<(), String> {
    for (front, targets) in config {
        for (at, target) in targets.iter().enumerate() {
            if target.ip.parse::<IpAddr>().is_err() {
                let ip = &target.ip;
                return Err(format!(
                    "'server server_{ip}_{}' : could not resolve address '{ip}'.",
                    target.port
                ));
            }
            let same = |other: &&Target| other.ip == target.ip && other.port == target.port;
            if targets[..at].iter().any(|other| same(&other)) {
                let name = format!("server_{}_{}", target.ip, target.port);
                return Err(format!(
                    "backend backend_{front}: another server named '{name}' was already defined"
                ));
            }
        }
    }
    Ok(())
}

async fn accept(
    listener: TcpListener,
    targets: Arc<RwLock<Vec<Target>>>,
    connections: Arc<Mutex<JoinSet<()>>>,
    retry_pause: Duration,
) {
    let turn = AtomicUsize::new(0);
    loop {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let target = {
            let targets = targets.read().expect("lock must not be poisoned");
            let turn = turn.fetch_add(1, Ordering::Relaxed);
            match targets.len() {
                0 => continue,
                count => targets[turn % count].clone(),
            }
        };
        let mut connections = connections.lock().expect("lock must not be poisoned");
        while connections.try_join_next().is_some() {}
        connections.spawn(carry(client, target, retry_pause));
    }
}

/// A server that refuses to the end costs its client an EOF; no other server is tried.
async fn carry(mut client: TcpStream, target: Target, retry_pause: Duration) {
    for attempt in 0..=RETRIES {
        let dial = TcpStream::connect((target.ip.as_str(), target.port));
        if let Ok(Ok(mut server)) = tokio::time::timeout(CONNECT_TIMEOUT, dial).await {
            let _ = client.set_nodelay(true);
            let _ = server.set_nodelay(true);
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            return;
        }
        if attempt < RETRIES {
            tokio::time::sleep(retry_pause).await;
        }
    }
}
