//! One life of the controller: the whole of it, in a runtime of its own whose clock moves only when it is let.
//!
//! To be killed is to lose that runtime with all its tasks at whatever they wait for; to be frozen is to be let run
//! no more for a while, and to find all clocks ahead afterwards.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use route_sync::cli::assemble;
use route_sync::config::{
    Config, HealthConfig, KubernetesConfig, NatsConfig, RoutingApiConfig, Source, Surroundings,
    UaaConfig,
};
use route_sync::kubernetes::{self, Timing};
use route_sync::metrics::Counters;
use route_sync::outside::Outside;
use route_sync::publish::http::{Bus, BusError};
use route_sync::publish::tcp::{self, RoutingApi, TcpCounters};
use route_sync::publish::tls::TlsError;
use route_sync::state;
use route_sync::static_routes::probe::Probe;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::world::disk::{BEGINNING, Mounted};
use crate::world::nats::Connection;
use crate::world::routing::Api;
use crate::world::{Line, World, cluster};
use crate::{Moment, Traits};

/// Lists every minute, so that what only a list can tell is told within a life.
const CONFIG: &str = "
kubernetes: {rescan_interval: 1m}
uaa: {url: https://uaa.test, client_id: route-sync, client_secret: hush}
routing_api: {url: https://api.test}
nats: {servers: [{host: nats.test}]}
routes: {app_domain: apps.test}
admin: {listen: off}
";
const STATE: &str = "state: {dir: /state}\n";
/// What two instances are called.
pub const NAMES: [&str; 2] = ["a", "b"];

pub struct Process {
    runtime: Runtime,
    task: JoinHandle<Result<(), String>>,
    stop: Option<oneshot::Sender<()>>,
    born: Moment,
    since: Instant,
}

/// The ways of one process.
struct Ways(Line);

// === impl Process ===

impl Process {
    pub fn start(
        world: &Arc<Mutex<World>>,
        instance: usize,
        traits: &Traits,
        born: Moment,
        seed: u64,
    ) -> Self {
        let runtime = runtime(seed);
        let entered = runtime.enter();
        let line = Line::new(world.clone(), instance, born);
        let since = Instant::now();
        drop(entered);
        let (stop, stopped) = oneshot::channel();
        let config = config(instance, traits);
        let task = runtime.spawn(async move {
            let outside = Arc::new(Ways(line));
            let controller = assemble(config, outside, Counters::default()).await;
            let controller = controller.map_err(|error| format!("{error:#}"))?;
            // Whoever drops the other end kills us anyhow.
            let asked = async { drop(stopped.await) };
            let ended = controller.tasks.run_until(asked).await;
            ended.map_err(|error| error.to_string())
        });
        Self {
            runtime,
            task,
            stop: Some(stop),
            born,
            since,
        }
    }

    pub fn run_until(&mut self, moment: Moment) {
        let until = self.since + moment.saturating_sub(self.born);
        self.runtime
            .block_on(async { tokio::time::sleep_until(until).await });
    }

    /// Goes on after it was frozen: all of a sudden it is that late.
    pub fn wake_at(&mut self, moment: Moment) {
        let until = self.since + moment.saturating_sub(self.born);
        let advance = async {
            tokio::time::advance(until.saturating_duration_since(Instant::now())).await;
        };
        self.runtime.block_on(advance);
    }

    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// How it ended, if it did.
    pub fn end(&mut self) -> Option<Result<(), String>> {
        let ended = (&mut self.task).now_or_never()?;
        Some(ended.unwrap_or_else(|error| Err(error.to_string())))
    }
}

fn runtime(seed: u64) -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    #[cfg(not(tokio_unstable))]
    let _ = seed;
    builder
        .build()
        .expect("a runtime needs nothing that may be missing")
}

fn config(instance: usize, traits: &Traits) -> Config {
    let surroundings = Surroundings {
        in_pod: true,
        files: false,
    };
    let state = if traits.state { STATE } else { "" };
    let (name, several) = (NAMES[instance], traits.instances > 1);
    let election = format!("leader_election: {{enabled: {several}, identity: {name}}}\n");
    let text = format!("{CONFIG}{state}{election}");
    let mut config = Config::parse(&text, Path::new("simulation"), surroundings)
        .expect("the simulation's configuration must be valid");
    // The journal of TLS backends is kept on a real disk; there are none here.
    if let Source::Cluster(cluster) = &mut config.source
        && let Some(nats) = &mut cluster.nats
    {
        nats.state_dir = None;
    }
    config
}

// === impl Ways ===

impl Outside for Ways {
    fn apiserver(
        &self,
        _config: &KubernetesConfig,
        timing: &Timing,
    ) -> BoxFuture<'static, Result<kubernetes::Client, kubernetes::ConnectError>> {
        let (line, timing) = (self.0.clone(), timing.clone());
        async move { Ok(cluster::client(line, &timing)) }.boxed()
    }

    fn routing_api(
        &self,
        _config: &RoutingApiConfig,
        _uaa: &UaaConfig,
        _counters: &Arc<TcpCounters>,
    ) -> Result<Arc<dyn RoutingApi>, tcp::ConnectError> {
        Ok(Arc::new(Api::new(self.0.clone())))
    }

    fn nats<'a>(
        &'a self,
        _config: &'a NatsConfig,
    ) -> BoxFuture<'a, Result<Box<dyn Bus>, BusError>> {
        async { Ok(Box::new(Connection::open(&self.0)) as Box<dyn Bus>) }.boxed()
    }

    fn health(&self, _config: &HealthConfig) -> Result<Arc<dyn Probe>, TlsError> {
        unreachable!("there are no static routes")
    }

    fn disk(&self, _folder: &Path) -> Arc<dyn state::Disk> {
        Arc::new(Mounted(self.0.clone()))
    }

    fn wall_clock(&self) -> Duration {
        BEGINNING + self.0.own_time()
    }
}
