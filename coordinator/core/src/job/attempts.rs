//! What workers say and what is said to them: grants, commits, failures, losses, cuts, second attempts.

use flatbed_types::job::JobError;
use flatbed_types::task::{CommitRecord, TaskKind};
use flatbed_types::{AttemptId, ErrorCode, Instant, KeyRange, Position, SessionId, TaskId, Token, caps};

use super::convert::to_ledger;
use super::{CommitAnswer, GrantSpec, Holder, Job, Output, ReplyId, TaskInfo};
use crate::ledger::{Allowed, Refusal, Verdict};
use crate::merge;

/// Tasks of one job, cut ones among them (`coordination.md` 3.4): cutting goes on down to single patients.
const MAX_TASKS: u32 = 1 << 20;

impl Job {
    pub(super) fn offer(&mut self, now: Instant, holder: Holder, token: Token) {
        if let Some(id) = self.waiting_task(now) {
            self.grant(id, holder, token, false);
        }
    }

    /// A second attempt at the task of one that makes no progress: whichever commits first has it.
    pub(super) fn speculate(&mut self, attempt: AttemptId, holder: Holder, token: Token) {
        let Some((id, first)) = self.lease(attempt) else { return };
        if first.session != holder.session && self.stop.is_none() {
            self.grant(id, holder, token, true);
        }
    }

    fn grant(&mut self, id: TaskId, holder: Holder, token: Token, speculative: bool) {
        let Some(attempt) = AttemptId::new(self.ledger.epoch, self.attempts) else { return };
        let allowed = Allowed { attempt, token, holder: holder.clone() };
        let Some(changes) = self.ledger.grant(id, allowed, speculative) else { return };
        let (Some(info), Some(task)) = (self.tasks.get(&id), self.ledger.tasks().get(&id)) else { return };
        let (kind, round) = (info.kind, info.round);
        let range = KeyRange { lo: task.lo.clone(), hi: task.hi.clone() };
        // All sidecars of the round in one message: at `caps::MAX_PLANNED_TASKS` of some 170 bytes it stays below
        // `caps::MAX_MESSAGE`; a job that commits far more often than once a task would not.
        let sidecars = if kind == TaskKind::Resolve { self.sidecars(round) } else { Vec::new() };
        let merge_inputs = self.merge_task(id).map(|task| task.inputs.clone()).unwrap_or_default();
        self.attempts += 1;
        self.waiting_for = None;
        let spec = GrantSpec { task: id, attempt, token, kind, range, round, sidecars, merge_inputs };
        self.write(changes, vec![Output::Grant(holder, Box::new(spec))]);
    }

    pub(super) fn commit(
        &mut self,
        now: Instant,
        reply: ReplyId,
        commit: CommitRecord,
        token: Token,
        out: &mut Vec<Output>,
    ) {
        let (id, attempt, fits) = (commit.task, commit.attempt, self.fits(&commit));
        // A repeated commit is recognised first, whatever became of its task (`decisions.md` 1).
        let answer = match self.ledger.commit(to_ledger(commit), token) {
            Verdict::Accept { changes, hi } if fits => {
                if let Some(info) = self.tasks.get_mut(&id) {
                    (info.failures, info.losses, info.not_before) = (0, 0, None);
                }
                self.count_commit(&changes);
                let mut effects = vec![Output::Reply(reply, CommitAnswer::Accepted(hi))];
                effects.extend(self.losers(id, attempt));
                self.write(changes, effects);
                if let Some(error) = self.too_many_files() {
                    self.fail(now, error);
                }
                return;
            }
            Verdict::Accept { .. } => CommitAnswer::Refused(Refusal::NotAllowed),
            // It may be on its way in a transaction that is not known to be applied: answer behind that.
            Verdict::Duplicate => CommitAnswer::Duplicate,
            Verdict::Refuse(refusal) => CommitAnswer::Refused(refusal),
        };
        self.after_writes(Output::Reply(reply, answer), out);
    }

    /// Whether a commit is of the kind that its task ends with.
    fn fits(&self, commit: &CommitRecord) -> bool {
        let Some(info) = self.tasks.get(&commit.task).filter(|info| info.round == commit.round) else {
            return false;
        };
        match info.kind {
            TaskKind::Extract(_) => commit.replaces.is_empty(),
            TaskKind::Merge(_) => {
                self.merge_task(commit.task).is_some_and(|task| merge::is_result_of(task, commit))
            }
            TaskKind::Plan | TaskKind::Resolve => false,
        }
    }

    /// The word to whoever else works on a task of which this attempt has committed something.
    pub(super) fn losers(&self, id: TaskId, winner: AttemptId) -> Vec<Output> {
        let allowed = self.ledger.tasks().get(&id).into_iter().flat_map(|task| &task.allowed);
        let others = allowed.filter(|allowed| allowed.attempt != winner);
        others.map(|other| Output::Revoke(other.holder.clone(), other.attempt)).collect()
    }

    /// The task of an attempt that knows its token.
    fn held(&self, attempt: AttemptId, token: Token) -> Option<TaskId> {
        let (id, _) = self.lease(attempt)?;
        let mut allowed = self.ledger.tasks().get(&id)?.allowed.iter();
        allowed.any(|allowed| allowed.attempt == attempt && allowed.token == token).then_some(id)
    }

    /// Takes an attempt back that its worker had no slot for: nothing is wrong with the task.
    pub(super) fn declined(&mut self, attempt: AttemptId, token: Token) {
        let changes = self.held(attempt, token).and_then(|id| self.ledger.withdraw(id, attempt));
        if let Some(changes) = changes {
            self.write(changes, Vec::new());
        }
    }

    pub(super) fn attempt_failed(&mut self, now: Instant, attempt: AttemptId, token: Token, error: JobError) {
        let Some(id) = self.held(attempt, token) else { return };
        let Some(changes) = self.ledger.withdraw(id, attempt) else { return };
        let Some(info) = self.tasks.get_mut(&id) else { return };
        // What cannot be reached may come back: it costs time, not a try.
        if !error.code.is_retryable() {
            info.failures += 1;
        }
        let last = info.failures >= caps::MAX_TASK_FAILURES || is_final(error.code);
        let delay = 1_000_i64 << info.failures.min(5);
        info.not_before = Some(now.plus_millis(delay));
        self.waiting_for = Some(error.message.clone());
        self.write(changes, Vec::new());
        if last {
            self.fail(now, error);
        }
    }

    pub(super) fn session_lost(&mut self, now: Instant, session: SessionId) {
        for attempt in self.leases_of(session).collect::<Vec<AttemptId>>() {
            self.attempt_lost(now, attempt);
        }
    }

    pub(super) fn attempt_lost(&mut self, now: Instant, attempt: AttemptId) {
        let Some((id, _)) = self.lease(attempt) else { return };
        let Some(changes) = self.ledger.withdraw(id, attempt) else { return };
        let Some(info) = self.tasks.get_mut(&id) else { return };
        info.losses += 1;
        let losses = info.losses;
        // A few losses are the life of a cluster; a row that kills whoever reads it must not do so for ever.
        if let Some(beyond) = losses.checked_sub(caps::FREE_TASK_LOSSES).filter(|beyond| *beyond > 0) {
            info.not_before = Some(now.plus_millis(1_000 << beyond.min(5)));
        }
        self.write(changes, Vec::new());
        if losses >= caps::MAX_TASK_LOSSES {
            let message = format!("{losses} workers were lost while they worked on one task");
            self.fail(now, JobError { code: ErrorCode::SourceFailed, message });
        }
    }

    /// Cuts the task of an attempt; what lies behind becomes a task of the same kind and round.
    pub(super) fn truncate(&mut self, attempt: AttemptId, at: Position) {
        let Some((id, _)) = self.lease(attempt) else { return };
        let Some(info) = self.tasks.get(&id) else { return };
        let (kind, round, tail) = (info.kind, info.round, self.ledger.next_task());
        if !matches!(kind, TaskKind::Extract(_)) || tail.0 >= MAX_TASKS {
            return;
        }
        let Some(changes) = self.ledger.truncate(id, at) else { return };
        self.introduce(tail, TaskInfo::new(kind, round));
        if let Some(progress) = self.rounds.get_mut(round as usize) {
            progress.tasks += 1;
        }
        self.write(changes, Vec::new());
    }
}

/// Whether an error means that no other try can end differently.
fn is_final(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::SourceFailed
            | ErrorCode::SourceChanged
            | ErrorCode::Invalid
            | ErrorCode::NotFound
            | ErrorCode::NotSupported
    )
}
