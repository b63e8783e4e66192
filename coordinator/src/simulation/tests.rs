//! The seeds, and that they mean something.
//!
//! `FLATBED_SIM_SEEDS=n` says how many seeds `seeds` runs (default 5,000), `FLATBED_SIM_FROM=n` where they begin,
//! `FLATBED_SIM_SEED=n` runs one and prints all that happens.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Sabotage;
use super::scenario::{self, Verdict};
use super::world::{Counts, Readers};

const SEEDS: u64 = 5_000;

/// Seeds within which a sabotage must be found.
const FOUND_WITHIN: u64 = 2_000;

/// Threads that run seeds, each seed on one of them.
const THREADS: u64 = 2;

/// What must have happened somewhere in the seeds: without it they would say little.
const HAPPENED: &[&str] = &[
    // Faults.
    "unknown, applied",
    "unknown, lost",
    "unknown, late",
    "applied late",
    "store refuses",
    "store slow",
    "store unreachable",
    "store outage",
    "read fails",
    "stale read",
    "member lags",
    "dead lease renewed",
    "lease expired",
    "all leases lost",
    "watch late",
    "watch ended",
    "watch refused",
    "message slow",
    "report lost",
    "answer lost",
    "report doubled",
    "connection breaks",
    "connection silent",
    "pair cut",
    "object request fails",
    "object answer lost",
    "object store slow",
    "object outage",
    "attempt fails",
    "attempt stalls",
    "worker killed",
    "worker paused",
    "worker drains",
    "coordinator killed",
    "killed at work",
    "coordinator stops",
    "coordinator paused",
    "coordinator cut from the store",
    // What the protocol made of them.
    "first claim",
    "claim of another",
    "handed off",
    "txn refused",
    "granted",
    "declined",
    "second attempt",
    "cut asked",
    "worker cut",
    "task cut",
    "yield asked",
    "committed",
    "folded",
    "merged",
    "page",
    "last page",
    "page read",
    "page read again",
    "page not there",
    "last page read",
    "object deleted",
    "answer: accepted",
    "answer: duplicate",
    "answer: lo mismatch",
    "answer: beyond hi",
    "answer: not allowed",
    "answer: job stopped",
    "answer: retry",
    "answer: not owner",
    // What became of jobs.
    "running",
    "resolving",
    "merging",
    "complete",
    "failed",
    "cancelled",
    "deleting",
    "gone",
    "result is right",
    "nothing is left",
];

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Runs seeds on all threads until one is found or none is left; the failing ones, and what happened.
fn run(from: u64, count: u64, sabotage: Option<Sabotage>) -> (Vec<(u64, String)>, Counts) {
    let (next, failed, sum) = (AtomicU64::new(from), Mutex::new(Vec::new()), Mutex::new(Counts::new()));
    let work = || {
        let mut counts = Counts::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let enough = failed.lock().unwrap().len() >= if sabotage.is_some() { 1 } else { 10 };
            if seed >= from + count || enough {
                break;
            }
            let Verdict { violation, counts: of_seed, .. } = scenario::run(seed, sabotage, Readers::Nobody);
            if let Some(violation) = violation {
                failed.lock().unwrap().push((seed, violation));
            }
            of_seed.into_iter().for_each(|(name, count)| *counts.entry(name).or_default() += count);
        }
        let mut sum = sum.lock().unwrap();
        counts.into_iter().for_each(|(name, count)| *sum.entry(name).or_default() += count);
    };
    std::thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(work))));
    (failed.into_inner().unwrap(), sum.into_inner().unwrap())
}

#[test]
fn seeds() {
    if let Some(seed) = number("FLATBED_SIM_SEED") {
        let logs = tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(std::io::stderr);
        let logs = logs.with_max_level(tracing::Level::DEBUG).finish();
        let verdict = tracing::subscriber::with_default(logs, || scenario::run(seed, None, Readers::Person));
        assert_eq!(verdict.violation, None, "seed {seed}");
        return;
    }
    let (from, count) =
        (number("FLATBED_SIM_FROM").unwrap_or(0), number("FLATBED_SIM_SEEDS").unwrap_or(SEEDS));
    let (failed, counts) = run(from, count, None);
    for (seed, violation) in &failed {
        eprintln!("seed {seed}: {violation}");
        eprintln!(
            "  again: FLATBED_SIM_SEED={seed} cargo nextest run -p flatbed-coordinator simulation::tests::seeds"
        );
    }
    for (name, count) in &counts {
        eprintln!("{count:>10} {name}");
    }
    assert!(failed.is_empty(), "{} seeds of {count} break a rule", failed.len());
    // Few seeds do not show everything.
    if count >= SEEDS {
        let missing: Vec<_> = HAPPENED.iter().filter(|name| !counts.contains_key(*name)).collect();
        assert!(missing.is_empty(), "never happened: {missing:?}");
    }
}

#[test]
fn same_seed_same_trace() {
    for seed in 0..60 {
        let (first, again) =
            (scenario::run(seed, None, Readers::Test), scenario::run(seed, None, Readers::Test));
        let differs = first.lines.iter().zip(&again.lines).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((first.hash, first.counts), (again.hash, again.counts), "seed {seed}");
        assert!(first.lines.len() > 20, "seed {seed} is empty");
    }
}

#[test]
fn different_seeds_have_different_traces() {
    let hashes: std::collections::BTreeSet<u64> =
        (0..20).map(|seed| scenario::run(seed, None, Readers::Nobody).hash).collect();
    assert_eq!(hashes.len(), 20);
}

fn is_found(sabotage: Sabotage, rules: &[&str]) {
    let (failed, _) = run(0, FOUND_WITHIN, Some(sabotage));
    let (seed, violation) = failed.first().unwrap_or_else(|| panic!("{sabotage:?} was not found"));
    eprintln!("{sabotage:?}: seed {seed}: {violation}");
    assert!(
        rules.iter().any(|rule| violation.contains(rule)),
        "{sabotage:?} was found by chance: {violation}"
    );
}

#[test]
fn transactions_without_the_fence_are_found() {
    is_found(Sabotage::NoFence, &["I1", "I4"]);
}

#[test]
fn a_fence_of_the_epoch_alone_is_found() {
    is_found(Sabotage::FenceByEpoch, &["I1", "I4"]);
}

#[test]
fn a_result_in_spite_of_a_stop_is_found() {
    is_found(Sabotage::NoStop, &["I5"]);
}

#[test]
fn loading_at_another_revision_than_the_claims_is_found() {
    is_found(Sabotage::UnpinnedLoad, &["I1", "I4", "I5", "I7", "I9", "a fold"]);
}

#[test]
fn workers_that_delete_what_was_refused_are_found() {
    is_found(Sabotage::DeleteRefused, &["I3", "I6"]);
}

#[test]
fn commits_of_what_was_not_written_are_found() {
    // A draft that is not there fails the job before any commit can.
    is_found(Sabotage::CommitBeforeSeal, &["I3", "an object is missing"]);
}

#[test]
fn names_that_follow_from_the_task_are_found() {
    is_found(Sabotage::NonceOfTask, &["I7"]);
}

#[test]
fn a_page_that_the_store_has_lost_fails_its_job() {
    is_found(
        Sabotage::ForgottenPage,
        &["pages of the manifest that may have been read", "is not there any more"],
    );
}

#[test]
fn a_collector_that_goes_by_age_is_found() {
    is_found(Sabotage::CollectByAge, &["I3", "I6"]);
}
