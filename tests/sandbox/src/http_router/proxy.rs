//! One request: find the pool, try its endpoints, say what went wrong in gorouter's words.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::State;
use super::registry::{Endpoint, Lookup};
use crate::listen::{self, Body, Io};
use crate::uaa::random_guid;

/// `backends.max_attempts`.
const ATTEMPTS_MAX: usize = 3;
/// gorouter's dial timeout to a backend.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// gorouter's TLS handshake timeout to a backend.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Headers that belong to one hop.
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Why an endpoint could not be reached: the status, the body's line, and the header's detail.
struct Failed {
    status: u16,
    message: &'static str,
    detail: String,
    /// A TLS endpoint that fails leaves its pool at once; a plain one is only set aside.
    tls: bool,
}

pub(super) async fn respond(
    state: &Arc<State>,
    request: Request<Incoming>,
    peer: SocketAddr,
) -> Response<Body> {
    let id = HeaderValue::from_str(&random_guid()).expect("a guid must be a header value");
    let mut response = route(state, request, peer, &id).await;
    response.headers_mut().insert("x-vcap-request-id", id);
    response
}

async fn route(
    state: &Arc<State>,
    request: Request<Incoming>,
    peer: SocketAddr,
    id: &HeaderValue,
) -> Response<Body> {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let host = host.to_owned();
    let name = host
        .rsplit_once(':')
        .map_or(host.as_str(), |(name, _)| name);
    // An address for a host is answered as none only when it is the asker's own.
    if name.is_empty() || name == peer.ip().to_string() {
        return refuse(400, "empty_host", "Request had empty Host header");
    }
    let found = state.registry().lookup(name, request.uri().path());
    let pool = match found {
        Lookup::Pool(pool) => pool,
        Lookup::UnknownRoute => {
            let message = format!("Requested route ('{host}') does not exist.");
            return refuse(404, "unknown_route", &message);
        }
        Lookup::NoEndpoints => {
            let message = format!("Requested route ('{host}') has no available endpoints.");
            return refuse(503, "no_endpoints", &message);
        }
    };
    forward(state, &pool, request, peer, id).await
}

async fn forward(
    state: &Arc<State>,
    pool: &str,
    request: Request<Incoming>,
    peer: SocketAddr,
    id: &HeaderValue,
) -> Response<Body> {
    let aside = state.set_aside_for();
    let attempts = state.registry().size(pool).clamp(1, ATTEMPTS_MAX);
    let mut last = None;
    for _ in 0..attempts {
        let Some(endpoint) = state.registry().next(pool, aside, Instant::now()) else {
            break;
        };
        match connect(state, &endpoint).await {
            Ok(sender) => return exchange(state, sender, &endpoint, request, peer, id).await,
            Err(failed) => {
                let mut registry = state.registry();
                if failed.tls {
                    registry.remove(pool, &endpoint.address, Instant::now());
                } else {
                    registry.set_aside(pool, &endpoint.address, Instant::now());
                }
                last = Some(failed);
            }
        }
    }
    match last {
        Some(failed) => endpoint_failure(failed.status, failed.message, &failed.detail),
        None => refuse(
            503,
            "no_endpoints",
            "Requested route has no available endpoints.",
        ),
    }
}

async fn connect(state: &State, endpoint: &Endpoint) -> Result<SendRequest<Incoming>, Failed> {
    let dial = TcpStream::connect(&endpoint.address);
    let stream = match tokio::time::timeout(DIAL_TIMEOUT, dial).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(dial_failed(endpoint, &why(&error))),
        Err(_) => return Err(dial_failed(endpoint, "i/o timeout")),
    };
    let _ = stream.set_nodelay(true);
    let io: Io = if endpoint.tls {
        handshake(state, endpoint, stream).await?
    } else {
        Box::new(stream)
    };
    let handshake = hyper::client::conn::http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(io));
    let (sender, connection) = handshake
        .await
        .map_err(|error| dial_failed(endpoint, &error.to_string()))?;
    state.spawn(async move {
        // The exchange reports what breaks; the connection only has to be driven.
        let _ = connection.await;
    });
    Ok(sender)
}

async fn handshake(state: &State, endpoint: &Endpoint, stream: TcpStream) -> Result<Io, Failed> {
    const HANDSHAKE: &str = "525 SSL Handshake Failed";
    let failed = |status, message, detail: String| Failed {
        status,
        message,
        detail,
        tls: true,
    };
    let san = &endpoint.registration.server_cert_domain_san;
    let config = if san.is_empty() {
        &state.backends_any_name
    } else {
        &state.backends
    };
    let name = if san.is_empty() { "unnamed" } else { san };
    let Ok(name) = ServerName::try_from(name.to_owned()) else {
        return Err(failed(503, HOSTNAME, format!("x509: not a name: {san}")));
    };
    let handshake = TlsConnector::from(config.clone()).connect(name, stream);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => {
            let detail = error.to_string();
            if detail.contains("not valid for") || detail.contains("NotValidForName") {
                Err(failed(503, HOSTNAME, detail))
            } else if detail.contains("UnknownIssuer") {
                Err(failed(526, "526 Invalid SSL Certificate", detail))
            } else {
                Err(failed(525, HANDSHAKE, detail))
            }
        }
        Err(_) => Err(failed(
            525,
            HANDSHAKE,
            "net/http: TLS handshake timeout".to_owned(),
        )),
    }
}

const HOSTNAME: &str = "503 Service Unavailable";
const BAD_GATEWAY: &str = "502 Bad Gateway: Registered endpoint failed to handle the request.";

async fn exchange(
    state: &State,
    mut sender: SendRequest<Incoming>,
    endpoint: &Endpoint,
    request: Request<Incoming>,
    peer: SocketAddr,
    id: &HeaderValue,
) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
    hop(&mut parts.headers);
    let message = &endpoint.registration;
    let instance = match message.private_instance_id.as_str() {
        "" => &endpoint.address,
        id => id,
    };
    let forwarded = parts.headers.get("x-forwarded-for");
    let forwarded = match forwarded.and_then(|value| value.to_str().ok()) {
        Some(before) => format!("{before}, {}", peer.ip()),
        None => peer.ip().to_string(),
    };
    let protocol = if state.secure { "https" } else { "http" };
    for (name, value) in [
        ("x-forwarded-for", forwarded.as_str()),
        ("x-forwarded-proto", protocol),
        ("x-cf-applicationid", &message.app),
        ("x-cf-instanceid", instance),
        ("x-cf-instanceindex", &message.private_instance_index),
        // Keep-alives to backends are off by default.
        ("connection", "close"),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            parts.headers.insert(HeaderName::from_static(name), value);
        }
    }
    parts.headers.insert("x-vcap-request-id", id.clone());
    match sender.send_request(Request::from_parts(parts, body)).await {
        Ok(response) => {
            let (mut parts, body) = response.into_parts();
            hop(&mut parts.headers);
            let body = body.map_err(io::Error::other).boxed_unsync();
            Response::from_parts(parts, body)
        }
        Err(error) => endpoint_failure(502, BAD_GATEWAY, &error.to_string()),
    }
}

fn hop(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn dial_failed(endpoint: &Endpoint, why: &str) -> Failed {
    Failed {
        status: 502,
        message: BAD_GATEWAY,
        detail: format!("dial tcp {}: {why}", endpoint.address),
        tls: endpoint.tls,
    }
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        _ => error.to_string(),
    }
}

fn endpoint_failure(status: u16, message: &str, detail: &str) -> Response<Body> {
    answer(
        status,
        &format!("endpoint_failure ({detail})"),
        format!("{message}\n"),
    )
}

fn refuse(status: u16, error: &str, message: &str) -> Response<Body> {
    let reason = http::StatusCode::from_u16(status).ok();
    let reason = reason.and_then(|status| status.canonical_reason());
    let body = format!("{status} {}: {message}\n", reason.unwrap_or_default());
    let mut response = answer(status, error, body);
    response.headers_mut().insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static(if status == 404 {
            "no-cache, no-store"
        } else {
            "public,max-age=2"
        }),
    );
    response
}

fn answer(status: u16, error: &str, body: String) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("x-cf-routererror", error)
        .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
        .header("x-content-type-options", "nosniff")
        .body(listen::full(body))
        .expect("an error's header must be valid HTTP")
}
