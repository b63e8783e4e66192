//! Cuts, second attempts and yields.

use super::*;

const MB: u64 = 1_000_000;

/// Beats of three seconds in which each attempt (number, bytes a second, bytes at first) of job 1 reports; attempt n
/// runs in session n.
fn advance(
    scheduler: &mut Scheduler,
    beats: std::ops::RangeInclusive<u64>,
    attempts: &[(u64, u64, u64)],
) -> u64 {
    for beat in beats.clone() {
        for (attempt, rate, size) in attempts {
            let done = beat * 3 * rate;
            let standing = progress(done, size.saturating_sub(done));
            scheduler.report(beat * 3_000, &lease(1, *attempt, u128::from(*attempt)), standing);
        }
    }
    beats.end() * 3_000
}

fn busy(count: u128) -> Vec<Room> {
    (1..=count).map(|n| room(n, 1, 0)).collect()
}

fn cuts(actions: &[Action]) -> Vec<u64> {
    let cut = |action: &Action| match action {
        Action::Truncate { attempt, .. } => Some(attempt.0),
        _ => None,
    };
    actions.iter().filter_map(cut).collect()
}

#[test]
fn idle_slots_cut_what_takes_longest_and_ask_once() {
    let mut scheduler = scheduler();
    let now = advance(
        &mut scheduler,
        0..=5,
        &[(1, MB, 100 * MB), (2, MB, 900 * MB), (3, MB, 300 * MB), (4, MB, 30 * MB)],
    );
    let mut rooms = busy(4);
    let wishes = [wish(1, "a", 50, 0, 4)];
    assert_eq!(cuts(&decide(&mut scheduler, now, &wishes, &rooms)), [], "nobody is idle");
    rooms.push(room(9, 2, 2));
    assert_eq!(cuts(&decide(&mut scheduler, now + 500, &wishes, &rooms)), [2, 3], "as many as are idle");
    rooms.push(room(10, 9, 9));
    assert_eq!(
        cuts(&decide(&mut scheduler, now + 1_000, &wishes, &rooms)),
        [1],
        "not the same again, not the short"
    );
    // One gives its half away, one refuses.
    scheduler.cut_answered(now + 1_100, JobId(1), AttemptId(2), true);
    scheduler.cut_answered(now + 1_100, JobId(1), AttemptId(3), false);
    let wishes = [wish(1, "a", 51, 1, 4)];
    let actions = decide(&mut scheduler, now + 1_200, &wishes, &rooms);
    assert_eq!(offers(&actions), BTreeMap::from([(1, 1)]));
    let wishes = [wish(1, "a", 51, 0, 5)];
    assert_eq!(cuts(&decide(&mut scheduler, now + 2_000, &wishes, &rooms)), [2], "its rest is still long");
    assert_eq!(cuts(&decide(&mut scheduler, now + 31_000, &wishes, &rooms)), [], "refused: a pause");
    assert_eq!(cuts(&decide(&mut scheduler, now + 31_600, &wishes, &rooms)), [3]);
}

#[test]
fn what_waits_comes_before_cuts() {
    let mut scheduler = scheduler();
    let now = advance(&mut scheduler, 0..=5, &[(1, MB, 900 * MB)]);
    let mut rooms = busy(1);
    rooms.push(room(9, 1, 1));
    let actions = decide(&mut scheduler, now, &[wish(1, "a", 9, 3, 1)], &rooms);
    assert_eq!(offers(&actions), BTreeMap::from([(1, 1)]));
    assert_eq!(actions.len(), 1);
}

#[test]
fn reserved_slots_do_not_help_bulk_jobs() {
    let mut scheduler = scheduler();
    let attempts: Vec<(u64, u64, u64)> = (1..=9).map(|n| (n, MB, 900 * MB)).collect();
    let now = advance(&mut scheduler, 0..=5, &attempts);
    let mut rooms = busy(9);
    rooms.push(room(10, 1, 1));
    assert_eq!(decide(&mut scheduler, now, &[wish(1, "a", 99, 0, 9)], &rooms), []);
    assert_eq!(cuts(&decide(&mut scheduler, now + 500, &[wish(1, "a", 20, 0, 9)], &rooms)).len(), 1);
}

#[test]
fn who_reports_and_does_not_move_gets_a_second_attempt_elsewhere() {
    let mut scheduler = scheduler();
    let mut attempts: Vec<(u64, u64, u64)> = (1..=6).map(|n| (n, MB, 900 * MB)).collect();
    attempts[1].1 = 0;
    attempts[3].1 = 0;
    let mut rooms = busy(6);
    // A worker whose attempt does not move is no place to try, for its own or another's task.
    (rooms[3].slots, rooms[3].free) = (2, 1);
    let doubles = |actions: &[Action]| -> Vec<(u64, u128)> {
        let double = |action: &Action| match action {
            Action::Speculate { attempt, session, .. } => Some((attempt.0, session.0)),
            _ => None,
        };
        actions.iter().filter_map(double).collect()
    };
    let wishes = [wish(1, "a", 50, 0, 6)];
    let now = advance(&mut scheduler, 0..=11, &attempts);
    assert_eq!(doubles(&decide(&mut scheduler, now, &wishes, &rooms)), []);
    rooms.push(room(9, 5, 5));
    assert_eq!(doubles(&decide(&mut scheduler, now + 600, &wishes, &rooms)), [(2, 9)]);
    let more = decide(&mut scheduler, now + 1_200, &wishes, &rooms);
    assert_eq!(doubles(&more), [], "one of twenty slots, at least one");
    // The second began, and won: the other may have one now.
    scheduler.attempt_began(now + 1_300, &Lease { task: TaskId(2), ..lease(1, 50, 9) });
    scheduler.attempt_ended(now + 5_000, JobId(1), AttemptId(50), Ended::Done);
    scheduler.attempt_ended(now + 5_000, JobId(1), AttemptId(2), Ended::Revoked);
    let now = advance(&mut scheduler, 12..=14, &[(4, 0, 900 * MB)]);
    assert!(scheduler.quarantined(SessionId(2), now), "the next task would fare no better");
    assert_eq!(doubles(&decide(&mut scheduler, now, &wishes, &rooms)), [(4, 9)]);
}

#[test]
fn of_two_attempts_that_are_both_stuck_one_is_taken_back() {
    let mut scheduler = scheduler();
    let rooms = [room(1, 1, 0), room(2, 1, 0), room(3, 1, 1)];
    for beat in 0..=11 {
        for attempt in [1, 2] {
            let pair = Lease { task: TaskId(7), ..lease(1, attempt, u128::from(attempt)) };
            scheduler.report(beat * 3_000, &pair, progress(0, 900 * MB));
        }
    }
    let taken_back = Action::Revoke { job: JobId(1), attempt: AttemptId(2), session: SessionId(2) };
    let wishes = [wish(1, "a", 50, 0, 2)];
    assert_eq!(decide(&mut scheduler, 33_000, &wishes, &rooms), [taken_back]);
    scheduler.attempt_ended(33_100, JobId(1), AttemptId(2), Ended::Revoked);
    for beat in 12..=22 {
        let alone = Lease { task: TaskId(7), ..lease(1, 1, 1) };
        scheduler.report(beat * 3_000, &alone, progress(0, 900 * MB));
    }
    let again = Action::Speculate { job: JobId(1), attempt: AttemptId(1), session: SessionId(3) };
    assert_eq!(decide(&mut scheduler, 66_000, &[wish(1, "a", 50, 0, 1)], &rooms), [again]);
}

#[test]
fn who_does_not_move_makes_way_for_a_second_that_does_and_that_may_be_cut() {
    let mut scheduler = scheduler();
    let rooms = [room(1, 1, 0), room(2, 1, 0), room(3, 1, 1)];
    let pair = |attempt| Lease { task: TaskId(7), ..lease(1, attempt, u128::from(attempt)) };
    for beat in 0..=11 {
        scheduler.report(beat * 3_000, &pair(1), progress(0, 900 * MB));
    }
    scheduler.attempt_began(33_000, &pair(2));
    let wishes = [wish(1, "a", 50, 0, 2)];
    assert_eq!(decide(&mut scheduler, 33_000, &wishes, &rooms), [], "it may hang too");
    for beat in 12..=14 {
        scheduler.report(beat * 3_000, &pair(1), progress(0, 900 * MB));
        scheduler.report(beat * 3_000, &pair(2), progress(beat * MB, 900 * MB - beat * MB));
    }
    let taken_back = Action::Revoke { job: JobId(1), attempt: AttemptId(1), session: SessionId(1) };
    assert_eq!(decide(&mut scheduler, 42_000, &wishes, &rooms), [taken_back]);
    scheduler.attempt_ended(42_100, JobId(1), AttemptId(1), Ended::Revoked);
    assert_eq!(cuts(&decide(&mut scheduler, 42_600, &[wish(1, "a", 50, 0, 1)], &rooms)), [2]);
}

#[test]
fn a_crawling_attempt_counts_as_stuck_a_silent_one_does_not() {
    let mut scheduler = scheduler();
    let mut attempts: Vec<(u64, u64, u64)> = (1..=6).map(|n| (n, MB, 9_000 * MB)).collect();
    attempts[2].1 = MB / 20;
    let mut rooms = busy(6);
    rooms.push(room(9, 1, 1));
    let now = advance(&mut scheduler, 0..=21, &attempts);
    let actions = decide(&mut scheduler, now, &[wish(1, "a", 50, 0, 6)], &rooms);
    assert_eq!(actions, [Action::Speculate { job: JobId(1), attempt: AttemptId(3), session: SessionId(9) }]);
    let mut silent = self::scheduler();
    let now = advance(&mut silent, 0..=2, &attempts);
    let actions = decide(&mut silent, now + 100_000, &[wish(1, "a", 50, 0, 6)], &rooms);
    assert!(!actions.iter().any(|action| matches!(action, Action::Speculate { .. })));
}

#[test]
fn plan_tasks_are_neither_cut_nor_doubled_nor_yielded() {
    let mut scheduler = scheduler();
    for beat in 0..=40 {
        let plan = Lease { divisible: false, ..lease(1, 1, 1) };
        scheduler.report(beat * 3_000, &plan, progress(0, 900 * MB));
    }
    let rooms = [room(1, 1, 0), room(9, 1, 1)];
    assert_eq!(decide(&mut scheduler, 120_000, &[wish(1, "a", 1, 0, 1)], &rooms), []);
    let wishes = [wish(1, "a", 1, 0, 1), wish(2, "b", 1, 1, 0)];
    decide(&mut scheduler, 121_000, &wishes, &rooms[..1]);
    assert_eq!(decide(&mut scheduler, 190_000, &wishes, &rooms[..1]), []);
}

fn yields(actions: &[Action]) -> Vec<(u128, u64)> {
    let given = |action: &Action| match action {
        Action::Yield { job, attempt, .. } => Some((job.0, attempt.0)),
        _ => None,
    };
    actions.iter().filter_map(given).collect()
}

#[test]
fn the_most_over_served_yields_to_who_waited() {
    let mut scheduler = scheduler();
    let rooms = busy(6);
    for attempt in 1..=6 {
        let job = if attempt <= 4 { 1 } else { 2 };
        scheduler.attempt_began(0, &lease(job, attempt, u128::from(attempt)));
    }
    let wishes = [wish(1, "a", 90, 9, 4), wish(2, "b", 90, 9, 2), wish(3, "c", 90, 9, 0)];
    assert_eq!(decide(&mut scheduler, 4_000, &wishes, &rooms), []);
    assert_eq!(decide(&mut scheduler, 9_100, &wishes, &rooms), [], "patience is over, but all are too young");
    assert_eq!(yields(&decide(&mut scheduler, 10_100, &wishes, &rooms)), [(1, 1)]);
    assert_eq!(decide(&mut scheduler, 11_000, &wishes, &rooms), [], "one at a time");
    // It yielded: the slot goes to who waited.
    scheduler.attempt_ended(12_000, JobId(1), AttemptId(1), Ended::Revoked);
    let mut freed = rooms.clone();
    freed[0].free = 1;
    let wishes = [wish(1, "a", 90, 10, 3), wish(2, "b", 90, 9, 2), wish(3, "c", 90, 9, 0)];
    assert_eq!(offers(&decide(&mut scheduler, 12_000, &wishes, &freed)), BTreeMap::from([(3, 1)]));
    scheduler.attempt_began(12_100, &lease(3, 7, 1));
    // 3, 2, 1: a second one evens it out, then it stops.
    let wishes = [wish(1, "a", 90, 10, 3), wish(2, "b", 90, 9, 2), wish(3, "c", 90, 8, 1)];
    assert_eq!(yields(&decide(&mut scheduler, 18_000, &wishes, &rooms)), [(1, 2)]);
    scheduler.attempt_ended(18_100, JobId(1), AttemptId(2), Ended::Revoked);
    scheduler.attempt_began(18_200, &lease(3, 8, 2));
    let wishes = [wish(1, "a", 90, 11, 2), wish(2, "b", 90, 9, 2), wish(3, "c", 90, 7, 2)];
    for later in 0..2_000 {
        assert_eq!(
            decide(&mut scheduler, 18_300 + later * 500, &wishes, &rooms),
            [],
            "even shares are final"
        );
    }
}

#[test]
fn a_yield_that_is_not_heard_is_asked_of_another() {
    let mut scheduler = scheduler();
    for attempt in 1..=3 {
        scheduler.attempt_began(0, &lease(1, attempt, u128::from(attempt)));
    }
    let wishes = [wish(1, "a", 90, 9, 3), wish(3, "c", 90, 9, 0)];
    decide(&mut scheduler, 20_000, &wishes, &busy(3));
    assert_eq!(yields(&decide(&mut scheduler, 26_000, &wishes, &busy(3))), [(1, 1)]);
    assert_eq!(yields(&decide(&mut scheduler, 35_000, &wishes, &busy(3))), []);
    assert_eq!(yields(&decide(&mut scheduler, 41_000, &wishes, &busy(3))), [(1, 2)]);
}

#[test]
fn jobs_of_one_client_even_out_too() {
    let mut scheduler = scheduler();
    for attempt in 1..=3 {
        scheduler.attempt_began(0, &lease(1, attempt, u128::from(attempt)));
    }
    let wishes = [wish(1, "a", 90, 9, 3), wish(2, "a", 90, 9, 0)];
    decide(&mut scheduler, 20_000, &wishes, &busy(3));
    assert_eq!(yields(&decide(&mut scheduler, 26_000, &wishes, &busy(3))), [(1, 1)]);
}
