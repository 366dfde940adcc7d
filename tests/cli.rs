//! The whole program, as operators type it: exit codes, and what goes to stdout and to stderr.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// Generous, for a busy machine.
const DEADLINE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);

/// A folder to run in.
struct Place(TempDir);

struct Answer {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_route-sync"));
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Answer {
        Answer::of(&self.command(arguments).output().unwrap())
    }

    /// A file of the original's shape whose servers are nowhere.
    fn original(&self) -> PathBuf {
        self.write("kubeconfig", KUBECONFIG);
        self.write("route-sync.yml", ORIGINAL)
    }
}

impl Answer {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout.clone()).unwrap(),
            stderr: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }
}

const ORIGINAL: &str = "\
nats_servers:
- host: 127.0.0.1:1
  user: nats
  password: hunter2
routing_api_url: http://127.0.0.1:1/
app_domain_name: apps.test
uaa_api_url: http://127.0.0.1:1
routing_api_username: client
routing_api_client_secret: hunter3
skip_tls_verification: true
kube_config_path: kubeconfig
";

const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]
users: [{name: u, user: {token: hunter4}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
";

#[test]
fn help_names_the_commands_and_hides_what_is_for_us() {
    let answer = Place::new().run(&["--help"]);
    assert_eq!((answer.code, answer.stderr.as_str()), (0, ""));
    for command in ["run", "plan", "check", "status", "lint", "completions"] {
        assert!(
            answer.stdout.contains(&format!("\n  {command} ")),
            "{command}"
        );
    }
    assert!(!answer.stdout.contains("docs"));
}

#[test]
fn without_a_configuration_it_says_which_file_and_exits_2() {
    let place = Place::new();
    for arguments in [&[][..], &["run"], &["check", "--offline"]] {
        let answer = place.run(arguments);
        assert_eq!(
            (answer.code, answer.stdout.as_str()),
            (2, ""),
            "{arguments:?}"
        );
        assert_eq!(
            answer.stderr,
            "error: cannot read the configuration `route-sync.yml`: No such file or directory (os error 2)\n\
             hint: `--config <FILE>` names the configuration\n"
        );
    }
}

#[test]
fn plan_keeps_2_for_pending_changes() {
    let place = Place::new();
    assert_eq!(place.run(&["plan"]).code, 1);
    assert_eq!(place.run(&["plan", "--nonsense"]).code, 1);
    assert_eq!(place.run(&["check", "--nonsense"]).code, 2);
}

#[test]
fn every_mistake_is_told_at_once_and_no_secret_with_it() {
    let place = Place::new();
    let text = ORIGINAL
        .replace("app_domain_name: apps.test", "app_domain_name: a_b")
        .replace("routing_api_username: client\n", "")
        .replace(
            "routing_api_url: http://127.0.0.1:1/",
            "routing_api_url: https://u:hunter5@api",
        )
        .replace(
            "skip_tls_verification: true",
            "skip_tls_verification: hunter",
        )
        .replace("kubeconfig", "absent");
    place.write("bad.yml", &text);
    let answer = place.run(&["-configPath", "bad.yml"]);
    let expect = "\
error: 5 mistakes in the configuration `bad.yml`
  kube_config_path: cannot read `absent`: No such file or directory (os error 2)
  skip_tls_verification: `hunter` is neither `true` nor `false`
  uaa.client_id: is missing
    hint: `routing_api_username`, its original name, is read as well
  routing_api_url: must not hold credentials
  app_domain_name: is no DNS name: it contains `_`; only letters, digits, dashes and dots may stand in a host
";
    assert_eq!((answer.code, answer.stdout.as_str()), (2, ""));
    assert_eq!(answer.stderr, expect);
}

#[test]
fn a_syntax_error_shows_its_place_and_nothing_of_the_file() {
    let place = Place::new();
    place.write("bad.yml", &format!("{ORIGINAL}  hunter6: [\n"));
    let answer = place.run(&["check", "--offline", "--config", "bad.yml"]);
    assert_eq!(answer.code, 2);
    assert!(answer.stderr.contains("line "), "{}", answer.stderr);
    assert!(!answer.stderr.contains("hunter") && !answer.stdout.contains("hunter"));
}

#[test]
fn check_accepts_the_originals_file_in_every_form_of_its_flag() {
    let place = Place::new();
    place.original();
    for flag in [
        &["-configPath", "route-sync.yml"][..],
        &["-configPath=route-sync.yml"],
        &["--configPath", "route-sync.yml"],
        &["--configPath=route-sync.yml"],
        &["--config", "route-sync.yml"],
        &[],
    ] {
        let answer = place.run(&[&["check", "--offline"], flag].concat());
        assert_eq!(
            (answer.code, answer.stdout.as_str()),
            (0, "`route-sync.yml` is valid\n"),
            "{flag:?}"
        );
        assert_eq!(
            answer.stderr.matches("warning: ").count(),
            3,
            "{}",
            answer.stderr
        );
    }
}

#[test]
fn an_unknown_key_fails_check_with_a_suggestion() {
    let place = Place::new();
    place.original();
    place.write("odd.yml", &format!("{ORIGINAL}nat: {{}}\n"));
    let answer = place.run(&["check", "--offline", "--config", "odd.yml"]);
    assert_eq!(answer.code, 2);
    assert!(
        answer
            .stderr
            .contains("nat: is no key of route-sync\n    hint: did you mean `nats`?")
    );
}

#[test]
fn check_prints_json_when_asked() {
    let place = Place::new();
    place.original();
    let answer = place.run(&["check", "--offline", "--output", "json"]);
    let value: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!((answer.code, &value["valid"]), (0, &true.into()));
    place.write("bad.yml", "{}");
    let answer = place.run(&[
        "check",
        "--offline",
        "--output",
        "json",
        "--config",
        "bad.yml",
    ]);
    let value: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!((answer.code, &value["valid"]), (2, &false.into()));
    assert_eq!(value["mistakes"][0]["key"], "kubernetes.kubeconfig");
}

#[test]
fn completions_name_the_commands() {
    let answer = Place::new().run(&["completions", "bash"]);
    assert_eq!(answer.code, 0);
    assert!(answer.stdout.contains("completions") && answer.stdout.contains("--config"));
}

#[test]
fn status_without_a_running_process_says_whom_it_asked() {
    let answer = Place::new().run(&["status", "--admin", "127.0.0.1:1"]);
    assert_eq!((answer.code, answer.stdout.as_str()), (1, ""));
    assert!(
        answer
            .stderr
            .starts_with("error: cannot ask route-sync at `127.0.0.1:1`")
    );
}

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, labels: {http-route-sync: web, tcp-route-sync: '2222'}}
spec: {type: NodePort, ports: [{port: 80}]}
";

#[test]
fn lint_tells_what_a_manifest_comes_to() {
    let place = Place::new();
    place.write("web.yml", SERVICE);
    let answer = place.run(&["lint", "-f", "web.yml", "--app-domain", "apps.test"]);
    assert_eq!(
        answer.stdout,
        "http  web.apps.test  →  default/web\ntcp   2222           →  default/web\n"
    );
    assert_eq!((answer.code, answer.stderr.as_str()), (0, ""));
}

#[test]
fn lint_fails_on_a_route_that_would_be_lost_and_prints_json_when_asked() {
    let place = Place::new();
    place.write("web.yml", &SERVICE.replace("2222", "70000"));
    place.original();
    let arguments = [
        "lint",
        "-f",
        "web.yml",
        "--config",
        "route-sync.yml",
        "--output",
        "json",
    ];
    let answer = place.run(&arguments);
    let value: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    assert_eq!(value["findings"][0]["code"], "port-out-of-range");
    assert_eq!(value["http"]["web.apps.test"], "default/web");
}

#[test]
fn lint_without_a_file_is_a_mistake_of_usage() {
    assert_eq!(Place::new().run(&["lint"]).code, 2);
    let answer = Place::new().run(&["lint", "-f", "absent.yml"]);
    assert_eq!((answer.code, answer.stdout.as_str()), (1, ""));
    assert!(
        answer
            .stderr
            .starts_with("error: cannot read `absent.yml`: ")
    );
}

#[test]
fn plan_without_an_apiserver_is_neither_in_sync_nor_pending() {
    let place = Place::new();
    place.original();
    let answer = place.run(&["plan"]);
    assert_eq!((answer.code, answer.stdout.as_str()), (1, ""));
    assert!(
        answer.stderr.starts_with("error: cannot list "),
        "{}",
        answer.stderr
    );
    assert!(!answer.stderr.contains("hunter"));
}

/// A running process; killed when dropped.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    fn exit_code(&mut self) -> Option<i32> {
        for _ in 0..DEADLINE.as_millis() / POLL.as_millis() {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(POLL);
        }
        panic!("it did not end");
    }
}

/// Starts it with the original's file and waits until it listens; gives the admin address and the lines so far.
fn running(
    place: &Place,
) -> (
    Running,
    String,
    Vec<serde_json::Value>,
    impl Iterator<Item = String>,
) {
    place.original();
    let text = format!("{ORIGINAL}admin: {{listen: '127.0.0.1:0'}}\n");
    place.write("route-sync.yml", &text);
    let mut command = place.command(&["-configPath=route-sync.yml"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let mut seen = Vec::new();
    let address = loop {
        let line = lines.next().expect("it must not end");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        if let Some(address) = value["data"]["address"].as_str() {
            break address.to_owned();
        }
        seen.push(value);
    };
    (Running(child), address, seen, lines)
}

#[test]
fn it_runs_without_a_command_says_each_weakness_once_and_stops_on_sigterm() {
    let place = Place::new();
    let (mut running, address, seen, lines) = running(&place);
    let message = |value: &serde_json::Value| value["message"].as_str().unwrap().to_owned();
    assert_eq!(message(&seen[0]), "route-sync.starting");
    let weaknesses = seen
        .iter()
        .filter(|value| value["data"]["weakness"].is_string())
        .count();
    assert_eq!(weaknesses, 3);
    assert!(seen.iter().all(|value| value["source"] == "route-sync"));

    let status = place.run(&["status", "--admin", &address]);
    assert_eq!(status.code, 0, "{}", status.stderr);
    assert!(
        status.stdout.contains("not ready") && status.stdout.contains("lane tcp: not confirmed")
    );
    let json = place.run(&["status", "--admin", &address, "--output", "json"]);
    let value: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (&value["format"], &value["ready"]),
        (&1.into(), &false.into())
    );

    running.signal("-TERM");
    assert_eq!(running.exit_code(), Some(0));
    let rest: Vec<String> = lines.collect();
    assert!(
        rest.iter()
            .any(|line| line.contains("stopping, routes kept")),
        "{rest:?}"
    );
    let all = format!("{seen:?}{rest:?}{}{}", status.stdout, json.stdout);
    assert!(!all.contains("hunter"), "{all}");
}

#[test]
fn an_interrupt_stops_it_as_well() {
    let place = Place::new();
    let (mut running, ..) = running(&place);
    running.signal("-INT");
    assert_eq!(running.exit_code(), Some(0));
}
