//! What became of rows that the generation before had and this one has not: they were deleted, or, while a part of
//! the lake cannot be read, they are absent until that is known. And what the lake itself says was deleted.
//!
//! Of each id that has no row, in this order: an absent or vanished row is a tombstone from now on (from the moment
//! that a deletion in the lake states, where that is later than any export before); while a part of the lake cannot be
//! read, it is absent, unless it was read and a deletion in the lake wins over it. An older tombstone stays as it is. A
//! deletion of something that no generation had is a tombstone of its own moment. An id that has a row again has no
//! tombstone (MF-28).
//!
//! Tombstones are kept for [`KEPT_MILLIS`] and within [`KEPT_BYTES`] a type. What is not kept moves the moment from
//! which on deletions are known, which exports tell.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use flatbed_types::{Instant, Lane, ResourceType, Section};

use super::catalog::{LaneEntry, TypeEntry};
use super::changes::{Moments, Noted, Notes};
use super::gone::{Gone, GoneReader, GoneWriter};
use super::record::{Types, section_number};
use crate::sort::Sorter;

/// How long a deletion is told: a year and some weeks, for clients that come once a year.
const KEPT_MILLIS: i64 = 400 * DAY_MILLIS;
/// Bytes of tombstones of a type, before compression, from which on the oldest go; those of its last day stay, which are
/// less than the rows were.
const KEPT_BYTES: u64 = 4 << 30;
const DAY_MILLIS: i64 = 86_400_000;
/// Memory for absent rows before they go to scratch files.
const ABSENT_BUDGET: usize = 4 << 20;

/// Where the files of a generation go.
pub(super) struct Names<'a> {
    pub(super) folder: &'a Path,
    pub(super) gone: &'a dyn Fn(ResourceType) -> String,
    pub(super) absent: &'a dyn Fn(Lane) -> String,
}

/// What decides.
pub(super) struct Settling<'a> {
    pub(super) moments: Moments,
    /// A part of the lake could not be read: rows that are missing may be there.
    pub(super) is_partial: bool,
    /// The types that are made anew.
    pub(super) redone: &'a BTreeSet<ResourceType>,
    /// The tombstones of the generation before.
    pub(super) former: &'a BTreeMap<ResourceType, Arc<File>>,
    pub(super) scratch: &'a Path,
}

/// What was written, of the types that are made anew.
pub(super) struct Written {
    pub(super) gone: Vec<TypeEntry>,
    pub(super) absent: Vec<LaneEntry>,
    /// Rows of no link among the absent ones.
    pub(super) undecided: u64,
    /// Older deletions may be missing; `None` where all are kept.
    pub(super) forgotten: Option<Instant>,
}

/// Writes tombstones and absent rows.
pub(super) fn write(settling: &Settling<'_>, mut notes: Notes, names: &Names<'_>) -> io::Result<Written> {
    let mut absent =
        Absent { rows: Sorter::new(settling.scratch, ABSENT_BUDGET), types: Types::new(), count: 0 };
    let mut gone = Vec::new();
    let mut forgotten = None;
    for resource_type in settling.redone {
        let name = (names.gone)(*resource_type);
        let path = names.folder.join(&name);
        let mut writer = Tombstones::new(&path, settling.moments.time.plus_millis(-KEPT_MILLIS));
        settle_type(settling, *resource_type, &mut notes, &mut writer, &mut absent)?;
        let (is_there, dropped) = writer.finish()?;
        if is_there {
            gone.push(TypeEntry { resource_type: resource_type.name().to_owned(), file: name });
        }
        forgotten = forgotten.max(dropped);
    }
    let undecided = absent.count;
    Ok(Written { gone, absent: absent.write(names)?, undecided, forgotten })
}

fn settle_type(
    settling: &Settling<'_>,
    resource_type: ResourceType,
    notes: &mut Notes,
    writer: &mut Tombstones<'_>,
    absent: &mut Absent,
) -> io::Result<()> {
    let mut former = GoneReader::new(settling.former.get(&resource_type))?;
    let mut old = former.next()?;
    let mut new = notes.next_of(resource_type)?;
    loop {
        let id = match (&old, &new) {
            (Some(old), Some(new)) => old.key.as_slice().min(&new.id),
            (Some(old), None) => &old.key,
            (None, Some(new)) => &new.id,
            (None, None) => return Ok(()),
        };
        let (has_old, has_new) =
            (old.as_ref().is_some_and(|old| old.key == id), new.as_ref().is_some_and(|new| new.id == id));
        let this_old = if has_old { std::mem::replace(&mut old, former.next()?) } else { None };
        let this_new =
            if has_new { std::mem::replace(&mut new, notes.next_of(resource_type)?) } else { None };
        match settle(settling, this_old, this_new.unwrap_or_default()) {
            Lot::Nothing => {}
            Lot::Deleted(tombstone) => writer.push(tombstone)?,
            Lot::Absent(rows) => {
                for (section, row) in rows {
                    absent.push(Lane { resource_type, section }, &row)?;
                }
            }
        }
    }
}

/// What becomes of an id.
enum Lot {
    /// It is there, or never was.
    Nothing,
    Deleted(Gone),
    Absent(Vec<(Section, Gone)>),
}

fn settle(settling: &Settling<'_>, old: Option<Gone>, noted: Noted) -> Lot {
    let Noted { id, is_present, gone, deleted, buried } = noted;
    let moments = &settling.moments;
    if is_present {
        return Lot::Nothing;
    }
    // Where only links went, the row is where it was, of fewer patients.
    if gone.iter().any(|(_, row)| !row.is_link) {
        // A deletion that the lake carries decides only where it has won over the row: the row may be newer.
        if settling.is_partial && buried.is_none() {
            return Lot::Absent(gone);
        }
        let patients = gone.into_iter().find(|(_, row)| !row.is_link).and_then(|(_, row)| row.patients);
        let moment = deleted.map_or(moments.late(), |stated| moments.known(stated));
        return Lot::Deleted(tombstone(id, moment, patients));
    }
    match (old, deleted) {
        (Some(old), _) => Lot::Deleted(Gone { patients: old.patients.or(buried), ..old }),
        (None, Some(stated)) => Lot::Deleted(tombstone(id, stated.min(moments.late()), buried)),
        (None, None) => Lot::Nothing,
    }
}

fn tombstone(id: Vec<u8>, moment: Instant, patients: Option<Vec<Vec<u8>>>) -> Gone {
    Gone { key: id, moment, hash: 0, is_link: false, patients }
}

/// Writes the tombstones of a type, and forgets the oldest where they are too many.
struct Tombstones<'a> {
    path: &'a Path,
    writer: GoneWriter<'a>,
    /// Older ones are not kept.
    from: Instant,
    has_forgotten: bool,
    /// Bytes by the day of the deletion.
    days: BTreeMap<i64, u64>,
}

impl<'a> Tombstones<'a> {
    fn new(path: &'a Path, from: Instant) -> Tombstones<'a> {
        let writer = GoneWriter::new(path);
        Tombstones { path, writer, from, has_forgotten: false, days: BTreeMap::new() }
    }

    fn push(&mut self, tombstone: Gone) -> io::Result<()> {
        if tombstone.moment < self.from {
            self.has_forgotten = true;
            return Ok(());
        }
        let bytes = self.writer.push(&tombstone)?;
        *self.days.entry(day_of(tombstone.moment)).or_default() += bytes;
        Ok(())
    }

    /// Whether there is a file, and from when on it has all.
    fn finish(self) -> io::Result<(bool, Option<Instant>)> {
        let is_there = self.writer.finish()?;
        let forgotten = self.has_forgotten.then_some(self.from);
        let Some(from) = first_kept(&self.days, KEPT_BYTES) else { return Ok((is_there, forgotten)) };
        let whole = Arc::new(File::open(self.path)?);
        // The name stands for the file that is being read until the new one takes its place.
        std::fs::remove_file(self.path)?;
        let mut reader = GoneReader::new(Some(&whole))?;
        let mut writer = GoneWriter::new(self.path);
        while let Some(tombstone) = reader.next()? {
            if tombstone.moment >= from {
                writer.push(&tombstone)?;
            }
        }
        Ok((writer.finish()?, Some(from)))
    }
}

fn day_of(moment: Instant) -> i64 {
    moment.millis().div_euclid(DAY_MILLIS)
}

/// The start of the first day that is kept where not all can be.
fn first_kept(days: &BTreeMap<i64, u64>, most: u64) -> Option<Instant> {
    let mut bytes = 0_u64;
    let mut kept = None;
    for (day, more) in days.iter().rev() {
        bytes = bytes.saturating_add(*more);
        if bytes > most && kept.is_some() {
            return kept.map(|day: i64| Instant::from_millis(day.saturating_mul(DAY_MILLIS)));
        }
        kept = Some(*day);
    }
    None
}

/// Puts absent rows into the order of their lanes.
struct Absent {
    rows: Sorter,
    types: Types,
    count: u64,
}

impl Absent {
    fn push(&mut self, lane: Lane, row: &Gone) -> io::Result<()> {
        self.count += u64::from(!row.is_link);
        let mut key = vec![self.types.number(lane.resource_type), section_number(lane.section)];
        key.extend_from_slice(&row.key);
        let mut body = Vec::new();
        row.encode(&mut body);
        self.rows.push(&key, &body)
    }

    fn write(self, names: &Names<'_>) -> io::Result<Vec<LaneEntry>> {
        let mut rows = self.rows.finish()?;
        let mut written = Vec::new();
        let mut next = decode(&self.types, rows.next()?)?;
        while let Some((lane, _)) = &next {
            let lane = *lane;
            let name = (names.absent)(lane);
            let path = names.folder.join(&name);
            let mut writer = GoneWriter::new(&path);
            while let Some((_, row)) = next.take_if(|(other, _)| *other == lane) {
                writer.push(&row)?;
                next = decode(&self.types, rows.next()?)?;
            }
            writer.finish()?;
            written.push(LaneEntry::new(lane, name));
        }
        Ok(written)
    }
}

fn decode(types: &Types, record: Option<(&[u8], &[u8])>) -> io::Result<Option<(Lane, Gone)>> {
    let Some((key, body)) = record else { return Ok(None) };
    let Some(([number, section], key)) = key.split_first_chunk::<2>() else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let section = if *section == 0 { Section::Compartment } else { Section::Standalone };
    let lane = Lane { resource_type: types.of(*number)?, section };
    Ok(Some((lane, Gone::decode(key.to_vec(), body)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_by_days_and_the_last_day_stays() {
        let days = BTreeMap::from([(1, 10), (2, 20), (5, 30), (9, 40)]);
        let start = |day: i64| Some(Instant::from_millis(day * DAY_MILLIS));
        for (most, from) in
            [(100, None), (99, start(2)), (90, start(2)), (89, start(5)), (70, start(5)), (1, start(9))]
        {
            assert_eq!(first_kept(&days, most), from, "{most}");
        }
        assert_eq!(first_kept(&BTreeMap::from([(1, 10)]), 1), None);
        assert_eq!(day_of(Instant::from_millis(-1)), -1);
    }

    #[test]
    fn old_tombstones_are_forgotten_and_that_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gone");
        let mut writer = Tombstones::new(&path, Instant::from_millis(5));
        for (id, millis) in [("a", 4), ("b", 5), ("c", 6)] {
            writer.push(tombstone(id.into(), Instant::from_millis(millis), None)).unwrap();
        }
        assert_eq!(writer.finish().unwrap(), (true, Some(Instant::from_millis(5))));
        let mut reader = GoneReader::new(Some(&Arc::new(File::open(&path).unwrap()))).unwrap();
        let mut kept = Vec::new();
        while let Some(tombstone) = reader.next().unwrap() {
            kept.push(tombstone.key);
        }
        assert_eq!(kept, [b"b", b"c"]);
    }
}
