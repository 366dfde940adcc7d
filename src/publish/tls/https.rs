//! An HTTPS client that follows its files: authorities, certificate and key may be replaced at any time.
//!
//! reqwest reads them once, when a client is built. So a client is built anew when a file is another one than at
//! the last look, which every request takes: a look costs microseconds, and requests are few. Files that cannot
//! be used change nothing, as whoever replaces them may be half way.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::{TlsError, client};
use crate::causes::chain;
use crate::config::TlsConfig;

/// What tells one content of a file from the next without reading it. A folder of Kubernetes' secrets is swapped
/// by a link, so that the inode differs; an editor changes time or size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<Option<(Option<SystemTime>, u64, u64)>>);

/// The client and the files it was made of.
pub(crate) struct Https {
    tls: TlsConfig,
    shape: Shape,
    // A std mutex, because no await is held.
    made: Mutex<Made>,
}

/// What a client is beside its certificates.
#[derive(Clone, Copy)]
struct Shape {
    timeout: Duration,
    /// Connections outlive the request they were made for.
    pool: bool,
}

struct Made {
    client: reqwest::Client,
    stamp: Stamp,
    /// The files that could not be used last, so that this is said once.
    refused: Option<Stamp>,
}

/// The files as they are now.
pub(crate) fn stamp(tls: &TlsConfig) -> Stamp {
    Stamp(tls.files().into_iter().map(identity).collect())
}

fn identity(path: &Path) -> Option<(Option<SystemTime>, u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok(), metadata.len(), metadata.ino()))
}

// === impl Https ===

impl Https {
    /// A client with a deadline for each whole request.
    ///
    /// # Errors
    /// Where a file cannot be used.
    pub(crate) fn new(tls: &TlsConfig, timeout: Duration) -> Result<Self, TlsError> {
        let pool = true;
        Self::of(tls, Shape { timeout, pool })
    }

    /// The same, which makes a connection for each request: to learn whether one can be made.
    ///
    /// # Errors
    /// Where a file cannot be used.
    pub(crate) fn dialling_anew(tls: &TlsConfig, timeout: Duration) -> Result<Self, TlsError> {
        let pool = false;
        Self::of(tls, Shape { timeout, pool })
    }

    fn of(tls: &TlsConfig, shape: Shape) -> Result<Self, TlsError> {
        // Before the files are read: one that changes meanwhile is read again.
        let stamp = stamp(tls);
        let made = Made {
            client: build(tls, shape)?,
            stamp,
            refused: None,
        };
        Ok(Self {
            tls: tls.clone(),
            shape,
            made: Mutex::new(made),
        })
    }

    /// The client for the next request. Requests under way keep theirs.
    pub(crate) fn client(&self) -> reqwest::Client {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.tls);
        if stamp != made.stamp && made.refused.as_ref() != Some(&stamp) {
            match build(&self.tls, self.shape) {
                Ok(client) => {
                    tracing::info!(files = ?self.tls.files(), "certificates read again");
                    *made = Made {
                        client,
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
        made.client.clone()
    }
}

fn build(tls: &TlsConfig, shape: Shape) -> Result<reqwest::Client, TlsError> {
    let mut builder = client(tls)?.timeout(shape.timeout);
    if !shape.pool {
        builder = builder.pool_max_idle_per_host(0);
    }
    builder
        .build()
        .map_err(|error| TlsError::Refused(chain(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = include_str!("../../../tests/self_signed.pem");

    /// Another content, or another file in the same place: each is another stamp.
    #[test]
    fn a_client_is_made_anew_for_new_files_and_kept_for_bad_ones() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, PEM).unwrap();
        let tls = TlsConfig {
            ca_file: Some(file.clone()),
            ..TlsConfig::default()
        };
        let https = Https::new(&tls, Duration::from_secs(1)).unwrap();
        let made = |https: &Https| https.made.lock().unwrap().stamp.clone();
        let first = made(&https);
        https.client();
        assert_eq!(made(&https), first);

        std::fs::write(&file, "half").unwrap();
        https.client();
        assert_eq!(made(&https), first, "the last good ones serve");
        assert!(https.made.lock().unwrap().refused.is_some());

        std::fs::remove_file(&file).unwrap();
        https.client();
        assert_eq!(
            made(&https),
            first,
            "a missing file is as good as a bad one"
        );

        std::fs::write(&file, format!("{PEM}\n{PEM}")).unwrap();
        https.client();
        assert_ne!(made(&https), first);
        assert!(https.made.lock().unwrap().refused.is_none());
    }
}
