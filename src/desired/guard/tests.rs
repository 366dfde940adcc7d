//! Passes one after the other: what is wanted, how the rest left, what the lanes are told.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::kubernetes::snapshot::Evidence;
use crate::route::{
    Backend, ClusterId, Hostname, HttpOptions, HttpRoute, NodeUid, RouteTable, RouterPort, TcpRoute,
};

mod approvals;
mod cluster;
mod last_process;

const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const BY_EVENT: Departure = Departure {
    by_list: false,
    namespace_gone: false,
};
const BY_LIST: Departure = Departure {
    by_list: true,
    namespace_gone: false,
};
const WITH_NAMESPACE: Departure = Departure {
    by_list: false,
    namespace_gone: true,
};

fn service(index: u16) -> Arc<ServiceRef> {
    Arc::new(ServiceRef {
        key: ServiceKey {
            namespace: "web".to_owned(),
            name: format!("s{index}"),
        },
        uid: format!("uid-{index}"),
    })
}

fn backends(index: u16, ips: &[IpAddr]) -> Backends {
    let backend = |ip: &IpAddr| Backend {
        ip: *ip,
        port: NodePort::new(30_000 + index).unwrap(),
        node: NodeUid("node".into()),
        zone: None,
    };
    Backends::new(ips.iter().map(backend)).unwrap()
}

fn tcp(index: u16) -> (RouterPort, TcpRoute) {
    let route = TcpRoute {
        service: service(index),
        router_group: None,
        backends: backends(index, &[NODE]),
    };
    (RouterPort::new(2000 + index).unwrap(), route)
}

fn http(index: u16) -> (Uri, HttpRoute) {
    let route = HttpRoute {
        service: service(index),
        backends: backends(index, &[NODE]),
        options: HttpOptions::default(),
    };
    (uri(&format!("h{index:04}.test")), route)
}

fn uri(text: &str) -> Uri {
    Uri::of_host(Hostname::parse(text).unwrap())
}

fn wanted(
    tcp_routes: impl IntoIterator<Item = u16>,
    http_routes: impl IntoIterator<Item = u16>,
) -> Desired {
    let table = RouteTable {
        tcp: tcp_routes.into_iter().map(tcp).collect(),
        http: http_routes.into_iter().map(http).collect(),
    };
    Desired {
        node_ips: BTreeMap::from([(NODE, "n1".to_owned())]),
        ..Desired::of(ClusterId("c".to_owned()), table)
    }
}

/// A guard with what the world told it so far.
struct World {
    guard: Guard,
    evidence: Evidence,
    others: BTreeMap<NodePort, Arc<ServiceRef>>,
    limits: Limits,
    now: Uptime,
}

impl World {
    fn new(first: Desired) -> Self {
        let mut world = Self {
            guard: Guard::default(),
            evidence: Evidence::default(),
            others: BTreeMap::new(),
            limits: Limits::default(),
            now: Duration::from_secs(100),
        };
        world.lists();
        world.pass(first);
        world
    }

    fn pass(&mut self, desired: Desired) -> Arc<Desired> {
        let snapshot = Snapshot {
            cluster: desired.cluster.clone(),
            services: BTreeMap::new(),
            nodes: BTreeMap::new(),
            endpoints: None,
            findings: Vec::new(),
            evidence: self.evidence.clone(),
        };
        self.guard
            .pass(desired, &snapshot, &self.others, self.limits, self.now)
    }

    /// Services that left, each in both lanes.
    fn left(&mut self, services: impl IntoIterator<Item = u16>, how: Departure) {
        for index in services {
            for lane in [Lane::Http, Lane::Tcp] {
                let key = service(index).key.clone();
                self.evidence.left.insert((lane, key), how);
            }
        }
    }

    fn lists(&mut self) {
        for source in ["services-http", "services-tcp", "nodes"] {
            *self.evidence.lists.entry(source).or_default() += 1;
        }
    }
}

fn ports(desired: &Desired) -> Vec<u16> {
    desired.table.tcp.keys().map(|p| p.get() - 2000).collect()
}

fn plan(desired: &Desired) -> String {
    desired.held.as_ref().unwrap().plan.to_string()
}

#[test]
fn a_few_routes_go_at_once() {
    let mut world = World::new(wanted(0..10, []));
    world.left(0..9, BY_EVENT);
    assert_eq!(ports(&world.pass(wanted(9..10, []))), [9]);
    world.left(9..10, BY_EVENT);
    let told = world.pass(wanted([], []));
    assert_eq!((ports(&told), told.held.clone()), (vec![], None));
}

#[test]
fn more_than_ten_and_thirty_percent_of_a_lane_stay_all_of_them() {
    for (routes, going, held) in [(20, 10, 0), (20, 11, 11), (100, 30, 0), (100, 31, 31)] {
        let mut world = World::new(wanted(0..routes, 0..1));
        world.left(0..going, BY_EVENT);
        let told = world.pass(wanted(going..routes, 0..1));
        let count = told.held.as_ref().map_or(0, |held| held.count(Lane::Tcp));
        assert_eq!(count, held, "{going} of {routes}");
        let stay = usize::from(routes - going) + held;
        assert_eq!(told.table.tcp.len(), stay, "{going} of {routes}");
        let findings = told.findings.iter();
        let told_of: Vec<_> = findings.filter(|it| it.code == Code::RemovalHeld).collect();
        let each = if held == 0 { 0 } else { held + 1 };
        assert_eq!(told_of.len(), each, "one for each Service, one for all");
    }
}

#[test]
fn the_limits_are_the_operators() {
    let limits = |routes, percent, seconds| Limits {
        routes,
        percent,
        window: Duration::from_secs(seconds),
    };
    for (limits, going, held) in [
        (limits(0, 0, 60), 1, 1),
        (limits(3, 0, 60), 3, 0),
        (limits(3, 0, 60), 4, 4),
        (limits(3, 50, 60), 20, 0),
        (limits(3, 50, 60), 21, 21),
        (limits(0, 100, 60), 40, 0),
    ] {
        let mut world = World::new(wanted(0..40, []));
        world.limits = limits;
        world.left(0..going, BY_EVENT);
        let told = world.pass(wanted(going..40, []));
        let count = told.held.as_ref().map_or(0, |held| held.count(Lane::Tcp));
        assert_eq!(count, held, "{limits:?}, {going} of 40");
        let Some(why) = told.held.as_ref().map(Held::why) else {
            continue;
        };
        let text = format!(
            "more tcp routes would go within 60 s than {}, or {} % of all",
            limits.routes, limits.percent
        );
        assert_eq!(why, [text]);
    }
    // In a window of two seconds what went three seconds ago counts for nothing.
    let mut world = World::new(wanted(0..40, []));
    world.limits = limits(3, 0, 2);
    world.left(0..40, BY_EVENT);
    assert_eq!(world.pass(wanted(3..40, [])).held, None);
    world.now += Duration::from_secs(3);
    assert_eq!(world.pass(wanted(6..40, [])).held, None);
    assert!(world.pass(wanted(7..40, [])).held.is_some());
}

#[test]
fn removals_one_after_the_other_count_together_for_a_minute() {
    let mut world = World::new(wanted(0..20, []));
    world.left(0..20, BY_EVENT);
    for first in 1..=10 {
        let told = world.pass(wanted(first..20, []));
        assert_eq!(told.held, None, "{first}");
        world.now += Duration::from_secs(1);
    }
    let told = world.pass(wanted(11..20, []));
    assert_eq!(told.held.as_ref().unwrap().routes.len(), 1);
    // What is held stays so; what comes when the first have been forgotten goes.
    world.now += Duration::from_secs(51);
    let told = world.pass(wanted(13..20, []));
    assert_eq!(told.held.as_ref().unwrap().routes.len(), 1);
    assert_eq!(ports(&told), [10, 13, 14, 15, 16, 17, 18, 19]);
}

#[test]
fn one_that_comes_and_goes_uses_nothing_up() {
    let mut world = World::new(wanted(0..20, []));
    world.left(0..20, BY_EVENT);
    for _ in 0..50 {
        assert_eq!(world.pass(wanted(1..20, [])).held, None);
        assert_eq!(world.pass(wanted(0..20, [])).held, None);
    }
    assert_eq!(world.pass(wanted(10..20, [])).held, None);
    assert!(world.pass(wanted(11..20, [])).held.is_some());
}

#[test]
fn the_lanes_are_counted_apart() {
    let mut world = World::new(wanted(0..12, 0..100));
    world.left(0..12, BY_EVENT);
    let told = world.pass(wanted([], 12..100));
    let held = told.held.as_ref().unwrap();
    assert_eq!((held.count(Lane::Tcp), held.count(Lane::Http)), (12, 0));
    assert_eq!(held.reasons, BTreeSet::from([Reason::TooMany(Lane::Tcp)]));
}

#[test]
fn a_list_that_lacks_a_whole_lane_is_held_whatever_the_number() {
    let mut world = World::new(wanted(0..1, 0..2));
    world.left(0..1, BY_LIST);
    let told = world.pass(wanted([], 1..2));
    let held = told.held.as_ref().unwrap();
    assert_eq!((held.count(Lane::Tcp), held.count(Lane::Http)), (1, 0));
    assert_eq!(
        held.reasons,
        BTreeSet::from([Reason::EveryRoute(Lane::Tcp)])
    );
    // An empty cluster has no namespaces either.
    let mut world = World::new(wanted(0..3, []));
    let how = Departure {
        by_list: true,
        namespace_gone: true,
    };
    world.left(0..3, how);
    assert_eq!(ports(&world.pass(wanted([], []))), [0, 1, 2]);
}

#[test]
fn how_a_service_left_is_asked_and_what_no_one_can_tell_counts_as_missing_in_a_list() {
    let mut world = World::new(wanted(0..1, []));
    assert_eq!(ports(&world.pass(wanted([], []))), [0]);
    let mut world = World::new(wanted(0..1, []));
    world.left(0..1, BY_EVENT);
    assert_eq!(ports(&world.pass(wanted([], []))), [] as [u16; 0]);
}

#[test]
fn the_routes_of_a_deleted_namespace_go_and_count_for_nothing() {
    let mut world = World::new(wanted(0..50, []));
    world.left(0..30, WITH_NAMESPACE);
    assert_eq!(world.pass(wanted(30..50, [])).held, None);
    world.left(30..40, BY_EVENT);
    let told = world.pass(wanted(40..50, []));
    assert_eq!((told.held.clone(), told.table.tcp.len()), (None, 10));
}

#[test]
fn approval_lets_just_its_plan_go() {
    let mut world = World::new(wanted(0..20, []));
    assert_eq!(world.guard.approve("0"), Err(NotPending::Nothing));
    world.left(0..20, BY_EVENT);
    let first = world.pass(wanted(12..20, []));
    let second = world.pass(wanted(11..12, []));
    assert_eq!(second.held.as_ref().unwrap().routes.len(), 11);
    let (first, second) = (plan(&first), plan(&second));
    assert_ne!(first, second);
    let refused = world.guard.approve(&first).unwrap_err();
    assert!(matches!(refused, NotPending::Another(plan) if plan.to_string() == second));
    let routes = world.guard.approve(&second).unwrap();
    assert_eq!(routes.len(), 11);
    assert_eq!(routes[0].name.to_string(), "2000");
    let told = world.pass(wanted(11..12, []));
    assert_eq!((ports(&told), told.held.clone()), (vec![11], None));
}

#[test]
fn two_further_lists_of_every_source_let_the_same_plan_go() {
    let mut world = World::new(wanted(0..20, []));
    world.left(0..20, BY_EVENT);
    assert!(world.pass(wanted([], [])).held.is_some());
    world.lists();
    assert!(world.pass(wanted([], [])).held.is_some());
    *world.evidence.lists.get_mut("nodes").unwrap() += 5;
    assert!(world.pass(wanted([], [])).held.is_some(), "of every source");
    // One came back: this is another plan, and lists begin to count anew.
    assert!(world.pass(wanted([7], [])).held.is_some());
    world.lists();
    assert!(world.pass(wanted([7], [])).held.is_some());
    world.lists();
    assert!(
        world.pass(wanted([7], [])).held.is_some(),
        "three looks at the same moment are one"
    );
    world.now += WINDOW;
    assert_eq!(ports(&world.pass(wanted([7], []))), [7]);
}

#[test]
fn a_route_that_is_wanted_again_is_no_longer_held() {
    let mut world = World::new(wanted(0..20, []));
    world.left(0..20, BY_EVENT);
    world.pass(wanted([], []));
    let told = world.pass(wanted(0..20, []));
    assert_eq!(*told, wanted(0..20, []));
}

#[test]
fn a_held_route_goes_once_its_node_port_is_anothers() {
    let mut world = World::new(wanted(0..20, 0..20));
    world.left(0..20, BY_EVENT);
    assert_eq!(world.pass(wanted([], [])).table.tcp.len(), 20);
    let mut next = wanted([], []);
    let port = NodePort::new(30_003).unwrap();
    next.node_ports.insert(port, service(77));
    let own = NodePort::new(30_004).unwrap();
    next.node_ports.insert(own, service(4));
    let told = world.pass(next);
    assert!(!ports(&told).contains(&3) && ports(&told).contains(&4));
    assert_eq!((told.table.tcp.len(), told.table.http.len()), (19, 19));
    // Nor may it lead to one that carries no label.
    world.others = BTreeMap::from([
        (NodePort::new(30_005).unwrap(), service(78)),
        (NodePort::new(30_006).unwrap(), service(6)),
    ]);
    let told = world.pass(wanted([], []));
    assert!(!ports(&told).contains(&5) && ports(&told).contains(&6));
}

#[test]
fn a_held_route_goes_once_another_service_won_its_name_or_another_namespace_its_host() {
    let mut world = World::new(wanted(0..20, 0..20));
    world.left(0..20, BY_EVENT);
    world.pass(wanted([], []));
    let mut next = wanted([], []);
    let winner = |namespace: &str, name: &str| {
        let key = ServiceKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let uid = String::new();
        let mut route = http(99).1;
        route.service = Arc::new(ServiceRef { key, uid });
        route
    };
    next.table
        .tcp
        .insert(RouterPort::new(2000).unwrap(), tcp(99).1);
    let below = |host: &str| uri(host).with_path("/below").unwrap();
    let table = &mut next.table.http;
    table.insert(below("h0001.test"), winner("other", "s"));
    table.insert(below("h0002.test"), winner("web", "s"));
    let told = world.pass(next);
    let port = &told.table.tcp[&RouterPort::new(2000).unwrap()];
    assert_eq!(port.service.key.name, "s99");
    assert!(!told.table.http.contains_key(&uri("h0001.test")));
    assert!(told.table.http.contains_key(&uri("h0002.test")));
}

#[test]
fn a_held_route_loses_the_nodes_that_go_but_never_the_last() {
    let other = IpAddr::from([10, 0, 0, 2]);
    let mut first = wanted(0..20, []);
    for (port, route) in &mut first.table.tcp {
        route.backends = backends(port.get() - 2000, &[NODE, other]);
    }
    let mut world = World::new(first);
    world.left(0..20, BY_EVENT);
    let all = |told: &Desired, count| {
        let mut routes = told.table.tcp.values();
        assert!(routes.all(|route| route.backends.len() == count));
        assert_eq!(told.table.tcp.len(), 20);
    };
    all(&world.pass(wanted([], [])), 1);
    let mut without_nodes = wanted([], []);
    without_nodes.node_ips.clear();
    all(&world.pass(without_nodes), 1);
}

#[test]
fn a_pass_that_changes_nothing_gives_the_very_same_table() {
    let mut world = World::new(wanted(0..20, 0..20));
    world.left(0..20, BY_EVENT);
    let told = world.pass(wanted([], []));
    assert!(Arc::ptr_eq(&told, &world.pass(wanted([], []))));
}

proptest! {
    #[test]
    fn never_more_go_within_a_minute_than_may(
        steps in prop::collection::vec((prop::collection::btree_set(0u16..60, 0..60), 0u64..40), 1..12),
    ) {
        let mut world = World::new(wanted(0..60, []));
        world.left(0..60, BY_EVENT);
        let mut removals: Vec<(Uptime, u16)> = Vec::new();
        let mut before: BTreeSet<u16> = (0..60).collect();
        for (names, seconds) in steps {
            world.now += Duration::from_secs(seconds);
            let told = world.pass(wanted(names.iter().copied(), []));
            let after: BTreeSet<u16> = ports(&told).into_iter().collect();
            prop_assert!(names.is_subset(&after), "what is wanted is told");
            removals.extend(before.difference(&after).map(|name| (world.now, *name)));
            let recent = removals.iter().filter(|(at, _)| *at + WINDOW > world.now);
            let lost = recent.map(|(_, name)| name).filter(|name| !after.contains(name));
            let gone = lost.collect::<BTreeSet<_>>().len();
            // The lane was never larger than all there are and those gone.
            prop_assert!(gone <= FREE_REMOVALS.max((60 + gone) * FREE_PERCENT / 100), "{gone}");
            before = after;
        }
    }
}
