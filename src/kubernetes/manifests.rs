//! Manifest files instead of a cluster: the same Services, read the same way, with nobody asked.
//!
//! Only Services and Nodes are looked at. What an apiserver would have filled in is made up where its absence
//! would look like a mistake: node ports, and a Node where the manifests bring none.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::Deserialize;
use serde_json::Value;

use super::snapshot::{Endpoints, Node, Service, Snapshot};
use super::wire::{self, Kind, Object};
use crate::route::{ClusterId, NodePort, NodeUid};

/// The first node port that is made up; Kubernetes allocates from 30000 to 32767.
const NODE_PORT_FIRST: u16 = 30_000;
/// How many different ones there are; more Services than that share some, which harms nobody on paper.
const NODE_PORTS: u16 = 2_768;
/// The made-up Node; RFC 5737 reserves its address for examples.
const PLACEHOLDER_NODE: &str = "placeholder";
const PLACEHOLDER_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// A document that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {message}")]
pub struct ManifestError {
    /// Which file.
    pub file: String,
    /// The line, or the first line of the document where the reader does not tell.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// Every document that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestErrors(pub Vec<ManifestError>);

#[derive(Default)]
struct Collected {
    services: Vec<Service>,
    nodes: BTreeMap<String, Node>,
    errors: Vec<ManifestError>,
}

/// Reads manifests, given as pairs of file name and text. A file may hold many documents, and Lists.
///
/// # Errors
/// All documents that cannot be read, each with its file and line.
pub fn snapshot_of_manifests<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Snapshot, ManifestErrors> {
    let mut collected = Collected::default();
    for (file, text) in files {
        for (line, document) in documents(text) {
            collected.read(file, line, &document);
        }
    }
    if !collected.errors.is_empty() {
        return Err(ManifestErrors(collected.errors));
    }
    let Collected {
        mut services,
        mut nodes,
        ..
    } = collected;
    if nodes.is_empty() {
        nodes.insert(PLACEHOLDER_NODE.to_owned(), placeholder());
    }
    fill_node_ports(&mut services);
    let everywhere = Endpoints {
        ready_nodes: nodes.keys().cloned().collect(),
        terminating_nodes: BTreeSet::new(),
        any_ready: true,
    };
    let keys = services.iter().map(|it| it.service.key.clone());
    Ok(Snapshot {
        cluster: ClusterId("manifests".to_owned()),
        endpoints: Some(keys.map(|key| (key, everywhere.clone())).collect()),
        services: services
            .into_iter()
            .map(|it| (it.service.key.clone(), it))
            .collect(),
        nodes,
        findings: Vec::new(),
    })
}

/// Cuts a file at its `---` lines, which no scalar may hold at a line's start; each with its first line's
/// number. One broken document then does not hide the next.
fn documents(text: &str) -> Vec<(usize, String)> {
    let mut documents = vec![(1, String::new())];
    for (index, line) in text.lines().enumerate() {
        if line == "---" || line.starts_with("--- ") || line.starts_with("---\t") {
            documents.push((index + 2, String::new()));
        } else if let Some((_, document)) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents
}

fn fill_node_ports(services: &mut [Service]) {
    let ports = services.iter_mut().flat_map(|it| it.ports.iter_mut());
    let wanting = ports.filter(|port| port.node_port == NodePort::new(u16::MAX));
    for (port, offset) in wanting.zip((0..NODE_PORTS).cycle()) {
        port.node_port = NodePort::new(NODE_PORT_FIRST + offset);
    }
}

fn placeholder() -> Node {
    Node {
        uid: NodeUid(PLACEHOLDER_NODE.into()),
        internal_ips: vec![PLACEHOLDER_IP],
        ready: true,
        deleting: false,
        excluded: false,
        zone: None,
    }
}

// === impl Collected ===

impl Collected {
    fn read(&mut self, file: &str, first_line: usize, document: &str) {
        let mut fail = |line, message| {
            let file = file.to_owned();
            self.errors.push(ManifestError {
                file,
                line,
                message,
            });
        };
        let yaml =
            match serde_yaml::Value::deserialize(serde_yaml::Deserializer::from_str(document)) {
                Ok(yaml) => yaml,
                Err(error) => {
                    let line = error.location().map_or(1, |at| at.line());
                    // The reader counts from the document's start; the file's own line is told instead.
                    let message = error.to_string();
                    let message = message.split(" at line ").next().unwrap_or_default();
                    fail(first_line + line.max(1) - 1, message.to_owned());
                    return;
                }
            };
        let json = match serde_json::to_value(yaml) {
            Ok(json) => json,
            Err(error) => {
                fail(first_line, error.to_string());
                return;
            }
        };
        // The document's own first line rather than that of the comment above it.
        let skipped = document.lines().take_while(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#')
        });
        self.object(file, first_line + skipped.count(), json);
    }

    fn object(&mut self, file: &str, line: usize, mut json: Value) {
        let kind = json["kind"].as_str().unwrap_or_default().to_owned();
        if json["apiVersion"] != "v1" {
            return;
        }
        if let ("List" | "ServiceList" | "NodeList", Some(items)) =
            (kind.as_str(), json["items"].as_array())
        {
            for item in items.clone() {
                self.object(file, line, item);
            }
            return;
        }
        let kind = match kind.as_str() {
            "Service" => Kind::Service,
            "Node" => Kind::Node,
            _ => return,
        };
        complete(&mut json, kind);
        let item = wire::item(kind, json);
        match item.object {
            Ok(Object::Service(service)) => {
                if service.http_label.is_some()
                    || service.tcp_label.is_some()
                    || !service.annotations.is_empty()
                {
                    self.services.push(*service);
                }
            }
            Ok(Object::Node(node)) => {
                self.nodes.insert(item.key.name, *node);
            }
            Ok(Object::Endpoints(..)) => {}
            Err(reason) => self.errors.push(ManifestError {
                file: file.to_owned(),
                line,
                message: format!("`{}` cannot be read: {reason}", item.key),
            }),
        }
    }
}

/// Fills in what an apiserver would.
fn complete(json: &mut Value, kind: Kind) {
    let Some(metadata) = json["metadata"].as_object_mut() else {
        return;
    };
    let name = metadata.get("name").and_then(Value::as_str);
    let name = name.unwrap_or_default().to_owned();
    if kind == Kind::Node {
        metadata.insert("uid".to_owned(), Value::from(name));
        return;
    }
    let namespace = metadata.entry("namespace").or_insert("default".into());
    let uid = format!("{}/{name}", namespace.as_str().unwrap_or_default());
    metadata.insert("uid".to_owned(), Value::from(uid));
    if !matches!(
        json["spec"]["type"].as_str(),
        Some("NodePort" | "LoadBalancer")
    ) {
        return;
    }
    for port in json["spec"]["ports"].as_array_mut().into_iter().flatten() {
        if let Some(port) = port.as_object_mut()
            && port
                .get("nodePort")
                .is_none_or(|it| it.is_null() || *it == 0)
        {
            // Marks those that get a placeholder; no apiserver allows it as a node port by default.
            port.insert("nodePort".to_owned(), u16::MAX.into());
        }
    }
}

// === impl ManifestErrors ===

impl std::error::Error for ManifestErrors {}

impl fmt::Display for ManifestErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}
