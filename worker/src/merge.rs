//! The merge task: joins small committed files of one type into one (`decisions.md` 2 and 15).
//!
//! Nothing is decoded (`flatbed_extract::join`). Files stream through in blocks, so that a slot holds one block and
//! one upload part whatever the sizes. Every file is checked against what its commit said before the joined one is
//! sealed. A merge commits as a whole or not at all: told to end early it leaves the files as they are.

use flatbed_extract::encode::FileSummary;
use flatbed_extract::join::Joiner;
use flatbed_types::job::{JobError, Volume};
use flatbed_types::layout::output_object;
use flatbed_types::task::{CommitRecord, MergeInput, OutputKind, OutputObject, RowCounts};
use flatbed_types::{Nonce, ResourceType};
use tokio::runtime::Handle;

use crate::extract::{report, unwritten};
use crate::slot::{End, Grant, Running};
use crate::upload::{Upload, damaged, read_part};
use crate::{Context, internal};

/// Bytes of a file read at once.
const BLOCK: u64 = 4 << 20;

pub(crate) fn run(
    context: &Context,
    runtime: &Handle,
    running: &Running,
    resource_type: ResourceType,
) -> Result<End, JobError> {
    let grant = &running.grant;
    let output = unwritten(kind_of(grant, resource_type)?, resource_type)?;
    let Some(output) = join(context, runtime, running, output)? else { return Ok(End::Unfinished) };
    let commit = CommitRecord {
        task: grant.task,
        attempt: grant.attempt,
        segment: 0,
        round: grant.round,
        range: grant.range.clone(),
        rows: RowCounts { written: output.lines, ..RowCounts::default() },
        outputs: vec![output],
        fingerprint: 0,
        replaces: grant.merge_inputs.iter().map(|input| input.output.nonce).collect::<Vec<Nonce>>(),
    };
    let reported = report(context, runtime, running, commit)?;
    Ok(if reported.is_some() { End::Known } else { End::Unfinished })
}

/// What the files hold: all the same, and nothing that is read by key.
fn kind_of(grant: &Grant, resource_type: ResourceType) -> Result<OutputKind, JobError> {
    let kind = match grant.merge_inputs.first().map(|input| input.output.kind) {
        Some(kind @ (OutputKind::Data | OutputKind::Outcome)) => kind,
        Some(OutputKind::Deleted | OutputKind::References) | None => {
            return Err(internal("a merge task without files to join"));
        }
    };
    let fits = |input: &MergeInput| input.output.kind == kind && input.output.resource_type == resource_type;
    if !grant.merge_inputs.iter().all(fits) {
        return Err(internal("a merge task over files of several types"));
    }
    Ok(kind)
}

/// The joined file; `None` when the attempt is to end.
fn join(
    context: &Context,
    runtime: &Handle,
    running: &Running,
    mut joined: OutputObject,
) -> Result<Option<OutputObject>, JobError> {
    let grant = &running.grant;
    let failed = |error: std::io::Error| {
        tracing::error!(job = %grant.job, task = %grant.task, %error, "files cannot be joined");
        damaged()
    };
    let key = output_object(&grant.root, grant.writer(0), &joined, grant.codec);
    let mut upload = Upload::new(context.objects.clone(), runtime.clone(), &key);
    let mut joiner = Joiner::new(grant.codec, upload.buffer());
    let mut left: u64 = grant.merge_inputs.iter().map(|input| input.output.raw_bytes).sum();
    for MergeInput { writer, output } in &grant.merge_inputs {
        running.set_left(left);
        let OutputObject { raw_bytes, stored_bytes, sha256, lines, .. } = *output;
        let key = output_object(&grant.root, *writer, output, grant.codec);
        joiner.begin(FileSummary { raw_bytes, stored_bytes, sha256 }).map_err(failed)?;
        let mut at = 0;
        while at < stored_bytes {
            running.pace(context, runtime);
            if running.is_revoked() || running.drain.is_cancelled() {
                return Ok(None);
            }
            let end = stored_bytes.min(at + BLOCK);
            let part = read_part(&context.objects, runtime, &key, stored_bytes, at..end)?;
            joiner.push(part, upload.buffer()).map_err(failed)?;
            upload.advance()?;
            at = end;
        }
        joiner.end().map_err(failed)?;
        joined.lines += lines;
        left -= raw_bytes;
        running.set_uncommitted(Volume { rows: joined.lines, bytes: joiner.raw_bytes() });
    }
    let summary = joiner.finish(upload.buffer()).map_err(failed)?;
    upload.advance()?;
    upload.seal()?;
    joined.raw_bytes = summary.raw_bytes;
    joined.stored_bytes = summary.stored_bytes;
    joined.sha256 = summary.sha256;
    Ok(Some(joined))
}
