//! Two controllers of one cluster: one acts, the other is ready to, and nobody who asks for a route notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use counterparts::Program;
use serde_json::json;
use suite::{
    Controller, Foundation, FrontTimes, HttpFront, HttpLoop, Line, Settings, Site, eventually,
    http_status, on_each_stage, on_real_stage, stays, within,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// From a crash to routes that are refreshed again: 15 s of silence, which the elector's own tests hold to the second,
/// what it takes to notice and to act, less than 20 s together, and a busy machine. Below what the routers keep.
const TAKEOVER: Duration = Duration::from_secs(35);

/// A way to the apiserver that can be cut.
struct Way {
    address: SocketAddr,
    open: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Way {
    async fn to(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = Arc::new(AtomicBool::new(true));
        let seen = open.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((near, _)) = listener.accept().await else {
                    continue;
                };
                tokio::spawn(carry(near, upstream, seen.clone()));
            }
        });
        Self {
            address,
            open,
            task,
        }
    }

    fn cut(&self) {
        self.open.store(false, Ordering::Relaxed);
    }

    fn mend(&self) {
        self.open.store(true, Ordering::Relaxed);
    }
}

/// Until either side ends or the way is cut.
async fn carry(mut near: TcpStream, upstream: SocketAddr, open: Arc<AtomicBool>) {
    let cut = async {
        while open.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let carried = async {
        let mut far = TcpStream::connect(upstream).await?;
        tokio::io::copy_bidirectional(&mut near, &mut far).await
    };
    tokio::select! {
        () = cut => {}
        _ = carried => {}
    }
}

/// The apiserver's own address.
fn apiserver(foundation: &Foundation) -> SocketAddr {
    let url = foundation.stack.apiserver.url();
    url.trim_start_matches("https://").parse().unwrap()
}

/// Makes it one of those that share a Lease.
fn elects(settings: &mut Settings, lease: &str, name: &str) {
    settings.config["leader_election"] = json!({"enabled": true, "name": lease, "identity": name});
}

/// One of two instances, which reaches the apiserver through `through` if that is given.
async fn instance(
    foundation: &Foundation,
    lease: &str,
    name: &str,
    through: Option<&Way>,
) -> Controller {
    let upstream = apiserver(foundation);
    foundation
        .controller_with(|settings| {
            elects(settings, lease, name);
            if let Some(way) = through {
                let (direct, cut) = (upstream.to_string(), way.address.to_string());
                settings.kubeconfig = settings.kubeconfig.replace(&direct, &cut);
            }
        })
        .await
}

async fn role(controller: &Controller) -> String {
    let status = controller.status().await;
    status["lease"]["role"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

async fn becomes(controller: &Controller, wanted: &str) {
    eventually(wanted, async || role(controller).await == wanted).await;
}

/// For longer than the interval at which routes are repeated.
async fn nothing_comes_back(foundation: &Foundation, site: &Site, line: &Line) {
    let (router, tcp) = (foundation.http(), foundation.tcp(line.port));
    stays(Duration::from_secs(8), "nothing comes back", async || {
        http_status(router, &site.host).await != 200 && suite::tcp_line(tcp).await.is_none()
    })
    .await;
}

/// What a controller has said and written so far.
async fn said(controller: &Controller) -> f64 {
    let mut sum = 0.0;
    for name in [
        "nats_announcements",
        "nats_beats",
        "nats_withdrawals",
        "tcp_rows_added",
        "tcp_rows_refreshed",
        "tcp_rows_removed",
    ] {
        sum += controller
            .metric(&format!("route_sync_{name}_total"), "")
            .await;
    }
    sum
}

#[test]
fn a_standby_is_silent_and_takes_over_without_a_failed_request_after_sigterm_and_after_a_crash() {
    let statement = "of two instances the one that stands by sends nothing; it takes over at once after SIGTERM and \
                     within 20 s after SIGKILL, and no request fails";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let site = Site::new(foundation, "shared", 30600).await.unwrap();
        let line = Line::new(foundation, "shared", 30601).await.unwrap();
        site.label(foundation).await;
        line.label(foundation).await;
        let front = HttpFront::start(foundation, &foundation.stack.nats, FrontTimes::PATIENT)
            .await
            .unwrap();
        let lease = foundation.name("takeover");
        let first = instance(foundation, &lease, "first", None).await;
        becomes(&first, "active").await;
        eventually("the host answers", async || {
            http_status(front.address(), &site.host).await == 200
        })
        .await;
        line.answers(foundation).await;
        let second = instance(foundation, &lease, "second", None).await;
        becomes(&second, "standby").await;
        let requests = HttpLoop::start(front.address(), &site.host);
        let connections = line.requested(foundation);

        // Longer than an interval, in which the first beats.
        let silent = async || said(&second).await == 0.0;
        stays(Duration::from_secs(6), "the standby says nothing", silent).await;
        assert_eq!(second.metric("route_sync_leader", "").await, 0.0);
        assert_eq!(first.metric("route_sync_leader", "").await, 1.0);
        let (code, _, errors) = second.command(&["approve", "00ff"]).await.unwrap();
        assert_eq!(code, 1, "{errors}");
        assert!(errors.contains("`first` holds the Lease"), "{errors}");

        assert_eq!(first.stop().await, 0);
        // Far less than the 15 s after which a silent holder counts as gone.
        within(
            Duration::from_secs(10),
            "the lease was released",
            async || role(&second).await == "active" && said(&second).await > 0.0,
        )
        .await;

        let mut second = second;
        let third = instance(foundation, &lease, "third", None).await;
        becomes(&third, "standby").await;
        second.kill().await.unwrap();
        within(TAKEOVER, "the silence was noticed", async || {
            let beats = third
                .metric("route_sync_nats_announcements_total", "")
                .await;
            let rows = third
                .metric("route_sync_tcp_rows_refreshed_total", "")
                .await;
            role(&third).await == "active" && beats > 0.0 && rows > 0.0
        })
        .await;
        assert_eq!(third.metric("route_sync_lease_generation", "").await, 3.0);
        requests.none_failed();
        connections.none_failed();
        assert_eq!(third.stop().await, 0);
    });
}

#[test]
fn one_that_is_cut_off_neither_brings_back_nor_keeps_what_its_successor_withdrew() {
    let statement = "the holder is cut off from the apiserver while a Service loses its labels: the other takes over, \
                     withdraws them, and they stay away; what is still wanted never fails";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let site = Site::new(foundation, "staying", 30610).await.unwrap();
        let line = Line::new(foundation, "staying", 30611).await.unwrap();
        let leaving_site = Site::new(foundation, "parting", 30612).await.unwrap();
        let leaving_line = Line::new(foundation, "parting", 30613).await.unwrap();
        for each in [&site, &leaving_site] {
            each.label(foundation).await;
        }
        for each in [&line, &leaving_line] {
            each.label(foundation).await;
        }
        let way = Way::to(apiserver(foundation)).await;
        let lease = foundation.name("cut");
        let first = instance(foundation, &lease, "first", Some(&way)).await;
        becomes(&first, "active").await;
        let second = instance(foundation, &lease, "second", None).await;
        becomes(&second, "standby").await;
        for each in [&site, &leaving_site] {
            each.answers(foundation).await;
        }
        for each in [&line, &leaving_line] {
            each.answers(foundation).await;
        }
        let (requests, connections) = (site.requested(foundation), line.requested(foundation));

        way.cut();
        leaving_site.unlabel(foundation).await;
        leaving_line.unlabel(foundation).await;
        becomes(&second, "active").await;
        // It heard of that on NATS: the apiserver does not answer it.
        becomes(&first, "standby").await;
        leaving_site.gone(foundation).await;
        leaving_line.gone(foundation).await;
        nothing_comes_back(foundation, &leaving_site, &leaving_line).await;
        way.mend();
        eventually("it knows who leads", async || {
            let status = first.status().await;
            status["lease"]["holder"] == "second" && status["ready"] == true
        })
        .await;
        assert_eq!(role(&first).await, "standby");
        requests.none_failed();
        connections.none_failed();
        assert_eq!(first.stop().await, 0);
        assert_eq!(second.stop().await, 0);
    });
}

#[test]
fn without_an_apiserver_the_holder_keeps_every_route_alive_and_nobody_takes_over() {
    let statement = "the apiserver is away for longer than any route lives without a refresh: the holder keeps them \
                     alive, the other stays silent, and both go on afterwards";
    // Both stages have the same apiserver, and the lanes' part is shown by the scenario before.
    on_real_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let site = Site::new(foundation, "kept", 30620).await.unwrap();
        let line = Line::new(foundation, "kept", 30621).await.unwrap();
        site.label(foundation).await;
        line.label(foundation).await;
        let lease = foundation.name("away");
        let short = |settings: &mut Settings, name: &str| {
            elects(settings, &lease, name);
            settings.config["routing_api"]["ttl"] = json!("5s");
        };
        let first = foundation.controller_with(|it| short(it, "first")).await;
        becomes(&first, "active").await;
        let second = foundation.controller_with(|it| short(it, "second")).await;
        becomes(&second, "standby").await;
        site.answers(foundation).await;
        line.answers(foundation).await;
        let (requests, connections) = (site.requested(foundation), line.requested(foundation));

        foundation.stack.apiserver.stop().await;
        becomes(&first, "cautious").await;
        // Longer than a Lease lasts, and than any router keeps what nobody repeats.
        stays(Duration::from_secs(18), "nobody takes over", async || {
            role(&first).await == "cautious" && role(&second).await == "standby"
        })
        .await;
        assert_eq!(said(&second).await, 0.0);
        assert!(first.has_finding("lease-unavailable", "leases").await);
        foundation.stack.apiserver.begin().await.unwrap();
        eventually("one of them leads", async || {
            (role(&first).await == "active") != (role(&second).await == "active")
        })
        .await;
        requests.none_failed();
        connections.none_failed();
        assert_eq!(second.stop().await, 0);
        assert_eq!(first.stop().await, 0);
    });
}

#[test]
fn one_that_stood_still_brings_nothing_back_when_it_goes_on() {
    let statement = "the holder stands still until the other has taken over and withdrawn a route: when it goes on, \
                     it announces nothing of what it knew";
    on_real_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let site = Site::new(foundation, "steady", 30630).await.unwrap();
        let leaving = Site::new(foundation, "lapsed", 30631).await.unwrap();
        site.label(foundation).await;
        leaving.label(foundation).await;
        let lease = foundation.name("still");
        let first = instance(foundation, &lease, "first", None).await;
        becomes(&first, "active").await;
        let second = instance(foundation, &lease, "second", None).await;
        becomes(&second, "standby").await;
        site.answers(foundation).await;
        leaving.answers(foundation).await;

        first.signal("STOP");
        becomes(&second, "active").await;
        leaving.unlabel(foundation).await;
        leaving.gone(foundation).await;
        site.answers(foundation).await;
        first.signal("CONT");
        becomes(&first, "standby").await;
        let router = foundation.http();
        // Longer than the interval at which routes are repeated.
        stays(
            Duration::from_secs(6),
            "it does not come back",
            async || http_status(router, &leaving.host).await != 200,
        )
        .await;
        site.answers(foundation).await;
        assert_eq!(first.stop().await, 0);
        assert_eq!(second.stop().await, 0);
    });
}

/// What an instance holds: the plan, and how many routes; nothing is no plan.
async fn held(controller: &Controller) -> (String, usize) {
    let status = controller.status().await;
    let plan = status["held"]["plan"].as_str().unwrap_or_default();
    let routes = status["held"]["routes"].as_array();
    (plan.to_owned(), routes.map_or(0, Vec::len))
}

#[test]
fn what_was_approved_stays_away_when_another_takes_over_and_is_held_when_it_is_lost_again() {
    let statement = "removals are held by both instances under one plan; approved on the one that acts, they go, and \
                     stay away when it is killed and the other takes over; lost once more they are held anew";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let site = Site::new(foundation, "lasting", 30640).await.unwrap();
        let leaving_site = Site::new(foundation, "given-up", 30641).await.unwrap();
        let leaving_line = Line::new(foundation, "given-up", 30642).await.unwrap();
        site.label(foundation).await;
        leaving_site.label(foundation).await;
        leaving_line.label(foundation).await;
        let lease = foundation.name("approved");
        let strict = |settings: &mut Settings, name: &str| {
            elects(settings, &lease, name);
            settings.config["routes"]["max_removals"] = json!(0);
            settings.config["routes"]["max_removals_percent"] = json!(0);
        };
        let mut first = foundation.controller_with(|it| strict(it, "first")).await;
        becomes(&first, "active").await;
        let second = foundation.controller_with(|it| strict(it, "second")).await;
        becomes(&second, "standby").await;
        site.answers(foundation).await;
        leaving_site.answers(foundation).await;
        leaving_line.answers(foundation).await;

        leaving_site.unlabel(foundation).await;
        leaving_line.unlabel(foundation).await;
        for each in [&first, &second] {
            eventually("both are held", async || held(each).await.1 == 2).await;
        }
        let (plan, _) = held(&first).await;
        assert_eq!(held(&second).await.0, plan, "on every instance the same");
        let (code, _, errors) = first.command(&["approve", &plan]).await.unwrap();
        assert_eq!(code, 0, "{errors}");
        leaving_site.gone(foundation).await;
        leaving_line.gone(foundation).await;
        // It reads the Lease each second, and the holder writes it every other.
        eventually("the other knows", async || held(&second).await.1 == 0).await;

        first.kill().await.unwrap();
        within(TAKEOVER, "the silence was noticed", async || {
            role(&second).await == "active" && said(&second).await > 0.0
        })
        .await;
        site.answers(foundation).await;
        nothing_comes_back(foundation, &leaving_site, &leaving_line).await;

        leaving_site.label(foundation).await;
        leaving_site.answers(foundation).await;
        leaving_site.unlabel(foundation).await;
        eventually("it is held", async || held(&second).await.1 == 1).await;
        leaving_site.answers(foundation).await;
        assert_eq!(second.stop().await, 0);
    });
}
