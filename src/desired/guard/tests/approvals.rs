//! What an operator approved where another instance acts.

use super::*;

const OURS: &str = "uid-of-ours";
const OTHER: &str = "uid-of-another";

/// An instance whose guard holds whatever goes, in a cluster that said who it is.
fn instance(routes: std::ops::Range<u16>) -> World {
    let mut world = World::new(wanted([], []));
    world.limits = Limits {
        routes: 0,
        percent: 0,
        window: WINDOW,
    };
    world.evidence.kube_system = Some(OURS.to_owned());
    world.left(routes.clone(), BY_EVENT);
    world.pass(wanted(routes, []));
    world
}

impl World {
    /// Approves what is held, and gives what other instances are told of that.
    fn approves(&mut self, told: &Desired, next: Desired) -> Approvals {
        self.guard.approve(&plan(told)).unwrap();
        self.pass(next);
        self.guard.approvals()
    }

    fn hears(&mut self, told: &Approvals) {
        self.guard.adopt(told.clone(), self.now);
    }
}

fn held(desired: &Desired) -> Vec<u16> {
    let held = desired.held.iter().flat_map(|held| &held.routes);
    held.map(|route| match &route.name {
        Name::Tcp(port) => port.get() - 2000,
        Name::Http(uri) => panic!("{uri}"),
    })
    .collect()
}

#[test]
fn just_the_routes_that_were_approved_go_on_every_instance_whatever_else_is_held_there() {
    let mut acts = instance(0..20);
    let told = acts.pass(wanted(12..20, []));
    let approvals = acts.approves(&told, wanted(12..20, []));
    assert_eq!(approvals.routes.len(), 12);

    // The same loss, a part of it, and more than it.
    for (left, stays) in [
        (12..20, vec![]),
        (5..20, vec![]),
        (15..20, vec![12, 13, 14]),
    ] {
        let mut stands_by = instance(0..20);
        let before = stands_by.pass(wanted(left.clone(), []));
        assert_eq!(held(&before).len(), usize::from(left.start));
        stands_by.hears(&approvals);
        let told = stands_by.pass(wanted(left.clone(), []));
        assert_eq!(held(&told), stays, "{left:?}");
        // It tells nobody what was said to another.
        assert_eq!(stands_by.guard.approvals(), Approvals::default());
    }
}

#[test]
fn a_route_is_told_as_the_plan_of_its_removal_alone_which_every_version_calls_the_same() {
    let mut acts = instance(0..1);
    let told = acts.pass(wanted([], []));
    assert_eq!(plan(&told), "12d38f684e60cf8c");
    let approvals = acts.approves(&told, wanted([], []));
    assert_eq!(
        approvals.routes,
        BTreeSet::from([PlanHash::parse(&plan(&told)).unwrap()])
    );
}

#[test]
fn what_is_heard_before_the_first_view_is_never_held() {
    let mut acts = instance(0..20);
    let told = acts.pass(wanted(12..20, []));
    let approvals = acts.approves(&told, wanted(12..20, []));
    let before = instance(0..20);
    let mut remembered = Remembered::default();
    before.guard.remember(&mut remembered);
    let mut starts = instance(0..0);
    starts.guard = Guard::of_last_process(before.guard.told, remembered);
    starts.hears(&approvals);
    let told = starts.pass(wanted(11..20, []));
    assert_eq!((ports(&told).len(), held(&told)), (9, vec![]));
}

#[test]
fn a_route_that_is_asked_for_again_is_held_when_it_is_lost_again() {
    let mut acts = instance(0..20);
    let told = acts.pass(wanted(3..20, []));
    let approvals = acts.approves(&told, wanted(3..20, []));
    let mut stands_by = instance(0..20);
    stands_by.pass(wanted(3..20, []));
    stands_by.hears(&approvals);
    stands_by.pass(wanted(3..20, []));
    for each in [&mut acts, &mut stands_by] {
        each.pass(wanted(1..20, []));
        assert_eq!(held(&each.pass(wanted(3..20, []))), [1, 2]);
    }
    let left = acts.guard.approvals();
    assert_eq!(left.routes.len(), 1, "the first is still gone");
    // That it is told once more changes nothing …
    stands_by.hears(&approvals);
    assert_eq!(held(&stands_by.pass(wanted(3..20, []))), [1, 2]);
    // … before it was told no more, and approved anew.
    stands_by.hears(&left);
    assert_eq!(held(&stands_by.pass(wanted(3..20, []))), [1, 2]);
    let told = acts.pass(wanted(3..20, []));
    let again = acts.approves(&told, wanted(3..20, []));
    stands_by.hears(&again);
    assert!(held(&stands_by.pass(wanted(3..20, []))).is_empty());
}

#[test]
fn nothing_goes_but_the_route_that_was_approved_of_the_service_that_had_it() {
    let mut acts = instance(0..2);
    let told = acts.pass(wanted([], []));
    let approvals = acts.approves(&told, wanted([], []));
    let mut stands_by = instance(0..0);
    let mut others = wanted(0..1, 1..2);
    for (port, route) in &mut others.table.tcp {
        route.service = service(port.get());
    }
    stands_by.pass(others);
    stands_by.hears(&approvals);
    let told = stands_by.pass(wanted([], []));
    assert_eq!((told.table.tcp.len(), told.table.http.len()), (1, 1));
}

#[test]
fn what_was_approved_of_another_clusters_routes_or_long_ago_lets_nothing_go() {
    let mut acts = instance(0..20);
    let told = acts.pass(wanted(12..20, []));
    let approvals = acts.approves(&told, wanted(12..20, []));
    for kube_system in [None, Some(OTHER.to_owned())] {
        let mut stands_by = instance(0..20);
        stands_by.pass(wanted(12..20, []));
        stands_by.hears(&Approvals {
            kube_system,
            ..approvals.clone()
        });
        assert_eq!(held(&stands_by.pass(wanted(12..20, []))).len(), 12);
    }
    let mut stands_by = instance(0..20);
    stands_by.hears(&approvals);
    for each in [&mut acts, &mut stands_by] {
        each.now += Duration::from_mins(15);
        each.pass(wanted(12..20, []));
        assert_eq!(each.guard.approvals(), Approvals::default());
    }
    assert_eq!(held(&stands_by.pass(wanted(12..20, []))).len(), 12);
}

/// What an instance of our cluster is told once an operator approved of the other one.
fn of_switch() -> Approvals {
    let mut acts = instance(0..3);
    acts.evidence.kube_system = Some(OTHER.to_owned());
    let told = acts.pass(wanted([7], []));
    let approvals = acts.approves(&told, wanted([7], []));
    let expected = Approvals {
        kube_system: Some(OTHER.to_owned()),
        instead_of: Some(OURS.to_owned()),
        routes: BTreeSet::new(),
    };
    assert_eq!(approvals, expected);
    approvals
}

#[test]
fn another_cluster_that_was_approved_is_taken_by_every_instance_and_once() {
    let approvals = of_switch();
    let mut stands_by = instance(0..3);
    stands_by.hears(&approvals);
    assert_eq!(ports(&stands_by.pass(wanted(0..3, []))), [0, 1, 2]);
    stands_by.evidence.kube_system = Some(OTHER.to_owned());
    let told = stands_by.pass(wanted([7], []));
    assert_eq!((ports(&told), told.held.clone()), (vec![7], None));
    // Ours is put back by another word, and what was told before is of the past.
    stands_by.evidence.kube_system = Some(OURS.to_owned());
    let told = stands_by.pass(wanted(0..3, []));
    assert_eq!(ports(&told), [7]);
    stands_by.guard.approve(&plan(&told)).unwrap();
    assert_eq!(ports(&stands_by.pass(wanted(0..3, []))), [0, 1, 2]);
    stands_by.evidence.kube_system = Some(OTHER.to_owned());
    assert_eq!(ports(&stands_by.pass(wanted([7], []))), [0, 1, 2]);
}

#[test]
fn another_cluster_that_was_approved_is_the_successor_of_one_other_and_not_for_ever() {
    let approvals = of_switch();
    let of_third = Approvals {
        instead_of: Some("uid-of-a-third".to_owned()),
        ..approvals.clone()
    };
    let to_third = Approvals {
        kube_system: Some("uid-of-a-third".to_owned()),
        ..approvals.clone()
    };
    let untold = Approvals {
        instead_of: None,
        ..approvals.clone()
    };
    for told in [of_third, to_third, untold] {
        let mut stands_by = instance(0..3);
        stands_by.hears(&told);
        stands_by.evidence.kube_system = Some(OTHER.to_owned());
        let stayed = stands_by.pass(wanted([7], []));
        assert_eq!(ports(&stayed), [0, 1, 2], "{told:?}");
    }
    let mut late = instance(0..3);
    late.hears(&approvals);
    late.now += Duration::from_mins(15);
    late.evidence.kube_system = Some(OTHER.to_owned());
    assert_eq!(ports(&late.pass(wanted([7], []))), [0, 1, 2]);
}

#[test]
fn where_nothing_was_lost_nothing_is_told_of_another_cluster() {
    let mut acts = instance(0..0);
    acts.evidence.kube_system = Some(OTHER.to_owned());
    acts.pass(wanted(0..3, []));
    assert_eq!(acts.guard.approvals(), Approvals::default());
}

proptest! {
    #[test]
    fn whatever_is_told_nothing_goes_that_is_wanted_or_was_not_named(
        steps in prop::collection::vec(
            (prop::collection::btree_set(0u16..30, 0..30), prop::collection::btree_set(0u16..40, 0..20)),
            1..12,
        ),
    ) {
        let mut world = instance(0..30);
        let mut before: BTreeSet<u16> = (0..30).collect();
        for (names, approved) in steps {
            let plan_of = |index: &u16| {
                let name = Name::Tcp(RouterPort::new(2000 + index).unwrap());
                PlanHash::of_one(&name, &service(*index).key)
            };
            world.hears(&Approvals {
                kube_system: Some(OURS.to_owned()),
                instead_of: None,
                routes: approved.iter().map(plan_of).collect(),
            });
            let told = world.pass(wanted(names.iter().copied(), []));
            let after: BTreeSet<u16> = ports(&told).into_iter().collect();
            prop_assert!(names.is_subset(&after), "what is wanted is told");
            let gone: BTreeSet<u16> = before.difference(&after).copied().collect();
            prop_assert!(gone.is_subset(&approved), "{gone:?} of {approved:?}");
            before = after;
        }
    }
}
