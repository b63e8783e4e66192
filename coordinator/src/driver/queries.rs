//! What is told of jobs, workers and the source.

use flatbed_coordinator_core::job::Job;
use flatbed_proto::convert::Wire;
use flatbed_proto::wire::job as job_wire;
use flatbed_types::job::{JobError, JobRecord, JobState, StopKind, Volume};
use flatbed_types::manifest::PageRecord;
use flatbed_types::{ErrorCode, Instant, JobId};

use super::Driver;
use crate::{CoordinatorOptions, Status};

/// Bounds of what a client is told to wait between polls.
const RETRY_AFTER_MS: std::ops::RangeInclusive<u64> = 1_000..=30_000;

impl Driver {
    pub(super) fn get(&self, id: JobId) -> Result<job_wire::JobView, JobError> {
        match self.jobs.get(&id) {
            Some(owned) => visible(owned.machine.durable_record(), owned.machine.stop_requested())
                .map(|()| self.view(&owned.machine)),
            None => Err(not_found()),
        }
    }

    pub(super) fn list(&self, limit: usize) -> Vec<job_wire::JobView> {
        let machines = self.jobs.values().map(|owned| &owned.machine);
        let seen = |job: &&Job| visible(job.durable_record(), job.stop_requested()).is_ok();
        let mut jobs: Vec<&Job> = machines.filter(seen).collect();
        jobs.sort_by_key(|job| std::cmp::Reverse(job.durable_record().created));
        jobs.into_iter().take(limit).map(|job| self.view(job)).collect()
    }

    pub(super) fn status(&self) -> Status {
        let now = self.io.now();
        let machines = || self.jobs.values().map(|owned| &owned.machine);
        let sessions = || self.sessions.connected().map(|(_, session)| session);
        Status {
            ready: self.cluster.is_ready(),
            jobs_owned: self.cluster.owned() as u64,
            jobs_unfinished: machines().filter(|job| !job.durable_record().state.is_terminal()).count()
                as u64,
            tasks_waiting: machines().map(|job| u64::from(job.waiting(now))).sum(),
            tasks_running: machines().map(|job| u64::from(job.running())).sum(),
            workers: sessions().count() as u64,
            slots: sessions().map(|session| u64::from(session.slots)).sum(),
            slots_free: sessions().map(|session| u64::from(session.free_slots())).sum(),
            questions_waiting: self.unasked.iter().filter(|(_, asker)| !asker.is_closed()).count() as u64,
        }
    }

    fn view(&self, job: &Job) -> job_wire::JobView {
        let now = self.io.now();
        let progress = job.progress(now);
        let mut in_flight = Volume::default();
        let mut phase = progress.phase;
        for (attempt, holder) in job.leases() {
            let session = self.sessions.get(holder.session);
            let Some(report) = session.and_then(|s| s.reports.get(&(job.id(), attempt))) else { continue };
            in_flight.rows += report.uncommitted.rows;
            in_flight.bytes += report.uncommitted.bytes;
            if !report.note.is_empty() {
                phase = format!("{phase}: {}", report.note);
            }
        }
        let reads = |pin: &flatbed_types::job::SourcePin| {
            self.sessions.connected().any(|(_, session)| session.source == pin.source)
        };
        let open = !job.durable_record().state.is_terminal();
        if open && job.durable_record().pin.as_ref().is_some_and(|pin| !reads(pin)) {
            phase = "waiting for a worker that reads the source of this job".to_owned();
        }
        let mut view = job_wire::JobView {
            record: Some(job.durable_record().to_wire()),
            committed: Some(progress.committed.to_wire()),
            in_flight: Some(in_flight.to_wire()),
            tasks: progress.tasks,
            tasks_done: progress.tasks_done,
            running: progress.running,
            phase,
            permille: progress.permille,
            retry_after_ms: retry_after(job.durable_record(), progress.permille, now),
            progress_unknown: false,
        };
        keep_in_progress(&mut view, job.durable_record(), &self.options, now);
        view
    }

    pub(super) fn source(&self) -> job_wire::GetSourceResponse {
        let mut connected = self.sessions.connected().map(|(_, session)| session);
        let first = connected.next();
        job_wire::GetSourceResponse {
            ready: self.sessions.connected().any(|(_, session)| session.prepared),
            source: first.map(|session| session.source.clone()).unwrap_or_default(),
            types: first.iter().flat_map(|s| &s.types).map(|kind| kind.name().to_owned()).collect(),
            workers: self.sessions.connected().count() as u32,
        }
    }
}

/// A job as clients are told of it by a coordinator that does not own it and cannot reach whoever does: the record
/// says where it stands, but not how far it is.
pub(crate) fn stored_view(
    record: &JobRecord,
    stop: Option<StopKind>,
    options: &CoordinatorOptions,
    now: Instant,
) -> Result<job_wire::JobView, JobError> {
    visible(record, stop)?;
    let complete = record.state == JobState::Complete;
    let mut view = job_wire::JobView {
        record: Some(record.to_wire()),
        committed: Some(record.result.to_wire()),
        in_flight: Some(Volume::default().to_wire()),
        permille: if complete { 1000 } else { 0 },
        retry_after_ms: retry_after(record, 0, now),
        progress_unknown: !record.state.is_terminal(),
        ..job_wire::JobView::default()
    };
    if view.progress_unknown {
        view.phase = "waiting for its coordinator".to_owned();
    }
    keep_in_progress(&mut view, record, options, now);
    Ok(view)
}

/// A first poll sees every job in progress for a short while (`decisions.md` 20). Computed by coordinators, from the
/// job's record, so that no gateway says 200 and another then 202.
fn keep_in_progress(
    view: &mut job_wire::JobView,
    record: &JobRecord,
    options: &CoordinatorOptions,
    now: Instant,
) {
    let young = record.created.plus_millis(options.min_in_progress_ms as i64) > now;
    if young && record.state == JobState::Complete {
        // The last page comes with the completion: nobody is to see it without its being the last.
        let pages = record.pages.saturating_sub(1);
        let finalizing = JobRecord { state: JobState::Finalizing, pages, ..record.clone() };
        view.record = Some(finalizing.to_wire());
        view.permille = view.permille.min(990);
    }
}

/// A page of a job's manifest as clients are told of it. Whether it is time to tell of the last one says the view of the
/// job: what a view has counted is not denied here, by a coordinator whose clock is behind.
pub(crate) fn stored_page(
    (record, stop): (&JobRecord, Option<StopKind>),
    number: u32,
    page: Option<PageRecord>,
) -> Result<job_wire::GetPageResponse, JobError> {
    visible(record, stop)?;
    let none = || {
        let message = format!("this job has no page {number}, or not yet");
        JobError { code: ErrorCode::NotFound, message }
    };
    let last = record.state == JobState::Complete && number == record.pages;
    Ok(job_wire::GetPageResponse { page: Some(page.ok_or_else(none)?.to_wire()), last })
}

pub(crate) fn not_found() -> JobError {
    JobError { code: ErrorCode::NotFound, message: "there is no such job".to_owned() }
}

/// Whether clients may still see a job: one that they stopped looks like none at once, an expired one is gone.
pub(crate) fn visible(record: &JobRecord, stop: Option<StopKind>) -> Result<(), JobError> {
    match (stop, record.state) {
        (Some(StopKind::Delete), _) | (_, JobState::Cancelled) => Err(not_found()),
        (_, JobState::Deleting | JobState::Gone) | (Some(StopKind::Expire), _) => Err(JobError {
            code: ErrorCode::Gone,
            message: "the files of this job have been deleted".to_owned(),
        }),
        (None, _) => Ok(()),
    }
}

/// When polling again makes sense: a tenth of the expected rest, within bounds.
fn retry_after(record: &JobRecord, permille: u32, now: Instant) -> u32 {
    let elapsed = u64::try_from(now.millis() - record.created.millis()).unwrap_or(0);
    let rest = match permille {
        0 => elapsed,
        done => elapsed.saturating_mul(u64::from(1000 - done.min(1000))) / u64::from(done),
    };
    (rest / 10).clamp(*RETRY_AFTER_MS.start(), *RETRY_AFTER_MS.end()) as u32
}
