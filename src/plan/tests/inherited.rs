//! Rows that the process before this one had confirmed, without a mark of ours on them.

use super::*;

impl World {
    fn left(mut self, row: TcpRow) -> Self {
        self.journal.inherited.insert(row);
        self
    }
}

#[test]
fn a_row_that_lapsed_meanwhile_is_restored_even_where_nothing_can_be_seen_yet() {
    let ours = row(2000, "10.0.0.1", 30001);
    for sight in [Sight::Seen, Sight::Blind, Sight::BlindEarly] {
        let world = World::new()
            .want("a", std::slice::from_ref(&ours))
            .left(ours.clone());
        let plan = world.plan(sight);
        assert_eq!((plan.restore, plan.add), (vec![ours.clone()], vec![]));
    }
}

#[test]
fn a_row_that_stands_is_refreshed_at_once_as_nobody_knows_when_it_lapses() {
    let ours = row(2000, "10.0.0.1", 30001);
    let world = World::new()
        .want("a", std::slice::from_ref(&ours))
        .see(None, ours.clone())
        .left(ours.clone());
    let plan = world.plan(Sight::Seen);
    assert_eq!(plan.refresh, [ours]);
    assert!(plan.in_sync());
}

#[test]
fn a_row_nobody_wants_goes_though_it_carries_no_mark_but_not_one_that_others_marked() {
    let ours = row(2000, "10.0.0.1", 30001);
    let plan = |stamp, hold_removals, sight| {
        let mut world = World::new().see(stamp, ours.clone()).left(ours.clone());
        world.policy.hold_removals = hold_removals;
        world.plan(sight)
    };
    for sight in [Sight::Seen, Sight::Blind] {
        let removed = plan(None, false, sight).remove;
        assert_eq!(removed.iter().map(Owned::get).collect::<Vec<_>>(), [&ours]);
    }
    assert!(plan(Some("others"), false, Sight::Seen).remove.is_empty());
    // While removals are held it is kept alive where it is seen, and not made anew where it is not.
    let held = plan(None, true, Sight::Seen);
    assert_eq!((held.remove.len(), held.refresh), (0, vec![ours.clone()]));
    assert_eq!(
        plan(None, true, Sight::Blind),
        Plan::default(),
        "nobody knows whether it stands"
    );
}

#[test]
fn strangers_who_joined_the_port_meanwhile_do_not_push_ours_out() {
    let ours = row(2000, "10.0.0.1", 30001);
    let world = World::new()
        .want("a", std::slice::from_ref(&ours))
        .see(Some("others"), row(2000, "10.9.9.9", 8080))
        .left(ours.clone());
    let plan = world.plan(Sight::Seen);
    assert_eq!(plan.restore, [ours]);
    assert_eq!(plan.findings[0].code, Code::ForeignJoined);
}
