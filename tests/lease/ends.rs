//! A task that dies ends the process with its name, so that no part falls silent while the rest looks healthy.

use axum::body::Body;
use axum::http;
use futures::FutureExt as _;
use route_sync::cli::assemble;
use route_sync::config::{Config, HealthConfig, Surroundings};
use route_sync::metrics::Counters;
use route_sync::plan::admission::RouterGroup;
use route_sync::plan::{InstanceId, Observed, TcpRow};
use route_sync::publish::tcp::{ApiError, EventBytes};
use route_sync::uaa::UaaError;

use super::*;

const CONFIG: &str = "
uaa: {url: https://uaa.test, client_id: route-sync, client_secret: hush}
routing_api: {url: https://api.test}
nats: {servers: [{host: nats.test}]}
routes: {app_domain: apps.test}
leader_election: {enabled: true}
admin: {listen: off}
";

/// Ways out of which those of one task bring it down, and no other ever answers.
struct Broken(&'static str);

/// A routing API that brings its lane down, or never answers.
struct BrokenApi(bool);

// === impl Broken ===

impl Broken {
    fn meets(&self, task: &str) {
        assert!(self.0 != task, "as the test wants it");
    }
}

impl Outside for Broken {
    fn apiserver(
        &self,
        _config: &KubernetesConfig,
        timing: &kubernetes::Timing,
    ) -> BoxFuture<'static, Result<kubernetes::Client, kubernetes::ConnectError>> {
        let broken = self.0;
        let answer = move |request: http::Request<_>| async move {
            let leases = request.uri().path().contains("/leases");
            Self(broken).meets(if leases { "lease" } else { "kubernetes" });
            std::future::pending::<Result<http::Response<Body>, std::io::Error>>().await
        };
        let client = kubernetes::client_over(tower::service_fn(answer), timing);
        async { Ok(client) }.boxed()
    }

    fn routing_api(
        &self,
        _config: &RoutingApiConfig,
        _uaa: &UaaConfig,
        _counters: &Arc<TcpCounters>,
    ) -> Result<Arc<dyn RoutingApi>, tcp::ConnectError> {
        Ok(Arc::new(BrokenApi(self.0 == "tcp")))
    }

    fn nats<'a>(
        &'a self,
        _config: &'a NatsConfig,
    ) -> BoxFuture<'a, Result<Box<dyn Bus>, BusError>> {
        async {
            self.meets("http");
            std::future::pending().await
        }
        .boxed()
    }

    fn health(&self, _config: &HealthConfig) -> Result<Arc<dyn Probe>, TlsError> {
        unreachable!("there are no static routes")
    }

    fn disk(&self, folder: &Path) -> Arc<dyn Disk> {
        Network.disk(folder)
    }

    fn wall_clock(&self) -> Duration {
        wall_clock()
    }
}

// === impl BrokenApi ===

impl BrokenApi {
    fn never<T: Send + 'static>(&self) -> BoxFuture<'_, T> {
        assert!(!self.0, "as the test wants it");
        std::future::pending().boxed()
    }
}

impl RoutingApi for BrokenApi {
    fn router_groups(&self) -> BoxFuture<'_, Result<Vec<RouterGroup>, ApiError>> {
        self.never()
    }

    fn list(&self) -> BoxFuture<'_, Result<Observed, ApiError>> {
        self.never()
    }

    fn events(&self) -> BoxFuture<'_, Result<EventBytes, ApiError>> {
        self.never()
    }

    fn create<'a>(
        &'a self,
        _rows: &'a [TcpRow],
        _instance: &'a InstanceId,
        _ttl: Duration,
    ) -> BoxFuture<'a, Result<(), ApiError>> {
        self.never()
    }

    fn delete<'a>(&'a self, _rows: &'a [TcpRow]) -> BoxFuture<'a, Result<(), ApiError>> {
        self.never()
    }

    fn renew_token(&self) -> BoxFuture<'_, Result<(), UaaError>> {
        self.never()
    }

    fn renew_token_in(&self) -> Option<Duration> {
        None
    }

    fn missing_scopes(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

/// What a controller ends with whose ways are broken for one task.
async fn end_of(task: &'static str) -> String {
    let surroundings = Surroundings {
        in_pod: true,
        files: false,
    };
    let config = Config::parse(CONFIG, Path::new("test"), surroundings).unwrap();
    let controller = assemble(config, Arc::new(Broken(task)), Counters::default());
    let tasks = controller.await.unwrap().tasks;
    let ended = tokio::time::timeout(DEADLINE, tasks.run_until(std::future::pending()));
    let ended = ended.await.expect("a task that died must end the process");
    ended.unwrap_err().to_string()
}

// Some of what never answers is waited for when the others stop.
#[tokio::test(start_paused = true)]
async fn whichever_task_dies_the_process_ends_with_its_name() {
    for task in ["lease", "kubernetes", "tcp", "http"] {
        let error = end_of(task).await;
        let name = format!("task `{task}` ");
        assert!(error.starts_with(&name), "{error}");
    }
}
