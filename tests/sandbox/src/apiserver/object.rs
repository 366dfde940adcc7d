//! What a written object must look like, and what the server fills in: names, labels, Service
//! ports and their node ports. Pure; allocation looks at the ports the store says are taken.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::kinds::Kind;
use super::status::Status;

/// `--service-node-port-range`'s default: 2,768 ports, the natural ceiling of routes per cluster.
pub(super) const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
const LABEL_VALUE_BYTES_MAX: usize = 63;
const NAME_BYTES_MAX: usize = 253;

/// A node port together with its protocol: TCP and UDP may share a number.
pub(super) type NodePort = (u16, String);

/// Names, labels and annotations, for every kind.
pub(super) fn validate(kind: &Kind, object: &Value) -> Result<(), Status> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    for field in ["labels", "annotations"] {
        let Some(map) = object["metadata"][field].as_object() else {
            continue;
        };
        if let Some(value) = map.values().find(|v| !v.is_string()) {
            return Err(Status::bad_request(format!(
                "{0} in version \"v1\" cannot be handled as a {0}: json: cannot unmarshal {1} \
                 into Go struct field ObjectMeta.metadata.{field} of type string",
                kind.kind,
                json_type(value),
            )));
        }
    }
    let valid_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(valid_name) {
        let why = format!(
            "Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case \
             alphanumeric characters, '-' or '.', and must start and end with an alphanumeric \
             character"
        );
        return Err(Status::invalid(
            kind,
            name,
            "metadata.name",
            "FieldValueInvalid",
            &why,
        ));
    }
    let labels = object["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten();
    for value in labels.filter_map(|(_, value)| value.as_str()) {
        if let Some(why) = label_value_fault(value) {
            let why = format!("Invalid value: \"{value}\": {why}");
            return Err(Status::invalid(
                kind,
                name,
                "metadata.labels",
                "FieldValueInvalid",
                &why,
            ));
        }
    }
    Ok(())
}

fn label_value_fault(value: &str) -> Option<String> {
    if value.len() > LABEL_VALUE_BYTES_MAX {
        return Some(format!(
            "must be no more than {LABEL_VALUE_BYTES_MAX} bytes"
        ));
    }
    let bytes = value.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
    let edges = [bytes.first(), bytes.last()];
    let well_formed =
        bytes.iter().all(inner) && edges.into_iter().flatten().all(u8::is_ascii_alphanumeric);
    (!well_formed).then(|| {
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
         '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or \
         'my_value',  or '12345', regex used for validation is \
         '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
            .to_owned()
    })
}

/// Fills in what the real server fills in; `before` is the object being replaced.
pub(super) fn complete(
    kind: &Kind,
    object: &mut Value,
    before: Option<&Value>,
    taken: &BTreeSet<NodePort>,
) -> Result<(), Status> {
    match kind.kind {
        "Service" => complete_service(kind, object, before, taken),
        "Namespace" => {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            default(object, "spec", json!({"finalizers": ["kubernetes"]}));
            default(object, "status", json!({"phase": "Active"}));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn complete_service(
    kind: &Kind,
    object: &mut Value,
    before: Option<&Value>,
    taken: &BTreeSet<NodePort>,
) -> Result<(), Status> {
    let name = object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    default(object, "spec", json!({}));
    default(object, "status", json!({"loadBalancer": {}}));
    let spec = &mut object["spec"];
    default(spec, "type", json!("ClusterIP"));
    default(spec, "sessionAffinity", json!("None"));
    let service_type = spec["type"].as_str().unwrap_or_default().to_owned();
    let node_ports = matches!(service_type.as_str(), "NodePort" | "LoadBalancer");
    if node_ports {
        default(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if service_type != "ExternalName" {
        let kept = before
            .map(|b| b["spec"]["clusterIP"].clone())
            .filter(Value::is_string);
        default(
            spec,
            "clusterIP",
            kept.unwrap_or_else(|| json!(cluster_ip())),
        );
        default(spec, "internalTrafficPolicy", json!("Cluster"));
        default(spec, "ipFamilies", json!(["IPv4"]));
        default(spec, "ipFamilyPolicy", json!("SingleStack"));
    }
    let headless = spec["clusterIP"] == "None";
    let Some(ports) = spec.get_mut("ports").and_then(Value::as_array_mut) else {
        if service_type == "ExternalName" || headless {
            return Ok(());
        }
        let why = "Required value";
        return Err(Status::invalid(
            kind,
            &name,
            "spec.ports",
            "FieldValueRequired",
            why,
        ));
    };
    let several = ports.len() > 1;
    for (index, port) in ports.iter_mut().enumerate() {
        complete_port(kind, &name, index, several, port)?;
    }
    let own: BTreeSet<NodePort> = before.map(node_ports_of).unwrap_or_default();
    let mut allocation = Allocation {
        taken,
        own: &own,
        given: BTreeSet::new(),
    };
    if node_ports {
        allocation.fill(kind, &name, ports, before)?;
    } else {
        for port in ports.iter_mut().filter_map(Value::as_object_mut) {
            port.remove("nodePort");
        }
    }
    Ok(())
}

fn complete_port(
    kind: &Kind,
    name: &str,
    index: usize,
    several: bool,
    port: &mut Value,
) -> Result<(), Status> {
    for field in ["port", "nodePort"] {
        let value = &port[field];
        if !value.is_null() && !value.is_number() {
            return Err(Status::bad_request(format!(
                "Service in version \"v1\" cannot be handled as a Service: json: cannot unmarshal \
                 {} into Go struct field ServicePort.spec.ports.{field} of type int32",
                json_type(value),
            )));
        }
    }
    if !port["port"]
        .as_i64()
        .is_some_and(|n| (1..=65_535).contains(&n))
    {
        let field = format!("spec.ports[{index}].port");
        let why = format!(
            "Invalid value: {}: must be between 1 and 65535, inclusive",
            port["port"]
        );
        return Err(Status::invalid(
            kind,
            name,
            &field,
            "FieldValueInvalid",
            &why,
        ));
    }
    if several && port["name"].as_str().unwrap_or_default().is_empty() {
        let field = format!("spec.ports[{index}].name");
        let why = "Required value";
        return Err(Status::invalid(
            kind,
            name,
            &field,
            "FieldValueRequired",
            why,
        ));
    }
    default(port, "protocol", json!("TCP"));
    let same = port["port"].clone();
    default(port, "targetPort", same);
    Ok(())
}

/// One Service's claim on node ports.
struct Allocation<'a> {
    taken: &'a BTreeSet<NodePort>,
    /// Held by the object being replaced: free for its successor.
    own: &'a BTreeSet<NodePort>,
    given: BTreeSet<NodePort>,
}

// === impl Allocation ===

impl Allocation<'_> {
    fn fill(
        &mut self,
        kind: &Kind,
        name: &str,
        ports: &mut [Value],
        before: Option<&Value>,
    ) -> Result<(), Status> {
        for (index, port) in ports.iter_mut().enumerate() {
            let Some(asked) = port["nodePort"].as_u64().filter(|&n| n != 0) else {
                continue;
            };
            self.claim(kind, name, index, asked, &protocol_of(port))?;
        }
        for port in ports.iter_mut() {
            if port["nodePort"].as_u64().is_some_and(|n| n != 0) {
                continue;
            }
            let protocol = protocol_of(port);
            let kept = before
                .and_then(|b| kept_port(b, port))
                .map(|n| (n, protocol.clone()));
            let claim = match kept.filter(|claim| !self.given.contains(claim)) {
                Some(claim) => claim,
                None => self.free(&protocol)?,
            };
            port["nodePort"] = json!(claim.0);
            self.given.insert(claim);
        }
        Ok(())
    }

    fn claim(
        &mut self,
        kind: &Kind,
        name: &str,
        index: usize,
        asked: u64,
        protocol: &str,
    ) -> Result<(), Status> {
        let field = format!("spec.ports[{index}].nodePort");
        let refuse = |why: &str| {
            let why = format!("Invalid value: {asked}: {why}");
            Err(Status::invalid(
                kind,
                name,
                &field,
                "FieldValueInvalid",
                &why,
            ))
        };
        let Some(number) = u16::try_from(asked).ok().filter(|n| NODE_PORTS.contains(n)) else {
            return refuse(
                "provided port is not in the valid range. The range of valid ports is 30000-32767",
            );
        };
        let claim = (number, protocol.to_owned());
        if self.taken.contains(&claim) && !self.own.contains(&claim) {
            return refuse("provided port is already allocated");
        }
        self.given.insert(claim);
        Ok(())
    }

    /// A free port from a random start on: the real allocator is random, too, so no test may
    /// come to count on the order.
    fn free(&self, protocol: &str) -> Result<NodePort, Status> {
        let (first, size) = (*NODE_PORTS.start(), NODE_PORTS.len());
        let start = rand::random::<usize>() % size;
        (0..size)
            .map(|step| first + u16::try_from((start + step) % size).unwrap_or_default())
            .map(|number| (number, protocol.to_owned()))
            .find(|claim| !self.taken.contains(claim) && !self.given.contains(claim))
            .ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))
    }
}

/// The node port that the same port (by number and protocol) had before.
fn kept_port(before: &Value, port: &Value) -> Option<u16> {
    let same = |p: &&Value| p["port"] == port["port"] && protocol_of(p) == protocol_of(port);
    let before = before["spec"]["ports"].as_array()?.iter().find(same)?;
    u16::try_from(before["nodePort"].as_u64()?).ok()
}

fn protocol_of(port: &Value) -> String {
    port["protocol"].as_str().unwrap_or("TCP").to_owned()
}

/// Every node port an object holds; an object that cannot be read holds none.
pub(super) fn node_ports_of(object: &Value) -> BTreeSet<NodePort> {
    let ports = object["spec"]["ports"].as_array().into_iter().flatten();
    ports
        .filter_map(|port| {
            let number = u16::try_from(port["nodePort"].as_u64()?).ok()?;
            Some((number, protocol_of(port)))
        })
        .collect()
}

fn cluster_ip() -> String {
    format!("10.96.{}.{}", rand::random::<u8>(), rand::random::<u8>())
}

fn default(object: &mut Value, key: &str, value: Value) {
    if object[key].is_null() {
        object[key] = value;
    }
}

pub(super) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Takes every null away, as decoding into a typed object does.
pub(super) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// The object's metadata, made when it is not there.
pub(super) fn metadata(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let object = object.as_object_mut()?;
    object
        .entry("metadata")
        .or_insert_with(|| json!({}))
        .as_object_mut()
}

/// A random UUID (version 4), as the server gives every object one.
pub(super) fn uid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// Now, in the server's format: RFC 3339, whole seconds, UTC.
#[expect(
    clippy::disallowed_methods,
    reason = "an object's creationTimestamp is the server's own wall clock"
)]
pub(super) fn timestamp() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let (days, second) = (since / 86_400, since % 86_400);
    // Gregorian calendar in eras of 400 years that begin on 1 March.
    let day = days + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}
