//! Files as operators write them, and what is said about them.

use super::*;

const ORIGINAL: &str = "
nats_servers:
- host: 10.0.0.1:4222
  user: nats
  password: 0123

- host: 10.0.0.2
  user: nats
  password: 1e3
routing_api_url: https://api.sys.test/
app_domain_name: apps.test
uaa_api_url: https://uaa.sys.test
routing_api_username: routing_api_client
routing_api_client_secret: 0x1F
skip_tls_verification: yes
kube_config_path: /nonexistent/kubeconfig
";

const ANYWHERE: Surroundings = Surroundings {
    in_pod: false,
    files: false,
};

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("route-sync.yml"), ANYWHERE)
}

/// Every mistake of a file, one a line.
fn mistakes(text: &str) -> String {
    match parse(text) {
        Ok(_) => String::new(),
        Err(ConfigError::Mistakes { mistakes, .. }) => {
            let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
            lines.join("\n")
        }
        Err(other) => panic!("{other}"),
    }
}

/// The original's file with one line exchanged or added.
fn with(line: &str) -> String {
    let key = line.split_once(':').map_or(line, |(key, _)| key);
    let kept: Vec<&str> = ORIGINAL
        .lines()
        .filter(|old| !old.starts_with(&format!("{key}:")))
        .collect();
    format!("{}\n{line}\n", kept.join("\n"))
}

#[test]
fn a_file_of_the_original_loads_unchanged() {
    let config = parse(ORIGINAL).unwrap();
    let nats = config.nats.unwrap();
    let servers: Vec<_> = nats
        .servers
        .iter()
        .map(|server| {
            let (user, password) = server.login.as_ref().unwrap();
            (
                server.host.as_str(),
                server.port,
                user.as_str(),
                password.expose(),
            )
        })
        .collect();
    assert_eq!(
        servers,
        [
            ("10.0.0.1", 4222, "nats", "0123"),
            ("10.0.0.2", 4222, "nats", "1e3")
        ]
    );
    let api = config.routing_api.unwrap();
    assert_eq!(api.url, "https://api.sys.test");
    assert_eq!(
        (api.router_group.as_str(), api.ttl),
        ("default-tcp", Duration::from_mins(2))
    );
    let uaa = config.uaa.unwrap();
    assert_eq!(uaa.client_secret.expose(), "0x1F");
    assert!(uaa.tls.skip_verification && api.tls.skip_verification);
    assert_eq!(config.routes.app_domain.as_str(), "apps.test");
    assert_eq!(
        config.kubernetes.kubeconfig,
        Some("/nonexistent/kubeconfig".into())
    );
    assert_eq!(config.admin, Some(([127, 0, 0, 1], 9101).into()));
    assert_eq!(config.unknown_keys, []);
}

#[test]
fn each_weakness_is_one_warning() {
    let config = parse(&with("routing_api_url: http://10.0.0.5:3000")).unwrap();
    assert_eq!(config.warnings.len(), 3, "{:?}", config.warnings);
    assert!(config.warnings[0].starts_with("`uaa.skip_tls_verification`"));
    assert!(config.warnings[1].starts_with("`routing_api.url` is http"));
    assert!(config.warnings[2].starts_with("`nats.tls`"));
}

#[test]
fn who_skips_verification_is_told_that_nats_is_verified_all_the_same() {
    let tls = "nats:\n  tls:\n    server_name: nats.service.cf.internal";
    let config = parse(&with(tls)).unwrap();
    let told =
        |text: &&String| text.starts_with("`skip_tls_verification` does not reach `nats.tls`");
    assert_eq!(config.warnings.iter().filter(told).count(), 1);
    assert!(!config.nats.unwrap().tls.unwrap().skip_verification);
    let config = parse(&with(&format!("{tls}\n    skip_tls_verification: true"))).unwrap();
    let key = &config.unknown_keys[0].key;
    assert_eq!(key, "nats.tls.skip_tls_verification");
}

#[test]
fn the_http_lane_is_told_where_state_survives() {
    let config = parse(&with("state:\n  dir: /var/vcap/data/route-sync")).unwrap();
    assert!(config.routes.state_survives);
    assert_eq!(config.nats.unwrap().state_dir, config.state_dir);
    assert_eq!(parse(&with("")).unwrap().nats.unwrap().state_dir, None);
}

#[test]
fn a_scalar_keeps_its_spelling() {
    for text in [
        "0123",
        "yes",
        "1e3",
        "0x1F",
        "12345",
        "1_000",
        "true",
        "1.50",
        "+1",
        "0o17",
        ".inf",
        "2001-01-01",
        "'null'",
        "\"a b\"",
        "a: b",
        "a#b",
        "*",
    ] {
        let quoted = if text.starts_with('*') || text.contains(": ") {
            format!("'{text}'")
        } else {
            text.to_owned()
        };
        let config = parse(&with(&format!("routing_api_client_secret: {quoted}"))).unwrap();
        let secret = config.uaa.unwrap().client_secret;
        assert_eq!(secret.expose(), text.trim_matches(['\'', '"']), "{text}");
    }
}

#[test]
fn every_mistake_is_reported_at_once_with_its_key() {
    let text = "
nats_servers:
- host: 10.0.0.1
  user: nats
  password: hunter2
- host: 'http://x'
  user:
  password: hunter2
routing_api_url: ftp://api
routing_api_client_secret: [hunter2]
routing_api:
  ttl: 5 days
  client_cert_file: /c.pem
nats: {interval: 1s, messages_per_second: many}
admin: {listen: everywhere}
policy:
  hosts:
  - {namespaces: [Web], hosts: [a_b]}
log: hunter2
";
    let expect = "\
kubernetes.kubeconfig: is missing; hint: only inside a pod it may be left out; `kube_config_path`, its original name, is read as well
uaa.url: is missing; hint: `uaa_api_url`, its original name, is read as well
uaa.client_id: is missing; hint: `routing_api_username`, its original name, is read as well
routing_api_client_secret: must be a single value
routing_api_url: must start with `https://` (or `http://`)
routing_api.ttl: `5 days` is no duration such as `30s` or `5m`
routing_api.client_key_file: is missing beside `client_cert_file`
nats_servers[1].host: must be `host:port` or start with `nats://` or `tls://`
nats_servers[1].user: can not be blank
nats.interval: must lie between 5s and 30s
nats.messages_per_second: must be a whole number from 1 to 1000000
routes.app_domain: is missing; hint: `app_domain_name`, its original name, is read as well
policy.hosts[0].namespaces[0]: `Web` is no namespace name
policy.hosts[0].hosts[0]: is no DNS name: it contains `_`; only letters, digits, dashes and dots may stand in a host
admin.listen: `everywhere` is neither an address such as `127.0.0.1:9101` nor `off`
log: must be a group of keys";
    assert_eq!(mistakes(text), expect);
}

#[test]
fn a_null_is_blank() {
    for key in [
        "routing_api_url",
        "app_domain_name",
        "routing_api_client_secret",
    ] {
        assert_eq!(
            mistakes(&with(&format!("{key}:"))),
            format!("{key}: can not be blank")
        );
        assert_eq!(
            mistakes(&with(&format!("{key}: ~"))),
            format!("{key}: can not be blank")
        );
        assert_eq!(
            mistakes(&with(&format!("{key}: ''"))),
            format!("{key}: can not be blank")
        );
    }
}

#[test]
fn an_unquoted_secret_that_yaml_takes_for_a_tag_is_named() {
    assert_eq!(
        mistakes(&with("routing_api_client_secret: !hunter2")),
        "routing_api_client_secret: can not be blank".replace(
            "can not be blank",
            "starts with a YAML tag; hint: put the value in quotes"
        )
    );
}

#[test]
fn both_names_of_a_key_must_agree() {
    assert_eq!(
        mistakes(&with("routing_api: {url: 'https://api.sys.test'}")),
        ""
    );
    assert_eq!(
        mistakes(&with("routing_api: {url: 'https://other.test'}")),
        "routing_api.url: differs from `routing_api_url`, the original's name for it; hint: give one of them"
    );
    assert_eq!(
        mistakes(&with("nats: {servers: [{host: h}]}")),
        "nats.servers: differs from `nats_servers`, the original's name for it; hint: give one of them"
    );
}

#[test]
fn unknown_keys_come_with_a_suggestion() {
    let text = with("routing_api: {router_grup: x, client_id: y, quux: z}\nnat: {}");
    let config = parse(&text).unwrap();
    let found: Vec<String> = config
        .unknown_keys
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        found,
        [
            "routing_api.router_grup: is no key of route-sync; hint: did you mean `routing_api.router_group`?",
            "routing_api.client_id: is no key of route-sync; hint: did you mean `uaa.client_id`?",
            "routing_api.quux: is no key of route-sync",
            "nat: is no key of route-sync; hint: did you mean `nats`?",
        ]
    );
}

#[test]
fn a_misspelt_key_is_named_beside_the_one_that_is_missing_for_it() {
    let told = mistakes(&ORIGINAL.replace("uaa_api_url:", "uaa_api_ulr:"));
    let missing = "uaa.url: is missing; hint: `uaa_api_url`, its original name, is read as well";
    let misspelt = "uaa_api_ulr: is no key of route-sync; hint: did you mean `uaa_api_url`?";
    assert_eq!(told, format!("{missing}\n{misspelt}"));
}

#[test]
fn a_key_that_stands_twice_is_a_mistake() {
    let text = format!("{ORIGINAL}\napp_domain_name: other.test\n");
    assert_eq!(mistakes(&text), "app_domain_name: stands twice");
}

#[test]
fn a_syntax_error_tells_its_place_and_no_content() {
    let text = "app_domain_name: apps.test\nrouting_api_client_secret: \"hunter2\n";
    let error = parse(text).unwrap_err();
    let debug = format!("{error:?}");
    let shown = format!("{debug} {:#}", anyhow::Error::new(error));
    assert!(shown.contains("line 3, column 1"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn credentials_in_a_nats_url_are_lifted_out() {
    let text = "
nats: {servers: [{host: 'nats://n:a%2Fb@10.0.0.1'}, {host: h, port: 4300}], user: u, password: p}
tcp: {enabled: false}
routes: {app_domain: apps.test}
kubernetes: {kubeconfig: k}
";
    let config = parse(text).unwrap();
    let servers = config.nats.unwrap().servers;
    let login = |index: usize| {
        let (user, password) = servers[index].login.as_ref().unwrap();
        (user.as_str(), password.expose())
    };
    assert_eq!((login(0), login(1)), (("n", "a/b"), ("u", "p")));
    assert_eq!(
        (servers[0].host.as_str(), servers[1].port),
        ("10.0.0.1", 4300)
    );
    assert!(config.uaa.is_none() && config.routing_api.is_none());
}

#[test]
fn files_must_be_readable_and_secrets_lose_their_newline() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("secret"), "hunter2\r\n").unwrap();
    std::fs::write(path("ca.pem"), "hunter2").unwrap();
    let surroundings = Surroundings {
        in_pod: true,
        files: true,
    };
    let text = |ca: &str| {
        format!(
            "{{http: {{enabled: false}}, routes: {{app_domain: a.test}}, routing_api: {{url: 'https://api.x'}}, \
             uaa: {{url: 'https://uaa.x', client_id: c, client_secret_file: '{}'{ca}}}}}",
            path("secret")
        )
    };
    let config = Config::parse(&text(""), Path::new("f"), surroundings).unwrap();
    assert_eq!(config.uaa.unwrap().client_secret.expose(), "hunter2");
    for (file, message) in [("ca.pem", "holds no PEM block"), ("absent", "cannot read")] {
        let ca = format!(", ca_file: '{}'", path(file));
        let error = Config::parse(&text(&ca), Path::new("f"), surroundings).unwrap_err();
        let shown = error.to_string();
        assert!(
            shown.contains("uaa.ca_file: ") && shown.contains(message),
            "{shown}"
        );
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let both = ", client_secret: x";
    let error = Config::parse(&text(both), Path::new("f"), surroundings).unwrap_err();
    assert!(error.to_string().contains("are both given"), "{error}");
}

#[test]
fn a_debug_print_of_everything_shows_no_secret() {
    let text = with("routing_api_client_secret: hunter2").replace("1e3", "hunter3");
    let shown = format!("{:?}", parse(&text).unwrap());
    assert!(!shown.contains("hunter"), "{shown}");
}

#[test]
fn every_documented_key_is_read() {
    let text = "
nats_servers: [{host: h}]
nats: {servers: [{host: h}]}
policy: {hosts: [{namespaces: [a], hosts: [b]}], ports: [{namespaces: [a], ports: 2000}]}
";
    let node = file::parse(text).unwrap_or_else(|error| panic!("{error}"));
    let mut reader = read::Reader::new(false);
    let _ = meaning::config(&mut reader, &node, true);
    for key in KEYS {
        let asked = key.path.trim_end_matches("[]");
        assert!(reader.asked.contains(asked), "nobody reads `{}`", key.path);
    }
}
