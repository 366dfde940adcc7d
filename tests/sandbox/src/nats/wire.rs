//! The NATS protocol's lines, for the server here and for the HTTP router's client.
//!
//! Owns framing and subject matching; knows neither connections nor subscriptions.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// nats-server's `max_payload`, 1 MiB.
pub(crate) const PAYLOAD_MAX: usize = 1024 * 1024;
/// nats-server's `max_control_line` is 4096; a CONNECT may carry more, so the reader allows more.
const LINE_MAX: usize = 32 * 1024;
/// What a peer may have sent ahead of us.
const READ_CHUNK: usize = 64 * 1024;

/// A frame: its operation in upper case, its arguments, and the payload where there is one.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) op: String,
    pub(crate) args: String,
    /// Headers (may be empty) and body.
    pub(crate) payload: Option<(Bytes, Bytes)>,
}

/// What ends a reading.
#[derive(Debug)]
pub(crate) enum ReadError {
    Closed,
    Io,
    /// The peer is told so before it is cut off.
    Protocol(&'static str),
}

/// A buffered reader of frames.
pub(crate) struct FrameReader<R> {
    reader: R,
    buffer: BytesMut,
}

// === impl FrameReader ===

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: BytesMut::with_capacity(READ_CHUNK),
        }
    }

    /// Cancel-safe: a partial frame stays in the buffer.
    pub(crate) async fn next(&mut self) -> Result<Frame, ReadError> {
        loop {
            if let Some(frame) = self.parse()? {
                return Ok(frame);
            }
            match self.reader.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(ReadError::Closed),
                Ok(_) => {}
                Err(_) => return Err(ReadError::Io),
            }
        }
    }

    fn parse(&mut self) -> Result<Option<Frame>, ReadError> {
        let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') else {
            return if self.buffer.len() > LINE_MAX {
                Err(ReadError::Protocol("maximum control line exceeded"))
            } else {
                Ok(None)
            };
        };
        let line = String::from_utf8_lossy(&self.buffer[..end]);
        let line = line.trim_end_matches('\r');
        let (op, args) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let op = op.to_ascii_uppercase();
        let args = args.trim().to_owned();
        let sizes = match op.as_str() {
            "PUB" | "MSG" => Some((0, number(&args, 0)?)),
            "HPUB" | "HMSG" => Some((number(&args, 1)?, number(&args, 0)?)),
            _ => None,
        };
        let Some((headers, total)) = sizes else {
            self.buffer.advance(end + 1);
            let payload = None;
            return Ok(Some(Frame { op, args, payload }));
        };
        if total > PAYLOAD_MAX || headers > total {
            return Err(ReadError::Protocol("Maximum Payload Violation"));
        }
        let size = end + 1 + total + 2;
        if self.buffer.len() < size {
            self.buffer.reserve(size - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(end + 1);
        let mut payload = self.buffer.split_to(total).freeze();
        self.buffer.advance(2);
        let head = payload.split_to(headers);
        let payload = Some((head, payload));
        Ok(Some(Frame { op, args, payload }))
    }
}

/// The argument counted from the end, as a size.
fn number(args: &str, from_end: usize) -> Result<usize, ReadError> {
    args.split_whitespace()
        .rev()
        .nth(from_end)
        .and_then(|size| size.parse().ok())
        .ok_or(ReadError::Protocol("Unknown Protocol Operation"))
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Closed => io::ErrorKind::UnexpectedEof.into(),
            ReadError::Io => io::ErrorKind::ConnectionReset.into(),
            ReadError::Protocol(message) => io::Error::other(message),
        }
    }
}

/// Whether a subscription's pattern takes a subject: `*` is one token, a last `>` one or more.
pub(crate) fn matches(pattern: &str, subject: &str) -> bool {
    let mut subject = subject.split('.');
    let mut pattern = pattern.split('.').peekable();
    while let Some(wanted) = pattern.next() {
        let Some(token) = subject.next() else {
            return false;
        };
        match wanted {
            ">" if pattern.peek().is_none() => return true,
            "*" => {}
            literal if literal == token => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}

/// Whether a name may be published to (`wild` false) or subscribed to (`wild` true).
pub(crate) fn is_subject(subject: &str, wild: bool) -> bool {
    !subject.is_empty()
        && subject
            .split('.')
            .all(|token| !token.is_empty() && (wild || !matches!(token, "*" | ">")))
}
