//! A job's way from state to state beside its rounds: finalizing, failing, stopping, expiring, deleting.

use flatbed_types::job::{JobError, JobState, ObjectPointer, StopKind};
use flatbed_types::{ErrorCode, Instant, caps};

use super::{Busy, Group, Job, Op, Output, from_ledger, is_due};
use crate::manifest;
use flatbed_types::task::TaskKind;

/// How long after `Expires` the objects stay: clocks differ, and a download that began in time may end.
const EXPIRY_GRACE_MILLIS: i64 = 15 * 60_000;

/// When no worker can still be writing for a job that has ended: longer than any attempt is kept alive.
const LAST_WRITES_MILLIS: i64 = EXPIRY_GRACE_MILLIS;

/// How long to wait before object work that failed is tried again.
const OBJECT_RETRY_MILLIS: i64 = 2_000;

impl Job {
    /// Does whatever the state calls for. Runs after every input; starts at most one piece of object work.
    pub(super) fn advance(&mut self, now: Instant, out: &mut Vec<Output>) {
        let unfinished = matches!(
            self.record.state,
            JobState::Planning | JobState::Running | JobState::Resolving | JobState::Merging
        );
        if unfinished && self.stop.is_some() {
            return self.end(now, JobState::Cancelled);
        }
        if self.busy.is_some() || !self.is_idle() || self.retry_at.is_some_and(|at| !is_due(at, now)) {
            return;
        }
        self.retry_at = None;
        match self.record.state {
            JobState::Finalizing if self.stop.is_some() => self.end(now, JobState::Cancelled),
            JobState::Planning if self.ledger.tasks().is_empty() => self.open_special(TaskKind::Plan),
            JobState::Running if self.ledger.tasks().is_empty() => self.round_done(now, out),
            JobState::Resolving if self.ledger.tasks().is_empty() => self.open_special(TaskKind::Resolve),
            JobState::Finalizing => self.finalize(now, out),
            JobState::Planning | JobState::Running | JobState::Resolving | JobState::Merging => {}
            JobState::Complete | JobState::Failed => self.maybe_delete(now),
            JobState::Cancelled => self.begin_deleting(),
            JobState::Deleting => {
                self.busy = Some(Busy::Deleting);
                out.push(Output::DeleteObjects);
            }
            JobState::Gone => self.sweep_or_forget(now, out),
        }
    }

    fn round_done(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.record.request.follows_references() && self.has_sidecars() {
            self.transition(JobState::Resolving);
        } else {
            self.record.state = JobState::Finalizing;
            self.finalize(now, out);
        }
    }

    fn finalize(&mut self, now: Instant, out: &mut Vec<Output>) {
        let Some(time) = self.record.transaction_time else {
            return self.fail(now, internal("a planned job has no transaction time"));
        };
        let commits: Vec<_> = self.ledger.commits().values().map(from_ledger).collect();
        match manifest::assemble(&self.record, time, &self.root, &commits) {
            Ok((manifest, result)) => {
                self.busy = Some(Busy::Finalizing { result });
                out.push(Output::WriteManifest(Box::new(manifest)));
            }
            Err(broken) => self.fail(now, internal(&broken.to_string())),
        }
    }

    pub(super) fn object_written(
        &mut self,
        now: Instant,
        pointer: Result<ObjectPointer, JobError>,
        out: &mut Vec<Output>,
    ) {
        match (self.busy.take(), pointer) {
            (Some(Busy::Planning { pending, tasks }), Ok(pointer)) => {
                self.plan_written(pending, pointer, &tasks)
            }
            (Some(Busy::Planning { pending, .. }), Err(error)) => self.give_back(now, pending, error, out),
            (Some(Busy::Finalizing { result }), Ok(pointer)) => self.complete(now, pointer, result),
            (Some(Busy::Finalizing { .. }), Err(error)) => {
                self.waiting_for = Some(error.message);
                self.retry_at = Some(now.plus_millis(OBJECT_RETRY_MILLIS));
            }
            (other, _) => self.busy = other,
        }
    }

    /// The result is fixed in a transaction of its own that no stop request may precede.
    fn complete(&mut self, now: Instant, manifest: ObjectPointer, result: flatbed_types::job::Volume) {
        let Some(changes) = self.ledger.complete() else { return };
        for change in &changes {
            self.ledger.apply(change);
        }
        let took = now.millis() - self.record.created.millis();
        self.record.manifest = Some(manifest);
        self.record.result = result;
        self.record.ended = Some(now);
        self.record.expires = Some(now.plus_millis(self.settings.retention_ms.max(3 * took)));
        let mut effects = Vec::new();
        self.set_state(JobState::Complete, &mut effects);
        let ops = vec![Op::DeleteTasks, Op::PutJob(Box::new(self.record.clone()))];
        self.queue.push_back(Group { ops, effects, unless_stopped: true });
    }

    /// The transaction that would have completed the job found a stop request: nothing of it was written.
    pub(super) fn undo_complete(&mut self, stop: StopKind) {
        self.stop = Some(stop);
        self.ledger.reopen();
        self.record.state = JobState::Finalizing;
        (self.record.manifest, self.record.ended, self.record.expires) = (None, None, None);
        self.record.result = flatbed_types::job::Volume::default();
    }

    /// Ends the job with an error.
    pub(super) fn fail(&mut self, now: Instant, error: JobError) {
        if !self.record.state.is_terminal() {
            self.record.error = Some(error);
            self.record.expires = Some(now.plus_millis(self.settings.retention_ms));
            self.end(now, JobState::Failed);
        }
    }

    fn end(&mut self, now: Instant, state: JobState) {
        let Some(changes) = self.ledger.stop() else { return };
        let leases: Vec<_> = self.leases().map(|(attempt, holder)| (holder.clone(), attempt)).collect();
        let mut effects: Vec<Output> =
            leases.into_iter().map(|(holder, attempt)| Output::Revoke(holder, attempt)).collect();
        for change in &changes {
            self.ledger.apply(change);
        }
        self.record.ended = Some(now);
        self.set_state(state, &mut effects);
        let ops = vec![Op::DeleteTasks, Op::PutJob(Box::new(self.record.clone()))];
        self.queue.push_back(Group { ops, effects, unless_stopped: false });
    }

    fn maybe_delete(&mut self, now: Instant) {
        let expired = |at: Instant| at.plus_millis(EXPIRY_GRACE_MILLIS) <= now;
        if self.stop.is_some() || self.record.expires.is_some_and(expired) {
            self.begin_deleting();
        }
    }

    fn begin_deleting(&mut self) {
        self.transition(JobState::Deleting);
    }

    pub(super) fn objects_deleted(&mut self, now: Instant, result: Result<(), JobError>) {
        if !matches!(self.busy, Some(Busy::Deleting)) {
            return;
        }
        self.busy = None;
        match result {
            Ok(()) if self.record.state == JobState::Gone => self.swept = true,
            Ok(()) => {
                let mut effects = Vec::new();
                self.record.ended = Some(now);
                self.set_state(JobState::Gone, &mut effects);
                let ops = vec![Op::DeleteTasks, Op::DeleteCommits, Op::PutJob(Box::new(self.record.clone()))];
                self.queue.push_back(Group { ops, effects, unless_stopped: false });
            }
            Err(error) => {
                self.waiting_for = Some(error.message);
                self.retry_at = Some(now.plus_millis(OBJECT_RETRY_MILLIS));
            }
        }
    }

    /// A worker that was sealing when the job ended may have written behind the first deletion: when none can be
    /// left, everything is deleted once more. Much later the record goes too.
    fn sweep_or_forget(&mut self, now: Instant, out: &mut Vec<Output>) {
        let since = |millis: i64| self.record.ended.is_some_and(|ended| ended.plus_millis(millis) <= now);
        if !self.swept && since(LAST_WRITES_MILLIS) {
            self.busy = Some(Busy::Deleting);
            out.push(Output::DeleteObjects);
        } else if self.swept && since(caps::TOMBSTONE_MILLIS as i64) {
            let group =
                Group { ops: vec![Op::DeleteJob], effects: vec![Output::Forget], unless_stopped: false };
            self.queue.push_back(group);
        }
    }

    fn transition(&mut self, state: JobState) {
        let mut effects = Vec::new();
        self.set_state(state, &mut effects);
        let ops = vec![Op::PutJob(Box::new(self.record.clone()))];
        self.queue.push_back(Group { ops, effects, unless_stopped: false });
    }

    pub(super) fn set_state(&mut self, state: JobState, effects: &mut Vec<Output>) {
        if self.record.state != state {
            self.record.state = state;
            effects.push(Output::StateChanged(state));
        }
    }
}

fn internal(message: &str) -> JobError {
    JobError { code: ErrorCode::Internal, message: format!("internal error: {message}") }
}
