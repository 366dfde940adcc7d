//! The controller's core and lanes in a world of faults, on paused time, drawn by a seed.
//!
//! ```text
//!   seed ──▶ story (what happens, when) ──▶ world ◀── Outside ── process: the real core and lanes
//!                                             │                  (a runtime of its own, its clock paused)
//!                                             └──▶ judge: what may never be, and what must be in the end
//! ```
//!
//! A life is some minutes of changes and faults, then calm. In each third life two instances share the work by a
//! Lease, and each of them fails by itself. One thread lives one life; nothing in it depends on anything but the seed,
//! which is shown by living some of them twice. What a process is made of is what `run` makes it of
//! (`route_sync::cli::assemble`); all that is exchanged is what it reaches.

pub mod crowd;
pub mod judge;
pub mod process;
pub mod story;
pub mod trace;
pub mod world;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;

use judge::{Judge, Keeps};
use process::{NAMES, Process};
use story::{Action, Does, Story};
use world::World;

/// A moment, counted from the beginning of the world.
pub type Moment = Duration;

/// The world is looked at so often.
const TICK: Duration = Duration::from_secs(1);
/// Two processes run by turns for so long: by so much one of them may find the world ahead of its own clock, as if a
/// message had taken that long.
const SLICE: Duration = Duration::from_millis(200);
/// One life in so many has two instances.
const TWO_EACH: u64 = 3;

/// What is the same for a whole life.
#[derive(Clone, Debug)]
pub struct Traits {
    /// Controllers that share the work by a Lease, or one that has none.
    pub instances: usize,
    /// gorouters.
    pub routers: usize,
    /// The routing API inserts rows without "no TLS" anew each time.
    pub leaky: bool,
    /// The routing API keeps who wrote a row.
    pub stamps: bool,
    /// State outlives the process.
    pub state: bool,
    /// The routing API lets rows live for a minute only.
    pub short_ttl: bool,
}

/// How a life went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Of everything that happened.
    pub hash: u64,
    /// What never should have, in order.
    pub wrongs: Vec<(Moment, String)>,
    /// How long it took until all was well, once faults had stopped.
    pub settled_after: Option<Duration>,
}

/// Lives one life.
pub fn live(seed: u64, shown: bool) -> Outcome {
    // What the controller draws its jitter from.
    fastrand::seed(seed);
    let mut rng = Rng::with_seed(seed);
    let traits = Traits::draw(&mut rng, seed);
    let story = Story::draw(&mut rng, &traits);
    let world = Arc::new(Mutex::new(World::new(rng.u64(..), shown, &traits)));
    lock(&world).note(format_args!("seed {seed}, {traits:?}"));
    story::populate(&mut lock(&world));
    let keeps = Keeps {
        // The one that takes over does not know what the other withdrew.
        state: story.keeps && traits.instances == 1,
        stamps: traits.stamps,
    };
    let mut life = Life {
        judge: Judge::new(story.calm, keeps),
        actions: story.actions.into(),
        instances: (0..traits.instances).map(|_| Instance::default()).collect(),
        traits,
        world,
    };
    for instance in 0..life.instances.len() {
        life.act(Action::Process(instance, Does::Start));
    }
    life.run();
    let world = lock(&life.world);
    Outcome {
        hash: world.trace.hash(),
        wrongs: world.wrongs.clone(),
        settled_after: life.judge.settled_after(),
    }
}

struct Life {
    world: Arc<Mutex<World>>,
    judge: Judge,
    actions: std::collections::VecDeque<(Moment, Action)>,
    traits: Traits,
    instances: Vec<Instance>,
}

/// A place where a process runs, most of the time.
#[derive(Default)]
struct Instance {
    process: Option<Process>,
    /// Until when the process does not run though it lives.
    frozen: Option<Moment>,
    stopping: bool,
}

// === impl Life ===

impl Life {
    fn run(&mut self) {
        let mut now = Moment::ZERO;
        loop {
            let mut next = now + TICK;
            let action = self.actions.front().map(|(at, _)| *at);
            let thaws = self.instances.iter().filter_map(|instance| instance.frozen);
            for due in action.into_iter().chain(thaws) {
                next = next.min(due.max(now));
            }
            self.step(now, next);
            now = next;
            while let Some((_, action)) = self.actions.pop_front_if(|(at, _)| *at <= now) {
                self.act(action);
            }
            let mut world = lock(&self.world);
            let alive: Vec<bool> = self.instances.iter().map(Instance::is_alive).collect();
            self.judge.look(&mut world, &alive);
            if !world.wrongs.is_empty() || self.judge.is_over() {
                return;
            }
        }
    }

    /// Lets every process, and then the world, come to a moment.
    fn step(&mut self, mut now: Moment, to: Moment) {
        if self.instances.len() == 1 {
            return self.slice(to);
        }
        while now < to {
            now = to.min(now + SLICE);
            self.slice(now);
        }
    }

    fn slice(&mut self, to: Moment) {
        for instance in &mut self.instances {
            instance.step(&self.world, to);
        }
        lock(&self.world).run_until(to);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Process(instance, does) => {
                let seat = &mut self.instances[instance];
                match does {
                    Does::Start if seat.process.is_none() => {
                        let now = seat.start(&self.world, instance, &self.traits);
                        self.judge.process_started(now);
                    }
                    Does::Start => {}
                    Does::Die => seat.die(&self.world),
                    Does::Stop => seat.stop(&self.world),
                    Does::Freeze(span) => seat.freeze(&self.world, span),
                }
            }
            other => story::happens(&mut lock(&self.world), &mut self.judge, other),
        }
    }
}

// === impl Instance ===

impl Instance {
    fn is_alive(&self) -> bool {
        self.process.is_some() && self.frozen.is_none() && !self.stopping
    }

    fn start(&mut self, world: &Arc<Mutex<World>>, instance: usize, traits: &Traits) -> Moment {
        let mut locked = lock(world);
        let (now, seed) = (locked.now(), locked.rng.u64(..));
        locked.note(format_args!("process {} starts", NAMES[instance]));
        drop(locked);
        self.process = Some(Process::start(world, instance, traits, now, seed));
        now
    }

    fn die(&mut self, world: &Mutex<World>) {
        lock(world).note(format_args!("process is killed"));
        *self = Self::default();
    }

    fn stop(&mut self, world: &Mutex<World>) {
        if let Some(process) = &mut self.process {
            lock(world).note(format_args!("process is asked to stop"));
            process.stop();
            self.stopping = true;
        }
    }

    fn freeze(&mut self, world: &Mutex<World>, span: Duration) {
        let mut world = lock(world);
        self.frozen = Some(world.now() + span);
        world.note(format_args!("process is frozen for {span:?}"));
    }

    /// Lets the process come to a moment.
    fn step(&mut self, world: &Mutex<World>, to: Moment) {
        let Some(process) = &mut self.process else {
            return;
        };
        match self.frozen {
            Some(until) if to < until => {}
            Some(_) => {
                self.frozen = None;
                lock(world).note(format_args!("process goes on"));
                process.wake_at(to);
            }
            None => process.run_until(to),
        }
        if let Some(end) = process.end() {
            if !self.stopping || end.is_err() {
                let how = format!("the process ended by itself: {end:?}");
                lock(world).wrong(how);
            }
            *self = Self::default();
            lock(world).note(format_args!("process stopped"));
        }
    }
}

// === impl Traits ===

impl Traits {
    fn draw(rng: &mut Rng, seed: u64) -> Self {
        Self {
            instances: 1 + usize::from(seed.is_multiple_of(TWO_EACH)),
            routers: rng.usize(1..=2),
            leaky: rng.bool(),
            stamps: rng.u32(..8) > 0,
            state: rng.u32(..3) > 0,
            short_ttl: rng.u32(..8) == 0,
        }
    }
}

fn lock(world: &Mutex<World>) -> std::sync::MutexGuard<'_, World> {
    world.lock().expect("no one may panic holding the world")
}
