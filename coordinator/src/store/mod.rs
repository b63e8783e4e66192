//! The metadata store: small, transactional, ordered keys (`coordination.md` 3.1).
//!
//! Three answers are possible to a transaction: it applied, it did not, or nobody knows ([`StoreError::Unknown`]).
//! The last is resolved by proposing the identical transaction again: every transaction of ours compares and
//! moves a fence, so that it can apply at most once. A store that has several servers to ask may itself propose such a
//! transaction to more than one of them ([`Transaction::moves_its_guard`]).
//!
//! Knows nothing about jobs, keys' meanings or values' encodings.

pub mod conformance;
mod etcd;
mod feed;
mod local;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
pub use etcd::{EtcdOptions, EtcdStore};
use futures::stream::BoxStream;
pub use local::LocalStore;

/// A version of the whole store; grows with every applied transaction that writes.
pub type Revision = u64;

/// A lease: keys put with it go when it ends. Leases decide when somebody tries, never whether a write counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// A key that changed, and its value since (`None`: removed).
pub type Event = (Vec<u8>, Option<Vec<u8>>);

/// All events of one revision under the prefixes of a watch, in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Events {
    /// The revision.
    pub revision: Revision,
    /// What changed.
    pub events: Vec<Event>,
}

/// Changes as they happen: every revision that touched one of the prefixes once, whole, in rising order. An error, or
/// the end, means that changes may have been missed: list again at a revision and watch from there. A reader that
/// falls too far behind gets an error. Changes may come late, and a watch alone proves nothing about now.
pub type Watch = BoxStream<'static, Result<Events, StoreError>>;

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(Vec<u8>),
    /// The key has exactly this value.
    Equals(Vec<u8>, Vec<u8>),
}

/// A write of a transaction. Later ones of a transaction see earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(Vec<u8>, Vec<u8>),
    /// Sets a key that goes when the lease ends.
    PutLeased(Vec<u8>, Vec<u8>, LeaseId),
    /// Removes a key, if it is there.
    Delete(Vec<u8>),
    /// Removes all keys that start with this.
    DeletePrefix(Vec<u8>),
    /// Removes all keys from the first (included) to the second (excluded).
    DeleteRange(Vec<u8>, Vec<u8>),
}

/// All or nothing: if every comparison holds, the writes apply; else the reads are answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// The conditions.
    pub compares: Vec<Compare>,
    /// What to write when they hold.
    pub writes: Vec<Write>,
    /// Which keys to read when they do not.
    pub reads: Vec<Vec<u8>>,
}

impl Transaction {
    /// Whether the writes falsify one of the conditions: proposed twice, such a transaction does not apply twice in a
    /// row. (Never twice at all, if no one else brings the condition's value back: fences only rise.)
    pub fn moves_its_guard(&self) -> bool {
        self.compares.iter().any(|compare| match compare {
            Compare::Absent(key) => matches!(self.last_write(key), Some(Some(_))),
            Compare::Equals(key, value) => self.last_write(key).is_some_and(|last| last != Some(value)),
        })
    }

    /// What the writes leave under a key, if they touch it.
    fn last_write(&self, key: &Vec<u8>) -> Option<Option<&Vec<u8>>> {
        self.writes.iter().rev().find_map(|write| match write {
            Write::Put(put, value) | Write::PutLeased(put, value, _) => (put == key).then_some(Some(value)),
            Write::Delete(gone) => (gone == key).then_some(None),
            Write::DeletePrefix(prefix) => key.starts_with(prefix).then_some(None),
            Write::DeleteRange(from, to) => (from <= key && key < to).then_some(None),
        })
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It applied and is durable.
    Applied(Revision),
    /// It did not apply; the values of `reads`, in order.
    NotApplied(Vec<Option<Vec<u8>>>),
}

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Why the store did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Certainly without effect.
    #[error("{0}")]
    NotApplied(String),
    /// Perhaps with effect.
    #[error("{0} (outcome unknown)")]
    Unknown(String),
    /// The revision asked for is no longer kept, or not reached yet.
    #[error("revision {0} is not available")]
    NoSuchRevision(Revision),
    /// The lease has ended; certainly without effect.
    #[error("the lease has ended")]
    LeaseEnded,
}

/// A metadata store.
#[async_trait]
pub trait MetaStore: Send + Sync {
    /// Proposes a transaction.
    async fn txn(&self, transaction: Transaction) -> Result<Outcome, StoreError>;

    /// The entries whose keys start with `prefix`, ordered, at a revision or now; with the revision they are of.
    async fn range(&self, prefix: &[u8], at: Option<Revision>) -> Result<(Revision, Vec<Entry>), StoreError>;

    /// Starts a lease of at least this time (stores round up). Counted on the store's own clock.
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Starts the time of a lease anew.
    ///
    /// # Errors
    /// `LeaseEnded` when there is no such lease any more. The reverse does not hold: etcd before 3.4.38, 3.5.23 and
    /// 3.6.5 may renew a lease that was revoked, so success is a hint like every word about leases.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and removes its keys. Ending one that has ended is no error.
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Changes of keys that start with one of `prefixes`, from the first revision after `after` on.
    ///
    /// # Errors
    /// `NoSuchRevision`, here or as the first item, when changes since `after` are no longer kept or `after` was never
    /// reached.
    async fn watch(&self, prefixes: &[Vec<u8>], after: Revision) -> Result<Watch, StoreError>;
}

/// Opens a store: `memory:`, `redb:FILE`, or `etcd://HOST:PORT[,HOST:PORT...][/PREFIX]` (`etcds://` over TLS), for which
/// credentials and certificates come from the environment ([`EtcdOptions::from_environment`]).
pub async fn open(uri: &str) -> Result<Arc<dyn MetaStore>, StoreError> {
    if uri == "memory:" {
        return Ok(Arc::new(LocalStore::memory()));
    }
    if let Some(file) = uri.strip_prefix("redb:") {
        let path = std::path::PathBuf::from(file);
        let opened = tokio::task::spawn_blocking(move || LocalStore::redb(&path)).await;
        let store = opened.map_err(|error| StoreError::NotApplied(error.to_string()))??;
        return Ok(Arc::new(store));
    }
    if uri.starts_with("etcd://") || uri.starts_with("etcds://") {
        return Ok(Arc::new(EtcdStore::open(uri, EtcdOptions::from_environment()?).await?));
    }
    let hint = "expected memory:, redb:FILE or etcd://HOST:PORT[,HOST:PORT...][/PREFIX]";
    Err(StoreError::NotApplied(format!("state store '{uri}' is not known: {hint}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_is_moved_by_the_last_write_that_touches_it() {
        let key = || b"f".to_vec();
        let put = |value: u8| Write::Put(key(), vec![value]);
        let moves = |compare: Compare, writes: Vec<Write>| {
            Transaction { compares: vec![compare], writes, reads: vec![] }.moves_its_guard()
        };
        let equals = || Compare::Equals(key(), vec![1]);
        let absent = || Compare::Absent(key());
        for (compare, writes, expected) in [
            (equals(), vec![put(2)], true),
            (equals(), vec![put(1)], false),
            (equals(), vec![put(2), put(1)], false),
            (equals(), vec![put(1), Write::Delete(key())], true),
            (equals(), vec![Write::DeletePrefix(vec![])], true),
            (equals(), vec![Write::DeleteRange(vec![], key())], false),
            (equals(), vec![Write::Put(b"g".to_vec(), vec![2])], false),
            (absent(), vec![put(1)], true),
            (absent(), vec![put(1), Write::DeletePrefix(key())], false),
            (absent(), vec![Write::PutLeased(key(), vec![1], LeaseId(1))], true),
            (absent(), vec![], false),
        ] {
            assert_eq!(moves(compare.clone(), writes.clone()), expected, "{compare:?} {writes:?}");
        }
    }
}
