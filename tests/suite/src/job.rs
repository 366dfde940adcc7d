//! A job of the BOSH release, rendered from properties, laid out as the agent lays it out and run as BPM runs it.
//!
//! The process sees `/var/vcap` with its own job's folders, a read-only root, no capability, no right beyond its
//! own user's, the network as it is, and no environment but what `bpm.yml` gives. Lifecycle scripts see all of
//! `/var/vcap` as root does. What only a director and a real BPM have (cgroups, seccomp, file modes) is not here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::controller::binary;
use crate::poll::eventually;

/// BPM's own: then it kills.
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// A script that takes longer hangs; drains wait for routers.
const SCRIPT_WITHIN: Duration = Duration::from_secs(120);
/// What the agent gives scripts.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// The user `vcap`.
const VCAP: &str = "1000";

/// `bpm stop`, for a script that stops its own job; where the pid is, is BPM's own.
const BPM: &str = r#"#!/bin/bash
[ "$1" = stop ] || exit 1
pid=$(cat "/var/vcap/sys/run/bpm/$2/$2.pid")
kill -TERM "$pid" && while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
exit 0
"#;

/// A rendered job, and its process where it runs.
pub struct Job {
    name: String,
    /// Stands for `/var/vcap`.
    vcap: TempDir,
    process: Option<Child>,
}

/// What is rendered.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Nested, as in a deployment's manifest.
    pub properties: Value,
    /// By name; what a job does not find here is not linked.
    pub links: Value,
    /// What the director tells of the instance.
    pub spec: Value,
}

/// What becomes of the instance, its VM and the deployment; how the agent tells a script why it is stopped.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// An update in place, or a restart.
    Restart,
    /// The VM is made anew.
    Recreate,
    /// This instance goes, others stay.
    ScaleIn,
    /// The deployment goes.
    DeleteDeployment,
}

/// `bpm.yml`.
#[derive(Deserialize)]
struct Bpm {
    processes: Vec<BpmProcess>,
}

#[derive(Deserialize)]
struct BpmProcess {
    name: String,
    executable: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    limits: BpmLimits,
    #[serde(default, rename = "unsafe")]
    exceptions: BpmUnsafe,
}

#[derive(Default, Deserialize)]
struct BpmUnsafe {
    #[serde(default)]
    unrestricted_volumes: Vec<BpmVolume>,
}

#[derive(Deserialize)]
struct BpmVolume {
    path: PathBuf,
}

#[derive(Deserialize)]
struct BpmLimits {
    open_files: u32,
}

// === impl Stop ===

impl Stop {
    fn environment(self) -> [(&'static str, &'static str); 3] {
        let (vm, instance, deployment) = match self {
            Self::Restart => ("keep", "keep", "keep"),
            Self::Recreate => ("delete", "keep", "keep"),
            Self::ScaleIn => ("delete", "delete", "keep"),
            Self::DeleteDeployment => ("delete", "delete", "delete"),
        };
        [
            ("BOSH_VM_NEXT_STATE", vm),
            ("BOSH_INSTANCE_NEXT_STATE", instance),
            ("BOSH_DEPLOYMENT_NEXT_STATE", deployment),
        ]
    }
}

// === impl Job ===

impl Job {
    /// Renders `name`; what a template says against it becomes the error.
    pub async fn render(name: &str, manifest: &Manifest) -> Result<Self> {
        let vcap = tempfile::Builder::new().prefix("vcap-").tempdir()?;
        let job = Self {
            name: name.to_owned(),
            vcap,
            process: None,
        };
        for folder in ["jobs/bpm/bin", "packages/route-sync/bin"] {
            fs::create_dir_all(job.path(folder))?;
        }
        for folder in ["data", "sys/log", "sys/run/bpm"] {
            fs::create_dir_all(job.path(folder).join(name))?;
        }
        File::create(job.path("packages/route-sync/bin/route-sync"))?;
        let bpm = job.path("jobs/bpm/bin/bpm");
        fs::write(&bpm, BPM)?;
        fs::set_permissions(&bpm, fs::Permissions::from_mode(0o755))?;
        let wanted = job.path("manifest.json");
        let manifest = json!({
            "properties": manifest.properties, "links": manifest.links, "spec": manifest.spec,
        });
        fs::write(&wanted, manifest.to_string())?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let rendered = Command::new("ruby")
            .arg(root.join("tests/bosh/render.rb"))
            .arg(name)
            .arg(wanted)
            .arg(job.path("jobs").join(name))
            .output()
            .await
            .context("`ruby` is missing; hint: run `tests/counterparts/setup`")?;
        let errors = String::from_utf8_lossy(&rendered.stderr);
        ensure!(
            rendered.status.success(),
            "{name} is not rendered: {errors}"
        );
        Ok(job)
    }

    /// Starts the job's process.
    pub async fn start(&mut self) -> Result<()> {
        let process = self.bpm()?;
        let log = |stream: &str| {
            let file = format!("sys/log/{0}/{0}.{stream}.log", self.name);
            File::options()
                .create(true)
                .append(true)
                .open(self.path(&file))
        };
        let mut command = self.as_bpm(&process, self)?;
        let child = command
            .stdout(log("stdout")?)
            .stderr(log("stderr")?)
            .spawn()
            .context("`bwrap` is missing; hint: run `tests/counterparts/setup`")?;
        // What confines it is its parent, and would not pass a signal on.
        let confining = child.id().context("it must run")?;
        let children = format!("/proc/{confining}/task/{confining}/children");
        self.process = Some(child);
        eventually("the process is there", async || {
            let pid = fs::read_to_string(&children).unwrap_or_default();
            !pid.is_empty() && fs::write(self.pid_file(), pid.trim()).is_ok()
        })
        .await;
        Ok(())
    }

    /// Runs the job, an errand, beside another one whose files it may see.
    pub async fn errand(&self, beside: &Self) -> Result<Output> {
        let mut command = self.as_bpm(&self.bpm()?, beside)?;
        let output = tokio::time::timeout(SCRIPT_WITHIN, command.output()).await;
        Ok(output.context("the errand hangs")??)
    }

    /// What `monit stop` does to it: SIGTERM, and its exit code. A script of its own may have done so before.
    pub async fn stop(&mut self) -> i32 {
        let mut child = self.process.take().expect("it must run");
        if !matches!(child.try_wait(), Ok(Some(_))) {
            let pid = fs::read_to_string(self.pid_file()).expect("it must have a pid");
            let sent = Command::new("kill").args(["-s", "TERM", &pid]).status();
            assert!(
                sent.await.is_ok_and(|sent| sent.success()),
                "SIGTERM to {pid}"
            );
        }
        let ended = tokio::time::timeout(STOP_WITHIN, child.wait()).await;
        let ended = ended.expect("it must end before BPM kills it");
        ended.ok().and_then(|status| status.code()).unwrap_or(-1)
    }

    /// Runs one of its scripts, `bin/<script>`, as the agent does.
    pub async fn script(&self, script: &str, stop: Option<Stop>) -> Result<Output> {
        let mut command = self.confined("")?;
        command
            .arg("--bind")
            .arg(self.path("sys/run"))
            .arg("/var/vcap/sys/run")
            .args(["--unshare-user", "--uid", "0", "--gid", "0"]);
        let told = stop.map(Stop::environment).into_iter().flatten();
        for (name, value) in told.chain([("PATH", PATH)]) {
            command.args(["--setenv", name, value]);
        }
        command
            .arg("--")
            .arg(format!("/var/vcap/jobs/{}/bin/{script}", self.name));
        let output = tokio::time::timeout(SCRIPT_WITHIN, command.output()).await;
        Ok(output.with_context(|| format!("`{script}` hangs"))??)
    }

    /// What `bosh stop`, or an update, does: pre-stop, drain as long as it says, then `monit stop`.
    pub async fn stopped_by(&mut self, stop: Stop) -> Result<()> {
        for script in ["pre-stop", "drain"] {
            if !self.folder().join("bin").join(script).exists() {
                continue;
            }
            let output = self.script(script, Some(stop)).await?;
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            ensure!(output.status.success(), "{script}: {out}{err}");
            if script == "drain" {
                let wait: u64 = out
                    .trim()
                    .parse()
                    .with_context(|| format!("drain: {out}"))?;
                tokio::time::sleep(Duration::from_secs(wait)).await;
            }
        }
        let code = self.stop().await;
        ensure!(code == 0, "it ended with {code}: {}", self.log());
        Ok(())
    }

    /// All that the job wrote below `sys/log`.
    pub fn log(&self) -> String {
        let files = fs::read_dir(self.path("sys/log").join(&self.name));
        let texts = files.into_iter().flatten().flatten();
        texts
            .map(|file| fs::read_to_string(file.path()).unwrap_or_default())
            .collect()
    }

    /// It has not ended.
    pub fn is_running(&mut self) -> bool {
        let process = self.process.as_mut();
        process.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn pid_file(&self) -> PathBuf {
        self.path(&format!("sys/run/bpm/{0}/{0}.pid", self.name))
    }

    /// The job's only process.
    fn bpm(&self) -> Result<BpmProcess> {
        let text = fs::read_to_string(self.folder().join("config/bpm.yml"))?;
        let Bpm { mut processes } = serde_yaml::from_str(&text)?;
        ensure!(processes.len() == 1, "one process is expected");
        let process = processes.remove(0);
        ensure!(
            process.name == self.name,
            "BPM's process is {}",
            process.name
        );
        Ok(process)
    }

    /// The process under what BPM gives it; where it may see more, that is another job's.
    fn as_bpm(&self, process: &BpmProcess, beside: &Self) -> Result<Command> {
        let mut command = self.confined(&self.name)?;
        for volume in &process.exceptions.unrestricted_volumes {
            let within = volume.path.strip_prefix("/var/vcap")?;
            command
                .arg("--ro-bind")
                .arg(beside.vcap.path().join(within))
                .arg(&volume.path);
        }
        command.args(["--unshare-user", "--uid", VCAP, "--gid", VCAP]);
        for (name, value) in &process.env {
            command.args(["--setenv", name, value]);
        }
        command
            .args(["--", "prlimit"])
            .arg(format!("--nofile={}", process.limits.open_files))
            .arg(&process.executable)
            .args(&process.args);
        Ok(command)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.vcap.path().join(path)
    }

    fn folder(&self) -> PathBuf {
        self.path("jobs").join(&self.name)
    }

    /// What shows `/var/vcap`: only what BPM gives the process `of`, or all of it to nobody's.
    fn confined(&self, of: &str) -> Result<Command> {
        let mut command = Command::new("bwrap");
        command
            .args(["--ro-bind", "/", "/", "--tmpfs", "/var", "--tmpfs", "/tmp"])
            .args(["--dev", "/dev", "--proc", "/proc"]);
        let mut show = |how: &str, what: &str| {
            command
                .arg(how)
                .arg(self.path(what))
                .arg(format!("/var/vcap/{what}"));
        };
        show(
            "--ro-bind",
            &Path::new("jobs").join(of).display().to_string(),
        );
        show("--ro-bind", "packages");
        for writable in ["data", "sys/log"] {
            show(
                "--bind",
                &Path::new(writable).join(of).display().to_string(),
            );
        }
        command
            .arg("--ro-bind")
            .arg(binary()?)
            .arg("/var/vcap/packages/route-sync/bin/route-sync")
            .args([
                "--cap-drop",
                "ALL",
                "--new-session",
                "--die-with-parent",
                "--clearenv",
            ])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the job's last words:\n{}", self.log());
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
