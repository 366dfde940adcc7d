//! The sandbox's apiserver, seen by a plain HTTP client: what clients of the real one rely on.

#[path = "apiserver/client.rs"]
mod client;

use std::time::Duration;

use sandbox::apiserver::{ApiServerOptions, ListFault, Outcome, Rules, Served, Token, WatchFault};
use serde_json::{Value, json};

use self::client::{Client, SERVICES, service};

/// Seen from this crate.
const EXAMPLES: &str = "../../examples";

#[tokio::test]
async fn a_created_service_gets_identity_and_a_node_port() {
    let client = Client::start().await;
    let created = client
        .service("nginx", json!({"http-route-sync": "nginx"}))
        .await;
    let port = created["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30_000..=32_767).contains(&port));
    let uid = created["metadata"]["uid"].as_str().unwrap();
    assert_eq!((uid.len(), &uid[14..15]), (36, "4"));
    assert!(
        created["metadata"]["creationTimestamp"]
            .as_str()
            .unwrap()
            .ends_with('Z')
    );

    let (status, again) = client
        .send("POST", SERVICES, service("nginx", json!({})))
        .await;
    assert_eq!(
        (status.as_u16(), &again["reason"]),
        (409, &json!("AlreadyExists"))
    );

    let mut twin = service("twin", json!({}));
    twin["spec"]["ports"][0]["nodePort"] = json!(port);
    let (status, taken) = client.send("POST", SERVICES, twin).await;
    assert_eq!(status, 422);
    let message = taken["message"].as_str().unwrap();
    assert!(
        message.ends_with("provided port is already allocated"),
        "{message}"
    );

    let (status, absent) = client.get(&format!("{SERVICES}/nobody")).await;
    assert_eq!(
        (status.as_u16(), &absent["message"]),
        (404, &json!("services \"nobody\" not found"))
    );
}

#[tokio::test]
async fn label_values_are_held_to_the_grammar_that_was_measured() {
    let client = Client::start().await;
    for (index, value) in ["my.host.apps.test", "UP_per", "20000", ""]
        .iter()
        .enumerate()
    {
        client
            .service(&format!("good-{index}"), json!({"http-route-sync": value}))
            .await;
    }
    let long = "x".repeat(64);
    for value in ["host/path", "*.wild", "-host", long.as_str()] {
        let body = service("bad", json!({"http-route-sync": value}));
        let (status, refused) = client.send("POST", SERVICES, body).await;
        assert_eq!(status, 422, "{value}: {refused}");
        assert_eq!(refused["details"]["causes"][0]["field"], "metadata.labels");
    }
    let body = service("bad", json!({"tcp-route-sync": 34569}));
    assert_eq!(client.send("POST", SERVICES, body).await.0, 400);
}

#[tokio::test]
async fn selectors_choose_on_the_server() {
    let client = Client::start().await;
    client.service("a", json!({"tcp-route-sync": "1"})).await;
    client
        .service("b", json!({"tcp-route-sync": "2", "x": "y"}))
        .await;
    client.service("c", json!({})).await;
    let check = async |query: &str, expected: &[&str]| {
        let names = client.names(&format!("/api/v1/services?{query}")).await;
        assert_eq!(names, expected, "{query}");
    };
    check("labelSelector=tcp-route-sync", &["a", "b"]).await;
    check("labelSelector=tcp-route-sync%3D2", &["b"]).await;
    check("labelSelector=tcp-route-sync!%3D2", &["a", "c"]).await;
    check("labelSelector=tcp-route-sync+in+(1,2),x", &["b"]).await;
    check("fieldSelector=metadata.name%3Dc", &["c"]).await;
    check("fieldSelector=metadata.namespace%3Dkube-system", &[]).await;
    assert_eq!(
        client
            .get("/api/v1/services?fieldSelector=spec.a%3Db")
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn the_pages_of_a_list_show_one_moment_and_their_tokens_expire() {
    let client = Client::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        client.service(name, json!({})).await;
    }
    let (_, first) = client.get("/api/v1/services?limit=2").await;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    assert!(
        first["items"][0]["kind"].is_null(),
        "items of a list name no kind"
    );
    assert!(client.server.delete("Service", "default", "d"));
    let token = first["metadata"]["continue"].as_str().unwrap();
    let rest = format!("/api/v1/services?limit=2&continue={token}");
    assert_eq!(client.names(&rest).await, ["c", "d"]);
    client.server.expire_continue_tokens();
    let (status, expired) = client.get(&rest).await;
    assert_eq!(
        (status.as_u16(), &expired["reason"]),
        (410, &json!("Expired"))
    );
}

#[tokio::test]
async fn a_selective_watch_tells_unlabelling_as_deleted_and_labelling_as_added() {
    let client = Client::start().await;
    client.service("a", json!({"tcp-route-sync": "1"})).await;
    let (_, list) = client.get("/api/v1/services").await;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
    let path = format!(
        "/api/v1/services?watch=true&labelSelector=tcp-route-sync&resourceVersion={revision}"
    );
    let mut events = client.watch(&path).await;
    client.service("plain", json!({})).await;
    client
        .server
        .label("default", "a", "tcp-route-sync", None)
        .unwrap();
    let gone = events.expect("DELETED", "a").await;
    assert_eq!(
        gone["metadata"]["labels"]["tcp-route-sync"], "1",
        "as it last matched"
    );
    client
        .server
        .label("default", "plain", "tcp-route-sync", Some("2"))
        .unwrap();
    events.expect("ADDED", "plain").await;
    client
        .server
        .label("default", "plain", "tcp-route-sync", Some("3"))
        .unwrap();
    events.expect("MODIFIED", "plain").await;
    client.server.delete("Service", "default", "plain");
    events.expect("DELETED", "plain").await;
    // A second watch from the same revision replays the same story.
    let mut replay = client.watch(&path).await;
    replay.expect("DELETED", "a").await;
    replay.expect("ADDED", "plain").await;
}

#[tokio::test]
async fn a_watch_without_revision_begins_with_what_is_there_and_sends_bookmarks() {
    let options = ApiServerOptions {
        bookmark_interval: Duration::from_millis(50),
        ..Default::default()
    };
    let client = Client::with(options).await;
    client.service("a", json!({})).await;
    let path = "/api/v1/services?watch=true&allowWatchBookmarks=true";
    let mut events = client.watch(path).await;
    events.expect("ADDED", "a").await;
    client.service("b", json!({})).await;
    events.expect("ADDED", "b").await;
    let bookmark = events.next().await.unwrap().unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    let revision = client.server.revision().to_string();
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], revision);
    let mut short = client
        .watch("/api/v1/services?watch=true&timeoutSeconds=1&resourceVersion=9")
        .await;
    while short.next().await.unwrap().is_some() {}
}

#[tokio::test]
async fn writes_on_a_stale_revision_conflict_and_writes_of_the_same_change_nothing() {
    let client = Client::start().await;
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
    let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}});
    let (status, first) = client.send("POST", path, lease).await;
    assert_eq!(status, 201, "{first}");
    let one = format!("{path}/l");
    let (status, same) = client.send("PUT", &one, first.clone()).await;
    assert_eq!(
        (status.as_u16(), &same),
        (200, &first),
        "nothing changed, so no new revision"
    );
    let mut second = first.clone();
    second["spec"]["holderIdentity"] = json!("b");
    assert_eq!(client.send("PUT", &one, second).await.0, 200);
    let mut stale = first;
    stale["spec"]["holderIdentity"] = json!("c");
    let (status, conflict) = client.send("PUT", &one, stale).await;
    assert_eq!(
        (status.as_u16(), &conflict["reason"]),
        (409, &json!("Conflict"))
    );
    let message = conflict["message"].as_str().unwrap();
    assert!(
        message.starts_with("Operation cannot be fulfilled on leases.coordination.k8s.io \"l\"")
    );
}

#[tokio::test]
async fn patches_merge_and_null_removes() {
    let client = Client::start().await;
    client.service("a", json!({"x": "1", "y": "2"})).await;
    let path = format!("{SERVICES}/a");
    let patch = json!({"metadata": {"labels": {"x": null, "z": "3"}}});
    let (status, patched) = client.send("PATCH", &path, patch).await;
    assert_eq!(
        (status.as_u16(), &patched["metadata"]["labels"]),
        (200, &json!({"y": "2", "z": "3"}))
    );
    let patch = json!([{"op": "replace", "path": "/metadata/labels/z", "value": "4"}]);
    let (_, patched) = client.send("PATCH", &path, patch).await;
    assert_eq!(patched["metadata"]["labels"]["z"], "4");
    let stale = json!({"metadata": {"resourceVersion": "1", "labels": {"z": "5"}}});
    assert_eq!(client.send("PATCH", &path, stale).await.0, 409);
}

#[tokio::test]
async fn a_token_does_what_its_rules_allow_and_no_more() {
    let mut client = Client::start().await;
    client.token = "reader";
    assert_eq!(client.get("/api/v1/services").await.0, 200);
    let (status, refused) = client.get("/api/v1/namespaces").await;
    assert_eq!(status, 403);
    let expected = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "namespaces is forbidden: User \"route-sync\" cannot list resource \
                    \"namespaces\" in API group \"\" at the cluster scope",
        "reason": "Forbidden", "details": {"kind": "namespaces"}, "code": 403,
    });
    assert_eq!(refused, expected);
    assert_eq!(
        client
            .send("POST", SERVICES, service("a", json!({})))
            .await
            .0,
        403
    );
    client.server.faults().forbid_watch(true);
    assert_eq!(client.get("/api/v1/services?watch=true").await.0, 403);
    client.token = "nobody";
    let (status, refused) = client.get("/api/v1/services").await;
    assert_eq!(
        (status.as_u16(), &refused["message"]),
        (401, &json!("Unauthorized"))
    );
}

#[tokio::test]
async fn discovery_names_what_is_served_and_nothing_else() {
    let served = Served {
        discovery: false,
        ..Served::default()
    };
    let client = Client::with(ApiServerOptions {
        served,
        ..Default::default()
    })
    .await;
    assert_eq!(client.get("/version").await.1["minor"], "36");
    assert_eq!(client.get("/api").await.1["versions"], json!(["v1"]));
    let (_, groups) = client.get("/apis").await;
    let names: Vec<_> = groups["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| &g["name"])
        .collect();
    assert_eq!(names, ["events.k8s.io", "coordination.k8s.io"]);
    let (_, core) = client.get("/api/v1").await;
    let names = core["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].as_str().unwrap());
    assert!(names.collect::<Vec<_>>().contains(&"nodes/status"));
    for path in [
        "/apis/discovery.k8s.io/v1",
        "/apis/discovery.k8s.io/v1/endpointslices",
    ] {
        let (status, text) = client.get(path).await;
        assert_eq!(
            (status.as_u16(), text),
            (404, json!("404 page not found\n"))
        );
    }
}

#[tokio::test]
async fn a_deleted_namespace_lingers_until_it_is_finished() {
    let client = Client::start().await;
    let namespace = json!({"metadata": {"name": "team"}});
    assert_eq!(
        client.send("POST", "/api/v1/namespaces", namespace).await.0,
        201
    );
    let services = "/api/v1/namespaces/team/services";
    assert_eq!(
        client
            .send("POST", services, service("a", json!({})))
            .await
            .0,
        201
    );
    let (_, marked) = client
        .send("DELETE", "/api/v1/namespaces/team", Value::Null)
        .await;
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(marked["status"]["phase"], "Terminating");
    let (status, refused) = client.send("POST", services, service("b", json!({}))).await;
    assert_eq!(status, 403);
    assert_eq!(
        refused["details"]["causes"][0]["reason"],
        "NamespaceTerminating"
    );
    assert_eq!(client.names(services).await, ["a"]);
    client.server.finish_namespace("team");
    assert_eq!(client.get("/api/v1/namespaces/team").await.0, 404);
    assert!(client.names(services).await.is_empty());
    assert_eq!(
        client
            .send("POST", services, service("b", json!({})))
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn a_revision_older_than_history_is_an_error_event_of_410() {
    let client = Client::start().await;
    client.service("a", json!({})).await;
    client.server.compact();
    let mut events = client
        .watch("/api/v1/services?watch=true&resourceVersion=1")
        .await;
    let error = events.next().await.unwrap().unwrap();
    assert_eq!(
        (&error["type"], &error["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert_eq!(error["object"]["reason"], "Expired");
    assert!(events.next().await.unwrap().is_none());
    let path =
        "/api/v1/services?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let error = client.watch(path).await.next().await.unwrap().unwrap();
    assert_eq!(
        (&error["type"], &error["object"]["code"]),
        (&json!("ERROR"), &json!(500))
    );
}

#[tokio::test]
async fn every_watch_fault_shows_as_it_says() {
    let client = Client::start().await;
    client.service("a", json!({})).await;
    let path = "/api/v1/services?watch=true";
    let fault = |fault| client.server.faults().watch("services", fault);
    fault(WatchFault::Status(410));
    assert_eq!(client.get(path).await.0, 410);
    fault(WatchFault::InStream(410));
    let error = client.watch(path).await.next().await.unwrap().unwrap();
    assert_eq!(error["object"]["code"], 410);
    fault(WatchFault::EndsAtOnce);
    assert!(client.watch(path).await.next().await.unwrap().is_none());
    fault(WatchFault::CutMidObject);
    assert!(client.watch(path).await.next().await.is_err());
    // A black hole has headers; what must not come is waited for briefly.
    let brief = Duration::from_millis(100);
    fault(WatchFault::BlackHole);
    let mut hole = client.watch(path).await;
    assert!(tokio::time::timeout(brief, hole.next()).await.is_err());
    fault(WatchFault::NoAnswer);
    assert!(tokio::time::timeout(brief, client.get(path)).await.is_err());
    client.server.faults().clear();
    client.watch(path).await.expect("ADDED", "a").await;
    assert!(client.server.requests("watch", "services") >= 7);
}

#[tokio::test]
async fn every_list_fault_shows_as_it_says() {
    let client = Client::start().await;
    client.service("a", json!({})).await;
    let path = "/api/v1/services";
    let fault = |fault| client.server.faults().list("services", fault);
    for code in [429, 500, 503] {
        fault(ListFault::Status(code));
        assert_eq!(client.get(path).await.0.as_u16(), code);
    }
    fault(ListFault::Truncated);
    let response = client
        .request(reqwest::Method::GET, path)
        .send()
        .await
        .unwrap();
    assert!(response.text().await.is_err());
    fault(ListFault::Hang);
    let brief = Duration::from_millis(100);
    assert!(tokio::time::timeout(brief, client.get(path)).await.is_err());
    fault(ListFault::Slow(brief));
    assert_eq!(client.names(path).await, ["a"]);
    assert_eq!(client.server.requests("list", "services"), 6);
}

#[tokio::test]
async fn a_silent_watch_misses_what_a_list_shows() {
    let client = Client::start().await;
    let mut events = client.watch("/api/v1/services?watch=true").await;
    client.server.silence_watches(true);
    client.service("missed", json!({})).await;
    client.server.silence_watches(false);
    client.service("told", json!({})).await;
    events.expect("ADDED", "told").await;
    assert_eq!(client.names("/api/v1/services").await, ["missed", "told"]);
}

#[tokio::test]
async fn a_restart_breaks_connections_and_keeps_address_and_objects() {
    let client = Client::start().await;
    let created = client.service("a", json!({})).await;
    let mut events = client.watch("/api/v1/services?watch=true").await;
    events.expect("ADDED", "a").await;
    let url = client.server.url();
    client.server.stop().await;
    assert!(
        events.next().await.is_err(),
        "the stream breaks, it does not end"
    );
    assert!(
        client
            .request(reqwest::Method::GET, "/version")
            .send()
            .await
            .is_err()
    );
    client.server.start_again().await.unwrap();
    assert_eq!(client.server.url(), url);
    assert_eq!(client.get(&format!("{SERVICES}/a")).await.1, created);
}

#[tokio::test]
async fn an_applied_manifest_keeps_identity_and_names_what_is_not_served() {
    let client = Client::start().await;
    let manifest = |label: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: web, labels: {label}}}\n\
             spec: {{type: NodePort, ports: [{{port: 80}}]}}\n"
        )
    };
    let outcomes = |manifest: String| {
        let applied = client.server.apply(&manifest).unwrap();
        applied.into_iter().map(|a| a.outcome).collect::<Vec<_>>()
    };
    assert_eq!(
        outcomes(manifest("{a: b}")),
        [Outcome::NotServed, Outcome::Created]
    );
    let first = client.server.get("Service", "default", "web").unwrap();
    assert_eq!(
        outcomes(manifest("{a: b}")),
        [Outcome::NotServed, Outcome::Unchanged]
    );
    assert_eq!(
        outcomes(manifest("{}")),
        [Outcome::NotServed, Outcome::Changed]
    );
    let second = client.server.get("Service", "default", "web").unwrap();
    assert_eq!(first["metadata"]["uid"], second["metadata"]["uid"]);
    assert_eq!(first["spec"], second["spec"]);
    assert!(second["metadata"]["labels"]["a"].is_null());
}

#[tokio::test]
async fn a_node_keeps_its_addresses_and_changes_its_status_alone() {
    let client = Client::start().await;
    client.server.node("node-1", "127.0.0.11").unwrap();
    let (_, mut node) = client.get("/api/v1/nodes/node-1").await;
    assert_eq!(node["status"]["addresses"][0]["address"], "127.0.0.11");
    node["status"]["conditions"][0]["status"] = json!("False");
    node["metadata"]["labels"]["new"] = json!("label");
    let (status, updated) = client
        .send("PUT", "/api/v1/nodes/node-1/status", node)
        .await;
    assert_eq!(status, 200);
    assert_eq!(updated["status"]["conditions"][0]["status"], "False");
    assert!(updated["metadata"]["labels"]["new"].is_null());
    client.server.node_ready("node-1", "Unknown").unwrap();
    let node = client.server.get("Node", "", "node-1").unwrap();
    assert_eq!(node["status"]["conditions"][0]["status"], "Unknown");
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_served_as_it_is() {
    let client = Client::start().await;
    client.server.raw_put(
        "Service",
        json!({
            "metadata": {"name": "odd", "namespace": "default"},
            "spec": {"type": "NodePort", "ports": [{"port": "eighty"}]},
        }),
    );
    let (_, odd) = client.get(&format!("{SERVICES}/odd")).await;
    assert_eq!(odd["spec"]["ports"][0]["port"], "eighty");
    assert!(odd["metadata"]["uid"].is_string());
}

#[tokio::test]
async fn every_example_applies_and_the_shipped_role_is_enough_to_read_it() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(EXAMPLES);
    let read = |name: &str| std::fs::read_to_string(examples.join(name)).unwrap();
    let rules = Rules::of_roles(&read("rbac.yml")).unwrap();
    let token = Token {
        token: "shipped".into(),
        user: "route-sync".into(),
        rules,
    };
    let options = ApiServerOptions {
        tokens: vec![token],
        ..Default::default()
    };
    let mut client = Client::with(options).await;
    client.token = "shipped";
    for (example, label, port) in [
        ("nginx.yml", "nginx", 80),
        ("grafana.yml", "grafana", 80),
        ("tomcat.yml", "tomcat-example", 8080),
        ("mysql.yml", "34569", 3306),
    ] {
        let applied = client.server.apply(&read(example)).unwrap();
        let service = applied
            .iter()
            .find(|a| a.outcome == Outcome::Created)
            .unwrap();
        let service = client
            .server
            .get("Service", &service.namespace, &service.name)
            .unwrap();
        let labels = service["metadata"]["labels"].as_object().unwrap();
        let (key, value) = labels
            .iter()
            .find(|(k, _)| k.ends_with("-route-sync"))
            .unwrap();
        assert_eq!(
            (value, &service["spec"]["ports"][0]["port"]),
            (&json!(label), &json!(port))
        );
        let path = format!("/api/v1/services?labelSelector={key}%3D{label}");
        assert_eq!(client.names(&path).await.len(), 1);
        assert!(service["spec"]["ports"][0]["nodePort"].is_number());
    }
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
    let lease = json!({"metadata": {"name": "route-sync"}, "spec": {}});
    assert_eq!(client.send("POST", leases, lease).await.0, 201);
    assert_eq!(client.get(&format!("{leases}/route-sync")).await.0, 200);
    assert_eq!(client.get(leases).await.0, 403);
    assert_eq!(client.get("/api/v1/namespaces/kube-system").await.0, 200);
    assert_eq!(
        client
            .send("DELETE", &format!("{SERVICES}/nginx"), Value::Null)
            .await
            .0,
        403
    );
}
