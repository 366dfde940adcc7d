//! The largest cluster there is for us, 2,768 Services (every node port) on 100 nodes, against the sandbox: how
//! soon every route is announced after a start, and what the process costs once nothing changes.

#![expect(clippy::disallowed_methods, reason = "who measures time reads a clock")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use benchmarks::foundation::{Foundation, Size, play_router};
use benchmarks::process::{cpu_seconds, memory_kib};
use benchmarks::{Value, expect, tell};
use futures::StreamExt;
use sandbox::nats::{Nats, NatsOptions};
use serde::Deserialize;
use serde_json::json;
use suite::Controller;

/// Kubernetes allocates node ports from 30000 to 32767, one for each Service.
const SERVICES: u16 = 2_768;
const NODES: u8 = 100;

const ANNOUNCED_EXPECTED: Duration = Duration::from_secs(3);
const MEMORY_EXPECTED_KIB: u64 = 45 * 1024;
const CPU_EXPECTED_PERCENT: f64 = 2.0;
/// Something is broken, not slow.
const GIVE_UP: Duration = Duration::from_secs(60);
/// The rest of the backends has been announced by then, and every beat has come once.
const SETTLE: Duration = Duration::from_secs(30);
const STEADY: Duration = Duration::from_secs(60);

/// What is read of a registration.
#[derive(Deserialize)]
struct Register {
    uris: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let nats = Nats::start(NatsOptions::default()).await?;
    let server = nats.addr().to_string();
    let size = Size {
        services: SERVICES,
        nodes: NODES,
    };
    let foundation = Foundation::start(size, json!({"servers": [{"host": server}]})).await?;
    let client = async_nats::connect(server).await?;
    play_router(client.clone()).await?;
    let mut registrations = client.subscribe("router.register").await?;
    client.flush().await?;

    let began = Instant::now();
    let controller = Controller::start(foundation.settings).await?;
    let all = async {
        let mut announced = BTreeSet::new();
        while announced.len() < usize::from(SERVICES) {
            let message = registrations
                .next()
                .await
                .context("the subscription ended")?;
            announced.extend(serde_json::from_slice::<Register>(&message.payload)?.uris);
        }
        anyhow::Ok(began.elapsed())
    };
    let announced = tokio::time::timeout(GIVE_UP, all)
        .await
        .context("not all were announced")??;
    registrations.unsubscribe().await?;
    let what = "start → every route's first backend announced";
    expect(
        what,
        Value::Time(announced),
        Value::Time(ANNOUNCED_EXPECTED),
    );

    tokio::time::sleep(SETTLE).await;
    let pid = controller.pid();
    let (before, began) = (cpu_seconds(pid)?, Instant::now());
    let beats = controller.metric("route_sync_nats_beats_total", "").await;
    tokio::time::sleep(STEADY).await;
    let percent = (cpu_seconds(pid)? - before) / began.elapsed().as_secs_f64() * 100.0;
    let beats = controller.metric("route_sync_nats_beats_total", "").await - beats;
    eprintln!("{beats} beats in {STEADY:?}");
    let expected = Value::Memory(MEMORY_EXPECTED_KIB);
    expect(
        "resident memory, steady (VmRSS)",
        Value::Memory(memory_kib(pid, "VmRSS")?),
        expected,
    );
    tell(
        "resident memory, highest (VmHWM)",
        Value::Memory(memory_kib(pid, "VmHWM")?),
    );
    let what = "CPU over a minute of steady state, of a core";
    expect(
        what,
        Value::Percent(percent),
        Value::Percent(CPU_EXPECTED_PERCENT),
    );
    ensure!(
        controller.stop().await == 0,
        "the controller did not end well"
    );
    Ok(())
}
