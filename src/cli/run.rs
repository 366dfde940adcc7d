//! `run`: the one place that wires the parts together and supervises them.
//!
//! [`assemble`] is all of a controller but the process around it: it takes the ways out as they are handed in.
//!
//! Nothing a remote does ends the process. SIGTERM and SIGINT stop it and keep every route: the routers' own
//! TTLs bridge a restart. A second signal aborts.

mod derive;
mod drain;
mod reload;
mod tell;

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

pub(super) use derive::Others;

use self::derive::Inherited;
use self::drain::Gate;
use self::reload::{Parts, Reload};
use super::runtime;
use super::wires::{self, Wiring};
use crate::admin;
use crate::config::{ClusterConfig, Config, Source};
use crate::desired::Memory;
use crate::lifecycle::{Clock, Tasks};
use crate::metrics::{Counter, Counters, Metrics};
use crate::outside::{Network, Outside};
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
    let parts = Parts::new(&config);
    // Exhaustive, so that a key nobody wires does not compile.
    let Config {
        source,
        // The lanes follow what these become.
        uaa: _,
        routing_api,
        admin,
        log: _,
        state_dir,
        state_max_age,
        warnings: _,
        unknown_keys: _,
    } = config;
    let Source::Cluster(cluster) = source else {
        anyhow::bail!("`static_routes` cannot be run yet");
    };
    let ClusterConfig {
        kubernetes,
        nats: _,
        routes,
        leader_election,
    } = *cluster;
    let clock = Clock::start();
    let mut tasks = Tasks::default();
    let stop = tasks.stop_token();

    let place = state_dir.map(|dir| Place {
        dir,
        max_age: state_max_age,
    });
    let domain = &routes.app_domain;
    let state = wires::state(&*outside, place, &kubernetes, domain, routing_api.as_ref()).await;
    let (gate, drains, mut draining) = Gate::open(state.as_ref());
    let leading = wires::lease(
        outside.clone(),
        leader_election,
        &kubernetes,
        state.as_ref(),
        draining.asked.clone(),
        clock,
        &mut tasks,
    );
    let others = wires::node_ports(outside.clone(), kubernetes.clone(), &mut tasks);
    let (snapshot, sources) = wires::watch(
        outside.clone(),
        kubernetes,
        clock,
        &mut counters,
        &mut tasks,
    );
    let (desired_tx, desired) = watch::channel(None);
    let (approvals_tx, approvals) = mpsc::channel(admin::APPROVALS_MAX);
    let deriving = derive::run(
        snapshot.clone(),
        parts.options.as_ref().context("no cluster")?.follower(),
        known_holders(state.as_ref()),
        clock,
        desired_tx,
        derive::Told {
            approvals,
            others,
            propagation: counters.propagation(),
            gate,
            shared: leading.shared,
            inherited: state.as_ref().map(Inherited::of),
        },
        stop.clone(),
    );
    tasks.spawn("derive", deriving);
    let wiring = Wiring {
        outside,
        state: state.as_ref(),
        roles: leading.roles,
        instances: leading.instances,
        desired: desired.clone(),
        clock,
        counters: &mut counters,
        tasks: &mut tasks,
    };
    let lanes = lanes(&parts, wiring)?;
    let mut status = Status::new(clock, sources, snapshot, desired.clone(), lanes);
    status = status.with_config(parts.findings());
    if let Some(Opened { keeper, .. }) = state {
        status = status.with_state(keeper.findings());
        draining.on_record = Some(keeper.drained());
        tasks.spawn("state", keeper.run(desired, clock, stop.clone()));
    }
    status = status.with_drain(draining);
    if let Some(lease) = leading.report {
        status = status.with_lease(lease);
    }
    tasks.spawn("tell", tell::run(status.clone(), stop));
    if let Some(address) = admin {
        let words = admin::Words {
            approvals: approvals_tx,
            drains,
        };
        listen(address, &status, counters, words, &mut tasks);
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

fn listen(
    address: SocketAddr,
    status: &Status,
    counters: Counters,
    words: admin::Words,
    tasks: &mut Tasks,
) {
    let metrics = Arc::new(Metrics::new(status.clone(), counters));
    let stop = tasks.stop_token();
    let listening = admin::run(address, status.clone(), metrics, words, stop);
    tasks.spawn("admin", listening);
}

/// Who held which name when the last process ended.
fn known_holders(state: Option<&Opened>) -> Memory {
    let known = state.and_then(|state| state.warm.holders.as_ref());
    known.map_or_else(Memory::default, |known| Memory::of_holders(&known.table))
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
