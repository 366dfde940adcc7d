//! gorouter: its greetings, and what a registration over NATS does to what it answers. How routes
//! end is in `route_ends`.
//!
//! The real one is gorouter of routing-release 2024-10, threshold 10 s, a prune tick each second.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use counterparts::Program;
use futures::StreamExt;
use serde_json::{Value, json};
use suite::{Web, eventually};
use tokio::time::timeout;

use crate::world::{NATS_USER, STALE_THRESHOLD_SECS, START_DELAY_SECS, World};
use crate::{ANSWER_WITHIN, Answer, Side, UnderTest, agree};

pub const REGISTER: &str = "router.register";
pub const UNREGISTER: &str = "router.unregister";
/// How often NATS is restarted until the listener was back before gorouter was.
const RESTARTS_MAX: usize = 5;

pub struct GorouterUnderTest {
    pub world: &'static World,
    pub side: Side,
    nats: async_nats::Client,
    http: reqwest::Client,
    address: SocketAddr,
}

impl UnderTest for GorouterUnderTest {
    const HANDED_IN: &'static [&'static str] = &["gorouter"];

    async fn on(world: &'static World, side: Side) -> Self {
        let (nats, address) = match side {
            Side::Sandbox => (world.sandbox.nats.addr(), world.sandbox.http_router.addr()),
            Side::Real => {
                let gorouter = world.real.gorouter.as_ref().expect("it was handed in");
                (
                    world.real.nats.lock().await.address(),
                    gorouter.lock().await.address(),
                )
            }
        };
        let options = async_nats::ConnectOptions::new()
            .user_and_password(NATS_USER.0.to_owned(), NATS_USER.1.to_owned())
            .require_tls(true)
            .connection_timeout(ANSWER_WITHIN)
            .tls_client_config(world.pki.tls_client_config().unwrap());
        let nats = async_nats::connect_with_options(format!("tls://{nats}"), options).await;
        let nats = nats.expect("NATS must take the client");
        Self {
            world,
            side,
            nats,
            http: world.pki.http_client().unwrap(),
            address,
        }
    }
}

// === impl GorouterUnderTest ===

impl GorouterUnderTest {
    pub async fn publish(&self, subject: &'static str, message: &Value) {
        self.nats
            .publish(subject, message.to_string().into())
            .await
            .unwrap();
        self.nats.flush().await.unwrap();
    }

    /// Returns when everything published before has been taken in.
    pub async fn settled(&self) {
        let marker = host();
        self.publish(
            REGISTER,
            &json!({"host": "10.0.0.9", "port": 9, "uris": [marker]}),
        )
        .await;
        let known = async || !self.routes().await[&marker].is_null();
        eventually("a later message was taken in", known).await;
    }

    pub async fn routes(&self) -> Value {
        match self.side {
            Side::Sandbox => self.world.sandbox.http_router.routes(),
            Side::Real => {
                let gorouter = self.world.real.gorouter.as_ref().expect("it was handed in");
                gorouter
                    .lock()
                    .await
                    .routes()
                    .await
                    .expect("/routes must answer")
            }
        }
    }

    /// The addresses of a uri, in order; empty where it is not known.
    pub async fn endpoints(&self, uri: &str) -> Vec<String> {
        let routes = self.routes().await;
        let endpoints = routes[uri].as_array().into_iter().flatten();
        let addresses = endpoints.map(|endpoint| endpoint["address"].as_str().unwrap().to_owned());
        let mut addresses: Vec<String> = addresses.collect();
        addresses.sort();
        addresses
    }

    pub async fn get(&self, host: &str, path: &str) -> Answer {
        self.get_at(self.address, host, path).await
    }

    pub async fn get_at(&self, address: SocketAddr, host: &str, path: &str) -> Answer {
        Answer::to(
            self.http
                .get(format!("http://{address}{path}"))
                .header("host", host),
        )
        .await
    }

    /// How many messages it refused so far.
    pub async fn rejections(&self) -> usize {
        match self.side {
            Side::Sandbox => self.world.sandbox.http_router.rejected().len(),
            Side::Real => {
                let gorouter = self.world.real.gorouter.as_ref().expect("it was handed in");
                let log = std::fs::read_to_string(gorouter.lock().await.log()).unwrap();
                log.lines()
                    .filter(|line| line.contains("validation-error"))
                    .count()
            }
        }
    }

    async fn restart(&self) {
        match self.side {
            Side::Sandbox => self.world.sandbox.http_router.restart().await,
            Side::Real => {
                let gorouter = self.world.real.gorouter.as_ref().expect("it was handed in");
                gorouter.lock().await.restart().await
            }
        }
        .expect("it must start again");
    }

    async fn restart_nats(&self) {
        match self.side {
            Side::Sandbox => self.world.sandbox.nats.restart().await,
            Side::Real => self.world.real.nats.lock().await.restart().await,
        }
        .expect("NATS must start again");
    }
}

/// A host that no statement has used.
pub fn host() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "h{}.apps.example.test",
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

pub fn backend_address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], counterparts::port::free()))
}

pub fn endpoint(backend: SocketAddr, uri: &str) -> Value {
    json!({"host": backend.ip().to_string(), "port": backend.port(), "uris": [uri]})
}

pub fn with(mut message: Value, field: &str, value: Value) -> Value {
    message[field] = value;
    message
}

#[track_caller]
pub fn is_unknown_route(answer: &Answer, host: &str) {
    let text = format!("404 Not Found: Requested route ('{host}') does not exist.\n");
    assert_eq!((answer.status, answer.text.as_str()), (404, text.as_str()));
    assert_eq!(answer.header("x-cf-routererror"), "unknown_route");
    assert_eq!(answer.header("cache-control"), "no-cache, no-store");
}

#[track_caller]
fn is_start(message: &[u8]) {
    let message: Value = serde_json::from_slice(message).unwrap();
    assert_eq!(
        message["minimumRegisterIntervalInSeconds"], START_DELAY_SECS,
        "{message}"
    );
    assert_eq!(
        message["pruneThresholdInSeconds"], STALE_THRESHOLD_SECS,
        "{message}"
    );
    assert!(
        message["id"]
            .as_str()
            .is_some_and(|id| id.starts_with("0-")),
        "{message}"
    );
    assert_eq!(
        message["hosts"].as_array().map(Vec::len),
        Some(1),
        "{message}"
    );
    assert_eq!(
        message.as_object().map(serde_json::Map::len),
        Some(4),
        "{message}"
    );
}

// === greetings ===

#[test]
fn a_greeting_is_answered_with_interval_and_threshold() {
    let statement = "`router.greet` is answered with both intervals; `{}` as its body is no error";
    agree(statement, async |gorouter: &GorouterUnderTest| {
        let before = gorouter.rejections().await;
        let request = gorouter.nats.request("router.greet", "{}".into()).await;
        is_start(&request.unwrap().payload);
        gorouter.settled().await;
        assert_eq!(gorouter.rejections().await, before);
        let request = gorouter.nats.request("router.greet", "".into()).await;
        is_start(&request.unwrap().payload);
        let told = async || gorouter.rejections().await == before + 1;
        eventually("an empty greeting is a validation error", told).await;
    });
}

#[test]
fn its_start_is_announced() {
    agree(
        "`router.start` is published at its start",
        async |gorouter: &GorouterUnderTest| {
            let mut starts = gorouter.nats.subscribe("router.start").await.unwrap();
            gorouter.nats.flush().await.unwrap();
            // The subscription must be there first: an answer of the same connection follows it.
            gorouter
                .nats
                .request("router.greet", "{}".into())
                .await
                .unwrap();
            gorouter.restart().await;
            let start = timeout(ANSWER_WITHIN, starts.next())
                .await
                .expect("it must come");
            is_start(&start.unwrap().payload);
        },
    );
}

#[test]
fn its_reconnection_is_announced_as_a_start() {
    let statement = "`router.start` is published after each reconnection to NATS, routes stay";
    agree(statement, async |gorouter: &GorouterUnderTest| {
        let mut starts = gorouter.nats.subscribe("router.start").await.unwrap();
        gorouter.nats.flush().await.unwrap();
        // Who reconnects first is chance: a listener that comes second hears nothing.
        for _ in 0..RESTARTS_MAX {
            gorouter.restart_nats().await;
            let reconnect = Duration::from_secs(8);
            if let Ok(Some(start)) = timeout(reconnect, starts.next()).await {
                return is_start(&start.payload);
            }
        }
        panic!("no start after {RESTARTS_MAX} restarts of NATS");
    });
}

// === registration ===

#[test]
fn a_registered_host_leads_to_its_backend() {
    agree(
        "a registered host leads to its backend",
        async |gorouter: &GorouterUnderTest| {
            let (host, backend) = (host(), backend_address());
            let _backend = Web::start(&[backend], "here").await.unwrap();
            is_unknown_route(&gorouter.get(&host, "/").await, &host);
            let message = json!({
                "host": "10.0.0.1",
                "port": backend.port(),
                "uris": [host],
                "app": "0f3f0d46-5f0c-4d0d-8a5b-a0f4f3d7a6c1",
                "private_instance_id": "one",
                "tags": {"component": "route-sync"},
                "availability_zone": "z1",
            });
            gorouter.publish(REGISTER, &message).await;
            eventually("200", async || gorouter.get(&host, "/").await.status == 200).await;
            assert_eq!(
                gorouter.get(&host, "/any/path?and=query").await.text,
                "here"
            );
            let expected = json!([{
                "address": backend.to_string(),
                "availability_zone": "z1",
                "protocol": "http1",
                "private_instance_id": "one",
                "tags": {"component": "route-sync"},
                "tls": false,
                "ttl": STALE_THRESHOLD_SECS,
            }]);
            assert_eq!(gorouter.routes().await[&host], expected);
            gorouter.publish(UNREGISTER, &message).await;
            eventually("404", async || gorouter.get(&host, "/").await.status == 404).await;
        },
    );
}

#[test]
fn a_uri_is_lower_cased_and_its_path_is_a_prefix() {
    let statement = "a uri is lower-cased, its last slash dropped; paths match by whole segments";
    agree(statement, async |gorouter: &GorouterUnderTest| {
        let (host, backend) = (host(), backend_address());
        let _backend = Web::start(&[backend], "here").await.unwrap();
        let uri = format!("{}/Some/Path/", host.to_uppercase());
        gorouter.publish(REGISTER, &endpoint(backend, &uri)).await;
        let key = format!("{host}/some/path");
        let known = async || !gorouter.endpoints(&key).await.is_empty();
        eventually("it is known by its key", known).await;
        for path in ["/some/path", "/SOME/path/", "/some/path/below?query"] {
            assert_eq!(gorouter.get(&host, path).await.status, 200, "{path}");
        }
        for path in ["/", "/some", "/some/pathology"] {
            assert_eq!(gorouter.get(&host, path).await.status, 404, "{path}");
        }
        assert_eq!(
            gorouter
                .get(&host.to_uppercase(), "/some/path")
                .await
                .status,
            200
        );
        assert_eq!(
            gorouter
                .get(&format!("{host}:8443"), "/some/path")
                .await
                .status,
            200
        );
    });
}

#[test]
fn a_wildcard_matches_every_depth_below_and_never_the_apex() {
    let statement = "a wildcard matches names below it at any depth, never the apex; exact wins";
    agree(statement, async |gorouter: &GorouterUnderTest| {
        let (apex, wild, exact) = (host(), backend_address(), backend_address());
        let _wild = Web::start(&[wild], "wild").await.unwrap();
        let _exact = Web::start(&[exact], "exact").await.unwrap();
        gorouter
            .publish(REGISTER, &endpoint(wild, &format!("*.{apex}")))
            .await;
        gorouter
            .publish(REGISTER, &endpoint(exact, &format!("exact.{apex}")))
            .await;
        gorouter.settled().await;
        for (name, text) in [
            ("a", "wild"),
            ("a.b", "wild"),
            ("exact", "exact"),
            ("a.exact", "wild"),
        ] {
            let answer = gorouter.get(&format!("{name}.{apex}"), "/").await;
            assert_eq!((answer.status, answer.text.as_str()), (200, text), "{name}");
        }
        is_unknown_route(&gorouter.get(&apex, "/").await, &apex);
    });
}

#[test]
fn one_wrong_type_rejects_the_whole_message() {
    agree(
        "one wrong type rejects the whole message",
        async |gorouter: &GorouterUnderTest| {
            let host = host();
            let good = endpoint(backend_address(), &host);
            let before = gorouter.rejections().await;
            let wrong = [
                ("port", json!(70_000)),
                ("port", json!(-1)),
                ("port", json!("31000")),
                ("uris", json!(host)),
                ("private_instance_index", json!(0)),
                ("tags", json!({"component": 1})),
                ("stale_threshold_in_seconds", json!("10")),
                ("route_service_url", json!("http://service.example.test")),
            ];
            for (field, value) in &wrong {
                gorouter
                    .publish(REGISTER, &with(good.clone(), field, value.clone()))
                    .await;
            }
            gorouter.settled().await;
            assert!(gorouter.endpoints(&host).await.is_empty());
            assert_eq!(gorouter.rejections().await - before, wrong.len());
        },
    );
}

#[test]
fn unknown_fields_and_keys_in_capitals_are_taken() {
    let statement = "unknown fields are ignored, keys match in any case, options are taken";
    agree(statement, async |gorouter: &GorouterUnderTest| {
        let (host, backend) = (host(), backend_address());
        let _backend = Web::start(&[backend], "here").await.unwrap();
        let message = json!({
            "HOST": "10.0.0.1",
            "Port": backend.port(),
            "uris": [host],
            "no_such_field": {"a": 1},
            "options": {"loadbalancing": "least-connection"},
            "endpoint_updated_at_ns": 1_700_000_000_000_000_000_i64,
        });
        let before = gorouter.rejections().await;
        gorouter.publish(REGISTER, &message).await;
        eventually("200", async || gorouter.get(&host, "/").await.status == 200).await;
        assert_eq!(gorouter.rejections().await, before);
        assert_eq!(gorouter.endpoints(&host).await, [backend.to_string()]);
    });
}

#[test]
fn two_ports_of_a_host_take_turns() {
    agree(
        "two endpoints of a uri take turns",
        async |gorouter: &GorouterUnderTest| {
            let (host, one, two) = (host(), backend_address(), backend_address());
            let _one = Web::start(&[one], "one").await.unwrap();
            let _two = Web::start(&[two], "two").await.unwrap();
            for backend in [one, two, one] {
                gorouter.publish(REGISTER, &endpoint(backend, &host)).await;
            }
            gorouter.settled().await;
            assert_eq!(gorouter.endpoints(&host).await.len(), 2);
            let mut answers = Vec::new();
            for _ in 0..10 {
                answers.push(gorouter.get(&host, "/").await.text);
            }
            assert!(
                answers.windows(2).all(|pair| pair[0] != pair[1]),
                "{answers:?}"
            );
        },
    );
}

// === failures ===

#[test]
fn an_unknown_host_is_404() {
    agree(
        "an unknown host is 404 `unknown_route`",
        async |gorouter: &GorouterUnderTest| {
            let host = host();
            is_unknown_route(&gorouter.get(&host, "/").await, &host);
            is_unknown_route(&gorouter.get(&host, "/path").await, &host);
        },
    );
}

#[test]
fn a_dead_endpoint_beside_a_live_one_is_not_seen() {
    agree(
        "a dead endpoint beside a live one: all 200",
        async |gorouter: &GorouterUnderTest| {
            let (host, live, dead) = (host(), backend_address(), backend_address());
            let _live = Web::start(&[live], "live").await.unwrap();
            for backend in [dead, live] {
                gorouter.publish(REGISTER, &endpoint(backend, &host)).await;
            }
            gorouter.settled().await;
            for _ in 0..8 {
                assert_eq!(gorouter.get(&host, "/").await.status, 200);
            }
            assert_eq!(gorouter.endpoints(&host).await.len(), 2);
        },
    );
}

#[test]
fn a_dead_endpoint_alone_is_502() {
    agree(
        "a dead endpoint alone is 502",
        async |gorouter: &GorouterUnderTest| {
            let (host, dead) = (host(), backend_address());
            gorouter.publish(REGISTER, &endpoint(dead, &host)).await;
            gorouter.settled().await;
            for _ in 0..3 {
                let answer = gorouter.get(&host, "/").await;
                assert_eq!(answer.status, 502, "{}", answer.text);
                let error =
                    format!("endpoint_failure (dial tcp {dead}: connect: connection refused)");
                assert_eq!(answer.header("x-cf-routererror"), error);
                let text = "502 Bad Gateway: Registered endpoint failed to handle the request.\n";
                assert_eq!(answer.text, text);
            }
            assert_eq!(gorouter.endpoints(&host).await.len(), 1);
        },
    );
}
