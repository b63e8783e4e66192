//! Mistakes seeded into the protocol, each of which the invariants must notice.
//!
//! A mistake in a rule is a copy of that rule here, without the check in question; without a mutation the
//! model calls the production rule and nothing of this module.

use flatbed_coordinator_core::ledger::{Change as Write, OpenTask, Refusal, Stage};
use flatbed_types::{AttemptId, Token};

use super::state::{Change, Commit, Ledger, Verdict};

/// One mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// Transactions apply whatever the fence says.
    NoFence,
    /// The fence compares the epoch only, and a lost answer counts as "not applied".
    EpochOnlyFence,
    /// A commit may start elsewhere than the task stands.
    CommitIgnoresLo,
    /// A commit may go beyond the cut.
    CommitIgnoresHi,
    /// A commit of any attempt is accepted.
    CommitIgnoresAttempt,
    /// The collector takes an attempt for dead that is merely unknown to its view.
    CollectorIgnoresEpoch,
    /// The collector takes an attempt of an earlier epoch for dead although it may still commit.
    CollectorIgnoresAllowed,
    /// The collector believes a withdrawal whose transaction is not known to be applied.
    CollectorRunsAhead,
    /// The result is published although a stop request exists.
    CompleteIgnoresStop,
    /// The result is published while tasks remain.
    CompleteIgnoresTasks,
    /// The result is published without the round that references call for.
    CompleteIgnoresReferences,
    /// A round is opened again when its tasks are done.
    RoundOpenedTwice,
    /// The transaction that opens a round does not compare the fence.
    RoundWithoutFence,
    /// A restarted worker runs a grant of its former life.
    GrantNotBound,
    /// Objects of two runs of an attempt have the same names.
    NoNonce,
    /// Both of the former.
    GrantNotBoundNoNonce,
    /// Objects are named by task instead of by attempt.
    KeyPerTask,
    /// A worker deletes its object when told NOT_ALLOWED; a stale owner is enough.
    WorkerDeletes,
    /// As above, and a repeated commit is recognised only after the other checks.
    WorkerDeletesDuplicateLast,
    /// A merge is swapped in without comparing the fence.
    SwapWithoutFence,
    /// Two merge tasks join the same files.
    MergesOverlap,
    /// The merge plan is made from what lies in the object store instead of from the ledger.
    MergesUncommitted,
    /// The collector deletes what a merge joined before the swap is known to be applied.
    CollectorTakesInputsEarly,
    /// The collector does not see that a joined file is committed.
    CollectorTakesReplacement,
    /// A page is published without comparing the fence.
    PageWithoutFence,
    /// Whoever claims a job does not read which pages are published.
    PagesForgotten,
    /// A page lists what lies in the object store instead of what is committed.
    PageOfObjects,
    /// Files that pages list are joined.
    PagesMerged,
    /// The result is published without the page of what is left.
    CompleteWithoutLastPage,
    /// A worker reads the source as it is, not as it was pinned.
    ReadIgnoresPin,
    /// Each round of planning pins the source anew.
    RoundPinsAgain,
    /// Of two attempts at a task the first may commit parts while the second runs, and keeps the task. Breaks nothing:
    /// the rule against it saves work, not rows.
    FirstCommitsParts,
    /// Grants leave before their transaction is known to be applied.
    GrantBeforeApplied,
    /// Commits are answered before their transaction is known to be applied.
    AnswerBeforeApplied,
}

/// `Ledger::commit` with one check missing or out of place.
pub fn commit(mutation: Mutation, ledger: &Ledger, commit: &Commit, token: Token) -> Verdict {
    let known = ledger.commits().values().find(|known| {
        (known.attempt, known.segment) == (commit.attempt, commit.segment) && known.payload == commit.payload
    });
    let duplicate_last = mutation == Mutation::WorkerDeletesDuplicateLast;
    if known.is_some() && !duplicate_last {
        return Verdict::Duplicate;
    }
    if ledger.stage() != Stage::Open {
        return Verdict::Refuse(Refusal::Stopped);
    }
    let Some(task) = ledger.tasks().get(&commit.task) else {
        return Verdict::Refuse(Refusal::NotAllowed);
    };
    let holds =
        task.allowed.iter().any(|allowed| (allowed.attempt, allowed.token) == (commit.attempt, token));
    if !holds && mutation != Mutation::CommitIgnoresAttempt {
        return Verdict::Refuse(Refusal::NotAllowed);
    }
    if known.is_some() {
        return Verdict::Duplicate;
    }
    if commit.lo != task.lo && mutation != Mutation::CommitIgnoresLo {
        return Verdict::Refuse(Refusal::LoMismatch);
    }
    if commit.hi > task.hi && mutation != Mutation::CommitIgnoresHi {
        return Verdict::Refuse(Refusal::BeyondHi(task.hi));
    }
    // (`FirstCommitsParts`: no word about who is the first of two.)
    if commit.hi <= task.lo {
        return Verdict::Refuse(Refusal::LoMismatch);
    }
    let number = ledger.commits().last_key_value().map_or(0, |(number, _)| number + 1);
    let task_change: Change = if commit.hi >= task.hi {
        Write::DeleteTask(commit.task)
    } else {
        Write::PutTask(commit.task, OpenTask { lo: commit.hi, ..task.clone() })
    };
    Verdict::Accept { changes: vec![Write::PutCommit(number, commit.clone()), task_change], hi: task.hi }
}

/// `Ledger::is_dead` with half of its conditions.
pub fn is_dead(mutation: Mutation, ledger: &Ledger, attempt: AttemptId) -> bool {
    let mut allowed = ledger.tasks().values().flat_map(|task| &task.allowed);
    let held = allowed.any(|allowed| allowed.attempt == attempt);
    let cannot_be_granted = attempt.epoch() < ledger.epoch || ledger.stage() != Stage::Open;
    match mutation {
        Mutation::CollectorIgnoresEpoch => !held,
        _ => cannot_be_granted,
    }
}
