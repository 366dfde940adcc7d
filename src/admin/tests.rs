//! The listener over real sockets, with reports made by hand.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::desired::guard::NotPending;
use crate::lifecycle::Clock;
use crate::metrics::{Counter, Counters};
use crate::route::{Lane, ServiceKey};
use crate::status::{
    Drain, LaneReport, RouteReport, RouteState, SourceReport, SourceState, Withdrawn,
};

struct Foundation {
    sources: watch::Sender<SourceReport>,
    lane: watch::Sender<LaneReport>,
    status: Status,
}

fn foundation() -> Foundation {
    let (sources, sources_rx) = watch::channel(SourceReport::default());
    let (_, snapshot) = watch::channel(None);
    let (_, desired) = watch::channel(None);
    let (lane, lane_rx) = watch::channel(LaneReport::new(Lane::Tcp));
    let status =
        Status::new(Clock::start(), sources_rx, desired, vec![lane_rx]).with_snapshot(snapshot);
    Foundation {
        sources,
        lane,
        status,
    }
}

async fn serve(status: Status) -> SocketAddr {
    let mut counters = Counters::default();
    counters.add(Counter::Lists, || 7);
    let metrics = Arc::new(Metrics::new(status.clone(), counters));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (approvals, mut asked) = mpsc::channel(APPROVALS_MAX);
    tokio::spawn(async move {
        while let Some(Approval { plan, answer }) = asked.recv().await {
            let answered = match plan.as_str() {
                "00ff" => Ok(Vec::new()),
                _ => Err(NotPending::Nothing),
            };
            answer.send(answered).unwrap();
        }
    });
    let (drains, mut drain) = mpsc::channel::<DrainRequest>(DRAINS_MAX);
    tokio::spawn(async move {
        while let Some(DrainRequest { drain, answer }) = drain.recv().await {
            let answered = match drain {
                Drain::Unregister => Ok(()),
                Drain::Keep => Err(Drain::Unregister),
            };
            answer.send(answered).unwrap();
        }
    });
    let answers = Answers {
        status,
        approvals,
        drains,
    };
    let app = service(answers, metrics);
    tokio::spawn(async move { axum::serve(listener::Bounded::new(listener), app).await });
    address
}

async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, "GET", path, "").await
}

async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn make_ready(foundation: &Foundation) {
    let source = SourceState {
        required: true,
        synced: true,
        last_heard: Some(Duration::ZERO),
        mode: "watch",
        error: None,
    };
    foundation.sources.send_replace(SourceReport {
        sources: BTreeMap::from([("services", source)]),
        cluster: Some("c".to_owned()),
        findings: Vec::new(),
    });
    foundation.lane.send_modify(|lane| {
        lane.confirmed_once = true;
        let service = ServiceKey {
            namespace: "web".into(),
            name: "db".into(),
        };
        let backends = vec!["10.0.0.1:30001".to_owned()];
        let route = RouteReport {
            service,
            state: RouteState::Live,
            backends,
            since: Duration::ZERO,
        };
        lane.routes.insert("2222".to_owned(), route);
    });
}

#[tokio::test]
async fn ready_lists_what_is_missing_until_nothing_is() {
    let foundation = foundation();
    let address = serve(foundation.status.clone()).await;
    let answer = get(address, "/ready").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(
        answer.contains("source: nothing") && answer.contains("\nlane tcp: not confirmed yet\n")
    );
    assert!(get(address, "/live").await.starts_with("HTTP/1.1 200"));
    make_ready(&foundation);
    assert!(get(address, "/ready").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn the_status_is_read_back_as_it_was_written() {
    let foundation = foundation();
    make_ready(&foundation);
    let address = serve(foundation.status.clone()).await;
    let answer = get(address, "/status.json").await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let report: json::Report = serde_json::from_str(body).unwrap();
    assert_eq!(report.lanes["tcp"].routes["2222"].service, "web/db");
    assert!(report.ready && report.sources["services"].synced);
}

#[tokio::test]
async fn only_a_post_that_names_the_pending_plan_approves() {
    let address = serve(foundation().status).await;
    let answer = ask(address, "POST", "/approve", "00ff\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.ends_with("{\"plan\":\"00ff\",\"routes\":[]}"),
        "{answer}"
    );
    let answer = ask(address, "POST", "/approve", "00fe").await;
    assert!(answer.starts_with("HTTP/1.1 409"), "{answer}");
    assert!(answer.ends_with("{\"pending\":null}"), "{answer}");
    let answer = get(address, "/approve").await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    let answer = ask(address, "POST", "/approve", &"0".repeat(BODY_BYTES_MAX + 1)).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn a_scrape_holds_only_documented_metrics() {
    let foundation = foundation();
    make_ready(&foundation);
    let address = serve(foundation.status.clone()).await;
    let answer = get(address, "/metrics").await;
    for line in [
        "route_sync_routes{lane=\"tcp\",state=\"live\"} 1",
        "route_sync_kubernetes_lists_total 7",
        "route_sync_source_synced{resource=\"services\"} 1",
        "route_sync_propagation_seconds_count{lane=\"tcp\",stage=\"sent\"} 0",
        "route_sync_propagation_seconds_bucket{le=\"+Inf\",lane=\"tcp\",stage=\"confirmed\"} 0",
        "route_sync_config_stale 0",
    ] {
        assert!(answer.contains(line), "{line} not in {answer}");
    }
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut names = Vec::new();
    for line in body.lines().filter(|line| line.starts_with("route_sync_")) {
        let name = line.split(['{', ' ']).next().unwrap();
        let name = name
            .trim_start_matches("route_sync_")
            .trim_end_matches("_total");
        let parts = ["_bucket", "_sum", "_count"];
        let whole = parts.into_iter().find_map(|part| name.strip_suffix(part));
        let row = crate::metrics::METRICS.iter().find(|metric| {
            metric.name == name
                || metric.kind == crate::metrics::Kind::Histogram && Some(metric.name) == whole
        });
        let row = row.unwrap_or_else(|| panic!("`{name}` is not documented"));
        for label in row.labels {
            assert!(
                line.contains(&format!("{label}=\"")),
                "{label} missing in {line}"
            );
        }
        names.push(name.to_owned());
    }
    assert!(
        names
            .iter()
            .any(|name| name == "process_resident_memory_bytes")
    );
}

#[tokio::test]
async fn a_taken_address_stops_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let foundation = foundation();
    let metrics = Arc::new(Metrics::new(foundation.status.clone(), Counters::default()));
    let stop = CancellationToken::new();
    let address = taken.local_addr().unwrap();
    let task = tokio::spawn(run(
        address,
        foundation.status.clone(),
        metrics,
        Words {
            approvals: mpsc::channel(APPROVALS_MAX).0,
            drains: mpsc::channel(DRAINS_MAX).0,
        },
        stop.clone(),
    ));
    tokio::task::yield_now().await;
    assert!(!task.is_finished());
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(30), task)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_drain_tells_what_is_gone_and_what_is_not_and_only_a_restart_takes_it_back() {
    let foundation = foundation();
    make_ready(&foundation);
    let address = serve(foundation.status.clone()).await;
    foundation.lane.send_modify(|lane| {
        let mut other = lane.routes["2222"].clone();
        other.state = RouteState::Held;
        lane.routes.insert("3333".to_owned(), other);
        lane.withdrawn = Some(Withdrawn {
            proven: true,
            ..Withdrawn::default()
        });
    });
    let answer = ask(address, "POST", "/drain", "unregister").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let gone =
        r#""complete":true,"routes":[{"lane":"tcp","name":"2222","service":"web/db"}],"left":[]"#;
    assert!(answer.contains(gone), "{answer}");
    let answer = ask(address, "POST", "/drain", "keep").await;
    assert!(answer.starts_with("HTTP/1.1 409"), "{answer}");
    assert!(answer.contains("only a restart takes back"), "{answer}");
    let answer = ask(address, "POST", "/drain", "everything").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}
