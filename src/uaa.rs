//! Tokens by client credentials: one at a time, kept, renewed early, never shown.
//!
//! A token is used until 30 s before its end. From 80 % of its life on, [`TokenSource::renew`] fetches the next
//! one while the old one still serves, so that no request waits for UAA; a renewal that fails changes nothing
//! as long as the old token is good. Credentials travel in the form body: it is the only way that every UAA
//! reads alike whatever characters the secret holds (measured on 4.30; Basic is decoded since 74.0, not before).
//!
//! Knows nothing of what tokens are for, except which scopes are wanted.

pub mod clients;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use oauth2::basic::BasicClient;
use oauth2::{
    AsyncHttpClient, AuthType, ClientId, ClientSecret, HttpRequest, HttpResponse,
    RequestTokenError, TokenResponse, TokenUrl,
};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::causes::chain;
use crate::config::{Secret, UaaConfig};
use crate::publish::tls::{Https, TlsError};
use crate::retry::Backoff;

/// The scopes the TCP lane needs; the client `routing_api_client` of a foundation has exactly these.
pub const SCOPES: [&str; 3] = [
    "routing.router_groups.read",
    "routing.routes.read",
    "routing.routes.write",
];

/// A token request that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A token is some kilobytes; whatever is longer is no token.
const BODY_MAX: usize = 64 * 1024;
/// Characters of UAA's own words in an error: they end up in logs and findings.
const DESCRIPTION_MAX: usize = 256;
/// How long before its end a token is no longer used: longer than clocks differ and requests take.
const UNUSABLE_BEFORE_END: Duration = Duration::from_secs(30);
/// How long before its end a token is renewed at the latest, where its life is long enough.
const RENEW_BEFORE_END: Duration = Duration::from_mins(1);
/// The life of a token whose answer names none.
const LIFE_UNKNOWN: Duration = Duration::from_mins(5);
/// The wait after refused credentials: nothing heals them but an operator, and failed logins may lock out.
const REFUSED_WAIT: Duration = Duration::from_secs(30);
/// The wait after a 429 that names none; UAA's limiter never does.
const LIMITED_WAIT: Duration = Duration::from_secs(10);
/// A token is never renewed faster, whatever life its answer names: none at all would be a hot loop.
const RENEW_AFTER_MIN: Duration = Duration::from_secs(1);
/// No token is kept for longer, whatever life its answer names: an absurd one has no place on the clock.
const LIFE_MAX: Duration = Duration::from_hours(24);
/// No server may silence us for longer.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(5);

/// A source of tokens of one client.
pub struct TokenSource {
    http: Https,
    token_url: TokenUrl,
    client_id: ClientId,
    /// As it was last read: it is read again for each request, so that it may be rotated on disk.
    secret: std::sync::Mutex<Secret>,
    kept: std::sync::Mutex<Kept>,
    /// Held across a fetch, so that there is never more than one.
    flight: Mutex<()>,
}

/// A token that can be used now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    text: Secret,
    /// What the client may do; `None` where the answer did not say.
    pub scopes: Option<BTreeSet<String>>,
}

/// Why there is no token. Cloned to everyone who asks before the next attempt.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UaaError {
    /// No answer.
    #[error("UAA cannot be reached: {0}")]
    Unreachable(String),
    /// An answer that is neither a token nor a refusal.
    #[error("UAA answers with status {status}")]
    Status {
        /// The status.
        status: u16,
        /// When to come back, if it said so.
        retry_after: Option<Duration>,
    },
    /// UAA refuses the client.
    #[error("UAA refuses the client: `{error}` {description}")]
    Refused {
        /// 400 or 401.
        status: u16,
        /// OAuth's name for it.
        error: String,
        /// In UAA's words.
        description: String,
    },
    /// An answer that cannot be read.
    #[error("UAA's answer with status {status} cannot be read: {reason}")]
    Unreadable {
        /// The status.
        status: u16,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why no source can be made.
#[derive(Debug, thiserror::Error)]
pub enum UaaSetupError {
    /// The URL is none.
    #[error("`{0}` is no URL")]
    Url(String),
    /// The TLS settings cannot be used.
    #[error("the TLS settings for UAA cannot be used")]
    Tls(#[from] TlsError),
}

struct Kept {
    current: Option<Current>,
    failed: Option<Failed>,
    backoff: Backoff,
}

/// The last attempt, where it came to nothing.
struct Failed {
    /// No further one before.
    again: Instant,
    error: UaaError,
    /// What it was made with.
    secret: Secret,
}

#[derive(Clone)]
struct Current {
    token: Token,
    renew_at: Instant,
    usable_until: Instant,
    ends_at: Instant,
}

/// Carries oauth2's requests over our own client, and keeps the status that its errors lose.
struct Adapter {
    http: reqwest::Client,
    status: Arc<AtomicU16>,
}

/// What the adapter makes of an answer that oauth2 should not parse, as it would lose the status.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Adapted(UaaError);

// === impl TokenSource ===

impl TokenSource {
    /// Makes a source; asks for nothing yet.
    ///
    /// # Errors
    /// Where the URL or a TLS file cannot be used.
    pub fn new(config: &UaaConfig) -> Result<Self, UaaSetupError> {
        let token_url = TokenUrl::new(format!("{}/oauth/token", config.url))
            .map_err(|_| UaaSetupError::Url(config.url.clone()))?;
        Ok(Self {
            http: Https::new(&config.tls, TIMEOUT)?,
            token_url,
            client_id: ClientId::new(config.client_id.clone()),
            secret: std::sync::Mutex::new(config.client_secret.clone()),
            kept: std::sync::Mutex::new(Kept {
                current: None,
                failed: None,
                backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(30)),
            }),
            flight: Mutex::new(()),
        })
    }

    /// The kept token while it is good, else a new one.
    ///
    /// # Errors
    /// Why there is none; until the next attempt is due, the last reason at once.
    pub async fn token(&self) -> Result<Token, UaaError> {
        if let Some(token) = self.usable() {
            return Ok(token);
        }
        let _flight = self.flight.lock().await;
        if let Some(token) = self.usable() {
            return Ok(token);
        }
        // Where no other is to be had, the last one serves to its very end.
        match self.attempt().await {
            Err(error) => self.alive().ok_or(error),
            token => token,
        }
    }

    /// When the kept token should be renewed, or the next attempt at it be made; `None` while none is kept.
    #[must_use]
    pub fn renew_at(&self) -> Option<Instant> {
        let kept = self.lock();
        let due = kept.current.as_ref()?.renew_at;
        Some(
            kept.failed
                .as_ref()
                .map_or(due, |failed| due.max(failed.again)),
        )
    }

    /// The time until [`Self::renew_at`], for whoever has a clock of their own.
    #[must_use]
    pub fn renew_in(&self) -> Option<Duration> {
        Some(self.renew_at()?.saturating_duration_since(Instant::now()))
    }

    /// The wanted scopes that the kept token lacks.
    #[must_use]
    pub fn missing_scopes(&self) -> Vec<&'static str> {
        let kept = self.lock();
        kept.current
            .as_ref()
            .map(|current| current.token.missing_scopes())
            .unwrap_or_default()
    }

    /// Fetches the next token while the old one serves, if that is due.
    ///
    /// # Errors
    /// Why it failed; the old token goes on serving until its end.
    pub async fn renew(&self) -> Result<(), UaaError> {
        let _flight = self.flight.lock().await;
        if self.renew_at().is_some_and(|due| due <= Instant::now()) {
            self.attempt().await?;
        }
        Ok(())
    }

    /// A token in place of one that was refused. Many requests may be refused together and one fetch heals
    /// them all. Where none can be had the refused one stays: it may lack one scope and be good for the rest,
    /// and routes must not lapse because UAA is away at that moment.
    ///
    /// # Errors
    /// Why there is no other.
    pub async fn replace(&self, refused: &Token) -> Result<Token, UaaError> {
        let _flight = self.flight.lock().await;
        match self.usable() {
            Some(token) if token != *refused => Ok(token),
            _ => self.attempt().await,
        }
    }

    fn usable(&self) -> Option<Token> {
        let kept = self.lock();
        let current = kept.current.as_ref()?;
        (Instant::now() < current.usable_until).then(|| current.token.clone())
    }

    fn alive(&self) -> Option<Token> {
        let kept = self.lock();
        let current = kept.current.as_ref()?;
        (Instant::now() < current.ends_at).then(|| current.token.clone())
    }

    /// One fetch, unless the last one failed too short a time ago. The flight must be held.
    async fn attempt(&self) -> Result<Token, UaaError> {
        if let Some(failed) = &self.lock().failed
            && Instant::now() < failed.again
            && !failed.is_healed()
        {
            return Err(failed.error.clone());
        }
        let secret = self.secret();
        let answer = self.fetch(&secret).await;
        let mut kept = self.lock();
        match answer {
            Ok(current) => {
                kept.backoff.succeed();
                kept.failed = None;
                let token = current.token.clone();
                tracing::debug!(scopes = ?token.scopes, "token fetched");
                kept.current = Some(current);
                Ok(token)
            }
            Err(error) => {
                let wait = error.wait().unwrap_or_default().max(kept.backoff.fail());
                kept.failed = Some(Failed {
                    again: Instant::now() + wait,
                    error: error.clone(),
                    secret,
                });
                Err(error)
            }
        }
    }

    async fn fetch(&self, secret: &Secret) -> Result<Current, UaaError> {
        let client = BasicClient::new(self.client_id.clone())
            .set_client_secret(ClientSecret::new(secret.expose().to_owned()))
            .set_token_uri(self.token_url.clone())
            .set_auth_type(AuthType::RequestBody);
        let http = Adapter {
            http: self.http.client(),
            status: Arc::default(),
        };
        let asked = Instant::now();
        // No scope is named: one outside the client's authorities would refuse the whole token, while the
        // answer tells which ones were granted.
        let answer = client
            .exchange_client_credentials()
            .request_async(&http)
            .await;
        let status = http.status.load(Ordering::Relaxed);
        let answer = answer.map_err(|error| match error {
            RequestTokenError::Request(Adapted(error)) => error,
            RequestTokenError::ServerResponse(refusal) => UaaError::Refused {
                status,
                error: refusal.error().to_string(),
                description: said(refusal.error_description()),
            },
            RequestTokenError::Parse(error, _) => UaaError::Unreadable {
                status,
                reason: format!("at `{}`", error.path()),
            },
            RequestTokenError::Other(reason) => UaaError::Unreadable { status, reason },
        })?;
        let life = answer.expires_in().unwrap_or(LIFE_UNKNOWN);
        let scopes = answer.scopes().map(|scopes| {
            scopes
                .iter()
                .map(|scope| scope.as_str().to_owned())
                .collect()
        });
        let text = Secret::new(answer.access_token().secret().clone());
        Ok(Current::new(Token { text, scopes }, asked, life))
    }

    /// The secret as it is now; where it cannot be read, as it was.
    fn secret(&self) -> Secret {
        let mut secret = self
            .secret
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match secret.read_again() {
            Ok(read) => *secret = read,
            Err(error) => {
                tracing::warn!(error, "client secret not read again, the last one serves");
            }
        }
        secret.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        // A std mutex, because no await is held; whoever panicked under it left it whole.
        self.kept
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

// === impl Adapter ===

impl<'c> AsyncHttpClient<'c> for Adapter {
    type Error = Adapted;
    type Future = BoxFuture<'c, Result<HttpResponse, Adapted>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}

impl Adapter {
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Adapted> {
        let unreachable = |error: reqwest::Error| Adapted(UaaError::Unreachable(chain(&error)));
        let (parts, body) = request.into_parts();
        let mut response = self
            .http
            .request(parts.method, parts.uri.to_string())
            .headers(parts.headers)
            .body(body)
            .send()
            .await
            .map_err(unreachable)?;
        let status = response.status().as_u16();
        self.status.store(status, Ordering::Relaxed);
        if !matches!(status, 200 | 400 | 401) {
            let retry_after = retry_after(response.headers());
            return Err(Adapted(UaaError::Status {
                status,
                retry_after,
            }));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > BODY_MAX {
                let reason = format!("it is longer than {BODY_MAX} bytes");
                return Err(Adapted(UaaError::Unreadable { status, reason }));
            }
            body.extend_from_slice(&chunk);
        }
        let mut answer = HttpResponse::new(body);
        *answer.status_mut() = response.status();
        *answer.headers_mut() = response.headers().clone();
        Ok(answer)
    }
}

/// What of a refusal's text is repeated.
fn said(text: Option<&String>) -> String {
    text.map(|text| text.chars().take(DESCRIPTION_MAX).collect())
        .unwrap_or_default()
}

/// `Retry-After` in seconds; its form as a date is not sent by UAA, gorouter or the routing API.
fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(http::header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

// === impl Token ===

impl Token {
    /// The text itself, for the one header that carries it.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.text.expose()
    }

    /// The wanted scopes that the client does not have; none where UAA did not say.
    #[must_use]
    pub fn missing_scopes(&self) -> Vec<&'static str> {
        let Some(scopes) = &self.scopes else {
            return Vec::new();
        };
        SCOPES
            .into_iter()
            .filter(|scope| !scopes.contains(*scope))
            .collect()
    }
}

// === impl Current ===

impl Current {
    fn new(token: Token, asked: Instant, life: Duration) -> Self {
        // A tenth of jitter (±5 %), so that processes started together do not renew together.
        let life = life.min(LIFE_MAX);
        let share = 0.80 * (0.95 + 0.10 * fastrand::f64());
        let early = life.mul_f64(share);
        // Of a life that is hardly longer than the margin, half: else each token would be renewed as it comes.
        let in_time = life.saturating_sub(RENEW_BEFORE_END).max(life / 2);
        let renew = early.min(in_time);
        // A life below the margin would never be usable at all; half of it is better than none.
        let usable = life.saturating_sub(UNUSABLE_BEFORE_END).max(life / 2);
        Self {
            token,
            renew_at: asked + renew.min(usable).max(RENEW_AFTER_MIN),
            usable_until: asked + usable,
            ends_at: asked + life,
        }
    }
}

// === impl Failed ===

impl Failed {
    /// Whether the client was refused and its file now holds another secret: waiting is for what may pass by itself.
    fn is_healed(&self) -> bool {
        let refused = matches!(self.error, UaaError::Refused { .. });
        let read = || self.secret.read_again();
        refused && read().is_ok_and(|secret| secret != self.secret)
    }
}

// === impl UaaError ===

impl UaaError {
    /// How long to wait at least.
    fn wait(&self) -> Option<Duration> {
        match self {
            Self::Refused { .. } | Self::Unreadable { status: 401, .. } => Some(REFUSED_WAIT),
            Self::Status {
                retry_after: Some(wait),
                ..
            } => Some(*wait),
            Self::Status { status: 429, .. } => Some(LIMITED_WAIT),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
