//! The largest cluster there is for us, 2,768 Services (every node port) on 100 nodes, against the sandbox: how
//! soon every route is announced after a start, and what the process costs once nothing changes.

#![expect(clippy::disallowed_methods, reason = "who measures time reads a clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use benchmarks::{Value, expect, tell};
use futures::StreamExt;
use sandbox::apiserver::{ApiServer, ApiServerOptions};
use sandbox::nats::{Nats, NatsOptions};
use sandbox::routing_api::{RouterGroup, RoutingApi, RoutingApiOptions};
use sandbox::tls::Ca;
use sandbox::uaa::{Client, Uaa, UaaOptions};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use suite::{Controller, Settings};

/// Kubernetes allocates node ports from 30000 to 32767, one for each Service.
const SERVICES: u16 = 2_768;
const FIRST_NODE_PORT: u16 = 30_000;
const NODES: u8 = 100;
const NAMESPACES: u16 = 40;
/// A node tells of the images it holds, 50 by default; that is most of a Node.
const IMAGES: usize = 50;
const PODS_PER_SERVICE: u16 = 3;
const APP_DOMAIN: &str = "apps.example.test";
const CLIENT: (&str, &str) = ("route-sync", "secret");
const SCOPES: [&str; 3] = [
    "routing.router_groups.read",
    "routing.routes.read",
    "routing.routes.write",
];

const ANNOUNCED_EXPECTED: Duration = Duration::from_secs(3);
const MEMORY_EXPECTED_KIB: u64 = 45 * 1024;
const CPU_EXPECTED_PERCENT: f64 = 2.0;
/// Something is broken, not slow.
const GIVE_UP: Duration = Duration::from_secs(60);
/// The rest of the backends has been announced by then, and every beat has come once.
const SETTLE: Duration = Duration::from_secs(30);
const STEADY: Duration = Duration::from_secs(60);
/// Linux' `USER_HZ`, the same on every architecture we know.
const TICKS_PER_SECOND: f64 = 100.0;

/// What is read of a registration.
#[derive(Deserialize)]
struct Register {
    uris: Vec<String>,
}

struct Sandbox {
    _uaa: Uaa,
    _routing_api: RoutingApi,
    nats: Nats,
    _apiserver: ApiServer,
    settings: Settings,
}

#[tokio::main]
async fn main() -> Result<()> {
    let foundation = Sandbox::start().await?;
    let client = async_nats::connect(foundation.nats.addr().to_string()).await?;
    let greeted = client.subscribe("router.greet").await?;
    tokio::spawn(play_router(client.clone(), greeted));
    let mut registrations = client.subscribe("router.register").await?;
    client.flush().await?;

    let began = Instant::now();
    let controller = Controller::start(foundation.settings).await?;
    let all = async {
        let mut announced = BTreeSet::new();
        while announced.len() < usize::from(SERVICES) {
            let message = registrations
                .next()
                .await
                .context("the subscription ended")?;
            announced.extend(serde_json::from_slice::<Register>(&message.payload)?.uris);
        }
        anyhow::Ok(began.elapsed())
    };
    let announced = tokio::time::timeout(GIVE_UP, all)
        .await
        .context("not all were announced")??;
    registrations.unsubscribe().await?;
    let what = "start → every route's first backend announced";
    expect(
        what,
        Value::Time(announced),
        Value::Time(ANNOUNCED_EXPECTED),
    );

    tokio::time::sleep(SETTLE).await;
    let pid = controller.pid();
    let (before, began) = (cpu_seconds(pid)?, Instant::now());
    let beats = controller.metric("route_sync_nats_beats_total", "").await;
    tokio::time::sleep(STEADY).await;
    let percent = (cpu_seconds(pid)? - before) / began.elapsed().as_secs_f64() * 100.0;
    let beats = controller.metric("route_sync_nats_beats_total", "").await - beats;
    eprintln!("{beats} beats in {STEADY:?}");
    let memory = memory(pid)?;
    let kib = |key: &str| {
        memory
            .get(key)
            .copied()
            .with_context(|| format!("no {key}"))
    };
    let expected = Value::Memory(MEMORY_EXPECTED_KIB);
    expect(
        "resident memory, steady (VmRSS)",
        Value::Memory(kib("VmRSS")?),
        expected,
    );
    tell(
        "resident memory, highest (VmHWM)",
        Value::Memory(kib("VmHWM")?),
    );
    let what = "CPU over a minute of steady state, of a core";
    expect(
        what,
        Value::Percent(percent),
        Value::Percent(CPU_EXPECTED_PERCENT),
    );
    ensure!(
        controller.stop().await == 0,
        "the controller did not end well"
    );
    Ok(())
}

/// Answers greetings as a gorouter with the job's own settings does.
async fn play_router(client: async_nats::Client, mut greeted: async_nats::Subscriber) {
    let told = json!({
        "id": "router-0", "hosts": ["127.0.0.1"],
        "minimumRegisterIntervalInSeconds": 20, "pruneThresholdInSeconds": 120,
    });
    while let Some(greeting) = greeted.next().await {
        if let Some(reply) = greeting.reply {
            // A connection that ended ends the measurement as well.
            let _ = client.publish(reply, told.to_string().into()).await;
        }
    }
}

/// User and system time so far.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold spaces; utime and stime are the 14th and 15th field.
    let (_, fields) = stat
        .rsplit_once(") ")
        .context("no process name in its stat")?;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_SECOND)
}

/// The lines of a process' status that are in KiB.
fn memory(pid: u32) -> Result<BTreeMap<String, u64>> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = |line: &str| {
        let (key, value) = line.split_once(':')?;
        Some((
            key.to_owned(),
            value.trim().strip_suffix(" kB")?.parse().ok()?,
        ))
    };
    Ok(status.lines().filter_map(line).collect())
}

// === impl Sandbox ===

impl Sandbox {
    async fn start() -> Result<Self> {
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
        let nats = Nats::start(NatsOptions::default()).await?;
        let apiserver = ApiServer::start(ApiServerOptions::default()).await?;
        fill(&apiserver)?;
        let token = apiserver.tokens().next().context("no token")?.to_owned();
        let config = json!({
            "kubernetes": {},
            "uaa": {
                "url": uaa.url(), "client_id": CLIENT.0, "client_secret": CLIENT.1,
                "skip_tls_verification": true,
            },
            "routing_api": {"url": routing_api.url()},
            "nats": {"servers": [{"host": nats.addr().to_string()}]},
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
            nats,
            _apiserver: apiserver,
            settings,
        })
    }
}

fn fill(apiserver: &ApiServer) -> Result<()> {
    let apply = |object: Json| apiserver.apply_object(object).map(drop);
    for node in 0..NODES {
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
    for index in 0..SERVICES {
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
                let node = (index + pod * 7) % u16::from(NODES);
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
