//! Changes to an input: of bytes and characters, of words that mean something, of lines, and with pieces of others.

use std::ops::Range;

use fastrand::Rng;

/// Longer inputs are cut: what fails, fails shorter, and time goes with the length.
const BYTES_MAX: usize = 8 * 1024;
/// Changes made to one input at once.
const CHANGES_MAX: usize = 6;
/// Repetitions of one piece: deeper than any parser's own limit.
const REPEATED_MAX: usize = 200;

/// Characters that readers and terminals treat in a way of their own.
const ODD: &[&str] = &[
    "\0",
    "\x01",
    "\t",
    "\r",
    "\n",
    "\r\n",
    "\x1b[2J",
    "\x7f",
    "\u{85}",
    "\u{9b}",
    "\u{a0}",
    "\u{ad}",
    "ä",
    "ſ",
    "İ",
    "\u{200b}",
    "\u{202e}",
    "\u{2028}",
    "\u{feff}",
    "\u{fffd}",
    "\u{e0041}",
    "🦀",
    " ",
    "  ",
    "\"",
    "'",
    "\\",
    "/",
    "//",
    ",",
    ".",
    "..",
    ":",
    ";",
    "=",
    "-",
    "_",
    "*",
    "*.",
    "%",
    "%2f",
    "?",
    "#",
    "@",
    "{",
    "}",
    "[",
    "]",
    "(",
    "<",
    "&",
    "|",
    "!",
    "~",
    "`",
    "null",
    "true",
];

/// Numbers at the edges of what holds them.
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "00",
    "007",
    "9",
    "80",
    "255",
    "256",
    "1023",
    "1024",
    "30000",
    "32768",
    "65535",
    "65536",
    "1e3",
    "1.5",
    "-0",
    "+1",
    "0x10",
    "4294967295",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999",
    "1e308",
    "1e999",
];

/// Changes inputs; the same seed makes the same changes.
pub struct Mutator {
    rng: Rng,
    words: &'static [&'static str],
}

// === impl Mutator ===

impl Mutator {
    pub fn new(seed: u64, words: &'static [&'static str]) -> Self {
        let rng = Rng::with_seed(seed);
        Self { rng, words }
    }

    /// One to go on from: half of the time one of the youngest.
    pub fn parent<'a>(&mut self, pool: &'a [Vec<u8>], young: usize) -> &'a [u8] {
        if pool.is_empty() {
            return &[];
        }
        let oldest = if self.rng.bool() {
            pool.len().saturating_sub(young)
        } else {
            0
        };
        &pool[self.rng.usize(oldest..pool.len())]
    }

    /// The same, changed in one to some ways.
    pub fn changed(&mut self, parent: &[u8], pool: &[Vec<u8>]) -> Vec<u8> {
        let mut input = parent.to_vec();
        let most = self.rng.usize(1..=CHANGES_MAX);
        for _ in 0..self.rng.usize(1..=most) {
            self.change(&mut input, pool);
            input.truncate(BYTES_MAX);
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
        match self.rng.usize(0..14) {
            0 => {
                if let Some(byte) = self.some_byte(input) {
                    *byte ^= 1 << self.rng.u8(0..8);
                }
            }
            1 => {
                let byte = self.rng.u8(..);
                if let Some(at) = self.some_byte(input) {
                    *at = byte;
                }
            }
            2 => {
                let range = self.some_range(input);
                input.drain(range);
            }
            3 => {
                let piece = input[self.some_range(input)].to_vec();
                self.insert(input, &piece);
            }
            4 => {
                let piece = input[self.some_range(input)].to_vec();
                let piece = piece[..piece.len().min(16)].repeat(self.rng.usize(2..REPEATED_MAX));
                self.insert(input, &piece);
            }
            5 | 6 => {
                let word = self.word();
                self.insert(input, word.as_bytes());
            }
            7 | 8 => {
                let word = self.word();
                let token = self.some_token(input);
                input.splice(token, word.bytes());
            }
            9 => {
                let odd = self.one_of(ODD);
                self.insert(input, odd.as_bytes());
            }
            10 => {
                let number = self.one_of(NUMBERS);
                if let Some(digits) = self.some_digits(input) {
                    input.splice(digits, number.bytes());
                }
            }
            11 => self.change_lines(input),
            12 => {
                let other = self.parent(pool, pool.len());
                let piece = other[self.some_range(other)].to_vec();
                self.insert(input, &piece);
            }
            _ => {
                let other = self.parent(pool, pool.len());
                let (head, tail) = (
                    self.rng.usize(0..=input.len()),
                    self.rng.usize(0..=other.len()),
                );
                input.truncate(head);
                input.extend_from_slice(&other[tail..]);
            }
        }
    }

    /// Moves, doubles or drops one line.
    fn change_lines(&mut self, input: &mut Vec<u8>) {
        let mut lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
        let (one, other) = (
            self.rng.usize(0..lines.len()),
            self.rng.usize(0..lines.len()),
        );
        match self.rng.usize(0..3) {
            0 => lines.swap(one, other),
            1 => lines.insert(other, lines[one]),
            _ => {
                lines.remove(one);
            }
        }
        *input = lines.join(&b'\n');
    }

    fn one_of(&mut self, texts: &[&'static str]) -> &'static str {
        texts[self.rng.usize(0..texts.len())]
    }

    /// A word of the target's, or one that no target knows.
    fn word(&mut self) -> &'static str {
        match self.rng.usize(0..8) {
            0 => self.one_of(ODD),
            1 => self.one_of(NUMBERS),
            _ if self.words.is_empty() => "x",
            _ => self.one_of(self.words),
        }
    }

    fn insert(&mut self, input: &mut Vec<u8>, piece: &[u8]) {
        let at = self.rng.usize(0..=input.len());
        input.splice(at..at, piece.iter().copied());
    }

    fn some_byte<'a>(&mut self, input: &'a mut [u8]) -> Option<&'a mut u8> {
        let length = input.len();
        (length > 0).then(|| &mut input[self.rng.usize(0..length)])
    }

    /// Short ones are likelier.
    fn some_range(&mut self, input: &[u8]) -> Range<usize> {
        let start = self.rng.usize(0..=input.len());
        let most = input.len() - start;
        let most = if self.rng.bool() { most.min(16) } else { most };
        start..start + self.rng.usize(0..=most)
    }

    /// A run of letters, digits and underscores, or what stands between two of them.
    fn some_token(&mut self, input: &[u8]) -> Range<usize> {
        self.run_around(input, |byte| byte.is_ascii_alphanumeric() || byte == b'_')
    }

    fn some_digits(&mut self, input: &[u8]) -> Option<Range<usize>> {
        let start = self.rng.usize(0..=input.len());
        let first = input[start..].iter().position(u8::is_ascii_digit)? + start;
        let length = input[first..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        Some(first..first + length)
    }

    fn run_around(&mut self, input: &[u8], inside: impl Fn(u8) -> bool) -> Range<usize> {
        if input.is_empty() {
            return 0..0;
        }
        let at = self.rng.usize(0..input.len());
        let same = |byte: &&u8| inside(**byte) == inside(input[at]);
        let before = input[..at].iter().rev().take_while(same).count();
        let after = input[at..].iter().take_while(same).count();
        at - before..at + after
    }
}
