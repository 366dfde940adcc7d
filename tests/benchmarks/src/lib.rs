//! How a figure is told: one line on stdout, its columns apart by tabs, which `tests/bench` lays out as a table.
//!
//! Everything else a benchmark says goes to stderr or carries no mark and is not shown.

pub mod cluster;
pub mod counting;
pub mod foundation;
pub mod lane;
pub mod process;
pub mod registrations;

use std::fmt;
use std::time::Duration;

/// What a line with a figure begins with; other lines are not the table's.
const MARK: &str = "figure";

/// A measured value with its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    Time(Duration),
    /// Resident memory, in KiB, as Linux tells it.
    Memory(u64),
    /// Of one core.
    Percent(f64),
    Count(u64),
}

/// Tells a figure that may be at most `expected`.
pub fn expect(what: &str, measured: Value, expected: Value) {
    let verdict = if measured.number() <= expected.number() {
        "yes"
    } else {
        "NO"
    };
    println!("{MARK}\t{what}\t{measured}\t≤ {expected}\t{verdict}");
}

/// Tells a figure that nothing is expected of.
pub fn tell(what: &str, measured: Value) {
    println!("{MARK}\t{what}\t{measured}\t\t");
}

/// Tells why there is no figure.
pub fn not_measured(what: &str, why: &str) {
    println!("{MARK}\t{what}\tnot measured: {why}\t\t");
}

/// Median and 99th percentile, each by the nearest rank.
pub fn quantiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    assert!(!times.is_empty(), "a quantile of nothing");
    times.sort();
    let rank = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
    (rank(50), rank(99))
}

// === impl Value ===

impl Value {
    #[expect(clippy::cast_precision_loss, reason = "figures are far below 2^52")]
    fn number(self) -> f64 {
        match self {
            Self::Time(time) => time.as_secs_f64(),
            Self::Memory(kib) => kib as f64,
            Self::Percent(percent) => percent,
            Self::Count(count) => count as f64,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) if time.as_millis() >= 1000 => {
                write!(f, "{:.2} s", time.as_secs_f64())
            }
            Self::Time(time) => write!(f, "{:.1} ms", time.as_secs_f64() * 1e3),
            Self::Memory(kib) => {
                let tenths = kib * 10 / 1024;
                write!(f, "{}.{} MiB", tenths / 10, tenths % 10)
            }
            Self::Percent(percent) => write!(f, "{percent:.2} %"),
            Self::Count(count) => f.write_str(&grouped(*count)),
        }
    }
}

/// A whole number with its thousands apart.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_as_people_write_them() {
        let text = |value: Value| value.to_string();
        assert_eq!(text(Value::Time(Duration::from_micros(12_345))), "12.3 ms");
        assert_eq!(text(Value::Time(Duration::from_millis(2_340))), "2.34 s");
        assert_eq!(text(Value::Memory(46_080)), "45.0 MiB");
        assert_eq!(text(Value::Count(1_234_567)), "1,234,567");
        assert_eq!(text(Value::Count(123)), "123");
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let times = (1..=50).map(Duration::from_millis).collect();
        let (median, high) = quantiles(times);
        assert_eq!((median.as_millis(), high.as_millis()), (25, 50));
    }
}
