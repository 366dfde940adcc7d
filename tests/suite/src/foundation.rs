//! A whole foundation, and the two ways its routers are had.
//!
//! One per test process: starting an apiserver and a UAA for each scenario would take longer than the scenarios.
//! Whatever a scenario stops it starts again; what it left in the cluster and in the routing API is cleared away
//! before the next.

use std::net::SocketAddr;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use counterparts::stack::{APP_DOMAIN, CLIENT, SYSTEM_DOMAIN};
use counterparts::{
    Program as _, Stack, StackOptions, TokenUser, UaaClient, handed_in, not_confirmed,
};
use futures::FutureExt;
use sandbox::http_router::{HttpRouter, HttpRouterOptions};
use sandbox::routing_api::{RoutingApi, RoutingApiOptions};
use sandbox::tcp_router::{TcpRouter, TcpRouterOptions, TokenSource};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::cluster::Cluster;
use crate::controller::{Controller, Settings};
use crate::front::{self, identity};

/// The router group's range: what cf-deployment seeds, the mysql example's port, and room for bulk.
pub const RESERVABLE_PORTS: &str = "1024-1999,34569";
/// A second group of type tcp, for whoever asks for it by name: its name and its range.
pub const OTHER_GROUP: (&str, &str) = ("other-tcp", "2000-2099");
/// A token of the user whom `examples/rbac.yml` names.
pub const EXAMPLE_TOKEN: &str = "example-token";
/// A token of a user without any right, until a scenario grants some.
pub const POOR_TOKEN: &str = "poor-token";
/// Its name.
pub const POOR_USER: &str = "poor";
/// Longer than any run of the tests.
const EVENT_STREAM_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How far the node ports of the real stage lie above those of the sandbox's.
const REAL_NODE_PORTS: u16 = 50;
/// The routers that no registry has.
const HANDED_IN: [&str; 3] = ["gorouter", "routing-api", "cf-tcp-router"];

/// Whose routers and routing API a scenario runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The sandbox's.
    Sandbox,
    /// The real ones.
    Real,
}

/// The routers and the routing API of the sandbox, beside the real apiserver, NATS and UAA.
pub struct Boxed {
    pub tcp_router: TcpRouter,
    pub http_router: HttpRouter,
    pub routing_api: RoutingApi,
    mtls: SocketAddr,
}

/// Everything there is, as one scenario sees it.
pub struct Foundation {
    /// Which routers count.
    pub stage: Stage,
    /// The real programs.
    pub stack: Stack,
    /// The sandbox's.
    pub boxed: Boxed,
    /// The cluster.
    pub cluster: Cluster,
    ports: u16,
}

/// Runs a scenario with the sandbox's routers and then with the real ones; `statement` is what it shows.
pub fn on_each_stage(statement: &str, scenario: impl AsyncFn(&mut Foundation)) {
    on_stage(Stage::Sandbox, &scenario);
    on_real_stage(statement, scenario);
}

/// Runs a scenario with the real routers alone: it shows what the sandbox's cannot play.
pub fn on_real_stage(statement: &str, scenario: impl AsyncFn(&mut Foundation)) {
    let absent: Vec<&str> = HANDED_IN
        .into_iter()
        .filter(|name| handed_in(name).is_none())
        .collect();
    if absent.is_empty() {
        on_stage(Stage::Real, &scenario);
    }
    for program in absent {
        not_confirmed(program, statement);
    }
}

/// Runs a scenario at one stage.
pub fn on_stage(stage: Stage, scenario: impl AsyncFn(&mut Foundation)) {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    static FOUNDATION: Mutex<Option<Foundation>> = Mutex::new(None);
    let runtime = RUNTIME.get_or_init(|| Runtime::new().expect("a runtime must start"));
    // A scenario that failed poisons nothing: the next begins with a clearing.
    let mut slot = FOUNDATION
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    runtime.block_on(async {
        if slot.is_none() {
            *slot = Some(
                Foundation::start()
                    .await
                    .expect("the foundation must start"),
            );
        }
        let foundation = slot
            .as_mut()
            .expect("a foundation that was just started must be there");
        foundation.stage = stage;
        foundation
            .clear()
            .await
            .expect("what earlier scenarios left must go");
        println!("-- {stage:?}");
        let start = tokio::time::Instant::now();
        let outcome = std::panic::AssertUnwindSafe(scenario(foundation))
            .catch_unwind()
            .await;
        println!("-- {stage:?} took {:.1} s", start.elapsed().as_secs_f64());
        if let Err(panic) = outcome {
            // What it stopped may still be stopped: the next scenario gets a new foundation.
            *slot = None;
            std::panic::resume_unwind(panic);
        }
    });
}

/// The text of one of the project's examples.
pub fn example(name: &str) -> String {
    let path = format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).expect("the example must be there")
}

// === impl Foundation ===

impl Foundation {
    async fn start() -> Result<Self> {
        let mut options = StackOptions::default();
        let group = counterparts::RouterGroup::tcp("default-tcp", RESERVABLE_PORTS);
        let other = counterparts::RouterGroup::tcp(OTHER_GROUP.0, OTHER_GROUP.1);
        options.routing_api.router_groups = vec![group, other];
        let user = |token: &str, user: &str| TokenUser {
            token: token.to_owned(),
            user: user.to_owned(),
            groups: Vec::new(),
        };
        options.apiserver.users = vec![
            user(EXAMPLE_TOKEN, "route-sync"),
            user(POOR_TOKEN, POOR_USER),
        ];
        let stack = Stack::start(options).await?;
        let boxed = Boxed::start(&stack).await?;
        let cluster = Cluster::new(&stack);
        Ok(Self {
            stage: Stage::Sandbox,
            stack,
            boxed,
            cluster,
            ports: 1034,
        })
    }

    /// Nothing of an earlier scenario is left in the cluster or in either routing API.
    pub async fn clear(&mut self) -> Result<()> {
        self.cluster.clear().await?;
        self.boxed.routing_api.delete_rows(|_| true);
        if self.stack.routing_api.is_some() {
            let rows = self.real_rows().await?;
            self.real_post("delete", &Value::from(rows)).await?;
        }
        Ok(())
    }

    /// A router port that no scenario has used yet.
    pub fn port(&mut self) -> u16 {
        self.ports += 1;
        self.ports
    }

    /// A node port that is no other stage's: what a scenario leaves unlabelled keeps its own.
    pub fn node_port(&self, port: u16) -> u16 {
        match self.stage {
            Stage::Sandbox => port,
            Stage::Real => port + REAL_NODE_PORTS,
        }
    }

    /// A name that is no other stage's.
    pub fn name(&self, name: &str) -> String {
        match self.stage {
            Stage::Sandbox => format!("{name}-box"),
            Stage::Real => format!("{name}-real"),
        }
    }

    /// The address of a host below the app domain.
    pub fn host(&self, label: &str) -> String {
        format!("{label}.{APP_DOMAIN}")
    }

    /// Where HTTP clients go.
    pub fn http(&self) -> SocketAddr {
        match self.stage {
            Stage::Sandbox => self.boxed.http_router.addr(),
            Stage::Real => self.gorouter().address(),
        }
    }

    /// Where TCP clients go.
    pub fn tcp(&self, port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// The real gorouter.
    pub fn gorouter(&self) -> &counterparts::Gorouter {
        self.stack
            .gorouter
            .as_ref()
            .expect("the real stage must have a gorouter")
    }

    /// The HTTP router's table, in gorouter's own shape.
    pub async fn http_routes(&self) -> Value {
        match self.stage {
            Stage::Sandbox => self.boxed.http_router.routes(),
            Stage::Real => self
                .gorouter()
                .routes()
                .await
                .expect("gorouter must tell its table"),
        }
    }

    /// Every row of the routing API.
    pub async fn rows(&self) -> Vec<Value> {
        match self.stage {
            Stage::Sandbox => {
                let rows = self.boxed.routing_api.rows();
                rows.iter()
                    .map(|row| serde_json::to_value(row).expect("a row must be JSON"))
                    .collect()
            }
            Stage::Real => self
                .real_rows()
                .await
                .expect("the routing API must list its rows"),
        }
    }

    /// The rows of one port.
    pub async fn rows_of(&self, port: u16) -> Vec<Value> {
        self.rows()
            .await
            .into_iter()
            .filter(|row| row["port"] == port)
            .collect()
    }

    /// A row as the old job writes it: no TLS port, no id.
    pub async fn row_of_the_old_job(&self, port: u16, backend: SocketAddr, ttl: u16) -> Value {
        json!({
            "router_group_guid": self.router_group().await, "port": port,
            "backend_ip": backend.ip(), "backend_port": backend.port(), "ttl": ttl,
        })
    }

    /// A row as everybody else writes it, under the writer's own id.
    pub async fn row_by(&self, writer: &str, port: u16, backend: SocketAddr, ttl: u16) -> Value {
        let mut row = self.row_of_the_old_job(port, backend, ttl).await;
        row["backend_tls_port"] = json!(-1);
        row["instance_id"] = json!(writer);
        row
    }

    /// Puts a row there that is not ours.
    pub async fn insert_row(&self, row: Value) {
        let row = match self.stage {
            Stage::Sandbox => {
                let url = self.boxed.routing_api.url();
                self.post(&url, "create", &Value::from(vec![row])).await
            }
            Stage::Real => self.real_post("create", &Value::from(vec![row])).await,
        };
        row.expect("the routing API must take the row");
    }

    /// Takes a row away, whoever wrote it.
    pub async fn delete_row(&self, row: Value) {
        let rows = Value::from(vec![row]);
        let deleted = match self.stage {
            Stage::Sandbox => {
                self.post(&self.boxed.routing_api.url(), "delete", &rows)
                    .await
            }
            Stage::Real => self.real_post("delete", &rows).await,
        };
        deleted.expect("the routing API must take the deletion");
    }

    /// The guid of `default-tcp`.
    pub async fn router_group(&self) -> String {
        self.router_group_named("default-tcp").await
    }

    /// The guid of a router group.
    pub async fn router_group_named(&self, name: &str) -> String {
        let token = self.stack.token().await.expect("the UAA must give a token");
        let url = format!("{}/routing/v1/router_groups?name={name}", self.api_url());
        let client = self.stack.pki.http_client().expect("a client must be had");
        let answer = client
            .get(url)
            .bearer_auth(token)
            .send()
            .await
            .expect("it must answer");
        let groups: Value = answer.json().await.expect("router groups must be JSON");
        groups[0]["guid"]
            .as_str()
            .expect("there must be a router group")
            .to_owned()
    }

    /// The routing API's mutual-TLS entry.
    pub fn api_url(&self) -> String {
        match self.stage {
            Stage::Sandbox => format!("https://{}", self.boxed.mtls),
            Stage::Real => self.real_api().mtls_url(),
        }
    }

    /// The routing API's plain entry.
    pub fn plain_api_url(&self) -> String {
        match self.stage {
            Stage::Sandbox => self.boxed.routing_api.url(),
            Stage::Real => self.real_api().http_url(),
        }
    }

    fn real_api(&self) -> &counterparts::RoutingApi {
        self.stack
            .routing_api
            .as_ref()
            .expect("the real stage must have a routing API")
    }

    fn real_api_mut(&mut self) -> &mut counterparts::RoutingApi {
        self.stack
            .routing_api
            .as_mut()
            .expect("the real stage must have a routing API")
    }

    /// How often the TCP router's HAProxy was reloaded.
    pub fn reloads(&self) -> usize {
        match self.stage {
            Stage::Sandbox => {
                usize::try_from(self.boxed.tcp_router.reloads()).unwrap_or(usize::MAX)
            }
            Stage::Real => {
                let router = self.stack.tcp_router.as_ref();
                router
                    .expect("the real stage must have a TCP router")
                    .reload_count()
            }
        }
    }

    /// How often HAProxy refused its whole configuration: then nobody's change lands.
    pub fn refused_reloads(&self) -> usize {
        match self.stage {
            Stage::Sandbox => {
                usize::try_from(self.boxed.tcp_router.failed_reloads()).unwrap_or(usize::MAX)
            }
            Stage::Real => {
                let router = self.stack.tcp_router.as_ref();
                router
                    .expect("the real stage must have a TCP router")
                    .refusal_count()
            }
        }
    }

    /// Stops the routing API; its rows stay.
    pub async fn stop_routing_api(&mut self) {
        match self.stage {
            Stage::Sandbox => self.boxed.routing_api.stop().await,
            Stage::Real => self.real_api_mut().stop().await,
        }
    }

    /// Starts it again. The real one, where it was killed, first waits for its own lock: 15 s.
    pub async fn start_routing_api(&mut self) {
        let started = match self.stage {
            Stage::Sandbox => self.boxed.routing_api.start_again().await,
            Stage::Real => self.real_api_mut().begin().await,
        };
        started.expect("the routing API must start again");
    }

    /// The routing API with another `max_ttl`. The real one restarts, which takes its lock's 15 s.
    pub async fn set_max_ttl(&mut self, seconds: u32) {
        match self.stage {
            Stage::Sandbox => self.boxed.routing_api.set_max_ttl(seconds),
            Stage::Real => {
                let seconds = Duration::from_secs(seconds.into());
                let set = self.real_api_mut().set_max_ttl(seconds).await;
                set.expect("the routing API must start again");
            }
        }
    }

    /// Another range of `default-tcp`, as an operator with the right scope sets it.
    pub async fn set_reservable_ports(&self, ports: &str) {
        let guid = self.router_group().await;
        match self.stage {
            Stage::Sandbox => {
                let mut group = sandbox::routing_api::RouterGroup::tcp("default-tcp", ports);
                group.guid = guid;
                self.boxed.routing_api.set_router_groups(vec![group]);
            }
            Stage::Real => {
                let scopes = ["routing.router_groups.read", "routing.router_groups.write"];
                self.uaa_client(&UaaClient::new("operator", "operator-secret", &scopes))
                    .await;
                let token = self.stack.uaa.token("operator", "operator-secret").await;
                let token = token.expect("the UAA must give a token");
                let url = format!("{}/routing/v1/router_groups/{guid}", self.api_url());
                let client = self.stack.pki.http_client().expect("a client must be had");
                let body = json!({"reservable_ports": ports});
                let answer = client.put(url).bearer_auth(token).json(&body).send().await;
                let answer = answer.expect("the routing API must answer");
                assert!(answer.status().is_success(), "{:?}", answer.text().await);
            }
        }
    }

    /// A client of the running UAA, made anew; a restart of the UAA forgets it.
    pub async fn uaa_client(&self, client: &UaaClient) {
        let uaa = &self.stack.uaa;
        // It may not be there.
        let _ = uaa
            .admin(
                "DELETE",
                &format!("/oauth/clients/{}", client.id),
                &json!({}),
            )
            .await;
        let body = json!({
            "client_id": client.id, "client_secret": client.secret,
            "authorized_grant_types": ["client_credentials"], "authorities": client.authorities,
            "access_token_validity": client.access_token_validity_secs,
        });
        uaa.admin("POST", "/oauth/clients", &body)
            .await
            .expect("the UAA must take the client");
    }

    /// Nodes `n1` to `n<count>` with the addresses 10.0.0.1 and on.
    pub async fn nodes(&self, count: u8) {
        for index in 1..=count {
            let (name, ip) = (format!("n{index}"), format!("10.0.0.{index}"));
            self.cluster
                .node(&name, &ip)
                .await
                .expect("a Node must be taken");
        }
    }

    /// The controller with this foundation's settings.
    pub async fn controller(&self) -> Controller {
        self.controller_with(|_| {}).await
    }

    /// The controller with settings of the scenario's own.
    pub async fn controller_with(&self, change: impl FnOnce(&mut Settings)) -> Controller {
        let mut settings = Settings::new(self).expect("settings must be written");
        change(&mut settings);
        let mut controller = Controller::start(settings)
            .await
            .expect("the controller must start");
        controller.ready().await;
        controller
    }

    /// The controller while something keeps it from being ready.
    pub async fn unready_controller(&self, change: impl FnOnce(&mut Settings)) -> Controller {
        let mut settings = Settings::new(self).expect("settings must be written");
        change(&mut settings);
        Controller::start(settings)
            .await
            .expect("the controller must start")
    }

    async fn real_rows(&self) -> Result<Vec<Value>> {
        let token = self.stack.token().await?;
        let rows = self
            .real_api()
            .get("/routing/v1/tcp_routes", &token)
            .await?;
        Ok(rows.as_array().cloned().unwrap_or_default())
    }

    async fn real_post(&self, what: &str, body: &Value) -> Result<()> {
        self.post(&self.real_api().http_url(), what, body).await
    }

    async fn post(&self, url: &str, what: &str, body: &Value) -> Result<()> {
        let token = self.stack.token().await?;
        let url = format!("{url}/routing/v1/tcp_routes/{what}");
        let client = self.stack.pki.http_client()?;
        let answer = client
            .post(url)
            .bearer_auth(token)
            .json(body)
            .send()
            .await?;
        answer
            .error_for_status()
            .context("the routing API refused")?;
        Ok(())
    }
}

// === impl Boxed ===

impl Boxed {
    async fn start(stack: &Stack) -> Result<Self> {
        let (server, client) = (identity(&stack.pki.server), identity(&stack.pki.client));
        let ca = stack.pki.ca_pem.clone();

        let mut api = RoutingApiOptions::new(stack.uaa.url());
        api.uaa_ca_pem = Some(ca.clone());
        let group = sandbox::routing_api::RouterGroup::tcp;
        api.router_groups = vec![
            group("default-tcp", RESERVABLE_PORTS),
            group(OTHER_GROUP.0, OTHER_GROUP.1),
        ];
        let routing_api = RoutingApi::start(api).await?;
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mtls = routing_api
            .also_listen(anywhere, Some((server, Some(ca.clone()))))
            .await?;

        let mut http = HttpRouterOptions::new(anywhere, front::bus(&stack.nats, &stack.pki));
        // As the real gorouter of these tests (`GorouterOptions::quick`).
        http.start_response_delay_secs = 1;
        http.droplet_stale_threshold_secs = 10;
        http.prune_interval = Duration::from_secs(2);
        http.empty_pool_timeout = Duration::ZERO;
        http.backend_ca_pem = Some(ca);
        http.backend_identity = Some(client);
        let http_router = HttpRouter::start(http).await?;

        let token = TokenSource::Uaa {
            url: stack.uaa.url().to_owned(),
            client_id: CLIENT.0.to_owned(),
            client_secret: CLIENT.1.to_owned(),
        };
        // The stack's client gives up within seconds, and with it every stream of events: a router that
        // looks away until its next list opens ports a minute late.
        let client = stack
            .pki
            .http_client_with(|client| client.timeout(EVENT_STREAM_MAX))?;
        let tcp = TcpRouterOptions::new(&routing_api.url(), client, token);
        let tcp_router = TcpRouter::start(tcp).await?;
        Ok(Self {
            tcp_router,
            http_router,
            routing_api,
            mtls,
        })
    }
}

/// The system domain of every foundation here.
pub const fn system_domain() -> &'static str {
    SYSTEM_DOMAIN
}
