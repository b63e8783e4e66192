//! Asks the scheduler and carries out what it says, as the coordinator's actor does.

use std::time::Instant as Wall;

use flatbed_coordinator_core::job::{Holder, Input};
use flatbed_coordinator_core::schedule::{Action, Demand, Ended, Seat};
use flatbed_types::job::JobState;
use flatbed_types::{Instant, JobId, SessionId, Token};

use super::{EPOCH_MS, Event, SOURCE, World};

impl World {
    pub(super) fn decide(&mut self) {
        let now = Instant::from_millis(EPOCH_MS + i64::try_from(self.now).unwrap_or(i64::MAX));
        let began = Wall::now();
        let record = self.job.durable_record();
        let is_single = matches!(record.state, JobState::Planning | JobState::Resolving);
        let demand = Demand {
            job: JobId(1),
            client: &self.client,
            source: record.pin.as_ref().map(|pin| pin.source.as_str()),
            tasks: if is_single { 1 } else { self.job.plan_tasks() },
            waiting: self.job.waiting(now),
            running: self.job.running(),
            weight: 1,
        };
        let up = self.workers.iter().filter(|worker| worker.is_up);
        let seats: Vec<Seat<'_>> = up
            .map(|worker| Seat {
                session: worker.session,
                worker: &worker.id,
                source: SOURCE,
                slots: 1,
                free: u32::from(worker.work.is_none() && !worker.is_offered),
                prepared: true,
            })
            .collect();
        let actions = self.scheduler.decide(self.now, &[demand], &seats);
        let took = began.elapsed();
        self.spent.decide += took;
        self.spent.decisions += 1;
        self.spent.longest_decision = self.spent.longest_decision.max(took);
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Offer { session, .. } => {
                self.count("offers");
                self.offer(session, |holder, token| Input::Offer { holder, token });
            }
            Action::Speculate { attempt, session, .. } => {
                self.count("second attempts");
                self.offer(session, |holder, token| Input::Speculate { attempt, holder, token });
            }
            Action::Truncate { attempt, session, .. } => {
                if let Some(worker) = self.worker_of(session) {
                    self.after(1, Event::Cut(worker, attempt));
                }
            }
            Action::Revoke { attempt, session, .. } => {
                self.count("taken back");
                self.feed(Input::AttemptLost(attempt));
                if let Some(worker) = self.worker_of(session) {
                    self.release(worker, attempt, Ended::Revoked);
                }
            }
            // With one job there is nobody to yield to.
            Action::Yield { .. } => self.count("yields"),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.actions.entry(what).or_default() += 1;
    }

    fn offer(&mut self, session: SessionId, input: impl Fn(Holder, Token) -> Input) {
        let Some(worker) = self.worker_of(session) else { return };
        let before = self.job.running();
        let holder = Holder { worker: self.workers[worker].id.clone(), session };
        let token = Token(self.draw.next());
        self.workers[worker].is_offered = true;
        self.feed(input(holder, token));
        if self.job.running() == before {
            self.workers[worker].is_offered = false;
        }
    }
}
