//! `plan`: one look at everything, and what a run would change; nothing is written.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use super::{Output, render, status, wires};
use crate::Uptime;
use crate::admin::json::{Finding, Held};
use crate::config::{Config, Source};
use crate::desired::{self, Desired, Memory};

/// Changes are pending.
const PENDING: u8 = 2;

#[derive(Serialize)]
struct View {
    in_sync: bool,
    /// Absent where the lane is off.
    tcp: Option<Tcp>,
    /// What would be announced; gorouter's table cannot be read, so there is nothing to compare it with.
    http: Vec<HttpRow>,
    /// Removals that the running process holds, where one answers.
    held: Option<Held>,
    findings: Vec<Finding>,
}

/// What the TCP lane would do, row by row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Tcp {
    /// Whether the routing API's table could be read.
    pub(super) readable: bool,
    /// Whether a finding keeps the whole lane waiting.
    pub(super) blocked: bool,
    pub(super) add: Vec<TcpRow>,
    pub(super) remove: Vec<TcpRow>,
    pub(super) keep: Vec<TcpRow>,
    /// Ports that may not be published now.
    pub(super) held: Vec<u16>,
}

/// One row of the routing API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct TcpRow {
    pub(super) port: u16,
    pub(super) backend: String,
}

#[derive(Serialize)]
struct HttpRow {
    uri: String,
    service: String,
    backends: Vec<String>,
}

pub(super) async fn plan(config: Config, output: Output) -> anyhow::Result<ExitCode> {
    let desired = match &config.source {
        Source::Cluster(cluster) => {
            let snapshot = wires::snapshot_once(&cluster.kubernetes).await?;
            let (memory, options) = (&mut Memory::default(), &cluster.routes);
            desired::derive(&snapshot, memory, options, Uptime::ZERO)
        }
        Source::Static(routes) => wires::health_once(routes).await?,
    };
    let mut findings = Vec::new();
    let tcp = match (&config.uaa, &config.routing_api) {
        (Some(uaa), Some(api)) => {
            let (tcp, found) = wires::tcp_changes(uaa, api, &desired).await?;
            findings.extend(found);
            Some(tcp)
        }
        _ => None,
    };
    let cluster = config.source.cluster();
    let http = if cluster.is_some_and(|cluster| cluster.nats.is_some()) {
        http(&desired)
    } else {
        Vec::new()
    };
    findings.extend(desired.findings);
    findings.sort();
    findings.dedup();
    let tcp_blocked = tcp.as_ref().is_some_and(|tcp| tcp.blocked);
    let in_sync = tcp.as_ref().is_none_or(Tcp::in_sync);
    let findings = findings.iter().map(Finding::of).collect();
    // What a run would change depends on what it holds, which only the process that holds it knows.
    let held = match config.admin {
        Some(address) => status::held(address).await,
        None => None,
    };
    let view = View {
        in_sync,
        tcp,
        http,
        held,
        findings,
    };
    match output {
        Output::Json => render::print_json(&view)?,
        Output::Text => render::print(&view.text())?,
    }
    Ok(match tcp_blocked {
        true => ExitCode::FAILURE,
        false if in_sync => ExitCode::SUCCESS,
        false => ExitCode::from(PENDING),
    })
}

fn http(desired: &Desired) -> Vec<HttpRow> {
    let routes = desired.table.http.iter();
    routes
        .map(|(uri, route)| HttpRow {
            uri: uri.to_string(),
            service: route.service.key.to_string(),
            backends: route.backends.iter().map(ToString::to_string).collect(),
        })
        .collect()
}

impl Tcp {
    fn in_sync(&self) -> bool {
        !self.blocked && self.add.is_empty() && self.remove.is_empty()
    }
}

impl View {
    fn text(&self) -> String {
        let mut text = String::new();
        if let Some(tcp) = &self.tcp {
            text.push_str(&tcp_text(tcp));
        }
        if !self.http.is_empty() {
            let _ = writeln!(
                text,
                "http: {} announced",
                render::counted(self.http.len(), "route")
            );
            let row = |route: &HttpRow| {
                vec![
                    format!("  {}", route.uri),
                    route.service.clone(),
                    route.backends.join(" "),
                ]
            };
            let rows: Vec<_> = self.http.iter().map(row).collect();
            text.push_str(&render::columns(&rows));
        }
        if let Some(held) = &self.held {
            text.push_str(&status::held_shown(held));
        }
        text.push_str(&render::findings(&self.findings));
        text
    }
}

fn tcp_text(tcp: &Tcp) -> String {
    let mut text = format!(
        "tcp: {} to add, {} to remove, {} to keep",
        tcp.add.len(),
        tcp.remove.len(),
        tcp.keep.len()
    );
    if !tcp.readable {
        text.push_str(" (the routing API's table cannot be read)");
    }
    text.push('\n');
    let rows = |sign: &str, rows: &[TcpRow]| -> Vec<Vec<String>> {
        let row = |row: &TcpRow| vec![format!("  {sign} {}", row.port), row.backend.clone()];
        rows.iter().map(row).collect()
    };
    let mut all = rows("+", &tcp.add);
    all.extend(rows("-", &tcp.remove));
    all.extend(rows("=", &tcp.keep));
    all.extend(
        tcp.held
            .iter()
            .map(|port| vec![format!("  ! {port}"), "held".to_owned()]),
    );
    text.push_str(&render::columns(&all));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(port: u16, backend: &str) -> TcpRow {
        let backend = backend.to_owned();
        TcpRow { port, backend }
    }

    #[test]
    fn a_plan_shows_each_row_under_its_sign() {
        let tcp = Tcp {
            readable: false,
            blocked: false,
            add: vec![row(2222, "10.0.0.1:30001")],
            remove: vec![row(33, "10.0.0.2:30002")],
            keep: Vec::new(),
            held: vec![4444],
        };
        let expect = "\
tcp: 1 to add, 1 to remove, 0 to keep (the routing API's table cannot be read)
  + 2222  10.0.0.1:30001
  - 33    10.0.0.2:30002
  ! 4444  held
";
        assert_eq!(tcp_text(&tcp), expect);
    }

    #[test]
    fn held_and_kept_rows_are_no_pending_change() {
        let tcp = Tcp {
            keep: vec![row(1, "x")],
            held: vec![2],
            ..Tcp::default()
        };
        assert!(tcp.in_sync());
        assert!(
            !Tcp {
                remove: vec![row(1, "x")],
                ..Tcp::default()
            }
            .in_sync()
        );
    }
}
