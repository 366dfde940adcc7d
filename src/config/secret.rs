//! A text that must not be seen.

use std::fmt;
use std::path::{Path, PathBuf};

/// A secret. It has no `Display` and no `Serialize`; its `Debug` is three stars.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    text: String,
    file: Option<PathBuf>,
}

impl Secret {
    /// Keeps a text secret.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self { text, file: None }
    }

    /// The text itself, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Reads it from its file.
    ///
    /// # Errors
    /// Why it cannot be read, or that nothing is in it.
    pub fn read(file: &Path) -> Result<Self, String> {
        let text = super::read::content(file)?;
        // Editors and `echo` leave a newline that no secret means.
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Err(format!("`{}` is empty", file.display()));
        }
        Ok(Self {
            text: text.to_owned(),
            file: Some(file.to_owned()),
        })
    }

    /// The same as it is now: read again where it lies in a file, since secrets are rotated there.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn read_again(&self) -> Result<Self, String> {
        self.file
            .as_deref()
            .map_or_else(|| Ok(self.clone()), Self::read)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
