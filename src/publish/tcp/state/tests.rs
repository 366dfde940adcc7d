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

/// A lane that has asked for groups and table.
fn asking(ports: &[u16]) -> State {
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
    state
}

fn groups() -> Done {
    let (guid, name) = ("g".to_owned(), "default-tcp".to_owned());
    let reservable_ports = "1024-9000".to_owned();
    Done::Groups(Ok(vec![RouterGroup {
        guid,
        name,
        reservable_ports,
    }]))
}

/// A lane that knows its group and an empty table.
fn ready(ports: &[u16]) -> State {
    let mut state = asking(ports);
    state.absorb(groups(), at(0));
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
            let answer = Err(outage());
            state.absorb(
                Done::List {
                    started: now,
                    answer,
                },
                now,
            );
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

/// A lane that may not read the table back.
fn blind(ports: &[u16]) -> State {
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

/// Deletes from the table what is asked to go, and tells the lane.
fn delete(state: &mut State, table: &mut Observed, ops: &[Op], now: Uptime) {
    for op in ops {
        if let Op::Delete { rows, clearing } = op {
            table.retain(|row, _| !rows.contains(row));
            let (rows, clearing) = (rows.clone(), *clearing);
            let confirmed = rows.clone();
            let written = Written {
                confirmed,
                ..Written::default()
            };
            let done = Done::Deleted {
                rows,
                written,
                clearing,
            };
            state.absorb(done, now);
        }
    }
}

#[test]
fn an_older_job_that_still_runs_is_found_out_soon_and_keeps_its_port() {
    let mut state = ready(&[2000]);
    let legacy = {
        state.turn(None, at(0));
        let row = state.admission.wanted.values().next().unwrap().rows[0].clone();
        TcpRow { tls_port: 0, ..row }
    };
    let mut state = ready(&[2000]);
    let mut table = Observed::from([(legacy.clone(), None)]);
    list(&mut state, Ok(table.clone()), at(0));
    let mut both = 0;
    for second in 1..=300 {
        let now = at(second);
        // The older job refreshes each half minute, until it is stopped.
        if second % 30 == 20 && second < 200 {
            table.insert(legacy.clone(), None);
        } else if second == 260 {
            table.remove(&legacy);
        }
        let (ops, _) = state.turn(None, now);
        for op in &ops {
            if let Op::Create { rows, .. } = op {
                table.extend(rows.iter().map(|row| (row.clone(), None)));
            }
        }
        delete(&mut state, &mut table, &ops, now);
        if ops.iter().any(|op| matches!(op, Op::List)) {
            list(&mut state, Ok(table.clone()), now);
        }
        confirm(&mut state, ops, now);
        both += u32::from(table.len() == 2);
        let told = state
            .plan
            .findings
            .iter()
            .any(|finding| finding.code.as_str() == "legacy-rows");
        assert!(told || !(30..260).contains(&second), "{second}: {table:?}");
    }
    assert!(both <= 6, "both stand for {both} s");
    assert!(table.keys().all(|row| row.tls_port == -1), "{table:?}");
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
        if let Op::Create { rows, kind, .. } = op {
            let refused = rows.iter().map(|row| (row.clone(), "no".to_owned()));
            let written = Written {
                refused: refused.collect(),
                ..Written::default()
            };
            let started = at(30);
            let done = Done::Created {
                started,
                rows,
                written,
                kind,
            };
            state.absorb(done, at(30));
        }
    }
    assert_eq!(refreshed(&state.turn(None, at(31)).0), Vec::<u16>::new());
    assert_eq!(refreshed(&state.turn(None, at(60)).0), [2000]);
}

#[test]
fn in_bulk_the_rows_of_a_dead_node_go_side_by_side_with_their_successors() {
    let nodes = |first: u8| {
        let ports: Vec<_> = (2000..2200).collect();
        let mut desired = (*want(&ports).unwrap()).clone();
        for route in desired.table.tcp.values_mut() {
            let port = route.backends.iter().next().unwrap().port;
            let backend = |n: u8| Backend {
                ip: std::net::Ipv4Addr::new(10, 0, 0, n).into(),
                port,
                node: NodeUid(format!("n{n}").into()),
                zone: None,
            };
            route.backends = Backends::new([first, 2, 3].map(backend)).unwrap();
        }
        Some(Arc::new(desired))
    };
    let mut state = ready(&[]);
    state.adopt(nodes(1), at(0));
    state.turn(None, at(0));
    let rows = state.admission.wanted.values().flat_map(|port| &port.rows);
    let us = state.instance.as_ref().map(ToString::to_string);
    let mut table: Observed = rows.map(|row| (row.clone(), us.clone())).collect();
    let mut state = ready(&[]);
    state.adopt(nodes(4), at(0));
    list(&mut state, Ok(table.clone()), at(0));
    let (mut added, mut removed) = (0, 0);
    for step in 0..80 {
        let now = Duration::from_millis(step * 125);
        let before = table.len();
        let (ops, _) = state.turn(None, now);
        delete(&mut state, &mut table, &ops, now);
        removed += before - table.len();
        added += ops
            .iter()
            .filter_map(|op| match op {
                Op::Create { rows, kind, .. } if *kind == Kind::Change => Some(rows.len()),
                _ => None,
            })
            .sum::<usize>();
        confirm(&mut state, ops, now);
    }
    assert!(added + removed > 60, "{added} {removed}");
    assert!(added.abs_diff(removed) <= 2, "{added} {removed}");
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

#[test]
fn a_router_group_that_vanishes_from_one_listing_closes_no_port() {
    let group = |guid: &str, name: &str| RouterGroup {
        guid: guid.to_owned(),
        name: name.to_owned(),
        reservable_ports: "1024-9000".to_owned(),
    };
    let both = || vec![group("g", "default-tcp"), group("h", "other")];
    let wanted = |ports: &[u16]| {
        let mut desired = (*want(ports).unwrap()).clone();
        for route in desired.table.tcp.values_mut() {
            route.router_group = Some("other".to_owned());
        }
        Some(Arc::new(desired))
    };
    let mut state = ready(&[]);
    state.adopt(wanted(&[2000]), at(0));
    state.absorb(Done::Groups(Ok(both())), at(0));
    let (ops, _) = state.turn(None, at(0));
    assert_eq!(created(&ops), [2000]);
    confirm(&mut state, ops, at(0));

    state.adopt(wanted(&[2000, 2001]), at(1));
    state.absorb(Done::Groups(Ok(vec![group("g", "default-tcp")])), at(1));
    let (ops, _) = state.turn(None, at(1));
    assert!(ops.is_empty(), "nothing closes, nothing opens: {ops:?}");
    let (ops, _) = state.turn(None, at(30));
    assert_eq!(refreshed(&ops), [2000]);
    let findings = state.report(at(30)).findings;
    let unknown = |finding: &&Finding| finding.code.as_str() == "router-group-unknown";
    assert_eq!(findings.iter().filter(unknown).count(), 2, "{findings:?}");

    // Gone for good: the API refuses its rows, and nobody else waits for that.
    for op in ops {
        if let Op::Create { rows, kind, .. } = op {
            let error = Some(ApiError::GroupUnknown {
                message: "not found".to_owned(),
                id: RequestId(None),
            });
            let written = Written {
                error,
                ..Written::default()
            };
            let started = at(30);
            let done = Done::Created {
                started,
                rows,
                written,
                kind,
            };
            state.absorb(done, at(30));
        }
    }
    assert_eq!(state.not_before, at(0));

    state.absorb(Done::Groups(Ok(both())), at(31));
    assert_eq!(created(&state.turn(None, at(31)).0), [2001]);
}
