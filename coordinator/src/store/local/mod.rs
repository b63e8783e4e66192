//! The store of one process: an ordered map in memory, and with `redb:` a file that every transaction reaches
//! before it is answered.
//!
//! Evaluation is the same for both; only where writes rest differs. A full or failing disk fails the
//! transaction before the map changes, so that what is read is always what is durable. The file is locked by the
//! process that has it open.
//!
//! Leases are counted on the monotonic clock and live in the process: none survives a restart, nor an error of the file.
//! A task removes what rests on a lease when it ends; whatever is asked of the store does so before it is answered, so
//! that nobody reads a key of a lease that is over, even where that task is late.

mod file;
mod state;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::file::{Contents, StateFile};
use self::state::{Map, State};
use super::{Entry, LeaseId, MetaStore, Outcome, Revision, StoreError, Transaction, Watch};

/// How long to wait before keys of an ended lease are tried again that the file did not let go.
const RETRY: Duration = Duration::from_millis(250);

/// See the module.
#[derive(Clone)]
pub struct LocalStore {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// The file is synced under the lock: one writer at a time is what the file allows anyway.
    on_disk: bool,
    /// Removes the keys of ended leases; started with the first lease.
    timer: Mutex<Option<JoinHandle<()>>>,
    /// A lease that may end sooner than the timer thinks, or the end of the store.
    wake: Arc<Notify>,
}

impl LocalStore {
    /// A store that is gone with the process.
    pub fn memory() -> LocalStore {
        LocalStore::with(Contents { map: Map::new(), revision: 0 }, None)
    }

    /// A store in a file, created if need be.
    pub fn redb(path: &Path) -> Result<LocalStore, StoreError> {
        let (file, contents) = StateFile::open(path)?;
        Ok(LocalStore::with(contents, Some(file)))
    }

    fn with(contents: Contents, file: Option<StateFile>) -> LocalStore {
        let on_disk = file.is_some();
        let state = Mutex::new(State::new(contents, file));
        let wake = Arc::new(Notify::new());
        LocalStore { shared: Arc::new(Shared { state, on_disk, timer: Mutex::new(None), wake }) }
    }

    fn start_timer(&self) {
        let mut timer = self.shared.timer.lock().unwrap_or_else(PoisonError::into_inner);
        // A timer ends with the runtime that it was started on; the store may outlive that.
        if timer.as_ref().is_none_or(JoinHandle::is_finished) {
            *timer = Some(tokio::spawn(expire(Arc::downgrade(&self.shared), self.shared.wake.clone())));
        }
        drop(timer);
        self.shared.wake.notify_one();
    }
}

impl Shared {
    /// Runs what may sync a file where that stalls nobody else.
    async fn run<T, F>(self: &Arc<Shared>, work: F) -> Result<T, String>
    where
        T: Send + 'static,
        F: FnOnce(&mut State, Instant) -> T + Send + 'static,
    {
        let now = Instant::now();
        if !self.on_disk {
            return Ok(work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner), now));
        }
        let shared = self.clone();
        let run = move || work(&mut shared.state.lock().unwrap_or_else(PoisonError::into_inner), now);
        tokio::task::spawn_blocking(run).await.map_err(|error| format!("state store: {error}"))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

/// Ends leases when their time is over, until the store is gone.
async fn expire(store: Weak<Shared>, wake: Arc<Notify>) {
    loop {
        let Some(shared) = store.upgrade() else { return };
        let next = shared.run(|state, now| match state.lapse(now) {
            Ok(()) => state.next_end(),
            Err(error) => {
                tracing::warn!(%error, "keys of an ended lease could not be removed; trying again");
                Some(now + RETRY)
            }
        });
        let next = next.await;
        drop(shared);
        match next {
            Ok(Some(next)) => tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = wake.notified() => {}
            },
            Ok(None) => wake.notified().await,
            Err(_) => return,
        }
    }
}

#[async_trait]
impl MetaStore for LocalStore {
    async fn txn(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        let run = self.shared.run(move |state, now| state.txn(transaction, now));
        run.await.map_err(StoreError::Unknown)?
    }

    async fn range(&self, prefix: &[u8], at: Option<Revision>) -> Result<(Revision, Vec<Entry>), StoreError> {
        let prefix = prefix.to_vec();
        let run = self.shared.run(move |state, now| state.range(&prefix, at, now));
        run.await.map_err(StoreError::NotApplied)?
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let lease = self.shared.run(move |state, now| state.grant(ttl, now)).await;
        self.start_timer();
        lease.map_err(StoreError::Unknown)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let run = self.shared.run(move |state, now| state.keep_alive(lease, now));
        run.await.map_err(StoreError::Unknown)?
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        let run = self.shared.run(move |state, now| state.revoke(lease, now));
        run.await.map_err(StoreError::Unknown)?
    }

    async fn watch(&self, prefixes: &[Vec<u8>], after: Revision) -> Result<Watch, StoreError> {
        let prefixes = prefixes.to_vec();
        let run = self.shared.run(move |state, now| state.watch(&prefixes, after, now));
        run.await.map_err(StoreError::NotApplied)?
    }
}

#[cfg(test)]
mod tests;
