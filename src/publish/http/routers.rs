//! What the routers told: how often they want to hear of each endpoint.
//!
//! Pure but for the jitter of its retries. Every router answers a greeting and routers may differ (gorouter#43),
//! so that answers are gathered and the shortest interval wins.

use std::collections::BTreeMap;
use std::time::Duration;

use super::wire;
use crate::Uptime;
use crate::retry::Backoff;

/// How long answers to one greeting are gathered; measured 1 ms on loopback.
const GATHER: Duration = Duration::from_secs(1);
/// A router tells of its start before it hears greetings; all are asked that much later, so that those it
/// replaces are forgotten.
const AFTER_START: Duration = Duration::from_secs(2);
/// The next greeting where nobody answered.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// And at most.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Routers remembered at most; large foundations have dozens.
const ROUTERS_MAX: usize = 256;

/// The routers of the foundation, as far as they told of themselves.
#[derive(Debug)]
pub(super) struct Routers {
    default: Duration,
    known: BTreeMap<String, Duration>,
    answers: BTreeMap<String, Duration>,
    greet_at: Option<Uptime>,
    gather_until: Option<Uptime>,
    backoff: Backoff,
}

// === impl Routers ===

impl Routers {
    pub(super) fn new(default: Duration) -> Self {
        Self {
            default,
            known: BTreeMap::new(),
            answers: BTreeMap::new(),
            greet_at: None,
            gather_until: None,
            backoff: Backoff::new(RETRY_FIRST, RETRY_MAX),
        }
    }

    /// A new connection: greet again at once.
    pub(super) fn connected(&mut self, now: Uptime) {
        self.answers.clear();
        self.gather_until = None;
        self.greet_at = Some(now);
        self.backoff.succeed();
    }

    /// No connection: nobody can be greeted.
    pub(super) fn disconnected(&mut self) {
        self.greet_at = None;
        self.gather_until = None;
    }

    /// Whether a greeting must go out now.
    pub(super) fn must_greet(&mut self, now: Uptime) -> bool {
        self.finish_gathering(now);
        let due = self.greet_at.is_some_and(|at| at <= now);
        if due {
            self.greet_at = None;
            self.gather_until = Some(now + GATHER);
        }
        due
    }

    /// A router answered.
    pub(super) fn answered(&mut self, body: &[u8]) {
        let told = wire::router_told(body);
        if self.answers.len() < ROUTERS_MAX {
            self.answers.insert(told.id, told.interval);
        }
    }

    /// The server says that there is nobody to greet.
    pub(super) fn nobody(&mut self, now: Uptime) {
        if self.answers.is_empty() && self.gather_until.take().is_some() {
            self.greet_at = Some(now + self.backoff.fail());
        }
    }

    /// A router started.
    pub(super) fn started(&mut self, body: &[u8], now: Uptime) {
        let told = wire::router_told(body);
        self.greet_at.get_or_insert(now + AFTER_START);
        if self.gather_until.is_some() && self.answers.len() < ROUTERS_MAX {
            // Else the answers that are being gathered would leave it out.
            self.answers.insert(told.id.clone(), told.interval);
        }
        if self.known.len() < ROUTERS_MAX || self.known.contains_key(&told.id) {
            self.known.insert(told.id, told.interval);
        }
    }

    /// The interval that suits all of them.
    pub(super) fn interval(&self) -> Duration {
        self.known.values().min().copied().unwrap_or(self.default)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    /// When [`Self::must_greet`] has something to do.
    pub(super) fn deadline(&self) -> Option<Uptime> {
        self.greet_at.into_iter().chain(self.gather_until).min()
    }

    fn finish_gathering(&mut self, now: Uptime) {
        if self.gather_until.is_none_or(|until| now < until) {
            return;
        }
        self.gather_until = None;
        if self.answers.is_empty() {
            self.greet_at = Some(now + self.backoff.fail());
        } else {
            // Whoever did not answer is gone, and so is its wish.
            self.known = std::mem::take(&mut self.answers);
            self.backoff.succeed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Uptime {
        Duration::from_millis(millis)
    }

    fn answer(id: &str, seconds: u64) -> Vec<u8> {
        format!(r#"{{"id":"{id}","minimumRegisterIntervalInSeconds":{seconds}}}"#).into_bytes()
    }

    #[test]
    fn the_shortest_interval_of_all_answers_wins() {
        let mut routers = Routers::new(Duration::from_secs(20));
        routers.connected(at(0));
        assert!(routers.must_greet(at(0)) && !routers.must_greet(at(0)));
        routers.answered(&answer("a", 20));
        routers.answered(&answer("b", 7));
        assert_eq!(routers.deadline(), Some(at(1000)));
        assert!(!routers.must_greet(at(1000)));
        assert_eq!(routers.interval(), Duration::from_secs(7));
        routers.started(&answer("b", 15), at(2000));
        assert_eq!(routers.interval(), Duration::from_secs(15));
        assert_eq!(routers.count(), 2);
    }

    #[test]
    fn a_router_that_starts_while_answers_are_gathered_is_among_them() {
        let mut routers = Routers::new(Duration::from_secs(20));
        routers.connected(at(0));
        assert!(routers.must_greet(at(0)));
        routers.answered(&answer("a", 20));
        routers.started(&answer("b", 5), at(500));
        assert!(!routers.must_greet(at(1000)));
        assert_eq!(routers.interval(), Duration::from_secs(5));
        assert_eq!(routers.count(), 2);
    }

    #[test]
    fn routers_that_were_replaced_are_forgotten() {
        let mut routers = Routers::new(Duration::from_secs(20));
        routers.started(&answer("old", 5), at(0));
        routers.started(&answer("new", 20), at(0));
        let mut now = at(0);
        // The new one answers each greeting there is; nobody else does.
        for _ in 0..4 {
            now = routers.deadline().unwrap_or(now);
            if routers.must_greet(now) {
                routers.answered(&answer("new", 20));
            }
        }
        assert_eq!(routers.interval(), Duration::from_secs(20));
        assert_eq!((routers.count(), routers.deadline()), (1, None));
    }

    #[test]
    fn where_nobody_answers_the_default_stays_and_greetings_go_on() {
        let mut routers = Routers::new(Duration::from_secs(20));
        routers.connected(at(0));
        let mut now = at(0);
        for _ in 0..20 {
            assert!(routers.must_greet(now));
            routers.nobody(now);
            let next = routers.deadline().unwrap();
            assert!(next > now && next.checked_sub(now).unwrap() <= RETRY_MAX);
            now = next;
        }
        assert!(routers.must_greet(now));
        let silent = now + GATHER;
        assert!(!routers.must_greet(silent) && routers.deadline().unwrap() > silent);
        assert_eq!(routers.interval(), Duration::from_secs(20));
    }
}
