//! From a kubeconfig, or the pod we run in, to a client that neither hangs nor hides anything.
//!
//! kube's own defaults wait for ever on an answer, repeat refused requests out of sight for minutes, take a
//! proxy from the environment and send a token file's trailing newline as part of the token. Each is undone
//! here and nowhere else. What is asked through the client is the callers' affair.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderValue, Request, Response, StatusCode};
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

use super::Timing;
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
    /// The proxy's address cannot be read.
    #[error("`kubernetes.proxy_url`: `{0}` is no URL; hint: write it as `http://host:port`")]
    Proxy(String),
    /// Certificates, keys or a credential plugin do not work.
    #[error(
        "the credentials for the apiserver do not work; hint: check the files and the `exec` plugin that {origin} names"
    )]
    Credentials {
        /// Where they were named.
        origin: String,
        /// Why.
        source: Box<kube::Error>,
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
pub(super) async fn connect_with(
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
    };
    // An `exec` plugin is run in here and may take its time.
    tokio::task::spawn_blocking(move || {
        ClientBuilder::try_from(kube).map(|builder| builder.with_layer(&layer).build())
    })
    .await
    .map_err(ConnectError::Interrupted)?
    .map_err(|source| ConnectError::Credentials {
        origin,
        source: Box::new(source),
    })
}

/// The apiserver's address, for want of a better name of the cluster.
pub(super) async fn server_url(config: &KubernetesConfig) -> Result<String, ConnectError> {
    let url = load(config).await?.cluster_url.to_string();
    Ok(url.trim_end_matches('/').to_owned())
}

async fn load(config: &KubernetesConfig) -> Result<Config, ConnectError> {
    let (mut kube, proxy) = match &config.kubeconfig {
        Some(file) => from_kubeconfig(file).await?,
        None => (
            Config::incluster().map_err(ConnectError::NotInCluster)?,
            None,
        ),
    };
    // Whatever kube found in the environment is overwritten: its NO_PROXY is matched against the proxy's own
    // address (kube 5.0.0), so that nobody could keep the apiserver off the proxy.
    kube.proxy_url = match config.proxy_url.as_ref().or(proxy.as_ref()) {
        Some(url) => Some(url.parse().map_err(|_| ConnectError::Proxy(url.clone()))?),
        None => None,
    };
    Ok(kube)
}

async fn from_kubeconfig(file: &Path) -> Result<(Config, Option<String>), ConnectError> {
    let explain = |error| explain(file, error);
    let kubeconfig = Kubeconfig::read_from(file).map_err(explain)?;
    let cluster = current_cluster(&kubeconfig).cloned();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(explain)?;
    let mut proxy = None;
    if let Some(cluster) = cluster {
        proxy = cluster.proxy_url.filter(|url| !url.is_empty());
        if cluster.certificate_authority_data.is_none() {
            // kube reads this file again every minute, but only if told its name.
            config.root_cert_file = cluster.certificate_authority.map(PathBuf::from);
        }
    }
    Ok((config, proxy))
}

fn current_cluster(kubeconfig: &Kubeconfig) -> Option<&kube::config::Cluster> {
    let current = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|it| it.name == *current)?;
    let name = &context.context.as_ref()?.cluster;
    let cluster = kubeconfig.clusters.iter().find(|it| it.name == *name)?;
    cluster.cluster.as_ref()
}

fn explain(file: &Path, error: KubeconfigError) -> ConnectError {
    let file = file.to_owned();
    let key = |key, problem: String, hint| ConnectError::Key {
        file: file.clone(),
        key,
        problem,
        hint,
    };
    match error {
        KubeconfigError::ReadConfig(source, _) => ConnectError::Read { file, source },
        KubeconfigError::CurrentContextNotSet => key(
            "current-context",
            "is not set".to_owned(),
            "name one of `contexts`",
        ),
        KubeconfigError::LoadContext(name) => key(
            "current-context",
            format!("names `{name}`, which is not among `contexts`"),
            "name one of `contexts`",
        ),
        KubeconfigError::LoadClusterOfContext(name) => key(
            "contexts[].context.cluster",
            format!("names `{name}`, which is not among `clusters`"),
            "name one of `clusters`",
        ),
        KubeconfigError::MissingClusterUrl => key(
            "clusters[].cluster.server",
            "is missing".to_owned(),
            "write the apiserver's URL, such as `https://10.0.0.1:6443`",
        ),
        KubeconfigError::ParseClusterUrl(source) => key(
            "clusters[].cluster.server",
            format!("is no URL ({source})"),
            "write the apiserver's URL, such as `https://10.0.0.1:6443`",
        ),
        KubeconfigError::LoadCertificateAuthority(source) => key(
            "clusters[].cluster.certificate-authority",
            format!("cannot be used ({source})"),
            "point it to a PEM file",
        ),
        KubeconfigError::ParseCertificates(source) => key(
            "clusters[].cluster.certificate-authority",
            format!("is no PEM ({source})"),
            "point it to a PEM file",
        ),
        KubeconfigError::LoadClientCertificate(source) => key(
            "users[].user.client-certificate",
            format!("cannot be used ({source})"),
            "point it to a PEM file",
        ),
        KubeconfigError::LoadClientKey(source) => key(
            "users[].user.client-key",
            format!("cannot be used ({source})"),
            "point it to a PEM file",
        ),
        _ => ConnectError::Parse {
            line: first_bad_line(&file),
            file,
        },
    }
}

fn first_bad_line(file: &Path) -> Option<usize> {
    let text = std::fs::read_to_string(file).ok()?;
    let error = serde_yaml::from_str::<serde_yaml::Value>(&text).err()?;
    error.location().map(|at| at.line())
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
                .map_err(Into::into)?;
            if let (Some(token), StatusCode::UNAUTHORIZED) = (token, response.status()) {
                token.refused();
            }
            Ok(response)
        })
    }
}
