//! Tables, properties and simulated runs of the scheduler.

mod properties;
mod rules;
mod simulation;
mod tables;

use std::collections::BTreeMap;

use flatbed_types::{AttemptId, ClientId, JobId, SessionId, TaskId, WorkerId, caps};

use super::*;

const SOURCE: &str = "file:lake";

/// What owns the texts that demands and seats borrow.
#[derive(Clone, Debug)]
struct Wish {
    job: JobId,
    client: ClientId,
    source: Option<String>,
    tasks: u32,
    waiting: u32,
    running: u32,
    weight: u32,
}

fn wish(job: u128, client: &str, tasks: u32, waiting: u32, running: u32) -> Wish {
    let source = Some(SOURCE.to_owned());
    Wish { job: JobId(job), client: client.parse().unwrap(), source, tasks, waiting, running, weight: 1 }
}

impl Wish {
    fn demand(&self) -> Demand<'_> {
        let Wish { job, client, source, tasks, waiting, running, weight } = self;
        let source = source.as_deref();
        Demand {
            job: *job,
            client,
            source,
            tasks: *tasks,
            waiting: *waiting,
            running: *running,
            weight: *weight,
        }
    }
}

#[derive(Clone, Debug)]
struct Room {
    session: SessionId,
    worker: WorkerId,
    source: String,
    slots: u32,
    free: u32,
}

fn room(session: u128, slots: u32, free: u32) -> Room {
    let worker = format!("wrk_{session}").parse().unwrap();
    Room { session: SessionId(session), worker, source: SOURCE.to_owned(), slots, free }
}

impl Room {
    fn seat(&self) -> Seat<'_> {
        let Room { session, worker, source, slots, free } = self;
        Seat { session: *session, worker, source, slots: *slots, free: *free, prepared: true }
    }
}

fn decide(scheduler: &mut Scheduler, now_ms: u64, wishes: &[Wish], rooms: &[Room]) -> Vec<Action> {
    let demands: Vec<Demand<'_>> = wishes.iter().map(Wish::demand).collect();
    let seats: Vec<Seat<'_>> = rooms.iter().map(Room::seat).collect();
    scheduler.decide(now_ms, &demands, &seats)
}

fn scheduler() -> Scheduler {
    Scheduler::new(ScheduleSettings::default())
}

fn lease(job: u128, attempt: u64, session: u128) -> Lease<'static> {
    Lease {
        job: JobId(job),
        attempt: AttemptId(attempt),
        task: TaskId(u32::try_from(attempt).unwrap()),
        session: SessionId(session),
        source: SOURCE,
        divisible: true,
    }
}

fn progress(written_bytes: u64, left_bytes: u64) -> Progress {
    Progress { written_rows: written_bytes / 1_000, written_bytes, left_bytes }
}

/// Offers by job.
fn offers(actions: &[Action]) -> BTreeMap<u128, u32> {
    let mut counts = BTreeMap::new();
    for action in actions {
        if let Action::Offer { job, .. } = action {
            *counts.entry(job.0).or_default() += 1;
        }
    }
    counts
}
