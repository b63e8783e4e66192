//! A whole job against a store of typed operations and workers that answer at once; the coordinator dies, or hands the
//! job over, at every possible output, and its successor goes on from the store.

mod checks;
mod commits;
mod pages;
mod world;

use std::collections::VecDeque;

use flatbed_types::consent::{ConsentRule, Exclusions};
use flatbed_types::job::{JobError, JobState, StopKind};
use flatbed_types::{ErrorCode, Level, SessionId, Token};

use super::*;
use world::{Course, End, NOW, World, record};

#[test]
fn a_job_runs_through_its_rounds_to_a_manifest() {
    for course in Course::ALL {
        let mut world = World::new(Level::Patient, *course);
        let mut job = world.claim();
        world.run(&mut job, End::Never);
        world.assert_complete();
        assert_eq!(job.progress(NOW).permille, 1000);
        assert!(world.stored.tasks.is_empty());
        assert_eq!(world.stored.record.key_lists.len(), 1);
        assert_eq!(world.stored.record.merges.is_some(), course.max_files < 10 && course.pages.is_none());
        assert_eq!(world.stored.folds.is_empty(), course.fold_commits > 100);
        // Five tasks start at a key of one byte or none, and one of the second round does.
        assert_eq!(world.revoked, if course.speculates { 6 } else { 0 });
        let planned = 5 + 1 + world.stored.merges.as_ref().map_or(0, |plan| plan.tasks.len());
        let cut = job.plan_tasks() as usize - planned;
        assert_eq!(cut > 0, course.truncates);
    }
}

fn exclusions() -> Exclusions {
    let list = world::pointer("exclusions");
    Exclusions { list, version: "1".to_owned(), roster_sha256: [1; 32], listed: 9, patients: 4 }
}

#[test]
fn sec_07_what_the_roster_said_and_left_out_is_in_the_record() {
    for course in Course::ALL {
        let mut world = World::new(Level::Patient, *course);
        world.stored.record.consent = Some(ConsentRule { location: "/r".to_owned(), purpose: None });
        world.exclusions = Some(exclusions());
        let mut job = world.claim();
        world.run(&mut job, End::Never);
        world.assert_complete();
        let record = &world.stored.record;
        assert_eq!(record.exclusions, Some(exclusions()));
        let extracts = world
            .ledger()
            .values()
            .filter(|commit| {
                commit.replaces.is_empty() && commit.rows.written > 0 && commit.rows.excluded > 0
            })
            .count() as u64;
        assert!(extracts >= 6 && record.excluded_rows == 2 * extracts, "{} {extracts}", record.excluded_rows);
    }
}

#[test]
fn sec_07_a_plan_without_the_list_ends_the_job() {
    for (has_rule, has_list) in [(true, false), (false, true)] {
        let mut world = World::new(Level::Patient, Course::CALM);
        let rule = ConsentRule { location: "/r".to_owned(), purpose: None };
        world.stored.record.consent = has_rule.then_some(rule);
        world.exclusions = has_list.then(exclusions);
        let mut job = world.claim();
        world.run(&mut job, End::Never);
        let record = &world.stored.record;
        assert!(
            record.error.as_ref().is_some_and(|error| error.message.contains("exclusions")),
            "{has_rule}"
        );
        assert!(record.plans.is_empty() && world.manifest.is_none(), "nothing was read");
    }
}

#[test]
fn a_successor_goes_on_wherever_its_predecessor_died() {
    for course in Course::ALL {
        let mut world = World::new(Level::Patient, *course);
        let mut job = world.claim();
        let all = world.run(&mut job, End::Never);
        for first in 0..all {
            for second in [3, 17, 41] {
                let mut world = World::new(Level::Patient, *course);
                for end in [End::Dies(first), End::Dies(second), End::Never] {
                    let mut job = world.claim();
                    world.run(&mut job, end);
                }
                world.assert_complete();
            }
        }
    }
}

#[test]
fn a_job_is_handed_over_at_any_moment() {
    for course in Course::ALL {
        let mut world = World::new(Level::Patient, *course);
        let mut job = world.claim();
        let all = world.run(&mut job, End::Never);
        for first in 0..all {
            let mut world = World::new(Level::Patient, *course);
            for end in [End::Leaves(first), End::Leaves(9), End::Dies(30), End::Leaves(20)] {
                let mut job = world.claim();
                world.run(&mut job, end);
                let left = matches!(end, End::Leaves(_)) && job.hold != Hold::Owner;
                assert_eq!(world.released, left, "who is told to leave leaves");
                assert!(job.hold == Hold::Owner || job.is_idle());
            }
            let mut job = world.claim();
            world.run(&mut job, End::Never);
            world.assert_complete();
        }
    }
}

#[test]
fn a_stop_request_wins_or_loses_as_a_whole() {
    for course in Course::ALL {
        let mut world = World::new(Level::Patient, *course);
        let mut job = world.claim();
        let all = world.run(&mut job, End::Never);
        for at in 0..all {
            let mut world = World::new(Level::Patient, *course);
            let mut job = world.claim();
            world.run(&mut job, End::Dies(at));
            let was_complete = world.stored.record.state == JobState::Complete;
            // The request arrives while the owner does not know of it, then it dies; its successor loads it.
            world.stored.stop = Some(StopKind::Delete);
            let mut successor = world.claim();
            world.run(&mut successor, End::Never);
            let state = world.stored.record.state;
            assert_eq!(state, JobState::Gone, "stopped at {at}, complete: {was_complete}");
            assert!(world.deleted && !world.marker);
            assert!(world.stored.commits.is_empty() && world.stored.folds.is_empty());
            assert!(world.stored.pages.is_empty());
        }
    }
}

#[test]
fn a_stop_request_that_the_owner_has_not_seen_refuses_completion() {
    let mut world = World::new(Level::System, Course::CALM);
    let mut job = world.claim();
    // Everything up to the last transaction, which the request precedes.
    let mut inputs = VecDeque::from([Input::Start]);
    while world.manifest.is_none() {
        let mut out = Vec::new();
        let offer = || Input::Offer { holder: world.holder(), token: Token(9) };
        job.step(NOW, inputs.pop_front().unwrap_or_else(offer), &mut out);
        for output in out {
            inputs.extend(world.perform(output));
        }
    }
    world.stored.stop = Some(StopKind::Delete);
    while let Some(input) = inputs.pop_front() {
        let mut out = Vec::new();
        job.step(NOW, input, &mut out);
        for output in out {
            assert_ne!(output, Output::StateChanged(JobState::Complete));
            inputs.extend(world.perform(output));
        }
    }
    assert_eq!(world.stored.record.state, JobState::Gone);
    assert_eq!(world.stored.record.manifest, None);
}

#[test]
fn a_fenced_owner_lets_nothing_out() {
    let mut world = World::new(Level::Patient, Course::CALM);
    let mut job = world.claim();
    let _successor = world.claim();
    let mut out = Vec::new();
    job.step(NOW, Input::Start, &mut out);
    job.step(NOW, Input::Offer { holder: world.holder(), token: Token(1) }, &mut out);
    assert!(matches!(out.as_slice(), [Output::Propose(_)]), "the grant waits for its transaction");
    out.clear();
    job.step(NOW, Input::TxnDone(TxnOutcome::Fenced), &mut out);
    assert_eq!(out, [Output::Lost]);
    out.clear();
    job.step(NOW, Input::Tick, &mut out);
    assert!(out.is_empty(), "it owns nothing");
}

#[test]
fn a_task_that_keeps_failing_fails_the_job_and_what_is_unreachable_does_not() {
    let mut world = World::new(Level::System, Course::CALM);
    for (code, expected) in
        [(ErrorCode::Internal, JobState::Failed), (ErrorCode::Unavailable, JobState::Planning)]
    {
        world.stored.record = record(Level::System);
        world.stored.tasks.clear();
        world.marker = true;
        let mut job = world.claim();
        let mut now = NOW;
        let mut inputs = VecDeque::from([Input::Start]);
        for _ in 0..caps::MAX_TASK_FAILURES * 2 {
            now = now.plus_millis(60_000);
            inputs.push_back(Input::Offer { holder: world.holder(), token: Token(9) });
            while let Some(input) = inputs.pop_front() {
                let mut out = Vec::new();
                job.step(now, input, &mut out);
                for output in out {
                    match output {
                        Output::Propose(txn) => inputs.push_back(Input::TxnDone(world.apply(&txn))),
                        Output::Grant(_, spec) => inputs.push_back(Input::Failed {
                            attempt: spec.attempt,
                            token: spec.token,
                            error: JobError { code, message: "no".to_owned() },
                        }),
                        Output::StateChanged(_) => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        assert_eq!(world.stored.record.state, expected);
    }
}

#[test]
fn a_lost_session_loses_its_attempts_and_no_others() {
    let mut world = World::new(Level::Patient, Course::CALM);
    let mut job = world.claim();
    let mut out = Vec::new();
    job.step(NOW, Input::Start, &mut out);
    job.step(NOW, Input::TxnDone(TxnOutcome::Applied), &mut out);
    job.step(NOW, Input::Offer { holder: world.holder(), token: Token(1) }, &mut out);
    assert_eq!((job.running(), job.waiting(NOW)), (1, 0));
    job.step(NOW, Input::SessionLost(SessionId(77)), &mut out);
    assert_eq!(job.running(), 1);
    job.step(NOW, Input::SessionLost(world.holder().session), &mut out);
    assert_eq!((job.running(), job.waiting(NOW)), (0, 1));
}

/// A defect, or a store that is not what it was: no further try can end otherwise, and none is begun.
#[test]
fn object_work_that_cannot_succeed_fails_the_job_and_what_may_pass_does_not() {
    type Wanted = fn(&Output) -> bool;
    type Answer = fn(JobError) -> Input;
    let works: [(Wanted, Answer); 5] = [
        (|output| matches!(output, Output::ReadDraft(_)), |error| Input::DraftRead(Err(error))),
        (|output| matches!(output, Output::WritePlan(..)), |error| Input::ObjectWritten(Err(error))),
        (|output| matches!(output, Output::WriteLedger(..)), |error| Input::LedgerWritten(Err(error))),
        (|output| matches!(output, Output::VerifyObjects(_)), |error| Input::ObjectsVerified(Err(error))),
        (|output| matches!(output, Output::WriteManifest(_)), |error| Input::ObjectWritten(Err(error))),
    ];
    for (number, (wanted, answer)) in works.into_iter().enumerate() {
        for code in [ErrorCode::Internal, ErrorCode::StorageFailed, ErrorCode::Unavailable] {
            let mut world = World::new(Level::System, Course { fold_commits: 2, ..Course::CALM });
            let mut job = world.claim();
            world.run_until(&mut job, wanted);
            let error = JobError { code, message: "no store".to_owned() };
            world.settle(&mut job, NOW, answer(error.clone()));
            let failed = world.stored.record.state == JobState::Failed;
            assert_eq!(failed, !code.is_retryable(), "work {number}, {code}");
            assert_eq!(world.stored.record.error.clone(), failed.then_some(error), "work {number}, {code}");
        }
    }
}
