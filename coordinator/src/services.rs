//! The gRPC edges: messages to events and back. Nothing is decided here but the form of a request.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flatbed_coordinator_core::job::{CommitAnswer, PlanResult, ResolveResult, TaskResult};
use flatbed_coordinator_core::ledger::Refusal;
use flatbed_proto::Malformed;
use flatbed_proto::convert::{
    Wire, each, error_code_from, optional, required, type_from, u128_bytes, u128_from,
};
use flatbed_proto::status::to_status;
use flatbed_proto::wire::job::jobs_server::{Jobs, JobsServer};
use flatbed_proto::wire::job::{
    CreateJobRequest, CreateJobResponse, GetJobRequest, GetJobResponse, GetSourceRequest, GetSourceResponse,
    ListJobsRequest, ListJobsResponse, StopJobRequest, StopJobResponse,
};
use flatbed_proto::wire::lease::control_server::{Control, ControlServer};
use flatbed_proto::wire::lease::{self as wire, CommitVerdict, CoordinatorMessage, WorkerMessage};
use flatbed_types::job::{JobError, JobRecord, StopKind};
use flatbed_types::task::CommitRecord;
use flatbed_types::{
    AttemptId, ClientId, ErrorCode, ExportRequest, Instant, JobId, Position, SessionId, TaskId, Token, caps,
};
use futures::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::driver::{Context, Event, Question, SESSION_QUEUE};
use crate::records;
use crate::sessions::Greeting;
use crate::store::{Compare, Outcome, StoreError, Transaction, Write};

/// The version of the worker protocol spoken here.
const PROTOCOL: u32 = 1;

/// Tries of a create or stop whose outcome is unknown; each is safe to repeat.
const STORE_TRIES: u32 = 5;

#[derive(Clone)]
pub(crate) struct Services {
    context: Arc<Context>,
}

impl Services {
    pub fn new(context: Arc<Context>) -> Services {
        Services { context }
    }

    pub fn jobs_routes(&self) -> Routes {
        Routes::new(JobsServer::new(self.clone()).max_decoding_message_size(caps::MAX_MESSAGE))
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

    /// Asks a worker whether what the request names exists (`decisions.md` 7).
    async fn check_source(&self, request: &ExportRequest) -> Result<(), Status> {
        let Some(question) = Question::of(request) else { return Ok(()) };
        let asked = self.call(|answer| Event::Ask(question.clone(), answer));
        let Ok(answer) = tokio::time::timeout(Duration::from_millis(caps::ASK_MILLIS), asked).await else {
            let message =
                "no worker could look into the source in time; it may still be preparing. Try again";
            return Err(to_status(ErrorCode::Unavailable, message));
        };
        let answer = answer?.map_err(error_status)?;
        if !answer.error.is_empty() {
            return Err(to_status(error_code_from(answer.error_code), answer.error));
        }
        if let (Some(group), false) = (&question.group, answer.group_found) {
            return Err(to_status(ErrorCode::NotFound, format!("there is no Group/{group}")));
        }
        if !answer.missing_patients.is_empty() {
            let names: Vec<String> =
                answer.missing_patients.iter().take(20).map(|id| format!("Patient/{id}")).collect();
            let scope =
                if question.group.is_some() { "not members of the Group" } else { "not on this server" };
            let message = format!("{scope}: {} ({} in all)", names.join(", "), answer.missing_patients.len());
            return Err(to_status(ErrorCode::Invalid, message));
        }
        Ok(())
    }

    /// Creates the job and tells the driver. Runs to its end even if whoever asked has gone: a job in the store
    /// that nobody was told of would wait for the next start.
    async fn create(self, record: JobRecord, idempotency_key: String) -> Result<CreateJobResponse, Status> {
        let work = async move {
            if idempotency_key.is_empty() {
                return self.create_new(&record, None).await;
            }
            self.create_or_repeat(&record, &idempotency_key).await
        };
        finish(work).await
    }

    /// Proposes the job, with the write of its idempotency key. `None` when the key has another value by now.
    async fn create_new(
        &self,
        record: &JobRecord,
        key: Option<(Compare, Write)>,
    ) -> Result<CreateJobResponse, Status> {
        let keys = self.context.keys();
        let mut transaction = Transaction {
            compares: vec![Compare::Absent(keys.job(record.id))],
            writes: vec![records::put_job(&keys, record)],
            reads: vec![keys.job(record.id)],
        };
        if let Some((compare, write)) = key {
            transaction.compares.push(compare);
            transaction.writes.push(write);
        }
        if let Outcome::NotApplied(reads) = self.txn(transaction).await? {
            // The record is there: an earlier try of this very transaction applied, for nobody else knows the id.
            if !reads.first().is_some_and(Option::is_some) {
                let message = "another kick-off with the same Idempotency-Key is under way; try again";
                return Err(to_status(ErrorCode::Unavailable, message));
            }
        }
        self.send(Event::Created(record.id)).await?;
        Ok(CreateJobResponse { job: u128_bytes(record.id.0), repeated_job: false })
    }

    /// The job of an idempotency key, if it is the same request's, young and still there; else a new one.
    async fn create_or_repeat(&self, record: &JobRecord, text: &str) -> Result<CreateJobResponse, Status> {
        let hash = xxhash_rust::xxh3::xxh3_128(text.as_bytes());
        let key = self.context.keys().idempotency(&record.client, hash);
        let mine = records::IdempotencyRecord::of(record);
        let stored = self.context.store.range(&key, None).await;
        let stored = stored.map_err(|error| to_status(ErrorCode::Unavailable, error.to_string()))?.1;
        let Some((_, value)) = stored.into_iter().next() else {
            let write = Write::Put(key.clone(), mine.to_bytes());
            return self.create_new(record, Some((Compare::Absent(key), write))).await;
        };
        let known = records::IdempotencyRecord::from_bytes(&value).map_err(malformed)?;
        let age = record.created.millis() - known.created.millis();
        if age < caps::IDEMPOTENCY_MILLIS as i64 && self.is_visible(known.job).await? {
            if known.request != mine.request {
                let message = "this Idempotency-Key was used for another request; use a new key";
                return Err(to_status(ErrorCode::Invalid, message));
            }
            return Ok(CreateJobResponse { job: u128_bytes(known.job.0), repeated_job: true });
        }
        let write = Write::Put(key.clone(), mine.to_bytes());
        self.create_new(record, Some((Compare::Equals(key, value), write))).await
    }

    async fn is_visible(&self, job: JobId) -> Result<bool, Status> {
        // Loaded if it was not: the event of its creation may have been lost with a former process.
        match self.call(|answer| Event::Get(job, answer)).await? {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.code, ErrorCode::NotFound | ErrorCode::Gone) => Ok(false),
            Err(error) => Err(error_status(error)),
        }
    }

    async fn stop(self, id: JobId) -> Result<(), Status> {
        let work = async move {
            let key = self.context.keys().stop(id);
            let value = records::stop_record(StopKind::Delete, self.context.now());
            let transaction = Transaction {
                compares: vec![Compare::Absent(key.clone())],
                writes: vec![Write::Put(key.clone(), value.clone())],
                reads: vec![key],
            };
            let outcome = self.txn(transaction).await?;
            // Told in any case: an earlier request may have been written and not told.
            self.send(Event::Stopped(id, StopKind::Delete)).await?;
            match outcome {
                Outcome::Applied(_) => Ok(()),
                // The same value means that an earlier try of this very request applied.
                Outcome::NotApplied(reads) if reads.first().cloned().flatten() == Some(value) => Ok(()),
                Outcome::NotApplied(_) => Err(to_status(ErrorCode::NotFound, "there is no such job")),
            }
        };
        finish(work).await
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

fn job_id(bytes: &Bytes) -> Result<JobId, Status> {
    u128_from(bytes, "job").map(JobId).map_err(malformed)
}

fn random_id() -> Result<u128, Status> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|_| to_status(ErrorCode::Internal, "no randomness"))?;
    Ok(u128::from_be_bytes(bytes))
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
        self.check_source(&request).await?;
        let (id, codec) = (JobId(random_id()?), self.context.options.codec);
        let mut record = JobRecord::new(id, client, request, codec, self.context.now());
        record.request_url = message.request_url;
        self.clone().create(record, message.idempotency_key).await.map(Response::new)
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let id = job_id(&request.into_inner().job)?;
        let view = self.call(|answer| Event::Get(id, answer)).await?.map_err(error_status)?;
        Ok(Response::new(GetJobResponse { job: Some(view) }))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let limit = match request.into_inner().limit {
            0 => 100,
            limit => limit as usize,
        };
        let jobs = self.call(|answer| Event::List(limit, answer)).await?;
        Ok(Response::new(ListJobsResponse { jobs }))
    }

    async fn stop_job(&self, request: Request<StopJobRequest>) -> Result<Response<StopJobResponse>, Status> {
        let id = job_id(&request.into_inner().job)?;
        // Says whether there is such a job; the transaction decides who stops it.
        self.call(|answer| Event::Get(id, answer)).await?.map_err(error_status)?;
        self.clone().stop(id).await?;
        Ok(Response::new(StopJobResponse {}))
    }

    async fn get_source(&self, _: Request<GetSourceRequest>) -> Result<Response<GetSourceResponse>, Status> {
        self.call(Event::Source).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl Control for Services {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|message| message.message);
        let Some(wire::worker_message::Message::Hello(hello)) = first else {
            return Err(malformed(Malformed("the first message must be Hello")));
        };
        if hello.protocol_min > PROTOCOL || hello.protocol_max < PROTOCOL {
            let message = format!("this coordinator speaks version {PROTOCOL} of the worker protocol");
            return Err(to_status(ErrorCode::NotSupported, message));
        }
        let session = u128_from(&hello.session, "session").map(SessionId).map_err(malformed)?;
        let (sender, outgoing) = mpsc::channel(SESSION_QUEUE);
        let welcome = wire::Welcome {
            protocol: PROTOCOL,
            heartbeat_ms: caps::HEARTBEAT_MILLIS as u32,
            pause_ms: 60_000,
            abandon_ms: caps::ABANDON_MILLIS as u32,
            coordinator: String::new(),
        };
        let message = Some(wire::coordinator_message::Message::Welcome(welcome));
        sender.try_send(CoordinatorMessage { message }).map_err(|_| stopping())?;
        let greeting = Greeting {
            worker: hello.worker.parse().map_err(|_| malformed(Malformed("worker")))?,
            session,
            source: hello.source,
            types: hello.types.iter().filter_map(|name| name.parse().ok()).collect(),
            free_slots: hello.slots.saturating_sub(u32::try_from(hello.running.len()).unwrap_or(u32::MAX)),
            prepared: hello.prepared,
            sender,
        };
        self.send(Event::Hello(greeting)).await?;
        let events = self.context.events.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                let Some(event) = message.message.and_then(|message| event_of(session, message)) else {
                    continue;
                };
                if events.send(event).await.is_err() {
                    return;
                }
            }
            let _ = events.send(Event::Disconnected(session)).await;
        });
        let outgoing = tokio_stream::StreamExt::map(ReceiverStream::new(outgoing), Ok);
        Ok(Response::new(Box::pin(outgoing)))
    }

    async fn commit(
        &self,
        request: Request<wire::CommitRequest>,
    ) -> Result<Response<wire::CommitResponse>, Status> {
        let message = request.into_inner();
        let job = job_id(&message.job)?;
        let commit: CommitRecord = required(message.commit, "commit").map_err(malformed)?;
        let token = Token(message.token);
        let answer = self.call(|answer| Event::Commit { job, commit, token, answer }).await?;
        Ok(Response::new(response(answer)))
    }

    async fn complete(
        &self,
        request: Request<wire::CompleteRequest>,
    ) -> Result<Response<wire::CommitResponse>, Status> {
        let message = request.into_inner();
        let job = job_id(&message.job)?;
        let result = result_of(message.result).map_err(malformed)?;
        let (task, attempt) = (TaskId(message.task), AttemptId(message.attempt));
        let token = Token(message.token);
        let answer =
            self.call(|answer| Event::Complete { job, task, attempt, token, result, answer }).await?;
        Ok(Response::new(response(answer)))
    }
}

fn event_of(session: SessionId, message: wire::worker_message::Message) -> Option<Event> {
    match message {
        wire::worker_message::Message::Hello(_) => None,
        wire::worker_message::Message::Heartbeat(heartbeat) => Some(Event::Heartbeat(session, heartbeat)),
        wire::worker_message::Message::Failed(failed) => Some(Event::Failed {
            job: JobId(u128_from(&failed.job, "job").ok()?),
            attempt: AttemptId(failed.attempt),
            token: Token(failed.token),
            error: JobError { code: error_code_from(failed.code), message: failed.message },
        }),
        wire::worker_message::Message::Answer(answer) => Some(Event::Answered(answer)),
        wire::worker_message::Message::Truncated(_) | wire::worker_message::Message::Declined(_) => None,
        wire::worker_message::Message::Goodbye(_) => Some(Event::Goodbye(session)),
    }
}

fn result_of(result: Option<wire::complete_request::Result>) -> Result<TaskResult, Malformed> {
    match result.ok_or(Malformed("complete.result"))? {
        wire::complete_request::Result::Plan(plan) => Ok(TaskResult::Plan(PlanResult {
            transaction_time: Instant::from_nanos(plan.transaction_time),
            pin: required(plan.pin, "plan.pin")?,
            draft: required(plan.draft, "plan.draft")?,
            patients: plan.patients,
            roster: optional(plan.roster)?.map(|roster| (roster, plan.roster_len)),
            outcomes: each(plan.outcomes)?,
        })),
        wire::complete_request::Result::Resolve(resolve) => {
            let mut counts = BTreeMap::new();
            for count in resolve.counts {
                counts.insert(type_from(&count.resource_type)?, count.keys);
            }
            let (keys, outcomes) = (optional(resolve.keys)?, each(resolve.outcomes)?);
            Ok(TaskResult::Resolve(ResolveResult { keys, counts, outcomes }))
        }
    }
}

fn response(answer: CommitAnswer) -> wire::CommitResponse {
    let (verdict, hi): (CommitVerdict, Option<Position>) = match answer {
        CommitAnswer::Accepted(hi) => (CommitVerdict::Accepted, Some(hi)),
        CommitAnswer::Duplicate => (CommitVerdict::Duplicate, None),
        CommitAnswer::Refused(Refusal::LoMismatch) => (CommitVerdict::LoMismatch, None),
        CommitAnswer::Refused(Refusal::BeyondHi(hi)) => (CommitVerdict::BeyondHi, Some(hi)),
        CommitAnswer::Refused(Refusal::NotAllowed) => (CommitVerdict::NotAllowed, None),
        CommitAnswer::Refused(Refusal::Stopped) => (CommitVerdict::JobStopped, None),
        CommitAnswer::Retry => (CommitVerdict::Retry, None),
    };
    wire::CommitResponse { verdict: verdict.into(), hi: hi.map(|hi| hi.to_wire()), owner: String::new() }
}
