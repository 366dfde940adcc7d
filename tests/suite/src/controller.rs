//! The controller as it is shipped: the built binary with a configuration file, watched from outside.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use counterparts::kube_apiserver::ADMIN_TOKEN;
use counterparts::stack::{APP_DOMAIN, CLIENT};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::foundation::Foundation;
use crate::poll;

/// How long a stop may take: the controller's own bound, and some for a loaded machine.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// Where the controller's pages are when its configuration does not say.
const ADMIN_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9101);
/// Stands for the kubeconfig's path in [`Settings::text`].
pub const KUBECONFIG: &str = "@KUBECONFIG@";
/// What is shown of a log when a test fails.
const LOG_TAIL: usize = 60;

/// A configuration under construction.
pub struct Settings {
    /// The file, as a value.
    pub config: Value,
    /// The kubeconfig's text.
    pub kubeconfig: String,
    /// Arguments before the configuration's; `run` by default.
    pub arguments: Vec<String>,
    /// The file word for word instead of `config`; [`KUBECONFIG`] in it becomes the kubeconfig's path.
    pub text: Option<String>,
    /// The flag that names the file, where it is not the usual one; one that ends with `=` takes it in one word.
    pub flag: Option<String>,
}

/// A running controller. Dropped, it is killed, which keeps every route for a TTL.
pub struct Controller {
    child: Child,
    settings: Settings,
    folder: tempfile::TempDir,
    admin: SocketAddr,
    http: reqwest::Client,
}

// === impl Settings ===

impl Settings {
    /// Everything over mutual TLS, as today's foundations have it.
    pub fn new(foundation: &Foundation) -> Result<Self> {
        let stack = &foundation.stack;
        let (ca, cert) = (stack.pki.ca_file(), stack.pki.client_cert_file());
        let key = stack.pki.client_key_file();
        let nats = stack.nats.options();
        let config = json!({
            "kubernetes": {},
            "uaa": {
                "url": stack.uaa.url(), "client_id": CLIENT.0, "client_secret": CLIENT.1, "ca_file": ca,
            },
            "routing_api": {
                "url": foundation.api_url(), "ca_file": ca,
                "client_cert_file": cert, "client_key_file": key,
            },
            "nats": {
                "servers": [{"host": stack.nats.address().to_string()}],
                "user": nats.user, "password": nats.password,
                "tls": {
                    "ca_file": ca, "cert_file": cert, "key_file": key, "server_name": "nats.service.test",
                },
            },
            "routes": {"app_domain": APP_DOMAIN},
            "log": {"format": "text", "level": "route_sync=debug"},
        });
        let kubeconfig = stack.apiserver.kubeconfig(ADMIN_TOKEN);
        Ok(Self {
            config,
            kubeconfig,
            arguments: vec!["run".to_owned()],
            text: None,
            flag: None,
        })
    }

    /// A registrar's: static routes under an id of their own, and neither cluster nor NATS.
    pub fn registrar(foundation: &Foundation, instance: &str, route: &Value) -> Result<Self> {
        let mut settings = Self::new(foundation)?;
        let config = settings.config.as_object_mut();
        let config = config.expect("a configuration must be a group");
        for group in ["kubernetes", "nats", "routes"] {
            config.remove(group);
        }
        config.insert("static_routes".to_owned(), json!([route]));
        settings.config["routing_api"]["instance_id"] = json!(instance);
        Ok(settings)
    }

    /// Runs a command of the binary that ends by itself: exit code, stdout, stderr.
    pub async fn command(&self, arguments: &[&str]) -> Result<(i32, String, String)> {
        let folder = tempfile::Builder::new().prefix("controller-").tempdir()?;
        // Nobody listens on port 0.
        let file = self.write(&folder, SocketAddr::from(([127, 0, 0, 1], 0)))?;
        command(arguments, &file).await
    }

    /// Writes configuration and kubeconfig; the configuration's path.
    fn write(&self, folder: &tempfile::TempDir, admin: SocketAddr) -> Result<PathBuf> {
        let file = folder.path().join("route-sync.yml");
        let kubeconfig = folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, &self.kubeconfig)?;
        if let Some(text) = &self.text {
            std::fs::write(
                &file,
                text.replace(KUBECONFIG, &kubeconfig.display().to_string()),
            )?;
            return Ok(file);
        }
        let mut config = self.config.clone();
        if config["kubernetes"].is_object() {
            config["kubernetes"]["kubeconfig"] = json!(kubeconfig);
        } else if config["static_routes"].is_null() {
            config["kube_config_path"] = json!(kubeconfig);
        }
        config["admin"] = json!({"listen": admin.to_string()});
        std::fs::write(&file, config.to_string())?;
        Ok(file)
    }
}

/// Where the built controller lies.
pub fn binary() -> Result<PathBuf> {
    let folder = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target"),
    };
    let path = folder.join("debug/route-sync");
    let path = std::env::var_os("ROUTE_SYNC_BINARY").map_or(path, PathBuf::from);
    path.canonicalize()
        .with_context(|| format!("`{}` is missing; hint: run `cargo build`", path.display()))
}

// === impl Controller ===

impl Controller {
    /// Writes the configuration and starts the controller; it need not be ready yet.
    pub async fn start(settings: Settings) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("controller-").tempdir()?;
        let admin = match settings.text {
            Some(_) => ADMIN_DEFAULT,
            None => std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?,
        };
        let child = spawn(&settings, &folder, admin)?;
        // Each look by a connection of its own: the admin listener ends one after two minutes, in use or not.
        let http = counterparts::pki::plain_http_client()
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self {
            child,
            settings,
            folder,
            admin,
            http,
        })
    }

    /// Waits until `/ready` says so.
    pub async fn ready(&mut self) {
        poll::eventually("the controller is ready", async || {
            self.fail_if_ended();
            self.page("ready")
                .await
                .is_some_and(|(status, _)| status == 200)
        })
        .await;
    }

    fn fail_if_ended(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("the controller ended: {status}");
        }
    }

    /// It has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child
            .id()
            .expect("a running controller must have a process")
    }

    /// Status and text of an admin page.
    pub async fn page(&self, page: &str) -> Option<(u16, String)> {
        let answer = self
            .http
            .get(format!("http://{}/{page}", self.admin))
            .send()
            .await
            .ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.text().await.ok()?))
    }

    /// `/status.json`.
    pub async fn status(&self) -> Value {
        let page = self.page("status.json").await;
        page.and_then(|(_, text)| serde_json::from_str(&text).ok())
            .unwrap_or_default()
    }

    /// Whether a finding of this code is known about this subject (a part of its text is enough).
    pub async fn has_finding(&self, code: &str, subject: &str) -> bool {
        let status = self.status().await;
        let findings = status["findings"].as_array().cloned().unwrap_or_default();
        findings.iter().any(|finding| {
            finding["code"] == code && finding["subject"].to_string().contains(subject)
        })
    }

    /// The messages of all findings of this code.
    pub async fn messages(&self, code: &str) -> Vec<String> {
        let status = self.status().await;
        let findings = status["findings"].as_array().into_iter().flatten();
        let of_code = findings.filter(|finding| finding["code"] == code);
        of_code
            .map(|finding| finding["message"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Waits for a finding.
    #[track_caller]
    pub fn finding<'a>(&'a self, code: &'a str, subject: &'a str) -> impl Future<Output = ()> + 'a {
        poll::eventually(code, async move || self.has_finding(code, subject).await)
    }

    /// The value of a metric, summed over its labels where `labels` is a part of them.
    pub async fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self
            .page("metrics")
            .await
            .map(|(_, text)| text)
            .unwrap_or_default();
        let of_name = |line: &&str| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']))
        };
        text.lines()
            .filter(of_name)
            .filter(|line| line.contains(labels))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Sends it a signal by number.
    pub fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-s", signal, &pid])
            .status();
        assert!(
            sent.is_ok_and(|status| status.success()),
            "signal {signal} to {pid}"
        );
    }

    /// SIGTERM, and its exit code.
    pub async fn stop(self) -> i32 {
        self.signal("TERM");
        self.end().await
    }

    /// Waits until it has ended; its exit code.
    pub async fn end(self) -> i32 {
        self.end_with_log().await.0
    }

    /// Waits until it has ended; its exit code and all that it logged.
    pub async fn end_with_log(mut self) -> (i32, String) {
        let status = tokio::time::timeout(STOP_WITHIN, self.child.wait()).await;
        let status = status
            .expect("the controller must stop in time")
            .expect("it must be waited for");
        (status.code().unwrap_or(-1), self.log())
    }

    /// SIGKILL and a new start with the same configuration.
    pub async fn kill_and_start(&mut self) -> Result<()> {
        self.kill().await?;
        self.start_again()
    }

    /// SIGKILL.
    pub async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// A new start of a killed one with the same configuration.
    pub fn start_again(&mut self) -> Result<()> {
        self.child = spawn(&self.settings, &self.folder, self.admin)?;
        Ok(())
    }

    /// Another configuration in the same place; it is read at the next SIGHUP.
    pub fn rewrite(&mut self, change: impl FnOnce(&mut Settings)) -> Result<()> {
        change(&mut self.settings);
        self.settings.write(&self.folder, self.admin).map(drop)
    }

    /// Runs another command of the binary with the same configuration: exit code, stdout, stderr.
    pub async fn command(&self, arguments: &[&str]) -> Result<(i32, String, String)> {
        command(arguments, &self.folder.path().join("route-sync.yml")).await
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(LOG_TAIL).collect();
            println!("the controller's last words:");
            tail.into_iter().rev().for_each(|line| println!("  {line}"));
        }
    }
}

fn spawn(settings: &Settings, folder: &tempfile::TempDir, admin: SocketAddr) -> Result<Child> {
    let file = settings.write(folder, admin)?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.path().join("log"))?;
    // The configuration's flag in the original's spelling where no subcommand is named.
    let usual = if settings.arguments.is_empty() {
        "--configPath"
    } else {
        "--config"
    };
    let flag = settings.flag.as_deref().unwrap_or(usual);
    let mut command = Command::new(binary()?);
    command.args(&settings.arguments);
    if flag.ends_with('=') {
        command.arg(format!("{flag}{}", file.display()));
    } else {
        command.arg(flag).arg(file);
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}

async fn command(arguments: &[&str], config: &std::path::Path) -> Result<(i32, String, String)> {
    let output = Command::new(binary()?)
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output()
        .await?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    ))
}
