//! The Lease's task against a scripted apiserver: who holds it when, and what is said of it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use route_sync::config::{HealthConfig, KubernetesConfig, NatsConfig, RoutingApiConfig, UaaConfig};
use route_sync::desired::guard::Approvals;
use route_sync::desired::{Code, Contested};
use route_sync::kubernetes::{self, lease::LeaseObject};
use route_sync::lease::{
    Channels, Instances, Kept, Lease, LeaseReport, Role, Term, Timing, decode_holders,
};
use route_sync::lifecycle::{Clock, wall_clock};
use route_sync::outside::{Network, Outside};
use route_sync::publish::http::{Bus, BusError};
use route_sync::publish::tcp::{self, RoutingApi, TcpCounters};
use route_sync::publish::tls::TlsError;
use route_sync::route::{RouterPort, ServiceKey};
use route_sync::state::Disk;
use route_sync::static_routes::probe::Probe;
use route_sync::status::Drain;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[path = "lease/approvals.rs"]
mod approvals;
#[path = "lease/ends.rs"]
mod ends;
#[path = "lease/steady.rs"]
mod steady;

use steady::steady;

const DEADLINE: Duration = Duration::from_secs(30);
const COLLECTION: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
/// Short, so that a crash is noticed soon.
const BRISK: Timing = Timing {
    lease: Duration::from_millis(1500),
    renew: Duration::from_secs(1),
    retry: Duration::from_millis(100),
};
/// Nothing but a release hands the Lease on while a test lasts.
const PATIENT: Timing = Timing {
    lease: Duration::from_mins(10),
    ..BRISK
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    /// 503.
    Down,
    /// 403 for this method.
    Forbids(&'static str),
    /// 404 of a server that has no such API.
    Old,
    /// 404 for what is created: no such namespace.
    NoNamespace,
}

#[derive(Default)]
struct World {
    lease: Option<Value>,
    version: u64,
    moods: [Option<Mood>; 2],
    writes: usize,
    /// Answered, by door.
    reads: [usize; 2],
}

/// The network, on a machine that was suspended for so many seconds.
struct Machine(Arc<AtomicU64>);

impl Outside for Machine {
    fn apiserver(
        &self,
        config: &KubernetesConfig,
        timing: &kubernetes::Timing,
    ) -> BoxFuture<'static, Result<kubernetes::Client, kubernetes::ConnectError>> {
        Network.apiserver(config, timing)
    }

    fn routing_api(
        &self,
        config: &RoutingApiConfig,
        uaa: &UaaConfig,
        counters: &Arc<TcpCounters>,
    ) -> Result<Arc<dyn RoutingApi>, tcp::ConnectError> {
        Network.routing_api(config, uaa, counters)
    }

    fn nats<'a>(&'a self, config: &'a NatsConfig) -> BoxFuture<'a, Result<Box<dyn Bus>, BusError>> {
        Network.nats(config)
    }

    fn health(&self, config: &HealthConfig) -> Result<Arc<dyn Probe>, TlsError> {
        Network.health(config)
    }

    fn disk(&self, folder: &Path) -> Arc<dyn Disk> {
        Network.disk(folder)
    }

    fn wall_clock(&self) -> Duration {
        wall_clock() + Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// An apiserver with one door for each instance, so that one of them can be cut off.
#[derive(Clone)]
struct ApiServer {
    world: Arc<Mutex<World>>,
    ports: [u16; 2],
    suspended: Arc<AtomicU64>,
}

impl ApiServer {
    /// With a Lease that nobody holds.
    async fn start() -> Self {
        let server = Self::start_empty().await;
        let metadata = json!({"name": "route-sync", "resourceVersion": "0"});
        let spec = json!({"holderIdentity": "", "leaseTransitions": 0});
        server.world().lease = Some(json!({"metadata": metadata, "spec": spec}));
        server
    }

    /// Where nobody made a Lease yet.
    async fn start_empty() -> Self {
        let world = Arc::<Mutex<World>>::default();
        let mut ports = [0; 2];
        for (door, port) in ports.iter_mut().enumerate() {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            *port = listener.local_addr().unwrap().port();
            let router = axum::Router::new()
                .fallback(answer)
                .with_state((world.clone(), door));
            tokio::spawn(async move { axum::serve(listener, router).await });
        }
        Self {
            world,
            ports,
            suspended: Arc::default(),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn is(&self, door: usize, mood: Mood) {
        self.world().moods[door] = Some(mood);
    }

    fn lease(&self) -> Value {
        self.world().lease.clone().unwrap_or_default()
    }

    fn holder(&self) -> String {
        let lease = self.lease();
        lease["spec"]["holderIdentity"]
            .as_str()
            .unwrap_or("?")
            .to_owned()
    }
}

async fn answer(
    State((world, door)): State<(Arc<Mutex<World>>, usize)>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let mut world = world.lock().unwrap();
    let mood = world.moods[door].unwrap_or(Mood::Well);
    match mood {
        Mood::Down => return status(503),
        Mood::Forbids(denied) if denied == method.as_str() => return status(403),
        Mood::Old => return (StatusCode::NOT_FOUND, "404 page not found").into_response(),
        Mood::NoNamespace if method == Method::POST => return status(404),
        _ => {}
    }
    let stands = world
        .lease
        .as_ref()
        .map(|lease| lease["metadata"]["resourceVersion"].clone());
    let name = uri
        .path()
        .strip_prefix(COLLECTION)
        .expect("it must be of Leases");
    if method == Method::GET {
        world.reads[door] += 1;
    }
    match (method.as_str(), name, stands) {
        ("GET", "/route-sync", Some(_)) => {
            return world.lease.clone().unwrap().to_string().into_response();
        }
        ("GET" | "PUT", "/route-sync", None) => return status(404),
        ("POST", "", Some(_)) => return status(409),
        ("POST", "", None) => {}
        ("PUT", "/route-sync", Some(stands)) => {
            let sent: Value = serde_json::from_slice(&body).unwrap();
            if sent["metadata"]["resourceVersion"] != stands {
                return status(409);
            }
        }
        other => panic!("{other:?}"),
    }
    let mut lease: Value = serde_json::from_slice(&body).unwrap();
    world.version += 1;
    world.writes += 1;
    lease["metadata"]["resourceVersion"] = world.version.to_string().into();
    world.lease = Some(lease.clone());
    lease.to_string().into_response()
}

fn status(code: u16) -> Response {
    let reason = if code == 404 { "NotFound" } else { "" };
    let body = json!({"kind": "Status", "code": code, "reason": reason, "message": "scripted"});
    (StatusCode::from_u16(code).unwrap(), body.to_string()).into_response()
}

/// One instance's task.
struct Instance {
    roles: watch::Receiver<Role>,
    report: watch::Receiver<LeaseReport>,
    names: watch::Receiver<Option<Contested>>,
    contested: watch::Sender<Option<Contested>>,
    approved: watch::Sender<Approvals>,
    approved_elsewhere: watch::Receiver<Approvals>,
    drained: watch::Sender<Option<Drain>>,
    kept: watch::Receiver<Option<Kept>>,
    heard: mpsc::Sender<Term>,
    clock: Clock,
    stop: CancellationToken,
    task: JoinHandle<()>,
    _files: tempfile::TempDir,
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Instance {
    fn start(server: &ApiServer, door: usize, timing: Timing) -> Self {
        let identity = ["a", "b"][door].to_owned();
        Self::start_as(server, door, identity, None, timing)
    }

    /// Without a state, and before Kubernetes answered all that a table needs.
    fn start_cold(server: &ApiServer, door: usize, timing: Timing) -> Self {
        let identity = ["a", "b"][door].to_owned();
        Self::start_with(server, door, identity, None, timing, false)
    }

    fn start_as(
        server: &ApiServer,
        door: usize,
        identity: String,
        inherited: Option<u64>,
        timing: Timing,
    ) -> Self {
        Self::start_with(server, door, identity, inherited, timing, true)
    }

    fn start_with(
        server: &ApiServer,
        door: usize,
        identity: String,
        inherited: Option<u64>,
        timing: Timing,
        warm: bool,
    ) -> Self {
        let files = tempfile::tempdir().unwrap();
        let kubeconfig = files.path().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
             contexts: [{{name: it, context: {{cluster: it, user: it}}}}]\n\
             clusters: [{{name: it, cluster: {{server: \"http://127.0.0.1:{}\"}}}}]\n\
             users: [{{name: it, user: {{}}}}]\n",
            server.ports[door]
        );
        std::fs::write(&kubeconfig, text).unwrap();
        let config = KubernetesConfig {
            kubeconfig: Some(kubeconfig),
            rescan_interval: Duration::from_mins(5),
            poll_interval: Duration::from_secs(15),
            proxy_url: None,
            cluster_id: None,
        };
        let (instances, heard_rx) = Instances::new(identity.clone());
        let role = inherited.map_or(Role::Standby, |generation| Role::Cautious { generation });
        let (roles_tx, roles) = watch::channel(role);
        let (report_tx, report) = watch::channel(LeaseReport::new(identity.clone(), role));
        let (names_tx, names) = watch::channel(None);
        let (contested, contested_rx) = watch::channel(None);
        let (approved, approved_rx) = watch::channel(Approvals::default());
        let (elsewhere, approved_elsewhere) = watch::channel(Approvals::default());
        let (drained, drained_rx) = watch::channel(None);
        let (kept_tx, kept) = watch::channel(None);
        let channels = Channels {
            roles: roles_tx,
            report: report_tx,
            heard: heard_rx,
            contested: contested_rx,
            drained: drained_rx,
            names: names_tx,
            approved: approved_rx,
            approved_elsewhere: elsewhere,
            kept: Some(kept_tx),
        };
        let machine = Arc::new(Machine(server.suspended.clone()));
        let object = LeaseObject::new(machine, config, ("kube-system", "route-sync"), 15);
        let lease = Lease::new(object, identity, inherited, timing, channels);
        let lease = lease.with_warm_table(warm);
        let (clock, stop) = (Clock::start(), CancellationToken::new());
        let task = tokio::spawn(lease.run(clock, stop.clone()));
        Self {
            roles,
            report,
            names,
            contested,
            approved,
            approved_elsewhere,
            drained,
            kept,
            heard: instances.heard,
            clock,
            stop,
            task,
            _files: files,
        }
    }

    /// Asks it to stop, as a process whose lanes have ended.
    async fn stop(mut self) {
        (_, self.roles) = watch::channel(Role::Standby);
        self.stop.cancel();
        (&mut self.task).await.unwrap();
    }

    fn role(&self) -> Role {
        self.roles.borrow().at(self.clock.now())
    }

    async fn becomes(&self, what: &str, is: impl Fn(Role) -> bool) -> Role {
        until(what, || is(self.role())).await;
        self.role()
    }

    async fn leads(&self) -> u64 {
        let role = self.becomes("leads", Role::is_active).await;
        role.generation().unwrap_or_default()
    }

    fn codes(&self) -> Vec<(Code, String)> {
        let report = self.report.borrow();
        let findings = report.findings.iter();
        findings.map(|it| (it.code, it.message.clone())).collect()
    }
}

/// One that leads and one that knows it.
async fn pair(timing: Timing) -> (ApiServer, Instance, Instance) {
    let server = ApiServer::start().await;
    let first = Instance::start(&server, 0, timing);
    first.leads().await;
    let second = Instance::start(&server, 1, timing);
    until("looked", || second.report.borrow().holder.is_some()).await;
    (server, first, second)
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let done = tokio::time::timeout(DEADLINE, wait).await;
    assert!(done.is_ok(), "not within {DEADLINE:?}: {what}");
}

#[tokio::test]
async fn the_first_leads_the_second_stands_by_and_takes_over_what_is_released() {
    let server = ApiServer::start().await;
    let first = Instance::start(&server, 0, PATIENT);
    assert_eq!(first.leads().await, 1);
    let second = Instance::start(&server, 1, PATIENT);
    until("looked", || {
        second.report.borrow().holder.as_deref() == Some("a")
    })
    .await;
    let writes = server.world().writes;
    until("renewed", || server.world().writes > writes + 2).await;
    assert!(second.role().is_standby());
    let kept = Kept {
        identity: "a".to_owned(),
        generation: 1,
        held: true,
    };
    assert_eq!(*first.kept.borrow(), Some(kept));

    first.stop().await;
    assert_eq!(second.leads().await, 2);
    assert_eq!(server.holder(), "b");
}

#[tokio::test]
async fn the_lease_is_released_only_once_the_lanes_have_ended() {
    let server = ApiServer::start().await;
    let instance = Instance::start(&server, 0, PATIENT);
    instance.leads().await;
    let lane = instance.roles.clone();
    let stopped = tokio::spawn(instance.stop());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(server.holder(), "a");
    assert!(lane.borrow().is_active(), "the last messages may go out");
    drop(lane);
    stopped.await.unwrap();
    assert_eq!(server.holder(), "");
    assert_eq!(server.lease()["spec"]["leaseDurationSeconds"], 1);
}

#[tokio::test]
async fn a_crash_is_noticed_by_silence_and_a_restart_under_the_same_name_waits_for_nobody() {
    let (server, first, second) = pair(BRISK).await;
    drop(first);
    assert_eq!(second.leads().await, 2);
    drop(second);
    let again = Instance::start_as(&server, 1, "b".to_owned(), None, PATIENT);
    assert_eq!(again.leads().await, 3);
}

#[tokio::test]
async fn who_is_cut_off_is_cautious_and_falls_silent_on_the_word_of_its_successor() {
    steady(async || {
        let (server, first, second) = pair(BRISK).await;
        server.is(0, Mood::Down);
        let cautious = Role::Cautious { generation: 1 };
        first.becomes("cautious", |role| role == cautious).await;
        assert_eq!(second.leads().await, 2);
        assert_eq!(first.role(), cautious, "nobody told it");
        until("told", || {
            let mut codes = first.codes().into_iter();
            codes.any(|(code, text)| code == Code::LeaseUnavailable && text.contains("503"))
        })
        .await;
        let word = Term {
            generation: 2,
            holder: "b".to_owned(),
        };
        first.heard.send(word).await.unwrap();
        first.becomes("silent", Role::is_standby).await;
        // And the successor hears that the other still acted.
        let late = Term {
            generation: 1,
            holder: "a".to_owned(),
        };
        second.heard.send(late).await.unwrap();
        until("told", || {
            let mut codes = second.codes().into_iter();
            codes.any(|(code, text)| code == Code::SplitBrain && text.contains("`a`"))
        })
        .await;
        assert!(second.role().is_active());
        server.is(0, Mood::Well);
        until("looked", || {
            first.report.borrow().holder.as_deref() == Some("b")
        })
        .await;
        assert!(first.role().is_standby());
    })
    .await;
}

#[tokio::test]
async fn with_the_apiserver_away_the_holder_is_cautious_and_nobody_else_leads() {
    steady(async || {
        let (server, first, second) = pair(BRISK).await;
        server.is(0, Mood::Down);
        server.is(1, Mood::Down);
        first
            .becomes("cautious", |role| matches!(role, Role::Cautious { .. }))
            .await;
        tokio::time::sleep(2 * BRISK.lease).await;
        assert!(second.role().is_standby());
        assert_eq!(first.role(), Role::Cautious { generation: 1 });
        server.is(0, Mood::Well);
        assert_eq!(first.leads().await, 1, "the same term goes on");
    })
    .await;
}

#[tokio::test]
async fn without_the_right_or_the_api_or_the_namespace_an_instance_acts_as_the_only_one() {
    for (mood, code, expect) in [
        (
            Mood::Forbids("GET"),
            Code::RightMissing,
            "no right to `get` resource `leases`",
        ),
        (
            Mood::Forbids("POST"),
            Code::RightMissing,
            "no right to `create` resource `leases`",
        ),
        (Mood::Old, Code::LeaseUnavailable, "acts as the only one"),
        (
            Mood::NoNamespace,
            Code::LeaseUnavailable,
            "acts as the only one",
        ),
    ] {
        let server = ApiServer::start_empty().await;
        server.is(0, mood);
        let instance = Instance::start(&server, 0, BRISK);
        let role = instance.becomes("alone", Role::is_active).await;
        assert_eq!(role, Role::ALONE, "{mood:?}");
        let codes = instance.codes();
        assert!(
            codes
                .iter()
                .any(|(told, text)| *told == code && text.contains(expect)),
            "{mood:?}: {codes:?}"
        );
        assert!(
            instance
                .kept
                .borrow()
                .as_ref()
                .is_some_and(|kept| kept.held)
        );
    }
}

#[tokio::test]
async fn a_start_without_an_apiserver_acts_only_where_its_state_held_the_lease() {
    steady(async || {
        let server = ApiServer::start().await;
        server.is(0, Mood::Down);
        server.is(1, Mood::Down);
        let held = Instance::start_as(&server, 0, "a".to_owned(), Some(7), BRISK);
        let stood_by = Instance::start(&server, 1, BRISK);
        until("asked", || {
            held.names.borrow().is_some() && stood_by.names.borrow().is_some()
        })
        .await;
        assert_eq!(held.role(), Role::Cautious { generation: 7 });
        assert!(stood_by.role().is_standby());
    })
    .await;
}

#[tokio::test]
async fn the_holder_writes_who_has_each_contested_name_and_others_read_it() {
    let server = ApiServer::start().await;
    let first = Instance::start(&server, 0, PATIENT);
    first.leads().await;
    let service = ServiceKey {
        namespace: "team".to_owned(),
        name: "first".to_owned(),
    };
    let mut contested = Contested::default();
    let port = RouterPort::new(1024).unwrap();
    contested.ports.insert(port, service);
    first.contested.send_replace(Some(contested.clone()));
    let written = || {
        let lease = server.lease();
        let text = lease["metadata"]["annotations"]["route-sync.cloudfoundry.org/holders"].clone();
        text.as_str().map(decode_holders)
    };
    until("written", || written().as_ref() == Some(&contested)).await;
    let second = Instance::start(&server, 1, PATIENT);
    until("read", || {
        second.names.borrow().as_ref() == Some(&contested)
    })
    .await;
    // Whoever takes over without a table of its own leaves it as it is.
    first.stop().await;
    second.leads().await;
    assert_eq!(written(), Some(contested));
}

#[tokio::test]
async fn an_instance_without_a_table_takes_no_lease_that_another_can_serve() {
    let server = ApiServer::start().await;
    let cold = Instance::start_cold(&server, 0, BRISK);
    until("looked", || cold.names.borrow().is_some()).await;
    let warm = Instance::start(&server, 1, BRISK);
    assert_eq!(warm.leads().await, 1);
    warm.stop().await;
    tokio::time::sleep(2 * BRISK.lease).await;
    assert_eq!(server.holder(), "", "nobody can serve it");
    assert!(cold.role().is_standby());
    cold.contested.send_replace(Some(Contested::default()));
    assert_eq!(cold.leads().await, 2);
}

#[tokio::test]
async fn a_drained_instance_keeps_the_lease_it_has_and_takes_none_back() {
    let server = ApiServer::start().await;
    let drained = Instance::start(&server, 0, BRISK);
    drained.leads().await;
    drained.drained.send_replace(Some(Drain::Keep));
    let writes = server.world().writes;
    until("renewed", || server.world().writes > writes + 2).await;
    assert!(drained.role().is_active());
    let other = Instance::start(&server, 1, BRISK);
    server.is(0, Mood::Down);
    assert_eq!(other.leads().await, 2);
    server.is(0, Mood::Well);
    drained.becomes("silent", Role::is_standby).await;
    other.stop().await;
    tokio::time::sleep(2 * BRISK.lease).await;
    assert_eq!(server.holder(), "");
    assert!(drained.role().is_standby());
}

#[tokio::test]
async fn a_start_that_finds_no_lease_waits_for_a_holder_that_may_still_have_proof() {
    let server = ApiServer::start_empty().await;
    let holder = Instance::start(&server, 0, BRISK);
    assert_eq!(holder.leads().await, 1);
    server.is(0, Mood::Down);
    server.world().lease = None;
    let starts = Instance::start(&server, 1, BRISK);
    starts
        .becomes("leads", |role| {
            let both = role.is_active() && holder.role().is_active();
            assert!(!both, "two have proof at once");
            role.is_active()
        })
        .await;
}

#[tokio::test]
async fn a_machine_that_was_suspended_stands_by_until_it_knows_who_leads() {
    let server = ApiServer::start().await;
    let lasting = Timing {
        renew: Duration::from_mins(5),
        ..PATIENT
    };
    let holder = Instance::start(&server, 0, lasting);
    holder.leads().await;
    server.is(0, Mood::Down);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(holder.role().is_active(), "its proof lasts");
    server.suspended.store(60, Ordering::Relaxed);
    let cautious = Role::Cautious { generation: 1 };
    holder.becomes("cautious", |role| role == cautious).await;
    server.is(0, Mood::Well);
    assert_eq!(holder.leads().await, 1, "nobody took it meanwhile");
}
