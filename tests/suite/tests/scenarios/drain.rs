//! An operator drains the controller: everything goes, or everything stays, until it is started again.

use std::time::Duration;

use counterparts::Program;
use serde_json::{Value, json};
use suite::served::on_nodes;
use suite::{Controller, Foundation, Web, eventually, http_status, on_each_stage, stays};
use tokio::time::Instant;

/// Services; with the default of three backends each, 30 rows and 30 endpoints.
const MANY: u16 = 10;
const NODES: u8 = 3;
/// What a platform gives a drain script.
const DRAINED_WITHIN: Duration = Duration::from_secs(10);
/// How often it is asked at most.
const ASKED_MAX: usize = 2;
/// Long enough for a heartbeat that must not come, or a change that must not be followed.
const A_WHILE: Duration = Duration::from_secs(3);

/// Services with a host and a port each, and whoever answers both.
struct Crowd {
    names: Vec<(String, String, u16)>,
    _web: Web,
}

impl Crowd {
    async fn start(foundation: &mut Foundation, name: &str, first: u16, count: u16) -> Self {
        foundation.nodes(NODES).await;
        let (name, first) = (foundation.name(name), foundation.node_port(first));
        let mut names = Vec::new();
        for index in 0..count {
            let label = format!("{name}-{index}");
            let (service, port) = (format!("{name}/s{index}"), foundation.port());
            let created = foundation.cluster.service(&service, first + index);
            created.await.unwrap();
            names.push((service, foundation.host(&label), port));
            let (service, _, port) = names.last().unwrap();
            ask_for(foundation, service, Some(&label), Some(*port)).await;
        }
        let addresses = (first..first + count).flat_map(|port| on_nodes(NODES, port));
        let addresses: Vec<_> = addresses.collect();
        Self {
            names,
            _web: Web::start(&addresses, &name).await.unwrap(),
        }
    }

    async fn all(&self, foundation: &Foundation, what: &str, answer: bool) {
        for (_, host, port) in &self.names {
            for front in [foundation.http(), foundation.tcp(*port)] {
                eventually(what, async || {
                    (http_status(front, host).await == 200) == answer
                })
                .await;
            }
        }
    }

    /// Whether any host answers.
    async fn any_host(&self, foundation: &Foundation) -> bool {
        for (_, host, _) in &self.names {
            if http_status(foundation.http(), host).await == 200 {
                return true;
            }
        }
        false
    }

    /// Waits until nothing answers any more, and prints what of it took how long.
    async fn closing(&self, foundation: &Foundation) {
        let before = Instant::now();
        eventually("no host answers", async || !self.any_host(foundation).await).await;
        println!("   the last host was gone after {:.2?}", before.elapsed());
        eventually("no row stands", async || self.rows(foundation).await == 0).await;
        println!("   the last row was gone after {:.2?}", before.elapsed());
        self.all(foundation, "no host and no port answers", false)
            .await;
        println!("   the last port was closed after {:.2?}", before.elapsed());
    }

    async fn rows(&self, foundation: &Foundation) -> usize {
        let rows = foundation.rows().await;
        let ours = rows.iter().filter(|row| {
            let mut names = self.names.iter();
            names.any(|(_, _, port)| row["port"] == *port)
        });
        ours.count()
    }
}

async fn ask_for(foundation: &Foundation, service: &str, host: Option<&str>, port: Option<u16>) {
    let port = port.map(|port| port.to_string());
    for (lane, value) in [
        ("http-route-sync", host),
        ("tcp-route-sync", port.as_deref()),
    ] {
        let labelled = foundation.cluster.label(service, lane, value);
        labelled.await.unwrap();
    }
}

/// Exit code, stdout and stderr of `drain --unregister`, which takes no longer than it may.
async fn unregister(controller: &Controller) -> (i32, String, String) {
    let before = Instant::now();
    let told = controller
        .command(&["drain", "--unregister"])
        .await
        .unwrap();
    let took = before.elapsed();
    println!("   drain --unregister took {took:.1?}, exit {}", told.0);
    // The program itself starts within that, too, on a busy machine.
    assert!(took < 3 * DRAINED_WITHIN, "{took:?}");
    told
}

/// The same, asked again where a busy machine kept it from saying this in its time; all that was said.
async fn unregister_until(
    controller: &Controller,
    enough: impl Fn(i32, &str) -> bool,
) -> (i32, String, String) {
    let mut said = (1, String::new(), String::new());
    for _ in 0..ASKED_MAX {
        let (code, told, errors) = unregister(controller).await;
        said = (code, said.1 + &told, said.2 + &errors);
        if enough(code, &told) {
            break;
        }
    }
    said
}

#[test]
fn what_is_drained_is_gone_on_both_routers_until_a_restart_that_kubernetes_answers() {
    let statement = "`drain --unregister` takes ten hosts and ten ports with 30 rows from both routers within 10 s, \
                     a restart without apiserver announces nothing, and one with it everything";
    on_each_stage(statement, async |foundation| {
        let state = tempfile::tempdir().unwrap();
        let crowd = Crowd::start(foundation, "drained", 30370, MANY).await;
        let mut controller = foundation
            .controller_with(|settings| settings.config["state"] = json!({"dir": state.path()}))
            .await;
        crowd
            .all(foundation, "every host and port answers", true)
            .await;
        assert_eq!(
            crowd.rows(foundation).await,
            usize::from(MANY) * usize::from(NODES)
        );

        let closing = crowd.closing(foundation);
        let draining = unregister_until(&controller, |code, _| code == 0);
        let ((code, told, errors), ()) = tokio::join!(draining, closing);
        assert_eq!(code, 0, "{told}{errors}");
        for (service, host, port) in &crowd.names {
            assert!(
                told.contains(host) && told.contains(&port.to_string()),
                "{told}"
            );
            assert!(told.contains(service), "{told}");
        }
        assert_eq!(crowd.rows(foundation).await, 0, "proven means gone");
        assert!(!crowd.any_host(foundation).await, "proven means gone");

        // It says so, takes nothing back, and announces nothing new.
        assert_eq!(controller.page("ready").await.unwrap().0, 503);
        let status = controller.status().await;
        assert_eq!(status["drain"], "unregister", "{status}");
        assert_eq!(
            controller.metric("route_sync_drained", "unregister").await,
            1.0
        );
        assert!(controller.has_finding("drained", "").await);
        let (code, _, errors) = controller.command(&["drain", "--keep"]).await.unwrap();
        assert_eq!(code, 1);
        assert!(errors.contains("only a restart takes back"), "{errors}");
        let (service, ..) = &crowd.names[0];
        foundation
            .cluster
            .annotate(service, "max-backends", Some("1"))
            .await
            .unwrap();
        stays(A_WHILE, "nothing is announced", async || {
            !crowd.any_host(foundation).await && crowd.rows(foundation).await == 0
        })
        .await;

        controller.kill().await.unwrap();
        foundation.stack.apiserver.stop().await;
        controller.start_again().unwrap();
        eventually("it is up", async || controller.page("live").await.is_some()).await;
        stays(A_WHILE, "nothing is announced from state", async || {
            !crowd.any_host(foundation).await && crowd.rows(foundation).await == 0
        })
        .await;
        foundation.stack.apiserver.begin().await.unwrap();
        controller.ready().await;
        crowd
            .all(foundation, "every host and port answers", true)
            .await;
        assert_eq!(controller.status().await["drain"], Value::Null);
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn without_the_routing_api_a_drain_says_what_is_left_and_goes_on_trying() {
    let statement = "the routing API is down: `drain --unregister` withdraws every host, names the ports that are \
                     left, exits 1, and their rows go once the API is back";
    on_each_stage(statement, async |foundation| {
        let crowd = Crowd::start(foundation, "halfway", 30385, 2).await;
        let controller = foundation.controller().await;
        crowd
            .all(foundation, "every host and port answers", true)
            .await;
        foundation.stop_routing_api().await;

        let left = |_, told: &str| told.contains("not proven gone");
        let (code, told, errors) = unregister_until(&controller, left).await;
        assert_eq!(code, 1, "{told}{errors}");
        let (gone, left) = told.split_once("not proven gone").expect(&told);
        for (_, host, port) in &crowd.names {
            assert!(
                gone.contains(host) && !gone.contains(&port.to_string()),
                "{told}"
            );
            assert!(
                left.contains(&port.to_string()) && !left.contains(host),
                "{told}"
            );
        }
        assert!(errors.contains("lane tcp: 2 not proven gone"), "{errors}");
        assert!(!crowd.any_host(foundation).await);

        foundation.start_routing_api().await;
        eventually("the rows are deleted", async || {
            crowd.rows(foundation).await == 0
        })
        .await;
        // The list that proves it waits as any request does after failures.
        eventually("it is proven", async || {
            unregister(&controller).await.0 == 0
        })
        .await;

        // Asked to stop in the middle of it, it stops, and whoever asked is told that nothing is proven.
        let mut controller = controller;
        controller.kill_and_start().await.unwrap();
        controller.ready().await;
        crowd
            .all(foundation, "every host and port answers", true)
            .await;
        let terminated = async {
            eventually("it is being drained", async || {
                controller.status().await["drain"] == "unregister"
            })
            .await;
            controller.signal("TERM");
        };
        let ((code, told, errors), ()) = tokio::join!(unregister(&controller), terminated);
        assert_eq!(code, 1, "{told}{errors}");
        assert!(errors.contains("nothing is proven"), "{errors}");
        assert_eq!(controller.end().await, 0);
    });
}

#[test]
fn what_is_kept_stays_as_it_is_until_a_restart() {
    let statement = "after `drain --keep` routes live on, and neither a new label nor one taken away is followed \
                     before a restart";
    on_each_stage(statement, async |foundation| {
        let crowd = Crowd::start(foundation, "kept", 30388, 2).await;
        let mut controller = foundation.controller().await;
        crowd
            .all(foundation, "every host and port answers", true)
            .await;
        let (code, told, errors) = controller.command(&["drain"]).await.unwrap();
        assert_eq!(code, 0, "{told}{errors}");
        assert!(told.contains("4 routes kept"), "{told}");
        assert_eq!(controller.status().await["drain"], "keep");
        assert!(controller.has_finding("drained-kept", "").await);

        let late = Crowd::start(foundation, "late", 30390, 1).await;
        let (service, host, port) = &crowd.names[0];
        ask_for(foundation, service, None, None).await;
        let fronts = [foundation.http(), foundation.tcp(*port)];
        stays(A_WHILE, "nothing changes", async || {
            let mut kept = true;
            for front in fronts {
                kept &= http_status(front, host).await == 200;
            }
            kept && !late.any_host(foundation).await && late.rows(foundation).await == 0
        })
        .await;
        controller.kill_and_start().await.unwrap();
        controller.ready().await;
        late.all(foundation, "the new one answers", true).await;
        eventually("rows of the one without label go", async || {
            foundation.rows_of(*port).await.is_empty()
        })
        .await;
        assert_eq!(controller.stop().await, 0);
    });
}
