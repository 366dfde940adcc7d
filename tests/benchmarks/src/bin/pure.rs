//! The pure core alone: the table of 10,000 Services on 100 nodes, and the plan for 10,000 TCP ports; and what the HTTP
//! lane does with what others register.
//!
//! `pure` measures time and allocations; `pure once` makes each pass a single time, for valgrind to count the
//! instructions of, which tell of a change where time on a busy machine does not.

#![expect(clippy::disallowed_methods, reason = "who measures time reads a clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benchmarks::cluster::{
    NODES, ROWS_PER_PORT, key, node_ip, node_port, options, service_ref, snapshot,
};
use benchmarks::counting::{self, Counting};
use benchmarks::lane::Listening;
use benchmarks::registrations::registration;
use benchmarks::{Value, expect, quantiles, tell};
use bytes::Bytes;
use route_sync::desired::{Desired, Memory, Options, derive};
use route_sync::kubernetes::snapshot::Snapshot;
use route_sync::plan::{
    Input, InstanceId, Journal, NO_TLS, Observed, OnForeign, Plan, Policy, TcpRow, View,
    WantedPort, plan,
};
use route_sync::route::{ClusterId, NodePort, RouterPort, ServiceRef};
use tokio::runtime::Runtime;

const SERVICES: u16 = 10_000;
const FIRST_ROUTER_PORT: u16 = 1_024;
const PASSES: usize = 21;
const EXPECTED: Duration = Duration::from_millis(20);
/// When the cluster is seen: long enough after the start that no node is damped.
const NOW: Duration = Duration::from_mins(10);
/// Services of the lane that hears others, and registrations that it hears; `tests/bench` divides by them.
const LISTENING_SERVICES: u16 = 100;
const REGISTRATIONS: u32 = 10_000;

#[global_allocator]
static ALLOCATOR: Counting = Counting::often();

fn main() {
    let (snapshot, options) = (snapshot(SERVICES), options());
    let table = Table::new();
    if std::env::args().nth(1).as_deref() == Some("once") {
        let mut memory = Memory::default();
        black_box(first_pass(&snapshot, &mut memory, &options));
        black_box(steady_pass(&snapshot, &mut memory, &options));
        black_box(tcp_plan(&table));
        let heard = Heard::new();
        unknown_registrations(&heard);
        known_registrations(&heard);
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

/// A lane, and what it hears.
struct Heard {
    runtime: Runtime,
    lane: Listening,
    registrations: Vec<Bytes>,
}

/// Times the passes; what a pass makes is dropped outside the measured time, as the lanes do it elsewhere.
fn report<T>(what: &str, mut pass: impl FnMut() -> T) {
    let mut times = Vec::new();
    let mut allocations = 0;
    for _ in 0..PASSES {
        let before = counting::allocations();
        let began = Instant::now();
        let made = black_box(pass());
        times.push(began.elapsed());
        allocations = counting::allocations() - before;
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
        yielding: &table.yielding,
        undecided: &BTreeSet::new(),
        policy: Policy {
            on_foreign: OnForeign::Hold,
            hold_removals: false,
            ttl: Duration::from_secs(120),
            refresh_after: Duration::from_secs(30),
            slack: Duration::from_secs(2),
        },
        now: NOW,
    })
}

#[inline(never)]
fn unknown_registrations(heard: &Heard) {
    // Told apart from the next, or the compiler makes one function of both.
    black_box("unknown");
    heard.all();
}

#[inline(never)]
fn known_registrations(heard: &Heard) {
    black_box("known");
    heard.all();
}

/// A routing API's table that is as it should be.
struct Table {
    instance: InstanceId,
    wanted: BTreeMap<RouterPort, WantedPort>,
    observed: Observed,
    journal: Journal,
    node_ips: BTreeMap<IpAddr, String>,
    node_ports: BTreeMap<NodePort, Arc<ServiceRef>>,
    yielding: BTreeMap<RouterPort, BTreeSet<NodePort>>,
}

// === impl Heard ===

impl Heard {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let runtime = runtime.expect("a runtime must start");
        let snapshot = snapshot(LISTENING_SERVICES);
        let desired = derive(&snapshot, &mut Memory::default(), &options(), NOW);
        let lane = runtime.block_on(Listening::start(desired));
        Self {
            runtime,
            lane,
            registrations: (0..REGISTRATIONS).map(|n| registration(n).into()).collect(),
        }
    }

    fn all(&self) {
        let registrations = self.registrations.iter().cloned();
        self.runtime.block_on(self.lane.hear(registrations));
    }
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
            yielding: BTreeMap::new(),
            instance,
        }
    }
}
