//! Requests go on, through both routers, while one thing after the other happens to what is around them.
//!
//! Where the routers allow it no request fails. Where they cannot, the gap is measured and printed, with its cause.
//! What is not here: the side that one lane alone needs stopped or frozen (`independence`), a restart of the
//! controller (`tcp`, `restart`), the apiserver away for several TTLs (`sources`), two instances (`two_instances`).

use std::net::SocketAddr;
use std::time::Duration;

use counterparts::{NatsCluster, NatsServer, NatsServerOptions, Program};
use serde_json::json;
use suite::foundation::{POOR_TOKEN, POOR_USER};
use suite::{
    Controller, Echo, Foundation, FrontTimes, HttpFront, HttpLoop, Line, Served, Site, Stage,
    TcpLoop, answers, eventually, http_status, leads_to, on_each_stage, tcp_line, within,
};
use tokio::time::Instant;

/// The shortest that the controller takes.
const TTL: Duration = Duration::from_secs(5);
/// Longer than it takes a router to forget what nobody repeats: 10 s, and the next look of its pruner.
const PAST_EVERY_LIFE: Duration = Duration::from_secs(14);
/// routing-api looks for what has lapsed every 10 s, and the router hears of it a little later.
const PRUNED_WITHIN: Duration = Duration::from_secs(60);
const SHORT: FrontTimes = FrontTimes {
    start_delay: Duration::from_secs(1),
    stale_threshold: Duration::from_secs(10),
};

/// One route of each lane, and those who request it.
struct Load {
    site: Site,
    _line: Line,
    http: HttpLoop,
    tcp: TcpLoop,
}

// === impl Load ===

impl Load {
    /// Both routes are up when this returns, and are requested from then on.
    async fn begin(foundation: &mut Foundation, name: &str, node_port: u16) -> Self {
        let site = Site::new(foundation, name, node_port).await.unwrap();
        let line = Line::new(foundation, name, node_port + 1).await.unwrap();
        site.label(foundation).await;
        line.label(foundation).await;
        site.answers(foundation).await;
        line.answers(foundation).await;
        let (http, tcp) = (site.requested(foundation), line.requested(foundation));
        Self {
            site,
            _line: line,
            http,
            tcp,
        }
    }

    fn none_failed(self) {
        self.http.none_failed();
        self.tcp.none_failed();
    }
}

/// A short life for TCP rows, so that a scenario can outlive it.
async fn controller(foundation: &Foundation) -> Controller {
    foundation
        .controller_with(|settings| settings.config["routing_api"]["ttl"] = json!("5s"))
        .await
}

/// Two servers of one cluster.
async fn nats_cluster(foundation: &Foundation) -> [NatsServer; 2] {
    let ports = [counterparts::port::free(), counterparts::port::free()];
    let stack = &foundation.stack;
    let start = async |mine: usize| {
        let options = NatsServerOptions {
            cluster: Some(NatsCluster {
                port: ports[mine],
                peers: vec![ports[1 - mine]],
            }),
            ..NatsServerOptions::default()
        };
        NatsServer::start(&stack.run, &stack.pki, options)
            .await
            .unwrap()
    };
    [start(0).await, start(1).await]
}

#[test]
fn a_nats_server_killed_of_two_costs_no_request() {
    let statement = "the NATS server that the controller speaks to, killed: no request fails, and \
                     the next change lands over the other one";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let mut servers = nats_cluster(foundation).await;
        let hosts: Vec<_> = servers
            .iter()
            .map(|server| json!({"host": server.address().to_string()}))
            .collect();
        let controller = foundation
            .controller_with(|settings| settings.config["nats"]["servers"] = json!(hosts))
            .await;
        let mut spoken_to = None;
        eventually("the controller is connected", async || {
            let log = controller.log();
            spoken_to = servers.iter().position(|server| {
                let name = server.address().to_string();
                log.lines()
                    .any(|line| line.contains("nats connected") && line.contains(&name))
            });
            spoken_to.is_some()
        })
        .await;
        let killed = spoken_to.unwrap();
        let front = HttpFront::start(foundation, &servers[1 - killed], SHORT)
            .await
            .unwrap();
        let site = Site::new(foundation, "two-nats", 30400).await.unwrap();
        let late = Site::new(foundation, "two-nats-late", 30401).await.unwrap();
        site.label(foundation).await;
        answers(front.address(), &site.host, &[200]).await;
        let requests = HttpLoop::start(front.address(), &site.host);

        servers[killed].kill();
        late.label(foundation).await;
        answers(front.address(), &late.host, &[200]).await;
        // Not waited for but lived through: the router forgets who is not heard of again.
        tokio::time::sleep(PAST_EVERY_LIFE).await;
        requests.none_failed();
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_routing_api_killed_and_replaced_costs_no_request() {
    let statement = "the routing API killed and another one started on its database: no request fails, \
                     and the next change lands";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let controller = foundation.controller().await;
        let load = Load::begin(foundation, "new-api", 30404).await;
        let late = Line::new(foundation, "new-api-late", 30406).await.unwrap();
        match foundation.stage {
            Stage::Sandbox => foundation.boxed.routing_api.stop().await,
            Stage::Real => foundation.stack.routing_api.as_mut().unwrap().kill(),
        }
        late.label(foundation).await;
        foundation.start_routing_api().await;
        late.answers(foundation).await;
        load.none_failed();
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn one_router_of_two_restarts_and_requests_go_on() {
    let statement = "one of two HTTP routers restarts: through the other no request fails, and it has \
                     every route by its own first second";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let mut second = HttpFront::start(foundation, &foundation.stack.nats, SHORT)
            .await
            .unwrap();
        let controller = foundation.controller().await;
        let load = Load::begin(foundation, "two-routers", 30408).await;
        answers(second.address(), &load.site.host, &[200]).await;

        second.restart().await.unwrap();
        let serves = Instant::now();
        answers(second.address(), &load.site.host, &[200]).await;
        println!(
            "a restarted router had the route {:.2} s after it was started",
            serves.elapsed().as_secs_f64()
        );
        load.none_failed();
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_controller_frozen_past_every_ttl_restores_everything_when_it_thaws() {
    let statement = "the controller frozen past every TTL: the routers forget its routes, as they must, \
                     and have them back when it thaws";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let controller = controller(foundation).await;
        let site = Site::new(foundation, "frozen", 30410).await.unwrap();
        let line = Line::new(foundation, "frozen", 30411).await.unwrap();
        site.label(foundation).await;
        line.label(foundation).await;
        site.answers(foundation).await;
        line.answers(foundation).await;

        controller.signal("STOP");
        let frozen = Instant::now();
        let port = foundation.tcp(line.port);
        let mut neighbour = Neighbour::new(foundation);
        within(PRUNED_WITHIN, "both routes have lapsed", async || {
            neighbour.changes(foundation).await;
            let host = http_status(foundation.http(), &site.host).await;
            host == 404 && tcp_line(port).await.is_none()
        })
        .await;
        println!("lapsed {:.1} s after the freeze", seconds(frozen));

        controller.signal("CONT");
        let thawed = Instant::now();
        site.answers(foundation).await;
        println!("HTTP was back {:.2} s after the thaw", seconds(thawed));
        line.answers(foundation).await;
        println!("TCP was back {:.2} s after the thaw", seconds(thawed));
        // One row for each of two nodes, whatever the freeze left half done.
        eventually("both rows are back", async || {
            foundation.rows_of(line.port).await.len() == 2
        })
        .await;
        line.unlabel(foundation).await;
        line.gone(foundation).await;
        assert_eq!(controller.stop().await, 0);
    });
}

/// Somebody else, of whom one row comes every few seconds. A tcp-router that prunes rows by itself writes no
/// configuration until something else changes, as it does all the time where others live.
struct Neighbour {
    port: u16,
    backend_port: u16,
    next: Instant,
}

impl Neighbour {
    fn new(foundation: &mut Foundation) -> Self {
        Self {
            port: foundation.port(),
            backend_port: 50_000,
            next: Instant::now(),
        }
    }

    async fn changes(&mut self, foundation: &Foundation) {
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + TTL;
        self.backend_port += 1;
        let backend = SocketAddr::from(([10, 0, 0, 7], self.backend_port));
        let row = foundation.row_by("somebody-else", self.port, backend, 10);
        foundation.insert_row(row.await).await;
    }
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

/// The right to list what the main job needs. Without `watch`, because the apiserver does not end a watch whose right
/// is gone: the next list is what meets the 403.
async fn grant(foundation: &Foundation) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    let role = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole", "metadata": {"name": "lent"},
        "rules": [{
            "apiGroups": ["", "discovery.k8s.io"], "verbs": ["get", "list"],
            "resources": ["services", "namespaces", "nodes", "endpointslices"],
        }],
    });
    let binding = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "lent"},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "lent"},
        "subjects": [{"apiGroup": GROUP, "kind": "User", "name": POOR_USER}],
    });
    foundation.cluster.apply(&role).await.unwrap();
    foundation.cluster.apply(&binding).await.unwrap();
    for path in ["/api/v1/nodes", "/api/v1/services"] {
        foundation.cluster.may_get(POOR_TOKEN, path).await;
    }
}

/// Waits until lists are refused, or are no more. The right to watch is missing all the time.
async fn refused(controller: &Controller, expected: bool) {
    eventually("lists are refused, or are no more", async || {
        let messages = controller.messages("right-missing").await;
        !messages.is_empty() && messages.iter().any(|text| text.contains("`list`")) == expected
    })
    .await;
}

#[test]
fn rights_taken_away_and_given_back_cost_no_request() {
    let statement = "every right at the apiserver taken away for longer than any TTL: no request fails; \
                     given back, the changes made meanwhile land";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        grant(foundation).await;
        let kubeconfig = foundation.stack.apiserver.kubeconfig(POOR_TOKEN);
        let controller = foundation
            .controller_with(|settings| {
                settings.kubeconfig = kubeconfig;
                settings.config["routing_api"]["ttl"] = json!("5s");
                settings.config["kubernetes"]["poll_interval"] = json!("1s");
            })
            .await;
        let load = Load::begin(foundation, "rights", 30414).await;
        let late = Site::new(foundation, "rights-late", 30416).await.unwrap();

        let taken = foundation
            .cluster
            .delete("ClusterRoleBinding", "", "lent")
            .await;
        taken.unwrap();
        refused(&controller, true).await;
        tokio::time::sleep(PAST_EVERY_LIFE).await;
        late.label(foundation).await;
        grant(foundation).await;
        late.answers(foundation).await;
        refused(&controller, false).await;
        load.none_failed();
        foundation
            .cluster
            .delete("ClusterRoleBinding", "", "lent")
            .await
            .unwrap();
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_roll_back_to_the_old_job_costs_no_request() {
    let statement = "rolled back to the old job while our rows live: no request fails; how long nobody's \
                     TCP change lands is measured";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let controller = controller(foundation).await;
        let served = Served::start(foundation, "rollback", 30418, 1).await;
        served.open(foundation).await;
        eventually("one row", async || {
            foundation.rows_of(served.port).await.len() == 1
        })
        .await;
        let requests = TcpLoop::start(foundation.tcp(served.port));
        assert_eq!(controller.stop().await, 0);

        let (other_port, other_node_port) = (foundation.port(), foundation.node_port(30419));
        let _other = Echo::start(&suite::on_nodes(1, other_node_port), "other")
            .await
            .unwrap();
        // The old job's next refresh would come after 30 s.
        for (port, node_port) in [
            (served.port, served.node_port),
            (other_port, other_node_port),
        ] {
            let backend = SocketAddr::from(([10, 0, 0, 1], node_port));
            let row = foundation.row_of_the_old_job(port, backend, 60).await;
            foundation.insert_row(row).await;
        }
        let posted = Instant::now();
        let mut neighbour = Neighbour::new(foundation);
        eventually("the old job's changes land", async || {
            neighbour.changes(foundation).await;
            tcp_line(foundation.tcp(other_port)).await.as_deref() == Some("other")
        })
        .await;
        println!(
            "beside our rows of {} s, the old job's changes took {:.1} s to land",
            TTL.as_secs(),
            seconds(posted)
        );
        leads_to(foundation, served.port, &served.line).await;
        requests.none_failed();
    });
}

#[test]
fn three_registrars_and_the_controller_share_a_port() {
    let statement = "three registrars and the controller on one port: each keeps its row through several \
                     TTLs, and when the controller leaves only its own goes";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let served = Served::start(foundation, "shared", 30422, 1).await;
        let backend_port = foundation.node_port(30423);
        let (mut rows, mut backends) = (Vec::new(), Vec::new());
        for registrar in 5..=7 {
            let backend = SocketAddr::from(([10, 0, 0, registrar], backend_port));
            let writer = format!("registrar-{registrar}");
            rows.push(foundation.row_by(&writer, served.port, backend, 10).await);
            backends.push(backend);
        }
        let _theirs = Echo::start(&backends, "registrar").await.unwrap();
        let refresh = async || {
            for row in &rows {
                foundation.insert_row(row.clone()).await;
            }
        };
        refresh().await;
        leads_to(foundation, served.port, "registrar").await;
        let controller = foundation
            .controller_with(|settings| {
                settings.config["routing_api"]["ttl"] = json!("15s");
                settings.config["tcp"] = json!({"on_foreign_backend": "join"});
            })
            .await;
        served.label(foundation).await;
        eventually("all four have a row", async || {
            refresh().await;
            foundation.rows_of(served.port).await.len() == 4
        })
        .await;
        let requests = TcpLoop::start(foundation.tcp(served.port));
        let refused = foundation.refused_reloads();
        let end = Instant::now() + 3 * TTL;
        while Instant::now() < end {
            refresh().await;
            let rows = foundation.rows_of(served.port).await;
            assert_eq!(rows.len(), 4, "{rows:#?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        served.unlabel(foundation).await;
        eventually("ours alone is gone", async || {
            refresh().await;
            let rows = foundation.rows_of(served.port).await;
            let theirs = rows.iter().filter(|row| {
                let id = row["instance_id"].as_str();
                id.is_some_and(|id| id.starts_with("registrar-"))
            });
            assert_eq!(theirs.count(), 3, "{rows:#?}");
            rows.len() == 3
        })
        .await;
        requests.none_failed();
        assert_eq!(foundation.refused_reloads(), refused);
        assert_eq!(controller.stop().await, 0);
    });
}
