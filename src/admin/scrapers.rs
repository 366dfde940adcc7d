//! Metrics for scrapers of other machines, over mutual TLS: `/metrics` and nothing else, so that nobody needs the
//! admin listener's table of routes on a network.
//!
//! Who has not shown yet who it is waits apart from those who have: however many say nothing, they take no connection
//! from a scraper, and cut only each other off. The files may be replaced at any time: the next connection is judged
//! by the new ones.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::listener::{self, Connection, Places};
use crate::config::MetricsConfig;
use crate::metrics::Metrics;
use crate::publish::tls::{self, Followed, TlsError};

/// A scraper's own deadline is 10 s as a rule (Prometheus' `scrape_timeout`): whoever has shown no certificate by then
/// has given up.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// So many handshakes at a time; the oldest ends when one more begins. One of 50 ms is done before its turn comes
/// as long as fewer than 1,280 callers come in a second.
const GREETINGS_MAX: usize = 64;

/// Connections whose other end has said who it is.
struct Secured {
    listener: TcpListener,
    tls: Arc<Followed<Arc<ServerConfig>>>,
    greetings: Greetings<TcpStream>,
    places: Places,
}

/// Handshakes that go on; with it they end.
struct Greetings<S> {
    /// `None` of who is refused.
    tasks: JoinSet<Option<(TlsStream<S>, SocketAddr)>>,
    oldest_first: VecDeque<AbortHandle>,
}

/// Serves until asked to stop.
///
/// # Errors
/// Where a file cannot be used.
pub fn scrapers(
    config: MetricsConfig,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + 'static, TlsError> {
    let (address, of_files) = (config.listen, config.clone());
    let tls = Followed::new(&config.files(), move || tls::server(&of_files))?;
    let tls = Arc::new(tls);
    Ok(async move {
        let serve = |listener| {
            let secured = Secured {
                listener,
                tls: tls.clone(),
                greetings: Greetings::none(),
                places: Places::new(),
            };
            let metrics = super::scrape(metrics.clone());
            async move {
                // It ends only with this future.
                let _ = axum::serve(secured, metrics).await;
            }
        };
        listener::at(address, "metrics", stop, serve).await;
    })
}

/// Who asks, once it has shown that it may.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    tls: Arc<ServerConfig>,
    stream: S,
) -> io::Result<TlsStream<S>> {
    timeout(HANDSHAKE_MAX, TlsAcceptor::from(tls).accept(stream)).await?
}

// === impl Secured ===

impl Listener for Secured {
    type Io = Connection<TlsStream<TcpStream>>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        let place = self.places.take().await;
        loop {
            tokio::select! {
                // Whoever is known goes before whoever comes.
                biased;
                Some((stream, peer)) = self.greetings.next() => {
                    return (Connection::new(stream, place), peer);
                }
                (stream, peer) = listener::accept(&self.listener) => {
                    self.greetings.add(self.tls.current(), stream, peer);
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

// === impl Greetings ===

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Greetings<S> {
    fn none() -> Self {
        Self {
            tasks: JoinSet::new(),
            oldest_first: VecDeque::new(),
        }
    }

    fn add(&mut self, tls: Arc<ServerConfig>, stream: S, peer: SocketAddr) {
        self.oldest_first.retain(|greeting| !greeting.is_finished());
        if self.oldest_first.len() == GREETINGS_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            debug!("the oldest handshake is cut off for one more");
            oldest.abort();
        }
        let greeting = async move {
            let greeted = greet(tls, stream).await;
            let refused = |error: &io::Error| debug!(%peer, %error, "scraper refused");
            Some((greeted.inspect_err(refused).ok()?, peer))
        };
        self.oldest_first.push_back(self.tasks.spawn(greeting));
    }

    /// The next who is known; `None` when nobody is left who could be.
    async fn next(&mut self) -> Option<(TlsStream<S>, SocketAddr)> {
        loop {
            // One that was cut off is an error.
            if let Ok(Some(known)) = self.tasks.join_next().await? {
                return Some(known);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::config::KeyPair;

    fn tls() -> Arc<ServerConfig> {
        let pem = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/self_signed.pem");
        let config = MetricsConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            identity: KeyPair {
                cert_file: pem.into(),
                key_file: pem.into(),
            },
            client_ca_file: pem.into(),
        };
        tls::server(&config).unwrap()
    }

    /// Time is paused: it goes on by itself once nobody has anything else to do.
    #[tokio::test(start_paused = true)]
    async fn who_does_not_finish_the_handshake_is_cut_off_however_slowly_it_speaks() {
        let (ours, mut theirs) = duplex(1024);
        let begun = Instant::now();
        let talk = async move {
            // The head of a record that ends long after its time.
            for byte in [0x16, 0x03, 0x01, 0x40, 0x00].into_iter().chain([0; 1000]) {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if theirs.write_all(&[byte]).await.is_err() {
                    return;
                }
            }
        };
        let cut = async {
            let error = greet(tls(), ours).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert_eq!(begun.elapsed(), HANDSHAKE_MAX);
        };
        tokio::join!(talk, cut);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_comes_when_all_places_are_taken_gets_that_of_the_oldest_at_once() {
        let mut greetings = Greetings::none();
        let begun = Instant::now();
        let mut silent = VecDeque::new();
        for _ in 0..=GREETINGS_MAX {
            let (ours, theirs) = duplex(1024);
            greetings.add(tls(), ours, ([127, 0, 0, 1], 0).into());
            silent.push_back(theirs);
        }
        let (oldest, next) = (silent.pop_front().unwrap(), silent.pop_front().unwrap());
        let ended = async |mut end: tokio::io::DuplexStream| {
            assert_eq!(end.read(&mut [0]).await.unwrap(), 0);
            begun.elapsed()
        };
        let all = async { assert!(greetings.next().await.is_none()) };
        let (of_oldest, of_next, ()) = tokio::join!(ended(oldest), ended(next), all);
        assert_eq!(of_oldest, Duration::ZERO);
        assert_eq!(of_next, HANDSHAKE_MAX);
    }
}
