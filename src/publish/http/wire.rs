//! gorouter's messages, byte for byte.
//!
//! Owns the shapes of `router.register`, `router.unregister`, `router.greet` and `router.start`, and nothing of
//! when they are sent. gorouter drops a whole message for one wrong type and tells nobody (measured,
//! routing-release 2024-10), so no field is ever a loose JSON value. Rendering is a pure function: an endpoint
//! that did not change renders to the same bytes, because gorouter resets an endpoint's connection counters
//! whenever any field of a beat differs.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::route::{
    Backend, ClusterId, Hostname, HttpProtocol, HttpRoute, NodeUid, ServiceRef, Uri,
};

/// Announces endpoints.
pub const REGISTER: &str = "router.register";
/// Withdraws endpoints.
pub const UNREGISTER: &str = "router.unregister";
/// Asks every router for its interval.
pub const GREET: &str = "router.greet";
/// Told by every router that starts or that found NATS again.
pub const START: &str = "router.start";
/// A greeting's body. Routers also hear greetings on `router.*` and parse them: an empty body makes each of
/// them log an error, this one does not (measured).
pub const GREETING: &[u8] = b"{}";

/// Uris in one message at most, so that one message never grows towards NATS' `max_payload` of 1 MiB.
pub const URIS_PER_MESSAGE_MAX: usize = 100;
/// Octets of one message at most; gorouter parses each whole, on one thread per subscription.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Octets of the cluster's name in a tag. Tags repeat in every beat to every router; all of them together stay
/// below 512 octets, as namespace and Service name have at most 63 each.
const CLUSTER_TAG_BYTES_MAX: usize = 128;

/// What gorouter assumes where nothing sensible is told (its job's default).
pub const INTERVAL_DEFAULT: Duration = Duration::from_secs(20);
/// No router may make us beat faster than this.
const INTERVAL_MIN: Duration = Duration::from_secs(5);
/// A quarter of gorouter's hard-coded prune threshold of 120 s: three beats may be lost.
const INTERVAL_MAX: Duration = Duration::from_secs(30);
/// Where even a quarter of the told prune threshold would be less.
const INTERVAL_FLOOR: Duration = Duration::from_secs(1);
/// Beats that must fit into one prune threshold.
const BEATS_PER_PRUNE: u32 = 4;

/// What every message says of us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Which cluster speaks.
    pub cluster: ClusterId,
    /// Whether the Service's UID goes out as `app`.
    pub send_app: bool,
}

/// One uri at one endpoint.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    /// The uri.
    pub uri: &'a Arc<Uri>,
    /// Its route.
    pub route: &'a HttpRoute,
    /// The endpoint, as this route has it.
    pub backend: &'a Backend,
}

/// One ready message.
pub struct Registration {
    /// The uris it carries.
    pub uris: Box<[Arc<Uri>]>,
    /// The message.
    pub payload: Bytes,
    /// Whether gorouter speaks TLS to the endpoint, and so never prunes it.
    pub tls: bool,
}

/// What a router says of itself, in `router.start` and in its answer to a greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterTold {
    /// Which router; empty where it does not say.
    pub id: String,
    /// How often it wants to hear of each endpoint.
    pub interval: Duration,
}

/// gorouter's `RegistryMessage`. Field order is the order on the wire.
#[derive(Serialize)]
struct Register<'a> {
    host: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_port: Option<u16>,
    uris: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<&'a str>,
    private_instance_id: String,
    /// A text: a number makes gorouter reject the message.
    private_instance_index: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    availability_zone: Option<&'a str>,
    tags: BTreeMap<&'static str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_cert_domain_san: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route_service_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<Options>,
}

#[derive(Serialize)]
struct Options {
    loadbalancing: &'static str,
}

/// gorouter compares uri, host and port alone; everything else would be noise.
#[derive(Serialize)]
struct Unregister<'a> {
    host: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_port: Option<u16>,
    uris: &'a [String],
}

/// Renders all uris of one endpoint into as few messages as the limits allow. Uris of one Service with the
/// same options share a message; order in is order out.
#[must_use]
pub fn registrations(identity: &Identity, entries: &[Entry<'_>]) -> Vec<Registration> {
    let mut groups: Vec<Vec<Entry<'_>>> = Vec::new();
    for entry in entries {
        let same = |group: &&mut Vec<Entry<'_>>| {
            let first = group[0];
            first.route.service == entry.route.service
                && first.route.options == entry.route.options
                && first.backend == entry.backend
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(*entry),
            None => groups.push(vec![*entry]),
        }
    }
    let mut messages = Vec::new();
    for group in &groups {
        let uris: Vec<String> = group.iter().map(|entry| entry.uri.to_string()).collect();
        for chunk in chunks(&uris) {
            let members = &group[chunk.clone()];
            messages.push(Registration {
                uris: members.iter().map(|entry| entry.uri.clone()).collect(),
                payload: register(identity, &group[0], &uris[chunk]),
                tls: group[0].route.options.tls_server_name.is_some(),
            });
        }
    }
    messages
}

/// Renders the withdrawal of some uris of one endpoint; several messages where the limits ask for it.
#[must_use]
pub fn unregistrations(addr: SocketAddr, tls: bool, uris: &[Arc<Uri>]) -> Vec<Bytes> {
    let uris: Vec<String> = uris.iter().map(ToString::to_string).collect();
    let message = |chunk: std::ops::Range<usize>| {
        json(&Unregister {
            host: addr.ip(),
            port: (!tls).then_some(addr.port()),
            tls_port: tls.then_some(addr.port()),
            uris: &uris[chunk],
        })
    };
    chunks(&uris).into_iter().map(message).collect()
}

/// Reads what a router told. Nothing it may say can break us: what is not sensible counts as the default.
#[must_use]
pub fn router_told(body: &[u8]) -> RouterTold {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let seconds = |key: &str| {
        value[key]
            .as_f64()
            .filter(|seconds| (f64::MIN_POSITIVE..1e6).contains(seconds))
            .map(Duration::from_secs_f64)
    };
    let interval = seconds("minimumRegisterIntervalInSeconds")
        .unwrap_or(INTERVAL_DEFAULT)
        .clamp(INTERVAL_MIN, INTERVAL_MAX);
    let by_prune = seconds("pruneThresholdInSeconds")
        .map_or(INTERVAL_MAX, |prune| prune / BEATS_PER_PRUNE)
        .max(INTERVAL_FLOOR);
    RouterTold {
        id: value["id"].as_str().unwrap_or_default().to_owned(),
        interval: interval.min(by_prune),
    }
}

fn register(identity: &Identity, entry: &Entry<'_>, uris: &[String]) -> Bytes {
    let Entry { route, backend, .. } = entry;
    let options = &route.options;
    let san = options.tls_server_name.as_ref();
    let port = backend.port.get();
    let app = identity
        .send_app
        .then_some(route.service.uid.as_str())
        .filter(|uid| !uid.is_empty());
    let mut tags = BTreeMap::from([
        ("cluster", shortened(&identity.cluster.0)),
        ("component", "route-sync"),
        ("namespace", route.service.key.namespace.as_str()),
        ("service", route.service.key.name.as_str()),
    ]);
    tags.extend(app.map(|uid| ("source_id", uid)));
    json(&Register {
        host: backend.ip,
        port: san.is_none().then_some(port),
        tls_port: san.is_some().then_some(port),
        uris,
        // Over plain TCP gorouter would silently speak HTTP/1.1 all the same.
        protocol: (options.protocol == HttpProtocol::Http2 && san.is_some()).then_some("http2"),
        app,
        private_instance_id: instance_id(&identity.cluster, &backend.node, &route.service, port),
        private_instance_index: instance_index(&backend.node).to_string(),
        availability_zone: backend.zone.as_deref(),
        tags,
        server_cert_domain_san: san.map(Hostname::as_str),
        route_service_url: options.route_service_url.as_deref(),
        options: options.loadbalancing.map(|way| Options {
            loadbalancing: way.as_str(),
        }),
    })
}

fn json(message: &impl Serialize) -> Bytes {
    let text = serde_json::to_vec(message).expect("a message of texts and numbers must render");
    Bytes::from(text.into_boxed_slice())
}

/// Where to cut so that no message exceeds a limit. The head of a message has at most 3 KiB, whatever the
/// labels hold, except for a route service's address, which the reader of annotations bounds.
fn chunks(uris: &[String]) -> Vec<std::ops::Range<usize>> {
    const URI_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 3 * 1024;
    let mut cuts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, uri) in uris.iter().enumerate() {
        let size = uri.len() + r#""","#.len();
        if index > start && (index - start == URIS_PER_MESSAGE_MAX || bytes + size > URI_BYTES_MAX)
        {
            cuts.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += size;
    }
    if start < uris.len() {
        cuts.push(start..uris.len());
    }
    cuts
}

fn shortened(text: &str) -> &str {
    let mut end = text.len().min(CLUSTER_TAG_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A UUID of our own making (version 8 of RFC 9562): 122 bits of FNV-1a over what makes an endpoint one. It
/// must differ between any two endpoints of a pool, else gorouter's sticky sessions all land on one of them;
/// it need not resist anybody, so FNV is enough.
fn instance_id(cluster: &ClusterId, node: &NodeUid, service: &ServiceRef, port: u16) -> String {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash = OFFSET;
    for part in [cluster.0.as_str(), &node.0, &service.uid, &port.to_string()] {
        // A byte that stands in no UTF-8 text keeps `ab`+`c` apart from `a`+`bc`.
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    }
    let hash = (hash & !(0xf << 76) & !(0x3 << 62)) | (0x8 << 76) | (0x2 << 62);
    let hex = format!("{hash:032x}");
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

/// What stands for the node in `X-CF-InstanceIndex`: the same as long as the Node object lives, and never
/// shifted by another node's coming or going, as an ordinal would be.
fn instance_index(node: &NodeUid) -> u32 {
    (super::fnv(node.0.as_bytes()) & 0x7fff_ffff) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{Backends, HttpOptions, LoadBalancing, NodePort, ServiceKey};

    fn backend() -> Backend {
        Backend {
            ip: IpAddr::from([10, 0, 0, 1]),
            port: NodePort::new(30080).unwrap(),
            node: NodeUid("node-1".into()),
            zone: Some("z1".into()),
        }
    }

    fn route(options: HttpOptions) -> HttpRoute {
        HttpRoute {
            service: Arc::new(ServiceRef {
                key: ServiceKey {
                    namespace: "default".to_owned(),
                    name: "web".to_owned(),
                },
                uid: "5d0f1e0c-7a51-4c5e-9a3e-0c2f6a9d1b11".to_owned(),
            }),
            backends: Backends::new([backend()]).unwrap(),
            options,
        }
    }

    fn uri(name: &str) -> Arc<Uri> {
        Arc::new(Uri::of_host(Hostname::parse(name).unwrap()))
    }

    fn identity() -> Identity {
        Identity {
            cluster: ClusterId("kube".to_owned()),
            send_app: true,
        }
    }

    fn render(options: HttpOptions, uris: &[Arc<Uri>]) -> Vec<Registration> {
        let (route, backend) = (route(options), backend());
        let entry = |uri| Entry {
            uri,
            route: &route,
            backend: &backend,
        };
        registrations(&identity(), &uris.iter().map(entry).collect::<Vec<_>>())
    }

    fn text(payload: &Bytes) -> &str {
        std::str::from_utf8(payload).unwrap()
    }

    #[test]
    fn a_plain_endpoint_is_announced_with_all_its_uris() {
        let messages = render(HttpOptions::default(), &[uri("a.test"), uri("b.test")]);
        assert_eq!(messages.len(), 1);
        assert_eq!(
            text(&messages[0].payload),
            concat!(
                r#"{"host":"10.0.0.1","port":30080,"uris":["a.test","b.test"],"#,
                r#""app":"5d0f1e0c-7a51-4c5e-9a3e-0c2f6a9d1b11","#,
                r#""private_instance_id":"1e7bf464-a880-8a00-ad52-32cb2f161bea","#,
                r#""private_instance_index":"1390464113","availability_zone":"z1","#,
                r#""tags":{"cluster":"kube","component":"route-sync","namespace":"default","#,
                r#""service":"web","source_id":"5d0f1e0c-7a51-4c5e-9a3e-0c2f6a9d1b11"}}"#
            )
        );
    }

    #[test]
    fn tls_brings_its_port_its_name_and_http2() {
        let options = HttpOptions {
            protocol: HttpProtocol::Http2,
            tls_server_name: Some(Hostname::parse("web.internal").unwrap()),
            loadbalancing: Some(LoadBalancing::LeastConnection),
            route_service_url: Some("https://rs.test".to_owned()),
        };
        let message = &render(options, &[uri("a.test")])[0];
        let value: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        assert!(message.tls && value["port"].is_null());
        assert_eq!(value["tls_port"], 30080);
        assert_eq!(value["protocol"], "http2");
        assert_eq!(value["server_cert_domain_san"], "web.internal");
        assert_eq!(value["route_service_url"], "https://rs.test");
        assert_eq!(value["options"]["loadbalancing"], "least-connection");
    }

    #[test]
    fn http2_without_tls_is_not_claimed() {
        let options = HttpOptions {
            protocol: HttpProtocol::Http2,
            ..HttpOptions::default()
        };
        assert!(!text(&render(options, &[uri("a.test")])[0].payload).contains("http2"));
    }

    #[test]
    fn many_uris_are_split_within_both_limits_and_none_is_lost() {
        let label = "x".repeat(60);
        let long = |n: usize| uri(&format!("a{n:03}.{label}.{label}.{label}.test"));
        for uris in [
            (0..250)
                .map(|n| uri(&format!("a{n:03}.test")))
                .collect::<Vec<_>>(),
            (0..250).map(long).collect(),
        ] {
            let messages = render(HttpOptions::default(), &uris);
            let carried: Vec<_> = messages.iter().flat_map(|m| m.uris.iter()).collect();
            assert_eq!(carried, uris.iter().collect::<Vec<_>>());
            for message in &messages {
                assert!(message.uris.len() <= URIS_PER_MESSAGE_MAX);
                assert!(message.payload.len() <= MESSAGE_BYTES_MAX);
            }
        }
    }

    #[test]
    fn a_withdrawal_names_the_port_it_was_announced_with() {
        let addr: SocketAddr = "10.0.0.1:30080".parse().unwrap();
        let of = |tls| text(&unregistrations(addr, tls, &[uri("a.test")])[0]).to_owned();
        assert_eq!(
            of(false),
            r#"{"host":"10.0.0.1","port":30080,"uris":["a.test"]}"#
        );
        assert_eq!(
            of(true),
            r#"{"host":"10.0.0.1","tls_port":30080,"uris":["a.test"]}"#
        );
    }

    #[test]
    fn an_instance_id_is_a_uuid_and_differs_by_each_of_its_parts() {
        let id = |cluster: &str, node: &str, uid: &str, port| {
            let mut service = route(HttpOptions::default()).service;
            uid.clone_into(&mut Arc::make_mut(&mut service).uid);
            let node = NodeUid(node.into());
            instance_id(&ClusterId(cluster.to_owned()), &node, &service, port)
        };
        let ids = [
            id("a", "b", "c", 1),
            id("x", "b", "c", 1),
            id("a", "x", "c", 1),
            id("a", "b", "x", 1),
            id("a", "b", "c", 2),
            id("ab", "", "c", 1),
        ];
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
        for id in &ids {
            assert_eq!(id.len(), 36);
            assert_eq!(&id[14..15], "8", "{id}");
            assert!("89ab".contains(&id[19..20]), "{id}");
        }
    }

    #[test]
    fn whatever_a_router_tells_becomes_a_usable_interval() {
        let check = |body: &str, seconds: u64| {
            assert_eq!(
                router_told(body.as_bytes()).interval,
                Duration::from_secs(seconds),
                "{body}"
            );
        };
        check(r#"{"minimumRegisterIntervalInSeconds":20}"#, 20);
        check(r#"{"minimumRegisterIntervalInSeconds":7}"#, 7);
        check(r#"{"minimumRegisterIntervalInSeconds":1}"#, 5);
        check(r#"{"minimumRegisterIntervalInSeconds":600}"#, 30);
        check(r#"{"minimumRegisterIntervalInSeconds":0}"#, 20);
        check(r#"{"minimumRegisterIntervalInSeconds":-3}"#, 20);
        check(r#"{"minimumRegisterIntervalInSeconds":1e300}"#, 20);
        check(r#"{"minimumRegisterIntervalInSeconds":"20"}"#, 20);
        check("nonsense", 20);
        check("", 20);
        check(
            r#"{"minimumRegisterIntervalInSeconds":20,"pruneThresholdInSeconds":24}"#,
            6,
        );
    }
}
