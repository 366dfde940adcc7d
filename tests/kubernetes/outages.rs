//! An apiserver that is down, comes up or hides behind a proxy: what it then says is no proof of anything.

use std::time::Duration;

use route_sync::desired::Code;
use route_sync::kubernetes::snapshot::Snapshot;

use super::apiserver::{ApiServer, Fault};
use super::{DEADLINE, HTTP, Timing, block_on, eventually, found, has, quick, stays, watching};

/// Whoever fails once sleeps past the end of the test, unless woken.
fn asleep() -> Timing {
    Timing {
        backoff_first: 20 * DEADLINE,
        backoff_max: 20 * DEADLINE,
        header_timeout: DEADLINE,
        list_timeout: DEADLINE,
        ..quick()
    }
}

#[test]
fn endpoints_outlive_an_outage_that_begins_and_ends_with_a_refusal() {
    block_on(async {
        let server = ApiServer::start().await;
        let timing = Timing {
            backoff_max: Duration::from_millis(100),
            watch_timeout: Duration::from_secs(1),
            watch_jitter: Duration::ZERO,
            // Long against the distance of two lists, so that a few refusals are none that lasts.
            stale_after: Duration::from_secs(5),
            ..quick()
        };
        let mut watched = watching(&server, timing);
        watched.until("settled", |it| it.endpoints.is_some()).await;
        let refusals = [Fault::Status(403); 4];
        server.fail_first("list", "endpointslices", &refusals);
        server.fail("list", "endpointslices", Fault::Status(503));
        server.fail("watch", "endpointslices", Fault::Status(410));
        for source in ["endpoints-http", "endpoints-tcp"] {
            watched.reported(source, "answers 503").await;
        }
        let stale = |it: &Snapshot| found(it, Code::SourceStale, "not been heard of");
        let snapshot = watched.until("stale", stale).await;
        assert!(snapshot.endpoints.is_some());
        server.fail_first("list", "endpointslices", &refusals);
        stays("known", || watched.current().unwrap().endpoints.is_some()).await;
        // A refusal that lasts is another thing.
        server.fail("list", "endpointslices", Fault::Status(403));
        watched
            .until("forgotten", |it| it.endpoints.is_none())
            .await;
    });
}

#[test]
fn the_first_snapshot_waits_for_endpoints_that_only_the_outage_kept_away() {
    block_on(async {
        let server = ApiServer::start().await;
        server.fail("list", "nodes", Fault::Hang);
        server.fail("list", "endpointslices", Fault::Status(503));
        let timing = Timing {
            optional_wait: DEADLINE,
            ..asleep()
        };
        let mut watched = watching(&server, timing);
        for source in ["endpoints-http", "endpoints-tcp"] {
            watched.reported(source, "answers 503").await;
        }
        server.heal();
        let first = watched.until("complete", |_| true).await;
        assert!(first.endpoints.is_some());
    });
}

#[test]
fn a_cluster_whose_apiserver_was_down_at_first_keeps_its_own_name() {
    block_on(async {
        let server = ApiServer::start().await;
        server.fail("list", "nodes", Fault::Hang);
        server.fail("get", "namespaces", Fault::Status(503));
        let mut watched = watching(&server, asleep());
        eventually("asked", || server.count("get", "namespaces") > 0).await;
        server.heal();
        let first = watched.until("complete", |_| true).await;
        assert!(first.cluster.0.starts_with("uid-kube-system"));
    });
}

#[test]
fn a_cluster_is_not_named_by_its_address_because_an_answer_is_late_or_strange() {
    block_on(async {
        for fault in [Fault::Status(503), Fault::Stray404, Fault::Hollow] {
            let server = ApiServer::start().await;
            server.fail("get", "namespaces", fault);
            let mut watched = watching(&server, quick());
            eventually("asked", || server.count("get", "namespaces") > 2).await;
            assert_eq!(watched.current(), None, "{fault:?}");
            server.heal();
            let first = watched.until("complete", |_| true).await;
            assert!(first.cluster.0.starts_with("uid-kube-system"), "{fault:?}");
        }
    });
}

#[test]
fn neither_a_hollow_answer_nor_a_strangers_404_proves_that_a_service_is_gone() {
    block_on(async {
        for fault in [Fault::Hollow, Fault::Stray404] {
            let server = ApiServer::start().await;
            server.service("web", &[(HTTP, "web")], 30_001);
            let mut watched = watching(&server, quick());
            watched.service("web").await;
            server.fail("list", "services", Fault::Status(500));
            for resource in ["services", "namespaces"] {
                server.fail("get", resource, fault);
            }
            let lists = server.count("list", "services");
            server.delete("services", "default", "web");
            eventually("asked again", || {
                server.count("list", "services") >= lists + 2
                    || !has(&watched.current().unwrap(), "web")
            })
            .await;
            assert!(has(&watched.current().unwrap(), "web"), "{fault:?}");
            server.heal();
            watched.without("web").await;
        }
    });
}
