//! Every input that was ever of use is tried again, and then a few that nobody has tried yet.

use std::time::Duration;

use fuzz::search::{Until, search, try_one};
use fuzz::targets::{self, Target};
use fuzz::{corpus, targets::ALL};

/// Inputs of the burst: seconds on a slow machine without optimisation, and the same ones each time.
const BURST: u64 = 20_000;
const BURST_TIME: Duration = Duration::from_secs(4);
const SEED: u64 = 1;

/// What one corpus may take of the tree, so that all of them stay readable.
const FILES_MAX: usize = 100;
const BYTES_MAX: u64 = 300_000;

fn target(name: &str) -> &'static Target {
    let target = ALL.iter().find(|target| target.name == name);
    target.expect("a target must be of the list")
}

fn replay_and_go_on(name: &str) {
    let target = target(name);
    let inputs = corpus::read(name).unwrap();
    assert!(!inputs.is_empty(), "`{name}` has no corpus");
    for (what, input) in &inputs {
        if let Err(message) = try_one(target, input) {
            panic!("{what}: {message}");
        }
    }
    let found = search(
        target,
        inputs,
        Until::Tried(BURST, BURST_TIME),
        SEED,
        |_| {},
    );
    if let Some(failure) = found.failure {
        let input = failure.input.escape_ascii().to_string();
        panic!("{}\ninput: {input}", failure.message);
    }
}

macro_rules! targets {
    ($($test:ident: $name:literal,)*) => {
        $(#[test]
        fn $test() {
            replay_and_go_on($name);
        })*

        #[test]
        fn each_target_is_tried() {
            let tried = [$($name),*];
            let all: Vec<_> = targets::ALL.iter().map(|target| target.name).collect();
            assert_eq!(all, tried);
        }
    };
}

targets! {
    no_label_breaks_anything_or_changes_anothers_route: "labels",
    no_manifest_breaks_anything: "manifests",
    no_configuration_breaks_anything_or_shows_a_secret: "configuration",
    no_answer_of_the_routing_api_breaks_anything: "routing-api",
    no_stream_of_events_breaks_anything_however_it_is_cut: "events",
    no_router_breaks_anything: "routers",
    no_registration_breaks_anything_and_each_is_read_as_gorouter_does: "registrations",
    no_state_file_is_read_but_what_was_written: "state",
    no_word_in_the_lease_breaks_anything: "lease",
    no_line_of_a_watch_breaks_anything: "watch",
}

#[test]
fn the_corpora_stay_small() {
    let (mut files, mut bytes) = (0, 0);
    for target in ALL {
        for entry in std::fs::read_dir(corpus::folder(target.name)).unwrap() {
            files += 1;
            bytes += entry.unwrap().metadata().unwrap().len();
        }
    }
    assert!(
        files <= FILES_MAX && bytes <= BYTES_MAX,
        "{files} files, {bytes} bytes"
    );
}
