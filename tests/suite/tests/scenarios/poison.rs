//! A label nobody can make sense of harms nobody but its own Service.

use std::time::Duration;

use suite::{
    Echo, FrontTimes, HttpFront, HttpLoop, TcpLoop, Web, answers, node_addresses, on_each_stage,
    opens,
};

/// The shortest that the controller takes.
const TTL: Duration = Duration::from_secs(5);
/// Several beats, which are a quarter of it apart, and a machine that stands still for seconds.
const THRESHOLD: Duration = Duration::from_secs(10);
const GOOD: u16 = 10;

#[test]
fn a_poisoned_port_leaves_ten_good_ones_alone() {
    let statement = "poisoned TCP labels are findings, and ten good routes live through three TTLs";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let bad = [
            ("70000", "port-out-of-range"),
            ("99999999999999999999", "port-out-of-range"),
            ("-5", ""),
            ("letters", "port-not-a-number"),
            ("", "port-not-a-number"),
        ];
        let ports: Vec<u16> = (0..GOOD).map(|_| foundation.port()).collect();
        let cluster = &foundation.cluster;
        let mut echoes = Vec::new();
        for (index, port) in (0..).zip(&ports) {
            let service = foundation.name(&format!("poison/good{index}"));
            cluster.service(&service, 30120 + index).await.unwrap();
            cluster
                .label(&service, "tcp-route-sync", Some(&port.to_string()))
                .await
                .unwrap();
            echoes.push(
                Echo::start(&node_addresses(2, 30120 + index), "good")
                    .await
                    .unwrap(),
            );
        }
        for (index, (value, code)) in bad.iter().enumerate() {
            let service = foundation.name(&format!("poison/bad{index}"));
            cluster
                .service(&service, 30130 + u16::try_from(index).unwrap())
                .await
                .unwrap();
            let labelled = cluster.label(&service, "tcp-route-sync", Some(value)).await;
            // The apiserver itself refuses what does not begin with a letter or digit.
            assert_eq!(
                labelled.is_err(),
                code.is_empty(),
                "`{value}`: {labelled:?}"
            );
        }
        // What a label cannot say an annotation can.
        let dashed = foundation.name("poison/bad2");
        cluster.annotate(&dashed, "tcp", Some("-5")).await.unwrap();
        cluster
            .label(&dashed, "tcp-route-sync", Some("annotated"))
            .await
            .unwrap();
        let controller = foundation
            .controller_with(|settings| settings.config["routing_api"]["ttl"] = "5s".into())
            .await;

        for port in &ports {
            opens(foundation.tcp(*port)).await;
        }
        let loops: Vec<_> = ports
            .iter()
            .map(|port| TcpLoop::start(foundation.tcp(*port)))
            .collect();
        for (index, (_, code)) in bad.iter().enumerate() {
            let code = if code.is_empty() {
                "port-not-a-number"
            } else {
                code
            };
            controller
                .finding(code, &foundation.name(&format!("poison/bad{index}")))
                .await;
        }
        // Not waited for but lived through.
        tokio::time::sleep(3 * TTL).await;
        for one in loops {
            one.none_failed();
        }
        let known: Vec<u64> = foundation
            .rows()
            .await
            .iter()
            .filter_map(|row| row["port"].as_u64())
            .collect();
        assert!(
            known
                .iter()
                .all(|port| ports.iter().any(|good| u64::from(*good) == *port)),
            "{known:?}"
        );
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_poisoned_host_leaves_ten_good_ones_alone() {
    let statement = "poisoned hosts are findings, upper case is lower-cased, and ten good routes live \
                     through three stale thresholds";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let cluster = &foundation.cluster;
        let times = FrontTimes {
            start_delay: Duration::from_secs(1),
            stale_threshold: THRESHOLD,
        };
        let front = HttpFront::start(foundation, &foundation.stack.nats, times)
            .await
            .unwrap();
        let label = "http-route-sync";
        let bad = [
            ("api", "host-denied"),
            ("", "host-invalid"),
            ("under_score", "host-invalid"),
        ];
        let mut webs = Vec::new();
        let mut names: Vec<_> = (0..GOOD)
            .map(|index| foundation.name(&format!("good{index}")))
            .collect();
        names.push(foundation.name("UPPER"));
        for (port, name) in (30140..).zip(&names) {
            let service = foundation.name(&format!("hosts/web{port}"));
            cluster.service(&service, port).await.unwrap();
            cluster.label(&service, label, Some(name)).await.unwrap();
            webs.push(Web::start(&node_addresses(2, port), name).await.unwrap());
        }
        for (port, (value, _)) in (30151..).zip(&bad) {
            let service = foundation.name(&format!("hosts/bad{port}"));
            cluster.service(&service, port).await.unwrap();
            cluster.label(&service, label, Some(value)).await.unwrap();
        }
        // A label holds 63 characters; the annotation any number.
        let long = foundation.name("hosts/long");
        cluster.service(&long, 30159).await.unwrap();
        cluster
            .annotate(&long, "http", Some(&"l".repeat(64)))
            .await
            .unwrap();
        cluster.label(&long, label, Some("long")).await.unwrap();
        let controller = foundation.controller().await;

        let hosts: Vec<_> = names
            .iter()
            .map(|name| foundation.host(&name.to_lowercase()))
            .collect();
        for host in &hosts {
            answers(front.address(), host, &[200]).await;
        }
        let loops: Vec<_> = hosts
            .iter()
            .map(|host| HttpLoop::start(front.address(), host))
            .collect();
        for (port, (_, code)) in (30151..).zip(&bad) {
            controller
                .finding(code, &foundation.name(&format!("hosts/bad{port}")))
                .await;
        }
        controller.finding("host-invalid", &long).await;
        // Not waited for but lived through.
        tokio::time::sleep(3 * THRESHOLD).await;
        for one in loops {
            one.none_failed();
        }
        let table = front.routes().await;
        let ours =
            |uri: &&String| uri.starts_with("api") || uri.contains("long") || uri.contains('_');
        let strays: Vec<_> = table.as_object().unwrap().keys().filter(ours).collect();
        assert!(strays.is_empty(), "{strays:?}");
        assert_eq!(controller.stop().await, 0);
    });
}
