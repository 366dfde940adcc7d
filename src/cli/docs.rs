//! The tables of the documentation, printed from the code they describe.

use std::fmt::Write as _;

use clap::ValueEnum;

use crate::config::{KEYS, at_start};
use crate::desired::Code;
use crate::metrics::{Kind, METRICS};

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Table {
    /// Every key
    Config,
    /// Every metric
    Metrics,
    /// Every code of a finding
    Findings,
}

/// A table in Markdown.
pub(super) fn table(table: Table) -> String {
    match table {
        Table::Config => config(),
        Table::Metrics => metrics(),
        Table::Findings => findings(),
    }
}

fn config() -> String {
    let mut text =
        "| key | default | a change takes effect | meaning |\n|---|---|---|---|\n".to_owned();
    for key in KEYS {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} |",
            key.path,
            key.default,
            if at_start(key.path) {
                "at the next start"
            } else {
                "at SIGHUP"
            },
            key.meaning
        );
    }
    text
}

fn metrics() -> String {
    let mut text = "| metric | kind | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for metric in METRICS {
        let (ending, kind) = match metric.kind {
            Kind::Counter => ("_total", "counter"),
            Kind::Gauge => ("", "gauge"),
            Kind::Histogram => ("", "histogram"),
        };
        let labels: Vec<_> = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let _ = writeln!(
            text,
            "| `route_sync_{}{ending}` | {kind} | {} | {} |",
            metric.name,
            labels.join(", "),
            metric.help
        );
    }
    text
}

fn findings() -> String {
    let mut text = "| code | severity | meaning |\n|---|---|---|\n".to_owned();
    for code in Code::ALL {
        let severity = code.severity().as_str();
        let _ = writeln!(text, "| `{code}` | {severity} | {} |", code.meaning());
    }
    text
}
