//! The workers' side: sessions, commits, results of tasks.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};

use flatbed_coordinator_core::job::{CommitAnswer, PlanResult, ResolveResult, TaskResult};
use flatbed_coordinator_core::ledger::Refusal;
use flatbed_proto::Malformed;
use flatbed_proto::convert::{Wire, each, error_code_from, optional, required, type_from, u128_from};
use flatbed_proto::status::to_status;
use flatbed_proto::wire::lease::control_server::Control;
use flatbed_proto::wire::lease::{self as wire, CommitVerdict, CoordinatorMessage, WorkerMessage};
use flatbed_types::job::JobError;
use flatbed_types::task::CommitRecord;
use flatbed_types::{AttemptId, ErrorCode, Instant, JobId, Position, SessionId, TaskId, Token, caps};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Services, job_id, malformed, stopping};
use crate::driver::{Event, Reported, SESSION_QUEUE};
use crate::sessions::Greeting;

/// The version of the worker protocol spoken here.
const PROTOCOL: u32 = 1;

/// Numbers the streams of this process: the end of one must not end its successor.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

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
            pause_ms: caps::PAUSE_MILLIS as u32,
            abandon_ms: caps::ABANDON_MILLIS as u32,
            coordinator: self.context.me.to_string(),
        };
        let message = Some(wire::coordinator_message::Message::Welcome(welcome));
        sender.try_send(CoordinatorMessage { message }).map_err(|_| stopping())?;
        let connection = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        let greeting = Greeting {
            worker: hello.worker.parse().map_err(|_| malformed(Malformed("worker")))?,
            session,
            source: hello.source,
            types: hello.types.iter().filter_map(|name| name.parse().ok()).collect(),
            slots: hello.slots,
            // The first heartbeat says how many of them this coordinator may fill.
            free_slots: 0,
            prepared: hello.prepared,
            connection,
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
            let _ = events.send(Event::Disconnected(session, connection)).await;
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
            session,
            job: JobId(u128_from(&failed.job, "job").ok()?),
            attempt: AttemptId(failed.attempt),
            token: Token(failed.token),
            error: JobError { code: error_code_from(failed.code), message: failed.message },
        }),
        wire::worker_message::Message::Answer(answer) => Some(Event::Answered(answer)),
        wire::worker_message::Message::Truncated(truncated) => Some(Event::Truncated {
            job: JobId(u128_from(&truncated.job, "job").ok()?),
            attempt: AttemptId(truncated.attempt),
            at: truncated.at.and_then(|at| Position::from_wire(at).ok()),
        }),
        wire::worker_message::Message::Declined(declined) => Some(Event::Declined {
            job: JobId(u128_from(&declined.job, "job").ok()?),
            attempt: AttemptId(declined.attempt),
            token: Token(declined.token),
        }),
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
            files: each(plan.files)?,
            exclusions: optional(plan.exclusions)?.map(Box::new),
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

fn response(answer: Reported) -> wire::CommitResponse {
    let (answer, seal_ms) = match answer {
        Reported::Decided(answer, seal_ms) => (answer, seal_ms),
        Reported::NotOwner(owner) => {
            let owner = owner.unwrap_or_default();
            let verdict = CommitVerdict::NotOwner.into();
            return wire::CommitResponse { verdict, owner, ..wire::CommitResponse::default() };
        }
    };
    let (verdict, hi): (CommitVerdict, Option<Position>) = match answer {
        CommitAnswer::Accepted(hi) => (CommitVerdict::Accepted, Some(hi)),
        CommitAnswer::Duplicate => (CommitVerdict::Duplicate, None),
        CommitAnswer::Refused(Refusal::LoMismatch) => (CommitVerdict::LoMismatch, None),
        CommitAnswer::Refused(Refusal::BeyondHi(hi)) => (CommitVerdict::BeyondHi, Some(hi)),
        CommitAnswer::Refused(Refusal::NotAllowed) => (CommitVerdict::NotAllowed, None),
        CommitAnswer::Refused(Refusal::Stopped) => (CommitVerdict::JobStopped, None),
        CommitAnswer::Retry => (CommitVerdict::Retry, None),
    };
    let hi = hi.map(|hi| hi.to_wire());
    wire::CommitResponse { verdict: verdict.into(), hi, owner: String::new(), seal_ms }
}
