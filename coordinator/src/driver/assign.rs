//! Handing tasks to free slots: the scheduler decides, the machines make it durable.

use std::collections::BTreeMap;

use flatbed_coordinator_core::job::{Holder, Input};
use flatbed_coordinator_core::schedule::{Action, Demand, Ended, Seat};
use flatbed_proto::convert::u128_bytes;
use flatbed_proto::wire::lease as lease_wire;
use flatbed_types::job::JobState;
use flatbed_types::{Instant, JobId, SessionId, Token};

use super::{CoordinatorSender, Driver, Owned};
use crate::sessions::Session;

/// Every client has the same share until its registration says otherwise.
const WEIGHT: u32 = 1;

impl Driver {
    pub(super) fn assign(&mut self) {
        if self.shutdown.is_some() {
            return;
        }
        let now_ms = self.io.monotonic();
        let Driver { jobs, sessions, scheduler, io, .. } = self;
        let demands = demands(jobs, io.now());
        if demands.is_empty() {
            return;
        }
        let seats: Vec<Seat<'_>> = sessions.connected().map(seat).collect();
        for action in scheduler.decide(now_ms, &demands, &seats) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        use lease_wire::coordinator_message::Message;
        match action {
            Action::Offer { job, session } => {
                self.offer(job, session, |holder, token| Input::Offer { holder, token });
            }
            Action::Speculate { job, attempt, session } => {
                let input = |holder, token| Input::Speculate { attempt, holder, token };
                self.offer(job, session, input);
            }
            Action::Truncate { job, attempt, session } => {
                self.send(
                    session,
                    Message::Truncate(lease_wire::Truncate { attempt: attempt.0, job: u128_bytes(job.0) }),
                );
            }
            Action::Revoke { job, attempt, session } => {
                tracing::warn!(job = %job, attempt = %attempt, session = %session, "an attempt is stuck; taken back");
                self.scheduler.attempt_ended(self.io.monotonic(), job, attempt, Ended::Revoked);
                self.send(
                    session,
                    Message::Revoke(lease_wire::Revoke { attempt: attempt.0, job: u128_bytes(job.0) }),
                );
                self.feed(job, Input::AttemptLost(attempt));
            }
            Action::Yield { job, attempt, session } => {
                tracing::info!(job = %job, attempt = %attempt, "asking an attempt to yield its slot");
                self.send(
                    session,
                    Message::Yield(lease_wire::Yield { attempt: attempt.0, job: u128_bytes(job.0) }),
                );
            }
        }
    }

    fn offer(&mut self, job: JobId, session: SessionId, input: impl FnOnce(Holder, Token) -> Input) {
        let Some(entry) = self.sessions.get_mut(session) else { return };
        let Some(owned) = self.jobs.get_mut(&job) else { return };
        let Some(token) = self.io.random() else { return };
        entry.offered();
        owned.offers.push(session);
        let holder = Holder { worker: entry.worker.clone(), session };
        let before = owned.machine.running();
        self.feed(job, input(holder, Token(token)));
        let Some(owned) = self.jobs.get_mut(&job) else { return };
        if owned.machine.running() == before && owned.offers.contains(&session) {
            // Not taken: what waited is gone, or the epoch's attempts are used up.
            self.offer_ended(job, session, false);
        }
    }

    /// The grant of an offer was sent, or will never be.
    pub(super) fn offer_ended(&mut self, job: JobId, session: SessionId, sent: bool) {
        if let Some(owned) = self.jobs.get_mut(&job)
            && let Some(at) = owned.offers.iter().position(|offered| *offered == session)
        {
            owned.offers.swap_remove(at);
        }
        if let Some(session) = self.sessions.get_mut(session) {
            session.offer_ended(sent);
        }
    }
}

fn demands(jobs: &BTreeMap<JobId, Owned>, now: Instant) -> Vec<Demand<'_>> {
    let mut demands = Vec::new();
    for (job, owned) in jobs {
        let (waiting, running) = (owned.machine.waiting(now), owned.machine.running());
        if waiting > 0 || running > 0 {
            let record = owned.machine.durable_record();
            demands.push(Demand {
                job: *job,
                client: &record.client,
                source: record.pin.as_ref().map(|pin| pin.source.as_str()),
                // Plan and resolve tasks are rounds of one task: any job starts quickly.
                tasks: match record.state {
                    JobState::Planning | JobState::Resolving => 1,
                    _ => owned.machine.plan_tasks(),
                },
                waiting,
                running,
                weight: WEIGHT,
            });
        }
    }
    demands
}

fn seat<'a>((id, session): (&SessionId, &'a Session<CoordinatorSender>)) -> Seat<'a> {
    Seat {
        session: *id,
        worker: &session.worker,
        source: &session.source,
        slots: session.usable_slots(),
        free: session.free_slots(),
        prepared: session.prepared,
    }
}
