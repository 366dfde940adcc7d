//! Which server is tried next and when, and why the last one was not to be had.
//!
//! async-nats asks before each attempt and shows what became of the earlier ones; that is the only place where
//! it tells the cause. Servers are taken in turn, because its own choice ends a round at the first server that
//! refuses the login.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Auth, Event, ReconnectToServer, Server, ServerAddr, ServerError};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{BusError, Heard};
use crate::config::NatsServer;
use crate::publish::http::wire;

/// The wait before the first attempt after a loss, doubled with every round over all servers.
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// And at most; gorouter prunes after 120 s.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// More doublings than reach the maximum would overflow.
const DOUBLINGS_MAX: u32 = 10;

/// The servers in turn.
pub(super) struct Dial {
    servers: Vec<(ServerAddr, NatsServer)>,
    // std, because it is never held across an await.
    turn: Mutex<Turn>,
}

#[derive(Default)]
struct Turn {
    current: Option<usize>,
    attempts: u32,
}

/// What the client tells outside of messages.
pub(super) struct Signals {
    client_identity: bool,
    state: Mutex<SignalState>,
    changed: Notify,
}

#[derive(Default)]
struct SignalState {
    inbox: String,
    inbox_denied: bool,
    /// Subjects of ours the server does not let us publish to, and when it last said so.
    denied: BTreeMap<&'static str, Instant>,
    lame_duck: bool,
    error: Option<String>,
    failures: u32,
    server: String,
}

// === impl Dial ===

impl Dial {
    pub(super) fn new(servers: &[NatsServer]) -> Result<Arc<Self>, BusError> {
        let parse = |server: &NatsServer| {
            let host = &server.host;
            let host = if host.contains(':') && !host.starts_with('[') {
                format!("[{host}]")
            } else {
                host.clone()
            };
            // A login or a scheme in the host would be credentials or TLS by the back door; it is not repeated,
            // as it may hold a password.
            if host.contains(['@', '/']) {
                return Err(BusError::Address("<redacted>@…".to_owned()));
            }
            let text = format!("{host}:{}", server.port);
            let addr: ServerAddr = text.parse().map_err(|_| BusError::Address(text.clone()))?;
            Ok((addr, server.clone()))
        };
        let servers = servers.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        if servers.is_empty() {
            return Err(BusError::Address(String::new()));
        }
        Ok(Arc::new(Self {
            servers,
            turn: Mutex::default(),
        }))
    }

    pub(super) fn servers(&self) -> Vec<ServerAddr> {
        self.servers.iter().map(|(addr, _)| addr.clone()).collect()
    }

    /// The login of the server being tried.
    pub(super) fn auth(&self) -> Auth {
        let current = lock(&self.turn).current.unwrap_or_default();
        let mut auth = Auth::new();
        if let Some((user, password)) = &self.servers[current].1.login {
            auth.username = Some(user.clone());
            auth.password = Some(password.expose().to_owned());
        }
        auth
    }

    /// The next server, after reading from the pool how the last attempt went.
    pub(super) fn next(&self, pool: &[Server], signals: &Signals) -> ReconnectToServer {
        let mut turn = lock(&self.turn);
        let last = turn.current.and_then(|current| {
            let (addr, _) = &self.servers[current];
            pool.iter().find(|server| server.addr == *addr)
        });
        match last {
            Some(server) if server.failed_attempts > 0 => {
                turn.attempts = turn.attempts.saturating_add(1);
                let cause = server.last_error.clone().unwrap_or_default();
                signals.failed(&server.addr, &cause);
            }
            _ => turn.attempts = 0,
        }
        let started = turn.current.is_some();
        let next = match turn.current {
            Some(current) => (current + 1) % self.servers.len(),
            // Every instance starting at the first would put them all on one server.
            None => fastrand::usize(..self.servers.len()),
        };
        turn.current = Some(next);
        let addr = self.servers[next].0.clone();
        signals.dials(&addr);
        let rounds = turn.attempts / u32::try_from(self.servers.len()).unwrap_or(1);
        let delay = if started {
            wait(rounds)
        } else {
            Duration::ZERO
        };
        ReconnectToServer {
            addr,
            delay: Some(delay),
        }
    }
}

/// Half to one and a half times the bound, so that the clients of one server do not come back together.
fn wait(rounds: u32) -> Duration {
    let bound = (WAIT_FIRST * (1 << rounds.min(DOUBLINGS_MAX))).min(WAIT_MAX);
    bound.mul_f64(0.5 + fastrand::f64()).min(WAIT_MAX)
}

// === impl Signals ===

impl Signals {
    pub(super) fn new(client_identity: bool) -> Self {
        Self {
            client_identity,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    pub(super) fn watch_inbox(&self, inbox: &str) {
        inbox.clone_into(&mut lock(&self.state).inbox);
    }

    pub(super) fn inbox_denied(&self) -> bool {
        lock(&self.state).inbox_denied
    }

    /// The first of our subjects that was denied within the time given.
    pub(super) fn denied(&self, within: Duration) -> Option<&'static str> {
        let state = lock(&self.state);
        let mut denied = state.denied.iter();
        denied
            .find(|(_, at)| at.elapsed() < within)
            .map(|(subject, _)| *subject)
    }

    pub(super) fn error(&self) -> Option<String> {
        lock(&self.state).error.clone()
    }

    /// A connection was seen to stand. The event that says so may come late or never, and until then what went
    /// wrong before it would be taken for what goes wrong now.
    pub(super) fn stands(&self) {
        let mut state = lock(&self.state);
        state.error = None;
        state.failures = 0;
    }

    pub(super) fn failures(&self) -> u32 {
        lock(&self.state).failures
    }

    pub(super) fn server(&self) -> String {
        lock(&self.state).server.clone()
    }

    pub(super) async fn changed(&self) -> Heard {
        self.changed.notified().await;
        if std::mem::take(&mut lock(&self.state).lame_duck) {
            Heard::LameDuck
        } else {
            Heard::Changed
        }
    }

    /// What the client tells by the way. It may drop events, so nothing but the wish to look depends on them.
    pub(super) fn take(&self, event: Event) {
        {
            let mut state = lock(&self.state);
            match event {
                Event::Connected => {
                    state.error = None;
                    state.failures = 0;
                    // Another server may have other permissions.
                    state.inbox_denied = false;
                    state.denied.clear();
                }
                Event::LameDuckMode => state.lame_duck = true,
                Event::ServerError(error) => state.refused(&error),
                _ => {}
            }
        }
        self.changed.notify_one();
    }

    fn dials(&self, addr: &ServerAddr) {
        lock(&self.state).server = format!("{}:{}", addr.host(), addr.port());
    }

    fn failed(&self, addr: &ServerAddr, cause: &str) {
        let host = format!("{}:{}", addr.host(), addr.port());
        let message = explain(&host, cause, self.client_identity);
        let mut state = lock(&self.state);
        state.failures = state.failures.saturating_add(1);
        state.error = Some(message);
        drop(state);
        self.changed.notify_one();
    }
}

impl SignalState {
    fn refused(&mut self, error: &ServerError) {
        let text = error.to_string();
        let lower = text.to_lowercase();
        let denied = lower.contains("permissions violation");
        // In nats-server's words: `Permissions Violation for Publish to "router.register"`.
        let ours = [wire::REGISTER, wire::UNREGISTER].into_iter();
        let subject = ours
            .filter(|_| denied && lower.contains("for publish"))
            .find(|subject| lower.contains(&format!("\"{subject}\"")));
        if let Some(subject) = subject {
            self.denied.insert(subject, Instant::now());
        } else if denied && (lower.contains("_inbox") || text.contains(&self.inbox)) {
            self.inbox_denied = true;
        } else {
            self.error = Some(text);
        }
    }
}

/// The cause in an operator's words. Certificate trouble reaches us as text alone: the client reports it as an
/// input/output error (measured, async-nats 0.51).
fn explain(server: &str, cause: &str, client_identity: bool) -> String {
    let lower = cause.to_lowercase();
    let has = |text: &str| lower.contains(text);
    let mut message = format!("cannot connect to NATS at `{server}`: ");
    let (what, hint) = if has("authorization violation") || has("authentication") {
        (
            "it refuses the user or password (authorization violation)",
            "compare `nats` user and password with those of the NATS deployment",
        )
    } else if has("unknownissuer") {
        (
            "its certificate comes from an unknown authority",
            "set `nats.tls.ca_file` to the CA of the NATS deployment",
        )
    } else if has("certificaterequired") || has("certificate required") {
        (
            "it wants a client certificate",
            "set `nats.tls.cert_file` and `nats.tls.key_file`",
        )
    } else if has("not valid for name") || has("notvalidforname") {
        (
            "its certificate does not hold the name that was dialled",
            "set `nats.tls.server_name`, in Cloud Foundry `nats.service.cf.internal`",
        )
    } else if has("expired") {
        ("a certificate has expired", "renew it")
    } else if has("bad certificate") || has("badcertificate") || has("unknownca") {
        (
            "it does not accept our client certificate",
            "take a certificate from the authority the NATS deployment trusts",
        )
    } else if client_identity && has("expected info") {
        ("it closed the connection at once", "look at its log")
    } else {
        message.push_str(cause);
        return message;
    };
    let _ = write!(message, "{what}; hint: {hint}");
    message
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_in_an_operators_words() {
        let check = |cause: &str, expect: &str| {
            let message = explain("nats.test:4222", cause, true);
            assert!(message.contains(expect), "{message}");
        };
        check("authorization violation: nats: ..", "user or password");
        check(
            "IO error: invalid peer certificate: UnknownIssuer",
            "unknown authority",
        );
        check(
            "IO error: received fatal alert: CertificateRequired",
            "wants a client certificate",
        );
        check(
            "IO error: invalid peer certificate: certificate not valid for name \"10.0.0.1\"",
            "nats.tls.server_name",
        );
        check(
            "IO error: invalid peer certificate: certificate expired",
            "has expired",
        );
        check("IO error: connection refused", "connection refused");
    }

    #[test]
    fn a_connection_that_stands_has_no_failure_from_before_it() {
        let signals = Signals::new(false);
        let addr: ServerAddr = "nats.test:4222".parse().unwrap();
        signals.failed(&addr, "IO error: connection refused");
        assert!(signals.error().is_some());
        signals.stands();
        assert_eq!((signals.error(), signals.failures()), (None, 0));
    }

    #[test]
    fn waits_grow_to_the_maximum_and_never_vanish() {
        for rounds in 0..40 {
            let wait = wait(rounds);
            assert!(wait >= WAIT_FIRST / 2 && wait <= WAIT_MAX, "{wait:?}");
        }
        assert!(wait(40) >= WAIT_MAX / 2);
    }

    #[test]
    fn a_login_in_the_address_is_refused_and_not_repeated() {
        let server = NatsServer {
            host: "nats:hunter2@nats.test".to_owned(),
            port: 4222,
            login: None,
        };
        let error = Dial::new(&[server]).err().unwrap().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
