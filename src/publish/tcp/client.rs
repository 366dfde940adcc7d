//! The routing API over HTTP: six requests, every answer read for what it means.
//!
//! [`RoutingApi`] is what the lane needs of it; [`Client`] is the one over HTTP.
//!
//! Content types are not believed (the API says `text/plain` for JSON), bodies are bounded, and a 401 is tried
//! once more with a new token, because a token signed with a key that UAA has since rotated looks just like it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _};
use http::{HeaderValue, Method, StatusCode, header};

use super::wire::{self, ErrorBody};
use super::{ConnectError, TcpCounters};
use crate::causes::chain;
use crate::config::{RoutingApiConfig, UaaConfig};
use crate::plan::admission::RouterGroup;
use crate::plan::{InstanceId, Observed, TcpRow};
use crate::publish::tls::Https;
use crate::uaa::{TokenSource, UaaError};

/// A request that takes longer has failed. A batch of 100 takes half a second (measured).
const TIMEOUT: Duration = Duration::from_secs(30);
/// 240 bytes a row: room for more rows than any foundation can hold.
const LIST_MAX: usize = 64 * 1024 * 1024;
/// Everything else is short.
const BODY_MAX: usize = 64 * 1024;
/// Longer than any stream of events lives: whoever reads one has a limit of their own between two events.
const STREAM_TIMEOUT: Duration = Duration::from_hours(24 * 365);
/// What of a server's text is repeated in an error.
const MESSAGE_MAX: usize = 300;
/// What a stream of events calls itself; the only content type that is believed.
const EVENTS_TYPE: &str = "text/event-stream";
const JSON_TYPE: &str = "application/json";
/// The header by which an operator finds the request in the routing API's log.
const REQUEST_ID: &str = "X-Vcap-Request-Id";

/// The routing API as the lane knows it, tokens included.
pub trait RoutingApi: Send + Sync {
    /// Every router group of type tcp. All are asked for, since old versions ignore a name in the query.
    fn router_groups(&self) -> BoxFuture<'_, Result<Vec<RouterGroup>, ApiError>>;

    /// Every row there is, of every group: a router serves them all.
    fn list(&self) -> BoxFuture<'_, Result<Observed, ApiError>>;

    /// What happens to rows from now on, of every group, in the bytes that it is told in.
    fn events(&self) -> BoxFuture<'_, Result<EventBytes, ApiError>>;

    /// Creates or refreshes rows. Judged as a whole, stored one by one.
    fn create<'a>(
        &'a self,
        rows: &'a [TcpRow],
        instance: &'a InstanceId,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), ApiError>>;

    /// Deletes rows. Success says nothing: absent rows are skipped in silence.
    fn delete<'a>(&'a self, rows: &'a [TcpRow]) -> BoxFuture<'a, Result<(), ApiError>>;

    /// Fetches the next token while the old one serves, if that is due.
    fn renew_token(&self) -> BoxFuture<'_, Result<(), UaaError>>;

    /// The time until that is due; `None` while no token is kept.
    fn renew_token_in(&self) -> Option<Duration>;

    /// The wanted scopes that the kept token lacks.
    fn missing_scopes(&self) -> Vec<&'static str>;
}

/// A stream of events as it comes in; an error says what broke it.
pub type EventBytes = BoxStream<'static, Result<Bytes, String>>;

/// A client of one routing API.
pub struct Client {
    http: Https,
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
    #[error("the routing API refuses the request: {message}")]
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
    #[error("the routing API does not know the router group: {message}")]
    GroupUnknown {
        /// In its words.
        message: String,
        /// Under which id.
        id: RequestId,
    },
    /// Two rows of one identity stand in its table; neither can be written until they lapse.
    #[error("the routing API holds a row twice: {message}")]
    Duplicate {
        /// In its words.
        message: String,
        /// Under which id.
        id: RequestId,
    },
    /// Even a new token is refused.
    #[error("the routing API refuses our token: {message}")]
    Unauthorized {
        /// The scope that the request needs, where that is what is missing.
        scope: Option<&'static str>,
        /// In its words.
        message: String,
        /// Under which id.
        id: RequestId,
    },
    /// No answer, or one of somebody in between.
    #[error("the routing API is unavailable: {reason}")]
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
    /// What it answers when it did what it was asked (measured). Anything else, a friendly 200 of somebody in
    /// between included, confirms nothing.
    success: StatusCode,
    body_max: usize,
}

const GROUPS: Endpoint = Endpoint {
    method: &Method::GET,
    path: "/routing/v1/router_groups",
    scope: "routing.router_groups.read",
    success: StatusCode::OK,
    body_max: BODY_MAX * 16,
};
const LIST: Endpoint = Endpoint {
    method: &Method::GET,
    path: "/routing/v1/tcp_routes",
    scope: "routing.routes.read",
    success: StatusCode::OK,
    body_max: LIST_MAX,
};
const EVENTS: Endpoint = Endpoint {
    method: &Method::GET,
    path: "/routing/v1/tcp_routes/events",
    scope: "routing.routes.read",
    success: StatusCode::OK,
    body_max: BODY_MAX,
};
const CREATE: Endpoint = Endpoint {
    method: &Method::POST,
    path: "/routing/v1/tcp_routes/create",
    scope: "routing.routes.write",
    success: StatusCode::CREATED,
    body_max: BODY_MAX,
};
const DELETE: Endpoint = Endpoint {
    method: &Method::POST,
    path: "/routing/v1/tcp_routes/delete",
    scope: "routing.routes.write",
    success: StatusCode::NO_CONTENT,
    body_max: BODY_MAX,
};

// === impl Client ===

impl Client {
    /// Reads certificates and builds clients; asks nobody anything.
    ///
    /// # Errors
    /// Where a file or URL cannot be used.
    pub fn new(
        config: &RoutingApiConfig,
        uaa: &UaaConfig,
        counters: Arc<TcpCounters>,
    ) -> Result<Self, ConnectError> {
        Ok(Self {
            http: Https::new(&config.tls, TIMEOUT)?,
            base: config.url.clone(),
            tokens: TokenSource::new(uaa)?,
            counters,
        })
    }

    async fn listen(&self) -> Result<reqwest::Response, ApiError> {
        let token = self.tokens.token().await.map_err(ApiError::Token)?;
        let mut response = self.open(EVENTS, token.expose()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.counters.unauthorized.fetch_add(1, Relaxed);
            let token = self.tokens.replace(&token).await.map_err(ApiError::Token)?;
            response = self.open(EVENTS, token.expose()).await?;
        }
        if response.status() != EVENTS.success {
            let answer = Answer::read(response, EVENTS.body_max).await?;
            return Err(answer
                .judge(EVENTS)
                .expect_err("what is no success must be judged an error"));
        }
        // Of somebody in between who is friendly to everyone.
        let kind = response.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with(EVENTS_TYPE) {
            let reason = format!("it answers with `{}` instead of events", excerpt(kind));
            return Err(unavailable(reason, RequestId::default()));
        }
        Ok(response)
    }

    /// A request whose answer is read by somebody else.
    async fn open(&self, endpoint: Endpoint, token: &str) -> Result<reqwest::Response, ApiError> {
        let request = self.prepare(endpoint, token, EVENTS_TYPE)?;
        let sent = request.timeout(STREAM_TIMEOUT).send().await;
        let answer = sent.map_err(unanswered);
        self.count(answer.as_ref().map(reqwest::Response::status), endpoint);
        answer
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
        let mut request = self.prepare(endpoint, token, JSON_TYPE)?;
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, JSON_TYPE).body(body);
        }
        let answer = match request.send().await {
            Ok(response) => Answer::read(response, endpoint.body_max).await,
            Err(error) => Err(unanswered(error)),
        };
        self.count(answer.as_ref().map(|answer| answer.status), endpoint);
        answer
    }

    /// A request that counts as one from here on.
    fn prepare(
        &self,
        endpoint: Endpoint,
        token: &str,
        accept: &'static str,
    ) -> Result<reqwest::RequestBuilder, ApiError> {
        self.counters.requests.fetch_add(1, Relaxed);
        let url = format!("{}{}", self.base, endpoint.path);
        let request = self.http.client().request(endpoint.method.clone(), url);
        Ok(request
            .header(header::AUTHORIZATION, bearer(token)?)
            .header(header::ACCEPT, accept))
    }

    fn count(&self, answered: Result<StatusCode, &ApiError>, endpoint: Endpoint) {
        if answered.ok() != Some(endpoint.success) {
            self.counters.failures.fetch_add(1, Relaxed);
        }
    }
}

impl RoutingApi for Client {
    fn router_groups(&self) -> BoxFuture<'_, Result<Vec<RouterGroup>, ApiError>> {
        let groups = async {
            let body = self.request(GROUPS, None).await?;
            wire::tcp_groups(&body).map_err(|error| unreadable(&error))
        };
        groups.boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Observed, ApiError>> {
        let list = async {
            self.counters.lists.fetch_add(1, Relaxed);
            let body = self.request(LIST, None).await?;
            wire::observed(&body).map_err(|error| unreadable(&error))
        };
        list.boxed()
    }

    fn events(&self) -> BoxFuture<'_, Result<EventBytes, ApiError>> {
        let events = async {
            let response = self.listen().await?;
            let chunks = stream::try_unfold(response, async |mut response| {
                let chunk = response.chunk().await;
                let chunk = chunk.map_err(|error| chain(&error.without_url()))?;
                Ok(chunk.map(|chunk| (chunk, response)))
            });
            Ok(chunks.boxed())
        };
        events.boxed()
    }

    fn create<'a>(
        &'a self,
        rows: &'a [TcpRow],
        instance: &'a InstanceId,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), ApiError>> {
        let body = wire::created(rows, instance, ttl.as_secs().max(1));
        let create = async { self.request(CREATE, Some(body)).await.map(drop) };
        create.boxed()
    }

    fn delete<'a>(&'a self, rows: &'a [TcpRow]) -> BoxFuture<'a, Result<(), ApiError>> {
        let body = wire::deleted(rows);
        let delete = async { self.request(DELETE, Some(body)).await.map(drop) };
        delete.boxed()
    }

    fn renew_token(&self) -> BoxFuture<'_, Result<(), UaaError>> {
        self.tokens.renew().boxed()
    }

    fn renew_token_in(&self) -> Option<Duration> {
        self.tokens.renew_in()
    }

    fn missing_scopes(&self) -> Vec<&'static str> {
        self.tokens.missing_scopes()
    }
}

/// The header that carries the token; sensitive, so that no library shows it.
fn bearer(token: &str) -> Result<HeaderValue, ApiError> {
    let mut value = HeaderValue::try_from(format!("bearer {token}")).map_err(|_| {
        ApiError::Token(UaaError::Unreadable {
            status: 200,
            reason: "its token holds characters that no header may".to_owned(),
        })
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn unreadable(error: &serde_json::Error) -> ApiError {
    let reason = format!("its answer cannot be read: {error}");
    unavailable(reason, RequestId::default())
}

fn excerpt(text: &str) -> String {
    text.chars().take(MESSAGE_MAX).collect()
}

fn unanswered(error: reqwest::Error) -> ApiError {
    unavailable(chain(&error.without_url()), RequestId::default())
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
        let id = RequestId(id.map(excerpt));
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
                Err(error) => return Err(unavailable(chain(&error.without_url()), id)),
            }
        }
    }

    fn judge(self, endpoint: Endpoint) -> Result<Vec<u8>, ApiError> {
        let Self { status, id, body } = self;
        if status == endpoint.success {
            return Ok(body);
        }
        Err(ApiError::of_answer(status, &body, endpoint.scope, id))
    }
}

/// The limit in `… TTL to be less than or equal to 120`.
fn max_ttl(message: &str) -> Option<u64> {
    let (_, rest) = message.split_once("ttl to be less than or equal to ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|secs| *secs > 0)
}

// === impl ApiError ===

impl ApiError {
    /// What an answer means that is not the one a request gets which did what it should; `scope` is what that
    /// request needs.
    #[must_use]
    pub fn of_answer(status: StatusCode, body: &[u8], scope: &'static str, id: RequestId) -> Self {
        let error = serde_json::from_slice::<ErrorBody>(body)
            .ok()
            .filter(|error| !error.name.is_empty());
        let known = error.is_some();
        let message: String = match error {
            Some(error) => excerpt(&error.message),
            None => format!("status {}", status.as_u16()),
        };
        // Case differs between versions.
        let lower = message.to_lowercase();
        match status {
            StatusCode::BAD_REQUEST if known => match max_ttl(&lower) {
                Some(secs) => Self::MaxTtl { secs },
                None if lower.contains("router_group_guid") && lower.contains("not found") => {
                    Self::GroupUnknown { message, id }
                }
                None => Self::Refused { message, id },
            },
            StatusCode::UNAUTHORIZED => {
                let scope = lower.contains("not authorized").then_some(scope);
                Self::Unauthorized { scope, message, id }
            }
            StatusCode::SERVICE_UNAVAILABLE if lower.contains("duplicate") => {
                Self::Duplicate { message, id }
            }
            _ if known => unavailable(format!("status {}: {message}", status.as_u16()), id),
            _ => unavailable(message, id),
        }
    }

    /// The API's own id of the request, for the log: in a message it would make each failure another one.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::Token(_) | Self::MaxTtl { .. } => None,
            Self::Refused { id, .. }
            | Self::GroupUnknown { id, .. }
            | Self::Duplicate { id, .. }
            | Self::Unauthorized { id, .. }
            | Self::Unavailable { id, .. } => id.0.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(endpoint: Endpoint, status: u16, body: &str) -> Result<Vec<u8>, ApiError> {
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            id: RequestId::default(),
            body: body.as_bytes().to_vec(),
        };
        answer.judge(endpoint)
    }

    #[test]
    fn only_the_apis_own_status_confirms_a_write() {
        for (endpoint, right) in [(GROUPS, 200), (LIST, 200), (CREATE, 201), (DELETE, 204)] {
            for status in [200, 201, 202, 204] {
                let judged = judge(endpoint, status, "<html>");
                assert_eq!(
                    judged.is_ok(),
                    status == right,
                    "{} {status}",
                    endpoint.path
                );
            }
        }
    }

    #[test]
    fn a_token_is_never_shown_and_an_odd_one_no_panic() {
        assert_eq!(format!("{:?}", bearer("hush").unwrap()), "Sensitive");
        assert!(matches!(bearer("a\nb"), Err(ApiError::Token(_))));
    }

    #[test]
    fn a_request_id_is_no_part_of_a_message() {
        let error = |id: &str| {
            let answer = Answer {
                status: StatusCode::BAD_GATEWAY,
                id: RequestId(Some(id.to_owned())),
                body: Vec::new(),
            };
            answer.judge(LIST).unwrap_err()
        };
        assert_eq!(error("a").to_string(), error("b").to_string());
        assert_eq!(error("a").request_id(), Some("a"));
    }
}
