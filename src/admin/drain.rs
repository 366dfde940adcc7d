//! `/drain`: takes an operator's word that routes are to be kept as they are, or all withdrawn, and answers once
//! that is done or time is up.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::sync::oneshot;

use super::listener::Peer;
use super::{Answers, as_json, json, stands_by};
use crate::route::ServiceKey;
use crate::status::{Drain, NO_PROOF, RouteState, Status};

/// Words that may wait: an operator says one.
pub const DRAINS_MAX: usize = 4;
/// How long the deriving task may take to hear of it: one pass over a large cluster is a fraction of a second.
const HEARD_WITHIN: Duration = Duration::from_secs(1);
/// How long everything may take to be gone. With the rest of the command within 10 s, which is what a platform's
/// drain scripts are given.
const GONE_WITHIN: Duration = Duration::from_secs(8);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// An operator drains the process.
#[derive(Debug)]
pub struct DrainRequest {
    /// How.
    pub drain: Drain,
    /// Answered once the lanes are told; an error names what was asked for before and cannot be taken back.
    pub answer: oneshot::Sender<Result<(), Drain>>,
}

/// Each route by lane and name.
type Routes = BTreeMap<(String, String), ServiceKey>;

pub(super) async fn drain(
    State(answers): State<Answers>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    word: String,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "only from this machine\n").into_response();
    }
    let Some(drain) = Drain::parse(word.trim()) else {
        return (StatusCode::BAD_REQUEST, "`keep` or `unregister`\n").into_response();
    };
    if let Some(refused) = stands_by(&answers.status) {
        return match drain {
            // It announces nothing, so that there is nothing to hold as it is.
            Drain::Keep => as_json(StatusCode::OK, &json::Drained::kept(Vec::new())),
            Drain::Unregister => refused,
        };
    }
    let status = &answers.status;
    let routes = routes(status);
    let (answer, answered) = oneshot::channel();
    let asked = async {
        let request = DrainRequest { drain, answer };
        answers.drains.send(request).await.ok()?;
        answered.await.ok()
    };
    match tokio::time::timeout(HEARD_WITHIN, asked).await {
        Ok(Some(Ok(()))) => {}
        Ok(Some(Err(before))) => {
            let reason = format!(
                "it was drained with `--{}` before, which only a restart takes back",
                before.as_str()
            );
            return as_json(StatusCode::CONFLICT, &json::NotDrained { reason });
        }
        Ok(None) | Err(_) => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
    let answer = match drain {
        Drain::Keep => json::Drained::kept(shown(routes)),
        Drain::Unregister => {
            let gone = async {
                while !is_gone(status) {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            };
            // Whoever waits longer than this asks again; the lanes go on.
            let _ = tokio::time::timeout(GONE_WITHIN, gone).await;
            withdrawn(routes, status)
        }
    };
    as_json(StatusCode::OK, &answer)
}

/// What is announced now; what is held back needs no withdrawal.
fn routes(status: &Status) -> Routes {
    let mut all = Routes::new();
    for lane in status.lanes() {
        let announced = lane.routes.into_iter();
        let announced = announced.filter(|(_, route)| route.state != RouteState::Held);
        all.extend(announced.map(|(name, route)| ((lane.lane.to_string(), name), route.service)));
    }
    all
}

fn is_gone(status: &Status) -> bool {
    let mut lanes = status.withdrawn().into_iter();
    status.nothing_on_record()
        && lanes.all(|(_, withdrawn, _)| withdrawn.is_some_and(|withdrawn| withdrawn.proven))
}

fn withdrawn(mut routes: Routes, status: &Status) -> json::Drained {
    let mut left = Vec::new();
    let mut troubles = Vec::new();
    for (lane, withdrawn, error) in status.withdrawn() {
        let name_of = |name: String| {
            let key = (lane.to_string(), name);
            let service = routes.remove(&key);
            json::DrainedRoute {
                lane: key.0,
                name: key.1,
                service: service.map(|service| service.to_string()),
            }
        };
        let Some(withdrawn) = withdrawn else {
            let error = error.map_or_else(String::new, |error| format!(": {error}"));
            troubles.push(format!(
                "lane {lane}: neither Kubernetes nor a state file has told yet what is ours{error}"
            ));
            continue;
        };
        let missing = withdrawn.left.len();
        left.extend(withdrawn.left.into_iter().map(name_of));
        if !withdrawn.proven {
            let why = withdrawn.why.into_iter().chain(error);
            let why = why.collect::<Vec<_>>().join(": ");
            let why = if why.is_empty() {
                "time was up".to_owned()
            } else {
                why
            };
            troubles.push(format!("lane {lane}: {missing} not proven gone: {why}"));
        }
    }
    if !status.nothing_on_record() {
        let text =
            "state: the file in `state.dir` still holds routes, which a restart would announce";
        troubles.push(text.to_owned());
    }
    let unproven = status.lease().is_some_and(|lease| !lease.role.is_active());
    if unproven && !troubles.is_empty() {
        troubles.push(format!("lease: {NO_PROOF}"));
    }
    json::Drained {
        drain: Drain::Unregister.as_str().to_owned(),
        complete: troubles.is_empty(),
        routes: shown(routes),
        left,
        troubles,
    }
}

fn shown(routes: Routes) -> Vec<json::DrainedRoute> {
    let route = |((lane, name), service): ((String, String), ServiceKey)| json::DrainedRoute {
        lane,
        name,
        service: Some(service.to_string()),
    };
    routes.into_iter().map(route).collect()
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::lease::{LeaseReport, Role};
    use crate::lifecycle::Clock;
    use crate::route::Lane;
    use crate::status::{LaneReport, SourceReport, Withdrawn};

    #[test]
    fn a_drain_without_proof_says_that_the_lease_keeps_the_routes() {
        let mut report = LaneReport::new(Lane::Tcp);
        report.withdrawn = Some(Withdrawn {
            left: ["2222".to_owned()].into(),
            ..Withdrawn::default()
        });
        let lane = watch::channel(report).1;
        let (sources, snapshot) = (SourceReport::default(), None);
        let (sources, snapshot) = (watch::channel(sources).1, watch::channel(snapshot).1);
        let desired = watch::channel(None).1;
        let status =
            Status::new(Clock::start(), sources, desired, vec![lane]).with_snapshot(snapshot);
        let told = |role| {
            let lease = LeaseReport {
                identity: "us".to_owned(),
                role,
                holder: None,
                generation: Some(5),
                renewed: None,
                findings: Vec::new(),
            };
            let status = status.clone().with_lease(watch::channel(lease).1);
            let troubles = withdrawn(Routes::new(), &status).troubles;
            troubles.contains(&format!("lease: {NO_PROOF}"))
        };
        assert!(told(Role::Cautious { generation: 5 }));
        assert!(!told(Role::ALONE));
    }
}
