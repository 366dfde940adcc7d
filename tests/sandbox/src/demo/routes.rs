//! Routes as the demo speaks of them: a host behind the HTTP router, a port of the TCP router.
//!
//! Pure. What the labels of all Services ask for, what the routers' tables hold, and the words for
//! going from one to the other. Knows labels alone: what annotations or policies make of them is
//! for the controller to say, in its log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

/// One name under which something answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    Http(String),
    Tcp(u16),
}

/// How long each route took to come or go; none: it had not within the deadline.
pub type Times = BTreeMap<Route, Option<Duration>>;

// === impl Route ===

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http(host) => f.write_str(host),
            Self::Tcp(port) => write!(f, "TCP port {port}"),
        }
    }
}

/// The routes that the labels of `services` ask for.
pub fn asked_for(services: &[Value], app_domain: &str) -> BTreeSet<Route> {
    let labels = services
        .iter()
        .map(|service| &service["metadata"]["labels"]);
    labels
        .flat_map(|labels| {
            let host = labels["http-route-sync"]
                .as_str()
                .filter(|host| !host.is_empty());
            let http = host.map(|h| Route::Http(format!("{}.{app_domain}", h.to_lowercase())));
            let port = labels["tcp-route-sync"]
                .as_str()
                .and_then(|port| port.parse().ok());
            let tcp = port.filter(|&port| port != 0).map(Route::Tcp);
            http.into_iter().chain(tcp)
        })
        .collect()
}

/// What a change of a file did, as one line.
pub fn describe(what: &str, registered: &Times, withdrawn: &Times) -> String {
    if registered.is_empty() && withdrawn.is_empty() {
        return format!("{what}: no route changes");
    }
    let names = |times: &Times| {
        times
            .keys()
            .map(Route::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let change = match (withdrawn.is_empty(), registered.is_empty()) {
        (false, false) => format!("{} → {}", names(withdrawn), names(registered)),
        (true, _) => format!("+ {}", names(registered)),
        (false, true) => format!("− {}", names(withdrawn)),
    };
    let mut times = Vec::new();
    for (verb, of) in [("registered", registered), ("withdrawn", withdrawn)] {
        if of.is_empty() {
            continue;
        }
        let late: Vec<_> = of.iter().filter(|(_, time)| time.is_none()).collect();
        match of.values().flatten().max() {
            Some(longest) if late.is_empty() => {
                times.push(format!("{verb} in {:.2} s", longest.as_secs_f64()));
            }
            _ => {
                let late: Vec<_> = late.iter().map(|(route, _)| route.to_string()).collect();
                let late = late.join(", ");
                times.push(format!(
                    "not {verb} yet: {late}; the controller's log says why"
                ));
            }
        }
    }
    format!("{what}: {change} ({})", times.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn times(route: &str, millis: Option<u64>) -> Times {
        Times::from([(
            Route::Http(route.to_owned()),
            millis.map(Duration::from_millis),
        )])
    }

    #[test]
    fn labels_ask_for_hosts_below_the_app_domain_and_for_ports() {
        let service = |labels: Value| json!({"metadata": {"labels": labels}});
        let services = [
            service(json!({"http-route-sync": "Web"})),
            service(json!({"http-route-sync": "", "tcp-route-sync": "70000"})),
            service(json!({"tcp-route-sync": "01024"})),
            service(Value::Null),
        ];
        let asked = asked_for(&services, "apps.example.test");
        let expected = [
            Route::Http("web.apps.example.test".into()),
            Route::Tcp(1024),
        ];
        assert_eq!(asked, BTreeSet::from(expected));
    }

    #[test]
    fn a_renamed_host_reads_as_an_arrow_with_both_times() {
        let line = describe(
            "nginx.yml changed",
            &times("b", Some(30)),
            &times("a", Some(50)),
        );
        assert_eq!(
            line,
            "nginx.yml changed: a → b (registered in 0.03 s, withdrawn in 0.05 s)"
        );
        let line = describe("x.yml removed", &Times::new(), &times("a", Some(50)));
        assert_eq!(line, "x.yml removed: − a (withdrawn in 0.05 s)");
        let line = describe("x.yml added", &times("b", None), &Times::new());
        assert!(line.contains("not registered yet: b"), "{line}");
        assert_eq!(
            describe("x.yml changed", &Times::new(), &Times::new()),
            "x.yml changed: no route changes"
        );
    }
}
