//! The objects of a smoke test: a Service without selector, the EndpointSlice that says what it leads to (Endpoints,
//! where the apiserver serves no such thing), and the namespace around them. Made, taken away, and found again where an
//! earlier test left them.
//!
//! Every object bears [`MARK`] and a name drawn at random; nothing else is deleted. What the objects are for, and when
//! they have to go, is the caller's affair.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::Timing;
use super::api::{Api, ApiError, Resource};
use super::watch::discover_endpoints;
use super::wire::Kind;
use crate::config::KubernetesConfig;
use crate::outside::Outside;

/// The label of everything that a smoke test makes.
pub const MARK: &str = "route-sync.cloudfoundry.org/smoke-test";
/// Who writes the EndpointSlice, for the controllers that write others.
const WRITER: &str = "route-sync-smoke-test";
/// Namespaces or Services of earlier tests that are looked at; more wait for the next test.
const LEFTOVERS_MAX: usize = 100;

/// The way to the cluster.
pub struct Trial {
    api: Api,
    outside: Arc<dyn Outside>,
    endpoints: OnceCell<Resource>,
}

/// Where the objects are, and what they are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Their namespace.
    pub namespace: String,
    /// Whether the namespace is one of the objects.
    pub own_namespace: bool,
    /// The name of Service and EndpointSlice.
    pub name: String,
}

/// Something that may be allowed or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// As RBAC has it.
    pub verb: &'static str,
    /// Empty for the core.
    pub group: &'static str,
    /// In the plural.
    pub resource: &'static str,
}

// === impl Right ===

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)
    }
}

// === impl Site ===

impl Site {
    fn endpoints(&self, resource: Resource) -> String {
        let (prefix, name) = (resource.prefix(), resource.name());
        format!("{prefix}/namespaces/{}/{name}", self.namespace)
    }

    fn services(&self) -> String {
        format!("/api/v1/namespaces/{}/services", self.namespace)
    }

    fn metadata(&self, labels: &BTreeMap<&'static str, String>) -> Value {
        let mut labels = json!(labels);
        labels[MARK] = json!("true");
        json!({"namespace": self.namespace, "name": self.name, "labels": labels})
    }
}

// === impl Trial ===

impl Trial {
    /// Asks nobody anything yet.
    #[must_use]
    pub fn new(outside: Arc<dyn Outside>, config: KubernetesConfig) -> Self {
        Self {
            api: Api::new(config, Timing::default(), outside.clone()),
            outside,
            endpoints: OnceCell::new(),
        }
    }

    /// What the end-to-end test does in its namespace.
    ///
    /// # Errors
    /// Why the apiserver does not tell what it serves.
    pub async fn rights(&self) -> Result<Vec<Right>, ApiError> {
        let endpoints = self.endpoints().await?;
        let things = [("", "services"), (endpoints.group(), endpoints.name())];
        let both = things.map(|(group, resource)| {
            ["create", "delete"].map(|verb| Right {
                verb,
                group,
                resource,
            })
        });
        Ok(both.concat())
    }

    /// Lists a resource of the core in all namespaces, as the watches would, but one object at most.
    ///
    /// # Errors
    /// Why it cannot be listed.
    pub async fn list(&self, resource: &str) -> Result<(), ApiError> {
        let path = format!("/api/v1/{resource}?limit=1");
        self.api.get_json(&path).await.map(drop)
    }

    /// Whether we have a right, in one namespace or in all.
    ///
    /// # Errors
    /// Why the apiserver does not tell.
    pub async fn may(&self, right: Right, namespace: Option<&str>) -> Result<bool, ApiError> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {
                "verb": right.verb, "group": right.group, "resource": right.resource,
                "namespace": namespace.unwrap_or_default(),
            }},
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = self.api.write_json(Method::POST, path, &review).await?;
        Ok(answer["status"]["allowed"] == true)
    }

    /// Makes the namespace, where it is one of the objects.
    ///
    /// # Errors
    /// Why it was not made.
    pub async fn make_namespace(&self, site: &Site) -> Result<(), ApiError> {
        if !site.own_namespace {
            return Ok(());
        }
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": site.namespace, "labels": {MARK: "true"}},
        });
        self.make("/api/v1/namespaces", &namespace).await
    }

    /// Says what the Service will lead to. Before the Service itself, so that its node port never leads nowhere.
    ///
    /// # Errors
    /// Why it was not made.
    pub async fn make_endpoint(&self, site: &Site, endpoint: SocketAddr) -> Result<(), ApiError> {
        let resource = self.endpoints().await?;
        if resource.kind == Kind::Endpoints {
            let endpoints = json!({
                "apiVersion": "v1", "kind": "Endpoints",
                "metadata": site.metadata(&BTreeMap::new()),
                "subsets": [{
                    "addresses": [{"ip": endpoint.ip()}],
                    "ports": [{"protocol": "TCP", "port": endpoint.port()}],
                }],
            });
            return self.make(&site.endpoints(resource), &endpoints).await;
        }
        let labels = BTreeMap::from([
            ("kubernetes.io/service-name", site.name.clone()),
            ("endpointslice.kubernetes.io/managed-by", WRITER.to_owned()),
        ]);
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": site.metadata(&labels),
            "addressType": if endpoint.is_ipv6() { "IPv6" } else { "IPv4" },
            "ports": [{"name": "", "protocol": "TCP", "port": endpoint.port()}],
            "endpoints": [{"addresses": [endpoint.ip()], "conditions": {"ready": true}}],
        });
        self.make(&site.endpoints(resource), &slice).await
    }

    /// Makes the Service.
    ///
    /// # Errors
    /// Why it was not made.
    pub async fn make_service(
        &self,
        site: &Site,
        endpoint: SocketAddr,
        labels: &BTreeMap<&'static str, String>,
    ) -> Result<(), ApiError> {
        let port = endpoint.port();
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": site.metadata(labels),
            "spec": {"type": "NodePort", "ports": [{"port": port, "targetPort": port}]},
        });
        // Else a cluster of both families gives it an IPv4 address, which leads to no IPv6 endpoint.
        if endpoint.is_ipv6() {
            service["spec"]["ipFamilies"] = json!(["IPv6"]);
        }
        self.make(&site.services(), &service).await
    }

    /// Deletes the Service; one that is gone is no error.
    ///
    /// # Errors
    /// Why it is still there.
    pub async fn delete_service(&self, site: &Site) -> Result<(), ApiError> {
        self.delete(&format!("{}/{}", site.services(), site.name))
            .await
    }

    /// Deletes everything else, and the Service if it is still there.
    ///
    /// # Errors
    /// Why something is still there; all of it was tried.
    pub async fn delete_all(&self, site: &Site) -> Result<(), ApiError> {
        let service = self.delete_service(site).await;
        let endpoints = match self.endpoints().await {
            Ok(resource) => {
                let path = format!("{}/{}", site.endpoints(resource), site.name);
                self.delete(&path).await
            }
            Err(error) => Err(error),
        };
        let mut namespace = Ok(());
        if site.own_namespace {
            let path = format!("/api/v1/namespaces/{}", site.namespace);
            namespace = self.delete(&path).await;
        }
        service.and(endpoints).and(namespace)
    }

    /// What tests left behind that began longer ago than any test takes.
    ///
    /// # Errors
    /// Why that is not known.
    pub async fn leftovers(&self, age: Duration) -> Result<Vec<Site>, ApiError> {
        let namespaces = self.marked("namespaces", age).await?;
        let services = self.marked("services", age).await?;
        let own = |(namespace, name): (String, String)| {
            let own_namespace = namespaces.iter().any(|(_, name)| *name == namespace);
            Site {
                namespace,
                own_namespace,
                name,
            }
        };
        let mut sites: Vec<Site> = services.into_iter().map(own).collect();
        // A test may have ended between the namespace and the Service.
        for (_, namespace) in namespaces {
            if !sites.iter().any(|site| site.namespace == namespace) {
                let name = namespace.clone();
                sites.push(Site {
                    namespace,
                    own_namespace: true,
                    name,
                });
            }
        }
        Ok(sites)
    }

    /// Namespace and name of each marked object that is old enough and not being deleted.
    async fn marked(
        &self,
        resource: &str,
        age: Duration,
    ) -> Result<Vec<(String, String)>, ApiError> {
        let path = format!("/api/v1/{resource}?labelSelector={MARK}&limit={LEFTOVERS_MAX}");
        let list = self.api.get_json(&path).await?;
        let now = self.outside.wall_clock();
        let old = |created: &Value| {
            let created: Option<Timestamp> = created.as_str().and_then(|text| text.parse().ok());
            let since_1970 = created.and_then(|created| u64::try_from(created.as_second()).ok());
            since_1970.is_some_and(|seconds| now > Duration::from_secs(seconds) + age)
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let items = list["items"].as_array().into_iter().flatten();
        let metadata = items.map(|item| &item["metadata"]);
        let ours = metadata.filter(|it| {
            it["labels"][MARK].is_string()
                && it["deletionTimestamp"].is_null()
                && old(&it["creationTimestamp"])
        });
        Ok(ours
            .map(|it| (text(&it["namespace"]), text(&it["name"])))
            .collect())
    }

    /// What says where a Service without selector leads; asked until it was answered once.
    async fn endpoints(&self) -> Result<Resource, ApiError> {
        let resource = self
            .endpoints
            .get_or_try_init(|| discover_endpoints(&self.api, None));
        resource.await.copied()
    }

    async fn make(&self, path: &str, object: &Value) -> Result<(), ApiError> {
        self.api
            .write_json(Method::POST, path, object)
            .await
            .map(drop)
    }

    async fn delete(&self, path: &str) -> Result<(), ApiError> {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        match self.api.write_json(Method::DELETE, path, &options).await {
            Ok(_) | Err(ApiError::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
