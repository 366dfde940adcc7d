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
//! An address already taken is a warning: routes matter more than being asked about them. Scrapers of other machines
//! have a listener of their own, where it is given: [`scrapers()`].

mod approve;
mod drain;
pub mod json;
mod listener;
mod scrapers;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::connect_info::IntoMakeServiceWithConnectInfo;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use approve::{APPROVALS_MAX, Approval};
pub use drain::{DRAINS_MAX, DrainRequest};
pub use scrapers::scrapers;

use crate::metrics::Metrics;
use crate::quote::{json as json_shown, one_line};
use crate::status::Status;

/// A body names a plan, which takes sixteen characters.
const BODY_BYTES_MAX: usize = 256;
/// What a scrape of prometheus-client is.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Answers {
    status: Status,
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
        approvals,
        drains,
    };
    let serve = |listener| {
        let service = service(answers.clone(), metrics.clone());
        async move {
            // It ends only with this future.
            let _ = axum::serve(listener::Bounded::new(listener), service).await;
        }
    };
    listener::at(address, "admin", stop, serve).await;
}

fn service(
    answers: Answers,
    metrics: Arc<Metrics>,
) -> IntoMakeServiceWithConnectInfo<Router, listener::Peer> {
    let router = Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/status.json", get(status))
        .route("/approve", post(approve::approve))
        .route("/drain", post(drain::drain))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(answers)
        .merge(scrape(metrics));
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

/// `/metrics` alone.
fn scrape(metrics: Arc<Metrics>) -> Router {
    let content_type = [(header::CONTENT_TYPE, OPENMETRICS)];
    Router::new().route(
        "/metrics",
        get(async move || (content_type, metrics.scrape())),
    )
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
