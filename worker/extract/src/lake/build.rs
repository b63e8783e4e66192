//! First use of a lake, and every use after it changed: reads what is needed, and makes a new generation.
//!
//! A type is redone as a whole when any file that holds or held it changed; the files of all other lanes are
//! shared with the generation before. Files that did not change are read again only for types that are redone. Provenance
//! is redone with any type of what it targets, for it belongs to the patients of that.
//! The rows do not depend on the number of threads nor on whether they were put into order at once or in steps; since
//! when they are known, and what was deleted, follows from the generation before. Types with absent rows are always
//! redone: whether they can be found now is not seen in the listing.

mod lanes;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flatbed_types::{Instant, ResourceType};

use self::lanes::AllRead;
use super::catalog::{
    Before, FileEntry, Generation, LaneEntry, Settings, TypeEntry, absent_file_name, by_path, gone_file_name,
    problems_file_name,
};
use super::changes::{Changes, Note};
use super::collect::{Collected, Collector, Outcome, Reading, push_problem};
use super::disk::{disk_error, is_damage};
use super::duplicates::{Conflict, Found, resolve};
use super::history::{self, Names, Settling, Written};
use super::list::{Listed, Listing, Place, Stamp};
use super::merge::Merged;
use super::order::Ordered;
use super::problems::{ProblemWriter, Stored};
use super::provenance;
use super::read::read_error;
use super::record::{Origin, Types};
use super::snapshot::OpenGeneration;
use crate::compartment::Compartment;
use crate::sort::Sorter;
use crate::source::{Progress, SourceError};

/// Times a file is read when it changes meanwhile.
const TRIES: u32 = 2;
/// A problem that does not stem from a reading.
const NO_UNIT: u32 = u32::MAX;

/// What a build works with.
pub(super) struct Build<'a> {
    pub(super) place: &'a Place,
    pub(super) folder: &'a Path,
    pub(super) scratch: &'a Path,
    pub(super) settings: Settings,
    pub(super) threads: usize,
    pub(super) sort_budget: usize,
    pub(super) listing: &'a Listing,
    /// The latest transaction time that anybody has got from the index.
    pub(super) seen: Instant,
    /// The newest generation with the same settings.
    pub(super) base: Option<&'a OpenGeneration>,
    /// All files are read again, though rows are compared with those of `base`: what it says of files is not known.
    pub(super) reads_all: bool,
    /// There was a generation before which cannot be read any more: whoever has an export of it may lack any row, and what
    /// was deleted before is not known.
    pub(super) is_after_a_loss: bool,
    pub(super) number: u64,
    /// Makes the names of its files its own ([`super::catalog::new_mark`]).
    pub(super) mark: u64,
    pub(super) time: Instant,
    pub(super) progress: &'a dyn Progress,
}

/// What is known of the files while they are read.
struct Files {
    entries: Vec<Mutex<Option<FileEntry>>>,
    /// Readings of files that changed meanwhile.
    dead: Mutex<HashSet<u32>>,
    read: Arc<AtomicU64>,
    total: AtomicU64,
}

/// One file to read, by its place in the listing.
type Task<'a> = (usize, Option<&'a BTreeSet<ResourceType>>);

impl Build<'_> {
    /// Makes the generation and all of its files but does not enter it into the catalogue.
    pub(super) fn run(&self) -> Result<Generation, SourceError> {
        let known = self.base.map(|base| by_path(&base.generation.files)).unwrap_or_default();
        let unchanged = |listed: &Listed| {
            let entry = known.get(listed.path.as_str()).filter(|_| !self.reads_all)?;
            (entry.is_of(listed) && !entry.unread).then_some(*entry)
        };
        let listed = &self.listing.files;
        let kept: Vec<Option<&FileEntry>> = listed.iter().map(unchanged).collect();
        let kept_paths: HashSet<&str> = kept.iter().flatten().map(|entry| entry.path.as_str()).collect();
        let gone = known.values().filter(|entry| !kept_paths.contains(entry.path.as_str()));
        let mut redone: BTreeSet<ResourceType> = gone.flat_map(|entry| entry.types()).collect();
        let absent = self.base.iter().flat_map(|base| base.absent.keys());
        redone.extend(absent.map(|lane| lane.resource_type));

        let files = Files {
            entries: kept.iter().map(|entry| Mutex::new(entry.cloned())).collect(),
            dead: Mutex::new(HashSet::new()),
            read: Arc::new(AtomicU64::new(0)),
            total: AtomicU64::new(0),
        };
        let mut collectors = self.collectors()?;
        let fresh: Vec<Task<'_>> =
            (0..listed.len()).filter(|index| kept[*index].is_none()).map(|index| (index, None)).collect();
        self.read_all(&fresh, &files, &mut collectors)?;
        for (index, _) in &fresh {
            let entry = files.entries[*index].lock().unwrap_or_else(PoisonError::into_inner);
            redone.extend(entry.iter().flat_map(FileEntry::types));
        }
        if self.base.is_some_and(|base| base.generation.targets_any(&redone)) {
            redone.insert(ResourceType::PROVENANCE);
        }
        let holds = |entry: &FileEntry| entry.types().any(|held| redone.contains(&held));
        let again: Vec<Task<'_>> = kept
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.is_some_and(holds))
            .map(|(index, _)| (index, Some(&redone)))
            .collect();
        self.read_all(&again, &files, &mut collectors)?;
        self.finish(files, collectors, &redone, &kept_paths)
    }

    fn collectors(&self) -> Result<Vec<Collector>, SourceError> {
        let compartment = Compartment { beyond_the_definition: self.settings.beyond_the_definition };
        let budget = self.sort_budget / self.threads;
        (0..self.threads)
            .map(|number| {
                Collector::new(number as u32, self.settings.max_line, compartment, self.scratch, budget)
            })
            .collect::<io::Result<_>>()
            .map_err(|error| disk_error(&error))
    }

    /// Reads files with all threads, the largest first.
    fn read_all(
        &self,
        tasks: &[Task<'_>],
        files: &Files,
        collectors: &mut [Collector],
    ) -> Result<(), SourceError> {
        let size = |index: usize| self.listing.files[index].stamp.size;
        let mut tasks = tasks.to_vec();
        tasks.sort_by_key(|(index, _)| std::cmp::Reverse(size(*index)));
        files.total.fetch_add(tasks.iter().map(|(index, _)| size(*index)).sum(), Ordering::Relaxed);
        let next = AtomicUsize::new(0);
        let work = |collector: &mut Collector| -> Result<(), SourceError> {
            while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                let done = self.read_file(*task, files, collector);
                if done.is_err() {
                    next.store(tasks.len(), Ordering::Relaxed);
                    return done;
                }
                self.tell(files);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                collectors.iter_mut().map(|collector| scope.spawn(|| work(collector))).collect();
            let mut outcome = Ok(());
            for thread in threads {
                let ended = thread.join().unwrap_or_else(|_| {
                    Err(SourceError::failed(
                        "a thread that read the lake ended unexpectedly; this is a defect",
                    ))
                });
                outcome = outcome.and(ended);
            }
            outcome
        })
    }

    fn tell(&self, files: &Files) {
        let read = files.read.load(Ordering::Relaxed);
        // A file that is read twice, or grew, counts for more than its size in the listing.
        self.progress.report("reading", read, files.total.load(Ordering::Relaxed).max(read));
    }

    fn read_file(
        &self,
        (index, only): Task<'_>,
        files: &Files,
        collector: &mut Collector,
    ) -> Result<(), SourceError> {
        let listed = &self.listing.files[index];
        let path = self.place.base.join(&listed.path);
        for attempt in 0..TRIES {
            let unit = index as u32 * TRIES + attempt;
            let opened = File::open(&path).and_then(|file| Ok((Stamp::of(&file.metadata()?), file)));
            let (stamp, file) = match opened {
                Ok(opened) => opened,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(changed(listed)),
                Err(error) => {
                    let message = format!("cannot be read: {error}");
                    collector.file_problem(listed, unit, &message).map_err(|error| disk_error(&error))?;
                    match only {
                        Some(_) => self.lose(files, index),
                        None => self.enter(files, index, listed.stamp, Outcome::NOTHING),
                    }
                    return Ok(());
                }
            };
            let reading = Reading { listed, file, unit, modified: stamp.modified, only };
            let outcome = collector
                .read(reading, files.read.clone(), &|| self.tell(files))
                .map_err(|error| disk_error(&error))?;
            let after = std::fs::metadata(&path).map(|metadata| Stamp::of(&metadata));
            let same = after.is_ok_and(|after| after == stamp);
            if same {
                match only {
                    None => self.enter(files, index, stamp, outcome),
                    // Read in another state than the listing's, it keeps the stamp of the listing: the next look finds it
                    // changed and reads all of it. Until then its rows of other types are as they were.
                    Some(_) if outcome.unread => {
                        let message = "could not be read again to its end, some of it is left out";
                        collector.file_problem(listed, unit, message).map_err(|error| disk_error(&error))?;
                        self.lose(files, index);
                    }
                    Some(_) => {}
                }
                return Ok(());
            }
            files.dead.lock().unwrap_or_else(PoisonError::into_inner).insert(unit);
        }
        Err(changed(listed))
    }

    /// Marks a known file that could not be read again. What it is known to hold stays known: lanes that are
    /// shared with the generation before have rows of it.
    fn lose(&self, files: &Files, index: usize) {
        let mut entry = files.entries[index].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entry.as_mut() {
            entry.unread = true;
        }
    }

    fn enter(&self, files: &Files, index: usize, stamp: Stamp, outcome: Outcome) {
        let entry = FileEntry {
            path: self.listing.files[index].path.clone(),
            size: stamp.size,
            modified: stamp.modified.nanos(),
            ctime: stamp.ctime,
            content: format!("{:032x}", outcome.content),
            types: outcome.types.iter().map(|held| held.name().to_owned()).collect(),
            unread: outcome.unread,
            damaged: outcome.damaged,
        };
        *files.entries[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(entry);
    }

    /// Everything is read: duplicates, lanes, deletions, problems.
    fn finish(
        &self,
        files: Files,
        collectors: Vec<Collector>,
        redone: &BTreeSet<ResourceType>,
        kept_paths: &HashSet<&str>,
    ) -> Result<Generation, SourceError> {
        let disk = |error: io::Error| disk_error(&error);
        let collected: Vec<Collected> =
            collectors.into_iter().map(Collector::finish).collect::<io::Result<_>>().map_err(disk)?;
        let dead = files.dead.into_inner().unwrap_or_else(PoisonError::into_inner);
        let entries: Vec<FileEntry> = files
            .entries
            .into_iter()
            .filter_map(|entry| entry.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect();
        let (mut rows, mut identities, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        let (mut spools, mut provenance) = (Vec::new(), provenance::Collected::default());
        let mut bytes = 0;
        for part in collected {
            rows.push(part.rows);
            identities.push(part.identities);
            problems.push(part.problems);
            part.provenance.finish(&mut provenance).map_err(disk)?;
            spools.push(part.spool);
            bytes += part.bytes;
        }
        let mut changes = Changes::new(self.scratch);
        let mut more = Sorter::new(self.scratch, 1 << 20);
        let mut noted =
            Noted { build: self, types: Types::new(), problems: &mut more, changes: &mut changes };
        let resolved =
            Merged::new(identities).and_then(|all| resolve(all, &dead, &mut noted)).map_err(disk)?;
        self.carry_over(redone, kept_paths, &mut more)?;
        problems.push(more.finish().map_err(disk)?);
        let problems_name = problems_file_name(self.number, self.mark);
        write_problems(problems, &dead, &self.folder.join(&problems_name)).map_err(disk)?;

        let targeted = self.targeted(redone, &provenance);
        let read = AllRead { rows, bytes, provenance, spools: &spools, resolved: &resolved, dead: &dead };
        let ordered = self.order(read, redone, &mut changes).map_err(|error| self.base_error(error))?;
        let is_partial = Generation::is_partial(&entries, &self.listing.obstacles);
        let written =
            self.write_history(redone, is_partial, changes).map_err(|error| self.base_error(error))?;
        let generation = self.generation(entries, redone, ordered, written, problems_name).map_err(disk)?;
        Ok(Generation { targeted, ..generation })
    }

    /// The error of a step that reads the generation before, which is damaged where that is what it says.
    fn base_error(&self, error: io::Error) -> SourceError {
        match self.base {
            Some(base) if is_damage(&error) => {
                base.history_is_damaged();
                read_error(&error)
            }
            _ => disk_error(&error),
        }
    }

    fn write_history(
        &self,
        redone: &BTreeSet<ResourceType>,
        is_partial: bool,
        changes: Changes,
    ) -> io::Result<Written> {
        let none = BTreeMap::new();
        let settling = Settling {
            moments: self.moments(),
            is_partial,
            redone,
            former: self.base.map_or(&none, |base| &base.gone),
            scratch: self.scratch,
        };
        let names = Names {
            folder: self.folder,
            gone: &|resource_type| gone_file_name(self.number, self.mark, resource_type),
            absent: &|lane| absent_file_name(self.number, self.mark, lane),
        };
        history::write(&settling, changes.finish()?, &names)
    }

    /// What was written, with what is shared with the generation before.
    fn generation(
        &self,
        files: Vec<FileEntry>,
        redone: &BTreeSet<ResourceType>,
        ordered: Ordered,
        written: Written,
        problems: String,
    ) -> io::Result<Generation> {
        let base = self.base.map(|base| &base.generation);
        let mut lanes: Vec<LaneEntry> =
            ordered.lanes.into_iter().map(|(lane, file)| LaneEntry::new(lane, file)).collect();
        for lane in base.iter().flat_map(|base| &base.lanes) {
            if !redone.contains(&lane.lane()?.resource_type) {
                lanes.push(lane.clone());
            }
        }
        lanes.sort_by(|a, b| (&a.resource_type, a.standalone).cmp(&(&b.resource_type, b.standalone)));
        let mut gone: Vec<TypeEntry> = written.gone;
        for entry in base.iter().flat_map(|base| &base.gone) {
            if !redone.contains(&entry.resource_type()?) {
                gone.push(entry.clone());
            }
        }
        gone.sort_by(|a, b| a.resource_type.cmp(&b.resource_type));
        let known_from = base.map_or(self.time.nanos(), |base| base.known_from);
        let obstacles = self.listing.obstacles.clone();
        let before = match base {
            Some(base) => Before::Generation(base, self.time),
            None if self.is_after_a_loss => Before::Lost(self.time),
            None => Before::Nothing,
        };
        Ok(Generation {
            number: self.number,
            fingerprint: Generation::compute_fingerprint(self.settings, &files, &obstacles, before),
            time: self.time.nanos(),
            settings: self.settings,
            files,
            obstacles,
            lanes,
            problems,
            gone,
            absent: written.absent,
            undecided: written.undecided,
            known_from: written.forgotten.map_or(known_from, |from| known_from.max(from.nanos())),
            targeted: Vec::new(),
        })
    }

    /// Problems of the generation before that still hold, and of places that could not be looked into.
    fn carry_over(
        &self,
        redone: &BTreeSet<ResourceType>,
        kept_paths: &HashSet<&str>,
        problems: &mut Sorter,
    ) -> Result<(), SourceError> {
        let disk = |error: io::Error| disk_error(&error);
        for obstacle in &self.listing.obstacles {
            let stored = Stored {
                issue: "exception".to_owned(),
                message: obstacle.clone(),
                resource: None,
                file: None,
                conflict: None,
                line: 0,
            };
            push_problem(problems, NO_UNIT, &stored).map_err(disk)?;
        }
        let Some(base) = self.base.filter(|_| !self.reads_all) else { return Ok(()) };
        base.each_problem(&mut |stored: Stored| {
            let holds = match (&stored.conflict, &stored.file) {
                (Some(name), _) => name.parse().is_ok_and(|held: ResourceType| !redone.contains(&held)),
                (None, Some(path)) => kept_paths.contains(path.as_str()),
                (None, None) => false,
            };
            if holds { push_problem(problems, NO_UNIT, &stored).map_err(disk) } else { Ok(()) }
        })
    }
}

/// Takes what is found among the identities.
struct Noted<'a> {
    build: &'a Build<'a>,
    types: Types,
    problems: &'a mut Sorter,
    changes: &'a mut Changes,
}

impl Noted<'_> {
    fn path(&self, origin: Origin) -> Option<&String> {
        self.build.listing.files.get(origin.file()).map(|listed| &listed.path)
    }
}

impl Found for Noted<'_> {
    fn conflict(&mut self, conflict: Conflict) -> io::Result<()> {
        let resource_type = self.types.of(conflict.type_number)?;
        let resource = format!("{resource_type}/{}", conflict.id);
        let place =
            |origin: Origin| format!("{}:{}", self.path(origin).map_or("", String::as_str), origin.line);
        let (loser, winner) = (place(conflict.loser), place(conflict.winner));
        let stored = Stored {
            issue: "conflict".to_owned(),
            message: format!(
                "{loser}: {resource} is left out: {winner} has other content for it and is newer or later"
            ),
            resource: Some(resource),
            file: self.path(conflict.loser).cloned(),
            conflict: Some(resource_type.name().to_owned()),
            line: conflict.loser.line,
        };
        push_problem(self.problems, conflict.loser.unit, &stored)
    }

    fn deletion(&mut self, type_number: u8, id: &[u8], deleted: Instant) -> io::Result<()> {
        self.changes.note(self.types.of(type_number)?, id, Note::Deleted(deleted))
    }
}

fn write_problems(problems: Vec<crate::sort::Sorted>, dead: &HashSet<u32>, path: &Path) -> io::Result<()> {
    let mut merged = Merged::new(problems)?;
    let mut writer = ProblemWriter::create(path)?;
    while let Some((_, value)) = merged.next()? {
        let mut record = value;
        let unit = u32::from_le_bytes(super::lane_file::fixed(&mut record)?);
        if !dead.contains(&unit) {
            writer.push(record)?;
        }
    }
    writer.finish()
}

fn changed(listed: &Listed) -> SourceError {
    SourceError::changed(format!(
        "{} changed while it was read; try again when nothing is written to the lake",
        listed.path
    ))
}
