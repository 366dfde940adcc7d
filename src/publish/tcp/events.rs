//! The routing API's own word on what happens to its rows, for as long as it can be had.
//!
//! A refinement of the periodic list and never a replacement: the stream has neither heartbeat nor replay
//! (measured), so each new connection calls for a list, and whatever is lost is found by the next one. What
//! arrives is handed on as it is; what it means is judged where the table is known.
//!
//! The lane polls this itself and holds it nowhere else: no task, and no queue of ours. A lane that is slow lets
//! the connection fill, and the API ends it once 1024 events wait (measured), which is one more reason to list.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use tokio::time::{Instant, sleep, timeout};

use super::client::{ApiError, EventBytes, RoutingApi};
use super::{Pace, wire};
use crate::plan::TcpRow;
use crate::retry::Backoff;

mod frames;

pub use frames::TooLong;

use frames::{Frame, Frames};

/// The answer's head must have come by then; the API sends it at once (measured).
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The first wait after a failure; the longest is the lane's pace.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// What is heard of the stream.
#[derive(Debug)]
pub(super) enum Heard {
    /// It stands from now on; what happened before is not told.
    Open,
    /// Some of what happened, in its order.
    Events(Vec<Event>),
    /// It is over, or could not be had; the next attempt follows by itself.
    Lost(Loss),
}

/// One thing that happened to a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was created or refreshed; with the id of whoever created it.
    Upsert(TcpRow, Option<String>),
    /// It was deleted, or its life ended.
    Delete(TcpRow),
    /// An event that cannot be read: something happened.
    Unreadable,
}

/// Why the stream ended.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Loss {
    /// It was not granted.
    #[error("{0}")]
    Refused(#[source] ApiError),
    /// No answer.
    #[error("no answer within {} s", HEAD_TIMEOUT.as_secs())]
    NoAnswer,
    /// Somebody ended it.
    #[error("the stream was ended")]
    Ended,
    /// Something broke it.
    #[error("the stream broke: {0}")]
    Broken(String),
    /// Not one event, though every row that lives is refreshed or lapses within this time.
    #[error("nothing was heard for {} s", .0.as_secs())]
    Silent(Duration),
}

/// Reads events out of the bytes of the stream, however they are cut.
#[derive(Debug, Default)]
pub struct Reader(Frames);

struct Listener {
    api: Arc<dyn RoutingApi>,
    pace: Pace,
    backoff: Backoff,
    wait: Duration,
    connection: Option<Connection>,
}

struct Connection {
    bytes: EventBytes,
    reader: Reader,
    since: Instant,
}

/// The stream over all its connections; it never ends, and does nothing unless polled.
pub(super) fn listen(api: Arc<dyn RoutingApi>, pace: Pace) -> BoxStream<'static, Heard> {
    let listener = Listener {
        api,
        pace,
        backoff: Backoff::new(RETRY_FIRST.min(pace.events_retry), pace.events_retry),
        wait: Duration::ZERO,
        connection: None,
    };
    stream::unfold(listener, async |mut listener| {
        let heard = match listener.next().await {
            Ok(heard) => heard,
            Err(loss) => Heard::Lost(listener.lose(loss)),
        };
        Some((heard, listener))
    })
    .boxed()
}

// === impl Listener ===

impl Listener {
    async fn next(&mut self) -> Result<Heard, Loss> {
        let Some(connection) = &mut self.connection else {
            sleep(self.wait).await;
            let bytes = timeout(HEAD_TIMEOUT, self.api.events()).await;
            let bytes = bytes.map_err(|_| Loss::NoAnswer)?.map_err(Loss::Refused)?;
            self.connection = Some(Connection {
                bytes,
                reader: Reader::default(),
                since: Instant::now(),
            });
            return Ok(Heard::Open);
        };
        connection.events(self.pace.events_silence).await
    }

    /// Waits longer each time, unless the stream stood for longer than the longest wait: one that is cut as soon
    /// as it stands costs a list each time.
    fn lose(&mut self, loss: Loss) -> Loss {
        let stood = self.connection.take().map(|old| old.since.elapsed());
        if stood.is_some_and(|stood| stood >= self.pace.events_retry) {
            self.backoff.succeed();
        }
        self.wait = self.backoff.fail();
        loss
    }
}

impl Connection {
    async fn events(&mut self, silence: Duration) -> Result<Heard, Loss> {
        loop {
            let chunk = timeout(silence, self.bytes.next()).await;
            let chunk = chunk.map_err(|_| Loss::Silent(silence))?;
            let chunk = chunk.ok_or(Loss::Ended)?.map_err(Loss::Broken)?;
            let events = self.reader.push(&chunk);
            let events = events.map_err(|error| Loss::Broken(error.to_string()))?;
            if !events.is_empty() {
                return Ok(Heard::Events(events));
            }
        }
    }
}

// === impl Reader ===

impl Reader {
    /// Takes what arrived and gives what it completes.
    ///
    /// # Errors
    /// When an event is longer than any of the routing API's; the stream is of no more use then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let frames = self.0.push(bytes)?;
        Ok(frames.into_iter().filter_map(event).collect())
    }
}

fn event(frame: Frame) -> Option<Event> {
    let row = || wire::heard(&frame.data);
    match frame.name.as_str() {
        "Upsert" => Some(row().map_or(Event::Unreadable, |(row, stamp)| Event::Upsert(row, stamp))),
        "Delete" => Some(row().map_or(Event::Unreadable, |(row, _)| Event::Delete(row))),
        // What later versions may tell besides.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::RouterPort;

    fn frame(name: &str, data: &str) -> Option<Event> {
        event(Frame {
            name: name.to_owned(),
            data: data.to_owned(),
        })
    }

    #[test]
    fn each_kind_of_event_is_known_and_what_cannot_be_read_is_told() {
        // As the real one of 2024-10 writes it.
        let data = r#"{"router_group_guid":"g","backend_port":30001,"backend_tls_port":-1,
            "backend_ip":"10.0.0.1","instance_id":"rs-1","port":1024,
            "modification_tag":{"guid":"x","index":3},"ttl":120,"isolation_segment":""}"#;
        let row = TcpRow {
            port: RouterPort::new(1024).unwrap(),
            ip: "10.0.0.1".to_owned(),
            backend_port: 30001,
            tls_port: -1,
            sni: None,
            group: "g".to_owned(),
        };
        let stamp = Some("rs-1".to_owned());
        assert_eq!(
            frame("Upsert", data),
            Some(Event::Upsert(row.clone(), stamp))
        );
        assert_eq!(frame("Delete", data), Some(Event::Delete(row)));
        for data in [
            "",
            "null",
            "[]",
            "{}",
            "<html>",
            r#"{"port":70000}"#,
            r#"{"port":0}"#,
        ] {
            assert_eq!(frame("Upsert", data), Some(Event::Unreadable), "{data}");
            assert_eq!(frame("Delete", data), Some(Event::Unreadable), "{data}");
        }
        assert_eq!(frame("Ping", data), None);
        assert_eq!(frame("", data), None);
    }
}
