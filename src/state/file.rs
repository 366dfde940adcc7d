//! The file on the disk: read with a bound, replaced whole or not at all.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::format::{self, FormatError};
use super::{Contents, Decode, Disk, Encode};
use crate::lifecycle::wall_clock;

pub(super) const FILE_NAME: &str = "routes.jsonl";
/// Renamed to the above once it is whole on the disk; one left by a crash is overwritten.
const TEMPORARY_NAME: &str = "routes.jsonl.new";
/// Ten times what the largest cluster needs: 3,000 node ports on 8 nodes each are some 5 MiB.
pub(super) const FILE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A disk that does not answer within this is treated as broken: routes are announced within a second of a start.
const READ_WAIT: Duration = Duration::from_millis(700);

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read.
    #[error("cannot read `{}`", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// It holds something else.
    #[error("cannot use `{}`", .0.display())]
    Format(PathBuf, #[source] FormatError),
    /// It cannot be written.
    #[error("cannot write `{}`", .0.display())]
    Unwritable(PathBuf, #[source] io::Error),
    /// More than any cluster has.
    #[error("`{}` would have more than 64 MiB", .0.display())]
    TooLarge(PathBuf),
    /// Neither an answer nor an error.
    #[error("the disk below `{}` does not answer", .0.display())]
    Silent(PathBuf),
}

/// A folder of this machine.
pub(crate) struct Folder(pub(crate) PathBuf);

/// Reads what a disk holds, however slow it is; `None` where there is nothing.
pub(super) async fn read_within(
    disk: &dyn Disk,
    folder: &Path,
) -> Result<Option<Contents>, StateError> {
    let read = tokio::time::timeout(READ_WAIT, disk.read(format::decode)).await;
    read.unwrap_or_else(|_| Err(StateError::Silent(folder.to_owned())))
}

/// Reads the file of a folder; `None` where there is none.
pub(super) fn read(folder: &Path, decode: Decode) -> Result<Option<Contents>, StateError> {
    let path = folder.join(FILE_NAME);
    let unreadable = |error| StateError::Unreadable(path.clone(), error);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(unreadable)?,
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(unreadable(io::Error::other("it has more than 64 MiB")));
    }
    let contents = decode(&bytes);
    contents
        .map(Some)
        .map_err(|error| StateError::Format(path, error))
}

/// On the disk when it returns: a rename alone may outrun the data it names, and the folder's entry the rename.
pub(super) fn write(folder: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let path = folder.join(FILE_NAME);
    if bytes.len() > FILE_BYTES_MAX {
        return Err(StateError::TooLarge(path));
    }
    let replace = || {
        let temporary = folder.join(TEMPORARY_NAME);
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(folder)?.sync_all()
    };
    replace().map_err(|error| StateError::Unwritable(path.clone(), error))
}

// === impl Folder ===

impl Disk for Folder {
    fn read(&self, decode: Decode) -> BoxFuture<'static, Result<Option<Contents>, StateError>> {
        let folder = self.0.clone();
        let silent = StateError::Silent(folder.clone());
        let reading = tokio::task::spawn_blocking(move || read(&folder, decode));
        async move { reading.await.unwrap_or(Err(silent)) }.boxed()
    }

    fn write(&self, encode: Encode) -> BoxFuture<'static, Result<(), StateError>> {
        let folder = self.0.clone();
        let silent = StateError::Silent(folder.clone());
        let writing =
            tokio::task::spawn_blocking(move || write(&folder, &encode(wall_clock().as_secs())));
        async move { writing.await.unwrap_or(Err(silent)) }.boxed()
    }

    fn unix_seconds(&self) -> u64 {
        wall_clock().as_secs()
    }
}
