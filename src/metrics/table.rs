//! The table: one row is one metric is one row of the documentation.

/// One metric, without the prefix `route_sync_`.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name; a counter's also carries `_total` on the wire.
    pub name: &'static str,
    /// It only grows.
    pub counts: bool,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric {
        name,
        counts: false,
        labels,
        help,
    }
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric {
        name,
        counts: true,
        labels: &[],
        help,
    }
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
        "Requests to the routing API that failed",
    ),
    counter("tcp_rows_created", "TCP rows created"),
    counter("tcp_rows_refreshed", "TCP rows refreshed"),
    counter("tcp_rows_deleted", "TCP rows deleted"),
    counter("tokens_fetched", "Tokens fetched from the UAA"),
    counter("nats_messages", "Messages published"),
    counter("nats_registrations", "Registrations published"),
    counter("nats_withdrawals", "Withdrawals published"),
    counter("nats_reconnects", "Connections to NATS"),
    counter(
        "nats_barriers_missed",
        "Echoes of our own that did not come back in time",
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
        /// What the parts count themselves.
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
    /// Requests to the routing API.
    RoutingApiRequests = "routing_api_requests",
    /// Those that failed.
    RoutingApiFailures = "routing_api_failures",
    /// TCP rows created.
    RowsCreated = "tcp_rows_created",
    /// TCP rows refreshed.
    RowsRefreshed = "tcp_rows_refreshed",
    /// TCP rows deleted.
    RowsDeleted = "tcp_rows_deleted",
    /// Tokens fetched.
    TokensFetched = "tokens_fetched",
    /// NATS messages.
    NatsMessages = "nats_messages",
    /// Registrations.
    NatsRegistrations = "nats_registrations",
    /// Withdrawals.
    NatsWithdrawals = "nats_withdrawals",
    /// Connections.
    NatsReconnects = "nats_reconnects",
    /// Barriers missed.
    BarriersMissed = "nats_barriers_missed",
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
            assert!(row.is_some_and(|metric| metric.counts), "{counter:?}");
        }
    }
}
