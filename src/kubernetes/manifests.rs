//! Manifest files instead of a cluster: the same Services, read the same way, with nobody asked.
//!
//! Only Services and Nodes are looked at. What an apiserver would have filled in is made up where its absence
//! would look like a mistake: node ports, and a Node where the manifests bring none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use serde::Deserialize;
use serde_json::Value;

use super::snapshot::{Endpoints, Evidence, Node, Service, Snapshot};
use super::wire::{self, Kind, Object};
use crate::desired::{Code, Finding, Subject};
use crate::quote::clipped;
use crate::route::{ClusterId, NodePort, NodeUid, ServiceKey};

/// The first node port that is made up; Kubernetes allocates from 30000 to 32767.
const NODE_PORT_FIRST: u16 = 30_000;
/// How many different ones there are; more Services than that share some, which harms nobody on paper.
const NODE_PORTS: u16 = 2_768;
/// The made-up Node; RFC 5737 reserves its address for examples.
const PLACEHOLDER_NODE: &str = "placeholder";
const PLACEHOLDER_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

#[derive(Default)]
struct Collected {
    services: Vec<Service>,
    nodes: BTreeMap<String, Node>,
    findings: Vec<Finding>,
}

/// Reads manifests, given as pairs of file name and text. A file may hold many documents, and Lists. What cannot
/// be read is a finding with its file and line, and harms nothing else.
pub fn snapshot_of_manifests<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Snapshot {
    let mut collected = Collected::default();
    for (file, text) in files {
        for (line, document) in documents(text) {
            collected.read(file, line, &document);
        }
    }
    let Collected {
        mut services,
        mut nodes,
        findings,
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
    Snapshot {
        cluster: ClusterId("manifests".to_owned()),
        endpoints: Some(keys.map(|key| (key, everywhere.clone())).collect()),
        services: services
            .into_iter()
            .map(|it| (it.service.key.clone(), it))
            .collect(),
        nodes,
        findings,
        evidence: Evidence::default(),
    }
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

/// What cannot be read, and where; `line` is the document's first where the reader does not tell.
fn unreadable(subject: Subject, file: &str, line: usize, reason: &str) -> Finding {
    let message = format!("{file}:{line}: it cannot be read: {}", clipped(reason));
    let finding = Finding::new(Code::ObjectUndecodable, subject, message);
    // In YAML a bare `34569` is a number and a bare `yes` a truth, but labels and annotations are text.
    let bare = ["integer", "floating point", "boolean"];
    let bare = bare.map(|kind| format!("invalid type: {kind} "));
    if reason.ends_with("expected a string") && bare.iter().any(|it| reason.starts_with(it)) {
        return finding.hint("put the value in quotes: labels and annotations are text");
    }
    finding
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
        let mut fail = |line, reason: &str| {
            let subject = Subject::Source("manifests");
            self.findings.push(unreadable(subject, file, line, reason));
        };
        let yaml =
            match serde_yaml::Value::deserialize(serde_yaml::Deserializer::from_str(document)) {
                Ok(yaml) => yaml,
                Err(error) => {
                    // The reader counts characters from the document's start, and takes more of them for the end
                    // of a line than editors do; the file's own line is told instead.
                    let before = error.location().map_or(0, |at| at.index());
                    let before = document.chars().take(before);
                    let line = 1 + before.filter(|c| *c == '\n').count();
                    let message = error.to_string();
                    let message = message.split(" at line ").next().unwrap_or_default();
                    fail(first_line + line - 1, message);
                    return;
                }
            };
        let json = match serde_json::to_value(yaml) {
            Ok(json) => json,
            Err(error) => {
                fail(first_line, &error.to_string());
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
            Err(reason) => {
                let (namespace, name) = (item.key.namespace, item.key.name);
                let subject = match kind {
                    Kind::Node => Subject::Node(name),
                    _ => Subject::Service(ServiceKey { namespace, name }),
                };
                self.findings.push(unreadable(subject, file, line, &reason));
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# two\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  \
                        labels: {http-route-sync: web}\nspec:\n  type: NodePort\n  ports: [{port: 80}]\n\
                        ---\nkind: Deployment\napiVersion: apps/v1\n";
    const BAD: &str = "apiVersion: v1\nkind: Service\nmetadata:\n  name: x\n  \
                       labels: {tcp-route-sync: 8080}\n---\na: [\n";

    #[test]
    fn manifests_are_read_as_a_cluster_would_be() {
        let snapshot = snapshot_of_manifests([("good.yml", GOOD)]);
        let service = snapshot.services.values().next().unwrap();
        assert_eq!(service.service.key.to_string(), "default/web");
        assert_eq!(service.ports[0].node_port, NodePort::new(30_000));
        assert_eq!((snapshot.nodes.len(), snapshot.findings.len()), (1, 0));
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_place_and_hides_nothing() {
        let snapshot = snapshot_of_manifests([("bad.yml", BAD), ("good.yml", GOOD)]);
        assert_eq!(snapshot.services.len(), 1);
        let [object, document] = &snapshot.findings[..] else {
            panic!("{:?}", snapshot.findings);
        };
        assert_eq!(object.code, Code::ObjectUndecodable);
        assert_eq!(object.subject.to_string(), "service default/x");
        let expect =
            "bad.yml:1: it cannot be read: invalid type: integer `8080`, expected a string";
        assert_eq!(object.message, expect);
        assert!(object.hint.as_ref().unwrap().contains("in quotes"));
        assert_eq!(document.subject, Subject::Source("manifests"));
        assert!(document.message.starts_with("bad.yml:8: "), "{document}");
        assert_eq!(document.hint, None);
    }

    #[test]
    fn a_line_is_counted_as_editors_do_and_not_as_yaml_does() {
        let text = "# one\na: \"\u{2028}\u{2028}\u{85}\"\nb: [\n";
        let snapshot = snapshot_of_manifests([("f.yml", text)]);
        let message = &snapshot.findings[0].message;
        assert!(message.starts_with("f.yml:4: "), "{message}");
    }
}
