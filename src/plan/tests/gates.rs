//! What may be published at all, and how often it may change.

use super::super::flap::Flaps;
use super::*;
use crate::route::{Backend, Backends, NodeUid, TcpRoute};

fn route(name: &str, node_port: u16) -> TcpRoute {
    let backend = Backend {
        ip: "10.0.0.1".parse().unwrap(),
        port: NodePort::new(node_port).unwrap(),
        node: NodeUid("n1".into()),
        zone: None,
    };
    TcpRoute {
        service: service(name),
        router_group: None,
        backends: Backends::new([backend]).unwrap(),
    }
}

#[test]
fn ports_are_admitted_only_where_nothing_can_break() {
    use crate::plan::admission::{Gate, RouterGroup, admit};
    use crate::route::PortRanges;
    let group = RouterGroup {
        guid: "g".to_owned(),
        name: "default-tcp".to_owned(),
        reservable_ports: "1024-3000".to_owned(),
    };
    let judge = |port: u16, live: bool| {
        let port = RouterPort::new(port).unwrap();
        let admission = admit(
            &BTreeMap::from([(port, route("a", 30001))]),
            Gate {
                groups: std::slice::from_ref(&group),
                vanished: &[],
                chosen: &group,
                reserved: &PortRanges::parse("1100").unwrap(),
                live: &live.then_some(port).into_iter().collect(),
            },
        );
        let code = admission
            .findings
            .first()
            .map(|finding| finding.code.as_str());
        (admission.wanted.contains_key(&port), code)
    };
    assert_eq!(judge(1024, false), (true, None));
    assert_eq!(judge(80, true), (false, Some("port-reserved")));
    assert_eq!(judge(1100, true), (false, Some("port-reserved")));
    assert_eq!(judge(2822, true), (false, Some("port-reserved")));
    assert_eq!(judge(3001, false), (false, Some("port-not-reservable")));
    assert_eq!(judge(3001, true), (true, Some("port-no-longer-reservable")));
}

#[test]
fn a_service_that_flips_its_label_is_held_at_its_last_state_until_it_calms_down() {
    let port = RouterPort::new(1024).unwrap();
    let (on, off) = (BTreeMap::from([(port, route("a", 30001))]), BTreeMap::new());
    let mut flaps = Flaps::default();
    assert!(flaps.calm(&on, NOW).findings.is_empty());
    let at = |n: u64| NOW + Duration::from_secs(n);
    for n in 1..=6 {
        let wanted = if n % 2 == 0 { &on } else { &off };
        let calmed = flaps.calm(wanted, at(n));
        assert_eq!(
            (&calmed.table, calmed.findings.len()),
            (wanted, 0),
            "change {n}"
        );
    }
    for n in 7..=20 {
        let calmed = flaps.calm(if n % 2 == 0 { &on } else { &off }, at(n));
        assert_eq!(calmed.table, on, "change {n} is not let through");
        assert_eq!(calmed.findings[0].code, Code::Flapping);
    }
    let calmed = flaps.calm(&off, at(21));
    let revisit = calmed.revisit.unwrap();
    assert_eq!(
        flaps.calm(&off, revisit).table,
        off,
        "calm again by {revisit:?}"
    );
}

#[test]
fn a_held_service_keeps_no_port_from_another() {
    let port = RouterPort::new(1024).unwrap();
    let (on, off) = (BTreeMap::from([(port, route("a", 30001))]), BTreeMap::new());
    let mut flaps = Flaps::default();
    for n in 0..=8 {
        flaps.calm(
            if n % 2 == 0 { &on } else { &off },
            NOW + Duration::from_secs(n),
        );
    }
    let other = BTreeMap::from([(port, route("b", 30002))]);
    assert_eq!(
        flaps.calm(&other, NOW + Duration::from_secs(9)).table,
        other
    );
}
