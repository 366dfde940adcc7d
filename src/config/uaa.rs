//! The group `uaa` by itself, for whoever does nothing but set up its client.
//!
//! What else stands in the file is not judged: it may be the file of a lane that is still being written, or one whose
//! other files lie on another machine.

use std::path::Path;

use super::meaning::{self, weak_https};
use super::{ConfigError, Surroundings, UaaConfig, file, keys, read, text, unknown};

/// The group's keys begin so.
const GROUP: &str = "uaa.";

impl UaaConfig {
    /// Reads the group and its keys' original names; beside it what works but should not stay.
    ///
    /// # Errors
    /// Everything that is wrong with the group.
    pub fn load(
        path: &Path,
        surroundings: Surroundings,
    ) -> Result<(Self, Vec<String>), ConfigError> {
        let file = file::parse(&text(path)?).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source,
        })?;
        let mut reader = read::Reader::new(surroundings.files);
        let strays = keys::strays(&file.root);
        let ours = |key: &String| key.starts_with(GROUP);
        for key in strays.twice.into_iter().filter(ours) {
            reader.wrong(key, "stands twice");
        }
        let root = reader.root(&file.root);
        let skip = reader.flag(&root, "skip_tls_verification");
        let config = meaning::uaa(&mut reader, &root, true, &skip);
        let unknown = strays.unknown.into_iter().map(unknown);
        let mut mistakes = reader.mistakes;
        mistakes.extend(unknown.filter(|mistake| ours(&mistake.key)));
        match config {
            Some(config) if mistakes.is_empty() => {
                let mut warnings = Vec::new();
                let secret = "the client secret";
                weak_https("uaa", &config.url, &config.tls, secret, &mut warnings);
                Ok((config, warnings))
            }
            _ => Err(ConfigError::Mistakes {
                path: path.to_owned(),
                mistakes,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SURROUNDINGS: Surroundings = Surroundings {
        in_pod: false,
        files: true,
    };

    fn load(text: &str) -> Result<(UaaConfig, Vec<String>), ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yml");
        std::fs::write(&path, text).unwrap();
        UaaConfig::load(&path, SURROUNDINGS)
    }

    #[test]
    fn the_group_is_read_whatever_else_stands_in_the_file() {
        let text = "uaa: {url: https://uaa, client_id: a, client_secret: b}\n\
                    nats: 7\nodd: 1\nroutes: {app_domain: a_b}\n";
        let (config, warnings) = load(text).unwrap();
        assert_eq!(
            (config.url.as_str(), config.client_id.as_str()),
            ("https://uaa", "a")
        );
        assert_eq!(warnings, Vec::<String>::new());
        let original = "uaa_api_url: http://uaa\nrouting_api_username: a\n\
                        routing_api_client_secret: b\n";
        assert_eq!(load(original).unwrap().1.len(), 1, "clear text is told");
    }

    #[test]
    fn every_mistake_of_the_group_is_told_and_none_of_another() {
        let text = "uaa: {url: uaa, client_idd: a, client_secret: hunter2}\nodd: 1\n";
        let told = load(text).unwrap_err().to_string();
        for key in ["uaa.url", "uaa.client_id", "uaa.client_idd"] {
            assert!(told.contains(key), "{told}");
        }
        assert!(
            !told.contains("odd:") && !told.contains("hunter2"),
            "{told}"
        );
    }
}
