//! The folder of one run: every program's configuration, data and log. It goes when the last
//! program is dropped, unless the test failed or `ROUTE_SYNC_KEEP_RUN` is set; then it is named.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, thread};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// Cheap to clone; programs of one test share one.
#[derive(Clone)]
pub struct RunFolder(Arc<Folder>);

struct Folder {
    dir: Mutex<Option<TempDir>>,
    path: PathBuf,
    failed: AtomicBool,
}

/// Whether this process runs within `private-network`, where the routers may bind what they like.
pub fn in_private_network() -> bool {
    let Ok(devices) = fs::read_to_string("/proc/net/dev") else {
        return false;
    };
    // Two lines of heading, then one line for each interface.
    let only_loopback = devices
        .lines()
        .skip(2)
        .all(|line| line.trim_start().starts_with("lo:"));
    only_loopback && std::net::TcpListener::bind("10.0.0.1:0").is_ok()
}

// === impl RunFolder ===

impl RunFolder {
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("counterparts-")
            .tempdir()
            .context("no run folder")?;
        Ok(Self(Arc::new(Folder {
            path: dir.path().to_owned(),
            dir: Mutex::new(Some(dir)),
            failed: AtomicBool::new(false),
        })))
    }

    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// A program's own folder in it; a second program of the same name gets `name-2`, and so on.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        for n in 1..=u8::MAX {
            let path = match n {
                1 => self.0.path.join(name),
                n => self.0.path.join(format!("{name}-{n}")),
            };
            match fs::create_dir(&path) {
                Ok(()) => return Ok(path),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("`{}`", path.display())),
            }
        }
        anyhow::bail!("too many programs called `{name}` in one run")
    }

    /// Keeps the folder past the run, for whoever looks into the failure.
    pub(crate) fn keep(&self) {
        self.0.failed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let keep = self.failed.load(Ordering::Relaxed)
            || thread::panicking()
            || env::var_os("ROUTE_SYNC_KEEP_RUN").is_some();
        let dir = self.dir.lock().ok().and_then(|mut dir| dir.take());
        if let Some(dir) = dir.filter(|_| keep) {
            eprintln!(
                "the run's configurations and logs: {}",
                dir.keep().display()
            );
        }
    }
}

/// Writes a file that may hold a key or a password: readable by its owner only.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_ref()))
        .with_context(|| format!("`{}` cannot be written", path.display()))
}
