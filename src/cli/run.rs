//! `run`: the one place that wires the parts together and supervises them.
//!
//! [`assemble`] is all of a controller but the process around it: it takes the ways out as they are handed in.
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
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

pub(super) use derive::Others;

use self::derive::Inherited;
use super::{runtime, wires};
use crate::admin;
use crate::config::Config;
use crate::desired::Memory;
use crate::lifecycle::{Clock, Tasks};
use crate::metrics::{Counter, Counters, Metrics};
use crate::outside::{Network, Outside};
use crate::state::{Opened, Place};
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
    let signals = Signals::new()?;
    let mut counters = Counters::default();
    counters.add(Counter::LogLinesDropped, move || dropped.count());
    let tasks = assemble(config, Arc::new(Network), counters).await?.tasks;
    until_stopped(tasks, signals).await
}

/// A controller with all its tasks running.
pub struct Controller {
    /// They run until these are dropped, or asked to stop.
    pub tasks: Tasks,
    /// What it tells of itself.
    pub status: Status,
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
    // Exhaustive, so that a key nobody wires does not compile.
    let Config {
        kubernetes,
        uaa,
        routing_api,
        nats,
        routes,
        admin,
        log: _,
        state_dir,
        state_max_age,
        warnings,
        unknown_keys,
    } = config;
    for warning in warnings {
        warn!(target: "route_sync", weakness = warning, "configuration");
    }
    for key in unknown_keys {
        warn!(target: "route_sync", key = %key, "configuration key ignored");
    }
    let clock = Clock::start();
    let mut tasks = Tasks::default();
    let stop = tasks.stop_token();

    let place = state_dir.map(|dir| Place {
        dir,
        max_age: state_max_age,
    });
    let domain = &routes.app_domain;
    let state = wires::state(&*outside, place, &kubernetes, domain, routing_api.as_ref()).await;
    let memory = known_holders(state.as_ref());
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
        routes,
        memory,
        clock,
        desired_tx,
        derive::Told {
            approvals,
            others,
            inherited: state.as_ref().map(Inherited::of),
        },
        stop.clone(),
    );
    tasks.spawn("derive", deriving);
    let mut lanes = Vec::new();
    if let (Some(uaa), Some(api)) = (uaa, routing_api) {
        lanes.push(wires::tcp(
            &*outside,
            (&uaa, api),
            state.as_ref(),
            desired.clone(),
            clock,
            &mut counters,
            &mut tasks,
        )?);
    }
    if let Some(nats) = nats {
        lanes.push(wires::http(
            outside,
            nats,
            state.as_ref(),
            desired.clone(),
            clock,
            &mut counters,
            &mut tasks,
        ));
    }
    let mut status = Status::new(clock, sources, snapshot, desired.clone(), lanes);
    if let Some(Opened { keeper, .. }) = state {
        status = status.with_state(keeper.findings());
        tasks.spawn("state", keeper.run(desired, clock, stop.clone()));
    }
    tasks.spawn("tell", tell::run(status.clone(), stop.clone()));
    if let Some(address) = admin {
        let metrics = Arc::new(Metrics::new(status.clone(), counters));
        let listening = admin::run(address, status.clone(), metrics, approvals_tx, stop);
        tasks.spawn("admin", listening);
    }
    Ok(Controller { tasks, status })
}

/// Who held which name when the last process ended.
fn known_holders(state: Option<&Opened>) -> Memory {
    let known = state.and_then(|state| state.warm.holders.as_ref());
    known.map_or_else(Memory::default, |known| Memory::of_holders(&known.table))
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
