//! What the lane writes under which role. Whoever may not write still reads: a table that is warm is what makes a
//! takeover short.

use std::time::Duration;

use super::{Kind, Op, State};
use crate::Uptime;
use crate::lease::Role;
use crate::plan::{Policy, TcpRow};
use crate::route::{Lane, NodePort};

/// How fresh a list must be for a cautious lane to renew what it shows. A row that another instance deleted since
/// then would come back, until that one hears of it.
const FRESH: Duration = Duration::from_millis(500);

impl State {
    /// Takes a role for the coming turn.
    pub(in super::super) fn act_as(&mut self, role: Role, now: Uptime) {
        let begins = role.is_active() && !self.role.is_active();
        if self.role.is_standby() && !role.is_standby() {
            self.counters.propagation.forget(Lane::Tcp);
        }
        self.role = role;
        if !begins {
            return;
        }
        // What another instance wrote meanwhile is read before anything is changed.
        self.list_failures = 0;
        self.list_due = now;
        self.suspect |= !self.blind;
        // Who cannot read takes what is wanted at this moment for what the other left.
        self.inherited = None;
    }

    /// Each renewal of a cautious lane costs a list of the whole table: what is due soon goes together.
    pub(super) fn pace_as(&self, policy: Policy) -> Policy {
        let slack = match self.role {
            Role::Cautious { .. } => policy.refresh_after / 4,
            Role::Active { .. } | Role::Standby => policy.slack,
        };
        Policy { slack, ..policy }
    }

    /// What is written in this turn.
    pub(super) fn write_as(&mut self, now: Uptime, ops: &mut Vec<Op>, wake: &mut Uptime) {
        match self.role {
            Role::Standby => {}
            Role::Cautious { .. } if self.unreadable() => self.keep_alive(now, ops),
            Role::Cautious { .. } => self.keep_confirmed(now, ops, wake),
            Role::Active { .. } if !self.suspect || self.unreadable() => {
                self.write(now, ops, wake);
            }
            Role::Active { .. } => self.keep_alive(now, ops),
        }
    }

    /// Renews what was ours and what a fresh list still shows, and touches nothing else.
    fn keep_confirmed(&mut self, now: Uptime, ops: &mut Vec<Op>, wake: &mut Uptime) {
        let due: Vec<_> = self
            .plan
            .refresh
            .iter()
            .filter(|row| self.keeps(row))
            .cloned()
            .collect();
        if due.is_empty() {
            return;
        }
        if self.suspect || self.listed_at + FRESH < now {
            self.list_due = self.list_due.min(now);
            *wake = if self.list_asked { *wake } else { now };
            return;
        }
        self.create(&due, Kind::Refresh, ops);
    }

    /// Whether a row was ours and still leads where its port may: its node port has gone to no Service but the one
    /// that asks for the port, or the one that gave it away. Its backends may be others by now, which come with
    /// proof; until then the old ones keep the port open.
    pub(super) fn keeps(&self, row: &TcpRow) -> bool {
        let taken = || {
            let (desired, port) = self.desired.as_ref().zip(NodePort::new(row.backend_port))?;
            let asks = self.calmed.table.get(&row.port);
            let asks = asks.map(|route| &route.service.key);
            let yielding = desired.yielding.get(&row.port);
            let yields = yielding.is_some_and(|ports| ports.contains(&port));
            let owner = desired.node_ports.get(&port)?;
            Some(Some(&owner.key) != asks && !yields)
        };
        self.journal.holds(row) && !self.busy.contains(row) && taken() != Some(true)
    }
}
