//! Single inputs in the states where they matter.

use flatbed_types::job::{JobError, JobState};
use flatbed_types::task::{CommitRecord, RowCounts};
use flatbed_types::{ErrorCode, KeyRange, Level, SessionId};

use super::super::*;
use super::world::{Course, NOW, World, pointer, step};
use crate::ledger::Refusal;

const JOINS: Course = Course { max_files: 2, ..Course::CALM };

fn is_extract(output: &Output) -> bool {
    matches!(output, Output::Grant(_, spec) if matches!(spec.kind, TaskKind::Extract(_)))
}

fn granted(output: Output) -> GrantSpec {
    let Output::Grant(_, spec) = output else { panic!("no grant: {output:?}") };
    *spec
}

fn unavailable() -> JobError {
    JobError { code: ErrorCode::Unavailable, message: "the object store does not answer".to_owned() }
}

fn extracting() -> (World, Job, GrantSpec) {
    let mut world = World::new(Level::Patient, Course::CALM);
    let mut job = world.claim();
    let spec = granted(world.run_until(&mut job, is_extract));
    (world, job, spec)
}

#[test]
fn a_declined_grant_costs_nothing() {
    let (mut world, mut job, spec) = extracting();
    let attempt = spec.attempt;
    assert!(world.settle(&mut job, NOW, Input::Declined { attempt, token: Token(0) }).is_empty());
    assert!(job.is_leased(attempt), "the token is another's");
    for _ in 0..2 * caps::MAX_TASK_LOSSES {
        let (attempt, token) = job.leases().map(|(attempt, _)| (attempt, Token(9))).next().unwrap();
        world.settle(&mut job, NOW, Input::Declined { attempt, token });
        assert_eq!((job.running(), job.waiting_task(NOW)), (0, Some(spec.task)));
        let offer = Input::Offer { holder: world.holder(), token: Token(9) };
        assert!(world.settle(&mut job, NOW, offer).iter().any(is_extract));
    }
    let record = &world.stored.tasks[&spec.task];
    assert_eq!((record.losses, record.failures), (0, 0));
}

#[test]
fn a_cut_is_refused_outside_of_what_remains_and_holds_against_the_worker() {
    let (mut world, mut job, spec) = extracting();
    let KeyRange { lo, hi } = spec.range.clone();
    let at = Position::At(vec![0, 5]);
    assert!(lo < at && at < hi);
    for nowhere in [lo.clone(), hi.clone()] {
        world.settle(&mut job, NOW, Input::Truncate { attempt: spec.attempt, at: nowhere });
    }
    let (before, tasks) = (world.stored.tasks.clone(), job.plan_tasks());
    assert_eq!(before[&spec.task].range, spec.range);
    world.settle(&mut job, NOW, Input::Truncate { attempt: spec.attempt, at: at.clone() });
    assert_eq!(job.plan_tasks(), tasks + 1);
    let tail = world.stored.tasks.values().find(|task| task.allowed.is_empty()).unwrap();
    assert_eq!((tail.kind, &tail.range), (spec.kind, &KeyRange { lo: at.clone(), hi: hi.clone() }));
    let beyond = world.commit(&spec, 0, spec.range.clone());
    let answers = world.settle(&mut job, NOW, beyond);
    assert!(matches!(&answers[..],
        [Output::Reply(_, CommitAnswer::Refused(Refusal::BeyondHi(end)))] if *end == at));
    let head = world.commit(&spec, 0, KeyRange { lo, hi: at });
    let answers = world.settle(&mut job, NOW, head);
    assert!(matches!(answers[..], [Output::Reply(_, CommitAnswer::Accepted(_))]));
    // The head is done and the tail waits: in the successor's view too.
    let successor = world.claim();
    assert_eq!(successor.ledger.tasks(), job.ledger.tasks());
    assert_eq!(successor.plan_tasks(), tasks + 1);
}

#[test]
fn a_second_attempt_is_another_workers_and_whoever_commits_first_has_the_task() {
    for second_wins in [false, true] {
        let (mut world, mut job, first) = extracting();
        let again = |holder| Input::Speculate { attempt: first.attempt, holder, token: Token(3) };
        assert!(world.settle(&mut job, NOW, again(world.holder())).is_empty(), "the same worker");
        let holder = world.second();
        let out = world.settle(&mut job, NOW, again(holder));
        let second = granted(out.into_iter().next().unwrap());
        assert_eq!((second.task, &second.range), (first.task, &first.range));
        assert!(job.is_doubled(first.attempt) && job.is_doubled(second.attempt));
        let third = Holder { session: SessionId(99), ..world.second() };
        assert!(world.settle(&mut job, NOW, again(third)).is_empty(), "two at a time");

        let prefix = KeyRange { lo: first.range.lo.clone(), hi: Position::At(vec![0]) };
        let of_first = world.commit(&first, 0, prefix.clone());
        let answers = world.settle(&mut job, NOW, of_first);
        assert!(matches!(answers[..], [Output::Reply(_, CommitAnswer::Refused(Refusal::LoMismatch))]));
        let (winner, range, loser) = match second_wins {
            true => (&second, prefix, (world.holder(), first.attempt)),
            false => (&first, first.range.clone(), (world.second(), second.attempt)),
        };
        let winning = world.commit(winner, 1, range);
        let mut out = Vec::new();
        job.step(NOW, winning, &mut out);
        let [Output::Propose(txn)] = &out[..] else { panic!("the revocation waits: {out:?}") };
        let outcome = world.apply(txn);
        let out = step(&mut job, NOW, Input::TxnDone(outcome));
        assert!(matches!(out[0], Output::Reply(_, CommitAnswer::Accepted(_))));
        assert_eq!(out[1], Output::Revoke(loser.0, loser.1));
        assert!(!job.is_leased(loser.1));
    }
}

#[test]
fn a_merge_replaces_what_its_task_names_and_nothing_else_replaces() {
    let mut world = World::new(Level::Patient, JOINS);
    let mut job = world.claim();
    let is_merge =
        |output: &Output| matches!(output, Output::Grant(_, spec) if matches!(spec.kind, TaskKind::Merge(_)));
    let output = world.run_until(&mut job, is_merge);
    assert_eq!(world.stored.record.state, JobState::Merging);
    let good = world.perform(output).pop().unwrap();
    let Input::Commit { reply, commit, token } = good else { panic!("no commit") };
    let spoil: [fn(&mut CommitRecord); 4] = [
        |commit| commit.replaces.truncate(1),
        |commit| commit.replaces.clear(),
        |commit| (commit.outputs[0].lines, commit.rows.written) = (1, 1),
        |commit| commit.round += 1,
    ];
    for spoil in spoil {
        let mut commit = commit.clone();
        spoil(&mut commit);
        let answers = world.settle(&mut job, NOW, Input::Commit { reply, commit, token });
        assert!(matches!(answers[..], [Output::Reply(_, CommitAnswer::Refused(Refusal::NotAllowed))]));
    }
    let before = job.committed_objects().count();
    let joined = commit.replaces.len();
    let answers = world.settle(&mut job, NOW, Input::Commit { reply, commit: commit.clone(), token });
    assert!(matches!(answers[0], Output::Reply(_, CommitAnswer::Accepted(_))));
    assert_eq!(job.committed_objects().count(), before - joined + 1);
    let answers = world.settle(&mut job, NOW, Input::Commit { reply, commit, token });
    assert!(matches!(answers[0], Output::Reply(_, CommitAnswer::Duplicate)));

    let (mut world, mut job, spec) = extracting();
    let Input::Commit { reply, mut commit, token } = world.commit(&spec, 0, spec.range.clone()) else {
        panic!("no commit")
    };
    commit.replaces = vec![flatbed_types::Nonce(1)];
    let answers = world.settle(&mut job, NOW, Input::Commit { reply, commit, token });
    assert!(matches!(answers[..], [Output::Reply(_, CommitAnswer::Refused(Refusal::NotAllowed))]));
}

#[test]
fn a_merge_plan_that_cannot_be_written_is_tried_again() {
    let mut world = World::new(Level::Patient, JOINS);
    let mut job = world.claim();
    let is_plan = |output: &Output| matches!(output, Output::WriteMergePlan(_));
    world.run_until(&mut job, is_plan);
    assert!(world.settle(&mut job, NOW, Input::ObjectWritten(Err(unavailable()))).is_empty());
    assert!(world.settle(&mut job, NOW, Input::Tick).is_empty(), "a little later");
    let out = world.settle(&mut job, NOW.plus_millis(10_000), Input::Tick);
    assert!(matches!(out[..], [Output::WriteMergePlan(_)]));
}

#[test]
fn a_fold_that_fails_is_tried_again_and_waits_for_nothing_else() {
    let mut world = World::new(Level::Patient, Course { fold_commits: 3, ..Course::CALM });
    let mut job = world.claim();
    let is_fold = |output: &Output| matches!(output, Output::WriteLedger(..));
    let Output::WriteLedger(number, commits) = world.run_until(&mut job, is_fold) else { unreachable!() };
    assert_eq!((number, commits.len()), (0, 3));
    assert!(job.busy.is_none() && world.stored.folds.is_empty());
    assert!(world.settle(&mut job, NOW, Input::LedgerWritten(Err(unavailable()))).is_empty());
    let before = world.stored.commits.len();
    assert!(world.settle(&mut job, NOW, Input::Tick).is_empty(), "a little later");
    let out = world.settle(&mut job, NOW.plus_millis(10_000), Input::Tick);
    let Some(written @ Output::WriteLedger(0, _)) = out.into_iter().next() else { panic!("no second try") };
    let written = world.perform(written).pop().unwrap();
    let rest = world.settle(&mut job, NOW.plus_millis(10_000), written);
    assert_eq!(world.stored.commits.len(), before - 3);
    assert_eq!(world.stored.folds[&0].last, 2);
    assert!(rest.iter().all(is_fold), "the next, if there are enough commits");
}

#[test]
fn few_commits_are_folded_by_time_only_from_a_number_on() {
    let mut folding = Course { fold_commits: 4_096, ..Course::CALM };
    folding.max_files = 50_000;
    let mut world = World::new(Level::Patient, folding);
    let mut job = world.claim();
    let spec = granted(world.run_until(&mut job, is_extract));
    let later = NOW.plus_millis(caps::FOLD_MILLIS as i64 + 1);
    assert!(world.settle(&mut job, later, Input::Tick).is_empty(), "one commit is no fold");
    let key = |n: usize| Position::At(vec![0, (n >> 8) as u8, n as u8]);
    let mut lo = spec.range.lo.clone();
    for segment in 0..caps::MIN_FOLD_COMMITS {
        let hi = key(segment);
        let range = KeyRange { lo: std::mem::replace(&mut lo, hi.clone()), hi };
        let commit = world.commit(&spec, segment as u32, range);
        let out = world.settle(&mut job, NOW, commit);
        assert!(matches!(out[..], [Output::Reply(_, CommitAnswer::Accepted(_))]));
    }
    let out = world.settle(&mut job, later, Input::Tick);
    let [Output::WriteLedger(0, commits)] = &out[..] else { panic!("no fold: {out:?}") };
    // With that of the plan task.
    assert_eq!(commits.len(), caps::MIN_FOLD_COMMITS + 1);
}

#[test]
fn a_job_whose_files_are_lost_fails_and_one_that_cannot_look_waits() {
    let mut world = World::new(Level::Patient, Course::CALM);
    let mut job = world.claim();
    let is_look = |output: &Output| matches!(output, Output::VerifyObjects(_));
    world.run_until(&mut job, is_look);
    assert!(world.settle(&mut job, NOW, Input::ObjectsVerified(Err(unavailable()))).is_empty());
    let out = world.settle(&mut job, NOW.plus_millis(10_000), Input::Tick);
    assert!(matches!(out[..], [Output::VerifyObjects(_)]));
    let out = world.settle(&mut job, NOW, Input::ObjectsVerified(Ok(3)));
    assert_eq!(out, [Output::StateChanged(JobState::Failed)]);
    let error = world.stored.record.error.as_ref().unwrap();
    assert_eq!(error.code, ErrorCode::StorageFailed);
    assert!(error.message.starts_with("3 committed files"), "{}", error.message);
    assert!(!world.marker && world.stored.record.manifest.is_none());
}

#[test]
fn a_job_whose_small_files_become_too_many_fails_and_says_why() {
    const MOST: u64 = 1 << 40;
    // As it goes, and taken over by another coordinator on the way.
    for taken_over in [false, true] {
        let mut world = World::new(Level::Patient, Course { max_files: 5, ..Course::CALM });
        world.stored.record.request.max_file_bytes = Some(MOST);
        let mut job = world.claim();
        let spec = granted(world.run_until(&mut job, is_extract));
        let mut lo = spec.range.lo.clone();
        let mut commit = |world: &mut World, job: &mut Job, segment: u32, raw_bytes| {
            let hi = Position::At(vec![0, 0, segment as u8]);
            let range = KeyRange { lo: std::mem::replace(&mut lo, hi.clone()), hi };
            let Input::Commit { reply, mut commit, token } = world.commit(&spec, segment, range) else {
                panic!("a commit")
            };
            commit.outputs.iter_mut().for_each(|output| output.raw_bytes = raw_bytes);
            world.settle(job, NOW, Input::Commit { reply, commit, token });
        };
        for segment in 0..8 {
            commit(&mut world, &mut job, segment, MOST / 2);
        }
        for segment in 8..13 {
            commit(&mut world, &mut job, segment, MOST / 2 + 1);
        }
        assert_eq!(world.stored.record.state, JobState::Running, "two of half the size can be joined");
        if taken_over {
            world.epoch += 1;
            job = world.load();
        }
        commit(&mut world, &mut job, 13, MOST);
        assert_eq!(world.stored.record.state, JobState::Failed, "{taken_over}");
        let error = world.stored.record.error.as_ref().unwrap();
        assert_eq!(error.code, ErrorCode::Invalid);
        assert!(error.message.contains("_maximumFileSize"), "{}", error.message);
    }
}

#[test]
fn who_is_told_to_leave_ends_what_is_queued_and_decides_nothing_more() {
    let (mut world, mut job, spec) = extracting();
    let prefix = KeyRange { lo: spec.range.lo.clone(), hi: Position::At(vec![0]) };
    let rest = KeyRange { lo: prefix.hi.clone(), hi: spec.range.hi.clone() };
    let out = {
        let commit = world.commit(&spec, 0, prefix);
        step(&mut job, NOW, commit)
    };
    let [Output::Propose(in_flight)] = &out[..] else { panic!("{out:?}") };
    // A second one waits for the first, and then the word comes.
    let commit = world.commit(&spec, 1, rest.clone());
    assert!(step(&mut job, NOW, commit).is_empty());
    assert!(step(&mut job, NOW, Input::Release).is_empty());
    let commit = world.commit(&spec, 2, rest);
    assert!(matches!(step(&mut job, NOW, commit)[..], [Output::Reply(_, CommitAnswer::Retry)]));
    assert_eq!((job.waiting(NOW), job.waiting_task(NOW)), (0, None));
    let offer = Input::Offer { holder: world.holder(), token: Token(9) };
    assert!(step(&mut job, NOW, offer).is_empty());
    let outcome = world.apply(in_flight);
    let out = world.settle(&mut job, NOW, Input::TxnDone(outcome));
    let accepted = |output: &Output| matches!(output, Output::Reply(_, CommitAnswer::Accepted(_)));
    assert_eq!(out.iter().filter(|output| accepted(output)).count(), 2);
    assert_eq!(out.last(), Some(&Output::Released));
    assert!(world.released && world.stored.commits.len() == 3);
    let commit = world.commit(&spec, 3, KeyRange::ALL);
    assert!(matches!(step(&mut job, NOW, commit)[..], [Output::Reply(_, CommitAnswer::Retry)]));
    assert!(step(&mut job, NOW, Input::Tick).is_empty());
}

#[test]
fn work_on_objects_is_dropped_when_the_job_is_handed_over() {
    let mut world = World::new(Level::Patient, Course::CALM);
    let mut job = world.claim();
    world.run_until(&mut job, |output| matches!(output, Output::WritePlan(..)));
    let mut out = world.settle(&mut job, NOW, Input::Release);
    assert_eq!(out.pop(), Some(Output::Released));
    assert!(matches!(out[..], [Output::Reply(_, CommitAnswer::Retry)]), "the plan task is asked again");
    assert!(step(&mut job, NOW, Input::ObjectWritten(Ok(pointer("late")))).is_empty());
    let mut successor = world.claim();
    world.run(&mut successor, super::End::Never);
    world.assert_complete();
}

#[test]
fn a_transaction_stays_below_what_a_store_takes() {
    let mut world = World::new(Level::Patient, Course::CALM);
    let mut job = world.claim();
    let mut out = Vec::new();
    job.propose(&mut out);
    let commit = |replaced: u64| {
        let replaces = (0..replaced).map(flatbed_types::Nonce).collect();
        let attempt = AttemptId(1);
        let (rows, range) = (RowCounts::default(), KeyRange::ALL);
        let outputs = Vec::new();
        CommitRecord {
            task: TaskId(1),
            attempt,
            segment: 0,
            round: 0,
            range,
            outputs,
            rows,
            fingerprint: 0,
            replaces,
        }
    };
    for number in 0..100 {
        job.enqueue(Group::of(vec![Op::PutCommit(number, commit(4_096))], Vec::new()));
    }
    let mut seen = 0;
    while seen < 100 {
        job.propose(&mut out);
        let Some(Output::Propose(txn)) = out.pop() else { panic!("nothing proposed") };
        assert!(txn.ops.len() < 20, "{} merges of 40 KB", txn.ops.len());
        seen += txn.ops.len();
        job.txn_done(TxnOutcome::Applied, &mut out);
    }
}
