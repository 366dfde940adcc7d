//! The foundation of the demo: UAA, routing API, NATS and the two routers, on the loopback, and
//! the controller's configuration that leads to them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Context as _;
use serde_json::json;

use super::routes::Route;
use crate::http_router::{HttpRouter, HttpRouterOptions, NatsClientOptions};
use crate::nats::{Nats, NatsOptions};
use crate::routing_api::{RouterGroup, RoutingApi, RoutingApiOptions};
use crate::tcp_router::{TcpRouter, TcpRouterOptions, TokenSource};
use crate::tls::{self, Ca};
use crate::uaa::{Client, Uaa, UaaOptions};

pub const APP_DOMAIN: &str = "apps.example.test";
/// What `examples/mysql.yml` needs beside routing-release's usual first ports.
const RESERVABLE_PORTS: &str = "1024-1033,34569";
/// Where people look for a web server first.
const HTTP_PORT_PREFERRED: u16 = 8_080;
const NATS_USER: &str = "nats";
const CONTROLLER: &str = "route-sync";
const TCP_ROUTER: &str = "tcp_router";

/// The running programs; they stop when it is dropped.
pub struct Foundation {
    uaa: Uaa,
    routing_api: RoutingApi,
    nats: Nats,
    http_router: HttpRouter,
    tcp_router: TcpRouter,
    secrets: Secrets,
}

/// Made anew for every run, so none is worth keeping.
struct Secrets {
    nats: String,
    controller: String,
}

// === impl Foundation ===

impl Foundation {
    pub async fn start() -> anyhow::Result<Self> {
        let secret = || format!("{:032x}", rand::random::<u128>());
        let (tcp_router_secret, secrets) = (
            secret(),
            Secrets {
                nats: secret(),
                controller: secret(),
            },
        );
        let ca = Ca::new("the demo's CA");
        let identity = ca.issue(&["127.0.0.1", "localhost"], false);
        let writer = [
            "routing.router_groups.read",
            "routing.routes.read",
            "routing.routes.write",
        ];
        let uaa = Uaa::start(UaaOptions {
            addr: free(),
            tls: Some(identity),
            clients: vec![
                Client::new(CONTROLLER, &secrets.controller, &writer),
                Client::new(TCP_ROUTER, &tcp_router_secret, &writer[..2]),
            ],
        })
        .await?;
        let routing_api = RoutingApi::start(RoutingApiOptions {
            uaa_ca_pem: Some(ca.pem().to_owned()),
            router_groups: vec![RouterGroup::tcp("default-tcp", RESERVABLE_PORTS)],
            ..RoutingApiOptions::new(&uaa.url())
        })
        .await?;
        let user = Some((NATS_USER.to_owned(), secrets.nats.clone()));
        let nats = Nats::start(NatsOptions {
            user: user.clone(),
            ..Default::default()
        })
        .await?;
        let http_router = start_http_router(&nats, user).await?;
        let token = TokenSource::Uaa {
            url: uaa.url(),
            client_id: TCP_ROUTER.to_owned(),
            client_secret: tcp_router_secret,
        };
        let client = tls::http_client(Some(ca.pem()), None);
        let tcp_router =
            TcpRouter::start(TcpRouterOptions::new(&routing_api.url(), client, token)).await?;
        Ok(Self {
            uaa,
            routing_api,
            nats,
            http_router,
            tcp_router,
            secrets,
        })
    }

    /// Writes the controller's configuration: the eight keys every deployment has, and a log for people.
    pub fn write_config(&self, to: &Path, kubeconfig: &Path) -> anyhow::Result<()> {
        let nats = json!({
            "host": self.nats.addr().to_string(), "user": NATS_USER, "password": self.secrets.nats,
        });
        let config = json!({
            "nats_servers": [nats],
            "routing_api_url": self.routing_api.url(),
            "app_domain_name": APP_DOMAIN,
            "uaa_api_url": self.uaa.url(),
            "routing_api_username": CONTROLLER,
            "routing_api_client_secret": self.secrets.controller,
            "skip_tls_verification": true,
            "kube_config_path": kubeconfig,
            // Its output is a pipe here, which would make it lager's JSON.
            "log": {"format": "text"},
        });
        let text = serde_yaml::to_string(&config).context("the configuration")?;
        std::fs::write(to, text).with_context(|| format!("`{}`", to.display()))
    }

    /// What the routers' tables hold now: hosts with a backend, and open ports.
    pub fn routes(&self) -> BTreeSet<Route> {
        let table = self.http_router.routes();
        let pools = table.as_object().into_iter().flatten();
        // An emptied pool answers 503 for a while; nothing is registered there any more.
        let served = pools.filter(|(_, pool)| pool.as_array().is_some_and(|p| !p.is_empty()));
        let http = served.map(|(uri, _)| Route::Http(uri.clone()));
        let tcp = self.tcp_router.open_ports().into_iter().map(Route::Tcp);
        http.chain(tcp).collect()
    }

    /// A command that works as it is printed.
    pub fn command(&self, route: &Route) -> String {
        match route {
            Route::Http(host) => format!("curl -s -H 'Host: {host}' {}/", self.http_router.url()),
            Route::Tcp(port) => format!("bash -c 'cat < /dev/tcp/127.0.0.1/{port}'"),
        }
    }

    /// Name and address of each program.
    pub fn addresses(&self) -> Vec<(&'static str, String)> {
        vec![
            ("UAA", self.uaa.url()),
            ("routing API", self.routing_api.url()),
            ("NATS", format!("nats://{}", self.nats.addr())),
            ("HTTP router", self.http_router.url()),
            ("TCP router", format!("127.0.0.1, ports {RESERVABLE_PORTS}")),
        ]
    }
}

async fn start_http_router(
    nats: &Nats,
    user: Option<(String, String)>,
) -> anyhow::Result<HttpRouter> {
    let nats = NatsClientOptions {
        user,
        ..NatsClientOptions::plain(nats.addr())
    };
    let preferred = SocketAddr::from((Ipv4Addr::LOCALHOST, HTTP_PORT_PREFERRED));
    // Asked first: the router itself would wait a while for a port that is about to come free.
    let taken = std::net::TcpListener::bind(preferred).is_err();
    let addr = if taken { free() } else { preferred };
    HttpRouter::start(HttpRouterOptions::new(addr, nats)).await
}

fn free() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}
