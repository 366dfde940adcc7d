//! The apiserver's JSON, cut down to what we read of it, and how it becomes the snapshot's values.
//!
//! A page is first read as a whole; only if that fails is each object read on its own, so that one object
//! which cannot be read costs itself and not the list. What cannot be read is told, never guessed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::snapshot::{Endpoints, Node, Protocol, Service, ServicePort};
use crate::desired::{ANNOTATION_PREFIX, HTTP_LABEL, TCP_LABEL};
use crate::route::{NodePort, NodeUid, ServiceKey, ServiceRef};

const SLICE_SERVICE_LABEL: &str = "kubernetes.io/service-name";
const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Its name up to Kubernetes 1.18; its mere presence excludes.
const EXCLUDE_LABEL_OLD: &str = "alpha.service-controller.kubernetes.io/exclude-balancer";
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Its name up to Kubernetes 1.16.
const ZONE_LABEL_OLD: &str = "failure-domain.beta.kubernetes.io/zone";

/// What a resource's objects are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Service,
    Node,
    EndpointSlice,
    Endpoints,
}

/// Namespace and name; the namespace is empty for Nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ObjectKey {
    pub(super) namespace: String,
    pub(super) name: String,
}

/// One object as it was delivered.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) key: ObjectKey,
    pub(super) uid: String,
    pub(super) resource_version: String,
    /// It carries a deletionTimestamp.
    pub(super) deleting: bool,
    /// Its meaning, or why it cannot be read.
    pub(super) object: Result<Object, String>,
}

/// What an object means to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Object {
    Service(Box<Service>),
    Node(Box<Node>),
    Endpoints(ServiceKey, Endpoints),
}

/// One page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) resource_version: String,
    pub(super) next: Option<String>,
    pub(super) items: Vec<Item>,
}

/// One line of a watch.
#[derive(Debug)]
pub(super) enum Event {
    Applied(Item),
    Deleted(Item),
    Bookmark(String),
    /// The apiserver ends the watch with a Status.
    Error {
        code: u16,
        message: String,
    },
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    namespace: String,
    uid: String,
    resource_version: String,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawList<T> {
    metadata: ListMetadata,
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct RawService {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: ServiceSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    ports: Option<Vec<RawPort>>,
    external_traffic_policy: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPort {
    name: Option<String>,
    port: u16,
    node_port: Option<u16>,
    protocol: Option<String>,
    app_protocol: Option<String>,
}

#[derive(Deserialize)]
struct RawNode {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    taints: Option<Vec<Taint>>,
}

#[derive(Deserialize)]
struct Taint {
    key: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Option<Vec<Address>>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Deserialize)]
struct RawSlice {
    #[serde(default)]
    metadata: Metadata,
    endpoints: Option<Vec<SliceEndpoint>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceEndpoint {
    node_name: Option<String>,
    #[serde(default)]
    conditions: SliceConditions,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SliceConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct RawEndpoints {
    #[serde(default)]
    metadata: Metadata,
    subsets: Option<Vec<Subset>>,
}

#[derive(Deserialize)]
struct Subset {
    addresses: Option<Vec<EndpointAddress>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointAddress {
    node_name: Option<String>,
}

/// What every kind of object can be asked.
trait Wire: DeserializeOwned {
    fn metadata(&self) -> &Metadata;
    fn object(&self) -> Result<Object, String>;
}

/// Reads one page of a list.
pub(super) fn page(kind: Kind, json: &[u8]) -> Result<Page, serde_json::Error> {
    match kind {
        Kind::Service => page_of::<RawService>(json),
        Kind::Node => page_of::<RawNode>(json),
        Kind::EndpointSlice => page_of::<RawSlice>(json),
        Kind::Endpoints => page_of::<RawEndpoints>(json),
    }
}

/// Reads one object on its own.
pub(super) fn item(kind: Kind, json: Value) -> Item {
    match kind {
        Kind::Service => item_of::<RawService>(json),
        Kind::Node => item_of::<RawNode>(json),
        Kind::EndpointSlice => item_of::<RawSlice>(json),
        Kind::Endpoints => item_of::<RawEndpoints>(json),
    }
}

/// Reads one line of a watch.
pub(super) fn event(kind: Kind, line: &[u8]) -> Result<Event, serde_json::Error> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "type")]
        kind: String,
        object: Value,
    }
    let Line {
        kind: word,
        object: json,
    } = serde_json::from_slice(line)?;
    Ok(match word.as_str() {
        "ADDED" | "MODIFIED" => Event::Applied(item(kind, json)),
        "DELETED" => Event::Deleted(item(kind, json)),
        "BOOKMARK" => Event::Bookmark(item(kind, json).resource_version),
        _ => Event::Error {
            code: json["code"]
                .as_u64()
                .and_then(|code| u16::try_from(code).ok())
                .unwrap_or(0),
            message: json["message"].as_str().unwrap_or(&word).to_owned(),
        },
    })
}

fn page_of<T: Wire>(json: &[u8]) -> Result<Page, serde_json::Error> {
    let page = |metadata: ListMetadata, items| Page {
        resource_version: metadata.resource_version,
        next: metadata.next.filter(|token| !token.is_empty()),
        items,
    };
    if let Ok(list) = serde_json::from_slice::<RawList<T>>(json) {
        let items = list.items.unwrap_or_default();
        return Ok(page(list.metadata, items.iter().map(read).collect()));
    }
    let list: RawList<Value> = serde_json::from_slice(json)?;
    let items = list.items.unwrap_or_default();
    Ok(page(
        list.metadata,
        items.into_iter().map(item_of::<T>).collect(),
    ))
}

fn item_of<T: Wire>(json: Value) -> Item {
    let text = |pointer| {
        json.pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    // Taken before the decoding consumes the value: an object that cannot be read still has a name.
    let unread = Item {
        key: ObjectKey {
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
        },
        uid: text("/metadata/uid"),
        resource_version: text("/metadata/resourceVersion"),
        deleting: json
            .pointer("/metadata/deletionTimestamp")
            .is_some_and(|it| !it.is_null()),
        object: Err(String::new()),
    };
    match serde_json::from_value::<T>(json) {
        Ok(raw) => read(&raw),
        Err(error) => Item {
            object: Err(error.to_string()),
            ..unread
        },
    }
}

fn read<T: Wire>(raw: &T) -> Item {
    let metadata = raw.metadata();
    Item {
        key: ObjectKey {
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
        },
        uid: metadata.uid.clone(),
        resource_version: metadata.resource_version.clone(),
        deleting: metadata.deletion_timestamp.is_some(),
        object: if metadata.name.is_empty() {
            Err("it has no name".to_owned())
        } else {
            raw.object()
        },
    }
}

// === impl Metadata ===

impl Metadata {
    fn label(&self, name: &str) -> Option<&String> {
        self.labels.as_ref()?.get(name)
    }

    fn service_key(&self, name: &str) -> ServiceKey {
        ServiceKey {
            namespace: self.namespace.clone(),
            name: name.to_owned(),
        }
    }

    /// Seconds since 1970; an object that was never created is the youngest.
    fn created_seconds(&self) -> Result<i64, String> {
        let Some(text) = &self.creation_timestamp else {
            return Ok(i64::MAX);
        };
        text.parse::<jiff::Timestamp>()
            .map(jiff::Timestamp::as_second)
            .map_err(|_| format!("creationTimestamp `{text}` is no time"))
    }
}

// === impl Wire ===

impl Wire for RawService {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn object(&self) -> Result<Object, String> {
        let metadata = &self.metadata;
        let annotations = metadata.annotations.iter().flatten();
        let ports = self.spec.ports.iter().flatten();
        Ok(Object::Service(Box::new(Service {
            service: Arc::new(ServiceRef {
                key: metadata.service_key(&metadata.name),
                uid: metadata.uid.clone(),
            }),
            created_seconds: metadata.created_seconds()?,
            http_label: metadata.label(HTTP_LABEL).cloned(),
            tcp_label: metadata.label(TCP_LABEL).cloned(),
            annotations: annotations
                .filter_map(|(name, value)| {
                    let name = name.strip_prefix(ANNOTATION_PREFIX)?;
                    Some((name.to_owned(), value.clone()))
                })
                .collect(),
            ports: ports.map(service_port).collect::<Result<_, _>>()?,
            local_traffic_only: self.spec.external_traffic_policy.as_deref() == Some("Local"),
        })))
    }
}

fn service_port(raw: &RawPort) -> Result<ServicePort, String> {
    Ok(ServicePort {
        name: raw.name.clone().filter(|name| !name.is_empty()),
        port: raw.port,
        // The type is not asked: what has a node port can be reached through it.
        node_port: raw.node_port.and_then(NodePort::new),
        protocol: match raw.protocol.as_deref() {
            None | Some("" | "TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(other) => return Err(format!("protocol `{other}` is unknown")),
        },
        app_protocol: raw.app_protocol.clone(),
    })
}

impl Wire for RawNode {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn object(&self) -> Result<Object, String> {
        let metadata = &self.metadata;
        let addresses = self.status.addresses.iter().flatten();
        let mut conditions = self.status.conditions.iter().flatten();
        let mut taints = self.spec.taints.iter().flatten();
        Ok(Object::Node(Box::new(Node {
            uid: NodeUid(metadata.uid.as_str().into()),
            internal_ips: addresses
                .filter(|address| address.kind == "InternalIP")
                .filter_map(|address| address.address.parse().ok())
                .collect(),
            ready: conditions.any(|it| it.kind == "Ready" && it.status == "True"),
            deleting: metadata.deletion_timestamp.is_some(),
            excluded: metadata
                .label(EXCLUDE_LABEL)
                .is_some_and(|value| !means_false(value))
                || metadata.label(EXCLUDE_LABEL_OLD).is_some()
                || taints.any(|taint| taint.key == AUTOSCALER_TAINT),
            zone: metadata
                .label(ZONE_LABEL)
                .or_else(|| metadata.label(ZONE_LABEL_OLD))
                .filter(|zone| !zone.is_empty())
                .map(|zone| zone.as_str().into()),
        })))
    }
}

/// What Go's `strconv.ParseBool` reads as false; anything else excludes, as in the cloud controllers.
fn means_false(value: &str) -> bool {
    matches!(value, "0" | "f" | "F" | "false" | "False" | "FALSE")
}

impl Wire for RawSlice {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn object(&self) -> Result<Object, String> {
        let metadata = &self.metadata;
        let service = metadata
            .label(SLICE_SERVICE_LABEL)
            .ok_or_else(|| format!("it lacks the label `{SLICE_SERVICE_LABEL}`"))?;
        let mut endpoints = Endpoints::default();
        for endpoint in self.endpoints.iter().flatten() {
            let conditions = &endpoint.conditions;
            // Absent means ready, as the API has it.
            let nodes = if conditions.ready != Some(false) {
                endpoints.any_ready = true;
                &mut endpoints.ready_nodes
            } else if conditions.serving == Some(true) && conditions.terminating == Some(true) {
                &mut endpoints.terminating_nodes
            } else {
                continue;
            };
            nodes.extend(endpoint.node_name.clone());
        }
        Ok(Object::Endpoints(metadata.service_key(service), endpoints))
    }
}

impl Wire for RawEndpoints {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn object(&self) -> Result<Object, String> {
        let subsets = self.subsets.iter().flatten();
        let ready: Vec<_> = subsets
            .flat_map(|it| it.addresses.iter().flatten())
            .collect();
        let nodes = ready.iter().filter_map(|address| address.node_name.clone());
        let endpoints = Endpoints {
            ready_nodes: nodes.collect(),
            terminating_nodes: BTreeSet::new(),
            any_ready: !ready.is_empty(),
        };
        let service = self.metadata.service_key(&self.metadata.name);
        Ok(Object::Endpoints(service, endpoints))
    }
}

// === impl ObjectKey ===

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}
