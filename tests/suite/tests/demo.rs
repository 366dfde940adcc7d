//! The demo as a newcomer meets it: the shipped controller over a copy of the shipped examples. What it prints is
//! run as printed, what is edited is told, and Ctrl-C leaves nothing behind.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use suite::{controller, eventually};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::Mutex;

/// Generous: nothing is measured here.
const DEADLINE: Duration = Duration::from_secs(60);
const READY: &str = "ready";
/// One demo at a time: their nodes listen on the same addresses.
static ONE: Mutex<()> = Mutex::const_new(());

struct Demo {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// A copy of `examples/`.
    manifests: tempfile::TempDir,
    /// Where everything temporary of the demo goes.
    temp: tempfile::TempDir,
    /// Where it names its routes once they are there.
    ready: tempfile::TempDir,
}

impl Demo {
    fn start() -> Self {
        let [manifests, temp, ready] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");
        for entry in std::fs::read_dir(examples).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, manifests.path().join(path.file_name().unwrap())).unwrap();
        }
        let controller = controller::binary().unwrap();
        let program = controller.with_file_name("demo");
        assert!(
            program.exists(),
            "`{}` is missing; hint: cargo build --manifest-path tests/Cargo.toml --package sandbox",
            program.display()
        );
        let mut child = Command::new(program)
            .arg("--controller")
            .arg(&controller)
            .arg("--manifests")
            .arg(manifests.path())
            .arg("--once-ready-file")
            .arg(ready.path().join(READY))
            .env("TMPDIR", temp.path())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            child,
            lines,
            manifests,
            temp,
            ready,
        }
    }

    /// Every line up to the one that holds `what`, which is the last.
    async fn lines(&mut self, what: &str) -> Vec<String> {
        let mut seen = Vec::new();
        let search = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                let found = line.contains(what);
                seen.push(line);
                if found {
                    return true;
                }
            }
            false
        };
        let found = tokio::time::timeout(DEADLINE, search).await;
        assert!(
            matches!(found, Ok(true)),
            "no line with `{what}` in {seen:#?}"
        );
        seen
    }

    /// The next line that holds `what`.
    async fn line(&mut self, what: &str) -> String {
        self.lines(what).await.pop().unwrap()
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.manifests.path().join(name)
    }

    fn edit(&self, name: &str, from: &str, to: &str) {
        let path = self.manifest(name);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "`{from}` is not in {text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    async fn stop(&mut self, signal: &str) -> ExitStatus {
        shell(&format!("kill -{signal} {}", self.child.id().unwrap())).await;
        let ended = tokio::time::timeout(DEADLINE, self.child.wait()).await;
        ended.expect("the demo must stop in time").unwrap()
    }
}

/// What a command answers on stdout.
async fn shell(command: &str) -> String {
    let output = Command::new("bash")
        .args(["-c", command])
        .output()
        .await
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn is_command(line: &&String) -> bool {
    line.starts_with("curl ") || line.starts_with("bash ")
}

/// Processes whose command line names something below this folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(folder.to_str().unwrap()) {
            found.push(line);
        }
    }
    found
}

/// Has the answer that the command must give: the Service says its name and on which node it runs.
async fn answers(command: &str, service: &str) {
    let answer = shell(command).await;
    let expected = format!("hello from {service} on node-");
    assert!(answer.starts_with(&expected), "{command}: {answer}");
}

#[tokio::test]
async fn every_printed_command_works_as_printed_and_every_edit_is_told() {
    let _one = ONE.lock().await;
    let mut demo = Demo::start();
    let printed = demo.lines("edit the manifests").await;
    let commands: Vec<&String> = printed.iter().filter(is_command).collect();
    assert_eq!(commands.len(), 4, "{printed:#?}");
    for (name, service) in [
        ("nginx", "default/nginx"),
        ("grafana", "kube-system/grafana"),
        ("tomcat-example", "default/tomcat"),
        ("34569", "default/mysql"),
    ] {
        let command = commands
            .iter()
            .find(|command| command.contains(name))
            .unwrap();
        answers(command, service).await;
    }
    // Its log is for people here, and none of its lines is a complaint about the demo.
    let log: Vec<_> = printed
        .iter()
        .filter(|line| line.contains("route-sync | "))
        .collect();
    assert!(log.iter().any(|line| line.contains(" INFO ")), "{log:#?}");
    assert!(!log.iter().any(|line| line.contains("finding")), "{log:#?}");

    demo.edit(
        "nginx.yml",
        "http-route-sync: nginx",
        "http-route-sync: renamed",
    );
    let told = demo.line("nginx.yml changed: ").await;
    let change = "nginx.apps.example.test → renamed.apps.example.test (registered in ";
    assert!(
        told.contains(change) && told.contains(", withdrawn in "),
        "{told}"
    );
    let command = demo.line("curl ").await;
    assert!(command.contains("renamed.apps.example.test"), "{command}");
    answers(&command, "default/nginx").await;
    let old = command.replace("renamed.", "nginx.");
    eventually("the old host is gone", async || {
        shell(&old).await.contains("404")
    })
    .await;

    demo.edit(
        "mysql.yml",
        "tcp-route-sync: '34569'",
        "tcp-route-sync: '1024'",
    );
    let told = demo.line("mysql.yml changed: ").await;
    assert!(
        told.contains("TCP port 34569 → TCP port 1024 (registered in "),
        "{told}"
    );
    answers(&demo.line("bash ").await, "default/mysql").await;

    std::fs::write(
        demo.manifest("tomcat.yml"),
        "kind: Service\nmetadata: {name: [\n",
    )
    .unwrap();
    let told = demo
        .line("tomcat.yml does not read, its last state stays: ")
        .await;
    assert!(told.contains("line "), "{told}");
    answers(&old.replace("nginx.", "tomcat-example."), "default/tomcat").await;

    demo.edit(
        "grafana.yml",
        "http-route-sync: grafana",
        "http-route-sync: 12345",
    );
    demo.line("grafana.yml changed, but the API server refuses it: 400 BadRequest")
        .await;
    std::fs::remove_file(demo.manifest("grafana.yml")).unwrap();
    let told = demo.line("grafana.yml removed: ").await;
    assert!(
        told.contains("− grafana.apps.example.test (withdrawn in "),
        "{told}"
    );

    // What cannot be is told as well, with the controller's own reason.
    demo.edit(
        "nginx.yml",
        "http-route-sync: renamed",
        "http-route-sync: api",
    );
    let reason = demo
        .lines("not registered yet: api.apps.example.test")
        .await;
    assert!(
        reason.iter().any(|line| line.contains("WARN finding")),
        "{reason:#?}"
    );
    let ready = std::fs::read_to_string(demo.ready.path().join(READY)).unwrap();
    assert!(ready.contains("nginx.apps.example.test"), "{ready}");
    assert!(demo.stop("TERM").await.success());
}

#[tokio::test]
async fn ctrl_c_leaves_no_process_and_no_file_behind() {
    let _one = ONE.lock().await;
    let mut demo = Demo::start();
    demo.line("edit the manifests").await;
    let temp = demo.temp.path().to_owned();
    let processes = processes_of(&temp);
    assert_eq!(processes.len(), 1, "the controller's: {processes:?}");
    assert!(demo.stop("INT").await.success());
    assert_eq!(processes_of(&temp), Vec::<String>::new());
    let left: Vec<_> = std::fs::read_dir(&temp).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let end = demo.line("stopped").await;
    assert!(end.contains("route-sync | "), "{end}");
}
