//! From keys to meaning: one function per group, each asking for all of its keys before it gives up.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::file::Node;
use super::read::{Field, Group, Reader};
use super::reserved::reserved;
use super::scalar;
use super::static_routes;
use super::{
    ClusterConfig, Config, KubernetesConfig, LeaderElectionConfig, LogConfig, LogFormat,
    MetricsConfig, NatsConfig, RoutingApiConfig, Secret, Source, TlsConfig, UaaConfig,
};
use crate::desired::guard::Limits;
use crate::desired::{HostGrant, Options, PortGrant};
use crate::plan::{InstanceId, OnForeign};
use crate::route::{Hostname, PortRanges};

/// Catches what a watch missed; below 30 s the listing itself would be the load.
const RESCAN_INTERVAL: Duration = Duration::from_mins(5);
const POLL_INTERVAL: Duration = Duration::from_secs(15);
/// cf-deployment's name for it.
const ROUTER_GROUP: &str = "default-tcp";
/// The routing API's own `max_ttl` default.
const TTL_MAX: Duration = Duration::from_mins(2);
/// Below this one slow request would let a row lapse between two refreshes.
const TTL_MIN: Duration = Duration::from_secs(5);
const HTTP_BACKENDS: usize = 8;
const TCP_BACKENDS: usize = 3;
const ADMIN_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9101);
/// An example; there is none unless one is given.
const METRICS_LISTEN: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 9103);
const LEASE_NAME: &str = "route-sync";
/// Where the other components of a cluster keep theirs.
const LEASE_NAMESPACE: &str = "kube-system";
/// It stands in log lines and messages.
const IDENTITY_BYTES_MAX: usize = 253;
const DAY: Duration = Duration::from_hours(24);
/// A node port that was given back may belong to another Service after this time.
const STATE_AGE: Duration = Duration::from_mins(10);
/// A state is written anew ten times within its age.
const STATE_AGE_MIN: Duration = Duration::from_secs(10);

/// Below a second nothing would count together; what is longer ago than an hour was another mistake.
const REMOVALS_WINDOW: RangeInclusive<Duration> =
    RangeInclusive::new(Duration::from_secs(1), Duration::from_hours(1));

/// The two ways to meet strangers on a host of ours, and on a port.
const FOREIGN_HOST: &[(&str, bool)] = &[("hold", false), ("join", true)];
const FOREIGN_PORT: &[(&str, OnForeign)] = &[("hold", OnForeign::Hold), ("join", OnForeign::Join)];

/// Which lanes are on, and how each meets strangers.
struct Lanes {
    tcp_on: bool,
    http_on: bool,
    on_foreign: OnForeign,
    join_hosts: bool,
}

/// Static routes are TCP routes, and always share their port.
const STATIC_LANES: Lanes = Lanes {
    tcp_on: true,
    http_on: false,
    on_foreign: OnForeign::Share,
    join_hosts: false,
};

/// Reads the whole file. `None` only when the reader noted a mistake.
pub(super) fn config(reader: &mut Reader, file: &Node, in_pod: bool) -> Option<Config> {
    let root = reader.root(file);
    let mut warnings = Vec::new();
    let is_static = root.has("static_routes");
    let lanes = if is_static {
        static_routes::refuse_others(reader, &root);
        STATIC_LANES
    } else {
        lanes(reader, &root)
    };
    let kubernetes = (!is_static).then(|| kubernetes(reader, &root, in_pod));
    let skip = reader.flag(&root, "skip_tls_verification");
    let uaa = uaa(reader, &root, lanes.tcp_on, &skip);
    let mut routing_api = routing_api(reader, &root, &lanes, &skip);
    weaknesses(uaa.as_ref(), routing_api.as_ref(), &mut warnings);
    let state = reader.group(&root, "state");
    let state_dir: Option<PathBuf> = reader.text(&state, "dir").ok().map(Into::into);
    let max_age = reader.duration(&state, "max_age", STATE_AGE_MIN..=DAY);
    let source = if let Some(kubernetes) = kubernetes {
        let cluster = cluster(reader, &root, kubernetes, &lanes, state_dir.as_ref());
        cluster.map(|mut cluster| {
            reserve(&mut cluster, uaa.as_ref(), routing_api.as_ref());
            nats_weaknesses(cluster.nats.as_ref(), &skip, &mut warnings);
            cluster.nats = cluster.nats.filter(|_| lanes.http_on);
            Source::Cluster(Box::new(cluster))
        })
    } else {
        let routes = static_routes::static_routes(reader, &root, &mut warnings);
        if let Some(api) = &mut routing_api {
            let of_routes = || static_routes::instance_id(&routes);
            api.instance_id.get_or_insert_with(of_routes);
        }
        Some(Source::Static(routes))
    };
    let admin = admin(reader, &root, &mut warnings);
    let metrics = metrics(reader, &root, admin);
    let log = log(reader, &root);
    Some(Config {
        source: source?,
        uaa: uaa.filter(|_| lanes.tcp_on),
        routing_api: routing_api.filter(|_| lanes.tcp_on),
        admin,
        metrics,
        log,
        state_dir,
        state_max_age: max_age.ok().unwrap_or(STATE_AGE),
        warnings,
        unknown_keys: Vec::new(),
    })
}

fn lanes(reader: &mut Reader, root: &Group<'_>) -> Lanes {
    let tcp = reader.group(root, "tcp");
    let tcp_on = reader.flag(&tcp, "enabled").ok().unwrap_or(true);
    let on_foreign = reader.choice(&tcp, "on_foreign_backend", FOREIGN_PORT);
    let http = reader.group(root, "http");
    let http_on = reader.flag(&http, "enabled").ok().unwrap_or(true);
    let join_hosts = reader.choice(&http, "on_foreign_endpoint", FOREIGN_HOST);
    if !tcp_on && !http_on {
        reader.wrong(
            "tcp.enabled".to_owned(),
            "is off, and so is `http.enabled`: nothing is left to do",
        );
    }
    Lanes {
        tcp_on,
        http_on,
        on_foreign: on_foreign.ok().unwrap_or(OnForeign::Hold),
        join_hosts: join_hosts.ok().unwrap_or(false),
    }
}

fn cluster(
    reader: &mut Reader,
    root: &Group<'_>,
    kubernetes: KubernetesConfig,
    lanes: &Lanes,
    state_dir: Option<&PathBuf>,
) -> Option<ClusterConfig> {
    let nats = super::nats::nats(reader, root, lanes.http_on);
    let routes = routes(reader, root, state_dir.is_some());
    let leader_election = leader_election(reader, root);
    Some(ClusterConfig {
        kubernetes,
        nats: nats.map(|nats| NatsConfig {
            join_foreign: lanes.join_hosts,
            state_dir: state_dir.cloned(),
            ..nats
        }),
        routes: routes?,
        leader_election,
    })
}

fn kubernetes(reader: &mut Reader, root: &Group<'_>, in_pod: bool) -> KubernetesConfig {
    let group = reader.group(root, "kubernetes");
    let old = reader.kubeconfig(root, "kube_config_path");
    let new = reader.kubeconfig(&group, "kubeconfig");
    let kubeconfig = reader.either(("kube_config_path", old), ("kubernetes.kubeconfig", new));
    if kubeconfig.is_absent() && !in_pod {
        let hint = "only inside a pod it may be left out; `kube_config_path`, its original name, is read as well";
        reader.wrong_hint("kubernetes.kubeconfig".to_owned(), "is missing", hint);
    }
    let rescan = reader.duration(&group, "rescan_interval", Duration::from_secs(30)..=DAY);
    let poll = reader.duration(
        &group,
        "poll_interval",
        Duration::from_secs(1)..=Duration::from_hours(1),
    );
    let proxy = reader.parsed(&group, "proxy_url", |text| {
        let url = text.parse::<reqwest::Url>().ok();
        let url = url.filter(|url| url.scheme() == "http" && url.has_host());
        // Normalised, so that the client, which reads URLs strictly, can use whatever was accepted here.
        url.map(|url| url.as_str().to_owned())
            .filter(|url| url.parse::<http::Uri>().is_ok())
            .ok_or_else(|| "must be an `http://` URL".to_owned())
    });
    let cluster_id = reader.text(&group, "cluster_id").ok().map(str::to_owned);
    KubernetesConfig {
        kubeconfig: kubeconfig.ok(),
        rescan_interval: rescan.ok().unwrap_or(RESCAN_INTERVAL),
        poll_interval: poll.ok().unwrap_or(POLL_INTERVAL),
        proxy_url: proxy.ok(),
        cluster_id,
    }
}

/// A key that a lane needs; where the lane is off it may be missing.
pub(super) fn needed<T>(
    reader: &mut Reader,
    lane_on: bool,
    names: (&str, &str),
    field: Field<T>,
) -> Option<T> {
    if lane_on {
        reader.required(names.0, names.1, field)
    } else {
        field.ok()
    }
}

pub(super) fn uaa(
    reader: &mut Reader,
    root: &Group<'_>,
    tcp_on: bool,
    skip: &Field<bool>,
) -> Option<UaaConfig> {
    let group = reader.group(root, "uaa");
    let old = reader.parsed(root, "uaa_api_url", scalar::base_url);
    let new = reader.parsed(&group, "url", scalar::base_url);
    let url = reader.either(("uaa_api_url", old), ("uaa.url", new));
    let url = needed(reader, tcp_on, ("uaa.url", "uaa_api_url"), url);
    let old = reader.text(root, "routing_api_username").map(str::to_owned);
    let new = reader.text(&group, "client_id").map(str::to_owned);
    let id = reader.either(("routing_api_username", old), ("uaa.client_id", new));
    let id = needed(
        reader,
        tcp_on,
        ("uaa.client_id", "routing_api_username"),
        id,
    );
    let old = reader
        .text(root, "routing_api_client_secret")
        .map(|text| Secret::new(text.to_owned()));
    let new = reader.secret(&group, "client_secret");
    let secret = reader.either(
        ("routing_api_client_secret", old),
        ("uaa.client_secret", new),
    );
    let secret = needed(
        reader,
        tcp_on,
        ("uaa.client_secret", "routing_api_client_secret"),
        secret,
    );
    let ca_file = reader.ca_file(&group, "ca_file").ok();
    let skip_verification = skip_verification(reader, &group, skip);
    Some(UaaConfig {
        url: url?,
        client_id: id?,
        client_secret: secret?,
        tls: TlsConfig {
            ca_file,
            skip_verification,
            ..TlsConfig::default()
        },
    })
}

fn skip_verification(reader: &mut Reader, group: &Group<'_>, old: &Field<bool>) -> bool {
    let new = reader.flag(group, "skip_tls_verification");
    let path = group.path_of("skip_tls_verification");
    let skip = reader.either(("skip_tls_verification", old.clone()), (&path, new));
    skip.ok().unwrap_or(false)
}

fn routing_api(
    reader: &mut Reader,
    root: &Group<'_>,
    lanes: &Lanes,
    skip: &Field<bool>,
) -> Option<RoutingApiConfig> {
    let group = reader.group(root, "routing_api");
    let old = reader.parsed(root, "routing_api_url", scalar::base_url);
    let new = reader.parsed(&group, "url", scalar::base_url);
    let url = reader.either(("routing_api_url", old), ("routing_api.url", new));
    let url = needed(
        reader,
        lanes.tcp_on,
        ("routing_api.url", "routing_api_url"),
        url,
    );
    let router_group = reader.text(&group, "router_group").ok().map(str::to_owned);
    let ttl = reader.duration(&group, "ttl", TTL_MIN..=TTL_MAX);
    let instance_id = reader.parsed(&group, "instance_id", |text| {
        let message = "must be 1 to 255 visible ASCII characters without spaces";
        InstanceId::chosen(text).ok_or_else(|| message.to_owned())
    });
    let reserved_ports = ports(reader, &group, "reserved_ports");
    let ca_file = reader.ca_file(&group, "ca_file").ok();
    let identity = reader.identity(&group, "client_cert_file", "client_key_file");
    let skip_verification = skip_verification(reader, &group, skip);
    Some(RoutingApiConfig {
        url: url?,
        router_group_is_default: router_group.is_none(),
        router_group: router_group.unwrap_or_else(|| ROUTER_GROUP.to_owned()),
        ttl: ttl.ok().unwrap_or(TTL_MAX),
        instance_id: instance_id.ok(),
        reserved_ports: reserved_ports.ok().unwrap_or_default(),
        on_foreign: lanes.on_foreign,
        tls: TlsConfig {
            ca_file,
            identity,
            skip_verification,
            server_name: None,
        },
    })
}

fn ports(reader: &mut Reader, group: &Group<'_>, name: &str) -> Field<PortRanges> {
    reader.parsed(group, name, |text| {
        PortRanges::parse(text).map_err(|error| error.to_string())
    })
}

pub(super) fn host(reader: &mut Reader, group: &Group<'_>, name: &str) -> Field<Hostname> {
    reader.parsed(group, name, parse_host)
}

fn parse_host(text: &str) -> Result<Hostname, String> {
    Hostname::parse(text).map_err(|error| format!("is no DNS name: {error}"))
}

fn routes(reader: &mut Reader, root: &Group<'_>, state_survives: bool) -> Option<Options> {
    let group = reader.group(root, "routes");
    let old = host(reader, root, "app_domain_name");
    let new = host(reader, &group, "app_domain");
    let app_domain = reader.either(("app_domain_name", old), ("routes.app_domain", new));
    let app_domain = reader.required("routes.app_domain", "app_domain_name", app_domain);
    let mut domains = Vec::new();
    for (path, text) in reader.texts(&group, "domains").ok().unwrap_or_default() {
        match parse_host(text) {
            Ok(domain) => domains.push(domain),
            Err(message) => reader.wrong(path, message),
        }
    }
    let max_backends = reader.number(&group, "max_backends", 0..=100_000);
    let max_tcp_backends = reader.number(&group, "max_tcp_backends", 0..=100_000);
    let family = reader.choice(&group, "address_family", &[("ipv4", false), ("ipv6", true)]);
    let removals = removals(reader, &group);
    let policy = reader.group(root, "policy");
    let host_grants = host_grants(reader, &policy);
    let port_grants = port_grants(reader, &policy);
    let app_domain = app_domain?;
    if !domains.contains(&app_domain) {
        domains.insert(0, app_domain.clone());
    }
    let defaults = default_options(app_domain);
    Some(Options {
        domains,
        host_grants,
        port_grants,
        max_backends: max_backends
            .ok()
            .map_or(defaults.max_backends, |max| max as usize),
        max_tcp_backends: max_tcp_backends
            .ok()
            .map_or(defaults.max_tcp_backends, |max| max as usize),
        ipv6: family.ok().unwrap_or(defaults.ipv6),
        state_survives,
        removals,
        ..defaults
    })
}

/// How many routes may go together; every one of a lane that a list lacks is held whatever this says.
fn removals(reader: &mut Reader, group: &Group<'_>) -> Limits {
    let defaults = Limits::default();
    let routes = reader.number(group, "max_removals", 0..=100_000);
    let percent = reader.number(group, "max_removals_percent", 0..=100);
    let window = reader.duration(group, "removals_window", REMOVALS_WINDOW);
    Limits {
        routes: routes.ok().map_or(defaults.routes, |most| most as usize),
        percent: percent.ok().map_or(defaults.percent, |most| most as usize),
        window: window.ok().unwrap_or(defaults.window),
    }
}

/// How routes are derived where nobody said anything but the app domain.
pub(super) fn default_options(app_domain: Hostname) -> Options {
    let reserved = reserved(std::slice::from_ref(&app_domain), &[]);
    Options {
        domains: vec![app_domain.clone()],
        app_domain,
        reserved_hosts: reserved.hosts,
        reserved_domains: reserved.domains,
        host_grants: Vec::new(),
        port_grants: Vec::new(),
        max_backends: HTTP_BACKENDS,
        max_tcp_backends: TCP_BACKENDS,
        ipv6: false,
        state_survives: false,
        removals: Limits::default(),
    }
}

fn host_grants(reader: &mut Reader, policy: &Group<'_>) -> Vec<HostGrant> {
    let mut grants = Vec::new();
    for group in reader.groups(policy, "hosts").ok().unwrap_or_default() {
        let namespaces = namespaces(reader, &group);
        let hosts = list(reader, &group, "hosts", |text| {
            parse_host(text.strip_prefix("*.").unwrap_or(text)).map(|_| text.to_ascii_lowercase())
        });
        grants.push(HostGrant { namespaces, hosts });
    }
    grants
}

fn port_grants(reader: &mut Reader, policy: &Group<'_>) -> Vec<PortGrant> {
    let mut grants = Vec::new();
    for group in reader.groups(policy, "ports").ok().unwrap_or_default() {
        let namespaces = namespaces(reader, &group);
        let ports = ports(reader, &group, "ports");
        if ports.is_absent() {
            reader.wrong(group.path_of("ports"), "is missing");
        }
        grants.extend(ports.ok().map(|ports| PortGrant { namespaces, ports }));
    }
    grants
}

fn namespaces(reader: &mut Reader, group: &Group<'_>) -> Vec<String> {
    list(reader, group, "namespaces", |text| {
        let name = text.strip_suffix('*').unwrap_or(text);
        // What stands before the star may end in a dash, which a whole name may not.
        let padded = if name == text {
            name.to_owned()
        } else {
            format!("{name}x")
        };
        match Hostname::parse(&padded) {
            Ok(host) if host.as_str() == padded && !padded.contains('.') => Ok(text.to_owned()),
            _ => Err(format!("`{}` is no namespace name", scalar::clip(text))),
        }
    })
}

/// A list that must hold something.
fn list(
    reader: &mut Reader,
    group: &Group<'_>,
    name: &str,
    parse: impl Fn(&str) -> Result<String, String>,
) -> Vec<String> {
    let texts = reader.texts(group, name);
    if matches!(&texts, Field::Absent) || matches!(&texts, Field::Is(texts) if texts.is_empty()) {
        reader.wrong(group.path_of(name), "must name at least one");
    }
    let mut read = Vec::new();
    for (path, text) in texts.ok().unwrap_or_default() {
        match parse(text.trim()) {
            Ok(value) => read.push(value),
            Err(message) => reader.wrong(path, message),
        }
    }
    read
}

/// Off unless asked for: the role that older platforms ship has no right to Leases and is enough for one instance,
/// and one instance gains nothing from waiting for itself after a crash.
fn leader_election(reader: &mut Reader, root: &Group<'_>) -> Option<LeaderElectionConfig> {
    let group = reader.group(root, "leader_election");
    let on = reader.flag(&group, "enabled").ok().unwrap_or(false);
    let mut name = |key, default: &str, dots| {
        let name = reader.parsed(&group, key, |text| match Hostname::parse(text) {
            Ok(host) if host.as_str() == text && (dots || !text.contains('.')) => {
                Ok(text.to_owned())
            }
            _ => Err(format!("`{}` is no name of an object", scalar::clip(text))),
        });
        name.ok().unwrap_or_else(|| default.to_owned())
    };
    let (name, namespace) = (
        name("name", LEASE_NAME, true),
        name("namespace", LEASE_NAMESPACE, false),
    );
    let identity = reader.parsed(&group, "identity", |text| {
        let fits = (1..=IDENTITY_BYTES_MAX).contains(&text.len());
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        (fits && plain).then(|| text.to_owned()).ok_or_else(|| {
            format!("must be 1 to {IDENTITY_BYTES_MAX} visible ASCII characters without spaces")
        })
    });
    on.then_some(LeaderElectionConfig {
        name,
        namespace,
        identity: identity.ok(),
    })
}

fn admin(reader: &mut Reader, root: &Group<'_>, warnings: &mut Vec<String>) -> Option<SocketAddr> {
    let group = reader.group(root, "admin");
    let listen = listen(reader, &group, ADMIN_LISTEN);
    let listen = listen.ok().unwrap_or(Some(ADMIN_LISTEN));
    if listen.is_some_and(|address| !address.ip().is_loopback()) {
        warnings.push(
            "`admin.listen` is no loopback address: whoever reaches it reads the table of routes; for scrapers there is `metrics.listen`"
                .to_owned(),
        );
    }
    listen
}

/// All of it or nothing: there is no listener for other machines that does not know who asks.
fn metrics(
    reader: &mut Reader,
    root: &Group<'_>,
    admin: Option<SocketAddr>,
) -> Option<MetricsConfig> {
    let group = reader.group(root, "metrics");
    let listen = listen(reader, &group, METRICS_LISTEN);
    let client_ca_file = reader.ca_file(&group, "client_ca_file");
    let is_off = group.is_empty() || listen == Field::Is(None);
    let all = ["listen", "cert_file", "key_file", "client_ca_file"];
    let missing: Vec<_> = all.into_iter().filter(|name| !group.has(name)).collect();
    let identity = if is_off || missing.is_empty() {
        reader.identity(&group, "cert_file", "key_file")
    } else {
        let message = format!("lacks `{}`", missing.join("`, `"));
        let hint = "metrics are served over mutual TLS with all keys of `metrics`; without any, on `admin.listen` alone";
        reader.wrong_hint(group.path.clone(), &message, hint);
        None
    };
    let listen = listen.ok().flatten()?;
    if let Some(admin) = admin
        && overlap(listen, admin)
    {
        let message = format!("`{listen}` is taken by `admin.listen`, `{admin}`");
        reader.wrong_hint(group.path_of("listen"), &message, "give another port");
    }
    Some(MetricsConfig {
        listen,
        identity: identity?,
        client_ca_file: client_ca_file.ok()?,
    })
}

/// Where something listens, if it does.
fn listen(
    reader: &mut Reader,
    group: &Group<'_>,
    example: SocketAddr,
) -> Field<Option<SocketAddr>> {
    reader.parsed(group, "listen", |text| match text {
        "off" => Ok(None),
        _ => text.parse::<SocketAddr>().map(Some).map_err(|_| {
            format!(
                "`{}` is neither an address such as `{example}` nor `off`",
                scalar::clip(text)
            )
        }),
    })
}

/// Whether only one of two addresses can be had. `[::]` takes those of IPv4 as well, as Linux has it unless
/// `net.ipv6.bindv6only` is set.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    let takes = |all: IpAddr, ip: IpAddr| all.is_unspecified() && (all.is_ipv6() || ip.is_ipv4());
    one.port() == other.port() && one.port() != 0 && (a == b || takes(a, b) || takes(b, a))
}

fn log(reader: &mut Reader, root: &Group<'_>) -> LogConfig {
    let group = reader.group(root, "log");
    let formats = [
        ("text", Some(LogFormat::Text)),
        ("lager", Some(LogFormat::Lager)),
        ("auto", None),
    ];
    let format = reader.choice(&group, "format", &formats);
    let level = reader.parsed(&group, "level", |text| {
        EnvFilter::try_new(text)
            .map(|_| text.to_owned())
            .map_err(|_| format!("`{}` is neither a level nor a filter", scalar::clip(text)))
    });
    LogConfig {
        format: format.ok().flatten(),
        level: level.ok().unwrap_or_else(|| "info".to_owned()),
    }
}

/// What works but should not stay.
fn weaknesses(
    uaa: Option<&UaaConfig>,
    routing_api: Option<&RoutingApiConfig>,
    warnings: &mut Vec<String>,
) {
    if let Some(uaa) = uaa {
        weak_https("uaa", &uaa.url, &uaa.tls, "the client secret", warnings);
    }
    if let Some(api) = routing_api {
        weak_https("routing_api", &api.url, &api.tls, "the token", warnings);
    }
}

fn nats_weaknesses(nats: Option<&NatsConfig>, skip: &Field<bool>, warnings: &mut Vec<String>) {
    let Some(nats) = nats else { return };
    let weakness = match nats.tls {
        None => {
            "`nats.tls` is not given: TLS is used only where the server demands it, and nobody's certificate is demanded"
        }
        Some(_) if matches!(skip, Field::Is(true)) => {
            "`skip_tls_verification` does not reach `nats.tls`: certificates of NATS servers are verified all the same"
        }
        Some(_) => return,
    };
    warnings.push(weakness.to_owned());
}

pub(super) fn weak_https(
    group: &str,
    url: &str,
    tls: &TlsConfig,
    secret: &str,
    warnings: &mut Vec<String>,
) {
    if url.starts_with("http://") {
        warnings.push(format!(
            "`{group}.url` is http: {secret} travels in clear text"
        ));
    } else if tls.skip_verification {
        warnings.push(format!(
            "`{group}.skip_tls_verification` is on: {secret} goes to whoever answers; give `{group}.ca_file` instead"
        ));
    }
}

fn reserve(
    cluster: &mut ClusterConfig,
    uaa: Option<&UaaConfig>,
    routing_api: Option<&RoutingApiConfig>,
) {
    let (routes, nats) = (&mut cluster.routes, &cluster.nats);
    let mut named = Vec::new();
    named.extend(uaa.and_then(|uaa| scalar::url_host(&uaa.url)));
    named.extend(routing_api.and_then(|api| scalar::url_host(&api.url)));
    for server in nats.iter().flat_map(|nats| &nats.servers) {
        named.extend(scalar::host_name(&server.host));
    }
    let reserved = reserved(&routes.domains, &named);
    routes.reserved_hosts = reserved.hosts;
    routes.reserved_domains = reserved.domains;
}
