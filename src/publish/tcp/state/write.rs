//! Which rows are written next: what lapsed, what is new or in the way within the budget, what is due.

use std::collections::{BTreeMap, BTreeSet};

use super::super::batch::BATCH_MAX;
use super::super::budget::{SINGLE_ROWS_MAX, SINGLES_AT_ONCE, SINGLES_WAITING_MAX};
use super::{Class, Kind, Op, REFRESHES_MAX, State, WRITES_MAX, Waiting};
use crate::Uptime;
use crate::plan::{Owned, TcpRow};
use crate::route::RouterPort;

/// By port: new rows, and those that are to go.
type Changed = BTreeMap<RouterPort, (Vec<TcpRow>, Vec<TcpRow>)>;

/// Rows that the budget lets go now.
#[derive(Default)]
struct Chosen {
    add: Vec<TcpRow>,
    remove: Vec<TcpRow>,
    demoted: BTreeSet<RouterPort>,
}

/// Rows that no request is under way for.
fn free(rows: &[TcpRow], busy: &BTreeSet<TcpRow>) -> Vec<TcpRow> {
    rows.iter()
        .filter(|row| !busy.contains(row))
        .cloned()
        .collect()
}

impl State {
    /// What lapsed first, then what changes, then what is due.
    pub(super) fn write(&mut self, now: Uptime, ops: &mut Vec<Op>, wake: &mut Uptime) {
        let restore = free(&self.plan.restore, &self.busy);
        // While rows that lived are missing, or may be, nothing new goes: tcp-router drops what it has pruned
        // at its next change, so the first new row would close the lapsed ones.
        let overdue = |row: &TcpRow| {
            let confirmed = self.journal.confirmed.get(row);
            confirmed.is_some_and(|at| *at + self.ttl <= now)
        };
        let lapsed = !self.plan.restore.is_empty() || self.plan.refresh.iter().any(overdue);
        self.create(&restore, Kind::Change, ops);
        if !lapsed {
            self.changes(now, ops, wake);
        }
        let refresh = free(&self.plan.refresh, &self.busy);
        self.create(&refresh, Kind::Refresh, ops);
    }

    /// While nobody knows what stands, what lives by our own clock is kept alive, and nothing else is touched.
    pub(super) fn keep_alive(&mut self, now: Uptime, ops: &mut Vec<Op>) {
        let mut rows = free(&self.plan.refresh, &self.busy);
        rows.retain(|row| {
            let confirmed = self.journal.confirmed.get(row);
            confirmed.is_some_and(|at| *at + self.ttl > now)
        });
        self.create(&rows, Kind::Refresh, ops);
    }

    /// New rows, rows in the way and surplus ones, as far as the budget goes.
    fn changes(&mut self, now: Uptime, ops: &mut Vec<Op>, wake: &mut Uptime) {
        let mut changed = Changed::new();
        for row in self.plan.add.iter().filter(|row| !self.busy.contains(*row)) {
            changed.entry(row.port).or_default().0.push(row.clone());
        }
        for row in self
            .plan
            .clear
            .iter()
            .chain(&self.plan.remove)
            .map(Owned::get)
        {
            if !self.busy.contains(row) {
                changed.entry(row.port).or_default().1.push(row.clone());
            }
        }
        self.queue(&changed);
        // With all writes under way the next one that ends wakes us; time alone changes nothing. One is left to
        // what is due, which slow changes on each other's heels would keep waiting until it lapses.
        let due = self.refreshes == 0 && !free(&self.plan.refresh, &self.busy).is_empty();
        if self.writes + usize::from(due) >= WRITES_MAX {
            return;
        }
        let mut chosen = Chosen::default();
        self.singles(&changed, &mut chosen, now, wake);
        self.bulk(&changed, &mut chosen, now, wake);
        self.create(&chosen.add, Kind::Change, ops);
        let (clear, remove): (Vec<_>, Vec<_>) = chosen
            .remove
            .into_iter()
            .partition(|row| self.plan.clear.iter().any(|owned| owned.get() == row));
        self.delete(&clear, true, ops);
        self.delete(&remove, false, ops);
    }

    /// Single changes in their order, each whole.
    fn singles(&mut self, changed: &Changed, chosen: &mut Chosen, now: Uptime, wake: &mut Uptime) {
        let mut singles: Vec<_> = changed
            .keys()
            .filter_map(|port| Some((self.waiting.get(port)?, *port)))
            .filter(|(waiting, _)| waiting.class == Class::Single)
            .map(|(waiting, port)| (waiting.turn, port))
            .collect();
        singles.sort_unstable();
        for (_, port) in singles {
            let (adds, removes) = &changed[&port];
            let all = adds.len() + removes.len();
            let rows = all.min(SINGLE_ROWS_MAX);
            if !self.budget.single(rows, now) {
                *wake = (*wake).min(self.budget.single_at());
                return;
            }
            let left = rows.saturating_sub(adds.len());
            chosen.add.extend(adds.iter().take(rows).cloned());
            chosen.remove.extend(removes.iter().take(left).cloned());
            if all > rows
                && let Some(waiting) = self.waiting.get_mut(&port)
            {
                // What is left goes with the bulk, from the next turn on.
                waiting.class = Class::Bulk;
                chosen.demoted.insert(port);
            }
        }
    }

    /// Bulk row by row: what is new first, breadth first as the plan has it, so that what was cleared comes back
    /// before more is; then what is in the way, then what is surplus.
    fn bulk(&mut self, changed: &Changed, chosen: &mut Chosen, now: Uptime, wake: &mut Uptime) {
        let add = self.plan.add.iter().map(|row| (row, true));
        let remove = self.plan.clear.iter().chain(&self.plan.remove);
        let remove = remove.map(|owned| (owned.get(), false));
        for (row, new) in add.chain(remove) {
            let waiting = self
                .waiting
                .get(&row.port)
                .filter(|_| changed.contains_key(&row.port));
            let bulk = waiting.is_some_and(|waiting| waiting.class == Class::Bulk);
            if !bulk || self.busy.contains(row) || chosen.demoted.contains(&row.port) {
                continue;
            }
            if !self.budget.bulk(now) {
                *wake = (*wake).min(self.budget.bulk_at());
                return;
            }
            let list = if new {
                &mut chosen.add
            } else {
                &mut chosen.remove
            };
            list.push(row.clone());
        }
    }

    /// Sorts ports that newly wait: few at once are single changes, many are bulk.
    fn queue(&mut self, changed: &Changed) {
        let busy: BTreeSet<_> = self.busy.iter().map(|row| row.port).collect();
        self.waiting
            .retain(|port, _| changed.contains_key(port) || busy.contains(port));
        let new: Vec<_> = changed
            .keys()
            .filter(|port| !self.waiting.contains_key(port))
            .copied()
            .collect();
        let singles = self
            .waiting
            .values()
            .filter(|waiting| waiting.class == Class::Single)
            .count();
        let few =
            new.len() <= SINGLES_AT_ONCE as usize && singles + new.len() <= SINGLES_WAITING_MAX;
        for port in new {
            self.turns += 1;
            let class = if few { Class::Single } else { Class::Bulk };
            self.waiting.insert(
                port,
                Waiting {
                    class,
                    turn: self.turns,
                },
            );
        }
    }

    fn create(&mut self, rows: &[TcpRow], kind: Kind, ops: &mut Vec<Op>) {
        let Some(instance) = self.instance.clone() else {
            return;
        };
        // One group to a request: the API refuses a request whole for one group that it no longer knows.
        let mut by_group: BTreeMap<&str, Vec<&TcpRow>> = BTreeMap::new();
        for row in rows {
            by_group.entry(&row.group).or_default().push(row);
        }
        for rows in by_group.values().flat_map(|rows| rows.chunks(BATCH_MAX)) {
            let full = kind == Kind::Refresh && self.refreshes >= REFRESHES_MAX;
            if full || self.writes >= WRITES_MAX {
                return;
            }
            self.writes += 1;
            self.refreshes += usize::from(kind == Kind::Refresh);
            let rows: Vec<_> = rows.iter().copied().cloned().collect();
            self.busy.extend(rows.iter().cloned());
            let instance = instance.clone();
            ops.push(Op::Create {
                rows,
                instance,
                ttl: self.ttl,
                kind,
            });
        }
    }

    fn delete(&mut self, rows: &[TcpRow], clearing: bool, ops: &mut Vec<Op>) {
        for rows in rows.chunks(BATCH_MAX) {
            if self.writes >= WRITES_MAX {
                return;
            }
            self.writes += 1;
            self.busy.extend(rows.iter().cloned());
            ops.push(Op::Delete {
                rows: rows.to_vec(),
                clearing,
            });
        }
    }
}
