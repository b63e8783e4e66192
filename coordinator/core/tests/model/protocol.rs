//! What may happen: owners that propose what the production rules decide, a store that compares fences,
//! workers, a network that duplicates and delays, a collector, a client that cancels, a source that changes.
//!
//! An owner action is one call of a rule on the owner's own view, one transaction, and, once the transaction
//! is known to be applied, `Ledger::apply` on the view and whatever may then leave the owner. What a correct
//! store refuses to an owner that is fenced off changes nothing but that the owner forgets the job, which is
//! the same as its crash; such proposals are made only where a mutation lets them through.

use std::sync::Arc;

use flatbed_coordinator_core::ledger::{self, Refusal};
use flatbed_types::{AttemptId, Epoch, TaskId, Token};
use stateright::{Model, Property};

use super::config::{Config, MERGES};
use super::invariants;
use super::mutation::{self, Mutation};
use super::state::*;

/// The model: bounds, plan, and at most one mutation.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    pub config: Config,
}

/// One step. Numbers are places in the lists of the state.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// The lease of the owner ended, or seemed to.
    Claim { owner: usize },
    /// An owner decides, and learns the outcome of its transaction or does not.
    Decide { owner: usize, decision: Decision, answer: Answer },
    /// A transaction whose answer is lost reaches the store.
    Land { flight: usize },
    /// An owner proposes again what it does not know the outcome of.
    Resync { owner: usize },
    /// A grant arrives.
    Deliver { grant: Grant, slot: usize },
    /// A worker writes the rows up to `to` as a segment and sends its commit.
    Seal { slot: usize, to: Position },
    /// A worker gives its attempt up: refused, revoked, or out of touch for too long.
    Abandon { slot: usize },
    /// A worker process dies and is started again.
    Crash { slot: usize },
    /// Somebody creates the stop request.
    Cancel,
    /// The source changes: what is read from now on is of another state.
    Change,
    /// A coordinator, however stale, deletes what an attempt left behind that is dead in its view.
    Collect { owner: usize, key: Key },
}

/// What an owner decides to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    OpenRound,
    /// All rows are committed and files are to be joined.
    OpenMerges,
    /// The files of the commits up to this number become a page.
    PublishPage {
        behind: u64,
    },
    Grant {
        task: TaskId,
        slot: usize,
        speculative: bool,
    },
    Withdraw {
        task: TaskId,
        attempt: AttemptId,
    },
    Truncate {
        task: TaskId,
        at: Position,
    },
    Commit {
        key: Key,
        hi: Position,
    },
    Complete,
    Stop,
}

/// Whether the owner hears from the store.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Answer {
    Heard,
    Lost,
}

impl Action {
    /// Whether it brings the job nearer to its end; the others delay or disturb it.
    pub fn advances(&self) -> bool {
        use Decision::{Commit, Complete, OpenMerges, OpenRound, PublishPage};
        match self {
            Action::Decide { decision, answer: Answer::Heard, .. } => {
                matches!(decision, OpenRound | OpenMerges | PublishPage { .. } | Commit { .. } | Complete)
            }
            Action::Resync { .. } | Action::Deliver { .. } | Action::Seal { .. } => true,
            _ => false,
        }
    }
}

impl Protocol {
    pub(super) fn mutated(&self, mutation: Mutation) -> bool {
        self.config.mutation == Some(mutation)
    }

    pub(super) fn fence_holds(&self, store: &Store, proposed: (Epoch, u8)) -> bool {
        match self.config.mutation {
            Some(Mutation::NoFence) => true,
            Some(Mutation::EpochOnlyFence) => store.ledger.epoch == proposed.0,
            _ => store.fence() == proposed,
        }
    }

    /// Whether a transaction finds the fence that it compares.
    fn passes(&self, store: &Store, proposal: &Proposal) -> bool {
        let unfenced = match self.config.mutation {
            Some(Mutation::RoundWithoutFence) => matches!(proposal.opens, Opens::Round(..)),
            Some(Mutation::SwapWithoutFence) => proposal.swaps(),
            Some(Mutation::PageWithoutFence) => proposal.page.is_some() && proposal.manifest.is_none(),
            _ => false,
        };
        unfenced || self.fence_holds(store, proposal.fence())
    }

    /// The store's side of a transaction. Whether it applied.
    fn land(&self, state: &mut State, proposal: &Proposal) -> bool {
        let store = &mut state.store;
        let publishes = proposal.manifest.is_some();
        let stopped = publishes && store.stop && !self.mutated(Mutation::CompleteIgnoresStop);
        if stopped || !self.passes(store, proposal) {
            return false;
        }
        state.broken.fence |= proposal.fence_after() <= store.fence() || proposal.epoch != store.ledger.epoch;
        state.broken.finality |= store.ledger.stage() != ledger::Stage::Open;
        let mut ledger = (*store.ledger).clone();
        proposal.changes.iter().for_each(|change| ledger.apply(change));
        ledger.epoch = proposal.epoch;
        store.ledger = Hashed::new(ledger);
        store.seq = proposal.fence_after().1;
        match &proposal.opens {
            Opens::Nothing => {}
            Opens::Round(number, pin) => (store.round, store.pin) = (*number, *pin),
            Opens::Merges(merges) => store.merges.clone_from(merges),
        }
        if let Some((number, page)) = &proposal.page {
            let former = store.pages.insert(*number, page.clone());
            state.broken.page |= former.is_some_and(|former| former != *page);
        }
        if publishes {
            store.manifest.clone_from(&proposal.manifest);
        }
        true
    }

    /// The owner's side, when it knows that its transaction applied.
    fn learn(state: &mut State, owner: usize, proposal: &Proposal) {
        let Some(view) = &mut state.owners[owner] else { return };
        let mut ledger = (*view.ledger).clone();
        proposal.changes.iter().for_each(|change| ledger.apply(change));
        // The usual case; sharing saves a digest, and memory.
        let as_stored = ledger == *state.store.ledger;
        view.ledger = if as_stored { state.store.ledger.clone() } else { Hashed::new(ledger) };
        view.seq = proposal.fence_after().1;
        match &proposal.opens {
            Opens::Nothing => {}
            Opens::Round(number, pin) => (view.round, view.pin) = (*number, *pin),
            Opens::Merges(merges) => view.merges.clone_from(merges),
        }
        view.pages.extend(proposal.page.clone());
        view.unknown = None;
        Self::follow(state, &proposal.then);
    }

    /// What leaves the owner after a transaction. It must say only what the store holds.
    fn follow(state: &mut State, then: &Follow) {
        match then {
            Follow::Nothing => {}
            Follow::Grant(grant) => {
                let task = state.store.ledger.tasks().get(&grant.task);
                let allowed = |task: &ledger::OpenTask<Position, Incarnation>| {
                    task.allowed.iter().any(|allowed| allowed.attempt == grant.attempt)
                };
                state.broken.answer |= !task.is_some_and(allowed);
                state.send_grant(grant.clone());
            }
            Follow::Accepted(key) => state.broken.answer |= !state.store.has_committed(*key),
        }
    }

    fn propose(&self, state: &mut State, owner: usize, proposal: Proposal, answer: Answer) -> Option<()> {
        if answer == Answer::Heard {
            if !self.land(state, &proposal) {
                return None;
            }
            Self::learn(state, owner, &proposal);
            return Some(());
        }
        if !self.passes(&state.store, &proposal) {
            return None;
        }
        state.spent.lost_answers += 1;
        let early = match proposal.then {
            Follow::Grant(_) => self.mutated(Mutation::GrantBeforeApplied),
            Follow::Accepted(_) => self.mutated(Mutation::AnswerBeforeApplied),
            Follow::Nothing => false,
        };
        if early {
            Self::follow(state, &proposal.then);
        }
        let proposal = Arc::new(proposal);
        state.flying.push(Arc::clone(&proposal));
        if !self.mutated(Mutation::EpochOnlyFence) {
            state.owners[owner].as_mut()?.unknown = Some(proposal);
        }
        Some(())
    }

    /// Rule R2: the same transaction again, whose failure branch shows the fence.
    fn resync(&self, state: &mut State, owner: usize) -> Option<()> {
        let proposal = state.owners[owner].as_ref()?.unknown.clone()?;
        if state.store.fence() == proposal.fence_after() || self.land(state, &proposal) {
            Self::learn(state, owner, &proposal);
        } else if state.store.fence() == proposal.fence() {
            // Not applied, and never will be: the stop request that it compared stays.
            state.owners[owner].as_mut()?.unknown = None;
        } else {
            state.owners[owner] = None;
        }
        Some(())
    }

    /// A claim is a transaction of its own; the view is then read at its revision, record by record.
    fn claim(&self, state: &mut State, owner: usize) {
        let store = &mut state.store;
        let mut stored = (*store.ledger).clone();
        stored.epoch = Epoch(stored.epoch.0 + 1);
        store.ledger = Hashed::new(stored);
        store.seq = 0;
        let mut read = Ledger::new(store.ledger.epoch);
        let tasks = store.ledger.tasks().iter().map(|(id, task)| Change::PutTask(*id, task.clone()));
        let commits = store.ledger.commits().iter().map(|(n, commit)| Change::PutCommit(*n, commit.clone()));
        tasks.chain(commits).for_each(|change| read.apply(&change));
        if store.ledger.stage() != ledger::Stage::Open {
            read.apply(&Change::SetStage(store.ledger.stage()));
        }
        let ledger = if read == *store.ledger { store.ledger.clone() } else { Hashed::new(read) };
        let (round, pin, merges) = (store.round, store.pin, store.merges.clone());
        let forgotten = self.mutated(Mutation::PagesForgotten);
        let pages = if forgotten { Pages::new() } else { store.pages.clone() };
        state.owners[owner] =
            Some(View { ledger, seq: 0, round, pin, merges, pages, next_attempt: 0, unknown: None });
    }

    /// The transaction of a decision, by the production rules. `None` where they decide against it.
    fn proposal(&self, state: &State, view: &View, decision: &Decision) -> Option<Proposal> {
        let ledger = &*view.ledger;
        let mut proposal = Proposal {
            epoch: ledger.epoch,
            seq: view.seq,
            changes: Vec::new(),
            opens: Opens::Nothing,
            page: None,
            manifest: None,
            then: Follow::Nothing,
        };
        proposal.changes = match decision {
            Decision::OpenRound => {
                let last = self.config.rounds.len() - 1;
                let round = self.config.rounds[usize::from(view.round).min(last)];
                let pins = view.round == 0 || self.mutated(Mutation::RoundPinsAgain);
                proposal.opens = Opens::Round(view.round + 1, if pins { state.source() } else { view.pin });
                ledger.open_round(round.tasks.iter().copied())?
            }
            Decision::OpenMerges => {
                let merges = self.merge_plan(state, view);
                let tasks = (MERGES..).take(merges.len()).map(|at| (at, at + 1));
                let changes = ledger.open_round(tasks)?;
                proposal.opens = Opens::Merges(merges);
                changes
            }
            Decision::Grant { task, slot, speculative } => {
                let attempt = AttemptId::new(ledger.epoch, view.next_attempt)?;
                let holder = state.workers[*slot].incarnation;
                let allowed = Allowed { attempt, token: Token(attempt.0), holder };
                let open = ledger.tasks().get(task)?;
                let (lo, hi) = (open.lo, open.hi);
                let (token, to) = (allowed.token, allowed.holder);
                let merge = lo.checked_sub(MERGES).and_then(|number| view.merges.get(usize::from(number)));
                let (inputs, pin) = (merge.cloned().unwrap_or_default(), view.pin);
                proposal.then = Follow::Grant(Grant { attempt, token, to, task: *task, lo, hi, pin, inputs });
                ledger.grant(*task, allowed, *speculative)?
            }
            Decision::Withdraw { task, attempt } => ledger.withdraw(*task, *attempt)?,
            Decision::Truncate { task, at } => ledger.truncate(*task, *at)?,
            Decision::Commit { .. } => return None,
            Decision::PublishPage { behind } => {
                proposal.page = Some(self.page(state, view, *behind)?);
                Vec::new()
            }
            Decision::Complete => {
                if self.config.pages > 0 && !self.mutated(Mutation::CompleteWithoutLastPage) {
                    proposal.page = Some(self.page(state, view, ledger.next_commit())?);
                }
                proposal.manifest = Some(Hashed::new(kept(ledger)));
                if self.mutated(Mutation::CompleteIgnoresTasks) {
                    vec![Change::SetStage(ledger::Stage::Complete)]
                } else {
                    ledger.complete()?
                }
            }
            Decision::Stop => ledger.stop()?,
        };
        Some(proposal)
    }

    fn decide(&self, state: &mut State, owner: usize, decision: &Decision, answer: Answer) -> Option<()> {
        if let Decision::Commit { key, hi } = decision {
            return self.on_commit(state, owner, (*key, *hi), answer);
        }
        let proposal = self.proposal(state, state.owners[owner].as_ref()?, decision)?;
        match decision {
            Decision::Grant { slot, .. } => {
                // The number is used up whatever becomes of the transaction.
                state.owners[owner].as_mut()?.next_attempt += 1;
                state.spent.grants += 1;
                state.spent.known_slots = state.spent.known_slots.max(*slot as u8 + 1);
            }
            Decision::Truncate { .. } => state.spent.truncations += 1,
            _ => {}
        }
        self.propose(state, owner, proposal, answer)
    }

    fn verdict(&self, ledger: &Ledger, message: &Message) -> Verdict {
        use Mutation::*;
        match self.config.mutation {
            Some(
                mutation @ (CommitIgnoresLo
                | CommitIgnoresHi
                | CommitIgnoresAttempt
                | FirstCommitsParts
                | WorkerDeletesDuplicateLast),
            ) => mutation::commit(mutation, ledger, &message.commit, message.token),
            _ => ledger.commit(message.commit.clone(), message.token),
        }
    }

    fn on_commit(
        &self,
        state: &mut State,
        owner: usize,
        (key, hi): (Key, Position),
        answer: Answer,
    ) -> Option<()> {
        let is_it = |message: &&Message| message.commit.payload.key == key && message.commit.hi == hi;
        let message = state.messages.iter().find(is_it)?;
        let view = state.owners[owner].as_ref()?;
        match self.verdict(&view.ledger, message) {
            Verdict::Accept { changes, .. } => {
                let proposal = Proposal {
                    epoch: view.ledger.epoch,
                    seq: view.seq,
                    changes,
                    opens: Opens::Nothing,
                    page: None,
                    manifest: None,
                    then: Follow::Accepted(key),
                };
                // An owner that is fenced off learns it here, and says nothing.
                self.propose(state, owner, proposal, answer)
            }
            Verdict::Duplicate => {
                let false_word = !state.store.has_committed(key);
                state.broken.answer |= false_word;
                false_word.then_some(())
            }
            Verdict::Refuse(refusal) => {
                use Mutation::{WorkerDeletes, WorkerDeletesDuplicateLast};
                let deletes = self.mutated(WorkerDeletes) || self.mutated(WorkerDeletesDuplicateLast);
                if !deletes || refusal != Refusal::NotAllowed {
                    return None;
                }
                state.delete(key);
                Some(())
            }
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::initial(self.config.owners, self.config.workers)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let may_claim = state.store.ledger.epoch.0 < u64::from(self.config.epochs);
        for (owner, view) in state.owners.iter().enumerate() {
            // Those that own nothing are alike.
            if may_claim && (view.is_some() || state.owners.get(owner + 1).is_none_or(Option::is_some)) {
                actions.push(Action::Claim { owner });
            }
            if let Some(view) = view {
                self.owner_actions(state, owner, view, actions);
            }
        }
        for (slot, worker) in state.workers.iter().enumerate() {
            self.worker_actions(state, slot, worker, actions);
        }
        actions.extend((0..state.flying.len()).map(|flight| Action::Land { flight }));
        if state.spent.changes < self.config.changes {
            actions.push(Action::Change);
        }
        // A stop request after the end has no effect on the ledger.
        if self.config.cancel && !state.store.stop && state.store.ledger.stage() == ledger::Stage::Open {
            actions.push(Action::Cancel);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Claim { owner } => self.claim(&mut state, owner),
            Action::Decide { owner, decision, answer } => {
                self.decide(&mut state, owner, &decision, answer)?
            }
            Action::Land { flight } => {
                let proposal = state.flying.remove(flight);
                self.land(&mut state, &proposal);
            }
            Action::Resync { owner } => self.resync(&mut state, owner)?,
            Action::Deliver { grant, slot } => self.deliver(&mut state, &grant, slot),
            Action::Seal { slot, to } => self.seal(&mut state, slot, to)?,
            Action::Abandon { slot } => state.workers[slot].run = None,
            Action::Crash { slot } => {
                let worker = &mut state.workers[slot];
                (worker.run, worker.incarnation) = (None, worker.incarnation.next());
                state.spent.crashes += 1;
            }
            Action::Cancel => state.store.stop = true,
            Action::Change => state.spent.changes += 1,
            Action::Collect { key, .. } => {
                state.delete(key);
                state.spent.collected += 1;
            }
        }
        self.settle(&mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        invariants::properties(self)
    }
}

impl Protocol {
    /// One form for states that are alike: owners in the order of their claims, no transaction in flight that
    /// can never apply (the fence only rises, and a stop request stays).
    fn settle(&self, state: &mut State) {
        state.owners.sort_by_key(|view| view.as_ref().map(|view| view.ledger.epoch));
        let store = &state.store;
        state.flying.retain(|proposal| {
            let stopped = proposal.manifest.is_some() && store.stop;
            self.passes(store, proposal) && (!stopped || self.mutated(Mutation::CompleteIgnoresStop))
        });
    }
}
