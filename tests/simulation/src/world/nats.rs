//! NATS, the gorouters behind it, and strangers who announce there.
//!
//! gorouters as measured: keyed by uri and address, an unregistration goes by the address alone, what was not heard
//! again for 120 s goes at the next look every 30 s, nothing goes while their own NATS is away, and what overflows
//! is dropped without a word.

mod bus;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use route_sync::publish::http::{Heard, Overheard};
use tokio::sync::Notify;

use super::links::{Remote, Way};
use super::{Event, World};
use crate::Moment;

pub use bus::Connection;

pub const PRUNE_EVERY: Duration = Duration::from_secs(30);
/// What a router was not told again for so long is stale.
const STALE: Duration = Duration::from_secs(120);
/// Between two registrations of a stranger.
const STRANGER_BEATS: Duration = Duration::from_secs(20);
/// Messages that a client holds back for a server that takes nothing.
const STUCK_MAX: usize = 64;
/// What the bus keeps of others' registrations.
const EARS_MAX: usize = 4096;
/// A host is taken over if strangers were heard there for so long before: two intervals of 20 s.
const STRANGER_KNOWN: Duration = Duration::from_secs(45);
/// For so long an instance has to hear another one lead to know all that it serves.
const FOLLOWED: Duration = Duration::from_secs(30);
/// What nobody announced for so long no router holds.
const FORGOTTEN: Duration = Duration::from_secs(155);
/// As long as routers may still hold what we announced last.
const CLAIM_LASTS: Duration = Duration::from_secs(150);

/// A registration or its end, as everybody reads it.
#[derive(Clone, Debug)]
pub struct Message {
    pub withdrawal: bool,
    pub uris: Vec<String>,
    pub address: String,
    pub ours: bool,
}

#[derive(Clone, Debug)]
pub struct Endpoint {
    pub heard: Moment,
    pub ours: bool,
}

pub struct Router {
    pub up: bool,
    pub started: Moment,
    /// Its own connection to NATS is away until then.
    pub deaf: Moment,
    pub pools: BTreeMap<(String, String), Endpoint>,
    last_arrival: Moment,
}

pub struct Stranger {
    pub uri: String,
    pub address: String,
    pub since: Moment,
    pub until: Moment,
}

/// A client's side of its connection.
struct Client {
    /// Whose.
    instance: usize,
    epoch: Option<u64>,
    since: Moment,
    /// When it may connect again.
    dials: Moment,
    inbox: VecDeque<(Moment, Heard)>,
    ears: VecDeque<(Moment, Overheard)>,
    notify: Arc<Notify>,
    stuck: usize,
    /// Where it hears other instances.
    subject: Option<String>,
    /// Over this connection: when it announced something first, and when it last heard that another leads.
    announced: Option<Moment>,
    followed: Moment,
}

/// What a frozen server has taken and not yet read.
enum Stuck {
    Message(u64, Bytes, bool),
    Word(u64, String, Bytes),
    Echo {
        client: u64,
        epoch: u64,
        number: u64,
    },
    Greeting {
        client: u64,
    },
}

pub struct Nats {
    pub routers: Vec<Router>,
    pub strangers: Vec<Stranger>,
    /// Routers lose this share of what they are sent, until then.
    pub loss: (Moment, f64),
    clients: BTreeMap<u64, Client>,
    connections: u64,
    stuck: Vec<Stuck>,
    /// When each instance last announced something.
    pub said: Vec<Moment>,
    /// When each last could not read the cluster: who has no table cannot tell ours from strangers.
    pub blind: Vec<Moment>,
    /// When we announced each uri last.
    claims: BTreeMap<String, Moment>,
}

// === impl Nats ===

impl Nats {
    pub fn new(routers: usize, instances: usize) -> Self {
        let router = |_| Router {
            up: true,
            started: Moment::ZERO,
            deaf: Moment::ZERO,
            pools: BTreeMap::new(),
            last_arrival: Moment::ZERO,
        };
        Self {
            routers: (0..routers).map(router).collect(),
            strangers: Vec::new(),
            loss: (Moment::ZERO, 0.0),
            clients: BTreeMap::new(),
            connections: 0,
            stuck: Vec::new(),
            said: vec![Moment::ZERO; instances],
            blind: vec![Moment::ZERO; instances],
            claims: BTreeMap::new(),
        }
    }
}

impl Router {
    pub fn hears(&self, now: Moment) -> bool {
        self.up && now >= self.deaf
    }
}

// === what is said ===

/// A message of ours, or of a stranger, reaches the server.
fn spreads(world: &mut World, body: &Bytes, message: &Message) {
    let now = world.now();
    for index in 0..world.nats.routers.len() {
        let lost = now < world.nats.loss.0 && world.rng.f64() < world.nats.loss.1;
        if lost {
            world.note(format_args!("router {index} loses a message"));
            continue;
        }
        let wait = Duration::from_micros(world.rng.u64(500..3000));
        let router = &mut world.nats.routers[index];
        // One connection keeps its order.
        router.last_arrival = router.last_arrival.max(now + wait);
        let wait = router.last_arrival.saturating_sub(now);
        let event = Event::Arrives {
            router: index,
            message: message.clone(),
        };
        let again = world.rng.u32(..200) == 0;
        if again {
            world.after(wait, event.clone());
        }
        world.after(wait, event);
    }
    for client in world.nats.clients.values_mut() {
        if client.epoch.is_some() && client.ears.len() < EARS_MAX {
            let overheard = Overheard {
                withdrawal: message.withdrawal,
                body: body.clone(),
            };
            let wait = Duration::from_millis(1);
            client.ears.push_back((now + wait, overheard));
            client.notify.notify_waiters();
        }
    }
}

/// One of our own messages.
fn said(world: &mut World, client: u64, body: &Bytes, withdrawal: bool) {
    let message = parse(body, withdrawal);
    let now = world.now();
    let word = if withdrawal { "withdraws" } else { "announces" };
    let Message { uris, address, .. } = &message;
    world
        .trace
        .note(now, format_args!("nats {word} {uris:?} at {address}"));
    if !withdrawal {
        for uri in uris {
            judge_claim(world, client, uri);
            world.nats.claims.insert(uri.clone(), now);
        }
        if let Some(client) = world.nats.clients.get_mut(&client) {
            client.announced.get_or_insert(now);
            world.nats.said[client.instance] = now;
        }
    }
    spreads(world, body, &message);
}

/// A host that strangers serve and we do not is not taken over.
fn judge_claim(world: &mut World, client: u64, uri: &str) {
    let now = world.now();
    let nats = &world.nats;
    let known = |since: Moment| since + STRANGER_KNOWN <= now;
    // Who takes over knows what the one before it served if it heard that one lead, or long enough that nobody does.
    let heard = nats.clients.get(&client).is_some_and(|client| {
        let led = client.announced.is_some_and(known);
        let listens = client.since.max(nats.blind[client.instance]);
        let followed = client.followed > listens + FOLLOWED;
        let alone = nats.said.len() == 1 || listens + FORGOTTEN <= now;
        client.epoch.is_some() && known(client.since) && (alone || led || followed)
    });
    let stranger = nats
        .strangers
        .iter()
        .any(|stranger| stranger.uri == uri && known(stranger.since) && now < stranger.until);
    let ours = nats
        .claims
        .get(uri)
        .is_some_and(|at| *at + CLAIM_LASTS > now);
    if heard && stranger && !ours {
        world.wrong(format!("`{uri}` taken over from a stranger"));
    }
}

fn parse(body: &[u8], withdrawal: bool) -> Message {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let host = value["host"].as_str().unwrap_or_default();
    let uris = value["uris"].as_array().into_iter().flatten();
    Message {
        withdrawal,
        uris: uris
            .filter_map(|uri| uri.as_str())
            .map(str::to_owned)
            .collect(),
        address: format!("{host}:{}", value["port"]),
        ours: true,
    }
}

pub fn arrives(world: &mut World, router: usize, message: &Message) {
    let now = world.now();
    let target = &mut world.nats.routers[router];
    if !target.hears(now) {
        return;
    }
    let mut wronged = None;
    for uri in &message.uris {
        let key = (uri.clone(), message.address.clone());
        if message.withdrawal {
            let removed = target.pools.remove(&key);
            if message.ours && removed.is_some_and(|endpoint| !endpoint.ours) {
                wronged = Some(uri.clone());
            }
        } else {
            let endpoint = Endpoint {
                heard: now,
                ours: message.ours,
            };
            target.pools.insert(key, endpoint);
        }
    }
    if let Some(uri) = wronged {
        world.wrong(format!("a stranger's endpoint of `{uri}` withdrawn"));
    }
}

// === routers ===

pub fn prune(world: &mut World, index: usize) {
    let now = world.now();
    let away = world.links.way(Remote::Nats) == Way::Down;
    let router = &mut world.nats.routers[index];
    // While NATS is away nothing can be known to be stale.
    if away || !router.hears(now) {
        return;
    }
    let before = router.pools.len();
    router
        .pools
        .retain(|_, endpoint| endpoint.heard + STALE > now);
    let gone = before - router.pools.len();
    if gone > 0 {
        world.note(format_args!("router {index} prunes {gone}"));
    }
}

pub fn router_stops(world: &mut World, index: usize) {
    let router = &mut world.nats.routers[index];
    router.up = false;
    router.pools.clear();
    world.note(format_args!("router {index} stops"));
}

pub fn router_starts(world: &mut World, index: usize) {
    let now = world.now();
    let router = &mut world.nats.routers[index];
    router.up = true;
    router.started = now;
    router.deaf = Moment::ZERO;
    world.note(format_args!("router {index} starts"));
    if world.links.way(Remote::Nats) != Way::Up {
        return;
    }
    let body = greeting(index);
    for client in world.nats.clients.values_mut() {
        if client.epoch.is_some() {
            let wait = Duration::from_millis(1);
            client.hear(now + wait, Heard::Started(body.clone()));
        }
    }
}

/// One router's own way to NATS is away, and comes back as if all had just been registered.
pub fn router_deafens(world: &mut World, index: usize, span: Duration) {
    let until = world.now() + span;
    let router = &mut world.nats.routers[index];
    router.deaf = until;
    for endpoint in router.pools.values_mut() {
        endpoint.heard = until;
    }
    world.note(format_args!("router {index} is deaf for {span:?}"));
}

fn greeting(index: usize) -> Bytes {
    let body = serde_json::json!({
        "id": format!("router-{index}"),
        "minimumRegisterIntervalInSeconds": 20,
        "pruneThresholdInSeconds": 120,
    });
    Bytes::from(body.to_string())
}

// === strangers ===

pub fn stranger_comes(world: &mut World, stranger: Stranger) {
    let Stranger { uri, address, .. } = &stranger;
    let text = format!("stranger {address} serves {uri}");
    world.note(format_args!("{text}"));
    world.nats.strangers.push(stranger);
    let index = world.nats.strangers.len() - 1;
    stranger_beats(world, index);
}

pub fn stranger_beats(world: &mut World, index: usize) {
    let now = world.now();
    let stranger = &world.nats.strangers[index];
    if now >= stranger.until {
        return;
    }
    let message = Message {
        withdrawal: false,
        uris: vec![stranger.uri.clone()],
        address: stranger.address.clone(),
        ours: false,
    };
    let (host, port) = message.address.split_once(':').unwrap_or_default();
    let port: u16 = port.parse().unwrap_or_default();
    let body = serde_json::json!({"host": host, "port": port, "uris": message.uris});
    if world.links.way(Remote::Nats) == Way::Up {
        spreads(world, &Bytes::from(body.to_string()), &message);
    }
    world.after(STRANGER_BEATS, Event::StrangerBeats(index));
}

// === the server ===

pub fn link_changed(world: &mut World, way: Way) {
    let now = world.now();
    if way == Way::Up {
        thaw(world);
    }
    if way == Way::Down {
        // Routers notice, and take all they have for fresh when it is back.
        let until = world.links.until(Remote::Nats).unwrap_or_default();
        for router in &mut world.nats.routers {
            for endpoint in router.pools.values_mut() {
                endpoint.heard = until;
            }
        }
    }
    let mut ids: Vec<u64> = world.nats.clients.keys().copied().collect();
    for id in ids.drain(..) {
        let wait = Duration::from_millis(world.rng.u64(50..1000));
        let Some(client) = world.nats.clients.get_mut(&id) else {
            continue;
        };
        if way == Way::Down {
            client.cut(now);
        }
        client.dials = client.dials.max(now + wait);
        client.notify.notify_waiters();
    }
}

/// A server that goes on reads what it was sent meanwhile, from connections long closed as well.
fn thaw(world: &mut World) {
    let now = world.now();
    for client in world.nats.clients.values_mut() {
        client.stuck = 0;
    }
    for stuck in std::mem::take(&mut world.nats.stuck) {
        match stuck {
            Stuck::Message(client, body, withdrawal) => said(world, client, &body, withdrawal),
            Stuck::Word(client, subject, body) => spoken(world, client, &subject, &body),
            Stuck::Echo {
                client,
                epoch,
                number,
            } => {
                if let Some(client) = world.nats.clients.get_mut(&client)
                    && client.epoch == Some(epoch)
                {
                    client.hear(now + Duration::from_millis(1), Heard::Echo(number));
                }
            }
            Stuck::Greeting { client } => greeted(world, client),
        }
    }
}

/// An instance tells the others, and itself.
fn spoken(world: &mut World, speaker: u64, subject: &str, body: &Bytes) {
    let at = world.now() + Duration::from_millis(1);
    for (id, client) in &mut world.nats.clients {
        let hears = client.subject.as_deref() == Some(subject);
        if hears && client.epoch.is_some() {
            if *id != speaker {
                client.followed = at;
            }
            client.hear(at, Heard::Instance(body.clone()));
        }
    }
}

fn greeted(world: &mut World, client: u64) {
    let now = world.now();
    let hearing = world.nats.routers.iter().enumerate();
    let hearing = hearing.filter(|(_, router)| router.hears(now));
    let answers: Vec<Bytes> = hearing.map(|(index, _)| greeting(index)).collect();
    let Some(client) = world.nats.clients.get_mut(&client) else {
        return;
    };
    let at = now + Duration::from_millis(2);
    if answers.is_empty() {
        client.hear(at, Heard::NobodyGreets);
    }
    for answer in answers {
        client.hear(at, Heard::Greeted(answer));
    }
}

// === impl Client ===

impl Client {
    fn hear(&mut self, at: Moment, heard: Heard) {
        self.inbox.push_back((at, heard));
        self.notify.notify_waiters();
    }

    fn cut(&mut self, now: Moment) {
        if self.epoch.take().is_some() {
            self.inbox.clear();
            self.ears.clear();
            self.hear(now, Heard::Changed);
        }
    }
}
