//! Handing tasks to free slots: the job with the fewest attempts at work goes first, so that jobs share the
//! slots evenly and a small job never waits for a large one to end.

use flatbed_coordinator_core::job::{Holder, Input};
use flatbed_types::{JobId, SessionId, Token};

use super::Driver;

impl Driver {
    pub(super) fn assign(&mut self) {
        if self.shutdown.is_some() {
            return;
        }
        while let Some((job, session)) = self.next_match() {
            let Some(entry) = self.sessions.get_mut(session) else { return };
            entry.offered();
            let holder = Holder { worker: entry.worker.clone(), session };
            let before = self.jobs.get(&job).map(|machine| machine.leases().count());
            let token = Token(getrandom::u64().unwrap_or_default());
            self.feed(job, Input::Offer { holder, token });
            let after = self.jobs.get(&job).map(|machine| machine.leases().count());
            if before == after {
                // Not taken (the epoch is used up): do not offer the same again in this round.
                if let Some(entry) = self.sessions.get_mut(session) {
                    entry.offer_ended(false);
                }
                return;
            }
        }
    }

    fn next_match(&self) -> Option<(JobId, SessionId)> {
        let now = self.context.now();
        let free: Vec<_> =
            self.sessions.connected().filter(|(_, session)| session.free_slots() > 0).collect();
        if free.is_empty() {
            return None;
        }
        let mut best: Option<(usize, JobId, SessionId)> = None;
        for (id, job) in &self.jobs {
            if job.waiting_task(now).is_none() {
                continue;
            }
            let pin = job.durable_record().pin.as_ref();
            let reads = |source: &str| pin.is_none_or(|pin| pin.source == source);
            let fitting = free.iter().filter(|(_, session)| reads(&session.source));
            let Some((session, _)) = fitting.max_by_key(|(_, session)| session.free_slots()) else {
                continue;
            };
            let candidate = (job.leases().count(), *id, **session);
            if best.is_none_or(|best| candidate < best) {
                best = Some(candidate);
            }
        }
        best.map(|(_, job, session)| (job, session))
    }
}
