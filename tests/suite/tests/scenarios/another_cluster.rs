//! Another cluster answers behind the apiserver's address: while the controller runs, and over a restart.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use counterparts::KubeApiserver;
use counterparts::kube_apiserver::{ADMIN_TOKEN, KubeApiserverOptions};
use serde_json::{Value, json};
use suite::{
    Cluster, Controller, Foundation, Line, Site, Stage, Switch, Web, backends, eventually,
    http_status, node_addresses, on_each_stage, on_stage,
};

/// Longer than either router keeps what nobody repeats: 10 s and the next look of its pruner.
const PAST_EVERY_LIFE: Duration = Duration::from_secs(14);
const LABEL: &str = "http-route-sync";

/// A cluster of its own in the same etcd, and what it asks for.
struct Other {
    apiserver: KubeApiserver,
    host: String,
    _web: Web,
}

impl Other {
    /// It has the same first machine as ours, and a Service with the node port of `taken`, which leads elsewhere.
    async fn start(foundation: &Foundation, taken: u16, own: u16) -> Self {
        let stack = &foundation.stack;
        let prefix = format!("/another-{:?}", foundation.stage);
        let options = KubeApiserverOptions {
            extra_args: vec!["--etcd-prefix".to_owned(), prefix],
            ..KubeApiserverOptions::default()
        };
        let apiserver = KubeApiserver::start(&stack.run, &stack.pki, stack.etcd.url(), options);
        let apiserver = apiserver.await.unwrap();
        let cluster = Cluster::of(&apiserver);
        cluster.node("m1", "10.0.0.1").await.unwrap();
        cluster.service("theirs/unlabelled", taken).await.unwrap();
        cluster.service("theirs/web", own).await.unwrap();
        let label = foundation.name("theirs");
        cluster
            .label("theirs/web", LABEL, Some(&label))
            .await
            .unwrap();
        Self {
            apiserver,
            host: foundation.host(&label),
            _web: Web::start(&node_addresses(1, own), "theirs").await.unwrap(),
        }
    }

    async fn answers(&self, foundation: &Foundation) -> bool {
        http_status(foundation.http(), &self.host).await == 200
    }
}

/// Waits until the state file names this, as a kill may come at any time after.
async fn kept(folder: &Path, name: &str) {
    eventually("the state is written", async || {
        let text = std::fs::read_to_string(folder.join("routes.jsonl")).unwrap_or_default();
        text.contains(name)
    })
    .await;
}

/// Waits until everything stays as it was for the other cluster's sake, and gives the plan that would end that.
async fn stays_as_it_was(controller: &Controller) -> String {
    eventually("everything is held", async || {
        controller.metric("route_sync_guard_tripped", "").await == 1.0
    })
    .await;
    controller.finding("another-cluster", "").await;
    let status = controller.status().await;
    let plan = status["held"]["plan"].as_str().unwrap().to_owned();
    for command in ["status", "plan"] {
        let (_, told, errors) = controller.command(&[command]).await.unwrap();
        let why = "the apiserver answers as another cluster";
        assert!(told.contains(why), "{command}: {told}{errors}");
        assert!(told.contains(&format!("approve {plan}`")), "{told}");
    }
    plan
}

fn marks(rows: &[Value]) -> Vec<&str> {
    let marks = rows.iter().filter_map(|row| row["instance_id"].as_str());
    marks.collect()
}

#[test]
fn another_cluster_behind_the_same_address_takes_nothing_away_until_it_is_approved() {
    let statement = "another cluster answers at the apiserver's address, while the controller runs and after it was \
                     killed: no route of the first goes and none of the other comes until `approve`, save those \
                     that would lead to others";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let state = tempfile::tempdir().unwrap();
        let (port_taken, port_theirs) = (foundation.node_port(30562), foundation.node_port(30563));
        let site = Site::new(foundation, "ours", foundation.node_port(30560))
            .await
            .unwrap();
        let taken = Site::new(foundation, "taken", port_taken).await.unwrap();
        let node_port = foundation.node_port(30561);
        let line = Line::new(foundation, "ours", node_port).await.unwrap();
        site.label(foundation).await;
        taken.label(foundation).await;
        line.label(foundation).await;
        let other = Other::start(foundation, port_taken, port_theirs).await;
        let ours = foundation.stack.apiserver.url().to_owned();
        let switch = Switch::to(&ours).await.unwrap();
        let kubeconfig = foundation.stack.apiserver.kubeconfig(ADMIN_TOKEN);
        let kubeconfig = kubeconfig.replace(&ours, &switch.url(&ours).unwrap());
        let mut controller = foundation
            .controller_with(|settings| {
                settings.kubeconfig = kubeconfig;
                settings.config["state"] = json!({"dir": state.path()});
                settings.config["routing_api"]["ttl"] = json!("5s");
            })
            .await;
        site.answers(foundation).await;
        taken.answers(foundation).await;
        line.answers(foundation).await;
        kept(state.path(), &taken.host).await;
        let rows = foundation.rows_of(line.port).await;
        let before: Vec<_> = marks(&rows).into_iter().map(str::to_owned).collect();
        let (requests, lines) = (site.requested(foundation), line.requested(foundation));

        switch.over(other.apiserver.url()).unwrap();
        let plan = stays_as_it_was(&controller).await;
        // A restart is no approval.
        controller.kill().await.unwrap();
        controller.start_again().unwrap();
        controller.ready().await;
        assert_eq!(stays_as_it_was(&controller).await, plan);
        tokio::time::sleep(PAST_EVERY_LIFE).await;
        assert!(
            !other.answers(foundation).await,
            "it may be the wrong cluster"
        );
        let rows = foundation.rows_of(line.port).await;
        assert_eq!(marks(&rows), before, "under the same mark");
        // One of its machines is one of theirs, where another Service has its node port.
        let left = BTreeSet::from([format!("10.0.0.2:{port_taken}")]);
        eventually("what leads to another goes", async || {
            backends(&foundation.http_routes().await, &taken.host) == left
        })
        .await;
        taken.answers(foundation).await;

        switch.over(&ours).unwrap();
        eventually("all is as before", async || {
            controller.metric("route_sync_guard_tripped", "").await == 0.0
        })
        .await;
        site.answers(foundation).await;
        switch.over(other.apiserver.url()).unwrap();
        let plan = stays_as_it_was(&controller).await;
        requests.none_failed();
        lines.none_failed();

        let (code, told, errors) = controller.command(&["approve", &plan]).await.unwrap();
        assert_eq!(code, 0, "{errors}");
        assert!(told.contains(&site.host), "{told}");
        site.gone(foundation).await;
        line.gone(foundation).await;
        eventually("what the new cluster asks for answers", async || {
            other.answers(foundation).await
        })
        .await;
        assert!(!controller.has_finding("another-cluster", "").await);
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn another_cluster_that_was_approved_is_what_the_next_to_take_over_publishes() {
    // Both stages have the same apiservers, and what is decided here is decided between them.
    on_stage(Stage::Sandbox, async |foundation| {
        foundation.nodes(1).await;
        let site = Site::new(foundation, "before", foundation.node_port(30570))
            .await
            .unwrap();
        site.label(foundation).await;
        let (taken, own) = (foundation.node_port(30571), foundation.node_port(30572));
        let other = Other::start(foundation, taken, own).await;
        let ours = foundation.stack.apiserver.url().to_owned();
        let switch = Switch::to(&ours).await.unwrap();
        let kubeconfig = foundation.stack.apiserver.kubeconfig(ADMIN_TOKEN);
        let kubeconfig = kubeconfig.replace(&ours, &switch.url(&ours).unwrap());
        let mut instances = Vec::new();
        for name in ["first", "second"] {
            let one = foundation.controller_with(|settings| {
                settings.kubeconfig.clone_from(&kubeconfig);
                settings.config["leader_election"] =
                    json!({"enabled": true, "name": "switched", "identity": name});
            });
            instances.push(one.await);
            eventually("the first leads", async || {
                instances[0].metric("route_sync_leader", "").await == 1.0
            })
            .await;
        }
        site.answers(foundation).await;

        switch.over(other.apiserver.url()).unwrap();
        let plan = stays_as_it_was(&instances[0]).await;
        assert_eq!(stays_as_it_was(&instances[1]).await, plan);
        let (code, _, errors) = instances[0].command(&["approve", &plan]).await.unwrap();
        assert_eq!(code, 0, "{errors}");
        site.gone(foundation).await;
        eventually("the other knows", async || {
            !instances[1].has_finding("another-cluster", "").await
        })
        .await;
        instances[0].kill().await.unwrap();
        eventually("the other leads", async || {
            instances[1].metric("route_sync_leader", "").await == 1.0
        })
        .await;
        eventually("the new cluster's host answers", async || {
            other.answers(foundation).await
        })
        .await;
        assert!(http_status(foundation.http(), &site.host).await != 200);
        let second = instances.pop().unwrap();
        assert_eq!(second.stop().await, 0);
    });
}
