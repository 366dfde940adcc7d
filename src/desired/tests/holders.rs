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
