//! A small nats-server 2.15: what Cloud Foundry's clients use of it, and the ways it can fail them.
//!
//! Owns connections, authentication and permissions; refuses to know what the messages mean.
//! INFO comes first and in the clear, TLS is upgraded to after it, as everywhere in a foundation.
//! Not played: clusters, accounts, JetStream, the server's own PING every two minutes.

mod hub;
pub(crate) mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::listen::{self, Io, Server};
use crate::tls::{self, Identity};
use crate::uaa::random_guid;
use hub::{Hub, Message, Outbox};
use wire::{Frame, FrameReader, ReadError};

pub use hub::Recorded;

/// The version whose behaviour is played.
pub const VERSION: &str = "2.15.1";
/// nats-server's `authorization.timeout`, two seconds by default.
const AUTH_TIMEOUT: Duration = Duration::from_secs(2);

pub struct NatsOptions {
    pub addr: SocketAddr,
    pub user: Option<(String, String)>,
    /// A server identity, and the CA (PEM) whose client certificates are demanded, if any.
    pub tls: Option<(Identity, Option<String>)>,
}

pub struct Nats {
    state: Arc<State>,
    addr: SocketAddr,
    server: tokio::sync::Mutex<Option<Server>>,
}

struct State {
    id: String,
    user: Option<(String, String)>,
    tls: Option<Arc<rustls::ServerConfig>>,
    tls_verify: bool,
    hub: Mutex<Hub>,
    frozen: watch::Sender<bool>,
}

/// Forgets a connection however it ends, a stop of the server included.
struct Leaving<'a>(&'a State, u64);

/// One client's side of the conversation.
struct Session {
    id: u64,
    outbox: Arc<Outbox>,
    verbose: bool,
}

// === impl NatsOptions ===

impl Default for NatsOptions {
    /// Plain, on a free port, for everyone.
    fn default() -> Self {
        Self {
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            user: None,
            tls: None,
        }
    }
}

// === impl Nats ===

impl Nats {
    pub async fn start(options: NatsOptions) -> anyhow::Result<Self> {
        let tls = options.tls.as_ref();
        let state = Arc::new(State {
            id: random_guid().replace('-', "").to_uppercase(),
            user: options.user,
            tls: tls.map(|(identity, ca)| tls::server_config(identity, ca.as_deref())),
            tls_verify: tls.is_some_and(|(_, ca)| ca.is_some()),
            hub: Mutex::default(),
            frozen: watch::Sender::new(false),
        });
        let mut nats = Self {
            state,
            addr: options.addr,
            server: tokio::sync::Mutex::default(),
        };
        nats.addr = nats.listen().await?;
        Ok(nats)
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Every connection is closed and the port refuses; subscriptions are forgotten.
    pub async fn stop(&self) {
        if let Some(server) = self.server.lock().await.take() {
            server.stop().await;
        }
    }

    /// Listens on the same address again.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        self.listen().await.map(drop)
    }

    pub async fn restart(&self) -> anyhow::Result<()> {
        self.stop().await;
        self.start_again().await
    }

    /// As SIGSTOP: sockets stay, the kernel still accepts, nothing is read, written or said.
    pub fn freeze(&self, frozen: bool) {
        self.state.frozen.send_replace(frozen);
    }

    pub fn disconnect_all(&self) {
        self.state.hub().disconnect_all();
    }

    /// Publishing to the subject (wildcards work) answers a permissions violation and delivers nothing.
    pub fn deny_publish(&self, subject: &str) {
        self.state.hub().denied_publish.insert(subject.to_owned());
    }

    /// Subscribing to the subject answers a permissions violation.
    pub fn deny_subscribe(&self, subject: &str) {
        self.state.hub().denied_subscribe.insert(subject.to_owned());
    }

    /// Withdraws every denial.
    pub fn allow_all(&self) {
        let mut hub = self.state.hub();
        hub.denied_publish.clear();
        hub.denied_subscribe.clear();
    }

    /// The latest messages, oldest first.
    pub fn messages(&self) -> Vec<Recorded> {
        self.state.hub().messages()
    }

    pub fn forget_messages(&self) {
        self.state.hub().forget_messages();
    }

    /// Clients that are connected and let in.
    pub fn connections(&self) -> usize {
        self.state.hub().connections()
    }

    /// TCP connections since the start, whatever became of them.
    pub fn connections_made(&self) -> u64 {
        self.state.hub().connections_made()
    }

    /// A message from nobody.
    pub fn publish(&self, subject: &str, payload: impl Into<Bytes>) {
        let message = Message {
            subject,
            reply: None,
            headers: &Bytes::new(),
            body: &payload.into(),
        };
        self.state.hub().publish(None, &message);
    }

    async fn listen(&self) -> anyhow::Result<SocketAddr> {
        let mut server = self.server.lock().await;
        if let Some(running) = &*server {
            return Ok(running.addr());
        }
        let state = self.state.clone();
        let started = Server::start(self.addr, move |stream, peer| {
            let state = state.clone();
            async move {
                // A connection that breaks is its client's business.
                let _ = state.converse(stream, peer).await;
            }
        });
        let started = started.await.context("nats")?;
        let addr = started.addr();
        *server = Some(started);
        Ok(addr)
    }
}

// === impl State ===

impl State {
    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().expect("lock must not be poisoned")
    }

    async fn thawed(&self) {
        // The sender lives in `self`: waiting cannot fail.
        let _ = self.frozen.subscribe().wait_for(|frozen| !frozen).await;
    }

    async fn froze(&self) {
        let _ = self.frozen.subscribe().wait_for(|frozen| *frozen).await;
    }

    async fn converse(&self, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        self.thawed().await;
        let id = self.hub().next_id();
        let _leaving = Leaving(self, id);
        let info = format!("INFO {} \r\n", self.info(id, stream.local_addr()?, peer));
        stream.write_all(info.as_bytes()).await?;
        let stream = listen::accept_tls(stream, self.tls.clone()).await?;
        let (reader, writer) = tokio::io::split(stream);
        let outbox = Outbox::new();
        let session = Session {
            id,
            outbox: outbox.clone(),
            verbose: true,
        };
        // Both halves end together; dropping the future of this function drops both.
        tokio::select! {
            outcome = self.write(writer, &outbox) => outcome,
            () = self.read(FrameReader::new(reader), session) => Ok(()),
        }
    }

    fn info(&self, id: u64, local: SocketAddr, peer: SocketAddr) -> Value {
        let mut info = json!({
            "server_id": self.id,
            "server_name": self.id,
            "version": VERSION,
            "proto": 1,
            "go": "go1.25",
            "host": local.ip().to_string(),
            "port": local.port(),
            "headers": true,
            "max_payload": wire::PAYLOAD_MAX,
            "client_id": id,
            "client_ip": peer.ip().to_string(),
        });
        if self.user.is_some() {
            info["auth_required"] = json!(true);
        }
        if self.tls.is_some() {
            info["tls_required"] = json!(true);
        }
        if self.tls_verify {
            info["tls_verify"] = json!(true);
        }
        info
    }

    async fn write(&self, mut writer: WriteHalf<Io>, outbox: &Outbox) -> io::Result<()> {
        loop {
            self.thawed().await;
            let (bytes, last) = outbox.take();
            writer.write_all(&bytes).await?;
            writer.flush().await?;
            if last {
                return writer.shutdown().await;
            }
            if bytes.is_empty() {
                outbox.ready.notified().await;
            }
        }
    }

    async fn read(&self, mut frames: FrameReader<ReadHalf<Io>>, mut session: Session) {
        let outbox = session.outbox.clone();
        let hello = tokio::time::timeout(AUTH_TIMEOUT, self.hello(&mut frames, &mut session));
        let outcome = match hello.await {
            Ok(Ok(())) => self.serve(&mut frames, &session).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ReadError::Protocol("Authentication Timeout")),
        };
        if let Err(ReadError::Protocol(message)) = outcome {
            outbox.push(&[format!("-ERR '{message}'\r\n").as_bytes()]);
            outbox.close();
            // The writer says it and ends; this half must not end first.
            std::future::pending::<()>().await;
        }
    }

    /// Until CONNECT is accepted.
    async fn hello(
        &self,
        frames: &mut FrameReader<ReadHalf<Io>>,
        session: &mut Session,
    ) -> Result<(), ReadError> {
        loop {
            let frame = self.next(frames).await?;
            if frame.op == "PING" {
                session.outbox.push(&[b"PONG\r\n"]);
                continue;
            }
            if frame.op != "CONNECT" {
                return Err(ReadError::Protocol("Authorization Violation"));
            }
            let options: Value = serde_json::from_str(&frame.args)
                .map_err(|_| ReadError::Protocol("Unknown Protocol Operation"))?;
            if let Some((user, password)) = &self.user
                && (options["user"] != user.as_str() || options["pass"] != password.as_str())
            {
                return Err(ReadError::Protocol("Authorization Violation"));
            }
            session.verbose = options["verbose"] != false;
            let outbox = session.outbox.clone();
            self.hub().connect(session.id, outbox, &options);
            session.ok();
            return Ok(());
        }
    }

    /// A frozen server neither reads nor looks at what it has read.
    async fn next(&self, frames: &mut FrameReader<ReadHalf<Io>>) -> Result<Frame, ReadError> {
        loop {
            self.thawed().await;
            tokio::select! {
                biased;
                () = self.froze() => {}
                frame = frames.next() => return frame,
            }
        }
    }

    async fn serve(
        &self,
        frames: &mut FrameReader<ReadHalf<Io>>,
        session: &Session,
    ) -> Result<(), ReadError> {
        loop {
            let frame = self.next(frames).await?;
            let args: Vec<&str> = frame.args.split_whitespace().collect();
            match (frame.op.as_str(), &args[..]) {
                ("PING", _) => session.outbox.push(&[b"PONG\r\n"]),
                ("PONG" | "", _) => {}
                ("CONNECT", _) => session.ok(),
                ("SUB", [subject, sid]) => self.subscribe(session, subject, None, sid),
                ("SUB", [subject, queue, sid]) => {
                    self.subscribe(session, subject, Some(queue), sid);
                }
                ("UNSUB", [sid]) => {
                    self.hub().unsubscribe_after(session.id, sid, None);
                    session.ok();
                }
                ("UNSUB", [sid, max]) => {
                    let max = max.parse().ok().filter(|max| *max > 0);
                    self.hub().unsubscribe_after(session.id, sid, max);
                    session.ok();
                }
                ("PUB", [subject, _]) => self.take(session, subject, None, &frame),
                ("PUB", [subject, reply, _]) => self.take(session, subject, Some(reply), &frame),
                ("HPUB", [subject, _, _]) => self.take(session, subject, None, &frame),
                ("HPUB", [subject, reply, _, _]) => {
                    self.take(session, subject, Some(reply), &frame);
                }
                _ => return Err(ReadError::Protocol("Unknown Protocol Operation")),
            }
        }
    }

    fn subscribe(&self, session: &Session, subject: &str, queue: Option<&str>, sid: &str) {
        if !wire::is_subject(subject, true) {
            return session.err("Invalid Subject");
        }
        let mut hub = self.hub();
        if hub.denies_subscribe(subject) {
            drop(hub);
            let violation = format!("Permissions Violation for Subscription to \"{subject}\"");
            return session.err(&violation);
        }
        hub.subscribe(session.id, subject, queue, sid);
        drop(hub);
        session.ok();
    }

    fn take(&self, session: &Session, subject: &str, reply: Option<&str>, frame: &Frame) {
        let mut hub = self.hub();
        if hub.denies_publish(subject) {
            drop(hub);
            let violation = format!("Permissions Violation for Publish to \"{subject}\"");
            return session.err(&violation);
        }
        if let Some((headers, body)) = &frame.payload {
            let message = Message {
                subject,
                reply,
                headers,
                body,
            };
            hub.publish(Some(session.id), &message);
        }
        drop(hub);
        session.ok();
    }
}

// === impl Leaving ===

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.hub().disconnect(self.1);
    }
}

// === impl Session ===

impl Session {
    fn ok(&self) {
        if self.verbose {
            self.outbox.push(&[b"+OK\r\n"]);
        }
    }

    fn err(&self, message: &str) {
        self.outbox
            .push(&[format!("-ERR '{message}'\r\n").as_bytes()]);
    }
}
