//! The gRPC edges: messages to events and back. Nothing is decided here but the form of a request and where a job
//! has to be looked for.
//!
//! - `create`: kick-offs: the question to the source, the client's cap, idempotency keys.
//! - `lookup`: any coordinator answers for any job: from its own machines, from the owner, or from the store.
//! - `content`: questions whose answer a worker writes as an object.
//! - `cohorts`: Groups that clients made; `receipts`: what became of their asynchronous requests. Kept in the store.
//! - `trust`: clients, used assertions, revoked tokens, signing keys: kept in the store.
//! - `control`: the workers' side.

mod cohorts;
mod content;
mod control;
mod create;
mod lookup;
mod receipts;
#[cfg(test)]
mod tests;
pub(crate) mod trust;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flatbed_proto::Malformed;
use flatbed_proto::convert::{required, u128_from};
use flatbed_proto::status::to_status;
use flatbed_proto::wire::job::jobs_server::{Jobs, JobsServer};
use flatbed_proto::wire::job::{
    CreateJobRequest, CreateJobResponse, GetJobRequest, GetJobResponse, GetPageRequest, GetPageResponse,
    GetSourceRequest, GetSourceResponse, ListJobsRequest, ListJobsResponse, StopJobRequest, StopJobResponse,
};
use flatbed_proto::wire::job::{
    DeleteCohortRequest, DeleteCohortResponse, DeleteReceiptRequest, DeleteReceiptResponse, GetCohortRequest,
    GetCohortResponse, GetReceiptRequest, GetReceiptResponse, ListCohortsRequest, ListCohortsResponse,
    PutCohortRequest, PutCohortResponse, PutReceiptRequest, PutReceiptResponse, ReadResourceRequest,
    ReadResourceResponse, SearchGroupsRequest, SearchGroupsResponse,
};
use flatbed_proto::wire::lease::control_server::ControlServer;
use flatbed_types::attachment::{AttachmentSecret, SECRET_BYTES};
use flatbed_types::job::{JobError, JobRecord};
use flatbed_types::{ClientId, ErrorCode, ExportRequest, JobId, caps};
use tokio::sync::oneshot;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::driver::{Context, Event};
use crate::store::{Outcome, StoreError, Transaction};

/// Tries of a create or stop whose outcome is unknown; each is safe to repeat.
const STORE_TRIES: u32 = 5;

/// Jobs in a list where the caller names no limit.
const LIST_LIMIT: usize = 100;

#[derive(Clone)]
pub(crate) struct Services {
    context: Arc<Context>,
}

impl Services {
    pub fn new(context: Arc<Context>) -> Services {
        Services { context }
    }

    pub fn jobs_routes(&self) -> Routes {
        let jobs = JobsServer::new(self.clone()).max_decoding_message_size(caps::MAX_MESSAGE);
        Routes::new(jobs).add_service(self.trust_server())
    }

    pub fn routes(&self) -> Routes {
        let control = ControlServer::new(self.clone()).max_decoding_message_size(caps::MAX_MESSAGE);
        self.jobs_routes().add_service(control)
    }

    async fn send(&self, event: Event) -> Result<(), Status> {
        self.context.events.send(event).await.map_err(|_| stopping())
    }

    async fn call<T>(&self, event: impl FnOnce(oneshot::Sender<T>) -> Event) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        self.send(event(answer)).await?;
        answered.await.map_err(|_| stopping())
    }

    /// The value of exactly this key.
    async fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Status> {
        let (_, entries) = self.context.store.range(key, None).await.map_err(store_status)?;
        Ok(entries.into_iter().find(|(found, _)| found == key).map(|(_, value)| value))
    }

    /// Proposes a transaction that is safe to repeat, a few times.
    async fn txn(&self, transaction: Transaction) -> Result<Outcome, Status> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.context.store.txn(transaction.clone()).await {
                Ok(outcome) => return Ok(outcome),
                Err(error) if tries >= STORE_TRIES => {
                    tracing::error!(%error, "state store does not answer");
                    let code = match error {
                        StoreError::Unknown(_) => ErrorCode::Timeout,
                        StoreError::NotApplied(_)
                        | StoreError::NoSuchRevision(_)
                        | StoreError::LeaseEnded => ErrorCode::Unavailable,
                    };
                    return Err(to_status(code, "the state store does not answer; try again"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50 << tries)).await,
            }
        }
    }
}

/// Runs work that must not be cut off when the caller goes away.
async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(work).await.map_err(|_| to_status(ErrorCode::Internal, "internal error"))?
}

fn stopping() -> Status {
    to_status(ErrorCode::Unavailable, "the coordinator is stopping")
}

fn error_status(error: JobError) -> Status {
    to_status(error.code, error.message)
}

fn malformed(error: Malformed) -> Status {
    to_status(ErrorCode::Invalid, error.to_string())
}

fn client_from(text: &str) -> Result<ClientId, Status> {
    text.parse().map_err(|_| malformed(Malformed("client")))
}

fn too_much(message: String) -> Status {
    to_status(ErrorCode::TooLarge, message)
}

fn job_id(bytes: &Bytes) -> Result<JobId, Status> {
    u128_from(bytes, "job").map(JobId).map_err(malformed)
}

fn random_id() -> Result<u128, Status> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|_| to_status(ErrorCode::Internal, "no randomness"))?;
    Ok(u128::from_be_bytes(bytes))
}

fn random_secret() -> Result<AttachmentSecret, Status> {
    let mut bytes = [0_u8; SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(|_| to_status(ErrorCode::Internal, "no randomness"))?;
    Ok(AttachmentSecret::new(bytes))
}

/// The store could not be asked.
fn store_status(error: impl std::fmt::Display) -> Status {
    tracing::warn!(%error, "the state store cannot be read");
    to_status(ErrorCode::Unavailable, "the state store does not answer; try again")
}

#[tonic::async_trait]
impl Jobs for Services {
    async fn create_job(
        &self,
        request: Request<CreateJobRequest>,
    ) -> Result<Response<CreateJobResponse>, Status> {
        let message = request.into_inner();
        let client: ClientId = message.client.parse().map_err(|_| malformed(Malformed("client")))?;
        let request: ExportRequest = required(message.request, "request").map_err(malformed)?;
        let id = if message.job.is_empty() { JobId(random_id()?) } else { job_id(&message.job)? };
        let mut record = JobRecord::new(id, client, request, self.context.options.codec, self.context.now());
        record.request_url = message.request_url;
        if record.request.attachment_base.is_some() {
            record.attachment_secret = Some(random_secret()?);
        }
        self.clone().create(record, message.idempotency_key).await.map(Response::new)
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let message = request.into_inner();
        let view = self.find(job_id(&message.job)?, message.local_only).await?;
        Ok(Response::new(GetJobResponse { job: Some(view) }))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let message = request.into_inner();
        let limit = if message.limit == 0 { LIST_LIMIT } else { message.limit as usize };
        let mut jobs = self.list(limit, message.local_only).await?;
        // Of many jobs at once nobody needs the secrets: a gateway asks for the one that a URL names.
        jobs.iter_mut().filter_map(|job| job.record.as_mut()).for_each(|job| job.attachment_secret.clear());
        Ok(Response::new(ListJobsResponse { jobs }))
    }

    async fn stop_job(&self, request: Request<StopJobRequest>) -> Result<Response<StopJobResponse>, Status> {
        self.clone().stop(job_id(&request.into_inner().job)?).await?;
        Ok(Response::new(StopJobResponse {}))
    }

    async fn get_page(&self, request: Request<GetPageRequest>) -> Result<Response<GetPageResponse>, Status> {
        let message = request.into_inner();
        self.page(job_id(&message.job)?, message.page).await.map(Response::new)
    }

    async fn get_source(&self, _: Request<GetSourceRequest>) -> Result<Response<GetSourceResponse>, Status> {
        self.call(Event::Source).await.map(Response::new)
    }

    async fn read_resource(
        &self,
        request: Request<ReadResourceRequest>,
    ) -> Result<Response<ReadResourceResponse>, Status> {
        self.content(request.into_inner()).await.map(Response::new)
    }

    async fn search_groups(
        &self,
        request: Request<SearchGroupsRequest>,
    ) -> Result<Response<SearchGroupsResponse>, Status> {
        self.groups(request.into_inner()).await.map(Response::new)
    }

    async fn put_cohort(
        &self,
        request: Request<PutCohortRequest>,
    ) -> Result<Response<PutCohortResponse>, Status> {
        self.clone().store_cohort(request.into_inner()).await.map(Response::new)
    }

    async fn get_cohort(
        &self,
        request: Request<GetCohortRequest>,
    ) -> Result<Response<GetCohortResponse>, Status> {
        self.cohort(request.into_inner()).await.map(Response::new)
    }

    async fn list_cohorts(
        &self,
        request: Request<ListCohortsRequest>,
    ) -> Result<Response<ListCohortsResponse>, Status> {
        self.cohorts(request.into_inner()).await.map(Response::new)
    }

    async fn delete_cohort(
        &self,
        request: Request<DeleteCohortRequest>,
    ) -> Result<Response<DeleteCohortResponse>, Status> {
        self.clone().remove_cohort(request.into_inner()).await.map(Response::new)
    }

    async fn put_receipt(
        &self,
        request: Request<PutReceiptRequest>,
    ) -> Result<Response<PutReceiptResponse>, Status> {
        self.clone().store_receipt(request.into_inner()).await.map(Response::new)
    }

    async fn get_receipt(
        &self,
        request: Request<GetReceiptRequest>,
    ) -> Result<Response<GetReceiptResponse>, Status> {
        self.receipt(request.into_inner()).await.map(Response::new)
    }

    async fn delete_receipt(
        &self,
        request: Request<DeleteReceiptRequest>,
    ) -> Result<Response<DeleteReceiptResponse>, Status> {
        self.clone().remove_receipt(request.into_inner()).await.map(Response::new)
    }
}
