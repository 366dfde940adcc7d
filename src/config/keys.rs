//! Every key there is: one row here is one row of the table in `docs/reference.md`.
//!
//! The reader may ask only for keys of this table, so an undocumented key cannot exist; a test reads a file
//! that holds them all, so neither can a documented one that nobody reads.

use std::collections::BTreeSet;

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
        "how often is listed where `watch` is forbidden",
    ),
    key(
        "kubernetes.proxy_url",
        "none",
        "HTTP proxy for the apiserver; the environment's is not asked",
    ),
    key(
        "kubernetes.cluster_id",
        "UID of `kube-system`",
        "what names this cluster towards Cloud Foundry",
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
        "name to expect in the certificate, where servers are dialled by address",
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
        "state.dir",
        "none",
        "directory in which withdrawals survive a restart; TLS backends need it",
    ),
    key(
        "admin.listen",
        "127.0.0.1:9101",
        "address of `/live`, `/ready`, `/metrics`, `/status.json`; `off` for none",
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
        "original name of `uaa.skip_tls_verification` and `routing_api.skip_tls_verification`",
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
    /// Key paths.
    pub(super) twice: Vec<String>,
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
    match node {
        Node::Map(entries) => {
            let mut seen = BTreeSet::new();
            for (name, child) in entries {
                let child_path = join(path, name);
                if !seen.insert(name) {
                    strays.twice.push(child_path.clone());
                }
                let child_pattern = join(pattern, name);
                if is_known(&child_pattern) {
                    walk(child, &child_path, &child_pattern, strays);
                } else {
                    strays.unknown.push((child_path, suggestion(pattern, name)));
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
    let name = name.to_lowercase();
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

/// Levenshtein's: how many letters to add, drop or change.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
