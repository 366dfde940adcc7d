//! A kube-apiserver in the box, as version 1.36 was measured to behave towards clients that list,
//! watch and write: namespaces, nodes, Services, Endpoints, EndpointSlices, Leases and Events.
//!
//! Modelled: discovery, bearer tokens and RBAC, one revision counter, optimistic locking,
//! selectors, paged lists with expiring continue tokens, watches with bookmarks, node port
//! allocation, and the words of every refusal.
//!
//! Not modelled: controllers (a namespace is finished, a slice written, a node's status kept by
//! the caller), admission, server-side apply, tables, protobuf, core and `events.k8s.io` Events
//! as two views of one object, and streaming lists: `sendInitialEvents` is answered as an apiserver
//! on etcd 3.4 answers it, 200 with an ERROR event of code 500.

mod auth;
mod faults;
mod kinds;
mod manifests;
mod object;
mod patch;
mod selector;
mod serve;
mod status;
mod store;
mod watching;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

pub use self::auth::{Rule, Rules, Token};
pub use self::faults::{Faults, ListFault, WatchFault};
pub use self::kinds::Served;
pub use self::manifests::{Unreadable, parse as parse_manifest};
pub use self::status::Status;

use self::kinds::Kind;
use self::store::{Deleted, Store};

/// Connections waiting to be accepted; far above what a test opens at once.
const BACKLOG: u32 = 1_024;

/// How to start an [`ApiServer`].
#[derive(Clone, Debug)]
pub struct ApiServerOptions {
    /// Port 0: any free one, kept over restarts.
    pub addr: SocketAddr,
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// The CA that a kubeconfig names; wanted with `tls`.
    pub ca_pem: Option<String>,
    pub tokens: Vec<Token>,
    pub served: Served,
    /// The watch cache of the real server sends one about every minute.
    pub bookmark_interval: Duration,
    /// Finishes a deleted namespace at once instead of waiting for `finish_namespace`.
    pub finish_namespaces: bool,
}

/// A running apiserver; it stops when it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    addr: SocketAddr,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

/// What one object of an applied manifest came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    Created,
    Changed,
    Unchanged,
    /// This server does not serve the kind: Deployments, roles and the like.
    NotServed,
}

/// What connections share.
#[derive(Debug)]
struct Shared {
    // std, because no guard is held over an await.
    store: Mutex<Store>,
    requests: Mutex<BTreeMap<(String, String), u64>>,
    open_watches: Mutex<BTreeMap<String, i64>>,
    faults: Faults,
    tokens: Vec<Token>,
    tls: Option<Arc<rustls::ServerConfig>>,
    ca_pem: Option<String>,
    served: Served,
    bookmark_interval: Duration,
    finish_namespaces: bool,
}

// === impl ApiServerOptions ===

impl Default for ApiServerOptions {
    fn default() -> Self {
        let all = Token {
            token: "admin".into(),
            user: "admin".into(),
            rules: Rules::all(),
        };
        Self {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls: None,
            ca_pem: None,
            tokens: vec![all],
            served: Served::default(),
            bookmark_interval: Duration::from_secs(60),
            finish_namespaces: false,
        }
    }
}

// === impl ApiServer ===

impl ApiServer {
    pub async fn start(options: ApiServerOptions) -> anyhow::Result<Self> {
        let listener = listen(options.addr)?;
        let addr = listener.local_addr().context("the apiserver's address")?;
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::new()),
            requests: Mutex::default(),
            open_watches: Mutex::default(),
            faults: Faults::default(),
            tokens: options.tokens,
            tls: options.tls,
            ca_pem: options.ca_pem,
            served: options.served,
            bookmark_interval: options.bookmark_interval,
            finish_namespaces: options.finish_namespaces,
        });
        let accepting = tokio::spawn(serve::accept(shared.clone(), listener));
        Ok(Self {
            shared,
            addr,
            accepting: Mutex::new(Some(accepting)),
        })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self) -> String {
        let scheme = if self.shared.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.addr)
    }

    /// A kubeconfig, as YAML, for the bearer of `token`.
    pub fn kubeconfig(&self, token: &str) -> String {
        let mut cluster = json!({"server": self.url()});
        if let Some(pem) = &self.shared.ca_pem {
            cluster["certificate-authority-data"] = json!(BASE64.encode(pem));
        }
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "sandbox",
            "clusters": [{"name": "sandbox", "cluster": cluster}],
            "users": [{"name": "route-sync", "user": {"token": token}}],
            "contexts": [
                {"name": "sandbox", "context": {"cluster": "sandbox", "user": "route-sync"}},
            ],
        });
        serde_yaml::to_string(&kubeconfig).expect("a kubeconfig must serialize")
    }

    /// The bearer tokens it knows.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.shared.tokens.iter().map(|token| token.token.as_str())
    }

    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Stops listening and breaks every connection; the objects stay.
    pub async fn stop(&self) {
        let accepting = lock(&self.accepting).take();
        if let Some(accepting) = accepting {
            accepting.abort();
            // An aborted task ends with a cancellation; there is nothing to learn from it.
            let _ = accepting.await;
        }
    }

    /// Listens again, on the address it had.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        self.stop().await;
        let listener = listen(self.addr)?;
        let accepting = tokio::spawn(serve::accept(self.shared.clone(), listener));
        *lock(&self.accepting) = Some(accepting);
        Ok(())
    }

    pub async fn restart(&self) -> anyhow::Result<()> {
        self.start_again().await
    }

    // --- what clients did ---

    /// Requests so far, by verb (`list`, `watch`, `get`, `create` …) and plural resource.
    /// Documents of discovery count as `get` of their path.
    pub fn requests(&self, verb: &str, resource: &str) -> u64 {
        let key = (verb.to_owned(), resource.to_owned());
        lock(&self.shared.requests)
            .get(&key)
            .copied()
            .unwrap_or_default()
    }

    /// Watches of `resource` that are open now.
    pub fn open_watches(&self, resource: &str) -> u64 {
        let open = lock(&self.shared.open_watches)
            .get(resource)
            .copied()
            .unwrap_or_default();
        u64::try_from(open).unwrap_or_default()
    }

    // --- the objects ---

    /// Creates or replaces every object of a manifest, keeping identity and node ports. Stops at
    /// the first refusal.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<Vec<Applied>> {
        let objects = parse_manifest(manifest)?;
        objects
            .into_iter()
            .map(|object| self.apply_object(object))
            .collect()
    }

    /// Creates or replaces one object.
    pub fn apply_object(&self, object: Value) -> anyhow::Result<Applied> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (api_version, kind_name) = (text(&object["apiVersion"]), text(&object["kind"]));
        let name = text(&object["metadata"]["name"]);
        anyhow::ensure!(!kind_name.is_empty(), "an object has no `kind`");
        anyhow::ensure!(!api_version.is_empty(), "a {kind_name} has no `apiVersion`");
        anyhow::ensure!(!name.is_empty(), "a {kind_name} has no `metadata.name`");
        let given = text(&object["metadata"]["namespace"]);
        let mut applied = Applied {
            kind: kind_name.clone(),
            namespace: given.clone(),
            name: name.clone(),
            outcome: Outcome::NotServed,
        };
        let Some(kind) = Kind::of_manifest(&api_version, &kind_name) else {
            return Ok(applied);
        };
        applied.namespace = match (kind.namespaced, given.is_empty()) {
            (false, _) => String::new(),
            (true, true) => "default".to_owned(),
            (true, false) => given,
        };
        let namespace = kind.namespaced.then_some(applied.namespace.as_str());
        let mut store = self.shared.store();
        applied.outcome = match store.get(kind, &applied.namespace, &name) {
            None => {
                store.create(kind, namespace, object)?;
                Outcome::Created
            }
            Some(before) => {
                let after = store.update(kind, namespace, &name, object, false)?.0;
                if Arc::ptr_eq(&before, &after) {
                    Outcome::Unchanged
                } else {
                    Outcome::Changed
                }
            }
        };
        Ok(applied)
    }

    /// Deletes an object; true where there was one. A kind that is not served has none.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> bool {
        let Some(kind) = kinds::KINDS.iter().find(|k| k.kind == kind) else {
            return false;
        };
        let mut store = self.shared.store();
        let deleted = store.delete(kind, place(kind, namespace), name, &Value::Null);
        if let Ok(Deleted::Marked(_)) = &deleted {
            self.shared.namespace_marked(&mut store, kind, name);
        }
        deleted.is_ok()
    }

    /// The object as a client would get it.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let kind = known(kind);
        let found = self
            .shared
            .store()
            .get(kind, place(kind, namespace).unwrap_or(""), name);
        found.map(|object| object.as_ref().clone())
    }

    /// Every object of a kind, in the order of namespace and name.
    pub fn all(&self, kind: &str) -> Vec<Value> {
        let all = self
            .shared
            .store()
            .list(known(kind), None, &selector::Selector::default());
        all.iter().map(|object| object.as_ref().clone()).collect()
    }

    /// Changes an object in place; true where there was one. The server's checks apply.
    pub fn edit(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<(), Status> {
        let kind = known(kind);
        let namespace = place(kind, namespace);
        let mut store = self.shared.store();
        let before = store.get(kind, namespace.unwrap_or_default(), name);
        let before = before.ok_or_else(|| Status::not_found(kind, name))?;
        let mut object = before.as_ref().clone();
        change(&mut object);
        if kind.status && object["status"] != before["status"] {
            store.update(kind, namespace, name, object.clone(), true)?;
            // The first write moved the revision; the second must not take that for a conflict.
            object["metadata"]["resourceVersion"] = Value::Null;
        }
        store.update(kind, namespace, name, object, false).map(drop)
    }

    /// Sets one label of a Service, or takes it off.
    pub fn label(
        &self,
        namespace: &str,
        service: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<(), Status> {
        self.mark("labels", namespace, service, key, value)
    }

    /// Sets one annotation of a Service, or takes it off.
    pub fn annotate(
        &self,
        namespace: &str,
        service: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<(), Status> {
        self.mark("annotations", namespace, service, key, value)
    }

    fn mark(
        &self,
        field: &str,
        namespace: &str,
        service: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<(), Status> {
        self.edit("Service", namespace, service, |object| {
            let marks = &mut object["metadata"][field];
            match value {
                Some(value) => marks[key] = json!(value),
                None => drop(marks.as_object_mut().and_then(|marks| marks.remove(key))),
            }
        })
    }

    /// Writes a Ready node with one InternalIP.
    pub fn node(&self, name: &str, ip: &str) -> Result<(), Status> {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": name},
                ],
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "KubeletReady",
                    "message": "kubelet is posting ready status",
                    "lastTransitionTime": object::timestamp(),
                }],
            },
        });
        self.shared
            .store()
            .create(known("Node"), None, node)
            .map(drop)
    }

    /// Sets a node's Ready condition: `True`, `False` or `Unknown`.
    pub fn node_ready(&self, name: &str, ready: &str) -> Result<(), Status> {
        self.edit("Node", "", name, |node| {
            node["status"]["conditions"] = json!([{
                "type": "Ready", "status": ready, "reason": "SetByTest",
                "lastTransitionTime": object::timestamp(),
            }]);
        })
    }

    /// Stores an object unread, such as a Service whose port is a word.
    pub fn raw_put(&self, kind: &str, object: Value) {
        self.shared.store().put_raw(known(kind), object);
    }

    /// Ends what a deleted namespace began: everything in it goes, then itself.
    pub fn finish_namespace(&self, name: &str) {
        self.shared.store().finish_namespace(name);
    }

    /// While set, changes happen and no watch tells of them: what a broken watch cache does.
    pub fn silence_watches(&self, silent: bool) {
        self.shared.store().silent = silent;
    }

    /// Forgets history, so that a watch from any earlier revision gets 410.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// Lets every continue token expire, so that the next page gets 410.
    pub fn expire_continue_tokens(&self) {
        self.shared.store().expire_snapshots();
    }

    pub fn revision(&self) -> u64 {
        self.shared.store().revision()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(accepting) = lock(&self.accepting).take() {
            accepting.abort();
        }
    }
}

// === impl Shared ===

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    fn count(&self, verb: &str, resource: &str) {
        *lock(&self.requests)
            .entry((verb.to_owned(), resource.to_owned()))
            .or_default() += 1;
    }

    fn watch_opened(&self, resource: &str, difference: i64) {
        *lock(&self.open_watches)
            .entry(resource.to_owned())
            .or_default() += difference;
    }

    fn namespace_marked(&self, store: &mut Store, kind: &Kind, name: &str) {
        if self.finish_namespaces && kind.kind == "Namespace" {
            store.finish_namespace(name);
        }
    }
}

fn listen(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    // A restart must get its address back while old connections still linger.
    socket.set_reuseaddr(true)?;
    socket
        .bind(addr)
        .with_context(|| format!("the apiserver cannot listen on {addr}"))?;
    Ok(socket.listen(BACKLOG)?)
}

/// The kind of that name; Events are those of core/v1.
fn known(kind: &str) -> &'static Kind {
    let found = kinds::KINDS.iter().find(|k| k.kind == kind);
    found.unwrap_or_else(|| panic!("`{kind}` must be a kind the sandbox serves"))
}

fn place<'a>(kind: &Kind, namespace: &'a str) -> Option<&'a str> {
    kind.namespaced.then_some(namespace)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that panicked while it held the lock has failed already.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
