//! What must hold in every state, and what some state must show so that a search is known to reach it.

use std::collections::BTreeSet;

use flatbed_coordinator_core::ledger::Stage;
use stateright::Property;

use super::config::{MERGES, span};
use super::protocol::Protocol;
use super::state::{Commit, Key, Ledger, Message, Page, State, View, kept, rows_of};

pub const COVERAGE: &str = "I1 coverage: committed and remaining ranges partition the plan";
pub const MANIFEST: &str = "I2 manifest: a complete job's result tiles the whole plan";
pub const DURABILITY: &str =
    "I3 durability: a committed object exists with exactly its rows until it is replaced";
pub const FENCE: &str = "I4 fence: only the latest claim writes, and its view is the store";
pub const FINALITY: &str = "I5 finality: a stopped job never completes, an ended one never changes";
pub const COLLECTION: &str = "I6 collection: no deleted object is or becomes committed";
pub const UNIQUENESS: &str = "I7 uniqueness: attempts and object names are never used twice";
pub const PAGES: &str =
    "I8 pages: a published page stays, lists a part of the ledger once, and all of them are the result";
pub const GENERATION: &str = "I9 generation: a complete job's rows are of one state of the source";
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
        Property::always(PAGES, pages),
        Property::always(GENERATION, |_, state| generation(state)),
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
    if config.merges {
        all.push(Property::sometimes("completes with a joined file", |_, state: &State| {
            state.is_complete() && !state.store.merges.is_empty()
        }));
    }
    if config.merges && config.collected > 0 {
        all.push(Property::sometimes("completes without the files that were joined", |_, state: &State| {
            let gone = |key: &_| state.object(*key).is_none();
            state.is_complete() && state.store.merges.iter().flatten().any(gone)
        }));
    }
    if config.pages > 0 {
        all.push(Property::sometimes("completes behind a page", |_, state: &State| {
            state.is_complete() && state.store.pages.len() > 1
        }));
    }
    if config.pages > 1 && config.epochs > 1 {
        all.push(Property::sometimes("goes on behind the page of another", |_, state: &State| {
            let early = |page: &Page| state.store.ledger.commits().range(page.first..page.behind).next();
            let epochs = state.store.pages.values().filter_map(early);
            let epochs: Vec<u64> = epochs.map(|(_, commit)| commit.attempt.epoch().0).collect();
            epochs.windows(2).any(|pair| pair[0] < pair[1])
        }));
    }
    if config.changes > 0 {
        all.push(Property::sometimes("completes over the state that is past", |_, state: &State| {
            state.is_complete() && state.source() != state.store.pin
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
    let merges = span(MERGES, MERGES + state.store.merges.len() as u8);
    let plan = protocol.config.plan(state.store.round) | merges;
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
    let ledger = &state.store.ledger;
    let mut rows = 0;
    let apart = manifest.values().all(|commit| match rows_of(ledger, commit) {
        Some(more) if rows & more == 0 => {
            rows |= more;
            true
        }
        _ => false,
    });
    let tiles = apart && rows == protocol.config.plan(needed);
    state.is_complete() && state.store.round == needed && tiles && **manifest == kept(ledger)
}

fn durability(state: &State) -> bool {
    let (store, ledger) = (&state.store, &state.store.ledger);
    // The purge of a stopped job takes everything.
    ledger.stage() == Stage::Stopped
        || ledger.commits().values().all(|commit| {
            let rows = rows_of(ledger, commit);
            let object = state.object(commit.payload.key);
            let exact = |object: &super::state::Object| Some(object.rows) == rows;
            rows.is_some() && (object.is_some_and(exact) || store.has_replaced(commit.payload.key))
        })
}

fn pages(protocol: &Protocol, state: &State) -> bool {
    let (store, ledger) = (&state.store, &state.store.ledger);
    let (mut next, mut listed) = (0, BTreeSet::new());
    for ((number, page), follows) in store.pages.iter().zip(1..) {
        let commits = ledger.commits().range(page.first..page.behind.max(page.first));
        let as_committed = commits.map(|(_, commit)| &commit.payload.key).eq(&page.files);
        let is_next = *number == follows && page.first == next && page.behind <= ledger.next_commit();
        // The purge of a stopped job takes everything.
        let there = |key: &Key| ledger.stage() == Stage::Stopped || state.object(*key).is_some();
        if !is_next || !as_committed || !page.files.iter().all(|key| there(key) && listed.insert(*key)) {
            return false;
        }
        next = page.behind;
    }
    let result = || kept(ledger).values().map(|commit| commit.payload.key).collect::<BTreeSet<_>>();
    let whole = protocol.config.pages == 0 || !state.is_complete() || listed == result();
    !state.broken.page && whole
}

fn generation(state: &State) -> bool {
    let mut pins = state.store.ledger.commits().values().map(|commit| commit.payload.pin);
    let first = pins.next();
    !state.is_complete() || pins.all(|pin| Some(pin) == first)
}

fn fence(state: &State) -> bool {
    let current = |view: &View| {
        view.ledger.epoch != state.store.ledger.epoch
            || view.unknown.is_some()
            || (view.seq == state.store.seq
                && (view.round, view.pin) == (state.store.round, state.store.pin)
                && view.merges == state.store.merges
                && view.pages == state.store.pages
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
    let needed = |key: &_| state.store.has_committed(*key) && !state.store.has_replaced(*key);
    let mut lost = written_and_gone.filter(needed);
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
