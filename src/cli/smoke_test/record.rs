//! What a smoke test tells: one line for each step, as soon as it is done, or one JSON document at the end.
//!
//! It knows how lines look and whether any failed. What is tried, and what a failure means, is the steps' affair.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use crate::cli::{Output, render};
use crate::quote::one_line;

/// What a step came to: what it found, or what went wrong.
pub(super) type Outcome = Result<String, Trouble>;

/// What went wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) told: String,
    pub(super) hint: Option<String>,
}

/// Everything that was told.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    #[serde(skip)]
    output: Output,
    passed: bool,
    steps: Vec<Step>,
    #[serde(flatten)]
    times: BTreeMap<Span, BTreeMap<&'static str, f64>>,
}

/// What is measured, in seconds, for each lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) enum Span {
    #[serde(rename = "time_to_route")]
    ToRoute,
    #[serde(rename = "time_to_unroute")]
    ToUnroute,
}

#[derive(Debug, Serialize)]
struct Step {
    #[serde(rename = "step")]
    name: &'static str,
    result: Verdict,
    #[serde(rename = "seconds", serialize_with = "seconds")]
    took: Duration,
    message: String,
    hint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Failed,
    Skipped,
}

fn seconds<S: Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(took.as_secs_f64())
}

// === impl Trouble ===

impl Trouble {
    pub(super) fn new(told: impl Into<String>) -> Self {
        let told = told.into();
        Self { told, hint: None }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        let hint = Some(hint.into());
        Self { hint, ..self }
    }
}

// === impl Record ===

impl Record {
    pub(super) fn new(output: Output) -> Self {
        Self {
            output,
            passed: true,
            steps: Vec::new(),
            times: BTreeMap::new(),
        }
    }

    /// Whether no step has failed.
    pub(super) fn passed(&self) -> bool {
        self.passed
    }

    /// Does a step and tells what it came to; whether it is done.
    pub(super) async fn step(
        &mut self,
        step: &'static str,
        doing: impl Future<Output = Outcome>,
    ) -> bool {
        let began = Instant::now();
        let outcome = doing.await;
        self.tell(step, began.elapsed(), outcome)
    }

    /// Tells what a step came to that took so long; whether it is done.
    pub(super) fn tell(&mut self, step: &'static str, took: Duration, outcome: Outcome) -> bool {
        let (result, message, hint) = match outcome {
            Ok(told) => (Verdict::Ok, told, None),
            Err(Trouble { told, hint }) => (Verdict::Failed, told, hint),
        };
        self.passed &= result == Verdict::Ok;
        self.add(Step {
            name: step,
            result,
            took,
            message,
            hint,
        });
        result == Verdict::Ok
    }

    /// Tells why a step is left out, which fails nothing.
    pub(super) fn skip(&mut self, step: &'static str, trouble: Trouble) {
        self.add(Step {
            name: step,
            result: Verdict::Skipped,
            took: Duration::ZERO,
            message: trouble.told,
            hint: trouble.hint,
        });
    }

    /// Notes how long a route of a lane took.
    pub(super) fn time(&mut self, span: Span, lane: &'static str, took: Duration) {
        let lanes = self.times.entry(span).or_default();
        lanes.insert(lane, took.as_secs_f64());
    }

    /// Tells the end of it.
    pub(super) fn finish(&self) -> anyhow::Result<()> {
        match self.output {
            Output::Json => render::print_json(self)?,
            Output::Text => render::print(&self.summary())?,
        }
        Ok(())
    }

    fn summary(&self) -> String {
        let mut text = String::new();
        for (span, lanes) in &self.times {
            let span = match span {
                Span::ToRoute => "time to route:  ",
                Span::ToUnroute => "time to unroute:",
            };
            let lanes = lanes
                .iter()
                .map(|(lane, took)| format!(" {lane} {took:.3} s"));
            let _ = writeln!(text, "{span}{}", lanes.collect::<Vec<_>>().join(","));
        }
        text.push_str(if self.passed {
            "smoke test passed\n"
        } else {
            "smoke test failed\n"
        });
        text
    }

    fn add(&mut self, step: Step) {
        if self.output == Output::Text {
            // Whoever reads no more is told nothing more; what the test made has to go all the same.
            let _ = render::print(&step.text());
        }
        self.steps.push(step);
    }
}

// === impl Step ===

impl Step {
    fn text(&self) -> String {
        let result = match self.result {
            Verdict::Ok => "ok",
            Verdict::Failed => "failed",
            Verdict::Skipped => "skipped",
        };
        let (step, took) = (self.name, self.took.as_secs_f64());
        let mut text = format!(
            "{result:7}  {step:13}  {took:8.3} s  {}\n",
            one_line(&self.message)
        );
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "         hint: {}", one_line(hint));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_line_and_its_hint_another_and_one_failure_fails_all() {
        let mut record = Record::new(Output::Json);
        let took = Duration::from_millis(1234);
        assert!(record.tell("uaa", took, Ok("a\ttoken".to_owned())));
        record.skip("nats", Trouble::new("it is off"));
        assert!(record.passed());
        let trouble = Trouble::new("no\nanswer").hint("look\x1b there");
        assert!(!record.tell("routing-api", took, Err(trouble)));
        assert!(record.tell("cleanup", took, Ok(String::new())) && !record.passed());
        let lines: Vec<_> = record.steps.iter().map(Step::text).collect();
        assert_eq!(lines[0], "ok       uaa               1.234 s  a\\ttoken\n");
        assert_eq!(lines[1], "skipped  nats              0.000 s  it is off\n");
        let failed =
            "failed   routing-api       1.234 s  no\\nanswer\n         hint: look\\u{1b} there\n";
        assert_eq!(lines[2], failed);
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(json["passed"], false);
        assert_eq!(json["steps"][2]["result"], "failed");
        assert_eq!(json["steps"][0]["seconds"], 1.234);
    }
}
