//! UAA, routing API, TCP router and an echo backend, end to end.

#[path = "support/eventually.rs"]
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use sandbox::listen::Server;
use sandbox::routing_api::{RoutingApi, RoutingApiOptions, TcpRoute};
use sandbox::tcp_router::{TcpRouter, TcpRouterOptions, TokenSource};
use sandbox::tls::{self, Ca};
use sandbox::uaa::{Client, Uaa, UaaOptions};
use serde_json::json;
use support::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

struct World {
    uaa: Uaa,
    api: RoutingApi,
    router: TcpRouter,
    client: reqwest::Client,
}

impl World {
    /// UAA over HTTPS, the routing API over mTLS.
    async fn start(change: impl FnOnce(&mut TcpRouterOptions)) -> Self {
        let ca = Ca::new("ca");
        let loopback = "127.0.0.1:0".parse().unwrap();
        let uaa = Uaa::start(UaaOptions {
            addr: loopback,
            tls: Some(ca.issue(&["127.0.0.1"], false)),
            clients: vec![
                Client::new("tcp_router", "s", &["routing.routes.read"]),
                Client::new("writer", "s", &["routing.routes.write"]),
            ],
        });
        let uaa = uaa.await.unwrap();
        let mut options = RoutingApiOptions::new(&uaa.url());
        options.uaa_ca_pem = Some(ca.pem().to_owned());
        options.tls = Some((ca.issue(&["127.0.0.1"], false), Some(ca.pem().to_owned())));
        options.router_groups[0].guid = "group".into();
        let api = RoutingApi::start(options).await.unwrap();
        let client = tls::http_client(Some(ca.pem()), Some(&ca.issue(&["client"], true)));
        let token = TokenSource::Uaa {
            url: uaa.url(),
            client_id: "tcp_router".into(),
            client_secret: "s".into(),
        };
        let mut options = TcpRouterOptions::new(&api.url(), client.clone(), token);
        options.reload_cost = Duration::from_millis(5);
        options.subscription_retry = Duration::from_millis(100);
        options.connect_retry_pause = Duration::from_millis(20);
        change(&mut options);
        let router = TcpRouter::start(options).await.unwrap();
        // Both: what is written before the first list would come with it, and in one reload.
        eventually(
            "the router has its list and follows the events",
            async || {
                let seen = api.requests();
                let asked = |page: &str| seen.iter().any(|seen| seen.path.ends_with(page));
                asked("/tcp_routes") && asked("/tcp_routes/events")
            },
        )
        .await;
        Self {
            uaa,
            api,
            router,
            client,
        }
    }

    async fn send(&self, verb: &str, routes: &[TcpRoute]) -> u16 {
        let url = format!("{}/routing/v1/tcp_routes/{verb}", self.api.url());
        let token = self.uaa.mint("writer", &json!({}));
        let body = serde_json::to_string(routes).unwrap();
        let request = self.client.post(url).bearer_auth(token).body(body);
        request.send().await.unwrap().status().as_u16()
    }

    async fn open(&self, ports: &[u16]) {
        eventually(&format!("open: {ports:?}"), async || {
            self.router.open_ports() == ports
        })
        .await;
    }
}

fn route(port: u16, backend: SocketAddr) -> TcpRoute {
    TcpRoute {
        router_group_guid: "group".into(),
        port,
        backend_ip: backend.ip().to_string(),
        backend_port: backend.port(),
        backend_tls_port: -1,
        ttl: Some(60),
        ..TcpRoute::default()
    }
}

/// Answers each connection with its name, then echoes.
async fn echo(name: &'static [u8]) -> Server {
    Server::start(
        "127.0.0.1:0".parse().unwrap(),
        move |mut stream, _| async move {
            stream.write_all(name).await.unwrap();
            let (mut reader, mut writer) = stream.split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        },
    )
    .await
    .unwrap()
}

/// Nobody else gets it while these tests run: a socket that is bound and does not listen keeps it, and who sets
/// `SO_REUSEADDR`, as the router does, may listen on it all the same.
fn free_port() -> u16 {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::mem::forget(socket);
    port
}

async fn connect(port: u16) -> (TcpStream, u8) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = stream.read_u8().await.unwrap_or_default();
    (stream, name)
}

async fn echoes(stream: &mut TcpStream) -> bool {
    stream.write_all(b"x").await.unwrap();
    stream.read_u8().await.unwrap() == b'x'
}

#[tokio::test]
async fn a_route_opens_a_port_to_its_backend_and_its_delete_closes_it() {
    let world = World::start(|_| {}).await;
    let app = echo(b"a").await;
    let routes = [route(free_port(), app.addr())];
    assert_eq!(world.send("create", &routes).await, 201);
    world.open(&[routes[0].port]).await;
    let (mut stream, name) = connect(routes[0].port).await;
    assert_eq!(name, b'a');
    assert!(echoes(&mut stream).await);
    let reloads = world.router.reloads();
    world.send("create", &routes).await;
    world.send("delete", &routes).await;
    world.open(&[]).await;
    assert_eq!(
        world.router.reloads(),
        reloads + 1,
        "a refresh must not reload"
    );
    assert!(
        TcpStream::connect(("127.0.0.1", routes[0].port))
            .await
            .is_err()
    );
    assert!(
        echoes(&mut stream).await,
        "an established connection must survive"
    );
}

#[tokio::test]
async fn connections_take_turns_and_a_refused_backend_is_an_eof() {
    let world = World::start(|_| {}).await;
    let (one, two) = (echo(b"1").await, echo(b"2").await);
    let port = free_port();
    world
        .send(
            "create",
            &[route(port, one.addr()), route(port, two.addr())],
        )
        .await;
    eventually("both are in", async || world.router.reloads() == 2).await;
    let mut names = Vec::new();
    for _ in 0..4 {
        names.push(connect(port).await.1);
    }
    names.sort_unstable();
    assert_eq!(names, b"1122");
    two.stop().await;
    let mut names = Vec::new();
    for _ in 0..4 {
        names.push(connect(port).await.1);
    }
    names.sort_unstable();
    assert_eq!(
        names,
        [0, 0, b'1', b'1'],
        "one dead of two is half of the connections"
    );
}

#[tokio::test]
async fn two_tls_ports_of_one_backend_freeze_everything_until_one_goes() {
    let world = World::start(|_| {}).await;
    let app = echo(b"a").await;
    let port = free_port();
    world.send("create", &[route(port, app.addr())]).await;
    world.open(&[port]).await;
    let mut twin = route(port, app.addr());
    twin.backend_tls_port = 0;
    world.send("create", &[twin]).await;
    eventually("the reload is refused", async || {
        world.router.failed_reloads() == 1
    })
    .await;
    let failure = world.router.last_failure().unwrap();
    assert!(failure.contains("was already defined"), "{failure}");
    let other = route(free_port(), app.addr());
    world.send("create", std::slice::from_ref(&other)).await;
    eventually("the next one too", async || {
        world.router.failed_reloads() == 2
    })
    .await;
    assert_eq!(world.router.open_ports(), [port]);
    assert_eq!(connect(port).await.1, b'a');
    world.api.delete_rows(|row| row.backend_tls_port == 0);
    let mut both = [port, other.port];
    both.sort_unstable();
    world.open(&both).await;
}

#[tokio::test]
async fn a_port_someone_holds_fails_the_reload_and_ipv6_is_left_out() {
    let world = World::start(|_| {}).await;
    let app = echo(b"a").await;
    let port = free_port();
    let mut six = route(port, app.addr());
    six.backend_ip = "::1".into();
    world.send("create", &[six]).await;
    eventually("it is taken", async || world.router.reloads() == 1).await;
    assert!(world.router.open_ports().is_empty());
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = route(held.local_addr().unwrap().port(), app.addr());
    world.send("create", std::slice::from_ref(&taken)).await;
    eventually("it is refused", async || world.router.failed_reloads() == 1).await;
    assert!(world.router.last_failure().unwrap().contains("cannot bind"));
}

#[tokio::test]
async fn a_sync_brings_everything_with_one_reload_and_outages_are_survived() {
    let world = World::start(|options| options.sync_interval = Duration::from_millis(300)).await;
    let app = echo(b"a").await;
    world.router.stop().await;
    let mut routes = Vec::new();
    for _ in 0..5 {
        routes.push(route(free_port(), app.addr()));
    }
    world.send("create", &routes).await;
    let before = world.router.reloads();
    world.router.start_again().await.unwrap();
    let mut ports: Vec<u16> = routes.iter().map(|route| route.port).collect();
    ports.sort_unstable();
    ports.dedup();
    world.open(&ports).await;
    assert_eq!(world.router.reloads(), before + 1);
    world.api.stop().await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(connect(ports[0]).await.1, b'a');
    world.api.start_again().await.unwrap();
    world.send("delete", &routes).await;
    world.open(&[]).await;
}
