//! Connections that cannot pile up: few at a time, each for a short while.
//!
//! hyper's own header timeout needs a timer that axum does not install, so the bound lies on the connection
//! itself. One scrape of ten thousand routes is answered in milliseconds.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// A scraper, a probe, a few people.
const CONNECTIONS_MAX: usize = 32;
/// After this a connection is cut, idle or not; Prometheus opens a new one. A prime: after a multiple of a scraper's
/// interval (10, 15, 30, 60 s) it would be cut just when it is used.
const CONNECTION_LIFE_MAX: Duration = Duration::from_secs(127);
/// Running out of file descriptors is answered by waiting, not by a hot loop.
const ACCEPT_RETRY: Duration = Duration::from_millis(500);
/// How long to wait before an address that was taken is tried again.
const BIND_RETRY: Duration = Duration::from_secs(30);

pub(super) struct Bounded {
    listener: TcpListener,
    places: Places,
}

/// As many as there may be connections.
pub(super) struct Places(Arc<Semaphore>);

/// One connection with its end.
pub(super) struct Connection<S> {
    stream: S,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Serves at an address, once it is free, until asked to stop; `listener` is what the log calls it.
pub(super) async fn at<F: Future<Output = ()>>(
    address: SocketAddr,
    listener: &'static str,
    stop: CancellationToken,
    serve: impl Fn(TcpListener) -> F,
) {
    let served = async {
        let mut warned = false;
        loop {
            match TcpListener::bind(address).await {
                Ok(bound) => {
                    let address = bound.local_addr().unwrap_or(address);
                    info!(listener, %address, "listening");
                    serve(bound).await;
                }
                Err(error) if !warned => {
                    warned = true;
                    warn!(listener, %address, %error, "address not available, everything else goes on");
                }
                Err(_) => {}
            }
            tokio::time::sleep(BIND_RETRY).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = served => {}
    }
}

impl Connected<IncomingStream<'_, Bounded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// The next caller, whoever it is.
pub(super) async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
}

impl Places {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(CONNECTIONS_MAX)))
    }

    /// Once one is free.
    pub(super) async fn take(&self) -> OwnedSemaphorePermit {
        let place = self.0.clone().acquire_owned().await;
        place.expect("the semaphore must stay open")
    }
}

impl Bounded {
    pub(super) fn new(listener: TcpListener) -> Self {
        let places = Places::new();
        Self { listener, places }
    }
}

impl Listener for Bounded {
    type Io = Connection<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection<TcpStream>, SocketAddr) {
        let place = self.places.take().await;
        let (stream, peer) = accept(&self.listener).await;
        (Connection::new(stream, place), peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl<S> Connection<S> {
    /// Its life begins now.
    pub(super) fn new(stream: S, place: OwnedSemaphorePermit) -> Self {
        let end = Box::pin(tokio::time::sleep(CONNECTION_LIFE_MAX));
        Self {
            stream,
            end,
            _place: place,
        }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
