//! The JSON of the routing API: mappings in and out, and the texts of its errors.
//!
//! Decoding follows Go's `encoding/json` where a client can see the difference: unknown fields and
//! anything after the first value are ignored, a number out of range names the field and its type.

use http::{Response, header};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::RouterGroup;
use crate::listen::{self, Body};

/// A row as `GET /routing/v1/tcp_routes` and the events show it, in the API's own field order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TcpRoute {
    pub router_group_guid: String,
    pub backend_port: u16,
    pub backend_tls_port: i64,
    pub backend_ip: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_sni_hostname: Option<String>,
    pub instance_id: String,
    pub port: u16,
    pub modification_tag: ModificationTag,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<i64>,
    pub isolation_segment: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModificationTag {
    pub guid: String,
    pub index: u32,
}

// === decoding ===

/// The array of a create or delete body; the error is the decoder's text.
pub(super) fn decode(body: &[u8]) -> Result<Vec<TcpRoute>, String> {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    let value = match values.next() {
        None => return Err("EOF".to_owned()),
        Some(Err(error)) if error.is_eof() => return Err("unexpected EOF".to_owned()),
        Some(Err(_)) => return Err(invalid_character(body)),
        Some(Ok(value)) => value,
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => items.iter().map(mapping).collect(),
        other => Err(format!(
            "json: cannot unmarshal {} into Go value of type []models.TcpRouteMapping",
            kind(&other)
        )),
    }
}

fn invalid_character(body: &[u8]) -> String {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    let shown = char::from(first.copied().unwrap_or_default());
    format!("invalid character '{shown}' looking for beginning of value")
}

fn mapping(item: &Value) -> Result<TcpRoute, String> {
    let fields = match item {
        Value::Object(fields) => fields,
        Value::Null => &Map::new(),
        other => {
            return Err(format!(
                "json: cannot unmarshal {} into Go value of type models.TcpRouteMapping",
                kind(other)
            ));
        }
    };
    Ok(TcpRoute {
        router_group_guid: text(fields, "router_group_guid")?.unwrap_or_default(),
        backend_port: port(fields, "backend_port")?,
        backend_tls_port: integer(fields, "backend_tls_port")?.unwrap_or_default(),
        backend_ip: text(fields, "backend_ip")?.unwrap_or_default(),
        backend_sni_hostname: text(fields, "backend_sni_hostname")?,
        instance_id: text(fields, "instance_id")?.unwrap_or_default(),
        port: port(fields, "port")?,
        modification_tag: ModificationTag::default(),
        ttl: integer(fields, "ttl")?,
        isolation_segment: text(fields, "isolation_segment")?.unwrap_or_default(),
    })
}

fn text(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(mismatch(other, name, "string")),
    }
}

fn integer(fields: &Map<String, Value>, name: &str) -> Result<Option<i64>, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_i64() {
            Some(number) => Ok(Some(number)),
            None => Err(mismatch(value, name, "int")),
        },
    }
}

fn port(fields: &Map<String, Value>, name: &str) -> Result<u16, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value
            .as_u64()
            .and_then(|number| u16::try_from(number).ok())
            .ok_or_else(|| mismatch(value, name, "uint16")),
    }
}

fn mismatch(value: &Value, field: &str, wanted: &str) -> String {
    // Go tells the number itself only where a number was wanted.
    let found = match value {
        Value::Number(number) if wanted != "string" => format!("number {number}"),
        other => kind(other).to_owned(),
    };
    format!(
        "json: cannot unmarshal {found} into Go struct field TcpRouteMapping.{field} of type {wanted}"
    )
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

// === validation ===

/// One mapping's mistakes, first found first told; `ttl_max` is `None` for a delete.
pub(super) fn validate(
    route: &TcpRoute,
    ttl_max: Option<i64>,
    groups: &[RouterGroup],
) -> Result<(), String> {
    let shown = format!(
        "RouteMapping=[{}:{}<->{}:{}]",
        route.router_group_guid, route.port, route.backend_ip, route.backend_port
    );
    let requires = |what: &str| Err(format!("Each tcp mapping requires {what}. {shown}"));
    if route.router_group_guid.is_empty() {
        return requires("a non empty router group guid");
    }
    if route.port == 0 {
        return requires("a positive external port");
    }
    if route.backend_ip.is_empty() {
        return requires("a non empty backend ip");
    }
    if route.backend_port == 0 && route.backend_tls_port <= 0 {
        return requires("a positive backend port");
    }
    if route.backend_tls_port > i64::from(u16::MAX) {
        return Err(format!(
            "Each tcp mapping with a backend TLS port requires that port to be less than or equal \
             to 65535. {shown}"
        ));
    }
    let Some(ttl_max) = ttl_max else {
        return Ok(());
    };
    let ttl = route.ttl.unwrap_or(ttl_max);
    if ttl > ttl_max {
        return requires(&format!("TTL to be less than or equal to {ttl_max}"));
    }
    if ttl <= 0 {
        return Err("Each tcp route mapping requires a ttl greater than 0".to_owned());
    }
    let known = |group: &RouterGroup| group.guid == route.router_group_guid;
    if !groups.iter().any(known) {
        let guid = &route.router_group_guid;
        return Err(format!("router_group_guid: {guid} not found"));
    }
    Ok(())
}

// === answers ===

pub(super) fn process_request_error(message: &str) -> Response<Body> {
    let message = format!("Cannot process request: {message}");
    error(400, "ProcessRequestError", &message)
}

/// The content type of an error is whatever Go sniffs: text.
pub(super) fn error(status: u16, name: &str, message: &str) -> Response<Body> {
    plain(
        status,
        json!({ "name": name, "message": message }).to_string(),
    )
}

pub(super) fn plain(status: u16, body: String) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", body)
}

pub(super) fn answer(status: u16, content_type: &str, body: String) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .body(listen::full(body))
        .expect("status and content type must be valid HTTP")
}

pub(super) fn empty(status: u16) -> Response<Body> {
    Response::builder()
        .status(status)
        .body(listen::full(""))
        .expect("a status must be valid HTTP")
}
