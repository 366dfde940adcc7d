//! Another cluster behind the same address.

use super::*;

const OURS: &str = "uid-of-ours";
const OTHER: &str = "uid-of-another";

/// A world whose cluster said who it is.
fn known(first: Desired) -> World {
    let mut world = World::new(wanted([], []));
    world.sees(Some(OURS));
    world.pass(first);
    world
}

impl World {
    fn sees(&mut self, kube_system: Option<&str>) {
        self.evidence.kube_system = kube_system.map(str::to_owned);
    }

    /// What another cluster shows, under the name it gives itself.
    fn passes_as(&mut self, cluster: &str, mut desired: Desired) -> Arc<Desired> {
        desired.cluster = ClusterId(cluster.to_owned());
        self.pass(desired)
    }
}

#[test]
fn nothing_of_ours_goes_and_nothing_of_the_other_comes_however_often_it_is_listed() {
    let mut world = known(wanted(0..3, 0..2));
    world.sees(Some(OTHER));
    for _ in 0..5 {
        world.lists();
        let told = world.passes_as("other", wanted([1, 7, 8], []));
        assert_eq!(told.table, wanted(0..3, 0..2).table);
        assert_eq!(told.cluster, ClusterId("c".to_owned()));
        let held = told.held.as_ref().unwrap();
        assert_eq!((held.count(Lane::Http), held.count(Lane::Tcp)), (2, 3));
        assert_eq!(held.reasons, BTreeSet::from([Reason::AnotherCluster]));
        let codes: Vec<_> = told.findings.iter().map(|it| it.code).collect();
        assert_eq!(codes, [Code::AnotherCluster], "one finding, not one each");
        let finding = &told.findings[0];
        for part in [OURS, OTHER] {
            assert!(finding.message.contains(part), "{}", finding.message);
        }
        let hint = finding.hint.as_ref().unwrap();
        assert!(hint.contains(&format!("approve {}", held.plan)), "{hint}");
    }
}

#[test]
fn a_pass_that_shows_the_same_other_cluster_gives_the_very_same_table() {
    let mut world = known(wanted(0..3, []));
    world.sees(Some(OTHER));
    let told = world.pass(wanted([], []));
    assert!(Arc::ptr_eq(&told, &world.pass(wanted([9], []))));
}

#[test]
fn once_it_is_put_back_all_goes_on_as_before() {
    let mut world = known(wanted(0..20, []));
    world.left(0..20, BY_EVENT);
    let before = world.pass(wanted(12..20, []));
    assert_eq!(before.held.as_ref().unwrap().routes.len(), 12);
    world.sees(Some(OTHER));
    let stayed = world.pass(wanted([], []));
    assert_ne!(plan(&before), plan(&stayed));
    world.sees(Some(OURS));
    assert_eq!(world.pass(wanted(12..20, [])), before);
}

#[test]
fn approval_gives_all_of_ours_up_for_what_the_other_wants_under_its_own_name() {
    let mut world = known(wanted(0..20, 0..20));
    world.sees(Some(OTHER));
    let told = world.pass(wanted([3, 30], []));
    assert!(world.guard.approve("0").is_err());
    assert_eq!(world.guard.approve(&plan(&told)).unwrap().len(), 40);
    let told = world.passes_as("other", wanted([3, 30], []));
    assert_eq!(
        (ports(&told), told.table.http.len(), told.held.clone()),
        (vec![3, 30], 0, None)
    );
    assert_eq!(told.cluster, ClusterId("other".to_owned()));
    // From now on it is ours, and the first is the stranger.
    world.sees(Some(OURS));
    assert!(world.pass(wanted(0..20, 0..20)).held.is_some());
}

#[test]
fn a_plan_that_was_approved_is_that_of_one_other_cluster_alone() {
    let mut world = known(wanted(0..3, []));
    world.sees(Some(OTHER));
    let first = plan(&world.pass(wanted([], [])));
    world.guard.approve(&first).unwrap();
    world.sees(Some("uid-of-a-third"));
    let told = world.pass(wanted([], []));
    assert_eq!(told.table.tcp.len(), 3);
    assert_ne!(plan(&told), first);
    world.sees(Some(OTHER));
    assert_eq!(world.pass(wanted([], [])).table.tcp.len(), 3, "used up");
}

#[test]
fn who_cannot_tell_the_cluster_takes_it_for_the_same_and_keeps_its_name() {
    let mut world = World::new(wanted(0..3, []));
    // The right to read it came, went and came again.
    for seen in [Some(OURS), None, Some(OURS)] {
        world.sees(seen);
        let told = world.passes_as("https://10.0.0.1:6443", wanted(1..3, []));
        assert_eq!(told.cluster, ClusterId("c".to_owned()), "{seen:?}");
        assert_eq!(told.table.tcp.len(), 2);
    }
    world.sees(Some(OTHER));
    assert!(world.pass(wanted([], [])).held.is_some());
}

#[test]
fn where_no_route_lives_another_cluster_is_taken_at_once() {
    let mut world = known(wanted([], []));
    world.sees(Some(OTHER));
    let told = world.passes_as("other", wanted(0..3, []));
    assert_eq!((told.table.tcp.len(), told.held.clone()), (3, None));
    assert_eq!(told.cluster, ClusterId("other".to_owned()));
}

#[test]
fn a_backend_goes_where_its_node_is_one_of_the_others_and_its_node_port_another_services() {
    let elsewhere = IpAddr::from([10, 0, 0, 2]);
    let mut first = wanted(0..5, []);
    for (port, route) in &mut first.table.tcp {
        let index = port.get() - 2000;
        let both: &[IpAddr] = if index < 4 {
            &[NODE, elsewhere]
        } else {
            &[NODE]
        };
        route.backends = backends(index, both);
    }
    let mut world = known(first);
    world.sees(Some(OTHER));
    let port = |index: u16| NodePort::new(30_000 + index).unwrap();
    // Of the new cluster's Services one has the node port of ours and one that of its own namesake; two more carry
    // no label.
    let mut other = wanted([], []);
    other.node_ports = BTreeMap::from([(port(0), service(70)), (port(1), service(1))]);
    world.others = BTreeMap::from([(port(2), service(71)), (port(4), service(72))]);
    let told = world.pass(other.clone());
    let left: Vec<_> = told
        .table
        .tcp
        .values()
        .map(|it| it.backends.len())
        .collect();
    assert_eq!((ports(&told), left), (vec![0, 1, 2, 3], vec![1, 2, 1, 2]));
    // Where its nodes are others its node ports mean nothing.
    let mut world = known(wanted(0..2, []));
    world.sees(Some(OTHER));
    other.node_ips = BTreeMap::from([(elsewhere, "n2".to_owned())]);
    assert_eq!(ports(&world.pass(other)), [0, 1]);
}

#[test]
fn after_a_restart_the_other_cluster_is_still_another() {
    let mut world = known(wanted(0..3, []));
    let mut remembered = Remembered::default();
    assert!(world.guard.remember(&mut remembered));
    world.guard = Guard::of_last_process(world.guard.told.clone(), remembered);
    world.sees(Some(OTHER));
    let told = world.passes_as("other", wanted([7], []));
    assert_eq!(told.table, wanted(0..3, []).table);
    assert_eq!(told.cluster, ClusterId("c".to_owned()));
    // Until it is approved the next process must take it for another, too.
    let mut remembered = Remembered::default();
    world.guard.remember(&mut remembered);
    assert_eq!(remembered.kube_system.as_deref(), Some(OURS));
}
