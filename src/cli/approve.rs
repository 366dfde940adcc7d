//! `approve`: tells the running process to go through with the removals it holds.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;

use super::ask::{self, Answer};
use super::{Output, render};
use crate::admin::json::{Approved, HeldRoute, NotApproved};

pub(super) async fn approve(
    plan: &str,
    admin: Option<SocketAddr>,
    path: &Path,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let address = ask::address(admin, path)?;
    let lost = || ask::unreachable(address);
    let answer = ask::tell::<Approved, NotApproved>(address, "approve", plan, lost).await?;
    match answer {
        Answer::Done(approved) => {
            match output {
                Output::Json => render::print_json(&approved)?,
                Output::Text => render::print(&shown(&approved))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Answer::Refused(NotApproved { pending: None }) => {
            bail!("plan `{plan}` is not pending: no removal is held")
        }
        Answer::Refused(NotApproved {
            pending: Some(pending),
        }) => bail!(
            "plan `{plan}` is not pending, plan `{pending}` is; `route-sync status` lists its routes"
        ),
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
