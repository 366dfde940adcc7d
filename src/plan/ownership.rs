//! What is ours to delete. The only place where an [`Owned`] row is made, so that nothing else can ask for the
//! deletion of a stranger's.
//!
//! A row is ours if it carries our id; where it carries none (routing APIs before 2024-07 drop it), or the id of
//! the cluster that this process spoke for before another was approved, if this very process had it confirmed, or
//! the one before it whose state it took over. A row under somebody else's id never is, with one exception: one at
//! the very `ip:port` behind the very front where ours shall stand, because both together would break HAProxy.

use std::fmt;

use super::{Journal, TcpRow};
use crate::route::{ClusterId, stable_hash};

/// The mark of this controller on its rows: a function of the cluster alone, so that every instance and every
/// restart knows them again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId {
    own: String,
    /// Of the cluster before, whose rows the process wrote as well.
    former: Option<String>,
}

/// Something that may be deleted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owned<T>(T);

// === impl InstanceId ===

impl InstanceId {
    /// The id of the controller of a cluster.
    #[must_use]
    pub fn of(cluster: &ClusterId) -> Self {
        Self::of_hash(stable_hash(cluster.0.bytes()))
    }

    /// The id that somebody chose. The column holds 255 characters (routing-api, `varchar(255)`).
    #[must_use]
    pub fn chosen(text: &str) -> Option<Self> {
        const CHARS_MAX: usize = 255;
        let fits = (1..=CHARS_MAX).contains(&text.len());
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        (fits && plain).then(|| Self {
            own: text.to_owned(),
            former: None,
        })
    }

    /// The id of whoever is known by a hash.
    #[must_use]
    pub fn of_hash(hash: u64) -> Self {
        Self {
            own: format!("rs-{hash:016x}"),
            former: None,
        }
    }

    /// The same in a process that was another before.
    #[must_use]
    pub fn formerly(self, earlier: Self) -> Self {
        let former = if earlier.own == self.own {
            earlier.former
        } else {
            Some(earlier.own)
        };
        Self { former, ..self }
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.own
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.own)
    }
}

// === impl Owned ===

impl<T> Owned<T> {
    /// What is owned.
    #[must_use]
    pub fn get(&self) -> &T {
        &self.0
    }
}

impl Owned<TcpRow> {
    /// Proves that a row is ours, by the id it carries or else by what we did.
    pub(super) fn prove(
        row: &TcpRow,
        stamp: Option<&str>,
        instance: &InstanceId,
        journal: &Journal,
    ) -> Option<Self> {
        let ours = match stamp {
            Some(stamp) if stamp == instance.own => true,
            Some(stamp) if !stamp.is_empty() => {
                instance.former.as_deref() == Some(stamp) && journal.holds(row)
            }
            _ => journal.holds(row),
        };
        ours.then(|| Self(row.clone()))
    }

    /// A row at the very place of one that we want, under another identity.
    pub(super) fn in_the_way(row: &TcpRow, wanted: &TcpRow) -> Option<Self> {
        (row != wanted && row.same_server(wanted)).then(|| Self(row.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::plan::NO_TLS;
    use crate::route::RouterPort;

    #[test]
    fn rows_of_the_cluster_before_are_ours_where_we_wrote_them() {
        let id = |name: &str| InstanceId::of(&ClusterId(name.to_owned()));
        let row = |backend_port| TcpRow {
            port: RouterPort::new(2000).unwrap(),
            ip: "10.0.0.1".to_owned(),
            backend_port,
            tls_port: NO_TLS,
            sni: None,
            group: "g".to_owned(),
        };
        let (written, other) = (row(30_001), row(30_002));
        let journal = Journal {
            inherited: BTreeSet::from([written.clone()]),
            ..Journal::default()
        };
        let now = id("now").formerly(id("before"));
        let is_ours = |row: &TcpRow, stamp: &InstanceId| {
            Owned::prove(row, Some(stamp.as_str()), &now, &journal).is_some()
        };
        assert!(is_ours(&written, &id("before")) && !is_ours(&other, &id("before")));
        assert!(is_ours(&other, &id("now")) && !is_ours(&written, &id("third")));
        // Each table says anew for whom it speaks.
        assert_eq!(id("now").formerly(now.clone()), now);
    }

    #[test]
    fn the_id_is_a_stable_dns_label() {
        let id = InstanceId::of(&ClusterId("0b6e0b1c".to_owned()));
        assert_eq!(id, InstanceId::of(&ClusterId("0b6e0b1c".to_owned())));
        assert_ne!(id, InstanceId::of(&ClusterId("0b6e0b1d".to_owned())));
        assert!(id.as_str().len() <= 63 && id.as_str().starts_with("rs-"));
        // FNV-1a of the empty text: pins the function, on which rows of earlier runs depend.
        assert_eq!(
            InstanceId::of(&ClusterId(String::new())).as_str(),
            "rs-cbf29ce484222325"
        );
    }
}
