//! The broker, driven by async-nats, plain and over mTLS.

#[path = "support/eventually.rs"]
mod support;

use std::io::Write;
use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use futures::StreamExt;
use sandbox::nats::{Nats, NatsOptions};
use sandbox::tls::Ca;
use support::eventually;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(20);

async fn start() -> Nats {
    let user = Some(("nats".to_owned(), "pw".to_owned()));
    let options = NatsOptions {
        user,
        ..NatsOptions::default()
    };
    Nats::start(options).await.unwrap()
}

fn options() -> ConnectOptions {
    ConnectOptions::new().user_and_password("nats".into(), "pw".into())
}

async fn connect(nats: &Nats) -> Client {
    options().connect(nats.addr().to_string()).await.unwrap()
}

async fn payload(subscriber: &mut async_nats::Subscriber) -> String {
    let message = tokio::time::timeout(PATIENCE, subscriber.next()).await;
    String::from_utf8_lossy(&message.unwrap().unwrap().payload).into_owned()
}

#[tokio::test]
async fn messages_reach_literal_and_wildcard_subscribers_in_order() {
    let nats = start().await;
    let (one, other) = (connect(&nats).await, connect(&nats).await);
    let mut literal = one.subscribe("router.start").await.unwrap();
    let mut star = one.subscribe("router.*").await.unwrap();
    let mut rest = one.subscribe(">").await.unwrap();
    one.flush().await.unwrap();
    eventually("the subscriptions are in", async || {
        other.publish("router.start", "x".into()).await.unwrap();
        tokio::time::timeout(Duration::from_millis(50), rest.next())
            .await
            .is_ok()
    })
    .await;
    assert_eq!(payload(&mut literal).await, "x");
    for text in ["1", "2", "3"] {
        other.publish("router.register", text.into()).await.unwrap();
    }
    while payload(&mut star).await != "3" {}
    nats.publish("router.start", "from nobody");
    while payload(&mut literal).await != "from nobody" {}
    let seen = nats.messages();
    assert!(
        seen.iter()
            .any(|seen| seen.subject == "router.register" && seen.payload == "2")
    );
}

#[tokio::test]
async fn a_request_is_answered_or_told_that_nobody_listens() {
    let nats = start().await;
    let client = connect(&nats).await;
    let refusal = client
        .request("router.greet", "{}".into())
        .await
        .unwrap_err();
    assert_eq!(refusal.kind(), async_nats::RequestErrorKind::NoResponders);
    let mut greets = client.subscribe("router.greet").await.unwrap();
    let replier = client.clone();
    let answering = tokio::spawn(async move {
        let greet = greets.next().await.unwrap();
        replier
            .publish(greet.reply.unwrap(), "hello".into())
            .await
            .unwrap();
    });
    let answer = client.request("router.greet", "{}".into()).await.unwrap();
    assert_eq!(answer.payload, "hello");
    answering.await.unwrap();
}

#[tokio::test]
async fn headers_queue_groups_and_a_limited_subscription_work() {
    let nats = start().await;
    let client = connect(&nats).await;
    let mut limited = client.subscribe("a").await.unwrap();
    limited.unsubscribe_after(2).await.unwrap();
    let mut first = client.queue_subscribe("q", "group".into()).await.unwrap();
    let mut second = client.queue_subscribe("q", "group".into()).await.unwrap();
    let mut headed = client.subscribe("h").await.unwrap();
    for text in ["1", "2", "3"] {
        client.publish("a", text.into()).await.unwrap();
        client.publish("q", text.into()).await.unwrap();
    }
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Kind", "odd");
    client
        .publish_with_headers("h", headers, "body".into())
        .await
        .unwrap();
    let message = tokio::time::timeout(PATIENCE, headed.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        message.headers.unwrap().get("Kind").unwrap().as_str(),
        "odd"
    );
    assert_eq!(message.payload, "body");
    assert_eq!(
        (payload(&mut limited).await, payload(&mut limited).await),
        ("1".into(), "2".into())
    );
    assert!(
        tokio::time::timeout(PATIENCE, limited.next())
            .await
            .unwrap()
            .is_none()
    );
    client.flush().await.unwrap();
    let mut got = 0;
    for subscriber in [&mut first, &mut second] {
        while tokio::time::timeout(Duration::from_millis(200), subscriber.next())
            .await
            .is_ok()
        {
            got += 1;
        }
    }
    assert_eq!(got, 3);
}

#[tokio::test]
async fn a_wrong_password_is_an_authorization_violation() {
    let nats = start().await;
    let mut stream = BufReader::new(TcpStream::connect(nats.addr()).await.unwrap());
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    assert!(
        line.starts_with("INFO {") && line.contains("\"auth_required\":true"),
        "{line}"
    );
    let hello = b"CONNECT {\"user\":\"nats\",\"pass\":\"no\",\"verbose\":false}\r\nPING\r\n";
    stream.get_mut().write_all(hello).await.unwrap();
    line.clear();
    stream.read_line(&mut line).await.unwrap();
    assert_eq!(line, "-ERR 'Authorization Violation'\r\n");
    line.clear();
    assert_eq!(stream.read_line(&mut line).await.unwrap(), 0);
    let wrong = ConnectOptions::new().user_and_password("nats".into(), "no".into());
    assert!(wrong.connect(nats.addr().to_string()).await.is_err());
    assert_eq!(nats.connections(), 0);
}

#[tokio::test]
async fn a_denied_subject_is_told_and_the_connection_lives() {
    let nats = start().await;
    let (told, mut events) = tokio::sync::mpsc::channel(16);
    let options = options().event_callback(move |event| {
        let told = told.clone();
        async move {
            let _ = told.try_send(event.to_string());
        }
    });
    let client = options.connect(nats.addr().to_string()).await.unwrap();
    nats.deny_publish("router.register");
    client.publish("router.register", "x".into()).await.unwrap();
    client.flush().await.unwrap();
    let event = loop {
        let event = tokio::time::timeout(PATIENCE, events.recv())
            .await
            .unwrap()
            .unwrap();
        if event.to_lowercase().contains("permissions violation") {
            break event.to_lowercase();
        }
    };
    assert!(event.contains("publish"), "{event}");
    assert!(nats.messages().is_empty());
    assert_eq!(nats.connections(), 1);
}

#[tokio::test]
async fn a_frozen_server_keeps_its_sockets_and_says_nothing() {
    let nats = start().await;
    let client = connect(&nats).await;
    let mut echo = client.subscribe("echo").await.unwrap();
    client.publish("echo", "before".into()).await.unwrap();
    assert_eq!(payload(&mut echo).await, "before");
    nats.freeze(true);
    client.publish("echo", "during".into()).await.unwrap();
    client.flush().await.unwrap();
    let silence = tokio::time::timeout(Duration::from_millis(300), echo.next()).await;
    assert!(silence.is_err());
    nats.freeze(false);
    assert_eq!(payload(&mut echo).await, "during");
}

#[tokio::test]
async fn clients_come_back_after_a_restart_on_the_same_address() {
    let nats = start().await;
    let client = connect(&nats).await;
    let mut echo = client.subscribe("echo").await.unwrap();
    nats.stop().await;
    assert!(TcpStream::connect(nats.addr()).await.is_err());
    nats.start_again().await.unwrap();
    eventually("the client is back", async || nats.connections() == 1).await;
    eventually("its subscription too", async || {
        nats.publish("echo", "again");
        tokio::time::timeout(Duration::from_millis(100), echo.next())
            .await
            .is_ok()
    })
    .await;
    nats.disconnect_all();
    eventually("it reconnects", async || {
        nats.connections_made() >= 3 && nats.connections() == 1
    })
    .await;
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[tokio::test]
async fn over_mtls_only_a_client_with_a_certificate_gets_in() {
    let ca = Ca::new("nats-ca");
    let options = NatsOptions {
        tls: Some((
            ca.issue(&["localhost", "127.0.0.1"], false),
            Some(ca.pem().to_owned()),
        )),
        ..NatsOptions::default()
    };
    let nats = Nats::start(options).await.unwrap();
    let identity = ca.issue(&["nats-client"], true);
    let files = (
        file(ca.pem()),
        file(&identity.cert_pem),
        file(&identity.key_pem),
    );
    let url = format!("tls://127.0.0.1:{}", nats.addr().port());
    let anonymous = ConnectOptions::new()
        .require_tls(true)
        .add_root_certificates(files.0.path().to_owned());
    assert!(anonymous.connect(&url).await.is_err());
    let known = ConnectOptions::new()
        .require_tls(true)
        .add_root_certificates(files.0.path().to_owned())
        .add_client_certificate(files.1.path().to_owned(), files.2.path().to_owned());
    let client = known.connect(&url).await.unwrap();
    let mut echo = client.subscribe("echo").await.unwrap();
    client.publish("echo", "secret".into()).await.unwrap();
    assert_eq!(payload(&mut echo).await, "secret");
}
