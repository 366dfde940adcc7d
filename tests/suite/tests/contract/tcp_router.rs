//! The TCP router with its HAProxy: what a mapping at the routing API does to its ports.
//!
//! The real one is cf-tcp-router of routing-release 2024-10 with HAProxy 2.6.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use suite::{Echo, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::routing_api::RoutingApiUnderTest;
use crate::world::{World, router_port};
use crate::{ANSWER_WITHIN, Side, UnderTest, agree};

/// HAProxy gives a refused backend up after 3 s; a connection made in the middle of a reload may
/// hear nothing at all, and is tried again.
const GREETING_WITHIN: Duration = Duration::from_secs(10);
/// Long enough for what must not happen meanwhile, on a slow machine too.
const TWIN_TTL: u64 = 6;
/// The greeting of a backend is a few bytes.
const GREETING_MAX: usize = 64;

pub struct TcpRouterUnderTest {
    world: &'static World,
    side: Side,
    api: RoutingApiUnderTest,
}

impl UnderTest for TcpRouterUnderTest {
    const HANDED_IN: &'static [&'static str] = &["routing-api", "cf-tcp-router"];

    async fn on(world: &'static World, side: Side) -> Self {
        Self {
            world,
            side,
            api: RoutingApiUnderTest::on(world, side).await,
        }
    }
}

// === impl TcpRouterUnderTest ===

impl TcpRouterUnderTest {
    fn reloads(&self) -> u64 {
        match self.side {
            Side::Sandbox => self.world.sandbox.tcp_router.reloads(),
            Side::Real => {
                let router = self
                    .world
                    .real
                    .tcp_router
                    .as_ref()
                    .expect("it was handed in");
                u64::try_from(router.reload_count()).expect("reloads must be countable")
            }
        }
    }

    /// Returns when everything told before has been taken in: events are taken one by one.
    async fn settled(&self) {
        let (port, backend) = (router_port(), backend_address());
        let _backend = Echo::start(&[backend], "settled").await.unwrap();
        let route = self
            .api
            .route(port, &backend.ip().to_string(), backend.port());
        self.api.create(std::slice::from_ref(&route)).await;
        eventually("a later port is open", async || {
            greeting(port).await.is_some()
        })
        .await;
        self.api.delete(&[route]).await;
        eventually("it is closed again", async || is_closed(port).await).await;
    }
}

fn backend_address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], counterparts::port::free()))
}

async fn connect(port: u16) -> Option<TcpStream> {
    TcpStream::connect(("127.0.0.1", port)).await.ok()
}

async fn is_closed(port: u16) -> bool {
    connect(port).await.is_none()
}

/// What the backend says first; none where there is no port, no backend or no word.
async fn greeting(port: u16) -> Option<String> {
    let mut stream = connect(port).await?;
    let mut greeting = vec![0; GREETING_MAX];
    let read = timeout(GREETING_WITHIN, stream.read(&mut greeting))
        .await
        .ok()?
        .ok()?;
    greeting.truncate(read);
    let greeting = String::from_utf8(greeting).ok()?;
    Some(greeting.trim().to_owned()).filter(|greeting| !greeting.is_empty())
}

// === ports ===

#[test]
fn a_mapping_opens_its_port_and_its_deletion_closes_it() {
    agree(
        "a mapping opens its port, its end closes it",
        async |router: &TcpRouterUnderTest| {
            let (port, backend) = (router_port(), backend_address());
            let _backend = Echo::start(&[backend], "here").await.unwrap();
            assert!(is_closed(port).await);
            let route = router.api.route(port, "10.0.0.1", backend.port());
            router.api.create(std::slice::from_ref(&route)).await;
            eventually("open", async || {
                greeting(port).await.as_deref() == Some("here")
            })
            .await;
            router.api.delete(&[route]).await;
            eventually("closed", async || is_closed(port).await).await;
        },
    );
}

#[test]
fn a_refresh_causes_no_reload() {
    agree(
        "a refresh causes no reload",
        async |router: &TcpRouterUnderTest| {
            let (port, backend) = (router_port(), backend_address());
            let _backend = Echo::start(&[backend], "here").await.unwrap();
            let route = router.api.route(port, "10.0.0.1", backend.port());
            router.api.create(std::slice::from_ref(&route)).await;
            eventually("open", async || greeting(port).await.is_some()).await;
            router.settled().await;
            let before = router.reloads();
            for _ in 0..5 {
                router.api.create(std::slice::from_ref(&route)).await;
            }
            router.settled().await;
            // Opening and closing the later port are the two.
            assert_eq!(router.reloads() - before, 2);
        },
    );
}

#[test]
fn a_port_outside_the_groups_range_is_opened_all_the_same() {
    agree(
        "the router asks for no range",
        async |router: &TcpRouterUnderTest| {
            // Every port of these statements is outside; the group's first is inside.
            let backend = backend_address();
            let _backend = Echo::start(&[backend], "here").await.unwrap();
            let outside = router_port();
            let routes =
                [1_024, outside].map(|port| router.api.route(port, "10.0.0.1", backend.port()));
            router.api.create(&routes).await;
            for port in [1_024, outside] {
                eventually("open", async || greeting(port).await.is_some()).await;
            }
            router.api.delete(&routes).await;
            for port in [1_024, outside] {
                eventually("closed", async || is_closed(port).await).await;
            }
        },
    );
}

// === backends ===

#[test]
fn two_backends_take_turns() {
    agree(
        "two backends of a port take turns",
        async |router: &TcpRouterUnderTest| {
            let (port, one, two) = (router_port(), backend_address(), backend_address());
            let _one = Echo::start(&[one], "one").await.unwrap();
            let _two = Echo::start(&[two], "two").await.unwrap();
            let routes =
                [one, two].map(|backend| router.api.route(port, "10.0.0.1", backend.port()));
            router.api.create(&routes).await;
            eventually("both answer", async || {
                greeting(port).await.as_deref() == Some("one")
                    && greeting(port).await.as_deref() == Some("two")
            })
            .await;
            router.settled().await;
            let mut answers: BTreeMap<String, u32> = BTreeMap::new();
            for _ in 0..10 {
                *answers
                    .entry(greeting(port).await.unwrap_or_default())
                    .or_default() += 1;
            }
            assert_eq!(
                answers,
                BTreeMap::from([("one".to_owned(), 5), ("two".to_owned(), 5)])
            );
        },
    );
}

#[test]
fn a_dead_backend_of_two_fails_half_of_the_connections() {
    let statement = "without health checks, a dead backend of two fails half of the connections";
    agree(statement, async |router: &TcpRouterUnderTest| {
        let (port, live, dead) = (router_port(), backend_address(), backend_address());
        let _live = Echo::start(&[live], "live").await.unwrap();
        let routes = [live, dead].map(|backend| router.api.route(port, "10.0.0.1", backend.port()));
        router.api.create(&routes).await;
        router.settled().await;
        // Retries of a refused backend take seconds: all at once.
        let tries = (0..8).map(|_| greeting(port));
        let answers = futures::future::join_all(tries).await;
        let live = answers
            .iter()
            .flatten()
            .filter(|answer| *answer == "live")
            .count();
        assert_eq!((live, answers.len()), (4, 8), "{answers:?}");
    });
}

#[test]
fn an_established_connection_survives_the_end_of_its_route() {
    let statement = "an established connection survives reloads and its route's deletion";
    agree(statement, async |router: &TcpRouterUnderTest| {
        let (port, backend) = (router_port(), backend_address());
        let _backend = Echo::start(&[backend], "here").await.unwrap();
        let route = router.api.route(port, "10.0.0.1", backend.port());
        router.api.create(std::slice::from_ref(&route)).await;
        eventually("open", async || greeting(port).await.is_some()).await;
        let mut stream = connect(port).await.unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.unwrap();
        router.api.delete(&[route]).await;
        eventually("closed", async || is_closed(port).await).await;
        stream.write_all(b"still").await.unwrap();
        let read = timeout(ANSWER_WITHIN, stream.read_exact(&mut answer)).await;
        read.expect("an answer must come")
            .expect("the connection must live");
        assert_eq!(&answer, b"still");
    });
}

#[test]
fn a_backend_with_an_ipv6_address_is_left_out() {
    agree(
        "an IPv6 backend is left out",
        async |router: &TcpRouterUnderTest| {
            let (port, backend) = (router_port(), backend_address());
            let _backend = Echo::start(&[backend], "here").await.unwrap();
            let routes = ["10.0.0.1", "::1"].map(|ip| router.api.route(port, ip, backend.port()));
            router.api.create(&routes).await;
            router.settled().await;
            for _ in 0..4 {
                assert_eq!(greeting(port).await.as_deref(), Some("here"));
            }
        },
    );
}

// === the freeze ===

#[test]
fn rows_with_tls_port_0_and_minus_1_freeze_every_route() {
    let statement = "rows that differ only in TLS port 0 and -1 freeze the configuration for all \
                     (where the API keeps them apart: 2024-09 to 2024-12, again from 2026-08)";
    agree(statement, async |router: &TcpRouterUnderTest| {
        let (port, later, backend) = (router_port(), router_port(), backend_address());
        let _backend = Echo::start(&[backend], "here").await.unwrap();
        let good = router.api.route(port, "10.0.0.1", backend.port());
        router.api.create(std::slice::from_ref(&good)).await;
        eventually("open", async || greeting(port).await.is_some()).await;
        // It cannot be deleted, only expire.
        let mut twin = good.clone();
        twin["backend_tls_port"] = json!(0);
        twin["ttl"] = json!(TWIN_TTL);
        router.api.create(&[twin]).await;
        let other = router.api.route(later, "10.0.0.1", backend.port());
        router.api.create(std::slice::from_ref(&other)).await;
        let both = async || router.api.rows_of(port).await.len() == 2;
        while both().await {
            let closed = is_closed(later).await;
            // A twin that expired meanwhile holds nothing up any more.
            assert!(
                closed || !both().await,
                "the later port opened beside the twin"
            );
        }
        assert_eq!(
            greeting(port).await.as_deref(),
            Some("here"),
            "what lived lives on"
        );
        // A router that pruned the twin by itself, before it heard of the deletion, writes no configuration until
        // something else changes.
        let change = [router.api.route(router_port(), "10.0.0.1", backend.port())];
        eventually("the later port opens with the next change", async || {
            router.api.create(&change).await;
            router.api.delete(&change).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            greeting(later).await.is_some()
        })
        .await;
        router.api.delete(&[good, other]).await;
    });
}

#[test]
fn a_mapping_with_a_tls_port_is_left_out_by_a_router_without_backend_tls() {
    let statement = "without `backend_tls`, a mapping with a TLS port is left out and harms no one";
    agree(statement, async |router: &TcpRouterUnderTest| {
        let (port, alone, backend) = (router_port(), router_port(), backend_address());
        let _backend = Echo::start(&[backend], "here").await.unwrap();
        let good = router.api.route(port, "10.0.0.1", backend.port());
        let tls = [port, alone].map(|port| {
            let mut route = router.api.route(port, "10.0.0.1", backend.port());
            route["backend_tls_port"] = json!(8_443);
            route
        });
        router.api.create(std::slice::from_ref(&good)).await;
        router.api.create(&tls).await;
        router.settled().await;
        for _ in 0..4 {
            assert_eq!(greeting(port).await.as_deref(), Some("here"));
        }
        assert!(is_closed(alone).await);
    });
}
