//! SIGHUP: another configuration while requests go on.

use std::time::Duration;

use serde_json::json;
use suite::{Controller, Line, Site, eventually, on_each_stage};

/// Longer than either router keeps what nobody repeats: 10 s, its pruner's next look, and some.
const PAST_EVERY_LIFE: Duration = Duration::from_secs(15);
/// No secret of any configuration here.
const WRONG: &str = "not-the-secret";

async fn stale(controller: &Controller) -> bool {
    controller.metric("route_sync_config_stale", "").await == 1.0
}

/// Why not all of the file is in use.
async fn reasons(controller: &Controller) -> String {
    controller.messages("config-stale").await.join("\n")
}

async fn says(controller: &Controller, word: &str) {
    eventually(word, async || reasons(controller).await.contains(word)).await;
}

/// Both lanes are up for as long as it takes, but for what a NATS that stands still on a busy machine brings about.
async fn works_on(controller: &Controller) {
    let (mut looks, mut down) = (0, 0);
    let end = tokio::time::Instant::now() + PAST_EVERY_LIFE;
    while tokio::time::Instant::now() < end {
        looks += 1;
        down += u32::from(controller.has_finding("lane-down", "").await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(4 * down < looks, "down at {down} of {looks} looks");
}

#[test]
fn a_reload_takes_what_works_keeps_what_does_not_and_fails_no_request() {
    let statement = "bad files, wrong secrets, storms of SIGHUP and good files: no request fails, \
                     what is not in use is named, and the rest is";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let site = Site::new(foundation, "reload", 30360).await.unwrap();
        let line = Line::new(foundation, "reload", 30361).await.unwrap();
        let reserved = Line::new(foundation, "reserved", 30362).await.unwrap();
        let late = Line::new(foundation, "late", 30363).await.unwrap();
        site.label(foundation).await;
        line.label(foundation).await;
        let mut controller = foundation
            .controller_with(|settings| settings.config["routing_api"]["ttl"] = json!("6s"))
            .await;
        site.answers(foundation).await;
        line.answers(foundation).await;
        let (http, tcp) = (site.requested(foundation), line.requested(foundation));

        // A file with mistakes changes nothing, and every one of them is named.
        controller
            .rewrite(|settings| {
                settings.config["routing_api"]["ttl"] = json!("an hour");
                settings.config["nats"]["interval"] = json!("1h");
            })
            .unwrap();
        controller.signal("HUP");
        says(&controller, "`routing_api.ttl`, `nats.interval`").await;
        assert!(stale(&controller).await);

        // Secrets that are not taken: what works goes on for as long as that takes.
        controller
            .rewrite(|settings| {
                settings.config["routing_api"]["ttl"] = json!("6s");
                settings.config["nats"]["interval"] = json!("20s");
                settings.config["nats"]["password"] = json!(WRONG);
                settings.config["uaa"]["client_secret"] = json!(WRONG);
            })
            .unwrap();
        controller.signal("HUP");
        says(&controller, "UAA refuses the client").await;
        says(&controller, "user or password").await;
        works_on(&controller).await;
        assert!(stale(&controller).await);

        // Good ones, with a key that waits for a start, in a storm.
        let (user, password) = {
            let nats = foundation.stack.nats.options();
            (nats.user.clone(), nats.password.clone())
        };
        controller
            .rewrite(|settings| {
                settings.config["nats"]["user"] = json!(user);
                settings.config["nats"]["password"] = json!(password);
                settings.config["nats"]["messages_per_second"] = json!("1000");
                settings.config["uaa"]["client_secret"] = json!(counterparts::stack::CLIENT.1);
                settings.config["routing_api"]["reserved_ports"] = json!(reserved.port.to_string());
                settings.config["routing_api"]["router_group"] = json!("other-tcp");
            })
            .unwrap();
        for _ in 0..50 {
            controller.signal("HUP");
        }
        let waiting = "changes of `routing_api.router_group` wait for a start";
        eventually("only that waits", async || {
            reasons(&controller).await == waiting
        })
        .await;
        reserved.label(foundation).await;
        controller.finding("port-reserved", "").await;

        // Another way to the same servers: both lanes connect anew.
        let connections = controller
            .metric("route_sync_nats_connections_total", "")
            .await;
        controller
            .rewrite(|settings| {
                settings.config["nats"]["tls"]["server_name"] = json!("routing-api.service.test");
                settings.config["routing_api"]["reserved_ports"] = json!("1024");
                settings.config["routing_api"]
                    .as_object_mut()
                    .unwrap()
                    .remove("router_group");
            })
            .unwrap();
        controller.signal("HUP");
        eventually("all of the file is in use", async || {
            !stale(&controller).await
        })
        .await;
        reserved.answers(foundation).await;
        late.label(foundation).await;
        late.answers(foundation).await;
        assert!(
            controller
                .metric("route_sync_nats_connections_total", "")
                .await
                > connections
        );
        works_on(&controller).await;

        measures(&controller).await;
        http.none_failed();
        tcp.none_failed();
        assert!(!controller.log().contains(WRONG), "a secret is told");
        assert_eq!(controller.stop().await, 0);
    });
}

/// What the controller tells of how much time is left, and of how fast it is.
async fn measures(controller: &Controller) {
    let tcp = controller
        .metric("route_sync_ttl_headroom_seconds", "tcp")
        .await;
    assert!(tcp > 0.0 && tcp <= 6.0, "{tcp}");
    let http = controller
        .metric("route_sync_ttl_headroom_seconds", "http")
        .await;
    assert!(http > 60.0 && http <= 120.0, "{http}");
    let stale = controller
        .metric("route_sync_source_stale_seconds", "services")
        .await;
    assert!(stale < 90.0, "{stale}");
    for stage in ["sent", "confirmed"] {
        let labels = format!("lane=\"tcp\",stage=\"{stage}\"");
        let count = controller
            .metric("route_sync_propagation_seconds_count", &labels)
            .await;
        assert!(count >= 1.0, "{stage}: {count}");
    }
    let (_, text, _) = controller.command(&["status"]).await.unwrap();
    assert!(text.contains("headroom"), "{text}");
}
