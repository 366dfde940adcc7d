//! Who may do what: bearer tokens, and rules in the sense of RBAC.
//!
//! Knows nothing of bindings: a token carries its rules. `Rules::of_roles` takes them from the
//! roles of a manifest, so that a shipped role can be put to the test as it is written.

use anyhow::Context as _;
use serde::Deserialize;

use super::kinds::Kind;
use super::status::Status;

/// A bearer token, whose it is, and what it allows.
#[derive(Clone, Debug)]
pub struct Token {
    pub token: String,
    pub user: String,
    pub rules: Rules,
}

/// What one user may do; the union of its rules.
#[derive(Clone, Debug, Default)]
pub struct Rules(pub Vec<Rule>);

/// One rule; `*` stands for all. Subresources are named as RBAC does: `nodes/status`.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub verbs: Vec<String>,
    /// Empty: any name.
    pub names: Vec<String>,
    /// None: everywhere, as a ClusterRoleBinding grants it.
    pub namespace: Option<String>,
}

/// One request, as authorization sees it.
#[derive(Debug)]
pub(super) struct Action<'a> {
    pub(super) verb: &'a str,
    pub(super) kind: &'a Kind,
    pub(super) subresource: Option<&'a str>,
    pub(super) namespace: Option<&'a str>,
    pub(super) name: &'a str,
}

const ANONYMOUS: &str = "system:anonymous";

// === impl Rules ===

impl Rules {
    /// May do everything.
    pub fn all() -> Self {
        let star = || vec!["*".to_owned()];
        let rule = Rule {
            groups: star(),
            resources: star(),
            verbs: star(),
            ..Rule::default()
        };
        Self(vec![rule])
    }

    /// The given verbs on the given resources of any group, in every namespace.
    pub fn cluster(verbs: &[&str], resources: &[&str]) -> Self {
        Self::default().and(verbs, resources)
    }

    /// The same rules and one more.
    #[must_use]
    pub fn and(mut self, verbs: &[&str], resources: &[&str]) -> Self {
        let owned = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect();
        self.0.push(Rule {
            groups: vec!["*".to_owned()],
            resources: owned(resources),
            verbs: owned(verbs),
            ..Rule::default()
        });
        self
    }

    /// The rules of every Role and ClusterRole in a manifest, as if bound to one user.
    pub fn of_roles(manifest: &str) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct RoleRule {
            #[serde(default)]
            api_groups: Vec<String>,
            #[serde(default)]
            resources: Vec<String>,
            verbs: Vec<String>,
            #[serde(default)]
            resource_names: Vec<String>,
        }

        let mut rules = Self::default();
        for object in super::manifests::parse(manifest)? {
            let namespace = match object["kind"].as_str() {
                Some("ClusterRole") => None,
                Some("Role") => object["metadata"]["namespace"].as_str().map(str::to_owned),
                _ => continue,
            };
            let role_rules: Vec<RoleRule> = Deserialize::deserialize(&object["rules"])
                .context("the rules of a role do not read as such")?;
            rules.0.extend(role_rules.into_iter().map(|rule| Rule {
                groups: rule.api_groups,
                resources: rule.resources,
                verbs: rule.verbs,
                names: rule.resource_names,
                namespace: namespace.clone(),
            }));
        }
        Ok(rules)
    }
}

// === impl Rule ===

impl Rule {
    fn allows(&self, action: &Action<'_>) -> bool {
        let resource = action.resource();
        let any = |list: &[String], value: &str| list.iter().any(|s| s == "*" || s == value);
        any(&self.verbs, action.verb)
            && any(&self.groups, action.kind.group)
            && any(&self.resources, &resource)
            && (self.names.is_empty() || any(&self.names, action.name))
            && (self.namespace.is_none() || self.namespace.as_deref() == action.namespace)
    }
}

// === impl Action ===

impl Action<'_> {
    fn resource(&self) -> String {
        match self.subresource {
            Some(subresource) => format!("{}/{subresource}", self.kind.plural),
            None => self.kind.plural.to_owned(),
        }
    }

    pub(super) fn refusal(&self, user: &str) -> Status {
        let place = match self.namespace {
            Some(namespace) => format!("in the namespace \"{namespace}\""),
            None => "at the cluster scope".to_owned(),
        };
        let why = format!(
            "User \"{user}\" cannot {} resource \"{}\" in API group \"{}\" {place}",
            self.verb,
            self.resource(),
            self.kind.group,
        );
        Status::forbidden(self.kind, self.name, &why)
    }
}

/// Who sends an `Authorization` header: a token's owner, or nobody where there is no header.
pub(super) fn authenticate<'a>(
    tokens: &'a [Token],
    header: Option<&str>,
) -> Result<Option<&'a Token>, Status> {
    let Some(header) = header else {
        return Ok(None);
    };
    let bearer = header.strip_prefix("Bearer ").unwrap_or_default().trim();
    tokens
        .iter()
        .find(|t| t.token == bearer)
        .map(Some)
        .ok_or_else(Status::unauthorized)
}

pub(super) fn authorize(who: Option<&Token>, action: &Action<'_>) -> Result<(), Status> {
    match who {
        Some(token) if token.rules.0.iter().any(|rule| rule.allows(action)) => Ok(()),
        other => Err(action.refusal(user_of(other))),
    }
}

/// Paths that name no resource: `/version` and health are public, discovery is for any user.
pub(super) fn authorize_path(who: Option<&Token>, verb: &str, path: &str) -> Result<(), Status> {
    let public = ["/version", "/healthz", "/livez", "/readyz"].contains(&path);
    if public || who.is_some() {
        return Ok(());
    }
    Err(Status::forbidden_path(user_of(who), verb, path))
}

pub(super) fn user_of(who: Option<&Token>) -> &str {
    who.map_or(ANONYMOUS, |token| token.user.as_str())
}

#[cfg(test)]
mod tests {
    use super::super::kinds::KINDS;
    use super::*;

    fn action<'a>(verb: &'a str, namespace: Option<&'a str>, name: &'a str) -> Action<'a> {
        let kind = KINDS.iter().find(|k| k.plural == "leases").unwrap();
        Action {
            verb,
            kind,
            subresource: None,
            namespace,
            name,
        }
    }

    #[test]
    fn a_role_reaches_its_own_namespace_and_names_only() {
        let rules = Rules::of_roles(
            "kind: Role\nmetadata: {name: r, namespace: kube-system}\nrules:\n- \
             {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get], \
             resourceNames: [route-sync]}\n",
        )
        .unwrap();
        let token = Token {
            token: "t".into(),
            user: "u".into(),
            rules,
        };
        let may = |a: &Action<'_>| authorize(Some(&token), a).is_ok();
        assert!(may(&action("get", Some("kube-system"), "route-sync")));
        assert!(!may(&action("get", Some("kube-system"), "other")));
        assert!(!may(&action("get", Some("default"), "route-sync")));
        assert!(!may(&action("list", Some("kube-system"), "route-sync")));
        assert!(authorize(None, &action("get", None, "")).is_err());
    }
}
