//! The HTTP lane against a NATS server: one in this process always, a real one where `ROUTE_SYNC_NATS_SERVER` or
//! the search path has it.

#[path = "http_lane/drain.rs"]
mod drain;
#[path = "http_lane/journal.rs"]
mod journal;
#[path = "scrapers/pki.rs"]
mod pki;
#[path = "http_lane/real.rs"]
mod real;
#[path = "http_lane/reload.rs"]
mod reload;
#[path = "http_lane/role.rs"]
mod role;
#[path = "http_lane/server.rs"]
mod server;
#[path = "http_lane/strangers.rs"]
mod strangers;
#[path = "http_lane/warm.rs"]
mod warm;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use route_sync::config::{NatsConfig, NatsServer, Secret, TlsConfig};
use route_sync::desired::{Code, Desired};
use route_sync::lifecycle::Clock;
use route_sync::publish::http::{self, HttpCounters};
use route_sync::route::{
    Backend, Backends, ClusterId, Hostname, HttpOptions, HttpRoute, Lane, NodePort, NodeUid,
    RouteTable, ServiceKey, ServiceRef, Uri,
};
use route_sync::settings::Follower;
use route_sync::status::{LaneReport, RouteState};
use server::{Behaviour, Server};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Generous: a noisy machine may stall for seconds.
const DEADLINE: Duration = Duration::from_mins(1);

/// A table in short: host `a.test` on nodes 1 and 2 at port 30001 is `("a", 30001, &[1, 2])`.
fn table(routes: &[(&str, u16, &[u8])]) -> Arc<Desired> {
    let route = |(host, port, nodes): &(&str, u16, &[u8])| {
        let uri = Uri::of_host(Hostname::parse(&format!("{host}.test")).unwrap());
        let backend = |node: &u8| Backend {
            ip: IpAddr::from([10, 0, 0, *node]),
            port: NodePort::new(*port).unwrap(),
            node: NodeUid(format!("node-{node}").into()),
            zone: None,
        };
        let key = ServiceKey {
            namespace: "default".to_owned(),
            name: format!("svc-{port}"),
        };
        let route = HttpRoute {
            service: Arc::new(ServiceRef {
                key,
                uid: format!("uid-{port}"),
            }),
            backends: Backends::new(nodes.iter().map(backend)).unwrap(),
            options: HttpOptions::default(),
        };
        (uri, route)
    };
    let table = RouteTable {
        http: routes.iter().map(route).collect(),
        ..RouteTable::default()
    };
    Arc::new(Desired::of(ClusterId("kube".to_owned()), table))
}

fn config(addrs: &[SocketAddr], password: Option<&str>, tls: Option<TlsConfig>) -> NatsConfig {
    let server = |addr: &SocketAddr| NatsServer {
        host: addr.ip().to_string(),
        port: addr.port(),
        login: password.map(|text| ("nats".to_owned(), Secret::new(text.to_owned()))),
    };
    NatsConfig {
        servers: addrs.iter().map(server).collect(),
        tls,
        default_interval: Duration::from_secs(20),
        messages_per_second: 5000,
        send_app: true,
        join_foreign: false,
        state_dir: None,
    }
}

/// The lane under test.
struct Running {
    desired: watch::Sender<Option<Arc<Desired>>>,
    report: watch::Receiver<LaneReport>,
    counters: Arc<HttpCounters>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(config: NatsConfig, first: Option<Arc<Desired>>) -> Self {
        Self::start_with(config, http::Inheritance::default(), first)
    }

    fn start_with(
        settings: impl Into<Follower<NatsConfig>>,
        inheritance: http::Inheritance,
        first: Option<Arc<Desired>>,
    ) -> Self {
        let (desired, desired_rx) = watch::channel(first);
        let (report_tx, report) = watch::channel(LaneReport::new(Lane::Http));
        let counters = Arc::new(HttpCounters::default());
        let stop = CancellationToken::new();
        let task = tokio::spawn(http::run_with(
            settings.into(),
            inheritance,
            desired_rx,
            report_tx,
            Clock::start(),
            counters.clone(),
            stop.clone(),
        ));
        Self {
            desired,
            report,
            counters,
            stop,
            task,
        }
    }

    fn want(&self, routes: &[(&str, u16, &[u8])]) {
        self.desired.send_replace(Some(table(routes)));
    }

    fn state(&self, host: &str) -> Option<RouteState> {
        let report = self.report.borrow();
        report.routes.get(&format!("{host}.test")).map(|r| r.state)
    }

    async fn live(&self, host: &str) {
        until(&format!("{host} live"), || {
            self.state(host) == Some(RouteState::Live)
        })
        .await;
    }

    fn error(&self) -> String {
        self.report.borrow().last_error.clone().unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
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

/// `+a,b@1:30001` for each announcement and withdrawal.
fn brief(routes: &[(u64, char, String)]) -> Vec<String> {
    let brief = |(_, sign, body): &(u64, char, String)| {
        let value: serde_json::Value = serde_json::from_str(body).unwrap();
        let uris = value["uris"].as_array().unwrap().iter();
        let uris: Vec<_> = uris
            .map(|uri| uri.as_str().unwrap().trim_end_matches(".test"))
            .collect();
        let host = value["host"].as_str().unwrap().rsplit('.').next().unwrap();
        format!("{sign}{}@{host}:{}", uris.join(","), value["port"])
    };
    routes.iter().map(brief).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_is_announced_in_the_bytes_gorouter_reads_and_is_live_after_the_echo() {
    let server = Server::start(Behaviour::default()).await;
    let lane = Running::start(config(&[server.addr], None, None), None);
    until("connected", || {
        lane.counters.connected.load(Ordering::Relaxed) == 1
    })
    .await;
    assert!(server.routes().is_empty(), "nothing is wanted yet");
    lane.want(&[("a", 30001, &[1])]);
    lane.live("a").await;
    let (_, sign, body) = server.routes().remove(0);
    assert_eq!(sign, '+');
    let value: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(value["host"], "10.0.0.1");
    assert_eq!(value["port"], 30001);
    assert_eq!(value["uris"], serde_json::json!(["a.test"]));
    assert_eq!(value["app"], "uid-30001");
    assert!(value["private_instance_index"].is_string());
    assert_eq!(value["tags"]["component"], "route-sync");
    until("confirmed", || lane.report.borrow().confirmed_once).await;
    assert_eq!(server.published("router.greet")[0].payload, b"{}");
    assert_eq!(
        lane.report.borrow().facts.get("delivery").unwrap(),
        "proven by echo"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shortest_interval_of_all_routers_is_adopted_and_beats_are_the_same_bytes() {
    let router = |id: &str, seconds: u32| {
        format!(r#"{{"id":"{id}","minimumRegisterIntervalInSeconds":{seconds}}}"#)
    };
    let behaviour = Behaviour {
        routers: vec![router("r1", 20), router("r2", 5), "nonsense".to_owned()],
        ..Behaviour::default()
    };
    let server = Server::start(behaviour).await;
    let lane = Running::start(
        config(&[server.addr], None, None),
        Some(table(&[("a", 1, &[1])])),
    );
    let interval = || lane.counters.interval_millis.load(Ordering::Relaxed);
    until("interval of 5 s", || interval() == 5000).await;
    assert_eq!(lane.counters.routers.load(Ordering::Relaxed), 3);
    until("two beats", || server.routes().len() >= 3).await;
    let routes = server.routes();
    assert!(routes.iter().all(|route| *route == routes[0]), "{routes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawal_is_repeated_and_ends_when_the_route_is_wanted_again() {
    let server = Server::start(Behaviour::default()).await;
    let first = table(&[("a", 30001, &[1]), ("b", 30002, &[1])]);
    let lane = Running::start(config(&[server.addr], None, None), Some(first));
    lane.live("a").await;
    lane.want(&[("b", 30002, &[1])]);
    let withdrawn = || {
        let all = brief(&server.routes());
        all.iter().filter(|text| *text == "-a@1:30001").count()
    };
    until("a repetition", || withdrawn() >= 2).await;
    assert_eq!(lane.state("a"), Some(RouteState::Withdrawing));
    lane.want(&[("a", 30001, &[1]), ("b", 30002, &[1])]);
    lane.live("a").await;
    assert_eq!(lane.counters.withdrawals_pending.load(Ordering::Relaxed), 0);
    assert_eq!(brief(&server.routes()).last().unwrap(), "+a@1:30001");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_queued_while_down_and_a_new_connection_gets_everything_in_order() {
    let mut server = Server::start(Behaviour::default()).await;
    let first = table(&[("a", 30001, &[1]), ("b", 30002, &[1]), ("c", 30003, &[1])]);
    let lane = Running::start(config(&[server.addr], None, None), Some(first));
    for host in ["a", "b", "c"] {
        lane.live(host).await;
    }
    server.stop().await;
    until("loss seen", || lane.state("a") == Some(RouteState::Pending)).await;
    // Many tables while down: only the last counts.
    for port in 30100..30200 {
        lane.want(&[("a", port, &[1]), ("b", 30002, &[1])]);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    lane.want(&[("b", 30002, &[1]), ("c", 30003, &[2, 3])]);
    until("withdrawing", || {
        lane.state("a") == Some(RouteState::Withdrawing)
    })
    .await;
    let before = server.routes().len();
    server.listen().await;
    lane.live("b").await;
    lane.live("c").await;
    let sent = brief(&server.routes()[before..]);
    assert_eq!(sent[0], "+c@2:30003", "a replacement goes first: {sent:?}");
    let at = |text: &str| sent.iter().position(|other| other == text).unwrap();
    assert!(at("-a@1:30001") < at("-c@1:30003"), "{sent:?}");
    assert_eq!(at("+c@3:30003") + 1, at("-c@1:30003"), "{sent:?}");
    assert!(at("-c@1:30003") < at("+b@1:30002"), "{sent:?}");
    let stale = |text: &&String| text.starts_with("+a");
    assert_eq!(sent.iter().filter(stale).count(), 0, "{sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_each_withdrawal_an_endpoint_that_stays_is_on_the_wire_and_twice_before_the_first() {
    let server = Server::start(Behaviour::default()).await;
    let first = table(&[("a", 30001, &[1])]);
    let lane = Running::start(config(&[server.addr], None, None), Some(first));
    lane.live("a").await;
    lane.want(&[("a", 30001, &[2])]);
    let withdrawals = || {
        let all = brief(&server.routes());
        let at = all.iter().enumerate();
        let at: Vec<_> = at.filter(|(_, text)| *text == "-a@1:30001").collect();
        at.into_iter()
            .map(|(at, _)| all[..at].to_vec())
            .collect::<Vec<_>>()
    };
    until("a repetition", || withdrawals().len() >= 2).await;
    for before in withdrawals() {
        assert_eq!(before.last().unwrap(), "+a@2:30001");
    }
    let before = &withdrawals()[0];
    assert_eq!(before[before.len() - 2..], ["+a@2:30001", "+a@2:30001"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_starts_hears_everything_anew() {
    let server = Server::start(Behaviour::default()).await;
    let first = table(&[("a", 30001, &[1]), ("b", 30002, &[1])]);
    let lane = Running::start(config(&[server.addr], None, None), Some(first));
    lane.live("a").await;
    lane.live("b").await;
    let announcements = || lane.counters.announcements.load(Ordering::Relaxed);
    assert_eq!(announcements(), 2);
    let start = r#"{"id":"r1","minimumRegisterIntervalInSeconds":5,"hosts":["10.0.0.1"]}"#;
    server.publish("router.start", start);
    server.publish("router.start", start);
    until("a sweep", || announcements() == 4).await;
    assert_eq!(lane.counters.router_starts.load(Ordering::Relaxed), 2);
    until("its interval", || {
        lane.counters.interval_millis.load(Ordering::Relaxed) == 5000
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_found_by_its_silence_and_left() {
    let server = Server::start(Behaviour::default()).await;
    let lane = Running::start(
        config(&[server.addr], None, None),
        Some(table(&[("a", 30001, &[1])])),
    );
    lane.live("a").await;
    server.change(|behaviour| behaviour.frozen = true);
    lane.want(&[("a", 30001, &[1]), ("b", 30002, &[1])]);
    until("given up", || {
        lane.counters.connected.load(Ordering::Relaxed) == 0
    })
    .await;
    assert!(lane.counters.echo_misses.load(Ordering::Relaxed) >= 2);
    assert_ne!(
        lane.state("b"),
        Some(RouteState::Live),
        "nobody confirmed it"
    );
    server.change(|behaviour| behaviour.frozen = false);
    lane.live("b").await;
    assert_eq!(lane.counters.connections.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_without_the_password_and_mended_without_a_restart() {
    let behaviour = Behaviour {
        password: Some("right".to_owned()),
        ..Behaviour::default()
    };
    let server = Server::start(behaviour).await;
    let lane = Running::start(
        config(&[server.addr], Some("hunter2"), None),
        Some(table(&[("a", 30001, &[1])])),
    );
    until("the refusal", || {
        lane.error().contains("authorization violation")
    })
    .await;
    assert!(!format!("{:?}", lane.report.borrow()).contains("hunter2"));
    assert_eq!(lane.report.borrow().findings[0].code, Code::LaneDown);
    assert!(server.routes().is_empty());
    server.change(|behaviour| behaviour.password = Some("hunter2".to_owned()));
    lane.live("a").await;
    assert!(lane.report.borrow().findings.is_empty());
    assert_eq!(lane.error(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_does_not_keep_the_lane_from_the_other() {
    let mut dead = Server::start(Behaviour::default()).await;
    dead.stop().await;
    let server = Server::start(Behaviour::default()).await;
    let lane = Running::start(
        config(&[dead.addr, server.addr], None, None),
        Some(table(&[("a", 30001, &[1])])),
    );
    lane.live("a").await;
    assert_eq!(
        lane.report.borrow().facts.get("server").unwrap(),
        &server.addr.to_string()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_name_means_nothing_is_passed_over_each_time() {
    let mut server = Server::start(Behaviour::default()).await;
    let mut config = config(&[server.addr, server.addr], None, None);
    // A domain that no resolver may ever know (RFC 2606).
    config.servers[0].host = "nats.invalid".to_owned();
    let lane = Running::start(config, Some(table(&[("a", 30001, &[1])])));
    for connection in 1..=3 {
        until("a connection stands", || server.connections() >= connection).await;
        lane.live("a").await;
        server.stop().await;
        server.listen().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_demands_tls_gets_a_handshake_and_no_password_in_the_clear() {
    let behaviour = Behaviour {
        demand_tls: true,
        ..Behaviour::default()
    };
    let server = Server::start(behaviour).await;
    let lane = Running::start(config(&[server.addr], Some("hunter2"), None), None);
    until("first bytes", || !server.first_bytes().is_empty()).await;
    // TLS record type 22 is a handshake.
    assert_eq!(server.first_bytes()[0], 22);
    until("an error", || !lane.error().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_never_spoken_to_where_tls_is_configured() {
    let server = Server::start(Behaviour::default()).await;
    let tls = TlsConfig::default();
    let first = Some(table(&[("a", 30001, &[1])]));
    let lane = Running::start(config(&[server.addr], Some("hunter2"), Some(tls)), first);
    until("an error", || !lane.error().is_empty()).await;
    until("two attempts", || server.connections() >= 2).await;
    assert!(server.routes().is_empty());
    assert_ne!(lane.state("a"), Some(RouteState::Live));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_right_to_an_inbox_the_lane_goes_on_and_says_so() {
    let behaviour = Behaviour {
        deny_inbox: true,
        ..Behaviour::default()
    };
    let server = Server::start(behaviour).await;
    let lane = Running::start(
        config(&[server.addr], None, None),
        Some(table(&[("a", 30001, &[1])])),
    );
    lane.live("a").await;
    until("said", || {
        let report = lane.report.borrow();
        let delivery = report.facts.get("delivery");
        delivery.is_some_and(|text| text.starts_with("degraded"))
    })
    .await;
    assert_eq!(server.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_the_server_does_not_let_us_publish_are_never_live_and_the_lane_is_down() {
    let behaviour = Behaviour {
        deny_publish: Some("router.register"),
        routers: vec![r#"{"id":"r1","minimumRegisterIntervalInSeconds":1}"#.to_owned()],
        ..Behaviour::default()
    };
    let server = Server::start(behaviour).await;
    let first = Some(table(&[("a", 30001, &[1])]));
    let lane = Running::start(config(&[server.addr], None, None), first);
    until("told", || lane.error().contains("`router.register`")).await;
    let down = || {
        let report = lane.report.borrow();
        report.findings.iter().any(|it| it.code == Code::LaneDown)
    };
    until("down", down).await;
    assert_eq!(lane.counters.connected.load(Ordering::Relaxed), 1);
    let echoes = || lane.counters.echoes.load(Ordering::Relaxed);
    let seen = echoes();
    until("another echo", || echoes() > seen).await;
    assert_eq!(lane.state("a"), Some(RouteState::Pending));
    assert!(down());
    server.change(|behaviour| behaviour.deny_publish = None);
    lane.live("a").await;
    until("mended", || lane.error().is_empty() && !down()).await;
    assert_eq!(server.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_too_large_for_the_server_is_told_and_keeps_nothing_behind_it_waiting() {
    let behaviour = Behaviour {
        max_payload: 800,
        ..Behaviour::default()
    };
    let server = Server::start(behaviour).await;
    let hosts: Vec<String> = (0..20).map(|n| format!("{}{n}", "a".repeat(40))).collect();
    let mut routes: Vec<(&str, u16, &[u8])> = hosts
        .iter()
        .map(|host| (host.as_str(), 30001, &[1][..]))
        .collect();
    routes.push(("b", 30002, &[1]));
    let first = Some(table(&routes));
    let lane = Running::start(config(&[server.addr], None, None), first);
    lane.live("b").await;
    until("told", || lane.error().contains("`max_payload`")).await;
    assert_eq!(lane.state(&hosts[0]), Some(RouteState::Pending));
    assert_eq!(lane.counters.connections.load(Ordering::Relaxed), 1);
    assert_eq!(brief(&server.routes()), ["+b@1:30002"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_sends_what_waits_and_withdraws_nothing() {
    let server = Server::start(Behaviour::default()).await;
    let hosts: Vec<String> = (0..900).map(|n| format!("h{n}")).collect();
    let routes: Vec<(&str, u16, &[u8])> = (30000..)
        .zip(&hosts)
        .map(|(port, host)| (host.as_str(), port, &[1][..]))
        .collect();
    let mut lane = Running::start(config(&[server.addr], None, None), None);
    until("connected", || {
        lane.counters.connected.load(Ordering::Relaxed) == 1
    })
    .await;
    lane.want(&routes);
    until("some sent", || !server.routes().is_empty()).await;
    lane.stop.cancel();
    tokio::time::timeout(DEADLINE, &mut lane.task)
        .await
        .expect("it must stop")
        .unwrap();
    // Beats may be among them; every route is.
    let distinct = || {
        let routes = server.routes().into_iter();
        routes.collect::<std::collections::BTreeSet<_>>().len()
    };
    until("all of them", || distinct() == 900).await;
    assert!(server.routes().iter().all(|(_, sign, _)| *sign == '+'));
}
