//! A whole job against a store of typed operations and a worker that answers at once; the coordinator dies at
//! every possible output and its successor goes on from the store.

use std::collections::{BTreeMap, VecDeque};

use flatbed_types::job::{JobRecord, JobState, ObjectPointer, SourcePin, StopKind};
use flatbed_types::manifest::Manifest;
use flatbed_types::task::{
    CommitRecord, Hint, LaneSurvey, OutputKind, OutputObject, Plan, RowCounts, TaskKind,
};
use flatbed_types::{
    ClientId, Codec, Epoch, ErrorCode, ExportRequest, Instant, JobId, KeyRange, Lane, Level, Nonce, Position,
    ResourceType, SessionId, Token,
};

use super::*;
use crate::plan::Sizing;

const PRACTITIONER: ResourceType = ResourceType::of("Practitioner");
const NOW: Instant = Instant::from_millis(1_000_000);

fn pointer(key: &str) -> ObjectPointer {
    ObjectPointer { key: key.to_owned(), sha256: [7; 32], size: 1 }
}

fn record(level: Level) -> JobRecord {
    JobRecord::new(JobId(5), ClientId::open(), ExportRequest::everything(level), Codec::Gzip, NOW)
}

fn surveys() -> Vec<LaneSurvey> {
    let hints = |count: u8| {
        let at = |n: u8| if n == 0 { Position::START } else { Position::At(vec![n]) };
        (0..count).map(|n| Hint { at: at(n), rows: 10, bytes: 200 << 20 }).collect()
    };
    vec![
        LaneSurvey { lane: Lane::compartment(ResourceType::PATIENT), hints: hints(5) },
        LaneSurvey { lane: Lane::standalone(PRACTITIONER), hints: hints(1) },
    ]
}

/// The store, the objects and a worker that does what it is granted in two commits a task.
struct World {
    stored: Stored,
    epoch: u64,
    nonce: u64,
    manifest: Option<Manifest>,
    deleted: bool,
    plans: BTreeMap<String, Plan>,
}

impl World {
    fn new(level: Level) -> World {
        let stored = Stored {
            record: record(level),
            plans: Vec::new(),
            tasks: BTreeMap::new(),
            merges: None,
            commits: BTreeMap::new(),
            folds: BTreeMap::new(),
            stop: None,
        };
        World { stored, epoch: 0, nonce: 0, manifest: None, deleted: false, plans: BTreeMap::new() }
    }

    fn holder(&self) -> Holder {
        Holder { worker: "wrk_a".parse().unwrap(), session: SessionId(u128::from(self.epoch)) }
    }

    fn claim(&mut self) -> Job {
        self.epoch += 1;
        let settings = Settings {
            sizing: Sizing { target_bytes: 150 << 20 },
            retention_ms: 1_000,
            max_files: 50_000,
            fold_commits: 4_096,
        };
        Job::load(self.stored.clone(), Epoch(self.epoch), "root".to_owned(), settings)
    }

    fn apply(&mut self, txn: &Txn) -> TxnOutcome {
        if txn.epoch != Epoch(self.epoch) {
            return TxnOutcome::Fenced;
        }
        if let (true, Some(kind)) = (txn.unless_stopped, self.stored.stop) {
            return TxnOutcome::StopExists(kind);
        }
        for op in txn.ops.clone() {
            match op {
                Op::PutJob(record) => {
                    self.stored.plans = record.plans.iter().map(|p| self.plans[&p.key].clone()).collect();
                    self.stored.record = *record;
                }
                Op::PutTask(id, task) => drop(self.stored.tasks.insert(id, task)),
                Op::DeleteTask(id) => drop(self.stored.tasks.remove(&id)),
                Op::DeleteTasks => self.stored.tasks.clear(),
                Op::PutCommit(number, commit) => drop(self.stored.commits.insert(number, commit)),
                Op::DeleteCommits => self.stored.commits.clear(),
                Op::DeleteJob | Op::DeleteMarker | Op::Release => {}
                Op::DeleteCommitRange(first, last) => {
                    self.stored.commits.retain(|n, _| *n < first || *n > last);
                }
                Op::PutFold(number, fold) => drop(self.stored.folds.insert(number, fold)),
            }
        }
        TxnOutcome::Applied
    }

    fn output(&mut self, kind: OutputKind, resource_type: ResourceType) -> OutputObject {
        self.nonce += 1;
        let nonce = Nonce(self.nonce);
        OutputObject { kind, resource_type, nonce, lines: 1, raw_bytes: 10, stored_bytes: 5, sha256: [0; 32] }
    }

    fn commit(&mut self, spec: &GrantSpec, segment: u32, range: KeyRange) -> Input {
        let TaskKind::Extract(lane) = spec.kind else { unreachable!("only extracts commit") };
        let mut outputs = vec![self.output(OutputKind::Data, lane.resource_type)];
        if spec.round == 0 {
            outputs.push(self.output(OutputKind::References, lane.resource_type));
        }
        let rows = RowCounts { written: 1, ..RowCounts::default() };
        let commit = CommitRecord {
            task: spec.task,
            attempt: spec.attempt,
            segment,
            round: spec.round,
            range,
            outputs,
            rows,
            fingerprint: 1,
            replaces: Vec::new(),
        };
        Input::Commit { reply: self.nonce, commit, token: spec.token }
    }

    /// What a worker says to a grant.
    fn work(&mut self, spec: &GrantSpec) -> Vec<Input> {
        let result = match spec.kind {
            TaskKind::Extract(_) => {
                let mut middle = spec.range.lo.key().unwrap_or_default().to_vec();
                middle.push(0);
                let middle = Position::At(middle);
                let first = KeyRange { lo: spec.range.lo.clone(), hi: middle.clone() };
                let second = KeyRange { lo: middle, hi: spec.range.hi.clone() };
                return vec![self.commit(spec, 0, first), self.commit(spec, 1, second)];
            }
            TaskKind::Merge(_) => unreachable!("few files"),
            TaskKind::Plan => TaskResult::Plan(PlanResult {
                transaction_time: NOW,
                pin: SourcePin { source: "s".to_owned(), snapshot: "1".to_owned() },
                draft: pointer("draft"),
                patients: 50,
                roster: None,
                outcomes: vec![self.output(OutputKind::Outcome, ResourceType::OPERATION_OUTCOME)],
            }),
            TaskKind::Resolve => {
                assert!(spec.sidecars.len() >= 10, "five tasks of at least two commits each");
                let counts = BTreeMap::from([(PRACTITIONER, 3)]);
                TaskResult::Resolve(ResolveResult { keys: Some(pointer("keys")), counts, outcomes: vec![] })
            }
        };
        vec![Input::Complete { reply: 0, task: spec.task, attempt: spec.attempt, token: spec.token, result }]
    }

    /// Carries one output out; the inputs that follow.
    fn perform(&mut self, output: Output) -> Vec<Input> {
        match output {
            Output::Propose(txn) => vec![Input::TxnDone(self.apply(&txn))],
            Output::Grant(holder, spec) => {
                assert_eq!(holder, self.holder(), "a grant for a former session got out");
                self.work(&spec)
            }
            Output::ReadDraft(_) => vec![Input::DraftRead(Ok(surveys()))],
            Output::WritePlan(round, plan) => {
                let written = pointer(&format!("plan-{round}-{}", self.epoch));
                self.plans.insert(written.key.clone(), plan);
                vec![Input::ObjectWritten(Ok(written))]
            }
            Output::WriteManifest(manifest) => {
                self.manifest = Some(*manifest);
                vec![Input::ObjectWritten(Ok(pointer("manifest")))]
            }
            Output::DeleteObjects => {
                self.deleted = true;
                vec![Input::ObjectsDeleted(Ok(()))]
            }
            Output::Reply(_, answer) => {
                assert!(!matches!(answer, CommitAnswer::Refused(Refusal::LoMismatch | Refusal::BeyondHi(_))));
                vec![]
            }
            Output::VerifyObjects(_) => vec![Input::ObjectsVerified(Ok(0))],
            Output::WriteLedger(..) | Output::WriteMergePlan(_) => unreachable!("few commits"),
            Output::Revoke(..)
            | Output::StateChanged(_)
            | Output::Lost
            | Output::Released
            | Output::Forget => vec![],
        }
    }

    /// Runs until nothing happens any more or `deaths` says to die; the number of outputs performed.
    fn run(&mut self, job: &mut Job, die_at: usize) -> usize {
        let mut inputs = VecDeque::from([Input::Start]);
        for former in 0..self.epoch {
            inputs.push_back(Input::SessionLost(SessionId(u128::from(former))));
        }
        let mut performed = 0;
        let mut permille = 0;
        loop {
            let mut out = Vec::new();
            match inputs.pop_front() {
                Some(input) => job.step(NOW, input, &mut out),
                None if job.waiting_task(NOW).is_some() => {
                    let offer = Input::Offer { holder: self.holder(), token: Token(9) };
                    job.step(NOW, offer, &mut out);
                }
                None => return performed,
            }
            let now = job.progress(NOW).permille;
            assert!(now >= permille, "progress went back");
            permille = now;
            for output in out {
                if performed == die_at {
                    return performed;
                }
                performed += 1;
                inputs.extend(self.perform(output));
            }
        }
    }

    fn assert_complete(&self) {
        assert_eq!(self.stored.record.state, JobState::Complete);
        let manifest = self.manifest.as_ref().unwrap();
        let lines = |kind, of| {
            let of_type = manifest.entries.iter().filter(|e| e.kind == kind && e.resource_type == of);
            of_type.map(|entry| entry.lines).sum::<u64>()
        };
        let rows = |round| {
            let of_round = self.stored.commits.values().filter(|commit| commit.round == round);
            of_round.map(|commit| commit.rows.written).sum::<u64>()
        };
        assert!(rows(0) >= 10 && rows(1) >= 2);
        assert_eq!(lines(OutputKind::Data, ResourceType::PATIENT), rows(0));
        assert_eq!(lines(OutputKind::Data, PRACTITIONER), rows(1));
        assert_eq!(lines(OutputKind::Outcome, ResourceType::OPERATION_OUTCOME), 1);
        assert_eq!(self.stored.record.result.rows, rows(0) + rows(1));
        // I1, I2: the commits of each lane tile it.
        let mut patient: Vec<_> =
            self.stored.commits.values().filter(|c| c.round == 0 && c.rows.written > 0).collect();
        patient.sort_by(|a, b| a.range.lo.cmp(&b.range.lo));
        assert_eq!(patient.first().unwrap().range.lo, Position::START);
        assert_eq!(patient.last().unwrap().range.hi, Position::End);
        assert!(patient.windows(2).all(|pair| pair[0].range.hi == pair[1].range.lo));
    }
}

#[test]
fn a_job_runs_through_its_rounds_to_a_manifest() {
    let mut world = World::new(Level::Patient);
    let mut job = world.claim();
    world.run(&mut job, usize::MAX);
    world.assert_complete();
    assert_eq!(job.progress(NOW).permille, 1000);
    assert!(world.stored.tasks.is_empty());
    assert_eq!(world.stored.record.key_lists.len(), 1);
}

#[test]
fn a_successor_goes_on_wherever_its_predecessor_died() {
    let mut world = World::new(Level::Patient);
    let mut job = world.claim();
    let all = world.run(&mut job, usize::MAX);
    for first in 0..all {
        for second in [3, 17, usize::MAX] {
            let mut world = World::new(Level::Patient);
            for die_at in [first, second, usize::MAX] {
                let mut job = world.claim();
                world.run(&mut job, die_at);
            }
            world.assert_complete();
        }
    }
}

#[test]
fn a_stop_request_wins_or_loses_as_a_whole() {
    let mut world = World::new(Level::Patient);
    let mut job = world.claim();
    let all = world.run(&mut job, usize::MAX);
    for at in 0..all {
        let mut world = World::new(Level::Patient);
        let mut job = world.claim();
        world.run(&mut job, at);
        let was_complete = world.stored.record.state == JobState::Complete;
        // The request arrives while the owner does not know of it, then it dies; its successor loads it.
        world.stored.stop = Some(StopKind::Delete);
        let mut successor = world.claim();
        world.run(&mut successor, usize::MAX);
        assert_eq!(world.stored.record.state, JobState::Gone, "stopped at {at}, complete: {was_complete}");
        assert!(world.deleted && world.stored.commits.is_empty());
    }
}

#[test]
fn a_stop_request_that_the_owner_has_not_seen_refuses_completion() {
    let mut world = World::new(Level::System);
    let mut job = world.claim();
    // Everything up to the last transaction, which the request precedes.
    let mut inputs = VecDeque::from([Input::Start]);
    while world.manifest.is_none() {
        let mut out = Vec::new();
        let offer = || Input::Offer {
            holder: Holder { worker: "wrk_a".parse().unwrap(), session: SessionId(1) },
            token: Token(9),
        };
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
    let mut world = World::new(Level::Patient);
    let mut job = world.claim();
    let _successor = world.claim();
    let mut out = Vec::new();
    job.step(NOW, Input::Start, &mut out);
    job.step(NOW, Input::Offer { holder: world.holder(), token: Token(1) }, &mut out);
    assert!(matches!(out.as_slice(), [Output::Propose(_)]), "the grant waits for its transaction");
    out.clear();
    job.step(NOW, Input::TxnDone(TxnOutcome::Fenced), &mut out);
    assert_eq!(out, [Output::Lost]);
}

#[test]
fn a_task_that_keeps_failing_fails_the_job_and_what_is_unreachable_does_not() {
    let mut world = World::new(Level::System);
    for (code, expected) in
        [(ErrorCode::Internal, JobState::Failed), (ErrorCode::Unavailable, JobState::Planning)]
    {
        world.stored.record = record(Level::System);
        world.stored.tasks.clear();
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
