//! The lane among strangers: whose host is whose, and what is done where nothing can be heard.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use route_sync::config::NatsConfig;
use route_sync::desired::{Code, Desired};
use route_sync::lease::{Role, Term};
use route_sync::route::{NodePort, ServiceKey, ServiceRef};
use route_sync::status::RouteState;
use tokio::sync::mpsc;

use super::role::{ACTIVE, among_others, subject};
use super::server::{Behaviour, Server};
use super::{DEADLINE, Running, brief, config, table, until};

/// Far below gorouter's, so that the lane has soon listened for one.
const INTERVAL: Duration = Duration::from_millis(200);

fn quick(server: &Server) -> NatsConfig {
    NatsConfig {
        default_interval: INTERVAL,
        ..config(&[server.addr], None, None)
    }
}

/// What a stranger at `10.9.0.7:8080` says of a host.
fn theirs(host: &str) -> String {
    format!(
        r#"{{"host":"10.9.0.7","port":8080,"uris":["{host}.test"],"tags":{{"component":"x"}}}}"#
    )
}

fn codes(lane: &Running) -> Vec<(Code, String)> {
    let report = lane.report.borrow();
    let code = |finding: &route_sync::desired::Finding| (finding.code, finding.message.clone());
    report.findings.iter().map(code).collect()
}

async fn overheard(lane: &Running, messages: u64) {
    until("overheard", || {
        lane.counters.overheard.load(Ordering::Relaxed) >= messages
    })
    .await;
}

/// A lane that stands by, and hears all that it listens to.
async fn standing_by(lane: &Running, server: &Server) {
    until("warm", || lane.report.borrow().warm).await;
    for subject in ["router.register", "router.unregister", subject()] {
        until(subject, || server.listens(subject)).await;
    }
}

/// Another instance says that it leads, and is heard.
async fn another_leads(server: &Server, heard: &mut mpsc::Receiver<Term>) {
    server.publish(subject(), r#"{"generation":4,"holder":"them"}"#);
    let term = tokio::time::timeout(DEADLINE, heard.recv()).await;
    assert_eq!(term.expect("it must be heard").unwrap().generation, 4);
}

/// A lane that serves `a` and has listened for longer than an interval.
async fn listening(server: &Server, config: NatsConfig) -> Running {
    let lane = Running::start(config, Some(table(&[("a", 30001, &[1])])));
    lane.live("a").await;
    overheard(&lane, 1).await;
    tokio::time::sleep(2 * INTERVAL).await;
    assert_eq!(
        lane.counters.strangers.load(Ordering::Relaxed),
        0,
        "our own words are no stranger's: {:?}",
        server.routes()
    );
    lane
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_strangers_serve_is_held_until_they_leave() {
    let server = Server::start(Behaviour::default()).await;
    let lane = listening(&server, quick(&server)).await;
    server.publish("router.register", &theirs("web"));
    until("the stranger is known", || {
        lane.counters.strangers.load(Ordering::Relaxed) == 1
    })
    .await;
    lane.want(&[("a", 30001, &[1]), ("web", 30002, &[1]), ("b", 30003, &[1])]);
    until("held", || lane.state("web") == Some(RouteState::Held)).await;
    lane.live("b").await;
    let (code, message) = codes(&lane).remove(0);
    assert_eq!(code, Code::HostForeign);
    assert!(message.contains("`10.9.0.7:8080`"), "{message}");
    let ours = |text: &String| text.contains("web");
    let sent = brief(&server.routes());
    assert!(!sent.iter().any(ours), "{sent:?}");
    server.publish("router.unregister", &theirs("web"));
    lane.live("web").await;
    until("nothing is wrong", || codes(&lane).is_empty()).await;
    let sent = brief(&server.routes());
    assert!(sent.contains(&"+web@1:30002".to_owned()), "{sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_join_a_host_of_ours_are_told_and_ours_stays() {
    let server = Server::start(Behaviour::default()).await;
    let lane = listening(&server, quick(&server)).await;
    server.publish("router.register", &theirs("a"));
    until("told", || !codes(&lane).is_empty()).await;
    assert_eq!(codes(&lane)[0].0, Code::HostForeignJoined);
    assert_eq!(lane.state("a"), Some(RouteState::Live));
    let beats = lane.counters.beats.load(Ordering::Relaxed);
    until("beats go on", || {
        lane.counters.beats.load(Ordering::Relaxed) > beats
    })
    .await;
    let sent = brief(&server.routes());
    assert!(sent.iter().all(|text| text == "+a@1:30001"), "{sent:?}");
    server.publish("router.unregister", &theirs("a"));
    until("nothing is wrong", || codes(&lane).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_over_goes_on_where_it_heard_its_predecessor_and_leaves_strangers_the_rest() {
    let server = Server::start(Behaviour::default()).await;
    let (inheritance, roles, mut heard) = among_others(Role::Standby);
    let routes = table(&[("a", 30001, &[1]), ("web", 30002, &[1])]);
    let lane = Running::start_with(quick(&server), inheritance, Some(routes));
    standing_by(&lane, &server).await;
    // The one that leads serves `a`, and has strangers there as well.
    let leads = r#"{"host":"10.0.0.1","port":30001,"uris":["a.test"],"tags":{"cluster":"kube","component":"route-sync"}}"#;
    server.publish("router.register", leads);
    for host in ["a", "web"] {
        server.publish("router.register", &theirs(host));
    }
    until("the strangers are known", || {
        lane.counters.strangers.load(Ordering::Relaxed) == 2
    })
    .await;
    tokio::time::sleep(2 * INTERVAL).await;
    another_leads(&server, &mut heard).await;
    roles.send_replace(ACTIVE);
    lane.live("a").await;
    let known: Vec<_> = codes(&lane).into_iter().map(|(code, _)| code).collect();
    assert_eq!(known, [Code::HostForeignJoined, Code::HostForeign]);
    let sent = brief(&server.routes());
    assert!(!sent.contains(&"+web@1:30002".to_owned()), "{sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stands_by_for_a_moment_goes_on_with_every_host_that_it_served() {
    let server = Server::start(Behaviour::default()).await;
    let (inheritance, roles, mut heard) = among_others(Role::Standby);
    let routes = table(&[("a", 30001, &[1])]);
    let lane = Running::start_with(quick(&server), inheritance, Some(routes));
    standing_by(&lane, &server).await;
    // It has followed another one, long enough to know all that one served.
    tokio::time::sleep(2 * INTERVAL).await;
    another_leads(&server, &mut heard).await;
    roles.send_replace(ACTIVE);
    lane.want(&[("a", 30001, &[1]), ("b", 30002, &[1])]);
    lane.live("b").await;
    server.publish("router.register", &theirs("b"));
    until("told", || !codes(&lane).is_empty()).await;

    roles.send_replace(Role::Standby);
    until("silent", || lane.state("b") == Some(RouteState::Pending)).await;
    let before = server.routes().len();
    roles.send_replace(ACTIVE);
    lane.live("b").await;
    assert_eq!(codes(&lane)[0].0, Code::HostForeignJoined);
    let sent = brief(&server.routes()[before..]);
    assert!(sent.iter().all(|text| text.starts_with('+')), "{sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_over_without_having_heard_its_predecessor_leaves_nothing_out() {
    let server = Server::start(Behaviour::default()).await;
    let (inheritance, roles, _heard) = among_others(Role::Standby);
    let routes = table(&[("web", 30002, &[1])]);
    let lane = Running::start_with(quick(&server), inheritance, Some(routes));
    standing_by(&lane, &server).await;
    server.publish("router.register", &theirs("web"));
    overheard(&lane, 1).await;
    tokio::time::sleep(2 * INTERVAL).await;
    roles.send_replace(ACTIVE);
    lane.live("web").await;
    assert_eq!(codes(&lane)[0].0, Code::HostForeignJoined);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_an_operator_says_join_a_strangers_host_is_shared_and_told() {
    let server = Server::start(Behaviour::default()).await;
    let config = NatsConfig {
        join_foreign: true,
        ..quick(&server)
    };
    let lane = listening(&server, config).await;
    server.publish("router.register", &theirs("web"));
    until("the stranger is known", || {
        lane.counters.strangers.load(Ordering::Relaxed) == 1
    })
    .await;
    lane.want(&[("web", 30002, &[1])]);
    lane.live("web").await;
    until("told", || !codes(&lane).is_empty()).await;
    assert_eq!(codes(&lane)[0].0, Code::HostForeignJoined);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_start_every_host_comes_up_at_once_and_strangers_are_told_when_they_speak() {
    let server = Server::start(Behaviour::default()).await;
    let config = config(&[server.addr], None, None);
    let lane = Running::start(config, Some(table(&[("a", 30001, &[1])])));
    lane.live("a").await;
    until("listened to", || server.listens("router.register")).await;
    server.publish("router.register", &theirs("web"));
    until("the stranger is known", || {
        lane.counters.strangers.load(Ordering::Relaxed) == 1
    })
    .await;
    // Well within the first interval: what was ours before the start cannot be told from what was not.
    lane.want(&[("a", 30001, &[1]), ("web", 30002, &[1])]);
    lane.live("web").await;
    until("told", || !codes(&lane).is_empty()).await;
    assert_eq!(codes(&lane)[0].0, Code::HostForeignJoined);
}

#[tokio::test(flavor = "multi_thread")]
async fn node_ports_of_our_cluster_and_other_instances_are_no_strangers() {
    let server = Server::start(Behaviour::default()).await;
    let with_nodes = |hosts: &[(&str, u16, &[u8])]| {
        let service = |name: &str| {
            Arc::new(ServiceRef {
                key: ServiceKey {
                    namespace: "default".to_owned(),
                    name: name.to_owned(),
                },
                uid: name.to_owned(),
            })
        };
        let ports = [30001, 30002].map(|port| (NodePort::new(port).unwrap(), service("svc")));
        let ips = [1, 2].map(|node| (IpAddr::from([10, 0, 0, node]), format!("n{node}")));
        Arc::new(Desired {
            node_ips: BTreeMap::from(ips),
            node_ports: BTreeMap::from(ports),
            ..Desired::clone(&table(hosts))
        })
    };
    let lane = listening(&server, quick(&server)).await;
    lane.desired
        .send_replace(Some(with_nodes(&[("a", 30001, &[1])])));
    until("nodes known", || {
        lane.counters.beats.load(Ordering::Relaxed) > 0
    })
    .await;
    let before = lane.counters.overheard.load(Ordering::Relaxed);
    for message in [
        // The old job: no tags, one id for all.
        r#"{"host":"10.0.0.2","port":30002,"uris":["web.test"],"private_instance_id":"kubo-route-sync"}"#,
        // Another instance that knows a node which this one does not know yet.
        r#"{"host":"10.0.0.3","port":30002,"uris":["web.test"],"tags":{"cluster":"kube","component":"route-sync"}}"#,
    ] {
        server.publish("router.register", message);
    }
    overheard(&lane, before + 2).await;
    assert_eq!(lane.counters.strangers.load(Ordering::Relaxed), 0);
    // Another cluster is a stranger, and so is what else runs on a node.
    for message in [
        r#"{"host":"10.0.0.3","port":30002,"uris":["web.test"],"tags":{"cluster":"other","component":"route-sync"}}"#,
        r#"{"host":"10.0.0.2","port":8443,"uris":["web.test"]}"#,
    ] {
        server.publish("router.register", message);
    }
    until("strangers", || {
        lane.counters.strangers.load(Ordering::Relaxed) == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_listen_the_lane_works_and_says_what_is_missing() {
    let behaviour = Behaviour {
        deny_subscribe: Some("router.register"),
        ..Behaviour::default()
    };
    let mut server = Server::start(behaviour).await;
    let lane = Running::start(quick(&server), Some(table(&[("a", 30001, &[1])])));
    lane.live("a").await;
    let fact = |text: &str| {
        let report = lane.report.borrow();
        let fact = report.facts.get("strangers");
        fact.is_some_and(|fact| fact.contains(text))
    };
    until("said", || {
        fact("degraded: NATS denies subscribing to `router.register`")
    })
    .await;
    server.publish("router.register", &theirs("web"));
    lane.want(&[("a", 30001, &[1]), ("web", 30002, &[1])]);
    lane.live("web").await;
    assert_eq!(codes(&lane), Vec::new());
    assert_eq!(lane.error(), "");
    // The right is granted; the next connection has it.
    server.change(|behaviour| behaviour.deny_subscribe = None);
    server.stop().await;
    server.listen().await;
    until("heard", || fact("heard on")).await;
    until("listened to", || server.listens("router.register")).await;
    server.publish("router.register", &theirs("web"));
    until("told", || !codes(&lane).is_empty()).await;
    assert_eq!(codes(&lane)[0].0, Code::HostForeignJoined);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_others_keeps_nothing_of_ours_waiting() {
    const FLOOD: u64 = 20_000;
    let server = Server::start(Behaviour::default()).await;
    let lane = listening(&server, quick(&server)).await;
    let before = lane.counters.overheard.load(Ordering::Relaxed);
    for n in 0..FLOOD {
        server.publish("router.register", &theirs(&format!("app-{n}")));
    }
    lane.want(&[("a", 30001, &[1]), ("b", 30002, &[1])]);
    lane.live("b").await;
    // What found no room is dropped and counted, and nothing else is.
    let read = || {
        let counters = &lane.counters;
        let read = counters.overheard.load(Ordering::Relaxed) - before;
        let strangers = counters.strangers.load(Ordering::Relaxed);
        (read, strangers)
    };
    until("all that had room is read", || {
        let (read, strangers) = read();
        let dropped = lane.counters.overheard_dropped.load(Ordering::Relaxed);
        strangers > 0 && (strangers == FLOOD || dropped > 0) && read >= strangers
    })
    .await;
    lane.live("a").await;
}
