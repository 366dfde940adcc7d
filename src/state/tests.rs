use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::format::{FormatError, Record, decode, encode};
use super::*;
use crate::desired::guard::{Name, Reason};
use crate::desired::{Code, Finding};
use crate::lease::Kept;
use crate::lifecycle::Clock;
use crate::plan::NO_TLS;
use crate::route::{
    Backend, Backends, ClusterId, Hostname, HttpOptions, HttpProtocol, HttpRoute, Lane,
    LoadBalancing, NodePort, NodeUid, RouteTable, RouterPort, ServiceKey, ServiceRef, TcpRoute,
};

/// Generous: a noisy machine may stall for seconds.
const DEADLINE: Duration = Duration::from_mins(1);

fn bytes_of(contents: &Contents) -> Vec<u8> {
    encode(Record {
        written_secs: contents.written_secs,
        foundation: &contents.foundation,
        http: &contents.desired,
        rest: &contents.desired,
        withdrawals: &contents.withdrawals,
        rows: &contents.rows,
        lease: contents.lease.as_ref(),
        guard: &contents.guard,
    })
}

// --- some contents -------------------------------------------------------------------------------------------------

fn uri() -> impl Strategy<Value = Uri> {
    "(\\*\\.)?[a-c]{1,3}\\.test(/[a-z]{1,3})?".prop_map(|text| Uri::parse(&text).unwrap())
}

fn service() -> impl Strategy<Value = Arc<ServiceRef>> {
    ("[ab]", "[a-d]", "[0-9]{0,2}").prop_map(|(namespace, name, uid)| {
        let key = ServiceKey { namespace, name };
        Arc::new(ServiceRef { key, uid })
    })
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u16; 8]>().prop_map(IpAddr::from),
    ]
}

fn node_port() -> impl Strategy<Value = NodePort> {
    (1..=u16::MAX).prop_map(|port| NodePort::new(port).unwrap())
}

fn router_port() -> impl Strategy<Value = RouterPort> {
    (1..=u16::MAX).prop_map(|port| RouterPort::new(port).unwrap())
}

fn backends() -> impl Strategy<Value = Backends> {
    let backend = (address(), node_port(), "[a-c]", option::of("[yz]"));
    let backend = backend.prop_map(|(ip, port, node, zone)| Backend {
        ip,
        port,
        node: NodeUid(node.into()),
        zone: zone.map(Into::into),
    });
    vec(backend, 1..4).prop_map(|backends| Backends::new(backends).unwrap())
}

fn options() -> impl Strategy<Value = HttpOptions> {
    let balancing = [LoadBalancing::RoundRobin, LoadBalancing::LeastConnection];
    let balancing = option::of(proptest::sample::select(balancing.to_vec()));
    let name = option::of("[a-c]{1,3}\\.internal");
    let url = option::of("https://[a-z]{1,3}\\.test/\"?");
    (any::<bool>(), name, balancing, url).prop_map(
        |(http2, name, loadbalancing, route_service_url)| HttpOptions {
            protocol: if http2 {
                HttpProtocol::Http2
            } else {
                HttpProtocol::Http1
            },
            tls_server_name: name.map(|name| Hostname::parse(&name).unwrap()),
            loadbalancing,
            route_service_url,
        },
    )
}

fn desired() -> impl Strategy<Value = Arc<Desired>> {
    let http = (service(), backends(), options());
    let http = http.prop_map(|(service, backends, options)| HttpRoute {
        service,
        backends,
        options,
    });
    let tcp = (service(), option::of("[a-z]{1,3}"), backends());
    let tcp = tcp.prop_map(|(service, router_group, backends)| TcpRoute {
        service,
        router_group,
        backends,
    });
    let node_ips = btree_map(address(), "[a-z]{1,3}", 0..4);
    let node_ports = btree_map(node_port(), service(), 0..4);
    let tables = (
        btree_map(uri(), http, 0..4),
        btree_map(router_port(), tcp, 0..4),
    );
    (".{0,4}", tables, node_ips, node_ports).prop_map(
        |(cluster, (http, tcp), node_ips, node_ports)| {
            Arc::new(Desired {
                node_ips,
                node_ports,
                ..Desired::of(ClusterId(cluster), RouteTable { tcp, http })
            })
        },
    )
}

fn row() -> impl Strategy<Value = TcpRow> {
    let sni = option::of("[a-z]{0,3}");
    (
        router_port(),
        ".{0,5}",
        any::<u16>(),
        any::<i32>(),
        sni,
        ".{0,3}",
    )
        .prop_map(|(port, ip, backend_port, tls_port, sni, group)| TcpRow {
            port,
            ip,
            backend_port,
            tls_port,
            sni,
            group,
        })
}

fn contents() -> impl Strategy<Value = Contents> {
    let withdrawal = (uri(), address(), any::<u16>(), any::<bool>());
    let withdrawal = withdrawal.prop_map(|(uri, ip, port, tls)| Withdrawal {
        uri: Arc::new(uri),
        addr: SocketAddr::new(ip, port),
        tls,
    });
    let foundation = (
        ".{0,4}",
        ".{0,4}",
        option::of(".{0,4}"),
        option::of(".{0,4}"),
    );
    let foundation =
        foundation.prop_map(
            |(apiserver, app_domain, router_group, routing_api)| Foundation {
                apiserver,
                app_domain,
                router_group,
                routing_api,
            },
        );
    let lease = option::of((".{0,4}", any::<u64>(), any::<bool>()));
    let sets = (btree_set(withdrawal, 0..4), btree_set(row(), 0..4));
    let sets = (sets, guard(), lease);
    (any::<u64>(), foundation, desired(), sets).prop_map(
        |(written_secs, foundation, desired, ((withdrawals, rows), guard, lease))| Contents {
            written_secs,
            foundation,
            desired,
            withdrawals,
            rows,
            lease: lease.map(|(identity, generation, held)| Kept {
                identity,
                generation,
                held,
            }),
            guard,
        },
    )
}

fn guard() -> impl Strategy<Value = Remembered> {
    let name = prop_oneof![
        uri().prop_map(Name::Http),
        router_port().prop_map(Name::Tcp)
    ];
    let held = (name, any::<bool>()).prop_map(|(name, every)| {
        let lane = name.lane();
        let reason = if every {
            Reason::EveryRoute(lane)
        } else {
            Reason::TooMany(lane)
        };
        (name, reason)
    });
    let held = vec(held, 0..4).prop_map(|held| held.into_iter().collect());
    let both = (option::of(".{0,4}"), held);
    both.prop_map(|(kube_system, held)| Remembered { kube_system, held })
}

/// One route of each lane, one key being withdrawn, one row.
fn example() -> Contents {
    let service = Arc::new(ServiceRef {
        key: ServiceKey {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        },
        uid: "0b6e".to_owned(),
    });
    let backend = Backend {
        ip: IpAddr::from([10, 0, 0, 1]),
        port: NodePort::new(30001).unwrap(),
        node: NodeUid("node-1".into()),
        zone: None,
    };
    let backends = Backends::new([backend]).unwrap();
    let http = HttpRoute {
        service: service.clone(),
        backends: backends.clone(),
        options: HttpOptions::default(),
    };
    let tcp = TcpRoute {
        service: service.clone(),
        router_group: None,
        backends,
    };
    let (port, uri) = (
        RouterPort::new(1024).unwrap(),
        Uri::parse("a.test").unwrap(),
    );
    let table = RouteTable {
        tcp: BTreeMap::from([(port, tcp)]),
        http: BTreeMap::from([(uri, http)]),
    };
    Contents {
        written_secs: 1_000_000,
        foundation: foundation(),
        desired: Arc::new(Desired {
            node_ports: BTreeMap::from([(NodePort::new(30001).unwrap(), service)]),
            ..Desired::of(ClusterId("kube".to_owned()), table)
        }),
        withdrawals: BTreeSet::from([Withdrawal {
            uri: Arc::new(Uri::parse("gone.test").unwrap()),
            addr: SocketAddr::from(([10, 0, 0, 2], 30002)),
            tls: false,
        }]),
        rows: BTreeSet::from([TcpRow {
            port,
            ip: "10.0.0.1".to_owned(),
            backend_port: 30001,
            tls_port: NO_TLS,
            sni: None,
            group: "group".to_owned(),
        }]),
        lease: Some(Kept {
            identity: "vm-1".to_owned(),
            generation: 3,
            held: true,
        }),
        guard: Remembered {
            kube_system: Some("uid".to_owned()),
            held: BTreeMap::from([(Name::Tcp(port), Reason::TooMany(Lane::Tcp))]),
        },
    }
}

fn foundation() -> Foundation {
    Foundation {
        apiserver: "https://10.0.0.1:6443".to_owned(),
        app_domain: "apps.test".to_owned(),
        router_group: Some("default-tcp".to_owned()),
        routing_api: Some("https://api.test".to_owned()),
    }
}

// --- the format ----------------------------------------------------------------------------------------------------

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(contents in contents()) {
        prop_assert_eq!(decode(&bytes_of(&contents)).unwrap(), contents);
    }

    #[test]
    fn no_bytes_bring_the_reader_down(bytes in vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&bytes).is_err());
    }
}

#[test]
fn the_checksum_is_the_one_everybody_knows() {
    let contents = example();
    let text = String::from_utf8(bytes_of(&contents)).unwrap();
    let (head, _) = text.split_once('\n').unwrap();
    // Pins the first line: whatever changes it needs another version.
    assert!(
        head.starts_with("{\"route-sync-state\":1,\"bytes\":"),
        "{head}"
    );
    // The check value of CRC-32/ISO-HDLC.
    assert_eq!(super::format::crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn a_file_cut_anywhere_is_rejected() {
    let bytes = bytes_of(&example());
    for length in 0..bytes.len() {
        assert!(decode(&bytes[..length]).is_err(), "{length} bytes");
    }
    assert!(decode(&bytes).is_ok());
}

#[test]
fn a_file_with_any_bit_flipped_or_a_byte_more_is_rejected() {
    let mut bytes = bytes_of(&example());
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(decode(&bytes).is_err(), "bit {bit} of byte {at}");
            bytes[at] ^= 1 << bit;
        }
    }
    bytes.push(b'\n');
    assert!(decode(&bytes).is_err());
}

#[test]
fn another_version_says_so() {
    let text = String::from_utf8(bytes_of(&example())).unwrap();
    for version in [0, 2, 77] {
        let head = format!("{{\"route-sync-state\":{version},");
        let other = text.replacen("{\"route-sync-state\":1,", &head, 1);
        let error = decode(other.as_bytes()).unwrap_err();
        assert!(
            matches!(error, FormatError::Version(v) if v == version),
            "{error}"
        );
    }
}

// --- the file ------------------------------------------------------------------------------------------------------

#[test]
fn a_write_killed_at_any_byte_leaves_the_file_before_it() {
    let folder = tempfile::tempdir().unwrap();
    assert!(file::read(folder.path(), decode).unwrap().is_none());
    let old = example();
    file::write(folder.path(), &bytes_of(&old)).unwrap();
    let new = Contents {
        written_secs: 2_000_000,
        ..example()
    };
    let bytes = bytes_of(&new);
    for length in 0..=bytes.len() {
        let half = folder.path().join(format!("{}.new", file::FILE_NAME));
        std::fs::write(&half, &bytes[..length]).unwrap();
        assert_eq!(
            file::read(folder.path(), decode).unwrap(),
            Some(old.clone())
        );
    }
    file::write(folder.path(), &bytes).unwrap();
    assert_eq!(file::read(folder.path(), decode).unwrap(), Some(new));
}

#[test]
fn a_file_of_more_than_64_mib_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join(file::FILE_NAME)).unwrap();
    file.set_len(file::FILE_BYTES_MAX as u64 + 1).unwrap();
    let error = file::read(folder.path(), decode).unwrap_err();
    assert!(matches!(error, StateError::Unreadable(..)), "{error}");
}

// --- what a start may use ------------------------------------------------------------------------------------------

const MAX_AGE: Duration = Duration::from_mins(10);

fn warm(now: u64, of: &Foundation) -> Warm {
    Warm::of(example(), of, MAX_AGE, now)
}

#[test]
fn a_state_of_up_to_ten_minutes_is_announced_with_its_withdrawals() {
    for age in [0, 1, 600] {
        let warm = warm(1_000_000 + age, &foundation());
        assert_eq!(warm.table, Some(example().desired), "{age} s");
        assert_eq!(warm.withdrawals, example().withdrawals);
        assert_eq!(warm.rows, example().rows);
        assert_eq!(warm.lease, example().lease);
    }
}

#[test]
fn a_state_too_old_or_from_the_future_announces_nothing_and_keeps_its_rows_and_names() {
    for now in [1_000_601, 999_999, 0, u64::MAX] {
        let warm = warm(now, &foundation());
        assert_eq!((warm.table, warm.withdrawals.len()), (None, 0), "{now}");
        assert_eq!(warm.rows, example().rows);
        assert_eq!(warm.holders, Some(example().desired));
        // Its name is used again, but it no longer counts as the one that acts.
        let (lease, kept) = (warm.lease.unwrap(), example().lease.unwrap());
        assert_eq!((lease.held, lease.identity), (false, kept.identity));
    }
}

#[test]
fn a_state_of_another_foundation_announces_nothing_and_keeps_rows_of_the_same_routing_api() {
    let same = foundation();
    let other = || "other".to_owned();
    let of = |change: &dyn Fn(&mut Foundation)| {
        let mut of = same.clone();
        change(&mut of);
        warm(1_000_000, &of)
    };
    for warm in [
        of(&|of| of.apiserver = other()),
        of(&|of| of.app_domain = other()),
        of(&|of| of.router_group = Some(other())),
        of(&|of| of.router_group = None),
    ] {
        assert_eq!((&warm.table, warm.withdrawals.len()), (&None, 0));
        assert_eq!((warm.rows, warm.holders), (example().rows, None));
    }
    let warm = of(&|of| of.routing_api = Some(other()));
    assert_eq!((warm.table, warm.rows.len()), (None, 0));
}

// --- the task ------------------------------------------------------------------------------------------------------

struct Running {
    desired: watch::Sender<Option<Arc<Desired>>>,
    ledgers: Ledgers,
    findings: watch::Receiver<Vec<Finding>>,
    drained: watch::Receiver<bool>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    warm: Warm,
}

impl Running {
    async fn start(dir: &Path) -> Self {
        let place = Place {
            dir: dir.to_owned(),
            max_age: MAX_AGE,
        };
        let opened = open(place, foundation()).await;
        let Opened {
            warm,
            ledgers,
            keeper,
        } = opened;
        let (desired, receiver) = watch::channel(None);
        let (findings, stop) = (keeper.findings(), CancellationToken::new());
        let drained = keeper.drained();
        let task = tokio::spawn(keeper.run(receiver, Clock::start(), stop.clone()));
        Self {
            desired,
            ledgers,
            findings,
            drained,
            stop,
            task,
            warm,
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Polls the file until it is as it should be.
async fn until(dir: &Path, what: &str, check: impl Fn(&Contents) -> bool) -> Contents {
    let clock = Clock::start();
    while clock.now() < DEADLINE * 10 {
        if let Ok(Some(contents)) = file::read(dir, decode)
            && check(&contents)
        {
            return contents;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what}: not yet\n{:#?}", file::read(dir, decode));
}

#[tokio::test]
async fn what_the_lanes_note_is_there_for_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let first = Running::start(folder.path()).await;
    assert_eq!(first.warm.table, None);
    first.desired.send_replace(Some(example().desired));
    until(folder.path(), "the table", |c| {
        c.desired == example().desired
    })
    .await;
    let Contents {
        withdrawals,
        rows,
        desired,
        ..
    } = example();
    first.ledgers.rows.send_replace(rows);
    first.ledgers.http.send_replace(HttpEntry {
        applied: Some(desired),
        withdrawals,
    });
    let all = |c: &Contents| (c.withdrawals.len(), c.rows.len()) == (1, 1);
    until(folder.path(), "rows and withdrawals", all).await;
    // Nothing but SIGKILL stops a task at once.
    first.task.abort();

    let second = Running::start(folder.path()).await;
    assert_eq!(second.warm.table, Some(example().desired));
    assert_eq!(second.warm.withdrawals, example().withdrawals);
    assert_eq!(second.warm.rows, example().rows);
    // A second kill before Kubernetes answered loses nothing either.
    second.stop().await;
    let third = file::read(folder.path(), decode).unwrap().unwrap();
    assert_eq!(
        (third.desired, third.rows),
        (example().desired, example().rows)
    );
    assert_eq!(third.withdrawals, example().withdrawals);
}

#[tokio::test]
async fn a_stop_writes_what_was_noted_last() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path()).await;
    running.desired.send_replace(Some(example().desired));
    running.stop().await;
    let left = file::read(folder.path(), decode).unwrap().unwrap();
    assert_eq!(left.desired, example().desired);
}

#[tokio::test(start_paused = true)]
async fn a_state_too_old_is_not_made_young_before_kubernetes_answers() {
    let folder = tempfile::tempdir().unwrap();
    // Written in 1970.
    let bytes = bytes_of(&example());
    file::write(folder.path(), &bytes).unwrap();
    let running = Running::start(folder.path()).await;
    assert_eq!(running.warm.table, None);
    tokio::time::sleep(MAX_AGE * 2).await;
    running.ledgers.rows.send_modify(BTreeSet::clear);
    tokio::time::sleep(MAX_AGE).await;
    let name = folder.path().join(file::FILE_NAME);
    assert_eq!(std::fs::read(&name).unwrap(), bytes);
    running.stop().await;
    assert_eq!(std::fs::read(&name).unwrap(), bytes);
}

#[tokio::test(start_paused = true)]
async fn the_stamp_is_renewed_while_nothing_changes() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path()).await;
    running.desired.send_replace(Some(example().desired));
    until(folder.path(), "the table", |_| true).await;
    let name = folder.path().join(file::FILE_NAME);
    std::fs::remove_file(&name).unwrap();
    until(folder.path(), "another stamp", |_| true).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_cannot_be_written_is_told_of_and_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("later");
    let mut running = Running::start(&dir).await;
    running.desired.send_replace(Some(example().desired));
    let told = running.findings.wait_for(|findings| !findings.is_empty());
    let told = tokio::time::timeout(DEADLINE, told).await.unwrap();
    assert_eq!(told.unwrap()[0].code, Code::StateNotKept);
    std::fs::create_dir(&dir).unwrap();
    let gone = running.findings.wait_for(Vec::is_empty);
    tokio::time::timeout(DEADLINE, gone).await.unwrap().unwrap();
    assert!(file::read(&dir, decode).unwrap().is_some());
    running.stop().await;
}

#[tokio::test]
async fn a_full_disk_is_told_of_and_leaves_the_file_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = bytes_of(&example());
    file::write(folder.path(), &bytes).unwrap();
    // Every write to this device fails as on a disk without room.
    let half = folder.path().join(format!("{}.new", file::FILE_NAME));
    std::os::unix::fs::symlink("/dev/full", half).unwrap();
    let mut running = Running::start(folder.path()).await;
    running.desired.send_replace(Some(example().desired));
    let told = running.findings.wait_for(|findings| !findings.is_empty());
    let told = tokio::time::timeout(DEADLINE, told).await.unwrap();
    assert_eq!(told.unwrap()[0].code, Code::StateNotKept);
    running.stop().await;
    let left = std::fs::read(folder.path().join(file::FILE_NAME)).unwrap();
    assert_eq!(left, bytes);
}

#[tokio::test]
async fn a_file_that_is_none_of_ours_counts_as_none_and_is_told_of_until_it_is_replaced() {
    for text in ["", "{}\n", "{\"route-sync-state\":9}\n", "garbage"] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(file::FILE_NAME), text).unwrap();
        let mut running = Running::start(folder.path()).await;
        assert_eq!(running.warm.table, None, "{text}");
        assert_eq!(running.findings.borrow()[0].code, Code::StateNotKept);
        running.desired.send_replace(Some(example().desired));
        let gone = running.findings.wait_for(Vec::is_empty);
        tokio::time::timeout(DEADLINE, gone).await.unwrap().unwrap();
        running.stop().await;
    }
}

#[tokio::test]
async fn a_drained_table_is_on_record_only_once_both_lanes_have_it() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path()).await;
    running.desired.send_replace(Some(example().desired));
    let applied = Some(example().desired);
    let entry = |applied| HttpEntry {
        applied,
        withdrawals: BTreeSet::new(),
    };
    running.ledgers.http.send_replace(entry(applied));
    let mut empty = Desired::clone(&example().desired);
    (empty.table, empty.drained) = (RouteTable::default(), true);
    let empty = Arc::new(empty);
    running.desired.send_replace(Some(empty.clone()));
    // Hosts are still written, as the lane announces them still.
    until(folder.path(), "ports gone", |c| {
        c.desired.table.tcp.is_empty()
    })
    .await;
    assert!(!*running.drained.borrow());
    running.ledgers.http.send_replace(entry(Some(empty)));
    until(folder.path(), "hosts gone", |c| {
        c.desired.table.http.is_empty()
    })
    .await;
    let mut drained = running.drained.clone();
    let told = tokio::time::timeout(DEADLINE * 10, drained.wait_for(|drained| *drained));
    told.await.unwrap().unwrap();
    running.stop().await;
}
