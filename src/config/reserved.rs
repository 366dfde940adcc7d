//! Names that no label may claim: Cloud Foundry's own, and every host this configuration speaks to.
//!
//! Where the app domain is also the system domain, any tenant who may label a Service could otherwise join
//! the pool of `api.<domain>` and read every developer's token.

use std::collections::BTreeSet;

use crate::route::Hostname;

/// Platform hosts below each domain, and whether everything below them is theirs too, as `*.uaa` and
/// `*.login` are for identity zones.
const PLATFORM_HOSTS: &[(&str, bool)] = &[
    ("api", false),
    ("uaa", true),
    ("login", true),
    ("doppler", true),
    ("log-cache", true),
    ("log-stream", true),
    ("loggregator", false),
    ("blobstore", false),
    ("credhub", false),
    ("ssh", false),
];

/// Labels that stand in front of a system domain in the URL of the routing API or the UAA.
const SYSTEM_LABELS: &[&str] = &["api.", "uaa.", "login."];

/// Reserved hosts, and reserved domains with everything below them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reserved {
    pub(super) hosts: Vec<Hostname>,
    pub(super) domains: Vec<Hostname>,
}

/// From the domains of routes and every host that the configuration names.
pub(super) fn reserved(route_domains: &[Hostname], named: &[Hostname]) -> Reserved {
    let mut hosts: BTreeSet<Hostname> = named.iter().cloned().collect();
    let mut domains = BTreeSet::new();
    for domain in route_domains {
        for (label, whole) in PLATFORM_HOSTS {
            // Only a domain of nearly 253 characters has no room for the label, and then no route has either.
            let Some(host) = Hostname::parse(label)
                .ok()
                .and_then(|host| host.below(domain).ok())
            else {
                continue;
            };
            if *whole {
                domains.insert(host.clone());
            }
            hosts.insert(host);
        }
        // A system domain equal to the app domain cannot be reserved whole: no route would be left.
        let below = |system: &Hostname| system.is_within(domain) && system != domain;
        domains.extend(named.iter().filter_map(system_domain).filter(below));
    }
    Reserved {
        hosts: hosts.into_iter().collect(),
        domains: domains.into_iter().collect(),
    }
}

fn system_domain(host: &Hostname) -> Option<Hostname> {
    let rest = SYSTEM_LABELS
        .iter()
        .find_map(|label| host.as_str().strip_prefix(label))?;
    Hostname::parse(rest).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<Hostname> {
        texts
            .iter()
            .map(|text| Hostname::parse(text).unwrap())
            .collect()
    }

    fn holds(list: &[Hostname], text: &str) -> bool {
        list.contains(&Hostname::parse(text).unwrap())
    }

    #[test]
    fn the_platforms_hosts_are_reserved_below_each_domain() {
        let found = reserved(&names(&["apps.test", "other.test"]), &[]);
        for host in [
            "api.apps.test",
            "ssh.apps.test",
            "uaa.apps.test",
            "api.other.test",
        ] {
            assert!(holds(&found.hosts, host), "{host}");
        }
        assert!(holds(&found.domains, "uaa.apps.test") && !holds(&found.domains, "api.apps.test"));
    }

    #[test]
    fn a_system_domain_below_the_app_domain_is_reserved_whole() {
        let found = reserved(&names(&["cf.test"]), &names(&["api.sys.cf.test"]));
        assert!(holds(&found.domains, "sys.cf.test"));
        assert!(holds(&found.hosts, "api.sys.cf.test"));
    }

    #[test]
    fn an_app_domain_that_is_the_system_domain_stays_usable() {
        let found = reserved(&names(&["cf.test"]), &names(&["api.cf.test"]));
        assert!(!holds(&found.domains, "cf.test"));
    }

    #[test]
    fn a_system_domain_beside_or_above_the_app_domain_changes_nothing() {
        for api in ["api.sys.test", "api.test"] {
            let found = reserved(&names(&["apps.test"]), &names(&[api]));
            assert!(
                found
                    .domains
                    .iter()
                    .all(|d| d.as_str().ends_with(".apps.test")),
                "{api}"
            );
        }
    }
}
