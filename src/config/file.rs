//! The file as it is written: a tree of texts, verbatim.
//!
//! The original read every scalar into a string and kept its spelling: a password `0123`, `yes` or `1e3`
//! is those characters. YAML itself would make numbers and booleans of them, so the document is read twice:
//! first only for its shape, then along that shape with every scalar taken as text.
//!
//! An error here tells a line and a column and nothing else, because the text at that place may be a secret.

use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IgnoredAny, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};

/// YAML 1.1's merge key.
const MERGE: &str = "<<";

/// One value of the file. It has no `Debug`: it may be a secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// Nothing, `~` or `null`.
    Blank,
    /// One value, spelled as in the file.
    Scalar(String),
    /// A list.
    List(Vec<Node>),
    /// A group of keys, in the order of the file; a key may stand twice.
    Map(Vec<(String, Node)>),
    /// A value behind a YAML tag (`!secret`), which is nearly always a text that lacks its quotes.
    Tagged,
}

/// The file is no YAML that a configuration could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    /// It cannot be parsed.
    #[error("it is no valid YAML at line {line}, column {column}")]
    At {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// It cannot be parsed, and the parser does not say where.
    #[error("it is no valid YAML")]
    Somewhere,
}

/// What stands where, without any content.
enum Shape {
    Blank,
    Scalar,
    List(Vec<Shape>),
    Map(Vec<Shape>),
    Tagged,
}

/// A whole file.
pub(super) struct File {
    pub(super) root: Node,
    /// Another document follows the first. The original's parser (yaml.v2) read the first and said nothing.
    pub(super) more: bool,
}

/// Reads a whole file.
pub(super) fn parse(text: &str) -> Result<File, SyntaxError> {
    // Editors on Windows write a byte order mark, which is no part of the first key.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let again = serde_yaml::Deserializer::from_str(text).next();
    let (Some(first), Some(again)) = (documents.next(), again) else {
        let (root, more) = (Node::Blank, false);
        return Ok(File { root, more });
    };
    let shape = ShapeSeed.deserialize(first);
    let root = shape.and_then(|shape| shape.deserialize(again));
    let root = root.map_err(|error| SyntaxError::of(&error))?;
    let more = documents.next().is_some();
    Ok(File { root, more })
}

// === impl SyntaxError ===

impl SyntaxError {
    /// The parser's own text is dropped: it may quote the value.
    fn of(error: &serde_yaml::Error) -> Self {
        error.location().map_or(Self::Somewhere, |at| Self::At {
            line: at.line(),
            column: at.column(),
        })
    }
}

// === impl Shape ===

#[derive(Clone, Copy)]
struct ShapeSeed;

impl<'de> DeserializeSeed<'de> for ShapeSeed {
    type Value = Shape;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ShapeSeed {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Blank)
    }

    fn visit_none<E>(self) -> Result<Shape, E> {
        Ok(Shape::Blank)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Shape, A::Error> {
        let mut shapes = Vec::new();
        while let Some(shape) = items.next_element_seed(self)? {
            shapes.push(shape);
        }
        Ok(Shape::List(shapes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Shape, A::Error> {
        let mut shapes = Vec::new();
        while entries.next_key_seed(KeySeed)?.is_some() {
            shapes.push(entries.next_value_seed(self)?);
        }
        Ok(Shape::Map(shapes))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Shape, A::Error> {
        let (_, content) = tagged.variant::<IgnoredAny>()?;
        content.newtype_variant::<IgnoredAny>()?;
        Ok(Shape::Tagged)
    }
}

impl<'de> DeserializeSeed<'de> for Shape {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        match self {
            Self::Blank => deserializer
                .deserialize_ignored_any(IgnoredAny)
                .map(|_| Node::Blank),
            Self::Tagged => deserializer
                .deserialize_ignored_any(IgnoredAny)
                .map(|_| Node::Tagged),
            Self::Scalar => KeySeed.deserialize(deserializer).map(Node::Scalar),
            Self::List(shapes) => deserializer.deserialize_seq(NodesVisitor(shapes)),
            Self::Map(shapes) => deserializer.deserialize_map(NodesVisitor(shapes)),
        }
    }
}

// === impl Node ===

/// A scalar, spelled as in the file.
struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

/// Walks the document a second time, along the shape that the first time found.
struct NodesVisitor(Vec<Shape>);

impl<'de> Visitor<'de> for NodesVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the shape of the first reading")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::with_capacity(self.0.len());
        for shape in self.0 {
            nodes.extend(items.next_element_seed(shape)?);
        }
        // The end itself has to be asked for, or the parser reports a remaining element.
        items.next_element::<IgnoredAny>()?;
        Ok(Node::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::with_capacity(self.0.len());
        for shape in self.0 {
            if let Some(key) = entries.next_key_seed(KeySeed)? {
                nodes.push((key, entries.next_value_seed(shape)?));
            }
        }
        entries.next_key::<IgnoredAny>()?;
        Ok(Node::Map(merged(nodes)))
    }
}

/// What `<<` names, put beside a group's own keys, which win. Any other value of `<<` stays and is told as a
/// key that nobody knows.
fn merged(nodes: Vec<(String, Node)>) -> Vec<(String, Node)> {
    let is_merge = |(key, value): &(String, Node)| {
        key == MERGE
            && match value {
                Node::Map(_) => true,
                Node::List(items) => items.iter().all(|item| matches!(item, Node::Map(_))),
                Node::Blank | Node::Scalar(_) | Node::Tagged => false,
            }
    };
    let (merges, mut own): (Vec<_>, Vec<_>) = nodes.into_iter().partition(is_merge);
    let groups = merges.into_iter().flat_map(|(_, value)| match value {
        Node::List(items) => items,
        one => vec![one],
    });
    for group in groups {
        let Node::Map(entries) = group else { continue };
        for (key, value) in entries {
            if own.iter().all(|(known, _)| *known != key) {
                own.push((key, value));
            }
        }
    }
    own
}
