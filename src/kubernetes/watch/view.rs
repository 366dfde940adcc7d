//! What has been delivered so far, source by source, and the snapshot it amounts to. Pure: no clock, no I/O.
//!
//! An object that left its source is only marked absent where its absence has to be confirmed; until then the
//! snapshot goes on showing it. An object that cannot be read is a finding beside what was last known of it.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::{Code, Finding, HTTP_LABEL, Subject, TCP_LABEL};
use crate::kubernetes::api::Resource;
use crate::kubernetes::snapshot::{Endpoints, Node, Service, Snapshot};
use crate::kubernetes::wire::{Item, Kind, Object, ObjectKey};
use crate::route::{ClusterId, ServiceKey};

/// One of the lists that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SourceId {
    HttpServices,
    TcpServices,
    Nodes,
    HttpEndpoints,
    TcpEndpoints,
}

/// How a source fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    /// What it reads; not known of endpoints before discovery.
    pub(super) resource: Option<Resource>,
    /// Listed again and again, because `watch` is refused.
    pub(super) polling: bool,
    /// The verb that is refused.
    pub(super) forbidden: Option<&'static str>,
    /// What is wrong at the moment.
    pub(super) error: Option<String>,
}

/// An object that left its source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Absence {
    pub(super) source: SourceId,
    pub(super) key: ObjectKey,
    pub(super) uid: String,
}

/// Everything delivered so far.
#[derive(Default)]
pub(super) struct View {
    sources: BTreeMap<SourceId, Entries>,
    /// Numbers the deliveries; of two copies of one Service the later wins.
    delivery: u64,
    changed: bool,
}

#[derive(Default)]
struct Entries {
    synced: bool,
    objects: BTreeMap<ObjectKey, Entry>,
    absent: BTreeSet<ObjectKey>,
    status: Option<Status>,
    stale: bool,
}

struct Entry {
    uid: String,
    resource_version: String,
    delivery: u64,
    /// What was last known of it.
    object: Option<Object>,
    /// Why it cannot be read now.
    unreadable: Option<String>,
}

// === impl SourceId ===

impl SourceId {
    pub(super) const ALL: [Self; 5] = [
        Self::HttpServices,
        Self::TcpServices,
        Self::Nodes,
        Self::HttpEndpoints,
        Self::TcpEndpoints,
    ];

    /// As reports write it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::HttpServices => "services-http",
            Self::TcpServices => "services-tcp",
            Self::Nodes => "nodes",
            Self::HttpEndpoints => "endpoints-http",
            Self::TcpEndpoints => "endpoints-tcp",
        }
    }

    /// Whether there is no snapshot without it.
    pub(super) fn required(self) -> bool {
        !matches!(self, Self::HttpEndpoints | Self::TcpEndpoints)
    }

    pub(super) fn label(self) -> Option<&'static str> {
        match self {
            Self::HttpServices | Self::HttpEndpoints => Some(HTTP_LABEL),
            Self::TcpServices | Self::TcpEndpoints => Some(TCP_LABEL),
            Self::Nodes => None,
        }
    }

    /// What it reads, unless that has to be discovered.
    pub(super) fn resource(self) -> Option<Resource> {
        let kind = match self {
            Self::HttpServices | Self::TcpServices => Kind::Service,
            Self::Nodes => Kind::Node,
            Self::HttpEndpoints | Self::TcpEndpoints => return None,
        };
        Some(Resource {
            kind,
            label: self.label(),
        })
    }
}

// === impl Status ===

impl Status {
    pub(super) fn new(source: SourceId) -> Self {
        Self {
            resource: source.resource(),
            polling: false,
            forbidden: None,
            error: None,
        }
    }

    fn finding(&self, source: SourceId) -> Option<Finding> {
        let resource = self.resource?;
        let consequence = match (self.forbidden?, source.required()) {
            ("watch", _) => "it is polled instead",
            (_, true) => "what was last known of it stays",
            (_, false) => "where pods are is unknown, so every node counts",
        };
        Some(right_missing(self.forbidden?, resource, consequence))
    }
}

/// Names a right we lack.
pub(super) fn right_missing(verb: &str, resource: Resource, consequence: &str) -> Finding {
    let (name, group) = (resource.name(), resource.group());
    Finding::new(
        Code::RightMissing,
        Subject::Source(name),
        format!("no right to `{verb}` resource `{name}` in apiGroup `\"{group}\"`: {consequence}"),
    )
    .hint(format!(
        "grant it to our user in a ClusterRole: `apiGroups: [\"{group}\"], resources: [{name}], verbs: [{verb}]`"
    ))
}

// === impl View ===

impl View {
    /// A complete list: what it lacks is absent.
    pub(super) fn listed(&mut self, source: SourceId, items: Vec<Item>) {
        let listed: BTreeSet<ObjectKey> = items.iter().map(|item| item.key.clone()).collect();
        for item in items {
            self.applied(source, item);
        }
        let entries = self.sources.entry(source).or_default();
        let gone = entries.objects.keys().filter(|key| !listed.contains(key));
        let gone: Vec<ObjectKey> = gone.cloned().collect();
        self.changed |= !std::mem::replace(&mut entries.synced, true);
        for key in gone {
            self.left(source, &key);
        }
    }

    /// One object as it is now.
    pub(super) fn applied(&mut self, source: SourceId, item: Item) {
        let entries = self.sources.entry(source).or_default();
        let last = entries.objects.get_mut(&item.key);
        let same = last.as_ref().is_some_and(|last| last.uid == item.uid);
        if item.deleting && source != SourceId::Nodes && source.required() {
            // It counts as gone, once a fresh read says so too.
            if same {
                entries.absent.insert(item.key);
            }
            return;
        }
        entries.absent.remove(&item.key);
        let (object, unreadable) = match item.object {
            Ok(object) => (Some(object), None),
            Err(reason) => (None, Some(reason)),
        };
        if let Some(last) = last.filter(|_| same) {
            if last.resource_version == item.resource_version && !item.resource_version.is_empty() {
                return;
            }
            self.delivery += 1;
            last.delivery = self.delivery;
            last.resource_version = item.resource_version;
            // An object that became unreadable keeps its last meaning.
            let object = object.or_else(|| last.object.clone());
            self.changed |= last.object != object || last.unreadable != unreadable;
            (last.object, last.unreadable) = (object, unreadable);
            return;
        }
        self.delivery += 1;
        self.changed = true;
        let entry = Entry {
            uid: item.uid,
            resource_version: item.resource_version,
            delivery: self.delivery,
            object,
            unreadable,
        };
        entries.objects.insert(item.key, entry);
    }

    /// One object that is no longer delivered.
    pub(super) fn deleted(&mut self, source: SourceId, key: &ObjectKey, uid: &str) {
        let entries = self.sources.entry(source).or_default();
        if entries.objects.get(key).is_some_and(|it| it.uid == uid) {
            self.left(source, key);
        }
    }

    fn left(&mut self, source: SourceId, key: &ObjectKey) {
        let entries = self.sources.entry(source).or_default();
        if source.required() {
            entries.absent.insert(key.clone());
        } else {
            self.changed |= entries.objects.remove(key).is_some();
        }
    }

    /// What left and has not been confirmed yet.
    pub(super) fn absences(&self) -> Vec<Absence> {
        let of_source = |(source, entries): (&SourceId, &Entries)| {
            let source = *source;
            let absent = entries.absent.iter();
            let absence = |key: &ObjectKey| {
                Some(Absence {
                    source,
                    key: key.clone(),
                    uid: entries.objects.get(key)?.uid.clone(),
                })
            };
            absent.filter_map(absence).collect::<Vec<_>>()
        };
        self.sources.iter().flat_map(of_source).collect()
    }

    /// A fresh read agrees that the object is gone. If it came back meanwhile it stays.
    pub(super) fn confirmed(&mut self, absence: &Absence) {
        let entries = self.sources.entry(absence.source).or_default();
        let same = entries
            .objects
            .get(&absence.key)
            .is_some_and(|entry| entry.uid == absence.uid);
        if same && entries.absent.remove(&absence.key) {
            entries.objects.remove(&absence.key);
            self.changed = true;
        }
    }

    /// A fresh read shows the object still there.
    pub(super) fn refuted(&mut self, absence: &Absence) {
        let entries = self.sources.entry(absence.source).or_default();
        entries.absent.remove(&absence.key);
    }

    pub(super) fn set_status(&mut self, source: SourceId, status: Status) {
        let entries = self.sources.entry(source).or_default();
        if !source.required() && status.forbidden == Some("list") {
            // What was seen before the right was lost grows old and no one could tell.
            self.changed |= entries.synced;
            entries.synced = false;
            entries.objects.clear();
        }
        let before = entries.status.as_ref().and_then(|it| it.finding(source));
        self.changed |= before != status.finding(source);
        entries.status = Some(status);
    }

    pub(super) fn set_stale(&mut self, source: SourceId, stale: bool) {
        let entries = self.sources.entry(source).or_default();
        self.changed |= entries.stale != stale;
        entries.stale = stale;
    }

    pub(super) fn status(&self, source: SourceId) -> Option<&Status> {
        self.sources.get(&source)?.status.as_ref()
    }

    pub(super) fn synced(&self, source: SourceId) -> bool {
        self.sources.get(&source).is_some_and(|it| it.synced)
    }

    /// Whether every required source has delivered a complete list.
    pub(super) fn complete(&self) -> bool {
        let mut required = SourceId::ALL.into_iter().filter(|id| id.required());
        required.all(|source| self.synced(source))
    }

    /// Whether no optional source is still expected to deliver soon.
    pub(super) fn settled(&self) -> bool {
        let failed = |id| self.status(id).is_some_and(|status| status.error.is_some());
        SourceId::ALL
            .into_iter()
            .all(|source| self.synced(source) || failed(source))
    }

    /// Whether a snapshot made now may differ from the last; asking resets it.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Everything as one value. To be asked for only when [`complete`](Self::complete).
    pub(super) fn snapshot(&self, cluster: ClusterId, more: &[Finding]) -> Snapshot {
        debug_assert!(
            self.complete(),
            "half a cluster must never become a snapshot"
        );
        let mut findings: BTreeSet<Finding> = more.iter().cloned().collect();
        findings.extend(self.findings());
        Snapshot {
            cluster,
            services: self.services(),
            nodes: self.nodes(),
            endpoints: self.endpoints(),
            findings: findings.into_iter().collect(),
        }
    }

    fn of(&self, source: SourceId) -> impl Iterator<Item = (&ObjectKey, &Entry)> {
        self.sources
            .get(&source)
            .into_iter()
            .flat_map(|it| it.objects.iter())
    }

    /// A Service comes from up to two sources. Its labels are each source's own affair, so that a label is
    /// gone when its source says so; everything else is taken from the later copy.
    fn services(&self) -> BTreeMap<ServiceKey, Service> {
        let mut merged: BTreeMap<&ServiceKey, (u64, Service)> = BTreeMap::new();
        for source in [SourceId::HttpServices, SourceId::TcpServices] {
            for (_, entry) in self.of(source) {
                let Some(Object::Service(service)) = &entry.object else {
                    continue;
                };
                let mut copy = Service::clone(service);
                // The other lane's label counts only if the other source has the Service too.
                match source {
                    SourceId::HttpServices => copy.tcp_label = None,
                    _ => copy.http_label = None,
                }
                let key = &service.service.key;
                let Some((delivery, other)) = merged.remove(key) else {
                    merged.insert(key, (entry.delivery, copy));
                    continue;
                };
                // `other` is the HTTP source's copy.
                let later = entry.delivery > delivery;
                if copy.service.uid == other.service.uid {
                    let newest = if later {
                        service.http_label.clone()
                    } else {
                        None
                    };
                    let tcp_label = copy.tcp_label.clone();
                    let http_label = newest.or_else(|| other.http_label.clone());
                    let base = if later { copy } else { other };
                    let both = Service {
                        http_label,
                        tcp_label,
                        ..base
                    };
                    merged.insert(key, (delivery.max(entry.delivery), both));
                } else {
                    let winner = if later { copy } else { other };
                    merged.insert(key, (delivery.max(entry.delivery), winner));
                }
            }
        }
        let named = |(key, (_, service)): (&ServiceKey, _)| (key.clone(), service);
        merged.into_iter().map(named).collect()
    }

    fn nodes(&self) -> BTreeMap<String, Node> {
        let node = |(key, entry): (&ObjectKey, &Entry)| match &entry.object {
            Some(Object::Node(node)) => Some((key.name.clone(), Node::clone(node))),
            _ => None,
        };
        self.of(SourceId::Nodes).filter_map(node).collect()
    }

    fn endpoints(&self) -> Option<BTreeMap<ServiceKey, Endpoints>> {
        let sources = [SourceId::HttpEndpoints, SourceId::TcpEndpoints];
        if !sources.into_iter().all(|source| self.synced(source)) {
            return None;
        }
        let mut merged: BTreeMap<ServiceKey, Endpoints> = BTreeMap::new();
        // A Service has many slices, and both labels deliver the same ones twice: sets do not mind.
        for (_, entry) in sources.into_iter().flat_map(|source| self.of(source)) {
            if let Some(Object::Endpoints(service, slice)) = &entry.object {
                let endpoints = merged.entry(service.clone()).or_default();
                endpoints
                    .ready_nodes
                    .extend(slice.ready_nodes.iter().cloned());
                endpoints
                    .terminating_nodes
                    .extend(slice.terminating_nodes.iter().cloned());
                endpoints.any_ready |= slice.any_ready;
            }
        }
        Some(merged)
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (source, entries) in &self.sources {
            findings.extend(entries.status.as_ref().and_then(|it| it.finding(*source)));
            if entries.stale {
                findings.push(stale(*source));
            }
            for (key, entry) in &entries.objects {
                if let Some(reason) = &entry.unreadable {
                    findings.push(undecodable(*source, key, reason, entry.object.is_some()));
                }
            }
        }
        findings
    }
}

fn stale(source: SourceId) -> Finding {
    Finding::new(
        Code::SourceStale,
        Subject::Source(source.name()),
        "the apiserver has not been heard of for minutes: what was last known stays",
    )
    .hint("see this source's `error` in `/status.json`")
}

fn undecodable(source: SourceId, key: &ObjectKey, reason: &str, known: bool) -> Finding {
    let subject = match source {
        SourceId::Nodes => Subject::Node(key.name.clone()),
        SourceId::HttpServices | SourceId::TcpServices => Subject::Service(ServiceKey {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }),
        _ => Subject::Source(source.name()),
    };
    let consequence = if known {
        "what was last known of it stays"
    } else {
        "it is left out"
    };
    let message = format!("object `{key}` cannot be read ({reason}): {consequence}");
    Finding::new(Code::ObjectUndecodable, subject, message)
        .hint("look at it with `kubectl get -o json` and write it anew")
}
