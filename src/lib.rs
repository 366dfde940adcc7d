//! route-sync puts Kubernetes Services behind Cloud Foundry's routers.
//!
//! ```text
//!  kubernetes (watch) ──Snapshot──▶ desired (pure) ──Desired{table, findings}──▶ both lanes
//!                                                                                   │
//!                        ┌──────────────────────────────────────────────────────────┴──┐
//!                  lane tcp: observe → plan (pure) → apply      lane http: schedule (pure) → announce
//!                        │ routing API, UAA                             │ NATS
//!                        └───── LaneReport ─────▶ status ◀──── LaneReport ─────┘──▶ admin, metrics, logs
//! ```
//!
//! Data flows one way; nothing upstream knows anything downstream. In reading order: [`route`] is the
//! vocabulary, [`kubernetes`] watches, [`desired`] derives, [`plan`] compares, [`publish`] acts where [`lease`]
//! lets it, [`status`] tells. [`config`] and [`cli`] are the rim, and [`outside`] opens the ways to every remote.

pub mod admin;
pub mod causes;
pub mod cli;
pub mod config;
pub mod desired;
pub mod kubernetes;
pub mod lease;
pub mod lifecycle;
pub mod metrics;
mod news;
pub mod outside;
pub mod plan;
pub mod publish;
mod quote;
pub mod retry;
pub mod route;
pub mod settings;
pub mod state;
pub mod static_routes;
pub mod status;
pub mod telemetry;
pub mod uaa;

/// A moment, as the time since this process started. Pure code is handed it and never reads a clock.
pub type Uptime = std::time::Duration;
