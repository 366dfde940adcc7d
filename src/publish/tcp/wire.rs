//! The routing API's JSON, exactly as it is spoken, and its way to and from our words: bytes on one side, rows and
//! groups on the other. What an answer's status means is the client's affair.

use serde::{Deserialize, Serialize};

use crate::plan::admission::RouterGroup;
use crate::plan::{InstanceId, Observed, TcpRow};
use crate::route::RouterPort;

/// A mapping as we send it, in create and in delete alike. No modification tag: the API ignores a client's.
#[derive(Debug, Serialize)]
struct SentRow<'a> {
    router_group_guid: &'a str,
    port: u16,
    backend_ip: &'a str,
    backend_port: u16,
    backend_tls_port: i32,
    /// Absent unless it is part of the identity of a row to be deleted: absent and `""` are two identities.
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_sni_hostname: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<u64>,
}

/// A mapping as it is listed. Unknown fields are tolerated, older versions' missing ones too.
#[derive(Debug, Deserialize)]
struct ListedRow {
    #[serde(default)]
    router_group_guid: String,
    port: u16,
    #[serde(default)]
    backend_ip: String,
    #[serde(default)]
    backend_port: u16,
    #[serde(default)]
    backend_tls_port: Option<i32>,
    #[serde(default)]
    backend_sni_hostname: Option<String>,
    #[serde(default)]
    instance_id: Option<String>,
}

/// A router group as it is listed.
#[derive(Debug, Deserialize)]
struct ListedGroup {
    guid: String,
    name: String,
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    reservable_ports: Option<String>,
}

/// Every error of the API itself.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ErrorBody {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) message: String,
}

/// The body of a create; `ttl` in seconds.
#[must_use]
pub fn created(rows: &[TcpRow], instance: &InstanceId, ttl: u64) -> Vec<u8> {
    let sent = |row| SentRow {
        instance_id: Some(instance.as_str()),
        ttl: Some(ttl),
        ..deleted_row(row)
    };
    encode(rows.iter().map(sent).collect())
}

/// The body of a delete: identities alone.
#[must_use]
pub fn deleted(rows: &[TcpRow]) -> Vec<u8> {
    encode(rows.iter().map(deleted_row).collect())
}

fn encode(rows: Vec<SentRow<'_>>) -> Vec<u8> {
    serde_json::to_vec(&rows).expect("rows of texts and numbers must be encodable")
}

fn deleted_row(row: &TcpRow) -> SentRow<'_> {
    SentRow {
        router_group_guid: &row.group,
        port: row.port.get(),
        backend_ip: &row.ip,
        backend_port: row.backend_port,
        backend_tls_port: row.tls_port,
        backend_sni_hostname: row.sni.as_deref(),
        instance_id: None,
        ttl: None,
    }
}

/// Reads a list of rows; `null` is none. A row without a port cannot lead anywhere and is left out.
///
/// # Errors
/// When it is no such list.
pub fn observed(body: &[u8]) -> Result<Observed, serde_json::Error> {
    let rows: Option<Vec<ListedRow>> = serde_json::from_slice(body)?;
    let rows = rows.into_iter().flatten();
    Ok(rows.filter_map(ListedRow::row).collect())
}

/// The row that an event tells of, in our words.
pub(super) fn heard(data: &str) -> Option<(TcpRow, Option<String>)> {
    serde_json::from_str::<ListedRow>(data).ok()?.row()
}

/// Reads a list of router groups, of which those of type tcp count; by name.
///
/// # Errors
/// When it is no such list.
pub fn tcp_groups(body: &[u8]) -> Result<Vec<RouterGroup>, serde_json::Error> {
    let groups: Option<Vec<ListedGroup>> = serde_json::from_slice(body)?;
    let mut tcp: Vec<_> = groups
        .into_iter()
        .flatten()
        .filter(|group| group.kind == "tcp")
        .map(|group| RouterGroup {
            guid: group.guid,
            name: group.name,
            reservable_ports: group.reservable_ports.unwrap_or_default(),
        })
        .collect();
    tcp.sort_by(|a, b| (&a.name, &a.guid).cmp(&(&b.name, &b.guid)));
    Ok(tcp)
}

// === impl ListedRow ===

impl ListedRow {
    fn row(self) -> Option<(TcpRow, Option<String>)> {
        let stamp = self.instance_id.filter(|id| !id.is_empty());
        let row = TcpRow {
            port: RouterPort::new(self.port)?,
            ip: self.backend_ip,
            backend_port: self.backend_port,
            tls_port: self.backend_tls_port.unwrap_or(0),
            sni: self.backend_sni_hostname,
            group: self.router_group_guid,
        };
        Some((row, stamp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::NO_TLS;
    use crate::route::ClusterId;

    #[test]
    fn a_mapping_is_sent_without_tls_and_with_our_mark() {
        let row = TcpRow {
            port: RouterPort::new(1024).unwrap(),
            ip: "10.0.0.1".to_owned(),
            backend_port: 30001,
            tls_port: NO_TLS,
            sni: None,
            group: "g".to_owned(),
        };
        let instance = InstanceId::of(&ClusterId(String::new()));
        let rows = [row];
        assert_eq!(
            String::from_utf8(created(&rows, &instance, 120)).unwrap(),
            r#"[{"router_group_guid":"g","port":1024,"backend_ip":"10.0.0.1","backend_port":30001,"backend_tls_port":-1,"instance_id":"rs-cbf29ce484222325","ttl":120}]"#
        );
        assert_eq!(
            String::from_utf8(deleted(&rows)).unwrap(),
            r#"[{"router_group_guid":"g","port":1024,"backend_ip":"10.0.0.1","backend_port":30001,"backend_tls_port":-1}]"#
        );
    }

    #[test]
    fn rows_of_every_version_are_read() {
        let text = r#"[
            {"router_group_guid":"g","port":1024,"backend_ip":"a","backend_port":1,"ttl":60},
            {"router_group_guid":"g","port":1024,"backend_ip":"b","backend_port":1,"backend_tls_port":0,
             "instance_id":"","modification_tag":{"guid":"x","index":1},"enable_backend_mtls":false},
            {"router_group_guid":"g","port":1024,"backend_ip":"c","backend_port":1,"backend_tls_port":-1,
             "instance_id":"rs-1","backend_sni_hostname":""}]"#;
        let rows = observed(text.as_bytes()).unwrap();
        let seen: Vec<_> = rows
            .iter()
            .map(|(row, id)| {
                (
                    row.ip.as_str(),
                    row.tls_port,
                    row.sni.as_deref(),
                    id.as_deref(),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("a", 0, None, None),
                ("b", 0, None, None),
                ("c", -1, Some(""), Some("rs-1"))
            ]
        );
    }
}
