//! Is what left its source really gone? A fresh read decides; without one nothing is ever taken away.
//!
//! A few are asked for one by one, many by one list. A read that fails decides nothing.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, stream};
use serde_json::Value;

use super::view::{Absence, SourceId};
use crate::causes::chain;
use crate::kubernetes::api::{Api, ApiError, Resource};

/// More than so many are read by one list.
const GETS_MAX: usize = 20;
/// Reads under way at once.
const GETS_IN_FLIGHT: usize = 8;

/// What the reads say.
#[derive(Default)]
pub(super) struct Confirmation {
    /// Really gone.
    pub(super) gone: Vec<Absence>,
    /// Still there, unchanged in what makes it ours.
    pub(super) there: Vec<Absence>,
    /// Could not be decided.
    pub(super) undecided: Vec<Absence>,
    /// Why the last of them could not.
    pub(super) error: Option<String>,
    /// Resources that may not be read one by one.
    pub(super) get_forbidden: BTreeSet<&'static str>,
}

enum Verdict {
    Gone,
    There,
    Forbidden,
    Undecided(ApiError),
}

/// Reads afresh what left. `list_only` names the resources for which `get` is known to be refused; what a read
/// on its own left `undecided` is looked for in a list next.
pub(super) async fn confirm(
    api: &Api,
    absences: Vec<Absence>,
    list_only: &BTreeSet<&'static str>,
    undecided: &BTreeSet<Absence>,
) -> Confirmation {
    let mut by_source: BTreeMap<SourceId, Vec<Absence>> = BTreeMap::new();
    for absence in absences {
        by_source.entry(absence.source).or_default().push(absence);
    }
    let mut confirmation = Confirmation::default();
    for (source, absences) in by_source {
        let Some(resource) = source.resource() else {
            continue;
        };
        let one_by_one = absences.len() <= GETS_MAX
            && !list_only.contains(resource.name())
            && undecided.is_disjoint(&absences.iter().cloned().collect());
        let rest = if one_by_one {
            confirm_by_get(api, resource, absences, &mut confirmation).await
        } else {
            absences
        };
        if !rest.is_empty() {
            confirm_by_list(api, resource, rest, &mut confirmation).await;
        }
    }
    confirmation
}

/// Returns those that may not be read one by one.
async fn confirm_by_get(
    api: &Api,
    resource: Resource,
    absences: Vec<Absence>,
    confirmation: &mut Confirmation,
) -> Vec<Absence> {
    let mut verdicts = stream::iter(absences)
        .map(|absence| async move {
            let verdict = look(api, resource, &absence).await;
            (absence, verdict)
        })
        .buffer_unordered(GETS_IN_FLIGHT);
    let mut refused = Vec::new();
    while let Some((absence, verdict)) = verdicts.next().await {
        match verdict {
            Verdict::Gone => confirmation.gone.push(absence),
            Verdict::There => confirmation.there.push(absence),
            Verdict::Forbidden => {
                confirmation.get_forbidden.insert(resource.name());
                refused.push(absence);
            }
            Verdict::Undecided(error) => {
                confirmation.undecided.push(absence);
                confirmation.error = Some(chain(&error));
            }
        }
    }
    refused
}

async fn look(api: &Api, resource: Resource, absence: &Absence) -> Verdict {
    let verdict = match api.get(resource, &absence.key).await {
        Err(ApiError::NotFound) => return Verdict::Gone,
        Ok(object) if is_gone(&object, resource, &absence.uid) => return Verdict::Gone,
        Ok(_) => Verdict::There,
        Err(ApiError::Forbidden(_)) => Verdict::Forbidden,
        Err(error) => Verdict::Undecided(error),
    };
    // A namespace that is being deleted takes its Services, and perhaps our right to read them, with it.
    let namespace = &absence.key.namespace;
    if !namespace.is_empty() && namespace_is_gone(api, namespace).await {
        return Verdict::Gone;
    }
    verdict
}

fn is_gone(object: &Value, resource: Resource, uid: &str) -> bool {
    let metadata = &object["metadata"];
    metadata["uid"] != uid
        || resource
            .label
            .is_some_and(|label| metadata["labels"][label].is_null() || is_deleting(object))
}

fn is_deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

async fn namespace_is_gone(api: &Api, namespace: &str) -> bool {
    match api
        .get_json(&format!("/api/v1/namespaces/{namespace}"))
        .await
    {
        Ok(namespace) => is_deleting(&namespace),
        Err(error) => matches!(error, ApiError::NotFound),
    }
}

async fn confirm_by_list(
    api: &Api,
    resource: Resource,
    absences: Vec<Absence>,
    confirmation: &mut Confirmation,
) {
    let listed = match api.list(resource).await {
        Ok(listed) => listed,
        Err(error) => {
            confirmation.undecided.extend(absences);
            confirmation.error = Some(chain(&error));
            return;
        }
    };
    // A Node that is being deleted is still one; a Service is not.
    let counts = |deleting: bool| !(deleting && resource.label.is_some());
    let alive = listed.items.iter().filter(|item| counts(item.deleting));
    let alive: BTreeMap<_, _> = alive.map(|item| (&item.key, &item.uid)).collect();
    for absence in absences {
        if alive.get(&absence.key) == Some(&&absence.uid) {
            confirmation.there.push(absence);
        } else {
            confirmation.gone.push(absence);
        }
    }
}
