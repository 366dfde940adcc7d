//! The signing key: RSA 2048, made by the `rsa` crate, used through ring.

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rsa::RsaPrivateKey;
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};
use rsa::traits::PublicKeyParts;
use serde_json::{Value, json};

/// The smallest size ring verifies; UAA's own examples use it too.
const BITS: usize = 2048;

pub(super) struct SigningKey {
    id: String,
    pair: RsaKeyPair,
    public_pem: String,
    modulus: String,
    exponent: String,
}

// === impl SigningKey ===

impl SigningKey {
    /// Takes a part of a second of CPU, hence off the async threads.
    pub(super) async fn generate(id: String) -> anyhow::Result<Self> {
        tokio::task::spawn_blocking(move || Self::generate_now(id)).await?
    }

    fn generate_now(id: String) -> anyhow::Result<Self> {
        let private = RsaPrivateKey::new(&mut rand::rngs::OsRng, BITS).context("RSA key")?;
        let public = private.to_public_key();
        let der = private.to_pkcs8_der().context("RSA key as PKCS#8")?;
        let pair = RsaKeyPair::from_pkcs8(der.as_bytes())
            .map_err(|rejected| anyhow::anyhow!("RSA key: {rejected}"))?;
        Ok(Self {
            id,
            pair,
            public_pem: public
                .to_public_key_pem(LineEnding::LF)?
                .trim_end()
                .to_owned(),
            modulus: URL_SAFE_NO_PAD.encode(public.n().to_bytes_be()),
            exponent: URL_SAFE_NO_PAD.encode(public.e().to_bytes_be()),
        })
    }

    pub(super) fn jwk(&self) -> Value {
        json!({
            "kty": "RSA",
            "e": self.exponent,
            "use": "sig",
            "kid": self.id,
            "alg": "RS256",
            "value": self.public_pem,
            "n": self.modulus,
        })
    }

    /// The claims as a compact JWS.
    pub(super) fn sign(&self, claims: &Value) -> String {
        let header = json!({ "alg": "RS256", "kid": self.id, "typ": "JWT" });
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(claims.to_string()));
        let mut signature = vec![0; self.pair.public().modulus_len()];
        self.pair
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                token.as_bytes(),
                &mut signature,
            )
            .expect("a signature as long as the modulus must fit");
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        token
    }
}

/// A random version 4 UUID.
pub fn random_guid() -> String {
    let value = (rand::random::<u128>() & !(0xf000 << 64) & !(0b11 << 62)) | (4 << 76) | (2 << 62);
    let hex = format!("{value:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}
