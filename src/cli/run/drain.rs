//! What the lanes are told once an operator drains the process: an empty table, or never another one.
//!
//! Behind the change guard, because this is somebody's word and no mistake of a list.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tracing::info;

use crate::admin::{DRAINS_MAX, DrainRequest};
use crate::desired::Desired;
use crate::route::RouteTable;
use crate::state::Opened;
use crate::status::{Drain, Draining};

/// Between the guard and the lanes.
pub(super) struct Gate {
    asked: mpsc::Receiver<DrainRequest>,
    drain: watch::Sender<Option<Drain>>,
    /// What the last process left: it tells whose routes are to go before Kubernetes answers.
    warm: Option<Arc<Desired>>,
    /// The empty table that the lanes were told.
    told: Option<Arc<Desired>>,
}

// === impl Gate ===

impl Gate {
    /// With where operators' words are put in, and what everybody may know of them.
    pub(super) fn open(state: Option<&Opened>) -> (Self, mpsc::Sender<DrainRequest>, Draining) {
        Self::with_warm(state.and_then(|state| state.warm.table.clone()))
    }

    fn with_warm(warm: Option<Arc<Desired>>) -> (Self, mpsc::Sender<DrainRequest>, Draining) {
        let (drains, asked) = mpsc::channel(DRAINS_MAX);
        let drain = watch::Sender::new(None);
        let draining = Draining {
            asked: drain.subscribe(),
            on_record: None,
        };
        let gate = Self {
            asked,
            drain,
            warm,
            told: None,
        };
        (gate, drains, draining)
    }

    /// Waits for an operator's word and takes it. May be dropped at any time; for ever without an admin listener.
    pub(super) async fn asked(&mut self) {
        let Some(DrainRequest { drain, answer }) = self.asked.recv().await else {
            return std::future::pending().await;
        };
        let before = *self.drain.borrow();
        if let Some(before) = before.filter(|before| *before > drain) {
            let _ = answer.send(Err(before));
            return;
        }
        if before != Some(drain) {
            info!(target: "route_sync", routes = drain.as_str(), "drained");
        }
        self.drain.send_replace(Some(drain));
        // Whoever asked may have gone; what was asked for stays so.
        let _ = answer.send(Ok(()));
    }

    /// What the lanes are told when this is the table; nothing where they keep what they have. Without a table of
    /// this process's own, the last one's tells what is to be withdrawn.
    pub(super) fn pass(&mut self, table: Option<Arc<Desired>>) -> Option<Arc<Desired>> {
        match *self.drain.borrow() {
            None => table,
            Some(Drain::Keep) => None,
            Some(Drain::Unregister) => {
                let of = table.or_else(|| self.told.clone().or_else(|| self.warm.clone()))?;
                let empty = withdrawn(&of);
                let told = self.told.take().filter(|told| **told == empty);
                self.told = Some(told.unwrap_or_else(|| Arc::new(empty)));
                self.told.clone()
            }
        }
    }
}

/// Nothing is wanted of this cluster any more.
fn withdrawn(of: &Desired) -> Desired {
    Desired {
        node_ips: of.node_ips.clone(),
        node_ports: of.node_ports.clone(),
        drained: true,
        ..Desired::of(of.cluster.clone(), RouteTable::default())
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::route::ClusterId;

    fn table(cluster: &str) -> Arc<Desired> {
        let cluster = ClusterId(cluster.to_owned());
        Arc::new(Desired::of(cluster, RouteTable::default()))
    }

    struct Subject {
        gate: Gate,
        drains: mpsc::Sender<DrainRequest>,
    }

    impl Subject {
        fn new(warm: Option<Arc<Desired>>) -> Self {
            let (gate, drains, _) = Gate::with_warm(warm);
            Self { gate, drains }
        }

        async fn ask(&mut self, drain: Drain) -> Result<(), Drain> {
            let (answer, answered) = oneshot::channel();
            let request = DrainRequest { drain, answer };
            self.drains.send(request).await.unwrap();
            self.gate.asked().await;
            answered.await.unwrap()
        }
    }

    #[tokio::test]
    async fn what_is_kept_hears_of_no_further_table_and_may_still_be_withdrawn() {
        let mut subject = Subject::new(None);
        assert!(subject.gate.pass(Some(table("a"))).is_some());
        assert_eq!(subject.ask(Drain::Keep).await, Ok(()));
        assert_eq!(subject.ask(Drain::Keep).await, Ok(()));
        assert_eq!(subject.gate.pass(Some(table("a"))), None);
        assert_eq!(subject.ask(Drain::Unregister).await, Ok(()));
        assert!(subject.gate.pass(Some(table("a"))).unwrap().drained);
        assert_eq!(subject.ask(Drain::Keep).await, Err(Drain::Unregister));
    }

    #[tokio::test]
    async fn the_same_empty_table_wakes_nobody_twice() {
        let mut subject = Subject::new(None);
        subject.ask(Drain::Unregister).await.unwrap();
        let first = subject.gate.pass(Some(table("a"))).unwrap();
        let second = subject.gate.pass(Some(table("a"))).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(subject.gate.pass(Some(table("b"))).unwrap().cluster.0, "b");
    }

    #[tokio::test]
    async fn before_kubernetes_answers_the_last_processs_table_tells_what_goes() {
        let mut subject = Subject::new(Some(table("a")));
        assert_eq!(subject.gate.pass(None), None);
        subject.ask(Drain::Unregister).await.unwrap();
        let told = subject.gate.pass(None).unwrap();
        assert!(told.drained && told.cluster.0 == "a");
        let mut nothing = Subject::new(None);
        nothing.ask(Drain::Unregister).await.unwrap();
        assert_eq!(nothing.gate.pass(None), None);
        assert!(nothing.gate.pass(Some(table("b"))).unwrap().drained);
    }
}
