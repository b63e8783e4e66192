//! The coordinators' `Jobs` service as the gateway uses it: domain values in and out, a deadline on every
//! call, the next coordinator when one does not answer, one error type.
//!
//! Knows no HTTP. Invariants: every call may be repeated, at the same coordinator or another (a kick-off carries the
//! id of its job); text of an error that was not written for clients (transport errors carry addresses) does not
//! leave this module.

mod cohorts;
mod content;

pub(crate) use cohorts::{Deletion, NewCohort};

use std::collections::BTreeSet;
use std::time::Duration;

use flatbed_proto::convert::{Malformed, Wire, required, u128_bytes, u128_from};
use flatbed_proto::reach::Coordinators;
use flatbed_proto::status::code_of;
use flatbed_proto::wire::job as wire;
use flatbed_proto::wire::job::jobs_client::JobsClient;
use flatbed_types::job::{JobRecord, ObjectPointer, Volume};
use flatbed_types::manifest::PageRecord;
use flatbed_types::{ClientId, ErrorCode, ExportRequest, JobId, ResourceType, caps};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// Deadline of calls that a coordinator answers by itself.
const CALL: Duration = Duration::from_secs(5);

/// Deadline of `CreateJob`, which may wait `caps::ASK_MILLIS` for a worker's answer.
const CREATE: Duration = Duration::from_millis(caps::ASK_MILLIS + 5_000);

/// Deadline of `GetSource`: the capability statement has a good answer without it.
const SOURCE: Duration = Duration::from_secs(1);

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CallError {
    /// The class.
    pub code: ErrorCode,
    /// For the client.
    pub text: String,
}

/// A job and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobView {
    /// The job.
    pub record: JobRecord,
    /// Committed so far.
    pub committed: Volume,
    /// What it waits for or does.
    pub phase: String,
    /// Done in thousandths.
    pub permille: u32,
    /// When polling again makes sense.
    pub retry_after: Duration,
    /// `committed` and `permille` say nothing: who knows them cannot be reached.
    pub progress_unknown: bool,
}

/// A page of a manifest that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PageView {
    /// Where its files are listed.
    pub object: ObjectPointer,
    /// Whether no page follows it.
    pub last: bool,
}

/// A kick-off as it is passed on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KickOff<'a> {
    /// Who asks.
    pub client: &'a ClientId,
    /// For what.
    pub request: &'a ExportRequest,
    /// The URL as called.
    pub request_url: &'a str,
    /// The client's idempotency key; empty for none.
    pub idempotency_key: &'a str,
}

/// The service.
#[derive(Clone)]
pub(crate) struct Jobs(Coordinators);

impl Jobs {
    pub fn new(coordinators: Coordinators) -> Jobs {
        Jobs(coordinators)
    }

    /// Starts a job, or finds the one that the idempotency key names; whether it did the latter comes second.
    pub async fn create(&self, kick_off: KickOff<'_>) -> Result<(JobId, bool), CallError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|_| internal())?;
        let message = wire::CreateJobRequest {
            client: kick_off.client.to_string(),
            request: Some(kick_off.request.to_wire()),
            request_url: kick_off.request_url.to_owned(),
            idempotency_key: kick_off.idempotency_key.to_owned(),
            job: bytes::Bytes::copy_from_slice(&id),
        };
        let began = Instant::now();
        let answer = loop {
            let left = CREATE.saturating_sub(began.elapsed());
            let answer = self.0.call(left, |channel| {
                let message = message.clone();
                async move { client(channel).create_job(message).await.map(Response::into_inner) }
            });
            match answer.await {
                // One try is shorter than the question to a worker may take. Its answer is kept: the repeated call
                // finds the job.
                Err(status) if is_out_of_patience(&status) && began.elapsed() < CREATE => {}
                Err(status) => return Err(error_of(&status)),
                Ok(answer) => break answer,
            }
        };
        let job = u128_from(&answer.job, "job").map_err(|_| internal())?;
        Ok((JobId(job), answer.repeated_job))
    }

    /// One job; `None` when there is none or it has been stopped.
    pub async fn get(&self, job: JobId) -> Result<Option<JobView>, CallError> {
        let message = wire::GetJobRequest { job: u128_bytes(job.0), local_only: false };
        let answer = self.0.call(CALL, |channel| {
            let message = message.clone();
            async move { client(channel).get_job(message).await.map(Response::into_inner) }
        });
        match answer.await.map_err(|status| error_of(&status)) {
            Ok(answer) => view(answer).map(Some),
            Err(error) if error.code == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A page of a job's manifest, by its number from 1; `None` when there is none yet or any more.
    pub async fn page(&self, job: JobId, page: u32) -> Result<Option<PageView>, CallError> {
        let message = wire::GetPageRequest { job: u128_bytes(job.0), page };
        let answer = self.0.call(CALL, |channel| {
            let message = message.clone();
            async move { client(channel).get_page(message).await.map(Response::into_inner) }
        });
        match answer.await.map_err(|status| error_of(&status)) {
            Ok(answer) => {
                let page: PageRecord = required(answer.page, "page").map_err(unreadable)?;
                Ok(Some(PageView { object: page.object, last: answer.last }))
            }
            Err(error) if error.code == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Cancels or deletes a job.
    pub async fn stop(&self, job: JobId) -> Result<(), CallError> {
        let message = wire::StopJobRequest { job: u128_bytes(job.0) };
        let answer = self.0.call(CALL, |channel| {
            let message = message.clone();
            async move { client(channel).stop_job(message).await.map(drop) }
        });
        answer.await.map_err(|status| error_of(&status))
    }

    /// The types that the source holds; `None` while that is not known.
    pub async fn source_types(&self) -> Option<BTreeSet<ResourceType>> {
        let answer = self.0.call(SOURCE, |channel| async move {
            client(channel).get_source(wire::GetSourceRequest {}).await.map(Response::into_inner)
        });
        let source = answer.await.ok()?;
        // A type that this version does not know cannot be exported by it either.
        let known = source.types.iter().filter_map(|name| name.parse().ok());
        source.ready.then(|| known.filter(|each: &ResourceType| each.is_exportable()).collect())
    }
}

/// Whether the time of one try was up, as opposed to a coordinator that says so of something it waited for.
fn is_out_of_patience(status: &Status) -> bool {
    status.code() == Code::DeadlineExceeded && status.metadata().is_empty()
}

fn client(channel: Channel) -> JobsClient<Channel> {
    JobsClient::new(channel).max_decoding_message_size(caps::MAX_MESSAGE)
}

fn view(answer: wire::GetJobResponse) -> Result<JobView, CallError> {
    let job = answer.job.ok_or_else(internal)?;
    let checked = || {
        Ok(JobView {
            record: required(job.record, "view.record")?,
            committed: required(job.committed, "view.committed")?,
            phase: job.phase,
            permille: job.permille.min(1_000),
            retry_after: Duration::from_millis(u64::from(job.retry_after_ms)),
            progress_unknown: job.progress_unknown,
        })
    };
    checked().map_err(unreadable)
}

fn unreadable(malformed: Malformed) -> CallError {
    tracing::error!(%malformed, "the coordinator's answer cannot be read");
    internal()
}

fn internal() -> CallError {
    CallError { code: ErrorCode::Internal, text: general_text(ErrorCode::Internal) }
}

fn error_of(status: &Status) -> CallError {
    let code = code_of(status);
    if code.is_about_the_request() && !status.message().is_empty() {
        return CallError { code, text: status.message().to_owned() };
    }
    tracing::warn!(code = %code, grpc = ?status.code(), message = status.message(), "call to the coordinator failed");
    CallError { code, text: general_text(code) }
}

fn general_text(code: ErrorCode) -> String {
    let text = match code {
        ErrorCode::NotFound => "there is no such thing on this server",
        ErrorCode::Unavailable => "the export service cannot be reached at the moment; try again",
        ErrorCode::Timeout => "the export service did not answer in time; try again",
        ErrorCode::Throttled => "too many requests; try again later",
        ErrorCode::StorageFailed => "the store of the export service failed",
        _ => "the export service failed; the operator's log says why",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatbed_proto::status::to_status;

    #[test]
    fn er_03_texts_of_the_machinery_stay_inside() {
        let refused = error_of(&Status::unavailable("tcp connect error: 10.1.2.3:7070"));
        assert_eq!(refused.code, ErrorCode::Unavailable);
        assert!(!refused.text.contains("10.1.2.3"));
        let named = error_of(&to_status(ErrorCode::NotFound, "there is no Group/none"));
        assert_eq!(named, CallError { code: ErrorCode::NotFound, text: "there is no Group/none".to_owned() });
    }
}
