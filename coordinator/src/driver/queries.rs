//! What is told of jobs, workers and the source.

use flatbed_coordinator_core::job::Job;
use flatbed_proto::convert::Wire;
use flatbed_proto::wire::job as job_wire;
use flatbed_types::job::{JobError, JobRecord, JobState, StopKind, Volume};
use flatbed_types::{ErrorCode, Instant, JobId};

use super::Driver;

/// Bounds of what a client is told to wait between polls.
const RETRY_AFTER_MS: std::ops::RangeInclusive<u64> = 1_000..=30_000;

impl Driver {
    pub(super) fn get(&self, id: JobId) -> Result<job_wire::JobView, JobError> {
        match self.jobs.get(&id) {
            Some(job) => visible(job).map(|()| self.view(job)),
            None => Err(not_found()),
        }
    }

    pub(super) fn list(&self, limit: usize) -> Vec<job_wire::JobView> {
        let mut jobs: Vec<&Job> = self.jobs.values().filter(|job| visible(job).is_ok()).collect();
        jobs.sort_by_key(|job| std::cmp::Reverse(job.durable_record().created));
        jobs.into_iter().take(limit).map(|job| self.view(job)).collect()
    }

    fn view(&self, job: &Job) -> job_wire::JobView {
        let now = self.context.now();
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
        };
        let young =
            job.durable_record().created.plus_millis(self.context.options.min_in_progress_ms as i64) > now;
        if young && job.durable_record().state == JobState::Complete {
            // Computed here, from one clock, so that no gateway says 200 and another then 202.
            let finalizing = JobRecord { state: JobState::Finalizing, ..job.durable_record().clone() };
            view.record = Some(finalizing.to_wire());
            view.permille = view.permille.min(990);
        }
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

fn not_found() -> JobError {
    JobError { code: ErrorCode::NotFound, message: "there is no such job".to_owned() }
}

/// Whether clients may still see a job: one that they stopped looks like none at once, an expired one is gone.
fn visible(job: &Job) -> Result<(), JobError> {
    match (job.stop_requested(), job.durable_record().state) {
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
