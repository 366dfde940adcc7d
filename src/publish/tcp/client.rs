//! The routing API over HTTP: five requests, every answer read for what it means.
//!
//! Content types are not believed (the API says `text/plain` for JSON), bodies are bounded, and a 401 is tried
//! once more with a new token, because a token signed with a key that UAA has since rotated looks just like it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::{Method, StatusCode, header};
use serde::de::DeserializeOwned;

use super::TcpCounters;
use super::wire::{self, ErrorBody, ListedGroup, ListedRow};
use crate::plan::admission::RouterGroup;
use crate::plan::{InstanceId, Observed, TcpRow};
use crate::publish::tls;
use crate::uaa::{TokenSource, UaaError};

/// A request that takes longer has failed. A batch of 100 takes half a second (measured).
const TIMEOUT: Duration = Duration::from_secs(30);
/// 240 bytes a row: room for more rows than any foundation can hold.
const LIST_MAX: usize = 64 * 1024 * 1024;
/// Everything else is short.
const BODY_MAX: usize = 64 * 1024;
/// What of a server's text is repeated in an error.
const MESSAGE_MAX: usize = 300;
/// The header by which an operator finds the request in the routing API's log.
const REQUEST_ID: &str = "X-Vcap-Request-Id";

/// A client of one routing API.
pub struct Client {
    http: reqwest::Client,
    base: String,
    tokens: TokenSource,
    counters: Arc<TcpCounters>,
}

/// Why a request did not do what it should; one variant for everything that is answered differently.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApiError {
    /// No token.
    #[error("no token")]
    Token(#[source] UaaError),
    /// The request itself is refused; nothing of it was stored.
    #[error("the routing API refuses the request: {message}{}", .id.said())]
    Refused {
        /// In its words.
        message: String,
        /// Under which id.
        id: RequestId,
    },
    /// Rows may not live that long.
    #[error("the routing API allows a TTL of {secs} s at most")]
    MaxTtl {
        /// The longest life it allows.
        secs: u64,
    },
    /// It does not know the router group.
    #[error("the routing API does not know the router group: {message}{}", .id.said())]
    GroupUnknown {
        /// In its words.
        message: String,
        /// Under which id.
        id: RequestId,
    },
    /// Two rows of one identity stand in its table; neither can be written until they lapse.
    #[error("the routing API holds a row twice: {message}{}", .id.said())]
    Duplicate {
        /// In its words.
        message: String,
        /// Under which id.
        id: RequestId,
    },
    /// Even a new token is refused.
    #[error("the routing API refuses our token: {message}{}", .id.said())]
    Unauthorized {
        /// The scope that the request needs, where that is what is missing.
        scope: Option<&'static str>,
        /// In its words.
        message: String,
        /// Under which id.
        id: RequestId,
    },
    /// No answer, or one of somebody in between.
    #[error("the routing API is unavailable: {reason}{}", .id.said())]
    Unavailable {
        /// What happened.
        reason: String,
        /// Under which id.
        id: RequestId,
    },
}

/// The API's own id of a request, if it told one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestId(pub Option<String>);

struct Answer {
    status: StatusCode,
    id: RequestId,
    body: Vec<u8>,
}

/// One of the API's endpoints, with the scope it demands.
#[derive(Clone, Copy)]
struct Endpoint {
    method: &'static Method,
    path: &'static str,
    scope: &'static str,
    body_max: usize,
}

const GROUPS: Endpoint = Endpoint {
    method: &Method::GET,
    path: "/routing/v1/router_groups",
    scope: "routing.router_groups.read",
    body_max: BODY_MAX * 16,
};
const LIST: Endpoint = Endpoint {
    method: &Method::GET,
    path: "/routing/v1/tcp_routes",
    scope: "routing.routes.read",
    body_max: LIST_MAX,
};
const CREATE: Endpoint = Endpoint {
    method: &Method::POST,
    path: "/routing/v1/tcp_routes/create",
    scope: "routing.routes.write",
    body_max: BODY_MAX,
};
const DELETE: Endpoint = Endpoint {
    method: &Method::POST,
    path: "/routing/v1/tcp_routes/delete",
    scope: "routing.routes.write",
    body_max: BODY_MAX,
};

// === impl Client ===

impl Client {
    /// A client; `http` without its deadline.
    pub(super) fn new(
        http: reqwest::ClientBuilder,
        base: &str,
        tokens: TokenSource,
        counters: Arc<TcpCounters>,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self {
            http: http.timeout(TIMEOUT).build()?,
            base: base.to_owned(),
            tokens,
            counters,
        })
    }

    /// Where its tokens come from.
    pub(super) fn tokens(&self) -> &TokenSource {
        &self.tokens
    }

    /// Every router group of type tcp. All are asked for, since old versions ignore a name in the query.
    pub(super) async fn router_groups(&self) -> Result<Vec<RouterGroup>, ApiError> {
        let groups: Option<Vec<ListedGroup>> = json(&self.request(GROUPS, None).await?)?;
        Ok(wire::tcp_groups(groups.unwrap_or_default()))
    }

    /// Every row there is, of every group: a router serves them all.
    pub(super) async fn list(&self) -> Result<Observed, ApiError> {
        self.counters.lists.fetch_add(1, Relaxed);
        let rows: Option<Vec<ListedRow>> = json(&self.request(LIST, None).await?)?;
        Ok(wire::observed(rows.unwrap_or_default()))
    }

    /// Creates or refreshes rows. Judged as a whole, stored one by one.
    pub(super) async fn create(
        &self,
        rows: &[TcpRow],
        instance: &InstanceId,
        ttl: Duration,
    ) -> Result<(), ApiError> {
        let body = encode(&wire::created(rows, instance, ttl.as_secs().max(1)));
        self.request(CREATE, Some(body)).await.map(drop)
    }

    /// Deletes rows. Success says nothing: absent rows are skipped in silence.
    pub(super) async fn delete(&self, rows: &[TcpRow]) -> Result<(), ApiError> {
        let body = encode(&wire::deleted(rows));
        self.request(DELETE, Some(body)).await.map(drop)
    }

    /// One request, and once more with a new token if the first was refused.
    async fn request(
        &self,
        endpoint: Endpoint,
        body: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, ApiError> {
        let token = self.tokens.token().await.map_err(ApiError::Token)?;
        let mut answer = self.send(endpoint, token.expose(), body.clone()).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            self.counters.unauthorized.fetch_add(1, Relaxed);
            let token = self.tokens.replace(&token).await.map_err(ApiError::Token)?;
            answer = self.send(endpoint, token.expose(), body).await?;
        }
        answer.judge(endpoint)
    }

    async fn send(
        &self,
        endpoint: Endpoint,
        token: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, ApiError> {
        self.counters.requests.fetch_add(1, Relaxed);
        let mut request = self
            .http
            .request(
                endpoint.method.clone(),
                format!("{}{}", self.base, endpoint.path),
            )
            .header(header::AUTHORIZATION, format!("bearer {token}"))
            .header(header::ACCEPT, "application/json");
        if let Some(body) = body {
            request = request
                .header(header::CONTENT_TYPE, "application/json")
                .body(body);
        }
        let answer = match request.send().await {
            Ok(response) => Answer::read(response, endpoint.body_max).await,
            Err(error) => Err(unavailable(
                tls::chain(&error.without_url()),
                RequestId::default(),
            )),
        };
        if !answer
            .as_ref()
            .is_ok_and(|answer| answer.status.is_success())
        {
            self.counters.failures.fetch_add(1, Relaxed);
        }
        answer
    }
}

fn encode(rows: &[wire::SentRow<'_>]) -> Vec<u8> {
    serde_json::to_vec(rows).expect("rows of texts and numbers must be encodable")
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        unavailable(
            format!("its answer cannot be read: {error}"),
            RequestId::default(),
        )
    })
}

fn unavailable(reason: String, id: RequestId) -> ApiError {
    ApiError::Unavailable { reason, id }
}

// === impl Answer ===

impl Answer {
    async fn read(mut response: reqwest::Response, max: usize) -> Result<Self, ApiError> {
        let status = response.status();
        let id = response
            .headers()
            .get(REQUEST_ID)
            .and_then(|id| id.to_str().ok());
        let id = RequestId(id.map(|id| id.chars().take(MESSAGE_MAX).collect()));
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(None) => return Ok(Self { status, id, body }),
                Ok(Some(chunk)) if body.len() + chunk.len() <= max => {
                    body.extend_from_slice(&chunk);
                }
                Ok(Some(_)) => {
                    return Err(unavailable(
                        format!("its answer is longer than {max} bytes"),
                        id,
                    ));
                }
                Err(error) => return Err(unavailable(tls::chain(&error.without_url()), id)),
            }
        }
    }

    fn judge(self, endpoint: Endpoint) -> Result<Vec<u8>, ApiError> {
        let Self { status, id, body } = self;
        if status.is_success() {
            return Ok(body);
        }
        let error = serde_json::from_slice::<ErrorBody>(&body)
            .ok()
            .filter(|error| !error.name.is_empty());
        let known = error.is_some();
        let message: String = match error {
            Some(error) => error.message.chars().take(MESSAGE_MAX).collect(),
            None => format!("status {}", status.as_u16()),
        };
        // Case differs between versions.
        let lower = message.to_lowercase();
        Err(match status {
            StatusCode::BAD_REQUEST if known => match max_ttl(&lower) {
                Some(secs) => ApiError::MaxTtl { secs },
                None if lower.contains("router_group_guid") && lower.contains("not found") => {
                    ApiError::GroupUnknown { message, id }
                }
                None => ApiError::Refused { message, id },
            },
            StatusCode::UNAUTHORIZED => {
                let scope = lower.contains("not authorized").then_some(endpoint.scope);
                ApiError::Unauthorized { scope, message, id }
            }
            StatusCode::SERVICE_UNAVAILABLE if lower.contains("duplicate") => {
                ApiError::Duplicate { message, id }
            }
            _ if known => unavailable(format!("status {}: {message}", status.as_u16()), id),
            _ => unavailable(message, id),
        })
    }
}

/// The limit in `… TTL to be less than or equal to 120`.
fn max_ttl(message: &str) -> Option<u64> {
    let (_, rest) = message.split_once("ttl to be less than or equal to ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|secs| *secs > 0)
}

// === impl RequestId ===

impl RequestId {
    fn said(&self) -> String {
        self.0
            .as_ref()
            .map(|id| format!(" (request `{id}`)"))
            .unwrap_or_default()
    }
}
