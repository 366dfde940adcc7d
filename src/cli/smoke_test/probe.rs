//! One look through a router: does it lead to our listener, does it say that it leads nowhere, or something else?
//!
//! Each look is a connection of its own and bounded. How often to look is the caller's affair.

use std::io::ErrorKind;
use std::time::Duration;

use http::header::HOST;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::causes::chain;
use crate::config::TlsConfig;
use crate::publish::tls::{self, TlsError};
use crate::quote::clipped;

/// Longer than gorouter takes to try three backends that refuse; a backend that swallows packets takes it 5 s each.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// The listener's word is 32 bytes; a router's own pages are some kilobytes, of which nothing is needed.
const ANSWER_MAX: usize = 256;
/// Where gorouter says why it answers itself.
const ROUTER_ERROR: &str = "x-cf-routererror";

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Our listener's word.
    Ours,
    /// The router says that it knows no such route.
    NoRoute(String),
    /// A TCP connection was taken and closed again: by a load balancer before the router, or by a router whose
    /// backends are away.
    Closed,
    /// gorouter knows the route, but reaches nothing behind it.
    Unserved(String),
    /// Anything else; it proves nothing.
    Other(String),
}

/// A way through gorouter.
pub(super) struct HttpProbe {
    client: reqwest::Client,
    url: String,
    host: String,
    word: String,
}

/// A way through tcp-router.
pub(super) struct TcpProbe {
    /// `host:port`.
    pub(super) address: String,
    pub(super) word: String,
}

// === impl Seen ===

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ours => f.write_str("our listener answers"),
            Self::NoRoute(told) | Self::Unserved(told) | Self::Other(told) => f.write_str(told),
            Self::Closed => f.write_str("the connection is taken and closed without an answer"),
        }
    }
}

// === impl HttpProbe ===

impl HttpProbe {
    /// `router` is `host:port`; the host itself, at port 80, where there is none.
    pub(super) fn new(router: Option<&str>, host: &str, word: &str) -> Result<Self, TlsError> {
        let client = tls::client(&TlsConfig::default())?
            .timeout(LOOK_MAX)
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| TlsError::Refused(chain(&error)))?;
        Ok(Self {
            client,
            url: format!("http://{}/", router.unwrap_or(host)),
            host: host.to_owned(),
            word: word.to_owned(),
        })
    }

    pub(super) async fn look(&self) -> Seen {
        match self.ask().await {
            Ok(seen) => seen,
            Err(error) => Seen::Other(chain(&error.without_url())),
        }
    }

    async fn ask(&self) -> reqwest::Result<Seen> {
        let request = self.client.get(&self.url).header(HOST, &self.host);
        let mut response = request.send().await?;
        let status = response.status().as_u16();
        let reason = response.headers().get(ROUTER_ERROR);
        let reason = reason.and_then(|reason| reason.to_str().ok());
        let told = match reason {
            Some(reason) => format!("status {status} (`{}`)", clipped(reason)),
            None => format!("status {status}"),
        };
        // A pool without endpoints answers 503 before gorouter forgets it, where it is told to.
        let emptied = status == 503 && reason == Some("no_endpoints");
        if status == 404 || emptied {
            return Ok(Seen::NoRoute(told));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk[..chunk.len().min(ANSWER_MAX)]);
            if body.len() >= ANSWER_MAX {
                break;
            }
        }
        Ok(match status {
            200 if body == self.word.as_bytes() => Seen::Ours,
            200 => Seen::Other("somebody else answers with status 200".to_owned()),
            502..=504 => Seen::Unserved(told),
            _ => Seen::Other(told),
        })
    }
}

// === impl TcpProbe ===

impl TcpProbe {
    pub(super) async fn look(&self) -> Seen {
        match timeout(LOOK_MAX, self.ask()).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(error)) => match error.kind() {
                ErrorKind::ConnectionRefused => Seen::NoRoute(error.to_string()),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Seen::Closed,
                _ => Seen::Other(error.to_string()),
            },
            Err(_) => Seen::Other(format!("no answer within {} s", LOOK_MAX.as_secs())),
        }
    }

    async fn ask(&self) -> std::io::Result<Seen> {
        let mut stream = TcpStream::connect(&self.address).await?;
        // Whoever waits for the client to speak is spoken to.
        stream.write_all(b"route-sync\n").await?;
        let mut line = Vec::new();
        let mut read = BufReader::new(stream).take(ANSWER_MAX as u64);
        read.read_until(b'\n', &mut line).await?;
        Ok(match line.trim_ascii_end() {
            [] => Seen::Closed,
            word if word == self.word.as_bytes() => Seen::Ours,
            _ => Seen::Other("somebody else answers".to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::echo::Echo;
    use super::*;

    /// Both probes at one address, with the listener's word or another.
    async fn looks(echo: &Echo, word: &str) -> (Seen, Seen) {
        let address = echo.address().unwrap().to_string();
        let http = HttpProbe::new(Some(&address), "app.test", word).unwrap();
        let word = word.to_owned();
        let tcp = TcpProbe { address, word };
        tokio::select! {
            never = echo.serve() => match never {},
            seen = async { tokio::join!(http.look(), tcp.look()) } => seen,
        }
    }

    #[tokio::test]
    async fn a_listener_is_told_from_somebody_elses_by_its_word() {
        let echo = Echo::listen([127, 0, 0, 1].into(), 0).await.unwrap();
        let (http, tcp) = looks(&echo, echo.word()).await;
        assert_eq!((http, tcp), (Seen::Ours, Seen::Ours));
        let (http, tcp) = looks(&echo, "0123").await;
        assert!(matches!(http, Seen::Other(_)) && matches!(tcp, Seen::Other(_)));
    }

    #[tokio::test]
    async fn only_a_refused_connection_proves_by_itself_that_there_is_no_tcp_route() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let probe = TcpProbe {
            address: listener.local_addr().unwrap().to_string(),
            word: String::new(),
        };
        let close = async { drop(listener.accept().await) };
        assert_eq!(tokio::join!(probe.look(), close).0, Seen::Closed);
        drop(listener);
        assert!(matches!(probe.look().await, Seen::NoRoute(_)));
    }

    #[tokio::test]
    async fn what_gorouter_answers_itself_is_read_by_status_and_reason() {
        use wiremock::{Mock, MockServer, ResponseTemplate, matchers};
        for (status, reason, route) in [
            (404, "unknown_route", false),
            (503, "no_endpoints", false),
            (503, "Connection Limit Reached", true),
            (502, "endpoint_failure", true),
        ] {
            let server = MockServer::start().await;
            let answer = ResponseTemplate::new(status).insert_header(ROUTER_ERROR, reason);
            Mock::given(matchers::header("host", "app.test"))
                .respond_with(answer)
                .mount(&server)
                .await;
            let address = server.address().to_string();
            let probe = HttpProbe::new(Some(&address), "app.test", "word").unwrap();
            let told = format!("status {status} (`{reason}`)");
            let expect = if route {
                Seen::Unserved(told)
            } else {
                Seen::NoRoute(told)
            };
            assert_eq!(probe.look().await, expect);
        }
    }
}
