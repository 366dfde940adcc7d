//! The nodes' part of the demo: something listens on every node IP and node port.
//!
//! Plays kube-proxy and the pods at once. A Service with a `tcp-route-sync` label gets a backend
//! that sends one line and closes, any other an HTTP server; both say who they are.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// Three nodes on the loopback, away from 127.0.0.1 where the routers listen.
pub const NODES: [(&str, Ipv4Addr); 3] = [
    ("node-1", Ipv4Addr::new(127, 0, 0, 11)),
    ("node-2", Ipv4Addr::new(127, 0, 0, 12)),
    ("node-3", Ipv4Addr::new(127, 0, 0, 13)),
];
const BACKLOG: u32 = 128;
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// An idle keep-alive connection is closed after this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The backends that run; dropping them stops them.
#[derive(Debug, Default)]
pub struct Backends {
    running: BTreeMap<SocketAddr, (Backend, JoinSet<()>)>,
}

#[derive(Clone, Debug, PartialEq)]
struct Backend {
    greeting: String,
    http: bool,
}

// === impl Backends ===

impl Backends {
    /// Starts and stops backends until they are those of `services`. What cannot listen is told.
    pub fn sync(&mut self, services: &[Value]) -> Vec<(SocketAddr, io::Error)> {
        let wanted: BTreeMap<SocketAddr, Backend> = services.iter().flat_map(wanted).collect();
        self.running
            .retain(|addr, (backend, _)| wanted.get(addr) == Some(backend));
        let mut failures = Vec::new();
        for (addr, backend) in wanted {
            if self.running.contains_key(&addr) {
                continue;
            }
            match listen(addr) {
                Ok(listener) => {
                    let mut task = JoinSet::new();
                    task.spawn(accept(listener, backend.clone()));
                    self.running.insert(addr, (backend, task));
                }
                Err(error) => failures.push((addr, error)),
            }
        }
        failures
    }
}

fn wanted(service: &Value) -> Vec<(SocketAddr, Backend)> {
    let metadata = &service["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = format!(
        "{}/{}",
        text(&metadata["namespace"]),
        text(&metadata["name"])
    );
    let http = metadata["labels"]["tcp-route-sync"].is_null();
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let tcp = ports.filter(|port| port["protocol"] == "TCP");
    let numbers = tcp.filter_map(|p| u16::try_from(p["nodePort"].as_u64()?).ok());
    numbers
        .flat_map(|port| NODES.map(|(node, ip)| (node, SocketAddr::from((ip, port)))))
        .map(|(node, addr)| {
            (
                addr,
                Backend {
                    greeting: format!("hello from {of} on {node}\n"),
                    http,
                },
            )
        })
        .collect()
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // A Service that comes back gets its node port back while old connections linger.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, backend: Backend) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve(stream, backend.clone()))),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// An error is a client that went away: nothing is left to do for it.
async fn serve(mut stream: TcpStream, backend: Backend) {
    if !backend.http {
        let _ = stream.write_all(backend.greeting.as_bytes()).await;
        let _ = stream.shutdown().await;
        return;
    }
    let _ = serve_http(&mut stream, &backend.greeting).await;
}

/// One answer per request head; bodies are not expected from a `curl`.
async fn serve_http(stream: &mut TcpStream, greeting: &str) -> io::Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0; 4_096];
    loop {
        let read = tokio::time::timeout(REQUEST_TIMEOUT, stream.read(&mut chunk)).await??;
        request.extend_from_slice(&chunk[..read]);
        if read == 0 || request.len() > REQUEST_BYTES_MAX {
            return Ok(());
        }
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        request.clear();
        let length = greeting.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n\
             {greeting}"
        );
        stream.write_all(answer.as_bytes()).await?;
    }
}
