//! What is written about the program is what the program does. `UPDATE=1 cargo test --test documents` writes
//! the tables of docs/reference.md anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use route_sync::config::{Config, KEYS, Surroundings};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    let path = file(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn printed(table: &str) -> String {
    let program = env!("CARGO_BIN_EXE_route-sync");
    let output = Command::new(program)
        .args(["docs", table])
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// What stands before a table's content, the content, and what follows.
fn split<'a>(page: &'a str, table: &str) -> [&'a str; 3] {
    let marker = format!("<!-- table: {table} -->\n");
    let start = page.find(&marker);
    let start = start.unwrap_or_else(|| panic!("docs/reference.md has no `{}`", marker.trim()))
        + marker.len();
    let length = page[start..]
        .find("<!-- end -->")
        .expect("a table must end");
    let (before, rest) = page.split_at(start);
    let (content, after) = rest.split_at(length);
    [before, content, after]
}

#[test]
fn the_tables_of_the_reference_are_those_of_the_code() {
    for table in ["config", "metrics", "findings"] {
        let (page, printed) = (read("docs/reference.md"), printed(table));
        let [before, written, after] = split(&page, table);
        if std::env::var_os("UPDATE").is_some() {
            fs::write(
                file("docs/reference.md"),
                format!("{before}{printed}{after}"),
            )
            .unwrap();
        } else {
            assert_eq!(written, printed, "UPDATE=1 cargo test --test documents");
        }
    }
}

fn parse(name: &str) -> Config {
    let surroundings = Surroundings {
        in_pod: false,
        files: false,
    };
    Config::parse(&read(name), Path::new(name), surroundings)
        .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_example_configurations_are_valid_and_without_weakness_of_their_own() {
    let full = parse("examples/route-sync.yml");
    assert!(
        full.unknown_keys.is_empty() && full.warnings.is_empty(),
        "{:?}",
        full.warnings
    );
    let registrar = parse("examples/registrar.yml");
    assert!(
        registrar.unknown_keys.is_empty() && registrar.warnings.is_empty(),
        "{:?}",
        registrar.warnings
    );
    let minimal = parse("examples/route-sync-minimal.yml");
    assert!(minimal.unknown_keys.is_empty());
    assert_eq!(
        minimal.warnings.len(),
        1,
        "plain NATS is the original's way"
    );
}

/// Where the files that the examples name lie.
const JOBS: [&str; 2] = [
    "/var/vcap/jobs/route-sync/config",
    "/var/vcap/jobs/kubernetes-api-route-registrar/config",
];

/// A certificate and its key: each of the files may hold both, and a secret may be any text.
const PEM: &str = include_str!("self_signed.pem");
const KUBECONFIG: &str = "\
clusters: [{name: c, cluster: {server: 'https://10.0.0.1:6443'}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
";

/// `check --offline` of an example whose files are there: exit code, stdout, stderr.
fn checked(name: &str) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_str().unwrap();
    let text = JOBS
        .iter()
        .fold(read(name), |text, job| text.replace(job, home));
    let places = text
        .split_whitespace()
        .filter(|word| word.starts_with(home));
    for place in places {
        fs::create_dir_all(Path::new(place).parent().unwrap()).unwrap();
        let is_kubeconfig = place.ends_with("kubeconfig");
        fs::write(place, if is_kubeconfig { KUBECONFIG } else { PEM }).unwrap();
    }
    let config = folder.path().join("example.yml");
    fs::write(&config, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_route-sync"))
        .args(["check", "--offline", "--config"])
        .arg(config)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn check_takes_the_example_configurations_once_the_files_they_name_are_there() {
    for whole in ["examples/route-sync.yml", "examples/registrar.yml"] {
        let (code, told, errors) = checked(whole);
        assert_eq!((code, errors.as_str()), (Some(0), ""), "{told}");
        assert!(told.ends_with("is valid\n"), "{told}");
    }
    let (code, told, errors) = checked("examples/route-sync-minimal.yml");
    assert_eq!(code, Some(0), "{told}{errors}");
    assert_eq!(errors.lines().count(), 1, "plain NATS alone: {errors}");
    assert!(errors.contains("`nats.tls` is not given"), "{errors}");
}

#[test]
fn the_full_examples_show_every_key_but_the_originals_names() {
    let text = read("examples/route-sync.yml") + &read("examples/registrar.yml");
    for key in KEYS
        .iter()
        .filter(|key| key.path.contains('.') && !key.path.starts_with("nats_servers"))
    {
        let name = key.path.rsplit('.').next().unwrap().trim_end_matches("[]");
        assert!(
            text.contains(&format!("{name}:")),
            "`{}` is not shown",
            key.path
        );
    }
}

#[test]
fn the_full_example_writes_the_defaults_where_it_says_so() {
    let full = parse("examples/route-sync.yml");
    let minimal = parse("examples/route-sync-minimal.yml");
    let (api, default_api) = (
        full.routing_api.clone().unwrap(),
        minimal.routing_api.clone().unwrap(),
    );
    assert_eq!(
        (api.ttl, api.router_group),
        (default_api.ttl, default_api.router_group)
    );
    let cluster = |config: &Config| config.source.cluster().unwrap().clone();
    let (of_full, of_minimal) = (cluster(&full), cluster(&minimal));
    let (nats, default_nats) = (of_full.nats.unwrap(), of_minimal.nats.unwrap());
    assert_eq!(nats.default_interval, default_nats.default_interval);
    assert_eq!(nats.messages_per_second, default_nats.messages_per_second);
    assert_eq!(nats.send_app, default_nats.send_app);
    assert_eq!(of_full.routes.max_backends, of_minimal.routes.max_backends);
    assert_eq!(
        of_full.routes.max_tcp_backends,
        of_minimal.routes.max_tcp_backends
    );
    assert_eq!(of_full.routes.removals, of_minimal.routes.removals);
    assert_eq!(
        of_full.kubernetes.rescan_interval,
        of_minimal.kubernetes.rescan_interval
    );
    assert_eq!(
        of_full.kubernetes.poll_interval,
        of_minimal.kubernetes.poll_interval
    );
    assert_eq!(
        (full.admin, full.log.level),
        (minimal.admin, minimal.log.level)
    );
}

/// Every `fn` of every test there is, in this package and in the tests' own, behind its file: `file::test`.
fn test_paths() -> BTreeSet<String> {
    fn collect(path: &Path, names: &mut BTreeSet<String>) {
        let shown = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                collect(&entry.unwrap().path(), names);
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(path).unwrap();
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
                    let name = rest.split('(').next();
                    names.extend(name.map(|name| format!("{}::{name}", shown.display())));
                    is_test = false;
                }
            }
        }
    }
    let mut names = BTreeSet::new();
    for folder in ["src", "tests"] {
        collect(&file(folder), &mut names);
    }
    names
}

/// The names alone.
fn test_names() -> BTreeSet<String> {
    let name = |path: &String| Some(path.rsplit_once("::")?.1.to_owned());
    test_paths().iter().filter_map(name).collect()
}

/// As many as there are in the catalogue.
const FAULTS: u32 = 68;

#[test]
fn every_fault_names_tests_that_exist_or_says_why_there_is_none() {
    let (text, tests) = (read("tests/faults.md"), test_paths());
    let mut faults = Vec::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let number = cells.get(1).and_then(|cell| cell.parse::<u32>().ok());
        let Some(number) = number else { continue };
        faults.push(number);
        let held_by = cells[4];
        if let Some(reason) = held_by.strip_prefix('—') {
            assert!(reason.trim().len() > 10, "fault {number} gives no reason");
            continue;
        }
        let named = held_by.split('`').map(str::trim);
        let named: Vec<&str> = named.filter(|part| !part.is_empty()).collect();
        assert!(!named.is_empty(), "fault {number} names no test");
        for name in named {
            assert!(
                tests.contains(name),
                "fault {number} names `{name}`, which is no test"
            );
        }
    }
    assert_eq!(faults, (1..=FAULTS).collect::<Vec<_>>());
}

#[test]
fn every_standing_rule_names_tests_that_exist_or_says_why_there_is_none() {
    let (text, tests) = (read("tests/rules.md"), test_names());
    let mut rules = BTreeSet::new();
    for line in text
        .lines()
        .filter(|line| line.starts_with("| HTTP ") || line.starts_with("| TCP "))
    {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (rule, held_by) = (cells[1], cells[3]);
        assert!(rules.insert(rule.to_owned()), "{rule} stands twice");
        if let Some(reason) = held_by.strip_prefix('—') {
            assert!(reason.trim().len() > 10, "{rule} gives no reason");
            continue;
        }
        let named: Vec<&str> = held_by
            .split('`')
            .filter(|part| !part.trim().is_empty())
            .collect();
        assert!(!named.is_empty(), "{rule} names no test");
        for name in named {
            assert!(
                tests.contains(name),
                "{rule} names `{name}`, which is no test"
            );
        }
    }
    let all = (1..=30).flat_map(|n| [format!("HTTP {n}"), format!("TCP {n}")]);
    assert_eq!(rules, all.collect());
}
