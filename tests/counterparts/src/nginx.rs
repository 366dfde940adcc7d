//! nginx, answering one text on the addresses it is given: what stands behind a node port.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::pki::Identity;
use crate::process::{self, Process, Program, has_process};
use crate::programs;
use crate::run::{self, RunFolder};

pub struct Nginx {
    process: Process,
    addresses: Vec<SocketAddr>,
}

// === impl Nginx ===

impl Nginx {
    /// `text` is answered to every request with 200, as it is.
    pub async fn start(run: &RunFolder, addresses: &[SocketAddr], text: &str) -> Result<Self> {
        Self::start_with(run, addresses, text, None).await
    }

    /// The same over TLS, HTTP/2 included; ` over <the protocol>` is added to the text.
    pub async fn start_tls(
        run: &RunFolder,
        addresses: &[SocketAddr],
        text: &str,
        identity: &Identity,
    ) -> Result<Self> {
        Self::start_with(run, addresses, text, Some(identity)).await
    }

    async fn start_with(
        run: &RunFolder,
        addresses: &[SocketAddr],
        text: &str,
        identity: Option<&Identity>,
    ) -> Result<Self> {
        ensure!(
            !text.contains(['"', '$', '\\']),
            "nginx would read the text's `\"`, `$` or `\\` itself"
        );
        let folder = run.folder("nginx")?;
        let file = folder.join("nginx.conf");
        if let Some(identity) = identity {
            run::write(&folder.join("cert.pem"), &identity.cert_pem)?;
            run::write(&folder.join("key.pem"), &identity.key_pem)?;
        }
        run::write(&file, config(addresses, text, identity.is_some()))?;
        let process = Process::new(run, folder.clone(), programs::installed("nginx")?)
            .arg("-e")
            .arg("stderr")
            .arg("-p")
            .arg(&folder)
            .arg("-c")
            .arg(file);
        let mut nginx = Self {
            process,
            addresses: addresses.to_vec(),
        };
        nginx.begin().await?;
        Ok(nginx)
    }

    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// How many requests it has answered.
    pub fn requests(&self) -> usize {
        let log = self.process.folder().join("access.log");
        std::fs::read_to_string(log).map_or(0, |log| log.lines().count())
    }
}

impl Program for Nginx {
    has_process!();

    async fn answers(&self) -> bool {
        for address in &self.addresses {
            if !process::accepts(*address).await {
                return false;
            }
        }
        true
    }
}

/// One process, so that nothing is left of it when that one is killed; paths are under the prefix.
fn config(addresses: &[SocketAddr], text: &str, tls: bool) -> String {
    let (how, certificate, protocol) = if tls {
        let certificate = "    ssl_certificate cert.pem;\n    ssl_certificate_key key.pem;\n";
        (" ssl http2", certificate, " over $server_protocol")
    } else {
        ("", "", "")
    };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {kind};\n"))
        .concat();
    let listen: String = addresses
        .iter()
        .map(|address| format!("    listen {address}{how};\n"))
        .collect();
    format!(
        "daemon off;\nmaster_process off;\nerror_log stderr;\npid nginx.pid;\n\
         events {{}}\n\
         http {{\n{temporary}  access_log access.log;\n  default_type text/plain;\n\
         \x20 server {{\n{listen}{certificate}    location / {{ return 200 \"{text}{protocol}\"; }}\n  }}\n}}\n"
    )
}
