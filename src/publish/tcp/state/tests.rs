//! What the lane asks next, step by step and without any I/O.

use super::*;
use crate::config::TlsConfig;
use crate::publish::tcp::client::RequestId;
use crate::route::{
    Backend, Backends, ClusterId, NodePort, NodeUid, PortRanges, RouteTable, ServiceKey,
    ServiceRef, TcpRoute,
};
use std::sync::Arc;

const TTL: Duration = Duration::from_mins(2);

fn at(secs: u64) -> Uptime {
    Duration::from_secs(secs)
}

#[expect(clippy::unnecessary_wraps, reason = "as the channel carries it")]
fn want(ports: &[u16]) -> Option<Arc<Desired>> {
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
    Some(Arc::new(Desired {
        cluster: ClusterId("c".to_owned()),
        table: RouteTable {
            tcp: ports.iter().map(route).collect(),
            http: BTreeMap::new(),
        },
        findings: Vec::new(),
        node_ips: BTreeMap::new(),
        node_ports: BTreeMap::new(),
        revisit: None,
    }))
}

/// A lane that knows its group and an empty table.
fn ready(ports: &[u16]) -> State {
    let config = RoutingApiConfig {
        url: String::new(),
        router_group: "default-tcp".to_owned(),
        router_group_is_default: true,
        ttl: TTL,
        reserved_ports: PortRanges::default(),
        join_foreign: false,
        tls: TlsConfig::default(),
    };
    let mut state = State::new(config, Pace::default(), Arc::default(), at(0));
    state.adopt(want(ports), at(0));
    let (ops, _) = state.turn(None, at(0));
    assert!(matches!(ops[..], [Op::Groups, Op::List]), "{ops:?}");
    let (guid, name) = ("g".to_owned(), "default-tcp".to_owned());
    let reservable_ports = "1024-9000".to_owned();
    state.absorb(
        Done::Groups(Ok(vec![RouterGroup {
            guid,
            name,
            reservable_ports,
        }])),
        at(0),
    );
    state.absorb(
        Done::List {
            started: at(0),
            answer: Ok(Observed::new()),
        },
        at(0),
    );
    state
}

fn created(ops: &[Op]) -> Vec<u16> {
    let rows = |op: &Op| match op {
        Op::Create { rows, .. } => rows.clone(),
        _ => Vec::new(),
    };
    ops.iter()
        .flat_map(rows)
        .map(|row| row.port.get())
        .collect()
}

/// Answers every create with success.
fn confirm(state: &mut State, ops: Vec<Op>, now: Uptime) {
    for op in ops {
        if let Op::Create { rows, kind, .. } = op {
            let written = Written {
                confirmed: rows.clone(),
                ..Written::default()
            };
            state.absorb(
                Done::Created {
                    started: now,
                    rows,
                    written,
                    kind,
                },
                now,
            );
        }
    }
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
            state.absorb(
                Done::List {
                    started: at(150),
                    answer: Ok(Observed::new()),
                },
                at(150),
            );
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
            let error = || ApiError::Unavailable {
                reason: "gone".to_owned(),
                id: RequestId(None),
            };
            match op {
                Op::Create { rows, kind, .. } => {
                    let written = Written {
                        error: Some(error()),
                        ..Written::default()
                    };
                    state.absorb(
                        Done::Created {
                            started: now,
                            rows,
                            written,
                            kind,
                        },
                        now,
                    );
                }
                Op::List => state.absorb(
                    Done::List {
                        started: now,
                        answer: Err(error()),
                    },
                    now,
                ),
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

/// Answers a list.
fn list(state: &mut State, answer: Result<Observed, ApiError>, now: Uptime) {
    let started = now;
    state.absorb(Done::List { started, answer }, now);
}

fn gone() -> ApiError {
    ApiError::Unavailable {
        reason: "gone".to_owned(),
        id: RequestId(None),
    }
}

fn refreshed(ops: &[Op]) -> Vec<u16> {
    let refreshes = |op: &Op| match op {
        Op::Create { rows, kind, .. } if *kind == Kind::Refresh => rows.clone(),
        _ => Vec::new(),
    };
    let rows = ops.iter().flat_map(refreshes);
    rows.map(|row| row.port.get()).collect()
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
        if let Op::Create { rows, kind, .. } = op {
            let error = Some(gone());
            let written = Written {
                error,
                ..Written::default()
            };
            let started = at(31);
            state.absorb(
                Done::Created {
                    started,
                    rows,
                    written,
                    kind,
                },
                at(31),
            );
        }
    }
    // The list is asked for and hangs; something new waits for it, what lives does not.
    state.adopt(want(&[2000, 2001]), at(37));
    let (ops, _) = state.turn(None, at(37));
    assert!(ops.iter().any(|op| matches!(op, Op::List)), "{ops:?}");
    assert_eq!((refreshed(&ops), created(&ops)), (vec![2000], vec![2000]));
}

#[test]
fn a_row_that_comes_back_after_its_deletion_is_not_deleted_in_a_hot_loop() {
    let mut state = ready(&[2000]);
    let (ops, _) = state.turn(None, at(0));
    confirm(&mut state, ops, at(0));
    let table = state.image.clone().unwrap();
    state.adopt(want(&[]), at(1));
    let mut deletions = 0;
    for second in 1..=30 {
        let (ops, _) = state.turn(None, at(second));
        for op in ops {
            match op {
                Op::Delete { rows, clearing } => {
                    deletions += 1;
                    let confirmed = rows.clone();
                    let written = Written {
                        confirmed,
                        ..Written::default()
                    };
                    state.absorb(
                        Done::Deleted {
                            rows,
                            written,
                            clearing,
                        },
                        at(second),
                    );
                }
                // Another writer keeps it alive.
                Op::List => list(&mut state, Ok(table.clone()), at(second)),
                _ => {}
            }
        }
    }
    assert_eq!(deletions, 1);
}

#[test]
fn rows_of_two_router_groups_never_share_a_request() {
    // The API refuses a whole request for one group that it does not know any more.
    let mut state = ready(&[2000, 2001]);
    let mut desired = (*want(&[2000, 2001]).unwrap()).clone();
    let route = desired.table.tcp.get_mut(&RouterPort::new(2001).unwrap());
    route.unwrap().router_group = Some("other".to_owned());
    state.adopt(Some(Arc::new(desired)), at(0));
    let group = |guid: &str, name: &str| RouterGroup {
        guid: guid.to_owned(),
        name: name.to_owned(),
        reservable_ports: "1024-9000".to_owned(),
    };
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

#[test]
fn many_rows_of_an_older_job_are_cleared_within_the_budget() {
    let ports: Vec<_> = (2000..2400).collect();
    let mut state = ready(&ports);
    let (ops, _) = state.turn(None, at(0));
    assert_eq!(created(&ops).len(), 4, "bulk");
    let old_job: Observed = state
        .admission
        .wanted
        .values()
        .flat_map(|port| &port.rows)
        .map(|row| {
            (
                TcpRow {
                    tls_port: 0,
                    ..row.clone()
                },
                None,
            )
        })
        .collect();
    list(&mut state, Ok(old_job), at(1));
    let mut cleared = 0;
    for second in 2..12 {
        let (ops, _) = state.turn(None, at(second));
        for op in ops {
            if let Op::Delete { rows, clearing } = op {
                assert!(clearing);
                cleared += rows.len();
                let confirmed = rows.clone();
                let written = Written {
                    confirmed,
                    ..Written::default()
                };
                state.absorb(
                    Done::Deleted {
                        rows,
                        written,
                        clearing,
                    },
                    at(second),
                );
            }
        }
    }
    assert!(
        (20..=84).contains(&cleared),
        "{cleared} rows in ten seconds"
    );
}
