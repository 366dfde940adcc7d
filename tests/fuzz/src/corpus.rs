//! Inputs on disk: `corpus/<target>/`.
//!
//! A file `*.txt` holds many, so that a person can read them: each begins after a line that starts with `%% ` and ends
//! with the line before the next one. Its last newline does not count. What stands before the first is a comment.
//! Any other file is one input, byte for byte.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const MARK: &str = "%% ";
/// Bytes of what a search adds to one target: all corpora together stay below 300 kB.
const FOUND_BYTES_MAX: usize = 24 * 1024;
/// And of one input: longer ones are shorter ones repeated.
const INPUT_BYTES_MAX: usize = 1024;

/// An input and where it stands.
pub type Named = (String, Vec<u8>);

/// Where the inputs of a target are.
#[must_use]
pub fn folder(target: &str) -> PathBuf {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    corpus.join(target)
}

/// All inputs of a target, in the order of their files' names.
///
/// # Errors
/// When they cannot be read.
pub fn read(target: &str) -> io::Result<Vec<Named>> {
    let files = fs::read_dir(folder(target))?.map(|entry| Ok(entry?.path()));
    let mut files = files.collect::<io::Result<Vec<_>>>()?;
    files.sort();
    let mut inputs = Vec::new();
    for file in files {
        inputs.extend(read_file(&file)?);
    }
    Ok(inputs)
}

/// The inputs of one file.
///
/// # Errors
/// When it cannot be read.
pub fn read_file(path: &Path) -> io::Result<Vec<Named>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if path.extension().is_none_or(|ending| ending != "txt") {
        return Ok(vec![(name.into_owned(), fs::read(path)?)]);
    }
    let text = fs::read_to_string(path)?;
    let mut inputs: Vec<(String, Vec<&str>)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(what) = line.strip_prefix(MARK) {
            inputs.push((format!("{name}:{}: {what}", index + 1), Vec::new()));
        } else if let Some((_, lines)) = inputs.last_mut() {
            lines.push(line);
        }
    }
    let joined = inputs
        .into_iter()
        .map(|(name, lines)| (name, lines.join("\n").into_bytes()));
    Ok(joined.collect())
}

/// Writes inputs as one readable file, as far as they are readable and fit; says how many.
///
/// # Errors
/// When it cannot be written.
pub fn write_found(path: &Path, inputs: &[Vec<u8>]) -> io::Result<usize> {
    let mut text =
        String::from("What a search found, each reaching something that no other does.\n");
    let mut written = 0;
    for input in inputs {
        let Some(input) = readable(input) else {
            continue;
        };
        if text.len() + input.len() > FOUND_BYTES_MAX {
            break;
        }
        text.push_str(&format!("{MARK}{written}\n{input}\n"));
        written += 1;
    }
    fs::write(path, text)?;
    Ok(written)
}

fn readable(input: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(input).ok()?;
    let plain = text.chars().all(|c| c == '\n' || !c.is_control());
    let plain = plain && !text.lines().any(|line| line.starts_with(MARK));
    (plain && text.len() <= INPUT_BYTES_MAX).then_some(text)
}
