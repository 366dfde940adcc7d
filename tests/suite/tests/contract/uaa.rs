//! UAA: how a client gets a token, what it is told when it does not, and what a token's judge reads.
//!
//! The real one is UAA 4.30.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use counterparts::stack::CLIENT;
use serde_json::{Value, json};

use crate::world::{AUTHORITIES, CHANGING, COLON, ODD, READER, VALIDITY_SECS, World};
use crate::{Answer, Side, UnderTest, agree};

const FORM: &str = "application/x-www-form-urlencoded";
const BAD_CREDENTIALS: &str = "Bad credentials";

pub struct UaaUnderTest {
    side: Side,
    world: &'static World,
    http: reqwest::Client,
    pub url: String,
}

impl UnderTest for UaaUnderTest {
    async fn on(world: &'static World, side: Side) -> Self {
        let url = match side {
            Side::Sandbox => world.sandbox.uaa.url(),
            Side::Real => world.real.uaa_url.clone(),
        };
        let http = world.pki.http_client().expect("a client must be had");
        Self {
            side,
            world,
            http,
            url,
        }
    }
}

// === impl UaaUnderTest ===

impl UaaUnderTest {
    async fn get(&self, path: &str) -> Answer {
        Answer::to(self.http.get(format!("{}{path}", self.url))).await
    }

    fn post(&self, fields: &[(&str, &str)]) -> reqwest::RequestBuilder {
        let request = self.http.post(format!("{}/oauth/token", self.url));
        request
            .header("content-type", FORM)
            .header("accept", "application/json")
            .body(form(fields))
    }

    async fn by_form(&self, (id, secret): (&str, &str), more: &[(&str, &str)]) -> Answer {
        let mut fields = vec![
            ("grant_type", "client_credentials"),
            ("client_id", id),
            ("client_secret", secret),
        ];
        fields.extend_from_slice(more);
        Answer::to(self.post(&fields)).await
    }

    async fn by_basic(&self, (id, secret): (&str, &str)) -> Answer {
        let request = self.post(&[("grant_type", "client_credentials")]);
        Answer::to(request.basic_auth(id, Some(secret))).await
    }

    pub async fn token(&self, client: (&str, &str)) -> String {
        let answer = self.by_form(client, &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["access_token"]
            .as_str()
            .expect("a token must be text")
            .to_owned()
    }

    /// Tokens are signed with a new key from now on; the old one is forgotten.
    pub async fn rotate_key(&self) {
        match self.side {
            Side::Sandbox => self.world.sandbox.uaa.rotate_key().await,
            Side::Real => self.world.real.uaa.lock().await.rotate_key().await,
        }
        .expect("the key must be changed");
    }

    async fn add_secret(&self, (id, old): (&str, &str), new: &str) {
        match self.side {
            Side::Sandbox => self.world.sandbox.uaa.set_secrets(id, &[old, new]),
            Side::Real => {
                let uaa = self.world.real.uaa.lock().await;
                uaa.add_secret(id, new)
                    .await
                    .expect("a second secret must be taken");
            }
        }
    }

    async fn drop_old_secret(&self, id: &str, new: &str) {
        match self.side {
            Side::Sandbox => self.world.sandbox.uaa.set_secrets(id, &[new]),
            Side::Real => {
                let uaa = self.world.real.uaa.lock().await;
                uaa.drop_old_secret(id)
                    .await
                    .expect("the old secret must go");
            }
        }
    }
}

pub fn form(fields: &[(&str, &str)]) -> String {
    let pairs = fields
        .iter()
        .map(|(key, value)| format!("{key}={}", escaped(value)));
    pairs.collect::<Vec<_>>().join("&")
}

fn escaped(text: &str) -> String {
    let escaped = text.bytes().map(|byte| match byte {
        byte if byte.is_ascii_alphanumeric() || b"-._".contains(&byte) => {
            char::from(byte).to_string()
        }
        byte => format!("%{byte:02X}"),
    });
    escaped.collect()
}

fn words(value: &Value) -> Vec<String> {
    let mut words: Vec<String> = value
        .as_str()
        .unwrap_or_default()
        .split(' ')
        .map(str::to_owned)
        .collect();
    words.sort();
    words
}

fn sorted(words: &[&str]) -> Vec<String> {
    let mut words: Vec<String> = words.iter().map(ToString::to_string).collect();
    words.sort();
    words
}

// === tokens ===

#[test]
fn credentials_in_the_form_body_get_a_bearer_token() {
    agree(
        "credentials in the form body get a bearer token",
        async |uaa: &UaaUnderTest| {
            let answer = uaa.by_form(CLIENT, &[]).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            assert!(
                answer
                    .header("content-type")
                    .starts_with("application/json")
            );
            assert!(answer.header("cache-control").contains("no-store"));
            let body = answer.json();
            assert_eq!(body["token_type"], "bearer");
            assert!(body["jti"].is_string());
            assert!(body["refresh_token"].is_null());
        },
    );
}

#[test]
fn a_token_is_said_to_live_one_second_less_than_its_validity() {
    agree(
        "`expires_in` is one less than the validity",
        async |uaa: &UaaUnderTest| {
            let body = uaa.by_form(CLIENT, &[]).await.json();
            // A second may pass between its making and its telling.
            let left = body["expires_in"].as_u64().unwrap();
            let validity = u64::from(VALIDITY_SECS);
            assert!(
                [validity - 1, validity - 2].contains(&left),
                "{left} of {validity}"
            );
        },
    );
}

#[test]
fn the_scope_field_names_what_was_granted() {
    agree(
        "the scope field names every granted scope",
        async |uaa: &UaaUnderTest| {
            let body = uaa.by_form(CLIENT, &[]).await.json();
            assert_eq!(words(&body["scope"]), sorted(&AUTHORITIES));
            let body = uaa.by_form(READER, &[]).await.json();
            assert_eq!(words(&body["scope"]), sorted(&AUTHORITIES[..1]));
            let body = uaa
                .by_form(CLIENT, &[("scope", AUTHORITIES[1])])
                .await
                .json();
            assert_eq!(words(&body["scope"]), sorted(&AUTHORITIES[1..2]));
        },
    );
}

#[test]
fn a_token_carries_its_issuer_and_an_array_of_scopes() {
    agree(
        "a token's claims hold issuer and scope array",
        async |uaa: &UaaUnderTest| {
            let token = uaa.token(CLIENT).await;
            let parts: Vec<&str> = token.split('.').collect();
            let part = |at: usize| -> Value {
                let part: &str = parts[at];
                serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
            };
            assert_eq!((parts.len(), &part(0)["alg"]), (3, &json!("RS256")));
            let claims = part(1);
            assert_eq!(claims["iss"], format!("{}/oauth/token", uaa.url));
            assert_eq!(claims["client_id"], CLIENT.0);
            let mut scopes: Vec<String> =
                serde_json::from_value(claims["scope"].clone()).expect("an array of strings");
            scopes.sort();
            assert_eq!(scopes, sorted(&AUTHORITIES));
            let life = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
            assert_eq!(life, u64::from(VALIDITY_SECS));
        },
    );
}

// === credentials ===

#[test]
fn basic_credentials_of_plain_characters_are_taken() {
    agree(
        "Basic credentials of plain characters are taken",
        async |uaa: &UaaUnderTest| {
            assert_eq!(uaa.by_basic(CLIENT).await.status, 200);
        },
    );
}

#[test]
fn basic_credentials_are_taken_as_they_are_and_never_decoded() {
    let statement = "a secret with `:`, `+`, `&`, `%` or a space works by form body and by raw \
                     Basic, never by url-encoded Basic (measured with UAA 4.30; versions from 74.0 on differ)";
    agree(statement, async |uaa: &UaaUnderTest| {
        assert_eq!(uaa.by_form(ODD, &[]).await.status, 200);
        assert_eq!(uaa.by_basic(ODD).await.status, 200);
        assert_eq!(uaa.by_basic((ODD.0, &escaped(ODD.1))).await.status, 401);
        let request = uaa.post(&[("grant_type", "client_credentials")]);
        let request = request.header("X-CF-ENCODED-CREDENTIALS", "true");
        let request = request.basic_auth(ODD.0, Some(escaped(ODD.1)));
        assert_eq!(Answer::to(request).await.status, 401);
    });
}

#[test]
fn an_id_with_a_colon_is_taken_from_the_form_only() {
    agree(
        "an id with a colon is taken by form only",
        async |uaa: &UaaUnderTest| {
            assert_eq!(uaa.by_form(COLON, &[]).await.status, 200);
            assert_eq!(uaa.by_basic(COLON).await.status, 401);
            assert_eq!(uaa.by_basic((&escaped(COLON.0), COLON.1)).await.status, 401);
        },
    );
}

#[test]
fn a_wrong_secret_and_an_unknown_client_are_told_alike() {
    agree(
        "a wrong secret and an unknown client get the same 401",
        async |uaa: &UaaUnderTest| {
            let expected = json!({"error": "unauthorized", "error_description": BAD_CREDENTIALS});
            for client in [(CLIENT.0, "wrong"), ("nobody", "wrong")] {
                let answer = uaa.by_form(client, &[]).await;
                assert_eq!((answer.status, answer.json()), (401, expected.clone()));
                let answer = uaa.by_basic(client).await;
                assert_eq!((answer.status, answer.json()), (401, expected.clone()));
            }
        },
    );
}

#[test]
fn a_request_without_credentials_is_refused() {
    agree(
        "a token request without credentials is 401",
        async |uaa: &UaaUnderTest| {
            for fields in [
                &[("grant_type", "client_credentials")][..],
                &[
                    ("grant_type", "client_credentials"),
                    ("client_id", CLIENT.0),
                ],
            ] {
                let answer = Answer::to(uaa.post(fields)).await;
                assert_eq!(answer.status, 401, "{}", answer.text);
                assert_eq!(answer.json()["error"], "unauthorized", "{}", answer.text);
            }
        },
    );
}

#[test]
fn two_secrets_are_good_until_the_old_one_is_dropped() {
    agree(
        "two secrets of a client are good at a time",
        async |uaa: &UaaUnderTest| {
            let status = async |secret: &str| uaa.by_form((CHANGING.0, secret), &[]).await.status;
            uaa.add_secret(CHANGING, "second-secret").await;
            assert_eq!(
                (status(CHANGING.1).await, status("second-secret").await),
                (200, 200)
            );
            uaa.drop_old_secret(CHANGING.0, "second-secret").await;
            assert_eq!(
                (status(CHANGING.1).await, status("second-secret").await),
                (401, 200)
            );
        },
    );
}

// === wrong requests ===

#[test]
fn a_scope_that_the_client_has_not_is_refused_with_those_it_has() {
    agree(
        "400 `invalid_scope` lists the client's scopes",
        async |uaa: &UaaUnderTest| {
            let answer = uaa.by_form(READER, &[("scope", AUTHORITIES[1])]).await;
            assert_eq!(answer.status, 400, "{}", answer.text);
            assert_eq!(answer.json()["error"], "invalid_scope");
            assert_eq!(answer.json()["scope"], AUTHORITIES[0], "{}", answer.text);
            let description = answer.json()["error_description"]
                .as_str()
                .unwrap()
                .to_owned();
            assert!(description.contains(AUTHORITIES[1]), "{description}");
        },
    );
}

#[test]
fn a_grant_type_that_is_missing_or_unknown_is_refused() {
    agree(
        "a missing or unknown grant type is refused",
        async |uaa: &UaaUnderTest| {
            let (id, secret) = CLIENT;
            let credentials = [("client_id", id), ("client_secret", secret)];
            let missing = Answer::to(uaa.post(&credentials)).await;
            assert_eq!(missing.status, 400, "{}", missing.text);
            assert_eq!(
                missing.json()["error"],
                "invalid_request",
                "{}",
                missing.text
            );
            let fields = [("grant_type", "wish"), credentials[0], credentials[1]];
            let unknown = Answer::to(uaa.post(&fields)).await;
            assert_eq!(unknown.status, 400, "{}", unknown.text);
            assert_eq!(
                unknown.json()["error"],
                "unsupported_grant_type",
                "{}",
                unknown.text
            );
        },
    );
}

// === what judges of tokens read ===

#[test]
fn the_token_key_is_one_rsa_key_with_its_pem() {
    agree(
        "`/token_key` is the active RSA key with its PEM",
        async |uaa: &UaaUnderTest| {
            let answer = uaa.get("/token_key").await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            let key = answer.json();
            assert_eq!(
                (&key["kty"], &key["alg"], &key["use"]),
                (&json!("RSA"), &json!("RS256"), &json!("sig"))
            );
            let pem = key["value"].as_str().unwrap().trim();
            assert!(pem.starts_with("-----BEGIN PUBLIC KEY-----"), "{pem}");
            assert!(pem.ends_with("-----END PUBLIC KEY-----"), "{pem}");
            for field in ["kid", "n", "e"] {
                assert!(key[field].is_string(), "{field}: {key}");
            }
            let keys = uaa.get("/token_keys").await.json();
            assert_eq!(keys["keys"][0]["value"], key["value"]);
        },
    );
}

#[test]
fn the_openid_configuration_names_the_issuer() {
    agree(
        "the OpenID configuration names the issuer",
        async |uaa: &UaaUnderTest| {
            let answer = uaa.get("/.well-known/openid-configuration").await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            assert_eq!(answer.json()["issuer"], format!("{}/oauth/token", uaa.url));
            assert_eq!(
                answer.json()["token_endpoint"],
                format!("{}/oauth/token", uaa.url)
            );
        },
    );
}
