//! A kubeconfig file: what it names, and which of its keys does not work.
//!
//! kube takes texts here that it panics on later (an address without a scheme, a token with a newline), and its
//! own errors quote the file. Both end here: what leaves is usable, or an error that names a key and no secret. What
//! is done with it is the client's affair.

use std::path::{Path, PathBuf};

use futures::FutureExt as _;
use http::{HeaderValue, Uri};
use kube::Config;
use kube::client::ConfigExt as _;
use kube::config::{AuthInfo, Cluster, KubeConfigOptions, Kubeconfig, KubeconfigError};

use super::client::ConnectError;

const SERVER_HINT: &str = "write the apiserver's URL, such as `https://10.0.0.1:6443`";

/// A kubeconfig, and the proxy that it names.
pub(super) async fn read(file: &Path) -> Result<(Config, Option<Uri>), ConnectError> {
    let explain = |error| explain(file, error);
    let key = |key, problem: &str, hint| ConnectError::Key {
        file: file.to_owned(),
        key,
        problem: problem.to_owned(),
        hint,
    };
    let kubeconfig = Kubeconfig::read_from(file).map_err(explain)?;
    if let Some(user) = missing_user(&kubeconfig) {
        let problem = format!("names `{user}`, which is not among `users`");
        return Err(key(
            "contexts[].context.user",
            &problem,
            "name one of `users`",
        ));
    }
    let cluster = current_cluster(&kubeconfig).cloned().unwrap_or_default();
    // Before kube looks at it: its own words for it are those for the environment's proxy as well.
    let proxy = proxy(&cluster).map_err(|problem| {
        let hint = "write it as `http://host:port`";
        key("clusters[].cluster.proxy-url", problem, hint)
    })?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(explain)?;
    if config.cluster_url.scheme().is_none() {
        let problem = "lacks `https://` (or `http://`)";
        return Err(key("clusters[].cluster.server", problem, SERVER_HINT));
    }
    if let Some(token) = inline_token(&config.auth_info) {
        // Block scalars end in a newline.
        let token = token.trim();
        if HeaderValue::from_str(token).is_err() {
            let problem = "holds what no header can carry";
            return Err(key("users[].user.token", problem, "write the token alone"));
        }
        config.auth_info.token = (!token.is_empty()).then(|| token.to_owned().into());
    }
    if cluster.certificate_authority_data.is_none() {
        // kube reads this file again every minute, but only if told its name.
        config.root_cert_file = cluster.certificate_authority.map(PathBuf::from);
    }
    Ok((config, proxy))
}

/// Whether a kubeconfig can be used. A plugin that it names is not run.
pub(crate) fn check_kubeconfig(file: &Path) -> Result<(), ConnectError> {
    // Without a word from the network it is ready at once (kube 5.0.0); else it is judged when it is used.
    let Some(read) = read(file).now_or_never() else {
        return Ok(());
    };
    let (config, _) = read?;
    let user = &config.auth_info;
    if user.exec.is_some() || user.auth_provider.is_some() || user.token_file.is_some() {
        return Ok(());
    }
    match config.rustls_client_config() {
        Ok(_) => Ok(()),
        Err(source) => Err(ConnectError::Credentials {
            origin: format!("`{}`", file.display()),
            source: Box::new(source),
        }),
    }
}

/// Where the current context names a user who is nowhere. kube would ask as nobody; kubectl refuses it.
fn missing_user(kubeconfig: &Kubeconfig) -> Option<&str> {
    let user = current_context(kubeconfig)?.user.as_deref()?;
    let known = kubeconfig.auth_infos.iter().any(|it| it.name == user);
    (!known && !user.is_empty()).then_some(user)
}

fn current_context(kubeconfig: &Kubeconfig) -> Option<&kube::config::Context> {
    let current = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|it| it.name == *current)?;
    context.context.as_ref()
}

fn current_cluster(kubeconfig: &Kubeconfig) -> Option<&Cluster> {
    let name = &current_context(kubeconfig)?.cluster;
    let cluster = kubeconfig.clusters.iter().find(|it| it.name == *name)?;
    cluster.cluster.as_ref()
}

/// The proxy of a cluster; what is wrong with it is told without it, since it may hold a password.
fn proxy(cluster: &Cluster) -> Result<Option<Uri>, &'static str> {
    let Some(url) = cluster.proxy_url.as_ref().filter(|url| !url.is_empty()) else {
        return Ok(None);
    };
    let url: Uri = url.parse().map_err(|_| "is no URL")?;
    match url.scheme_str() {
        Some("http" | "https") => Ok(Some(url)),
        _ => Err("must be an `http://` or `https://` URL"),
    }
}

/// kube keeps the token in a type of another crate, but writes it out with the rest.
fn inline_token(user: &AuthInfo) -> Option<String> {
    let value = serde_json::to_value(user).ok()?;
    value.get("token")?.as_str().map(str::to_owned)
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
            SERVER_HINT,
        ),
        KubeconfigError::ParseClusterUrl(source) => key(
            "clusters[].cluster.server",
            format!("is no URL ({source})"),
            SERVER_HINT,
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
