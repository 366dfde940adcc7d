//! The lane under its role: silent on standby, careful without proof, and quick to take over.

use route_sync::Uptime;
use route_sync::lease::{Role, Roles};
use route_sync::state::Warm;

use super::warm::warm;
use super::*;

const ACTIVE: Role = Role::Active {
    generation: 1,
    until: Uptime::MAX,
};

const CAUTIOUS: Role = Role::Cautious { generation: 1 };

async fn start(
    role: Role,
    ttl: u64,
    routes: &[(u16, u16)],
    prepare: impl FnOnce(&mut Api),
) -> (Subject, watch::Sender<Role>) {
    start_with(role, ttl, Some(want(routes)), Warm::default(), prepare).await
}

async fn start_with(
    role: Role,
    ttl: u64,
    first: Option<Arc<Desired>>,
    warm: Warm,
    prepare: impl FnOnce(&mut Api),
) -> (Subject, watch::Sender<Role>) {
    let foundation = Running::start().await;
    prepare(&mut foundation.api.lock());
    let url = foundation.server.uri();
    let (roles, roles_rx) = watch::channel(role);
    let prepare = |lane: TcpLane| {
        lane.with_state(warm, watch::Sender::default())
            .with_roles(Roles::new(roles_rx))
    };
    (
        Subject::start_prepared(&url, foundation, ttl, first, prepare),
        roles,
    )
}

fn writes(api: &Api) -> usize {
    let written = ["create", "delete"];
    let write = |call: &&foundation::Call| written.iter().any(|it| call.path.ends_with(it));
    api.calls.iter().filter(write).count()
}

#[tokio::test]
async fn a_standby_reads_and_writes_nothing_until_it_takes_over_what_the_other_left() {
    let (lane, roles) = start(Role::Standby, 120, &[(2000, 1), (2001, 1)], |api| {
        api.insert(key(2000, 1, -1), Some(&us()), Duration::from_mins(1));
        api.insert(key(2002, 1, -1), Some(&us()), Duration::from_mins(1));
    })
    .await;
    lane.until_report("warm", |report| report.warm).await;
    lane.holds(Duration::from_secs(1), "nothing is written", |api| {
        writes(api) == 0
    })
    .await;
    assert!(!lane.report.borrow().confirmed_once);
    roles.send_replace(ACTIVE);
    // What is wanted comes, what the other would have removed goes.
    lane.until_ports(&[2000, 2001]).await;
    lane.until_report("confirmed", |report| report.confirmed_once)
        .await;
}

#[tokio::test]
async fn without_proof_rows_are_renewed_while_a_list_shows_them_and_nothing_comes_or_goes() {
    let (lane, roles) = start(ACTIVE, BRIEF, &[(2000, 1), (2001, 1), (2002, 1)], |_| {}).await;
    lane.until_ports(&[2000, 2001, 2002]).await;
    roles.send_replace(CAUTIOUS);
    // One route left, one is new; and the successor removes one, again should it come back once.
    lane.want(&[(2001, 1), (2002, 1), (2003, 1)]);
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        lane.api().lock().rows.retain(|key, _| key.0 != 2002);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let stays = BTreeSet::from([2000, 2001]);
    lane.holds(A_LIFE, "what is confirmed lives", |api| {
        api.ports() == stays
    })
    .await;
    assert_eq!(lane.counters.rows_removed.load(Relaxed), 0);
    roles.send_replace(ACTIVE);
    lane.until_ports(&[2001, 2002, 2003]).await;
}

/// Three routes; while nothing may be added, the first one's backend moves, the second one's port goes to another
/// Service, and the third one's node port does.
fn moved() -> Arc<Desired> {
    let mut desired = Desired::clone(&want(&[(2000, 1), (2001, 1), (2002, 1)]));
    let backend = |node: u8, port: u16| Backend {
        ip: format!("10.0.0.{node}").parse().unwrap(),
        port: NodePort::new(port).unwrap(),
        node: NodeUid(format!("n{node}").into()),
        zone: None,
    };
    let heir = Arc::new(ServiceRef {
        key: service(9000),
        uid: "u9000".to_owned(),
    });
    let tcp = &mut desired.table.tcp;
    let port = |port| RouterPort::new(port).unwrap();
    tcp.get_mut(&port(2000)).unwrap().backends = Backends::new([backend(2, 32000)]).unwrap();
    let route = tcp.get_mut(&port(2001)).unwrap();
    route.service = heir.clone();
    route.backends = Backends::new([backend(1, 39000)]).unwrap();
    tcp.get_mut(&port(2002)).unwrap().backends = Backends::new([backend(1, 39002)]).unwrap();
    for taken in [32002, 39000] {
        let taken = NodePort::new(taken).unwrap();
        desired.node_ports.insert(taken, heir.clone());
    }
    let yielding = BTreeSet::from([NodePort::new(32001).unwrap()]);
    desired.yielding.insert(port(2001), yielding);
    Arc::new(desired)
}

#[tokio::test]
async fn without_proof_a_port_lives_on_by_the_rows_it_had_unless_they_lead_to_another_service() {
    let (lane, roles) = start(ACTIVE, BRIEF, &[(2000, 1), (2001, 1), (2002, 1)], |_| {}).await;
    lane.until_ports(&[2000, 2001, 2002]).await;
    roles.send_replace(CAUTIOUS);
    lane.desired.send_replace(Some(moved()));
    let live = [key(2000, 1, -1), key(2001, 1, -1)];
    lane.until("the one that was taken lapses", |api| {
        !api.rows.contains_key(&key(2002, 1, -1))
    })
    .await;
    // They have outlived one TTL already.
    lane.holds(A_LIFE / 2, "the others live", |api| {
        api.rows.keys().eq(&live)
    })
    .await;
}

#[tokio::test]
async fn who_cannot_read_lets_a_row_lapse_that_leads_to_another_service_without_proof() {
    let (lane, roles) = start(ACTIVE, BRIEF, &[(2000, 1), (2001, 1), (2002, 1)], |api| {
        api.scopes.remove("routing.routes.read");
    })
    .await;
    lane.until_ports(&[2000, 2001, 2002]).await;
    roles.send_replace(CAUTIOUS);
    lane.desired.send_replace(Some(moved()));
    lane.until_ports(&[2000, 2001]).await;
    lane.holds(A_LIFE / 2, "the others live", |api| {
        api.ports() == BTreeSet::from([2000, 2001])
    })
    .await;
}

#[tokio::test]
async fn a_deletion_that_is_halved_ends_with_the_proof() {
    let ports: Vec<_> = (2000..2016).map(|port| (port, 1)).collect();
    let (lane, roles) = start(ACTIVE, 120, &ports, |_| {}).await;
    let all: Vec<_> = ports.iter().map(|(port, _)| *port).collect();
    lane.until_ports(&all).await;
    {
        let mut api = lane.api().lock();
        api.poisoned.extend(&all);
        let late = Duration::from_millis(500);
        api.slow.extend(all.iter().map(|port| (*port, late)));
    }
    let mut drained = Desired::clone(&want(&[]));
    drained.drained = true;
    lane.desired.send_replace(Some(Arc::new(drained)));
    let deletes = |api: &Api| {
        let calls = api.calls.iter();
        calls.filter(|call| call.path.ends_with("/delete")).count()
    };
    lane.until("it is asked", |api| deletes(api) > 0).await;
    roles.send_replace(CAUTIOUS);
    let asked = deletes(&lane.api().lock());
    // One may be on its way.
    lane.holds(Duration::from_secs(5), "no more is sent", |api| {
        deletes(api) <= asked + 1
    })
    .await;
}

#[tokio::test]
async fn who_cannot_read_renews_what_was_confirmed_without_proof() {
    let (lane, roles) = start(ACTIVE, BRIEF, &[(2000, 1)], |api| {
        api.scopes.remove("routing.routes.read");
    })
    .await;
    lane.until_ports(&[2000]).await;
    roles.send_replace(CAUTIOUS);
    lane.want(&[(2001, 1)]);
    lane.holds(A_LIFE, "it lives", |api| {
        api.ports() == BTreeSet::from([2000])
    })
    .await;
    roles.send_replace(ACTIVE);
    lane.until_ports(&[2001]).await;
}

#[tokio::test]
async fn proof_that_is_over_removes_nothing_though_nobody_says_so() {
    const PROOF: Duration = Duration::from_secs(7);
    let over = Role::Active {
        generation: 1,
        until: PROOF,
    };
    let (lane, roles) = start(over, 120, &[(2000, 1), (2001, 1)], |_| {}).await;
    lane.until_ports(&[2000, 2001]).await;
    tokio::time::sleep(PROOF).await;
    lane.want(&[(2000, 1)]);
    lane.holds(Duration::from_secs(1), "nothing goes", |api| {
        api.ports() == BTreeSet::from([2000, 2001])
    })
    .await;
    roles.send_replace(ACTIVE);
    lane.until_ports(&[2000]).await;
}

#[tokio::test]
async fn a_start_without_proof_renews_rows_of_the_state_that_still_stand_and_restores_none() {
    let warm = warm(Some(&[(2000, 1), (2001, 1)]), &[2000, 2001]);
    let (lane, roles) = start_with(CAUTIOUS, BRIEF, None, warm, |api| {
        api.insert(key(2000, 1, -1), Some(&us()), Duration::from_secs(BRIEF));
    })
    .await;
    lane.holds(A_LIFE, "what stood lives", |api| {
        api.ports() == BTreeSet::from([2000])
    })
    .await;
    roles.send_replace(ACTIVE);
    lane.until_ports(&[2000, 2001]).await;
}
