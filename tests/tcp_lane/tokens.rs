//! Tokens and rights: a rotated key, a missing scope, and what goes on without the right to read.

use super::*;

#[tokio::test]
async fn a_token_of_a_rotated_key_is_replaced_and_the_request_sent_again() {
    // At its usual pace the lane sends nothing else meanwhile.
    let lane = Subject::start_at(Pace::default(), 120, &[(2000, 1)], |_| {}).await;
    lane.until_ports(&[2000]).await;
    lane.api().lock().key = 2;
    lane.want(&[(2000, 1), (2001, 1)]);
    lane.until_ports(&[2000, 2001]).await;
    let api = lane.api().lock();
    assert_eq!(api.tokens_issued, 2);
    // The stream of events begins when it likes.
    let calls = api
        .calls
        .iter()
        .filter(|call| !call.path.ends_with("/events"));
    let after: Vec<_> = calls
        .skip_while(|call| call.status != 401)
        .map(|call| (call.path.as_str(), call.status))
        .collect();
    let create = "/routing/v1/tcp_routes/create";
    assert_eq!(after, [(create, 401), ("/oauth/token", 200), (create, 201)]);
    drop(api);
    assert_eq!(lane.report.borrow().consecutive_failures, 0);
}

#[tokio::test]
async fn a_missing_write_scope_is_named_and_heals() {
    let lane = Subject::start(120, &[(2000, 1)], |api| {
        api.scopes.remove("routing.routes.write");
    })
    .await;
    let report = lane
        .until_report("named", |report| has(report, "scope-missing"))
        .await;
    assert!(message(&report, "scope-missing").contains("routing.routes.write"));
    lane.api().lock().scopes.insert("routing.routes.write");
    lane.until_ports(&[2000]).await;
    lane.until_report("healed", |report| report.findings.is_empty())
        .await;
}

#[tokio::test]
async fn without_the_right_to_read_it_runs_blind_and_deletes_only_its_own() {
    let lane = Subject::start(120, &[(2000, 1)], |api| {
        api.scopes.remove("routing.routes.read");
        api.insert(key(2500, 1, -1), None, Duration::from_mins(10));
    })
    .await;
    let report = lane
        .until_report("said", |report| has(report, "scope-missing"))
        .await;
    assert!(message(&report, "scope-missing").contains("routing.routes.read"));
    lane.until_ports(&[2000, 2500]).await;
    lane.until_report("live", |report| report.confirmed_once)
        .await;
    lane.want(&[]);
    lane.until_ports(&[2500]).await;
}

#[tokio::test]
async fn without_the_right_to_read_an_absent_uaa_costs_no_row_while_the_token_lives() {
    // Each retry of the list is refused; that must not cost the token that writes are made with.
    let lane = Subject::start(BRIEF, &[(2000, 1)], |api| {
        api.scopes.remove("routing.routes.read");
    })
    .await;
    lane.until_ports(&[2000]).await;
    lane.api().lock().uaa_down = true;
    let refused = lane.counters.unauthorized.load(Relaxed);
    lane.holds(A_LIFE, "the row lives", |api| {
        api.ports() == BTreeSet::from([2000])
    })
    .await;
    assert!(
        lane.counters.unauthorized.load(Relaxed) > refused,
        "the list was tried meanwhile"
    );
}
