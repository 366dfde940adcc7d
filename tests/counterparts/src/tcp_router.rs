//! cf-tcp-router with the HAProxy that it configures, and the script that reloads it.
//!
//! HAProxy runs as a daemon of its own and is handed over from process to process at each reload,
//! so it is ended by the ids that the script writes down.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::pki::Pki;
use crate::process::{Process, Program, has_process};
use crate::routing_api::RoutingApi;
use crate::run::{self, RunFolder};
use crate::uaa::Uaa;
use crate::{port, programs};

#[derive(Clone)]
pub struct TcpRouterOptions {
    /// Its client at the UAA: `routing.routes.read` and `routing.router_groups.read`.
    pub client_id: String,
    pub client_secret: String,
    /// How often it lists all routes beside following the events.
    pub sync_interval: Duration,
    pub stale_route_check_interval: Duration,
    /// How long a route lives that the routing API says nothing more about.
    pub default_route_expiry: Duration,
}

pub struct TcpRouter {
    process: Process,
}

impl Default for TcpRouterOptions {
    fn default() -> Self {
        Self {
            client_id: "tcp_router".to_owned(),
            client_secret: "tcp-router-secret".to_owned(),
            sync_interval: Duration::from_secs(60),
            stale_route_check_interval: Duration::from_secs(30),
            default_route_expiry: Duration::from_secs(120),
        }
    }
}

// === impl TcpRouter ===

impl TcpRouter {
    pub async fn start(
        run: &RunFolder,
        pki: &Pki,
        uaa: &Uaa,
        api: &RoutingApi,
        options: TcpRouterOptions,
    ) -> Result<Self> {
        let program = programs::required("cf-tcp-router")?;
        let folder = run.folder("cf-tcp-router")?;
        let config = json!({
            "oauth": {
                "token_endpoint": "127.0.0.1",
                "port": uaa.port(),
                "client_name": options.client_id,
                "client_secret": options.client_secret,
                "skip_ssl_validation": false,
                "ca_certs": pki.ca_file(),
            },
            "routing_api": {
                "uri": "https://127.0.0.1",
                "port": api.mtls_port(),
                "client_cert_path": pki.client_cert_file(),
                "client_private_key_path": pki.client_key_file(),
                "ca_cert_path": pki.ca_file(),
                "auth_disabled": false,
            },
            "haproxy_pid_file": folder.join("haproxy.pid"),
            "drain_wait": "1s",
        });
        run::write(&folder.join("tcp_router.yml"), config.to_string())?;
        run::write(&folder.join("haproxy.conf.base"), base_config(&folder))?;
        write_reloader(&folder)?;
        let duration = |name: &str, value: Duration| format!("{name}={}s", value.as_secs());
        let file = |name: &str, file: &str| format!("{name}={}", folder.join(file).display());
        let process = Process::new(run, folder.clone(), program)
            .arg(file("-config", "tcp_router.yml"))
            .arg(file("-tcpLoadBalancerBaseConfig", "haproxy.conf.base"))
            .arg(file("-tcpLoadBalancerConfig", "haproxy.conf"))
            .arg(file("-tcpLoadBalancerStatsUnixSocket", "haproxy.sock"))
            .arg(file("-haproxyReloader", "haproxy_reloader"))
            .arg(duration("-syncInterval", options.sync_interval))
            .arg(duration(
                "-staleRouteCheckInterval",
                options.stale_route_check_interval,
            ))
            .arg(duration(
                "-defaultRouteExpiry",
                options.default_route_expiry,
            ));
        let mut router = Self { process };
        router.begin().await?;
        Ok(router)
    }

    /// How often HAProxy was reloaded since the start, its first start not counted.
    pub fn reload_count(&self) -> usize {
        let reloads = fs::read_to_string(self.folder().join("reloads"));
        reloads.map_or(0, |reloads| reloads.lines().count())
    }

    /// How often HAProxy refused what the router wrote: until it takes a file again, nobody's change lands.
    pub fn refusal_count(&self) -> usize {
        let log = fs::read_to_string(self.folder().join("haproxy.log")).unwrap_or_default();
        log.matches("Fatal errors found in configuration").count()
    }

    /// What the router wrote for HAProxy.
    pub fn haproxy_config(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder().join("haproxy.conf"))?)
    }

    fn folder(&self) -> &Path {
        self.process.folder()
    }

    /// The router exits when no HAProxy runs at its start.
    fn start_haproxy(&self) -> Result<()> {
        let folder = self.folder();
        fs::copy(
            folder.join("haproxy.conf.base"),
            folder.join("haproxy.conf"),
        )?;
        // A lock that a killed reload has left would hold up the next for 30 s.
        let _ = fs::remove_dir(folder.join("reloading"));
        let output = Command::new(programs::installed("haproxy")?)
            .arg("-f")
            .arg(folder.join("haproxy.conf"))
            .arg("-p")
            .arg(folder.join("haproxy.pid"))
            .arg("-D")
            .output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`haproxy`: {error}");
        let pid = fs::read_to_string(folder.join("haproxy.pid"))?;
        run::write(&folder.join("haproxy.pids"), pid)
    }
}

impl Program for TcpRouter {
    has_process!();

    fn prepare(&mut self) -> Result<()> {
        self.start_haproxy()
    }

    async fn answers(&self) -> bool {
        // It serves nobody itself; its log says when its event stream is open.
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let since_start = log.rsplit("tcp-router.starting").next().unwrap_or_default();
        since_start.contains("Successfully-subscribed-to-routing-api-event-stream")
    }

    fn clean_up(&mut self) {
        let folder = self.folder();
        let pids = fs::read_to_string(folder.join("haproxy.pids")).unwrap_or_default();
        let latest = fs::read_to_string(folder.join("haproxy.pid")).unwrap_or_default();
        let config = folder.join("haproxy.conf");
        for pid in pids.lines().chain(latest.lines()) {
            // The id may be another's by now: only a process that names our file is HAProxy.
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let ours = String::from_utf8_lossy(&command).contains(&config.display().to_string());
            let pid = pid.parse().ok().and_then(Pid::from_raw);
            if let Some(pid) = pid.filter(|_| ours) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Drop for TcpRouter {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The head of HAProxy's configuration. The socket lets the next process take the listeners over,
/// so that no connection is refused during a reload; timeouts as production has them.
fn base_config(folder: &Path) -> String {
    format!(
        "global\n  daemon\n  maxconn 4096\n  \
         stats socket {} mode 600 level operator expose-fd listeners\n\
         defaults\n  mode tcp\n  maxconn 4096\n  timeout connect 30s\n  \
         timeout client 300s\n  timeout server 300s\n\
         listen health\n  mode http\n  bind 127.0.0.1:{}\n  monitor-uri /health\n",
        folder.join("haproxy.sock").display(),
        port::free(),
    )
}

/// One reload at a time: making a folder succeeds for one of several who try.
fn write_reloader(folder: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let haproxy = programs::installed("haproxy")?;
    let script = format!(
        r#"#!/bin/sh
set -eu
cd '{folder}'
tries=0
until mkdir reloading 2>/dev/null; do
  tries=$((tries + 1))
  [ "$tries" -lt 600 ] || exit 1
  sleep 0.05
done
trap 'rmdir reloading' EXIT
trap 'exit 1' INT TERM
date +%s.%N >>reloads
'{haproxy}' -f '{folder}/haproxy.conf' -D -p haproxy.pid -x haproxy.sock \
  -sf $(cat haproxy.pid) </dev/null >>haproxy.log 2>&1
cat haproxy.pid >>haproxy.pids
"#,
        folder = folder.display(),
        haproxy = haproxy.display(),
    );
    let path = folder.join("haproxy_reloader");
    run::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
        .context("the reloader must be executable")?;
    Ok(path)
}
