//! What it costs the controller to hear what a whole foundation registers: 5,000 registrations a second over a real
//! nats-server and mutual TLS, twice an interval of 20 s; in the first nobody is known yet, in the second everybody.

#![expect(clippy::disallowed_methods, reason = "who measures time reads a clock")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use benchmarks::foundation::{Foundation, Size, play_router};
use benchmarks::process::{cpu_seconds, memory_kib};
use benchmarks::registrations::{INTERVAL_SECONDS, registration};
use benchmarks::{Value, expect, tell};
use bytes::Bytes;
use counterparts::{NatsServer, NatsServerOptions, Pki, RunFolder};
use serde_json::json;
use suite::Controller;
use tokio::time::{MissedTickBehavior, interval};

/// What the largest foundations known say, 70,000 routes each 20 s, and some.
const PER_SECOND: u32 = 5_000;
/// As many as that makes in one interval, each with its own address.
const ENDPOINTS: u32 = PER_SECOND * INTERVAL_SECONDS;
/// Between two bursts of the publisher.
const PACE: Duration = Duration::from_millis(10);
const PER_BURST: u32 = PER_SECOND / 100;
const SIZE: Size = Size {
    services: 100,
    nodes: 10,
};
/// What was to be announced has been by then, and the allocator has what it needs.
const SETTLE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_secs(INTERVAL_SECONDS as u64);

const CPU_EXPECTED_PERCENT: f64 = 3.0;
const MEMORY_EXPECTED_KIB: u64 = 20 * 1000 * 1000 / 1024;

#[tokio::main]
async fn main() -> Result<()> {
    let run = RunFolder::new()?;
    let pki = Pki::new(&run)?;
    let nats = NatsServer::start(&run, &pki, NatsServerOptions::default()).await?;
    let options = nats.options();
    let config = json!({
        "servers": [{"host": nats.address().to_string()}],
        "user": options.user, "password": options.password,
        "tls": {
            "ca_file": pki.ca_file(), "cert_file": pki.client_cert_file(),
            "key_file": pki.client_key_file(), "server_name": "nats.service.test",
        },
    });
    let foundation = Foundation::start(SIZE, config).await?;
    let client = nats.connect().await?;
    play_router(client.clone()).await?;
    // Made before anything is measured: the machine is shared with who says them.
    let said: Vec<Bytes> = (0..ENDPOINTS).map(|n| registration(n).into()).collect();
    let bytes: usize = said.iter().map(Bytes::len).sum();
    eprintln!("{} bytes each", bytes / said.len());

    let controller = Controller::start(foundation.settings).await?;
    tokio::time::sleep(SETTLE).await;
    let pid = controller.pid();
    let before = memory_kib(pid, "VmRSS")?;
    let silence = async {
        tokio::time::sleep(INTERVAL).await;
        Ok(())
    };
    let silent = percent(pid, silence).await?;
    let mut heard = Vec::new();
    for _ in 0..2 {
        heard.push(percent(pid, say(&client, &said)).await? - silent);
    }
    let after = memory_kib(pid, "VmHWM")?;
    let metric = async |name: &str| controller.metric(name, "").await;
    let dropped = metric("route_sync_nats_overheard_dropped_total").await;
    let known = metric("route_sync_nats_strangers").await;
    eprintln!("{silent:.2} % before; {known} endpoints known");
    ensure!(dropped == 0.0, "{dropped} registrations were not read");
    ensure!(known >= f64::from(ENDPOINTS), "only {known} are known");

    let what = |who: &str| format!("5,000 registrations a second, {who}: CPU, of a core");
    let expected = Value::Percent(CPU_EXPECTED_PERCENT);
    expect(&what("all unknown"), Value::Percent(heard[0]), expected);
    expect(&what("all known"), Value::Percent(heard[1]), expected);
    expect(
        "100,000 endpoints of others remembered: resident memory, at most",
        Value::Memory(after.saturating_sub(before)),
        Value::Memory(MEMORY_EXPECTED_KIB),
    );
    tell("resident memory before that", Value::Memory(before));
    ensure!(
        controller.stop().await == 0,
        "the controller did not end well"
    );
    Ok(())
}

/// What the process takes of a core while that goes on.
async fn percent(pid: u32, going_on: impl Future<Output = Result<()>>) -> Result<f64> {
    let (before, began) = (cpu_seconds(pid)?, Instant::now());
    going_on.await?;
    Ok((cpu_seconds(pid)? - before) / began.elapsed().as_secs_f64() * 100.0)
}

/// Says everything once, evenly spread over an interval.
async fn say(client: &async_nats::Client, said: &[Bytes]) -> Result<()> {
    let mut pace = interval(PACE);
    // A burst that is late is made up for: the rate is what counts.
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for burst in said.chunks(PER_BURST as usize) {
        pace.tick().await;
        for body in burst {
            client.publish("router.register", body.clone()).await?;
        }
        client.flush().await?;
    }
    Ok(())
}
