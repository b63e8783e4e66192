//! A running coordinator: the pure core of `flatbed-coordinator-core` with a store, an object store, a clock and
//! gRPC around it.
//!
//! - [`store`]: the metadata store as one trait; `memory:` and `redb:` behind it, one conformance suite.
//! - `records`: typed writes to keys and bytes and back.
//! - `objects`: plans, manifests, deletion and the sweep of orphans.
//! - `sessions`: which workers are there, with which slots.
//! - `driver`: one actor that owns all jobs, feeds their machines and carries out what they ask for.
//! - `services`: the gRPC edges.
//!
//! It never opens a source and never sees resource content.

mod driver;
mod objects;
mod records;
mod services;
mod sessions;
pub mod store;

use std::sync::Arc;

use flatbed_coordinator_core::job::Settings;
use flatbed_coordinator_core::plan::Sizing;
use flatbed_types::{Codec, Instant, caps};
use object_store::ObjectStore;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::driver::{Driver, Event};
use crate::store::{MetaStore, StoreError};

/// How long an orderly stop waits for transactions in flight.
const STOP_LIMIT: std::time::Duration = std::time::Duration::from_secs(8);

/// Tells the time: wall clock, for records and expiry only.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

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
            fold_commits: caps::FOLD_COMMITS,
        }
    }
}

/// A coordinator could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be read.
    #[error("the state store cannot be read: {0}")]
    Store(#[from] StoreError),
    /// A stored record cannot be understood.
    #[error("the state store holds a record that cannot be understood: {0}")]
    Record(#[from] flatbed_proto::Malformed),
}

/// A running coordinator.
pub struct Coordinator {
    events: mpsc::Sender<Event>,
    services: services::Services,
    actor: JoinHandle<()>,
}

impl Coordinator {
    /// Claims the unfinished jobs of the store and goes on with them.
    pub async fn start(
        store: Arc<dyn MetaStore>,
        objects: Arc<dyn ObjectStore>,
        options: CoordinatorOptions,
        clock: Clock,
    ) -> Result<Coordinator, StartError> {
        let (events, inbox) = mpsc::channel(driver::INBOX);
        let context = Arc::new(driver::Context { store, objects, options, clock, events: events.clone() });
        let known = records::list_jobs(&context).await?;
        let services = services::Services::new(context.clone());
        let actor = tokio::spawn(Driver::new(context, known).run(inbox));
        Ok(Coordinator { events, services, actor })
    }

    /// The service of gateways and operators alone.
    pub fn jobs_routes(&self) -> Routes {
        self.services.jobs_routes()
    }

    /// The gRPC services, that of workers among them.
    pub fn routes(&self) -> Routes {
        self.services.routes()
    }

    /// Stops: transactions in flight end, nothing new is begun. Jobs go on with the next start.
    pub async fn stop(self) {
        let (done, stopped) = tokio::sync::oneshot::channel();
        let mut actor = self.actor;
        let orderly = async {
            if self.events.send(Event::Shutdown(done)).await.is_ok() {
                let _ = stopped.await;
            }
            let _ = (&mut actor).await;
        };
        // A store that answers nothing must not keep the process: what is in flight is resolved by the next start.
        if tokio::time::timeout(STOP_LIMIT, orderly).await.is_err() {
            tracing::warn!("the state store did not answer in time; transactions in flight are left open");
            actor.abort();
        }
    }
}
