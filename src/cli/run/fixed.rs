//! The task between the health of static routes and the TCP lane: each new verdict becomes a table.
//!
//! There is no guard in between: the routes are the operator's own, and what is down must go at once.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::derive::publish;
use super::drain::Gate;
use crate::admin::Approval;
use crate::config::StaticRoute;
use crate::desired::Desired;
use crate::desired::guard::NotPending;
use crate::lifecycle::Clock;
use crate::news;
use crate::static_routes::{self, Known};
use crate::status::SourceReport;
use crate::status::propagation::Propagation;

/// Who is told beside the lane, and what operators say.
pub(super) struct Told {
    /// Where it is said how far the routes are known.
    pub(super) report: watch::Sender<SourceReport>,
    /// Where it is noted which routes are new.
    pub(super) propagation: Arc<Propagation>,
    /// By operators: nothing is ever held here.
    pub(super) approvals: mpsc::Receiver<Approval>,
    /// By operators, of the time before a stop.
    pub(super) gate: Gate,
}

pub(super) async fn run(
    routes: Vec<StaticRoute>,
    known: watch::Sender<Known>,
    desired: watch::Sender<Option<Arc<Desired>>>,
    told: Told,
    clock: Clock,
    stop: CancellationToken,
) {
    let Told {
        report,
        propagation,
        mut approvals,
        mut gate,
    } = told;
    // Its sender lives as long as this task: the channel never closes.
    let mut heard = known.subscribe();
    let mut last: Option<Arc<Desired>> = None;
    loop {
        let known = heard.borrow_and_update().clone();
        news::tell(&report, static_routes::report(&known));
        let table = static_routes::table(&routes, &known);
        // The same table wakes nobody twice.
        let table = match last.take().filter(|last| **last == table) {
            Some(last) => last,
            None => Arc::new(table),
        };
        last = Some(table.clone());
        if let Some(table) = gate.pass(Some(table)) {
            publish(&desired, table, &propagation, clock.now());
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Ok(()) = heard.changed() => {}
            () = gate.asked() => {}
            // None where there is no admin listener. Whoever asked may have gone.
            Some(Approval { answer, .. }) = approvals.recv() => {
                let _ = answer.send(Err(NotPending::Nothing));
            }
        }
    }
}
