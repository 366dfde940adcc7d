//! A controller killed while its sources are down goes on from its state file.

use std::path::Path;
use std::time::Duration;

use counterparts::Program;
use serde_json::json;
use suite::{Line, Site, eventually, on_each_stage};

/// Longer than either router keeps what nobody repeats: 10 s and the next look of its pruner.
const PAST_EVERY_LIFE: Duration = Duration::from_secs(14);

/// Waits until the state file names all of these, as a kill may come at any time after.
async fn kept(folder: &Path, names: &[&str]) {
    eventually("the state is written", async || {
        let text = std::fs::read_to_string(folder.join("routes.jsonl")).unwrap_or_default();
        names.iter().all(|name| text.contains(name))
    })
    .await;
}

#[test]
fn killed_and_started_with_kubernetes_and_uaa_silent_it_keeps_its_routes_alive() {
    let statement = "killed, started again without apiserver and UAA: HTTP never misses a request, \
                     TCP follows the token, and what left meanwhile goes once the apiserver is back";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let state = tempfile::tempdir().unwrap();
        let site = Site::new(foundation, "warm", 30350).await.unwrap();
        let leaving = Site::new(foundation, "leaving", 30351).await.unwrap();
        let line = Line::new(foundation, "warm", 30352).await.unwrap();
        site.label(foundation).await;
        leaving.label(foundation).await;
        line.label(foundation).await;
        let mut controller = foundation
            .controller_with(|settings| {
                settings.config["state"] = json!({"dir": state.path()});
                // So short that rows of a controller without a token are gone before it gets one.
                settings.config["routing_api"]["ttl"] = json!("5s");
            })
            .await;
        site.answers(foundation).await;
        leaving.answers(foundation).await;
        line.answers(foundation).await;
        let port = format!("\"port\":{}", line.port);
        kept(state.path(), &[&site.host, &leaving.host, &port]).await;

        let requests = site.requested(foundation);
        controller.kill().await.unwrap();
        leaving.unlabel(foundation).await;
        foundation.stack.apiserver.kill();
        foundation.stack.uaa.freeze();
        controller.start_again().unwrap();
        // Not waited for but lived through.
        tokio::time::sleep(PAST_EVERY_LIFE).await;
        assert!(controller.is_running());
        leaving.answers(foundation).await;
        let status = controller.status().await;
        assert_eq!(status["ready"], false, "nothing is known of the cluster");

        foundation.stack.uaa.thaw();
        line.answers(foundation).await;
        eventually("rows are refreshed", async || {
            !foundation.rows_of(line.port).await.is_empty()
        })
        .await;

        foundation.stack.apiserver.begin().await.unwrap();
        controller.ready().await;
        leaving.gone(foundation).await;
        eventually("it is withdrawn, not merely forgotten", async || {
            let log = controller.log();
            log.lines()
                .any(|line| line.contains("http route withdrawn") && line.contains(&leaving.host))
        })
        .await;
        line.answers(foundation).await;
        requests.none_failed();
        assert_eq!(controller.stop().await, 0);
    });
}
