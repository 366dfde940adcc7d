//! Certificates for the real programs: one authority, identities with RSA keys.
//!
//! RSA, because Cloud Foundry's internal TLS defaults know only ECDHE-RSA suites under TLS 1.2
//! (routing-api, locket and gorouter's NATS client, routing-release 2024-10). rcgen signs with
//! ring, which makes no RSA keys: those come from the `rsa` crate.

use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256,
};
use rsa::RsaPrivateKey;
use rsa::pkcs1::EncodeRsaPrivateKey;
use rsa::pkcs8::{EncodePrivateKey, LineEnding};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::run;

/// How long a request may take: a machine with two cores may keep three programs from answering it.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// How long a connection is kept for a next request.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// The smallest size that Go's and Java's TLS both take without a word; larger ones take seconds
/// to find.
const RSA_BITS: usize = 2048;

/// Every name a program of the stack is reached by, in one server certificate.
const SERVER_NAMES: [&str; 14] = [
    "localhost",
    "127.0.0.1",
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.0.5",
    "10.0.0.6",
    "10.0.0.7",
    "10.0.0.8",
    "*.sys.example.test",
    "*.apps.example.test",
    "routing-api.service.test",
    "nats.service.test",
];

/// A certificate with its key.
#[derive(Clone)]
pub struct Identity {
    pub cert_pem: String,
    /// PKCS#8
    pub key_pem: String,
    /// PKCS#1, "traditional", which UAA asks for
    pub rsa_pem: String,
}

/// The authority of one run, a server's and a client's identity, in memory and as files.
#[derive(Clone)]
pub struct Pki {
    pub ca_pem: String,
    pub server: Identity,
    pub client: Identity,
    folder: PathBuf,
    issuer: Arc<Issuer<'static, KeyPair>>,
}

// === impl Pki ===

impl Pki {
    pub fn new(run: &run::RunFolder) -> Result<Self> {
        let folder = run.folder("pki")?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "counterparts");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = rsa_key()?.0;
        let ca_pem = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let server = issue(&issuer, &SERVER_NAMES)?;
        let client = issue(&issuer, &["route-sync.service.test"])?;
        let pki = Self {
            ca_pem,
            server,
            client,
            folder,
            issuer: Arc::new(issuer),
        };
        run::write(&pki.ca_file(), &pki.ca_pem)?;
        for (name, identity) in [("server", &pki.server), ("client", &pki.client)] {
            run::write(&pki.cert_file(name), &identity.cert_pem)?;
            run::write(&pki.key_file(name), &identity.key_pem)?;
        }
        Ok(pki)
    }

    /// One more identity of the same authority.
    pub fn issue(&self, names: &[&str]) -> Result<Identity> {
        issue(&self.issuer, names)
    }

    pub fn ca_file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    pub fn server_cert_file(&self) -> PathBuf {
        self.cert_file("server")
    }

    pub fn server_key_file(&self) -> PathBuf {
        self.key_file("server")
    }

    pub fn client_cert_file(&self) -> PathBuf {
        self.cert_file("client")
    }

    pub fn client_key_file(&self) -> PathBuf {
        self.key_file("client")
    }

    /// An HTTP client that trusts this authority only and shows the client identity when asked.
    pub fn http_client(&self) -> Result<reqwest::Client> {
        self.http_client_with(|builder| builder)
    }

    /// The same without the client identity. The apiserver takes a certificate's name before a
    /// token's, so whoever shows both is the certificate's user there.
    pub fn http_client_without_identity(&self) -> Result<reqwest::Client> {
        install_provider();
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(self.roots()?)
            .with_no_client_auth();
        let builder = plain_http_client().tls_backend_preconfigured(config);
        Ok(builder.build()?)
    }

    /// As `http_client`, with more to say, such as `resolve`.
    pub fn http_client_with(
        &self,
        more: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
    ) -> Result<reqwest::Client> {
        let builder = plain_http_client().tls_backend_preconfigured(self.tls_client_config()?);
        Ok(more(builder).build()?)
    }

    /// For clients that take a rustls configuration, such as the NATS client.
    pub fn tls_client_config(&self) -> Result<rustls::ClientConfig> {
        install_provider();
        let chain = vec![CertificateDer::from_pem_slice(
            self.client.cert_pem.as_bytes(),
        )?];
        let key = PrivateKeyDer::from_pem_slice(self.client.key_pem.as_bytes())?;
        Ok(rustls::ClientConfig::builder()
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)?)
    }

    fn roots(&self) -> Result<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes())?)?;
        Ok(roots)
    }

    fn cert_file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.pem"))
    }

    fn key_file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }
}

fn issue(issuer: &Issuer<'_, KeyPair>, names: &[&str]) -> Result<Identity> {
    let sans: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(sans)?;
    let name = *names.first().context("a certificate must have a name")?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let (key, rsa_pem) = rsa_key()?;
    Ok(Identity {
        cert_pem: params.signed_by(&key, issuer)?.pem(),
        key_pem: key.serialize_pem(),
        rsa_pem,
    })
}

fn rsa_key() -> Result<(KeyPair, String)> {
    let key = RsaPrivateKey::new(&mut rand::thread_rng(), RSA_BITS)?;
    let pkcs8 = key.to_pkcs8_pem(LineEnding::LF)?;
    let pkcs1 = key.to_pkcs1_pem(LineEnding::LF)?;
    let pair = KeyPair::from_pkcs8_pem_and_sign_algo(&pkcs8, &PKCS_RSA_SHA256)?;
    Ok((pair, pkcs1.to_string()))
}

/// An RSA signing key, traditional PEM.
pub(crate) fn signing_key() -> Result<String> {
    Ok(rsa_key()?.1)
}

/// An HTTP client's builder that talks to this machine only, without TLS.
pub fn plain_http_client() -> reqwest::ClientBuilder {
    install_provider();
    reqwest::Client::builder()
        .no_proxy()
        .timeout(ANSWER_WITHIN)
        // Before the programs close an idle connection, and a request goes into the closing one.
        .pool_idle_timeout(IDLE_MAX)
        .redirect(reqwest::redirect::Policy::none())
}

fn install_provider() {
    static ONCE: Once = Once::new();
    // An error says that the test installed one itself: as good.
    ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
}
