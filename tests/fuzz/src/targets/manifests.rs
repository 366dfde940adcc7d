//! Manifests as `lint` and `plan` are given them: whatever a file holds, what cannot be read is a finding with its line.

use route_sync::Uptime;
use route_sync::config::default_options;
use route_sync::desired::{Memory, Subject, derive};
use route_sync::kubernetes::snapshot_of_manifests;
use route_sync::route::Hostname;

use super::{Target, assert_bounded};

pub(super) const TARGET: Target = Target {
    name: "manifests",
    words: &[
        "---\n",
        "apiVersion: v1\n",
        "kind: Service\n",
        "kind: Node\n",
        "kind: List\n",
        "kind: ServiceList\n",
        "items:\n",
        "- ",
        "metadata:\n",
        "  name: ",
        "  namespace: ",
        "  labels:\n",
        "  annotations:\n",
        "    http-route-sync: ",
        "    tcp-route-sync: \"1024\"\n",
        "    route-sync.cloudfoundry.org/http: ",
        "spec:\n",
        "  type: NodePort\n",
        "  ports:\n",
        "  - port: 80\n",
        "nodePort: ",
        "protocol: UDP",
        "status:",
        "addresses:",
        "InternalIP",
        "creationTimestamp: ",
        "2026-01-01T00:00:00Z",
        "&a ",
        "*a",
        "<<: *a",
        "!!str ",
        "!x ",
        "|\n",
        ">-\n",
        "{}",
        "[]",
        "null",
        "~",
        "# ",
    ],
    run,
};

fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let snapshot = snapshot_of_manifests([("f.yml", text)]);
    // Where the last one breaks off, the end of the file is told.
    let lines = text.split('\n').count() + 1;
    for finding in &snapshot.findings {
        let place = finding
            .message
            .strip_prefix("f.yml:")
            .expect("its file must be told");
        let line = place.split(':').next().unwrap_or_default();
        let line: usize = line.parse().expect("its line must be told");
        assert!((1..=lines).contains(&line), "line {line} of {lines}");
        if matches!(finding.subject, Subject::Source(_)) {
            assert_bounded(std::slice::from_ref(finding));
        }
    }
    let options = default_options(Hostname::parse("apps.test").expect("a name must be one"));
    derive(&snapshot, &mut Memory::default(), &options, Uptime::ZERO);
}
