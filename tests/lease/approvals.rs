//! What operators approved, from the instance that was told to those that may take over.

use std::collections::BTreeSet;

use route_sync::desired::guard::PlanHash;
use route_sync::lease::{decode_approvals, encode_approvals};

use super::*;

const ANNOTATION: &str = "route-sync.cloudfoundry.org/approvals";

fn approvals(route: &str) -> Approvals {
    Approvals {
        kube_system: Some("uid".to_owned()),
        instead_of: None,
        routes: BTreeSet::from([PlanHash::parse(route).unwrap()]),
    }
}

fn some() -> Approvals {
    approvals("00000000000000ff")
}

fn written(server: &ApiServer) -> Option<String> {
    let text = server.lease()["metadata"]["annotations"][ANNOTATION].clone();
    text.as_str().map(str::to_owned)
}

impl Instance {
    fn hears(&self) -> Approvals {
        self.approved_elsewhere.borrow().clone()
    }
}

impl ApiServer {
    /// What another holder writes, in its third term, at the time given.
    fn is_told(&self, uid: &str, time: u32, text: &str) {
        let mut world = self.world();
        world.version += 1;
        let version = world.version.to_string();
        world.lease = Some(json!({
            "metadata": {
                "name": "route-sync", "uid": uid, "resourceVersion": version,
                "annotations": {ANNOTATION: text},
            },
            "spec": {"holderIdentity": "z", "leaseTransitions": 3, "renewTime": time.to_string()},
        }));
    }
}

/// Waits until the second instance has looked at the Lease and taken in what it saw.
async fn looks(server: &ApiServer) {
    let before = server.world().reads[1];
    // The next is asked only when the one before was taken in.
    until("it looks", || server.world().reads[1] > before + 1).await;
}

#[tokio::test]
async fn who_takes_over_knows_what_was_approved_before_a_crash_and_tells_its_own_words_alone() {
    steady(async || {
        let (server, first, second) = pair(BRISK).await;
        first.approved.send_replace(some());
        until("heard", || second.hears() == some()).await;
        let text = written(&server).unwrap();
        assert_eq!(decode_approvals(&text, 1), some());
        assert_eq!(
            first.hears(),
            Approvals::default(),
            "these are its own words"
        );
        drop(first);
        assert_eq!(second.leads().await, 2);
        assert_eq!((second.hears(), written(&server)), (some(), None));
        second.approved.send_replace(approvals("00000000000000fe"));
        until("written", || written(&server).is_some()).await;
        second.approved.send_replace(Approvals::default());
        until("taken back", || written(&server).is_none()).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_approved_right_before_a_stop_is_known_to_the_next_as_well() {
    steady(async || {
        let (_server, first, second) = pair(PATIENT).await;
        first.approved.send_replace(some());
        first.stop().await;
        assert_eq!(second.leads().await, 2);
        assert_eq!(second.hears(), some());
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_nobody_was_seen_to_write_approves_of_nothing() {
    let server = ApiServer::start().await;
    let text = encode_approvals(&some(), 3).unwrap();
    server.is_told("one", 0, &text);
    let starts = Instance::start(&server, 1, BRISK);
    assert_eq!(starts.leads().await, 4);
    assert_eq!(
        (starts.hears(), written(&server)),
        (Approvals::default(), None)
    );
}

#[tokio::test]
async fn a_word_of_another_term_of_no_sense_or_of_another_lease_approves_of_nothing() {
    steady(async || {
        let server = ApiServer::start().await;
        let (good, old) = (encode_approvals(&some(), 3), encode_approvals(&some(), 2));
        let (good, old) = (good.unwrap(), old.unwrap());
        server.is_told("one", 0, &good);
        let instance = Instance::start(&server, 1, PATIENT);
        until("looked", || instance.report.borrow().holder.is_some()).await;
        looks(&server).await;
        assert_eq!(instance.hears(), Approvals::default(), "nobody wrote");
        server.is_told("one", 1, &good);
        until("heard", || instance.hears() == some()).await;
        looks(&server).await;
        assert_eq!(instance.hears(), some(), "as long as nothing else is told");
        for (time, text) in [(2, old.as_str()), (4, "{"), (6, "[]")] {
            server.is_told("one", time, text);
            until("forgotten", || instance.hears().is_empty()).await;
            server.is_told("one", time + 1, &good);
            until("heard", || instance.hears() == some()).await;
        }
        // The apiserver of another cluster, where somebody approved of the same long ago.
        server.is_told("two", 8, &good);
        until("forgotten", || instance.hears().is_empty()).await;
        looks(&server).await;
        assert!(instance.hears().is_empty());
        server.world().lease = None;
        looks(&server).await;
        server.is_told("two", 9, &good);
        looks(&server).await;
        assert!(instance.hears().is_empty(), "made anew");
        assert!(instance.role().is_standby());
    })
    .await;
}

#[tokio::test]
async fn what_was_written_while_nobody_could_look_for_long_approves_of_nothing() {
    let server = ApiServer::start().await;
    let text = encode_approvals(&some(), 3).unwrap();
    server.is_told("one", 0, &text);
    let timing = Timing {
        lease: Duration::from_secs(3),
        ..BRISK
    };
    let instance = Instance::start(&server, 1, timing);
    until("looked", || instance.report.borrow().holder.is_some()).await;
    server.is(1, Mood::Down);
    tokio::time::sleep(timing.lease + Duration::from_secs(1)).await;
    server.is_told("one", 1, &text);
    server.is(1, Mood::Well);
    looks(&server).await;
    assert!(instance.hears().is_empty());
    let mut time = 1;
    until("heard from now on", || {
        time += 1;
        server.is_told("one", time, &text);
        instance.hears() == some()
    })
    .await;
}
