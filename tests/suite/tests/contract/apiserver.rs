//! The apiserver as a client that lists and writes meets it. Watches are in `watches`.
//!
//! The real one is kube-apiserver 1.36 with etcd 3.6.

use std::sync::atomic::{AtomicU32, Ordering};

use counterparts::kube_apiserver::ADMIN_TOKEN;
use counterparts::{Etcd, KubeApiserver, KubeApiserverOptions};
use sandbox::apiserver::Served;
use serde_json::{Value, json};

use crate::world::{self, CONTROLLER, World};
use crate::{Answer, Side, UnderTest, agree};

pub const LABEL: &str = "tcp-route-sync";
/// The manifests as they are shipped.
const EXAMPLES: [(&str, &str); 5] = [
    ("nginx", include_str!("../../../../examples/nginx.yml")),
    ("grafana", include_str!("../../../../examples/grafana.yml")),
    ("tomcat", include_str!("../../../../examples/tomcat.yml")),
    ("mysql", include_str!("../../../../examples/mysql.yml")),
    ("rbac", world::RBAC),
];

pub struct ApiserverUnderTest {
    pub world: &'static World,
    pub side: Side,
    pub url: String,
    pub http: reqwest::Client,
    /// A namespace of the statement's own.
    namespace: String,
}

impl UnderTest for ApiserverUnderTest {
    async fn on(world: &'static World, side: Side) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let url = match side {
            Side::Sandbox => world.sandbox.apiserver.url(),
            Side::Real => world.real.apiserver_url.clone(),
        };
        // With the client certificate one would be the certificate's user, not the token's.
        let http = world
            .pki
            .http_client_without_identity()
            .expect("a client must be had");
        let namespace = format!("statement-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let server = Self {
            world,
            side,
            url,
            http,
            namespace,
        };
        let body = json!({"metadata": {"name": server.namespace}});
        let answer = server.send("POST", "/api/v1/namespaces", &body).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        server
    }
}

// === impl ApiserverUnderTest ===

impl ApiserverUnderTest {
    pub fn services(&self) -> String {
        format!("/api/v1/namespaces/{}/services", self.namespace)
    }

    async fn ask(&self, token: &str, method: &str, path: &str, body: &Value) -> Answer {
        let content_type = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let url = format!("{}{path}", self.url);
        let mut request = self
            .http
            .request(method.parse().unwrap(), url)
            .bearer_auth(token);
        if !body.is_null() {
            request = request
                .header("content-type", content_type)
                .body(body.to_string());
        }
        Answer::to(request).await
    }

    pub async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.ask(ADMIN_TOKEN, method, path, body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &Value::Null).await
    }

    /// A Service as it was created.
    pub async fn service(&self, name: &str, labels: Value) -> Value {
        let answer = self
            .send("POST", &self.services(), &service(name, &labels))
            .await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.json()
    }

    pub async fn label(&self, name: &str, value: Option<&str>) {
        let patch = json!({"metadata": {"labels": {LABEL: value}}});
        let path = format!("{}/{name}", self.services());
        let answer = self.send("PATCH", &path, &patch).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }

    async fn names(&self, query: &str) -> Vec<String> {
        let answer = self.get(&format!("{}?{query}", self.services())).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let list = answer.json();
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    }

    pub async fn revision(&self) -> String {
        let list = self.get(&self.services()).await.json();
        list["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

pub fn service(name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"type": "NodePort", "ports": [{"port": 80}]},
    })
}

/// A refusal's status, reason and message.
#[track_caller]
fn refused(answer: &Answer, code: u16, reason: &str, message: &str) {
    let status = answer.json();
    assert_eq!(answer.status, code, "{}", answer.text);
    let found = (
        &status["kind"],
        &status["status"],
        &status["code"],
        &status["reason"],
    );
    let expected = (
        &json!("Status"),
        &json!("Failure"),
        &json!(code),
        &json!(reason),
    );
    assert_eq!(found, expected, "{}", answer.text);
    assert_eq!(status["message"], message);
    assert_eq!(answer.header("content-type"), "application/json");
}

// === lists ===

#[test]
fn a_selector_for_a_label_keeps_what_has_it() {
    agree(
        "a label's existence selects, whatever its value",
        async |server: &ApiserverUnderTest| {
            server.service("a", json!({LABEL: "1024"})).await;
            server.service("b", json!({LABEL: ""})).await;
            server.service("c", json!({"http-route-sync": "c"})).await;
            server.service("d", Value::Null).await;
            assert_eq!(
                server.names(&format!("labelSelector={LABEL}")).await,
                ["a", "b"]
            );
            assert_eq!(server.names("labelSelector=http-route-sync").await, ["c"]);
            assert_eq!(
                server.names(&format!("labelSelector=%21{LABEL}")).await,
                ["c", "d"]
            );
            assert_eq!(
                server.names(&format!("labelSelector={LABEL}%3D1024")).await,
                ["a"]
            );
            assert_eq!(server.names("fieldSelector=metadata.name%3Dd").await, ["d"]);
        },
    );
}

#[test]
fn a_limited_list_goes_on_where_it_stopped() {
    let statement = "limit and continue page through one moment; the rest is counted";
    agree(statement, async |server: &ApiserverUnderTest| {
        for name in ["a", "b", "c", "d", "e"] {
            server.service(name, json!({LABEL: "1024"})).await;
        }
        let page = server
            .get(&format!("{}?limit=2", server.services()))
            .await
            .json();
        assert_eq!(page["items"].as_array().unwrap().len(), 2);
        assert_eq!(page["metadata"]["remainingItemCount"], 3);
        let token = page["metadata"]["continue"].as_str().unwrap();
        server.service("f", json!({LABEL: "1024"})).await;
        assert_eq!(
            server.names(&format!("limit=2&continue={token}")).await,
            ["c", "d"]
        );
        assert_eq!(
            server.names(&format!("continue={token}")).await,
            ["c", "d", "e"]
        );
        let last = server
            .get(&format!("{}?continue={token}", server.services()))
            .await
            .json();
        assert_eq!(
            last["metadata"]["resourceVersion"],
            page["metadata"]["resourceVersion"]
        );
        assert!(
            last["metadata"]["continue"].is_null(),
            "{}",
            last["metadata"]
        );
        let selected = format!("{}?limit=2&labelSelector={LABEL}", server.services());
        let page = server.get(&selected).await.json();
        assert!(
            page["metadata"]["remainingItemCount"].is_null(),
            "{}",
            page["metadata"]
        );
        assert!(page["metadata"]["continue"].is_string());
    });
}

#[test]
fn an_item_of_a_list_names_neither_kind_nor_version() {
    agree(
        "a list names its kind, its items do not",
        async |server: &ApiserverUnderTest| {
            server.service("a", Value::Null).await;
            let list = server.get(&server.services()).await.json();
            assert_eq!(
                (&list["kind"], &list["apiVersion"]),
                (&json!("ServiceList"), &json!("v1"))
            );
            assert!(list["items"][0]["kind"].is_null() && list["items"][0]["apiVersion"].is_null());
            let one = server.get(&format!("{}/a", server.services())).await.json();
            assert_eq!(
                (&one["kind"], &one["apiVersion"]),
                (&json!("Service"), &json!("v1"))
            );
        },
    );
}

// === refusals ===

#[test]
fn a_label_value_with_a_path_or_of_64_characters_is_422() {
    let statement = "label values with `/` or `*`, of 64 characters or with a dash first are 422";
    agree(statement, async |server: &ApiserverUnderTest| {
        let grammar = "a valid label must be an empty string or consist of alphanumeric \
                       characters, '-', '_' or '.', and must start and end with an alphanumeric \
                       character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
                       validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
        let long = "a".repeat(64);
        for (value, why) in [
            ("host/path", grammar),
            ("*.wild", grammar),
            ("-5", grammar),
            ("with space", grammar),
            (long.as_str(), "must be no more than 63 bytes"),
        ] {
            let body = service("bad", &json!({LABEL: value}));
            let answer = server.send("POST", &server.services(), &body).await;
            let message = format!(
                "Service \"bad\" is invalid: metadata.labels: Invalid value: \"{value}\": {why}"
            );
            refused(&answer, 422, "Invalid", &message);
            let cause = &answer.json()["details"]["causes"][0];
            assert_eq!(cause["field"], "metadata.labels");
            assert_eq!(cause["reason"], "FieldValueInvalid");
        }
        for (name, value) in [
            ("a", "my.host.apps.test"),
            ("b", "UP_per"),
            ("c", ""),
            ("d", "70000"),
        ] {
            server.service(name, json!({LABEL: value})).await;
        }
    });
}

#[test]
fn what_a_role_does_not_grant_is_403_and_says_what_was_asked() {
    agree(
        "a missing right is 403 and named",
        async |server: &ApiserverUnderTest| {
            let ask = async |method: &str, path: &str, body: &Value| {
                server.ask(CONTROLLER.0, method, path, body).await
            };
            assert_eq!(
                ask("GET", "/api/v1/services", &Value::Null).await.status,
                200
            );
            assert_eq!(ask("GET", "/api/v1/nodes", &Value::Null).await.status, 200);
            let who = format!("User \"{}\" cannot", CONTROLLER.1);
            let answer = ask("POST", &server.services(), &service("a", &Value::Null)).await;
            let message = format!(
                "services is forbidden: {who} create resource \"services\" in API group \"\" in the \
             namespace \"{}\"",
                server.namespace
            );
            refused(&answer, 403, "Forbidden", &message);
            assert_eq!(answer.json()["details"], json!({"kind": "services"}));
            let leases = "/apis/coordination.k8s.io/v1/leases";
            let answer = ask("GET", leases, &Value::Null).await;
            let message = format!(
                "leases.coordination.k8s.io is forbidden: {who} list resource \"leases\" in API group \
             \"coordination.k8s.io\" at the cluster scope"
            );
            refused(&answer, 403, "Forbidden", &message);
            let answer = ask("DELETE", "/api/v1/nodes/n1", &Value::Null).await;
            let message = format!(
                "nodes \"n1\" is forbidden: {who} delete resource \"nodes\" in API group \"\" at the \
             cluster scope"
            );
            refused(&answer, 403, "Forbidden", &message);
        },
    );
}

#[test]
fn a_bad_token_is_401() {
    agree("a bad token is 401", async |server: &ApiserverUnderTest| {
        let answer = server
            .ask("wrong", "GET", "/api/v1/services", &Value::Null)
            .await;
        refused(&answer, 401, "Unauthorized", "Unauthorized");
    });
}

#[test]
fn a_write_over_a_stale_revision_is_409() {
    agree(
        "a PUT over a stale revision is 409",
        async |server: &ApiserverUnderTest| {
            let mut stale = server.service("a", Value::Null).await;
            server.label("a", Some("1024")).await;
            stale["metadata"]["labels"] = json!({LABEL: "1025"});
            let path = format!("{}/a", server.services());
            let message = "Operation cannot be fulfilled on services \"a\": the object has been \
                       modified; please apply your changes to the latest version and try again";
            refused(
                &server.send("PUT", &path, &stale).await,
                409,
                "Conflict",
                message,
            );
            let mut fresh = server.get(&path).await.json();
            fresh["metadata"]["labels"] = json!({LABEL: "1025"});
            assert_eq!(server.send("PUT", &path, &fresh).await.status, 200);
        },
    );
}

#[test]
fn what_is_not_there_is_404_and_what_is_there_cannot_be_made_again() {
    agree(
        "absent is 404, present is 409",
        async |server: &ApiserverUnderTest| {
            let path = format!("{}/a", server.services());
            let missing = "services \"a\" not found";
            refused(&server.get(&path).await, 404, "NotFound", missing);
            server.service("a", Value::Null).await;
            let again = server
                .send("POST", &server.services(), &service("a", &Value::Null))
                .await;
            refused(
                &again,
                409,
                "AlreadyExists",
                "services \"a\" already exists",
            );
        },
    );
}

#[test]
fn a_node_port_that_is_taken_or_out_of_range_is_422() {
    agree(
        "a node port taken or out of range is 422",
        async |server: &ApiserverUnderTest| {
            let first = server.service("first", Value::Null).await;
            let taken = first["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
            assert!((30_000..=32_767).contains(&taken));
            for (port, why) in [
                (taken, "provided port is already allocated"),
                (
                    80,
                    "provided port is not in the valid range. The range of valid ports is 30000-32767",
                ),
            ] {
                let mut body = service("second", &Value::Null);
                body["spec"]["ports"][0]["nodePort"] = json!(port);
                let answer = server.send("POST", &server.services(), &body).await;
                let message = format!(
                    "Service \"second\" is invalid: spec.ports[0].nodePort: Invalid value: {port}: {why}"
                );
                refused(&answer, 422, "Invalid", &message);
            }
        },
    );
}

#[test]
fn a_service_keeps_its_node_port_when_its_label_changes() {
    agree(
        "a label's change leaves the node port alone",
        async |server: &ApiserverUnderTest| {
            let before = server.service("a", Value::Null).await;
            server.label("a", Some("1024")).await;
            let path = format!("{}/a", server.services());
            let after = server.get(&path).await.json();
            assert_eq!(after["spec"], before["spec"]);
            assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
            assert_ne!(
                after["metadata"]["resourceVersion"],
                before["metadata"]["resourceVersion"]
            );
        },
    );
}

#[test]
fn a_group_that_is_not_served_is_404() {
    let statement = "a group that is switched off is 404 and absent from discovery";
    agree(statement, async |server: &ApiserverUnderTest| {
        let world = server.world;
        let (url, _keep): (String, Box<dyn Send>) = match server.side {
            Side::Sandbox => {
                let served = Served {
                    discovery: false,
                    ..Served::default()
                };
                let without = world::apiserver(served).await.unwrap();
                (without.url(), Box::new(without))
            }
            Side::Real => {
                let options = KubeApiserverOptions {
                    runtime_config: Some("discovery.k8s.io/v1=false".to_owned()),
                    ..KubeApiserverOptions::default()
                };
                // Which groups are served lies in etcd too: one of its own, or the others lose it.
                let etcd = Etcd::start(&world.run).await.unwrap();
                let without =
                    KubeApiserver::start(&world.run, &world.pki, etcd.url(), options).await;
                let without = without.unwrap();
                (without.url().to_owned(), Box::new((without, etcd)))
            }
        };
        let get = async |path: &str| {
            Answer::to(
                server
                    .http
                    .get(format!("{url}{path}"))
                    .bearer_auth(ADMIN_TOKEN),
            )
            .await
        };
        for path in [
            "/apis/discovery.k8s.io/v1",
            "/apis/discovery.k8s.io/v1/endpointslices",
        ] {
            let answer = get(path).await;
            assert_eq!(
                (answer.status, answer.text.as_str()),
                (404, "404 page not found\n")
            );
        }
        assert_eq!(get("/api/v1/endpoints").await.status, 200);
        assert!(!get("/apis").await.text.contains("discovery.k8s.io"));
        assert!(server.get("/apis").await.text.contains("discovery.k8s.io"));
    });
}

// === the shipped manifests ===

#[test]
fn the_shipped_manifests_are_taken_as_they_are() {
    agree(
        "the shipped manifests are taken, strictly read",
        async |server: &ApiserverUnderTest| {
            for (name, manifest) in EXAMPLES {
                match server.side {
                    Side::Sandbox => {
                        let applied = server.world.sandbox.apiserver.apply(manifest);
                        applied
                            .map(drop)
                            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
                    }
                    Side::Real => {
                        let applied = server.world.real.cluster.apply_manifest(manifest).await;
                        applied
                            .map(drop)
                            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
                    }
                }
            }
            for (label, value, name) in [
                ("http-route-sync", "nginx", "nginx"),
                ("http-route-sync", "grafana", "grafana"),
                ("http-route-sync", "tomcat-example", "tomcat"),
                (LABEL, "34569", "mysql"),
            ] {
                let query = format!("labelSelector={label}%3D{value}");
                let list = server
                    .get(&format!("/api/v1/services?{query}"))
                    .await
                    .json();
                let items = list["items"].as_array().unwrap();
                assert_eq!(items.len(), 1, "{name}: {list}");
                assert!(
                    items[0]["spec"]["ports"][0]["nodePort"].is_u64(),
                    "{name}: {list}"
                );
            }
        },
    );
}
