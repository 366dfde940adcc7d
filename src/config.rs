//! The configuration's meaning: after this module nothing is a bare text any more.
//!
//! A file is read in three steps: `file` turns it into a tree of texts, `read` asks that tree for keys and
//! keeps the list of mistakes, `meaning` makes values of them. Every mistake of a file is reported at once,
//! each with its key path; none quotes a secret.

mod file;
mod keys;
mod meaning;
mod nats;
mod read;
mod reserved;
mod scalar;
mod secret;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::desired;
use crate::route::Hostname;

pub use file::SyntaxError;
pub use keys::{KEYS, Key};
pub use read::Mistake;
pub use secret::Secret;

/// A configuration is some kilobytes; a wrong path should not fill the memory.
const FILE_BYTES_MAX: usize = 1024 * 1024;

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// How the apiserver is reached.
    pub kubernetes: KubernetesConfig,
    /// How tokens are had; absent where the TCP lane is off.
    pub uaa: Option<UaaConfig>,
    /// The TCP lane; absent where it is off.
    pub routing_api: Option<RoutingApiConfig>,
    /// The HTTP lane; absent where it is off.
    pub nats: Option<NatsConfig>,
    /// How routes are derived.
    pub routes: desired::Options,
    /// The admin listener; `None` is off.
    pub admin: Option<SocketAddr>,
    /// What is logged and how.
    pub log: LogConfig,
    /// Where the withdrawals of TLS backends survive a restart; without it none is announced.
    pub state_dir: Option<PathBuf>,
    /// What works but should not stay: said once at start.
    pub warnings: Vec<String>,
    /// Keys nobody knows: a warning at start, a failure in `check`.
    pub unknown_keys: Vec<Mistake>,
}

/// What a configuration depends on besides its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// A service account is at hand, so that no kubeconfig is needed.
    pub in_pod: bool,
    /// The files that the configuration names must be readable.
    pub files: bool,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration `{path}`")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no YAML.
    #[error("cannot parse the configuration `{path}`")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where.
        source: SyntaxError,
    },
    /// It says something wrong.
    #[error("{}", all(path, mistakes))]
    Mistakes {
        /// Which.
        path: PathBuf,
        /// Everything wrong, in the order of the table of keys' groups.
        mistakes: Vec<Mistake>,
    },
}

/// How the apiserver is reached.
#[derive(Clone, Debug)]
pub struct KubernetesConfig {
    /// A kubeconfig file; `None` is the service account of the pod we run in.
    pub kubeconfig: Option<PathBuf>,
    /// How often everything is listed anew, whatever the watches say.
    pub rescan_interval: Duration,
    /// How often is listed where watching is forbidden.
    pub poll_interval: Duration,
    /// A proxy for the apiserver; the environment is not asked.
    pub proxy_url: Option<String>,
    /// What names this cluster towards Cloud Foundry, where the UID of `kube-system` shall not.
    pub cluster_id: Option<String>,
}

/// How a server's certificate is judged, and what we show of ourselves.
#[derive(Clone, Debug, Default)]
pub struct TlsConfig {
    /// PEM file of the only authorities to trust; `None` is the system's.
    pub ca_file: Option<PathBuf>,
    /// Client certificate and key, PEM files; both or none.
    pub identity: Option<ClientIdentity>,
    /// Trust any certificate. Only for an old configuration's sake, and never heeded towards NATS.
    pub skip_verification: bool,
    /// The name to expect in the certificate instead of the one that was dialled.
    pub server_name: Option<Hostname>,
}

/// A client certificate with its key.
#[derive(Clone, Debug)]
pub struct ClientIdentity {
    /// PEM file, leaf first.
    pub cert_file: PathBuf,
    /// PEM file.
    pub key_file: PathBuf,
}

/// How tokens are had.
#[derive(Clone, Debug)]
pub struct UaaConfig {
    /// Base URL without a trailing slash; `/oauth/token` is appended.
    pub url: String,
    /// The OAuth client.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret,
    /// How the server is judged.
    pub tls: TlsConfig,
}

/// The TCP lane.
#[derive(Clone, Debug)]
pub struct RoutingApiConfig {
    /// Base URL without a trailing slash; `/routing/v1/…` is appended.
    pub url: String,
    /// The router group by name.
    pub router_group: String,
    /// Whether the name was chosen by the operator; if not, an only group of type tcp is taken as well.
    pub router_group_is_default: bool,
    /// How long a row lives without a refresh. At most 120 s, and adopted downwards where the API's `max_ttl` is lower.
    pub ttl: Duration,
    /// System components' ports that must never become routes.
    pub reserved_ports: crate::route::PortRanges,
    /// Join a port that strangers already serve, instead of holding back.
    pub join_foreign: bool,
    /// How the server is judged.
    pub tls: TlsConfig,
}

/// The HTTP lane.
#[derive(Clone, Debug)]
pub struct NatsConfig {
    /// At least one.
    pub servers: Vec<NatsServer>,
    /// Certificates; `None` takes TLS where the server demands it and plain otherwise.
    pub tls: Option<TlsConfig>,
    /// The interval between two beats while no router has told its own.
    pub default_interval: Duration,
    /// Messages per second at most.
    pub messages_per_second: u32,
    /// Send the Service's UID as `app`, so that gorouter's access logs carry a source.
    pub send_app: bool,
    /// [`Config::state_dir`]: `None` keeps no journal of TLS backends.
    pub state_dir: Option<PathBuf>,
}

/// One NATS server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsServer {
    /// Name or address.
    pub host: String,
    /// 4222 unless given.
    pub port: u16,
    /// Credentials, if any.
    pub login: Option<(String, Secret)>,
}

/// What is logged and how.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `None`: text on a terminal, lager elsewhere.
    pub format: Option<LogFormat>,
    /// A filter in `tracing`'s notation.
    pub level: String,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// Cloud Foundry's JSON, with RFC 3339 timestamps.
    Lager,
}

// === impl Config ===

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path, surroundings: Surroundings) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        if text.len() > FILE_BYTES_MAX {
            return Err(unreadable(io::Error::other("it has more than 1 MiB")));
        }
        Self::parse(&text, path, surroundings)
    }

    /// Validates a text; `path` is how errors call it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, path: &Path, surroundings: Surroundings) -> Result<Self, ConfigError> {
        let file = file::parse(text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source,
        })?;
        let mut reader = read::Reader::new(surroundings.files);
        let strays = keys::strays(&file);
        for key in strays.twice {
            reader.wrong(key, "stands twice");
        }
        let config = meaning::config(&mut reader, &file, surroundings.in_pod);
        let unknown_keys: Vec<_> = strays.unknown.into_iter().map(unknown).collect();
        match config {
            Some(config) if reader.mistakes.is_empty() => Ok(Self {
                unknown_keys,
                ..config
            }),
            // A misspelt key is why another one is missing: they belong together.
            _ => Err(ConfigError::Mistakes {
                path: path.to_owned(),
                mistakes: reader.mistakes.into_iter().chain(unknown_keys).collect(),
            }),
        }
    }
}

/// How routes are derived where nobody said anything but the app domain; Cloud Foundry's own hosts are
/// reserved all the same.
#[must_use]
pub fn default_options(app_domain: Hostname) -> desired::Options {
    meaning::default_options(app_domain)
}

fn unknown((key, suggestion): (String, Option<String>)) -> Mistake {
    Mistake {
        key,
        message: "is no key of route-sync".to_owned(),
        hint: suggestion.map(|key| format!("did you mean `{key}`?")),
    }
}

fn all(path: &Path, mistakes: &[Mistake]) -> String {
    let count = mistakes.len();
    let noun = if count == 1 { "mistake" } else { "mistakes" };
    let mut text = format!("{count} {noun} in the configuration `{}`", path.display());
    for mistake in mistakes {
        // Writing into a String cannot fail.
        let _ = write!(text, "\n  {}: {}", mistake.key, mistake.message);
        if let Some(hint) = &mistake.hint {
            let _ = write!(text, "\n    hint: {hint}");
        }
    }
    text
}
