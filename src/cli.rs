//! The command line: what may be typed, and what the process answers with its exit code.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; for `plan`: in sync |
//! | 1 | anything else went wrong; for `lint`: a finding that loses a route, or an object that cannot be read |
//! | 2 | a mistake of usage or configuration; for `plan`: changes are pending, and such mistakes are 1 |
//!
//! Data goes to stdout, errors and hints to stderr.

mod approve;
mod ask;
mod check;
mod docs;
mod drain;
mod lint;
mod plan;
mod register_uaa_client;
mod render;
mod run;
mod smoke_test;
mod status;
mod wires;

pub use run::{Controller, assemble};

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::config::{Config, ConfigError, Surroundings};
use crate::publish::tcp;
use crate::route::Hostname;
use crate::static_routes;
use crate::status::Drain;
use crate::telemetry;

/// Where the original looked.
const CONFIG_DEFAULT: &str = "route-sync.yml";
/// The original's flag; Go's flag package takes one dash or two.
const ORIGINAL_FLAG: &str = "-configPath";
/// One for the lanes, one so that a scrape or a large derivation delays none of them.
const WORKER_THREADS: usize = 2;

/// Puts Kubernetes Services behind Cloud Foundry's routers.
///
/// Without a command it runs.
#[derive(Debug, Parser)]
#[command(name = "route-sync", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    common: Common,
}

/// What every command takes.
#[derive(Debug, clap::Args)]
struct Common {
    /// The configuration file [default: route-sync.yml]
    #[arg(
        long,
        alias = "configPath",
        alias = "config-path",
        global = true,
        value_name = "FILE"
    )]
    config: Option<PathBuf>,
    /// How to print
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep routes in sync until stopped (the default)
    Run,
    /// Print what a run would change; exit 0 in sync, 2 changes pending
    Plan,
    /// Check the configuration
    Check {
        /// Only the configuration itself; checks against the servers come later
        #[arg(long, required = true)]
        offline: bool,
    },
    /// Print what the running route-sync says of itself
    Status {
        /// Its admin listener [default: `admin.listen` of the configuration]
        #[arg(long, value_name = "ADDRESS")]
        admin: Option<SocketAddr>,
    },
    /// Let the running route-sync go through with removals that it holds
    Approve {
        /// The plan, as `status`, `plan` and the finding `removal-held` name it
        #[arg(value_name = "PLAN-HASH")]
        plan: String,
        /// Its admin listener [default: `admin.listen` of the configuration]
        #[arg(long, value_name = "ADDRESS")]
        admin: Option<SocketAddr>,
    },
    /// Tell the running route-sync what becomes of its routes before it is stopped
    Drain {
        /// Withdraw every route now, and announce nothing until it is restarted; exit 0 once all is proven gone
        #[arg(long)]
        unregister: bool,
        /// Keep every route alive as it is and follow no change until it is restarted (the default)
        #[arg(long, conflicts_with = "unregister")]
        keep: bool,
        /// Its admin listener [default: `admin.listen` of the configuration]
        #[arg(long, value_name = "ADDRESS")]
        admin: Option<SocketAddr>,
    },
    /// Check the labels and annotations of manifests, without a cluster
    Lint {
        /// Manifests; `-` is stdin
        #[arg(short, long = "file", required = true, num_args = 1.., value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The app domain, where no configuration is given
        #[arg(long, default_value = "apps.example.com", value_name = "DOMAIN", value_parser = Hostname::parse)]
        app_domain: Hostname,
    },
    /// Ask each server, then make a Service reachable and unreachable again
    SmokeTest(smoke_test::Arguments),
    /// Make the UAA client `uaa.client_id`, or put right what an earlier run made; a second run changes nothing
    RegisterUaaClient(register_uaa_client::Arguments),
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print a table of the documentation
    #[command(hide = true)]
    Docs {
        /// Which
        table: docs::Table,
    },
}

/// The whole process.
#[must_use]
pub fn main() -> ExitCode {
    // Before anything builds a TLS configuration. It fails only when one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = with_original_flag(std::env::args_os());
    let planning = names_plan(&arguments);
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Where even this cannot be printed there is nobody left to tell.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => usage_code(planning),
            };
        }
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            render::error(&error);
            if matches!(error.downcast_ref(), Some(ConfigError::Unreadable { .. })) {
                render::hint("`--config <FILE>` names the configuration");
            }
            // A certificate that cannot be used is a mistake of the configuration as well.
            let configuration = error.is::<ConfigError>()
                || error.is::<tcp::ConnectError>()
                || error.is::<static_routes::SetupError>();
            if configuration {
                usage_code(planning)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let Common { config, output } = cli.common;
    let path = config.clone().unwrap_or_else(|| CONFIG_DEFAULT.into());
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => {
            let config = Config::load(&path, surroundings())?;
            let (log, level) = telemetry::start(
                config.log.format,
                &config.log.level,
                telemetry::Output::Stdout,
            );
            run::run(config, &path, &log, level)
        }
        Command::Plan => {
            let config = Config::load(&path, surroundings())?;
            let _log = quiet();
            block_on(plan::plan(config, output))
        }
        Command::Check { offline: _ } => check::offline(&path, surroundings(), output),
        Command::Status { admin } => block_on(status::status(admin, &path, output)),
        Command::Approve { plan, admin } => block_on(approve::approve(&plan, admin, &path, output)),
        Command::Drain {
            unregister,
            keep: _,
            admin,
        } => {
            let how = if unregister {
                Drain::Unregister
            } else {
                Drain::Keep
            };
            block_on(drain::drain(how, admin, &path, output))
        }
        Command::Lint { files, app_domain } => {
            lint::lint(&files, config.as_deref(), app_domain, output)
        }
        Command::SmokeTest(arguments) => {
            let config = Config::load(&path, surroundings())?;
            // What it logs of a refused login is in the test's own line.
            let _log = quiet_by("warn,async_nats=off");
            block_on(smoke_test::smoke_test(config, arguments, output))
        }
        Command::RegisterUaaClient(arguments) => {
            let _log = quiet();
            block_on(register_uaa_client::register(&path, &arguments, output))
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut public_command(), "route-sync", &mut script);
            render::print_verbatim(&String::from_utf8_lossy(&script))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Docs { table } => {
            render::print_verbatim(&docs::table(table))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn surroundings() -> Surroundings {
    Surroundings {
        // The apiserver's address, which every pod is given.
        in_pod: std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
        files: true,
    }
}

/// Logs of commands that print something else.
fn quiet() -> telemetry::Guard {
    quiet_by("warn")
}

/// The same, by another filter.
fn quiet_by(filter: &str) -> telemetry::Guard {
    telemetry::start(
        Some(crate::config::LogFormat::Text),
        filter,
        telemetry::Output::Stderr,
    )
    .0
}

fn block_on<T>(task: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    runtime()?.block_on(task)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()?;
    Ok(runtime)
}

/// The exit code of a mistake of usage or configuration.
fn usage_code(planning: bool) -> ExitCode {
    ExitCode::from(if planning { 1 } else { 2 })
}

/// The command line without what is hidden; completions would offer it.
fn public_command() -> clap::Command {
    let all = Cli::command();
    let shown = all.get_subcommands().filter(|it| !it.is_hide_set());
    clap::Command::new("route-sync")
        .version(env!("CARGO_PKG_VERSION"))
        .args(all.get_arguments())
        .subcommands(shown)
}

/// Gives the original's flag its second dash, which clap demands.
fn with_original_flag(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    arguments
        .map(|argument| match argument.to_str() {
            Some(text)
                if text == ORIGINAL_FLAG
                    || text
                        .strip_prefix(ORIGINAL_FLAG)
                        .is_some_and(|rest| rest.starts_with('=')) =>
            {
                format!("-{text}").into()
            }
            _ => argument,
        })
        .collect()
}

/// Whether the command is `plan`, also where the rest of the line cannot be parsed.
fn names_plan(arguments: &[OsString]) -> bool {
    let mut rest = arguments
        .iter()
        .skip(1)
        .filter_map(|argument| argument.to_str());
    while let Some(argument) = rest.next() {
        match argument {
            "--config" | "--configPath" | "--config-path" | "--output" => {
                rest.next();
            }
            option if option.starts_with('-') => {}
            command => return command == "plan",
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Cli {
        let arguments = line.split(' ').map(OsString::from);
        Cli::try_parse_from(with_original_flag(arguments)).unwrap()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_originals_flag_is_taken_in_all_its_forms() {
        for line in [
            "route-sync -configPath f.yml",
            "route-sync --configPath f.yml",
            "route-sync -configPath=f.yml",
            "route-sync --configPath=f.yml",
            "route-sync --config f.yml",
            "route-sync run --config-path f.yml",
        ] {
            let cli = parse(line);
            assert_eq!(cli.common.config, Some("f.yml".into()), "{line}");
            assert!(matches!(cli.command, None | Some(Command::Run)), "{line}");
        }
    }

    #[test]
    fn plan_is_recognised_before_the_line_is_parsed() {
        let named = |line: &str| {
            let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            names_plan(&arguments)
        };
        assert!(named("route-sync plan --nonsense") && named("route-sync --config plan plan"));
        assert!(!named("route-sync --config plan") && !named("route-sync run plan"));
    }
}
