//! The objects as the apiserver writes them.

use serde_json::{Value, json};

use super::{Key, Kind, Object, Service};

/// The label that makes an HTTP route, and the one that makes a TCP route.
pub const HTTP_LABEL: &str = "http-route-sync";
pub const TCP_LABEL: &str = "tcp-route-sync";

/// Whether a list or a watch with that selector holds the object.
pub fn matches(object: &Object, label: Option<&str>) -> bool {
    match (object, label) {
        (_, None) => true,
        (Object::Service(service), Some(HTTP_LABEL)) => service.host.is_some(),
        (Object::Service(service), Some(TCP_LABEL)) => service.port.is_some(),
        _ => false,
    }
}

pub fn object(key: &Key, version: u64, object: &Object) -> Value {
    let (_, namespace, name) = key;
    match object {
        Object::Service(service) => json!({
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": format!("service-{}", service.uid),
                "resourceVersion": version.to_string(),
                "creationTimestamp": timestamp(service.created.as_secs()),
                "labels": labels(service),
            },
            "spec": {
                "type": "NodePort",
                "ports": [{"port": 80, "protocol": "TCP", "nodePort": service.node_port}],
            },
        }),
        Object::Node(node) => {
            let mut labels = json!({});
            if node.excluded {
                labels["node.kubernetes.io/exclude-from-external-load-balancers"] = json!("true");
            }
            let ready = if node.ready { "True" } else { "False" };
            json!({
                "metadata": {
                    "name": name,
                    "uid": format!("node-{}", node.uid),
                    "resourceVersion": version.to_string(),
                    "labels": labels,
                },
                "status": {
                    "addresses": [{"type": "InternalIP", "address": node.ip}],
                    "conditions": [{"type": "Ready", "status": ready}],
                },
            })
        }
    }
}

pub fn list(version: usize, items: &[Value]) -> Value {
    json!({"metadata": {"resourceVersion": version.to_string()}, "items": items})
}

pub fn event(kind: &str, object: &Value) -> Vec<u8> {
    let mut line = json!({"type": kind, "object": object}).to_string();
    line.push('\n');
    line.into_bytes()
}

pub fn bookmark(version: usize) -> Vec<u8> {
    let object = json!({"metadata": {"resourceVersion": version.to_string()}});
    event("BOOKMARK", &object)
}

pub fn status(code: u16, reason: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": reason,
        "reason": reason,
        "code": code,
    })
}

/// What a path names: one kind, and perhaps one object.
pub fn target(path: &str) -> Option<(Kind, Option<(&str, &str)>)> {
    let rest = path.strip_prefix("/api/v1/")?;
    let parts: Vec<&str> = rest.split('/').collect();
    match parts[..] {
        ["services"] => Some((Kind::Service, None)),
        ["nodes"] => Some((Kind::Node, None)),
        ["nodes", name] => Some((Kind::Node, Some(("", name)))),
        ["namespaces", namespace, "services", name] => {
            Some((Kind::Service, Some((namespace, name))))
        }
        _ => None,
    }
}

fn labels(service: &Service) -> Value {
    let mut labels = json!({});
    if let Some(host) = &service.host {
        labels[HTTP_LABEL] = json!(host);
    }
    if let Some(port) = service.port {
        labels[TCP_LABEL] = json!(port.to_string());
    }
    labels
}

/// A life takes less than an hour.
fn timestamp(seconds: u64) -> String {
    format!(
        "2026-01-01T00:{:02}:{:02}Z",
        seconds / 60 % 60,
        seconds % 60
    )
}
