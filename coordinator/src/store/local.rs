//! The store of one process: an ordered map in memory, and with `redb:` a file that every transaction reaches
//! before it is answered.
//!
//! Evaluation is the same for both; only where writes rest differs. A full or failing disk fails the
//! transaction before the map changes, so that what is read is always what is durable. The file is locked by the
//! process that has it open.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Compare, Entry, LeaseId, MetaStore, Outcome, Revision, StoreError, Transaction, Watch, Write};

const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");
const REVISION: TableDefinition<'_, (), u64> = TableDefinition::new("revision");

/// Transactions whose former values are kept for reads at a revision.
const KEPT_REVISIONS: usize = 1024;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;
/// Keys and what they are set to (`None`: removed).
type Effects = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

struct State {
    map: Map,
    revision: Revision,
    /// What each of the last transactions replaced.
    undo: VecDeque<Effects>,
    file: Option<StateFile>,
}

/// The file, and whether it must be opened again before it is used.
struct StateFile {
    path: PathBuf,
    /// `None` after an error: the library then refuses everything until the file is opened anew.
    database: Option<Database>,
}

/// See the module.
#[derive(Clone)]
pub struct LocalStore {
    state: Arc<Mutex<State>>,
}

impl LocalStore {
    /// A store that is gone with the process.
    pub fn memory() -> LocalStore {
        LocalStore::with(Map::new(), 0, None)
    }

    /// A store in a file, created if need be.
    pub fn redb(path: &Path) -> Result<LocalStore, StoreError> {
        let (database, map, revision) = open_file(path)?;
        let file = StateFile { path: path.to_path_buf(), database: Some(database) };
        Ok(LocalStore::with(map, revision, Some(file)))
    }

    fn with(map: Map, revision: Revision, file: Option<StateFile>) -> LocalStore {
        let state = State { map, revision, undo: VecDeque::new(), file };
        LocalStore { state: Arc::new(Mutex::new(state)) }
    }
}

impl State {
    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Absent(key) => !self.map.contains_key(key),
            Compare::Equals(key, value) => self.map.get(key) == Some(value),
        }
    }

    fn effects(&self, writes: Vec<Write>) -> Effects {
        let mut effects = Effects::new();
        for write in writes {
            match write {
                Write::Put(key, value) | Write::PutLeased(key, value, _) => {
                    drop(effects.insert(key, Some(value)));
                }
                Write::Delete(key) => drop(effects.insert(key, None)),
                Write::DeleteRange(..) => {}
                Write::DeletePrefix(prefix) => {
                    let stored: Vec<Vec<u8>> =
                        starting_with(&self.map, &prefix).map(|(k, _)| k.clone()).collect();
                    let written: Vec<Vec<u8>> =
                        starting_with(&effects, &prefix).map(|(k, _)| k.clone()).collect();
                    effects.extend(stored.into_iter().chain(written).map(|key| (key, None)));
                }
            }
        }
        effects
    }

    /// Opens the file again after an error, and goes on from what it really holds.
    fn recover(&mut self) -> Result<(), StoreError> {
        let Some(file) = self.file.as_mut().filter(|file| file.database.is_none()) else { return Ok(()) };
        let (database, map, revision) = open_file(&file.path)?;
        file.database = Some(database);
        (self.map, self.revision) = (map, revision);
        self.undo.clear();
        Ok(())
    }

    fn txn(&mut self, transaction: Transaction) -> Result<Outcome, StoreError> {
        self.recover()?;
        if !transaction.compares.iter().all(|compare| self.holds(compare)) {
            let read = |key: &Vec<u8>| self.map.get(key).cloned();
            return Ok(Outcome::NotApplied(transaction.reads.iter().map(read).collect()));
        }
        let effects = self.effects(transaction.writes);
        if effects.is_empty() {
            return Ok(Outcome::Applied(self.revision));
        }
        if let Some(file) = &mut self.file
            && let Some(database) = &file.database
            && let Err(error) = persist(database, &effects, self.revision + 1)
        {
            file.database = None;
            return Err(error);
        }
        let mut replaced = Effects::new();
        for (key, value) in effects {
            let before = match value {
                Some(value) => self.map.insert(key.clone(), value),
                None => self.map.remove(&key),
            };
            replaced.insert(key, before);
        }
        self.undo.push_back(replaced);
        if self.undo.len() > KEPT_REVISIONS {
            self.undo.pop_front();
        }
        self.revision += 1;
        Ok(Outcome::Applied(self.revision))
    }

    fn range(&self, prefix: &[u8], at: Option<Revision>) -> Result<(Revision, Vec<Entry>), StoreError> {
        let at = at.unwrap_or(self.revision);
        let back = self.revision.checked_sub(at).and_then(|back| usize::try_from(back).ok());
        let Some(back) = back.filter(|back| *back <= self.undo.len()) else {
            return Err(StoreError::NoSuchRevision(at));
        };
        let mut entries: Map =
            starting_with(&self.map, prefix).map(|(key, value)| (key.clone(), value.clone())).collect();
        for replaced in self.undo.iter().rev().take(back) {
            for (key, value) in starting_with(replaced, prefix) {
                match value {
                    Some(value) => drop(entries.insert(key.clone(), value.clone())),
                    None => drop(entries.remove(key)),
                }
            }
        }
        Ok((at, entries.into_iter().collect()))
    }
}

fn starting_with<'a, V>(
    map: &'a BTreeMap<Vec<u8>, V>,
    prefix: &'a [u8],
) -> impl Iterator<Item = (&'a Vec<u8>, &'a V)> {
    map.range(prefix.to_vec()..).take_while(move |(key, _)| key.starts_with(prefix))
}

fn open_file(path: &Path) -> Result<(Database, Map, Revision), StoreError> {
    let open = || -> Result<(Database, Map, Revision), redb::Error> {
        let file = Database::create(path)?;
        let begin = file.begin_write()?;
        begin.open_table(ENTRIES)?;
        begin.open_table(REVISION)?;
        begin.commit()?;
        let read = file.begin_read()?;
        let mut map = Map::new();
        for entry in read.open_table(ENTRIES)?.iter()? {
            let (key, value) = entry?;
            map.insert(key.value().to_vec(), value.value().to_vec());
        }
        let revision = read.open_table(REVISION)?.get(())?.map_or(0, |revision| revision.value());
        Ok((file, map, revision))
    };
    open().map_err(|error| match error {
        redb::Error::DatabaseAlreadyOpen => {
            StoreError::NotApplied(format!("{}: in use by another process", path.display()))
        }
        other => StoreError::NotApplied(format!("{}: {other}", path.display())),
    })
}

/// All or nothing, on disk when it returns. An error of the commit itself leaves open whether it is.
fn persist(file: &Database, effects: &Effects, revision: Revision) -> Result<(), StoreError> {
    let prepare = || -> Result<redb::WriteTransaction, redb::Error> {
        let mut write = file.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        write.set_two_phase_commit(true);
        let mut entries = write.open_table(ENTRIES)?;
        for (key, value) in effects {
            match value {
                Some(value) => drop(entries.insert(key.as_slice(), value.as_slice())?),
                None => drop(entries.remove(key.as_slice())?),
            }
        }
        drop(entries);
        write.open_table(REVISION)?.insert((), revision)?;
        Ok(write)
    };
    let write = prepare().map_err(|error| StoreError::NotApplied(format!("state file: {error}")))?;
    write.commit().map_err(|error| StoreError::Unknown(format!("state file: {error}")))
}

#[async_trait]
impl MetaStore for LocalStore {
    async fn txn(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        let state = self.state.clone();
        // The file is synced under the lock: one writer at a time is what the file allows anyway.
        let run = move || state.lock().unwrap_or_else(PoisonError::into_inner).txn(transaction);
        let joined = tokio::task::spawn_blocking(run).await;
        joined.map_err(|error| StoreError::Unknown(format!("state store: {error}")))?
    }

    async fn range(&self, prefix: &[u8], at: Option<Revision>) -> Result<(Revision, Vec<Entry>), StoreError> {
        let state = self.state.clone();
        let prefix = prefix.to_vec();
        let run = move || state.lock().unwrap_or_else(PoisonError::into_inner).range(&prefix, at);
        let joined = tokio::task::spawn_blocking(run).await;
        joined.map_err(|error| StoreError::NotApplied(format!("state store: {error}")))?
    }

    async fn grant_lease(&self, _ttl: Duration) -> Result<LeaseId, StoreError> {
        Err(StoreError::LeaseEnded)
    }

    async fn keep_alive(&self, _lease: LeaseId) -> Result<(), StoreError> {
        Err(StoreError::LeaseEnded)
    }

    async fn revoke_lease(&self, _lease: LeaseId) -> Result<(), StoreError> {
        Ok(())
    }

    async fn watch(&self, _prefixes: &[Vec<u8>], after: Revision) -> Result<Watch, StoreError> {
        Err(StoreError::NoSuchRevision(after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    #[tokio::test]
    async fn memory_conforms() {
        conformance::all(|| async { Arc::new(LocalStore::memory()) as Arc<dyn MetaStore> }).await;
    }

    #[tokio::test]
    async fn redb_conforms() {
        let folder = tempfile::tempdir().unwrap();
        let count = std::sync::atomic::AtomicU32::new(0);
        conformance::all(|| async {
            let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let file = folder.path().join(format!("{number}.redb"));
            Arc::new(LocalStore::redb(&file).unwrap()) as Arc<dyn MetaStore>
        })
        .await;
    }

    #[tokio::test]
    async fn redb_keeps_what_was_applied_and_refuses_a_second_process() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.redb");
        let store = LocalStore::redb(&file).unwrap();
        let put = |value: u8| Transaction {
            writes: vec![Write::Put(b"k".to_vec(), vec![value])],
            ..Transaction::default()
        };
        store.txn(put(1)).await.unwrap();
        store.txn(put(2)).await.unwrap();
        assert!(matches!(LocalStore::redb(&file), Err(StoreError::NotApplied(_))));
        drop(store);
        let store = LocalStore::redb(&file).unwrap();
        assert_eq!(store.range(b"", None).await.unwrap(), (2, vec![(b"k".to_vec(), vec![2])]));
        assert_eq!(store.txn(put(3)).await.unwrap(), Outcome::Applied(3), "revisions go on");
    }
}
