//! `static_routes`: TCP routes to fixed backends, which no cluster is asked for.
//!
//! Keys that belong to a cluster's routes or to NATS are refused beside them, so that a process has one source of
//! its table. The mark of its rows is decided here as well: without a cluster, the routes themselves tell who it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::meaning::host;
use super::read::{Field, Group, Reader};
use super::scalar;
use super::{Secret, TlsConfig};
use crate::plan::InstanceId;
use crate::plan::admission::LOWEST_PORT;
use crate::route::{Backend, Backends, NodePort, NodeUid, RouterPort, is_dns_label, stable_hash};

/// More are no registrar but a table, which Services with labels are for.
const ROUTES_MAX: usize = 100;
/// As many as there may be masters; each is a row, and each row a reload of HAProxy.
const BACKENDS_MAX: usize = 100;
/// Half of what a kubelet waits between two probes.
const INTERVAL: Duration = Duration::from_secs(5);
/// Below, the questions would be the load; above, clients were sent to a dead backend for minutes.
const INTERVALS: std::ops::RangeInclusive<Duration> =
    std::ops::RangeInclusive::new(Duration::from_secs(1), Duration::from_secs(30));

/// Groups and original names that tell of a cluster's routes or of how they are announced.
const ELSEWHERE: &[&str] = &[
    "kubernetes",
    "nats",
    "routes",
    "policy",
    "tcp",
    "http",
    "leader_election",
    "nats_servers",
    "app_domain_name",
    "kube_config_path",
];

/// One TCP route to fixed backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticRoute {
    /// What logs, reports and findings call it.
    pub name: String,
    /// The port of the tcp-routers.
    pub port: RouterPort,
    /// Where it leads.
    pub backends: Backends,
    /// When it may be published; `None` is always.
    pub health: Option<HealthConfig>,
}

/// Who is asked whether a route's backends serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// Any answer of success counts.
    pub url: reqwest::Url,
    /// How the server is judged, and what we show of ourselves.
    pub tls: TlsConfig,
    /// A bearer token, if any; read again from its file before each question.
    pub token: Option<Secret>,
    /// The time from one answer to the next question.
    pub interval: Duration,
}

/// Every key of the file that cannot stand beside static routes.
pub(super) fn refuse_others(reader: &mut Reader, root: &Group<'_>) {
    for name in ELSEWHERE {
        if root.says(name) {
            let hint = "static routes need no cluster and no NATS; labelled Services are another process's affair";
            let message = "cannot stand beside `static_routes`";
            reader.wrong_hint((*name).to_owned(), message, hint);
        }
    }
}

/// Reads the list. What is wrong is left out and noted.
pub(super) fn static_routes(
    reader: &mut Reader,
    root: &Group<'_>,
    warnings: &mut Vec<String>,
) -> Vec<StaticRoute> {
    let groups = reader.groups(root, "static_routes").ok();
    let groups = groups.unwrap_or_default();
    if !(1..=ROUTES_MAX).contains(&groups.len()) {
        let message = format!("must name one to {ROUTES_MAX} routes");
        reader.wrong("static_routes".to_owned(), message);
    }
    let mut routes: Vec<StaticRoute> = Vec::new();
    for group in groups {
        let Some(route) = static_route(reader, &group, warnings) else {
            continue;
        };
        for (key, twice) in [
            ("name", routes.iter().any(|other| other.name == route.name)),
            ("port", routes.iter().any(|other| other.port == route.port)),
        ] {
            if twice {
                reader.wrong(group.path_of(key), "is another static route's as well");
            }
        }
        routes.push(route);
    }
    routes
}

fn static_route(
    reader: &mut Reader,
    group: &Group<'_>,
    warnings: &mut Vec<String>,
) -> Option<StaticRoute> {
    let name = reader.parsed(group, "name", |text| {
        let told = is_dns_label(text).then(|| text.to_owned());
        told.ok_or_else(|| {
            format!(
                "`{}` is no name: up to 63 lower-case letters, digits and dashes",
                scalar::clip(text)
            )
        })
    });
    let port = reader.parsed(group, "port", |text| {
        let port = RouterPort::new(scalar::port_number(text)?);
        let port = port.filter(|port| port.get() >= LOWEST_PORT);
        port.ok_or_else(|| format!("must be {LOWEST_PORT} or above, as no router group has others"))
    });
    for (key, missing) in [("name", name.is_absent()), ("port", port.is_absent())] {
        if missing {
            reader.wrong(group.path_of(key), "is missing");
        }
    }
    let backends = backends(reader, group, warnings);
    let health = if group.says("health") {
        let health = reader.group(group, "health");
        Some(self::health(reader, &health, warnings)?)
    } else {
        None
    };
    Some(StaticRoute {
        name: name.ok()?,
        port: port.ok()?,
        backends: backends?,
        health,
    })
}

fn backends(
    reader: &mut Reader,
    group: &Group<'_>,
    warnings: &mut Vec<String>,
) -> Option<Backends> {
    let texts = reader.texts(group, "backends");
    let wrong = matches!(texts, Field::Wrong);
    let texts = texts.ok().unwrap_or_default();
    if !wrong && !(1..=BACKENDS_MAX).contains(&texts.len()) {
        let message = format!("must name one to {BACKENDS_MAX} addresses");
        reader.wrong(group.path_of("backends"), message);
    }
    let mut seen = BTreeSet::new();
    for (path, text) in texts {
        // Names are no backends: HAProxy would refuse its whole file for one that does not resolve.
        let address = text.trim().parse::<SocketAddr>().ok();
        let Some(address) = address.filter(|address| address.port() > 0) else {
            let text = scalar::clip(text);
            let message = format!("`{text}` is no address such as `10.0.0.5:8443`");
            reader.wrong(path, message);
            continue;
        };
        if address.is_ipv6() {
            warnings.push(format!("`{path}` is IPv6, which tcp-router drops silently"));
        }
        if !seen.insert(address) {
            reader.wrong(path, "stands twice");
        }
    }
    let backend = |address: SocketAddr| {
        Some(Backend {
            ip: address.ip(),
            port: NodePort::new(address.port())?,
            node: NodeUid(Arc::from(address.ip().to_string())),
            zone: None,
        })
    };
    Backends::new(seen.into_iter().filter_map(backend))
}

fn health(
    reader: &mut Reader,
    group: &Group<'_>,
    warnings: &mut Vec<String>,
) -> Option<HealthConfig> {
    let url = reader.parsed(group, "url", scalar::url);
    if url.is_absent() {
        reader.wrong(group.path_of("url"), "is missing");
    }
    let ca_file = reader.ca_file(group, "ca_file");
    let server_name = host(reader, group, "server_name").ok();
    let identity = reader.identity(group, "cert_file", "key_file");
    let skip = reader.flag(group, "skip_tls_verification");
    let token = reader.secret_file(group, "token_file").ok();
    let interval = reader.duration(group, "interval", INTERVALS);
    let skip = skip.ok().unwrap_or(false);
    if server_name.is_some() && ca_file.is_absent() && !skip {
        let hint = "give the authority that signed the server's certificate";
        let path = group.path_of("ca_file");
        reader.wrong_hint(path, "is missing beside `server_name`", hint);
    }
    let url = url.ok()?;
    let path = &group.path;
    if url.scheme() == "http" && token.is_some() {
        warnings.push(format!(
            "`{path}.url` is http: the token travels in clear text"
        ));
    }
    if url.scheme() == "https" && skip {
        warnings.push(format!(
            "`{path}.skip_tls_verification` is on: whoever answers counts as up; give `{path}.ca_file` instead"
        ));
    }
    Some(HealthConfig {
        url,
        tls: TlsConfig {
            ca_file: ca_file.ok(),
            identity,
            skip_verification: skip,
            server_name,
        },
        token,
        interval: interval.ok().unwrap_or(INTERVAL),
    })
}

/// The mark of a process that was given none: a function of what it publishes, so that a restart knows its rows
/// again, and the registrar on the next machine, which has another address, is another.
pub(super) fn instance_id(routes: &[StaticRoute]) -> InstanceId {
    let told: BTreeMap<_, _> = routes
        .iter()
        .map(|route| {
            let backends: Vec<_> = route.backends.iter().map(ToString::to_string).collect();
            (&route.name, (route.port, backends.join(",")))
        })
        .collect();
    let one = |(name, (port, backends))| format!("{name}={port}>{backends};");
    let text: String = told.into_iter().map(one).collect();
    InstanceId::of_hash(stable_hash(text.bytes()))
}
