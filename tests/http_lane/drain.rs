//! The lane that is to withdraw everything.

use super::*;
use route_sync::status::Withdrawn;

pub(super) fn drained() -> Arc<Desired> {
    let mut table = Desired::clone(&table(&[]));
    table.drained = true;
    Arc::new(table)
}

fn withdrawn(lane: &Running) -> Withdrawn {
    lane.report.borrow().withdrawn.clone().unwrap_or_default()
}

fn withdrawals(server: &Server, of: &str) -> usize {
    let all = brief(&server.routes());
    all.iter().filter(|text| *text == of).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_withdrawn_three_times_before_it_counts_as_gone() {
    let server = Server::start(Behaviour::default()).await;
    let first = table(&[("a", 30001, &[1]), ("b", 30002, &[1, 2])]);
    let lane = Running::start(config(&[server.addr], None, None), Some(first));
    for host in ["a", "b"] {
        lane.live(host).await;
    }
    assert_eq!(lane.report.borrow().withdrawn, None);
    lane.desired.send_replace(Some(drained()));
    until("told what is left", || withdrawn(&lane).left.len() == 2).await;
    until("proven", || withdrawn(&lane).proven).await;
    assert!(withdrawn(&lane).left.is_empty());
    for of in ["-a@1:30001", "-b@1:30002", "-b@2:30002"] {
        assert!(withdrawals(&server, of) >= 3, "{of}");
    }
    // It goes on saying so.
    until("again", || withdrawals(&server, "-a@1:30001") >= 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_proven_while_there_is_no_connection() {
    let mut server = Server::start(Behaviour::default()).await;
    let first = table(&[("a", 30001, &[1])]);
    let lane = Running::start(config(&[server.addr], None, None), Some(first));
    lane.live("a").await;
    server.stop().await;
    until("loss seen", || lane.state("a") == Some(RouteState::Pending)).await;
    lane.desired.send_replace(Some(drained()));
    until("left", || !withdrawn(&lane).left.is_empty()).await;
    let Withdrawn { left, proven, why } = withdrawn(&lane);
    assert_eq!((left.first().unwrap().as_str(), proven), ("a.test", false));
    assert_eq!(why.unwrap(), "there is no connection to NATS");
    server.listen().await;
    until("proven", || withdrawn(&lane).proven).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_proven_where_the_server_refuses_the_inbox_or_the_withdrawals() {
    for behaviour in [
        Behaviour {
            deny_inbox: true,
            ..Behaviour::default()
        },
        Behaviour {
            deny_publish: Some("router.unregister"),
            ..Behaviour::default()
        },
    ] {
        let server = Server::start(behaviour).await;
        let first = table(&[("a", 30001, &[1])]);
        let lane = Running::start(config(&[server.addr], None, None), Some(first));
        lane.live("a").await;
        lane.desired.send_replace(Some(drained()));
        until("told", || !withdrawn(&lane).left.is_empty()).await;
        // Past the third time it is said.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let Withdrawn { left, proven, .. } = withdrawn(&lane);
        assert_eq!((left.len(), proven), (1, false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_route_everything_is_gone_at_once() {
    let server = Server::start(Behaviour::default()).await;
    let lane = Running::start(config(&[server.addr], None, None), Some(table(&[])));
    lane.desired.send_replace(Some(drained()));
    until("proven", || withdrawn(&lane).proven).await;
}
