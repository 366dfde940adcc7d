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
mod reload;
mod reserved;
mod scalar;
mod secret;
mod static_routes;
#[cfg(test)]
mod tests;
mod uaa;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::desired;
use crate::plan::{InstanceId, OnForeign};
use crate::route::{ClusterId, Hostname};

pub use file::SyntaxError;
pub use keys::{KEYS, Key};
pub use read::Mistake;
pub use reload::at_start;
pub use secret::Secret;
pub use static_routes::{HealthConfig, StaticRoute};

/// A configuration is some kilobytes; a wrong path should not fill the memory.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the table of routes comes from.
    pub source: Source,
    /// How tokens are had; absent where the TCP lane is off.
    pub uaa: Option<UaaConfig>,
    /// The TCP lane; absent where it is off.
    pub routing_api: Option<RoutingApiConfig>,
    /// The admin listener; `None` is off.
    pub admin: Option<SocketAddr>,
    /// The listener for scrapers of other machines; `None` is off.
    pub metrics: Option<MetricsConfig>,
    /// What is logged and how.
    pub log: LogConfig,
    /// Where routes and withdrawals survive a restart; without it no TLS backend is announced.
    pub state_dir: Option<PathBuf>,
    /// How old the last process's routes may be to be announced before Kubernetes answers.
    pub state_max_age: Duration,
    /// What works but should not stay: said once at start.
    pub warnings: Vec<String>,
    /// Keys nobody knows: a warning at start, a failure in `check`.
    pub unknown_keys: Vec<Mistake>,
}

/// Where the table of routes comes from: one of these, never both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The labelled Services of a cluster.
    Cluster(Box<ClusterConfig>),
    /// The configuration itself, for the TCP lane alone.
    Static(Vec<StaticRoute>),
}

/// A cluster, and what is made of its Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// How the apiserver is reached.
    pub kubernetes: KubernetesConfig,
    /// The HTTP lane; absent where it is off.
    pub nats: Option<NatsConfig>,
    /// How routes are derived.
    pub routes: desired::Options,
    /// How instances agree on who acts; `None` where there is but one.
    pub leader_election: Option<LeaderElectionConfig>,
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
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM file of the only authorities to trust; `None` is the system's.
    pub ca_file: Option<PathBuf>,
    /// Client certificate and key, PEM files; both or none.
    pub identity: Option<KeyPair>,
    /// Trust any certificate. Only for an old configuration's sake, and never heeded towards NATS.
    pub skip_verification: bool,
    /// The name to expect in the certificate instead of the one that was dialled.
    pub server_name: Option<Hostname>,
}

/// A certificate with its key: what we show of ourselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// PEM file, leaf first.
    pub cert_file: PathBuf,
    /// PEM file.
    pub key_file: PathBuf,
}

/// How tokens are had.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingApiConfig {
    /// Base URL without a trailing slash; `/routing/v1/…` is appended.
    pub url: String,
    /// The router group by name.
    pub router_group: String,
    /// Whether the name was chosen by the operator; if not, an only group of type tcp is taken as well.
    pub router_group_is_default: bool,
    /// How long a row lives without a refresh. At most 120 s, and adopted downwards where the API's `max_ttl` is lower.
    pub ttl: Duration,
    /// The mark of our rows, where it is not the cluster's; [`Self::mark`] decides.
    pub instance_id: Option<InstanceId>,
    /// System components' ports that must never become routes.
    pub reserved_ports: crate::route::PortRanges,
    /// What is done about a port that others serve already.
    pub on_foreign: OnForeign,
    /// How the server is judged.
    pub tls: TlsConfig,
}

/// The HTTP lane.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Claim hosts that strangers already serve.
    pub join_foreign: bool,
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

/// How instances agree on who acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderElectionConfig {
    /// Of the Lease.
    pub name: String,
    /// Of the Lease.
    pub namespace: String,
    /// What this instance is called; `None` is the one before's, else a name of its own.
    pub identity: Option<String>,
}

/// The listener for scrapers of other machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsConfig {
    /// Where it is.
    pub listen: SocketAddr,
    /// What it shows of itself.
    pub identity: KeyPair,
    /// PEM file of the only authorities whose certificates callers may show.
    pub client_ca_file: PathBuf,
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        let text = text(path)?;
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
        let strays = keys::strays(&file.root);
        for key in strays.twice {
            reader.wrong(key, "stands twice");
        }
        let config = meaning::config(&mut reader, &file.root, surroundings.in_pod);
        let mut warnings: Vec<_> = strays.repeated.iter().map(|key| twice(key)).collect();
        if file.more {
            warnings.push("only the first document of the file is read, up to `---`".to_owned());
        }
        let unknown_keys: Vec<_> = strays.unknown.into_iter().map(unknown).collect();
        match config {
            Some(mut config) if reader.mistakes.is_empty() => {
                config.warnings.append(&mut warnings);
                Ok(Self {
                    unknown_keys,
                    ..config
                })
            }
            // A misspelt key is why another one is missing: they belong together.
            _ => Err(ConfigError::Mistakes {
                path: path.to_owned(),
                mistakes: reader.mistakes.into_iter().chain(unknown_keys).collect(),
            }),
        }
    }
}

// === impl Source ===

impl Source {
    /// The cluster, where there is one.
    #[must_use]
    pub fn cluster(&self) -> Option<&ClusterConfig> {
        match self {
            Self::Cluster(cluster) => Some(cluster),
            Self::Static(_) => None,
        }
    }
}

// === impl RoutingApiConfig ===

impl RoutingApiConfig {
    /// What marks the rows of a table.
    #[must_use]
    pub fn mark(&self, cluster: &ClusterId) -> InstanceId {
        let chosen = self.instance_id.clone();
        chosen.unwrap_or_else(|| InstanceId::of(cluster))
    }
}

// === impl TlsConfig ===

impl TlsConfig {
    /// Every file it names.
    #[must_use]
    pub fn files(&self) -> Vec<&Path> {
        let identity = self.identity.iter();
        let pair = identity.flat_map(|identity| [&identity.cert_file, &identity.key_file]);
        pair.chain(&self.ca_file).map(PathBuf::as_path).collect()
    }
}

// === impl MetricsConfig ===

impl MetricsConfig {
    /// Every file it names.
    #[must_use]
    pub fn files(&self) -> [&Path; 3] {
        let KeyPair {
            cert_file,
            key_file,
        } = &self.identity;
        [cert_file, key_file, &self.client_ca_file]
    }
}

/// How routes are derived where nobody said anything but the app domain; Cloud Foundry's own hosts are
/// reserved all the same.
#[must_use]
pub fn default_options(app_domain: Hostname) -> desired::Options {
    meaning::default_options(app_domain)
}

/// The text of a file.
fn text(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(io::Error::other("it has more than 1 MiB")));
    }
    String::from_utf8(bytes).map_err(|_| unreadable(io::Error::other("it is no UTF-8")))
}

/// A duration as the configuration spells it.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    scalar::duration(text)
}

fn unknown((key, suggestion): (String, Option<String>)) -> Mistake {
    Mistake {
        key,
        message: "is no key of route-sync".to_owned(),
        hint: suggestion.map(|key| format!("did you mean `{key}`?")),
    }
}

fn twice(key: &str) -> String {
    format!("`{key}` stands twice, with the same value")
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
