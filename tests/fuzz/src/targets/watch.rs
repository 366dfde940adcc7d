//! Lines of a watch and pages of a list, as an apiserver or anybody in between may send them.
//!
//! Input: a line with the kind of object, then the line of the watch, or the page.

use std::collections::BTreeMap;

use route_sync::Uptime;
use route_sync::config::default_options;
use route_sync::desired::{Memory, derive};
use route_sync::kubernetes::snapshot::{Evidence, Snapshot};
use route_sync::kubernetes::wire::{Event, Item, Kind, Object, event, page};
use route_sync::route::{ClusterId, Hostname};
use serde_json::{Value, json};

use super::{Target, assert_bounded, head};

pub(super) const TARGET: Target = Target {
    name: "watch",
    words: &[
        "Service\n",
        "Node\n",
        "EndpointSlice\n",
        "Endpoints\n",
        "{\"type\":\"ADDED\",\"object\":",
        "MODIFIED",
        "DELETED",
        "BOOKMARK",
        "ERROR",
        "\"code\":410",
        "\"message\":\"\"",
        "\"metadata\":{",
        "\"name\":\"web\"",
        "\"namespace\":\"ns\"",
        "\"uid\":\"u\"",
        "\"resourceVersion\":\"1\"",
        "\"creationTimestamp\":",
        "\"2026-01-01T00:00:00Z\"",
        "\"deletionTimestamp\":",
        "\"labels\":{",
        "\"http-route-sync\":\"web\"",
        "\"tcp-route-sync\":\"1024\"",
        "\"annotations\":{",
        "\"route-sync.cloudfoundry.org/http\":",
        "\"spec\":{",
        "\"ports\":[",
        "\"port\":80",
        "\"nodePort\":30001",
        "\"protocol\":\"TCP\"",
        "\"appProtocol\":",
        "\"status\":{",
        "\"addresses\":[",
        "\"type\":\"InternalIP\"",
        "\"address\":\"10.0.0.1\"",
        "\"conditions\":[",
        "\"type\":\"Ready\"",
        "\"status\":\"True\"",
        "\"taints\":[",
        "\"key\":\"ToBeDeletedByClusterAutoscaler\"",
        "\"kubernetes.io/service-name\":\"web\"",
        "\"endpoints\":[",
        "\"nodeName\":\"node-1\"",
        "\"ready\":true",
        "\"serving\":true",
        "\"terminating\":true",
        "\"subsets\":[",
        "\"items\":[",
        "\"continue\":\"x\"",
        "\"externalTrafficPolicy\":\"Local\"",
        "\"topology.kubernetes.io/zone\":\"z\"",
        "\"node.kubernetes.io/exclude-from-external-load-balancers\":\"false\"",
        "null",
        "{}",
        "[]",
        "}",
        "]",
        ",",
    ],
    run,
};

fn run(input: &[u8]) {
    let (kind, json) = head(input);
    let kind = match kind {
        b"Node" => Kind::Node,
        b"EndpointSlice" => Kind::EndpointSlice,
        b"Endpoints" => Kind::Endpoints,
        _ => Kind::Service,
    };
    let mut items = Vec::new();
    if let Ok(page) = page(kind, json) {
        items.extend(page.items);
    }
    match event(kind, json) {
        Ok(Event::Applied(item) | Event::Deleted(item)) => {
            check_listed(kind, json, &item);
            items.push(item);
        }
        Ok(Event::Bookmark(_) | Event::Error { .. }) | Err(_) => {}
    }
    for item in items {
        check_item(item);
    }
}

/// An object says the same in a list as in a watch.
fn check_listed(kind: Kind, line: &[u8], item: &Item) {
    // A number that no type holds may stand where nobody looks.
    let Ok(line) = serde_json::from_slice::<Value>(line) else {
        return;
    };
    let list = json!({"metadata": {"resourceVersion": "1"}, "items": [line["object"]]}).to_string();
    let listed = page(kind, list.as_bytes()).expect("a list must be one");
    let [again] = &listed.items[..] else {
        panic!("a list of one must have one");
    };
    let said = |item: &Item| {
        let object = item.object.as_ref().ok().cloned();
        (
            item.key.clone(),
            item.uid.clone(),
            item.resource_version.clone(),
            item.deleting,
            object,
        )
    };
    assert_eq!(said(again), said(item));
}

fn check_item(item: Item) {
    let mut snapshot = Snapshot {
        cluster: ClusterId("fuzzed".to_owned()),
        services: BTreeMap::new(),
        nodes: BTreeMap::new(),
        endpoints: None,
        findings: Vec::new(),
        evidence: Evidence::default(),
    };
    match item.object {
        Ok(Object::Service(service)) => {
            assert_eq!(service.service.key.name, item.key.name);
            snapshot
                .services
                .insert(service.service.key.clone(), *service);
        }
        Ok(Object::Node(node)) => {
            snapshot.nodes.insert(item.key.name, *node);
        }
        Ok(Object::Endpoints(service, endpoints)) => {
            snapshot.endpoints = Some(BTreeMap::from([(service, endpoints)]));
        }
        Err(reason) => assert!(!reason.is_empty()),
    }
    // Names come from the apiserver, which bounds them.
    let named = |key: &route_sync::route::ServiceKey| key.to_string().len() < 300;
    let options = default_options(Hostname::parse("apps.test").expect("a name must be one"));
    let desired = derive(&snapshot, &mut Memory::default(), &options, Uptime::ZERO);
    if snapshot.services.keys().all(named) && snapshot.nodes.keys().all(|name| name.len() < 300) {
        assert_bounded(&desired.findings);
    }
}
