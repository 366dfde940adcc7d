//! Is what left its source really gone? A fresh read decides; without one nothing is ever taken away.
//!
//! A few are asked for one by one, many by one list. A read that fails decides nothing. Of what is gone it is
//! also told how sure that is: whether the object itself said so, and whether its namespace went with it.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, stream};
use serde_json::Value;

use super::view::{Absence, SourceId};
use crate::causes::chain;
use crate::kubernetes::api::{Api, ApiError, Resource};

/// More than so many are read by one list.
const GETS_MAX: usize = 20;
/// Where namespaces are read.
const NAMESPACES: &str = "/api/v1/namespaces";
/// Reads under way at once.
const GETS_IN_FLIGHT: usize = 8;

/// What the reads say.
#[derive(Default)]
pub(super) struct Confirmation {
    /// Really gone.
    pub(super) gone: Vec<Gone>,
    /// Still there, unchanged in what makes it ours.
    pub(super) there: Vec<Absence>,
    /// Could not be decided.
    pub(super) undecided: Vec<Absence>,
    /// Why the last of them could not.
    pub(super) error: Option<String>,
    /// Resources that may not be read one by one.
    pub(super) get_forbidden: BTreeSet<&'static str>,
}

/// One that is gone.
#[derive(Clone, Debug)]
pub(super) struct Gone {
    pub(super) absence: Absence,
    /// The object was read, and is no longer ours or about to go; of one that is only missing no one can tell why.
    pub(super) seen: bool,
    /// Its namespace is deleted or being deleted.
    pub(super) with_namespace: bool,
}

enum Verdict {
    Gone { seen: bool },
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
    let namespaces: BTreeSet<String> = confirmation
        .gone
        .iter()
        .map(|gone| gone.absence.key.namespace.clone())
        .filter(|namespace| !namespace.is_empty())
        .collect();
    let deleted = deleted_namespaces(api, namespaces).await;
    for gone in &mut confirmation.gone {
        gone.with_namespace = deleted.contains(&gone.absence.key.namespace);
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
            Verdict::Gone { seen } => confirmation.gone.push(gone(absence, seen)),
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
        Err(ApiError::NotFound) => return Verdict::Gone { seen: false },
        Ok(object) => match object["metadata"]["uid"].as_str() {
            Some(uid) if uid != absence.uid || has_left(&object, resource) => {
                return Verdict::Gone { seen: true };
            }
            Some(_) => Verdict::There,
            None => Verdict::Undecided(ApiError::NoObject),
        },
        Err(ApiError::Forbidden(_)) => Verdict::Forbidden,
        Err(error) => Verdict::Undecided(error),
    };
    // A namespace that is being deleted takes its Services, and perhaps our right to read them, with it.
    let namespace = &absence.key.namespace;
    if !namespace.is_empty() && namespace_is_gone(api, namespace).await == Ok(true) {
        return Verdict::Gone { seen: false };
    }
    verdict
}

/// Whether it is no longer one of those that its source lists.
fn has_left(object: &Value, resource: Resource) -> bool {
    let labels = &object["metadata"]["labels"];
    resource
        .label
        .is_some_and(|label| labels[label].is_null() || is_deleting(object))
}

fn is_deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

fn gone(absence: Absence, seen: bool) -> Gone {
    Gone {
        absence,
        seen,
        with_namespace: false,
    }
}

/// Namespaces cannot be read one by one.
#[derive(Debug, PartialEq, Eq)]
struct Unreadable;

async fn namespace_is_gone(api: &Api, namespace: &str) -> Result<bool, Unreadable> {
    match api.get_json(&format!("{NAMESPACES}/{namespace}")).await {
        Ok(namespace) => Ok(is_deleting(&namespace)),
        Err(ApiError::NotFound) => Ok(true),
        Err(_) => Err(Unreadable),
    }
}

/// Which of these namespaces are deleted or about to be. What cannot be read counts as alive.
async fn deleted_namespaces(api: &Api, namespaces: BTreeSet<String>) -> BTreeSet<String> {
    let mut deleted = BTreeSet::new();
    if namespaces.is_empty() {
        return deleted;
    }
    let mut one_by_one = namespaces.len() <= GETS_MAX;
    if one_by_one {
        let mut answers = stream::iter(namespaces.clone())
            .map(|namespace| async move {
                let gone = namespace_is_gone(api, &namespace).await;
                (namespace, gone)
            })
            .buffer_unordered(GETS_IN_FLIGHT);
        while let Some((namespace, gone)) = answers.next().await {
            match gone {
                Ok(true) => drop(deleted.insert(namespace)),
                Ok(false) => {}
                Err(Unreadable) => one_by_one = false,
            }
        }
    }
    if !one_by_one && let Ok(list) = api.get_json(NAMESPACES).await {
        let Some(items) = list["items"].as_array() else {
            return deleted;
        };
        let alive = items.iter().filter(|namespace| !is_deleting(namespace));
        let alive: BTreeSet<&str> = alive
            .filter_map(|namespace| namespace["metadata"]["name"].as_str())
            .collect();
        deleted = namespaces;
        deleted.retain(|namespace| !alive.contains(namespace.as_str()));
    }
    deleted
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
            confirmation.gone.push(gone(absence, false));
        }
    }
}
