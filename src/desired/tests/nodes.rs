//! Nodes and pods that come and go, pass after pass.

use super::*;

/// Runs a cluster of three nodes through changes, each at its second.
struct Passes {
    memory: Memory,
    snapshot: Snapshot,
}

impl Passes {
    fn new(build: Build, count: u8) -> Self {
        Self {
            memory: Memory::default(),
            snapshot: cluster(&[build], &nodes(count)),
        }
    }
    fn at(&mut self, second: u64) -> Desired {
        derive(
            &self.snapshot,
            &mut self.memory,
            &options(),
            Duration::from_secs(second),
        )
    }
    fn node(&mut self, index: u8) -> &mut Node {
        self.snapshot.nodes.get_mut(&format!("n{index}")).unwrap()
    }
    fn endpoints(&mut self, ready: &[&str], terminating: &[&str]) {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let endpoints = Endpoints {
            ready_nodes: names(ready),
            terminating_nodes: names(terminating),
            any_ready: !ready.is_empty(),
        };
        let key = self.snapshot.services.keys().next().unwrap().clone();
        self.snapshot.endpoints = Some(BTreeMap::from([(key, endpoints)]));
    }
}

#[test]
fn a_node_not_ready_leaves_after_ten_seconds_and_returns_after_thirty() {
    let mut passes = Passes::new(service("a/x", 30001).http("x"), 3);
    assert_eq!(
        addresses(&passes.at(0)),
        ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    );
    passes.node(2).ready = false;
    let damped = passes.at(100);
    assert_eq!(addresses(&damped).len(), 3);
    assert_eq!(damped.revisit, Some(Duration::from_secs(110)));
    assert_eq!(addresses(&passes.at(109)).len(), 3);
    assert_eq!(addresses(&passes.at(110)), ["10.0.0.1", "10.0.0.3"]);
    passes.node(2).ready = true;
    assert_eq!(passes.at(200).revisit, Some(Duration::from_secs(230)));
    assert_eq!(addresses(&passes.at(229)).len(), 2);
    assert_eq!(addresses(&passes.at(230)).len(), 3);
}

#[test]
fn a_flapping_node_stays_in_use() {
    let mut passes = Passes::new(service("a/x", 30001).http("x"), 3);
    passes.at(0);
    for second in 1..60 {
        passes.node(2).ready = second % 9 == 0;
        assert_eq!(addresses(&passes.at(second)).len(), 3, "second {second}");
    }
}

#[test]
fn a_node_first_seen_not_ready_starts_out() {
    let mut passes = Passes::new(service("a/x", 30001).http("x"), 3);
    passes.node(3).ready = false;
    assert_eq!(addresses(&passes.at(0)), ["10.0.0.1", "10.0.0.2"]);
}

#[test]
fn when_most_nodes_are_not_ready_at_once_the_last_set_is_kept() {
    let mut passes = Passes::new(service("a/x", 30001).http("x"), 4);
    passes.at(0);
    for index in [1, 2, 3] {
        passes.node(index).ready = false;
    }
    passes.at(10);
    let held = passes.at(60);
    assert_eq!(addresses(&held).len(), 4);
    assert_eq!(show(&held)[1..], ["cluster nodes-not-ready-held"]);
    // Somebody deleted one of them all the same.
    passes.snapshot.nodes.remove("n1");
    assert_eq!(
        addresses(&passes.at(61)),
        ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    );
}

#[test]
fn nodes_that_stop_being_ready_one_after_the_other_are_held_together() {
    let mut passes = Passes::new(service("a/x", 30001).http("x"), 3);
    passes.at(0);
    for (second, index) in [(1, 1), (3, 2), (5, 3)] {
        passes.node(index).ready = false;
        passes.at(second);
    }
    for second in [11, 13, 15, 60] {
        let held = passes.at(second);
        assert_eq!(addresses(&held).len(), 3, "second {second}");
        assert_eq!(show(&held)[1..], ["cluster nodes-not-ready-held"]);
    }
}

#[test]
fn a_node_that_left_long_ago_keeps_no_other_from_leaving() {
    let mut passes = Passes::new(service("a/x", 30001).http("x"), 3);
    passes.at(0);
    passes.node(1).ready = false;
    passes.at(1);
    assert_eq!(addresses(&passes.at(11)), ["10.0.0.2", "10.0.0.3"]);
    passes.node(2).ready = false;
    passes.at(1000);
    assert_eq!(addresses(&passes.at(1010)), ["10.0.0.3"]);
    // The last one stays, whatever it says.
    passes.node(3).ready = false;
    passes.at(2000);
    assert_eq!(addresses(&passes.at(2010)), ["10.0.0.3"]);
}

#[test]
fn when_every_node_is_not_ready_from_the_start_all_are_taken() {
    let mut passes = Passes::new(service("a/x", 30001).http("x"), 3);
    for index in 1..=3 {
        passes.node(index).ready = false;
    }
    assert_eq!(addresses(&passes.at(0)).len(), 3);
    assert_eq!(addresses(&passes.at(1)).len(), 3);
}

#[test]
fn a_deleting_or_excluded_node_leaves_at_once() {
    let mut passes = Passes::new(service("a/x", 30001).http("x"), 4);
    passes.at(0);
    passes.node(1).deleting = true;
    passes.node(2).excluded = true;
    let desired = passes.at(1);
    assert_eq!(addresses(&desired), ["10.0.0.3", "10.0.0.4"]);
}

#[test]
fn a_node_whose_address_is_no_longer_told_keeps_the_last_one() {
    let mut passes = Passes::new(service("a/x", 30001).http("x"), 3);
    passes.node(3).internal_ips.clear();
    let never_told = passes.at(0);
    assert_eq!(addresses(&never_told), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(show(&never_told)[1..], ["node n3 node-without-address"]);

    passes.node(1).internal_ips.clear();
    passes.node(2).internal_ips = vec!["fd00::2".parse().unwrap()];
    let kept = passes.at(1);
    assert_eq!(addresses(&kept), ["10.0.0.1", "10.0.0.2"]);
    passes.node(1).internal_ips = vec!["10.0.0.9".parse().unwrap()];
    assert_eq!(addresses(&passes.at(2)), ["10.0.0.2", "10.0.0.9"]);
    // Another Node of that name has told nothing yet.
    passes.node(2).uid = NodeUid("another".into());
    assert_eq!(addresses(&passes.at(3)), ["10.0.0.9"]);
}

#[test]
fn nodes_that_come_back_one_after_the_other_leave_no_one_behind() {
    let mut passes = Passes::new(service("a/x", 30001).http("x"), 4);
    passes.at(0);
    for index in 1..=4 {
        passes.node(index).ready = false;
    }
    for second in [1, 11, 60] {
        assert_eq!(addresses(&passes.at(second)).len(), 4, "second {second}");
    }
    for (second, index) in [(100, 1), (101, 2), (105, 3), (109, 4)] {
        passes.node(index).ready = true;
        assert_eq!(addresses(&passes.at(second)).len(), 4, "second {second}");
    }
    for second in [110, 111, 130, 140] {
        assert_eq!(addresses(&passes.at(second)).len(), 4, "second {second}");
    }
}

#[test]
fn a_node_that_stays_away_when_the_others_are_back_leaves_after_ten_seconds() {
    let mut passes = Passes::new(service("a/x", 30001).http("x"), 4);
    passes.at(0);
    for index in 1..=4 {
        passes.node(index).ready = false;
    }
    passes.at(1);
    passes.at(60);
    for index in 1..=3 {
        passes.node(index).ready = true;
    }
    let back = passes.at(100);
    assert_eq!(addresses(&back).len(), 4);
    assert_eq!(back.revisit, Some(Duration::from_secs(110)));
    assert_eq!(addresses(&passes.at(109)).len(), 4);
    assert_eq!(
        addresses(&passes.at(110)),
        ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    );
}

#[test]
fn local_traffic_goes_where_pods_are_ready_then_where_they_still_serve() {
    let mut passes = Passes::new(service("a/x", 30001).http("x").local(), 3);
    passes.endpoints(&["n2"], &["n1"]);
    assert_eq!(addresses(&passes.at(0)), ["10.0.0.2"]);
    passes.endpoints(&[], &["n1"]);
    assert_eq!(addresses(&passes.at(1)), ["10.0.0.1"]);
    passes.endpoints(&[], &[]);
    let kept = passes.at(2);
    assert_eq!(addresses(&kept), ["10.0.0.1"]);
    assert_eq!(kept.revisit, Some(Duration::from_secs(32)));
    let gone = passes.at(32);
    assert_eq!(show(&gone), ["service a/x no-ready-endpoint"]);
    passes.endpoints(&["n3"], &[]);
    assert_eq!(addresses(&passes.at(33)), ["10.0.0.3"]);
}

#[test]
fn local_traffic_without_any_slice_goes_everywhere_because_nothing_is_known() {
    let mut passes = Passes::new(service("a/x", 30001).http("x").local(), 3);
    for endpoints in [None, Some(BTreeMap::new())] {
        passes.snapshot.endpoints = endpoints;
        let desired = passes.at(0);
        assert_eq!(addresses(&desired).len(), 3);
        assert_eq!(show(&desired)[1..], ["service a/x endpoints-unknown"]);
    }
}

#[test]
fn a_service_may_ask_for_no_route_while_nobody_is_ready() {
    let build = service("a/x", 30001)
        .http("x")
        .annotate("require-ready-endpoints", "true");
    let mut passes = Passes::new(build, 3);
    passes.endpoints(&["n1"], &[]);
    assert_eq!(addresses(&passes.at(0)).len(), 3);
    passes.endpoints(&[], &[]);
    assert_eq!(addresses(&passes.at(1)).len(), 3);
    assert_eq!(addresses(&passes.at(31)).len(), 0);
}

#[test]
fn a_route_gets_a_few_nodes_spread_over_zones() {
    let mut passes = Passes::new(service("a/x", 30001).http("x").tcp("2000"), 12);
    for index in 1..=12 {
        passes.node(index).zone = Some(format!("z{}", index % 3).into());
    }
    let desired = passes.at(0);
    let tcp = &desired.table.tcp.values().next().unwrap().backends;
    let http = &desired.table.http.values().next().unwrap().backends;
    assert_eq!((tcp.len(), http.len()), (3, 8));
    let zones: BTreeSet<_> = tcp.iter().map(|backend| backend.zone.clone()).collect();
    assert_eq!(zones.len(), 3);
    // The TCP route's nodes are the HTTP route's most preferred ones.
    assert!(tcp.iter().eq(http.iter().take(3)));
}

#[test]
fn max_backends_is_the_services_own_word() {
    for (value, expect) in [("1", 1), ("0", 12)] {
        let build = service("a/x", 30001)
            .http("x")
            .annotate("max-backends", value);
        assert_eq!(addresses(&Passes::new(build, 12).at(0)).len(), expect);
    }
}
