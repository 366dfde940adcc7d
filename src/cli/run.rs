//! `run`: the one place that wires the parts together and supervises them.
//!
//! Nothing a remote does ends the process. SIGTERM and SIGINT stop it and keep every route: the routers' own
//! TTLs bridge a restart. A second signal aborts.

mod derive;
mod tell;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};

use super::{runtime, wires};
use crate::admin;
use crate::config::Config;
use crate::lifecycle::{Clock, Tasks};
use crate::metrics::{Counter, Counters, Metrics};
use crate::status::Status;
use crate::telemetry::{Dropped, Guard};

/// What still blocks after the tasks ended is not worth waiting for.
const RUNTIME_END_WAIT: Duration = Duration::from_millis(200);

pub(super) fn run(config: Config, path: &Path, log: &Guard) -> anyhow::Result<ExitCode> {
    info!(
        target: "route_sync",
        version = env!("CARGO_PKG_VERSION"),
        config = %path.display(),
        "starting"
    );
    let runtime = runtime()?;
    let ended = runtime.block_on(serve(config, log.dropped()));
    runtime.shutdown_timeout(RUNTIME_END_WAIT);
    ended
}

async fn serve(config: Config, dropped: Dropped) -> anyhow::Result<ExitCode> {
    // Exhaustive, so that a key nobody wires does not compile.
    let Config {
        kubernetes,
        uaa,
        routing_api,
        nats,
        routes,
        admin,
        log: _,
        state_dir: _,
        warnings,
        unknown_keys,
    } = config;
    for warning in warnings {
        warn!(target: "route_sync", weakness = warning, "configuration");
    }
    for key in unknown_keys {
        warn!(target: "route_sync", key = %key, "configuration key ignored");
    }
    let signals = Signals::new()?;
    let clock = Clock::start();
    let mut tasks = Tasks::default();
    let stop = tasks.stop_token();
    let mut counters = Counters::default();
    counters.add(Counter::LogLinesDropped, move || dropped.count());

    let (snapshot, sources) = wires::watch(kubernetes, clock, &mut counters, &mut tasks);
    let (desired_tx, desired) = watch::channel(None);
    let deriving = derive::run(snapshot.clone(), routes, clock, desired_tx, stop.clone());
    tasks.spawn("derive", deriving);
    let mut lanes = Vec::new();
    if let (Some(uaa), Some(api)) = (uaa, routing_api) {
        lanes.push(wires::tcp(
            &uaa,
            api,
            desired.clone(),
            clock,
            &mut counters,
            &mut tasks,
        )?);
    }
    if let Some(nats) = nats {
        lanes.push(wires::http(
            nats,
            desired.clone(),
            clock,
            &mut counters,
            &mut tasks,
        ));
    }
    let status = Status::new(clock, sources, snapshot, desired, lanes);
    tasks.spawn("tell", tell::run(status.clone(), stop.clone()));
    if let Some(address) = admin {
        let metrics = Arc::new(Metrics::new(status.clone(), counters));
        tasks.spawn("admin", admin::run(address, status, metrics, stop));
    }
    until_stopped(tasks, signals).await
}

async fn until_stopped(tasks: Tasks, mut signals: Signals) -> anyhow::Result<ExitCode> {
    let (stop, stopped) = oneshot::channel();
    let twice = async {
        let first = signals.next().await;
        info!(target: "route_sync", signal = first, "stopping, routes kept");
        // Where nobody listens the tasks have ended already.
        let _ = stop.send(());
        signals.next().await
    };
    // A regular end is preferred when both happen at once.
    tokio::select! {
        biased;
        ended = tasks.run_until(async { drop(stopped.await) }) => match ended {
            Ok(()) => {
                info!(target: "route_sync", "stopped");
                Ok(ExitCode::SUCCESS)
            }
            Err(cause) => {
                error!(target: "route_sync", error = %cause, "failed");
                Err(cause.into())
            }
        },
        second = twice => {
            warn!(target: "route_sync", signal = second, "aborted");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// What asks a process to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
