//! The process as its operator sees it: its pages, commands, logs and its end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use counterparts::Program;
use counterparts::kube_apiserver::ADMIN_TOKEN;
use sandbox::listen::Failure;
use serde_json::{Value, json};
use suite::{
    Controller, Foundation, HttpFront, HttpLoop, Line, Settings, Site, Stage, eventually,
    on_each_stage, on_stage, stays,
};

/// Longer than the controller waits for its last echo and for requests under way (8 s), shorter than BPM waits (15 s).
const STOPS_WITHIN: Duration = Duration::from_secs(14);

async fn start(foundation: &Foundation) -> Controller {
    Controller::start(Settings::new(foundation).unwrap())
        .await
        .unwrap()
}

/// Waits until `/ready` answers 503 with exactly these beginnings of lines.
async fn missing(controller: &Controller, expected: &[&str]) {
    eventually(&format!("missing: {expected:?}"), async || {
        let Some((503, text)) = controller.page("ready").await else {
            return false;
        };
        let lines: Vec<&str> = text.lines().collect();
        lines.len() == expected.len()
            && lines
                .iter()
                .zip(expected)
                .all(|(line, start)| line.starts_with(start))
    })
    .await;
    let (status, _) = controller.page("live").await.unwrap();
    assert_eq!(status, 200, "whatever is missing, the process lives");
}

#[test]
fn the_pages_tell_each_phase_of_a_start() {
    // Only what is real at both stages is held up.
    on_stage(Stage::Sandbox, async |foundation| {
        foundation.nodes(2).await;
        let site = Site::new(foundation, "phases", 30340).await.unwrap();
        let line = Line::new(foundation, "phases", 30341).await.unwrap();
        site.label(foundation).await;
        line.label(foundation).await;

        foundation.stack.apiserver.freeze();
        foundation.stack.nats.freeze();
        let mut controller = start(foundation).await;
        let all = [
            "source nodes:",
            "source services",
            "source services",
            "lane tcp:",
            "lane http:",
        ];
        nothing_is_known(&controller, &all).await;

        foundation.stack.apiserver.thaw();
        missing(&controller, &["lane http: not confirmed yet"]).await;
        line.answers(foundation).await;
        let confirmed = async |lane: &str| {
            let labels = format!("lane=\"{lane}\"");
            controller
                .metric("route_sync_lane_confirmed", &labels)
                .await
        };
        assert_eq!(
            (confirmed("tcp").await, confirmed("http").await),
            (1.0, 0.0)
        );
        let status = controller.status().await;
        assert_eq!(status["ready"], false);
        assert_eq!(status["lanes"]["tcp"]["confirmed"], true);
        assert_eq!(status["lanes"]["http"]["confirmed"], false);
        let (_, table, _) = controller.command(&["status"]).await.unwrap();
        assert!(
            table.contains("not ready") && table.contains("missing: lane http"),
            "{table}"
        );

        foundation.stack.nats.thaw();
        controller.ready().await;
        assert_eq!(
            controller.page("ready").await.unwrap(),
            (200, "ready\n".to_owned())
        );
        site.answers(foundation).await;
        everything_is_told(&controller, &site, &line).await;
        assert_eq!(controller.stop().await, 0);
    });
}

async fn nothing_is_known(controller: &Controller, expected: &[&str]) {
    eventually("the pages are there", async || {
        controller.page("live").await.is_some()
    })
    .await;
    let (status, text) = controller.page("ready").await.unwrap();
    assert_eq!(status, 503);
    for line in expected {
        assert!(
            text.lines().any(|told| told.starts_with(line)),
            "`{line}` is not in\n{text}"
        );
    }
    let report = controller.status().await;
    assert_eq!(
        (&report["format"], &report["ready"]),
        (&json!(1), &json!(false))
    );
    let told: Vec<String> = serde_json::from_value(report["missing"].clone()).unwrap();
    assert_eq!(told.len(), text.lines().count());
    let synced = controller.metric("route_sync_source_synced", "").await;
    assert_eq!(synced, 0.0);
    let (code, table, _) = controller.command(&["status"]).await.unwrap();
    assert_eq!(code, 0);
    assert!(
        table.contains("not ready") && table.contains("incomplete"),
        "{table}"
    );
}

async fn everything_is_told(controller: &Controller, site: &Site, line: &Line) {
    let live = async || {
        let metric = async |lane: &str| {
            let labels = format!("lane=\"{lane}\",state=\"live\"");
            controller.metric("route_sync_routes", &labels).await
        };
        metric("http").await == 1.0 && metric("tcp").await == 1.0
    };
    eventually("one live route of each lane in the metrics", live).await;
    let (_, metrics) = controller.page("metrics").await.unwrap();
    assert!(metrics.ends_with("# EOF\n"), "OpenMetrics has an end");
    for name in [
        "route_sync_build_info",
        "route_sync_process_resident_memory_bytes",
    ] {
        assert!(metrics.contains(&format!("\n{name}")), "{name}");
    }
    assert_eq!(controller.metric("route_sync_nodes", "").await, 2.0);
    assert_eq!(controller.metric("route_sync_services", "").await, 2.0);

    let (code, text, _) = controller
        .command(&["status", "--output", "json"])
        .await
        .unwrap();
    assert_eq!(code, 0);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&report["ready"], &report["missing"]),
        (&json!(true), &json!([]))
    );
    let route = &report["lanes"]["http"]["routes"][&site.host];
    assert_eq!(
        (&route["service"], &route["state"]),
        (&json!(site.service), &json!("live"))
    );
    // Their order is by a hash of node and Service, and the nodes' UIDs are new each time.
    let backends = route["backends"].as_array().cloned().unwrap_or_default();
    let mut backends: Vec<_> = backends.iter().filter_map(Value::as_str).collect();
    backends.sort_unstable();
    assert_eq!(backends, ["10.0.0.1:30340", "10.0.0.2:30340"]);
    let route = &report["lanes"]["tcp"]["routes"][line.port.to_string()];
    assert_eq!(
        (&route["service"], &route["state"]),
        (&json!(line.service), &json!("live"))
    );
    for (source, told) in report["sources"].as_object().unwrap() {
        assert!(
            told["synced"] == true && told["error"].is_null(),
            "{source}: {told}"
        );
    }

    let (code, table, _) = controller.command(&["status"]).await.unwrap();
    assert_eq!(code, 0);
    for word in [
        ": ready\n",
        "lane http: confirmed",
        "lane tcp: confirmed",
        &site.host,
        &line.service,
    ] {
        assert!(table.contains(word), "`{word}` is not in\n{table}");
    }
}

#[test]
fn plan_tells_by_its_exit_code_what_is_pending_and_writes_nothing() {
    let statement = "`plan` answers 0, 2 and 1, and writes nothing";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let settings = Settings::new(foundation).unwrap();
        let line = Line::new(foundation, "planned", 30342).await.unwrap();
        let site = Site::new(foundation, "planned", 30343).await.unwrap();
        let plan = async |settings: &Settings| settings.command(&["plan"]).await.unwrap();

        let (code, text, errors) = plan(&settings).await;
        assert_eq!(
            (code, text.as_str()),
            (0, "tcp: 0 to add, 0 to remove, 0 to keep\n"),
            "{errors}"
        );

        line.label(foundation).await;
        site.label(foundation).await;
        let (code, text, errors) = plan(&settings).await;
        assert_eq!(code, 2, "{text}{errors}");
        assert!(
            text.contains("tcp: 2 to add, 0 to remove, 0 to keep\n"),
            "{text}"
        );
        let row = format!("  + {}  10.0.0.1:30342\n", line.port);
        assert!(text.contains(&row) && text.contains(&site.host), "{text}");
        assert!(
            foundation.rows_of(line.port).await.is_empty(),
            "a plan writes nothing"
        );
        assert!(
            foundation.http_routes().await.get(&site.host).is_none(),
            "a plan announces nothing"
        );

        let controller = foundation.controller().await;
        line.answers(foundation).await;
        let (code, text, errors) = controller.command(&["plan"]).await.unwrap();
        assert_eq!(code, 0, "{text}{errors}");
        assert!(
            text.contains("tcp: 0 to add, 0 to remove, 2 to keep\n"),
            "{text}"
        );
        assert_eq!(controller.stop().await, 0);

        // The controller is gone and its rows still stand: without the label they are to be removed.
        line.unlabel(foundation).await;
        let (code, text, _) = settings
            .command(&["plan", "--output", "json"])
            .await
            .unwrap();
        let view: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, view["in_sync"].clone()), (2, json!(false)));
        assert_eq!(
            view["tcp"]["remove"].as_array().map(Vec::len),
            Some(2),
            "{text}"
        );
        assert_eq!(
            foundation.rows_of(line.port).await.len(),
            2,
            "a plan writes nothing"
        );

        let mut nowhere = Settings::new(foundation).unwrap();
        nowhere.config["routing_api"]["url"] = json!("https://127.0.0.1:1");
        let (code, text, errors) = plan(&nowhere).await;
        assert_eq!((code, text.as_str()), (1, ""));
        assert!(errors.starts_with("error: "), "{errors}");
        nowhere.config["routing_api"]["url"] = json!(7);
        assert_eq!(
            plan(&nowhere).await.0,
            1,
            "2 would say that changes are pending"
        );
    });
}

#[test]
fn check_and_lint_need_no_foundation() {
    on_stage(Stage::Sandbox, async |foundation| {
        let mut settings = Settings::new(foundation).unwrap();
        let (code, text, errors) = settings.command(&["check", "--offline"]).await.unwrap();
        assert_eq!((code, errors.as_str()), (0, ""));
        assert!(text.ends_with("is valid\n"), "{text}");
        let (code, text, _) = settings
            .command(&["check", "--offline", "--output", "json"])
            .await
            .unwrap();
        let view: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, &view["valid"]), (0, &json!(true)));
        settings.config["nats"]["servrs"] = json!([]);
        let (code, _, errors) = settings.command(&["check", "--offline"]).await.unwrap();
        assert_eq!(code, 2);
        assert!(
            errors.contains("nats.servrs") && errors.contains("`nats.servers`"),
            "{errors}"
        );

        let examples = format!("{}/../../examples", env!("CARGO_MANIFEST_DIR"));
        let names = ["nginx", "grafana", "tomcat", "mysql", "rbac"];
        let files = names.map(|name| format!("{examples}/{name}.yml"));
        let mut arguments = vec!["lint", "-f"];
        arguments.extend(files.iter().map(String::as_str));
        let settings = Settings::new(foundation).unwrap();
        let (code, text, errors) = settings.command(&arguments).await.unwrap();
        assert_eq!((code, errors.as_str()), (0, ""), "{text}");
        for (route, service) in [
            ("nginx.apps.example.test", "default/nginx"),
            ("grafana.apps.example.test", "kube-system/grafana"),
            ("tomcat-example.apps.example.test", "default/tomcat"),
            ("34569", "default/mysql"),
        ] {
            let line = text.lines().find(|line| line.contains(route));
            assert!(
                line.is_some_and(|line| line.ends_with(service)),
                "{route}: {text}"
            );
        }
    });
}

/// Everything of the configuration that nobody may read elsewhere.
fn secrets(foundation: &Foundation) -> Vec<String> {
    let stack = &foundation.stack;
    let mut secrets = vec![
        counterparts::stack::CLIENT.1.to_owned(),
        stack.nats.options().password.clone(),
        ADMIN_TOKEN.to_owned(),
        // How every token of the UAA begins.
        "eyJ".to_owned(),
    ];
    // The longest lines of a key are as secret as the key.
    secrets.extend(
        stack
            .pki
            .client
            .key_pem
            .lines()
            .filter(|line| line.len() > 60)
            .map(str::to_owned),
    );
    secrets
}

#[test]
fn every_log_line_is_lagers_and_nothing_tells_a_secret() {
    let statement =
        "each line is lager's, findings stand alike in log, metrics and status, no secret is told";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let controller = foundation
            .controller_with(|settings| {
                // Everything that anybody says, libraries too.
                settings.config["log"] = json!({"format": "lager", "level": "trace"});
            })
            .await;
        let site = Site::new(foundation, "logged", 30344).await.unwrap();
        let line = Line::new(foundation, "logged", 30345).await.unwrap();
        site.label(foundation).await;
        line.label(foundation).await;
        site.answers(foundation).await;
        line.answers(foundation).await;
        poison(foundation).await;
        for (code, subject) in POISON_TOLD {
            controller.finding(code, &foundation.name(subject)).await;
        }
        // What cannot be reached is told with its address and reason: a place where secrets slip out.
        foundation.stack.nats.stop().await;
        controller.finding("lane-down", "http").await;
        same_findings_everywhere(&controller).await;
        let told = [
            controller.page("metrics").await.unwrap().1,
            controller.page("status.json").await.unwrap().1,
            controller.page("ready").await.unwrap().1,
            controller.command(&["status"]).await.unwrap().1,
        ];
        foundation.stack.nats.begin().await.unwrap();
        eventually("lane-down is resolved in the log", async || {
            let resolved = r#""message":"route-sync.finding resolved""#;
            controller
                .log()
                .lines()
                .any(|line| line.contains(resolved) && line.contains("lane-down"))
        })
        .await;

        let log = controller.log();
        for line in log.lines() {
            is_lagers(line);
        }
        for secret in secrets(foundation) {
            for text in told.iter().chain([&log]) {
                let line = text.lines().find(|line| line.contains(&secret));
                assert_eq!(line, None, "a secret is told");
            }
        }
        assert_eq!(controller.stop().await, 0);
    });
}

/// Services with mistakes, and what has to be found about them.
const POISON: [(&str, &str, &str); 3] = [
    ("poison/port", "tcp-route-sync", "70000"),
    ("poison/word", "tcp-route-sync", "mysql"),
    ("poison/host", "http-route-sync", "api"),
];
const POISON_TOLD: [(&str, &str); 3] = [
    ("port-out-of-range", "poison/port"),
    ("port-not-a-number", "poison/word"),
    ("host-denied", "poison/host"),
];

async fn poison(foundation: &Foundation) {
    for (index, (service, label, value)) in POISON.into_iter().enumerate() {
        let service = foundation.name(service);
        let node_port = 30346 + u16::try_from(index).unwrap();
        foundation
            .cluster
            .service(&service, node_port)
            .await
            .unwrap();
        foundation
            .cluster
            .label(&service, label, Some(value))
            .await
            .unwrap();
    }
}

/// `{"timestamp","level","source","message","data"}` and nothing else.
fn is_lagers(line: &str) {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let keys: BTreeSet<&str> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let expected = BTreeSet::from(["timestamp", "level", "source", "message", "data"]);
    assert_eq!(keys, expected, "{line}");
    let text = |key: &str| {
        value[key]
            .as_str()
            .unwrap_or_else(|| panic!("{key}: {line}"))
    };
    let timestamp = text("timestamp");
    assert!(
        timestamp.len() == 30 && timestamp.ends_with('Z') && timestamp.contains('T'),
        "{line}"
    );
    assert!(
        ["debug", "info", "error", "fatal"].contains(&text("level")),
        "{line}"
    );
    assert_eq!(text("source"), "route-sync", "{line}");
    assert!(text("message").starts_with("route-sync."), "{line}");
    assert!(value["data"].is_object(), "{line}");
}

/// By code and subject, as the log leaves them: each told once, and gone where it was resolved.
fn logged_findings(log: &str) -> BTreeSet<(String, String)> {
    let mut findings = BTreeSet::new();
    for line in log.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let text = |key: &str| line["data"][key].as_str().unwrap_or_default().to_owned();
        let finding = (text("code"), text("subject"));
        match line["message"].as_str() {
            Some("route-sync.finding") => drop(findings.insert(finding)),
            Some("route-sync.finding resolved") => drop(findings.remove(&finding)),
            _ => {}
        }
    }
    findings
}

async fn same_findings_everywhere(controller: &Controller) {
    eventually(
        "log, status and metrics tell the same findings",
        async || {
            let status = controller.status().await;
            let logged: BTreeSet<String> = logged_findings(&controller.log())
                .into_iter()
                .map(|(code, _)| code)
                .collect();
            let mut told = BTreeMap::<String, f64>::new();
            for finding in status["findings"].as_array().into_iter().flatten() {
                *told
                    .entry(finding["code"].as_str().unwrap_or_default().to_owned())
                    .or_default() += 1.0;
            }
            let mut same = !told.is_empty() && logged.iter().eq(told.keys());
            for (code, count) in &told {
                let label = format!("code=\"{code}\"");
                same &= controller.metric("route_sync_findings", &label).await == *count;
            }
            same && controller.metric("route_sync_findings", "").await == told.values().sum::<f64>()
        },
    )
    .await;
}

#[test]
fn a_text_log_is_one_line_for_each_change() {
    on_stage(Stage::Sandbox, async |foundation| {
        foundation.nodes(2).await;
        let controller = foundation
            .controller_with(|settings| settings.config["log"] = json!({"format": "text"}))
            .await;
        let site = Site::new(foundation, "told", 30350).await.unwrap();
        let line = Line::new(foundation, "told", 30351).await.unwrap();
        site.label(foundation).await;
        line.label(foundation).await;
        site.answers(foundation).await;
        line.answers(foundation).await;
        let about = |text: &str| -> Vec<String> {
            controller
                .log()
                .lines()
                .filter(|line| line.contains(text))
                .map(str::to_owned)
                .collect()
        };
        eventually("both routes are logged", async || {
            about(&site.service).len() == 1 && about(&line.service).len() == 1
        })
        .await;
        let told = about(&site.service).remove(0);
        assert!(
            told.contains(" INFO http: ") && told.contains(&site.host),
            "{told}"
        );
        // Said once, when the routers' answers to the greeting are in.
        eventually("the interval is told", async || {
            about("interval adopted").len() == 1
        })
        .await;
        // Beats say nothing.
        let length = controller.log().len();
        let beats = async || controller.metric("route_sync_nats_beats_total", "").await;
        let before = beats().await;
        eventually("some beats", async || beats().await >= before + 4.0).await;
        assert_eq!(
            controller.log().len(),
            length,
            "{}",
            &controller.log()[length..]
        );
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn sigterm_ends_the_process_and_keeps_every_route() {
    let statement = "SIGTERM: exit 0, and every route answers on until the next start";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let site = Site::new(foundation, "kept", 30352).await.unwrap();
        let line = Line::new(foundation, "kept", 30353).await.unwrap();
        let controller = foundation.controller().await;
        site.label(foundation).await;
        line.label(foundation).await;
        site.answers(foundation).await;
        line.answers(foundation).await;
        let rows = foundation.rows_of(line.port).await.len();
        let front = HttpFront::patient(foundation, &site.host).await.unwrap();
        let http = HttpLoop::start(front.address(), &site.host);
        let tcp = line.requested(foundation);

        assert_eq!(controller.stop().await, 0);
        // Far below the router's stale threshold.
        stays(Duration::from_secs(3), "the rows stand", async || {
            foundation.rows_of(line.port).await.len() == rows
        })
        .await;
        let controller = foundation.controller().await;
        http.none_failed();
        tcp.none_failed();
        assert_eq!(foundation.rows_of(line.port).await.len(), rows);
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_stop_that_is_held_up_is_bounded_and_a_second_signal_aborts_it() {
    // The real routing API cannot be made to hang on one request alone.
    on_stage(Stage::Sandbox, async |foundation| {
        foundation.nodes(2).await;
        for (round, second) in [None, Some("INT")].into_iter().enumerate() {
            let node_port = 30354 + u16::try_from(round).unwrap();
            let line = Line::new(foundation, &format!("held-{round}"), node_port)
                .await
                .unwrap();
            let controller = foundation.controller().await;
            // A request is under way and gets no answer: the stop has something to wait for.
            foundation.boxed.routing_api.fail_with(Some(Failure::Hang));
            foundation.boxed.routing_api.forget_requests();
            line.label(foundation).await;
            eventually("a request hangs", async || {
                !foundation.boxed.routing_api.requests().is_empty()
            })
            .await;
            // Both signals are there when it goes on: nothing depends on who is faster.
            controller.signal("STOP");
            controller.signal("TERM");
            if let Some(second) = second {
                controller.signal(second);
            }
            controller.signal("CONT");
            let begun = tokio::time::Instant::now();
            let (code, log) = controller.end_with_log().await;
            foundation.boxed.routing_api.fail_with(None);
            let took = begun.elapsed();
            assert_eq!(code, i32::from(second.is_some()), "{log}");
            assert!(took < STOPS_WITHIN, "it took {took:?}");
            let end = if second.is_some() {
                "aborted signal=SIG"
            } else {
                "INFO stopped"
            };
            assert!(
                log.contains("stopping, routes kept") && log.contains(end),
                "{log}"
            );
        }
    });
}
