//! Label and field selectors: the grammar of `labelSelector` and `fieldSelector`.
//!
//! Fields are `metadata.name` and `metadata.namespace` alone, as every kind has them.

use serde_json::Value;

use super::status::Status;

/// What a list or watch asks for. Empty: everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Clone, Debug)]
enum Requirement {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    /// Also true where the key is absent: so says the label selector grammar.
    NotIn(String, Vec<String>),
}

#[derive(Clone, Debug)]
struct FieldRequirement {
    field: Field,
    equal: bool,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Field {
    Name,
    Namespace,
}

// === impl Selector ===

impl Selector {
    pub(super) fn parse(labels: &str, fields: &str) -> Result<Self, Status> {
        let labels = split_outside_parentheses(labels)
            .map(|text| Requirement::parse(text.trim()))
            .collect::<Result<_, _>>()?;
        let fields = fields
            .split(',')
            .filter(|text| !text.is_empty())
            .map(FieldRequirement::parse)
            .collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one name asked for: RBAC's `resourceNames` apply to such a list, too.
    pub(super) fn name(&self) -> Option<&str> {
        let named = self
            .fields
            .iter()
            .find(|f| f.field == Field::Name && f.equal);
        named.map(|f| f.value.as_str())
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|r| r.matches(labels))
            && self.fields.iter().all(|r| r.matches(object))
    }
}

// === impl Requirement ===

impl Requirement {
    fn parse(text: &str) -> Result<Self, Status> {
        let requirement = if let Some(key) = text.strip_prefix('!') {
            Self::Absent(key.trim().to_owned())
        } else if let Some((key, value)) = text.split_once("!=") {
            Self::NotIn(key.trim().to_owned(), vec![value.trim().to_owned()])
        } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            Self::In(key.trim().to_owned(), vec![value.trim().to_owned()])
        } else if let Some((key, set)) = split_set(text, " notin ") {
            Self::NotIn(key, set)
        } else if let Some((key, set)) = split_set(text, " in ") {
            Self::In(key, set)
        } else {
            Self::Exists(text.to_owned())
        };
        let key = requirement.key();
        if key.is_empty() || key.contains([' ', '(', ')', '=', '!']) {
            let why = format!("unable to parse requirement: found '{text}', expected: a label key");
            return Err(Status::bad_request(why));
        }
        Ok(requirement)
    }

    fn key(&self) -> &str {
        match self {
            Self::Exists(key) | Self::Absent(key) | Self::In(key, _) | Self::NotIn(key, _) => key,
        }
    }

    fn matches(&self, labels: &Value) -> bool {
        let value = labels.get(self.key()).and_then(Value::as_str);
        match self {
            Self::Exists(_) => value.is_some(),
            Self::Absent(_) => value.is_none(),
            Self::In(_, set) => value.is_some_and(|v| set.iter().any(|s| s == v)),
            Self::NotIn(_, set) => value.is_none_or(|v| set.iter().all(|s| s != v)),
        }
    }
}

// === impl FieldRequirement ===

impl FieldRequirement {
    fn parse(text: &str) -> Result<Self, Status> {
        let (field, equal, value) = if let Some((field, value)) = text.split_once("!=") {
            (field, false, value)
        } else if let Some((field, value)) = text.split_once("==").or_else(|| text.split_once('='))
        {
            (field, true, value)
        } else {
            let why = format!("invalid selector: '{text}'; can't understand '{text}'");
            return Err(Status::bad_request(why));
        };
        let field = match field {
            "metadata.name" => Field::Name,
            "metadata.namespace" => Field::Namespace,
            other => {
                return Err(Status::bad_request(format!(
                    "field label not supported: {other}"
                )));
            }
        };
        Ok(Self {
            field,
            equal,
            value: value.to_owned(),
        })
    }

    fn matches(&self, object: &Value) -> bool {
        let key = if self.field == Field::Name {
            "name"
        } else {
            "namespace"
        };
        let value = object["metadata"][key].as_str().unwrap_or_default();
        (value == self.value) == self.equal
    }
}

fn split_set(text: &str, operator: &str) -> Option<(String, Vec<String>)> {
    let (key, set) = text.split_once(operator)?;
    let set = set.trim().strip_prefix('(')?.strip_suffix(')')?;
    let values = set.split(',').map(|v| v.trim().to_owned()).collect();
    Some((key.trim().to_owned(), values))
}

/// Commas separate requirements, except inside the parentheses of a set.
fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .filter(|part| !part.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Selector;

    fn check(labels: &str, object_labels: serde_json::Value, expected: bool) {
        let object = json!({"metadata": {"name": "a", "namespace": "n", "labels": object_labels}});
        let selector = Selector::parse(labels, "").expect("the selector parses");
        assert_eq!(
            selector.matches(&object),
            expected,
            "`{labels}` on {object}"
        );
    }

    #[test]
    fn every_operator_of_the_label_grammar_is_understood() {
        check("", json!({}), true);
        check("http-route-sync", json!({"http-route-sync": ""}), true);
        check("http-route-sync", json!({}), false);
        check("!http-route-sync", json!({}), true);
        check("app=web", json!({"app": "web"}), true);
        check("app==web,tier", json!({"app": "web"}), false);
        check("app!=web", json!({}), true);
        check(
            "app in (web, api),tier",
            json!({"app": "api", "tier": "1"}),
            true,
        );
        check("app notin (web,api)", json!({"app": "api"}), false);
    }

    #[test]
    fn fields_other_than_name_and_namespace_are_refused() {
        let object = json!({"metadata": {"name": "a", "namespace": "n"}});
        let selector = Selector::parse("", "metadata.name=a,metadata.namespace!=x").unwrap();
        assert!(selector.matches(&object));
        assert_eq!(selector.name(), Some("a"));
        assert_eq!(
            Selector::parse("", "spec.colour=red").unwrap_err().code,
            400
        );
        assert_eq!(Selector::parse("a b", "").unwrap_err().code, 400);
    }
}
