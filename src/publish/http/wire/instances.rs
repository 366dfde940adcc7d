//! What instances of one cluster tell each other: who leads, and under which generation of the Lease.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::lease::Term;
use crate::plan::InstanceId;
use crate::route::ClusterId;

/// Before the cluster's short name in the subject.
pub(in crate::publish::http) const INSTANCES: &str = "route-sync.";
/// Anybody may publish there; ours take some 100 bytes.
const BYTES_MAX: usize = 1024;

#[derive(Serialize, Deserialize)]
struct Leads {
    generation: u64,
    holder: String,
}

/// Where the instances of a cluster talk. It ends as the mark on their TCP rows does.
pub(in crate::publish::http) fn subject(cluster: &ClusterId) -> String {
    let instance = InstanceId::of(cluster);
    let hash = instance.as_str().trim_start_matches("rs-");
    format!("{INSTANCES}{hash}")
}

pub(in crate::publish::http) fn leads(term: &Term) -> Bytes {
    let Term { generation, holder } = term.clone();
    let body = serde_json::to_vec(&Leads { generation, holder });
    body.expect("texts and numbers must be JSON").into()
}

/// What another tells, if it is that.
pub(in crate::publish::http) fn told(body: &[u8]) -> Option<Term> {
    if body.len() > BYTES_MAX {
        return None;
    }
    let Leads { generation, holder } = serde_json::from_slice(body).ok()?;
    Some(Term { generation, holder })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_understood_and_anything_else_is_nothing() {
        let term = Term {
            generation: 7,
            holder: "vm-1".to_owned(),
        };
        assert_eq!(told(&leads(&term)), Some(term));
        for text in ["", "{}", r#"{"generation":-1,"holder":"x"}"#, "[7]"] {
            assert_eq!(told(text.as_bytes()), None, "{text}");
        }
        assert_eq!(told(&[b' '; BYTES_MAX + 1]), None);
    }

    #[test]
    fn each_cluster_has_a_subject_of_its_own() {
        let of = |name: &str| subject(&ClusterId(name.to_owned()));
        assert!(of("a").starts_with("route-sync.") && of("a") != of("b"));
        assert_eq!(of("a").len(), "route-sync.".len() + 16);
    }
}
