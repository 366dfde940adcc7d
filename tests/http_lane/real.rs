//! The same lane against a real nats-server, where there is one.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::*;

/// A nats-server of our own, ended with the test.
struct Nats {
    child: Child,
    addr: SocketAddr,
}

impl Nats {
    fn start(addr: SocketAddr, more: &[&str]) -> Option<Self> {
        let mut command = Command::new(program()?);
        command
            .args(["-a", "127.0.0.1", "-p", &addr.port().to_string()])
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("nats-server must start");
        Some(Self { child, addr })
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Option<PathBuf> {
    let given = std::env::var_os("ROUTE_SYNC_NATS_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    let program = given.into_iter().chain(found).find(|file| file.is_file());
    if program.is_none() {
        eprintln!("skipped: no nats-server in ROUTE_SYNC_NATS_SERVER or the search path");
    }
    program
}

/// A port that was free a moment ago.
fn free() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_server_echoes_and_loses_nothing_over_a_restart() {
    let addr = free();
    let login = ["--user", "nats", "--pass", "hunter2"];
    let Some(server) = Nats::start(addr, &login) else {
        return;
    };
    let first = Some(table(&[("a", 30001, &[1])]));
    let lane = Running::start(config(&[server.addr], Some("hunter2"), None), first);
    lane.live("a").await;
    drop(server);
    until("loss seen", || lane.state("a") == Some(RouteState::Pending)).await;
    lane.want(&[("b", 30002, &[1])]);
    let _server = Nats::start(addr, &login).expect("it was there before");
    lane.live("b").await;
    assert_eq!(lane.state("a"), Some(RouteState::Withdrawing));
    assert_eq!(lane.counters.connections.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_server_refuses_a_wrong_password_in_the_words_we_know() {
    let login = ["--user", "nats", "--pass", "right"];
    let Some(server) = Nats::start(free(), &login) else {
        return;
    };
    let lane = Running::start(config(&[server.addr], Some("hunter2"), None), None);
    until("the refusal", || {
        lane.error().contains("authorization violation")
    })
    .await;
    assert!(!lane.error().contains("hunter2"));
}
