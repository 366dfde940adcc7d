//! A configuration, with passwords in it.
//!
//! `hunter2` stands for every secret. Wherever it is the value of a key for secrets, or would be but for a slip of the
//! pen right in front of it, nothing that is ever printed may hold it.

use std::path::Path;

use route_sync::causes::chain;
use route_sync::config::{Config, ConfigError, KEYS, Mistake, Surroundings};

use super::Target;

pub(super) const TARGET: Target = Target {
    name: "configuration",
    words: &[
        SECRET,
        "kubernetes:\n",
        "  kubeconfig: k\n",
        "  rescan_interval: 5m\n",
        "  proxy_url: http://p:1\n",
        "kube_config_path: k\n",
        "uaa:\n",
        "  url: https://uaa.test\n",
        "  client_id: c\n",
        "  client_secret: ",
        "client_secret_file: ",
        "  ca_file: ",
        "skip_tls_verification: true\n",
        "routing_api:\n",
        "  ttl: 30s\n",
        "  reserved_ports: 1-2,3\n",
        "  router_group: g\n",
        "nats:\n",
        "  servers:\n",
        "  - host: ",
        "nats://u:hunter2@h:4222",
        "tls://u:hunter2@h",
        "    port: 4222\n",
        "  user: u\n",
        "  password: ",
        "  password_file: ",
        "nats_servers:\n",
        "routes:\n",
        "  app_domain: apps.test\n",
        "  domains: [a.test]\n",
        "  max_backends: 8\n",
        "  address_family: ipv6\n",
        "policy:\n",
        "  hosts:\n",
        "  - namespaces: [a]\n",
        "    hosts: [b]\n",
        "  ports:\n",
        "    ports: 1024-1030\n",
        "state:\n",
        "  dir: /s\n",
        "  max_age: 10m\n",
        "admin:\n",
        "  listen: 127.0.0.1:1\n",
        "log:\n",
        "  level: info\n",
        "  format: lager\n",
        "tcp:\n",
        "  enabled: false\n",
        "http:\n",
        "routing_api_client_secret: ",
        "routing_api_username: u\n",
        "app_domain_name: a\n",
        "uaa_api_url: ",
        "routing_api_url: ",
        "off",
        "on",
        "yes",
        "~",
        "null",
        "|\n",
        ">-\n",
        "&a ",
        "*a",
        "<<: *a\n",
        "!secret ",
        "!!str ",
        "\"",
        "'",
        "{",
        "}",
        "[",
        "]",
        "---\n",
        "...\n",
        "# ",
        "? ",
        "\\u0068",
    ],
    run,
};

const SECRET: &str = "hunter2";
/// Keys whose value is a secret.
const SECRET_KEYS: &[&str] = &["client_secret", "password"];
/// What may stand between such a key and its value, by right or by a slip.
const BETWEEN: &[char] = &[
    ' ', '\t', '"', '\'', ':', '|', '>', '!', '{', '[', ',', '=', '&', '?',
];
/// A mistake has one line, which a person reads.
const LINE_CHARS_MAX: usize = 1_000;

fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    for in_pod in [false, true] {
        let surroundings = Surroundings {
            in_pod,
            files: false,
        };
        let parsed = Config::parse(text, Path::new("c.yml"), surroundings);
        let mut printed = Vec::new();
        match &parsed {
            // A filter is any text, and is told.
            Ok(config) if config.log.level.contains(SECRET) => {}
            Ok(config) => {
                printed.push(format!("{config:?}"));
                printed.extend(config.warnings.iter().cloned());
                printed.extend(config.unknown_keys.iter().map(ToString::to_string));
                config.unknown_keys.iter().for_each(check_mistake);
            }
            Err(error) => {
                printed.extend([chain(error), format!("{error:?}")]);
                if let ConfigError::Mistakes { mistakes, .. } = error {
                    assert!(!mistakes.is_empty());
                    mistakes.iter().for_each(check_mistake);
                }
            }
        }
        if is_secret_everywhere(text) {
            for text in printed {
                assert!(!text.contains(SECRET), "the secret is printed: {text}");
            }
        }
    }
}

/// It names a key of the file or of the documentation, and is one line.
fn check_mistake(mistake: &Mistake) {
    let Mistake { key, message, .. } = mistake;
    assert!(!key.is_empty() && !message.is_empty(), "{mistake}");
    let length = mistake.to_string().chars().count();
    assert!(
        length <= LINE_CHARS_MAX,
        "a mistake of {length} characters: {:.200}",
        mistake.to_string()
    );
    let known = KEYS.iter().any(|known| {
        let rest = known.path.strip_prefix(pattern(key).as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    });
    let whole = key == "(file)";
    let strange = ["is no key of route-sync", "stands twice"].contains(&message.as_str());
    assert!(
        known || whole || strange,
        "`{key}` is no path of a key: {message}"
    );
}

/// `nats.servers[3].host` as the documentation has it.
fn pattern(key: &str) -> String {
    let mut pattern = String::new();
    for (index, part) in key.split('[').enumerate() {
        if index == 0 {
            pattern.push_str(part);
        } else {
            pattern.push_str("[]");
            pattern.push_str(part.split_once(']').map_or("", |(_, rest)| rest));
        }
    }
    pattern
}

fn is_secret_everywhere(text: &str) -> bool {
    text.match_indices(SECRET).all(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + SECRET.len()..]);
        is_behind_a_key(before) || is_in_a_url(before, after)
    })
}

fn is_behind_a_key(before: &str) -> bool {
    let key = before.trim_end_matches(BETWEEN);
    let named = SECRET_KEYS.iter().find_map(|name| key.strip_suffix(name));
    // Another word that ends in one of them is a key of its own, and one behind a key is a part of its value.
    let whole = named.is_some_and(|rest| {
        let rest = rest.strip_suffix("routing_api_").unwrap_or(rest);
        let rest = rest.trim_end_matches([' ', '-']);
        rest.is_empty() || rest.ends_with(['\n', '{', ','])
    });
    // Without a colon the word before it is as much a part of a value as it is itself.
    whole && before[key.len()..].contains(':')
}

/// In the address of a NATS server, which may hold a password; any other key's value may be told.
fn is_in_a_url(before: &str, after: &str) -> bool {
    let Some(user) = before.strip_suffix(':') else {
        return false;
    };
    let scheme = user.trim_end_matches(|c: char| c.is_ascii_alphanumeric());
    let key = ["nats://", "tls://"]
        .iter()
        .find_map(|it| scheme.strip_suffix(it));
    let key = key.map(|key| key.trim_end_matches(BETWEEN));
    after.starts_with('@')
        && key.is_some_and(|key| key.ends_with(" host") || key.ends_with("{host"))
}
