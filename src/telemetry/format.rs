//! One event, one line.

use std::fmt;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::causes::chain;

/// How an event becomes a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// `2026-01-31T12:00:00.123Z  INFO tcp: registered port=2222`
    Text {
        /// With ANSI colours.
        colour: bool,
    },
    /// lager v3: `{"timestamp","level","source","message","data"}`.
    Lager,
}

/// Every lager line names its component.
const SOURCE: &str = "route-sync";

/// The fields of one event, in their order.
#[derive(Default)]
struct Fields {
    message: String,
    data: Map<String, Value>,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = *event.metadata().level();
        let place = place(event.metadata().target());
        let now = jiff::Timestamp::now();
        match self {
            Self::Text { colour } => text(writer, *colour, now, level, &place, &fields),
            Self::Lager => lager(writer, now, level, &place, fields),
        }
    }
}

/// The part that speaks, with a dot after it: `route_sync::publish::tcp::report` is `tcp.`, and the crate
/// itself is nothing. Inner modules are left out, so that a line keeps its name when code moves.
fn place(target: &str) -> String {
    let below = target.strip_prefix("route_sync").unwrap_or(target);
    let mut parts = below
        .split("::")
        .filter(|part| !part.is_empty() && *part != "publish");
    parts
        .next()
        .map_or_else(String::new, |part| format!("{part}."))
}

fn text(
    mut writer: Writer<'_>,
    colour: bool,
    now: jiff::Timestamp,
    level: Level,
    place: &str,
    fields: &Fields,
) -> fmt::Result {
    let (on, off) = match (colour, level) {
        (false, _) => ("", ""),
        (true, Level::ERROR) => ("\x1b[31m", "\x1b[0m"),
        (true, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
        (true, Level::INFO) => ("\x1b[32m", "\x1b[0m"),
        (true, _) => ("\x1b[2m", "\x1b[0m"),
    };
    write!(writer, "{now:.3} {on}{level:>5}{off} ")?;
    if let Some(place) = place.strip_suffix('.') {
        write!(writer, "{place}: ")?;
    }
    // A line stays a line, whatever a Service is called or a server answers.
    write_one_line(&mut writer, &fields.message)?;
    for (name, value) in &fields.data {
        write!(writer, " {name}=")?;
        match value {
            Value::String(value) if !value.contains([' ', '"', '=']) && !value.is_empty() => {
                write_one_line(&mut writer, value)?;
            }
            other => write!(writer, "{other}")?,
        }
    }
    writeln!(writer)
}

fn write_one_line(writer: &mut Writer<'_>, text: &str) -> fmt::Result {
    for c in text.chars() {
        if c.is_control() {
            write!(writer, "{}", c.escape_default())?;
        } else {
            writer.write_char(c)?;
        }
    }
    Ok(())
}

fn lager(
    mut writer: Writer<'_>,
    now: jiff::Timestamp,
    level: Level,
    place: &str,
    mut fields: Fields,
) -> fmt::Result {
    // lager knows debug, info, error and fatal and no other word. A warning is an error there, and says of
    // itself that it is less.
    let word = match level {
        Level::ERROR => "error",
        Level::WARN => {
            fields.data.insert("severity".to_owned(), "warning".into());
            "error"
        }
        Level::INFO => "info",
        _ => "debug",
    };
    let line = serde_json::json!({
        "timestamp": format!("{now:.9}"),
        "level": word,
        "source": SOURCE,
        "message": format!("{SOURCE}.{place}{}", fields.message),
        "data": fields.data,
    });
    writeln!(writer, "{line}")
}

// === impl Fields ===

impl Fields {
    fn insert(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
        } else {
            self.data.insert(field.name().to_owned(), value);
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value.into());
    }

    /// The whole chain of causes.
    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        self.insert(field, chain(error).into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(line: Line, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(line)
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_lager_line_has_what_lagers_readers_expect() {
        let line = logged(Line::Lager, || {
            tracing::info!(target: "route_sync::publish::tcp::report", service = "web/db", backends = 3, "registered");
        });
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "info");
        assert_eq!(value["source"], "route-sync");
        assert_eq!(value["message"], "route-sync.tcp.registered");
        assert_eq!(
            value["data"],
            serde_json::json!({"service": "web/db", "backends": 3})
        );
        let stamp = value["timestamp"].as_str().unwrap();
        assert_eq!((stamp.len(), stamp.ends_with('Z')), (30, true), "{stamp}");
    }

    #[test]
    fn a_warning_is_an_error_that_says_it_is_less() {
        let line = logged(Line::Lager, || tracing::warn!("x"));
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&value["level"], &value["data"]["severity"]),
            (&"error".into(), &"warning".into())
        );
    }

    #[test]
    fn an_error_field_tells_the_whole_chain() {
        let inner = io::Error::other("refused");
        let error = crate::config::ConfigError::Unreadable {
            path: "f".into(),
            source: inner,
        };
        let line = logged(Line::Lager, || {
            tracing::error!(error = &error as &dyn std::error::Error, "x");
        });
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            value["data"]["error"],
            "cannot read the configuration `f`: refused"
        );
    }

    #[test]
    fn a_text_line_stays_one_line() {
        let line = logged(Line::Text { colour: false }, || {
            tracing::info!(target: "route_sync::x", a = "one\ntwo", b = "c d", "said\r\nso");
        });
        assert_eq!(line.lines().count(), 1);
        assert!(
            line.ends_with(" INFO x: said\\r\\nso a=one\\ntwo b=\"c d\"\n"),
            "{line}"
        );
    }
}
