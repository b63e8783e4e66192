//! The state file: entries, their revision, and which of them rest on a lease, in one redb database.
//!
//! Leases live in a process. Entries that rest on one are noted in the file, so that opening it, by another process or
//! after an error, first removes them: a lease may always end early, and never late.

use std::path::{Path, PathBuf};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::state::{Map, Planned};
use crate::store::{Revision, StoreError};

const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");
const REVISION: TableDefinition<'_, (), u64> = TableDefinition::new("revision");
const LEASED: TableDefinition<'_, &[u8], ()> = TableDefinition::new("leased");

/// What a file held when it was opened.
pub(super) struct Contents {
    pub map: Map,
    pub revision: Revision,
}

/// The file, locked for this process.
pub(super) struct StateFile {
    path: PathBuf,
    /// `None` after an error: the library then refuses everything until the file is opened anew.
    database: Option<Database>,
}

impl StateFile {
    /// Opens or creates a file.
    pub fn open(path: &Path) -> Result<(StateFile, Contents), StoreError> {
        let (database, contents) = open(path).map_err(|error| match error {
            redb::Error::DatabaseAlreadyOpen => {
                StoreError::NotApplied(format!("{}: in use by another process", path.display()))
            }
            other => StoreError::NotApplied(format!("{}: {other}", path.display())),
        })?;
        Ok((StateFile { path: path.to_path_buf(), database: Some(database) }, contents))
    }

    /// Opens the file again if an error had closed it; what it really holds then.
    pub fn reopen(&mut self) -> Result<Option<Contents>, StoreError> {
        if self.database.is_some() {
            return Ok(None);
        }
        let (file, contents) = StateFile::open(&self.path)?;
        *self = file;
        Ok(Some(contents))
    }

    /// All or nothing, on disk when it returns. An error of the commit itself leaves open whether it is.
    pub fn persist(&mut self, planned: &Planned, revision: Revision) -> Result<(), StoreError> {
        let Some(database) = &self.database else {
            return Err(StoreError::NotApplied("state file: closed after an error".to_owned()));
        };
        let written = prepare(database, planned, revision)
            .map_err(|error| StoreError::NotApplied(format!("state file: {error}")))
            .and_then(|write| {
                write.commit().map_err(|error| StoreError::Unknown(format!("state file: {error}")))
            });
        if written.is_err() {
            self.database = None;
        }
        written
    }
}

fn begin(database: &Database) -> Result<redb::WriteTransaction, redb::Error> {
    let mut write = database.begin_write()?;
    write.set_durability(Durability::Immediate)?;
    write.set_two_phase_commit(true);
    Ok(write)
}

fn prepare(
    database: &Database,
    planned: &Planned,
    revision: Revision,
) -> Result<redb::WriteTransaction, redb::Error> {
    let write = begin(database)?;
    let mut entries = write.open_table(ENTRIES)?;
    let mut leased = write.open_table(LEASED)?;
    for (key, value) in planned {
        match value {
            Some(value) => drop(entries.insert(key.as_slice(), value.bytes.as_slice())?),
            None => drop(entries.remove(key.as_slice())?),
        }
        match value.as_ref().and_then(|value| value.lease) {
            Some(_) => drop(leased.insert(key.as_slice(), ())?),
            None => drop(leased.remove(key.as_slice())?),
        }
    }
    drop((entries, leased));
    write.open_table(REVISION)?.insert((), revision)?;
    Ok(write)
}

fn open(path: &Path) -> Result<(Database, Contents), redb::Error> {
    let database = Database::create(path)?;
    let write = begin(&database)?;
    let mut entries = write.open_table(ENTRIES)?;
    let mut leased = write.open_table(LEASED)?;
    let mut ended = Vec::new();
    for entry in leased.iter()? {
        ended.push(entry?.0.value().to_vec());
    }
    for key in &ended {
        drop(entries.remove(key.as_slice())?);
        drop(leased.remove(key.as_slice())?);
    }
    drop((entries, leased));
    let mut revisions = write.open_table(REVISION)?;
    let before = revisions.get(())?.map_or(0, |revision| revision.value());
    let revision = before + u64::from(!ended.is_empty());
    revisions.insert((), revision)?;
    drop(revisions);
    write.commit()?;
    let mut map = Map::new();
    for entry in database.begin_read()?.open_table(ENTRIES)?.iter()? {
        let (key, value) = entry?;
        map.insert(key.value().to_vec(), value.value().to_vec());
    }
    Ok((database, Contents { map, revision }))
}
