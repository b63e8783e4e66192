//! Status of a job and its deletion (rows ST and DL).

use std::time::Duration;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::{IntoResponse, Response};
use flatbed_types::ErrorCode;
use flatbed_types::job::{JobError, JobRecord, JobState, Volume};
use flatbed_types::manifest::Manifest;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::Value;

use super::refusal::{Refusal, fhir_json, json};
use super::{Session, http_date};
use crate::auth::Action;
use crate::fhir::{Issue, IssueCode, ManifestFacts, Page, manifest, operation_outcome};
use crate::jobs::JobView;
use crate::negotiate::media::JSON;

/// `X-Progress` stays shorter than 100 characters (ST-02).
const MAX_PROGRESS: usize = 99;

/// Longest time between two polls that is recommended to a client.
const MAX_RETRY_AFTER: u64 = 120;

/// `<base>/export/{job}`.
pub(super) async fn status(
    app: Session,
    path: Result<Path<String>, PathRejection>,
    method: Method,
) -> Result<Response, Refusal> {
    let Path(job) = path.map_err(|_| Refusal::no_such_job())?;
    match method {
        Method::GET | Method::HEAD => poll(&app, &job, 1).await,
        Method::DELETE => delete(&app, &job).await,
        _ => Err(Refusal::method("GET, HEAD, DELETE")),
    }
}

/// `<base>/export/{job}/manifest/{page}`: a page of the manifest after the first, which is the status URL's (rows PP).
/// 202 until it is there.
pub(super) async fn page(
    app: Session,
    path: Result<Path<(String, String)>, PathRejection>,
    method: Method,
) -> Result<Response, Refusal> {
    let Path((job, page)) = path.map_err(|_| Refusal::no_such_job())?;
    if method != Method::GET && method != Method::HEAD {
        return Err(Refusal::method("GET, HEAD"));
    }
    let page = page.parse().ok().filter(|page| *page > 1).ok_or_else(Refusal::no_such_job)?;
    poll(&app, &job, page).await
}

async fn poll(app: &Session, job: &str, page: u32) -> Result<Response, Refusal> {
    app.pace_polls(job)?;
    let view = app.guarded_job(job, Action::ReadStatus).await?;
    let form = view.record.request.form;
    if page > 1 && !form.partial_manifests {
        return Err(Refusal::no_such_job());
    }
    let told = match view.record.state {
        JobState::Planning
        | JobState::Running
        | JobState::Resolving
        | JobState::Merging
        | JobState::Finalizing => running(app, &view, page).await?,
        JobState::Complete => complete(app, &view, page).await?,
        // A page that was published stays; the status of the job is told at its own URL, and behind the last page.
        JobState::Failed if (2..=view.record.pages).contains(&page) => {
            json(StatusCode::OK, JSON, &page_body(app, &view.record, page).await?)
        }
        JobState::Failed => failed(view.record.error.as_ref()).into_response(),
        // The guard has refused these.
        JobState::Cancelled | JobState::Deleting | JobState::Gone => return Err(Refusal::no_such_job()),
    };
    Ok(if form.separate_status { separated(told) } else { told })
}

/// The same answer, with the status of the job beside that of the poll (ST-14). What is wrong with the poll itself
/// never comes here (ST-16).
fn separated(mut told: Response) -> Response {
    if let Ok(status) = HeaderValue::try_from(told.status().to_string()) {
        *told.status_mut() = StatusCode::OK;
        told.headers_mut().insert(HeaderName::from_static("x-export-status"), status);
    }
    told
}

/// 202 with what is known of the progress (ST-01 to ST-03), at the status URL with the first page if there is one
/// (PP-01); 200 with a later page that is there, 202 while it is not (PP-11).
async fn running(app: &Session, view: &JobView, number: u32) -> Result<Response, Refusal> {
    let text = progress_text(view);
    let mut response = if number <= view.record.pages {
        let status = if number == 1 { StatusCode::ACCEPTED } else { StatusCode::OK };
        json(status, JSON, &page_body(app, &view.record, number).await?)
    } else {
        let issue = Issue::information(IssueCode::INFORMATIONAL, format!("in progress: {text}"));
        fhir_json(StatusCode::ACCEPTED, &operation_outcome(&[issue]))
    };
    if response.status() == StatusCode::ACCEPTED {
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(HeaderName::from_static("x-progress"), value);
        }
        headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after(view.retry_after)));
    }
    Ok(response)
}

fn retry_after(wish: Duration) -> u64 {
    // Zero would invite a tight loop.
    wish.as_millis().div_ceil(1_000).clamp(1, u128::from(MAX_RETRY_AFTER)) as u64
}

/// One line about a running job: only what is committed counts, since the rest may be lost with a worker.
fn progress_text(view: &JobView) -> String {
    let record = &view.record;
    let mut text = if record.state == JobState::Planning || view.progress_unknown {
        String::new()
    } else {
        let (done, Volume { rows, bytes }) = (view.permille, view.committed);
        let estimate = record.estimate.bytes;
        let volume = if estimate >= bytes && estimate > 0 {
            format!("{} of about {}", bytes_text(bytes), bytes_text(estimate))
        } else {
            bytes_text(bytes)
        };
        format!("{}.{}%, {rows} resources, {volume}", done / 10, done % 10)
    };
    // What stands behind a semicolon may be the text of an error, which is for operators.
    let phase = view.phase.split(';').next().unwrap_or_default().trim_end();
    let phase = match (phase, record.state) {
        ("", JobState::Planning) => "planning",
        ("", _) if view.progress_unknown => "running",
        (phase, _) => phase,
    };
    if !phase.is_empty() {
        text.push_str(if text.is_empty() { "" } else { "; " });
        text.push_str(phase);
    }
    text.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).take(MAX_PROGRESS).collect()
}

fn bytes_text(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match UNITS.into_iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{}.{} {unit}", bytes / size, bytes % size / (size / 10)),
        None => format!("{bytes} B"),
    }
}

/// 200 with the manifest or a page of it (ST-06, ST-07, ST-20, ST-21).
async fn complete(app: &Session, view: &JobView, number: u32) -> Result<Response, Refusal> {
    let record = &view.record;
    let body = if number <= record.pages {
        page_body(app, record, number).await?
    } else if number == 1 {
        whole_body(app, record).await?
    } else {
        return Err(Refusal::no_such_job());
    };
    let mut response = json(StatusCode::OK, JSON, &body);
    let expires = record.expires.and_then(http_date).and_then(|date| HeaderValue::try_from(date).ok());
    if let Some(expires) = expires {
        response.headers_mut().insert(header::EXPIRES, expires);
    }
    Ok(response)
}

/// The whole manifest of a complete job.
async fn whole_body(app: &Session, record: &JobRecord) -> Result<Value, Refusal> {
    let Some(pointer) = &record.manifest else {
        tracing::error!(job = %record.id, "a complete job has no manifest");
        return Err(Refusal::class(
            ErrorCode::Internal,
            "this job has no manifest; the operator's log says more",
        ));
    };
    let loaded = app.manifests.get(&app.objects, pointer).await?;
    Ok(body(app, record, &loaded.manifest, None, &app.status_url(record.id)))
}

/// A page that can be read. Once told it never changes (PP-03).
async fn page_body(app: &Session, record: &JobRecord, number: u32) -> Result<Value, Refusal> {
    let (loaded, last) = app.page(record.id, number).await?;
    let next = (!last).then(|| app.page_url(record.id, number.saturating_add(1)));
    Ok(body(app, record, &loaded.manifest, next, &app.page_url(record.id, number)))
}

/// What lists these files, which are found below a URL.
fn body(app: &Session, record: &JobRecord, files: &Manifest, next: Option<String>, url: &str) -> Value {
    let needs_token = app.options.tokens.is_some();
    let facts = ManifestFacts::new(files, &record.request, &record.request_url, needs_token);
    let page = Page { entries: &files.entries, next };
    manifest(page, facts, &|entry| format!("{url}/file/{}", entry.file))
}

/// The error that a job ended with (ST-08). A failure is final, so that classes that mean "try again" to a
/// poll do not keep clients polling.
fn failed(error: Option<&JobError>) -> Refusal {
    match error {
        Some(error) if !error.code.is_retryable() => Refusal::class(error.code, text_for_clients(error)),
        Some(error) => {
            let text = text_for_clients(error);
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, IssueCode::PROCESSING, text)
        }
        None => Refusal::class(ErrorCode::Internal, "the job failed without a reason on record"),
    }
}

/// What a client is told: texts about its request as they are; of what happened inside, only the kind, since the
/// text may name files and addresses of the server. Operators find it in the log and with `flatbed jobs show`.
fn text_for_clients(error: &JobError) -> String {
    if error.code.is_about_the_request() {
        return error.message.clone();
    }
    let general = match error.code {
        ErrorCode::SourceFailed => "the data could not be read",
        ErrorCode::SourceChanged => "the data changed while it was exported; start a new export",
        ErrorCode::StorageFailed => "the files of this export could not be stored",
        ErrorCode::Unavailable | ErrorCode::Timeout => {
            "something that the export needs could not be reached; start a new export"
        }
        _ => "a defect of the server ended this export",
    };
    format!("{general}; the operator's log says more")
}

/// Cancels or deletes (DL-01 to DL-06).
async fn delete(app: &Session, job: &str) -> Result<Response, Refusal> {
    let view = app.guarded_job(job, Action::StopJob).await?;
    let id = view.record.id;
    app.jobs.stop(id).await.map_err(|error| match error.code {
        ErrorCode::NotFound => Refusal::no_such_job(),
        _ => Refusal::from(error),
    })?;
    tracing::info!(job = %id, client = %app.client(), state = ?view.record.state, "job deleted");
    let issue =
        Issue::information(IssueCode::INFORMATIONAL, "the job is stopped and its files will be removed");
    Ok(fhir_json(StatusCode::ACCEPTED, &operation_outcome(&[issue])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatbed_types::{ClientId, Codec, ExportRequest, Instant, JobId, Level};

    fn view(state: JobState, phase: &str, committed: Volume, estimate: Volume) -> JobView {
        let request = ExportRequest::everything(Level::System);
        let new = JobRecord::new(JobId(1), ClientId::open(), request, Codec::Gzip, Instant::from_millis(0));
        let record = JobRecord { state, estimate, ..new };
        let retry_after = Duration::ZERO;
        JobView {
            record,
            committed,
            phase: phase.to_owned(),
            permille: 423,
            retry_after,
            progress_unknown: false,
        }
    }

    #[test]
    fn numbers_that_nobody_knows_are_not_told() {
        let unknown = JobView {
            progress_unknown: true,
            ..view(JobState::Running, "", Volume { rows: 0, bytes: 0 }, Volume { rows: 9, bytes: 9_000 })
        };
        assert_eq!(progress_text(&unknown), "running");
    }

    #[test]
    fn st_02_progress_is_truthful_short_and_printable() {
        let volume = |rows, bytes| Volume { rows, bytes };
        let table = [
            (JobState::Planning, "", volume(0, 0), volume(0, 0), "planning"),
            (
                JobState::Planning,
                "planning: reading 3.1 of 9.0 GB",
                volume(0, 0),
                volume(0, 0),
                "planning: reading 3.1 of 9.0 GB",
            ),
            (
                JobState::Running,
                "",
                volume(1_234, 5_678_000),
                volume(9, 13_400_000_000),
                "42.3%, 1234 resources, 5.6 MB of about 13.4 GB",
            ),
            (
                JobState::Running,
                "no eligible worker",
                volume(0, 0),
                volume(1, 999),
                "42.3%, 0 resources, 0 B of about 999 B; no eligible worker",
            ),
            (
                JobState::Planning,
                "preparing the source; waiting: cannot read /srv/lake/x",
                volume(0, 0),
                volume(0, 0),
                "preparing the source",
            ),
            (JobState::Planning, "; waiting: /srv", volume(0, 0), volume(0, 0), "planning"),
            (JobState::Running, "", volume(5, 2_000), volume(1, 1_000), "42.3%, 5 resources, 2.0 kB"),
            (
                JobState::Resolving,
                "a\r\nb\u{e9}",
                volume(5, 2_000),
                volume(0, 0),
                "42.3%, 5 resources, 2.0 kB; a??b?",
            ),
        ];
        for (state, phase, committed, estimate, expected) in table {
            assert_eq!(progress_text(&view(state, phase, committed, estimate)), expected);
        }
        let long = view(JobState::Running, &"x".repeat(500), volume(u64::MAX, u64::MAX), volume(0, u64::MAX));
        assert_eq!(progress_text(&long).len(), MAX_PROGRESS);
    }

    #[test]
    fn st_03_retry_after_is_never_zero_and_rounds_up() {
        for (millis, seconds) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (4_200_000, MAX_RETRY_AFTER)] {
            assert_eq!(retry_after(Duration::from_millis(millis)), seconds);
        }
    }
}
