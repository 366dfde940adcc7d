//! Many routes lost at once are kept until somebody says so; a namespace that is deleted says so itself.

use std::time::Duration;

use serde_json::{Value, json};
use suite::foundation::{POOR_TOKEN, POOR_USER};
use suite::served::on_nodes;
use suite::{
    Controller, Foundation, HttpLoop, Settings, Stage, Web, eventually, http_status, on_each_stage,
    on_stage,
};

const LABELS: [&str; 2] = ["http-route-sync", "tcp-route-sync"];
/// Services that lose everything at once.
const MANY: u16 = 20;
/// How many of them the guard may let go in either lane, before it knows that there will be more.
const FREE: usize = 10;
/// The shortest that the controller takes.
const TTL: &str = "5s";
/// Longer than any router keeps what nobody refreshes.
const LAPSED: Duration = Duration::from_secs(13);

/// Services of one namespace, each with a host, a port, and whoever answers both.
struct Crowd {
    namespace: String,
    first_node_port: u16,
    /// Label, host and router port of each.
    names: Vec<(String, String, u16)>,
    _web: Web,
}

impl Crowd {
    async fn start(foundation: &mut Foundation, name: &str, first: u16, count: u16) -> Self {
        let namespace = foundation.name(name);
        let first = foundation.node_port(first);
        let mut names = Vec::new();
        for index in 0..count {
            let label = format!("{namespace}-{index}");
            let port = foundation.port();
            let service = format!("{namespace}/s{index}");
            let cluster = &foundation.cluster;
            cluster.service(&service, first + index).await.unwrap();
            for (lane, value) in LABELS.into_iter().zip([label.clone(), port.to_string()]) {
                cluster.label(&service, lane, Some(&value)).await.unwrap();
            }
            names.push((label.clone(), foundation.host(&label), port));
        }
        let addresses = (first..first + count).flat_map(|port| on_nodes(1, port));
        let addresses: Vec<_> = addresses.collect();
        Self {
            namespace,
            first_node_port: first,
            names,
            _web: Web::start(&addresses, name).await.unwrap(),
        }
    }

    fn service(&self, index: usize) -> String {
        format!("{}/s{index}", self.namespace)
    }

    async fn unlabel(&self, foundation: &Foundation, index: usize) {
        for lane in LABELS {
            let service = self.service(index);
            let gone = foundation.cluster.label(&service, lane, None);
            gone.await.unwrap();
        }
    }

    async fn host_answers(&self, foundation: &Foundation, index: usize) -> bool {
        http_status(foundation.http(), &self.names[index].1).await == 200
    }

    async fn port_answers(&self, foundation: &Foundation, index: usize) -> bool {
        let (_, host, port) = &self.names[index];
        http_status(foundation.tcp(*port), host).await == 200
    }

    async fn all_answer(&self, foundation: &Foundation) {
        for index in 0..self.names.len() {
            eventually("every host and port answers", async || {
                self.host_answers(foundation, index).await
                    && self.port_answers(foundation, index).await
            })
            .await;
        }
    }

    async fn all_gone(&self, foundation: &Foundation) {
        for (index, (name, host, port)) in self.names.iter().enumerate() {
            eventually(&format!("{host} of {name} answers no more"), async || {
                !self.host_answers(foundation, index).await
            })
            .await;
            eventually(&format!("port {port} of {name} is closed"), async || {
                !self.port_answers(foundation, index).await
            })
            .await;
        }
    }
}

/// The names of the routes of a lane that are held.
fn held(status: &Value, lane: &str) -> Vec<String> {
    let routes = status["held"]["routes"].as_array().into_iter().flatten();
    let of_lane = routes.filter(|route| route["lane"] == lane);
    let names = of_lane.filter_map(|route| route["name"].as_str());
    names.map(str::to_owned).collect()
}

/// Waits until all that is still wanted is held, which nothing asks for any more.
async fn tripped(controller: &Controller) -> Value {
    let mut status = Value::Null;
    eventually("all that is left is held", async || {
        status = controller.status().await;
        let held = held(&status, "http").len() + held(&status, "tcp").len();
        let wanted = controller.metric("route_sync_routes_desired", "").await;
        held > 0 && wanted == f64::from(u32::try_from(held).unwrap())
    })
    .await;
    status
}

#[test]
fn routes_whose_labels_all_go_at_once_stay_until_that_is_approved() {
    let statement = "twenty Services lose their labels at once: most routes stay, alive and told, until \
                     `approve` names their plan";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let crowd = Crowd::start(foundation, "crowd", 30500, MANY).await;
        let controller = foundation
            .controller_with(|settings| settings.config["routing_api"]["ttl"] = TTL.into())
            .await;
        crowd.all_answer(foundation).await;

        // Frozen, so that what happens meanwhile reaches it together.
        controller.signal("STOP");
        for index in 0..crowd.names.len() {
            crowd.unlabel(foundation, index).await;
        }
        controller.signal("CONT");
        let status = tripped(&controller).await;
        let (hosts, ports) = (held(&status, "http"), held(&status, "tcp"));
        let least = usize::from(MANY) - FREE;
        assert!(hosts.len() >= least && ports.len() >= least, "{status}");
        assert_eq!(controller.metric("route_sync_guard_tripped", "").await, 1.0);
        assert!(controller.has_finding("removal-held", "").await);

        // Held is alive: longer than the routers keep what nobody refreshes.
        let last = |lane: &[String]| lane.last().unwrap().clone();
        let (host, port) = (last(&hosts), last(&ports).parse().unwrap());
        let loops = [
            HttpLoop::start(foundation.http(), &host),
            HttpLoop::start(foundation.tcp(port), &host),
        ];
        tokio::time::sleep(LAPSED).await;
        for one in loops {
            one.none_failed();
        }

        // One whose node port another Service has got, though without a label, would lead there, and goes by itself.
        let of_host = |it: &&(String, String, u16)| it.1 == hosts[0];
        let (label, taken, _) = crowd.names.iter().find(of_host).unwrap();
        let index: u16 = label.rsplit('-').next().unwrap().parse().unwrap();
        let (namespace, cluster) = (&crowd.namespace, &foundation.cluster);
        let name = format!("s{index}");
        cluster.delete("Service", namespace, &name).await.unwrap();
        let heir = format!("{namespace}/heir");
        let port = crowd.first_node_port + index;
        cluster.service(&heir, port).await.unwrap();
        eventually("what leads to another goes", async || {
            http_status(foundation.http(), taken).await != 200
        })
        .await;

        let (code, _, errors) = controller.command(&["approve", "00ff"]).await.unwrap();
        let status = controller.status().await;
        let plan = status["held"]["plan"].as_str().unwrap();
        assert_eq!(code, 1, "{errors}");
        assert!(errors.contains("`00ff` is not pending"), "{errors}");
        assert!(errors.contains(&format!("plan `{plan}` is")), "{errors}");
        for command in ["status", "plan"] {
            let (_, told, errors) = controller.command(&[command]).await.unwrap();
            assert!(told.contains("more http routes would go"), "{told}{errors}");
            assert!(told.contains(&format!("approve {plan}`")), "{told}");
        }

        let (code, told, errors) = controller.command(&["approve", plan]).await.unwrap();
        assert_eq!(code, 0, "{errors}");
        assert!(told.contains(&host), "{told}");
        crowd.all_gone(foundation).await;
        assert_eq!(controller.metric("route_sync_guard_tripped", "").await, 0.0);
        let (code, _, errors) = controller.command(&["approve", plan]).await.unwrap();
        assert_eq!(code, 1);
        assert!(errors.contains("no removal is held"), "{errors}");
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn the_routes_of_a_deleted_namespace_all_go() {
    let statement =
        "a namespace with fifteen routes of each lane is deleted: they all go, and nothing is held";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let crowd = Crowd::start(foundation, "doomed", 30530, 15).await;
        let controller = foundation.controller().await;
        crowd.all_answer(foundation).await;
        foundation
            .cluster
            .delete_namespace(&crowd.namespace)
            .await
            .unwrap();
        crowd.all_gone(foundation).await;
        assert!(!controller.log().contains("removal-held"));
        assert_eq!(controller.stop().await, 0);
    });
}

/// Two of a lane may go within a minute.
fn only_two(settings: &mut Settings) {
    settings.config["routes"]["max_removals"] = json!(2);
    settings.config["routes"]["max_removals_percent"] = json!(0);
}

#[test]
fn routes_that_went_while_nobody_ran_stay_where_they_are_more_than_the_operator_allows() {
    let statement = "three of four Services lose their labels while the controller is down, and two may go: the \
                     next process keeps them, killed again it keeps them still, and `approve` lets them go";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let crowd = Crowd::start(foundation, "few", 30580, 4).await;
        let state = tempfile::tempdir().unwrap();
        let mut controller = foundation
            .controller_with(|settings| {
                only_two(settings);
                settings.config["state"] = json!({"dir": state.path()});
                settings.config["routing_api"]["ttl"] = TTL.into();
            })
            .await;
        crowd.all_answer(foundation).await;
        let written = async |what: &str| {
            eventually("the state is written", async || {
                let text = std::fs::read_to_string(state.path().join("routes.jsonl"));
                text.unwrap_or_default().contains(what)
            })
            .await;
        };
        written(&crowd.names[3].1).await;
        controller.kill().await.unwrap();
        for index in 0..3 {
            crowd.unlabel(foundation, index).await;
        }
        let mut plans = Vec::new();
        for _ in 0..2 {
            controller.start_again().unwrap();
            controller.ready().await;
            eventually("they are held", async || {
                held(&controller.status().await, "tcp").len() == 3
            })
            .await;
            let status = controller.status().await;
            assert_eq!(held(&status, "http").len(), 3, "{status}");
            let reasons = status["held"]["reasons"].to_string();
            assert!(reasons.contains("than 2, or 0 % of all"), "{reasons}");
            plans.push(status["held"]["plan"].as_str().unwrap().to_owned());
            written("\"held\":[").await;
            controller.kill().await.unwrap();
        }
        assert_eq!(plans[0], plans[1]);
        controller.start_again().unwrap();
        controller.ready().await;
        crowd.all_answer(foundation).await;
        let (code, _, errors) = controller.command(&["approve", &plans[0]]).await.unwrap();
        assert_eq!(code, 0, "{errors}");
        for index in 0..3 {
            eventually("what was approved goes", async || {
                !crowd.host_answers(foundation, index).await
                    && !crowd.port_answers(foundation, index).await
            })
            .await;
        }
        assert!(crowd.host_answers(foundation, 3).await);
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn two_further_lists_that_agree_let_go_what_was_held() {
    on_stage(Stage::Sandbox, async |foundation| {
        foundation.nodes(1).await;
        let crowd = Crowd::start(foundation, "agreed", 30590, 3).await;
        let lists = foundation.cluster.grant_lists(POOR_USER, POOR_TOKEN);
        lists.await.unwrap();
        let kubeconfig = foundation.stack.apiserver.kubeconfig(POOR_TOKEN);
        let controller = foundation
            .controller_with(|settings| {
                only_two(settings);
                settings.kubeconfig = kubeconfig;
                // Each poll is a complete list.
                settings.config["kubernetes"]["poll_interval"] = "3s".into();
                // And the ones of a minute would count as one look.
                settings.config["routes"]["removals_window"] = "5s".into();
            })
            .await;
        crowd.all_answer(foundation).await;
        for index in 0..3 {
            crowd.unlabel(foundation, index).await;
        }
        // A poll may see one of them go before the others; then two are left, and a list that lacks both of a lane
        // holds them as well.
        eventually("something is held", async || {
            controller.metric("route_sync_guard_tripped", "").await > 0.0
        })
        .await;
        crowd.all_gone(foundation).await;
        let status = controller.status().await;
        assert!(status["held"].is_null(), "{status}");
        assert_eq!(controller.stop().await, 0);
    });
}
