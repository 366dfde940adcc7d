//! What is written about the program is what the program does. `UPDATE=1 cargo test --test documents` writes
//! the tables of docs/reference.md anew.

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
    let minimal = parse("examples/route-sync-minimal.yml");
    assert!(minimal.unknown_keys.is_empty());
    assert_eq!(
        minimal.warnings.len(),
        1,
        "plain NATS is the original's way"
    );
}

#[test]
fn the_full_example_shows_every_key_but_the_originals_names() {
    let text = read("examples/route-sync.yml");
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
    let (api, default_api) = (full.routing_api.unwrap(), minimal.routing_api.unwrap());
    assert_eq!(
        (api.ttl, api.router_group),
        (default_api.ttl, default_api.router_group)
    );
    let (nats, default_nats) = (full.nats.unwrap(), minimal.nats.unwrap());
    assert_eq!(nats.default_interval, default_nats.default_interval);
    assert_eq!(nats.messages_per_second, default_nats.messages_per_second);
    assert_eq!(nats.send_app, default_nats.send_app);
    assert_eq!(full.routes.max_backends, minimal.routes.max_backends);
    assert_eq!(
        full.routes.max_tcp_backends,
        minimal.routes.max_tcp_backends
    );
    assert_eq!(
        full.kubernetes.rescan_interval,
        minimal.kubernetes.rescan_interval
    );
    assert_eq!(
        full.kubernetes.poll_interval,
        minimal.kubernetes.poll_interval
    );
    assert_eq!(
        (full.admin, full.log.level),
        (minimal.admin, minimal.log.level)
    );
}
