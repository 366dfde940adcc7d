//! The demo as a program, with a stand-in for the controller: thirty lines of shell that announce
//! the one labelled Service over NATS, which is enough to see the demo see it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Generous: nothing is measured here.
const DEADLINE: Duration = Duration::from_secs(60);

/// Reads the eight-key configuration, polls the API server, registers and unregisters by label.
/// On SIGTERM it says so and ends.
const CONTROLLER: &str = r#"#!/bin/bash
test "$1 $2" = "run --config" || exit 2
key() { sed -n "s/^[- ]*$1: *//p" "$2" | tr -d "'\"" | head -1; }
config=$3
kube=$(key kube_config_path "$config")
api=$(key server "$kube"); api=${api#http://}
token=$(key token "$kube")
nats=$(key host "$config")
stop() { echo "told to stop"; exit 0; }
trap stop TERM
exec 3<>"/dev/tcp/${nats%:*}/${nats#*:}"
printf 'CONNECT {"verbose":false,"user":"%s","pass":"%s"}\r\n' \
  "$(key user "$config")" "$(key password "$config")" >&3
announce() {
  uri="$2.$(key app_domain_name "$config")"
  payload="{\"host\":\"127.0.0.11\",\"port\":$port,\"uris\":[\"$uri\"]}"
  printf 'PUB router.%s %d\r\n%s\r\n' "$1" "${#payload}" "$payload" >&3
}
echo "controller up"
while true; do
  exec 4<>"/dev/tcp/${api%:*}/${api#*:}"
  {
    printf 'GET /api/v1/services?labelSelector=http-route-sync HTTP/1.1\r\nHost: x\r\n'
    printf 'Authorization: Bearer %s\r\nConnection: close\r\n\r\n' "$token"
  } >&4
  list=$(cat <&4); exec 4>&-
  new=$(echo "$list" | grep -o '"http-route-sync":"[^"]*' | cut -d'"' -f4)
  port=$(echo "$list" | grep -o '"nodePort":[0-9]*' | cut -d: -f2)
  if [ "$new" != "$old" ]; then
    [ -n "$new" ] && announce register "$new" && last=$port
    [ -n "$old" ] && port=$last && announce unregister "$old"
    old=$new
  fi
  sleep 0.1
done
"#;

struct Demo {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    folder: tempfile::TempDir,
    temp: tempfile::TempDir,
}

impl Demo {
    fn start() -> Self {
        let (folder, temp) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let controller = temp.path().join("controller");
        std::fs::write(&controller, CONTROLLER).unwrap();
        std::fs::set_permissions(&controller, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(folder.path().join("web.yml"), service("nginx")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_demo"))
            .arg("--controller")
            .arg(&controller)
            .arg("--manifests")
            .arg(folder.path())
            .arg("--once-ready-file")
            .arg(temp.path().join("ready"))
            .env("TMPDIR", temp.path())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            child,
            lines,
            folder,
            temp,
        }
    }

    /// The next line that holds `what`.
    async fn line(&mut self, what: &str) -> String {
        let mut seen = Vec::new();
        let search = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if line.contains(what) {
                    return line;
                }
                seen.push(line);
            }
            panic!("the demo ended without `{what}`");
        };
        let found = tokio::time::timeout(DEADLINE, search).await;
        found.unwrap_or_else(|_| panic!("no line with `{what}` in {seen:#?}"))
    }

    fn web(&self) -> PathBuf {
        self.folder.path().join("web.yml")
    }

    async fn stop(&mut self) -> std::process::ExitStatus {
        let kill = format!("kill -TERM {}", self.child.id().unwrap());
        shell(&kill).await;
        tokio::time::timeout(DEADLINE, self.child.wait())
            .await
            .unwrap()
            .unwrap()
    }
}

async fn shell(command: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", command])
        .output()
        .await
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn service(host: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  \
         labels: {{http-route-sync: {host}}}\n\
         spec:\n  type: NodePort\n  ports: [{{port: 80}}]\n"
    )
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn prints_commands_that_work_and_tells_what_each_edit_did() {
    let mut demo = Demo::start();
    demo.line("route-sync | controller up").await;
    let command = demo.line("curl ").await;
    assert_eq!(
        shell(&command).await,
        "hello from default/web on node-1\n",
        "{command}"
    );
    demo.line("edit the manifests").await;

    std::fs::write(demo.web(), service("renamed")).unwrap();
    let told = demo.line("web.yml changed").await;
    let change = "nginx.apps.example.test → renamed.apps.example.test (registered in ";
    assert!(
        told.contains(change) && told.contains(", withdrawn in "),
        "{told}"
    );
    let command = demo.line("curl ").await;
    assert!(command.contains("renamed.apps.example.test"));
    assert_eq!(shell(&command).await, "hello from default/web on node-1\n");

    std::fs::write(demo.web(), "kind: Service\nmetadata: {name: [\n").unwrap();
    let told = demo.line("does not read, its last state stays").await;
    assert!(told.contains("line "), "{told}");
    assert_eq!(shell(&command).await, "hello from default/web on node-1\n");

    std::fs::write(
        demo.web(),
        service("12345").replace("web\n", "web\n  annotations: {a: 1}\n"),
    )
    .unwrap();
    demo.line("but the API server refuses it: 400 BadRequest")
        .await;

    std::fs::remove_file(demo.web()).unwrap();
    let told = demo.line("web.yml removed").await;
    assert!(
        told.contains("− renamed.apps.example.test (withdrawn in "),
        "{told}"
    );
    let ready = std::fs::read_to_string(demo.temp.path().join("ready")).unwrap();
    assert!(ready.contains("nginx.apps.example.test"));
    assert!(demo.stop().await.success());
}

#[tokio::test]
async fn stops_the_controller_and_leaves_no_file_behind() {
    let mut demo = Demo::start();
    demo.line("edit the manifests").await;
    assert!(demo.stop().await.success());
    demo.line("told to stop").await;
    assert_eq!(names(demo.temp.path()), ["controller", "ready"]);
}

#[tokio::test]
async fn ends_with_an_error_when_the_controller_does() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--controller", "false", "--manifests"])
        .arg(folder.path())
        .output();
    let output = tokio::time::timeout(DEADLINE, output)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("the controller ended by itself"), "{error}");
}
