//! What must hold in every state, and what some state must show so that a search is known to reach it.

use flatbed_coordinator_core::ledger::Stage;
use stateright::Property;

use super::config::span;
use super::protocol::Protocol;
use super::state::{Commit, Ledger, Message, State, View};

pub const COVERAGE: &str = "I1 coverage: committed and remaining ranges partition the plan";
pub const MANIFEST: &str = "I2 manifest: a complete job's result tiles the whole plan";
pub const DURABILITY: &str = "I3 durability: a committed object exists with exactly its range";
pub const FENCE: &str = "I4 fence: only the latest claim writes, and its view is the store";
pub const FINALITY: &str = "I5 finality: a stopped job never completes, an ended one never changes";
pub const COLLECTION: &str = "I6 collection: no deleted object is or becomes committed";
pub const UNIQUENESS: &str = "I7 uniqueness: attempts and object names are never used twice";
pub const ANSWERS: &str = "A answers: what was said is in the store";

/// All of them, and those goals that the bounds let a search reach.
pub fn properties(protocol: &Protocol) -> Vec<Property<Protocol>> {
    let config = &protocol.config;
    let mut all = vec![
        Property::always(COVERAGE, coverage),
        Property::always(MANIFEST, manifest),
        Property::always(DURABILITY, |_, state| durability(state)),
        Property::always(FENCE, |_, state| fence(state)),
        Property::always(FINALITY, |_, state| finality(state)),
        Property::always(COLLECTION, |_, state| collection(state)),
        Property::always(UNIQUENESS, |_, state| uniqueness(state)),
        Property::always(ANSWERS, |_, state: &State| !state.broken.answer),
        Property::sometimes("completes", |_, state: &State| state.is_complete()),
    ];
    if config.epochs > 1 {
        all.push(Property::sometimes("completes in a second epoch", |_, state: &State| {
            state.is_complete() && state.store.ledger.epoch.0 > 1
        }));
    }
    if config.collected > 0 {
        all.push(Property::sometimes("completes after a collection", |_, state: &State| {
            state.is_complete() && state.spent.collected > 0
        }));
    }
    if config.truncations > 0 {
        all.push(Property::sometimes("completes through a truncation", |_, state: &State| {
            state.is_complete() && state.spent.truncations > 0
        }));
    }
    if config.lost_answers > 0 {
        all.push(Property::sometimes("completes after a lost answer", |_, state: &State| {
            state.is_complete() && state.spent.lost_answers > 0
        }));
    }
    if config.rounds_needed() > 1 {
        all.push(Property::sometimes("completes through a second round", |_, state: &State| {
            state.is_complete() && state.store.round > 1
        }));
    }
    if config.speculation {
        all.push(Property::sometimes("lets two attempts commit", |_, state: &State| {
            state.store.ledger.tasks().values().any(|task| task.allowed.len() == 2)
        }));
    }
    if config.cancel {
        all.push(Property::sometimes("stops", |_, state: &State| {
            state.store.ledger.stage() == Stage::Stopped
        }));
    }
    all
}

/// The rows of these ranges; `None` when two overlap.
fn disjoint(ranges: impl Iterator<Item = (u8, u8)>) -> Option<u32> {
    let mut rows = 0;
    for (lo, hi) in ranges {
        let more = span(lo, hi);
        if lo >= hi || rows & more != 0 {
            return None;
        }
        rows |= more;
    }
    Some(rows)
}

fn committed<'a>(commits: impl Iterator<Item = &'a Commit>) -> impl Iterator<Item = (u8, u8)> {
    commits.map(|commit| (commit.lo, commit.hi))
}

fn coverage(protocol: &Protocol, state: &State) -> bool {
    let ledger = &state.store.ledger;
    let plan = protocol.config.plan(state.store.round);
    let remaining = ledger.tasks().values().map(|task| (task.lo, task.hi));
    let covered = disjoint(committed(ledger.commits().values()).chain(remaining));
    match ledger.stage() {
        Stage::Open | Stage::Complete => covered == Some(plan),
        // The remaining tasks are gone with the job; what was committed before still is so only once.
        Stage::Stopped => covered.is_some_and(|rows| rows & !plan == 0),
    }
}

fn manifest(protocol: &Protocol, state: &State) -> bool {
    let Some(manifest) = &state.store.manifest else {
        return !state.is_complete();
    };
    let needed = protocol.config.rounds_needed();
    let tiles = disjoint(committed(manifest.values())) == Some(protocol.config.plan(needed));
    state.is_complete() && state.store.round == needed && tiles && **manifest == *state.store.ledger.commits()
}

fn durability(state: &State) -> bool {
    // The purge of a stopped job takes everything.
    state.store.ledger.stage() == Stage::Stopped
        || state.store.ledger.commits().values().all(|commit| {
            let object = state.object(commit.payload.key);
            object.is_some_and(|object| (object.lo, object.hi) == (commit.lo, commit.hi))
        })
}

fn fence(state: &State) -> bool {
    let current = |view: &View| {
        view.ledger.epoch != state.store.ledger.epoch
            || view.unknown.is_some()
            || (view.seq == state.store.seq
                && view.round == state.store.round
                && same(&view.ledger, &state.store.ledger))
    };
    !state.broken.fence && state.owners.iter().flatten().all(current)
}

/// Whether a view and the store agree in all that the rules look at.
fn same(view: &Ledger, store: &Ledger) -> bool {
    let ids = view.stage() != Stage::Open || view.next_task() == store.next_task();
    ids && view.stage() == store.stage() && view.tasks() == store.tasks() && view.commits() == store.commits()
}

fn finality(state: &State) -> bool {
    let completed_despite_stop = state.store.stop && state.is_complete();
    !state.broken.finality && !completed_despite_stop
}

fn collection(state: &State) -> bool {
    let written_and_gone = state
        .messages
        .iter()
        .map(|message| message.commit.payload.key)
        .filter(|key| state.object(*key).is_none());
    let mut lost = written_and_gone.filter(|key| state.store.has_committed(*key));
    lost.next().is_none()
}

fn uniqueness(state: &State) -> bool {
    let one_writer = |message: &Message| {
        let same_attempt =
            state.messages.iter().filter(|other| other.commit.attempt == message.commit.attempt);
        same_attempt.map(|other| other.writer).all(|writer| writer == message.writer)
    };
    !state.broken.uniqueness && state.messages.iter().all(one_writer)
}
