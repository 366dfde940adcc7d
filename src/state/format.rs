//! The bytes of a state file: a line that tells version, length and checksum, and a line of JSON.
//!
//! The first line is compared byte by byte with the one that belongs to the second, so that whatever was cut,
//! flipped or added anywhere is found. Only the version is read before that: a newer or older file says so.
//! Services and nodes stand in it once each and are named by number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Contents, Foundation, Withdrawal};
use crate::desired::Desired;
use crate::desired::guard::{Name, Reason, Remembered};
use crate::lease::Kept;
use crate::plan::TcpRow;
use crate::route::{
    Backend, Backends, ClusterId, Hostname, HttpOptions, HttpProtocol, HttpRoute, LoadBalancing,
    NodePort, NodeUid, RouteTable, RouterPort, ServiceKey, ServiceRef, TcpRoute, Uri, UriError,
};

/// Counts up with every change that another version would misread.
const VERSION: u64 = 1;
/// The first line is some 70 bytes; no more is looked through for its end.
const HEAD_BYTES_MAX: usize = 256;
/// The reversed polynomial of CRC-32 as in IEEE 802.3: finds every single flip and every burst of up to 32 bits.
const CRC_POLYNOMIAL: u32 = 0xedb8_8320;

/// Why bytes are no state.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Cut, or something else altogether.
    #[error("it does not begin as a state file does")]
    Head,
    /// An older or newer route-sync wrote it.
    #[error("it has version {0}, not {VERSION}")]
    Version(u64),
    /// Cut or damaged.
    #[error("it is cut or damaged: length or checksum differ")]
    Damaged,
    /// The checksum is right, and yet.
    #[error("it is no JSON of ours")]
    Json(#[source] serde_json::Error),
    /// A name that is none.
    #[error("it names a uri that is none")]
    Uri(#[source] UriError),
    /// A number that leads nowhere.
    #[error("it holds a {0} that cannot be")]
    Value(&'static str),
}

/// What is to be written, borrowed from whoever holds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) written_secs: u64,
    pub(super) foundation: &'a Foundation,
    /// The HTTP routes are this table's …
    pub(super) http: &'a Desired,
    /// … and all else is this one's.
    pub(super) rest: &'a Desired,
    pub(super) withdrawals: &'a BTreeSet<Withdrawal>,
    pub(super) rows: &'a BTreeSet<TcpRow>,
    pub(super) lease: Option<&'a Kept>,
    pub(super) guard: &'a Remembered,
}

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "route-sync-state")]
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Body {
    written: u64,
    apiserver: String,
    app_domain: String,
    router_group: Option<String>,
    routing_api: Option<String>,
    cluster: String,
    /// Namespace, name, UID.
    services: Vec<(String, String, String)>,
    /// UID, zone.
    nodes: Vec<(String, Option<String>)>,
    http: BTreeMap<String, Http>,
    tcp: BTreeMap<u16, Tcp>,
    node_ips: BTreeMap<IpAddr, String>,
    node_ports: BTreeMap<u16, usize>,
    /// Each uri with its endpoints, and whether they are TLS.
    withdrawals: Vec<(String, SocketAddr, bool)>,
    rows: Vec<Row>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kube_system: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    held: Vec<Held>,
    /// Absent where nobody shares the work; older versions wrote none and read past it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<Lease>,
}

#[derive(Serialize, Deserialize)]
struct Lease {
    identity: String,
    generation: u64,
    held: bool,
}

/// Address and number of the node.
type Place = (SocketAddr, usize);

#[derive(Serialize, Deserialize)]
struct Http {
    service: usize,
    backends: Vec<Place>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    http2: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls_server_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loadbalancing: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    route_service_url: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Tcp {
    service: usize,
    backends: Vec<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    router_group: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    port: u16,
    ip: String,
    backend_port: u16,
    tls_port: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sni: Option<String>,
    group: String,
}

/// A route that stays though nothing asks for it.
#[derive(Serialize, Deserialize)]
struct Held {
    lane: String,
    name: String,
    /// Because all of its lane would go; else because many would.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    every: bool,
}

/// Gives each Service and node its number.
#[derive(Default)]
struct Numbers<'a> {
    services: BTreeMap<&'a ServiceRef, usize>,
    nodes: BTreeMap<(&'a NodeUid, Option<&'a str>), usize>,
}

/// What the numbers stand for.
struct Names {
    services: Vec<Arc<ServiceRef>>,
    nodes: Vec<(NodeUid, Option<Arc<str>>)>,
}

pub(super) fn encode(record: Record<'_>) -> Vec<u8> {
    let body = serde_json::to_vec(&Body::of(record)).expect("texts and numbers must be JSON");
    let mut bytes = head(&body);
    bytes.extend(body);
    bytes.push(b'\n');
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Result<Contents, FormatError> {
    let start = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    let end = start.iter().position(|byte| *byte == b'\n');
    let (first, rest) = bytes.split_at(end.ok_or(FormatError::Head)? + 1);
    let Head { version } = serde_json::from_slice(first).map_err(|_| FormatError::Head)?;
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    let body = rest.strip_suffix(b"\n").ok_or(FormatError::Damaged)?;
    if first != head(body) {
        return Err(FormatError::Damaged);
    }
    let body: Body = serde_json::from_slice(body).map_err(FormatError::Json)?;
    body.contents()
}

// === impl Contents ===

impl Contents {
    /// Reads the bytes of a state file.
    ///
    /// # Errors
    /// Whatever another version wrote, or anything but a disk did to it since.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        decode(bytes)
    }

    /// The bytes of a state file that holds this.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(Record {
            written_secs: self.written_secs,
            foundation: &self.foundation,
            http: &self.desired,
            rest: &self.desired,
            withdrawals: &self.withdrawals,
            rows: &self.rows,
            guard: &self.guard,
            lease: self.lease.as_ref(),
        })
    }
}

/// The first line that belongs to a second.
fn head(body: &[u8]) -> Vec<u8> {
    let (bytes, crc) = (body.len(), crc32(body));
    let head =
        format!("{{\"route-sync-state\":{VERSION},\"bytes\":{bytes},\"crc32\":\"{crc:08x}\"}}\n");
    head.into_bytes()
}

/// Eight lines instead of a dependency; some megabytes a minute need no faster one.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        CRC_TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8)
    })
}

static CRC_TABLE: [u32; 256] = crc_table();

const fn crc_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    let mut first = 0;
    while index < table.len() {
        let mut crc: u32 = first;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (CRC_POLYNOMIAL * (crc & 1));
            bit += 1;
        }
        table[index] = crc;
        index += 1;
        first += 1;
    }
    table
}

// === impl Body ===

impl Body {
    fn of(record: Record<'_>) -> Self {
        let Record {
            written_secs,
            foundation,
            http,
            rest,
            withdrawals,
            rows,
            lease,
            guard,
        } = record;
        let mut numbers = Numbers::default();
        let http = http.table.http.iter();
        let http = http.map(|(uri, route)| (uri.to_string(), Http::of(route, &mut numbers)));
        let http = http.collect();
        let tcp = rest.table.tcp.iter();
        let tcp = tcp.map(|(port, route)| (port.get(), Tcp::of(route, &mut numbers)));
        let tcp = tcp.collect();
        let node_ports = rest.node_ports.iter();
        let node_ports = node_ports.map(|(port, service)| (port.get(), numbers.service(service)));
        let node_ports = node_ports.collect();
        let withdrawals = withdrawals.iter();
        let foundation = foundation.clone();
        Self {
            written: written_secs,
            apiserver: foundation.apiserver,
            app_domain: foundation.app_domain,
            router_group: foundation.router_group,
            routing_api: foundation.routing_api,
            cluster: rest.cluster.0.clone(),
            http,
            tcp,
            node_ips: rest.node_ips.clone(),
            node_ports,
            withdrawals: withdrawals
                .map(|key| (key.uri.to_string(), key.addr, key.tls))
                .collect(),
            rows: rows.iter().map(Row::of).collect(),
            lease: lease.cloned().map(Lease::of),
            kube_system: guard.kube_system.clone(),
            held: guard.held.iter().map(Held::of).collect(),
            services: numbers.service_names(),
            nodes: numbers.node_names(),
        }
    }

    fn contents(self) -> Result<Contents, FormatError> {
        let names = Names::of(self.services, self.nodes);
        let http = self.http.into_iter().map(|(uri, route)| {
            let uri = Uri::parse(&uri).map_err(FormatError::Uri)?;
            Ok((uri, route.route(&names)?))
        });
        let tcp = self.tcp.into_iter();
        let tcp = tcp.map(|(port, route)| Ok((router_port(port)?, route.route(&names)?)));
        let table = RouteTable {
            http: http.collect::<Result<_, FormatError>>()?,
            tcp: tcp.collect::<Result<_, FormatError>>()?,
        };
        let node_ports = self.node_ports.into_iter();
        let node_ports = node_ports
            .map(|(port, service)| Ok((node_port(port)?, names.service(service)?)))
            .collect::<Result<_, FormatError>>()?;
        let withdrawal = |(uri, addr, tls): (String, SocketAddr, bool)| {
            let uri = Arc::new(Uri::parse(&uri).map_err(FormatError::Uri)?);
            Ok(Withdrawal { uri, addr, tls })
        };
        let withdrawals = self.withdrawals.into_iter().map(withdrawal);
        let rows = self.rows.into_iter().map(Row::row);
        let held = self.held.into_iter().map(Held::entry);
        Ok(Contents {
            written_secs: self.written,
            foundation: Foundation {
                apiserver: self.apiserver,
                app_domain: self.app_domain,
                router_group: self.router_group,
                routing_api: self.routing_api,
            },
            desired: Arc::new(Desired {
                node_ips: self.node_ips,
                node_ports,
                ..Desired::of(ClusterId(self.cluster), table)
            }),
            withdrawals: withdrawals.collect::<Result<_, FormatError>>()?,
            rows: rows.collect::<Result<_, FormatError>>()?,
            lease: self.lease.map(Lease::kept),
            guard: Remembered {
                kube_system: self.kube_system,
                held: held.collect::<Result<_, FormatError>>()?,
            },
        })
    }
}

// === impl Lease ===

impl Lease {
    fn of(kept: Kept) -> Self {
        let Kept {
            identity,
            generation,
            held,
        } = kept;
        Self {
            identity,
            generation,
            held,
        }
    }

    fn kept(self) -> Kept {
        let Self {
            identity,
            generation,
            held,
        } = self;
        Kept {
            identity,
            generation,
            held,
        }
    }
}

// === impl Http, Tcp, Row, Held ===

impl Http {
    fn of<'a>(route: &'a HttpRoute, numbers: &mut Numbers<'a>) -> Self {
        let HttpOptions {
            protocol,
            tls_server_name,
            loadbalancing,
            route_service_url,
        } = &route.options;
        Self {
            service: numbers.service(&route.service),
            backends: numbers.places(&route.backends),
            http2: *protocol == HttpProtocol::Http2,
            tls_server_name: tls_server_name.as_ref().map(ToString::to_string),
            loadbalancing: loadbalancing.map(|how| how.as_str().to_owned()),
            route_service_url: route_service_url.clone(),
        }
    }

    fn route(self, names: &Names) -> Result<HttpRoute, FormatError> {
        let name = self.tls_server_name.as_deref().map(Hostname::parse);
        let name = name.transpose();
        let loadbalancing = self.loadbalancing.map(|text| {
            let known = [LoadBalancing::RoundRobin, LoadBalancing::LeastConnection];
            let how = known.into_iter().find(|how| how.as_str() == text);
            how.ok_or(FormatError::Value("way to balance"))
        });
        Ok(HttpRoute {
            service: names.service(self.service)?,
            backends: names.backends(self.backends)?,
            options: HttpOptions {
                protocol: if self.http2 {
                    HttpProtocol::Http2
                } else {
                    HttpProtocol::Http1
                },
                tls_server_name: name.map_err(|_| FormatError::Value("server name"))?,
                loadbalancing: loadbalancing.transpose()?,
                route_service_url: self.route_service_url,
            },
        })
    }
}

impl Tcp {
    fn of<'a>(route: &'a TcpRoute, numbers: &mut Numbers<'a>) -> Self {
        Self {
            service: numbers.service(&route.service),
            backends: numbers.places(&route.backends),
            router_group: route.router_group.clone(),
        }
    }

    fn route(self, names: &Names) -> Result<TcpRoute, FormatError> {
        Ok(TcpRoute {
            service: names.service(self.service)?,
            router_group: self.router_group,
            backends: names.backends(self.backends)?,
        })
    }
}

impl Row {
    fn of(row: &TcpRow) -> Self {
        let row = row.clone();
        Self {
            port: row.port.get(),
            ip: row.ip,
            backend_port: row.backend_port,
            tls_port: row.tls_port,
            sni: row.sni,
            group: row.group,
        }
    }

    fn row(self) -> Result<TcpRow, FormatError> {
        Ok(TcpRow {
            port: router_port(self.port)?,
            ip: self.ip,
            backend_port: self.backend_port,
            tls_port: self.tls_port,
            sni: self.sni,
            group: self.group,
        })
    }
}

impl Held {
    fn of((name, reason): (&Name, &Reason)) -> Self {
        Self {
            lane: name.lane().to_string(),
            name: name.to_string(),
            every: matches!(reason, Reason::EveryRoute(_)),
        }
    }

    fn entry(self) -> Result<(Name, Reason), FormatError> {
        let name = match self.lane.as_str() {
            "http" => Name::Http(Uri::parse(&self.name).map_err(FormatError::Uri)?),
            "tcp" => {
                let port = self.name.parse();
                Name::Tcp(router_port(
                    port.map_err(|_| FormatError::Value("port that is none"))?,
                )?)
            }
            _ => return Err(FormatError::Value("lane")),
        };
        let lane = name.lane();
        let reason = if self.every {
            Reason::EveryRoute(lane)
        } else {
            Reason::TooMany(lane)
        };
        Ok((name, reason))
    }
}

// === impl Numbers ===

impl<'a> Numbers<'a> {
    fn service(&mut self, service: &'a ServiceRef) -> usize {
        let next = self.services.len();
        *self.services.entry(service).or_insert(next)
    }

    fn places(&mut self, backends: &'a Backends) -> Vec<Place> {
        let place = |backend: &'a Backend| {
            let next = self.nodes.len();
            let node = (&backend.node, backend.zone.as_deref());
            let node = *self.nodes.entry(node).or_insert(next);
            (SocketAddr::new(backend.ip, backend.port.get()), node)
        };
        backends.iter().map(place).collect()
    }

    fn service_names(&self) -> Vec<(String, String, String)> {
        let mut names: Vec<_> = self.services.iter().collect();
        names.sort_by_key(|(_, number)| **number);
        let name = |(service, _): (&&ServiceRef, &usize)| {
            let ServiceKey { namespace, name } = service.key.clone();
            (namespace, name, service.uid.clone())
        };
        names.into_iter().map(name).collect()
    }

    fn node_names(&self) -> Vec<(String, Option<String>)> {
        let mut names: Vec<_> = self.nodes.iter().collect();
        names.sort_by_key(|(_, number)| **number);
        let names = names.into_iter().map(|(node, _)| *node);
        names
            .map(|(node, zone)| (node.0.to_string(), zone.map(str::to_owned)))
            .collect()
    }
}

// === impl Names ===

impl Names {
    fn of(services: Vec<(String, String, String)>, nodes: Vec<(String, Option<String>)>) -> Self {
        let service = |(namespace, name, uid)| {
            let key = ServiceKey { namespace, name };
            Arc::new(ServiceRef { key, uid })
        };
        let node =
            |(uid, zone): (String, Option<String>)| (NodeUid(uid.into()), zone.map(Into::into));
        Self {
            services: services.into_iter().map(service).collect(),
            nodes: nodes.into_iter().map(node).collect(),
        }
    }

    fn service(&self, number: usize) -> Result<Arc<ServiceRef>, FormatError> {
        let service = self.services.get(number).cloned();
        service.ok_or(FormatError::Value("Service's number"))
    }

    fn backends(&self, places: Vec<Place>) -> Result<Backends, FormatError> {
        let backend = |(addr, node): Place| {
            let node = self.nodes.get(node).cloned();
            let (node, zone) = node.ok_or(FormatError::Value("node's number"))?;
            Ok(Backend {
                ip: addr.ip(),
                port: node_port(addr.port())?,
                node,
                zone,
            })
        };
        let backends: Vec<_> = places
            .into_iter()
            .map(backend)
            .collect::<Result<_, FormatError>>()?;
        Backends::new(backends).ok_or(FormatError::Value("route without backends"))
    }
}

fn router_port(port: u16) -> Result<RouterPort, FormatError> {
    RouterPort::new(port).ok_or(FormatError::Value("port 0"))
}

fn node_port(port: u16) -> Result<NodePort, FormatError> {
    NodePort::new(port).ok_or(FormatError::Value("port 0"))
}
