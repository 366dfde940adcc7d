//! What the routes of a smoke test lead to: a listener that answers whoever comes with one word that nobody else knows.
//!
//! One port serves both routers. A line that is the beginning of an HTTP request gets an HTTP answer, any other line
//! the word alone, so that TCP is tried without HTTP.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

/// Visitors at a time: our own probes, the routers' and whoever else scans the port. More wait at the door.
const VISITORS_MAX: usize = 64;
/// A visitor that says nothing for so long is sent away.
const VISIT_MAX: Duration = Duration::from_secs(5);
/// Bytes read of a visitor: gorouter's headers are some hundreds.
const HEAD_MAX: u64 = 16 * 1024;
/// After a connection could not be taken, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listener.
pub(super) struct Echo {
    listener: TcpListener,
    word: String,
}

// === impl Echo ===

impl Echo {
    /// Listens; port 0 takes any.
    pub(super) async fn listen(ip: IpAddr, port: u16) -> std::io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(SocketAddr::new(ip, port)).await?,
            word: format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..)),
        })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// What it answers.
    pub(super) fn word(&self) -> &str {
        &self.word
    }

    /// Answers until it is dropped, and everyone who is still being answered with it.
    pub(super) async fn serve(&self) -> std::convert::Infallible {
        let mut visits: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(()) = visits.next(), if !visits.is_empty() => {}
                visitor = self.listener.accept(), if visits.len() < VISITORS_MAX => match visitor {
                    Ok((stream, _)) => visits.push(self.visit(stream).boxed()),
                    Err(_) => sleep(ACCEPT_PAUSE).await,
                },
            }
        }
    }

    async fn visit(&self, stream: TcpStream) {
        // Whoever breaks off has to come again.
        let _ = timeout(VISIT_MAX, self.answer(stream)).await;
    }

    async fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let (read, mut write) = stream.split();
        let mut read = BufReader::new(read.take(HEAD_MAX));
        let mut line = String::new();
        read.read_line(&mut line).await?;
        if !line.contains(" HTTP/1.") {
            write
                .write_all(format!("{}\n", self.word).as_bytes())
                .await?;
            return write.shutdown().await;
        }
        // The head to its end: closing over what was not read resets the connection, and the answer is lost with it.
        while read.read_line(&mut line).await? > 2 {}
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{}",
            self.word.len(),
            self.word
        );
        write.write_all(answer.as_bytes()).await?;
        write.shutdown().await
    }
}
