//! Planning: the plan task and the rounds of supporting resources.

use flatbed_types::job::{JobError, JobState, ObjectPointer, Volume};
use flatbed_types::layout::{Writer, output_object};
use flatbed_types::task::{LaneSurvey, OutputKind, Plan, PlannedTask, RowCounts, TaskKind};
use flatbed_types::{ErrorCode, Instant, Position, TaskId};

use super::{
    Busy, CommitAnswer, Job, JobChange, JobCommit, Op, Output, Payload, Pending, ReplyId, TaskInfo,
    TaskResult,
};
use crate::ledger::{Change, Commit, Refusal, Verdict};
use crate::plan::{self, Share};
use crate::progress::RoundProgress;

impl Job {
    /// The round that tasks of now belong to.
    pub(super) fn current_round(&self) -> u32 {
        u32::try_from(self.record.plans.len().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    fn round_of(&self, task: TaskId) -> u32 {
        self.tasks.get(&task).map_or(self.current_round(), |info| info.round)
    }

    pub(super) fn add_round(&mut self, round: u32, plan: &Plan) {
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

    /// Counts a commit and the end of its task into the round, or into the merges.
    pub(super) fn count_commit(&mut self, changes: &[JobChange]) {
        for change in changes {
            match change {
                Change::PutCommit(_, commit) => {
                    let outputs = || commit.payload.outputs.iter();
                    if commit.payload.replaces.is_empty() {
                        let data = outputs().filter(|output| output.kind == OutputKind::Data);
                        data.for_each(|output| self.count_if_lasting(output.raw_bytes));
                    }
                    let progress = match commit.payload.replaces.is_empty() {
                        true => self.rounds.get_mut(commit.payload.round as usize),
                        false => Some(&mut self.merging),
                    };
                    let Some(progress) = progress else { continue };
                    for output in outputs().filter(|output| output.kind == OutputKind::Data) {
                        progress.committed.rows += output.lines;
                        progress.committed.bytes += output.raw_bytes;
                    }
                }
                Change::DeleteTask(id) => {
                    if let Some(progress) = self.progress_of(*id) {
                        progress.tasks_done += 1;
                    }
                }
                Change::PutTask(..) | Change::SetStage(_) => {}
            }
        }
    }

    /// What a task counts into.
    fn progress_of(&mut self, id: TaskId) -> Option<&mut RoundProgress> {
        let info = self.tasks.get(&id)?;
        match info.kind {
            TaskKind::Extract(_) => self.rounds.get_mut(info.round as usize),
            TaskKind::Merge(_) => Some(&mut self.merging),
            TaskKind::Plan | TaskKind::Resolve => None,
        }
    }

    /// What is not open is done.
    pub(super) fn recount_done(&mut self) {
        for progress in self.rounds.iter_mut().chain([&mut self.merging]) {
            progress.tasks_done = progress.tasks;
        }
        let open: Vec<TaskId> = self.ledger.tasks().keys().copied().collect();
        for id in open {
            if let Some(progress) = self.progress_of(id) {
                progress.tasks_done = progress.tasks_done.saturating_sub(1);
            }
        }
    }

    /// Opens a task that is no extract.
    pub(super) fn open_special(&mut self, kind: TaskKind) {
        let Some(changes) = self.ledger.open_round([(Position::START, Position::End)]) else { return };
        let round = self.current_round();
        for change in &changes {
            if let Change::PutTask(id, _) = change {
                self.introduce(*id, TaskInfo::new(kind, round));
            }
        }
        self.write(changes, Vec::new());
    }

    /// Whether rows of the current round refer to supporting resources.
    pub(super) fn has_sidecars(&self) -> bool {
        let round = self.current_round();
        let is_sidecar = |commit: &JobCommit| {
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
        if let Some(refused) = self.refuse_unfiltered(&pending) {
            return self.give_back(now, pending, refused, out);
        }
        let sizing = self.sizing(&surveys);
        let tasks = match &pending.result {
            TaskResult::Plan(result) => {
                let share = match &result.roster {
                    Some((_, chosen)) => Share { chosen: *chosen, all: result.patients },
                    None => Share::ALL,
                };
                plan::first_round(&surveys, &self.record.request, share, sizing)
            }
            TaskResult::Resolve(result) => {
                plan::next_round(&surveys, &self.record.request, &result.counts, sizing)
            }
        };
        let is_last = tasks.is_empty() && matches!(pending.result, TaskResult::Resolve(_));
        if is_last {
            return self.finish_task(pending, None);
        }
        if let Some(refused) = plan::refuse_small_files(&self.record.request, &tasks, self.settings.max_files)
        {
            return self.give_back(now, pending, refused, out);
        }
        // The special task is still open and takes no number of the plan; nothing else is open that could be cut.
        let plan = Plan { first_task: self.ledger.next_task().0, tasks };
        let round = u32::try_from(self.record.plans.len()).unwrap_or(u32::MAX);
        self.busy = Some(Busy::Planning { pending, plan: plan.clone() });
        out.push(Output::WritePlan(round, plan));
    }

    /// A plan without exclusions, of a job that names a roster of them, would give out whoever is on it.
    fn refuse_unfiltered(&self, pending: &Pending) -> Option<JobError> {
        let TaskResult::Plan(result) = &pending.result else { return None };
        let is_whole = self.record.consent.is_some() == result.exclusions.is_some();
        let message = "a worker has planned this job without its roster of exclusions; are all workers of this version?";
        (!is_whole).then(|| JobError { code: ErrorCode::Internal, message: message.to_owned() })
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
    pub(super) fn finish_task(&mut self, pending: Pending, next: Option<(ObjectPointer, Plan)>) {
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
        effects.extend(self.losers(pending.task, pending.attempt));
        let ops: Vec<Op> = changes.iter().flat_map(|change| self.ops_of(change)).collect();
        for change in &changes {
            self.apply(change);
        }
        match pending.result {
            TaskResult::Plan(result) => {
                self.record.transaction_time = Some(result.transaction_time);
                self.record.pin = Some(result.pin);
                self.record.draft = Some(result.draft);
                self.record.roster = result.roster.map(|(pointer, _)| pointer);
                self.record.exclusions = result.exclusions.map(|boxed| *boxed);
            }
            TaskResult::Resolve(result) => {
                if next.is_some() {
                    self.record.key_lists.extend(result.keys);
                }
            }
        }
        let state = match next {
            Some((pointer, plan)) => {
                self.open_planned(pointer, &plan);
                JobState::Running
            }
            // The plan of the merges is made when this is durable.
            None if self.merge_plan().is_some() => JobState::Merging,
            None => JobState::Finalizing,
        };
        let group = self.group_into(state, ops, effects);
        self.enqueue(group);
    }

    fn open_planned(&mut self, pointer: ObjectPointer, plan: &Plan) {
        let ranges = plan.tasks.iter().map(|task| (task.range.lo.clone(), task.range.hi.clone()));
        let Some(changes) = self.ledger.open_round(ranges) else { return };
        self.record.plans.push(pointer);
        self.add_round(self.current_round(), plan);
        if let Some(progress) = self.rounds.last() {
            let Volume { rows, bytes } = progress.estimate;
            self.record.estimate.rows += rows;
            self.record.estimate.bytes += bytes;
        }
        // Planned tasks have no records: the plan object that the job now points at says it all.
        for change in &changes {
            self.apply(change);
        }
    }
}

impl Pending {
    fn as_commit(&self, round: u32) -> JobCommit {
        let outputs = match &self.result {
            TaskResult::Plan(result) => result.files.clone(),
            TaskResult::Resolve(result) => result.outcomes.clone(),
        };
        let payload =
            Payload { round, outputs, rows: RowCounts::default(), fingerprint: 0, replaces: Vec::new() };
        let (lo, hi) = (Position::START, Position::End);
        Commit { task: self.task, attempt: self.attempt, segment: 0, lo, hi, payload }
    }
}

pub(super) fn numbered(plan: &Plan) -> impl Iterator<Item = (TaskId, &PlannedTask)> {
    (plan.first_task..).map(TaskId).zip(&plan.tasks)
}
