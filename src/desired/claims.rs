//! What one Service asks for, read from its labels and annotations.
//!
//! A label opts the Service in to a lane; annotations under `route-sync.cloudfoundry.org/` say what a label's
//! grammar cannot. An annotation that says *where* traffic goes (a name, a port, TLS) must be right or its lane
//! has no route: guessing could expose the wrong thing. One that only tunes is passed over with a finding.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::{ANNOTATION_PREFIX, Code, Finding, HTTP_LABEL, Options, TCP_LABEL, listed};
use crate::kubernetes::snapshot::{Protocol, Service, ServicePort};
use crate::quote::clipped;
use crate::route::{
    Hostname, HttpOptions, HttpProtocol, LoadBalancing, NodePort, RouterPort, ServiceKey, Uri,
};

/// Names one annotation may list. Each costs a pool in every gorouter; more is a mistake.
const NAMES_MAX: usize = 64;
/// Octets of a route service's address: it is repeated with every beat of every backend to every router.
const URL_BYTES_MAX: usize = 1024;
/// The lowest port a router group can reserve (routing API, all versions).
const ROUTER_PORT_MIN: u16 = 1024;

/// Every annotation there is, without the prefix.
pub(super) const ANNOTATIONS: [&str; 12] = [
    "domain",
    "hand-over-to",
    "http",
    "loadbalancing",
    "max-backends",
    "port",
    "protocol",
    "require-ready-endpoints",
    "route-service-url",
    "router-group",
    "tcp",
    "tls-server-name",
];

/// What one Service asks for, before anybody else is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    pub http: BTreeMap<Uri, NodePort>,
    pub tcp: BTreeMap<RouterPort, NodePort>,
    pub http_options: HttpOptions,
    pub router_group: Option<String>,
    pub max_backends: Option<usize>,
    pub require_ready_endpoints: bool,
    pub hand_over_to: Option<ServiceKey>,
}

/// Reads one Service. What cannot be read is a finding; the rest of the wish stands.
pub(super) fn read(service: &Service, options: &Options, findings: &mut Vec<Finding>) -> Wish {
    let mut reader = Reader {
        service,
        options,
        findings,
    };
    reader.tell_stray_annotations();
    let http_options = if service.http_label.is_some() {
        reader.http_options()
    } else {
        None
    };
    Wish {
        http: if http_options.is_some() {
            reader.http()
        } else {
            BTreeMap::new()
        },
        tcp: reader.tcp(),
        http_options: http_options.unwrap_or_default(),
        router_group: reader.annotation("router-group").map(str::to_owned),
        max_backends: reader.tuning("max-backends", "a number; 0 is every node"),
        require_ready_endpoints: reader
            .tuning("require-ready-endpoints", "`true` or `false`")
            .unwrap_or(false),
        hand_over_to: reader.hand_over_to(),
    }
}

struct Reader<'a> {
    service: &'a Service,
    options: &'a Options,
    findings: &'a mut Vec<Finding>,
}

/// One element of a list: perhaps a port of the Service, and a name on the router.
struct Element<'a> {
    port: Option<&'a str>,
    name: &'a str,
}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn annotation(&self, name: &str) -> Option<&'a str> {
        self.service.annotations.get(name).map(|text| text.trim())
    }

    fn tell(&mut self, code: Code, message: impl Into<String>) -> &mut Finding {
        self.findings.push(Finding::on_service(
            code,
            &self.service.service.key,
            message,
        ));
        self.findings
            .last_mut()
            .expect("a finding that was just pushed must be there")
    }

    fn tell_bad_annotation(&mut self, name: &str, text: &str, expected: &str) {
        let message = format!(
            "annotation `{ANNOTATION_PREFIX}{name}` is {}, not {expected}",
            quoted(text)
        );
        self.tell(Code::AnnotationInvalid, message);
    }

    fn tell_stray_annotations(&mut self) {
        for name in self.service.annotations.keys() {
            if !ANNOTATIONS.contains(&name.as_str()) {
                let text = format!(
                    "annotation `{ANNOTATION_PREFIX}{}` is not known",
                    clipped(name)
                );
                self.tell(Code::AnnotationUnknown, text).hint =
                    Some(format!("there are {}", ANNOTATIONS.join(", ")));
            }
        }
        let lanes = [
            ("http", HTTP_LABEL, &self.service.http_label),
            ("tcp", TCP_LABEL, &self.service.tcp_label),
        ];
        for (name, label, value) in lanes {
            if value.is_none() && self.annotation(name).is_some() {
                let text = format!(
                    "annotation `{ANNOTATION_PREFIX}{name}` stands without label `{label}`"
                );
                self.tell(Code::AnnotationWithoutLabel, text).hint = Some(format!(
                    "add the label `{label}`; its value may be anything"
                ));
            }
        }
    }

    /// An annotation that only tunes: what cannot be read is passed over.
    fn tuning<T: FromStr>(&mut self, name: &str, expected: &str) -> Option<T> {
        let text = self.annotation(name)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.tell_bad_annotation(name, text, expected);
        }
        value
    }

    /// Whom the Service gives its names to.
    fn hand_over_to(&mut self) -> Option<ServiceKey> {
        let text = self.annotation("hand-over-to")?;
        let other = ServiceKey::parse(text).filter(|key| *key != self.service.service.key);
        if other.is_none() {
            self.tell_bad_annotation("hand-over-to", text, "`namespace/name` of another Service");
        }
        other
    }

    fn http_options(&mut self) -> Option<HttpOptions> {
        let protocol = match self.annotation("protocol") {
            None | Some("http1") => HttpProtocol::Http1,
            Some("http2") => HttpProtocol::Http2,
            Some(text) => {
                self.tell_bad_annotation("protocol", text, "`http1` or `http2`");
                return None;
            }
        };
        let tls_server_name = match self.annotation("tls-server-name").map(Hostname::parse) {
            None => None,
            Some(Ok(name)) => Some(name),
            Some(Err(error)) => {
                let text = format!("annotation `{ANNOTATION_PREFIX}tls-server-name`: {error}");
                self.tell(Code::AnnotationInvalid, text);
                return None;
            }
        };
        if tls_server_name.is_some() && !self.options.state_survives {
            let text = "gorouter never prunes a TLS backend by age, so its withdrawal must survive \
                        a restart of route-sync";
            self.tell(Code::TlsNeedsState, text).hint =
                Some("an operator can set `state.dir`".to_owned());
            return None;
        }
        if protocol == HttpProtocol::Http2 && tls_server_name.is_none() {
            let text = "gorouter speaks HTTP/2 to TLS backends only";
            self.tell(Code::AnnotationInvalid, text).hint =
                Some(format!("set `{ANNOTATION_PREFIX}tls-server-name` as well"));
            return None;
        }
        let route_service_url = self.annotation("route-service-url").map(str::to_owned);
        // Anything else makes gorouter refuse the whole message (measured).
        if let Some(url) = route_service_url.as_deref().filter(|url| !is_https(url)) {
            let expected = "an `https://` address of at most 1024 characters";
            if url.contains('@') {
                // What stands before it may be a password.
                let name = "route-service-url";
                let text = format!("annotation `{ANNOTATION_PREFIX}{name}` is not {expected}");
                self.tell(Code::AnnotationInvalid, text);
            } else {
                self.tell_bad_annotation("route-service-url", url, expected);
            }
            return None;
        }
        let loadbalancing = self.loadbalancing(tls_server_name.is_some());
        Some(HttpOptions {
            protocol,
            tls_server_name,
            loadbalancing,
            route_service_url,
        })
    }

    fn loadbalancing(&mut self, tls: bool) -> Option<LoadBalancing> {
        match self.annotation("loadbalancing")? {
            "round-robin" => Some(LoadBalancing::RoundRobin),
            "least-connection" => {
                if !tls {
                    let text = "with `least-connection` gorouter prefers a dead node to a live one, \
                                because it has the fewest connections";
                    self.tell(Code::LoadbalancingRisky, text).hint =
                        Some("use `round-robin` unless the backend speaks TLS".to_owned());
                }
                Some(LoadBalancing::LeastConnection)
            }
            text => {
                let expected = "`round-robin` or `least-connection`";
                self.tell_bad_annotation("loadbalancing", text, expected);
                None
            }
        }
    }

    fn http(&mut self) -> BTreeMap<Uri, NodePort> {
        let Some(label) = &self.service.http_label else {
            return BTreeMap::new();
        };
        let Some(domain) = self.domain() else {
            return BTreeMap::new();
        };
        let mut wanted = BTreeMap::new();
        match self.annotation("http") {
            None => {
                let host = Hostname::parse(label).and_then(|host| host.below(&domain));
                match host {
                    Ok(host) => self.want(&mut wanted, Uri::of_host(host), None, true),
                    Err(error) => {
                        let text = format!("label `{HTTP_LABEL}` is {}: {error}", quoted(label));
                        self.tell(Code::HostInvalid, text);
                    }
                }
            }
            Some(list) => {
                for element in self.elements("http", list) {
                    match self.uri(element.name, &domain) {
                        Ok(uri) => self.want(&mut wanted, uri, element.port, true),
                        Err(error) => {
                            let name = quoted(element.name);
                            let text =
                                format!("annotation `{ANNOTATION_PREFIX}http`: {name}: {error}");
                            self.tell(Code::HostInvalid, text);
                        }
                    }
                }
            }
        }
        wanted
    }

    fn tcp(&mut self) -> BTreeMap<RouterPort, NodePort> {
        let Some(label) = &self.service.tcp_label else {
            return BTreeMap::new();
        };
        let mut wanted = BTreeMap::new();
        match self.annotation("tcp") {
            None => {
                if let Some(port) = self.router_port(label, &format!("label `{TCP_LABEL}`")) {
                    self.want(&mut wanted, port, None, false);
                }
            }
            Some(list) => {
                for element in self.elements("tcp", list) {
                    let place = format!("annotation `{ANNOTATION_PREFIX}tcp`");
                    if let Some(port) = self.router_port(element.name, &place) {
                        self.want(&mut wanted, port, element.port, false);
                    }
                }
            }
        }
        wanted
    }

    /// Enters one name with the node port it leads to. One name cannot lead to two ports.
    fn want<N: Ord + std::fmt::Display>(
        &mut self,
        wanted: &mut BTreeMap<N, NodePort>,
        name: N,
        port: Option<&str>,
        http: bool,
    ) {
        let Some(node_port) = self.node_port(port, http) else {
            return;
        };
        if let Some(other) = wanted.get(&name).filter(|other| **other != node_port) {
            let name = quoted(&name.to_string());
            let text = format!("{name} is to lead to two ports; node port {other} was taken");
            self.tell(Code::AnnotationInvalid, text);
            return;
        }
        wanted.insert(name, node_port);
    }

    fn elements(&mut self, annotation: &str, list: &'a str) -> Vec<Element<'a>> {
        let elements: Vec<Element<'a>> = list
            .split(',')
            .map(str::trim)
            .map(|text| {
                // A path may hold an equals sign of its own.
                let slash = text.find('/').unwrap_or(text.len());
                match text.find('=').filter(|equals| *equals < slash) {
                    Some(equals) => Element {
                        port: Some(text[..equals].trim()),
                        name: text[equals + 1..].trim(),
                    },
                    None => Element {
                        port: None,
                        name: text,
                    },
                }
            })
            .collect();
        if elements.len() > NAMES_MAX {
            let text = format!(
                "annotation `{ANNOTATION_PREFIX}{annotation}` lists {} names; the first {NAMES_MAX} count",
                elements.len()
            );
            self.tell(Code::AnnotationInvalid, text);
        }
        elements.into_iter().take(NAMES_MAX).collect()
    }

    /// The domain that bare hosts of this Service get.
    fn domain(&mut self) -> Option<Hostname> {
        let Some(text) = self.annotation("domain") else {
            return Some(self.options.app_domain.clone());
        };
        let known = Hostname::parse(text)
            .ok()
            .filter(|name| self.options.domains.contains(name));
        if known.is_none() {
            let domains = listed(self.options.domains.iter().map(Hostname::as_str));
            let text = format!(
                "annotation `{ANNOTATION_PREFIX}domain` is {}, not one of {domains}",
                quoted(text)
            );
            self.tell(Code::AnnotationInvalid, text).hint =
                Some("an operator can add it to `routes.domains`".to_owned());
        }
        known
    }

    /// `[*.]host[.domain][/path]`; a name that ends in one of the domains is a full one.
    fn uri(&self, text: &str, domain: &Hostname) -> Result<Uri, crate::route::UriError> {
        let (name, path) = text
            .find('/')
            .map_or((text, ""), |slash| text.split_at(slash));
        let (wildcard, name) = match name.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, name),
        };
        let host = Hostname::parse(name)?;
        let full = self
            .options
            .domains
            .iter()
            .any(|domain| host.is_within(domain));
        let host = if full { host } else { host.below(domain)? };
        let uri = if wildcard {
            Uri::below_host(host)
        } else {
            Uri::of_host(host)
        };
        uri.with_path(path)
    }

    /// Decimal digits only; leading zeros are tolerated, as the original did.
    fn router_port(&mut self, text: &str, place: &str) -> Option<RouterPort> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            self.tell(
                Code::PortNotANumber,
                format!("{place} is {}, not a port number", quoted(text)),
            )
            .hint = Some("write decimal digits in quotes, such as \"1024\"".to_owned());
            return None;
        }
        let port = text
            .parse::<u16>()
            .ok()
            .filter(|port| *port >= ROUTER_PORT_MIN);
        if port.is_none() {
            let text = format!(
                "{place} is {}; a router opens ports 1024 to 65535 only",
                quoted(text)
            );
            self.tell(Code::PortOutOfRange, text);
        }
        port.and_then(RouterPort::new)
    }

    /// The one port of the Service that a name leads to.
    fn node_port(&mut self, wanted: Option<&str>, http: bool) -> Option<NodePort> {
        if let Some(reference) = wanted.or_else(|| self.annotation("port")) {
            let number = reference.parse::<u16>().ok();
            let named = |port: &&ServicePort| {
                port.name.as_deref() == Some(reference) || Some(port.port) == number
            };
            // One number may stand for TCP and for UDP, as DNS has it: then the one that routers can use.
            let usable = |port: &&ServicePort| port.protocol == Protocol::Tcp;
            let mut ports = self.service.ports.iter().filter(named);
            let tcp = ports.clone().find(usable);
            let Some(port) = tcp.or_else(|| ports.next()) else {
                self.tell(
                    Code::PortUnknown,
                    format!("the Service has no port {}", quoted(reference)),
                );
                return None;
            };
            return self.usable(port);
        }
        let ports = &self.service.ports;
        let tcp = || ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        let open = || tcp().filter(|port| port.node_port.is_some());
        let Some(first) = open().next() else {
            let any = tcp().next().or(ports.first());
            if any.is_none() {
                self.tell(Code::NoNodePort, "the Service has no port");
            }
            return any.and_then(|port| self.usable(port));
        };
        let count = open().count();
        if count == 1 {
            return first.node_port;
        }
        let mut speaking = open().filter(|port| speaks_http(port));
        if let (true, Some(only), None) = (http, speaking.next(), speaking.next()) {
            return only.node_port;
        }
        let name = port_name(first);
        let text = format!("it has {count} ports and does not say which; {name} was taken");
        self.tell(Code::PortAmbiguous, text).hint =
            Some(format!("set annotation `{ANNOTATION_PREFIX}port`"));
        first.node_port
    }

    /// The node port of a port, if routers can use it.
    fn usable(&mut self, port: &ServicePort) -> Option<NodePort> {
        let name = port_name(port);
        match (port.protocol, port.node_port) {
            (Protocol::Tcp, Some(node_port)) => Some(node_port),
            (Protocol::Tcp, None) => {
                self.tell(Code::NoNodePort, format!("{name} has no node port"))
                    .hint = Some("set `spec.type: NodePort`".to_owned());
                None
            }
            (Protocol::Udp | Protocol::Sctp, _) => {
                let text = format!("{name} is not TCP, which is all that routers take");
                self.tell(Code::ProtocolUnsupported, text);
                None
            }
        }
    }
}

fn speaks_http(port: &ServicePort) -> bool {
    let named = port
        .name
        .as_deref()
        .is_some_and(|name| name == "http" || name.starts_with("http-"));
    named || port.app_protocol.as_deref() == Some("http")
}

fn port_name(port: &ServicePort) -> String {
    match &port.name {
        Some(name) => format!("port {}", quoted(name)),
        None => format!("port {}", port.port),
    }
}

/// A tenant's text in a finding.
fn quoted(text: &str) -> String {
    format!("`{}`", clipped(text))
}

fn is_https(url: &str) -> bool {
    url.strip_prefix("https://").is_some_and(|rest| {
        url.len() <= URL_BYTES_MAX
            && !rest.is_empty()
            && rest.bytes().all(|byte| byte.is_ascii_graphic())
    })
}
