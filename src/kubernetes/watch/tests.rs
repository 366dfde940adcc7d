//! The view on its own: what a delivery changes, and what leaves only once it is confirmed.

use serde_json::{Value, json};

use super::view::{SourceId, Status, View};
use crate::desired::Code;
use crate::kubernetes::snapshot::Snapshot;
use crate::kubernetes::wire::{Event, Item, Kind, Object, ObjectKey, event, item, page};
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
    let absences = view.absences();
    assert_eq!(absences.len(), 1);
    view.confirmed(&absences[0]);
    assert!(snapshot(&view).services.is_empty() && view.absences().is_empty());
}

#[test]
fn a_service_that_was_replaced_unseen_leaves_with_its_successor() {
    let labels = || json!({"http-route-sync": "a"});
    let deleting = || {
        let mut successor = service(2, "v", labels());
        successor.deleting = true;
        successor
    };
    let absent = |view: &View| view.absences().iter().map(|it| it.uid.clone()).collect();
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
    let absences = view.absences();
    view.applied(SourceId::HttpServices, service(2, "u", labels.clone()));
    view.confirmed(&absences[0]);
    assert_eq!(snapshot(&view).services.len(), 1);
    // Nor one that was made anew under the same name.
    view.left(SourceId::HttpServices, &key());
    let absences = view.absences();
    view.applied(SourceId::HttpServices, service(3, "other", labels));
    view.confirmed(&absences[0]);
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

#[test]
fn endpoints_outlive_a_refusal_until_they_are_stale() {
    let mut view = complete();
    let source = SourceId::HttpEndpoints;
    let forbidden = Status {
        forbidden: Some("list"),
        ..Status::new(source)
    };
    view.set_status(source, forbidden);
    view.set_stale(source, false);
    assert!(snapshot(&view).endpoints.is_some());
    view.set_stale(source, true);
    assert_eq!(snapshot(&view).endpoints, None);
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
