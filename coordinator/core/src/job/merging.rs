//! Joining small files: when all rows are committed and the job has more files than it may have.
//!
//! ```text
//! all rows committed -> WriteMergePlan -> ObjectWritten -> one transaction: the job points at the plan, the tasks
//! are open -> each merge commit swaps a file for those it joins, in one transaction -> Finalizing
//! ```
//!
//! Invariants: a job has at most one merge plan, and only one that was made when no rows remained; a file is
//! replaced by at most one merge, whose commit names exactly the files of its task; replaced files stay in the store
//! until the job is complete.

use std::collections::BTreeSet;

use flatbed_types::job::{JobError, JobState, ObjectPointer};
use flatbed_types::layout::Writer;
use flatbed_types::task::{MergeInput, MergePlan, MergeTask, OutputKind, OutputObject, TaskKind};
use flatbed_types::{ErrorCode, Instant, Nonce, Position, TaskId, caps};

use super::{Busy, Job, JobCommit, Output, TaskInfo};
use crate::merge::{self, Bounds, DataFile};

impl Job {
    /// All rows are committed: small files are joined where there are too many, then the result is fixed.
    pub(super) fn rows_done(&mut self, now: Instant, out: &mut Vec<Output>) {
        match self.merge_plan() {
            None if self.takes_pages() => self.transition(JobState::Finalizing),
            Some(plan) => {
                self.busy = Some(Busy::PlanningMerges(plan.clone()));
                out.push(Output::WriteMergePlan(plan));
            }
            None => {
                self.record.state = JobState::Finalizing;
                self.finalize(now, out);
            }
        }
    }

    /// The merge tasks that the job needs and does not have yet.
    pub(super) fn merge_plan(&self) -> Option<MergePlan> {
        // Files that a page lists stay.
        if self.record.merges.is_some() || self.takes_pages() {
            return None;
        }
        let files = self.data_files();
        // Two adjacent merged files are larger than one may be: with twice the average as bound the limit is in reach,
        // also where the whole is larger than `max_files` files of the target size.
        let total: u64 = files.iter().map(|file| file.input.output.raw_bytes).fold(0, u64::saturating_add);
        let average = total / self.settings.max_files.max(1) as u64;
        let request = &self.record.request;
        let bounds = Bounds {
            target_bytes: self.settings.sizing.target_bytes.max(average.saturating_mul(2)),
            least_bytes: request.least_file_bytes(),
            most_bytes: request.max_file_bytes.unwrap_or(u64::MAX).min(caps::MAX_FILE_BYTES),
        };
        let tasks = merge::plan(files, self.settings.max_files, bounds);
        (!tasks.is_empty()).then(|| MergePlan { first_task: self.ledger.next_task().0, tasks })
    }

    /// Counts a file that will be one of the result whatever is joined: no two that are larger than half of what a file
    /// may be fit into one, and those that pages list are not joined at all.
    pub(super) fn count_if_lasting(&mut self, raw_bytes: u64) {
        let Some(most) = self.record.request.max_file_bytes else { return };
        if self.takes_pages() || raw_bytes > most / 2 {
            self.lasting_files += 1;
        }
    }

    /// Why a job cannot have the small files that it asks for: it has too many already. Its plan looked well, but sizes in
    /// it are estimates.
    pub(super) fn too_many_files(&self) -> Option<JobError> {
        let most = self.record.request.max_file_bytes?;
        if self.lasting_files <= self.settings.max_files as u64 {
            return None;
        }
        let message = format!(
            "files of at most {most} bytes would be more than {} files; ask for a larger _maximumFileSize",
            self.settings.max_files
        );
        Some(JobError { code: ErrorCode::Invalid, message })
    }

    fn data_files(&self) -> Vec<DataFile> {
        let of_commit = |commit: &JobCommit| {
            let writer = Writer { task: commit.task, attempt: commit.attempt, segment: commit.segment };
            let (round, lo) = (commit.payload.round, commit.lo.clone());
            let data = commit.payload.outputs.iter().filter(|output| output.kind == OutputKind::Data);
            let file = |output: &OutputObject| DataFile {
                round,
                lo: lo.clone(),
                input: MergeInput { writer, output: output.clone() },
            };
            data.map(file).collect::<Vec<DataFile>>()
        };
        self.ledger.commits().values().flat_map(of_commit).collect()
    }

    /// The plan is an object: the job points at it, and its tasks are open.
    pub(super) fn merges_planned(&mut self, plan: MergePlan, pointer: ObjectPointer) {
        if plan.first_task != self.ledger.next_task().0 {
            return;
        }
        let tasks = plan.tasks.iter().map(|_| (Position::START, Position::End));
        let Some(changes) = self.ledger.open_round(tasks) else { return };
        self.record.merges = Some(pointer);
        self.add_merges(plan);
        // Untouched tasks have no records: the plan object that the job now points at says it all.
        for change in &changes {
            self.apply(change);
        }
        let group = self.group_into(JobState::Merging, Vec::new(), Vec::new());
        self.enqueue(group);
    }

    /// Makes the tasks of a merge plan known. Their commits belong to the round of the files that they join.
    pub(super) fn add_merges(&mut self, plan: MergePlan) {
        for (id, task) in (plan.first_task..).map(TaskId).zip(&plan.tasks) {
            let first = task.inputs.first().map(|input| input.writer);
            let commit = first.and_then(|writer| self.ledger.commit_of(writer.attempt, writer.segment));
            let round = commit.map_or(0, |commit| commit.payload.round);
            self.merging.tasks += 1;
            for input in &task.inputs {
                self.merging.estimate.rows += input.output.lines;
                self.merging.estimate.bytes += input.output.raw_bytes;
            }
            self.tasks.insert(id, TaskInfo::new(TaskKind::Merge(task.resource_type), round));
        }
        self.merges = Some(plan);
    }

    /// The files that a merge task joins.
    pub(super) fn merge_task(&self, id: TaskId) -> Option<&MergeTask> {
        let plan = self.merges.as_ref()?;
        plan.tasks.get(id.0.checked_sub(plan.first_task)? as usize)
    }

    /// The objects that commits name, but those in whose place a merged file stands. Of a complete job these are
    /// what must stay: everything else that attempts wrote may be deleted.
    pub fn committed_objects(&self) -> impl Iterator<Item = &OutputObject> {
        let commits = || self.ledger.commits().values();
        let replaced: BTreeSet<Nonce> =
            commits().flat_map(|commit| &commit.payload.replaces).copied().collect();
        let outputs = commits().flat_map(|commit| &commit.payload.outputs);
        outputs.filter(move |output| !replaced.contains(&output.nonce))
    }
}
