//! Which actions are worth trying in a state. The rules decide what comes of them; what is left out here could
//! change nothing.

use flatbed_coordinator_core::ledger;

use super::mutation::Mutation;
use super::protocol::{Action, Answer, Decision, Protocol};
use super::state::{Commit, Grant, Key, State, View, Worker};

impl Protocol {
    /// Whether the data committed so far calls for a round that is not open yet.
    pub(super) fn wants_round(&self, view: &View) -> bool {
        let next = usize::from(view.round);
        if next >= self.config.rounds.len() {
            return self.mutated(Mutation::RoundOpenedTwice) && next > 1;
        }
        let planned = self.config.plan(view.round) & !self.config.plan(view.round.saturating_sub(1));
        let of_last = |commit: &&Commit| planned >> commit.lo & 1 == 1;
        next == 0 || view.ledger.commits().values().filter(of_last).any(|commit| commit.payload.references)
    }

    pub(super) fn may_complete(&self, view: &View) -> bool {
        let ready = !self.wants_round(view) || self.mutated(Mutation::CompleteIgnoresReferences);
        view.round > 0 && ready
    }

    /// The files that merge tasks are to join, by task. Production joins neighbours and only above a number of files;
    /// here it is all files, whenever there are two.
    pub(super) fn merge_plan(&self, state: &State, view: &View) -> Vec<Vec<Key>> {
        let mut files: Vec<Key> = view.ledger.commits().values().map(|commit| commit.payload.key).collect();
        if self.mutated(Mutation::MergesUncommitted) {
            files = state.objects.iter().map(|object| object.key).collect();
        }
        if files.len() < 2 {
            return Vec::new();
        }
        let tasks = if self.mutated(Mutation::MergesOverlap) { 2 } else { 1 };
        vec![files; tasks]
    }

    pub(super) fn owner_actions(&self, state: &State, owner: usize, view: &View, actions: &mut Vec<Action>) {
        let (config, spent) = (&self.config, &state.spent);
        if spent.collected < config.collected {
            let keys =
                state.objects.iter().map(|object| object.key).filter(|key| self.may_collect(view, *key));
            actions.extend(keys.map(|key| Action::Collect { owner, key }));
        }
        if view.unknown.is_some() {
            actions.push(Action::Resync { owner });
            return;
        }
        let answers = || {
            let lost = (spent.lost_answers < config.lost_answers).then_some(Answer::Lost);
            std::iter::once(Answer::Heard).chain(lost)
        };
        let mut decide = |decision: Decision| {
            actions.extend(answers().map(|answer| Action::Decide {
                owner,
                decision: decision.clone(),
                answer,
            }));
        };
        for message in &state.messages {
            decide(Decision::Commit { key: message.commit.payload.key, hi: message.commit.hi });
        }
        let fence = (view.ledger.epoch, view.seq);
        let may_open = self.fence_holds(&state.store, fence) || self.mutated(Mutation::RoundWithoutFence);
        if may_open && view.ledger.tasks().is_empty() && self.wants_round(view) {
            decide(Decision::OpenRound);
        }
        if self.mutated(Mutation::PageWithoutFence) && !self.fence_holds(&state.store, fence) {
            self.ends_of_pages(view).for_each(|behind| decide(Decision::PublishPage { behind }));
        }
        if !self.fence_holds(&state.store, fence) || view.ledger.stage() != ledger::Stage::Open {
            return;
        }
        self.task_decisions(state, view, &mut decide);
        if self.may_complete(view) {
            decide(Decision::Complete);
        }
        self.ends_of_pages(view).for_each(|behind| decide(Decision::PublishPage { behind }));
        let rows_done = view.ledger.tasks().is_empty() && self.may_complete(view);
        let listed = config.pages > 0 && !self.mutated(Mutation::PagesMerged);
        let may_merge = config.merges && !listed && view.merges.is_empty() && rows_done;
        if may_merge && !self.merge_plan(state, view).is_empty() {
            decide(Decision::OpenMerges);
        }
        if state.store.stop {
            decide(Decision::Stop);
        }
    }

    fn task_decisions(&self, state: &State, view: &View, decide: &mut impl FnMut(Decision)) {
        let (config, spent) = (&self.config, &state.spent);
        for (id, open) in view.ledger.tasks() {
            let task = *id;
            if spent.grants < config.grants {
                for slot in 0..state.workers.len().min(usize::from(spent.known_slots) + 1) {
                    decide(Decision::Grant { task, slot, speculative: false });
                    if config.speculation && open.allowed.len() == 1 {
                        decide(Decision::Grant { task, slot, speculative: true });
                    }
                }
            }
            if config.withdrawals {
                open.allowed
                    .iter()
                    .for_each(|held| decide(Decision::Withdraw { task, attempt: held.attempt }));
            }
            if spent.truncations < config.truncations {
                (open.lo + 1..open.hi).for_each(|at| decide(Decision::Truncate { task, at }));
            }
        }
    }

    pub(super) fn worker_actions(
        &self,
        state: &State,
        slot: usize,
        worker: &Worker,
        actions: &mut Vec<Action>,
    ) {
        let (config, spent) = (&self.config, &state.spent);
        let unbound = self.mutated(Mutation::GrantNotBound) || self.mutated(Mutation::GrantNotBoundNoNonce);
        let mine = |grant: &&Grant| grant.to == worker.incarnation || (unbound && grant.to.slot() == slot);
        let Some(run) = &worker.run else {
            if spent.runs < config.runs {
                let grants = state.grants.iter().filter(mine).cloned();
                actions.extend(grants.map(|grant| Action::Deliver { grant, slot }));
            }
            return;
        };
        actions.extend((run.lo + 1..=run.hi).map(|to| Action::Seal { slot, to }));
        if spent.runs < config.runs {
            actions.push(Action::Abandon { slot });
        }
        if spent.crashes < config.crashes {
            actions.push(Action::Crash { slot });
        }
    }
}
