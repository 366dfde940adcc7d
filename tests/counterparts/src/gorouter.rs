//! gorouter: the HTTP router, fed over NATS.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::nats_server::NatsServer;
use crate::pki::{self, Pki};
use crate::process::{Process, Program, has_process};
use crate::run::{self, RunFolder};
use crate::{port, programs};

const STATUS_USER: &str = "status";
const STATUS_PASSWORD: &str = "status-password";

/// Production's job defaults (routing-release 2024-10), which the tests shorten.
#[derive(Clone)]
pub struct GorouterOptions {
    /// How long it waits after its start before it serves; also the `minimumRegisterInterval` that
    /// it tells registrants.
    pub start_response_delay: Duration,
    pub droplet_stale_threshold: Duration,
    pub prune_stale_droplets_interval: Duration,
    pub suspend_pruning_if_nats_unavailable: bool,
    pub empty_pool_timeout: Duration,
    /// A second listener over TLS, for `https://api.<system domain>`.
    pub tls: bool,
    /// A free one when `None`.
    pub port: Option<u16>,
}

pub struct Gorouter {
    process: Process,
    port: u16,
    tls_port: u16,
    status_port: u16,
    routes_port: u16,
    config: Value,
    http: reqwest::Client,
}

impl Default for GorouterOptions {
    fn default() -> Self {
        Self {
            start_response_delay: Duration::from_secs(20),
            droplet_stale_threshold: Duration::from_secs(120),
            prune_stale_droplets_interval: Duration::from_secs(30),
            suspend_pruning_if_nats_unavailable: true,
            empty_pool_timeout: Duration::ZERO,
            tls: true,
            port: None,
        }
    }
}

// === impl GorouterOptions ===

impl GorouterOptions {
    /// Up in a second, and a route that is not refreshed goes within seconds.
    pub fn quick() -> Self {
        Self {
            start_response_delay: Duration::from_secs(1),
            droplet_stale_threshold: Duration::from_secs(10),
            prune_stale_droplets_interval: Duration::from_secs(2),
            ..Self::default()
        }
    }
}

// === impl Gorouter ===

impl Gorouter {
    pub async fn start(
        run: &RunFolder,
        pki: &Pki,
        nats: &NatsServer,
        options: GorouterOptions,
    ) -> Result<Self> {
        let program = programs::required("gorouter")?;
        let folder = run.folder("gorouter")?;
        let mut gorouter = Self {
            process: Process::new(run, folder.clone(), program)
                .arg("-c")
                .arg(folder.join("gorouter.yml")),
            port: options.port.unwrap_or_else(port::free),
            tls_port: port::free(),
            status_port: port::free(),
            routes_port: port::free(),
            config: Value::Null,
            http: pki::plain_http_client().build()?,
        };
        gorouter.config = gorouter.configuration(pki, nats, &options);
        gorouter.write_config()?;
        gorouter.begin().await?;
        Ok(gorouter)
    }

    fn configuration(&self, pki: &Pki, nats: &NatsServer, options: &GorouterOptions) -> Value {
        let seconds = |duration: Duration| format!("{}ms", duration.as_millis());
        let mut config = json!({
            "nats": nats_client(pki, nats),
            "status": {
                "host": "127.0.0.1",
                "port": self.status_port,
                "user": STATUS_USER,
                "pass": STATUS_PASSWORD,
                "enable_nontls_health_checks": true,
                "enable_deprecated_varz_healthz_endpoints": true,
                "routes": {"port": self.routes_port},
            },
            "port": self.port,
            "route_services_internal_server_port": port::free(),
            "droplet_stale_threshold": seconds(options.droplet_stale_threshold),
            "prune_stale_droplets_interval": seconds(options.prune_stale_droplets_interval),
            "start_response_delay_interval": seconds(options.start_response_delay),
            "suspend_pruning_if_nats_unavailable": options.suspend_pruning_if_nats_unavailable,
            "empty_pool_response_code_503": true,
            "empty_pool_timeout": seconds(options.empty_pool_timeout),
            "backends": {
                "max_attempts": 3,
                "max_conns": 500,
                "cert_chain": pki.client.cert_pem,
                "private_key": pki.client.key_pem,
            },
            "ca_certs": [pki.ca_pem],
            "cipher_suites": "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384",
            "logging": {"level": "info", "format": {"timestamp": "rfc3339"}},
        });
        if options.tls {
            config["enable_ssl"] = true.into();
            config["ssl_port"] = self.tls_port.into();
            config["client_cert_validation"] = "none".into();
            config["tls_pem"] = json!([{
                "cert_chain": pki.server.cert_pem,
                "private_key": pki.server.key_pem,
            }]);
        }
        config
    }

    /// Where it takes plain HTTP, on every address; this is one of them.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Where it takes HTTPS, when it was asked to.
    pub fn tls_address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.tls_port).into()
    }

    /// Its routing table: by `host/path`, a list of endpoints.
    pub async fn routes(&self) -> Result<Value> {
        let url = format!("http://127.0.0.1:{}/routes", self.routes_port);
        let request = self.http.get(url);
        let request = request.basic_auth(STATUS_USER, Some(STATUS_PASSWORD));
        Ok(request.send().await?.error_for_status()?.json().await?)
    }

    /// Asks it for a host, as a user would: the status and the body.
    pub async fn get(&self, host: &str, path: &str) -> Result<(u16, String)> {
        let request = self.http.get(format!("http://{}{path}", self.address()));
        let answer = request.header("Host", host).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    fn write_config(&self) -> Result<()> {
        let file = self.process.folder().join("gorouter.yml");
        run::write(&file, self.config.to_string())
    }
}

impl Program for Gorouter {
    has_process!();

    async fn answers(&self) -> bool {
        let url = format!("http://127.0.0.1:{}/health", self.status_port);
        let health = self.http.get(url).send().await;
        health.is_ok_and(|answer| answer.status().is_success())
    }
}

fn nats_client(pki: &Pki, nats: &NatsServer) -> Value {
    let address = nats.address();
    let mut client = json!({
        "hosts": [{"hostname": address.ip().to_string(), "port": address.port()}],
        "user": nats.options().user,
        "pass": nats.options().password,
    });
    if nats.options().mutual_tls {
        client["tls_enabled"] = true.into();
        client["ca_certs"] = pki.ca_pem.clone().into();
        client["cert_chain"] = pki.client.cert_pem.clone().into();
        client["private_key"] = pki.client.key_pem.clone().into();
    }
    client
}
