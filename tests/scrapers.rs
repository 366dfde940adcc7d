//! The listener for scrapers of other machines, of the built program: who gets metrics of it, and who does not.

#[path = "scrapers/pki.rs"]
mod pki;

use std::io::{self, BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, LazyLock, mpsc};
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Generous, for a busy machine.
const DEADLINE: Duration = Duration::from_mins(1);
/// The name in the listener's certificates.
const NAME: &str = "route-sync";
const SERVER_FILES: [&str; 3] = ["cert.pem", "key.pem", "callers.pem"];

/// Routes that nobody takes, of a cluster that is nowhere.
const CLUSTER: &str = "\
uaa: {url: 'https://127.0.0.1:1', client_id: id, client_secret: secret}
routing_api: {url: 'https://127.0.0.1:1'}
nats: {servers: [{host: '127.0.0.1:1'}]}
routes: {app_domain: apps.test}
kubernetes: {kubeconfig: kubeconfig}
";
const KUBECONFIG: &str = "\
clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
";
const STATIC_ROUTES: &str = "\
uaa: {url: 'https://127.0.0.1:1', client_id: id, client_secret: secret}
routing_api: {url: 'https://127.0.0.1:1'}
static_routes: [{name: a, port: 2222, backends: ['127.0.0.1:1']}]
";

const ADMIN: &str = "admin: {listen: '127.0.0.1:0'}\n";

/// Two authorities and what they signed, made once: `server`, `next` and `client` of ours, `stranger` of the other.
static CERTIFICATES: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    for name in ["ours", "other"] {
        pki::authority(folder.path(), name, "rsa:2048");
    }
    for (name, authority, usage) in [
        ("server", "ours", "serverAuth"),
        ("next", "ours", "serverAuth"),
        ("client", "ours", "clientAuth"),
        ("stranger", "other", "clientAuth"),
    ] {
        pki::certificate(folder.path(), name, authority, usage, NAME);
    }
    folder
});

/// A folder to run in, with all of them and those that the listener has.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for made in std::fs::read_dir(CERTIFICATES.path()).unwrap() {
            let made = made.unwrap();
            std::fs::copy(made.path(), place.0.path().join(made.file_name())).unwrap();
        }
        std::fs::write(place.file("kubeconfig"), KUBECONFIG).unwrap();
        let files = ["server.pem", "server.key", "ours.pem"];
        for (name, of) in SERVER_FILES.iter().zip(files) {
            place.put(of, name);
        }
        place
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// As whoever replaces a file should: never half of it.
    fn put(&self, of: &str, name: &str) {
        std::fs::copy(self.file(of), self.file("half")).unwrap();
        std::fs::rename(self.file("half"), self.file(name)).unwrap();
    }

    fn route_sync(&self, config: &str, arguments: &[&str]) -> Command {
        std::fs::write(self.file("config.yml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_route-sync"));
        command
            .args(arguments)
            .args(["--config", "config.yml"])
            .current_dir(self.0.path())
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stdin(Stdio::null());
        command
    }

    /// Runs it with a listener for scrapers.
    fn run(&self, source: &str, listen: &str) -> Running {
        self.start(&format!("{source}{ADMIN}{}", keys(listen)))
    }

    fn start(&self, config: &str) -> Running {
        let mut command = self.route_sync(config, &["run"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines {
                // Nobody listens once the test is done.
                let _ = tell.send(serde_json::from_str(&line.unwrap()).unwrap());
            }
        });
        Running { child, told }
    }

    /// A caller who trusts our authority alone, with a certificate or without.
    fn caller(
        &self,
        name: Option<&str>,
        version: &'static SupportedProtocolVersion,
    ) -> TlsConnector {
        let certificates = |name: &str| {
            let found = CertificateDer::pem_file_iter(self.file(name)).unwrap();
            found.map(Result::unwrap).collect::<Vec<_>>()
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates("ours.pem"));
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match name {
            None => config.with_no_client_auth(),
            Some(name) => {
                let key = PrivateKeyDer::from_pem_file(self.file(&format!("{name}.key"))).unwrap();
                let chain = certificates(&format!("{name}.pem"));
                config.with_client_auth_cert(chain, key).unwrap()
            }
        };
        TlsConnector::from(Arc::new(config))
    }

    /// What a caller is answered, and which certificate it was shown.
    async fn ask(&self, address: SocketAddr, caller: &str, path: &str) -> (String, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        self.request(address, caller, &request).await
    }

    async fn request(&self, address: SocketAddr, caller: &str, request: &str) -> (String, String) {
        let caller = self.caller(Some(caller), &TLS13);
        in_time(async {
            let mut stream = connect(address, &caller).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            (answer, self.shown(&stream))
        })
        .await
    }

    /// The name of the certificate that the listener showed.
    fn shown(&self, stream: &TlsStream<TcpStream>) -> String {
        let shown = stream.get_ref().1.peer_certificates().unwrap();
        let is_it = |name: &&str| {
            let file = self.file(&format!("{name}.pem"));
            CertificateDer::from_pem_file(file).unwrap() == shown[0]
        };
        let name = ["server", "next"].into_iter().find(is_it);
        name.expect("one of ours must be shown").to_owned()
    }

    /// Why a caller is answered nothing. It asks nothing, because bytes that nobody reads could hide the reason.
    async fn refusal(
        &self,
        address: SocketAddr,
        caller: Option<&str>,
        version: &'static SupportedProtocolVersion,
    ) -> String {
        let caller = self.caller(caller, version);
        let refused = in_time(async {
            let mut stream = connect(address, &caller).await?;
            stream.read_u8().await
        });
        refused.await.unwrap_err().to_string()
    }
}

/// A running process; killed when dropped.
struct Running {
    child: Child,
    told: mpsc::Receiver<Value>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// The next line that a question has an answer for.
    fn said<T>(&self, answer: impl Fn(&Value) -> Option<T>) -> T {
        loop {
            let line = self.told.recv_timeout(DEADLINE);
            let line = line.expect("it must say so and not end");
            if let Some(answer) = answer(&line) {
                return answer;
            }
        }
    }

    fn said_message(&self, message: &str) {
        self.said(|line| line["message"].as_str()?.contains(message).then_some(()));
    }

    /// Where scrapers are served.
    fn address(&self) -> SocketAddr {
        self.address_of("metrics")
    }

    fn address_of(&self, listener: &str) -> SocketAddr {
        self.said(|line| {
            let data = &line["data"];
            let address = data["address"].as_str()?.parse().ok()?;
            (data["listener"] == listener && data["error"].is_null()).then_some(address)
        })
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    async fn exit_code(&mut self) -> Option<i32> {
        in_time(async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status.code();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
    }
}

fn keys(listen: &str) -> String {
    let [cert, key, callers] = SERVER_FILES;
    format!(
        "metrics: {{listen: '{listen}', cert_file: {cert}, key_file: {key}, client_ca_file: {callers}}}\n"
    )
}

async fn in_time<T>(wait: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(DEADLINE, wait).await;
    waited.expect("it must be answered or refused")
}

async fn connect(address: SocketAddr, caller: &TlsConnector) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    caller
        .connect(ServerName::try_from(NAME).unwrap(), stream)
        .await
}

fn is_metrics(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200") && answer.contains("\nroute_sync_build_info{")
}

#[tokio::test]
async fn a_scraper_of_the_given_authority_gets_metrics_and_nothing_else_of_either_source() {
    let place = Place::new();
    for source in [CLUSTER, STATIC_ROUTES] {
        let running = place.run(source, "127.0.0.1:0");
        let address = running.address();
        let (answer, shown) = place.ask(address, "client", "/metrics").await;
        assert!(is_metrics(&answer), "{answer}");
        assert_eq!(shown, "server");
        for path in ["/", "/live", "/ready", "/status.json", "/approve", "/drain"] {
            let (answer, _) = place.ask(address, "client", path).await;
            assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
        }
    }
}

#[tokio::test]
async fn who_shows_no_certificate_of_the_given_authority_is_refused() {
    let place = Place::new();
    let running = place.run(STATIC_ROUTES, "127.0.0.1:0");
    let address = running.address();
    for (caller, version, reason) in [
        (None, &TLS13, "CertificateRequired"),
        (None, &TLS12, "CertificateRequired"),
        (Some("stranger"), &TLS13, "UnknownCA"),
        (Some("stranger"), &TLS12, "UnknownCA"),
        // Of the right authority, but no caller's.
        (Some("next"), &TLS13, "UnsupportedCertificate"),
    ] {
        let told = place.refusal(address, caller, version).await;
        assert!(told.contains(reason), "{caller:?} {version:?}: {told}");
    }
    let plain = in_time(async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        // What is left unread makes it a reset.
        let _ = stream.read_to_end(&mut answer).await;
        answer
    });
    assert!(!plain.await.starts_with(b"HTTP"));
    let both = place.caller(Some("client"), &TLS12);
    in_time(connect(address, &both)).await.unwrap();
}

#[tokio::test]
async fn files_that_are_replaced_serve_the_next_connection_and_bad_ones_never() {
    let place = Place::new();
    let running = place.run(STATIC_ROUTES, "127.0.0.1:0");
    let address = running.address();
    let again = "certificates read again";

    // Half way: the key is the old one's.
    place.put("next.pem", "cert.pem");
    let (answer, shown) = place.ask(address, "client", "/metrics").await;
    assert!(is_metrics(&answer));
    assert_eq!(shown, "server");
    running.said_message("the last ones serve");
    place.put("next.key", "key.pem");
    assert_eq!(place.ask(address, "client", "/metrics").await.1, "next");
    running.said_message(again);

    place.put("other.pem", "callers.pem");
    let told = place.refusal(address, Some("client"), &TLS13).await;
    assert!(told.contains("UnknownCA"), "{told}");
    let (answer, _) = place.ask(address, "stranger", "/metrics").await;
    assert!(is_metrics(&answer));
    running.said_message(again);
}

/// Far more than there are places: if one were free again only after its ten seconds, this would take minutes.
#[tokio::test]
async fn callers_that_say_nothing_keep_nobody_out_however_many_they_are() {
    const SILENT: usize = 600;
    let place = Place::new();
    let running = place.run(STATIC_ROUTES, "127.0.0.1:0");
    let address = running.address();
    let answered = in_time(async {
        let mut silent = Vec::new();
        for _ in 0..SILENT {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        place.ask(address, "client", "/metrics").await
    });
    let (answer, _) = answered.await;
    assert!(is_metrics(&answer), "{answer}");
}

#[tokio::test]
async fn a_refused_caller_is_named_in_the_log_where_that_is_asked_for() {
    let place = Place::new();
    let level = "log: {level: 'info,route_sync::admin=debug'}\n";
    let running = place.run(&format!("{STATIC_ROUTES}{level}"), "127.0.0.1:0");
    let mut stream = TcpStream::connect(running.address()).await.unwrap();
    let own = stream.local_addr().unwrap().to_string();
    stream.write_all(b"no TLS at all").await.unwrap();
    running.said(|line| (line["data"]["peer"] == own.as_str()).then_some(()));
}

/// As some probes speak, and without the listener for people beside it.
#[tokio::test]
async fn http_1_0_is_answered_and_admin_may_be_off() {
    let place = Place::new();
    let running = place.start(&format!(
        "{STATIC_ROUTES}admin: {{listen: 'off'}}\n{}",
        keys("127.0.0.1:0")
    ));
    let request = "GET /metrics HTTP/1.0\r\n\r\n";
    let (answer, _) = place.request(running.address(), "client", request).await;
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    assert!(answer.contains("\nroute_sync_build_info{"), "{answer}");
}

#[tokio::test]
async fn a_scraper_that_stays_connected_holds_up_no_stop() {
    let place = Place::new();
    let mut running = place.run(STATIC_ROUTES, "127.0.0.1:0");
    let caller = place.caller(Some("client"), &TLS13);
    let address = running.address();
    let mut stream = in_time(connect(address, &caller)).await.unwrap();
    // One byte of an answer: the connection is served.
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    in_time(stream.read_u8()).await.unwrap();
    running.signal("-TERM");
    assert_eq!(running.exit_code().await, Some(0));
}

#[test]
fn a_listener_that_is_new_in_the_file_waits_for_the_next_start() {
    let place = Place::new();
    let config = format!("{STATIC_ROUTES}{ADMIN}");
    let running = place.start(&config);
    running.address_of("admin");
    let added = format!("{config}{}", keys("127.0.0.1:0"));
    std::fs::write(place.file("config.yml"), added).unwrap();
    running.signal("-HUP");
    running.said(|line| {
        let waits = line["data"]["wait_for_restart"].as_str()?;
        waits.contains("metrics.listen").then_some(())
    });
}

#[tokio::test]
async fn an_address_that_is_taken_is_a_warning_and_all_else_goes_on() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let running = place.run(STATIC_ROUTES, &address);
    // The two listeners say so in any order.
    let (mut admin, mut warned) = (None, false);
    while admin.is_none() || !warned {
        let of_listener = |line: &Value| line["data"]["listener"].as_str().map(|_| line.clone());
        let line = running.said(of_listener);
        if line["data"]["listener"] == "admin" {
            admin = line["data"]["address"].as_str().map(str::to_owned);
        } else {
            warned = line["message"].as_str().unwrap().contains("not available");
        }
    }
    let live = in_time(async {
        let mut stream = TcpStream::connect(admin.unwrap()).await.unwrap();
        let request = b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    });
    assert!(live.await.starts_with("HTTP/1.1 200"));
}

#[test]
fn check_names_what_is_wrong_with_each_file() {
    let place = Place::new();
    let check = || -> Output {
        let config = format!("{STATIC_ROUTES}{}", keys("0.0.0.0:9103"));
        let mut command = place.route_sync(&config, &["check", "--offline"]);
        command.output().unwrap()
    };
    assert!(check().status.success());
    let told = |of: &str, name: &str, expect: &str| {
        let good = std::fs::read(place.file(name)).unwrap();
        place.put(of, name);
        let output = check();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(told.contains(expect), "{told}");
        std::fs::write(place.file(name), good).unwrap();
    };
    told(
        "kubeconfig",
        "cert.pem",
        "metrics.cert_file: `cert.pem` holds no certificate in PEM form",
    );
    told(
        "cert.pem",
        "key.pem",
        "metrics.key_file: `key.pem` holds no private key in PEM form",
    );
    told(
        "key.pem",
        "callers.pem",
        "metrics.client_ca_file: `callers.pem` holds no certificate in PEM form",
    );
    told(
        "next.key",
        "key.pem",
        "metrics.key_file: does not fit `cert_file`: ",
    );
    told(
        "next.key",
        "key.pem",
        "hint: `openssl x509 -noout -pubkey -in cert.pem`",
    );
    // A pair that fits, but of a curve that ring does not sign with.
    pki::authority(
        place.0.path(),
        "p521",
        "ec -pkeyopt ec_paramgen_curve:secp521r1",
    );
    place.put("p521.pem", "cert.pem");
    place.put("p521.key", "key.pem");
    let output = check();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("metrics.key_file: "), "{told}");
    assert!(!told.contains("fit") && !told.contains("hint"), "{told}");
    place.put("server.pem", "cert.pem");
    place.put("server.key", "key.pem");
    std::fs::remove_file(place.file("callers.pem")).unwrap();
    let output = check();
    let told = String::from_utf8(output.stderr).unwrap();
    let expect = "metrics.client_ca_file: cannot read `callers.pem`: No such file";
    assert!(told.contains(expect), "{told}");
}
