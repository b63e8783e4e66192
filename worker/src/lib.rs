//! A running worker: connects to the coordinators, offers its slots, and carries out what it is granted.
//!
//! - `supervise`: a session for each coordinator, drain; `session`: one of them.
//! - `hub`: what they share, the slots and the running attempts; `allot`: who may fill which slots.
//! - `readiness`: whether the source can be read, and questions about it; `pulse`: whether anybody hears the worker.
//! - `handback`: attempts that ended before their task, until their owner knows.
//! - `slot`: one grant from its arrival to its end; `threads`: one thread a slot.
//! - `extract`: reads a range and commits it segment by segment; `rows`: what it reads.
//! - `planning`, `resolve`, `merge`: the other tasks; `deleted`: what an increment says was deleted; `lines`: files of
//!   what are no rows; `consent`: whom a job leaves out.
//! - `upload`: objects in parts; `commit`: reports that must arrive.
//!
//! It knows no etcd and no HTTP clients; its only peers are the coordinators, the source and the object store.
//! Nothing that it writes counts until a commit of it is accepted, and it never deletes what it has sealed.

mod allot;
mod commit;
mod consent;
mod contents;
mod deleted;
mod extract;
mod handback;
mod hub;
mod lines;
mod merge;
mod planning;
mod pulse;
mod readiness;
mod references;
mod resolve;
mod rows;
mod session;
mod slot;
mod supervise;
#[cfg(test)]
mod tests;
mod threads;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;

use flatbed_extract::Source;
use flatbed_extract::shape::LongRows;
use flatbed_proto::reach::Coordinators;
use flatbed_types::error_code::is_out_of_place;
use flatbed_types::job::JobError;
use flatbed_types::{ErrorCode, SessionId, WorkerId};
use object_store::ObjectStore;
use object_store::path::Path;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Opens the store that an address names, with the object's place in it; the error says why not, for people. Nothing is
/// asked of the store yet.
pub type OpenLocation = fn(&str) -> Result<(Arc<dyn ObjectStore>, Path), String>;

/// What a worker is told at its start.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Its name. Stable over restarts where possible: what a former start held is then granted again at once.
    pub id: WorkerId,
    /// Tasks at once.
    pub slots: u32,
    /// A folder for files that are gone when closed: sorting, sidecars.
    pub scratch: PathBuf,
    /// Bytes of keys held in memory by one sort.
    pub sort_budget: usize,
    /// How rosters of exclusions are reached, where jobs name one.
    pub open_location: OpenLocation,
}

/// A running worker.
pub struct Worker {
    drain: CancellationToken,
    sessions: JoinHandle<()>,
    slots_busy: SlotsBusy,
}

/// Reads how many attempts of a worker hold a slot, as long as anybody wants to know: it keeps nothing running.
#[derive(Debug, Clone)]
pub struct SlotsBusy(watch::Receiver<usize>);

impl SlotsBusy {
    /// Attempts that hold a slot now; 0 after the worker has stopped in order.
    pub fn now(&self) -> usize {
        *self.0.borrow()
    }
}

impl Worker {
    /// Connects to every coordinator and works until stopped; reconnects by itself. The source is prepared at once, so that a lake is
    /// put into order before the first job asks for it.
    ///
    /// # Errors
    /// When the system refuses threads.
    pub fn start(
        coordinators: Coordinators,
        source: Arc<dyn Source>,
        objects: Arc<dyn ObjectStore>,
        options: WorkerOptions,
    ) -> std::io::Result<Worker> {
        let drain = CancellationToken::new();
        let threads = threads::Threads::start(options.slots)?;
        let (session, pulse) = (fresh_session(), pulse::Pulse::new());
        let long_rows = Arc::new(LongRows::default());
        let context = Context { source, objects, options, coordinators, session, threads, pulse, long_rows };
        let hub = Arc::new(hub::Hub::new(Arc::new(context), drain.clone()));
        let slots_busy = SlotsBusy(hub.busy());
        let sessions = tokio::spawn(supervise::run(hub));
        Ok(Worker { drain, sessions, slots_busy })
    }

    /// How many of its slots hold an attempt, for metrics.
    pub fn slots_busy(&self) -> SlotsBusy {
        self.slots_busy.clone()
    }

    /// Drains: takes nothing new, commits what running tasks have written, hands back what is left of them, and says
    /// goodbye to each coordinator when it holds no attempt of this worker any more. Takes 25 s at most.
    pub async fn stop(self) {
        self.drain.cancel();
        let _ = self.sessions.await;
    }
}

/// What all parts of a worker share.
pub(crate) struct Context {
    pub source: Arc<dyn Source>,
    pub objects: Arc<dyn ObjectStore>,
    pub options: WorkerOptions,
    pub coordinators: Coordinators,
    pub session: SessionId,
    pub threads: threads::Threads,
    pub pulse: pulse::Pulse,
    /// Shared by all slots.
    pub long_rows: Arc<LongRows>,
}

fn fresh_session() -> SessionId {
    let mut bytes = [0_u8; 16];
    // Without randomness there is no session that a coordinator could tell from others; zero is refused there.
    let _ = getrandom::fill(&mut bytes);
    SessionId(u128::from_be_bytes(bytes))
}

pub(crate) fn random_u64() -> Result<u64, JobError> {
    getrandom::u64().map_err(|_| internal("no randomness"))
}

pub(crate) fn internal(message: impl std::fmt::Display) -> JobError {
    JobError { code: ErrorCode::Internal, message: format!("internal error: {message}") }
}

pub(crate) fn source_error(error: flatbed_extract::SourceError) -> JobError {
    JobError { code: error.code, message: error.message }
}

/// An I/O error of scratch files or key lists. What time cannot mend counts as a failure. The error's own text may
/// hold paths and addresses: for the log, not for clients.
pub(crate) fn io_error(doing: &str, error: &std::io::Error) -> JobError {
    use std::io::ErrorKind;
    tracing::warn!(%error, "{doing}");
    let code = match error.kind() {
        ErrorKind::InvalidData
        | ErrorKind::NotFound
        | ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::UnexpectedEof => ErrorCode::StorageFailed,
        _ => ErrorCode::Unavailable,
    };
    JobError { code, message: format!("failed while {doing}") }
}

/// An error of the object store. What a retry cannot mend counts as a failure; all else costs time only.
pub(crate) fn object_error(doing: &str, error: &object_store::Error) -> JobError {
    use object_store::Error;
    tracing::warn!(%error, "object store: {doing}");
    let code = match error {
        Error::PermissionDenied { .. }
        | Error::Unauthenticated { .. }
        | Error::NotSupported { .. }
        | Error::InvalidPath { .. }
        | Error::UnknownConfigurationKey { .. }
        | Error::NotFound { .. } => ErrorCode::StorageFailed,
        _ if is_out_of_place(error) => ErrorCode::StorageFailed,
        _ => ErrorCode::Unavailable,
    };
    JobError { code, message: format!("the object store failed while {doing}") }
}
