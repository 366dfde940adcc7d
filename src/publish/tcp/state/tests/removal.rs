//! What the lane takes away, at what pace and for whom: rows of dead nodes, of older jobs, and of nobody.

use super::*;

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
                Op::Delete { .. } => {
                    deletions += 1;
                    wrote(&mut state, op, all_confirmed, at(second));
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
fn a_deletion_beside_a_list_under_way_is_looked_after_by_the_next_one_and_soon() {
    let mut state = ready(&[2000]);
    let (ops, _) = state.turn(None, at(0));
    confirm(&mut state, ops, at(0));
    let mut drained = Desired::clone(&want(&[]).unwrap());
    drained.drained = true;
    state.adopt(Some(Arc::new(drained)), at(10));
    let (ops, _) = state.turn(None, at(10));
    let lists = ops.iter().any(|op| matches!(op, Op::List));
    assert!(lists, "asked for before the row is deleted: {ops:?}");
    for op in ops {
        if matches!(op, Op::Delete { .. }) {
            wrote(&mut state, op, all_confirmed, at(11));
        }
    }
    let (started, answer) = (at(10), Ok(Observed::new()));
    state.absorb(Done::List { started, answer }, at(12));
    assert!(!state.withdrawn().unwrap().proven, "nobody looked since");
    let (ops, _) = state.turn(None, at(13));
    assert!(ops.iter().any(|op| matches!(op, Op::List)), "{ops:?}");
    list(&mut state, Ok(Observed::new()), at(13));
    assert!(state.withdrawn().unwrap().proven);
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
            if let Op::Delete { rows, clearing } = &op {
                assert!(clearing);
                cleared += rows.len();
                wrote(&mut state, op, all_confirmed, at(second));
            }
        }
    }
    assert!(
        (20..=84).contains(&cleared),
        "{cleared} rows in ten seconds"
    );
}

/// Deletes from the table what is asked to go, and tells the lane; the rest of what it asked is left.
fn delete(state: &mut State, table: &mut Observed, ops: Vec<Op>, now: Uptime) -> Vec<Op> {
    let mut rest = Vec::new();
    for op in ops {
        if let Op::Delete { rows, .. } = &op {
            table.retain(|row, _| !rows.contains(row));
            wrote(state, op, all_confirmed, now);
        } else {
            rest.push(op);
        }
    }
    rest
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
        let ops = delete(&mut state, &mut table, ops, now);
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
        let ops = delete(&mut state, &mut table, ops, now);
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
fn a_router_group_that_vanishes_from_one_listing_closes_no_port() {
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
        let unknown = ApiError::GroupUnknown {
            message: "not found".to_owned(),
            id: RequestId(None),
        };
        wrote(&mut state, op, |_| none_for(unknown), at(30));
    }
    assert_eq!(state.not_before, at(0));

    state.absorb(Done::Groups(Ok(both())), at(31));
    assert_eq!(created(&state.turn(None, at(31)).0), [2001]);
}
