//! Who holds a name, from one process to the next.

use super::*;

#[test]
fn a_name_contested_while_nobody_ran_stays_with_whom_the_last_process_gave_it_to() {
    let old = service("z/old", 30001).http("web").tcp("2000").created(1);
    let new = service("a/new", 30002).http("web").tcp("2000").created(2);
    let alone = cluster(std::slice::from_ref(&new), &nodes(1));
    let last = derive(&alone, &mut Memory::default(), &options(), Uptime::ZERO);
    let mut memory = Memory::of_holders(&last.table);
    let both = cluster(&[old, new], &nodes(1));
    assert_eq!(
        show(&derive(&both, &mut memory, &options(), Uptime::ZERO)),
        [
            "web.apps.test -> a/new {30002}",
            "2000 -> a/new {30002}",
            "service z/old port-conflict",
            "service z/old host-conflict",
        ]
    );
}

#[test]
fn a_name_contested_at_the_start_stays_with_whom_another_instance_gave_it_to() {
    let old = service("z/old", 30001).http("web").tcp("2000").created(1);
    let new = service("a/new", 30002).http("web").tcp("2000").created(2);
    let both = cluster(&[old.clone(), new.clone()], &nodes(1));
    let alone = cluster(std::slice::from_ref(&new), &nodes(1));
    let mut leads = Memory::default();
    derive(&alone, &mut leads, &options(), Uptime::ZERO);
    assert_eq!(*leads.contested(), Contested::default(), "nobody contests");
    let led = derive(&both, &mut leads, &options(), Uptime::ZERO);
    let contested = leads.contested();
    assert_eq!((contested.uris.len(), contested.ports.len()), (1, 1));

    let mut stands_by = Memory::default();
    stands_by.adopt(contested);
    let told = derive(&both, &mut stands_by, &options(), Uptime::ZERO);
    assert_eq!(told, led);
    // One that had decided otherwise gives way as well.
    let mut decided = Memory::default();
    derive(&both, &mut decided, &options(), Uptime::ZERO);
    decided.adopt(contested);
    assert_eq!(derive(&both, &mut decided, &options(), Uptime::ZERO), led);
}
