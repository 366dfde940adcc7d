//! The routing API as a client meets it: who may ask what, and what it takes and refuses.
//!
//! The real one is that of routing-release 2024-10. What becomes of the rows is in `routes`.

use counterparts::stack::CLIENT;
use serde_json::{Value, json};

use crate::uaa::UaaUnderTest;
use crate::world::{BRIEF, READER, RESERVABLE_PORTS, ROUTER_GROUP, World, router_port};
use crate::{Answer, Side, UnderTest, agree};

pub const LIST: &str = "/routing/v1/tcp_routes";
pub const CREATE: &str = "/routing/v1/tcp_routes/create";
pub const DELETE: &str = "/routing/v1/tcp_routes/delete";
pub const EVENTS: &str = "/routing/v1/tcp_routes/events";
const GROUPS: &str = "/routing/v1/router_groups";

/// `max_ttl` on both sides.
pub const MAX_TTL: u32 = 120;
const UNKNOWN_GROUP: &str = "00000000-0000-0000-0000-000000000000";

pub struct RoutingApiUnderTest {
    pub world: &'static World,
    pub side: Side,
    pub http: reqwest::Client,
    pub url: String,
    pub token: String,
    pub group: String,
}

impl UnderTest for RoutingApiUnderTest {
    const HANDED_IN: &'static [&'static str] = &["routing-api"];

    async fn on(world: &'static World, side: Side) -> Self {
        let uaa = UaaUnderTest::on(world, side).await;
        let url = match side {
            Side::Sandbox => world.sandbox.routing_api.url(),
            Side::Real => world
                .real
                .routing_api
                .as_ref()
                .expect("it was handed in")
                .http_url(),
        };
        let http = world.pki.http_client().expect("a client must be had");
        let token = uaa.token(CLIENT).await;
        let group = String::new();
        let mut api = Self {
            world,
            side,
            http,
            url,
            token,
            group,
        };
        let groups = api.get(GROUPS).await.json();
        api.group = groups[0]["guid"]
            .as_str()
            .expect("a group must have a guid")
            .to_owned();
        // What an earlier statement left may stop HAProxy from taking anything.
        let left = api.rows().await;
        assert_eq!(api.post(DELETE, &Value::from(left)).await.status, 204);
        api
    }
}

// === impl RoutingApiUnderTest ===

impl RoutingApiUnderTest {
    pub async fn get(&self, path: &str) -> Answer {
        let request = self.http.get(format!("{}{path}", self.url));
        Answer::to(request.bearer_auth(&self.token)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, &body.to_string()).await
    }

    async fn post_text(&self, path: &str, body: &str) -> Answer {
        let request = self.http.post(format!("{}{path}", self.url));
        Answer::to(request.bearer_auth(&self.token).body(body.to_owned())).await
    }

    async fn get_with(&self, authorization: Option<&str>) -> Answer {
        let mut request = self.http.get(format!("{}{LIST}", self.url));
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        Answer::to(request).await
    }

    /// A mapping as route-sync sends it.
    pub fn route(&self, port: u16, backend_ip: &str, backend_port: u16) -> Value {
        json!({
            "router_group_guid": self.group,
            "port": port,
            "backend_ip": backend_ip,
            "backend_port": backend_port,
            "backend_tls_port": -1,
            "ttl": 60,
        })
    }

    pub async fn create(&self, routes: &[Value]) {
        let answer = self.post(CREATE, &Value::from(routes)).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
    }

    pub async fn delete(&self, routes: &[Value]) {
        let answer = self.post(DELETE, &Value::from(routes)).await;
        assert_eq!(answer.status, 204, "{}", answer.text);
    }

    pub async fn rows(&self) -> Vec<Value> {
        let rows = self.get(LIST).await.json();
        rows.as_array().expect("a list must be an array").clone()
    }

    pub async fn rows_of(&self, port: u16) -> Vec<Value> {
        self.rows()
            .await
            .into_iter()
            .filter(|row| row["port"] == port)
            .collect()
    }
}

fn with(mut route: Value, field: &str, value: Value) -> Value {
    route[field] = value;
    route
}

#[track_caller]
fn refused_as_unauthorized(answer: &Answer, message: &str) {
    let expected = json!({"name": "UnauthorizedError", "message": message});
    assert_eq!((answer.status, answer.json()), (401, expected));
}

// === who may ask ===

#[test]
fn a_request_without_a_usable_token_is_401() {
    agree(
        "no token or garbage for one is 401",
        async |api: &RoutingApiUnderTest| {
            let format = "Invalid token format";
            refused_as_unauthorized(&api.get_with(None).await, format);
            refused_as_unauthorized(&api.get_with(Some(&api.token)).await, format);
            let extra = format!("bearer  {}", api.token);
            refused_as_unauthorized(&api.get_with(Some(&extra)).await, format);
            let other = format!("basic {}", api.token);
            refused_as_unauthorized(
                &api.get_with(Some(&other)).await,
                "Invalid token type: basic",
            );
            let segments = "token contains an invalid number of segments";
            refused_as_unauthorized(&api.get_with(Some("bearer garbage")).await, segments);
            let answer = api.get_with(Some("bearer gar.ba.ge")).await;
            assert_eq!(
                (answer.status, &answer.json()["name"]),
                (401, &json!("UnauthorizedError"))
            );
            assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        },
    );
}

#[test]
fn the_scheme_bearer_may_be_written_in_any_case() {
    agree(
        "`bearer` may be written in any case",
        async |api: &RoutingApiUnderTest| {
            for scheme in ["bearer", "Bearer", "BEARER"] {
                let answer = api.get_with(Some(&format!("{scheme} {}", api.token))).await;
                assert_eq!(answer.status, 200, "{}", answer.text);
            }
        },
    );
}

#[test]
fn an_expired_token_is_401() {
    agree(
        "an expired token is 401 `Token is expired`",
        async |api: &RoutingApiUnderTest| {
            let token = UaaUnderTest::on(api.world, api.side)
                .await
                .token(BRIEF)
                .await;
            let bearer = format!("bearer {token}");
            suite::eventually("the token has expired", async || {
                let answer = api.get_with(Some(&bearer)).await;
                if answer.status != 200 {
                    refused_as_unauthorized(&answer, "Token is expired");
                }
                answer.status != 200
            })
            .await;
        },
    );
}

#[test]
fn a_token_without_the_scope_is_401_and_not_403() {
    let statement = "a missing scope is 401 and its name is not told";
    agree(statement, async |api: &RoutingApiUnderTest| {
        let token = UaaUnderTest::on(api.world, api.side)
            .await
            .token(READER)
            .await;
        let reader = RoutingApiUnderTest {
            token,
            http: api.http.clone(),
            url: api.url.clone(),
            group: api.group.clone(),
            ..*api
        };
        let message = "You are not authorized to perform the requested action";
        refused_as_unauthorized(&reader.post(CREATE, &json!([])).await, message);
        refused_as_unauthorized(&reader.post(DELETE, &json!([])).await, message);
        refused_as_unauthorized(&reader.get(GROUPS).await, message);
        assert_eq!(reader.get(LIST).await.status, 200);
    });
}

#[test]
fn a_new_signing_key_is_fetched_and_the_old_one_is_no_longer_good() {
    let statement = "after a key rotation new tokens pass and old ones are 401, without a restart";
    agree(statement, async |api: &RoutingApiUnderTest| {
        let uaa = UaaUnderTest::on(api.world, api.side).await;
        assert_eq!(api.get(LIST).await.status, 200);
        uaa.rotate_key().await;
        let fresh = format!("bearer {}", uaa.token(CLIENT).await);
        assert_eq!(api.get_with(Some(&fresh)).await.status, 200);
        refused_as_unauthorized(&api.get(LIST).await, "crypto/rsa: verification error");
        assert_eq!(api.get_with(Some(&fresh)).await.status, 200);
    });
}

#[test]
fn the_mutual_tls_door_wants_a_client_certificate() {
    agree(
        "mutual TLS refuses a client without a certificate",
        async |api: &RoutingApiUnderTest| {
            let url = match api.side {
                Side::Sandbox => format!("https://{}", api.world.sandbox.routing_api_mtls),
                Side::Real => api.world.real.routing_api.as_ref().unwrap().mtls_url(),
            };
            let get = async |http: reqwest::Client| {
                let request = http.get(format!("{url}{LIST}")).bearer_auth(&api.token);
                request.send().await.map(|answer| answer.status().as_u16())
            };
            assert_eq!(get(api.http.clone()).await.unwrap(), 200);
            let without = api.world.pki.http_client_without_identity().unwrap();
            assert!(get(without).await.is_err());
        },
    );
}

// === router groups ===

#[test]
fn a_router_group_is_found_by_its_name_or_is_404() {
    agree(
        "router groups by name: 200, or 404 for none",
        async |api: &RoutingApiUnderTest| {
            let answer = api.get(&format!("{GROUPS}?name={ROUTER_GROUP}")).await;
            let expected = json!([{
                "guid": api.group,
                "name": ROUTER_GROUP,
                "type": "tcp",
                "reservable_ports": RESERVABLE_PORTS,
            }]);
            assert_eq!((answer.status, answer.json()), (200, expected.clone()));
            assert_eq!(answer.header("content-type"), "application/json");
            assert_eq!(api.get(GROUPS).await.json(), expected);
            let none = api.get(&format!("{GROUPS}?name=nothing")).await;
            assert_eq!(
                (none.status, &none.json()["name"]),
                (404, &json!("ResourceNotFoundError"))
            );
            assert_eq!(none.json()["message"], "Router Group 'nothing' not found");
        },
    );
}

// === what is taken ===

#[test]
fn what_is_taken_is_answered_201_without_a_body() {
    let statement = "201 without a body, also for nothing, unknown fields and trailing junk";
    agree(statement, async |api: &RoutingApiUnderTest| {
        let port = router_port();
        let route = api.route(port, "10.0.0.1", 31_000);
        let unknown = with(route.clone(), "no_such_field", json!({"a": [1]}));
        let junk = format!("[{route}] and junk");
        for body in [
            "[]".to_owned(),
            "null".to_owned(),
            format!("[{unknown}]"),
            junk,
        ] {
            let answer = api.post_text(CREATE, &body).await;
            assert_eq!((answer.status, answer.text.as_str()), (201, ""), "{body}");
        }
        assert_eq!(api.rows_of(port).await.len(), 1);
    });
}

#[test]
fn a_port_out_of_range_and_a_backend_that_is_no_address_are_taken() {
    let statement = "a port outside the group's range and a backend that is no address are taken";
    agree(statement, async |api: &RoutingApiUnderTest| {
        let port = router_port();
        assert!(!RESERVABLE_PORTS.contains(&port.to_string()));
        // None that a router would look up: its HAProxy waits for a name server meanwhile.
        let backends = ["10.0.0.1", "no address", "fd00::1"];
        let routes = backends.map(|ip| api.route(port, ip, 31_000));
        api.create(&routes).await;
        assert_eq!(api.rows_of(port).await.len(), 3);
        api.delete(&routes).await;
        assert_eq!(api.rows_of(port).await.len(), 0);
    });
}

#[test]
fn every_answer_carries_a_request_id() {
    agree(
        "every answer carries `X-Vcap-Request-Id`",
        async |api: &RoutingApiUnderTest| {
            let mut ids = Vec::new();
            for answer in [
                api.get(LIST).await,
                api.post(CREATE, &json!([])).await,
                api.post(CREATE, &json!({})).await,
                api.get_with(None).await,
            ] {
                ids.push(answer.header("x-vcap-request-id").to_owned());
            }
            assert!(ids.iter().all(|id| !id.is_empty()), "{ids:?}");
            ids.dedup();
            assert_eq!(ids.len(), 4);
        },
    );
}

#[test]
fn routes_are_deleted_by_post_only() {
    agree(
        "DELETE, PUT and GET on the write paths are 405",
        async |api: &RoutingApiUnderTest| {
            for method in ["DELETE", "PUT", "GET"] {
                for path in [CREATE, DELETE] {
                    let url = format!("{}{path}", api.url);
                    let request = api.http.request(method.parse().unwrap(), url);
                    let answer = Answer::to(request.bearer_auth(&api.token)).await;
                    assert_eq!(answer.status, 405, "{method} {path}: {}", answer.text);
                }
            }
        },
    );
}

// === what is refused ===

#[track_caller]
fn refused(answer: &Answer, message: &str) {
    let message = format!("Cannot process request: {message}");
    let expected = json!({"name": "ProcessRequestError", "message": message});
    assert_eq!((answer.status, answer.json()), (400, expected));
}

#[test]
fn a_mapping_that_cannot_be_is_400_with_its_reason() {
    agree(
        "each invalid mapping is 400 with its reason",
        async |api: &RoutingApiUnderTest| {
            let good = api.route(router_port(), "10.0.0.1", 31_000);
            let shown = |route: &Value| {
                let text = |field: &str| route[field].as_str().unwrap_or_default().to_owned();
                format!(
                    "RouteMapping=[{}:{}<->{}:{}]",
                    text("router_group_guid"),
                    route["port"],
                    text("backend_ip"),
                    route["backend_port"]
                )
            };
            let cases = [
                (
                    "port",
                    json!(0),
                    "Each tcp mapping requires a positive external port. ",
                ),
                (
                    "backend_ip",
                    json!(""),
                    "Each tcp mapping requires a non empty backend ip. ",
                ),
                (
                    "backend_port",
                    json!(0),
                    "Each tcp mapping requires a positive backend port. ",
                ),
                (
                    "router_group_guid",
                    json!(""),
                    "Each tcp mapping requires a non empty router group guid. ",
                ),
                (
                    "ttl",
                    json!(MAX_TTL + 1),
                    "Each tcp mapping requires TTL to be less than or equal to 120. ",
                ),
            ];
            for (field, value, reason) in cases {
                let route = with(good.clone(), field, value);
                let message = format!("{reason}{}", shown(&route));
                refused(&api.post(CREATE, &json!([route])).await, &message);
            }
            for ttl in [0, -1] {
                let route = with(good.clone(), "ttl", json!(ttl));
                let message = "Each tcp route mapping requires a ttl greater than 0";
                refused(&api.post(CREATE, &json!([route])).await, message);
            }
            let route = with(good, "router_group_guid", json!(UNKNOWN_GROUP));
            let message = format!("router_group_guid: {UNKNOWN_GROUP} not found");
            refused(&api.post(CREATE, &json!([route])).await, &message);
        },
    );
}

#[test]
fn a_body_that_does_not_decode_is_400_in_the_decoders_words() {
    let statement = "a body that does not decode is 400 in the decoder's words; whether they name \
                     the embedded struct depends on the compiler (built with Go 1.26 they do)";
    agree(statement, async |api: &RoutingApiUnderTest| {
        let good = api.route(router_port(), "10.0.0.1", 31_000);
        for (name, value, found, wanted) in [
            ("port", json!(70_000), "number 70000", "uint16"),
            ("port", json!(-5), "number -5", "uint16"),
            ("port", json!("3000"), "string", "uint16"),
            ("backend_port", json!(70_000), "number 70000", "uint16"),
            ("ttl", json!("60"), "string", "int"),
            ("backend_ip", json!(7), "number", "string"),
        ] {
            let answer = api
                .post(CREATE, &json!([with(good.clone(), name, value)]))
                .await;
            // Newer Go compilers name the embedded struct on the way to the field.
            let message = answer.json()["message"]
                .to_string()
                .replace(".TcpMappingEntity.", ".");
            let place = format!("Go struct field TcpRouteMapping.{name} of type {wanted}");
            let expected = format!("json: cannot unmarshal {found} into {place}");
            assert_eq!(answer.status, 400, "{}", answer.text);
            assert_eq!(message, format!("\"Cannot process request: {expected}\""));
        }
        let array = "into Go value of type []models.TcpRouteMapping";
        let object = api.post(CREATE, &good).await;
        refused(&object, &format!("json: cannot unmarshal object {array}"));
        refused(&api.post_text(CREATE, "").await, "EOF");
        refused(&api.post_text(CREATE, "[{").await, "unexpected EOF");
        let junk = "invalid character 'x' looking for beginning of value";
        refused(&api.post_text(CREATE, "x").await, junk);
    });
}

#[test]
fn one_bad_mapping_keeps_its_whole_batch_out() {
    agree(
        "one bad mapping keeps its whole batch out",
        async |api: &RoutingApiUnderTest| {
            let port = router_port();
            let good = api.route(port, "10.0.0.1", 31_000);
            let bad = with(api.route(port, "10.0.0.2", 31_000), "ttl", json!(0));
            let answer = api.post(CREATE, &json!([good, bad])).await;
            assert_eq!(answer.status, 400);
            assert_eq!(api.rows_of(port).await.len(), 0);
        },
    );
}
