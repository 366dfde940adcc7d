//! Labelling a Service makes it reachable through gorouter, and unlabelling makes it unreachable.

use std::time::Duration;

use counterparts::{NatsServer, NatsServerOptions, Nginx};
use serde_json::{Value, json};
use suite::foundation::EXAMPLE_TOKEN;
use suite::{
    Foundation, FrontTimes, HttpFront, HttpLoop, Web, answers, eventually, example, http_get,
    http_status, node_addresses, on_each_stage,
};

const LABEL: &str = "http-route-sync";

/// Applies an example; its Service as `namespace/name`, and the node port that the apiserver picked.
async fn apply_example(foundation: &Foundation, name: &str) -> (String, u16) {
    let applied = foundation
        .cluster
        .apply_manifest(&example(name))
        .await
        .unwrap();
    let service = applied
        .iter()
        .find(|object| object["kind"] == "Service")
        .unwrap();
    let text = |key: &str| service["metadata"][key].as_str().unwrap();
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    (
        format!("{}/{}", text("namespace"), text("name")),
        u16::try_from(port).unwrap(),
    )
}

#[test]
fn the_nginx_example_is_reachable_while_it_is_labelled() {
    let statement = "the nginx example answers 200 by its label, 404 without, over mTLS NATS";
    on_each_stage(statement, async |foundation| {
        let cluster = &foundation.cluster;
        foundation.nodes(2).await;
        let (service, port) = apply_example(foundation, "nginx.yml").await;
        let (namespace, name) = service.split_once('/').unwrap();
        cluster.label(&service, LABEL, None).await.unwrap();
        let _nginx = Nginx::start(&foundation.stack.run, &node_addresses(2, port), "hello")
            .await
            .unwrap();
        let controller = foundation.controller().await;

        let host = foundation.host("nginx");
        answers(foundation.http(), &host, &[404]).await;
        cluster.label(&service, LABEL, Some("nginx")).await.unwrap();
        answers(foundation.http(), &host, &[200]).await;
        cluster.label(&service, LABEL, None).await.unwrap();
        answers(foundation.http(), &host, &[404, 503]).await;
        cluster.label(&service, LABEL, Some("nginx")).await.unwrap();
        answers(foundation.http(), &host, &[200]).await;
        cluster.delete("Service", namespace, name).await.unwrap();
        answers(foundation.http(), &host, &[404, 503]).await;
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
        let _web = Web::start(&node_addresses(2, 30101), "moved")
            .await
            .unwrap();
        let controller = foundation.controller().await;
        let (old, new) = (foundation.name("old"), foundation.name("new"));
        let (old_host, new_host) = (foundation.host(&old), foundation.host(&new));

        cluster.label(&service, LABEL, Some(&old)).await.unwrap();
        answers(foundation.http(), &old_host, &[200]).await;
        // Both names at once, then the new one alone: the way to move without a gap.
        cluster
            .annotate(&service, "http", Some(&format!("{old},{new}")))
            .await
            .unwrap();
        answers(foundation.http(), &new_host, &[200]).await;
        let new_loop = HttpLoop::start(foundation.http(), &new_host);
        let old_loop = HttpLoop::start(foundation.http(), &old_host);
        tokio::time::sleep(Duration::from_millis(500)).await;
        old_loop.none_failed();
        cluster.label(&service, LABEL, Some(&new)).await.unwrap();
        cluster.annotate(&service, "http", None).await.unwrap();
        answers(foundation.http(), &old_host, &[404, 503]).await;
        new_loop.none_failed();
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn the_grafana_and_tomcat_examples_are_reachable_as_they_are() {
    let statement = "the grafana and tomcat examples answer by their hosts as they are";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let controller = foundation.controller().await;
        let (grafana, port) = apply_example(foundation, "grafana.yml").await;
        assert_eq!(grafana, "kube-system/grafana");
        let _grafana = Web::start(&node_addresses(2, port), "dashboards")
            .await
            .unwrap();
        let (_, port) = apply_example(foundation, "tomcat.yml").await;
        let _tomcat = Web::start(&node_addresses(2, port), "servlets")
            .await
            .unwrap();

        for (label, text) in [("grafana", "dashboards"), ("tomcat-example", "servlets")] {
            let host = foundation.host(label);
            answers(foundation.http(), &host, &[200]).await;
            assert_eq!(http_get(foundation.http(), &host, "/").await.1, text);
        }
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn the_example_role_lacks_no_right() {
    let statement = "with the rights of examples/rbac.yml the controller misses none";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        foundation
            .cluster
            .apply_manifest(&example("rbac.yml"))
            .await
            .unwrap();
        let slices = "/apis/discovery.k8s.io/v1/endpointslices";
        for path in ["/api/v1/nodes", slices, "/api/v1/namespaces/kube-system"] {
            foundation.cluster.may_get(EXAMPLE_TOKEN, path).await;
        }
        let service = foundation.name("role/web");
        let name = foundation.name("role");
        foundation.cluster.service(&service, 30102).await.unwrap();
        foundation
            .cluster
            .label(&service, LABEL, Some(&name))
            .await
            .unwrap();
        let _web = Web::start(&node_addresses(1, 30102), "allowed")
            .await
            .unwrap();
        let kubeconfig = foundation.stack.apiserver.kubeconfig(EXAMPLE_TOKEN);
        let controller = foundation
            .controller_with(|settings| {
                settings.kubeconfig = kubeconfig;
                settings.config["leader_election"] = json!({"enabled": true});
            })
            .await;

        answers(foundation.http(), &foundation.host(&name), &[200]).await;
        // Its right to the Lease takes a moment to count; until then it acts as the only one.
        eventually("it holds the Lease", async || {
            let status = controller.status().await;
            status["lease"]["role"] == "active" && status["lease"]["generation"].is_u64()
        })
        .await;
        eventually("every source is watched", async || {
            let status = controller.status().await;
            let sources = status["sources"].as_object().cloned().unwrap_or_default();
            let watched = |source: &Value| source["synced"] == true && source["mode"] == "watch";
            !sources.is_empty() && sources.values().all(watched)
        })
        .await;
        assert_eq!(
            controller.messages("right-missing").await,
            Vec::<String>::new()
        );
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn over_plain_nats_it_works_as_it_did_and_a_restarted_router_is_told_at_once() {
    let statement = "over plain NATS: 200 by the label, 404 without; a restarted gorouter has every \
                     route when it begins to serve";
    on_each_stage(statement, async |foundation| {
        const ROUTES: u16 = 10;
        /// Shorter than the interval between two beats, which never falls below 5 s where routers
        /// keep routes for long: who knows every route by then was told them by `router.start`.
        const START_DELAY: Duration = Duration::from_secs(3);
        let (cluster, stack) = (&foundation.cluster, &foundation.stack);
        foundation.nodes(2).await;
        let plain = NatsServerOptions {
            mutual_tls: false,
            ..NatsServerOptions::default()
        };
        let nats = NatsServer::start(&stack.run, &stack.pki, plain)
            .await
            .unwrap();
        let times = FrontTimes {
            start_delay: START_DELAY,
            stale_threshold: Duration::from_secs(120),
        };
        let mut front = HttpFront::start(foundation, &nats, times).await.unwrap();
        let mut webs = Vec::new();
        for index in 0..ROUTES {
            let port = 30110 + index;
            cluster
                .service(&foundation.name(&format!("plain/web{index}")), port)
                .await
                .unwrap();
            webs.push(Web::start(&node_addresses(2, port), "plain").await.unwrap());
        }
        let address = nats.address().to_string();
        let controller = foundation
            .controller_with(|settings| {
                settings.config["nats"] = json!({
                    "servers": [{"host": address}],
                    "user": nats.options().user, "password": nats.options().password,
                });
            })
            .await;

        let names: Vec<_> = (0..ROUTES)
            .map(|index| foundation.name(&format!("plain{index}")))
            .collect();
        let hosts: Vec<_> = names.iter().map(|name| foundation.host(name)).collect();
        answers(front.address(), &hosts[0], &[404]).await;
        for (index, name) in names.iter().enumerate() {
            let service = foundation.name(&format!("plain/web{index}"));
            cluster.label(&service, LABEL, Some(name)).await.unwrap();
        }
        for host in &hosts {
            answers(front.address(), host, &[200]).await;
        }
        // Of two restarts, because a busy machine may hold up what is told within that second.
        let mut restarts = 0;
        eventually("a restarted router knows all when it serves", async || {
            restarts += 1;
            assert!(restarts <= 2, "not when it served");
            front.restart().await.unwrap();
            // Until it serves nothing answers at all.
            eventually("the router serves", async || {
                http_get(front.address(), "nobody.test", "/").await.0 != 0
            })
            .await;
            let looks = hosts.iter().map(|host| http_status(front.address(), host));
            let all = futures::future::join_all(looks).await;
            all.iter().all(|status| *status == 200)
        })
        .await;
        let first = foundation.name("plain/web0");
        cluster.label(&first, LABEL, None).await.unwrap();
        answers(front.address(), &hosts[0], &[404, 503]).await;
        assert_eq!(controller.stop().await, 0);
    });
}
