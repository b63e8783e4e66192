//! Clusters in virtual time: the scheduler's answers are carried out, with delays, by simulated workers.

use super::*;

const STEP_MS: u64 = 500;
const MB: u64 = 1_000_000;
/// A worker seals and commits before it gives a slot back.
const YIELD_MS: u64 = 4_000;
const CUT_MS: u64 = 1_000;

/// SplitMix64: the seed is the run.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }
}

struct SimJob {
    wish: Wish,
    arrives: u64,
    /// Task sizes in bytes.
    waiting: Vec<(TaskId, u64)>,
    next_task: u32,
    first_slot: Option<u64>,
    /// How long it waited for its first slot while its client was below its share.
    waited_below_share: u64,
    done: Option<u64>,
    slot_ms: u64,
}

struct SimAttempt {
    task: TaskId,
    worker: usize,
    size: u64,
    written: u64,
    yields_at: Option<u64>,
    cut_at: Option<u64>,
}

struct Worker {
    room: Room,
    /// Bytes a millisecond of one slot; 0: it hangs.
    rate: u64,
}

struct World {
    now: u64,
    scheduler: Scheduler,
    jobs: Vec<SimJob>,
    workers: Vec<Worker>,
    attempts: BTreeMap<(JobId, AttemptId), SimAttempt>,
    next_attempt: u64,
    actions: Vec<(u64, Action)>,
    /// When each task ended.
    task_ends: Vec<u64>,
    idle_while_wanted_ms: u64,
}

impl World {
    fn new(settings: ScheduleSettings, slots: &[u32], rate: impl Fn(usize) -> u64) -> World {
        let worker = |(number, slots): (usize, &u32)| {
            let mut room = room(number as u128, *slots, *slots);
            room.worker = format!("wrk_{number}").parse().unwrap();
            Worker { room, rate: rate(number) }
        };
        World {
            now: 0,
            scheduler: Scheduler::new(settings),
            jobs: Vec::new(),
            workers: slots.iter().enumerate().map(worker).collect(),
            attempts: BTreeMap::new(),
            next_attempt: 0,
            actions: Vec::new(),
            task_ends: Vec::new(),
            idle_while_wanted_ms: 0,
        }
    }

    fn job(&mut self, client: &str, arrives: u64, sizes: impl IntoIterator<Item = u64>) {
        let waiting: Vec<(TaskId, u64)> = (0..).map(TaskId).zip(sizes).collect();
        let tasks = waiting.len() as u32;
        self.jobs.push(SimJob {
            wish: wish(self.jobs.len() as u128, client, tasks, 0, 0),
            arrives,
            waiting,
            next_task: tasks,
            first_slot: None,
            waited_below_share: 0,
            done: None,
            slot_ms: 0,
        });
    }

    fn slots(&self) -> u32 {
        self.workers.iter().map(|worker| worker.room.slots).sum()
    }

    fn run(&mut self, until: u64) {
        while self.now < until && self.jobs.iter().any(|job| job.done.is_none()) {
            self.work();
            self.answer();
            if self.now.is_multiple_of(3_000) {
                self.beat();
            }
            self.decide();
            self.account();
            self.now += STEP_MS;
        }
    }

    /// Every attempt advances; some end.
    fn work(&mut self) {
        let mut done = Vec::new();
        for (key, attempt) in &mut self.attempts {
            attempt.written =
                (attempt.written + self.workers[attempt.worker].rate * STEP_MS).min(attempt.size);
            if attempt.written == attempt.size {
                done.push(*key);
            }
        }
        for key in done {
            let Some(winner) = self.attempts.get(&key) else { continue };
            let task = winner.task;
            let of_task = |(of, other): (&(JobId, AttemptId), &SimAttempt)| {
                (of.0 == key.0 && other.task == task).then_some(*of)
            };
            let all: Vec<_> = self.attempts.iter().filter_map(of_task).collect();
            for (job, attempt) in all {
                let how = if attempt == key.1 { Ended::Done } else { Ended::Revoked };
                self.end(job, attempt, how);
            }
            self.task_ends.push(self.now);
        }
    }

    fn end(&mut self, job: JobId, attempt: AttemptId, how: Ended) -> Option<SimAttempt> {
        let ended = self.attempts.remove(&(job, attempt))?;
        self.workers[ended.worker].room.free += 1;
        self.scheduler.attempt_ended(self.now, job, attempt, how);
        Some(ended)
    }

    /// Workers that move answer what they were asked.
    fn answer(&mut self) {
        let (mut yielded, mut cut) = (Vec::new(), Vec::new());
        for (key, attempt) in &mut self.attempts {
            if self.workers[attempt.worker].rate == 0 {
                continue;
            }
            if attempt.yields_at.is_some_and(|at| at <= self.now) {
                yielded.push(*key);
            } else if attempt.cut_at.take_if(|at| *at <= self.now).is_some() {
                let half = (attempt.size - attempt.written) / 2;
                attempt.size -= half;
                cut.push((*key, half));
            }
        }
        for ((job, attempt), half) in cut {
            self.scheduler.cut_answered(self.now, job, attempt, half > 0);
            let job = &mut self.jobs[job.0 as usize];
            job.waiting.push((TaskId(job.next_task), half));
            job.next_task += 1;
        }
        for (job, attempt) in yielded {
            let Some(ended) = self.end(job, attempt, Ended::Revoked) else { continue };
            let rest = (ended.task, ended.size - ended.written);
            self.jobs[job.0 as usize].waiting.insert(0, rest);
        }
    }

    fn beat(&mut self) {
        for ((job, attempt), at_work) in &self.attempts {
            let lease = Lease { task: at_work.task, ..lease(job.0, attempt.0, at_work.worker as u128) };
            let standing = progress(at_work.written, at_work.size - at_work.written);
            self.scheduler.report(self.now, &lease, standing);
        }
    }

    fn decide(&mut self) {
        let mut running: BTreeMap<JobId, u32> = BTreeMap::new();
        for (job, _) in self.attempts.keys() {
            *running.entry(*job).or_default() += 1;
        }
        let mut wishes = Vec::new();
        for job in self.jobs.iter_mut().filter(|job| job.arrives <= self.now && job.done.is_none()) {
            job.wish.waiting = job.waiting.len() as u32;
            job.wish.running = running.get(&job.wish.job).copied().unwrap_or(0);
            job.slot_ms += u64::from(job.wish.running) * STEP_MS;
            if job.wish.waiting == 0 && job.wish.running == 0 {
                job.done = Some(self.now);
                self.scheduler.job_ended(self.now, job.wish.job);
            } else {
                wishes.push(job.wish.clone());
            }
        }
        let rooms: Vec<Room> = self.workers.iter().map(|worker| worker.room.clone()).collect();
        for action in decide(&mut self.scheduler, self.now, &wishes, &rooms) {
            self.actions.push((self.now, action));
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        let now = self.now;
        match action {
            Action::Offer { job, session } => {
                let taken = &mut self.jobs[job.0 as usize];
                let (task, size) = taken.waiting.remove(0);
                taken.first_slot.get_or_insert(now);
                self.begin(job, session, task, size);
            }
            Action::Speculate { job, attempt, session } => {
                let slow = &self.attempts[&(job, attempt)];
                assert_ne!(slow.worker, session.0 as usize);
                let (task, size) = (slow.task, slow.size - slow.written);
                self.begin(job, session, task, size);
            }
            Action::Truncate { job, attempt, .. } => {
                self.attempts.get_mut(&(job, attempt)).unwrap().cut_at = Some(now + CUT_MS);
            }
            Action::Revoke { job, attempt, .. } => {
                let stuck = &self.attempts[&(job, attempt)];
                assert_eq!(self.workers[stuck.worker].rate, 0, "only what does not move");
                let of_task = |(of, other): &(&(JobId, AttemptId), &SimAttempt)| {
                    of.0 == job && other.task == stuck.task
                };
                assert_eq!(self.attempts.iter().filter(of_task).count(), 2, "only of pairs");
                self.end(job, attempt, Ended::Revoked);
            }
            Action::Yield { job, attempt, .. } => {
                self.attempts.get_mut(&(job, attempt)).unwrap().yields_at = Some(now + YIELD_MS);
            }
        }
    }

    fn begin(&mut self, job: JobId, session: SessionId, task: TaskId, size: u64) {
        let worker = session.0 as usize;
        let free = &mut self.workers[worker].room.free;
        *free = free.checked_sub(1).expect("a seat is never over-committed");
        let id = AttemptId(self.next_attempt);
        self.next_attempt += 1;
        let attempt = SimAttempt { task, worker, size, written: 0, yields_at: None, cut_at: None };
        self.attempts.insert((job, id), attempt);
        let lease = Lease { task, ..lease(job.0, id.0, session.0) };
        self.scheduler.attempt_began(self.now, &lease);
    }

    /// Waiting below the share, and slots that are idle although somebody wants them.
    fn account(&mut self) {
        let mut of_client: BTreeMap<&ClientId, u32> = BTreeMap::new();
        let active = self.jobs.iter().filter(|job| job.arrives <= self.now && job.done.is_none());
        for job in active {
            *of_client.entry(&job.wish.client).or_default() += 0;
        }
        for (job, _) in self.attempts.keys() {
            if let Some(count) = of_client.get_mut(&self.jobs[job.0 as usize].wish.client) {
                *count += 1;
            }
        }
        let share = self.slots() / (of_client.len() as u32).max(1);
        let below: Vec<ClientId> = of_client
            .iter()
            .filter(|(_, count)| **count < share.max(1))
            .map(|(client, _)| (*client).clone())
            .collect();
        let mut is_wanted = false;
        for job in &mut self.jobs {
            let waits = job.arrives <= self.now && !job.waiting.is_empty();
            is_wanted |= waits && job.wish.tasks <= caps::SMALL_JOB_TASKS;
            if waits && job.first_slot.is_none() && below.contains(&job.wish.client) {
                job.waited_below_share += STEP_MS;
            }
        }
        let free: u32 = self.workers.iter().map(|worker| worker.room.free).sum();
        if is_wanted && free > 0 {
            self.idle_while_wanted_ms += u64::from(free) * STEP_MS;
        }
    }

    fn yields_between(&self, from: u64, to: u64) -> usize {
        let in_time = self.actions.iter().filter(|(at, _)| (from..to).contains(at));
        in_time.filter(|(_, action)| matches!(action, Action::Yield { .. })).count()
    }

    fn longest_wait_below_share(&self) -> u64 {
        self.jobs.iter().map(|job| job.waited_below_share).max().unwrap_or(0)
    }

    /// Part of the run in which the last hundredth of the tasks ended, in thousandths.
    fn tail_permille(&self) -> u64 {
        let last = *self.task_ends.last().unwrap();
        let before = self.task_ends[self.task_ends.len() * 99 / 100 - 1];
        (last - before) * 1_000 / last
    }
}

#[test]
fn nobody_below_its_share_waits_ninety_seconds() {
    // Tasks of twenty minutes: without preemption nothing would become free in time.
    let mut world = World::new(ScheduleSettings::default(), &[4; 30], |_| 1_000);
    let mut draw = Draw(7);
    world.job("hog", 0, vec![1_200 * MB; 5_000]);
    world.job("hog", 0, vec![1_200 * MB; 5_000]);
    for client in 0..39 {
        for _ in 0..draw.between(1, 5) {
            let tasks = [1, 30, 400][(draw.next() % 3) as usize];
            let sizes = vec![draw.between(10, 1_200) * MB; tasks];
            world.job(&format!("c{client}"), draw.between(60_000, 1_500_000), sizes);
        }
    }
    world.run(3_600_000);
    let longest = world.longest_wait_below_share();
    let never =
        world.jobs.iter().filter(|job| job.first_slot.is_none() && job.waited_below_share > 0).count();
    eprintln!("{} jobs, longest wait of a client below its share: {longest} ms", world.jobs.len());
    assert!(longest <= 90_000, "{longest}");
    assert_eq!(never, 0);
    assert_eq!(world.idle_while_wanted_ms, 0, "work conserving");
}

#[test]
fn preemption_evens_out_and_stops() {
    let mut world = World::new(ScheduleSettings::default(), &[2; 20], |_| 1_000);
    world.job("a", 0, vec![100_000 * MB; 200]);
    world.job("b", 30_000, vec![100_000 * MB; 200]);
    world.job("b", 60_000, vec![100_000 * MB; 200]);
    world.job("c", 90_000, vec![100_000 * MB; 200]);
    world.run(1_200_000);
    let running: Vec<u32> = world.jobs.iter().map(|job| job.wish.running).collect();
    // 36 slots that are not reserved, three clients.
    assert_eq!(running, [12, 6, 6, 12]);
    assert!(world.yields_between(0, 600_000) <= 30, "no more than had to change hands");
    assert_eq!(world.yields_between(600_000, 1_200_000), 0);
}

#[test]
fn with_more_clients_than_slots_they_take_turns() {
    let mut world = World::new(ScheduleSettings::default(), &[1; 8], |_| 1_000);
    for client in 0..24 {
        world.job(&format!("c{client:02}"), 0, vec![100_000 * MB; 3]);
    }
    world.run(3_600_000);
    let used: Vec<u64> = world.jobs.iter().map(|job| job.slot_ms / 1_000).collect();
    let (least, most) = (used.iter().min().unwrap(), used.iter().max().unwrap());
    let last = world.jobs.iter().map(|job| job.first_slot.unwrap()).max().unwrap();
    eprintln!(
        "24 clients, 8 slots, an hour: {least} to {most} slot-seconds each; last first slot at {last} ms"
    );
    assert!(*least >= 900 && *most <= 1_500, "{used:?}");
    assert!(last <= 3 * 90_000, "{last}");
    let yields = world.yields_between(0, 3_600_000);
    assert!(yields <= 8 * 60, "no slot changes hands more than once a minute: {yields}");
}

#[test]
fn everything_ends_whoever_hangs() {
    for seed in 0..5 {
        let mut draw = Draw(seed);
        let hangs = |worker: usize| worker % 10 == 3;
        let mut world =
            World::new(ScheduleSettings::default(), &[2; 20], |n| if hangs(n) { 0 } else { 2_000 });
        for client in 0..6 {
            let tasks = draw.between(5, 150) as usize;
            let sizes: Vec<u64> = (0..tasks).map(|_| draw.between(1, 400) * MB).collect();
            world.job(&format!("c{client}"), draw.between(0, 300_000), sizes);
        }
        world.run(3 * 3_600_000);
        assert!(world.jobs.iter().all(|job| job.done.is_some()), "seed {seed}: not all ended");
        let doubles = world.actions.iter().filter(|(_, a)| matches!(a, Action::Speculate { .. })).count();
        assert!(doubles >= 4, "the four slots that hang");
    }
}

fn tail_of(settings: ScheduleSettings) -> (u64, u64) {
    let rate = |worker: usize| if worker % 20 == 7 { 800 } else { 6_000 + 40 * (worker as u64 % 97) };
    let mut world = World::new(settings, &[1; 200], rate);
    let mut draw = Draw(3);
    let sizes: Vec<u64> = (0..4_000).map(|_| draw.between(300, 600) * MB).collect();
    world.job("a", 0, sizes);
    world.run(24 * 3_600_000);
    assert!(world.jobs[0].done.is_some());
    (world.jobs[0].done.unwrap(), world.tail_permille())
}

#[test]
fn idle_slots_shorten_the_tail() {
    let (with, tail_with) = tail_of(ScheduleSettings::default());
    let never = ScheduleSettings {
        steal_after_ms: u64::MAX,
        stall_ms: u64::MAX,
        slow_ms: u64::MAX,
        ..Default::default()
    };
    let (without, tail_without) = tail_of(never);
    eprintln!(
        "job time {with} ms (tail {tail_with}/1000) with stealing, {without} ms ({tail_without}/1000) without"
    );
    assert!(tail_with <= 50, "{tail_with}");
    assert!(with < without);
}

#[test]
fn equal_seeds_are_equal_runs() {
    let run = || {
        let mut world = World::new(ScheduleSettings::default(), &[2; 15], |n| 500 + 100 * (n as u64 % 5));
        let mut draw = Draw(11);
        for client in 0..10 {
            let sizes: Vec<u64> = (0..60).map(|_| draw.between(5, 200) * MB).collect();
            world.job(&format!("c{client}"), draw.between(0, 200_000), sizes);
        }
        world.run(1_800_000);
        world.actions
    };
    assert_eq!(run(), run());
}

/// Prints what a decision costs; the bounds are generous, for a machine that is busy with other tests.
#[test]
fn a_decision_is_cheap() {
    let clients: Vec<String> = (0..20).map(|n| format!("c{n}")).collect();
    let rooms: Vec<Room> = (0..5_000).map(|n| room(n, 1, 0)).collect();
    let wishes: Vec<Wish> = (0..100).map(|n| wish(n, &clients[n as usize % 20], 1_000, 500, 50)).collect();
    let demands: Vec<Demand<'_>> = wishes.iter().map(Wish::demand).collect();
    let mut seats: Vec<Seat<'_>> = rooms.iter().map(Room::seat).collect();
    let mut scheduler =
        Scheduler::new(ScheduleSettings { reserved_slot_every: 0, ..ScheduleSettings::default() });
    for attempt in 0..5_000_u64 {
        let lease = lease(u128::from(attempt % 100), attempt, u128::from(attempt));
        scheduler.report(0, &lease, progress(0, 500 * MB));
        scheduler.report(3_000, &lease, progress(MB * (1 + attempt % 7), 500 * MB));
    }
    let mut measure =
        |what: &str, rounds: u64, start: u64, step: u64, seats: &[Seat<'_>], demands: &[Demand<'_>]| {
            let began = std::time::Instant::now();
            let mut actions = 0;
            for round in 0..rounds {
                actions += scheduler.decide(start + round * step, demands, seats).len();
            }
            let micros = began.elapsed().as_micros() as u64 / rounds;
            eprintln!("5,000 seats, 100 jobs, {what}: {micros} us a decision ({actions} actions)");
            micros
        };
    let nothing_free = measure("nothing free", 2_000, 4_000, 0, &seats, &demands);
    let newcomers: Vec<Wish> =
        (200..220).map(|n| wish(n, &clients[n as usize % 20], 1_000, 500, 0)).collect();
    let uneven: Vec<Demand<'_>> = demands.iter().copied().chain(newcomers.iter().map(Wish::demand)).collect();
    let look = measure("nothing free, looking for who should yield", 50, 20_000, 500, &seats, &uneven);
    seats[4_000].free = 1;
    let one_free = measure("one seat free", 1_000, 50_000, 0, &seats, &demands);
    let nobody_waits: Vec<Demand<'_>> =
        demands.iter().map(|demand| Demand { waiting: 0, ..*demand }).collect();
    let help = measure("one idle, looking for what to cut", 50, 60_000, 500, &seats, &nobody_waits);
    for seat in &mut seats {
        seat.free = 1;
    }
    let all_free = measure("all free", 10, 70_000, 0, &seats, &demands);
    assert!(nothing_free < 5_000 && one_free < 10_000, "{nothing_free} {one_free}");
    assert!(look < 100_000 && help < 200_000 && all_free < 500_000, "{look} {help} {all_free}");
}
