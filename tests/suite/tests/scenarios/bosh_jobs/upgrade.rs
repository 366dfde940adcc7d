//! From kubo's jobs to ours, and back: what either costs whoever uses the routes.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use suite::{
    Foundation, FrontTimes, HttpFront, HttpLoop, Line, Site, Stop, answers, eventually,
    on_each_stage, on_nodes, within,
};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    MASTERS, Master, PAGES, kubectl_works, manifest, master_address, registrar, registrar_page,
    started, status,
};

/// How long a row of the old job lives, and how often it writes it.
const OLD_TTL: u16 = 60;
const OLD_INTERVAL: Duration = Duration::from_secs(30);
/// That and the intervals at which the routing API prunes and the tcp-router reads everything anew.
const PRUNED_WITHIN: Duration = Duration::from_secs(120);

/// What the finding `legacy-rows` promises, and some for a busy machine. From a few milliseconds on, because a routing
/// API of 2024 keeps each refresh of an old row as one more row, and where the first of them lapses the tcp-router may
/// drop the backend that another still names.
const SILENT_MAX: Duration = Duration::from_secs(90);
/// When an old registrar first writes its row, and when it is replaced, in seconds: shortly before it would write the
/// next time, and sooner after the one before than that one's own row is there. The first row of the last one lapses
/// once the first of ours stands, because a routing API of 2024 takes a backend away at that.
const TURNS: [(u64, u64); MASTERS.len()] = [(0, 29), (12, 57), (25, 84)];
/// Between two looks at the routing API's table.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A row of somebody else lives for so long.
const FOREIGN_TTL: u16 = 120;

/// Writes the rows of an old job, once.
async fn old_rows(foundation: &Foundation, port: u16, backends: &[SocketAddr]) {
    for backend in backends {
        let row = foundation.row_of_the_old_job(port, *backend, OLD_TTL);
        foundation.insert_row(row.await).await;
    }
}

/// Says what the old job says of two Services, once.
async fn old_job(foundation: &Foundation, site: (&Site, u16), line: (&Line, u16)) {
    let nats = foundation.stack.nats.connect().await.unwrap();
    for backend in on_nodes(2, site.1) {
        let registration = json!({
            "uris": [site.0.host], "host": backend.ip(), "port": site.1, "tags": null,
            "private_instance_id": "kubo-route-sync",
        });
        let registration = registration.to_string().into();
        nats.publish("router.register", registration).await.unwrap();
    }
    old_rows(foundation, line.0.port, &on_nodes(2, line.1)).await;
    nats.flush().await.unwrap();
}

#[test]
fn the_old_job_is_replaced_and_comes_back_and_the_gap_of_each_is_measured() {
    let statement = "the rendered job replaces the old one: no HTTP request fails and HAProxy refuses nothing; the old \
                     one comes back after `drain.mode: unregister`; how long a port is silent is measured";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let nats = &foundation.stack.nats;
        let front = HttpFront::start(foundation, nats, FrontTimes::PATIENT)
            .await
            .unwrap();
        let (site_port, line_port) = (30664, 30665);
        let site = Site::new(foundation, "upgraded", site_port).await.unwrap();
        let line = Line::new(foundation, "upgraded", line_port).await.unwrap();
        let (old_site, old_line) = ((&site, site_port), (&line, line_port));
        site.label(foundation).await;
        line.label(foundation).await;
        old_job(foundation, old_site, old_line).await;
        answers(front.address(), &site.host, &[200]).await;
        line.answers(foundation).await;
        let refused = foundation.refused_reloads();
        tokio::time::sleep(OLD_INTERVAL).await;
        // Its last word. A routing API of 2024 keeps what it wrote before beside it.
        old_job(foundation, old_site, old_line).await;
        let requests = HttpLoop::start(front.address(), &site.host);
        let gaps = line.requested(foundation);
        let mut manifest = manifest(foundation).await;
        manifest.properties["drain"] = json!({"mode": "unregister"});
        let mut job = started(&manifest).await;
        within(PRUNED_WITHIN, "every row is ours", async || {
            let rows = foundation.rows_of(line.port).await;
            let ours = |row: &Value| row["instance_id"].to_string().contains("rs-");
            rows.len() == 2 && rows.iter().all(ours)
        })
        .await;
        line.answers(foundation).await;
        requests.none_failed();
        let silent = gaps.silent();
        println!("   upgrade: the port was silent for {silent:.1?}");
        assert!(silent < SILENT_MAX, "{silent:?}");
        assert_eq!(foundation.refused_reloads(), refused);

        let gaps = line.requested(foundation);
        let begun = Instant::now();
        job.stopped_by(Stop::Restart).await.unwrap();
        println!(
            "   roll back: stopped with every route withdrawn after {:.1?}",
            begun.elapsed()
        );
        assert!(foundation.rows_of(line.port).await.is_empty());
        answers(front.address(), &site.host, &[404, 503]).await;
        let begun = Instant::now();
        old_job(foundation, old_site, old_line).await;
        answers(front.address(), &site.host, &[200]).await;
        println!(
            "   roll back: HTTP was back {:.1?} after the old job's first word",
            begun.elapsed()
        );
        line.answers(foundation).await;
        println!(
            "   roll back: the port was silent for {:.1?}",
            gaps.silent()
        );
        assert_eq!(foundation.refused_reloads(), refused);
    });
}

/// A row as HAProxy tells servers apart: port and backend; and whether it is of an old job.
type Row = ((u16, String), bool);

async fn rows(foundation: &Foundation) -> BTreeSet<Row> {
    let rows = foundation.rows().await.into_iter().map(|row| {
        let port = u16::try_from(row["port"].as_u64().unwrap()).unwrap();
        let ip = row["backend_ip"].as_str().unwrap();
        let server = format!("{ip}:{}", row["backend_port"]);
        ((port, server), row["backend_tls_port"] != -1)
    });
    rows.collect()
}

/// One upgrade, as a director makes it and the routing API sees it.
struct Upgrade<'a> {
    foundation: &'a Foundation,
    begun: Instant,
    /// It updates one instance at a time.
    director: Mutex<()>,
    /// Where an old job writes no more.
    replaced: RefCell<BTreeSet<String>>,
}

impl Upgrade<'_> {
    fn after(&self, seconds: u64) -> Instant {
        self.begun + Duration::from_secs(seconds)
    }

    /// An old registrar, and ours in its place.
    async fn of_master(&self, master: &mut Master, port: u16, (first, replaced): (u64, u64)) {
        let mut write_at = self.after(first);
        while write_at < self.after(replaced) {
            sleep_until(write_at).await;
            old_rows(self.foundation, port, &[master.address]).await;
            write_at += OLD_INTERVAL;
        }
        sleep_until(self.after(replaced)).await;
        let _turn = self.director.lock().await;
        self.replaced
            .borrow_mut()
            .insert(master.address.to_string());
        master.start().await;
        println!(
            "   {} is updated after {:.1?}",
            master.address,
            self.begun.elapsed()
        );
    }

    /// What stood stands at the next look, unless its old job is stopped; no server stands twice, and behind the port
    /// there is one at any time.
    async fn watched(&self, port: u16) {
        let mut before = BTreeSet::new();
        loop {
            let now = rows(self.foundation).await;
            let servers: BTreeSet<_> = now.iter().map(|(server, _)| server).collect();
            assert_eq!(servers.len(), now.len(), "a server stands twice: {now:?}");
            for row in before.difference(&now) {
                let ((_, server), old) = row;
                let lapsed = *old && self.replaced.borrow().contains(server);
                assert!(lapsed, "{row:?} is gone: {now:?}");
            }
            let behind = |rows: &BTreeSet<Row>| rows.iter().any(|((of, _), _)| *of == port);
            assert!(
                behind(&now) || !behind(&before),
                "nothing is behind the port"
            );
            before = now;
            sleep(LOOK_EVERY).await;
        }
    }
}

#[test]
fn registrars_and_controller_are_upgraded_one_by_one_while_the_port_is_served() {
    let statement = "the jobs that kubo had are replaced one by one by the rendered ones, three registrars and the \
                     controller: every row stays or lapses with its job, no server stands twice, HAProxy refuses \
                     nothing, and the apiservers' port always has a backend";
    on_each_stage(statement, async |foundation| {
        foundation.nodes(2).await;
        let (port, backend_port) = (foundation.port(), foundation.node_port(30676));
        let line_port = foundation.node_port(30677);
        let line = Line::new(foundation, "moved", line_port).await.unwrap();
        line.label(foundation).await;
        let foreign = (foundation.port(), SocketAddr::from(([10, 0, 0, 8], 30678)));
        let mut masters = Vec::new();
        for host in MASTERS {
            let address = master_address(host, backend_port);
            let manifest = registrar(foundation, host, port, backend_port).await;
            masters.push(Master::new(foundation, address, &manifest).await);
        }
        let manifest = manifest(foundation).await;
        let client = foundation.stack.pki.http_client_without_identity().unwrap();
        let livez = format!("https://{}/livez", foundation.tcp(port));
        let refused = foundation.refused_reloads();
        let foundation = &*foundation;
        let upgrade = Upgrade {
            foundation,
            begun: Instant::now(),
            director: Mutex::default(),
            replaced: RefCell::default(),
        };
        let stranger = async {
            loop {
                let row = foundation.row_by("somebody", foreign.0, foreign.1, FOREIGN_TTL);
                foundation.insert_row(row.await).await;
                sleep(OLD_INTERVAL).await;
            }
        };
        let controller = async {
            let nodes = on_nodes(2, line_port);
            old_rows(foundation, line.port, &nodes).await;
            line.answers(foundation).await;
            let _turn = upgrade.director.lock().await;
            let replaced = nodes.iter().map(ToString::to_string);
            upgrade.replaced.borrow_mut().extend(replaced);
            started(&manifest).await
        };
        let calls = async {
            kubectl_works(foundation, port).await;
            HttpLoop::of_page(client, livez)
        };
        let [one, two, three] = &mut masters[..] else {
            unreachable!()
        };
        let updated = async {
            let updated = tokio::join!(
                controller,
                calls,
                upgrade.of_master(one, port, TURNS[0]),
                upgrade.of_master(two, port, TURNS[1]),
                upgrade.of_master(three, port, TURNS[2]),
            );
            within(PRUNED_WITHIN, "every row is ours", async || {
                let rows = rows(foundation).await;
                // Three masters, two nodes and a stranger.
                rows.len() == 6 && rows.iter().all(|(_, old)| !old)
            })
            .await;
            updated
        };
        let (mut controller, calls, ..) = tokio::select! {
            updated = updated => updated,
            () = upgrade.watched(port) => unreachable!(),
            () = stranger => unreachable!(),
        };
        println!("   every row is ours after {:.1?}", upgrade.begun.elapsed());
        line.answers(foundation).await;
        for page in MASTERS.map(registrar_page).into_iter().chain([PAGES[0]]) {
            eventually("nothing is left to say", async || {
                let status = status(page).await;
                status["findings"].as_array().is_some_and(Vec::is_empty)
            })
            .await;
        }
        let silent = calls.silent();
        println!("   the apiservers' port was silent for {silent:.1?}");
        assert!(silent < SILENT_MAX, "{silent:?}");
        assert_eq!(foundation.refused_reloads(), refused);
        controller.stopped_by(Stop::Restart).await.unwrap();
    });
}
