//! TLS as this project speaks it. HTTPS as a client: our own authorities where given, our own certificate where asked
//! for, no redirects (a redirected token request would hand out a secret), no proxy from the environment. As a server:
//! nobody without a certificate.

mod followed;
mod https;
mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Certificate, ClientBuilder, Identity, redirect};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{self, CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::causes::chain;
use crate::config::{KeyPair, TlsConfig};
use crate::route::Hostname;
pub(crate) use followed::{Followed, Stamp, stamp};
pub(crate) use https::Https;
pub(crate) use server::server;

/// A connection that is not there by now goes to the next address, or fails.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Below the keep-alive of every proxy on the way, so that none closes a connection under a request.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why no client can be built.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read `{}`", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file holds no certificate or key.
    #[error("`{}` holds no {what} in PEM form", .path.display())]
    NotPem {
        /// Which.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
    },
    /// A server name is to be expected, but of no given authority.
    #[error("`server_name` needs `ca_file`")]
    ServerNameWithoutCa,
    /// Another certificate's key.
    #[error("the certificate has another public key")]
    Mismatch,
    /// The parts do not fit together, or one cannot be used.
    #[error("the TLS settings are refused: {0}")]
    Refused(String),
}

/// Judges a certificate under one name, whatever was dialled, by the authorities that lie in the file now.
#[derive(Debug)]
struct FixedName {
    name: ServerName<'static>,
    ca_file: PathBuf,
    provider: Arc<CryptoProvider>,
}

/// Shows the certificate that lies in the files now.
#[derive(Debug)]
struct IdentityFiles(KeyPair);

/// A client for one server, without its deadlines.
///
/// # Errors
/// Where a file cannot be used.
pub fn client(tls: &TlsConfig) -> Result<ClientBuilder, TlsError> {
    // Whoever comes first decides for the process; it is ring everywhere.
    let _ = ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .user_agent(concat!("route-sync/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT);
    if let (Some(name), false) = (&tls.server_name, tls.skip_verification) {
        let config = expecting(tls, name)?;
        // Both are read at each handshake; what cannot be used is told now.
        if let Some(path) = &tls.ca_file {
            certificates(path)?;
        }
        if let Some(files) = &tls.identity {
            certificates(&files.cert_file)?;
            private_key(&files.key_file)?;
        }
        return Ok(builder.tls_backend_preconfigured(config));
    }
    let mut builder = builder.tls_danger_accept_invalid_certs(tls.skip_verification);
    if let Some(path) = &tls.ca_file {
        let certificates = Certificate::from_pem_bundle(&read(path)?)
            .ok()
            .filter(|certificates| !certificates.is_empty())
            .ok_or_else(|| TlsError::NotPem {
                path: path.clone(),
                what: "certificate",
            })?;
        builder = builder.tls_certs_only(certificates);
    }
    if let Some(identity) = &tls.identity {
        let (cert, key) = (&identity.cert_file, &identity.key_file);
        certificates(cert)?;
        private_key(key)?;
        let pem = [read(cert)?, b"\n".to_vec(), read(key)?].concat();
        let pair = Identity::from_pem(&pem).map_err(|error| TlsError::Refused(chain(&error)))?;
        builder = builder.identity(pair);
    }
    Ok(builder)
}

/// TLS to a server whose certificate bears another name than the one that is dialled, such as an address. The
/// files are read at each handshake, so that they may be replaced at any time.
pub(super) fn expecting(tls: &TlsConfig, name: &Hostname) -> Result<ClientConfig, TlsError> {
    let refused = |error: &dyn std::error::Error| TlsError::Refused(error.to_string());
    let ca_file = tls.ca_file.clone().ok_or(TlsError::ServerNameWithoutCa)?;
    let provider = Arc::new(ring::default_provider());
    let name = ServerName::try_from(name.to_string()).map_err(|error| refused(&error))?;
    let verifier = FixedName {
        name,
        ca_file,
        provider: provider.clone(),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Ok(match tls.identity.clone() {
        None => config.with_no_client_auth(),
        Some(files) => config.with_client_cert_resolver(Arc::new(IdentityFiles(files))),
    })
}

/// Whether the files that are named can be used as they are now.
pub(crate) fn usable(tls: &TlsConfig) -> Result<(), TlsError> {
    tls.ca_file.as_deref().map(authorities).transpose()?;
    tls.identity.as_ref().map(certified_key).transpose()?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

/// The authorities of a PEM file, or any other certificates of which each must be readable.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|_| TlsError::NotPem {
            path: path.to_owned(),
            what: "usable certificate",
        })?;
    }
    Ok(roots)
}

/// A certificate with the key that belongs to it.
pub(crate) fn certified_key(files: &KeyPair) -> Result<CertifiedKey, TlsError> {
    let der = private_key(&files.key_file)?;
    let chain = certificates(&files.cert_file)?;
    CertifiedKey::from_der(chain, der, &ring::default_provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => TlsError::Mismatch,
        _ => TlsError::Refused(error.to_string()),
    })
}

/// The certificates of a PEM file, of which there must be one at least.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(|| TlsError::NotPem {
            path: path.to_owned(),
            what: "certificate",
        })
}

/// The private key of a PEM file.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|_| TlsError::NotPem {
        path: path.to_owned(),
        what: "private key",
    })
}

// === impl FixedName ===

impl FixedName {
    fn judge(&self) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
        let roots = authorities(&self.ca_file)?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| TlsError::Refused(error.to_string()))
    }
}

impl ServerCertVerifier for FixedName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Small local files, once per connection: reading them here is what makes rotation work.
        let judge = self
            .judge()
            .map_err(|error| rustls::Error::General(chain(&error)))?;
        judge.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

// === impl IdentityFiles ===

impl ResolvesClientCert for IdentityFiles {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        match certified_key(&self.0) {
            Ok(key) => Some(Arc::new(key)),
            Err(error) => {
                tracing::warn!(%error, "client certificate unusable");
                None
            }
        }
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KeyPair;

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let junk = dir.path().join("junk.pem");
        std::fs::write(&junk, "junk").unwrap();
        let missing = dir.path().join("missing.pem");
        let ca = |path: &Path| TlsConfig {
            ca_file: Some(path.to_owned()),
            ..TlsConfig::default()
        };
        assert!(matches!(
            client(&ca(&junk)),
            Err(TlsError::NotPem {
                what: "certificate",
                ..
            })
        ));
        assert!(matches!(
            client(&ca(&missing)),
            Err(TlsError::Unreadable { .. })
        ));
        let identity = Some(KeyPair {
            cert_file: junk.clone(),
            key_file: junk,
        });
        let tls = TlsConfig {
            identity,
            ..TlsConfig::default()
        };
        assert!(matches!(client(&tls), Err(TlsError::NotPem { .. })));
        assert!(client(&TlsConfig::default()).unwrap().build().is_ok());
    }
}
