//! One generation opened for reading.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flatbed_types::caps::HINT_BYTES;
use flatbed_types::position::compartment_key;
use flatbed_types::request::FhirId;
use flatbed_types::task::{Hint, LaneSurvey};
use flatbed_types::{ErrorCode, Instant, KeyRange, Lane, Position, ResourceType};

use super::catalog::Generation;
use super::disk::is_damage;
use super::gone::GoneReader;
use super::group::read_group;
use super::lane_file::{Block, LaneFile};
use super::problems::{self, Stored};
use super::read::{LaneReader, read_error};
use crate::cut;
use crate::source::{
    DeletionsKnown, GroupMember, GroupStanding, Problem, RowReader, Scan, Snapshot, SourceError, Tombstone,
    Window,
};

/// The files of a generation. All are open, so that they stay readable when the generation is not kept.
pub(super) struct OpenGeneration {
    pub(super) generation: Generation,
    pub(super) lanes: BTreeMap<Lane, Arc<LaneFile>>,
    problems: Arc<File>,
    /// What was deleted.
    pub(super) gone: BTreeMap<ResourceType, Arc<File>>,
    /// What is missing while a part of the lake cannot be read.
    pub(super) absent: BTreeMap<Lane, Arc<File>>,
    are_problems_damaged: AtomicBool,
    is_history_damaged: AtomicBool,
}

/// Whether an opened generation can be read and built upon, as far as anybody who reads it has noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Soundness {
    Sound,
    /// The list of its problems is damaged: what it knows of rows can be built upon.
    WithoutProblems,
    /// Rows, or what it knows of deletions, are damaged.
    Broken,
}

impl OpenGeneration {
    /// Opens the files in `folder`, sharing lanes that others of the same lake have open: a name stands for
    /// one content for ever.
    pub(super) fn open(
        folder: &Path,
        generation: &Generation,
        others: &[Arc<OpenGeneration>],
    ) -> io::Result<OpenGeneration> {
        let mut lanes = BTreeMap::new();
        for entry in &generation.lanes {
            let lane = entry.lane()?;
            let has = |other: &&Arc<OpenGeneration>| other.generation.lanes.contains(entry);
            let file = match others.iter().find(has).and_then(|other| other.lanes.get(&lane)) {
                Some(file) => file.clone(),
                None => Arc::new(LaneFile::open(&folder.join(&entry.file))?),
            };
            lanes.insert(lane, file);
        }
        let open = |name: &String| File::open(folder.join(name)).map(Arc::new);
        let gone = generation.gone.iter().map(|entry| Ok((entry.resource_type()?, open(&entry.file)?)));
        let absent = generation.absent.iter().map(|entry| Ok((entry.lane()?, open(&entry.file)?)));
        Ok(OpenGeneration {
            generation: generation.clone(),
            lanes,
            problems: open(&generation.problems)?,
            gone: gone.collect::<io::Result<_>>()?,
            absent: absent.collect::<io::Result<_>>()?,
            are_problems_damaged: AtomicBool::new(false),
            is_history_damaged: AtomicBool::new(false),
        })
    }

    /// What is known of damages.
    pub(super) fn soundness(&self) -> Soundness {
        if self.is_history_damaged.load(Ordering::Acquire)
            || self.lanes.values().any(|lane| lane.is_damaged())
        {
            Soundness::Broken
        } else if self.are_problems_damaged.load(Ordering::Acquire) {
            Soundness::WithoutProblems
        } else {
            Soundness::Sound
        }
    }

    /// Notes that a file of deletions or of absent rows is not what was written.
    pub(super) fn history_is_damaged(&self) {
        self.is_history_damaged.store(true, Ordering::Release);
    }

    /// Reads the problems as they are stored.
    pub(super) fn each_problem(
        &self,
        each: &mut dyn FnMut(Stored) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        problems::each_stored(&self.problems, &|| self.problems_are_damaged(), each)
    }

    fn problems_are_damaged(&self) {
        self.are_problems_damaged.store(true, Ordering::Release);
    }
}

/// The error for a file of the index that cannot be read by what is not a running export: one more try finds the index
/// built anew, where it is damaged.
fn lost(error: &io::Error) -> SourceError {
    let code = if is_damage(error) { ErrorCode::StorageFailed } else { read_error(error).code };
    SourceError { code, message: read_error(error).message }
}

/// A snapshot of a lake.
pub(super) struct LakeSnapshot {
    open: Arc<OpenGeneration>,
    time: Instant,
}

impl LakeSnapshot {
    pub(super) fn new(open: Arc<OpenGeneration>, time: Instant) -> LakeSnapshot {
        LakeSnapshot { open, time }
    }

    fn lane(&self, lane: Lane) -> Option<&Arc<LaneFile>> {
        self.open.lanes.get(&lane)
    }
}

/// The bytes of one row.
pub(super) struct RowBytes {
    lane: Arc<LaneFile>,
    block: usize,
    next_run: usize,
    plain: Vec<u8>,
    at: usize,
    end: usize,
}

impl RowBytes {
    pub(super) fn find(lane: &Arc<LaneFile>, key: &[u8]) -> io::Result<Option<RowBytes>> {
        let Some(block) = lane.block_of(key) else { return Ok(None) };
        let mut row = RowBytes { lane: lane.clone(), block, next_run: 0, plain: Vec::new(), at: 0, end: 0 };
        let meta = &lane.blocks[block];
        let directory = lane.directory(meta)?;
        let Some(entry) = directory.find(key).filter(|entry| !entry.is_link()) else { return Ok(None) };
        if !meta.is_long() {
            row.plain = lane.plain(meta)?;
            let span = entry.span();
            (row.at, row.end, row.next_run) = (span.start, span.end.min(row.plain.len()), meta.runs.len());
        }
        Ok(Some(row))
    }
}

impl Read for RowBytes {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.end {
            let block = &self.lane.blocks[self.block];
            if self.next_run == block.runs.len() {
                return Ok(0);
            }
            self.plain = self.lane.plain_run(block, self.next_run)?;
            self.next_run += 1;
            (self.at, self.end) = (0, self.plain.len());
        }
        let len = (self.end - self.at).min(into.len());
        into[..len].copy_from_slice(&self.plain[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

impl Snapshot for LakeSnapshot {
    fn fingerprint(&self) -> &str {
        &self.open.generation.fingerprint
    }

    fn time(&self) -> Instant {
        self.time
    }

    fn types(&self) -> Vec<ResourceType> {
        let mut types: Vec<ResourceType> = self.open.lanes.keys().map(|lane| lane.resource_type).collect();
        types.dedup();
        types
    }

    fn patients(&self) -> u64 {
        let lane = self.lane(Lane::compartment(ResourceType::PATIENT));
        lane.map_or(0, |lane| lane.blocks.iter().map(|block| block.homes).sum())
    }

    fn survey(&self, window: &Window) -> Result<Vec<LaneSurvey>, SourceError> {
        let surveys = self.open.lanes.iter().map(|(lane, file)| {
            let mut hints: Vec<Hint> = Vec::new();
            for block in &file.blocks {
                let (rows, bytes) = scaled(block, window);
                match hints.last_mut() {
                    Some(hint) if hint.bytes + bytes <= HINT_BYTES => {
                        hint.rows += rows;
                        hint.bytes += bytes;
                    }
                    Some(_) => hints.push(Hint { at: Position::At(block.first.clone()), rows, bytes }),
                    None => hints.push(Hint { at: Position::START, rows, bytes }),
                }
            }
            LaneSurvey { lane: *lane, hints }
        });
        Ok(surveys.collect())
    }

    fn weigh(&self, lane: Lane, range: &KeyRange) -> u64 {
        self.lane(lane).map_or(0, |lane| stretches(lane, range).map(|(_, bytes)| bytes).sum())
    }

    fn middle(&self, lane: Lane, range: &KeyRange) -> Option<Position> {
        cut::middle_of(&range.lo, stretches(self.lane(lane)?, range))
    }

    fn read(&self, scan: Scan) -> Result<Box<dyn RowReader>, SourceError> {
        let lane = match self.lane(scan.lane) {
            Some(lane) => lane.clone(),
            None => Arc::new(LaneFile::empty()),
        };
        Ok(Box::new(LaneReader::new(&self.open, lane, scan)?))
    }

    fn group(
        &self,
        id: &FhirId,
        member: &mut dyn FnMut(GroupMember) -> Result<(), SourceError>,
    ) -> Result<Option<GroupStanding>, SourceError> {
        let Some(lane) = self.lane(Lane::standalone(ResourceType::GROUP)) else { return Ok(None) };
        let found = RowBytes::find(lane, id.as_str().as_bytes()).map_err(|error| lost(&error))?;
        let Some(row) = found else { return Ok(None) };
        let buffered = io::BufReader::new(row);
        read_group(buffered, &format!("Group/{id}"), member).map(Some)
    }

    fn has_patients(&self, ids: &[FhirId]) -> Result<Vec<bool>, SourceError> {
        let Some(lane) = self.lane(Lane::compartment(ResourceType::PATIENT)) else {
            return Ok(vec![false; ids.len()]);
        };
        // Asked in order of keys, each directory is read once.
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_unstable_by(|a, b| ids[*a].cmp(&ids[*b]));
        let mut answers = vec![false; ids.len()];
        let mut current = None;
        for index in order {
            let id = ids[index].as_str();
            // A Patient stands under itself at least as a link.
            let key = compartment_key(id, id);
            let Some(block) = lane.block_of(&key) else { continue };
            if current.as_ref().is_none_or(|(at, _)| *at != block) {
                let directory = lane.directory(&lane.blocks[block]).map_err(|error| lost(&error))?;
                current = Some((block, directory));
            }
            answers[index] = current.as_ref().is_some_and(|(_, directory)| directory.find(&key).is_some());
        }
        Ok(answers)
    }

    fn problems(&self, each: &mut dyn FnMut(Problem) -> Result<(), SourceError>) -> Result<(), SourceError> {
        problems::list(&self.open.problems, &|| self.open.problems_are_damaged(), each)
    }

    fn deletions(
        &self,
        window: &Window,
        each: &mut dyn FnMut(Tombstone) -> Result<(), SourceError>,
    ) -> Result<DeletionsKnown, SourceError> {
        let failed = |error: io::Error| {
            if is_damage(&error) {
                self.open.history_is_damaged();
            }
            lost(&error)
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        for (resource_type, file) in &self.open.gone {
            let mut reader = GoneReader::new(Some(file)).map_err(failed)?;
            while let Some(gone) = reader.next().map_err(failed)? {
                if window.contains(gone.moment) {
                    let patients = gone.patients.map(|all| all.iter().map(|one| text(one)).collect());
                    let (resource_type, id) = (*resource_type, text(&gone.key));
                    each(Tombstone { resource_type, id, patients, deleted: gone.moment })?;
                }
            }
        }
        let Generation { known_from, undecided, .. } = self.open.generation;
        Ok(DeletionsKnown { from: Some(Instant::from_nanos(known_from)), undecided })
    }
}

/// The blocks of a range, each with its first key and the bytes that lie in the range: half of those of a block that
/// lies in it in part.
fn stretches<'a>(lane: &'a LaneFile, range: &KeyRange) -> impl Iterator<Item = (&'a [u8], u64)> + Clone {
    let from = match range.lo.key() {
        Some(lo) => lane.blocks.partition_point(|block| block.last.as_slice() < lo),
        None => lane.blocks.len(),
    };
    let to = lane.blocks.partition_point(|block| !range.hi.admits(&block.first)).max(from);
    let range = range.clone();
    lane.blocks[from..to].iter().map(move |block| {
        let whole = range.lo.admits(&block.first) && !range.hi.admits(&block.last);
        (block.first.as_slice(), if whole { block.raw_len() } else { block.raw_len() / 2 })
    })
}

/// Rows and bytes of a block that the window leaves, roughly: as if the rows were spread evenly in time.
fn scaled(block: &Block, window: &Window) -> (u64, u64) {
    let (first, last) = (block.first_changed, block.last_changed);
    if block.homes == 0 || !window.overlaps(first, last) {
        return (0, 0);
    }
    let (rows, bytes) = (block.homes, block.raw_len());
    if window.contains(first) && window.contains(last) {
        return (rows, bytes);
    }
    let from = window.since.map_or(first.known, |since| since.max(first.known)).nanos();
    let to = window.until.map_or(last.known, |until| until.min(last.known)).nanos();
    let span = (i128::from(last.known.nanos()) - i128::from(first.known.nanos())).max(1) as u128;
    let part = (i128::from(to) - i128::from(from)).clamp(0, span as i128) as u128;
    let scale = |whole: u64| ((u128::from(whole) * part / span) as u64).max(1);
    (scale(rows), scale(bytes))
}
