//! The same lane against a real nats-server. Where there is none these tests fail and say what brings it: a
//! counterpart that is absent must never look like one that agreed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use route_sync::config::KeyPair;

use super::*;

/// A nats-server of our own, ended with the test.
struct Nats {
    child: Child,
    addr: SocketAddr,
}

impl Nats {
    fn start(addr: SocketAddr, more: &[&str]) -> Self {
        let mut command = Command::new(program());
        command
            .args(["-a", "127.0.0.1", "-p", &addr.port().to_string()])
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("nats-server must start");
        Self { child, addr }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> PathBuf {
    let given = std::env::var_os("ROUTE_SYNC_NATS_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    let program = given.into_iter().chain(found).find(|file| file.is_file());
    program.expect(
        "no nats-server; hint: `make test` sets one up, or name one in `ROUTE_SYNC_NATS_SERVER`",
    )
}

/// No address stands in the server's, as BOSH makes them for NATS.
fn certificates(folder: &Path) {
    for name in ["ca", "other"] {
        pki::authority(folder, name, "rsa:2048");
    }
    pki::certificate(
        folder,
        "server",
        "ca",
        "serverAuth",
        "nats.service.cf.internal",
    );
    pki::certificate(folder, "client", "ca", "clientAuth", "route-sync.test");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_server_with_mutual_tls_is_reached_under_another_name_and_refusals_are_explained()
{
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name);
    let text = |name: &str| file(name).display().to_string();
    let more = [
        "--tlsverify",
        "--tlscert",
        &text("server.pem"),
        "--tlskey",
        &text("server.key"),
        "--tlscacert",
        &text("ca.pem"),
    ];
    let server = Nats::start(free(), &more);
    let good = TlsConfig {
        ca_file: Some(file("ca.pem")),
        identity: Some(KeyPair {
            cert_file: file("client.pem"),
            key_file: file("client.key"),
        }),
        skip_verification: false,
        server_name: Some(Hostname::parse("nats.service.cf.internal").unwrap()),
    };
    let start = |tls: &TlsConfig| {
        let config = config(&[server.addr], None, Some(tls.clone()));
        Running::start(config, Some(table(&[("a", 30001, &[1])])))
    };
    start(&good).live("a").await;
    let explained = async |expect: &str, change: &dyn Fn(&mut TlsConfig)| {
        let mut tls = good.clone();
        change(&mut tls);
        let lane = start(&tls);
        until(expect, || lane.error().contains(expect)).await;
    };
    explained("set `nats.tls.server_name`", &|tls| tls.server_name = None).await;
    explained("does not hold the name", &|tls| {
        tls.server_name = Some(Hostname::parse("uaa.service.cf.internal").unwrap());
    })
    .await;
    explained("wants a client certificate", &|tls| tls.identity = None).await;
    explained("unknown authority", &|tls| {
        tls.ca_file = Some(file("other.pem"));
    })
    .await;
}

/// A port that nobody else gets while these tests run: a socket that is bound and does not listen keeps it, and who
/// sets `SO_REUSEADDR`, as nats-server does, may listen on it all the same.
fn free() -> SocketAddr {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap();
    std::mem::forget(socket);
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_server_echoes_and_loses_nothing_over_a_restart() {
    let addr = free();
    let login = ["--user", "nats", "--pass", "hunter2"];
    let server = Nats::start(addr, &login);
    let first = Some(table(&[("a", 30001, &[1])]));
    let lane = Running::start(config(&[server.addr], Some("hunter2"), None), first);
    lane.live("a").await;
    drop(server);
    until("loss seen", || lane.state("a") == Some(RouteState::Pending)).await;
    lane.want(&[("b", 30002, &[1])]);
    let _server = Nats::start(addr, &login);
    lane.live("b").await;
    assert_eq!(lane.state("a"), Some(RouteState::Withdrawing));
    assert_eq!(lane.counters.connections.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_server_refuses_a_wrong_password_in_the_words_we_know() {
    let login = ["--user", "nats", "--pass", "right"];
    let server = Nats::start(free(), &login);
    let lane = Running::start(config(&[server.addr], Some("hunter2"), None), None);
    until("the refusal", || {
        lane.error().contains("authorization violation")
    })
    .await;
    assert!(!lane.error().contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_server_denies_publishing_in_the_words_we_know() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nats.conf");
    let user =
        r#"{user: nats, password: right, permissions: {publish: {deny: "router.register"}}}"#;
    std::fs::write(&file, format!("authorization: {{users: [{user}]}}\n")).unwrap();
    let server = Nats::start(free(), &["-c", file.to_str().unwrap()]);
    let first = Some(table(&[("a", 30001, &[1])]));
    let lane = Running::start(config(&[server.addr], Some("right"), None), first);
    until("the denial", || lane.error().contains("`router.register`")).await;
    assert_eq!(lane.state("a"), Some(RouteState::Pending));
    assert_eq!(lane.report.borrow().findings[0].code, Code::LaneDown);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_server_denies_listening_in_the_words_we_know_and_routes_live_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nats.conf");
    let deny = r#"subscribe: {deny: ["router.register", "router.unregister"]}"#;
    let user = format!("{{user: nats, password: right, permissions: {{{deny}}}}}");
    std::fs::write(&file, format!("authorization: {{users: [{user}]}}\n")).unwrap();
    let server = Nats::start(free(), &["-c", file.to_str().unwrap()]);
    let first = Some(table(&[("a", 30001, &[1])]));
    let lane = Running::start(config(&[server.addr], Some("right"), None), first);
    lane.live("a").await;
    let denial = "degraded: NATS denies subscribing to `router.register`";
    until("the denial", || {
        let report = lane.report.borrow();
        let fact = report.facts.get("strangers");
        fact.is_some_and(|fact| fact.contains(denial))
    })
    .await;
    assert_eq!(lane.error(), "");
    assert!(lane.report.borrow().findings.is_empty());
}
