//! Certificates and TLS configurations for everything in the box.
//!
//! ECDSA P-256 throughout, made on the spot by rcgen; the `ring` provider is passed explicitly, so
//! no process-wide provider has to be installed. Nothing here is read from the system: a client
//! trusts the one CA it is given and no other.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig};
use rustls::{Error, SignatureScheme};

/// A certificate authority that lives as long as its value.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    pub cert_pem: String,
    pub key_pem: String,
}

/// Verifies the chain and not the name: what gorouter was measured to do for a backend that is
/// registered with `tls_port` and without `server_cert_domain_san`.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

// === impl Ca ===

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a P-256 key must be makeable");
        let pem = params
            .self_signed(&key)
            .expect("a CA must be able to sign itself")
            .pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A leaf for these names (IP addresses are recognised); `client_and_server` adds the client
    /// usage to the server's.
    pub fn issue(&self, names: &[&str], client_and_server: bool) -> Identity {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let common_name = names.first().cloned().unwrap_or_default();
        let mut params = CertificateParams::new(names).expect("names must be DNS names or IPs");
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if client_and_server {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        let key = KeyPair::generate().expect("a P-256 key must be makeable");
        let certificate = params
            .signed_by(&key, &self.issuer)
            .expect("a CA must be able to sign a leaf");
        Identity {
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }
}

// === impl Identity ===

impl Identity {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.cert_pem.as_bytes())
            .collect::<Result<_, _>>()
            .expect("an identity's certificate must be PEM")
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .expect("an identity's key must be PEM")
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(…)")
    }
}

// === configurations ===

/// A server's side; with `client_ca` (PEM) a client certificate is demanded and verified.
pub fn server_config(identity: &Identity, client_ca: Option<&str>) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring must speak TLS 1.2 and 1.3");
    let builder = match client_ca {
        Some(pem) => {
            let roots = Arc::new(roots(Some(pem)));
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .expect("a client CA must hold a certificate");
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let config = builder
        .with_single_cert(identity.chain(), identity.key())
        .expect("an identity's key must fit its certificate");
    Arc::new(config)
}

/// A client's side, trusting `ca` (PEM) alone; without one it trusts nobody.
pub fn client_config(ca: Option<&str>, identity: Option<&Identity>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring must speak TLS 1.2 and 1.3")
        .with_root_certificates(roots(ca));
    match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain(), identity.key())
            .expect("an identity's key must fit its certificate"),
        None => builder.with_no_client_auth(),
    }
}

/// As [`client_config`], but any name in the server's certificate will do.
pub fn client_config_any_name(ca: &str, identity: Option<&Identity>) -> ClientConfig {
    let mut config = client_config(Some(ca), identity);
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots(Some(ca))), provider())
            .build()
            .expect("a CA must hold a certificate");
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(AnyName(verifier)));
    config
}

/// An HTTP client that trusts `ca` alone, follows no redirect and uses no proxy.
pub fn http_client(ca: Option<&str>, identity: Option<&Identity>) -> reqwest::Client {
    reqwest::Client::builder()
        .tls_backend_preconfigured(client_config(ca, identity))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .expect("an HTTP client must be buildable from its parts")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(ca: Option<&str>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.unwrap_or_default().as_bytes()) {
        roots
            .add(certificate.expect("a CA must be PEM"))
            .expect("a CA must be a certificate");
    }
    roots
}

// === impl AnyName ===

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self
            .0
            .verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
        {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            outcome => outcome,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
