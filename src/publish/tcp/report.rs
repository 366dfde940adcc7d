//! What the lane says of itself: one log line per change, one summary once a burst of changes is done, and the
//! report that everyone reads.

use std::collections::{BTreeMap, BTreeSet};

use super::state::State;
use crate::Uptime;
use crate::desired::{Code, Finding, Subject};
use crate::plan::{Observed, Owned, TcpRow};
use crate::route::{Lane, RouterPort, ServiceKey};
use crate::status::{LaneReport, RouteReport, RouteState};

/// What was told already, so that it is told once.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) last_attempt: Option<Uptime>,
    last_success: Option<Uptime>,
    failures: u32,
    last_error: Option<String>,
    confirmed_once: bool,
    states: BTreeMap<String, RouteReport>,
    findings: BTreeSet<Finding>,
    /// Rows added and removed since the last summary.
    changes: (usize, usize),
    /// Who last wanted a port, for the line that tells of its end.
    services: BTreeMap<RouterPort, ServiceKey>,
}

/// What a missing scope means.
fn scope_finding(scope: &str) -> Finding {
    let consequence = match scope {
        "routing.routes.read" => "rows cannot be read back; routes are published blindly",
        "routing.routes.write" => "no route can be published",
        _ => "router groups cannot be read",
    };
    let message = format!("the UAA client lacks the scope `{scope}`: {consequence}");
    Finding::new(Code::ScopeMissing, Subject::Lane(Lane::Tcp), message)
        .hint("add it to the client's authorities")
}

// === impl Told ===

impl Told {
    pub(super) fn succeed(&mut self, now: Uptime) {
        self.last_success = Some(now);
        self.failures = 0;
        self.last_error = None;
    }

    pub(super) fn fail(&mut self, error: String) {
        self.failures = self.failures.saturating_add(1);
        if self.last_error.as_ref() != Some(&error) {
            tracing::warn!(lane = "tcp", error, "routing API");
        }
        self.last_error = Some(error);
    }
}

// === impl State ===

impl State {
    pub(super) fn tell_added(&mut self, rows: &[TcpRow]) {
        for (port, backends) in by_port(rows) {
            let Some(wanted) = self.admission.wanted.get(&port) else {
                continue;
            };
            tracing::info!(service = %wanted.service, %port, backends, "tcp route registered");
        }
        self.told.changes.0 += rows.len();
    }

    pub(super) fn tell_removed(&mut self, rows: &[TcpRow], clearing: bool) {
        for (port, backends) in by_port(rows) {
            let service = self
                .told
                .services
                .get(&port)
                .map(ToString::to_string)
                .unwrap_or_default();
            if clearing {
                tracing::info!(service, %port, backends, "tcp rows of an older job asked to go");
            } else {
                tracing::info!(service, %port, backends, "tcp route withdrawn");
            }
        }
        self.told.changes.1 += rows.len();
    }

    pub(super) fn report(&mut self, now: Uptime) -> LaneReport {
        let routes = self.routes(now);
        let findings = self.findings();
        self.tell_findings(&findings);
        self.summarize();
        for (port, wanted) in &self.admission.wanted {
            self.told.services.insert(*port, wanted.service.clone());
        }
        let readable = self.image.is_some() || self.blind;
        if !self.told.confirmed_once && readable && self.chosen.is_some() && self.desired.is_some()
        {
            let pending = routes
                .values()
                .any(|route| route.state == RouteState::Pending);
            self.told.confirmed_once = !pending && self.told.last_success.is_some();
        }
        self.told.states.clone_from(&routes);
        LaneReport {
            lane: Lane::Tcp,
            confirmed_once: self.told.confirmed_once,
            last_attempt: self.told.last_attempt,
            last_success: self.told.last_success,
            consecutive_failures: self.told.failures,
            last_error: self.told.last_error.clone(),
            routes,
            findings,
            facts: self.facts(),
        }
    }

    fn routes(&self, now: Uptime) -> BTreeMap<String, RouteReport> {
        let mut routes = BTreeMap::new();
        let none = Observed::new();
        let image = self.image.as_ref().unwrap_or(&none);
        let stands = |row: &TcpRow| {
            if self.blind || self.image.is_none() {
                self.journal
                    .confirmed
                    .get(row)
                    .is_some_and(|at| *at + self.ttl > now)
            } else {
                image.contains_key(row)
            }
        };
        for (port, route) in &self.calmed.table {
            let wanted = self.admission.wanted.get(port);
            let live = wanted.map(|wanted| wanted.rows.iter().filter(|row| stands(row)).count());
            let state = match live {
                None if self.chosen.is_some() => RouteState::Held,
                Some(0) if self.plan.held.contains(port) => RouteState::Held,
                Some(live) if live == route.backends.len() || self.plan.held.contains(port) => {
                    RouteState::Live
                }
                // What no admission has judged yet is pending, not refused.
                None | Some(_) => RouteState::Pending,
            };
            let backends = route.backends.iter().map(ToString::to_string).collect();
            let service = route.service.key.clone();
            self.add_route(
                &mut routes,
                *port,
                RouteReport {
                    service,
                    state,
                    backends,
                    since: now,
                },
            );
        }
        for row in self.plan.remove.iter().map(Owned::get) {
            if self.calmed.table.contains_key(&row.port) {
                continue;
            }
            let Some(service) = self.told.services.get(&row.port).cloned() else {
                continue;
            };
            let (state, backends) = (RouteState::Withdrawing, vec![row.backend()]);
            self.add_route(
                &mut routes,
                row.port,
                RouteReport {
                    service,
                    state,
                    backends,
                    since: now,
                },
            );
        }
        routes
    }

    fn add_route(
        &self,
        routes: &mut BTreeMap<String, RouteReport>,
        port: RouterPort,
        mut route: RouteReport,
    ) {
        let name = port.to_string();
        if let Some(old) = self.told.states.get(&name)
            && (old.state, &old.service) == (route.state, &route.service)
        {
            route.since = old.since;
        }
        match routes.get_mut(&name) {
            Some(other) if route.state == RouteState::Withdrawing => {
                other.backends.append(&mut route.backends);
            }
            _ => {
                routes.insert(name, route);
            }
        }
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = self.plan.findings.clone();
        findings.extend(self.calmed.findings.iter().cloned());
        findings.extend(self.group_finding.iter().cloned());
        if self.chosen.is_some() {
            findings.extend(self.admission.findings.iter().cloned());
        }
        let missing: BTreeSet<_> = self.missing.union(&self.missing_by_token).collect();
        findings.extend(missing.into_iter().map(|scope| scope_finding(scope)));
        if let Some(error) = &self.told.last_error
            && self.missing.is_empty()
        {
            findings.push(Finding::new(
                Code::LaneDown,
                Subject::Lane(Lane::Tcp),
                error.clone(),
            ));
        }
        findings.sort();
        findings.dedup();
        findings
    }

    fn tell_findings(&mut self, findings: &[Finding]) {
        let new: BTreeSet<_> = findings.iter().cloned().collect();
        // The lane's own errors have their line already.
        let worth = |finding: &&Finding| finding.code != Code::LaneDown;
        for finding in new.difference(&self.told.findings).filter(worth) {
            let Finding {
                code,
                subject,
                message,
                ..
            } = finding;
            tracing::warn!(%code, %subject, message, "finding");
        }
        for finding in self.told.findings.difference(&new).filter(worth) {
            let Finding { code, subject, .. } = finding;
            tracing::info!(%code, %subject, "finding resolved");
        }
        self.told.findings = new;
    }

    /// One line when a burst of changes is done.
    fn summarize(&mut self) {
        let done = self.busy.is_empty() && self.plan.in_sync();
        let (added, removed) = self.told.changes;
        if done && added + removed > 0 {
            let routes = self.admission.wanted.len();
            tracing::info!(lane = "tcp", added, removed, routes, "pass done");
            self.told.changes = (0, 0);
        }
    }

    fn facts(&self) -> BTreeMap<&'static str, String> {
        let view = match &self.image {
            _ if self.blind => "blind",
            Some(_) => "read",
            None => "unknown",
        };
        let mut facts = BTreeMap::from([
            ("ttl", format!("{} s", self.ttl.as_secs())),
            ("refresh", format!("{} s", self.refresh_after().as_secs())),
            ("table", view.to_owned()),
        ]);
        if let Some(group) = &self.chosen {
            facts.insert("router group", group.name.clone());
            facts.insert("router group guid", group.guid.clone());
            facts.insert("reservable ports", group.reservable_ports.clone());
        }
        if let Some(instance) = &self.instance {
            facts.insert("instance id", instance.to_string());
        }
        facts
    }
}

fn by_port(rows: &[TcpRow]) -> BTreeMap<RouterPort, usize> {
    let mut ports = BTreeMap::new();
    for row in rows {
        *ports.entry(row.port).or_insert(0) += 1;
    }
    ports
}
