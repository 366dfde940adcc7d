//! A start that goes on with what the last process left, before anyone tells what is wanted now.

use route_sync::state::{Foundation, HttpEntry, Warm, Withdrawal};

use super::*;

fn warm(routes: &[(&str, u16, &[u8])], withdrawals: &[(&str, u16, u8)]) -> Warm {
    let withdrawal = |(host, port, node): &(&str, u16, u8)| Withdrawal {
        uri: Arc::new(Uri::parse(&format!("{host}.test")).unwrap()),
        addr: SocketAddr::from(([10, 0, 0, *node], *port)),
        tls: false,
    };
    Warm {
        table: Some(table(routes)),
        withdrawals: withdrawals.iter().map(withdrawal).collect(),
        ..Warm::default()
    }
}

struct Started {
    lane: Running,
    ledger: watch::Receiver<HttpEntry>,
}

fn start(server: &Server, warm: Warm) -> Started {
    let ledger = watch::Sender::new(HttpEntry::default());
    let receiver = ledger.subscribe();
    let inheritance = http::Inheritance {
        warm,
        ledger: Some(ledger),
        ..http::Inheritance::default()
    };
    let lane = Running::start_with(config(&[server.addr], None, None), inheritance, None);
    Started {
        lane,
        ledger: receiver,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_of_the_last_process_are_announced_before_kubernetes_answers_and_beat_on() {
    let behaviour = Behaviour {
        routers: vec![r#"{"id":"r1","minimumRegisterIntervalInSeconds":1}"#.to_owned()],
        ..Behaviour::default()
    };
    let server = Server::start(behaviour).await;
    let Started { lane, ledger } = start(&server, warm(&[("a", 30001, &[1, 2])], &[]));
    lane.live("a").await;
    assert_eq!(
        lane.report.borrow().facts["source"],
        "the last process's state"
    );
    let beats = || {
        let all = brief(&server.routes());
        all.iter().filter(|text| *text == "+a@1:30001").count()
    };
    until("beats", || beats() >= 3).await;
    assert!(
        brief(&server.routes())
            .iter()
            .all(|text| text.starts_with('+'))
    );
    // It is the last process's still, and need not be noted.
    assert!(ledger.borrow().applied.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_left_while_nobody_ran_is_withdrawn_by_the_first_table_and_nothing_before() {
    let server = Server::start(Behaviour::default()).await;
    let last = [("gone", 30001, &[1][..]), ("stays", 30002, &[1])];
    let Started { lane, ledger } = start(&server, warm(&last, &[]));
    lane.live("gone").await;
    lane.live("stays").await;
    let withdrawals = || {
        let all = brief(&server.routes()).into_iter();
        all.filter(|text| text.starts_with('-')).collect::<Vec<_>>()
    };
    assert!(withdrawals().is_empty());
    lane.want(&[("stays", 30002, &[1])]);
    until("withdrawn, again", || withdrawals().len() >= 2).await;
    assert!(withdrawals().iter().all(|text| text == "-gone@1:30001"));
    assert!(!lane.report.borrow().facts.contains_key("source"));
    let noted = || {
        let entry = ledger.borrow().clone();
        entry
            .applied
            .is_some_and(|table| table.table.http.len() == 1)
            && entry.withdrawals.len() == 1
    };
    until("table and withdrawal noted together", noted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_comes_at_once_still_withdraws_what_left() {
    let server = Server::start(Behaviour::default()).await;
    let inheritance = http::Inheritance {
        warm: warm(&[("gone", 30001, &[1])], &[]),
        ledger: None,
        ..http::Inheritance::default()
    };
    let config = config(&[server.addr], None, None);
    let now = table(&[("new", 30002, &[1])]);
    let lane = Running::start_with(config, inheritance, Some(now));
    lane.live("new").await;
    until("withdrawn", || {
        brief(&server.routes()).contains(&"-gone@1:30001".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_withdrawals_go_on_unless_their_key_is_wanted_again() {
    let server = Server::start(Behaviour::default()).await;
    let pending = [("old", 30003, 1), ("back", 30004, 1)];
    let Started { lane, ledger } = start(&server, warm(&[("a", 30001, &[1])], &pending));
    lane.live("a").await;
    let count = |wanted: &str| {
        let all = brief(&server.routes());
        all.iter().filter(|text| *text == wanted).count()
    };
    until("both withdrawn", || {
        count("-old@1:30003") >= 1 && count("-back@1:30004") >= 1
    })
    .await;
    lane.want(&[("a", 30001, &[1]), ("back", 30004, &[1])]);
    lane.live("back").await;
    until("one goes on", || count("-old@1:30003") >= 3).await;
    let last = brief(&server.routes());
    let mut of_back = last.iter().filter(|text| text.contains("back@"));
    assert_eq!(of_back.next_back().unwrap(), "+back@1:30004");
    let noted = || {
        let entry = ledger.borrow();
        let mut uris = entry.withdrawals.iter().map(|key| key.uri.to_string());
        entry.applied.is_some() && uris.next().as_deref() == Some("old.test") && uris.len() == 0
    };
    until("one noted", noted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_keys_of_the_last_process_stay_on_record_until_kubernetes_answers() {
    let server = Server::start(Behaviour::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let tls = |routes: &[(&str, u16, &[u8])]| {
        let mut desired = Desired::clone(&table(routes));
        for route in desired.table.http.values_mut() {
            route.options.tls_server_name = Some(Hostname::parse("web.internal").unwrap());
        }
        Arc::new(desired)
    };
    let settings = || NatsConfig {
        state_dir: Some(folder.path().to_owned()),
        ..config(&[server.addr], None, None)
    };
    let record = || std::fs::read_to_string(folder.path().join("http-tls.json")).unwrap();
    // `late` was announced after the last state was written.
    let all = tls(&[("a", 30001, &[1]), ("late", 30002, &[1])]);
    let first = Running::start(settings(), Some(all.clone()));
    first.live("late").await;
    drop(first);
    let before = record();
    let inheritance = http::Inheritance {
        warm: Warm {
            table: Some(tls(&[("a", 30001, &[1])])),
            ..Warm::default()
        },
        ledger: None,
        ..http::Inheritance::default()
    };
    let sent = server.routes().len();
    let lane = Running::start_with(settings(), inheritance, None);
    lane.live("a").await;
    until("confirmed", || lane.report.borrow().confirmed_once).await;
    assert!(
        server.routes()[sent..]
            .iter()
            .all(|(_, sign, _)| *sign == '+')
    );
    assert_eq!(record(), before);
    lane.desired.send_replace(Some(all));
    lane.live("late").await;
    assert!(
        server.routes()[sent..]
            .iter()
            .all(|(_, sign, _)| *sign == '+')
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_announces_nothing_leaves_the_lane_waiting_for_kubernetes() {
    let server = Server::start(Behaviour::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let place = route_sync::state::Place {
        dir: folder.path().to_owned(),
        max_age: Duration::from_mins(10),
    };
    std::fs::write(folder.path().join("routes.jsonl"), "cut").unwrap();
    let opened = route_sync::state::open(place, Foundation::default()).await;
    let Started { lane, .. } = start(&server, opened.warm);
    until("connected", || {
        lane.counters.connected.load(Ordering::Relaxed) == 1
    })
    .await;
    assert!(server.routes().is_empty());
    lane.want(&[("a", 30001, &[1])]);
    lane.live("a").await;
}
