//! Where the programs lie: the cache that `setup` fills, and the folder of handed-in binaries.
//!
//! Versions are read from the pins themselves (`NAME/go.mod`, `uaa/pom.xml`), as `setup` does; they
//! stand nowhere else.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const ETCD: &str = include_str!("../etcd/go.mod");
const KUBE_APISERVER: &str = include_str!("../kube-apiserver/go.mod");
const LOCKET: &str = include_str!("../locket/go.mod");
const NATS_SERVER: &str = include_str!("../nats-server/go.mod");
const UAA: &str = include_str!("../uaa/pom.xml");

/// Debian keeps servers where an ordinary user's PATH does not look.
const SERVER_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// A binary that someone handed to the suite, if it is there: `gorouter`, `routing-api` or
/// `cf-tcp-router`, in `$ROUTE_SYNC_COUNTERPARTS`, else in `route-sync/counterparts` under the
/// user's cache folder.
pub fn handed_in(name: &str) -> Option<PathBuf> {
    let folder = match env::var_os("ROUTE_SYNC_COUNTERPARTS") {
        Some(folder) => PathBuf::from(folder),
        None => user_cache()?.join("route-sync/counterparts"),
    };
    Some(folder.join(name)).filter(|path| path.is_file())
}

/// Tells that a statement was not confirmed on a handed-in program, because nobody handed it in: to
/// the terminal past the test runner's capture, and into the file `$ROUTE_SYNC_UNCONFIRMED` if that
/// is set, one line each, for the run's closing lines.
pub fn not_confirmed(program: &str, statement: &str) {
    use std::io::Write;
    let line = format!("not confirmed on the real {program} (absent): {statement}\n");
    // Telling is all that can be done; a closed terminal is no reason to fail.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(file) = env::var_os("ROUTE_SYNC_UNCONFIRMED") {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(file);
        let mut file = file.expect("the file named by `ROUTE_SYNC_UNCONFIRMED` must be writable");
        file.write_all(line.as_bytes())
            .expect("the file named by `ROUTE_SYNC_UNCONFIRMED` must take a line");
    }
}

/// The same as [`handed_in`], for a program that cannot go on without it.
pub(crate) fn required(name: &str) -> Result<PathBuf> {
    handed_in(name).with_context(|| format!("`{name}` was not handed in"))
}

/// A file of a program that `setup` has set up, such as `("etcd", "etcd")`.
pub(crate) fn set_up(name: &str, file: &str) -> Result<PathBuf> {
    let path = cache()?
        .join("programs")
        .join(format!("{name}-{}", version(name)?))
        .join(file);
    ensure!(
        path.exists(),
        "`{}` is missing; hint: run tests/counterparts/setup",
        path.display()
    );
    Ok(path)
}

/// A program of a Debian package.
pub(crate) fn installed(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SERVER_FOLDERS.map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("`{name}` is missing; hint: run tests/counterparts/setup"))
}

/// The pinned version of a program that `setup` sets up.
pub fn version(name: &str) -> Result<String> {
    let version = match name {
        "etcd" => tool_version(ETCD),
        "kube-apiserver" => tool_version(KUBE_APISERVER),
        "locket" => tool_version(LOCKET),
        "nats-server" => tool_version(NATS_SERVER),
        "uaa" => UAA
            .split_once("<uaa.version>")
            .and_then(|(_, rest)| rest.split_once('<'))
            .map(|(version, _)| version),
        _ => None,
    };
    version
        .map(str::to_owned)
        .with_context(|| format!("no pin for `{name}`"))
}

/// The version of the module that the go.mod's one `tool` lies in.
fn tool_version(go_mod: &str) -> Option<&str> {
    let tool = go_mod.lines().find_map(|line| line.strip_prefix("tool "))?;
    go_mod.lines().find_map(|line| {
        let mut words = line.trim_start_matches("require ").split_whitespace();
        let module = words.next()?;
        let version = words.next()?.strip_prefix('v')?;
        Path::new(tool).starts_with(module).then_some(version)
    })
}

fn cache() -> Result<PathBuf> {
    env::var_os("ROUTE_SYNC_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(user_cache()?.join("route-sync")))
        .context("neither `ROUTE_SYNC_CACHE` nor `HOME` is set")
}

fn user_cache() -> Option<PathBuf> {
    env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_has_one_pinned_version() {
        for name in ["etcd", "kube-apiserver", "locket", "nats-server", "uaa"] {
            let version = version(name).unwrap();
            assert_eq!(version.split('.').count(), 3, "{name} {version}");
        }
        assert!(version("sendmail").is_err());
    }
}
