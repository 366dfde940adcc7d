//! How fast rows come and go: a reload of HAProxy each, for every tenant of the foundation.

use std::time::Duration;

use futures::{StreamExt, stream};
use serde_json::json;
use suite::served::TCP_LABEL;
use suite::{Controller, Foundation, Served, eventually, on_each_stage, stays, tcp_line};
use tokio::time::Instant;

/// Routes of the cold start, and the first of their ports.
const BULK: u16 = 500;
const BULK_FROM: u16 = 1500;
/// Rows after which a backlog of reloads would show: five seconds of the cold start.
const WELL_UNDER_WAY: usize = 40;
/// Services labelled while it goes on, one after the other.
const SAMPLES: usize = 5;

/// Services that all want a port at once; their node ports are the cluster's choice.
async fn bulk(foundation: &Foundation) {
    let namespace = foundation.name("bulk");
    foundation.cluster.namespace(&namespace).await.unwrap();
    let (cluster, namespace) = (&foundation.cluster, &namespace);
    stream::iter(BULK_FROM..BULK_FROM + BULK)
        .for_each_concurrent(16, async |port| {
            let service = json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {
                    "name": format!("bulk-{port}"), "namespace": namespace,
                    "labels": {TCP_LABEL: port.to_string()},
                },
                "spec": {"type": "NodePort", "ports": [{"port": 80}]},
            });
            cluster.apply(&service).await.unwrap();
        })
        .await;
}

/// How long it took from the label to the first line through the router.
async fn measure(foundation: &Foundation, served: &Served) -> Duration {
    let started = Instant::now();
    served.open(foundation).await;
    started.elapsed()
}

/// Nothing of the cold start is left for later scenarios: neither rows, nor reloads under way.
async fn end_bulk(foundation: &mut Foundation) {
    foundation.clear().await.unwrap();
    eventually("the ports of the cold start are closed", async || {
        for port in BULK_FROM..BULK_FROM + BULK {
            if tokio::net::TcpStream::connect(foundation.tcp(port))
                .await
                .is_ok()
            {
                return false;
            }
        }
        true
    })
    .await;
}

#[test]
fn a_service_labelled_during_a_cold_start_does_not_wait_for_its_end() {
    let statement =
        "a Service labelled during a cold start of 500 routes does not wait for its end";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let mut single = Vec::new();
        for (index, node_port) in (30240..).take(SAMPLES).enumerate() {
            let name = format!("single{index}");
            single.push(Served::start(foundation, &name, node_port, 1).await);
        }
        bulk(foundation).await;
        let controller: Controller = foundation.unready_controller(|_| {}).await;
        eventually("the cold start has begun", async || {
            foundation.rows().await.len() > WELL_UNDER_WAY
        })
        .await;
        let mut times = Vec::new();
        for served in &single {
            times.push(measure(foundation, served).await);
        }
        let rows = foundation.rows().await.len();
        times.sort();
        println!("label to line during a cold start ({rows} rows so far): {times:?}");
        // One second each (and up to four on a machine that is busy); whoever waits behind the others, at the API or
        // for reloads that pile up at the router, sees nearly all of the cold start pass first.
        assert!(rows < usize::from(BULK / 2), "{rows} rows went first");
        assert_eq!(controller.stop().await, 0);
        end_bulk(foundation).await;
    });
}

#[test]
fn a_service_that_flips_its_label_is_held_and_harms_no_one() {
    let statement =
        "a label that flips all the time is held; others open, nothing more is reloaded";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let restless = Served::start(foundation, "restless", 30245, 1).await;
        let calm = Served::start(foundation, "calm", 30246, 1).await;
        let late = Served::start(foundation, "late", 30247, 1).await;
        let controller = foundation.controller().await;
        calm.open(foundation).await;
        let flip = async |foundation: &Foundation, on: bool| {
            if on {
                restless.label(foundation).await
            } else {
                restless.unlabel(foundation).await
            }
        };
        let mut on = false;
        eventually("it is held", async || {
            on = !on;
            flip(foundation, on).await;
            // Long enough that each is a change of its own.
            tokio::time::sleep(Duration::from_millis(100)).await;
            controller.has_finding("flapping", &restless.service).await
        })
        .await;
        // What was let through may still be on its way.
        let held = async |foundation: &Foundation| foundation.rows_of(restless.port).await.len();
        late.open(foundation).await;
        let mut seen = (held(foundation).await, Instant::now());
        eventually("its last state stands", async || {
            let now = held(foundation).await;
            if now != seen.0 {
                seen = (now, Instant::now());
            }
            seen.1.elapsed() > Duration::from_secs(1)
        })
        .await;
        let reloads = foundation.reloads();
        stays(Duration::from_secs(2), "nothing is reloaded", async || {
            on = !on;
            flip(foundation, on).await;
            foundation.reloads() == reloads && held(foundation).await == seen.0
        })
        .await;
        for served in [&calm, &late] {
            let line = tcp_line(foundation.tcp(served.port)).await;
            assert_eq!(line.as_deref(), Some(served.line.as_str()));
        }
        assert_eq!(controller.stop().await, 0);
    });
}
