//! Metrics for scrapers of other machines, over mutual TLS: `/metrics` and nothing else, so that nobody needs the
//! admin listener's table of routes on a network.
//!
//! A handshake goes on within its connection's own task, where it keeps nobody else waiting, and has a bound of its
//! own within the connection's. The files may be replaced at any time: the next connection is judged by the new ones.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Timeout, timeout};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::listener::{self, Bounded, Connection};
use crate::config::MetricsConfig;
use crate::metrics::Metrics;
use crate::publish::tls::{self, Followed, TlsError};

/// A scraper's own deadline is 10 s as a rule (Prometheus' `scrape_timeout`); who has shown no certificate by then
/// gives the place back.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Connections whose other end has to say who it is.
struct Secured {
    plain: Bounded,
    tls: Arc<Followed<Arc<ServerConfig>>>,
}

/// One connection: nothing passes it before its handshake is done.
enum Scraper<S> {
    Greeting(Pin<Box<Timeout<Accept<S>>>>),
    Known(Box<TlsStream<S>>),
    Refused,
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
            let plain = Bounded::new(listener);
            let tls = tls.clone();
            let metrics = super::scrape(metrics.clone());
            async move {
                // It ends only with this future.
                let _ = axum::serve(Secured { plain, tls }, metrics).await;
            }
        };
        listener::at(address, "metrics", stop, serve).await;
    })
}

// === impl Secured ===

impl Listener for Secured {
    type Io = Scraper<Connection>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Scraper<Connection>, SocketAddr) {
        let (connection, peer) = self.plain.accept().await;
        (Scraper::greet(self.tls.current(), connection), peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.plain.local_addr()
    }
}

// === impl Scraper ===

impl<S: AsyncRead + AsyncWrite + Unpin> Scraper<S> {
    fn greet(tls: Arc<ServerConfig>, connection: S) -> Self {
        let greeting = TlsAcceptor::from(tls).accept(connection);
        Self::Greeting(Box::pin(timeout(HANDSHAKE_MAX, greeting)))
    }

    /// The connection once it is known who asks.
    fn poll_known(&mut self, context: &mut Context<'_>) -> Poll<io::Result<&mut TlsStream<S>>> {
        if let Self::Greeting(greeting) = self {
            let greeted = ready!(greeting.as_mut().poll(context));
            match greeted.map_err(io::Error::from).flatten() {
                Ok(stream) => *self = Self::Known(Box::new(stream)),
                Err(error) => {
                    debug!(%error, "scraper refused");
                    *self = Self::Refused;
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(match self {
            Self::Known(stream) => Ok(stream),
            Self::Greeting(_) | Self::Refused => Err(io::ErrorKind::NotConnected.into()),
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Scraper<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = ready!(self.poll_known(context))?;
        Pin::new(stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Scraper<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = ready!(self.poll_known(context))?;
        Pin::new(stream).poll_write(context, bytes)
    }

    /// Nothing was written before the handshake was done.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Known(stream) => Pin::new(stream).poll_flush(context),
            Self::Greeting(_) | Self::Refused => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Known(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Greeting(_) | Self::Refused => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::config::KeyPair;

    /// Time is paused: it goes on by itself once nobody has anything else to do.
    #[tokio::test(start_paused = true)]
    async fn who_does_not_finish_the_handshake_is_cut_off_however_slowly_it_speaks() {
        let pem = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/self_signed.pem");
        let config = MetricsConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            identity: KeyPair {
                cert_file: pem.into(),
                key_file: pem.into(),
            },
            client_ca_file: pem.into(),
        };
        let (ours, mut theirs) = duplex(1024);
        let begun = Instant::now();
        let mut scraper = Scraper::greet(tls::server(&config).unwrap(), ours);
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
            let error = scraper.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert_eq!(begun.elapsed(), HANDSHAKE_MAX);
            let error = scraper.write_u8(0).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotConnected);
            scraper.shutdown().await.unwrap();
            drop(scraper);
        };
        tokio::join!(talk, cut);
    }
}
