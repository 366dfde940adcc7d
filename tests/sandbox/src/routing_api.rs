//! The routing API of routing-release, TCP side, as measured on its versions of 2024-09 to 2026-08.
//!
//! Owns router groups, TCP route mappings, their TTL and events; refuses to know what a router does
//! with them, and the (experimental) HTTP routes. One table may be served by several listeners, as
//! the real one has http on 3000 and mTLS on 3001.
//!
//! | endpoint | scope | right answer |
//! |---|---|---|
//! | `GET /routing/v1/router_groups[?name=]` | `routing.router_groups.read` | 200, or 404 for a name |
//! | `GET /routing/v1/tcp_routes` | `routing.routes.read` | 200, `text/plain` |
//! | `POST …/tcp_routes/create`, `…/delete` | `routing.routes.write` | 201, 204, empty |
//! | `GET …/tcp_routes/events` | `routing.routes.read` | server-sent events without heartbeat |

mod auth;
mod faults;
mod table;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::listen::{self, Body, Server};
use crate::tls::{self, Identity};
use crate::uaa::random_guid;
use auth::Authority;
use faults::Faults;
use table::Table;

pub use crate::listen::Failure;
pub use faults::{Endpoint, Recorded};
pub use wire::{ModificationTag, TcpRoute};

/// The real one has no limit; this one must end somewhere (10 000 mappings are 1.6 MB).
const BODY_LIMIT: usize = 256 * 1024 * 1024;
/// The pruner's period in the real program.
pub const PRUNE_INTERVAL: Duration = Duration::from_secs(10);
/// `max_ttl` of the job, and its default.
pub const MAX_TTL_SECS: u32 = 120;

/// A server identity, and the CA (PEM) whose client certificates are demanded, if any.
pub type ServerTls = (Identity, Option<String>);

pub struct RoutingApiOptions {
    pub addr: SocketAddr,
    pub tls: Option<ServerTls>,
    pub max_ttl_secs: u32,
    pub router_groups: Vec<RouterGroup>,
    /// UAA's base URL (its issuer's `/oauth/token` is tolerated).
    pub uaa_issuer_url: String,
    pub uaa_ca_pem: Option<String>,
    pub dialect: Dialect,
    pub prune_interval: Duration,
}

/// Which version's treatment of `backend_tls_port` 0 is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// routing-release 2024-10: 0 or absent leaks a row per refresh, deletes nothing.
    Release2024,
    /// The column's default is 0: correct, and 503 where an older version left duplicates.
    Fixed2026_03,
    /// Leaks again.
    Head2026_08,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterGroup {
    pub guid: String,
    pub name: String,
    #[serde(rename = "type")]
    pub r#type: String,
    pub reservable_ports: String,
}

pub struct RoutingApi {
    state: Arc<State>,
    listeners: tokio::sync::Mutex<Vec<Listener>>,
    addr: SocketAddr,
    secure: bool,
    pruner: JoinHandle<()>,
}

struct Listener {
    addr: SocketAddr,
    tls: Option<ServerTls>,
    server: Option<Server>,
}

struct State {
    table: Mutex<Table>,
    authority: Authority,
    faults: Faults,
}

// === impl RoutingApiOptions ===

impl RoutingApiOptions {
    /// Plain HTTP on a free port, as the 2024-10 release, with the group `default-tcp`.
    pub fn new(uaa_issuer_url: &str) -> Self {
        Self {
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: None,
            max_ttl_secs: MAX_TTL_SECS,
            router_groups: vec![RouterGroup::tcp("default-tcp", "1024-1033")],
            uaa_issuer_url: uaa_issuer_url.to_owned(),
            uaa_ca_pem: None,
            dialect: Dialect::Release2024,
            prune_interval: PRUNE_INTERVAL,
        }
    }
}

// === impl RouterGroup ===

impl RouterGroup {
    /// A group of type `tcp` with a new guid.
    pub fn tcp(name: &str, reservable_ports: &str) -> Self {
        Self {
            guid: random_guid(),
            name: name.to_owned(),
            r#type: "tcp".to_owned(),
            reservable_ports: reservable_ports.to_owned(),
        }
    }
}

// === impl RoutingApi ===

impl RoutingApi {
    /// Fails when UAA cannot be asked for its issuer and key, as the real one does.
    pub async fn start(options: RoutingApiOptions) -> anyhow::Result<Self> {
        let ca = options.uaa_ca_pem.as_deref();
        let authority = Authority::discover(&options.uaa_issuer_url, ca).await?;
        let ttl_max = i64::from(options.max_ttl_secs);
        let table = Table::new(options.dialect, options.router_groups, ttl_max);
        let state = Arc::new(State {
            table: Mutex::new(table),
            authority,
            faults: Faults::default(),
        });
        let pruned = state.clone();
        let period = options.prune_interval;
        let pruner = tokio::spawn(async move {
            loop {
                tokio::time::sleep(period).await;
                pruned.table().prune();
            }
        });
        let mut api = Self {
            state,
            listeners: tokio::sync::Mutex::default(),
            addr: options.addr,
            secure: options.tls.is_some(),
            pruner,
        };
        api.addr = api.also_listen(options.addr, options.tls).await?;
        Ok(api)
    }

    /// One more door to the same table.
    pub async fn also_listen(
        &self,
        addr: SocketAddr,
        tls: Option<ServerTls>,
    ) -> anyhow::Result<SocketAddr> {
        let server = self.state.listen(addr, tls.as_ref()).await?;
        let addr = server.addr();
        self.listeners.lock().await.push(Listener {
            addr,
            tls,
            server: Some(server),
        });
        Ok(addr)
    }

    /// The first listener's.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    /// Every listener ends; the table stays, as the database does. Pruning goes on: another
    /// instance would hold the lock.
    pub async fn stop(&self) {
        for listener in self.listeners.lock().await.iter_mut() {
            if let Some(server) = listener.server.take() {
                server.stop().await;
            }
        }
    }

    pub async fn start_again(&self) -> anyhow::Result<()> {
        for listener in self.listeners.lock().await.iter_mut() {
            if listener.server.is_none() {
                let tls = listener.tls.as_ref();
                listener.server = Some(self.state.listen(listener.addr, tls).await?);
            }
        }
        Ok(())
    }

    pub async fn restart(&self) -> anyhow::Result<()> {
        self.stop().await;
        self.start_again().await
    }

    /// What a list would show now.
    pub fn rows(&self) -> Vec<TcpRoute> {
        self.state.table().live()
    }

    /// A row as some other writer left it, with its event. Its tag is kept when it has one.
    pub fn insert_row(&self, mut route: TcpRoute) {
        if route.modification_tag.guid.is_empty() {
            route.modification_tag.guid = random_guid();
        }
        let mut table = self.state.table();
        route.ttl = route.ttl.or(Some(table.ttl_max));
        table.insert(route);
    }

    /// Removes rows, with their events, and tells how many.
    pub fn delete_rows(&self, matches: impl FnMut(&TcpRoute) -> bool) -> usize {
        self.state.table().delete_where(matches)
    }

    pub fn set_router_groups(&self, groups: Vec<RouterGroup>) {
        self.state.table().groups = groups;
    }

    pub fn set_max_ttl(&self, secs: u32) {
        self.state.table().ttl_max = i64::from(secs);
    }

    /// The same database under another version.
    pub fn set_dialect(&self, dialect: Dialect) {
        self.state.table().dialect = dialect;
    }

    /// Every endpoint answers so, `None` ends that.
    pub fn fail_with(&self, failure: Option<Failure>) {
        self.state.faults.set(None, failure, None);
    }

    /// One endpoint answers so, `None` ends that.
    pub fn fail_endpoint(&self, endpoint: Endpoint, failure: Option<Failure>) {
        self.state.faults.set(Some(endpoint), failure, None);
    }

    /// One endpoint answers so to its next `times` requests.
    pub fn fail_next(&self, endpoint: Endpoint, failure: Failure, times: usize) {
        self.state
            .faults
            .set(Some(endpoint), Some(failure), Some(times));
    }

    /// The latest requests, oldest first; [`faults`] says how many are kept.
    pub fn requests(&self) -> Vec<Recorded> {
        self.state.faults.recorded()
    }

    pub fn forget_requests(&self) {
        self.state.faults.forget();
    }
}

impl Drop for RoutingApi {
    fn drop(&mut self) {
        self.pruner.abort();
    }
}

// === impl State ===

impl State {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("lock must not be poisoned")
    }

    async fn listen(
        self: &Arc<Self>,
        addr: SocketAddr,
        tls: Option<&ServerTls>,
    ) -> anyhow::Result<Server> {
        let state = self.clone();
        let tls = tls.map(|(identity, ca)| tls::server_config(identity, ca.as_deref()));
        let server = Server::http(addr, tls, move |request, _| {
            let state = state.clone();
            async move { state.respond(request).await }
        });
        server.await.context("routing API")
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let mut response = match listen::read_body(body, BODY_LIMIT).await {
            Ok(body) => self.answer(&parts, &body).await,
            Err(error) => wire::process_request_error(&error.to_string()),
        };
        let id = HeaderValue::from_str(&random_guid()).expect("a guid must be a header value");
        response.headers_mut().insert("x-vcap-request-id", id);
        response
    }

    async fn answer(&self, parts: &http::request::Parts, body: &[u8]) -> Response<Body> {
        let path = parts.uri.path();
        let endpoint = Endpoint::of(path);
        self.faults.record(parts, body);
        if let Some(failure) = self.faults.failure(endpoint)
            && let Some(answer) = failure.answer().await
        {
            return answer;
        }
        let Some(endpoint) = endpoint else {
            return wire::plain(404, "404 page not found\n".to_owned());
        };
        let verb = match endpoint {
            Endpoint::Create | Endpoint::Delete => Method::POST,
            Endpoint::RouterGroups | Endpoint::List | Endpoint::Events => Method::GET,
        };
        if parts.method != verb {
            return wire::plain(405, "Method Not Allowed\n".to_owned());
        }
        let header = parts.headers.get(header::AUTHORIZATION);
        let header = header.and_then(|header| header.to_str().ok());
        if let Err(message) = self.authority.check(header, endpoint.scope()).await {
            return wire::error(401, "UnauthorizedError", &message);
        }
        let query = query(parts.uri.query().unwrap_or_default());
        match endpoint {
            Endpoint::RouterGroups => self.router_groups(&query),
            Endpoint::List => self.list(&query),
            Endpoint::Create => self.create(body),
            Endpoint::Delete => self.delete(body),
            Endpoint::Events => self.events(),
        }
    }

    fn router_groups(&self, query: &BTreeMap<String, Vec<String>>) -> Response<Body> {
        let mut groups = self.table().groups.clone();
        let name = query.get("name").and_then(|names| names.first());
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            groups.retain(|group| group.name == *name);
            if groups.is_empty() {
                let message = format!("Router Group '{name}' not found");
                return wire::error(404, "ResourceNotFoundError", &message);
            }
        }
        let body = serde_json::to_string(&groups).expect("groups must be JSON");
        wire::answer(200, "application/json", body)
    }

    fn list(&self, query: &BTreeMap<String, Vec<String>>) -> Response<Body> {
        let mut routes = self.table().live();
        if let Some(segments) = query.get("isolation_segment") {
            routes.retain(|route| segments.contains(&route.isolation_segment));
        }
        let mut body = serde_json::to_string(&routes).expect("routes must be JSON");
        body.push('\n');
        wire::plain(200, body)
    }

    /// All are validated before any is stored; storing is one by one and keeps what went before.
    fn create(&self, body: &[u8]) -> Response<Body> {
        let routes = match wire::decode(body) {
            Ok(routes) => routes,
            Err(message) => return wire::process_request_error(&message),
        };
        let mut table = self.table();
        for route in &routes {
            if let Err(message) = wire::validate(route, Some(table.ttl_max), &table.groups) {
                return wire::process_request_error(&message);
            }
        }
        for route in routes {
            if let Err(message) = table.save(route) {
                return wire::error(503, "DBCommunicationError", message);
            }
        }
        wire::empty(201)
    }

    fn delete(&self, body: &[u8]) -> Response<Body> {
        let routes = match wire::decode(body) {
            Ok(routes) => routes,
            Err(message) => return wire::process_request_error(&message),
        };
        let mut table = self.table();
        for route in &routes {
            if let Err(message) = wire::validate(route, None, &[]) {
                return wire::process_request_error(&message);
            }
        }
        for route in &routes {
            if let Err(message) = table.delete(route) {
                return wire::error(503, "DBCommunicationError", message);
            }
        }
        wire::empty(204)
    }

    /// The counter is the connection's own; a subscriber too far behind ends.
    fn events(&self) -> Response<Body> {
        let receiver = self.table().subscribe();
        let frames = stream::unfold((receiver, 0_u64), |(mut receiver, id)| async move {
            let event = receiver.recv().await.ok()?;
            let data = serde_json::to_string(&event.route).expect("a route must be JSON");
            let text = format!("id: {id}\nevent: {}\ndata: {data}\n\n", event.name);
            let frame = Ok::<_, io::Error>(Frame::data(Bytes::from(text)));
            Some((frame, (receiver, id + 1)))
        });
        Response::builder()
            .header(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")
            .header(header::CACHE_CONTROL, "no-cache, no-store, must-revalidate")
            .header(header::CONNECTION, "keep-alive")
            .body(StreamBody::new(frames).boxed_unsync())
            .expect("headers must be valid HTTP")
    }
}

fn query(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut query: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = crate::uaa::decode(value.as_bytes());
        query.entry(name.to_owned()).or_default().push(value);
    }
    query
}
