//! Control objects of jobs: drafts read, plans and manifests written, everything deleted in the end; and the
//! sweep of what dead attempts left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flatbed_coordinator_core::job::missing_files;
use flatbed_proto::convert::{Malformed, Wire, each, required};
use flatbed_proto::wire::types as wire;
use flatbed_types::error_code::is_out_of_place;
use flatbed_types::job::{JobError, JobRecord, ObjectPointer};
use flatbed_types::layout::{self, attempt_of};
use flatbed_types::manifest::Manifest;
use flatbed_types::task::{CommitRecord, LaneSurvey, MergePlan, Plan};
use flatbed_types::{AttemptId, Epoch, ErrorCode, Nonce, caps};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::CoordinatorOptions;
use crate::driver::Context;

/// Objects that are looked for one by one instead of by a listing, which takes a request for each thousand of all.
const FEW: usize = 16;

/// What the names of a job's objects start with.
pub(crate) fn root_of(options: &CoordinatorOptions, record: &JobRecord) -> String {
    layout::job_root(&options.cluster, &layout::tenant_folder(&record.client), record.id)
}

fn storage_error(doing: &str, error: &object_store::Error) -> JobError {
    // The error's own text holds paths and addresses: for the log, not for clients.
    tracing::warn!(%error, "object store: {doing}");
    let code = if is_out_of_place(error) { ErrorCode::StorageFailed } else { ErrorCode::Unavailable };
    JobError { code, message: format!("the object store failed while {doing}") }
}

async fn read(context: &Context, pointer: &ObjectPointer, doing: &str) -> Result<Vec<u8>, JobError> {
    let path = Path::from(pointer.key.as_str());
    let lost = |what: &str| JobError {
        code: ErrorCode::StorageFailed,
        message: format!("an object {what} in the store; found while {doing}"),
    };
    let found = match context.objects.get(&path).await {
        Ok(found) => found,
        Err(object_store::Error::NotFound { .. }) => return Err(lost("is missing")),
        Err(error) => return Err(storage_error(doing, &error)),
    };
    let bytes = found.bytes().await.map_err(|error| storage_error(doing, &error))?;
    if bytes.len() as u64 != pointer.size || Sha256::digest(&bytes).as_slice() != pointer.sha256 {
        return Err(lost("changed"));
    }
    Ok(bytes.to_vec())
}

/// Reads a plan draft.
pub(crate) async fn read_draft(
    context: &Context,
    pointer: &ObjectPointer,
) -> Result<Vec<LaneSurvey>, JobError> {
    let bytes = read(context, pointer, "reading a plan draft").await?;
    let draft = wire::PlanDraft::decode(bytes.as_slice()).map_err(|_| Malformed("plan draft"));
    let lanes = draft.and_then(|draft| each(draft.lanes));
    lanes.map_err(|error| JobError { code: ErrorCode::Internal, message: error.to_string() })
}

fn decode<M: Message + Default, W: Wire<Message = M>>(
    bytes: &[u8],
    what: &'static str,
) -> Result<W, JobError> {
    let message = M::decode(bytes).map_err(|_| Malformed(what));
    let internal = |error: Malformed| JobError { code: ErrorCode::Internal, message: error.to_string() };
    message.and_then(W::from_wire).map_err(internal)
}

/// Reads a plan when a job is loaded.
pub(crate) async fn read_plan(context: &Context, pointer: &ObjectPointer) -> Result<Plan, JobError> {
    decode(&read(context, pointer, "reading a plan").await?, "plan")
}

/// Reads a plan of merge tasks when a job is loaded.
pub(crate) async fn read_merge_plan(
    context: &Context,
    pointer: &ObjectPointer,
) -> Result<MergePlan, JobError> {
    decode(&read(context, pointer, "reading a merge plan").await?, "merge plan")
}

/// Reads folded commits when a job is loaded.
pub(crate) async fn read_ledger(
    context: &Context,
    pointer: &ObjectPointer,
) -> Result<Vec<(u64, CommitRecord)>, JobError> {
    let bytes = read(context, pointer, "reading folded commits").await?;
    let internal = |error: Malformed| JobError { code: ErrorCode::Internal, message: error.to_string() };
    let segment = wire::LedgerSegment::decode(bytes.as_slice()).map_err(|_| internal(Malformed("ledger")))?;
    let commit =
        |numbered: wire::NumberedCommit| Ok((numbered.number, required(numbered.commit, "ledger.commit")?));
    segment.commits.into_iter().map(commit).collect::<Result<_, Malformed>>().map_err(internal)
}

async fn write(
    context: &Context,
    key: String,
    bytes: Vec<u8>,
    sha256: [u8; 32],
) -> Result<ObjectPointer, JobError> {
    let size = bytes.len() as u64;
    // The name holds the hash of the content, so writing it again after an unknown outcome is harmless.
    let written = context.objects.put(&Path::from(key.as_str()), bytes.into()).await;
    written.map_err(|error| storage_error("writing a control object", &error))?;
    Ok(ObjectPointer { key, sha256, size })
}

fn hex(sha256: &[u8; 32]) -> String {
    sha256.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes an object whose name holds the hash of its content.
async fn write_named(
    context: &Context,
    bytes: Vec<u8>,
    name: impl FnOnce(&str) -> String,
) -> Result<ObjectPointer, JobError> {
    let sha256: [u8; 32] = Sha256::digest(&bytes).into();
    write(context, name(&hex(&sha256)), bytes, sha256).await
}

/// Writes a plan.
pub(crate) async fn write_plan(
    context: &Context,
    root: &str,
    round: u32,
    plan: &Plan,
) -> Result<ObjectPointer, JobError> {
    write_named(context, plan.to_wire().encode_to_vec(), |hash| layout::plan_object(root, round, hash)).await
}

/// Writes a plan of merge tasks.
pub(crate) async fn write_merge_plan(
    context: &Context,
    root: &str,
    plan: &MergePlan,
) -> Result<ObjectPointer, JobError> {
    write_named(context, plan.to_wire().encode_to_vec(), |hash| layout::merge_plan_object(root, hash)).await
}

/// Writes folded commits.
pub(crate) async fn write_ledger(
    context: &Context,
    root: &str,
    number: u32,
    commits: Vec<(u64, CommitRecord)>,
) -> Result<ObjectPointer, JobError> {
    let numbered = |(number, commit): &(u64, CommitRecord)| wire::NumberedCommit {
        number: *number,
        commit: Some(commit.to_wire()),
    };
    let segment = wire::LedgerSegment { commits: commits.iter().map(numbered).collect() };
    write_named(context, segment.encode_to_vec(), |hash| layout::ledger_object(root, number, hash)).await
}

/// Writes a manifest.
pub(crate) async fn write_manifest(
    context: &Context,
    root: &str,
    manifest: &Manifest,
) -> Result<ObjectPointer, JobError> {
    write_named(context, manifest.to_wire().encode_to_vec(), |hash| layout::manifest_object(root, hash)).await
}

/// Writes a page of a manifest. Its files are looked for first: a page that names what is not there could not be taken
/// back.
pub(crate) async fn write_page(
    context: &Context,
    root: &str,
    number: u32,
    page: &Manifest,
) -> Result<ObjectPointer, JobError> {
    let named = page.entries.iter().map(|entry| (entry.key.clone(), entry.stored_bytes));
    let missing = verify(context, root, named.collect()).await?;
    if missing > 0 {
        return Err(missing_files(missing));
    }
    write_named(context, page.to_wire().encode_to_vec(), |hash| layout::page_object(root, number, hash)).await
}

/// How many of these objects (key, size) are not in the store as they should be. One listing for all; what a
/// listing lacks is asked for by name before it counts as missing.
pub(crate) async fn verify(
    context: &Context,
    root: &str,
    expected: Vec<(String, u64)>,
) -> Result<u64, JobError> {
    let mut open: BTreeMap<String, u64> = expected.into_iter().collect();
    // Few are asked for by name at once.
    let folders = if open.len() > FEW { &["d", "e", "x"][..] } else { &[] };
    for folder in folders {
        let mut listed = context.objects.list(Some(&Path::from(format!("{root}/{folder}"))));
        while let Some(found) = listed.next().await {
            let found = found.map_err(|error| storage_error("listing what was written", &error))?;
            if open.get(found.location.as_ref()) == Some(&found.size) {
                open.remove(found.location.as_ref());
            }
        }
    }
    let mut missing = 0;
    for (key, size) in open {
        match context.objects.head(&Path::from(key.as_str())).await {
            Ok(found) if found.size == size => {}
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {
                tracing::error!(key, size, "a committed object is missing or has another size");
                missing += 1;
            }
            Err(error) => return Err(storage_error("looking for what was written", &error)),
        }
    }
    Ok(missing)
}

/// Deletes every object of a job. Repeatable.
pub(crate) async fn delete_all(context: &Context, root: &str) -> Result<(), JobError> {
    let doomed = context.objects.list(Some(&Path::from(root))).map_ok(|meta| meta.location).boxed();
    delete(context, doomed).await.map(|_| ())
}

/// Which objects of a job are orphans: written by an attempt that can never commit again, and in no commit
/// (`coordination.md` 7.6).
#[derive(Debug)]
pub(crate) struct Orphans {
    /// The objects that commits name.
    pub committed: BTreeSet<Nonce>,
    /// The epoch of a claim and the attempts that it found allowed: attempts of earlier epochs that are not among
    /// them are dead for ever. `None`: the job is complete, and so all attempts are.
    pub since: Option<(Epoch, BTreeSet<AttemptId>)>,
}

impl Orphans {
    fn has(&self, key: &str) -> bool {
        let Some((attempt, nonce)) = written_by_attempt(key) else { return false };
        let is_dead = match &self.since {
            None => true,
            Some((epoch, allowed)) => attempt.epoch() < *epoch && !allowed.contains(&attempt),
        };
        is_dead && !self.committed.contains(&nonce)
    }
}

/// Deletes orphans; how many.
pub(crate) async fn sweep(context: &Context, root: &str, orphans: Arc<Orphans>) -> Result<usize, JobError> {
    let mut count = 0;
    for folder in ["d", "e", "x", "r"] {
        let orphans = orphans.clone();
        let prefix = Path::from(format!("{root}/{folder}"));
        let listed = context.objects.list(Some(&prefix)).map_ok(|meta| meta.location);
        let doomed = listed.try_filter(move |path| std::future::ready(orphans.has(path.as_ref()))).boxed();
        count += delete(context, doomed).await?;
    }
    Ok(count)
}

/// Deletes answers to questions that have rested for long enough; how many.
pub(crate) async fn sweep_answers(context: &Context) -> Result<usize, JobError> {
    let oldest = context.now().plus_millis(-(caps::ANSWER_MILLIS as i64)).millis();
    let prefix = Path::from(layout::answers_root(&context.options.cluster));
    let listed = context.objects.list(Some(&prefix));
    let is_old = move |meta: &object_store::ObjectMeta| {
        std::future::ready(meta.last_modified.timestamp_millis() < oldest)
    };
    let doomed = listed.try_filter(is_old).map_ok(|meta| meta.location).boxed();
    delete(context, doomed).await
}

fn written_by_attempt(key: &str) -> Option<(AttemptId, Nonce)> {
    let attempt = attempt_of(key)?;
    let name = key.rsplit('/').next()?.split('.').next()?;
    Some((attempt, name.rsplit('-').next()?.parse().ok()?))
}

async fn delete(
    context: &Context,
    doomed: futures::stream::BoxStream<'static, object_store::Result<Path>>,
) -> Result<usize, JobError> {
    let mut deleted = context.objects.delete_stream(doomed);
    let mut count = 0;
    while let Some(result) = deleted.next().await {
        match result {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => count += 1,
            Err(error) => return Err(storage_error("deleting objects", &error)),
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_are_told_by_their_names() {
        let key = "c/t/job/d/cd/00000001-0000000003000009-0002-000000000000abcd.Patient.ndjson.gz";
        assert_eq!(written_by_attempt(key), Some((AttemptId(0x0300_0009), Nonce(0xabcd))));
        assert_eq!(written_by_attempt("c/t/job/d/cd/readme.txt"), None);
        let orphans = |committed: &[u64], since| Orphans {
            committed: committed.iter().map(|nonce| Nonce(*nonce)).collect(),
            since,
        };
        assert!(orphans(&[], None).has(key) && !orphans(&[0xabcd], None).has(key));
        let epoch =
            |epoch, allowed: &[u64]| Some((Epoch(epoch), allowed.iter().map(|a| AttemptId(*a)).collect()));
        assert!(orphans(&[], epoch(4, &[])).has(key), "of an earlier epoch");
        assert!(!orphans(&[], epoch(4, &[0x0300_0009])).has(key), "still allowed");
        assert!(!orphans(&[], epoch(3, &[])).has(key), "of this epoch: it may be granted at this moment");
        assert!(!orphans(&[0xabcd], epoch(4, &[])).has(key), "committed");
    }
}
