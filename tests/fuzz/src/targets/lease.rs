//! What instances leave each other in the Lease: who holds which contested name, and what operators approved.
//!
//! Input: the text of either annotation.

use route_sync::lease::{decode_approvals, decode_holders, encode_approvals, encode_holders};

use super::Target;

pub(super) const TARGET: Target = Target {
    name: "lease",
    words: &[
        "{",
        "}",
        "\"web.apps.test/a\":",
        "\"*.apps.test\":",
        "\":1024\":",
        "\":0\":",
        "\"team/web\"",
        "\"team\"",
        "\"/\"",
        "\"generation\":7",
        "\"generation\":8",
        "\"kube_system\":\"uid\"",
        "\"instead_of\":\"other\"",
        "\"routes\":[\"169b9562a4744189\"]",
        "\"0000000000000000\"",
        "\\u0000",
        "\\\"",
        "null",
        ",",
        "[",
        "]",
    ],
    run,
};

/// What is written takes no more than that of the 256 KiB that an object's annotations may take together.
const BYTES_MAX: usize = 64 * 1024;
/// Of the words above.
const GENERATION: u64 = 7;

fn run(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let contested = decode_holders(text);
    let written = encode_holders(&contested);
    assert!(written.len() <= BYTES_MAX, "{} bytes", written.len());
    assert_eq!(decode_holders(&written), contested);

    let approvals = decode_approvals(text, GENERATION);
    if let Some(written) = encode_approvals(&approvals, GENERATION) {
        assert!(written.len() <= BYTES_MAX, "{} bytes", written.len());
        assert_eq!(decode_approvals(&written, GENERATION), approvals);
        let other = decode_approvals(&written, GENERATION + 1);
        assert!(other.is_empty(), "of another term: {other:?}");
    } else {
        assert!(approvals.is_empty(), "{approvals:?}");
    }
}
