//! From the apiserver's address and credentials to a client that neither hangs nor hides anything.
//!
//! kube's own defaults wait for ever on an answer, repeat refused requests out of sight for minutes, take a
//! proxy from the environment and send a token file's trailing newline as part of the token. Each is undone
//! here and nowhere else. What is asked through the client is the callers' affair.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

// The trait of `http-body`, which is no dependency of its own.
use axum::body::HttpBody;
use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderValue, Request, Response, StatusCode};
use kube::client::{AuthError, Body, ClientBuilder};
use kube::{Client, Config};
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

use super::{Timing, kubeconfig};
use crate::config::KubernetesConfig;

/// How long a token that was read from a file is used before the file is read again. kubelet rotates tokens
/// long before they expire; a token that is refused is read again at once.
const TOKEN_REREAD: Duration = Duration::from_secs(30);

/// What we call ourselves in the apiserver's audit log.
const AGENT: &str = concat!("route-sync/", env!("CARGO_PKG_VERSION"));

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be read.
    #[error("cannot read kubeconfig `{}`; hint: check `kube_config_path` and the file's rights", .file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kubeconfig is not one. The parser's own words are left out: they quote the neighbouring lines,
    /// which may hold a token.
    #[error("`{}` is no kubeconfig{}; hint: `kubectl --kubeconfig {} config view` tells more", .file.display(), at_line(*.line), .file.display())]
    Parse {
        /// Which file.
        file: PathBuf,
        /// The first line that is no YAML, if it is no YAML at all.
        line: Option<usize>,
    },
    /// A key of the kubeconfig is missing or names nothing.
    #[error("`{}`: key `{key}` {problem}; hint: {hint}", .file.display())]
    Key {
        /// Which file.
        file: PathBuf,
        /// Which key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
        /// What to do next.
        hint: &'static str,
    },
    /// We do not run in a pod, or without its service account.
    #[error(
        "no kubeconfig is configured and this is no pod with a service account; hint: set `kube_config_path`"
    )]
    NotInCluster(#[source] kube::config::InClusterError),
    /// The proxy's address cannot be read. It may hold a password, so that it is not quoted.
    #[error("`kubernetes.proxy_url` is no URL; hint: write it as `http://host:port`")]
    Proxy,
    /// Certificates or keys do not work.
    #[error(
        "the credentials for the apiserver do not work; hint: check the files that {origin} names"
    )]
    Credentials {
        /// Where they were named.
        origin: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// A credential plugin does not work.
    #[error(
        "the credentials for the apiserver do not work; hint: run the `exec` plugin of {origin} by hand"
    )]
    Plugin {
        /// Where it was named.
        origin: String,
        /// Why.
        source: PluginError,
    },
    /// Making the client panicked or was cancelled.
    #[error("making the client for the apiserver failed")]
    Interrupted(#[source] tokio::task::JoinError),
}

/// The apiserver sent no response header in time.
#[derive(Debug, thiserror::Error)]
#[error("the apiserver did not begin to answer within {}", crate::kubernetes::seconds(*.0))]
struct HeaderTimeout(Duration);

/// A token file cannot be read or holds no token.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error("cannot read the token file `{}`", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    #[error("the token file `{}` holds no token", .0.display())]
    Empty(PathBuf),
}

/// What is wrong with a credential plugin, in our own words: kube's show its arguments, its environment and what
/// it printed (kube 5.0.0), and each of them holds secrets.
#[derive(Debug, thiserror::Error)]
#[error("the credential plugin{} {problem}", named(.command.as_deref()))]
pub struct PluginError {
    command: Option<String>,
    problem: String,
}

/// A bearer token that lives in a file.
struct TokenFile {
    path: PathBuf,
    // A std mutex, because it is never held over an await.
    last: Mutex<Option<(HeaderValue, Instant)>>,
}

/// Puts [`Rim`] around a service.
#[derive(Clone)]
struct RimLayer {
    header_timeout: Duration,
    token: Option<Arc<TokenFile>>,
    /// What refreshes the token, if a program does.
    plugin: Option<String>,
}

/// Adds the token and bounds the wait for the response header. Only for the header: a watch's body is meant
/// to last, but its header comes at once.
struct Rim<S> {
    inner: S,
    layer: RimLayer,
}

/// Makes a client. The files named by the kubeconfig are read now; whoever wants rotated client certificates
/// connects again.
///
/// # Errors
/// Names the file, the key and what to do about it. That the apiserver is unreachable is none of them.
pub async fn connect(config: &KubernetesConfig) -> Result<Client, ConnectError> {
    connect_with(config, &Timing::default()).await
}

/// The same under other times.
pub(crate) async fn connect_with(
    config: &KubernetesConfig,
    timing: &Timing,
) -> Result<Client, ConnectError> {
    let origin = origin(config);
    let mut kube = load(config).await?;
    kube.default_retry = false;
    kube.connect_timeout = Some(timing.connect_timeout);
    kube.read_timeout = Some(timing.watch_timeout_max() + timing.watch_grace);
    // Else the time a pooled connection sat idle counts against the next answer.
    kube.reset_reader_on_write = true;
    kube.headers
        .push((USER_AGENT, HeaderValue::from_static(AGENT)));
    let token = kube.auth_info.token_file.take().map(|path| {
        // As kubectl has it: the file wins over an inline token.
        kube.auth_info.token = None;
        Arc::new(TokenFile {
            path: PathBuf::from(path),
            last: Mutex::new(None),
        })
    });
    let layer = RimLayer {
        header_timeout: timing.header_timeout,
        token,
        plugin: kube
            .auth_info
            .exec
            .as_ref()
            .and_then(|exec| exec.command.clone()),
    };
    let plugin = layer.plugin.clone();
    // An `exec` plugin is run in here and may take its time.
    tokio::task::spawn_blocking(move || {
        ClientBuilder::try_from(kube).map(|builder| builder.with_layer(&layer).build())
    })
    .await
    .map_err(ConnectError::Interrupted)?
    .map_err(|error| match error {
        kube::Error::Auth(error) => ConnectError::Plugin {
            origin,
            source: PluginError::of(plugin, error),
        },
        other => ConnectError::Credentials {
            origin,
            source: Box::new(other),
        },
    })
}

/// A client over whatever carries requests, under the same limits. Credentials are the carrier's affair.
#[must_use]
pub fn client_over<S, B>(carrier: S, timing: &Timing) -> Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: HttpBody<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let layer = RimLayer {
        header_timeout: timing.header_timeout,
        token: None,
        plugin: None,
    };
    Client::new(layer.layer(carrier), "default")
}

/// The apiserver's address, for want of a better name of the cluster. Asks nobody.
///
/// # Errors
/// Where the kubeconfig cannot be used.
pub async fn server_url(config: &KubernetesConfig) -> Result<String, ConnectError> {
    let url = load(config).await?.cluster_url.to_string();
    Ok(url.trim_end_matches('/').to_owned())
}

async fn load(config: &KubernetesConfig) -> Result<Config, ConnectError> {
    let (mut kube, proxy) = match &config.kubeconfig {
        Some(file) => kubeconfig::read(file).await?,
        None => (
            Config::incluster().map_err(ConnectError::NotInCluster)?,
            None,
        ),
    };
    // Whatever kube found in the environment is overwritten: its NO_PROXY is matched against the proxy's own
    // address (kube 5.0.0), so that nobody could keep the apiserver off the proxy.
    kube.proxy_url = match &config.proxy_url {
        Some(url) => Some(url.parse().map_err(|_| ConnectError::Proxy)?),
        None => proxy,
    };
    Ok(kube)
}

fn at_line(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(" (line {line})"))
}

fn origin(config: &KubernetesConfig) -> String {
    match &config.kubeconfig {
        Some(file) => format!("`{}`", file.display()),
        None => "the pod's service account".to_owned(),
    }
}

fn named(command: Option<&str>) -> String {
    command.map_or_else(String::new, |command| format!(" `{command}`"))
}

// === impl PluginError ===

impl PluginError {
    fn of(command: Option<String>, error: AuthError) -> Self {
        let problem = match error {
            AuthError::AuthExecStart(error) => format!("cannot be started: {error}"),
            AuthError::AuthExecRun { out, .. } => format!("fails ({})", out.status),
            AuthError::AuthExecParse(_) => "prints no `ExecCredential`".to_owned(),
            AuthError::ExecPluginFailed => "prints no `status`".to_owned(),
            AuthError::MalformedTokenExpirationDate(_) => {
                "prints an `expirationTimestamp` that is none".to_owned()
            }
            AuthError::InvalidBearerToken(_) => {
                "prints a token that no header can carry".to_owned()
            }
            AuthError::MissingCommand => "has no `command`".to_owned(),
            // kube's own sentence about the older `auth-provider`, which quotes its name or path at most.
            AuthError::AuthExec(text) => format!("cannot be used: {text}"),
            _ => "brings no credentials".to_owned(),
        };
        Self { command, problem }
    }
}

// === impl TokenFile ===

impl TokenFile {
    fn header(&self) -> Result<HeaderValue, TokenError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((header, read)) = &*last
            && read.elapsed() < TOKEN_REREAD
        {
            return Ok(header.clone());
        }
        let fresh = self.read();
        match (&fresh, &mut *last) {
            (Ok(header), last) => *last = Some((header.clone(), Instant::now())),
            // A projected volume is swapped while we look: the last token is still good for a while.
            (Err(_), Some((header, read))) => {
                *read = Instant::now();
                return Ok(header.clone());
            }
            (Err(_), None) => {}
        }
        fresh
    }

    fn read(&self) -> Result<HeaderValue, TokenError> {
        let text = std::fs::read_to_string(&self.path)
            .map_err(|error| TokenError::Read(self.path.clone(), error))?;
        // Templates end in a newline, which no header may hold.
        let header = HeaderValue::try_from(format!("Bearer {}", text.trim()));
        match header {
            Ok(mut header) if !text.trim().is_empty() => {
                header.set_sensitive(true);
                Ok(header)
            }
            _ => Err(TokenError::Empty(self.path.clone())),
        }
    }

    fn refused(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

// === impl Rim ===

impl<S> Layer<S> for RimLayer {
    type Service = Rim<S>;

    fn layer(&self, inner: S) -> Rim<S> {
        Rim {
            inner,
            layer: self.clone(),
        }
    }
}

impl<S, B> Service<Request<Body>> for Rim<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let RimLayer {
            header_timeout,
            token,
            plugin,
        } = self.layer.clone();
        if let Some(token) = &token {
            match token.header() {
                Ok(header) => {
                    request.headers_mut().insert(AUTHORIZATION, header);
                }
                Err(error) => return Box::pin(std::future::ready(Err(error.into()))),
            }
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = tokio::time::timeout(header_timeout, answer)
                .await
                .map_err(|_| HeaderTimeout(header_timeout))?
                .map_err(|error| match error.into().downcast::<AuthError>() {
                    Ok(error) => BoxError::from(PluginError::of(plugin, *error)),
                    Err(other) => other,
                })?;
            if let (Some(token), StatusCode::UNAUTHORIZED) = (token, response.status()) {
                token.refused();
            }
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causes::chain;

    #[tokio::test]
    async fn a_plugin_that_fails_at_a_refresh_shows_nothing_of_itself() {
        let refused = |_: Request<Body>| async {
            let out = std::process::Command::new("sh")
                .args(["-c", "echo hunter2; exit 3"])
                .output()?;
            let cmd = "KEY=hunter3 sh -c hunter4".to_owned();
            let out = Box::new(out);
            Err::<Response<Body>, BoxError>(AuthError::AuthExecRun { cmd, out }.into())
        };
        let layer = RimLayer {
            header_timeout: Duration::from_mins(1),
            token: None,
            plugin: Some("sh".to_owned()),
        };
        let mut rim = layer.layer(tower::service_fn(refused));
        let error = rim.call(Request::new(Body::empty())).await.unwrap_err();
        assert_eq!(
            chain(&*error),
            "the credential plugin `sh` fails (exit status: 3)"
        );
        assert!(!format!("{error:?}").contains("hunter"), "{error:?}");
    }
}
