//! What others do to the routing API's table, seen by its events and mended.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use suite::{Controller, Foundation, Served, eventually, leads_to, on_each_stage, stays};

const DRIFTED: &str = "route_sync_tcp_rows_drifted_total";
const EVENTS: &str = "route_sync_routing_api_events_total";
const LISTS: &str = "route_sync_routing_api_lists_total";
const STREAMS: &str = "route_sync_routing_api_event_streams_total";

/// A controller that follows the events and has made the list that this calls for; and how many lists that took.
async fn following(controller: &Controller) -> f64 {
    eventually("the events are followed", async || {
        controller.metric(STREAMS, "").await >= 1.0 && controller.metric(LISTS, "").await >= 2.0
    })
    .await;
    controller.metric(LISTS, "").await
}

async fn identities(foundation: &Foundation, port: u16) -> Vec<Value> {
    let rows = foundation.rows_of(port).await;
    let mut guids: Vec<_> = rows
        .iter()
        .map(|row| row["modification_tag"]["guid"].clone())
        .collect();
    guids.sort_by_key(ToString::to_string);
    guids
}

#[test]
fn a_row_of_ours_that_somebody_deletes_returns_by_its_event() {
    let statement =
        "a row deleted by somebody returns by its event, no list made; six times is a conflict";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let served = Served::start(foundation, "robbed", 30240, 1).await;
        let controller = foundation.controller().await;
        served.open(foundation).await;
        let lists = following(&controller).await;
        for round in 1..=5 {
            let before = foundation.rows_of(served.port).await;
            assert_eq!(before.len(), 1, "{before:#?}");
            let old = identities(foundation, served.port).await;
            foundation.delete_row(before[0].clone()).await;
            eventually("another row in its place", async || {
                let new = identities(foundation, served.port).await;
                new.len() == 1 && new != old
            })
            .await;
            eventually("it is counted", async || {
                controller.metric(DRIFTED, "").await >= f64::from(round)
            })
            .await;
            leads_to(foundation, served.port, &served.line).await;
        }
        assert_eq!(controller.metric(LISTS, "").await, lists, "lists");
        assert!(!controller.has_finding("route-contested", "").await);
        let rows = foundation.rows_of(served.port).await;
        foundation.delete_row(rows[0].clone()).await;
        controller.finding("route-contested", &served.service).await;
        assert_eq!(foundation.rows_of(served.port).await, Vec::<Value>::new());
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_stranger_who_joins_is_named_by_his_event() {
    let statement =
        "a stranger who joins a live port is named at once and a ghost of ours goes, no list made";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let served = Served::start(foundation, "joined", 30241, 1).await;
        let controller = foundation.controller().await;
        served.open(foundation).await;
        let lists = following(&controller).await;
        let backend = SocketAddr::from(([10, 0, 0, 7], foundation.node_port(30242)));
        let mut row = foundation
            .row_by("somebody-else", served.port, backend, 120)
            .await;
        foundation.insert_row(row.clone()).await;
        controller.finding("foreign-joined", &served.service).await;
        assert_eq!(controller.metric(LISTS, "").await, lists, "lists");
        // Another port's row under our own mark, as an instance before us may have left it.
        let ours = foundation.rows_of(served.port).await;
        let ours = ours
            .iter()
            .find(|row| row["instance_id"] != "somebody-else");
        let ghost = foundation.port();
        row["port"] = ghost.into();
        row["instance_id"] = ours.expect("ours must stand")["instance_id"].clone();
        foundation.insert_row(row).await;
        eventually("the ghost is gone", async || {
            controller
                .metric("route_sync_tcp_rows_removed_total", "")
                .await
                >= 1.0
                && foundation.rows_of(ghost).await.is_empty()
        })
        .await;
        assert_eq!(foundation.rows_of(served.port).await.len(), 2);
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn in_a_steady_state_our_own_echoes_call_for_nothing() {
    let statement = "refreshes come back as events and cause no list, no write, no drift";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let served = Served::start(foundation, "echoed", 30243, 2).await;
        let controller = foundation
            .controller_with(|settings| settings.config["routing_api"]["ttl"] = "15s".into())
            .await;
        served.open(foundation).await;
        eventually("both rows stand", async || {
            foundation.rows_of(served.port).await.len() == 2
        })
        .await;
        let lists = following(&controller).await;
        let rows = identities(foundation, served.port).await;
        let heard = controller.metric(EVENTS, "").await;
        stays(Duration::from_secs(20), "the same rows", async || {
            identities(foundation, served.port).await == rows
        })
        .await;
        // Two rows, refreshed every 3.75 s.
        assert!(controller.metric(EVENTS, "").await >= heard + 6.0);
        assert_eq!(controller.metric(LISTS, "").await, lists);
        assert_eq!(controller.metric(STREAMS, "").await, 1.0);
        assert_eq!(controller.metric(DRIFTED, "").await, 0.0);
        assert_eq!(
            controller
                .metric("route_sync_tcp_rows_added_total", "")
                .await,
            2.0
        );
        assert_eq!(controller.stop().await, 0);
    });
}
