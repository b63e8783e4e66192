//! A job's way from state to state beside its rounds: finalizing, failing, stopping, expiring, deleting.

use flatbed_types::job::{JobError, JobState, ObjectPointer, StopKind, Volume};
use flatbed_types::manifest::PageRecord;
use flatbed_types::{ErrorCode, Instant};

use super::convert::from_ledger;
use super::{Busy, Group, Job, Op, Output, is_due};
use crate::manifest;
use flatbed_types::task::TaskKind;

/// How long after `Expires` the objects stay: clocks differ, and a download that began in time may end.
const EXPIRY_GRACE_MILLIS: i64 = 15 * 60_000;

/// When no worker can still be writing for a job that has ended: longer than any attempt is kept alive.
const LAST_WRITES_MILLIS: i64 = EXPIRY_GRACE_MILLIS;

/// How long to wait before object work that failed is tried again.
pub(super) const OBJECT_RETRY_MILLIS: i64 = 2_000;

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
        self.fold(now, out);
        self.publish(now, out);
        if self.busy.is_some() || !self.is_idle() || self.retry_at.is_some_and(|at| !is_due(at, now)) {
            return;
        }
        self.retry_at = None;
        match self.record.state {
            JobState::Finalizing if self.stop.is_some() => self.end(now, JobState::Cancelled),
            JobState::Planning if self.ledger.tasks().is_empty() => self.open_special(TaskKind::Plan),
            JobState::Running if self.ledger.tasks().is_empty() => self.round_done(now, out),
            JobState::Resolving if self.ledger.tasks().is_empty() => self.open_special(TaskKind::Resolve),
            JobState::Merging if self.ledger.tasks().is_empty() => self.rows_done(now, out),
            JobState::Finalizing => self.finalize(now, out),
            JobState::Planning | JobState::Running | JobState::Resolving | JobState::Merging => {}
            JobState::Complete | JobState::Failed => self.maybe_delete(now),
            JobState::Cancelled => self.begin_deleting(),
            JobState::Deleting => {
                self.busy = Some(Busy::Deleting);
                out.push(Output::DeleteObjects);
            }
            JobState::Gone => self.sweep(now, out),
        }
    }

    fn round_done(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.record.request.follows_references() && self.has_sidecars() {
            self.transition(JobState::Resolving);
        } else {
            self.rows_done(now, out);
        }
    }

    /// Makes the manifest, and first looks whether everything that it names is there.
    pub(super) fn finalize(&mut self, now: Instant, out: &mut Vec<Output>) {
        if !self.are_pages_ready() {
            return;
        }
        let Some(time) = self.record.transaction_time else {
            return self.fail(now, internal("a planned job has no transaction time"));
        };
        let commits = self.ledger.commits().values().map(from_ledger);
        match manifest::assemble(&self.record, time, &self.root, commits) {
            Ok((manifest, result)) => {
                let named = manifest.entries.iter().map(|entry| (entry.key.clone(), entry.stored_bytes));
                out.push(Output::VerifyObjects(named.collect()));
                self.busy = Some(Busy::Verifying { manifest: Box::new(manifest), result });
            }
            Err(broken) => self.fail(now, internal(&broken.to_string())),
        }
    }

    /// The answer about the objects of the manifest. One that is lost cannot be brought back: the rows are
    /// committed, and the job says so instead of publishing a broken link.
    pub(super) fn objects_verified(
        &mut self,
        now: Instant,
        missing: Result<u64, JobError>,
        out: &mut Vec<Output>,
    ) {
        match (self.busy.take(), missing) {
            (Some(Busy::Verifying { manifest, result }), Ok(0)) if self.takes_pages() => {
                match self.last_page() {
                    Ok((page, listed)) => {
                        self.busy = Some(Busy::LastPage { manifest, result, page });
                        out.push(Output::WritePage(self.record.pages + 1, Box::new(listed)));
                    }
                    Err(broken) => self.fail(now, internal(&broken.to_string())),
                }
            }
            (Some(Busy::Verifying { manifest, result }), Ok(0)) => {
                self.busy = Some(Busy::Finalizing { result, page: None });
                out.push(Output::WriteManifest(manifest));
            }
            (Some(Busy::Verifying { .. }), Ok(count)) => self.fail(now, missing_files(count)),
            (Some(Busy::Verifying { .. }), Err(error)) => self.object_work_failed(now, error),
            (other, _) => self.busy = other,
        }
    }

    pub(super) fn last_page_written(
        &mut self,
        now: Instant,
        written: Result<ObjectPointer, JobError>,
        out: &mut Vec<Output>,
    ) {
        match (self.busy.take(), written) {
            (Some(Busy::LastPage { manifest, result, page }), Ok(object)) => {
                self.busy = Some(Busy::Finalizing { result, page: Some(page.at(object)) });
                out.push(Output::WriteManifest(manifest));
            }
            (Some(Busy::LastPage { .. }), Err(error)) => self.object_work_failed(now, error),
            (other, _) => self.busy = other,
        }
    }

    /// Object work that failed begins again a little later where that may help; else the job cannot go on.
    fn object_work_failed(&mut self, now: Instant, error: JobError) {
        if error.code.is_retryable() { self.try_later(now, error) } else { self.fail(now, error) }
    }

    /// Object work that failed begins again a little later.
    fn try_later(&mut self, now: Instant, error: JobError) {
        self.waiting_for = Some(error.message);
        self.retry_at = Some(now.plus_millis(OBJECT_RETRY_MILLIS));
    }

    pub(super) fn object_written(
        &mut self,
        now: Instant,
        pointer: Result<ObjectPointer, JobError>,
        out: &mut Vec<Output>,
    ) {
        match (self.busy.take(), pointer) {
            (Some(Busy::Planning { pending, plan }), Ok(pointer)) => {
                self.finish_task(pending, Some((pointer, plan)));
            }
            (Some(Busy::Planning { pending, .. }), Err(error)) => self.give_back(now, pending, error, out),
            (Some(Busy::Finalizing { result, page }), Ok(pointer)) => {
                self.complete(now, pointer, result, page);
            }
            (Some(Busy::PlanningMerges(plan)), Ok(pointer)) => self.merges_planned(plan, pointer),
            (Some(Busy::PlanningMerges(_) | Busy::Finalizing { .. }), Err(error)) => {
                self.object_work_failed(now, error)
            }
            (other, _) => self.busy = other,
        }
    }

    /// The result is fixed in a transaction of its own that no stop request may precede.
    fn complete(
        &mut self,
        now: Instant,
        manifest: ObjectPointer,
        result: Volume,
        last_page: Option<PageRecord>,
    ) {
        let rows = self.ledger.commits().values().map(|commit| commit.payload.rows.excluded);
        let excluded_rows = rows.fold(0, u64::saturating_add);
        let Some(changes) = self.ledger.complete() else { return };
        for change in &changes {
            self.apply(change);
        }
        let took = now.millis() - self.record.created.millis();
        self.record.manifest = Some(manifest);
        self.record.result = result;
        self.record.excluded_rows = excluded_rows;
        self.record.ended = Some(now);
        self.record.expires = Some(now.plus_millis(self.settings.retention_ms.max(3 * took)));
        let mut ops = vec![Op::DeleteTasks, Op::DeleteMarker];
        ops.extend(last_page.map(|page| self.put_page(page)));
        let group = self.group_into(JobState::Complete, ops, Vec::new());
        self.enqueue(Group { unless_stopped: true, ..group });
    }

    /// The transaction that would have completed the job found a stop request: nothing of it was written.
    pub(super) fn undo_complete(&mut self, stop: StopKind) {
        self.stop = Some(stop);
        self.ledger.reopen();
        self.record.state = JobState::Finalizing;
        (self.record.manifest, self.record.ended, self.record.expires) = (None, None, None);
        self.record.result = Volume::default();
        self.record.excluded_rows = 0;
        self.undo_last_page();
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
        let effects: Vec<Output> =
            leases.into_iter().map(|(holder, attempt)| Output::Revoke(holder, attempt)).collect();
        for change in &changes {
            self.apply(change);
        }
        self.record.ended = Some(now);
        let group = self.group_into(state, vec![Op::DeleteTasks, Op::DeleteMarker], effects);
        self.enqueue(group);
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
            // Nothing is left to do: the record rests, without an owner, until it is old enough to go.
            Ok(()) if self.record.state == JobState::Gone => {
                self.record.swept = true;
                let ops = vec![Op::PutJob(Box::new(self.record.clone())), Op::Release];
                self.enqueue(Group::of(ops, vec![Output::Forget]));
            }
            Ok(()) => {
                self.record.ended = Some(now);
                let ops = vec![Op::DeleteTasks, Op::DeleteCommits, Op::DeletePages];
                let group = self.group_into(JobState::Gone, ops, Vec::new());
                self.enqueue(group);
            }
            Err(error) => self.try_later(now, error),
        }
    }

    /// A worker that was sealing when the job ended may have written behind the first deletion: when none can be
    /// left, everything is deleted once more. Then the record rests.
    fn sweep(&mut self, now: Instant, out: &mut Vec<Output>) {
        let since = |millis: i64| self.record.ended.is_some_and(|ended| ended.plus_millis(millis) <= now);
        if !self.record.swept && since(LAST_WRITES_MILLIS) {
            self.busy = Some(Busy::Deleting);
            out.push(Output::DeleteObjects);
        }
    }

    pub(super) fn transition(&mut self, state: JobState) {
        let group = self.group_into(state, Vec::new(), Vec::new());
        self.enqueue(group);
    }

    /// The writes of a transition: these, and behind them the record in its new state.
    pub(super) fn group_into(
        &mut self,
        state: JobState,
        mut ops: Vec<Op>,
        mut effects: Vec<Output>,
    ) -> Group {
        if self.record.state != state {
            self.record.state = state;
            effects.push(Output::StateChanged(state));
        }
        ops.push(Op::PutJob(Box::new(self.record.clone())));
        Group::of(ops, effects)
    }
}

/// Files that commits name are not in the object store as they were written.
pub fn missing_files(count: u64) -> JobError {
    let message = format!(
        "{count} committed files are missing from the object store or have another size there; \
         look for what else deletes or changes objects below the output root"
    );
    JobError { code: ErrorCode::StorageFailed, message }
}

pub(super) fn internal(message: &str) -> JobError {
    JobError { code: ErrorCode::Internal, message: format!("internal error: {message}") }
}
