//! The commands that an operator runs once: a smoke test, and the registration of the UAA client.

use counterparts::UaaClient;
use counterparts::uaa::ADMIN;
use serde_json::{Value, json};
use suite::{
    Cluster, Controller, Foundation, KubeProxy, Settings, Stage, eventually, on_each_stage,
    on_stage,
};

/// The label of everything that a smoke test makes.
const MARK: &str = "route-sync.cloudfoundry.org/smoke-test";
/// An address that the nodes reach and that is no node's.
const LISTENER: &str = "10.0.0.8";
const AUTHORITIES: [&str; 3] = [
    "routing.router_groups.read",
    "routing.routes.read",
    "routing.routes.write",
];

/// A smoke test of both lanes with more arguments: exit code, and its lines as JSON.
async fn smoke_test(foundation: &Foundation, settings: &Settings, more: &[&str]) -> (i32, Value) {
    let router = foundation.http().to_string();
    let mut arguments = vec!["smoke-test", "--output", "json"];
    arguments.extend(["--address", LISTENER, "--http-router", &router]);
    arguments.extend(more);
    let (code, stdout, stderr) = settings.command(&arguments).await.unwrap();
    let told = serde_json::from_str(&stdout);
    (code, told.unwrap_or_else(|_| panic!("{stdout}{stderr}")))
}

/// The steps of a smoke test by what became of them.
fn steps(told: &Value, result: &str) -> Vec<String> {
    let steps = told["steps"].as_array().unwrap().iter();
    let steps = steps.filter(|step| step["result"] == result);
    steps
        .map(|step| step["step"].as_str().unwrap().to_owned())
        .collect()
}

fn step<'a>(told: &'a Value, name: &str) -> &'a Value {
    let mut steps = told["steps"].as_array().unwrap().iter();
    steps
        .find(|step| step["step"] == name)
        .unwrap_or_else(|| panic!("no step `{name}`: {told}"))
}

async fn marked(cluster: &Cluster, kind: &str) -> Vec<Value> {
    let all = cluster.list(kind).await.unwrap().into_iter();
    all.filter(|object| object["metadata"]["labels"][MARK].is_string())
        .collect()
}

/// Nothing is left but namespaces that the namespace controller, which does not run here, would finish.
async fn nothing_is_left(cluster: &Cluster) {
    for kind in ["Service", "EndpointSlice"] {
        assert_eq!(marked(cluster, kind).await, Vec::<Value>::new());
    }
    for namespace in marked(cluster, "Namespace").await {
        let metadata = &namespace["metadata"];
        assert!(metadata["deletionTimestamp"].is_string(), "{metadata}");
    }
}

#[test]
fn a_smoke_test_reaches_its_listener_through_both_routers_and_leaves_nothing() {
    let statement = "a smoke test makes a Service reachable through gorouter and tcp-router and takes it away again";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let (first, second) = (foundation.port().to_string(), foundation.port().to_string());
        let _proxy = KubeProxy::start(&foundation.cluster, MARK, 2);
        let controller = foundation.controller().await;
        let settings = Settings::new(foundation).unwrap();
        let tcp = |port| ["--tcp-port", port, "--tcp-router", "127.0.0.1"];

        let (code, told) = smoke_test(foundation, &settings, &tcp(&first)).await;
        assert_eq!((code, &told["passed"]), (0, &json!(true)), "{told:#}");
        let expected = [
            "uaa",
            "routing-api",
            "nats",
            "kubernetes",
            "rights",
            "listener",
            "namespace",
            "service",
            "http-route",
            "tcp-route",
            "delete",
            "http-unroute",
            "tcp-unroute",
            "cleanup",
        ];
        assert_eq!(steps(&told, "ok"), expected, "{told:#}");
        let nats = step(&told, "nats")["message"].as_str().unwrap();
        assert!(nats.ends_with("; a gorouter answers a greeting"), "{nats}");
        for span in ["time_to_route", "time_to_unroute"] {
            for lane in ["http", "tcp"] {
                assert!(told[span][lane].as_f64().unwrap() > 0.0, "{told:#}");
            }
        }
        println!("{} {}", told["time_to_route"], told["time_to_unroute"]);
        nothing_is_left(&foundation.cluster).await;

        foundation.cluster.namespace("errands").await.unwrap();
        let mut more = vec!["--namespace", "errands"];
        more.extend(tcp(&second));
        let (code, told) = smoke_test(foundation, &settings, &more).await;
        assert_eq!(code, 0, "{told:#}");
        let errands = foundation.cluster.get("Namespace", "", "errands").await;
        let errands = errands.unwrap();
        assert!(
            errands["metadata"]["deletionTimestamp"].is_null(),
            "it was there before"
        );
        nothing_is_left(&foundation.cluster).await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_smoke_test_without_a_controller_names_the_step_and_leaves_nothing() {
    let statement =
        "a smoke test ends at its deadline where nobody routes, and takes away what it made";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let port = foundation.port().to_string();
        let settings = Settings::new(foundation).unwrap();
        let tcp = ["--tcp-port", &port, "--tcp-router", "127.0.0.1"];
        let mut more = vec!["--timeout", "15s"];
        more.extend(tcp);

        let (code, told) = smoke_test(foundation, &settings, &more).await;
        assert_eq!(code, 1, "{told:#}");
        assert_eq!(
            steps(&told, "failed"),
            ["http-route", "tcp-route"],
            "{told:#}"
        );
        let message = step(&told, "http-route")["message"].as_str().unwrap();
        assert!(
            message.starts_with("not within 15 s: status 404"),
            "{message}"
        );
        let hint = step(&told, "tcp-route")["hint"].as_str().unwrap();
        assert!(hint.starts_with("does route-sync run?"), "{hint}");
        assert_eq!(step(&told, "cleanup")["result"], "ok");
        nothing_is_left(&foundation.cluster).await;
    });
}

#[test]
fn what_keeps_a_smoke_test_from_its_route_is_told_as_route_sync_sees_it() {
    on_stage(Stage::Sandbox, async |foundation| {
        foundation.nodes(1).await;
        let port = foundation.port().to_string();
        let controller = foundation
            .controller_with(|settings| {
                let grant = json!({"namespaces": ["others"], "ports": port});
                settings.config["policy"] = json!({"ports": [grant]});
                settings.config["http"] = json!({"enabled": false});
            })
            .await;
        let arguments = ["smoke-test", "--address", LISTENER, "--timeout", "15s"];
        let tcp = ["--tcp-port", &port, "--tcp-router", "127.0.0.1"];
        let arguments = [&arguments[..], &tcp].concat();
        let (code, stdout, stderr) = controller.command(&arguments).await.unwrap();
        assert_eq!((code, stderr.as_str()), (1, ""), "{stdout}");
        let hint = "\n         hint: route-sync says of the Service: [port-denied] ";
        assert!(stdout.contains(hint), "{stdout}");
        nothing_is_left(&foundation.cluster).await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_smoke_test_that_is_stopped_takes_away_what_it_made() {
    on_stage(Stage::Sandbox, async |foundation| {
        foundation.nodes(1).await;
        let router = foundation.http().to_string();
        for signal in ["TERM", "INT"] {
            let mut settings = Settings::new(foundation).unwrap();
            let arguments = [
                "smoke-test",
                "--address",
                LISTENER,
                "--http-router",
                &router,
            ];
            settings.arguments = arguments.map(str::to_owned).to_vec();
            let running = Controller::start(settings).await.unwrap();
            eventually("the Service is made", async || {
                !marked(&foundation.cluster, "Service").await.is_empty()
            })
            .await;
            running.signal(signal);
            let (code, log) = running.end_with_log().await;
            assert_eq!(code, 1, "{log}");
            let told = format!("interrupted by SIG{signal}\n");
            assert!(
                log.contains(&told) && log.contains("\nok       cleanup "),
                "{log}"
            );
            assert!(log.ends_with("\nsmoke test failed\n"), "{log}");
            nothing_is_left(&foundation.cluster).await;
        }
    });
}

#[test]
fn a_preflight_names_a_missing_scope_and_goes_on() {
    let statement =
        "a preflight makes nothing, names a missing scope, and checks every other server";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let mut settings = Settings::new(foundation).unwrap();
        let (code, told) = smoke_test(foundation, &settings, &["--preflight"]).await;
        assert_eq!(code, 0, "{told:#}");
        let all = ["uaa", "routing-api", "nats", "kubernetes", "rights"];
        assert_eq!(steps(&told, "ok"), all, "{told:#}");

        let client = UaaClient::new("half", "half-secret", &AUTHORITIES[..2]);
        foundation.uaa_client(&client).await;
        settings.config["uaa"]["client_id"] = json!(client.id);
        settings.config["uaa"]["client_secret"] = json!(client.secret);
        let (code, told) = smoke_test(foundation, &settings, &["--preflight"]).await;
        assert_eq!(code, 1, "{told:#}");
        assert_eq!(steps(&told, "failed"), ["uaa"]);
        assert_eq!(steps(&told, "skipped"), ["routing-api"]);
        assert_eq!(steps(&told, "ok"), ["nats", "kubernetes", "rights"]);
        let message = &step(&told, "uaa")["message"];
        assert_eq!(message, "the token of `half` lacks `routing.routes.write`");
        assert!(!told.to_string().contains("half-secret"));
        nothing_is_left(&foundation.cluster).await;
    });
}

/// Runs the registration of a client: exit code, stdout, stderr.
async fn register(
    foundation: &Foundation,
    id: &str,
    secret: &str,
    more: &[&str],
) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("admin");
    std::fs::write(&file, format!("{}\n", ADMIN.1)).unwrap();
    let mut settings = Settings::new(foundation).unwrap();
    settings.config["uaa"]["client_id"] = json!(id);
    settings.config["uaa"]["client_secret"] = json!(secret);
    // Not this command's business.
    settings.config["nats"] = json!("nowhere");
    let file = file.to_str().unwrap();
    let arguments = [
        "register-uaa-client",
        "--admin-client-id",
        ADMIN.0,
        "--admin-client-secret-file",
        file,
    ];
    let arguments = [&arguments[..], more].concat();
    let told = settings.command(&arguments).await.unwrap();
    for output in [&told.1, &told.2] {
        assert!(
            !output.contains(secret) && !output.contains(ADMIN.1),
            "{told:?}"
        );
    }
    told
}

/// A client as the UAA tells it, with its words in order.
async fn client(foundation: &Foundation, id: &str) -> Value {
    let path = format!("/oauth/clients/{id}");
    let told = foundation.stack.uaa.admin("GET", &path, &json!(null));
    let mut told = told.await.unwrap();
    let words = told["authorities"].as_array_mut().unwrap();
    words.sort_by_key(ToString::to_string);
    told
}

#[test]
fn a_client_is_registered_once_and_mended_but_a_strangers_is_not_touched() {
    on_stage(Stage::Sandbox, async |foundation| {
        const SCOPES: &str = "it gets tokens with the scopes routing.router_groups.read, \
                              routing.routes.read, routing.routes.write\n";
        let uaa = &foundation.stack.uaa;
        let ours = |told: &Value| {
            assert_eq!(told["authorities"], json!(AUTHORITIES));
            assert_eq!(
                told["authorized_grant_types"],
                json!(["client_credentials"])
            );
            assert_eq!(told["access_token_validity"], 600);
        };

        // Absent. The id and the secret hold what neither a path nor a form may hold as it is.
        let id = format!("new client+{}", std::process::id());
        let (code, stdout, stderr) = register(foundation, &id, "p:+&% word", &[]).await;
        assert_eq!((code, stderr.as_str()), (0, ""));
        assert_eq!(stdout, format!("client `{id}` created\n{SCOPES}"));
        let encoded = id.replace(' ', "%20");
        let first = client(foundation, &encoded).await;
        ours(&first);

        // Right: nothing is written, so that not even the time of its last change is another.
        let (code, stdout, _) = register(foundation, &id, "p:+&% word", &[]).await;
        let unchanged = format!("client `{id}` is as it should be, nothing changed\n{SCOPES}");
        assert_eq!((code, stdout), (0, unchanged));
        assert_eq!(client(foundation, &encoded).await, first);

        // Another's: one authority is missing, and a token lives too long.
        let poor = UaaClient::new("poor-client", "first", &AUTHORITIES[..2]).validity(7200);
        foundation.uaa_client(&poor).await;
        uaa.add_secret("poor-client", "second").await.unwrap();
        let before = client(foundation, "poor-client").await;
        let (code, stdout, stderr) = register(foundation, "poor-client", "third", &[]).await;
        assert_eq!((code, stdout.as_str()), (1, ""));
        let told = "error: the client `poor-client` was made by somebody else and stays as it is";
        assert!(stderr.starts_with(told), "{stderr}");
        assert_eq!(client(foundation, "poor-client").await, before);
        assert!(uaa.token("poor-client", "first").await.is_ok());
        let (code, stdout, stderr) =
            register(foundation, "poor-client", "second", &["--take-over"]).await;
        assert_eq!(code, 0, "{stderr}");
        let changed =
            "client `poor-client` updated: authorities, access_token_validity, managed_by\n";
        assert_eq!(stdout, format!("{changed}{SCOPES}"));
        ours(&client(foundation, "poor-client").await);
        assert!(
            uaa.token("poor-client", "first").await.is_ok(),
            "no secret was set"
        );

        // Ours from then on, and right but for its secret.
        let (code, stdout, stderr) = register(foundation, "poor-client", "third", &[]).await;
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(
            stdout,
            format!("client `poor-client` updated: secret\n{SCOPES}")
        );
        assert!(uaa.token("poor-client", "third").await.is_ok());
        assert!(uaa.token("poor-client", "second").await.is_err());

        // Somebody else's.
        let mut authorities = AUTHORITIES.to_vec();
        authorities.push("cloud_controller.admin");
        let stranger = UaaClient::new("stranger", "secret-of-its-own", &authorities);
        foundation.uaa_client(&stranger).await;
        let before = client(foundation, "stranger").await;
        let (code, stdout, stderr) =
            register(foundation, "stranger", "secret-of-ours", &["--take-over"]).await;
        assert_eq!((code, stdout.as_str()), (1, ""));
        let told = "error: the client `stranger` has `cloud_controller.admin` as well, so it is somebody else's";
        assert!(stderr.starts_with(told), "{stderr}");
        assert_eq!(client(foundation, "stranger").await, before);
        assert!(uaa.token("stranger", "secret-of-its-own").await.is_ok());
    });
}
