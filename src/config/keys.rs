//! Every key there is: one row here is one row of the table in `docs/reference.md`.
//!
//! The reader may ask only for keys of this table, so an undocumented key cannot exist; a test reads a file
//! that holds them all, so neither can a documented one that nobody reads.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::file::Node;

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its path; `[]` stands for each item of a list.
    pub path: &'static str,
    /// What it is when it is left out.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
}

const fn key(path: &'static str, default: &'static str, meaning: &'static str) -> Key {
    Key {
        path,
        default,
        meaning,
    }
}

/// Every key, in the order of the documentation.
pub const KEYS: &[Key] = &[
    key(
        "kubernetes.kubeconfig",
        "the pod's service account",
        "kubeconfig file with which the apiserver is reached",
    ),
    key(
        "kubernetes.rescan_interval",
        "5m",
        "how often everything is listed anew, whatever the watches say",
    ),
    key(
        "kubernetes.poll_interval",
        "15s",
        "how often everything is listed where `watch` is forbidden",
    ),
    key(
        "kubernetes.proxy_url",
        "none",
        "HTTP proxy for the apiserver; the environment's is not asked",
    ),
    key(
        "kubernetes.cluster_id",
        "UID of `kube-system`",
        "what names this cluster towards Cloud Foundry; where it is given, another cluster behind the same address is not noticed",
    ),
    key("uaa.url", "required", "base URL of the UAA"),
    key(
        "uaa.client_id",
        "required",
        "OAuth client with the scopes `routing.router_groups.read`, `routing.routes.read`, `routing.routes.write`",
    ),
    key("uaa.client_secret", "required", "its secret"),
    key(
        "uaa.client_secret_file",
        "none",
        "file that holds the secret instead",
    ),
    key(
        "uaa.ca_file",
        "the system's",
        "PEM file of the only authorities to trust",
    ),
    key(
        "uaa.skip_tls_verification",
        "false",
        "trust any certificate of the UAA",
    ),
    key(
        "routing_api.url",
        "required",
        "base URL of the routing API: `https://api.<system domain>`, or port 3001 with a client certificate",
    ),
    key(
        "routing_api.router_group",
        "default-tcp, else the only one of type tcp",
        "router group of TCP routes",
    ),
    key(
        "routing_api.ttl",
        "120s",
        "how long a TCP route lives without a refresh; 5s to 120s",
    ),
    key(
        "routing_api.instance_id",
        "a hash of the cluster's id, or of the static routes",
        "what marks our rows in the routing API's table, and what we delete there; up to 255 characters, and nobody else may have it but the other instances of the same controller",
    ),
    key(
        "routing_api.reserved_ports",
        "none",
        "ports of system components that no Service may claim, such as `2822,8853`; those of Cloud Foundry itself are always reserved",
    ),
    key(
        "routing_api.ca_file",
        "the system's",
        "PEM file of the only authorities to trust",
    ),
    key(
        "routing_api.client_cert_file",
        "none",
        "PEM file of the client certificate, leaf first",
    ),
    key("routing_api.client_key_file", "none", "PEM file of its key"),
    key(
        "routing_api.skip_tls_verification",
        "false",
        "trust any certificate of the routing API",
    ),
    key(
        "nats.servers[].host",
        "required",
        "name or address, `host:port`, or `nats://user:password@host:port`",
    ),
    key("nats.servers[].port", "4222", "port, where `host` has none"),
    key("nats.servers[].user", "`nats.user`", "user of this server"),
    key(
        "nats.servers[].password",
        "`nats.password`",
        "password of this server",
    ),
    key(
        "nats.servers[].password_file",
        "`nats.password_file`",
        "file that holds the password instead",
    ),
    key("nats.user", "none", "user of every server that names none"),
    key("nats.password", "none", "its password"),
    key(
        "nats.password_file",
        "none",
        "file that holds the password instead",
    ),
    key(
        "nats.tls.ca_file",
        "the system's",
        "PEM file of the only authorities to trust; any key of `nats.tls` makes TLS a demand",
    ),
    key(
        "nats.tls.cert_file",
        "none",
        "PEM file of the client certificate, leaf first",
    ),
    key("nats.tls.key_file", "none", "PEM file of its key"),
    key(
        "nats.tls.server_name",
        "the dialled host",
        "name to expect in the certificate, where servers are dialled by address; needs `nats.tls.ca_file`",
    ),
    key(
        "nats.interval",
        "20s",
        "time between two announcements while no router has told its own; 5s to 30s",
    ),
    key(
        "nats.messages_per_second",
        "5000",
        "announcements per second at most",
    ),
    key(
        "nats.send_app",
        "true",
        "send the Service's UID as `app`, so that gorouter's access logs have a source",
    ),
    key(
        "routes.app_domain",
        "required",
        "domain that hosts of the label `http-route-sync` stand in",
    ),
    key(
        "routes.domains[]",
        "the app domain",
        "domains whose names an annotation may write in full",
    ),
    key("routes.max_backends", "8", "nodes per HTTP route; 0 is all"),
    key(
        "routes.max_tcp_backends",
        "3",
        "nodes per TCP route; 0 is all",
    ),
    key(
        "routes.max_removals",
        "10",
        "as many routes of a lane may go within `routes.removals_window`; more are held, all of them, until approved",
    ),
    key(
        "routes.max_removals_percent",
        "30",
        "the same in hundredths of the lane; the larger of both counts, and 100 holds none for their number",
    ),
    key(
        "routes.removals_window",
        "60s",
        "removals within this time count together; 1s to 1h",
    ),
    key(
        "routes.address_family",
        "ipv4",
        "`ipv4` or `ipv6`; tcp-router drops IPv6 silently",
    ),
    key(
        "policy.hosts[].namespaces[]",
        "required",
        "namespaces that alone may claim these hosts; a trailing `*` stands for any ending",
    ),
    key(
        "policy.hosts[].hosts[]",
        "required",
        "hosts below the app domain, or full names; a leading `*.` grants the wildcard",
    ),
    key(
        "policy.ports[].namespaces[]",
        "required",
        "namespaces that alone may claim these router ports",
    ),
    key(
        "policy.ports[].ports",
        "required",
        "ports and ranges such as `1024-1033,2000`",
    ),
    key("tcp.enabled", "true", "whether TCP routes are published"),
    key(
        "tcp.on_foreign_backend",
        "hold",
        "`hold` or `join` a port that strangers already serve",
    ),
    key("http.enabled", "true", "whether HTTP routes are published"),
    key(
        "http.on_foreign_endpoint",
        "hold",
        "`hold` or `join` a host that strangers already serve, as far as NATS lets us hear their registrations",
    ),
    key(
        "state.dir",
        "none",
        "existing, writable directory in which routes and withdrawals survive a restart; TLS backends need it",
    ),
    key(
        "state.max_age",
        "10m",
        "how old the routes in `state.dir` may be to be announced before Kubernetes answers",
    ),
    key(
        "static_routes[].name",
        "required",
        "what logs, reports and findings call a TCP route to fixed backends; `kubernetes`, `nats`, `routes`, `policy`, `tcp`, `http` and `leader_election` cannot stand beside such routes",
    ),
    key(
        "static_routes[].port",
        "required",
        "its port at the TCP routers; whoever else serves that port is a peer",
    ),
    key(
        "static_routes[].backends[]",
        "required",
        "`ip:port` where it leads",
    ),
    key(
        "static_routes[].health.url",
        "none: always up",
        "who is asked whether the backends serve: the route is published after the first success, withdrawn after three failures in a row, and published again after the next success; of 401 and 403 three in a row count as one, and for `/readyz` a 404 is followed by `/healthz`",
    ),
    key(
        "static_routes[].health.ca_file",
        "the system's",
        "PEM file of the only authorities to trust",
    ),
    key(
        "static_routes[].health.server_name",
        "the dialled host",
        "name to expect in the certificate; needs `ca_file`",
    ),
    key(
        "static_routes[].health.cert_file",
        "none",
        "PEM file of the client certificate, leaf first",
    ),
    key(
        "static_routes[].health.key_file",
        "none",
        "PEM file of its key",
    ),
    key(
        "static_routes[].health.skip_tls_verification",
        "false",
        "trust any certificate of the server",
    ),
    key(
        "static_routes[].health.token_file",
        "none",
        "file of a bearer token to show",
    ),
    key(
        "static_routes[].health.interval",
        "5s",
        "time between two questions; 1s to 30s",
    ),
    key(
        "leader_election.enabled",
        "false",
        "whether several instances share the work by a Lease; without it each acts as the only one",
    ),
    key("leader_election.name", "route-sync", "name of the Lease"),
    key(
        "leader_election.namespace",
        "kube-system",
        "its namespace, which must exist",
    ),
    key(
        "leader_election.identity",
        "the host's name and a random number, the same again with `state.dir`",
        "what this instance is called in the Lease; no two may share one",
    ),
    key(
        "admin.listen",
        "127.0.0.1:9101",
        "address of `/live`, `/ready`, `/metrics`, `/status.json`, and, for callers on this machine alone, `/approve` and `/drain`; a kubelet's probes need one that they reach, such as `0.0.0.0:9101`; `off` for none: then `status`, `approve` and `drain` have nobody to ask",
    ),
    key(
        "metrics.listen",
        "off",
        "address of a second listener that serves `/metrics` alone, over mutual TLS, for scrapers of other machines, such as `0.0.0.0:9103`; `off` for none",
    ),
    key(
        "metrics.cert_file",
        "required with `metrics.listen`",
        "PEM file of its certificate, leaf first; this and the next two are read again when they change",
    ),
    key(
        "metrics.key_file",
        "required with `metrics.listen`",
        "PEM file of its key",
    ),
    key(
        "metrics.client_ca_file",
        "required with `metrics.listen`",
        "PEM file of the only authorities whose certificates scrapers may show",
    ),
    key(
        "log.format",
        "auto",
        "`text`, `lager`, or `auto`: text on a terminal, lager elsewhere",
    ),
    key(
        "log.level",
        "info",
        "a level, or a filter such as `info,route_sync::publish=debug`",
    ),
    key(
        "nats_servers[].host",
        "required",
        "original name of `nats.servers[].host`",
    ),
    key(
        "nats_servers[].user",
        "none",
        "original name of `nats.servers[].user`",
    ),
    key(
        "nats_servers[].password",
        "none",
        "original name of `nats.servers[].password`",
    ),
    key(
        "routing_api_url",
        "required",
        "original name of `routing_api.url`",
    ),
    key(
        "app_domain_name",
        "required",
        "original name of `routes.app_domain`",
    ),
    key("uaa_api_url", "required", "original name of `uaa.url`"),
    key(
        "routing_api_username",
        "required",
        "original name of `uaa.client_id`",
    ),
    key(
        "routing_api_client_secret",
        "required",
        "original name of `uaa.client_secret`",
    ),
    key(
        "skip_tls_verification",
        "false",
        "original name of `uaa.skip_tls_verification` and `routing_api.skip_tls_verification`; NATS servers are verified all the same",
    ),
    key(
        "kube_config_path",
        "the pod's service account",
        "original name of `kubernetes.kubeconfig`",
    ),
];

/// What does not stand in the table, and what stands twice.
#[derive(Default)]
pub(super) struct Strays {
    /// Key path and what may have been meant.
    pub(super) unknown: Vec<(String, Option<String>)>,
    /// Paths of keys that stand twice and say different things.
    pub(super) twice: Vec<String>,
    /// Paths of keys that say the same twice.
    pub(super) repeated: Vec<String>,
}

/// Walks the whole file.
pub(super) fn strays(root: &Node) -> Strays {
    let mut strays = Strays::default();
    walk(root, "", "", &mut strays);
    strays
}

/// Whether a key may be read at all.
pub(super) fn is_known(pattern: &str) -> bool {
    KEYS.iter().any(|key| {
        key.path
            .strip_prefix(pattern)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

fn walk(node: &Node, path: &str, pattern: &str, strays: &mut Strays) {
    // What stands here is a value, though it may look like a key: a password without quotes in braces.
    if KEYS.iter().any(|key| key.path == pattern) {
        return;
    }
    match node {
        Node::Map(entries) => {
            let mut seen = BTreeMap::new();
            for (name, child) in entries {
                let child_pattern = join(pattern, name);
                let known = is_known(&child_pattern);
                let told = if known { name.into() } else { shown(name) };
                let child_path = join(path, &told);
                match seen.insert(name, child) {
                    Some(before) if before == child => strays.repeated.push(child_path.clone()),
                    Some(_) => strays.twice.push(child_path.clone()),
                    None => {}
                }
                if known {
                    walk(child, &child_path, &child_pattern, strays);
                } else {
                    strays
                        .unknown
                        .push((child_path, suggestion(pattern, &told)));
                }
            }
        }
        Node::List(items) => {
            for (index, item) in items.iter().enumerate() {
                walk(
                    item,
                    &format!("{path}[{index}]"),
                    &format!("{pattern}[]"),
                    strays,
                );
            }
        }
        Node::Blank | Node::Scalar(_) | Node::Tagged => {}
    }
}

/// What may be told of a name that nobody knows: what stands behind the first character that no key has may be a
/// secret that lacks a blank, as in `{password:hunter2}`.
fn shown(name: &str) -> Cow<'_, str> {
    /// Twice the longest key there is.
    const SHOWN_BYTES_MAX: usize = 60;
    let of_keys = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '<');
    let end = name.find(|c| !of_keys(c)).unwrap_or(name.len());
    match &name[..end.min(SHOWN_BYTES_MAX)] {
        "" if name.is_empty() => Cow::Borrowed("\"\""),
        whole if whole == name => Cow::Borrowed(name),
        cut => Cow::Owned(format!("{cut}…")),
    }
}

/// A key's path below its group's.
pub(super) fn join(group: &str, name: &str) -> String {
    if group.is_empty() {
        name.to_owned()
    } else {
        format!("{group}.{name}")
    }
}

/// The key that was probably meant: the nearest of the same group, else the same name in another group.
fn suggestion(group: &str, name: &str) -> Option<String> {
    let siblings: BTreeSet<&str> = KEYS
        .iter()
        .filter_map(|key| match group {
            "" => Some(key.path),
            _ => key.path.strip_prefix(group)?.strip_prefix('.'),
        })
        .filter_map(|rest| rest.split(['.', '[']).next())
        .collect();
    let name = name.trim_end_matches('…').to_lowercase();
    let near = siblings
        .into_iter()
        .map(|sibling| (distance(&name, sibling), sibling))
        .min()
        .filter(|(distance, sibling)| *distance <= (sibling.len() / 3).max(1));
    if let Some((_, sibling)) = near {
        return Some(join(group, sibling));
    }
    let elsewhere = |key: &&Key| key.path.rsplit('.').next() == Some(name.as_str());
    KEYS.iter().find(elsewhere).map(|key| key.path.to_owned())
}

/// How many letters to add, drop, change or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let changed = rows[i][j] + usize::from(x != y);
            let mut least = changed.min(row[j] + 1).min(rows[i][j + 1] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
