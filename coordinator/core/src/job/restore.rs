//! The view of a job from what is stored, after a claim.
//!
//! Records are sparse, so what a task is follows from three places:
//!
//! | task | record | commits | it is |
//! |---|---|---|---|
//! | of a plan | none | none | untouched: waits with the range of the plan |
//! | of a plan | none | some | done |
//! | any | one | any | open, with the range and the attempts of the record (a cut task's end is in no other place) |
//! | of no plan | none | some | done: a plan or resolve task, or one that was cut off another |
//!
//! A task that was cut off starts behind the start of its lane, since the other part lies before it; a plan or
//! resolve task starts at the start. Tasks that are cut off belong to the last round: a round is opened only when
//! nothing of the one before remains. Every id that was ever taken is seen in a plan, a record or a commit, so that new
//! ones never collide.

use std::collections::{BTreeMap, BTreeSet};

use flatbed_types::job::JobState;
use flatbed_types::task::TaskKind;
use flatbed_types::{KeyRange, Position, TaskId};

use super::convert::{from_record, to_ledger, waiting};
use super::fold::Folding;
use super::rounds::numbered;
use super::{Job, Stored, TaskInfo};
use crate::ledger::{Change, Stage};

impl Job {
    pub(super) fn restore(&mut self, stored: Stored) {
        let Stored { record: _, plans, tasks: records, merges, commits, folds, pages, stop: _ } = stored;
        let mut cut_off = BTreeMap::new();
        for (round, plan) in (0..).zip(&plans) {
            self.add_round(round, plan);
        }
        for (number, commit) in commits {
            let planned = self.tasks.contains_key(&commit.task);
            if !planned && commit.replaces.is_empty() && commit.range.lo != Position::START {
                cut_off.insert(commit.task, commit.round);
            }
            let change = Change::PutCommit(number, to_ledger(commit));
            self.count_commit(std::slice::from_ref(&change));
            self.apply(&change);
        }
        self.folding = Folding::stored(self.ledger.next_commit(), folds.iter());
        self.restore_pages(&pages);
        // Untouched tasks: those of a plan are open unless a commit or a record says otherwise.
        let mut open: Vec<(TaskId, KeyRange)> = Vec::new();
        for plan in &plans {
            open.extend(numbered(plan).map(|(id, task)| (id, task.range.clone())));
        }
        if let Some(plan) = merges {
            let ids = (plan.first_task..).map(TaskId).zip(&plan.tasks);
            open.extend(ids.map(|(id, _)| (id, KeyRange::ALL)));
            self.add_merges(plan);
        }
        let committed: BTreeSet<TaskId> = self.ledger.commits().values().map(|commit| commit.task).collect();
        for (id, range) in open {
            self.ledger.reserve_tasks(TaskId(id.0 + 1));
            if !records.contains_key(&id) && !committed.contains(&id) {
                self.apply(&Change::PutTask(id, waiting(&range)));
            }
        }
        let last_round = self.current_round();
        for (id, record) in records {
            let known = self.tasks.get(&id).map(|info| info.round);
            if known.is_none() && matches!(record.kind, TaskKind::Extract(_)) {
                cut_off.insert(id, last_round);
            }
            let (failures, losses) = (record.failures, record.losses);
            let info = TaskInfo::new(record.kind, known.unwrap_or(last_round));
            self.introduce(id, TaskInfo { failures, losses, ..info });
            self.apply(&Change::PutTask(id, from_record(record)));
        }
        for round in cut_off.into_values() {
            if let Some(progress) = self.rounds.get_mut(round as usize) {
                progress.tasks += 1;
            }
        }
        self.recount_done();
        self.restore_stage();
    }

    fn restore_stage(&mut self) {
        match self.record.state {
            JobState::Planning
            | JobState::Running
            | JobState::Resolving
            | JobState::Merging
            | JobState::Finalizing => {}
            JobState::Complete => self.apply(&Change::SetStage(Stage::Complete)),
            JobState::Failed | JobState::Cancelled | JobState::Deleting | JobState::Gone => {
                self.apply(&Change::SetStage(Stage::Stopped));
            }
        }
    }
}
