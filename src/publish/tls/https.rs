//! An HTTPS client that follows its files: authorities, certificate and key may be replaced at any time.
//!
//! reqwest reads them once, when a client is built. So a client is built anew when they are others than before.

use std::time::Duration;

use super::{Followed, TlsError, client};
use crate::causes::chain;
use crate::config::TlsConfig;

/// The client of the files as they are.
pub(crate) struct Https(Followed<reqwest::Client>);

// === impl Https ===

impl Https {
    /// A client with a deadline for each whole request.
    ///
    /// # Errors
    /// Where a file cannot be used.
    pub(crate) fn new(tls: &TlsConfig, timeout: Duration) -> Result<Self, TlsError> {
        Self::of(tls, timeout, true)
    }

    /// The same, which makes a connection for each request: to learn whether one can be made.
    ///
    /// # Errors
    /// Where a file cannot be used.
    pub(crate) fn dialling_anew(tls: &TlsConfig, timeout: Duration) -> Result<Self, TlsError> {
        Self::of(tls, timeout, false)
    }

    /// With a pool connections outlive the request they were made for.
    fn of(tls: &TlsConfig, timeout: Duration, pool: bool) -> Result<Self, TlsError> {
        let of_files = tls.clone();
        let build = move || build(&of_files, timeout, pool);
        Ok(Self(Followed::new(&tls.files(), build)?))
    }

    /// The client for the next request. Requests under way keep theirs.
    pub(crate) fn client(&self) -> reqwest::Client {
        self.0.current()
    }
}

fn build(tls: &TlsConfig, timeout: Duration, pool: bool) -> Result<reqwest::Client, TlsError> {
    let mut builder = client(tls)?.timeout(timeout);
    if !pool {
        builder = builder.pool_max_idle_per_host(0);
    }
    builder
        .build()
        .map_err(|error| TlsError::Refused(chain(&error)))
}
