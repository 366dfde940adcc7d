//! Rows that are not ours: an older job's, and strangers'.

use std::net::SocketAddr;

use serde_json::Value;
use suite::{Echo, Foundation, Served, closes, eventually, leads_to, on_each_stage, within};

/// Somebody else's row and who answers behind it, at an address that no Node of the cluster has.
async fn stranger(foundation: &Foundation, port: u16, backend_port: u16) -> Echo {
    let backend = SocketAddr::from(([10, 0, 0, 7], backend_port));
    let row = foundation.row_by("somebody-else", port, backend, 120).await;
    foundation.insert_row(row).await;
    Echo::start(&[backend], "theirs").await.unwrap()
}

fn mine(row: &Value) -> bool {
    row["instance_id"]
        .as_str()
        .is_some_and(|id| id.starts_with("rs-"))
}

#[test]
fn rows_of_an_older_job_never_stand_beside_ours() {
    let statement = "an older job's rows are waited out: HAProxy never sees one backend twice";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let served = Served::start(foundation, "cutover", 30230, 1).await;
        let refused = foundation.refused_reloads();
        let backend = SocketAddr::from(([10, 0, 0, 1], served.node_port));
        let old = foundation
            .row_of_the_old_job(served.port, backend, 25)
            .await;
        foundation.insert_row(old).await;
        leads_to(foundation, served.port, &served.line).await;
        served.label(foundation).await;
        let controller = foundation.unready_controller(|_| {}).await;
        controller.finding("legacy-rows", &served.service).await;

        within(
            std::time::Duration::from_secs(90),
            "our row stands alone",
            async || {
                let rows = foundation.rows_of(served.port).await;
                let (ours, theirs): (Vec<_>, Vec<_>) = rows.iter().partition(|row| mine(row));
                assert!(
                    ours.is_empty() || theirs.is_empty(),
                    "side by side: {rows:#?}"
                );
                ours.len() == 1 && ours[0]["backend_tls_port"] == -1
            },
        )
        .await;
        leads_to(foundation, served.port, &served.line).await;
        // A file that HAProxy refuses stops everybody's changes.
        let next = Served::start(foundation, "aftercut", 30231, 1).await;
        next.open(foundation).await;
        assert_eq!(foundation.refused_reloads(), refused);
        eventually("the finding is gone", async || {
            !controller.has_finding("legacy-rows", "").await
        })
        .await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_port_that_strangers_serve_is_neither_joined_nor_touched() {
    let statement = "a port with foreign rows is held and told; theirs are never deleted";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let served = Served::start(foundation, "late", 30232, 1).await;
        let _theirs = stranger(foundation, served.port, foundation.node_port(30233)).await;
        leads_to(foundation, served.port, "theirs").await;
        let controller = foundation.controller().await;
        served.label(foundation).await;
        controller.finding("foreign-backend", &served.service).await;
        served.unlabel(foundation).await;
        eventually("the finding is gone", async || {
            !controller.has_finding("foreign-backend", "").await
        })
        .await;
        let rows = foundation.rows_of(served.port).await;
        assert!(
            rows.len() == 1 && rows[0]["instance_id"] == "somebody-else",
            "{rows:#?}"
        );
        leads_to(foundation, served.port, "theirs").await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_stranger_who_joins_a_live_port_is_told_and_nobody_is_put_out() {
    let statement =
        "a stranger who joins our port is told; ours stays, theirs stays after ours is gone";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let served = Served::start(foundation, "first", 30234, 1).await;
        let other = Served::start(foundation, "other", 30235, 1).await;
        let controller = foundation.controller().await;
        served.open(foundation).await;
        other.open(foundation).await;
        let _theirs = stranger(foundation, served.port, foundation.node_port(30236)).await;
        // The table is read again after every deletion.
        other.unlabel(foundation).await;
        controller.finding("foreign-joined", &served.service).await;
        closes(foundation, other.port).await;
        let rows = foundation.rows_of(served.port).await;
        assert_eq!(
            (rows.len(), rows.iter().filter(|row| mine(row)).count()),
            (2, 1),
            "{rows:#?}"
        );

        served.unlabel(foundation).await;
        eventually("only theirs is left", async || {
            let rows = foundation.rows_of(served.port).await;
            assert!(rows.iter().any(|row| !mine(row)), "theirs is gone");
            rows.len() == 1
        })
        .await;
        leads_to(foundation, served.port, "theirs").await;
        assert_eq!(controller.stop().await, 0);
    });
}
