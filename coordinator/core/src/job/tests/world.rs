//! The store, the objects and workers that do at once what they are granted, with mishaps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flatbed_types::consent::Exclusions;
use flatbed_types::job::{JobRecord, ObjectPointer, SourcePin};
use flatbed_types::manifest::Manifest;
use flatbed_types::request::Dialect;
use flatbed_types::task::{
    CommitRecord, Hint, LaneSurvey, MergePlan, OutputKind, OutputObject, Plan, RowCounts, TaskKind,
};
use flatbed_types::{
    ClientId, Codec, Epoch, ExportRequest, Instant, JobId, KeyRange, Lane, Level, Nonce, Position,
    ResourceType, SessionId, TaskId, Token,
};

use super::super::*;
use super::checks::assert_leaves;
use crate::ledger::Refusal;
use crate::page::PageRule;
use crate::plan::Sizing;

pub const PRACTITIONER: ResourceType = ResourceType::of("Practitioner");
pub const NOW: Instant = Instant::from_millis(1_000_000);

pub fn pointer(key: &str) -> ObjectPointer {
    ObjectPointer { key: key.to_owned(), sha256: [7; 32], size: 1 }
}

pub fn record(level: Level) -> JobRecord {
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

/// What happens besides.
#[derive(Debug, Clone, Copy)]
pub struct Course {
    pub max_files: usize,
    pub fold_commits: usize,
    /// Attempts at the start of a lane give their tails away.
    pub truncates: bool,
    /// The first worker makes no progress at the start of a lane, and another tries as well.
    pub speculates: bool,
    /// The first grant of each coordinator finds no slot.
    pub declines: bool,
    /// The client takes pages, in this dialect.
    pub pages: Option<Dialect>,
}

impl Course {
    pub const CALM: Course = Course {
        max_files: 50_000,
        fold_commits: 4_096,
        truncates: false,
        speculates: false,
        declines: false,
        pages: None,
    };

    pub const PAGES: Course =
        Course { pages: Some(Dialect::Legacy), max_files: 3, fold_commits: 3, ..Course::CALM };

    pub const ALL: &[Course] = &[
        Course::CALM,
        Course { max_files: 3, fold_commits: 3, ..Course::CALM },
        Course { max_files: 2, truncates: true, fold_commits: 5, ..Course::CALM },
        Course { speculates: true, declines: true, fold_commits: 2, ..Course::CALM },
        Course {
            max_files: 2,
            truncates: true,
            speculates: true,
            declines: true,
            fold_commits: 1,
            pages: None,
        },
        Course::PAGES,
        Course {
            pages: Some(Dialect::V4),
            truncates: true,
            speculates: true,
            declines: true,
            ..Course::PAGES
        },
    ];
}

/// How a coordinator ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It does not, before nothing is left to do.
    Never,
    /// It dies before it carries this output out.
    Dies(usize),
    /// It is told to hand the job over before it carries this output out.
    Leaves(usize),
}

pub struct World {
    pub course: Course,
    /// `commits` are those that are not folded.
    pub stored: Stored,
    pub epoch: u64,
    /// Whether the job counts against its client's cap.
    pub marker: bool,
    nonce: u64,
    pub manifest: Option<Manifest>,
    pub deleted: bool,
    declined: bool,
    pub revoked: usize,
    pub released: bool,
    plans: BTreeMap<String, Plan>,
    merge_plans: BTreeMap<String, MergePlan>,
    folded: BTreeMap<String, Vec<(u64, CommitRecord)>>,
    /// Pages that were written, published or not.
    pub pages: BTreeMap<String, Manifest>,
    pub page_rule: PageRule,
    /// What a plan says of the roster of exclusions; with it, each extract leaves out two rows a commit.
    pub exclusions: Option<Exclusions>,
}

impl World {
    pub fn new(level: Level, course: Course) -> World {
        let mut record = record(level);
        record.request.form.partial_manifests = course.pages.is_some();
        record.request.form.dialect = course.pages.unwrap_or_default();
        let stored = Stored {
            record,
            plans: Vec::new(),
            tasks: BTreeMap::new(),
            merges: None,
            commits: BTreeMap::new(),
            folds: BTreeMap::new(),
            pages: BTreeMap::new(),
            stop: None,
        };
        World {
            course,
            stored,
            epoch: 0,
            marker: true,
            nonce: 0,
            manifest: None,
            deleted: false,
            declined: false,
            revoked: 0,
            released: false,
            plans: BTreeMap::new(),
            merge_plans: BTreeMap::new(),
            folded: BTreeMap::new(),
            pages: BTreeMap::new(),
            page_rule: PageRule { files: 2, millis: 60_000, most: 4 },
            exclusions: None,
        }
    }

    /// The worker that takes what is offered.
    pub fn holder(&self) -> Holder {
        Holder { worker: "wrk_a".parse().unwrap(), session: SessionId(u128::from(2 * self.epoch)) }
    }

    /// The worker that tries as well.
    pub fn second(&self) -> Holder {
        Holder { worker: "wrk_b".parse().unwrap(), session: SessionId(u128::from(2 * self.epoch + 1)) }
    }

    /// Every commit, folded or not.
    pub fn ledger(&self) -> BTreeMap<u64, CommitRecord> {
        let folded = self.stored.folds.values().flat_map(|fold| self.folded[&fold.object.key].clone());
        folded.chain(self.stored.commits.clone()).collect()
    }

    /// A machine over what is stored.
    pub fn load(&self) -> Job {
        let settings = Settings {
            sizing: Sizing { target_bytes: 150 << 20 },
            retention_ms: 1_000,
            max_files: self.course.max_files,
            fold_commits: self.course.fold_commits,
            pages: self.page_rule,
        };
        let stored = Stored { commits: self.ledger(), ..self.stored.clone() };
        Job::load(stored, Epoch(self.epoch), "root".to_owned(), settings)
    }

    pub fn claim(&mut self) -> Job {
        self.epoch += 1;
        (self.declined, self.released) = (false, false);
        self.load()
    }

    pub fn apply(&mut self, txn: &Txn) -> TxnOutcome {
        if txn.epoch != Epoch(self.epoch) || self.released {
            return TxnOutcome::Fenced;
        }
        if let (true, Some(kind)) = (txn.unless_stopped, self.stored.stop) {
            return TxnOutcome::StopExists(kind);
        }
        for op in txn.ops.clone() {
            self.apply_op(op);
        }
        assert_eq!(self.marker, !self.stored.record.state.is_terminal(), "the marker ends with the job");
        self.assert_pages();
        TxnOutcome::Applied
    }

    fn apply_op(&mut self, op: Op) {
        match op {
            Op::PutJob(record) => {
                self.stored.plans = record.plans.iter().map(|p| self.plans[&p.key].clone()).collect();
                self.stored.merges = record.merges.as_ref().map(|p| self.merge_plans[&p.key].clone());
                self.stored.record = *record;
            }
            Op::PutTask(id, task) => drop(self.stored.tasks.insert(id, task)),
            Op::DeleteTask(id) => drop(self.stored.tasks.remove(&id)),
            Op::DeleteTasks => self.stored.tasks.clear(),
            Op::PutCommit(number, commit) => {
                assert!(!self.ledger().contains_key(&number), "a commit is overwritten");
                self.stored.commits.insert(number, commit);
            }
            Op::DeleteCommits => {
                self.stored.commits.clear();
                self.stored.folds.clear();
            }
            Op::PutPage(number, page) => self.put_page(number, page),
            Op::DeletePages => self.stored.pages.clear(),
            Op::DeleteJob => {}
            Op::DeleteMarker => self.marker = false,
            Op::Release => self.released = true,
            Op::DeleteCommitRange(first, last) => {
                let before = self.ledger();
                self.stored.commits.retain(|n, _| *n < first || *n > last);
                assert_eq!(self.ledger(), before, "a fold loses commits or has others");
            }
            Op::PutFold(number, fold) => {
                let known = &self.folded[&fold.object.key];
                let numbers: Vec<u64> = known.iter().map(|(number, _)| *number).collect();
                assert_eq!(numbers, (fold.first..=fold.last).collect::<Vec<u64>>());
                for (number, commit) in known {
                    assert_eq!(
                        self.stored.commits.get(number),
                        Some(commit),
                        "the fold holds something else"
                    );
                }
                assert_eq!(self.stored.folds.insert(number, fold), None, "a fold is overwritten");
            }
        }
    }

    pub fn output(&mut self, kind: OutputKind, resource_type: ResourceType, lines: u64) -> OutputObject {
        self.nonce += 1;
        let nonce = Nonce(self.nonce);
        let (raw_bytes, stored_bytes) = (10 * lines, 5 * lines);
        OutputObject { kind, resource_type, nonce, lines, raw_bytes, stored_bytes, sha256: [0; 32] }
    }

    pub fn commit(&mut self, spec: &GrantSpec, segment: u32, range: KeyRange) -> Input {
        let TaskKind::Extract(lane) = spec.kind else { unreachable!("an extract") };
        let mut outputs = vec![self.output(OutputKind::Data, lane.resource_type, 1)];
        if spec.round == 0 {
            outputs.push(self.output(OutputKind::References, lane.resource_type, 1));
        }
        if self.course.pages.is_some() && segment == 1 {
            outputs.push(self.output(OutputKind::Outcome, ResourceType::OPERATION_OUTCOME, 1));
        }
        self.commit_of(spec, segment, range, outputs, Vec::new())
    }

    fn commit_of(
        &mut self,
        spec: &GrantSpec,
        segment: u32,
        range: KeyRange,
        outputs: Vec<OutputObject>,
        replaces: Vec<Nonce>,
    ) -> Input {
        let excluded = if self.exclusions.is_some() && replaces.is_empty() { 2 } else { 0 };
        let rows = RowCounts { written: outputs[0].lines, excluded, ..RowCounts::default() };
        let GrantSpec { task, attempt, round, .. } = *spec;
        let commit =
            CommitRecord { task, attempt, segment, round, range, outputs, rows, fingerprint: 1, replaces };
        Input::Commit { reply: self.nonce, commit, token: spec.token }
    }

    /// What a worker says to a grant.
    fn work(&mut self, holder: &Holder, spec: &GrantSpec) -> Vec<Input> {
        let (attempt, token) = (spec.attempt, spec.token);
        if self.course.declines && !std::mem::replace(&mut self.declined, true) {
            return vec![Input::Declined { attempt, token }];
        }
        let result = match spec.kind {
            TaskKind::Extract(_) => return self.extract(holder, spec),
            TaskKind::Merge(_) => return vec![self.merge(spec)],
            TaskKind::Plan => TaskResult::Plan(PlanResult {
                transaction_time: NOW,
                pin: SourcePin { source: "s".to_owned(), snapshot: "1".to_owned() },
                draft: pointer("draft"),
                patients: 50,
                roster: None,
                exclusions: self.exclusions.clone().map(Box::new),
                files: vec![self.output(OutputKind::Outcome, ResourceType::OPERATION_OUTCOME, 1)],
            }),
            TaskKind::Resolve => {
                assert!(spec.sidecars.len() >= 10, "five tasks of at least two commits each");
                let counts = BTreeMap::from([(PRACTITIONER, 3)]);
                TaskResult::Resolve(ResolveResult { keys: Some(pointer("keys")), counts, outcomes: vec![] })
            }
        };
        vec![Input::Complete { reply: 0, task: spec.task, attempt, token, result }]
    }

    fn extract(&mut self, holder: &Holder, spec: &GrantSpec) -> Vec<Input> {
        let lo = spec.range.lo.key().unwrap_or_default().to_vec();
        if self.course.speculates && lo.len() < 2 && *holder != self.second() {
            let token = Token(8);
            return vec![Input::Speculate { attempt: spec.attempt, holder: self.second(), token }];
        }
        let behind = |key: &[u8], byte: u8| Position::At([key, &[byte]].concat());
        let middle = behind(&lo, 0);
        let first = KeyRange { lo: spec.range.lo.clone(), hi: middle.clone() };
        if self.course.truncates && lo.len() < 3 {
            let at = behind(middle.key().unwrap_or_default(), 1);
            let second = KeyRange { lo: middle, hi: at.clone() };
            let cut = Input::Truncate { attempt: spec.attempt, at };
            return vec![self.commit(spec, 0, first), cut, self.commit(spec, 1, second)];
        }
        let second = KeyRange { lo: middle, hi: spec.range.hi.clone() };
        vec![self.commit(spec, 0, first), self.commit(spec, 1, second)]
    }

    fn merge(&mut self, spec: &GrantSpec) -> Input {
        assert_eq!(spec.range, KeyRange::ALL);
        let ledger = self.ledger();
        let replaced: BTreeSet<Nonce> = ledger.values().flat_map(|commit| commit.replaces.clone()).collect();
        let committed: BTreeSet<(TaskId, Nonce)> = ledger
            .values()
            .flat_map(|commit| commit.outputs.iter().map(|output| (commit.task, output.nonce)))
            .collect();
        assert!(spec.merge_inputs.len() > 1);
        for input in &spec.merge_inputs {
            assert!(
                committed.contains(&(input.writer.task, input.output.nonce)),
                "an input is not committed"
            );
            assert!(!replaced.contains(&input.output.nonce), "an input is replaced");
        }
        let TaskKind::Merge(kind) = spec.kind else { unreachable!("a merge") };
        let lines = spec.merge_inputs.iter().map(|input| input.output.lines).sum();
        let output = self.output(OutputKind::Data, kind, lines);
        let replaces = spec.merge_inputs.iter().map(|input| input.output.nonce).collect();
        self.commit_of(spec, 0, KeyRange::ALL, vec![output], replaces)
    }

    /// Carries one output out; the inputs that follow.
    pub fn perform(&mut self, output: Output) -> Vec<Input> {
        match output {
            Output::Propose(txn) => vec![Input::TxnDone(self.apply(&txn))],
            Output::Grant(holder, spec) => {
                let expected = if spec.token == Token(8) { self.second() } else { self.holder() };
                assert_eq!(holder, expected, "a grant for a former session got out");
                self.work(&holder, &spec)
            }
            Output::ReadDraft(_) => vec![Input::DraftRead(Ok(surveys()))],
            Output::WritePlan(round, plan) => {
                let written = pointer(&format!("plan-{round}-{}", self.epoch));
                self.plans.insert(written.key.clone(), plan);
                vec![Input::ObjectWritten(Ok(written))]
            }
            Output::WriteMergePlan(plan) => {
                let written = pointer(&format!("merges-{}", self.epoch));
                self.merge_plans.insert(written.key.clone(), plan);
                vec![Input::ObjectWritten(Ok(written))]
            }
            Output::WriteLedger(number, commits) => {
                for (number, commit) in &commits {
                    assert_eq!(self.stored.commits.get(number), Some(commit), "folded before it is durable");
                }
                let written = pointer(&format!("ledger-{number}-{}", self.epoch));
                self.folded.insert(written.key.clone(), commits);
                vec![Input::LedgerWritten(Ok(written))]
            }
            Output::WritePage(number, page) => vec![Input::PageWritten(Ok(self.write_page(number, *page)))],
            Output::VerifyObjects(named) => {
                self.assert_named(&named);
                vec![Input::ObjectsVerified(Ok(0))]
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
            Output::Revoke(holder, _) => {
                let stopped = self.stored.stop.is_some();
                assert!(stopped || holder == self.holder(), "the one that made no progress");
                self.revoked += 1;
                vec![]
            }
            Output::StateChanged(_) | Output::Lost | Output::Released | Output::Forget => vec![],
        }
    }

    /// Runs until nothing happens any more or the coordinator ends; the number of outputs carried out.
    pub fn run(&mut self, job: &mut Job, end: End) -> usize {
        let mut inputs = VecDeque::from([Input::Start]);
        for former in 0..2 * self.epoch {
            inputs.push_back(Input::SessionLost(SessionId(u128::from(former))));
        }
        let (mut performed, mut permille) = (0, 0);
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
            assert!(now >= permille, "progress went back from {permille} to {now}");
            permille = now;
            job.assert_index();
            if job.is_idle() {
                self.assert_restores(job);
            }
            for output in out {
                match end {
                    End::Dies(at) if performed == at => return performed,
                    End::Leaves(at) if performed == at => inputs.push_back(Input::Release),
                    End::Dies(_) | End::Leaves(_) | End::Never => {}
                }
                performed += 1;
                if job.hold != Hold::Owner {
                    assert_leaves(&output);
                }
                inputs.extend(self.perform(output));
            }
        }
    }

    /// Runs up to the first output of a kind, which is handed back instead of carried out.
    pub fn run_until(&mut self, job: &mut Job, wanted: impl Fn(&Output) -> bool) -> Output {
        let mut inputs = VecDeque::from([Input::Start]);
        let mut found = None;
        loop {
            let offer = || Input::Offer { holder: self.holder(), token: Token(9) };
            let input = match inputs.pop_front() {
                None if found.is_some() => break,
                input => input.unwrap_or_else(offer),
            };
            for output in step(job, NOW, input) {
                if found.is_none() && wanted(&output) {
                    found = Some(output);
                } else {
                    inputs.extend(self.perform(output));
                }
            }
        }
        found.unwrap()
    }

    /// Feeds an input and carries out the transactions that follow; whatever else comes out.
    pub fn settle(&mut self, job: &mut Job, now: Instant, input: Input) -> Vec<Output> {
        let (mut inputs, mut rest) = (VecDeque::from([input]), Vec::new());
        while let Some(input) = inputs.pop_front() {
            for output in step(job, now, input) {
                match output {
                    Output::Propose(txn) => inputs.push_back(Input::TxnDone(self.apply(&txn))),
                    other => rest.push(other),
                }
            }
        }
        rest
    }
}

pub fn step(job: &mut Job, now: Instant, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    job.step(now, input, &mut out);
    out
}
