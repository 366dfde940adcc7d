//! What the environment says, and nobody asked it.

use std::process::Stdio;

use super::{DEADLINE, KUBECONFIG, ORIGINAL, POLL, Place, Running};

/// Takes connections, answers nothing, and counts them.
struct Listener {
    listener: std::net::TcpListener,
    taken: usize,
}

impl Listener {
    fn new() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener, taken: 0 }
    }

    fn url(&self) -> String {
        format!("http://{}", self.listener.local_addr().unwrap())
    }

    fn taken(&mut self) -> usize {
        while self.listener.accept().is_ok() {
            self.taken += 1;
        }
        self.taken
    }
}

#[test]
fn a_proxy_that_only_the_environment_names_is_asked_by_nobody() {
    let place = Place::new();
    let (mut proxy, mut apiserver, mut uaa) = (Listener::new(), Listener::new(), Listener::new());
    let nowhere = "http://127.0.0.1:1";
    place.write("kubeconfig", &KUBECONFIG.replace(nowhere, &apiserver.url()));
    let text = ORIGINAL.replace(
        &format!("uaa_api_url: {nowhere}"),
        &format!("uaa_api_url: {}", uaa.url()),
    );
    place.write(
        "route-sync.yml",
        &format!("{text}admin: {{listen: 'off'}}\n"),
    );
    let mut command = place.command(&["run", "--config", "route-sync.yml"]);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env(name, proxy.url());
        command.env(name.to_lowercase(), proxy.url());
    }
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let _running = Running(child.unwrap());
    for _ in 0..DEADLINE.as_millis() / POLL.as_millis() {
        if apiserver.taken() > 0 && uaa.taken() > 0 {
            break;
        }
        std::thread::sleep(POLL);
    }
    assert!(apiserver.taken() > 0 && uaa.taken() > 0, "both are asked");
    assert_eq!(proxy.taken(), 0);
}
