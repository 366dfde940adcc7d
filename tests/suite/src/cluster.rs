//! The cluster as its users see it: objects in and out of the real apiserver, and the parts of Kubernetes that an
//! apiserver alone does not have (a namespace's end, a node's condition, endpoint slices), played by the test.

use anyhow::{Context, Result, bail};
use counterparts::KubeApiserver;
use counterparts::kube_apiserver::ADMIN_TOKEN;
use reqwest::Method;
use serde_json::{Value, json};

use crate::poll;

/// A client with every right.
#[derive(Clone)]
pub struct Cluster {
    url: String,
    http: reqwest::Client,
}

/// Kinds by their place in the API: group path, plural, whether they live in a namespace.
const KINDS: &[(&str, &str, &str, bool)] = &[
    ("Namespace", "api/v1", "namespaces", false),
    ("Node", "api/v1", "nodes", false),
    ("Service", "api/v1", "services", true),
    ("Endpoints", "api/v1", "endpoints", true),
    (
        "EndpointSlice",
        "apis/discovery.k8s.io/v1",
        "endpointslices",
        true,
    ),
    ("Deployment", "apis/apps/v1", "deployments", true),
    ("StatefulSet", "apis/apps/v1", "statefulsets", true),
    ("PersistentVolume", "api/v1", "persistentvolumes", false),
    (
        "PersistentVolumeClaim",
        "api/v1",
        "persistentvolumeclaims",
        true,
    ),
    ("Secret", "api/v1", "secrets", true),
    ("ConfigMap", "api/v1", "configmaps", true),
    ("ServiceAccount", "api/v1", "serviceaccounts", true),
    (
        "ClusterRole",
        "apis/rbac.authorization.k8s.io/v1",
        "clusterroles",
        false,
    ),
    (
        "ClusterRoleBinding",
        "apis/rbac.authorization.k8s.io/v1",
        "clusterrolebindings",
        false,
    ),
    ("Role", "apis/rbac.authorization.k8s.io/v1", "roles", true),
    (
        "RoleBinding",
        "apis/rbac.authorization.k8s.io/v1",
        "rolebindings",
        true,
    ),
];

impl Cluster {
    /// A client of the stack's apiserver.
    pub fn new(stack: &counterparts::Stack) -> Self {
        Self::of(&stack.apiserver)
    }

    /// A client of an apiserver.
    pub fn of(apiserver: &KubeApiserver) -> Self {
        Self {
            url: apiserver.url().to_owned(),
            http: apiserver.http().clone(),
        }
    }

    fn path(kind: &str, namespace: &str, name: &str) -> Result<String> {
        let (_, group, plural, namespaced) = KINDS
            .iter()
            .find(|(known, ..)| *known == kind)
            .with_context(|| format!("kind `{kind}` is not known here"))?;
        let within = if *namespaced {
            format!("namespaces/{namespace}/")
        } else {
            String::new()
        };
        Ok(format!("/{group}/{within}{plural}/{name}"))
    }

    async fn ask(&self, method: Method, path: &str, body: Option<(&str, String)>) -> Result<Value> {
        let mut request = self
            .http
            .request(method.clone(), format!("{}{path}", self.url))
            .bearer_auth(ADMIN_TOKEN);
        if let Some((content_type, body)) = body {
            request = request.header("content-type", content_type).body(body);
        }
        let answer = request.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        if !status.is_success() {
            bail!("{method} {path}: {status}: {text}");
        }
        Ok(serde_json::from_str(&text)?)
    }

    /// Creates or updates one object, as `kubectl apply --server-side` does; unknown fields are errors.
    pub async fn apply(&self, object: &Value) -> Result<Value> {
        let kind = object["kind"]
            .as_str()
            .context("an object without a kind")?;
        let name = object["metadata"]["name"]
            .as_str()
            .context("an object without a name")?;
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or("default");
        let path = Self::path(kind, namespace, name)?;
        let query = "fieldManager=suite&force=true&fieldValidation=Strict";
        let body = ("application/apply-patch+yaml", object.to_string());
        self.ask(Method::PATCH, &format!("{path}?{query}"), Some(body))
            .await
    }

    /// Applies every document of a manifest, creating namespaces it takes for granted.
    pub async fn apply_manifest(&self, manifest: &str) -> Result<Vec<Value>> {
        let mut applied = Vec::new();
        for document in serde_yaml::Deserializer::from_str(manifest) {
            let object = <Value as serde::Deserialize>::deserialize(document)?;
            if object.is_null() {
                continue;
            }
            if let Some(namespace) = object["metadata"]["namespace"].as_str() {
                self.namespace(namespace).await?;
            }
            applied.push(self.apply(&object).await?);
        }
        Ok(applied)
    }

    /// Makes sure that a namespace is there.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.apply(&object).await.map(drop)
    }

    /// One object.
    pub async fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Value> {
        self.ask(Method::GET, &Self::path(kind, namespace, name)?, None)
            .await
    }

    /// Every object of a kind, in all namespaces.
    pub async fn list(&self, kind: &str) -> Result<Vec<Value>> {
        let known = KINDS.iter().find(|(known, ..)| *known == kind);
        let (_, group, plural, _) =
            known.with_context(|| format!("kind `{kind}` is not known here"))?;
        let list = self
            .ask(Method::GET, &format!("/{group}/{plural}"), None)
            .await?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Deletes one object.
    pub async fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let path = Self::path(kind, namespace, name)?;
        let body = (
            "application/json",
            json!({"gracePeriodSeconds": 0}).to_string(),
        );
        self.ask(Method::DELETE, &path, Some(body)).await.map(drop)
    }

    /// Changes one object by a merge patch.
    pub async fn patch(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Value> {
        let path = Self::path(kind, namespace, name)?;
        let body = ("application/merge-patch+json", patch.to_string());
        self.ask(Method::PATCH, &path, Some(body)).await
    }

    /// Sets a Service's label; `None` takes it away.
    pub async fn label(&self, service: &str, label: &str, value: Option<&str>) -> Result<()> {
        let (namespace, name) = split(service);
        let patch = json!({"metadata": {"labels": {label: value}}});
        self.patch("Service", namespace, name, &patch)
            .await
            .map(drop)
    }

    /// Sets one of our annotations on a Service; `None` takes it away.
    pub async fn annotate(
        &self,
        service: &str,
        annotation: &str,
        value: Option<&str>,
    ) -> Result<()> {
        let (namespace, name) = split(service);
        let key = format!("route-sync.cloudfoundry.org/{annotation}");
        let patch = json!({"metadata": {"annotations": {key: value}}});
        self.patch("Service", namespace, name, &patch)
            .await
            .map(drop)
    }

    /// A Service of type NodePort with one port `80 → node_port` and no label yet.
    pub async fn service(&self, service: &str, node_port: u16) -> Result<()> {
        self.service_with(
            service,
            json!({"ports": [{"port": 80, "nodePort": node_port}]}),
        )
        .await
    }

    /// A Service of type NodePort whose spec is completed by `spec`.
    pub async fn service_with(&self, service: &str, mut spec: Value) -> Result<()> {
        let (namespace, name) = split(service);
        self.namespace(namespace).await?;
        spec["type"] = json!("NodePort");
        let object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        });
        self.apply(&object).await.map(drop)
    }

    /// A ready Node with one internal address.
    pub async fn node(&self, name: &str, ip: &str) -> Result<()> {
        let object = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {},
        });
        self.apply(&object).await?;
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": ip}]}});
        self.patch_status(name, &status).await?;
        self.node_ready(name, "True").await
    }

    /// Sets a Node's condition `Ready` to `True`, `False` or `Unknown`.
    pub async fn node_ready(&self, name: &str, ready: &str) -> Result<()> {
        let condition = json!({"type": "Ready", "status": ready, "reason": "Played"});
        self.patch_status(name, &json!({"status": {"conditions": [condition]}}))
            .await
    }

    async fn patch_status(&self, node: &str, status: &Value) -> Result<()> {
        let body = ("application/merge-patch+json", status.to_string());
        self.ask(
            Method::PATCH,
            &format!("/api/v1/nodes/{node}/status"),
            Some(body),
        )
        .await
        .map(drop)
    }

    /// Says on which nodes a Service's pods are ready, as the endpoint slice controller would.
    pub async fn endpoints(&self, service: &str, ready_nodes: &[&str], label: &str) -> Result<()> {
        let (namespace, name) = split(service);
        let endpoint = |(index, node): (usize, &&str)| {
            json!({
                "addresses": [format!("10.1.0.{}", index + 1)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": node,
            })
        };
        let endpoints: Vec<Value> = ready_nodes.iter().enumerate().map(endpoint).collect();
        let labels = json!({"kubernetes.io/service-name": name, label: "mirrored"});
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 80, "protocol": "TCP", "name": ""}],
        });
        self.apply(&object).await.map(drop)
    }

    /// Gives a user the role that kubo up to 0.22 shipped, which may only list, and waits until it counts.
    pub async fn grant_lists(&self, user: &str, token: &str) -> Result<()> {
        const API_GROUP: &str = "rbac.authorization.k8s.io";
        let resources = ["services", "namespaces", "nodes"];
        let rule = json!({"apiGroups": [""], "resources": resources, "verbs": ["list"]});
        self.apply(&json!({
            "apiVersion": format!("{API_GROUP}/v1"), "kind": "ClusterRole",
            "metadata": {"name": "list-only"}, "rules": [rule],
        }))
        .await?;
        self.apply(&json!({
            "apiVersion": format!("{API_GROUP}/v1"), "kind": "ClusterRoleBinding",
            "metadata": {"name": "list-only"},
            "roleRef": {"apiGroup": API_GROUP, "kind": "ClusterRole", "name": "list-only"},
            "subjects": [{"apiGroup": API_GROUP, "kind": "User", "name": user}],
        }))
        .await?;
        for resource in resources {
            self.may_get(token, &format!("/api/v1/{resource}")).await;
        }
        Ok(())
    }

    /// Waits until the holder of a token may read a path: a role takes a moment to count.
    pub async fn may_get(&self, token: &str, path: &str) {
        poll::eventually(&format!("{path} may be read"), async || {
            let request = self
                .http
                .get(format!("{}{path}", self.url))
                .bearer_auth(token);
            request
                .send()
                .await
                .is_ok_and(|answer| answer.status().is_success())
        })
        .await;
    }

    /// Whether the holder of a token is known at all.
    pub async fn knows(&self, token: &str) -> bool {
        let path = format!("{}/api/v1/nodes", self.url);
        let answer = self.http.get(path).bearer_auth(token).send().await;
        answer.is_ok_and(|answer| answer.status() != reqwest::StatusCode::UNAUTHORIZED)
    }

    /// A token of a ServiceAccount that is good until the Secret of that name is deleted.
    pub async fn bound_token(
        &self,
        namespace: &str,
        account: &str,
        secret: &str,
    ) -> Result<String> {
        let object = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": secret, "namespace": namespace},
        });
        let made = self.apply(&object).await?;
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"boundObjectRef": {
                "apiVersion": "v1", "kind": "Secret", "name": secret,
                "uid": made["metadata"]["uid"],
            }},
        });
        let path = Self::path("ServiceAccount", namespace, account)? + "/token";
        let body = ("application/json", request.to_string());
        let answer = self.ask(Method::POST, &path, Some(body)).await?;
        let token = answer["status"]["token"].as_str();
        Ok(token.context("an answer without a token")?.to_owned())
    }

    /// Deletes a namespace and finishes it, as the namespace controller would once everything in it is gone.
    pub async fn delete_namespace(&self, name: &str) -> Result<()> {
        let services = self
            .ask(
                Method::GET,
                &format!("/api/v1/namespaces/{name}/services"),
                None,
            )
            .await?;
        self.delete("Namespace", "", name).await?;
        for service in services["items"].as_array().into_iter().flatten() {
            let service = service["metadata"]["name"].as_str().unwrap_or_default();
            self.delete("Service", name, service).await?;
        }
        let finish = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name},
            "spec": {"finalizers": []},
        });
        let body = ("application/json", finish.to_string());
        let path = format!("/api/v1/namespaces/{name}/finalize");
        self.ask(Method::PUT, &path, Some(body)).await.map(drop)
    }

    /// Takes every Service (one without a label holds a node port too) and every Node away, so that the next scenario begins with nothing.
    pub async fn clear(&self) -> Result<()> {
        let services = self.ask(Method::GET, "/api/v1/services", None).await?;
        for object in services["items"].as_array().into_iter().flatten() {
            let metadata = &object["metadata"];
            let text = |key: &str| metadata[key].as_str().unwrap_or_default();
            // The apiserver's own would only come back.
            if text("name") != "kubernetes" {
                self.delete("Service", text("namespace"), text("name"))
                    .await?;
            }
        }
        let nodes = self.ask(Method::GET, "/api/v1/nodes", None).await?;
        for node in nodes["items"].as_array().into_iter().flatten() {
            self.delete(
                "Node",
                "",
                node["metadata"]["name"].as_str().unwrap_or_default(),
            )
            .await?;
        }
        Ok(())
    }
}

/// `namespace/name`.
fn split(service: &str) -> (&str, &str) {
    service
        .split_once('/')
        .expect("a Service must be written `namespace/name`")
}
