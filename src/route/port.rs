//! Ports: the one clients dial on the router, the one nodes open, and ranges of either.

use std::fmt;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;

use crate::quote::clipped;

/// A port of the tcp-router, as clients dial it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterPort(NonZeroU16);

/// A port that every node of the cluster opens for one Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePort(NonZeroU16);

/// Ports in the routing API's own notation: `1024-1033,2000`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortRanges(Vec<RangeInclusive<u16>>);

/// Why a text is no list of port ranges: the beginning of the first element that is neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a port nor a range of ports such as `1024-1033`")]
pub struct PortRangesError(String);

macro_rules! port {
    ($name:ident) => {
        impl $name {
            /// The port, unless it is 0.
            #[must_use]
            pub fn new(port: u16) -> Option<Self> {
                NonZeroU16::new(port).map(Self)
            }

            /// The number.
            #[must_use]
            pub fn get(self) -> u16 {
                self.0.get()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

port!(RouterPort);
port!(NodePort);

// === impl PortRanges ===

impl PortRanges {
    /// Parses comma-separated ports and ranges. Blanks around them are tolerated, as an operator's file may
    /// hold them; the routing API itself sends none.
    ///
    /// # Errors
    /// Names the first element that is neither.
    pub fn parse(text: &str) -> Result<Self, PortRangesError> {
        let element = |part: &str| {
            let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
            let range = match part.split_once('-') {
                Some((first, last)) => port(first).zip(port(last)).map(|(a, b)| a..=b),
                None => port(part).map(|only| only..=only),
            };
            range
                .filter(|range| !range.is_empty())
                .ok_or_else(|| PortRangesError(clipped(part.trim()).into_owned()))
        };
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        text.split(',')
            .map(element)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The same without one port.
    #[must_use]
    pub fn without(&self, port: u16) -> Self {
        let split = |range: &RangeInclusive<u16>| {
            let (first, last) = (*range.start(), *range.end());
            if !range.contains(&port) {
                return vec![first..=last];
            }
            // Ports begin at 1, so that there is one below the first of any range.
            let below = RangeInclusive::new(first, port - 1);
            let above = RangeInclusive::new(port.saturating_add(1), last);
            let left = |part: &RangeInclusive<u16>| !part.is_empty() && !part.contains(&port);
            [below, above].into_iter().filter(left).collect()
        };
        Self(self.0.iter().flat_map(split).collect())
    }

    /// Whether the port lies in one of the ranges.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// Whether there is no range at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for PortRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if range.start() == range.end() {
                write!(f, "{comma}{}", range.start())?;
            } else {
                write!(f, "{comma}{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_and_print_in_the_routing_apis_notation() {
        let ranges = PortRanges::parse("1024-1033,2000").unwrap();
        assert_eq!(ranges.to_string(), "1024-1033,2000");
        assert!(ranges.contains(1024) && ranges.contains(1033) && ranges.contains(2000));
        assert!(!ranges.contains(1034) && !ranges.contains(1999));
        assert!(PortRanges::parse("").unwrap().is_empty());
    }

    #[test]
    fn a_bad_element_is_quoted_in_part() {
        let error = PortRanges::parse(&"x".repeat(100_000)).unwrap_err();
        assert!(error.to_string().chars().count() < 200);
    }

    #[test]
    fn a_port_is_taken_out_wherever_it_lies() {
        let without = |text: &str, port| {
            let ranges = PortRanges::parse(text).unwrap();
            ranges.without(port).to_string()
        };
        assert_eq!(without("1-9,20", 5), "1-4,6-9,20");
        assert_eq!(without("1-9,20", 1), "2-9,20");
        assert_eq!(without("1-9,20", 20), "1-9");
        assert_eq!(without("1-9,20", 10), "1-9,20");
        assert_eq!(without("65534-65535", 65535), "65534");
        assert_eq!(without("65535", 65535), "");
    }

    #[test]
    fn the_first_bad_element_is_named() {
        for (text, bad) in [
            ("1,x", "x"),
            ("2-1", "2-1"),
            ("70000", "70000"),
            ("0", "0"),
            ("1,", ""),
        ] {
            assert_eq!(
                PortRanges::parse(text),
                Err(PortRangesError(bad.to_owned())),
                "{text}"
            );
        }
    }
}
