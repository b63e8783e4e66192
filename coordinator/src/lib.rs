//! A running coordinator: the pure core of `flatbed-coordinator-core` with a store, an object store, a clock and
//! gRPC around it.
//!
//! - [`store`]: the metadata store as one trait; `memory:` and `redb:` behind it, one conformance suite.
//! - `records`: typed writes to keys and bytes and back.
//! - `objects`: plans, manifests, deletion and the sweep of orphans.
//! - `sessions`: which workers are there, with which slots.
//! - `registry`: this coordinator's place in the cluster; who else is there and who owns what.
//! - `driver`: one actor that owns jobs, feeds their machines and carries out what they ask for.
//! - `services`: the gRPC edges.
//!
//! It never opens a source and never sees resource content.

mod driver;
mod objects;
mod records;
mod registry;
mod services;
mod sessions;
#[cfg(test)]
mod simulation;
pub mod store;

use std::sync::Arc;

use flatbed_coordinator_core::job::Settings;
use flatbed_coordinator_core::page::PageRule;
use flatbed_coordinator_core::plan::Sizing;
use flatbed_coordinator_core::schedule::ScheduleSettings;
use flatbed_proto::reach::Dial;
use flatbed_types::{Codec, Instant, caps};
use object_store::ObjectStore;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::driver::{Driver, Event};
use crate::store::MetaStore;

/// How long an orderly stop waits for transactions in flight.
const STOP_LIMIT: std::time::Duration = std::time::Duration::from_secs(8);

/// How often answers to questions, and what is known of assertions and tokens, are looked through for old ones.
const SWEEP_ANSWERS: std::time::Duration = std::time::Duration::from_secs(60);

/// Tells the time: wall clock, for records and expiry only.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// Gives random numbers; `None` when the system has none to give.
pub(crate) type Random = Arc<dyn Fn() -> Option<u64> + Send + Sync>;

/// What a coordinator is told at its start.
#[derive(Debug, Clone)]
pub struct CoordinatorOptions {
    /// Name of the cluster: the first part of all keys and object names.
    pub cluster: String,
    /// How output rests.
    pub codec: Codec,
    /// Bytes before compression at which a file is large enough.
    pub target_file_size: u64,
    /// Bytes before compression after which what was written is committed.
    pub seal_bytes: u64,
    /// Milliseconds after which what was written is committed.
    pub seal_ms: u64,
    /// How long finished files stay, in milliseconds.
    pub retention_ms: u64,
    /// How long a job is reported as in progress at least, in milliseconds.
    pub min_in_progress_ms: u64,
    /// How long the attempts of a silent worker stay allowed, in milliseconds.
    pub task_lease_ms: u64,
    /// How long this coordinator's jobs stay its own when it falls silent, in milliseconds.
    pub owner_lease_ms: u64,
    /// The gRPC URL that other coordinators, gateways and workers reach this one at; empty when it serves its own
    /// process only.
    pub advertise: String,
    /// Unfinished jobs of one client.
    pub max_jobs: u32,
    /// Data files of a job above which small ones are joined.
    pub max_files: usize,
    /// Commits of a job in the store above which they are folded into an object.
    pub fold_commits: usize,
    /// When a page of a manifest is due, where the client takes pages.
    pub pages: PageRule,
    /// Who works on what, and when slots change hands.
    pub schedule: ScheduleSettings,
    /// Where the roster of exclusions is that every new job names; `None` where nobody is left out.
    pub exclusions: Option<String>,
}

impl Default for CoordinatorOptions {
    fn default() -> Self {
        CoordinatorOptions {
            cluster: "main".to_owned(),
            codec: Codec::Gzip,
            target_file_size: caps::DEFAULT_TARGET_FILE_SIZE,
            seal_bytes: caps::SEAL_BYTES,
            seal_ms: caps::SEAL_MILLIS,
            retention_ms: caps::DEFAULT_RETENTION_MILLIS,
            min_in_progress_ms: caps::DEFAULT_MIN_IN_PROGRESS_MILLIS,
            task_lease_ms: caps::TASK_LEASE_MILLIS,
            owner_lease_ms: caps::OWNER_LEASE_MILLIS,
            advertise: String::new(),
            max_jobs: caps::DEFAULT_MAX_JOBS,
            max_files: caps::MAX_FILES,
            fold_commits: caps::FOLD_COMMITS,
            pages: PageRule::default(),
            schedule: ScheduleSettings::default(),
            exclusions: None,
        }
    }
}

impl CoordinatorOptions {
    fn job_settings(&self) -> Settings {
        let retention_ms = i64::try_from(self.retention_ms).unwrap_or(i64::MAX);
        Settings {
            sizing: Sizing { target_bytes: self.target_file_size },
            retention_ms,
            max_files: self.max_files,
            fold_commits: self.fold_commits,
            pages: self.pages,
        }
    }
}

/// How a coordinator stands, for probes and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// Whether it is part of the cluster and has seen all jobs of it.
    pub ready: bool,
    /// Jobs that it owns, finished ones among them.
    pub jobs_owned: u64,
    /// Of these, unfinished.
    pub jobs_unfinished: u64,
    /// Tasks of its jobs that could be granted now.
    pub tasks_waiting: u64,
    /// Attempts of its jobs that are at work.
    pub tasks_running: u64,
    /// Workers connected to it.
    pub workers: u64,
    /// Their slots.
    pub slots: u64,
    /// Slots that it may fill at the moment.
    pub slots_free: u64,
    /// Questions of kick-offs that no worker is there to answer.
    pub questions_waiting: u64,
}

/// Sweeps answers to questions, used assertions and revoked tokens while there is anybody who works with this context. Every coordinator does it: there are
/// few, and deleting one twice is harmless.
async fn keep_swept(context: std::sync::Weak<driver::Context>) {
    let mut beats = tokio::time::interval(SWEEP_ANSWERS);
    let mut swept = None;
    loop {
        beats.tick().await;
        let Some(context) = context.upgrade().filter(|context| !context.is_leaving()) else { return };
        match objects::sweep_answers(&context).await {
            Ok(0) => {}
            Ok(answers) => tracing::debug!(answers, "answers to questions swept"),
            Err(error) => tracing::warn!(reason = %error.message, "answers to questions could not be swept"),
        }
        if let Err(error) = services::trust::sweep(&context, &mut swept).await {
            tracing::warn!(%error, "used assertions and revoked tokens could not be swept");
        }
    }
}

/// Asks a running coordinator how it stands.
#[derive(Clone)]
pub struct StatusHandle {
    context: Arc<driver::Context>,
}

impl StatusHandle {
    /// How it stands; `None` when it is stopping.
    pub async fn status(&self) -> Option<Status> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.context.events.send(Event::Status(answer)).await.ok()?;
        answered.await.ok()
    }

    /// Whether the state store answers reads.
    pub async fn store_answers(&self) -> bool {
        registry::store_answers(&self.context).await
    }
}

/// A coordinator could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system gives no randomness, without which coordinators cannot be told apart.
    #[error("the system gives no randomness")]
    NoRandomness,
}

/// A running coordinator.
pub struct Coordinator {
    context: Arc<driver::Context>,
    services: services::Services,
    actor: JoinHandle<()>,
}

impl Coordinator {
    /// Joins the cluster: claims the jobs that nobody owns and goes on with them. Returns at once; jobs follow when
    /// the store answers.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub async fn start(
        store: Arc<dyn MetaStore>,
        objects: Arc<dyn ObjectStore>,
        options: CoordinatorOptions,
        dial: Arc<dyn Dial>,
        clock: Clock,
    ) -> Result<Coordinator, StartError> {
        let random: Random = Arc::new(|| getrandom::u64().ok());
        let coordinator = Coordinator::start_with(store, objects, options, dial, (clock, random))?;
        tokio::spawn(keep_swept(Arc::downgrade(&coordinator.context)));
        Ok(coordinator)
    }

    /// As `start`, with randomness given: a simulation's is seeded.
    fn start_with(
        store: Arc<dyn MetaStore>,
        objects: Arc<dyn ObjectStore>,
        options: CoordinatorOptions,
        dial: Arc<dyn Dial>,
        chance: (Clock, Random),
    ) -> Result<Coordinator, StartError> {
        let id = (chance.1)().ok_or(StartError::NoRandomness)?;
        let me = format!("coo_{id:016x}").parse().map_err(|_| StartError::NoRandomness)?;
        let (events, inbox) = mpsc::channel(driver::INBOX);
        let context = driver::Context::new(me, (store, objects), options, dial, chance, events);
        let context = Arc::new(context);
        let services = services::Services::new(context.clone());
        let io = driver::Io::new(context.clone());
        let driver = Driver::new(context.me.clone(), context.options.clone(), io);
        let actor = tokio::spawn(driver.run(inbox));
        registry::start(context.clone());
        Ok(Coordinator { context, services, actor })
    }

    /// The services of gateways and operators alone.
    pub fn jobs_routes(&self) -> Routes {
        self.services.jobs_routes()
    }

    /// The gRPC services, that of workers among them.
    pub fn routes(&self) -> Routes {
        self.services.routes()
    }

    /// For probes and metrics.
    pub fn status(&self) -> StatusHandle {
        StatusHandle { context: self.context.clone() }
    }

    /// Stops: transactions in flight end, jobs are handed off, nothing new is begun. Jobs go on at another
    /// coordinator at once, or with the next start.
    pub async fn stop(self) {
        let (done, stopped) = tokio::sync::oneshot::channel();
        let mut actor = self.actor;
        let orderly = async {
            let lease = registry::step_down(&self.context).await;
            if self.context.events.send(Event::Shutdown(done)).await.is_ok() {
                let _ = stopped.await;
            }
            let _ = (&mut actor).await;
            registry::leave(&self.context, lease).await;
        };
        // A store that answers nothing must not keep the process: what is in flight is resolved by the next owner.
        if tokio::time::timeout(STOP_LIMIT, orderly).await.is_err() {
            tracing::warn!("the state store did not answer in time; transactions in flight are left open");
            actor.abort();
        }
    }
}
