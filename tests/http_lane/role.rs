//! The lane under its role: silent on standby, careful without proof, in touch with other instances.

use std::collections::BTreeSet;

use route_sync::Uptime;
use route_sync::lease::{Instances, Role, Roles, Term};
use route_sync::plan::InstanceId;
use route_sync::state::{HttpEntry, Warm, Withdrawal};
use tokio::sync::mpsc;

use super::drain::drained;
use super::*;

pub(super) const ACTIVE: Role = Role::Active {
    generation: 5,
    until: Uptime::MAX,
};
const CAUTIOUS: Role = Role::Cautious { generation: 5 };
/// Long enough for several beats of [`quick`].
const WHILE: Duration = Duration::from_millis(1500);

fn quick(server: &Server) -> NatsConfig {
    NatsConfig {
        default_interval: Duration::from_millis(200),
        ..config(&[server.addr], None, None)
    }
}

pub(super) fn subject() -> &'static str {
    subject_of("kube")
}

fn subject_of(cluster: &str) -> &'static str {
    let instance = InstanceId::of(&ClusterId(cluster.to_owned()));
    let hash = instance.as_str().trim_start_matches("rs-");
    format!("route-sync.{hash}").leak()
}

fn start(
    server: &Server,
    role: Role,
    routes: &[(&str, u16, &[u8])],
) -> (Running, watch::Sender<Role>, mpsc::Receiver<Term>) {
    let (inheritance, roles, heard) = among_others(role);
    let lane = Running::start_with(quick(server), inheritance, Some(table(routes)));
    (lane, roles, heard)
}

pub(super) fn among_others(
    role: Role,
) -> (http::Inheritance, watch::Sender<Role>, mpsc::Receiver<Term>) {
    let (roles, roles_rx) = watch::channel(role);
    let (instances, heard) = Instances::new("us".to_owned());
    let inheritance = http::Inheritance {
        roles: Roles::new(roles_rx),
        instances: Some(instances),
        ..http::Inheritance::default()
    };
    (inheritance, roles, heard)
}

fn said(server: &Server, wanted: &str) -> usize {
    let all = brief(&server.routes());
    all.iter().filter(|text| *text == wanted).count()
}

/// Waits for what was handed to the client before it fell silent.
async fn at_rest(server: &Server) {
    let (mut said, mut looks) = (server.routes().len(), 0);
    // Counted, so that a moment in which nobody moved proves nothing.
    until("at rest", || {
        let now = server.routes().len();
        looks = if now == said { looks + 1 } else { 0 };
        said = now;
        looks > 200
    })
    .await;
}

fn terms(server: &Server) -> Vec<serde_json::Value> {
    let all = server.published(subject()).into_iter();
    all.map(|message| serde_json::from_slice(&message.payload).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_says_nothing_and_announces_everything_breadth_first_once_it_leads() {
    let server = Server::start(Behaviour::default()).await;
    let routes = [("a", 30001, &[1, 2][..]), ("b", 30002, &[1, 2])];
    let (lane, roles, _heard) = start(&server, Role::Standby, &routes);
    until("warm", || lane.report.borrow().warm).await;
    // What leaves while it stands by is withdrawn by whoever leads, and once more by its successor.
    lane.want(&[routes[0], routes[1], ("c", 30003, &[1])]);
    lane.want(&routes);
    tokio::time::sleep(WHILE).await;
    assert!(server.routes().is_empty(), "{:?}", server.routes());
    assert!(terms(&server).is_empty());
    roles.send_replace(ACTIVE);
    lane.live("a").await;
    lane.live("b").await;
    until("all", || {
        said(&server, "+b@2:30002") > 0 && said(&server, "+a@2:30001") > 0
    })
    .await;
    let told = brief(&server.routes());
    let at = |text: &str| told.iter().position(|other| other == text).unwrap();
    let first = at("+a@1:30001").max(at("+b@1:30002"));
    let second = at("+a@2:30001").min(at("+b@2:30002"));
    assert!(first < second, "{told:?}");

    roles.send_replace(Role::Standby);
    until("silent", || lane.state("a") == Some(RouteState::Pending)).await;
    at_rest(&server).await;
    let before = server.routes().len();
    tokio::time::sleep(WHILE).await;
    assert_eq!(server.routes().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_proof_what_was_announced_beats_on_and_nothing_comes_or_goes() {
    let server = Server::start(Behaviour::default()).await;
    let routes = [("a", 30001, &[1][..]), ("b", 30002, &[1])];
    let (lane, roles, _heard) = start(&server, ACTIVE, &routes);
    lane.live("a").await;
    lane.live("b").await;
    roles.send_replace(CAUTIOUS);
    lane.want(&[("b", 30002, &[1]), ("c", 30003, &[1])]);
    let before = said(&server, "+a@1:30001");
    until("it beats on", || said(&server, "+a@1:30001") > before + 3).await;
    assert_eq!(said(&server, "+c@1:30003"), 0);
    assert_eq!(said(&server, "-a@1:30001"), 0);
    roles.send_replace(ACTIVE);
    lane.live("c").await;
    until("withdrawn", || said(&server, "-a@1:30001") > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn withdrawals_wait_for_proof_and_begin_anew_with_it() {
    let server = Server::start(Behaviour::default()).await;
    let (lane, roles, _heard) = start(&server, ACTIVE, &[("a", 30001, &[1])]);
    lane.live("a").await;
    lane.want(&[]);
    until("withdrawn", || said(&server, "-a@1:30001") > 0).await;
    roles.send_replace(CAUTIOUS);
    until("noted", || {
        lane.counters.withdrawals_pending.load(Ordering::Relaxed) == 1
    })
    .await;
    at_rest(&server).await;
    let before = said(&server, "-a@1:30001");
    // The second repetition would come after a second.
    tokio::time::sleep(WHILE).await;
    assert_eq!(said(&server, "-a@1:30001"), before);
    roles.send_replace(ACTIVE);
    until("again", || said(&server, "-a@1:30001") > before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leads_says_so_each_interval_and_answers_one_that_still_acts() {
    let server = Server::start(Behaviour::default()).await;
    let (lane, _roles, mut heard) = start(&server, ACTIVE, &[("a", 30001, &[1])]);
    lane.live("a").await;
    until("said again and again", || terms(&server).len() > 3).await;
    let ours = serde_json::json!({"generation": 5, "holder": "us"});
    assert!(terms(&server).iter().all(|term| *term == ours));
    let theirs = Term {
        generation: 6,
        holder: "them".to_owned(),
    };
    until("listened to", || server.listens(subject())).await;
    server.publish(subject(), r#"{"generation":6,"holder":"them"}"#);
    let wait = async { while heard.recv().await.unwrap() != theirs {} };
    tokio::time::timeout(DEADLINE, wait).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nats_denies_about_other_instances_is_told_and_harms_no_route() {
    let server = Server::start(Behaviour {
        deny_publish: Some(subject()),
        deny_subscribe: Some(subject()),
        ..Behaviour::default()
    })
    .await;
    let (lane, _roles, _heard) = start(&server, ACTIVE, &[("a", 30001, &[1])]);
    lane.live("a").await;
    let told = || {
        let report = lane.report.borrow();
        let mut findings = report.findings.iter();
        findings.any(|finding| finding.code == Code::InstancesUnheard)
    };
    until("told", told).await;
    assert_eq!(lane.error(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_proof_announces_the_last_processs_table_and_withdraws_nothing() {
    let server = Server::start(Behaviour::default()).await;
    let (roles, roles_rx) = watch::channel(CAUTIOUS);
    let inheritance = http::Inheritance {
        warm: Warm {
            table: Some(table(&[("a", 30001, &[1])])),
            withdrawals: BTreeSet::from([Withdrawal {
                uri: Arc::new(Uri::parse("gone.test").unwrap()),
                addr: SocketAddr::from(([10, 0, 0, 1], 30002)),
                tls: false,
            }]),
            ..Warm::default()
        },
        roles: Roles::new(roles_rx),
        ..http::Inheritance::default()
    };
    let lane = Running::start_with(quick(&server), inheritance, None);
    lane.live("a").await;
    lane.want(&[("b", 30003, &[1])]);
    until("it beats on", || said(&server, "+a@1:30001") > 3).await;
    let all = brief(&server.routes());
    assert!(all.iter().all(|text| text == "+a@1:30001"), "{all:?}");
    roles.send_replace(ACTIVE);
    lane.live("b").await;
    until("withdrawn", || {
        said(&server, "-a@1:30001") > 0 && said(&server, "-gone@1:30002") > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_each_connection_without_proof_the_term_is_said_and_listened_for_before_any_route() {
    let mut server = Server::start(Behaviour::default()).await;
    let (inheritance, _roles, _heard) = among_others(CAUTIOUS);
    let inheritance = http::Inheritance {
        warm: Warm {
            table: Some(table(&[("a", 30001, &[1])])),
            ..Warm::default()
        },
        ..inheritance
    };
    let started = Instant::now();
    let lane = Running::start_with(quick(&server), inheritance, None);
    until("announced", || !server.routes().is_empty()).await;
    // Half a second, in which a successor that hears of it answers.
    assert!(started.elapsed() >= Duration::from_millis(500));
    assert!(!terms(&server).is_empty());
    lane.live("a").await;
    server.stop().await;
    until("loss seen", || lane.state("a") == Some(RouteState::Pending)).await;
    let (routes, told) = (server.routes().len(), terms(&server).len());
    let again = Instant::now();
    server.listen().await;
    until("announced again", || server.routes().len() > routes).await;
    assert!(again.elapsed() >= Duration::from_millis(500));
    assert!(terms(&server).len() > told);
    lane.live("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_heard_on_the_subject_of_a_cluster_that_changed() {
    let server = Server::start(Behaviour::default()).await;
    let (lane, _roles, mut heard) = start(&server, ACTIVE, &[("a", 30001, &[1])]);
    lane.live("a").await;
    let mut other = Desired::clone(&table(&[("a", 30001, &[1])]));
    other.cluster = ClusterId("other".to_owned());
    lane.desired.send_replace(Some(Arc::new(other)));
    let subject = subject_of("other");
    until("said there", || !server.published(subject).is_empty()).await;
    let theirs = Term {
        generation: 6,
        holder: "them".to_owned(),
    };
    until("listened to", || server.listens(subject)).await;
    server.publish(subject, r#"{"generation":6,"holder":"them"}"#);
    let wait = async { while heard.recv().await.unwrap() != theirs {} };
    tokio::time::timeout(DEADLINE, wait).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_whose_node_port_was_taken_leaves_the_state_as_well() {
    let server = Server::start(Behaviour::default()).await;
    let (ledger, mut noted) = watch::channel(HttpEntry::default());
    let (inheritance, roles, _heard) = among_others(ACTIVE);
    let inheritance = http::Inheritance {
        ledger: Some(ledger),
        ..inheritance
    };
    let routes = [("a", 30001, &[1][..]), ("b", 30002, &[1])];
    let lane = Running::start_with(quick(&server), inheritance, Some(table(&routes)));
    lane.live("a").await;
    roles.send_replace(CAUTIOUS);
    let mut taken = Desired::clone(&table(&routes));
    let heir = ServiceKey {
        namespace: "default".to_owned(),
        name: "heir".to_owned(),
    };
    let heir = ServiceRef {
        key: heir,
        uid: "heir".to_owned(),
    };
    let port = NodePort::new(30001).unwrap();
    taken.node_ports.insert(port, Arc::new(heir));
    lane.desired.send_replace(Some(Arc::new(taken)));
    let only_b = |entry: &HttpEntry| {
        let applied = entry.applied.as_ref();
        applied.is_some_and(|table| {
            let names = table.table.http.keys().map(ToString::to_string);
            names.eq(["b.test"])
        })
    };
    let noted = noted.wait_for(only_b);
    tokio::time::timeout(DEADLINE, noted)
        .await
        .expect("it must be noted")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_without_proof_says_why_nothing_goes_and_is_done_with_proof() {
    let server = Server::start(Behaviour::default()).await;
    let (lane, roles, _heard) = start(&server, ACTIVE, &[("a", 30001, &[1])]);
    lane.live("a").await;
    roles.send_replace(CAUTIOUS);
    lane.desired.send_replace(Some(drained()));
    until("told", || lane.report.borrow().withdrawn.is_some()).await;
    let told = lane.report.borrow().withdrawn.clone().unwrap();
    assert!(!told.proven && told.left.contains("a.test"), "{told:?}");
    assert!(told.why.unwrap().contains("the Lease cannot be renewed"));
    roles.send_replace(ACTIVE);
    let gone = || {
        let report = lane.report.borrow();
        let withdrawn = report.withdrawn.as_ref();
        withdrawn.is_some_and(|withdrawn| withdrawn.proven)
    };
    until("gone", gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_shown_gone_in_a_drain_is_not_left_again_when_proof_ends() {
    let server = Server::start(Behaviour::default()).await;
    let (lane, roles, _heard) = start(&server, ACTIVE, &[("a", 30001, &[1])]);
    lane.live("a").await;
    lane.desired.send_replace(Some(drained()));
    let proven = || {
        let report = lane.report.borrow();
        let withdrawn = report.withdrawn.as_ref();
        withdrawn.is_some_and(|withdrawn| withdrawn.proven && withdrawn.left.is_empty())
    };
    until("gone", proven).await;
    roles.send_replace(CAUTIOUS);
    let end = Instant::now() + WHILE;
    while Instant::now() < end {
        assert!(proven(), "{:?}", lane.report.borrow().withdrawn);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
