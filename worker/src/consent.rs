//! Whom a job leaves out: the plan task reads the roster of exclusions, whole and at the moment of the snapshot, and
//! stores the part that concerns the job as an object, which every other task is given.
//!
//! It fails closed: a roster that is not there, or of which any line is not in order, ends the job; one that cannot be
//! reached, or is replaced while it is read, costs time. A task that knows of a roster and has no list refuses to read.
//! Texts name the file and the line; nobody's id stands in any of them, nor in a log.

use std::fs::File;
use std::io::{Seek, Write};
use std::sync::Arc;

use flatbed_extract::exclusions::{self, Head, Recipient, Unusable};
use flatbed_extract::keylist::KeyListWriter;
use flatbed_extract::outcome::{self, Severity};
use flatbed_extract::source::{Patients, Problem, Scan, Select};
use flatbed_extract::{KeyList, KeyListBuilder, Snapshot};
use flatbed_types::consent::{ConsentRule, Exclusions};
use flatbed_types::job::{JobError, ObjectPointer};
use flatbed_types::{ErrorCode, Lane, Nonce, ResourceType, layout};
use object_store::path::Path;
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use crate::slot::{Grant, Running, open_list};
use crate::{Context, internal, io_error, object_error, random_u64, source_error, upload};

/// Bytes of a roster fetched at once.
const FETCHED: u64 = 4 << 20;
/// Rows after which it is looked whether the attempt is still wanted.
const LOOK_EVERY: u64 = 1 << 16;
const READING: &str = "reading the roster of exclusions";

/// What a roster means for a job.
pub(crate) struct Applied {
    /// For the job's record.
    pub exclusions: Exclusions,
    /// The patients that are left out; `None` where there is nobody.
    pub list: Option<Arc<KeyList>>,
}

impl Applied {
    /// What the client is told: how many, and nobody's name (SEC-12).
    pub fn remark(&self) -> Option<Vec<u8>> {
        let text = match self.exclusions.patients {
            0 => return None,
            1 => "1 patient is left out for reasons of policy".to_owned(),
            many => format!("{many} patients are left out for reasons of policy"),
        };
        Some(outcome::line(Severity::Information, "suppressed", &text, None))
    }
}

/// Reads the roster of the job, if it has one, and stores what concerns the job. `members` are the patients of the job,
/// where it covers some only.
pub(crate) fn apply(
    context: &Context,
    runtime: &Handle,
    running: &Running,
    snapshot: &dyn Snapshot,
    members: Option<&ObjectPointer>,
) -> Result<Option<Applied>, JobError> {
    let grant = &running.grant;
    let Some(rule) = &grant.consent else { return Ok(None) };
    running.set_note(READING.to_owned());
    let (stored, roster_sha256) = fetch(context, runtime, rule)?;
    let mut builder = KeyListBuilder::new(&context.options.scratch, context.options.sort_budget);
    let head = read(running, rule, stored, &mut builder)?;
    let doing = "sorting the roster of exclusions";
    let (mut file, listed) = upload::list_file(builder, &context.options.scratch, doing)?;
    let key = layout::exclusions_object(&grant.root, grant.attempt, Nonce(random_u64()?));
    let pointer = upload::put_file(&context.objects, runtime, key, &mut file)?;
    let list = KeyList::open(Box::new(file)).map(Arc::new).map_err(|error| io_error(doing, &error))?;
    let members = members.map(|pointer| open_list(context, runtime, pointer)).transpose()?;
    let patients = match listed {
        0 => 0,
        _ => count(context, running, snapshot, &list, members.as_ref())?,
    };
    running.set_note(String::new());
    let Head { version, rows } = head;
    tracing::info!(job = %grant.job, version, rows, listed, patients, "the roster of exclusions is read");
    let exclusions = Exclusions { list: pointer, version, roster_sha256, listed, patients };
    Ok(Some(Applied { exclusions, list: (listed > 0).then_some(list) }))
}

/// The name of a roster, without where it is.
fn name_of(rule: &ConsentRule) -> &str {
    rule.location.rsplit(['/', '\\']).next().unwrap_or_default()
}

fn unusable(rule: &ConsentRule, why: impl std::fmt::Display) -> JobError {
    let name = name_of(rule);
    let message =
        format!("the roster of exclusions {name} cannot be used, and without it nothing is exported: {why}");
    JobError { code: ErrorCode::SourceFailed, message }
}

/// Copies the roster as it is now to a scratch file; with its hash.
fn fetch(context: &Context, runtime: &Handle, rule: &ConsentRule) -> Result<(File, [u8; 32]), JobError> {
    let failed = |error: std::io::Error| io_error(READING, &error);
    let lost = |error: object_store::Error| match error {
        object_store::Error::NotFound { .. } => unusable(rule, "it is not there"),
        object_store::Error::Precondition { .. } => {
            let message = "the roster of exclusions was replaced while it was read".to_owned();
            JobError { code: ErrorCode::Unavailable, message }
        }
        other => object_error(READING, &other),
    };
    let (store, path) = (context.options.open_location)(&rule.location).map_err(|why| unusable(rule, why))?;
    let meta = runtime.block_on(store.head(&path)).map_err(lost)?;
    let mut file = tempfile::tempfile_in(&context.options.scratch).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut at = 0;
    while at < meta.size {
        let range = at..meta.size.min(at + FETCHED);
        let part = runtime.block_on(part(&store, &path, &meta, range.clone())).map_err(lost)?;
        hash.update(&part);
        file.write_all(&part).map_err(failed)?;
        at = range.end;
    }
    file.rewind().map_err(failed)?;
    Ok((file, hash.finalize().into()))
}

/// A part of the object that was looked at, and of no other that has taken its place.
async fn part(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    meta: &ObjectMeta,
    range: std::ops::Range<u64>,
) -> object_store::Result<bytes::Bytes> {
    let unchanged_since = meta.e_tag.is_none().then_some(meta.last_modified);
    let options = GetOptions {
        range: Some(range.into()),
        if_match: meta.e_tag.clone(),
        if_unmodified_since: unchanged_since,
        ..GetOptions::default()
    };
    store.get_opts(path, options).await?.bytes().await
}

/// Reads the roster to its end and keeps whoever it leaves out of this job.
fn read(
    running: &Running,
    rule: &ConsentRule,
    stored: File,
    builder: &mut KeyListBuilder,
) -> Result<Head, JobError> {
    let client = running.grant.client.as_ref().ok_or_else(|| internal("a roster without a client"))?;
    let recipient = Recipient { client, purpose: rule.purpose.as_ref() };
    let input = exclusions::plain(stored, name_of(rule)).map_err(|error| io_error(READING, &error))?;
    let mut seen = 0_u64;
    let found = exclusions::read(input, recipient, &mut |patient| {
        seen += 1;
        if seen.is_multiple_of(LOOK_EVERY) && running.is_revoked() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        builder.push(patient.as_str().as_bytes())
    });
    found.map_err(|error| match error {
        Unusable::Io(error) => io_error(READING, &error),
        flaw => unusable(rule, flaw),
    })
}

/// How many of the list are patients of the source, and members of the job.
fn count(
    context: &Context,
    running: &Running,
    snapshot: &dyn Snapshot,
    list: &Arc<KeyList>,
    members: Option<&KeyList>,
) -> Result<u64, JobError> {
    let among = match members {
        None => list.clone(),
        Some(members) => Arc::new(common(context, list, members)?),
    };
    let scan = Scan {
        select: Select::Members(among),
        patients: Patients::Themselves,
        ..Scan::whole(Lane::compartment(ResourceType::PATIENT))
    };
    let mut reader = snapshot.read(scan).map_err(source_error)?;
    let mut patients = 0;
    while let Some(piece) = reader.next().map_err(source_error)? {
        patients += piece.rows;
        if running.is_revoked() {
            return Err(internal("the plan was stopped"));
        }
    }
    Ok(patients)
}

/// The keys that both lists have.
fn common(context: &Context, one: &KeyList, other: &KeyList) -> Result<KeyList, JobError> {
    let failed = |error: std::io::Error| io_error("comparing lists of patients", &error);
    let file = tempfile::tempfile_in(&context.options.scratch).map_err(failed)?;
    let mut writer = KeyListWriter::new(std::io::BufWriter::new(file));
    let (mut ones, mut others) = (one.iter(), other.iter());
    let (mut here, mut there) =
        (ones.next().transpose().map_err(failed)?, others.next().transpose().map_err(failed)?);
    while let (Some(key), Some(with)) = (&here, &there) {
        let order = key.cmp(with);
        if order.is_eq() {
            writer.push(key).map_err(failed)?;
        }
        if order.is_le() {
            here = ones.next().transpose().map_err(failed)?;
        }
        if order.is_ge() {
            there = others.next().transpose().map_err(failed)?;
        }
    }
    let (out, _) = writer.finish().map_err(failed)?;
    let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
    KeyList::open(Box::new(file)).map_err(failed)
}

/// The list that a task was given, where its job has one.
///
/// # Errors
/// When it should have one and has not: reading without it would give out what must not be.
pub(crate) fn given(
    context: &Context,
    runtime: &Handle,
    grant: &Grant,
) -> Result<Option<Arc<KeyList>>, JobError> {
    match (&grant.exclusions, &grant.consent) {
        (Some(pointer), _) => open_list(context, runtime, pointer).map(|list| Some(Arc::new(list))),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(internal("a task of a job with a roster of exclusions has no list of them")),
    }
}

/// A problem of the source, without the name of the resource that it is about: where patients are left out, it might be
/// one of theirs.
pub(crate) fn unnamed(problem: Problem) -> Problem {
    let Some(name) = problem.resource else { return problem };
    let kind = name.split('/').next().unwrap_or_default();
    Problem { message: problem.message.replace(&name, &format!("a {kind}")), resource: None, ..problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_lose_their_names_where_somebody_is_left_out() {
        let problem = |message: &str, resource: Option<&str>| Problem {
            issue: "conflict",
            message: message.to_owned(),
            resource: resource.map(str::to_owned),
        };
        let named =
            problem("x.ndjson:3: Patient/p1 is left out: y.ndjson:1 has other content", Some("Patient/p1"));
        let bare = unnamed(named);
        assert_eq!(bare, problem("x.ndjson:3: a Patient is left out: y.ndjson:1 has other content", None));
        assert_eq!(unnamed(bare.clone()), bare);
    }

    #[test]
    fn rosters_are_named_without_their_places() {
        for (location, name) in
            [("/srv/consent/roster.ndjson.gz", "roster.ndjson.gz"), ("s3://bucket/x/r.ndjson", "r.ndjson")]
        {
            let rule = ConsentRule { location: location.to_owned(), purpose: None };
            assert_eq!(name_of(&rule), name);
        }
    }
}
