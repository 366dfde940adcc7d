//! Several ports on one Service, several Services on one name.

use serde_json::json;
use suite::{
    Echo, HttpLoop, TcpLoop, Web, answers, eventually, http_get, node_addresses, on_each_stage,
    opens, tcp_line,
};

#[test]
fn one_port_of_a_multi_port_service_is_routed() {
    let statement =
        "of several ports the one that speaks HTTP is routed, else the first with a warning";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let router_port = foundation.port();
        let cluster = &foundation.cluster;
        let service = foundation.name("multi/web");
        let name = foundation.name("multi");
        let ports = json!({"ports": [
            {"name": "admin", "port": 9000, "nodePort": 30181},
            {"name": "http", "port": 80, "nodePort": 30182},
        ]});
        cluster.service_with(&service, ports).await.unwrap();
        cluster
            .label(&service, "http-route-sync", Some(&name))
            .await
            .unwrap();
        let port = router_port.to_string();
        cluster
            .label(&service, "tcp-route-sync", Some(&port))
            .await
            .unwrap();
        let _web = Web::start(&node_addresses(2, 30182), "the site")
            .await
            .unwrap();
        let _echo = Echo::start(&node_addresses(2, 30181), "the first")
            .await
            .unwrap();
        let controller = foundation.controller().await;

        let host = foundation.host(&name);
        answers(foundation.http(), &host, &[200]).await;
        for _ in 0..8 {
            assert_eq!(
                http_get(foundation.http(), &host, "/").await,
                (200, "the site".to_owned())
            );
        }
        assert_eq!(opens(foundation.tcp(router_port)).await, "the first");
        controller.finding("port-ambiguous", &service).await;
        // The annotation says it for both lanes.
        cluster
            .annotate(&service, "port", Some("http"))
            .await
            .unwrap();
        eventually("the warning goes", async || {
            !controller.has_finding("port-ambiguous", &service).await
        })
        .await;
        eventually("both backends of the port are the named one", async || {
            let rows = foundation.rows_of(router_port).await;
            rows.len() == 2 && rows.iter().all(|row| row["backend_port"] == 30182)
        })
        .await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_host_that_two_services_want_stays_with_the_first_until_it_goes() {
    let statement = "of two Services on one host the first serves it, without a failed request, and the \
                     second takes over when it goes";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let cluster = &foundation.cluster;
        let (first, second) = (
            foundation.name("contest/first"),
            foundation.name("contest/second"),
        );
        let name = foundation.name("contest");
        let host = foundation.host(&name);
        for (service, port) in [(&first, 30183), (&second, 30184)] {
            cluster.service(service, port).await.unwrap();
        }
        let _first = Web::start(&node_addresses(2, 30183), "first")
            .await
            .unwrap();
        let _second = Web::start(&node_addresses(2, 30184), "second")
            .await
            .unwrap();
        let controller = foundation.controller().await;
        let label = "http-route-sync";
        cluster.label(&first, label, Some(&name)).await.unwrap();
        answers(foundation.http(), &host, &[200]).await;

        let requests = HttpLoop::start(foundation.http(), &host);
        cluster.label(&second, label, Some(&name)).await.unwrap();
        controller.finding("host-conflict", &second).await;
        let told = controller.messages("host-conflict").await;
        assert!(
            told.iter().any(|message| message.contains(&first)),
            "{told:?}"
        );
        let so_far = requests.requests();
        eventually("some more requests", async || {
            requests.requests() > so_far + 20
        })
        .await;
        assert_eq!(http_get(foundation.http(), &host, "/").await.1, "first");
        requests.none_failed();

        cluster.label(&first, label, None).await.unwrap();
        eventually("the second takes over", async || {
            http_get(foundation.http(), &host, "/").await == (200, "second".to_owned())
        })
        .await;
        eventually("the finding goes", async || {
            !controller.has_finding("host-conflict", &second).await
        })
        .await;
        for _ in 0..8 {
            assert_eq!(
                http_get(foundation.http(), &host, "/").await,
                (200, "second".to_owned())
            );
        }
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_port_that_two_services_want_stays_with_the_first_until_it_goes() {
    let statement = "of two Services on one port the first serves it, without a failed connection, and \
                     the second takes over when it goes";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let router_port = foundation.port();
        let cluster = &foundation.cluster;
        let (first, second) = (
            foundation.name("ports/first"),
            foundation.name("ports/second"),
        );
        for (service, port) in [(&first, 30185), (&second, 30186)] {
            cluster.service(service, port).await.unwrap();
        }
        let _first = Echo::start(&node_addresses(2, 30185), "first")
            .await
            .unwrap();
        let _second = Echo::start(&node_addresses(2, 30186), "second")
            .await
            .unwrap();
        let controller = foundation.controller().await;
        let (label, port) = ("tcp-route-sync", router_port.to_string());
        cluster.label(&first, label, Some(&port)).await.unwrap();
        assert_eq!(opens(foundation.tcp(router_port)).await, "first");

        let requests = TcpLoop::start(foundation.tcp(router_port));
        // The same number in other digits is the same port.
        cluster
            .label(&second, label, Some(&format!("0{port}")))
            .await
            .unwrap();
        controller.finding("port-conflict", &second).await;
        eventually("some more connections", async || requests.requests() > 20).await;
        requests.none_failed();
        assert_eq!(foundation.rows_of(router_port).await.len(), 2);

        cluster
            .delete(
                "Service",
                first.split('/').next().unwrap(),
                first.split('/').nth(1).unwrap(),
            )
            .await
            .unwrap();
        eventually("the second takes over", async || {
            tcp_line(foundation.tcp(router_port)).await.as_deref() == Some("second")
        })
        .await;
        eventually("only its rows stand", async || {
            let rows = foundation.rows_of(router_port).await;
            rows.len() == 2 && rows.iter().all(|row| row["backend_port"] == 30186)
        })
        .await;
        assert!(!controller.has_finding("port-conflict", &second).await);
        assert_eq!(controller.stop().await, 0);
    });
}
