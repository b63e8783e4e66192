//! An attempt where its worker's sessions and the work itself meet: how it stands, and what is wanted of it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flatbed_proto::convert::{Wire, u128_from};
use flatbed_proto::wire::lease as wire;
use flatbed_types::job::Volume;
use flatbed_types::{AttemptId, JobId, Position};
use tokio::sync::{Notify, mpsc};

use crate::driver::Event;

/// See the module.
pub(super) struct Running {
    pub grant: wire::Grant,
    owner: AtomicUsize,
    revoked: AtomicBool,
    drained: AtomicBool,
    changed: Notify,
    standing: Mutex<(Volume, u64)>,
    cuts: Mutex<Vec<mpsc::UnboundedSender<Event>>>,
}

impl Running {
    pub fn new(grant: wire::Grant, place: usize) -> Running {
        Running {
            grant,
            owner: AtomicUsize::new(place),
            revoked: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            changed: Notify::new(),
            standing: Mutex::default(),
            cuts: Mutex::default(),
        }
    }

    /// The coordinator that owns the job, as far as known.
    pub fn owner(&self) -> usize {
        self.owner.load(Ordering::Relaxed)
    }

    pub fn set_owner(&self, place: usize) {
        self.owner.store(place, Ordering::Relaxed);
    }

    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    pub async fn until_revoked(&self) {
        while !self.is_revoked() {
            self.changed.notified().await;
        }
    }

    pub fn drain(&self) {
        self.drained.store(true, Ordering::Relaxed);
    }

    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Relaxed)
    }

    fn standing(&self) -> MutexGuard<'_, (Volume, u64)> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has written, and the bytes that are left.
    pub fn stands(&self, written: Volume, left_bytes: u64) {
        *self.standing() = (written, left_bytes);
    }

    pub fn report(&self) -> wire::AttemptReport {
        let (written, left_bytes) = *self.standing();
        wire::AttemptReport {
            job: self.grant.job.clone(),
            task: self.grant.task,
            attempt: self.grant.attempt,
            uncommitted: None,
            note: String::new(),
            written: Some(written.to_wire()),
            left_bytes,
        }
    }

    pub fn is_cut_wanted(&self) -> bool {
        !self.cuts().is_empty()
    }

    fn cuts(&self) -> MutexGuard<'_, Vec<mpsc::UnboundedSender<Event>>> {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn ask_for_cut(&self, answers: mpsc::UnboundedSender<Event>) {
        self.cuts().push(answers);
    }

    pub fn answer_cuts(&self, at: Option<&Position>) {
        let job = JobId(u128_from(&self.grant.job, "grant.job").unwrap_or_default());
        for answers in std::mem::take(&mut *self.cuts()) {
            let attempt = AttemptId(self.grant.attempt);
            let _ = answers.send(Event::Truncated { job, attempt, at: at.cloned() });
        }
    }
}
