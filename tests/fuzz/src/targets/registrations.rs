//! Others' `router.register` and `router.unregister`, held against a reader that takes its time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use route_sync::publish::http::wire::overheard::{Reader, is_of};
use route_sync::route::ClusterId;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Target;

pub(super) const TARGET: Target = Target {
    name: "registrations",
    words: &[
        "{",
        "}",
        "\"host\":",
        "\"10.0.0.7\"",
        "\"Host\":",
        "\"port\":",
        "\"tls_port\":",
        "\"TLS_Port\":",
        "\"uris\":",
        "[\"a.test\"]",
        "\"a.test/x\"",
        "\"app\":",
        "\"tags\":{\"cluster\":\"fuzzed\",\"component\":\"route-sync\"}",
        "\"private_instance_id\":",
        "\"stale_threshold_in_seconds\":120",
        "\"options\":{}",
        "null",
        ",",
        "[",
        "]",
        "\"fd00::1\"",
        "\\u0061",
        "\\ud800",
        "\\/",
        "\"\"",
        "1.0",
        "80",
    ],
    run,
};

/// The reader looks no further into a name.
const HOST_BYTES_MAX: usize = 253;
const PLACES_MAX: usize = 1024;

fn run(input: &[u8]) {
    let mut reader = Reader::default();
    let read = reader.read(input);
    assert!(reader.places().len() <= PLACES_MAX);
    is_of(&ClusterId("fuzzed".to_owned()), input);
    // What one message left behind is nothing to the next.
    let afresh = reader.places().to_vec();
    let again = reader.read(input);
    assert_eq!((again, reader.places()), (read, &afresh[..]));

    let Ok(value) = serde_json::from_slice::<Value>(input) else {
        return;
    };
    // Where one key stands twice, the order decides, which a map does not know.
    let keys = serde_json::from_slice(input).map_or_else(|_| Vec::new(), |Keys(keys)| keys);
    if keys.iter().collect::<BTreeSet<_>>().len() < keys.len() {
        return;
    }
    let expected = slowly(&value);
    let found = read.map(|speaker| (speaker.address, reader.places().len()));
    assert_eq!(found, expected);
}

type Heard = Option<(Option<(IpAddr, u16)>, usize)>;

/// The keys of an object in any case, one that stands twice twice.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, IgnoredAny)) = map.next_entry::<String, _>()? {
                    keys.push(key.to_ascii_lowercase());
                }
                Ok(Keys(keys))
            }
        }
        from.deserialize_map(All)
    }
}

/// What is to be heard.
fn slowly(value: &Value) -> Heard {
    let object = value.as_object()?;
    let fields = object.iter();
    let keys: BTreeMap<String, &Value> = fields
        .map(|(key, value)| (key.to_ascii_lowercase(), value))
        .collect();
    let field = |name: &str| keys.get(name).filter(|value| !value.is_null());
    let port = |name: &str| match field(name) {
        None => Some(0),
        Some(value) => value.as_u64().and_then(|port| u16::try_from(port).ok()),
    };
    let host = field("host").map_or(Some(""), |host| host.as_str())?;
    let port = match (port("port")?, port("tls_port")?) {
        (port, 0) => port,
        (_, tls) => tls,
    };
    let uris = match field("uris") {
        None => 0,
        Some(uris) => {
            let uris = uris.as_array()?;
            uris.iter().all(Value::is_string).then_some(uris.len())?
        }
    };
    let host = &host[..host.floor_char_boundary(HOST_BYTES_MAX)];
    Some((host.parse().ok().map(|ip| (ip, port)), uris.min(PLACES_MAX)))
}
