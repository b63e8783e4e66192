//! Who works on what: fair shares between clients and jobs, room kept for small jobs, budgets of sources, idle
//! slots that help with what takes longest, and slots that change hands (`coordination.md` 5.4, 5.5, 9).
//!
//! [`Scheduler::decide`] is told what every job wishes for and what room every worker has, at one moment, and
//! answers with what to do now:
//!
//! 1. Free slots go to waiting tasks: the client with the fewest slots in use for its weight first, within it the
//!    job with the fewest for its weight (`fair`); on the worker with the most room, so that work spreads. A job's pin,
//!    its client's cap, the reserve for small jobs and the source's budget hold for every slot given.
//! 2. Slots that nobody waits for help: an attempt that does not move gets a second one elsewhere (and is taken back
//!    once that moves), and the attempts that will take longest are asked to give the ends of their ranges
//!    away (`tail`).
//! 3. Who waited in vain, and would after a change of hands still have no more than the one who gives, gets a slot
//!    yielded (`preempt`).
//!
//! How long does a job wait? While there are at most as many clients with wishes as slots, a client below its share
//! gets a slot after `patience_ms`, at most `yield_min_age_ms` more until an attempt may be asked, and the time that
//! the worker needs to seal and commit: some 20 s with the defaults, where the aim is 90 s. With n times as many, slots
//! go round in turns of `slice_ms`, and the wait is at most about n turns.
//!
//! Invariants: a seat never gets more offers than it has free slots, a job never more than it has waiting tasks; the same
//! calls with the same arguments give the same answers (no clock, no randomness, no hash order); what is asked of
//! an attempt (cut, second, yield) is asked once and stays asked until it is answered, the attempt ends, or
//! `ask_timeout_ms` passes.
//!
//! It does not know tasks' contents, leases, messages or the store: a granted offer comes back in the next
//! `decide` as one more that runs. With several coordinators each schedules its own jobs on the slots that workers
//! lend it.

mod board;
mod budget;
mod fair;
mod health;
mod pace;
mod preempt;
mod settings;
mod sources;
mod tail;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use flatbed_types::{AttemptId, ClientId, JobId, SessionId, TaskId, WorkerId};

use board::Board;
use fair::Accounts;
use health::Health;
pub use pace::Progress;
use pace::{Running, Second};
pub use settings::{ClientRule, ScheduleSettings};
use sources::Sources;

/// One job's wishes at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand<'a> {
    /// The job; at most one demand for each.
    pub job: JobId,
    /// Whose it is.
    pub client: &'a ClientId,
    /// The source that its tasks must be read from; `None`: any.
    pub source: Option<&'a str>,
    /// Tasks of the round at work; plan and resolve tasks are rounds of one task.
    pub tasks: u32,
    /// Tasks that an offer would be answered with now, without those that are put off.
    pub waiting: u32,
    /// Attempts at work, with offers on their way.
    pub running: u32,
    /// Its share against the other jobs of its client; 0 counts as 1.
    pub weight: u32,
}

/// One worker session's room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat<'a> {
    /// The start of the worker.
    pub session: SessionId,
    /// The worker.
    pub worker: &'a WorkerId,
    /// The source that it reads.
    pub source: &'a str,
    /// Slots that this coordinator may use: those that its attempts occupy, and `free`.
    pub slots: u32,
    /// Slots that no attempt, grant or offer is meant for.
    pub free: u32,
    /// Whether the source can be read at once.
    pub prepared: bool,
}

/// An attempt and where it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease<'a> {
    /// Its job.
    pub job: JobId,
    /// Which it is.
    pub attempt: AttemptId,
    /// Its task.
    pub task: TaskId,
    /// Who holds it.
    pub session: SessionId,
    /// The source that the holder reads.
    pub source: &'a str,
    /// Whether its range can be committed in parts, and so be cut, doubled and yielded: true for extracts.
    pub divisible: bool,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its task is done.
    Done,
    /// It gave up.
    Failed {
        /// Whether the cause may pass by itself; it then says nothing against the worker.
        retryable: bool,
        /// Whether the source asked for less.
        throttled: bool,
    },
    /// Its worker is gone.
    Lost,
    /// Its worker had no slot for it.
    Declined,
    /// It was taken back, or yielded.
    Revoked,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Give a waiting task of the job to this session.
    Offer {
        /// The job.
        job: JobId,
        /// Who has a free slot.
        session: SessionId,
    },
    /// Ask the holder to give the end of the attempt's range away; answer with [`Scheduler::cut_answered`].
    Truncate {
        /// The job.
        job: JobId,
        /// The attempt.
        attempt: AttemptId,
        /// Its holder.
        session: SessionId,
    },
    /// Let this session try the task of the attempt as well.
    Speculate {
        /// The job.
        job: JobId,
        /// The attempt that does not advance.
        attempt: AttemptId,
        /// Who tries too.
        session: SessionId,
    },
    /// Take the attempt back, as if its worker were lost: it does not move, and the other attempt at its task does, or
    /// is stuck too and must make room for a third.
    Revoke {
        /// The job.
        job: JobId,
        /// The attempt.
        attempt: AttemptId,
        /// Its holder.
        session: SessionId,
    },
    /// Ask the holder to commit what the attempt has and to give its slot back.
    Yield {
        /// The job.
        job: JobId,
        /// The attempt.
        attempt: AttemptId,
        /// Its holder.
        session: SessionId,
    },
}

/// See the module. Times are monotonic milliseconds of one clock.
#[derive(Debug)]
pub struct Scheduler {
    settings: ScheduleSettings,
    accounts: Accounts,
    health: Health,
    sources: Sources,
    running: BTreeMap<(JobId, AttemptId), Running>,
    /// The attempts of each task at work: one, or two.
    by_task: BTreeMap<(JobId, TaskId), Vec<AttemptId>>,
    looked_at: Option<u64>,
}

impl Scheduler {
    /// A scheduler that knows of nothing yet.
    pub fn new(settings: ScheduleSettings) -> Scheduler {
        Scheduler {
            settings,
            accounts: Accounts::default(),
            health: Health::default(),
            sources: Sources::default(),
            running: BTreeMap::new(),
            by_task: BTreeMap::new(),
            looked_at: None,
        }
    }

    /// A grant was sent.
    pub fn attempt_began(&mut self, now_ms: u64, lease: &Lease<'_>) {
        let key = (lease.job, lease.attempt);
        if self.running.contains_key(&key) {
            return;
        }
        let source = self.sources.began(lease.source);
        let mut fresh = Running::new(now_ms, lease.task, lease.session, source, lease.divisible);
        let of_task = self.by_task.entry((lease.job, lease.task)).or_default();
        if !of_task.is_empty() {
            fresh.second = Second::Paired;
            for earlier in of_task.iter() {
                if let Some(earlier) = self.running.get_mut(&(lease.job, *earlier)) {
                    earlier.second = Second::Paired;
                }
            }
        }
        of_task.push(lease.attempt);
        self.running.insert(key, fresh);
    }

    /// A heartbeat says how an attempt stands. One that is not known yet (its grant was another coordinator's)
    /// begins with it.
    pub fn report(&mut self, now_ms: u64, lease: &Lease<'_>, progress: Progress) {
        self.attempt_began(now_ms, lease);
        if let Some(attempt) = self.running.get_mut(&(lease.job, lease.attempt)) {
            attempt.report(now_ms, progress, self.settings.slow_ms);
        }
    }

    /// The answer to [`Action::Truncate`]: whether the end of the range is a task of its own now.
    pub fn cut_answered(&mut self, now_ms: u64, job: JobId, attempt: AttemptId, is_cut: bool) {
        let Some(attempt) = self.running.get_mut(&(job, attempt)) else { return };
        attempt.cut_asked = None;
        if is_cut {
            attempt.cut();
        } else {
            attempt.cut_after = now_ms.saturating_add(self.settings.ask_again_ms);
        }
    }

    /// An attempt ended; one that is not known is ignored.
    pub fn attempt_ended(&mut self, now_ms: u64, job: JobId, attempt: AttemptId, how: Ended) {
        let Some(ended) = self.remove(now_ms, job, attempt) else { return };
        let source = ended.source;
        match how {
            Ended::Done => self.sources.succeeded(source),
            Ended::Failed { throttled: true, .. } => {
                self.sources.throttled(source, now_ms, self.settings.throttle_pause_ms);
            }
            Ended::Failed { retryable: false, .. } => {
                self.health.fault(now_ms, ended.session, (job, ended.task), &self.settings);
            }
            Ended::Revoked if ended.is_stalled(now_ms, self.settings.stall_ms) => {
                // It held a task without moving until it was taken back: the next would fare no better.
                self.health.quarantine(now_ms, ended.session, &self.settings);
            }
            Ended::Declined if ended.yields_to.is_none() => {
                let until = now_ms.saturating_add(self.settings.declined_pause_ms);
                self.health.pause(ended.session, until);
            }
            Ended::Failed { .. } | Ended::Lost | Ended::Declined | Ended::Revoked => {}
        }
    }

    /// A worker is gone: its attempts are lost, and its past is forgotten.
    pub fn session_ended(&mut self, now_ms: u64, session: SessionId) {
        let lost = self.running.iter().filter(|(_, attempt)| attempt.session == session);
        let lost: Vec<(JobId, AttemptId)> = lost.map(|(key, _)| *key).collect();
        for (job, attempt) in lost {
            self.remove(now_ms, job, attempt);
        }
        self.health.forget_session(session);
    }

    /// A job is over, or another coordinator's.
    pub fn job_ended(&mut self, now_ms: u64, job: JobId) {
        let of_job = self.running.range((job, AttemptId(0))..=(job, AttemptId(u64::MAX)));
        let attempts: Vec<AttemptId> = of_job.map(|((_, attempt), _)| *attempt).collect();
        for attempt in attempts {
            self.remove(now_ms, job, attempt);
        }
        self.accounts.close(job);
        self.health.forget_job(job);
    }

    /// Whether a worker gets no offers because too much failed at it.
    pub fn quarantined(&self, session: SessionId, now_ms: u64) -> bool {
        self.health.is_quarantined(session, now_ms)
    }

    /// Attempts that may read a source at once; `None` while there is no reason for a limit.
    pub fn source_limit(&self, source: &str) -> Option<u32> {
        self.sources.budget(source).map(budget::Budget::limit)
    }

    /// What to do now. Every action is to be carried out, or reported as ended; a repeated call with the same
    /// wishes would repeat its offers.
    pub fn decide(&mut self, now_ms: u64, demands: &[Demand<'_>], seats: &[Seat<'_>]) -> Vec<Action> {
        let (mut slots, mut any_free) = (0_u32, false);
        for seat in seats {
            slots = slots.saturating_add(seat.slots);
            any_free |= seat.free > 0 && seat.slots > 0;
        }
        self.accounts.refresh(now_ms, demands, &self.settings);
        let is_look =
            self.looked_at.is_none_or(|at| now_ms.saturating_sub(at) >= self.settings.look_every_ms);
        if demands.is_empty() || (!any_free && !is_look) {
            self.note_hunger(now_ms, demands.iter().map(|demand| (demand.job, demand.waiting, false)));
            return Vec::new();
        }
        let mut board = Board::new(demands, &self.accounts, &self.settings, slots);
        let mut actions = Vec::new();
        if any_free {
            board.seat(now_ms, seats, &self.health, &self.sources);
            actions = board.fill();
        }
        self.note_hunger(now_ms, board.jobs.iter().map(|job| (job.id, job.waiting, job.is_served)));
        if is_look {
            self.looked_at = Some(now_ms);
            if board.has_free_seats() {
                self.help(now_ms, &mut board, &mut actions);
            }
            self.preempt(now_ms, &mut board, &mut actions);
        }
        actions
    }

    /// Whose patience starts, goes on, or is over: (job, tasks still waiting, whether it was served).
    fn note_hunger(&mut self, now_ms: u64, jobs: impl Iterator<Item = (JobId, u32, bool)>) {
        for (job, waiting, is_served) in jobs {
            let Some(account) = self.accounts.job_mut(job) else { continue };
            account.hungry_since = match account.hungry_since {
                _ if waiting == 0 => None,
                Some(since) if !is_served => Some(since),
                _ => Some(now_ms),
            };
        }
    }

    fn remove(&mut self, now_ms: u64, job: JobId, attempt: AttemptId) -> Option<Running> {
        let ended = self.running.remove(&(job, attempt))?;
        self.sources.ended(ended.source);
        if let Some(of_task) = self.by_task.get_mut(&(job, ended.task)) {
            of_task.retain(|other| *other != attempt);
            match of_task.first() {
                Some(other) => {
                    if let Some(other) = self.running.get_mut(&(job, *other)) {
                        other.second = Second::No;
                        other.double_after = now_ms.saturating_add(self.settings.ask_again_ms);
                    }
                }
                None => drop(self.by_task.remove(&(job, ended.task))),
            }
        }
        if let Some(account) = ended.yields_to.and_then(|(waiter, _)| self.accounts.job_mut(waiter))
            && account.asked.is_some_and(|(asked, _)| asked == (job, attempt))
        {
            account.asked = None;
        }
        Some(ended)
    }
}
