//! The Jobs service as a caller sees it, with checked values.

use anyhow::{Context, anyhow};
use flatbed_proto::convert::{Wire, required, u128_bytes, u128_from};
use flatbed_proto::status::code_of;
use flatbed_proto::wire::job as wire;
use flatbed_proto::wire::job::jobs_client::JobsClient;
use flatbed_types::job::{JobRecord, Volume};
use flatbed_types::{ClientId, ErrorCode, ExportRequest, JobId, caps};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Longest wait for a connection.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(5);

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
        })
    }
}

/// Calls to the Jobs service.
#[derive(Debug, Clone)]
pub struct JobsApi(JobsClient<Channel>);

impl JobsApi {
    /// Over this connection.
    pub fn new(channel: Channel) -> JobsApi {
        let client = JobsClient::new(channel);
        JobsApi(
            client.max_decoding_message_size(caps::MAX_MESSAGE).max_encoding_message_size(caps::MAX_MESSAGE),
        )
    }

    /// Connects to the first coordinator of a comma-separated list that answers.
    pub async fn connect(urls: &str) -> anyhow::Result<JobsApi> {
        let mut last = anyhow!("no coordinator is named");
        for url in urls.split(',').map(str::trim).filter(|url| !url.is_empty()) {
            let endpoint = Endpoint::from_shared(url.to_owned());
            let endpoint =
                endpoint.with_context(|| format!("'{url}' is no URL like http://127.0.0.1:7070"))?;
            match endpoint.connect_timeout(CONNECT).connect().await {
                Ok(channel) => return Ok(JobsApi::new(channel)),
                Err(error) => last = anyhow!(error).context(format!("cannot reach the coordinator at {url}")),
            }
        }
        Err(last)
    }

    /// Starts a job.
    pub async fn create(
        &self,
        client: &ClientId,
        request: &ExportRequest,
        request_url: &str,
    ) -> Result<JobId, RemoteError> {
        let message = wire::CreateJobRequest {
            client: client.to_string(),
            request: Some(request.to_wire()),
            request_url: request_url.to_owned(),
            idempotency_key: String::new(),
            job: bytes::Bytes::new(),
        };
        let answer = self.0.clone().create_job(message).await?.into_inner();
        u128_from(&answer.job, "job").map(JobId).map_err(malformed)
    }

    /// One job.
    pub async fn get(&self, job: JobId) -> Result<JobView, RemoteError> {
        let answer =
            self.0.clone().get_job(wire::GetJobRequest { job: u128_bytes(job.0), local_only: false }).await?;
        JobView::from_wire(answer.into_inner().job.unwrap_or_default()).map_err(malformed)
    }

    /// Jobs, newest first.
    pub async fn list(&self, limit: u32) -> Result<Vec<JobView>, RemoteError> {
        let answer = self.0.clone().list_jobs(wire::ListJobsRequest { limit, local_only: false }).await?;
        let views = answer.into_inner().jobs.into_iter().map(JobView::from_wire);
        views.collect::<Result<_, _>>().map_err(malformed)
    }

    /// Cancels or deletes a job.
    pub async fn stop(&self, job: JobId) -> Result<(), RemoteError> {
        self.0.clone().stop_job(wire::StopJobRequest { job: u128_bytes(job.0) }).await?;
        Ok(())
    }

    /// What the workers read from.
    pub async fn source(&self) -> Result<wire::GetSourceResponse, RemoteError> {
        Ok(self.0.clone().get_source(wire::GetSourceRequest {}).await?.into_inner())
    }
}

fn malformed(error: flatbed_proto::Malformed) -> RemoteError {
    RemoteError { code: ErrorCode::Internal, message: format!("the coordinator's answer: {error}") }
}
