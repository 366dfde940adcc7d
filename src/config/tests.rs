//! Files as operators write them, and what is said about them.

use super::*;
use crate::desired::guard::Limits;

mod listeners;
mod static_routes;

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

fn cluster(config: &Config) -> ClusterConfig {
    let cluster = config.source.cluster();
    cluster.expect("there are no static routes").clone()
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
    let nats = cluster(&config).nats.unwrap();
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
    let api = config.routing_api.clone().unwrap();
    assert_eq!(api.url, "https://api.sys.test");
    assert_eq!(
        (api.router_group.as_str(), api.ttl),
        ("default-tcp", Duration::from_mins(2))
    );
    let uaa = config.uaa.clone().unwrap();
    assert_eq!(uaa.client_secret.expose(), "0x1F");
    assert!(uaa.tls.skip_verification && api.tls.skip_verification);
    assert_eq!(cluster(&config).routes.app_domain.as_str(), "apps.test");
    assert_eq!(
        cluster(&config).kubernetes.kubeconfig,
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
    let tls = "nats:\n  tls:\n    ca_file: /ca.pem\n    server_name: nats.service.cf.internal";
    let config = parse(&with(tls)).unwrap();
    let told =
        |text: &&String| text.starts_with("`skip_tls_verification` does not reach `nats.tls`");
    assert_eq!(config.warnings.iter().filter(told).count(), 1);
    assert!(
        !cluster(&config)
            .nats
            .unwrap()
            .tls
            .unwrap()
            .skip_verification
    );
    let config = parse(&with(&format!("{tls}\n    skip_tls_verification: true"))).unwrap();
    let key = &config.unknown_keys[0].key;
    assert_eq!(key, "nats.tls.skip_tls_verification");
}

#[test]
fn state_is_good_for_ten_minutes_unless_said_otherwise() {
    let age = |text: &str| parse(&with(text)).map(|config| config.state_max_age);
    assert_eq!(age("").unwrap(), Duration::from_mins(10));
    assert_eq!(
        age("state:\n  max_age: 30s").unwrap(),
        Duration::from_secs(30)
    );
    assert!(age("state:\n  max_age: 1s").is_err());
}

#[test]
fn the_http_lane_is_told_where_state_survives() {
    let config = parse(&with("state:\n  dir: /var/vcap/data/route-sync")).unwrap();
    assert!(cluster(&config).routes.state_survives);
    assert_eq!(cluster(&config).nats.unwrap().state_dir, config.state_dir);
    assert_eq!(
        cluster(&parse(&with("")).unwrap()).nats.unwrap().state_dir,
        None
    );
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
fn how_many_routes_may_go_together_is_told_in_numbers_and_a_time() {
    let config = parse(ORIGINAL).unwrap();
    let limits = |routes, percent, seconds| Limits {
        routes,
        percent,
        window: Duration::from_secs(seconds),
    };
    assert_eq!(cluster(&config).routes.removals, limits(10, 30, 60));
    let text = "routes: {max_removals: 0, max_removals_percent: 100, removals_window: 5m}";
    let config = parse(&with(text)).unwrap();
    assert_eq!(cluster(&config).routes.removals, limits(0, 100, 300));
    let text = "routes: {max_removals: -1, max_removals_percent: 30%, removals_window: 0}";
    let expect = "\
routes.max_removals: must be a whole number from 0 to 100000
routes.max_removals_percent: must be a whole number from 0 to 100
routes.removals_window: must lie between 1s and 3600s";
    assert_eq!(mistakes(&with(text)), expect);
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
fn a_blank_that_is_missing_before_a_secret_shows_no_secret() {
    let text = with("nats: {user: u, password:hunter2}\nuaa: {\"client_secret=hunter2\": x}");
    let told = parse(&text).unwrap_err().to_string();
    assert!(!told.contains("hunter2"), "{told}");
    let expect = "nats.password…: is no key of route-sync\n    hint: did you mean `nats.password`?";
    assert!(told.contains(expect), "{told}");
    let text = with(&format!("? {}\n: x", "x".repeat(100_000)));
    let found = parse(&text).unwrap().unknown_keys;
    assert!(found[0].to_string().chars().count() < 200);
    let found = parse(&with("log: {\"\": x}\n\"\": x"))
        .unwrap()
        .unknown_keys;
    let found: Vec<_> = found.iter().map(|it| it.key.as_str()).collect();
    assert_eq!(found, ["log.\"\"", "\"\""]);
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
    let swapped = with("log: {levle: debug}").replace("  user: nats", "  hots: h\n  user: nats");
    let hints = parse(&swapped).unwrap().unknown_keys;
    let hints: Vec<_> = hints.into_iter().map(|it| it.hint.unwrap()).collect();
    assert_eq!(
        hints,
        [
            "did you mean `nats_servers[].host`?",
            "did you mean `nats_servers[].host`?",
            "did you mean `log.level`?"
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
fn a_key_that_stands_twice_is_a_mistake_unless_it_says_the_same() {
    let text = format!("{ORIGINAL}\napp_domain_name: other.test\n");
    assert_eq!(mistakes(&text), "app_domain_name: stands twice");
    let config = parse(&format!("{ORIGINAL}\napp_domain_name: apps.test\n")).unwrap();
    assert_eq!(
        config.warnings.last().unwrap(),
        "`app_domain_name` stands twice, with the same value"
    );
}

#[test]
fn a_secret_that_looks_like_a_key_is_not_printed() {
    for value in [
        "{hunter2}",
        "{hunter2: 1, hunter2: 2}",
        "[{hunter2: x}]",
        "{a: {hunter2: x}}",
    ] {
        let text = with(&format!("routing_api_client_secret: {value}")).replace("1e3", value);
        assert_eq!(
            mistakes(&text),
            "routing_api_client_secret: must be a single value\n\
             nats_servers[1].password: must be a single value"
        );
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_key() {
    let config = parse(&format!("\u{feff}{}", ORIGINAL.trim_start())).unwrap();
    assert_eq!(config.unknown_keys, []);
}

#[test]
fn only_the_first_document_is_read_and_that_is_told() {
    for more in ["---\n", "---\napp_domain_name: other.test\n", "---\na: [\n"] {
        let config = parse(&format!("---\n{ORIGINAL}{more}")).unwrap();
        assert_eq!(cluster(&config).routes.app_domain.as_str(), "apps.test");
        let told = config.warnings.last().unwrap();
        assert!(told.starts_with("only the first document"), "{told}");
    }
    let alone = parse(&format!("---\n{ORIGINAL}...\n")).unwrap();
    assert_eq!(alone.warnings.len(), 3, "{:?}", alone.warnings);
}

#[test]
fn merge_keys_bring_what_a_group_does_not_say_itself() {
    let servers = "nats_servers:\n- &first\n  host: 10.0.0.1\n  user: nats\n  password: 0123\n\
        - <<: *first\n  host: 10.0.0.2\n- host: 10.0.0.3\n  <<: [{user: other}, *first]";
    let rest = ORIGINAL.split_once("routing_api_url").unwrap().1;
    let config = parse(&format!("{servers}\nrouting_api_url{rest}")).unwrap();
    assert_eq!(config.unknown_keys, []);
    let servers = cluster(&config).nats.unwrap().servers;
    let read: Vec<_> = servers
        .iter()
        .map(|server| {
            let (user, password) = server.login.as_ref().unwrap();
            (server.host.as_str(), user.as_str(), password.expose())
        })
        .collect();
    assert_eq!(
        read,
        [
            ("10.0.0.1", "nats", "0123"),
            ("10.0.0.2", "nats", "0123"),
            ("10.0.0.3", "other", "0123")
        ]
    );
}

#[test]
fn a_file_without_end_is_refused() {
    let error = Config::load(Path::new("/dev/zero"), ANYWHERE).unwrap_err();
    assert!(
        crate::causes::chain(&error).ends_with("it has more than 1 MiB"),
        "{error}"
    );
}

#[test]
fn a_proxy_is_kept_as_its_client_reads_it() {
    let proxy = |url: &str| {
        let config = parse(&with(&format!("kubernetes: {{proxy_url: '{url}'}}")));
        config.map(|config| cluster(&config).kubernetes.proxy_url.unwrap())
    };
    assert_eq!(
        proxy("http://user:hunter2 pw@10.0.0.9:3128").unwrap(),
        "http://user:hunter2%20pw@10.0.0.9:3128/"
    );
    for wrong in ["https://user:hunter2@h", "http://", "user:hunter2@h:3128"] {
        let told = proxy(wrong).unwrap_err().to_string();
        assert!(
            told.contains("kubernetes.proxy_url: must be") && !told.contains("hunter2"),
            "{told}"
        );
    }
}

#[test]
fn a_name_to_expect_needs_authorities_to_expect_it_of() {
    let tls = "nats: {tls: {server_name: nats.service.cf.internal}}";
    assert_eq!(
        mistakes(&with(tls)),
        "nats.tls.ca_file: is missing beside `server_name`; hint: give the CA of the NATS deployment"
    );
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
    let servers = cluster(&config).nats.unwrap().servers;
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
    for (file, message) in [
        ("ca.pem", "holds no certificate in PEM form"),
        ("absent", "cannot read"),
    ] {
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

const PEM: &str = include_str!("../../tests/self_signed.pem");
/// The key of another certificate.
const OTHER_KEY: &str = include_str!("../../tests/other_key.pem");

#[test]
fn files_are_judged_by_what_is_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("good.pem"), PEM).unwrap();
    std::fs::write(path("other_key.pem"), OTHER_KEY).unwrap();
    std::fs::write(path("no_block.pem"), "-----BEGIN FOO-----").unwrap();
    let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(path("junk.pem"), junk).unwrap();
    let told = |ca: &str, cert: &str, key: &str| {
        let text = format!(
            "{{tcp: {{enabled: false}}, routes: {{app_domain: a.test}}, nats: {{servers: [{{host: h}}], \
             tls: {{ca_file: '{}', cert_file: '{}', key_file: '{}'}}}}}}",
            path(ca),
            path(cert),
            path(key)
        );
        let surroundings = Surroundings {
            in_pod: true,
            files: true,
        };
        let parsed = Config::parse(&text, Path::new("f"), surroundings);
        parsed.err().map_or_else(String::new, |it| it.to_string())
    };
    assert_eq!(told("good.pem", "good.pem", "good.pem"), "");
    for (ca, cert, key, expect) in [
        ("junk.pem", "good.pem", "good.pem", "nats.tls.ca_file: "),
        ("no_block.pem", "good.pem", "good.pem", "nats.tls.ca_file: "),
        (
            "good.pem",
            "no_block.pem",
            "good.pem",
            "nats.tls.cert_file: ",
        ),
        (
            "good.pem",
            "good.pem",
            "no_block.pem",
            "nats.tls.key_file: ",
        ),
        ("good.pem", "junk.pem", "good.pem", "nats.tls.cert_file: "),
        (
            "good.pem",
            "good.pem",
            "other_key.pem",
            "nats.tls.key_file: ",
        ),
    ] {
        let told = told(ca, cert, key);
        assert!(
            told.starts_with("1 mistake ") && told.contains(expect),
            "{told}"
        );
    }
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
    let file = file::parse(text).unwrap_or_else(|error| panic!("{error}"));
    let mut reader = read::Reader::new(false);
    let _ = meaning::config(&mut reader, &file.root, true);
    let text = "static_routes: [{backends: [a], health: {url: b}}]";
    let file = file::parse(text).unwrap_or_else(|error| panic!("{error}"));
    let _ = meaning::config(&mut reader, &file.root, true);
    for key in KEYS {
        let asked = key.path.trim_end_matches("[]");
        assert!(reader.asked.contains(asked), "nobody reads `{}`", key.path);
    }
}

#[test]
fn the_lease_is_asked_for_only_where_somebody_says_so_and_its_names_are_checked() {
    let read = |text: &str| parse(&with(text)).map(|config| cluster(&config).leader_election);
    assert_eq!(read("").unwrap(), None);
    assert_eq!(read("leader_election:\n  name: other").unwrap(), None);
    let expect = |name: &str, namespace: &str, identity: Option<&str>| {
        Some(LeaderElectionConfig {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            identity: identity.map(str::to_owned),
        })
    };
    assert_eq!(
        read("leader_election:\n  enabled: true").unwrap(),
        expect("route-sync", "kube-system", None)
    );
    assert_eq!(
        read("leader_election: {enabled: true, name: a.b, namespace: c, identity: vm/1}").unwrap(),
        expect("a.b", "c", Some("vm/1"))
    );
    for wrong in [
        "name: a/b",
        "namespace: a.b",
        "name: A",
        "identity: \"a b\"",
    ] {
        assert!(
            read(&format!("leader_election: {{{wrong}}}")).is_err(),
            "{wrong}"
        );
    }
}
