//! TLS towards NATS, with certificates read anew at each connection.
//!
//! Where the dialled name is the certificate's, async-nats' own options do that. It cannot expect another name,
//! though, and BOSH's NATS certificates hold no addresses: then a configuration of ours goes in. Verification cannot
//! be switched off here.

use async_nats::ConnectOptions;

use crate::config::TlsConfig;
use crate::publish::tls::{TlsError, expecting};

/// Puts the TLS settings into the client's options.
pub(super) fn apply(options: ConnectOptions, tls: &TlsConfig) -> Result<ConnectOptions, TlsError> {
    let options = options.require_tls(true);
    if let Some(name) = &tls.server_name {
        return Ok(options.tls_client_config(expecting(tls, name)?));
    }
    let options = match &tls.ca_file {
        Some(file) => options.add_root_certificates(file.clone()),
        None => options,
    };
    Ok(match &tls.identity {
        Some(files) => {
            options.add_client_certificate(files.cert_file.clone(), files.key_file.clone())
        }
        None => options,
    })
}
