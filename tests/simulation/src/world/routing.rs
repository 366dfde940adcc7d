//! The routing API's TCP table, with everybody who writes to it, and UAA's tokens.
//!
//! As measured: a batch is judged as a whole and stored row by row without a transaction, rows of no TLS port stand
//! once per refresh on some versions and are deleted by nobody, two rows under one identity block both, a list hides
//! what has lapsed at once, and the pruner tells of it up to 11 s later.

mod client;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use route_sync::plan::admission::RouterGroup;
use route_sync::plan::{NO_TLS, TcpRow};
use route_sync::publish::tcp::{ApiError, RequestId};
use tokio::sync::mpsc;

use super::links::{Remote, Way};
use super::{Event, World};
use crate::Moment;

pub use client::Api;

pub const PRUNE_EVERY: Duration = Duration::from_secs(10);
/// The pruner leaves a row alone until it has been expired for this long.
const EXPIRED_FOR: Duration = Duration::from_secs(1);
/// By then what others wrote is known, by an event or by the list of each minute that a conflict calls for.
const OTHERS_KNOWN: Duration = Duration::from_secs(90);
/// An event is told this much later.
const EVENT_AFTER: Duration = Duration::from_millis(5);
/// The real one's buffer for one subscriber.
const EVENTS_MAX: usize = 1024;
/// Requests that change something, within one second. Halving a batch for a row that is refused takes a dozen.
const REQUESTS_MAX: u32 = 100;
/// What the router group reserves.
pub const PORT_FIRST: u16 = 1024;
pub const PORT_LAST: u16 = 1033;

/// Who wrote a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    Us,
    Other(usize),
}

#[derive(Clone, Debug)]
pub struct Row {
    pub row: TcpRow,
    pub stamp: Option<String>,
    pub writer: Writer,
    pub expires: Moment,
}

/// Somebody else who keeps rows alive.
pub struct Other {
    pub rows: Vec<TcpRow>,
    pub stamp: Option<String>,
    pub ttl: Duration,
    pub since: Moment,
    pub until: Moment,
    /// An older job for our own routes, not a stranger.
    pub legacy: bool,
}

/// What is asked of the table.
#[derive(Clone, Debug)]
pub enum Request {
    Create {
        rows: Vec<TcpRow>,
        stamp: String,
        ttl: Duration,
    },
    Delete(Vec<TcpRow>),
}

#[derive(Default)]
pub struct Faults {
    /// Answers are lost until then, and what they answer was done.
    pub answers_lost: Moment,
    /// The database fails after a few rows of a batch.
    pub database: Moment,
    /// Rows for this port are refused.
    pub refuses: Option<(u16, Moment)>,
    /// No event is told.
    pub events_denied: Moment,
    /// An answer takes so long.
    pub slow: (Moment, Duration),
}

pub struct Routing {
    pub rows: BTreeMap<u64, Row>,
    pub groups: Vec<RouterGroup>,
    pub max_ttl: Duration,
    pub others: Vec<Other>,
    pub faults: Faults,
    /// When the controller last could not have seen or written everything.
    pub disturbed: Moment,
    /// Ports on which a row of ours ever stood.
    served: BTreeSet<u16>,
    /// A row without "no TLS" is inserted anew each time and deleted by nobody.
    leaky: bool,
    /// Rows keep the id of their writer.
    stamps: bool,
    streams: Vec<mpsc::Sender<(Moment, String)>>,
    /// Requests of this second.
    requests: (u64, u32),
    inserted: u64,
}

// === impl Routing ===

impl Routing {
    pub fn new(traits: &crate::Traits) -> Self {
        Self {
            rows: BTreeMap::new(),
            groups: vec![RouterGroup {
                guid: "group-1".to_owned(),
                name: "default-tcp".to_owned(),
                reservable_ports: format!("{PORT_FIRST}-{PORT_LAST}"),
            }],
            max_ttl: Duration::from_secs(if traits.short_ttl { 60 } else { 120 }),
            others: Vec::new(),
            faults: Faults::default(),
            disturbed: Moment::ZERO,
            served: BTreeSet::new(),
            leaky: traits.leaky,
            stamps: traits.stamps,
            streams: Vec::new(),
            requests: (0, 0),
            inserted: 0,
        }
    }

    /// What routers believe in.
    pub fn live(&self, now: Moment) -> impl Iterator<Item = &Row> {
        self.rows.values().filter(move |row| row.expires > now)
    }

    /// The rows a mapping stands for, by the version's own lookup.
    fn find(&self, row: &TcpRow) -> Vec<u64> {
        if self.leaky && row.tls_port == 0 {
            return Vec::new();
        }
        let same = self.rows.iter().filter(|(_, other)| other.row == *row);
        same.map(|(id, _)| *id).collect()
    }

    fn tell(&mut self, word: &str, row: &Row, now: Moment) {
        let TcpRow {
            port,
            ip,
            backend_port,
            tls_port,
            group,
            ..
        } = &row.row;
        let data = serde_json::json!({
            "router_group_guid": group,
            "port": port.get(),
            "backend_ip": ip,
            "backend_port": backend_port,
            "backend_tls_port": tls_port,
            "instance_id": row.stamp.clone().unwrap_or_default(),
        });
        let frame = format!("id: 0\nevent: {word}\ndata: {data}\n\n");
        let entry = (now + EVENT_AFTER, frame);
        // One that is too slow is cut off, as the real one does.
        self.streams
            .retain(|stream| stream.try_send(entry.clone()).is_ok());
    }

    fn write(
        &mut self,
        row: &TcpRow,
        stamp: Option<String>,
        ttl: Duration,
        writer: Writer,
        now: Moment,
    ) -> Result<(), ApiError> {
        let found = self.find(row);
        if found.len() > 1 {
            return Err(ApiError::Duplicate {
                message: "have duplicate tcp route mappings".to_owned(),
                id: RequestId::default(),
            });
        }
        if let Some(known) = found.first().and_then(|id| self.rows.get_mut(id)) {
            known.expires = now + ttl;
            let known = known.clone();
            self.tell("Upsert", &known, now);
            return Ok(());
        }
        self.insert(row, stamp, ttl, writer, now);
        Ok(())
    }

    /// Whatever else is there.
    fn insert(
        &mut self,
        row: &TcpRow,
        stamp: Option<String>,
        ttl: Duration,
        writer: Writer,
        now: Moment,
    ) {
        let row = Row {
            row: row.clone(),
            stamp: stamp.filter(|_| self.stamps),
            writer,
            expires: now + ttl,
        };
        self.tell("Upsert", &row, now);
        self.inserted += 1;
        self.rows.insert(self.inserted, row);
    }
}

/// Does what is asked, as far as it goes.
pub fn carry_out(world: &mut World, request: &Request) -> Result<(), ApiError> {
    let done = match request {
        Request::Create { rows, stamp, ttl } => create(world, rows, stamp, *ttl),
        Request::Delete(rows) => delete(world, rows),
    };
    let (word, rows) = match request {
        Request::Create { rows, .. } => ("writes", rows),
        Request::Delete(rows) => ("deletes", rows),
    };
    let now = world.now();
    let (second, count) = world.routing.requests;
    let count = if second == now.as_secs() {
        count + 1
    } else {
        1
    };
    world.routing.requests = (now.as_secs(), count);
    if count == REQUESTS_MAX {
        world.wrong(format!("{count} requests to the routing API in a second"));
    }
    for row in rows {
        let backend = row.backend();
        world.trace.note(
            now,
            format_args!("api {word} {} {backend} {}", row.port, row.tls_port),
        );
    }
    if let Err(error) = &done {
        world.trace.note(now, format_args!("api answers {error}"));
    }
    done
}

fn create(world: &mut World, rows: &[TcpRow], stamp: &str, ttl: Duration) -> Result<(), ApiError> {
    let now = world.now();
    for row in rows {
        judge(world, row);
        judge_neighbours(world, row);
    }
    let routing = &mut world.routing;
    for row in rows {
        if ttl > routing.max_ttl {
            let secs = routing.max_ttl.as_secs();
            return Err(ApiError::MaxTtl { secs });
        }
        if let Some((port, until)) = routing.faults.refuses
            && now < until
            && port == row.port.get()
        {
            return Err(ApiError::Refused {
                message: "it is refused".to_owned(),
                id: RequestId::default(),
            });
        }
    }
    for (index, row) in rows.iter().enumerate() {
        if now < routing.faults.database && index >= 2 {
            return Err(unavailable("the database is away"));
        }
        routing.write(row, Some(stamp.to_owned()), ttl, Writer::Us, now)?;
    }
    Ok(())
}

/// What no row of ours may be.
fn judge(world: &mut World, row: &TcpRow) {
    let port = row.port.get();
    if row.tls_port != NO_TLS {
        world.wrong(format!("row for port {port} says nothing of TLS"));
    }
    if !(PORT_FIRST..=PORT_LAST).contains(&port) {
        world.wrong(format!("row for port {port}, which nobody reserved"));
    }
}

/// Who may not stand beside a new row of ours.
fn judge_neighbours(world: &mut World, row: &TcpRow) {
    let now = world.now();
    let routing = &mut world.routing;
    let port = row.port.get();
    let known = |other: &Other| other.since.max(routing.disturbed) + OTHERS_KNOWN <= now;
    let is_new = routing.live(now).all(|known| known.row != *row);
    let others = routing.live(now).filter_map(|other| match other.writer {
        Writer::Other(index) if other.row.port == row.port => {
            Some((&other.row, &routing.others[index]))
        }
        _ => None,
    });
    let others: Vec<_> = others.filter(|(_, other)| known(other)).collect();
    // HAProxy refuses its whole file where one address stands twice behind one port.
    let beside = others.iter().any(|(other, _)| other.same_server(row));
    let joins = others.iter().any(|(_, other)| !other.legacy);
    let claims = !routing.served.contains(&port);
    routing.served.insert(port);
    if is_new && beside {
        world.wrong(format!(
            "port {port}: {} stands beside an older job's",
            row.backend()
        ));
    }
    if is_new && joins && claims {
        world.wrong(format!(
            "port {port} is shared with a stranger who was there first"
        ));
    }
}

fn delete(world: &mut World, rows: &[TcpRow]) -> Result<(), ApiError> {
    let now = world.now();
    for row in rows {
        let found = world.routing.find(row);
        if found.len() > 1 {
            return Err(ApiError::Duplicate {
                message: "have duplicate tcp route mappings".to_owned(),
                id: RequestId::default(),
            });
        }
        let Some(removed) = found.first().and_then(|id| world.routing.rows.remove(id)) else {
            continue;
        };
        world.routing.tell("Delete", &removed, now);
        if let Writer::Other(other) = removed.writer
            && !world.routing.others[other].legacy
        {
            world.wrong(format!(
                "a stranger's row {} {} deleted",
                row.port,
                row.backend()
            ));
        }
    }
    Ok(())
}

/// Lets go what has lapsed.
pub fn prune(world: &mut World) {
    let now = world.now();
    if world.links.way(Remote::RoutingApi) == Way::Frozen {
        return;
    }
    let lapsed = world.routing.rows.iter();
    let lapsed = lapsed.filter(|(_, row)| row.expires + EXPIRED_FOR < now);
    let lapsed: Vec<u64> = lapsed.map(|(id, _)| *id).collect();
    for id in lapsed {
        if let Some(row) = world.routing.rows.remove(&id) {
            world.routing.tell("Delete", &row, now);
            let backend = row.row.backend();
            world.note(format_args!("api prunes {} {backend}", row.row.port));
        }
    }
}

/// Somebody begins to write rows.
pub fn joins(world: &mut World, other: Other) {
    let legacy = other.legacy;
    if legacy {
        // Whoever takes over from an older job is no newcomer.
        let ports = other.rows.iter().map(|row| row.port.get());
        world.routing.served.extend(ports);
    }
    world.routing.others.push(other);
    let index = world.routing.others.len() - 1;
    world.note(format_args!("writer {index} comes, legacy {legacy}"));
    writer_refreshes(world, index);
}

pub fn writer_refreshes(world: &mut World, index: usize) {
    let now = world.now();
    let up = world.links.way(Remote::RoutingApi) == Way::Up;
    let routing = &mut world.routing;
    let other = &routing.others[index];
    if now >= other.until {
        return;
    }
    let (rows, stamp, ttl) = (other.rows.clone(), other.stamp.clone(), other.ttl);
    if up {
        for row in rows {
            // Others do not care what the API answers.
            let _ = routing.write(&row, stamp.clone(), ttl, Writer::Other(index), now);
        }
    }
    world.after(ttl / 2, Event::WriterRefreshes(index));
}

/// Two writers at the same moment: one of our rows stands twice from now on.
pub fn double(world: &mut World) -> Option<u16> {
    let now = world.now();
    let row = world
        .routing
        .live(now)
        .find(|row| row.writer == Writer::Us)?;
    let (port, row) = (row.row.port.get(), row.clone());
    let left = row.expires.saturating_sub(now);
    world
        .routing
        .insert(&row.row, row.stamp, left, Writer::Us, now);
    world.note(format_args!("a row of port {port} stands twice"));
    Some(port)
}

/// Somebody deletes a row of ours.
pub fn vandal(world: &mut World) -> Option<u16> {
    let now = world.now();
    let ours = world
        .routing
        .rows
        .iter()
        .filter(|(_, row)| row.writer == Writer::Us);
    let ours: Vec<u64> = ours.map(|(id, _)| *id).collect();
    let pick = world.rng.usize(..ours.len().max(1));
    let row = world.routing.rows.remove(ours.get(pick)?)?;
    world.routing.tell("Delete", &row, now);
    let backend = row.row.backend();
    world.note(format_args!("somebody deletes {} {backend}", row.row.port));
    Some(row.row.port.get())
}

pub fn link_changed(world: &mut World, way: Way) {
    if way == Way::Down {
        world.routing.streams.clear();
    }
}

pub fn unavailable(reason: &str) -> ApiError {
    ApiError::Unavailable {
        reason: reason.to_owned(),
        id: RequestId::default(),
    }
}
