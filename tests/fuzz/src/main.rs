//! The command `fuzz`: searches, replays, and keeps what led somewhere new. `make fuzz` and `tests/fuzz/run` call it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use fuzz::targets::{self, Target};
use fuzz::{corpus, search};

const USAGE: &str = "fuzz list
fuzz search TARGET SECONDS SEED CURRENT   CURRENT is a file that always holds the input being tried
fuzz replay TARGET FILE…
fuzz keep TARGET SECONDS SEED             searches, then writes the smallest inputs that reach everything";

/// An input that takes longer than this hangs; the slowest take milliseconds.
const HANG: Duration = Duration::from_secs(20);
/// How `tests/fuzz/run` tells a hang from a failed assertion.
const EXIT_HANG: u8 = 3;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "fuzz: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["list"] => {
            for target in targets::ALL {
                say(target.name);
            }
            Ok(ExitCode::SUCCESS)
        }
        ["search", target, seconds, seed, current] => {
            let limit = Duration::from_secs(seconds.parse()?);
            search_one(named(target)?, limit, seed.parse()?, Path::new(current))
        }
        ["replay", target, ref files @ ..] if !files.is_empty() => replay(named(target)?, files),
        ["keep", target, seconds, seed] => {
            let limit = Duration::from_secs(seconds.parse()?);
            keep(named(target)?, limit, seed.parse()?)
        }
        _ => bail!("there are\n{USAGE}"),
    }
}

fn say(text: &str) {
    // Whoever stopped reading had enough.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn named(name: &str) -> anyhow::Result<&'static Target> {
    let target = targets::ALL.iter().find(|target| target.name == name);
    target.with_context(|| format!("there is no target `{name}`; `fuzz list` names them"))
}

fn search_one(
    target: &Target,
    limit: Duration,
    seed: u64,
    current: &Path,
) -> anyhow::Result<ExitCode> {
    let seeds = corpus::read(target.name)?;
    let tried = Arc::new(AtomicU64::new(0));
    watch_for_hangs(tried.clone());
    let file = std::fs::File::create(current)?;
    let note = |input: &[u8]| {
        use std::os::unix::fs::FileExt as _;
        tried.fetch_add(1, Ordering::Relaxed);
        // An input that ends the process, by a full stack say, can only be found here.
        let written = file.write_all_at(input, 0);
        let _ = written.and_then(|()| file.set_len(input.len() as u64));
    };
    let found = search::search(target, seeds, search::Until::Time(limit), seed, note);
    let rate = found.tried as f64 / found.lasted.as_secs_f64().max(0.001);
    say(&format!(
        "{:14} {:>10} inputs, {rate:>7.0} a second, {} that led somewhere new, {} branches seen",
        target.name, found.tried, found.kept, found.features
    ));
    let Some(failure) = found.failure else {
        return Ok(ExitCode::SUCCESS);
    };
    std::fs::write(current, &failure.input)?;
    say(&format!("{} fails: {}", target.name, failure.message));
    Ok(ExitCode::FAILURE)
}

/// Ends the process if one input takes too long: no thread can be stopped from outside.
fn watch_for_hangs(tried: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        loop {
            let before = tried.load(Ordering::Relaxed);
            std::thread::sleep(HANG);
            if tried.load(Ordering::Relaxed) == before && before > 0 {
                say(&format!("one input took more than {HANG:?}"));
                #[expect(clippy::exit, reason = "the thread that hangs cannot be stopped")]
                std::process::exit(EXIT_HANG.into());
            }
        }
    });
}

fn replay(target: &Target, files: &[&str]) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for file in files {
        for (name, input) in corpus::read_file(Path::new(file))? {
            match search::try_one(target, &input) {
                Ok(()) => say(&format!("{name}: passes")),
                Err(message) => {
                    code = ExitCode::FAILURE;
                    say(&format!(
                        "{name}: {message}\n{:?}",
                        input.escape_ascii().to_string()
                    ));
                }
            }
        }
    }
    Ok(code)
}

fn keep(target: &Target, limit: Duration, seed: u64) -> anyhow::Result<ExitCode> {
    let seeds = corpus::read(target.name)?;
    let found = search::search(target, seeds, search::Until::Time(limit), seed, |_| {});
    if let Some(failure) = found.failure {
        say(&format!("{} fails: {}", target.name, failure.message));
        return Ok(ExitCode::FAILURE);
    }
    let path: PathBuf = corpus::folder(target.name).join("found.txt");
    let written = corpus::write_found(&path, &search::smallest(target, found.pool))?;
    say(&format!("{}: {written} inputs", path.display()));
    Ok(ExitCode::SUCCESS)
}
