//! Many lives, on as many threads as there are processors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::{Outcome, live};

/// One life in so many is lived twice, and must be the same.
const TWICE_EACH: u64 = 50;
/// A life takes some 25 ms, and a busy machine makes hundreds of times as much of it. In one that takes longer the
/// controller turns without rest, and time stands still.
const LIFE_MAX: Duration = Duration::from_mins(2);

/// Which lives.
#[derive(Clone, Debug)]
pub struct Crowd {
    pub seeds: Range<u64>,
    /// Further seeds follow until then, however many these are.
    pub until: Option<Instant>,
    /// Enough went wrong.
    pub wrong: usize,
}

/// How they went.
#[derive(Debug, Default)]
pub struct Summary {
    pub lived: usize,
    /// By seed, with what went wrong first.
    pub wrong: Vec<(u64, String)>,
    /// How long it took at most until all was well after the last fault.
    pub settled: Duration,
}

/// Lives all of them; each that goes wrong is told at once.
pub fn live_all(crowd: &Crowd, tell: impl Fn(u64, &str) + Sync) -> Summary {
    let next = AtomicU64::new(crowd.seeds.start);
    let summary = Mutex::new(Summary::default());
    let lock = || summary.lock().expect("no thread may panic holding it");
    let living = Mutex::new(BTreeMap::new());
    let some = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let over = crowd
                .until
                .map_or(seed >= crowd.seeds.end, |end| Instant::now() >= end);
            if over || lock().wrong.len() >= crowd.wrong {
                return;
            }
            let living = || living.lock().expect("no thread may panic holding it");
            living().insert(seed, Instant::now());
            let outcome = caught(seed);
            living().remove(&seed);
            let mut wrong = outcome.wrongs.first().map(|(at, what)| told(*at, what));
            if seed.is_multiple_of(TWICE_EACH) && caught(seed).hash != outcome.hash {
                wrong = Some("the same seed lived two lives".to_owned());
            }
            let mut summary = lock();
            summary.lived += 1;
            let settled = outcome.settled_after.unwrap_or_default();
            summary.settled = summary.settled.max(settled);
            if let Some(what) = wrong {
                tell(seed, &what);
                summary.wrong.push((seed, what));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    std::thread::scope(|scope| {
        let some: Vec<_> = (0..threads).map(|_| scope.spawn(some)).collect();
        while !some.iter().all(|thread| thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
            let living = living.lock().expect("no thread may panic holding it");
            let stuck = living.iter().find(|(_, since)| since.elapsed() > LIFE_MAX);
            if let Some((seed, _)) = stuck {
                tell(*seed, "it comes to no end: something turns without rest");
                // Nothing else ends a thread that never waits.
                std::process::exit(1);
            }
        }
    });
    let mut summary = summary
        .into_inner()
        .expect("no thread may panic holding it");
    summary.wrong.sort();
    summary
}

/// What went wrong and when, in one line.
pub fn told(at: Duration, what: &str) -> String {
    format!("at {:.1} s: {what}", at.as_secs_f64())
}

/// A life that ends in a panic went wrong as well.
fn caught(seed: u64) -> Outcome {
    std::panic::catch_unwind(|| live(seed, false)).unwrap_or_else(|_| Outcome {
        hash: 0,
        wrongs: vec![(Duration::ZERO, "the simulation panicked".to_owned())],
        settled_after: None,
    })
}
