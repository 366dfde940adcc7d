//! The question itself, over HTTP: dialled anew each time, as clients dial, and judged by the status alone.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::health::{Answer, Question};
use crate::causes::chain;
use crate::config::{HealthConfig, Secret};
use crate::publish::tls::{Https, TlsError};

/// The page of every apiserver, which `/readyz` replaced in Kubernetes 1.16.
const HEALTHZ: &str = "/healthz";
/// A local apiserver answers within milliseconds; one that takes longer than this serves nobody.
const ANSWER_WITHIN_MAX: Duration = Duration::from_secs(5);

/// Whoever can be asked for a route's health.
pub trait Probe: Send + Sync {
    /// Asks once. Ends by itself within [`answer_within`].
    fn ask(&self, question: Question) -> BoxFuture<'static, Answer>;
}

/// How long an answer may take: never longer than the wait between two questions.
#[must_use]
pub fn answer_within(config: &HealthConfig) -> Duration {
    config.interval.min(ANSWER_WITHIN_MAX)
}

/// A server's page.
pub(crate) struct HttpProbe {
    https: Https,
    url: reqwest::Url,
    healthz: reqwest::Url,
    token: Option<Secret>,
}

// === impl HttpProbe ===

impl HttpProbe {
    /// Reads certificates; asks nobody anything.
    ///
    /// # Errors
    /// Where a file cannot be used.
    pub(crate) fn new(config: &HealthConfig) -> Result<Self, TlsError> {
        let mut healthz = config.url.clone();
        healthz.set_path(HEALTHZ);
        // What `/readyz` is to leave out may be unknown to the other.
        healthz.set_query(None);
        Ok(Self {
            https: Https::dialling_anew(&config.tls, answer_within(config))?,
            url: config.url.clone(),
            healthz,
            token: config.token.clone(),
        })
    }
}

impl Probe for HttpProbe {
    fn ask(&self, question: Question) -> BoxFuture<'static, Answer> {
        let url = match question {
            Question::Configured => self.url.clone(),
            Question::Healthz => self.healthz.clone(),
        };
        let mut request = self.https.client().get(url);
        if let Some(token) = &self.token {
            // Where the file cannot be read, the backend is not to blame: whoever answers tells by a 401 at worst.
            let token = token.read_again().unwrap_or_else(|_| token.clone());
            request = request.bearer_auth(token.expose());
        }
        let answer = async {
            match request.send().await {
                Ok(response) => Ok(response.status().as_u16()),
                Err(error) => Err(chain(&error.without_url())),
            }
        };
        answer.boxed()
    }
}

/// The way to ask over the network.
///
/// # Errors
/// Where a file cannot be used.
pub fn over_http(config: &HealthConfig) -> Result<Arc<dyn Probe>, TlsError> {
    Ok(Arc::new(HttpProbe::new(config)?))
}
