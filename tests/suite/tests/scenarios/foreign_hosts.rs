//! Hosts that somebody else serves: theirs are not taken over, and who joins ours is told.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use suite::{Foundation, Site, Web, answers, backends, eventually, http_get, on_each_stage, stays};
use tokio::task::JoinHandle;

/// No Node of the cluster has this address.
const STRANGER: [u8; 4] = [10, 0, 0, 7];
/// Far below every router's threshold.
const BEAT: Duration = Duration::from_secs(1);

/// Somebody who registers one host and answers it.
struct Stranger {
    address: SocketAddr,
    message: String,
    nats: async_nats::Client,
    beats: JoinHandle<()>,
    _web: Web,
}

// === impl Stranger ===

impl Stranger {
    async fn start(foundation: &Foundation, host: &str, port: u16) -> Self {
        let address = SocketAddr::from((STRANGER, port));
        let web = Web::start(&[address], "theirs").await.unwrap();
        let message = json!({
            "host": address.ip(), "port": port, "uris": [host], "app": "somebody-else",
            "tags": {"component": "route-emitter"},
        });
        let (nats, message) = (
            foundation.stack.nats.connect().await.unwrap(),
            message.to_string(),
        );
        let (client, body) = (nats.clone(), message.clone());
        let beats = tokio::spawn(async move {
            loop {
                client
                    .publish("router.register", body.clone().into())
                    .await
                    .unwrap();
                tokio::time::sleep(BEAT).await;
            }
        });
        Self {
            address,
            message,
            nats,
            beats,
            _web: web,
        }
    }

    async fn leave(self) {
        self.beats.abort();
        let _ = self.beats.await;
        let body = self.message.into();
        self.nats.publish("router.unregister", body).await.unwrap();
        self.nats.flush().await.unwrap();
    }
}

#[test]
fn a_host_that_strangers_serve_is_theirs_until_they_leave_and_who_joins_ours_is_told() {
    let statement = "a label takes no host from strangers, and strangers who join ours are told";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let router = foundation.http();
        let port = |port| foundation.node_port(port);
        let home = Site::new(foundation, "home", port(30260)).await.unwrap();
        let guest = Site::new(foundation, "guest", port(30261)).await.unwrap();
        let stranger = Stranger::start(foundation, &guest.host, port(30262)).await;
        answers(router, &guest.host, &[200]).await;
        let controller = foundation.controller().await;
        home.label(foundation).await;
        home.answers(foundation).await;
        eventually("it listens", async || {
            let status = controller.status().await.to_string();
            status.contains("heard on `router.register`")
        })
        .await;
        // Who serves what is known once everybody has spoken, and a router may still tell a shorter interval.
        let interval = controller
            .metric("route_sync_nats_interval_milliseconds", "")
            .await;
        tokio::time::sleep(Duration::from_secs_f64(interval / 1000.0) + BEAT).await;

        guest.label(foundation).await;
        controller.finding("host-foreign", &guest.service).await;
        stays(2 * BEAT, "theirs is the only answer", async || {
            http_get(router, &guest.host, "/").await == (200, "theirs".to_owned())
        })
        .await;
        let routes = foundation.http_routes().await;
        let theirs = stranger.address.to_string();
        assert_eq!(
            backends(&routes, &guest.host)
                .into_iter()
                .collect::<Vec<_>>(),
            [theirs]
        );
        stranger.leave().await;
        eventually("ours takes over", async || {
            http_get(router, &guest.host, "/").await == (200, "guest".to_owned())
        })
        .await;
        eventually("the finding is gone", async || {
            !controller.has_finding("host-foreign", "").await
        })
        .await;

        let before = backends(&foundation.http_routes().await, &home.host);
        let requests = home.requested(foundation);
        let stranger = Stranger::start(foundation, &home.host, port(30263)).await;
        controller
            .finding("host-foreign-joined", &home.service)
            .await;
        eventually("both serve it", async || {
            let now = backends(&foundation.http_routes().await, &home.host);
            now.is_superset(&before) && now.contains(&stranger.address.to_string())
        })
        .await;
        stranger.leave().await;
        eventually("the finding is gone", async || {
            !controller.has_finding("host-foreign-joined", "").await
        })
        .await;
        assert_eq!(
            backends(&foundation.http_routes().await, &home.host),
            before
        );
        let (made, _) = requests.end();
        assert!(made > 0);
        assert_eq!(controller.stop().await, 0);
    });
}
