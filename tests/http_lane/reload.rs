//! Other settings while the lane runs: proven by a second connection before the first is given up.

use super::*;

use route_sync::settings::Settings;

/// A lane that follows, and what it follows.
fn following(first: NatsConfig) -> (Running, Settings<NatsConfig>) {
    let settings = Settings::new(first);
    let none = http::Inheritance::default();
    let routes = Some(table(&[("a", 30001, &[1])]));
    (
        Running::start_with(settings.follower(), none, routes),
        settings,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_had_costs_nothing_and_is_told_until_another_is_wanted() {
    let server = Server::start(Behaviour::default()).await;
    let locked = Behaviour {
        password: Some("right".to_owned()),
        ..Behaviour::default()
    };
    let locked = Server::start(locked).await;
    let (lane, settings) = following(config(&[server.addr], None, None));
    lane.live("a").await;

    settings.want(config(&[locked.addr], Some("wrong"), None));
    until("told", || {
        let why = settings.unused().unwrap_or_default();
        why.contains("user or password")
    })
    .await;
    assert_eq!(lane.state("a"), Some(RouteState::Live));
    assert!(lane.error().is_empty(), "{}", lane.error());
    lane.want(&[("a", 30001, &[1]), ("b", 30002, &[1])]);
    lane.live("b").await;
    assert_eq!((server.connections(), locked.routes().len()), (1, 0));

    settings.want(config(&[locked.addr], Some("right"), None));
    until("taken", || settings.unused().is_none()).await;
    until("all said anew", || locked.routes().len() >= 2).await;
    lane.live("a").await;
    lane.live("b").await;
    // But for the question whether we may.
    let withdrawn = |server: &Server| {
        let mut routes = server.routes().into_iter();
        routes.any(|(_, sign, body)| sign == '-' && !body.contains(r#""uris":[]"#))
    };
    assert!(!withdrawn(&server) && !withdrawn(&locked));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_speak_is_not_taken_until_it_may() {
    let server = Server::start(Behaviour::default()).await;
    let mute = Behaviour {
        deny_publish: Some("router.unregister"),
        ..Behaviour::default()
    };
    let mute = Server::start(mute).await;
    let (lane, settings) = following(config(&[server.addr], None, None));
    lane.live("a").await;
    settings.want(config(&[mute.addr], None, None));
    until("told", || {
        let why = settings.unused().unwrap_or_default();
        why.contains("denies publishing to `router.unregister`")
    })
    .await;
    assert_eq!(lane.state("a"), Some(RouteState::Live));
    lane.want(&[("a", 30001, &[1]), ("b", 30002, &[1])]);
    lane.live("b").await;
    assert_eq!((server.connections(), mute.connections()), (1, 1));

    mute.change(|behaviour| behaviour.deny_publish = None);
    until("taken", || settings.unused().is_none()).await;
    lane.live("a").await;
    lane.live("b").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_pace_needs_no_other_connection() {
    let server = Server::start(Behaviour::default()).await;
    let first = config(&[server.addr], None, None);
    let (lane, settings) = following(first.clone());
    lane.live("a").await;
    settings.want(NatsConfig {
        messages_per_second: 10,
        default_interval: Duration::from_secs(5),
        ..first
    });
    until("taken", || settings.unused().is_none()).await;
    until("adopted", || {
        lane.report
            .borrow()
            .facts
            .get("interval")
            .map(String::as_str)
            == Some("5 s")
    })
    .await;
    lane.want(&[("a", 30001, &[1]), ("b", 30002, &[1])]);
    lane.live("b").await;
    assert_eq!(server.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_wanted_back_end_the_trial_of_others() {
    let server = Server::start(Behaviour::default()).await;
    let mut gone = Server::start(Behaviour::default()).await;
    gone.stop().await;
    let first = config(&[server.addr], None, None);
    let (lane, settings) = following(first.clone());
    lane.live("a").await;
    for _ in 0..20 {
        settings.want(config(&[gone.addr], None, None));
        assert!(settings.unused().is_some());
        settings.want(first.clone());
    }
    until("back", || settings.unused().is_none()).await;
    assert_eq!(lane.state("a"), Some(RouteState::Live));
    assert_eq!(server.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_headroom_begins_at_the_life_that_routers_give() {
    let server = Server::start(Behaviour::default()).await;
    let (lane, _settings) = following(config(&[server.addr], None, None));
    assert_eq!(lane.report.borrow().lapses_at, None);
    lane.live("a").await;
    let life = Duration::from_mins(2);
    until("known", || {
        let lapses_at = lane.report.borrow().lapses_at;
        lapses_at.is_some_and(|at| at >= life && at <= life + DEADLINE)
    })
    .await;
    // What stood at the start was no change; what comes later is.
    let count = || {
        let measured = lane.counters.propagation.measured(&[Lane::Http].into());
        [measured[0].2.count(), measured[1].2.count()]
    };
    assert_eq!(count(), [0, 0]);
    let (old, new) = (
        table(&[("a", 30001, &[1])]),
        table(&[("a", 30001, &[1]), ("b", 30002, &[1])]),
    );
    lane.counters
        .propagation
        .seen(Some(&old), &new, Duration::ZERO);
    lane.want(&[("a", 30001, &[1]), ("b", 30002, &[1])]);
    until("measured", || count() == [1, 1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_read_from_its_file_for_each_connection() {
    let locked = |password: &str| Behaviour {
        password: Some(password.to_owned()),
        ..Behaviour::default()
    };
    let mut server = Server::start(locked("old")).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "old\n").unwrap();
    let mut first = config(&[server.addr], Some(""), None);
    let password = Secret::read(&file).unwrap();
    first.servers[0].login = Some(("nats".to_owned(), password));
    let (lane, _settings) = following(first);
    lane.live("a").await;
    server.stop().await;
    std::fs::write(&file, "new\n").unwrap();
    server.change(|behaviour| *behaviour = locked("new"));
    server.listen().await;
    until("connected again", || {
        lane.counters.connections.load(Ordering::Relaxed) == 2
    })
    .await;
    lane.live("a").await;
}
