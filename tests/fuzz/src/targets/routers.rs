//! `router.start`, and answers to `router.greet`.

use std::time::Duration;

use route_sync::publish::http::wire::{INTERVAL_DEFAULT, router_told};

use super::Target;

pub(super) const TARGET: Target = Target {
    name: "routers",
    words: &[
        "{",
        "}",
        "\"id\":",
        "\"hosts\":[\"10.0.0.1\"]",
        "\"minimumRegisterIntervalInSeconds\":",
        "\"pruneThresholdInSeconds\":",
        "20",
        "120",
        "\"\"",
        "null",
        "1e300",
        "1e-300",
        "-1",
        ",",
        "[",
        "]",
    ],
    run,
};

/// A router's id is a GUID; 256 of them are remembered.
const ID_BYTES_MAX: usize = 256;

fn run(input: &[u8]) {
    let told = router_told(input);
    assert!(
        told.id.len() <= ID_BYTES_MAX,
        "an id of {} bytes",
        told.id.len()
    );
    let sensible = Duration::from_secs(1)..=Duration::from_secs(30);
    assert!(sensible.contains(&told.interval), "{:?}", told.interval);
    if serde_json::from_slice::<serde_json::Value>(input).is_err() {
        assert_eq!(told.interval, INTERVAL_DEFAULT);
    }
}
