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
/// After this a connection is cut, idle or not; Prometheus opens a new one.
const CONNECTION_LIFE_MAX: Duration = Duration::from_mins(2);
/// Running out of file descriptors is answered by waiting, not by a hot loop.
const ACCEPT_RETRY: Duration = Duration::from_millis(500);
/// How long to wait before an address that was taken is tried again.
const BIND_RETRY: Duration = Duration::from_secs(30);

pub(super) struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

/// One connection with its end.
pub(super) struct Connection {
    stream: TcpStream,
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

impl Bounded {
    pub(super) fn new(listener: TcpListener) -> Self {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { listener, places }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = self.places.clone().acquire_owned().await;
        let place = place.expect("the semaphore must stay open");
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let end = Box::pin(tokio::time::sleep(CONNECTION_LIFE_MAX));
                    return (
                        Connection {
                            stream,
                            end,
                            _place: place,
                        },
                        peer,
                    );
                }
                Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connection {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
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
