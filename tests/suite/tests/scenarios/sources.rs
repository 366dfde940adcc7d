//! The apiserver goes and comes back, or grants little.

use std::time::Duration;

use counterparts::Program;
use suite::foundation::{POOR_TOKEN, POOR_USER};
use suite::{
    Echo, HttpLoop, TcpLoop, Web, answers, eventually, node_addresses, on_each_stage, opens,
    tcp_line,
};

const HTTP: &str = "http-route-sync";
const TCP: &str = "tcp-route-sync";

#[test]
fn an_apiserver_that_restarts_costs_no_route() {
    let statement = "the apiserver restarted: routes stay, and later changes land";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let port = foundation.port();
        let (web, name) = (foundation.name("outage/web"), foundation.name("outage"));
        let (echo, later) = (foundation.name("outage/echo"), foundation.name("later"));
        let host = foundation.host(&name);
        foundation.cluster.service(&web, 30103).await.unwrap();
        foundation.cluster.service(&echo, 30104).await.unwrap();
        foundation
            .cluster
            .label(&web, HTTP, Some(&name))
            .await
            .unwrap();
        foundation
            .cluster
            .label(&echo, TCP, Some(&port.to_string()))
            .await
            .unwrap();
        let _web = Web::start(&node_addresses(2, 30103), "web").await.unwrap();
        let _echo = Echo::start(&node_addresses(2, 30104), "echo")
            .await
            .unwrap();
        // So short that the routes would be gone before the apiserver is back, were they left alone.
        let mut controller = foundation
            .controller_with(|settings| settings.config["routing_api"]["ttl"] = "5s".into())
            .await;
        answers(foundation.http(), &host, &[200]).await;
        opens(foundation.tcp(port)).await;

        let http_loop = HttpLoop::start(foundation.http(), &host);
        let tcp_loop = TcpLoop::start(foundation.tcp(port));
        foundation.stack.apiserver.stop().await;
        // Not waited for but lived through: longer than the routers keep what nobody refreshes.
        tokio::time::sleep(Duration::from_secs(13)).await;
        assert!(controller.is_running());
        foundation.stack.apiserver.begin().await.unwrap();
        let cluster = &foundation.cluster;
        cluster
            .annotate(&web, "http", Some(&format!("{name},{later}")))
            .await
            .unwrap();
        answers(foundation.http(), &foundation.host(&later), &[200]).await;
        http_loop.none_failed();
        tcp_loop.none_failed();
        cluster.label(&echo, TCP, None).await.unwrap();
        eventually("the port closes", async || {
            tcp_line(foundation.tcp(port)).await.is_none()
        })
        .await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn the_old_role_runs_the_main_job_and_each_missing_right_is_named() {
    let statement = "with the role of kubo 0.22, which may only list, routes come and go by polling, and \
                     each missing right is named";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let port = foundation.port();
        let cluster = &foundation.cluster;
        cluster.grant_lists(POOR_USER, POOR_TOKEN).await.unwrap();
        let (web, name) = (foundation.name("poor/web"), foundation.name("poor"));
        let echo = foundation.name("poor/echo");
        cluster.service(&web, 30105).await.unwrap();
        cluster.service(&echo, 30106).await.unwrap();
        let _web = Web::start(&node_addresses(2, 30105), "web").await.unwrap();
        let _echo = Echo::start(&node_addresses(2, 30106), "echo")
            .await
            .unwrap();
        let kubeconfig = foundation.stack.apiserver.kubeconfig(POOR_TOKEN);
        let controller = foundation
            .controller_with(|settings| {
                settings.kubeconfig = kubeconfig;
                settings.config["kubernetes"]["poll_interval"] = "1s".into();
                // A list that lacks the last route of a lane is no event: it is held until others agree, after this.
                settings.config["routes"]["removals_window"] = "1s".into();
            })
            .await;

        let host = foundation.host(&name);
        cluster.label(&web, HTTP, Some(&name)).await.unwrap();
        cluster
            .label(&echo, TCP, Some(&port.to_string()))
            .await
            .unwrap();
        answers(foundation.http(), &host, &[200]).await;
        assert_eq!(opens(foundation.tcp(port)).await, "echo");
        cluster.label(&web, HTTP, None).await.unwrap();
        let (namespace, service) = echo.split_once('/').unwrap();
        cluster.delete("Service", namespace, service).await.unwrap();
        answers(foundation.http(), &host, &[404, 503]).await;
        eventually("the port closes", async || {
            tcp_line(foundation.tcp(port)).await.is_none()
        })
        .await;

        for right in [
            "`watch` resource `services`",
            "`get` resource `services`",
            "`watch` resource `nodes`",
            "`list` resource `endpointslices`",
        ] {
            let mut messages = Vec::new();
            eventually(&format!("no right to {right}"), async || {
                messages = controller.messages("right-missing").await;
                messages.iter().any(|message| message.contains(right))
            })
            .await;
        }
        assert_eq!(controller.stop().await, 0);
    });
}
