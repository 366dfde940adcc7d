//! Labelling a Service opens its port on the tcp-router, and unlabelling closes it.

use std::time::Duration;

use counterparts::stack::SYSTEM_DOMAIN;
use counterparts::{MariaDb, mariadb::MariaDbOptions};
use serde_json::{Value, json};
use suite::served::TCP_LABEL;
use suite::{
    Echo, Foundation, Served, TcpLoop, closes, eventually, leads_to, on_each_stage, on_nodes,
    on_real_stage, stays,
};
use tokio::process::Command;

/// The port of the mysql example.
const MYSQL: u16 = 34569;
const PASSWORD: &str = "swordfish";

/// Written by this controller, as every row of its must be.
fn ours(row: &Value) -> bool {
    row["backend_tls_port"] == -1
        && row["instance_id"]
            .as_str()
            .is_some_and(|id| id.starts_with("rs-"))
}

/// The backends of a port, every one of them ours.
async fn backends(foundation: &Foundation, port: u16) -> Vec<String> {
    let rows = foundation.rows_of(port).await;
    assert!(rows.iter().all(ours), "{rows:#?}");
    let mut ips: Vec<String> = rows
        .iter()
        .map(|row| row["backend_ip"].as_str().unwrap_or_default().to_owned())
        .collect();
    ips.sort();
    ips
}

/// What a person at a terminal would do, with the client that Debian ships.
async fn log_in(port: u16) -> Option<String> {
    let output = Command::new("mariadb")
        .args([
            "--no-defaults",
            "--host=127.0.0.1",
            "--user=app",
            "--connect-timeout=5",
        ])
        .arg(format!("--port={port}"))
        .arg(format!("--password={PASSWORD}"))
        .args([
            "--batch",
            "--skip-column-names",
            "--execute",
            "SELECT 6 * 7",
        ])
        .kill_on_drop(true)
        .output()
        .await
        .expect("`mariadb` must be installed");
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn the_mysql_example_takes_a_login_through_the_tcp_router() {
    let statement =
        "a mysql client logs in through the tcp-router, over mTLS :3001 with UAA's token";
    on_each_stage(statement, async |foundation| {
        let cluster = &foundation.cluster;
        foundation.nodes(1).await;
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/mysql.yml");
        let example = std::fs::read_to_string(example).unwrap();
        let applied = cluster.apply_manifest(&example).await.unwrap();
        let service = applied
            .iter()
            .find(|object| object["kind"] == "Service")
            .unwrap();
        let node_port = service["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
        let options = MariaDbOptions {
            bind: [10, 0, 0, 1].into(),
            port: Some(u16::try_from(node_port).unwrap()),
            init: vec![format!(
                "CREATE USER IF NOT EXISTS app@'%' IDENTIFIED BY '{PASSWORD}'"
            )],
        };
        let _mysql = MariaDb::start(&foundation.stack.run, options)
            .await
            .unwrap();
        let controller = foundation.controller().await;

        eventually("a login succeeds", async || {
            log_in(MYSQL).await.as_deref() == Some("42")
        })
        .await;
        assert_eq!(backends(foundation, MYSQL).await, ["10.0.0.1"]);
        cluster.delete("Service", "default", "mysql").await.unwrap();
        eventually("no login succeeds", async || log_in(MYSQL).await.is_none()).await;
        assert_eq!(backends(foundation, MYSQL).await, [""; 0]);
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn the_foundations_public_entry_serves_as_well() {
    // The sandbox's HTTP router has no TLS front; `https://api.<system domain>` is gorouter's own.
    let statement = "TCP routes go through https://api.<system domain> too";
    on_real_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        foundation.stack.register_api().await.unwrap();
        let served = Served::start(foundation, "entry", 30200, 1).await;
        let url = format!(
            "https://api.{SYSTEM_DOMAIN}:{}",
            foundation.gorouter().tls_address().port()
        );
        let controller = foundation
            .controller_with(|settings| {
                let ca = settings.config["routing_api"]["ca_file"].clone();
                settings.config["routing_api"] = json!({"url": url, "ca_file": ca});
            })
            .await;
        served.open(foundation).await;
        assert_eq!(backends(foundation, served.port).await, ["10.0.0.1"]);
        served.unlabel(foundation).await;
        closes(foundation, served.port).await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_port_follows_its_label_and_its_rows_are_deleted_outright() {
    let statement = "label, relabel and unlabel open, move and close a port on every node";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let served = Served::start(foundation, "follow", 30201, 2).await;
        let other = foundation.port();
        let controller = foundation.controller().await;
        closes(foundation, served.port).await;

        served.open(foundation).await;
        let both = ["10.0.0.1", "10.0.0.2"];
        eventually("both nodes have a row", async || {
            backends(foundation, served.port).await == both
        })
        .await;
        served.label_with(foundation, &other.to_string()).await;
        leads_to(foundation, other, &served.line).await;
        closes(foundation, served.port).await;
        assert_eq!(backends(foundation, served.port).await, [""; 0]);
        served.unlabel(foundation).await;
        closes(foundation, other).await;
        // Gone long before the 120 s after which they would have lapsed.
        assert_eq!(backends(foundation, other).await, [""; 0]);
        served.open(foundation).await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_backend_is_replaced_without_an_empty_pool() {
    let statement =
        "while a Service's pod moves, its port always has a row and every connection succeeds";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let served = Served::start(foundation, "replace", 30202, 2).await;
        let cluster = &foundation.cluster;
        let (namespace, name) = served.service.split_once('/').unwrap();
        let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
        cluster
            .patch("Service", namespace, name, &local)
            .await
            .unwrap();
        cluster
            .endpoints(&served.service, &["n1"], TCP_LABEL)
            .await
            .unwrap();
        let controller = foundation.controller().await;
        served.open(foundation).await;
        assert_eq!(backends(foundation, served.port).await, ["10.0.0.1"]);

        let clients = TcpLoop::start(foundation.tcp(served.port));
        for (node, ip) in [("n2", "10.0.0.2"), ("n1", "10.0.0.1"), ("n2", "10.0.0.2")] {
            cluster
                .endpoints(&served.service, &[node], TCP_LABEL)
                .await
                .unwrap();
            eventually("the row has moved", async || {
                let rows = backends(foundation, served.port).await;
                assert!(!rows.is_empty(), "the pool is empty");
                rows == [ip]
            })
            .await;
        }
        clients.none_failed();
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_lower_max_ttl_is_adopted_and_refreshed_well_within() {
    let statement = "a routing API with a max_ttl of 8 s keeps its routes";
    on_each_stage(statement, async |foundation| {
        foundation.set_max_ttl(8).await;
        foundation.nodes(1).await;
        let served = Served::start(foundation, "short", 30203, 1).await;
        let controller = foundation.controller().await;
        served.open(foundation).await;
        let ttls = async |foundation: &Foundation| -> Vec<Value> {
            foundation
                .rows_of(served.port)
                .await
                .iter()
                .map(|row| row["ttl"].clone())
                .collect()
        };
        assert_eq!(ttls(foundation).await, [8]);
        let clients = TcpLoop::start(foundation.tcp(served.port));
        stays(Duration::from_secs(12), "the row stands", async || {
            ttls(foundation).await.len() == 1
        })
        .await;
        clients.none_failed();
        assert_eq!(
            controller
                .metric("route_sync_tcp_rows_drifted_total", "")
                .await,
            0.0
        );
        // A row that lapsed by itself would be pruned, with a reload, in the middle of the next scenario.
        served.unlabel(foundation).await;
        closes(foundation, served.port).await;
        assert_eq!(controller.stop().await, 0);
        foundation.set_max_ttl(120).await;
    });
}

#[test]
fn a_stop_and_a_kill_keep_every_row_and_a_start_takes_them_over() {
    let statement = "rows outlive SIGTERM and SIGKILL; a start adopts them without a reload";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let served = Served::start(foundation, "adopt", 30204, 2).await;
        let controller = foundation.controller().await;
        served.open(foundation).await;
        eventually("both nodes have a row", async || {
            backends(foundation, served.port).await.len() == 2
        })
        .await;
        let clients = TcpLoop::start(foundation.tcp(served.port));
        let identity = async |foundation: &Foundation| -> Vec<(Value, Value)> {
            let rows = foundation.rows_of(served.port).await;
            let mut rows: Vec<_> = rows
                .iter()
                .map(|row| {
                    (
                        row["backend_ip"].clone(),
                        row["modification_tag"]["guid"].clone(),
                    )
                })
                .collect();
            rows.sort_by_key(|(ip, _)| ip.to_string());
            rows
        };
        // The second row's reload may still be under way.
        settled(foundation).await;
        let (before, reloads) = (identity(foundation).await, foundation.reloads());
        assert_eq!(controller.stop().await, 0);
        assert_eq!(identity(foundation).await, before);

        let mut controller = foundation.controller().await;
        for end in ["TERM", "KILL"] {
            eventually("the rows are refreshed", async || {
                controller
                    .metric("route_sync_tcp_rows_refreshed_total", "")
                    .await
                    >= 2.0
            })
            .await;
            assert_eq!(identity(foundation).await, before, "after SIG{end}");
            assert_eq!(foundation.reloads(), reloads, "after SIG{end}");
            assert_eq!(
                controller
                    .metric("route_sync_tcp_rows_added_total", "")
                    .await,
                0.0
            );
            if end == "TERM" {
                controller.kill_and_start().await.unwrap();
                controller.ready().await;
            }
        }
        clients.none_failed();
        assert_eq!(controller.stop().await, 0);
    });
}

/// Waits until the tcp-router reloads no more: a change of the table is seen a little later there.
async fn settled(foundation: &Foundation) {
    let mut last = (foundation.reloads(), tokio::time::Instant::now());
    eventually("the tcp-router is at rest", async || {
        if foundation.reloads() != last.0 {
            last = (foundation.reloads(), tokio::time::Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(5)
    })
    .await;
}

#[test]
fn a_dead_second_port_harms_no_other() {
    let statement = "a Service without anything behind it takes nothing from its neighbours";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let served = Served::start(foundation, "alive", 30205, 1).await;
        let dead = foundation.name("dead/dead");
        let dead_port = foundation.port();
        let node_port = foundation.node_port(30206);
        foundation.cluster.service(&dead, node_port).await.unwrap();
        let controller = foundation.controller().await;
        let value = dead_port.to_string();
        foundation
            .cluster
            .label(&dead, TCP_LABEL, Some(&value))
            .await
            .unwrap();
        served.open(foundation).await;
        assert_eq!(backends(foundation, dead_port).await, ["10.0.0.1"]);
        // It answers as soon as something is there: nothing was held back.
        let _echo = Echo::start(&on_nodes(1, node_port), "late").await.unwrap();
        leads_to(foundation, dead_port, "late").await;
        assert_eq!(controller.stop().await, 0);
    });
}
