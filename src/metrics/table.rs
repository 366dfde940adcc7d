//! The table: one row is one metric is one row of the documentation.

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It rises and falls.
    Gauge,
    /// It only grows.
    Counter,
    /// It counts what fell into each of some ranges.
    Histogram,
}

/// One metric, without the prefix `route_sync_`.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name; a counter's also carries `_total` on the wire.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric {
        name,
        kind: Kind::Gauge,
        labels,
        help,
    }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Histogram,
        labels,
        help,
    }
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        labels: &[],
        help,
    }
}

const fn level(name: &'static str, help: &'static str) -> Metric {
    gauge(name, &[], help)
}

/// Every metric, in the order of the documentation.
pub const METRICS: &[Metric] = &[
    gauge("build_info", &["version"], "Always 1"),
    gauge("uptime_seconds", &[], "Seconds since the process started"),
    gauge(
        "routes",
        &["lane", "state"],
        "Routes as their lane sees them: pending, live, held, withdrawing",
    ),
    gauge("routes_desired", &["lane"], "Routes that should live"),
    gauge(
        "guard_tripped",
        &[],
        "Whether so many routes would go at once that their removal is held",
    ),
    gauge(
        "guard_held_routes",
        &["lane"],
        "Routes that nothing asks for and whose removal is held",
    ),
    gauge(
        "config_stale",
        &[],
        "Whether something of the configuration file is not in use",
    ),
    gauge(
        "drained",
        &["routes"],
        "Whether an operator drained the process: keep, unregister",
    ),
    gauge(
        "leader",
        &[],
        "Whether this instance acts: 1 also where it is the only one",
    ),
    gauge("lease_generation", &[], "How often the Lease changed hands"),
    gauge(
        "lease_seconds_since_renewal",
        &[],
        "Seconds since the last confirmed renewal of the Lease, where this instance holds it",
    ),
    gauge("findings", &["code", "severity"], "Findings of each code"),
    gauge("services", &[], "Labelled Services"),
    gauge("nodes", &[], "Nodes"),
    gauge(
        "lane_confirmed",
        &["lane"],
        "Whether the lane was confirmed once",
    ),
    gauge(
        "lane_consecutive_failures",
        &["lane"],
        "Failed attempts since the last confirmed one",
    ),
    gauge(
        "lane_seconds_since_success",
        &["lane"],
        "Seconds since the other side last confirmed",
    ),
    gauge(
        "ttl_headroom_seconds",
        &["lane"],
        "Seconds until the first registered entry would lapse if everything stopped now; absent where none can",
    ),
    histogram(
        "propagation_seconds",
        &["lane", "stage"],
        "From the view of the cluster that first held a route until it was sent, and until it was confirmed",
    ),
    gauge(
        "source_synced",
        &["resource"],
        "Whether a complete list was had",
    ),
    gauge(
        "source_polling",
        &["resource"],
        "Whether the resource is polled because watching is forbidden",
    ),
    gauge(
        "source_seconds_since_heard",
        &["resource"],
        "Seconds since an event, a bookmark or a list",
    ),
    gauge(
        "source_stale_seconds",
        &["source"],
        "Seconds since the source was last known to be fresh; since the start where it never was",
    ),
    counter("kubernetes_lists", "Complete lists"),
    counter("kubernetes_watch_starts", "Watches started"),
    counter(
        "kubernetes_watch_restarts",
        "Watches restarted after an error or silence",
    ),
    counter(
        "kubernetes_watch_missed",
        "Changes that a list found and a watch had missed",
    ),
    counter("kubernetes_undecodable", "Objects that could not be read"),
    counter("routing_api_requests", "Requests to the routing API"),
    counter(
        "routing_api_failures",
        "Requests to the routing API that did not succeed",
    ),
    counter(
        "routing_api_unauthorized",
        "Tokens that the routing API refused",
    ),
    counter(
        "routing_api_lists",
        "Lists of the routing API's whole table",
    ),
    counter("tcp_rows_added", "TCP rows created"),
    counter("tcp_rows_removed", "TCP rows deleted"),
    counter("tcp_rows_refreshed", "TCP rows refreshed"),
    counter("tcp_rows_refused", "TCP rows that the routing API refused"),
    counter(
        "tcp_rows_duplicate",
        "TCP rows that stood twice in the routing API's table",
    ),
    counter(
        "tcp_rows_drifted",
        "Confirmed TCP rows that a list or an event showed gone",
    ),
    counter(
        "routing_api_events",
        "Events heard from the routing API, those of our own writes included",
    ),
    counter(
        "routing_api_event_streams",
        "Streams of the routing API's events that came to stand",
    ),
    counter(
        "uaa_token_failures",
        "Early renewals of the token that failed",
    ),
    counter(
        "nats_announcements",
        "Registrations sent because something was new or had to be said anew",
    ),
    counter("nats_beats", "Registrations sent as beats"),
    counter(
        "nats_withdrawals",
        "Unregistrations sent, repetitions included",
    ),
    counter("nats_send_failures", "Messages that could not be sent"),
    counter("nats_echoes", "Echoes of our own that came back"),
    counter(
        "nats_echoes_missed",
        "Echoes of our own that did not come back in time",
    ),
    counter("nats_connections", "Connections that came to stand"),
    counter("nats_router_starts", "Routers heard to start"),
    level("nats_connected", "Whether there is a connection now"),
    level(
        "nats_sweep_messages",
        "Messages that one beat of all endpoints takes",
    ),
    level(
        "nats_withdrawals_pending",
        "Withdrawals still being repeated",
    ),
    level("nats_routers", "Routers that told of themselves"),
    level("nats_interval_milliseconds", "Time between two beats"),
    level("nats_echo_microseconds", "How long the last echo took"),
    counter(
        "nats_overheard",
        "Registrations and unregistrations read, our own among them",
    ),
    counter(
        "nats_overheard_dropped",
        "Messages that NATS sent faster than they were read",
    ),
    level(
        "nats_strangers",
        "Endpoints of strangers that are remembered, under each of their uris",
    ),
    counter("log_lines_dropped", "Log lines that nobody read"),
    gauge("process_resident_memory_bytes", &[], "Resident memory"),
    gauge(
        "process_resident_memory_max_bytes",
        &[],
        "Most resident memory so far",
    ),
    counter("process_cpu_seconds", "Processor time"),
    gauge("process_threads", &[], "Threads"),
    gauge("process_open_fds", &[], "Open file descriptors"),
];

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What the parts count themselves; a few are levels that also fall.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name in the table.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

counters! {
    /// Complete lists.
    Lists = "kubernetes_lists",
    /// Watches started.
    WatchStarts = "kubernetes_watch_starts",
    /// Watches restarted.
    WatchRestarts = "kubernetes_watch_restarts",
    /// Changes a watch had missed.
    WatchMissed = "kubernetes_watch_missed",
    /// Objects that could not be read.
    Undecodable = "kubernetes_undecodable",
    /// Requests.
    RoutingApiRequests = "routing_api_requests",
    /// Those that failed.
    RoutingApiFailures = "routing_api_failures",
    /// Tokens refused.
    RoutingApiUnauthorized = "routing_api_unauthorized",
    /// Lists of the whole table.
    RoutingApiLists = "routing_api_lists",
    /// Rows created.
    TcpRowsAdded = "tcp_rows_added",
    /// Rows deleted.
    TcpRowsRemoved = "tcp_rows_removed",
    /// Rows refreshed.
    TcpRowsRefreshed = "tcp_rows_refreshed",
    /// Rows refused.
    TcpRowsRefused = "tcp_rows_refused",
    /// Rows found twice.
    TcpRowsDuplicate = "tcp_rows_duplicate",
    /// Rows lost.
    TcpRowsDrifted = "tcp_rows_drifted",
    /// Events heard.
    RoutingApiEvents = "routing_api_events",
    /// Streams of events.
    RoutingApiEventStreams = "routing_api_event_streams",
    /// Failed early renewals.
    UaaTokenFailures = "uaa_token_failures",
    /// New registrations.
    NatsAnnouncements = "nats_announcements",
    /// Repeated registrations.
    NatsBeats = "nats_beats",
    /// Unregistrations.
    NatsWithdrawals = "nats_withdrawals",
    /// Messages not sent.
    NatsSendFailures = "nats_send_failures",
    /// Echoes that came.
    NatsEchoes = "nats_echoes",
    /// Echoes that did not.
    NatsEchoesMissed = "nats_echoes_missed",
    /// Connections.
    NatsConnections = "nats_connections",
    /// Routers that started.
    NatsRouterStarts = "nats_router_starts",
    /// Connected now.
    NatsConnected = "nats_connected",
    /// Messages of one sweep.
    NatsSweepMessages = "nats_sweep_messages",
    /// Withdrawals pending.
    NatsWithdrawalsPending = "nats_withdrawals_pending",
    /// Routers known.
    NatsRouters = "nats_routers",
    /// The interval.
    NatsIntervalMilliseconds = "nats_interval_milliseconds",
    /// The last echo.
    NatsEchoMicroseconds = "nats_echo_microseconds",
    /// Messages of others.
    NatsOverheard = "nats_overheard",
    /// Those dropped.
    NatsOverheardDropped = "nats_overheard_dropped",
    /// Strangers remembered.
    NatsStrangers = "nats_strangers",
    /// Log lines dropped.
    LogLinesDropped = "log_lines_dropped",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_stands_in_the_table() {
        for counter in Counter::ALL {
            let row = METRICS.iter().find(|metric| metric.name == counter.name());
            assert!(row.is_some(), "{counter:?}");
        }
    }
}
