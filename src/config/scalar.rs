//! What one text means: durations, booleans, URLs, addresses. No message quotes a text that may be a secret.

use std::time::Duration;

use super::Secret;
use crate::route::Hostname;

/// The port of NATS where none is given.
const NATS_PORT: u16 = 4222;

/// A NATS server as one text may give it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NatsAddress {
    pub(super) host: String,
    /// Whether the text itself named the port.
    pub(super) explicit_port: Option<u16>,
    /// Credentials lifted out of a URL.
    pub(super) login: Option<(String, Secret)>,
    /// `tls://`.
    pub(super) tls: bool,
}

impl NatsAddress {
    pub(super) fn port(&self) -> u16 {
        self.explicit_port.unwrap_or(NATS_PORT)
    }
}

/// `30s`, `5m`, `2h`, `500ms`, or a number of seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{}` is no duration such as `30s` or `5m`", clip(text));
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs);
    match unit.trim() {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        _ => None,
    }
    .ok_or_else(wrong)
}

/// YAML 1.1's booleans, as the original's parser took them.
pub(super) fn flag(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" => Ok(true),
        "false" | "no" | "off" | "n" => Ok(false),
        _ => Err(format!("`{}` is neither `true` nor `false`", clip(text))),
    }
}

/// A base URL without its trailing slash.
pub(super) fn base_url(text: &str) -> Result<String, String> {
    let url = self::url(text)?;
    if url.query().is_some() {
        return Err("must not hold a query".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// A URL with path and query.
pub(super) fn url(text: &str) -> Result<reqwest::Url, String> {
    let no_scheme = || "must start with `https://` (or `http://`)".to_owned();
    if !text.contains("://") {
        return Err(no_scheme());
    }
    // What cannot be parsed is not quoted: it may hold credentials.
    let url: reqwest::Url = text
        .parse()
        .map_err(|error| format!("is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(no_scheme());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold credentials".to_owned());
    }
    if url.fragment().is_some() {
        return Err("must not hold a fragment".to_owned());
    }
    Ok(url)
}

/// The host of a base URL that has been checked.
pub(super) fn url_host(url: &str) -> Option<Hostname> {
    host_name(reqwest::Url::parse(url).ok()?.host_str()?)
}

/// A host that is a name and no address.
pub(super) fn host_name(host: &str) -> Option<Hostname> {
    let is_address = host
        .trim_matches(['[', ']'])
        .parse::<std::net::IpAddr>()
        .is_ok();
    Hostname::parse(host).ok().filter(|_| !is_address)
}

/// `host`, `host:port`, `[v6]:port`, or a `nats://` or `tls://` URL with credentials.
pub(super) fn nats_address(text: &str) -> Result<NatsAddress, String> {
    let (tls, rest) = match text.split_once("://") {
        Some(("nats", rest)) => (false, rest),
        Some(("tls", rest)) => (true, rest),
        Some(_) => return Err("must be `host:port` or start with `nats://` or `tls://`".to_owned()),
        None => (false, text),
    };
    let (userinfo, authority) = match rest.trim_end_matches('/').rsplit_once('@') {
        Some((userinfo, authority)) => (Some(userinfo), authority),
        None => (None, rest.trim_end_matches('/')),
    };
    let (host, port) = split_port(authority)?;
    let named = host.parse::<std::net::IpAddr>().is_ok() || Hostname::parse(host).is_ok();
    if !named {
        return Err(
            "names no host: a name, an IPv4 address, or an IPv6 address in brackets".to_owned(),
        );
    }
    let login = match userinfo.map(|text| text.split_once(':')) {
        None => None,
        Some(Some((user, password))) if !user.is_empty() && !password.is_empty() => Some((
            percent_decoded(user)?,
            Secret::new(percent_decoded(password)?),
        )),
        Some(_) => return Err("must hold `user:password` before the `@`".to_owned()),
    };
    Ok(NatsAddress {
        host: host.to_owned(),
        explicit_port: port,
        login,
        tls,
    })
}

fn split_port(authority: &str) -> Result<(&str, Option<u16>), String> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, tail) = rest.split_once(']').ok_or("lacks the closing `]`")?;
        (host, tail.strip_prefix(':'))
    } else if authority.matches(':').count() > 1 {
        // A bare IPv6 address, which cannot carry a port.
        (authority, None)
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let port = port.map(|text| port_number(text).map_err(|_| "has no port number after the `:`"));
    Ok((host, port.transpose()?))
}

/// 1 to 65535.
pub(super) fn port_number(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("`{}` is no port number", clip(text)))
}

fn percent_decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = hex.and_then(|two| u8::from_str_radix(two, 16).ok());
        bytes.push(
            byte.ok_or(
                "has a `%` in its credentials that starts no percent-encoding; write `%25`",
            )?,
        );
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| "has credentials that are no UTF-8".to_owned())
}

/// Enough of a text to recognise it.
pub(super) fn clip(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 60;
    let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let dots = if shown.len() < text.len() { "…" } else { "" };
    format!("{}{dots}", shown.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_or_are_seconds() {
        for (text, seconds) in [("30s", 30), ("30", 30), ("5m", 300), ("2h", 7200)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for text in [
            "",
            "s",
            "5 days",
            "-1s",
            "1.5s",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_nats_host_may_be_an_address_or_a_url() {
        let check = |text: &str, host: &str, port: u16, login: Option<(&str, &str)>| {
            let address = nats_address(text).unwrap();
            assert_eq!(
                (address.host.as_str(), address.port()),
                (host, port),
                "{text}"
            );
            let found = address
                .login
                .as_ref()
                .map(|(user, word)| (user.as_str(), word.expose()));
            assert_eq!(found, login, "{text}");
        };
        check("10.0.0.1", "10.0.0.1", 4222, None);
        check("10.0.0.1:4223", "10.0.0.1", 4223, None);
        check(
            "nats.service.cf.internal:4222",
            "nats.service.cf.internal",
            4222,
            None,
        );
        check("[fd00::1]:4223", "fd00::1", 4223, None);
        check("fd00::1", "fd00::1", 4222, None);
        check(
            "nats://n:p@10.0.0.1:4222/",
            "10.0.0.1",
            4222,
            Some(("n", "p")),
        );
        check("tls://n:a%2Fb%25@h", "h", 4222, Some(("n", "a/b%")));
        check("nats://n:a@b@h", "h", 4222, Some(("n", "a@b")));
        for text in [
            "",
            "http://h",
            "h:x",
            "h:0",
            "h:70000",
            "nats://n@h",
            "nats://n:%zz@h",
            "a b",
            "[fd00::1",
        ] {
            assert!(nats_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_base_url_is_http_without_credentials_and_without_trailing_slash() {
        assert_eq!(
            base_url("https://api.sys.test/").unwrap(),
            "https://api.sys.test"
        );
        assert_eq!(
            base_url("http://10.0.0.1:3000/base//").unwrap(),
            "http://10.0.0.1:3000/base"
        );
        for text in [
            "api.sys.test",
            "ftp://x",
            "https://u:hunter2@x",
            "https://x?a",
            "",
        ] {
            let error = base_url(text).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        for text in ["api.sys.test", "api.sys.test:8443", "ftp://x", "https:/x"] {
            let error = base_url(text).unwrap_err();
            assert_eq!(error, "must start with `https://` (or `http://`)", "{text}");
        }
    }
}
