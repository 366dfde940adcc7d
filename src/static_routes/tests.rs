//! Tables and reports of what is known.

use std::path::Path;

use super::*;
use crate::config::{Config, Source, Surroundings};
use crate::desired::Subject;
use crate::plan::flap::Flaps;
use crate::route::RouterPort;

fn routes() -> Vec<StaticRoute> {
    let text = "
uaa: {url: https://uaa.test, client_id: id, client_secret: hush}
routing_api: {url: https://api.test}
static_routes:
- {name: a, port: 6443, backends: ['10.0.0.5:8443', '10.0.0.6:8443'], health: {url: https://127.0.0.1/readyz}}
- {name: b, port: 6444, backends: ['10.0.0.5:1']}
";
    let surroundings = Surroundings {
        in_pod: false,
        files: false,
    };
    let config = Config::parse(text, Path::new("f"), surroundings);
    match config.unwrap_or_else(|error| panic!("{error}")).source {
        Source::Static(routes) => routes,
        Source::Cluster(_) => panic!("no static routes"),
    }
}

fn port(number: u16) -> RouterPort {
    RouterPort::new(number).unwrap()
}

fn judged(verdict: Verdict) -> Known {
    let mut known = unasked(&routes());
    known.get_mut("a").unwrap().verdict = verdict;
    known
}

#[test]
fn a_route_without_health_is_up_from_the_start_and_one_with_it_undecided() {
    let desired = table(&routes(), &unasked(&routes()));
    assert!(desired.table.tcp.keys().eq([&port(6444)]));
    assert!(desired.undecided.iter().eq([&port(6443)]));
    assert_eq!((desired.findings, desired.drained), (vec![], false));
    let source = &report(&unasked(&routes())).sources[SOURCE];
    assert!(source.required && !source.synced);
}

#[test]
fn what_is_up_is_in_the_table_under_its_name() {
    let desired = table(&routes(), &judged(Verdict::Up));
    let route = &desired.table.tcp[&port(6443)];
    assert_eq!(route.service.key.to_string(), "a");
    assert_eq!(route.backends.len(), 2);
    assert!(desired.undecided.is_empty());
    assert!(report(&judged(Verdict::Up)).sources[SOURCE].synced);
}

#[test]
fn what_is_down_is_in_no_table_and_told() {
    let desired = table(
        &routes(),
        &judged(Verdict::Down("it answers 500".to_owned())),
    );
    assert!(desired.table.tcp.keys().eq([&port(6444)]));
    assert!(desired.undecided.is_empty(), "its rows are to go");
    let [finding] = desired.findings.as_slice() else {
        panic!("{:?}", desired.findings)
    };
    let subject = Subject::Service(ServiceKey::of_static_route("a"));
    assert_eq!(
        (finding.code, &finding.subject),
        (Code::HealthFailed, &subject)
    );
    assert!(
        finding
            .to_string()
            .starts_with("static route a [health-failed]")
    );
}

#[test]
fn what_counts_as_up_without_proof_is_in_the_table_and_told() {
    let desired = table(&routes(), &judged(Verdict::Unproven(403)));
    assert_eq!(desired.table.tcp.len(), 2);
    assert_eq!(desired.findings[0].code, Code::HealthUnproven);
}

#[test]
fn a_route_that_goes_and_comes_all_the_time_is_never_kept_from_going() {
    let up = table(&routes(), &judged(Verdict::Up)).table.tcp;
    let down = table(&routes(), &judged(Verdict::Down(String::new())));
    let mut flaps = Flaps::default();
    for second in 0..30 {
        let now = Uptime::from_secs(second);
        assert_eq!(flaps.calm(&up, now).table, up);
        let calmed = flaps.calm(&down.table.tcp, now);
        assert_eq!(
            (calmed.table, calmed.findings),
            (down.table.tcp.clone(), vec![])
        );
    }
}
