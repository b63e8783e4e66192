//! Which tasks wait and who holds which attempt, so that no question scans the tasks of a job: there may be
//! `caps::MAX_PLANNED_TASKS` of them.
//!
//! Invariant: what [`Index`] says follows from the open tasks of the ledger and the moments that tasks are put off to;
//! it changes only where the ledger does ([`Job::apply`]).

use std::collections::{BTreeMap, BTreeSet};

use flatbed_types::task::TaskKind;
use flatbed_types::{AttemptId, Instant, KeyRange, SessionId, TaskId};

use super::{Hold, Holder, Job, JobChange, LONGEST_DELAY_MILLIS, OpenJobTask, TaskInfo, is_due};
use crate::ledger::{Change, Stage};

/// Tasks that were put off and are due: more are not counted, since no more slots are asked for at once.
const COUNTED_DUE: usize = 1_024;

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// Tasks that wait and may be granted at once.
    ready: BTreeSet<TaskId>,
    /// Tasks that wait until a moment.
    put_off: BTreeSet<(Instant, TaskId)>,
    /// The moments in `put_off`, by task.
    moments: BTreeMap<TaskId, Instant>,
    /// Attempts that may commit.
    leased: BTreeMap<AttemptId, TaskId>,
    /// The same by who holds them.
    by_session: BTreeMap<SessionId, BTreeSet<AttemptId>>,
}

impl Index {
    fn remove(&mut self, id: TaskId, task: &OpenJobTask) {
        self.ready.remove(&id);
        if let Some(moment) = self.moments.remove(&id) {
            self.put_off.remove(&(moment, id));
        }
        for allowed in &task.allowed {
            self.leased.remove(&allowed.attempt);
            if let Some(attempts) = self.by_session.get_mut(&allowed.holder.session) {
                attempts.remove(&allowed.attempt);
                if attempts.is_empty() {
                    self.by_session.remove(&allowed.holder.session);
                }
            }
        }
    }

    fn insert(&mut self, id: TaskId, task: &OpenJobTask, not_before: Option<Instant>) {
        for allowed in &task.allowed {
            self.leased.insert(allowed.attempt, id);
            self.by_session.entry(allowed.holder.session).or_default().insert(allowed.attempt);
        }
        match not_before {
            _ if !task.allowed.is_empty() => {}
            None => drop(self.ready.insert(id)),
            Some(moment) => {
                self.moments.insert(id, moment);
                self.put_off.insert((moment, id));
            }
        }
    }

    /// Who was put off goes first: the round ends only with them.
    fn first_waiting(&self, now: Instant) -> Option<TaskId> {
        let ends = [self.put_off.first(), self.put_off.last()];
        let due = ends.into_iter().flatten().find(|(moment, _)| is_due(*moment, now));
        due.map(|(_, id)| *id).or_else(|| self.ready.first().copied())
    }

    fn waiting(&self, now: Instant) -> usize {
        let last = TaskId(u32::MAX);
        let due = self.put_off.range(..=(now, last)).take(COUNTED_DUE).count();
        let clock_was_set_back = (now.plus_millis(LONGEST_DELAY_MILLIS), last);
        let far = self.put_off.range(clock_was_set_back..).take(COUNTED_DUE).count();
        self.ready.len() + due + far
    }

    /// Tasks that nobody works on, whether due or put off.
    pub(super) fn idle_tasks(&self) -> usize {
        self.ready.len() + self.put_off.len()
    }
}

impl Job {
    /// Applies a change to the view. The only place where the ledger changes.
    pub(super) fn apply(&mut self, change: &JobChange) {
        if let Change::PutTask(id, _) | Change::DeleteTask(id) = change
            && let Some(task) = self.ledger.tasks().get(id)
        {
            self.index.remove(*id, task);
        }
        self.ledger.apply(change);
        match change {
            Change::PutTask(id, task) => {
                let not_before = self.tasks.get(id).and_then(|info| info.not_before);
                self.index.insert(*id, task, not_before);
            }
            Change::SetStage(Stage::Complete | Stage::Stopped) => self.index = Index::default(),
            Change::SetStage(Stage::Open) | Change::DeleteTask(_) | Change::PutCommit(..) => {}
        }
    }

    pub(super) fn may_grant(&self) -> bool {
        self.hold == Hold::Owner && self.ledger.stage() == Stage::Open && self.stop.is_none()
    }

    /// A task that an offer would be answered with, if any.
    pub fn waiting_task(&self, now: Instant) -> Option<TaskId> {
        if self.may_grant() { self.index.first_waiting(now) } else { None }
    }

    /// How many tasks offers could take now. Of those that were put off and are due, a thousand are counted.
    pub fn waiting(&self, now: Instant) -> u32 {
        if self.may_grant() { u32::try_from(self.index.waiting(now)).unwrap_or(u32::MAX) } else { 0 }
    }

    /// The attempts that may commit, with their holders.
    pub fn leases(&self) -> impl Iterator<Item = (AttemptId, &Holder)> {
        let held = |attempt: &AttemptId| Some((*attempt, self.lease(*attempt)?.1));
        self.index.leased.keys().filter_map(held)
    }

    /// The attempts of a session that may commit.
    pub fn leases_of(&self, session: SessionId) -> impl Iterator<Item = AttemptId> {
        self.index.by_session.get(&session).into_iter().flatten().copied()
    }

    /// The task of an attempt that may commit, and who holds it.
    pub fn lease(&self, attempt: AttemptId) -> Option<(TaskId, &Holder)> {
        let id = *self.index.leased.get(&attempt)?;
        let task = self.ledger.tasks().get(&id)?;
        let allowed = task.allowed.iter().find(|allowed| allowed.attempt == attempt)?;
        Some((id, &allowed.holder))
    }

    /// Whether an attempt may commit.
    pub fn is_leased(&self, attempt: AttemptId) -> bool {
        self.index.leased.contains_key(&attempt)
    }

    /// How many attempts may commit.
    pub fn running(&self) -> u32 {
        u32::try_from(self.index.leased.len()).unwrap_or(u32::MAX)
    }

    /// What the task of an attempt is and what remains of it: the part that is not yet committed.
    pub fn lease_range(&self, attempt: AttemptId) -> Option<(TaskKind, KeyRange)> {
        let id = self.index.leased.get(&attempt)?;
        let (task, info) = (self.ledger.tasks().get(id)?, self.tasks.get(id)?);
        Some((info.kind, KeyRange { lo: task.lo.clone(), hi: task.hi.clone() }))
    }

    /// What the task of an attempt that may commit does.
    pub fn lease_kind(&self, attempt: AttemptId) -> Option<TaskKind> {
        let id = self.index.leased.get(&attempt)?;
        self.tasks.get(id).map(|info| info.kind)
    }

    /// Whether a second attempt works beside this one.
    pub fn is_doubled(&self, attempt: AttemptId) -> bool {
        let task = self.index.leased.get(&attempt).and_then(|id| self.ledger.tasks().get(id));
        task.is_some_and(|task| task.allowed.len() > 1)
    }

    /// Tasks planned so far, with those that were cut off and those that join files.
    pub fn plan_tasks(&self) -> u32 {
        self.rounds.iter().chain([&self.merging]).map(|progress| progress.tasks).sum()
    }

    /// What is known of a task beside what remains of it. Call before the task is put.
    pub(super) fn introduce(&mut self, id: TaskId, info: TaskInfo) {
        self.tasks.insert(id, info);
    }
}

#[cfg(test)]
mod tests {
    use flatbed_types::{Epoch, Position, Token};
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::Allowed;

    fn task(attempts: &[(u32, u8)]) -> OpenJobTask {
        let allowed = |(attempt, session): &(u32, u8)| Allowed {
            attempt: AttemptId::new(Epoch(1), *attempt).unwrap(),
            token: Token(0),
            holder: Holder { worker: "wrk_a".parse().unwrap(), session: SessionId(u128::from(*session)) },
        };
        let allowed = attempts.iter().map(allowed).collect();
        OpenJobTask { lo: Position::START, hi: Position::End, allowed }
    }

    proptest! {
        /// An index kept up to date says what one built anew says.
        #[test]
        fn follows_from_the_tasks(
            steps in proptest::collection::vec((0_u32..6, 0_u8..4, 0_u8..3, proptest::option::of(0_i64..4)), 1..80)
        ) {
            let mut index = Index::default();
            let mut tasks: BTreeMap<TaskId, (OpenJobTask, Option<Instant>)> = BTreeMap::new();
            for (attempt, (id, what, session, not_before)) in (0..).zip(steps) {
                let id = TaskId(id);
                if let Some((task, _)) = tasks.remove(&id) {
                    index.remove(id, &task);
                }
                let held = match what {
                    0 => continue,
                    1 => vec![],
                    2 => vec![(2 * attempt, session)],
                    _ => vec![(2 * attempt, session), (2 * attempt + 1, session + 1)],
                };
                let not_before = not_before.map(Instant::from_millis);
                index.insert(id, &task(&held), not_before);
                tasks.insert(id, (task(&held), not_before));
            }
            let mut anew = Index::default();
            tasks.iter().for_each(|(id, (task, not_before))| anew.insert(*id, task, *not_before));
            prop_assert_eq!(&index, &anew);
            let now = Instant::from_millis(1);
            let ready = tasks.values().filter(|(task, not_before)| {
                task.allowed.is_empty() && not_before.is_none_or(|moment| moment <= now)
            });
            prop_assert_eq!(index.waiting(now), ready.count());
            prop_assert_eq!(index.first_waiting(now).is_some(), index.waiting(now) > 0);
        }
    }

    #[test]
    fn a_clock_that_was_set_back_puts_nothing_off_for_long() {
        let mut index = Index::default();
        let moment = Instant::from_millis(10 * LONGEST_DELAY_MILLIS);
        index.insert(TaskId(1), &task(&[]), Some(moment));
        assert_eq!(index.first_waiting(Instant::from_millis(0)), Some(TaskId(1)));
        assert_eq!(index.waiting(Instant::from_millis(0)), 1);
        let before = moment.plus_millis(-1_000);
        assert_eq!((index.first_waiting(before), index.waiting(before)), (None, 0));
    }
}
