//! The task between the watches and the lanes: each new view of the cluster becomes a table, and the guard decides
//! what of the last one stays in it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::drain::Gate;
use crate::Uptime;
use crate::admin::Approval;
use crate::cli::wires::Shared;
use crate::desired::guard::{Approvals, Guard, Remembered};
use crate::desired::{self, Desired, Memory, Options};
use crate::kubernetes::NodePorts;
use crate::kubernetes::snapshot::Snapshot;
use crate::lifecycle::Clock;
use crate::news;
use crate::settings::Follower;
use crate::state::Opened;
use crate::status::propagation::Propagation;

/// A moment to look again that has passed already must not become a hot loop.
const REVISIT_MIN: Duration = Duration::from_millis(10);

/// Whose the node ports are that no label of ours tells of.
pub(in crate::cli) struct Others {
    /// Whether anybody has to know.
    pub(in crate::cli) needed: watch::Sender<bool>,
    /// What is known.
    pub(in crate::cli) ports: watch::Receiver<NodePorts>,
}

/// What the guard is told beside the view.
pub(super) struct Told {
    /// By operators.
    pub(super) approvals: mpsc::Receiver<Approval>,
    /// By the apiserver.
    pub(super) others: Others,
    /// Where it is noted which routes are new.
    pub(super) propagation: Arc<Propagation>,
    /// By operators, of the time before a stop.
    pub(super) gate: Gate,
    /// By other instances, and what they are told.
    pub(super) shared: Shared,
    /// By the last process, where there is a state folder.
    pub(super) inherited: Option<Inherited>,
}

/// What the guard goes on from, and where it notes what the next process has to know.
pub(super) struct Inherited {
    told: Option<Arc<Desired>>,
    remembered: Remembered,
    ledger: watch::Sender<Remembered>,
}

impl Inherited {
    pub(super) fn of(state: &Opened) -> Self {
        Self {
            told: state.warm.table.clone(),
            remembered: state.warm.guard.clone(),
            ledger: state.ledgers.guard.clone(),
        }
    }
}

pub(super) async fn run(
    mut snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    mut options: Follower<Options>,
    mut memory: Memory,
    clock: Clock,
    desired: watch::Sender<Option<Arc<Desired>>>,
    told: Told,
    stop: CancellationToken,
) {
    let Told {
        mut approvals,
        mut others,
        propagation,
        mut gate,
        shared,
        inherited,
    } = told;
    let Shared {
        mut names,
        contested,
        mut approved_elsewhere,
        approved,
    } = shared;
    let mut settings = options.get();
    let (mut guard, ledger) = match inherited {
        Some(it) => (
            Guard::of_last_process(it.told, it.remembered),
            Some(it.ledger),
        ),
        None => (Guard::default(), None),
    };
    // The first pass decides who holds a contested name, unless somebody has held it before.
    tokio::select! {
        biased;
        () = stop.cancelled() => return,
        // Where nobody will say, there is none.
        _ = names.wait_for(Option::is_some) => {}
    }
    let mut names_told = true;
    loop {
        let view = snapshot.borrow_and_update().clone();
        if std::mem::take(&mut names_told)
            && let Some(told) = &*names.borrow_and_update()
        {
            memory.adopt(told);
        }
        adopt(&mut guard, &mut approved_elsewhere, clock.now());
        let mut revisit = None;
        let mut derived = None;
        if let Some(view) = view {
            let now = clock.now();
            // Another cluster has nothing to say about who held what in ours.
            let mut none = Memory::default();
            let memory = if guard.is_strangers(&view, now) {
                &mut none
            } else {
                &mut memory
            };
            let table = desired::derive(&view, memory, &settings, now);
            revisit = table.revisit.map(|moment| moment.max(now + REVISIT_MIN));
            let taken = others.ports.borrow_and_update().clone();
            let table = guard.pass(table, &view, &taken, settings.removals, now);
            if let Some(ledger) = &ledger {
                ledger.send_if_modified(|known| guard.remember(known));
            }
            let held = table.held.is_some();
            let changes = |needed: &mut bool| std::mem::replace(needed, held) != held;
            others.needed.send_if_modified(changes);
            news::tell(&contested, Some(memory.contested().clone()));
            news::tell(&approved, guard.approvals());
            derived = Some(table);
        }
        if let Some(table) = gate.pass(derived) {
            publish(&desired, table, &propagation, clock.now());
        }
        let revisit = async {
            match revisit {
                Some(moment) => clock.sleep_until(moment).await,
                None => std::future::pending().await,
            }
        };
        // Stopping comes first; a new view makes the revisit superfluous.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = snapshot.changed() => if changed.is_err() {
                // The watches ended first. Whether that was asked for is their supervisor's question.
                stop.cancelled().await;
                return;
            },
            // None where there is no admin listener.
            Some(Approval { plan, answer }) = approvals.recv() => {
                let released = guard.approve(&plan);
                if let Ok(routes) = &released {
                    info!(target: "route_sync", plan, routes = routes.len(), "removals approved");
                }
                // Whoever asked may have gone; what was approved stays so.
                let _ = answer.send(released);
            }
            changed = options.changed() => {
                settings = changed;
                options.in_use();
            }
            () = gate.asked() => {}
            // They are looked for only while something is held, and whoever looks ends with the process.
            Ok(()) = others.ports.changed() => {}
            // Whoever leads says nothing here; its own passes decide.
            Ok(()) = names.changed() => names_told = true,
            // The next pass takes it in.
            Ok(()) = approved_elsewhere.changed() => approved_elsewhere.mark_changed(),
            () = revisit => {}
        }
    }
}

/// Takes in what operators approved elsewhere, each word once: the guard knows when it has had its day.
fn adopt(guard: &mut Guard, elsewhere: &mut watch::Receiver<Approvals>, now: Uptime) {
    // Whoever tells has ended where this is an error, and tells no more.
    if !elsewhere.has_changed().unwrap_or_default() {
        return;
    }
    let told = elsewhere.borrow_and_update().clone();
    if !told.is_empty() {
        let Approvals {
            instead_of, routes, ..
        } = &told;
        info!(
            target: "route_sync",
            routes = routes.len(),
            cluster = instead_of.is_some(),
            "approvals of another instance taken in"
        );
    }
    guard.adopt(told, now);
}

/// Wakes the lanes only when something is different; the guard gives the same table again where nothing is.
pub(super) fn publish(
    desired: &watch::Sender<Option<Arc<Desired>>>,
    table: Arc<Desired>,
    propagation: &Propagation,
    seen: Uptime,
) {
    desired.send_if_modified(|old| {
        let changed = old.as_ref().is_none_or(|old| !Arc::ptr_eq(old, &table));
        if changed {
            propagation.seen(old.as_deref(), &table, seen);
            *old = Some(table);
        }
        changed
    });
}
