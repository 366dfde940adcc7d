//! The Kubernetes side against a scripted apiserver: what it repairs, what it confirms, what it reports.
//!
//! Where a defect of kube's own watcher is repaired, the bare watcher is shown to have it in the same test.

#[path = "kubernetes/apiserver.rs"]
mod apiserver;
#[path = "kubernetes/cluster.rs"]
mod cluster;
#[path = "kubernetes/defects.rs"]
mod defects;
#[path = "kubernetes/evidence.rs"]
mod evidence;
#[path = "kubernetes/first_view.rs"]
mod first_view;
#[path = "kubernetes/outages.rs"]
mod outages;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use apiserver::{ApiServer, Fault};
use route_sync::config::KubernetesConfig;
use route_sync::desired::Code;
use route_sync::kubernetes::snapshot::Snapshot;
use route_sync::kubernetes::{Receivers, Timing, WatchCounters, snapshot_once, watch_with};
use route_sync::lifecycle::Clock;
use route_sync::route::ServiceKey;
use serde_json::json;
use tokio_util::sync::CancellationToken;

const HTTP: &str = "http-route-sync";
const TCP: &str = "tcp-route-sync";
/// Long past anything a busy machine could need.
const DEADLINE: Duration = Duration::from_secs(30);

/// Times that let a test see in a moment what takes minutes.
fn quick() -> Timing {
    Timing {
        backoff_first: Duration::from_millis(40),
        backoff_max: Duration::from_secs(5),
        settle: Duration::from_millis(200),
        watch_retry: Duration::from_millis(500),
        optional_wait: Duration::from_millis(300),
        ..Timing::default()
    }
}

/// The controller's view of a cluster under test.
struct Watched {
    receivers: Receivers,
    counters: WatchCounters,
    stop: CancellationToken,
    _files: tempfile::TempDir,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn kubeconfig(server: &ApiServer, user: &str) -> (KubernetesConfig, tempfile::TempDir) {
    let files = tempfile::tempdir().unwrap();
    let file: PathBuf = files.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
         contexts: [{{name: it, context: {{cluster: it, user: it}}}}]\n\
         clusters: [{{name: it, cluster: {{server: \"{}\"}}}}]\n\
         users: [{{name: it, user: {user}}}]\n",
        server.url()
    );
    std::fs::write(&file, text).unwrap();
    let config = KubernetesConfig {
        kubeconfig: Some(file),
        rescan_interval: Duration::from_mins(5),
        poll_interval: Duration::from_millis(200),
        proxy_url: None,
        cluster_id: None,
    };
    (config, files)
}

fn watching(server: &ApiServer, timing: Timing) -> Watched {
    watching_with(server, timing, "{}", |_| {})
}

fn watching_with(
    server: &ApiServer,
    timing: Timing,
    user: &str,
    adapt: impl FnOnce(&mut KubernetesConfig),
) -> Watched {
    let (mut config, files) = kubeconfig(server, user);
    adapt(&mut config);
    let counters = WatchCounters::default();
    let (watches, receivers) = watch_with(config, Clock::start(), &counters, timing);
    let stop = CancellationToken::new();
    tokio::spawn(watches.run(stop.clone()));
    Watched {
        receivers,
        counters,
        stop,
        _files: files,
    }
}

impl Watched {
    /// The first snapshot of which something is true.
    async fn until(&mut self, what: &str, is: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let fits = |it: &Option<Arc<Snapshot>>| it.as_deref().is_some_and(&is);
        let waiting = self.receivers.snapshot.wait_for(fits);
        if let Ok(snapshot) = tokio::time::timeout(DEADLINE, waiting).await {
            return snapshot.unwrap().clone().unwrap();
        }
        let report = self.receivers.report.borrow().clone();
        panic!("never {what}: {:#?} {report:#?}", self.current())
    }

    async fn service(&mut self, name: &str) -> Arc<Snapshot> {
        let what = format!("with {name}");
        self.until(&what, |it| has(it, name)).await
    }

    async fn without(&mut self, name: &str) -> Arc<Snapshot> {
        let what = format!("without {name}");
        self.until(&what, |it| !has(it, name)).await
    }

    fn current(&self) -> Option<Arc<Snapshot>> {
        self.receivers.snapshot.borrow().clone()
    }

    async fn reported(&mut self, source: &str, words: &str) {
        let waiting = self.receivers.report.wait_for(|report| {
            let state = report.sources.get(source);
            state.is_some_and(|it| it.error.as_ref().is_some_and(|it| it.contains(words)))
        });
        let reported = tokio::time::timeout(DEADLINE, waiting).await;
        assert!(reported.is_ok(), "{source} never reported `{words}`");
    }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey {
        namespace: "default".to_owned(),
        name: name.to_owned(),
    }
}

fn has(snapshot: &Snapshot, name: &str) -> bool {
    snapshot.services.contains_key(&key(name))
}

fn found(snapshot: &Snapshot, code: Code, words: &str) -> bool {
    let mut findings = snapshot.findings.iter();
    findings.any(|it| it.code == code && it.message.contains(words))
}

async fn eventually(what: &str, is: impl Fn() -> bool) {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let done = tokio::time::timeout(DEADLINE, waiting).await;
    assert!(done.is_ok(), "never {what}");
}

/// Something must stay true for a while that is long against what could break it.
async fn stays(what: &str, is: impl Fn() -> bool) {
    for _ in 0..60 {
        assert!(is(), "no longer {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test);
    runtime.shutdown_background();
}

#[test]
fn a_label_is_seen_at_once_and_its_loss_after_a_fresh_read() {
    block_on(async {
        let server = ApiServer::start().await;
        server.node("node-1", 0);
        let mut watched = watching(&server, quick());
        let first = watched.until("complete", |_| true).await;
        assert!(first.services.is_empty() && first.nodes.contains_key("node-1"));
        assert!(first.cluster.0.starts_with("uid-kube-system"));

        server.service("web", &[(HTTP, "web")], 30_001);
        let snapshot = watched.service("web").await;
        let service = &snapshot.services[&key("web")];
        assert_eq!(service.http_label.as_deref(), Some("web"));
        assert_eq!(service.ports[0].node_port.unwrap().get(), 30_001);

        assert_eq!(server.count("get", "services"), 0);
        server.service("web", &[], 30_001);
        watched.without("web").await;
        assert_eq!(server.count("get", "services"), 1);
        let missed = &watched.counters.watch_missed;
        assert_eq!(missed.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_service_with_both_labels_loses_one_and_keeps_the_other() {
    block_on(async {
        let server = ApiServer::start().await;
        server.service("db", &[(HTTP, "db"), (TCP, "2000")], 30_001);
        let mut watched = watching(&server, quick());
        watched.service("db").await;
        server.service("db", &[(TCP, "2001")], 30_002);
        let changed = |it: &Snapshot| {
            let service = &it.services[&key("db")];
            service.http_label.is_none() && service.tcp_label.as_deref() == Some("2001")
        };
        let snapshot = watched.until("relabelled", changed).await;
        let port = snapshot.services[&key("db")].ports[0].node_port;
        assert_eq!(port.unwrap().get(), 30_002);
    });
}

#[test]
fn a_removal_waits_until_a_read_confirms_it() {
    block_on(async {
        let server = ApiServer::start().await;
        server.service("web", &[(HTTP, "web")], 30_001);
        let mut watched = watching(&server, quick());
        watched.service("web").await;
        server.fail("get", "services", Fault::Status(500));
        server.fail("list", "services", Fault::Status(500));
        let lists = server.count("list", "services");
        server.delete("services", "default", "web");
        eventually("asked again", || {
            server.count("list", "services") >= lists + 2
        })
        .await;
        assert!(has(&watched.current().unwrap(), "web"));
        // Additions do not wait for it.
        server.service("other", &[(HTTP, "other")], 30_002);
        let snapshot = watched.service("other").await;
        assert!(has(&snapshot, "web"));
        server.heal();
        watched.without("web").await;
    });
}

#[test]
fn without_the_right_to_get_a_list_confirms_a_removal_and_the_right_is_named() {
    block_on(async {
        let server = ApiServer::start().await;
        server.service("web", &[(HTTP, "web")], 30_001);
        server.fail("get", "services", Fault::Status(403));
        let mut watched = watching(&server, quick());
        watched.service("web").await;
        server.delete("services", "default", "web");
        let named = |it: &Snapshot| found(it, Code::RightMissing, "`get` resource `services`");
        let gone = watched.without("web").await;
        assert!(named(&gone), "{:?}", gone.findings);
    });
}

#[test]
fn many_removals_are_confirmed_by_one_list() {
    block_on(async {
        let server = ApiServer::start().await;
        for index in 0..30 {
            server.service(&format!("s{index}"), &[(HTTP, "x")], 30_000 + index);
        }
        let mut watched = watching(&server, quick());
        watched.service("s29").await;
        server.fail("get", "services", Fault::Status(500));
        // The first few may be asked for alone; they fail, and the growing rest is listed.
        for index in 0..30 {
            server.delete("services", "default", &format!("s{index}"));
        }
        watched.until("empty", |it| it.services.is_empty()).await;
    });
}

#[test]
fn a_service_being_deleted_or_in_a_namespace_being_deleted_is_gone() {
    block_on(async {
        let server = ApiServer::start().await;
        server.service("web", &[(HTTP, "web")], 30_001);
        let mut watched = watching(&server, quick());
        watched.service("web").await;
        server.put(
            "services",
            json!({"metadata": {"name": "web", "namespace": "default", "labels": {HTTP: "web"},
                "deletionTimestamp": "2026-01-02T03:04:05Z"}}),
        );
        watched.without("web").await;

        server.service("two", &[(HTTP, "two")], 30_002);
        watched.service("two").await;
        server.fail("get", "services", Fault::Status(500));
        server.put(
            "namespaces",
            json!({"metadata": {"name": "default", "deletionTimestamp": "2026-01-02T03:04:05Z"}}),
        );
        server.delete("services", "default", "two");
        watched.without("two").await;
    });
}

#[test]
fn where_watching_is_forbidden_it_polls_and_names_the_right() {
    block_on(async {
        let server = ApiServer::start().await;
        server.node("node-1", 0);
        for resource in ["services", "nodes"] {
            server.fail("watch", resource, Fault::Status(403));
        }
        let mut watched = watching(&server, quick());
        server.service("web", &[(HTTP, "web")], 30_001);
        watched.service("web").await;
        server.delete("services", "default", "web");
        watched.without("web").await;
        let named = |it: &Snapshot| {
            found(it, Code::RightMissing, "`watch` resource `services`")
                && found(it, Code::RightMissing, "`watch` resource `nodes`")
        };
        watched.until("named", named).await;
        // The right is granted: it is watched again, and the finding goes.
        server.heal();
        watched.until("unnamed", |it| it.findings.is_empty()).await;
    });
}

#[test]
fn the_oldest_role_is_enough_and_every_missing_right_is_named() {
    block_on(async {
        let server = ApiServer::start().await;
        for resource in ["services", "nodes", "endpointslices", "namespaces"] {
            server.fail("watch", resource, Fault::Status(403));
            server.fail("get", resource, Fault::Status(403));
        }
        server.fail("list", "endpointslices", Fault::Status(403));
        server.service("web", &[(HTTP, "web")], 30_001);
        let mut watched = watching(&server, quick());
        let snapshot = watched.service("web").await;
        assert!(snapshot.cluster.0.starts_with("uid-kube-system"));
        assert_eq!(snapshot.endpoints, None);
        let words = "`list` resource `endpointslices` in apiGroup `\"discovery.k8s.io\"`";
        watched
            .until("named", |it| found(it, Code::RightMissing, words))
            .await;
        server.delete("services", "default", "web");
        watched.without("web").await;
    });
}

#[test]
fn without_endpoint_slices_core_endpoints_are_read() {
    block_on(async {
        let server = ApiServer::start().await;
        server.without_slices();
        server.put(
            "endpoints",
            json!({"metadata": {"name": "web", "namespace": "default", "labels": {HTTP: "web"}},
                "subsets": [{"addresses": [{"ip": "10.1.0.1", "nodeName": "node-1"}]}]}),
        );
        let mut watched = watching(&server, quick());
        let seen = |it: &Snapshot| it.endpoints.as_ref().is_some_and(|it| !it.is_empty());
        let snapshot = watched.until("with endpoints", seen).await;
        let endpoints = &snapshot.endpoints.as_ref().unwrap()[&key("web")];
        assert!(endpoints.any_ready && endpoints.ready_nodes.contains("node-1"));
        assert_eq!(server.count("list", "endpointslices"), 0);
    });
}

#[test]
fn the_slices_of_a_service_are_one_set_of_nodes() {
    block_on(async {
        let server = ApiServer::start().await;
        let slice = |name: &str, endpoints| {
            json!({"metadata": {"name": name, "namespace": "default",
                "labels": {HTTP: "web", "kubernetes.io/service-name": "web"}},
                "endpoints": endpoints})
        };
        server.put(
            "endpointslices",
            slice(
                "web-1",
                json!([{"nodeName": "a"}, {"nodeName": "b", "conditions": {"ready": false}}]),
            ),
        );
        server.put(
            "endpointslices",
            slice(
                "web-2",
                json!([{"nodeName": "c", "conditions":
                {"ready": false, "serving": true, "terminating": true}}]),
            ),
        );
        let mut watched = watching(&server, quick());
        let seen = |it: &Snapshot| it.endpoints.is_some();
        let snapshot = watched.until("with endpoints", seen).await;
        let endpoints = &snapshot.endpoints.as_ref().unwrap()[&key("web")];
        assert_eq!(endpoints.ready_nodes, ["a".to_owned()].into());
        assert_eq!(endpoints.terminating_nodes, ["c".to_owned()].into());
    });
}

#[test]
fn an_unreadable_object_is_a_finding_and_keeps_its_last_meaning() {
    block_on(async {
        let server = ApiServer::start().await;
        let broken = |name: &str| {
            json!({"metadata": {"name": name, "namespace": "default", "labels": {HTTP: name}},
                "spec": {"ports": [{"port": "eighty"}]}})
        };
        server.service("good", &[(HTTP, "good")], 30_001);
        server.put("services", broken("never"));
        let mut watched = watching(&server, quick());
        let snapshot = watched.service("good").await;
        assert!(!has(&snapshot, "never"));
        assert!(found(&snapshot, Code::ObjectUndecodable, "`default/never`"));

        server.put("services", broken("good"));
        let told = |it: &Snapshot| found(it, Code::ObjectUndecodable, "`default/good`");
        let snapshot = watched.until("told", told).await;
        let port = snapshot.services[&key("good")].ports[0].node_port;
        assert_eq!(port.unwrap().get(), 30_001);
        assert!(watched.counters.undecodable.load(Ordering::Relaxed) >= 2);

        server.service("good", &[(HTTP, "good")], 30_002);
        watched.until("mended", |it| !told(it)).await;
    });
}

#[test]
fn there_is_no_snapshot_before_every_required_list_is_complete() {
    block_on(async {
        let server = ApiServer::start().await;
        server.service("web", &[(HTTP, "web")], 30_001);
        server.fail("list", "nodes", Fault::Hang);
        let mut watched = watching(
            &server,
            Timing {
                header_timeout: Duration::from_millis(300),
                ..quick()
            },
        );
        watched.reported("nodes", "did not begin to answer").await;
        assert_eq!(watched.current(), None);
        server.heal();
        watched.service("web").await;
    });
}

#[test]
fn a_part_of_a_list_is_never_delivered() {
    block_on(async {
        let server = ApiServer::start().await;
        for index in 0..510 {
            server.service(&format!("s{index}"), &[(HTTP, "x")], 30_000);
        }
        server.fail("list", "services", Fault::Truncated);
        let mut watched = watching(&server, quick());
        watched.reported("services-http", "cannot be read").await;
        assert_eq!(watched.current(), None);
        server.fail("list", "services", Fault::ExpiredContinue);
        // In the end it is asked for in one piece.
        let snapshot = watched.until("complete", |_| true).await;
        assert_eq!(snapshot.services.len(), 510);
        let queries = server.queries("list", "services");
        assert!(queries.iter().any(|it| !it.contains("limit=")));
    });
}

#[test]
fn a_node_that_only_beats_wakes_nobody() {
    block_on(async {
        let server = ApiServer::start().await;
        server.node("node-1", 0);
        let mut watched = watching(&server, quick());
        watched.until("settled", |it| it.endpoints.is_some()).await;
        let mut snapshots = watched.receivers.snapshot.clone();
        snapshots.mark_unchanged();
        for beat in 1..20 {
            server.node("node-1", beat);
        }
        // A change that does matter, sent after the beats, is the first to be seen.
        server.node("node-2", 0);
        tokio::time::timeout(DEADLINE, snapshots.changed())
            .await
            .unwrap()
            .unwrap();
        let snapshot = snapshots.borrow_and_update().clone().unwrap();
        assert!(snapshot.nodes.contains_key("node-2"));
        assert!(!snapshots.has_changed().unwrap());
    });
}

#[test]
fn a_token_file_may_end_in_a_newline_and_is_read_again_when_refused() {
    block_on(async {
        let server = ApiServer::start().await;
        server.demand_token("first");
        let files = tempfile::tempdir().unwrap();
        let token = files.path().join("token");
        std::fs::write(&token, "first\n").unwrap();
        let user = format!("{{tokenFile: {}}}", token.display());
        let mut watched = watching_with(&server, quick(), &user, |_| {});
        watched.until("complete", |_| true).await;

        server.demand_token("second");
        std::fs::write(&token, "second\n").unwrap();
        server.service("web", &[(HTTP, "web")], 30_001);
        watched.service("web").await;
        server.delete("services", "default", "web");
        watched.without("web").await;
    });
}

#[test]
fn a_credential_plugin_is_run_and_credentials_are_read_anew_after_refusals() {
    block_on(async {
        let server = ApiServer::start().await;
        server.demand_token("first");
        let files = tempfile::tempdir().unwrap();
        let token = files.path().join("token");
        let credential = |token: &str| {
            json!({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
                "status": {"token": token}})
            .to_string()
        };
        std::fs::write(&token, credential("first")).unwrap();
        let user = format!(
            "{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: cat, args: [{}], \
             interactiveMode: Never}}}}",
            token.display()
        );
        let mut watched = watching_with(&server, quick(), &user, |_| {});
        watched.until("complete", |_| true).await;

        // kube runs a plugin once where its answer has no expiry: only a new client asks it again.
        server.demand_token("second");
        std::fs::write(&token, credential("second")).unwrap();
        server.service("web", &[(HTTP, "web")], 30_001);
        server.delete("services", "default", "web");
        server.service("last", &[(HTTP, "last")], 30_001);
        watched.service("last").await;
        watched.without("web").await;
    });
}

#[test]
fn one_look_yields_the_same_as_watching() {
    block_on(async {
        let server = ApiServer::start().await;
        server.node("node-1", 0);
        server.service("web", &[(HTTP, "web"), (TCP, "2000")], 30_001);
        let (config, _files) = kubeconfig(&server, "{}");
        let once = snapshot_once(&config).await.unwrap();
        let mut watched = watching(&server, quick());
        let snapshot = watched.until("settled", |it| it.endpoints.is_some()).await;
        assert_eq!(once, *snapshot);
        server.fail("list", "nodes", Fault::Status(403));
        let error = snapshot_once(&config).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot list nodes");
    });
}

#[test]
fn the_clusters_name_falls_back_to_the_apiservers_address() {
    block_on(async {
        let server = ApiServer::start().await;
        server.fail("get", "namespaces", Fault::Status(403));
        server.fail("list", "namespaces", Fault::Status(403));
        let mut watched = watching(&server, quick());
        let snapshot = watched.until("complete", |_| true).await;
        assert_eq!(snapshot.cluster.0, server.url());
        assert!(found(&snapshot, Code::RightMissing, "`namespaces`"));
    });
}

#[test]
fn asked_to_stop_it_ends_whatever_the_apiserver_does() {
    block_on(async {
        let server = ApiServer::start().await;
        server.fail("list", "nodes", Fault::Hang);
        let (config, _files) = kubeconfig(&server, "{}");
        let counters = WatchCounters::default();
        let (watches, _receivers) = watch_with(config, Clock::start(), &counters, quick());
        let stop = CancellationToken::new();
        let running = tokio::spawn(watches.run(stop.clone()));
        eventually("listed", || server.count("list", "nodes") > 0).await;
        assert!(!running.is_finished());
        stop.cancel();
        tokio::time::timeout(DEADLINE, running)
            .await
            .unwrap()
            .unwrap();
    });
}

#[test]
fn a_broken_kubeconfig_is_explained_without_quoting_it() {
    block_on(async {
        let files = tempfile::tempdir().unwrap();
        let file = files.path().join("kubeconfig");
        let config = KubernetesConfig {
            kubeconfig: Some(file.clone()),
            rescan_interval: DEADLINE,
            poll_interval: DEADLINE,
            proxy_url: None,
            cluster_id: None,
        };
        let message = async || {
            let error = route_sync::kubernetes::connect(&config).await.err();
            error.unwrap().to_string()
        };
        assert!(message().await.contains("cannot read kubeconfig"));
        for (text, words) in [
            ("users: [{name: a, user: {token: s3cret}}\nb: [", "line "),
            (
                "users: [{name: 1, user: {token: [s3cret]}}]",
                "is no kubeconfig",
            ),
            ("clusters: []", "`current-context` is not set"),
            ("current-context: x", "names `x`"),
        ] {
            std::fs::write(&file, text).unwrap();
            let message = message().await;
            assert!(message.contains(words), "{message}");
            assert!(
                !message.contains("s3cret") && message.contains("hint:"),
                "{message}"
            );
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_plugin_that_hangs_is_run_once_however_often_its_client_is_asked_for() {
    let server = ApiServer::start().await;
    server.node("n", 1);
    let files = tempfile::tempdir().unwrap();
    let script = "echo run >> runs; until [ -e go ]; do sleep 0.05; done; \
        echo '{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\
        \"status\":{\"token\":\"t\"}}'";
    let script = format!("cd '{}' || exit; {script}", files.path().display());
    let user = json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "sh",
        "args": ["-c", script],
        "interactiveMode": "Never",
    }});
    let timing = Timing {
        list_timeout: Duration::from_millis(150),
        get_timeout: Duration::from_millis(150),
        ..quick()
    };
    let mut watched = watching_with(&server, timing, &user.to_string(), |_| {});
    let lists = watched.counters.lists.clone();
    let ran = files.path().join("runs");
    // A busy machine may ask often before the plugin's process has written a word.
    let tried = async {
        while lists.load(Ordering::Relaxed) < 12 || !ran.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let tried = tokio::time::timeout(DEADLINE, tried).await;
    // However this goes, the plugin's thread must end: the runtime waits for it.
    std::fs::write(files.path().join("go"), "").unwrap();
    assert!(tried.is_ok(), "never asked often enough");
    let runs = std::fs::read_to_string(ran).unwrap();
    assert_eq!(runs.lines().count(), 1);
    watched.until("a node", |it| !it.nodes.is_empty()).await;
}
