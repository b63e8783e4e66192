//! One job as a state machine: `step(now, input) -> outputs`.
//!
//! ```text
//! Planning -> Running ----------> Finalizing -> Complete -> Deleting -> Gone
//!              |  ^  \               ^  ^
//!              v  |   \-> Merging ---/  |       Failed / Cancelled -> Deleting -> Gone
//!           Resolving ----^ ------------/       (from every state left of Complete)
//! ```
//!
//! Every transition is one fenced transaction. The machine runs ahead: a change is applied to the view at once
//! and queued; at most one transaction is in flight; what follows from a change (a grant, an answer) is an
//! *effect* that is let out only when its transaction is known to be applied. If a transaction turns out fenced,
//! another coordinator owns the job: the machine says [`Output::Lost`] and must be dropped, with all effects
//! that never got out.
//!
//! Told to release the job, the machine begins nothing more: what is queued becomes durable, work on objects is
//! dropped (the next owner does it again), and the last transaction gives the ownership up.
//!
//! Invariants: at most one transaction in flight; effects leave in the order of their changes; the manifest and
//! plans are written as objects before the transaction that points at them; `COMPLETE` is decided against a stop
//! request by one compare in that transaction; no input costs more than a logarithm of the number of tasks, but for
//! those that load the job, begin or end a round, or end the job.
//!
//! In reading order: `io`, this file (the queue of transactions), `attempts` (workers), `rounds` and `merging`
//! (what there is to do), `life` (from state to state), `paging`, `fold`, `index` and `restore`.
//!
//! It does not know encodings, stores, sessions' transport or time other than what it is told.

mod attempts;
mod convert;
mod fold;
mod index;
mod io;
mod life;
mod merging;
mod paging;
mod restore;
mod rounds;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, VecDeque};

use flatbed_types::job::{JobRecord, StopKind, Volume};
use flatbed_types::manifest::{Manifest, PageRecord};
use flatbed_types::task::{MergePlan, Plan, TaskKind};
use flatbed_types::{AttemptId, Epoch, Instant, JobId, KeyRange, Position, TaskId, Token, caps};

use crate::ledger::{Change, Commit, Ledger, OpenTask};
use crate::progress::RoundProgress;
use convert::{from_ledger, to_record};
use fold::Folding;
use index::Index;
pub use io::{
    CommitAnswer, GrantSpec, Holder, Input, Op, Output, Payload, PlanResult, ReplyId, ResolveResult,
    Settings, Stored, TaskResult, Txn, TxnOutcome,
};
pub use life::missing_files;
use paging::{Draft, Paging};
pub use view::JobProgress;

type JobLedger = Ledger<Position, Payload, Holder>;
type JobChange = Change<Position, Payload, Holder>;
type JobCommit = Commit<Position, Payload>;
type OpenJobTask = OpenTask<Position, Holder>;

/// The longest time that a task or object work is ever put off.
const LONGEST_DELAY_MILLIS: i64 = 60_000;

/// About so many bytes go into one transaction, below what etcd takes (1.5 MiB).
const TXN_BYTES: usize = 512 << 10;

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

/// Writes that become durable together, and what follows from them.
struct Group {
    ops: Vec<Op>,
    effects: Vec<Output>,
    unless_stopped: bool,
}

impl Group {
    fn of(ops: Vec<Op>, effects: Vec<Output>) -> Group {
        Group { ops, effects, unless_stopped: false }
    }
}

/// A proposed transaction.
struct InFlight {
    effects: Vec<Output>,
    record: Option<Box<JobRecord>>,
    /// How many commits are in it, and files of rows in these.
    commits: u64,
    files: u64,
}

/// Whether the machine works on the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// Yes.
    Owner,
    /// It ends what is queued and in flight.
    Leaving,
    /// The transaction that gives the job up is proposed, or another coordinator has taken it.
    Left,
}

/// Work on objects that the machine waits for.
enum Busy {
    Drafting(Pending),
    Planning {
        pending: Pending,
        plan: Plan,
    },
    PlanningMerges(MergePlan),
    Verifying {
        manifest: Box<Manifest>,
        result: Volume,
    },
    /// The last page of a job whose client takes pages.
    LastPage {
        manifest: Box<Manifest>,
        result: Volume,
        page: Draft,
    },
    Finalizing {
        result: Volume,
        page: Option<PageRecord>,
    },
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
    index: Index,
    rounds: Vec<RoundProgress>,
    merges: Option<MergePlan>,
    merging: RoundProgress,
    folding: Folding,
    paging: Paging,
    /// Files that no merge can make fewer, of a job that limits their size.
    lasting_files: u64,
    hold: Hold,
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
}

impl Job {
    /// The machine of a job that was claimed in this epoch (the fence is `(epoch, 0)`). `root` is what the names
    /// of its objects start with. Follow with [`Input::Start`].
    pub fn load(stored: Stored, epoch: Epoch, root: String, settings: Settings) -> Job {
        let mut job = Job {
            settings,
            root,
            durable: stored.record.clone(),
            record: stored.record.clone(),
            ledger: Ledger::new(epoch),
            tasks: BTreeMap::new(),
            index: Index::default(),
            rounds: Vec::new(),
            merges: None,
            merging: RoundProgress::default(),
            folding: Folding::default(),
            paging: Paging::default(),
            lasting_files: 0,
            hold: Hold::Owner,
            seq: 0,
            attempts: 0,
            queue: VecDeque::new(),
            in_flight: None,
            busy: None,
            retry_at: None,
            stop: stored.stop,
            waiting_for: None,
        };
        job.restore(stored);
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
        if self.hold == Hold::Owner {
            self.handle(now, input, out);
        } else {
            self.wind_down(input, out);
        }
        if self.hold == Hold::Owner {
            self.advance(now, out);
        }
        if self.hold == Hold::Leaving && self.is_idle() {
            self.hold = Hold::Left;
            self.enqueue(Group::of(vec![Op::Release], vec![Output::Released]));
        }
        self.propose(out);
    }

    fn handle(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Start | Input::Tick => {}
            Input::Broken(error) => self.fail(now, error),
            Input::Offer { holder, token } => self.offer(now, holder, token),
            Input::Commit { reply, commit, token } => self.commit(now, reply, commit, token, out),
            Input::Complete { reply, task, attempt, token, result } => {
                self.complete_task(Pending { replies: vec![reply], task, attempt, token, result }, out);
            }
            Input::Failed { attempt, token, error } => self.attempt_failed(now, attempt, token, error),
            Input::SessionLost(session) => self.session_lost(now, session),
            Input::AttemptLost(attempt) => self.attempt_lost(now, attempt),
            Input::Declined { attempt, token } => self.declined(attempt, token),
            Input::Truncate { attempt, at } => self.truncate(attempt, at),
            Input::Speculate { attempt, holder, token } => self.speculate(attempt, holder, token),
            Input::Release => self.release(out),
            Input::LedgerWritten(object) => self.ledger_written(now, object),
            Input::PageWritten(object) => self.page_written(now, object, out),
            Input::ObjectsVerified(missing) => self.objects_verified(now, missing, out),
            Input::Stop(kind) => self.stop = self.stop.or(Some(kind)),
            Input::TxnDone(outcome) => self.txn_done(outcome, out),
            Input::DraftRead(draft) => self.draft_read(now, draft, out),
            Input::ObjectWritten(pointer) => self.object_written(now, pointer, out),
            Input::ObjectsDeleted(result) => self.objects_deleted(now, result),
        }
    }

    /// Nothing is begun any more; work on objects is the next owner's.
    fn release(&mut self, out: &mut Vec<Output>) {
        self.hold = Hold::Leaving;
        if let Some(Busy::Drafting(pending) | Busy::Planning { pending, .. }) = self.busy.take() {
            out.extend(pending.replies.into_iter().map(retry));
        }
    }

    /// What reaches a machine that leaves: whoever asks is to ask the next owner, and the rest it will learn itself.
    fn wind_down(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Commit { reply, .. } | Input::Complete { reply, .. } => out.push(retry(reply)),
            Input::TxnDone(outcome) => self.txn_done(outcome, out),
            Input::Stop(kind) => self.stop = self.stop.or(Some(kind)),
            Input::Start
            | Input::Broken(_)
            | Input::Tick
            | Input::Release
            | Input::Offer { .. }
            | Input::Failed { .. }
            | Input::SessionLost(_)
            | Input::AttemptLost(_)
            | Input::Declined { .. }
            | Input::Truncate { .. }
            | Input::Speculate { .. }
            | Input::LedgerWritten(_)
            | Input::PageWritten(_)
            | Input::ObjectsVerified(_)
            | Input::DraftRead(_)
            | Input::ObjectWritten(_)
            | Input::ObjectsDeleted(_) => {}
        }
    }

    fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.queue.is_empty()
    }

    /// Applies changes to the view and queues them for the store, with what follows from them.
    fn write(&mut self, changes: Vec<JobChange>, effects: Vec<Output>) {
        let ops = changes.iter().flat_map(|change| self.ops_of(change)).collect();
        for change in &changes {
            self.apply(change);
        }
        self.enqueue(Group::of(ops, effects));
    }

    /// Queues writes whose changes the view has.
    fn enqueue(&mut self, group: Group) {
        self.queue.push_back(group);
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
        let (mut ops, mut effects, mut unless_stopped, mut bytes) = (Vec::new(), Vec::new(), false, 0);
        while let Some(group) = self.queue.front() {
            // A transaction that a stop request may refuse stands alone: it is undone as a whole.
            let alone = group.unless_stopped && !ops.is_empty();
            let weight: usize = group.ops.iter().map(weight).sum();
            let full = ops.len() + group.ops.len() > caps::MAX_CHANGES_PER_TXN * 2
                || (!ops.is_empty() && bytes + weight > TXN_BYTES);
            if alone || unless_stopped || full {
                break;
            }
            unless_stopped = group.unless_stopped;
            bytes += weight;
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
        let commits =
            ops.iter().filter_map(|op| if let Op::PutCommit(_, commit) = op { Some(commit) } else { None });
        let (commits, files) = commits.fold((0, 0), |(commits, files), commit| {
            (commits + 1, files + paging::files_of(&commit.outputs))
        });
        self.in_flight = Some(InFlight { effects, record, commits, files });
        out.push(Output::Propose(Txn { epoch: self.ledger.epoch, seq: self.seq, ops, unless_stopped }));
    }

    fn txn_done(&mut self, outcome: TxnOutcome, out: &mut Vec<Output>) {
        let Some(InFlight { effects, record, commits, files }) = self.in_flight.take() else { return };
        match outcome {
            TxnOutcome::Applied => {
                self.seq += 1;
                self.folding.applied(commits);
                self.paging.applied(files);
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
                self.hold = Hold::Left;
                out.push(Output::Lost);
            }
        }
    }
}

/// About how many bytes an operation adds to a transaction.
fn weight(op: &Op) -> usize {
    const KEY: usize = 128;
    const NUMBER: usize = 10;
    let positions = |range: &KeyRange| [&range.lo, &range.hi].map(|at| at.key().map_or(0, <[u8]>::len));
    match op {
        Op::PutTask(_, record) => {
            KEY * (1 + record.allowed.len()) + positions(&record.range).iter().sum::<usize>()
        }
        Op::PutCommit(_, commit) => {
            let outputs = commit.outputs.len() * KEY + commit.replaces.len() * NUMBER;
            KEY + outputs + positions(&commit.range).iter().sum::<usize>()
        }
        Op::PutJob(record) => KEY * (8 + record.request.patients.len()),
        Op::PutFold(..) | Op::PutPage(..) => 2 * KEY,
        Op::DeleteTask(_)
        | Op::DeleteTasks
        | Op::DeleteCommits
        | Op::DeleteCommitRange(..)
        | Op::DeletePages
        | Op::DeleteMarker
        | Op::Release
        | Op::DeleteJob => KEY,
    }
}

/// Whether a moment to wait for has come. One that lies further ahead than anything is ever put off was set by a
/// clock that has been set back since.
fn is_due(moment: Instant, now: Instant) -> bool {
    moment <= now || moment > now.plus_millis(LONGEST_DELAY_MILLIS)
}

/// To whoever waits for an answer that is not decided.
fn retry(reply: ReplyId) -> Output {
    Output::Reply(reply, CommitAnswer::Retry)
}

fn retry_replies(effects: Vec<Output>, out: &mut Vec<Output>) {
    for effect in effects {
        if let Output::Reply(reply, _) = effect {
            out.push(retry(reply));
        }
    }
}
