//! The kinds this apiserver serves, and the discovery documents that say so.
//!
//! One table; adding a row is all it takes to serve another kind without rules of its own.
//! A group that is switched off is absent from discovery and answers as an unknown path does.

use serde_json::{Value, json};

/// Which API groups beside core/v1 are served. Old clusters lack some of them at `v1`.
#[derive(Clone, Debug)]
pub struct Served {
    pub discovery: bool,
    pub coordination: bool,
    pub events: bool,
    /// What `/version` says: major, minor and patch.
    pub version: (u32, u32, u32),
}

/// One served kind.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) group: &'static str,
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
    short_names: &'static [&'static str],
    pub(super) namespaced: bool,
    /// Has a `/status` subresource.
    pub(super) status: bool,
    /// PUT of an absent object creates it.
    pub(super) create_on_update: bool,
}

const fn kind(group: &'static str, plural: &'static str, kind: &'static str) -> Kind {
    Kind {
        group,
        plural,
        kind,
        short_names: &[],
        namespaced: true,
        status: false,
        create_on_update: false,
    }
}

pub(super) static KINDS: [Kind; 8] = [
    Kind {
        namespaced: false,
        status: true,
        short_names: &["ns"],
        ..kind("", "namespaces", "Namespace")
    },
    Kind {
        namespaced: false,
        status: true,
        short_names: &["no"],
        ..kind("", "nodes", "Node")
    },
    Kind {
        status: true,
        create_on_update: true,
        short_names: &["svc"],
        ..kind("", "services", "Service")
    },
    Kind {
        create_on_update: true,
        short_names: &["ep"],
        ..kind("", "endpoints", "Endpoints")
    },
    Kind {
        create_on_update: true,
        short_names: &["ev"],
        ..kind("", "events", "Event")
    },
    kind("discovery.k8s.io", "endpointslices", "EndpointSlice"),
    Kind {
        create_on_update: true,
        ..kind("coordination.k8s.io", "leases", "Lease")
    },
    Kind {
        create_on_update: true,
        short_names: &["ev"],
        ..kind("events.k8s.io", "events", "Event")
    },
];

/// The groups in the order discovery lists them.
const GROUPS: [&str; 3] = ["events.k8s.io", "coordination.k8s.io", "discovery.k8s.io"];

const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

// === impl Kind ===

impl Kind {
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() {
            "v1".to_owned()
        } else {
            format!("{}/v1", self.group)
        }
    }

    /// `services`, `leases.coordination.k8s.io`: as error messages name a resource.
    pub(super) fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// The kind served for a manifest's `apiVersion` and `kind`.
    pub(super) fn of_manifest(api_version: &str, kind: &str) -> Option<&'static Self> {
        KINDS
            .iter()
            .find(|k| k.kind == kind && k.api_version() == api_version)
    }

    pub(super) fn of_path(group: &str, plural: &str) -> Option<&'static Self> {
        KINDS
            .iter()
            .find(|k| k.group == group && k.plural == plural)
    }

    fn discovery(&self) -> Vec<Value> {
        let entry = |name: String, verbs: &[&str], short: &[&str]| {
            let mut entry = json!({
                "name": name, "singularName": self.kind.to_lowercase(),
                "namespaced": self.namespaced, "kind": self.kind, "verbs": verbs,
            });
            if !short.is_empty() {
                entry["shortNames"] = json!(short);
            }
            entry
        };
        let mut entries = vec![entry(self.plural.to_owned(), &VERBS, self.short_names)];
        if self.status {
            let verbs = ["get", "patch", "update"];
            let mut status = entry(format!("{}/status", self.plural), &verbs, &[]);
            status["singularName"] = json!("");
            entries.push(status);
        }
        entries
    }
}

// === impl Served ===

impl Default for Served {
    fn default() -> Self {
        Self {
            discovery: true,
            coordination: true,
            events: true,
            version: (1, 36, 2),
        }
    }
}

impl Served {
    pub(super) fn group(&self, group: &str) -> bool {
        match group {
            "" => true,
            "discovery.k8s.io" => self.discovery,
            "coordination.k8s.io" => self.coordination,
            "events.k8s.io" => self.events,
            _ => false,
        }
    }

    /// The discovery document at `segments`, or none where nothing is served.
    pub(super) fn document(&self, segments: &[&str]) -> Option<Value> {
        match segments {
            ["version"] => Some(self.version_document()),
            ["api"] => Some(json!({
                "kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [],
            })),
            ["apis"] => {
                let groups: Vec<_> = GROUPS
                    .iter()
                    .filter(|g| self.group(g))
                    .map(|g| group_document(g))
                    .collect();
                Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
            }
            ["api", "v1"] => Some(resources_document("")),
            ["apis", group] if GROUPS.contains(group) && self.group(group) => {
                let mut document = group_document(group);
                document["kind"] = json!("APIGroup");
                document["apiVersion"] = json!("v1");
                Some(document)
            }
            ["apis", group, "v1"] if GROUPS.contains(group) && self.group(group) => {
                Some(resources_document(group))
            }
            _ => None,
        }
    }

    fn version_document(&self) -> Value {
        let (major, minor, patch) = self.version;
        json!({
            "major": major.to_string(), "minor": minor.to_string(),
            "gitVersion": format!("v{major}.{minor}.{patch}"),
            "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "", "compiler": "gc", "platform": "linux/amd64",
        })
    }
}

fn group_document(group: &str) -> Value {
    let version = json!({"groupVersion": format!("{group}/v1"), "version": "v1"});
    json!({"name": group, "versions": [version.clone()], "preferredVersion": version})
}

fn resources_document(group: &str) -> Value {
    let resources: Vec<_> = KINDS
        .iter()
        .filter(|k| k.group == group)
        .flat_map(Kind::discovery)
        .collect();
    let version = if group.is_empty() {
        "v1".to_owned()
    } else {
        format!("{group}/v1")
    };
    json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": version, "resources": resources,
    })
}
