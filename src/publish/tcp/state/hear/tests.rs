//! What is made of events, step by step and without any I/O.

use super::super::tests::{
    all_confirmed, at, blind, confirm, created, list, ready, refreshed, want, wrote,
};
use super::super::{Done, Kind, Op};
use super::*;
use crate::publish::tcp::client::ApiError;
use crate::publish::tcp::client::RequestId;
use crate::route::RouterPort;

const STRANGER: Option<&str> = Some("somebody-else");

fn millis(millis: u64) -> Uptime {
    Duration::from_millis(millis)
}

fn row(port: u16) -> TcpRow {
    TcpRow {
        port: RouterPort::new(port).unwrap(),
        ip: "10.0.0.1".to_owned(),
        backend_port: port + 30_000,
        tls_port: -1,
        sni: None,
        group: "g".to_owned(),
    }
}

fn foreign(port: u16) -> TcpRow {
    TcpRow {
        ip: "192.0.2.7".to_owned(),
        ..row(port)
    }
}

fn upsert(row: TcpRow, stamp: Option<&str>) -> Event {
    Event::Upsert(row, stamp.map(ToOwned::to_owned))
}

fn us(state: &State) -> Option<&str> {
    state.instance.as_ref().map(crate::plan::InstanceId::as_str)
}

fn hear(state: &mut State, event: Event, now: Uptime) -> Option<Uptime> {
    state.hear(Heard::Events(vec![event]), now)
}

fn drift(state: &State) -> u64 {
    state.counters.drift.load(Relaxed)
}

fn has(state: &mut State, code: &str, now: Uptime) -> bool {
    let findings = state.report(now).findings;
    findings.iter().any(|finding| finding.code.as_str() == code)
}

fn lists(ops: &[Op]) -> usize {
    ops.iter().filter(|op| matches!(op, Op::List)).count()
}

/// A lane at rest whose rows stand since second 0, with the stream open and everything listed.
fn settled(ports: &[u16]) -> State {
    let mut state = ready(ports);
    let (ops, _) = state.turn(None, at(0));
    confirm(&mut state, ops, at(0));
    state.hear(Heard::Open, at(1));
    let (ops, _) = state.turn(None, at(1));
    assert_eq!(lists(&ops), 1, "a new stream has missed what went before");
    let rows = state.image.clone().unwrap();
    list(&mut state, Ok(rows), at(1));
    rest(&mut state, at(1));
    state
}

/// Nothing is asked for.
fn rest(state: &mut State, now: Uptime) {
    let (ops, _) = state.turn(None, now);
    assert!(ops.is_empty(), "{ops:?}");
}

/// What is asked for, as numbers of lists and deletes, and the ports of creates.
fn turn(state: &mut State, now: Uptime) -> (usize, usize, Vec<u16>) {
    let (ops, _) = state.turn(None, now);
    let deletes = ops.iter().filter(|op| matches!(op, Op::Delete { .. }));
    (lists(&ops), deletes.count(), created(&ops))
}

#[test]
fn echoes_of_our_own_writes_cost_nothing_whether_before_or_after_the_answer() {
    for late in [false, true] {
        let mut state = settled(&[2000]);
        let stamp = us(&state).map(ToOwned::to_owned);
        let (ops, _) = state.turn(None, at(31));
        assert_eq!(refreshed(&ops), [2000]);
        let echo = |state: &mut State, now| {
            let echo = upsert(row(2000), stamp.as_deref());
            assert_eq!(hear(state, echo, now), None);
        };
        if !late {
            echo(&mut state, at(31));
        }
        confirm(&mut state, ops, at(31));
        if late {
            echo(&mut state, at(31));
        }
        rest(&mut state, at(31));
        rest(&mut state, at(33));

        // New, with its echo before the image knows it.
        state.adopt(want(&[2000, 2001]), at(40));
        let (ops, _) = state.turn(None, at(40));
        assert_eq!(created(&ops), [2001]);
        let echo = upsert(row(2001), stamp.as_deref());
        assert_eq!(hear(&mut state, echo, at(40)), None);
        confirm(&mut state, ops, at(40));
        rest(&mut state, at(41));
        assert_eq!(state.counters.rows_added.load(Relaxed), 2);

        // Gone, with a late echo of its creation too.
        state.adopt(want(&[2000]), at(50));
        let (ops, _) = state.turn(None, at(50));
        assert!(matches!(ops[..], [Op::Delete { .. }]), "{ops:?}");
        let events = [
            upsert(row(2001), stamp.as_deref()),
            Event::Delete(row(2001)),
        ];
        if !late {
            assert_eq!(state.hear(Heard::Events(events.to_vec()), at(50)), None);
        }
        for op in ops {
            wrote(&mut state, op, all_confirmed, at(50));
        }
        if late {
            state.hear(Heard::Events(events.to_vec()), at(50));
        }
        // The list that verifies a deletion, and nothing else.
        assert_eq!(turn(&mut state, at(51)), (1, 0, vec![]));
        let rows = state.image.clone().unwrap();
        list(&mut state, Ok(rows), at(51));
        rest(&mut state, at(52));
        assert_eq!(drift(&state), 0);
    }
}

#[test]
fn a_row_that_somebody_deletes_is_restored_at_once_and_without_a_list() {
    let mut state = settled(&[2000, 2001]);
    let when = hear(&mut state, Event::Delete(row(2000)), at(10)).unwrap();
    assert!(when < at(11), "{when:?}");
    assert_eq!(turn(&mut state, when), (0, 0, vec![2000]));
    assert_eq!(drift(&state), 1);
}

#[test]
fn a_row_that_lapsed_is_restored_and_is_nobodys_intention() {
    let mut state = settled(&[2000]);
    for _ in 0..20 {
        // Confirmed at 0, and never since.
        let when = hear(&mut state, Event::Delete(row(2000)), at(131)).unwrap();
        state.settle(when, &mut at(0));
        let stamp = us(&state).map(ToOwned::to_owned);
        hear(&mut state, upsert(row(2000), stamp.as_deref()), at(131));
    }
    let when = hear(&mut state, Event::Delete(row(2000)), at(131)).unwrap();
    assert_eq!(turn(&mut state, when), (0, 0, vec![2000]));
    assert_eq!(drift(&state), 21);
    assert!(state.journal.contested.is_empty());
}

#[test]
fn a_deletion_that_crosses_a_refresh_is_believed_once_no_echo_follows() {
    for echoed in [false, true] {
        let mut state = settled(&[2000]);
        let (ops, _) = state.turn(None, at(31));
        assert_eq!(refreshed(&ops), [2000]);
        hear(&mut state, Event::Delete(row(2000)), at(31));
        confirm(&mut state, ops, at(31));
        let (ops, wake) = state.turn(None, at(31));
        assert!(ops.is_empty() && wake <= at(32), "{ops:?} {wake:?}");
        if echoed {
            // The refresh came after it and wrote the row anew.
            let stamp = us(&state).map(ToOwned::to_owned);
            hear(
                &mut state,
                upsert(row(2000), stamp.as_deref()),
                millis(31_010),
            );
        }
        let (ops, _) = state.turn(None, at(32));
        assert_eq!(created(&ops).is_empty(), echoed, "{ops:?}");
        assert_eq!(drift(&state), u64::from(!echoed));
    }
}

#[test]
fn after_five_rounds_in_ten_minutes_a_row_is_left_alone_and_told() {
    let mut state = settled(&[2000, 2001]);
    let mut now = at(2);
    for _ in 0..ROUNDS_MAX {
        hear(&mut state, Event::Delete(row(2000)), now);
        let (ops, _) = state.turn(None, now + TOGETHER);
        assert_eq!(created(&ops), [2000]);
        confirm(&mut state, ops, now + TOGETHER);
        now += at(2);
    }
    hear(&mut state, Event::Delete(row(2000)), now);
    let (ops, _) = state.turn(None, now + TOGETHER);
    assert_eq!(created(&ops), Vec::<u16>::new(), "the sixth");
    assert!(has(&mut state, "route-contested", now));
    // Others are refreshed meanwhile, and the row has another chance when the first round is ten minutes old.
    now = at(1) + ROUNDS_WINDOW;
    let (ops, wake) = state.turn(None, now);
    assert_eq!(refreshed(&ops), [2001]);
    assert!(wake <= at(2) + ROUNDS_WINDOW, "{wake:?}");
    now = at(2) + ROUNDS_WINDOW;
    let (ops, _) = state.turn(None, now);
    assert_eq!(created(&ops), [2000]);
    confirm(&mut state, ops, now);
    assert!(!has(&mut state, "route-contested", now));
    now += at(1);
    hear(&mut state, Event::Delete(row(2000)), now);
    let (ops, _) = state.turn(None, now + TOGETHER);
    assert_eq!(created(&ops), Vec::<u16>::new(), "no fresh start");
}

#[test]
fn losses_that_only_lists_show_are_rounds_as_well() {
    let mut state = ready(&[2000]);
    let (ops, _) = state.turn(None, at(0));
    confirm(&mut state, ops, at(0));
    for round in 1..=8 {
        let now = at(round * 10);
        list(&mut state, Ok(Observed::new()), now);
        let (ops, _) = state.turn(None, now);
        confirm(&mut state, ops, now);
    }
    assert_eq!(drift(&state), 6, "once for each time that it stood");
    assert!(has(&mut state, "route-contested", at(80)));
}

#[test]
fn a_stranger_on_our_port_is_named_without_a_list_and_elsewhere_costs_no_turn() {
    let mut state = settled(&[2000]);
    assert_eq!(
        hear(&mut state, upsert(foreign(3000), STRANGER), at(5)),
        None
    );
    assert_eq!(hear(&mut state, Event::Delete(foreign(3000)), at(5)), None);
    assert_eq!(hear(&mut state, Event::Delete(foreign(3001)), at(5)), None);
    let when = hear(&mut state, upsert(foreign(2000), STRANGER), at(5)).unwrap();
    assert_eq!(turn(&mut state, when), (0, 0, vec![]));
    assert!(has(&mut state, "foreign-joined", when));
    // His refreshes are nothing new.
    assert_eq!(
        hear(&mut state, upsert(foreign(2000), STRANGER), at(6)),
        None
    );
}

#[test]
fn what_an_event_cannot_say_for_sure_calls_for_a_list_and_many_for_one() {
    let unsure = |state: &State| {
        let stranger = foreign(2000);
        assert!(state.image.as_ref().unwrap().contains_key(&stranger));
        [
            // One of several rows of an older version's, perhaps.
            Event::Delete(stranger),
            // No id: ours by our own journal, or somebody's.
            upsert(
                TcpRow {
                    tls_port: 0,
                    ..row(2000)
                },
                None,
            ),
            Event::Unreadable,
        ]
    };
    for which in 0..3 {
        let mut state = settled(&[2000]);
        hear(&mut state, upsert(foreign(2000), STRANGER), at(5));
        rest(&mut state, at(6));
        let before = state.image.clone();
        let event = unsure(&state)[which].clone();
        for step in 0..50 {
            let heard = hear(&mut state, event.clone(), at(6) + millis(step));
            assert!(heard.is_some(), "{event:?}");
        }
        assert_eq!(state.image, before, "{event:?}");
        assert_eq!(turn(&mut state, at(7)), (1, 0, vec![]), "{event:?}");
        // Heard while the list was made: once more, after a while.
        hear(&mut state, event.clone(), at(8));
        state.absorb(
            Done::List {
                started: at(7),
                answer: Ok(before.unwrap()),
            },
            at(8),
        );
        rest(&mut state, at(12));
        assert_eq!(turn(&mut state, at(13)).0, 1, "{event:?}");
    }
}

#[test]
fn only_a_row_under_our_id_is_deleted_because_an_event_showed_it() {
    for (stamp, ours) in [
        (None, false),
        (STRANGER, false),
        (Some("rs-"), false),
        (None, true),
    ] {
        let mut state = settled(&[2000]);
        let us = us(&state).map(ToOwned::to_owned);
        let stamp = if ours { us.as_deref() } else { stamp };
        // On a port nobody wants, and beside ours.
        for ghost in [row(3000), foreign(2000)] {
            hear(&mut state, upsert(ghost.clone(), stamp), at(5));
            let (ops, _) = state.turn(None, at(6));
            let deleted = ops.iter().find_map(|op| match op {
                Op::Delete { rows, .. } => Some(rows.clone()),
                _ => None,
            });
            assert_eq!(deleted, ours.then(|| vec![ghost]), "{stamp:?}");
        }
    }
}

#[test]
fn what_is_heard_while_a_list_is_made_is_added_to_it() {
    let mut state = settled(&[2000, 2001]);
    state.list_due = at(10);
    assert_eq!(turn(&mut state, at(10)).0, 1);
    let before = state.image.clone().unwrap();
    hear(&mut state, upsert(foreign(2000), STRANGER), at(11));
    hear(&mut state, upsert(foreign(3000), STRANGER), at(11));
    hear(&mut state, Event::Delete(foreign(3000)), at(11));
    hear(&mut state, Event::Delete(row(2001)), at(11));
    let (started, answer) = (at(10), Ok(before));
    state.absorb(Done::List { started, answer }, at(12));
    let image = state.image.clone().unwrap();
    assert_eq!(
        image.keys().cloned().collect::<Vec<_>>(),
        [row(2000), foreign(2000)]
    );
    assert_eq!(turn(&mut state, at(12)), (0, 0, vec![2001]));
    assert_eq!(drift(&state), 1, "once");
}

#[test]
fn more_than_can_be_kept_while_a_list_is_made_calls_for_another() {
    let mut state = settled(&[]);
    state.list_due = at(10);
    assert_eq!(turn(&mut state, at(10)).0, 1);
    for index in 0..=DURING_MAX {
        let ip = format!("10.{}.{}.1", index / 256, index % 256);
        let other = TcpRow { ip, ..row(3000) };
        hear(&mut state, upsert(other, STRANGER), at(11));
    }
    assert_eq!(state.ear.during.len(), DURING_MAX);
    let (started, answer) = (at(10), Ok(Observed::new()));
    state.absorb(Done::List { started, answer }, at(12));
    assert_eq!(turn(&mut state, at(18)).0, 1);
}

#[test]
fn a_list_from_before_the_stream_stood_is_followed_by_one_more_and_no_third() {
    let mut state = ready(&[]);
    state.list_due = at(10);
    assert_eq!(turn(&mut state, at(10)).0, 1);
    state.hear(Heard::Open, at(11));
    let (started, answer) = (at(10), Ok(Observed::new()));
    state.absorb(Done::List { started, answer }, at(12));
    assert_eq!(turn(&mut state, at(12)).0, 1);
    list(&mut state, Ok(Observed::new()), at(13));
    rest(&mut state, at(200));
}

fn refused() -> Heard {
    Heard::Lost(Loss::Refused(ApiError::Unavailable {
        reason: "status 404".to_owned(),
        id: RequestId(None),
    }))
}

#[test]
fn a_stream_that_is_away_for_long_is_a_finding_until_it_tells_something() {
    let mut state = settled(&[2000]);
    state.hear(refused(), at(10));
    assert!(!has(&mut state, "events-unavailable", at(11)));
    let (_, wake) = state.turn(None, at(309));
    assert!(wake <= at(310), "{wake:?}");
    // To stand for a moment is not to be well.
    state.hear(Heard::Open, at(305));
    state.hear(Heard::Lost(Loss::Ended), at(306));
    let report = state.report(at(310));
    assert!(report.facts["events"].starts_with("degraded"), "{report:?}");
    assert!(has(&mut state, "events-unavailable", at(310)));
    state.hear(Heard::Open, at(320));
    hear(&mut state, upsert(foreign(3000), STRANGER), at(321));
    assert!(!has(&mut state, "events-unavailable", at(321)));
    assert_eq!(state.report(at(321)).facts["events"], "followed");
}

#[test]
fn a_stream_that_stands_is_well_and_silence_over_an_empty_table_is_no_failure() {
    let mut state = settled(&[]);
    state.hear(refused(), at(10));
    state.hear(Heard::Open, at(300));
    state.turn(None, at(361));
    assert!(!has(&mut state, "events-unavailable", at(400)));
    state.hear(Heard::Lost(Loss::Silent(at(150))), at(450));
    state.turn(None, at(450));
    assert!(!has(&mut state, "events-unavailable", at(1000)));
    // Where rows live it is one.
    let mut state = settled(&[2000]);
    state.hear(Heard::Lost(Loss::Silent(at(150))), at(151));
    assert!(has(&mut state, "events-unavailable", at(460)));
}

#[test]
fn who_may_not_read_the_table_does_not_listen() {
    assert!(settled(&[2000]).listens());
    let mut state = blind(&[2000]);
    assert!(!state.listens());
    // Whatever still comes in changes nothing.
    assert_eq!(hear(&mut state, Event::Delete(row(2000)), at(1)), None);
    assert_eq!(state.report(at(1)).facts["events"], "not followed");
}

#[test]
fn a_steady_state_with_its_events_asks_for_refreshes_alone() {
    let mut state = settled(&[2000, 2001, 2002]);
    let stamp = us(&state).map(ToOwned::to_owned);
    let mut asked = 0;
    for second in 2..290 {
        let now = at(second);
        // A neighbour's rows, refreshed as ours are.
        assert_eq!(hear(&mut state, upsert(foreign(3000), STRANGER), now), None);
        let (ops, _) = state.turn(None, now);
        for op in &ops {
            let Op::Create { rows, kind, .. } = op else {
                panic!("{op:?} at {second}")
            };
            assert_eq!(*kind, Kind::Refresh);
            asked += rows.len();
            for row in rows {
                let echo = upsert(row.clone(), stamp.as_deref());
                assert_eq!(hear(&mut state, echo, now), None);
            }
        }
        confirm(&mut state, ops, now);
    }
    assert!((24..40).contains(&asked), "{asked} refreshes");
}
