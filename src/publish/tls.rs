//! HTTPS as this project speaks it: our own authorities where given, our own certificate where asked for, no
//! redirects (a redirected token request would hand out a secret), no proxy from the environment.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Certificate, ClientBuilder, Identity, redirect};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::causes::chain;
use crate::config::TlsConfig;
use crate::route::Hostname;

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
    /// The parts do not fit together.
    #[error("the TLS settings are refused: {0}")]
    Refused(String),
}

/// Judges a certificate under another name than the one that was dialled, such as an address.
#[derive(Debug)]
struct Named {
    name: ServerName<'static>,
    inner: Arc<WebPkiServerVerifier>,
}

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
        return Ok(builder.tls_backend_preconfigured(named(tls, name)?));
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

fn named(tls: &TlsConfig, name: &Hostname) -> Result<ClientConfig, TlsError> {
    let refused = |error: &dyn std::error::Error| TlsError::Refused(error.to_string());
    let path = tls.ca_file.as_ref().ok_or(TlsError::ServerNameWithoutCa)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| refused(&error))?;
    }
    let provider = Arc::new(ring::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| refused(&error))?;
    let name = ServerName::try_from(name.to_string()).map_err(|error| refused(&error))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Named { name, inner }));
    match &tls.identity {
        None => Ok(config.with_no_client_auth()),
        Some(identity) => config
            .with_client_auth_cert(
                certificates(&identity.cert_file)?,
                private_key(&identity.key_file)?,
            )
            .map_err(|error| refused(&error)),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

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

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|_| TlsError::NotPem {
        path: path.to_owned(),
        what: "private key",
    })
}

// === impl Named ===

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner
            .verify_server_cert(end_entity, intermediates, &self.name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClientIdentity;

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
        let identity = Some(ClientIdentity {
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
