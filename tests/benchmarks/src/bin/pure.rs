//! The pure core alone: the table of 10,000 Services on 100 nodes, and the plan for 10,000 TCP ports.
//!
//! `pure` measures time and allocations; `pure once` makes each pass a single time, for valgrind to count the
//! instructions of, which tell of a change where time on a busy machine does not.

#![expect(clippy::disallowed_methods, reason = "who measures time reads a clock")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use benchmarks::{Value, expect, quantiles, tell};
use route_sync::desired::{Desired, Memory, Options, derive};
use route_sync::kubernetes::snapshot::{Endpoints, Node, Protocol, Service, ServicePort, Snapshot};
use route_sync::plan::{
    Input, InstanceId, Journal, NO_TLS, Observed, Plan, Policy, TcpRow, View, WantedPort, plan,
};
use route_sync::route::{
    ClusterId, Hostname, NodePort, NodeUid, RouterPort, ServiceKey, ServiceRef,
};

const SERVICES: u16 = 10_000;
const NODES: u8 = 100;
const NAMESPACES: u16 = 100;
/// More than there are in a cluster (2,768), as many as the Services need.
const FIRST_NODE_PORT: u16 = 20_000;
const FIRST_ROUTER_PORT: u16 = 1_024;
/// The default of `routes.max_tcp_backends`.
const ROWS_PER_PORT: u8 = 3;
const PASSES: usize = 21;
const EXPECTED: Duration = Duration::from_millis(20);
/// When the cluster is seen: long enough after the start that no node is damped.
const NOW: Duration = Duration::from_mins(10);

/// Counts what it hands out.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is handed to the system's allocator as it came; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(place, layout, size) }
    }
}

fn main() {
    let (snapshot, options) = (snapshot(), options());
    let table = Table::new();
    if std::env::args().nth(1).as_deref() == Some("once") {
        let mut memory = Memory::default();
        black_box(first_pass(&snapshot, &mut memory, &options));
        black_box(steady_pass(&snapshot, &mut memory, &options));
        black_box(tcp_plan(&table));
        return;
    }
    let what = "table of 10,000 Services × 100 nodes, first pass";
    report(what, || {
        first_pass(&snapshot, &mut Memory::default(), &options)
    });
    let mut memory = Memory::default();
    first_pass(&snapshot, &mut memory, &options);
    let what = "table of 10,000 Services × 100 nodes, nothing changed";
    report(what, || steady_pass(&snapshot, &mut memory, &options));
    let what = "plan of 10,000 TCP ports × 3 rows, nothing changed";
    report(what, || tcp_plan(&table));
}

/// Times the passes; what a pass makes is dropped outside the measured time, as the lanes do it elsewhere.
fn report<T>(what: &str, mut pass: impl FnMut() -> T) {
    let mut times = Vec::new();
    let mut allocations = 0;
    for _ in 0..PASSES {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let began = Instant::now();
        let made = black_box(pass());
        times.push(began.elapsed());
        allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
        drop(made);
    }
    let (median, _) = quantiles(times);
    expect(
        &format!("{what}: median of {PASSES}"),
        Value::Time(median),
        Value::Time(EXPECTED),
    );
    tell(&format!("{what}: allocations"), Value::Count(allocations));
}

// Functions of their own that are never inlined, because valgrind counts by function name.

#[inline(never)]
fn first_pass(snapshot: &Snapshot, memory: &mut Memory, options: &Options) -> Desired {
    derive(snapshot, memory, options, NOW)
}

#[inline(never)]
fn steady_pass(snapshot: &Snapshot, memory: &mut Memory, options: &Options) -> Desired {
    derive(snapshot, memory, options, NOW + Duration::from_secs(1))
}

#[inline(never)]
fn tcp_plan(table: &Table) -> Plan {
    plan(Input {
        instance: &table.instance,
        wanted: &table.wanted,
        view: View::Seen(&table.observed),
        journal: &table.journal,
        node_ips: &table.node_ips,
        node_ports: &table.node_ports,
        policy: Policy {
            join_foreign: false,
            hold_removals: false,
            ttl: Duration::from_secs(120),
            refresh_after: Duration::from_secs(30),
            slack: Duration::from_secs(2),
        },
        now: NOW,
    })
}

fn node_ip(node: u8) -> IpAddr {
    IpAddr::from([10, 1, 0, node])
}

fn node_port(index: u16) -> NodePort {
    NodePort::new(FIRST_NODE_PORT + index).expect("a node port must not be 0")
}

fn key(index: u16) -> ServiceKey {
    let namespace = format!("namespace-{}", index % NAMESPACES);
    ServiceKey {
        namespace,
        name: format!("service-{index}"),
    }
}

fn service_ref(index: u16) -> Arc<ServiceRef> {
    Arc::new(ServiceRef {
        key: key(index),
        uid: format!("5f0d7c1e-33aa-4b6f-9d1b-{index:012}"),
    })
}

fn snapshot() -> Snapshot {
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
        services: (0..SERVICES).map(service).collect(),
        nodes: (0..NODES).map(node).collect(),
        endpoints: Some((0..SERVICES).map(endpoints).collect()),
        findings: Vec::new(),
    }
}

fn options() -> Options {
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
    }
}

/// A routing API's table that is as it should be.
struct Table {
    instance: InstanceId,
    wanted: BTreeMap<RouterPort, WantedPort>,
    observed: Observed,
    journal: Journal,
    node_ips: BTreeMap<IpAddr, String>,
    node_ports: BTreeMap<NodePort, Arc<ServiceRef>>,
}

// === impl Table ===

impl Table {
    fn new() -> Self {
        let instance = InstanceId::of(&ClusterId("benchmark".to_owned()));
        let port = |index: u16| {
            RouterPort::new(FIRST_ROUTER_PORT + index).expect("a router port must not be 0")
        };
        let rows = |index: u16| {
            let row = |rank: u8| TcpRow {
                port: port(index),
                ip: node_ip(u8::try_from(index % u16::from(NODES)).unwrap_or(0) + rank).to_string(),
                backend_port: node_port(index).get(),
                tls_port: NO_TLS,
                sni: None,
                group: "f3518a7d-d8a0-4279-4e89-c058040d0000".to_owned(),
            };
            (0..ROWS_PER_PORT).map(row).collect::<Vec<_>>()
        };
        let all = || (0..SERVICES).flat_map(rows);
        let mark = Some(instance.as_str().to_owned());
        Self {
            wanted: (0..SERVICES)
                .map(|index| {
                    (
                        port(index),
                        WantedPort {
                            service: key(index),
                            rows: rows(index),
                        },
                    )
                })
                .collect(),
            observed: all().map(|row| (row, mark.clone())).collect(),
            journal: Journal {
                confirmed: all().map(|row| (row, NOW)).collect(),
                ..Journal::default()
            },
            node_ips: (0..NODES)
                .map(|node| (node_ip(node), format!("node-{node}")))
                .collect(),
            node_ports: (0..SERVICES)
                .map(|index| (node_port(index), service_ref(index)))
                .collect(),
            instance,
        }
    }
}
