//! What is committed and what remains of one job, and the rules that change it (`coordination.md` 5.2, 7.6, 12).
//!
//! ```text
//! task:  waiting --grant--> leased --commit b < hi--> leased (lo := b)
//!           ^                 |  \--commit b = hi--> done (no task; the ledger covers it)
//!           +---withdraw------+   truncate: hi := at, and a new waiting task [at, hi)
//! ```
//!
//! A task may be held by two attempts (speculation). The first accepted commit of either takes it from the other,
//! and while both hold it the older one may only finish it.
//!
//! A rule looks at the owner's view and answers with [`Change`]s; the owner writes them in one transaction that
//! compares the job's fence, and applies them to its view. Nothing that follows from a change (a grant sent, a
//! commit answered) may happen before the transaction is known to be applied.
//!
//! Invariants, at every revision of the store:
//! - I1: committed ranges and remaining tasks together cover each lane of the plan exactly once.
//! - I3: every committed object exists; only objects of dead attempts that are in no commit are ever deleted.
//! - Attempts gain the right to commit only by [`Ledger::grant`]; once out of every `allowed`, never again.
//!
//! Positions and payloads are generic so that the model can run these very rules on small numbers.

use std::collections::BTreeMap;

use flatbed_types::{AttemptId, Epoch, TaskId, Token};

/// A try that may commit, as far as the rules care.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Allowed<H> {
    /// The attempt.
    pub attempt: AttemptId,
    /// Its random companion.
    pub token: Token,
    /// Who holds it; the rules do not look at it.
    pub holder: H,
}

/// What remains of a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OpenTask<K, H> {
    /// The first place not yet committed.
    pub lo: K,
    /// The first place that is not the task's.
    pub hi: K,
    /// The attempts that may commit; empty while the task waits.
    pub allowed: Vec<Allowed<H>>,
}

/// An accepted commit: the wanted rows of `[lo, hi)` are in what `payload` names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Commit<K, P> {
    /// The task.
    pub task: TaskId,
    /// The attempt.
    pub attempt: AttemptId,
    /// Number of the segment within the attempt.
    pub segment: u32,
    /// Where the rows start.
    pub lo: K,
    /// Where they end.
    pub hi: K,
    /// The outputs.
    pub payload: P,
}

/// Whether work may still be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Yes.
    Open,
    /// The result is fixed.
    Complete,
    /// The job ended without one.
    Stopped,
}

/// One write to the store, below the fence.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change<K, P, H> {
    /// The task is now this.
    PutTask(TaskId, OpenTask<K, H>),
    /// The task is done.
    DeleteTask(TaskId),
    /// A commit under the next number.
    PutCommit(u64, Commit<K, P>),
    /// The stage is now this; with any other than `Open` the remaining tasks are gone.
    SetStage(Stage),
}

/// Why a commit is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal<K> {
    /// The attempt may not commit (any more), or there is no such task. Final.
    NotAllowed,
    /// The commit starts elsewhere than the task stands.
    LoMismatch,
    /// The commit goes beyond where the task ends now.
    BeyondHi(K),
    /// The job takes no more commits. Final.
    Stopped,
}

/// What to do about a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<K, P, H> {
    /// Write these; the task then ends at `hi`.
    Accept {
        /// What to write.
        changes: Vec<Change<K, P, H>>,
        /// Where the task ends.
        hi: K,
    },
    /// It is in the ledger already.
    Duplicate,
    /// It is not accepted.
    Refuse(Refusal<K>),
}

/// An owner's view of one job: the store as of its claim, and all changes since that it wrote itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ledger<K, P, H> {
    /// The epoch of the claim.
    pub epoch: Epoch,
    stage: Stage,
    tasks: BTreeMap<TaskId, OpenTask<K, H>>,
    commits: BTreeMap<u64, Commit<K, P>>,
    by_segment: BTreeMap<(AttemptId, u32), u64>,
    next_task: u32,
}

impl<K: Clone + Ord, P: Clone + PartialEq, H: Clone> Ledger<K, P, H> {
    /// The view of a job without tasks.
    pub fn new(epoch: Epoch) -> Self {
        Ledger {
            epoch,
            stage: Stage::Open,
            tasks: BTreeMap::new(),
            commits: BTreeMap::new(),
            by_segment: BTreeMap::new(),
            next_task: 0,
        }
    }

    /// Tasks that remain, by id.
    pub fn tasks(&self) -> &BTreeMap<TaskId, OpenTask<K, H>> {
        &self.tasks
    }

    /// Commits, by number.
    pub fn commits(&self) -> &BTreeMap<u64, Commit<K, P>> {
        &self.commits
    }

    /// The commit of this segment, if there is one.
    pub fn commit_of(&self, attempt: AttemptId, segment: u32) -> Option<&Commit<K, P>> {
        self.commits.get(self.by_segment.get(&(attempt, segment))?)
    }

    /// The number that the next commit gets: one behind the last.
    pub fn next_commit(&self) -> u64 {
        self.commits.last_key_value().map_or(0, |(number, _)| number + 1)
    }

    /// Whether work may still be committed.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// An id that no task has had.
    pub fn next_task(&self) -> TaskId {
        TaskId(self.next_task)
    }

    /// Keeps ids from `first` on for tasks to come: every id below it is taken, whether or not its task
    /// still has a trace.
    pub fn reserve_tasks(&mut self, first: TaskId) {
        self.next_task = self.next_task.max(first.0);
    }

    /// Applies one change to the view. Total: what is written is what is seen.
    pub fn apply(&mut self, change: &Change<K, P, H>) {
        match change {
            Change::PutTask(id, task) => {
                self.reserve_tasks(TaskId(id.0 + 1));
                self.tasks.insert(*id, task.clone());
            }
            Change::DeleteTask(id) => {
                self.tasks.remove(id);
            }
            Change::PutCommit(number, commit) => {
                self.reserve_tasks(TaskId(commit.task.0 + 1));
                self.by_segment.insert((commit.attempt, commit.segment), *number);
                self.commits.insert(*number, commit.clone());
            }
            Change::SetStage(stage) => {
                self.stage = *stage;
                if *stage != Stage::Open {
                    self.tasks.clear();
                }
            }
        }
    }

    /// Gives a task to an attempt. Earlier attempts lose it, unless the grant is `speculative`: then both may
    /// commit, at most two at a time.
    pub fn grant(&self, id: TaskId, to: Allowed<H>, speculative: bool) -> Option<Vec<Change<K, P, H>>> {
        let mut task = self.tasks.get(&id)?.clone();
        if self.stage != Stage::Open || to.attempt.epoch() != self.epoch {
            return None;
        }
        if !speculative {
            task.allowed.clear();
        } else if task.allowed.len() != 1 {
            return None;
        }
        task.allowed.push(to);
        Some(vec![Change::PutTask(id, task)])
    }

    /// Takes a task from an attempt that is lost, failed or revoked. `None` when it does not hold it.
    pub fn withdraw(&self, id: TaskId, attempt: AttemptId) -> Option<Vec<Change<K, P, H>>> {
        let mut task = self.tasks.get(&id)?.clone();
        let before = task.allowed.len();
        task.allowed.retain(|allowed| allowed.attempt != attempt);
        (task.allowed.len() < before).then(|| vec![Change::PutTask(id, task)])
    }

    /// Cuts a task at `at`; what lies behind becomes a task of its own. Needs no word from the attempt: it may
    /// write beyond the cut, but not commit there.
    pub fn truncate(&self, id: TaskId, at: K) -> Option<Vec<Change<K, P, H>>> {
        let task = self.tasks.get(&id)?;
        if self.stage != Stage::Open || at <= task.lo || at >= task.hi {
            return None;
        }
        let mut head = task.clone();
        let tail = OpenTask { lo: at.clone(), hi: task.hi.clone(), allowed: Vec::new() };
        head.hi = at;
        Some(vec![Change::PutTask(id, head), Change::PutTask(self.next_task(), tail)])
    }

    /// Decides about a commit (`coordination.md` 5.2, `decisions.md` 1): a repeated one is recognised first, in
    /// every stage.
    pub fn commit(&self, commit: Commit<K, P>, token: Token) -> Verdict<K, P, H> {
        if let Some(number) = self.by_segment.get(&(commit.attempt, commit.segment)) {
            let same = self.commits.get(number).is_some_and(|known| known.payload == commit.payload);
            return if same { Verdict::Duplicate } else { Verdict::Refuse(Refusal::NotAllowed) };
        }
        if self.stage != Stage::Open {
            return Verdict::Refuse(Refusal::Stopped);
        }
        let Some(task) = self.tasks.get(&commit.task) else {
            return Verdict::Refuse(Refusal::NotAllowed);
        };
        let holds = |allowed: &Allowed<H>| allowed.attempt == commit.attempt && allowed.token == token;
        if !task.allowed.iter().any(holds) {
            return Verdict::Refuse(Refusal::NotAllowed);
        }
        if commit.lo != task.lo {
            return Verdict::Refuse(Refusal::LoMismatch);
        }
        if commit.hi > task.hi {
            return Verdict::Refuse(Refusal::BeyondHi(task.hi.clone()));
        }
        // While a second attempt runs, the first may only finish: a prefix would invalidate larger segments.
        let first_of_two = task.allowed.len() == 2 && task.allowed.first().is_some_and(holds);
        if commit.hi <= commit.lo || (first_of_two && commit.hi < task.hi) {
            return Verdict::Refuse(Refusal::LoMismatch);
        }
        let hi = task.hi.clone();
        let task_change = if commit.hi == task.hi {
            Change::DeleteTask(commit.task)
        } else {
            // The first commit wins: what the other attempt of two has written starts elsewhere from now on.
            let allowed = task.allowed.iter().filter(|allowed| holds(allowed)).cloned().collect();
            Change::PutTask(commit.task, OpenTask { lo: commit.hi.clone(), hi: task.hi.clone(), allowed })
        };
        let number = self.next_commit();
        Verdict::Accept { changes: vec![Change::PutCommit(number, commit), task_change], hi }
    }

    /// Opens a round of planning, or the merge tasks: these tasks, and nothing else, remain. Only when nothing remained before.
    pub fn open_round(&self, tasks: impl IntoIterator<Item = (K, K)>) -> Option<Vec<Change<K, P, H>>> {
        if self.stage != Stage::Open || !self.tasks.is_empty() {
            return None;
        }
        let numbered = (self.next_task..).zip(tasks);
        let open = |(id, (lo, hi))| Change::PutTask(TaskId(id), OpenTask { lo, hi, allowed: Vec::new() });
        Some(numbered.map(open).collect())
    }

    /// Fixes the result. Only when nothing remains; the transaction must also compare that no stop request
    /// exists.
    pub fn complete(&self) -> Option<Vec<Change<K, P, H>>> {
        let ready = self.stage == Stage::Open && self.tasks.is_empty();
        ready.then(|| vec![Change::SetStage(Stage::Complete)])
    }

    /// Takes `complete` back: its transaction was refused, so nothing of it was written.
    pub fn reopen(&mut self) {
        if self.stage == Stage::Complete {
            self.stage = Stage::Open;
        }
    }

    /// Ends the job without a result.
    pub fn stop(&self) -> Option<Vec<Change<K, P, H>>> {
        (self.stage == Stage::Open).then(|| vec![Change::SetStage(Stage::Stopped)])
    }

    /// Whether an attempt can never commit again, so that what it wrote and did not commit may be deleted
    /// (`coordination.md` 7.6). Holds for ever once true, even if this view has become stale: an attempt of an
    /// earlier epoch gets no new grant, and one of this epoch only while the stage is open. Never ask a view that runs
    /// ahead of the store: a withdrawal that is not durable may be undone by a later owner.
    pub fn is_dead(&self, attempt: AttemptId) -> bool {
        let held = |task: &OpenTask<K, H>| task.allowed.iter().any(|allowed| allowed.attempt == attempt);
        let cannot_be_granted = attempt.epoch() < self.epoch || self.stage != Stage::Open;
        cannot_be_granted && !self.tasks.values().any(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Small = Ledger<u8, u8, ()>;

    fn allowed(counter: u32) -> Allowed<()> {
        Allowed { attempt: AttemptId::new(Epoch(1), counter).unwrap(), token: Token(9), holder: () }
    }

    fn commit(counter: u32, segment: u32, lo: u8, hi: u8) -> Commit<u8, u8> {
        let attempt = allowed(counter).attempt;
        Commit { task: TaskId(0), attempt, segment, lo, hi, payload: hi }
    }

    fn apply(ledger: &mut Small, changes: Option<Vec<Change<u8, u8, ()>>>) {
        for change in changes.expect("the rule applies") {
            ledger.apply(&change);
        }
    }

    fn accept(ledger: &mut Small, commit: Commit<u8, u8>) {
        match ledger.commit(commit, Token(9)) {
            Verdict::Accept { changes, .. } => apply(ledger, Some(changes)),
            other => panic!("not accepted: {other:?}"),
        }
    }

    fn running() -> Small {
        let mut ledger = Small::new(Epoch(1));
        let changes = ledger.open_round([(0, 10)]);
        apply(&mut ledger, changes);
        let changes = ledger.grant(TaskId(0), allowed(0), false);
        apply(&mut ledger, changes);
        ledger
    }

    #[test]
    fn every_reason_to_refuse_a_commit() {
        let mut ledger = running();
        let refuse = |ledger: &Small, commit, token| match ledger.commit(commit, token) {
            Verdict::Refuse(refusal) => refusal,
            other => panic!("{other:?}"),
        };
        assert_eq!(refuse(&ledger, commit(1, 0, 0, 5), Token(9)), Refusal::NotAllowed);
        assert_eq!(refuse(&ledger, commit(0, 0, 0, 5), Token(8)), Refusal::NotAllowed);
        assert_eq!(refuse(&ledger, commit(0, 0, 1, 5), Token(9)), Refusal::LoMismatch);
        assert_eq!(refuse(&ledger, commit(0, 0, 0, 0), Token(9)), Refusal::LoMismatch);
        assert_eq!(refuse(&ledger, commit(0, 0, 0, 11), Token(9)), Refusal::BeyondHi(10));
        accept(&mut ledger, commit(0, 0, 0, 5));
        assert_eq!(ledger.commit(commit(0, 0, 0, 5), Token(9)), Verdict::Duplicate);
        let changes = ledger.stop();
        apply(&mut ledger, changes);
        assert_eq!(ledger.commit(commit(0, 0, 0, 5), Token(9)), Verdict::Duplicate);
        assert_eq!(refuse(&ledger, commit(0, 1, 5, 6), Token(9)), Refusal::Stopped);
    }

    #[test]
    fn a_cut_task_ends_at_the_cut_and_its_tail_is_another() {
        let mut ledger = running();
        let changes = ledger.truncate(TaskId(0), 6);
        apply(&mut ledger, changes);
        assert_eq!(ledger.commit(commit(0, 0, 0, 7), Token(9)), Verdict::Refuse(Refusal::BeyondHi(6)));
        accept(&mut ledger, commit(0, 0, 0, 6));
        assert_eq!(ledger.tasks().keys().collect::<Vec<_>>(), [&TaskId(1)]);
        assert!(ledger.complete().is_none());
    }

    #[test]
    fn while_two_attempts_run_the_first_may_only_finish() {
        let mut ledger = running();
        let changes = ledger.grant(TaskId(0), allowed(1), true);
        apply(&mut ledger, changes);
        assert!(ledger.grant(TaskId(0), allowed(2), true).is_none());
        assert_eq!(ledger.commit(commit(0, 0, 0, 5), Token(9)), Verdict::Refuse(Refusal::LoMismatch));
        accept(&mut ledger, commit(1, 0, 0, 5));
        let task = &ledger.tasks()[&TaskId(0)];
        assert_eq!(task.allowed, [allowed(1)], "the first commit wins");
        assert_eq!(ledger.commit(commit(0, 0, 0, 10), Token(9)), Verdict::Refuse(Refusal::NotAllowed));
    }

    #[test]
    fn of_two_attempts_the_first_may_finish_the_task() {
        let mut ledger = running();
        let changes = ledger.grant(TaskId(0), allowed(1), true);
        apply(&mut ledger, changes);
        accept(&mut ledger, commit(0, 0, 0, 10));
        assert!(ledger.tasks().is_empty());
        assert_eq!(ledger.commit(commit(1, 0, 0, 10), Token(9)), Verdict::Refuse(Refusal::NotAllowed));
    }

    #[test]
    fn an_attempt_is_dead_only_when_it_can_never_be_granted_again() {
        let mut ledger = running();
        let first = allowed(0).attempt;
        let changes = ledger.withdraw(TaskId(0), first);
        apply(&mut ledger, changes);
        assert!(!ledger.is_dead(first), "its grant may still be on its way in this epoch");
        ledger.epoch = Epoch(2);
        assert!(ledger.is_dead(first));
    }
}
