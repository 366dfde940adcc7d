//! Tables over the whole of `derive`: a cluster in, routes and finding codes out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::kubernetes::snapshot::{Endpoints, Service};
use crate::route::{NodeUid, ServiceKey, ServiceRef};

mod nodes;

fn options() -> Options {
    let host = |text: &str| Hostname::parse(text).unwrap();
    Options {
        app_domain: host("apps.test"),
        domains: vec![host("apps.test"), host("other.test")],
        reserved_hosts: vec![host("api.apps.test")],
        reserved_domains: vec![host("uaa.apps.test"), host("sys.apps.test")],
        host_grants: Vec::new(),
        port_grants: Vec::new(),
        max_backends: 8,
        max_tcp_backends: 3,
        ipv6: false,
        state_survives: false,
    }
}

/// A Service under construction; its first port is `80 → 30000 + n`.
#[derive(Clone, Debug)]
struct Build(Service);

fn service(name: &str, node_port: u16) -> Build {
    let (namespace, name) = name.split_once('/').unwrap();
    Build(Service {
        service: Arc::new(ServiceRef {
            key: ServiceKey {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            },
            uid: format!("uid-{namespace}-{name}"),
        }),
        created_seconds: 0,
        http_label: None,
        tcp_label: None,
        annotations: BTreeMap::new(),
        ports: vec![port(None, 80, Some(node_port), Protocol::Tcp)],
        local_traffic_only: false,
    })
}

fn port(name: Option<&str>, port: u16, node_port: Option<u16>, protocol: Protocol) -> ServicePort {
    ServicePort {
        name: name.map(str::to_owned),
        port,
        node_port: node_port.and_then(NodePort::new),
        protocol,
        app_protocol: None,
    }
}

impl Build {
    fn http(mut self, label: &str) -> Self {
        self.0.http_label = Some(label.to_owned());
        self
    }
    fn tcp(mut self, label: &str) -> Self {
        self.0.tcp_label = Some(label.to_owned());
        self
    }
    fn annotate(mut self, name: &str, value: &str) -> Self {
        self.0.annotations.insert(name.to_owned(), value.to_owned());
        self
    }
    fn created(mut self, seconds: i64) -> Self {
        self.0.created_seconds = seconds;
        self
    }
    fn ports(mut self, ports: &[ServicePort]) -> Self {
        self.0.ports = ports.to_vec();
        self
    }
    fn local(mut self) -> Self {
        self.0.local_traffic_only = true;
        self
    }
}

fn node(index: u8) -> Node {
    Node {
        uid: NodeUid(format!("node-uid-{index}").into()),
        internal_ips: vec![[10, 0, 0, index].into()],
        ready: true,
        deleting: false,
        excluded: false,
        zone: None,
    }
}

fn cluster(services: &[Build], nodes: &[(u8, Node)]) -> Snapshot {
    Snapshot {
        cluster: ClusterId("test".to_owned()),
        services: services
            .iter()
            .map(|build| (build.0.service.key.clone(), build.0.clone()))
            .collect(),
        nodes: nodes
            .iter()
            .map(|(index, node)| (format!("n{index}"), node.clone()))
            .collect(),
        endpoints: Some(BTreeMap::new()),
        findings: Vec::new(),
    }
}

fn nodes(count: u8) -> Vec<(u8, Node)> {
    (1..=count).map(|index| (index, node(index))).collect()
}

/// `name → namespace/service` per route, then the codes of the findings with whom they are about.
fn show(desired: &Desired) -> Vec<String> {
    let http = desired.table.http.iter().map(|(uri, route)| {
        let ports: BTreeSet<u16> = route.backends.iter().map(|b| b.port.get()).collect();
        format!("{uri} -> {} {ports:?}", route.service.key)
    });
    let tcp = desired.table.tcp.iter().map(|(port, route)| {
        let ports: BTreeSet<u16> = route.backends.iter().map(|b| b.port.get()).collect();
        format!("{port} -> {} {ports:?}", route.service.key)
    });
    let findings = desired
        .findings
        .iter()
        .map(|f| format!("{} {}", f.subject, f.code));
    http.chain(tcp).chain(findings).collect()
}

#[track_caller]
fn check_with(options: &Options, services: &[Build], expect: &[&str]) {
    let desired = derive(
        &cluster(services, &nodes(2)),
        &mut Memory::default(),
        options,
        Uptime::ZERO,
    );
    assert_eq!(show(&desired), expect, "{:#?}", desired.findings);
}

#[track_caller]
fn check(services: &[Build], expect: &[&str]) {
    check_with(&options(), services, expect);
}

#[test]
fn a_number_that_stands_for_tcp_and_udp_means_tcp() {
    let ports = [
        port(Some("dns"), 53, Some(30_053), Protocol::Udp),
        port(Some("dns-tcp"), 53, Some(30_054), Protocol::Tcp),
    ];
    let dns = service("ns/dns", 30_000).tcp("5300").ports(&ports);
    check(&[dns.annotate("port", "53")], &["5300 -> ns/dns {30054}"]);
}

#[test]
fn a_udp_node_port_hides_no_tcp_one_of_the_same_number() {
    let udp = [port(None, 53, Some(30_080), Protocol::Udp)];
    let web = service("a/web", 30_080).http("web");
    let dns = service("b/dns", 30_000).tcp("5300").ports(&udp);
    let desired = derive(
        &cluster(&[web, dns], &nodes(1)),
        &mut Memory::default(),
        &options(),
        Uptime::ZERO,
    );
    let holder = &desired.node_ports[&NodePort::new(30_080).unwrap()];
    assert_eq!(holder.key.to_string(), "a/web");
}

#[test]
fn a_route_services_address_is_bounded() {
    let url = |length: usize| format!("https://rs.test/{}", "x".repeat(length));
    let web = |length| {
        service("ns/web", 30_000)
            .http("web")
            .annotate("route-service-url", &url(length))
    };
    check(&[web(900)], &["web.apps.test -> ns/web {30000}"]);
    check(&[web(200_000)], &["service ns/web annotation-invalid"]);
}

#[test]
fn a_label_makes_a_route_in_its_lane_and_both_labels_make_both() {
    check(
        &[service("a/x", 30001).http("web").tcp("02222")],
        &["web.apps.test -> a/x {30001}", "2222 -> a/x {30001}"],
    );
}

#[test]
fn dots_in_a_host_label_are_sub_domains_even_if_they_spell_the_app_domain() {
    check(
        &[
            service("a/x", 30001).http("My.Web"),
            service("a/y", 30002).http("y.apps.test"),
        ],
        &[
            "my.web.apps.test -> a/x {30001}",
            "y.apps.test.apps.test -> a/y {30002}",
        ],
    );
}

#[test]
fn one_poisoned_port_is_a_finding_on_its_service_alone() {
    for (label, code) in [
        ("70000", "port-out-of-range"),
        ("80", "port-out-of-range"),
        ("0", "port-out-of-range"),
        ("-5", "port-not-a-number"),
        ("99999999999999999999999", "port-out-of-range"),
        ("8O80", "port-not-a-number"),
        (" 80", "port-not-a-number"),
        ("", "port-not-a-number"),
        ("+2000", "port-not-a-number"),
    ] {
        check(
            &[
                service("a/good", 30001).tcp("2000"),
                service("a/bad", 30002).tcp(label),
            ],
            &["2000 -> a/good {30001}", &format!("service a/bad {code}")],
        );
    }
}

#[test]
fn one_poisoned_host_is_a_finding_on_its_service_alone() {
    let long = "a".repeat(64);
    for (label, code) in [
        ("", "host-invalid"),
        ("foo_bar", "host-invalid"),
        ("-a", "host-invalid"),
        ("a..b", "host-invalid"),
        ("*.a", "host-invalid"),
        (long.as_str(), "host-invalid"),
        ("api", "host-denied"),
        ("API", "host-denied"),
        ("uaa", "host-denied"),
        ("zone.uaa", "host-denied"),
        ("anything.sys", "host-denied"),
    ] {
        check(
            &[
                service("a/good", 30001).http("good"),
                service("a/bad", 30002).http(label),
            ],
            &[
                "good.apps.test -> a/good {30001}",
                &format!("service a/bad {code}"),
            ],
        );
    }
}

#[test]
fn an_annotation_replaces_the_label_and_needs_it() {
    check(
        &[
            service("a/x", 30001)
                .http("ignored")
                .annotate("http", "web, shop.other.test/Buy/, plain.apps.test"),
            service("a/y", 30002)
                .tcp("1")
                .annotate("tcp", "2000,2001")
                .annotate("http", "y"),
        ],
        &[
            "plain.apps.test -> a/x {30001}",
            "shop.other.test/buy -> a/x {30001}",
            "web.apps.test -> a/x {30001}",
            "2000 -> a/y {30002}",
            "2001 -> a/y {30002}",
            "service a/y annotation-without-label",
        ],
    );
}

#[test]
fn one_bad_name_in_a_list_leaves_the_others() {
    check(
        &[service("a/x", 30001)
            .http("")
            .annotate("http", "good,b_d,")
            .tcp("")
            .annotate("tcp", "2000,x")],
        &[
            "good.apps.test -> a/x {30001}",
            "2000 -> a/x {30001}",
            "service a/x port-not-a-number",
            "service a/x host-invalid",
            "service a/x host-invalid",
        ],
    );
}

#[test]
fn a_domain_must_be_one_of_the_configured() {
    check(
        &[
            service("a/x", 30001)
                .http("x")
                .annotate("domain", "other.test"),
            service("a/y", 30002)
                .http("y")
                .annotate("domain", "evil.test"),
        ],
        &[
            "x.other.test -> a/x {30001}",
            "service a/y annotation-invalid",
        ],
    );
}

#[test]
fn a_multi_port_service_gets_one_port_and_is_told_which() {
    let two = [
        port(Some("binary"), 9300, Some(30300), Protocol::Tcp),
        port(Some("rest"), 9200, Some(30200), Protocol::Tcp),
    ];
    let web = [
        port(Some("grpc"), 9000, Some(30900), Protocol::Tcp),
        port(Some("http-web"), 80, Some(30080), Protocol::Tcp),
    ];
    check(
        &[
            service("a/first", 1).ports(&two).http("first"),
            service("a/named", 1)
                .ports(&two)
                .http("named")
                .annotate("port", "rest"),
            service("a/numbered", 1)
                .ports(&two)
                .http("numbered")
                .annotate("port", "9200"),
            service("a/split", 1)
                .ports(&two)
                .http("")
                .annotate("http", "binary=split-binary,9200=split-rest"),
            service("a/unknown", 1)
                .ports(&two)
                .http("unknown")
                .annotate("port", "nope"),
            service("a/web", 1).ports(&web).http("web").tcp("2000"),
        ],
        &[
            "first.apps.test -> a/first {30300}",
            "named.apps.test -> a/named {30200}",
            "numbered.apps.test -> a/numbered {30200}",
            "split-binary.apps.test -> a/split {30300}",
            "split-rest.apps.test -> a/split {30200}",
            "web.apps.test -> a/web {30080}",
            "2000 -> a/web {30900}",
            "service a/first port-ambiguous",
            "service a/web port-ambiguous",
            "service a/unknown port-unknown",
        ],
    );
}

#[test]
fn ports_no_router_can_use_are_findings() {
    let udp = [port(Some("dns"), 53, Some(30053), Protocol::Udp)];
    let mixed = [
        udp[0].clone(),
        port(Some("dns-tcp"), 53, Some(30054), Protocol::Tcp),
    ];
    let cluster_ip = [port(None, 80, None, Protocol::Tcp)];
    check(
        &[
            service("a/ip", 1).ports(&cluster_ip).http("ip"),
            service("a/mixed", 1).ports(&mixed).tcp("2000"),
            service("a/none", 1).ports(&[]).http("none"),
            service("a/udp", 1).ports(&udp).tcp("2001"),
        ],
        &[
            "2000 -> a/mixed {30054}",
            "service a/ip no-node-port",
            "service a/none no-node-port",
            "service a/udp protocol-unsupported",
        ],
    );
}

#[test]
fn the_oldest_claimant_wins_and_the_loser_takes_over_when_it_goes() {
    let old = service("z/old", 30001).http("web").tcp("2000").created(1);
    let new = service("a/new", 30002).http("web").tcp("2000").created(2);
    let mut memory = Memory::default();
    let mut pass = |services: &[Build]| {
        show(&derive(
            &cluster(services, &nodes(1)),
            &mut memory,
            &options(),
            Uptime::ZERO,
        ))
    };
    assert_eq!(
        pass(&[old.clone(), new.clone()]),
        [
            "web.apps.test -> z/old {30001}",
            "2000 -> z/old {30001}",
            "service a/new port-conflict",
            "service a/new host-conflict",
            "service z/old winner-undetermined",
            "service z/old winner-undetermined",
        ]
    );
    assert_eq!(
        pass(std::slice::from_ref(&new)),
        ["web.apps.test -> a/new {30002}", "2000 -> a/new {30002}"]
    );
    // Now the newer one is the incumbent, and age counts for nothing.
    assert_eq!(
        pass(&[old, new]),
        [
            "web.apps.test -> a/new {30002}",
            "2000 -> a/new {30002}",
            "service z/old port-conflict",
            "service z/old host-conflict",
        ]
    );
}

#[test]
fn a_host_with_all_its_paths_belongs_to_one_namespace() {
    check(
        &[
            service("a/root", 30001).http("web").created(1),
            service("a/api", 30002)
                .http("")
                .annotate("http", "web/api")
                .created(3),
            service("b/docs", 30003)
                .http("")
                .annotate("http", "web/docs")
                .created(2),
        ],
        &[
            "web.apps.test -> a/root {30001}",
            "web.apps.test/api -> a/api {30002}",
            "service b/docs host-conflict",
            "service a/api winner-undetermined",
            "service a/root winner-undetermined",
        ],
    );
}

#[test]
fn grants_give_names_to_namespaces_and_to_nobody_else() {
    let mut options = options();
    options.host_grants = vec![HostGrant {
        namespaces: vec!["team-*".to_owned()],
        hosts: vec!["api".to_owned(), "*.shop".to_owned()],
    }];
    options.port_grants = vec![PortGrant {
        namespaces: vec!["team-a".to_owned()],
        ports: PortRanges::parse("2000-2009").unwrap(),
    }];
    check_with(
        &options,
        &[
            service("other/x", 30001).http("api").tcp("2000"),
            service("other/y", 30002).http("eu.shop").tcp("2010"),
            service("team-a/x", 30003)
                .http("")
                .annotate("http", "api,*.shop")
                .tcp("2001"),
            service("team-b/x", 30004)
                .http("")
                .annotate("http", "*.free"),
        ],
        &[
            "api.apps.test -> team-a/x {30003}",
            "*.shop.apps.test -> team-a/x {30003}",
            "2001 -> team-a/x {30003}",
            "2010 -> other/y {30002}",
            "service other/x port-denied",
            "service other/x host-denied",
            "service other/y host-denied",
            "service team-b/x host-denied",
        ],
    );
}

#[test]
fn options_that_decide_where_traffic_goes_hold_the_route_back_and_others_do_not() {
    check(
        &[
            service("a/h2", 30001)
                .http("h2")
                .annotate("protocol", "http2"),
            service("a/lb", 30002)
                .http("lb")
                .annotate("loadbalancing", "random"),
            service("a/max", 30003)
                .http("max")
                .annotate("max-backends", "many"),
            service("a/rs", 30004)
                .http("rs")
                .annotate("route-service-url", "http://x"),
            service("a/tls", 30005)
                .http("tls")
                .annotate("tls-server-name", "x.test"),
            service("a/typo", 30006)
                .http("typo")
                .annotate("max-backend", "1"),
        ],
        &[
            "lb.apps.test -> a/lb {30002}",
            "max.apps.test -> a/max {30003}",
            "typo.apps.test -> a/typo {30006}",
            "service a/h2 annotation-invalid",
            "service a/lb annotation-invalid",
            "service a/max annotation-invalid",
            "service a/rs annotation-invalid",
            "service a/typo annotation-unknown",
            "service a/tls tls-needs-state",
        ],
    );
}

/// Addresses of the only route's backends, in order of address.
fn addresses(desired: &Desired) -> Vec<String> {
    let mut all: Vec<String> = desired
        .table
        .http
        .values()
        .flat_map(|route| route.backends.iter().map(|backend| backend.ip.to_string()))
        .collect();
    all.sort();
    all
}

#[test]
fn one_node_gone_touches_only_the_routes_it_served() {
    let services: Vec<Build> = (0..200)
        .map(|index| service(&format!("a/x{index}"), 30000 + index).http(&format!("x{index}")))
        .collect();
    let derive_with = |nodes: &[(u8, Node)]| {
        derive(
            &cluster(&services, nodes),
            &mut Memory::default(),
            &options(),
            Uptime::ZERO,
        )
        .table
    };
    let all = nodes(50);
    let before = derive_with(&all);
    let after = derive_with(&all[1..]);
    for (uri, route) in &before.http {
        let served = route
            .backends
            .iter()
            .any(|backend| backend.node == all[0].1.uid);
        let same = route.backends == after.http[uri].backends;
        assert_eq!(same, !served, "{uri}");
    }
}

fn any_services() -> impl Strategy<Value = Vec<Build>> {
    let one = (0..12u16, 0..4i64, 0..6usize, 0..6usize, any::<bool>());
    prop::collection::vec(one, 0..12).prop_map(|drawn| {
        let hosts = ["web", "shop", "api", "b_d", "", "a.b"];
        let ports = ["2000", "2001", "70000", "x", "", "02000"];
        let build = |(id, created, host, port, tcp): (u16, i64, usize, usize, bool)| {
            let build = service(&format!("ns{}/x{id}", id % 3), 30000 + id);
            let build = build.created(created).http(hosts[host]);
            if tcp { build.tcp(ports[port]) } else { build }
        };
        drawn.into_iter().map(build).collect()
    })
}

proptest! {
    /// Whatever is asked for: every name has one owner who asked for it, a second look changes nothing, and
    /// nobody loses a name to a newcomer.
    #[test]
    fn a_second_look_changes_nothing_and_newcomers_take_nothing(
        first in any_services(), second in any_services(),
    ) {
        let mut memory = Memory::default();
        let snapshot = cluster(&first, &nodes(3));
        let before = derive(&snapshot, &mut memory, &options(), Uptime::ZERO);
        prop_assert_eq!(&derive(&snapshot, &mut memory, &options(), Uptime::ZERO).table, &before.table);
        let both: BTreeMap<ServiceKey, Build> = second
            .iter()
            .chain(&first)
            .map(|build| (build.0.service.key.clone(), build.clone()))
            .collect();
        let both: Vec<Build> = both.into_values().collect();
        let after = derive(&cluster(&both, &nodes(3)), &mut memory, &options(), Uptime::ZERO);
        for (uri, route) in &before.table.http {
            prop_assert_eq!(after.table.http.get(uri), Some(route));
        }
        for (port, route) in &before.table.tcp {
            prop_assert_eq!(after.table.tcp.get(port), Some(route));
        }
    }

    /// A bad neighbour never changes what a good Service gets.
    #[test]
    fn no_label_text_harms_a_neighbour(host in ".{0,70}", port in ".{0,12}", list in ".{0,80}") {
        let good = service("a/good", 30001).http("good").tcp("2000").created(-1);
        let bad = service("b/bad", 30002).http(&host).tcp(&port).annotate("http", &list).annotate("tcp", &list);
        let alone = derive(&cluster(std::slice::from_ref(&good), &nodes(2)), &mut Memory::default(), &options(), Uptime::ZERO);
        let together = derive(&cluster(&[good, bad], &nodes(2)), &mut Memory::default(), &options(), Uptime::ZERO);
        for (uri, route) in &alone.table.http {
            prop_assert_eq!(together.table.http.get(uri), Some(route));
        }
        for (port, route) in &alone.table.tcp {
            prop_assert_eq!(together.table.tcp.get(port), Some(route));
        }
    }
}
