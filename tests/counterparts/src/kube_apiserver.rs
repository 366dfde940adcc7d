//! kube-apiserver over TLS with RBAC and a token file. Alone: no controllers, no kubelets; whoever
//! needs EndpointSlices, a namespace's end or a Node's status plays them.

use std::path::PathBuf;

use anyhow::Result;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::pki::Pki;
use crate::process::{Process, Program, has_process};
use crate::run::{self, RunFolder};
use crate::{pki, port, programs};

/// The token that may do everything (group `system:masters`).
pub const ADMIN_TOKEN: &str = "admin-token";

/// A line of the token file. RBAC decides what the user may do: nothing, until a role is bound.
#[derive(Clone)]
pub struct TokenUser {
    pub token: String,
    pub user: String,
    pub groups: Vec<String>,
}

#[derive(Clone, Default)]
pub struct KubeApiserverOptions {
    /// Beside the admin.
    pub users: Vec<TokenUser>,
    /// `--runtime-config`; `discovery.k8s.io/v1=false` makes a cluster without EndpointSlices.
    pub runtime_config: Option<String>,
    /// `--service-node-port-range`; Kubernetes' own default when `None`.
    pub node_port_range: Option<String>,
    /// Whatever else, such as `--event-ttl=1m`.
    pub extra_args: Vec<String>,
}

pub struct KubeApiserver {
    process: Process,
    ready: &'static str,
    url: String,
    ca_pem: String,
    http: reqwest::Client,
}

// === impl KubeApiserver ===

impl KubeApiserver {
    pub async fn start(
        run: &RunFolder,
        pki: &Pki,
        etcd_url: &str,
        options: KubeApiserverOptions,
    ) -> Result<Self> {
        let folder = run.folder("kube-apiserver")?;
        let tokens = folder.join("tokens.csv");
        run::write(&tokens, token_file(&options.users))?;
        let service_accounts = folder.join("service-accounts.key");
        run::write(&service_accounts, pki::signing_key()?)?;
        let port = port::free();

        let program = programs::set_up("kube-apiserver", "kube-apiserver")?;
        let mut process = Process::new(run, folder.clone(), program)
            .args(["--etcd-servers", etcd_url])
            .args(["--bind-address", "127.0.0.1"])
            // Loopback may not be advertised; nothing is, with this reconciler.
            .args(["--advertise-address", "10.0.0.1"])
            .args(["--endpoint-reconciler-type", "none"])
            .args(["--secure-port", &port.to_string()])
            .args(["--authorization-mode", "RBAC"])
            .args(["--service-cluster-ip-range", "10.96.0.0/16"])
            .args(["--service-account-issuer", "https://kubernetes.default.svc"]);
        for (flag, file) in [
            ("--tls-cert-file", pki.server_cert_file()),
            ("--tls-private-key-file", pki.server_key_file()),
            ("--client-ca-file", pki.ca_file()),
            ("--token-auth-file", tokens),
            ("--service-account-key-file", service_accounts.clone()),
            ("--service-account-signing-key-file", service_accounts),
            ("--cert-dir", PathBuf::from(&folder)),
        ] {
            process = process.arg(flag).arg(file);
        }
        if let Some(groups) = &options.runtime_config {
            process = process.args(["--runtime-config", groups]);
        }
        if let Some(range) = &options.node_port_range {
            process = process.args(["--service-node-port-range", range]);
        }
        let mut apiserver = Self {
            process: process.args(&options.extra_args),
            // 1.36 watches EndpointSlices itself: without them it serves and is never ready.
            ready: match options.runtime_config {
                Some(_) => "/readyz?exclude=informer-sync",
                None => "/readyz",
            },
            url: format!("https://127.0.0.1:{port}"),
            ca_pem: pki.ca_pem.clone(),
            http: pki.http_client_without_identity()?,
        };
        apiserver.begin().await?;
        Ok(apiserver)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// A kubeconfig (YAML; JSON is YAML) for the holder of a token.
    pub fn kubeconfig(&self, token: &str) -> String {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "real", "cluster": {
                "server": self.url,
                "certificate-authority-data": BASE64_STANDARD.encode(&self.ca_pem),
            }}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "user"}}],
            "current-context": "real",
        });
        format!("{config:#}\n")
    }

    /// The client the probes use: trusts the apiserver's authority, sends no token by itself.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    async fn get_ok(&self, path: &str) -> bool {
        let request = self.http.get(format!("{}{path}", self.url));
        let answer = request.bearer_auth(ADMIN_TOKEN).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }
}

impl Program for KubeApiserver {
    has_process!();

    async fn answers(&self) -> bool {
        // The system namespaces are made after `readyz` says yes; Services need the first.
        self.get_ok(self.ready).await
            && self.get_ok("/api/v1/namespaces/default").await
            && self.get_ok("/api/v1/namespaces/kube-system").await
    }
}

/// CSV: token, user, uid, quoted groups.
fn token_file(users: &[TokenUser]) -> String {
    let mut lines = format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n");
    for TokenUser {
        token,
        user,
        groups,
    } in users
    {
        let groups = groups.join(",");
        lines += &format!("{token},{user},{user},\"{groups}\"\n");
    }
    lines
}
