//! What a guard makes of what the process before it told its lanes.

use super::*;

impl World {
    /// The same world, but its guard's process ended and another goes on from what that left.
    fn restart(&mut self) {
        let mut remembered = Remembered::default();
        self.guard.remember(&mut remembered);
        let told = self.guard.told.take();
        // As a state file gives it back.
        let told = told.map(|told| Desired {
            findings: Vec::new(),
            held: None,
            ..Desired::clone(&told)
        });
        self.guard = Guard::of_last_process(told.map(Arc::new), remembered);
        self.evidence = Evidence {
            kube_system: self.evidence.kube_system.clone(),
            ..Evidence::default()
        };
        self.lists();
    }
}

#[test]
fn a_first_view_that_lacks_most_of_what_the_last_process_told_is_held() {
    for (left, held) in [(0..10, 0), (0..30, 30), (0..50, 50)] {
        let mut world = World::new(wanted(0..50, 0..2));
        world.restart();
        let told = world.pass(wanted(left.end..50, 0..2));
        let count = told.held.as_ref().map_or(0, |held| held.count(Lane::Tcp));
        assert_eq!(count, held, "{left:?}");
        assert_eq!(told.table.http.len(), 2);
    }
}

#[test]
fn the_only_route_of_a_lane_is_held_when_the_first_view_lacks_it() {
    let mut world = World::new(wanted(0..1, 0..2));
    world.restart();
    let told = world.pass(wanted([], 0..1));
    assert_eq!((ports(&told), told.table.http.len()), (vec![0], 1));
    assert_eq!(
        told.held.as_ref().unwrap().reasons,
        BTreeSet::from([Reason::EveryRoute(Lane::Tcp)])
    );
    let plan = plan(&told);
    assert_eq!(world.guard.approve(&plan).unwrap().len(), 1);
    assert_eq!(ports(&world.pass(wanted([], 0..1))), [] as [u16; 0]);
}

#[test]
fn a_restart_is_no_approval_of_what_was_held() {
    let mut world = World::new(wanted(0..20, []));
    world.left(0..20, BY_EVENT);
    for last in [10, 11] {
        world.pass(wanted(last..20, []));
    }
    let before = world.pass(wanted(11..20, []));
    assert_eq!(before.held.as_ref().unwrap().routes.len(), 1);
    world.restart();
    let after = world.pass(wanted(11..20, []));
    assert_eq!(
        after.held, before.held,
        "the same plan, under the same hash"
    );
    assert_eq!(after.table, before.table);
    world.lists();
    world.lists();
    world.now += WINDOW;
    assert_eq!(world.pass(wanted(11..20, [])).held, None);
}

#[test]
fn without_anything_left_a_start_takes_its_first_view() {
    let remembered = Remembered {
        kube_system: None,
        held: BTreeMap::from([(tcp_name(3), Reason::TooMany(Lane::Tcp))]),
    };
    let mut world = World::new(wanted([], []));
    world.guard = Guard::of_last_process(None, remembered);
    let told = world.pass(wanted(0..5, []));
    assert_eq!((ports(&told).len(), told.held.clone()), (5, None));
}

#[test]
fn what_is_to_outlive_the_process_is_told_only_when_it_changed() {
    let mut world = World::new(wanted(0..20, []));
    let mut known = Remembered::default();
    assert!(!world.guard.remember(&mut known));
    world.left(0..20, BY_EVENT);
    world.pass(wanted([], []));
    assert!(world.guard.remember(&mut known));
    assert_eq!(known.held.len(), 20);
    assert!(!world.guard.remember(&mut known));
}

fn tcp_name(index: u16) -> Name {
    Name::Tcp(RouterPort::new(2000 + index).unwrap())
}
