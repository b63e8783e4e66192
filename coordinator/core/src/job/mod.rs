//! One job as a state machine: `step(now, input) -> outputs`.
//!
//! ```text
//! Planning -> Running -> Finalizing -> Complete -> Deleting -> Gone
//!              |  ^          ^
//!              v  |          |         Failed / Cancelled -> Deleting -> Gone
//!           Resolving -------+         (from every state left of Complete)
//! ```
//!
//! Every transition is one fenced transaction. The machine runs ahead: a change is applied to the view at once
//! and queued; at most one transaction is in flight; what follows from a change (a grant, an answer) is an
//! *effect* that is let out only when its transaction is known to be applied. If a transaction turns out fenced,
//! another coordinator owns the job: the machine says [`Output::Lost`] and must be dropped, with all effects
//! that never got out.
//!
//! Invariants: at most one transaction in flight; effects leave in the order of their changes; the manifest and
//! plans are written as objects before the transaction that points at them; `COMPLETE` is decided against a stop
//! request by one compare in that transaction.
//!
//! It does not know encodings, stores, sessions' transport or time other than what it is told.

mod io;
mod life;
mod rounds;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, VecDeque};

use flatbed_types::job::{JobError, JobRecord, StopKind};
use flatbed_types::task::{Attempt, CommitRecord, OutputObject, TaskKind, TaskRecord};
use flatbed_types::{AttemptId, Epoch, ErrorCode, Instant, JobId, KeyRange, Position, TaskId, Token, caps};

use crate::ledger::{Allowed, Change, Commit, Ledger, OpenTask, Refusal, Stage, Verdict};
pub use io::{
    CommitAnswer, GrantSpec, Holder, Input, Op, Output, Payload, PlanResult, ReplyId, ResolveResult,
    Settings, Stored, TaskResult, Txn, TxnOutcome,
};
pub use view::JobProgress;

type JobLedger = Ledger<Position, Payload, Holder>;
type JobChange = Change<Position, Payload, Holder>;

/// The longest time that a task or object work is ever put off.
const LONGEST_DELAY_MILLIS: i64 = 60_000;

struct TaskInfo {
    kind: TaskKind,
    round: u32,
    failures: u32,
    losses: u32,
    not_before: Option<Instant>,
}

impl TaskInfo {
    fn new(kind: TaskKind, round: u32) -> TaskInfo {
        TaskInfo { kind, round, failures: 0, losses: 0, not_before: None }
    }
}

struct Group {
    ops: Vec<Op>,
    effects: Vec<Output>,
    unless_stopped: bool,
}

/// A proposed transaction.
struct InFlight {
    effects: Vec<Output>,
    record: Option<Box<JobRecord>>,
}

/// Work on objects that the machine waits for.
enum Busy {
    Drafting(Pending),
    Planning { pending: Pending, tasks: Vec<flatbed_types::task::PlannedTask> },
    Finalizing { result: flatbed_types::job::Volume },
    Deleting,
}

/// A completed plan or resolve task on its way to being durable.
struct Pending {
    replies: Vec<ReplyId>,
    task: TaskId,
    attempt: AttemptId,
    token: Token,
    result: TaskResult,
}

/// One job.
pub struct Job {
    settings: Settings,
    root: String,
    record: JobRecord,
    ledger: JobLedger,
    tasks: BTreeMap<TaskId, TaskInfo>,
    rounds: Vec<crate::progress::RoundProgress>,
    seq: u64,
    attempts: u32,
    queue: VecDeque<Group>,
    in_flight: Option<InFlight>,
    /// The record as it is in the store: what is shown.
    durable: JobRecord,
    busy: Option<Busy>,
    retry_at: Option<Instant>,
    stop: Option<StopKind>,
    waiting_for: Option<String>,
    /// Whether everything was deleted a second time.
    swept: bool,
}

impl Job {
    /// The machine of a job that was claimed in this epoch (the fence is `(epoch, 0)`). `root` is what the names
    /// of its objects start with. Follow with [`Input::Start`].
    pub fn load(stored: Stored, epoch: Epoch, root: String, settings: Settings) -> Job {
        let mut job = Job {
            settings,
            root,
            durable: stored.record.clone(),
            record: stored.record,
            ledger: Ledger::new(epoch),
            tasks: BTreeMap::new(),
            rounds: Vec::new(),
            seq: 0,
            attempts: 0,
            queue: VecDeque::new(),
            in_flight: None,
            busy: None,
            retry_at: None,
            stop: stored.stop,
            waiting_for: None,
            swept: false,
        };
        job.restore(stored.plans, stored.tasks, stored.commits);
        job
    }

    /// The job.
    pub fn id(&self) -> JobId {
        self.record.id
    }

    /// The record as it is in the store.
    pub fn durable_record(&self) -> &JobRecord {
        &self.durable
    }

    /// The stop request, as soon as it is known.
    pub fn stop_requested(&self) -> Option<StopKind> {
        self.stop
    }

    /// The one way in.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Declined { attempt, .. } => self.withdraw_all(now, |allowed| allowed.attempt == attempt),
            Input::Truncate { .. } | Input::Speculate { .. } | Input::Release => {}
            Input::LedgerWritten(_) | Input::ObjectsVerified(_) => {}
            Input::Start | Input::Tick => {}
            Input::Offer { holder, token } => self.offer(now, holder, token),
            Input::Commit { reply, commit, token } => self.commit(reply, commit, token, out),
            Input::Complete { reply, task, attempt, token, result } => {
                self.complete_task(Pending { replies: vec![reply], task, attempt, token, result }, out);
            }
            Input::Failed { attempt, token, error } => self.attempt_failed(now, attempt, token, error),
            Input::SessionLost(session) => {
                self.withdraw_all(now, |allowed| allowed.holder.session == session)
            }
            Input::AttemptLost(attempt) => self.withdraw_all(now, |allowed| allowed.attempt == attempt),
            Input::Stop(kind) => self.stop = self.stop.or(Some(kind)),
            Input::TxnDone(outcome) => self.txn_done(outcome, out),
            Input::DraftRead(draft) => self.draft_read(now, draft, out),
            Input::ObjectWritten(pointer) => self.object_written(now, pointer, out),
            Input::ObjectsDeleted(result) => self.objects_deleted(now, result),
        }
        self.advance(now, out);
        self.propose(out);
    }

    /// A task that an offer would be answered with, if any.
    pub fn waiting_task(&self, now: Instant) -> Option<TaskId> {
        let ready = |id: &TaskId| {
            let not_before = self.tasks.get(id).and_then(|info| info.not_before);
            not_before.is_none_or(|moment| is_due(moment, now))
        };
        if self.ledger.stage() != Stage::Open || self.stop.is_some() {
            return None;
        }
        let mut waiting = self.ledger.tasks().iter().filter(|(_, task)| task.allowed.is_empty());
        waiting.find(|(id, _)| ready(id)).map(|(id, _)| *id)
    }

    /// The attempts that may commit, with their holders.
    pub fn leases(&self) -> impl Iterator<Item = (AttemptId, &Holder)> {
        self.ledger.tasks().values().flat_map(|task| &task.allowed).map(|a| (a.attempt, &a.holder))
    }

    /// The objects that commits name, by nonce.
    pub fn committed_objects(&self) -> impl Iterator<Item = &OutputObject> {
        self.ledger.commits().values().flat_map(|commit| &commit.payload.outputs)
    }

    fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.queue.is_empty()
    }

    fn offer(&mut self, now: Instant, holder: Holder, token: Token) {
        let Some(id) = self.waiting_task(now) else { return };
        let Some(attempt) = AttemptId::new(self.ledger.epoch, self.attempts) else { return };
        let allowed = Allowed { attempt, token, holder: holder.clone() };
        let Some(changes) = self.ledger.grant(id, allowed, false) else { return };
        let (Some(info), Some(task)) = (self.tasks.get(&id), self.ledger.tasks().get(&id)) else { return };
        let (kind, round) = (info.kind, info.round);
        let range = KeyRange { lo: task.lo.clone(), hi: task.hi.clone() };
        let sidecars = if kind == TaskKind::Resolve { self.sidecars(round) } else { Vec::new() };
        self.attempts += 1;
        self.waiting_for = None;
        let spec =
            GrantSpec { task: id, attempt, token, kind, range, round, sidecars, merge_inputs: Vec::new() };
        self.write(changes, vec![Output::Grant(holder, Box::new(spec))]);
    }

    fn commit(&mut self, reply: ReplyId, commit: CommitRecord, token: Token, out: &mut Vec<Output>) {
        let (id, round) = (commit.task, commit.round);
        let is_extract = |info: &TaskInfo| matches!(info.kind, TaskKind::Extract(_)) && info.round == round;
        let fits = self.tasks.get(&id).is_some_and(is_extract);
        // A repeated commit is recognised first, whatever became of its task (`decisions.md` 1).
        match self.ledger.commit(to_ledger(commit), token) {
            Verdict::Accept { .. } if !fits => {
                let refused = CommitAnswer::Refused(Refusal::NotAllowed);
                self.after_writes(Output::Reply(reply, refused), out);
            }
            Verdict::Accept { changes, hi } => {
                if let Some(info) = self.tasks.get_mut(&id) {
                    (info.failures, info.losses, info.not_before) = (0, 0, None);
                }
                self.count_commit(round, &changes);
                self.write(changes, vec![Output::Reply(reply, CommitAnswer::Accepted(hi))]);
            }
            // It may be on its way in a transaction that is not known to be applied: answer behind that.
            Verdict::Duplicate => self.after_writes(Output::Reply(reply, CommitAnswer::Duplicate), out),
            Verdict::Refuse(refusal) => {
                self.after_writes(Output::Reply(reply, CommitAnswer::Refused(refusal)), out);
            }
        }
    }

    fn attempt_failed(&mut self, now: Instant, attempt: AttemptId, token: Token, error: JobError) {
        let holds = |task: &OpenTask<Position, Holder>| {
            task.allowed.iter().any(|a| a.attempt == attempt && a.token == token)
        };
        let Some(id) = self.ledger.tasks().iter().find(|(_, task)| holds(task)).map(|(id, _)| *id) else {
            return;
        };
        let Some(changes) = self.ledger.withdraw(id, attempt) else { return };
        let Some(info) = self.tasks.get_mut(&id) else { return };
        // What cannot be reached may come back: it costs time, not a try.
        if !error.code.is_retryable() {
            info.failures += 1;
        }
        let last = info.failures >= caps::MAX_TASK_FAILURES || is_final(error.code);
        let delay = 1_000_i64 << info.failures.min(5);
        info.not_before = Some(now.plus_millis(delay));
        self.waiting_for = Some(error.message.clone());
        self.write(changes, Vec::new());
        if last {
            self.fail(now, error);
        }
    }

    fn withdraw_all(&mut self, now: Instant, is_lost: impl Fn(&Allowed<Holder>) -> bool) {
        let lost_of = |(id, task): (&TaskId, &OpenTask<Position, Holder>)| {
            let lost = task.allowed.iter().find(|allowed| is_lost(allowed))?;
            Some((*id, lost.attempt))
        };
        let lost: Vec<(TaskId, AttemptId)> = self.ledger.tasks().iter().filter_map(lost_of).collect();
        for (id, attempt) in lost {
            let Some(changes) = self.ledger.withdraw(id, attempt) else { continue };
            let Some(info) = self.tasks.get_mut(&id) else { continue };
            info.losses += 1;
            let losses = info.losses;
            // A few losses are the life of a cluster; a row that kills whoever reads it must not do so for ever.
            if let Some(beyond) = losses.checked_sub(caps::FREE_TASK_LOSSES).filter(|beyond| *beyond > 0) {
                info.not_before = Some(now.plus_millis(1_000 << beyond.min(5)));
            }
            self.write(changes, Vec::new());
            if losses >= caps::MAX_TASK_LOSSES {
                let message = format!("{losses} workers were lost while they worked on one task");
                self.fail(now, JobError { code: ErrorCode::SourceFailed, message });
            }
        }
    }

    /// Applies changes to the view and queues them for the store, with what follows from them.
    fn write(&mut self, changes: Vec<JobChange>, effects: Vec<Output>) {
        let ops = changes.iter().flat_map(|change| self.ops_of(change)).collect();
        for change in &changes {
            self.ledger.apply(change);
        }
        self.queue.push_back(Group { ops, effects, unless_stopped: false });
    }

    fn ops_of(&self, change: &JobChange) -> Vec<Op> {
        match change {
            Change::PutTask(id, task) => {
                self.tasks.get(id).map(|info| Op::PutTask(*id, to_record(info, task))).into_iter().collect()
            }
            Change::DeleteTask(id) => vec![Op::DeleteTask(*id)],
            Change::PutCommit(number, commit) => vec![Op::PutCommit(*number, from_ledger(commit))],
            Change::SetStage(_) => vec![Op::DeleteTasks],
        }
    }

    /// Lets an effect out behind all writes made so far.
    fn after_writes(&mut self, effect: Output, out: &mut Vec<Output>) {
        if let Some(group) = self.queue.back_mut() {
            group.effects.push(effect);
        } else if let Some(in_flight) = &mut self.in_flight {
            in_flight.effects.push(effect);
        } else {
            out.push(effect);
        }
    }

    fn propose(&mut self, out: &mut Vec<Output>) {
        if self.in_flight.is_some() {
            return;
        }
        let (mut ops, mut effects, mut unless_stopped) = (Vec::new(), Vec::new(), false);
        while let Some(group) = self.queue.front() {
            // A transaction that a stop request may refuse stands alone: it is undone as a whole.
            let alone = group.unless_stopped && !ops.is_empty();
            if alone || unless_stopped || ops.len() + group.ops.len() > caps::MAX_CHANGES_PER_TXN * 2 {
                break;
            }
            unless_stopped = group.unless_stopped;
            if let Some(group) = self.queue.pop_front() {
                ops.extend(group.ops);
                effects.extend(group.effects);
            }
        }
        if ops.is_empty() {
            out.extend(effects);
            return;
        }
        let put = |op: &Op| if let Op::PutJob(record) = op { Some(record.clone()) } else { None };
        let record = ops.iter().rev().find_map(put);
        self.in_flight = Some(InFlight { effects, record });
        out.push(Output::Propose(Txn { epoch: self.ledger.epoch, seq: self.seq, ops, unless_stopped }));
    }

    fn txn_done(&mut self, outcome: TxnOutcome, out: &mut Vec<Output>) {
        let Some(InFlight { effects, record }) = self.in_flight.take() else { return };
        match outcome {
            TxnOutcome::Applied => {
                self.seq += 1;
                if let Some(record) = record {
                    self.durable = *record;
                }
                out.extend(effects);
            }
            TxnOutcome::StopExists(kind) => {
                retry_replies(effects, out);
                self.undo_complete(kind);
            }
            TxnOutcome::Fenced => {
                for group in std::mem::take(&mut self.queue) {
                    retry_replies(group.effects, out);
                }
                retry_replies(effects, out);
                out.push(Output::Lost);
            }
        }
    }
}

/// Whether a moment to wait for has come. One that lies further ahead than anything is ever put off was set by a
/// clock that has been set back since.
fn is_due(moment: Instant, now: Instant) -> bool {
    moment <= now || moment > now.plus_millis(LONGEST_DELAY_MILLIS)
}

/// Whether an error means that no other try can end differently.
fn is_final(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::SourceFailed
            | ErrorCode::SourceChanged
            | ErrorCode::Invalid
            | ErrorCode::NotFound
            | ErrorCode::NotSupported
    )
}

fn retry_replies(effects: Vec<Output>, out: &mut Vec<Output>) {
    for effect in effects {
        if let Output::Reply(reply, _) = effect {
            out.push(Output::Reply(reply, CommitAnswer::Retry));
        }
    }
}

fn to_record(info: &TaskInfo, task: &OpenTask<Position, Holder>) -> TaskRecord {
    let attempt = |allowed: &Allowed<Holder>| Attempt {
        id: allowed.attempt,
        token: allowed.token,
        worker: allowed.holder.worker.clone(),
        session: allowed.holder.session,
    };
    TaskRecord {
        kind: info.kind,
        range: KeyRange { lo: task.lo.clone(), hi: task.hi.clone() },
        allowed: task.allowed.iter().map(attempt).collect(),
        failures: info.failures,
        losses: info.losses,
    }
}

fn to_ledger(commit: CommitRecord) -> Commit<Position, Payload> {
    let CommitRecord { task, attempt, segment, round, range, outputs, rows, fingerprint, replaces } = commit;
    let payload = Payload { round, outputs, rows, fingerprint, replaces };
    Commit { task, attempt, segment, lo: range.lo, hi: range.hi, payload }
}

fn from_ledger(commit: &Commit<Position, Payload>) -> CommitRecord {
    CommitRecord {
        task: commit.task,
        attempt: commit.attempt,
        segment: commit.segment,
        round: commit.payload.round,
        range: KeyRange { lo: commit.lo.clone(), hi: commit.hi.clone() },
        outputs: commit.payload.outputs.clone(),
        rows: commit.payload.rows,
        fingerprint: commit.payload.fingerprint,
        replaces: commit.payload.replaces.clone(),
    }
}
