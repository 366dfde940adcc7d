//! What one lane's other side does is nothing to the other lane, whatever is stopped, frozen or not yet there.
//!
//! Each scenario keeps one route of each lane alive under requests, breaks one side, and sees the other land a
//! change; then the broken side comes back and the change it missed lands by itself.

use counterparts::Program;
use sandbox::listen::Failure;
use suite::{
    Controller, Foundation, HttpFront, HttpLoop, Line, Site, Stage, TcpLoop, eventually,
    on_each_stage,
};

/// What lives before anything is broken, what is labelled while it is, and the requests that must not fail.
struct Scene {
    site: Site,
    line: Line,
    late_site: Site,
    late_line: Line,
}

struct Requests {
    http: HttpLoop,
    tcp: TcpLoop,
}

impl Scene {
    async fn new(foundation: &mut Foundation, name: &str, first_node_port: u16) -> Self {
        foundation.nodes(2).await;
        let late = format!("{name}-late");
        Self {
            site: Site::new(foundation, name, first_node_port).await.unwrap(),
            line: Line::new(foundation, name, first_node_port + 1)
                .await
                .unwrap(),
            late_site: Site::new(foundation, &late, first_node_port + 2)
                .await
                .unwrap(),
            late_line: Line::new(foundation, &late, first_node_port + 3)
                .await
                .unwrap(),
        }
    }

    async fn label(&self, foundation: &Foundation) {
        self.site.label(foundation).await;
        self.line.label(foundation).await;
    }

    /// Both first routes are alive, and requested from now on.
    async fn living(&self, foundation: &Foundation) -> Requests {
        self.label(foundation).await;
        self.site.answers(foundation).await;
        self.line.answers(foundation).await;
        Requests {
            http: self.site.requested(foundation),
            tcp: self.line.requested(foundation),
        }
    }
}

impl Requests {
    /// Ends both loops; nothing has failed.
    fn none_failed(self) {
        self.http.none_failed();
        self.tcp.none_failed();
    }
}

/// `/ready` says 503 and names it.
async fn misses(controller: &Controller, what: &str) {
    eventually(what, async || {
        let page = controller.page("ready").await;
        page.is_some_and(|(status, text)| status == 503 && text.contains(what))
    })
    .await;
    assert_eq!(controller.page("live").await.unwrap().0, 200);
}

async fn resolved(controller: &Controller, code: &str, subject: &str) {
    eventually(&format!("{code} of {subject} is resolved"), async || {
        let status = controller.status().await;
        status["findings"].is_array() && !controller.has_finding(code, subject).await
    })
    .await;
}

#[test]
fn with_nats_stopped_tcp_changes_land() {
    let statement =
        "NATS stopped: TCP changes land, every route lives, and HTTP catches up after its restart";
    on_each_stage(statement, async |foundation| {
        let scene = Scene::new(foundation, "no-nats", 30300).await;
        let mut controller = foundation.controller().await;
        let requests = scene.living(foundation).await;

        foundation.stack.nats.stop().await;
        controller.finding("lane-down", "http").await;
        scene.late_site.label(foundation).await;
        scene.late_line.label(foundation).await;
        scene.late_line.answers(foundation).await;
        // A lane that is down is told, and is no reason to restart the process.
        assert_eq!(controller.page("ready").await.unwrap().0, 200);

        foundation.stack.nats.begin().await.unwrap();
        scene.late_site.answers(foundation).await;
        resolved(&controller, "lane-down", "http").await;
        requests.none_failed();
        assert!(controller.is_running());
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn with_uaa_and_routing_api_stopped_http_changes_land() {
    let statement = "UAA and routing API stopped: HTTP changes land, every route lives, and TCP catches up after their restart";
    on_each_stage(statement, async |foundation| {
        let scene = Scene::new(foundation, "no-api", 30304).await;
        let mut controller = foundation.controller().await;
        let requests = scene.living(foundation).await;

        foundation.stop_routing_api().await;
        foundation.stack.uaa.stop().await;
        scene.late_line.label(foundation).await;
        scene.late_site.label(foundation).await;
        scene.late_site.answers(foundation).await;
        controller.finding("lane-down", "tcp").await;
        scene.late_site.unlabel(foundation).await;
        scene.late_site.gone(foundation).await;

        foundation.stack.uaa.begin().await.unwrap();
        foundation.start_routing_api().await;
        scene.late_line.answers(foundation).await;
        resolved(&controller, "lane-down", "tcp").await;
        requests.none_failed();
        assert!(controller.is_running());
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_frozen_nats_holds_up_http_alone() {
    let statement =
        "NATS frozen: TCP changes land, every route lives, and HTTP catches up once it goes on";
    on_each_stage(statement, async |foundation| {
        let scene = Scene::new(foundation, "cold-nats", 30308).await;
        let mut controller = foundation.controller().await;
        let Requests { tcp, .. } = scene.living(foundation).await;
        let site = &scene.site;
        let front = HttpFront::patient(foundation, &site.host).await.unwrap();
        let http = HttpLoop::start(front.address(), &site.host);

        foundation.stack.nats.freeze();
        scene.late_site.label(foundation).await;
        scene.late_line.label(foundation).await;
        scene.late_line.answers(foundation).await;
        // Not longer: the router does not see that its NATS is frozen and prunes what is not announced again.
        foundation.stack.nats.thaw();

        scene.late_site.answers(foundation).await;
        Requests { http, tcp }.none_failed();
        assert!(controller.is_running());
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_frozen_uaa_and_a_hanging_routing_api_hold_up_tcp_alone() {
    let statement = "UAA and routing API frozen: HTTP changes land, every route lives, and TCP catches up once they go on";
    on_each_stage(statement, async |foundation| {
        let scene = Scene::new(foundation, "cold-api", 30312).await;
        let mut controller = foundation.controller().await;
        let requests = scene.living(foundation).await;

        foundation.stack.uaa.freeze();
        match foundation.stage {
            Stage::Sandbox => foundation.boxed.routing_api.fail_with(Some(Failure::Hang)),
            Stage::Real => foundation.stack.routing_api.as_ref().unwrap().freeze(),
        }
        scene.late_line.label(foundation).await;
        scene.late_site.label(foundation).await;
        scene.late_site.answers(foundation).await;
        controller.finding("lane-down", "tcp").await;
        scene.late_site.unlabel(foundation).await;
        scene.late_site.gone(foundation).await;

        foundation.stack.uaa.thaw();
        match foundation.stage {
            Stage::Sandbox => foundation.boxed.routing_api.fail_with(None),
            Stage::Real => foundation.stack.routing_api.as_ref().unwrap().thaw(),
        }
        scene.late_line.answers(foundation).await;
        resolved(&controller, "lane-down", "tcp").await;
        requests.none_failed();
        assert!(controller.is_running());
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_start_without_nats_serves_tcp_and_http_joins() {
    let statement = "NATS down at the start: TCP works, and HTTP joins later";
    on_each_stage(statement, async |foundation| {
        let scene = Scene::new(foundation, "late-nats", 30316).await;
        foundation.stack.nats.stop().await;
        let mut controller = foundation.unready_controller(|_| {}).await;
        scene.label(foundation).await;
        scene.line.answers(foundation).await;
        misses(&controller, "lane http").await;

        foundation.stack.nats.begin().await.unwrap();
        scene.site.answers(foundation).await;
        controller.ready().await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_start_without_uaa_serves_http_and_tcp_joins() {
    let statement = "UAA down at the start: HTTP works, and TCP joins later";
    on_each_stage(statement, async |foundation| {
        let scene = Scene::new(foundation, "late-uaa", 30320).await;
        foundation.stack.uaa.stop().await;
        let mut controller = foundation.unready_controller(|_| {}).await;
        scene.label(foundation).await;
        scene.site.answers(foundation).await;
        misses(&controller, "lane tcp").await;

        foundation.stack.uaa.begin().await.unwrap();
        scene.line.answers(foundation).await;
        controller.ready().await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_start_without_routing_api_serves_http_and_tcp_joins() {
    let statement = "routing API down at the start: HTTP works, and TCP joins later";
    on_each_stage(statement, async |foundation| {
        let scene = Scene::new(foundation, "late-api", 30324).await;
        foundation.stop_routing_api().await;
        let mut controller = foundation.unready_controller(|_| {}).await;
        scene.label(foundation).await;
        scene.site.answers(foundation).await;
        misses(&controller, "lane tcp").await;

        foundation.start_routing_api().await;
        scene.line.answers(foundation).await;
        controller.ready().await;
        assert_eq!(controller.stop().await, 0);
    });
}

#[test]
fn a_start_without_apiserver_removes_nothing() {
    let statement =
        "apiserver down at the start: nothing is removed, and everything comes once it is there";
    on_each_stage(statement, async |foundation| {
        let scene = Scene::new(foundation, "late-kube", 30328).await;
        let first = foundation.controller().await;
        let Requests { http, tcp } = scene.living(foundation).await;
        assert_eq!(first.stop().await, 0);
        // Nobody announces the host until the apiserver is back; the row of the port lives on for its TTL.
        http.none_failed();
        let rows = foundation.rows_of(scene.line.port).await.len();
        assert_eq!(rows, 2);

        foundation.stack.apiserver.stop().await;
        let mut controller = foundation.unready_controller(|_| {}).await;
        misses(&controller, "source").await;
        // Both lanes have met their other side by then, and still nothing goes.
        eventually("NATS is connected", async || {
            controller.metric("route_sync_nats_connected", "").await > 0.0
        })
        .await;
        assert_eq!(foundation.rows_of(scene.line.port).await.len(), rows);
        assert_eq!(
            controller
                .metric("route_sync_nats_withdrawals_total", "")
                .await,
            0.0
        );
        assert_eq!(
            controller
                .metric("route_sync_tcp_rows_removed_total", "")
                .await,
            0.0
        );

        foundation.stack.apiserver.begin().await.unwrap();
        controller.ready().await;
        scene.site.answers(foundation).await;
        scene.late_line.label(foundation).await;
        scene.late_line.answers(foundation).await;
        tcp.none_failed();
        assert_eq!(
            controller
                .metric("route_sync_tcp_rows_removed_total", "")
                .await,
            0.0
        );
        assert_eq!(controller.stop().await, 0);
    });
}
