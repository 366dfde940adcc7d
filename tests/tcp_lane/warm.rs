//! A start that goes on with what the last process left, before anyone tells what is wanted now.

use route_sync::plan::{NO_TLS, TcpRow};
use route_sync::state::Warm;

use super::*;

fn row(port: u16) -> TcpRow {
    TcpRow {
        port: RouterPort::new(port).unwrap(),
        ip: "10.0.0.1".to_owned(),
        backend_port: port + 30_000,
        tls_port: NO_TLS,
        sni: None,
        group: "g".to_owned(),
    }
}

pub(super) fn warm(table: Option<&[(u16, u16)]>, rows: &[u16]) -> Warm {
    Warm {
        table: table.map(want),
        rows: rows.iter().map(|port| row(*port)).collect(),
        ..Warm::default()
    }
}

pub(super) type Ledger = watch::Receiver<BTreeSet<TcpRow>>;

pub(super) async fn start(
    ttl: u64,
    warm: Warm,
    prepare: impl FnOnce(&mut Api),
) -> (Subject, Ledger) {
    let foundation = Running::start().await;
    prepare(&mut foundation.api.lock());
    let url = foundation.server.uri();
    let ledger = watch::Sender::new(warm.rows.clone());
    let rows = ledger.subscribe();
    let prepare = |lane: TcpLane| lane.with_state(warm, ledger);
    (
        Subject::start_prepared(&url, foundation, ttl, None, prepare),
        rows,
    )
}

fn noted(rows: &Ledger) -> BTreeSet<u16> {
    rows.borrow().iter().map(|row| row.port.get()).collect()
}

#[tokio::test]
async fn rows_live_on_and_lapsed_ones_come_back_as_soon_as_there_is_a_token() {
    let (lane, rows) = start(
        BRIEF,
        warm(Some(&[(2000, 1), (2001, 1)]), &[2000, 2001]),
        |api| {
            api.uaa_down = true;
            api.insert(key(2000, 1, -1), Some(&us()), Duration::from_secs(20));
            // Nobody wants it in the state; what the last process did after its last write is not known.
            api.insert(key(2002, 1, -1), Some(&us()), Duration::from_secs(20));
        },
    )
    .await;
    lane.until_report("uaa is missed", |report| has(report, "lane-down"))
        .await;
    lane.api().lock().uaa_down = false;
    lane.until_ports(&[2000, 2001, 2002]).await;
    // Through a TTL without a word of Kubernetes.
    lane.holds(A_LIFE, "all rows live", |api| api.ports().len() == 3)
        .await;
    for port in [2000, 2002] {
        lane.until("renewed again and again", |api| {
            api.creates().filter(|it| it.ports.contains(&port)).count() > 2
        })
        .await;
    }
    assert_eq!(
        lane.report.borrow().facts["source"],
        "the last process's state"
    );
    lane.want(&[(2001, 1)]);
    lane.until_ports(&[2001]).await;
    assert!(!lane.report.borrow().facts.contains_key("source"));
    lane.until("noted", |_| noted(&rows) == BTreeSet::from([2001]))
        .await;
}

#[tokio::test]
async fn rows_without_our_mark_are_ours_by_the_state_alone() {
    let (lane, rows) = start(120, warm(None, &[2000]), |api| {
        api.insert(key(2000, 1, -1), None, Duration::from_mins(1));
        api.insert(key(2001, 1, -1), None, Duration::from_mins(1));
    })
    .await;
    lane.until("read", |api| {
        api.calls
            .iter()
            .any(|call| call.path == "/routing/v1/tcp_routes")
    })
    .await;
    lane.holds(Duration::from_millis(500), "nothing is known yet", |api| {
        api.ports() == BTreeSet::from([2000, 2001]) && api.creates().count() == 0
    })
    .await;
    assert_eq!(noted(&rows), BTreeSet::from([2000]));
    lane.want(&[(2005, 1)]);
    lane.until_ports(&[2001, 2005]).await;
    lane.until("noted", |_| noted(&rows) == BTreeSet::from([2005]))
        .await;
}

#[tokio::test]
async fn rows_of_the_cluster_before_go_once_another_one_was_approved() {
    let (lane, rows) = start(120, warm(Some(&[(2000, 1)]), &[2000]), |api| {
        api.insert(key(2000, 1, -1), Some(&us()), Duration::from_mins(1));
        // Under the same mark, but nobody here ever wrote it: the old cluster may have a controller of its own.
        api.insert(key(2001, 1, -1), Some(&us()), Duration::from_mins(1));
    })
    .await;
    lane.until_report("taken over", |report| {
        report.facts.get("instance id") == Some(&us())
    })
    .await;
    let other = Desired {
        cluster: ClusterId("another".to_owned()),
        ..Desired::clone(&want(&[(2005, 1)]))
    };
    lane.desired.send_replace(Some(Arc::new(other)));
    lane.until_ports(&[2001, 2005]).await;
    lane.until("noted", |_| noted(&rows) == BTreeSet::from([2005]))
        .await;
    lane.until_report("its own mark", |report| {
        let mark = InstanceId::of(&ClusterId("another".to_owned()));
        report.facts.get("instance id").map(String::as_str) == Some(mark.as_str())
    })
    .await;
}

#[tokio::test]
async fn who_cannot_read_renews_rows_of_the_state_without_waiting_for_older_jobs() {
    let (lane, rows) = start(120, warm(Some(&[(2000, 1)]), &[2000]), |api| {
        api.scopes.remove("routing.routes.read");
    })
    .await;
    lane.until_ports(&[2000]).await;
    lane.want(&[]);
    lane.until_ports(&[]).await;
    lane.until("noted", |_| noted(&rows).is_empty()).await;
}
