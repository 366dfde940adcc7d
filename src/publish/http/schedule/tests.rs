mod bridging;

use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::publish::http::tls_keys::TlsKeys;
use crate::route::{Backends, Hostname, HttpOptions, NodePort, NodeUid, RouteTable, ServiceRef};

const INTERVAL: Duration = Duration::from_secs(20);

/// A table in short: `("a", 30080, &[1, 2])` is host `a.test` on nodes 1 and 2.
fn table(routes: &[(&str, u16, &[u8])]) -> Arc<Desired> {
    table_with(routes, &HttpOptions::default())
}

fn table_with(routes: &[(&str, u16, &[u8])], options: &HttpOptions) -> Arc<Desired> {
    let route = |(host, port, nodes): &(&str, u16, &[u8])| {
        let uri = Uri::of_host(Hostname::parse(&format!("{host}.test")).unwrap());
        let backend = |node: &u8| Backend {
            ip: IpAddr::from([10, 0, 0, *node]),
            port: NodePort::new(*port).unwrap(),
            node: NodeUid(format!("node-{node}").into()),
            zone: None,
        };
        let service = Arc::new(ServiceRef {
            key: ServiceKey {
                namespace: "default".to_owned(),
                name: format!("svc-{port}"),
            },
            uid: format!("uid-{port}"),
        });
        let route = HttpRoute {
            service,
            backends: Backends::new(nodes.iter().map(backend)).unwrap(),
            options: options.clone(),
        };
        (uri, route)
    };
    let table = RouteTable {
        http: routes.iter().map(route).collect(),
        ..RouteTable::default()
    };
    Arc::new(Desired::of(ClusterId("kube".to_owned()), table))
}

fn schedule() -> Schedule {
    Schedule::new(true, INTERVAL, 5000)
}

fn secs(seconds: u64) -> Uptime {
    Duration::from_secs(seconds)
}

/// `+a,b@1:30080` or `-a@1:30080`.
fn brief(message: &Outgoing) -> String {
    let value: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
    let uris = value["uris"].as_array().unwrap().iter();
    let uris: Vec<_> = uris
        .map(|uri| uri.as_str().unwrap().trim_end_matches(".test"))
        .collect();
    let host = value["host"].as_str().unwrap().rsplit('.').next().unwrap();
    let port = value["port"].as_u64().or(value["tls_port"].as_u64());
    let sign = if message.subject == wire::REGISTER {
        '+'
    } else {
        '-'
    };
    format!("{sign}{}@{host}:{}", uris.join(","), port.unwrap())
}

fn drain(schedule: &mut Schedule, now: Uptime) -> Vec<String> {
    std::iter::from_fn(|| schedule.pop(now))
        .map(|message| brief(&message))
        .collect()
}

/// Everything sent from `from` to `until`, with its second, beats left out.
fn news(schedule: &mut Schedule, from: Uptime, until: Uptime) -> Vec<(u64, String)> {
    let mut sent = Vec::new();
    let mut now = from;
    while now <= until {
        while let Some(message) = schedule.pop(now) {
            if !message.beat {
                sent.push((now.as_secs(), brief(&message)));
            }
        }
        let Some(next) = schedule.next_deadline() else {
            break;
        };
        now = next.max(now + Duration::from_micros(1));
    }
    sent
}

#[test]
fn nothing_leaves_without_a_connection() {
    let mut schedule = schedule();
    schedule.apply(&table(&[("a", 30080, &[1])]), secs(1));
    assert_eq!(drain(&mut schedule, secs(100)), [""; 0]);
    assert_eq!(schedule.next_deadline(), None);
    schedule.connected(secs(101));
    assert_eq!(drain(&mut schedule, secs(101)), ["+a@1:30080"]);
}

#[test]
fn a_cold_start_announces_the_first_backend_of_every_route_before_the_second_of_any() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    let desired = table(&[("a", 30001, &[1, 2]), ("b", 30002, &[2, 1])]);
    schedule.apply(&desired, secs(1));
    assert_eq!(
        drain(&mut schedule, secs(1)),
        ["+a@1:30001", "+b@2:30002", "+b@1:30002", "+a@2:30001"]
    );
}

#[test]
fn all_uris_of_an_endpoint_share_one_message_and_leave_it_one_by_one() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table(&[("a", 30001, &[1]), ("b", 30001, &[1])]), secs(1));
    assert_eq!(drain(&mut schedule, secs(1)), ["+a,b@1:30001"]);
    schedule.apply(&table(&[("b", 30001, &[1])]), secs(2));
    assert_eq!(drain(&mut schedule, secs(2)), ["+b@1:30001", "-a@1:30001"]);
}

#[test]
fn a_withdrawal_is_repeated_and_then_forgotten() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table(&[("a", 30001, &[1])]), secs(1));
    assert_eq!(drain(&mut schedule, secs(1)), ["+a@1:30001"]);
    schedule.apply(&table(&[]), secs(100));
    let sent = news(&mut schedule, secs(100), secs(1000));
    let times: Vec<_> = sent.iter().map(|(at, _)| *at - 100).collect();
    assert_eq!(times, [0, 1, 5, 15, 30, 60, 120]);
    assert!(sent.iter().all(|(_, message)| message == "-a@1:30001"));
    assert_eq!(schedule.withdrawal_count(), 0);
    assert!(schedule.routes.is_empty());
}

fn tls() -> HttpOptions {
    HttpOptions {
        tls_server_name: Some(Hostname::parse("web.internal").unwrap()),
        ..HttpOptions::default()
    }
}

#[test]
fn what_an_earlier_process_left_is_withdrawn_like_any_tls_endpoint_unless_it_is_wanted() {
    let left = TlsKeys::wanted(&table_with(
        &[
            ("a", 30001, &[1, 2]),
            ("b", 30002, &[1]),
            ("c", 30003, &[1]),
        ],
        &tls(),
    ));
    for connected_first in [true, false] {
        let mut schedule = schedule();
        if connected_first {
            schedule.connected(secs(1));
        }
        // One endpoint of `a` stays; `c` is plain now, which replaces what it was.
        let mut desired = table_with(&[("a", 30001, &[2])], &tls());
        let plain = table(&[("c", 30003, &[1])]);
        let wanted = Arc::make_mut(&mut desired);
        wanted.table.http.extend(plain.table.http.clone());
        schedule.apply(&desired, secs(1));
        let adopted = schedule.adopt(&left, secs(1));
        assert_eq!(adopted.len(), 2);
        assert_eq!(schedule.tls_keys().len(), 3, "two left and the one wanted");
        if !connected_first {
            schedule.connected(secs(1));
        }
        let sent = news(&mut schedule, secs(1), secs(2000));
        let brief: Vec<_> = sent.iter().map(|(_, text)| text.as_str()).collect();
        let before: Vec<_> = brief
            .iter()
            .take_while(|text| text.starts_with('+'))
            .collect();
        assert!(
            before.contains(&&"+a@2:30001"),
            "the replacement goes first: {brief:?}"
        );
        for (key, times) in [("-a@1:30001", 24), ("-b@1:30002", 24), ("-c@1:30003", 0)] {
            // Keys of one endpoint share their message only where their ports are the same.
            let count = brief.iter().filter(|text| **text == key).count();
            assert_eq!(count, times, "{key} in {brief:?}");
        }
        assert_eq!(
            schedule.tls_keys(),
            TlsKeys::wanted(&desired),
            "the rest is forgotten"
        );
    }
}

#[test]
fn a_withdrawal_of_an_earlier_process_ends_when_the_key_is_wanted_again() {
    let desired = table_with(&[("a", 30001, &[1])], &tls());
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table(&[]), secs(1));
    schedule.adopt(&TlsKeys::wanted(&desired), secs(1));
    assert_eq!(drain(&mut schedule, secs(1)), ["-a@1:30001"]);
    let revision = schedule.tls_revision();
    schedule.apply(&desired, secs(2));
    assert_ne!(schedule.tls_revision(), revision);
    let sent = news(&mut schedule, secs(2), secs(2000));
    assert_eq!(sent, [(2, "+a@1:30001".to_owned())]);
    assert_eq!(schedule.withdrawal_count(), 0);
}

#[test]
fn a_tls_endpoint_is_withdrawn_for_ten_minutes_and_for_each_router_that_starts() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table_with(&[("a", 30001, &[1])], &tls()), secs(1));
    drain(&mut schedule, secs(1));
    schedule.apply(&table(&[]), secs(100));
    let sent = news(&mut schedule, secs(100), secs(405));
    assert_eq!(sent.last().unwrap(), &(400, "-a@1:30001".to_owned()));
    schedule.router_started(secs(410), 0.0);
    let sent = news(&mut schedule, secs(410), secs(2000));
    let times: Vec<_> = sent.iter().map(|(at, _)| *at).collect();
    assert_eq!(
        times,
        [410, 430, 460, 490, 520, 550, 580, 610, 640, 670, 700]
    );
}

#[test]
fn a_key_wanted_again_is_announced_and_never_withdrawn_any_more() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    let desired = table(&[("a", 30001, &[1])]);
    schedule.apply(&desired, secs(1));
    drain(&mut schedule, secs(1));
    schedule.apply(&table(&[]), secs(2));
    assert_eq!(drain(&mut schedule, secs(2)), ["-a@1:30001"]);
    schedule.apply(&desired, secs(2));
    assert_eq!(
        news(&mut schedule, secs(2), secs(300)),
        [(2, "+a@1:30001".to_owned())]
    );
}

#[test]
fn a_route_that_moves_is_announced_at_its_new_endpoints_before_it_leaves_the_old() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table(&[("a", 30001, &[1, 2])]), secs(1));
    drain(&mut schedule, secs(1));
    schedule.apply(&table(&[("a", 30001, &[3, 4])]), secs(2));
    assert_eq!(
        drain(&mut schedule, secs(2)),
        [
            "+a@3:30001",
            "+a@4:30001",
            "+a@4:30001",
            "-a@1:30001",
            "-a@2:30001"
        ]
    );
}

#[test]
fn a_node_port_that_changes_hands_loses_its_old_uris_at_once() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table(&[("a", 30001, &[1])]), secs(1));
    drain(&mut schedule, secs(1));
    schedule.apply(&table(&[("b", 30001, &[1])]), secs(2));
    assert_eq!(drain(&mut schedule, secs(2)), ["+b@1:30001", "-a@1:30001"]);
}

#[test]
fn another_attribute_is_a_plain_announcement() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table(&[("a", 30001, &[1])]), secs(1));
    drain(&mut schedule, secs(1));
    let options = HttpOptions {
        route_service_url: Some("https://rs.test".to_owned()),
        ..HttpOptions::default()
    };
    schedule.apply(&table_with(&[("a", 30001, &[1])], &options), secs(2));
    assert_eq!(drain(&mut schedule, secs(2)), ["+a@1:30001"]);
    assert_eq!(schedule.withdrawal_count(), 0);
}

#[test]
fn a_new_connection_gets_replacements_then_withdrawals_then_the_rest() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    let before = table(&[
        ("a", 30001, &[1, 2]),
        ("b", 30002, &[1]),
        ("c", 30003, &[1]),
    ]);
    schedule.apply(&before, secs(1));
    drain(&mut schedule, secs(1));
    schedule.disconnected(secs(2));
    let after = table(&[("b", 30002, &[1]), ("c", 30003, &[2, 3])]);
    schedule.apply(&after, secs(3));
    assert_eq!(drain(&mut schedule, secs(4)), [""; 0]);
    schedule.connected(secs(5));
    assert_eq!(
        drain(&mut schedule, secs(5)),
        [
            "+c@2:30003",
            "-a@1:30001",
            "+c@3:30003",
            "-c@1:30003",
            "-a@2:30001",
            "+b@1:30002"
        ]
    );
}

#[test]
fn what_is_wanted_again_while_down_goes_first_because_its_withdrawal_may_be_replayed() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    let all: &[(&str, u16, &[u8])] = &[
        ("a", 30001, &[1]),
        ("b", 30002, &[1]),
        ("z", 30003, &[1, 2]),
    ];
    schedule.apply(&table(all), secs(1));
    drain(&mut schedule, secs(1));
    schedule.apply(&table(&[all[0], all[1], ("z", 30003, &[1])]), secs(2));
    assert_eq!(drain(&mut schedule, secs(2)), ["+z@1:30003", "-z@2:30003"]);
    schedule.disconnected(secs(3));
    schedule.apply(&table(all), secs(4));
    schedule.connected(secs(5));
    assert_eq!(drain(&mut schedule, secs(5))[0], "+z@2:30003");
    // Nothing proved that it arrived.
    schedule.disconnected(secs(6));
    schedule.connected(secs(7));
    assert_eq!(drain(&mut schedule, secs(7))[0], "+z@2:30003");
    schedule.confirm(schedule.sent(), secs(7));
    schedule.disconnected(secs(8));
    schedule.connected(secs(9));
    assert_eq!(drain(&mut schedule, secs(9))[0], "+a@1:30001");
}

#[test]
fn however_many_routers_start_one_sweep_answers_them() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table(&[("a", 30001, &[1])]), secs(1));
    drain(&mut schedule, secs(1));
    schedule.router_started(secs(2), 1.0);
    schedule.router_started(secs(3), 0.0);
    assert_eq!(
        news(&mut schedule, secs(2), secs(100)),
        [(6, "+a@1:30001".to_owned())]
    );
}

#[test]
fn a_route_is_live_once_its_announcement_over_this_connection_is_confirmed() {
    let mut schedule = schedule();
    let state = |schedule: &mut Schedule| {
        let reports = schedule.take_reports();
        assert_eq!(reports.len(), 1);
        reports[0].1.as_ref().map(|report| report.state)
    };
    schedule.apply(&table(&[("a", 30001, &[1])]), secs(1));
    assert_eq!(state(&mut schedule), Some(RouteState::Pending));
    schedule.connected(secs(1));
    schedule.confirm(0, secs(1));
    assert!(schedule.take_reports().is_empty());
    let number = schedule.pop(secs(1)).unwrap().number;
    schedule.confirm(number, secs(1));
    assert_eq!(state(&mut schedule), Some(RouteState::Live));
    schedule.disconnected(secs(2));
    assert_eq!(state(&mut schedule), Some(RouteState::Pending));
    schedule.connected(secs(3));
    schedule.confirm(number, secs(3));
    assert!(
        schedule.take_reports().is_empty(),
        "that was another connection"
    );
    let number = schedule.pop(secs(3)).unwrap().number;
    schedule.confirm(number, secs(3));
    assert_eq!(state(&mut schedule), Some(RouteState::Live));
    schedule.apply(&table(&[]), secs(4));
    assert_eq!(state(&mut schedule), Some(RouteState::Withdrawing));
    news(&mut schedule, secs(4), secs(200));
    assert_eq!(state(&mut schedule), None);
}

#[test]
fn beats_are_spread_over_the_interval() {
    let hosts: Vec<String> = (0..200).map(|n| format!("h{n}")).collect();
    let routes: Vec<(&str, u16, &[u8])> = (30000..)
        .zip(&hosts)
        .map(|(port, host)| (host.as_str(), port, &[1, 2, 3, 4, 5][..]))
        .collect();
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table(&routes), secs(1));
    let mut now = secs(1);
    let mut per_second = BTreeMap::<u64, usize>::new();
    while now < secs(41) {
        while let Some(message) = schedule.pop(now) {
            if now >= secs(21) {
                assert!(message.beat);
                *per_second.entry(now.as_secs()).or_default() += 1;
            }
        }
        now += Duration::from_millis(10);
    }
    assert_eq!(per_second.values().sum::<usize>(), 1000);
    // 50 a second on average; a hash that clumps would fail by far.
    assert!(per_second.len() == 20 && per_second.values().all(|n| (20..100).contains(n)));
}

#[test]
fn nothing_is_settled_before_the_first_table() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    assert!(!schedule.is_settled());
    schedule.apply(&table(&[]), secs(2));
    assert!(schedule.is_settled());
}

#[test]
fn an_interval_of_no_whole_ticks_is_adopted_once() {
    let mut schedule = schedule();
    // A quarter of a prune threshold of 25 s.
    let odd = Duration::from_millis(6250);
    assert!(schedule.set_interval(odd));
    assert!(!schedule.set_interval(odd));
}

#[test]
fn a_shorter_interval_is_kept_from_then_on() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table(&[("a", 30001, &[1])]), secs(1));
    drain(&mut schedule, secs(1));
    schedule.set_interval(secs(5));
    let mut beats = 0;
    for tenth in 10..1010 {
        beats += drain(&mut schedule, Duration::from_millis(tenth * 100)).len();
    }
    assert_eq!(beats, 20);
}

/// What a gorouter would hold.
#[derive(Default)]
struct Router {
    keys: BTreeMap<(String, String), Uptime>,
    /// The message it never gets.
    misses: Option<u64>,
}

impl Router {
    fn take(&mut self, message: &Outgoing, now: Uptime) -> Vec<(String, String)> {
        let text = brief(message);
        let (uris, endpoint) = text[1..].split_once('@').unwrap();
        let keys: Vec<_> = uris
            .split(',')
            .map(|uri| (uri.to_owned(), endpoint.to_owned()))
            .collect();
        for key in keys.iter().filter(|_| self.misses != Some(message.number)) {
            if text.starts_with('+') {
                self.keys.insert(key.clone(), now);
            } else {
                self.keys.remove(key);
            }
        }
        keys
    }

    fn hosts(&self) -> BTreeSet<String> {
        self.keys.keys().map(|(host, _)| host.clone()).collect()
    }
}

fn wanted(desired: &Desired) -> BTreeSet<(String, String)> {
    let keys = |(uri, route): (&Uri, &HttpRoute)| {
        let uri = uri.to_string().trim_end_matches(".test").to_owned();
        let key = move |backend: &Backend| {
            let address = backend.to_string();
            (uri.clone(), address.rsplit('.').next().unwrap().to_owned())
        };
        route.backends.iter().map(key).collect::<Vec<_>>()
    };
    desired.table.http.iter().flat_map(keys).collect()
}

type Step = (u8, Vec<(u8, u8, Vec<u8>)>, u16);

/// Runs a history and checks every rule after every message; the messages are returned. A second router misses one of
/// them, and no wanted host ceases to lead somewhere for that.
fn play(steps: &[Step], missed: u64) -> Vec<Outgoing> {
    let mut schedule = Schedule::new(true, secs(5), 1000);
    let mut routers = [None, Some(missed)].map(|misses| Router {
        misses,
        ..Router::default()
    });
    let mut sent = Vec::new();
    let mut now = secs(1);
    let mut desired = table(&[]);
    schedule.connected(now);
    for (kind, routes, tenths) in steps {
        match kind {
            0 => schedule.disconnected(now),
            1 => {
                schedule.disconnected(now);
                schedule.connected(now);
            }
            2 => schedule.router_started(now, 0.5),
            _ => {
                let hosts: Vec<String> = routes.iter().map(|(h, ..)| format!("h{h}")).collect();
                let routes: Vec<(&str, u16, &[u8])> = hosts
                    .iter()
                    .zip(routes)
                    .map(|(host, (_, port, nodes))| {
                        (host.as_str(), 30000 + u16::from(*port), nodes.as_slice())
                    })
                    .collect();
                desired = table(&routes);
                schedule.apply(&desired, now);
            }
        }
        let until = now + Duration::from_millis(u64::from(*tenths) * 100);
        run_until(&mut schedule, &mut routers, &desired, now, until, &mut sent);
        now = until;
    }
    schedule.disconnected(now);
    schedule.connected(now);

    let until = now + secs(200);
    run_until(&mut schedule, &mut routers, &desired, now, until, &mut sent);
    let wanted = wanted(&desired);
    let held: BTreeSet<_> = routers[0].keys.keys().cloned().collect();
    assert_eq!(
        held, wanted,
        "the router holds what is wanted and nothing else"
    );
    for (key, at) in &routers[0].keys {
        assert!(
            until.checked_sub(*at).unwrap() <= secs(6),
            "{key:?} was last heard of at {at:?}"
        );
    }
    assert_eq!(schedule.withdrawal_count(), 0);
    assert_eq!(schedule.routes.len(), desired.table.http.len());

    sent
}

fn run_until(
    schedule: &mut Schedule,
    routers: &mut [Router; 2],
    desired: &Desired,
    from: Uptime,
    until: Uptime,
    sent: &mut Vec<Outgoing>,
) {
    let wanted = wanted(desired);
    let [router, other] = routers;
    let mut now = from;
    loop {
        while let Some(message) = schedule.pop(now) {
            let keys = router.take(&message, now);
            if message.subject == wire::UNREGISTER {
                for key in keys {
                    assert!(!wanted.contains(&key), "{key:?} is wanted");
                }
            }
            let led = other.hosts();
            other.take(&message, now);
            let leads = other.hosts();
            let dark = led.difference(&leads);
            let dark: Vec<_> = dark
                .filter(|host| wanted.iter().any(|(other, _)| other == *host))
                .collect();
            assert!(dark.is_empty(), "{dark:?} after {}", brief(&message));
            sent.push(message);
        }
        let Some(next) = schedule.next_deadline().filter(|next| *next <= until) else {
            return;
        };
        assert!(next > now, "a deadline that has passed would be a hot loop");
        now = next;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_the_router_ends_up_with_what_is_wanted(
        steps in proptest::collection::vec(
            (
                0u8..8,
                proptest::collection::vec(
                    (0u8..6, 0u8..4, proptest::collection::vec(1u8..6, 1..4)), 0..6
                ),
                0u16..300,
            ),
            1..12,
        ),
        missed in 1u64..200,
    ) {
        let once = play(&steps, missed);
        prop_assert_eq!(once, play(&steps, missed), "the same history gives the same bytes");
    }
}

#[test]
fn the_first_lapse_counts_from_each_endpoints_last_announcement_that_is_proven() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table(&[("a", 30001, &[1]), ("b", 30002, &[1])]), secs(1));
    let sent = |schedule: &mut Schedule, now| {
        drain(schedule, now);
        schedule.sent()
    };
    let first = sent(&mut schedule, secs(1));
    assert_eq!(schedule.lapses_at(), None, "no router is known to have it");
    schedule.confirm(first, secs(2));
    assert_eq!(schedule.lapses_at(), Some(secs(121)));
    let beats = sent(&mut schedule, secs(22));
    assert!(beats > first);
    assert_eq!(schedule.lapses_at(), Some(secs(121)));

    // The beats never arrived, whatever later numbers are confirmed.
    schedule.disconnected(secs(23));
    schedule.connected(secs(30));
    let one = schedule.pop(secs(30)).unwrap();
    schedule.confirm(one.number, secs(31));
    assert_eq!(schedule.lapses_at(), Some(secs(121)));
    let all = sent(&mut schedule, secs(30));
    schedule.confirm(all, secs(31));
    assert_eq!(schedule.lapses_at(), Some(secs(150)));

    // Only what is registered can lapse.
    schedule.apply(&table(&[]), secs(32));
    assert_eq!(schedule.lapses_at(), None);
}

#[test]
fn tls_endpoints_never_lapse() {
    let tls = HttpOptions {
        tls_server_name: Some(Hostname::parse("backend.test").unwrap()),
        ..HttpOptions::default()
    };
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table_with(&[("a", 30001, &[1])], &tls), secs(1));
    drain(&mut schedule, secs(1));
    schedule.confirm(schedule.sent(), secs(2));
    assert_eq!(schedule.lapses_at(), None);
}
