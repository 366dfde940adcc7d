//! One running program: its command, its log, its end.
//!
//! Nothing outlives the tests. A program leads a process group of its own that is killed when its
//! value is dropped, and the kernel kills it when the test process dies in any other way. For
//! that the spawning *thread* must live as long as the process does (the kernel watches the
//! thread, not the process), hence the one spawner thread below.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::time::Instant;

use crate::programs;
use crate::run::RunFolder;

/// Generous on purpose: the tests' machine has two cores, and six lanes start a JVM each at once, beside compilers.
/// UAA has missed 180 s.
const READY_WITHIN: Duration = Duration::from_secs(600);

/// After this long a program that was asked to end is killed. The apiserver takes the longest.
const STOP_WITHIN: Duration = Duration::from_secs(15);

const POLL_EVERY: Duration = Duration::from_millis(25);

/// How much of a log is shown when a program does not come up or a test fails.
const LOG_LINES_SHOWN: usize = 25;

/// A program's command and, while it runs, its process.
pub struct Process {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
    folder: PathBuf,
    child: Option<Child>,
    run: RunFolder,
}

/// What can be done to any of the programs. Each keeps its addresses and its data over a restart.
pub trait Program: Send {
    fn process(&self) -> &Process;
    fn process_mut(&mut self) -> &mut Process;

    /// Whether it does its work now: one look, which must end by itself.
    fn answers(&self) -> impl Future<Output = bool> + Send;

    /// What must be there before it starts, each time.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    /// What lies beside the process and ends with it, such as HAProxy beside its router.
    fn clean_up(&mut self) {}

    /// Waits until it answers; an error with the log's end if it ends or does not come up.
    fn ready(&mut self) -> impl Future<Output = Result<()>> + Send
    where
        Self: Sync,
    {
        async {
            let deadline = Instant::now() + READY_WITHIN;
            while !self.answers().await {
                if let Some(status) = self.process_mut().ended() {
                    bail!(
                        "{}",
                        self.process_mut().failure(&format!("ended: {status}"))
                    );
                }
                if Instant::now() > deadline {
                    bail!("{}", self.process_mut().failure("did not come up in time"));
                }
                tokio::time::sleep(POLL_EVERY).await;
            }
            Ok(())
        }
    }

    /// Asks it to end, and waits until it has.
    fn stop(&mut self) -> impl Future<Output = ()> + Send {
        async {
            self.process_mut().terminate().await;
            self.clean_up();
        }
    }

    /// Ends it at once, with whatever it was doing.
    fn kill(&mut self) {
        self.process_mut().kill();
        self.clean_up();
    }

    /// Starts it again after `stop` or `kill`, or ends and starts it; returns when it answers.
    fn restart(&mut self) -> impl Future<Output = Result<()>> + Send
    where
        Self: Sync,
    {
        async {
            self.stop().await;
            self.begin().await
        }
    }

    /// Starts it and waits until it answers.
    fn begin(&mut self) -> impl Future<Output = Result<()>> + Send
    where
        Self: Sync,
    {
        async {
            self.prepare()?;
            self.process_mut().spawn()?;
            self.ready().await
        }
    }

    /// Stops its clock: connections stay, nothing is answered.
    fn freeze(&self) {
        self.process().signal(Signal::STOP);
    }

    fn thaw(&self) {
        self.process().signal(Signal::CONT);
    }

    fn log(&self) -> PathBuf {
        self.process().log()
    }

    /// Resident memory in KiB, as the kernel tells it.
    fn rss_kib(&self) -> Option<u64> {
        self.process().rss_kib()
    }
}

// === impl Process ===

impl Process {
    pub(crate) fn new(run: &RunFolder, folder: PathBuf, program: PathBuf) -> Self {
        let name = folder.file_name().unwrap_or_default();
        Self {
            name: name.to_string_lossy().into_owned(),
            program,
            args: Vec::new(),
            env: Vec::new(),
            folder,
            child: None,
            run: run.clone(),
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.to_owned(), value.as_ref().to_owned()));
        self
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub(crate) fn spawn(&mut self) -> Result<()> {
        self.kill();
        let log = self.open_log()?;
        // setpriv has the kernel kill what it becomes when the spawning thread ends.
        let mut command = Command::new(programs::installed("setpriv")?);
        command
            .args(["--pdeathsig", "KILL"])
            .arg(&self.program)
            .args(&self.args)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        self.child = Some(
            spawn_from_lasting_thread(command)
                .with_context(|| format!("`{}` cannot be started", self.program.display()))?,
        );
        Ok(())
    }

    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(mut child) = self.child.take() {
            // It was sent SIGKILL, or has ended before: this does not block.
            let _ = child.wait();
        }
    }

    async fn terminate(&mut self) {
        // A frozen process would keep the signal for later.
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
        let deadline = Instant::now() + STOP_WITHIN;
        while self.child.is_some() && self.ended().is_none() && Instant::now() < deadline {
            tokio::time::sleep(POLL_EVERY).await;
        }
        self.kill();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok()?
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok());
        if let Some(group) = pid.and_then(Pid::from_raw) {
            // Gone already is as good.
            let _ = kill_process_group(group, signal);
        }
    }

    fn rss_kib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?)).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    fn open_log(&self) -> Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())
            .with_context(|| format!("`{}` cannot be opened", self.log().display()))
    }

    fn failure(&mut self, what: &str) -> String {
        self.run.keep();
        format!("`{}` {what}\n{}", self.name, self.log_end())
    }

    fn log_end(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let shown = lines.len().saturating_sub(LOG_LINES_SHOWN);
        format!("{}\n{}", self.log().display(), lines[shown..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            self.run.keep();
            eprintln!("--- {}: {}", self.name, self.log_end());
        }
        self.kill();
    }
}

/// Spawns from a thread that lives as long as this process: see the head of this file.
fn spawn_from_lasting_thread(command: Command) -> Result<Child> {
    type Order = (Command, mpsc::SyncSender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, taken) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in taken {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, answered) = mpsc::sync_channel(1);
    spawner
        .send((command, answer))
        .ok()
        .context("the spawner thread must live")?;
    Ok(answered
        .recv()
        .context("the spawner thread must answer")??)
}

/// Whether something accepts connections at the address.
pub(crate) async fn accepts(address: std::net::SocketAddr) -> bool {
    let connect = tokio::net::TcpStream::connect(address);
    matches!(tokio::time::timeout(PROBE_WITHIN, connect).await, Ok(Ok(_)))
}

/// One look at a program on the same machine never takes longer while it works.
pub(crate) const PROBE_WITHIN: Duration = Duration::from_secs(5);

/// The two methods every program has alike.
macro_rules! has_process {
    () => {
        fn process(&self) -> &$crate::process::Process {
            &self.process
        }
        fn process_mut(&mut self) -> &mut $crate::process::Process {
            &mut self.process
        }
    };
}
pub(crate) use has_process;
