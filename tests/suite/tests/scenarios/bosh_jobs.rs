//! The jobs of the BOSH release, rendered, and run as BPM and the agent run them.

mod upgrade;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use counterparts::Program;
use counterparts::kube_apiserver::ADMIN_TOKEN;
use counterparts::stack::{APP_DOMAIN, CLIENT};
use serde_json::{Value, json};
use suite::{
    Foundation, HttpFront, HttpLoop, Job, KubeProxy, Line, Manifest, Site, Stop, Switch, TcpLoop,
    eventually, on_each_stage, on_real_stage, stays,
};
use tokio::time::Instant;

const JOB: &str = "route-sync";
/// The label of everything that a smoke test makes.
const SMOKE_TEST: &str = "route-sync.cloudfoundry.org/smoke-test";
const REGISTRAR: &str = "kubernetes-api-route-registrar";
/// The masters' addresses end so.
const MASTERS: [u8; 3] = [5, 6, 7];
/// Below `cloud_foundry.tcp_route_ttl`, and what follows an answer on the way back.
const MOMENT: Duration = Duration::from_secs(3);

/// Where nobody listens.
const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);
/// The pages of a job that stands alone, and of the second one of two on this machine.
const PAGES: [u16; 2] = [9101, 9103];
/// The default of `drain.timeout_seconds` (20), the 15 s after which BPM kills, and some for a busy machine.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

fn text_of(file: impl AsRef<Path>) -> String {
    std::fs::read_to_string(file).expect("a file must be there")
}

/// Gives the user `route-sync` the rights that an ops file gives, to the letter.
async fn grant(foundation: &Foundation, ops_file: &str) {
    let path = format!("../../bosh-release/operations/cfcr/{ops_file}.yml");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let changes: Value = serde_yaml::from_str(&text_of(path)).unwrap();
    let mut specs = changes.as_array().unwrap().iter().filter(|change| {
        let path = change["path"].as_str().unwrap();
        path.contains("/post-start-custom-specs")
    });
    let spec = specs.next().unwrap()["value"]["value"].as_str().unwrap();
    foundation.cluster.apply_manifest(spec).await.unwrap();
}

/// What an operator writes for this foundation: everything over mutual TLS, and at the apiserver the user of
/// `add-route-sync.yml`.
async fn manifest(foundation: &Foundation) -> Manifest {
    grant(foundation, "add-route-sync").await;
    let stack = &foundation.stack;
    let user = stack.pki.issue(&["route-sync"]).unwrap();
    let pki = &stack.pki;
    let (ca, cert, key) = (
        text_of(pki.ca_file()),
        text_of(pki.client_cert_file()),
        text_of(pki.client_key_file()),
    );
    let (nats, options) = (stack.nats.address(), stack.nats.options());
    Manifest {
        properties: json!({
            "cloud_foundry": {
                "uaa_url": stack.uaa.url(),
                "routing_api_url": foundation.api_url(),
                "routing_api_client_id": CLIENT.0,
                "routing_api_client_secret": CLIENT.1,
                "app_domain": APP_DOMAIN,
                "ca_certs": ca,
                "routing_api": {"client_cert": cert, "client_key": key},
            },
            "nats": {
                "machines": [nats.ip()], "port": nats.port(),
                "user": options.user, "password": options.password,
                "tls": {
                    "client_cert": cert, "client_key": key, "ca_cert": ca,
                    "server_name": "nats.service.test",
                },
            },
            "kubernetes": {
                "api_url": stack.apiserver.url(),
                "client_cert": user.cert_pem, "client_key": user.key_pem,
            },
            "tls": {"kubernetes": {"ca": ca}},
        }),
        links: json!({}),
        spec: json!({"ip": "10.0.0.1", "deployment": "cfcr", "name": "master"}),
    }
}

/// The only instance of its job.
fn alone(manifest: &mut Manifest) {
    manifest.links["peers"] = json!({"instances": [{"address": "10.0.0.1"}]});
}

/// The same for two instances of it.
fn two_of(manifest: &Manifest) -> [Manifest; 2] {
    let mut first = manifest.clone();
    let peers = json!([{"address": "10.0.0.1"}, {"address": "10.0.0.2"}]);
    first.links["peers"] = json!({"instances": peers});
    let mut second = first.clone();
    second.spec["id"] = json!("00000002-0000");
    second.properties["listen"] = json!({"port": PAGES[1]});
    [first, second]
}

async fn started(manifest: &Manifest) -> Job {
    let mut job = Job::render(JOB, manifest).await.unwrap();
    job.start().await.unwrap();
    let answered = job.script("post-start", None).await.unwrap();
    assert!(answered.status.success(), "{answered:?}\n{}", job.log());
    job
}

#[test]
fn the_rendered_job_serves_a_label_and_each_way_of_stopping_does_what_its_table_says() {
    let statement = "the rendered job, unprivileged on a read-only root, puts a Service behind the routers; stopped, \
                     recreated or scaled in it leaves every route alive, deleted it withdraws them";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let site = Site::new(foundation, "jobbed", 30660).await.unwrap();
        let line = Line::new(foundation, "jobbed", 30661).await.unwrap();
        site.label(foundation).await;
        line.label(foundation).await;
        let mut manifest = manifest(foundation).await;
        manifest.properties["post_start"] = json!({"wait_for_sync": true});
        let mut job = started(&manifest).await;
        site.answers(foundation).await;
        line.answers(foundation).await;

        let front = HttpFront::patient(foundation, &site.host).await.unwrap();
        let requests = HttpLoop::start(front.address(), &site.host);
        let connections = TcpLoop::start(foundation.tcp(line.port));
        for stop in [Stop::Restart, Stop::Recreate, Stop::ScaleIn] {
            job.stopped_by(stop).await.unwrap();
            tokio::time::sleep(MOMENT).await;
            job.start().await.unwrap();
            let ready = job.script("post-start", None).await.unwrap();
            assert!(ready.status.success(), "{stop:?}: {ready:?}");
        }
        requests.none_failed();
        connections.none_failed();

        job.stopped_by(Stop::DeleteDeployment).await.unwrap();
        // Proven before the process ended, and nobody brings them back.
        assert!(foundation.rows_of(line.port).await.is_empty());
        site.gone(foundation).await;
        line.gone(foundation).await;
        no_secret_in(&job.log());
    });
}

#[test]
fn the_last_instance_that_is_deleted_withdraws_and_one_told_to_leave_does_not() {
    let statement = "the only instance of the rendered job is scaled in: its routes are withdrawn; with `drain.mode: \
                     leave` they stay";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let line = Line::new(foundation, "last", 30662).await.unwrap();
        line.label(foundation).await;
        let mut manifest = manifest(foundation).await;
        alone(&mut manifest);
        manifest.properties["drain"] = json!({"mode": "leave"});
        let mut job = started(&manifest).await;
        line.answers(foundation).await;
        job.stopped_by(Stop::DeleteDeployment).await.unwrap();
        let port = line.port;
        stays(MOMENT, "what was left is alive", async || {
            !foundation.rows_of(port).await.is_empty()
        })
        .await;

        manifest.properties["drain"] = json!({"mode": "auto"});
        let mut job = started(&manifest).await;
        line.answers(foundation).await;
        eventually("it took over what it finds", async || {
            foundation
                .rows_of(port)
                .await
                .iter()
                .all(|row| row["ttl"] == 120)
        })
        .await;
        job.stopped_by(Stop::ScaleIn).await.unwrap();
        assert!(foundation.rows_of(port).await.is_empty());
        line.gone(foundation).await;
    });
}

#[test]
fn a_foundation_that_is_away_does_not_keep_the_rendered_job_from_starting_and_stopping() {
    let statement =
        "Cloud Foundry is away: post-start succeeds all the same, drain answers 0 in time";
    on_each_stage(statement, async |foundation| {
        let mut manifest = manifest(foundation).await;
        manifest.properties["cloud_foundry"]["uaa_url"] = json!(format!("https://{NOBODY}"));
        manifest.properties["cloud_foundry"]["routing_api_url"] =
            json!(format!("https://{NOBODY}"));
        manifest.properties["nats"]["port"] = json!(NOBODY.port());
        manifest.properties["drain"] = json!({"timeout_seconds": 2});
        let mut job = started(&manifest).await;
        assert!(job.is_running());
        job.stopped_by(Stop::DeleteDeployment).await.unwrap();
        // Again without a process, as the agent may: still 0.
        let drained = job.script("drain", Some(Stop::Restart)).await.unwrap();
        assert_eq!(
            (drained.status.code(), &*drained.stdout),
            (Some(0), &b"0\n"[..])
        );
    });
}

fn no_secret_in(log: &str) {
    for secret in [CLIENT.1, ADMIN_TOKEN] {
        assert!(!log.contains(secret), "{log}");
    }
}

/// What a job on this machine says of itself.
async fn status(page: u16) -> Value {
    let client = counterparts::pki::plain_http_client().build().unwrap();
    let url = format!("http://127.0.0.1:{page}/status.json");
    match client.get(url).send().await {
        Ok(answer) => answer.json().await.unwrap_or_default(),
        Err(_) => Value::Null,
    }
}

/// A Kubernetes master: the apiserver at an address of its own, and the registrar beside it.
struct Master {
    /// Of the apiserver.
    address: SocketAddr,
    registrar: Job,
    _apiserver: Switch,
}

impl Master {
    /// Its registrar is rendered and does not run yet.
    async fn new(foundation: &Foundation, address: SocketAddr, registrar: &Manifest) -> Self {
        let apiserver = Switch::at(address, foundation.stack.apiserver.url()).await;
        Self {
            address,
            registrar: Job::render(REGISTRAR, registrar).await.unwrap(),
            _apiserver: apiserver.unwrap(),
        }
    }

    /// Starts it, as far as a director waits for.
    async fn start(&mut self) {
        self.registrar.start().await.unwrap();
        let answered = self.registrar.script("post-start", None).await.unwrap();
        let log = self.registrar.log();
        assert!(answered.status.success(), "{answered:?}\n{log}");
    }
}

fn master_address(host: u8, backend_port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], backend_port))
}

/// Where the registrar of a master tells of itself.
fn registrar_page(host: u8) -> u16 {
    9110 + u16::from(host)
}

/// What an operator writes for the registrar of one master.
async fn registrar(foundation: &Foundation, host: u8, port: u16, backend_port: u16) -> Manifest {
    let Manifest { properties, .. } = manifest(foundation).await;
    let cf = &properties["cloud_foundry"];
    Manifest {
        properties: json!({
            "external_kubo_port": port, "backend_port": backend_port,
            "cloud_foundry": {
                "uaa_url": cf["uaa_url"], "api_url": cf["routing_api_url"],
                "uaa_client_id": cf["routing_api_client_id"],
                "uaa_client_secret": cf["routing_api_client_secret"],
                "ca_certs": cf["ca_certs"], "routing_api": cf["routing_api"],
            },
            "health": {
                "url": format!("{}/readyz", foundation.stack.apiserver.url()),
                "server_name": "", "interval_seconds": 5,
            },
            "tls": properties["tls"],
            "drain_wait": MOMENT.as_secs(),
            "post_start": {"wait_for_sync": true},
            "listen": {"port": registrar_page(host)},
        }),
        links: json!({}),
        spec: json!({
            "ip": format!("10.0.0.{host}"), "deployment": "cfcr", "name": "master",
            "id": format!("0000000{host}-0000"),
        }),
    }
}

async fn master(foundation: &Foundation, host: u8, port: u16, backend_port: u16) -> Master {
    let manifest = registrar(foundation, host, port, backend_port).await;
    let address = master_address(host, backend_port);
    let mut master = Master::new(foundation, address, &manifest).await;
    master.start().await;
    master
}

/// What `kubectl` says of a port of the tcp-router, certificates verified.
async fn kubectl(foundation: &Foundation, port: u16) -> Result<String, String> {
    let cache = tempfile::tempdir().unwrap();
    let output = tokio::process::Command::new("kubectl")
        .args([
            "get",
            "namespaces",
            "--output",
            "name",
            "--request-timeout",
            "5s",
        ])
        .args(["--token", ADMIN_TOKEN, "--kubeconfig", "/dev/null"])
        .args(["--server", &format!("https://{}", foundation.tcp(port))])
        .arg("--certificate-authority")
        .arg(foundation.stack.pki.ca_file())
        .arg("--cache-dir")
        .arg(cache.path())
        .output()
        .await
        .expect("`kubectl` is missing; hint: run `tests/counterparts/setup`");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

async fn kubectl_works(foundation: &Foundation, port: u16) {
    eventually("kubectl works through the tcp-router", async || {
        let said = kubectl(foundation, port).await;
        said.is_ok_and(|said| said.contains("namespace/kube-system"))
    })
    .await;
}

#[test]
fn three_rendered_registrars_put_the_apiserver_behind_the_tcp_router() {
    let statement = "kubectl works through the tcp-router by the rendered registrars of three masters, also while one \
                     of them is recreated; the apiserver's death takes its backends away until it is back";
    on_each_stage(statement, async |foundation| {
        let (port, backend_port) = (foundation.port(), foundation.node_port(30670));
        let refused = foundation.refused_reloads();
        let mut masters = Vec::new();
        for host in MASTERS {
            masters.push(master(foundation, host, port, backend_port).await);
        }
        kubectl_works(foundation, port).await;
        let hosts = |rows: &[Value]| -> BTreeSet<String> {
            let hosts = rows.iter().map(|row| row["backend_ip"].as_str().unwrap());
            hosts.map(str::to_owned).collect()
        };
        let all: BTreeSet<String> = MASTERS.map(|host| format!("10.0.0.{host}")).into();
        assert_eq!(hosts(&foundation.rows_of(port).await), all);

        // Its row is gone, and the router has followed, before anything of that master stops.
        let client = foundation.stack.pki.http_client_without_identity().unwrap();
        let url = format!("https://{}/livez", foundation.tcp(port));
        let calls = HttpLoop::of_page(client, url);
        let mut leaving = masters.pop().unwrap();
        leaving.registrar.stopped_by(Stop::Recreate).await.unwrap();
        drop(leaving);
        tokio::time::sleep(MOMENT).await;
        assert_eq!(hosts(&foundation.rows_of(port).await).len(), 2);
        masters.push(master(foundation, MASTERS[2], port, backend_port).await);
        assert_eq!(hosts(&foundation.rows_of(port).await), all);
        tokio::time::sleep(MOMENT).await;
        calls.none_failed();

        foundation.stack.apiserver.stop().await;
        eventually("nothing leads to a dead apiserver", async || {
            foundation.rows_of(port).await.is_empty()
        })
        .await;
        foundation.stack.apiserver.begin().await.unwrap();
        kubectl_works(foundation, port).await;

        for mut master in masters {
            master
                .registrar
                .stopped_by(Stop::DeleteDeployment)
                .await
                .unwrap();
            no_secret_in(&master.registrar.log());
        }
        assert!(foundation.rows_of(port).await.is_empty());
        assert_eq!(foundation.refused_reloads(), refused);
    });
}

#[test]
fn every_route_is_withdrawn_when_all_instances_of_a_deployment_drain_at_once() {
    let statement = "two rendered instances under one Lease are deleted with their deployment, both at once: every \
                     route is withdrawn and nobody brings it back";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let site = Site::new(foundation, "both", 30667).await.unwrap();
        let line = Line::new(foundation, "both", 30668).await.unwrap();
        site.label(foundation).await;
        line.label(foundation).await;
        let [first, second] = two_of(&manifest(foundation).await);
        let (mut first, mut second) = (started(&first).await, started(&second).await);
        site.answers(foundation).await;
        line.answers(foundation).await;

        let (one, two) = tokio::join!(
            first.stopped_by(Stop::DeleteDeployment),
            second.stopped_by(Stop::DeleteDeployment)
        );
        one.unwrap();
        two.unwrap();
        site.gone(foundation).await;
        line.gone(foundation).await;
        let port = line.port;
        stays(MOMENT, "nothing comes back", async || {
            foundation.rows_of(port).await.is_empty()
        })
        .await;
        let logs = first.log() + &second.log();
        assert_eq!(
            logs.matches("every route is withdrawn").count(),
            1,
            "{logs}"
        );
    });
}

#[test]
fn a_drain_that_loses_the_apiserver_withdraws_what_it_has_proof_for_and_names_the_rest() {
    let statement = "two rendered instances under one Lease are deleted with their deployment, and meanwhile the \
                     routing API cannot be reached and the apiserver stops: the host is withdrawn, rows without proof \
                     stay and are named, and the stop goes on in time";
    // Both stages have the same apiserver, and what is proven to either lane is shown beside it.
    on_real_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let site = Site::new(foundation, "cut", 30672).await.unwrap();
        let line = Line::new(foundation, "cut", 30673).await.unwrap();
        site.label(foundation).await;
        line.label(foundation).await;
        let api = Switch::to(&foundation.api_url()).await.unwrap();
        let mut manifest = manifest(foundation).await;
        manifest.properties["cloud_foundry"]["routing_api_url"] =
            json!(api.url(&foundation.api_url()).unwrap());
        let [first, second] = two_of(&manifest);
        let (mut first, mut second) = (started(&first).await, started(&second).await);
        site.answers(foundation).await;
        line.answers(foundation).await;
        let foreign = (foundation.port(), SocketAddr::from(([10, 0, 0, 8], 30674)));
        let row = foundation.row_by("somebody", foreign.0, foreign.1, 120);
        foundation.insert_row(row.await).await;
        eventually("two rows of ours, and one that is not", async || {
            foundation.rows().await.len() == 3
        })
        .await;

        api.over(&format!("https://{NOBODY}")).unwrap();
        let begun = Instant::now();
        let meanwhile = async {
            site.gone(foundation).await;
            println!("   the host was gone after {:.1?}", begun.elapsed());
            foundation.stack.apiserver.kill();
            eventually("proof of the Lease is over, or the drain is", async || {
                let [first, second] = PAGES.map(status);
                let (first, second) = tokio::join!(first, second);
                let cautious = |page: &Value| page["lease"]["role"] == "cautious";
                cautious(&first) || cautious(&second) || (first.is_null() && second.is_null())
            })
            .await;
            println!("   proof was over after {:.1?}", begun.elapsed());
            api.over(&foundation.api_url()).unwrap();
        };
        let (one, two, ()) = tokio::join!(
            first.stopped_by(Stop::DeleteDeployment),
            second.stopped_by(Stop::DeleteDeployment),
            meanwhile
        );
        let took = begun.elapsed();
        println!("   both were stopped after {took:.1?}");
        one.unwrap();
        two.unwrap();
        assert!(took < STOPPED_WITHIN, "{took:?}");
        let log = first.log() + &second.log();
        for words in [
            "lane tcp: 1 not proven gone",
            "cannot be renewed",
            "not every route is proven gone after 20 s",
        ] {
            assert!(log.contains(words), "{words}: {log}");
        }
        // Neither ours without proof, nor ever what is not ours.
        assert_eq!(foundation.rows().await.len(), 3);
        site.gone(foundation).await;
        foundation.stack.apiserver.begin().await.unwrap();
    });
}

#[test]
fn the_rendered_smoke_test_passes_with_the_rights_of_its_ops_file() {
    let statement = "the rendered errand reaches its listener through both routers, with the configuration of the job \
                     beside it and the rights that the ops files give";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        grant(foundation, "add-smoke-tests").await;
        let _proxy = KubeProxy::start(&foundation.cluster, SMOKE_TEST, 2);
        let manifest = manifest(foundation).await;
        let mut job = started(&manifest).await;
        let errand = Manifest {
            properties: json!({"smoke_tests": {
                "namespace": "route-sync-smoke-tests", "address": "10.0.0.8",
                "http_router": foundation.http(),
                "tcp_router": "127.0.0.1", "tcp_port": foundation.port(),
            }}),
            ..manifest
        };
        let errand = Job::render("route-sync-smoke-tests", &errand)
            .await
            .unwrap();
        let output = errand.errand(&job).await.unwrap();
        assert!(output.status.success(), "{output:?}");
        job.stopped_by(Stop::DeleteDeployment).await.unwrap();
    });
}
