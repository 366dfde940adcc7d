//! Which names a namespace may ask for.
//!
//! Where the app domain is also the system domain (as a small foundation has it), whoever may label a Service
//! could otherwise take over `api.<domain>` for the whole foundation. A grant gives names to namespaces and to
//! nobody else, and lifts the platform's reservation.

use super::{Code, Finding, Options, listed};
use crate::route::{Hostname, RouterPort, ServiceKey, Uri};

/// Why a namespace may not have a name.
pub(super) struct Refusal {
    code: Code,
    message: String,
    hint: String,
}

/// Says why this namespace may not claim the uri, if so.
pub(super) fn host_refusal(uri: &Uri, namespace: &str, options: &Options) -> Option<Refusal> {
    let mut holders = Vec::new();
    for grant in &options.host_grants {
        if grant
            .hosts
            .iter()
            .any(|host| host_matches(host, uri, options))
        {
            if grant
                .namespaces
                .iter()
                .any(|pattern| namespace_matches(pattern, namespace))
            {
                return None;
            }
            holders.extend(grant.namespaces.iter().map(String::as_str));
        }
    }
    let refuse = |why: String| {
        let hint = format!("an operator can grant it: `policy.hosts` with namespace `{namespace}`");
        Some(Refusal {
            code: Code::HostDenied,
            message: format!("`{uri}` {why}"),
            hint,
        })
    };
    if !holders.is_empty() {
        return refuse(format!("is granted to namespace {} only", listed(holders)));
    }
    if uri.is_wildcard() {
        return refuse("is a wildcard, which needs a grant".to_owned());
    }
    let reserved = options.reserved_hosts.contains(uri.host())
        || options
            .reserved_domains
            .iter()
            .any(|domain| uri.host().is_within(domain));
    if reserved {
        return refuse("belongs to the platform".to_owned());
    }
    None
}

/// Says why this namespace may not claim the port, if so.
pub(super) fn port_refusal(
    port: RouterPort,
    namespace: &str,
    options: &Options,
) -> Option<Refusal> {
    let granting = || {
        options
            .port_grants
            .iter()
            .filter(|grant| grant.ports.contains(port.get()))
    };
    let patterns = || granting().flat_map(|grant| &grant.namespaces);
    if granting().next().is_none()
        || patterns().any(|pattern| namespace_matches(pattern, namespace))
    {
        return None;
    }
    let holders = listed(patterns().map(String::as_str));
    Some(Refusal {
        code: Code::PortDenied,
        message: format!("router port {port} is granted to namespace {holders} only"),
        hint: format!("an operator can grant it: `policy.ports` with namespace `{namespace}`"),
    })
}

impl Refusal {
    pub(super) fn on(self, service: &ServiceKey) -> Finding {
        Finding::on_service(self.code, service, self.message).hint(self.hint)
    }
}

fn namespace_matches(pattern: &str, namespace: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => namespace.starts_with(start),
        None => pattern == namespace,
    }
}

/// `host`, `full.name`, or `*.either`: the last stands for everything below, the wildcard itself included.
fn host_matches(pattern: &str, uri: &Uri, options: &Options) -> bool {
    let (below, name) = match pattern.strip_prefix("*.") {
        Some(name) => (true, name),
        None => (false, pattern),
    };
    let Some(host) = full_name(name, options) else {
        return false;
    };
    if below {
        uri.host().without_domain(&host).is_some() || (uri.is_wildcard() && *uri.host() == host)
    } else {
        !uri.is_wildcard() && *uri.host() == host
    }
}

/// A name that ends in one of the domains is a full one; any other is a host under the app domain.
fn full_name(name: &str, options: &Options) -> Option<Hostname> {
    let host = Hostname::parse(name).ok()?;
    if options.domains.iter().any(|domain| host.is_within(domain)) {
        return Some(host);
    }
    host.below(&options.app_domain).ok()
}
