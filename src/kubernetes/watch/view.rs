//! What has been delivered so far, source by source, and the snapshot it amounts to. Pure: no clock, no I/O.
//!
//! An object that left its source is only marked absent where its absence has to be confirmed; until then the
//! snapshot goes on showing it. An object that cannot be read is a finding beside what was last known of it.

use std::collections::{BTreeMap, BTreeSet};

use super::absence::Gone;
use crate::desired::{Code, Finding, HTTP_LABEL, Subject, TCP_LABEL};
use crate::kubernetes::api::Resource;
use crate::kubernetes::snapshot::{
    Departure, Endpoints, Evidence, Node, Protocol, Service, Snapshot,
};
use crate::kubernetes::wire::{Item, Kind, Object, ObjectKey};
use crate::quote::clipped;
use crate::route::{ClusterId, Lane, NodePort, ServiceKey};

/// Departures that are remembered. One is asked for in the pass it causes, which comes at once; where more than
/// these queue up, the others count as found missing by a list, the cautious reading.
const DEPARTURES_MAX: usize = 20_000;

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
    /// Tells it from an earlier absence of the same object.
    pub(super) since: u64,
}

/// Everything delivered so far.
#[derive(Default)]
pub(super) struct View {
    sources: BTreeMap<SourceId, Entries>,
    /// Numbers the deliveries and absences; of two copies of one Service the later wins.
    delivery: u64,
    changed: bool,
    /// The last list showed no Node although some were known.
    nodeless: bool,
    evidence: Evidence,
}

#[derive(Default)]
struct Entries {
    synced: bool,
    objects: BTreeMap<ObjectKey, Entry>,
    /// What left and is not confirmed yet.
    absent: BTreeMap<ObjectKey, Away>,
    status: Option<Status>,
    stale: bool,
}

/// An object that left.
#[derive(Clone, Copy, Debug)]
struct Away {
    noticed: Noticed,
    /// With which delivery.
    since: u64,
}

/// What noticed that an object left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noticed {
    Event,
    List,
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

/// What is known of one Service.
struct Known {
    /// Some source still has it.
    present: bool,
    /// When the later of its copies came.
    delivery: u64,
    service: Service,
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

    /// The lane whose label it follows.
    fn lane(self) -> Option<Lane> {
        match self {
            Self::HttpServices => Some(Lane::Http),
            Self::TcpServices => Some(Lane::Tcp),
            _ => None,
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

    /// Whether it may not even be listed.
    pub(super) fn is_refused(&self) -> bool {
        self.forbidden == Some("list")
    }

    fn finding(&self, source: SourceId) -> Option<Finding> {
        let resource = self.resource?;
        let consequence = match (self.forbidden?, source.required()) {
            ("watch", _) => "it is polled instead",
            (_, true) => "what was last known of it stays",
            (_, false) => "what was last known of pods counts for minutes, then every node does",
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
            self.lost(source, &key, Noticed::List);
        }
        self.agreed(source);
    }

    /// A complete list was had; what it shows is known.
    pub(super) fn agreed(&mut self, source: SourceId) {
        if source == SourceId::Nodes {
            let nodes = self.sources.entry(source).or_default();
            let gone = |key| nodes.absent.contains_key(key);
            self.nodeless = !nodes.objects.is_empty() && nodes.objects.keys().all(gone);
        }
        if source.required() {
            *self.evidence.lists.entry(source.name()).or_default() += 1;
            self.changed = true;
        }
    }

    /// One object as it is now.
    pub(super) fn applied(&mut self, source: SourceId, item: Item) {
        if item.deleting && source != SourceId::Nodes && source.required() {
            // It counts as gone, once a fresh read says so too. Under another UID it is not the one we know,
            // which must have gone before.
            self.left(source, &item.key);
            return;
        }
        let entries = self.sources.entry(source).or_default();
        let last = entries.objects.get_mut(&item.key);
        let same = last.as_ref().is_some_and(|last| last.uid == item.uid);
        self.changed |= entries.absent.remove(&item.key).is_some();
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
        if let Some(lane) = source.lane() {
            self.evidence.left.remove(&(lane, service_key(&item.key)));
        }
        let entry = Entry {
            uid: item.uid,
            resource_version: item.resource_version,
            delivery: self.delivery,
            object,
            unreadable,
        };
        entries.objects.insert(item.key, entry);
    }

    /// One object that is no longer delivered. Whatever UID it left under, nothing has that name now.
    pub(super) fn left(&mut self, source: SourceId, key: &ObjectKey) {
        self.lost(source, key, Noticed::Event);
    }

    /// An event says more than a list that lacks the object, whichever comes first.
    fn lost(&mut self, source: SourceId, key: &ObjectKey, noticed: Noticed) {
        let entries = self.sources.entry(source).or_default();
        if !source.required() {
            self.changed |= entries.objects.remove(key).is_some();
        } else if let Some(away) = entries.absent.get_mut(key) {
            if noticed == Noticed::Event {
                away.noticed = noticed;
            }
        } else if entries.objects.contains_key(key) {
            self.delivery += 1;
            let since = self.delivery;
            entries.absent.insert(key.clone(), Away { noticed, since });
            // It may have lost its node ports.
            self.changed = true;
        }
    }

    /// Nothing delivered so far is of the cluster that answers now; it is complete once that has listed all.
    pub(super) fn forget(&mut self) {
        self.evidence.left.clear();
        self.nodeless = false;
        for entries in self.sources.values_mut() {
            entries.synced = false;
            entries.objects.clear();
            entries.absent.clear();
        }
    }

    /// What left and has not been confirmed yet; without Nodes that only lists lack, where those are kept.
    pub(super) fn absences(&self, keeps_nodes: bool) -> Vec<Absence> {
        let of_source = |(source, entries): (&SourceId, &Entries)| {
            let source = *source;
            let absent = entries.absent.iter();
            let kept = keeps_nodes && source == SourceId::Nodes;
            let absent = absent.filter(move |(_, away)| !kept || away.noticed == Noticed::Event);
            let absence = |(key, away): (&ObjectKey, &Away)| {
                Some(Absence {
                    source,
                    key: key.clone(),
                    uid: entries.objects.get(key)?.uid.clone(),
                    since: away.since,
                })
            };
            absent.filter_map(absence).collect::<Vec<_>>()
        };
        self.sources.iter().flat_map(of_source).collect()
    }

    /// Whether the last list showed no Node although some were known.
    pub(super) fn is_nodeless(&self) -> bool {
        self.nodeless
    }

    /// A fresh read agrees that the object is gone. If it came back meanwhile it stays.
    pub(super) fn confirmed(&mut self, gone: &Gone) {
        let absence = &gone.absence;
        let Some(noticed) = self.end(absence) else {
            return;
        };
        let entries = self.sources.entry(absence.source).or_default();
        entries.objects.remove(&absence.key);
        let by_list = noticed == Noticed::List && !gone.seen;
        let Some(lane) = absence.source.lane() else {
            self.evidence.nodes_by_list = by_list;
            return;
        };
        let departure = Departure {
            by_list,
            namespace_gone: gone.with_namespace,
        };
        let left = &mut self.evidence.left;
        left.insert((lane, service_key(&absence.key)), departure);
        if left.len() > DEPARTURES_MAX {
            left.pop_first();
        }
    }

    /// A fresh read shows the object still there.
    pub(super) fn refuted(&mut self, absence: &Absence) {
        self.end(absence);
    }

    /// Ends an absence; not one that began later than what was read.
    fn end(&mut self, absence: &Absence) -> Option<Noticed> {
        let entries = self.sources.entry(absence.source).or_default();
        let away = entries.absent.get(&absence.key)?;
        if away.since != absence.since {
            return None;
        }
        let noticed = away.noticed;
        entries.absent.remove(&absence.key);
        self.changed = true;
        Some(noticed)
    }

    pub(super) fn set_status(&mut self, source: SourceId, status: Status) {
        let entries = self.sources.entry(source).or_default();
        let before = entries.status.as_ref().and_then(|it| it.finding(source));
        self.changed |= before != status.finding(source);
        entries.status = Some(status);
    }

    pub(super) fn set_stale(&mut self, source: SourceId, stale: bool) {
        let entries = self.sources.entry(source).or_default();
        self.changed |= entries.stale != stale;
        entries.stale = stale;
    }

    /// The right to see a source stays lost. What was seen before grows old and no one could tell; what is
    /// required stays nevertheless.
    pub(super) fn refused_for_long(&mut self, source: SourceId) {
        let entries = self.sources.entry(source).or_default();
        if entries.synced && !source.required() {
            self.changed = true;
            entries.synced = false;
            entries.objects.clear();
        }
    }

    pub(super) fn status(&self, source: SourceId) -> Option<&Status> {
        self.sources.get(&source)?.status.as_ref()
    }

    /// Whether it fails for another reason than a right, which is a finding of its own.
    pub(super) fn failing(&self, source: SourceId) -> bool {
        let failing = |status: &Status| status.error.is_some() && status.forbidden.is_none();
        self.status(source).is_some_and(failing)
    }

    pub(super) fn synced(&self, source: SourceId) -> bool {
        self.sources.get(&source).is_some_and(|it| it.synced)
    }

    /// Whether every required source has delivered a complete list.
    pub(super) fn complete(&self) -> bool {
        let mut required = SourceId::ALL.into_iter().filter(|id| id.required());
        required.all(|source| self.synced(source))
    }

    /// Whether no source is still expected to deliver soon. One that failed may only share the outage that
    /// the others have just come back from.
    pub(super) fn settled(&self) -> bool {
        let refused = |id| self.status(id).is_some_and(Status::is_refused);
        SourceId::ALL
            .into_iter()
            .all(|source| self.synced(source) || refused(source))
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
            evidence: self.evidence.clone(),
        }
    }

    fn of(&self, source: SourceId) -> impl Iterator<Item = (&ObjectKey, &Entry)> {
        self.sources
            .get(&source)
            .into_iter()
            .flat_map(|it| it.objects.iter())
    }

    fn services(&self) -> BTreeMap<ServiceKey, Service> {
        let mut known = self.known_services();
        without_lost_node_ports(&mut known);
        let named = |(key, known): (&ServiceKey, Known)| (key.clone(), known.service);
        known.into_iter().map(named).collect()
    }

    /// A Service comes from up to two sources. Its labels are each source's own affair, so that a label is
    /// gone when its source says so; everything else is taken from the later copy.
    fn known_services(&self) -> BTreeMap<&ServiceKey, Known> {
        let mut merged: BTreeMap<&ServiceKey, Known> = BTreeMap::new();
        for source in [SourceId::HttpServices, SourceId::TcpServices] {
            for (object_key, entry) in self.of(source) {
                let Some(Object::Service(service)) = &entry.object else {
                    continue;
                };
                let mut copy = Service::clone(service);
                // The other lane's label counts only if the other source has the Service too.
                match source {
                    SourceId::HttpServices => copy.tcp_label = None,
                    _ => copy.http_label = None,
                }
                let copy = Known {
                    present: !self.is_absent(source, object_key),
                    delivery: entry.delivery,
                    service: copy,
                };
                let key = &service.service.key;
                let both = match merged.remove(key) {
                    // `other` is the HTTP source's copy.
                    Some(other) => other.merged(copy, service),
                    None => copy,
                };
                merged.insert(key, both);
            }
        }
        merged
    }

    fn is_absent(&self, source: SourceId, key: &ObjectKey) -> bool {
        let entries = self.sources.get(&source);
        entries.is_some_and(|it| it.absent.contains_key(key))
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

    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (source, entries) in &self.sources {
            findings.extend(entries.status.as_ref().and_then(|it| it.finding(*source)));
            if entries.stale {
                findings.push(stale(*source, entries.synced));
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

// === impl Known ===

impl Known {
    /// Of the HTTP source's copy and the TCP source's, which was delivered as `whole`, with both labels.
    fn merged(self, tcp: Self, whole: &Service) -> Self {
        let later = tcp.delivery > self.delivery;
        let present = self.present || tcp.present;
        let delivery = self.delivery.max(tcp.delivery);
        let (http, tcp) = (self.service, tcp.service);
        let same = tcp.service.uid == http.service.uid;
        let newest = whole.http_label.clone().filter(|_| later);
        let http_label = newest.or_else(|| http.http_label.clone());
        let tcp_label = tcp.tcp_label.clone();
        let mut service = if later { tcp } else { http };
        if same {
            service = Service {
                http_label,
                tcp_label,
                ..service
            };
        }
        Self {
            present,
            delivery,
            service,
        }
    }

    fn tcp_node_ports(&self) -> impl Iterator<Item = NodePort> {
        // TCP and UDP count their node ports apart, and routers lead to TCP alone.
        let ports = self.service.ports.iter();
        let tcp = ports.filter(|port| port.protocol == Protocol::Tcp);
        tcp.filter_map(|port| port.node_port)
    }
}

/// The apiserver gives a node port to one Service alone, so of two with the same one was not heard of since:
/// the one that left, else the one delivered before the other. Its routes would lead to the other's pods, and
/// what it says of its other ports is as old.
fn without_lost_node_ports(known: &mut BTreeMap<&ServiceKey, Known>) {
    let mut holders: BTreeMap<NodePort, (bool, u64, &ServiceKey)> = BTreeMap::new();
    let mut losers: BTreeSet<&ServiceKey> = BTreeSet::new();
    for (key, it) in &*known {
        let claim = (it.present, it.delivery, *key);
        for port in it.tcp_node_ports() {
            let holder = *holders.entry(port).or_insert(claim);
            if holder.2 != *key {
                losers.insert(holder.min(claim).2);
                holders.insert(port, holder.max(claim));
            }
        }
    }
    for key in losers {
        let ports = known.get_mut(key).map(|it| &mut it.service.ports);
        for port in ports.into_iter().flatten() {
            port.node_port = None;
        }
    }
}

fn service_key(key: &ObjectKey) -> ServiceKey {
    ServiceKey {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    }
}

fn stale(source: SourceId, synced: bool) -> Finding {
    let message = if synced {
        "the apiserver has not been heard of for minutes: what was last known stays"
    } else {
        "the apiserver cannot be asked: nothing is known of it yet"
    };
    Finding::new(Code::SourceStale, Subject::Source(source.name()), message)
        .hint("see this source's `error` in `/status.json`")
}

fn undecodable(source: SourceId, key: &ObjectKey, reason: &str, known: bool) -> Finding {
    let subject = match source {
        SourceId::Nodes => Subject::Node(key.name.clone()),
        SourceId::HttpServices | SourceId::TcpServices => Subject::Service(service_key(key)),
        _ => Subject::Source(source.name()),
    };
    let consequence = if known {
        "what was last known of it stays"
    } else {
        "it is left out"
    };
    let reason = clipped(reason);
    let message = format!("object `{key}` cannot be read ({reason}): {consequence}");
    Finding::new(Code::ObjectUndecodable, subject, message)
        .hint("look at it with `kubectl get -o json` and write it anew")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_left_unknown_leaves_nothing_behind() {
        let mut view = View::default();
        let key = ObjectKey {
            namespace: "ns".to_owned(),
            name: "web".to_owned(),
        };
        view.left(SourceId::HttpServices, &key);
        assert!(view.sources[&SourceId::HttpServices].absent.is_empty());
    }
}
