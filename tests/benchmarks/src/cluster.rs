//! A cluster as the core sees it, and what the core is told of the foundation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use route_sync::desired::Options;
use route_sync::desired::guard::Limits;
use route_sync::kubernetes::snapshot::{
    Endpoints, Evidence, Node, Protocol, Service, ServicePort, Snapshot,
};
use route_sync::route::{ClusterId, Hostname, NodePort, NodeUid, ServiceKey, ServiceRef};

pub const NODES: u8 = 100;
const NAMESPACES: u16 = 100;
/// More than there are in a cluster (2,768), as many as the Services need.
const FIRST_NODE_PORT: u16 = 20_000;
/// The default of `routes.max_tcp_backends`.
pub const ROWS_PER_PORT: u8 = 3;

pub fn node_ip(node: u8) -> IpAddr {
    IpAddr::from([10, 1, 0, node])
}

pub fn node_port(index: u16) -> NodePort {
    NodePort::new(FIRST_NODE_PORT + index).expect("a node port must not be 0")
}

pub fn key(index: u16) -> ServiceKey {
    let namespace = format!("namespace-{}", index % NAMESPACES);
    ServiceKey {
        namespace,
        name: format!("service-{index}"),
    }
}

pub fn service_ref(index: u16) -> Arc<ServiceRef> {
    Arc::new(ServiceRef {
        key: key(index),
        uid: format!("5f0d7c1e-33aa-4b6f-9d1b-{index:012}"),
    })
}

/// That many Services with a label for HTTP, on [`NODES`] nodes.
pub fn snapshot(services: u16) -> Snapshot {
    let node = |index: u8| {
        let node = Node {
            uid: NodeUid(format!("0b7c3a52-91d4-4d0e-8a53-{index:012}").into()),
            internal_ips: vec![node_ip(index)],
            ready: true,
            deleting: false,
            excluded: false,
            zone: Some(format!("zone-{}", index % 3).into()),
        };
        (format!("node-{index}"), node)
    };
    let service = |index: u16| {
        let service = Service {
            service: service_ref(index),
            created_seconds: 1_700_000_000 + i64::from(index),
            http_label: Some(format!("host-{index}")),
            tcp_label: None,
            annotations: BTreeMap::new(),
            ports: vec![ServicePort {
                name: None,
                port: 80,
                node_port: Some(node_port(index)),
                protocol: Protocol::Tcp,
                app_protocol: None,
            }],
            local_traffic_only: false,
        };
        (key(index), service)
    };
    let endpoints = |index: u16| {
        let nodes = [index % 100, (index + 7) % 100, (index + 14) % 100];
        let endpoints = Endpoints {
            ready_nodes: nodes.map(|node| format!("node-{node}")).into(),
            terminating_nodes: BTreeSet::new(),
            any_ready: true,
        };
        (key(index), endpoints)
    };
    Snapshot {
        cluster: ClusterId("6f5902ac-0000-4f00-9b5e-000000000000".to_owned()),
        services: (0..services).map(service).collect(),
        nodes: (0..NODES).map(node).collect(),
        endpoints: Some((0..services).map(endpoints).collect()),
        findings: Vec::new(),
        evidence: Evidence::default(),
    }
}

pub fn options() -> Options {
    let host = |text: &str| Hostname::parse(text).expect("a benchmark's host must be one");
    Options {
        app_domain: host("apps.example.test"),
        domains: vec![host("apps.example.test")],
        reserved_hosts: vec![host("api.apps.example.test")],
        reserved_domains: vec![host("sys.example.test")],
        host_grants: Vec::new(),
        port_grants: Vec::new(),
        max_backends: 8,
        max_tcp_backends: usize::from(ROWS_PER_PORT),
        ipv6: false,
        state_survives: false,
        removals: Limits::default(),
    }
}
