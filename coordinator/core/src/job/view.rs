//! What is told of a job while it lives.

use flatbed_types::Instant;
use flatbed_types::job::{JobState, Volume};

use super::{Busy, Job};
use crate::ledger::Stage;
use crate::progress;

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobProgress {
    /// Committed.
    pub committed: Volume,
    /// Tasks planned so far.
    pub tasks: u32,
    /// Tasks done.
    pub tasks_done: u32,
    /// Attempts at work.
    pub running: u32,
    /// Tasks that wait for a slot.
    pub waiting: u32,
    /// Done in thousandths.
    pub permille: u32,
    /// What it does, for people.
    pub phase: String,
}

impl Job {
    /// How far the job is.
    pub fn progress(&self, now: Instant) -> JobProgress {
        let mut committed = Volume::default();
        let (mut tasks, mut tasks_done) = (0, 0);
        for round in &self.rounds {
            committed.rows += round.committed.rows;
            committed.bytes += round.committed.bytes;
            tasks += round.tasks;
            tasks_done += round.tasks_done;
        }
        JobProgress {
            committed,
            tasks: tasks + self.merging.tasks,
            tasks_done: tasks_done + self.merging.tasks_done,
            running: self.running(),
            waiting: u32::try_from(self.index.idle_tasks()).unwrap_or(u32::MAX),
            permille: progress::permille(self.record.state, &self.rounds, &self.merging),
            phase: self.phase(now),
        }
    }

    fn phase(&self, now: Instant) -> String {
        let name = match self.record.state {
            JobState::Planning => "planning",
            JobState::Running => "exporting",
            JobState::Resolving => "listing supporting resources",
            JobState::Merging => "joining small files",
            JobState::Finalizing => "writing the manifest",
            JobState::Complete => "complete",
            JobState::Failed => "failed",
            JobState::Cancelled | JobState::Deleting => "deleting",
            JobState::Gone => "deleted",
        };
        let idle = self.ledger.stage() == Stage::Open && self.running() == 0 && self.busy.is_none();
        match &self.waiting_for {
            Some(reason) if idle || matches!(self.busy, Some(Busy::Deleting)) => {
                format!("{name}; waiting: {reason}")
            }
            None if idle && self.waiting_task(now).is_some() => format!("{name}; waiting for a worker"),
            _ => name.to_owned(),
        }
    }
}
