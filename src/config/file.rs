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

/// One value of the file. It has no `Debug`: it may be a secret.
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

/// Reads a whole file.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let shape = ShapeSeed
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .map_err(|error| SyntaxError::of(&error))?;
    shape
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .map_err(|error| SyntaxError::of(&error))
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
        Ok(Node::Map(nodes))
    }
}
