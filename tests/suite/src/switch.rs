//! An address behind which another server may begin to answer, as a name that is moved or an exchanged machine.
//!
//! It forwards bytes and knows nothing of what they say. What was open ends when it is switched.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Ends with its connections when it is dropped.
pub struct Switch {
    address: SocketAddr,
    target: watch::Sender<SocketAddr>,
    listening: JoinHandle<()>,
}

// === impl Switch ===

impl Switch {
    /// Leads to the server of a URL at first.
    pub async fn to(url: &str) -> Result<Self> {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), url).await
    }

    /// The same, at an address of the caller's choice.
    pub async fn at(address: SocketAddr, url: &str) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (target, targets) = watch::channel(server(url)?);
        let listening = tokio::spawn(async move {
            // A connection's own failure is seen by whoever uses it.
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, targets.clone()));
            }
        });
        Ok(Self {
            address,
            target,
            listening,
        })
    }

    /// From now on another server answers.
    pub fn over(&self, url: &str) -> Result<()> {
        self.target.send_replace(server(url)?);
        Ok(())
    }

    /// The URL with this address instead of its own.
    pub fn url(&self, of: &str) -> Result<String> {
        Ok(of.replace(&server(of)?.to_string(), &self.address.to_string()))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn forward(mut client: TcpStream, mut targets: watch::Receiver<SocketAddr>) {
    let target = *targets.borrow_and_update();
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        _ = targets.changed() => {}
    }
}

fn server(url: &str) -> Result<SocketAddr> {
    let (_, rest) = url.split_once("://").context("a URL must have a scheme")?;
    let address = rest.trim_end_matches('/').parse();
    address.with_context(|| format!("`{url}` must hold an address and a port"))
}
