//! The lake: a folder of NDJSON files, plain, gzip or zstd, with resources in any order.
//!
//! At first use the lake is put into patient order: a copy of its rows, by lanes, with a catalogue
//! (`decisions.md` 12). Everything is read from the copy. A build goes: [`list`] the files; [`lines`] of each
//! are checked and taken apart by [`collect`] on all threads into external sorts ([`record`]); [`duplicates`]
//! are resolved; [`order`] merges the sorts and writes one [`lane_file`] a lane ([`lane_writer`], [`directory`]),
//! those of Provenance last, which belongs to the patients of what it is about ([`provenance`]); the [`catalog`] is
//! replaced last. A generation knows what the one before had ([`former`]): [`changes`] notes since
//! when rows are known, and [`history`] what was deleted ([`gone`]), also by what the lake itself says
//! ([`deletions`]). [`read`] gives ranges of lanes out, with [`homes`] for rows of several patients; [`snapshot`] answers the rest.
//!
//! Invariants: memory is bounded by the options, whatever stands in the lake, but for the references of one
//! row and the index of blocks (about 100 bytes a megabyte). The bytes of a row are those of its line. Nothing
//! of the lake is changed. A build that dies leaves the index as it was.

mod build;
mod catalog;
mod changes;
mod collect;
mod deletions;
mod directory;
mod disk;
mod duplicates;
mod former;
mod gone;
mod group;
mod history;
mod homes;
mod lane_file;
mod lane_writer;
mod lines;
mod list;
mod merge;
mod order;
mod problems;
mod provenance;
mod read;
mod record;
mod snapshot;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests_associated;
#[cfg(test)]
mod tests_build;
#[cfg(test)]
mod tests_change;
#[cfg(test)]
mod tests_cohort;
#[cfg(test)]
mod tests_cut;
#[cfg(test)]
mod tests_damage;
#[cfg(test)]
mod tests_excluded;
#[cfg(test)]
mod tests_increments;
#[cfg(test)]
mod tests_isolation;
#[cfg(test)]
mod tests_oracle;
#[cfg(test)]
mod tests_real;
#[cfg(test)]
mod tests_replay;
#[cfg(test)]
mod tests_shape;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flatbed_types::{ErrorCode, Instant};

use crate::source::{Progress, Snapshot, Source, SourceError};
use build::Build;
use catalog::{Catalog, Generation, IndexLock, Settings, folder_of, new_mark, note_seen};
use disk::disk_error;
use list::{Listing, Place};
use read::read_error;
use snapshot::{LakeSnapshot, OpenGeneration, Soundness};

/// How far behind the clock of the listing the transaction time is: files of that age are listed with their
/// contents on every file system.
const SETTLE_MILLIS: i64 = 2_000;
/// Builds of one snapshot where files go or change while they are read, and the pause before the second; each further
/// one is twice as long.
const BUILDS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Generations that a process keeps open whether or not the catalogue still has them, for the tasks of running
/// jobs. Each lane that is not shared is an open file.
const HELD: usize = 8;
/// Least memory of the sort of one thread.
const LEAST_SORT_BUDGET: usize = 1 << 20;

/// How a lake is read and where its ordered copy lies.
#[derive(Debug, Clone)]
pub struct LakeOptions {
    /// The folder of ordered copies; that of this lake is one in it.
    pub index: PathBuf,
    /// Where sorts and long lines go to meanwhile: about the size of the lake's gzip.
    pub scratch: PathBuf,
    /// Longer lines are reported and left out.
    pub max_line: u64,
    /// Threads that read and compress.
    pub threads: usize,
    /// Bytes of rows that sorts hold in memory, all together.
    pub sort_budget: usize,
    /// Whether types that have a patient element outside the R4 compartment belong to their patients
    /// ([`crate::compartment::BEYOND_THE_DEFINITION`]).
    pub beyond_the_definition: bool,
    /// The clock.
    pub now: fn() -> Instant,
}

/// A lake as a source.
pub struct LakeSource {
    place: Place,
    address: String,
    folder: PathBuf,
    options: LakeOptions,
    /// What was used last, the latest at the end; at most [`HELD`], each fingerprint once.
    held: Mutex<Vec<Arc<OpenGeneration>>>,
}

impl LakeSource {
    /// Opens the lake at `path`: a folder, or a single file.
    pub fn open(path: &Path, options: LakeOptions) -> Result<LakeSource, SourceError> {
        let place = Place::find(path)?;
        let address = place.address();
        let folder = folder_of(&options.index, &address);
        create(&folder)?;
        create(&options.scratch)?;
        let source = LakeSource { place, address, folder, options, held: Mutex::new(Vec::new()) };
        if let Some(_lock) = IndexLock::try_take(&source.folder).map_err(|error| disk_error(&error))? {
            source.catalog()?.sweep(&source.folder).map_err(|error| disk_error(&error))?;
        }
        Ok(source)
    }

    fn settings(&self) -> Settings {
        Settings {
            max_line: self.options.max_line,
            beyond_the_definition: self.options.beyond_the_definition,
        }
    }

    fn catalog(&self) -> Result<Catalog, SourceError> {
        Catalog::load(&self.folder, &self.address)
    }

    /// The state of the lake now, and the transaction time that goes with it.
    fn look(&self) -> Result<(Listing, Instant), SourceError> {
        let time = (self.options.now)().plus_millis(-SETTLE_MILLIS);
        Ok((self.place.list()?, time))
    }

    /// Opens a generation, sharing what is open already.
    fn open_generation(&self, generation: &Generation) -> std::io::Result<Arc<OpenGeneration>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let open = match held.iter().find(|open| open.generation == *generation) {
            Some(open) => open.clone(),
            None => Arc::new(OpenGeneration::open(&self.folder, generation, &held)?),
        };
        hold(&mut held, &open);
        Ok(open)
    }

    /// What is open under this fingerprint.
    fn held(&self, fingerprint: &str) -> Option<Arc<OpenGeneration>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let open = held.iter().find(|open| open.generation.fingerprint == fingerprint)?.clone();
        hold(&mut held, &open);
        Some(open)
    }

    /// Whether a generation stands for the lake as listed, with nothing in it to be tried again.
    fn stands(&self, generation: &Generation, listing: &Listing) -> bool {
        let readable = |path: &str| std::fs::File::open(self.place.base.join(path)).is_ok();
        generation.is_of(listing, self.settings())
            && !generation.files.iter().any(|file| file.unread && readable(&file.path))
    }

    /// A snapshot of the newest generation if that stands for the lake as listed; whoever calls holds the lock.
    fn newest(
        &self,
        catalog: &Catalog,
        listing: &Listing,
        time: Instant,
    ) -> Result<Option<Arc<dyn Snapshot>>, SourceError> {
        // An older one that stands again does not do: what came and went since would not be told.
        let Some(newest) = catalog.newest(self.settings()) else { return Ok(None) };
        if !self.stands(newest, listing) {
            return Ok(None);
        }
        match self.open_generation(newest) {
            Ok(open) if open.soundness() == Soundness::Sound => self.give(open, time).map(Some),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// The newest generation, to build upon; and whether there was one that cannot be built upon.
    fn base(&self, catalog: &Catalog) -> (Option<Arc<OpenGeneration>>, bool) {
        let Some(newest) = catalog.newest(self.settings()) else { return (None, catalog.is_lost) };
        // A generation that has lost a file cannot lend the others, even if this process has it open.
        let whole = Some(newest).filter(|generation| generation.is_whole(&self.folder));
        let open = whole.and_then(|generation| self.open_generation(generation).ok());
        let base = open.filter(|open| open.soundness() != Soundness::Broken);
        let is_lost = base.is_none();
        (base, is_lost)
    }

    /// A snapshot with its transaction time, which is noted before anybody has it.
    fn give(&self, open: Arc<OpenGeneration>, time: Instant) -> Result<Arc<dyn Snapshot>, SourceError> {
        let time = time.max(open.generation.time());
        note_seen(&self.folder, time).map_err(|error| disk_error(&error))?;
        Ok(Arc::new(LakeSnapshot::new(open, time)))
    }

    /// [`LakeSource::build`], again where files went or changed under its hands: whoever writes to a lake all the time
    /// leaves it alone for long enough sooner or later.
    fn build_of_what_changes(&self, progress: &dyn Progress) -> Result<Arc<dyn Snapshot>, SourceError> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..BUILDS {
            match self.build(progress) {
                Err(error) if error.code == ErrorCode::SourceChanged => {
                    progress.report("waiting, since the lake changes while it is read", 0, 0);
                    std::thread::sleep(pause);
                    pause *= 2;
                }
                built => return built,
            }
        }
        self.build(progress)
    }

    /// Makes the lake's present state the newest generation; whoever calls holds the lock.
    fn build(&self, progress: &dyn Progress) -> Result<Arc<dyn Snapshot>, SourceError> {
        let disk = |error: std::io::Error| disk_error(&error);
        let (listing, time) = self.look()?;
        let mut catalog = self.catalog()?;
        catalog.sweep(&self.folder).map_err(disk)?;
        if let Some(snapshot) = self.newest(&catalog, &listing, time)? {
            return Ok(snapshot);
        }
        let threads = self.options.threads.max(1);
        let generation = loop {
            let (base, is_after_a_loss) = self.base(&catalog);
            if is_after_a_loss {
                tracing::warn!(
                    "the lake's index is damaged and built anew: every row is in the next increment of every client, and \
                     deletions up to now are not known"
                );
            }
            let soundness = base.as_ref().map(|base| base.soundness());
            let built = Build {
                place: &self.place,
                folder: &self.folder,
                scratch: &self.options.scratch,
                settings: self.settings(),
                threads,
                sort_budget: self.options.sort_budget.max(threads * LEAST_SORT_BUDGET),
                listing: &listing,
                seen: catalog.seen(&self.folder, time).map_err(disk)?,
                base: base.as_deref(),
                reads_all: soundness == Some(Soundness::WithoutProblems),
                is_after_a_loss,
                number: catalog.next_number(),
                mark: new_mark(),
                time,
                progress,
            }
            .run();
            match built {
                Ok(generation) => break generation,
                // What it was built upon turned out to be damaged: once more, on less. That ends with nothing.
                Err(_) if soundness != base.as_ref().map(|base| base.soundness()) => {}
                Err(error) => return Err(error),
            }
        };
        let open = self.open_generation(&generation).map_err(|error| read_error(&error))?;
        catalog.commit(&self.folder, generation).map_err(disk)?;
        self.give(open, time)
    }
}

fn create(path: &Path) -> Result<(), SourceError> {
    std::fs::create_dir_all(path).map_err(|error| {
        SourceError::failed(format!(
            "the folder {} for the lake's index cannot be made: {error}",
            path.display()
        ))
    })
}

/// Makes this the last that was used, and lets go of what was not used for the longest time.
fn hold(held: &mut Vec<Arc<OpenGeneration>>, open: &Arc<OpenGeneration>) {
    held.retain(|other| other.generation.fingerprint != open.generation.fingerprint);
    held.push(open.clone());
    let excess = held.len().saturating_sub(HELD);
    held.drain(..excess);
}

impl Source for LakeSource {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn snapshot(&self, progress: &dyn Progress) -> Result<Arc<dyn Snapshot>, SourceError> {
        let (listing, time) = self.look()?;
        // Whoever purges the index may remove its folder as a whole.
        create(&self.folder)?;
        let lock = IndexLock::try_take(&self.folder).map_err(|error| disk_error(&error))?;
        let _lock = match lock {
            Some(lock) => lock,
            None => {
                progress.report("waiting for another process that orders this lake", 0, 0);
                IndexLock::take(&self.folder).map_err(|error| disk_error(&error))?
            }
        };
        match self.newest(&self.catalog()?, &listing, time)? {
            Some(snapshot) => Ok(snapshot),
            None => self.build_of_what_changes(progress),
        }
    }

    fn reopen(&self, fingerprint: &str) -> Result<Arc<dyn Snapshot>, SourceError> {
        let gone = || {
            SourceError::changed(
                "the lake has changed and its state at the start of the job is not kept any more; start the export anew",
            )
        };
        if let Some(open) = self.held(fingerprint) {
            let time = open.generation.time();
            return Ok(Arc::new(LakeSnapshot::new(open, time)));
        }
        let catalog = self.catalog()?;
        let generation = catalog.find(fingerprint).ok_or_else(gone)?;
        let open = self.open_generation(generation).map_err(|error| match error.kind() {
            // Another process may have dropped it since the catalogue was read.
            std::io::ErrorKind::NotFound => gone(),
            _ => read_error(&error),
        })?;
        Ok(Arc::new(LakeSnapshot::new(open, generation.time())))
    }
}
