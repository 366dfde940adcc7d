//! Host names and the uris gorouter keys its table by.
//!
//! gorouter validates nothing: a space, a port or an empty uri is accepted and pollutes the table (measured on
//! routing-release 2024-10). What parses here is therefore the only thing that may be announced.

use std::fmt;
use std::sync::Arc;

/// Longest DNS name in octets (RFC 1035 §2.3.4).
const NAME_LENGTH_MAX: usize = 253;
/// Longest DNS label in octets (RFC 1035 §2.3.4).
const LABEL_LENGTH_MAX: usize = 63;
/// Longest path we announce, in octets. gorouter has no limit; one message must stay well below NATS'
/// 1 MiB whatever an annotation holds.
const PATH_LENGTH_MAX: usize = 512;

/// A lower-cased DNS name: labels of letters, digits and inner dashes. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hostname(Arc<str>);

/// Why a text is no host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostnameError {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// More than 253 characters.
    #[error("it has {0} characters, more than 253")]
    TooLong(usize),
    /// Two dots in a row, or one at an end.
    #[error("it has an empty label (two dots in a row, or a dot at an end)")]
    EmptyLabel,
    /// One label over 63 characters.
    #[error("its label `{0}` has more than 63 characters")]
    LabelTooLong(String),
    /// A dash at the end of a label.
    #[error("its label `{0}` starts or ends with a dash")]
    EdgeDash(String),
    /// Anything but letters, digits, dashes and dots.
    #[error("it contains `{}`; only letters, digits, dashes and dots may stand in a host", .0.escape_default())]
    Character(char),
}

/// What gorouter keys a pool by: a host, perhaps all hosts below it, and perhaps a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uri {
    host: Hostname,
    wildcard: bool,
    path: String,
}

/// Why a text is no uri.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// The part before the first slash is no host.
    #[error(transparent)]
    Host(#[from] HostnameError),
    /// A character gorouter would store but never match, or cut off.
    #[error("its path contains `{}`", .0.escape_default())]
    PathCharacter(char),
    /// A path of over 512 characters.
    #[error("its path has {0} characters, more than 512")]
    PathTooLong(usize),
}

// === impl Hostname ===

impl Hostname {
    /// Parses and lower-cases a name.
    ///
    /// # Errors
    /// Says which rule of RFC 1035 or RFC 1123 the text breaks.
    pub fn parse(text: &str) -> Result<Self, HostnameError> {
        if text.is_empty() {
            return Err(HostnameError::Empty);
        }
        if text.len() > NAME_LENGTH_MAX {
            return Err(HostnameError::TooLong(text.chars().count()));
        }
        for label in text.split('.') {
            check_label(label)?;
        }
        let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        Ok(Self(if lower {
            text.into()
        } else {
            text.to_ascii_lowercase().into()
        }))
    }

    /// This name below `domain`.
    ///
    /// # Errors
    /// When both together exceed 253 characters.
    pub fn below(&self, domain: &Self) -> Result<Self, HostnameError> {
        let name = [&*self.0, ".", &*domain.0].concat();
        // Both are names already: only their length together is new.
        if name.len() > NAME_LENGTH_MAX {
            return Err(HostnameError::TooLong(name.len()));
        }
        Ok(Self(name.into()))
    }

    /// Whether this name is `domain` or stands below it.
    #[must_use]
    pub fn is_within(&self, domain: &Self) -> bool {
        self == domain
            || self
                .0
                .strip_suffix(&*domain.0)
                .is_some_and(|head| head.ends_with('.'))
    }

    /// The labels in front of `domain`, if this name stands below it.
    #[must_use]
    pub fn without_domain(&self, domain: &Self) -> Option<&str> {
        self.0.strip_suffix(&*domain.0)?.strip_suffix('.')
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_label(label: &str) -> Result<(), HostnameError> {
    if label.is_empty() {
        return Err(HostnameError::EmptyLabel);
    }
    if let Some(bad) = label
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && *c != '-')
    {
        return Err(HostnameError::Character(bad));
    }
    if label.len() > LABEL_LENGTH_MAX {
        return Err(HostnameError::LabelTooLong(label.to_owned()));
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err(HostnameError::EdgeDash(label.to_owned()));
    }
    Ok(())
}

// === impl Uri ===

impl Uri {
    /// Reads what [`Display`](fmt::Display) writes.
    ///
    /// # Errors
    /// When the text is no `[*.]host[/path]`.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let (host, path) = text.split_at(text.find('/').unwrap_or(text.len()));
        match host.strip_prefix("*.") {
            Some(host) => Self::below_host(Hostname::parse(host)?),
            None => Self::of_host(Hostname::parse(host)?),
        }
        .with_path(path)
    }

    /// The whole of `host`.
    #[must_use]
    pub fn of_host(host: Hostname) -> Self {
        Self {
            host,
            wildcard: false,
            path: String::new(),
        }
    }

    /// Every name below `host`; the host itself is not among them (measured on gorouter).
    #[must_use]
    pub fn below_host(host: Hostname) -> Self {
        Self {
            host,
            wildcard: true,
            path: String::new(),
        }
    }

    /// This uri narrowed to a path. gorouter compares paths without case and drops one trailing slash, so
    /// two spellings of one path are one uri here.
    ///
    /// # Errors
    /// When the path holds a character that gorouter would cut off or never match.
    pub fn with_path(mut self, path: &str) -> Result<Self, UriError> {
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.len() > PATH_LENGTH_MAX {
            return Err(UriError::PathTooLong(path.chars().count()));
        }
        let foreign = |c: &char| !c.is_ascii_graphic() || matches!(c, '?' | '#' | '*' | '"' | '\\');
        if let Some(bad) = path.chars().find(foreign) {
            return Err(UriError::PathCharacter(bad));
        }
        self.path = path.to_ascii_lowercase();
        Ok(self)
    }

    /// The host, without the wildcard.
    #[must_use]
    pub fn host(&self) -> &Hostname {
        &self.host
    }

    /// Whether this stands for every name below the host.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// Whether both stand at one host: a wildcard and the host it stands below are two, as for gorouter.
    #[must_use]
    pub fn same_host(&self, other: &Self) -> bool {
        (&self.host, self.wildcard) == (&other.host, other.wildcard)
    }

    /// This uri without its path.
    #[must_use]
    pub fn whole_host(&self) -> Self {
        Self {
            path: String::new(),
            ..self.clone()
        }
    }

    /// The path with its leading slash, or nothing.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// As gorouter reads it: `*.host/path`.
impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.wildcard { "*." } else { "" };
        write!(f, "{star}{}{}", self.host, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_reads_what_it_writes_and_nothing_else() {
        for text in ["a.test", "*.a.test", "a.test/x/y", "*.a.test/x"] {
            assert_eq!(Uri::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "*.", "a test", "a.*.test", "/x", "a.test/x?y"] {
            assert!(Uri::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_is_lower_cased() {
        assert_eq!(Hostname::parse("Web.Apps").unwrap().as_str(), "web.apps");
    }

    #[test]
    fn each_broken_rule_is_named() {
        let check = |text: &str, expect: &str| {
            assert_eq!(
                Hostname::parse(text).unwrap_err().to_string(),
                expect,
                "{text}"
            );
        };
        check("", "it is empty");
        check(
            "a..b",
            "it has an empty label (two dots in a row, or a dot at an end)",
        );
        check(
            "a.",
            "it has an empty label (two dots in a row, or a dot at an end)",
        );
        check("-a", "its label `-a` starts or ends with a dash");
        check(
            "foo_bar",
            "it contains `_`; only letters, digits, dashes and dots may stand in a host",
        );
        check(
            "a b",
            "it contains ` `; only letters, digits, dashes and dots may stand in a host",
        );
        let long = "a".repeat(64);
        check(
            &long,
            &format!("its label `{long}` has more than 63 characters"),
        );
        check(&"a.".repeat(127), "it has 254 characters, more than 253");
    }

    #[test]
    fn a_domain_holds_itself_and_what_stands_below_it() {
        let domain = Hostname::parse("apps.test").unwrap();
        let inside = Hostname::parse("web.apps.test").unwrap();
        assert!(domain.is_within(&domain) && inside.is_within(&domain));
        assert!(!Hostname::parse("webapps.test").unwrap().is_within(&domain));
        assert_eq!(inside.without_domain(&domain), Some("web"));
        assert_eq!(domain.without_domain(&domain), None);
    }

    #[test]
    fn a_path_has_one_spelling() {
        let host = Hostname::parse("a.test").unwrap();
        let uri = Uri::of_host(host.clone()).with_path("/API/").unwrap();
        assert_eq!(uri.to_string(), "a.test/api");
        assert_eq!(
            Uri::of_host(host.clone()).with_path("/").unwrap(),
            Uri::of_host(host.clone())
        );
        assert!(Uri::of_host(host).with_path("/a?b").is_err());
    }
}
