//! Which cluster this is: the UID of its namespace `kube-system`, which survives everything but the cluster.
//!
//! Where it may not be read, the apiserver's address stands in, with a finding.

use std::sync::Arc;

use crate::causes::chain;
use crate::desired::{Code, Finding, Subject};
use crate::kubernetes::api::{Api, ApiError};
use crate::kubernetes::client::server_url;
use crate::retry::Backoff;
use crate::route::ClusterId;

const BY_NAME: &str = "/api/v1/namespaces/kube-system";
const BY_LIST: &str = "/api/v1/namespaces?fieldSelector=metadata.name%3Dkube-system";

/// A name for the cluster, and what is wrong with it.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) cluster: ClusterId,
    pub(super) finding: Option<Finding>,
}

/// Asks until an answer is had; an apiserver that is down says nothing about who it is.
pub(super) async fn identify(api: Arc<Api>) -> Identity {
    let mut backoff = Backoff::new(api.timing.backoff_first, api.timing.backoff_max);
    loop {
        match ask(&api).await {
            Ok(identity) => return identity,
            Err(error) => tracing::debug!(error = chain(&error), "cluster not identified yet"),
        }
        tokio::time::sleep(backoff.fail()).await;
    }
}

/// Asks once.
pub(super) async fn ask(api: &Api) -> Result<Identity, ApiError> {
    if let Some(id) = &api.config.cluster_id {
        return Ok(Identity {
            cluster: ClusterId(id.clone()),
            finding: None,
        });
    }
    let uid = match api.get_json(BY_NAME).await {
        Ok(namespace) => namespace["metadata"]["uid"].as_str().map(str::to_owned),
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
            cluster: ClusterId(uid),
            finding: None,
        }),
        None => by_address(api).await,
    }
}

/// Names the cluster by its apiserver's address.
pub(super) async fn by_address(api: &Api) -> Result<Identity, ApiError> {
    let url = server_url(&api.config).await.map_err(ApiError::Connect)?;
    Ok(Identity {
        cluster: ClusterId(url),
        finding: Some(unidentified()),
    })
}

fn unidentified() -> Finding {
    let consequence =
        "the UID of `kube-system` cannot be read, so the apiserver's address names this cluster";
    Finding::new(
        Code::RightMissing,
        Subject::Cluster,
        format!("no right to `get` resource `namespaces` in apiGroup `\"\"`: {consequence}"),
    )
    .hint("grant it, or set `kubernetes.cluster_id` to a name that never changes")
}
