//! Connections and requests: from bytes to a verb on a resource, and back.
//!
//! The order of checks is the real server's: who is it, may they, does the path exist, is the
//! body sound.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::Shared;
use super::auth::{self, Action};
use super::faults::{ListFault, WatchFault};
use super::kinds::Kind;
use super::patch;
use super::selector::Selector;
use super::status::Status;
use super::store::Deleted;
use super::watching::{Wanted, Watching};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The real server's limit for a request body.
const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves connections until it is dropped, and every connection with it.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve(shared.clone(), stream))),
                // Out of descriptors, say: the next attempt may do better, but not at once.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    // Without it an event would wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    match shared.tls.clone() {
        None => serve_io(shared, TokioIo::new(stream)).await,
        Some(config) => {
            let accept = tokio_rustls::TlsAcceptor::from(config).accept(stream);
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, accept).await {
                serve_io(shared, TokioIo::new(stream)).await;
            }
        }
    }
}

async fn serve_io<I>(shared: Arc<Shared>, io: I)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(shared, request).await) }
    });
    // An error here is a client that went away or a fault that cut the connection.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(io, service)
        .await;
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    match respond(shared, request).await {
        Ok(response) => response,
        Err(status) => {
            let mut response = document(status.code, &status.to_json());
            if status.code == 429 {
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, http::HeaderValue::from(1));
            }
            response
        }
    }
}

/// What a path names.
struct Target<'a> {
    kind: Option<&'static Kind>,
    namespace: Option<&'a str>,
    name: &'a str,
    subresource: Option<&'a str>,
}

type Query = BTreeMap<String, String>;

async fn respond(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let (parts, body) = request.into_parts();
    let authorization = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|h| h.to_str().ok());
    let who = auth::authenticate(&shared.tokens, authorization)?;
    let path = parts.uri.path().trim_end_matches('/').to_owned();
    let query = parse_query(parts.uri.query().unwrap_or_default());
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let Some(target) = Target::of(&segments) else {
        auth::authorize_path(who, &parts.method.as_str().to_lowercase(), &path)?;
        if ["/healthz", "/livez", "/readyz"].contains(&path.as_str()) {
            return Ok(plain(200, "ok"));
        }
        shared.count("get", &path);
        let found = shared.served.document(&segments);
        return Ok(found.map_or_else(page_not_found, |found| document(200, &found)));
    };
    let Some(kind) = target.kind.filter(|kind| shared.served.group(kind.group)) else {
        return Ok(page_not_found());
    };
    let selector = Selector::parse(of(&query, "labelSelector"), of(&query, "fieldSelector"));
    let verb = verb(&parts.method, target.name, of(&query, "watch"))?;
    shared.count(verb, kind.plural);
    let name = match &selector {
        Ok(selector) if target.name.is_empty() => selector.name().unwrap_or_default(),
        _ => target.name,
    };
    // Authorization takes a namespace to lie within itself.
    let namespace = if kind.kind == "Namespace" && !name.is_empty() {
        Some(name)
    } else {
        target.namespace
    };
    let action = Action {
        verb,
        kind,
        subresource: target.subresource,
        namespace,
        name,
    };
    auth::authorize(who, &action)?;
    if verb == "watch" && shared.faults.watch_forbidden() {
        return Err(action.refusal(auth::user_of(who)));
    }
    match verb {
        "watch" => watch(shared, kind, &target, selector?, &query).await,
        "list" => list(&shared, kind, &target, &selector?, &query).await,
        "get" => {
            let found = shared
                .store()
                .get(kind, target.namespace.unwrap_or_default(), target.name);
            let found = found.ok_or_else(|| Status::not_found(kind, target.name))?;
            Ok(document(200, &found))
        }
        _ => {
            if let Some(code) = shared.faults.write_refusal() {
                return Err(Status::fault(code));
            }
            let content_type = parts
                .headers
                .get(header::CONTENT_TYPE)
                .and_then(|h| h.to_str().ok());
            let body = Limited::new(body, BODY_BYTES_MAX)
                .collect()
                .await
                .map_err(|_| Status::new(413, "RequestEntityTooLarge", "limit is 3145728"))?;
            let content_type = content_type.unwrap_or("application/json");
            write(&shared, verb, kind, &target, content_type, &body.to_bytes())
        }
    }
}

fn verb(method: &Method, name: &str, watch: &str) -> Result<&'static str, Status> {
    let one = !name.is_empty();
    match *method {
        Method::GET if one => Ok("get"),
        Method::GET if ["true", "1"].contains(&watch) => Ok("watch"),
        Method::GET => Ok("list"),
        Method::POST if !one => Ok("create"),
        Method::PUT if one => Ok("update"),
        Method::PATCH if one => Ok("patch"),
        Method::DELETE if one => Ok("delete"),
        _ => Err(Status::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )),
    }
}

// === impl Target ===

impl<'a> Target<'a> {
    /// None: the path is of discovery, or of nothing.
    fn of(segments: &[&'a str]) -> Option<Self> {
        let (group, rest) = match segments {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", group, "v1", rest @ ..] => (*group, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", _, "status" | "finalize"] => (None, rest),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            rest => (None, rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, "", None),
            [plural, name] => (*plural, *name, None),
            [plural, name, subresource] => (*plural, *name, Some(*subresource)),
            _ => return None,
        };
        // Only `/status` is a subresource here; it must be one the kind has.
        let kind = Kind::of_path(group, plural).filter(|kind| match subresource {
            None => true,
            Some(subresource) => subresource == "status" && kind.status,
        });
        Some(Self {
            kind,
            namespace,
            name,
            subresource,
        })
    }
}

async fn watch(
    shared: Arc<Shared>,
    kind: &'static Kind,
    target: &Target<'_>,
    selector: Selector,
    query: &Query,
) -> Result<Response<Body>, Status> {
    match shared.faults.of_watch(kind.plural) {
        Some(WatchFault::Status(code)) => return Err(Status::fault(code)),
        Some(WatchFault::NoAnswer) => std::future::pending().await,
        _ => {}
    }
    let revision =
        match of(query, "resourceVersion") {
            "" | "0" => None,
            given => Some(given.parse().map_err(|_| {
                Status::bad_request(format!("invalid resource version \"{given}\""))
            })?),
        };
    let wanted = Wanted {
        kind,
        namespace: target.namespace.map(str::to_owned),
        selector,
        revision,
        bookmarks: ["true", "1"].contains(&of(query, "allowWatchBookmarks")),
        timeout: of(query, "timeoutSeconds")
            .parse()
            .ok()
            .map(Duration::from_secs),
        initial_events: ["true", "1"].contains(&of(query, "sendInitialEvents")),
    };
    let stream = Watching::new(shared, wanted).into_stream();
    let mut response = Response::new(StreamBody::new(stream).boxed_unsync());
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

async fn list(
    shared: &Shared,
    kind: &'static Kind,
    target: &Target<'_>,
    selector: &Selector,
    query: &Query,
) -> Result<Response<Body>, Status> {
    let fault = shared.faults.of_list(kind.plural);
    match fault {
        Some(ListFault::Status(code)) => return Err(Status::fault(code)),
        Some(ListFault::Slow(time)) => tokio::time::sleep(time).await,
        Some(ListFault::Hang) => std::future::pending().await,
        Some(ListFault::Truncated) | None => {}
    }
    let page = page(shared, kind, target.namespace, selector, query)?;
    if fault == Some(ListFault::Truncated) {
        return Ok(truncated(&page));
    }
    Ok(document(200, &page))
}

/// One page of a list. The further pages of one list show the moment of its first.
fn page(
    shared: &Shared,
    kind: &'static Kind,
    namespace: Option<&str>,
    selector: &Selector,
    query: &Query,
) -> Result<Value, Status> {
    let limit = of(query, "limit").parse().unwrap_or(0_usize);
    let limit = if limit == 0 { usize::MAX } else { limit };
    let scope = format!(
        "{}/{}?{}&{}",
        kind.qualified(),
        namespace.unwrap_or_default(),
        of(query, "labelSelector"),
        of(query, "fieldSelector"),
    );
    let mut store = shared.store();
    let (revision, start, objects) = match of(query, "continue") {
        "" => (store.revision(), 0, store.list(kind, namespace, selector)),
        token => {
            let (revision, start) = parse_token(token)?;
            let kept = store
                .snapshot(revision, &scope)
                .ok_or_else(Status::continue_expired)?;
            (revision, start, kept.to_vec())
        }
    };
    let end = objects.len().min(start.saturating_add(limit));
    let remaining = objects.len() - end;
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if remaining > 0 {
        metadata["continue"] = json!(token(revision, end));
        // The real server cannot tell what a selector would leave of the rest.
        if selector.is_empty() {
            metadata["remainingItemCount"] = json!(remaining);
        }
        if start == 0 {
            store.keep_snapshot(&scope, objects.clone());
        }
    }
    let items = objects
        .get(start..end)
        .unwrap_or_default()
        .iter()
        .map(|object| {
            let mut item = object.as_ref().clone();
            // Items of a typed list name neither kind nor version.
            if let Some(item) = item.as_object_mut() {
                item.remove("kind");
                item.remove("apiVersion");
            }
            item
        });
    Ok(json!({
        "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(),
        "metadata": metadata, "items": items.collect::<Vec<_>>(),
    }))
}

fn token(revision: u64, start: usize) -> String {
    let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start.to_string()});
    BASE64.encode(token.to_string())
}

fn parse_token(token: &str) -> Result<(u64, usize), Status> {
    let decoded = BASE64.decode(token).ok();
    let token: Option<Value> = decoded.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    token
        .and_then(|t| Some((t["rv"].as_u64()?, t["start"].as_str()?.parse().ok()?)))
        .ok_or_else(|| Status::bad_request("continue key is not valid: encoding"))
}

fn write(
    shared: &Shared,
    verb: &str,
    kind: &'static Kind,
    target: &Target<'_>,
    content_type: &str,
    body: &[u8],
) -> Result<Response<Body>, Status> {
    let (namespace, name) = (target.namespace, target.name);
    if verb != "delete" && kind.namespaced && namespace.is_none() {
        let why = "the server does not allow this method on the requested resource";
        return Err(Status::new(405, "MethodNotAllowed", why));
    }
    let body: Value = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(body).map_err(|error| {
            Status::bad_request(format!("the object provided is unrecognized: {error}"))
        })?
    };
    let status_only = target.subresource.is_some();
    let mut store = shared.store();
    match verb {
        "create" => Ok(document(201, &*store.create(kind, namespace, body)?)),
        "update" => {
            let (object, created) = store.update(kind, namespace, name, body, status_only)?;
            Ok(document(if created { 201 } else { 200 }, &object))
        }
        "patch" => {
            let before = store
                .get(kind, namespace.unwrap_or_default(), name)
                .ok_or_else(|| Status::not_found(kind, name))?;
            let patched = patch::apply(content_type, &before, &body)?;
            let (object, _) = store.update(kind, namespace, name, patched, status_only)?;
            Ok(document(200, &object))
        }
        _ => match store.delete(kind, namespace, name, &body["preconditions"])? {
            Deleted::Marked(object) => {
                shared.namespace_marked(&mut store, kind, name);
                Ok(document(200, &object))
            }
            Deleted::Gone(object) => {
                let mut details = json!({
                    "name": name, "kind": kind.plural, "uid": object["metadata"]["uid"],
                });
                if !kind.group.is_empty() {
                    details["group"] = json!(kind.group);
                }
                Ok(document(
                    200,
                    &json!({
                        "kind": "Status", "apiVersion": "v1", "metadata": {},
                        "status": "Success", "details": details,
                    }),
                ))
            }
        },
    }
}

fn document(code: u16, document: &Value) -> Response<Body> {
    let mut response = whole(code, document.to_string());
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn plain(code: u16, text: &str) -> Response<Body> {
    let mut response = whole(code, text.to_owned());
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn page_not_found() -> Response<Body> {
    plain(404, "404 page not found\n")
}

fn whole(code: u16, text: String) -> Response<Body> {
    let mut response = Response::new(
        Full::new(Bytes::from(text))
            .map_err(|never| match never {})
            .boxed_unsync(),
    );
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// A page whose second half never comes: the length is announced, the connection breaks.
fn truncated(page: &Value) -> Response<Body> {
    let text = page.to_string();
    let length = text.len();
    let half = Bytes::from(text).slice(..length / 2);
    let broken = io::Error::other("the page is cut by a fault");
    let chunks = futures::stream::iter([Ok(Frame::data(half)), Err(broken)]);
    // The pause lets the first half out before the connection breaks.
    let paced = chunks.then(|chunk| async move {
        if chunk.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        chunk
    });
    let mut response = Response::new(StreamBody::new(paced).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CONTENT_LENGTH, http::HeaderValue::from(length));
    response
}

fn of<'a>(query: &'a Query, key: &str) -> &'a str {
    query.get(key).map_or("", String::as_str)
}

fn parse_query(query: &str) -> Query {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key), percent_decode(value))
        })
        .collect()
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        let escaped = hex
            .filter(|_| *first == b'%')
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (escaped, *first) {
            (Some(byte), _) => bytes.push(byte),
            (None, b'+') => bytes.push(b' '),
            (None, byte) => bytes.push(byte),
        }
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
