//! `register-uaa-client`: makes the client `uaa.client_id` at the UAA, or makes of it what route-sync needs.
//!
//! For foundations whose own manifest cannot take the client. A second run changes nothing. A client that was made by
//! somebody else is not touched unless that is asked for: Cloud Foundry's own components have clients with the same
//! authorities, and another secret locks them out. One that may do, or is used for, anything else never is.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::{Output, render, surroundings};
use crate::config::{Secret, UaaConfig};
use crate::publish::tcp::ConnectError;
use crate::uaa::clients::{Client, Clients, Role};
use crate::uaa::{SCOPES, TokenSource, UaaError, UaaSetupError};

/// What route-sync's client is. A token of ten minutes costs one request each eight, and bounds what a stolen one is
/// good for.
const ROLE: Role<'_> = Role {
    authorities: &SCOPES,
    grant_type: "client_credentials",
    token_validity: 600,
    managed_by: "route-sync register-uaa-client",
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A client of the UAA with the authority `clients.admin`
    #[arg(long, value_name = "ID")]
    admin_client_id: String,
    /// The file that holds its secret
    #[arg(long, value_name = "FILE", value_parser = secret)]
    admin_client_secret_file: Secret,
    /// Change a client that another made, and its secret: whoever uses it is locked out
    #[arg(long)]
    take_over: bool,
}

/// What was done.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct View {
    client: String,
    created: bool,
    /// What of it was changed, by its name at UAA.
    changed: Vec<&'static str>,
    /// What the token that proves it may do.
    scopes: BTreeSet<String>,
}

pub(super) async fn register(
    path: &Path,
    arguments: &Arguments,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let (uaa, warnings) = UaaConfig::load(path, surroundings())?;
    for warning in &warnings {
        render::warning(warning);
    }
    let admin = (
        arguments.admin_client_id.as_str(),
        &arguments.admin_client_secret_file,
    );
    let clients = Clients::new(&uaa, admin).map_err(unusable)?;
    let id = uaa.client_id.as_str();
    let known = clients.get(id).await;
    let known = known.with_context(|| format!("cannot read the client `{id}`"))?;
    let created = known.is_none();
    let mut changed = Vec::new();
    match known {
        None => clients
            .create(id, &uaa.client_secret, ROLE)
            .await
            .with_context(|| format!("cannot make the client `{id}`"))?,
        Some(client) => {
            refuse_strangers(id, &client, arguments.take_over)?;
            changed = client.differs(ROLE);
            if !changed.is_empty() {
                let updated = clients.update(id, client, ROLE).await;
                updated.with_context(|| format!("cannot update the client `{id}`"))?;
            }
            if !accepts(&uaa).await? {
                let set = clients.set_secret(id, &uaa.client_secret).await;
                set.with_context(|| format!("cannot set the secret of the client `{id}`"))?;
                changed.push("secret");
            }
        }
    }
    let view = View {
        client: id.to_owned(),
        created,
        changed,
        scopes: proven(&uaa).await?,
    };
    match output {
        Output::Json => render::print_json(&view)?,
        Output::Text => render::print(&view.text())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whoever may more, or logs users in, is not the client of a route-sync; who may less can be another's all the same.
fn refuse_strangers(id: &str, client: &Client, take_over: bool) -> anyhow::Result<()> {
    let grants = BTreeSet::from([ROLE.grant_type.to_owned()]);
    let beyond: Vec<String> = client
        .authorities()
        .into_iter()
        .filter(|authority| !SCOPES.contains(&authority.as_str()))
        .chain(client.grant_types().difference(&grants).cloned())
        .map(|word| format!("`{word}`"))
        .collect();
    if !beyond.is_empty() {
        bail!(
            "the client `{id}` has {} as well, so it is somebody else's and stays as it is; hint: choose another \
             `uaa.client_id`, or take these from it first",
            beyond.join(", ")
        );
    }
    if !take_over && !client.is_managed_by(ROLE.managed_by) {
        bail!(
            "the client `{id}` was made by somebody else and stays as it is; hint: choose another `uaa.client_id`, or \
             say `--take-over` if nobody else uses it"
        );
    }
    Ok(())
}

/// Whether the client gets a token by the secret of the configuration.
async fn accepts(uaa: &UaaConfig) -> anyhow::Result<bool> {
    match TokenSource::new(uaa).map_err(unusable)?.token().await {
        Ok(_) => Ok(true),
        Err(UaaError::Refused { status: 401, .. }) => Ok(false),
        Err(error) => Err(error).context("cannot tell whether the client's secret is right"),
    }
}

/// The scopes of a token that the client gets now: what it needs, and no more.
async fn proven(uaa: &UaaConfig) -> anyhow::Result<BTreeSet<String>> {
    let id = &uaa.client_id;
    let token = TokenSource::new(uaa).map_err(unusable)?.token().await;
    let token = token.with_context(|| format!("the client `{id}` is set up but gets no token"))?;
    let wanted: BTreeSet<String> = SCOPES.iter().map(ToString::to_string).collect();
    let scopes = token.scopes.unwrap_or_default();
    if scopes != wanted {
        let scopes: Vec<_> = scopes.into_iter().collect();
        let scopes = scopes.join(" ");
        bail!("the client `{id}` is set up but its token has the scopes `{scopes}`");
    }
    Ok(scopes)
}

/// A file or URL that cannot be used is a mistake of the configuration.
fn unusable(error: UaaSetupError) -> ConnectError {
    ConnectError::Uaa(error)
}

fn secret(path: &str) -> Result<Secret, String> {
    Secret::read(Path::new(path))
}

// === impl View ===

impl View {
    fn text(&self) -> String {
        let id = &self.client;
        let mut text = match (self.created, self.changed.as_slice()) {
            (true, _) => format!("client `{id}` created\n"),
            (false, []) => format!("client `{id}` is as it should be, nothing changed\n"),
            (false, changed) => format!("client `{id}` updated: {}\n", changed.join(", ")),
        };
        let scopes: Vec<_> = self.scopes.iter().map(String::as_str).collect();
        let _ = writeln!(text, "it gets tokens with the scopes {}", scopes.join(", "));
        text
    }
}
