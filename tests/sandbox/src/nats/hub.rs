//! Who is connected, who listens to what, and what goes to whom.
//!
//! All of it under one lock: a message is in the outboxes of its subscribers, in order, before the
//! publisher's next frame is looked at. An outbox is bounded as nats-server bounds it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::wire;

/// nats-server's `max_pending`: a client further behind is a slow consumer and is cut off.
const PENDING_MAX: usize = 64 * 1024 * 1024;
/// As many messages are remembered for `messages()`.
const RECORDED_MAX: usize = 131_072;

/// A message as it came in.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub subject: String,
    pub payload: Bytes,
    pub when: Instant,
}

/// Bytes on their way to one connection.
pub(super) struct Outbox {
    buffer: Mutex<(BytesMut, bool)>,
    pub(super) ready: Notify,
}

#[derive(Default)]
pub(super) struct Hub {
    connected: u64,
    connections: BTreeMap<u64, Connection>,
    /// Subscribers by literal subject; a beat to ten thousand connections must not scan patterns.
    literal: BTreeMap<String, Vec<(u64, String)>>,
    wild: Vec<(String, u64, String)>,
    turn: usize,
    recorded: VecDeque<Recorded>,
    pub(super) denied_publish: BTreeSet<String>,
    pub(super) denied_subscribe: BTreeSet<String>,
}

struct Connection {
    outbox: Arc<Outbox>,
    subscriptions: BTreeMap<String, Subscription>,
    headers: bool,
    no_responders: bool,
    echo: bool,
}

struct Subscription {
    subject: String,
    queue: Option<String>,
    delivered: u64,
    max: Option<u64>,
}

/// A message being delivered.
pub(super) struct Message<'a> {
    pub(super) subject: &'a str,
    pub(super) reply: Option<&'a str>,
    pub(super) headers: &'a Bytes,
    pub(super) body: &'a Bytes,
}

// === impl Outbox ===

impl Outbox {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            buffer: Mutex::default(),
            ready: Notify::new(),
        })
    }

    pub(super) fn push(&self, parts: &[&[u8]]) {
        let mut buffer = self.buffer.lock().expect("lock must not be poisoned");
        for part in parts {
            buffer.0.extend_from_slice(part);
        }
        buffer.1 |= buffer.0.len() > PENDING_MAX;
        drop(buffer);
        self.ready.notify_one();
    }

    /// No more is written after what is there.
    pub(super) fn close(&self) {
        self.buffer.lock().expect("lock must not be poisoned").1 = true;
        self.ready.notify_one();
    }

    /// Everything waiting, and whether it is the last.
    pub(super) fn take(&self) -> (Bytes, bool) {
        let mut buffer = self.buffer.lock().expect("lock must not be poisoned");
        (buffer.0.split().freeze(), buffer.1)
    }
}

// === impl Hub ===

impl Hub {
    pub(super) fn next_id(&mut self) -> u64 {
        self.connected += 1;
        self.connected
    }

    pub(super) fn connect(&mut self, id: u64, outbox: Arc<Outbox>, options: &serde_json::Value) {
        let headers = options["headers"] == true;
        let connection = Connection {
            outbox,
            subscriptions: BTreeMap::new(),
            headers,
            no_responders: headers && options["no_responders"] == true,
            echo: options["echo"] != false,
        };
        self.connections.insert(id, connection);
    }

    pub(super) fn disconnect(&mut self, id: u64) {
        self.connections.remove(&id);
        self.literal.retain(|_, subscribers| {
            subscribers.retain(|(connection, _)| *connection != id);
            !subscribers.is_empty()
        });
        self.wild.retain(|(_, connection, _)| *connection != id);
    }

    pub(super) fn denies_publish(&self, subject: &str) -> bool {
        let mut denied = self.denied_publish.iter();
        denied.any(|denied| wire::matches(denied, subject))
    }

    pub(super) fn denies_subscribe(&self, subject: &str) -> bool {
        let mut denied = self.denied_subscribe.iter();
        denied.any(|denied| denied == subject || wire::matches(denied, subject))
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Connections made since the start, closed ones included.
    pub(super) fn connections_made(&self) -> u64 {
        self.connected
    }

    pub(super) fn disconnect_all(&mut self) {
        for connection in self.connections.values() {
            connection.outbox.close();
        }
    }

    pub(super) fn subscribe(&mut self, id: u64, subject: &str, queue: Option<&str>, sid: &str) {
        self.unsubscribe(id, sid);
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let subscription = Subscription {
            subject: subject.to_owned(),
            queue: queue.map(str::to_owned),
            delivered: 0,
            max: None,
        };
        connection
            .subscriptions
            .insert(sid.to_owned(), subscription);
        if wire::is_subject(subject, false) {
            let subscribers = self.literal.entry(subject.to_owned()).or_default();
            subscribers.push((id, sid.to_owned()));
        } else {
            self.wild.push((subject.to_owned(), id, sid.to_owned()));
        }
    }

    /// After `max` messages in all when there is a maximum not yet reached, else now.
    pub(super) fn unsubscribe_after(&mut self, id: u64, sid: &str, max: Option<u64>) {
        let connection = self.connections.get_mut(&id);
        let subscription = connection.and_then(|found| found.subscriptions.get_mut(sid));
        match (subscription, max) {
            (Some(subscription), Some(max)) if subscription.delivered < max => {
                subscription.max = Some(max);
            }
            _ => self.unsubscribe(id, sid),
        }
    }

    fn unsubscribe(&mut self, id: u64, sid: &str) {
        let connection = self.connections.get_mut(&id);
        let Some(gone) = connection.and_then(|found| found.subscriptions.remove(sid)) else {
            return;
        };
        if let Some(subscribers) = self.literal.get_mut(&gone.subject) {
            subscribers.retain(|(other, its)| (*other, its.as_str()) != (id, sid));
            if subscribers.is_empty() {
                self.literal.remove(&gone.subject);
            }
        }
        self.wild
            .retain(|(_, other, its)| (*other, its.as_str()) != (id, sid));
    }

    /// Delivers, and tells a requester at once when nobody listens.
    pub(super) fn publish(&mut self, from: Option<u64>, message: &Message<'_>) {
        if self.recorded.len() == RECORDED_MAX {
            self.recorded.pop_front();
        }
        self.recorded.push_back(Recorded {
            subject: message.subject.to_owned(),
            payload: message.body.clone(),
            when: Instant::now(),
        });
        let receivers = self.receivers(from, message.subject);
        if receivers.is_empty() {
            self.no_responders(from, message.reply);
        }
        for (id, sid) in receivers {
            self.deliver(id, &sid, message);
        }
    }

    pub(super) fn messages(&self) -> Vec<Recorded> {
        self.recorded.iter().cloned().collect()
    }

    pub(super) fn forget_messages(&mut self) {
        self.recorded.clear();
    }

    /// Every plain subscriber, and one of each queue group.
    fn receivers(&mut self, from: Option<u64>, subject: &str) -> Vec<(u64, String)> {
        let literal = self.literal.get(subject).into_iter().flatten().cloned();
        let wild = self.wild.iter();
        let wild = wild.filter(|(pattern, _, _)| wire::matches(pattern, subject));
        let wild = wild.map(|(_, id, sid)| (*id, sid.clone()));
        let mut plain = Vec::new();
        let mut queues: BTreeMap<(String, String), Vec<(u64, String)>> = BTreeMap::new();
        for (id, sid) in literal.chain(wild) {
            let Some(connection) = self.connections.get(&id) else {
                continue;
            };
            if from == Some(id) && !connection.echo {
                continue;
            }
            match connection.subscriptions.get(&sid) {
                Some(Subscription { queue: None, .. }) => plain.push((id, sid)),
                Some(Subscription {
                    queue: Some(queue),
                    subject,
                    ..
                }) => {
                    let members = queues.entry((queue.clone(), subject.clone()));
                    members.or_default().push((id, sid));
                }
                None => {}
            }
        }
        self.turn = self.turn.wrapping_add(1);
        let turn = self.turn;
        let chosen = queues.into_values();
        let chosen = chosen.map(|mut members| members.swap_remove(turn % members.len()));
        plain.extend(chosen);
        plain
    }

    fn deliver(&mut self, id: u64, sid: &str, message: &Message<'_>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(subscription) = connection.subscriptions.get_mut(sid) else {
            return;
        };
        let reply = message.reply.map(|reply| format!("{reply} "));
        let reply = reply.unwrap_or_default();
        let (subject, body) = (message.subject, message.body);
        let with_headers = connection.headers && !message.headers.is_empty();
        let head = if with_headers {
            let headers = message.headers.len();
            let total = headers + body.len();
            format!("HMSG {subject} {sid} {reply}{headers} {total}\r\n")
        } else {
            format!("MSG {subject} {sid} {reply}{}\r\n", body.len())
        };
        let headers: &[u8] = if with_headers { message.headers } else { b"" };
        connection
            .outbox
            .push(&[head.as_bytes(), headers, body, b"\r\n"]);
        subscription.delivered += 1;
        if subscription
            .max
            .is_some_and(|max| subscription.delivered >= max)
        {
            self.unsubscribe(id, sid);
        }
    }

    fn no_responders(&mut self, from: Option<u64>, reply: Option<&str>) {
        let (Some(id), Some(reply)) = (from, reply) else {
            return;
        };
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        if !connection.no_responders {
            return;
        }
        let mut subscriptions = connection.subscriptions.iter();
        let found = subscriptions.find(|(_, found)| wire::matches(&found.subject, reply));
        let Some((sid, _)) = found else {
            return;
        };
        let sid = sid.clone();
        let headers = Bytes::from_static(b"NATS/1.0 503\r\n\r\n");
        let message = Message {
            subject: reply,
            reply: None,
            headers: &headers,
            body: &Bytes::new(),
        };
        self.deliver(id, &sid, &message);
    }
}
