//! etcd, the apiserver's store: one member, plain HTTP on loopback.

use anyhow::Result;

use crate::process::{Process, Program, has_process};
use crate::run::RunFolder;
use crate::{pki, port, programs};

pub struct Etcd {
    process: Process,
    url: String,
    http: reqwest::Client,
}

// === impl Etcd ===

impl Etcd {
    pub async fn start(run: &RunFolder) -> Result<Self> {
        let folder = run.folder("etcd")?;
        let url = format!("http://127.0.0.1:{}", port::free());
        let peers = format!("http://127.0.0.1:{}", port::free());
        let process = Process::new(run, folder.clone(), programs::set_up("etcd", "etcd")?)
            .args(["--name", "etcd", "--log-level", "warn"])
            // What is lost with the machine's power is lost with the run anyway.
            .arg("--unsafe-no-fsync")
            .arg("--data-dir")
            .arg(folder.join("data"))
            .args(["--listen-client-urls", &url])
            .args(["--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("etcd={peers}")]);
        let mut etcd = Self {
            process,
            url,
            http: pki::plain_http_client().build()?,
        };
        etcd.begin().await?;
        Ok(etcd)
    }

    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Program for Etcd {
    has_process!();

    async fn answers(&self) -> bool {
        let health = self.http.get(format!("{}/health", self.url)).send().await;
        health.is_ok_and(|answer| answer.status().is_success())
    }
}
