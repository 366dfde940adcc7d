//! From a label to the first answer, and from its end to the first refusal, through the real programs.
//!
//! The clock runs from the moment the change is sent to the apiserver until a client of the router sees it. Every
//! change is made to a Service of its own: one that changes over and over is held as flapping, by design.

#![expect(clippy::disallowed_methods, reason = "who measures time reads a clock")]

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use benchmarks::{Value, expect, not_measured, quantiles};
use counterparts::handed_in;
use serde_json::json;
use suite::{Echo, Foundation, Stage, Web, on_stage, tcp_line};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

/// Changes each way; the first is not counted, because connections are made for it.
const CHANGES: u16 = 51;
/// TCP changes are made with one to three backends, because a port is closed once its last row is; three is the
/// default of `routes.max_tcp_backends`.
const ROWS: u16 = 3;
/// Each row of a TCP change costs the foundation one serial reload of HAProxy (45 ms and more), and single changes
/// are let through at four a second; at this pace none waits for the one before.
const PACE: Duration = Duration::from_millis(300);
/// Between two looks of the client.
const LOOK: Duration = Duration::from_micros(500);
/// Something is broken, not slow.
const GIVE_UP: Duration = Duration::from_secs(30);
const HTTP_EXPECTED: Duration = Duration::from_millis(50);
const TCP_EXPECTED: Duration = Duration::from_millis(120);
const HTTP_NODE_PORTS: u16 = 30_100;
const TCP_NODE_PORTS: u16 = 30_300;

const HTTP: [&str; 2] = ["label → first 200 through gorouter", "unlabel → not 200"];
const TCP: [&str; 2] = ["label → TCP port answers", "unlabel → TCP port closed"];
/// What gorouter says of a host without an endpoint; anything else is no proof of a withdrawal.
const NO_ROUTE: [u16; 2] = [404, 503];

fn main() {
    let absent = |programs: &[&'static str]| {
        programs
            .iter()
            .copied()
            .find(|program| handed_in(program).is_none())
    };
    let (http, tcp) = (
        absent(&["gorouter"]),
        absent(&["routing-api", "cf-tcp-router"]),
    );
    for (figures, program) in [(HTTP, http), (TCP, tcp)] {
        for (figure, program) in figures.iter().zip(program.into_iter().cycle()) {
            not_measured(figure, &format!("{program} was not handed in"));
        }
    }
    if http.is_some() && tcp.is_some() {
        return;
    }
    // Without a real routing API the controller gets the sandbox's; gorouter hears it all the same.
    let stage = if tcp.is_none() {
        Stage::Real
    } else {
        Stage::Sandbox
    };
    on_stage(stage, async |foundation| {
        let measured = measure(foundation, http.is_none(), tcp.is_none()).await;
        measured.expect("every change must be seen");
    });
}

async fn measure(foundation: &mut Foundation, http: bool, tcp: bool) -> Result<()> {
    foundation.nodes(3).await;
    for index in 0..CHANGES {
        foundation
            .cluster
            .service(&http_service(index), HTTP_NODE_PORTS + index)
            .await?;
    }
    for (rows, index) in tcp_indices() {
        let (service, node_port) = (tcp_service(index), TCP_NODE_PORTS + index);
        foundation.cluster.service(&service, node_port).await?;
        let rows = rows.to_string();
        foundation
            .cluster
            .annotate(&service, "max-backends", Some(&rows))
            .await?;
    }
    let on_nodes = |first: u16, count: u16| -> Vec<SocketAddr> {
        let ports = first..first + count;
        ports
            .flat_map(|port| [1, 2, 3].map(|node| SocketAddr::from(([10, 0, 0, node], port))))
            .collect()
    };
    let _web = Web::start(&on_nodes(HTTP_NODE_PORTS, CHANGES), "measured").await?;
    let _echo = Echo::start(&on_nodes(TCP_NODE_PORTS, CHANGES * ROWS), "measured").await?;
    // What the shipped configuration has; debug lines would be measured too.
    let controller = foundation
        .controller_with(|settings| settings.config["log"] = json!({}))
        .await;
    if http {
        let times = http_changes(foundation).await?;
        report(HTTP, "", times, HTTP_EXPECTED);
    }
    if tcp {
        for rows in 1..=ROWS {
            let times = tcp_changes(foundation, rows).await?;
            report(TCP, &format!(", {rows} backend(s)"), times, TCP_EXPECTED);
        }
    }
    controller.stop().await;
    Ok(())
}

fn http_service(index: u16) -> String {
    format!("measured/http-{index}")
}

fn tcp_service(index: u16) -> String {
    format!("measured/tcp-{index}")
}

/// Each TCP Service's number of rows and its index.
fn tcp_indices() -> impl Iterator<Item = (u16, u16)> {
    (1..=ROWS)
        .flat_map(|rows| ((rows - 1) * CHANGES..rows * CHANGES).map(move |index| (rows, index)))
}

/// Times of opening and of closing.
type Times = [Vec<Duration>; 2];

fn report(figures: [&str; 2], with: &str, times: Times, expected: Duration) {
    for (figure, mut times) in figures.into_iter().zip(times) {
        times.remove(0);
        let count = times.len();
        let (median, high) = quantiles(times);
        let figure = |which: &str| format!("{figure}{with}: {which} of {count}");
        expect(
            &figure("median"),
            Value::Time(median),
            Value::Time(expected),
        );
        expect(&figure("p99"), Value::Time(high), Value::Time(expected));
    }
}

async fn http_changes(foundation: &Foundation) -> Result<Times> {
    let label = "http-route-sync";
    let url = format!("http://{}/", foundation.gorouter().address());
    // One that keeps its connection: a look must cost less than the time between two of them.
    let client = counterparts::pki::plain_http_client().build()?;
    let mut times = Times::default();
    for index in 0..CHANGES {
        let (service, host) = (
            http_service(index),
            foundation.host(&format!("measured-{index}")),
        );
        let before = client.get(&url).header("host", &host).send().await?;
        let before = before.status().as_u16();
        ensure!(
            NO_ROUTE.contains(&before),
            "{host} answers {before} before its label"
        );
        for (open, times) in [true, false].into_iter().zip(&mut times) {
            let (client, url, host) = (client.clone(), url.clone(), host.clone());
            let value = format!("measured-{index}");
            let began = Instant::now();
            foundation
                .cluster
                .label(&service, label, open.then_some(&*value))
                .await?;
            let seen = until(began, async move || {
                let answer = client.get(&url).header("host", &host).send().await;
                let Ok(answer) = answer else { return false };
                let status = answer.status().as_u16();
                if open {
                    status == 200
                } else {
                    NO_ROUTE.contains(&status)
                }
            });
            times.push(
                seen.await
                    .with_context(|| format!("{service}, open: {open}"))?,
            );
        }
    }
    Ok(times)
}

async fn tcp_changes(foundation: &mut Foundation, wanted_rows: u16) -> Result<Times> {
    let label = "tcp-route-sync";
    let mut times = Times::default();
    for (_, index) in tcp_indices().filter(|(rows, _)| *rows == wanted_rows) {
        let (service, port) = (tcp_service(index), foundation.port());
        ensure!(
            is_closed(foundation.tcp(port)).await,
            "port {port} is open before its label"
        );
        for (open, times) in [true, false].into_iter().zip(&mut times) {
            let (address, value) = (foundation.tcp(port), port.to_string());
            let began = Instant::now();
            foundation
                .cluster
                .label(&service, label, open.then_some(&*value))
                .await?;
            let seen = until(began, async move || {
                if open {
                    tcp_line(address).await.is_some()
                } else {
                    is_closed(address).await
                }
            });
            times.push(
                seen.await
                    .with_context(|| format!("{service}, open: {open}"))?,
            );
            tokio::time::sleep(PACE.saturating_sub(began.elapsed())).await;
        }
    }
    Ok(times)
}

/// Whether nothing listens. A connection that is cut proves nothing: HAProxy may be reloading.
async fn is_closed(address: SocketAddr) -> bool {
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    TcpStream::connect(address).await.err().is_some_and(refused)
}

/// Looks until the answer is yes. On a thread of its own: the runtime's timers are too coarse for it.
async fn until(
    began: Instant,
    mut ask: impl AsyncFnMut() -> bool + Send + 'static,
) -> Result<Duration> {
    let runtime = Handle::current();
    let looking = tokio::task::spawn_blocking(move || {
        while began.elapsed() < GIVE_UP {
            if runtime.block_on(ask()) {
                return Ok(began.elapsed());
            }
            thread::sleep(LOOK);
        }
        bail!("not within {GIVE_UP:?}")
    });
    looking.await?
}
