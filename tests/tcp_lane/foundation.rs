//! A UAA and a routing API in one small server, behaving as the real ones were measured, with every fault a
//! test may want. Rows live as long as their TTL, and the API judges and stores a batch as the real one does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use serde_json::{Value, json};
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate, matchers::any};

/// Port, ip, backend port, tls port, group.
pub(crate) type Key = (u16, String, u16, i64, String);

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub instance: Option<String>,
    expires: Instant,
}

/// One request that the API answered.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub path: String,
    pub ports: Vec<u16>,
    pub status: u16,
}

pub(crate) struct Api {
    pub rows: BTreeMap<Key, Row>,
    pub groups: Value,
    pub scopes: BTreeSet<&'static str>,
    pub max_ttl: u64,
    /// The key that tokens are signed with now; others are refused.
    pub key: u32,
    pub tokens_issued: usize,
    /// UAA alone answers with a 503.
    pub uaa_down: bool,
    /// Ports whose rows are refused with a 400.
    pub poisoned: BTreeSet<u16>,
    /// Ports whose rows stand twice.
    pub doubled: BTreeSet<u16>,
    /// Requests that name these ports are answered late.
    pub slow: BTreeMap<u16, Duration>,
    /// Everything is answered like this.
    pub down: Option<(u16, &'static str)>,
    /// Rows without "no TLS" cannot be deleted (2024-09, 2026-08).
    pub keeps_tls_zero: bool,
    pub calls: Vec<Call>,
    /// Two rows of one backend behind one port under different TLS ports: HAProxy would refuse its file.
    pub haproxy_broken: bool,
}

#[derive(Clone)]
pub(crate) struct Foundation(Arc<Mutex<Api>>);

pub(crate) struct Running {
    pub api: Foundation,
    pub server: MockServer,
}

impl Running {
    pub(crate) async fn start() -> Self {
        let api = Foundation(Arc::new(Mutex::new(Api::new())));
        let server = MockServer::start().await;
        Mock::given(any())
            .respond_with(api.clone())
            .mount(&server)
            .await;
        Self { api, server }
    }
}

impl Foundation {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Api> {
        let mut api = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        api.expire();
        api
    }
}

impl Respond for Foundation {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        self.lock().answer(request)
    }
}

pub(crate) fn group(guid: &str, name: &str, ports: &str) -> Value {
    json!({"guid": guid, "name": name, "type": "tcp", "reservable_ports": ports})
}

fn error(status: u16, name: &str, message: &str) -> ResponseTemplate {
    // The real API says text/plain too.
    ResponseTemplate::new(status)
        .set_body_string(json!({"name": name, "message": message}).to_string())
        .insert_header("X-Vcap-Request-Id", "request-1")
}

impl Api {
    fn new() -> Self {
        Self {
            rows: BTreeMap::new(),
            groups: json!([group("g", "default-tcp", "1024-9000")]),
            scopes: route_sync::uaa::SCOPES.into_iter().collect(),
            max_ttl: 120,
            key: 1,
            tokens_issued: 0,
            uaa_down: false,
            poisoned: BTreeSet::new(),
            doubled: BTreeSet::new(),
            slow: BTreeMap::new(),
            down: None,
            keeps_tls_zero: false,
            calls: Vec::new(),
            haproxy_broken: false,
        }
    }

    pub(crate) fn insert(&mut self, key: Key, instance: Option<&str>, ttl: Duration) {
        let row = Row {
            instance: instance.map(ToOwned::to_owned),
            expires: Instant::now() + ttl,
        };
        self.rows.insert(key, row);
    }

    pub(crate) fn ports(&self) -> BTreeSet<u16> {
        self.rows.keys().map(|key| key.0).collect()
    }

    pub(crate) fn creates(&self) -> impl Iterator<Item = &Call> {
        self.calls
            .iter()
            .filter(|call| call.path.ends_with("/create"))
    }

    fn expire(&mut self) {
        let now = Instant::now();
        self.rows.retain(|_, row| row.expires > now);
    }

    fn answer(&mut self, request: &Request) -> ResponseTemplate {
        let path = request.url.path().to_owned();
        let items: Vec<Value> = serde_json::from_slice(&request.body).unwrap_or_default();
        let ports: Vec<u16> = items
            .iter()
            .filter_map(|item| item["port"].as_u64()?.try_into().ok())
            .collect();
        let answer = match self.down {
            Some((status, body)) => ResponseTemplate::new(status).set_body_string(body),
            None if path == "/oauth/token" && self.uaa_down => ResponseTemplate::new(503),
            None if path == "/oauth/token" => self.token(),
            None => self.routing(&path, request, &items),
        };
        let delay = ports
            .iter()
            .filter_map(|port| self.slow.get(port))
            .max()
            .copied();
        let status = answer.generate_response_status();
        self.calls.push(Call {
            path,
            ports,
            status,
        });
        match delay {
            Some(delay) => answer.set_delay(delay),
            None => answer,
        }
    }

    fn token(&mut self) -> ResponseTemplate {
        self.tokens_issued += 1;
        let scopes: Vec<_> = self.scopes.iter().copied().collect();
        ResponseTemplate::new(200).set_body_json(json!({
            "access_token": format!("{}|{}", self.key, scopes.join(",")),
            "token_type": "bearer",
            "expires_in": 599,
            "scope": scopes.join(" "),
        }))
    }

    fn routing(&mut self, path: &str, request: &Request, items: &[Value]) -> ResponseTemplate {
        let scope = match path {
            "/routing/v1/router_groups" => "routing.router_groups.read",
            "/routing/v1/tcp_routes" => "routing.routes.read",
            _ => "routing.routes.write",
        };
        let sent = request
            .headers
            .get("authorization")
            .and_then(|v| v.to_str().ok())
            .unwrap_or("");
        let (key, scopes) = sent
            .strip_prefix("bearer ")
            .and_then(|token| token.split_once('|'))
            .unwrap_or(("", ""));
        if key != self.key.to_string() {
            return error(401, "UnauthorizedError", "crypto/rsa: verification error");
        }
        if !scopes.split(',').any(|granted| granted == scope) {
            let message = "You are not authorized to perform the requested action";
            return error(401, "UnauthorizedError", message);
        }
        match path {
            "/routing/v1/router_groups" => {
                ResponseTemplate::new(200).set_body_json(self.groups.clone())
            }
            "/routing/v1/tcp_routes" => ResponseTemplate::new(200).set_body_string(self.list()),
            "/routing/v1/tcp_routes/create" => self.create(items),
            "/routing/v1/tcp_routes/delete" => self.delete(items),
            _ => ResponseTemplate::new(404).set_body_string("404 page not found"),
        }
    }

    fn list(&self) -> String {
        let rows: Vec<_> = self.rows.iter().map(|((port, ip, backend, tls, group), row)| json!({
            "router_group_guid": group, "port": port, "backend_ip": ip, "backend_port": backend,
            "backend_tls_port": tls, "instance_id": row.instance, "ttl": 120, "isolation_segment": "",
            "modification_tag": {"guid": "x", "index": 0},
        })).collect();
        if rows.is_empty() {
            "null".to_owned()
        } else {
            Value::from(rows).to_string()
        }
    }

    fn create(&mut self, items: &[Value]) -> ResponseTemplate {
        for item in items {
            let port = key(item).0;
            let refuse = |message: &str| {
                error(
                    400,
                    "ProcessRequestError",
                    &format!("Cannot process request: {message}"),
                )
            };
            if item["ttl"].as_u64().unwrap() > self.max_ttl {
                let limit = self.max_ttl;
                return refuse(&format!(
                    "Each tcp route mapping requires TTL to be less than or equal to {limit}"
                ));
            }
            if self.poisoned.contains(&port) {
                return refuse("poisoned");
            }
            let guid = &item["router_group_guid"];
            if !self
                .groups
                .as_array()
                .unwrap()
                .iter()
                .any(|group| group["guid"] == *guid)
            {
                return refuse(&format!("router_group_guid: {guid} not found"));
            }
        }
        for item in items {
            let key = key(item);
            if self.doubled.contains(&key.0) {
                return error(
                    503,
                    "DBCommunicationError",
                    "Have duplicate tcp route mappings",
                );
            }
            self.haproxy_broken |= self.rows.keys().any(|other| {
                (other.0, &other.1, other.2) == (key.0, &key.1, key.2) && other.3 != key.3
            });
            let ttl = Duration::from_secs(item["ttl"].as_u64().unwrap());
            let instance = match self.rows.get(&key) {
                Some(row) => row.instance.clone(),
                None => item["instance_id"].as_str().map(ToOwned::to_owned),
            };
            self.insert(key, instance.as_deref(), ttl);
        }
        ResponseTemplate::new(201)
    }

    fn delete(&mut self, items: &[Value]) -> ResponseTemplate {
        for item in items {
            let key = key(item);
            if !(self.keeps_tls_zero && key.3 == 0) {
                self.rows.remove(&key);
            }
        }
        ResponseTemplate::new(204)
    }
}

fn key(item: &Value) -> Key {
    (
        item["port"].as_u64().unwrap().try_into().unwrap(),
        item["backend_ip"].as_str().unwrap().to_owned(),
        item["backend_port"].as_u64().unwrap().try_into().unwrap(),
        item["backend_tls_port"].as_i64().unwrap_or(0),
        item["router_group_guid"].as_str().unwrap().to_owned(),
    )
}

trait Status {
    fn generate_response_status(&self) -> u16;
}

impl Status for ResponseTemplate {
    /// The template does not show its status; its `Debug` text does.
    fn generate_response_status(&self) -> u16 {
        let text = format!("{self:?}");
        let digits = text.split("status_code: ").nth(1).unwrap_or("");
        digits
            .chars()
            .take_while(char::is_ascii_digit)
            .collect::<String>()
            .parse()
            .unwrap_or(0)
    }
}
