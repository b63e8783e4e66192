//! The connection to a coordinator: hello, heartbeats, grants, questions, drain.
//!
//! Attempts outlive a broken connection: they keep reading and retry their commits; the next hello reports them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flatbed_extract::source::Progress;
use flatbed_proto::convert::{Wire, error_code_number, u128_bytes};
use flatbed_proto::wire::lease::{self as wire, coordinator_message, worker_message};
use flatbed_types::job::JobError;
use flatbed_types::{AttemptId, ErrorCode, ResourceType, caps};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::commit::client;
use crate::slot::{self, End, Grant, Running, failed_message};
use crate::{Context, internal, planning, source_error};

/// Versions of the worker protocol spoken here.
const PROTOCOL: u32 = 1;
/// Messages to the coordinator that may wait.
const QUEUE: usize = 256;
/// How long to wait before a source that could not be prepared is tried again.
const PREPARE_AGAIN: Duration = Duration::from_secs(30);
const RECONNECT: Duration = Duration::from_millis(300);
/// Questions of kick-offs that are looked into at once; more wait.
const QUESTIONS_AT_ONCE: usize = 2;
/// How long a drain may take before the process ends all the same.
const DRAIN_LIMIT: Duration = Duration::from_secs(25);

struct Session {
    context: Arc<Context>,
    drain: CancellationToken,
    running: Mutex<HashMap<AttemptId, Arc<Running>>>,
    types: Mutex<Vec<ResourceType>>,
    /// Whether the source has been read once: before that, jobs and questions would wait for its preparation.
    prepared: AtomicBool,
    /// Why the last try to prepare it failed.
    unprepared: Mutex<Option<JobError>>,
    questions: Semaphore,
    /// Failures that no connection has taken yet.
    unsent: Mutex<Vec<wire::Failed>>,
    grants_received: AtomicU64,
    /// Something changed that the coordinator should hear of now.
    changed: Notify,
}

pub(crate) async fn run(context: Arc<Context>, drain: CancellationToken) {
    let session = Arc::new(Session {
        context,
        drain,
        running: Mutex::default(),
        types: Mutex::default(),
        prepared: AtomicBool::new(false),
        unprepared: Mutex::default(),
        questions: Semaphore::new(QUESTIONS_AT_ONCE),
        unsent: Mutex::default(),
        grants_received: AtomicU64::new(0),
        changed: Notify::new(),
    });
    prepare(session.clone());
    let give_up = session.drain.clone();
    let work = session.clone().connect_again();
    tokio::select! {
        () = work => {}
        () = async { give_up.cancelled().await; tokio::time::sleep(DRAIN_LIMIT).await } => {
            tracing::warn!("drain took too long; running attempts are left to their leases");
        }
    }
}

/// Brings the source up to date before the first job asks, and learns its types.
fn prepare(session: Arc<Session>) {
    struct Logged;
    impl Progress for Logged {
        fn report(&self, phase: &str, done: u64, total: u64) {
            tracing::info!("preparing the source: {}", planning::describe(phase, done, total));
        }
    }
    tokio::spawn(async move {
        loop {
            let source = session.context.source.clone();
            match tokio::task::spawn_blocking(move || source.snapshot(&Logged)).await {
                Ok(Ok(snapshot)) => {
                    *lock(&session.types) = snapshot.types();
                    session.prepared.store(true, Ordering::Release);
                    return session.changed.notify_one();
                }
                // The plan task of the first job says so to whoever asked.
                Ok(Err(error)) => {
                    tracing::error!(code = %error.code, "the source cannot be prepared: {error}");
                    *lock(&session.unprepared) = Some(source_error(error));
                }
                Err(error) => tracing::error!("preparing the source ended unexpectedly: {error}"),
            }
            tokio::select! {
                () = tokio::time::sleep(PREPARE_AGAIN) => {}
                () = session.drain.cancelled() => return,
            }
        }
    });
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    async fn connect_again(self: Arc<Self>) {
        loop {
            if let Err(status) = self.clone().connect().await {
                tracing::debug!(code = ?status.code(), "no connection to the coordinator");
            }
            if self.drain.is_cancelled() && lock(&self.running).is_empty() {
                return;
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    async fn connect(self: Arc<Self>) -> Result<(), tonic::Status> {
        let (sender, outgoing) = mpsc::channel(QUEUE);
        self.grants_received.store(0, Ordering::Relaxed);
        let _ = sender.try_send(message(worker_message::Message::Hello(self.hello())));
        let response = client(self.context.channel.clone()).session(ReceiverStream::new(outgoing)).await?;
        let mut incoming = response.into_inner();
        let mut beats = beats(Duration::from_millis(caps::HEARTBEAT_MILLIS));
        let mut number = 0;
        loop {
            // What is worth telling at once; everything else waits for the next beat.
            let tell = tokio::select! {
                received = incoming.message() => match received? {
                    Some(received) => match received.message {
                        Some(coordinator_message::Message::Welcome(welcome)) => {
                            beats = self::beats(Duration::from_millis(u64::from(welcome.heartbeat_ms.max(100))));
                            true
                        }
                        Some(other) => self.clone().handle(other, &sender),
                        None => false,
                    },
                    None => return Ok(()),
                },
                _ = beats.tick() => true,
                () = self.changed.notified() => true,
                () = self.drain.cancelled(), if self.is_drained() => {
                    let _ = sender.send(message(worker_message::Message::Goodbye(wire::Goodbye {}))).await;
                    // The stream ends behind the goodbye; the coordinator closes its half then.
                    drop(sender);
                    let _ = tokio::time::timeout(Duration::from_secs(1), incoming.message()).await;
                    return Ok(());
                }
            };
            if !tell {
                continue;
            }
            self.flush_failures(&sender);
            number += 1;
            let heartbeat = message(worker_message::Message::Heartbeat(self.heartbeat(number)));
            if sender.send(heartbeat).await.is_err() {
                return Ok(());
            }
        }
    }

    fn is_drained(&self) -> bool {
        lock(&self.running).is_empty()
    }

    fn hello(&self) -> wire::Hello {
        wire::Hello {
            protocol_min: PROTOCOL,
            protocol_max: PROTOCOL,
            worker: self.context.options.id.to_string(),
            session: u128_bytes(self.context.session.0),
            slots: self.context.options.slots,
            source: self.context.source.address(),
            types: self.type_names(),
            running: self.reports(),
            prepared: self.prepared.load(Ordering::Acquire),
        }
    }

    fn type_names(&self) -> Vec<String> {
        lock(&self.types).iter().map(|kind| kind.name().to_owned()).collect()
    }

    fn heartbeat(&self, number: u64) -> wire::Heartbeat {
        let running = self.reports();
        let busy = u32::try_from(running.len()).unwrap_or(u32::MAX);
        let free_slots =
            if self.drain.is_cancelled() { 0 } else { self.context.options.slots.saturating_sub(busy) };
        let grants_received = self.grants_received.load(Ordering::Relaxed);
        let prepared = self.prepared.load(Ordering::Acquire);
        wire::Heartbeat { number, running, free_slots, types: self.type_names(), grants_received, prepared }
    }

    fn reports(&self) -> Vec<wire::AttemptReport> {
        let report = |running: &Arc<Running>| wire::AttemptReport {
            job: u128_bytes(running.grant.job.0),
            task: running.grant.task.0,
            attempt: running.grant.attempt.0,
            uncommitted: Some(running.uncommitted().to_wire()),
            note: running.note(),
            written: None,
            left_bytes: 0,
        };
        lock(&self.running).values().map(report).collect()
    }

    fn flush_failures(&self, sender: &mpsc::Sender<wire::WorkerMessage>) {
        let mut unsent = lock(&self.unsent);
        while let Some(failed) = unsent.pop() {
            if sender.try_send(message(worker_message::Message::Failed(failed.clone()))).is_err() {
                unsent.push(failed);
                return;
            }
        }
    }

    /// Answers whether the coordinator should hear of what changed at once.
    fn handle(
        self: Arc<Self>,
        received: coordinator_message::Message,
        sender: &mpsc::Sender<wire::WorkerMessage>,
    ) -> bool {
        match received {
            coordinator_message::Message::Welcome(_) => {}
            coordinator_message::Message::HeartbeatAck(ack) => {
                for attempt in ack.unknown_attempts {
                    self.revoke(AttemptId(attempt));
                }
            }
            coordinator_message::Message::Revoke(revoke) => self.revoke(AttemptId(revoke.attempt)),
            coordinator_message::Message::Grant(grant) => {
                self.grants_received.fetch_add(1, Ordering::Relaxed);
                self.accept(grant);
                return true;
            }
            coordinator_message::Message::Truncate(_)
            | coordinator_message::Message::Yield(_)
            | coordinator_message::Message::Situation(_) => {}
            coordinator_message::Message::Ask(ask) => {
                let sender = sender.clone();
                tokio::spawn(async move {
                    let answer = self.answer(ask).await;
                    let _ = sender.send(message(worker_message::Message::Answer(answer))).await;
                });
            }
        }
        false
    }

    fn revoke(&self, attempt: AttemptId) {
        if let Some(running) = lock(&self.running).get(&attempt) {
            running.revoked.cancel();
        }
    }

    fn accept(self: Arc<Self>, grant: wire::Grant) {
        let grant = match Grant::from_wire(grant) {
            Ok(grant) => grant,
            Err(error) => return tracing::error!(%error, "a grant cannot be understood"),
        };
        if grant.session != self.context.session {
            return;
        }
        let attempt = grant.attempt;
        let running = Arc::new(Running::new(grant, self.drain.child_token()));
        lock(&self.running).insert(attempt, running.clone());
        tokio::spawn(async move {
            if let End::Failed(error) = slot::run(self.context.clone(), running.clone()).await {
                lock(&self.unsent).push(failed_message(&running.grant, error));
            }
            lock(&self.running).remove(&attempt);
            self.changed.notify_one();
        });
    }

    async fn answer(&self, ask: wire::Ask) -> wire::Answer {
        let failed = |error: JobError| wire::Answer {
            number: ask.number,
            error: error.message,
            error_code: error_code_number(error.code),
            ..wire::Answer::default()
        };
        let group = match ask.group.as_str() {
            "" => None,
            id => match id.parse() {
                Ok(id) => Some(id),
                Err(_) => return wire::Answer { number: ask.number, ..wire::Answer::default() },
            },
        };
        if !self.prepared.load(Ordering::Acquire) {
            let message = "the source is still being prepared; try again".to_owned();
            let preparing = JobError { code: ErrorCode::Unavailable, message };
            return failed(lock(&self.unprepared).clone().unwrap_or(preparing));
        }
        // Never closed, so a permit always comes.
        let _permit = self.questions.acquire().await;
        let patients: Vec<_> = ask.patients.iter().filter_map(|id| id.parse().ok()).collect();
        let source = self.context.source.clone();
        let looked = move || planning::answer(&source, group.as_ref(), &patients);
        match tokio::task::spawn_blocking(looked).await {
            Ok(Ok(answered)) => wire::Answer {
                number: ask.number,
                group_found: answered.group_found,
                missing_patients: answered.missing.iter().map(ToString::to_string).collect(),
                ..wire::Answer::default()
            },
            Ok(Err(error)) => failed(error),
            Err(_) => failed(internal("the source could not be read")),
        }
    }
}

fn beats(period: Duration) -> tokio::time::Interval {
    let mut beats = tokio::time::interval(period);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    beats
}

fn message(message: worker_message::Message) -> wire::WorkerMessage {
    wire::WorkerMessage { message: Some(message) }
}
