//! What the compiler cannot hold: the direction of dependencies, and that the package stands on its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules that do no I/O and read no clock.
const PURE: &[&str] = &[
    "src/route.rs",
    "src/route",
    "src/desired.rs",
    "src/desired",
    "src/plan.rs",
    "src/plan",
    "src/kubernetes/snapshot.rs",
    "src/lease/elect.rs",
    "src/publish/http/schedule.rs",
    "src/publish/http/schedule",
    "src/publish/http/strangers.rs",
    "src/publish/http/tls_keys.rs",
    "src/publish/tcp/budget.rs",
    "src/publish/tcp/events/frames.rs",
    "src/static_routes/health.rs",
];

/// What would let the world in, or an order that changes from run to run.
const IMPURE: &[&str] = &[
    "tokio::",
    "kube::",
    "reqwest::",
    "async_nats::",
    "serde_json::",
    "std::env",
    "std::fs",
    "std::net::Tcp",
    "std::time::Instant",
    "SystemTime",
    "fastrand",
    "HashMap",
    "HashSet",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file below a path, tests aside.
fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flat_map(|entry| sources(&entry.unwrap().path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "rs"))
        .filter(|path| !path.ends_with("tests.rs"))
        .collect()
}

/// A file without its comments.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn pure_modules_let_nothing_of_the_world_in() {
    let files: Vec<PathBuf> = PURE
        .iter()
        .flat_map(|path| sources(&root().join(path)))
        .collect();
    assert!(
        files.len() > 10,
        "the list of pure modules has gone stale: {files:?}"
    );
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        for (number, line) in code.enumerate() {
            for word in IMPURE {
                assert!(
                    !line.contains(word),
                    "{}: `{word}` in `{line}` ({number})",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn the_pure_core_knows_nothing_downstream() {
    for path in ["src/route.rs", "src/route", "src/desired.rs", "src/desired"] {
        for file in sources(&root().join(path)) {
            let text = code(&file);
            for word in [
                "crate::publish",
                "crate::status",
                "crate::plan",
                "crate::config",
            ] {
                assert!(!text.contains(word), "{}: `{word}`", file.display());
            }
        }
    }
}

/// A BOSH compile VM has these three and no network.
#[test]
fn the_package_resolves_with_nothing_but_its_manifest_its_lock_and_src() {
    let copy = tempfile::tempdir().unwrap();
    for name in ["Cargo.toml", "Cargo.lock"] {
        fs::copy(root().join(name), copy.path().join(name)).unwrap();
    }
    for file in sources(&root().join("src")) {
        let to = copy.path().join(file.strip_prefix(root()).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .current_dir(copy.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn there_is_one_tls_stack() {
    for lock in ["Cargo.lock", "tests/Cargo.lock"] {
        let text = fs::read_to_string(root().join(lock)).unwrap();
        for name in [
            "openssl",
            "openssl-sys",
            "native-tls",
            "aws-lc-rs",
            "aws-lc-sys",
            "serde_yml",
        ] {
            assert!(
                !text.contains(&format!("name = \"{name}\"")),
                "{lock} holds `{name}`"
            );
        }
        for name in ["rustls", "ring"] {
            let count = text.matches(&format!("name = \"{name}\"\n")).count();
            assert_eq!(count, 1, "{lock} holds {count} versions of `{name}`");
        }
    }
}
