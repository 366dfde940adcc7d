//! Every key of the table, changed in a file of its own: it changes at once, or waits and is named.

use std::path::Path;

use serde_json::{Value, json};

use super::super::{Config, KEYS, KubernetesConfig, NatsConfig, Surroundings};
use super::at_start;

/// A file with every key that another key does not stand in for.
fn full() -> Value {
    json!({
        "kubernetes": {
            "kubeconfig": "/kubeconfig", "rescan_interval": "5m", "poll_interval": "15s",
            "proxy_url": "http://10.0.0.9:3128", "cluster_id": "c",
        },
        "uaa": {
            "url": "https://uaa.test", "client_id": "id", "client_secret": "secret",
            "ca_file": "/ca", "skip_tls_verification": "false",
        },
        "routing_api": {
            "url": "https://api.test", "router_group": "default-tcp", "ttl": "120s", "instance_id": "rs-1",
            "reserved_ports": "2822", "ca_file": "/ca", "client_cert_file": "/cert",
            "client_key_file": "/key", "skip_tls_verification": "false",
        },
        "nats": {
            "servers": [{"host": "10.0.0.1", "port": "4222", "user": "a", "password": "b"}],
            "user": "u", "password": "p",
            "tls": {"ca_file": "/ca", "cert_file": "/cert", "key_file": "/key", "server_name": "n.test"},
            "interval": "20s", "messages_per_second": "5000", "send_app": "true",
        },
        "routes": {
            "app_domain": "apps.test", "domains": ["apps.test"], "max_backends": "8",
            "max_tcp_backends": "3", "address_family": "ipv4", "max_removals": "10",
            "max_removals_percent": "30", "removals_window": "60s",
        },
        "policy": {
            "hosts": [{"namespaces": ["a"], "hosts": ["b"]}],
            "ports": [{"namespaces": ["a"], "ports": "2000"}],
        },
        "tcp": {"enabled": "true", "on_foreign_backend": "hold"},
        "http": {"enabled": "true", "on_foreign_endpoint": "hold"},
        "leader_election": {"enabled": "true", "name": "route-sync", "namespace": "kube-system", "identity": "a"},
        "state": {"dir": "/state", "max_age": "10m"},
        "admin": {"listen": "127.0.0.1:9101"},
        "metrics": {
            "listen": "127.0.0.1:9103", "cert_file": "/cert", "key_file": "/key", "client_ca_file": "/ca",
        },
        "log": {"format": "auto", "level": "info"},
    })
}

/// Another value of each key.
const OTHERS: &[(&str, &str)] = &[
    ("kubernetes.kubeconfig", "/other"),
    ("kubernetes.rescan_interval", "6m"),
    ("kubernetes.poll_interval", "16s"),
    ("kubernetes.proxy_url", "http://10.0.0.8:3128"),
    ("kubernetes.cluster_id", "d"),
    ("uaa.url", "https://uaa.other.test"),
    ("uaa.client_id", "other"),
    ("uaa.client_secret", "other"),
    ("uaa.ca_file", "/other"),
    ("uaa.skip_tls_verification", "true"),
    ("routing_api.url", "https://api.other.test"),
    ("routing_api.router_group", "other"),
    ("routing_api.ttl", "60s"),
    ("routing_api.instance_id", "rs-2"),
    ("routing_api.reserved_ports", "2823"),
    ("routing_api.ca_file", "/other"),
    ("routing_api.client_cert_file", "/other"),
    ("routing_api.client_key_file", "/other"),
    ("routing_api.skip_tls_verification", "true"),
    ("nats.servers[].host", "10.0.0.2"),
    ("nats.servers[].port", "4223"),
    ("nats.servers[].user", "other"),
    ("nats.servers[].password", "other"),
    ("nats.tls.ca_file", "/other"),
    ("nats.tls.cert_file", "/other"),
    ("nats.tls.key_file", "/other"),
    ("nats.tls.server_name", "other.test"),
    ("nats.interval", "10s"),
    ("nats.messages_per_second", "4000"),
    ("nats.send_app", "false"),
    ("routes.app_domain", "other.test"),
    ("routes.domains[]", "other.test"),
    ("routes.max_backends", "7"),
    ("routes.max_tcp_backends", "2"),
    ("routes.max_removals", "11"),
    ("routes.max_removals_percent", "31"),
    ("routes.removals_window", "61s"),
    ("routes.address_family", "ipv6"),
    ("routes.max_removals", "9"),
    ("routes.max_removals_percent", "20"),
    ("routes.removals_window", "50s"),
    ("policy.hosts[].namespaces[]", "other"),
    ("policy.hosts[].hosts[]", "other"),
    ("policy.ports[].namespaces[]", "other"),
    ("policy.ports[].ports", "2001"),
    ("tcp.enabled", "false"),
    ("tcp.on_foreign_backend", "join"),
    ("http.enabled", "false"),
    ("http.on_foreign_endpoint", "join"),
    ("leader_election.enabled", "false"),
    ("leader_election.name", "other"),
    ("leader_election.namespace", "other"),
    ("leader_election.identity", "b"),
    ("state.dir", "/other"),
    ("state.max_age", "11m"),
    ("admin.listen", "127.0.0.1:9102"),
    ("metrics.listen", "127.0.0.1:9104"),
    ("metrics.cert_file", "/other"),
    ("metrics.key_file", "/other"),
    ("metrics.client_ca_file", "/other"),
    ("log.format", "text"),
    ("log.level", "debug"),
];

/// Keys of the table that only stand in for another one, which decides.
fn stands_in(path: &str) -> bool {
    let original = !path.contains('.') || path.starts_with("nats_servers[].");
    original
        // Tried in a file of their own.
        || path.starts_with("static_routes[].")
        || path.ends_with("secret_file")
        || path.ends_with("password_file")
        // For servers that name none.
        || matches!(path, "nats.user" | "nats.password")
}

fn parse(file: &Value) -> Config {
    let surroundings = Surroundings {
        in_pod: false,
        files: false,
    };
    let text = file.to_string();
    Config::parse(&text, Path::new("f"), surroundings).unwrap_or_else(|error| panic!("{error}"))
}

fn kubernetes(config: &Config) -> &KubernetesConfig {
    &config.source.cluster().unwrap().kubernetes
}

fn nats(config: &Config) -> Option<&NatsConfig> {
    config.source.cluster().unwrap().nats.as_ref()
}

fn with(path: &str, value: &str) -> Config {
    let mut file = full();
    let mut node = &mut file;
    for name in path.split('.') {
        let (name, lists) = (name.trim_end_matches("[]"), name.matches("[]").count());
        node = &mut node[name];
        for _ in 0..lists {
            node = &mut node[0];
        }
    }
    assert!(!node.is_null(), "`{path}` must stand in the file");
    *node = json!(value);
    parse(&file)
}

#[test]
fn every_key_changes_at_once_or_waits_and_is_named() {
    let running = parse(&full());
    for (path, other) in OTHERS {
        let file = with(path, other);
        assert_ne!(file, running, "`{path}` must make a difference");
        let (next, waiting) = running.reloaded(file.clone());
        if at_start(path) {
            assert_eq!(waiting, [*path]);
            // Warnings and reserved hosts follow the file and disturb nobody.
            let (again, _) = next.reloaded(parse(&full()));
            assert_eq!(
                (kubernetes(&again), nats(&again)),
                (kubernetes(&running), nats(&running))
            );
            assert_eq!(
                (next.uaa, next.routing_api),
                (running.uaa.clone(), running.routing_api.clone()),
                "`{path}`"
            );
            assert_eq!(
                (next.admin, next.metrics, next.state_dir),
                (
                    running.admin,
                    running.metrics.clone(),
                    running.state_dir.clone()
                )
            );
        } else {
            assert_eq!(waiting, [""; 0], "`{path}`");
            assert_eq!(next, file, "`{path}` must change at once");
        }
    }
}

#[test]
fn every_key_of_the_table_is_tried() {
    for key in KEYS {
        let tried = OTHERS.iter().any(|(path, _)| *path == key.path);
        assert!(tried || stands_in(key.path), "`{}`", key.path);
    }
}

#[test]
fn static_routes_wait_for_a_start_whatever_changes_in_them() {
    let file = |route: Value| {
        let mut file = full();
        let kept = ["uaa", "routing_api", "state", "admin", "metrics", "log"];
        let groups = file.as_object_mut().unwrap();
        groups.retain(|group, _| kept.contains(&group.as_str()));
        file["static_routes"] = json!([route]);
        parse(&file)
    };
    let route = json!({
        "name": "a", "port": "6443", "backends": ["10.0.0.1:1"],
        "health": {
            "url": "https://127.0.0.1:1", "ca_file": "/ca", "server_name": "a.test", "cert_file": "/cert",
            "key_file": "/key", "skip_tls_verification": "false", "token_file": "/t", "interval": "5s",
        },
    });
    let running = file(route.clone());
    for (path, other) in [
        ("/name", json!("b")),
        ("/port", json!("6444")),
        ("/backends/0", json!("10.0.0.2:1")),
        ("/health/url", json!("https://127.0.0.1:2")),
        ("/health/ca_file", json!("/other")),
        ("/health/server_name", json!("b.test")),
        ("/health/skip_tls_verification", json!("true")),
        ("/health/interval", json!("6s")),
    ] {
        let mut changed = route.clone();
        *changed.pointer_mut(path).unwrap() = other;
        let (next, waiting) = running.reloaded(file(changed));
        assert_eq!(
            (next.source, waiting),
            (running.source.clone(), vec!["static_routes"]),
            "{path}"
        );
    }
    let (next, waiting) = running.reloaded(parse(&full()));
    assert_eq!(next.source, running.source);
    assert_eq!(waiting, ["static_routes"]);
    assert!(at_start("static_routes[].health.ca_file") && at_start("routing_api.instance_id"));
}

#[test]
fn an_unchanged_file_changes_nothing() {
    let running = parse(&full());
    assert_eq!(running.reloaded(running.clone()), (running, Vec::new()));
}

#[test]
fn a_host_in_use_stays_reserved_while_its_key_waits() {
    let running = parse(&full());
    let (next, waiting) = running.reloaded(with("routing_api.url", "https://api.other.test"));
    assert_eq!(waiting, ["routing_api.url"]);
    let routes = &next.source.cluster().unwrap().routes;
    for host in ["api.test", "api.other.test"] {
        let reserved = routes.reserved_hosts.iter();
        assert!(reserved.into_iter().any(|it| it.as_str() == host), "{host}");
    }
}
