//! MariaDB with a data folder of its own: the routing API's and locket's database, and, as another
//! instance, what a user puts behind a TCP route.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::process::{Process, Program, has_process};
use crate::run::{self, RunFolder};
use crate::{port, programs};

#[derive(Clone)]
pub struct MariaDbOptions {
    pub bind: IpAddr,
    /// A free one when `None`; a node port, for what stands behind a Service.
    pub port: Option<u16>,
    /// Run at each start: databases and users to be there. Each ends without a semicolon.
    pub init: Vec<String>,
}

pub struct MariaDb {
    process: Process,
    address: SocketAddr,
    socket: PathBuf,
}

impl Default for MariaDbOptions {
    fn default() -> Self {
        Self {
            bind: Ipv4Addr::LOCALHOST.into(),
            port: None,
            init: Vec::new(),
        }
    }
}

// === impl MariaDb ===

impl MariaDb {
    /// `root` has no password, from this machine.
    pub async fn start(run: &RunFolder, options: MariaDbOptions) -> Result<Self> {
        let folder = run.folder("mariadb")?;
        let data = folder.join("data");
        let socket = folder.join("socket");
        let address = SocketAddr::new(options.bind, options.port.unwrap_or_else(port::free));
        install(&folder, &data).await?;
        let init = folder.join("init.sql");
        let statements: String = options.init.iter().map(|one| format!("{one};\n")).collect();
        run::write(&init, statements)?;

        let mut process = Process::new(run, folder.clone(), programs::installed("mariadbd")?)
            .arg("--no-defaults")
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--pid-file={}", folder.join("pid").display()))
            .arg(format!("--tmpdir={}", folder.display()))
            .arg(format!("--init-file={}", init.display()))
            .arg(format!("--bind-address={}", address.ip()))
            .arg(format!("--port={}", address.port()))
            .args(["--skip-name-resolve", "--innodb-buffer-pool-size=32M"])
            // What is lost with the machine's power is lost with the run anyway.
            .arg("--innodb-flush-log-at-trx-commit=0");
        if as_root() {
            process = process.arg("--user=root");
        }
        let mut mariadb = Self {
            process,
            address,
            socket,
        };
        mariadb.begin().await?;
        Ok(mariadb)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs statements as root over the socket; rows come tab-separated, without headings.
    pub async fn sql(&self, statements: &str) -> Result<String> {
        let output = Command::new(programs::installed("mariadb")?)
            .arg("--no-defaults")
            .arg(format!("--socket={}", self.socket.display()))
            .args(["--user=root", "--batch", "--skip-column-names", "--execute"])
            .arg(statements)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`mariadb`: {error}");
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Program for MariaDb {
    has_process!();

    async fn answers(&self) -> bool {
        // The socket appears before the init file has run; a query waits for it.
        self.socket.exists() && self.sql("SELECT 1").await.is_ok()
    }
}

/// Makes the system tables. Debian's packaging does it for its own data folder only.
async fn install(folder: &std::path::Path, data: &std::path::Path) -> Result<()> {
    let mut command = Command::new(programs::installed("mariadb-install-db")?);
    command
        .arg("--no-defaults")
        .arg(format!("--datadir={}", data.display()))
        // Its temporary tables bear its process id, which in a process namespace is soon another's too.
        .env("TMPDIR", folder)
        .args(["--auth-root-authentication-method=normal", "--skip-test-db"]);
    if as_root() {
        command.arg("--user=root");
    }
    let output = command
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("`mariadb-install-db` cannot be started")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "`mariadb-install-db`: {said}{error}"
    );
    Ok(())
}

/// mariadbd refuses to run as root unless it is told to: so too in a user namespace's root.
fn as_root() -> bool {
    rustix::process::geteuid().is_root()
}
