//! How a log line looks and how it leaves the process.
//!
//! Text for people on a terminal; elsewhere Cloud Foundry's lager JSON with RFC 3339 timestamps, as its own
//! components write it today. A line is handed to a writer thread through a bounded queue: when nobody reads
//! our output (a full pipe under BPM), lines are dropped and counted, and routes stay alive.

mod format;
mod writer;

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::LogFormat;
pub use format::Line;
pub use writer::{Dropped, Guard};

/// Libraries that say what our own lines say better: async-nats each reconnect, kube each failed request, as
/// an error and without ours being able to judge it.
const QUIET: &[&str] = &[
    "async_nats=warn",
    "kube_client=off",
    "kube_runtime=off",
    "hyper=warn",
];

/// Where lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The log is what the command prints.
    Stdout,
    /// The command prints something else.
    Stderr,
}

/// Whether a stream may be coloured: only a terminal, and only unless `NO_COLOR` is set (no-color.org).
#[must_use]
pub fn colour(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Starts logging for the rest of the process; the guard writes what is left when it is dropped.
#[must_use]
pub fn start(format: Option<LogFormat>, level: &str, output: Output) -> Guard {
    let terminal = match output {
        Output::Stdout => io::stdout().is_terminal(),
        Output::Stderr => io::stderr().is_terminal(),
    };
    let line = match format {
        Some(LogFormat::Lager) => Line::Lager,
        None if !terminal => Line::Lager,
        Some(LogFormat::Text) | None => Line::Text {
            colour: colour(terminal),
        },
    };
    let (lines, guard) = match output {
        Output::Stdout => writer::start(io::stdout()),
        Output::Stderr => writer::start(io::stderr()),
    };
    let layer = tracing_subscriber::fmt::layer()
        .event_format(line)
        .with_writer(lines);
    // A second start in one process (tests) keeps the first.
    let _ = tracing_subscriber::registry()
        .with(filter(level))
        .with(layer)
        .try_init();
    guard
}

/// The operator's filter over our defaults; the configuration has checked it.
fn filter(level: &str) -> EnvFilter {
    let quiet = QUIET.join(",");
    EnvFilter::try_new(format!("{quiet},{level}")).unwrap_or_else(|_| EnvFilter::new("info"))
}
