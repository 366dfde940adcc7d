//! gorouter as measured, over the sandbox's own NATS, with real little backends.

#[path = "support/eventually.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sandbox::http_router::{HttpRouter, HttpRouterOptions, NatsClientOptions, NatsClientTls};
use sandbox::listen::{Server, full};
use sandbox::nats::{Nats, NatsOptions};
use sandbox::tls::{self, Ca};
use serde_json::{Value, json};
use support::eventually;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

struct World {
    nats: Nats,
    router: HttpRouter,
}

impl World {
    async fn start(change: impl FnOnce(&mut HttpRouterOptions)) -> Self {
        let nats = Nats::start(NatsOptions::default()).await.unwrap();
        let client = NatsClientOptions::plain(nats.addr());
        let mut options = HttpRouterOptions::new("127.0.0.1:0".parse().unwrap(), client);
        change(&mut options);
        let router = HttpRouter::start(options).await.unwrap();
        Self { nats, router }
    }

    fn tell(&self, subject: &str, message: Value) {
        self.nats.publish(subject, message.to_string());
    }

    fn register(&self, uri: &str, backend: SocketAddr) {
        let message = json!({"host": "127.0.0.1", "port": backend.port(), "uris": [uri]});
        self.tell("router.register", message);
    }

    fn unregister(&self, uri: &str, backend: SocketAddr) {
        let message = json!({"host": "127.0.0.1", "port": backend.port(), "uris": [uri]});
        self.tell("router.unregister", message);
    }

    async fn get(&self, host: &str, path: &str) -> (u16, String, String) {
        let client = tls::http_client(None, None);
        let request = client.get(format!("{}{path}", self.router.url()));
        let response = request.header("host", host).send().await.unwrap();
        let error = response.headers().get("x-cf-routererror");
        let error = error.map(|error| error.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        (
            status,
            error.unwrap_or_default(),
            response.text().await.unwrap(),
        )
    }

    async fn until(&self, host: &str, status: u16) {
        eventually(&format!("{host} answers {status}"), async || {
            self.get(host, "/").await.0 == status
        })
        .await;
    }
}

async fn backend(text: &'static str, tls: Option<Arc<rustls::ServerConfig>>) -> Server {
    let addr = "127.0.0.1:0".parse().unwrap();
    Server::http(addr, tls, move |request, _| async move {
        let forwarded = request.headers().contains_key("x-forwarded-for");
        assert!(forwarded, "a backend must see who asked");
        http::Response::new(full(text))
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_host_is_unknown_then_served_then_empty_then_unknown_again() {
    let world = World::start(|options| {
        // A busy tester must still see it.
        options.empty_pool_timeout = Duration::from_secs(4);
        options.prune_interval = Duration::from_millis(200);
    })
    .await;
    let app = backend("hello", None).await;
    let (status, error, body) = world.get("nginx.apps.test", "/").await;
    assert_eq!((status, error.as_str()), (404, "unknown_route"));
    assert_eq!(
        body,
        "404 Not Found: Requested route ('nginx.apps.test') does not exist.\n"
    );
    world.register("Nginx.Apps.test/", app.addr());
    world.until("nginx.apps.test", 200).await;
    assert_eq!(world.get("NGINX.apps.test:80", "/any").await.2, "hello");
    let entry = &world.router.routes()["nginx.apps.test"][0];
    assert_eq!(entry["address"], app.addr().to_string());
    assert_eq!(
        (&entry["ttl"], &entry["tls"], &entry["tags"]),
        (&json!(120), &json!(false), &json!(null))
    );
    world.unregister("nginx.apps.test", app.addr());
    world.until("nginx.apps.test", 503).await;
    world.until("nginx.apps.test", 404).await;
}

#[tokio::test]
async fn with_the_jobs_timeout_an_emptied_pool_is_unknown_at_once() {
    let world = World::start(|options| options.empty_pool_timeout = Duration::ZERO).await;
    let app = backend("hello", None).await;
    world.register("a.test", app.addr());
    world.until("a.test", 200).await;
    world.unregister("a.test", app.addr());
    eventually("the pool is gone", async || {
        world.get("a.test", "/").await.0 != 200
    })
    .await;
    assert_eq!(world.get("a.test", "/").await.0, 404);
}

#[tokio::test]
async fn endpoints_take_turns_and_a_dead_one_is_passed_over() {
    let world = World::start(|_| {}).await;
    let (one, two) = (backend("one", None).await, backend("two", None).await);
    for app in [&one, &two] {
        world.register("a.test", app.addr());
    }
    eventually("both are in", async || {
        world.router.routes()["a.test"]
            .as_array()
            .is_some_and(|pool| pool.len() == 2)
    })
    .await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(world.get("a.test", "/").await.2);
    }
    assert_eq!((&seen[0], &seen[1]), (&seen[2], &seen[3]));
    assert_ne!(seen[0], seen[1]);
    two.stop().await;
    for _ in 0..8 {
        assert_eq!(world.get("a.test", "/").await.2, "one");
    }
    one.stop().await;
    let (status, error, _) = world.get("a.test", "/").await;
    assert_eq!(status, 502);
    assert!(
        error.starts_with("endpoint_failure (dial tcp 127.0.0.1:"),
        "{error}"
    );
    assert!(error.ends_with("connect: connection refused)"), "{error}");
}

#[tokio::test]
async fn paths_take_the_longest_prefix_and_wildcards_any_depth_but_not_the_apex() {
    let world = World::start(|_| {}).await;
    let root = backend("root", None).await;
    let api = backend("api", None).await;
    let wild = backend("wild", None).await;
    world.register("a.test", root.addr());
    world.register("a.test/api", api.addr());
    world.register("*.wild.test", wild.addr());
    world.until("x.wild.test", 200).await;
    assert_eq!(world.get("a.test", "/api/v1?x=/y").await.2, "api");
    assert_eq!(world.get("a.test", "/apix").await.2, "root");
    assert_eq!(world.get("a.b.wild.test", "/").await.2, "wild");
    assert_eq!(world.get("wild.test", "/").await.0, 404);
}

#[tokio::test]
async fn one_wrong_type_rejects_the_message_and_an_odd_one_is_taken() {
    let world = World::start(|_| {}).await;
    let good = || json!({"host": "127.0.0.1", "port": 1, "uris": ["bad.test"]});
    let wrong = [
        ("port", json!(70_000)),
        ("port", json!("1")),
        ("port", json!(-1)),
        ("uris", json!("bad.test")),
        ("private_instance_index", json!(0)),
        ("tags", json!({"a": 1})),
        ("route_service_url", json!("http://x")),
    ];
    for (field, value) in &wrong {
        let mut message = good();
        message[field] = value.clone();
        world.tell("router.register", message);
    }
    world.nats.publish("router.greet", "");
    world.tell(
        "router.register",
        json!({"HOST": "", "port": 0, "uris": ["", "odd.test"]}),
    );
    eventually("all are read", async || {
        world.router.routes()["odd.test"].is_array()
    })
    .await;
    assert_eq!(world.router.rejected().len(), wrong.len() + 1);
    assert_eq!(world.router.routes()["odd.test"][0]["address"], ":0");
    assert!(world.router.routes()["bad.test"].is_null());
}

/// What is published once the router is said to be up must reach it.
#[tokio::test]
async fn it_is_not_up_before_nats_has_its_subscriptions() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = NatsClientOptions::plain(listener.local_addr().unwrap());
    let options = HttpRouterOptions::new("127.0.0.1:0".parse().unwrap(), client);
    let starting = tokio::spawn(HttpRouter::start(options));
    let (stream, _) = listener.accept().await.unwrap();
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut read_until =
        async |last: &str| while lines.next_line().await.unwrap().unwrap() != last {};
    writer.write_all(b"INFO {}\r\n").await.unwrap();
    read_until("PING").await;
    writer.write_all(b"PONG\r\n").await.unwrap();
    read_until("SUB router.* 2").await;
    // Long enough for a start that does not wait to be over.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!starting.is_finished());
    let early = r#"{"host": "10.0.0.1", "port": 1, "uris": ["early.test"]}"#;
    let early = format!(
        "MSG router.register 2 {}\r\n{early}\r\nPONG\r\n",
        early.len()
    );
    writer.write_all(early.as_bytes()).await.unwrap();
    let router = starting.await.unwrap().unwrap();
    eventually("what came with the answer is in", async || {
        router.routes()["early.test"].is_array()
    })
    .await;
}

#[tokio::test]
async fn plain_routes_go_stale_and_tls_routes_do_not() {
    let world = World::start(|options| {
        options.droplet_stale_threshold_secs = 3;
        options.prune_interval = Duration::from_millis(100);
    })
    .await;
    let plain = json!({"host": "10.0.0.1", "port": 1, "uris": ["plain.test"]});
    let long = json!({"host": "10.0.0.1", "port": 2, "uris": ["long.test"], "stale_threshold_in_seconds": 60});
    let tls = json!({"host": "10.0.0.1", "tls_port": 3, "uris": ["tls.test"]});
    for message in [&plain, &long, &tls] {
        world.tell("router.register", message.clone());
    }
    eventually("all are in", async || {
        world.router.routes()["tls.test"].is_array()
    })
    .await;
    assert_eq!(world.router.routes()["long.test"][0]["ttl"], 3);
    eventually("the plain ones are gone", async || {
        let routes = world.router.routes();
        routes["plain.test"][0].is_null() && routes["long.test"][0].is_null()
    })
    .await;
    assert_eq!(
        world.router.routes()["tls.test"][0]["address"],
        "10.0.0.1:3"
    );
    let unregister = json!({"host": "10.0.0.1", "port": 3, "uris": ["tls.test"]});
    world.tell("router.unregister", unregister);
    eventually("its address is enough to undo it", async || {
        world.router.routes()["tls.test"][0].is_null()
    })
    .await;
}

#[tokio::test]
async fn it_greets_starts_and_keeps_its_routes_while_nats_is_away() {
    let world = World::start(|options| {
        options.droplet_stale_threshold_secs = 5;
        options.prune_interval = Duration::from_millis(100);
    })
    .await;
    let starts = || {
        let seen = world.nats.messages();
        seen.iter()
            .filter(|seen| seen.subject == "router.start")
            .count()
    };
    assert_eq!(starts(), 1);
    let client = async_nats::connect(world.nats.addr().to_string())
        .await
        .unwrap();
    eventually("the greeting is answered", async || {
        client.request("router.greet", "{}".into()).await.is_ok()
    })
    .await;
    let greeting = client.request("router.greet", "{}".into()).await.unwrap();
    let greeting: Value = serde_json::from_slice(&greeting.payload).unwrap();
    assert_eq!(greeting["minimumRegisterIntervalInSeconds"], 20);
    assert_eq!(greeting["pruneThresholdInSeconds"], 5);
    let app = backend("hello", None).await;
    world.register("a.test", app.addr());
    world.until("a.test", 200).await;
    world.nats.stop().await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(world.get("a.test", "/").await.0, 200);
    world.nats.start_again().await.unwrap();
    eventually("it starts again", async || starts() == 2).await;
    world.until("a.test", 404).await;
}

#[tokio::test]
async fn tls_backends_are_held_to_their_name_and_mtls_nats_works() {
    let ca = Ca::new("ca");
    let nats = Nats::start(NatsOptions {
        user: Some(("nats".into(), "pw".into())),
        tls: Some((
            ca.issue(&["nats.internal"], false),
            Some(ca.pem().to_owned()),
        )),
        ..NatsOptions::default()
    });
    let nats = nats.await.unwrap();
    let client = NatsClientOptions {
        addr: nats.addr(),
        user: Some(("nats".into(), "pw".into())),
        tls: Some(NatsClientTls {
            ca_pem: ca.pem().to_owned(),
            identity: Some(ca.issue(&["gorouter"], true)),
            server_name: "nats.internal".into(),
        }),
    };
    let mut options = HttpRouterOptions::new("127.0.0.1:0".parse().unwrap(), client);
    options.backend_ca_pem = Some(ca.pem().to_owned());
    let router = HttpRouter::start(options).await.unwrap();
    let world = World { nats, router };
    let secure = tls::server_config(&ca.issue(&["api.internal"], false), None);
    let app = backend("secure", Some(secure)).await;
    let plain = backend("plain", None).await;
    for (uri, san, port) in [
        ("named.test/routing", "api.internal", app.addr().port()),
        ("other.test", "else.internal", app.addr().port()),
        ("unnamed.test", "", app.addr().port()),
        ("clear.test", "x", plain.addr().port()),
    ] {
        let message = json!({"host": "127.0.0.1", "tls_port": port, "uris": [uri], "server_cert_domain_san": san});
        world.tell("router.register", message);
    }
    world.until("unnamed.test", 200).await;
    assert_eq!(world.get("named.test", "/routing/v1").await.2, "secure");
    assert_eq!(world.get("other.test", "/").await.0, 503);
    assert_eq!(world.get("clear.test", "/").await.0, 525);
    assert!(world.router.routes()["clear.test"][0].is_null());
}

#[tokio::test]
async fn without_nats_it_does_not_start_and_a_restart_forgets_its_table() {
    let world = World::start(|_| {}).await;
    let app = backend("hello", None).await;
    world.register("a.test", app.addr());
    world.until("a.test", 200).await;
    world.router.restart().await.unwrap();
    assert_eq!(world.get("a.test", "/").await.0, 404);
    world.nats.stop().await;
    world.router.stop().await;
    assert!(world.router.start_again().await.is_err());
}
