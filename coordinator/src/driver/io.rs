//! What the actor asks of the world: time, randomness, transactions, objects. Nothing here waits: work that takes
//! time runs in a task of its own and ends as an [`Event`]. Time is the runtime's, so that a simulation can run it.
//!
//! Invariant: whatever the machine asked for is answered. Work that panics is answered with an error that fails the job,
//! a transaction that does is proposed again and then given up with the machine, and a claim that does has failed.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use flatbed_coordinator_core::job::{Input, Txn, TxnOutcome};
use flatbed_types::job::{JobError, JobRecord, ObjectPointer};
use flatbed_types::manifest::Manifest;
use flatbed_types::task::{CommitRecord, MergePlan, Plan};
use flatbed_types::{ClientId, Epoch, ErrorCode, Instant, JobId};
use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio::time::Instant as Monotonic;

use super::{Context, Event};
use crate::objects::Orphans;
use crate::records::ClaimError;
use crate::{objects, records};

/// Milliseconds of monotonic time since the actor started.
pub(crate) type Millis = u64;

/// Jobs that are claimed and loaded at once.
const CLAIMS_AT_ONCE: usize = 16;

/// How long after a claim the orphans of former epochs are swept.
const LAST_UPLOADS: Duration = Duration::from_secs(60);

/// Times that a transaction is proposed whose proposing panics.
const PANICS: u32 = 3;

/// Work on objects of a job.
#[derive(Debug)]
pub(crate) enum ObjectWork {
    ReadDraft(ObjectPointer),
    WritePlan(u32, Plan),
    WriteMergePlan(MergePlan),
    WriteManifest(Box<Manifest>),
    WriteLedger(u32, Vec<(u64, CommitRecord)>),
    WritePage(u32, Box<Manifest>),
    Verify(Vec<(String, u64)>),
    Delete,
}

impl ObjectWork {
    /// The answer of this work when it did not succeed.
    fn failed(&self) -> fn(JobError) -> Input {
        match self {
            ObjectWork::ReadDraft(_) => |error| Input::DraftRead(Err(error)),
            ObjectWork::WritePlan(..) | ObjectWork::WriteMergePlan(_) | ObjectWork::WriteManifest(_) => {
                |error| Input::ObjectWritten(Err(error))
            }
            ObjectWork::WriteLedger(..) => |error| Input::LedgerWritten(Err(error)),
            ObjectWork::WritePage(..) => |error| Input::PageWritten(Err(error)),
            ObjectWork::Verify(_) => |error| Input::ObjectsVerified(Err(error)),
            ObjectWork::Delete => |error| Input::ObjectsDeleted(Err(error)),
        }
    }
}

/// See the module.
pub(crate) struct Io {
    context: Arc<Context>,
    started: Monotonic,
    claims: Arc<Semaphore>,
}

impl Io {
    pub fn new(context: Arc<Context>) -> Io {
        Io { context, started: Monotonic::now(), claims: Arc::new(Semaphore::new(CLAIMS_AT_ONCE)) }
    }

    /// The wall clock: for records and expiry only.
    pub fn now(&self) -> Instant {
        self.context.now()
    }

    /// Monotonic time.
    pub fn monotonic(&self) -> Millis {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A random number; `None` when the system has none to give.
    pub fn random(&self) -> Option<u64> {
        (self.context.random)()
    }

    /// Claims and loads a job; ends as [`Event::Claimed`].
    pub fn claim(&self, job: JobId) {
        let (context, claims) = (self.context.clone(), self.claims.clone());
        tokio::spawn(async move {
            // Never closed, so a permit always comes.
            let _permit = claims.acquire_owned().await;
            let claimed = unless_it_panics(job, "claiming", records::claim(&context, job)).await;
            let claimed = claimed.unwrap_or(Err(ClaimError::Defect)).map(Box::new);
            let _ = context.events.send(Event::Claimed(job, claimed)).await;
        });
    }

    /// Proposes a transaction of the machine of this epoch until its outcome is known; ends as [`Event::Input`]
    /// with `TxnDone`.
    pub fn propose(&self, job: JobId, epoch: Epoch, client: ClientId, txn: Txn) {
        let context = self.context.clone();
        let work = async move {
            for _ in 0..PANICS {
                let proposed = records::propose(&context, job, &client, txn.clone());
                if let Some(outcome) = unless_it_panics(job, "proposing a transaction", proposed).await {
                    return Input::TxnDone(outcome);
                }
            }
            // Whether it applied is not known. The machine goes, as if another coordinator had the job, and the next one
            // is loaded from what is stored.
            Input::TxnDone(TxnOutcome::Fenced)
        };
        self.spawn(job, epoch, work);
    }

    /// Works on objects for the machine of this epoch; ends as [`Event::Input`] with the answer that the machine
    /// waits for.
    pub fn objects(&self, record: &JobRecord, epoch: Epoch, work: ObjectWork) {
        let (context, root) = (self.context.clone(), objects::root_of(&self.context.options, record));
        let (id, failed) = (record.id, work.failed());
        let work = async move {
            let done = unless_it_panics(id, "working on objects", carry_out(&context, &root, work)).await;
            done.unwrap_or_else(|| failed(defect()))
        };
        self.spawn(record.id, epoch, work);
    }

    /// Deletes what dead attempts left. Nobody waits for it.
    pub fn sweep(&self, record: &JobRecord, orphans: Orphans) {
        let root = objects::root_of(&self.context.options, record);
        let (context, job) = (self.context.clone(), record.id);
        tokio::spawn(async move {
            if orphans.since.is_some() {
                // Uploads that were under way when their attempts died may still end.
                tokio::select! {
                    () = tokio::time::sleep(LAST_UPLOADS) => {}
                    () = context.events.closed() => return,
                }
            }
            // What stays after a failure goes with the job in the end.
            match objects::sweep(&context, &root, Arc::new(orphans)).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(job = %job, count, "deleted objects of dead attempts"),
                Err(error) => tracing::warn!(job = %job, reason = %error.message, "sweep incomplete"),
            }
        });
    }

    fn spawn(&self, job: JobId, epoch: Epoch, work: impl Future<Output = Input> + Send + 'static) {
        let events = self.context.events.clone();
        tokio::spawn(async move {
            let input = work.await;
            let _ = events.send(Event::Input(job, epoch, input)).await;
        });
    }
}

/// What work on a job ends with; `None` when it panicked, which the log tells.
async fn unless_it_panics<T>(job: JobId, doing: &str, work: impl Future<Output = T>) -> Option<T> {
    // What the work has touched beside its own is behind locks that take poison for no reason to stop.
    let done = AssertUnwindSafe(work).catch_unwind().await.ok();
    if done.is_none() {
        tracing::error!(job = %job, "a task of the coordinator panicked while {doing}; this is a defect");
    }
    done
}

fn defect() -> JobError {
    let message =
        "internal error: a part of the coordinator ended unexpectedly; its log says more".to_owned();
    JobError { code: ErrorCode::Internal, message }
}

async fn carry_out(context: &Context, root: &str, work: ObjectWork) -> Input {
    match work {
        ObjectWork::ReadDraft(pointer) => Input::DraftRead(objects::read_draft(context, &pointer).await),
        ObjectWork::WritePlan(round, plan) => {
            Input::ObjectWritten(objects::write_plan(context, root, round, &plan).await)
        }
        ObjectWork::WriteMergePlan(plan) => {
            Input::ObjectWritten(objects::write_merge_plan(context, root, &plan).await)
        }
        ObjectWork::WriteManifest(manifest) => {
            Input::ObjectWritten(objects::write_manifest(context, root, &manifest).await)
        }
        ObjectWork::WriteLedger(number, commits) => {
            Input::LedgerWritten(objects::write_ledger(context, root, number, commits).await)
        }
        ObjectWork::WritePage(number, page) => {
            Input::PageWritten(objects::write_page(context, root, number, &page).await)
        }
        ObjectWork::Verify(expected) => {
            Input::ObjectsVerified(objects::verify(context, root, expected).await)
        }
        ObjectWork::Delete => Input::ObjectsDeleted(objects::delete_all(context, root).await),
    }
}

#[cfg(test)]
mod tests;
