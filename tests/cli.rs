//! The whole program, as operators type it: exit codes, and what goes to stdout and to stderr.

#[path = "cli/environment.rs"]
mod environment;

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

    /// It ended with 1, printed nothing, and the error begins so.
    #[track_caller]
    fn fails(&self, error: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (1, ""));
        let error = format!("error: {error}");
        assert!(self.stderr.starts_with(&error), "{}", self.stderr);
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
    for command in [
        "run",
        "plan",
        "check",
        "status",
        "lint",
        "smoke-test",
        "register-uaa-client",
        "completions",
    ] {
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
fn check_judges_the_kubeconfig_and_quotes_nothing_of_it() {
    let place = Place::new();
    place.original();
    for (text, told) in [
        ("hunter4: [\n", "is no kubeconfig (line 2)"),
        ("", "`current-context` is not set"),
        (
            &KUBECONFIG.replace("current-context: x", "current-context: y"),
            "`current-context` names `y`",
        ),
        (
            &KUBECONFIG.replace("cluster: c,", "cluster: d,"),
            "names `d`",
        ),
        (&KUBECONFIG.replace("user: u}", "user: v}"), "names `v`"),
        (
            &KUBECONFIG.replace("http://127.0.0.1:1", "127.0.0.1:6443"),
            "`clusters[].cluster.server` lacks `https://`",
        ),
        (
            &KUBECONFIG.replace("hunter4", "\"hunter4\\u0007\""),
            "`users[].user.token` holds what no header can carry",
        ),
        (
            &KUBECONFIG.replace(
                "'http://127.0.0.1:1'",
                "'http://h', proxy-url: 'x://hunter4@h'",
            ),
            "`clusters[].cluster.proxy-url` must be",
        ),
        (
            &KUBECONFIG.replace(
                "token: hunter4",
                "client-certificate-data: QUFB, client-key-data: QUFB",
            ),
            "the credentials for the apiserver do not work",
        ),
    ] {
        place.write("kubeconfig", text);
        let answer = place.run(&["check", "--offline"]);
        assert_eq!((answer.code, answer.stdout.as_str()), (2, ""), "{text}");
        let head = "error: 1 mistake in the configuration `route-sync.yml`\n  kube_config_path: ";
        assert!(
            answer.stderr.starts_with(head) && answer.stderr.contains(told),
            "{}",
            answer.stderr
        );
        assert!(!answer.stderr.contains("hunter"), "{}", answer.stderr);
    }
}

#[test]
fn a_token_may_end_in_a_newline() {
    let place = Place::new();
    place.original();
    let text = KUBECONFIG.replace("hunter4", "\"hunter4\\n\"");
    place.write("kubeconfig", &text);
    assert_eq!(place.run(&["check", "--offline"]).code, 0);
    let answer = place.run(&["plan"]);
    assert!(
        answer.stderr.starts_with("error: cannot list ") && !answer.stderr.contains("panicked"),
        "{}",
        answer.stderr
    );
    assert!(answer.stderr.contains("refused"), "{}", answer.stderr);
}

#[test]
fn an_exec_plugin_that_fails_is_told_without_its_secrets() {
    let place = Place::new();
    place.original();
    for (script, told) in [
        (
            "echo hunter9; exit 3",
            "the credential plugin `sh` fails (exit status: 3)",
        ),
        (
            "echo hunter9",
            "the credential plugin `sh` prints no `ExecCredential`",
        ),
    ] {
        let exec = format!(
            "exec: {{apiVersion: client.authentication.k8s.io/v1, command: sh, interactiveMode: Never, \
             args: [-c, '{script}', hunter7], env: [{{name: AWS_SECRET_ACCESS_KEY, value: hunter8}}]}}"
        );
        place.write("kubeconfig", &KUBECONFIG.replace("token: hunter4", &exec));
        let answer = place.run(&["plan"]);
        assert_eq!((answer.code, answer.stdout.as_str()), (1, ""));
        assert!(answer.stderr.contains(told), "{}", answer.stderr);
        assert!(!answer.stderr.contains("hunter"), "{}", answer.stderr);
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
fn check_says_in_json_why_a_file_cannot_be_read_at_all() {
    let place = Place::new();
    place.write("broken.yml", "uaa: [\n");
    for (file, words) in [("absent.yml", "No such file"), ("broken.yml", "line ")] {
        let answer = place.run(&["check", "--offline", "--output", "json", "--config", file]);
        let value: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
        assert_eq!((answer.code, &value["valid"]), (2, &false.into()));
        assert_eq!(value["mistakes"][0]["key"], "(file)");
        let message = value["mistakes"][0]["message"].as_str().unwrap();
        assert!(
            message.contains(file) && message.contains(words),
            "{message}"
        );
    }
}

#[test]
fn completions_name_the_commands() {
    let answer = Place::new().run(&["completions", "bash"]);
    assert_eq!(answer.code, 0);
    assert!(answer.stdout.contains("completions") && answer.stdout.contains("--config"));
    assert!(!answer.stdout.contains("docs"), "{}", answer.stdout);
}

#[test]
fn status_without_a_running_process_says_whom_it_asked() {
    let answer = Place::new().run(&["status", "--admin", "127.0.0.1:1"]);
    answer.fails("cannot ask route-sync at `127.0.0.1:1`");
}

#[test]
fn approve_needs_a_plan_and_a_running_process() {
    assert_eq!(Place::new().run(&["approve"]).code, 2);
    let answer = Place::new().run(&["approve", "00ff", "--admin", "127.0.0.1:1"]);
    answer.fails("cannot ask route-sync at `127.0.0.1:1`");
}

#[test]
fn drain_keeps_or_withdraws_but_not_both_and_needs_a_running_process() {
    let both = Place::new().run(&["drain", "--keep", "--unregister"]);
    assert_eq!(both.code, 2);
    for arguments in [&["drain"][..], &["drain", "--unregister"]] {
        let answer = Place::new().run(&[arguments, &["--admin", "127.0.0.1:1"]].concat());
        assert_eq!((answer.code, answer.stdout.as_str()), (1, ""));
        assert!(answer.stderr.contains("127.0.0.1:1"), "{}", answer.stderr);
    }
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
fn an_object_that_cannot_be_read_hides_no_other() {
    let place = Place::new();
    let bare = SERVICE
        .replace("'2222'", "34569")
        .replace("name: web,", "name: bare,");
    let high = SERVICE.replace("2222", "70000");
    place.write("all.yml", &format!("{bare}---\n{high}"));
    let answer = place.run(&["lint", "-f", "all.yml"]);
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    for words in [
        "[object-undecodable] service default/bare: all.yml:1: ",
        "hint: put the value in quotes",
        "[port-out-of-range] service default/web: ",
        "http  web.apps.example.com  →  default/web\n",
    ] {
        assert!(answer.stdout.contains(words), "{}", answer.stdout);
    }
    let alone = place.write("bare.yml", &bare);
    let answer = place.run(&["lint", "-f", alone.to_str().unwrap(), "--output", "json"]);
    let value: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!(answer.code, 1);
    assert_eq!(value["findings"][0]["code"], "object-undecodable");
}

#[test]
fn what_a_tenant_wrote_neither_controls_the_terminal_nor_forges_a_line() {
    let place = Place::new();
    let annotation = r#""1\e[2J\nerror [host-denied] service kube-system/x: forged""#;
    let annotations =
        format!("annotations: {{route-sync.cloudfoundry.org/max-backends: {annotation}}}, labels:");
    place.write("web.yml", &SERVICE.replace("labels:", &annotations));
    let answer = place.run(&["lint", "-f", "web.yml"]);
    assert!(!answer.stdout.contains('\x1b'), "{}", answer.stdout);
    assert!(
        !answer.stdout.contains("\nerror [host-denied]"),
        "{}",
        answer.stdout
    );
    let shown = r"is `1\u{1b}[2J\nerror [host-denied] service kube-system/x: forged`";
    assert!(answer.stdout.contains(shown), "{}", answer.stdout);
}

/// Manifests are linted under the configuration that stands beside them, as whoever tries both will do.
#[test]
fn the_examples_fit_together() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let place = Place::new();
    let mut linted = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        if !text.contains("\nkind: Service\n") {
            continue;
        }
        linted += 1;
        for config in ["route-sync.yml", "route-sync-minimal.yml"] {
            let config = format!("{folder}/{config}");
            let file = path.to_str().unwrap();
            let answer = place.run(&["lint", "--config", &config, "-f", file]);
            assert_eq!(answer.code, 0, "{file}: {}{}", answer.stdout, answer.stderr);
            assert!(answer.stdout.contains('→'), "{file}: {}", answer.stdout);
        }
    }
    assert!(linted >= 3, "{linted}");
}

#[test]
fn lint_without_a_file_is_a_mistake_of_usage() {
    assert_eq!(Place::new().run(&["lint"]).code, 2);
    let answer = Place::new().run(&["lint", "-f", "x.yml", "--app-domain", "a_b"]);
    assert_eq!((answer.code, answer.stdout.as_str()), (2, ""));
    assert!(answer.stderr.contains("a_b"), "{}", answer.stderr);
    let answer = Place::new().run(&["lint", "-f", "absent.yml"]);
    answer.fails("cannot read `absent.yml`: ");
}

#[test]
fn plan_without_an_apiserver_is_neither_in_sync_nor_pending() {
    let place = Place::new();
    place.original();
    let answer = place.run(&["plan"]);
    answer.fails("cannot list ");
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

    /// A hundred of them within milliseconds: a process for each takes seconds on a busy machine.
    fn storm(&self, name: &str) {
        let pid = self.0.id();
        let storm = format!("i=0; while [ $i -lt 100 ]; do kill {name} {pid}; i=$((i + 1)); done");
        let sent = Command::new("sh").args(["-ec", &storm]).status().unwrap();
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
fn a_hangup_reads_the_file_again_and_a_bad_one_changes_nothing() {
    let place = Place::new();
    let (mut running, address, _, lines) = running(&place);
    let (status, json) = (["status", "--admin", &address], ["--output", "json"]);
    let stale = || {
        let answer = place.run(&[&status[..], &json[..]].concat());
        let value: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
        value["config_stale"] == true
    };
    let until_fresh = || {
        for _ in 0..DEADLINE.as_millis() / POLL.as_millis() {
            if !stale() {
                return;
            }
            std::thread::sleep(POLL);
        }
        panic!("the file is still not in use");
    };
    let until_told = |word: &str| {
        for _ in 0..DEADLINE.as_millis() / POLL.as_millis() {
            if place.run(&status).stdout.contains(word) {
                return;
            }
            std::thread::sleep(POLL);
        }
        panic!("nobody tells of {word}");
    };
    assert!(!stale());
    let good = format!("{ORIGINAL}admin: {{listen: '127.0.0.1:0'}}\n");
    let bad = good.replace("app_domain_name: ", "app_domain_name: -");
    place.write("route-sync.yml", &format!("{bad}nats: {{interval: 1h}}\n"));
    running.signal("-HUP");
    until_told("`nats.interval`");
    assert!(stale());

    // A storm is one or two reads, and what counts is the last file.
    place.write("route-sync.yml", &good);
    running.storm("-HUP");
    until_fresh();
    let other = good.replace("127.0.0.1:0", "127.0.0.1:1");
    place.write("route-sync.yml", &format!("{other}log: {{level: error}}\n"));
    running.signal("-HUP");
    until_told("`admin.listen`");
    until_told("restart route-sync");
    assert!(stale());

    // From now on errors alone are logged.
    place.write("route-sync.yml", &bad);
    running.signal("-HUP");
    until_told("`app_domain_name`");

    running.signal("-TERM");
    assert_eq!(running.exit_code(), Some(0));
    let rest: Vec<String> = lines.collect();
    let count = |text: &str| rest.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("configuration mistaken"), 3, "{rest:?}");
    assert_eq!(count("configuration not used"), 1, "{rest:?}");
    let reads = count("configuration read again");
    assert!((2..10).contains(&reads), "{reads}");
    assert!(rest.iter().all(|line| !line.contains("hunter")));
}

#[test]
fn an_interrupt_stops_it_as_well() {
    let place = Place::new();
    let (mut running, ..) = running(&place);
    running.signal("-INT");
    assert_eq!(running.exit_code(), Some(0));
}
