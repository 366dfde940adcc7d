//! The requests we make of an apiserver: complete lists, lines of a watch, single objects.
//!
//! It knows which answers mean what and when the client has to be made anew. What follows from an answer is
//! its callers' affair.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use http::header::CONTENT_TYPE;
use http::{Method, Request};
use kube::Client;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::client::ConnectError;
use super::wire::{self, Event, Item, Kind, ObjectKey, Page};
use super::{Timing, seconds};
use crate::config::KubernetesConfig;
use crate::outside::Outside;

/// Objects per page, as kubectl and client-go ask for.
const PAGE_SIZE: usize = 500;
/// Bytes of one page at most. etcd keeps an object below 1.5 MB; Services and Nodes are a few kB.
const PAGE_BYTES_MAX: u64 = 256 << 20;
/// Bytes of one line of a watch at most: one object.
const LINE_BYTES_MAX: usize = 16 << 20;
/// Pages of one list at most; 5 million objects.
const PAGES_MAX: usize = 10_000;
/// A list whose continue token expires is begun anew so often, the last time without pages.
const LIST_TRIES: usize = 3;
/// So many refused or broken requests in a row, and the credentials are read from disk again.
const REBUILD_AFTER: u32 = 3;
/// A client that is not made by then never will be: its `exec` plugin hangs. That plugin keeps its thread, of
/// which tokio has 512, so that this is far above any list's timeout.
const CONNECT_MAX: Duration = Duration::from_mins(10);

/// Why the apiserver did not give us what we asked for.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// There is no client yet.
    #[error("no connection to the apiserver can be set up")]
    Connect(#[source] ConnectError),
    /// 403.
    #[error("the apiserver forbids it: {0}")]
    Forbidden(String),
    /// 401.
    #[error("the apiserver does not accept our credentials")]
    Unauthorized,
    /// 404, and it is the apiserver that says so.
    #[error("the apiserver has no such thing")]
    NotFound,
    /// 404 in no words of the API: of a server in between, or where the API itself is absent.
    #[error("nothing is served at that path")]
    NotServed,
    /// 410: what we go on from is too old.
    #[error("the resource version or continue token has expired")]
    Gone,
    /// Any other answer that is none.
    #[error("the apiserver answers {code}: {message}")]
    Status {
        /// The HTTP status, or 0.
        code: u16,
        /// Its words.
        message: String,
    },
    /// The request did not get through.
    #[error("the request failed")]
    Transport(#[source] Box<kube::Error>),
    /// The answer broke off.
    #[error("the answer broke off")]
    Read(#[source] std::io::Error),
    /// The answer is not what it should be.
    #[error("the answer cannot be read")]
    Malformed(#[source] serde_json::Error),
    /// The answer is JSON, but no object of the API.
    #[error("the answer is no object with a UID")]
    NoObject,
    /// The answer is larger or longer than anything sensible.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(u64),
    /// The answer did not come in time.
    #[error("no complete answer within {}", seconds(*.0))]
    Timeout(Duration),
}

/// What is listed and watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    /// The label its objects must carry.
    pub(super) label: Option<&'static str>,
}

/// A complete list.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) resource_version: String,
    pub(super) items: Vec<Item>,
}

/// A watch, line by line.
pub(super) struct Lines {
    kind: Kind,
    body: Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
}

/// The way to the apiserver.
pub(super) struct Api {
    pub(super) config: KubernetesConfig,
    pub(super) timing: Timing,
    outside: Arc<dyn Outside>,
    client: Mutex<Connection>,
}

#[derive(Default)]
struct Connection {
    client: Option<Client>,
    /// A client being made, and when it is given up. Whoever stops waiting leaves it to the next who asks: a
    /// second one would only run the `exec` plugin twice.
    connecting: Option<(Instant, BoxFuture<'static, Result<Client, ConnectError>>)>,
    refused: u32,
}

// === impl Resource ===

impl Resource {
    /// As it is written in RBAC rules.
    pub(super) fn name(self) -> &'static str {
        match self.kind {
            Kind::Service => "services",
            Kind::Node => "nodes",
            Kind::EndpointSlice => "endpointslices",
            Kind::Endpoints => "endpoints",
        }
    }

    /// Its API group; empty for the core.
    pub(super) fn group(self) -> &'static str {
        match self.kind {
            Kind::EndpointSlice => "discovery.k8s.io",
            _ => "",
        }
    }

    pub(super) fn prefix(self) -> &'static str {
        match self.kind {
            Kind::EndpointSlice => "/apis/discovery.k8s.io/v1",
            _ => "/api/v1",
        }
    }

    fn object_path(self, key: &ObjectKey) -> String {
        // An apiserver gives out none that need it; whoever answers in its place must not break a request.
        let (namespace, name) = (percent_encoded(&key.namespace), percent_encoded(&key.name));
        let (prefix, resource) = (self.prefix(), self.name());
        if namespace.is_empty() {
            format!("{prefix}/{resource}/{name}")
        } else {
            format!("{prefix}/namespaces/{namespace}/{resource}/{name}")
        }
    }

    fn query(self, rest: &str) -> String {
        let selector = self
            .label
            .map_or_else(String::new, |label| format!("labelSelector={label}&"));
        format!("{}/{}?{selector}{rest}", self.prefix(), self.name())
    }
}

// === impl Api ===

impl Api {
    pub(super) fn new(config: KubernetesConfig, timing: Timing, outside: Arc<dyn Outside>) -> Self {
        Self {
            config,
            timing,
            outside,
            client: Mutex::new(Connection::default()),
        }
    }

    /// Every object of a resource, or an error; never a part.
    pub(super) async fn list(&self, resource: Resource) -> Result<Listed, ApiError> {
        let mut tries = 1;
        loop {
            // What was read before the continue token expired is of another time: it is dropped.
            match self.list_once(resource, tries < LIST_TRIES).await {
                Err(ApiError::Gone) if tries < LIST_TRIES => tries += 1,
                result => return result,
            }
        }
    }

    async fn list_once(&self, resource: Resource, paged: bool) -> Result<Listed, ApiError> {
        let mut items = Vec::new();
        let mut token: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let limit = if paged {
                format!("limit={PAGE_SIZE}")
            } else {
                String::new()
            };
            let rest = match &token {
                Some(token) => format!("{limit}&continue={}", percent_encoded(token)),
                None => limit,
            };
            let page = self.page(resource, &resource.query(&rest)).await?;
            items.extend(page.items);
            token = page.next;
            if token.is_none() {
                return Ok(Listed {
                    resource_version: page.resource_version,
                    items,
                });
            }
        }
        Err(ApiError::TooLarge(PAGE_BYTES_MAX))
    }

    async fn page(&self, resource: Resource, uri: &str) -> Result<Page, ApiError> {
        let json = self.read(uri, self.timing.list_timeout).await?;
        wire::page(resource.kind, &json).map_err(ApiError::Malformed)
    }

    /// One object as it is.
    pub(super) async fn get(&self, resource: Resource, key: &ObjectKey) -> Result<Value, ApiError> {
        self.get_json(&resource.object_path(key)).await
    }

    /// Any small answer.
    pub(super) async fn get_json(&self, uri: &str) -> Result<Value, ApiError> {
        let json = self.read(uri, self.timing.get_timeout).await?;
        serde_json::from_slice(&json).map_err(ApiError::Malformed)
    }

    /// Writes one object; what the apiserver made of it.
    pub(super) async fn write_json(
        &self,
        method: Method,
        uri: &str,
        object: &Value,
    ) -> Result<Value, ApiError> {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(CONTENT_TYPE, "application/json")
            .body(object.to_string().into_bytes())
            .expect("the path must be made of checked names");
        let json = self.ask(request, self.timing.get_timeout).await?;
        serde_json::from_slice(&json).map_err(ApiError::Malformed)
    }

    async fn read(&self, uri: &str, within: Duration) -> Result<Vec<u8>, ApiError> {
        self.ask(get(uri), within).await
    }

    async fn ask(&self, request: Request<Vec<u8>>, within: Duration) -> Result<Vec<u8>, ApiError> {
        let read = async {
            let mut json = Vec::new();
            let body = self.open(request).await?;
            body.take(PAGE_BYTES_MAX)
                .read_to_end(&mut json)
                .await
                .map_err(ApiError::Read)?;
            if json.len() as u64 >= PAGE_BYTES_MAX {
                return Err(ApiError::TooLarge(PAGE_BYTES_MAX));
            }
            Ok(json)
        };
        tokio::time::timeout(within, read)
            .await
            .unwrap_or(Err(ApiError::Timeout(within)))
    }

    /// Watches from a resource version on, for as long as asked.
    pub(super) async fn watch(
        &self,
        resource: Resource,
        resource_version: &str,
        timeout: Duration,
    ) -> Result<Lines, ApiError> {
        let rest = format!(
            "watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}",
            timeout.as_secs().max(1),
            percent_encoded(resource_version),
        );
        Ok(Lines {
            kind: resource.kind,
            body: self.open(get(&resource.query(&rest))).await?,
            line: Vec::new(),
        })
    }

    async fn open(
        &self,
        request: Request<Vec<u8>>,
    ) -> Result<Pin<Box<dyn AsyncBufRead + Send>>, ApiError> {
        let client = self.client().await?;
        let answer = client.request_stream(request).await;
        let answer = answer.map_err(ApiError::from_kube);
        self.note(answer.as_ref().err()).await;
        Ok(Box::pin(answer?))
    }

    async fn client(&self) -> Result<Client, ApiError> {
        let mut connection = self.client.lock().await;
        if let Some(client) = &connection.client {
            return Ok(client.clone());
        }
        let (until, connecting) = connection.connecting.get_or_insert_with(|| {
            let connecting = self.outside.apiserver(&self.config, &self.timing);
            (Instant::now() + CONNECT_MAX, connecting)
        });
        let made = timeout_at(*until, connecting).await;
        connection.connecting = None;
        let client = made
            .map_err(|_| ApiError::Timeout(CONNECT_MAX))?
            .map_err(ApiError::Connect)?;
        connection.client = Some(client.clone());
        Ok(client)
    }

    /// Credentials are rotated on disk and kube reads client certificates only once: after some refusals in a
    /// row the next request sets up a new client.
    async fn note(&self, error: Option<&ApiError>) {
        let mut connection = self.client.lock().await;
        match error {
            Some(error) if error.blames_credentials() => connection.refused += 1,
            Some(_) => {}
            None => connection.refused = 0,
        }
        if connection.refused >= REBUILD_AFTER {
            *connection = Connection::default();
        }
    }
}

fn get(uri: &str) -> Request<Vec<u8>> {
    Request::get(uri)
        .body(Vec::new())
        .expect("the path must be made of names the apiserver gave us")
}

fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("writing to a String must succeed");
        }
    }
    encoded
}

// === impl Lines ===

impl Lines {
    /// The next line; `None` where the watch ends. Nothing is lost if the wait is given up.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, ApiError> {
        loop {
            let chunk = self.body.fill_buf().await.map_err(ApiError::Read)?;
            if chunk.is_empty() {
                // A line without its end was cut and says nothing.
                return if self.line.is_empty() {
                    Ok(None)
                } else {
                    Err(ApiError::Read(std::io::ErrorKind::UnexpectedEof.into()))
                };
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(chunk.len(), |end| end + 1);
            self.line.extend_from_slice(&chunk[..taken]);
            self.body.as_mut().consume(taken);
            if self.line.len() > LINE_BYTES_MAX {
                return Err(ApiError::TooLarge(LINE_BYTES_MAX as u64));
            }
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                if !line.trim_ascii().is_empty() {
                    return wire::event(self.kind, &line)
                        .map(Some)
                        .map_err(ApiError::Malformed);
                }
            }
        }
    }
}

/// An `io::Error` keeps what it wraps out of its chain of sources, and hyper-rustls wraps it twice.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let wrapped = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    match (error.is::<rustls::Error>(), wrapped) {
        (true, _) => true,
        (false, Some(inner)) => is_tls(inner),
        (false, None) => error.source().is_some_and(is_tls),
    }
}

// === impl ApiError ===

impl ApiError {
    fn from_kube(error: kube::Error) -> Self {
        match error {
            // kube (5.0.0) makes a Status up, under another reason, where the body is none.
            kube::Error::Api(status) if status.code == 404 && status.reason != "NotFound" => {
                Self::NotServed
            }
            kube::Error::Api(status) => Self::from_status(status.code, status.message),
            other => Self::Transport(Box::new(other)),
        }
    }

    pub(super) fn from_status(code: u16, message: String) -> Self {
        match code {
            401 => Self::Unauthorized,
            403 => Self::Forbidden(message),
            404 => Self::NotFound,
            410 => Self::Gone,
            _ => Self::Status { code, message },
        }
    }

    /// Whether other credentials might help.
    fn blames_credentials(&self) -> bool {
        let Self::Transport(error) = self else {
            return matches!(self, Self::Unauthorized);
        };
        if matches!(**error, kube::Error::Auth(_) | kube::Error::RustlsTls(_)) {
            return true;
        }
        is_tls(&**error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_certificate_is_found_however_deep_it_is_wrapped() {
        let refused = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = std::io::Error::other(std::io::Error::other(refused));
        let error = ApiError::from_kube(kube::Error::Service(Box::new(wrapped)));
        assert!(error.blames_credentials());
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let error = ApiError::from_kube(kube::Error::Service(Box::new(reset)));
        assert!(!error.blames_credentials());
    }

    #[test]
    fn objects_and_lists_are_found_where_the_apiserver_keeps_them() {
        let key = |namespace: &str| ObjectKey {
            namespace: namespace.to_owned(),
            name: "x".to_owned(),
        };
        let services = Resource {
            kind: Kind::Service,
            label: Some("l"),
        };
        let nodes = Resource {
            kind: Kind::Node,
            label: None,
        };
        assert_eq!(
            services.object_path(&key("ns")),
            "/api/v1/namespaces/ns/services/x"
        );
        assert_eq!(nodes.object_path(&key("")), "/api/v1/nodes/x");
        assert_eq!(
            services.query("a=b"),
            "/api/v1/services?labelSelector=l&a=b"
        );
        assert_eq!(percent_encoded("a+b/c=="), "a%2Bb%2Fc%3D%3D");
        let odd = ObjectKey {
            namespace: "a b".to_owned(),
            name: "x?y/\u{1b}ä".to_owned(),
        };
        let path = services.object_path(&odd);
        assert_eq!(path, "/api/v1/namespaces/a%20b/services/x%3Fy%2F%1B%C3%A4");
        assert!(Request::get(path).body(()).is_ok());
    }
}
