//! The TCP lane as a whole, against a UAA and a routing API that behave as measured.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use route_sync::config::{RoutingApiConfig, Secret, TlsConfig, UaaConfig};
use route_sync::desired::Desired;
use route_sync::lifecycle::Clock;
use route_sync::plan::{InstanceId, OnForeign};
use route_sync::publish::tcp::{self, Pace, TcpCounters, TcpLane};
use route_sync::route::{
    Backend, Backends, ClusterId, Lane, NodePort, NodeUid, PortRanges, RouteTable, RouterPort,
    ServiceKey, ServiceRef, TcpRoute,
};
use route_sync::status::{LaneReport, RouteState};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[path = "tcp_lane/batches.rs"]
mod batches;
#[path = "tcp_lane/drain.rs"]
mod drain;
#[path = "tcp_lane/events.rs"]
mod events;
#[path = "tcp_lane/foundation.rs"]
mod foundation;
#[path = "tcp_lane/reload.rs"]
mod reload;
#[path = "tcp_lane/role.rs"]
mod role;
#[path = "tcp_lane/tokens.rs"]
mod tokens;
#[path = "tcp_lane/warm.rs"]
mod warm;

use foundation::{Api, Foundation, Running, group};

/// Far beyond what anything here takes, even on a machine that is busy with other things.
const DEADLINE: Duration = Duration::from_secs(30);
/// Seconds: a TTL that a test can outlive, and that a row refreshed at its quarter has most of left where the machine
/// stands still for some seconds.
const BRIEF: u64 = 9;
/// Longer than rows of such a TTL live unless they are refreshed.
const A_LIFE: Duration = Duration::from_millis(BRIEF * 1000 + 500);

/// A lane at work.
struct Subject {
    foundation: Running,
    desired: watch::Sender<Option<Arc<Desired>>>,
    report: watch::Receiver<LaneReport>,
    counters: Arc<TcpCounters>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn config(url: &str, ttl: u64) -> (RoutingApiConfig, UaaConfig) {
    let routing_api = RoutingApiConfig {
        url: url.to_owned(),
        router_group: "default-tcp".to_owned(),
        router_group_is_default: true,
        ttl: Duration::from_secs(ttl),
        reserved_ports: PortRanges::default(),
        instance_id: None,
        on_foreign: OnForeign::Hold,
        tls: TlsConfig::default(),
    };
    let uaa = UaaConfig {
        url: url.to_owned(),
        client_id: "client".to_owned(),
        client_secret: Secret::new("secret".to_owned()),
        tls: TlsConfig::default(),
    };
    (routing_api, uaa)
}

fn brisk() -> Pace {
    Pace {
        list_every: Duration::from_secs(2),
        foreign_look: Duration::from_millis(200),
        legacy_look: Duration::from_millis(200),
        groups_every: Duration::from_millis(500),
        quarantine: Duration::from_mins(1),
        scope_retry: Duration::from_millis(500),
        legacy_life: Duration::from_millis(500),
        prune_margin: Duration::from_secs(1),
        events_retry: Duration::from_millis(500),
        events_silence: Duration::from_secs(150),
        events_patience: Duration::from_mins(5),
    }
}

impl Subject {
    async fn start(ttl: u64, routes: &[(u16, u16)], prepare: impl FnOnce(&mut Api)) -> Self {
        Self::start_at(brisk(), ttl, routes, prepare).await
    }

    async fn start_at(
        pace: Pace,
        ttl: u64,
        routes: &[(u16, u16)],
        prepare: impl FnOnce(&mut Api),
    ) -> Self {
        let foundation = Running::start().await;
        let url = foundation.server.uri();
        prepare(&mut foundation.api.lock());
        let first = Some(want(routes));
        Self::start_prepared(&url, foundation, ttl, first, |lane| lane.with_pace(pace))
    }

    /// A brisk lane that is prepared before it starts, and may reach the foundation through somebody else.
    fn start_prepared(
        url: &str,
        foundation: Running,
        ttl: u64,
        first: Option<Arc<Desired>>,
        prepare: impl FnOnce(TcpLane) -> TcpLane,
    ) -> Self {
        let (config, uaa) = config(url, ttl);
        let (desired, receiver) = watch::channel(first);
        let (sender, report) = watch::channel(LaneReport::new(Lane::Tcp));
        let (counters, stop) = (Arc::<TcpCounters>::default(), CancellationToken::new());
        let lane = TcpLane::new(config, &uaa, counters.clone()).unwrap();
        let lane = prepare(lane.with_pace(brisk()));
        let task = tokio::spawn(lane.run(receiver, sender, Clock::start(), stop.clone()));
        Self {
            foundation,
            desired,
            report,
            counters,
            stop,
            task,
        }
    }

    fn api(&self) -> &Foundation {
        &self.foundation.api
    }

    fn want(&self, routes: &[(u16, u16)]) {
        self.desired.send_replace(Some(want(routes)));
    }

    /// Polls until the API is as it should be.
    async fn until(&self, what: &str, check: impl Fn(&Api) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            assert!(!self.task.is_finished(), "the lane ended");
            if check(&self.api().lock()) {
                return;
            }
            if Instant::now() > deadline {
                let (report, api) = (self.report.borrow().clone(), self.api().lock());
                panic!(
                    "{what}: not yet\n{report:#?}\n{:#?}\n{:#?}",
                    api.rows, api.calls
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the lane says so.
    async fn until_report(&self, what: &str, check: impl Fn(&LaneReport) -> bool) -> LaneReport {
        let mut report = self.report.clone();
        let waited = tokio::time::timeout(DEADLINE, report.wait_for(|report| check(report))).await;
        let Ok(report) = waited else {
            panic!("{what}: not yet\n{:#?}", self.report.borrow())
        };
        report.unwrap().clone()
    }

    async fn until_ports(&self, ports: &[u16]) {
        let ports: BTreeSet<_> = ports.iter().copied().collect();
        self.until(&format!("ports {ports:?}"), |api| api.ports() == ports)
            .await;
    }

    /// Watches for a while that a condition never breaks.
    async fn holds(&self, time: Duration, what: &str, check: impl Fn(&Api) -> bool) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            assert!(
                check(&self.api().lock()),
                "{what}: {:#?}",
                self.report.borrow()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn cluster() -> ClusterId {
    ClusterId("cluster".to_owned())
}

fn us() -> String {
    InstanceId::of(&cluster()).as_str().to_owned()
}

fn service(port: u16) -> ServiceKey {
    ServiceKey {
        namespace: "ns".to_owned(),
        name: format!("s{port}"),
    }
}

/// Routes by router port, each with so many nodes; the node port is the router port + 30000.
fn want(routes: &[(u16, u16)]) -> Arc<Desired> {
    let route = |&(port, nodes): &(u16, u16)| {
        let backends = (1..=nodes).map(|n| Backend {
            ip: format!("10.0.0.{n}").parse().unwrap(),
            port: NodePort::new(port + 30_000).unwrap(),
            node: NodeUid(format!("n{n}").into()),
            zone: None,
        });
        let route = TcpRoute {
            service: Arc::new(ServiceRef {
                key: service(port),
                uid: format!("u{port}"),
            }),
            router_group: None,
            backends: Backends::new(backends).unwrap(),
        };
        (RouterPort::new(port).unwrap(), route)
    };
    let table = RouteTable {
        tcp: routes.iter().map(route).collect(),
        http: BTreeMap::new(),
    };
    Arc::new(Desired {
        node_ips: (1..=3)
            .map(|n| (format!("10.0.0.{n}").parse().unwrap(), format!("n{n}")))
            .collect(),
        node_ports: routes
            .iter()
            .map(|(port, _)| {
                let service = ServiceRef {
                    key: service(*port),
                    uid: format!("u{port}"),
                };
                (NodePort::new(port + 30_000).unwrap(), Arc::new(service))
            })
            .collect(),
        ..Desired::of(cluster(), table)
    })
}

fn key(port: u16, node: u8, tls: i64) -> foundation::Key {
    (
        port,
        format!("10.0.0.{node}"),
        port + 30_000,
        tls,
        "g".to_owned(),
    )
}

fn has(report: &LaneReport, code: &str) -> bool {
    report
        .findings
        .iter()
        .any(|finding| finding.code.as_str() == code)
}

fn message(report: &LaneReport, code: &str) -> String {
    let finding = report
        .findings
        .iter()
        .find(|finding| finding.code.as_str() == code);
    finding
        .map(|finding| finding.message.clone())
        .unwrap_or_default()
}

#[tokio::test]
async fn a_wanted_route_is_created_without_tls_under_our_mark_and_deleted_when_unwanted() {
    let lane = Subject::start(120, &[(2000, 2)], |_| {}).await;
    lane.until_ports(&[2000]).await;
    {
        let api = lane.api().lock();
        let keys: Vec<_> = api.rows.keys().cloned().collect();
        assert_eq!(keys, [key(2000, 1, -1), key(2000, 2, -1)]);
        assert!(api.rows.values().all(|row| row.instance == Some(us())));
        assert_eq!(api.tokens_issued, 1);
    }
    let report = lane
        .until_report("live", |report| report.confirmed_once)
        .await;
    assert_eq!(report.routes["2000"].state, RouteState::Live);
    assert!(report.findings.is_empty(), "{report:#?}");
    lane.want(&[]);
    lane.until_ports(&[]).await;
}

#[tokio::test]
async fn rows_live_through_many_ttls_and_nothing_else_is_written() {
    let lane = Subject::start(BRIEF, &[(2000, 1), (2001, 3)], |_| {}).await;
    lane.until_ports(&[2000, 2001]).await;
    lane.until("all rows", |api| api.rows.len() == 4).await;
    lane.holds(2 * A_LIFE, "all rows live", |api| api.rows.len() == 4)
        .await;
    assert_eq!(lane.counters.rows_added.load(Relaxed), 4);
    assert!(lane.counters.rows_refreshed.load(Relaxed) >= 8);
}

#[tokio::test]
async fn a_restart_adopts_its_rows_without_adding_any_in_batches_of_a_hundred() {
    let routes: Vec<_> = (2000..2250).map(|port| (port, 1)).collect();
    let lane = Subject::start(120, &routes, |api| {
        for (port, _) in &routes {
            api.insert(key(*port, 1, -1), Some(&us()), Duration::from_mins(1));
        }
        // A row of ours that nobody wants any more goes.
        api.insert(key(3000, 1, -1), Some(&us()), Duration::from_mins(1));
    })
    .await;
    lane.until_report("in sync", |report| report.confirmed_once)
        .await;
    lane.until("refreshed and cleaned", |api| {
        api.creates().map(|call| call.ports.len()).sum::<usize>() == 250
            && !api.ports().contains(&3000)
    })
    .await;
    assert_eq!(lane.counters.rows_added.load(Relaxed), 0);
    assert!(
        lane.api()
            .lock()
            .creates()
            .all(|call| call.ports.len() <= 100)
    );
}

#[tokio::test]
async fn a_lower_max_ttl_is_adopted_and_refreshed_well_within() {
    let lane = Subject::start(120, &[(2000, 1), (2001, 1)], |api| {
        api.max_ttl = BRIEF;
    })
    .await;
    lane.until_ports(&[2000, 2001]).await;
    lane.until_report("told", |report| report.facts["ttl"] == "9 s")
        .await;
    let both = |api: &Api| api.rows.len() == 2;
    lane.holds(A_LIFE, "both live", both).await;
}

#[tokio::test]
async fn a_router_group_that_is_absent_or_ambiguous_is_waited_for() {
    let lane = Subject::start(120, &[(2000, 1)], |api| {
        let groups = [
            group("a", "alpha", "1024-9000"),
            group("b", "beta", "1024-9000"),
        ];
        api.groups = groups.to_vec().into();
    })
    .await;
    let report = lane
        .until_report("said", |report| has(report, "router-group-unknown"))
        .await;
    let text = message(&report, "router-group-unknown");
    assert!(
        text.contains("`alpha`") && text.contains("`beta`"),
        "{text}"
    );
    assert_eq!(report.routes["2000"].state, RouteState::Pending);
    // Nobody chose a name, so the only one there is will do.
    lane.api().lock().groups = vec![group("a", "alpha", "1024-9000")].into();
    lane.until_ports(&[2000]).await;
    lane.until_report("healed", |report| !has(report, "router-group-unknown"))
        .await;
}

#[tokio::test]
async fn a_router_group_with_a_new_guid_gets_every_row_anew() {
    let lane = Subject::start(120, &[(2000, 1)], |_| {}).await;
    lane.until_ports(&[2000]).await;
    lane.api().lock().groups = vec![group("g2", "default-tcp", "1024-9000")].into();
    lane.until("moved", |api| {
        api.rows
            .keys()
            .map(|key| key.4.as_str())
            .collect::<Vec<_>>()
            == ["g2"]
    })
    .await;
}

#[tokio::test]
async fn a_range_that_shrinks_closes_no_live_port_and_opens_no_new_one() {
    let lane = Subject::start(120, &[(2000, 1)], |_| {}).await;
    lane.until_ports(&[2000]).await;
    lane.api().lock().groups = vec![group("g", "default-tcp", "1024-1033")].into();
    lane.want(&[(2000, 1), (1024, 1)]);
    lane.until_report("kept", |report| has(report, "port-no-longer-reservable"))
        .await;
    lane.until_ports(&[1024, 2000]).await;
    lane.want(&[(2000, 1), (1024, 1), (2001, 1)]);
    lane.until_report("refused", |report| has(report, "port-not-reservable"))
        .await;
    lane.until_ports(&[1024, 2000]).await;
}

#[tokio::test]
async fn an_older_jobs_rows_are_deleted_before_ours_are_added() {
    let lane = Subject::start(120, &[(2000, 2)], |api| {
        for node in 1..=2 {
            api.insert(key(2000, node, 0), None, Duration::from_mins(10));
        }
    })
    .await;
    lane.until("ours alone", |api| {
        api.rows.len() == 2 && api.rows.keys().all(|key| key.3 == -1)
    })
    .await;
    assert!(!lane.api().lock().haproxy_broken);
}

#[tokio::test]
async fn an_older_jobs_rows_that_cannot_be_deleted_are_waited_for() {
    let lane = Subject::start(120, &[(2000, 1), (2001, 1)], |api| {
        api.keeps_tls_zero = true;
        api.insert(key(2000, 1, 0), None, Duration::from_secs(7));
    })
    .await;
    lane.until_ports(&[2000, 2001]).await;
    lane.until_report("said", |report| has(report, "legacy-rows"))
        .await;
    lane.until("ours alone", |api| {
        api.rows.keys().all(|key| key.3 == -1) && api.rows.len() == 2
    })
    .await;
    lane.until_report("resolved", |report| !has(report, "legacy-rows"))
        .await;
    let api = lane.api().lock();
    assert!(!api.haproxy_broken);
    let deletes = api
        .calls
        .iter()
        .filter(|call| call.path.ends_with("/delete"))
        .count();
    assert_eq!(deletes, 1, "asked once, then waited");
}

#[tokio::test]
async fn a_strangers_port_is_neither_joined_nor_deleted() {
    let stranger = |port| (port, "192.0.2.7".to_owned(), 80, 0, "g".to_owned());
    let lane = Subject::start(120, &[(2000, 1), (2001, 1)], |api| {
        api.insert(stranger(2000), Some("other"), Duration::from_secs(7));
    })
    .await;
    let report = lane
        .until_report("held", |report| has(report, "foreign-backend"))
        .await;
    assert!(message(&report, "foreign-backend").contains("192.0.2.7:80"));
    assert_eq!(report.routes["2000"].state, RouteState::Held);
    lane.until_ports(&[2000, 2001]).await;
    assert!(!lane.api().lock().rows.contains_key(&key(2000, 1, -1)));
    // When he leaves, the port is ours; when he joins a live one, ours stays.
    lane.until("ours", |api| api.rows.contains_key(&key(2000, 1, -1)))
        .await;
    lane.api()
        .lock()
        .insert(stranger(2001), Some("other"), Duration::from_mins(10));
    lane.until_report("joined", |report| has(report, "foreign-joined"))
        .await;
    lane.want(&[]);
    lane.until("only his is left", |api| {
        api.rows.keys().eq([&stranger(2001)])
    })
    .await;
}

#[tokio::test]
async fn a_single_change_does_not_wait_for_bulk() {
    let mut routes: Vec<_> = (2000..2060).map(|port| (port, 3)).collect();
    let lane = Subject::start(120, &routes, |_| {}).await;
    lane.until("bulk has begun", |api| api.rows.len() >= 4)
        .await;
    routes.push((5000, 3));
    lane.want(&routes);
    lane.until("the single one is open", |api| api.ports().contains(&5000))
        .await;
    let api = lane.api().lock();
    // 180 rows at 8 a second: most of them are still to come.
    assert!(api.rows.len() < 90, "{} rows went before", api.rows.len());
    let ports = api.ports().len();
    assert!(
        ports + 2 >= api.rows.len(),
        "breadth first: {ports} ports of {} rows",
        api.rows.len()
    );
}

#[tokio::test]
async fn a_hanging_request_delays_neither_other_routes_nor_the_end() {
    let lane = Subject::start(120, &[(2000, 1)], |api| {
        api.slow.insert(2000, Duration::from_mins(1));
    })
    .await;
    lane.until("the request hangs", |api| api.creates().count() == 1)
        .await;
    lane.want(&[(2001, 1)]);
    lane.until("another goes past it", |api| api.ports().contains(&2001))
        .await;
    lane.want(&[(2002, 1)]);
    lane.until("the latest wins", |api| {
        api.ports().contains(&2002) && !api.ports().contains(&2001)
    })
    .await;
    lane.stop.cancel();
    tokio::time::timeout(Duration::from_secs(20), lane.task)
        .await
        .expect("must end")
        .unwrap();
    let api = lane.foundation.api.lock();
    assert!(api.ports().contains(&2002), "the end keeps every row");
}

#[tokio::test]
async fn an_api_that_is_gone_for_less_than_a_ttl_costs_no_row() {
    let lane = Subject::start(30, &[(2000, 2), (2001, 1)], |_| {}).await;
    lane.until("all", |api| api.rows.len() == 3).await;
    for down in [
        (404, "404 Not Found: Requested route does not exist"),
        (502, "<html>"),
        (503, ""),
    ] {
        lane.api().lock().down = Some(down);
        lane.want(&[(2000, 2), (2001, 1), (2002, 1)]);
        lane.until_report("noticed", |report| has(report, "lane-down"))
            .await;
        lane.api().lock().down = None;
        lane.until("the change lands", |api| api.ports().contains(&2002))
            .await;
        lane.until_report("well again", |report| report.findings.is_empty())
            .await;
        lane.want(&[(2000, 2), (2001, 1)]);
        lane.until_ports(&[2000, 2001]).await;
    }
    assert_eq!(lane.api().lock().rows.len(), 3);
}

#[tokio::test]
async fn after_an_outage_longer_than_a_ttl_old_routes_come_back_before_new_ones_open() {
    let routes: Vec<_> = (2000..2030).map(|port| (port, 1)).collect();
    let lane = Subject::start(3, &routes, |api| {
        for (port, _) in &routes {
            api.insert(key(*port, 1, -1), Some(&us()), Duration::from_secs(3));
        }
    })
    .await;
    lane.until_report("in sync", |report| report.confirmed_once)
        .await;
    lane.until("all", |api| {
        api.rows.len() == 30 && api.creates().count() > 0
    })
    .await;
    lane.api().lock().down = Some((502, ""));
    lane.until("all lapsed", |api| api.rows.is_empty()).await;
    let mut more = routes.clone();
    more.insert(0, (1500, 1));
    lane.want(&more);
    let calls = {
        let mut api = lane.api().lock();
        api.down = None;
        api.calls.len()
    };
    lane.until("all and one", |api| api.rows.len() == 31).await;
    let api = lane.api().lock();
    let order: Vec<_> = api.calls[calls..]
        .iter()
        .filter(|call| call.status == 201)
        .flat_map(|call| call.ports.clone())
        .collect();
    let new = order.iter().position(|port| *port == 1500).unwrap();
    let before: BTreeSet<_> = order[..new].iter().collect();
    assert_eq!(before.len(), 30, "{order:?}");
}

#[tokio::test]
async fn rows_that_somebody_deletes_come_back() {
    let lane = Subject::start(120, &[(2000, 1)], |_| {}).await;
    lane.until_ports(&[2000]).await;
    lane.api().lock().rows.clear();
    lane.until_ports(&[2000]).await;
    assert_eq!(lane.counters.drift.load(Relaxed), 1);
}

#[tokio::test]
async fn a_service_that_flips_its_label_is_held_and_harms_no_one() {
    let lane = Subject::start(120, &[(2000, 1), (2001, 1)], |_| {}).await;
    lane.until_ports(&[2000, 2001]).await;
    for flip in 0..20 {
        lane.want(if flip % 2 == 0 {
            &[(2001, 1)]
        } else {
            &[(2000, 1), (2001, 1)]
        });
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let report = lane
        .until_report("held", |report| has(report, "flapping"))
        .await;
    assert_eq!(report.routes["2001"].state, RouteState::Live);
    let writes = lane.counters.rows_added.load(Relaxed) + lane.counters.rows_removed.load(Relaxed);
    assert!(writes <= 9, "{writes} rows came and went");
    lane.want(&[(2000, 1), (2001, 1), (2002, 1)]);
    lane.until("another Service is not harmed", |api| {
        api.ports().contains(&2002)
    })
    .await;
}

#[tokio::test]
async fn an_observation_writes_nothing_and_says_what_a_start_would_do() {
    let foundation = Running::start().await;
    foundation
        .api
        .lock()
        .insert(key(2000, 1, -1), Some(&us()), Duration::from_mins(10));
    foundation
        .api
        .lock()
        .insert(key(2005, 1, -1), Some(&us()), Duration::from_mins(10));
    let (config, uaa) = config(&foundation.server.uri(), 120);
    let observation = tcp::observe_once(&config, &uaa).await.unwrap();
    let plan = observation
        .plan(&config, &want(&[(2000, 1), (2001, 1), (80, 1)]))
        .unwrap();
    assert_eq!(
        plan.add
            .iter()
            .map(|row| row.port.get())
            .collect::<Vec<_>>(),
        [2001]
    );
    assert_eq!(
        plan.remove
            .iter()
            .map(|row| row.get().port.get())
            .collect::<Vec<_>>(),
        [2005]
    );
    assert_eq!(plan.findings[0].code.as_str(), "port-reserved");
    assert_eq!(foundation.api.lock().creates().count(), 0);
}
