//! Lives many lives, or one that is looked at.

use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use simulation::crowd::{Crowd, live_all, told};
use simulation::live;
use tokio::time::Instant;

/// Lives the controller's life again and again, each time with the faults that its seed draws.
#[derive(Parser)]
struct Arguments {
    /// The first seed, and the one after the last
    #[arg(long, default_value = "0..1000", value_parser = range)]
    seeds: Range<u64>,
    /// Only this one
    #[arg(long)]
    seed: Option<u64>,
    /// Print all that happens in it
    #[arg(long)]
    trace: bool,
    /// Print what the controller logs in it, by a filter such as `route_sync=debug`
    #[arg(long)]
    log: Option<String>,
    /// Go on with further seeds for so many minutes
    #[arg(long)]
    minutes: Option<u64>,
    /// Stop after so many lives that went wrong
    #[arg(long, default_value_t = 10)]
    wrong: usize,
}

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
    if let Some(filter) = &arguments.log {
        // Written at once, so that it stands between the lines of what happened.
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .without_time()
            .with_ansi(false)
            .init();
    }
    let outcome = live(seed, arguments.trace);
    for (at, what) in &outcome.wrongs {
        println!("{}", told(*at, what));
    }
    let settled = outcome.settled_after.unwrap_or_default();
    println!(
        "seed {seed} lives {:016x}, well {settled:?} after the last fault",
        outcome.hash
    );
    code(outcome.wrongs.is_empty())
}

fn many(arguments: &Arguments) -> ExitCode {
    // A panic of the controller is told with the seed that brought it about, and again when that is replayed.
    std::panic::set_hook(Box::new(|_| {}));
    let began = Instant::now();
    let until = |minutes| began + Duration::from_secs(minutes * 60);
    let crowd = Crowd {
        seeds: arguments.seeds.clone(),
        until: arguments.minutes.map(until),
        wrong: arguments.wrong,
    };
    let summary = live_all(&crowd, |seed, what| {
        println!("seed {seed}: {what}\n  replay: make simulation SEED={seed}");
    });
    println!(
        "{} lives in {:.0} s, {} went wrong; all was well {:?} after the last fault at the latest",
        summary.lived,
        began.elapsed().as_secs_f64(),
        summary.wrong.len(),
        summary.settled,
    );
    code(summary.wrong.is_empty())
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
