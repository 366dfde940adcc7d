//! nats-server: plain, or over mutual TLS as today's foundations have it; one user with a password.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::pki::Pki;
use crate::process::{Process, Program, has_process};
use crate::run::{self, RunFolder};
use crate::{pki, port, programs};

/// How long a client may take to be let in, seconds. The server's own two are missed on a busy machine.
const LET_IN_WITHIN_SECS: u64 = 60;

#[derive(Clone)]
pub struct NatsServerOptions {
    /// A client without a certificate of the run's authority is refused at the handshake.
    pub mutual_tls: bool,
    pub user: String,
    pub password: String,
    /// Subjects that the user may neither publish nor subscribe to.
    pub denied: Vec<String>,
    /// A free one when `None`.
    pub port: Option<u16>,
    /// The cluster it is part of.
    pub cluster: Option<NatsCluster>,
}

/// Where the servers of a cluster hear each other, on loopback.
#[derive(Clone, Debug)]
pub struct NatsCluster {
    /// This one's port.
    pub port: u16,
    /// The others'.
    pub peers: Vec<u16>,
}

pub struct NatsServer {
    process: Process,
    address: SocketAddr,
    monitor: String,
    options: NatsServerOptions,
    pki: Pki,
    http: reqwest::Client,
}

impl Default for NatsServerOptions {
    fn default() -> Self {
        Self {
            mutual_tls: true,
            user: "nats".to_owned(),
            password: "nats-password".to_owned(),
            denied: Vec::new(),
            port: None,
            cluster: None,
        }
    }
}

// === impl NatsServer ===

impl NatsServer {
    pub async fn start(run: &RunFolder, pki: &Pki, options: NatsServerOptions) -> Result<Self> {
        let folder = run.folder("nats-server")?;
        let address = (Ipv4Addr::LOCALHOST, options.port.unwrap_or_else(port::free)).into();
        let monitor = port::free();
        // Its configuration language takes JSON.
        let mut config = json!({
            "host": "127.0.0.1",
            "port": SocketAddr::port(&address),
            "http": format!("127.0.0.1:{monitor}"),
            "authorization": {"timeout": LET_IN_WITHIN_SECS, "users": [user(&options)]},
        });
        if options.mutual_tls {
            config["tls"] = json!({
                "cert_file": pki.server_cert_file(),
                "key_file": pki.server_key_file(),
                "ca_file": pki.ca_file(),
                "verify": true,
                "timeout": LET_IN_WITHIN_SECS,
            });
        }
        if let Some(NatsCluster { port, peers }) = &options.cluster {
            let route = |port: &u16| format!("nats://127.0.0.1:{port}");
            config["cluster"] = json!({
                "name": "foundation",
                "listen": format!("127.0.0.1:{port}"),
                "routes": peers.iter().map(route).collect::<Vec<_>>(),
            });
        }
        let file = folder.join("nats.conf");
        run::write(&file, config.to_string())?;
        let program = programs::set_up("nats-server", "nats-server")?;
        let mut nats = Self {
            process: Process::new(run, folder, program).arg("-c").arg(file),
            address,
            monitor: format!("http://127.0.0.1:{monitor}"),
            options,
            pki: pki.clone(),
            http: pki::plain_http_client().build()?,
        };
        nats.begin().await?;
        Ok(nats)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn options(&self) -> &NatsServerOptions {
        &self.options
    }

    /// A client of it, with the user and, over mutual TLS, the client identity.
    pub async fn connect(&self) -> Result<async_nats::Client> {
        let options = async_nats::ConnectOptions::new()
            .user_and_password(self.options.user.clone(), self.options.password.clone())
            .connection_timeout(Duration::from_secs(LET_IN_WITHIN_SECS));
        let (scheme, options) = if self.options.mutual_tls {
            let options = options
                .require_tls(true)
                .tls_client_config(self.pki.tls_client_config()?);
            ("tls", options)
        } else {
            ("nats", options)
        };
        async_nats::connect_with_options(format!("{scheme}://{}", self.address), options)
            .await
            .context("nats-server does not take the client")
    }

    /// The monitor's page of that name, such as `varz` or `connz`.
    pub async fn monitor(&self, page: &str) -> Result<Value> {
        let answer = self.http.get(format!("{}/{page}", self.monitor));
        Ok(answer.send().await?.error_for_status()?.json().await?)
    }
}

fn user(options: &NatsServerOptions) -> Value {
    let mut user = json!({"user": options.user, "password": options.password});
    if !options.denied.is_empty() {
        let deny = json!({"deny": options.denied});
        user["permissions"] = json!({"publish": deny, "subscribe": deny});
    }
    user
}

impl Program for NatsServer {
    has_process!();

    async fn answers(&self) -> bool {
        self.monitor("healthz").await.is_ok()
    }
}
