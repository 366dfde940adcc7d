//! `approve`: tells the running process to go through with the removals it holds.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use reqwest::StatusCode;

use super::{Output, render, status};
use crate::admin::json::{Approved, HeldRoute, NotApproved};

pub(super) async fn approve(
    plan: &str,
    admin: Option<SocketAddr>,
    path: &Path,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let address = status::address(admin, path)?;
    let sent = status::client()?
        .post(format!("http://{address}/approve"))
        .body(plan.to_owned())
        .send()
        .await;
    let answer = sent.with_context(|| status::unreachable(address))?;
    let code = answer.status();
    let text = answer
        .text()
        .await
        .with_context(|| status::unreachable(address))?;
    match code {
        StatusCode::OK => {
            let approved: Approved = serde_json::from_str(&text)
                .with_context(|| format!("`{address}` answered something else"))?;
            match output {
                Output::Json => render::print_json(&approved)?,
                Output::Text => render::print(&shown(&approved))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        StatusCode::CONFLICT => {
            let refused: NotApproved = serde_json::from_str(&text)
                .with_context(|| format!("`{address}` answered something else"))?;
            match refused.pending {
                None => bail!("plan `{plan}` is not pending: no removal is held"),
                Some(pending) => bail!(
                    "plan `{plan}` is not pending, plan `{pending}` is; `route-sync status` lists its routes"
                ),
            }
        }
        _ => match status::stands_by(code, &text) {
            Some(error) => Err(error),
            None => bail!("`{address}` answered {code}: {}", text.trim()),
        },
    }
}

fn shown(approved: &Approved) -> String {
    let routes = render::counted(approved.routes.len(), "route");
    let mut text = String::new();
    let _ = writeln!(text, "let go {routes} of plan {}", approved.plan);
    text.push_str(&held_routes(&approved.routes));
    text
}

/// Routes in columns.
pub(super) fn held_routes(routes: &[HeldRoute]) -> String {
    let row = |route: &HeldRoute| {
        let HeldRoute {
            lane,
            name,
            service,
        } = route.clone();
        vec![format!("  {lane}"), name, service]
    };
    render::columns(&routes.iter().map(row).collect::<Vec<_>>())
}
