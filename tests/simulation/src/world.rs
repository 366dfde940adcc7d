//! Everything around the controller: one value behind one lock, moved on by time alone.
//!
//! The parts are plain state. What is due later waits in one queue, and whoever touches the world first lets happen
//! what is due by then; so the order of events is a function of the seed. Time is the world's own and counts from
//! its beginning: a process has a clock of its own, which stands still while the process is frozen.

pub mod cluster;
pub mod disk;
pub mod links;
pub mod nats;
pub mod routing;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use fastrand::Rng;
use tokio::time::Instant;

use crate::Moment;
use crate::trace::Trace;
use cluster::Cluster;
use disk::Disk;
use links::{Links, Remote, Whom};
use nats::Nats;
use routing::Routing;

pub struct World {
    pub rng: Rng,
    pub trace: Trace,
    /// What should never have happened, and when it did.
    pub wrongs: Vec<(Moment, String)>,
    pub links: Links,
    pub cluster: Cluster,
    pub routing: Routing,
    pub nats: Nats,
    /// Of each instance.
    pub disks: Vec<Disk>,
    queue: BTreeMap<(Moment, u64), Event>,
    sequence: u64,
    now: Moment,
}

/// What happens by itself later.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message reaches a router.
    Arrives {
        router: usize,
        message: nats::Message,
    },
    /// A router looks for what is stale.
    RouterPrunes(usize),
    /// The routing API looks for what has lapsed.
    TablePrunes,
    /// Somebody else announces a host of theirs again.
    StrangerBeats(usize),
    /// Somebody else refreshes rows of theirs.
    WriterRefreshes(usize),
    /// A request that lay in a frozen server's socket.
    Late(routing::Request),
    /// A remote is as it was before.
    Heals(Remote, Whom),
}

/// The world as one process reaches it.
#[derive(Clone)]
pub struct Line {
    world: Arc<Mutex<World>>,
    /// Which instance of the controller.
    pub instance: usize,
    born: Moment,
    since: Instant,
}

// === impl World ===

impl World {
    pub fn new(seed: u64, shown: bool, traits: &crate::Traits) -> Self {
        let mut world = Self {
            rng: Rng::with_seed(seed),
            trace: Trace::new(shown),
            wrongs: Vec::new(),
            links: Links::default(),
            cluster: Cluster::default(),
            routing: Routing::new(traits),
            nats: Nats::new(traits.routers, traits.instances),
            disks: (0..traits.instances).map(|_| Disk::default()).collect(),
            queue: BTreeMap::new(),
            sequence: 0,
            now: Moment::ZERO,
        };
        world.after(routing::PRUNE_EVERY, Event::TablePrunes);
        for router in 0..traits.routers {
            // They were not started together.
            let offset = nats::PRUNE_EVERY / 4 * u32::try_from(router).unwrap_or(0);
            world.after(nats::PRUNE_EVERY - offset, Event::RouterPrunes(router));
        }
        world
    }

    pub fn now(&self) -> Moment {
        self.now
    }

    pub fn note(&mut self, what: fmt::Arguments<'_>) {
        self.trace.note(self.now, what);
    }

    /// Something happened that never may.
    pub fn wrong(&mut self, what: String) {
        self.trace.note(self.now, format_args!("WRONG {what}"));
        self.wrongs.push((self.now, what));
    }

    pub fn after(&mut self, wait: Moment, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + wait, self.sequence), event);
    }

    /// Lets everything happen that is due by then.
    pub fn run_until(&mut self, moment: Moment) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > moment {
                break;
            }
            self.now = self.now.max(entry.key().0);
            let event = entry.remove();
            self.happen(event);
        }
        self.now = self.now.max(moment);
    }

    /// When something happens next.
    pub fn next(&self) -> Option<Moment> {
        self.queue.keys().next().map(|(at, _)| *at)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrives { router, message } => nats::arrives(self, router, &message),
            Event::RouterPrunes(router) => {
                nats::prune(self, router);
                self.after(nats::PRUNE_EVERY, Event::RouterPrunes(router));
            }
            Event::TablePrunes => {
                routing::prune(self);
                self.after(routing::PRUNE_EVERY, Event::TablePrunes);
            }
            Event::StrangerBeats(stranger) => nats::stranger_beats(self, stranger),
            Event::WriterRefreshes(writer) => routing::writer_refreshes(self, writer),
            Event::Late(request) => {
                self.note(format_args!("a late request is done"));
                let _ = routing::carry_out(self, &request);
            }
            Event::Heals(remote, whom) => links::heals(self, remote, whom),
        }
    }
}

// === impl Line ===

impl Line {
    /// To be made in the process's own runtime.
    pub fn new(world: Arc<Mutex<World>>, instance: usize, born: Moment) -> Self {
        Self {
            world,
            instance,
            born,
            since: Instant::now(),
        }
    }

    /// The world, up to date with this process's clock. Not to be held while anything is waited for.
    pub fn world(&self) -> MutexGuard<'_, World> {
        let mut world = self
            .world
            .lock()
            .expect("no one may panic holding the world");
        world.run_until(self.own_time());
        world
    }

    /// Waits until a moment of the world, as this process's clock has it.
    pub async fn until(&self, moment: Moment) {
        let wait = moment.saturating_sub(self.born);
        tokio::time::sleep_until(self.since + wait).await;
    }

    /// What the time is by this process's own clock. The world may be ahead by a slice of another's.
    pub fn own_time(&self) -> Moment {
        self.born + self.since.elapsed()
    }

    pub async fn pause(&self, wait: Moment) {
        tokio::time::sleep(wait).await;
    }
}
