//! Listening on loopback: one accept loop per [`Server`], plain or TLS, HTTP/1.1 on top.
//!
//! Owns sockets, the tasks of their connections and the faults that every HTTP program here can
//! be told to show. It refuses to know what is served. A stopped server leaves no task behind and
//! frees its address before `stop` returns, so that the same address can be listened on again.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// Kernel queue of connections not yet accepted; the Go programs use the kernel's maximum.
const BACKLOG: u32 = 1024;
/// A client that does not finish its TLS handshake holds a task no longer than this.
const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A port given up by a process that is just going may need a moment (restart on one address).
const BIND_PATIENCE: Duration = Duration::from_secs(2);

/// A byte stream, plain or TLS.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}
pub type Io = Box<dyn Duplex>;

/// The body of every answer given here; streaming ones included.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What a program answers instead of doing its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// This status, body and headers.
    Status(u16, String, Vec<(String, String)>),
    /// The request is read and never answered.
    Hang,
    /// The right answer, late.
    Slow(Duration),
}

/// A listening socket and everything accepted on it.
pub struct Server {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

// === impl Failure ===

impl Failure {
    /// The answer, or `None` when the request is to be served as usual (late, perhaps).
    pub async fn answer(self) -> Option<http::Response<Body>> {
        match self {
            Self::Status(status, body, headers) => {
                let mut response = http::Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                Some(
                    response
                        .body(full(body))
                        .expect("a failure's status and headers must be valid HTTP"),
                )
            }
            Self::Hang => std::future::pending().await,
            Self::Slow(delay) => {
                tokio::time::sleep(delay).await;
                None
            }
        }
    }
}

// === impl Server ===

impl Server {
    /// Accepts until stopped; `serve` gets each accepted TCP stream in a task of its own.
    pub async fn start<H, F>(addr: SocketAddr, serve: H) -> io::Result<Self>
    where
        H: Fn(TcpStream, SocketAddr) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = bind(addr).await?;
        let addr = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(listener, stopped, serve));
        Ok(Self {
            addr,
            stop: Some(stop),
            task: Some(task),
        })
    }

    /// HTTP/1.1, over TLS when a configuration is given.
    pub async fn http<H, F>(
        addr: SocketAddr,
        tls: Option<Arc<rustls::ServerConfig>>,
        respond: H,
    ) -> io::Result<Self>
    where
        H: Fn(http::Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = http::Response<Body>> + Send + 'static,
    {
        Self::start(addr, move |stream, peer| {
            let (tls, respond) = (tls.clone(), respond.clone());
            async move {
                let Ok(io) = accept_tls(stream, tls).await else {
                    return;
                };
                let service = service_fn(move |request| {
                    let answer = respond(request, peer);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                // Go writes canonical header names; some readers compare them as text.
                let _ = hyper::server::conn::http1::Builder::new()
                    .title_case_headers(true)
                    .serve_connection(TokioIo::new(io), service)
                    .await;
            }
        })
        .await
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends the listening and every connection; the address is free when this returns.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Dropping `stop` already tells the loop; aborting also drops its connections at once.
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

async fn accept<H, F>(listener: TcpListener, mut stopped: oneshot::Receiver<()>, serve: H)
where
    H: Fn(TcpStream, SocketAddr) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = &mut stopped => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    connections.spawn(serve(stream, peer));
                }
                // Out of descriptors: give connections a moment to end instead of spinning.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// Binds with `SO_REUSEADDR`, trying again for a short while when the address is still taken.
pub async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let deadline = tokio::time::Instant::now() + BIND_PATIENCE;
    loop {
        match bind_once(addr) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Binds with `SO_REUSEADDR`, at once or not at all.
pub fn bind_once(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// The stream itself, or the stream after a TLS handshake.
pub async fn accept_tls(
    stream: TcpStream,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> io::Result<Io> {
    let Some(tls) = tls else {
        return Ok(Box::new(stream));
    };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    let stream = tokio::time::timeout(TLS_HANDSHAKE_TIMEOUT, handshake).await??;
    Ok(Box::new(stream))
}

/// A whole body.
pub fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Reads a request's body, refusing more than `limit` bytes.
pub async fn read_body(body: Incoming, limit: usize) -> io::Result<Bytes> {
    let collected = http_body_util::Limited::new(body, limit).collect().await;
    Ok(collected.map_err(io::Error::other)?.to_bytes())
}
