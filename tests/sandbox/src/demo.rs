//! The demo: a controller against a foundation in a box, over a folder of manifests.
//!
//! Starts everything on the loopback, plays the node ports, prints a command per route, and then
//! tells what each edit of the folder did to the routers' tables. Knows the controller as a program
//! with a configuration only.

mod controller;
mod folder;
mod foundation;
mod nodes;
mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use self::controller::Controller;
use self::folder::{Change, Folder, What};
use self::foundation::{APP_DOMAIN, Foundation};
use self::nodes::{Backends, NODES};
use self::routes::{Route, Times, asked_for, describe};
use crate::apiserver::{ApiServer, ApiServerOptions, Rules, Token};

/// A save of an editor is noticed within this time.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);
/// How finely the routers' tables are timed.
const TABLE_INTERVAL: Duration = Duration::from_millis(5);
/// Longer than any route takes, a dozen reloads of the TCP router included.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(15);
/// A controller may wait for a router's greeting before it announces anything.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const USER: &str = "route-sync";

#[derive(Clone, Debug)]
pub struct Options {
    pub controller: PathBuf,
    pub manifests: PathBuf,
    /// Written, with the printed commands, once every route is in the tables.
    pub once_ready_file: Option<PathBuf>,
}

struct Demo {
    apiserver: ApiServer,
    foundation: Foundation,
    backends: Backends,
    folder: Folder,
}

/// Runs until Ctrl-C or SIGTERM, or until the controller ends, which is an error.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut demo = Demo::start(&options.manifests).await?;
    // Configuration and kubeconfig hold secrets: readable for the owner alone, and gone at the end.
    let temp = tempfile::Builder::new()
        .prefix("route-sync-demo-")
        .tempdir()?;
    let (config, kubeconfig) = (
        temp.path().join("route-sync.yml"),
        temp.path().join("kubeconfig"),
    );
    let token = demo.token();
    std::fs::write(&kubeconfig, demo.apiserver.kubeconfig(&token))?;
    demo.foundation.write_config(&config, &kubeconfig)?;
    demo.introduce();
    let mut controller = Controller::start(&options.controller, &config)?;
    let outcome = tokio::select! {
        outcome = demo.play(options.once_ready_file.as_deref()) => outcome,
        ended = controller.ended() => match ended {
            Ok(status) => Err(anyhow::anyhow!("the controller ended by itself: {status}")),
            Err(error) => Err(error.into()),
        },
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    say("stopping");
    controller.stop().await?;
    temp.close().context("the temporary files")?;
    outcome
}

// === impl Demo ===

impl Demo {
    async fn start(manifests: &Path) -> anyhow::Result<Self> {
        // The shipped role is what the controller gets, so that the demo shows it to be enough.
        let role = std::fs::read_to_string(manifests.join("rbac.yml"));
        let rules = match role {
            Ok(role) => Rules::of_roles(&role).context("the roles of `rbac.yml`")?,
            Err(_) => Rules::all(),
        };
        let token = format!("{:032x}", rand::random::<u128>());
        let tokens = vec![Token {
            token,
            user: USER.to_owned(),
            rules,
        }];
        let options = ApiServerOptions {
            tokens,
            finish_namespaces: true,
            ..Default::default()
        };
        let apiserver = ApiServer::start(options).await?;
        for (name, ip) in NODES {
            apiserver.node(name, &ip.to_string())?;
        }
        let foundation = Foundation::start().await?;
        let folder = Folder::new(manifests);
        let mut demo = Self {
            apiserver,
            foundation,
            backends: Backends::default(),
            folder,
        };
        let looked = demo.folder.look();
        let changes = looked.with_context(|| format!("`{}`", manifests.display()))?;
        for change in &changes {
            if let Err(line) = demo.take(change) {
                say(&line);
            }
        }
        Ok(demo)
    }

    fn token(&self) -> String {
        self.apiserver
            .tokens()
            .next()
            .unwrap_or_default()
            .to_owned()
    }

    fn introduce(&self) {
        say("a foundation in a box:");
        say(&format!("  {:<12} {}", "API server", self.apiserver.url()));
        for (name, address) in self.foundation.addresses() {
            say(&format!("  {name:<12} {address}"));
        }
        for (name, ip) in NODES {
            say(&format!("  {name:<12} {ip}"));
        }
        say("route-sync starts; it warns that this box has no TLS to speak of, and it is right:");
    }

    /// Waits for the first routes, prints how to reach them, then tells what edits do.
    async fn play(&mut self, once_ready_file: Option<&Path>) -> anyhow::Result<()> {
        let (came, _) = self.settle(&BTreeSet::new(), READY_TIMEOUT).await;
        let (there, missing): (Vec<_>, Vec<_>) = came.iter().partition(|(_, time)| time.is_some());
        for (route, _) in &missing {
            say(&format!(
                "not registered yet: {route}; the controller's log says why"
            ));
        }
        let commands: Vec<_> = there
            .iter()
            .map(|(r, _)| self.foundation.command(r))
            .collect();
        if !commands.is_empty() {
            say("try, in another terminal:");
            commands.iter().for_each(|command| say(command));
        }
        let folder = self.folder.path().display();
        say(&format!(
            "edit the manifests in `{folder}`, a label `http-route-sync` for example, and read here \
             what each change did; Ctrl-C stops"
        ));
        if let Some(path) = once_ready_file
            && missing.is_empty()
        {
            let text: String = commands
                .iter()
                .map(|command| format!("{command}\n"))
                .collect();
            std::fs::write(path, text).with_context(|| format!("`{}`", path.display()))?;
        }
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            // A folder that cannot be read now may be back at the next look.
            let changes = self.folder.look().unwrap_or_default();
            if !changes.is_empty() {
                self.tell(&changes).await;
            }
        }
    }

    /// Applies what changed and tells what became of the routes.
    async fn tell(&mut self, changes: &[Change]) {
        let before = self.foundation.routes();
        let mut taken = Vec::new();
        for change in changes {
            match self.take(change) {
                Ok(line) => taken.push(line),
                Err(line) => say(&line),
            }
        }
        if taken.is_empty() {
            return;
        }
        let (registered, withdrawn) = self.settle(&before, SETTLE_TIMEOUT).await;
        say(&describe(&taken.join(", "), &registered, &withdrawn));
        for route in registered
            .iter()
            .filter(|(_, time)| time.is_some())
            .map(|(r, _)| r)
        {
            say(&self.foundation.command(route));
        }
    }

    /// Applies one file. The line says what happened; as an error, why the last state stays.
    fn take(&mut self, change: &Change) -> Result<String, String> {
        let path = change.path.display();
        let what = match &change.what {
            What::Added => format!("{path} added"),
            What::Changed => format!("{path} changed"),
            What::Removed => format!("{path} removed"),
            What::Unreadable(why) => {
                return Err(format!("{path} does not read, its last state stays: {why}"));
            }
        };
        let mut refused = None;
        for object in &change.apply {
            if let Err(error) = self.apiserver.apply_object(object.clone()) {
                refused.get_or_insert(format!("{what}, but the API server refuses it: {error:#}"));
            }
        }
        for object in &change.delete {
            self.apiserver
                .delete(&object.kind, &object.namespace, &object.name);
        }
        for (addr, error) in self.backends.sync(&self.apiserver.all("Service")) {
            say(&format!("no backend can listen on {addr}: {error}"));
        }
        refused.map_or(Ok(what), Err)
    }

    /// Waits until the tables hold what the labels ask for, and times each route on its way.
    async fn settle(&self, before: &BTreeSet<Route>, timeout: Duration) -> (Times, Times) {
        let start = Instant::now();
        let asked = asked_for(&self.apiserver.all("Service"), APP_DOMAIN);
        let pending = |routes: BTreeSet<Route>| -> Times {
            routes
                .into_iter()
                .map(|route| (route, None))
                .collect::<BTreeMap<_, _>>()
        };
        let mut registered = pending(asked.difference(before).cloned().collect());
        let mut withdrawn = pending(before.difference(&asked).cloned().collect());
        loop {
            let table = self.foundation.routes();
            let now = start.elapsed();
            for (times, there) in [(&mut registered, true), (&mut withdrawn, false)] {
                for (route, time) in times.iter_mut().filter(|(_, time)| time.is_none()) {
                    if table.contains(route) == there {
                        *time = Some(now);
                    }
                }
            }
            let waiting = registered
                .values()
                .chain(withdrawn.values())
                .any(Option::is_none);
            if !waiting || now > timeout {
                return (registered, withdrawn);
            }
            tokio::time::sleep(TABLE_INTERVAL).await;
        }
    }
}

/// One line to whoever looks on. Nobody may: a closed pipe is no reason to stop.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
