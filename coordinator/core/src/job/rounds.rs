//! Planning: the plan task, the rounds of supporting resources, and restoring all of it after a claim.

use std::collections::{BTreeMap, BTreeSet};

use flatbed_types::job::{JobError, JobState, ObjectPointer, Volume};
use flatbed_types::layout::{Writer, output_object};
use flatbed_types::task::{
    CommitRecord, LaneSurvey, OutputKind, Plan, PlannedTask, RowCounts, TaskKind, TaskRecord,
};
use flatbed_types::{Instant, KeyRange, Position, TaskId};

use super::{
    Busy, CommitAnswer, Holder, Job, JobChange, Op, Output, Payload, Pending, ReplyId, TaskInfo, TaskResult,
    to_ledger,
};
use crate::ledger::{Allowed, Change, Commit, OpenTask, Refusal, Stage, Verdict};
use crate::plan::{self, Share};
use crate::progress::RoundProgress;

impl Job {
    /// Rebuilds the view from what is stored: a planned task without a record and without commits is untouched;
    /// one without a record but with commits is done.
    pub(super) fn restore(
        &mut self,
        plans: Vec<Plan>,
        records: BTreeMap<TaskId, TaskRecord>,
        commits: BTreeMap<u64, CommitRecord>,
    ) {
        let committed: BTreeSet<TaskId> = commits.values().map(|commit| commit.task).collect();
        for (round, plan) in (0..).zip(&plans) {
            self.add_round(round, plan);
            for (id, task) in numbered(plan) {
                self.ledger.reserve_tasks(TaskId(id.0 + 1));
                if !records.contains_key(&id) && !committed.contains(&id) {
                    self.ledger.apply(&Change::PutTask(id, waiting(&task.range)));
                }
            }
        }
        let round_now = self.current_round();
        for (id, record) in records {
            let round = self.tasks.get(&id).map_or(round_now, |planned| planned.round);
            let (failures, losses) = (record.failures, record.losses);
            self.tasks.insert(id, TaskInfo { failures, losses, ..TaskInfo::new(record.kind, round) });
            let allowed = record.allowed.into_iter().map(|attempt| Allowed {
                attempt: attempt.id,
                token: attempt.token,
                holder: Holder { worker: attempt.worker, session: attempt.session },
            });
            let KeyRange { lo, hi } = record.range;
            self.ledger.apply(&Change::PutTask(id, OpenTask { lo, hi, allowed: allowed.collect() }));
        }
        for (number, commit) in commits {
            let (round, done) = (commit.round, Change::PutCommit(number, to_ledger(commit)));
            self.count_commit(round, std::slice::from_ref(&done));
            self.ledger.apply(&done);
        }
        self.recount_done();
        match self.record.state {
            JobState::Planning
            | JobState::Running
            | JobState::Resolving
            | JobState::Merging
            | JobState::Finalizing => {}
            JobState::Complete => self.ledger.apply(&Change::SetStage(Stage::Complete)),
            JobState::Failed | JobState::Cancelled | JobState::Deleting | JobState::Gone => {
                self.ledger.apply(&Change::SetStage(Stage::Stopped));
            }
        }
    }

    /// The round that tasks of now belong to.
    pub(super) fn current_round(&self) -> u32 {
        u32::try_from(self.record.plans.len().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    fn round_of(&self, task: TaskId) -> u32 {
        self.tasks.get(&task).map_or(self.current_round(), |info| info.round)
    }

    fn add_round(&mut self, round: u32, plan: &Plan) {
        let mut progress = RoundProgress::default();
        for (id, task) in numbered(plan) {
            let kind = TaskKind::Extract(task.lane);
            self.tasks.insert(id, TaskInfo::new(kind, round));
            progress.tasks += 1;
            progress.estimate.rows += task.rows;
            progress.estimate.bytes += task.bytes;
        }
        self.rounds.push(progress);
    }

    pub(super) fn count_commit(&mut self, round: u32, changes: &[JobChange]) {
        let Some(progress) = self.rounds.get_mut(round as usize) else { return };
        for change in changes {
            match change {
                Change::PutCommit(_, commit) => {
                    let data = commit.payload.outputs.iter().filter(|output| output.kind == OutputKind::Data);
                    for output in data {
                        progress.committed.rows += output.lines;
                        progress.committed.bytes += output.raw_bytes;
                    }
                }
                Change::DeleteTask(_) => progress.tasks_done += 1,
                Change::PutTask(..) | Change::SetStage(_) => {}
            }
        }
    }

    fn recount_done(&mut self) {
        for (round, progress) in (0..).zip(&mut self.rounds) {
            let open =
                self.ledger.tasks().keys().filter(|id| self.tasks.get(id).is_some_and(|t| t.round == round));
            let extract = |id: &&TaskId| {
                self.tasks.get(id).is_some_and(|info| matches!(info.kind, TaskKind::Extract(_)))
            };
            let open = u32::try_from(open.filter(extract).count()).unwrap_or(u32::MAX);
            progress.tasks_done = progress.tasks.saturating_sub(open);
        }
    }

    /// Opens a task that is no extract.
    pub(super) fn open_special(&mut self, kind: TaskKind) {
        let Some(changes) = self.ledger.open_round([(Position::START, Position::End)]) else { return };
        let round = self.current_round();
        for change in &changes {
            if let Change::PutTask(id, _) = change {
                self.tasks.insert(*id, TaskInfo::new(kind, round));
            }
        }
        self.write(changes, Vec::new());
    }

    /// Whether rows of the current round refer to supporting resources.
    pub(super) fn has_sidecars(&self) -> bool {
        let round = self.current_round();
        let is_sidecar = |commit: &Commit<Position, Payload>| {
            commit.payload.round == round
                && commit.payload.outputs.iter().any(|output| output.kind == OutputKind::References)
        };
        self.ledger.commits().values().any(is_sidecar)
    }

    pub(super) fn sidecars(&self, round: u32) -> Vec<ObjectPointer> {
        let of_round = self.ledger.commits().values().filter(|commit| commit.payload.round == round);
        let mut sidecars = Vec::new();
        for commit in of_round {
            let writer = Writer { task: commit.task, attempt: commit.attempt, segment: commit.segment };
            for output in commit.payload.outputs.iter().filter(|output| output.kind == OutputKind::References)
            {
                sidecars.push(ObjectPointer {
                    key: output_object(&self.root, writer, output, self.record.codec),
                    sha256: output.sha256,
                    size: output.stored_bytes,
                });
            }
        }
        sidecars
    }

    /// A plan or resolve task says it is done. Checked like a commit; made durable together with the plan that
    /// follows from it.
    pub(super) fn complete_task(&mut self, pending: Pending, out: &mut Vec<Output>) {
        let commit = pending.as_commit(self.round_of(pending.task));
        let answer = match self.ledger.commit(commit, pending.token) {
            Verdict::Accept { .. } => return self.begin_drafting(pending, out),
            Verdict::Duplicate => CommitAnswer::Duplicate,
            Verdict::Refuse(refusal) => CommitAnswer::Refused(refusal),
        };
        self.answer_all(pending.replies, &answer, out);
    }

    fn begin_drafting(&mut self, pending: Pending, out: &mut Vec<Output>) {
        if let Some(Busy::Drafting(known) | Busy::Planning { pending: known, .. }) = &mut self.busy
            && known.attempt == pending.attempt
        {
            known.replies.extend(pending.replies);
            return;
        }
        let draft = match &pending.result {
            TaskResult::Plan(plan) => Some(plan.draft.clone()),
            TaskResult::Resolve(_) => self.record.draft.clone(),
        };
        match draft {
            Some(draft) if self.busy.is_none() && self.kind_matches(&pending) => {
                self.busy = Some(Busy::Drafting(pending));
                out.push(Output::ReadDraft(draft));
            }
            _ if self.busy.is_some() => self.answer_all(pending.replies, &CommitAnswer::Retry, out),
            _ => self.answer_all(pending.replies, &CommitAnswer::Refused(Refusal::NotAllowed), out),
        }
    }

    fn answer_all(&mut self, replies: Vec<ReplyId>, answer: &CommitAnswer, out: &mut Vec<Output>) {
        for reply in replies {
            self.after_writes(Output::Reply(reply, answer.clone()), out);
        }
    }

    fn kind_matches(&self, pending: &Pending) -> bool {
        let kind = self.tasks.get(&pending.task).map(|info| info.kind);
        match pending.result {
            TaskResult::Plan(_) => kind == Some(TaskKind::Plan),
            TaskResult::Resolve(_) => kind == Some(TaskKind::Resolve),
        }
    }

    pub(super) fn draft_read(
        &mut self,
        now: Instant,
        draft: Result<Vec<LaneSurvey>, JobError>,
        out: &mut Vec<Output>,
    ) {
        let Some(Busy::Drafting(pending)) = self.busy.take() else { return };
        let surveys = match draft {
            Ok(surveys) => surveys,
            Err(error) => return self.give_back(now, pending, error, out),
        };
        let tasks = match &pending.result {
            TaskResult::Plan(result) => {
                let share = match &result.roster {
                    Some((_, chosen)) => Share { chosen: *chosen, all: result.patients },
                    None => Share::ALL,
                };
                plan::first_round(&surveys, &self.record.request, share, self.settings.sizing)
            }
            TaskResult::Resolve(result) => {
                plan::next_round(&surveys, &self.record.request, &result.counts, self.settings.sizing)
            }
        };
        let is_last = tasks.is_empty() && matches!(pending.result, TaskResult::Resolve(_));
        if is_last {
            return self.finish_task(pending, None, &[]);
        }
        // The special task is still open and takes no number of the plan.
        let plan = Plan { first_task: self.ledger.next_task().0, tasks: tasks.clone() };
        let round = u32::try_from(self.record.plans.len()).unwrap_or(u32::MAX);
        self.busy = Some(Busy::Planning { pending, tasks });
        out.push(Output::WritePlan(round, plan));
    }

    pub(super) fn plan_written(&mut self, pending: Pending, plan: ObjectPointer, tasks: &[PlannedTask]) {
        self.finish_task(pending, Some(plan), tasks);
    }

    /// The plan could not be read or written: the worker will ask again.
    pub(super) fn give_back(
        &mut self,
        now: Instant,
        pending: Pending,
        error: JobError,
        out: &mut Vec<Output>,
    ) {
        let final_error = !error.code.is_retryable();
        for reply in pending.replies {
            out.push(Output::Reply(reply, CommitAnswer::Retry));
        }
        self.waiting_for = Some(error.message.clone());
        if final_error {
            self.fail(now, error);
        }
    }

    /// One transaction: the special task is done, the job points at its results, the next tasks are open.
    fn finish_task(&mut self, pending: Pending, plan: Option<ObjectPointer>, tasks: &[PlannedTask]) {
        let commit = pending.as_commit(self.round_of(pending.task));
        let Verdict::Accept { changes, hi } = self.ledger.commit(commit, pending.token) else {
            // Withdrawn or stopped meanwhile; the worker learns it with its next try.
            let retry = |reply| Output::Reply(reply, CommitAnswer::Retry);
            let effects = pending.replies.into_iter().map(retry).collect();
            self.write(Vec::new(), effects);
            return;
        };
        let accepted = |reply: &u64| Output::Reply(*reply, CommitAnswer::Accepted(hi.clone()));
        let mut effects: Vec<Output> = pending.replies.iter().map(accepted).collect();
        let mut ops: Vec<Op> = changes.iter().flat_map(|change| self.ops_of(change)).collect();
        for change in &changes {
            self.ledger.apply(change);
        }
        match pending.result {
            TaskResult::Plan(result) => {
                self.record.transaction_time = Some(result.transaction_time);
                self.record.pin = Some(result.pin);
                self.record.draft = Some(result.draft);
                self.record.roster = result.roster.map(|(pointer, _)| pointer);
            }
            TaskResult::Resolve(result) => {
                if plan.is_some() {
                    self.record.key_lists.extend(result.keys);
                }
            }
        }
        self.set_state(if plan.is_some() { JobState::Running } else { JobState::Finalizing }, &mut effects);
        if let Some(pointer) = plan {
            self.open_planned(pointer, tasks);
        }
        ops.push(Op::PutJob(Box::new(self.record.clone())));
        self.queue.push_back(super::Group { ops, effects, unless_stopped: false });
    }

    fn open_planned(&mut self, pointer: ObjectPointer, tasks: &[PlannedTask]) {
        let ranges = tasks.iter().map(|task| (task.range.lo.clone(), task.range.hi.clone()));
        let first_task = self.ledger.next_task().0;
        let Some(changes) = self.ledger.open_round(ranges) else { return };
        self.record.plans.push(pointer);
        self.add_round(self.current_round(), &Plan { first_task, tasks: tasks.to_vec() });
        if let Some(progress) = self.rounds.last() {
            let Volume { rows, bytes } = progress.estimate;
            self.record.estimate.rows += rows;
            self.record.estimate.bytes += bytes;
        }
        // Planned tasks have no records: the plan object that the job now points at says it all.
        for change in &changes {
            self.ledger.apply(change);
        }
    }
}

impl Pending {
    fn as_commit(&self, round: u32) -> Commit<Position, Payload> {
        let outputs = match &self.result {
            TaskResult::Plan(result) => result.outcomes.clone(),
            TaskResult::Resolve(result) => result.outcomes.clone(),
        };
        let payload =
            Payload { round, outputs, rows: RowCounts::default(), fingerprint: 0, replaces: Vec::new() };
        let (lo, hi) = (Position::START, Position::End);
        Commit { task: self.task, attempt: self.attempt, segment: 0, lo, hi, payload }
    }
}

fn waiting(range: &KeyRange) -> OpenTask<Position, Holder> {
    OpenTask { lo: range.lo.clone(), hi: range.hi.clone(), allowed: Vec::new() }
}

fn numbered(plan: &Plan) -> impl Iterator<Item = (TaskId, &PlannedTask)> {
    (plan.first_task..).map(TaskId).zip(&plan.tasks)
}
