//! What files a lake consists of.
//!
//! A folder is looked through with all folders below it; names that start with a dot are skipped, symbolic
//! links are followed (a folder that was already seen is not entered again). Only names tell what a file is.
//! Every other entry that cannot be looked at, and every folder that cannot be entered or named, is reported:
//! it may hold files of the lake.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use flatbed_types::Instant;
use sha2::{Digest, Sha256};

use crate::source::SourceError;

/// Endings of lake files, as errors list them.
pub(super) const ENDINGS: &str = ".ndjson, .ndjson.gz or .ndjson.zst";

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Plain,
    Gzip,
    Zstd,
}

impl Coding {
    /// The coding of a lake file; `None` for a file that is no part of a lake.
    pub(super) fn of(name: &str) -> Option<Coding> {
        let name = name.to_ascii_lowercase();
        if name.starts_with('.') {
            return None;
        }
        let endings =
            [(".ndjson", Coding::Plain), (".ndjson.gz", Coding::Gzip), (".ndjson.zst", Coding::Zstd)];
        endings.into_iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, coding)| coding)
    }
}

/// Size and times of a file: as long as they stay, it is taken as unchanged.
///
/// `ctime` moves with every write and rename, also where a tool keeps size and time of modification (`cp -p`,
/// `rsync --times`), and with changes of mode or links, which cost a reading for nothing. The inode is not
/// compared: it adds next to nothing, and network file systems may give another one at each look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) size: u64,
    pub(super) modified: Instant,
    /// Nanoseconds since 1970.
    pub(super) ctime: i64,
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Stamp {
        // File systems without times of change give the epoch: then only the size tells.
        let modified = metadata.modified().unwrap_or(UNIX_EPOCH);
        let nanos = match modified.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |nanos| -nanos),
        };
        let ctime = metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec());
        Stamp { size: metadata.len(), modified: Instant::from_nanos(nanos), ctime }
    }
}

/// A file of the lake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// Relative to the lake, with `/`.
    pub(super) path: String,
    pub(super) stamp: Stamp,
    pub(super) coding: Coding,
}

/// All files, sorted by path.
#[derive(Debug, PartialEq, Eq, Default)]
pub(super) struct Listing {
    pub(super) files: Vec<Listed>,
    /// Places that could not be looked into, as told to people; sorted.
    pub(super) obstacles: Vec<String>,
}

/// Where a lake is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The folder that paths are relative to.
    pub(super) base: PathBuf,
    /// The only file, where the lake is one.
    pub(super) only: Option<String>,
}

impl Place {
    /// Finds a lake.
    pub(super) fn find(path: &Path) -> Result<Place, SourceError> {
        let shown = path.display();
        let canonical = path.canonicalize().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => SourceError::failed(format!(
                "the lake {shown} does not exist: give a folder of {ENDINGS} files"
            )),
            _ => SourceError::failed(format!("the lake {shown} cannot be opened: {error}")),
        })?;
        if canonical.is_dir() {
            return Ok(Place { base: canonical, only: None });
        }
        let name = canonical.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match (Coding::of(name), canonical.parent()) {
            (Some(_), Some(base)) => Ok(Place { base: base.to_path_buf(), only: Some(name.to_owned()) }),
            _ => Err(SourceError::failed(format!(
                "the lake {shown} is neither a folder nor a file that ends in {ENDINGS}"
            ))),
        }
    }

    /// The path of the lake itself.
    pub(super) fn path(&self) -> PathBuf {
        self.only.as_ref().map_or_else(|| self.base.clone(), |name| self.base.join(name))
    }

    /// The name of the lake, another one for each path.
    pub(super) fn address(&self) -> String {
        let path = self.path();
        match path.to_str() {
            Some(text) => format!("file://{text}"),
            None => {
                let digest = Sha256::digest(path.as_os_str().as_bytes());
                let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                format!("file://{}#{hex}", path.display())
            }
        }
    }

    /// Lists the lake as it is now.
    pub(super) fn list(&self) -> Result<Listing, SourceError> {
        let mut listing = Listing::default();
        let shown = self.path();
        let cannot = |error: std::io::Error| {
            SourceError::failed(format!("the lake {} cannot be read: {error}", shown.display()))
        };
        if let Some(name) = &self.only {
            let stamp = Stamp::of(&fs::metadata(&shown).map_err(cannot)?);
            let coding = Coding::of(name).unwrap_or(Coding::Plain);
            listing.files.push(Listed { path: name.clone(), stamp, coding });
            return Ok(listing);
        }
        // The root must be readable; what lies below only ought to be.
        fs::read_dir(&self.base).map_err(cannot)?;
        let mut seen = HashSet::from([self.base.clone()]);
        let mut folders = vec![(self.base.clone(), String::new())];
        while let Some((folder, prefix)) = folders.pop() {
            look_into(&folder, &prefix, &mut listing, &mut folders, &mut seen);
        }
        listing.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        listing.obstacles.sort_unstable();
        if listing.files.is_empty() && listing.obstacles.is_empty() {
            return Err(SourceError::failed(format!(
                "the lake {} has no NDJSON files: none in it or in the folders below it ends in {ENDINGS}",
                shown.display()
            )));
        }
        Ok(listing)
    }
}

fn look_into(
    folder: &Path,
    prefix: &str,
    listing: &mut Listing,
    folders: &mut Vec<(PathBuf, String)>,
    seen: &mut HashSet<PathBuf>,
) {
    let shown = if prefix.is_empty() { "." } else { prefix };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return listing.obstacles.push(format!("{shown}: cannot be read: {error}")),
    };
    let mut names = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => names.push(entry.file_name()),
            Err(error) => listing.obstacles.push(format!("{shown}: cannot be read whole: {error}")),
        }
    }
    // A folder that is reached twice is listed under the first name, so the order must not depend on the disk.
    names.sort_unstable_by(|a, b| b.cmp(a));
    for name in names {
        if let Err(problem) = look_at(folder, prefix, &name, listing, folders, seen) {
            listing.obstacles.push(format!("{prefix}{}: {problem}", name.to_string_lossy()));
        }
    }
}

/// Enters a file or folder; gives what is in the way.
fn look_at(
    folder: &Path,
    prefix: &str,
    name: &OsStr,
    listing: &mut Listing,
    folders: &mut Vec<(PathBuf, String)>,
    seen: &mut HashSet<PathBuf>,
) -> Result<(), String> {
    if name.as_bytes().starts_with(b".") {
        return Ok(());
    }
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    let path = folder.join(name);
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_there(&path) => return Ok(()),
        Err(error) => return Err(cannot(error)),
    };
    let coding = Coding::of(&name.to_string_lossy()).filter(|_| metadata.is_file());
    if coding.is_none() && !metadata.is_dir() {
        return Ok(());
    }
    let Some(text) = name.to_str() else {
        return Err("the name is not UTF-8, it is left out".to_owned());
    };
    if let Some(coding) = coding {
        let stamp = Stamp::of(&metadata);
        listing.files.push(Listed { path: format!("{prefix}{text}"), stamp, coding });
    } else if seen.insert(path.canonicalize().map_err(cannot)?) {
        folders.push((path, format!("{prefix}{text}/")));
    }
    Ok(())
}

/// Whether there is an entry, be it a link that leads nowhere; else it went since the folder was listed.
fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
