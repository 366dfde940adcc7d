//! The search: take an input, change it, run it, keep it if it led somewhere new; stop at the first that fails.

use std::cell::RefCell;
use std::panic;
use std::time::{Duration, Instant};

use crate::corpus::Named;
use crate::coverage::Coverage;
use crate::mutate::Mutator;
use crate::targets::Target;

/// Runs that may be spent on making an input that fails shorter.
const SHRINKS_MAX: usize = 5_000;
/// Of so many inputs half of all changes begin with: what was new last has been changed least.
const YOUNG: usize = 16;

/// When a search ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After so long.
    Time(Duration),
    /// After so many inputs, or so long.
    Tried(u64, Duration),
}

/// How a search ended.
pub struct Found {
    /// Inputs run.
    pub tried: u64,
    /// For how long.
    pub lasted: Duration,
    /// Those that led somewhere new, the given ones aside.
    pub kept: usize,
    /// Branches seen, each with its powers of two; 0 where nothing is counted.
    pub features: usize,
    /// Everything given and kept.
    pub pool: Vec<Vec<u8>>,
    /// The first that failed.
    pub failure: Option<Failure>,
}

/// An input that failed, as short as it could be made.
#[derive(Debug)]
pub struct Failure {
    /// The input.
    pub input: Vec<u8>,
    /// What failed, and where.
    pub message: String,
}

thread_local! {
    /// What the last run on this thread panicked with; `None` outside of runs.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs one input; the error is what failed.
///
/// # Errors
/// When a property does not hold.
pub fn try_one(target: &Target, input: &[u8]) -> Result<(), String> {
    quiet_inside_runs();
    let run = target.run;
    PANIC.set(Some(String::new()));
    let ended = panic::catch_unwind(|| run(input));
    let message = PANIC.take().unwrap_or_default();
    ended.map_err(|_| message)
}

fn quiet_inside_runs() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANIC.with_borrow_mut(|inside| match inside {
                Some(message) => *message = info.to_string(),
                None => usual(info),
            });
        }));
    });
}

/// Searches; the same seed, corpus and build give the same inputs. `note` sees each before it is run.
pub fn search(
    target: &Target,
    corpus: Vec<Named>,
    until: Until,
    seed: u64,
    mut note: impl FnMut(&[u8]),
) -> Found {
    let begun = now();
    let mut coverage = Coverage::default();
    let mut found = Found {
        tried: 0,
        lasted: Duration::ZERO,
        kept: 0,
        features: 0,
        pool: corpus.into_iter().map(|(_, input)| input).collect(),
        failure: None,
    };
    let given = found.pool.len();
    let mut mutator = Mutator::new(seed, target.words);
    while !until.reached(found.tried, begun) {
        let input = match found
            .pool
            .get(usize::try_from(found.tried).unwrap_or(usize::MAX))
        {
            Some(given_one) if found.tried < given as u64 => given_one.clone(),
            _ => {
                let parent = mutator.parent(&found.pool, YOUNG);
                mutator.changed(parent, &found.pool)
            }
        };
        note(&input);
        found.tried += 1;
        Coverage::begin();
        let tried = try_one(target, &input);
        if let Err(message) = tried {
            found.failure = Some(shortest(target, input, message, &mut note));
            break;
        }
        if coverage.end() > 0 && found.tried > given as u64 {
            found.pool.push(input);
            found.kept += 1;
        }
    }
    found.features = coverage.features();
    found.lasted = now() - begun;
    found
}

/// Of these the smallest that reach everything all of them reach, smallest first.
#[must_use]
pub fn smallest(target: &Target, mut pool: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    pool.sort_by_key(Vec::len);
    let mut coverage = Coverage::default();
    pool.retain(|input| {
        Coverage::begin();
        try_one(target, input).is_ok() && coverage.end() > 0
    });
    pool
}

/// Cuts out pieces as long as it still fails, halves first.
fn shortest(
    target: &Target,
    mut input: Vec<u8>,
    mut message: String,
    note: &mut impl FnMut(&[u8]),
) -> Failure {
    let mut left = SHRINKS_MAX;
    let mut size = input.len() / 2;
    while size > 0 && left > 0 {
        let mut start = 0;
        let mut cut = false;
        while start < input.len() && left > 0 {
            left -= 1;
            let end = (start + size).min(input.len());
            let shorter = [&input[..start], &input[end..]].concat();
            note(&shorter);
            match try_one(target, &shorter) {
                Err(again) => (input, message, cut) = (shorter, again, true),
                Ok(()) => start = end,
            }
        }
        if !cut {
            size /= 2;
        }
    }
    Failure { input, message }
}

// === impl Until ===

impl Until {
    fn reached(self, tried: u64, begun: Instant) -> bool {
        let (most, limit) = match self {
            Self::Time(limit) => (u64::MAX, limit),
            Self::Tried(most, limit) => (most, limit),
        };
        tried >= most || now() - begun >= limit
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is searched reads no clock; the search has a limit"
)]
fn now() -> Instant {
    Instant::now()
}
