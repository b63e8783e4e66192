//! What must hold of a job, of its store and of its result.

use std::collections::BTreeSet;

use flatbed_types::Nonce;
use flatbed_types::job::JobState;
use flatbed_types::layout::{Writer, output_object};
use flatbed_types::task::OutputKind;
use flatbed_types::{Codec, ResourceType, SessionId};

use super::super::*;
use super::world::{NOW, PRACTITIONER, World};

impl World {
    /// What is looked for is each file that is committed and not joined into another, once.
    pub fn assert_named(&self, named: &[(String, u64)]) {
        let ledger = self.ledger();
        let replaced: BTreeSet<Nonce> = ledger.values().flat_map(|commit| commit.replaces.clone()).collect();
        let mut expected = BTreeSet::new();
        for commit in ledger.values() {
            for output in &commit.outputs {
                if output.kind != OutputKind::References && !replaced.contains(&output.nonce) {
                    let key = output_object("root", Writer::from(commit), output, Codec::Gzip);
                    expected.insert((key, output.stored_bytes));
                }
            }
        }
        assert_eq!(named.iter().cloned().collect::<BTreeSet<_>>(), expected);
        assert_eq!(named.len(), expected.len());
    }

    /// What is stored makes the view that the owner has.
    pub fn assert_restores(&self, job: &Job) {
        if job.record.state.is_terminal() {
            return;
        }
        let restored = self.load();
        assert_eq!(restored.ledger, job.ledger);
        assert_eq!((&restored.rounds, &restored.merging), (&job.rounds, &job.merging));
        assert_eq!(restored.plan_tasks(), job.plan_tasks());
        assert_eq!(restored.paging.standing(), job.paging.standing());
        for id in job.ledger.tasks().keys() {
            let known = |job: &Job| {
                let info = &job.tasks[id];
                (info.kind, info.round, info.failures, info.losses)
            };
            assert_eq!(known(&restored), known(job));
            assert_eq!(restored.merge_task(*id), job.merge_task(*id));
        }
    }

    pub fn assert_complete(&self) {
        assert_eq!(self.stored.record.state, JobState::Complete);
        let ledger = self.ledger();
        let manifest = self.manifest.as_ref().unwrap();
        let lines = |kind, of| {
            let of_type = manifest.entries.iter().filter(|e| e.kind == kind && e.resource_type == of);
            of_type.map(|entry| entry.lines).sum::<u64>()
        };
        let extracts = || ledger.values().filter(|commit| commit.replaces.is_empty());
        let rows = |round| {
            let of_round = extracts().filter(|commit| commit.round == round);
            of_round.map(|commit| commit.rows.written).sum::<u64>()
        };
        assert!(rows(0) >= 10 && rows(1) >= 2);
        assert_eq!(lines(OutputKind::Data, ResourceType::PATIENT), rows(0));
        assert_eq!(lines(OutputKind::Data, PRACTITIONER), rows(1));
        let outcomes = ledger.values().flat_map(|commit| &commit.outputs);
        let outcomes = outcomes.filter(|output| output.kind == OutputKind::Outcome).count() as u64;
        assert_eq!(lines(OutputKind::Outcome, ResourceType::OPERATION_OUTCOME), outcomes);
        assert_eq!(outcomes > 1, self.course.pages.is_some());
        assert_eq!(self.stored.record.result.rows, rows(0) + rows(1));
        let files = manifest.entries.iter().filter(|entry| entry.kind == OutputKind::Data).count();
        assert!(files <= self.course.max_files || self.course.pages.is_some());
        assert!(self.course.pages.is_none() || self.stored.record.merges.is_none());
        // Folded, and not more often than needed: what is left is less than a fold.
        assert!(self.stored.commits.len() <= self.course.fold_commits + 2, "{}", self.stored.commits.len());
        // I1, I2: the commits of each lane tile it.
        let mut patient: Vec<_> = extracts().filter(|c| c.round == 0 && c.rows.written > 0).collect();
        patient.sort_by(|a, b| a.range.lo.cmp(&b.range.lo));
        assert_eq!(patient.first().unwrap().range.lo, Position::START);
        assert_eq!(patient.last().unwrap().range.hi, Position::End);
        assert!(patient.windows(2).all(|pair| pair[0].range.hi == pair[1].range.lo));
    }
}

impl Job {
    /// The index says what the ledger says.
    pub fn assert_index(&self) {
        let tasks = self.ledger.tasks();
        let waiting = tasks.values().filter(|task| task.allowed.is_empty()).count();
        if self.may_grant() {
            assert_eq!(self.waiting(NOW) as usize, waiting);
            assert_eq!(self.waiting_task(NOW).is_some(), waiting > 0);
        }
        let held: BTreeSet<(AttemptId, SessionId)> = tasks
            .values()
            .flat_map(|task| &task.allowed)
            .map(|allowed| (allowed.attempt, allowed.holder.session))
            .collect();
        let leases = self.leases().map(|(attempt, holder)| (attempt, holder.session));
        assert_eq!(leases.collect::<BTreeSet<_>>(), held);
        assert_eq!(self.running() as usize, held.len());
        for (attempt, session) in held {
            assert!(self.is_leased(attempt) && self.leases_of(session).any(|of| of == attempt));
            let (id, _) = self.lease(attempt).unwrap();
            let (_, range) = self.lease_range(attempt).unwrap();
            assert_eq!((&range.lo, &range.hi), (&tasks[&id].lo, &tasks[&id].hi));
        }
    }
}

/// What a coordinator may still do when it was told to leave: let out what follows from what it wrote. It begins
/// nothing.
pub fn assert_leaves(output: &Output) {
    let begun = matches!(
        output,
        Output::ReadDraft(_)
            | Output::WritePlan(..)
            | Output::WriteMergePlan(_)
            | Output::WriteLedger(..)
            | Output::WritePage(..)
            | Output::VerifyObjects(_)
            | Output::WriteManifest(_)
            | Output::DeleteObjects
    );
    assert!(!begun, "{output:?}");
}
