//! Who may do what: bearer tokens, checked offline against UAA's active key.
//!
//! The issuer is read once, at start. A signature that does not fit makes the key be fetched again,
//! once a request. `aud`, `kid` and an `iat` in the future are not looked at. Everything wrong is a
//! 401, a missing scope too.

use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RsaPublicKeyComponents,
};
use rsa::RsaPublicKey;
use rsa::pkcs8::DecodePublicKey;
use rsa::traits::PublicKeyParts;
use serde_json::Value;

use crate::tls;
use crate::uaa::unix_time;

/// The Go client has none; a hanging UAA must still end in a 401 within a test's patience.
const UAA_TIMEOUT: Duration = Duration::from_secs(10);
/// What a token without the wanted scope is told (the scope itself is not named).
const NOT_AUTHORIZED: &str = "You are not authorized to perform the requested action";

pub(super) struct Authority {
    url: String,
    client: reqwest::Client,
    issuer: String,
    key_pem: Mutex<String>,
}

enum Refusal {
    /// The signature does not fit the key: another key may.
    Signature,
    Other(String),
}

// === impl Authority ===

impl Authority {
    /// Reads issuer and key; without both there is no routing API.
    pub(super) async fn discover(url: &str, ca_pem: Option<&str>) -> anyhow::Result<Self> {
        let url = url
            .trim_end_matches('/')
            .trim_end_matches("/oauth/token")
            .to_owned();
        let client = tls::http_client(ca_pem, None);
        let openid = format!("{url}/.well-known/openid-configuration");
        let issuer = fetch(&client, &openid, "issuer").await?;
        let key = fetch(&client, &format!("{url}/token_key"), "value").await?;
        Ok(Self {
            url,
            client,
            issuer,
            key_pem: Mutex::new(key),
        })
    }

    /// `Err` is the message of the 401.
    pub(super) async fn check(&self, header: Option<&str>, scope: &str) -> Result<(), String> {
        let header = header.unwrap_or_default();
        let Some((scheme, token)) = header
            .split_once(' ')
            .filter(|(_, token)| !token.contains(' '))
        else {
            return Err("Invalid token format".to_owned());
        };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(format!("Invalid token type: {scheme}"));
        }
        let key = self
            .key_pem
            .lock()
            .expect("lock must not be poisoned")
            .clone();
        let claims = match self.decode(token, &key) {
            Err(Refusal::Signature) => {
                let fresh = fetch(&self.client, &format!("{}/token_key", self.url), "value").await;
                let fresh = fresh.map_err(|error| format!("{error:#}"))?;
                fresh.clone_into(&mut self.key_pem.lock().expect("lock must not be poisoned"));
                self.decode(token, &fresh)
            }
            outcome => outcome,
        };
        let claims = claims.map_err(|refusal| match refusal {
            Refusal::Signature => "crypto/rsa: verification error".to_owned(),
            Refusal::Other(message) => message,
        })?;
        let scopes = claims["scope"].as_array();
        if scopes.is_some_and(|scopes| scopes.iter().any(|has| has == scope)) {
            Ok(())
        } else {
            Err(NOT_AUTHORIZED.to_owned())
        }
    }

    fn decode(&self, token: &str, key_pem: &str) -> Result<Value, Refusal> {
        let other = |message: &str| Refusal::Other(message.to_owned());
        let parts: Vec<&str> = token.split('.').collect();
        let [head, claims, signature] = parts[..] else {
            return Err(other("token contains an invalid number of segments"));
        };
        let json = |part: &str| {
            let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
            serde_json::from_slice::<Value>(&bytes).ok()
        };
        let head = json(head).ok_or_else(|| other("illegal base64 data at input byte 0"))?;
        let claims = json(claims).ok_or_else(|| other("illegal base64 data at input byte 0"))?;
        let algorithm = match head["alg"].as_str() {
            Some("RS256") => &RSA_PKCS1_2048_8192_SHA256,
            Some("RS384") => &RSA_PKCS1_2048_8192_SHA384,
            Some("RS512") => &RSA_PKCS1_2048_8192_SHA512,
            _ => return Err(other("invalid signing method")),
        };
        if claims["iss"] != self.issuer.as_str() {
            return Err(other("invalid issuer"));
        }
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| Refusal::Signature)?;
        let key = RsaPublicKey::from_public_key_pem(key_pem).map_err(|_| Refusal::Signature)?;
        let signed = &token[..token.rfind('.').unwrap_or_default()];
        RsaPublicKeyComponents {
            n: key.n().to_bytes_be(),
            e: key.e().to_bytes_be(),
        }
        .verify(algorithm, signed.as_bytes(), &signature)
        .map_err(|_| Refusal::Signature)?;
        let now = unix_time().as_secs_f64();
        if claims["exp"].as_f64().is_some_and(|expiry| expiry < now) {
            return Err(other("Token is expired"));
        }
        if claims["nbf"].as_f64().is_some_and(|start| start > now) {
            return Err(other("Token is not valid yet"));
        }
        Ok(claims)
    }
}

async fn fetch(client: &reqwest::Client, url: &str, field: &str) -> anyhow::Result<String> {
    let response = client.get(url).timeout(UAA_TIMEOUT).send().await;
    let response = response.and_then(reqwest::Response::error_for_status);
    let document: Value = response.context("uaa")?.json().await.context("uaa")?;
    match document[field].as_str() {
        Some(text) => Ok(text.to_owned()),
        None => bail!("uaa: no `{field}` at {url}"),
    }
}
