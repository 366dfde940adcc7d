//! The commands that are run once, against servers that answer as each test wants it: every line that a smoke test
//! can fail with, and what a registration does not do.

#[path = "http_lane/server.rs"]
#[allow(dead_code, reason = "the lane's tests need more of it")]
mod server;

#[path = "errands/end_to_end.rs"]
mod end_to_end;
#[path = "errands/registration.rs"]
mod registration;

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use wiremock::matchers::{body_string_contains, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use server::{Behaviour, Server};

const SCOPES: &str = "routing.router_groups.read routing.routes.read routing.routes.write";
/// Begins every secret, so that none is overlooked.
const SECRET: &str = "hunter";
/// Before every other answer.
const FIRST: u8 = 1;

/// UAA, routing API and apiserver in one, NATS, and a configuration that names them.
struct World {
    servers: MockServer,
    nats: Server,
    folder: TempDir,
}

/// Exit code, stdout, stderr.
type Told = (i32, String, String);

fn answer(status: u16, body: Value) -> ResponseTemplate {
    ResponseTemplate::new(status).set_body_json(body)
}

fn token(scope: &str) -> ResponseTemplate {
    let body = json!({"access_token": "hunter-token", "token_type": "bearer", "expires_in": 599, "scope": scope});
    answer(200, body)
}

fn group(name: &str, kind: &str) -> Value {
    json!({"guid": name, "name": name, "type": kind, "reservable_ports": "1024-1033"})
}

fn list(items: &[Value]) -> ResponseTemplate {
    answer(
        200,
        json!({"metadata": {"resourceVersion": "1"}, "items": items}),
    )
}

fn refusal(code: u16, reason: &str) -> ResponseTemplate {
    let message = "so the test wants it";
    answer(
        code,
        json!({"kind": "Status", "code": code, "reason": reason, "message": message}),
    )
}

// === impl World ===

impl World {
    async fn new() -> Self {
        let nats = Server::start(Behaviour {
            password: Some("hunter1".to_owned()),
            routers: vec!["{}".to_owned()],
            ..Behaviour::default()
        })
        .await;
        let world = Self {
            servers: MockServer::start().await,
            nats,
            folder: tempfile::tempdir().unwrap(),
        };
        for (verb, path, answer) in [
            ("POST", "/oauth/token", token(SCOPES)),
            (
                "GET",
                "/routing/v1/router_groups",
                answer(200, json!([group("default-tcp", "tcp")])),
            ),
            ("GET", "/routing/v1/tcp_routes", answer(200, json!([]))),
            ("GET", "/api/v1/services", list(&[])),
            ("GET", "/api/v1/nodes", list(&[])),
            ("GET", "/api/v1/namespaces", list(&[])),
            (
                "GET",
                "/apis/discovery.k8s.io/v1",
                answer(200, json!({"resources": [{"name": "endpointslices"}]})),
            ),
            (
                "POST",
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                answer(201, json!({"status": {"allowed": true}})),
            ),
        ] {
            let mock = Mock::given(method(verb)).and(wiremock::matchers::path(path));
            mock.respond_with(answer).mount(&world.servers).await;
        }
        let server = world.servers.uri();
        world.write(
            "kubeconfig",
            &format!(
                "clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\n\
                 users: [{{name: u, user: {{token: hunter2}}}}]\n\
                 contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
            ),
        );
        world.configure(|_| {});
        world.write("admin", "hunter3\n");
        world
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// Writes the configuration with a change of the test's own.
    fn configure(&self, change: impl FnOnce(&mut Value)) {
        let server = self.servers.uri();
        let mut config = json!({
            "kubernetes": {"kubeconfig": "kubeconfig"},
            "uaa": {"url": server, "client_id": "us", "client_secret": "hunter4"},
            "routing_api": {"url": server},
            "nats": {
                "servers": [{"host": self.nats.addr.to_string()}], "user": "nats", "password": "hunter1",
            },
            "routes": {"app_domain": "apps.test"},
            "admin": {"listen": "off"},
        });
        change(&mut config);
        self.write("route-sync.yml", &config.to_string());
    }

    /// Answers so from now on, whatever was said before.
    async fn says(&self, verb: &str, at: &str, answer: ResponseTemplate) {
        let mock = Mock::given(method(verb)).and(path(at)).respond_with(answer);
        mock.with_priority(FIRST).mount(&self.servers).await;
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_route-sync"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Told {
        told(self.command(arguments).output().await.unwrap())
    }

    async fn preflight(&self, more: &[&str]) -> Told {
        self.run(&[&["smoke-test", "--preflight"], more].concat())
            .await
    }

    /// A preflight fails with these lines, and with no others.
    #[track_caller]
    fn fails<'a>(&'a self, lines: &'a [&'a str]) -> impl Future<Output = ()> + 'a {
        let place = std::panic::Location::caller();
        async move {
            let (code, stdout, stderr) = self.preflight(&[]).await;
            assert_eq!((code, stderr.as_str()), (1, ""), "{place}: {stdout}");
            let failed: Vec<_> = failed(&stdout);
            assert_eq!(failed, lines, "{place}: {stdout}");
        }
    }

    /// Requests of a method, by their paths.
    async fn asked(&self, verb: &str) -> Vec<String> {
        let requests = self.servers.received_requests().await.unwrap();
        let of_verb = requests.iter().filter(|it| it.method.as_str() == verb);
        of_verb.map(|it| it.url.path().to_owned()).collect()
    }
}

fn told(output: Output) -> Told {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    let both = format!("{stdout}{stderr}");
    assert!(!both.contains(SECRET), "{both}");
    (output.status.code().unwrap(), stdout, stderr)
}

/// Failed lines without their times, each with its hint.
fn failed(stdout: &str) -> Vec<String> {
    let mut failed = Vec::new();
    let mut lines = stdout.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(rest) = line.strip_prefix("failed   ") else {
            continue;
        };
        let (step, rest) = rest.split_once(' ').unwrap();
        let (_, told) = rest.split_once(" s  ").unwrap();
        let hint = lines.next_if(|next| next.trim_start().starts_with("hint: "));
        let hint = hint.map_or_else(String::new, |hint| format!("; {}", hint.trim_start()));
        failed.push(format!("{step}: {told}{hint}"));
    }
    failed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_tells_a_line_for_each_server() {
    let world = World::new().await;
    let (code, stdout, stderr) = world.preflight(&[]).await;
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    let steps: Vec<_> = stdout
        .lines()
        .map(|line| line.get(..20).unwrap_or(line).trim())
        .collect();
    let expect = [
        "ok       uaa",
        "ok       routing-api",
        "ok       nats",
        "ok       kubernetes",
        "ok       rights",
        "smoke test passed",
    ];
    assert_eq!(steps, expect, "{stdout}");
    assert_eq!(world.asked("DELETE").await, Vec::<String>::new());

    let (code, stdout, _) = world.preflight(&["--output", "json"]).await;
    let told: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &told["passed"]), (0, &json!(true)));
    assert_eq!(told["steps"][1]["step"], "routing-api");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uaa_that_gives_no_good_token_is_told_with_what_to_do() {
    let world = World::new().await;
    let refused = json!({"error": "unauthorized", "error_description": "Bad credentials"});
    world
        .says("POST", "/oauth/token", answer(401, refused))
        .await;
    world
        .fails(&["uaa: UAA refuses the client: `unauthorized` Bad credentials; hint: compare `uaa.client_id` and \
                  its secret with the UAA's; `route-sync register-uaa-client` sets them up"])
        .await;
    let world = World::new().await;
    world
        .says("POST", "/oauth/token", ResponseTemplate::new(404))
        .await;
    world
        .fails(&[
            "uaa: UAA answers with status 404; hint: is this the UAA's address? see `uaa.url`",
        ])
        .await;
    let world = World::new().await;
    world
        .says("POST", "/oauth/token", token("routing.routes.read"))
        .await;
    world
        .fails(&["uaa: the token of `us` lacks `routing.router_groups.read`, `routing.routes.write`; hint: give \
                  the client these authorities; `route-sync register-uaa-client` does"])
        .await;
    world.configure(|config| config["uaa"]["url"] = json!("http://127.0.0.1:1"));
    let (code, stdout, _) = world.preflight(&[]).await;
    assert_eq!(code, 1);
    let failed = failed(&stdout);
    assert!(
        failed[0].starts_with("uaa: UAA cannot be reached: "),
        "{stdout}"
    );
    assert!(
        failed[0].contains("; hint: `uaa.url` must be reachable from here"),
        "{stdout}"
    );
    assert!(stdout.contains("\nskipped  routing-api "), "{stdout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_routing_api_without_the_router_group_is_told() {
    const GROUPS: &str = "/routing/v1/router_groups";
    let world = World::new().await;
    let groups = json!([
        group("default-tcp", "http"),
        group("a", "tcp"),
        group("b", "tcp")
    ]);
    world.says("GET", GROUPS, answer(200, groups)).await;
    world
        .fails(&["routing-api: there is no router group `default-tcp` of type tcp; there is `a`, `b`; hint: set \
                  `routing_api.router_group` to one of them"])
        .await;
    let world = World::new().await;
    world.says("GET", GROUPS, ResponseTemplate::new(502)).await;
    world
        .fails(&["routing-api: the routing API is unavailable: status 502; hint: `routing_api.url` must be \
                  `https://api.<system domain>`, or port 3001 with a client certificate"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_not_reserved_or_in_use_is_told_before_anything_is_made() {
    let world = World::new().await;
    let row = json!({
        "router_group_guid": "default-tcp", "port": 1025, "backend_ip": "10.0.0.1", "backend_port": 30000,
    });
    world
        .says("GET", "/routing/v1/tcp_routes", answer(200, json!([row])))
        .await;
    for (port, told) in [
        (
            "2000",
            "routing-api: router group `default-tcp` reserves `1024-1033`, not port 2000",
        ),
        ("1025", "routing-api: port 1025 is in use"),
    ] {
        let arguments = [
            "smoke-test",
            "--tcp-port",
            port,
            "--tcp-router",
            "127.0.0.1",
        ];
        let (code, stdout, _) = world.run(&arguments).await;
        let hinted = format!("{told}; hint: choose another `--tcp-port`");
        assert_eq!((code, failed(&stdout)), (1, vec![hinted]), "{stdout}");
    }
    assert!(
        !world
            .asked("POST")
            .await
            .iter()
            .any(|path| path.starts_with("/api/"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_that_refuses_the_login_or_ourselves_is_told() {
    let world = World::new().await;
    world
        .nats
        .change(|nats| nats.password = Some("hunter5".to_owned()));
    let server = world.nats.addr;
    let told = format!(
        "nats: cannot connect to NATS at `{server}`: it refuses the user or password (authorization violation); \
         hint: compare `nats` user and password with those of the NATS deployment"
    );
    world.fails(&[&told]).await;

    let world = World::new().await;
    world.nats.change(|nats| nats.deny_inbox = true);
    world
        .fails(&["nats: the user may not write to itself; hint: let the user of `nats.user` publish and subscribe \
                  on `_INBOX.>`"])
        .await;

    let world = World::new().await;
    world.nats.change(|nats| nats.routers.clear());
    let (code, stdout, _) = world.preflight(&[]).await;
    assert_eq!(code, 0, "{stdout}");
    assert!(
        stdout.contains("; no gorouter answers a greeting\n"),
        "{stdout}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apiserver_that_lets_nothing_be_listed_is_told() {
    let world = World::new().await;
    world
        .says("GET", "/api/v1/nodes", refusal(403, "Forbidden"))
        .await;
    world
        .fails(&["kubernetes: cannot list nodes: the apiserver forbids it: so the test wants it; hint: give the \
                  user the rights of `examples/rbac.yml`"])
        .await;
    let world = World::new().await;
    world
        .says("GET", "/api/v1/services", refusal(401, "Unauthorized"))
        .await;
    world
        .fails(&["kubernetes: cannot list services: the apiserver does not accept our credentials; hint: renew the \
                  credentials in the kubeconfig"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_of_the_end_to_end_test_are_missed_by_it_alone() {
    let world = World::new().await;
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let denied = answer(201, json!({"status": {"allowed": false}}));
    let mock = Mock::given(method("POST")).and(path(reviews));
    mock.and(body_string_contains("\"verb\":\"delete\""))
        .respond_with(denied)
        .with_priority(FIRST)
        .mount(&world.servers)
        .await;
    let missing =
        "the end-to-end test lacks `delete namespaces`, `delete services`, `delete endpointslices`";
    let (code, stdout, _) = world.preflight(&[]).await;
    assert_eq!(code, 0, "{stdout}");
    let skipped = stdout
        .lines()
        .find(|line| line.starts_with("skipped  rights "));
    assert!(
        skipped.is_some_and(|line| line.ends_with(missing)),
        "{stdout}"
    );
    let (code, stdout, _) = world.run(&["smoke-test", "--address", "127.0.0.1"]).await;
    assert_eq!(code, 1);
    assert!(
        failed(&stdout)[0].starts_with(&format!("rights: {missing}; hint: ")),
        "{stdout}"
    );
    assert!(
        !world
            .asked("POST")
            .await
            .contains(&"/api/v1/namespaces".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_the_configuration_is_a_mistake() {
    let world = World::new().await;
    for (arguments, told) in [
        (
            &["--tcp-port", "0", "--tcp-router", "r"][..],
            "must be a port from 1 to 65535",
        ),
        (&["--tcp-port", "1024"], "--tcp-router"),
        (&["--tcp-router", "r"], "--tcp-port"),
        (&["--address", "here"], "must be an address of this machine"),
        (&["--namespace", "A"], "is no namespace name"),
        (&["--timeout", "0s"], "must lie between 1s and 1h"),
    ] {
        let (code, stdout, stderr) = world.run(&[&["smoke-test"], arguments].concat()).await;
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(stderr.contains(told), "{stderr}");
    }
    world.configure(|config| config["tcp"] = json!({"enabled": false}));
    let (code, _, stderr) = world
        .run(&["smoke-test", "--tcp-port", "1024", "--tcp-router", "r"])
        .await;
    assert_eq!(code, 2);
    assert_eq!(
        stderr,
        "error: `--tcp-port` is given, but the configuration has no TCP lane\n"
    );
    world.configure(|config| config["http"] = json!({"enabled": false}));
    let (code, _, stderr) = world.run(&["smoke-test"]).await;
    assert!(
        code == 2 && stderr.contains("; hint: give `--tcp-port`"),
        "{stderr}"
    );
    assert_eq!(world.servers.received_requests().await.unwrap().len(), 0);
    let (code, stdout, _) = world.preflight(&[]).await;
    assert_eq!(code, 0, "{stdout}");
    assert!(
        !stdout.contains("nats"),
        "a lane that is off is not asked: {stdout}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn static_routes_have_a_preflight_and_nothing_to_try_end_to_end() {
    let world = World::new().await;
    world.configure(|config| {
        for group in ["kubernetes", "nats", "routes"] {
            config.as_object_mut().unwrap().remove(group);
        }
        let route = json!({"name": "kubernetes-api", "port": 1024, "backends": ["10.0.0.5:8443"]});
        config["static_routes"] = json!([route]);
    });
    let (code, stdout, stderr) = world.preflight(&[]).await;
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    let lines = stdout.lines().count();
    assert_eq!(lines, 3, "UAA, routing API, and the end: {stdout}");
    let (code, stdout, stderr) = world.run(&["smoke-test"]).await;
    assert_eq!((code, stdout.as_str()), (2, ""));
    let told = "error: the configuration names no cluster to try; hint: `--preflight` asks the servers alone\n";
    assert_eq!(stderr, told);
}
