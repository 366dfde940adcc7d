//! What the lane asks next, step by step and without any I/O.

use super::*;
use crate::config::TlsConfig;
use crate::publish::tcp::client::RequestId;
use crate::route::{
    Backend, Backends, ClusterId, NodePort, NodeUid, PortRanges, RouteTable, ServiceKey,
    ServiceRef, TcpRoute,
};

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
        let service = ServiceRef {
            key: key(port),
            uid: String::new(),
        };
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
