//! The routing API's JSON, exactly as it is spoken, and its way to and from our words.

use serde::{Deserialize, Serialize};

use crate::plan::admission::RouterGroup;
use crate::plan::{InstanceId, Observed, TcpRow};
use crate::route::RouterPort;

/// A mapping as we send it, in create and in delete alike. No modification tag: the API ignores a client's.
#[derive(Debug, Serialize)]
pub(super) struct SentRow<'a> {
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
pub(super) struct ListedRow {
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
pub(super) struct ListedGroup {
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

/// The body of a create.
pub(super) fn created<'a>(
    rows: &'a [TcpRow],
    instance: &'a InstanceId,
    ttl: u64,
) -> Vec<SentRow<'a>> {
    let sent = |row| SentRow {
        instance_id: Some(instance.as_str()),
        ttl: Some(ttl),
        ..deleted_row(row)
    };
    rows.iter().map(sent).collect()
}

/// The body of a delete: identities alone.
pub(super) fn deleted(rows: &[TcpRow]) -> Vec<SentRow<'_>> {
    rows.iter().map(deleted_row).collect()
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

/// Rows in our words. A row without a port cannot lead anywhere and is left out.
pub(super) fn observed(rows: Vec<ListedRow>) -> Observed {
    let mut observed = Observed::new();
    for row in rows {
        let Some(port) = RouterPort::new(row.port) else {
            continue;
        };
        let stamp = row.instance_id.filter(|id| !id.is_empty());
        let row = TcpRow {
            port,
            ip: row.backend_ip,
            backend_port: row.backend_port,
            tls_port: row.backend_tls_port.unwrap_or(0),
            sni: row.backend_sni_hostname,
            group: row.router_group_guid,
        };
        observed.insert(row, stamp);
    }
    observed
}

/// The groups that TCP routes may go to, by name.
pub(super) fn tcp_groups(groups: Vec<ListedGroup>) -> Vec<RouterGroup> {
    let mut tcp: Vec<_> = groups
        .into_iter()
        .filter(|group| group.kind == "tcp")
        .map(|group| RouterGroup {
            guid: group.guid,
            name: group.name,
            reservable_ports: group.reservable_ports.unwrap_or_default(),
        })
        .collect();
    tcp.sort_by(|a, b| (&a.name, &a.guid).cmp(&(&b.name, &b.guid)));
    tcp
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
            serde_json::to_string(&created(&rows, &instance, 120)).unwrap(),
            r#"[{"router_group_guid":"g","port":1024,"backend_ip":"10.0.0.1","backend_port":30001,"backend_tls_port":-1,"instance_id":"rs-cbf29ce484222325","ttl":120}]"#
        );
        assert_eq!(
            serde_json::to_string(&deleted(&rows)).unwrap(),
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
        let rows = observed(serde_json::from_str(text).unwrap());
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
