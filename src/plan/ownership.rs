//! What is ours to delete. The only place where an [`Owned`] row is made, so that nothing else can ask for the
//! deletion of a stranger's.
//!
//! A row is ours if it carries our id; where it carries none (routing APIs before 2024-07 drop it), if this
//! very process had it confirmed. A row under somebody else's id never is, with one exception: one at the very
//! `ip:port` behind the very front where ours shall stand, because both together would break HAProxy.

use std::fmt;

use super::{Journal, TcpRow};
use crate::route::ClusterId;

/// The mark of this controller on its rows: a function of the cluster alone, so that every instance and every
/// restart knows them again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(String);

/// Something that may be deleted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owned<T>(T);

/// FNV-1a, 64 bits: the same in every build, which the standard library's hasher does not promise.
pub(super) fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

// === impl InstanceId ===

impl InstanceId {
    /// The id of the controller of a cluster.
    #[must_use]
    pub fn of(cluster: &ClusterId) -> Self {
        Self(format!("rs-{:016x}", hash(cluster.0.bytes())))
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Owned ===

impl<T> Owned<T> {
    /// What is owned.
    #[must_use]
    pub fn get(&self) -> &T {
        &self.0
    }

    /// Gives it up for the deletion itself.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0
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
            Some(stamp) if !stamp.is_empty() => stamp == instance.as_str(),
            _ => journal.confirmed.contains_key(row),
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
    use super::*;

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
