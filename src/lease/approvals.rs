//! What operators approved, as text for an annotation of the Lease.
//!
//! A Lease outlives its holders, and so would an approval that somebody gave years ago, to a cluster that has been
//! put back since. So the text names the term in which it was written, and the task takes it from a Lease alone that
//! was written since it looked last: `elect::Sight`.

use serde_json::{Value, json};

use crate::desired::guard::{Approvals, PlanHash};

/// More than a cluster has node ports (2,768). Of a larger plan the rest is to be approved again after a takeover.
const ROUTES_MAX: usize = 3000;
/// An object's annotations may take 256 KiB together; as many routes are 56 KiB.
const BYTES_MAX: usize = 64 * 1024;

/// The text, as it is written in the term of this generation; nothing where nothing was approved.
#[must_use]
pub fn encode(approvals: &Approvals, generation: u64) -> Option<String> {
    if approvals.is_empty() {
        return None;
    }
    let Approvals {
        kube_system,
        instead_of,
        routes,
    } = approvals;
    let routes = routes.iter().take(ROUTES_MAX);
    let routes: Vec<_> = routes.map(ToString::to_string).collect();
    let text = json!({
        "generation": generation,
        "kube_system": kube_system,
        "instead_of": instead_of,
        "routes": routes,
    });
    Some(text.to_string())
}

/// What a text tells in the term of this generation. One that cannot be read, or is of another term, tells nothing.
#[must_use]
pub fn decode(text: &str, generation: u64) -> Approvals {
    if text.len() > BYTES_MAX {
        return Approvals::default();
    }
    let told: Value = serde_json::from_str(text).unwrap_or_default();
    if told["generation"].as_u64() != Some(generation) {
        return Approvals::default();
    }
    let name = |value: &Value| value.as_str().map(str::to_owned);
    let routes = told["routes"].as_array().into_iter().flatten();
    Approvals {
        kube_system: name(&told["kube_system"]),
        instead_of: name(&told["instead_of"]),
        routes: routes
            .filter_map(|route| PlanHash::parse(route.as_str()?))
            .take(ROUTES_MAX)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn approvals(count: u64) -> Approvals {
        let plan = |index: u64| PlanHash::parse(&format!("{index:016x}")).unwrap();
        Approvals {
            kube_system: Some("5f0c4f9e-7a53-4d43-b1f5-8d6a2b6f3a11".to_owned()),
            instead_of: Some("0d9c1c1e-26f7-4c0b-8f6c-3a1de5b6c522".to_owned()),
            routes: (0..count).map(plan).collect(),
        }
    }

    #[test]
    fn what_was_written_is_read_in_the_same_term_and_in_no_other() {
        for count in [0, 1, 3000] {
            let approvals = approvals(count);
            let text = encode(&approvals, 7).unwrap();
            assert_eq!(decode(&text, 7), approvals);
            for other in [0, 6, 8] {
                assert_eq!(decode(&text, other), Approvals::default(), "{other}");
            }
        }
        assert_eq!(encode(&Approvals::default(), 7), None);
    }

    #[test]
    fn a_text_never_grows_beyond_its_bound_and_what_fits_is_kept() {
        let text = encode(&approvals(10_000), 7).unwrap();
        assert!(text.len() <= BYTES_MAX, "{}", text.len());
        assert_eq!(decode(&text, 7).routes.len(), ROUTES_MAX);
    }

    #[test]
    fn what_cannot_be_read_tells_nothing_and_harms_nothing_beside_it() {
        let spaces = " ".repeat(BYTES_MAX);
        let long = format!("{{{spaces}\"generation\":7,\"instead_of\":\"k\"}}");
        for text in [
            "",
            "{",
            "[7]",
            "null",
            "{\"routes\":[]}",
            "{\"generation\":\"7\",\"instead_of\":\"k\"}",
            &long,
        ] {
            assert_eq!(decode(text, 7), Approvals::default(), "{text:.40}");
        }
        let text = r#"{"generation":7,"kube_system":1,"routes":
            ["00000000000000ff","ff","00000000000000FF","+0000000000000ff",5,null,"0000000000000000ff"]}"#;
        let read = decode(text, 7);
        let routes: Vec<_> = read.routes.iter().map(ToString::to_string).collect();
        assert_eq!(
            (read.kube_system, routes),
            (None, vec!["00000000000000ff".to_owned()])
        );
    }
}
