//! Server-sent events out of bytes. Pure, bounded, and without a word about what the events mean.
//!
//! Of the format's fields only `event` and `data` are kept: the routing API counts its ids from 0 for each
//! connection and honours no last id (measured), so an id says nothing.

/// What one event may hold: 200 times what a row of the routing API takes.
const EVENT_MAX: usize = 64 * 1024;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Frame {
    /// Its kind; empty where it has none.
    pub(super) name: String,
    /// Its lines, joined.
    pub(super) data: String,
}

/// Bytes so far. Lines end as the format allows: with a line feed, a carriage return, or both.
#[derive(Debug, Default)]
pub(super) struct Frames {
    line: Vec<u8>,
    frame: Frame,
    has_data: bool,
    /// The last byte ended a line as a carriage return; a line feed that follows belongs to it.
    returned: bool,
}

/// An event that is longer than any of the routing API's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {EVENT_MAX} bytes")]
pub struct TooLong;

// === impl Frames ===

impl Frames {
    /// Takes what arrived and gives what it completes.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, TooLong> {
        let mut complete = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' if std::mem::take(&mut self.returned) => {}
                b'\n' | b'\r' => {
                    self.returned = byte == b'\r';
                    complete.extend(self.end_line());
                }
                _ => {
                    self.returned = false;
                    self.line.push(byte);
                    if self.line.len() + self.frame.data.len() > EVENT_MAX {
                        return Err(TooLong);
                    }
                }
            }
        }
        Ok(complete)
    }

    fn end_line(&mut self) -> Option<Frame> {
        if self.line.is_empty() {
            // An event without data is none, as the format has it.
            let complete = std::mem::take(&mut self.has_data);
            let frame = std::mem::take(&mut self.frame);
            return complete.then_some(frame);
        }
        let line = String::from_utf8_lossy(&self.line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.frame.name),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.frame.data.push('\n');
                }
                self.frame.data.push_str(value);
            }
            // Comments, ids, and waits that a server proposes: ours are our own.
            _ => {}
        }
        self.line.clear();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(name: &str, data: &str) -> Frame {
        Frame {
            name: name.to_owned(),
            data: data.to_owned(),
        }
    }

    #[test]
    fn events_are_read_however_their_bytes_are_cut_and_their_lines_end() {
        let texts = [
            "id: 0\nevent: Upsert\ndata: {\"a\":1}\n\nid: 1\nevent: Delete\ndata: x\ndata:y\n\n",
            "id: 0\r\nevent: Upsert\r\ndata: {\"a\":1}\r\n\r\nevent: Delete\r\ndata: x\r\ndata: y\r\n\r\n",
            "event: Upsert\rdata: {\"a\":1}\r\revent: Delete\rdata: x\rdata: y\r\r",
            ": hello\nretry: 1\n\nevent:Upsert\ndata:{\"a\":1}\n\nevent: Delete\ndata: x\ndata: y\n\n",
        ];
        for text in texts {
            for size in 1..=text.len() {
                let mut frames = Frames::default();
                let read = |chunk: &[u8]| frames.push(chunk).unwrap();
                let all: Vec<_> = text.as_bytes().chunks(size).flat_map(read).collect();
                let right = [frame("Upsert", "{\"a\":1}"), frame("Delete", "x\ny")];
                assert_eq!(all, right, "{size}: {text:?}");
            }
        }
    }

    #[test]
    fn what_is_no_event_is_none() {
        for text in [
            "\n\n\n",
            "event: Upsert\n\n",
            "<html>\n</html>\n\n",
            "data: never ended",
        ] {
            assert_eq!(
                Frames::default().push(text.as_bytes()),
                Ok(vec![]),
                "{text}"
            );
        }
        // A name does not outlive its event.
        let read = Frames::default().push(b"event: Upsert\n\ndata: x\n\n");
        assert_eq!(read, Ok(vec![frame("", "x")]));
    }

    #[test]
    fn neither_one_long_line_nor_many_short_ones_fill_the_memory() {
        let line = vec![b'x'; EVENT_MAX + 1];
        assert_eq!(Frames::default().push(&line), Err(TooLong));
        let lines = "data: 0123456789\n".repeat(EVENT_MAX / 8);
        assert_eq!(Frames::default().push(lines.as_bytes()), Err(TooLong));
        // One after the other they may be many.
        let mut frames = Frames::default();
        for _ in 0..EVENT_MAX {
            assert_eq!(frames.push(b"data: x\n\n").unwrap().len(), 1);
        }
    }
}
