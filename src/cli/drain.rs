//! `drain`: tells the running process to let go of its routes, or to hold them as they are, before it is stopped.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;

use super::ask::{self, Answer};
use super::{Output, render};
use crate::admin::json::{Drained, DrainedRoute, NotDrained};
use crate::status::Drain;

pub(super) async fn drain(
    drain: Drain,
    admin: Option<SocketAddr>,
    path: &Path,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let address = ask::address(admin, path)?;
    let lost = || match drain {
        Drain::Keep => ask::unreachable(address),
        Drain::Unregister => format!(
            "no answer of route-sync at `{address}`, so nothing is proven; is it running, and is this its `admin.listen`?"
        ),
    };
    let answer = ask::tell::<Drained, NotDrained>(address, "drain", drain.as_str(), lost).await?;
    let drained = match answer {
        Answer::Done(drained) => drained,
        Answer::Refused(refused) => bail!("{}", refused.reason),
    };
    match output {
        Output::Json => render::print_json(&drained)?,
        Output::Text => render::print(&shown(&drained))?,
    }
    if drained.complete {
        tell_of_reloads(&drained);
        return Ok(ExitCode::SUCCESS);
    }
    tell_troubles(&drained);
    Ok(ExitCode::FAILURE)
}

/// The routing API's table is all that can be seen.
fn tell_of_reloads(drained: &Drained) {
    let any_port = drained.routes.iter().any(|route| route.lane == "tcp");
    if any_port && drained.drain == Drain::Unregister.as_str() {
        render::hint(
            "tcp-routers close the ports one reload after another, ten to twenty rows a second",
        );
    }
}

fn tell_troubles(drained: &Drained) {
    for trouble in &drained.troubles {
        render::error(&anyhow::anyhow!("{trouble}"));
    }
    render::hint(
        "route-sync goes on trying until it is stopped, and `drain --unregister` may be asked again; what is left \
         then lapses by itself: TCP rows within `routing_api.ttl`, HTTP routes within gorouter's 120 s, but TLS \
         backends only once they are withdrawn",
    );
}

fn shown(drained: &Drained) -> String {
    let mut text = String::new();
    let (done, rest) = match drained.drain.as_str() {
        "keep" => (
            "kept as they are until route-sync is stopped, and for their TTL after it:",
            "",
        ),
        _ => ("withdrawn:", "not proven gone:"),
    };
    for (head, routes) in [(done, &drained.routes), (rest, &drained.left)] {
        if routes.is_empty() && (head == rest || head.is_empty()) {
            continue;
        }
        let count = render::counted(routes.len(), "route");
        let _ = writeln!(text, "{count} {head}");
        text.push_str(&columns(routes));
    }
    text
}

fn columns(routes: &[DrainedRoute]) -> String {
    let row = |route: &DrainedRoute| {
        let DrainedRoute {
            lane,
            name,
            service,
        } = route.clone();
        vec![format!("  {lane}"), name, service.unwrap_or_default()]
    };
    render::columns(&routes.iter().map(row).collect::<Vec<_>>())
}
