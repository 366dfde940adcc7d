//! Other settings while the lane runs: proven by a client of their own before the first is given up.

use super::*;

use route_sync::publish::tcp::TcpSettings;
use route_sync::settings::Settings;

/// A lane that follows, and what it follows.
async fn following(ttl: u64, routes: &[(u16, u16)]) -> (Subject, Settings<TcpSettings>) {
    let foundation = Running::start().await;
    let (api, uaa) = config(&foundation.server.uri(), ttl);
    let settings = Settings::new(TcpSettings { api, uaa });
    let follower = settings.follower();
    let url = foundation.server.uri();
    let prepare = |lane: TcpLane| lane.with_settings(follower);
    let subject = Subject::start_prepared(&url, foundation, ttl, Some(want(routes)), prepare);
    (subject, settings)
}

/// Waits until this can be said of why the settings are not in use.
async fn until_unused(
    settings: &mut Settings<TcpSettings>,
    check: impl Fn(&Option<String>) -> bool,
) {
    let told = async {
        while !check(&settings.unused()) {
            settings.told().await;
        }
    };
    let told = tokio::time::timeout(DEADLINE, told).await;
    assert!(told.is_ok(), "not yet: {:?}", settings.unused());
}

#[tokio::test]
async fn a_client_that_gets_no_token_costs_no_row_and_is_told_until_one_does() {
    // Rows of this life would lapse within the time this takes.
    let (lane, mut settings) = following(BRIEF, &[(2000, 1)]).await;
    lane.until_ports(&[2000]).await;
    let (api, mut uaa) = config(&lane.foundation.server.uri(), BRIEF);
    // Nobody listens there.
    uaa.url = "http://127.0.0.1:9".to_owned();
    settings.want(TcpSettings {
        api: api.clone(),
        uaa: uaa.clone(),
    });
    let told = |why: &Option<String>| {
        let told = why.as_deref().unwrap_or_default();
        told.contains("UAA cannot be reached")
    };
    until_unused(&mut settings, told).await;
    lane.holds(A_LIFE, "the row lives", |api| {
        api.ports() == BTreeSet::from([2000])
    })
    .await;
    assert!(!has(&lane.report.borrow(), "lane-down"));

    let tokens = lane.api().lock().tokens_issued;
    uaa.url = lane.foundation.server.uri();
    uaa.client_id = "other".to_owned();
    settings.want(TcpSettings { api, uaa });
    until_unused(&mut settings, Option::is_none).await;
    assert_eq!(lane.api().lock().tokens_issued, tokens + 1);
    lane.want(&[(2000, 1), (2001, 1)]);
    lane.until_ports(&[2000, 2001]).await;
}

#[tokio::test]
async fn ports_reserved_meanwhile_are_refused_and_those_that_live_stay_till_the_next_start() {
    let (lane, mut settings) = following(120, &[(2000, 1)]).await;
    lane.until_ports(&[2000]).await;
    let (mut api, uaa) = config(&lane.foundation.server.uri(), 120);
    let tokens = lane.api().lock().tokens_issued;
    api.reserved_ports = PortRanges::parse("2001").unwrap();
    settings.want(TcpSettings {
        api: api.clone(),
        uaa: uaa.clone(),
    });
    until_unused(&mut settings, Option::is_none).await;
    lane.want(&[(2000, 1), (2001, 1), (2002, 1)]);
    lane.until_ports(&[2000, 2002]).await;
    lane.until_report("said", |report| has(report, "port-reserved"))
        .await;
    assert_eq!(
        lane.api().lock().tokens_issued,
        tokens,
        "the client is the same"
    );

    api.reserved_ports = PortRanges::parse("2000-2001").unwrap();
    settings.want(TcpSettings { api, uaa });
    let told = |why: &Option<String>| {
        why.as_ref()
            .is_some_and(|why| why.contains("live on `2000`"))
    };
    until_unused(&mut settings, told).await;
    lane.want(&[(2000, 2), (2001, 1), (2002, 1)]);
    lane.until("both backends", |api| {
        api.rows.keys().filter(|row| row.0 == 2000).count() == 2
    })
    .await;
    lane.until_ports(&[2000, 2002]).await;

    // Once its route has gone it is reserved like any other.
    lane.want(&[(2002, 1)]);
    lane.until_ports(&[2002]).await;
    until_unused(&mut settings, Option::is_none).await;
    lane.want(&[(2000, 1), (2002, 1)]);
    lane.until_report("it is refused", |report| {
        let reserved = report
            .findings
            .iter()
            .filter(|it| it.code.as_str() == "port-reserved");
        reserved.count() == 1
    })
    .await;
    lane.until_ports(&[2002]).await;
}

#[tokio::test]
async fn the_headroom_is_the_life_left_of_the_oldest_row() {
    let (lane, _settings) = following(120, &[(2000, 1), (2001, 1)]).await;
    let report = lane
        .until_report("known", |report| report.lapses_at.is_some())
        .await;
    let life = Duration::from_mins(2);
    let lapses_at = report.lapses_at.unwrap();
    assert!(
        lapses_at >= life && lapses_at <= life + DEADLINE,
        "{lapses_at:?}"
    );
    lane.until_ports(&[2000, 2001]).await;
    lane.want(&[]);
    lane.until_report("nothing can lapse", |report| report.lapses_at.is_none())
        .await;
}
