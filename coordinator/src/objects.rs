//! Control objects of jobs: drafts read, plans and manifests written, everything deleted in the end; and the
//! sweep of what dead attempts left behind.

use std::collections::BTreeSet;
use std::sync::Arc;

use flatbed_proto::convert::{Malformed, Wire, each};
use flatbed_proto::wire::types as wire;
use flatbed_types::job::{JobError, JobRecord, ObjectPointer};
use flatbed_types::layout::{self, attempt_of};
use flatbed_types::manifest::Manifest;
use flatbed_types::task::{LaneSurvey, Plan};
use flatbed_types::{AttemptId, ErrorCode, Nonce};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::StartError;
use crate::driver::Context;
use crate::store::StoreError;

/// What the names of a job's objects start with.
pub(crate) fn root_of(context: &Context, record: &JobRecord) -> String {
    layout::job_root(&context.options.cluster, &layout::tenant_folder(&record.client), record.id)
}

fn storage_error(doing: &str, error: &object_store::Error) -> JobError {
    // The error's own text holds paths and addresses: for the log, not for clients.
    tracing::warn!(%error, "object store: {doing}");
    JobError { code: ErrorCode::Unavailable, message: format!("the object store failed while {doing}") }
}

async fn read(context: &Context, pointer: &ObjectPointer, doing: &str) -> Result<Vec<u8>, JobError> {
    let path = Path::from(pointer.key.as_str());
    let found = context.objects.get(&path).await.map_err(|error| storage_error(doing, &error))?;
    let bytes = found.bytes().await.map_err(|error| storage_error(doing, &error))?;
    if bytes.len() as u64 != pointer.size || Sha256::digest(&bytes).as_slice() != pointer.sha256 {
        let message = format!("an object changed in the store; found while {doing}");
        return Err(JobError { code: ErrorCode::StorageFailed, message });
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

/// Reads a plan when a job is loaded.
pub(crate) async fn read_control(context: &Context, pointer: &ObjectPointer) -> Result<Plan, StartError> {
    let bytes = read(context, pointer, "reading a plan").await;
    let bytes = bytes.map_err(|error| StoreError::NotApplied(error.message))?;
    let plan = wire::Plan::decode(bytes.as_slice()).map_err(|_| Malformed("plan"))?;
    Ok(Plan::from_wire(plan)?)
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

/// Writes a plan.
pub(crate) async fn write_plan(
    context: &Context,
    root: &str,
    round: u32,
    plan: &Plan,
) -> Result<ObjectPointer, JobError> {
    let bytes = plan.to_wire().encode_to_vec();
    let sha256: [u8; 32] = Sha256::digest(&bytes).into();
    write(context, layout::plan_object(root, round, &hex(&sha256)), bytes, sha256).await
}

/// Writes a manifest.
pub(crate) async fn write_manifest(
    context: &Context,
    root: &str,
    manifest: &Manifest,
) -> Result<ObjectPointer, JobError> {
    let bytes = manifest.to_wire().encode_to_vec();
    let sha256: [u8; 32] = Sha256::digest(&bytes).into();
    write(context, layout::manifest_object(root, &hex(&sha256)), bytes, sha256).await
}

/// Deletes every object of a job. Repeatable.
pub(crate) async fn delete_all(context: &Context, root: &str) -> Result<(), JobError> {
    let doomed = context.objects.list(Some(&Path::from(root))).map_ok(|meta| meta.location).boxed();
    delete(context, doomed).await.map(|_| ())
}

/// Deletes what attempts that are all dead wrote and no commit names. Only for a complete job: from then on no
/// attempt of it can commit.
pub(crate) async fn sweep(
    context: &Context,
    root: &str,
    committed: Arc<BTreeSet<Nonce>>,
) -> Result<usize, JobError> {
    let mut count = 0;
    for folder in ["d", "e", "r"] {
        let committed = committed.clone();
        let is_orphan =
            move |key: &str| written_by_attempt(key).is_some_and(|(_, nonce)| !committed.contains(&nonce));
        let prefix = Path::from(format!("{root}/{folder}"));
        let listed = context.objects.list(Some(&prefix));
        let doomed = listed.map_ok(|meta| meta.location);
        let doomed = doomed.try_filter(move |path| std::future::ready(is_orphan(path.as_ref()))).boxed();
        count += delete(context, doomed).await?;
    }
    Ok(count)
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
    }
}
