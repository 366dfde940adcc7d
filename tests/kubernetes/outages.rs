//! An apiserver that is down, comes up or hides behind a proxy: what it then says is no proof of anything.

use super::apiserver::{ApiServer, Fault};
use super::{DEADLINE, HTTP, Timing, block_on, eventually, has, quick, watching};

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
