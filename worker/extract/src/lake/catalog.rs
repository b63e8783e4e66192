//! The catalogue of an index: which generations there are, what each was made from, and which files it has.
//!
//! It is written last and replaced as a whole, so that after a crash it is the old one or the new one; files
//! that it does not name are leftovers. Whoever changes anything in the folder holds its lock.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use flatbed_types::{Instant, Lane, ResourceType, Section};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::disk::replace;
use super::list::{Listed, Listing};
use crate::source::SourceError;

/// Version of all formats of an index. Another one is built anew.
const FORMAT: u32 = 7;
/// Generations kept for the tasks of plans that were made from them. They share lanes that did not change.
pub(super) const KEPT: usize = 16;
/// Generations kept whatever their number of files.
pub(super) const LEAST_KEPT: usize = 3;
/// Files that the generations of a catalogue may name together: it is read whole, some 200 bytes each.
const KEPT_FILES: usize = 200_000;
const CATALOG: &str = "catalog.json";
const LOCK: &str = "lock";
/// Holds the latest transaction time that was given out, in nanoseconds since 1970, and a checksum.
const SEEN: &str = "seen";

/// What of the options decides what is in the ordered copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) max_line: u64,
    pub(super) beyond_the_definition: bool,
}

/// A file as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileEntry {
    pub(super) path: String,
    pub(super) size: u64,
    /// Nanoseconds since 1970.
    pub(super) modified: i64,
    /// See [`super::list::Stamp`]. Tells that the file changed but not what it is: two copies of a file differ.
    pub(super) ctime: i64,
    /// Hash of its bytes as they stand on disk, in hexadecimal.
    pub(super) content: String,
    /// Types of which it holds rows.
    pub(super) types: Vec<String>,
    /// It could not be opened, or not be read to its end: to be tried again.
    #[serde(default)]
    pub(super) unread: bool,
    /// What stands behind a damaged place in it is not known.
    #[serde(default)]
    pub(super) damaged: bool,
}

impl FileEntry {
    /// Whether the file is as it was when it was read.
    pub(super) fn is_of(&self, listed: &Listed) -> bool {
        let stamp = &listed.stamp;
        self.path == listed.path
            && self.size == stamp.size
            && self.modified == stamp.modified.nanos()
            && self.ctime == stamp.ctime
    }

    pub(super) fn types(&self) -> impl Iterator<Item = ResourceType> + '_ {
        self.types.iter().filter_map(|name| name.parse().ok())
    }
}

/// A lane and its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LaneEntry {
    pub(super) resource_type: String,
    pub(super) standalone: bool,
    pub(super) file: String,
}

impl LaneEntry {
    pub(super) fn new(lane: Lane, file: String) -> LaneEntry {
        LaneEntry {
            resource_type: lane.resource_type.name().to_owned(),
            standalone: lane.section == Section::Standalone,
            file,
        }
    }

    pub(super) fn lane(&self) -> io::Result<Lane> {
        let resource_type = self.resource_type.parse().map_err(|_| io::ErrorKind::InvalidData)?;
        let section = if self.standalone { Section::Standalone } else { Section::Compartment };
        Ok(Lane { resource_type, section })
    }
}

/// A type and its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TypeEntry {
    pub(super) resource_type: String,
    pub(super) file: String,
}

impl TypeEntry {
    pub(super) fn resource_type(&self) -> io::Result<ResourceType> {
        self.resource_type.parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

/// One state of the lake, put into patient order. Immutable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) fingerprint: String,
    /// The transaction time when it was made, in nanoseconds since 1970.
    pub(super) time: i64,
    pub(super) settings: Settings,
    pub(super) files: Vec<FileEntry>,
    pub(super) obstacles: Vec<String>,
    pub(super) lanes: Vec<LaneEntry>,
    pub(super) problems: String,
    /// What was deleted, by type (`history`).
    pub(super) gone: Vec<TypeEntry>,
    /// Rows that are missing while a part of the lake cannot be read, by lane.
    pub(super) absent: Vec<LaneEntry>,
    /// How many they are.
    pub(super) undecided: u64,
    /// From when on deletions are known, in nanoseconds since 1970.
    pub(super) known_from: i64,
    /// Types of what Provenance targets: whose it is depends on their rows.
    pub(super) targeted: Vec<String>,
}

impl Generation {
    pub(super) fn time(&self) -> Instant {
        Instant::from_nanos(self.time)
    }

    /// Whether rows of Provenance target rows of one of these types.
    pub(super) fn targets_any(&self, types: &BTreeSet<ResourceType>) -> bool {
        types.iter().any(|of| self.targeted.iter().any(|name| name == of.name()))
    }

    /// Whether it was made from exactly these files, all of which could be read.
    pub(super) fn is_of(&self, listing: &Listing, settings: Settings) -> bool {
        self.settings == settings
            && self.obstacles == listing.obstacles
            && self.files.len() == listing.files.len()
            && self.files.iter().zip(&listing.files).all(|(entry, listed)| entry.is_of(listed))
    }

    /// Whether all its files are in the folder.
    pub(super) fn is_whole(&self, folder: &Path) -> bool {
        self.names().all(|name| folder.join(name).is_file())
    }

    /// The names of its files.
    fn names(&self) -> impl Iterator<Item = &str> {
        let lanes = self.lanes.iter().chain(&self.absent).map(|lane| lane.file.as_str());
        lanes.chain(self.gone.iter().map(|gone| gone.file.as_str())).chain([self.problems.as_str()])
    }

    /// Whether some of what belongs to the lake could not be read.
    pub(super) fn is_partial(files: &[FileEntry], obstacles: &[String]) -> bool {
        !obstacles.is_empty() || files.iter().any(|file| file.unread || file.damaged)
    }

    /// The identity of the state: equal for two first generations that were made of the same files in the same way, and
    /// for no two states with other contents, even where size and time of a file were kept. What came before counts
    /// too (`base`, and the time of this generation): since when rows are known follows from it.
    pub(super) fn compute_fingerprint(
        settings: Settings,
        files: &[FileEntry],
        obstacles: &[String],
        before: Before<'_>,
    ) -> String {
        if let Before::Generation(base, _) = before
            && base.files == files
            && base.obstacles == obstacles
        {
            return base.fingerprint.clone();
        }
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(&FORMAT.to_le_bytes());
        field(&settings.max_line.to_le_bytes());
        field(&[u8::from(settings.beyond_the_definition)]);
        for file in files {
            field(file.path.as_bytes());
            field(&file.size.to_le_bytes());
            field(&file.modified.to_le_bytes());
            field(file.content.as_bytes());
            field(&[u8::from(file.unread)]);
        }
        for obstacle in obstacles {
            field(obstacle.as_bytes());
        }
        match before {
            Before::Nothing => {}
            Before::Generation(base, time) => {
                field(base.fingerprint.as_bytes());
                field(&time.nanos().to_le_bytes());
            }
            Before::Lost(time) => field(&time.nanos().to_le_bytes()),
        }
        let digest = hash.finalize();
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("lake-{hex}")
    }
}

/// What there was before a generation was made, and when that was.
#[derive(Clone, Copy)]
pub(super) enum Before<'a> {
    Nothing,
    Generation(&'a Generation, Instant),
    /// One that cannot be read any more.
    Lost(Instant),
}

/// The generations of one lake, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Catalog {
    format: u32,
    pub(super) address: String,
    pub(super) generations: Vec<Generation>,
    /// There were generations, which are not known any more: the catalogue was damaged.
    #[serde(skip)]
    pub(super) is_lost: bool,
}

impl Catalog {
    /// The catalogue of a folder; an empty one where there is none that can be used.
    pub(super) fn load(folder: &Path, address: &str) -> Result<Catalog, SourceError> {
        let empty = |is_lost| Catalog {
            format: FORMAT,
            address: address.to_owned(),
            generations: Vec::new(),
            is_lost,
        };
        let bytes = match fs::read(folder.join(CATALOG)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(empty(false)),
            Err(error) => return Err(SourceError::io("the lake's index could not be opened", &error)),
        };
        match serde_json::from_slice::<Catalog>(&bytes) {
            Ok(catalog) if catalog.format == FORMAT && catalog.address == address => Ok(catalog),
            Ok(_) => Ok(empty(false)),
            Err(error) => {
                tracing::warn!(%error, "the catalogue of the lake's index is damaged; the index is built anew");
                Ok(empty(true))
            }
        }
    }

    /// Makes this generation the newest, drops what is not kept any more and writes the catalogue.
    pub(super) fn commit(&mut self, folder: &Path, generation: Generation) -> io::Result<()> {
        self.generations.retain(|kept| kept.fingerprint != generation.fingerprint);
        self.generations.push(generation);
        while self.generations.len() > self.affordable() {
            self.generations.remove(0);
        }
        replace(folder, CATALOG, &serde_json::to_vec(self)?)?;
        self.sweep(folder)
    }

    fn affordable(&self) -> usize {
        let mut files = 0;
        let counts = self.generations.iter().rev().map(|generation| generation.files.len());
        let within = counts.take_while(|count| {
            files += count;
            files <= KEPT_FILES
        });
        within.count().clamp(LEAST_KEPT, KEPT)
    }

    /// Removes files that no generation has: of generations that are not kept, and of builds that died. Who
    /// has them open reads on.
    pub(super) fn sweep(&self, folder: &Path) -> io::Result<()> {
        let mut named: BTreeSet<&str> = BTreeSet::from([CATALOG, LOCK, SEEN]);
        named.extend(self.generations.iter().flat_map(Generation::names));
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let ours = entry.file_name().to_str().is_some_and(is_index_file);
            let kept = entry.file_name().to_str().is_some_and(|name| named.contains(name));
            if ours && !kept {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// The number for a new generation.
    pub(super) fn next_number(&self) -> u64 {
        self.generations.iter().map(|generation| generation.number).max().unwrap_or(0) + 1
    }

    /// The newest generation with these settings.
    pub(super) fn newest(&self, settings: Settings) -> Option<&Generation> {
        self.generations.iter().rev().find(|generation| generation.settings == settings)
    }

    /// The latest transaction time that anybody may have got from this index, at the moment `now` or before.
    pub(super) fn seen(&self, folder: &Path, now: Instant) -> io::Result<Instant> {
        let given = match read_seen(folder)? {
            Seen::Never => None,
            Seen::At(given) => Some(given),
            Seen::Damaged => {
                tracing::warn!(
                    "the note of the last transaction time in the lake's index is damaged; this moment stands in for it"
                );
                Some(now)
            }
        };
        let made = self.generations.iter().map(Generation::time).max();
        Ok(made.max(given).unwrap_or(Instant::MIN))
    }

    /// The generation with this fingerprint.
    pub(super) fn find(&self, fingerprint: &str) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.fingerprint == fingerprint)
    }
}

/// Only files that an index can have made are ever removed: the folder may be a mistake in an option.
fn is_index_file(name: &str) -> bool {
    [".lane", ".problems", ".gone", ".absent"].iter().any(|ending| name.ends_with(ending))
        || ["catalog.json.tmp", "seen.tmp"].contains(&name)
}

/// The transaction time that was given out last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Never,
    At(Instant),
    Damaged,
}

fn read_seen(folder: &Path) -> io::Result<Seen> {
    let bytes = match fs::read(folder.join(SEEN)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Seen::Never),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&bytes);
    let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok()).map(Instant::from_nanos);
    Ok(nanos.filter(|nanos| seen_text(*nanos) == text).map_or(Seen::Damaged, Seen::At))
}

/// The note of a transaction time, with a checksum.
fn seen_text(time: Instant) -> String {
    let nanos = time.nanos().to_string();
    format!("{nanos} {:08x}\n", crc32fast::hash(nanos.as_bytes()))
}

/// Notes that this transaction time is given out, before it is. Whoever calls holds the lock: a generation that is
/// being made counts with the times that were noted before.
pub(super) fn note_seen(folder: &Path, time: Instant) -> io::Result<()> {
    if matches!(read_seen(folder)?, Seen::At(seen) if seen >= time) {
        return Ok(());
    }
    replace(folder, SEEN, seen_text(time).as_bytes())
}

/// A number that no other build has, not even one of an index that was removed meanwhile: who has files open
/// knows them by their names.
pub(super) fn new_mark() -> u64 {
    // The standard library's only source of randomness.
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id())
}

/// The file of a lane in a generation.
pub(super) fn lane_file_name(number: u64, mark: u64, lane: Lane) -> String {
    format!("{}.lane", lane_stem(number, mark, lane))
}

/// The file of a lane's absent rows.
pub(super) fn absent_file_name(number: u64, mark: u64, lane: Lane) -> String {
    format!("{}.absent", lane_stem(number, mark, lane))
}

fn lane_stem(number: u64, mark: u64, lane: Lane) -> String {
    let section = if lane.section == Section::Standalone { "standalone" } else { "compartment" };
    format!("g{number:06}-{}-{section}-{mark:016x}", lane.resource_type)
}

/// The file of a type's deletions.
pub(super) fn gone_file_name(number: u64, mark: u64, resource_type: ResourceType) -> String {
    format!("g{number:06}-{resource_type}-{mark:016x}.gone")
}

/// The file of a generation's problems.
pub(super) fn problems_file_name(number: u64, mark: u64) -> String {
    format!("g{number:06}-{mark:016x}.problems")
}

/// The right to change an index; given back when dropped.
pub(super) struct IndexLock {
    /// Holds the lock.
    _file: File,
}

impl IndexLock {
    fn file(folder: &Path) -> io::Result<File> {
        File::options().create(true).truncate(false).write(true).open(folder.join(LOCK))
    }

    /// Takes the lock if it is free.
    pub(super) fn try_take(folder: &Path) -> io::Result<Option<IndexLock>> {
        let file = IndexLock::file(folder)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(IndexLock { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Takes the lock, waiting for whoever has it.
    pub(super) fn take(folder: &Path) -> io::Result<IndexLock> {
        let file = IndexLock::file(folder)?;
        file.lock()?;
        Ok(IndexLock { _file: file })
    }
}

/// The folder of one lake in an index that may have those of others.
pub(super) fn folder_of(index: &Path, address: &str) -> PathBuf {
    let digest = Sha256::digest(address.as_bytes());
    let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    index.join(format!("lake-{hex}"))
}

/// Files by path.
pub(super) fn by_path(files: &[FileEntry]) -> HashMap<&str, &FileEntry> {
    files.iter().map(|file| (file.path.as_str(), file)).collect()
}
