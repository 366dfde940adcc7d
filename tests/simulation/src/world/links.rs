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

#[derive(Default)]
pub struct Links(BTreeMap<Remote, (Way, Moment)>);

/// Nobody is there.
#[derive(Clone, Copy, Debug)]
pub struct Refused;

// === impl Links ===

impl Links {
    pub fn way(&self, remote: Remote) -> Way {
        self.0.get(&remote).map(|(way, _)| *way).unwrap_or_default()
    }

    /// Until when it stays as it is, if it is not as it should be.
    pub fn until(&self, remote: Remote) -> Option<Moment> {
        self.0.get(&remote).map(|(_, until)| *until)
    }
}

/// A remote fails for a while.
pub fn fails(world: &mut World, remote: Remote, way: Way, span: Moment) {
    let until = world.now() + span;
    world.links.0.insert(remote, (way, until));
    world.note(format_args!("{remote:?} is {way:?} for {span:?}"));
    world.after(span, Event::Heals(remote));
    told(world, remote, way);
}

pub fn heals(world: &mut World, remote: Remote) {
    let now = world.now();
    // Another failure may have followed the one that this ends.
    if world.links.until(remote).is_some_and(|until| until <= now) {
        world.links.0.remove(&remote);
        world.note(format_args!("{remote:?} is up"));
        told(world, remote, Way::Up);
    }
}

fn told(world: &mut World, remote: Remote, way: Way) {
    match remote {
        Remote::Kubernetes => cluster::link_changed(world, way),
        Remote::RoutingApi => routing::link_changed(world, way),
        Remote::Nats => nats::link_changed(world, way),
        Remote::Uaa => {}
    }
}

// === impl Line ===

impl Line {
    /// Comes through to a remote, once it takes what it is sent.
    pub async fn reach(&self, remote: Remote) -> Result<(), Refused> {
        loop {
            let until = {
                let world = self.world();
                match world.links.way(remote) {
                    Way::Up => return Ok(()),
                    Way::Down => return Err(Refused),
                    Way::Frozen => world.links.until(remote).unwrap_or_default(),
                }
            };
            self.until(until + Moment::from_millis(1)).await;
        }
    }
}
