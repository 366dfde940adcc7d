//! The controller as a child process: started, its output passed on, stopped.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::say;

/// What a controller may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// What is left of its output once it has ended is there already.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(10);

/// A running controller; killed if it is dropped.
#[derive(Debug)]
pub struct Controller {
    child: Child,
    output: JoinSet<()>,
}

// === impl Controller ===

impl Controller {
    pub fn start(program: &Path, config: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(program)
            .args(["run".as_ref(), "--config".as_ref(), config.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C reaches the whole foreground group; the controller is stopped by us instead,
            // while the foundation it withdraws from still stands.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("`{}` cannot be started", program.display()))?;
        let mut output = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            output.spawn(pass_on(stdout));
        }
        if let Some(stderr) = child.stderr.take() {
            output.spawn(pass_on(stderr));
        }
        Ok(Self { child, output })
    }

    /// Resolves when it ends by itself.
    pub async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// SIGTERM, and SIGKILL where that is not enough.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(id) = self.child.id() {
            // The shell's own `kill`: the standard library sends SIGKILL only.
            let script = format!("kill -TERM {id}");
            Command::new("sh")
                .args(["-c", &script])
                .status()
                .await
                .context("`sh` must run")?;
            if tokio::time::timeout(STOP_TIMEOUT, self.child.wait())
                .await
                .is_err()
            {
                say("the controller does not stop within 5 s and is killed");
                self.child.kill().await?;
            }
        }
        let rest = async { while self.output.join_next().await.is_some() {} };
        // A grandchild may hold the pipes open; it is not waited for.
        let _ = tokio::time::timeout(OUTPUT_TIMEOUT, rest).await;
        Ok(())
    }
}

async fn pass_on(stream: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        say(&format!("  route-sync | {line}"));
    }
}
