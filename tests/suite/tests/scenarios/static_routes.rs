//! Registrars: what no cluster's Service asks for, such as the cluster's own apiserver behind the TCP routers.

use std::net::SocketAddr;
use std::time::Duration;

use counterparts::Program as _;
use counterparts::kube_apiserver::ADMIN_TOKEN;
use serde_json::{Value, json};
use suite::{
    Controller, Echo, Foundation, Line, Settings, TcpLoop, eventually, on_each_stage, opens, stays,
};
use tokio::net::TcpStream;

/// Where the backends of registrars listen.
const BACKEND_PORT: u16 = 8443;
/// Longer than the lane takes to look around and to change its mind.
const A_WHILE: Duration = Duration::from_secs(5);

/// A registrar of one route; it need not be ready yet.
async fn registrar(foundation: &Foundation, instance: &str, route: &Value) -> Controller {
    let settings = Settings::registrar(foundation, instance, route).unwrap();
    Controller::start(settings).await.unwrap()
}

/// The master of that number, played by the test.
fn master(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], BACKEND_PORT))
}

/// The registrar beside it, once its backend is published.
async fn registrar_of(foundation: &Foundation, number: u8, port: u16) -> Controller {
    let route = json!({"name": "api", "port": port, "backends": [master(number).to_string()]});
    let mut registrar = registrar(foundation, &format!("rs-master-{number}"), &route).await;
    registrar.ready().await;
    registrar
}

/// Address and writer of each row of a port.
async fn rows(foundation: &Foundation, port: u16) -> Vec<(String, String)> {
    let rows = foundation.rows_of(port).await;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let row = |row: &Value| (text(&row["backend_ip"]), text(&row["instance_id"]));
    let mut rows: Vec<_> = rows.iter().map(row).collect();
    rows.sort();
    rows
}

/// Whether the apiserver answers through the TCP router, over verified TLS.
async fn api_answers(foundation: &Foundation, port: u16) -> bool {
    let client = foundation.stack.pki.http_client_without_identity().unwrap();
    let url = format!("https://{}/api/v1/namespaces", foundation.tcp(port));
    let answer = client.get(url).bearer_auth(ADMIN_TOKEN).send().await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

async fn withdrawn(foundation: &Foundation, port: u16) {
    eventually("no row stands", async || {
        foundation.rows_of(port).await.is_empty()
    })
    .await;
    // An apiserver greets nobody, so that a line would tell nothing.
    eventually("the port is closed", async || {
        TcpStream::connect(foundation.tcp(port)).await.is_err()
    })
    .await;
}

fn health(foundation: &Foundation, server_name: &str) -> Value {
    json!({
        "url": format!("{}/readyz", foundation.stack.apiserver.url()),
        "ca_file": foundation.stack.pki.ca_file(), "server_name": server_name, "interval": "5s",
    })
}

#[test]
fn an_apiserver_behind_the_tcp_router_comes_and_goes_with_its_health() {
    let statement = "an apiserver is reached through the TCP router; its stop and its standstill take it away, its \
                     return brings it back, and a drained registrar leaves nothing";
    on_each_stage(statement, async |foundation| {
        let port = foundation.port();
        let backend = foundation.stack.apiserver.url().replace("https://", "");
        let mut route = json!({"name": "kubernetes-api", "port": port, "backends": [backend]});
        route["health"] = health(foundation, "stranger.test");
        let misled = registrar(foundation, "rs-misled", &route).await;
        misled.finding("health-failed", "kubernetes-api").await;
        let messages = misled.messages("health-failed").await;
        assert!(messages[0].contains("certificate"), "{messages:?}");
        assert!(foundation.rows_of(port).await.is_empty());
        assert_eq!(misled.stop().await, 0);

        route["health"] = health(foundation, "nats.service.test");
        let mut registrar = registrar(foundation, "rs-registrar", &route).await;
        registrar.ready().await;
        let answers = "the apiserver answers through the TCP router";
        eventually(answers, async || api_answers(foundation, port).await).await;
        let plan = registrar.command(&["plan"]).await.unwrap();
        assert_eq!(plan.0, 0, "{plan:?}");

        foundation.stack.apiserver.stop().await;
        withdrawn(foundation, port).await;
        registrar.finding("health-failed", "kubernetes-api").await;
        foundation.stack.apiserver.begin().await.unwrap();
        eventually(answers, async || api_answers(foundation, port).await).await;

        foundation.stack.apiserver.freeze();
        withdrawn(foundation, port).await;
        foundation.stack.apiserver.thaw();
        eventually(answers, async || api_answers(foundation, port).await).await;
        assert!(
            !registrar
                .has_finding("health-failed", "kubernetes-api")
                .await
        );

        let drained = registrar.command(&["drain", "--unregister"]).await.unwrap();
        assert_eq!(drained.0, 0, "{drained:?}");
        assert!(foundation.rows_of(port).await.is_empty());
        withdrawn(foundation, port).await;
        assert_eq!(registrar.stop().await, 0);
    });
}

#[test]
fn three_registrars_and_the_controller_share_one_routing_api() {
    let statement = "three registrars on one port and the controller keep all rows, through a restart and a drain";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let line = Line::new(foundation, "beside", foundation.node_port(30950));
        let line = line.await.unwrap();
        let port = foundation.port();
        let masters = Echo::start(&[master(1), master(2), master(3)], "master").await;
        let _masters = masters.unwrap();
        let controller = foundation.controller().await;
        line.label(foundation).await;
        line.answers(foundation).await;
        let refused = foundation.refused_reloads();
        let mut first = registrar_of(foundation, 1, port).await;
        let second = registrar_of(foundation, 2, port).await;
        let third = registrar_of(foundation, 3, port).await;
        let all = ["1", "2", "3"].map(|n| (format!("10.0.0.{n}"), format!("rs-master-{n}")));
        eventually("all three", async || rows(foundation, port).await == all).await;
        opens(foundation.tcp(port)).await;
        let requested = TcpLoop::start(foundation.tcp(port));
        let beside = line.requested(foundation);

        first.kill_and_start().await.unwrap();
        first.ready().await;
        stays(A_WHILE, "nobody touches another's row", async || {
            rows(foundation, port).await == all && foundation.rows_of(line.port).await.len() == 2
        })
        .await;
        let status = [
            first.status().await,
            second.status().await,
            controller.status().await,
        ];
        for status in status {
            let none = status["findings"].as_array().is_some_and(Vec::is_empty);
            assert!(none, "{}", status["findings"]);
        }
        // SIGTERM keeps, a drain takes.
        assert_eq!(third.stop().await, 0);
        let drained = second.command(&["drain", "--unregister"]).await.unwrap();
        assert_eq!(drained.0, 0, "{drained:?}");
        let [one, _, three] = all.clone();
        assert_eq!(rows(foundation, port).await, [one, three]);
        beside.none_failed();
        requested.none_failed();
        assert_eq!(foundation.refused_reloads(), refused);
    });
}
