//! What becomes of the routing API's rows: identity, refresh, deletion, expiry and events.
//!
//! The real one is that of routing-release 2024-10.

use std::time::Duration;

use serde_json::{Value, json};
use suite::eventually;

use crate::routing_api::{DELETE, EVENTS, LIST, MAX_TTL, RoutingApiUnderTest};
use crate::world::router_port;
use crate::{ANSWER_WITHIN, agree};

/// Short, and longer than a refresh takes on a slow machine.
const BRIEF_TTL: u64 = 10;

/// The lines of one subscription.
struct Events {
    response: reqwest::Response,
    text: String,
}

#[derive(Debug)]
struct Event {
    id: String,
    name: String,
    route: Value,
}

// === impl Events ===

impl Events {
    async fn of(api: &RoutingApiUnderTest) -> Self {
        let request = api
            .http
            .get(format!("{}{EVENTS}", api.url))
            .bearer_auth(&api.token);
        let response = request.timeout(ANSWER_WITHIN).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let content_type = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        assert_eq!(content_type, "text/event-stream; charset=utf-8");
        Self {
            response,
            text: String::new(),
        }
    }

    async fn next(&mut self) -> Event {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                let field = |name: &str| {
                    let line = block.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_else(|| panic!("no `{name}` in {block}"))
                        .trim()
                        .to_owned()
                };
                return Event {
                    id: field("id:"),
                    name: field("event:"),
                    route: serde_json::from_str(&field("data:")).unwrap(),
                };
            }
            let chunk = self
                .response
                .chunk()
                .await
                .unwrap()
                .expect("the stream must go on");
            self.text += std::str::from_utf8(&chunk).unwrap();
        }
    }

    /// The next event of that port: other statements' rows may still be expiring.
    async fn next_of(&mut self, port: u16) -> Event {
        loop {
            let event = self.next().await;
            if event.route["port"] == port {
                return event;
            }
        }
    }
}

fn tag(row: &Value) -> (String, u64) {
    let tag = &row["modification_tag"];
    let guid = tag["guid"].as_str().expect("a tag must have a guid");
    (
        guid.to_owned(),
        tag["index"].as_u64().expect("a tag must have an index"),
    )
}

/// The only row of a port.
async fn row(api: &RoutingApiUnderTest, port: u16) -> Value {
    let mut rows = api.rows_of(port).await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.remove(0)
}

// === rows ===

#[test]
fn a_list_is_text_that_holds_every_field_of_a_row() {
    agree(
        "a list is JSON called text/plain",
        async |api: &RoutingApiUnderTest| {
            assert_eq!(api.get(LIST).await.json(), json!([]));
            let port = router_port();
            api.create(&[api.route(port, "10.0.0.1", 31_000)]).await;
            let answer = api.get(LIST).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
            let row = row(api, port).await;
            let expected = json!({
                "router_group_guid": api.group,
                "backend_port": 31_000,
                "backend_tls_port": -1,
                "backend_ip": "10.0.0.1",
                "instance_id": "",
                "port": port,
                "modification_tag": {"guid": tag(&row).0, "index": 0},
                "ttl": 60,
                "isolation_segment": "",
            });
            assert_eq!(row, expected);
            let order = ["router_group_guid", "backend_tls_port", "backend_ip", "ttl"];
            let places = order.map(|field| answer.text.find(&format!("\"{field}\"")).unwrap());
            assert!(places.is_sorted(), "{}", answer.text);
        },
    );
}

#[test]
fn a_list_is_filtered_by_isolation_segment_only() {
    agree(
        "a list is filtered by isolation segment only",
        async |api: &RoutingApiUnderTest| {
            let port = router_port();
            let mut segment = api.route(port, "10.0.0.1", 31_000);
            segment["isolation_segment"] = json!("apart");
            api.create(&[segment, api.route(port, "10.0.0.2", 31_000)])
                .await;
            for (query, count) in [
                ("isolation_segment=apart", 1),
                ("isolation_segment=apart&isolation_segment=", 2),
                ("isolation_segment=nowhere", 0),
                ("port=1&backend_ip=none", 2),
            ] {
                let rows = api.get(&format!("{LIST}?{query}")).await.json();
                assert_eq!(rows.as_array().map_or(0, Vec::len), count, "{query}");
            }
        },
    );
}

#[test]
fn a_refresh_with_tls_port_minus_one_stays_one_row() {
    let statement = "a refresh with `backend_tls_port: -1` stays in place, the tag's index counts";
    agree(statement, async |api: &RoutingApiUnderTest| {
        let port = router_port();
        let route = api.route(port, "10.0.0.1", 31_000);
        api.create(std::slice::from_ref(&route)).await;
        let (guid, index) = tag(&row(api, port).await);
        assert_eq!(index, 0);
        for index in 1..=3 {
            api.create(std::slice::from_ref(&route)).await;
            assert_eq!(tag(&row(api, port).await), (guid.clone(), index));
        }
    });
}

#[test]
fn a_refresh_without_a_tls_port_leaks_a_row() {
    let statement = "without `backend_tls_port`, or with 0, each refresh adds a row and a delete \
                     removes none (2024-09 to 2024-12, again from 2026-08)";
    agree(statement, async |api: &RoutingApiUnderTest| {
        let mut zero = api.route(router_port(), "10.0.0.1", 31_000);
        zero["ttl"] = json!(BRIEF_TTL * 2);
        zero["backend_tls_port"] = json!(0);
        let mut absent = zero.clone();
        absent["port"] = json!(router_port());
        absent.as_object_mut().unwrap().remove("backend_tls_port");
        let routes = [zero, absent];
        for count in 1..=3 {
            api.create(&routes).await;
            assert_eq!(api.rows().await.len(), count * 2);
        }
        let rows = api.rows().await;
        assert!(rows.iter().all(|row| tag(row).1 == 0), "{rows:?}");
        assert!(
            rows.iter().all(|row| row["backend_tls_port"] == 0),
            "{rows:?}"
        );
        api.delete(&routes).await;
        assert_eq!(api.rows().await.len(), 6);
        eventually("they expire", async || api.rows().await.is_empty()).await;
    });
}

#[test]
fn the_same_mapping_twice_in_one_body_is_one_row() {
    agree(
        "the same mapping twice in one body is one row",
        async |api: &RoutingApiUnderTest| {
            let port = router_port();
            let route = api.route(port, "10.0.0.1", 31_000);
            api.create(&[route.clone(), route]).await;
            assert_eq!(tag(&row(api, port).await).1, 1);
        },
    );
}

#[test]
fn an_instance_id_is_stored_and_never_updated() {
    let statement = "an instance id is no part of the identity; it is stored once, never updated";
    agree(statement, async |api: &RoutingApiUnderTest| {
        let port = router_port();
        let mut route = api.route(port, "10.0.0.1", 31_000);
        for id in ["first", "second"] {
            route["instance_id"] = json!(id);
            api.create(std::slice::from_ref(&route)).await;
            assert_eq!(row(api, port).await["instance_id"], "first");
        }
        route["instance_id"] = json!("third");
        api.delete(&[route]).await;
        assert!(api.rows_of(port).await.is_empty());
    });
}

#[test]
fn a_refresh_updates_ttl_and_isolation_segment() {
    agree(
        "a refresh updates TTL and isolation segment",
        async |api: &RoutingApiUnderTest| {
            let port = router_port();
            let mut route = api.route(port, "10.0.0.1", 31_000);
            api.create(std::slice::from_ref(&route)).await;
            route["ttl"] = json!(90);
            route["isolation_segment"] = json!("apart");
            api.create(&[route]).await;
            let row = row(api, port).await;
            assert_eq!(
                (&row["ttl"], &row["isolation_segment"]),
                (&json!(90), &json!("apart"))
            );
        },
    );
}

#[test]
fn a_missing_ttl_becomes_the_longest_and_a_sent_tag_is_ignored() {
    agree(
        "no TTL is the longest; a sent tag is ignored",
        async |api: &RoutingApiUnderTest| {
            let port = router_port();
            let mut route = api.route(port, "10.0.0.1", 31_000);
            route.as_object_mut().unwrap().remove("ttl");
            route["modification_tag"] = json!({"guid": "mine", "index": 7});
            api.create(&[route]).await;
            let row = row(api, port).await;
            assert_eq!(row["ttl"], MAX_TTL);
            assert_eq!(tag(&row).1, 0);
            assert_ne!(tag(&row).0, "mine");
        },
    );
}

// === deletion ===

#[test]
fn a_deletion_of_what_is_not_there_is_204() {
    agree(
        "a deletion of what is not there is 204",
        async |api: &RoutingApiUnderTest| {
            let mut unknown = api.route(router_port(), "10.0.0.1", 31_000);
            unknown["router_group_guid"] = json!("no-such-group");
            let routes = json!([api.route(router_port(), "10.0.0.1", 31_000), unknown]);
            let answer = api.post(DELETE, &routes).await;
            assert_eq!((answer.status, answer.text.as_str()), (204, ""));
        },
    );
}

#[test]
fn a_deletion_needs_no_ttl_and_frees_the_identity() {
    agree(
        "a deleted row comes back with a new tag",
        async |api: &RoutingApiUnderTest| {
            let port = router_port();
            let route = api.route(port, "10.0.0.1", 31_000);
            api.create(&[route.clone(), route.clone()]).await;
            let before = tag(&row(api, port).await);
            let mut without_ttl = route.clone();
            without_ttl.as_object_mut().unwrap().remove("ttl");
            api.delete(&[without_ttl]).await;
            assert!(api.rows_of(port).await.is_empty());
            api.create(&[route]).await;
            let after = tag(&row(api, port).await);
            assert_ne!(after.0, before.0);
            assert_eq!(after.1, 0);
        },
    );
}

#[test]
fn a_deletion_takes_exactly_its_own_identity() {
    let statement = "a deletion takes the row of its own port, backend and TLS port and no other";
    agree(statement, async |api: &RoutingApiUnderTest| {
        let port = router_port();
        let own = api.route(port, "10.0.0.1", 31_000);
        let change = |field: &str, value: Value| {
            let mut route = own.clone();
            route[field] = value;
            route
        };
        // No server name twice: HAProxy would refuse the configuration.
        let others = [
            change("backend_ip", json!("10.0.0.2")),
            change("backend_port", json!(31_001)),
            change("port", json!(router_port())),
        ];
        api.create(&others).await;
        api.create(std::slice::from_ref(&own)).await;
        let mut near = own.clone();
        near["backend_tls_port"] = json!(8_443);
        api.delete(&[near]).await;
        assert_eq!(api.rows().await.len(), 4);
        api.delete(&[own]).await;
        assert_eq!(api.rows().await.len(), 3);
        api.delete(&others).await;
        assert!(api.rows().await.is_empty());
    });
}

// === expiry and events ===

#[test]
fn a_row_leaves_the_list_as_soon_as_it_expires() {
    agree(
        "a row leaves the list as it expires",
        async |api: &RoutingApiUnderTest| {
            let port = router_port();
            let mut route = api.route(port, "10.0.0.1", 31_000);
            route["ttl"] = json!(BRIEF_TTL);
            let asked = tokio::time::Instant::now();
            api.create(&[route]).await;
            assert_eq!(api.rows_of(port).await.len(), 1);
            eventually("it is gone", async || api.rows_of(port).await.is_empty()).await;
            // The database counts in whole seconds.
            let lived = asked.elapsed();
            assert!(lived > Duration::from_secs(BRIEF_TTL - 1), "{lived:?}");
        },
    );
}

#[test]
fn a_refresh_begins_the_ttl_anew() {
    agree(
        "a refresh begins the TTL anew",
        async |api: &RoutingApiUnderTest| {
            let port = router_port();
            let mut route = api.route(port, "10.0.0.1", 31_000);
            route["ttl"] = json!(BRIEF_TTL);
            api.create(std::slice::from_ref(&route)).await;
            let first = tag(&row(api, port).await).0;
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(BRIEF_TTL / 3)).await;
                api.create(std::slice::from_ref(&route)).await;
            }
            assert_eq!(tag(&row(api, port).await).0, first);
        },
    );
}

#[test]
fn an_expired_row_is_told_as_deleted() {
    agree(
        "an expired row's end is an event `Delete`",
        async |api: &RoutingApiUnderTest| {
            let port = router_port();
            let mut events = Events::of(api).await;
            let mut route = api.route(port, "10.0.0.1", 31_000);
            route["ttl"] = json!(1);
            api.create(&[route]).await;
            assert_eq!(events.next_of(port).await.name, "Upsert");
            let event = events.next_of(port).await;
            assert_eq!(event.name, "Delete");
            assert_eq!(event.route["backend_ip"], "10.0.0.1");
        },
    );
}

#[test]
fn creation_and_refresh_are_told_as_upserts_that_count_from_zero() {
    let statement = "creation and refresh are `Upsert`, ids count from 0 for each subscriber";
    agree(statement, async |api: &RoutingApiUnderTest| {
        let port = router_port();
        let route = api.route(port, "10.0.0.1", 31_000);
        for guid in ["first subscriber", "second subscriber"] {
            let mut events = Events::of(api).await;
            for index in 0..2 {
                api.create(std::slice::from_ref(&route)).await;
                let event = events.next_of(port).await;
                assert_eq!(event.name, "Upsert", "{guid}: {event:?}");
                assert_eq!(event.route["modification_tag"]["index"], index);
                assert_eq!(event.id, index.to_string(), "{guid}: {event:?}");
            }
            api.delete(std::slice::from_ref(&route)).await;
            let event = events.next_of(port).await;
            assert_eq!((event.name.as_str(), event.id.as_str()), ("Delete", "2"));
        }
    });
}
