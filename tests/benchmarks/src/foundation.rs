//! A foundation around the controller: the sandbox's apiserver, UAA and routing API, and a cluster of the size that is
//! asked for. NATS is whatever the benchmark brings; here is only the router that answers on it.

use anyhow::{Context, Result};
use futures::StreamExt;
use sandbox::apiserver::{ApiServer, ApiServerOptions};
use sandbox::routing_api::{RouterGroup, RoutingApi, RoutingApiOptions};
use sandbox::tls::Ca;
use sandbox::uaa::{Client, Uaa, UaaOptions};
use serde_json::{Value as Json, json};
use suite::Settings;

const FIRST_NODE_PORT: u16 = 30_000;
const NAMESPACES: u16 = 40;
/// A node tells of the images it holds, 50 by default; that is most of a Node.
const IMAGES: usize = 50;
const PODS_PER_SERVICE: u16 = 3;
pub const APP_DOMAIN: &str = "apps.example.test";
const CLIENT: (&str, &str) = ("route-sync", "secret");
const SCOPES: [&str; 3] = [
    "routing.router_groups.read",
    "routing.routes.read",
    "routing.routes.write",
];

/// What is in the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Services with a label for HTTP.
    pub services: u16,
    pub nodes: u8,
}

/// Everything but NATS, and the controller's configuration for it.
pub struct Foundation {
    _uaa: Uaa,
    _routing_api: RoutingApi,
    _apiserver: ApiServer,
    pub settings: Settings,
}

/// Answers greetings as a gorouter with the job's own settings does.
pub async fn play_router(client: async_nats::Client) -> Result<()> {
    let mut greeted = client.subscribe("router.greet").await?;
    let told = json!({
        "id": "router-0", "hosts": ["127.0.0.1"],
        "minimumRegisterIntervalInSeconds": 20, "pruneThresholdInSeconds": 120,
    });
    tokio::spawn(async move {
        while let Some(greeting) = greeted.next().await {
            if let Some(reply) = greeting.reply {
                // A connection that ended ends the measurement as well.
                let _ = client.publish(reply, told.to_string().into()).await;
            }
        }
    });
    Ok(())
}

// === impl Foundation ===

impl Foundation {
    /// `nats` is that section of the configuration.
    pub async fn start(size: Size, nats: Json) -> Result<Self> {
        let anywhere = ([127, 0, 0, 1], 0).into();
        let ca = Ca::new("the benchmark's CA");
        let uaa = Uaa::start(UaaOptions {
            addr: anywhere,
            tls: Some(ca.issue(&["127.0.0.1"], false)),
            clients: vec![Client::new(CLIENT.0, CLIENT.1, &SCOPES)],
        })
        .await?;
        let mut api = RoutingApiOptions::new(&uaa.url());
        api.uaa_ca_pem = Some(ca.pem().to_owned());
        api.router_groups = vec![RouterGroup::tcp("default-tcp", "1024-1033")];
        let routing_api = RoutingApi::start(api).await?;
        let apiserver = ApiServer::start(ApiServerOptions::default()).await?;
        fill(&apiserver, size)?;
        let token = apiserver.tokens().next().context("no token")?.to_owned();
        let config = json!({
            "kubernetes": {},
            "uaa": {
                "url": uaa.url(), "client_id": CLIENT.0, "client_secret": CLIENT.1,
                "skip_tls_verification": true,
            },
            "routing_api": {"url": routing_api.url()},
            "nats": nats,
            "routes": {"app_domain": APP_DOMAIN},
        });
        let kubeconfig = apiserver.kubeconfig(&token);
        let settings = Settings {
            config,
            kubeconfig,
            arguments: vec!["run".to_owned()],
            text: None,
            flag: None,
        };
        Ok(Self {
            _uaa: uaa,
            _routing_api: routing_api,
            _apiserver: apiserver,
            settings,
        })
    }
}

fn fill(apiserver: &ApiServer, Size { services, nodes }: Size) -> Result<()> {
    let apply = |object: Json| apiserver.apply_object(object).map(drop);
    for node in 0..nodes {
        let name = format!("node-{node}");
        apiserver
            .node(&name, &format!("10.1.0.{node}"))
            .ok()
            .context("a Node was refused")?;
        let images: Vec<Json> = (0..IMAGES)
            .map(|image| json!({"names": [format!("registry.example/app-{image}@sha256:{image:064}")], "sizeBytes": 1}))
            .collect();
        let edited = apiserver.edit("Node", "", &name, |node| {
            node["status"]["images"] = json!(images)
        });
        edited.ok().context("a Node's images were refused")?;
    }
    for namespace in 0..NAMESPACES {
        let name = format!("namespace-{namespace}");
        apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))?;
    }
    for index in 0..services {
        let namespace = format!("namespace-{}", index % NAMESPACES);
        let name = format!("service-{index}");
        let labels = json!({"app": name, "http-route-sync": format!("host-{index}")});
        apply(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {
                "type": "NodePort", "selector": {"app": name},
                "ports": [{"port": 80, "nodePort": FIRST_NODE_PORT + index}],
            },
        }))?;
        let endpoints: Vec<Json> = (0..PODS_PER_SERVICE)
            .map(|pod| {
                let node = (index + pod * 7) % u16::from(nodes);
                json!({
                    "addresses": [format!("10.2.{}.{pod}", index % 256)],
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "nodeName": format!("node-{node}"),
                })
            })
            .collect();
        let mut labels = labels;
        labels["kubernetes.io/service-name"] = json!(name);
        apply(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-slice"), "namespace": namespace, "labels": labels},
            "endpoints": endpoints, "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
        }))?;
    }
    Ok(())
}
