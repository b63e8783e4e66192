//! One grant, from its arrival to its end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flatbed_extract::KeyList;
use flatbed_proto::Malformed;
use flatbed_proto::attachment::secret_from_wire;
use flatbed_proto::convert::{Wire, each, optional, required, u128_from};
use flatbed_proto::convert_task::kind_from_wire;
use flatbed_proto::wire::lease as wire;
use flatbed_types::attachment::AttachmentSecret;
use flatbed_types::consent::ConsentRule;
use flatbed_types::job::{JobError, ObjectPointer, SourcePin, Volume};
use flatbed_types::layout::Writer;
use flatbed_types::task::{MergeInput, TaskKind};
use flatbed_types::{
    AttemptId, ClientId, Codec, ErrorCode, ExportRequest, JobId, KeyRange, Position, SessionId, TaskId, Token,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::commit::Owner;
use crate::hub::{Outgoing, truncated};
use crate::upload::ObjectBlocks;
use crate::{Context, extract, internal, io_error, merge, planning, resolve};

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
    pub merge_inputs: Vec<MergeInput>,
    pub root: String,
    pub codec: Codec,
    pub file_bytes: u64,
    pub seal_bytes: u64,
    pub seal_ms: u64,
    pub attachment_secret: Option<AttachmentSecret>,
    /// The client that the job is for.
    pub client: Option<ClientId>,
    /// Which roster says whom the job leaves out.
    pub consent: Option<ConsentRule>,
    /// The list of these; absent for the plan task.
    pub exclusions: Option<ObjectPointer>,
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
            merge_inputs: each(message.merge_inputs)?,
            root: output.root,
            codec: Codec::from_wire(output.codec)?,
            file_bytes: output.file_bytes,
            seal_bytes: output.seal_bytes,
            seal_ms: output.seal_ms,
            attachment_secret: secret_from_wire(&message.attachment_secret)?,
            client: match message.client.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| Malformed("grant.client"))?),
            },
            consent: optional(message.consent)?,
            exclusions: optional(message.exclusions)?,
        })
    }

    /// What makes names of this attempt's objects its own.
    pub fn writer(&self, segment: u32) -> Writer {
        Writer { task: self.task, attempt: self.attempt, segment }
    }
}

/// How an attempt stands.
#[derive(Default)]
struct Standing {
    /// Written since it began and committed.
    committed: Volume,
    /// Written and not committed yet.
    uncommitted: Volume,
    /// Bytes that remain, as the source estimates; 0 when unknown.
    left_bytes: u64,
    note: String,
}

/// An attempt: how it stands, for heartbeats, and what is wanted of it. The sessions and the thread of its slot meet
/// here.
pub(crate) struct Running {
    pub grant: Grant,
    pub owner: Owner,
    /// Nothing of it will be accepted any more.
    pub revoked: CancellationToken,
    /// Commit what is written and end.
    pub drain: CancellationToken,
    standing: Mutex<Standing>,
    /// Milliseconds after which a segment is sealed: as granted, or as told since.
    seal_ms: AtomicU64,
    /// Who wants to have the end of its range, and waits for an answer.
    cuts: Mutex<Vec<Outgoing>>,
}

impl Running {
    /// An attempt that the coordinator at this address has granted.
    pub fn new(grant: Grant, from: &str, drain: CancellationToken) -> Running {
        Running {
            seal_ms: AtomicU64::new(grant.seal_ms),
            grant,
            owner: Owner::new(from),
            revoked: CancellationToken::new(),
            drain,
            standing: Mutex::default(),
            cuts: Mutex::default(),
        }
    }

    /// What tells it from all others: attempts are numbered by job.
    pub fn id(&self) -> (JobId, AttemptId) {
        (self.grant.job, self.grant.attempt)
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_uncommitted(&self, volume: Volume) {
        self.standing().uncommitted = volume;
    }

    /// What was written counts.
    pub fn set_committed(&self) {
        let mut standing = self.standing();
        let Volume { rows, bytes } = std::mem::take(&mut standing.uncommitted);
        standing.committed.rows += rows;
        standing.committed.bytes += bytes;
    }

    /// Milliseconds after which a segment is sealed.
    pub fn seal_ms(&self) -> u64 {
        self.seal_ms.load(Ordering::Relaxed)
    }

    /// The coordinator wants segments to be sealed after so many milliseconds from now on.
    pub fn set_seal_ms(&self, millis: u64) {
        self.seal_ms.store(millis, Ordering::Relaxed);
    }

    pub fn set_left(&self, bytes: u64) {
        self.standing().left_bytes = bytes;
    }

    pub fn set_note(&self, note: String) {
        self.standing().note = note;
    }

    /// For a heartbeat.
    pub fn report(&self) -> wire::AttemptReport {
        let Standing { committed, uncommitted, left_bytes, note } = &*self.standing();
        let written =
            Volume { rows: committed.rows + uncommitted.rows, bytes: committed.bytes + uncommitted.bytes };
        wire::AttemptReport {
            job: flatbed_proto::convert::u128_bytes(self.grant.job.0),
            task: self.grant.task.0,
            attempt: self.grant.attempt.0,
            uncommitted: Some(uncommitted.to_wire()),
            note: note.clone(),
            written: Some(written.to_wire()),
            left_bytes: *left_bytes,
        }
    }

    pub fn is_revoked(&self) -> bool {
        self.revoked.is_cancelled()
    }

    /// Somebody wants to have the end of the range; the answer goes there.
    pub fn ask_for_cut(&self, answers: Outgoing) {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner).push(answers);
    }

    /// Whether somebody waits for an answer.
    pub fn is_cut_wanted(&self) -> bool {
        !self.cuts.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Tells whoever asked where the range ends now; `None`: where it did. From here on no row at or behind that
    /// place is written.
    pub fn answer_cuts(&self, at: Option<&Position>) {
        for answers in self.cuts.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A coordinator that does not hear of it finds the task unfinished, and grants the rest again.
            let _ = answers.try_send(truncated(&self.grant, at));
        }
    }

    /// Waits while no coordinator hears of this worker (`pulse`), unless the attempt is to end.
    pub fn pace(&self, context: &Context, runtime: &Handle) {
        if !context.pulse.is_lost() {
            return;
        }
        tracing::warn!(job = %self.grant.job, task = %self.grant.task, "no coordinator answers; reading pauses");
        runtime.block_on(async {
            tokio::select! {
                () = context.pulse.restored() => {}
                () = self.revoked.cancelled() => {}
                () = self.drain.cancelled() => {}
            }
        });
    }
}

/// How an attempt ended.
pub(crate) enum End {
    /// The owner of the job knows all it needs to: the task is done, or was taken back.
    Known,
    /// Before its task: it was asked to, or could not commit. What is left may be given to another.
    Unfinished,
    /// It cannot carry its task out.
    Failed(JobError),
}

/// Carries out a grant on a thread that may block.
pub(crate) async fn run(context: Arc<Context>, running: Arc<Running>) -> End {
    let runtime = Handle::current();
    let work = {
        let (context, running) = (context.clone(), running.clone());
        move || {
            // For the clock of the runtime.
            let _entered = runtime.enter();
            match running.grant.kind {
                TaskKind::Extract(lane) => extract::run(&context, &runtime, &running, lane),
                TaskKind::Plan => planning::run(&context, &runtime, &running),
                TaskKind::Resolve => resolve::run(&context, &runtime, &running),
                TaskKind::Merge(resource_type) => merge::run(&context, &runtime, &running, resource_type),
            }
        }
    };
    match context.threads.run(work).await {
        Ok(Ok(_) | Err(_)) if running.is_revoked() => End::Known,
        Ok(Ok(end)) => end,
        Ok(Err(error)) => End::Failed(error),
        Err(_) => {
            tracing::error!(job = %running.grant.job, task = %running.grant.task, "a task panicked");
            End::Failed(internal("a task ended unexpectedly"))
        }
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
