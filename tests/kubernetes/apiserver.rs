//! A scripted apiserver: it keeps objects and their history, lists, watches and gets them as kube-apiserver
//! does, and misbehaves as it is told. It knows nothing of admission, namespaces or who asks.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::watch;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An HTTP error; 410 and 403 among them.
    Status(u16),
    /// The request is never answered.
    Hang,
    /// The body ends at once.
    Eof,
    /// An ERROR event with code 410, then the end.
    GoneEvent,
    /// Nothing is sent, whatever happens.
    Silent,
    /// The first event breaks off in the middle, then the connection ends.
    Cut,
    /// The second page's continue token has expired.
    ExpiredContinue,
    /// The body of the second page breaks off.
    Truncated,
    /// A list holds nothing, as of an apiserver that lags far behind.
    Empty,
}

#[derive(Default)]
struct World {
    version: u64,
    objects: BTreeMap<(String, String, String), Value>,
    history: Vec<Change>,
    faults: BTreeMap<(&'static str, String), Fault>,
    requests: Vec<(&'static str, String, String)>,
    token: Option<String>,
    no_slices: bool,
}

struct Change {
    version: u64,
    resource: String,
    before: Option<Value>,
    after: Option<Value>,
}

/// The server; it ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct ApiServer {
    pub addr: SocketAddr,
    world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            addr: listener.local_addr().unwrap(),
            world: Arc::default(),
            changed: watch::Sender::new(0),
        };
        for name in ["default", "kube-system"] {
            server.put("namespaces", json!({"metadata": {"name": name}}));
        }
        let router = axum::Router::new()
            .fallback(answer)
            .with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Creates or replaces; the uid stays unless the object brings one.
    pub(crate) fn put(&self, resource: &str, mut object: Value) {
        let mut world = self.world();
        world.version += 1;
        let version = world.version;
        let text = |object: &Value, field: &str| {
            object["metadata"][field].as_str().unwrap_or("").to_owned()
        };
        let (namespace, name) = (text(&object, "namespace"), text(&object, "name"));
        let key = (resource.to_owned(), namespace, name.clone());
        let before = world.objects.get(&key).cloned();
        if object["metadata"]["uid"].is_null() {
            let old = before.as_ref().map(|old| text(old, "uid"));
            let uid = old.unwrap_or_else(|| format!("uid-{name}-{version}"));
            object["metadata"]["uid"] = uid.into();
        }
        object["metadata"]["resourceVersion"] = version.to_string().into();
        object["metadata"]["creationTimestamp"] = "2026-01-02T03:04:05Z".into();
        world.objects.insert(key, object.clone());
        world.history.push(Change {
            version,
            resource: resource.to_owned(),
            before,
            after: Some(object),
        });
        drop(world);
        self.changed.send_replace(version);
    }

    pub(crate) fn delete(&self, resource: &str, namespace: &str, name: &str) {
        let mut world = self.world();
        world.version += 1;
        let version = world.version;
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let before = world.objects.remove(&key);
        assert!(before.is_some(), "{key:?} must exist");
        world.history.push(Change {
            version,
            resource: resource.to_owned(),
            before,
            after: None,
        });
        drop(world);
        self.changed.send_replace(version);
    }

    pub(crate) fn service(&self, name: &str, labels: &[(&str, &str)], node_port: u16) {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        self.put(
            "services",
            json!({
                "metadata": {"name": name, "namespace": "default", "labels": labels},
                "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": node_port}]},
            }),
        );
    }

    pub(crate) fn node(&self, name: &str, heartbeat: u32) {
        self.put(
            "nodes",
            json!({
                "metadata": {"name": name},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                    "conditions": [{"type": "Ready", "status": "True", "beat": heartbeat}],
                },
            }),
        );
    }

    pub(crate) fn fail(&self, verb: &'static str, resource: &str, fault: Fault) {
        let key = (verb, resource.to_owned());
        self.world().faults.insert(key, fault);
    }

    /// Takes one fault back.
    pub(crate) fn mend(&self, verb: &'static str, resource: &str) {
        self.world().faults.remove(&(verb, resource.to_owned()));
    }

    pub(crate) fn heal(&self) {
        self.world().faults.clear();
    }

    pub(crate) fn demand_token(&self, token: &str) {
        self.world().token = Some(token.to_owned());
    }

    pub(crate) fn without_slices(&self) {
        self.world().no_slices = true;
    }

    pub(crate) fn count(&self, verb: &str, resource: &str) -> usize {
        let world = self.world();
        let all = world.requests.iter();
        all.filter(|(v, r, _)| *v == verb && r == resource).count()
    }

    pub(crate) fn queries(&self, verb: &str, resource: &str) -> Vec<String> {
        let world = self.world();
        let all = world.requests.iter();
        let ours = all.filter(|(v, r, _)| *v == verb && r == resource);
        ours.map(|(_, _, query)| query.clone()).collect()
    }
}

type Params = BTreeMap<String, String>;

async fn answer(State(server): State<ApiServer>, uri: Uri, headers: HeaderMap) -> Response {
    let params = params(uri.query().unwrap_or(""));
    let path: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let rest = match path.as_slice() {
        ["apis", "discovery.k8s.io", "v1"] => return server.discovery(),
        ["api", "v1", rest @ ..] | ["apis", "discovery.k8s.io", "v1", rest @ ..] => rest,
        _ => return status(404),
    };
    let (namespace, resource, name) = match rest {
        ["namespaces", namespace, resource, name] => (*namespace, *resource, Some(*name)),
        [resource, name] => ("", *resource, Some(*name)),
        [resource] => ("", *resource, None),
        _ => return status(404),
    };
    let verb = match (name, params.get("watch")) {
        (Some(_), _) => "get",
        (None, Some(_)) => "watch",
        (None, None) => "list",
    };
    let fault = {
        let mut world = server.world();
        let query = uri.query().unwrap_or("").to_owned();
        world.requests.push((verb, resource.to_owned(), query));
        let sent = headers.get("authorization").map(|it| it.to_str().unwrap());
        let expected = world.token.as_ref().map(|token| format!("Bearer {token}"));
        if expected.is_some() && expected.as_deref() != sent {
            return status(401);
        }
        world.faults.get(&(verb, resource.to_owned())).copied()
    };
    match fault {
        Some(Fault::Status(code)) => return status(code),
        Some(Fault::Hang) => std::future::pending::<()>().await,
        _ => {}
    }
    match (verb, name) {
        ("get", Some(name)) => server.get(resource, namespace, name),
        ("watch", _) => server.watch(resource, &params, fault),
        _ => server.list(resource, &params, fault),
    }
}

impl ApiServer {
    fn discovery(&self) -> Response {
        if self.world().no_slices {
            return status(404);
        }
        axum_json(&json!({"kind": "APIResourceList", "resources": [{"name": "endpointslices"}]}))
    }

    fn get(&self, resource: &str, namespace: &str, name: &str) -> Response {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        match self.world().objects.get(&key) {
            Some(object) => axum_json(object),
            None => status(404),
        }
    }

    fn list(&self, resource: &str, params: &Params, fault: Option<Fault>) -> Response {
        let world = self.world();
        let matching = |(key, object): &(&(String, String, String), &Value)| {
            key.0 == resource && selected(object, params) && fault != Some(Fault::Empty)
        };
        let all: Vec<Value> = world
            .objects
            .iter()
            .filter(matching)
            .map(|(_, object)| object.clone())
            .collect();
        let number = |name: &str| params.get(name).and_then(|it| it.parse::<usize>().ok());
        let from = number("continue").unwrap_or(0);
        if from > 0 && fault == Some(Fault::ExpiredContinue) {
            return status(410);
        }
        let limit = number("limit").unwrap_or(usize::MAX);
        let to = all.len().min(from.saturating_add(limit));
        let next = if to < all.len() {
            to.to_string()
        } else {
            String::new()
        };
        let body = json!({
            "kind": "List",
            "metadata": {"resourceVersion": world.version.to_string(), "continue": next},
            "items": &all[from..to],
        });
        if from > 0 && fault == Some(Fault::Truncated) {
            let text = body.to_string();
            return text[..text.len() / 2].to_owned().into_response();
        }
        axum_json(&body)
    }

    fn watch(&self, resource: &str, params: &Params, fault: Option<Fault>) -> Response {
        let from = params.get("resourceVersion").and_then(|it| it.parse().ok());
        let seconds = params.get("timeoutSeconds").and_then(|it| it.parse().ok());
        let lines = Lines {
            world: Arc::clone(&self.world),
            changed: self.changed.subscribe(),
            resource: resource.to_owned(),
            params: params.clone(),
            from: from.unwrap_or(0),
            until: tokio::time::Instant::now() + Duration::from_secs(seconds.unwrap_or(300)),
        };
        let once = |text: String| Body::from(text).into_response();
        match fault {
            Some(Fault::Eof) => once(String::new()),
            Some(Fault::GoneEvent) => {
                let status = json!({"kind": "Status", "code": 410, "message": "too old"});
                once(json!({"type": "ERROR", "object": status}).to_string() + "\n")
            }
            Some(Fault::Silent) => {
                let never = futures::stream::pending::<Result<Bytes, Infallible>>();
                Body::from_stream(never).into_response()
            }
            Some(Fault::Cut) => once("{\"type\":\"ADDED\",\"object\":{\"metad".to_owned()),
            _ => {
                let body = futures::stream::unfold(lines, |mut lines| async {
                    let line = lines.next().await?;
                    Some((Ok::<_, Infallible>(Bytes::from(line)), lines))
                });
                Body::from_stream(body).into_response()
            }
        }
    }
}

struct Lines {
    world: Arc<Mutex<World>>,
    changed: watch::Receiver<u64>,
    resource: String,
    params: Params,
    from: u64,
    until: tokio::time::Instant,
}

impl Lines {
    async fn next(&mut self) -> Option<String> {
        loop {
            self.changed.borrow_and_update();
            if let Some(line) = self.due() {
                return Some(line);
            }
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.until) => return None,
            }
        }
    }

    fn due(&mut self) -> Option<String> {
        let world = self.world.lock().unwrap();
        for change in &world.history {
            if change.version <= self.from {
                continue;
            }
            self.from = change.version;
            if change.resource != self.resource {
                continue;
            }
            let matching = |it: &Option<Value>| {
                let object = it.clone();
                object.filter(|object| selected(object, &self.params))
            };
            let (kind, mut object) = match (matching(&change.before), matching(&change.after)) {
                (None, Some(after)) => ("ADDED", after),
                (Some(_), Some(after)) => ("MODIFIED", after),
                // As the real one: the last state that matched, under the new version.
                (Some(before), None) => ("DELETED", before),
                (None, None) => continue,
            };
            object["metadata"]["resourceVersion"] = change.version.to_string().into();
            return Some(json!({"type": kind, "object": object}).to_string() + "\n");
        }
        None
    }
}

/// Undoes no percent-encoding: what we send needs none but for the values nobody here looks at.
fn params(query: &str) -> Params {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn selected(object: &Value, params: &Params) -> bool {
    let label = params.get("labelSelector");
    label.is_none_or(|label| object["metadata"]["labels"].get(label).is_some())
}

fn status(code: u16) -> Response {
    let body = json!({
        "kind": "Status", "status": "Failure", "code": code, "message": format!("scripted {code}"),
    });
    let code = StatusCode::from_u16(code).unwrap();
    (code, body.to_string()).into_response()
}

fn axum_json(value: &Value) -> Response {
    value.to_string().into_response()
}
