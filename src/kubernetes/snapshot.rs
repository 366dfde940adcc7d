//! One complete view of the cluster, trimmed to what routes are derived from.
//!
//! A [`Snapshot`] can only be had once every required source (Services and Nodes) has delivered one complete
//! list, so no plan is ever made from half a cluster. It holds no Kubernetes type: what the apiserver sent has
//! been read, judged and cut down before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::desired::Finding;
use crate::route::{ClusterId, NodePort, NodeUid, ServiceKey, ServiceRef};

/// What is known of the cluster at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Which cluster this is.
    pub cluster: ClusterId,
    /// Every Service that carries one of our labels.
    pub services: BTreeMap<ServiceKey, Service>,
    /// Every Node, by name.
    pub nodes: BTreeMap<String, Node>,
    /// Where the Services' pods are; `None` while endpoints cannot be seen at all (no right, no API, no list
    /// yet). A Service that is missing in `Some` has no slice: unknown, not empty.
    pub endpoints: Option<BTreeMap<ServiceKey, Endpoints>>,
    /// What the sources themselves have to say: undecodable objects, missing rights.
    pub findings: Vec<Finding>,
}

/// A labelled Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Who it is.
    pub service: Arc<ServiceRef>,
    /// `metadata.creationTimestamp`, seconds since 1970; it ranks claimants of one name.
    pub created_seconds: i64,
    /// The value of the label `http-route-sync`.
    pub http_label: Option<String>,
    /// The value of the label `tcp-route-sync`.
    pub tcp_label: Option<String>,
    /// Our annotations, without their prefix `route-sync.cloudfoundry.org/`.
    pub annotations: BTreeMap<String, String>,
    /// `spec.ports`, in their order.
    pub ports: Vec<ServicePort>,
    /// `spec.externalTrafficPolicy` is `Local`.
    pub local_traffic_only: bool,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; an only port may have none.
    pub name: Option<String>,
    /// The cluster-internal port number.
    pub port: u16,
    /// The port every node opens; none unless the type is NodePort or LoadBalancer.
    pub node_port: Option<NodePort>,
    /// What it carries.
    pub protocol: Protocol,
    /// `appProtocol` is `http` or `kubernetes.io/h2c`-like text, kept verbatim.
    pub app_protocol: Option<String>,
}

/// What a Service port carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP, also when the field is absent.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A Node, as far as it can be a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its identity.
    pub uid: NodeUid,
    /// Every address of type InternalIP, in their order.
    pub internal_ips: Vec<IpAddr>,
    /// The condition `Ready` is `True`.
    pub ready: bool,
    /// It carries a deletionTimestamp.
    pub deleting: bool,
    /// A label excludes it from load balancers, or the autoscaler is about to delete it.
    pub excluded: bool,
    /// `topology.kubernetes.io/zone`, or its old name.
    pub zone: Option<Arc<str>>,
}

/// On which nodes a Service's pods are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Names of nodes with a ready pod.
    pub ready_nodes: BTreeSet<String>,
    /// Names of nodes whose pod is terminating but still serves.
    pub terminating_nodes: BTreeSet<String>,
    /// Some pod is ready, perhaps on a node the slice does not name.
    pub any_ready: bool,
}
