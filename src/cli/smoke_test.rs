//! `smoke-test`: does everything that route-sync stands on answer, and does a labelled Service become reachable?
//!
//! ```text
//!  preflight ── each server, with the rights a run has ──▶ end to end ── a Service of our own, no image pulled
//!  a Service without selector ─▶ route-sync ─▶ routers ─▶ node port ─▶ EndpointSlice ─▶ a listener in this process
//! ```
//!
//! Whatever it made it takes away, however it ends: at the deadline, at SIGTERM and SIGINT, after any failure. Only a
//! second signal leaves something behind, which the next test removes an hour later. A request that makes something is
//! never broken off, as nobody would know whether it was done.

mod echo;
mod end_to_end;
mod preflight;
mod probe;
mod record;

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::run::Signals;
use super::{Output, render, usage_code};
use crate::config::{
    self, ClusterConfig, Config, KubernetesConfig, NatsConfig, RoutingApiConfig, Source, UaaConfig,
};
use crate::kubernetes::trial::Trial;
use crate::outside::{Network, Outside};
use crate::publish::tcp::{ConnectError, RoutingApi};
use crate::route::{Hostname, RouterPort};
use crate::uaa::TokenSource;
use end_to_end::EndToEnd;
use preflight::Preflight;
use record::{Outcome, Record, Trouble};

/// What a test may take at most: longer than this nobody watches an errand.
const TIMEOUT_MAX: Duration = Duration::from_hours(1);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Only ask each server, and make nothing
    #[arg(long)]
    preflight: bool,
    /// Try a TCP route at this port of the router group; it must be free
    #[arg(long, value_name = "PORT", value_parser = port, requires = "tcp_router")]
    tcp_port: Option<RouterPort>,
    /// The address of this machine that the nodes reach, with a port where it must not be any [default: the one
    /// that leads to the apiserver]
    #[arg(long, value_name = "IP[:PORT]", value_parser = address)]
    address: Option<(IpAddr, u16)>,
    /// Where gorouter listens for HTTP [default: port 80 of the host that is tried]
    #[arg(long, value_name = "HOST:PORT")]
    http_router: Option<String>,
    /// The host or address of the tcp-routers
    #[arg(long, value_name = "HOST", requires = "tcp_port")]
    tcp_router: Option<String>,
    /// A namespace that is there, in place of one made for the test
    #[arg(long, value_name = "NAMESPACE", value_parser = namespace)]
    namespace: Option<String>,
    /// How long the end-to-end test may take
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = timeout)]
    timeout: Duration,
}

/// What the configuration names.
struct Targets {
    tcp: Option<TcpTarget>,
    nats: Option<NatsConfig>,
    cluster: Option<ClusterTarget>,
    outside: Arc<dyn Outside>,
    /// Where the running route-sync may be asked.
    admin: Option<SocketAddr>,
}

struct TcpTarget {
    uaa: UaaConfig,
    tokens: TokenSource,
    api: Arc<dyn RoutingApi>,
    config: RoutingApiConfig,
}

struct ClusterTarget {
    config: KubernetesConfig,
    trial: Trial,
    app_domain: Hostname,
}

/// Until when, and whether, the test goes on.
struct Stop {
    asked: CancellationToken,
    timeout: Duration,
    deadline: Instant,
}

pub(super) async fn smoke_test(
    config: Config,
    arguments: Arguments,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let targets = Targets::of(config)?;
    if let Err(mistake) = arguments.fit(&targets) {
        render::error(&anyhow!(mistake));
        return Ok(usage_code(false));
    }
    let mut record = Record::new(output);
    let preflight = Preflight {
        targets: &targets,
        arguments: &arguments,
    };
    tokio::select! {
        biased;
        signal = signals.next() => interrupted(&mut record, signal),
        () = preflight.run(&mut record) => {}
    }
    if record.passed() && !arguments.preflight {
        try_end_to_end(&targets, &arguments, &mut signals, &mut record).await;
    }
    record.finish()?;
    Ok(if record.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Makes, looks, and takes away what was made.
async fn try_end_to_end(
    targets: &Targets,
    arguments: &Arguments,
    signals: &mut Signals,
    record: &mut Record,
) {
    let prepared = tokio::select! {
        biased;
        signal = signals.next() => return interrupted(record, signal),
        prepared = EndToEnd::prepare(targets, arguments, record) => prepared,
    };
    let Some(test) = prepared else {
        return;
    };
    let stop = Stop {
        asked: CancellationToken::new(),
        timeout: arguments.timeout,
        deadline: Instant::now() + arguments.timeout,
    };
    // The first asks the test to end; a second ends it, whatever is under way.
    let mut signalled = Vec::new();
    {
        let mut trying = pin!(test.run(record, &stop));
        while signalled.len() < 2 {
            tokio::select! {
                biased;
                () = &mut trying => break,
                signal = signals.next() => {
                    signalled.push(signal);
                    stop.asked.cancel();
                }
            }
        }
    }
    for signal in &signalled {
        interrupted(record, signal);
    }
    let gave_up = signalled.len() > 1
        || tokio::select! {
            biased;
            _ = record.step("cleanup", test.clean_up()) => false,
            signal = signals.next() => {
                interrupted(record, signal);
                true
            }
        };
    if gave_up {
        render::warning(&test.left_behind());
    }
}

fn interrupted(record: &mut Record, signal: &str) {
    let trouble = Trouble::new(format!("interrupted by {signal}"));
    record.tell("interrupted", Duration::ZERO, Err(trouble));
}

fn port(text: &str) -> Result<RouterPort, String> {
    let port = text.parse().ok().and_then(RouterPort::new);
    port.ok_or_else(|| "must be a port from 1 to 65535".to_owned())
}

fn address(text: &str) -> Result<(IpAddr, u16), String> {
    let whole = text.parse::<SocketAddr>();
    let whole = whole.map(|address| (address.ip(), address.port()));
    whole
        .or_else(|_| text.parse().map(|ip| (ip, 0)))
        .map_err(|_| {
            "must be an address of this machine, such as `10.0.0.8` or `10.0.0.8:7000`".to_owned()
        })
}

fn namespace(text: &str) -> Result<String, String> {
    match Hostname::parse(text) {
        Ok(host) if host.as_str() == text && !text.contains('.') => Ok(text.to_owned()),
        _ => Err("is no namespace name".to_owned()),
    }
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = config::duration(text)?;
    if (Duration::from_secs(1)..=TIMEOUT_MAX).contains(&timeout) {
        Ok(timeout)
    } else {
        Err("must lie between 1s and 1h".to_owned())
    }
}

// === impl Arguments ===

impl Arguments {
    /// Whether what should be tried is what the configuration has.
    fn fit(&self, targets: &Targets) -> Result<(), &'static str> {
        if self.tcp_port.is_some() && targets.tcp.is_none() {
            return Err("`--tcp-port` is given, but the configuration has no TCP lane");
        }
        if self.preflight {
            return Ok(());
        }
        if targets.cluster.is_none() {
            return Err(
                "the configuration names no cluster to try; hint: `--preflight` asks the servers alone",
            );
        }
        if targets.nats.is_none() && self.tcp_port.is_none() {
            return Err(
                "the configuration has no HTTP lane, so there is nothing to try; hint: give `--tcp-port`",
            );
        }
        Ok(())
    }
}

// === impl Targets ===

impl Targets {
    fn of(config: Config) -> Result<Self, ConnectError> {
        let outside: Arc<dyn Outside> = Arc::new(Network);
        let tcp = match (config.uaa, config.routing_api) {
            (Some(uaa), Some(config)) => Some(TcpTarget {
                tokens: TokenSource::new(&uaa)?,
                api: outside.routing_api(&config, &uaa, &Arc::default())?,
                uaa,
                config,
            }),
            _ => None,
        };
        let (nats, cluster) = match config.source {
            Source::Cluster(cluster) => {
                let ClusterConfig {
                    kubernetes,
                    nats,
                    routes,
                    leader_election: _,
                } = *cluster;
                let cluster = ClusterTarget {
                    trial: Trial::new(outside.clone(), kubernetes.clone()),
                    config: kubernetes,
                    app_domain: routes.app_domain,
                };
                (nats, Some(cluster))
            }
            Source::Static(_) => (None, None),
        };
        Ok(Self {
            tcp,
            nats,
            cluster,
            outside,
            admin: config.admin,
        })
    }
}

// === impl Stop ===

impl Stop {
    /// Whether another step may begin.
    fn check(&self) -> Result<(), Trouble> {
        if self.asked.is_cancelled() {
            return Err(Trouble::new("not tried any more"));
        }
        if Instant::now() >= self.deadline {
            let late = format!("not tried within {} s", self.timeout.as_secs());
            return Err(Trouble::new(late).hint("raise `--timeout`"));
        }
        Ok(())
    }

    /// Waits until the test has to end; how that is told.
    async fn ended(&self) -> String {
        tokio::select! {
            () = self.asked.cancelled() => "interrupted".to_owned(),
            () = sleep_until(self.deadline) => format!("not within {} s", self.timeout.as_secs()),
        }
    }
}
