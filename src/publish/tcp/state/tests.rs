//! What the lane asks next, step by step and without any I/O: how rows come to live and are kept alive. What goes,
//! and what is nobody's to remove, is in [`removal`].

mod removal;

use super::*;
use crate::config::TlsConfig;
use crate::plan::OnForeign;
use crate::publish::tcp::client::RequestId;
use crate::route::{
    Backend, Backends, ClusterId, NodePort, NodeUid, PortRanges, RouteTable, ServiceKey,
    ServiceRef, TcpRoute,
};
use std::sync::Arc;

const TTL: Duration = Duration::from_mins(2);

pub(super) fn at(secs: u64) -> Uptime {
    Duration::from_secs(secs)
}

#[expect(clippy::unnecessary_wraps, reason = "as the channel carries it")]
pub(super) fn want(ports: &[u16]) -> Option<Arc<Desired>> {
    let key = |port: &u16| ServiceKey {
        namespace: "ns".to_owned(),
        name: format!("s{port}"),
    };
    let route = |port: &u16| {
        let backend = Backend {
            ip: "10.0.0.1".parse().unwrap(),
            port: NodePort::new(port + 30_000).unwrap(),
            node: NodeUid("n".into()),
            zone: None,
        };
        let service = Arc::new(ServiceRef {
            key: key(port),
            uid: String::new(),
        });
        let backends = Backends::new([backend]).unwrap();
        (
            RouterPort::new(*port).unwrap(),
            TcpRoute {
                service,
                router_group: None,
                backends,
            },
        )
    };
    let table = RouteTable {
        tcp: ports.iter().map(route).collect(),
        http: BTreeMap::new(),
    };
    Some(Arc::new(Desired::of(ClusterId("c".to_owned()), table)))
}

/// A lane that has asked for groups and table.
fn asking(ports: &[u16]) -> State {
    let config = RoutingApiConfig {
        url: String::new(),
        router_group: "default-tcp".to_owned(),
        router_group_is_default: true,
        ttl: TTL,
        reserved_ports: PortRanges::default(),
        on_foreign: OnForeign::Hold,
        instance_id: None,
        tls: TlsConfig::default(),
    };
    let mut state = State::new(config, Pace::default(), Arc::default(), at(0));
    state.adopt(want(ports), at(0));
    let (ops, _) = state.turn(None, at(0));
    assert!(matches!(ops[..], [Op::Groups, Op::List]), "{ops:?}");
    state
}

fn group(guid: &str, name: &str) -> RouterGroup {
    RouterGroup {
        guid: guid.to_owned(),
        name: name.to_owned(),
        reservable_ports: "1024-9000".to_owned(),
    }
}

fn groups() -> Done {
    Done::Groups(Ok(vec![group("g", "default-tcp")]))
}

/// A lane that knows its group and an empty table.
pub(super) fn ready(ports: &[u16]) -> State {
    let mut state = asking(ports);
    state.absorb(groups(), at(0));
    list(&mut state, Ok(Observed::new()), at(0));
    state
}

pub(super) fn created(ops: &[Op]) -> Vec<u16> {
    let rows = |op: &Op| match op {
        Op::Create { rows, .. } => rows.clone(),
        _ => Vec::new(),
    };
    ops.iter()
        .flat_map(rows)
        .map(|row| row.port.get())
        .collect()
}

/// Tells the lane what came of a write.
pub(super) fn wrote(
    state: &mut State,
    op: Op,
    written: impl FnOnce(&[TcpRow]) -> Written,
    now: Uptime,
) {
    let done = match op {
        Op::Create { rows, kind, .. } => Done::Created {
            started: now,
            written: written(&rows),
            rows,
            kind,
        },
        Op::Delete { rows, clearing } => Done::Deleted {
            written: written(&rows),
            rows,
            clearing,
        },
        other => panic!("no write: {other:?}"),
    };
    state.absorb(done, now);
}

pub(super) fn all_confirmed(rows: &[TcpRow]) -> Written {
    Written {
        confirmed: rows.to_vec(),
        ..Written::default()
    }
}

fn none_for(error: ApiError) -> Written {
    Written {
        error: Some(error),
        ..Written::default()
    }
}

/// Answers every create with success.
pub(super) fn confirm(state: &mut State, ops: Vec<Op>, now: Uptime) {
    for op in ops {
        if matches!(op, Op::Create { .. }) {
            wrote(state, op, all_confirmed, now);
        }
    }
}

/// Answers a list.
pub(super) fn list(state: &mut State, answer: Result<Observed, ApiError>, now: Uptime) {
    let started = now;
    state.absorb(Done::List { started, answer }, now);
}

pub(super) fn gone() -> ApiError {
    ApiError::Unavailable {
        reason: "gone".to_owned(),
        id: RequestId(None),
    }
}

pub(super) fn refreshed(ops: &[Op]) -> Vec<u16> {
    let refreshes = |op: &Op| match op {
        Op::Create { rows, kind, .. } if *kind == Kind::Refresh => rows.clone(),
        _ => Vec::new(),
    };
    let rows = ops.iter().flat_map(refreshes);
    rows.map(|row| row.port.get()).collect()
}

#[test]
fn the_refresh_stretches_from_a_quarter_to_half_of_the_life() {
    assert_eq!(refresh_after(TTL, 12, 0.003), at(30));
    assert_eq!(refresh_after(TTL, 30_000, 0.003), at(60));
    assert_eq!(refresh_after(TTL, 10_000, 0.006), at(40));
}

#[test]
fn nothing_new_goes_before_what_lapsed_is_confirmed_again() {
    // Once with a list that shows the loss, once with rows that merely were not refreshed for a TTL.
    for listed in [true, false] {
        let mut state = ready(&[2000, 2001]);
        let (ops, _) = state.turn(None, at(0));
        assert_eq!(created(&ops), [2000, 2001]);
        confirm(&mut state, ops, at(0));
        state.adopt(want(&[1500, 2000, 2001]), at(150));
        if listed {
            list(&mut state, Ok(Observed::new()), at(150));
        }
        let (ops, _) = state.turn(None, at(150));
        assert_eq!(created(&ops), [2000, 2001], "listed: {listed}");
        assert_eq!(
            created(&state.turn(None, at(151)).0),
            Vec::<u16>::new(),
            "under way still"
        );
        confirm(&mut state, ops, at(151));
        assert_eq!(created(&state.turn(None, at(151)).0), [1500]);
    }
}

#[test]
fn a_list_that_started_before_a_row_was_confirmed_does_not_forget_it() {
    let mut state = ready(&[2000]);
    let (ops, _) = state.turn(None, at(0));
    confirm(&mut state, ops, at(2));
    state.absorb(
        Done::List {
            started: at(1),
            answer: Ok(Observed::new()),
        },
        at(3),
    );
    assert_eq!(created(&state.turn(None, at(3)).0), Vec::<u16>::new());
}

#[test]
fn while_all_writes_hang_the_lane_waits_for_them_and_not_in_a_hot_loop() {
    let mut state = ready(&[]);
    for port in 2000..2004 {
        state.adopt(
            want(&(2000..=port).collect::<Vec<_>>()),
            at(u64::from(port)),
        );
        assert_eq!(created(&state.turn(None, at(u64::from(port))).0), [port]);
    }
    state.adopt(want(&[2000, 2001, 2002, 2003, 2004]), at(2010));
    let (ops, wake) = state.turn(None, at(2010));
    assert_eq!(created(&ops), Vec::<u16>::new());
    assert!(wake > at(2010), "{wake:?}");
}

#[test]
fn a_failing_api_is_asked_again_after_a_wait_that_grows_and_stays_short() {
    let mut state = ready(&[2000]);
    let mut now = at(0);
    for _ in 0..20 {
        let (ops, wake) = state.turn(None, now);
        for op in ops {
            match op {
                Op::Create { .. } => wrote(&mut state, op, |_| none_for(gone()), now),
                Op::List => list(&mut state, Err(gone()), now),
                _ => {}
            }
        }
        let (_, next) = state.turn(None, now);
        assert!(
            next <= now + at(5) || wake <= now + at(5),
            "{next:?} {wake:?} at {now:?}"
        );
        now = next.max(now + Duration::from_millis(5));
    }
    assert!(now > at(10), "twenty failures take their time: {now:?}");
}

#[test]
fn after_an_outage_at_the_start_the_table_is_read_at_once() {
    type Outage = fn() -> ApiError;
    let outages: [Outage; 2] = [
        || ApiError::Token(UaaError::Unreachable("refused".to_owned())),
        || ApiError::Unavailable {
            reason: "refused".to_owned(),
            id: RequestId::default(),
        },
    ];
    for outage in outages {
        let mut state = asking(&[2000]);
        let mut now = at(0);
        for _ in 0..10 {
            state.absorb(Done::Groups(Err(outage())), now);
            list(&mut state, Err(outage()), now);
            // Past the longest wait after a failure.
            now += at(6);
            state.turn(None, now);
        }
        // The next question after the outage is answered.
        state.absorb(groups(), now);
        now += at(6);
        let (ops, _) = state.turn(None, now);
        let listing = ops.iter().any(|op| matches!(op, Op::List));
        assert!(listing || state.list_asked, "{:?}: {ops:?}", outage());
    }
}

#[test]
fn a_stream_of_changes_never_keeps_what_lives_from_being_refreshed() {
    let mut state = ready(&[2000]);
    let (ops, _) = state.turn(None, at(0));
    confirm(&mut state, ops, at(0));
    // Bulk, while every request takes three seconds: as soon as one ends the next change takes its place.
    state.adopt(want(&(2000..2400).collect::<Vec<_>>()), at(1));
    let (mut under_way, mut last) = (Vec::new(), 0);
    for step in 4..400 {
        let now = at(1) + Duration::from_millis(step * 250);
        let (ops, _) = state.turn(None, now);
        if refreshed(&ops).contains(&2000) {
            last = step;
        }
        under_way.extend(ops.into_iter().map(|op| (now + at(3), op)));
        let (done, rest) = under_way.into_iter().partition(|(end, _)| *end <= now);
        under_way = rest;
        let done: Vec<(Uptime, Op)> = done;
        confirm(
            &mut state,
            done.into_iter().map(|(_, op)| op).collect(),
            now,
        );
        if last > 0 {
            assert!(now < at(60), "refreshed only at {now:?}");
            return;
        }
    }
    panic!("never refreshed");
}

#[test]
fn a_list_that_cannot_be_had_keeps_no_living_row_from_being_refreshed() {
    let mut state = ready(&[2000]);
    let (ops, _) = state.turn(None, at(0));
    confirm(&mut state, ops, at(0));
    let (ops, _) = state.turn(None, at(31));
    assert_eq!(refreshed(&ops), [2000]);
    for op in ops {
        wrote(&mut state, op, |_| none_for(gone()), at(31));
    }
    // The list is asked for and hangs; something new waits for it, what lives does not.
    state.adopt(want(&[2000, 2001]), at(37));
    let (ops, _) = state.turn(None, at(37));
    assert!(ops.iter().any(|op| matches!(op, Op::List)), "{ops:?}");
    assert_eq!((refreshed(&ops), created(&ops)), (vec![2000], vec![2000]));
}

#[test]
fn rows_of_two_router_groups_never_share_a_request() {
    // The API refuses a whole request for one group that it does not know any more.
    let mut state = ready(&[2000, 2001]);
    let mut desired = (*want(&[2000, 2001]).unwrap()).clone();
    let route = desired.table.tcp.get_mut(&RouterPort::new(2001).unwrap());
    route.unwrap().router_group = Some("other".to_owned());
    state.adopt(Some(Arc::new(desired)), at(0));
    let groups = vec![group("g", "default-tcp"), group("h", "other")];
    state.absorb(Done::Groups(Ok(groups)), at(0));
    let (ops, _) = state.turn(None, at(0));
    let groups = |op: &Op| match op {
        Op::Create { rows, .. } => rows.iter().map(|row| row.group.clone()).collect(),
        _ => BTreeSet::new(),
    };
    let groups: Vec<_> = ops.iter().map(groups).collect();
    assert_eq!(
        groups,
        [
            BTreeSet::from(["g".to_owned()]),
            BTreeSet::from(["h".to_owned()])
        ]
    );
}

/// A lane that may not read the table back.
pub(super) fn blind(ports: &[u16]) -> State {
    let mut state = ready(ports);
    state.image = None;
    let unauthorized = ApiError::Unauthorized {
        scope: Some(SCOPE_READ),
        message: String::new(),
        id: RequestId(None),
    };
    list(&mut state, Err(unauthorized), at(0));
    state
}

#[test]
fn a_restart_that_cannot_read_renews_every_row_at_once_and_adds_later_ones_within_the_budget() {
    let ports: Vec<_> = (2000..2300).collect();
    let mut state = blind(&ports);
    let (ops, wake) = state.turn(None, at(74));
    assert_eq!(created(&ops), Vec::<u16>::new(), "an older job's may stand");
    assert!(wake <= at(75), "{wake:?}");
    let (ops, _) = state.turn(None, at(75));
    assert_eq!(created(&ops).len(), 300);
    confirm(&mut state, ops, at(76));
    let more: Vec<_> = (2000..2400).collect();
    state.adopt(want(&more), at(80));
    let later = created(&state.turn(None, at(80)).0);
    assert!((1..10).contains(&later.len()), "{later:?}");
}

#[test]
fn several_batches_that_meet_a_shorter_ttl_at_once_are_no_outage() {
    let mut state = ready(&[2000, 2001]);
    let (ops, _) = state.turn(None, at(0));
    confirm(&mut state, ops, at(0));
    for _ in 0..2 {
        state.absorb(Done::Groups(Err(ApiError::MaxTtl { secs: 60 })), at(1));
    }
    assert_eq!(state.ttl, at(60));
    let findings = state.report(at(1)).findings;
    assert!(findings.is_empty(), "{findings:?}");
    state.adopt(want(&[2000, 2001, 2002]), at(3));
    let (ops, _) = state.turn(None, at(3));
    assert_eq!(created(&ops), [2002], "no list is awaited");
}

#[test]
fn a_living_row_whose_refresh_is_refused_is_tried_again_while_it_lives() {
    let mut state = ready(&[2000]);
    let (ops, _) = state.turn(None, at(0));
    confirm(&mut state, ops, at(0));
    let (ops, _) = state.turn(None, at(30));
    assert_eq!(refreshed(&ops), [2000]);
    for op in ops {
        let refused = |rows: &[TcpRow]| Written {
            refused: rows
                .iter()
                .map(|row| (row.clone(), "no".to_owned()))
                .collect(),
            ..Written::default()
        };
        wrote(&mut state, op, refused, at(30));
    }
    assert_eq!(refreshed(&state.turn(None, at(31)).0), Vec::<u16>::new());
    assert_eq!(refreshed(&state.turn(None, at(60)).0), [2000]);
}

#[test]
fn failures_that_differ_only_in_their_request_are_one_finding() {
    let mut state = ready(&[2000]);
    let mut told = BTreeSet::new();
    for request in 0..3 {
        let error = ApiError::Unavailable {
            reason: "status 502".to_owned(),
            id: RequestId(Some(format!("request-{request}"))),
        };
        list(&mut state, Err(error), at(request));
        told.insert(state.report(at(request)).findings);
    }
    assert_eq!(told.len(), 1, "{told:?}");
}
