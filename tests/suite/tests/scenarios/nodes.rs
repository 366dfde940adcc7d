//! Nodes that leave and come back, and pods that move between them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use suite::poll::within;
use suite::{
    Controller, Echo, Foundation, HttpLoop, TcpLoop, Web, answers, backends, eventually,
    node_addresses, on_each_stage, opens,
};

/// The controller's own damping is up to 30 s.
const DAMPED: Duration = Duration::from_secs(90);
const PORT: u16 = 30186;
const LINE_PORT: u16 = 30189;
const LOCAL_PORT: u16 = 30187;

fn at(nodes: &[u8], port: u16) -> BTreeSet<String> {
    nodes
        .iter()
        .map(|node| format!("10.0.0.{node}:{port}"))
        .collect()
}

/// Waits until exactly these nodes are behind a host.
async fn served_by(foundation: &Foundation, host: &str, nodes: &[u8], port: u16) {
    let wanted = at(nodes, port);
    within(
        DAMPED,
        &format!("{host} is served by {nodes:?}"),
        async || backends(&foundation.http_routes().await, host) == wanted,
    )
    .await;
}

/// Waits until exactly these nodes are behind a router port.
async fn connected_to(foundation: &Foundation, router_port: u16, nodes: &[u8]) {
    let wanted = at(nodes, LINE_PORT);
    within(
        DAMPED,
        &format!("port {router_port} leads to {nodes:?}"),
        async || {
            let rows = foundation.rows_of(router_port).await;
            let address = |row: &serde_json::Value| {
                format!(
                    "{}:{}",
                    row["backend_ip"].as_str().unwrap_or_default(),
                    row["backend_port"]
                )
            };
            rows.iter().map(address).collect::<BTreeSet<_>>() == wanted
        },
    )
    .await;
}

/// Deleted, excluded and tainted nodes go at once, a cordoned one stays, one that is not ready goes after a while.
async fn nodes_leave(foundation: &Foundation, name: &str, tcp: u16) {
    let cluster = &foundation.cluster;
    let host = foundation.host(name);
    let http_loop = HttpLoop::start(foundation.http(), &host);
    let tcp_loop = TcpLoop::start(foundation.tcp(tcp));
    let patch = async |node: &str, patch: serde_json::Value| {
        cluster.patch("Node", "", node, &patch).await.unwrap();
    };
    patch("n3", json!({"spec": {"unschedulable": true}})).await;
    cluster.delete("Node", "", "n8").await.unwrap();
    let exclude = "node.kubernetes.io/exclude-from-external-load-balancers";
    patch("n7", json!({"metadata": {"labels": {exclude: ""}}})).await;
    let taint = json!({"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"});
    patch("n6", json!({"spec": {"taints": [taint]}})).await;
    served_by(foundation, &host, &[1, 2, 3, 4, 5], PORT).await;
    connected_to(foundation, tcp, &[1, 2, 3, 4, 5]).await;
    cluster.node_ready("n4", "False").await.unwrap();
    served_by(foundation, &host, &[1, 2, 3, 5], PORT).await;
    connected_to(foundation, tcp, &[1, 2, 3, 5]).await;
    cluster.node_ready("n4", "True").await.unwrap();
    patch("n7", json!({"metadata": {"labels": {exclude: null}}})).await;
    served_by(foundation, &host, &[1, 2, 3, 4, 5, 7], PORT).await;
    connected_to(foundation, tcp, &[1, 2, 3, 4, 5, 7]).await;
    http_loop.none_failed();
    tcp_loop.none_failed();
}

/// With `externalTrafficPolicy: Local` the route follows the pod, and goes a while after the last one.
async fn pods_move(foundation: &Foundation, controller: &Controller, service: &str, name: &str) {
    let cluster = &foundation.cluster;
    let host = foundation.host(name);
    let moved = async |nodes: &[&str]| {
        cluster
            .endpoints(service, nodes, "http-route-sync")
            .await
            .unwrap();
    };
    moved(&["n1"]).await;
    served_by(foundation, &host, &[1], LOCAL_PORT).await;
    let requests = HttpLoop::start(foundation.http(), &host);
    moved(&["n2"]).await;
    served_by(foundation, &host, &[2], LOCAL_PORT).await;
    moved(&[]).await;
    controller.finding("no-ready-endpoint", service).await;
    requests.none_failed();
    served_by(foundation, &host, &[], LOCAL_PORT).await;
    answers(foundation.http(), &host, &[404, 503]).await;
    moved(&["n1"]).await;
    served_by(foundation, &host, &[1], LOCAL_PORT).await;
}

#[test]
fn routes_follow_nodes_and_pods() {
    let statement = "a deleted, excluded or tainted node leaves at once, a cordoned one stays, one not \
                     ready leaves and returns damped; with local traffic the route follows the pod";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(8).await;
        let tcp = foundation.port();
        let foundation = &*foundation;
        let cluster = &foundation.cluster;
        let (service, name) = (foundation.name("nodes/web"), foundation.name("nodes"));
        let ports = json!({"ports": [
            {"name": "http", "port": 80, "nodePort": PORT},
            {"name": "line", "port": 7, "nodePort": LINE_PORT},
        ]});
        cluster.service_with(&service, ports).await.unwrap();
        cluster
            .annotate(&service, "tcp", Some(&format!("line={tcp}")))
            .await
            .unwrap();
        cluster
            .annotate(&service, "max-backends", Some("0"))
            .await
            .unwrap();
        cluster
            .label(&service, "http-route-sync", Some(&name))
            .await
            .unwrap();
        cluster
            .label(&service, "tcp-route-sync", Some("annotated"))
            .await
            .unwrap();
        let (local, local_name) = (foundation.name("nodes/local"), foundation.name("local"));
        let spec = json!({
            "ports": [{"port": 80, "nodePort": LOCAL_PORT}], "externalTrafficPolicy": "Local",
        });
        cluster.service_with(&local, spec).await.unwrap();
        cluster
            .label(&local, "http-route-sync", Some(&local_name))
            .await
            .unwrap();
        let _web = Web::start(&node_addresses(8, PORT), "served")
            .await
            .unwrap();
        let _line = Echo::start(&node_addresses(8, LINE_PORT), "served")
            .await
            .unwrap();
        let _local = Web::start(&node_addresses(8, LOCAL_PORT), "served")
            .await
            .unwrap();
        let controller = foundation.controller().await;

        let all = [1, 2, 3, 4, 5, 6, 7, 8];
        served_by(foundation, &foundation.host(&name), &all, PORT).await;
        connected_to(foundation, tcp, &all).await;
        opens(foundation.tcp(tcp)).await;
        // No slice at all: unknown is not nowhere.
        controller.finding("endpoints-unknown", &local).await;
        served_by(foundation, &foundation.host(&local_name), &all, LOCAL_PORT).await;
        tokio::join!(
            nodes_leave(foundation, &name, tcp),
            pods_move(foundation, &controller, &local, &local_name),
        );
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn all_nodes_not_ready_at_once_keep_their_routes() {
    let statement =
        "all nodes not ready at once keep serving, with a finding; a deleted one leaves";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(3).await;
        let cluster = &foundation.cluster;
        let (service, name) = (foundation.name("dark/web"), foundation.name("dark"));
        cluster.service(&service, 30188).await.unwrap();
        cluster
            .label(&service, "http-route-sync", Some(&name))
            .await
            .unwrap();
        let _web = Web::start(&node_addresses(3, 30188), "served")
            .await
            .unwrap();
        let controller = foundation.controller().await;
        let host = foundation.host(&name);
        served_by(foundation, &host, &[1, 2, 3], 30188).await;

        let requests = HttpLoop::start(foundation.http(), &host);
        for node in ["n1", "n2", "n3"] {
            cluster.node_ready(node, "Unknown").await.unwrap();
        }
        controller.finding("nodes-not-ready-held", "").await;
        assert_eq!(
            backends(&foundation.http_routes().await, &host),
            at(&[1, 2, 3], 30188)
        );
        cluster.delete("Node", "", "n3").await.unwrap();
        served_by(foundation, &host, &[1, 2], 30188).await;
        let seen = requests.requests();
        eventually("some more requests", async || {
            requests.requests() > seen + 20
        })
        .await;
        requests.none_failed();
        assert_eq!(controller.stop().await, 0);
    });
}
