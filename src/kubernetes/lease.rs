//! The Lease of coordination.k8s.io/v1, read and written under the version it was last seen in.
//!
//! It is kept as the apiserver gave it, so that what others put there stays. Who may hold it, and what follows from
//! that, is `crate::lease`'s affair.

use std::sync::Arc;

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Timing;
use super::api::{Api, ApiError};
use crate::config::KubernetesConfig;
use crate::outside::Outside;

/// Where the holder of each contested name is written.
const NAMES: &str = "route-sync.cloudfoundry.org/holders";
/// Where its holder tells the others what operators approved.
const APPROVALS: &str = "route-sync.cloudfoundry.org/approvals";
const GROUP: &str = "/apis/coordination.k8s.io/v1";
/// What client-go writes beside an empty holder.
const RELEASED_SECONDS: u64 = 1;

/// The Lease, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Of the object: one of the same name that was made anew has another.
    pub uid: String,
    /// Nobody where it is empty.
    pub holder: String,
    /// `leaseTransitions`.
    pub generation: u64,
    /// When its holder says that it renewed it. Compared with itself alone: a change is a sign of life.
    pub renewed: String,
    /// What a write has to name.
    pub version: String,
    /// Who holds which contested name, as its holder wrote it.
    pub names: Option<String>,
    /// What operators approved, as its holder wrote it.
    pub approvals: Option<String>,
}

/// What a holder tells the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Who holds which contested name; `None` leaves what stands.
    pub names: Option<String>,
    /// What operators approved; `None` leaves nothing, because it is good for one term alone.
    pub approvals: Option<String>,
}

/// What to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Of the record that this one replaces; `None` makes a new one.
    pub version: Option<String>,
    /// Nobody where it is empty.
    pub holder: String,
    /// `leaseTransitions`.
    pub generation: u64,
    /// It changes hands.
    pub acquires: bool,
}

/// One Lease.
pub struct LeaseObject {
    api: Api,
    outside: Arc<dyn Outside>,
    namespace: String,
    name: String,
    /// `leaseDurationSeconds`, for whoever else reads it.
    seconds: u64,
    last: Value,
}

// === impl Record ===

impl Record {
    /// What differs whenever its holder has written.
    #[must_use]
    pub fn sign_of_life(&self) -> (&str, u64, &str) {
        (&self.holder, self.generation, &self.renewed)
    }

    fn of(lease: &Value) -> Self {
        let (metadata, spec) = (&lease["metadata"], &lease["spec"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let note = |name| metadata["annotations"][name].as_str().map(str::to_owned);
        Self {
            uid: text(&metadata["uid"]),
            holder: text(&spec["holderIdentity"]),
            generation: spec["leaseTransitions"].as_u64().unwrap_or_default(),
            renewed: text(&spec["renewTime"]),
            version: text(&metadata["resourceVersion"]),
            names: note(NAMES),
            approvals: note(APPROVALS),
        }
    }
}

// === impl LeaseObject ===

impl LeaseObject {
    /// Asks nobody anything yet.
    #[must_use]
    pub fn new(
        outside: Arc<dyn Outside>,
        config: KubernetesConfig,
        (namespace, name): (&str, &str),
        seconds: u64,
    ) -> Self {
        Self {
            api: Api::new(config, Timing::default(), outside.clone()),
            outside,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            seconds,
            last: Value::Null,
        }
    }

    /// `namespace/name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The ways out that it was made with.
    #[must_use]
    pub fn outside(&self) -> Arc<dyn Outside> {
        self.outside.clone()
    }

    /// As it is now.
    ///
    /// # Errors
    /// Where the apiserver gives none.
    pub async fn read(&mut self) -> Result<Record, ApiError> {
        let path = format!("{}/{}", self.collection(), self.name);
        self.learn(self.api.get_json(&path).await?)
    }

    /// Writes a draft over the version it names, with what its holder tells.
    ///
    /// # Errors
    /// 409 where another version stands.
    pub async fn write(&mut self, draft: &Draft, notes: &Notes) -> Result<Record, ApiError> {
        let now = Timestamp::UNIX_EPOCH.saturating_add(self.outside.wall_clock());
        let now = format!("{:.6}", now.unwrap_or(Timestamp::UNIX_EPOCH));
        let (method, path, mut lease) = match &draft.version {
            Some(version) if self.last["metadata"]["resourceVersion"] == **version => {
                let path = format!("{}/{}", self.collection(), self.name);
                (Method::PUT, path, self.last.clone())
            }
            // It was read by somebody else, or not at all.
            Some(_) => return Err(ApiError::NoObject),
            None => {
                let metadata = json!({"namespace": self.namespace, "name": self.name});
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": metadata, "spec": {},
                });
                (Method::POST, self.collection(), lease)
            }
        };
        let annotations = &mut lease["metadata"]["annotations"];
        if let Some(names) = &notes.names {
            annotations[NAMES] = json!(names);
        }
        match (&notes.approvals, annotations.as_object_mut()) {
            (Some(approvals), _) => annotations[APPROVALS] = json!(approvals),
            (None, Some(annotations)) => drop(annotations.remove(APPROVALS)),
            (None, None) => {}
        }
        let released = draft.holder.is_empty();
        let spec = &mut lease["spec"];
        spec["holderIdentity"] = json!(draft.holder);
        spec["leaseTransitions"] = json!(draft.generation);
        spec["leaseDurationSeconds"] = json!(if released {
            RELEASED_SECONDS
        } else {
            self.seconds
        });
        spec["renewTime"] = json!(now);
        if draft.acquires || released {
            spec["acquireTime"] = json!(now);
        }
        let written = self.api.write_json(method, &path, &lease).await?;
        self.learn(written)
    }

    fn collection(&self) -> String {
        format!("{GROUP}/namespaces/{}/leases", self.namespace)
    }

    fn learn(&mut self, lease: Value) -> Result<Record, ApiError> {
        if !lease["spec"].is_object() || !lease["metadata"]["resourceVersion"].is_string() {
            return Err(ApiError::NoObject);
        }
        let record = Record::of(&lease);
        self.last = lease;
        Ok(record)
    }
}
