//! What is told before there is a first view of the cluster, and of what keeps it from being had.
//!
//! Findings travel with the view; until there is one, the sources' own report carries them.

use std::time::Duration;

use route_sync::desired::Code;
use route_sync::kubernetes::Timing;
use route_sync::status::SourceReport;

use super::apiserver::{ApiServer, Fault};
use super::{DEADLINE, block_on, quick, watching};

#[test]
fn what_keeps_the_first_view_from_being_had_is_a_finding() {
    block_on(async {
        let server = ApiServer::start().await;
        server.node("node-1", 0);
        server.fail("list", "services", Fault::Status(403));
        server.fail("list", "nodes", Fault::Status(500));
        let timing = Timing {
            list_timeout: Duration::from_millis(500),
            ..quick()
        };
        let mut watched = watching(&server, timing);
        let told = |report: &SourceReport, code: Code, words: &str| {
            let mut findings = report.findings.iter();
            findings.any(|it| it.code == code && it.to_string().contains(words))
        };
        // A missing right is one finding, not two; where its first refusal comes later than a list may take there are
        // two for a moment.
        let both = |report: &SourceReport| {
            told(report, Code::RightMissing, "`list` resource `services`")
                && told(report, Code::SourceStale, "resource nodes")
                && !told(report, Code::SourceStale, "services")
        };
        let waiting = watched.receivers.report.wait_for(both);
        assert!(tokio::time::timeout(DEADLINE, waiting).await.is_ok());
        assert!(watched.current().is_none());
        server.heal();
        watched.until("mended", |it| it.findings.is_empty()).await;
        let none = |report: &SourceReport| report.findings.is_empty();
        let waiting = watched.receivers.report.wait_for(none);
        assert!(tokio::time::timeout(DEADLINE, waiting).await.is_ok());
    });
}
