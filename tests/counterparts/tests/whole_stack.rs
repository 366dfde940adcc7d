//! The whole stack of real programs comes up, wired as a foundation wires it, and carries one TCP
//! and one HTTP route. Needs the private network: several of the programs bind every interface.

use std::net::SocketAddr;
use std::time::Duration;

use counterparts::programs::version;
use counterparts::stack::{APP_DOMAIN, SYSTEM_DOMAIN};
use counterparts::{
    Nginx, Program, RoutingApi, Stack, StackOptions, TcpRouter, handed_in, in_private_network,
    not_confirmed,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// Far more than any of it takes; on a noisy machine only the waiting grows.
const WITHIN: Duration = Duration::from_secs(60);

/// What is said here of programs that may be absent.
const NEEDS: [(&str, &[&str]); 3] = [
    (
        "a TCP route opens a port and closes it",
        &["routing-api", "cf-tcp-router"],
    ),
    ("an HTTP route leads to its backend", &["gorouter"]),
    (
        "the routing API answers through gorouter",
        &["gorouter", "routing-api"],
    ),
];

const TCP_ROUTE: u16 = 34_569;
const HTTP_NODE_PORT: u16 = 30_080;

#[tokio::test(flavor = "multi_thread")]
async fn the_real_programs_carry_a_tcp_and_an_http_route() {
    assert!(
        in_private_network(),
        "hint: run through tests/counterparts/private-network"
    );
    let began = Instant::now();
    let mut stack = Stack::start(StackOptions::default()).await.unwrap();
    println!("whole stack up in {:.1} s", began.elapsed().as_secs_f32());
    for program in stack.absent() {
        println!("{program}: absent");
    }

    cluster_answers(&stack).await;
    let token = stack.token().await.unwrap();
    for (statement, programs) in NEEDS {
        for program in programs.iter().filter(|name| handed_in(name).is_none()) {
            not_confirmed(program, statement);
        }
    }
    if let (Some(api), Some(router)) = (&stack.routing_api, &stack.tcp_router) {
        tcp_route_opens_and_closes(api, router, &token).await;
    }
    http_route_leads_to_nginx(&stack).await;
    if stack.gorouter.is_some() && stack.routing_api.is_some() {
        api_answers_through_gorouter(&stack, &token).await;
    }
    for (program, kib) in stack.rss_kib() {
        println!("{program}: {} MB resident", kib / 1024);
    }

    programs_come_back(&mut stack).await;
}

async fn cluster_answers(stack: &Stack) {
    let url = format!("{}/version", stack.apiserver.url());
    let answer = stack.apiserver.http().get(url).send().await.unwrap();
    let answer: serde_json::Value = answer.json().await.unwrap();
    let expected = format!("v{}", version("kube-apiserver").unwrap());
    assert_eq!(answer["gitVersion"], expected);
}

async fn tcp_route_opens_and_closes(api: &RoutingApi, router: &TcpRouter, token: &str) {
    let guid = api.router_group_guid("default-tcp", token).await.unwrap();
    let echo = TcpListener::bind("10.0.0.2:30999").await.unwrap();
    let echo = tokio::spawn(echo_forever(echo));
    let route = json!([{
        "router_group_guid": guid,
        "port": TCP_ROUTE,
        "backend_ip": "10.0.0.2",
        "backend_port": 30999,
        "backend_tls_port": -1,
        "ttl": 60,
    }]);
    let reloads = router.reload_count();
    let (status, body) = api
        .post("/routing/v1/tcp_routes/create", token, &route)
        .await
        .unwrap();
    assert_eq!(status, 201, "{body}");
    eventually("the TCP route is open", async || echoes(TCP_ROUTE).await).await;
    assert!(router.haproxy_config().unwrap().contains("10.0.0.2:30999"));
    assert!(router.reload_count() > reloads);

    let delete = "/routing/v1/tcp_routes/delete";
    let (status, body) = api.post(delete, token, &route).await.unwrap();
    assert_eq!(status, 204, "{body}");
    eventually("the TCP route is closed", async || {
        TcpStream::connect(("127.0.0.1", TCP_ROUTE)).await.is_err()
    })
    .await;
    echo.abort();
}

async fn http_route_leads_to_nginx(stack: &Stack) {
    let nodes = [1, 2].map(|node| SocketAddr::from(([10, 0, 0, node], HTTP_NODE_PORT)));
    let nginx = Nginx::start(&stack.run, &nodes, "hello from nginx")
        .await
        .unwrap();
    // The client certificate and the password are what the server asks for.
    let nats = stack.nats.connect().await.unwrap();
    let Some(gorouter) = &stack.gorouter else {
        nats.flush().await.unwrap();
        return;
    };
    let host = format!("nginx.{APP_DOMAIN}");
    assert_eq!(gorouter.get(&host, "/").await.unwrap().0, 404);
    let register = json!({"host": "10.0.0.1", "port": HTTP_NODE_PORT, "uris": [host]});
    nats.publish("router.register", register.to_string().into())
        .await
        .unwrap();
    nats.flush().await.unwrap();
    eventually("the HTTP route answers", async || {
        gorouter.get(&host, "/").await.unwrap() == (200, "hello from nginx".to_owned())
    })
    .await;
    assert_eq!(
        gorouter.routes().await.unwrap()[&host][0]["address"],
        format!("10.0.0.1:{HTTP_NODE_PORT}")
    );
    assert!(nginx.requests() > 0);
}

async fn api_answers_through_gorouter(stack: &Stack, token: &str) {
    let front = stack.gorouter.as_ref().unwrap().tls_address();
    let host = format!("api.{SYSTEM_DOMAIN}");
    let client = stack
        .pki
        .http_client_with(|client| client.resolve(&host, front))
        .unwrap();
    let url = format!("https://{host}:{}/routing/v1/router_groups", front.port());
    stack.register_api().await.unwrap();
    eventually("the routing API answers through gorouter", async || {
        let answer = client.get(&url).bearer_auth(token).send().await.unwrap();
        answer.status() == 200
    })
    .await;
}

async fn programs_come_back(stack: &mut Stack) {
    stack.nats.freeze();
    stack.nats.thaw();
    stack.nats.kill();
    assert!(stack.nats.connect().await.is_err());
    stack.nats.restart().await.unwrap();
    stack.nats.connect().await.unwrap();

    stack.apiserver.restart().await.unwrap();
    cluster_answers(stack).await;

    stack.uaa.add_secret("route-sync", "second").await.unwrap();
    stack.token().await.unwrap();
    stack.uaa.token("route-sync", "second").await.unwrap();
    stack.uaa.drop_old_secret("route-sync").await.unwrap();
    assert!(stack.token().await.is_err());

    if let Some(api) = &mut stack.routing_api {
        api.set_max_ttl(Duration::from_secs(6)).await.unwrap();
    }
    if let Some(gorouter) = &mut stack.gorouter {
        gorouter.restart().await.unwrap();
    }
    if let Some(router) = &mut stack.tcp_router {
        router.restart().await.unwrap();
    }
}

async fn eventually(what: &str, look: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !look().await {
        assert!(began.elapsed() < WITHIN, "not within {WITHIN:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("{what} after {} ms", began.elapsed().as_millis());
}

async fn echoes(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else {
        return false;
    };
    let mut answer = [0; 4];
    stream.write_all(b"ping").await.is_ok()
        && stream.read_exact(&mut answer).await.is_ok()
        && answer == *b"ping"
}

async fn echo_forever(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut from, mut to) = stream.split();
            // A client that goes away ends its echo.
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
    }
}
