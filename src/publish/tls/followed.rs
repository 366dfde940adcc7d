//! What is made of files that may be replaced at any time: certificates, keys, authorities.
//!
//! It is made anew when a file is another one than at the last look, which every use takes: a look costs
//! microseconds, and connections are few. Files that cannot be used change nothing, as whoever replaces them may be
//! half way. What is made of them is the affair of whoever asks.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::TlsError;
use crate::causes::chain;

/// What tells one content of a file from the next without reading it. A folder of Kubernetes' secrets is swapped
/// by a link, so that the inode differs; an editor changes time or size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<Option<(Option<SystemTime>, u64, u64)>>);

/// Something, and the files it was made of.
pub(crate) struct Followed<T> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    // A std mutex, because no await is held.
    made: Mutex<Made<T>>,
}

struct Made<T> {
    value: T,
    stamp: Stamp,
    /// The files that could not be used last, so that this is said once.
    refused: Option<Stamp>,
}

/// The files as they are now.
pub(crate) fn stamp(files: &[impl AsRef<Path>]) -> Stamp {
    Stamp(files.iter().map(|file| identity(file.as_ref())).collect())
}

fn identity(path: &Path) -> Option<(Option<SystemTime>, u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok(), metadata.len(), metadata.ino()))
}

// === impl Followed ===

impl<T: Clone> Followed<T> {
    /// Makes it of the files as they are now.
    ///
    /// # Errors
    /// Where a file cannot be used.
    pub(crate) fn new(
        files: &[&Path],
        make: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        // Before the files are read: one that changes meanwhile is read again.
        let stamp = stamp(files);
        let made = Made {
            value: make()?,
            stamp,
            refused: None,
        };
        Ok(Self {
            files: files.iter().map(|file| (*file).to_owned()).collect(),
            make: Box::new(make),
            made: Mutex::new(made),
        })
    }

    /// What the files come to now. Who holds an older one keeps it.
    pub(crate) fn current(&self) -> T {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.files);
        if stamp != made.stamp && made.refused.as_ref() != Some(&stamp) {
            match (self.make)() {
                Ok(value) => {
                    tracing::info!(files = ?self.files, "certificates read again");
                    *made = Made {
                        value,
                        stamp,
                        refused: None,
                    };
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(
                        error,
                        "new certificates cannot be used, the last ones serve"
                    );
                    made.refused = Some(stamp);
                }
            }
        }
        made.value.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::certificates;
    use super::*;

    const PEM: &str = include_str!("../../../tests/self_signed.pem");

    /// Another content, or another file in the same place: each is another stamp.
    #[test]
    fn what_is_made_of_files_is_made_anew_for_new_ones_and_kept_for_bad_ones() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, PEM).unwrap();
        let path = file.clone();
        let count = move || Ok(certificates(&path)?.len());
        let followed = Followed::new(&[&file], count).unwrap();
        assert_eq!(followed.current(), 1);

        std::fs::write(&file, "half").unwrap();
        assert_eq!(followed.current(), 1, "the last good ones serve");
        assert!(followed.made.lock().unwrap().refused.is_some());

        std::fs::remove_file(&file).unwrap();
        assert_eq!(followed.current(), 1, "a missing file is as good as bad");

        std::fs::write(&file, format!("{PEM}\n{PEM}")).unwrap();
        assert_eq!(followed.current(), 2);
        assert!(followed.made.lock().unwrap().refused.is_none());
    }
}
