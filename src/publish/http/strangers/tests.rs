use super::*;
use crate::route::Hostname;

const SECOND: Duration = Duration::from_secs(1);

fn uri(text: &str) -> Uri {
    Uri::parse(text).unwrap()
}

fn them(last: u8) -> Endpoint {
    Endpoint::new(&format!("10.9.0.{last}"), 8080)
}

/// Listening since zero to `web.test` and below it.
fn listening() -> Strangers {
    let mut strangers = Strangers::default();
    strangers.listening(Uptime::ZERO);
    strangers.watch(&uri("web.test"));
    strangers
}

#[test]
fn a_place_is_read_as_gorouter_reads_it() {
    let same = |one: &str, other: &str| assert_eq!(Place::of(one), Place::of(other), "{one}");
    same("Web.Test", "web.test");
    same("web.test/", "web.test");
    same("/web.test", "web.test");
    same("web.test?x=/y", "web.test");
    same("web.test/API/", "web.test/api");
    assert_ne!(Place::of("web.test/a"), Place::of("web.test/b"));
    assert_ne!(Place::of("*.web.test"), Place::of("web.test"));
    for text in ["web.test", "*.web.test", "web.test/a"] {
        assert_eq!(Place::of(text).host, host_of(&uri(text)), "{text}");
    }
}

#[test]
fn an_endpoint_keeps_its_address_and_two_that_are_none_stay_two() {
    let text = |host: &str| Endpoint::new(host, 8080).to_string();
    assert_eq!(text("10.0.0.7"), "`10.0.0.7:8080`");
    assert_eq!(text("255.255.255.255"), "`255.255.255.255:8080`");
    assert_eq!(text("web.internal"), "an address that is not IPv4");
    let names = ["web.internal", "10.0.0.07", "::1", ""];
    let distinct: BTreeSet<_> = names.iter().map(|host| Endpoint::new(host, 1)).collect();
    assert_eq!(distinct.len(), names.len());
    assert!(distinct.iter().all(|endpoint| endpoint.address().is_none()));
}

#[test]
fn strangers_at_any_path_of_a_host_serve_the_host_and_a_wildcard_is_another() {
    let mut strangers = listening();
    strangers.watch(&uri("*.web.test"));
    strangers.heard(Place::of("web.test/api"), them(1), SECOND);
    strangers.heard(Place::of("web.test/shop"), them(1), SECOND);
    strangers.heard(Place::of("other.test"), them(2), SECOND);
    assert!(strangers.take_changed());
    assert_eq!(strangers.at(&uri("web.test")), BTreeSet::from([them(1)]));
    assert!(strangers.at(&uri("*.web.test")).is_empty());
    strangers.withdrawn(Place::of("web.test/api"), them(1));
    assert!(
        !strangers.at(&uri("web.test")).is_empty(),
        "one path is left"
    );
    strangers.withdrawn(Place::of("web.test/shop"), them(1));
    assert!(strangers.take_changed() && !strangers.contest());
}

#[test]
fn a_host_that_is_wanted_later_finds_who_was_there_before() {
    let mut strangers = listening();
    strangers.heard(Place::of("late.test"), them(1), SECOND);
    assert!(!strangers.take_changed() && !strangers.contest());
    strangers.watch(&uri("late.test"));
    strangers.watch(&uri("late.test/path"));
    assert!(strangers.take_changed() && strangers.contest());
    strangers.unwatch(&uri("late.test"));
    assert!(strangers.contest());
    strangers.unwatch(&uri("late.test/path"));
    assert!(strangers.take_changed() && !strangers.contest());
    assert_eq!(strangers.len(), 1, "it is remembered all the same");
}

#[test]
fn the_silent_are_forgotten_after_the_stale_threshold_and_not_before() {
    let mut strangers = listening();
    strangers.heard(Place::of("web.test"), them(1), SECOND);
    strangers.heard(Place::of("web.test"), them(2), SECOND);
    strangers.heard(Place::of("web.test"), them(1), 60 * SECOND);
    strangers.take_changed();
    strangers.expire(STALE);
    assert_eq!(strangers.at(&uri("web.test")).len(), 2);
    strangers.expire(STALE + SECOND + SWEEP);
    assert_eq!(strangers.at(&uri("web.test")), BTreeSet::from([them(1)]));
    assert!(strangers.take_changed());
    strangers.expire(STALE + 60 * SECOND + 2 * SWEEP);
    assert!(!strangers.contest() && strangers.len() == 0);
    assert_eq!(strangers.deadline(), None, "nobody is left to wait for");
}

#[test]
fn nobody_ages_while_nothing_can_be_heard() {
    let mut strangers = listening();
    strangers.heard(Place::of("web.test"), them(1), SECOND);
    strangers.deaf(10 * SECOND);
    strangers.expire(1000 * SECOND);
    assert_eq!(strangers.deadline(), None);
    strangers.listening(1000 * SECOND);
    strangers.expire(1100 * SECOND);
    assert!(strangers.contest());
    assert_eq!(strangers.listened(1010 * SECOND), 20 * SECOND);
    strangers.expire(1000 * SECOND + STALE + SWEEP);
    assert!(!strangers.contest());
}

#[test]
fn who_cannot_hear_any_more_knows_nobody_and_still_looks_after_its_hosts() {
    let mut strangers = listening();
    strangers.heard(Place::of("web.test"), them(1), SECOND);
    strangers.take_changed();
    strangers.forget_all();
    assert!(strangers.take_changed() && !strangers.contest());
    strangers.listening(2 * SECOND);
    strangers.heard(Place::of("web.test"), them(1), 3 * SECOND);
    assert!(strangers.contest());
}

#[test]
fn memory_has_a_bound_below_20_mb_and_hosts_of_ours_have_room_beyond_it() {
    let mut strangers = listening();
    for n in 0..REMEMBERED_MAX + 1000 {
        let host = Hostname::parse(&format!("app-{n}.test")).unwrap();
        strangers.heard(Place::of(host.as_str()), them(1), SECOND);
    }
    assert_eq!(strangers.len(), REMEMBERED_MAX);
    strangers.heard(Place::of("web.test"), them(1), SECOND);
    assert!(strangers.contest());
    // The standard library's nodes hold eleven pairs and are never less than five elevenths full; a twelfth of
    // a node's size is for its head and for the inner nodes' edges.
    let pair = size_of::<Key>() + size_of::<u32>();
    let most = (REMEMBERED_MAX + WATCHED_MAX) * pair * 11 / 5 * 13 / 12;
    assert!(most < 13_000_000, "{most}");
}
