//! The lane that is to withdraw everything: what is not proven gone yet.

use std::collections::BTreeSet;
use std::time::Duration;

use super::HttpLane;
use crate::Uptime;
use crate::publish::http::wire;
use crate::status::{NO_PROOF, Withdrawn};

/// So often a withdrawal is said before it counts: at 0, 1 and 5 s, because gorouter drops what overflows its queue
/// without a word, and the echo proves the server alone. Later repetitions follow all the same.
const SENDINGS: usize = 3;
/// Names are gathered no oftener than this while messages go out: a large table has many.
const GATHER_APART: Duration = Duration::from_millis(200);

/// How far it is.
#[derive(Debug, Default)]
pub(super) struct Farewell {
    /// When what is left may be gathered again.
    gather_at: Uptime,
    /// Nothing of ours was left. A lost proof or connection makes every withdrawal begin again, and no route is back
    /// for that.
    done: bool,
}

// === impl HttpLane ===

impl HttpLane {
    /// Brings the report up to date.
    pub(super) fn tell_withdrawn(&mut self) {
        let waits = self.puts_drain_off();
        let drained = waits || self.desired.as_ref().is_some_and(|table| table.drained);
        let settled = !waits && self.epoch.is_some() && self.schedule.is_settled();
        let now = self.clock.now();
        if !drained || self.farewell.done || (!settled && now < self.farewell.gather_at) {
            return;
        }
        self.farewell.gather_at = now + GATHER_APART;
        let withdrawn = if waits {
            self.not_withdrawn()
        } else {
            self.withdrawn(settled)
        };
        self.farewell.done = withdrawn.proven;
        let withdrawn = Some(withdrawn);
        self.report.send_if_modified(|report| {
            let changed = report.withdrawn != withdrawn;
            report.withdrawn = withdrawn;
            changed
        });
    }

    /// Without proof everything goes on being announced.
    fn not_withdrawn(&self) -> Withdrawn {
        let announced = self.schedule.table().into_iter();
        let announced = announced.flat_map(|table| table.table.http.keys());
        let withdrawing = self.schedule.withdrawn_less_than(usize::MAX);
        let left = announced.map(ToString::to_string);
        Withdrawn {
            proven: false,
            left: left.chain(withdrawing.map(ToString::to_string)).collect(),
            why: Some(NO_PROOF.to_owned()),
        }
    }

    fn withdrawn(&self, settled: bool) -> Withdrawn {
        let unheard = self.bus.as_ref().is_some_and(|bus| !bus.may_echo());
        let denied = self.denied == Some(wire::UNREGISTER);
        let heard = settled && self.proof.is_complete() && !unheard && !denied;
        let sendings = if heard { SENDINGS } else { usize::MAX };
        let left = self.schedule.withdrawn_less_than(sendings);
        let left: BTreeSet<String> = left.map(ToString::to_string).collect();
        let why = if unheard && self.epoch.is_some() {
            Some("the NATS server denies our inbox, so delivery cannot be proven".to_owned())
        } else if self.epoch.is_none() {
            Some("there is no connection to NATS".to_owned())
        } else {
            None
        };
        Withdrawn {
            proven: heard && left.is_empty(),
            left,
            why,
        }
    }
}
