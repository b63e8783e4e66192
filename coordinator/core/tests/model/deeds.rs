//! What workers and the collector do to objects.

use flatbed_types::AttemptId;

use super::config::span;
use super::mutation::{self, Mutation};
use super::protocol::Protocol;
use super::state::*;

impl Protocol {
    pub(super) fn deliver(&self, state: &mut State, grant: &Grant, slot: usize) {
        state.spent.runs += 1;
        let nonce = state.spent.runs;
        let Grant { attempt, token, task, lo, hi, pin, ref inputs, .. } = *grant;
        let inputs = inputs.clone();
        state.workers[slot].run = Some(Run { task, attempt, token, nonce, segment: 0, lo, hi, pin, inputs });
    }

    fn key(&self, run: &Run) -> Key {
        match self.config.mutation {
            Some(Mutation::KeyPerTask) => {
                Key { attempt: AttemptId(0), nonce: run.task.0 as u8, segment: run.lo }
            }
            Some(Mutation::NoNonce | Mutation::GrantNotBoundNoNonce) => {
                Key { attempt: run.attempt, nonce: 0, segment: run.segment }
            }
            _ => Key { attempt: run.attempt, nonce: run.nonce, segment: run.segment },
        }
    }

    pub(super) fn seal(&self, state: &mut State, slot: usize, to: Position) -> Option<()> {
        let run = state.workers[slot].run.as_ref()?;
        let (pin, rows) = self.read(state, run, to)?;
        let references = run.inputs.is_empty() && self.config.refers(run.lo, to);
        let payload = Payload { key: self.key(run), references, pin, replaces: run.inputs.clone() };
        let worker = &mut state.workers[slot];
        let run = worker.run.as_mut()?;
        let Run { task, attempt, token, segment, lo, hi, .. } = *run;
        let commit = Commit { task, attempt, segment: u32::from(segment), lo, hi: to, payload };
        (run.lo, run.segment) = (to, segment + 1);
        if to == hi {
            worker.run = None;
        }
        let writer = worker.incarnation;
        state.seal(Message { commit, token, writer }, rows);
        Some(())
    }

    /// What a worker gets to write: rows of the pinned state, or of files that all exist. Else it fails.
    fn read(&self, state: &State, run: &Run, to: Position) -> Option<(u8, u32)> {
        if run.inputs.is_empty() {
            let as_pinned = run.pin == state.source() || !self.mutated(Mutation::ReadIgnoresPin);
            return Some((if as_pinned { run.pin } else { state.source() }, span(run.lo, to)));
        }
        let mut rows = 0;
        for key in &run.inputs {
            rows |= state.object(*key)?.rows;
        }
        Some((run.pin, rows))
    }

    pub(super) fn may_collect(&self, view: &View, key: Key) -> bool {
        use Mutation::{CollectorIgnoresAllowed, CollectorIgnoresEpoch, CollectorRunsAhead};
        use Mutation::{CollectorTakesInputsEarly, CollectorTakesReplacement};
        let ahead = || {
            let mut ahead = (*view.ledger).clone();
            view.unknown.iter().flat_map(|unknown| &unknown.changes).for_each(|change| ahead.apply(change));
            ahead
        };
        let ahead = match self.config.mutation {
            Some(CollectorRunsAhead | CollectorTakesInputsEarly) => Some(ahead()),
            _ => None,
        };
        // What a merge has joined is needed by nobody once that is known to be in the store, by whichever view.
        let known = if self.mutated(CollectorTakesInputsEarly) { ahead.as_ref() } else { None };
        if has_replaced(known.unwrap_or(&view.ledger), key) {
            return true;
        }
        let seen = if self.mutated(CollectorRunsAhead) { ahead.as_ref() } else { None };
        let seen = seen.unwrap_or(&view.ledger);
        let dead = match self.config.mutation {
            Some(mutation @ (CollectorIgnoresEpoch | CollectorIgnoresAllowed)) => {
                mutation::is_dead(mutation, seen, key.attempt)
            }
            _ => seen.is_dead(key.attempt),
        };
        let is_it = |commit: &Commit| {
            let unseen = self.mutated(CollectorTakesReplacement) && !commit.payload.replaces.is_empty();
            commit.payload.key == key && !unseen
        };
        dead && !seen.commits().values().any(is_it)
    }
}
