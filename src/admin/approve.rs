//! `/approve`: takes the word of an operator to the task that holds removals, and its answer back.

use std::time::Duration;

use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::sync::oneshot;

use super::listener::Peer;
use super::{Answers, as_json, json, stands_by};
use crate::desired::guard::{HeldRoute, NotPending};

/// Approvals that may wait: an operator sends one.
pub const APPROVALS_MAX: usize = 4;
/// A pass over a large cluster takes a fraction of a second.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// An operator lets held removals go.
#[derive(Debug)]
pub struct Approval {
    /// The hash of the plan, as typed.
    pub plan: String,
    /// What became of it.
    pub answer: oneshot::Sender<Result<Vec<HeldRoute>, NotPending>>,
}

pub(super) async fn approve(
    State(answers): State<Answers>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    plan: String,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "only from this machine\n").into_response();
    }
    if let Some(refused) = stands_by(&answers.status) {
        return refused;
    }
    let plan = plan.trim().to_owned();
    let (answer, answered) = oneshot::channel();
    let approval = Approval {
        plan: plan.clone(),
        answer,
    };
    let asked = async {
        answers.approvals.send(approval).await.ok()?;
        answered.await.ok()
    };
    match tokio::time::timeout(ANSWER_WAIT, asked).await {
        Ok(Some(Ok(released))) => {
            let routes = released.iter().map(json::HeldRoute::of).collect();
            as_json(StatusCode::OK, &json::Approved { plan, routes })
        }
        Ok(Some(Err(refused))) => {
            let pending = match refused {
                NotPending::Nothing => None,
                NotPending::Another(plan) => Some(plan.to_string()),
            };
            as_json(StatusCode::CONFLICT, &json::NotApproved { pending })
        }
        Ok(None) | Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
