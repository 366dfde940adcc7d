//! Static routes, from the question to the row: the assembled process against a scripted routing API, with health as
//! the test plays it or over HTTP.

#[path = "tcp_lane/foundation.rs"]
#[expect(dead_code, reason = "the TCP lane's own tests ask for the rest")]
mod foundation;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use route_sync::cli::{Controller, assemble};
use route_sync::config::{
    Config, HealthConfig, KubernetesConfig, NatsConfig, RoutingApiConfig, Surroundings, UaaConfig,
};
use route_sync::kubernetes;
use route_sync::metrics::Counters;
use route_sync::outside::{Network, Outside};
use route_sync::publish::http::{Bus, BusError};
use route_sync::publish::tcp::{self, RoutingApi, TcpCounters};
use route_sync::publish::tls::TlsError;
use route_sync::state::{Contents, Decode, Disk, Encode, StateError};
use route_sync::static_routes::health::{Answer, Question};
use route_sync::static_routes::probe::Probe;
use route_sync::status::RouteState;
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

use foundation::{Key, Running};

/// Generous, for a busy machine; what waits for an older row to lapse takes 30 s where nothing is late.
const DEADLINE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);
/// Where what outlives a process is kept.
const RECORD: &str = "routes.jsonl";
const OURS: &str = "rs-1a2b3c4d-5e6f7a8b";

/// The network, but for health: that answers as it was last told to.
struct Ways(Arc<Script>);

/// What is answered, and how often anybody asked.
#[derive(Default)]
struct Script(Mutex<(Option<Answer>, usize)>);

/// A probe of a [`Script`]; it answers once there is something to say.
struct Scripted(Arc<Script>);

/// A disk that has read before anybody waits: a start gives a slow one up after 700 ms, as it should, and a busy
/// machine may stand still for longer.
struct AtOnce {
    disk: Arc<dyn Disk>,
    file: PathBuf,
}

struct Subject {
    controller: Controller,
    api: Running,
    script: Arc<Script>,
}

// === impl Script ===

impl Script {
    fn say(&self, answer: Answer) {
        self.0.lock().unwrap().0 = Some(answer);
    }

    fn asked(&self) -> usize {
        self.0.lock().unwrap().1
    }
}

impl Probe for Scripted {
    fn ask(&self, _question: Question) -> BoxFuture<'static, Answer> {
        let script = self.0.clone();
        let answer = async move {
            script.0.lock().unwrap().1 += 1;
            loop {
                let told = script.0.lock().unwrap().0.clone();
                match told {
                    Some(answer) => return answer,
                    None => tokio::time::sleep(POLL).await,
                }
            }
        };
        answer.boxed()
    }
}

// === impl Ways ===

impl Outside for Ways {
    fn apiserver(
        &self,
        _config: &KubernetesConfig,
        _timing: &kubernetes::Timing,
    ) -> BoxFuture<'static, Result<kubernetes::Client, kubernetes::ConnectError>> {
        panic!("static routes need no apiserver")
    }

    fn routing_api(
        &self,
        config: &RoutingApiConfig,
        uaa: &UaaConfig,
        counters: &Arc<TcpCounters>,
    ) -> Result<Arc<dyn RoutingApi>, tcp::ConnectError> {
        Network.routing_api(config, uaa, counters)
    }

    fn nats<'a>(
        &'a self,
        _config: &'a NatsConfig,
    ) -> BoxFuture<'a, Result<Box<dyn Bus>, BusError>> {
        panic!("static routes need no NATS")
    }

    fn health(&self, _config: &HealthConfig) -> Result<Arc<dyn Probe>, TlsError> {
        Ok(Arc::new(Scripted(self.0.clone())))
    }

    fn disk(&self, folder: &Path) -> Arc<dyn Disk> {
        Arc::new(AtOnce {
            disk: Network.disk(folder),
            file: folder.join(RECORD),
        })
    }

    fn wall_clock(&self) -> Duration {
        Network.wall_clock()
    }
}

// === impl AtOnce ===

impl Disk for AtOnce {
    fn read(&self, decode: Decode) -> BoxFuture<'static, Result<Option<Contents>, StateError>> {
        let bytes = std::fs::read(&self.file).ok();
        let contents = bytes.map(|bytes| decode(&bytes).unwrap());
        std::future::ready(Ok(contents)).boxed()
    }

    fn write(&self, encode: Encode) -> BoxFuture<'static, Result<(), StateError>> {
        self.disk.write(encode)
    }

    fn unix_seconds(&self) -> u64 {
        self.disk.unix_seconds()
    }
}

// === impl Subject ===

impl Subject {
    /// With health as the script says it.
    async fn start(more: &str) -> Self {
        Self::on(Running::start().await, more).await
    }

    async fn on(api: Running, more: &str) -> Self {
        let script = Arc::new(Script::default());
        let ways = Arc::new(Ways(script.clone()));
        let health = "{url: 'https://127.0.0.1:1/readyz', interval: 1s}";
        let controller = controller(&api, health, more, ways).await;
        Self {
            controller,
            api,
            script,
        }
    }

    async fn serves(&self, wanted: &[Key]) {
        serves(&self.api, wanted).await;
    }

    /// Waits until so many more questions were answered.
    async fn answers(&self, more: usize) {
        let until = self.script.asked() + more;
        eventually("further questions", || self.script.asked() > until).await;
    }

    fn codes(&self) -> BTreeSet<String> {
        let findings = self.controller.status.findings();
        findings.iter().map(|it| it.code.to_string()).collect()
    }
}

/// A registrar of the port 6443, which the scripted routing API publishes.
async fn controller(
    api: &Running,
    health: &str,
    more: &str,
    outside: Arc<dyn Outside>,
) -> Controller {
    let url = api.server.uri();
    let text = format!(
        "uaa: {{url: '{url}', client_id: id, client_secret: hush}}
routing_api: {{url: '{url}', ttl: 10s, instance_id: {OURS}}}
static_routes:
- {{name: kubernetes-api, port: 6443, backends: ['10.0.0.5:8443'], health: {health}}}
admin: {{listen: off}}
{more}"
    );
    let surroundings = Surroundings {
        in_pod: false,
        files: true,
    };
    let config = Config::parse(&text, Path::new("f"), surroundings);
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    let assembled = assemble(config, outside, Counters::default()).await;
    assembled.unwrap_or_else(|error| panic!("{error:#}"))
}

fn row(ip: &str, tls_port: i64) -> Key {
    (6443, ip.to_owned(), 8443, tls_port, "g".to_owned())
}

async fn serves(api: &Running, wanted: &[Key]) {
    let wanted: BTreeSet<Key> = wanted.iter().cloned().collect();
    eventually(&format!("{wanted:?}"), || {
        api.api.lock().rows.keys().cloned().collect::<BTreeSet<_>>() == wanted
    })
    .await;
    assert!(!api.api.lock().haproxy_broken);
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !holds() {
            let now = tokio::time::Instant::now();
            assert!(now < deadline, "{caller}: {what} did not come true");
            tokio::time::sleep(POLL).await;
        }
    }
}

fn failure() -> Answer {
    Err("connection refused".to_owned())
}

#[tokio::test]
async fn a_route_comes_with_the_first_success_goes_after_three_failures_and_comes_back() {
    let subject = Subject::start("").await;
    subject.script.say(failure());
    subject.answers(1).await;
    subject.script.say(Ok(200));
    subject.serves(&[row("10.0.0.5", -1)]).await;
    let stamp = subject.api.api.lock().rows[&row("10.0.0.5", -1)]
        .instance
        .clone();
    assert_eq!(stamp.as_deref(), Some(OURS));
    eventually("ready", || subject.controller.status.missing().is_empty()).await;
    assert_eq!(subject.codes(), BTreeSet::new());

    subject.script.say(failure());
    subject.serves(&[]).await;
    let failed = BTreeSet::from(["health-failed".to_owned()]);
    eventually("told", || subject.codes() == failed).await;
    subject.script.say(Ok(200));
    subject.serves(&[row("10.0.0.5", -1)]).await;
    eventually("no finding", || subject.codes().is_empty()).await;
    // The row stands before the lane has read that it does.
    let live = || {
        let lanes = subject.controller.status.lanes();
        let route = lanes[0].routes.get("6443");
        route.is_some_and(|it| {
            it.service.to_string() == "kubernetes-api" && it.state == RouteState::Live
        })
    };
    eventually("live", live).await;
}

#[tokio::test]
async fn nothing_comes_and_nobody_is_ready_before_somebody_answered() {
    let subject = Subject::start("").await;
    let lists = || {
        let api = subject.api.api.lock();
        let lists = api.calls.iter();
        lists
            .filter(|call| call.path.ends_with("/tcp_routes"))
            .count()
    };
    eventually("the table is read", || lists() > 0).await;
    let missing = subject.controller.status.missing();
    assert!(missing.contains(&"source static_routes: not complete yet".to_owned()));
    subject.script.say(failure());
    eventually("two answers", || subject.script.asked() >= 3).await;
    assert_eq!(subject.api.api.lock().creates().count(), 0);
    // Down is an answer as well: the process does its job.
    eventually("ready", || subject.controller.status.missing().is_empty()).await;
    assert_eq!(
        subject.codes(),
        BTreeSet::from(["health-failed".to_owned()])
    );
    assert_eq!(subject.api.api.lock().creates().count(), 0);
}

#[tokio::test]
async fn rows_of_the_last_process_outlive_their_ttl_until_the_verdict() {
    let api = Running::start().await;
    let (ours, peer) = (row("10.0.0.5", -1), row("10.0.0.6", -1));
    let hour = Duration::from_hours(1);
    api.api
        .lock()
        .insert(ours.clone(), Some(OURS), Duration::from_secs(10));
    api.api
        .lock()
        .insert(peer.clone(), Some("rs-another"), hour);
    let subject = Subject::on(api, "").await;
    // The one question there is finds no answer for longer than a row lives.
    tokio::time::sleep(Duration::from_secs(12)).await;
    subject.serves(&[ours, peer.clone()]).await;
    assert!(subject.controller.status.findings().is_empty());
    subject.script.say(failure());
    subject.serves(&[peer]).await;
}

#[tokio::test]
async fn peers_stay_whatever_becomes_of_ours() {
    let api = Running::start().await;
    let peers = [row("10.0.0.6", -1), row("10.0.0.7", 0)];
    for (peer, stamp) in peers.iter().zip([Some("rs-another"), None]) {
        let hour = Duration::from_hours(1);
        api.api.lock().insert(peer.clone(), stamp, hour);
    }
    let subject = Subject::on(api, "").await;
    subject.script.say(Ok(200));
    let [one, other] = peers.clone();
    subject.serves(&[row("10.0.0.5", -1), one, other]).await;
    assert_eq!(subject.codes(), BTreeSet::new());
    subject.script.say(failure());
    subject.serves(&peers).await;
}

#[tokio::test]
async fn a_row_of_the_older_job_at_our_address_goes_before_ours_comes() {
    let api = Running::start().await;
    let old = row("10.0.0.5", 0);
    api.api.lock().insert(old, None, Duration::from_mins(1));
    let subject = Subject::on(api, "").await;
    subject.script.say(Ok(200));
    subject.serves(&[row("10.0.0.5", -1)]).await;
}

#[tokio::test]
async fn where_it_cannot_be_deleted_ours_waits_until_it_lapsed() {
    let api = Running::start().await;
    let old = row("10.0.0.5", 0);
    api.api.lock().keeps_tls_zero = true;
    api.api
        .lock()
        .insert(old.clone(), None, Duration::from_secs(8));
    let subject = Subject::on(api, "").await;
    subject.script.say(Ok(200));
    eventually("it is told", || subject.codes().contains("legacy-rows")).await;
    subject.serves(&[row("10.0.0.5", -1)]).await;
}

#[tokio::test]
async fn who_may_not_ask_publishes_and_says_so() {
    let subject = Subject::start("").await;
    subject.script.say(Ok(403));
    subject.serves(&[row("10.0.0.5", -1)]).await;
    assert_eq!(
        subject.codes(),
        BTreeSet::from(["health-unproven".to_owned()])
    );
}

#[tokio::test]
async fn a_restart_knows_rows_that_the_api_does_not_mark() {
    let folder = tempfile::tempdir().unwrap();
    let state = format!("state: {{dir: '{}'}}", folder.path().display());
    let subject = Subject::start(&state).await;
    subject.script.say(Ok(200));
    let ours = row("10.0.0.5", -1);
    subject.serves(std::slice::from_ref(&ours)).await;
    let kept = || {
        let file = std::fs::read_to_string(folder.path().join(RECORD));
        // The table names the address as well, and is on record first.
        file.is_ok_and(|text| text.contains(r#""ip":"10.0.0.5""#))
    };
    eventually("the row is on record", kept).await;
    let Subject {
        api, controller, ..
    } = subject;
    controller.tasks.run_until(async {}).await.unwrap();
    // An API before 2024-07.
    api.api.lock().insert(ours, None, Duration::from_hours(1));
    let subject = Subject::on(api, &state).await;
    subject.script.say(failure());
    subject.serves(&[]).await;
}

/// A file with a token.
struct Token(tempfile::TempDir);

impl Token {
    fn of(word: &str) -> Self {
        let token = Self(tempfile::tempdir().unwrap());
        token.write(word);
        token
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("token")
    }

    fn write(&self, word: &str) {
        std::fs::write(self.path(), format!("{word}\n")).unwrap();
    }

    /// The `health` of a server whose page is for the bearer of `accepted` alone.
    async fn shown_to(&self, server: &MockServer, page: &str, accepted: &str) -> String {
        let good = wiremock::matchers::header("authorization", format!("Bearer {accepted}"));
        Mock::given(good)
            .respond_with(ResponseTemplate::new(200))
            .mount(server)
            .await;
        let (url, token) = (server.uri(), self.path());
        let token = token.display();
        format!("{{url: '{url}{page}', token_file: '{token}', interval: 1s}}")
    }
}

/// Health as it is asked over HTTP.
#[tokio::test]
async fn an_apiserver_without_readyz_is_asked_for_healthz() {
    let server = MockServer::start().await;
    Mock::given(path("/healthz"))
        .respond_with(ResponseTemplate::new(200))
        .mount(&server)
        .await;
    let api = Running::start().await;
    let health = format!(
        "{{url: '{}/readyz?exclude=etcd', interval: 1s}}",
        server.uri()
    );
    let _controller = controller(&api, &health, "", Arc::new(Network)).await;
    serves(&api, &[row("10.0.0.5", -1)]).await;
    let pages = async || {
        let requests = server.received_requests().await.unwrap_or_default();
        let pages = requests.iter().map(|it| it.url.path().to_owned());
        pages.collect::<Vec<_>>()
    };
    while pages().await.len() < 4 {
        tokio::time::sleep(POLL).await;
    }
    assert_eq!(
        pages().await[..4],
        ["/readyz", "/healthz", "/healthz", "/healthz"]
    );
}

#[tokio::test]
async fn a_token_is_read_anew_for_each_question() {
    let (server, token) = (MockServer::start().await, Token::of("first"));
    let health = token.shown_to(&server, "/livez", "second").await;
    let api = Running::start().await;
    let controller = controller(&api, &health, "", Arc::new(Network)).await;
    let failed = || {
        let findings = controller.status.findings();
        findings
            .iter()
            .any(|it| it.code.as_str() == "health-failed")
    };
    eventually("a 404 of another page is a failure", failed).await;
    token.write("second");
    serves(&api, &[row("10.0.0.5", -1)]).await;
}

#[tokio::test]
async fn a_token_that_cannot_be_read_takes_no_backend_away() {
    let (server, token) = (MockServer::start().await, Token::of("first"));
    let health = token.shown_to(&server, "", "first").await;
    let api = Running::start().await;
    let controller = controller(&api, &health, "", Arc::new(Network)).await;
    serves(&api, &[row("10.0.0.5", -1)]).await;
    std::fs::remove_file(token.path()).unwrap();
    let asked = async || server.received_requests().await.unwrap_or_default().len();
    let before = asked().await;
    while asked().await < before + 5 {
        tokio::time::sleep(POLL).await;
    }
    serves(&api, &[row("10.0.0.5", -1)]).await;
    assert!(controller.status.findings().is_empty());
}
