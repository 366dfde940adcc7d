//! HAProxy's own judgement, which cf-tcp-router hands every row to unread: Debian's HAProxy is always
//! there, so this holds where no router was handed in.

use std::process::Command;

use sandbox::routing_api::TcpRoute;
use suite::eventually;

use crate::world::{World, router_port};
use crate::{Side, UnderTest, agree};

/// Debian's; an ordinary user's PATH does not lead there.
const HAPROXY: &str = "/usr/sbin/haproxy";

/// 64 characters can be no label of a name: it is refused without waiting for a name server.
const NO_NAME: &str = "no-such-host-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

pub struct HaproxyUnderTest {
    world: &'static World,
    side: Side,
}

/// A server line: address, port, TLS port.
type Server = (&'static str, u16, i64);

impl UnderTest for HaproxyUnderTest {
    async fn on(world: &'static World, side: Side) -> Self {
        Self { world, side }
    }
}

// === impl HaproxyUnderTest ===

impl HaproxyUnderTest {
    /// What HAProxy has against a port with these servers; none where it takes them.
    async fn objection(&self, servers: &[Server]) -> Option<String> {
        let port = router_port();
        match self.side {
            Side::Sandbox => self.objection_of_the_box(port, servers).await,
            Side::Real => self.objection_of_haproxy(port, servers),
        }
    }

    async fn objection_of_the_box(&self, port: u16, servers: &[Server]) -> Option<String> {
        let (api, router) = (
            &self.world.sandbox.routing_api,
            &self.world.sandbox.tcp_router,
        );
        api.delete_rows(|_| true);
        let (reloads, failed) = (router.reloads(), router.failed_reloads());
        for (ip, backend_port, backend_tls_port) in servers {
            api.insert_row(TcpRoute {
                port,
                backend_ip: (*ip).to_owned(),
                backend_port: *backend_port,
                backend_tls_port: *backend_tls_port,
                ..TcpRoute::default()
            });
        }
        // Every row is one reload, taken or refused.
        let all = u64::try_from(servers.len()).unwrap();
        let done = || router.reloads() - reloads + router.failed_reloads() - failed;
        eventually("every row was tried", async || done() >= all).await;
        let refused = router.failed_reloads() > failed;
        api.delete_rows(|_| true);
        eventually("the port is closed", async || {
            !router.open_ports().contains(&port)
        })
        .await;
        refused.then(|| router.last_failure().unwrap_or_default())
    }

    /// As cf-tcp-router writes it: one `listen` a port, servers named by address and port.
    fn objection_of_haproxy(&self, port: u16, servers: &[Server]) -> Option<String> {
        let mut config = "defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1s\n  \
                          timeout server 1s\n"
            .to_owned();
        config += &format!("listen backend_{port}\n  bind 127.0.0.1:{port}\n");
        for (ip, port, _) in servers {
            config += &format!("  server server_{ip}_{port} {ip}:{port}\n");
        }
        let file = self.world.run.path().join("checked.conf");
        std::fs::write(&file, config).unwrap();
        let output = Command::new(HAPROXY).args(["-c", "-f"]).arg(file).output();
        let output = output.expect("haproxy must be installed");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (!output.status.success()).then_some(told)
    }
}

#[test]
fn two_servers_of_one_name_are_refused() {
    agree(
        "two servers of one name are refused",
        async |haproxy: &HaproxyUnderTest| {
            assert_eq!(
                haproxy
                    .objection(&[("10.0.0.1", 31_000, -1), ("10.0.0.2", 31_000, -1)])
                    .await,
                None
            );
            let twice = [("10.0.0.1", 31_000, -1), ("10.0.0.1", 31_000, 0)];
            let objection = haproxy.objection(&twice).await.expect("it must be refused");
            let named = "another server named 'server_10.0.0.1_31000' was already defined";
            assert!(objection.contains(named), "{objection}");
        },
    );
}

#[test]
fn a_backend_that_is_no_address_and_no_known_name_is_refused() {
    agree(
        "an unresolvable backend is refused",
        async |haproxy: &HaproxyUnderTest| {
            let objection = haproxy.objection(&[(NO_NAME, 31_000, -1)]).await;
            let objection = objection.expect("it must be refused");
            let text = format!("could not resolve address '{NO_NAME}'");
            assert!(objection.contains(&text), "{objection}");
        },
    );
}
