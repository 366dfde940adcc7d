//! Each reader of what others write, with the properties that hold whatever it is given.
//!
//! A target panics where one does not hold. It is handed bytes; where a reader takes more than bytes, the first line
//! says so.

use route_sync::desired::Finding;

mod configuration;
mod events;
mod labels;
mod lease;
mod manifests;
mod registrations;
mod routers;
mod routing_api;
mod state;
mod watch;

/// Characters of one finding at most: it is repeated in logs, metrics pages and `status`.
const FINDING_CHARS_MAX: usize = 1_500;

/// One reader.
pub struct Target {
    /// What it is called; its inputs are in `corpus/` under this name.
    pub name: &'static str,
    /// Words that mean something to it.
    pub words: &'static [&'static str],
    /// Panics where a property does not hold.
    pub run: fn(&[u8]),
}

/// Every target, in the order of `make fuzz`.
pub const ALL: &[Target] = &[
    labels::TARGET,
    manifests::TARGET,
    configuration::TARGET,
    routing_api::TARGET,
    events::TARGET,
    routers::TARGET,
    registrations::TARGET,
    state::TARGET,
    lease::TARGET,
    watch::TARGET,
];

/// The first line, and what follows it.
fn head(input: &[u8]) -> (&[u8], &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n');
    end.map_or((input, &[]), |end| (&input[..end], &input[end + 1..]))
}

/// What a finding quotes of others is bounded.
fn assert_bounded(findings: &[Finding]) {
    for finding in findings {
        let length = finding.to_string().chars().count();
        assert!(
            length <= FINDING_CHARS_MAX,
            "a finding of {length} characters: {:.200}",
            finding.to_string()
        );
    }
}
