//! Printing: tables for people, JSON for programs, errors with their hints.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::admin::json::Finding;
use crate::telemetry;

/// Prints data. Whoever stopped reading (`route-sync status | head`) had enough, which is no error.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Prints data as JSON, with a newline at its end.
pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text)?;
    Ok(())
}

/// Prints an error with its whole chain of causes.
pub(super) fn error(error: &anyhow::Error) {
    tell("error", "31", &format!("{error:#}"));
}

/// Prints what works but should not stay.
pub(super) fn warning(text: &str) {
    tell("warning", "33", text);
}

/// Prints what to do next.
pub(super) fn hint(text: &str) {
    tell("hint", "36", text);
}

fn tell(word: &str, colour: &str, text: &str) {
    let mut stderr = io::stderr().lock();
    // Where stderr is gone there is nobody left to tell.
    let _ = if telemetry::colour(stderr.is_terminal()) {
        writeln!(stderr, "\x1b[{colour}m{word}:\x1b[0m {text}")
    } else {
        writeln!(stderr, "{word}: {text}")
    };
}

/// Columns as wide as their widest cell, two blanks apart; the last one is not padded.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(index) {
                Some(known) => *known = width.max(*known),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Findings, one or two lines each.
pub(super) fn findings(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let Finding {
            code,
            severity,
            kind,
            subject,
            message,
            hint,
        } = finding;
        let subject = if subject.is_empty() {
            kind.clone()
        } else {
            format!("{kind} {subject}")
        };
        let _ = writeln!(text, "{severity} [{code}] {subject}: {message}");
        if let Some(hint) = hint {
            let _ = writeln!(text, "  hint: {hint}");
        }
    }
    text
}

/// `1 route`, `2 routes`.
pub(super) fn counted(count: usize, noun: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{ending}")
}
