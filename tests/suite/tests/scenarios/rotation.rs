//! Credentials and authorities that are replaced on disk while the controller runs.

use std::path::Path;
use std::time::Duration;

use counterparts::UaaClient;
use serde_json::json;
use suite::{Line, Site, eventually, example, on_each_stage, within};

const SCOPES: [&str; 3] = [
    "routing.router_groups.read",
    "routing.routes.read",
    "routing.routes.write",
];
const ACCOUNT: (&str, &str) = ("kube-system", "route-sync");
/// Certificates are looked at every 30 s, and each controller waits for a moment of its own up to 5 s.
const CERTIFICATES: Duration = Duration::from_secs(60);
/// An authority that signed nobody here.
const STRANGER: &str = include_str!("../../../self_signed.pem");

/// Replaces a file whole, as whoever rotates does.
fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, file).unwrap();
}

#[test]
fn everything_it_shows_and_trusts_is_rotated_without_a_restart() {
    let statement = "a wrong CA bundle heals; the UAA secret, the ServiceAccount token, the CA \
                     bundle and the NATS certificate are rotated, and no request fails";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        foundation
            .cluster
            .apply_manifest(&example("rbac.yml"))
            .await
            .unwrap();
        let (namespace, account) = ACCOUNT;
        let token = async |secret: &str| {
            let cluster = &foundation.cluster;
            let token = cluster
                .bound_token(namespace, account, secret)
                .await
                .unwrap();
            cluster.may_get(&token, "/api/v1/nodes").await;
            token
        };
        let (old_token, new_token) = (token("old-token").await, token("new-token").await);
        let client = UaaClient::new("rotated", "first-secret", &SCOPES).validity(8);
        foundation.uaa_client(&client).await;

        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let pki = foundation.stack.pki.clone();
        for (name, text) in [
            ("ca", STRANGER),
            ("secret", "first-secret\n"),
            ("token", &old_token),
            ("nats-ca", &pki.ca_pem),
            ("nats-cert", &pki.client.cert_pem),
            ("nats-key", &pki.client.key_pem),
        ] {
            std::fs::write(file(name), text).unwrap();
        }
        let site = Site::new(foundation, "rotation", 30370).await.unwrap();
        let leaving = Site::new(foundation, "rotated", 30371).await.unwrap();
        let line = Line::new(foundation, "rotation", 30372).await.unwrap();
        site.label(foundation).await;
        leaving.label(foundation).await;
        line.label(foundation).await;
        let mut controller = foundation
            .unready_controller(|settings| {
                let config = &mut settings.config;
                config["uaa"] = json!({
                    "url": config["uaa"]["url"], "client_id": "rotated",
                    "client_secret_file": file("secret"), "ca_file": file("ca"),
                });
                config["routing_api"]["ca_file"] = json!(file("ca"));
                // A request every other second or so, on each token.
                config["routing_api"]["ttl"] = json!("6s");
                let tls = &mut config["nats"]["tls"];
                tls["ca_file"] = json!(file("nats-ca"));
                tls["cert_file"] = json!(file("nats-cert"));
                tls["key_file"] = json!(file("nats-key"));
                let inline = "\"token\": \"@TOKEN@\"";
                let kubeconfig = foundation.stack.apiserver.kubeconfig("@TOKEN@");
                assert!(kubeconfig.contains(inline));
                let by_file = format!("\"tokenFile\": {}", json!(file("token")));
                settings.kubeconfig = kubeconfig.replace(inline, &by_file);
            })
            .await;
        // An authority that signed neither the UAA's nor the API's certificate.
        controller.finding("lane-down", "tcp").await;
        replace(&file("ca"), "half of a certifica");
        replace(&file("ca"), &format!("{STRANGER}\n{}", pki.ca_pem));
        controller.ready().await;
        site.answers(foundation).await;
        leaving.answers(foundation).await;
        line.answers(foundation).await;
        let (http, tcp) = (site.requested(foundation), line.requested(foundation));

        // NATS: another certificate of the same authority. First a pair that does not fit together.
        let connections = controller
            .metric("route_sync_nats_connections_total", "")
            .await;
        let renewed = pki.issue(&["route-sync.service.test"]).unwrap();
        replace(&file("nats-cert"), &renewed.cert_pem);
        replace(&file("nats-key"), &renewed.key_pem);

        // UAA: both secrets are good for a while, then the new one alone.
        let uaa = &foundation.stack.uaa;
        uaa.add_secret("rotated", "second-secret").await.unwrap();
        replace(&file("secret"), "second-secret\n");
        uaa.drop_old_secret("rotated").await.unwrap();
        assert!(uaa.token("rotated", "first-secret").await.is_err());
        let tokens = || controller.log().matches("token fetched").count();
        let seen = tokens();
        eventually("three more tokens", async || tokens() >= seen + 3).await;

        // Kubernetes: the old token is good no more. What leaves is read afresh.
        replace(&file("token"), &new_token);
        foundation
            .cluster
            .delete("Secret", namespace, "old-token")
            .await
            .unwrap();
        eventually("the old token is refused", async || {
            !foundation.cluster.knows(&old_token).await
        })
        .await;
        leaving.unlabel(foundation).await;
        leaving.gone(foundation).await;

        // The authority that is no longer needed goes from the bundle.
        replace(&file("ca"), &pki.ca_pem);
        within(CERTIFICATES, "NATS is connected anew", async || {
            controller
                .metric("route_sync_nats_connections_total", "")
                .await
                > connections
        })
        .await;
        let seen = tokens();
        eventually("one more token", async || tokens() > seen).await;
        assert!(!controller.has_finding("lane-down", "").await);
        http.none_failed();
        tcp.none_failed();
        let log = controller.log();
        for secret in ["first-secret", "second-secret", &old_token, &new_token] {
            assert!(!log.contains(secret), "a secret is told");
        }
        assert_eq!(controller.stop().await, 0);
    });
}
