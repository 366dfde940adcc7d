//! The lane under its role: silent on standby with everything ready, careful without proof, and in touch with other
//! instances.
//!
//! Whoever is cut off from the apiserver cannot learn there that its term is over, and its beats would bring back
//! what its successor withdrew. So whoever acts says each interval under which generation it does, and whoever hears
//! a higher one than its own falls silent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tracing::info;

use super::HttpLane;
use crate::Uptime;
use crate::desired::{Code, Desired, Finding, Subject};
use crate::lease::{Instances, Role, Roles, Term};
use crate::publish::http::wire::instances;
use crate::route::Lane;

/// An instance that acts although it should not is answered at once, but not more often than this.
const ANSWER_APART: Duration = Duration::from_secs(1);
/// Withdrawals of a lane that stands by are remembered for this long: the longest that any is repeated. Whoever leads
/// makes them meanwhile.
const REMEMBERED: Duration = Duration::from_mins(10);
/// Whoever comes without proof says so before all else, and is silent for so long: an instance that leads answers at
/// once, and what the newcomer would announce may be what that one withdrew.
const LISTENS: Duration = Duration::from_millis(500);
/// What the server denied is asked for again so often.
const ASK_AGAIN: Duration = Duration::from_mins(1);
/// It says so at each attempt, of which there is one an interval.
const DENIED_INTERVALS: u32 = 2;

/// How the lane acts.
pub(super) struct Acting {
    roles: Roles,
    role: Role,
    instances: Option<Instances>,
    /// A table that came while nothing may be added.
    put_off: Option<Arc<Desired>>,
    told_at: Option<Uptime>,
    tell_at: Uptime,
    /// Without proof it is silent until then, for the others to be heard.
    speaks_at: Uptime,
    /// Whether it was silent when it last looked.
    silent: bool,
    ask_at: Uptime,
    unheard: bool,
}

/// The table without the routes whose node port now belongs to another Service, where there are any.
fn without_taken(table: &Desired, new: &Desired) -> Option<Desired> {
    let mut left = table.clone();
    left.table.http.retain(|_, route| {
        let mut ports = route.backends.iter().map(|backend| backend.port);
        ports.all(|port| {
            let owner = new.node_ports.get(&port);
            owner.is_none_or(|owner| owner.key == route.service.key)
        })
    });
    (left.table.http.len() < table.table.http.len()).then_some(left)
}

// === impl Acting ===

impl Default for Acting {
    fn default() -> Self {
        Self {
            roles: Roles::alone(),
            role: Role::ALONE,
            instances: None,
            put_off: None,
            told_at: None,
            tell_at: Uptime::ZERO,
            speaks_at: Uptime::ZERO,
            silent: false,
            ask_at: Uptime::ZERO,
            unheard: false,
        }
    }
}

impl Acting {
    /// Whether it stands by, or listens first.
    pub(super) fn is_silent(&self, now: Uptime) -> bool {
        self.role.is_standby() || self.listens(self.role, now)
    }

    /// Whether another instance leads, or may.
    pub(super) fn follows(&self) -> bool {
        self.role.is_standby()
    }

    /// Whether it has no proof and the others may have something to say to that.
    fn listens(&self, role: Role, now: Uptime) -> bool {
        matches!(role, Role::Cautious { .. }) && now < self.speaks_at
    }

    /// It comes back, or over another connection: whoever listens there has heard nothing yet.
    pub(super) fn tell_soon(&mut self, now: Uptime) {
        self.tell_at = Uptime::ZERO;
        if self.instances.is_some() {
            self.speaks_at = now + LISTENS;
        }
    }
}

// === impl HttpLane ===

impl HttpLane {
    pub(super) fn begin_as(&mut self, roles: Roles, instances: Option<Instances>) {
        self.acting.role = roles.at(self.clock.now());
        self.acting.roles = roles;
        self.acting.instances = instances;
        self.acting.silent = self.acting.role.is_standby();
        self.may_say_anything();
    }

    /// Follows the role.
    pub(super) async fn act(&mut self) {
        let now = self.clock.now();
        let role = self.acting.roles.at(now);
        let leads = self.acting.follows() && !role.is_standby();
        if leads {
            self.begin_to_lead();
        } else if !self.acting.follows() && role.is_standby() {
            self.begin_to_follow(now);
        }
        let before = std::mem::replace(&mut self.acting.role, role);
        if leads {
            self.announce_recorded();
        }
        self.may_say_anything();
        // Whoever did not run may find proof gone already, without a moment of standing by.
        let thawed = matches!(role, Role::Cautious { .. }) && before.at(now).is_standby();
        if before.is_standby() != role.is_standby() || thawed {
            self.acting.tell_soon(now);
            if role.is_standby() {
                info!("http lane stands by, another instance announces");
            } else {
                self.counters.propagation.forget(Lane::Http);
            }
        }
        let silent = self.acting.is_silent(now);
        if std::mem::replace(&mut self.acting.silent, silent) != silent {
            if silent {
                self.schedule.disconnected(now);
            } else if self.epoch.is_some() {
                self.schedule.connected(now);
            }
        }
        if role.is_standby() {
            let before = now.saturating_sub(REMEMBERED);
            self.schedule.forget_withdrawals(before);
        }
        if !matches!(role, Role::Cautious { .. })
            && let Some(desired) = self.acting.put_off.take()
        {
            self.apply(&desired).await;
        }
        self.tell_instances(role).await;
    }

    /// Whether a message may go out now; without proof none that withdraws anything.
    pub(super) fn may_say_anything(&mut self) -> bool {
        let now = self.clock.now();
        let role = self.acting.roles.at(now);
        self.schedule.hold_withdrawals(!role.is_active(), now);
        !role.is_standby() && !self.acting.listens(role, now)
    }

    /// Whether nothing may be added to the table that stands.
    pub(super) fn adds_nothing(&self) -> bool {
        let role = self.acting.roles.at(self.clock.now());
        matches!(role, Role::Cautious { .. }) && self.schedule.has_table()
    }

    /// Puts a table off that came while nothing may be added or removed. What would lead to another Service by now is
    /// announced no longer.
    pub(super) fn puts_off(&mut self, desired: &Arc<Desired>) -> bool {
        let now = self.clock.now();
        if !matches!(self.acting.roles.at(now), Role::Cautious { .. }) {
            return false;
        }
        self.acting.put_off = Some(desired.clone());
        let table = self.schedule.table();
        if let Some(left) = table.and_then(|table| without_taken(table, desired)) {
            let left = Arc::new(left);
            let changes = self.schedule.apply(&left, now);
            super::tell_changes(&changes, &left);
            // Else a restart would announce what was given up.
            self.kept.note(&left);
            self.desired = Some(left);
        }
        true
    }

    /// Whether a drain was asked for that has to wait for proof.
    pub(super) fn puts_drain_off(&self) -> bool {
        let put_off = self.acting.put_off.as_ref();
        put_off.is_some_and(|table| table.drained)
    }

    // --- other instances ---------------------------------------------------------------------------------------

    /// Listens to the others, and tells them who leads.
    async fn tell_instances(&mut self, role: Role) {
        let now = self.clock.now();
        let within = self.schedule.interval() * DENIED_INTERVALS;
        let (Some(epoch), Some(instances)) = (self.epoch, &self.acting.instances) else {
            return;
        };
        let (Some(bus), Some(desired)) = (&mut self.bus, &self.desired) else {
            return;
        };
        let subject = instances::subject(&desired.cluster);
        let denied = bus.instances_denied(within);
        if !bus.hears_instances(&subject) || (denied && now >= self.acting.ask_at) {
            self.acting.ask_at = now + ASK_AGAIN;
            bus.hear_instances(subject.clone()).await;
        }
        self.acting.unheard = denied;
        let Some(generation) = role.generation().filter(|_| now >= self.acting.tell_at) else {
            return;
        };
        self.acting.tell_at = now + self.schedule.interval();
        self.acting.told_at = Some(now);
        let term = Term {
            generation,
            holder: instances.identity.clone(),
        };
        let told = bus
            .publish_at(epoch, subject, instances::leads(&term))
            .await;
        if let Err(error) = told {
            self.unsent(error).await;
        }
    }

    /// Takes in what an instance says; our own words come back as well.
    pub(super) fn hear_instance(&mut self, body: &Bytes, now: Uptime) {
        if let Some(bus) = &self.bus {
            bus.hears_an_instance();
        }
        let (Some(term), Some(instances)) = (instances::told(body), &self.acting.instances) else {
            return;
        };
        let other = term.holder != instances.identity;
        let stale = other
            && self
                .acting
                .role
                .generation()
                .is_some_and(|mine| term.generation <= mine);
        if stale {
            let earliest = self.acting.told_at.map(|at| at + ANSWER_APART);
            self.acting.tell_at = earliest.map_or(now, |earliest| earliest.max(now));
        }
        // A full channel holds words enough to judge by.
        let _ = instances.heard.try_send(term);
        if other {
            self.follow(now);
        }
    }

    /// When [`Self::act`] has something to say though nothing happens.
    pub(super) fn acting_deadline(&self) -> Option<Uptime> {
        let speaks = self.epoch.is_some()
            && self.desired.is_some()
            && self.acting.instances.is_some()
            && self.acting.role.generation().is_some();
        let tells = speaks.then_some(self.acting.tell_at);
        let listens = self.acting.silent && !self.acting.role.is_standby();
        let ends = listens.then_some(self.acting.speaks_at);
        tells.into_iter().chain(ends).min()
    }

    pub(super) fn unheard_finding(&self) -> Option<Finding> {
        let text = "NATS denies the subject on which instances tell each other who leads: one that is cut off from the apiserver goes on announcing what its successor withdrew";
        self.acting.unheard.then(|| {
            Finding::new(Code::InstancesUnheard, Subject::Lane(Lane::Http), text)
                .hint("let the user of `nats` publish and subscribe to `route-sync.*`")
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::route::{
        Backend, Backends, ClusterId, HttpOptions, HttpRoute, NodePort, NodeUid, RouteTable,
        ServiceKey, ServiceRef, Uri,
    };

    fn service(name: &str) -> Arc<ServiceRef> {
        let key = ServiceKey {
            namespace: "ns".to_owned(),
            name: name.to_owned(),
        };
        let uid = name.to_owned();
        Arc::new(ServiceRef { key, uid })
    }

    fn desired(routes: &[(&str, u16)]) -> Desired {
        let port = |port| NodePort::new(port).unwrap();
        let route = |(name, node_port): &(&str, u16)| {
            let backend = Backend {
                ip: [10, 0, 0, 1].into(),
                port: port(*node_port),
                node: NodeUid("n1".into()),
                zone: None,
            };
            let route = HttpRoute {
                service: service(name),
                backends: Backends::new([backend]).unwrap(),
                options: HttpOptions::default(),
            };
            (Uri::parse(&format!("{name}.test")).unwrap(), route)
        };
        let owned = |(name, node_port): &(&str, u16)| (port(*node_port), service(name));
        let table = RouteTable {
            tcp: BTreeMap::new(),
            http: routes.iter().map(route).collect(),
        };
        Desired {
            node_ports: routes.iter().map(owned).collect(),
            ..Desired::of(ClusterId("cluster".to_owned()), table)
        }
    }

    #[test]
    fn only_a_route_whose_node_port_is_anothers_is_dropped() {
        let old = desired(&[("a", 30001), ("b", 30002)]);
        assert_eq!(
            without_taken(&old, &desired(&[])),
            None,
            "gone is not taken"
        );
        assert_eq!(without_taken(&old, &desired(&[("a", 30001)])), None);
        let left = without_taken(&old, &desired(&[("heir", 30002)])).unwrap();
        let names: Vec<_> = left.table.http.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["a.test"]);
    }
}
