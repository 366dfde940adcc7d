//! Which cluster answers: nothing of two is ever shown together, and who may not be told is a finding.

use std::time::Duration;

use route_sync::desired::Code;
use route_sync::kubernetes::Timing;
use route_sync::kubernetes::snapshot::Snapshot;
use route_sync::status::SourceReport;
use serde_json::json;
use tokio::time::timeout;

use super::apiserver::{ApiServer, Fault};
use super::{
    DEADLINE, HTTP, TCP, block_on, found, has, key, quick, stays, watching, watching_with,
};

/// Watches end soon, and who answers is asked again with each.
fn restless() -> Timing {
    Timing {
        watch_timeout: Duration::from_secs(1),
        watch_jitter: Duration::ZERO,
        ..quick()
    }
}

/// The name of one Service and one Node that a cluster has.
fn names(snapshot: &Snapshot) -> (Vec<&str>, Vec<&str>) {
    let services = snapshot.services.keys().map(|key| key.name.as_str());
    let nodes = snapshot.nodes.keys().map(String::as_str);
    (services.collect(), nodes.collect())
}

#[test]
fn another_cluster_behind_the_same_address_is_shown_whole_and_under_its_own_name() {
    block_on(async {
        let (server, other) = (ApiServer::start().await, ApiServer::start().await);
        let name = json!({"metadata": {"name": "kube-system", "uid": "another"}});
        other.put("namespaces", name);
        server.node("node-1", 0);
        server.service("web", &[(HTTP, "web")], 30_001);
        for _ in 0..20 {
            // It is older: a watch that goes on from our version hears the half of it.
            other.node("node-2", 0);
        }
        other.service("db", &[(TCP, "2000")], 30_001);
        let mut watched = watching(&server, quick());
        let first = watched.service("web").await;
        let ours = first.evidence.kube_system.clone();
        assert_eq!(ours.as_deref(), Some(first.cluster.0.as_str()));
        let snapshots = &mut watched.receivers.snapshot;
        for round in 0..4 {
            server.exchange(&other);
            let shown = async {
                loop {
                    snapshots.changed().await.unwrap();
                    let snapshot = snapshots.borrow_and_update().clone().unwrap();
                    let is_ours = snapshot.evidence.kube_system == ours;
                    let whole = if is_ours {
                        (vec!["web"], vec!["node-1"])
                    } else {
                        (vec!["db"], vec!["node-2"])
                    };
                    assert_eq!(names(&snapshot), whole, "round {round}, ours: {is_ours}");
                    assert_eq!(snapshot.cluster == first.cluster, is_ours);
                    if is_ours == (round % 2 == 1) {
                        return;
                    }
                }
            };
            assert!(timeout(DEADLINE, shown).await.is_ok(), "round {round}");
        }
    });
}

#[test]
fn another_cluster_that_lets_nobody_list_it_changes_nothing_and_is_told() {
    block_on(async {
        let (server, other) = (ApiServer::start().await, ApiServer::start().await);
        let name = json!({"metadata": {"name": "kube-system", "uid": "another"}});
        other.put("namespaces", name);
        server.service("web", &[(HTTP, "web")], 30_001);
        let mut watched = watching(&server, quick());
        let first = watched.service("web").await;
        for resource in ["services", "nodes"] {
            server.fail("list", resource, Fault::Status(403));
        }
        server.exchange(&other);
        let told = |report: &SourceReport| {
            let mut codes = report.findings.iter().map(|it| it.code);
            codes.clone().any(|it| it == Code::AnotherCluster)
                && codes.any(|it| it == Code::RightMissing)
        };
        let waiting = watched.receivers.report.wait_for(told);
        assert!(timeout(DEADLINE, waiting).await.is_ok());
        assert_eq!(watched.current(), Some(first));
        server.heal();
        let another = |it: &Snapshot| it.cluster.0 == "another";
        assert!(watched.until("listed", another).await.services.is_empty());
        let over = |report: &SourceReport| report.findings.is_empty();
        let waiting = watched.receivers.report.wait_for(over);
        assert!(timeout(DEADLINE, waiting).await.is_ok());
    });
}

#[test]
fn a_right_lost_or_gained_changes_no_name_and_is_a_finding_while_it_lacks() {
    const LOST: &str = "another cluster would not be noticed";
    block_on(async {
        let server = ApiServer::start().await;
        server.service("web", &[(HTTP, "web")], 30_001);
        let mut watched = watching(&server, restless());
        let first = watched.service("web").await;
        for verb in ["get", "list"] {
            server.fail(verb, "namespaces", Fault::Status(403));
        }
        let lost = |it: &Snapshot| found(it, Code::RightMissing, LOST);
        let without = watched.until("the right is lost", lost).await;
        assert_eq!(without.cluster, first.cluster);
        server.heal();
        let mended = watched.until("found again", |it| !lost(it)).await;
        assert_eq!(
            (&mended.cluster, &mended.evidence.kube_system),
            (&first.cluster, &first.evidence.kube_system,)
        );

        for verb in ["get", "list"] {
            server.fail(verb, "namespaces", Fault::Status(403));
        }
        let mut watched = watching(&server, restless());
        let nameless = watched.service("web").await;
        assert_eq!(nameless.cluster.0, server.url());
        assert_eq!(nameless.evidence.kube_system, None);
        server.heal();
        let known = |it: &Snapshot| it.evidence.kube_system.is_some() && it.findings.is_empty();
        let known = watched.until("told", known).await;
        assert_eq!(known.cluster, nameless.cluster, "rows carry it");
    });
}

#[test]
fn who_does_not_answer_keeps_no_change_from_being_seen() {
    block_on(async {
        let server = ApiServer::start().await;
        server.service("web", &[(HTTP, "web")], 30_001);
        let timing = Timing {
            get_timeout: Duration::from_millis(300),
            ..restless()
        };
        let mut watched = watching(&server, timing);
        let first = watched.service("web").await;
        for (index, fault) in [Fault::Status(500), Fault::Hang].into_iter().enumerate() {
            server.fail("get", "namespaces", fault);
            // Watches come and go, and each that comes may be another cluster's.
            stays("asked", || server.count("get", "namespaces") > 0).await;
            let name = format!("new-{index}");
            server.service(&name, &[(HTTP, "new")], 30_002);
            let second = watched.service(&name).await;
            assert_eq!(first.cluster, second.cluster);
            server.delete("services", "default", &name);
            watched.without(&name).await;
        }
    });
}

#[test]
fn where_a_name_is_configured_nobody_is_asked() {
    block_on(async {
        let server = ApiServer::start().await;
        server.service("web", &[(HTTP, "web")], 30_001);
        let mut watched = watching_with(&server, restless(), "{}", |config| {
            config.cluster_id = Some("mine".to_owned());
        });
        let first = watched.service("web").await;
        assert_eq!(
            (first.cluster.0.as_str(), &first.evidence.kube_system),
            ("mine", &None)
        );
        stays("unasked", || server.count("get", "namespaces") == 0).await;
        assert!(has(&first, "web") && first.services.contains_key(&key("web")));
    });
}
