//! `run`: the one place that wires the parts together and supervises them.
//!
//! [`assemble`] is all of a controller but the process around it: it takes the ways out as they are handed in.
//!
//! Nothing a remote does ends the process. SIGTERM and SIGINT stop it and keep every route: the routers' own
//! TTLs bridge a restart. A second signal aborts.

mod derive;
mod drain;
mod fixed;
mod reload;
mod tell;
mod upstream;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

pub(super) use derive::Others;

use self::drain::Gate;
use self::reload::{Parts, Reload};
use self::upstream::Base;
use super::runtime;
use super::wires::{self, Wiring};
use crate::admin;
use crate::config::{Config, Source};
use crate::lifecycle::{Clock, Tasks};
use crate::metrics::{Counter, Counters, Metrics};
use crate::outside::{Network, Outside};
use crate::settings::Settings;
use crate::state::{Opened, Place};
use crate::status::{Drain, LaneReport, Status};
use crate::telemetry::{Dropped, Guard, Level};

/// What still blocks after the tasks ended is not worth waiting for.
const RUNTIME_END_WAIT: Duration = Duration::from_millis(200);

pub(super) fn run(
    config: Config,
    path: &Path,
    log: &Guard,
    level: Level,
) -> anyhow::Result<ExitCode> {
    info!(
        target: "route_sync",
        version = env!("CARGO_PKG_VERSION"),
        config = %path.display(),
        "starting"
    );
    let runtime = runtime()?;
    let ended = runtime.block_on(serve(config, path, log.dropped(), level));
    runtime.shutdown_timeout(RUNTIME_END_WAIT);
    ended
}

async fn serve(
    config: Config,
    path: &Path,
    dropped: Dropped,
    level: Level,
) -> anyhow::Result<ExitCode> {
    let (signals, hangup) = (Signals::new()?, reload::hangup()?);
    let mut counters = Counters::default();
    counters.add(Counter::LogLinesDropped, move || dropped.count());
    let running = config.clone();
    let Controller {
        mut tasks,
        status,
        parts,
    } = assemble(config, Arc::new(Network), counters).await?;
    let reload = Reload::new(path, running, parts, level);
    let stop = tasks.stop_token();
    tasks.spawn("reload", reload.run(hangup, status.clock, stop));
    until_stopped(tasks, signals, &status).await
}

/// A controller with all its tasks running.
pub struct Controller {
    /// They run until these are dropped, or asked to stop.
    pub tasks: Tasks,
    /// What it tells of itself.
    pub status: Status,
    /// What may change while it runs.
    parts: Parts,
}

/// Starts everything that a configuration asks for.
///
/// # Errors
/// Where certificates or addresses cannot be used; never because of a remote.
pub async fn assemble(
    config: Config,
    outside: Arc<dyn Outside>,
    mut counters: Counters,
) -> anyhow::Result<Controller> {
    reload::say_weaknesses(&config);
    let mut parts = Parts::new(&config);
    // Exhaustive, so that a key nobody wires does not compile.
    let Config {
        source,
        // The lanes follow what these become.
        uaa: _,
        routing_api,
        admin,
        metrics: secured,
        log: _,
        state_dir,
        state_max_age,
        warnings: _,
        unknown_keys: _,
    } = config;
    let clock = Clock::start();
    let mut tasks = Tasks::default();
    let stop = tasks.stop_token();

    let place = state_dir.map(|dir| Place {
        dir,
        max_age: state_max_age,
    });
    let state = wires::state(&*outside, place, &source, routing_api.as_ref()).await;
    let (gate, drains, mut draining) = Gate::open(state.as_ref());
    let (desired_tx, desired) = watch::channel(None);
    let (approvals_tx, approvals) = mpsc::channel(admin::APPROVALS_MAX);
    let base = Base {
        outside: outside.clone(),
        state: state.as_ref(),
        gate,
        drained: draining.asked.clone(),
        approvals,
        desired: desired_tx,
        clock,
        counters: &mut counters,
        tasks: &mut tasks,
    };
    let upstream = match source {
        Source::Cluster(cluster) => {
            let options = Settings::new(cluster.routes.clone());
            let upstream = upstream::of_cluster(*cluster, &options, base);
            parts.options = Some(options);
            upstream
        }
        Source::Static(routes) => upstream::of_static_routes(routes, base)?,
    };
    let wiring = Wiring {
        outside,
        state: state.as_ref(),
        roles: upstream.roles,
        instances: upstream.instances,
        desired: desired.clone(),
        clock,
        counters: &mut counters,
        tasks: &mut tasks,
    };
    let lanes = lanes(&parts, wiring)?;
    let mut status = Status::new(clock, upstream.sources, desired.clone(), lanes);
    if let Some(snapshot) = upstream.snapshot {
        status = status.with_snapshot(snapshot);
    }
    status = status.with_config(parts.findings());
    if let Some(Opened { keeper, .. }) = state {
        status = status.with_state(keeper.findings());
        draining.on_record = Some(keeper.drained());
        tasks.spawn("state", keeper.run(desired, clock, stop.clone()));
    }
    status = status.with_drain(draining);
    if let Some(lease) = upstream.lease {
        status = status.with_lease(lease);
    }
    tasks.spawn("tell", tell::run(status.clone(), stop));
    let metrics = Arc::new(Metrics::new(status.clone(), counters));
    if let Some(secured) = secured {
        // An address that is taken is waited for; files that cannot be used are a bad configuration, as any lane's.
        let scrapers = admin::scrapers(secured, metrics.clone(), tasks.stop_token())?;
        tasks.spawn("metrics", scrapers);
    }
    if let Some(address) = admin {
        let words = admin::Words {
            approvals: approvals_tx,
            drains,
        };
        let listening = admin::run(address, status.clone(), metrics, words, tasks.stop_token());
        tasks.spawn("admin", listening);
    }
    Ok(Controller {
        tasks,
        status,
        parts,
    })
}

/// Starts the lanes that are on.
fn lanes(
    parts: &Parts,
    mut wiring: Wiring<'_>,
) -> anyhow::Result<Vec<watch::Receiver<LaneReport>>> {
    let mut lanes = Vec::new();
    if let Some(settings) = &parts.tcp {
        lanes.push(wires::tcp(settings, &mut wiring)?);
    }
    if let Some(settings) = &parts.http {
        lanes.push(wires::http(settings, &mut wiring));
    }
    Ok(lanes)
}

async fn until_stopped(
    tasks: Tasks,
    mut signals: Signals,
    status: &Status,
) -> anyhow::Result<ExitCode> {
    let (stop, stopped) = oneshot::channel();
    let twice = async {
        let first = signals.next().await;
        if status.drain() == Some(Drain::Unregister) {
            info!(target: "route_sync", signal = first, "stopping, routes withdrawn before");
        } else {
            info!(target: "route_sync", signal = first, "stopping, routes kept");
        }
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
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
