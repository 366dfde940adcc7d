//! A batch that the API took in part before it failed.

use super::*;

#[tokio::test]
async fn a_batch_that_was_taken_in_part_is_sent_again_and_all_its_rows_are_ours() {
    let ports: Vec<u16> = (2000..2008).collect();
    let routes: Vec<_> = ports.iter().map(|port| (*port, 1)).collect();
    let lane = Subject::start(4, &routes, |api| {
        // Most stand already, so that one batch refreshes them.
        for port in &ports[..6] {
            api.insert(key(*port, 1, -1), Some(&us()), Duration::from_secs(4));
        }
        api.cut = Some(3);
    })
    .await;
    let cut = |call: &foundation::Call| call.status == 503 && call.ports.len() > 3;
    lane.until("a batch was taken in part", |api| api.creates().any(cut))
        .await;
    lane.api().lock().cut = None;
    lane.until_ports(&ports).await;
    let all = |api: &Api| api.rows.len() == ports.len();
    lane.holds(Duration::from_secs(6), "each row lives, and once", all)
        .await;
    lane.want(&[]);
    lane.until_ports(&[]).await;
}
