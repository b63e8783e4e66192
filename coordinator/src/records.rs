//! Typed writes to keys and bytes and back; claiming, loading and looking at a job.

use std::collections::BTreeMap;
use std::time::Duration;

use flatbed_coordinator_core::job::{Job, Op, Stored, Txn, TxnOutcome};
use flatbed_proto::convert::Wire;
use flatbed_proto::wire::types as wire;
use flatbed_proto::{Malformed, frame};
use flatbed_types::job::{JobError, JobRecord, JobState, StopKind};
use flatbed_types::layout::{self, MetaKeys};
use flatbed_types::manifest::PageRecord;
use flatbed_types::task::{CommitRecord, FoldRecord, MergePlan, Plan, TaskRecord};
use flatbed_types::{ClientId, Epoch, Instant, JobId, TaskId, caps};
use futures::future::OptionFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream, try_join};
use tokio::time::Instant as Monotonic;

use crate::driver::Context;
use crate::store::{Compare, Entry, Outcome, Revision, StoreError, Transaction, Write};
use crate::{objects, registry};

/// How long to wait before a transaction of unknown outcome is proposed again.
const REPROPOSE: Duration = Duration::from_millis(200);

/// Objects of a job that are read at once: the largest job has some 32 folds of about a megabyte.
const OBJECTS_AT_ONCE: usize = 8;

pub(crate) fn fence_bytes(epoch: Epoch, seq: u64) -> Vec<u8> {
    let mut bytes = epoch.0.to_be_bytes().to_vec();
    bytes.extend_from_slice(&seq.to_be_bytes());
    bytes
}

fn fence_from(bytes: &[u8]) -> Result<(Epoch, u64), Malformed> {
    let words = bytes.as_chunks::<8>();
    match words {
        ([epoch, seq], []) => Ok((Epoch(u64::from_be_bytes(*epoch)), u64::from_be_bytes(*seq))),
        _ => Err(Malformed("fence")),
    }
}

fn decode<W: Wire>(bytes: &[u8]) -> Result<W, Malformed>
where
    W::Message: prost::Message + Default,
{
    W::from_wire(frame::open::<W::Message>(bytes)?)
}

fn encode<W: Wire>(value: &W) -> Vec<u8>
where
    W::Message: prost::Message,
{
    frame::seal(&value.to_wire())
}

/// The write that stores a job record.
pub(crate) fn put_job(keys: &MetaKeys, record: &JobRecord) -> Write {
    Write::Put(keys.job(record.id), encode(record))
}

/// The value of a stop request.
pub(crate) fn stop_record(kind: StopKind, at: Instant) -> Vec<u8> {
    frame::seal(&wire::StopRecord { kind: kind.to_wire(), at: at.nanos() })
}

pub(crate) fn stop_kind(bytes: &[u8]) -> Result<StopKind, Malformed> {
    StopKind::from_wire(frame::open::<wire::StopRecord>(bytes)?.kind)
}

/// What an idempotency key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdempotencyRecord {
    pub job: JobId,
    /// Hash of the request; the same key with another request is a mistake of the client.
    pub request: u128,
    pub created: Instant,
}

impl IdempotencyRecord {
    pub fn of(record: &JobRecord) -> IdempotencyRecord {
        // What a cohort says meanwhile does not make it another request.
        let asked = wire::ExportRequest { cohort: None, ..record.request.to_wire() };
        let request = prost::Message::encode_to_vec(&asked);
        let request = xxhash_rust::xxh3::xxh3_128(&request);
        IdempotencyRecord { job: record.id, request, created: record.created }
    }

    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = self.job.0.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.request.to_be_bytes());
        bytes.extend_from_slice(&self.created.nanos().to_be_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<IdempotencyRecord, Malformed> {
        let part = |range: std::ops::Range<usize>| bytes.get(range).ok_or(Malformed("idempotency record"));
        let wide = |range| -> Result<u128, Malformed> {
            let bytes = <[u8; 16]>::try_from(part(range)?).map_err(|_| Malformed("idempotency record"))?;
            Ok(u128::from_be_bytes(bytes))
        };
        let nanos = <[u8; 8]>::try_from(part(32..40)?).map_err(|_| Malformed("idempotency record"))?;
        let created = Instant::from_nanos(i64::from_be_bytes(nanos));
        Ok(IdempotencyRecord { job: JobId(wide(0..16)?), request: wide(16..32)?, created })
    }
}

fn writes(keys: &MetaKeys, job: JobId, client: &ClientId, op: &Op) -> Vec<Write> {
    match op {
        Op::PutJob(record) => vec![put_job(keys, record)],
        Op::PutTask(task, record) => vec![Write::Put(keys.task(job, *task), encode(record))],
        Op::DeleteTask(task) => vec![Write::Delete(keys.task(job, *task))],
        Op::DeleteTasks => vec![Write::DeletePrefix(keys.tasks(job))],
        Op::PutCommit(number, record) => vec![Write::Put(keys.commit(job, *number), encode(record))],
        Op::DeleteCommits => {
            vec![Write::DeletePrefix(keys.commits(job)), Write::DeletePrefix(keys.folds(job))]
        }
        Op::DeleteCommitRange(first, last) => {
            vec![Write::DeleteRange(keys.commit(job, *first), keys.commit(job, last.saturating_add(1)))]
        }
        Op::PutFold(number, record) => vec![Write::Put(keys.fold(job, *number), encode(record))],
        Op::PutPage(number, record) => vec![Write::Put(keys.page(job, *number), encode(record))],
        Op::DeletePages => vec![Write::DeletePrefix(keys.pages(job))],
        Op::DeleteMarker => vec![Write::Delete(keys.admitted(client, job))],
        Op::Release => vec![Write::Delete(keys.owner(job))],
        Op::DeleteJob => vec![
            Write::DeletePrefix(keys.tasks(job)),
            Write::DeletePrefix(keys.commits(job)),
            Write::DeletePrefix(keys.folds(job)),
            Write::DeletePrefix(keys.pages(job)),
            Write::Delete(keys.owner(job)),
            Write::Delete(keys.admitted(client, job)),
            Write::Delete(keys.stop(job)),
            Write::Delete(keys.fence(job)),
            Write::Delete(keys.job(job)),
        ],
    }
}

/// Proposes a job's transaction until its outcome is known (rule R2: unknown outcomes are re-proposed).
pub(crate) async fn propose(context: &Context, job: JobId, client: &ClientId, txn: Txn) -> TxnOutcome {
    let keys = context.keys();
    let after = fence_bytes(txn.epoch, txn.seq + 1);
    let mut transaction = Transaction {
        compares: vec![Compare::Equals(keys.fence(job), fence_bytes(txn.epoch, txn.seq))],
        // The fence goes first, so that deleting the job deletes it too.
        writes: vec![Write::Put(keys.fence(job), after.clone())],
        reads: vec![keys.fence(job), keys.stop(job)],
    };
    if txn.unless_stopped {
        transaction.compares.push(Compare::Absent(keys.stop(job)));
    }
    transaction.writes.extend(txn.ops.iter().flat_map(|op| writes(&keys, job, client, op)));
    let mut uncertain = false;
    loop {
        match context.store.txn(transaction.clone()).await {
            Ok(Outcome::Applied(_)) => return TxnOutcome::Applied,
            Ok(Outcome::NotApplied(reads)) => {
                let fence = reads.first().cloned().flatten();
                // Only this very transaction writes this value: an earlier try of it applied.
                if uncertain && fence.as_deref() == Some(after.as_slice()) {
                    return TxnOutcome::Applied;
                }
                let ours = fence.as_deref() == Some(fence_bytes(txn.epoch, txn.seq).as_slice());
                let stop = reads.get(1).cloned().flatten();
                return match stop.map(|stop| stop_kind(&stop)) {
                    Some(Ok(kind)) if ours => TxnOutcome::StopExists(kind),
                    _ => TxnOutcome::Fenced,
                };
            }
            Err(error) => {
                uncertain |= matches!(error, StoreError::Unknown(_));
                tracing::warn!(job = %job, %error, "state store does not take a transaction; trying again");
                tokio::time::sleep(REPROPOSE).await;
            }
        }
    }
}

/// Why a job could not be claimed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    /// Another coordinator owns it, or claimed it first.
    #[error("another coordinator owns it")]
    Taken,
    /// Nothing is left to do for it.
    #[error("nothing is left to do for it")]
    Over,
    /// A plain read does not show it. It may be deleted, of which the watch tells; but such a read may be stale, and
    /// then it must not be forgotten.
    #[error("it is not there, as far as this coordinator can see")]
    Unseen,
    /// This coordinator has no lease at the moment.
    #[error("this coordinator has no lease")]
    NoLease,
    /// The store cannot be read.
    #[error("the state store: {0}")]
    Store(#[from] StoreError),
    /// A stored record cannot be understood.
    #[error("a record cannot be understood: {0}")]
    Record(#[from] Malformed),
    /// An object of the job cannot be read.
    #[error("an object of the job: {0}")]
    Object(String),
    /// Claiming it panicked.
    #[error("a defect of the coordinator")]
    Defect,
}

/// A job that was claimed: at which revision, in which epoch, and its machine with all that is stored of it.
pub(crate) struct Claimed {
    pub revision: Revision,
    pub epoch: Epoch,
    pub machine: Job,
    /// Why the job cannot go on: an object that it rests on is gone or damaged.
    pub broken: Option<JobError>,
    pub spent: Spent,
}

/// How long the parts of a claim took: while it is under way nobody grants tasks of the job or takes its commits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    /// When it began: with the first look at the job.
    pub began: Monotonic,
    /// The transaction, and the reads before it.
    pub claim: Duration,
    /// Reading what the store holds of the job.
    pub ranges: Duration,
    /// Decoding that.
    pub decode: Duration,
    /// Reading and decoding the plans and folded commits.
    pub objects: Duration,
    /// Making the machine of it.
    pub restore: Duration,
}

impl Spent {
    fn begin() -> Spent {
        let [claim, ranges, decode, objects, restore] = [Duration::ZERO; 5];
        Spent { began: Monotonic::now(), claim, ranges, decode, objects, restore }
    }
}

/// Measures one part after the other.
struct Stopwatch(Monotonic);

impl Stopwatch {
    fn start() -> Stopwatch {
        Stopwatch(Monotonic::now())
    }

    /// Since the last lap, or the start.
    fn lap(&mut self) -> Duration {
        let now = Monotonic::now();
        now.duration_since(std::mem::replace(&mut self.0, now))
    }
}

/// Claims a job that nobody owns and loads it at the revision of the claim (rule R1: pinned reads).
pub(crate) async fn claim(context: &Context, job: JobId) -> Result<Claimed, ClaimError> {
    let mut spent = Spent::begin();
    let keys = context.keys();
    let lease = context.lease().ok_or(ClaimError::NoLease)?;
    let (_, stored) = context.store.range(&keys.fence(job), None).await?;
    let observed = stored.into_iter().next().map(|(_, value)| value);
    let epoch = match &observed {
        Some(bytes) => Epoch(fence_from(bytes)?.0.0 + 1),
        None => Epoch(1),
    };
    let fence_is = match observed {
        Some(bytes) => Compare::Equals(keys.fence(job), bytes),
        None => Compare::Absent(keys.fence(job)),
    };
    let (_, owner) = context.store.range(&keys.owner(job), None).await?;
    // A key of our own that no machine of ours goes with is left from a claim whose outcome was not known.
    let free = match owner.into_iter().next() {
        None => Compare::Absent(keys.owner(job)),
        Some((key, value)) if registry::owner_of(&value)?.coordinator == context.me => {
            Compare::Equals(key, value)
        }
        Some(_) => return Err(ClaimError::Taken),
    };
    // Read behind the fence: a job that is deleted in between takes its fence along, and the comparison fails.
    let (_, record) = context.store.range(&keys.job(job), None).await?;
    let Some((_, value)) = record.into_iter().next() else { return Err(ClaimError::Unseen) };
    if is_resting(&decode(&value)?) {
        return Err(ClaimError::Over);
    }
    let mine = registry::owner_record(&context.me, epoch);
    let transaction = Transaction {
        compares: vec![fence_is, free],
        writes: vec![
            Write::Put(keys.fence(job), fence_bytes(epoch, 0)),
            Write::PutLeased(keys.owner(job), mine, lease),
        ],
        reads: vec![],
    };
    // An unknown outcome is left alone: if it applied, the next claim replaces the key and has a higher epoch.
    let revision = match context.store.txn(transaction).await {
        Ok(Outcome::Applied(revision)) => revision,
        Ok(Outcome::NotApplied(_)) => return Err(ClaimError::Taken),
        Err(StoreError::LeaseEnded) => {
            context.displaced.notify_one();
            return Err(ClaimError::NoLease);
        }
        Err(error) => return Err(error.into()),
    };
    spent.claim = spent.began.elapsed();
    match load(context, &keys, job, revision, &mut spent).await {
        Ok((stored, broken)) => {
            let mut watch = Stopwatch::start();
            let root = objects::root_of(&context.options, &stored.record);
            let machine = Job::load(stored, epoch, root, context.options.job_settings());
            spent.restore = watch.lap();
            Ok(Claimed { revision, epoch, machine, broken, spent })
        }
        Err(error) => {
            // Others may be able to load it: they must not wait for us.
            let release = Transaction {
                compares: vec![Compare::Equals(keys.fence(job), fence_bytes(epoch, 0))],
                writes: vec![Write::Delete(keys.owner(job))],
                reads: vec![],
            };
            if let Err(unreleased) = context.store.txn(release).await {
                tracing::warn!(job = %job, error = %unreleased, "a job that cannot be loaded was not released");
            }
            Err(error)
        }
    }
}

async fn load(
    context: &Context,
    keys: &MetaKeys,
    job: JobId,
    revision: Revision,
    spent: &mut Spent,
) -> Result<(Stored, Option<JobError>), ClaimError> {
    let (at, mut watch) = (Some(revision), Stopwatch::start());
    let store = &context.store;
    let (_, record) = store.range(&keys.job(job), at).await?;
    let (_, stop) = store.range(&keys.stop(job), at).await?;
    let (_, stored_tasks) = store.range(&keys.tasks(job), at).await?;
    let (_, stored_commits) = store.range(&keys.commits(job), at).await?;
    let (_, stored_folds) = store.range(&keys.folds(job), at).await?;
    let (_, stored_pages) = store.range(&keys.pages(job), at).await?;
    spent.ranges = watch.lap();
    let (_, value) = record.into_iter().next().ok_or(Malformed("job record is missing"))?;
    let record: JobRecord = decode(&value)?;
    let stop = stop.into_iter().next().map(|(_, value)| stop_kind(&value)).transpose()?;
    let tasks: BTreeMap<u32, TaskRecord> = numbered(stored_tasks, "task key")?;
    let mut commits: BTreeMap<u64, CommitRecord> = numbered(stored_commits, "commit key")?;
    let folds: BTreeMap<u32, FoldRecord> = numbered(stored_folds, "fold key")?;
    let pages: BTreeMap<u32, PageRecord> = numbered(stored_pages, "page key")?;
    let tasks = tasks.into_iter().map(|(id, task)| (TaskId(id), task)).collect();
    spent.decode = watch.lap();
    let (mut plans, mut merges, mut broken) = (Vec::new(), None, None);
    // A job that has ended, or only has to end, needs no plans, and they may be deleted already.
    if !record.state.is_terminal() && stop.is_none() {
        match objects_of(context, &record, &folds).await {
            Ok((read_plans, read_merges, folded)) => {
                (plans, merges) = (read_plans, read_merges);
                commits.extend(folded);
            }
            Err(error) if error.code.is_retryable() => return Err(ClaimError::Object(error.message)),
            Err(error) => broken = Some(error),
        }
    }
    spent.objects = watch.lap();
    Ok((Stored { record, plans, tasks, merges, commits, folds, pages, stop }, broken))
}

/// Records by the number at the end of their keys.
fn numbered<N: TryFrom<u128> + Ord, W: Wire>(
    entries: Vec<Entry>,
    what: &'static str,
) -> Result<BTreeMap<N, W>, Malformed>
where
    W::Message: prost::Message + Default,
{
    let record = |(key, value): Entry| {
        let number = layout::trailing_hex(&key).and_then(|number| N::try_from(number).ok());
        Ok((number.ok_or(Malformed(what))?, decode(&value)?))
    };
    entries.into_iter().map(record).collect()
}

type FromObjects = (Vec<Plan>, Option<MergePlan>, Vec<(u64, CommitRecord)>);

/// What of a job rests in objects.
async fn objects_of(
    context: &Context,
    record: &JobRecord,
    folds: &BTreeMap<u32, FoldRecord>,
) -> Result<FromObjects, JobError> {
    let plans: Vec<_> = record.plans.iter().map(|plan| objects::read_plan(context, plan)).collect();
    let merges = OptionFuture::from(record.merges.as_ref().map(|at| objects::read_merge_plan(context, at)));
    let ledgers: Vec<_> = folds.values().map(|fold| objects::read_ledger(context, &fold.object)).collect();
    let (plans, merges, ledgers): (_, _, Vec<_>) = try_join!(
        stream::iter(plans).buffered(OBJECTS_AT_ONCE).try_collect(),
        merges.map(Option::transpose),
        stream::iter(ledgers).buffered(OBJECTS_AT_ONCE).try_collect(),
    )?;
    Ok((plans, merges, ledgers.into_iter().flatten().collect()))
}

/// Whether nothing is left to do for a job: its record only says that it was there.
pub(crate) fn is_resting(record: &JobRecord) -> bool {
    record.state == JobState::Gone && record.swept
}

/// Deletes records that have rested for long enough, and idempotency keys that stand for nothing any more.
pub(crate) async fn tidy(context: &Context) -> Result<(), StoreError> {
    let (keys, now) = (context.keys(), context.now());
    for (key, value) in context.store.range(&keys.jobs(), None).await?.1 {
        let Ok(record) = decode::<JobRecord>(&value) else { continue };
        let since = record.ended.unwrap_or(record.created);
        if is_resting(&record) && since.plus_millis(caps::TOMBSTONE_MILLIS as i64) <= now {
            let transaction = Transaction {
                compares: vec![Compare::Equals(key, value)],
                writes: writes(&keys, record.id, &record.client, &Op::DeleteJob),
                reads: vec![],
            };
            context.store.txn(transaction).await?;
        }
    }
    for (key, value) in context.store.range(&keys.idempotency_keys(), None).await?.1 {
        let Ok(record) = IdempotencyRecord::from_bytes(&value) else { continue };
        if record.created.plus_millis(caps::IDEMPOTENCY_MILLIS as i64) <= now {
            let transaction = Transaction {
                compares: vec![Compare::Equals(key.clone(), value)],
                writes: vec![Write::Delete(key)],
                reads: vec![],
            };
            context.store.txn(transaction).await?;
        }
    }
    Ok(())
}

/// A job as the store has it, for whoever asks a coordinator that does not own it.
pub(crate) struct Snapshot {
    pub record: JobRecord,
    pub stop: Option<StopKind>,
}

/// Reads a job from the store, linearizably, and says at which revision; `None` when there is none.
pub(crate) async fn snapshot(
    context: &Context,
    job: JobId,
) -> Result<Option<(Revision, Snapshot)>, ClaimError> {
    let keys = context.keys();
    let (revision, record) = context.store.range(&keys.job(job), None).await?;
    let Some((_, value)) = record.into_iter().next() else { return Ok(None) };
    let (_, stop) = context.store.range(&keys.stop(job), Some(revision)).await?;
    let stop = stop.into_iter().next().map(|(_, value)| stop_kind(&value)).transpose()?;
    Ok(Some((revision, Snapshot { record: decode(&value)?, stop })))
}

/// A page of a job's manifest as it was at this revision; `None` when there was none.
pub(crate) async fn page(
    context: &Context,
    job: JobId,
    number: u32,
    at: Revision,
) -> Result<Option<PageRecord>, ClaimError> {
    let (_, page) = context.store.range(&context.keys().page(job, number), Some(at)).await?;
    Ok(page.into_iter().next().map(|(_, value)| decode(&value)).transpose()?)
}

/// Every job of the store, with its stop request.
pub(crate) async fn snapshots(context: &Context) -> Result<Vec<Snapshot>, ClaimError> {
    let keys = context.keys();
    let (revision, records) = context.store.range(&keys.jobs(), None).await?;
    let mut stops = BTreeMap::new();
    for (key, value) in context.store.range(&keys.stops(), Some(revision)).await?.1 {
        if let (Some(job), Ok(kind)) = (layout::trailing_hex(&key), stop_kind(&value)) {
            stops.insert(job, kind);
        }
    }
    let mut snapshots = Vec::new();
    for (_, value) in records {
        match decode::<JobRecord>(&value) {
            Ok(record) => {
                let stop = stops.get(&record.id.0).copied();
                snapshots.push(Snapshot { record, stop });
            }
            // One that a newer version wrote, or that is damaged, must not hide the others.
            Err(error) => tracing::error!(%error, "a job record cannot be understood; not listed"),
        }
    }
    Ok(snapshots)
}
