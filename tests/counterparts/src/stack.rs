//! Everything together, wired as a foundation wires it: what most tests start from.
//!
//! The handed-in programs are `None` where nobody handed them in; the rest runs all the same.

use anyhow::Result;
use futures::future::OptionFuture;

use crate::gorouter::{Gorouter, GorouterOptions};
use crate::kube_apiserver::{KubeApiserver, KubeApiserverOptions};
use crate::mariadb::{MariaDb, MariaDbOptions};
use crate::nats_server::{NatsServer, NatsServerOptions};
use crate::routing_api::{RoutingApi, RoutingApiOptions};
use crate::tcp_router::{TcpRouter, TcpRouterOptions};
use crate::uaa::{Uaa, UaaClient, UaaOptions};
use crate::{Etcd, Locket, Pki, Program, RunFolder, handed_in, locket, routing_api};

pub const SYSTEM_DOMAIN: &str = "sys.example.test";
pub const APP_DOMAIN: &str = "apps.example.test";

/// The controller's client at the UAA.
pub const CLIENT: (&str, &str) = ("route-sync", "route-sync-secret");

const CLIENT_AUTHORITIES: [&str; 3] = [
    "routing.routes.read",
    "routing.routes.write",
    "routing.router_groups.read",
];

/// The name that the API's registration asks its certificate for.
const API_SAN: &str = "routing-api.service.test";

#[derive(Clone, Default)]
pub struct StackOptions {
    pub apiserver: KubeApiserverOptions,
    pub nats: NatsServerOptions,
    pub routing_api: RoutingApiOptions,
    pub gorouter: Option<GorouterOptions>,
    pub tcp_router: TcpRouterOptions,
    /// Beside the controller's and the TCP router's.
    pub uaa_clients: Vec<UaaClient>,
}

/// Fields are dropped in this order: who needs another goes first.
pub struct Stack {
    pub tcp_router: Option<TcpRouter>,
    pub gorouter: Option<Gorouter>,
    pub routing_api: Option<RoutingApi>,
    pub locket: Locket,
    pub mariadb: MariaDb,
    pub uaa: Uaa,
    pub nats: NatsServer,
    pub apiserver: KubeApiserver,
    pub etcd: Etcd,
    pub pki: Pki,
    pub run: RunFolder,
}

// === impl Stack ===

impl Stack {
    pub async fn start(options: StackOptions) -> Result<Self> {
        let run = RunFolder::new()?;
        let pki = Pki::new(&run)?;
        let ((etcd, apiserver), (mariadb, locket), uaa, nats) = tokio::try_join!(
            cluster(&run, &pki, options.apiserver),
            locks(&run, &pki),
            uaa(&run, &pki, &options.tcp_router, options.uaa_clients),
            NatsServer::start(&run, &pki, options.nats),
        )?;

        let gorouter: OptionFuture<_> = handed_in("gorouter")
            .map(|_| {
                let options = options.gorouter.unwrap_or_else(GorouterOptions::quick);
                Gorouter::start(&run, &pki, &nats, options)
            })
            .into();
        let tcp = async {
            if handed_in("routing-api").is_none() {
                return Ok((None, None));
            }
            let api = options.routing_api;
            let api = RoutingApi::start(&run, &pki, &uaa, &mariadb, &locket, api).await?;
            let router: OptionFuture<_> = handed_in("cf-tcp-router")
                .map(|_| TcpRouter::start(&run, &pki, &uaa, &api, options.tcp_router))
                .into();
            let router = router.await.transpose()?;
            anyhow::Ok((Some(api), router))
        };
        let gorouter = async { gorouter.await.transpose() };
        let (gorouter, (routing_api, tcp_router)) = tokio::try_join!(gorouter, tcp)?;
        Ok(Self {
            tcp_router,
            gorouter,
            routing_api,
            locket,
            mariadb,
            uaa,
            nats,
            apiserver,
            etcd,
            pki,
            run,
        })
    }

    /// The handed-in programs that are not here.
    pub fn absent(&self) -> Vec<&'static str> {
        [
            ("gorouter", self.gorouter.is_none()),
            ("routing-api", self.routing_api.is_none()),
            ("cf-tcp-router", self.tcp_router.is_none()),
        ]
        .into_iter()
        .filter_map(|(name, absent)| absent.then_some(name))
        .collect()
    }

    /// A token of the controller's client.
    pub async fn token(&self) -> Result<String> {
        self.uaa.token(CLIENT.0, CLIENT.1).await
    }

    /// Resident memory by program, in KiB.
    pub fn rss_kib(&self) -> Vec<(&'static str, u64)> {
        [
            ("kube-apiserver", self.apiserver.rss_kib()),
            ("etcd", self.etcd.rss_kib()),
            ("nats-server", self.nats.rss_kib()),
            ("uaa", self.uaa.rss_kib()),
            ("mariadb", self.mariadb.rss_kib()),
            ("locket", self.locket.rss_kib()),
            (
                "routing-api",
                self.routing_api.as_ref().and_then(Program::rss_kib),
            ),
            (
                "gorouter",
                self.gorouter.as_ref().and_then(Program::rss_kib),
            ),
            (
                "cf-tcp-router",
                self.tcp_router.as_ref().and_then(Program::rss_kib),
            ),
        ]
        .into_iter()
        .filter_map(|(name, rss)| Some((name, rss?)))
        .collect()
    }

    /// Makes `api.<system domain>/routing` lead to the routing API's mutual-TLS listener, as a
    /// foundation's route registrar does. Once is enough until gorouter restarts: an endpoint with
    /// a `tls_port` is never pruned.
    pub async fn register_api(&self) -> Result<()> {
        let Some(api) = &self.routing_api else {
            anyhow::bail!("`routing-api` was not handed in");
        };
        let message = serde_json::json!({
            "host": "127.0.0.1",
            "tls_port": api.mtls_port(),
            "uris": [format!("api.{SYSTEM_DOMAIN}/routing")],
            "server_cert_domain_san": API_SAN,
            "private_instance_id": "routing-api-0",
        });
        let nats = self.nats.connect().await?;
        nats.publish("router.register", message.to_string().into())
            .await?;
        nats.flush().await?;
        Ok(())
    }
}

async fn cluster(
    run: &RunFolder,
    pki: &Pki,
    options: KubeApiserverOptions,
) -> Result<(Etcd, KubeApiserver)> {
    let etcd = Etcd::start(run).await?;
    let apiserver = KubeApiserver::start(run, pki, etcd.url(), options).await?;
    Ok((etcd, apiserver))
}

async fn locks(run: &RunFolder, pki: &Pki) -> Result<(MariaDb, Locket)> {
    let databases = [locket::DATABASE, routing_api::DATABASE];
    let options = MariaDbOptions {
        init: databases
            .map(|name| format!("CREATE DATABASE IF NOT EXISTS {name}"))
            .to_vec(),
        ..MariaDbOptions::default()
    };
    let mariadb = MariaDb::start(run, options).await?;
    let locket = Locket::start(run, pki, &mariadb).await?;
    Ok((mariadb, locket))
}

async fn uaa(
    run: &RunFolder,
    pki: &Pki,
    tcp_router: &TcpRouterOptions,
    mut clients: Vec<UaaClient>,
) -> Result<Uaa> {
    clients.push(UaaClient::new(CLIENT.0, CLIENT.1, &CLIENT_AUTHORITIES));
    clients.push(UaaClient::new(
        &tcp_router.client_id,
        &tcp_router.client_secret,
        &["routing.routes.read", "routing.router_groups.read"],
    ));
    Uaa::start(run, pki, UaaOptions { clients }).await
}
