//! Manifests: YAML with several documents, and the lists `kubectl` writes.

use serde::Deserialize as _;
use serde_json::Value;

/// A manifest that does not read as YAML.
#[derive(Clone, Debug, PartialEq)]
pub struct Unreadable {
    /// Counted from 1 over the whole text; none where the reader cannot tell.
    pub line: Option<usize>,
    pub why: String,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.why),
            None => f.write_str(&self.why),
        }
    }
}

impl std::error::Error for Unreadable {}

/// Every object of a manifest, in its order; a `List` is unfolded.
pub fn parse(text: &str) -> Result<Vec<Value>, Unreadable> {
    let mut objects = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let object = Value::deserialize(document).map_err(|error| Unreadable {
            line: error.location().map(|at| at.line()),
            why: error.to_string(),
        })?;
        match &object {
            Value::Null => {}
            Value::Object(map) if map.contains_key("items") => {
                objects.extend(object["items"].as_array().into_iter().flatten().cloned());
            }
            Value::Object(_) => objects.push(object),
            _ => {
                let why = "a document is not an object".to_owned();
                return Err(Unreadable { line: None, why });
            }
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_broken_document_is_told_with_its_line() {
        let objects = parse("kind: A\n---\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n");
        assert_eq!(objects.unwrap().len(), 3);
        let unreadable = parse("kind: A\n---\nkind: B\n  broken: [\n").unwrap_err();
        assert!(
            unreadable.line.is_some_and(|line| line >= 3),
            "{unreadable:?}"
        );
    }
}
