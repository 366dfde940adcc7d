//! Which remotes can be reached, and how.

use std::collections::BTreeMap;

use super::{Event, Line, World, cluster, nats, routing};
use crate::Moment;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remote {
    Kubernetes,
    Uaa,
    RoutingApi,
    Nats,
}

/// How a remote behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    #[default]
    Up,
    /// Refuses connections; those that stood are cut.
    Down,
    /// Takes what it is sent and says nothing until it thaws.
    Frozen,
}

/// Who does not reach a remote: everybody, or one instance of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whom {
    All,
    Only(usize),
}

#[derive(Default)]
pub struct Links(BTreeMap<(Remote, Whom), (Way, Moment)>);

/// Nobody is there.
#[derive(Clone, Copy, Debug)]
pub struct Refused;

// === impl Links ===

impl Links {
    /// How a remote behaves, to everybody.
    pub fn way(&self, remote: Remote) -> Way {
        self.at((remote, Whom::All)).0
    }

    /// Until when it stays as it is, if it is not as it should be.
    pub fn until(&self, remote: Remote) -> Option<Moment> {
        self.0.get(&(remote, Whom::All)).map(|(_, until)| *until)
    }

    /// How it behaves to one instance, and until when.
    pub fn way_of(&self, instance: usize, remote: Remote) -> (Way, Moment) {
        let (way, until) = self.at((remote, Whom::All));
        if way == Way::Up {
            return self.at((remote, Whom::Only(instance)));
        }
        (way, until)
    }

    fn at(&self, link: (Remote, Whom)) -> (Way, Moment) {
        self.0.get(&link).copied().unwrap_or_default()
    }
}

/// A remote fails for a while.
pub fn fails(world: &mut World, (remote, whom): (Remote, Whom), way: Way, span: Moment) {
    let until = world.now() + span;
    world.links.0.insert((remote, whom), (way, until));
    world.note(format_args!(
        "{remote:?} is {way:?} to {whom:?} for {span:?}"
    ));
    world.after(span, Event::Heals(remote, whom));
    told(world, remote, whom, way);
}

pub fn heals(world: &mut World, remote: Remote, whom: Whom) {
    let now = world.now();
    // Another failure may have followed the one that this ends.
    let known = world.links.0.get(&(remote, whom));
    if known.is_some_and(|(_, until)| *until <= now) {
        world.links.0.remove(&(remote, whom));
        world.note(format_args!("{remote:?} is up to {whom:?}"));
        told(world, remote, whom, Way::Up);
    }
}

fn told(world: &mut World, remote: Remote, whom: Whom, way: Way) {
    match (remote, whom) {
        (Remote::Kubernetes, _) => cluster::link_changed(world, whom, way),
        (Remote::RoutingApi, Whom::All) => routing::link_changed(world, way),
        (Remote::Nats, Whom::All) => nats::link_changed(world, way),
        // Who is cut off alone is cut off from the apiserver: whoever leads and reaches it goes on leading, however
        // little else it reaches.
        (Remote::Uaa, _) | (Remote::RoutingApi | Remote::Nats, Whom::Only(_)) => {}
    }
}

// === impl Line ===

impl Line {
    /// Comes through to a remote, once it takes what it is sent.
    pub async fn reach(&self, remote: Remote) -> Result<(), Refused> {
        loop {
            let way = self.world().links.way_of(self.instance, remote);
            let until = match way {
                (Way::Up, _) => return Ok(()),
                (Way::Down, _) => return Err(Refused),
                (Way::Frozen, until) => until,
            };
            self.until(until + Moment::from_millis(1)).await;
        }
    }
}
