//! The old job goes on as it is: its command line, its file of eight keys, a foundation that still has a plain
//! NATS and an http routing API, and a UAA whose authority nobody knows.

use std::time::Duration;

use counterparts::{NatsServer, NatsServerOptions};
use suite::controller::KUBECONFIG;
use suite::{
    Controller, Foundation, FrontTimes, HttpFront, Line, Settings, Site, eventually, http_status,
    on_each_stage,
};

/// What the old job was given where no other was configured.
const NATS_PORT: u16 = 4222;
const PASSWORD: &str = "0123";
/// A router that serves as soon as it can.
const TIMES: FrontTimes = FrontTimes {
    start_delay: Duration::from_secs(1),
    stale_threshold: Duration::from_secs(10),
};

/// The file as the old job's template renders it: nothing in quotes, an empty line after each list item. The
/// password is a number to YAML and has to stay the text that it is.
fn original(foundation: &Foundation, nats_hosts: &[&str]) -> String {
    let servers: String = nats_hosts
        .iter()
        .map(|host| format!("- host: {host}\n  user: nats\n  password: {PASSWORD}\n\n"))
        .collect();
    let (id, secret) = counterparts::stack::CLIENT;
    format!(
        "nats_servers:\n{servers}\
         routing_api_url: {}\n\
         app_domain_name: {}\n\
         uaa_api_url: {}\n\
         routing_api_username: {id}\n\
         routing_api_client_secret: {secret}\n\
         skip_tls_verification: true\n\
         kube_config_path: {KUBECONFIG}\n",
        foundation.plain_api_url(),
        counterparts::stack::APP_DOMAIN,
        foundation.stack.uaa.url(),
    )
}

async fn start(foundation: &Foundation, text: String, flag: &str) -> Controller {
    let settings = Settings {
        text: Some(text),
        arguments: Vec::new(),
        flag: Some(flag.to_owned()),
        ..Settings::new(foundation).unwrap()
    };
    let mut controller = Controller::start(settings).await.unwrap();
    controller.ready().await;
    controller
}

/// Labels both, sees both, takes both labels away and sees both go.
async fn does_its_job(foundation: &Foundation, router: &HttpFront, site: &Site, line: &Line) {
    let status = async || http_status(router.address(), &site.host).await;
    site.label(foundation).await;
    line.label(foundation).await;
    eventually(
        "the host answers through the plain NATS' router",
        async || status().await == 200,
    )
    .await;
    line.answers(foundation).await;
    site.unlabel(foundation).await;
    line.unlabel(foundation).await;
    let gone = async || matches!(status().await, 404 | 503);
    eventually("the host is gone from the plain NATS' router", gone).await;
    line.gone(foundation).await;
}

#[test]
fn the_old_jobs_command_line_and_file_work_as_they_are() {
    let statement = "the old job's eight keys work on a plain NATS, an http routing API and an unknown authority";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let options = NatsServerOptions {
            mutual_tls: false,
            password: PASSWORD.to_owned(),
            port: Some(NATS_PORT),
            ..NatsServerOptions::default()
        };
        let stack = &foundation.stack;
        let nats = NatsServer::start(&stack.run, &stack.pki, options)
            .await
            .unwrap();
        let router = HttpFront::start(foundation, &nats, TIMES).await.unwrap();
        let site = Site::new(foundation, "old-job", 30332).await.unwrap();
        let line = Line::new(foundation, "old-job", 30333).await.unwrap();

        // Without a port, as the first templates had it; the original's own flag has one dash.
        let controller = start(
            foundation,
            original(foundation, &["127.0.0.1"]),
            "-configPath=",
        )
        .await;
        does_its_job(foundation, &router, &site, &line).await;
        each_weakness_is_told_once(&controller.log());
        assert_eq!(controller.stop().await, 0);

        // With a port, behind a server that is gone, and with a key that nobody knows.
        let both =
            original(foundation, &["127.0.0.1:4223", "127.0.0.1:4222"]) + "cloud_foundry_api: x\n";
        let controller = start(foundation, both, "--configPath").await;
        does_its_job(foundation, &router, &site, &line).await;
        let log = controller.log();
        each_weakness_is_told_once(&log);
        assert_eq!(
            log.matches("route-sync.configuration key ignored").count(),
            1,
            "{log}"
        );
        assert!(log.contains("cloud_foundry_api"), "{log}");
        assert_eq!(controller.stop().await, 0);
    });
}

fn each_weakness_is_told_once(log: &str) {
    for weakness in [
        "`uaa.skip_tls_verification` is on",
        "`routing_api.url` is http",
        "`nats.tls` is not given",
    ] {
        assert_eq!(log.matches(weakness).count(), 1, "{weakness}: {log}");
    }
    assert_eq!(log.matches(r#""weakness":"#).count(), 3, "{log}");
    for secret in [PASSWORD, counterparts::stack::CLIENT.1] {
        assert!(!log.contains(&format!("\"{secret}\"")), "{log}");
    }
}
