//! The clients that a UAA knows: one is read, made, changed, or given another secret.
//!
//! For an administrator's client, with the authority `clients.admin` or `uaa.admin`: others may not grant what they
//! do not hold, nor change another's secret (measured on UAA 4.30, as is every answer named here). Each request is
//! made once, within a deadline; what should become of a client is the caller's affair.

use std::collections::BTreeSet;
use std::time::Duration;

use http::{Method, StatusCode, header};
use serde_json::{Map, Value, json};

use super::{BODY_MAX, DESCRIPTION_MAX, TokenSource, UaaError, UaaSetupError};
use crate::causes::chain;
use crate::config::{Secret, UaaConfig};
use crate::publish::tls::Https;

/// A new secret costs a bcrypt hash, on a machine that may be busy.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Of a client, who looks after it. UAA has no such field of its own, but keeps every key that it does not know with
/// the client and tells it again.
const MANAGED_BY: &str = "managed_by";

/// The clients of one UAA, as one administrator sees them.
pub struct Clients {
    http: Https,
    base: String,
    admin: TokenSource,
}

/// A client, with all that its UAA told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client(Map<String, Value>);

/// What a client should be.
#[derive(Clone, Copy, Debug)]
pub struct Role<'a> {
    /// What it may do, and nothing else.
    pub authorities: &'a [&'a str],
    /// The one way in which it gets tokens.
    pub grant_type: &'a str,
    /// How long a token lives, in seconds.
    pub token_validity: u64,
    /// Who says so, and may change it again.
    pub managed_by: &'a str,
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientsError {
    /// The administrator's client gets no token.
    #[error("the administrator's client gets no token")]
    Token(#[source] UaaError),
    /// No answer.
    #[error("UAA cannot be reached: {0}")]
    Unreachable(String),
    /// 403.
    #[error("the administrator's client may not do it: {0}; hint: it needs `clients.admin`")]
    Forbidden(String),
    /// Any other answer that is none.
    #[error("UAA answers with status {status}: {description}")]
    Refused {
        /// The status.
        status: u16,
        /// In its words.
        description: String,
    },
    /// An answer that cannot be read, or that is about somebody else.
    #[error("UAA's answer cannot be read: {0}")]
    Unreadable(String),
}

// === impl Clients ===

impl Clients {
    /// Asks nobody anything yet.
    ///
    /// # Errors
    /// Where the URL or a TLS file cannot be used.
    pub fn new(uaa: &UaaConfig, admin: (&str, &Secret)) -> Result<Self, UaaSetupError> {
        let admin = UaaConfig {
            client_id: admin.0.to_owned(),
            client_secret: admin.1.clone(),
            ..uaa.clone()
        };
        Ok(Self {
            http: Https::new(&uaa.tls, TIMEOUT)?,
            base: uaa.url.clone(),
            admin: TokenSource::new(&admin)?,
        })
    }

    /// A client by its id, if there is one.
    ///
    /// # Errors
    /// Why that is not known.
    pub async fn get(&self, id: &str) -> Result<Option<Client>, ClientsError> {
        let (status, body) = self.send(Method::GET, &[id], None).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let Value::Object(client) = judge(status, &body)? else {
            return Err(ClientsError::Unreadable("it is no object".to_owned()));
        };
        // Of somebody in between who is friendly to everyone.
        if client.get("client_id").and_then(Value::as_str) != Some(id) {
            let reason = "it is about another client".to_owned();
            return Err(ClientsError::Unreadable(reason));
        }
        Ok(Some(Client(client)))
    }

    /// Makes a client. One that is there already stays as it is, which is an error.
    ///
    /// # Errors
    /// Why it was not made.
    pub async fn create(
        &self,
        id: &str,
        secret: &Secret,
        role: Role<'_>,
    ) -> Result<(), ClientsError> {
        let mut client = Client(Map::new());
        client.0.insert("client_id".to_owned(), json!(id));
        client
            .0
            .insert("client_secret".to_owned(), json!(secret.expose()));
        let body = Value::Object(client.with(role).0);
        let (status, body) = self.send(Method::POST, &[], Some(body)).await?;
        judge(status, &body).map(drop)
    }

    /// Gives a client its role. Everything else stays as UAA told it, its secret among it.
    ///
    /// # Errors
    /// Why it is not changed.
    pub async fn update(
        &self,
        id: &str,
        client: Client,
        role: Role<'_>,
    ) -> Result<(), ClientsError> {
        let body = Value::Object(client.with(role).0);
        let (status, body) = self.send(Method::PUT, &[id], Some(body)).await?;
        judge(status, &body).map(drop)
    }

    /// Gives a client this secret in place of all that it has; tokens it got with them live on.
    ///
    /// # Errors
    /// Why it is not changed.
    pub async fn set_secret(&self, id: &str, secret: &Secret) -> Result<(), ClientsError> {
        let body = json!({"clientId": id, "secret": secret.expose(), "changeMode": "UPDATE"});
        let (status, body) = self.send(Method::PUT, &[id, "secret"], Some(body)).await?;
        judge(status, &body).map(drop)
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        body: Option<Value>,
    ) -> Result<(StatusCode, Vec<u8>), ClientsError> {
        let token = self.admin.token().await.map_err(ClientsError::Token)?;
        let unreachable =
            |error: reqwest::Error| ClientsError::Unreachable(chain(&error.without_url()));
        let mut request = self
            .http
            .client()
            .request(method, self.url(path)?)
            .bearer_auth(token.expose())
            .header(header::ACCEPT, "application/json");
        if let Some(body) = &body {
            request = request.json(body);
        }
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > BODY_MAX {
                let reason = format!("it is longer than {BODY_MAX} bytes");
                return Err(ClientsError::Unreadable(reason));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((status, body))
    }

    /// Each id is one segment of the path, whatever it holds.
    fn url(&self, path: &[&str]) -> Result<reqwest::Url, ClientsError> {
        let refused = || ClientsError::Unreachable(format!("`{}` is no URL", self.base));
        let mut url: reqwest::Url = self.base.parse().map_err(|_| refused())?;
        url.path_segments_mut()
            .map_err(|()| refused())?
            .pop_if_empty()
            .extend(["oauth", "clients"])
            .extend(path);
        Ok(url)
    }
}

fn judge(status: StatusCode, body: &[u8]) -> Result<Value, ClientsError> {
    let answer: Option<Value> = serde_json::from_slice(body).ok();
    if status.is_success() {
        return answer.ok_or_else(|| ClientsError::Unreadable("it is no JSON".to_owned()));
    }
    let said = |key: &str| Some(answer.as_ref()?.get(key)?.as_str()?.to_owned());
    let description = said("error_description").or_else(|| said("error"));
    let description: String = description
        .unwrap_or_default()
        .chars()
        .take(DESCRIPTION_MAX)
        .collect();
    Err(match status {
        StatusCode::FORBIDDEN => ClientsError::Forbidden(description),
        _ => ClientsError::Refused {
            status: status.as_u16(),
            description,
        },
    })
}

// === impl Client ===

impl Client {
    /// What it may do.
    #[must_use]
    pub fn authorities(&self) -> BTreeSet<String> {
        // UAA says so of a client that may do nothing.
        let mut authorities = self.words("authorities");
        authorities.remove("uaa.none");
        authorities
    }

    /// In which ways it gets tokens.
    #[must_use]
    pub fn grant_types(&self) -> BTreeSet<String> {
        self.words("authorized_grant_types")
    }

    /// Whether it bears this one's mark.
    #[must_use]
    pub fn is_managed_by(&self, who: &str) -> bool {
        self.0.get(MANAGED_BY).and_then(Value::as_str) == Some(who)
    }

    /// What differs from a role, by its name at UAA.
    #[must_use]
    pub fn differs(&self, role: Role<'_>) -> Vec<&'static str> {
        let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        let validity = self.0.get("access_token_validity").and_then(Value::as_u64);
        let all = [
            ("authorities", self.authorities() != owned(role.authorities)),
            (
                "authorized_grant_types",
                self.grant_types() != owned(&[role.grant_type]),
            ),
            (
                "access_token_validity",
                validity != Some(role.token_validity),
            ),
            (MANAGED_BY, !self.is_managed_by(role.managed_by)),
        ];
        let differs = all.into_iter().filter(|(_, differs)| *differs);
        differs.map(|(name, _)| name).collect()
    }

    fn with(mut self, role: Role<'_>) -> Self {
        for (key, value) in [
            ("authorities", json!(role.authorities)),
            ("authorized_grant_types", json!([role.grant_type])),
            ("access_token_validity", json!(role.token_validity)),
            (MANAGED_BY, json!(role.managed_by)),
        ] {
            self.0.insert(key.to_owned(), value);
        }
        self
    }

    fn words(&self, key: &str) -> BTreeSet<String> {
        let words = self.0.get(key).and_then(Value::as_array).into_iter();
        let words = words.flatten().filter_map(Value::as_str);
        words.map(str::to_owned).collect()
    }
}
