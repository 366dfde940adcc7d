//! `lint`: what the labels and annotations of manifests would come to, without a cluster.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;

use super::{Output, render, wires};
use crate::Uptime;
use crate::admin::json::Finding;
use crate::config::{Config, Surroundings, default_options};
use crate::desired::{self, Code, Memory, Options, Severity};
use crate::route::{Hostname, RouteTable};

/// A directory of manifests is some megabytes at most.
const INPUT_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[derive(Serialize)]
struct View {
    http: BTreeMap<String, String>,
    tcp: BTreeMap<String, String>,
    findings: Vec<Finding>,
}

pub(super) fn lint(
    files: &[PathBuf],
    config: Option<&Path>,
    app_domain: Hostname,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let options = Options {
        // Which addresses the nodes have is no affair of a Service's manifest.
        ipv6: false,
        ..options(config, app_domain)?
    };
    let mut texts = Vec::new();
    for file in files {
        let text = read(file).with_context(|| format!("cannot read `{}`", file.display()))?;
        texts.push((file.display().to_string(), text));
    }
    let snapshot = wires::snapshot_of_manifests(&texts);
    let found = desired::derive(&snapshot, &mut Memory::default(), &options, Uptime::ZERO);
    let mut all: Vec<_> = snapshot.findings.iter().chain(&found.findings).collect();
    all.sort();
    all.dedup();
    // Nothing was known before of an object that cannot be read, so its routes are lost here.
    let lost = all.iter().any(|finding| {
        finding.code.severity() == Severity::Error || finding.code == Code::ObjectUndecodable
    });
    let view = View::of(&found.table, all.into_iter().map(Finding::of).collect());
    match output {
        Output::Json => render::print_json(&view)?,
        Output::Text => render::print(&view.text())?,
    }
    Ok(if lost {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn options(config: Option<&Path>, app_domain: Hostname) -> anyhow::Result<Options> {
    let Some(path) = config else {
        // Whether state survives is known only by a configuration; what it would forbid is no mistake of a manifest.
        return Ok(Options {
            state_survives: true,
            ..default_options(app_domain)
        });
    };
    // The files it names are on another machine.
    let surroundings = Surroundings {
        in_pod: true,
        files: false,
    };
    let config = Config::load(path, surroundings)?;
    let cluster = config.source.cluster();
    let cluster = cluster.context("`static_routes` have no manifests to read")?;
    Ok(cluster.routes.clone())
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(INPUT_BYTES_MAX)
            .read_to_string(&mut text)?;
    } else {
        std::fs::File::open(file)?
            .take(INPUT_BYTES_MAX)
            .read_to_string(&mut text)?;
    }
    Ok(text)
}

impl View {
    fn of(table: &RouteTable, findings: Vec<Finding>) -> Self {
        let http = |(uri, route): (&_, &crate::route::HttpRoute)| {
            (ToString::to_string(uri), route.service.key.to_string())
        };
        let tcp = |(port, route): (&crate::route::RouterPort, &crate::route::TcpRoute)| {
            (port.to_string(), route.service.key.to_string())
        };
        Self {
            http: table
                .http
                .iter()
                .map(http)
                .collect::<BTreeMap<String, String>>(),
            tcp: table.tcp.iter().map(tcp).collect(),
            findings,
        }
    }

    fn text(&self) -> String {
        let row = |lane: &str, (name, service): (&String, &String)| {
            vec![
                lane.to_owned(),
                name.clone(),
                "→".to_owned(),
                service.clone(),
            ]
        };
        let mut rows: Vec<_> = self.http.iter().map(|route| row("http", route)).collect();
        rows.extend(self.tcp.iter().map(|route| row("tcp", route)));
        format!(
            "{}{}",
            render::columns(&rows),
            render::findings(&self.findings)
        )
    }
}
