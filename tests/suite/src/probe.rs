//! What a client sees: one request, or a loop of them that remembers every failure.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::poll;

/// A client would have given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// A router answers sooner, and a busy machine holds up a request or two of a loop.
const SOON: Duration = Duration::from_secs(5);
const LATE_MAX: u32 = 3;
/// Between two requests of a loop.
const PAUSE: Duration = Duration::from_millis(25);

/// Status and body of one request by Host header; status 0 when nothing answered.
pub async fn http_get(router: SocketAddr, host: &str, path: &str) -> (u16, String) {
    let ask = async {
        let mut stream = TcpStream::connect(router).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = match timeout(PATIENCE, ask).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return (0, error.to_string()),
        Err(_) => return (0, "no answer in time".to_owned()),
    };
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

/// The status alone.
pub async fn http_status(router: SocketAddr, host: &str) -> u16 {
    http_get(router, host, "/").await.0
}

/// The first line that a TCP service sends; `None` when the port is closed or says nothing.
pub async fn tcp_line(address: SocketAddr) -> Option<String> {
    let ask = async {
        let stream = TcpStream::connect(address).await.ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await.ok()?;
        let line = line.trim_end();
        (!line.is_empty()).then(|| line.to_owned())
    };
    timeout(PATIENCE, ask).await.ok().flatten()
}

/// Waits until a host answers with one of the statuses.
#[track_caller]
pub fn answers<'a>(
    router: SocketAddr,
    host: &'a str,
    statuses: &'a [u16],
) -> impl Future<Output = ()> + 'a {
    let place = std::panic::Location::caller();
    async move {
        let what = format!("{place}: {host} answers {statuses:?}");
        poll::eventually(&what, async || {
            statuses.contains(&http_status(router, host).await)
        })
        .await;
    }
}

/// Waits until a port sends a line; returns it.
#[track_caller]
pub fn opens(address: SocketAddr) -> impl Future<Output = String> {
    let place = std::panic::Location::caller();
    async move {
        let mut line = None;
        poll::eventually(&format!("{place}: {address} opens"), async || {
            line = tcp_line(address).await;
            line.is_some()
        })
        .await;
        line.expect("a line that was waited for must be there")
    }
}

/// The addresses behind one host in an HTTP router's table.
pub fn backends(routes: &Value, host: &str) -> BTreeSet<String> {
    let endpoints = routes[host].as_array().into_iter().flatten();
    endpoints
        .filter_map(|endpoint| Some(endpoint["address"].as_str()?.to_owned()))
        .collect()
}

struct Seen {
    began: Instant,
    requests: u64,
    /// Answers that took longer than [`SOON`].
    late: u32,
    failures: Vec<String>,
    /// When the last answer came; before the first, the beginning.
    answered: Instant,
    /// The longest time between two answers.
    silent: Duration,
}

impl Seen {
    fn begin() -> Arc<Mutex<Self>> {
        let now = Instant::now();
        Arc::new(Mutex::new(Self {
            began: now,
            requests: 0,
            late: 0,
            failures: Vec::new(),
            answered: now,
            silent: Duration::ZERO,
        }))
    }
}

/// Requests one host without end.
pub struct HttpLoop {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// Connects to one port without end.
pub struct TcpLoop {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// Notes what became of one request; one answer too many that is late is a failure.
fn note(seen: &Mutex<Seen>, asked: Instant, failure: Option<String>) {
    let took = asked.elapsed();
    let mut seen = seen.lock().expect("a loop's record must not be poisoned");
    seen.requests += 1;
    if failure.is_none() {
        seen.silent = seen.silent.max(seen.answered.elapsed());
        seen.answered = Instant::now();
    }
    seen.late += u32::from(took > SOON);
    let late = (took > SOON && seen.late > LATE_MAX).then(|| format!("late once more: {took:?}"));
    let at = seen.began.elapsed().as_secs_f64();
    let failure = failure.or(late);
    seen.failures
        .extend(failure.map(|failure| format!("at {at:.2} s {failure}")));
}

#[track_caller]
fn none_failed((requests, failures): (u64, Vec<String>)) {
    assert!(requests > 0, "nothing was requested");
    assert!(
        failures.is_empty(),
        "{} of {requests}: {failures:?}",
        failures.len()
    );
}

/// Requests made and what failed.
fn end(seen: &Mutex<Seen>, task: &JoinHandle<()>) -> (u64, Vec<String>) {
    task.abort();
    let mut seen = seen.lock().expect("a loop's record must not be poisoned");
    (seen.requests, std::mem::take(&mut seen.failures))
}

/// The longest time without an answer, up to now.
fn silent(seen: &Mutex<Seen>, task: &JoinHandle<()>) -> Duration {
    task.abort();
    let seen = seen.lock().expect("a loop's record must not be poisoned");
    seen.silent.max(seen.answered.elapsed())
}

impl HttpLoop {
    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.seen
            .lock()
            .expect("a loop's record must not be poisoned")
            .requests
    }

    /// Begins; the host answers already.
    pub fn start(router: SocketAddr, host: &str) -> Self {
        let (seen, host) = (Seen::begin(), host.to_owned());
        let record = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let asked = Instant::now();
                let (status, body) = http_get(router, &host, "/").await;
                let failure = (status != 200).then(|| format!("{host}: {status} {body}"));
                note(&record, asked, failure);
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { seen, task }
    }

    /// Begins to ask for a page, each time by a connection of its own; it answers already.
    pub fn of_page(client: reqwest::Client, url: String) -> Self {
        let seen = Seen::begin();
        let record = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let asked = Instant::now();
                let request = client
                    .get(&url)
                    .header("connection", "close")
                    .timeout(PATIENCE);
                let answer = request.send().await;
                let answer = answer.and_then(reqwest::Response::error_for_status);
                note(
                    &record,
                    asked,
                    answer.err().map(|error| format!("{error:?}")),
                );
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { seen, task }
    }

    /// Ends; the number of requests, and every failure.
    pub fn end(self) -> (u64, Vec<String>) {
        end(&self.seen, &self.task)
    }

    /// Ends; the longest time without an answer.
    pub fn silent(self) -> Duration {
        silent(&self.seen, &self.task)
    }

    /// Ends; there were requests, and none failed.
    #[track_caller]
    pub fn none_failed(self) {
        none_failed(self.end());
    }
}

impl TcpLoop {
    /// Connections so far.
    pub fn requests(&self) -> u64 {
        self.seen
            .lock()
            .expect("a loop's record must not be poisoned")
            .requests
    }

    /// Begins; the port answers already.
    pub fn start(address: SocketAddr) -> Self {
        let seen = Seen::begin();
        let record = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let asked = Instant::now();
                let answer = tcp_line(address).await;
                let failure = answer.is_none().then(|| format!("{address}: no line"));
                note(&record, asked, failure);
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { seen, task }
    }

    /// Ends; the longest time without an answer.
    pub fn silent(self) -> Duration {
        silent(&self.seen, &self.task)
    }

    /// Ends; there were connections, and none failed.
    #[track_caller]
    pub fn none_failed(self) {
        none_failed(end(&self.seen, &self.task));
    }
}
