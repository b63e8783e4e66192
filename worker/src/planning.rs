//! The plan task: fixes the moment and the state of the source, surveys its lanes, resolves the patients of the
//! job into a roster, finds out whom it leaves out, tells what was deleted, and reports what of the source cannot be exported.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

use flatbed_extract::cohort::{self, Step, Workshop};
use flatbed_extract::keylist::KeyListWriter;
use flatbed_extract::source::{Progress, Window};
use flatbed_extract::{KeyListBuilder, Snapshot, organise, outcome, roster};
use flatbed_proto::convert::{Wire, each_to_wire, u128_bytes};
use flatbed_proto::wire::lease::{CompleteRequest, PlanResult, complete_request};
use flatbed_proto::wire::types as wire;
use flatbed_types::job::{JobError, ObjectPointer, SourcePin};
use flatbed_types::request::{FhirId, ForeignPatients};
use flatbed_types::task::{LaneSurvey, OutputKind, OutputObject};
use flatbed_types::{ErrorCode, Level, Nonce, ResourceType, layout};
use prost::Message;
use tokio::runtime::Handle;

use crate::commit::{Decided, Report, deliver};
use crate::deleted::{self, Deleted};
use crate::lines::LineFiles;
use crate::slot::{End, Grant, Running};
use crate::{Context, consent, internal, io_error, random_u64, source_error, upload};

/// Shows preparation of the source in the job's status.
struct Noted<'a>(&'a Running);

impl Progress for Noted<'_> {
    fn report(&self, phase: &str, done: u64, total: u64) {
        self.0.set_note(describe(phase, done, total));
    }
}

/// "reading 3.1 of 9.0 GB".
pub(crate) fn describe(phase: &str, done: u64, total: u64) -> String {
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    match total {
        0..1_000_000_000 => format!("{phase} {} of {} MB", done / 1_000_000, total / 1_000_000),
        _ => format!("{phase} {:.1} of {:.1} GB", gigabytes(done), gigabytes(total)),
    }
}

pub(crate) fn run(context: &Context, runtime: &Handle, running: &Running) -> Result<End, JobError> {
    let grant = &running.grant;
    let snapshot = context.source.snapshot(&Noted(running)).map_err(source_error)?;
    running.set_note(String::new());
    if running.is_revoked() {
        return Ok(End::Known);
    }
    let mut lanes = survey(grant, snapshot.as_ref())?;
    if grant.request.by_patient {
        let organised = organise::survey(&lanes, |of| grant.request.wants_type(of));
        lanes = organised.into_iter().collect();
    }
    let draft = wire::PlanDraft { lanes: each_to_wire(&lanes) }.encode_to_vec();
    let key = layout::draft_object(&grant.root, grant.attempt, Nonce(random_u64()?));
    let draft = upload::put(&context.objects, runtime, key, draft)?;
    let roster = write_roster(context, runtime, running, snapshot.as_ref())?;
    if running.is_revoked() {
        return Ok(End::Known);
    }
    if roster.is_none() && matches!(grant.request.level, Level::Group(_)) {
        // Without a roster an export is of everybody.
        return Err(internal("a Group without a roster"));
    }
    let pointer = roster.as_ref().map(|roster| &roster.pointer);
    let applied = consent::apply(context, runtime, running, snapshot.as_ref(), pointer)?;
    let excluded = applied.as_ref().and_then(|applied| applied.list.as_deref());
    let deleted = deleted::write(context, runtime, grant, snapshot.as_ref(), pointer, excluded)?;
    let Deleted { mut files, mut remarks } = deleted;
    remarks.extend(roster.iter().flat_map(|roster| &roster.left_out).map(left_out_line));
    remarks.extend(applied.iter().filter_map(consent::Applied::remark));
    files.extend(write_remarks(context, runtime, grant, snapshot.as_ref(), remarks, excluded.is_some())?);
    let pin = SourcePin { source: context.source.address(), snapshot: snapshot.fingerprint().to_owned() };
    let (roster, roster_len) = match roster {
        Some(Roster { pointer, len, .. }) => (Some(pointer), len),
        None => (None, 0),
    };
    let plan = PlanResult {
        transaction_time: snapshot.time().nanos(),
        pin: Some(pin.to_wire()),
        draft: Some(draft.to_wire()),
        patients: snapshot.patients(),
        roster: roster.as_ref().map(Wire::to_wire),
        roster_len,
        files: each_to_wire(&files),
        exclusions: applied.map(|applied| applied.exclusions.to_wire()),
    };
    complete(context, runtime, running, complete_request::Result::Plan(plan))
}

/// What there is to read. What comes because it is associated with other rows comes whatever its age.
fn survey(grant: &Grant, snapshot: &dyn Snapshot) -> Result<Vec<LaneSurvey>, JobError> {
    let request = &grant.request;
    let window = Window { since: request.since, until: request.until };
    let is_associated = |survey: &LaneSurvey| request.associates(survey.lane.resource_type);
    let mut lanes = snapshot.survey(&window).map_err(source_error)?;
    if !window.is_open() && request.associates(ResourceType::PROVENANCE) {
        lanes.retain(|survey| !is_associated(survey));
        let whole = snapshot.survey(&Window::default()).map_err(source_error)?;
        lanes.extend(whole.into_iter().filter(is_associated));
        lanes.sort_by_key(|survey| survey.lane);
    }
    Ok(lanes)
}

/// Reports the result of a task that is no extract. Whatever is decided, the attempt is over.
pub(crate) fn complete(
    context: &Context,
    runtime: &Handle,
    running: &Running,
    result: complete_request::Result,
) -> Result<End, JobError> {
    let grant = &running.grant;
    let request = CompleteRequest {
        job: u128_bytes(grant.job.0),
        task: grant.task.0,
        attempt: grant.attempt.0,
        token: grant.token.0,
        result: Some(result),
    };
    let report = Report::Complete(request);
    match runtime.block_on(deliver(&context.coordinators, &running.owner, report, &running.revoked)) {
        Decided::Counts(_) => Ok(End::Known),
        Decided::Dropped => Ok(End::Unfinished),
        Decided::Impossible(error) => Err(error),
    }
}

/// The patients of a job, as an object.
struct Roster {
    pointer: ObjectPointer,
    len: u64,
    /// Those of the list `patient` that are not in it, where they are told and not refused: at most
    /// `caps::MAX_PATIENTS`.
    left_out: BTreeSet<FhirId>,
}

fn write_roster(
    context: &Context,
    runtime: &Handle,
    running: &Running,
    snapshot: &dyn Snapshot,
) -> Result<Option<Roster>, JobError> {
    let grant = &running.grant;
    let chosen = &grant.request.patients;
    let tells = grant.request.foreign_patients == ForeignPatients::Reported;
    let mut left_out = if tells { absent(chosen, snapshot)? } else { BTreeSet::new() };
    let mut builder = KeyListBuilder::new(&context.options.scratch, context.options.sort_budget);
    let failed = |error: std::io::Error| io_error("sorting a roster", &error);
    match &grant.request.level {
        Level::System => return Ok(None),
        Level::Patient if chosen.is_empty() => return Ok(None),
        Level::Patient => {
            for patient in chosen.difference(&left_out) {
                builder.push(patient.as_str().as_bytes()).map_err(failed)?;
            }
        }
        Level::Group(_) if grant.request.cohort.is_some() => {
            return write_cohort(context, runtime, running, snapshot);
        }
        Level::Group(id) => {
            let mut members = BTreeSet::new();
            let found = roster::members(snapshot, id, snapshot.time(), &mut |patient| {
                if !chosen.is_empty() && !chosen.contains(patient) {
                    return Ok(());
                }
                if tells && chosen.contains(patient) {
                    members.insert(patient.clone());
                }
                let pushed = builder.push(patient.as_str().as_bytes());
                pushed.map_err(|error| flatbed_extract::SourceError::io("sorting a roster", &error))
            });
            if !found.map_err(source_error)? {
                let message = format!("there is no Group/{id} in the source any more");
                return Err(JobError { code: ErrorCode::NotFound, message });
            }
            if tells {
                left_out.extend(chosen.difference(&members).cloned());
            }
        }
    }
    let (file, len) = upload::list_file(builder, &context.options.scratch, "sorting a roster")?;
    store_roster(context, runtime, grant, (file, len), left_out).map(Some)
}

fn store_roster(
    context: &Context,
    runtime: &Handle,
    grant: &Grant,
    (mut file, len): (File, u64),
    left_out: BTreeSet<FhirId>,
) -> Result<Roster, JobError> {
    let key = layout::roster_object(&grant.root, grant.attempt, Nonce(random_u64()?));
    let pointer = upload::put_file(&context.objects, runtime, key, &mut file)?;
    Ok(Roster { pointer, len, left_out })
}

/// Those of these patients that have no Patient resource.
fn absent(patients: &BTreeSet<FhirId>, snapshot: &dyn Snapshot) -> Result<BTreeSet<FhirId>, JobError> {
    let ids: Vec<FhirId> = patients.iter().cloned().collect();
    let there = snapshot.has_patients(&ids).map_err(source_error)?;
    Ok(ids.into_iter().zip(there).filter(|(_, there)| !there).map(|(id, _)| id).collect())
}

/// What is told of a patient that was asked for and is left out (AT-09).
fn left_out_line(patient: &FhirId) -> Vec<u8> {
    let name = format!("Patient/{patient}");
    let text = format!("patient: {name} is not on this server or no member of this Group; ignored");
    outcome::line(outcome::Severity::Warning, "not-found", &text, Some(&name))
}

/// The roster of a Group that a client made by criteria: who it holds now, of those that the request names if it names
/// any. Nothing where the attempt was revoked meanwhile.
fn write_cohort(
    context: &Context,
    runtime: &Handle,
    running: &Running,
    snapshot: &dyn Snapshot,
) -> Result<Option<Roster>, JobError> {
    let grant = &running.grant;
    let Some(plan) = &grant.request.cohort else { return Ok(None) };
    let options = &context.options;
    let workshop =
        Workshop { scratch: &options.scratch, budget: options.sort_budget, long_rows: &context.long_rows };
    let found = cohort::members(snapshot, plan, &workshop, &mut |step| {
        let Step { filter, filters, found } = step;
        running.set_note(format!("finding members: filter {filter} of {filters}, {found} patients so far"));
        !running.is_revoked()
    });
    let Some(members) = found.map_err(source_error)? else { return Ok(None) };
    running.set_note(String::new());
    let doing = "writing a roster";
    let failed = |error: std::io::Error| io_error(doing, &error);
    let file = tempfile::tempfile_in(&options.scratch).map_err(failed)?;
    let mut writer = KeyListWriter::new(std::io::BufWriter::new(file));
    let chosen = &grant.request.patients;
    // Who is in was not known at the kick-off: what is left out is told whatever the request says.
    let mut left_out = chosen.clone();
    for key in members.iter() {
        let key = key.map_err(failed)?;
        let named = || std::str::from_utf8(&key).ok()?.parse().ok().filter(|id| chosen.contains(id));
        let named: Option<FhirId> = if chosen.is_empty() { None } else { named() };
        if chosen.is_empty() || named.is_some() {
            writer.push(&key).map_err(failed)?;
        }
        named.map(|id| left_out.remove(&id));
    }
    let (out, len) = writer.finish().map_err(failed)?;
    let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
    store_roster(context, runtime, grant, (file, len), left_out).map(Some)
}

/// Writes what there is to say: what was ignored of the request (KO-23, MF-24), what of the source cannot be exported,
/// and `more` lines. Where patients are left out, no resource of the source is named.
fn write_remarks(
    context: &Context,
    runtime: &Handle,
    grant: &Grant,
    snapshot: &dyn Snapshot,
    more: Vec<Vec<u8>>,
    without_names: bool,
) -> Result<Vec<OutputObject>, JobError> {
    let (kind, resource_type) = (OutputKind::Outcome, ResourceType::OPERATION_OUTCOME);
    let mut files = LineFiles::new(context, runtime, grant, kind, resource_type);
    for line in grant.request.remarks.iter().map(outcome::remark_line).chain(more) {
        files.add(line)?;
    }
    let mut stored = Ok(());
    let listed = snapshot.problems(&mut |problem| {
        let problem = if without_names { consent::unnamed(problem) } else { problem };
        stored = files.add(outcome::problem_line(&problem));
        match &stored {
            Ok(()) => Ok(()),
            Err(error) => {
                Err(flatbed_extract::SourceError { code: error.code, message: error.message.clone() })
            }
        }
    });
    stored?;
    listed.map_err(source_error)?;
    files.finish()
}

/// What a kick-off asks (`decisions.md` 7).
pub(crate) struct Answered {
    pub group_found: bool,
    pub missing: Vec<FhirId>,
}

/// Looks into the source as it is now.
pub(crate) fn answer(
    source: &Arc<dyn flatbed_extract::Source>,
    group: Option<&FhirId>,
    patients: &[FhirId],
) -> Result<Answered, JobError> {
    let snapshot = source.snapshot(&flatbed_extract::source::NoProgress).map_err(source_error)?;
    let Some(group) = group else {
        let found = snapshot.has_patients(patients).map_err(source_error)?;
        let missing = patients.iter().zip(found).filter(|(_, found)| !found).map(|(id, _)| id.clone());
        return Ok(Answered { group_found: false, missing: missing.collect() });
    };
    if patients.is_empty() {
        let standing = snapshot.group(group, &mut |_| Ok(())).map_err(source_error)?;
        return Ok(Answered { group_found: standing.is_some(), missing: Vec::new() });
    }
    let mut missing: BTreeSet<_> = patients.iter().cloned().collect();
    let group_found = roster::members(snapshot.as_ref(), group, snapshot.time(), &mut |patient| {
        missing.remove(patient);
        Ok(())
    });
    Ok(Answered { group_found: group_found.map_err(source_error)?, missing: missing.into_iter().collect() })
}
