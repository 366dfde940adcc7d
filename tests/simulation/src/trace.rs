//! What happened, line by line: hashed always, kept only for whoever wants to read it.

use std::fmt::{self, Write as _};

use crate::Moment;

/// FNV-1a, 64 bits: two runs that differ anywhere differ here.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

pub struct Trace {
    hash: u64,
    line: String,
    shown: bool,
}

// === impl Trace ===

impl Trace {
    pub fn new(shown: bool) -> Self {
        Self {
            hash: OFFSET,
            line: String::new(),
            shown,
        }
    }

    pub fn note(&mut self, now: Moment, what: fmt::Arguments<'_>) {
        self.line.clear();
        let millis = now.as_millis();
        let _ = write!(
            self.line,
            "{:>4}.{:03} {what}",
            millis / 1000,
            millis % 1000
        );
        for byte in self.line.bytes().chain([b'\n']) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        if self.shown {
            println!("{}", self.line);
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }
}
