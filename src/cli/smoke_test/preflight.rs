//! Does each server answer, with the rights that a run has and in the way that a run asks?
//!
//! In the order in which one stands on the other, and none is left out because another failed, unless it cannot do
//! without. Nothing is written anywhere; NATS carries an empty message to ourselves and a greeting.

use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::{Arguments, ClusterTarget, Outcome, Record, Targets, TcpTarget, Trouble};
use crate::causes::chain;
use crate::config::NatsConfig;
use crate::kubernetes::ApiError;
use crate::kubernetes::trial::Right;
use crate::plan::admission;
use crate::publish::http::{Bus, Heard};
use crate::publish::tcp;
use crate::route::{PortRanges, RouterPort};
use crate::uaa::UaaError;

/// For a connection with its login: several attempts, as a server may be about to stop.
const NATS_WAIT: Duration = Duration::from_secs(10);
/// Attempts at each server before the last reason is told: a second one costs little and finds what just passed.
const NATS_ATTEMPTS: u32 = 2;
/// An echo takes microseconds; the HTTP lane gives one up after as long.
const ECHO_WAIT: Duration = Duration::from_secs(2);
/// gorouter answers a greeting within milliseconds.
const GREETING_WAIT: Duration = Duration::from_secs(1);
/// Between two looks at a connection whose events may be lost.
const LOOK: Duration = Duration::from_millis(100);
/// Ours, of what comes back to us.
const ECHO: u64 = 1;

/// What the end-to-end test does with a namespace of its own.
const OF_NAMESPACES: [Right; 2] = [
    right("create", "", "namespaces"),
    right("delete", "", "namespaces"),
];

/// All checks.
pub(super) struct Preflight<'a> {
    pub(super) targets: &'a Targets,
    pub(super) arguments: &'a Arguments,
}

const fn right(verb: &'static str, group: &'static str, resource: &'static str) -> Right {
    Right {
        verb,
        group,
        resource,
    }
}

// === impl Preflight ===

impl Preflight<'_> {
    /// Makes every check and tells each.
    pub(super) async fn run(&self, record: &mut Record) {
        if let Some(tcp) = &self.targets.tcp {
            if record.step("uaa", uaa(tcp)).await {
                let port = self.arguments.tcp_port;
                record.step("routing-api", routing_api(tcp, port)).await;
            } else {
                let trouble =
                    Trouble::new("it cannot be asked without a token that is good for it");
                record.skip("routing-api", trouble);
            }
        }
        if let Some(config) = &self.targets.nats {
            record.step("nats", self.nats(config)).await;
        }
        if let Some(cluster) = &self.targets.cluster {
            record.step("kubernetes", kubernetes(cluster)).await;
            let began = Instant::now();
            let rights = self.rights(cluster).await;
            match rights {
                // Whoever only asks the servers may be somebody without these rights, as route-sync itself is.
                Err(trouble) if self.arguments.preflight => record.skip("rights", trouble),
                rights => drop(record.tell("rights", began.elapsed(), rights)),
            }
        }
    }

    async fn nats(&self, config: &NatsConfig) -> Outcome {
        let bus = self.targets.outside.nats(config).await;
        let mut bus = bus.map_err(|error| Trouble::new(chain(&error)))?;
        let servers = u32::try_from(config.servers.len()).unwrap_or(u32::MAX);
        let attempts = servers.saturating_mul(NATS_ATTEMPTS);
        let epoch = timeout(NATS_WAIT, connected(&mut *bus, attempts)).await;
        let Ok(Some(epoch)) = epoch else {
            let waited = format!("no connection within {} s", NATS_WAIT.as_secs());
            return Err(Trouble::new(bus.error().unwrap_or(waited)));
        };
        let server = bus.server();
        let took = echo(&mut *bus, epoch).await?;
        let routers = if greet(&mut *bus, epoch).await {
            "a gorouter answers a greeting"
        } else {
            "no gorouter answers a greeting"
        };
        let took = took.as_secs_f64() * 1000.0;
        Ok(format!(
            "logged in at `{server}`, echo after {took:.1} ms; {routers}"
        ))
    }

    async fn rights(&self, cluster: &ClusterTarget) -> Outcome {
        let namespace = self.arguments.namespace.as_deref();
        let own = if namespace.is_none() {
            &OF_NAMESPACES[..]
        } else {
            &[]
        };
        let untold = |error: ApiError| {
            let told = format!("the apiserver does not tell rights: {}", chain(&error));
            Trouble::new(told)
        };
        let within = cluster.trial.rights().await.map_err(untold)?;
        let mut missing = Vec::new();
        for right in own.iter().chain(&within) {
            if !cluster.trial.may(*right, namespace).await.map_err(untold)? {
                missing.push(format!("`{right}`"));
            }
        }
        if missing.is_empty() {
            return Ok("those of the end-to-end test are there".to_owned());
        }
        let told = format!("the end-to-end test lacks {}", missing.join(", "));
        Err(Trouble::new(told).hint(
            "give the user of the kubeconfig these rights for the test; route-sync itself needs none of them",
        ))
    }
}

async fn uaa(tcp: &TcpTarget) -> Outcome {
    let id = &tcp.uaa.client_id;
    let token = tcp.tokens.token().await.map_err(|error| {
        let hint = match &error {
            UaaError::Refused { .. } => {
                "compare `uaa.client_id` and its secret with the UAA's; `route-sync register-uaa-client` sets them up"
            }
            UaaError::Unreachable(_) => {
                "`uaa.url` must be reachable from here, by an authority of `uaa.ca_file`"
            }
            _ => "is this the UAA's address? see `uaa.url`",
        };
        Trouble::new(chain(&error)).hint(hint)
    })?;
    let missing = token.missing_scopes();
    if missing.is_empty() {
        return Ok(format!("`{id}` gets tokens with every scope"));
    }
    let missing: Vec<_> = missing.iter().map(|scope| format!("`{scope}`")).collect();
    let told = format!("the token of `{id}` lacks {}", missing.join(", "));
    Err(Trouble::new(told)
        .hint("give the client these authorities; `route-sync register-uaa-client` does"))
}

async fn routing_api(tcp: &TcpTarget, port: Option<RouterPort>) -> Outcome {
    let unreadable = |error: tcp::ApiError| {
        let trouble = Trouble::new(chain(&error));
        match error {
            tcp::ApiError::Unavailable { .. } => trouble.hint(
                "`routing_api.url` must be `https://api.<system domain>`, or port 3001 with a client certificate",
            ),
            _ => trouble,
        }
    };
    let groups = tcp.api.router_groups().await.map_err(unreadable)?;
    let config = &tcp.config;
    let chosen = admission::choose(
        &groups,
        &config.router_group,
        config.router_group_is_default,
    );
    let group = chosen.map_err(|finding| Trouble {
        told: finding.message,
        hint: finding.hint,
    })?;
    let rows = tcp.api.list().await.map_err(unreadable)?;
    let (name, ports) = (&group.name, &group.reservable_ports);
    let Some(port) = port else {
        return Ok(format!(
            "router group `{name}` of type tcp reserves `{ports}`"
        ));
    };
    let reserved = PortRanges::parse(ports).is_ok_and(|ports| ports.contains(port.get()));
    if !reserved {
        let told = format!("router group `{name}` reserves `{ports}`, not port {port}");
        return Err(Trouble::new(told).hint("choose another `--tcp-port`"));
    }
    if rows.keys().any(|row| row.port == port) {
        let told = format!("port {port} is in use");
        return Err(Trouble::new(told).hint("choose another `--tcp-port`"));
    }
    Ok(format!(
        "router group `{name}` of type tcp has port {port}, which is free"
    ))
}

async fn kubernetes(cluster: &ClusterTarget) -> Outcome {
    for resource in ["services", "nodes"] {
        cluster.trial.list(resource).await.map_err(|error| {
            let trouble = Trouble::new(format!("cannot list {resource}: {}", chain(&error)));
            match error {
                ApiError::Forbidden(_) => {
                    trouble.hint("give the user the rights of `examples/rbac.yml`")
                }
                ApiError::Unauthorized => trouble.hint("renew the credentials in the kubeconfig"),
                _ => trouble,
            }
        })?;
    }
    Ok("Services and Nodes can be listed".to_owned())
}

/// Waits for a connection; none where every attempt failed.
async fn connected(bus: &mut dyn Bus, attempts: u32) -> Option<u64> {
    loop {
        if let Some(epoch) = bus.epoch() {
            return Some(epoch);
        }
        if bus.has_ended() || bus.failures() >= attempts {
            return None;
        }
        // What wakes it may be lost.
        let _ = timeout(LOOK, bus.hear()).await;
    }
}

/// Sends a message to ourselves; how long it took.
async fn echo(bus: &mut dyn Bus, epoch: u64) -> Result<Duration, Trouble> {
    let began = Instant::now();
    let until = began + ECHO_WAIT;
    bus.echo(epoch, ECHO)
        .await
        .map_err(|error| Trouble::new(chain(&error)))?;
    loop {
        match timeout_at(until, bus.hear()).await {
            Ok(Heard::Echo(ECHO)) => return Ok(began.elapsed()),
            Ok(_) if bus.may_echo() => {}
            _ => break,
        }
    }
    Err(if bus.may_echo() {
        let reason = bus
            .error()
            .unwrap_or_else(|| "it is not delivered".to_owned());
        Trouble::new(format!(
            "a message to ourselves does not come back: {reason}"
        ))
    } else {
        Trouble::new("the user may not write to itself")
            .hint("let the user of `nats.user` publish and subscribe on `_INBOX.>`")
    })
}

/// Whether any router answers a greeting.
async fn greet(bus: &mut dyn Bus, epoch: u64) -> bool {
    let until = Instant::now() + GREETING_WAIT;
    if bus.greet(epoch).await.is_err() {
        return false;
    }
    loop {
        match timeout_at(until, bus.hear()).await {
            Ok(Heard::Greeted(_)) => return true,
            Ok(Heard::NobodyGreets) | Err(_) => return false,
            Ok(_) => {}
        }
    }
}
