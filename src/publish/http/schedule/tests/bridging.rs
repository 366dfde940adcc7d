//! What is announced before a withdrawal.

use super::*;

#[test]
fn each_time_an_endpoint_is_withdrawn_one_that_stays_is_announced_before() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table(&[("a", 30001, &[1, 2])]), secs(1));
    drain(&mut schedule, secs(1));
    schedule.apply(&table(&[("a", 30002, &[3, 4])]), secs(100));
    let sent = news(&mut schedule, secs(100), secs(1000));
    let mut expected = vec![(100, "+a@3:30002"), (100, "+a@4:30002")];
    for (round, after) in [0, 1, 5, 15, 30, 60, 120].into_iter().enumerate() {
        let stays = ["+a@4:30002", "+a@3:30002"][round % 2];
        let all = [stays, "-a@1:30001", "-a@2:30001"];
        expected.extend(all.map(|message| (100 + after, message)));
    }
    let sent: Vec<_> = sent.iter().map(|(at, text)| (*at, text.as_str())).collect();
    assert_eq!(sent, expected);
}

#[test]
fn hosts_that_share_their_endpoints_share_what_is_announced_before_their_withdrawal() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(
        &table(&[("a", 1, &[1, 2]), ("b", 1, &[1, 2]), ("c", 2, &[1, 2])]),
        secs(1),
    );
    drain(&mut schedule, secs(1));
    schedule.apply(
        &table(&[("a", 1, &[2]), ("b", 1, &[2]), ("c", 2, &[2])]),
        secs(2),
    );
    assert_eq!(
        drain(&mut schedule, secs(2)),
        ["+a,b@2:1", "-a,b@1:1", "+c@2:2", "-c@1:2"]
    );
}

#[test]
fn a_mass_of_withdrawals_is_paced_and_one_announcement_goes_for_all_that_waits_of_a_host() {
    const RATE: u32 = 500;
    let hosts: Vec<String> = (0..300).map(|n| format!("h{n}")).collect();
    let at = |nodes: &[u8]| {
        let hosts = (30000..).zip(&hosts);
        let routes: Vec<_> = hosts.map(|(port, host)| (&**host, port, nodes)).collect();
        table(&routes)
    };
    // A node goes, all of them are replaced, everything goes for good: announcements and withdrawals of each host.
    let cases = [
        (at(&[1, 2, 3]), 1, 1),
        (at(&[5, 6, 7, 8]), 4 + 1, 4),
        (table(&[]), 0, 4),
    ];
    for (after, announced, withdrawn) in cases {
        let mut schedule = Schedule::new(true, INTERVAL, RATE);
        schedule.connected(secs(1));
        schedule.apply(&at(&[1, 2, 3, 4]), secs(1));
        let began = secs(10);
        news(&mut schedule, secs(1), began);
        assert!(schedule.is_settled());
        schedule.apply(&after, began);
        let all = (announced + withdrawn) * hosts.len();
        let mut now = began;
        let (mut sent, mut withdrawals) = (0, 0);
        while sent < all {
            while let Some(message) = schedule.pop(now).filter(|_| sent < all) {
                sent += 1;
                withdrawals += usize::from(message.subject == wire::UNREGISTER);
            }
            now = schedule.next_deadline().unwrap().max(now);
        }
        assert_eq!(withdrawals, withdrawn * hosts.len());
        let burst = RATE / 10;
        let paced = u32::try_from(sent).unwrap() - burst - 1;
        assert!(now >= began + secs(1) / RATE * paced, "{sent} by {now:?}");
    }
}

#[test]
fn what_could_not_be_announced_puts_the_withdrawal_off_and_nothing_else() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table(&[("a", 1, &[1]), ("b", 2, &[1])]), secs(1));
    drain(&mut schedule, secs(1));
    schedule.apply(&table(&[("a", 1, &[2])]), secs(2));
    assert_eq!(brief(&schedule.pop(secs(2)).unwrap()), "+a@2:1");
    let bridge = schedule.pop(secs(2)).unwrap();
    assert_eq!(brief(&bridge), "+a@2:1");
    schedule.refused(bridge.number, secs(2));
    assert_eq!(drain(&mut schedule, secs(2)), ["-b@1:2"]);
    let sent = news(&mut schedule, secs(2), secs(21));
    assert!(sent.iter().all(|(_, text)| text == "-b@1:2"), "{sent:?}");
    assert_eq!(drain(&mut schedule, secs(22)), ["+a@2:1", "-a@1:1"]);
    let sent = news(&mut schedule, secs(22), secs(1000));
    let again = sent.iter().filter(|(_, text)| text == "-a@1:1");
    assert_eq!(again.count(), 6, "its repetitions count from then on");
    assert_eq!(schedule.withdrawal_count(), 0);
}

#[test]
fn while_nobody_hears_announcements_only_what_needs_none_is_withdrawn() {
    let mut schedule = schedule();
    schedule.connected(secs(1));
    schedule.apply(&table(&[("a", 1, &[1]), ("b", 2, &[1])]), secs(1));
    drain(&mut schedule, secs(1));
    schedule.apply(&table(&[("a", 1, &[2])]), secs(2));
    schedule.set_unheard(true);
    let sent = news(&mut schedule, secs(2), secs(300));
    assert!(sent.iter().any(|(_, text)| text == "-b@1:2"));
    assert!(!sent.iter().any(|(_, text)| text == "-a@1:1"), "{sent:?}");
    schedule.set_unheard(false);
    let sent = news(&mut schedule, secs(300), secs(321));
    let sent: Vec<_> = sent.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(sent[..2], ["+a@2:1", "-a@1:1"]);
}
