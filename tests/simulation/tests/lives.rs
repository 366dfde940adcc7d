//! Five thousand lives, and the mutants that some of them must kill.
//!
//! Only where seeds decide everything: elsewhere the same seed may live another life.
#![cfg(tokio_unstable)]

use std::path::Path;
use std::process::Command;

use simulation::crowd::{Crowd, live_all};
use simulation::live;

/// Each run lives the same ones; `make soak` goes on with others.
const LIVES: u64 = 5000;

#[test]
fn no_life_goes_wrong() {
    let crowd = Crowd {
        seeds: 0..LIVES,
        until: None,
        wrong: 5,
    };
    let summary = live_all(&crowd, |seed, what| {
        println!("seed {seed}: {what}\n  replay: make simulation SEED={seed}");
    });
    assert_eq!(summary.wrong, []);
    assert_eq!(summary.lived as u64, LIVES);
}

#[test]
fn two_seeds_live_two_lives() {
    assert_ne!(live(1, false).hash, live(2, false).hash);
}

#[test]
fn every_mutant_still_applies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mutants = Path::new(env!("CARGO_MANIFEST_DIR")).join("mutants");
    let mut count = 0;
    for entry in std::fs::read_dir(mutants).unwrap() {
        let patch = entry.unwrap().path();
        if patch.extension().is_none_or(|ending| ending != "patch") {
            continue;
        }
        count += 1;
        let check = Command::new("git")
            .args(["apply", "--check"])
            .arg(&patch)
            .current_dir(&root)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&check.stderr);
        assert!(check.status.success(), "{}: {told}", patch.display());
    }
    assert!(count >= 10, "{count} mutants");
}
