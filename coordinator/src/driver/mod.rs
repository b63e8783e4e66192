//! The actor that owns all jobs: it feeds their machines, carries out what they ask for, and hands tasks to
//! workers.
//!
//! Everything that waits (transactions, objects, claims) runs in tasks of its own and comes back as an
//! [`Event`], so that no job waits for another. Decisions are the core's; the order of events is the only
//! thing that is decided here, and any order is right.

mod assign;
mod effects;
mod queries;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use flatbed_coordinator_core::job::{CommitAnswer, Holder, Input, Job, Output, ReplyId, Stored, TaskResult};
use flatbed_proto::wire::{job as job_wire, lease as lease_wire};
use flatbed_types::job::{JobError, StopKind};
use flatbed_types::layout::MetaKeys;
use flatbed_types::task::CommitRecord;
use flatbed_types::{
    AttemptId, Epoch, ErrorCode, ExportRequest, FhirId, Instant, JobId, SessionId, TaskId, Token,
};
use object_store::ObjectStore;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::sessions::{AttemptReport, Greeting, Sessions};
use crate::store::MetaStore;
use crate::{Clock, CoordinatorOptions, StartError, objects, records};

/// Events that may wait for the actor: back-pressure on the edges beyond that.
pub(crate) const INBOX: usize = 1024;

/// How often time passes for the machines.
const TICK: Duration = Duration::from_millis(500);

/// How long to wait before a claim that failed is tried again.
const CLAIM_RETRY: Duration = Duration::from_secs(5);

/// Jobs that are claimed and loaded at once.
const CLAIMS_AT_ONCE: usize = 16;

/// Messages that may wait for one worker.
pub(crate) const SESSION_QUEUE: usize = 256;

pub(crate) type CoordinatorSender = mpsc::Sender<lease_wire::CoordinatorMessage>;
pub(crate) type Answer<T> = oneshot::Sender<Result<T, JobError>>;

/// What all parts of a coordinator share.
pub(crate) struct Context {
    pub store: Arc<dyn MetaStore>,
    pub objects: Arc<dyn ObjectStore>,
    pub options: CoordinatorOptions,
    pub clock: Clock,
    pub events: mpsc::Sender<Event>,
}

impl Context {
    pub fn keys(&self) -> MetaKeys {
        MetaKeys::new(&self.options.cluster)
    }

    pub fn now(&self) -> Instant {
        (self.clock)()
    }
}

/// What a kick-off asks of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub group: Option<FhirId>,
    pub patients: Vec<FhirId>,
}

impl Question {
    /// What must be known before this request becomes a job, if anything.
    pub fn of(request: &ExportRequest) -> Option<Question> {
        let group = match &request.level {
            flatbed_types::Level::Group(id) => Some(id.clone()),
            flatbed_types::Level::System | flatbed_types::Level::Patient => None,
        };
        let patients: Vec<FhirId> = request.patients.iter().cloned().collect();
        (group.is_some() || !patients.is_empty()).then_some(Question { group, patients })
    }
}

/// What reaches the actor.
pub(crate) enum Event {
    /// A job record was created.
    Created(JobId),
    /// A claim ended.
    Claimed(JobId, Result<Box<(Epoch, Stored)>, StartError>),
    /// Try the claim again.
    ClaimAgain(JobId),
    /// Work on behalf of a machine ended.
    Input(JobId, Input),
    /// A stop request was written.
    Stopped(JobId, StopKind),
    Get(JobId, Answer<job_wire::JobView>),
    List(usize, oneshot::Sender<Vec<job_wire::JobView>>),
    Source(oneshot::Sender<job_wire::GetSourceResponse>),
    Ask(Question, Answer<lease_wire::Answer>),
    Hello(Greeting<CoordinatorSender>),
    Heartbeat(SessionId, lease_wire::Heartbeat),
    Failed {
        job: JobId,
        attempt: AttemptId,
        token: Token,
        error: JobError,
    },
    Answered(lease_wire::Answer),
    Goodbye(SessionId),
    Disconnected(SessionId),
    Commit {
        job: JobId,
        commit: CommitRecord,
        token: Token,
        answer: oneshot::Sender<CommitAnswer>,
    },
    Complete {
        job: JobId,
        task: TaskId,
        attempt: AttemptId,
        token: Token,
        result: TaskResult,
        answer: oneshot::Sender<CommitAnswer>,
    },
    Shutdown(oneshot::Sender<()>),
}

/// The actor.
pub(crate) struct Driver {
    context: Arc<Context>,
    jobs: BTreeMap<JobId, Job>,
    /// Jobs that are being claimed.
    claiming: BTreeSet<JobId>,
    claims: Arc<Semaphore>,
    /// Who asked for a job while it was being claimed.
    parked: Vec<(JobId, Answer<job_wire::JobView>)>,
    sessions: Sessions<CoordinatorSender>,
    replies: HashMap<ReplyId, oneshot::Sender<CommitAnswer>>,
    next_reply: ReplyId,
    questions: HashMap<u64, Answer<lease_wire::Answer>>,
    /// Questions that no worker was there to be asked.
    unasked: Vec<(Question, Answer<lease_wire::Answer>)>,
    next_question: u64,
    /// Transactions in flight, for an orderly end.
    proposing: usize,
    shutdown: Option<oneshot::Sender<()>>,
}

impl Driver {
    pub fn new(context: Arc<Context>, known: Vec<JobId>) -> Driver {
        let sessions = Sessions::new(Duration::from_millis(context.options.task_lease_ms));
        Driver {
            context,
            jobs: BTreeMap::new(),
            claiming: known.into_iter().collect(),
            claims: Arc::new(Semaphore::new(CLAIMS_AT_ONCE)),
            parked: Vec::new(),
            sessions,
            replies: HashMap::new(),
            next_reply: 0,
            questions: HashMap::new(),
            unasked: Vec::new(),
            next_question: 0,
            proposing: 0,
            shutdown: None,
        }
    }

    /// Runs until shut down.
    pub async fn run(mut self, mut inbox: mpsc::Receiver<Event>) {
        for job in &self.claiming {
            self.claim(*job);
        }
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = inbox.recv() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
                _ = ticks.tick() => self.tick(),
            }
            self.assign();
            if self.shutdown.is_some() && self.proposing == 0 {
                break;
            }
        }
        if let Some(done) = self.shutdown {
            let _ = done.send(());
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Created(job) => {
                if !self.jobs.contains_key(&job) && self.claiming.insert(job) {
                    self.claim(job);
                }
            }
            Event::ClaimAgain(job) => self.claim(job),
            Event::Claimed(job, Ok(claimed)) => self.adopt(job, claimed.0, claimed.1),
            Event::Claimed(job, Err(error)) => {
                tracing::error!(job = %job, %error, "a job cannot be loaded; trying again");
                let (waiting, parked) =
                    std::mem::take(&mut self.parked).into_iter().partition(|(j, _)| *j == job);
                self.parked = parked;
                for (_, answer) in waiting {
                    let message = "the job cannot be loaded at the moment; try again".to_owned();
                    let _ = answer.send(Err(JobError { code: ErrorCode::Unavailable, message }));
                }
                let events = self.context.events.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(CLAIM_RETRY).await;
                    let _ = events.send(Event::ClaimAgain(job)).await;
                });
            }
            Event::Input(job, input) => {
                if matches!(input, Input::TxnDone(_)) {
                    self.proposing -= 1;
                }
                self.feed(job, input);
            }
            Event::Stopped(job, kind) => self.feed(job, Input::Stop(kind)),
            Event::Get(job, answer) if self.claiming.contains(&job) => {
                self.parked.retain(|(_, asker)| !asker.is_closed());
                self.parked.push((job, answer));
            }
            Event::Get(job, answer) => drop(answer.send(self.get(job))),
            Event::List(limit, answer) => drop(answer.send(self.list(limit))),
            Event::Source(answer) => drop(answer.send(self.source())),
            Event::Ask(question, answer) => self.ask(question, answer),
            Event::Answered(answer) => {
                if let Some(asker) = self.questions.remove(&answer.number) {
                    let _ = asker.send(Ok(answer));
                }
            }
            Event::Hello(greeting) => self.hello(greeting),
            Event::Heartbeat(session, heartbeat) => self.heartbeat(session, heartbeat),
            Event::Failed { job, attempt, token, error } => {
                tracing::warn!(job = %job, attempt = %attempt, code = %error.code, reason = %error.message,
                    "an attempt failed");
                self.feed(job, Input::Failed { attempt, token, error });
            }
            Event::Goodbye(session) => {
                self.sessions.remove(session);
                self.lost(session);
            }
            Event::Disconnected(session) => self.sessions.disconnected(Monotonic::now(), session),
            Event::Commit { job, commit, token, answer } => {
                let reply = self.reply_to(answer);
                self.feed_or_retry(job, reply, Input::Commit { reply, commit, token });
            }
            Event::Complete { job, task, attempt, token, result, answer } => {
                let reply = self.reply_to(answer);
                self.feed_or_retry(job, reply, Input::Complete { reply, task, attempt, token, result });
            }
            Event::Shutdown(done) => self.shutdown = Some(done),
        }
    }

    fn claim(&self, job: JobId) {
        let (context, claims) = (self.context.clone(), self.claims.clone());
        tokio::spawn(async move {
            // Never closed, so a permit always comes.
            let _permit = claims.acquire_owned().await;
            let claimed = records::claim(&context, job).await.map(Box::new);
            let _ = context.events.send(Event::Claimed(job, claimed)).await;
        });
    }

    fn adopt(&mut self, id: JobId, epoch: Epoch, stored: Stored) {
        self.claiming.remove(&id);
        let root = objects::root_of(&self.context, &stored.record);
        let job = Job::load(stored, epoch, root, self.context.options.job_settings());
        let holders: Vec<Holder> = job.leases().map(|(_, holder)| holder.clone()).collect();
        tracing::info!(job = %id, epoch = epoch.0, state = ?job.durable_record().state, "job loaded");
        self.jobs.insert(id, job);
        self.feed(id, Input::Start);
        for holder in holders {
            if self.sessions.adopt(Monotonic::now(), &holder.worker, holder.session) {
                self.feed(id, Input::SessionLost(holder.session));
            }
        }
        let (ready, parked) = std::mem::take(&mut self.parked).into_iter().partition(|(job, _)| *job == id);
        self.parked = parked;
        for (_, answer) in ready {
            let _ = answer.send(self.get(id));
        }
    }

    fn tick(&mut self) {
        for session in self.sessions.expired(Monotonic::now()) {
            tracing::warn!(session = %session, "a worker is lost; its tasks are granted again");
            self.lost(session);
        }
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.feed(job, Input::Tick);
        }
    }

    fn lost(&mut self, session: SessionId) {
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.feed(job, Input::SessionLost(session));
        }
    }

    fn hello(&mut self, greeting: Greeting<CoordinatorSender>) {
        tracing::info!(worker = %greeting.worker, session = %greeting.session, slots = greeting.free_slots,
            "worker connected");
        for session in self.sessions.greet(Monotonic::now(), greeting) {
            self.lost(session);
        }
        for (question, answer) in std::mem::take(&mut self.unasked) {
            self.ask(question, answer);
        }
    }

    fn heartbeat(&mut self, id: SessionId, heartbeat: lease_wire::Heartbeat) {
        let now = Monotonic::now();
        if !self.sessions.heard(now, id, heartbeat.free_slots, heartbeat.grants_received) {
            return;
        }
        let mut reports = HashMap::new();
        let mut unknown_attempts = Vec::new();
        for report in heartbeat.running {
            let Ok(job) = flatbed_proto::convert::u128_from(&report.job, "report.job") else { continue };
            let (job, attempt) = (JobId(job), AttemptId(report.attempt));
            // Only the owner of a job can say that an attempt of it is over.
            let over = |machine: &Job| !machine.leases().any(|(leased, _)| leased == attempt);
            if self.jobs.get(&job).is_some_and(over) {
                unknown_attempts.push(report.attempt);
            }
            let uncommitted = report.uncommitted.unwrap_or_default();
            let uncommitted = flatbed_types::job::Volume { rows: uncommitted.rows, bytes: uncommitted.bytes };
            reports.insert((job, attempt), AttemptReport { uncommitted, note: report.note });
        }
        let types = heartbeat.types.iter().filter_map(|name| name.parse().ok()).collect::<Vec<_>>();
        if let Some(session) = self.sessions.get_mut(id) {
            session.reports = reports;
            session.prepared = heartbeat.prepared;
            if !types.is_empty() {
                session.types = types;
            }
        }
        self.withdraw_unreported(id);
        let ack = lease_wire::HeartbeatAck { number: heartbeat.number, unknown_attempts };
        self.send(id, lease_wire::coordinator_message::Message::HeartbeatAck(ack));
    }

    /// Takes back what the worker would be working on if it had not given up: it reports everything it runs.
    fn withdraw_unreported(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id).filter(|session| session.is_settled()) else { return };
        let mut dropped = Vec::new();
        for (job_id, job) in &self.jobs {
            for (attempt, holder) in job.leases() {
                if holder.session == id && !session.reports.contains_key(&(*job_id, attempt)) {
                    dropped.push((*job_id, attempt));
                }
            }
        }
        for (job, attempt) in dropped {
            self.feed(job, Input::AttemptLost(attempt));
        }
    }

    fn send(&mut self, session: SessionId, message: lease_wire::coordinator_message::Message) -> bool {
        let Some(sender) = self.sessions.get(session).and_then(|session| session.sender.as_ref()) else {
            return false;
        };
        // A worker that does not take its messages is treated as one that is gone.
        if sender.try_send(lease_wire::CoordinatorMessage { message: Some(message) }).is_err() {
            self.sessions.disconnected(Monotonic::now(), session);
            return false;
        }
        true
    }

    fn reply_to(&mut self, answer: oneshot::Sender<CommitAnswer>) -> ReplyId {
        self.next_reply += 1;
        self.replies.insert(self.next_reply, answer);
        self.next_reply
    }

    fn answer(&mut self, reply: ReplyId, answer: CommitAnswer) {
        if let Some(waiting) = self.replies.remove(&reply) {
            let _ = waiting.send(answer);
        }
    }

    fn feed_or_retry(&mut self, job: JobId, reply: ReplyId, input: Input) {
        if self.jobs.contains_key(&job) {
            self.feed(job, input);
        } else {
            // Not ours, or not yet: only the owner decides.
            self.answer(reply, CommitAnswer::Retry);
        }
    }

    fn feed(&mut self, id: JobId, input: Input) {
        // An orderly end begins nothing new; what comes back from transactions in flight is still heard.
        if self.shutdown.is_some() && !matches!(input, Input::TxnDone(_)) {
            return;
        }
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let mut out = Vec::new();
        job.step(self.context.now(), input, &mut out);
        for output in out {
            self.perform(id, output);
        }
    }

    fn ask(&mut self, question: Question, answer: Answer<lease_wire::Answer>) {
        self.questions.retain(|_, asker| !asker.is_closed());
        self.unasked.retain(|(_, asker)| !asker.is_closed());
        let Some(session) = self.sessions.connected().map(|(id, _)| *id).next() else {
            // Whoever asks waits for a while; the first worker to connect is asked.
            self.unasked.push((question, answer));
            return;
        };
        self.next_question += 1;
        let ask = lease_wire::Ask {
            number: self.next_question,
            group: question.group.map(|id| id.to_string()).unwrap_or_default(),
            patients: question.patients.iter().map(ToString::to_string).collect(),
        };
        self.questions.insert(self.next_question, answer);
        self.send(session, lease_wire::coordinator_message::Message::Ask(ask));
    }

    fn perform(&mut self, id: JobId, output: Output) {
        effects::perform(self, id, output);
    }
}
