//! The running process, asked by its admin listener: where it listens, and how its answers are read.
//!
//! What is asked for, and what an answer comes to, is the commands' own.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use reqwest::StatusCode;
use serde::de::DeserializeOwned;

use crate::admin::json::StandsBy;
use crate::config::{Config, Surroundings};
use crate::quote::one_line;

/// It answers from memory, and a drain within 9 s, done or not.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// What becomes of a word that the process took in.
pub(super) enum Answer<D, R> {
    /// It was done.
    Done(D),
    /// It was not, for a reason of the word's own.
    Refused(R),
}

/// Where the running process listens.
pub(super) fn address(admin: Option<SocketAddr>, path: &Path) -> anyhow::Result<SocketAddr> {
    match admin {
        Some(address) => Ok(address),
        None => configured(path),
    }
}

/// One of its pages.
pub(super) async fn page(address: SocketAddr, name: &str) -> anyhow::Result<String> {
    let answer = client()?
        .get(format!("http://{address}/{name}"))
        .send()
        .await?;
    Ok(answer.error_for_status()?.text().await?)
}

/// Tells it to do something; `lost` says what it means that no answer came.
pub(super) async fn tell<D: DeserializeOwned, R: DeserializeOwned>(
    address: SocketAddr,
    word: &str,
    body: &str,
    lost: impl Fn() -> String,
) -> anyhow::Result<Answer<D, R>> {
    let sent = client()?
        .post(format!("http://{address}/{word}"))
        .body(body.to_owned())
        .send()
        .await;
    let answer = sent.with_context(&lost)?;
    let code = answer.status();
    let text = answer.text().await.with_context(&lost)?;
    match code {
        StatusCode::OK => Ok(Answer::Done(read(address, &text)?)),
        StatusCode::CONFLICT => Ok(Answer::Refused(read(address, &text)?)),
        _ => match stands_by(code, &text) {
            Some(error) => Err(error),
            None => bail!("`{address}` answered {code}: {}", text.trim()),
        },
    }
}

pub(super) fn unreachable(address: SocketAddr) -> String {
    format!("cannot ask route-sync at `{address}`; is it running, and is this its `admin.listen`?")
}

fn configured(path: &Path) -> anyhow::Result<SocketAddr> {
    // Whoever asks need not be allowed to read the secrets.
    let surroundings = Surroundings {
        in_pod: true,
        files: false,
    };
    match Config::load(path, surroundings)?.admin {
        Some(address) => Ok(address),
        None => bail!("`admin.listen` is off in `{}`", path.display()),
    }
}

fn client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(ANSWER_WAIT)
        .build()
}

fn read<T: DeserializeOwned>(address: SocketAddr, text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text).with_context(|| format!("`{address}` answered something else"))
}

/// What an instance answers that stands by, whatever it was asked to do.
fn stands_by(code: StatusCode, text: &str) -> Option<anyhow::Error> {
    if code != StatusCode::MISDIRECTED_REQUEST {
        return None;
    }
    let StandsBy { holder } = serde_json::from_str(text).ok()?;
    Some(if holder.is_empty() {
        anyhow!("this instance stands by, and nobody is known to hold the Lease")
    } else {
        let holder = one_line(&holder);
        anyhow!("this instance stands by: `{holder}` holds the Lease; hint: ask that instance")
    })
}
