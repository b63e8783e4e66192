//! One grant, from its arrival to its end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flatbed_extract::KeyList;
use flatbed_proto::Malformed;
use flatbed_proto::convert::{Wire, each, optional, required, u128_from};
use flatbed_proto::convert_task::kind_from_wire;
use flatbed_proto::wire::lease as wire;
use flatbed_types::job::{JobError, ObjectPointer, SourcePin, Volume};
use flatbed_types::layout::Writer;
use flatbed_types::task::TaskKind;
use flatbed_types::{AttemptId, Codec, ErrorCode, ExportRequest, JobId, KeyRange, SessionId, TaskId, Token};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::upload::ObjectBlocks;
use crate::{Context, extract, internal, io_error, planning, resolve};

/// A grant, checked.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub session: SessionId,
    pub job: JobId,
    pub task: TaskId,
    pub attempt: AttemptId,
    pub token: Token,
    pub kind: TaskKind,
    pub range: KeyRange,
    pub request: ExportRequest,
    pub round: u32,
    pub pin: Option<SourcePin>,
    pub roster: Option<ObjectPointer>,
    pub keys: Option<ObjectPointer>,
    pub sidecars: Vec<ObjectPointer>,
    pub known_keys: Vec<ObjectPointer>,
    pub root: String,
    pub codec: Codec,
    pub file_bytes: u64,
    pub seal_bytes: u64,
    pub seal_ms: u64,
}

impl Grant {
    pub fn from_wire(message: wire::Grant) -> Result<Grant, Malformed> {
        let output = message.output.ok_or(Malformed("grant.output"))?;
        Ok(Grant {
            session: SessionId(u128_from(&message.session, "grant.session")?),
            job: JobId(u128_from(&message.job, "grant.job")?),
            task: TaskId(message.task),
            attempt: AttemptId(message.attempt),
            token: Token(message.token),
            kind: kind_from_wire(message.kind, message.lane)?,
            range: required(message.range, "grant.range")?,
            request: required(message.request, "grant.request")?,
            round: message.round,
            pin: optional(message.pin)?,
            roster: optional(message.roster)?,
            keys: optional(message.keys)?,
            sidecars: each(message.sidecars)?,
            known_keys: each(message.known_keys)?,
            root: output.root,
            codec: Codec::from_wire(output.codec)?,
            file_bytes: output.file_bytes,
            seal_bytes: output.seal_bytes,
            seal_ms: output.seal_ms,
        })
    }

    /// What makes names of this attempt's objects its own.
    pub fn writer(&self, segment: u32) -> Writer {
        Writer { task: self.task, attempt: self.attempt, segment }
    }
}

/// How an attempt stands, for heartbeats, and how it is told to end.
pub(crate) struct Running {
    pub grant: Grant,
    /// Nothing of it will be accepted any more.
    pub revoked: CancellationToken,
    /// Commit what is written and end.
    pub drain: CancellationToken,
    rows: AtomicU64,
    bytes: AtomicU64,
    note: Mutex<String>,
}

impl Running {
    pub fn new(grant: Grant, drain: CancellationToken) -> Running {
        Running {
            grant,
            revoked: CancellationToken::new(),
            drain,
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            note: Mutex::new(String::new()),
        }
    }

    pub fn set_uncommitted(&self, volume: Volume) {
        self.rows.store(volume.rows, Ordering::Relaxed);
        self.bytes.store(volume.bytes, Ordering::Relaxed);
    }

    pub fn uncommitted(&self) -> Volume {
        Volume { rows: self.rows.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    pub fn set_note(&self, note: String) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = note;
    }

    pub fn note(&self) -> String {
        self.note.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn is_revoked(&self) -> bool {
        self.revoked.is_cancelled()
    }
}

/// How an attempt ended.
pub(crate) enum End {
    /// The coordinator knows all it needs to.
    Known,
    /// It must be told.
    Failed(JobError),
}

/// Carries out a grant on a thread that may block.
pub(crate) async fn run(context: Arc<Context>, running: Arc<Running>) -> End {
    let runtime = Handle::current();
    let work = {
        let (context, running) = (context.clone(), running.clone());
        move || match running.grant.kind {
            TaskKind::Extract(lane) => extract::run(&context, &runtime, &running, lane),
            TaskKind::Plan => planning::run(&context, &runtime, &running),
            TaskKind::Resolve => resolve::run(&context, &runtime, &running),
            TaskKind::Merge(_) => Err(internal("merge tasks are not known")),
        }
    };
    match context.threads.run(work).await {
        Ok(Ok(())) => End::Known,
        Ok(Err(_)) if running.is_revoked() => End::Known,
        Ok(Err(error)) => End::Failed(error),
        Err(_) => {
            tracing::error!(job = %running.grant.job, task = %running.grant.task, "a task panicked");
            End::Failed(internal("a task ended unexpectedly"))
        }
    }
}

/// The failure to report.
pub(crate) fn failed_message(grant: &Grant, error: JobError) -> wire::Failed {
    wire::Failed {
        job: flatbed_proto::convert::u128_bytes(grant.job.0),
        task: grant.task.0,
        attempt: grant.attempt.0,
        token: grant.token.0,
        code: flatbed_proto::convert::error_code_number(error.code),
        message: error.message,
    }
}

/// Opens a key list that an object holds.
pub(crate) fn open_list(
    context: &Context,
    runtime: &Handle,
    pointer: &ObjectPointer,
) -> Result<KeyList, JobError> {
    let blocks = ObjectBlocks::new(context.objects.clone(), runtime.clone(), pointer);
    KeyList::open(Box::new(blocks)).map_err(|error| io_error("reading a list of keys", &error))
}

/// The snapshot that the job's plan was made from.
pub(crate) fn reopen(
    context: &Context,
    grant: &Grant,
) -> Result<Arc<dyn flatbed_extract::Snapshot>, JobError> {
    let pin = grant.pin.as_ref().ok_or_else(|| internal("a task without a snapshot"))?;
    if pin.source != context.source.address() {
        let message = "the task belongs to another source than this worker reads".to_owned();
        return Err(JobError { code: ErrorCode::Unavailable, message });
    }
    context.source.reopen(&pin.snapshot).map_err(crate::source_error)
}
