//! What is searched: configurations of the correct protocol, and for each mistake the one that shows it.

use std::fmt;
use std::time::Instant;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use super::config::*;
use super::invariants::*;
use super::mutation::Mutation;
use super::protocol::{Action, Protocol};
use super::state::State;

/// A search with a name.
pub struct Search {
    pub name: &'static str,
    /// States that it visited when it was written, rounded down: fewer means that the model lost actions.
    pub at_least: usize,
    pub config: Config,
}

/// A mistake, where to look for it, and the invariant that must break.
pub struct Seeded {
    pub mutation: Mutation,
    pub breaks: &'static str,
    pub config: Config,
}

/// What a search found.
#[derive(Debug)]
pub struct Outcome {
    pub states: usize,
    pub transitions: usize,
    pub depth: usize,
    pub seconds: f32,
    /// Invariants that do not hold, each with a history that breaks it.
    pub broken: Vec<(&'static str, Vec<String>)>,
    /// Goals that no history reached.
    pub unreached: Vec<&'static str>,
}

const BASE: Config = Config { owners: 2, epochs: 2, grants: 2, runs: 2, ..Config::CALM };

const ONE_OWNER_MERGES: Config = Config { grants: 3, runs: 3, merges: true, ..Config::CALM };

/// Searched to the end on every run of the tests.
pub const SHORT: &[Search] = &[
    // Any coordinator, worker or answer is lost at any time, somebody cancels, a stale owner collects.
    Search {
        name: "handover",
        at_least: 2_100_000,
        config: Config {
            workers: 2,
            runs: 3,
            crashes: 1,
            lost_answers: 1,
            collected: 1,
            cancel: true,
            ..BASE
        },
    },
    // Cuts that the worker does not hear of, and a lost answer about them.
    Search {
        name: "cuts",
        at_least: 500_000,
        config: Config { runs: 3, truncations: 1, lost_answers: 1, collected: 1, ..BASE },
    },
    // Both sides of a cut may hold more than one row.
    Search {
        name: "long_cuts",
        at_least: 1_000_000,
        config: Config { rounds: LONG_TASK, runs: 3, truncations: 1, ..BASE },
    },
    Search {
        name: "speculation",
        at_least: 210_000,
        config: Config {
            workers: 2,
            lost_answers: 1,
            collected: 1,
            speculation: true,
            withdrawals: true,
            ..BASE
        },
    },
    // What is withdrawn is granted again in the same epoch, and collected in the next.
    Search {
        name: "withdrawals",
        at_least: 810_000,
        config: Config { grants: 3, runs: 3, collected: 1, withdrawals: true, ..BASE },
    },
    Search {
        name: "rounds",
        at_least: 1_000_000,
        config: Config {
            rounds: TWO_ROUNDS,
            workers: 2,
            grants: 3,
            runs: 3,
            crashes: 1,
            lost_answers: 1,
            collected: 1,
            cancel: true,
            ..BASE
        },
    },
    Search {
        name: "unused_round",
        at_least: 50_000,
        config: Config { rounds: UNUSED_ROUND, lost_answers: 1, collected: 1, cancel: true, ..BASE },
    },
    Search {
        name: "two_tasks",
        at_least: 840_000,
        config: Config { rounds: TWO_TASKS, workers: 2, grants: 3, runs: 3, lost_answers: 1, ..BASE },
    },
    // Files are joined; the inputs are collected as soon as any coordinator knows of the swap.
    Search {
        name: "merges",
        at_least: 1_100_000,
        config: Config { grants: 3, runs: 3, lost_answers: 1, collected: 1, merges: true, ..BASE },
    },
    // Pages appear at any moment, by whichever owner, and none is contradicted.
    Search {
        name: "pages",
        at_least: 950_000,
        config: Config { runs: 3, lost_answers: 1, collected: 1, pages: 2, ..BASE },
    },
    // The source moves on while the job reads the state that it pinned.
    Search {
        name: "changed_source",
        at_least: 29_000,
        config: Config { rounds: TWO_ROUNDS, grants: 3, runs: 3, changes: 1, merges: true, ..BASE },
    },
    // The owner before the last is still there, with a view two claims old.
    Search {
        name: "three_epochs",
        at_least: 130_000,
        config: Config { owners: 3, epochs: 3, lost_answers: 1, collected: 1, ..BASE },
    },
];

/// Far too wide to be searched to the end; for random histories.
pub const WIDE: Config = Config {
    rounds: THREE_ROUNDS,
    owners: 3,
    workers: 3,
    epochs: 5,
    grants: 12,
    runs: 14,
    truncations: 2,
    crashes: 3,
    lost_answers: 4,
    collected: 4,
    speculation: true,
    withdrawals: true,
    cancel: true,
    merges: false,
    pages: 3,
    changes: 1,
    mutation: None,
};

/// The same over fewer rows, so that chance gets as far as joining files.
pub const WIDE_MERGES: Config = Config { rounds: TWO_TASKS, merges: true, pages: 0, ..WIDE };

/// Every mistake.
pub const SEEDED: &[Seeded] = &[
    Seeded { mutation: Mutation::NoFence, breaks: COVERAGE, config: BASE },
    Seeded {
        mutation: Mutation::EpochOnlyFence,
        breaks: COVERAGE,
        config: Config { owners: 1, epochs: 1, lost_answers: 1, ..BASE },
    },
    Seeded { mutation: Mutation::CommitIgnoresLo, breaks: COVERAGE, config: Config { owners: 1, ..BASE } },
    Seeded {
        mutation: Mutation::CommitIgnoresHi,
        breaks: COVERAGE,
        config: Config { truncations: 1, ..Config::CALM },
    },
    Seeded {
        mutation: Mutation::CommitIgnoresAttempt,
        breaks: DURABILITY,
        config: Config { collected: 1, workers: 2, ..BASE },
    },
    Seeded {
        mutation: Mutation::CollectorIgnoresEpoch,
        breaks: COLLECTION,
        config: Config { collected: 1, ..BASE },
    },
    Seeded {
        mutation: Mutation::CollectorIgnoresAllowed,
        breaks: COLLECTION,
        config: Config { collected: 1, ..BASE },
    },
    Seeded {
        mutation: Mutation::CollectorRunsAhead,
        breaks: COLLECTION,
        config: Config { epochs: 3, lost_answers: 1, collected: 1, withdrawals: true, ..BASE },
    },
    Seeded {
        mutation: Mutation::CompleteIgnoresStop,
        breaks: FINALITY,
        config: Config { cancel: true, ..Config::CALM },
    },
    Seeded { mutation: Mutation::CompleteIgnoresTasks, breaks: MANIFEST, config: Config::CALM },
    Seeded {
        mutation: Mutation::CompleteIgnoresReferences,
        breaks: MANIFEST,
        config: Config { rounds: TWO_ROUNDS, grants: 2, runs: 2, ..Config::CALM },
    },
    Seeded {
        mutation: Mutation::RoundOpenedTwice,
        breaks: COVERAGE,
        config: Config { rounds: TWO_ROUNDS, grants: 2, runs: 2, ..Config::CALM },
    },
    Seeded {
        mutation: Mutation::RoundWithoutFence,
        breaks: COVERAGE,
        config: Config { rounds: TWO_ROUNDS, ..BASE },
    },
    Seeded {
        mutation: Mutation::GrantNotBound,
        breaks: UNIQUENESS,
        config: Config { owners: 1, epochs: 1, crashes: 1, ..BASE },
    },
    Seeded { mutation: Mutation::NoNonce, breaks: DURABILITY, config: Config { runs: 2, ..Config::CALM } },
    Seeded {
        mutation: Mutation::GrantNotBoundNoNonce,
        breaks: DURABILITY,
        config: Config { crashes: 1, runs: 2, ..Config::CALM },
    },
    Seeded { mutation: Mutation::KeyPerTask, breaks: DURABILITY, config: Config { owners: 1, ..BASE } },
    Seeded { mutation: Mutation::WorkerDeletes, breaks: COLLECTION, config: BASE },
    Seeded { mutation: Mutation::WorkerDeletesDuplicateLast, breaks: COLLECTION, config: Config::CALM },
    Seeded {
        mutation: Mutation::SwapWithoutFence,
        breaks: COVERAGE,
        config: Config { grants: 3, runs: 3, merges: true, ..BASE },
    },
    Seeded { mutation: Mutation::MergesOverlap, breaks: MANIFEST, config: ONE_OWNER_MERGES },
    Seeded { mutation: Mutation::MergesUncommitted, breaks: DURABILITY, config: ONE_OWNER_MERGES },
    Seeded {
        mutation: Mutation::CollectorTakesInputsEarly,
        breaks: DURABILITY,
        config: Config { lost_answers: 1, collected: 1, ..ONE_OWNER_MERGES },
    },
    Seeded {
        mutation: Mutation::CollectorTakesReplacement,
        breaks: COLLECTION,
        config: Config { collected: 1, merges: true, ..BASE },
    },
    Seeded { mutation: Mutation::PageWithoutFence, breaks: PAGES, config: Config { pages: 1, ..BASE } },
    Seeded { mutation: Mutation::PagesForgotten, breaks: PAGES, config: Config { pages: 2, ..BASE } },
    Seeded { mutation: Mutation::PageOfObjects, breaks: PAGES, config: Config { pages: 1, ..Config::CALM } },
    Seeded {
        mutation: Mutation::PagesMerged,
        breaks: PAGES,
        config: Config { pages: 1, ..ONE_OWNER_MERGES },
    },
    Seeded {
        mutation: Mutation::CompleteWithoutLastPage,
        breaks: PAGES,
        config: Config { pages: 1, ..Config::CALM },
    },
    Seeded {
        mutation: Mutation::ReadIgnoresPin,
        breaks: GENERATION,
        config: Config { changes: 1, ..Config::CALM },
    },
    Seeded {
        mutation: Mutation::RoundPinsAgain,
        breaks: GENERATION,
        config: Config { rounds: TWO_ROUNDS, changes: 1, grants: 2, runs: 2, ..Config::CALM },
    },
    Seeded {
        mutation: Mutation::GrantBeforeApplied,
        breaks: ANSWERS,
        config: Config { lost_answers: 1, ..Config::CALM },
    },
    Seeded {
        mutation: Mutation::AnswerBeforeApplied,
        breaks: ANSWERS,
        config: Config { lost_answers: 1, ..Config::CALM },
    },
];

/// A deviation that no invariant stands against: what it breaks is no safety.
pub const HARMLESS: (Mutation, Config) = (
    Mutation::FirstCommitsParts,
    Config { workers: 2, collected: 1, speculation: true, withdrawals: true, ..BASE },
);

/// Explores everything within the bounds; ends early only when an invariant breaks.
pub fn explore(config: Config, threads: usize) -> Outcome {
    let started = Instant::now();
    let checker = Protocol { config }.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures);
    outcome(&checker.spawn_bfs().join(), started)
}

/// Random histories within the bounds, as many steps as given; the same for the same seed. (The checker's own
/// simulation cannot give back a history in which an action turned out to change nothing.)
pub fn walk(config: Config, seed: u64, steps: usize) -> Outcome {
    let started = Instant::now();
    let (protocol, mut random) = (Protocol { config }, seed);
    let properties = protocol.properties();
    let mut reached = vec![false; properties.len()];
    let (mut taken, mut deepest) = (0, 0);
    let mut broken = Vec::new();
    while taken < steps && broken.is_empty() {
        let mut history = Vec::new();
        let mut state = State::initial(config.owners, config.workers);
        loop {
            for (property, reached) in properties.iter().zip(&mut reached) {
                let holds = (property.condition)(&protocol, &state);
                *reached |= holds;
                if !holds && property.expectation == Expectation::Always {
                    let steps = history.iter().map(|action| format!("{action:?}")).collect();
                    broken.push((property.name, steps));
                }
            }
            let Some((action, next)) = any_step(&protocol, &state, &mut random) else { break };
            if !broken.is_empty() {
                break;
            }
            history.push(action);
            state = next;
        }
        taken += history.len();
        deepest = deepest.max(history.len());
    }
    let goals = properties
        .iter()
        .zip(reached)
        .filter(|(property, reached)| property.expectation == Expectation::Sometimes && !reached);
    let unreached = goals.map(|(property, _)| property.name).collect();
    let seconds = started.elapsed().as_secs_f32();
    Outcome { states: taken, transitions: taken, depth: deepest, seconds, broken, unreached }
}

/// A step to another state, three times of four one that advances the job, if there is any: of uniform choices
/// most would be claims and new grants, and no job would ever end.
fn any_step(protocol: &Protocol, state: &State, random: &mut u64) -> Option<(Action, State)> {
    let mut actions = Vec::new();
    protocol.actions(state, &mut actions);
    let (mut advancing, mut others): (Vec<_>, Vec<_>) = actions.into_iter().partition(Action::advances);
    loop {
        let advance = others.is_empty() || (!advancing.is_empty() && !next_random(random).is_multiple_of(4));
        let actions = if advance { &mut advancing } else { &mut others };
        if actions.is_empty() {
            return None;
        }
        let place = (next_random(random) % actions.len() as u64) as usize;
        let action = actions.swap_remove(place);
        if let Some(next) = protocol.next_state(state, action.clone()) {
            return Some((action, next));
        }
    }
}

/// SplitMix64.
fn next_random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The shortest history in which the mistake breaks its invariant.
pub fn hunt(seeded: &Seeded) -> Outcome {
    let started = Instant::now();
    let config = Config { mutation: Some(seeded.mutation), ..seeded.config };
    let wanted = || HasDiscoveries::AnyOf([seeded.breaks].into());
    let search = |max_depth: Option<usize>| {
        let checker = Protocol { config }.checker().finish_when(wanted());
        let checker = max_depth.into_iter().fold(checker, |checker, depth| checker.target_max_depth(depth));
        outcome(&checker.spawn_bfs().join(), started)
    };
    let mut best = search(None);
    // The checker keeps the last of the histories of a block of work, which need not be the shortest.
    while let Some(length) = best.history(seeded.breaks).map(<[String]>::len) {
        // Depth counts states, and the checker does not look at those of the last.
        let shorter = search(Some(length + 1));
        if shorter.history(seeded.breaks).is_none() {
            break;
        }
        best = shorter;
    }
    best
}

impl Outcome {
    /// The history that breaks an invariant, if there is one.
    pub fn history(&self, invariant: &str) -> Option<&[String]> {
        self.broken.iter().find(|(name, _)| *name == invariant).map(|(_, steps)| &steps[..])
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { states, transitions, depth, seconds, .. } = self;
        write!(f, "{states} states, {transitions} transitions, depth {depth}, {seconds:.1} s")?;
        for (invariant, steps) in &self.broken {
            write!(f, "\n  broken: {invariant}")?;
            steps.iter().zip(1..).try_for_each(|(step, n)| write!(f, "\n    {n:2} {step}"))?;
        }
        self.unreached.iter().try_for_each(|goal| write!(f, "\n  not reached: {goal}"))
    }
}

fn outcome(checker: &impl Checker<Protocol>, started: Instant) -> Outcome {
    let mut found = checker.discoveries();
    let mut outcome = Outcome {
        states: checker.unique_state_count(),
        transitions: checker.state_count(),
        depth: checker.max_depth(),
        seconds: started.elapsed().as_secs_f32(),
        broken: Vec::new(),
        unreached: Vec::new(),
    };
    for property in checker.model().properties() {
        match (property.expectation, found.remove(property.name)) {
            (Expectation::Always, Some(path)) => {
                let steps = path.into_actions().iter().map(|action| format!("{action:?}")).collect();
                outcome.broken.push((property.name, steps));
            }
            (Expectation::Sometimes, None) => outcome.unreached.push(property.name),
            _ => {}
        }
    }
    outcome
}
