//! `status`: asks the running process's admin listener.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use super::{Output, approve, ask, render};
use crate::admin::json::{Held, Lane, Lease, Report};
use crate::quote::{json, one_line};

const PAGE: &str = "status.json";

pub(super) async fn status(
    admin: Option<SocketAddr>,
    path: &Path,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let address = ask::address(admin, path)?;
    let text = ask::page(address, PAGE)
        .await
        .with_context(|| ask::unreachable(address))?;
    if output == Output::Json {
        render::print(&format!("{}\n", json(text)))?;
    } else {
        let report: Report = serde_json::from_str(&text)
            .with_context(|| format!("`{address}` answered something else than a status"))?;
        render::print(&shown(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a running process holds, where one answers.
pub(super) async fn held(address: SocketAddr) -> Option<Held> {
    let text = ask::page(address, PAGE).await.ok()?;
    serde_json::from_str::<Report>(&text).ok()?.held
}

fn shown(report: &Report) -> String {
    let mut text = String::new();
    let ready = if report.ready { "ready" } else { "not ready" };
    let cluster = one_line(report.cluster.as_deref().unwrap_or("unknown"));
    let _ = writeln!(
        text,
        "route-sync {} up {}, cluster {cluster}: {ready}",
        one_line(&report.version),
        age(report.uptime_seconds)
    );
    for missing in &report.missing {
        let _ = writeln!(text, "  missing: {}", one_line(missing));
    }
    if let Some(drain) = &report.drain {
        let _ = writeln!(text, "  drained: {}", one_line(drain));
    }
    if let Some(lease) = &report.lease {
        text.push_str(&lease_shown(lease));
    }
    text.push_str(&sources(report));
    for (name, lane) in &report.lanes {
        text.push_str(&lane_shown(name, lane));
    }
    if let Some(held) = &report.held {
        text.push('\n');
        text.push_str(&held_shown(held));
    }
    if !report.findings.is_empty() {
        text.push('\n');
        text.push_str(&render::findings(&report.findings));
    }
    text
}

fn lease_shown(lease: &Lease) -> String {
    let (role, identity) = (one_line(&lease.role), one_line(&lease.identity));
    let mut text = format!("  {role} as {identity}, lease held by ");
    match lease.holder.as_deref() {
        None => text.push_str("unknown"),
        Some("") => text.push_str("nobody"),
        Some(holder) => text.push_str(&one_line(holder)),
    }
    if let Some(generation) = lease.generation {
        let _ = write!(text, ", generation {generation}");
    }
    if lease.renewed_seconds_ago.is_some() {
        let _ = write!(text, ", renewed {}", ago(lease.renewed_seconds_ago));
    }
    text.push('\n');
    text
}

fn sources(report: &Report) -> String {
    let head = ["source", "state", "by", "heard", "error"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, source) in &report.sources {
        rows.push(vec![
            name.clone(),
            if source.synced {
                "complete"
            } else {
                "incomplete"
            }
            .to_owned(),
            source.mode.clone(),
            ago(source.heard_seconds_ago),
            source.error.clone().unwrap_or_default(),
        ]);
    }
    format!("\n{}", render::columns(&rows))
}

fn lane_shown(name: &str, lane: &Lane) -> String {
    let mut text = format!("\nlane {}: ", one_line(name));
    let confirmed = if lane.confirmed {
        "confirmed"
    } else {
        "not confirmed yet"
    };
    let _ = write!(
        text,
        "{confirmed}, last success {}",
        ago(lane.success_seconds_ago)
    );
    if let Some(seconds) = lane.headroom_seconds {
        let _ = write!(text, ", headroom {}", age(seconds));
    }
    if let Some(error) = &lane.error {
        let failures = render::counted(lane.consecutive_failures as usize, "failure");
        let _ = write!(text, ", {failures}: {}", one_line(error));
    }
    text.push('\n');
    for (key, value) in &lane.facts {
        let _ = writeln!(text, "  {}: {}", one_line(key), one_line(value));
    }
    let mut rows = Vec::new();
    for (route, shown) in &lane.routes {
        rows.push(vec![
            format!("  {route}"),
            shown.state.clone(),
            age(shown.since_seconds_ago),
            shown.service.clone(),
            shown.backends.join(" "),
        ]);
    }
    text.push_str(&render::columns(&rows));
    text
}

/// Removals that are held, why, and what lets them go.
pub(super) fn held_shown(held: &Held) -> String {
    let Held {
        plan,
        reasons,
        routes,
    } = held;
    let mut text = format!(
        "held: {} as plan {plan}: {}\n",
        render::counted(routes.len(), "removal"),
        reasons.join("; ")
    );
    text.push_str(&approve::held_routes(routes));
    let _ = writeln!(text, "  hint: `route-sync approve {plan}` lets them go");
    text
}

fn ago(seconds: Option<f64>) -> String {
    seconds.map_or_else(
        || "never".to_owned(),
        |seconds| format!("{} ago", age(seconds)),
    )
}

/// `12s`, `3m`, `2h`, `5d`.
fn age(seconds: f64) -> String {
    for (length, unit) in [(86_400.0, "d"), (3_600.0, "h"), (60.0, "m")] {
        if seconds >= 2.0 * length {
            return format!("{:.0}{unit}", (seconds / length).floor());
        }
    }
    format!("{seconds:.0}s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        let shown: Vec<_> = [0.4, 119.0, 120.0, 7200.0, 200_000.0].map(age).to_vec();
        assert_eq!(shown, ["0s", "119s", "2m", "2h", "2d"]);
    }
}
