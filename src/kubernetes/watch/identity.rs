//! Which cluster this is: the UID of its namespace `kube-system`, which survives everything but the cluster.
//!
//! Where it may not be read, the apiserver's address stands in, with a finding. An answer that does not come
//! is waited for: the name is kept for as long as this cluster answers, and under another one our own rows would
//! be a stranger's. Asked again whenever a list or watch begins anew, since whoever answers that may be another.

use std::sync::Arc;
use std::time::Duration;

use crate::causes::chain;
use crate::desired::{Code, Finding, Subject};
use crate::kubernetes::Timing;
use crate::kubernetes::api::{Api, ApiError};
use crate::kubernetes::client::server_url;
use crate::retry::Backoff;
use crate::route::ClusterId;

const BY_NAME: &str = "/api/v1/namespaces/kube-system";
const BY_LIST: &str = "/api/v1/namespaces?fieldSelector=metadata.name%3Dkube-system";

/// As long as so many reads may take is waited for an answer that is only to confirm what is known.
const READS: u32 = 2;
/// So many failures in a row are no restart of the apiserver any more.
const FAILURES_MAX: u32 = 5;

/// A name for the cluster, and what is wrong with it.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) cluster: ClusterId,
    /// The UID, unless it may not be read or a name was configured instead.
    pub(super) kube_system: Option<String>,
    pub(super) finding: Option<Finding>,
}

/// Asks until an answer is had; an apiserver that is down says nothing about who it is.
pub(super) async fn identify(api: Arc<Api>) -> Identity {
    let mut backoff = Backoff::new(api.timing.backoff_first, api.timing.backoff_max);
    loop {
        let error = match ask(&api).await {
            Ok(identity) => return identity,
            Err(error) => chain(&error),
        };
        let wait = backoff.fail();
        if backoff.failures() == FAILURES_MAX {
            tracing::warn!(
                error,
                "no route before the UID of `kube-system` can be read"
            );
        } else {
            tracing::debug!(error, "cluster not identified yet");
        }
        tokio::time::sleep(wait).await;
    }
}

/// Asks again; `None` where no answer comes in time, as a refinement must not keep the view from going on.
pub(super) async fn identify_again(api: Arc<Api>) -> Option<Identity> {
    let wait = patience(&api.timing);
    tokio::time::timeout(wait, identify(api)).await.ok()
}

/// How long the view may wait to be told who answers.
pub(super) fn patience(timing: &Timing) -> Duration {
    timing.get_timeout * READS
}

/// Asks once.
pub(super) async fn ask(api: &Api) -> Result<Identity, ApiError> {
    if let Some(id) = &api.config.cluster_id {
        return Ok(Identity {
            cluster: ClusterId(id.clone()),
            kube_system: None,
            finding: None,
        });
    }
    let uid = match api.get_json(BY_NAME).await {
        Ok(namespace) => match namespace["metadata"]["uid"].as_str() {
            Some(uid) => Some(uid.to_owned()),
            None => return Err(ApiError::NoObject),
        },
        Err(ApiError::NotFound) => None,
        Err(ApiError::Forbidden(_)) => match api.get_json(BY_LIST).await {
            // Servers that ignore the field selector send all of them.
            Ok(list) => list["items"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|namespace| namespace["metadata"]["name"] == "kube-system")
                .and_then(|namespace| namespace["metadata"]["uid"].as_str())
                .map(str::to_owned),
            Err(ApiError::Forbidden(_) | ApiError::NotFound) => None,
            Err(error) => return Err(error),
        },
        Err(error) => return Err(error),
    };
    match uid.filter(|uid| !uid.is_empty()) {
        Some(uid) => Ok(Identity {
            cluster: ClusterId(uid.clone()),
            kube_system: Some(uid),
            finding: None,
        }),
        None => by_address(api).await,
    }
}

/// Names the cluster by its apiserver's address.
async fn by_address(api: &Api) -> Result<Identity, ApiError> {
    let url = server_url(&api.config).await.map_err(ApiError::Connect)?;
    Ok(Identity {
        cluster: ClusterId(url),
        kube_system: None,
        finding: Some(unidentified(
            "the UID of `kube-system` cannot be read, so the apiserver's address names this cluster",
        )),
    })
}

// === impl Identity ===

/// What another answer says about the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learnt {
    Nothing,
    /// The right to read it came or went.
    Rights,
    /// Another cluster answers.
    Another,
}

impl Identity {
    /// Another cluster was met and has not told what it has.
    pub(super) fn not_listed_yet(&self) -> Finding {
        let cluster = &self.cluster.0;
        let text =
            format!("the apiserver answers as cluster `{cluster}`, which could not be listed yet");
        Finding::new(Code::AnotherCluster, Subject::Cluster, text)
            .hint("nothing changes meanwhile; see `error` of each source in `/status.json`")
    }

    /// Takes another answer over, but not its name unless it is another cluster's.
    pub(super) fn learn(&mut self, again: Self) -> Learnt {
        match (&self.kube_system, again.kube_system) {
            (Some(known), Some(uid)) if *known != uid => {
                *self = Self {
                    kube_system: Some(uid),
                    ..again
                };
                return Learnt::Another;
            }
            (known, None) if known.is_some() => {
                let lost = "the UID of `kube-system` cannot be read any more, so another cluster would not be noticed";
                let finding = again.finding.map(|_| unidentified(lost));
                if self.finding == finding {
                    return Learnt::Nothing;
                }
                self.finding = finding;
            }
            (known, uid) if *known == uid && self.finding == again.finding => {
                return Learnt::Nothing;
            }
            (_, uid) => (self.kube_system, self.finding) = (uid, again.finding),
        }
        Learnt::Rights
    }
}

fn unidentified(consequence: &str) -> Finding {
    Finding::new(
        Code::RightMissing,
        Subject::Cluster,
        format!("no right to `get` resource `namespaces` in apiGroup `\"\"`: {consequence}"),
    )
    .hint("grant it, or set `kubernetes.cluster_id` to a name that never changes")
}
