//! Every metric in one table; values are read when somebody asks.
//!
//! Nothing here is a global: a scrape looks at the reports behind the `watch` channels, at the parts' own
//! counters and at `/proc/self`. Labels come from closed sets alone, so that no Service can grow the number of
//! series.

mod process;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::Uptime;
use crate::desired::Code;
use crate::route::Lane;
use crate::status::propagation::{BOUNDS, Histogram, Propagation, Stage};
use crate::status::{Drain, RouteState, Status};
pub use table::{Counter, Kind, METRICS, Metric};

/// Reads one counter of whatever part counts.
pub type Reading = Box<dyn Fn() -> u64 + Send + Sync>;

/// What is counted, and where the count is read.
#[derive(Default)]
pub struct Counters {
    read: Vec<(Counter, Reading)>,
    propagation: Arc<Propagation>,
}

/// Everything a scrape looks at.
pub struct Metrics {
    status: Status,
    counters: Counters,
}

/// One value with its labels.
type Sample = (Vec<(&'static str, String)>, Value);

/// What a metric says.
#[derive(Debug)]
enum Value {
    One(f64),
    Spread(Histogram),
}

// === impl Counters ===

impl Counters {
    /// Adds one.
    pub fn add(&mut self, counter: Counter, read: impl Fn() -> u64 + Send + Sync + 'static) {
        self.read.push((counter, Box::new(read)));
    }

    /// Where it is noted how long new routes take.
    #[must_use]
    pub fn propagation(&self) -> Arc<Propagation> {
        Arc::clone(&self.propagation)
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.read.iter().map(|(counter, _)| counter))
            .finish()
    }
}

// === impl Metrics ===

impl Metrics {
    /// What a scrape will look at.
    #[must_use]
    pub fn new(status: Status, counters: Counters) -> Self {
        Self { status, counters }
    }

    /// The text of a scrape, in the `OpenMetrics` format.
    #[must_use]
    pub fn scrape(&self) -> String {
        let mut registry = Registry::with_prefix("route_sync");
        registry.register_collector(Box::new(Scrape(self.gather())));
        let mut text = String::new();
        // Writing into a String fails only where an encoder refuses, which is a gap in the scrape.
        if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
            tracing::warn!("metrics not encoded");
        }
        text
    }

    fn gather(&self) -> BTreeMap<&'static str, Vec<Sample>> {
        let mut samples: BTreeMap<&'static str, Vec<Sample>> = BTreeMap::new();
        let mut put = |name, labels: &[(&'static str, &str)], value: f64| {
            let labels = labels
                .iter()
                .map(|(key, value)| (*key, (*value).to_owned()))
                .collect();
            let sample = (labels, Value::One(value));
            samples.entry(name).or_default().push(sample);
        };
        put("build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        put("uptime_seconds", &[], self.status.clock.now().as_secs_f64());
        let stale = self.status.config_is_stale();
        put("config_stale", &[], f64::from(u8::from(stale)));
        for drain in Drain::ALL {
            let drained = self.status.drain() == Some(*drain);
            let label = ("routes", drain.as_str());
            put("drained", &[label], f64::from(u8::from(drained)));
        }
        self.lease(&mut put);
        self.lanes(&mut put);
        self.kubernetes(&mut put);
        for (counter, read) in &self.counters.read {
            put(counter.name(), &[], count(read()));
        }
        process::gather(&mut put);
        samples.insert("propagation_seconds", self.propagation());
        samples
    }

    fn propagation(&self) -> Vec<Sample> {
        let lanes = self.status.lanes();
        let lanes = lanes.into_iter().map(|report| report.lane).collect();
        let measured = self.counters.propagation.measured(&lanes);
        let sample = |(lane, stage, histogram): (Lane, Stage, Histogram)| {
            let (lane, stage) = (lane.to_string(), stage.as_str().to_owned());
            let labels = vec![("lane", lane), ("stage", stage)];
            (labels, Value::Spread(histogram))
        };
        measured.into_iter().map(sample).collect()
    }

    fn lease(&self, put: &mut impl FnMut(&'static str, &[(&'static str, &str)], f64)) {
        let lease = self.status.lease();
        let acts = lease.as_ref().is_none_or(|lease| !lease.role.is_standby());
        put("leader", &[], f64::from(u8::from(acts)));
        let Some(lease) = lease else { return };
        if let Some(generation) = lease.generation {
            put("lease_generation", &[], count(generation));
        }
        if let Some(renewed) = lease.renewed {
            let age = since(self.status.clock.now(), renewed);
            put("lease_seconds_since_renewal", &[], age);
        }
    }

    fn lanes(&self, put: &mut impl FnMut(&'static str, &[(&'static str, &str)], f64)) {
        let now = self.status.clock.now();
        for lane in self.status.lanes() {
            let label = ("lane", lane.lane.as_str());
            for state in RouteState::ALL {
                let routes = lane
                    .routes
                    .values()
                    .filter(|route| route.state == *state)
                    .count();
                put("routes", &[label, ("state", state.as_str())], size(routes));
            }
            put(
                "lane_confirmed",
                &[label],
                f64::from(u8::from(lane.confirmed_once)),
            );
            put(
                "lane_consecutive_failures",
                &[label],
                f64::from(lane.consecutive_failures),
            );
            if let Some(success) = lane.last_success {
                put("lane_seconds_since_success", &[label], since(now, success));
            }
            if let Some(lapses) = lane.lapses_at {
                put("ttl_headroom_seconds", &[label], since(lapses, now));
            }
        }
    }

    fn kubernetes(&self, put: &mut impl FnMut(&'static str, &[(&'static str, &str)], f64)) {
        let now = self.status.clock.now();
        let findings = self.status.findings();
        for code in Code::ALL {
            let found = findings
                .iter()
                .filter(|finding| finding.code == *code)
                .count();
            let labels = [
                ("code", code.as_str()),
                ("severity", code.severity().as_str()),
            ];
            put("findings", &labels, size(found));
        }
        if let Some(snapshot) = self.status.snapshot() {
            put("services", &[], size(snapshot.services.len()));
            put("nodes", &[], size(snapshot.nodes.len()));
        }
        if let Some(desired) = self.status.desired() {
            put(
                "routes_desired",
                &[("lane", Lane::Http.as_str())],
                size(desired.table.http.len()),
            );
            put(
                "routes_desired",
                &[("lane", Lane::Tcp.as_str())],
                size(desired.table.tcp.len()),
            );
            let held = desired.held.as_ref();
            put("guard_tripped", &[], f64::from(u8::from(held.is_some())));
            for lane in [Lane::Http, Lane::Tcp] {
                let routes = held.map_or(0, |held| held.count(lane));
                put(
                    "guard_held_routes",
                    &[("lane", lane.as_str())],
                    size(routes),
                );
            }
        }
        for (resource, source) in &self.status.sources().sources {
            let label = ("resource", *resource);
            put(
                "source_synced",
                &[label],
                f64::from(u8::from(source.synced)),
            );
            put(
                "source_polling",
                &[label],
                f64::from(u8::from(source.mode == "poll")),
            );
            if let Some(heard) = source.last_heard {
                put("source_seconds_since_heard", &[label], since(now, heard));
            }
            let fresh = source.last_heard.unwrap_or_default();
            let label = ("source", *resource);
            put("source_stale_seconds", &[label], since(now, fresh));
        }
    }
}

fn since(now: Uptime, then: Uptime) -> f64 {
    now.saturating_sub(then).as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn count(value: u64) -> f64 {
    value as f64
}

fn size(value: usize) -> f64 {
    count(value as u64)
}

/// The values of one scrape on their way through the encoder, in the order of the table.
#[derive(Debug)]
struct Scrape(BTreeMap<&'static str, Vec<Sample>>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in METRICS {
            let Some(samples) = self.0.get(metric.name) else {
                continue;
            };
            let kind = match metric.kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Counter => MetricType::Counter,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut family = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            for (labels, value) in samples {
                // An empty label set would be written as `{}`.
                if labels.is_empty() {
                    put(&mut family, metric.kind, value)?;
                } else {
                    put(&mut family.encode_family(labels)?, metric.kind, value)?;
                }
            }
        }
        Ok(())
    }
}

fn put(one: &mut MetricEncoder<'_>, kind: Kind, value: &Value) -> fmt::Result {
    match value {
        Value::One(value) if kind == Kind::Counter => {
            one.encode_counter::<NoLabelSet, f64, f64>(value, None)
        }
        Value::One(value) => one.encode_gauge(value),
        Value::Spread(histogram) => {
            // The encoder adds up; its last bound is infinity.
            let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(histogram.buckets).collect();
            one.encode_histogram::<NoLabelSet>(histogram.sum, histogram.count(), &buckets, None)
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
