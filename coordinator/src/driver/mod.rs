//! The actor that owns jobs: it follows the cluster, feeds the jobs' machines, carries out what they ask for, and
//! hands tasks to workers.
//!
//! Everything that waits (transactions, objects, claims) runs in tasks of its own and comes back as an
//! [`Event`], so that no job waits for another. Decisions are the core's (`cluster` says which jobs are ours, `job`
//! what becomes of each, `schedule` who works on what); the order of events is the only thing that is decided here,
//! and any order is right.
//!
//! Invariants: what comes back for a machine that was dropped meanwhile never reaches its successor (events carry
//! the epoch); every call that waits for a machine is answered when the machine goes.

mod assign;
mod effects;
mod io;
mod ownership;
mod queries;
mod workers;

pub(crate) use io::{Io, Millis};
pub(crate) use queries::{not_found, stored_page, stored_view, visible};

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flatbed_coordinator_core::cluster::{self, Cluster};
use flatbed_coordinator_core::job::{CommitAnswer, Input, Job, Output, ReplyId, TaskResult};
use flatbed_coordinator_core::schedule::{Ended, Scheduler};
use flatbed_proto::convert::Wire;
use flatbed_proto::reach::{Coordinators, Dial};
use flatbed_proto::wire::{job as job_wire, lease as lease_wire};
use flatbed_types::content::ContentQuestion;
use flatbed_types::job::{JobError, StopKind};
use flatbed_types::layout::{self, MetaKeys};
use flatbed_types::request::ForeignPatients;
use flatbed_types::task::CommitRecord;
use flatbed_types::{
    AttemptId, CoordinatorId, Epoch, ErrorCode, ExportRequest, FhirId, Instant, JobId, Position, SessionId,
    TaskId, Token,
};
use object_store::ObjectStore;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::records::{ClaimError, Claimed};
use crate::registry::Place;
use crate::sessions::{Greeting, Sessions};
use crate::store::{LeaseId, MetaStore};
use crate::{Clock, CoordinatorOptions, Random, Status};

/// Events that may wait for the actor: back-pressure on the edges beyond that.
pub(crate) const INBOX: usize = 1024;

/// Events taken up before tasks are handed out: a burst costs one decision.
const BATCH: usize = 256;

/// How often time passes for the machines.
const TICK: Duration = Duration::from_millis(250);

/// A tick that comes this many milliseconds late says that the process was stopped, not busy.
const LATE: Millis = 1_000;

/// Messages that may wait for one worker.
pub(crate) const SESSION_QUEUE: usize = 256;

pub(crate) type CoordinatorSender = mpsc::Sender<lease_wire::CoordinatorMessage>;
pub(crate) type Answer<T> = oneshot::Sender<Result<T, JobError>>;

/// What all parts of a coordinator share.
pub(crate) struct Context {
    pub me: CoordinatorId,
    pub store: Arc<dyn MetaStore>,
    pub objects: Arc<dyn ObjectStore>,
    pub options: CoordinatorOptions,
    /// Connections to the other coordinators.
    pub peers: Coordinators,
    pub clock: Clock,
    pub random: Random,
    pub events: mpsc::Sender<Event>,
    /// Told when this coordinator's key is not what it should be.
    pub displaced: Notify,
    place: Mutex<Option<Place>>,
    leaving: AtomicBool,
}

impl Context {
    pub fn new(
        me: CoordinatorId,
        stores: (Arc<dyn MetaStore>, Arc<dyn ObjectStore>),
        options: CoordinatorOptions,
        dial: Arc<dyn Dial>,
        chance: (Clock, Random),
        events: mpsc::Sender<Event>,
    ) -> Context {
        let (store, objects) = stores;
        let (clock, random) = chance;
        Context {
            me,
            store,
            objects,
            options,
            peers: Coordinators::unknown(dial),
            clock,
            random,
            events,
            displaced: Notify::new(),
            place: Mutex::new(None),
            leaving: AtomicBool::new(false),
        }
    }

    pub fn keys(&self) -> MetaKeys {
        MetaKeys::new(&self.options.cluster)
    }

    pub fn now(&self) -> Instant {
        (self.clock)()
    }

    /// This coordinator's place in the cluster, while it has one.
    pub fn place(&self) -> Option<Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_place(&self, place: Option<Place>) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    /// The lease that owner keys are put on, while there is one.
    pub fn lease(&self) -> Option<LeaseId> {
        self.place().map(|place| place.lease)
    }

    /// An orderly end has begun: the place is given up on purpose.
    pub fn set_leaving(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
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
            // Who is in a cohort is found out by the plan task: only whether its patients exist can be asked.
            flatbed_types::Level::Group(_) if request.cohort.is_some() => None,
            flatbed_types::Level::Group(id) => Some(id.clone()),
            flatbed_types::Level::System | flatbed_types::Level::Patient => None,
        };
        // Where absent ones are only told of, the plan task looks for them.
        let patients: Vec<FhirId> = match request.foreign_patients {
            ForeignPatients::Refused => request.patients.iter().cloned().collect(),
            ForeignPatients::Reported => Vec::new(),
        };
        (group.is_some() || !patients.is_empty()).then_some(Question { group, patients })
    }
}

/// What a worker is asked.
#[derive(Clone)]
pub(crate) enum Inquiry {
    /// By a kick-off.
    KickOff(Question),
    /// For content, which the worker writes as an object.
    Content(ContentQuestion),
}

impl Inquiry {
    /// As it travels.
    fn to_wire(&self, number: u64, cluster: &str) -> lease_wire::Ask {
        let ask = lease_wire::Ask { number, ..lease_wire::Ask::default() };
        match self {
            Inquiry::KickOff(question) => lease_wire::Ask {
                group: question.group.as_ref().map(ToString::to_string).unwrap_or_default(),
                patients: question.patients.iter().map(ToString::to_string).collect(),
                ..ask
            },
            Inquiry::Content(ContentQuestion::Read(read)) => {
                lease_wire::Ask { read: Some(read.to_wire()), answers: layout::answers_root(cluster), ..ask }
            }
            Inquiry::Content(ContentQuestion::SearchGroups(search)) => lease_wire::Ask {
                search: Some(search.to_wire()),
                answers: layout::answers_root(cluster),
                ..ask
            },
        }
    }
}

/// Where a job is.
pub(crate) enum Found {
    /// Here; what clients are told of it.
    Here(Result<Box<job_wire::JobView>, JobError>),
    /// At another coordinator.
    Elsewhere(String),
    /// Nowhere at the moment, as far as this coordinator knows.
    Unowned,
}

/// The answer to a report of a worker.
pub(crate) enum Reported {
    /// By the owner, and after how many milliseconds the attempt is to commit from now on (0: as before).
    Decided(CommitAnswer, u64),
    /// Another coordinator owns the job; its address, if known.
    NotOwner(Option<String>),
}

/// What reaches the actor.
pub(crate) enum Event {
    /// News of the cluster.
    Cluster(cluster::Input),
    /// A claim ended.
    Claimed(JobId, Result<Box<Claimed>, ClaimError>),
    /// Work on behalf of the machine of this epoch ended.
    Input(JobId, Epoch, Input),
    /// A stop request was written.
    Stopped(JobId, StopKind),
    Get(JobId, oneshot::Sender<Found>),
    List(usize, oneshot::Sender<Vec<job_wire::JobView>>),
    /// Addresses of the other live coordinators.
    Peers(oneshot::Sender<Vec<String>>),
    Source(oneshot::Sender<job_wire::GetSourceResponse>),
    Status(oneshot::Sender<Status>),
    Ask(Inquiry, Answer<lease_wire::Answer>),
    Hello(Greeting<CoordinatorSender>),
    Heartbeat(SessionId, lease_wire::Heartbeat),
    Failed {
        session: SessionId,
        job: JobId,
        attempt: AttemptId,
        token: Token,
        error: JobError,
    },
    Declined {
        job: JobId,
        attempt: AttemptId,
        token: Token,
    },
    Truncated {
        job: JobId,
        attempt: AttemptId,
        at: Option<Position>,
    },
    Answered(lease_wire::Answer),
    Goodbye(SessionId),
    Disconnected(SessionId, u64),
    Commit {
        job: JobId,
        commit: CommitRecord,
        token: Token,
        answer: oneshot::Sender<Reported>,
    },
    Complete {
        job: JobId,
        task: TaskId,
        attempt: AttemptId,
        token: Token,
        result: TaskResult,
        answer: oneshot::Sender<Reported>,
    },
    Shutdown(oneshot::Sender<()>),
}

/// A job of ours.
struct Owned {
    epoch: Epoch,
    machine: Job,
    /// Sessions that a task was offered to and whose grant is not out yet.
    offers: Vec<SessionId>,
    /// Tasks whose worker was lost, and since when: for the log of what was granted again.
    lost: BTreeMap<TaskId, Millis>,
}

/// A worker that waits for the answer to a report.
struct Waiting {
    job: JobId,
    attempt: AttemptId,
    answer: oneshot::Sender<Reported>,
}

/// The actor.
pub(crate) struct Driver {
    io: Io,
    options: CoordinatorOptions,
    cluster: Cluster,
    jobs: BTreeMap<JobId, Owned>,
    /// Stop requests of jobs that the cluster knows of.
    stops: BTreeMap<JobId, StopKind>,
    sessions: Sessions<CoordinatorSender>,
    scheduler: Scheduler,
    replies: BTreeMap<ReplyId, Waiting>,
    next_reply: ReplyId,
    questions: BTreeMap<u64, Answer<lease_wire::Answer>>,
    /// Questions that no worker was there to be asked.
    unasked: Vec<(Inquiry, Answer<lease_wire::Answer>)>,
    next_question: u64,
    /// Transactions in flight, for an orderly end.
    proposing: usize,
    /// Claims in flight.
    claiming: usize,
    /// When time passed last.
    ticked: Millis,
    shutdown: Option<oneshot::Sender<()>>,
}

impl Driver {
    pub fn new(me: CoordinatorId, options: CoordinatorOptions, io: Io) -> Driver {
        let sessions = Sessions::new(options.task_lease_ms);
        let cluster = Cluster::new(me);
        let scheduler = Scheduler::new(options.schedule.clone());
        Driver {
            io,
            options,
            cluster,
            jobs: BTreeMap::new(),
            stops: BTreeMap::new(),
            sessions,
            scheduler,
            replies: BTreeMap::new(),
            next_reply: 0,
            questions: BTreeMap::new(),
            unasked: Vec::new(),
            next_question: 0,
            proposing: 0,
            claiming: 0,
            ticked: 0,
            shutdown: None,
        }
    }

    /// Runs until shut down.
    pub async fn run(mut self, mut inbox: mpsc::Receiver<Event>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // In this order, so that a simulation is the same each time; a tick that is due waits for one batch.
                biased;
                _ = ticks.tick() => self.tick(),
                event = inbox.recv() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
            }
            for _ in 0..BATCH {
                let Ok(event) = inbox.try_recv() else { break };
                self.handle(event);
            }
            self.settle();
            if self.is_over() {
                break;
            }
        }
        if let Some(done) = self.shutdown {
            let _ = done.send(());
        }
    }

    /// After one event or several: hands tasks out and tells workers what has changed.
    pub fn settle(&mut self) {
        self.assign();
        self.tell_situation();
    }

    /// Whether an orderly end has come to its end.
    pub fn is_over(&self) -> bool {
        self.shutdown.is_some() && self.jobs.is_empty() && self.proposing == 0 && self.claiming == 0
    }

    /// The one way in.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Cluster(input) => self.follow(input),
            Event::Claimed(job, claimed) => self.claimed(job, claimed),
            Event::Input(job, epoch, input) => {
                if matches!(input, Input::TxnDone(_)) {
                    self.proposing -= 1;
                }
                if self.jobs.get(&job).is_some_and(|owned| owned.epoch == epoch) {
                    self.feed(job, input);
                }
            }
            Event::Stopped(job, kind) => {
                // Kept for a claim under way, which may have read the store before.
                self.stops.insert(job, kind);
                self.feed(job, Input::Stop(kind));
            }
            Event::Get(job, answer) => drop(answer.send(self.find(job))),
            Event::List(limit, answer) => drop(answer.send(self.list(limit))),
            Event::Peers(answer) => drop(answer.send(self.cluster.peers())),
            Event::Source(answer) => drop(answer.send(self.source())),
            Event::Status(answer) => drop(answer.send(self.status())),
            Event::Ask(question, answer) => self.ask(question, answer),
            Event::Answered(answer) => {
                if let Some(asker) = self.questions.remove(&answer.number) {
                    let _ = asker.send(Ok(answer));
                }
            }
            Event::Hello(greeting) => self.hello(greeting),
            Event::Heartbeat(session, heartbeat) => self.heartbeat(session, heartbeat),
            Event::Failed { session, job, attempt, token, error } => {
                tracing::warn!(job = %job, attempt = %attempt, session = %session, code = %error.code,
                    reason = %error.message, "an attempt failed");
                let how = Ended::Failed {
                    retryable: error.code.is_retryable(),
                    throttled: error.code == ErrorCode::Throttled,
                };
                self.scheduler.attempt_ended(self.io.monotonic(), job, attempt, how);
                self.feed(job, Input::Failed { attempt, token, error });
            }
            Event::Declined { job, attempt, token } => {
                self.scheduler.attempt_ended(self.io.monotonic(), job, attempt, Ended::Declined);
                self.feed(job, Input::Declined { attempt, token });
            }
            Event::Truncated { job, attempt, at: Some(at) } => {
                self.feed(job, Input::Truncate { attempt, at });
                self.scheduler.cut_answered(self.io.monotonic(), job, attempt, true);
            }
            Event::Truncated { job, attempt, at: None } => {
                self.scheduler.cut_answered(self.io.monotonic(), job, attempt, false);
            }
            Event::Goodbye(session) => {
                self.sessions.remove(session);
                self.lost(session, "said goodbye");
            }
            Event::Disconnected(session, connection) => {
                self.sessions.disconnected(self.io.monotonic(), session, connection);
            }
            Event::Commit { job, commit, token, answer } => {
                let reply = self.reply_to(job, commit.attempt, answer);
                self.feed_report(job, reply, Input::Commit { reply, commit, token });
            }
            Event::Complete { job, task, attempt, token, result, answer } => {
                let reply = self.reply_to(job, attempt, answer);
                self.feed_report(job, reply, Input::Complete { reply, task, attempt, token, result });
            }
            Event::Shutdown(done) => {
                self.shutdown = Some(done);
                self.follow(cluster::Input::Leave);
            }
        }
    }

    /// Time has passed.
    pub fn tick(&mut self) {
        let now = self.io.monotonic();
        let late = now.saturating_sub(self.ticked + TICK.as_millis() as Millis);
        self.ticked = now;
        if late > LATE {
            // This process stood still. What workers said meanwhile waits to be read: their silence is ours.
            tracing::warn!(late, "this process stood still for a while (milliseconds)");
            self.sessions.excuse(late);
        }
        for session in self.sessions.expired(self.io.monotonic()) {
            self.lost(session, "silent or disconnected for too long");
        }
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.feed(job, Input::Tick);
        }
        self.follow(cluster::Input::Tick);
    }

    fn reply_to(&mut self, job: JobId, attempt: AttemptId, answer: oneshot::Sender<Reported>) -> ReplyId {
        self.next_reply += 1;
        self.replies.insert(self.next_reply, Waiting { job, attempt, answer });
        self.next_reply
    }

    fn answer(&mut self, reply: ReplyId, answer: Reported) {
        let Some(waiting) = self.replies.remove(&reply) else { return };
        if matches!(answer, Reported::Decided(CommitAnswer::Accepted(_) | CommitAnswer::Duplicate, _))
            && !self.jobs.get(&waiting.job).is_some_and(|owned| owned.machine.is_leased(waiting.attempt))
        {
            let now = self.io.monotonic();
            self.scheduler.attempt_ended(now, waiting.job, waiting.attempt, Ended::Done);
        }
        let _ = waiting.answer.send(answer);
    }

    fn feed_report(&mut self, job: JobId, reply: ReplyId, input: Input) {
        if self.jobs.contains_key(&job) {
            return self.feed(job, input);
        }
        // Not ours, or not yet: only the owner decides.
        let owner = self.cluster.elsewhere(job).map(str::to_owned);
        let coming = owner.is_none() && self.cluster.is_claiming(job);
        let answer =
            if coming { Reported::Decided(CommitAnswer::Retry, 0) } else { Reported::NotOwner(owner) };
        self.answer(reply, answer);
    }

    fn feed(&mut self, id: JobId, input: Input) {
        let Some(owned) = self.jobs.get_mut(&id) else { return };
        let mut out = Vec::new();
        owned.machine.step(self.io.now(), input, &mut out);
        for output in out {
            self.perform(id, output);
        }
    }

    fn perform(&mut self, id: JobId, output: Output) {
        effects::perform(self, id, output);
    }

    fn ask(&mut self, question: Inquiry, answer: Answer<lease_wire::Answer>) {
        self.questions.retain(|_, asker| !asker.is_closed());
        self.unasked.retain(|(_, asker)| !asker.is_closed());
        let prepared = self.sessions.connected().find(|(_, session)| session.prepared);
        let any = || self.sessions.connected().next();
        let Some(session) = prepared.or_else(any).map(|(id, _)| *id) else {
            // Whoever asks waits for a while; the first worker to connect is asked.
            self.unasked.push((question, answer));
            return;
        };
        self.next_question += 1;
        let ask = question.to_wire(self.next_question, &self.options.cluster);
        self.questions.insert(self.next_question, answer);
        self.send(session, lease_wire::coordinator_message::Message::Ask(ask));
    }
}
