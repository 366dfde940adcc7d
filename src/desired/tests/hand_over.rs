//! Names that their holder gives away.

use super::*;

/// A holder that names somebody, and the one that is named.
fn pair(holder: &str, heir: &str) -> [Build; 2] {
    [
        service(holder, 30001)
            .http("web")
            .tcp("2000")
            .created(1)
            .annotate("hand-over-to", heir),
        service(heir, 30002).http("web").tcp("2000").created(2),
    ]
}

fn once(services: &[Build]) -> Vec<String> {
    show(&derive(
        &cluster(services, &nodes(1)),
        &mut Memory::default(),
        &options(),
        Uptime::ZERO,
    ))
}

/// Whether any pod of each Service is ready.
fn with_pods(mut snapshot: Snapshot, ready: &[(&Build, bool)]) -> Snapshot {
    let of = |(build, any_ready): &(&Build, bool)| {
        let endpoints = Endpoints {
            any_ready: *any_ready,
            ..Endpoints::default()
        };
        (build.0.service.key.clone(), endpoints)
    };
    snapshot.endpoints = Some(ready.iter().map(of).collect());
    snapshot
}

#[test]
fn the_named_service_gets_every_name_it_asks_for_and_nobody_is_told_of_a_conflict() {
    assert_eq!(
        once(&pair("a/old", "a/new")),
        ["web.apps.test -> a/new {30002}", "2000 -> a/new {30002}"]
    );
}

#[test]
fn a_host_and_a_port_may_go_to_another_namespace() {
    assert_eq!(
        once(&pair("a/old", "b/new")),
        ["web.apps.test -> b/new {30002}", "2000 -> b/new {30002}"]
    );
}

#[test]
fn what_cannot_be_handed_over_stays_and_its_holder_is_told() {
    let stays = |code: &str| {
        [
            "web.apps.test -> a/old {30001}".to_owned(),
            "2000 -> a/old {30001}".to_owned(),
            format!("service a/old {code}"),
        ]
    };
    let [old, _] = pair("a/old", "a/new");
    assert_eq!(
        once(std::slice::from_ref(&old)),
        stays("hand-over-unknown"),
        "nobody of that name"
    );
    let other = service("a/new", 30002).http("other");
    let mut with_other = vec!["other.apps.test -> a/new {30002}".to_owned()];
    with_other.extend(stays("hand-over-unclaimed"));
    assert_eq!(once(&[old, other]), with_other, "other names");

    let [old, new] = pair("a/old", "a/new");
    let new = new.annotate("hand-over-to", "a/old");
    assert_eq!(
        once(&[old, new])[..3],
        stays("hand-over-cycle"),
        "one another"
    );
    for text in ["new", "a/", "/new", "a/old", "A/new", "a/b/c", ""] {
        let old = service("a/old", 30001).http("web").tcp("2000");
        let old = old.annotate("hand-over-to", text);
        assert_eq!(once(&[old]), stays("annotation-invalid"), "{text:?}");
    }
}

#[test]
fn policy_decides_whether_the_named_service_may_have_the_name() {
    let mut options = options();
    options.host_grants = vec![HostGrant {
        namespaces: vec!["a".to_owned()],
        hosts: vec!["web".to_owned()],
    }];
    options.port_grants = vec![PortGrant {
        namespaces: vec!["a".to_owned()],
        ports: PortRanges::parse("2000-2010").unwrap(),
    }];
    let view = cluster(&pair("a/old", "b/new"), &nodes(1));
    let desired = derive(&view, &mut Memory::default(), &options, Uptime::ZERO);
    assert_eq!(
        show(&desired),
        [
            "web.apps.test -> a/old {30001}",
            "2000 -> a/old {30001}",
            "service b/new port-denied",
            "service b/new host-denied",
            "service a/old hand-over-denied",
        ]
    );
}

#[test]
fn a_host_goes_to_another_namespace_with_all_its_paths_or_not_at_all() {
    let names = "web, web/shop";
    let old = service("a/old", 30001)
        .http("x")
        .annotate("http", "web")
        .annotate("hand-over-to", "b/new");
    let shop = service("a/shop", 30003)
        .http("x")
        .annotate("http", "web/shop");
    let new = service("b/new", 30002)
        .http("x")
        .annotate("http", names)
        .created(2);
    assert_eq!(
        once(&[old.clone(), shop.clone(), new.clone()]),
        [
            "web.apps.test -> a/old {30001}",
            "web.apps.test/shop -> a/shop {30003}",
            "service b/new host-conflict",
            "service b/new host-conflict",
            "service a/old winner-undetermined",
            "service a/shop winner-undetermined",
            "service a/old hand-over-denied",
        ]
    );
    let shop = shop.annotate("hand-over-to", "b/new");
    assert_eq!(
        once(&[old, shop, new]),
        [
            "web.apps.test -> b/new {30002}",
            "web.apps.test/shop -> b/new {30002}",
        ]
    );
}

#[test]
fn a_name_goes_along_a_chain_as_far_as_it_can() {
    let [old, new] = pair("a/old", "a/new");
    let new = new.annotate("hand-over-to", "a/newest");
    let newest = service("a/newest", 30003).http("web").created(3);
    assert_eq!(
        once(&[old, new, newest]),
        [
            "web.apps.test -> a/newest {30003}",
            "2000 -> a/new {30002}",
            "service a/new hand-over-unclaimed",
        ]
    );
}

#[test]
fn the_switch_waits_for_a_ready_pod_and_does_not_go_back_when_that_pod_is_replaced() {
    let [old, new] = pair("a/old", "a/new");
    let view = cluster(&[old.clone(), new.clone()], &nodes(1));
    let mut memory = Memory::default();
    let mut pass = |ready| {
        let view = with_pods(view.clone(), &[(&old, true), (&new, ready)]);
        show(&derive(&view, &mut memory, &options(), Uptime::ZERO))
    };
    assert_eq!(
        pass(false),
        [
            "web.apps.test -> a/old {30001}",
            "2000 -> a/old {30001}",
            "service a/new port-conflict",
            "service a/new host-conflict",
            "service a/old hand-over-waits",
        ]
    );
    let handed_over = ["web.apps.test -> a/new {30002}", "2000 -> a/new {30002}"];
    assert_eq!(pass(true), handed_over);
    assert_eq!(pass(false), handed_over);
}

#[test]
fn whoever_gave_a_name_away_has_it_again_when_the_other_goes() {
    let pair = pair("a/old", "b/new");
    let mut memory = Memory::default();
    let mut pass = |services: &[Build]| {
        let view = cluster(services, &nodes(1));
        show(&derive(&view, &mut memory, &options(), Uptime::ZERO))
    };
    assert_eq!(pass(&pair).len(), 2);
    assert_eq!(
        pass(&pair[..1]),
        [
            "web.apps.test -> a/old {30001}",
            "2000 -> a/old {30001}",
            "service a/old hand-over-unknown",
        ]
    );
}

#[test]
fn a_holder_that_names_nobody_keeps_its_name_from_whom_another_names() {
    let holder = service("a/holder", 30003).http("web").tcp("2000");
    let [loser, heir] = pair("a/loser", "a/heir");
    let told = once(&[holder, loser, heir]);
    assert_eq!(
        told[..2],
        [
            "web.apps.test -> a/holder {30003}",
            "2000 -> a/holder {30003}"
        ]
    );
    assert!(
        !told.iter().any(|line| line.contains("hand-over")),
        "{told:?}"
    );
}

#[test]
fn the_node_port_that_yields_a_router_port_is_told_as_long_as_the_word_stands() {
    let view = cluster(&pair("a/old", "a/new"), &nodes(1));
    let desired = derive(&view, &mut Memory::default(), &options(), Uptime::ZERO);
    let told: Vec<_> = desired.yielding.into_iter().collect();
    let port = RouterPort::new(2000).unwrap();
    assert_eq!(
        told,
        [(port, BTreeSet::from([NodePort::new(30001).unwrap()]))]
    );
}

#[test]
fn the_word_of_it_survives_a_restart_without_state() {
    let [old, new] = pair("a/old", "a/new");
    let mut memory = Memory::default();
    let view = cluster(&[old, new], &nodes(1));
    derive(&view, &mut memory, &options(), Uptime::ZERO);
    assert_eq!(
        show(&derive(
            &view,
            &mut Memory::default(),
            &options(),
            Uptime::ZERO
        )),
        show(&derive(&view, &mut memory, &options(), Uptime::ZERO)),
    );
}

proptest! {
    /// Whatever points at whatever: a name has one holder that asks for it, and a second pass changes nothing.
    #[test]
    fn any_tangle_of_words_settles(
        words in proptest::collection::vec((0_usize..6, any::<bool>(), any::<bool>()), 6),
    ) {
        let name = |index: usize| format!("{}/s{index}", ["a", "b"][index % 2]);
        let build = |(index, (to, http, tcp)): (usize, &(usize, bool, bool))| {
            let node_port = 30001 + u16::try_from(index).unwrap();
            let mut build = service(&name(index), node_port).annotate("hand-over-to", &name(*to));
            if *http { build = build.http("web"); }
            if *tcp { build = build.tcp("2000"); }
            build
        };
        let services: Vec<_> = words.iter().enumerate().map(build).collect();
        let view = cluster(&services, &nodes(1));
        let mut memory = Memory::default();
        let first = derive(&view, &mut memory, &options(), Uptime::ZERO);
        prop_assert_eq!(first.table.http.len() == 1, words.iter().any(|word| word.1));
        prop_assert_eq!(first.table.tcp.len() == 1, words.iter().any(|word| word.2));
        let second = derive(&view, &mut memory, &options(), Uptime::ZERO);
        prop_assert_eq!(first.table, second.table);
    }
}
