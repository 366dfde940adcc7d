//! How fast rows may come and go. Pure.
//!
//! Each new or removed row is one reload of HAProxy on every tcp-router, 45 ms on a small table and up to 190
//! ms on a large one, strictly one after the other for the whole foundation (measured, 2024-09); what is
//! posted already cannot be overtaken. So little may be under way at any time: single changes go at once, four
//! of them and then one each 250 ms; bulk trickles at 8 rows a second, and yields to single changes.
//! Refreshes cost no reload and are not counted here.

use std::time::Duration;

use crate::Uptime;

/// Changes of single Services that may go at once. As many that turn up together still count as single.
pub(super) const SINGLES_AT_ONCE: u32 = 4;
/// After those, one each.
const SINGLE_EVERY: Duration = Duration::from_millis(250);
/// A change of more rows is bulk beyond these.
pub(super) const SINGLE_ROWS_MAX: usize = 8;
/// More single changes waiting than this are bulk: the last would wait longer than bulk may make it.
pub(super) const SINGLES_WAITING_MAX: usize = 6;
/// Rows of bulk per second.
const BULK_ROWS_PER_SECOND: f64 = 8.0;
/// Rows of bulk that may go at once: half a second's worth, so that no single change queues behind more.
const BULK_AT_ONCE: f64 = 4.0;
/// Single changes put bulk off by two seconds at most, so that it never starves.
const BULK_DEBT_MAX: f64 = 16.0;

/// A bucket of single changes and one of bulk rows.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    singles: f64,
    rows: f64,
    at: Uptime,
}

impl Budget {
    pub(super) fn new(now: Uptime) -> Self {
        Self {
            singles: f64::from(SINGLES_AT_ONCE),
            rows: BULK_AT_ONCE,
            at: now,
        }
    }

    /// Takes one single change of so many rows.
    pub(super) fn single(&mut self, rows: usize, now: Uptime) -> bool {
        self.refill(now);
        if self.singles < 1.0 {
            return false;
        }
        self.singles -= 1.0;
        let rows = f64::from(u32::try_from(rows).unwrap_or(u32::MAX));
        self.rows = (self.rows - rows).max(-BULK_DEBT_MAX);
        true
    }

    /// Takes one row of bulk.
    pub(super) fn bulk(&mut self, now: Uptime) -> bool {
        self.refill(now);
        if self.rows < 1.0 {
            return false;
        }
        self.rows -= 1.0;
        true
    }

    /// When the next single change may go.
    pub(super) fn single_at(&self) -> Uptime {
        self.at + SINGLE_EVERY.mul_f64((1.0 - self.singles).max(0.0))
    }

    /// When the next row of bulk may go.
    pub(super) fn bulk_at(&self) -> Uptime {
        self.at + Duration::from_secs_f64((1.0 - self.rows).max(0.0) / BULK_ROWS_PER_SECOND)
    }

    fn refill(&mut self, now: Uptime) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let singles = self.singles + passed / SINGLE_EVERY.as_secs_f64();
        self.singles = singles.min(f64::from(SINGLES_AT_ONCE));
        self.rows = (self.rows + passed * BULK_ROWS_PER_SECOND).min(BULK_AT_ONCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Uptime {
        Duration::from_millis(n)
    }

    #[test]
    fn four_single_changes_go_at_once_and_then_one_each_quarter_second() {
        let mut budget = Budget::new(ms(0));
        let gone = |budget: &mut Budget, at| (0..10).filter(|_| budget.single(1, ms(at))).count();
        assert_eq!(gone(&mut budget, 0), 4);
        assert_eq!(gone(&mut budget, 249), 0);
        assert_eq!(budget.single_at(), ms(250));
        assert_eq!(gone(&mut budget, 250), 1);
        assert_eq!(gone(&mut budget, 750), 2);
        assert_eq!(
            gone(&mut budget, 60_000),
            4,
            "what was not used does not pile up"
        );
    }

    #[test]
    fn bulk_goes_at_eight_rows_a_second() {
        let mut budget = Budget::new(ms(0));
        let gone: usize = (0..=10_000)
            .step_by(125)
            .map(|at| (0..500).filter(|_| budget.bulk(ms(at))).count())
            .sum();
        assert!((80..=84).contains(&gone), "{gone}");
    }

    #[test]
    fn a_single_change_goes_at_once_in_the_middle_of_bulk_and_bulk_yields_to_it() {
        let mut budget = Budget::new(ms(0));
        while budget.bulk(ms(0)) {}
        assert!(budget.single(3, ms(10)));
        assert!(
            !budget.bulk(ms(200)),
            "three rows of a single change put bulk off"
        );
        assert!(budget.bulk_at() > ms(450));
        assert!(budget.bulk(budget.bulk_at() + ms(1)));
    }

    #[test]
    fn single_changes_never_starve_bulk() {
        let mut budget = Budget::new(ms(0));
        for _ in 0..4 {
            assert!(budget.single(100, ms(0)));
        }
        assert!(budget.bulk_at() <= ms(2_200));
    }
}
