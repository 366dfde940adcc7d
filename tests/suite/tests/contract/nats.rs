//! NATS, word for word: what a server says to a client that does right or wrong.
//!
//! The real one is nats-server 2.15. Both sides have a plain listener, spoken to by hand here, and
//! one over mutual TLS, spoken to by a real client.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::world::{DENIED, NATS_USER, World};
use crate::{ANSWER_WITHIN, Side, UnderTest, agree};

const MAX_PAYLOAD: usize = 1_048_576;
const WORKING: &str = r#"{"verbose":false,"headers":true,"no_responders":true,"echo":true,"user":"nats","pass":"nats-password"}"#;

pub struct NatsUnderTest {
    world: &'static World,
    plain: SocketAddr,
    mtls: SocketAddr,
}

/// A connection that speaks the protocol by hand.
struct Raw {
    stream: BufReader<TcpStream>,
}

impl UnderTest for NatsUnderTest {
    async fn on(world: &'static World, side: Side) -> Self {
        let (plain, mtls) = match side {
            Side::Sandbox => (world.sandbox.plain_nats.addr(), world.sandbox.nats.addr()),
            Side::Real => (
                world.real.plain_nats.address(),
                world.real.nats.lock().await.address(),
            ),
        };
        Self { world, plain, mtls }
    }
}

// === impl NatsUnderTest ===

impl NatsUnderTest {
    /// A connection that has been greeted, and the greeting.
    async fn greeted(&self) -> (Raw, Value) {
        let stream = TcpStream::connect(self.plain).await.unwrap();
        let mut raw = Raw {
            stream: BufReader::new(stream),
        };
        let info = raw.line().await.expect("INFO must come unasked");
        let info = info.strip_prefix("INFO ").expect("INFO must come first");
        (raw, serde_json::from_str(info).unwrap())
    }

    /// A connection that is let in.
    async fn connected(&self) -> Raw {
        let (mut raw, _) = self.greeted().await;
        raw.say(&format!("CONNECT {WORKING}\r\nPING\r\n")).await;
        assert_eq!(raw.line().await.as_deref(), Some("PONG"));
        raw
    }
}

// === impl Raw ===

impl Raw {
    async fn say(&mut self, text: &str) {
        self.stream
            .get_mut()
            .write_all(text.as_bytes())
            .await
            .unwrap();
    }

    /// The next line; none where the connection has ended.
    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = timeout(ANSWER_WITHIN, self.stream.read_line(&mut line)).await;
        // A reset is an end, too.
        let read = read
            .expect("the server must say something")
            .unwrap_or_default();
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// Everything up to the end of the connection.
    async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let end = timeout(ANSWER_WITHIN, self.stream.read_to_end(&mut rest)).await;
        let _ = end.expect("the server must end the connection");
        String::from_utf8_lossy(&rest).into_owned()
    }
}

// === connections ===

#[test]
fn the_server_speaks_first_and_says_what_it_wants() {
    agree(
        "INFO comes first and says what is wanted",
        async |nats: &NatsUnderTest| {
            let (_raw, info) = nats.greeted().await;
            assert_eq!(info["auth_required"], true, "{info}");
            assert_eq!(info["max_payload"], MAX_PAYLOAD, "{info}");
            assert_eq!(info["headers"], true, "{info}");
            assert_eq!(info["proto"], 1, "{info}");
            assert!(
                info["version"].as_str().unwrap().starts_with("2.15."),
                "{info}"
            );
            assert_ne!(info["tls_required"], true, "{info}");
            assert!(
                info["client_id"].is_u64() && info["server_id"].is_string(),
                "{info}"
            );
        },
    );
}

#[test]
fn a_wrong_password_is_an_authorization_violation() {
    agree(
        "a wrong or missing password is told, then cut off",
        async |nats: &NatsUnderTest| {
            for credentials in [
                r#""user":"nats","pass":"wrong""#,
                r#""user":"x","pass":"y""#,
                "",
            ] {
                let (mut raw, _) = nats.greeted().await;
                let comma = if credentials.is_empty() { "" } else { "," };
                raw.say(&format!(
                    "CONNECT {{\"verbose\":false{comma}{credentials}}}\r\nPING\r\n"
                ))
                .await;
                assert_eq!(
                    raw.rest().await,
                    "-ERR 'Authorization Violation'\r\n",
                    "{credentials}"
                );
            }
        },
    );
}

#[test]
fn mutual_tls_demands_a_client_certificate() {
    agree(
        "a client certificate is demanded",
        async |nats: &NatsUnderTest| {
            let pki = &nats.world.pki;
            let connect = async |options: async_nats::ConnectOptions| {
                let options = options
                    .user_and_password(NATS_USER.0.to_owned(), NATS_USER.1.to_owned())
                    .require_tls(true)
                    .add_root_certificates(pki.ca_file());
                async_nats::connect_with_options(format!("tls://{}", nats.mtls), options).await
            };
            let certificate = async_nats::ConnectOptions::new()
                .add_client_certificate(pki.client_cert_file(), pki.client_key_file());
            connect(certificate)
                .await
                .expect("a client with a certificate must be let in");
            let refusal = connect(async_nats::ConnectOptions::new()).await.err();
            let refusal = refusal.expect("a client without a certificate must be refused");
            assert_eq!(
                refusal.kind(),
                async_nats::ConnectErrorKind::Io,
                "{refusal:?}"
            );
        },
    );
}

#[test]
fn a_verbose_client_is_told_ok() {
    agree(
        "a verbose client is told +OK",
        async |nats: &NatsUnderTest| {
            let (mut raw, _) = nats.greeted().await;
            let verbose = WORKING.replace("\"verbose\":false", "\"verbose\":true");
            raw.say(&format!("CONNECT {verbose}\r\nSUB a 1\r\nPUB b 0\r\n\r\n"))
                .await;
            for _ in 0..3 {
                assert_eq!(raw.line().await.as_deref(), Some("+OK"));
            }
        },
    );
}

// === messages ===

#[test]
fn a_request_that_nobody_hears_is_answered_503() {
    agree(
        "no responders is a 503 in the headers",
        async |nats: &NatsUnderTest| {
            let mut raw = nats.connected().await;
            raw.say("SUB inbox 1\r\nPUB nobody.listens inbox 0\r\n\r\n")
                .await;
            let line = raw.line().await.unwrap();
            assert!(line.starts_with("HMSG inbox 1 "), "{line}");
            assert_eq!(raw.line().await.as_deref(), Some("NATS/1.0 503"));
        },
    );
}

#[test]
fn the_echo_on_ones_own_inbox_follows_all_that_was_published_before() {
    let statement = "the echo on one's own inbox comes after others were given what went before";
    agree(statement, async |nats: &NatsUnderTest| {
        let (mut publisher, mut other) = (nats.connected().await, nats.connected().await);
        other.say("SUB news.* 1\r\nPING\r\n").await;
        assert_eq!(other.line().await.as_deref(), Some("PONG"));
        let mut words = "SUB inbox 7\r\n".to_owned();
        for number in 100..200 {
            words += &format!("PUB news.x 3\r\n{number}\r\n");
        }
        publisher
            .say(&format!("{words}PUB inbox 4\r\ndone\r\n"))
            .await;
        assert_eq!(publisher.line().await.as_deref(), Some("MSG inbox 7 4"));
        // The echo is here: whatever the other is told now comes after the hundred.
        other.say("PING\r\n").await;
        for number in 100..200 {
            assert_eq!(other.line().await.as_deref(), Some("MSG news.x 1 3"));
            assert_eq!(other.line().await, Some(number.to_string()));
        }
        assert_eq!(other.line().await.as_deref(), Some("PONG"));
    });
}

#[test]
fn wildcards_match_one_token_or_the_rest() {
    agree(
        "`*` matches one token, `>` the rest",
        async |nats: &NatsUnderTest| {
            let mut raw = nats.connected().await;
            let subscriptions = "SUB router.* 1\r\nSUB router.> 2\r\nSUB router.register 3\r\n";
            raw.say(&format!(
                "{subscriptions}PUB router.register.x 0\r\n\r\nPING\r\n"
            ))
            .await;
            assert_eq!(
                raw.line().await.as_deref(),
                Some("MSG router.register.x 2 0")
            );
            assert_eq!(raw.line().await.as_deref(), Some(""));
            assert_eq!(raw.line().await.as_deref(), Some("PONG"));
            raw.say("PUB router.register 0\r\n\r\nPING\r\n").await;
            let mut heard = Vec::new();
            loop {
                match raw.line().await.unwrap().as_str() {
                    "PONG" => break,
                    "" => {}
                    line => heard.push(line.to_owned()),
                }
            }
            heard.sort();
            let expected = ["1", "2", "3"].map(|sid| format!("MSG router.register {sid} 0"));
            assert_eq!(heard, expected);
        },
    );
}

#[test]
fn a_payload_beyond_the_limit_ends_the_connection() {
    agree(
        "a payload beyond the limit ends the connection",
        async |nats: &NatsUnderTest| {
            let mut raw = nats.connected().await;
            raw.say(&format!("PUB a {}\r\n", MAX_PAYLOAD + 1)).await;
            assert_eq!(raw.rest().await, "-ERR 'Maximum Payload Violation'\r\n");
        },
    );
}

#[test]
fn a_denied_subject_is_told_and_the_connection_lives_on() {
    agree(
        "a denied subject is told by name",
        async |nats: &NatsUnderTest| {
            let mut raw = nats.connected().await;
            raw.say(&format!("PUB {DENIED} 0\r\n\r\nSUB {DENIED} 1\r\nPING\r\n"))
                .await;
            let publish = format!("-ERR 'Permissions Violation for Publish to \"{DENIED}\"'");
            let subscribe =
                format!("-ERR 'Permissions Violation for Subscription to \"{DENIED}\"'");
            assert_eq!(raw.line().await, Some(publish));
            assert_eq!(raw.line().await, Some(subscribe));
            assert_eq!(raw.line().await.as_deref(), Some("PONG"));
        },
    );
}
