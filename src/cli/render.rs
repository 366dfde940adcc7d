//! Printing: tables for people, JSON for programs, errors with their hints.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::admin::json::Finding;
use crate::causes::chain;
use crate::quote::{json, one_line};
use crate::telemetry;

/// Prints data, of which lines are ours and everything else may be somebody else's: nothing leaves that could control
/// a terminal.
pub(super) fn print(text: &str) -> io::Result<()> {
    print_verbatim(&lines(text))
}

/// Prints what nobody else had a hand in. Whoever stopped reading (`route-sync status | head`) had enough, which is
/// no error.
pub(super) fn print_verbatim(text: &str) -> io::Result<()> {
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
    print(&json(text))?;
    Ok(())
}

/// Prints an error with its whole chain of causes.
pub(super) fn error(error: &anyhow::Error) {
    tell("error", "31", &chain(error.as_ref()));
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
    // Its lines are ours: each mistake of a configuration has one.
    let text = lines(text);
    // Where stderr is gone there is nobody left to tell.
    let _ = if telemetry::colour(stderr.is_terminal()) {
        writeln!(stderr, "\x1b[{colour}m{word}:\x1b[0m {text}")
    } else {
        writeln!(stderr, "{word}: {text}")
    };
}

fn lines(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(one_line).collect();
    lines.join("\n")
}

/// Columns as wide as their widest cell, two blanks apart; the last one is not padded. A row stays one line,
/// whatever its cells hold.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let shown = |row: &Vec<String>| row.iter().map(|cell| one_line(cell).into_owned()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(shown).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        for (index, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(index) {
                Some(known) => *known = width.max(*known),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Findings, one or two lines each, whatever they quote.
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
        let line = format!("{severity} [{code}] {subject}: {message}");
        let _ = writeln!(text, "{}", one_line(&line));
        if let Some(hint) = hint {
            let _ = writeln!(text, "  hint: {}", one_line(hint));
        }
    }
    text
}

/// `1 route`, `2 routes`.
pub(super) fn counted(count: usize, noun: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "1\x1b[2J\nerror [host-denied] service kube-system/x: forged";

    #[test]
    fn a_finding_is_one_line_and_its_hint_another_whatever_a_tenant_wrote() {
        let finding = Finding {
            code: "annotation-invalid".to_owned(),
            severity: "error".to_owned(),
            kind: "service".to_owned(),
            subject: HOSTILE.to_owned(),
            message: HOSTILE.to_owned(),
            hint: Some(HOSTILE.to_owned()),
        };
        let text = findings(&[finding]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        assert!(text.contains("1\\u{1b}[2J\\nerror [host-denied]"), "{text}");
    }

    #[test]
    fn a_row_is_one_line_whatever_its_cells_hold() {
        let text = columns(&[vec![HOSTILE.to_owned(), "b".to_owned()]]);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\x1b'), "{text}");
    }
}
