//! What kube 5.0.0's own watcher and client get wrong, each shown on them and then on ours.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config};
use tokio::time::{Instant, timeout};

use super::apiserver::{ApiServer, Fault};
use super::{DEADLINE, HTTP, Timing, block_on, eventually, quick, stays, watching, watching_with};

/// How long the bare watcher is looked at where it never does the right thing.
const LOOK: Duration = Duration::from_millis(1500);
const POLL: Duration = Duration::from_millis(10);

/// A backoff as `watcher` documents it: reset by each success, doubled by each failure.
struct Doubling(Duration, Duration);

impl Iterator for Doubling {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.1 *= 2;
        Some(self.1 / 2)
    }
}

impl Backoff for Doubling {
    fn reset(&mut self) {
        self.1 = self.0;
    }
}

fn bare(server: &ApiServer, retry: bool) -> Api<Node> {
    let mut config = Config::new(server.url().parse().unwrap());
    config.default_retry = retry;
    Api::all(Client::try_from(config).unwrap())
}

/// Drives the bare watcher as its documentation has it until after so many errors it has done enough, and counts them.
async fn drive(nodes: Api<Node>, enough: impl Fn(usize) -> bool) -> usize {
    let mut events = Box::pin(watcher(nodes, watcher::Config::default()).default_backoff());
    let mut errors = 0;
    let end = Instant::now() + DEADLINE;
    while !enough(errors) && Instant::now() < end {
        if let Ok(event) = timeout(POLL, events.next()).await {
            errors += usize::from(event.unwrap().is_err());
        }
    }
    errors
}

/// How many tries waits allow that double and are each at least a quarter of their bound.
fn tries_at_most(elapsed: Duration, first: Duration) -> usize {
    let mut tries = 1;
    let mut waited = Duration::ZERO;
    while waited <= elapsed {
        waited += first * 2_u32.pow(u32::try_from(tries).unwrap() - 1) / 4;
        tries += 1;
    }
    tries
}

#[test]
fn a_watch_that_ends_at_once_is_not_asked_for_in_a_hot_loop() {
    block_on(async {
        let server = ApiServer::start().await;
        server.fail("watch", "nodes", Fault::Eof);
        // With its own waits of 800 ms and more this would take over half a minute.
        let spins = |_| server.count("watch", "nodes") > 50;
        drive(bare(&server, false), spins).await;
        let bare = server.count("watch", "nodes");
        assert!(bare > 50, "the bare watcher no longer spins: {bare}");

        let server = ApiServer::start().await;
        server.fail("watch", "nodes", Fault::Eof);
        let started = Instant::now();
        let mut watched = watching(&server, quick());
        watched.until("complete", |_| true).await;
        tokio::time::sleep(LOOK).await;
        eventually("asked again", || server.count("watch", "nodes") >= 2).await;
        let ours = server.count("watch", "nodes");
        let most = tries_at_most(started.elapsed(), quick().backoff_first);
        assert!(ours <= most, "{ours} watches, {most} allowed");
        // And it is still worth something: changes are seen once it is mended.
        server.heal();
        server.node("late", 0);
        watched
            .until("mended", |it| it.nodes.contains_key("late"))
            .await;
    });
}

#[test]
fn the_wait_grows_while_lists_fail() {
    block_on(async {
        let server = ApiServer::start().await;
        server.fail("list", "nodes", Fault::Status(500));
        let first = Duration::from_millis(40);
        let growing = Doubling(first, first);
        let nodes = bare(&server, false);
        let started = Instant::now();
        let mut events = Box::pin(watcher(nodes, watcher::Config::default()).backoff(growing));
        // With waits of 40, 80, 160 … ms this would take over an hour.
        let spinning = async {
            while server.count("list", "nodes") < 18 {
                let _ = events.next().await;
            }
        };
        assert!(
            timeout(Duration::from_secs(25), spinning).await.is_ok(),
            "the bare watcher's backoff grows now: {:?}",
            started.elapsed()
        );
        drop(events);

        let server = ApiServer::start().await;
        server.fail("list", "nodes", Fault::Status(500));
        let started = Instant::now();
        let mut watched = watching(&server, quick());
        watched.reported("nodes", "answers 500").await;
        tokio::time::sleep(LOOK).await;
        eventually("asked again", || server.count("list", "nodes") >= 2).await;
        let ours = server.count("list", "nodes");
        let most = tries_at_most(started.elapsed(), first);
        assert!(ours <= most, "{ours} lists, {most} allowed");
    });
}

#[test]
fn a_watch_request_answered_410_leads_to_a_fresh_list() {
    block_on(async {
        let server = ApiServer::start().await;
        server.fail("watch", "nodes", Fault::Status(410));
        let errors = drive(bare(&server, false), |errors| errors >= 2).await;
        assert!(
            errors >= 2,
            "the bare watcher was refused only {errors} times"
        );
        assert_eq!(
            server.count("list", "nodes"),
            1,
            "the bare watcher lists anew now"
        );

        let server = ApiServer::start().await;
        server.fail("watch", "nodes", Fault::Status(410));
        let mut watched = watching(&server, quick());
        watched.until("complete", |_| true).await;
        eventually("listed anew", || server.count("list", "nodes") >= 3).await;
        server.node("late", 0);
        watched
            .until("listed", |it| it.nodes.contains_key("late"))
            .await;
    });
}

#[test]
fn a_410_inside_a_watch_leads_to_a_fresh_list() {
    block_on(async {
        let server = ApiServer::start().await;
        server.fail("watch", "nodes", Fault::GoneEvent);
        let mut watched = watching(&server, quick());
        watched.until("complete", |_| true).await;
        server.node("late", 0);
        watched
            .until("listed", |it| it.nodes.contains_key("late"))
            .await;
        assert!(server.count("list", "nodes") >= 2);
    });
}

#[test]
fn a_refused_request_is_told_and_not_repeated_out_of_sight() {
    block_on(async {
        let server = ApiServer::start().await;
        server.fail("list", "nodes", Fault::Status(503));
        let repeated = |_| server.count("list", "nodes") >= 3;
        let errors = drive(bare(&server, true), repeated).await;
        let tries = server.count("list", "nodes");
        assert_eq!(errors, 0, "the bare client tells of it now");
        assert!(tries >= 3, "the bare client no longer repeats: {tries}");

        let server = ApiServer::start().await;
        server.fail("list", "nodes", Fault::Status(503));
        let mut watched = watching(
            &server,
            Timing {
                backoff_first: Duration::from_mins(10),
                backoff_max: Duration::from_mins(10),
                ..quick()
            },
        );
        watched.reported("nodes", "answers 503").await;
        stays("one request", || server.count("list", "nodes") == 1).await;
    });
}

#[test]
fn an_apiserver_that_never_answers_is_given_up() {
    block_on(async {
        let server = ApiServer::start().await;
        server.fail("list", "nodes", Fault::Hang);
        let until = Instant::now() + LOOK;
        let looked = |_| Instant::now() >= until && server.count("list", "nodes") > 0;
        let errors = drive(bare(&server, false), looked).await;
        assert_eq!((errors, server.count("list", "nodes")), (0, 1));

        let server = ApiServer::start().await;
        server.fail("watch", "nodes", Fault::Hang);
        let timing = Timing {
            header_timeout: Duration::from_millis(300),
            ..quick()
        };
        let mut watched = watching(&server, timing);
        watched.reported("nodes", "did not begin to answer").await;
        server.heal();
        server.node("late", 0);
        watched
            .until("watched", |it| it.nodes.contains_key("late"))
            .await;
    });
}

#[test]
fn a_silent_watch_is_found_out_by_silence() {
    block_on(async {
        let server = ApiServer::start().await;
        server.fail("watch", "nodes", Fault::Silent);
        let nodes = bare(&server, false);
        let seen = async {
            let mut events = Box::pin(watcher(nodes, watcher::Config::default()));
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::InitDone) => server.node("late", 0),
                    Ok(watcher::Event::Apply(node))
                        if node.metadata.name.as_deref() == Some("late") =>
                    {
                        return;
                    }
                    _ => {}
                }
            }
        };
        assert!(
            timeout(LOOK, seen).await.is_err(),
            "the bare watcher notices now"
        );

        let timing = Timing {
            silence_max: Duration::from_millis(400),
            ..quick()
        };
        let mut watched = watching(&server, timing);
        watched.until("complete", |_| true).await;
        server.node("later", 0);
        watched
            .until("listed", |it| it.nodes.contains_key("later"))
            .await;
    });
}

#[test]
fn the_independent_list_finds_what_a_silent_watch_missed_and_counts_it() {
    block_on(async {
        let server = ApiServer::start().await;
        server.service("web", &[(HTTP, "web")], 30_001);
        server.fail("watch", "services", Fault::Silent);
        let mut watched = watching_with(&server, quick(), "{}", |config| {
            config.rescan_interval = Duration::from_millis(300);
        });
        watched.service("web").await;
        server.service("other", &[(HTTP, "other")], 30_002);
        watched.service("other").await;
        let missed = watched.counters.watch_missed.clone();
        assert!(missed.load(std::sync::atomic::Ordering::Relaxed) >= 1);
        server.delete("services", "default", "web");
        watched.without("web").await;
    });
}

#[test]
fn two_apiservers_that_disagree_are_not_listed_in_a_hot_loop() {
    block_on(async {
        let server = ApiServer::start().await;
        server.service("web", &[(HTTP, "web")], 30_001);
        let mut watched = watching_with(&server, quick(), "{}", |config| {
            config.rescan_interval = Duration::from_secs(1);
        });
        watched.service("web").await;
        let before = server.count("list", "services");
        let started = Instant::now();
        // The independent list asks where the Service is missing; from there on each list brings the next.
        server.fail("list", "services", Fault::Empty);
        while server.count("get", "services") == 0 {
            assert!(started.elapsed() < DEADLINE, "never confirmed");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::time::sleep(LOOK).await;
        let lists = server.count("list", "services") - before;
        // For both sources of Services, and as much again for the independent lists.
        let most = 2 * 2 * tries_at_most(started.elapsed(), quick().backoff_first);
        assert!(lists <= most, "{lists} lists, {most} allowed");
        watched.service("web").await;
        server.heal();
        server.service("other", &[(HTTP, "other")], 30_002);
        watched.service("other").await;
    });
}

#[test]
fn a_watch_that_lived_excuses_the_lists_that_failed_before_it() {
    block_on(async {
        let server = ApiServer::start().await;
        // One failure more would be taken for a watch that keeps failing.
        server.fail_first("list", "nodes", &[Fault::Status(500); 6]);
        server.fail("watch", "nodes", Fault::Silent);
        let timing = Timing {
            healthy_watch: Duration::from_millis(100),
            watch_timeout: Duration::from_secs(1),
            watch_jitter: Duration::ZERO,
            watch_grace: Duration::from_millis(200),
            ..quick()
        };
        let mut watched = watching(&server, timing);
        watched.until("complete", |_| true).await;
        // The first watch lives for a second and then turns out to be dead.
        eventually("watched anew", || server.count("watch", "nodes") >= 2).await;
        let restarts = watched.counters.watch_restarts.clone();
        assert_eq!(restarts.load(std::sync::atomic::Ordering::Relaxed), 0);
    });
}

#[test]
fn an_event_that_breaks_off_is_read_again() {
    block_on(async {
        let server = ApiServer::start().await;
        server.fail("watch", "services", Fault::Cut);
        let mut watched = watching(&server, quick());
        watched.until("complete", |_| true).await;
        watched.reported("services-http", "broke off").await;
        server.service("web", &[(HTTP, "web")], 30_001);
        server.heal();
        watched.service("web").await;
    });
}
