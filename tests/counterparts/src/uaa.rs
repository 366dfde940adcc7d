//! The real UAA over HTTPS: a web application in a servlet container, its database in memory.
//!
//! Its clients and keys are those of the configuration each time it starts. What is changed
//! through its API is gone after a restart; `set_clients` and `rotate_key` change the configuration.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::pki::{self, Pki};
use crate::process::{Process, Program, has_process};
use crate::run::{self, RunFolder};
use crate::{port, programs};

/// The client that may change clients and their secrets.
pub const ADMIN: (&str, &str) = ("admin", "admin-secret");

const KEYSTORE_PASSWORD: &str = "keystore-password";

/// UAA asks for eight characters or more.
const ENCRYPTION_PASSPHRASE: &str = "encryption-passphrase";

/// A token request computes a bcrypt hash, on a machine that may be busy.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);

/// UAA 4.30 was made for JDK 8: it reaches into packages that JDK 17 keeps closed.
const OPENED: [&str; 7] = ["lang", "lang.reflect", "util", "io", "net", "text", "time"];

#[derive(Clone)]
pub struct UaaClient {
    pub id: String,
    pub secret: String,
    pub authorities: Vec<String>,
    /// `expires_in` is one less.
    pub access_token_validity_secs: u32,
}

#[derive(Clone, Default)]
pub struct UaaOptions {
    /// Beside the admin.
    pub clients: Vec<UaaClient>,
}

pub struct Uaa {
    process: Process,
    url: String,
    config: PathBuf,
    pki: Pki,
    clients: Vec<UaaClient>,
    /// Signing keys by their order; the last is the active one.
    keys: Vec<String>,
    http: reqwest::Client,
}

// === impl UaaClient ===

impl UaaClient {
    pub fn new(id: &str, secret: &str, authorities: &[&str]) -> Self {
        Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
            authorities: authorities.iter().map(ToString::to_string).collect(),
            access_token_validity_secs: 600,
        }
    }

    pub fn validity(self, access_token_validity_secs: u32) -> Self {
        Self {
            access_token_validity_secs,
            ..self
        }
    }
}

// === impl Uaa ===

impl Uaa {
    pub async fn start(run: &RunFolder, pki: &Pki, options: UaaOptions) -> Result<Self> {
        let folder = run.folder("uaa")?;
        let keystore = folder.join("server.p12");
        write_keystore(pki, &keystore)?;
        let config = folder.join("config");
        std::fs::create_dir(&config)?;
        std::fs::create_dir(folder.join("tomcat"))?;
        let port = port::free();
        let opened = OPENED.map(|name| format!("--add-opens=java.base/java.{name}=ALL-UNNAMED"));

        let process = Process::new(run, folder.clone(), programs::installed("java")?)
            .args(opened)
            // Without them the JVM takes a quarter of the machine's memory.
            .args(["-Xmx512m", "-XX:+UseSerialGC"])
            // It would write to a file in `/tmp` that bears its process id; namespaces repeat those.
            .arg("-XX:-UsePerfData")
            // Keys and ids come from the kernel's pool; waiting for more entropy gains nothing.
            .arg("-Djava.security.egd=file:/dev/./urandom")
            .arg(format!("-Djavax.net.ssl.keyStore={}", keystore.display()))
            .arg(format!(
                "-Djavax.net.ssl.keyStorePassword={KEYSTORE_PASSWORD}"
            ))
            .arg("-Djavax.net.ssl.keyStoreType=PKCS12")
            .arg(format!("-Djava.io.tmpdir={}", folder.display()))
            .arg("-jar")
            .arg(programs::set_up("uaa", "webapp-runner.jar")?)
            .args(["--enable-ssl", "--port", &port.to_string()])
            .arg("--temp-directory")
            .arg(folder.join("tomcat"))
            .arg(programs::set_up("uaa", "webapp")?)
            .env("UAA_CONFIG_PATH", &config);
        let mut uaa = Self {
            process,
            url: format!("https://127.0.0.1:{port}"),
            config: config.join("uaa.yml"),
            pki: pki.clone(),
            clients: options.clients,
            keys: vec![pki::signing_key()?],
            http: pki.http_client_with(|client| client.timeout(REQUEST_WITHIN))?,
        };
        uaa.write_config()?;
        uaa.begin().await?;
        Ok(uaa)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn port(&self) -> u16 {
        let port = self
            .url
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok());
        port.expect("the URL must end in its port")
    }

    /// What its tokens name as `iss`.
    pub fn issuer(&self) -> String {
        format!("{}/oauth/token", self.url)
    }

    /// Client credentials in the form body, the one way that takes every id and secret.
    pub async fn token(&self, id: &str, secret: &str) -> Result<String> {
        let body = form(&[
            ("grant_type", "client_credentials"),
            ("client_id", id),
            ("client_secret", secret),
        ]);
        let answer = self
            .http
            .post(format!("{}/oauth/token", self.url))
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(body)
            .send()
            .await?;
        let status = answer.status();
        let answer: Value = answer.json().await?;
        ensure!(status.is_success(), "UAA answered {status}: {answer}");
        let token = answer["access_token"].as_str();
        Ok(token.context("an answer without a token")?.to_owned())
    }

    /// A request to its API as the admin client, such as
    /// `("PUT", "/oauth/clients/<id>/secret", {"clientId", "secret", "changeMode": "ADD"})`.
    pub async fn admin(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let token = self.token(ADMIN.0, ADMIN.1).await?;
        let answer = self
            .http
            .request(method.parse()?, format!("{}{path}", self.url))
            .bearer_auth(token)
            .header("Accept", "application/json")
            .json(body)
            .send()
            .await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "UAA answered {status}: {text}");
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// A second secret for the client; both work until `drop_old_secret`.
    pub async fn add_secret(&self, id: &str, secret: &str) -> Result<()> {
        let body = json!({"clientId": id, "secret": secret, "changeMode": "ADD"});
        self.change_secret(id, &body).await
    }

    pub async fn drop_old_secret(&self, id: &str) -> Result<()> {
        let body = json!({"clientId": id, "changeMode": "DELETE"});
        self.change_secret(id, &body).await
    }

    async fn change_secret(&self, id: &str, body: &Value) -> Result<()> {
        let path = format!("/oauth/clients/{id}/secret");
        self.admin("PUT", &path, body).await.map(drop)
    }

    /// Signs with a new key from now on; the older keys are forgotten. Restarts it.
    pub async fn rotate_key(&mut self) -> Result<()> {
        self.keys.push(pki::signing_key()?);
        self.write_config()?;
        self.restart().await
    }

    /// Other clients, secrets, authorities or validities. Restarts it.
    pub async fn set_clients(&mut self, clients: Vec<UaaClient>) -> Result<()> {
        self.clients = clients;
        self.write_config()?;
        self.restart().await
    }

    fn write_config(&self) -> Result<()> {
        let mut clients = Map::new();
        let (id, secret) = ADMIN;
        let admin = UaaClient::new(
            id,
            secret,
            &["clients.admin", "clients.secret", "uaa.admin"],
        );
        for client in self.clients.iter().chain([&admin]) {
            clients.insert(
                client.id.clone(),
                json!({
                    "authorized-grant-types": "client_credentials",
                    "secret": client.secret,
                    "authorities": client.authorities.join(","),
                    "access-token-validity": client.access_token_validity_secs,
                    "override": true,
                }),
            );
        }
        let key_id = format!("key-{}", self.keys.len());
        let signing_key = self.keys.last().context("there must be a signing key")?;
        let keys = json!({&key_id: {"signingKey": signing_key}});
        let config = json!({
            "issuer": {"uri": self.url},
            "LOGIN_SECRET": "login-secret",
            "encryption": {
                "active_key_label": "one",
                "encryption_keys": [{"label": "one", "passphrase": ENCRYPTION_PASSPHRASE}],
            },
            "login": {
                "url": self.url,
                "entityBaseURL": self.url,
                "entityID": "uaa.example.test",
                "serviceProviderKey": self.pki.server.rsa_pem,
                "serviceProviderKeyPassword": "",
                "serviceProviderCertificate": self.pki.server.cert_pem,
            },
            "jwt": {"token": {"policy": {"activeKeyId": key_id, "keys": keys}}},
            "oauth": {"clients": clients},
        });
        run::write(&self.config, config.to_string())
    }
}

impl Program for Uaa {
    has_process!();

    async fn answers(&self) -> bool {
        self.token(ADMIN.0, ADMIN.1).await.is_ok()
    }
}

/// The one key store format that both openssl writes and Java reads.
fn write_keystore(pki: &Pki, keystore: &Path) -> Result<()> {
    let status = Command::new(programs::installed("openssl")?)
        .args(["pkcs12", "-export", "-name", "server", "-in"])
        .arg(pki.server_cert_file())
        .arg("-inkey")
        .arg(pki.server_key_file())
        .arg("-out")
        .arg(keystore)
        .args(["-passout", &format!("pass:{KEYSTORE_PASSWORD}")])
        .status()?;
    ensure!(status.success(), "`openssl pkcs12`: {status}");
    Ok(())
}

/// `application/x-www-form-urlencoded`; reqwest's own is a feature that nothing else here needs.
fn form(fields: &[(&str, &str)]) -> String {
    let encoded = |text: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
                    char::from(byte).to_string()
                }
                _ => format!("%{byte:02X}"),
            })
            .collect()
    };
    let pairs: Vec<String> = fields
        .iter()
        .map(|(key, value)| format!("{}={}", encoded(key), encoded(value)))
        .collect();
    pairs.join("&")
}
