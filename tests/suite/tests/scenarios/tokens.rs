//! The UAA's tokens: their end, their refusal, their scopes, the client's secret.

use std::net::SocketAddr;
use std::time::Duration;

use counterparts::UaaClient;
use serde_json::json;
use suite::{
    Controller, Foundation, Served, Settings, Stage, TcpLoop, Web, closes, eventually, http_status,
    on_each_stage, on_nodes, poll,
};

const READ: &str = "routing.routes.read";
const WRITE: &str = "routing.routes.write";
const GROUPS: &str = "routing.router_groups.read";
const SECRET: &str = "a-secret";

/// The settings of another client.
fn client(settings: &mut Settings, id: &str, secret: &str) {
    settings.config["uaa"]["client_id"] = json!(id);
    settings.config["uaa"]["client_secret"] = json!(secret);
}

/// Shows that HTTP routes come and go whatever has become of the TCP lane.
async fn http_is_unharmed(foundation: &Foundation, node_port: u16) {
    let name = foundation.name("unharmed");
    let (service, host) = (format!("{name}/{name}"), foundation.host(&name));
    let node_port = foundation.node_port(node_port);
    foundation
        .cluster
        .service(&service, node_port)
        .await
        .unwrap();
    let _web = Web::start(&on_nodes(1, node_port), "unharmed")
        .await
        .unwrap();
    let router: SocketAddr = foundation.http();
    foundation
        .cluster
        .label(&service, "http-route-sync", Some(&name))
        .await
        .unwrap();
    eventually("the host answers", async || {
        http_status(router, &host).await == 200
    })
    .await;
    foundation
        .cluster
        .label(&service, "http-route-sync", None)
        .await
        .unwrap();
    eventually("the host is gone", async || {
        http_status(router, &host).await == 404
    })
    .await;
    foundation
        .cluster
        .delete("Service", &name, &name)
        .await
        .unwrap();
}

/// How many tokens it has fetched.
fn tokens(controller: &Controller) -> usize {
    controller.log().matches("token fetched").count()
}

#[test]
fn short_tokens_are_replaced_before_they_end() {
    let statement = "tokens of eight seconds are renewed early: no request is ever refused";
    on_each_stage(statement, async |foundation| {
        let short = UaaClient::new("short", SECRET, &[READ, WRITE, GROUPS]).validity(8);
        foundation.uaa_client(&short).await;
        foundation.nodes(1).await;
        let served = Served::start(foundation, "expiry", 30210, 1).await;
        let controller = foundation
            .controller_with(|settings| {
                client(settings, "short", SECRET);
                // A request every other second or so, on each token.
                settings.config["routing_api"]["ttl"] = json!("6s");
            })
            .await;
        served.open(foundation).await;
        let clients = TcpLoop::start(foundation.tcp(served.port));
        let seen = tokens(&controller);
        eventually("three more tokens", async || {
            tokens(&controller) >= seen + 3
        })
        .await;
        clients.none_failed();
        assert_eq!(
            controller
                .metric("route_sync_routing_api_unauthorized_total", "")
                .await,
            0.0
        );
        served.unlabel(foundation).await;
        closes(foundation, served.port).await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_rotated_key_is_healed_by_one_new_token() {
    let statement = "tokens of a key that was rotated are refused; one new token heals it";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let before = Served::start(foundation, "oldkey", 30211, 1).await;
        let after = Served::start(foundation, "newkey", 30212, 1).await;
        let controller = foundation.controller().await;
        before.open(foundation).await;
        let old = foundation.stack.token().await.unwrap();
        let clients = TcpLoop::start(foundation.tcp(before.port));

        let seen = tokens(&controller);
        foundation.stack.uaa.rotate_key().await.unwrap();
        // The API learns of a new key from the first token that carries it, and forgets the old one.
        foundation.router_group().await;
        let url = format!("{}/routing/v1/router_groups", foundation.api_url());
        let http = foundation.stack.pki.http_client().unwrap();
        let refused = http.get(url).bearer_auth(old).send().await.unwrap();
        assert_eq!(refused.status().as_u16(), 401);
        after.open(foundation).await;
        eventually("one new token is told of", async || {
            tokens(&controller) == seen + 1
        })
        .await;
        assert!(
            controller
                .metric("route_sync_routing_api_unauthorized_total", "")
                .await
                >= 1.0
        );
        clients.none_failed();
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn without_the_right_to_read_routes_are_published_blindly() {
    let statement = "without routing.routes.read the scope is named, and routes land all the same";
    on_each_stage(statement, async |foundation| {
        foundation
            .uaa_client(&UaaClient::new("blind", SECRET, &[WRITE, GROUPS]))
            .await;
        foundation.nodes(1).await;
        let served = Served::start(foundation, "blind", 30213, 1).await;
        served.label(foundation).await;
        let controller = foundation
            .unready_controller(|settings| client(settings, "blind", SECRET))
            .await;
        controller.finding("scope-missing", "").await;
        assert!(controller.status().await.to_string().contains(READ));
        http_is_unharmed(foundation, 30214).await;
        // What an older job left unseen may live for 75 s; nothing is put beside it. Waited out once.
        if foundation.stage == Stage::Sandbox {
            assert_eq!(foundation.rows_of(served.port).await, [json!(null); 0]);
            poll::within(Duration::from_secs(150), "the row lands", async || {
                foundation.rows_of(served.port).await.len() == 1
            })
            .await;
            suite::leads_to(foundation, served.port, &served.line).await;
            served.unlabel(foundation).await;
            closes(foundation, served.port).await;
        }
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn without_the_right_to_write_the_scope_is_named_and_http_is_unharmed() {
    let statement = "without routing.routes.write the scope is named, and HTTP routes come and go";
    on_each_stage(statement, async |foundation| {
        foundation
            .uaa_client(&UaaClient::new("reader", SECRET, &[READ, GROUPS]))
            .await;
        foundation.nodes(1).await;
        let served = Served::start(foundation, "reader", 30215, 1).await;
        served.label(foundation).await;
        let mut controller = foundation
            .unready_controller(|settings| client(settings, "reader", SECRET))
            .await;
        controller.finding("scope-missing", "").await;
        assert!(controller.status().await.to_string().contains(WRITE));
        http_is_unharmed(foundation, 30216).await;
        assert_eq!(foundation.rows_of(served.port).await, [json!(null); 0]);
        assert!(controller.is_running());
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_wrong_secret_is_told_and_http_is_unharmed() {
    let statement = "with a wrong client secret HTTP routes come and go, and the reason is told";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let served = Served::start(foundation, "wrong", 30217, 1).await;
        served.label(foundation).await;
        let wrong = "not-the-secret";
        let mut controller = foundation
            .unready_controller(|settings| settings.config["uaa"]["client_secret"] = json!(wrong))
            .await;
        controller.finding("lane-down", "tcp").await;
        let status = controller.status().await.to_string();
        assert!(status.contains("UAA refuses the client"), "{status}");
        http_is_unharmed(foundation, 30218).await;
        assert!(controller.is_running());
        assert!(!controller.log().contains(wrong) && !status.contains(wrong));
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn any_character_may_stand_in_the_client_secret() {
    let statement = "a client secret of special characters works";
    on_each_stage(statement, async |foundation| {
        let secret = "a:b+c & d%20=?#/é\"'";
        foundation
            .uaa_client(&UaaClient::new("special", secret, &[READ, WRITE, GROUPS]))
            .await;
        foundation.nodes(1).await;
        let served = Served::start(foundation, "special", 30219, 1).await;
        let controller = foundation
            .controller_with(|settings| client(settings, "special", secret))
            .await;
        served.open(foundation).await;
        assert!(!controller.log().contains(secret));
        assert_eq!(controller.stop().await, 0);
    });
}
