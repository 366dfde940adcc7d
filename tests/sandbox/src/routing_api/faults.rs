//! What a test may do to the API and see of it: failures by endpoint, and the latest requests.

use std::collections::VecDeque;
use std::sync::Mutex;

use serde_json::Value;
use tokio::time::Instant;

use crate::listen::Failure;

/// As many requests are remembered; a cold start of thousands of routes in batches fits.
const RECORDED_MAX: usize = 16_384;

/// One of the endpoints played here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    RouterGroups,
    List,
    Create,
    Delete,
    Events,
}

/// A request as it came in, before any fault.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub method: String,
    /// Path and query.
    pub path: String,
    /// `None` when it is not JSON (or empty).
    pub body: Option<Value>,
    pub when: Instant,
}

#[derive(Default)]
pub(super) struct Faults {
    rules: Mutex<Vec<Rule>>,
    recorded: Mutex<VecDeque<Recorded>>,
}

struct Rule {
    /// `None`: every endpoint.
    endpoint: Option<Endpoint>,
    failure: Failure,
    /// `None`: until withdrawn.
    left: Option<usize>,
}

// === impl Endpoint ===

impl Endpoint {
    pub(super) fn of(path: &str) -> Option<Self> {
        Some(match path.strip_prefix("/routing/v1/")? {
            "router_groups" => Self::RouterGroups,
            "tcp_routes" => Self::List,
            "tcp_routes/create" => Self::Create,
            "tcp_routes/delete" => Self::Delete,
            "tcp_routes/events" => Self::Events,
            _ => return None,
        })
    }

    pub(super) fn scope(self) -> &'static str {
        match self {
            Self::RouterGroups => "routing.router_groups.read",
            Self::List | Self::Events => "routing.routes.read",
            Self::Create | Self::Delete => "routing.routes.write",
        }
    }
}

// === impl Faults ===

impl Faults {
    /// Replaces the rule of the same endpoint.
    pub(super) fn set(
        &self,
        endpoint: Option<Endpoint>,
        failure: Option<Failure>,
        left: Option<usize>,
    ) {
        let mut rules = self.rules.lock().expect("lock must not be poisoned");
        rules.retain(|rule| rule.endpoint != endpoint);
        rules.extend(failure.map(|failure| Rule {
            endpoint,
            failure,
            left,
        }));
    }

    pub(super) fn failure(&self, endpoint: Option<Endpoint>) -> Option<Failure> {
        let mut rules = self.rules.lock().expect("lock must not be poisoned");
        let applies = |rule: &Rule| rule.endpoint.is_none() || rule.endpoint == endpoint;
        let at = rules.iter().position(applies)?;
        let failure = rules[at].failure.clone();
        if let Some(left) = &mut rules[at].left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                rules.remove(at);
            }
        }
        Some(failure)
    }

    pub(super) fn record(&self, parts: &http::request::Parts, body: &[u8]) {
        let path = parts.uri.path_and_query().map(ToString::to_string);
        let mut recorded = self.recorded.lock().expect("lock must not be poisoned");
        if recorded.len() == RECORDED_MAX {
            recorded.pop_front();
        }
        recorded.push_back(Recorded {
            method: parts.method.to_string(),
            path: path.unwrap_or_default(),
            body: serde_json::from_slice(body).ok(),
            when: Instant::now(),
        });
    }

    pub(super) fn recorded(&self) -> Vec<Recorded> {
        let recorded = self.recorded.lock().expect("lock must not be poisoned");
        recorded.iter().cloned().collect()
    }

    pub(super) fn forget(&self) {
        self.recorded
            .lock()
            .expect("lock must not be poisoned")
            .clear();
    }
}
