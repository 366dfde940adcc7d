//! Lives many lives, or one that is looked at.

use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use simulation::{Outcome, live};

/// Lives the controller's life again and again, each time with the faults that its seed draws.
#[derive(Parser)]
struct Arguments {
    /// The first seed, and the one after the last
    #[arg(long, default_value = "0..1000", value_parser = range)]
    seeds: Range<u64>,
    /// Only this one
    #[arg(long)]
    seed: Option<u64>,
    /// Print all that happens
    #[arg(long)]
    trace: bool,
    /// Print what the controller logs at this level, as well
    #[arg(long)]
    log: Option<String>,
    /// Go on with further seeds for so many minutes
    #[arg(long)]
    minutes: Option<u64>,
    /// Stop after so many lives that went wrong
    #[arg(long, default_value_t = 10)]
    wrong: usize,
    #[arg(long)]
    threads: Option<usize>,
}

/// One life in so many is lived twice, and must be the same.
const TWICE_EACH: u64 = 50;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !cfg!(tokio_unstable) {
        eprintln!("built without `--cfg tokio_unstable`: the same seed may live another life");
    }
    match arguments.seed {
        Some(seed) => one(seed, &arguments),
        None => many(&arguments),
    }
}

fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    if let Some(level) = &arguments.log {
        // Written at once, so that it stands between the lines of what happened.
        tracing_subscriber::fmt()
            .with_env_filter(level)
            .without_time()
            .with_ansi(false)
            .init();
    }
    let outcome = live(seed, arguments.trace);
    println!("seed {seed}: {:016x}, {}", outcome.hash, how(&outcome));
    code(outcome.wrongs.is_empty())
}

fn many(arguments: &Arguments) -> ExitCode {
    // It is told with the seed that brought it about, and again when that is replayed.
    std::panic::set_hook(Box::new(|_| {}));
    let began = Instant::now();
    let end = arguments
        .minutes
        .map(|minutes| began + Duration::from_secs(minutes * 60));
    let next = AtomicU64::new(arguments.seeds.start);
    let lived = AtomicU64::new(0);
    let wrong = Mutex::new(Vec::new());
    let settled = Mutex::new(Vec::new());
    let threads = arguments
        .threads
        .or(std::thread::available_parallelism().ok().map(Into::into));
    let live_some = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let over = end.map_or(seed >= arguments.seeds.end, |end| Instant::now() >= end);
            if over || wrong.lock().expect("no thread may panic").len() >= arguments.wrong {
                return;
            }
            let mut outcome = caught(seed);
            if seed % TWICE_EACH == 0 && caught(seed).hash != outcome.hash {
                let text = "the same seed lived two lives".to_owned();
                outcome.wrongs.push((Duration::ZERO, text));
            }
            lived.fetch_add(1, Ordering::Relaxed);
            settled
                .lock()
                .expect("no thread may panic")
                .extend(outcome.settled_after);
            if !outcome.wrongs.is_empty() {
                println!(
                    "seed {seed}: {}\n  replay: make simulation SEED={seed}",
                    how(&outcome)
                );
                wrong.lock().expect("no thread may panic").push(seed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.unwrap_or(1) {
            scope.spawn(live_some);
        }
    });
    let lived = lived.into_inner();
    let wrong = wrong.into_inner().expect("no thread may panic").len();
    let mut settled = settled.into_inner().expect("no thread may panic");
    settled.sort();
    let most = settled.last().copied().unwrap_or_default();
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{lived} lives in {seconds:.0} s, {wrong} went wrong; all was well {most:?} after the last fault at the latest"
    );
    code(wrong == 0)
}

/// A life in which something panicked outside of the controller went wrong as well.
fn caught(seed: u64) -> Outcome {
    std::panic::catch_unwind(|| live(seed, false)).unwrap_or_else(|_| Outcome {
        hash: 0,
        wrongs: vec![(Duration::ZERO, "the simulation panicked".to_owned())],
        settled_after: None,
    })
}

fn how(outcome: &Outcome) -> String {
    match outcome.wrongs.first() {
        Some((at, what)) => format!("at {:.1} s: {what}", at.as_secs_f64()),
        None => format!(
            "well {:?} after the last fault",
            outcome.settled_after.unwrap_or_default()
        ),
    }
}

fn code(well: bool) -> ExitCode {
    if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("it is written as `0..1000`")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(number(from)?..number(to)?)
}
