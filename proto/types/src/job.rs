//! The job record: what outlives every process.

use crate::attachment::AttachmentSecret;
use crate::consent::{ConsentRule, Exclusions};
use crate::{ClientId, Codec, ErrorCode, ExportRequest, Instant, JobId};

/// Where a job stands. `coordination.md` section 6 has the diagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobState {
    /// The moment, the lanes and the roster are being fixed.
    Planning,
    /// Tasks run.
    Running,
    /// All tasks of a round are done; the supporting resources they refer to are being listed.
    Resolving,
    /// All rows are committed; small files are being joined.
    Merging,
    /// All tasks are done; the manifest is being written.
    Finalizing,
    /// The manifest is written and never changes.
    Complete,
    /// The job ended without a result.
    Failed,
    /// A client or operator stopped it before it was complete.
    Cancelled,
    /// Its objects are being deleted.
    Deleting,
    /// Nothing is left but this record.
    Gone,
}

impl JobState {
    /// Every state, in the order of a job's life.
    pub const ALL: [JobState; 10] = [
        JobState::Planning,
        JobState::Running,
        JobState::Resolving,
        JobState::Merging,
        JobState::Finalizing,
        JobState::Complete,
        JobState::Failed,
        JobState::Cancelled,
        JobState::Deleting,
        JobState::Gone,
    ];

    /// The stable name, for people, JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            JobState::Planning => "planning",
            JobState::Running => "running",
            JobState::Resolving => "resolving",
            JobState::Merging => "merging",
            JobState::Finalizing => "finalizing",
            JobState::Complete => "complete",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
            JobState::Deleting => "deleting",
            JobState::Gone => "gone",
        }
    }

    /// Whether work on the result has ended, one way or the other.
    pub fn is_terminal(self) -> bool {
        match self {
            JobState::Planning
            | JobState::Running
            | JobState::Resolving
            | JobState::Merging
            | JobState::Finalizing => false,
            JobState::Complete
            | JobState::Failed
            | JobState::Cancelled
            | JobState::Deleting
            | JobState::Gone => true,
        }
    }
}

/// A pointer to an immutable object of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectPointer {
    /// The object's key below the output root.
    pub key: String,
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
    /// Its size in bytes.
    pub size: u64,
}

/// What a source is and which moment of it is exported (`decisions.md` 8).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourcePin {
    /// The source's address without secrets.
    pub source: String,
    /// The state of the source: the same snapshot has the same fingerprint.
    pub snapshot: String,
}

/// Rows and bytes, before compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Volume {
    /// Rows.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobError {
    /// The class of the error.
    pub code: ErrorCode,
    /// What was wrong and what to do, for people; without resource content, paths or addresses.
    pub message: String,
}

/// Everything about a job but its tasks and commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRecord {
    /// The job.
    pub id: JobId,
    /// Who started it.
    pub client: ClientId,
    /// What was asked for.
    pub request: ExportRequest,
    /// The kick-off URL as called; for the manifest's `request`.
    pub request_url: String,
    /// How output rests.
    pub codec: Codec,
    /// Where the job stands.
    pub state: JobState,
    /// When it was started.
    pub created: Instant,
    /// When it reached a terminal state.
    pub ended: Option<Instant>,
    /// The moment exported; fixed with the first plan.
    pub transaction_time: Option<Instant>,
    /// The source and its state; fixed with the first plan.
    pub pin: Option<SourcePin>,
    /// The plan draft that the worker wrote (lanes, boundaries).
    pub draft: Option<ObjectPointer>,
    /// The sorted patient ids of the job, where it covers some patients only.
    pub roster: Option<ObjectPointer>,
    /// The plans, one a round.
    pub plans: Vec<ObjectPointer>,
    /// For each round from the second on, the sorted keys of supporting resources that it looks up.
    pub key_lists: Vec<ObjectPointer>,
    /// The plan of merge tasks, where small files are joined.
    pub merges: Option<ObjectPointer>,
    /// Expected rows and bytes of all rounds planned so far.
    pub estimate: Volume,
    /// Pages of the manifest that can be read, where the client takes pages. Of a complete job these are all.
    pub pages: u32,
    /// The manifest; set with `Complete`.
    pub manifest: Option<ObjectPointer>,
    /// Rows and bytes of the result; set with `Complete`.
    pub result: Volume,
    /// When the files go away.
    pub expires: Option<Instant>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// Whether, after `Gone`, everything was deleted once more when no worker could still be writing: nothing is
    /// left to do then.
    pub swept: bool,
    /// Under which URLs of attachments are given out, where the request asks for such.
    pub attachment_secret: Option<AttachmentSecret>,
    /// Which roster says whom the job leaves out, where the service has one; fixed when the job is created.
    pub consent: Option<ConsentRule>,
    /// What it said; fixed with the first plan, and there whenever `consent` is.
    pub exclusions: Option<Exclusions>,
    /// Rows that were left out because of it; set with `Complete`. For operators: how much there is of a patient is
    /// not told to clients.
    pub excluded_rows: u64,
}

impl JobRecord {
    /// A job that was just asked for: nothing is known of it but the request.
    pub fn new(
        id: JobId,
        client: ClientId,
        request: ExportRequest,
        codec: Codec,
        created: Instant,
    ) -> JobRecord {
        JobRecord {
            id,
            client,
            request,
            request_url: String::new(),
            codec,
            state: JobState::Planning,
            created,
            ended: None,
            transaction_time: None,
            pin: None,
            draft: None,
            roster: None,
            plans: Vec::new(),
            key_lists: Vec::new(),
            merges: None,
            estimate: Volume::default(),
            pages: 0,
            manifest: None,
            result: Volume::default(),
            expires: None,
            error: None,
            swept: false,
            attachment_secret: None,
            consent: None,
            exclusions: None,
            excluded_rows: 0,
        }
    }
}

/// Who asked a job to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopKind {
    /// The client or an operator: cancel when running, delete when complete.
    Delete,
    /// Retention has passed.
    Expire,
}
