//! The protocol model: production's rules of `ledger.rs`, run by stateright over every order of events within
//! small bounds. What it covers and how to run it longer: the crate's README, "The model".
//!
//! Two kinds of tests: searches of the correct protocol, which must end without a broken invariant and reach
//! their goals, and seeded mistakes, each of which must break the invariant that stands against it, in bounds
//! where the correct protocol breaks none.

mod choices;
mod config;
mod deeds;
mod invariants;
mod mutation;
mod pages;
mod protocol;
mod state;
mod suite;

use config::Config;
use mutation::Mutation;

fn searched(name: &str) {
    let search = suite::SHORT.iter().find(|search| search.name == name).expect("a search of this name");
    let outcome = suite::explore(search.config, 1);
    eprintln!("{name}: {outcome}");
    assert!(outcome.broken.is_empty(), "{name}: {outcome}");
    assert!(outcome.unreached.is_empty(), "{name}: {outcome}");
    assert!(outcome.states >= search.at_least, "{name}: {outcome}");
}

fn noticed(mutation: Mutation) {
    let seeded =
        suite::SEEDED.iter().find(|seeded| seeded.mutation == mutation).expect("a place to look for it");
    let outcome = suite::hunt(seeded);
    assert!(outcome.history(seeded.breaks).is_some(), "{mutation:?} is not noticed: {outcome}");
    let correct = suite::explore(Config { mutation: None, ..seeded.config }, 1);
    assert!(correct.broken.is_empty(), "without {mutation:?}: {correct}");
}

/// One test for each entry, and one that none was forgotten.
macro_rules! searches {
    ($($name:ident),* $(,)?) => {
        mod search {
            $(#[test] fn $name() { super::searched(stringify!($name)); })*

            #[test]
            fn none_is_left_out() {
                let named = [$(stringify!($name)),*];
                assert_eq!(named[..], super::suite::SHORT.iter().map(|search| search.name).collect::<Vec<_>>());
            }
        }
    };
}

macro_rules! mistakes {
    ($($name:ident: $mutation:ident),* $(,)?) => {
        mod mistake {
            use super::Mutation;

            $(#[test] fn $name() { super::noticed(Mutation::$mutation); })*

            #[test]
            fn none_is_left_out() {
                let named = [$(Mutation::$mutation),*];
                assert_eq!(named[..], super::suite::SEEDED.iter().map(|seeded| seeded.mutation).collect::<Vec<_>>());
            }
        }
    };
}

searches! {
    handover,
    cuts,
    long_cuts,
    speculation,
    withdrawals,
    rounds,
    unused_round,
    two_tasks,
    merges,
    pages,
    changed_source,
    three_epochs,
}

mistakes! {
    no_fence: NoFence,
    fence_of_epoch_only: EpochOnlyFence,
    commit_ignores_lo: CommitIgnoresLo,
    commit_ignores_hi: CommitIgnoresHi,
    commit_ignores_attempt: CommitIgnoresAttempt,
    collector_ignores_epoch: CollectorIgnoresEpoch,
    collector_ignores_allowed: CollectorIgnoresAllowed,
    collector_runs_ahead: CollectorRunsAhead,
    complete_ignores_stop: CompleteIgnoresStop,
    complete_ignores_tasks: CompleteIgnoresTasks,
    complete_ignores_references: CompleteIgnoresReferences,
    round_opened_twice: RoundOpenedTwice,
    round_without_fence: RoundWithoutFence,
    grant_not_bound: GrantNotBound,
    no_nonce: NoNonce,
    grant_not_bound_no_nonce: GrantNotBoundNoNonce,
    key_per_task: KeyPerTask,
    worker_deletes: WorkerDeletes,
    worker_deletes_duplicate_last: WorkerDeletesDuplicateLast,
    swap_without_fence: SwapWithoutFence,
    merges_overlap: MergesOverlap,
    merges_uncommitted: MergesUncommitted,
    collector_takes_inputs_early: CollectorTakesInputsEarly,
    collector_takes_replacement: CollectorTakesReplacement,
    page_without_fence: PageWithoutFence,
    pages_forgotten: PagesForgotten,
    page_of_objects: PageOfObjects,
    pages_merged: PagesMerged,
    complete_without_last_page: CompleteWithoutLastPage,
    read_ignores_pin: ReadIgnoresPin,
    round_pins_again: RoundPinsAgain,
    grant_before_applied: GrantBeforeApplied,
    answer_before_applied: AnswerBeforeApplied,
}

#[test]
fn parts_of_the_first_of_two_attempts_cost_work_and_no_rows() {
    let (mutation, config) = suite::HARMLESS;
    let outcome = suite::explore(Config { mutation: Some(mutation), ..config }, 1);
    eprintln!("{mutation:?}: {outcome}");
    assert!(outcome.broken.is_empty() && outcome.unreached.is_empty(), "{outcome}");
    // The deviation is taken: there are histories that production's rule refuses.
    assert!(outcome.states > suite::explore(config, 1).states);
}

fn walked(config: Config, goals: &[&str]) {
    let outcome = suite::walk(config, 1, 1_000_000);
    eprintln!("walk: {outcome}");
    assert!(outcome.broken.is_empty(), "seed 1: {outcome}");
    assert!(goals.iter().all(|goal| !outcome.unreached.contains(goal)), "seed 1: {outcome}");
}

#[test]
fn random_histories_of_a_wide_configuration() {
    walked(suite::WIDE, &["completes"]);
}

#[test]
fn random_histories_with_merges() {
    walked(
        suite::WIDE_MERGES,
        &["completes with a joined file", "completes without the files that were joined"],
    );
}
