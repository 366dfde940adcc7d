//! Keeps a Service whose TCP routes change all the time from costing every tenant a HAProxy reload each time.
//!
//! Six changes a minute are let through; from the seventh on the Service's last state stays until the minute
//! has calmed down. Nobody else is harmed: a port that another Service holds meanwhile is not kept from it.
//! A static route is let through at any time: it changes no faster than its health is asked, and what is down must go.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::Uptime;
use crate::desired::{Code, Finding};
use crate::route::{RouterPort, ServiceKey, TcpRoute};

/// Changes of one Service that are let through in [`WINDOW`].
const CHANGES_MAX: usize = 6;
/// The time over which changes are counted.
const WINDOW: Duration = Duration::from_mins(1);

type Routes = BTreeMap<RouterPort, TcpRoute>;

/// What Services wanted lately.
#[derive(Clone, Debug, Default)]
pub struct Flaps(BTreeMap<ServiceKey, Wants>);

#[derive(Clone, Debug, Default)]
struct Wants {
    latest: Routes,
    changes: VecDeque<Uptime>,
    held: Option<Routes>,
}

/// The table with every restless Service at its last state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calmed {
    /// What to publish.
    pub table: Routes,
    /// Who is held.
    pub findings: Vec<Finding>,
    /// When time alone changes the answer.
    pub revisit: Option<Uptime>,
}

// === impl Flaps ===

impl Flaps {
    /// Takes note of what is wanted and says what to publish. A first sight counts as no change: a start must
    /// not look like restlessness.
    pub fn calm(&mut self, table: &Routes, now: Uptime) -> Calmed {
        let mut by_service: BTreeMap<ServiceKey, Routes> = BTreeMap::new();
        let mut calmed = Calmed::default();
        for (port, route) in table {
            if route.service.key.is_static_route() {
                calmed.table.insert(*port, route.clone());
                continue;
            }
            let routes = by_service.entry(route.service.key.clone()).or_default();
            routes.insert(*port, route.clone());
        }
        for (service, wants) in &mut self.0 {
            wants.note(by_service.remove(service).unwrap_or_default(), now);
        }
        for (service, latest) in by_service {
            self.0.insert(
                service,
                Wants {
                    latest,
                    ..Wants::default()
                },
            );
        }
        self.0
            .retain(|_, wants| !wants.latest.is_empty() || !wants.changes.is_empty());

        for wants in self.0.values().filter(|wants| wants.held.is_none()) {
            calmed.table.extend(wants.latest.clone());
        }
        for (service, wants) in &self.0 {
            let Some(held) = &wants.held else { continue };
            for (port, route) in held {
                calmed.table.entry(*port).or_insert_with(|| route.clone());
            }
            let message = format!(
                "its TCP routes changed more than {CHANGES_MAX} times in a minute; its last state stays"
            );
            calmed
                .findings
                .push(Finding::on_service(Code::Flapping, service, message));
            let calm_at = wants.changes[wants.changes.len() - 1 - CHANGES_MAX] + WINDOW;
            calmed.revisit = Some(calmed.revisit.map_or(calm_at, |other| other.min(calm_at)));
        }
        calmed
    }
}

// === impl Wants ===

impl Wants {
    fn note(&mut self, wanted: Routes, now: Uptime) {
        let before = std::mem::replace(&mut self.latest, wanted);
        if before != self.latest {
            self.changes.push_back(now);
            // One more than is let through tells all there is to know.
            if self.changes.len() > CHANGES_MAX + 1 {
                self.changes.pop_front();
            }
        }
        while self.changes.front().is_some_and(|at| *at + WINDOW <= now) {
            self.changes.pop_front();
        }
        if self.changes.len() <= CHANGES_MAX {
            self.held = None;
        } else if self.held.is_none() {
            self.held = Some(before);
        }
    }
}
