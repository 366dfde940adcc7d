//! The TLS keys that were announced or are being withdrawn, in a file that outlives the process.
//!
//! ```text
//!   file ──open──▶ left by the last process ──▶ withdrawn where not wanted
//!   keys ──grow──▶ file ──▶ may be announced            keys ──shrink──▶ file   (once the withdrawal is proven)
//! ```
//!
//! Owns the file and nothing of what its keys mean. Between two states of the file stands a write that may have
//! happened or not, so it keeps two bounds: `least` is in the file for certain, `most` may be. No fault of the
//! file is fatal, and no slow disk delays a plain route.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::tls_keys::TlsKeys;
use crate::Uptime;
use crate::lifecycle::Clock;
use crate::route::{Uri, UriError};

const FILE_NAME: &str = "http-tls.json";
/// Renamed to the above once it is whole on the disk; one left by a crash is overwritten.
const TEMPORARY_NAME: &str = "http-tls.json.new";
/// Counts up with every change that an older version would misread.
const VERSION: u64 = 1;
/// Room for some 300,000 keys; clusters have a handful.
const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A disk that does not answer within this is treated as broken.
const OPEN_WAIT: Duration = Duration::from_secs(2);
/// How long a table may wait for its keys to be on record, so that a replacement still goes out before the
/// withdrawal. An fsync takes 1 to 30 ms; beats can wait ten times as long as this.
const WRITE_WAIT: Duration = Duration::from_millis(500);
/// Before new keys a write of old ones may have to end.
const WRITES_AWAITED: usize = 2;
/// A write that failed is tried again after this: the disk may be mended.
const WRITE_AGAIN: Duration = Duration::from_secs(10);

pub(super) struct Journal {
    folder: PathBuf,
    /// In the file for certain.
    least: TlsKeys,
    /// May be in the file.
    most: TlsKeys,
    left: TlsKeys,
    writing: Option<Writing>,
    /// The write in flight has been waited for in vain.
    overdue: bool,
    again_at: Option<Uptime>,
    error: Option<String>,
}

struct Writing {
    keys: TlsKeys,
    task: JoinHandle<Result<(), JournalError>>,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
enum JournalError {
    #[error("cannot read `{}`", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    #[error("`{}` is no journal of TLS routes", .0.display())]
    Corrupt(PathBuf, #[source] serde_json::Error),
    #[error("`{}` names a uri that is none", .0.display())]
    Uri(PathBuf, #[source] UriError),
    #[error("`{}` has version {found}, not {VERSION}", .path.display())]
    Version { path: PathBuf, found: u64 },
    #[error("cannot write `{}`", .0.display())]
    Unwritable(PathBuf, #[source] io::Error),
    #[error("`{}` would have more than 16 MiB", .0.display())]
    TooLarge(PathBuf),
    #[error("the disk below `{}` does not answer", .0.display())]
    Silent(PathBuf),
    #[error("the task that was to write `{}` ended", .0.display())]
    Ended(PathBuf),
}

/// What every version of the file says.
#[derive(Deserialize)]
struct Head {
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Contents {
    version: u64,
    /// Each uri with its endpoints.
    tls: BTreeMap<String, BTreeSet<SocketAddr>>,
}

// === impl Journal ===

impl Journal {
    /// Reads what the last process left. A file that cannot be used is said and counts as none.
    pub(super) async fn open(folder: &Path) -> Self {
        let path = folder.join(FILE_NAME);
        let reading = tokio::task::spawn_blocking({
            let path = path.clone();
            move || read(&path)
        });
        let left = match tokio::time::timeout(OPEN_WAIT, reading).await {
            Ok(Ok(read)) => read,
            Ok(Err(_)) | Err(_) => Err(JournalError::Silent(folder.to_owned())),
        };
        let left = left.unwrap_or_else(|error| {
            let error = super::chain(&error);
            warn!(%error, "journal ignored, TLS routes it held are not withdrawn");
            TlsKeys::default()
        });
        Self {
            folder: folder.to_owned(),
            least: left.clone(),
            most: left.clone(),
            left,
            writing: None,
            overdue: false,
            again_at: None,
            error: None,
        }
    }

    /// What the last process left; told once.
    pub(super) fn take_left(&mut self) -> TlsKeys {
        std::mem::take(&mut self.left)
    }

    /// What may be announced.
    pub(super) fn recorded(&self) -> &TlsKeys {
        &self.least
    }

    /// Why the last write failed, while none has succeeded since.
    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// When a write is to be tried again.
    pub(super) fn deadline(&self) -> Option<Uptime> {
        self.again_at.filter(|_| self.writing.is_none())
    }

    /// Puts these on record, whatever is there already; waits for it a moment at most.
    pub(super) async fn record(&mut self, keys: &TlsKeys, clock: Clock) {
        for _ in 0..WRITES_AWAITED {
            self.grow(keys, clock.now());
            if self.writing.is_none() || self.overdue || self.least.contains_all(keys) {
                return;
            }
            let written = tokio::time::timeout(WRITE_WAIT, self.written(clock)).await;
            self.overdue |= written.is_err();
        }
    }

    /// Begins to put these on record unless they are.
    pub(super) fn grow(&mut self, keys: &TlsKeys, now: Uptime) {
        if !self.least.contains_all(keys) && self.may_write(now) {
            let mut all = self.most.clone();
            all.extend(keys);
            self.write(all);
        }
    }

    /// Begins to forget everything but these.
    pub(super) fn shrink(&mut self, keys: &TlsKeys, now: Uptime) {
        if (self.most != *keys || self.least != *keys) && self.may_write(now) {
            self.write(keys.clone());
        }
    }

    /// Waits until the write in flight has ended; for ever where there is none. May be dropped at any time.
    pub(super) async fn written(&mut self, clock: Clock) {
        let Some(writing) = &mut self.writing else {
            return std::future::pending().await;
        };
        let ended = (&mut writing.task).await;
        let ended = ended.unwrap_or_else(|_| Err(JournalError::Ended(self.path())));
        let Some(writing) = self.writing.take() else {
            return;
        };
        self.overdue = false;
        match ended {
            Ok(()) => {
                self.least.clone_from(&writing.keys);
                self.most = writing.keys;
                if self.error.take().is_some() {
                    info!("journal can be written again");
                }
            }
            Err(error) => {
                self.again_at = Some(clock.now() + WRITE_AGAIN);
                let error = super::chain(&error);
                if self.error.as_ref() != Some(&error) {
                    warn!(
                        %error,
                        "new TLS routes are not announced; hint: make `state.dir` a folder that can be written"
                    );
                }
                self.error = Some(error);
            }
        }
    }

    fn may_write(&mut self, now: Uptime) -> bool {
        self.again_at.take_if(|at| *at <= now);
        self.writing.is_none() && self.again_at.is_none()
    }

    fn write(&mut self, keys: TlsKeys) {
        self.least.retain_common(&keys);
        self.most.extend(&keys);
        let folder = self.folder.clone();
        let contents = Contents::of(&keys);
        let task = tokio::task::spawn_blocking(move || write(&folder, &contents));
        self.writing = Some(Writing { keys, task });
    }

    fn path(&self) -> PathBuf {
        self.folder.join(FILE_NAME)
    }
}

// === impl Contents ===

impl Contents {
    fn of(keys: &TlsKeys) -> Self {
        let each = keys.by_uri();
        Self {
            version: VERSION,
            tls: each
                .map(|(uri, addrs)| (uri.to_string(), addrs.clone()))
                .collect(),
        }
    }

    fn keys(self) -> Result<TlsKeys, UriError> {
        let mut keys = TlsKeys::default();
        for (uri, addrs) in self.tls {
            let uri = Arc::new(Uri::parse(&uri)?);
            for addr in addrs {
                keys.insert(&uri, addr);
            }
        }
        Ok(keys)
    }
}

// --- the file ------------------------------------------------------------------------------------------------------

fn read(path: &Path) -> Result<TlsKeys, JournalError> {
    let unreadable = |error| JournalError::Unreadable(path.to_owned(), error);
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(TlsKeys::default()),
        opened => opened.map_err(unreadable)?,
    };
    let mut bytes = Vec::new();
    let limit = FILE_BYTES_MAX as u64 + 1;
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(unreadable(io::Error::other("it has more than 16 MiB")));
    }
    let corrupt = |error| JournalError::Corrupt(path.to_owned(), error);
    let head: Head = serde_json::from_slice(&bytes).map_err(corrupt)?;
    if head.version != VERSION {
        return Err(JournalError::Version {
            path: path.to_owned(),
            found: head.version,
        });
    }
    let contents: Contents = serde_json::from_slice(&bytes).map_err(corrupt)?;
    let keys = contents.keys();
    keys.map_err(|error| JournalError::Uri(path.to_owned(), error))
}

/// Whole or not at all, and on the disk when it returns: a rename alone may outrun the data it names.
fn write(folder: &Path, contents: &Contents) -> Result<(), JournalError> {
    let path = folder.join(FILE_NAME);
    let mut bytes = serde_json::to_vec(contents).expect("texts and addresses must be JSON");
    bytes.push(b'\n');
    if bytes.len() > FILE_BYTES_MAX {
        return Err(JournalError::TooLarge(path));
    }
    let replace = || {
        let temporary = folder.join(TEMPORARY_NAME);
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(folder)?.sync_all()
    };
    replace().map_err(|error| JournalError::Unwritable(path.clone(), error))
}

#[cfg(test)]
mod tests;
