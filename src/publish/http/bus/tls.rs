//! TLS towards NATS, with certificates read anew at each connection.
//!
//! Where the dialled name is the certificate's, async-nats' own options do that. It cannot expect another name,
//! though, and BOSH's NATS certificates hold no addresses: then a configuration of ours goes in, whose verifier and
//! client certificate read their files during the handshake. Verification cannot be switched off here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_nats::ConnectOptions;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::{ClientIdentity, TlsConfig};

/// Why TLS cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error("cannot read `{}`: {reason}", .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another name without an authority to check it by.
    #[error("`nats.tls.server_name` needs `nats.tls.ca_file`")]
    NameWithoutAuthority,
    /// The library refuses.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// Expects one name, whatever was dialled.
#[derive(Debug)]
struct FixedName {
    name: ServerName<'static>,
    ca_file: PathBuf,
    provider: Arc<CryptoProvider>,
}

/// Shows the certificate that lies in the files now.
#[derive(Debug)]
struct IdentityFiles {
    files: ClientIdentity,
    provider: Arc<CryptoProvider>,
}

/// Puts the TLS settings into the client's options.
pub(super) fn apply(options: ConnectOptions, tls: &TlsConfig) -> Result<ConnectOptions, TlsError> {
    let options = options.require_tls(true);
    let Some(name) = &tls.server_name else {
        let options = match &tls.ca_file {
            Some(file) => options.add_root_certificates(file.clone()),
            None => options,
        };
        return Ok(match &tls.identity {
            Some(files) => {
                options.add_client_certificate(files.cert_file.clone(), files.key_file.clone())
            }
            None => options,
        });
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let ca_file = tls.ca_file.clone().ok_or(TlsError::NameWithoutAuthority)?;
    let verifier = FixedName {
        name: ServerName::try_from(name.as_str().to_owned())
            .expect("a host name must be a server name"),
        ca_file,
        provider: provider.clone(),
    };
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match tls.identity.clone() {
        Some(files) => {
            builder.with_client_cert_resolver(Arc::new(IdentityFiles { files, provider }))
        }
        None => builder.with_no_client_auth(),
    };
    Ok(options.tls_client_config(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &impl std::fmt::Display) -> TlsError {
    TlsError::File {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

// === impl FixedName ===

impl FixedName {
    fn judge(&self) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca_file)? {
            roots.add(certificate)?;
        }
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| unreadable(&self.ca_file, &error))
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
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        judge.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

// === impl IdentityFiles ===

impl IdentityFiles {
    fn load(&self) -> Result<CertifiedKey, TlsError> {
        let key = &self.files.key_file;
        let der = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
        let chain = certificates(&self.files.cert_file)?;
        Ok(CertifiedKey::from_der(chain, der, &self.provider)?)
    }
}

impl ResolvesClientCert for IdentityFiles {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        match self.load() {
            Ok(key) => Some(Arc::new(key)),
            Err(error) => {
                tracing::warn!(%error, "nats client certificate unusable");
                None
            }
        }
    }

    fn has_certs(&self) -> bool {
        true
    }
}
