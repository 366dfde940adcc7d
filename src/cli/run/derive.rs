//! The task between the watches and the lanes: each new view of the cluster becomes a table.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::desired::{self, Desired, Memory, Options};
use crate::kubernetes::snapshot::Snapshot;
use crate::lifecycle::Clock;

/// A moment to look again that has passed already must not become a hot loop.
const REVISIT_MIN: Duration = Duration::from_millis(10);

pub(super) async fn run(
    mut snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    options: Options,
    mut memory: Memory,
    clock: Clock,
    desired: watch::Sender<Option<Arc<Desired>>>,
    stop: CancellationToken,
) {
    loop {
        let view = snapshot.borrow_and_update().clone();
        let mut revisit = None;
        if let Some(view) = view {
            let now = clock.now();
            let table = desired::derive(&view, &mut memory, &options, now);
            revisit = table.revisit.map(|moment| moment.max(now + REVISIT_MIN));
            publish(&desired, table);
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
            () = revisit => {}
        }
    }
}

/// Wakes the lanes only when something is different.
fn publish(desired: &watch::Sender<Option<Arc<Desired>>>, table: Desired) {
    desired.send_if_modified(|old| {
        let changed = old.as_deref().is_none_or(|old| *old != table);
        if changed {
            *old = Some(Arc::new(table));
        }
        changed
    });
}
