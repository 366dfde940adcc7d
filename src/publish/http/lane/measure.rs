//! What the lane measures of itself: how long new routes take.

use std::sync::Arc;

use super::HttpLane;
use crate::route::{Lane, Uri};
use crate::status::RouteReport;

impl HttpLane {
    /// A message went out: routes it carried first are on their way.
    pub(super) fn tell_sent(&self, number: u64) {
        let first = self.schedule.announced_by(number);
        let now = self.clock.now();
        self.counters.propagation.sent(Lane::Http, first, now);
    }

    /// Routes are in other states than before.
    pub(super) fn tell_propagation(&self, reports: &[(Arc<Uri>, Option<RouteReport>)]) {
        let told = reports.iter();
        let states = told.filter_map(|(uri, report)| Some((uri, report.as_ref()?.state)));
        let now = self.clock.now();
        self.counters.propagation.reported(Lane::Http, states, now);
    }
}
