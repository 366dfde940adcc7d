//! Where the process is asked, and by whom.

use super::*;

#[test]
fn metrics_for_other_machines_have_all_their_keys_or_none() {
    assert_eq!(parse(&with("metrics: {}")).unwrap().metrics, None);
    let files = "cert_file: /c, key_file: /k, client_ca_file: /a";
    let config = parse(&with(&format!(
        "metrics: {{listen: '0.0.0.0:9103', {files}}}"
    )))
    .unwrap();
    assert_eq!(config.metrics.unwrap().listen, ([0, 0, 0, 0], 9103).into());
    for off in [
        "listen: 'off'".to_owned(),
        format!("listen: 'off', {files}"),
    ] {
        let config = parse(&with(&format!("metrics: {{{off}}}"))).unwrap();
        assert_eq!(config.metrics, None);
    }
    let hint = "hint: metrics are served over mutual TLS with all keys of `metrics`; without any, on `admin.listen` alone";
    for (given, missing) in [
        (files, "`listen`"),
        (
            "listen: '0.0.0.0:9103'",
            "`cert_file`, `key_file`, `client_ca_file`",
        ),
        (
            "listen: '0.0.0.0:9103', cert_file: /c",
            "`key_file`, `client_ca_file`",
        ),
    ] {
        let expect = format!("metrics: lacks {missing}; {hint}");
        let text = with(&format!("metrics: {{{given}}}"));
        assert_eq!(mistakes(&text), expect);
    }
    let lone = "metrics: {listen: everywhere, cert_file: /c, client_ca_file: /a}";
    let expect = format!(
        "\
metrics.listen: `everywhere` is neither an address such as `0.0.0.0:9103` nor `off`
metrics: lacks `key_file`; {hint}"
    );
    assert_eq!(mistakes(&with(lone)), expect);
}

#[test]
fn two_listeners_have_addresses_that_can_both_be_had() {
    let files = "cert_file: /c, key_file: /k, client_ca_file: /a";
    for (admin, listen, is_taken) in [
        ("127.0.0.1:9101", "127.0.0.1:9101", true),
        ("127.0.0.1:9101", "127.0.0.1:9103", false),
        ("127.0.0.1:9101", "127.0.0.2:9101", false),
        ("127.0.0.1:9101", "0.0.0.0:9101", true),
        ("127.0.0.1:9101", "[::]:9101", true),
        ("127.0.0.1:9101", "[::1]:9101", false),
        ("127.0.0.1:9101", "[::ffff:127.0.0.1]:9101", true),
        ("127.0.0.1:9101", "[::ffff:0.0.0.0]:9101", true),
        ("0.0.0.0:9101", "[::1]:9101", false),
        ("0.0.0.0:9101", "[::]:9101", true),
        ("[::]:9101", "127.0.0.1:9101", true),
        ("[::1]:9101", "[::]:9101", true),
        ("[::1]:9101", "[::1]:9101", true),
        ("127.0.0.1:0", "127.0.0.1:0", false),
        ("off", "127.0.0.1:9101", false),
    ] {
        let text =
            format!("admin: {{listen: '{admin}'}}\nmetrics: {{listen: '{listen}', {files}}}");
        let expect = format!(
            "metrics.listen: `{listen}` is taken by `admin.listen`, `{admin}`; hint: give another port"
        );
        let expect = if is_taken { expect } else { String::new() };
        assert_eq!(mistakes(&with(&text)), expect, "{admin} {listen}");
    }
}
