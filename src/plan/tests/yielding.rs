//! A router port that goes from one Service to another by the first one's word.

use super::*;

fn gives() -> BTreeMap<RouterPort, BTreeSet<NodePort>> {
    let node_port = NodePort::new(30002).unwrap();
    BTreeMap::from([(RouterPort::new(1024).unwrap(), BTreeSet::from([node_port]))])
}

#[test]
fn rows_of_the_one_that_yields_stand_until_the_first_new_one_does() {
    let old = [row(1024, "10.0.0.1", 30002), row(1024, "10.0.0.2", 30002)];
    let new = [row(1024, "10.0.0.1", 30001), row(1024, "10.0.0.3", 30001)];
    let mut world = World::new().want("a", &new);
    world.yielding = gives();
    for row in &old {
        world = world
            .see(Some(us().as_str()), row.clone())
            .confirmed(5, row.clone());
    }
    let plan = world.plan(Sight::Seen);
    assert_eq!((plan.add.len(), plan.remove.len()), (2, 0));
    assert_eq!(plan.keep, old, "kept alive meanwhile");
    world = world
        .see(Some(us().as_str()), new[1].clone())
        .confirmed(0, new[1].clone());
    let plan = world.plan(Sight::Seen);
    assert_eq!((plan.add.len(), plan.remove.len()), (1, 2));
}

#[test]
fn without_that_word_rows_of_another_service_go_at_once() {
    let world = World::new().want("a", &[row(1024, "10.0.0.1", 30001)]);
    let world = world.see(Some(us().as_str()), row(1024, "10.0.0.1", 30002));
    assert_eq!(world.plan(Sight::Seen).remove.len(), 1);
}

#[test]
fn a_strangers_row_at_the_node_port_that_yields_is_nobodys_to_remove() {
    let new = row(1024, "10.0.0.1", 30001);
    let mut world = World::new().want("a", std::slice::from_ref(&new));
    world.yielding = gives();
    let world = world
        .see(Some("rs-another"), row(1024, "10.9.9.9", 30002))
        .see(Some(us().as_str()), new.clone())
        .confirmed(0, new);
    assert_eq!(world.plan(Sight::Seen).remove, []);
}
