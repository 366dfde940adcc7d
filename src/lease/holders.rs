//! Who holds which contested name, as text for an annotation of the Lease. Contested names alone: who holds one
//! that nobody else asks for needs no record.

use std::collections::BTreeMap;

use crate::desired::Contested;
use crate::route::{RouterPort, ServiceKey, Uri};

/// An object's annotations may take 256 KiB together; this is room for some 300 contested names, far more than
/// people would leave unresolved.
const BYTES_MAX: usize = 32 * 1024;
/// What tells a router port from a host.
const PORT_MARK: char = ':';

/// The text, cut before the first name that finds no room.
#[must_use]
pub fn encode(contested: &Contested) -> String {
    let uris = contested.uris.iter();
    let uris = uris.map(|(uri, holder)| (uri.to_string(), holder));
    let ports = contested.ports.iter();
    let ports = ports.map(|(port, holder)| (format!("{PORT_MARK}{port}"), holder));
    let mut names = BTreeMap::new();
    // Braces, and for each name its quotes, colon and comma; nothing in either needs escaping.
    let mut bytes = 2;
    for (name, holder) in ports.chain(uris) {
        let holder = holder.to_string();
        bytes += name.len() + holder.len() + 6;
        if bytes > BYTES_MAX {
            break;
        }
        names.insert(name, holder);
    }
    // A map of texts is always JSON.
    serde_json::to_string(&names).unwrap_or_default()
}

/// What a text tells; what cannot be read tells nothing.
#[must_use]
pub fn decode(text: &str) -> Contested {
    let mut contested = Contested::default();
    if text.len() > BYTES_MAX {
        return contested;
    }
    let names: BTreeMap<String, String> = serde_json::from_str(text).unwrap_or_default();
    for (name, holder) in names {
        let Some(holder) = ServiceKey::parse(&holder) else {
            continue;
        };
        if let Some(port) = name.strip_prefix(PORT_MARK) {
            let port = port.parse().ok().and_then(RouterPort::new);
            contested.ports.extend(port.map(|port| (port, holder)));
        } else {
            let uri = Uri::parse(&name).ok();
            contested.uris.extend(uri.map(|uri| (uri, holder)));
        }
    }
    contested
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contested(count: u16) -> Contested {
        let holder = |index: u16| ServiceKey {
            namespace: "team".to_owned(),
            name: format!("service-{index}"),
        };
        let uri = |index: u16| Uri::parse(&format!("h{index}.apps.test/path")).unwrap();
        Contested {
            uris: (0..count)
                .map(|index| (uri(index), holder(index)))
                .collect(),
            ports: (1024..1026)
                .map(|port| (RouterPort::new(port).unwrap(), holder(port)))
                .collect(),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        for count in [0, 1, 100] {
            let contested = contested(count);
            assert_eq!(decode(&encode(&contested)), contested);
        }
    }

    #[test]
    fn a_text_never_grows_beyond_its_bound_and_what_fits_is_kept() {
        let text = encode(&contested(5000));
        assert!(text.len() <= BYTES_MAX, "{}", text.len());
        assert!(text.len() > BYTES_MAX - 100, "{}", text.len());
        assert_eq!(decode(&text).ports.len(), 2);
    }

    #[test]
    fn what_cannot_be_read_tells_nothing_and_harms_nothing_beside_it() {
        assert_eq!(decode("{"), Contested::default());
        assert_eq!(decode("[1]"), Contested::default());
        let text =
            r#"{"a b.test":"x/y",":0":"x/y","good.test":"x/y","bad.test":"y","evil.test":"x/\"y"}"#;
        let read = decode(text);
        assert_eq!((read.uris.len(), read.ports.len()), (1, 0));
    }
}
