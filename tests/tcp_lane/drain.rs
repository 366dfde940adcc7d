//! The lane that is to withdraw everything.

use super::*;

fn drained() -> Arc<Desired> {
    let mut table = Desired::clone(&want(&[]));
    table.drained = true;
    Arc::new(table)
}

fn is_gone(report: &LaneReport) -> bool {
    let withdrawn = report.withdrawn.as_ref();
    withdrawn.is_some_and(|withdrawn| withdrawn.proven && withdrawn.left.is_empty())
}

fn left(report: &LaneReport) -> Vec<&str> {
    let withdrawn = report.withdrawn.iter();
    withdrawn
        .flat_map(|withdrawn| withdrawn.left.iter().map(String::as_str))
        .collect()
}

#[tokio::test]
async fn five_hundred_rows_go_without_any_budget_and_a_strangers_stays() {
    let routes: Vec<_> = (2000..2500).map(|port| (port, 1)).collect();
    let stranger = (2000, "192.0.2.7".to_owned(), 80, 0, "g".to_owned());
    let lane = Subject::start(120, &routes, |api| {
        for (port, _) in &routes {
            api.insert(key(*port, 1, -1), Some(&us()), Duration::from_mins(1));
        }
        api.insert(stranger.clone(), Some("other"), Duration::from_mins(10));
    })
    .await;
    lane.until_report("in sync", |report| report.confirmed_once)
        .await;
    // Eight rows a second would take twice as long as this waits.
    lane.desired.send_replace(Some(drained()));
    lane.until_report("gone", is_gone).await;
    let api = lane.api().lock();
    assert_eq!(api.rows.keys().collect::<Vec<_>>(), [&stranger]);
    let deletes = api
        .calls
        .iter()
        .filter(|call| call.path.ends_with("delete"));
    assert!(deletes.clone().count() >= 5);
    assert!(deletes.clone().all(|call| call.ports.len() <= 100));
}

#[tokio::test]
async fn what_appears_after_it_was_proven_gone_is_another_processs() {
    let lane = Subject::start(120, &[(2000, 1)], |_| {}).await;
    lane.until_ports(&[2000]).await;
    lane.desired.send_replace(Some(drained()));
    lane.until_report("gone", is_gone).await;
    let row = key(2000, 1, -1);
    let life = Duration::from_mins(1);
    lane.api().lock().insert(row, Some(&us()), life);
    lane.holds(Duration::from_secs(2), "it stays", |api| {
        api.ports() == BTreeSet::from([2000])
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_withdrawn_is_named_until_it_can() {
    let lane = Subject::start(120, &[(2000, 1), (2001, 2)], |_| {}).await;
    lane.until("all rows", |api| api.rows.len() == 3).await;
    lane.api().lock().down = Some((503, "down"));
    lane.desired.send_replace(Some(drained()));
    let report = lane
        .until_report("left", |report| has(report, "lane-down"))
        .await;
    assert_eq!(left(&report), ["2000", "2001"]);
    // So long that reading was given up, were there anything to write blindly.
    tokio::time::sleep(Duration::from_secs(2)).await;
    lane.api().lock().down = None;
    lane.until_report("gone", is_gone).await;
    assert!(lane.api().lock().rows.is_empty());
}

#[tokio::test]
async fn without_the_right_to_read_deletions_are_made_but_not_proven() {
    let lane = Subject::start(120, &[(2000, 1)], |api| {
        api.scopes.remove("routing.routes.read");
    })
    .await;
    lane.until_ports(&[2000]).await;
    lane.desired.send_replace(Some(drained()));
    lane.until_ports(&[]).await;
    let report = lane
        .until_report("nothing known is left", |report| {
            report.withdrawn.is_some() && left(report).is_empty()
        })
        .await;
    let withdrawn = report.withdrawn.unwrap();
    assert!(!withdrawn.proven);
    assert!(withdrawn.why.unwrap().contains("may not be read"));
}

#[tokio::test]
async fn a_restless_service_is_withdrawn_like_any_other() {
    let lane = Subject::start(120, &[(2000, 1), (2001, 1)], |_| {}).await;
    lane.until_ports(&[2000, 2001]).await;
    for flip in 0..20 {
        let both: &[(u16, u16)] = &[(2000, 1), (2001, 1)];
        lane.want(if flip % 2 == 0 { &both[1..] } else { both });
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    lane.until_report("held", |report| has(report, "flapping"))
        .await;
    lane.desired.send_replace(Some(drained()));
    lane.until_report("gone", is_gone).await;
    assert!(lane.api().lock().rows.is_empty());
}

#[tokio::test]
async fn a_start_after_it_refreshes_nothing_of_what_was_left() {
    let (lane, _rows) = warm::start(120, warm::warm(Some(&[]), &[2000]), |api| {
        api.insert(key(2000, 1, -1), Some(&us()), Duration::from_secs(3));
    })
    .await;
    lane.until_ports(&[]).await;
    assert_eq!(lane.counters.rows_refreshed.load(Relaxed), 0);
    // What Kubernetes asks for is announced as ever.
    lane.want(&[(2000, 1)]);
    lane.until_ports(&[2000]).await;
}
