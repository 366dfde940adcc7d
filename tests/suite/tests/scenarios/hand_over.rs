//! A name goes from one Service to another, and whoever uses it notices nothing.

use suite::{HttpLoop, Web, eventually, http_get, http_status, node_addresses, on_each_stage};

/// Requests that each loop makes on either side of the switch.
const REQUESTS: u64 = 40;

#[test]
fn a_host_and_a_port_change_hands_and_no_request_fails() {
    let statement = "the holder of a host and of a port is annotated with `hand-over-to`: the named Service serves \
                     both, not one request fails, and taking the annotation away changes nothing";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let (old, new) = (foundation.name("green/old"), foundation.name("blue/new"));
        let label = foundation.name("moved");
        let (host, port) = (foundation.host(&label), foundation.port());
        let ports = [foundation.node_port(30360), foundation.node_port(30361)];
        let mut webs = Vec::new();
        for ((service, node_port), text) in [&old, &new].into_iter().zip(ports).zip(["old", "new"])
        {
            let addresses = node_addresses(2, node_port);
            webs.push(Web::start(&addresses, text).await.unwrap());
            foundation
                .cluster
                .service(service, node_port)
                .await
                .unwrap();
        }
        let ask_for_both = async |service: &str| {
            for (lane, value) in [
                ("http-route-sync", label.clone()),
                ("tcp-route-sync", port.to_string()),
            ] {
                let labelled = foundation.cluster.label(service, lane, Some(&value));
                labelled.await.unwrap();
            }
        };
        ask_for_both(&old).await;
        let controller = foundation.controller().await;
        let fronts = [foundation.http(), foundation.tcp(port)];
        for front in fronts {
            eventually("the old one answers", async || {
                http_status(front, &host).await == 200
            })
            .await;
        }
        ask_for_both(&new).await;
        controller.finding("host-conflict", &new).await;
        controller.finding("port-conflict", &new).await;

        let loops = fronts.map(|front| HttpLoop::start(front, &host));
        let go_on = async |requests: u64| {
            let from = loops.each_ref().map(HttpLoop::requests);
            eventually("requests are made", async || {
                let mut made = loops.iter().zip(from);
                made.all(|(it, from)| it.requests() >= from + requests)
            })
            .await;
        };
        go_on(REQUESTS).await;
        let annotate = |to: Option<&str>| {
            let to = to.map(str::to_owned);
            let (cluster, old) = (&foundation.cluster, &old);
            async move {
                cluster
                    .annotate(old, "hand-over-to", to.as_deref())
                    .await
                    .unwrap()
            }
        };
        annotate(Some(&new)).await;
        for front in fronts {
            eventually("the new one alone answers", async || {
                for _ in 0..8 {
                    if http_get(front, &host, "/").await != (200, "new".to_owned()) {
                        return false;
                    }
                }
                true
            })
            .await;
        }
        eventually("rows of the new one alone stand", async || {
            let rows = foundation.rows_of(port).await;
            !rows.is_empty() && rows.iter().all(|row| row["backend_port"] == ports[1])
        })
        .await;
        for code in ["host-conflict", "port-conflict"] {
            assert!(!controller.has_finding(code, "").await, "{code}");
        }
        annotate(None).await;
        controller.finding("host-conflict", &old).await;
        go_on(REQUESTS).await;
        for front in fronts {
            assert_eq!(http_get(front, &host, "/").await, (200, "new".to_owned()));
        }
        for one in loops {
            one.none_failed();
        }
        assert_eq!(controller.stop().await, 0);
    });
}
