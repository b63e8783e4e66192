//! The Jobs service as a caller sees it, with checked values, at whichever coordinator answers.

use std::time::Duration;

use flatbed_proto::convert::{Wire, required, u128_bytes, u128_from};
use flatbed_proto::reach::Coordinators;
use flatbed_proto::status::code_of;
use flatbed_proto::wire::job as wire;
use flatbed_proto::wire::job::jobs_client::JobsClient;
use flatbed_types::job::{JobRecord, Volume};
use flatbed_types::{ClientId, ErrorCode, ExportRequest, JobId, caps};
use tonic::transport::Channel;
use tonic::{Response, Status};

/// How long a call may take, at all coordinators together.
const CALL: Duration = Duration::from_secs(10);

/// A call that a coordinator refused or could not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    /// The class.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

impl From<Status> for RemoteError {
    fn from(status: Status) -> RemoteError {
        let code = code_of(&status);
        let message = match status.message() {
            "" => format!("the coordinator answered {code}"),
            text => text.to_owned(),
        };
        RemoteError { code, message }
    }
}

/// A job and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    /// The job.
    pub record: JobRecord,
    /// Committed so far.
    pub committed: Volume,
    /// Written beyond that.
    pub in_flight: Volume,
    /// Tasks planned so far.
    pub tasks: u32,
    /// Of these, done.
    pub tasks_done: u32,
    /// Attempts at work.
    pub running: u32,
    /// What it does or waits for.
    pub phase: String,
    /// Done in thousandths.
    pub permille: u32,
    /// The coordinator that knows how far the job is cannot be reached.
    pub progress_unknown: bool,
}

impl JobView {
    fn from_wire(view: wire::JobView) -> Result<JobView, flatbed_proto::Malformed> {
        Ok(JobView {
            record: required(view.record, "view.record")?,
            committed: required(view.committed, "view.committed")?,
            in_flight: Volume::from_wire(view.in_flight.unwrap_or_default())?,
            tasks: view.tasks,
            tasks_done: view.tasks_done,
            running: view.running,
            phase: view.phase,
            permille: view.permille.min(1_000),
            progress_unknown: view.progress_unknown,
        })
    }
}

/// Calls to the Jobs service.
#[derive(Clone)]
pub struct JobsApi(Coordinators);

impl JobsApi {
    /// At these coordinators.
    pub fn new(coordinators: Coordinators) -> JobsApi {
        JobsApi(coordinators)
    }

    /// Starts a job.
    pub async fn create(
        &self,
        client: &ClientId,
        request: &ExportRequest,
        request_url: &str,
    ) -> Result<JobId, RemoteError> {
        let mut id = [0; 16];
        let no_randomness =
            |_| RemoteError { code: ErrorCode::Internal, message: "the system has no randomness".to_owned() };
        getrandom::fill(&mut id).map_err(no_randomness)?;
        let message = wire::CreateJobRequest {
            client: client.to_string(),
            request: Some(request.to_wire()),
            request_url: request_url.to_owned(),
            idempotency_key: String::new(),
            job: bytes::Bytes::copy_from_slice(&id),
        };
        let answer = self.0.call(CALL, |channel| {
            let message = message.clone();
            async move { jobs(channel).create_job(message).await.map(Response::into_inner) }
        });
        u128_from(&answer.await?.job, "job").map(JobId).map_err(malformed)
    }

    /// One job.
    pub async fn get(&self, job: JobId) -> Result<JobView, RemoteError> {
        let message = wire::GetJobRequest { job: u128_bytes(job.0), local_only: false };
        let answer = self.0.call(CALL, |channel| {
            let message = message.clone();
            async move { jobs(channel).get_job(message).await.map(Response::into_inner) }
        });
        JobView::from_wire(answer.await?.job.unwrap_or_default()).map_err(malformed)
    }

    /// Jobs, newest first.
    pub async fn list(&self, limit: u32) -> Result<Vec<JobView>, RemoteError> {
        self.list_of(wire::ListJobsRequest { limit, local_only: false }).await
    }

    /// Jobs that the coordinator that answers owns, newest first.
    pub async fn list_owned(&self, limit: u32) -> Result<Vec<JobView>, RemoteError> {
        self.list_of(wire::ListJobsRequest { limit, local_only: true }).await
    }

    async fn list_of(&self, message: wire::ListJobsRequest) -> Result<Vec<JobView>, RemoteError> {
        let answer = self.0.call(CALL, |channel| async move {
            jobs(channel).list_jobs(message).await.map(Response::into_inner)
        });
        let views = answer.await?.jobs.into_iter().map(JobView::from_wire);
        views.collect::<Result<_, _>>().map_err(malformed)
    }

    /// Cancels or deletes a job.
    pub async fn stop(&self, job: JobId) -> Result<(), RemoteError> {
        let message = wire::StopJobRequest { job: u128_bytes(job.0) };
        let answer = self.0.call(CALL, |channel| {
            let message = message.clone();
            async move { jobs(channel).stop_job(message).await.map(drop) }
        });
        Ok(answer.await?)
    }

    /// What the workers read from.
    pub async fn source(&self) -> Result<wire::GetSourceResponse, RemoteError> {
        let answer = self.0.call(CALL, |channel| async move {
            jobs(channel).get_source(wire::GetSourceRequest {}).await.map(Response::into_inner)
        });
        Ok(answer.await?)
    }
}

fn jobs(channel: Channel) -> JobsClient<Channel> {
    let client = JobsClient::new(channel);
    client.max_decoding_message_size(caps::MAX_MESSAGE).max_encoding_message_size(caps::MAX_MESSAGE)
}

fn malformed(error: flatbed_proto::Malformed) -> RemoteError {
    RemoteError { code: ErrorCode::Internal, message: format!("the coordinator's answer: {error}") }
}
