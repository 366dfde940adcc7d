//! Both sides, started once: the real programs, and the sandbox configured alike.
//!
//! Owns configurations only. Whatever a statement restarts is behind a lock; everything else is
//! shared as it is. The two sides have nothing in common but the certificates.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::Result;
use counterparts::stack::CLIENT;
use counterparts::{Pki, RunFolder, Stack, StackOptions, TokenUser};
use sandbox::apiserver::{ApiServer, ApiServerOptions, Rules, Token};
use sandbox::http_router::{HttpRouter, HttpRouterOptions, NatsClientOptions, NatsClientTls};
use sandbox::nats::{Nats, NatsOptions};
use sandbox::routing_api::{RoutingApi, RoutingApiOptions};
use sandbox::tcp_router::{TcpRouter, TcpRouterOptions, TokenSource};
use sandbox::tls::Identity;
use sandbox::uaa::{Client, Uaa, UaaOptions};
use suite::Cluster;
use tokio::sync::Mutex;

/// May read routes and nothing else.
pub const READER: (&str, &str) = ("reader", "reader-secret");
/// Its id cannot be carried by Basic credentials.
pub const COLON: (&str, &str) = ("with:colon", "colon-secret");
/// Its secret holds what url-encoding changes.
pub const ODD: (&str, &str) = ("odd", "p+a:s&s%w d");
/// Its tokens live for [`BRIEF_SECS`].
pub const BRIEF: (&str, &str) = ("brief", "brief-secret");
const BRIEF_SECS: u32 = 2;
/// Whose secrets are changed.
pub const CHANGING: (&str, &str) = ("changing", "first-secret");
pub const VALIDITY_SECS: u32 = 600;
pub const AUTHORITIES: [&str; 3] = [
    "routing.routes.read",
    "routing.routes.write",
    "routing.router_groups.read",
];

pub const NATS_USER: (&str, &str) = ("nats", "nats-password");
/// What the plain NATS lets nobody publish or subscribe to.
pub const DENIED: &str = "denied.subject";

pub const ROUTER_GROUP: &str = "default-tcp";
pub const RESERVABLE_PORTS: &str = "1024-1033,34569";

/// gorouter's, on both sides: a route that is not refreshed goes within seconds.
pub const START_DELAY_SECS: u64 = 1;
pub const STALE_THRESHOLD_SECS: u64 = 10;
pub const PRUNE_INTERVAL: Duration = Duration::from_secs(1);

/// The user of the shipped role.
pub const CONTROLLER: (&str, &str) = ("controller-token", "route-sync");
pub const RBAC: &str = include_str!("../../../../examples/rbac.yml");

pub struct World {
    pub real: Real,
    pub sandbox: Boxed,
    pub pki: Pki,
    pub run: RunFolder,
}

pub struct Real {
    pub cluster: Cluster,
    pub tcp_router: Option<counterparts::TcpRouter>,
    pub gorouter: Option<Mutex<counterparts::Gorouter>>,
    pub routing_api: Option<counterparts::RoutingApi>,
    pub uaa: Mutex<counterparts::Uaa>,
    pub uaa_url: String,
    pub nats: Mutex<counterparts::NatsServer>,
    pub plain_nats: counterparts::NatsServer,
    pub apiserver: Mutex<counterparts::KubeApiserver>,
    pub apiserver_url: String,
    _needed: (
        counterparts::Etcd,
        counterparts::Locket,
        counterparts::MariaDb,
    ),
}

pub struct Boxed {
    pub tcp_router: TcpRouter,
    pub http_router: HttpRouter,
    pub routing_api: RoutingApi,
    pub routing_api_mtls: SocketAddr,
    pub uaa: Uaa,
    pub nats: Nats,
    pub plain_nats: Nats,
    pub apiserver: ApiServer,
}

/// An external port that no statement has used, clear of node ports, clients' and programs' ports.
pub fn router_port() -> u16 {
    const FIRST: u16 = 3_000;
    static NEXT: AtomicU16 = AtomicU16::new(FIRST);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

// === impl World ===

impl World {
    pub async fn start() -> Result<Self> {
        anyhow::ensure!(
            counterparts::in_private_network(),
            "hint: run through tests/counterparts/private-network"
        );
        let stack = Stack::start(stack_options()).await?;
        let (pki, run) = (stack.pki.clone(), stack.run.clone());
        let sandbox = Boxed::start(&pki).await?;
        let real = Real::of(stack).await?;
        Ok(Self {
            real,
            sandbox,
            pki,
            run,
        })
    }
}

fn stack_options() -> StackOptions {
    let client = |client: (&str, &str), authorities: &[&str]| {
        let (id, secret) = client;
        counterparts::UaaClient::new(id, secret, authorities).validity(VALIDITY_SECS)
    };
    let mut options = StackOptions::default();
    options.routing_api.router_groups = vec![counterparts::RouterGroup::tcp(
        ROUTER_GROUP,
        RESERVABLE_PORTS,
    )];
    options.uaa_clients = vec![
        client(READER, &AUTHORITIES[..1]),
        client(COLON, &AUTHORITIES),
        client(ODD, &AUTHORITIES),
        client(BRIEF, &AUTHORITIES).validity(BRIEF_SECS),
        client(CHANGING, &AUTHORITIES),
    ];
    options.gorouter = Some(gorouter_options());
    let (token, user) = CONTROLLER;
    let user = TokenUser {
        token: token.to_owned(),
        user: user.to_owned(),
        groups: Vec::new(),
    };
    options.apiserver.users = vec![user];
    options
}

/// The real gorouter's settings; the sandbox's are in [`http_router_options`].
pub fn gorouter_options() -> counterparts::GorouterOptions {
    counterparts::GorouterOptions {
        start_response_delay: Duration::from_secs(START_DELAY_SECS),
        droplet_stale_threshold: Duration::from_secs(STALE_THRESHOLD_SECS),
        prune_stale_droplets_interval: PRUNE_INTERVAL,
        empty_pool_timeout: Duration::ZERO,
        ..counterparts::GorouterOptions::default()
    }
}

/// The sandbox's HTTP router with the settings of [`gorouter_options`].
pub fn http_router_options(nats: SocketAddr, pki: &Pki) -> HttpRouterOptions {
    let (user, password) = NATS_USER;
    let mut bus = NatsClientOptions::plain(nats);
    bus.user = Some((user.to_owned(), password.to_owned()));
    bus.tls = Some(NatsClientTls {
        ca_pem: pki.ca_pem.clone(),
        identity: Some(identity(&pki.client)),
        server_name: "nats.service.test".to_owned(),
    });
    let mut options = HttpRouterOptions::new(anywhere(), bus);
    options.start_response_delay_secs = START_DELAY_SECS;
    options.droplet_stale_threshold_secs = STALE_THRESHOLD_SECS;
    options.prune_interval = PRUNE_INTERVAL;
    options.empty_pool_timeout = Duration::ZERO;
    options.backend_ca_pem = Some(pki.ca_pem.clone());
    options.backend_identity = Some(identity(&pki.client));
    options
}

pub fn identity(identity: &counterparts::Identity) -> Identity {
    Identity {
        cert_pem: identity.cert_pem.clone(),
        key_pem: identity.key_pem.clone(),
    }
}

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

// === impl Real ===

impl Real {
    async fn of(stack: Stack) -> Result<Self> {
        let cluster = Cluster::new(&stack);
        cluster.apply_manifest(RBAC).await?;
        let plain = counterparts::NatsServerOptions {
            mutual_tls: false,
            denied: vec![DENIED.to_owned()],
            ..counterparts::NatsServerOptions::default()
        };
        let plain_nats = counterparts::NatsServer::start(&stack.run, &stack.pki, plain).await?;
        Ok(Self {
            cluster,
            tcp_router: stack.tcp_router,
            gorouter: stack.gorouter.map(Mutex::new),
            routing_api: stack.routing_api,
            uaa_url: stack.uaa.url().to_owned(),
            uaa: Mutex::new(stack.uaa),
            nats: Mutex::new(stack.nats),
            plain_nats,
            apiserver_url: stack.apiserver.url().to_owned(),
            apiserver: Mutex::new(stack.apiserver),
            _needed: (stack.etcd, stack.locket, stack.mariadb),
        })
    }
}

// === impl Boxed ===

impl Boxed {
    async fn start(pki: &Pki) -> Result<Self> {
        let (server, ca) = (identity(&pki.server), pki.ca_pem.clone());
        let uaa = uaa(server.clone()).await?;
        let mut api = RoutingApiOptions::new(&uaa.url());
        api.uaa_ca_pem = Some(ca.clone());
        api.router_groups = vec![sandbox::routing_api::RouterGroup::tcp(
            ROUTER_GROUP,
            RESERVABLE_PORTS,
        )];
        let routing_api = RoutingApi::start(api).await?;
        let mtls = Some((server.clone(), Some(ca.clone())));
        let routing_api_mtls = routing_api.also_listen(anywhere(), mtls).await?;

        let user = Some((NATS_USER.0.to_owned(), NATS_USER.1.to_owned()));
        let nats = NatsOptions {
            addr: anywhere(),
            user,
            tls: Some((server, Some(ca))),
        };
        let plain = NatsOptions {
            addr: anywhere(),
            user: nats.user.clone(),
            tls: None,
        };
        let (nats, plain_nats) = (Nats::start(nats).await?, Nats::start(plain).await?);
        plain_nats.deny_publish(DENIED);
        plain_nats.deny_subscribe(DENIED);
        let http_router = HttpRouter::start(http_router_options(nats.addr(), pki)).await?;

        let token = TokenSource::Uaa {
            url: uaa.url(),
            client_id: CLIENT.0.to_owned(),
            client_secret: CLIENT.1.to_owned(),
        };
        let tcp = TcpRouterOptions::new(&routing_api.url(), pki.http_client()?, token);
        let tcp_router = TcpRouter::start(tcp).await?;
        let apiserver = apiserver(sandbox::apiserver::Served::default()).await?;
        Ok(Self {
            tcp_router,
            http_router,
            routing_api,
            routing_api_mtls,
            uaa,
            nats,
            plain_nats,
            apiserver,
        })
    }
}

/// The sandbox's apiserver with the two users of the real one.
pub async fn apiserver(served: sandbox::apiserver::Served) -> Result<ApiServer> {
    let token = |token: &str, user: &str, rules| Token {
        token: token.to_owned(),
        user: user.to_owned(),
        rules,
    };
    let admin = token(
        counterparts::kube_apiserver::ADMIN_TOKEN,
        "admin",
        Rules::all(),
    );
    let controller = token(CONTROLLER.0, CONTROLLER.1, Rules::of_roles(RBAC)?);
    let tokens = vec![admin, controller];
    ApiServer::start(ApiServerOptions {
        tokens,
        served,
        ..ApiServerOptions::default()
    })
    .await
}

async fn uaa(server: Identity) -> Result<Uaa> {
    let client = |(id, secret): (&str, &str), authorities: &[&str]| Client {
        access_token_validity_secs: VALIDITY_SECS.into(),
        ..Client::new(id, secret, authorities)
    };
    let brief = Client {
        access_token_validity_secs: BRIEF_SECS.into(),
        ..client(BRIEF, &AUTHORITIES)
    };
    let clients = vec![
        client(CLIENT, &AUTHORITIES),
        client(READER, &AUTHORITIES[..1]),
        client(COLON, &AUTHORITIES),
        client(ODD, &AUTHORITIES),
        client(CHANGING, &AUTHORITIES),
        brief,
    ];
    Uaa::start(UaaOptions {
        addr: anywhere(),
        tls: Some(server),
        clients,
    })
    .await
}
