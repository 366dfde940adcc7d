//! Others' registrations and withdrawals, read as far as they say who serves which uri.
//!
//! There may be thousands a second, so nothing is kept of them that need not be: names become hashes while they
//! are read, fields of no interest are skipped, and a message that is not new allocates nothing. Rules are Go's,
//! as gorouter's: keys match in any case, null is absence, one wrong type makes the message none.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::shortened;
use crate::route::ClusterId;

pub use crate::publish::http::strangers::{Endpoint, Place};

/// Uris taken from one message; further ones of it are not remembered. Known senders stay below a hundred.
const PLACES_MAX: usize = 1024;

/// Reads message after message; the room for uris stays.
#[derive(Default)]
pub struct Reader {
    places: Vec<Place>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speaker {
    /// What is remembered of it.
    pub endpoint: Endpoint,
    /// Its address and port; `None` where its host is a name.
    pub address: Option<(IpAddr, u16)>,
}

// === impl Reader ===

impl Reader {
    /// Who speaks, if gorouter would take the message; of what stands in [`Self::places`].
    pub fn read(&mut self, body: &[u8]) -> Option<Speaker> {
        self.places.clear();
        let mut json = serde_json::Deserializer::from_slice(body);
        let speaker = Message(&mut self.places).deserialize(&mut json).ok()?;
        json.end().ok()?;
        Some(speaker)
    }

    /// The uris of the message read last.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.places.capacity()
    }
}

/// Whether a registration comes from this cluster: from another instance, from an earlier life, or from ourselves.
/// Ask only of who is new: it reads the message once more.
pub fn is_of(cluster: &ClusterId, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Tagged<'a> {
        #[serde(borrow)]
        tags: Tags<'a>,
    }
    #[derive(Deserialize)]
    struct Tags<'a> {
        #[serde(borrow)]
        cluster: Cow<'a, str>,
        #[serde(borrow)]
        component: Cow<'a, str>,
    }
    // Far cheaper than reading, and nearly always enough.
    let named = std::str::from_utf8(body).is_ok_and(|text| text.contains(r#""route-sync""#));
    named
        && serde_json::from_slice::<Tagged<'_>>(body).is_ok_and(|message| {
            message.tags.component == "route-sync" && message.tags.cluster == shortened(&cluster.0)
        })
}

/// A message into the places given.
struct Message<'a>(&'a mut Vec<Place>);

enum Field {
    Host,
    Port,
    TlsPort,
    Uris,
    Other,
}

/// A host before the port is known; long names are cut, as none that resolves is longer.
struct Host {
    text: [u8; HOST_BYTES_MAX],
    length: usize,
}

const HOST_BYTES_MAX: usize = 253;

struct Uris<'a>(&'a mut Vec<Place>);

struct UriText(Place);

/// Takes a text without keeping it.
struct Text<F>(F);

impl<'de> DeserializeSeed<'de> for Message<'_> {
    type Value = Speaker;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Speaker, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Message<'_> {
    type Value = Speaker;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a registration")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Speaker, A::Error> {
        let mut host: Option<Host> = None;
        let (mut port, mut tls_port) = (None::<u16>, None::<u16>);
        while let Some(field) = map.next_key()? {
            match field {
                Field::Host => host = map.next_value()?,
                Field::Port => port = map.next_value()?,
                Field::TlsPort => tls_port = map.next_value()?,
                Field::Uris => map.next_value_seed(Uris(self.0))?,
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let host = host.as_ref().map(Host::as_str).unwrap_or_default();
        // A port for TLS is the port, whatever the other says.
        let port = tls_port.filter(|port| *port != 0).or(port);
        let port = port.unwrap_or_default();
        Ok(Speaker {
            endpoint: Endpoint::new(host, port),
            address: host.parse().ok().map(|ip| (ip, port)),
        })
    }
}

impl<'de> DeserializeSeed<'de> for Uris<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Uris<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of uris")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.0.clear();
        while let Some(UriText(place)) = seq.next_element()? {
            if self.0.len() < PLACES_MAX {
                self.0.push(place);
            }
        }
        Ok(())
    }
}

impl<T, F: FnOnce(&str) -> T> Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Ok(self.0(text))
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(|key: &str| {
            let is = |name: &str| key.eq_ignore_ascii_case(name);
            match () {
                () if is("host") => Self::Host,
                () if is("port") => Self::Port,
                () if is("tls_port") => Self::TlsPort,
                () if is("uris") => Self::Uris,
                () => Self::Other,
            }
        }))
    }
}

impl<'de> Deserialize<'de> for UriText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(|uri: &str| Self(Place::of(uri))))
    }
}

impl<'de> Deserialize<'de> for Host {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(Self::new))
    }
}

// === impl Host ===

impl Host {
    fn new(host: &str) -> Self {
        let length = host.floor_char_boundary(HOST_BYTES_MAX);
        let mut text = [0; HOST_BYTES_MAX];
        text[..length].copy_from_slice(&host.as_bytes()[..length]);
        Self { text, length }
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..self.length]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Option<(String, Vec<Place>)> {
        let mut reader = Reader::default();
        let speaker = reader.read(body.as_bytes())?;
        Some((speaker.endpoint.to_string(), reader.places().to_vec()))
    }

    #[test]
    fn a_message_says_who_and_where_whatever_the_order_and_case_of_its_keys() {
        let places = vec![Place::of("a.test"), Place::of("b.test/x")];
        let expect = Some(("`10.0.0.7:80`".to_owned(), places));
        for body in [
            r#"{"host":"10.0.0.7","port":80,"uris":["a.test","B.test/x/"],"app":"x","tags":{"a":"b"}}"#,
            r#"{"uris":["a.test","b.test/x"],"PORT":80,"Host":"10.0.0.7","private_instance_index":"0"}"#,
            r#"{"uris":["a.test","b.test\/x"],"tls_port":80,"port":81,"host":"10.0.0.7","tags":null}"#,
            r#"{"uris":["a.test","b.test/x"],"tls_port":0,"port":80,"host":"10.0.0.7","options":{"x":[1,{}]}}"#,
        ] {
            assert_eq!(read(body), expect, "{body}");
        }
    }

    #[test]
    fn what_gorouter_rejects_is_no_message() {
        for body in [
            "",
            "[]",
            "{",
            r#"{"host":"10.0.0.7","port":70000,"uris":["a.test"]}"#,
            r#"{"host":"10.0.0.7","port":"80","uris":["a.test"]}"#,
            r#"{"host":"10.0.0.7","port":80,"uris":"a.test"}"#,
            r#"{"host":"10.0.0.7","port":80,"uris":[1]}"#,
            r#"{"host":7,"port":80,"uris":["a.test"]}"#,
            r#"{"host":"10.0.0.7","port":80,"uris":["a.test"]} x"#,
        ] {
            assert_eq!(read(body), None, "{body}");
        }
        let empty = read(r#"{"host":null,"port":null,"uris":null}"#);
        assert_eq!(empty.unwrap().1, Vec::new());
    }

    #[test]
    fn our_own_messages_are_told_by_cluster_and_component() {
        let cluster = ClusterId("kube".to_owned());
        let tags = |cluster: &str, component: &str| {
            format!(r#"{{"host":"h","tags":{{"cluster":"{cluster}","component":"{component}"}}}}"#)
        };
        assert!(is_of(&cluster, tags("kube", "route-sync").as_bytes()));
        assert!(!is_of(&cluster, tags("other", "route-sync").as_bytes()));
        assert!(!is_of(&cluster, tags("kube", "route-emitter").as_bytes()));
        assert!(!is_of(&cluster, br#"{"host":"h"}"#));
    }

    #[test]
    fn message_after_message_takes_no_more_room_than_the_largest() {
        let message = |n: usize| {
            let uris: Vec<_> = (0..10).map(|u| format!("\"app-{n}-{u}.test\"")).collect();
            format!(
                r#"{{"host":"10.0.0.7","port":80,"uris":[{}]}}"#,
                uris.join(",")
            )
        };
        let mut reader = Reader::default();
        reader.read(message(0).as_bytes()).unwrap();
        let room = reader.room();
        for n in 0..10_000 {
            reader.read(message(n).as_bytes()).unwrap();
        }
        assert_eq!(reader.room(), room);
        let many = vec!["\"a.test\""; 100_000].join(",");
        let many = format!(r#"{{"host":"10.0.0.7","port":80,"uris":[{many}]}}"#);
        reader.read(many.as_bytes()).unwrap();
        assert!(reader.room() <= PLACES_MAX, "{}", reader.room());
    }
}
