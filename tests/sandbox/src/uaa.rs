//! UAA as measured at 4.30: client credentials, the active key, the issuer.
//!
//! Owns clients, their secrets and the signing key; refuses to know who verifies its tokens.
//!
//! | request | answer |
//! |---|---|
//! | `POST /oauth/token`, form or Basic credentials | a RS256 JWT; `expires_in` is one second less than the validity |
//! | wrong secret, unknown client | 401 `unauthorized` / `Bad credentials` |
//! | a scope the client has not | 400 `invalid_scope`, the body lists the scopes it has |
//! | `GET /token_key`, `/token_keys` | the active key only |
//! | `GET /.well-known/openid-configuration` | issuer `<url>/oauth/token` |
//!
//! Basic credentials are taken as they are, never url-decoded: of `+`, `%` and the like only the
//! raw form fits, and an id with a colon can only use the form body.

mod key;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::listen::{self, Body, Server};
use crate::tls::{self, Identity};

pub use crate::listen::Failure;
use key::SigningKey;
pub use key::random_guid;

/// A token request is a few hundred bytes.
const BODY_LIMIT: usize = 64 * 1024;
/// UAA's own default validity, twelve hours.
pub const DEFAULT_VALIDITY_SECS: u64 = 43_200;

pub struct UaaOptions {
    pub addr: SocketAddr,
    pub tls: Option<Identity>,
    pub clients: Vec<Client>,
}

/// An OAuth client; every one of its secrets is good.
#[derive(Clone, Debug)]
pub struct Client {
    pub id: String,
    pub secrets: Vec<String>,
    pub authorities: Vec<String>,
    pub access_token_validity_secs: u64,
}

pub struct Uaa {
    state: Arc<State>,
    addr: SocketAddr,
    tls: Option<Identity>,
    server: tokio::sync::Mutex<Option<Server>>,
}

struct State {
    /// Known once the first listener has its port.
    url: OnceLock<String>,
    clients: Mutex<BTreeMap<String, Client>>,
    key: Mutex<Arc<SigningKey>>,
    keys_made: AtomicU64,
    failure: Mutex<Option<Failure>>,
    token_requests: AtomicU64,
}

// === impl Client ===

impl Client {
    /// A client with one secret and UAA's default validity.
    pub fn new(id: &str, secret: &str, authorities: &[&str]) -> Self {
        Self {
            id: id.to_owned(),
            secrets: vec![secret.to_owned()],
            authorities: authorities.iter().map(ToString::to_string).collect(),
            access_token_validity_secs: DEFAULT_VALIDITY_SECS,
        }
    }
}

// === impl Uaa ===

impl Uaa {
    pub async fn start(options: UaaOptions) -> anyhow::Result<Self> {
        let key = SigningKey::generate("key-1".to_owned()).await?;
        let state = Arc::new(State {
            url: OnceLock::new(),
            clients: Mutex::new(
                options
                    .clients
                    .into_iter()
                    .map(|client| (client.id.clone(), client))
                    .collect(),
            ),
            key: Mutex::new(Arc::new(key)),
            keys_made: AtomicU64::new(1),
            failure: Mutex::new(None),
            token_requests: AtomicU64::new(0),
        });
        let mut uaa = Self {
            state,
            addr: options.addr,
            tls: options.tls,
            server: tokio::sync::Mutex::new(None),
        };
        uaa.addr = uaa.listen().await?;
        let scheme = if uaa.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", uaa.addr);
        uaa.state.url.get_or_init(|| url);
        Ok(uaa)
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self) -> String {
        self.state.url().to_owned()
    }

    pub fn issuer(&self) -> String {
        self.state.issuer()
    }

    /// A new active key: tokens signed by the old one fail from now on.
    pub async fn rotate_key(&self) -> anyhow::Result<()> {
        let number = self.state.keys_made.fetch_add(1, Ordering::Relaxed) + 1;
        let key = SigningKey::generate(format!("key-{number}")).await?;
        *self.state.key.lock().expect("lock must not be poisoned") = Arc::new(key);
        Ok(())
    }

    pub fn set_secrets(&self, id: &str, secrets: &[&str]) {
        self.change(id, |client| {
            client.secrets = secrets.iter().map(ToString::to_string).collect();
        });
    }

    pub fn set_authorities(&self, id: &str, authorities: &[&str]) {
        self.change(id, |client| {
            client.authorities = authorities.iter().map(ToString::to_string).collect();
        });
    }

    pub fn set_access_token_validity(&self, id: &str, secs: u64) {
        self.change(id, |client| client.access_token_validity_secs = secs);
    }

    /// Every endpoint answers so until told otherwise.
    pub fn fail_with(&self, failure: Option<Failure>) {
        *self
            .state
            .failure
            .lock()
            .expect("lock must not be poisoned") = failure;
    }

    /// Requests to the token endpoint so far, failed ones included.
    pub fn token_requests(&self) -> u64 {
        self.state.token_requests.load(Ordering::Relaxed)
    }

    /// A token with claims of the caller's choosing on top of the usual ones; `null` drops one.
    pub fn mint(&self, client: &str, claims: &Value) -> String {
        let found = self.state.client(client);
        let scopes = found.map(|client| client.authorities).unwrap_or_default();
        let mut all = self.state.claims(client, &scopes, DEFAULT_VALIDITY_SECS);
        for (name, value) in claims.as_object().into_iter().flatten() {
            if value.is_null() {
                all.as_object_mut().and_then(|all| all.remove(name));
            } else {
                all[name] = value.clone();
            }
        }
        self.state.active_key().sign(&all)
    }

    pub async fn stop(&self) {
        if let Some(server) = self.server.lock().await.take() {
            server.stop().await;
        }
    }

    /// Listens on the same address again, with the same key and clients.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        self.listen().await.map(drop)
    }

    pub async fn restart(&self) -> anyhow::Result<()> {
        self.stop().await;
        self.start_again().await
    }

    async fn listen(&self) -> anyhow::Result<SocketAddr> {
        let mut server = self.server.lock().await;
        if let Some(running) = &*server {
            return Ok(running.addr());
        }
        let state = self.state.clone();
        let tls = self.tls.as_ref().map(|tls| tls::server_config(tls, None));
        let started = Server::http(self.addr, tls, move |request, _| {
            let state = state.clone();
            async move { state.respond(request).await }
        });
        let started = started.await.context("uaa")?;
        let addr = started.addr();
        *server = Some(started);
        Ok(addr)
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Client)) {
        let mut clients = self
            .state
            .clients
            .lock()
            .expect("lock must not be poisoned");
        change(clients.get_mut(id).expect("the client must be known"));
    }
}

// === impl State ===

impl State {
    fn url(&self) -> &str {
        self.url.get().map(String::as_str).unwrap_or_default()
    }

    fn issuer(&self) -> String {
        format!("{}/oauth/token", self.url())
    }

    fn client(&self, id: &str) -> Option<Client> {
        let clients = self.clients.lock().expect("lock must not be poisoned");
        clients.get(id).cloned()
    }

    fn active_key(&self) -> Arc<SigningKey> {
        self.key.lock().expect("lock must not be poisoned").clone()
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let is_token = parts.uri.path() == "/oauth/token";
        if is_token {
            self.token_requests.fetch_add(1, Ordering::Relaxed);
        }
        let failure = self
            .failure
            .lock()
            .expect("lock must not be poisoned")
            .clone();
        if let Some(failure) = failure
            && let Some(answer) = failure.answer().await
        {
            return answer;
        }
        match (&parts.method, parts.uri.path()) {
            (&Method::POST, "/oauth/token") => match listen::read_body(body, BODY_LIMIT).await {
                Ok(body) => self.token(&parts.headers, &body),
                Err(_) => error(400, "invalid_request", "Missing grant type"),
            },
            (_, "/oauth/token") => error(
                405,
                "method_not_allowed",
                &format!("Request method '{}' not supported", parts.method),
            ),
            (&Method::GET, "/token_key") => answer(200, &self.active_key().jwk()),
            (&Method::GET, "/token_keys") => {
                answer(200, &json!({ "keys": [self.active_key().jwk()] }))
            }
            (&Method::GET, "/.well-known/openid-configuration") => answer(200, &self.openid()),
            (&Method::GET, "/healthz") => {
                let mut ok = Response::new(listen::full("ok\n"));
                ok.headers_mut().insert(
                    header::CONTENT_TYPE,
                    header::HeaderValue::from_static("text/plain;charset=ISO-8859-1"),
                );
                ok
            }
            _ => error(404, "not_found", "Not Found"),
        }
    }

    fn openid(&self) -> Value {
        json!({
            "issuer": self.issuer(),
            "authorization_endpoint": format!("{}/oauth/authorize", self.url()),
            "token_endpoint": self.issuer(),
            "jwks_uri": format!("{}/token_keys", self.url()),
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            "token_endpoint_auth_signing_alg_values_supported": ["RS256", "HS256"],
            "id_token_signing_alg_values_supported": ["RS256", "HS256"],
        })
    }

    fn token(&self, headers: &HeaderMap, body: &[u8]) -> Response<Body> {
        let form = parse_form(body);
        let Some((id, secret)) = credentials(headers, &form) else {
            return error(
                401,
                "unauthorized",
                "An Authentication object was not found in the SecurityContext",
            );
        };
        let known = self.client(&id);
        let client = known.filter(|client| client.secrets.contains(&secret));
        let Some(client) = client else {
            return error(401, "unauthorized", "Bad credentials");
        };
        match form.get("grant_type").map(String::as_str) {
            Some("client_credentials") => {}
            None | Some("") => return error(400, "invalid_request", "Missing grant type"),
            Some(other) => {
                let description = format!("Unsupported grant type: {other}");
                return error(400, "unsupported_grant_type", &description);
            }
        }
        let mut scopes = client.authorities.clone();
        let wanted = form.get("scope").map(String::as_str).unwrap_or_default();
        let wanted: Vec<String> = wanted.split_whitespace().map(str::to_owned).collect();
        if let Some(foreign) = wanted.iter().find(|scope| !scopes.contains(scope)) {
            return invalid_scope(foreign, &scopes);
        }
        if !wanted.is_empty() {
            scopes = wanted;
        }
        let validity = client.access_token_validity_secs;
        let claims = self.claims(&id, &scopes, validity);
        answer(
            200,
            &json!({
                "access_token": self.active_key().sign(&claims),
                "token_type": "bearer",
                "expires_in": validity.saturating_sub(1),
                "scope": scopes.join(" "),
                "jti": claims["jti"],
            }),
        )
    }

    fn claims(&self, client: &str, scopes: &[String], validity_secs: u64) -> Value {
        let now = unix_time().as_secs();
        let mut audience: Vec<&str> = scopes
            .iter()
            .filter_map(|scope| scope.rsplit_once('.').map(|(resource, _)| resource))
            .chain([client])
            .collect();
        audience.sort_unstable();
        audience.dedup();
        json!({
            "jti": random_guid().replace('-', ""),
            "sub": client,
            "authorities": scopes,
            "scope": scopes,
            "client_id": client,
            "cid": client,
            "azp": client,
            "grant_type": "client_credentials",
            "iat": now,
            "exp": now + validity_secs,
            "iss": self.issuer(),
            "zid": "uaa",
            "aud": audience,
        })
    }
}

// === the wire ===

fn answer(status: u16, body: &Value) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json;charset=UTF-8")
        .header(header::CACHE_CONTROL, "no-store")
        .header(header::PRAGMA, "no-cache")
        .body(listen::full(body.to_string()))
        .expect("status and headers must be valid HTTP")
}

fn error(status: u16, error: &str, description: &str) -> Response<Body> {
    let mut response = answer(
        status,
        &json!({ "error": error, "error_description": description }),
    );
    if response.status() == StatusCode::UNAUTHORIZED {
        let challenge = format!(
            "Basic realm=\"UAA/client\", error=\"{error}\", error_description=\"{description}\""
        );
        let challenge = challenge.parse().expect("a challenge must be a header");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

fn invalid_scope(foreign: &str, has: &[String]) -> Response<Body> {
    let description = format!(
        "Invalid scope: {foreign}. Did you know that you can get default requested scopes by \
         simply sending no value?"
    );
    answer(
        400,
        &json!({
            "error": "invalid_scope",
            "error_description": description,
            "scope": has.join(" "),
        }),
    )
}

/// Credentials of the Basic header when there is one, else of the form.
fn credentials(headers: &HeaderMap, form: &BTreeMap<String, String>) -> Option<(String, String)> {
    let Some(header) = headers.get(header::AUTHORIZATION) else {
        return Some((
            form.get("client_id")?.clone(),
            form.get("client_secret")?.clone(),
        ));
    };
    let header = header.to_str().ok()?;
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    Some((id.to_owned(), secret.to_owned()))
}

fn parse_form(body: &[u8]) -> BTreeMap<String, String> {
    body.split(|byte| *byte == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let at = pair.iter().position(|byte| *byte == b'=');
            let (name, value) = pair.split_at(at.unwrap_or(pair.len()));
            (decode(name), decode(value.get(1..).unwrap_or_default()))
        })
        .collect()
}

/// The time of day, as tokens carry it.
#[expect(
    clippy::disallowed_methods,
    reason = "`iat` and `exp` are wall-clock times by their definition"
)]
pub(crate) fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock must be after 1970")
}

/// A form body, everything but letters and digits escaped.
pub(crate) fn encode_form(fields: &[(&str, &str)]) -> String {
    let escape = |text: &str| -> String {
        let bytes = text.bytes().map(|byte| match byte {
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte if b"-._~".contains(&byte) => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        });
        bytes.collect()
    };
    let fields = fields.iter();
    let fields = fields.map(|(name, value)| format!("{}={}", escape(name), escape(value)));
    fields.collect::<Vec<_>>().join("&")
}

pub(crate) fn decode(text: &[u8]) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                rest = &tail[2..];
                continue;
            }
            (b'+', _) => decoded.push(b' '),
            (other, _) => decoded.push(*other),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
