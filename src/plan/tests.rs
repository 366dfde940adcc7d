//! The truth table row by row, the small input space whole, and larger ones at random.

use proptest::prelude::*;
use std::sync::Arc;

use super::*;
use crate::route::{ClusterId, ServiceRef};

mod gates;
mod inherited;
mod shared;
mod yielding;

const NOW: Uptime = Duration::from_secs(1000);
const TTL: Duration = Duration::from_mins(2);

fn us() -> InstanceId {
    InstanceId::of(&ClusterId("c".to_owned()))
}

fn key(name: &str) -> ServiceKey {
    ServiceKey {
        namespace: "ns".to_owned(),
        name: name.to_owned(),
    }
}

fn row(port: u16, ip: &str, backend_port: u16) -> TcpRow {
    TcpRow {
        port: RouterPort::new(port).unwrap(),
        ip: ip.to_owned(),
        backend_port,
        tls_port: NO_TLS,
        sni: None,
        group: "g".to_owned(),
    }
}

fn with_tls(tls_port: i32, row: TcpRow) -> TcpRow {
    TcpRow { tls_port, ..row }
}

/// A cluster of nodes 10.0.0.1 to 10.0.0.3 with Services `a` at node port 30001 and `b` at 30002.
#[derive(Clone, Debug)]
struct World {
    wanted: BTreeMap<RouterPort, WantedPort>,
    observed: Observed,
    journal: Journal,
    inherited: BTreeSet<TcpRow>,
    yielding: BTreeMap<RouterPort, BTreeSet<NodePort>>,
    undecided: BTreeSet<RouterPort>,
    policy: Policy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    Unknown,
    BlindEarly,
    Blind,
    Seen,
}

impl World {
    fn new() -> Self {
        Self {
            wanted: BTreeMap::new(),
            observed: Observed::new(),
            journal: Journal::default(),
            inherited: BTreeSet::new(),
            yielding: BTreeMap::new(),
            undecided: BTreeSet::new(),
            policy: Policy {
                on_foreign: OnForeign::Hold,
                hold_removals: false,
                ttl: TTL,
                refresh_after: Duration::from_secs(30),
                slack: Duration::from_secs(2),
            },
        }
    }

    fn want(mut self, service: &str, rows: &[TcpRow]) -> Self {
        let (service, rows) = (key(service), rows.to_vec());
        let port = rows[0].port;
        self.wanted.insert(port, WantedPort { service, rows });
        self
    }

    fn see(mut self, stamp: Option<&str>, row: TcpRow) -> Self {
        self.observed.insert(row, stamp.map(ToOwned::to_owned));
        self
    }

    fn confirmed(mut self, ago: u64, row: TcpRow) -> Self {
        self.journal
            .confirmed
            .insert(row, NOW.checked_sub(Duration::from_secs(ago)).unwrap());
        self
    }

    fn plan(&self, sight: Sight) -> Plan {
        let nodes = (1..=3).map(|n| (format!("10.0.0.{n}").parse().unwrap(), format!("n{n}")));
        let ports = [(30001, "a"), (30002, "b")];
        plan(Input {
            instance: &us(),
            wanted: &self.wanted,
            view: match sight {
                Sight::Unknown => View::Unknown,
                Sight::BlindEarly => View::Blind {
                    creates_from: NOW + Duration::from_secs(9),
                    inherited: &self.inherited,
                },
                Sight::Blind => View::Blind {
                    creates_from: NOW,
                    inherited: &self.inherited,
                },
                Sight::Seen => View::Seen(&self.observed),
            },
            journal: &self.journal,
            node_ips: &nodes.collect(),
            node_ports: &ports
                .into_iter()
                .map(|(port, name)| (NodePort::new(port).unwrap(), service(name)))
                .collect(),
            yielding: &self.yielding,
            undecided: &self.undecided,
            policy: self.policy,
            now: NOW,
        })
    }

    /// What the API and the lane would make of the plan.
    fn apply(&mut self, plan: &Plan) {
        for owned in plan.clear.iter().chain(&plan.remove) {
            self.observed.remove(owned.get());
            self.journal.confirmed.remove(owned.get());
        }
        for row in plan.restore.iter().chain(&plan.add).chain(&plan.refresh) {
            self.observed
                .entry(row.clone())
                .or_insert(Some(us().as_str().to_owned()));
            self.journal.confirmed.insert(row.clone(), NOW);
        }
    }

    /// Plans and applies until nothing is left to do; says how often something was.
    fn settle(&mut self, sight: Sight) -> usize {
        for round in 0..5 {
            let plan = self.plan(sight);
            if plan.in_sync() && plan.refresh.is_empty() {
                return round;
            }
            self.apply(&plan);
        }
        panic!("five plans, each applied, and still not in sync");
    }
}

fn codes(plan: &Plan) -> Vec<&'static str> {
    plan.findings
        .iter()
        .map(|finding| finding.code.as_str())
        .collect()
}

fn owned(rows: &[Owned<TcpRow>]) -> Vec<TcpRow> {
    rows.iter().map(|owned| owned.get().clone()).collect()
}

#[test]
fn a_wanted_row_that_is_nowhere_is_added() {
    let plan = World::new()
        .want("a", &[row(1024, "10.0.0.1", 30001)])
        .plan(Sight::Seen);
    assert_eq!(plan.add, [row(1024, "10.0.0.1", 30001)]);
}

#[test]
fn a_row_that_lapsed_after_we_confirmed_it_is_restored_not_added() {
    let wanted = row(1024, "10.0.0.1", 30001);
    let world = World::new()
        .want("a", std::slice::from_ref(&wanted))
        .confirmed(200, wanted.clone());
    let plan = world.plan(Sight::Seen);
    assert_eq!((plan.restore, plan.add), (vec![wanted], vec![]));
}

#[test]
fn who_cannot_read_restores_what_a_start_finds_wanted_and_adds_what_comes_later() {
    let (old, new) = (row(1024, "10.0.0.1", 30001), row(1025, "10.0.0.1", 30002));
    let mut world = World::new()
        .want("a", std::slice::from_ref(&old))
        .want("b", std::slice::from_ref(&new));
    world.inherited.insert(old.clone());
    assert!(
        world.plan(Sight::BlindEarly).in_sync(),
        "an older job's rows may stand"
    );
    let plan = world.plan(Sight::Blind);
    assert_eq!((plan.restore, plan.add), (vec![old], vec![new]));
}

#[test]
fn a_restart_refreshes_the_rows_it_finds_and_adds_none() {
    let wanted = row(1024, "10.0.0.1", 30001);
    for stamp in [
        Some(us().as_str().to_owned()),
        None,
        Some("rs-other".to_owned()),
    ] {
        let world = World::new()
            .want("a", std::slice::from_ref(&wanted))
            .see(stamp.as_deref(), wanted.clone());
        let plan = world.plan(Sight::Seen);
        assert!(plan.in_sync(), "{plan:?}");
        assert_eq!(plan.refresh, std::slice::from_ref(&wanted));
    }
}

#[test]
fn a_row_is_kept_until_it_is_due() {
    let wanted = row(1024, "10.0.0.1", 30001);
    let world = |ago| {
        let world = World::new()
            .want("a", std::slice::from_ref(&wanted))
            .see(None, wanted.clone());
        world.confirmed(ago, wanted.clone()).plan(Sight::Seen)
    };
    let young = world(20);
    assert_eq!((young.keep.len(), young.refresh.len()), (1, 0));
    assert!(
        young
            .wait
            .is_some_and(|wait| wait > NOW && wait <= NOW + Duration::from_secs(10))
    );
    assert_eq!((world(29).keep.len(), world(29).refresh.len()), (0, 1));
}

#[test]
fn an_older_jobs_row_goes_before_ours_is_added() {
    let wanted = row(1024, "10.0.0.1", 30001);
    let legacy = with_tls(0, wanted.clone());
    let mut world = World::new()
        .want("a", std::slice::from_ref(&wanted))
        .see(None, legacy.clone());
    let plan = world.plan(Sight::Seen);
    assert_eq!(
        (owned(&plan.clear), plan.add.len()),
        (vec![legacy.clone()], 0)
    );
    assert_eq!(codes(&plan), ["legacy-rows"]);
    assert_eq!(plan.look_again, Some(Look::Soon));

    // The API took the deletion and did nothing: wait, and do not ask again at once.
    world.journal.tried.insert(
        legacy.clone(),
        NOW.checked_sub(Duration::from_secs(1)).unwrap(),
    );
    let plan = world.plan(Sight::Seen);
    assert!(plan.in_sync() && plan.held.len() == 1, "{plan:?}");

    world.observed.clear();
    assert_eq!(world.plan(Sight::Seen).add, [wanted]);
}

#[test]
fn an_older_jobs_row_that_comes_back_never_stands_beside_ours_for_long() {
    let wanted = row(1024, "10.0.0.1", 30001);
    let legacy = with_tls(0, wanted.clone());
    let mut world = World::new()
        .want("a", std::slice::from_ref(&wanted))
        .see(Some(us().as_str()), wanted.clone());
    world
        .journal
        .cleared
        .insert(legacy.clone(), Cleared::Gone(NOW));
    let plan = world.plan(Sight::Seen);
    assert!(plan.in_sync(), "{plan:?}");
    assert_eq!(plan.look_again, Some(Look::Soon), "it may come back");

    world = world.see(None, legacy.clone());
    world.journal.cleared.insert(legacy.clone(), Cleared::Back);
    let plan = world.plan(Sight::Seen);
    assert_eq!(owned(&plan.remove), std::slice::from_ref(&wanted));
    assert_eq!(owned(&plan.clear), Vec::new(), "it would come back again");
    assert_eq!(codes(&plan), ["legacy-rows"]);

    world.observed.remove(&wanted);
    let plan = world.plan(Sight::Seen);
    assert!(plan.in_sync() && plan.held.len() == 1, "{plan:?}");
    world.observed.remove(&legacy);
    assert_eq!(world.plan(Sight::Seen).add, [wanted]);
}

#[test]
fn a_row_that_left_the_list_stands_in_the_way_until_tcp_router_was_told() {
    let wanted = row(1024, "10.0.0.1", 30001);
    let legacy = with_tls(0, wanted.clone());
    let mut world = World::new().want("a", std::slice::from_ref(&wanted));
    let until = NOW + Duration::from_secs(11);
    world.journal.lapsing.insert(legacy.clone(), until);
    let plan = world.plan(Sight::Seen);
    assert!(plan.in_sync() && plan.held.len() == 1, "{plan:?}");
    assert_eq!(
        (plan.wait, codes(&plan)),
        (Some(until), vec!["legacy-rows"])
    );

    world.journal.lapsing.insert(legacy, NOW);
    assert_eq!(world.plan(Sight::Seen).add, [wanted]);
}

#[test]
fn a_changed_router_group_replaces_each_row_deletion_first() {
    // A deletion under another tag takes the backend out of tcp-router although the new row lives.
    let old = TcpRow {
        group: "old".to_owned(),
        ..row(1024, "10.0.0.1", 30001)
    };
    let mut world = World::new().want("a", &[row(1024, "10.0.0.1", 30001)]);
    world
        .observed
        .insert(old.clone(), Some(us().as_str().to_owned()));
    let plan = world.plan(Sight::Seen);
    assert_eq!((owned(&plan.clear), plan.add.len()), (vec![old], 0));
    assert_eq!(
        codes(&plan),
        Vec::<&str>::new(),
        "our own row is no older job's"
    );
    assert_eq!(world.settle(Sight::Seen), 2);
}

#[test]
fn a_strangers_port_is_not_joined() {
    let wanted = row(1024, "10.0.0.1", 30001);
    let stranger = row(1024, "192.0.2.7", 80);
    let mut world = World::new()
        .want("a", std::slice::from_ref(&wanted))
        .see(Some("other"), stranger);
    let plan = world.plan(Sight::Seen);
    assert!(plan.in_sync() && plan.refresh.is_empty());
    assert_eq!(codes(&plan), ["foreign-backend"]);
    assert_eq!(plan.look_again, Some(Look::Later));
    world.policy.on_foreign = OnForeign::Join;
    assert_eq!(world.plan(Sight::Seen).add, [wanted]);
}

#[test]
fn a_stranger_who_joins_our_port_costs_us_nothing() {
    let wanted = row(1024, "10.0.0.1", 30001);
    let world = World::new()
        .want("a", &[wanted.clone(), row(1024, "10.0.0.2", 30001)])
        .see(Some(us().as_str()), wanted.clone())
        .see(Some("other"), row(1024, "192.0.2.7", 80));
    let plan = world.plan(Sight::Seen);
    assert_eq!(
        (plan.refresh.len(), plan.add.len(), plan.remove.len()),
        (1, 1, 0)
    );
    assert_eq!(codes(&plan), ["foreign-joined"]);
}

#[test]
fn a_replaced_node_leaves_only_after_its_successor_stands() {
    let (old, new) = (row(1024, "10.0.0.1", 30001), row(1024, "10.0.0.2", 30001));
    let mut world = World::new()
        .want("a", std::slice::from_ref(&new))
        .see(Some(us().as_str()), old.clone());
    let plan = world.plan(Sight::Seen);
    assert_eq!(
        (plan.add.as_slice(), plan.remove.len()),
        ([new].as_slice(), 0)
    );
    assert_eq!(
        plan.refresh,
        std::slice::from_ref(&old),
        "its successor may be long in coming"
    );
    world.apply(&plan);
    assert_eq!(owned(&world.plan(Sight::Seen).remove), [old]);
}

#[test]
fn the_last_row_of_a_port_is_not_refreshed_again_and_again_where_that_is_refused() {
    let (old, new) = (row(1024, "10.0.0.1", 30001), row(1024, "10.0.0.2", 30001));
    let until = NOW + Duration::from_secs(9);
    let refusal = Refusal {
        until,
        message: "it is refused".to_owned(),
    };
    let mut world = World::new()
        .want("a", std::slice::from_ref(&new))
        .see(Some(us().as_str()), old.clone());
    for row in [&old, &new] {
        world.journal.refused.insert(row.clone(), refusal.clone());
    }
    let plan = world.plan(Sight::Seen);
    assert!(plan.in_sync() && plan.refresh.is_empty(), "{plan:?}");
    assert_eq!((plan.keep, plan.wait), (vec![old], Some(until)));
}

#[test]
fn backends_of_two_services_never_stand_behind_one_port_for_longer_than_a_pass() {
    let (a, b) = (row(1024, "10.0.0.1", 30001), row(1024, "10.0.0.1", 30002));
    let plan = World::new()
        .want("b", std::slice::from_ref(&b))
        .see(Some(us().as_str()), a.clone())
        .plan(Sight::Seen);
    assert_eq!(
        (plan.add.as_slice(), owned(&plan.remove)),
        ([b].as_slice(), vec![a])
    );
}

#[test]
fn bulk_goes_breadth_first() {
    let rows = |port| [row(port, "10.0.0.1", 30001), row(port, "10.0.0.2", 30001)];
    let plan = World::new()
        .want("a", &rows(1024))
        .want("a", &rows(1025))
        .plan(Sight::Seen);
    let order: Vec<_> = plan
        .add
        .iter()
        .map(|row| (row.port.get(), row.ip.as_str()))
        .collect();
    let expected = [
        (1024, "10.0.0.1"),
        (1025, "10.0.0.1"),
        (1024, "10.0.0.2"),
        (1025, "10.0.0.2"),
    ];
    assert_eq!(order, expected);
}

#[test]
fn removals_that_are_held_are_refreshed() {
    let ours = row(1024, "10.0.0.1", 30001);
    let mut world = World::new().see(Some(us().as_str()), ours.clone());
    world.policy.hold_removals = true;
    let plan = world.plan(Sight::Seen);
    assert_eq!((plan.remove.len(), plan.refresh), (0, vec![ours]));
}

#[test]
fn a_refreshing_that_was_refused_waits_also_where_the_row_is_wanted_no_more() {
    let ours = row(1024, "10.0.0.1", 30001);
    let mut world = World::new().see(Some(us().as_str()), ours.clone());
    world.policy.hold_removals = true;
    let until = NOW + Duration::from_mins(1);
    let message = "it stands twice".to_owned();
    world
        .journal
        .refused
        .insert(ours, Refusal { until, message });
    let plan = world.plan(Sight::Seen);
    assert_eq!((plan.refresh, plan.wait), (vec![], Some(until)));
}

/// Every combination of what may stand at one port, what we know, what we see and what was decided.
#[test]
fn the_small_input_space_is_right_throughout() {
    let wanted = row(1024, "10.0.0.1", 30001);
    let id = us();
    let kinds: [(Option<&str>, TcpRow); 10] = [
        (Some(id.as_str()), wanted.clone()),
        (None, wanted.clone()),
        (Some("rs-other"), wanted.clone()),
        (None, with_tls(0, wanted.clone())),
        (Some(id.as_str()), with_tls(0, wanted.clone())),
        (Some("rs-other"), with_tls(443, wanted.clone())),
        (Some(id.as_str()), row(1024, "10.0.0.2", 30001)),
        (Some(id.as_str()), row(1024, "10.0.0.1", 30009)),
        (None, row(1024, "10.0.0.2", 30001)),
        (Some("other"), row(1024, "192.0.2.7", 80)),
    ];
    let mut seen = 0;
    for set in 0..1_u32 << kinds.len() {
        for wants in [false, true] {
            for age in [None, Some(5), Some(60), Some(500)] {
                for (on_foreign, hold) in shared::policies() {
                    let mut world = World::new();
                    for (index, (stamp, row)) in kinds.iter().enumerate() {
                        if set & (1 << index) != 0 {
                            world = world.see(*stamp, row.clone());
                        }
                    }
                    if wants {
                        world = world.want("a", std::slice::from_ref(&wanted));
                    }
                    if let Some(age) = age {
                        world = world.confirmed(age, wanted.clone());
                    }
                    world.policy.on_foreign = on_foreign;
                    world.policy.hold_removals = hold;
                    for sight in [Sight::Unknown, Sight::BlindEarly, Sight::Blind, Sight::Seen] {
                        judge(&world, sight, &wanted);
                        seen += 1;
                    }
                }
            }
        }
    }
    assert_eq!(seen, 1024 * 2 * 4 * 6 * 4);
}

/// What must hold of any plan for at most one wanted row, told without the planner's own words.
fn judge(world: &World, sight: Sight, wanted: &TcpRow) {
    let plan = world.plan(sight);
    let context = || {
        format!(
            "{sight:?} {:?} {:?} {plan:#?}",
            world.observed, world.journal
        )
    };
    proves_ownership(world, sight, &plan);

    let wants = !world.wanted.is_empty();
    let known = world
        .journal
        .confirmed
        .get(wanted)
        .map(|at| NOW.checked_sub(*at).unwrap());
    let sees = sight == Sight::Seen;
    let there = match sight {
        Sight::Seen => world.observed.contains_key(wanted),
        Sight::Unknown => known.is_some(),
        _ => known.is_some_and(|age| age < TTL),
    };
    let in_the_way = sees
        && world
            .observed
            .keys()
            .any(|row| row != wanted && row.same_server(wanted));
    let stranger = sees && world.observed.keys().any(|row| row.ip == "192.0.2.7");
    let family = sees
        && world.observed.iter().any(|(row, stamp)| {
            row.same_server(wanted)
                || row.backend_port == 30001
                || stamp.as_deref() == Some(us().as_str())
        });
    let barred =
        stranger && !family && known.is_none() && world.policy.on_foreign == OnForeign::Hold;

    let added = plan.add.contains(wanted) || plan.restore.contains(wanted);
    let early = matches!(sight, Sight::Unknown) || (sight == Sight::BlindEarly && known.is_none());
    assert_eq!(
        added,
        wants && !there && !in_the_way && !barred && !early,
        "{}",
        context()
    );
    assert_eq!(
        plan.restore.contains(wanted),
        added && known.is_some(),
        "{}",
        context()
    );
    if wants && there && !barred {
        let fresh = known.is_some_and(|age| age < Duration::from_secs(25));
        assert_eq!(plan.keep.contains(wanted), fresh, "{}", context());
        assert_eq!(plan.refresh.contains(wanted), !fresh, "{}", context());
    }
    assert!(
        !(wants && owned(&plan.remove).contains(wanted)),
        "{}",
        context()
    );
    assert!(
        !world.policy.hold_removals || plan.remove.is_empty(),
        "{}",
        context()
    );
    if sight == Sight::Unknown {
        assert!(plan.in_sync(), "{}", context());
    }
    let mut world = world.clone();
    assert!(world.settle(sight) <= 3, "{}", context());
}

/// No removal of what is neither under our id, nor ours by our own journal, nor in the way of a wanted row.
fn proves_ownership(world: &World, sight: Sight, plan: &Plan) {
    for row in owned(&plan.remove) {
        // Who cannot read goes by the journal alone.
        let stamp = world
            .observed
            .get(&row)
            .filter(|_| sight == Sight::Seen)
            .cloned()
            .flatten();
        let by_stamp = stamp.as_deref() == Some(us().as_str());
        let by_journal = stamp.is_none() && world.journal.confirmed.contains_key(&row);
        assert!(by_stamp || by_journal, "{row:?} is not ours: {plan:#?}");
    }
    for row in owned(&plan.clear) {
        let mut rows = world.wanted.values().flat_map(|port| &port.rows);
        assert!(
            rows.any(|other| *other != row && other.same_server(&row)),
            "{row:?} {plan:#?}"
        );
    }
}

fn any_row() -> impl Strategy<Value = TcpRow> {
    let tls = prop_oneof![4 => Just(NO_TLS), 1 => Just(0)];
    let ip = prop_oneof![4 => (1..=3_u8).prop_map(|n| format!("10.0.0.{n}")), 1 => Just("x y".to_owned())];
    (1024..1028_u16, ip, 30001..30004_u16, tls)
        .prop_map(|(port, ip, backend, tls)| with_tls(tls, row(port, &ip, backend)))
}

prop_compose! {
    fn any_world()(
        wanted in proptest::collection::btree_map(1024..1028_u16, (any::<bool>(), 1..4_u8), 0..4),
        observed in proptest::collection::vec((any_row(), 0..3_u8), 0..6),
        confirmed in proptest::collection::vec((any_row(), 0..300_u64), 0..6),
        on_foreign in prop_oneof![
            Just(OnForeign::Hold),
            Just(OnForeign::Join),
            Just(OnForeign::Share),
        ],
    ) -> World {
        let mut world = World::new();
        world.policy.on_foreign = on_foreign;
        for (port, (first, count)) in wanted {
            let (service, backend) = if first { ("a", 30001) } else { ("b", 30002) };
            let rows: Vec<_> = (1..=count).map(|n| row(port, &format!("10.0.0.{n}"), backend)).collect();
            world = world.want(service, &rows);
        }
        for (row, stamp) in observed {
            let stamps = [None, Some(us().as_str().to_owned()), Some("rs-other".to_owned())];
            world = world.see(stamps[usize::from(stamp)].as_deref(), row);
        }
        for (row, ago) in confirmed {
            if row.tls_port == NO_TLS {
                world = world.confirmed(ago, row);
            }
        }
        world
    }
}

proptest! {
    #[test]
    fn a_plan_applied_and_made_again_is_empty(world in any_world()) {
        for sight in [Sight::Blind, Sight::Seen] {
            // Clearing, adding and removing may each wait for the one before.
            prop_assert!(world.clone().settle(sight) <= 4);
        }
    }

    #[test]
    fn nothing_is_removed_that_is_not_ours(world in any_world()) {
        for sight in [Sight::Unknown, Sight::BlindEarly, Sight::Blind, Sight::Seen] {
            proves_ownership(&world, sight, &world.plan(sight));
        }
    }

    #[test]
    fn the_order_of_insertion_does_not_matter(world in any_world()) {
        let mut turned = World::new();
        turned.policy = world.policy;
        turned.wanted = world.wanted.clone().into_iter().rev().collect();
        turned.observed = world.observed.clone().into_iter().rev().collect();
        turned.journal.confirmed = world.journal.confirmed.clone().into_iter().rev().collect();
        prop_assert_eq!(world.plan(Sight::Seen), turned.plan(Sight::Seen));
    }
}

fn service(name: &str) -> Arc<ServiceRef> {
    Arc::new(ServiceRef {
        key: key(name),
        uid: "u".to_owned(),
    })
}

#[test]
fn a_row_that_somebody_deletes_again_and_again_is_left_alone_and_its_port_goes_on() {
    let (first, second) = (row(1024, "10.0.0.1", 30001), row(1024, "10.0.0.2", 30001));
    let mut world = World::new().want("a", &[first.clone(), second.clone()]);
    for row in [&first, &second] {
        world.journal.confirmed.insert(row.clone(), NOW);
    }
    let until = NOW + TTL;
    world.journal.contested.insert(first.clone(), until);
    let plan = world.plan(Sight::Seen);
    assert_eq!(plan.restore, [second]);
    assert!(plan.held.contains(&first.port) && plan.wait == Some(until));
    assert_eq!(codes(&plan), ["route-contested"]);
    // One that stands is kept like any other, and time ends it.
    world.observed.insert(first.clone(), None);
    assert_eq!(world.plan(Sight::Seen).keep, std::slice::from_ref(&first));
    world.observed.clear();
    world.journal.contested.insert(first.clone(), NOW);
    assert!(world.plan(Sight::Seen).restore.contains(&first));
}
