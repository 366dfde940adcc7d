//! A Service that a tenant wrote, beside two of another namespace.
//!
//! Input: lines `name=value`. `label-http`, `label-tcp`, `port` (`name:port:node port:protocol:appProtocol`) and
//! `beside` (in the neighbours' namespace) are the Service's; any other name is an annotation. `\n` and `\e` in a
//! value are a newline and an escape.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use route_sync::Uptime;
use route_sync::config::default_options;
use route_sync::desired::{
    Desired, HostGrant, Memory, Options, PortGrant, Severity, Subject, derive,
};
use route_sync::kubernetes::snapshot::{Evidence, Node, Protocol, Service, ServicePort, Snapshot};
use route_sync::plan::admission::{Gate, RouterGroup, admit};
use route_sync::publish::http::wire::overheard::{Reader, is_of};
use route_sync::publish::http::wire::{Entry, Identity, MESSAGE_BYTES_MAX, registrations};
use route_sync::route::{
    ClusterId, Hostname, NodePort, NodeUid, PortRanges, RouteTable, ServiceKey, ServiceRef, Uri,
};
use route_sync::state::{Contents, Foundation};

use super::{Target, assert_bounded};

pub(super) const TARGET: Target = Target {
    name: "labels",
    words: &[
        "label-http=",
        "label-tcp=",
        "port=",
        "beside=",
        "\nhttp=",
        "\ntcp=",
        "\nport=",
        "\ndomain=",
        "\nrouter-group=",
        "\nprotocol=http2",
        "\ntls-server-name=",
        "\nloadbalancing=",
        "\nroute-service-url=",
        "\nmax-backends=",
        "\nrequire-ready-endpoints=true",
        "least-connection",
        "round-robin",
        "https://",
        "http2",
        "web",
        "paths",
        "web.apps.test",
        "web.other.test",
        "apps.test",
        "other.test",
        ".apps.test",
        "wild",
        "*.wild",
        "*.",
        "api",
        "uaa",
        "login",
        "x.uaa",
        "/a",
        "/b",
        "/a/",
        "//",
        "/A",
        "web=",
        "http=",
        "8080=",
        "2000",
        "2001",
        "02000",
        "5000",
        "http:80:30080:TCP:",
        "dns:53:30053:UDP:",
        ":53:30053:TCP:",
        "\\n",
        "\\e",
        "default-tcp",
        "tcp-2",
        "xn--",
        "a.b.c",
    ],
    run,
};

/// Uids and addresses as they are.
const UID: &str = "5f1c2a3e-0000-4000-8000-00000000000";

fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let options = options();
    let without = snapshot(None);
    let service = service(&text);
    let key = service.service.key.clone();
    let asked = (service.http_label.is_some(), service.tcp_label.is_some());
    let with = snapshot(Some(service));
    let now = Uptime::from_secs(100);

    let mut memory = Memory::default();
    let before = derive(&without, &mut memory, &options, now);
    let during = derive(&with, &mut memory, &options, now);
    let after = derive(&without, &mut memory, &options, now);
    assert_eq!(
        before.table, after.table,
        "a Service that went left something behind"
    );
    // After a restart, too, the older ones have what they had.
    let afresh = derive(&with, &mut Memory::default(), &options, now);
    for table in [&during.table, &afresh.table] {
        assert_eq!(
            without_routes_of(table, &key),
            before.table,
            "another Service's route changed"
        );
    }
    let again = derive(&with, &mut memory, &options, now);
    assert_eq!(
        during.table, again.table,
        "the same input gave another table"
    );

    assert_bounded(&during.findings);
    let lost = |finding: &&_| is_error_on(finding, &key);
    let routes = own(&during, &key);
    if asked.0 && routes.0 == 0 || asked.1 && routes.1 == 0 {
        assert!(
            during.findings.iter().any(|it| lost(&it)),
            "a label without a route and without a word"
        );
    }
    check_uris(&during.table, &key, &options);
    check_messages(&during);
    check_admission(&during);
    check_state(during);
}

fn is_error_on(finding: &route_sync::desired::Finding, key: &ServiceKey) -> bool {
    finding.code.severity() == Severity::Error && finding.subject == Subject::Service(key.clone())
}

/// How many HTTP and TCP routes are the Service's.
fn own(desired: &Desired, key: &ServiceKey) -> (usize, usize) {
    let http = desired.table.http.values();
    let tcp = desired.table.tcp.values();
    (
        http.filter(|route| route.service.key == *key).count(),
        tcp.filter(|route| route.service.key == *key).count(),
    )
}

fn without_routes_of(table: &RouteTable, key: &ServiceKey) -> RouteTable {
    let mut table = table.clone();
    table.http.retain(|_, route| route.service.key != *key);
    table.tcp.retain(|_, route| route.service.key != *key);
    table
}

/// Every uri reads as it is written, lies in a domain, is nobody else's, and is one to gorouter as well.
fn check_uris(table: &RouteTable, key: &ServiceKey, options: &Options) {
    let mut seen = BTreeSet::new();
    for (uri, route) in &table.http {
        let text = uri.to_string();
        assert_eq!(Uri::parse(&text).as_ref(), Ok(uri), "{text}");
        assert!(
            seen.insert(as_gorouter(&text)),
            "`{text}` is two routes to us and one to gorouter"
        );
        assert!(
            options
                .domains
                .iter()
                .any(|domain| uri.host().is_within(domain)),
            "{text}"
        );
        if route.service.key != *key {
            continue;
        }
        let within = |domain: &Hostname| uri.host().is_within(domain);
        let reserved = options.reserved_hosts.contains(uri.host())
            || options.reserved_domains.iter().any(within);
        assert!(!reserved, "`{text}` belongs to the platform");
        let wild = uri.host().as_str();
        let granted = wild == "wild.apps.test" || wild.ends_with(".wild.apps.test");
        let granted = granted || key.namespace == "peers";
        assert!(!uri.is_wildcard() || granted, "`{text}` needs a grant");
    }
    for (port, route) in &table.tcp {
        assert!(port.get() >= 1024, "{port}");
        let denied = (5000..=5010).contains(&port.get()) && route.service.key.namespace != "peers";
        assert!(!denied, "{port} is granted to others");
    }
}

/// What gorouter makes a route's key of: lower case, without a leading or one trailing slash, without a query.
fn as_gorouter(uri: &str) -> String {
    let uri = uri.split('?').next().unwrap_or_default().to_lowercase();
    let uri = uri.strip_prefix('/').unwrap_or(&uri);
    uri.strip_suffix('/').unwrap_or(uri).to_owned()
}

/// What would be announced is bounded, and says of us what we would hear of ourselves.
fn check_messages(desired: &Desired) {
    let identity = Identity {
        cluster: desired.cluster.clone(),
        send_app: true,
    };
    let uris: Vec<_> = desired
        .table
        .http
        .iter()
        .map(|(uri, route)| (Arc::new(uri.clone()), route))
        .collect();
    let mut reader = Reader::default();
    for (uri, route) in &uris {
        for backend in route.backends.iter() {
            let sent = registrations(
                &identity,
                &[Entry {
                    uri,
                    route,
                    backend,
                }],
            );
            assert_eq!(sent.len(), 1);
            for message in sent {
                let length = message.payload.len();
                assert!(length <= MESSAGE_BYTES_MAX, "a message of {length} bytes");
                let speaker = reader
                    .read(&message.payload)
                    .expect("our own message must be one");
                assert_eq!(speaker.address, Some((backend.ip, backend.port.get())));
                assert_eq!(reader.places().len(), message.uris.len());
                assert!(is_of(&identity.cluster, &message.payload));
            }
        }
    }
}

fn check_admission(desired: &Desired) {
    let group = |name: &str| RouterGroup {
        guid: name.to_owned(),
        name: name.to_owned(),
        reservable_ports: "1024-65535".to_owned(),
    };
    let groups = [group("default-tcp"), group("tcp-2")];
    let gate = Gate {
        groups: &groups,
        vanished: &[],
        chosen: &groups[0],
        reserved: &PortRanges::default(),
        live: &BTreeSet::new(),
    };
    assert_bounded(&admit(&desired.table.tcp, gate).findings);
}

/// What a restart reads is what was written.
fn check_state(desired: Desired) {
    let desired = Desired {
        findings: Vec::new(),
        revisit: None,
        held: None,
        ..desired
    };
    let contents = Contents {
        written_secs: 1,
        foundation: Foundation::default(),
        desired: Arc::new(desired),
        withdrawals: BTreeSet::new(),
        rows: BTreeSet::new(),
        guard: route_sync::desired::guard::Remembered::default(),
    };
    let read = Contents::decode(&contents.encode()).expect("our own state must be one");
    assert_eq!(read, contents);
}

// --- the cluster ---------------------------------------------------------------------------------------------------

fn options() -> Options {
    let name = |text: &str| Hostname::parse(text).expect("a name must be one");
    let grant = |namespace: &str, hosts: &[&str]| HostGrant {
        namespaces: vec![namespace.to_owned()],
        hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
    };
    let defaults = default_options(name("apps.test"));
    Options {
        domains: vec![name("apps.test"), name("other.test")],
        host_grants: vec![
            grant("peers", &["*.peers", "peers"]),
            grant("tenant", &["*.wild"]),
        ],
        port_grants: vec![PortGrant {
            namespaces: vec!["peers".to_owned()],
            ports: PortRanges::parse("5000-5010").expect("a range must be one"),
        }],
        state_survives: true,
        ..defaults
    }
}

fn snapshot(tenants: Option<Service>) -> Snapshot {
    let labelled =
        |name: &str, number: u8, http: &str, tcp: &str, annotations: &[(&str, &str)]| Service {
            http_label: Some(http.to_owned()),
            tcp_label: Some(tcp.to_owned()),
            annotations: annotations
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            ports: vec![port("http:80:30001:TCP:", number)],
            ..empty("peers", name, number, 100)
        };
    let services = [
        labelled("web", 1, "web", "2000", &[]),
        labelled(
            "paths",
            2,
            "x",
            "02001",
            &[("http", "web.other.test/a, *.peers, paths")],
        ),
    ];
    let services = services.into_iter().chain(tenants);
    let node = |number: u8| Node {
        uid: NodeUid(format!("{UID}{number}").into()),
        internal_ips: vec![IpAddr::from([10, 0, 0, number])],
        ready: true,
        deleting: false,
        excluded: false,
        zone: Some("z1".into()),
    };
    Snapshot {
        cluster: ClusterId("fuzzed".to_owned()),
        services: services.map(|it| (it.service.key.clone(), it)).collect(),
        nodes: [1, 2]
            .into_iter()
            .map(|number| (format!("node-{number}"), node(number)))
            .collect(),
        endpoints: None,
        findings: Vec::new(),
        evidence: Evidence::default(),
    }
}

fn empty(namespace: &str, name: &str, number: u8, created_seconds: i64) -> Service {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    Service {
        service: Arc::new(ServiceRef {
            key: ServiceKey { namespace, name },
            uid: format!("{UID}{number}"),
        }),
        created_seconds,
        http_label: None,
        tcp_label: None,
        annotations: BTreeMap::new(),
        ports: Vec::new(),
        local_traffic_only: false,
    }
}

fn service(text: &str) -> Service {
    let mut service = empty("tenant", "app", 9, 200);
    for line in text.split('\n') {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        let value = value.replace("\\n", "\n").replace("\\e", "\x1b");
        match name {
            "" => {}
            "label-http" => service.http_label = Some(value),
            "label-tcp" => service.tcp_label = Some(value),
            "port" if value.contains(':') => service.ports.push(port(&value, 9)),
            "beside" => {
                let peers = empty("peers", "app", 9, 200);
                service.service = peers.service;
            }
            name => {
                service.annotations.insert(name.to_owned(), value);
            }
        }
    }
    service
}

/// `name:port:node port:protocol:appProtocol`; what is no number is the number given.
fn port(text: &str, number: u8) -> ServicePort {
    let mut parts = text.split(':');
    let mut next = || parts.next().unwrap_or_default().to_owned();
    let (name, port, node_port, protocol, app) = (next(), next(), next(), next(), next());
    ServicePort {
        name: (!name.is_empty()).then_some(name),
        port: port.parse().unwrap_or(u16::from(number)),
        node_port: node_port.parse().ok().and_then(NodePort::new),
        protocol: match protocol.as_str() {
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => Protocol::Tcp,
        },
        app_protocol: (!app.is_empty()).then_some(app),
    }
}
