//! What a node port leads to: small servers on the nodes' addresses, played by the test, because an apiserver
//! alone runs no kube-proxy.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

/// A node port on the addresses of the first `nodes` nodes.
pub fn node_addresses(nodes: u8, port: u16) -> Vec<SocketAddr> {
    (1..=nodes)
        .map(|node| SocketAddr::from(([10, 0, 0, node], port)))
        .collect()
}

/// Answers every HTTP request with a text of its own.
pub struct Web {
    _tasks: JoinSet<()>,
}

/// Greets every TCP connection with one line, then returns what it is sent.
pub struct Echo {
    _tasks: JoinSet<()>,
}

impl Web {
    /// Listens on every address; `text` is the body of each answer.
    pub async fn start(addresses: &[SocketAddr], text: &str) -> Result<Self> {
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
            text.len()
        );
        let tasks = serve(addresses, move |mut stream| {
            let answer = answer.clone();
            async move {
                let mut request = [0; 4096];
                // One read is enough: the routers send a small request's head at once.
                if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            }
        })
        .await?;
        Ok(Self { _tasks: tasks })
    }
}

impl Echo {
    /// Listens on every address; `line` greets each connection.
    pub async fn start(addresses: &[SocketAddr], line: &str) -> Result<Self> {
        let line = format!("{line}\n");
        let tasks = serve(addresses, move |mut stream| {
            let line = line.clone();
            async move {
                if stream.write_all(line.as_bytes()).await.is_ok() {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                }
            }
        })
        .await?;
        Ok(Self { _tasks: tasks })
    }
}

async fn serve<F, T>(addresses: &[SocketAddr], answer: F) -> Result<JoinSet<()>>
where
    F: Fn(tokio::net::TcpStream) -> T + Clone + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for address in addresses {
        // A test before may have listened there, and its last task not be over yet.
        let listener = sandbox::listen::bind(*address).await;
        let listener = listener.with_context(|| format!("no listener on {address}"))?;
        let answer = answer.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer(stream));
                while connections.try_join_next().is_some() {}
            }
        });
    }
    Ok(tasks)
}
