//! What a smoke test makes, it takes away; what an apiserver refuses is told with what to do.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use wiremock::matchers::{method, path_regex};
use wiremock::{Mock, ResponseTemplate};

use super::{FIRST, World, answer, failed, list, refusal, told};

const MARK: &str = "route-sync.cloudfoundry.org/smoke-test";
/// Between two looks at what was asked.
const PAUSE: Duration = Duration::from_millis(20);

/// What a namespace or Service of a smoke test looks like in a list.
fn left(namespace: &str, name: &str, created: &str) -> Value {
    json!({"metadata": {
        "namespace": namespace, "name": name, "labels": {MARK: "true"}, "creationTimestamp": created,
    }})
}

#[tokio::test]
async fn what_earlier_tests_left_goes_and_a_failure_is_cleaned_up_after() {
    let world = World::new().await;
    let now = "2999-01-01T00:00:00Z";
    let old = "2020-01-01T00:00:00Z";
    let namespaces = [
        left("", "route-sync-old", old),
        left("", "route-sync-young", now),
    ];
    world
        .says("GET", "/api/v1/namespaces", list(&namespaces))
        .await;
    let mut strange = left("theirs", "strange", old);
    strange["metadata"]["labels"] = json!({});
    let services = [
        left("route-sync-old", "s", old),
        left("given", "t", old),
        left("given", "young", now),
        strange,
    ];
    world.says("GET", "/api/v1/services", list(&services)).await;
    let gone = Mock::given(method("DELETE")).and(path_regex("^/api"));
    gone.respond_with(refusal(404, "NotFound"))
        .mount(&world.servers)
        .await;
    world
        .says("POST", "/api/v1/namespaces", refusal(409, "AlreadyExists"))
        .await;

    let (code, stdout, _) = world.run(&["smoke-test", "--address", "127.0.0.1"]).await;
    assert_eq!(code, 1, "{stdout}");
    assert!(
        stdout.contains("  removed 2 that earlier tests left\n"),
        "{stdout}"
    );
    let told =
        "namespace: cannot make the namespace: the apiserver answers 409: so the test wants it";
    assert_eq!(failed(&stdout), [told], "{stdout}");
    assert!(stdout.contains("\nok       cleanup "), "{stdout}");
    let deleted = world.asked("DELETE").await;
    let expect = [
        "/api/v1/namespaces/route-sync-old/services/s",
        "/apis/discovery.k8s.io/v1/namespaces/route-sync-old/endpointslices/s",
        "/api/v1/namespaces/route-sync-old",
        "/api/v1/namespaces/given/services/t",
        "/apis/discovery.k8s.io/v1/namespaces/given/endpointslices/t",
    ];
    assert_eq!(deleted[..5], expect);
    let own = deleted[5..].iter();
    assert_eq!(own.clone().count(), 3, "{deleted:?}");
    assert!(
        own.into_iter()
            .all(|path| path.contains("/route-sync-smoke-test-")),
        "{deleted:?}"
    );
}

#[tokio::test]
async fn why_the_apiserver_takes_no_endpoint_is_told_with_what_to_do() {
    for (refusal, hint) in [
        (
            refusal(404, "NotFound"),
            "`--namespace` must name one that is there",
        ),
        (
            refusal(422, "Invalid"),
            "`--address` must be an address that the nodes reach",
        ),
    ] {
        let world = World::new().await;
        let slices = "/apis/discovery.k8s.io/v1/namespaces/given/endpointslices";
        world.says("POST", slices, refusal).await;
        let gone = Mock::given(method("DELETE"));
        gone.respond_with(answer(200, json!({})))
            .mount(&world.servers)
            .await;
        let arguments = [
            "smoke-test",
            "--address",
            "127.0.0.1",
            "--namespace",
            "given",
        ];
        let (code, stdout, _) = world.run(&arguments).await;
        assert_eq!(code, 1, "{stdout}");
        let told = failed(&stdout);
        assert!(
            told[0].starts_with("service: cannot say what the Service leads to: "),
            "{stdout}"
        );
        assert!(told[0].contains(&format!("; hint: {hint}")), "{stdout}");
        let deleted = world.asked("DELETE").await;
        assert_eq!(deleted.len(), 2, "the namespace is not ours: {deleted:?}");
    }
}

#[tokio::test]
async fn where_no_endpoint_slices_are_served_endpoints_lead_to_the_listener() {
    let world = World::new().await;
    // As before Kubernetes 1.21.
    let absent = ResponseTemplate::new(404);
    world.says("GET", "/apis/discovery.k8s.io/v1", absent).await;
    let made = Mock::given(method("POST")).and(path_regex("^/api/v1/namespaces"));
    made.respond_with(answer(201, json!({"metadata": {}})))
        .mount(&world.servers)
        .await;
    let refused = Mock::given(method("POST")).and(path_regex("/services$"));
    refused
        .respond_with(refusal(500, "InternalError"))
        .with_priority(FIRST)
        .mount(&world.servers)
        .await;
    let gone = Mock::given(method("DELETE")).and(path_regex("^/api/v1/"));
    gone.respond_with(refusal(404, "NotFound"))
        .mount(&world.servers)
        .await;

    let (code, stdout, _) = world.run(&["smoke-test", "--address", "127.0.0.1"]).await;
    assert_eq!(code, 1, "{stdout}");
    let failed = failed(&stdout);
    assert!(failed.len() == 1 && failed[0].starts_with("service: cannot make the Service"));
    assert!(stdout.contains("\nok       cleanup "), "{stdout}");
    let reviews = world.servers.received_requests().await.unwrap();
    let reviews = reviews.iter().map(|it| String::from_utf8_lossy(&it.body));
    assert!(
        reviews
            .clone()
            .any(|body| body.contains(r#""resource":"endpoints""#))
    );
    let subset = r#""subsets":[{"addresses":[{"ip":"127.0.0.1"}],"ports":[{"port":"#;
    assert!(reviews.clone().any(|body| body.contains(subset)));
    let mut paths = world.asked("POST").await;
    paths.extend(world.asked("DELETE").await);
    let endpoints = paths.iter().filter(|path| path.contains("/endpoints"));
    assert_eq!(endpoints.count(), 2, "{paths:?}");
    assert!(
        !paths.iter().any(|path| path.contains("discovery")),
        "{paths:?}"
    );
}

#[tokio::test]
async fn what_cannot_be_deleted_is_told_with_the_command_that_does() {
    let world = World::new().await;
    world
        .says("POST", "/api/v1/namespaces", refusal(500, "InternalError"))
        .await;
    let stuck = Mock::given(method("DELETE"));
    stuck
        .respond_with(refusal(403, "Forbidden"))
        .mount(&world.servers)
        .await;
    let (code, stdout, _) = world.run(&["smoke-test", "--address", "127.0.0.1"]).await;
    assert_eq!(code, 1);
    let failed = failed(&stdout);
    assert!(
        failed[1].starts_with("cleanup: cannot delete everything: the apiserver forbids it"),
        "{stdout}"
    );
    assert!(
        failed[1].contains("; hint: `kubectl delete namespace route-sync-smoke-test-"),
        "{stdout}"
    );
}

/// While the namespace is being made, which takes the apiserver a while.
#[tokio::test]
async fn a_request_that_makes_something_is_waited_for_unless_a_second_signal_comes() {
    const NAMESPACES: &str = "/api/v1/namespaces";
    for signals in [&["TERM"][..], &["INT", "TERM"]] {
        let world = World::new().await;
        // Between what two signals take on a busy machine and the 5 s that a request may take.
        let made = answer(201, json!({})).set_delay(Duration::from_secs(3));
        world.says("POST", NAMESPACES, made).await;
        let gone = Mock::given(method("DELETE"));
        gone.respond_with(answer(200, json!({})))
            .mount(&world.servers)
            .await;
        let mut command = world.command(&["smoke-test", "--address", "127.0.0.1"]);
        let running = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let running = running.unwrap();
        let pid = running.id().unwrap().to_string();
        while !world.asked("POST").await.contains(&NAMESPACES.to_owned()) {
            tokio::time::sleep(PAUSE).await;
        }
        for signal in signals {
            let sent = Command::new("kill").args(["-s", signal, &pid]).status();
            assert!(sent.await.unwrap().success());
        }
        let (code, stdout, stderr) = told(running.wait_with_output().await.unwrap());
        assert_eq!(code, 1, "{stdout}");
        let interrupted = stdout.matches("failed   interrupted ").count();
        assert_eq!(interrupted, signals.len(), "{stdout}");
        let deleted = world.asked("DELETE").await.len();
        if signals.len() == 1 {
            assert_eq!((deleted, stderr.as_str()), (3, ""), "{stdout}");
            assert!(stdout.contains("\nok       namespace "), "{stdout}");
        } else {
            assert_eq!(deleted, 0, "{stdout}");
            let left = "warning: `kubectl delete namespace route-sync-smoke-test-";
            assert!(stderr.starts_with(left), "{stderr}");
        }
    }
}
