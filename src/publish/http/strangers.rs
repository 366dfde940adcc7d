//! Who else serves which host, as far as it was heard on NATS.
//!
//! Pure: fed with what registrations say and when. Remembers every stranger, as a label may ask for any host at
//! any moment, but of each only hashes and an address, and not more than a bound: what is not remembered is not
//! held back. Knows nothing of messages, nor of who is a stranger: whoever feeds it leaves our own out.
//!
//! Time counts only while somebody listens: a stranger is not forgotten because nobody could hear it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::mixed_hash;
use crate::Uptime;
use crate::route::{Uri, stable_hash};

/// gorouter forgets a plain endpoint that was not repeated for so long (hard-coded in its job, 2024-10).
pub(super) const STALE: Duration = Duration::from_mins(2);
/// And looks for those every 30 s.
const FORGOTTEN: Duration = STALE.saturating_add(Duration::from_secs(30));
/// Beats of one interval come up to a tenth later than the interval says; the rest is room for messages under way.
const FOLLOWED_INTERVALS: f64 = 1.25;
/// How exactly a stranger's last word is remembered.
const TICK: Duration = Duration::from_millis(100);
/// How often the stale ones are looked for: one pass over the bound takes milliseconds.
const SWEEP: Duration = Duration::from_secs(5);
/// Endpoints remembered, each under each of its uris. The largest foundations known have 70,000 routes; at 20 bytes
/// and the tree's share of empty room this is 10 MB at most.
pub(super) const REMEMBERED_MAX: usize = 250_000;
/// And so many more on hosts that we want ourselves.
const WATCHED_MAX: usize = 10_000;

/// The bits of a key below the path's.
const ENDPOINT_BITS: u32 = 49;
/// Marks an endpoint whose host is no IPv4 address: the rest of its bits are a hash.
const NAMED: u64 = 1 << 48;

/// A uri as gorouter keys it: host and path apart, because a host has one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    host: u64,
    path: u16,
}

/// `host:port` in 49 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint(u64);

/// A host's hash, then path and endpoint in one number.
type Key = (u64, u64);

/// Everybody else's endpoints.
#[derive(Default)]
pub(super) struct Strangers {
    /// With the tick of listening at which each was last heard.
    heard: BTreeMap<Key, u32>,
    /// The hosts we want, with the number of our uris there.
    watched: BTreeMap<u64, u32>,
    /// Those of them that strangers serve.
    contested: BTreeSet<u64>,
    /// Hosts that another instance of ours serves, wanted or not yet, with the tick at which it was last heard there.
    ours: BTreeMap<u64, u32>,
    /// For how long we had listened when we began to follow another instance, and when one last said that it leads.
    follows_since: Duration,
    followed: Duration,
    changed: bool,
    listened: Duration,
    since: Option<Uptime>,
    sweep_at: Duration,
}

// === impl Place ===

impl Place {
    /// Reads a uri as gorouter does: without regard to case, a query, a leading or one trailing slash.
    pub(super) fn of(uri: &str) -> Self {
        let uri = uri.strip_prefix('/').unwrap_or(uri);
        let uri = &uri[..uri.find('?').unwrap_or(uri.len())];
        let (host, path) = uri.split_at(uri.find('/').unwrap_or(uri.len()));
        Self {
            host: hash(host),
            path: path_hash(path),
        }
    }
}

fn hash(text: &str) -> u64 {
    stable_hash(text.bytes().map(|byte| byte.to_ascii_lowercase()))
}

/// The host of a uri of ours, as [`Place::of`] has it.
fn host_of(uri: &Uri) -> u64 {
    let star = if uri.is_wildcard() { "*." } else { "" };
    stable_hash(star.bytes().chain(uri.host().as_str().bytes()))
}

fn path_hash(path: &str) -> u16 {
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() {
        return 0;
    }
    let hash = hash(path);
    let hash = mixed_hash(&hash.to_le_bytes());
    // What remains of 64 bits beside an endpoint.
    (hash >> ENDPOINT_BITS) as u16
}

// === impl Endpoint ===

impl Endpoint {
    pub(super) fn new(host: &str, port: u16) -> Self {
        if let Ok(ip) = host.parse::<Ipv4Addr>() {
            return Self(u64::from(ip.to_bits()) << 16 | u64::from(port));
        }
        let bytes = host.bytes().chain(port.to_le_bytes());
        Self(stable_hash(bytes) & (NAMED - 1) | NAMED)
    }

    /// The address, unless it is no IPv4 address: only a hash is left of others.
    pub(super) fn address(self) -> Option<(IpAddr, u16)> {
        let socket = self.socket()?;
        Some((IpAddr::V4(*socket.ip()), socket.port()))
    }

    fn socket(self) -> Option<SocketAddrV4> {
        let named = self.0 & NAMED != 0;
        let [.., a, b, c, d, high, low] = self.0.to_be_bytes();
        let ip = Ipv4Addr::new(a, b, c, d);
        (!named).then(|| SocketAddrV4::new(ip, u16::from_be_bytes([high, low])))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.socket() {
            Some(socket) => write!(f, "`{socket}`"),
            None => f.write_str("an address that is not IPv4"),
        }
    }
}

// === impl Strangers ===

impl Strangers {
    /// From now on registrations are heard.
    pub(super) fn listening(&mut self, now: Uptime) {
        self.since.get_or_insert(now);
    }

    /// From now on nothing is heard; nobody ages.
    pub(super) fn deaf(&mut self, now: Uptime) {
        self.listened = self.listened(now);
        self.since = None;
    }

    /// Nothing can be known any more.
    pub(super) fn forget_all(&mut self) {
        self.changed |= !self.contested.is_empty();
        *self = Self {
            watched: std::mem::take(&mut self.watched),
            changed: self.changed,
            ..Self::default()
        };
    }

    /// How long registrations were heard in all.
    pub(super) fn listened(&self, now: Uptime) -> Duration {
        let since = self.since.map(|since| now.saturating_sub(since));
        self.listened + since.unwrap_or_default()
    }

    /// A stranger that is known at that place registered again. `false` where it is not known.
    pub(super) fn heard_again(&mut self, place: Place, endpoint: Endpoint, now: Uptime) -> bool {
        let tick = tick(self.listened(now));
        let last = self.heard.get_mut(&key(place, endpoint));
        last.map(|last| *last = tick).is_some()
    }

    /// A stranger registered.
    pub(super) fn heard(&mut self, place: Place, endpoint: Endpoint, now: Uptime) {
        if self.heard_again(place, endpoint, now) {
            return;
        }
        let tick = tick(self.listened(now));
        let key = key(place, endpoint);
        let watched = self.watched.contains_key(&place.host);
        let room = if watched { WATCHED_MAX } else { 0 };
        if self.heard.len() >= REMEMBERED_MAX + room {
            return;
        }
        self.heard.insert(key, tick);
        if watched {
            self.contested.insert(place.host);
            self.changed = true;
        }
    }

    /// Another instance of ours registered.
    pub(super) fn heard_ours(&mut self, place: Place, now: Uptime) {
        let tick = tick(self.listened(now));
        // Far more than a cluster has node ports (2,768).
        if self.ours.len() < REMEMBERED_MAX {
            self.ours.insert(place.host, tick);
        }
    }

    /// From now on another instance leads, or what was heard of it has gaps.
    pub(super) fn begin_to_follow(&mut self, now: Uptime) {
        self.follows_since = self.listened(now);
        self.followed = self.follows_since;
        self.ours.clear();
    }

    /// Another instance of ours leads.
    pub(super) fn follow(&mut self, now: Uptime) {
        self.followed = self.listened(now);
    }

    /// Whether all is known that ours serve, whoever led: it was heard for longer than the interval in which it
    /// repeats everything, or nobody was for so long that routers have forgotten.
    pub(super) fn knows_ours(&self, interval: Duration, now: Uptime) -> bool {
        let since = |moment: Duration| moment.saturating_sub(self.follows_since);
        since(self.followed) >= interval.mul_f64(FOLLOWED_INTERVALS)
            || since(self.listened(now)) >= FORGOTTEN
    }

    /// Whether another instance of ours serves the host of this uri.
    pub(super) fn ours_serve(&self, uri: &Uri) -> bool {
        self.ours.contains_key(&host_of(uri))
    }

    /// A stranger left.
    pub(super) fn withdrawn(&mut self, place: Place, endpoint: Endpoint) {
        if self.heard.remove(&key(place, endpoint)).is_some() {
            self.left(place.host);
        }
    }

    fn left(&mut self, host: u64) {
        if self.watched.contains_key(&host) {
            self.changed = true;
            if !self.is_served(host) {
                self.contested.remove(&host);
            }
        }
    }

    /// Forgets who was silent for too long, from time to time.
    pub(super) fn expire(&mut self, now: Uptime) {
        let listened = self.listened(now);
        if listened < self.sweep_at {
            return;
        }
        self.sweep_at = listened + SWEEP;
        let Some(oldest) = listened.checked_sub(STALE).map(tick) else {
            return;
        };
        self.ours.retain(|_, last| *last >= oldest);
        let watched = &self.watched;
        let mut left = BTreeSet::new();
        self.heard.retain(|(host, _), last| {
            let stays = *last >= oldest;
            if !stays && watched.contains_key(host) {
                left.insert(*host);
            }
            stays
        });
        for host in left {
            self.left(host);
        }
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn deadline(&self) -> Option<Uptime> {
        let idle = self.heard.is_empty() && self.ours.is_empty();
        let since = self.since.filter(|_| !idle)?;
        Some(since + self.sweep_at.saturating_sub(self.listened))
    }

    /// A uri is wanted; its host is looked after until it is not.
    pub(super) fn watch(&mut self, uri: &Uri) {
        let host = host_of(uri);
        *self.watched.entry(host).or_default() += 1;
        if self.is_served(host) && self.contested.insert(host) {
            self.changed = true;
        }
    }

    /// A uri is wanted no more.
    pub(super) fn unwatch(&mut self, uri: &Uri) {
        let host = host_of(uri);
        let Some(uris) = self.watched.get_mut(&host) else {
            return;
        };
        *uris -= 1;
        if *uris == 0 {
            self.watched.remove(&host);
            self.changed |= self.contested.remove(&host);
        }
    }

    /// Whether strangers serve any host that is looked after.
    pub(super) fn contest(&self) -> bool {
        !self.contested.is_empty()
    }

    /// Who serves the host of this uri, in order.
    pub(super) fn at(&self, uri: &Uri) -> BTreeSet<Endpoint> {
        let host = host_of(uri);
        if !self.contested.contains(&host) {
            return BTreeSet::new();
        }
        let endpoint = |((_, rest), _): (&Key, &u32)| Endpoint(rest & ((1 << ENDPOINT_BITS) - 1));
        self.heard.range(all_of(host)).map(endpoint).collect()
    }

    /// Whether who serves our hosts has changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.heard.len()
    }

    fn is_served(&self, host: u64) -> bool {
        self.heard.range(all_of(host)).next().is_some()
    }
}

fn key(place: Place, endpoint: Endpoint) -> Key {
    (
        place.host,
        u64::from(place.path) << ENDPOINT_BITS | endpoint.0,
    )
}

fn all_of(host: u64) -> std::ops::RangeInclusive<Key> {
    (host, 0)..=(host, u64::MAX)
}

fn tick(listened: Duration) -> u32 {
    u32::try_from(listened.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
