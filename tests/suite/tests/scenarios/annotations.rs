//! Each annotation acts on the routers.

use counterparts::Nginx;
use futures::StreamExt;
use serde_json::{Value, json};
use suite::foundation::OTHER_GROUP;
use suite::poll::DEADLINE;
use suite::{
    Echo, Foundation, Stage, Web, answers, backends, eventually, http_get, node_addresses,
    on_each_stage, opens,
};
use tokio::time::Instant;

const HTTP: &str = "http-route-sync";
const TCP: &str = "tcp-route-sync";
/// A domain beside the app domain.
const OTHER_DOMAIN: &str = "other.test";

/// Waits until a request is answered 200 with this text.
async fn says(foundation: &Foundation, host: &str, path: &str, text: &str) {
    let mut last = (0, String::new());
    let end = Instant::now() + DEADLINE;
    while last != (200, text.to_owned()) {
        assert!(
            Instant::now() < end,
            "{host}{path} says {last:?}, not {text}"
        );
        last = http_get(foundation.http(), host, path).await;
    }
}

/// A labelled Service with annotations; the label's value counts only where no annotation replaces it.
async fn annotated(
    foundation: &Foundation,
    service: &str,
    label: (&str, &str),
    with: &[(&str, &str)],
) {
    for (annotation, value) in with {
        foundation
            .cluster
            .annotate(service, annotation, Some(value))
            .await
            .unwrap();
    }
    foundation
        .cluster
        .label(service, label.0, Some(label.1))
        .await
        .unwrap();
}

#[test]
fn http_domain_and_port_say_which_names_lead_where() {
    let statement =
        "annotations http (paths, ports, a granted wildcard, full names), domain and port act";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let cluster = &foundation.cluster;
        let (name, wild) = (foundation.name("listed"), foundation.name("wild"));
        let (full, domain) = (foundation.name("full"), foundation.name("domain"));
        let (service, other) = (foundation.name("names/web"), foundation.name("names/other"));
        let ports = json!({"ports": [
            {"name": "http", "port": 80, "nodePort": 30190},
            {"name": "admin", "port": 9000, "nodePort": 30191},
        ]});
        cluster.service_with(&service, ports.clone()).await.unwrap();
        let _site = Web::start(&node_addresses(2, 30190), "site").await.unwrap();
        let _admin = Web::start(&node_addresses(2, 30191), "admin")
            .await
            .unwrap();
        cluster
            .service_with(
                &other,
                json!({"ports": [
                    {"name": "http", "port": 80, "nodePort": 30192},
                    {"name": "second", "port": 81, "nodePort": 30193},
                ]}),
            )
            .await
            .unwrap();
        let _second = Web::start(&node_addresses(2, 30193), "second")
            .await
            .unwrap();
        let grant =
            json!({"namespaces": [service.split('/').next()], "hosts": [format!("*.{wild}")]});
        let controller = foundation
            .controller_with(|settings| {
                let domains = json!([counterparts::stack::APP_DOMAIN, OTHER_DOMAIN]);
                settings.config["routes"]["domains"] = domains;
                settings.config["policy"] = json!({"hosts": [grant]});
            })
            .await;

        let list = format!("{name}, admin={name}/admin, *.{wild}, {full}.{OTHER_DOMAIN}");
        annotated(foundation, &service, (HTTP, "replaced"), &[("http", &list)]).await;
        let host = foundation.host(&name);
        says(foundation, &host, "/", "site").await;
        says(foundation, &host, "/admin/users", "admin").await;
        says(
            foundation,
            &format!("any.{}", foundation.host(&wild)),
            "/",
            "site",
        )
        .await;
        says(foundation, &format!("{full}.{OTHER_DOMAIN}"), "/", "site").await;
        let replaced = foundation.host("replaced");
        assert_eq!(http_get(foundation.http(), &replaced, "/").await.0, 404);

        let with = [("domain", OTHER_DOMAIN), ("port", "second")];
        annotated(foundation, &other, (HTTP, &domain), &with).await;
        says(
            foundation,
            &format!("{domain}.{OTHER_DOMAIN}"),
            "/",
            "second",
        )
        .await;
        assert_eq!(
            http_get(foundation.http(), &foundation.host(&domain), "/")
                .await
                .0,
            404
        );
        // A wildcard that nobody granted is a finding and no route.
        cluster
            .annotate(&other, "http", Some("*.ungranted"))
            .await
            .unwrap();
        controller.finding("host-denied", &other).await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn tcp_router_group_and_max_backends_say_which_ports_lead_where() {
    let statement = "annotations tcp (several ports), router-group and max-backends act";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let (first, second) = (foundation.port(), foundation.port());
        // One for each stage, of the other group's range.
        let other = if foundation.stage == Stage::Real {
            2001
        } else {
            2002
        };
        let cluster = &foundation.cluster;
        let (service, single) = (
            foundation.name("ports/two"),
            foundation.name("ports/single"),
        );
        let ports = json!({"ports": [
            {"name": "main", "port": 5000, "nodePort": 30190},
            {"name": "admin", "port": 5001, "nodePort": 30191},
        ]});
        cluster.service_with(&service, ports).await.unwrap();
        cluster.service(&single, 30192).await.unwrap();
        let _main = Echo::start(&node_addresses(2, 30190), "main")
            .await
            .unwrap();
        let _admin = Echo::start(&node_addresses(2, 30191), "admin")
            .await
            .unwrap();
        let _single = Echo::start(&node_addresses(2, 30192), "single")
            .await
            .unwrap();
        let controller = foundation.controller().await;

        let list = format!("main={first}, 5001={second}");
        annotated(foundation, &service, (TCP, "replaced"), &[("tcp", &list)]).await;
        assert_eq!(opens(foundation.tcp(first)).await, "main");
        assert_eq!(opens(foundation.tcp(second)).await, "admin");

        let with = [("router-group", OTHER_GROUP.0), ("max-backends", "1")];
        annotated(foundation, &single, (TCP, &other.to_string()), &with).await;
        assert_eq!(opens(foundation.tcp(other)).await, "single");
        let rows = foundation.rows_of(other).await;
        assert_eq!(rows.len(), 1, "{rows:?}");
        let group = foundation.router_group_named(OTHER_GROUP.0).await;
        assert_eq!(rows[0]["router_group_guid"], group.as_str());
        cluster
            .annotate(&single, "max-backends", None)
            .await
            .unwrap();
        eventually("both nodes", async || {
            foundation.rows_of(other).await.len() == 2
        })
        .await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn loadbalancing_route_service_and_ready_endpoints_act() {
    let statement = "annotations loadbalancing, route-service-url and require-ready-endpoints act";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let cluster = &foundation.cluster;
        let (service, name) = (foundation.name("tuned/web"), foundation.name("tuned"));
        let host = foundation.host(&name);
        cluster.service(&service, 30194).await.unwrap();
        let _web = Web::start(&node_addresses(2, 30194), "tuned")
            .await
            .unwrap();
        let nats = foundation.stack.nats.connect().await.unwrap();
        let mut heard = nats.subscribe("router.register").await.unwrap();
        nats.flush().await.unwrap();
        cluster.endpoints(&service, &[], HTTP).await.unwrap();
        let controller = foundation.controller().await;

        // The handed-in gorouter may be older than the option's name (2025-01) and shows it nowhere:
        // what it was told is what can be seen.
        let with = [
            ("require-ready-endpoints", "true"),
            ("loadbalancing", "round-robin"),
        ];
        annotated(foundation, &service, (HTTP, &name), &with).await;
        controller.finding("no-ready-endpoint", &service).await;
        assert_eq!(backends(&foundation.http_routes().await, &host).len(), 0);
        cluster.endpoints(&service, &["n1"], HTTP).await.unwrap();
        answers(foundation.http(), &host, &[200]).await;
        // Ready anywhere is ready: any node forwards.
        eventually("both nodes", async || {
            backends(&foundation.http_routes().await, &host).len() == 2
        })
        .await;
        let mut told = Value::Null;
        eventually("gorouter is told the algorithm", async || {
            while let Ok(Some(message)) =
                tokio::time::timeout(std::time::Duration::from_millis(1), heard.next()).await
            {
                let message: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
                if message["uris"]
                    .as_array()
                    .is_some_and(|uris| uris.contains(&json!(host)))
                {
                    told = message["options"]["loadbalancing"].clone();
                }
            }
            told == "round-robin"
        })
        .await;

        let url = "https://route-service.test/";
        cluster
            .annotate(&service, "route-service-url", Some(url))
            .await
            .unwrap();
        eventually(
            "the route service stands in the router's table",
            async || {
                let routes = foundation.http_routes().await;
                let endpoints = routes[&host].as_array().cloned().unwrap_or_default();
                endpoints.len() == 2
                    && endpoints
                        .iter()
                        .all(|endpoint| endpoint["route_service_url"] == url)
            },
        )
        .await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn tls_server_name_and_protocol_reach_a_backend_that_speaks_tls() {
    let statement = "annotations tls-server-name and protocol: TLS with the name checked, HTTP/2";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let (cluster, stack) = (&foundation.cluster, &foundation.stack);
        let (service, name) = (foundation.name("tls/web"), foundation.name("tls"));
        let host = foundation.host(&name);
        cluster.service(&service, 30195).await.unwrap();
        let identity = stack.pki.issue(&["web.service.test"]).unwrap();
        let addresses = node_addresses(1, 30195);
        let _nginx = Nginx::start_tls(&stack.run, &addresses, "secure", &identity)
            .await
            .unwrap();
        let state = tempfile::tempdir().unwrap();
        let controller = foundation
            .controller_with(|settings| settings.config["state"] = json!({"dir": state.path()}))
            .await;

        // Both at once: gorouter keeps an endpoint's connections, and with them the protocol, for as long
        // as its server name stays the same (routing-release 2024-10).
        let with = [
            ("tls-server-name", "web.service.test"),
            ("protocol", "http2"),
        ];
        annotated(foundation, &service, (HTTP, &name), &with).await;
        // The sandbox's router speaks HTTP/1.1 only.
        let version = if foundation.stage == Stage::Real {
            "HTTP/2.0"
        } else {
            "HTTP/1.1"
        };
        says(foundation, &host, "/", &format!("secure over {version}")).await;
        let shown = foundation.http_routes().await[&host][0].clone();
        assert_eq!(shown["tls"], true, "{shown}");
        assert_eq!(shown["server_cert_domain_san"], "web.service.test");
        assert_eq!(shown["protocol"], "http2");
        // Another name than the certificate's: the router refuses the backend.
        cluster
            .annotate(&service, "tls-server-name", Some("else.service.test"))
            .await
            .unwrap();
        answers(foundation.http(), &host, &[503, 526]).await;
        cluster
            .annotate(&service, "tls-server-name", Some("web.service.test"))
            .await
            .unwrap();
        answers(foundation.http(), &host, &[200]).await;
        // No router prunes a TLS backend by age, so the withdrawal must be heard.
        cluster.label(&service, HTTP, None).await.unwrap();
        eventually("the backend leaves the router's table", async || {
            backends(&foundation.http_routes().await, &host).is_empty()
        })
        .await;
        assert_eq!(controller.stop().await, 0);
    });
}
