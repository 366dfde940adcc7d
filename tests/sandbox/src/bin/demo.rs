//! `demo`: the controller against the foundation in a box, over a folder of manifests.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sandbox::demo;

/// Runs a route-sync binary against a foundation in a box and tells what each edit did.
#[derive(Parser)]
struct Arguments {
    /// The route-sync binary.
    #[arg(long)]
    controller: PathBuf,
    /// The folder of manifests to apply and to watch.
    #[arg(long, default_value = "examples")]
    manifests: PathBuf,
    /// Written, with the printed commands, once every route answers.
    #[arg(long)]
    once_ready_file: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = demo::run(demo::Options {
        controller: arguments.controller,
        manifests: arguments.manifests,
        once_ready_file: arguments.once_ready_file,
    });
    match outcome.await {
        Ok(()) => ExitCode::SUCCESS,
        // One line: a stack trace tells nothing to whoever tries this out.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
