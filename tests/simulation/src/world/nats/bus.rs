//! The lane's client of NATS: connects by itself, and names each connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use route_sync::publish::http::wire::UNREGISTER;
use route_sync::publish::http::{Bus, Heard, Overheard, SendError};
use tokio::sync::Notify;

use super::{Client, STUCK_MAX, Stuck, greeted, said, spoken};
use crate::Moment;
use crate::world::links::{Remote, Way};
use crate::world::{Line, World, cluster};

/// Between two batches of what others say, as the real one rests.
const REST: Duration = Duration::from_millis(100);
/// How long a publish waits for a connection that takes nothing.
const PUBLISH_WAIT: Duration = Duration::from_secs(1);

pub struct Connection {
    line: Line,
    id: u64,
    rest_until: Moment,
    notify: Arc<Notify>,
}

// === impl Connection ===

impl Connection {
    pub fn open(line: &Line) -> Self {
        let notify = Arc::new(Notify::new());
        let mut world = line.world();
        let now = world.now();
        world.nats.connections += 1;
        let id = world.nats.connections;
        let dials = now + Duration::from_millis(world.rng.u64(5..50));
        let client = Client {
            instance: line.instance,
            epoch: None,
            since: now,
            dials,
            inbox: VecDeque::new(),
            ears: VecDeque::new(),
            notify: notify.clone(),
            stuck: 0,
            subject: None,
            announced: None,
            followed: Moment::ZERO,
        };
        world.nats.clients.insert(id, client);
        drop(world);
        Self {
            line: line.clone(),
            id,
            rest_until: now,
            notify,
        }
    }

    /// Sends over one connection and no other, once there is room.
    async fn send(
        &self,
        epoch: u64,
        stuck: impl FnOnce() -> Stuck,
        sent: impl FnOnce(&mut World),
    ) -> Result<(), SendError> {
        {
            let mut world = self.line.world();
            if connected(&mut world, self.id) != Some(epoch) {
                return Err(SendError::Gone);
            }
            if world.links.way(Remote::Nats) == Way::Up {
                sent(&mut world);
                return Ok(());
            }
            let client = world.nats.clients.get_mut(&self.id);
            let client = client.expect("a client must stand while it is used");
            if client.stuck < STUCK_MAX {
                client.stuck += 1;
                world.nats.stuck.push(stuck());
                return Ok(());
            }
        }
        self.line.pause(PUBLISH_WAIT).await;
        Err(SendError::Stalled)
    }

    /// What came in by now, else when something will have.
    fn come(&self) -> Result<Heard, Moment> {
        let mut world = self.line.world();
        let now = world.now();
        let was = world.nats.clients.get(&self.id).and_then(|it| it.epoch);
        let is = connected(&mut world, self.id);
        if was != is {
            return Ok(Heard::Changed);
        }
        let rest_until = self.rest_until;
        let client = world.nats.clients.get_mut(&self.id);
        let client = client.expect("a client must stand while it is used");
        if let Some((at, heard)) = client.inbox.pop_front() {
            if at <= now {
                return Ok(heard);
            }
            client.inbox.push_front((at, heard));
        }
        let others = client.ears.front().map(|(at, _)| (*at).max(rest_until));
        if others.is_some_and(|at| at <= now) {
            return Ok(Heard::Others);
        }
        let inbox = client.inbox.front().map(|(at, _)| *at);
        let dials = client.epoch.is_none().then_some(client.dials);
        let dials = dials.filter(|at| *at > now);
        let next = [inbox, others, dials].into_iter().flatten().min();
        Err(next.unwrap_or(Moment::MAX))
    }
}

/// The connection that stands, after dialling where that is due.
fn connected(world: &mut World, id: u64) -> Option<u64> {
    let now = world.now();
    let up = world.links.way(Remote::Nats) == Way::Up;
    let client = world.nats.clients.get_mut(&id)?;
    if client.epoch.is_none() && up && now >= client.dials {
        world.nats.connections += 1;
        client.epoch = Some(world.nats.connections);
        client.since = now;
        client.announced = None;
        client.followed = now;
        world.note(format_args!("nats connected"));
    }
    world.nats.clients.get(&id)?.epoch
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.line.world().nats.clients.remove(&self.id);
    }
}

impl Bus for Connection {
    fn epoch(&self) -> Option<u64> {
        connected(&mut self.line.world(), self.id)
    }

    fn publish(
        &self,
        epoch: u64,
        subject: &'static str,
        payload: Bytes,
    ) -> BoxFuture<'_, Result<(), SendError>> {
        let (client, withdrawal) = (self.id, subject == UNREGISTER);
        if withdrawal {
            cluster::judge_removal(&mut self.line.world(), self.line.instance);
        }
        let body = payload.clone();
        let stuck = move || Stuck::Message(client, body, withdrawal);
        let sent = move |world: &mut World| said(world, client, &payload, withdrawal);
        self.send(epoch, stuck, sent).boxed()
    }

    fn publish_at(
        &self,
        epoch: u64,
        subject: String,
        payload: Bytes,
    ) -> BoxFuture<'_, Result<(), SendError>> {
        let (client, at, body) = (self.id, subject.clone(), payload.clone());
        let stuck = move || Stuck::Word(client, at, body);
        let sent = move |world: &mut World| spoken(world, client, &subject, &payload);
        self.send(epoch, stuck, sent).boxed()
    }

    fn hear_instances(&mut self, subject: String) -> BoxFuture<'_, ()> {
        if let Some(client) = self.line.world().nats.clients.get_mut(&self.id) {
            client.subject = Some(subject);
        }
        async {}.boxed()
    }

    fn hears_instances(&self, subject: &str) -> bool {
        let world = self.line.world();
        let client = world.nats.clients.get(&self.id);
        client.is_some_and(|client| client.subject.as_deref() == Some(subject))
    }

    fn greet(&self, epoch: u64) -> BoxFuture<'_, Result<(), SendError>> {
        let client = self.id;
        let stuck = move || Stuck::Greeting { client };
        let sent = move |world: &mut World| greeted(world, client);
        self.send(epoch, stuck, sent).boxed()
    }

    fn echo(&self, epoch: u64, number: u64) -> BoxFuture<'_, Result<(), SendError>> {
        let client = self.id;
        let stuck = move || Stuck::Echo {
            client,
            epoch,
            number,
        };
        let sent = move |world: &mut World| {
            let at = world.now() + Duration::from_millis(1);
            if let Some(client) = world.nats.clients.get_mut(&client) {
                client.hear(at, Heard::Echo(number));
            }
        };
        self.send(epoch, stuck, sent).boxed()
    }

    fn may_echo(&self) -> bool {
        true
    }

    fn denied(&self, _within: Duration) -> Option<&'static str> {
        None
    }

    fn flush(&self, _epoch: u64) -> BoxFuture<'_, Result<(), SendError>> {
        async { Ok(()) }.boxed()
    }

    fn hear(&mut self) -> BoxFuture<'_, Heard> {
        let hear = async {
            loop {
                let mut notified = std::pin::pin!(self.notify.notified());
                notified.as_mut().enable();
                match self.come() {
                    Ok(heard) => return heard,
                    Err(until) if until == Moment::MAX => notified.await,
                    Err(until) => tokio::select! {
                        biased;
                        () = notified => {}
                        () = self.line.until(until) => {}
                    },
                }
            }
        };
        hear.boxed()
    }

    fn overheard(&mut self) -> Option<Overheard> {
        let mut world = self.line.world();
        let now = world.now();
        let client = world.nats.clients.get_mut(&self.id)?;
        if client.ears.front().is_some_and(|(at, _)| *at <= now) {
            return client.ears.pop_front().map(|(_, overheard)| overheard);
        }
        drop(world);
        self.rest_until = now + REST;
        None
    }

    fn cannot_hear(&self) -> Option<&'static str> {
        None
    }

    fn ask_to_hear(&mut self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn dropped(&self) -> u64 {
        0
    }

    fn reconnect(&self) -> BoxFuture<'_, ()> {
        let mut world = self.line.world();
        let now = world.now();
        let wait = Duration::from_millis(world.rng.u64(50..500));
        if let Some(client) = world.nats.clients.get_mut(&self.id) {
            client.cut(now);
            client.dials = now + wait;
        }
        async {}.boxed()
    }

    fn has_ended(&self) -> bool {
        false
    }

    fn error(&self) -> Option<String> {
        None
    }

    fn stands(&self) {}

    fn failures(&self) -> u32 {
        0
    }

    fn server(&self) -> String {
        "nats.test:4222".to_owned()
    }
}
