//! Asking the file for one key after the other, and keeping a list of everything wrong.
//!
//! Reading never stops at a mistake: each question answers [`Field::Wrong`] after noting it, so that an
//! operator sees all of them in one go.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file::Node;
use super::keys;
use super::scalar;
use super::{KeyPair, Secret};
use crate::causes::chain;
use crate::kubernetes;
use crate::publish::tls::{self, TlsError};

/// Secrets and certificates are far smaller; a wrong path should not fill the memory.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The key's path.
    pub key: String,
    /// What is wrong, without any secret.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// What a question found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field<T> {
    Absent,
    /// There, but wrong; noted already.
    Wrong,
    Is(T),
}

/// Everything noted so far.
pub(super) struct Reader {
    pub(super) mistakes: Vec<Mistake>,
    /// Whether files that the configuration names must be there.
    check_files: bool,
    /// Patterns of every key that was asked for: what a test holds against the table.
    pub(super) asked: BTreeSet<String>,
}

/// One group of keys, or one item of a list.
#[derive(Clone)]
pub(super) struct Group<'a> {
    pub(super) path: String,
    pattern: String,
    entries: &'a [(String, Node)],
}

// === impl Mistake ===

/// `key: message`, with the hint after it.
impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; hint: {hint}"),
            None => Ok(()),
        }
    }
}

// === impl Field ===

impl<T> Field<T> {
    pub(super) fn ok(self) -> Option<T> {
        match self {
            Self::Is(value) => Some(value),
            Self::Absent | Self::Wrong => None,
        }
    }

    pub(super) fn map<U>(self, f: impl FnOnce(T) -> U) -> Field<U> {
        match self {
            Self::Is(value) => Field::Is(f(value)),
            Self::Absent => Field::Absent,
            Self::Wrong => Field::Wrong,
        }
    }

    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

// === impl Group ===

impl<'a> Group<'a> {
    pub(super) fn path_of(&self, name: &str) -> String {
        keys::join(&self.path, name)
    }

    fn node(&self, name: &str) -> Option<&'a Node> {
        self.entries
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, node)| node)
    }

    /// Whether a name stands in it, with whatever value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.node(name).is_some()
    }

    /// Whether something stands under a name: neither nothing, nor an empty group or list.
    pub(super) fn says(&self, name: &str) -> bool {
        match self.node(name) {
            None | Some(Node::Blank) => false,
            Some(Node::Map(entries)) => !entries.is_empty(),
            Some(Node::List(items)) => !items.is_empty(),
            Some(Node::Scalar(_) | Node::Tagged) => true,
        }
    }

    /// Whether any key stands in it.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

// === impl Reader ===

impl Reader {
    pub(super) fn new(check_files: bool) -> Self {
        Self {
            mistakes: Vec::new(),
            check_files,
            asked: BTreeSet::new(),
        }
    }

    /// Notes a mistake.
    pub(super) fn wrong(&mut self, key: String, message: impl Into<String>) {
        self.mistakes.push(Mistake {
            key,
            message: message.into(),
            hint: None,
        });
    }

    /// Notes a mistake with a way out.
    pub(super) fn wrong_hint(&mut self, key: String, message: &str, hint: impl Into<String>) {
        let (message, hint) = (message.to_owned(), Some(hint.into()));
        self.mistakes.push(Mistake { key, message, hint });
    }

    /// The whole file as a group.
    pub(super) fn root<'a>(&mut self, node: &'a Node) -> Group<'a> {
        self.as_group(node, String::new(), String::new())
    }

    /// A group of keys; an absent one is empty.
    pub(super) fn group<'a>(&mut self, parent: &Group<'a>, name: &str) -> Group<'a> {
        let (path, pattern) = (parent.path_of(name), keys::join(&parent.pattern, name));
        match parent.node(name) {
            Some(node) => self.as_group(node, path, pattern),
            None => Group {
                path,
                pattern,
                entries: &[],
            },
        }
    }

    fn as_group<'a>(&mut self, node: &'a Node, path: String, pattern: String) -> Group<'a> {
        let entries: &[_] = match node {
            Node::Map(entries) => entries,
            Node::Blank => &[],
            Node::Scalar(_) | Node::List(_) | Node::Tagged => {
                let key = if path.is_empty() {
                    "(file)".to_owned()
                } else {
                    path.clone()
                };
                self.wrong(key, "must be a group of keys");
                &[]
            }
        };
        Group {
            path,
            pattern,
            entries,
        }
    }

    /// The items of a list, each with its path.
    fn items<'a>(&mut self, group: &Group<'a>, name: &str) -> Field<Vec<(String, &'a Node)>> {
        self.ask(group, name);
        let path = group.path_of(name);
        match group.node(name) {
            None => Field::Absent,
            Some(Node::Blank) => Field::Is(Vec::new()),
            Some(Node::List(items)) => {
                let item = |(index, node)| (format!("{path}[{index}]"), node);
                Field::Is(items.iter().enumerate().map(item).collect())
            }
            Some(_) => {
                self.wrong(path, "must be a list");
                Field::Wrong
            }
        }
    }

    /// A list of groups.
    pub(super) fn groups<'a>(&mut self, group: &Group<'a>, name: &str) -> Field<Vec<Group<'a>>> {
        let pattern = format!("{}[]", keys::join(&group.pattern, name));
        self.items(group, name).map(|items| {
            let item = |(path, node)| self.as_group(node, path, pattern.clone());
            items.into_iter().map(item).collect()
        })
    }

    /// A list of texts, each with its path.
    pub(super) fn texts<'a>(
        &mut self,
        group: &Group<'a>,
        name: &str,
    ) -> Field<Vec<(String, &'a str)>> {
        self.items(group, name).map(|items| {
            let item = |(path, node): (String, &'a Node)| {
                Some((path.clone(), self.as_text(path, node).ok()?))
            };
            items.into_iter().filter_map(item).collect()
        })
    }

    /// A text, verbatim.
    pub(super) fn text<'a>(&mut self, group: &Group<'a>, name: &str) -> Field<&'a str> {
        self.ask(group, name);
        match group.node(name) {
            None => Field::Absent,
            Some(node) => self.as_text(group.path_of(name), node),
        }
    }

    fn as_text<'a>(&mut self, path: String, node: &'a Node) -> Field<&'a str> {
        match node {
            Node::Scalar(text) if !text.trim().is_empty() => return Field::Is(text),
            Node::Scalar(_) | Node::Blank => self.wrong(path, "can not be blank"),
            Node::List(_) | Node::Map(_) => self.wrong(path, "must be a single value"),
            Node::Tagged => {
                self.wrong_hint(path, "starts with a YAML tag", "put the value in quotes");
            }
        }
        Field::Wrong
    }

    /// A text with a meaning.
    pub(super) fn parsed<T>(
        &mut self,
        group: &Group<'_>,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Field<T> {
        match self.text(group, name) {
            Field::Is(text) => match parse(text.trim()) {
                Ok(value) => Field::Is(value),
                Err(message) => {
                    self.wrong(group.path_of(name), message);
                    Field::Wrong
                }
            },
            Field::Absent => Field::Absent,
            Field::Wrong => Field::Wrong,
        }
    }

    /// A boolean; blank is as good as absent, as it was for the original.
    pub(super) fn flag(&mut self, group: &Group<'_>, name: &str) -> Field<bool> {
        if matches!(group.node(name), Some(Node::Blank)) {
            return Field::Absent;
        }
        self.parsed(group, name, scalar::flag)
    }

    /// A duration within bounds.
    pub(super) fn duration(
        &mut self,
        group: &Group<'_>,
        name: &str,
        bounds: std::ops::RangeInclusive<Duration>,
    ) -> Field<Duration> {
        self.parsed(group, name, |text| {
            let duration = scalar::duration(text)?;
            if bounds.contains(&duration) {
                Ok(duration)
            } else {
                Err(format!(
                    "must lie between {:?} and {:?}",
                    bounds.start(),
                    bounds.end()
                ))
            }
        })
    }

    /// A whole number within bounds.
    pub(super) fn number(
        &mut self,
        group: &Group<'_>,
        name: &str,
        bounds: std::ops::RangeInclusive<u32>,
    ) -> Field<u32> {
        self.parsed(group, name, |text| {
            let number = text
                .parse::<u32>()
                .ok()
                .filter(|number| bounds.contains(number));
            number.ok_or_else(|| {
                format!(
                    "must be a whole number from {} to {}",
                    bounds.start(),
                    bounds.end()
                )
            })
        })
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        group: &Group<'_>,
        name: &str,
        choices: &[(&str, T)],
    ) -> Field<T> {
        self.parsed(group, name, |text| {
            let found = choices.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                let words: Vec<_> = choices
                    .iter()
                    .map(|(word, _)| format!("`{word}`"))
                    .collect();
                format!("must be {}", words.join(" or "))
            })
        })
    }

    /// A kubeconfig with which the apiserver can be asked now.
    pub(super) fn kubeconfig(&mut self, group: &Group<'_>, name: &str) -> Field<PathBuf> {
        self.readable(group, name, |path| {
            kubernetes::check_kubeconfig(path).map_err(|error| chain(&error))
        })
    }

    /// A file of authorities to trust.
    pub(super) fn ca_file(&mut self, group: &Group<'_>, name: &str) -> Field<PathBuf> {
        self.readable(group, name, |path| told(tls::authorities(path)))
    }

    /// A file that can be read and used now.
    fn readable(
        &mut self,
        group: &Group<'_>,
        name: &str,
        usable: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Field<PathBuf> {
        let check_files = self.check_files;
        self.parsed(group, name, |text| {
            let path = PathBuf::from(text);
            if check_files {
                // First with a bound: whoever judges the content reads all of it.
                content(&path)?;
                usable(&path)?;
            }
            Ok(path)
        })
    }

    /// A secret by value or by file, never both.
    pub(super) fn secret(&mut self, group: &Group<'_>, name: &str) -> Field<Secret> {
        let file_name = format!("{name}_file");
        let value = self
            .text(group, name)
            .map(|text| Secret::new(text.to_owned()));
        let file = self.secret_file(group, &file_name);
        match (value, file) {
            (Field::Absent, file) => file,
            (value, Field::Absent) => value,
            _ => {
                let message = format!("`{name}` and `{file_name}` are both given");
                self.wrong_hint(group.path_of(name), &message, "give one of them");
                Field::Wrong
            }
        }
    }

    /// A secret by file alone.
    pub(super) fn secret_file(&mut self, group: &Group<'_>, name: &str) -> Field<Secret> {
        let check_files = self.check_files;
        self.parsed(group, name, |path| {
            if check_files {
                Secret::read(Path::new(path))
            } else {
                // Nobody who skips the files sends anything.
                Ok(Secret::new(String::new()))
            }
        })
    }

    /// A certificate with its key: both or none.
    pub(super) fn identity(&mut self, group: &Group<'_>, cert: &str, key: &str) -> Option<KeyPair> {
        let cert_file = self.readable(group, cert, |path| told(tls::authorities(path)));
        let key_file = self.readable(group, key, |path| told(tls::private_key(path)));
        let lone = match (&cert_file, &key_file) {
            (Field::Is(_), Field::Absent) => Some((key, cert)),
            (Field::Absent, Field::Is(_)) => Some((cert, key)),
            _ => None,
        };
        if let Some((missing, given)) = lone {
            self.wrong(
                group.path_of(missing),
                format!("is missing beside `{given}`"),
            );
        }
        let identity = KeyPair {
            cert_file: cert_file.ok()?,
            key_file: key_file.ok()?,
        };
        if self.check_files {
            self.fitting(&identity, group, cert, key);
        }
        Some(identity)
    }

    fn fitting(&mut self, identity: &KeyPair, group: &Group<'_>, cert: &str, key: &str) {
        let path = group.path_of(key);
        match tls::certified_key(identity) {
            Ok(_) => {}
            Err(error @ TlsError::Mismatch) => {
                let (cert_file, key_file) =
                    (identity.cert_file.display(), identity.key_file.display());
                let hint = format!(
                    "`openssl x509 -noout -pubkey -in {cert_file}` and `openssl pkey -pubout -in {key_file}` must print the same"
                );
                let message = format!("does not fit `{cert}`: {error}");
                self.wrong_hint(path, &message, hint);
            }
            // Such as a key of a kind that rustls cannot sign with.
            Err(error) => self.wrong(path, chain(&error)),
        }
    }

    /// A key under its original and its grouped name; both only when they say the same.
    pub(super) fn either<T: PartialEq>(
        &mut self,
        (old_name, old): (&str, Field<T>),
        (new_name, new): (&str, Field<T>),
    ) -> Field<T> {
        match (old, new) {
            (Field::Absent, other) | (other, Field::Absent) => other,
            (Field::Is(old), Field::Is(new)) if old == new => Field::Is(new),
            (Field::Is(_), Field::Is(_)) => {
                let message = format!("differs from `{old_name}`, the original's name for it");
                self.wrong_hint(new_name.to_owned(), &message, "give one of them");
                Field::Wrong
            }
            (Field::Wrong, _) | (_, Field::Wrong) => Field::Wrong,
        }
    }

    /// A key without which nothing works.
    pub(super) fn required<T>(&mut self, name: &str, old_name: &str, field: Field<T>) -> Option<T> {
        if field.is_absent() {
            let hint = format!("`{old_name}`, its original name, is read as well");
            self.wrong_hint(name.to_owned(), "is missing", hint);
        }
        field.ok()
    }

    fn ask(&mut self, group: &Group<'_>, name: &str) {
        let pattern = keys::join(&group.pattern, name);
        debug_assert!(
            keys::is_known(&pattern),
            "`{pattern}` must stand in the table of keys"
        );
        self.asked.insert(pattern);
    }
}

/// Whether it works, else why not.
fn told<T>(result: Result<T, TlsError>) -> Result<(), String> {
    result.map(drop).map_err(|error| chain(&error))
}

pub(super) fn content(path: &Path) -> Result<String, String> {
    let cannot = |error: &dyn fmt::Display| format!("cannot read `{}`: {error}", path.display());
    let file = fs::File::open(path).map_err(|error| cannot(&error))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| cannot(&error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(cannot(&"it has more than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| cannot(&"it is no UTF-8"))
}
