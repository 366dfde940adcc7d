//! SIGHUP: the configuration is read again, and what may change while the process runs does.
//!
//! A file with a mistake changes nothing: what runs goes on, every mistake is logged, and a finding stays until the
//! file is good. Of a good one each part takes its own section over once it has proven it; what waits, and why, is a
//! finding as well. Which keys may change is the configuration's affair, how a part changes its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::Uptime;
use crate::causes::chain;
use crate::cli::surroundings;
use crate::config::{Config, ConfigError, NatsConfig};
use crate::desired::{Code, Finding, Options, Subject};
use crate::lifecycle::Clock;
use crate::news;
use crate::publish::tcp::TcpSettings;
use crate::settings::Settings;
use crate::telemetry::Level;

/// The shortest time between two reads: signals that come meanwhile are one.
const PAUSE: Duration = Duration::from_secs(1);

/// What may change while the process runs, and what of the file has not.
pub(super) struct Parts {
    /// How routes are derived, once there is somebody who derives them.
    pub(super) options: Option<Settings<Options>>,
    /// The TCP lane, where it is on.
    pub(super) tcp: Option<Settings<TcpSettings>>,
    /// The HTTP lane, where it is on.
    pub(super) http: Option<Settings<NatsConfig>>,
    told: watch::Sender<Vec<Finding>>,
}

/// The file, and who follows it.
pub(super) struct Reload {
    path: PathBuf,
    running: Config,
    level: Level,
    parts: Parts,
    /// The file that was read last could not be used.
    refused: Option<Finding>,
    /// Keys that take effect at the next start.
    waiting: Vec<&'static str>,
}

/// From now on SIGHUP no longer ends the process.
pub(super) fn hangup() -> anyhow::Result<Signal> {
    signal(SignalKind::hangup()).context("cannot listen for signals")
}

/// Says what works but should not stay, and which keys nobody knows.
pub(super) fn say_weaknesses(config: &Config) {
    for weakness in &config.warnings {
        warn!(target: "route_sync", weakness, "configuration");
    }
    for key in &config.unknown_keys {
        warn!(target: "route_sync", key = %key, "configuration key ignored");
    }
}

// === impl Parts ===

impl Parts {
    /// What they begin with.
    pub(super) fn new(config: &Config) -> Self {
        Self {
            options: None,
            tcp: tcp_settings(config).map(Settings::new),
            http: nats(config).map(Settings::new),
            told: watch::Sender::new(Vec::new()),
        }
    }

    /// What of the file is not in use.
    pub(super) fn findings(&self) -> watch::Receiver<Vec<Finding>> {
        self.told.subscribe()
    }

    fn want(&self, next: &Config) {
        if let (Some(options), Some(cluster)) = (&self.options, next.source.cluster()) {
            options.want(cluster.routes.clone());
        }
        if let (Some(tcp), Some(settings)) = (&self.tcp, tcp_settings(next)) {
            tcp.want(settings);
        }
        if let (Some(http), Some(nats)) = (&self.http, nats(next)) {
            http.want(nats);
        }
    }
}

// === impl Reload ===

impl Reload {
    /// Follows the file from what was read of it at the start.
    pub(super) fn new(path: &Path, running: Config, parts: Parts, level: Level) -> Self {
        Self {
            path: path.to_owned(),
            running,
            level,
            parts,
            refused: None,
            waiting: Vec::new(),
        }
    }

    /// Reads the file at each signal until asked to stop.
    pub(super) async fn run(mut self, mut hangup: Signal, clock: Clock, stop: CancellationToken) {
        let mut quiet_until = Uptime::ZERO;
        loop {
            let asked = async {
                clock.sleep_until(quiet_until).await;
                hangup.recv().await
            };
            // To stop comes first; what the parts say ends by itself, so that it keeps no signal waiting.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = told(&mut self.parts.tcp) => {}
                () = told(&mut self.parts.http) => {}
                _ = asked => {
                    quiet_until = clock.now() + PAUSE;
                    self.reload().await;
                }
            }
            self.tell();
        }
    }

    async fn reload(&mut self) {
        let path = self.path.clone();
        // Files on a network may take their time.
        let read = tokio::task::spawn_blocking(move || Config::load(&path, surroundings())).await;
        match read {
            Ok(Ok(file)) => {
                say_weaknesses(&file);
                let (next, waiting) = self.running.reloaded(file);
                let changed = next != self.running;
                info!(target: "route_sync", changed, wait_for_restart = ?waiting, "configuration read again");
                self.level.set(&next.log.level);
                self.parts.want(&next);
                (self.running, self.waiting, self.refused) = (next, waiting, None);
            }
            Ok(Err(mistaken)) => self.refused = Some(refused(&mistaken)),
            Err(panicked) => {
                let message = format!("reading the configuration failed: {panicked}");
                error!(target: "route_sync", error = message, "configuration not read");
                self.refused = Some(stale(message));
            }
        }
    }

    fn tell(&self) {
        let mut findings: Vec<Finding> = self.refused.iter().cloned().collect();
        if !self.waiting.is_empty() {
            let keys: Vec<_> = self.waiting.iter().map(|key| format!("`{key}`")).collect();
            let mut keys = keys.join(", ");
            if self.waiting.contains(&"routes.app_domain") {
                keys.push_str(" and with it all of `routes` and `policy`");
            }
            let message = format!("changes of {keys} wait for a start");
            findings.push(stale(message).hint("restart route-sync; routes outlive that"));
        }
        let tcp = self.parts.tcp.as_ref().and_then(Settings::unused);
        let http = self.parts.http.as_ref().and_then(Settings::unused);
        for (section, why) in [("`routing_api` and `uaa`", tcp), ("`nats`", http)] {
            let message = |why| format!("new settings of {section} are not in use: {why}");
            findings.extend(why.map(message).map(stale));
        }
        news::tell(&self.parts.told, findings);
    }
}

fn tcp_settings(config: &Config) -> Option<TcpSettings> {
    let (api, uaa) = (config.routing_api.clone()?, config.uaa.clone()?);
    Some(TcpSettings { api, uaa })
}

fn nats(config: &Config) -> Option<NatsConfig> {
    config.source.cluster()?.nats.clone()
}

/// Waits until a part says something else; for ever where it is off.
async fn told<C: Clone + PartialEq>(part: &mut Option<Settings<C>>) {
    match part {
        Some(part) => part.told().await,
        None => std::future::pending().await,
    }
}

fn stale(message: String) -> Finding {
    Finding::new(Code::ConfigStale, Subject::Configuration, message)
}

/// Logs everything that is wrong with the file, and sums it up.
fn refused(error: &ConfigError) -> Finding {
    let hint = "`route-sync check --offline` lists every mistake; send SIGHUP once they are mended";
    if let ConfigError::Mistakes { mistakes, .. } = error {
        for mistake in mistakes {
            error!(target: "route_sync", key = mistake.key, mistake = %mistake, "configuration mistaken");
        }
        let keys: Vec<_> = mistakes.iter().map(|it| format!("`{}`", it.key)).collect();
        warn!(target: "route_sync", mistakes = keys.len(), "configuration not used, the last one serves");
        let message = format!(
            "the file is not used, as it is mistaken in {}",
            keys.join(", ")
        );
        return stale(message).hint(hint);
    }
    let error = chain(error);
    error!(target: "route_sync", error, "configuration not used, the last one serves");
    stale(format!("the file is not used: {error}")).hint(hint)
}
