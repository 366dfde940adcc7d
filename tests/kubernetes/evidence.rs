//! How sure it is that something is gone: what whoever guards removals is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use route_sync::desired::Code;
use route_sync::kubernetes::snapshot::Snapshot;
use route_sync::kubernetes::{NodePorts, Timing, watch_node_ports};
use route_sync::outside::Network;
use route_sync::route::Lane;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::apiserver::{ApiServer, Fault};
use super::{
    DEADLINE, HTTP, block_on, eventually, found, has, key, kubeconfig, quick, stays, watching,
    watching_with,
};

#[test]
fn how_a_service_left_and_whether_its_namespace_did_is_told() {
    let left = |snapshot: &Snapshot, name: &str| {
        let left = &snapshot.evidence.left;
        let departure = left.get(&(Lane::Http, key(name))).unwrap();
        (departure.by_list, departure.namespace_gone)
    };
    block_on(async {
        let server = ApiServer::start().await;
        let namespace = |metadata: serde_json::Value| {
            server.put("namespaces", json!({"metadata": metadata}));
        };
        namespace(json!({"name": "default"}));
        for index in 0..40 {
            server.service(&format!("s{index}"), &[(HTTP, "x")], 30_000 + index);
        }
        let mut watched = watching(&server, quick());
        watched.service("s39").await;
        server.delete("services", "default", "s39");
        assert_eq!(left(&*watched.without("s39").await, "s39"), (false, false));

        // Whether namespaces may be read one by one or only be listed.
        for (read, services) in [("get", 20..39), ("list", 0..20)] {
            if read == "list" {
                server.fail("get", "namespaces", Fault::Status(403));
            }
            let ending = "2026-01-02T03:04:05Z";
            namespace(json!({"name": "default", "deletionTimestamp": ending}));
            for index in services.clone() {
                server.delete("services", "default", &format!("s{index}"));
            }
            let none = |it: &Snapshot| services.clone().all(|i| !has(it, &format!("s{i}")));
            let gone = watched.until("without any", none).await;
            for index in services {
                assert!(left(&gone, &format!("s{index}")).1, "{read} s{index}");
            }
        }
    });
}

#[test]
fn what_no_event_tells_and_no_read_shows_is_only_missing_in_a_list() {
    let by_list = |snapshot: &Snapshot, name: &str| {
        let left = &snapshot.evidence.left;
        left.get(&(Lane::Http, key(name))).unwrap().by_list
    };
    block_on(async {
        let server = ApiServer::start().await;
        server.fail("watch", "services", Fault::Status(403));
        for (index, name) in (0..).zip(["deleted", "unlabelled", "unseen"]) {
            server.service(name, &[(HTTP, name)], 30_001 + index);
        }
        let mut watched = watching(&server, quick());
        watched.service("unseen").await;
        server.delete("services", "default", "deleted");
        assert!(by_list(&*watched.without("deleted").await, "deleted"));
        server.service("unlabelled", &[], 30_002);
        let gone = watched.without("unlabelled").await;
        assert!(
            !by_list(&gone, "unlabelled"),
            "it was read without its label"
        );
        server.fail("get", "services", Fault::Status(403));
        server.service("unseen", &[], 30_003);
        assert!(by_list(&*watched.without("unseen").await, "unseen"));
    });
}

#[test]
fn node_ports_of_all_services_are_looked_for_only_while_that_is_needed() {
    block_on(async {
        let server = ApiServer::start().await;
        server.service("labelled", &[(HTTP, "web")], 30_001);
        server.service("other", &[], 30_002);
        let (config, _files) = kubeconfig(&server, "{}");
        let (needed, needed_rx) = watch::channel(false);
        let (ports_tx, mut ports) = watch::channel(NodePorts::new());
        let stop = CancellationToken::new();
        let looking =
            watch_node_ports(Arc::new(Network), config, needed_rx, ports_tx, stop.clone());
        let looking = tokio::spawn(looking);
        tokio::task::yield_now().await;
        assert_eq!(server.count("list", "services"), 0);
        needed.send_replace(true);
        let seen = ports.wait_for(|ports| ports.len() == 2).await.unwrap();
        let names: Vec<_> = seen.values().map(|it| it.key.name.clone()).collect();
        assert_eq!(names, ["labelled", "other"]);
        drop(seen);
        needed.send_replace(false);
        let forgotten = ports.wait_for(NodePorts::is_empty);
        let forgotten = tokio::time::timeout(DEADLINE, forgotten).await;
        assert!(forgotten.unwrap().is_ok());
        stop.cancel();
        looking.await.unwrap();
    });
}

#[test]
fn a_relist_that_agrees_counts_as_a_complete_list() {
    block_on(async {
        let server = ApiServer::start().await;
        server.node("node-1", 0);
        server.service("web", &[(HTTP, "web")], 30_001);
        let mut watched = watching_with(&server, quick(), "{}", |config| {
            config.rescan_interval = Duration::from_millis(50);
        });
        let often = |it: &Snapshot| {
            let lists = &it.evidence.lists;
            lists.len() == 3 && lists.values().all(|count| *count > 3)
        };
        watched.until("complete", |_| true).await;
        let restarts = watched.counters.watch_restarts.clone();
        let before = restarts.load(Ordering::Relaxed);
        watched.until("listed often", often).await;
        assert_eq!(restarts.load(Ordering::Relaxed), before);
    });
}

#[test]
fn where_a_list_suddenly_shows_no_node_the_last_ones_stay_and_those_that_come_back_are_not_all() {
    block_on(async {
        let server = ApiServer::start().await;
        // Polled, so that a list alone tells.
        server.fail("watch", "nodes", Fault::Status(403));
        server.node("node-1", 0);
        server.node("node-2", 0);
        let mut watched = watching(&server, quick());
        let names = |it: &Snapshot| it.nodes.keys().cloned().collect::<Vec<_>>();
        let both = |it: &Snapshot| names(it) == ["node-1", "node-2"];
        watched.until("both", both).await;
        // Both between two lists.
        server.fail("list", "nodes", Fault::Status(500));
        server.delete("nodes", "", "node-1");
        server.delete("nodes", "", "node-2");
        server.mend("list", "nodes");
        let told = |it: &Snapshot| found(it, Code::NodesNotReadyHeld, "lists no Node");
        assert!(both(&*watched.until("told", told).await));
        // From now on a watch tells of one of them, and no list of the other.
        server.mend("watch", "nodes");
        let watches = server.count("watch", "nodes");
        eventually("watched", || server.count("watch", "nodes") > watches).await;
        server.fail("list", "nodes", Fault::Status(500));
        server.node("node-1", 7);
        server.service("web", &[(HTTP, "web")], 30_001);
        watched.service("web").await;
        stays("both", || both(&watched.current().unwrap())).await;
        assert!(told(&watched.current().unwrap()));
    });
}

#[test]
fn a_cluster_that_has_no_node_for_long_is_believed() {
    block_on(async {
        let server = ApiServer::start().await;
        server.fail("watch", "nodes", Fault::Status(403));
        server.node("node-1", 0);
        let timing = Timing {
            nodeless_after: Duration::from_millis(500),
            ..quick()
        };
        let mut watched = watching(&server, timing);
        watched.until("a node", |it| !it.nodes.is_empty()).await;
        server.delete("nodes", "", "node-1");
        let snapshot = watched.until("none", |it| it.nodes.is_empty()).await;
        assert!(snapshot.evidence.nodes_by_list);
    });
}
