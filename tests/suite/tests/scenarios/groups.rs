//! Router groups: which one routes go to, and which ports they may have.

use sandbox::routing_api::RouterGroup;
use serde_json::{Value, json};
use suite::foundation::RESERVABLE_PORTS;
use suite::{
    Controller, Served, Stage, Web, closes, eventually, http_status, leads_to, on_each_stage,
    on_nodes, on_stage,
};

/// The finding of a code, as `/status.json` tells it.
async fn finding(controller: &Controller, code: &str) -> Value {
    controller.finding(code, "").await;
    let status = controller.status().await;
    let findings = status["findings"].as_array().cloned().unwrap_or_default();
    findings
        .into_iter()
        .find(|finding| finding["code"] == code)
        .unwrap_or_default()
}

#[test]
fn a_router_group_that_is_not_there_is_told_with_those_that_are() {
    let statement =
        "an absent router group is a finding that lists the names; HTTP routes are unharmed";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let served = Served::start(foundation, "absent", 30220, 1).await;
        served.label(foundation).await;
        let node_port = foundation.node_port(30221);
        let name = foundation.name("groupless");
        let web = format!("{name}/{name}");
        foundation.cluster.service(&web, node_port).await.unwrap();
        let _web = Web::start(&on_nodes(1, node_port), "web").await.unwrap();
        let controller = foundation
            .unready_controller(|settings| {
                settings.config["routing_api"]["router_group"] = json!("elsewhere");
            })
            .await;
        let told = finding(&controller, "router-group-unknown").await;
        let message = told["message"].as_str().unwrap();
        assert!(
            message.contains("elsewhere") && message.contains("default-tcp"),
            "{message}"
        );
        let (router, host) = (foundation.http(), foundation.host(&name));
        foundation
            .cluster
            .label(&web, "http-route-sync", Some(&name))
            .await
            .unwrap();
        eventually("the host answers", async || {
            http_status(router, &host).await == 200
        })
        .await;
        assert_eq!(foundation.rows_of(served.port).await, [Value::Null; 0]);
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn of_several_router_groups_none_is_guessed() {
    // Groups of the real API can be neither made nor removed while it runs.
    on_stage(Stage::Sandbox, async |foundation| {
        let api = &foundation.boxed.routing_api;
        let guid = foundation.router_group().await;
        let original = RouterGroup {
            guid,
            ..RouterGroup::tcp("default-tcp", RESERVABLE_PORTS)
        };
        let group = |name| RouterGroup::tcp(name, RESERVABLE_PORTS);
        let http = RouterGroup {
            r#type: "http".to_owned(),
            ..group("web")
        };
        api.set_router_groups(vec![group("blue"), group("green"), http.clone()]);
        foundation.nodes(1).await;
        let controller = foundation.unready_controller(|_| {}).await;
        let told = finding(&controller, "router-group-unknown").await;
        let message = told["message"].as_str().unwrap();
        assert!(
            message.contains("`blue`, `green`") && !message.contains("web"),
            "{message}"
        );
        assert_eq!(controller.stop().await, 0);

        // The only one of type tcp is meant, whatever it is called.
        foundation
            .boxed
            .routing_api
            .set_router_groups(vec![http, group("blue")]);
        let served = Served::start(foundation, "only", 30222, 1).await;
        let controller = foundation.controller().await;
        served.open(foundation).await;
        served.unlabel(foundation).await;
        closes(foundation, served.port).await;
        assert_eq!(controller.stop().await, 0);
        foundation
            .boxed
            .routing_api
            .set_router_groups(vec![original]);
    });
}

#[test]
fn a_range_that_shrinks_closes_nothing_that_lives() {
    let statement = "after the range shrank a live port stays open and told, a new one is refused";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let live = Served::start(foundation, "live", 30223, 1).await;
        let new = Served::start(foundation, "new", 30224, 1).await;
        let mut controller = foundation.controller().await;
        live.open(foundation).await;
        foundation.set_reservable_ports("1990-1999").await;
        // Ranges are read again every five minutes, and at a start.
        controller.kill_and_start().await.unwrap();
        controller.ready().await;
        controller
            .finding("port-no-longer-reservable", &live.service)
            .await;
        new.label(foundation).await;
        controller
            .finding("port-not-reservable", &new.service)
            .await;
        leads_to(foundation, live.port, &live.line).await;
        assert_eq!(foundation.rows_of(live.port).await.len(), 1);
        assert_eq!(foundation.rows_of(new.port).await, [Value::Null; 0]);

        // What lives can still be given up.
        live.unlabel(foundation).await;
        closes(foundation, live.port).await;
        foundation.set_reservable_ports(RESERVABLE_PORTS).await;
        controller.kill_and_start().await.unwrap();
        leads_to(foundation, new.port, &new.line).await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn ports_of_the_platform_itself_are_refused() {
    let statement =
        "reserved system ports, ours and the operator's, are refused; others are unharmed";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(1).await;
        let system = Served::start(foundation, "system", 30225, 1).await;
        let operators = Served::start(foundation, "operators", 30226, 1).await;
        let good = Served::start(foundation, "good", 30227, 1).await;
        let reserved = operators.port;
        let controller = foundation
            .controller_with(|settings| {
                settings.config["routing_api"]["reserved_ports"] = json!(reserved.to_string());
            })
            .await;
        // 2822 is monit's, on every machine of a foundation.
        system.label_with(foundation, "2822").await;
        operators.label(foundation).await;
        good.open(foundation).await;
        controller.finding("port-reserved", &system.service).await;
        controller
            .finding("port-reserved", &operators.service)
            .await;
        assert_eq!(foundation.rows().await.len(), 1);
        assert_eq!(controller.stop().await, 0);
    });
}
