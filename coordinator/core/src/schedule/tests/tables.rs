//! One rule of handing out at a time.

use super::*;

#[test]
fn clients_share_evenly_whatever_the_number_of_their_jobs() {
    let wishes = [
        wish(1, "a", 200, 200, 0),
        wish(2, "a", 200, 200, 0),
        wish(3, "a", 200, 200, 0),
        wish(4, "b", 200, 200, 0),
    ];
    let rooms: Vec<Room> = (0..66).map(|n| room(n, 2, 2)).collect();
    let given = offers(&decide(&mut scheduler(), 0, &wishes, &rooms));
    // 132 slots, 13 of them reserved: 119 for these.
    assert_eq!(given, BTreeMap::from([(1, 20), (2, 20), (3, 20), (4, 59)]));
}

#[test]
fn weights_count_between_clients_and_between_jobs() {
    let mut settings = ScheduleSettings { reserved_slot_every: 0, ..ScheduleSettings::default() };
    settings.clients.insert("b".parse().unwrap(), ClientRule { weight: 3, max_running: None });
    let mut wishes = [wish(1, "a", 99, 99, 0), wish(2, "b", 99, 99, 0), wish(3, "b", 99, 99, 0)];
    wishes[2].weight = 2;
    let rooms = [room(1, 40, 40)];
    let given = offers(&decide(&mut Scheduler::new(settings), 0, &wishes, &rooms));
    assert_eq!(given, BTreeMap::from([(1, 10), (2, 10), (3, 20)]));
}

#[test]
fn what_runs_already_counts_and_no_job_gets_more_than_it_wants() {
    let wishes = [wish(1, "a", 99, 50, 6), wish(2, "b", 99, 3, 0), wish(3, "c", 99, 50, 2)];
    let given = offers(&decide(&mut scheduler(), 0, &wishes, &[room(1, 8, 0), room(2, 8, 8)]));
    // 16 slots, one of them reserved: seven can be given.
    assert_eq!(given, BTreeMap::from([(2, 3), (3, 4)]));
}

#[test]
fn work_spreads_over_workers_and_the_prepared_come_first() {
    let wishes = [wish(1, "a", 20, 4, 0)];
    let rooms = [room(1, 4, 1), room(2, 4, 3), room(3, 4, 2)];
    let to = |actions: &[Action]| -> Vec<u128> {
        let session = |action: &Action| match action {
            Action::Offer { session, .. } => session.0,
            other => panic!("{other:?}"),
        };
        actions.iter().map(session).collect()
    };
    assert_eq!(to(&decide(&mut scheduler(), 0, &wishes, &rooms)), [2, 2, 3, 1]);
    let demands = [wishes[0].demand()];
    let mut seats: Vec<Seat<'_>> = rooms.iter().map(Room::seat).collect();
    seats[1].prepared = false;
    assert_eq!(to(&scheduler().decide(0, &demands, &seats)), [3, 1, 3, 2]);
}

#[test]
fn a_pin_is_respected_and_a_job_without_one_goes_anywhere() {
    let mut wishes = [wish(1, "a", 10, 5, 0), wish(2, "b", 1, 1, 0)];
    wishes[0].source = Some("other".to_owned());
    wishes[1].source = None;
    let mut rooms = [room(1, 2, 2), room(2, 2, 2)];
    let given = offers(&decide(&mut scheduler(), 0, &wishes, &rooms));
    assert_eq!(given, BTreeMap::from([(2, 1)]));
    rooms[1].source = "other".to_owned();
    let actions = decide(&mut scheduler(), 0, &wishes, &rooms);
    let pinned = |action: &&Action| matches!(action, Action::Offer { job: JobId(1), session: SessionId(2) });
    assert_eq!(actions.iter().filter(pinned).count(), 2);
    assert_eq!(actions.len(), 3);
}

#[test]
fn reserved_slots_are_for_small_jobs() {
    let rooms: Vec<Room> = (0..30).map(|n| room(n, 1, 1)).collect();
    let bulk = wish(1, "a", 1_000, 1_000, 0);
    let given = offers(&decide(&mut scheduler(), 0, std::slice::from_ref(&bulk), &rooms));
    assert_eq!(given[&1], 27);
    let small = wish(2, "a", caps::SMALL_JOB_TASKS, 64, 0);
    let given = offers(&decide(&mut scheduler(), 0, std::slice::from_ref(&small), &rooms));
    assert_eq!(given[&2], 30, "small jobs may have everything");
    let busy: Vec<Room> = (0..30).map(|n| room(n, 1, u32::from(n < 3))).collect();
    let given = offers(&decide(&mut scheduler(), 0, &[wish(1, "a", 1_000, 900, 27), small], &busy));
    assert_eq!(given, BTreeMap::from([(2, 3)]));
    let few: Vec<Room> = (0..9).map(|n| room(n, 1, 1)).collect();
    let given = offers(&decide(&mut scheduler(), 0, &[bulk], &few));
    assert_eq!(given[&1], 9, "of fewer than ten none is reserved");
}

#[test]
fn a_client_has_no_more_slots_than_its_cap() {
    let mut settings = ScheduleSettings::default();
    settings.clients.insert("a".parse().unwrap(), ClientRule { weight: 1, max_running: Some(3) });
    let wishes = [wish(1, "a", 9, 9, 1), wish(2, "a", 9, 9, 0), wish(3, "b", 9, 2, 0)];
    let given = offers(&decide(&mut Scheduler::new(settings), 0, &wishes, &[room(1, 9, 8)]));
    assert_eq!(given, BTreeMap::from([(1, 1), (2, 1), (3, 2)]));
}

#[test]
fn a_source_that_complains_gets_less_and_later_more() {
    let mut scheduler = scheduler();
    for attempt in 0..40 {
        scheduler.attempt_began(0, &lease(1, attempt, 1));
    }
    let throttled = Ended::Failed { retryable: true, throttled: true };
    for attempt in 0..3 {
        scheduler.attempt_ended(100, JobId(1), AttemptId(attempt), throttled);
    }
    assert_eq!(scheduler.source_limit(SOURCE), Some(20), "halved once");
    let wishes = [wish(1, "a", 60, 50, 17)];
    let given = offers(&decide(&mut scheduler, 200, &wishes, &[room(1, 40, 23)]));
    assert_eq!(given[&1], 3);
    let given = offers(&decide(&mut scheduler, 200, &wishes, &[room(1, 40, 15)]));
    assert_eq!(given, BTreeMap::new(), "25 run already");
    for attempt in 3..23 {
        scheduler.attempt_ended(300, JobId(1), AttemptId(attempt), Ended::Done);
    }
    assert!(scheduler.source_limit(SOURCE).unwrap() > 20);
}

#[test]
fn a_worker_at_which_three_tasks_fail_is_left_alone_for_a_while() {
    let mut scheduler = scheduler();
    let wishes = [wish(1, "a", 9, 9, 0)];
    let rooms = [room(1, 2, 2), room(2, 2, 2)];
    let fails = Ended::Failed { retryable: false, throttled: false };
    for attempt in 0..3 {
        assert!(!scheduler.quarantined(SessionId(1), 0));
        scheduler.attempt_began(0, &lease(1, attempt, 1));
        scheduler.attempt_ended(0, JobId(1), AttemptId(attempt), fails);
    }
    assert!(scheduler.quarantined(SessionId(1), 0));
    let to_first = |actions: Vec<Action>| {
        actions.iter().filter(|action| matches!(action, Action::Offer { session: SessionId(1), .. })).count()
    };
    assert_eq!(to_first(decide(&mut scheduler, 1, &wishes, &rooms)), 0);
    assert_eq!(to_first(decide(&mut scheduler, 60_000, &wishes, &rooms)), 2);
    assert_eq!(to_first(decide(&mut scheduler, 1, &wishes, &rooms[..1])), 2, "who else?");
}

#[test]
fn what_fails_everywhere_and_what_may_pass_is_not_held_against_workers() {
    let mut scheduler = scheduler();
    let mut attempt = 0;
    for task in 0..9 {
        for session in [1, 2] {
            attempt += 1;
            let lease = Lease { task: TaskId(task), ..lease(1, attempt, session) };
            scheduler.attempt_began(0, &lease);
            let bad_data = Ended::Failed { retryable: false, throttled: false };
            scheduler.attempt_ended(0, JobId(1), AttemptId(attempt), bad_data);
            attempt += 1;
            scheduler.attempt_began(
                0,
                &Lease { attempt: AttemptId(attempt), task: TaskId(attempt as u32 + 99), ..lease },
            );
            let passing = Ended::Failed { retryable: true, throttled: false };
            scheduler.attempt_ended(0, JobId(1), AttemptId(attempt), passing);
        }
    }
    assert!(!scheduler.quarantined(SessionId(1), 0) && !scheduler.quarantined(SessionId(2), 0));
}

#[test]
fn who_declines_is_asked_again_a_little_later() {
    let mut scheduler = scheduler();
    let wishes = [wish(1, "a", 9, 1, 0)];
    scheduler.attempt_began(0, &lease(1, 0, 1));
    scheduler.attempt_ended(0, JobId(1), AttemptId(0), Ended::Declined);
    assert_eq!(decide(&mut scheduler, 10, &wishes, &[room(1, 1, 1)]), []);
    assert_eq!(decide(&mut scheduler, 1_000, &wishes, &[room(1, 1, 1)]).len(), 1);
}
