//! What the HTTP lane keeps of others, and what it asks for to hear them again. One test, because the allocator counts
//! for the whole process.

use std::time::Duration;

use benchmarks::cluster::{options, snapshot};
use benchmarks::counting::{Counting, allocations, highest, live};
use benchmarks::lane::Listening;
use benchmarks::registrations::registration;
use bytes::Bytes;
use route_sync::desired::{Memory, derive};

/// Three times the routes of the largest foundations known.
const REGISTRATIONS: u32 = 200_000;
/// More than are remembered: somebody floods the subject.
const FLOOD: u32 = 300_000;
const BYTES_MAX: usize = 20_000_000;
const KNOWN: u32 = 20_000;
/// A batch of 500 takes twenty, for futures, and a message none; beats that fall into it take some.
const ALLOCATIONS_MAX: u64 = KNOWN as u64 / 2;
/// Less than a word for each.
const KEPT_MAX: usize = 100_000;

/// When the cluster is seen: long enough after the start that no node is damped.
const NOW: Duration = Duration::from_mins(10);

#[global_allocator]
static ALLOCATOR: Counting = Counting::often_and_much();

#[tokio::test(flavor = "current_thread")]
async fn others_take_below_20_mb_however_many_they_are_and_who_is_known_takes_nothing_more() {
    // Few, so that few beats fall into what is counted.
    let snapshot = snapshot(10);
    let desired = derive(&snapshot, &mut Memory::default(), &options(), NOW);
    let lane = Listening::start(desired).await;
    let before = live();

    lane.hear((0..REGISTRATIONS).map(say)).await;
    assert!(
        lane.known() >= u64::from(REGISTRATIONS),
        "everybody is known: {}",
        lane.known()
    );
    lane.hear((REGISTRATIONS..FLOOD).map(say)).await;
    assert!(lane.known() < u64::from(FLOOD), "{}", lane.known());
    let most = highest() - before;
    assert!(most < BYTES_MAX, "{most} bytes");

    let again: Vec<Bytes> = (0..KNOWN).map(say).collect();
    // The first clone of each allocates, and is not the lane's.
    let said = again.clone();
    let (before, kept) = (allocations(), live());
    lane.hear(said).await;
    let took = allocations() - before;
    assert!(took < ALLOCATIONS_MAX, "{took} for {KNOWN} registrations");
    let kept = live().saturating_sub(kept);
    assert!(kept < KEPT_MAX, "{kept} bytes more");
}

fn say(number: u32) -> Bytes {
    registration(number).into()
}
