//! Where things lie: local object stores, data folders with their lock, the system's clock.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use flatbed_types::Instant;
use object_store::local::LocalFileSystem;

use crate::folder;

/// An object store in a local folder, which is made.
pub fn local_store(folder: &Path) -> anyhow::Result<LocalFileSystem> {
    folder::make_private(folder)?;
    let store = LocalFileSystem::new_with_prefix(folder);
    let store = store.with_context(|| format!("cannot use the folder {}", folder.display()))?;
    // A deleted job leaves no empty folders.
    Ok(store.with_automatic_cleanup(true))
}

/// Deletes what uploads left behind when their process was killed: the local store writes to `name#number`
/// beside each object until it is whole. Files younger than `age` may belong to a process that is alive.
pub fn sweep_staging(folder: &Path, age: Duration) -> std::io::Result<usize> {
    let mut swept = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            swept += sweep_staging(&entry.path(), age)?;
            continue;
        }
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.rsplit_once('#')).map(|(_, number)| number);
        let is_staging = number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        let written = entry.metadata()?.modified()?;
        if kind.is_file() && is_staging && written.elapsed().unwrap_or_default() >= age {
            std::fs::remove_file(entry.path())?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// Why a data folder cannot be used.
#[derive(Debug)]
pub enum Claim {
    /// It is ours until the value is dropped.
    Ours(DataFolder),
    /// Another process has it.
    Taken,
}

/// A folder of durable data that one process uses at a time.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl DataFolder {
    /// Makes and locks a folder. The lock goes with the process, however it ends.
    pub fn claim(path: &Path) -> anyhow::Result<Claim> {
        let path = std::path::absolute(path)?;
        folder::make_private(&path)?;
        let file = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&file);
        let lock = lock.with_context(|| format!("cannot write to the folder {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Claim::Ours(DataFolder { path, _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(Claim::Taken),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", file.display()))
            }
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state store in it.
    pub fn state(&self) -> String {
        format!("redb:{}", self.path.join("state.redb").display())
    }

    /// A folder in it, made.
    pub fn subfolder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.path.join(name);
        folder::make_private(&folder)?;
        Ok(folder)
    }
}

/// The system's clock.
pub fn now() -> Instant {
    let since_epoch = jiff::Timestamp::now().as_nanosecond();
    // Holds until the year 2262.
    Instant::from_nanos(i64::try_from(since_epoch).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unfinished_uploads_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("d/ab");
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["x.ndjson.gz", "x.ndjson.gz#1", "y.ndjson#12", "z#a", "#"] {
            std::fs::write(folder.join(name), "x").unwrap();
        }
        assert_eq!(sweep_staging(root.path(), Duration::from_secs(3600)).unwrap(), 0, "all are young");
        assert_eq!(sweep_staging(root.path(), Duration::ZERO).unwrap(), 2);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3);
    }

    #[test]
    fn a_data_folder_belongs_to_one_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("data");
        let first = DataFolder::claim(&folder).unwrap();
        assert!(matches!(first, Claim::Ours(_)));
        assert!(matches!(DataFolder::claim(&folder).unwrap(), Claim::Taken));
        drop(first);
        assert!(matches!(DataFolder::claim(&folder).unwrap(), Claim::Ours(_)));
    }
}
