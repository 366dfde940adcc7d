//! The state file.
//!
//! Input: the whole file, or its second line alone; in both cases the line is tried once more under a checksum that
//! fits, which is what no disk but a person might do.

use route_sync::state::Contents;

use super::{Target, head};

pub(super) const TARGET: Target = Target {
    name: "state",
    words: &[
        "{\"route-sync-state\":1,\"bytes\":",
        ",\"crc32\":\"00000000\"}\n",
        "\"written\":",
        "\"apiserver\":\"\"",
        "\"app_domain\":\"\"",
        "\"router_group\":null",
        "\"routing_api\":null",
        "\"cluster\":\"c\"",
        "\"services\":[[\"ns\",\"web\",\"uid\"]]",
        "\"nodes\":[[\"n\",null]]",
        "\"http\":{}",
        "\"web.apps.test\":",
        "{\"service\":0,\"backends\":[[\"10.0.0.1:30001\",0]]}",
        "\"http2\":true",
        "\"tls_server_name\":\"x\"",
        "\"loadbalancing\":\"round-robin\"",
        "\"route_service_url\":\"https://x\"",
        "\"tcp\":{}",
        "\"1024\":",
        "\"node_ips\":{\"10.0.0.1\":\"node\"}",
        "\"node_ports\":{\"30001\":0}",
        "\"withdrawals\":[]",
        "[\"old.apps.test/a\",\"10.0.0.1:30002\",true]",
        "\"rows\":[]",
        "{\"port\":1024,\"ip\":\"10.0.0.1\",\"backend_port\":1,\"tls_port\":-1,\"group\":\"g\"}",
        "\"sni\":\"\"",
        "[fd00::1]:1",
        "*.",
        "/x/",
        "//",
        "A",
        "null",
        ",",
    ],
    run,
};

fn run(input: &[u8]) {
    if let Ok(contents) = Contents::decode(input) {
        let encoded = contents.encode();
        assert!(
            encoded == input,
            "what was not written was read: {:?}",
            encoded.escape_ascii().to_string()
        );
    }
    let (first, second) = head(input);
    let body = if second.is_empty() { first } else { second };
    let body = body.strip_suffix(b"\n").unwrap_or(body);
    if let Ok(contents) = Contents::decode(&sealed(body)) {
        let again = Contents::decode(&contents.encode()).expect("our own state must be one");
        assert_eq!(again, contents, "what is written is read as something else");
    }
}

/// The file with this second line.
fn sealed(body: &[u8]) -> Vec<u8> {
    let (bytes, crc) = (body.len(), crc32(body));
    let head = format!("{{\"route-sync-state\":1,\"bytes\":{bytes},\"crc32\":\"{crc:08x}\"}}\n");
    [head.as_bytes(), body, b"\n"].concat()
}

/// CRC-32 as in IEEE 802.3, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        let crc = crc ^ u32::from(*byte);
        (0..8).fold(crc, |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}
