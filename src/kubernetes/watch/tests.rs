//! The view on its own: what a delivery changes, and what leaves only once it is confirmed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::absence::Gone;
use super::assembler::Assembler;
use super::source::Change;
use super::view::{Absence, SourceId, Status, View};
use crate::config::KubernetesConfig;
use crate::desired::Code;
use crate::kubernetes::Timing;
use crate::kubernetes::api::Api;
use crate::kubernetes::snapshot::Snapshot;
use crate::kubernetes::wire::{Event, Item, Kind, Object, ObjectKey, event, item, page};
use crate::lifecycle::Clock;
use crate::route::ClusterId;

fn service(version: u64, uid: &str, labels: Value) -> Item {
    item(
        Kind::Service,
        json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": uid,
                "resourceVersion": version.to_string(), "labels": labels},
            "spec": {"ports": [{"port": 80, "nodePort": 30_000 + version}]},
        }),
    )
}

fn complete() -> View {
    let mut view = View::default();
    for source in SourceId::ALL {
        view.listed(source, Vec::new());
    }
    view
}

fn snapshot(view: &View) -> Snapshot {
    view.snapshot(ClusterId("c".to_owned()), &[])
}

/// A read confirms it, and can tell no more.
fn missing(absence: &Absence) -> Gone {
    Gone {
        absence: absence.clone(),
        seen: false,
        with_namespace: false,
    }
}

fn key() -> ObjectKey {
    ObjectKey {
        namespace: "ns".to_owned(),
        name: "web".to_owned(),
    }
}

fn node(json: Value) -> crate::kubernetes::snapshot::Node {
    match item(Kind::Node, json).object {
        Ok(Object::Node(node)) => *node,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_complete_before_the_last_required_list() {
    let mut view = View::default();
    for source in [SourceId::HttpServices, SourceId::Nodes] {
        view.listed(source, Vec::new());
    }
    assert!(!view.complete());
    view.listed(SourceId::TcpServices, Vec::new());
    assert!(view.complete());
    assert_eq!(snapshot(&view).endpoints, None);
}

#[test]
fn a_service_that_left_stays_until_confirmed() {
    let mut view = complete();
    view.applied(
        SourceId::HttpServices,
        service(1, "u", json!({"http-route-sync": "a"})),
    );
    view.left(SourceId::HttpServices, &key());
    assert_eq!(snapshot(&view).services.len(), 1);
    let absences = view.absences(false);
    assert_eq!(absences.len(), 1);
    view.confirmed(&missing(&absences[0]));
    assert!(snapshot(&view).services.is_empty() && view.absences(false).is_empty());
}

#[test]
fn how_a_service_left_is_known_until_it_is_back() {
    let labels = || json!({"tcp-route-sync": "2000"});
    let source = SourceId::TcpServices;
    let left = |tell: fn(&mut View), seen: bool| {
        let mut view = complete();
        view.applied(source, service(1, "u", labels()));
        tell(&mut view);
        let gone = Gone {
            seen,
            ..missing(&view.absences(false)[0])
        };
        view.confirmed(&gone);
        let by_list = |view: &View| {
            let left = snapshot(view).evidence.left;
            left.values().map(|it| it.by_list).collect::<Vec<_>>()
        };
        let told = by_list(&view);
        view.applied(source, service(2, "u", labels()));
        assert!(by_list(&view).is_empty());
        told
    };
    let listed = |view: &mut View| view.listed(SourceId::TcpServices, Vec::new());
    assert_eq!(left(listed, false), [true]);
    assert_eq!(left(listed, true), [false], "a read showed it unlabelled");
    let told = |view: &mut View| view.left(SourceId::TcpServices, &key());
    assert_eq!(left(told, false), [false]);
    let both = |view: &mut View| {
        view.listed(SourceId::TcpServices, Vec::new());
        view.left(SourceId::TcpServices, &key());
    };
    assert_eq!(left(both, false), [false]);
}

#[test]
fn complete_lists_of_required_sources_are_counted() {
    let mut view = complete();
    view.listed(SourceId::Nodes, Vec::new());
    view.agreed(SourceId::TcpServices);
    view.agreed(SourceId::TcpServices);
    let counts = snapshot(&view).evidence.lists;
    let expected = [("nodes", 2), ("services-http", 1), ("services-tcp", 3)];
    assert_eq!(counts, expected.into());
}

#[test]
fn a_service_that_was_replaced_unseen_leaves_with_its_successor() {
    let labels = || json!({"http-route-sync": "a"});
    let deleting = || {
        let mut successor = service(2, "v", labels());
        successor.deleting = true;
        successor
    };
    let absent = |view: &View| {
        view.absences(false)
            .iter()
            .map(|it| it.uid.clone())
            .collect()
    };
    let known = || {
        let mut view = complete();
        view.applied(SourceId::HttpServices, service(1, "u", labels()));
        view
    };
    let mut view = known();
    view.listed(SourceId::HttpServices, vec![deleting()]);
    let gone: Vec<String> = absent(&view);
    assert_eq!(gone, ["u"], "a list shows the successor being deleted");
    let mut view = known();
    view.left(SourceId::HttpServices, &key());
    let gone: Vec<String> = absent(&view);
    assert_eq!(gone, ["u"], "the watch tells that the successor left");
}

#[test]
fn a_service_that_came_back_is_not_taken_away_by_a_late_confirmation() {
    let mut view = complete();
    let labels = json!({"http-route-sync": "a"});
    view.applied(SourceId::HttpServices, service(1, "u", labels.clone()));
    view.listed(SourceId::HttpServices, Vec::new());
    let absences = view.absences(false);
    view.applied(SourceId::HttpServices, service(2, "u", labels.clone()));
    view.confirmed(&missing(&absences[0]));
    assert_eq!(snapshot(&view).services.len(), 1);
    // Nor one that was made anew under the same name.
    view.left(SourceId::HttpServices, &key());
    let absences = view.absences(false);
    view.applied(SourceId::HttpServices, service(3, "other", labels));
    view.confirmed(&missing(&absences[0]));
    let services = snapshot(&view).services;
    assert_eq!(services.values().next().unwrap().service.uid, "other");
}

#[test]
fn of_two_copies_the_later_wins_and_each_label_is_its_sources_affair() {
    let mut view = complete();
    let both = json!({"http-route-sync": "a", "tcp-route-sync": "1"});
    view.applied(SourceId::TcpServices, service(1, "u", both.clone()));
    let only = snapshot(&view);
    let only = only.services.values().next().unwrap();
    assert_eq!(
        (&only.http_label, only.tcp_label.as_deref()),
        (&None, Some("1"))
    );

    view.applied(SourceId::HttpServices, service(1, "u", both));
    let newer = json!({"http-route-sync": "b", "tcp-route-sync": "2"});
    view.applied(SourceId::TcpServices, service(2, "u", newer));
    let merged = snapshot(&view);
    let merged = merged.services.values().next().unwrap();
    assert_eq!(merged.http_label.as_deref(), Some("b"));
    assert_eq!(merged.tcp_label.as_deref(), Some("2"));
    assert_eq!(merged.ports[0].node_port.unwrap().get(), 30_002);
}

/// The assembler alone, told by the test what the sources would tell.
struct Assembled {
    changes: mpsc::Sender<Change>,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
}

impl Assembled {
    async fn start(poll_interval: Duration) -> Self {
        let config = KubernetesConfig {
            kubeconfig: None,
            rescan_interval: Duration::from_mins(5),
            poll_interval,
            proxy_url: None,
            cluster_id: Some("c".to_owned()),
        };
        let api = Arc::new(Api::new(
            config,
            Timing::default(),
            Arc::new(crate::outside::Network),
        ));
        let (changes, taken) = mpsc::channel(8);
        let (told, snapshots) = watch::channel(None);
        let reports = watch::Sender::default();
        let assembler = Assembler::new(api, Clock::start(), [].into(), told, reports);
        tokio::spawn(assembler.run(taken));
        let this = Self { changes, snapshots };
        for source in SourceId::ALL {
            this.tell(Change::Listed(source, Vec::new())).await;
        }
        this
    }

    async fn tell(&self, change: Change) {
        assert!(self.changes.send(change).await.is_ok());
    }

    async fn status(&self, source: SourceId, forbidden: Option<&'static str>) {
        let status = Status {
            polling: forbidden == Some("watch"),
            forbidden,
            ..Status::new(source)
        };
        self.tell(Change::Status(source, status)).await;
    }

    /// What is known after so much (paused) time, and a moment for what is under way.
    async fn after(&self, wait: Duration) -> Arc<Snapshot> {
        tokio::time::sleep(wait + Duration::from_millis(1)).await;
        self.snapshots.borrow().clone().expect("all is listed")
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_outlive_an_outage_and_a_refusal_but_not_a_refusal_that_lasts() {
    let source = SourceId::HttpEndpoints;
    let minutes = Duration::from_mins;
    let assembled = Assembled::start(Duration::from_secs(15)).await;
    assert!(assembled.after(minutes(60)).await.endpoints.is_some());
    assembled.status(source, Some("list")).await;
    assert!(assembled.after(minutes(4)).await.endpoints.is_some());
    assembled.status(source, None).await;
    assembled.status(source, Some("list")).await;
    assert!(assembled.after(minutes(4)).await.endpoints.is_some());
    assert_eq!(assembled.after(minutes(3)).await.endpoints, None);
}

#[tokio::test(start_paused = true)]
async fn a_polled_source_is_stale_only_when_polls_failed() {
    let stale = |snapshot: &Snapshot| {
        let mut findings = snapshot.findings.iter();
        findings.any(|it| it.code == Code::SourceStale)
    };
    let hour = Duration::from_hours(1);
    let assembled = Assembled::start(hour).await;
    for source in SourceId::ALL {
        assembled.status(source, Some("watch")).await;
    }
    assert!(!stale(&*assembled.after(hour + hour / 2).await));
    assert!(stale(&*assembled.after(hour).await));
    // One that watches is heard of more often.
    let assembled = Assembled::start(hour).await;
    assert!(stale(&*assembled.after(hour / 2).await));
}

#[test]
fn a_refusal_settles_a_source_and_an_error_does_not() {
    let mut view = View::default();
    let required = SourceId::ALL.into_iter().filter(|id| id.required());
    required.for_each(|source| view.listed(source, Vec::new()));
    let optional = SourceId::ALL.into_iter().filter(|id| !id.required());
    let status = |source, forbidden| Status {
        forbidden,
        error: Some("list: failed".to_owned()),
        ..Status::new(source)
    };
    for source in optional.clone() {
        view.set_status(source, status(source, None));
    }
    assert!(!view.settled());
    for source in optional {
        view.set_status(source, status(source, Some("list")));
    }
    assert!(view.settled());
}

/// A Service under its own name, with a node port for each protocol.
fn opening(name: &str, version: u64, ports: &[(&str, u16)]) -> Item {
    let port = |(protocol, port): &(&str, u16)| json!({"port": 80, "nodePort": port, "protocol": protocol});
    let ports: Vec<Value> = ports.iter().map(port).collect();
    item(
        Kind::Service,
        json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name,
                "resourceVersion": version.to_string(), "labels": {"http-route-sync": name}},
            "spec": {"ports": ports},
        }),
    )
}

/// Which node ports each Service is seen with.
fn open_ports(view: &View) -> Vec<(String, Vec<u16>)> {
    let services = snapshot(view).services;
    let ports = |it: &crate::kubernetes::snapshot::Service| {
        let ports = it.ports.iter().filter_map(|port| port.node_port);
        ports.map(crate::route::NodePort::get).collect()
    };
    let named = services
        .iter()
        .map(|(key, it)| (key.name.clone(), ports(it)));
    named.collect()
}

#[test]
fn of_two_services_with_one_node_port_the_one_that_left_has_lost_it() {
    let tcp = [("TCP", 30_080)];
    let lost = vec![("a".to_owned(), vec![]), ("b".to_owned(), vec![30_080])];
    let mut view = complete();
    let a = opening("a", 1, &tcp);
    let key = a.key.clone();
    view.applied(SourceId::HttpServices, a);
    view.applied(SourceId::HttpServices, opening("b", 2, &tcp));
    assert_eq!(open_ports(&view), lost, "the older copy is of another time");
    // What came late: an older state of the Service that left.
    view.applied(SourceId::HttpServices, opening("a", 3, &tcp));
    view.take_changed();
    view.left(SourceId::HttpServices, &key);
    assert!(view.take_changed(), "it is another snapshot");
    assert_eq!(open_ports(&view), lost);
    // Until a read confirms it the Service itself stays.
    assert_eq!(snapshot(&view).services.len(), 2);
}

#[test]
fn tcp_and_udp_count_their_node_ports_apart() {
    let mut view = complete();
    view.applied(SourceId::HttpServices, opening("a", 1, &[("UDP", 30_053)]));
    view.applied(SourceId::HttpServices, opening("b", 2, &[("TCP", 30_053)]));
    let both = vec![
        ("a".to_owned(), vec![30_053]),
        ("b".to_owned(), vec![30_053]),
    ];
    assert_eq!(open_ports(&view), both);
}

#[test]
fn a_verdict_on_an_older_absence_says_nothing_of_a_newer_one() {
    let labels = || json!({"http-route-sync": "a"});
    let mut view = complete();
    view.applied(SourceId::HttpServices, service(1, "u", labels()));
    view.left(SourceId::HttpServices, &key());
    let older = view.absences(false).remove(0);
    view.applied(SourceId::HttpServices, service(2, "u", labels()));
    view.left(SourceId::HttpServices, &key());
    view.refuted(&older);
    assert_eq!(view.absences(false).len(), 1);
    view.confirmed(&missing(&older));
    assert_eq!(snapshot(&view).services.len(), 1);
    let newer = view.absences(false).remove(0);
    view.confirmed(&missing(&newer));
    assert!(snapshot(&view).services.is_empty());
}

#[test]
fn what_means_the_same_changes_nothing() {
    let mut view = complete();
    let node = |version: &str| {
        let json = json!({"metadata": {"name": "n", "uid": "u", "resourceVersion": version},
            "status": {"images": [version]}});
        item(Kind::Node, json)
    };
    view.applied(SourceId::Nodes, node("1"));
    assert!(view.take_changed());
    view.applied(SourceId::Nodes, node("2"));
    assert!(!view.take_changed());
}

#[test]
fn one_unreadable_object_costs_itself_and_not_the_list() {
    let list = json!({"metadata": {"resourceVersion": "7", "continue": ""}, "items": [
        {"metadata": {"name": "good", "namespace": "ns", "uid": "1"}},
        {"metadata": {"name": "bad", "namespace": "ns", "uid": "2"}, "spec": {"ports": [{"port": "x"}]}},
        {"metadata": {"name": "odd", "namespace": "ns", "uid": "3"},
            "spec": {"ports": [{"port": 1, "protocol": "QUIC"}]}},
    ]});
    let page = page(Kind::Service, list.to_string().as_bytes()).unwrap();
    assert_eq!(
        (page.resource_version.as_str(), page.next.as_deref()),
        ("7", None)
    );
    let readable: Vec<bool> = page.items.iter().map(|it| it.object.is_ok()).collect();
    assert_eq!(readable, [true, false, false]);
    let mut view = complete();
    view.listed(SourceId::HttpServices, page.items);
    let snapshot = snapshot(&view);
    assert_eq!(snapshot.services.len(), 1);
    let mut codes = snapshot.findings.iter().map(|it| it.code);
    assert!(codes.clone().count() == 2 && codes.all(|it| it == Code::ObjectUndecodable));
}

#[test]
fn an_answer_that_is_no_list_is_no_empty_list() {
    assert!(page(Kind::Service, b"{}").is_err());
    assert!(
        page(
            Kind::Service,
            br#"{"metadata": {"resourceVersion": "1"}, "items": null}"#
        )
        .is_ok()
    );
}

#[test]
fn nodes_are_excluded_as_the_cloud_controllers_do_it() {
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    for (value, excluded) in [
        ("", true),
        ("true", true),
        ("yes", true),
        ("false", false),
        ("0", false),
    ] {
        let json = json!({"metadata": {"name": "n", "labels": {label: value}}});
        assert_eq!(node(json).excluded, excluded, "{value}");
    }
    let old = json!({"metadata": {"name": "n",
        "labels": {"alpha.service-controller.kubernetes.io/exclude-balancer": "false",
            "failure-domain.beta.kubernetes.io/zone": "z1"}}});
    assert_eq!(
        (node(old.clone()).excluded, node(old).zone.as_deref()),
        (true, Some("z1"))
    );
    let taint = json!({"metadata": {"name": "n"},
        "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}});
    assert!(node(taint).excluded);
}

#[test]
fn a_nodes_internal_addresses_keep_their_order() {
    let json = json!({"metadata": {"name": "n"}, "status": {
        "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "fd00::1"},
            {"type": "ExternalIP", "address": "1.2.3.4"}, {"type": "InternalIP", "address": "10.0.0.1"}],
        "conditions": [{"type": "Ready", "status": "Unknown"}]}});
    let node = node(json);
    let texts: Vec<String> = node.internal_ips.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["fd00::1", "10.0.0.1"]);
    assert!(!node.ready && !node.deleting);
}

#[test]
fn the_lines_of_a_watch_are_told_apart() {
    let line = |text: &str| event(Kind::Node, text.as_bytes());
    let bookmark =
        r#"{"type":"BOOKMARK","object":{"kind":"Node","metadata":{"resourceVersion":"9"}}}"#;
    assert!(matches!(line(bookmark), Ok(Event::Bookmark(version)) if version == "9"));
    let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}"#;
    assert!(matches!(line(gone), Ok(Event::Error { code: 410, .. })));
    let added = r#"{"type":"ADDED","object":{"metadata":{"name":"n"}}}"#;
    assert!(matches!(line(added), Ok(Event::Applied(item)) if item.key.name == "n"));
    assert!(line(r#"{"type":"ADDED","object":{"#).is_err());
}
