//! `check --offline`: everything that can be said of the configuration alone.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::{Output, render};
use crate::causes::chain;
use crate::config::{Config, ConfigError, Mistake, Surroundings};

#[derive(Serialize)]
struct View {
    valid: bool,
    mistakes: Vec<MistakeView>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct MistakeView {
    key: String,
    message: String,
    hint: Option<String>,
}

pub(super) fn offline(
    path: &Path,
    surroundings: Surroundings,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let loaded = Config::load(path, surroundings).and_then(|config| match config.unknown_keys {
        unknown if unknown.is_empty() => Ok(config.warnings),
        // A warning for `run`, because the original ignored them; here somebody asks whether all is well.
        mistakes => Err(ConfigError::Mistakes {
            path: path.to_owned(),
            mistakes,
        }),
    });
    let view = match &loaded {
        Ok(warnings) => View {
            valid: true,
            mistakes: Vec::new(),
            warnings: warnings.clone(),
        },
        Err(ConfigError::Mistakes { mistakes, .. }) => View {
            valid: false,
            mistakes: mistakes.iter().map(MistakeView::of).collect(),
            warnings: Vec::new(),
        },
        Err(error) => View {
            valid: false,
            mistakes: vec![MistakeView::of_file(error)],
            warnings: Vec::new(),
        },
    };
    if output == Output::Json {
        render::print_json(&view)?;
    }
    let warnings = loaded?;
    if output == Output::Text {
        render::print(&format!("`{}` is valid\n", path.display()))?;
        for warning in warnings {
            render::warning(&warning);
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl MistakeView {
    /// No key is to blame where the file cannot be read at all.
    fn of_file(error: &ConfigError) -> Self {
        Self {
            key: "(file)".to_owned(),
            message: chain(error),
            hint: None,
        }
    }

    fn of(mistake: &Mistake) -> Self {
        let Mistake { key, message, hint } = mistake.clone();
        Self { key, message, hint }
    }
}
