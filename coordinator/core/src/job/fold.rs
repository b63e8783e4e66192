//! Folding: commits move from the store into objects, so that the store stays small however long a job is
//! (`coordination.md` 3.3).
//!
//! ```text
//! enough durable commits -> WriteLedger -> LedgerWritten -> one transaction: put fold, delete its commits
//! ```
//!
//! Only what is known to be applied is folded, in the order of the numbers, beside whatever else the machine waits for
//! and at most one fold at a time. The view keeps every commit: repeated ones must be recognised, the merge plan and
//! the manifest are made from all of them. (131,072 of them take some 60 MB.)
//!
//! It is invisible to the rules of [`crate::ledger`]: a fold changes where commits rest, not which there are.

use flatbed_types::Instant;
use flatbed_types::caps;
use flatbed_types::job::{JobError, ObjectPointer};
use flatbed_types::task::FoldRecord;

use super::convert::from_ledger;
use super::life::OBJECT_RETRY_MILLIS;
use super::{Group, Job, Op, Output, is_due};
use crate::ledger::Stage;

/// What the fold in the making waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Step {
    /// Nothing is being folded.
    #[default]
    Idle,
    /// The object with the commits from the first to the last, both included.
    Writing { first: u64, last: u64 },
    /// Another try after one that failed.
    Retry { at: Instant },
}

/// How far the ledger is folded.
#[derive(Debug, Clone, Default)]
pub(super) struct Folding {
    /// Commits below this number rest in objects.
    folded: u64,
    /// Commits below this number are known to be applied.
    durable: u64,
    /// The number of the next fold.
    next: u32,
    /// When the last fold ended, or the machine was loaded.
    since: Option<Instant>,
    step: Step,
}

impl Folding {
    /// As stored: so many commits, of which these folds hold the first.
    pub(super) fn stored<'a>(
        commits: u64,
        folds: impl Iterator<Item = (&'a u32, &'a FoldRecord)> + Clone,
    ) -> Folding {
        let folded = folds.clone().map(|(_, fold)| fold.last.saturating_add(1)).max().unwrap_or(0);
        let next = folds.map(|(number, _)| number + 1).max().unwrap_or(0);
        Folding { folded, durable: commits, next, since: None, step: Step::Idle }
    }

    /// A transaction with so many commits is applied.
    pub(super) fn applied(&mut self, commits: u64) {
        self.durable += commits;
    }

    /// How many commits are known to be applied.
    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    fn is_due(&mut self, now: Instant, fold_commits: u64) -> bool {
        let since = *self.since.get_or_insert(now);
        let unfolded = self.durable.saturating_sub(self.folded);
        let waited = now.millis() - since.millis() >= caps::FOLD_MILLIS as i64;
        let ready = match self.step {
            Step::Idle => true,
            Step::Retry { at } => is_due(at, now),
            Step::Writing { .. } => false,
        };
        ready && (unfolded > fold_commits || (waited && unfolded >= caps::MIN_FOLD_COMMITS as u64))
    }
}

impl Job {
    /// Begins to fold where there is enough to fold.
    pub(super) fn fold(&mut self, now: Instant, out: &mut Vec<Output>) {
        let at_once = (self.settings.fold_commits as u64).max(1);
        if self.ledger.stage() != Stage::Open
            || self.stop.is_some()
            || !self.folding.is_due(now, self.settings.fold_commits as u64)
        {
            return;
        }
        let first = self.folding.folded;
        let behind = self.folding.durable.min(first + at_once);
        let commits = self.ledger.commits().range(first..behind);
        let commits = commits.map(|(number, commit)| (*number, from_ledger(commit))).collect();
        self.folding.step = Step::Writing { first, last: behind - 1 };
        out.push(Output::WriteLedger(self.folding.next, commits));
    }

    pub(super) fn ledger_written(&mut self, now: Instant, object: Result<ObjectPointer, JobError>) {
        let Step::Writing { first, last } = self.folding.step else { return };
        self.folding.step = Step::Idle;
        // A job that has ended is folded no more: its objects may be on their way out.
        if self.ledger.stage() != Stage::Open {
            return;
        }
        match object {
            Ok(object) => {
                let fold = Op::PutFold(self.folding.next, FoldRecord { object, first, last });
                self.folding.next += 1;
                self.folding.folded = last + 1;
                self.folding.since = Some(now);
                self.enqueue(Group::of(vec![fold, Op::DeleteCommitRange(first, last)], Vec::new()));
            }
            Err(error) if error.code.is_retryable() => {
                self.folding.step = Step::Retry { at: now.plus_millis(OBJECT_RETRY_MILLIS) };
            }
            Err(error) => self.fail(now, error),
        }
    }
}
