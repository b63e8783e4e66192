//! The cluster: one event after the other, each at its moment.

mod decisions;
mod report;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant as Wall};

use flatbed_coordinator_core::job::{
    CommitAnswer, GrantSpec, Holder, Input, Job, Output, PlanResult, ReplyId, ResolveResult, Settings,
    Stored, TaskResult, TxnOutcome,
};
use flatbed_coordinator_core::page::PageRule;
use flatbed_coordinator_core::plan::Sizing;
use flatbed_coordinator_core::schedule::{Ended, Lease, Progress, ScheduleSettings, Scheduler};
use flatbed_types::job::{JobRecord, JobState, ObjectPointer, SourcePin};
use flatbed_types::task::{Plan, TaskKind};
use flatbed_types::{
    AttemptId, ClientId, Codec, Epoch, ExportRequest, Instant, JobId, Level, SessionId, WorkerId, caps,
};

use crate::nation::Nation;
use crate::store::Store;
use crate::work::{Draw, Extract, merged};

const SOURCE: &str = "postgres://replica";
/// Where the wall clock stands when the run begins.
const EPOCH_MS: i64 = 1_800_000_000_000;
/// Decisions are made at most this often, as an actor that drains its inbox would.
const DECIDE_MS: u64 = 10;
const TICK_MS: u64 = 500;
/// A killed worker is back after this.
const RESTART_MS: u64 = 10_000;
const PLAN_MS: u64 = 60_000;
const RESOLVE_MS: u64 = 60_000;
/// No run takes longer.
const LIMIT_MS: u64 = 60 * 86_400_000;

#[derive(Debug)]
pub struct Options {
    pub members: u64,
    pub workers: u64,
    pub rate: u64,
    pub target_mib: u64,
    pub kills_per_minute: u64,
    pub hung: u64,
    pub slow: u64,
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        let (members, workers, rate, target_mib) = (330_000_000, 5_000, 16, 320);
        Options { members, workers, rate, target_mib, kills_per_minute: 50, hung: 5, slow: 100, seed: 1 }
    }
}

enum Event {
    Feed(Box<Input>),
    Grant(usize, SessionId, Box<GrantSpec>),
    /// A segment is full; the number says whether it still is the one.
    Seal(usize, AttemptId, u32),
    /// A plan, resolve or merge task is done.
    Finished(usize, AttemptId),
    Cut(usize, AttemptId),
    Beat(usize),
    Kill,
    Restart(usize),
    Decide,
    Tick,
}

impl Event {
    fn feed(input: Input) -> Event {
        Event::Feed(Box::new(input))
    }
}

enum Work {
    Extract(Extract),
    Other(Box<GrantSpec>),
}

impl Work {
    fn spec(&self) -> &GrantSpec {
        match self {
            Work::Extract(extract) => &extract.spec,
            Work::Other(spec) => spec,
        }
    }
}

struct Worker {
    id: WorkerId,
    session: SessionId,
    rate: f64,
    is_up: bool,
    /// Grants until it hangs.
    hangs_after: Option<u32>,
    is_offered: bool,
    work: Option<Work>,
}

/// Processor time spent in the coordinator's decisions.
#[derive(Default)]
struct Spent {
    job: Duration,
    decide: Duration,
    reports: Duration,
    decisions: u64,
    heartbeats: u64,
    longest_step: (Duration, &'static str),
    longest_decision: Duration,
}

pub struct World {
    options: Options,
    nation: Nation,
    draw: Draw,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    waiting: BTreeMap<u64, Event>,
    numbered: u64,
    job: Job,
    scheduler: Scheduler,
    store: Store,
    workers: Vec<Worker>,
    replies: BTreeMap<ReplyId, (usize, AttemptId, bool)>,
    is_deciding: bool,
    client: ClientId,
    actions: BTreeMap<&'static str, u64>,
    states: Vec<(u64, JobState)>,
    first_grant: Option<u64>,
    task_ends: Vec<u64>,
    kills: u64,
    refused: u64,
    spent: Spent,
}

impl World {
    pub fn new(options: Options) -> World {
        let mut draw = Draw(options.seed);
        let worker = |number: u64| {
            let spread = 0.75 + draw.below(500) as f64 / 1_000.0;
            let slow = if number < options.slow { 8.0 } else { 1.0 };
            let is_hung = (options.slow..options.slow + options.hung).contains(&number);
            Worker {
                id: format!("wrk_{number:05}").parse().expect("a worker's name"),
                session: SessionId(u128::from(number) + 1),
                rate: options.rate as f64 * 1_000.0 * spread / slow,
                is_up: true,
                hangs_after: is_hung.then_some(3),
                is_offered: false,
                work: None,
            }
        };
        let workers: Vec<Worker> = (0..options.workers).map(worker).collect();
        let client: ClientId = "nation".parse().expect("a client's name");
        let request = ExportRequest::everything(Level::Patient);
        let now = Instant::from_millis(EPOCH_MS);
        let record = JobRecord::new(JobId(1), client.clone(), request, Codec::Gzip, now);
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
        let settings = Settings {
            sizing: Sizing { target_bytes: options.target_mib << 20 },
            retention_ms: 86_400_000,
            max_files: caps::MAX_FILES,
            fold_commits: caps::FOLD_COMMITS,
            pages: PageRule::default(),
        };
        World {
            nation: Nation { members: options.members },
            now: 0,
            events: BinaryHeap::new(),
            waiting: BTreeMap::new(),
            numbered: 0,
            job: Job::load(stored, Epoch(1), "flatbed/national/job".to_owned(), settings),
            scheduler: Scheduler::new(ScheduleSettings::default()),
            store: Store::default(),
            workers,
            replies: BTreeMap::new(),
            is_deciding: false,
            client,
            actions: BTreeMap::new(),
            states: Vec::new(),
            first_grant: None,
            task_ends: Vec::new(),
            kills: 0,
            refused: 0,
            spent: Spent::default(),
            draw,
            options,
        }
    }

    fn after(&mut self, delay_ms: u64, event: Event) {
        self.numbered += 1;
        self.events.push(Reverse((self.now + delay_ms, self.numbered)));
        self.waiting.insert(self.numbered, event);
    }

    /// Until the job has ended. Whether it is complete.
    pub fn run(&mut self) -> bool {
        self.after(0, Event::feed(Input::Start));
        self.after(TICK_MS, Event::Tick);
        self.after(60_000, Event::Kill);
        for worker in 0..self.workers.len() {
            let phase = self.draw.below(caps::HEARTBEAT_MILLIS);
            self.after(phase, Event::Beat(worker));
        }
        while let Some(Reverse((at, number))) = self.events.pop() {
            self.now = at;
            if let Some(event) = self.waiting.remove(&number) {
                self.handle(event);
            }
            let state = self.job.durable_record().state;
            if matches!(state, JobState::Complete | JobState::Failed) || self.now > LIMIT_MS {
                return state == JobState::Complete;
            }
        }
        false
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Feed(input) => self.feed(*input),
            Event::Grant(worker, session, spec) => self.granted(worker, session, spec),
            Event::Seal(worker, attempt, plan) => self.seal(worker, attempt, plan),
            Event::Finished(worker, attempt) => self.finished(worker, attempt),
            Event::Cut(worker, attempt) => self.cut(worker, attempt),
            Event::Beat(worker) => self.beat(worker),
            Event::Kill => self.kill(),
            Event::Restart(worker) => {
                self.workers[worker].is_up = true;
                self.workers[worker].session.0 += 1_000_000;
                self.want_decision();
            }
            Event::Decide => {
                self.is_deciding = false;
                self.decide();
            }
            Event::Tick => {
                self.feed(Input::Tick);
                self.want_decision();
                self.after(TICK_MS, Event::Tick);
            }
        }
    }

    fn want_decision(&mut self) {
        if !self.is_deciding {
            self.is_deciding = true;
            self.after(DECIDE_MS, Event::Decide);
        }
    }

    fn feed(&mut self, input: Input) {
        let now = Instant::from_millis(EPOCH_MS + i64::try_from(self.now).unwrap_or(i64::MAX));
        let mut out = Vec::new();
        let what = match &input {
            Input::Commit { .. } => "commit",
            Input::Complete { .. } => "complete",
            Input::TxnDone(_) => "transaction done",
            Input::DraftRead(_) => "draft read",
            Input::ObjectWritten(_) => "object written",
            Input::ObjectsVerified(_) => "objects verified",
            Input::LedgerWritten(_) => "ledger written",
            Input::SessionLost(_) => "session lost",
            _ => "another",
        };
        let began = Wall::now();
        self.job.step(now, input, &mut out);
        let took = began.elapsed();
        self.spent.job += took;
        self.spent.longest_step = self.spent.longest_step.max((took, what));
        for output in out {
            self.perform(output);
        }
    }

    fn perform(&mut self, output: Output) {
        let written = |key: &str| ObjectPointer { key: key.to_owned(), sha256: [7; 32], size: 1 << 20 };
        match output {
            Output::Propose(txn) => {
                self.store.apply(txn);
                let delay = 3 + self.draw.below(6);
                self.after(delay, Event::feed(Input::TxnDone(TxnOutcome::Applied)));
            }
            Output::Grant(holder, spec) => self.send_grant(&holder, spec),
            Output::Revoke(holder, attempt) => {
                if let Some(worker) = self.worker_of(holder.session) {
                    self.release(worker, attempt, Ended::Revoked);
                }
            }
            Output::Reply(reply, answer) => self.reply(reply, answer),
            Output::ReadDraft(_) => {
                let surveys = self.nation.surveys();
                self.after(2_000, Event::feed(Input::DraftRead(Ok(surveys))));
            }
            Output::WritePlan(_, Plan { tasks, .. }) => {
                println!("{:>9} s: a plan of {} tasks", self.now / 1_000, tasks.len());
                self.after(500, Event::feed(Input::ObjectWritten(Ok(written("plan")))));
            }
            Output::WriteMergePlan(plan) => {
                let files: usize = plan.tasks.iter().map(|task| task.inputs.len()).sum();
                println!("{:>9} s: {} merge tasks of {files} files", self.now / 1_000, plan.tasks.len());
                self.after(500, Event::feed(Input::ObjectWritten(Ok(written("merges")))));
            }
            Output::WriteLedger(..) => {
                self.after(150, Event::feed(Input::LedgerWritten(Ok(written("ledger")))));
            }
            Output::WritePage(..) => {
                self.after(150, Event::feed(Input::PageWritten(Ok(written("page")))));
            }
            Output::VerifyObjects(objects) => {
                println!("{:>9} s: {} objects to verify", self.now / 1_000, objects.len());
                self.after(10_000, Event::feed(Input::ObjectsVerified(Ok(0))));
            }
            Output::WriteManifest(manifest) => {
                println!("{:>9} s: a manifest of {} entries", self.now / 1_000, manifest.entries.len());
                self.after(1_000, Event::feed(Input::ObjectWritten(Ok(written("manifest")))));
            }
            Output::StateChanged(state) => {
                println!("{:>9} s: {state:?}", self.now / 1_000);
                self.states.push((self.now, state));
            }
            Output::DeleteObjects | Output::Lost | Output::Released | Output::Forget => {}
        }
    }

    fn worker_of(&self, session: SessionId) -> Option<usize> {
        let number = usize::try_from((session.0 - 1) % 1_000_000).ok()?;
        (self.workers.get(number)?.session == session).then_some(number)
    }

    fn send_grant(&mut self, holder: &Holder, spec: Box<GrantSpec>) {
        let Some(worker) = self.worker_of(holder.session) else { return };
        if !self.workers[worker].is_up || !self.job.is_leased(spec.attempt) {
            return;
        }
        let lease = lease(&spec, holder.session);
        self.scheduler.attempt_began(self.now, &lease);
        self.after(1, Event::Grant(worker, holder.session, spec));
    }

    fn granted(&mut self, number: usize, session: SessionId, spec: Box<GrantSpec>) {
        let worker = &mut self.workers[number];
        if worker.session != session || !worker.is_up {
            return;
        }
        worker.is_offered = false;
        self.first_grant.get_or_insert(self.now);
        let hangs = worker.hangs_after.is_some_and(|grants| grants == 0);
        worker.hangs_after = worker.hangs_after.map(|grants| grants.saturating_sub(1));
        let rate = worker.rate;
        let attempt = spec.attempt;
        let takes = match spec.kind {
            TaskKind::Extract(lane) => {
                let extract = Extract::new(spec, lane, self.nation.size(lane), rate, hangs, self.now);
                self.workers[number].work = Some(Work::Extract(extract));
                return self.plan_seal(number);
            }
            TaskKind::Plan => PLAN_MS,
            TaskKind::Resolve => RESOLVE_MS,
            TaskKind::Merge(_) => {
                let bytes: u64 = spec.merge_inputs.iter().map(|input| input.output.raw_bytes).sum();
                (bytes as f64 / rate) as u64
            }
        };
        self.workers[number].work = Some(Work::Other(spec));
        self.after(takes, Event::Finished(number, attempt));
    }

    fn plan_seal(&mut self, worker: usize) {
        let Some(Work::Extract(extract)) = &self.workers[worker].work else { return };
        let Some(at) = extract.seals_at() else { return };
        let event = Event::Seal(worker, extract.spec.attempt, extract.plan);
        self.after(at.saturating_sub(self.now), event);
    }

    fn seal(&mut self, worker: usize, attempt: AttemptId, plan: u32) {
        let Some(Work::Extract(extract)) = &mut self.workers[worker].work else { return };
        if extract.spec.attempt != attempt || extract.plan != plan {
            return;
        }
        let (commit, is_last) = extract.seal(self.now, &mut self.draw);
        let token = extract.spec.token;
        if !is_last {
            self.plan_seal(worker);
        }
        let reply = self.expect_reply(worker, attempt, is_last);
        self.feed(Input::Commit { reply, commit, token });
    }

    fn expect_reply(&mut self, worker: usize, attempt: AttemptId, is_last: bool) -> ReplyId {
        self.numbered += 1;
        self.replies.insert(self.numbered, (worker, attempt, is_last));
        self.numbered
    }

    fn finished(&mut self, worker: usize, attempt: AttemptId) {
        let Some(Work::Other(spec)) = &self.workers[worker].work else { return };
        if spec.attempt != attempt {
            return;
        }
        let (task, token) = (spec.task, spec.token);
        let input = match spec.kind {
            TaskKind::Merge(of) => {
                let commit = merged(spec, of, &mut self.draw);
                let reply = self.expect_reply(worker, attempt, true);
                Input::Commit { reply, commit, token }
            }
            TaskKind::Plan | TaskKind::Extract(_) => {
                let result = TaskResult::Plan(PlanResult {
                    transaction_time: Instant::from_millis(EPOCH_MS),
                    pin: SourcePin { source: SOURCE.to_owned(), snapshot: "frozen".to_owned() },
                    draft: ObjectPointer { key: "draft".to_owned(), sha256: [7; 32], size: 1 },
                    patients: self.options.members,
                    roster: None,
                    exclusions: None,
                    files: Vec::new(),
                });
                let reply = self.expect_reply(worker, attempt, true);
                Input::Complete { reply, task, attempt, token, result }
            }
            TaskKind::Resolve => {
                println!("{:>9} s: {} sidecars resolved", self.now / 1_000, spec.sidecars.len());
                let keys = Some(ObjectPointer { key: "keys".to_owned(), sha256: [7; 32], size: 1 });
                let counts = Nation::referred().collect();
                let result = TaskResult::Resolve(ResolveResult { keys, counts, outcomes: Vec::new() });
                let reply = self.expect_reply(worker, attempt, true);
                Input::Complete { reply, task, attempt, token, result }
            }
        };
        self.feed(input);
    }

    fn reply(&mut self, reply: ReplyId, answer: CommitAnswer) {
        let Some((worker, attempt, is_last)) = self.replies.remove(&reply) else { return };
        match answer {
            CommitAnswer::Accepted(_) | CommitAnswer::Duplicate if is_last => {
                if let Some(Work::Extract(extract)) = &self.workers[worker].work
                    && extract.spec.attempt == attempt
                    && extract.spec.round == 0
                {
                    self.task_ends.push(self.now);
                }
                self.release(worker, attempt, Ended::Done);
            }
            CommitAnswer::Accepted(_) | CommitAnswer::Duplicate => {}
            CommitAnswer::Refused(_) => {
                self.refused += 1;
                self.release(worker, attempt, Ended::Revoked);
                self.feed(Input::AttemptLost(attempt));
            }
            CommitAnswer::Retry => {
                // Only the machine that is handed over says so to commits; a plan is asked for again.
                self.after(1_000, Event::Finished(worker, attempt));
            }
        }
    }

    fn release(&mut self, worker: usize, attempt: AttemptId, how: Ended) {
        let at_work = &mut self.workers[worker].work;
        if at_work.as_ref().is_some_and(|work| work.spec().attempt == attempt) {
            *at_work = None;
        }
        self.scheduler.attempt_ended(self.now, JobId(1), attempt, how);
        self.want_decision();
    }

    fn cut(&mut self, worker: usize, attempt: AttemptId) {
        let Some(Work::Extract(extract)) = &mut self.workers[worker].work else { return };
        if extract.spec.attempt != attempt {
            return;
        }
        let at = extract.cut(self.now);
        self.scheduler.cut_answered(self.now, JobId(1), attempt, at.is_some());
        *self.actions.entry(if at.is_some() { "cuts made" } else { "cuts refused" }).or_default() += 1;
        if let Some(at) = at {
            self.plan_seal(worker);
            self.feed(Input::Truncate { attempt, at });
            self.want_decision();
        }
    }

    fn beat(&mut self, number: usize) {
        let worker = &self.workers[number];
        if let Some(work) = worker.work.as_ref().filter(|_| worker.is_up) {
            let progress = match work {
                Work::Extract(extract) => extract.progress(self.now),
                Work::Other(_) => Progress::default(),
            };
            let lease = lease(work.spec(), worker.session);
            let began = Wall::now();
            self.scheduler.report(self.now, &lease, progress);
            self.spent.reports += began.elapsed();
            self.spent.heartbeats += 1;
        }
        self.after(caps::HEARTBEAT_MILLIS, Event::Beat(number));
    }

    fn kill(&mut self) {
        if self.options.kills_per_minute == 0 {
            return;
        }
        let victim = self.draw.below(self.options.workers) as usize;
        let worker = &mut self.workers[victim];
        if worker.is_up {
            (worker.is_up, worker.is_offered, worker.work) = (false, false, None);
            self.kills += 1;
            let session = worker.session;
            self.scheduler.session_ended(self.now, session);
            self.feed(Input::SessionLost(session));
            self.after(RESTART_MS, Event::Restart(victim));
            self.want_decision();
        }
        self.after(60_000 / self.options.kills_per_minute, Event::Kill);
    }
}

fn lease(spec: &GrantSpec, session: SessionId) -> Lease<'static> {
    Lease {
        job: JobId(1),
        attempt: spec.attempt,
        task: spec.task,
        session,
        source: SOURCE,
        divisible: matches!(spec.kind, TaskKind::Extract(_)),
    }
}
