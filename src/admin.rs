//! The admin listener: what the process says of itself to whoever asks on this machine.
//!
//! | path | answer |
//! |---|---|
//! | `/live` | 200 while the process runs, whatever a remote does |
//! | `/ready` | 200 once every required source is complete and each lane was confirmed once; else 503 and what is missing, one a line |
//! | `/metrics` | `OpenMetrics` text |
//! | `/status.json` | [`json::Report`] |
//!
//! An address already taken is a warning: routes matter more than being asked about them.

pub mod json;
mod listener;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::status::Status;

/// How long to wait before an address that was taken is tried again.
const BIND_RETRY: Duration = Duration::from_secs(30);
/// What a scrape of prometheus-client is.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Answers {
    status: Status,
    metrics: Arc<Metrics>,
}

/// Listens until asked to stop.
pub async fn run(
    address: SocketAddr,
    status: Status,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let answers = Answers { status, metrics };
    let serve = async {
        let mut warned = false;
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    let bound = listener.local_addr().unwrap_or(address);
                    info!(address = %bound, "listening");
                    // It ends only with this future.
                    let _ = axum::serve(listener::Bounded::new(listener), router(answers.clone()))
                        .await;
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

fn router(answers: Answers) -> Router {
    Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/status.json", get(status))
        .with_state(answers)
}

async fn ready(State(answers): State<Answers>) -> Response {
    let missing = answers.status.missing();
    if missing.is_empty() {
        return "ready\n".into_response();
    }
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
    match serde_json::to_string(&json::Report::of(&answers.status)) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            warn!(%error, "status not encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests;
