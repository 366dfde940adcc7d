//! The routing API: router groups and TCP routes, on a plain and on a mutual-TLS listener.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use crate::locket::Locket;
use crate::mariadb::MariaDb;
use crate::pki::Pki;
use crate::process::{Process, Program, has_process};
use crate::run::{self, RunFolder};
use crate::uaa::Uaa;
use crate::{port, programs};

/// The database it expects to exist.
pub const DATABASE: &str = "routing_api";

/// A batch of a thousand routes was measured to take seconds.
const REQUEST_WITHIN: Duration = Duration::from_secs(60);

/// Seeded into an empty table only: a later start with other groups changes nothing.
#[derive(Clone, Debug, Serialize)]
pub struct RouterGroup {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub reservable_ports: String,
}

#[derive(Clone)]
pub struct RoutingApiOptions {
    pub max_ttl: Duration,
    pub router_groups: Vec<RouterGroup>,
    pub system_domain: String,
}

pub struct RoutingApi {
    process: Process,
    config: Value,
    http_port: u16,
    mtls_port: u16,
    client: reqwest::Client,
}

impl Default for RoutingApiOptions {
    fn default() -> Self {
        Self {
            max_ttl: Duration::from_secs(120),
            router_groups: vec![RouterGroup::tcp("default-tcp", "1024-1033,34569")],
            system_domain: "sys.example.test".to_owned(),
        }
    }
}

// === impl RouterGroup ===

impl RouterGroup {
    pub fn tcp(name: &str, reservable_ports: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: "tcp".to_owned(),
            reservable_ports: reservable_ports.to_owned(),
        }
    }
}

// === impl RoutingApi ===

impl RoutingApi {
    pub async fn start(
        run: &RunFolder,
        pki: &Pki,
        uaa: &Uaa,
        database: &MariaDb,
        locket: &Locket,
        options: RoutingApiOptions,
    ) -> Result<Self> {
        let program = programs::required("routing-api")?;
        let folder = run.folder("routing-api")?;
        let (http_port, mtls_port) = (port::free(), port::free());
        let config = json!({
            "log_guid": "routing-api",
            "uuid": "routing-api-0",
            "admin_port": port::free(),
            "system_domain": options.system_domain,
            "max_ttl": go_duration(options.max_ttl),
            "metrics_reporting_interval": "1m",
            "statsd_endpoint": "127.0.0.1:8125",
            "statsd_client_flush_interval": "10s",
            "metron_config": {"address": "127.0.0.1", "port": "3457"},
            "oauth": {
                "token_endpoint": "127.0.0.1",
                "port": uaa.port(),
                "ca_certs": pki.ca_file(),
            },
            "api": {
                "listen_port": http_port,
                "http_enabled": true,
                "mtls_listen_port": mtls_port,
                "mtls_client_ca_file": pki.ca_file(),
                "mtls_server_cert_file": pki.server_cert_file(),
                "mtls_server_key_file": pki.server_key_file(),
            },
            "sqldb": {
                "type": "mysql",
                "host": "127.0.0.1",
                "port": database.address().port(),
                "schema": DATABASE,
                "username": "root",
                "password": "",
                "max_idle_connections": 10,
                "max_open_connections": 100,
                "connections_max_lifetime_seconds": 3600,
            },
            "locket": {
                "locket_address": locket.address().to_string(),
                "locket_ca_cert_file": pki.ca_file(),
                "locket_client_cert_file": pki.client_cert_file(),
                "locket_client_key_file": pki.client_key_file(),
            },
            "router_groups": options.router_groups,
        });
        let mut api = Self {
            process: Process::new(run, folder.clone(), program)
                .arg("-config")
                .arg(folder.join("routing_api.yml"))
                .args(["-ip", "127.0.0.1", "-logLevel", "info"]),
            config,
            http_port,
            mtls_port,
            client: pki.http_client_with(|client| client.timeout(REQUEST_WITHIN))?,
        };
        api.write_config()?;
        api.begin().await?;
        Ok(api)
    }

    /// The listener that gorouter's `api.<system domain>/routing` leads to.
    pub fn http_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http_port)
    }

    pub fn http_port(&self) -> u16 {
        self.http_port
    }

    pub fn mtls_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.mtls_port)
    }

    pub fn mtls_port(&self) -> u16 {
        self.mtls_port
    }

    /// Another `max_ttl`. Restarts it; rows that live keep the TTL they were given.
    pub async fn set_max_ttl(&mut self, max_ttl: Duration) -> Result<()> {
        self.config["max_ttl"] = go_duration(max_ttl).into();
        self.write_config()?;
        self.restart().await
    }

    /// GET over mutual TLS, such as `/routing/v1/router_groups`.
    pub async fn get(&self, path: &str, token: &str) -> Result<Value> {
        let request = self.client.get(format!("{}{path}", self.mtls_url()));
        let answer = request.bearer_auth(token).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }

    /// POST over mutual TLS, such as `/routing/v1/tcp_routes/create`: the status and the body.
    pub async fn post(&self, path: &str, token: &str, body: &Value) -> Result<(u16, String)> {
        let request = self.client.post(format!("{}{path}", self.mtls_url()));
        let answer = request.bearer_auth(token).json(body).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// The group's guid by its name.
    pub async fn router_group_guid(&self, name: &str, token: &str) -> Result<String> {
        let path = format!("/routing/v1/router_groups?name={name}");
        let groups = self.get(&path, token).await?;
        let guid = groups[0]["guid"].as_str();
        Ok(guid.context("a router group without a guid")?.to_owned())
    }

    fn write_config(&self) -> Result<()> {
        let file = self.process.folder().join("routing_api.yml");
        run::write(&file, self.config.to_string())
    }
}

impl Program for RoutingApi {
    has_process!();

    async fn answers(&self) -> bool {
        // Without a token 401: it serves. It does so only while it holds the lock, which after a
        // kill it waits for until the old one has run out (15 s).
        let path = format!("{}/routing/v1/router_groups", self.mtls_url());
        let answer = self.client.get(path).send().await;
        answer.is_ok_and(|answer| answer.status() == 401)
    }
}

fn go_duration(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}
