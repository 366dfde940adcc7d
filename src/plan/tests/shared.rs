//! A port that several share, and one of which nobody can say yet whether it should be served.

use super::*;

/// What is done about others' ports, each with removals held and not.
pub(super) fn policies() -> impl Iterator<Item = (OnForeign, bool)> {
    let all = [OnForeign::Hold, OnForeign::Join, OnForeign::Share];
    all.into_iter().flat_map(|it| [(it, false), (it, true)])
}

/// One of ours, which leads to no node: static routes have none.
fn ours() -> TcpRow {
    row(1024, "10.9.0.5", 8443)
}

fn sharing() -> World {
    let mut world = World::new().want("a", &[ours()]);
    world.policy.on_foreign = OnForeign::Share;
    world
}

#[test]
fn peers_of_a_shared_port_are_neither_in_the_way_nor_told_of() {
    let old_body = with_tls(0, row(1024, "10.9.0.6", 8443));
    let world = sharing()
        .see(Some("rs-another"), row(1024, "10.9.0.7", 8443))
        .see(None, old_body);
    let plan = world.plan(Sight::Seen);
    assert_eq!(plan.add, [ours()]);
    assert_eq!((plan.clear, plan.remove), (vec![], vec![]));
    assert_eq!((plan.findings, plan.look_again), (vec![], None));
}

#[test]
fn an_old_row_at_our_own_address_is_cleared_first_on_a_shared_port_too() {
    let old = with_tls(0, ours());
    let plan = sharing().see(None, old.clone()).plan(Sight::Seen);
    assert_eq!((owned(&plan.clear), plan.add.clone()), (vec![old], vec![]));
    assert_eq!(codes(&plan), ["legacy-rows"]);
    assert_eq!(plan.look_again, Some(Look::Soon));
}

#[test]
fn rows_of_an_undecided_port_are_kept_alive_and_none_comes() {
    let peer = row(1024, "10.9.0.7", 8443);
    let mut world = World::new()
        .see(Some(us().as_str()), ours())
        .see(Some("rs-another"), peer);
    world.undecided.insert(RouterPort::new(1024).unwrap());
    let plan = world.plan(Sight::Seen);
    assert_eq!((plan.remove.len(), plan.add.len()), (0, 0));
    assert_eq!(plan.refresh, [ours()], "ours alone");
    world.undecided.clear();
    assert_eq!(owned(&world.plan(Sight::Seen).remove), [ours()]);
}

#[test]
fn another_undecided_port_keeps_no_row_from_going() {
    let mut world = World::new().see(Some(us().as_str()), ours());
    world.undecided.insert(RouterPort::new(1025).unwrap());
    assert_eq!(owned(&world.plan(Sight::Seen).remove), [ours()]);
}

#[test]
fn who_cannot_read_does_not_bring_back_what_is_undecided() {
    let mut world = World::new();
    world.journal.inherited.insert(ours());
    world.undecided.insert(RouterPort::new(1024).unwrap());
    let plan = world.plan(Sight::Blind);
    assert!(plan.in_sync() && plan.refresh.is_empty());
}
