//! Nothing changes, so nothing happens.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use suite::{
    Echo, Foundation, FrontTimes, HttpFront, HttpLoop, TcpLoop, Web, answers, eventually,
    node_addresses, on_each_stage, opens,
};
use tokio::time::Instant;

/// The shortest that the controller takes.
const TTL: Duration = Duration::from_secs(5);
/// The router has done what earlier scenarios left it when it has not reloaded for so long.
const CALM: Duration = Duration::from_secs(2);

/// What makes a row the same row.
async fn rows(foundation: &Foundation) -> BTreeSet<String> {
    let key = |row: &Value| {
        format!(
            "{} {}:{}",
            row["port"], row["backend_ip"], row["backend_port"]
        )
    };
    let rows = foundation.rows().await;
    let keys: BTreeSet<_> = rows.iter().map(key).collect();
    assert_eq!(keys.len(), rows.len(), "a row stands twice: {rows:?}");
    keys
}

async fn calm(foundation: &Foundation) -> usize {
    let mut last = (foundation.reloads(), Instant::now());
    eventually("the TCP router has nothing left to do", async || {
        let reloads = foundation.reloads();
        if reloads != last.0 {
            last = (reloads, Instant::now());
        }
        last.1.elapsed() > CALM
    })
    .await;
    last.0
}

#[test]
fn twelve_routes_live_through_five_ttls_untouched() {
    let statement = "twelve routes through five TTLs: no failed request, no reload, no extra row";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let times = FrontTimes {
            start_delay: Duration::from_secs(1),
            // Shorter than what is looked at, longer than a busy machine keeps a beat back.
            stale_threshold: 2 * TTL,
        };
        let front = HttpFront::start(foundation, &foundation.stack.nats, times)
            .await
            .unwrap();
        let ports: Vec<u16> = (0..6).map(|_| foundation.port()).collect();
        let hosts: Vec<_> = (0..6)
            .map(|index| foundation.name(&format!("steady{index}")))
            .collect();
        let cluster = &foundation.cluster;
        let (mut webs, mut echoes) = (Vec::new(), Vec::new());
        for (index, (port, host)) in (0..).zip(ports.iter().zip(&hosts)) {
            let (http, tcp) = (30160 + index, 30170 + index);
            let service = foundation.name(&format!("steady/web{index}"));
            cluster.service(&service, http).await.unwrap();
            cluster
                .label(&service, "http-route-sync", Some(host))
                .await
                .unwrap();
            webs.push(
                Web::start(&node_addresses(2, http), "steady")
                    .await
                    .unwrap(),
            );
            let service = foundation.name(&format!("steady/echo{index}"));
            cluster.service(&service, tcp).await.unwrap();
            cluster
                .label(&service, "tcp-route-sync", Some(&port.to_string()))
                .await
                .unwrap();
            echoes.push(
                Echo::start(&node_addresses(2, tcp), "steady")
                    .await
                    .unwrap(),
            );
        }
        let controller = foundation
            .controller_with(|settings| settings.config["routing_api"]["ttl"] = "5s".into())
            .await;
        let hosts: Vec<_> = hosts.iter().map(|host| foundation.host(host)).collect();
        for (port, host) in ports.iter().zip(&hosts) {
            opens(foundation.tcp(*port)).await;
            answers(front.address(), host, &[200]).await;
        }
        let reloads = calm(foundation).await;
        let before = rows(foundation).await;
        assert_eq!(before.len(), 12, "{before:?}");
        let tcp: Vec<_> = ports
            .iter()
            .map(|port| TcpLoop::start(foundation.tcp(*port)))
            .collect();
        let http: Vec<_> = hosts
            .iter()
            .map(|host| HttpLoop::start(front.address(), host))
            .collect();

        // Not waited for but lived through.
        tokio::time::sleep(5 * TTL).await;

        for one in tcp {
            one.none_failed();
        }
        for one in http {
            one.none_failed();
        }
        assert_eq!(foundation.reloads(), reloads, "HAProxy was reloaded");
        assert_eq!(rows(foundation).await, before);
        assert_eq!(controller.stop().await, 0);
    });
}
