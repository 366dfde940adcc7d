//! The HTTP router's side of NATS: connect, subscribe, hand on what comes, reconnect for ever.
//!
//! Knows subjects and bytes, not routes. Between the socket and the table stands a queue that
//! drops silently when it is full, as gorouter's client was measured to do.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;

use crate::listen::Io;
use crate::nats::wire::FrameReader;
use crate::tls::{self, Identity};

/// gorouter exits when NATS is not there at its start: three attempts, 100 ms apart.
const FIRST_ATTEMPTS: usize = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// `router.start` was seen 0.47 s after NATS was back.
const RECONNECT_PAUSE: Duration = Duration::from_millis(400);
/// A frozen server accepts and says nothing; a busy machine may take seconds for a connection with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// gorouter pings every 20 s, and gives up on the third without an answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PINGS_UNANSWERED_MAX: u32 = 2;
/// gorouter's pending limit: more than this many unread messages and the newest are dropped.
pub(super) const PENDING_MAX: usize = 131_072;

/// Where NATS is and how to be let in.
#[derive(Clone, Debug)]
pub struct NatsClientOptions {
    pub addr: SocketAddr,
    pub user: Option<(String, String)>,
    pub tls: Option<NatsClientTls>,
}

#[derive(Clone, Debug)]
pub struct NatsClientTls {
    pub ca_pem: String,
    pub identity: Option<Identity>,
    /// The name the server's certificate must hold.
    pub server_name: String,
}

#[derive(Debug)]
pub(super) struct Message {
    pub(super) subject: String,
    pub(super) reply: Option<String>,
    pub(super) payload: Bytes,
}

/// What the router needs of its bus, whatever becomes of the connection.
pub(super) struct Bus {
    options: NatsClientOptions,
    tls: Option<Arc<rustls::ClientConfig>>,
    pub(super) connected: watch::Sender<bool>,
    incoming: mpsc::Sender<Message>,
    dropped: Arc<std::sync::atomic::AtomicU64>,
    start: Bytes,
}

struct Connection {
    frames: FrameReader<ReadHalf<Io>>,
    writer: WriteHalf<Io>,
}

// === impl NatsClientOptions ===

impl NatsClientOptions {
    /// Plain and without credentials.
    pub fn plain(addr: SocketAddr) -> Self {
        Self {
            addr,
            user: None,
            tls: None,
        }
    }
}

// === impl Bus ===

impl Bus {
    pub(super) fn new(
        options: NatsClientOptions,
        incoming: mpsc::Sender<Message>,
        dropped: Arc<std::sync::atomic::AtomicU64>,
        start: Bytes,
    ) -> Self {
        let tls = options
            .tls
            .as_ref()
            .map(|tls| Arc::new(tls::client_config(Some(&tls.ca_pem), tls.identity.as_ref())));
        Self {
            options,
            tls,
            connected: watch::Sender::new(false),
            incoming,
            dropped,
            start,
        }
    }

    /// The first connection, or the error that makes gorouter exit; then the endless rest as a
    /// future to be run.
    pub(super) async fn connect(
        self: Arc<Self>,
        outgoing: mpsc::Receiver<(String, Bytes)>,
    ) -> io::Result<impl Future<Output = ()> + Send> {
        let mut attempt = 1;
        let connection = loop {
            match self.connect_once().await {
                Err(_) if attempt < FIRST_ATTEMPTS => tokio::time::sleep(FIRST_PAUSE).await,
                outcome => break outcome?,
            }
            attempt += 1;
        };
        self.connected.send_replace(true);
        Ok(self.run(connection, outgoing))
    }

    async fn run(
        self: Arc<Self>,
        mut connection: Connection,
        mut outgoing: mpsc::Receiver<(String, Bytes)>,
    ) {
        loop {
            // The reason does not matter: what follows is the same.
            let _ = self.converse(connection, &mut outgoing).await;
            self.connected.send_replace(false);
            connection = loop {
                tokio::time::sleep(RECONNECT_PAUSE).await;
                if let Ok(connection) = self.connect_once().await {
                    break connection;
                }
            };
            self.connected.send_replace(true);
        }
    }

    async fn connect_once(&self) -> io::Result<Connection> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.handshake()).await?
    }

    /// INFO, TLS, CONNECT, then `router.start` before any subscription, as gorouter does.
    async fn handshake(&self) -> io::Result<Connection> {
        let mut stream = TcpStream::connect(self.options.addr).await?;
        stream.set_nodelay(true)?;
        read_info(&mut stream).await?;
        let io: Io = match (&self.tls, &self.options.tls) {
            (Some(config), Some(tls)) => {
                let name = ServerName::try_from(tls.server_name.clone());
                let name = name.map_err(io::Error::other)?;
                Box::new(
                    TlsConnector::from(config.clone())
                        .connect(name, stream)
                        .await?,
                )
            }
            _ => Box::new(stream),
        };
        let (reader, mut writer) = tokio::io::split(io);
        let mut frames = FrameReader::new(reader);
        let mut hello = json!({
            "verbose": false,
            "pedantic": false,
            "tls_required": self.tls.is_some(),
            "name": "gorouter",
            "lang": "rust",
            "version": "0",
            "protocol": 1,
        });
        if let Some((user, password)) = &self.options.user {
            hello["user"] = json!(user);
            hello["pass"] = json!(password);
        }
        let connect = format!("CONNECT {hello}\r\nPING\r\n");
        writer.write_all(connect.as_bytes()).await?;
        writer.flush().await?;
        loop {
            let frame = frames.next().await?;
            match frame.op.as_str() {
                "PONG" => break,
                "-ERR" => return Err(io::Error::other(frame.args)),
                _ => {}
            }
        }
        publish(&mut writer, "router.start", &self.start).await?;
        writer
            .write_all(b"SUB router.greet 1\r\nSUB router.* 2\r\nPING\r\n")
            .await?;
        writer.flush().await?;
        // Who is told that the router is up may publish at once: until this answer, NATS may not
        // have read the subscriptions, and would drop what is published.
        loop {
            let frame = frames.next().await?;
            match frame.op.as_str() {
                "PONG" => break,
                "MSG" | "HMSG" => self.hand_on(&frame.args, frame.payload),
                "-ERR" => return Err(io::Error::other(frame.args)),
                _ => {}
            }
        }
        Ok(Connection { frames, writer })
    }

    async fn converse(
        &self,
        connection: Connection,
        outgoing: &mut mpsc::Receiver<(String, Bytes)>,
    ) -> io::Result<()> {
        let Connection {
            mut frames,
            mut writer,
        } = connection;
        let mut unanswered = 0;
        let mut ping = tokio::time::interval(PING_INTERVAL);
        ping.tick().await;
        loop {
            tokio::select! {
                frame = frames.next() => {
                    let frame = frame?;
                    match frame.op.as_str() {
                        "MSG" | "HMSG" => self.hand_on(&frame.args, frame.payload),
                        "PING" => {
                            writer.write_all(b"PONG\r\n").await?;
                            writer.flush().await?;
                        }
                        "PONG" => unanswered = 0,
                        _ => {}
                    }
                }
                Some((subject, payload)) = outgoing.recv() => {
                    publish(&mut writer, &subject, &payload).await?;
                    writer.flush().await?;
                }
                _ = ping.tick() => {
                    if unanswered == PINGS_UNANSWERED_MAX {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    unanswered += 1;
                    writer.write_all(b"PING\r\n").await?;
                    writer.flush().await?;
                }
            }
        }
    }

    fn hand_on(&self, args: &str, payload: Option<(Bytes, Bytes)>) {
        let mut args = args.split_whitespace();
        let (Some(subject), Some(sid), Some((headers, payload))) =
            (args.next(), args.next(), payload)
        else {
            return;
        };
        let sizes = if headers.is_empty() { 1 } else { 2 };
        let rest: Vec<&str> = args.collect();
        let message = Message {
            // The greeting's own subscription is told apart by its number.
            subject: match sid {
                "1" => "greet".to_owned(),
                _ => subject.to_owned(),
            },
            reply: (rest.len() > sizes).then(|| rest[0].to_owned()),
            payload,
        };
        if self.incoming.try_send(message).is_err() {
            self.dropped
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

async fn publish(writer: &mut WriteHalf<Io>, subject: &str, payload: &[u8]) -> io::Result<()> {
    let head = format!("PUB {subject} {}\r\n", payload.len());
    writer.write_all(head.as_bytes()).await?;
    writer.write_all(payload).await?;
    writer.write_all(b"\r\n").await
}

/// Reads exactly the first line: TLS begins right after it.
async fn read_info(stream: &mut TcpStream) -> io::Result<()> {
    use tokio::io::AsyncReadExt;
    /// An INFO line with a cluster's addresses is a few kilobytes.
    const INFO_MAX: usize = 32 * 1024;
    for read in 0..INFO_MAX {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            return Ok(());
        }
        if read == 0 && byte != b'I' {
            break;
        }
    }
    Err(io::Error::other("no INFO line"))
}
