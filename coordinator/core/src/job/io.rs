//! What a job's machine is told and what it asks for.

use std::collections::BTreeMap;

use flatbed_types::consent::Exclusions;
use flatbed_types::job::{JobError, JobRecord, JobState, ObjectPointer, StopKind};
use flatbed_types::manifest::{Manifest, PageRecord};
use flatbed_types::task::{
    CommitRecord, FoldRecord, LaneSurvey, MergeInput, MergePlan, OutputObject, Plan, RowCounts, TaskKind,
    TaskRecord,
};
use flatbed_types::{
    AttemptId, Epoch, Instant, KeyRange, Nonce, Position, ResourceType, SessionId, TaskId, Token, WorkerId,
};

use crate::ledger::Refusal;
use crate::page::PageRule;
use crate::plan::Sizing;

/// Who holds an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The worker.
    pub worker: WorkerId,
    /// The start of it.
    pub session: SessionId,
}

/// What a commit names beside its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The round of planning.
    pub round: u32,
    /// The objects.
    pub outputs: Vec<OutputObject>,
    /// What happened to the rows.
    pub rows: RowCounts,
    /// Sum of line fingerprints.
    pub fingerprint: u128,
    /// For merges: the objects whose rows are in `outputs` from now on.
    pub replaces: Vec<Nonce>,
}

/// Identifies a call that waits for an answer; drawn by the driver.
pub type ReplyId = u64;

/// The answer to a commit or a completed plan or resolve task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitAnswer {
    /// Durable; the task now ends at this place.
    Accepted(Position),
    /// Durable before.
    Duplicate,
    /// See [`Refusal`].
    Refused(Refusal<Position>),
    /// Not decided; ask again.
    Retry,
}

/// What a plan task found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanResult {
    /// The moment.
    pub transaction_time: Instant,
    /// The source and its state.
    pub pin: flatbed_types::job::SourcePin,
    /// The draft object.
    pub draft: ObjectPointer,
    /// Patients of the source.
    pub patients: u64,
    /// The patients of the job and how many, where it covers some only.
    pub roster: Option<(ObjectPointer, u64)>,
    /// Files that are written already: OperationOutcomes about the request and the source, and what was deleted from it.
    pub files: Vec<OutputObject>,
    /// What the roster of exclusions said, where the job names one.
    pub exclusions: Option<Box<Exclusions>>,
}

/// What a resolve task found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolveResult {
    /// The new keys; `None` when there are none.
    pub keys: Option<ObjectPointer>,
    /// How many of each type.
    pub counts: BTreeMap<ResourceType, u64>,
    /// OperationOutcomes (that the limit of rounds was reached).
    pub outcomes: Vec<OutputObject>,
}

/// The result of a task that is no extract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskResult {
    /// Of the plan task.
    Plan(PlanResult),
    /// Of a resolve task.
    Resolve(ResolveResult),
}

/// What happens to a job.
#[derive(Debug)]
pub enum Input {
    /// The machine was just loaded.
    Start,
    /// Instead of `Start`: what the job rests on is gone or damaged, so that it cannot go on.
    Broken(JobError),
    /// A slot is free at this worker; answered by a grant if a task waits.
    Offer {
        /// Who.
        holder: Holder,
        /// A fresh random token.
        token: Token,
    },
    /// A worker reports rows as written.
    Commit {
        /// Where the answer goes.
        reply: ReplyId,
        /// The commit.
        commit: CommitRecord,
        /// The attempt's token.
        token: Token,
    },
    /// A worker reports the result of a plan or resolve task.
    Complete {
        /// Where the answer goes.
        reply: ReplyId,
        /// The task.
        task: TaskId,
        /// The attempt.
        attempt: AttemptId,
        /// Its token.
        token: Token,
        /// What it found.
        result: TaskResult,
    },
    /// An attempt gave up.
    Failed {
        /// The attempt.
        attempt: AttemptId,
        /// Its token.
        token: Token,
        /// Why.
        error: JobError,
    },
    /// A worker's process is gone, or silent for longer than its lease.
    SessionLost(SessionId),
    /// A worker that is there no longer works on an attempt.
    AttemptLost(AttemptId),
    /// A worker had no slot for a grant: the task waits again, and nothing is counted against it.
    Declined {
        /// The attempt.
        attempt: AttemptId,
        /// Its token.
        token: Token,
    },
    /// The holder of an attempt gives away what lies at and behind `at`: a task of its own from now on.
    Truncate {
        /// The attempt.
        attempt: AttemptId,
        /// Where its task is to end.
        at: Position,
    },
    /// A slot is free at this worker, and this attempt makes no progress: let both try.
    Speculate {
        /// The attempt that makes no progress.
        attempt: AttemptId,
        /// Who tries as well; not the holder of the first.
        holder: Holder,
        /// A fresh random token.
        token: Token,
    },
    /// Hand the job to another coordinator: end what is in flight, give the ownership up, begin nothing new.
    Release,
    /// Folded commits were written as an object.
    LedgerWritten(Result<ObjectPointer, JobError>),
    /// A page of the manifest was written, its files being in the store. An error that is not retryable says that some
    /// are not.
    PageWritten(Result<ObjectPointer, JobError>),
    /// Whether every object that the manifest is to name is in the store with its size; else how many are not.
    ObjectsVerified(Result<u64, JobError>),
    /// A stop request for the job exists.
    Stop(StopKind),
    /// The transaction in flight ended.
    TxnDone(TxnOutcome),
    /// The draft was read.
    DraftRead(Result<Vec<LaneSurvey>, JobError>),
    /// The plan or manifest was written.
    ObjectWritten(Result<ObjectPointer, JobError>),
    /// All objects of the job are deleted (`Ok`), or some are not.
    ObjectsDeleted(Result<(), JobError>),
    /// Time has passed.
    Tick,
}

/// How a transaction ended. A driver resolves unknown outcomes by proposing the same transaction again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Applied.
    Applied,
    /// Not applied: another coordinator has claimed the job.
    Fenced,
    /// Not applied: a stop request exists, and the transaction asked for none.
    StopExists(StopKind),
}

/// A typed write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// The job record.
    PutJob(Box<JobRecord>),
    /// A task record.
    PutTask(TaskId, TaskRecord),
    /// A task that is done.
    DeleteTask(TaskId),
    /// All task records.
    DeleteTasks,
    /// A commit.
    PutCommit(u64, CommitRecord),
    /// All commits and folds.
    DeleteCommits,
    /// The commits from one number to another, both included.
    DeleteCommitRange(u64, u64),
    /// A fold of commits.
    PutFold(u32, FoldRecord),
    /// A page of the manifest, from 1: a new one each time.
    PutPage(u32, PageRecord),
    /// All pages.
    DeletePages,
    /// The marker that counts the job against its client's cap.
    DeleteMarker,
    /// The owner key: another coordinator may claim the job.
    Release,
    /// Every key of the job.
    DeleteJob,
}

/// One fenced transaction: applies only if the fence is `(epoch, seq)`, and sets it to `(epoch, seq + 1)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Txn {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The fence's number before.
    pub seq: u64,
    /// The writes.
    pub ops: Vec<Op>,
    /// Also require that no stop request exists.
    pub unless_stopped: bool,
}

/// A task for a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantSpec {
    /// The task.
    pub task: TaskId,
    /// The attempt.
    pub attempt: AttemptId,
    /// Its token.
    pub token: Token,
    /// What to do.
    pub kind: TaskKind,
    /// What to read.
    pub range: KeyRange,
    /// The round of planning.
    pub round: u32,
    /// For resolve tasks: the sidecars of the round that ended.
    pub sidecars: Vec<ObjectPointer>,
    /// For merge tasks: the files to join, in this order.
    pub merge_inputs: Vec<MergeInput>,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Propose a transaction; answer with `TxnDone`.
    Propose(Txn),
    /// Send a grant.
    Grant(Holder, Box<GrantSpec>),
    /// Tell a worker to drop an attempt.
    Revoke(Holder, AttemptId),
    /// Answer a call.
    Reply(ReplyId, CommitAnswer),
    /// Read the plan draft; answer with `DraftRead`.
    ReadDraft(ObjectPointer),
    /// Write a plan of this round; answer with `ObjectWritten`.
    WritePlan(u32, Plan),
    /// Write the plan of merge tasks; answer with `ObjectWritten`.
    WriteMergePlan(MergePlan),
    /// Write these commits as the object of this fold; answer with `LedgerWritten`.
    WriteLedger(u32, Vec<(u64, CommitRecord)>),
    /// Look whether the files of this page are in the store and write it; answer with `PageWritten`.
    WritePage(u32, Box<Manifest>),
    /// Look whether these objects (key, size) are in the store; answer with `ObjectsVerified`.
    VerifyObjects(Vec<(String, u64)>),
    /// Write the manifest; answer with `ObjectWritten`.
    WriteManifest(Box<Manifest>),
    /// Delete every object of the job; answer with `ObjectsDeleted`.
    DeleteObjects,
    /// The job changed its state; for logs and metrics.
    StateChanged(JobState),
    /// Another coordinator owns the job: drop the machine.
    Lost,
    /// The job was released and may be claimed by another coordinator: drop the machine.
    Released,
    /// Nothing is left to do for the job: drop the machine. Its record stays for a while.
    Forget,
}

/// What the machine is told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Sizes of tasks.
    pub sizing: Sizing,
    /// How long finished files stay at least, in milliseconds.
    pub retention_ms: i64,
    /// Data files above which small ones are joined (`caps::MAX_FILES`).
    pub max_files: usize,
    /// Commits in the store above which they are folded (`caps::FOLD_COMMITS`).
    pub fold_commits: usize,
    /// When a page of the manifest is due, where the client takes pages.
    pub pages: PageRule,
}

/// What the store holds of a job, read at one revision after the claim.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The job.
    pub record: JobRecord,
    /// The plans that the record points at, by round.
    pub plans: Vec<Plan>,
    /// Task records.
    pub tasks: BTreeMap<TaskId, TaskRecord>,
    /// The plan of merge tasks, if the record points at one.
    pub merges: Option<MergePlan>,
    /// Commits, those of folds among them.
    pub commits: BTreeMap<u64, CommitRecord>,
    /// Folds.
    pub folds: BTreeMap<u32, FoldRecord>,
    /// Pages of the manifest.
    pub pages: BTreeMap<u32, PageRecord>,
    /// A stop request.
    pub stop: Option<StopKind>,
}
