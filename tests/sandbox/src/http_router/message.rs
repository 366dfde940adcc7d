//! `router.register` and `router.unregister` as gorouter decodes them.
//!
//! Go's rules where they show: keys match in any case, null is absence, unknown keys are ignored,
//! and one wrong type rejects the whole message.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Registration {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls_port: u16,
    pub(super) uris: Vec<String>,
    pub(super) protocol: String,
    pub(super) app: String,
    pub(super) private_instance_id: String,
    pub(super) private_instance_index: String,
    pub(super) tags: Option<BTreeMap<String, String>>,
    pub(super) server_cert_domain_san: String,
    pub(super) stale_threshold_in_seconds: i64,
    pub(super) route_service_url: String,
    pub(super) isolation_segment: String,
    pub(super) availability_zone: String,
}

struct Fields(BTreeMap<String, Value>);

// === impl Registration ===

impl Registration {
    /// The error is what gorouter would log with `validation-error`.
    pub(super) fn parse(payload: &[u8]) -> Result<Self, String> {
        let document: Map<String, Value> =
            serde_json::from_slice(payload).map_err(|error| error.to_string())?;
        let fields = document.into_iter();
        let fields = Fields(
            fields
                .map(|(key, value)| (key.to_ascii_lowercase(), value))
                .collect(),
        );
        fields.integer("endpoint_updated_at_ns")?;
        match fields.get("options") {
            None | Some(Value::Object(_)) => {}
            Some(_) => return Err(wrong("options", "object")),
        }
        let message = Self {
            host: fields.text("host")?,
            port: fields.port("port")?,
            tls_port: fields.port("tls_port")?,
            uris: fields.texts("uris")?,
            protocol: fields.text("protocol")?,
            app: fields.text("app")?,
            private_instance_id: fields.text("private_instance_id")?,
            private_instance_index: fields.text("private_instance_index")?,
            tags: fields.tags("tags")?,
            server_cert_domain_san: fields.text("server_cert_domain_san")?,
            stale_threshold_in_seconds: fields.integer("stale_threshold_in_seconds")?,
            route_service_url: fields.text("route_service_url")?,
            isolation_segment: fields.text("isolation_segment")?,
            availability_zone: fields.text("availability_zone")?,
        };
        if !message.route_service_url.is_empty() && !message.route_service_url.starts_with("https")
        {
            return Err("Unable to validate message. route_service_url must be https".to_owned());
        }
        Ok(message)
    }

    /// `host:port`, the endpoint's key in its pool.
    pub(super) fn address(&self) -> String {
        let port = if self.tls_port == 0 {
            self.port
        } else {
            self.tls_port
        };
        format!("{}:{port}", self.host)
    }
}

// === impl Fields ===

impl Fields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, name: &str) -> Result<String, String> {
        match self.get(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(wrong(name, "string")),
        }
    }

    fn texts(&self, name: &str) -> Result<Vec<String>, String> {
        let items = match self.get(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(_) => return Err(wrong(name, "array of strings")),
        };
        let texts = items.iter().map(|item| match item {
            Value::String(text) => Ok(text.clone()),
            Value::Null => Ok(String::new()),
            _ => Err(wrong(name, "string")),
        });
        texts.collect()
    }

    fn tags(&self, name: &str) -> Result<Option<BTreeMap<String, String>>, String> {
        let tags = match self.get(name) {
            None => return Ok(None),
            Some(Value::Object(tags)) => tags,
            Some(_) => return Err(wrong(name, "object of strings")),
        };
        let tags = tags.iter().map(|(key, value)| match value {
            Value::String(text) => Ok((key.clone(), text.clone())),
            Value::Null => Ok((key.clone(), String::new())),
            _ => Err(wrong(name, "string")),
        });
        tags.collect::<Result<_, _>>().map(Some)
    }

    fn port(&self, name: &str) -> Result<u16, String> {
        let number = self.integer(name)?;
        u16::try_from(number).map_err(|_| wrong(name, "uint16"))
    }

    fn integer(&self, name: &str) -> Result<i64, String> {
        match self.get(name) {
            None => Ok(0),
            Some(value) => value.as_i64().ok_or_else(|| wrong(name, "int")),
        }
    }
}

fn wrong(name: &str, wanted: &str) -> String {
    format!("parse error: field `{name}` is no {wanted}")
}
