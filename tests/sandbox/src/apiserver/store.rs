//! The objects, their one revision counter, and the history that watches are served from.
//!
//! Plays etcd and the registry before it. Every change is recorded with the object before and
//! after, so that a watch with a selector can tell an object that began to match from one that
//! changed. Knows nothing of users, faults or HTTP.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::kinds::{KINDS, Kind};
use super::object::{self, NodePort};
use super::selector::Selector;
use super::status::Status;

/// Changes kept for watches that resume; older revisions answer 410. Far above what one test makes,
/// as the real server keeps five minutes of etcd's history.
const HISTORY_MAX: usize = 50_000;
/// Paged lists under way at a time; the oldest one's tokens expire beyond that.
const SNAPSHOTS_MAX: usize = 64;

type Name = (String, String);

#[derive(Debug)]
pub(super) struct Store {
    revision: u64,
    /// The newest revision that watches cannot resume from any more.
    compacted: u64,
    objects: BTreeMap<(&'static str, &'static str), BTreeMap<Name, Arc<Value>>>,
    history: VecDeque<Change>,
    node_ports: BTreeSet<NodePort>,
    snapshots: VecDeque<(u64, String, Vec<Arc<Value>>)>,
    /// While set, changes are recorded but no watch ever tells of them.
    pub(super) silent: bool,
    head: watch::Sender<u64>,
}

/// One change of one object.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) kind: &'static Kind,
    pub(super) before: Option<Arc<Value>>,
    /// The object now; of a deletion, its last state with the deletion's revision.
    pub(super) object: Arc<Value>,
    pub(super) deleted: bool,
    pub(super) silent: bool,
}

/// What a delete came to.
#[derive(Debug)]
pub(super) enum Deleted {
    /// The object is gone; its last state.
    Gone(Arc<Value>),
    /// Finalizers hold it: it carries a deletionTimestamp now.
    Marked(Arc<Value>),
}

// === impl Store ===

impl Store {
    pub(super) fn new() -> Self {
        let mut store = Self {
            revision: 1,
            compacted: 0,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            node_ports: BTreeSet::new(),
            snapshots: VecDeque::new(),
            silent: false,
            head: watch::Sender::new(1),
        };
        let namespaces = &KINDS[0];
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            let namespace = json!({"metadata": {"name": name}});
            store
                .create(namespaces, None, namespace)
                .expect("a first namespace must be accepted");
        }
        store
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Resolves with each new revision.
    pub(super) fn head(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    pub(super) fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.objects
            .get(&(kind.group, kind.plural))?
            .get(&key)
            .cloned()
    }

    pub(super) fn list(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        selector: &Selector,
    ) -> Vec<Arc<Value>> {
        let objects = self
            .objects
            .get(&(kind.group, kind.plural))
            .into_iter()
            .flatten();
        objects
            .filter(|((ns, _), _)| namespace.is_none_or(|wanted| wanted == ns))
            .map(|(_, object)| object)
            .filter(|object| selector.matches(object))
            .cloned()
            .collect()
    }

    pub(super) fn create(
        &mut self,
        kind: &'static Kind,
        namespace: Option<&str>,
        mut object: Value,
    ) -> Result<Arc<Value>, Status> {
        self.prepare(kind, namespace, &mut object)?;
        let name = text(&object, "name");
        if !text(&object, "resourceVersion").is_empty() {
            let why = "resourceVersion should not be set on objects to be created";
            return Err(Status::new(500, "", why));
        }
        object::validate(kind, &object)?;
        if let Some(namespace) = namespace {
            let found = self.get(&KINDS[0], "", namespace);
            let found = found.ok_or_else(|| Status::not_found(&KINDS[0], namespace))?;
            if found["metadata"]["deletionTimestamp"].is_string() {
                return Err(Status::terminating(kind, &name, namespace));
            }
        }
        if self
            .get(kind, namespace.unwrap_or_default(), &name)
            .is_some()
        {
            return Err(Status::already_exists(kind, &name));
        }
        object::complete(kind, &mut object, None, &self.node_ports)?;
        object["metadata"]["uid"] = json!(object::uid());
        object["metadata"]["creationTimestamp"] = json!(object::timestamp());
        Ok(self.record(kind, None, object))
    }

    /// Replaces an object, or its status alone. True: it was created.
    pub(super) fn update(
        &mut self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
        mut object: Value,
        status_only: bool,
    ) -> Result<(Arc<Value>, bool), Status> {
        let given = text(&object, "name");
        if given != name {
            let why = format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            );
            return Err(Status::bad_request(why));
        }
        let Some(before) = self.get(kind, namespace.unwrap_or_default(), name) else {
            let unversioned = text(&object, "resourceVersion").is_empty();
            if kind.create_on_update && unversioned && !status_only {
                return self
                    .create(kind, namespace, object)
                    .map(|created| (created, true));
            }
            return Err(Status::not_found(kind, name));
        };
        self.prepare(kind, namespace, &mut object)?;
        check_preconditions(kind, name, &before, &object["metadata"])?;
        if status_only {
            let status = object["status"].take();
            object = before.as_ref().clone();
            object["status"] = status;
        } else if kind.status {
            copy_or_remove(&before, &mut object, "status");
        }
        object::validate(kind, &object)?;
        object::complete(kind, &mut object, Some(&before), &self.node_ports)?;
        for field in [
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ] {
            copy_or_remove(&before["metadata"], &mut object["metadata"], field);
        }
        object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
        if object == *before {
            return Ok((before, false));
        }
        let released = object["metadata"]["deletionTimestamp"].is_string()
            && kind.kind != "Namespace"
            && !has_finalizers(&object);
        if released {
            return Ok((self.remove(kind, &before), false));
        }
        Ok((self.record(kind, Some(before), object), false))
    }

    pub(super) fn delete(
        &mut self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
        preconditions: &Value,
    ) -> Result<Deleted, Status> {
        let before = self
            .get(kind, namespace.unwrap_or_default(), name)
            .ok_or_else(|| Status::not_found(kind, name))?;
        check_preconditions(kind, name, &before, preconditions)?;
        let namespace_kind = kind.kind == "Namespace";
        if !namespace_kind && !has_finalizers(&before) {
            return Ok(Deleted::Gone(self.remove(kind, &before)));
        }
        if before["metadata"]["deletionTimestamp"].is_string() {
            return Ok(Deleted::Marked(before));
        }
        let mut marked = before.as_ref().clone();
        marked["metadata"]["deletionTimestamp"] = json!(object::timestamp());
        if namespace_kind {
            marked["status"]["phase"] = json!("Terminating");
        }
        Ok(Deleted::Marked(self.record(kind, Some(before), marked)))
    }

    /// Removes a namespace with everything in it, as the namespace controller ends up doing.
    pub(super) fn finish_namespace(&mut self, name: &str) {
        for kind in KINDS.iter().filter(|kind| kind.namespaced) {
            for object in self.list(kind, Some(name), &Selector::default()) {
                self.remove(kind, &object);
            }
        }
        if let Some(namespace) = self.get(&KINDS[0], "", name) {
            self.remove(&KINDS[0], &namespace);
        }
    }

    /// Stores an object as it is, unread: what an older or broken writer left in etcd.
    pub(super) fn put_raw(&mut self, kind: &'static Kind, mut object: Value) -> Arc<Value> {
        object["apiVersion"] = json!(kind.api_version());
        object["kind"] = json!(kind.kind);
        let before = self.get(kind, &text(&object, "namespace"), &text(&object, "name"));
        for (field, new) in [
            ("uid", object::uid()),
            ("creationTimestamp", object::timestamp()),
        ] {
            if object["metadata"][field].is_null() {
                let kept = before.as_ref().map(|b| b["metadata"][field].clone());
                object["metadata"][field] = kept.unwrap_or_else(|| json!(new));
            }
        }
        self.record(kind, before, object)
    }

    /// What happened after `revision`, or 410 where history does not reach back that far.
    pub(super) fn changes_after(
        &self,
        revision: u64,
    ) -> Result<impl Iterator<Item = &Change>, Status> {
        if revision < self.compacted {
            return Err(Status::too_old(revision, self.compacted));
        }
        let first = self
            .history
            .partition_point(|change| change.revision <= revision);
        Ok(self.history.range(first..))
    }

    /// Forgets history: every watch that resumes from before now gets 410.
    pub(super) fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
        self.snapshots.clear();
    }

    /// Lets every continue token expire.
    pub(super) fn expire_snapshots(&mut self) {
        self.snapshots.clear();
    }

    /// Keeps a paged list, so that its further pages show the same moment.
    pub(super) fn keep_snapshot(&mut self, list: &str, objects: Vec<Arc<Value>>) {
        if self.snapshots.len() == SNAPSHOTS_MAX {
            self.snapshots.pop_front();
        }
        self.snapshots
            .push_back((self.revision, list.to_owned(), objects));
    }

    pub(super) fn snapshot(&self, revision: u64, list: &str) -> Option<&[Arc<Value>]> {
        let found = self
            .snapshots
            .iter()
            .find(|(r, l, _)| *r == revision && l == list)?;
        Some(&found.2)
    }

    /// Checks what belongs to the request, not to the object: kind, namespace, name.
    fn prepare(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        object: &mut Value,
    ) -> Result<(), Status> {
        let refuse = |why: &str| Err(Status::bad_request(why));
        if object["kind"]
            .as_str()
            .is_some_and(|given| given != kind.kind)
        {
            return refuse(&format!(
                "{} in version \"v1\" cannot be handled as a {}: no kind of that name here",
                object["kind"].as_str().unwrap_or_default(),
                kind.kind,
            ));
        }
        let Some(metadata) = object::metadata(object) else {
            return refuse("the object provided is unrecognized (must be of type object)");
        };
        if let Some(prefix) = metadata.get("generateName").and_then(Value::as_str)
            && metadata.get("name").is_none_or(|name| name == "")
        {
            let suffix: String = object::uid().chars().take(5).collect();
            let name = format!("{prefix}{suffix}");
            metadata.insert("name".to_owned(), json!(name));
        }
        match (namespace, metadata.get("namespace").and_then(Value::as_str)) {
            (Some(asked), Some(given)) if asked != given => {
                return refuse(
                    "the namespace of the provided object does not match the namespace sent on \
                     the request",
                );
            }
            (Some(asked), _) => drop(metadata.insert("namespace".to_owned(), json!(asked))),
            (None, _) => drop(metadata.remove("namespace")),
        }
        object["apiVersion"] = json!(kind.api_version());
        object["kind"] = json!(kind.kind);
        object::drop_nulls(object);
        Ok(())
    }

    fn remove(&mut self, kind: &'static Kind, before: &Arc<Value>) -> Arc<Value> {
        let last = before.as_ref().clone();
        self.commit(kind, Some(before.clone()), last, true)
    }

    fn record(
        &mut self,
        kind: &'static Kind,
        before: Option<Arc<Value>>,
        object: Value,
    ) -> Arc<Value> {
        self.commit(kind, before, object, false)
    }

    fn commit(
        &mut self,
        kind: &'static Kind,
        before: Option<Arc<Value>>,
        mut object: Value,
        deleted: bool,
    ) -> Arc<Value> {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let key = (text(&object, "namespace"), text(&object, "name"));
        let object = Arc::new(object);
        if kind.kind == "Service" {
            for port in before.iter().flat_map(|b| object::node_ports_of(b)) {
                self.node_ports.remove(&port);
            }
        }
        let objects = self.objects.entry((kind.group, kind.plural)).or_default();
        if deleted {
            objects.remove(&key);
        } else {
            objects.insert(key, object.clone());
            if kind.kind == "Service" {
                self.node_ports.append(&mut object::node_ports_of(&object));
            }
        }
        if self.history.len() == HISTORY_MAX
            && let Some(oldest) = self.history.pop_front()
        {
            self.compacted = oldest.revision;
        }
        let (revision, silent) = (self.revision, self.silent);
        let change = Change {
            revision,
            kind,
            before,
            object: object.clone(),
            deleted,
            silent,
        };
        self.history.push_back(change);
        self.head.send_replace(revision);
        object
    }
}

fn check_preconditions(
    kind: &Kind,
    name: &str,
    before: &Value,
    given: &Value,
) -> Result<(), Status> {
    let stored = &before["metadata"];
    let differs = |field: &str| {
        given[field]
            .as_str()
            .is_some_and(|g| !g.is_empty() && Some(g) != stored[field].as_str())
    };
    if differs("uid") {
        let (asked, found) = (text_of(&given["uid"]), text_of(&stored["uid"]));
        let why = format!(
            "Precondition failed: UID in precondition: {asked}, UID in object meta: {found}"
        );
        return Err(Status::conflict(kind, name, &why));
    }
    if differs("resourceVersion") {
        return Err(Status::modified(kind, name));
    }
    Ok(())
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|list| !list.is_empty())
}

fn copy_or_remove(from: &Value, to: &mut Value, field: &str) {
    if from[field].is_null() {
        if let Some(to) = to.as_object_mut() {
            to.remove(field);
        }
    } else {
        to[field] = from[field].clone();
    }
}

fn text(object: &Value, field: &str) -> String {
    text_of(&object["metadata"][field])
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
