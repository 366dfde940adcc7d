//! How gorouter's routes end: unregistered, pruned, or kept for good.
//!
//! The real one is gorouter of routing-release 2024-10, threshold 10 s, a prune tick each second.

use std::net::SocketAddr;
use std::time::Duration;

use sandbox::http_router::HttpRouter;
use serde_json::json;
use suite::{Web, eventually};

use crate::gorouter::{
    GorouterUnderTest, REGISTER, UNREGISTER, backend_address, endpoint, host, is_unknown_route,
    with,
};
use crate::world::{self, PRUNE_INTERVAL, STALE_THRESHOLD_SECS};
use crate::{Side, agree};

// === unregistration ===

#[test]
fn an_unregistration_compares_uri_host_and_port_only() {
    let statement = "an unregistration compares uri, host and port, not instance, app or age";
    agree(statement, async |gorouter: &GorouterUnderTest| {
        let (host, backend) = (host(), backend_address());
        let message = endpoint(backend, &host);
        let ours = with(message.clone(), "private_instance_id", json!("ours"));
        gorouter
            .publish(REGISTER, &with(ours, "app", json!("ours")))
            .await;
        gorouter.settled().await;
        let mut theirs = with(message, "private_instance_id", json!("theirs"));
        theirs["port"] = json!(backend.port() - 1);
        gorouter.publish(UNREGISTER, &theirs).await;
        gorouter.settled().await;
        assert_eq!(gorouter.endpoints(&host).await.len(), 1);
        theirs["port"] = json!(backend.port());
        theirs["endpoint_updated_at_ns"] = json!(1);
        gorouter.publish(UNREGISTER, &theirs).await;
        gorouter.settled().await;
        assert!(gorouter.endpoints(&host).await.is_empty());
    });
}

#[test]
fn a_tls_route_is_unregistered_by_its_tls_port_only() {
    agree(
        "a TLS route goes by its TLS port only",
        async |gorouter: &GorouterUnderTest| {
            let (host, backend) = (host(), backend_address());
            let plain = json!({"host": "10.0.0.1", "port": 31_000, "uris": [host]});
            let tls = with(plain.clone(), "tls_port", json!(backend.port()));
            gorouter.publish(REGISTER, &tls).await;
            gorouter.publish(UNREGISTER, &plain).await;
            gorouter.settled().await;
            assert_eq!(gorouter.endpoints(&host).await, [backend.to_string()]);
            assert_eq!(gorouter.routes().await[&host][0]["tls"], true);
            gorouter.publish(UNREGISTER, &tls).await;
            gorouter.settled().await;
            assert!(gorouter.endpoints(&host).await.is_empty());
        },
    );
}

#[test]
fn without_an_empty_pool_timeout_the_last_unregistration_is_404_at_once() {
    let statement = "empty_pool_timeout 0 s: after the last unregistration 404 at once";
    agree(statement, async |gorouter: &GorouterUnderTest| {
        let (host, backend) = (host(), backend_address());
        let _backend = Web::start(&[backend], "here").await.unwrap();
        let message = endpoint(backend, &host);
        for _ in 0..5 {
            gorouter.publish(REGISTER, &message).await;
            gorouter.settled().await;
            assert_eq!(gorouter.get(&host, "/").await.status, 200);
            gorouter.publish(UNREGISTER, &message).await;
            gorouter.settled().await;
            is_unknown_route(&gorouter.get(&host, "/").await, &host);
        }
    });
}

#[test]
fn with_an_empty_pool_timeout_the_last_unregistration_is_503_and_then_404() {
    let statement = "empty_pool_timeout 12 s: after the last unregistration 503, then 404";
    agree(statement, async |gorouter: &GorouterUnderTest| {
        let empty = Duration::from_secs(12);
        let world = gorouter.world;
        let (address, _keep): (SocketAddr, Box<dyn Send>) = match gorouter.side {
            Side::Sandbox => {
                let nats = world.sandbox.nats.addr();
                let mut options = world::http_router_options(nats, &world.pki);
                options.empty_pool_timeout = empty;
                let other = HttpRouter::start(options).await.unwrap();
                (other.addr(), Box::new(other))
            }
            Side::Real => {
                let mut options = world::gorouter_options();
                options.empty_pool_timeout = empty;
                let nats = world.real.nats.lock().await;
                let other = counterparts::Gorouter::start(&world.run, &world.pki, &nats, options);
                let other = other.await.unwrap();
                (other.address(), Box::new(other))
            }
        };
        let (host, backend) = (host(), backend_address());
        let _backend = Web::start(&[backend], "here").await.unwrap();
        let get = async || gorouter.get_at(address, &host, "/").await;
        gorouter.publish(REGISTER, &endpoint(backend, &host)).await;
        eventually("200", async || get().await.status == 200).await;
        gorouter
            .publish(UNREGISTER, &endpoint(backend, &host))
            .await;
        eventually("not 200", async || get().await.status != 200).await;
        let answer = get().await;
        assert_eq!(
            (answer.status, answer.header("x-cf-routererror")),
            (503, "no_endpoints")
        );
        eventually("no 503", async || get().await.status != 503).await;
        is_unknown_route(&get().await, &host);
    });
}

// === pruning ===

#[test]
fn the_ttl_is_the_smaller_of_the_asked_and_the_configured() {
    let statement =
        "ttl is the smaller of stale_threshold_in_seconds and the router's; 0 is the latter";
    agree(statement, async |gorouter: &GorouterUnderTest| {
        let asked = [None, Some(0), Some(9), Some(600)];
        let expected = [10, 10, 9, 10];
        let hosts: Vec<String> = asked.iter().map(|_| host()).collect();
        for (host, asked) in hosts.iter().zip(asked) {
            let mut message = endpoint(backend_address(), host);
            if let Some(asked) = asked {
                message["stale_threshold_in_seconds"] = json!(asked);
            }
            gorouter.publish(REGISTER, &message).await;
        }
        gorouter.settled().await;
        let routes = gorouter.routes().await;
        let ttls: Vec<u64> = hosts
            .iter()
            .map(|host| routes[host][0]["ttl"].as_u64().unwrap())
            .collect();
        assert_eq!((ttls, STALE_THRESHOLD_SECS), (expected.to_vec(), 10));
    });
}

#[test]
fn a_plain_route_is_pruned_when_it_is_stale_and_a_tls_route_never() {
    let statement =
        "a plain route is pruned past its threshold unless refreshed, a TLS route never";
    agree(statement, async |gorouter: &GorouterUnderTest| {
        let (plain, fresh, tls) = (host(), host(), host());
        let brief = |uri: &str| {
            with(
                endpoint(backend_address(), uri),
                "stale_threshold_in_seconds",
                json!(2),
            )
        };
        let fresh_message = with(brief(&fresh), "stale_threshold_in_seconds", json!(8));
        let tls_message = with(brief(&tls), "tls_port", json!(31_443));
        let plain_message = brief(&plain);
        let registered = tokio::time::Instant::now();
        for message in [&plain_message, &fresh_message, &tls_message] {
            gorouter.publish(REGISTER, message).await;
        }
        gorouter.settled().await;
        eventually("the plain route is pruned", async || {
            gorouter.publish(REGISTER, &fresh_message).await;
            tokio::time::sleep(PRUNE_INTERVAL / 5).await;
            gorouter.endpoints(&plain).await.is_empty()
        })
        .await;
        assert!(
            registered.elapsed() >= Duration::from_secs(2),
            "{:?}",
            registered.elapsed()
        );
        assert_eq!(gorouter.endpoints(&fresh).await.len(), 1);
        tokio::time::sleep(PRUNE_INTERVAL * 2).await;
        assert_eq!(gorouter.endpoints(&tls).await, ["10.0.0.1:31443"]);
    });
}

#[test]
fn a_negative_threshold_is_pruned_at_the_next_tick() {
    agree(
        "a negative threshold goes at the next tick",
        async |gorouter: &GorouterUnderTest| {
            let host = host();
            let message = endpoint(backend_address(), &host);
            let before = gorouter.rejections().await;
            gorouter
                .publish(
                    REGISTER,
                    &with(message, "stale_threshold_in_seconds", json!(-1)),
                )
                .await;
            gorouter.settled().await;
            let gone = async || gorouter.endpoints(&host).await.is_empty();
            suite::poll::within(Duration::from_secs(STALE_THRESHOLD_SECS), "it goes", gone).await;
            assert_eq!(gorouter.rejections().await, before);
        },
    );
}
