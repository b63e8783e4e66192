//! Longer searches of the protocol model than the tests have time for; see the crate's README, "The model".
//!
//! ```text
//! cargo run --release -p flatbed-coordinator-core --example model -- short [NAME] | long [NAME] | mistakes [traces]
//! cargo run --release -p flatbed-coordinator-core --example model -- walk SEED STEPS
//! ```
//!
//! Ends with status 1 when an invariant breaks, a goal is not reached, or a mistake is not noticed.
#![allow(clippy::print_stdout)] // A command's output is its purpose.

#[path = "../tests/model/choices.rs"]
mod choices;
#[path = "../tests/model/config.rs"]
mod config;
#[path = "../tests/model/deeds.rs"]
mod deeds;
#[path = "../tests/model/invariants.rs"]
mod invariants;
#[path = "../tests/model/mutation.rs"]
mod mutation;
#[path = "../tests/model/pages.rs"]
mod pages;
#[path = "../tests/model/protocol.rs"]
mod protocol;
#[path = "../tests/model/state.rs"]
mod state;
#[path = "../tests/model/suite.rs"]
mod suite;

use std::process::ExitCode;

use config::*;
use suite::{HARMLESS, Outcome, SEEDED, SHORT, Search, WIDE, WIDE_MERGES};

const BASE: Config = Config { owners: 2, epochs: 2, grants: 3, runs: 3, ..Config::CALM };

/// Minutes; every distinct state is kept in memory until the search ends.
const LONG: &[Search] = &[
    Search {
        name: "cuts, three attempts",
        at_least: 2_500_000,
        config: Config { truncations: 1, lost_answers: 1, collected: 1, ..BASE },
    },
    Search {
        name: "long cuts, three attempts",
        at_least: 5_300_000,
        config: Config { rounds: LONG_TASK, truncations: 1, ..BASE },
    },
    Search {
        name: "speculation, a run twice",
        at_least: 2_800_000,
        config: Config {
            workers: 2,
            grants: 2,
            lost_answers: 1,
            collected: 1,
            speculation: true,
            withdrawals: true,
            ..BASE
        },
    },
    Search {
        name: "withdrawals, an answer lost",
        at_least: 3_600_000,
        config: Config { lost_answers: 1, collected: 1, withdrawals: true, ..BASE },
    },
    Search {
        name: "three epochs, three attempts",
        at_least: 7_200_000,
        config: Config { owners: 3, epochs: 3, lost_answers: 1, collected: 1, ..BASE },
    },
    Search {
        name: "two tasks, collected",
        at_least: 1_100_000,
        config: Config { rounds: TWO_TASKS, workers: 2, lost_answers: 1, collected: 1, ..BASE },
    },
    Search {
        name: "handover, two crashes, two answers lost",
        at_least: 6_200_000,
        config: Config {
            workers: 2,
            grants: 2,
            crashes: 2,
            lost_answers: 2,
            collected: 2,
            cancel: true,
            ..BASE
        },
    },
    Search {
        name: "merges, second attempts, a stop",
        at_least: 5_300_000,
        config: Config { workers: 2, collected: 1, speculation: true, cancel: true, merges: true, ..BASE },
    },
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let good = match words[..] {
        ["short"] => searches(SHORT, ""),
        ["short", name] => searches(SHORT, name),
        ["long"] => searches(LONG, ""),
        ["long", name] => searches(LONG, name),
        ["mistakes"] => mistakes(false),
        ["mistakes", "traces"] => mistakes(true),
        ["walk", seed, steps] => match (seed.parse(), steps.parse()) {
            (Ok(seed), Ok(steps)) => {
                walk("walk", WIDE, seed, steps) & walk("merges", WIDE_MERGES, seed, steps)
            }
            _ => return usage(),
        },
        _ => return usage(),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    println!("arguments: short [NAME] | long [NAME] | mistakes [traces] | walk SEED STEPS");
    ExitCode::from(2)
}

/// Which goals chance reaches is told, not judged.
fn walk(name: &str, config: Config, seed: u64, steps: usize) -> bool {
    let outcome = suite::walk(config, seed, steps);
    report(name, &outcome);
    outcome.broken.is_empty()
}

fn report(name: &str, outcome: &Outcome) -> bool {
    println!("{name}: {outcome}");
    outcome.broken.is_empty() && outcome.unreached.is_empty()
}

/// Those with a name that holds this text.
fn searches(searches: &[Search], name: &str) -> bool {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut good = true;
    let mut states = 0;
    for search in searches.iter().filter(|search| search.name.contains(name)) {
        let outcome = suite::explore(search.config, threads);
        good &= report(search.name, &outcome) && outcome.states >= search.at_least;
        states += outcome.states;
    }
    println!("{states} states in all");
    good
}

fn mistakes(traces: bool) -> bool {
    let mut good = true;
    for seeded in SEEDED {
        let outcome = suite::hunt(seeded);
        let (mutation, breaks) = (seeded.mutation, seeded.breaks);
        match outcome.history(breaks) {
            Some(steps) => {
                println!("{mutation:?}: {breaks}, after {} steps", steps.len());
                let steps = if traces { steps } else { &[] };
                steps.iter().for_each(|step| println!("    {step}"));
            }
            None => {
                println!("{mutation:?}: NOT NOTICED by {breaks}");
                good = false;
            }
        }
    }
    let (mutation, config) = HARMLESS;
    let outcome = suite::explore(Config { mutation: Some(mutation), ..config }, 1);
    good & report(&format!("{mutation:?}, which breaks nothing"), &outcome)
}
