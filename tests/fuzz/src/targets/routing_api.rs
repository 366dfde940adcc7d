//! What the routing API answers.
//!
//! Input: a line that says which answer (`list`, `groups`, or `error` and a status), then the body.

use std::collections::BTreeSet;
use std::sync::Arc;

use route_sync::plan::InstanceId;
use route_sync::plan::admission::{Gate, RouterGroup, admit, choose};
use route_sync::publish::tcp::wire::{created, deleted, observed, tcp_groups};
use route_sync::publish::tcp::{ApiError, RequestId};
use route_sync::route::{
    Backend, Backends, ClusterId, NodePort, NodeUid, PortRanges, RouterPort, ServiceKey,
    ServiceRef, TcpRoute,
};

use super::{Target, assert_bounded, head};

pub(super) const TARGET: Target = Target {
    name: "routing-api",
    words: &[
        "list\n",
        "groups\n",
        "error 400\n",
        "error 401\n",
        "error 404\n",
        "error 503\n",
        "[",
        "]",
        "{",
        "}",
        ",",
        "\"router_group_guid\":",
        "\"port\":",
        "\"backend_ip\":",
        "\"backend_port\":",
        "\"backend_tls_port\":",
        "\"backend_sni_hostname\":",
        "\"instance_id\":",
        "\"modification_tag\":{\"guid\":\"g\",\"index\":1}",
        "\"ttl\":120",
        "\"guid\":",
        "\"name\":",
        "\"type\":\"tcp\"",
        "\"type\":\"http\"",
        "\"reservable_ports\":",
        "\"1024-1033\"",
        "\"default-tcp\"",
        "\"message\":",
        "TTL to be less than or equal to 60",
        "not authorized",
        "Duplicate",
        "router_group_guid not found",
        "null",
        "true",
        "\\u0000",
        "\\ud800",
        "\"\"",
        "-1",
        "-",
        ",",
    ],
    run,
};

/// Characters of an error that quotes a server.
const ERROR_CHARS_MAX: usize = 600;

fn run(input: &[u8]) {
    let (kind, body) = head(input);
    match kind {
        b"list" => list(body),
        b"groups" => groups(body),
        _ => error(kind, body),
    }
}

/// A row that was listed can be named exactly, or its deletion would mean another one.
fn list(body: &[u8]) {
    let Ok(rows) = observed(body) else { return };
    let us = InstanceId::of(&ClusterId("fuzzed".to_owned()));
    for (row, _) in rows {
        let read = |body: &[u8]| {
            let rows = observed(body).expect("our own rows must be rows");
            rows.into_iter().collect::<Vec<_>>()
        };
        let one = [row];
        let deleted = read(&deleted(&one));
        let created = read(&created(&one, &us, 120));
        let [row] = one;
        assert_eq!(deleted, [(row.clone(), None)]);
        assert_eq!(created, [(row, Some(us.as_str().to_owned()))]);
    }
}

fn groups(body: &[u8]) {
    let Ok(groups) = tcp_groups(body) else { return };
    assert!(groups.is_sorted_by_key(|group| (&group.name, &group.guid)));
    for group in &groups {
        if let Ok(ranges) = PortRanges::parse(&group.reservable_ports) {
            assert_eq!(PortRanges::parse(&ranges.to_string()).as_ref(), Ok(&ranges));
        }
    }
    for name in ["default-tcp", "", "x"] {
        match choose(&groups, name, true) {
            Ok(chosen) => admitted(&groups, &chosen),
            Err(finding) => assert_bounded(&[finding]),
        }
    }
}

/// Ports that live and ports that do not, among these groups.
fn admitted(groups: &[RouterGroup], chosen: &RouterGroup) {
    let (opened, lives) = (RouterPort::new(1024), RouterPort::new(2000));
    let live: BTreeSet<_> = lives.into_iter().collect();
    let gate = Gate {
        groups,
        vanished: &[],
        chosen,
        reserved: &PortRanges::default(),
        live: &live,
    };
    let table = opened.into_iter().chain(lives).map(|port| (port, route()));
    let admission = admit(&table.collect(), gate);
    assert_bounded(&admission.findings);
    assert!(live.iter().all(|port| admission.wanted.contains_key(port)));
}

fn route() -> TcpRoute {
    let key = ServiceKey {
        namespace: "a".to_owned(),
        name: "b".to_owned(),
    };
    let backend = Backend {
        ip: [10, 0, 0, 1].into(),
        port: NodePort::new(30001).expect("it is not 0"),
        node: NodeUid("n".into()),
        zone: None,
    };
    TcpRoute {
        service: Arc::new(ServiceRef {
            key,
            uid: "u".to_owned(),
        }),
        router_group: None,
        backends: Backends::new([backend]).expect("there is one"),
    }
}

fn error(kind: &[u8], body: &[u8]) {
    let kind = String::from_utf8_lossy(kind);
    let status = kind
        .strip_prefix("error ")
        .and_then(|status| status.parse::<u16>().ok());
    let status = status.and_then(|status| http::StatusCode::from_u16(status).ok());
    let status = status.unwrap_or(http::StatusCode::BAD_REQUEST);
    let error = ApiError::of_answer(status, body, "routing.routes.read", RequestId(None));
    let length = error.to_string().chars().count();
    assert!(length <= ERROR_CHARS_MAX, "an error of {length} characters");
    if let ApiError::MaxTtl { secs } = error {
        assert!(secs > 0);
    }
}
