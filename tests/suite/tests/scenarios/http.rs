//! Labelling a Service makes it reachable through gorouter, and unlabelling makes it unreachable.

use std::net::SocketAddr;

use counterparts::Nginx;
use suite::{Foundation, HttpLoop, Web, eventually, http_status, on_each_stage};

const LABEL: &str = "http-route-sync";

fn example(name: &str) -> String {
    let path = format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).expect("the example must be there")
}

fn on_nodes(port: u16) -> Vec<SocketAddr> {
    [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| SocketAddr::from((ip, port))).to_vec()
}

/// Waits for one answer by Host header.
async fn answers(foundation: &Foundation, host: &str, statuses: &[u16]) {
    let router = foundation.http();
    eventually(&format!("{host} answers {statuses:?}"), async || {
        statuses.contains(&http_status(router, host).await)
    })
    .await;
}

#[test]
fn the_nginx_example_is_reachable_while_it_is_labelled() {
    let statement = "the nginx example answers 200 by its label, 404 without, over mTLS NATS";
    on_each_stage(statement, async |foundation| {
        let cluster = &foundation.cluster;
        foundation.nodes(2).await;
        let applied = cluster.apply_manifest(&example("nginx.yml")).await.unwrap();
        let service = applied.iter().find(|object| object["kind"] == "Service").unwrap();
        let name = service["metadata"]["name"].as_str().unwrap();
        let namespace = service["metadata"]["namespace"].as_str().unwrap_or("default");
        let service = format!("{namespace}/{name}");
        cluster.label(&service, LABEL, None).await.unwrap();
        let object = cluster.get("Service", namespace, name).await.unwrap();
        let port = object["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
        let port = u16::try_from(port).unwrap();
        let _nginx = Nginx::start(&foundation.stack.run, &on_nodes(port), "hello").await.unwrap();
        let controller = foundation.controller().await;

        let host = foundation.host("nginx");
        answers(foundation, &host, &[404]).await;
        cluster.label(&service, LABEL, Some("nginx")).await.unwrap();
        answers(foundation, &host, &[200]).await;
        cluster.label(&service, LABEL, None).await.unwrap();
        answers(foundation, &host, &[404, 503]).await;
        cluster.label(&service, LABEL, Some("nginx")).await.unwrap();
        answers(foundation, &host, &[200]).await;
        cluster.delete("Service", namespace, name).await.unwrap();
        answers(foundation, &host, &[404, 503]).await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn relabelling_moves_the_host_without_a_failed_request() {
    let statement = "relabelling moves a host with no failed request on either name";
    on_each_stage(statement, async |foundation| {
        let cluster = &foundation.cluster;
        foundation.nodes(2).await;
        let service = foundation.name("move/web");
        cluster.service(&service, 30101).await.unwrap();
        let _web = Web::start(&on_nodes(30101), "moved").await.unwrap();
        let controller = foundation.controller().await;
        let (old, new) = (foundation.name("old"), foundation.name("new"));
        let (old_host, new_host) = (foundation.host(&old), foundation.host(&new));

        cluster.label(&service, LABEL, Some(&old)).await.unwrap();
        answers(foundation, &old_host, &[200]).await;
        // Both names at once, then the new one alone: the way to move without a gap.
        cluster.annotate(&service, "http", Some(&format!("{old},{new}"))).await.unwrap();
        answers(foundation, &new_host, &[200]).await;
        let new_loop = HttpLoop::start(foundation.http(), &new_host);
        let old_loop = HttpLoop::start(foundation.http(), &old_host);
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let (requests, failures) = old_loop.end();
        assert!(requests > 0 && failures.is_empty(), "{failures:?}");
        cluster.label(&service, LABEL, Some(&new)).await.unwrap();
        cluster.annotate(&service, "http", None).await.unwrap();
        answers(foundation, &old_host, &[404, 503]).await;
        let (requests, failures) = new_loop.end();
        assert!(requests > 0 && failures.is_empty(), "{failures:?}");
        assert_eq!(controller.stop().await, 0);
    });
}
