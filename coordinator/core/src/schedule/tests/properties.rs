//! What holds of every decision, whatever the situation.

use proptest::prelude::*;

use super::*;

const SOURCES: [&str; 2] = [SOURCE, "postgres:db"];
const CLIENTS: [&str; 4] = ["a", "b", "c", "d"];
const CAPPED: &str = "d";
const CAP: u32 = 5;

fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let one = (0..CLIENTS.len(), 0..3_usize, 1..200_u32, 0..40_u32, 0..10_u32, 1..4_u32);
    proptest::collection::vec(one, 0..12).prop_map(|jobs| {
        let numbered = jobs.into_iter().enumerate();
        let job = |(number, (client, source, tasks, waiting, running, weight)): (
            usize,
            (usize, usize, u32, u32, u32, u32),
        )| Wish {
            source: SOURCES.get(source).map(|source: &&str| (*source).to_owned()),
            weight,
            ..wish(number as u128, CLIENTS[client], tasks, waiting, running)
        };
        numbered.map(job).collect()
    })
}

fn rooms() -> impl Strategy<Value = Vec<Room>> {
    proptest::collection::vec((0..SOURCES.len(), 0..6_u32, 0..8_u32), 0..20).prop_map(|seats| {
        let numbered = seats.into_iter().enumerate();
        let seat = |(number, (source, slots, free)): (usize, (usize, u32, u32))| Room {
            source: SOURCES[source].to_owned(),
            ..room(number as u128, slots, free)
        };
        numbered.map(seat).collect()
    })
}

fn settings() -> ScheduleSettings {
    let mut settings = ScheduleSettings { look_every_ms: 0, ..ScheduleSettings::default() };
    settings.clients.insert(CAPPED.parse().unwrap(), ClientRule { weight: 1, max_running: Some(CAP) });
    settings.clients.insert("b".parse().unwrap(), ClientRule { weight: 2, max_running: None });
    settings
}

/// The situation after the offers: what is counted where.
struct After {
    wishes: Vec<Wish>,
    rooms: Vec<Room>,
    offered: BTreeMap<u128, u32>,
}

impl After {
    fn of(wishes: &[Wish], rooms: &[Room], actions: &[Action]) -> After {
        let (mut wishes, mut rooms) = (wishes.to_vec(), rooms.to_vec());
        for action in actions {
            let Action::Offer { job, session } = action else { continue };
            let room = rooms.iter_mut().find(|room| room.session == *session).unwrap();
            let wish = wishes.iter_mut().find(|wish| wish.job == *job).unwrap();
            assert!(room.free > 0 && room.slots > 0, "over-committed");
            assert!(wish.waiting > 0, "more than it wants");
            assert!(wish.source.as_ref().is_none_or(|pin| *pin == room.source), "pin");
            room.free -= 1;
            wish.waiting -= 1;
            wish.running += 1;
        }
        After { wishes, rooms, offered: offers(actions) }
    }

    fn client_running(&self, client: &ClientId) -> u32 {
        self.wishes.iter().filter(|wish| wish.client == *client).map(|wish| wish.running).sum()
    }

    fn bulk_running(&self) -> u32 {
        self.wishes.iter().filter(|wish| wish.tasks > caps::SMALL_JOB_TASKS).map(|wish| wish.running).sum()
    }

    fn bulk_limit(&self) -> u32 {
        let slots: u32 = self.rooms.iter().map(|room| room.slots).sum();
        if slots < caps::RESERVED_SLOT_EVERY { u32::MAX } else { slots - slots / caps::RESERVED_SLOT_EVERY }
    }

    fn busy(&self, source: &str) -> u32 {
        let of_source = self.rooms.iter().filter(|room| room.source == source);
        of_source.map(|room| room.slots - room.free.min(room.slots)).sum()
    }

    fn may_have_more(&self, wish: &Wish, limits: &BTreeMap<&str, u32>) -> bool {
        let reads = |room: &&Room| {
            let is_within =
                limits.get(room.source.as_str()).is_none_or(|limit| self.busy(&room.source) < *limit);
            room.free.min(room.slots) > 0
                && is_within
                && wish.source.as_ref().is_none_or(|pin| *pin == room.source)
        };
        let is_small = wish.tasks <= caps::SMALL_JOB_TASKS;
        let within_cap = wish.client.as_str() != CAPPED || self.client_running(&wish.client) < CAP;
        self.rooms.iter().any(|room| reads(&room))
            && within_cap
            && (is_small || self.bulk_running() < self.bulk_limit())
    }
}

fn clamp(rooms: &mut [Room]) {
    for room in rooms {
        room.free = room.free.min(room.slots);
    }
}

proptest! {
    #[test]
    fn offers_keep_every_rule_and_leave_no_slot_that_somebody_may_have(
        wishes in wishes(),
        mut rooms in rooms(),
        complaints in proptest::collection::vec(1..12_u64, 0..2),
    ) {
        clamp(&mut rooms);
        let mut scheduler = Scheduler::new(settings());
        let mut limits = BTreeMap::new();
        for (source, running) in SOURCES.iter().zip(complaints) {
            for attempt in 0..running {
                let lease = Lease { source, ..lease(77, attempt + 1_000 * u64::from(source.len() as u32), 1) };
                scheduler.attempt_began(0, &lease);
            }
            let throttled = Ended::Failed { retryable: true, throttled: true };
            let attempt = AttemptId(1_000 * u64::from(source.len() as u32));
            scheduler.attempt_ended(0, JobId(77), attempt, throttled);
            limits.insert(*source, scheduler.source_limit(source).unwrap());
        }
        scheduler.job_ended(0, JobId(77));
        let before = After::of(&wishes, &rooms, &[]);
        let actions = decide(&mut scheduler, 1_000, &wishes, &rooms);
        let after = After::of(&wishes, &rooms, &actions);
        let given = |client: &str| -> u32 {
            let of_client = wishes.iter().filter(|wish| wish.client.as_str() == client);
            of_client.map(|wish| after.offered.get(&wish.job.0).copied().unwrap_or(0)).sum()
        };
        prop_assert!(given(CAPPED) == 0 || after.client_running(&CAPPED.parse().unwrap()) <= CAP);
        let bulk_grew = after.bulk_running() > before.bulk_running();
        prop_assert!(!bulk_grew || after.bulk_running() <= after.bulk_limit());
        for (source, limit) in &limits {
            let grew = after.busy(source) > before.busy(source);
            prop_assert!(!grew || after.busy(source) <= *limit);
        }
        for wish in after.wishes.iter().filter(|wish| wish.waiting > 0) {
            prop_assert!(!after.may_have_more(wish, &limits), "a slot stayed idle for {wish:?}");
        }
    }

    #[test]
    fn who_still_waits_has_no_less_than_who_was_served(wishes in wishes(), mut rooms in rooms()) {
        clamp(&mut rooms);
        let mut wishes = wishes;
        rooms.iter_mut().for_each(|room| room.source = SOURCE.to_owned());
        wishes.iter_mut().for_each(|wish| wish.source = None);
        let no_caps = ScheduleSettings { reserved_slot_every: 0, ..ScheduleSettings::default() };
        let actions = decide(&mut Scheduler::new(no_caps), 0, &wishes, &rooms);
        let after = After::of(&wishes, &rooms, &actions);
        for waiting in after.wishes.iter().filter(|wish| wish.waiting > 0) {
            for served in after.wishes.iter().filter(|wish| after.offered.contains_key(&wish.job.0)) {
                if served.client != waiting.client {
                    let (has, waits) = (after.client_running(&served.client), after.client_running(&waiting.client));
                    prop_assert!(has - 1 <= waits, "{served:?} has {has}, {waiting:?} {waits}");
                } else if served.job != waiting.job {
                    let (has, waits) = (u64::from(served.running - 1), u64::from(waiting.running));
                    prop_assert!(has * u64::from(waiting.weight) <= waits * u64::from(served.weight));
                }
            }
        }
    }

    #[test]
    fn equal_histories_give_equal_answers(
        wishes in wishes(),
        mut rooms in rooms(),
        reports in proptest::collection::vec((0..8_u64, 0..20_u128, 0..1_000_000_u64, 0..900_000_000_u64), 0..60),
        endings in proptest::collection::vec((0..8_u64, 0..5_usize), 0..20),
    ) {
        clamp(&mut rooms);
        let run = |wishes: &[Wish], rooms: &[Room]| {
            let mut scheduler = Scheduler::new(settings());
            let mut log = Vec::new();
            let mut now = 0;
            for (attempt, session, written, left) in &reports {
                now += 1_700;
                scheduler.report(now, &lease(u128::from(attempt % 3), *attempt, *session), progress(*written, *left));
                log.extend(decide(&mut scheduler, now, wishes, rooms));
            }
            for (attempt, how) in &endings {
                now += 900;
                let how = [
                    Ended::Done,
                    Ended::Failed { retryable: false, throttled: false },
                    Ended::Failed { retryable: true, throttled: true },
                    Ended::Declined,
                    Ended::Lost,
                ][*how];
                scheduler.attempt_ended(now, JobId(u128::from(attempt % 3)), AttemptId(*attempt), how);
                log.extend(decide(&mut scheduler, now, wishes, rooms));
            }
            log
        };
        // The order in which the caller lists things does not matter either.
        let (mut other_wishes, mut other_rooms) = (wishes.clone(), rooms.clone());
        other_wishes.reverse();
        other_rooms.reverse();
        let first = run(&wishes, &rooms);
        prop_assert_eq!(&first, &run(&wishes, &rooms));
        prop_assert_eq!(&first, &run(&other_wishes, &other_rooms));
    }

    #[test]
    fn what_is_asked_of_attempts_stays_within_its_bounds(
        attempts in proptest::collection::vec((0..3_u128, 0..3_000_000_u64, 1..4_000_u64), 1..60),
        idle in 1..30_u128,
    ) {
        let mut scheduler = Scheduler::new(settings());
        let count = attempts.len() as u128;
        let mut rooms: Vec<Room> = (0..count).map(|n| room(n, 1, 0)).collect();
        rooms.extend((0..idle).map(|n| room(1_000 + n, 1, 1)));
        let running = |job| attempts.iter().filter(|(of, _, _)| *of == job).count() as u32;
        let wishes: Vec<Wish> = (0..3).map(|job| wish(job, "a", 64, 0, running(job))).collect();
        let may_double = ((rooms.len() as u32) / 20).max(1);
        let (mut doubled, mut cut) = (BTreeMap::new(), BTreeMap::new());
        for beat in 0..40_u64 {
            let now = beat * 3_000;
            for (number, (job, rate, size_mb)) in (0_u64..).zip(&attempts) {
                let done = (beat * 3 * rate).min(size_mb * 1_000_000 - 1);
                let standing = progress(done, size_mb * 1_000_000 - done);
                scheduler.report(now, &lease(*job, number, u128::from(number)), standing);
            }
            let actions = decide(&mut scheduler, now, &wishes, &rooms);
            prop_assert!(actions.len() <= idle as usize, "more help than hands");
            for action in actions {
                match action {
                    Action::Speculate { attempt, session, .. } => {
                        prop_assert!(session.0 >= 1_000, "only an idle worker");
                        prop_assert!(doubled.insert(attempt, now).is_none_or(|at| now - at >= 45_000));
                    }
                    Action::Truncate { attempt, .. } => {
                        prop_assert!(cut.insert(attempt, now).is_none_or(|at| now - at >= 45_000));
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            let lately = doubled.values().filter(|at| now - **at < 15_000).count();
            prop_assert!(lately <= may_double as usize);
        }
    }
}
