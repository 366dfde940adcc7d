//! The controller's core and lanes in a world of faults, on paused time, drawn by a seed.
//!
//! ```text
//!   seed ──▶ story (what happens, when) ──▶ world ◀── Outside ── process: the real core and lanes
//!                                             │                  (a runtime of its own, its clock paused)
//!                                             └──▶ judge: what may never be, and what must be in the end
//! ```
//!
//! A life is some minutes of changes and faults, then calm. One thread lives one life; nothing in it depends on
//! anything but the seed, which is shown by living some of them twice. What the process is made of is what `run`
//! makes it of (`route_sync::cli::assemble`); all that is exchanged is what it reaches.

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
use process::Process;
use story::{Action, Story};
use world::World;

/// A moment, counted from the beginning of the world.
pub type Moment = Duration;

/// The world is looked at so often.
const TICK: Duration = Duration::from_secs(1);

/// What is the same for a whole life.
#[derive(Clone, Debug)]
pub struct Traits {
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
    let traits = Traits::draw(&mut rng);
    let story = Story::draw(&mut rng, &traits);
    let world = Arc::new(Mutex::new(World::new(rng.u64(..), shown, &traits)));
    lock(&world).note(format_args!("seed {seed}, {traits:?}"));
    story::populate(&mut lock(&world));
    let keeps = Keeps {
        state: story.keeps,
        stamps: traits.stamps,
    };
    let mut life = Life {
        judge: Judge::new(story.calm, keeps),
        actions: story.actions.into(),
        traits,
        process: None,
        frozen: None,
        stopping: false,
        lives: 0,
        world,
    };
    life.start();
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
    process: Option<Process>,
    /// Until when the process does not run though it lives.
    frozen: Option<Moment>,
    stopping: bool,
    lives: u32,
}

// === impl Life ===

impl Life {
    fn run(&mut self) {
        let mut now = Moment::ZERO;
        loop {
            let mut next = now + TICK;
            let action = self.actions.front().map(|(at, _)| *at);
            for due in action.into_iter().chain(self.frozen) {
                next = next.min(due.max(now));
            }
            self.step(next);
            now = next;
            while let Some((_, action)) = self.actions.pop_front_if(|(at, _)| *at <= now) {
                self.act(action);
            }
            let mut world = lock(&self.world);
            let alive = self.process.is_some() && self.frozen.is_none() && !self.stopping;
            self.judge.look(&mut world, alive);
            if !world.wrongs.is_empty() || self.judge.is_over() {
                return;
            }
        }
    }

    /// Lets the process, and then the world, come to a moment.
    fn step(&mut self, to: Moment) {
        if let Some(process) = &mut self.process {
            match self.frozen {
                Some(until) if to < until => {}
                Some(_) => {
                    self.frozen = None;
                    lock(&self.world).note(format_args!("process goes on"));
                    process.wake_at(to);
                }
                None => process.run_until(to),
            }
            if let Some(end) = process.end() {
                if !self.stopping || end.is_err() {
                    let how = format!("the process ended by itself: {end:?}");
                    lock(&self.world).wrong(how);
                }
                self.process = None;
                self.stopping = false;
                lock(&self.world).note(format_args!("process stopped"));
            }
        }
        lock(&self.world).run_until(to);
    }

    fn start(&mut self) {
        self.lives += 1;
        let mut world = lock(&self.world);
        let (now, seed) = (world.now(), world.rng.u64(..));
        world.note(format_args!("process starts"));
        drop(world);
        let state = self.traits.state;
        self.process = Some(Process::start(&self.world, self.lives, now, seed, state));
        self.judge.process_started(now);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Kill => {
                lock(&self.world).note(format_args!("process is killed"));
                (self.process, self.frozen, self.stopping) = (None, None, false);
            }
            Action::Stop => {
                if let Some(process) = &mut self.process {
                    lock(&self.world).note(format_args!("process is asked to stop"));
                    process.stop();
                    self.stopping = true;
                }
            }
            Action::Start if self.process.is_none() => self.start(),
            Action::Start => {}
            Action::Freeze(span) => {
                let mut world = lock(&self.world);
                self.frozen = Some(world.now() + span);
                world.note(format_args!("process is frozen for {span:?}"));
            }
            other => story::happens(&mut lock(&self.world), &mut self.judge, other),
        }
    }
}

// === impl Traits ===

impl Traits {
    fn draw(rng: &mut Rng) -> Self {
        Self {
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
