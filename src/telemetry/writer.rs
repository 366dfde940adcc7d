//! Lines leave through a thread of their own, so that a blocked pipe blocks nobody else.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// A cold start of several thousand Services logs one line each; 8,192 lines of 300 bytes are 2.4 MB.
const LINES_MAX: usize = 8192;
/// How long the end of the process waits for the last lines; a blocked pipe must not hold it.
const END_WAIT: Duration = Duration::from_secs(1);

/// How many lines were dropped because nobody read them.
#[derive(Clone, Debug, Default)]
pub struct Dropped(Arc<AtomicU64>);

/// Writes what is left when dropped.
pub struct Guard {
    queue: SyncSender<Message>,
    ended: Receiver<()>,
    dropped: Dropped,
}

/// Takes whole lines.
pub(super) struct Lines {
    queue: SyncSender<Message>,
    dropped: Dropped,
}

/// One line under construction; sent when dropped.
pub(super) struct LineWriter<'a> {
    lines: &'a Lines,
    bytes: Vec<u8>,
}

enum Message {
    Line(Vec<u8>),
    End,
}

/// Starts the thread.
pub(super) fn start(output: impl Write + Send + 'static) -> (Lines, Guard) {
    let (queue, lines) = sync_channel(LINES_MAX);
    let (end, ended) = channel();
    let dropped = Dropped::default();
    thread::spawn(move || {
        write_all(output, &lines);
        // Nobody waits any more when the process ends otherwise.
        let _ = end.send(());
    });
    let taker = Lines {
        queue: queue.clone(),
        dropped: dropped.clone(),
    };
    (
        taker,
        Guard {
            queue,
            ended,
            dropped,
        },
    )
}

fn write_all(mut output: impl Write, lines: &Receiver<Message>) {
    while let Ok(Message::Line(line)) = lines.recv() {
        // A closed pipe is no reason to stop keeping routes alive.
        let _ = output.write_all(&line);
        let _ = output.flush();
    }
}

// === impl Dropped ===

impl Dropped {
    /// How many so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl Guard ===

impl Guard {
    /// The count of lines nobody read.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        self.dropped.clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.queue.try_send(Message::End).is_ok() {
            // A blocked output keeps its lines; the process ends all the same.
            let _ = self.ended.recv_timeout(END_WAIT);
        }
    }
}

// === impl Lines ===

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter {
            lines: self,
            bytes: Vec::new(),
        }
    }
}

impl Write for LineWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter<'_> {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.bytes);
        if self.lines.queue.try_send(Message::Line(line)).is_err() {
            self.lines.dropped.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// An output that blocks until its lock is free.
    struct Blocked(Arc<Mutex<Vec<u8>>>);

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_blocked_output_drops_lines_and_blocks_nobody() {
        let output = Arc::new(Mutex::new(Vec::new()));
        let held = output.lock().unwrap();
        let (lines, guard) = start(Blocked(output.clone()));
        for _ in 0..LINES_MAX + 10 {
            lines.make_writer().write_all(b"x\n").unwrap();
        }
        // One line may be in the thread's hands.
        assert!((9..=10).contains(&guard.dropped().count()));
        drop(held);
    }

    #[test]
    fn the_last_lines_are_written_before_the_end() {
        let output = Arc::new(Mutex::new(Vec::new()));
        let (lines, guard) = start(Blocked(output.clone()));
        lines.make_writer().write_all(b"last\n").unwrap();
        drop(guard);
        assert_eq!(output.lock().unwrap().as_slice(), b"last\n");
    }
}
