//! The admin listener: what the process says of itself to whoever asks on this machine.
//!
//! | path | answer |
//! |---|---|
//! | `/live` | 200 while the process runs, whatever a remote does |
//! | `/ready` | 200 once every required source is complete and each lane was confirmed once; else 503 and what is missing, one a line |
//! | `/metrics` | `OpenMetrics` text |
//! | `/status.json` | [`json::Report`] |
//! | `/approve`, POST | lets go the held removals whose plan the body names: 200 [`json::Approved`], else 409 [`json::NotApproved`], or 421 [`json::StandsBy`] |
//! | `/drain`, POST | keeps routes as they are, or withdraws them all, as the body says: 200 [`json::Drained`], else 409 [`json::NotDrained`], or 421 [`json::StandsBy`] where another instance has the routes to withdraw |
//!
//! Whoever reaches the listener may read. Only a caller on this machine may approve or drain, wherever it listens.
//!
//! An address already taken is a warning: routes matter more than being asked about them.

mod approve;
mod drain;
pub mod json;
mod listener;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::IntoMakeServiceWithConnectInfo;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use approve::{APPROVALS_MAX, Approval};
pub use drain::{DRAINS_MAX, DrainRequest};

use crate::metrics::Metrics;
use crate::quote::{json as json_shown, one_line};
use crate::status::Status;

/// How long to wait before an address that was taken is tried again.
const BIND_RETRY: Duration = Duration::from_secs(30);
/// A body names a plan, which takes sixteen characters.
const BODY_BYTES_MAX: usize = 256;
/// What a scrape of prometheus-client is.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Answers {
    status: Status,
    metrics: Arc<Metrics>,
    approvals: mpsc::Sender<Approval>,
    drains: mpsc::Sender<DrainRequest>,
}

/// Who takes operators' words.
#[derive(Clone, Debug)]
pub struct Words {
    /// That held removals may go.
    pub approvals: mpsc::Sender<Approval>,
    /// That the process is drained.
    pub drains: mpsc::Sender<DrainRequest>,
}

/// Listens until asked to stop.
pub async fn run(
    address: SocketAddr,
    status: Status,
    metrics: Arc<Metrics>,
    words: Words,
    stop: CancellationToken,
) {
    let Words { approvals, drains } = words;
    let answers = Answers {
        status,
        metrics,
        approvals,
        drains,
    };
    let serve = async {
        let mut warned = false;
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    let bound = listener.local_addr().unwrap_or(address);
                    info!(address = %bound, "listening");
                    // It ends only with this future.
                    let listener = listener::Bounded::new(listener);
                    let _ = axum::serve(listener, service(answers.clone())).await;
                }
                Err(error) if !warned => {
                    warned = true;
                    warn!(%address, %error, "address not available, everything else goes on");
                }
                Err(_) => {}
            }
            tokio::time::sleep(BIND_RETRY).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = serve => {}
    }
}

fn service(answers: Answers) -> IntoMakeServiceWithConnectInfo<Router, listener::Peer> {
    let router = Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/status.json", get(status))
        .route("/approve", post(approve::approve))
        .route("/drain", post(drain::drain))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(answers);
    router.into_make_service_with_connect_info()
}

async fn ready(State(answers): State<Answers>) -> Response {
    let missing = answers.status.missing();
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    // Whoever asks looks at it in a terminal.
    let missing: Vec<_> = missing.iter().map(|it| one_line(it)).collect();
    let mut text = missing.join("\n");
    text.push('\n');
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn metrics(State(answers): State<Answers>) -> Response {
    (
        [(header::CONTENT_TYPE, OPENMETRICS)],
        answers.metrics.scrape(),
    )
        .into_response()
}

async fn status(State(answers): State<Answers>) -> Response {
    as_json(StatusCode::OK, &json::Report::of(&answers.status))
}

/// The answer of an instance that stands by to whoever asks it to act; `None` where it acts itself.
fn stands_by(status: &Status) -> Option<Response> {
    let holder = status.leader_instead()?;
    let code = StatusCode::MISDIRECTED_REQUEST;
    Some(as_json(code, &json::StandsBy { holder }))
}

fn as_json(code: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_string(value).map(json_shown) {
        Ok(text) => (code, [(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            warn!(%error, "answer not encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests;
