//! Logs each finding once when it appears and once when it is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::desired::{Finding, Severity};
use crate::status::Status;

/// Reports may change with every beat; findings are for people.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn run(mut status: Status, stop: CancellationToken) {
    let mut known = BTreeSet::new();
    loop {
        let found = status.findings();
        log(&known, &found);
        known = found;
        let changed = async {
            let changed = status.changed().await;
            tokio::time::sleep(PAUSE).await;
            changed
        };
        let reported = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = changed => changed,
        };
        if !reported {
            stop.cancelled().await;
            return;
        }
    }
}

fn log(known: &BTreeSet<Finding>, found: &BTreeSet<Finding>) {
    for finding in found.difference(known) {
        let Finding {
            code,
            subject,
            message,
            hint,
        } = finding;
        let hint = hint.as_deref();
        match code.severity() {
            Severity::Error => {
                warn!(target: "route_sync", %code, %subject, finding = message, hint, lost = true, "finding");
            }
            Severity::Warning => {
                warn!(target: "route_sync", %code, %subject, finding = message, hint, "finding");
            }
        }
    }
    for finding in known.difference(found) {
        let Finding {
            code,
            subject,
            message,
            ..
        } = finding;
        info!(target: "route_sync", %code, %subject, finding = message, "finding resolved");
    }
}
