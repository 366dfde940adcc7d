//! TLS as a server that knows who asks: only callers whose certificate comes from the given authorities.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;

use super::{TlsError, authorities, certified_key};
use crate::config::MetricsConfig;

/// TLS 1.2 and 1.3, of the files as they are now.
///
/// # Errors
/// Where a file cannot be used, or the key does not fit.
pub(crate) fn server(config: &MetricsConfig) -> Result<Arc<ServerConfig>, TlsError> {
    let refused = |error: &dyn std::error::Error| TlsError::Refused(error.to_string());
    let provider = Arc::new(ring::default_provider());
    let callers = Arc::new(authorities(&config.client_ca_file)?);
    let callers = WebPkiClientVerifier::builder_with_provider(callers, provider.clone())
        .build()
        .map_err(|error| refused(&error))?;
    let identity = SingleCertAndKey::from(certified_key(&config.identity)?);
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(&error))?
        .with_client_cert_verifier(callers)
        .with_cert_resolver(Arc::new(identity));
    // Every connection shows its certificate: a session would outlive one that expires meanwhile.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(Arc::new(server))
}
