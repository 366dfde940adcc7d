//! A NATS server in the test's own process: the part of the protocol that a publisher of routes meets, plus
//! switches for what a real server cannot be asked to do on cue.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// What a client published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    pub connection: u64,
    pub subject: String,
    pub reply: Option<String>,
    pub payload: Vec<u8>,
}

#[derive(Default)]
pub(crate) struct Behaviour {
    /// Only this password is let in.
    pub password: Option<String>,
    /// Say that TLS is required, and note what the client does then.
    pub demand_tls: bool,
    /// Refuse subscriptions to inboxes.
    pub deny_inbox: bool,
    /// Refuse subscriptions to this subject.
    pub deny_subscribe: Option<&'static str>,
    /// Refuse what is published on this subject.
    pub deny_publish: Option<&'static str>,
    /// Bytes of one message at most; 0 stands for the usual 1 MiB.
    pub max_payload: usize,
    /// Read nothing and say nothing.
    pub frozen: bool,
    /// What each router answers to a greeting; none means that nobody listens.
    pub routers: Vec<String>,
}

#[derive(Default)]
struct State {
    behaviour: Behaviour,
    log: Vec<Published>,
    first_bytes: Vec<u8>,
    connections: u64,
    /// Connection and its number for the subscription, then subject and the connection's writer.
    subscriptions: BTreeMap<(u64, String), (String, Lines)>,
}

type Lines = mpsc::UnboundedSender<Vec<u8>>;

type Shared = Arc<Mutex<State>>;

pub(crate) struct Server {
    pub addr: SocketAddr,
    state: Shared,
    tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        let state = State {
            behaviour,
            ..State::default()
        };
        let mut server = Self {
            addr: "127.0.0.1:0".parse().unwrap(),
            state: Arc::new(Mutex::new(state)),
            tasks: JoinSet::new(),
        };
        server.listen().await;
        server
    }

    /// Listens, again on the same port after a stop.
    pub(crate) async fn listen(&mut self) {
        let listener = TcpListener::bind(self.addr).await.unwrap();
        self.addr = listener.local_addr().unwrap();
        let state = self.state.clone();
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, state.clone()));
            }
        });
    }

    /// Ends every connection and stops listening.
    pub(crate) async fn stop(&mut self) {
        self.tasks.shutdown().await;
        lock(&self.state).subscriptions.clear();
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut lock(&self.state).behaviour);
    }

    /// Publishes as somebody else would.
    pub(crate) fn publish(&self, subject: &str, payload: &str) {
        deliver(&self.state, subject, None, payload.as_bytes());
    }

    /// Whether somebody listens to exactly this subject by now: a connection stands before its subscriptions do, and
    /// what is published in between reaches nobody.
    pub(crate) fn listens(&self, subject: &str) -> bool {
        let state = lock(&self.state);
        let mut subscriptions = state.subscriptions.values();
        subscriptions.any(|(pattern, _)| pattern == subject)
    }

    /// What came on `router.register` and `router.unregister`: `(connection, "+" or "-", body)`.
    pub(crate) fn routes(&self) -> Vec<(u64, char, String)> {
        let state = lock(&self.state);
        let route = |message: &Published| {
            let sign = match message.subject.as_str() {
                "router.register" => '+',
                "router.unregister" => '-',
                _ => return None,
            };
            let body = String::from_utf8(message.payload.clone()).unwrap();
            Some((message.connection, sign, body))
        };
        state.log.iter().filter_map(route).collect()
    }

    pub(crate) fn published(&self, subject: &str) -> Vec<Published> {
        let state = lock(&self.state);
        let on = |message: &&Published| message.subject == subject;
        state.log.iter().filter(on).cloned().collect()
    }

    pub(crate) fn connections(&self) -> u64 {
        lock(&self.state).connections
    }

    /// What a client sent first to a server that demands TLS.
    pub(crate) fn first_bytes(&self) -> Vec<u8> {
        lock(&self.state).first_bytes.clone()
    }
}

fn lock(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

async fn serve(stream: TcpStream, state: Shared) {
    thaw(&state).await;
    let id = {
        let mut state = lock(&state);
        state.connections += 1;
        state.connections
    };
    let (demand_tls, max_payload) = {
        let behaviour = &lock(&state).behaviour;
        let max_payload = match behaviour.max_payload {
            0 => 1 << 20,
            bytes => bytes,
        };
        (behaviour.demand_tls, max_payload)
    };
    let (reader, mut writer) = stream.into_split();
    let info = format!(
        "INFO {{\"server_id\":\"S\",\"version\":\"2.15.0\",\"proto\":1,\"headers\":true,\
         \"max_payload\":{max_payload},\"tls_required\":{demand_tls}}}\r\n"
    );
    if writer.write_all(info.as_bytes()).await.is_err() {
        return;
    }
    let mut reader = BufReader::new(reader);
    if demand_tls {
        let mut bytes = vec![0; 5];
        if reader.read_exact(&mut bytes).await.is_ok() {
            lock(&state).first_bytes = bytes;
        }
        return;
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "bounded by its test's few messages"
    )]
    let (tx, rx) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(write(writer, rx));
    let _ = read(&mut reader, id, &state, &tx).await;
    lock(&state)
        .subscriptions
        .retain(|(owner, _), _| *owner != id);
    drop(tx);
    // Lets a last refusal out.
    let _ = tokio::time::timeout(Duration::from_millis(200), tasks.join_next()).await;
}

async fn write(mut writer: OwnedWriteHalf, mut lines: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        if writer.write_all(&line).await.is_err() {
            return;
        }
    }
}

async fn read(
    reader: &mut BufReader<tokio::net::tcp::OwnedReadHalf>,
    id: u64,
    state: &Shared,
    tx: &mpsc::UnboundedSender<Vec<u8>>,
) -> Option<()> {
    loop {
        let mut line = String::new();
        let read = reader.read_line(&mut line).await.ok()?;
        thaw(state).await;
        if read == 0 {
            return None;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["CONNECT", ..] => {
                let options: serde_json::Value =
                    serde_json::from_str(line.trim().strip_prefix("CONNECT ")?).ok()?;
                let wanted = lock(state).behaviour.password.clone();
                if wanted.is_some_and(|wanted| options["pass"] != wanted.as_str()) {
                    tx.send(b"-ERR 'Authorization Violation'\r\n".to_vec()).ok();
                    return None;
                }
            }
            ["PING"] => tx.send(b"PONG\r\n".to_vec()).ok()?,
            ["SUB", subject, sid] => {
                let denied = {
                    let behaviour = &lock(state).behaviour;
                    behaviour.deny_inbox && subject.starts_with("_INBOX")
                        || behaviour.deny_subscribe == Some(subject)
                };
                if denied {
                    let error = "-ERR 'Permissions Violation for Subscription to";
                    tx.send(format!("{error} \"{subject}\"'\r\n").into_bytes())
                        .ok()?;
                } else {
                    let key = (id, sid.to_owned());
                    let value = (subject.to_owned(), tx.clone());
                    lock(state).subscriptions.insert(key, value);
                }
            }
            ["UNSUB", sid, ..] => {
                lock(state).subscriptions.remove(&(id, sid.to_owned()));
            }
            ["PUB", subject, .., size] => {
                let reply = (words.len() == 4).then(|| words[2].to_owned());
                let subject = subject.to_owned();
                let mut payload = vec![0; size.parse::<usize>().ok()? + 2];
                reader.read_exact(&mut payload).await.ok()?;
                payload.truncate(payload.len() - 2);
                if lock(state).behaviour.deny_publish == Some(subject.as_str()) {
                    let error = "-ERR 'Permissions Violation for Publish to";
                    tx.send(format!("{error} \"{subject}\"'\r\n").into_bytes())
                        .ok()?;
                    continue;
                }
                published(state, id, subject, reply, payload);
            }
            _ => {}
        }
    }
}

fn published(
    state: &Shared,
    connection: u64,
    subject: String,
    reply: Option<String>,
    payload: Vec<u8>,
) {
    if subject == "router.greet" {
        let routers = lock(state).behaviour.routers.clone();
        let reply = reply.as_deref().unwrap_or_default();
        if routers.is_empty() {
            deliver(state, reply, Some("NATS/1.0 503\r\n\r\n"), b"");
        }
        for router in routers {
            deliver(state, reply, None, router.as_bytes());
        }
    } else {
        deliver(state, &subject, None, &payload);
    }
    lock(state).log.push(Published {
        connection,
        subject,
        reply,
        payload,
    });
}

fn deliver(state: &Shared, subject: &str, header: Option<&str>, payload: &[u8]) {
    for ((_, sid), (pattern, tx)) in &lock(state).subscriptions {
        let fits = match pattern.strip_suffix('*') {
            Some(head) => subject.starts_with(head),
            None => pattern == subject,
        };
        if fits {
            let header = header.unwrap_or_default();
            let total = header.len() + payload.len();
            let mut frame = if header.is_empty() {
                format!("MSG {subject} {sid} {total}\r\n").into_bytes()
            } else {
                format!("HMSG {subject} {sid} {} {total}\r\n{header}", header.len()).into_bytes()
            };
            frame.extend_from_slice(payload);
            frame.extend_from_slice(b"\r\n");
            tx.send(frame).ok();
        }
    }
}

async fn thaw(state: &Shared) {
    while lock(state).behaviour.frozen {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
