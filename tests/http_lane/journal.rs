//! TLS routes over a restart: what is on record, what is withdrawn, and what a broken disk does to whom.

use std::path::Path;

use super::*;

const FILE: &str = "http-tls.json";

/// TLS routes first, plain ones after them.
fn mixed(tls: &[(&str, u16, &[u8])], plain: &[(&str, u16, &[u8])]) -> Arc<Desired> {
    let mut desired = Desired::clone(&table(tls));
    for route in desired.table.http.values_mut() {
        route.options.tls_server_name = Some(Hostname::parse("web.internal").unwrap());
    }
    let plain = table(plain);
    desired.table.http.extend(plain.table.http.clone());
    Arc::new(desired)
}

fn start(server: &Server, folder: &Path, first: Option<Arc<Desired>>) -> Running {
    let config = NatsConfig {
        state_dir: Some(folder.to_owned()),
        ..config(&[server.addr], None, None)
    };
    Running::start(config, first)
}

fn endpoints(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join(FILE)).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["version"], 1);
    let each = value["tls"].as_object().unwrap().iter();
    let key = |(uri, addrs): (&String, &serde_json::Value)| {
        let addrs = addrs.as_array().unwrap().iter();
        let addrs = addrs.map(|addr| format!("{uri} {}", addr.as_str().unwrap()));
        addrs.collect::<Vec<_>>()
    };
    each.flat_map(key).collect()
}

/// What came for one uri: sign, address and whether it was meant for TLS.
fn of(server: &Server, host: &str) -> Vec<(char, String, bool)> {
    let uri = format!("{host}.test");
    let mine = |(_, sign, body): (u64, char, String)| {
        let value: serde_json::Value = serde_json::from_str(&body).unwrap();
        let uris = value["uris"].as_array().unwrap();
        let port = value["tls_port"].as_u64().or(value["port"].as_u64());
        let addr = format!("{}:{}", value["host"].as_str().unwrap(), port.unwrap());
        uris.contains(&uri.as_str().into())
            .then_some((sign, addr, value["tls_port"].is_u64()))
    };
    server.routes().into_iter().filter_map(mine).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_route_that_went_while_nobody_ran_is_withdrawn_by_the_next_process() {
    let server = Server::start(Behaviour::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let first = mixed(&[("gone", 30001, &[1]), ("stays", 30002, &[2])], &[]);
    let lane = start(&server, folder.path(), Some(first));
    lane.live("gone").await;
    lane.live("stays").await;
    assert_eq!(
        endpoints(folder.path()),
        ["gone.test 10.0.0.1:30001", "stays.test 10.0.0.2:30002"]
    );
    drop(lane);
    let lane = start(&server, folder.path(), None);
    until("connected", || {
        lane.counters.connected.load(Ordering::Relaxed) == 1
    })
    .await;
    let withdrawn = |host: &str| {
        let all = of(&server, host);
        all.into_iter()
            .filter(|(sign, ..)| *sign == '-')
            .collect::<Vec<_>>()
    };
    assert!(withdrawn("gone").is_empty(), "no table says so yet");
    let now = mixed(&[("stays", 30002, &[2])], &[]);
    lane.desired.send_replace(Some(now));
    until("a repetition", || withdrawn("gone").len() >= 2).await;
    assert_eq!(
        withdrawn("gone")[0],
        ('-', "10.0.0.1:30001".to_owned(), true)
    );
    lane.live("stays").await;
    assert!(withdrawn("stays").is_empty());
    assert_eq!(
        endpoints(folder.path()).len(),
        2,
        "it stays on record until the last repetition"
    );
    assert_eq!(lane.counters.withdrawals_pending.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_tls_route_nothing_is_written() {
    let server = Server::start(Behaviour::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let lane = start(&server, folder.path(), Some(table(&[("a", 30001, &[1])])));
    lane.live("a").await;
    until("confirmed", || lane.report.borrow().confirmed_once).await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_plain_now_leaves_the_record_once_that_is_proven() {
    let server = Server::start(Behaviour::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let lane = start(
        &server,
        folder.path(),
        Some(mixed(&[("a", 30001, &[1])], &[])),
    );
    lane.live("a").await;
    assert_eq!(endpoints(folder.path()).len(), 1);
    lane.want(&[("a", 30001, &[1])]);
    until("forgotten", || endpoints(folder.path()).is_empty()).await;
    let plain = ('+', "10.0.0.1:30001".to_owned(), false);
    assert_eq!(*of(&server, "a").last().unwrap(), plain);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_file_is_passed_over_and_replaced() {
    let server = Server::start(Behaviour::default()).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), r#"{"version":1,"tls":{"x"#).unwrap();
    let first = mixed(&[("a", 30001, &[1])], &[("b", 30002, &[1])]);
    let lane = start(&server, folder.path(), Some(first));
    lane.live("a").await;
    lane.live("b").await;
    assert_eq!(endpoints(folder.path()), ["a.test 10.0.0.1:30001"]);
    assert!(server.routes().iter().all(|(_, sign, _)| *sign == '+'));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_can_be_written_tls_routes_are_held_and_plain_ones_live() {
    let server = Server::start(Behaviour::default()).await;
    let folder = tempfile::tempdir().unwrap();
    // Missing, as permissions would not keep out a privileged user.
    let missing = folder.path().join("missing");
    let first = mixed(&[("a", 30001, &[1])], &[("b", 30002, &[1])]);
    let lane = start(&server, &missing, Some(first));
    lane.live("b").await;
    until("held", || lane.state("a") == Some(RouteState::Held)).await;
    until("the reason", || {
        let report = lane.report.borrow();
        let fact = report.facts.get("journal");
        fact.is_some_and(|text| text.contains("cannot write"))
    })
    .await;
    let findings = lane.report.borrow().findings.clone();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].code, Code::StateUnwritable);
    assert!(findings[0].message.contains("cannot write"), "{findings:?}");
    until("confirmed", || lane.report.borrow().confirmed_once).await;
    assert!(of(&server, "a").is_empty());
    std::fs::create_dir(&missing).unwrap();
    lane.live("a").await;
    assert_eq!(endpoints(&missing), ["a.test 10.0.0.1:30001"]);
    assert!(lane.report.borrow().findings.is_empty());
}
