//! The routing API as measured, with tokens of the sandbox's UAA.

#[path = "support/eventually.rs"]
mod support;

use std::time::Duration;

use futures::StreamExt;
use sandbox::routing_api::{Dialect, Endpoint, Failure, RoutingApi, RoutingApiOptions, TcpRoute};
use sandbox::tls::{self, Ca};
use sandbox::uaa::{Client, Uaa, UaaOptions};
use serde_json::{Value, json};
use support::eventually;

const ALL: &[&str] = &[
    "routing.routes.read",
    "routing.routes.write",
    "routing.router_groups.read",
];

struct World {
    uaa: Uaa,
    api: RoutingApi,
    token: String,
    guid: String,
}

impl World {
    async fn start(change: impl FnOnce(&mut RoutingApiOptions)) -> Self {
        let uaa = Uaa::start(UaaOptions {
            addr: "127.0.0.1:0".parse().unwrap(),
            tls: None,
            clients: vec![Client::new("all", "s", ALL)],
        });
        let uaa = uaa.await.unwrap();
        let mut options = RoutingApiOptions::new(&uaa.url());
        change(&mut options);
        let guid = options.router_groups[0].guid.clone();
        let api = RoutingApi::start(options).await.unwrap();
        let token = uaa.mint("all", &json!({}));
        Self {
            uaa,
            api,
            token,
            guid,
        }
    }

    fn route(&self, port: u16) -> Value {
        json!({
            "router_group_guid": self.guid, "port": port, "backend_ip": "10.0.0.1",
            "backend_port": 30000, "backend_tls_port": -1, "ttl": 60,
        })
    }

    async fn send(&self, what: &str, body: impl Into<String>) -> (u16, String) {
        self.send_as(&self.token, what, body.into()).await
    }

    async fn send_as(&self, token: &str, what: &str, body: String) -> (u16, String) {
        let url = format!("{}/routing/v1/{what}", self.api.url());
        let client = tls::http_client(None, None);
        let request = match what {
            "tcp_routes/create" | "tcp_routes/delete" => client.post(url).body(body),
            _ => client.get(url),
        };
        let request = request.header("authorization", format!("bearer {token}"));
        let response = request.send().await.unwrap();
        assert!(response.headers().contains_key("x-vcap-request-id"));
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

fn message(answer: &(u16, String)) -> String {
    let body: Value = serde_json::from_str(&answer.1).unwrap();
    body["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_route_is_created_refreshed_in_place_and_deleted() {
    let world = World::start(|_| {}).await;
    let body = json!([world.route(1024)]).to_string();
    assert_eq!(
        world.send("tcp_routes/create", &body).await,
        (201, String::new())
    );
    let first = world.api.rows().remove(0).modification_tag;
    assert_eq!(first.index, 0);
    world.send("tcp_routes/create", &body).await;
    let rows = world.api.rows();
    assert_eq!((rows.len(), rows[0].modification_tag.index), (1, 1));
    assert_eq!(rows[0].modification_tag.guid, first.guid);
    let listed = world.send("tcp_routes", "").await.1;
    assert_eq!(
        serde_json::from_str::<Vec<TcpRoute>>(&listed).unwrap(),
        rows
    );
    assert_eq!(world.send("tcp_routes/delete", &body).await.0, 204);
    assert!(world.api.rows().is_empty());
    assert_eq!(world.send("tcp_routes/delete", &body).await.0, 204);
}

#[tokio::test]
async fn without_a_tls_port_two_dialects_leak_and_one_does_not() {
    for (dialect, rows) in [
        (Dialect::Release2024, 3),
        (Dialect::Fixed2026_03, 1),
        (Dialect::Head2026_08, 3),
    ] {
        let world = World::start(|options| options.dialect = dialect).await;
        let mut route = world.route(1024);
        route.as_object_mut().unwrap().remove("backend_tls_port");
        let body = json!([route]).to_string();
        for _ in 0..3 {
            assert_eq!(world.send("tcp_routes/create", &body).await.0, 201);
        }
        assert_eq!(world.api.rows().len(), rows, "{dialect:?}");
        assert_eq!(world.send("tcp_routes/delete", &body).await.0, 204);
        let left = if rows == 1 { 0 } else { rows };
        assert_eq!(world.api.rows().len(), left, "{dialect:?}");
    }
}

#[tokio::test]
async fn duplicates_of_an_older_version_are_503_on_the_repaired_one() {
    let world = World::start(|_| {}).await;
    let mut route = world.route(1024);
    route["backend_tls_port"] = json!(0);
    let body = json!([route]).to_string();
    world.send("tcp_routes/create", &body).await;
    world.send("tcp_routes/create", &body).await;
    world.api.set_dialect(Dialect::Fixed2026_03);
    let answer = world.send("tcp_routes/create", &body).await;
    assert_eq!(answer.0, 503);
    assert_eq!(message(&answer), "Have duplicate tcp route mappings");
    assert_eq!(world.send("tcp_routes/delete", &body).await.0, 503);
}

#[tokio::test]
async fn one_bad_mapping_stores_nothing_of_its_batch() {
    let world = World::start(|_| {}).await;
    for (field, bad, says) in [
        ("port", json!(0), "positive external port"),
        ("port", json!(70_000), "cannot unmarshal number 70000"),
        ("port", json!("1024"), "cannot unmarshal string"),
        ("backend_port", json!(0), "positive backend port"),
        ("backend_ip", json!(""), "non empty backend ip"),
        (
            "router_group_guid",
            json!("x"),
            "router_group_guid: x not found",
        ),
        (
            "router_group_guid",
            json!(""),
            "non empty router group guid",
        ),
        ("ttl", json!(0), "ttl greater than 0"),
        ("ttl", json!(121), "TTL to be less than or equal to 120"),
    ] {
        let mut route = world.route(1025);
        route[field] = bad;
        let body = json!([world.route(1024), route]).to_string();
        let answer = world.send("tcp_routes/create", body).await;
        assert_eq!(answer.0, 400, "{field}");
        let message = message(&answer);
        assert!(message.starts_with("Cannot process request: "), "{message}");
        assert!(message.contains(says), "{message}");
    }
    let answer = world.send("tcp_routes/create", "").await;
    assert_eq!(message(&answer), "Cannot process request: EOF");
    assert!(world.api.rows().is_empty());
}

#[tokio::test]
async fn nonsense_that_the_real_one_takes_is_taken() {
    let world = World::start(|_| {}).await;
    for (port, ip) in [(80, "10.0.0.1"), (1024, "not-an-ip"), (1024, "::1")] {
        let mut route = world.route(port);
        route["backend_ip"] = json!(ip);
        let body = format!("{} trailing", json!([route]));
        assert_eq!(world.send("tcp_routes/create", body).await.0, 201);
    }
    assert_eq!(world.send("tcp_routes/create", "[]").await.0, 201);
    assert_eq!(world.api.rows().len(), 3);
}

#[tokio::test]
async fn everything_wrong_with_a_token_is_401() {
    let world = World::start(|_| {}).await;
    let no_right = "You are not authorized to perform the requested action";
    let reader = json!({"scope": ["routing.routes.read"]});
    for (token, says) in [
        ("a b".to_owned(), "Invalid token format"),
        (
            "garbage".to_owned(),
            "token contains an invalid number of segments",
        ),
        (
            world.uaa.mint("all", &json!({"exp": 1})),
            "Token is expired",
        ),
        (
            world.uaa.mint("all", &json!({"iss": "else"})),
            "invalid issuer",
        ),
        (world.uaa.mint("all", &reader), no_right),
    ] {
        let answer = world
            .send_as(&token, "tcp_routes/create", "[]".into())
            .await;
        assert_eq!(answer.0, 401);
        assert_eq!(message(&answer), says);
        assert!(answer.1.contains("UnauthorizedError"));
    }
}

#[tokio::test]
async fn a_rotated_key_is_fetched_and_the_old_tokens_die() {
    let world = World::start(|_| {}).await;
    world.uaa.rotate_key().await.unwrap();
    let fresh = world.uaa.mint("all", &json!({}));
    assert_eq!(
        world.send_as(&fresh, "tcp_routes", String::new()).await.0,
        200
    );
    let answer = world.send("tcp_routes", "").await;
    assert_eq!(answer.0, 401);
    assert_eq!(message(&answer), "crypto/rsa: verification error");
}

#[tokio::test]
async fn router_groups_are_found_by_name_or_404() {
    let world = World::start(|_| {}).await;
    let (status, body) = world.send("router_groups?name=default-tcp", "").await;
    let groups: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &groups[0]["guid"]), (200, &json!(world.guid)));
    assert_eq!(groups[0]["type"], "tcp");
    let answer = world.send("router_groups?name=none", "").await;
    assert_eq!(answer.0, 404);
    assert!(answer.1.contains("ResourceNotFoundError"));
}

#[tokio::test]
async fn events_count_from_zero_and_an_expiry_is_a_delete() {
    let world = World::start(|options| options.prune_interval = Duration::from_millis(100)).await;
    let url = format!("{}/routing/v1/tcp_routes/events", world.api.url());
    let request = tls::http_client(None, None)
        .get(url)
        .bearer_auth(&world.token);
    let mut stream = request.send().await.unwrap().bytes_stream();
    let mut route = world.route(1024);
    route["ttl"] = json!(1);
    world
        .send("tcp_routes/create", json!([route]).to_string())
        .await;
    let mut text = String::new();
    while text.matches("\n\n").count() < 2 {
        let chunk = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
        text.push_str(&String::from_utf8_lossy(&chunk.unwrap().unwrap().unwrap()));
    }
    assert!(
        text.starts_with("id: 0\nevent: Upsert\ndata: {\"router_group_guid\":"),
        "{text}"
    );
    assert!(text.contains("\n\nid: 1\nevent: Delete\ndata: {"), "{text}");
    assert!(world.api.rows().is_empty());
}

#[tokio::test]
async fn one_endpoint_fails_as_often_as_told_and_is_on_record() {
    let world = World::start(|_| {}).await;
    let failure = Failure::Status(503, "no".into(), Vec::new());
    world.api.fail_next(Endpoint::Create, failure, 1);
    assert_eq!(world.send("tcp_routes", "").await.0, 200);
    assert_eq!(world.send("tcp_routes/create", "[]").await.0, 503);
    assert_eq!(world.send("tcp_routes/create", "[]").await.0, 201);
    let paths: Vec<String> = world
        .api
        .requests()
        .into_iter()
        .map(|seen| seen.path)
        .collect();
    let create = "/routing/v1/tcp_routes/create";
    assert_eq!(paths, ["/routing/v1/tcp_routes", create, create]);
}

#[tokio::test]
async fn the_same_table_is_behind_an_mtls_door_that_wants_a_certificate() {
    let world = World::start(|_| {}).await;
    let ca = Ca::new("routing-api-ca");
    let tls = (ca.issue(&["127.0.0.1"], false), Some(ca.pem().to_owned()));
    let addr = world
        .api
        .also_listen("127.0.0.1:0".parse().unwrap(), Some(tls))
        .await
        .unwrap();
    world
        .send("tcp_routes/create", json!([world.route(1024)]).to_string())
        .await;
    let url = format!("https://{addr}/routing/v1/tcp_routes");
    let known = tls::http_client(Some(ca.pem()), Some(&ca.issue(&["client"], true)));
    let answer = known
        .get(&url)
        .bearer_auth(&world.token)
        .send()
        .await
        .unwrap();
    let rows: Vec<TcpRoute> = answer.json().await.unwrap();
    assert_eq!(rows.len(), 1);
    let unknown = tls::http_client(Some(ca.pem()), None);
    assert!(
        unknown
            .get(&url)
            .bearer_auth(&world.token)
            .send()
            .await
            .is_err()
    );
    world.api.restart().await.unwrap();
    eventually("both doors are open again", async || {
        known
            .get(&url)
            .send()
            .await
            .is_ok_and(|answer| answer.status() == 401)
            && world.send("tcp_routes", "").await.0 == 200
    })
    .await;
}
