//! Every wait of this module in one place, so that tests can shorten them.

use std::time::Duration;

/// How long everything about the apiserver may take. The defaults are for production.
#[derive(Clone, Debug)]
pub struct Timing {
    /// For a connection: 5 s, enough for one lost SYN.
    pub connect_timeout: Duration,
    /// Until the response header: 10 s. The apiserver answers a watch's header at once.
    pub header_timeout: Duration,
    /// For one page of a list: 60 s, the apiserver's own bound for a request.
    pub list_timeout: Duration,
    /// For one GET: 5 s.
    pub get_timeout: Duration,
    /// What a watch asks for as `timeoutSeconds`, at least: 60 s. It bounds how long a dead peer goes
    /// unnoticed; the price is one cheap request a minute.
    pub watch_timeout: Duration,
    /// Spread upon it, so that many watches do not end together: 15 s.
    pub watch_jitter: Duration,
    /// How much longer than asked a watch may last before the connection counts as dead: 15 s.
    pub watch_grace: Duration,
    /// A watch that ends sooner and brought nothing has failed: 1 s.
    pub brief_watch: Duration,
    /// A watch that lives as long is healthy, even if nothing happened: 10 s.
    pub healthy_watch: Duration,
    /// No event, bookmark or list for so long: list anew. 3 min, three times the bookmarks' usual distance.
    pub silence_max: Duration,
    /// How long after `watch` was refused it is tried again: 3 min.
    pub watch_retry: Duration,
    /// How long a watch may lag behind a list before it has missed something: 5 s.
    pub settle: Duration,
    /// The first wait after a failure is at most: 500 ms.
    pub backoff_first: Duration,
    /// No wait after a failure is longer: 30 s.
    pub backoff_max: Duration,
    /// How long the first snapshot waits for what is not required: 2 s. Routes of Services with local traffic
    /// would else be announced on every node for a moment.
    pub optional_wait: Duration,
    /// A source that was not heard of for so long is a finding: 5 min.
    pub stale_after: Duration,
    /// How long the last Nodes are kept where a list suddenly shows none: 10 min, two lists more.
    pub nodeless_after: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(10),
            list_timeout: Duration::from_mins(1),
            get_timeout: Duration::from_secs(5),
            watch_timeout: Duration::from_mins(1),
            watch_jitter: Duration::from_secs(15),
            watch_grace: Duration::from_secs(15),
            brief_watch: Duration::from_secs(1),
            healthy_watch: Duration::from_secs(10),
            silence_max: Duration::from_mins(3),
            watch_retry: Duration::from_mins(3),
            settle: Duration::from_secs(5),
            backoff_first: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            optional_wait: Duration::from_secs(2),
            stale_after: Duration::from_mins(5),
            nodeless_after: Duration::from_mins(10),
        }
    }
}

impl Timing {
    /// The longest `timeoutSeconds` a watch asks for.
    #[must_use]
    pub fn watch_timeout_max(&self) -> Duration {
        self.watch_timeout + self.watch_jitter
    }
}
