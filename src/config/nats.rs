//! The group `nats`, and the original's list of servers.

use std::time::Duration;

use super::meaning::{host, needed};
use super::read::{Field, Group, Reader};
use super::scalar;
use super::{NatsConfig, NatsServer, Secret, TlsConfig};

/// What routers tell by default, and the bounds within which one may tell another.
const BEAT_INTERVAL: Duration = Duration::from_secs(20);
const BEAT_INTERVAL_MIN: Duration = Duration::from_secs(5);
const BEAT_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// At this pace one gorouter (2024-10) was measured to lose nothing; an unpaced burst of 300,000 lost half.
const MESSAGES_PER_SECOND: u32 = 5000;

/// The HTTP lane.
pub(super) fn nats(reader: &mut Reader, root: &Group<'_>, http_on: bool) -> Option<NatsConfig> {
    let group = reader.group(root, "nats");
    let common = login(reader, &group);
    let mut demands_tls = false;
    let old = reader.groups(root, "nats_servers");
    let old = servers(reader, old, true, common.as_ref(), &mut demands_tls);
    let new = reader.groups(&group, "servers");
    let new = servers(reader, new, false, common.as_ref(), &mut demands_tls);
    let servers = reader.either(("nats_servers", old), ("nats.servers", new));
    let servers = needed(reader, http_on, ("nats.servers", "nats_servers"), servers);
    let tls = nats_tls(reader, &group, demands_tls);
    let interval = reader.duration(&group, "interval", BEAT_INTERVAL_MIN..=BEAT_INTERVAL_MAX);
    let pace = reader.number(&group, "messages_per_second", 1..=1_000_000);
    let send_app = reader.flag(&group, "send_app");
    Some(NatsConfig {
        servers: servers?,
        tls,
        default_interval: interval.ok().unwrap_or(BEAT_INTERVAL),
        messages_per_second: pace.ok().unwrap_or(MESSAGES_PER_SECOND),
        send_app: send_app.ok().unwrap_or(true),
        // A key of another group.
        state_dir: None,
    })
}

/// `user` with its password: both or none.
fn login(reader: &mut Reader, group: &Group<'_>) -> Option<(String, Secret)> {
    let user = reader.text(group, "user").map(str::to_owned);
    let password = reader.secret(group, "password");
    lone_half(reader, group, &user, &password);
    Some((user.ok()?, password.ok()?))
}

fn lone_half(
    reader: &mut Reader,
    group: &Group<'_>,
    user: &Field<String>,
    password: &Field<Secret>,
) {
    let missing = match (user, password) {
        (Field::Is(_), Field::Absent) => Some(("password", "user")),
        (Field::Absent, Field::Is(_)) => Some(("user", "password")),
        _ => None,
    };
    if let Some((missing, given)) = missing {
        reader.wrong(
            group.path_of(missing),
            format!("is missing beside `{given}`"),
        );
    }
}

fn servers(
    reader: &mut Reader,
    groups: Field<Vec<Group<'_>>>,
    original: bool,
    common: Option<&(String, Secret)>,
    demands_tls: &mut bool,
) -> Field<Vec<NatsServer>> {
    let groups = match groups {
        Field::Is(groups) => groups,
        Field::Absent => return Field::Absent,
        Field::Wrong => return Field::Wrong,
    };
    let (count, name) = (
        groups.len(),
        if original {
            "nats_servers"
        } else {
            "nats.servers"
        },
    );
    if count == 0 {
        reader.wrong(name.to_owned(), "must name at least one server");
        return Field::Wrong;
    }
    let read: Vec<NatsServer> = groups
        .iter()
        .filter_map(|group| server(reader, group, original, common, demands_tls))
        .collect();
    if read.len() == count {
        Field::Is(read)
    } else {
        Field::Wrong
    }
}

fn server(
    reader: &mut Reader,
    group: &Group<'_>,
    original: bool,
    common: Option<&(String, Secret)>,
    demands_tls: &mut bool,
) -> Option<NatsServer> {
    let address = reader.parsed(group, "host", scalar::nats_address);
    if address.is_absent() {
        reader.wrong(group.path_of("host"), "is missing");
    }
    let user = reader.text(group, "user").map(str::to_owned);
    let (password, port) = if original {
        let password = reader
            .text(group, "password")
            .map(|text| Secret::new(text.to_owned()));
        (password, Field::Absent)
    } else {
        let port = reader.parsed(group, "port", scalar::port_number);
        (reader.secret(group, "password"), port)
    };
    lone_half(reader, group, &user, &password);
    let own = user.ok().zip(password.ok());
    let address = address.ok()?;
    *demands_tls |= address.tls;
    if own.is_some() && address.login.is_some() && own != address.login {
        reader.wrong(
            group.path_of("host"),
            "holds credentials that differ from `user` and `password`",
        );
    }
    let port = match (address.explicit_port, port) {
        (Some(one), Field::Is(other)) if one != other => {
            reader.wrong(
                group.path_of("port"),
                format!("differs from the port {one} in `host`"),
            );
            return None;
        }
        (_, Field::Is(port)) => port,
        _ => address.port(),
    };
    Some(NatsServer {
        port,
        login: own
            .or_else(|| address.login.clone())
            .or_else(|| common.cloned()),
        host: address.host,
    })
}

fn nats_tls(reader: &mut Reader, nats: &Group<'_>, demanded: bool) -> Option<TlsConfig> {
    let group = reader.group(nats, "tls");
    let ca_file = reader.pem_file(&group, "ca_file").ok();
    let identity = reader.identity(&group, "cert_file", "key_file");
    let server_name = host(reader, &group, "server_name").ok();
    let given = demanded || !group.is_empty();
    given.then_some(TlsConfig {
        ca_file,
        identity,
        skip_verification: false,
        server_name,
    })
}
