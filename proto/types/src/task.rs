//! Plans, tasks, attempts and commits: the records of `coordination.md` sections 3 to 7.

use crate::layout::Writer;
use crate::{AttemptId, KeyRange, Lane, Nonce, ResourceType, SessionId, TaskId, Token, WorkerId};

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskKind {
    /// Asks the source for lanes, boundaries, estimates and the moment of the export; resolves the Group into
    /// a roster object. Ends with one plan draft.
    Plan,
    /// Reads the rows of one range of one lane and commits them prefix by prefix.
    Extract(Lane),
    /// Merges the reference sidecars of one round into one sorted list of supporting keys.
    Resolve,
    /// Joins small committed files of this type into one; `OperationOutcome` stands for the outcome files.
    Merge(ResourceType),
}

/// A try at a task that may still commit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// The attempt.
    pub id: AttemptId,
    /// Its random companion; both must match.
    pub token: Token,
    /// The worker that it was granted to.
    pub worker: WorkerId,
    /// The start of that worker that it was granted to.
    pub session: SessionId,
}

/// A task that is leased, was retried, or was cut: a task as planned and never touched has no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRecord {
    /// What the task does.
    pub kind: TaskKind,
    /// What remains of it.
    pub range: KeyRange,
    /// The attempts that may commit; empty while the task waits.
    pub allowed: Vec<Attempt>,
    /// Tries in a row that failed without a commit.
    pub failures: u32,
    /// Tries in a row whose worker was lost without a commit.
    pub losses: u32,
}

/// What an output object holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutputKind {
    /// Resources.
    Data,
    /// OperationOutcomes about the export.
    Outcome,
    /// Transaction Bundles of `DELETE` entries: what was deleted from the source (MF-25).
    Deleted,
    /// Sorted `type ‖ 0x00 ‖ id` keys of supporting resources that the rows of a commit refer to.
    References,
}

/// One sealed object. Its name follows from the job, the commit and these fields (`layout::output_object`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputObject {
    /// What it holds.
    pub kind: OutputKind,
    /// The type of its rows (`OperationOutcome` for outcomes; the type of the commit's rows for references).
    pub resource_type: ResourceType,
    /// Random part of the name.
    pub nonce: Nonce,
    /// Rows.
    pub lines: u64,
    /// Bytes before compression.
    pub raw_bytes: u64,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// SHA-256 of the bytes as stored.
    pub sha256: [u8; 32],
}

/// What happened to the rows that a commit read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowCounts {
    /// Rows written.
    pub written: u64,
    /// Rows left out because the request does not ask for them.
    pub filtered: u64,
    /// Rows left out because one of their patients is not among the patients asked for.
    pub withheld: u64,
    /// Rows left out because one of their patients is on the roster of exclusions.
    pub excluded: u64,
}

impl RowCounts {
    /// Adds the counts of another commit.
    pub fn add(&mut self, other: &RowCounts) {
        self.written += other.written;
        self.filtered += other.filtered;
        self.withheld += other.withheld;
        self.excluded += other.excluded;
    }
}

/// One accepted commit: "the wanted rows of `range` are in `outputs`".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitRecord {
    /// The task.
    pub task: TaskId,
    /// The attempt that wrote the objects.
    pub attempt: AttemptId,
    /// Number of the segment within the attempt, from 0.
    pub segment: u32,
    /// The round of planning that the task belongs to.
    pub round: u32,
    /// The rows covered.
    pub range: KeyRange,
    /// The objects.
    pub outputs: Vec<OutputObject>,
    /// What happened to the rows.
    pub rows: RowCounts,
    /// Order-free fingerprint: the wrapping sum of the XXH3-128 of each line written.
    pub fingerprint: u128,
    /// For merges: the objects of earlier commits whose rows are in `outputs` from now on. Such a commit covers no
    /// rows of its own (`range` is that of its task) and `rows.written` are the rows joined.
    pub replaces: Vec<Nonce>,
}

/// A file that a merge task joins: its name follows from these (`layout::output_object`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeInput {
    /// Who wrote it.
    pub writer: Writer,
    /// What it is.
    pub output: OutputObject,
}

/// Files of one type to be joined into one, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeTask {
    /// The type.
    pub resource_type: ResourceType,
    /// The files.
    pub inputs: Vec<MergeInput>,
}

/// The merge tasks of a job. Immutable once the job points at it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MergePlan {
    /// The id of the first task; the others follow.
    pub first_task: u32,
    /// The tasks.
    pub tasks: Vec<MergeTask>,
}

/// Commits that rest in an object instead of in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoldRecord {
    /// The object: commits with their numbers.
    pub object: crate::job::ObjectPointer,
    /// The number of the first commit in it.
    pub first: u64,
    /// The number of the last; every number between is in it.
    pub last: u64,
}

/// One range of a lane as planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTask {
    /// The lane.
    pub lane: Lane,
    /// The range.
    pub range: KeyRange,
    /// Expected rows.
    pub rows: u64,
    /// Expected bytes before compression.
    pub bytes: u64,
}

/// The ranges of one round. Immutable once a job points at it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The id of the first task; the others follow.
    pub first_task: u32,
    /// The tasks.
    pub tasks: Vec<PlannedTask>,
}

/// A place in a lane with what lies between it and the next hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// A key at which the lane may be cut; the first of a lane is the start.
    pub at: crate::Position,
    /// Rows from here to the next hint.
    pub rows: u64,
    /// Bytes from here to the next hint.
    pub bytes: u64,
}

/// What the source says of one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneSurvey {
    /// The lane.
    pub lane: Lane,
    /// Where it may be cut, in order, the first at the start of the lane.
    pub hints: Vec<Hint>,
}
