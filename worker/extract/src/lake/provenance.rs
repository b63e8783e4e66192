//! Whose a Provenance is. It belongs to the patients that it targets, as the compartment definition says, and to those
//! of the resources that it targets (PM-47): so it stands in the lane of all of them, like any row of several patients.
//!
//! Whose the targets are is only known when their lanes are written, so rows of Provenance are kept apart while the lake
//! is read, and their lanes are written last. A join brings them together:
//!
//! ```text
//! targets : type, id, 0x00, TARGET, newest Provenance first        → the Provenance
//! homes   : type, id, 0x00, HOME                                   → the patients of that resource
//! located : id of the Provenance, 0x00, its origin, FOUND, target  → whether it is the newest, the target's patients
//! rows    : id of the Provenance, 0x00, its origin, ROW            → the row, but for its patients
//! ```
//!
//! Homes are read from the directories of the targets' lanes, this generation's or those that it shares with the one
//! before; a sieve of all targets keeps out nearly everything that is none. Rows and located targets, merged, are rows of
//! lanes as all others. A row keeps the list of its targets with their homes and whether it is the newest Provenance of
//! each, so that [`crate::associated`] needs no other index.
//!
//! One step only: a Provenance of a Provenance belongs to the patients that the latter targets itself, which is what the
//! compartment definition says of it, and not to those of that one's targets.
//!
//! Invariants: memory is bounded but for the patients and targets of one row. Without Provenance nothing is done.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use flatbed_types::position::patient_of;
use flatbed_types::{Instant, ResourceType, Section};
use xxhash_rust::xxh3::xxh3_64;

use super::collect::row_key;
use super::directory::{REFERENCES, SEVERAL, TARGETS, put_list};
use super::duplicates::Resolved;
use super::gone::take_list;
use super::lane_file::{LaneFile, fixed};
use super::merge::Merged;
use super::record::{Origin, Payload, Row, Types, section_number};
use crate::compartment::Belonging;
use crate::keylist::{put_varint, take};
use crate::sort::{Sorted, Sorter};

const HOME: u8 = 0;
const TARGET: u8 = 1;
const ROW: u8 = 0;
const FOUND: u8 = 1;
/// The Provenance is the newest of this target.
const NEWEST: u8 = 1;
/// Bits of the sieve: with three million targets a row in forty that is none passes. More only make the join longer.
const SIEVE_BITS: usize = 1 << 25;

/// A set of keys that may say yes to what is not in it, and never no to what is.
#[derive(Default)]
pub(super) struct Sieve(Vec<u64>);

impl Sieve {
    fn places(key: &[u8]) -> [usize; 2] {
        let hash = xxh3_64(key);
        [hash as u32 as usize % SIEVE_BITS, (hash >> 32) as usize % SIEVE_BITS]
    }

    fn insert(&mut self, key: &[u8]) {
        if self.0.is_empty() {
            self.0 = vec![0; SIEVE_BITS / 64];
        }
        for place in Sieve::places(key) {
            self.0[place / 64] |= 1 << (place % 64);
        }
    }

    fn may_have(&self, key: &[u8]) -> bool {
        !self.0.is_empty()
            && Sieve::places(key).iter().all(|place| self.0[place / 64] & (1 << (place % 64)) != 0)
    }

    fn join(&mut self, other: Sieve) {
        if self.0.is_empty() {
            return self.0 = other.0;
        }
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
    }
}

/// What the lists in a directory say of a target: `newest u8 ‖ type ‖ 0x00 ‖ its least patient, if any ‖ 0x00 ‖ id`.
pub(super) struct Located<'a> {
    /// The row is the newest Provenance of it.
    pub(super) is_newest: bool,
    pub(super) resource_type: &'a [u8],
    /// Under whom it stands; empty for one of no patient, and for one that is not there.
    pub(super) home: &'a [u8],
    pub(super) id: &'a [u8],
}

impl Located<'_> {
    fn encode(&self) -> Vec<u8> {
        let newest = [if self.is_newest { NEWEST } else { 0 }];
        [&newest[..], self.resource_type, b"\0", self.home, b"\0", self.id].concat()
    }

    pub(super) fn decode(item: &[u8]) -> io::Result<Located<'_>> {
        let (newest, rest) = item.split_first().ok_or(io::ErrorKind::InvalidData)?;
        let mut parts = rest.splitn(3, |byte| *byte == 0);
        let mut part = || parts.next().ok_or(io::Error::from(io::ErrorKind::InvalidData));
        Ok(Located { is_newest: *newest == NEWEST, resource_type: part()?, home: part()?, id: part()? })
    }
}

/// A Provenance as it was read.
pub(super) struct Found<'a> {
    pub(super) origin: Origin,
    pub(super) id: &'a str,
    pub(super) changed: Instant,
    /// `recorded`, where it is an instant.
    pub(super) recorded: Option<Instant>,
    pub(super) fingerprint: u128,
    pub(super) payload: Payload<'a>,
}

/// What one thread collects.
pub(super) struct Collecting {
    rows: Sorter,
    targets: Sorter,
    sieve: Sieve,
    targeted: BTreeSet<ResourceType>,
    types: Types,
    pub(super) bytes: u64,
}

/// What was collected, of all threads.
#[derive(Default)]
pub(super) struct Collected {
    rows: Vec<Sorted>,
    targets: Vec<Sorted>,
    sieve: Sieve,
    /// Types that are targeted.
    pub(super) targeted: BTreeSet<ResourceType>,
    pub(super) bytes: u64,
}

impl Collecting {
    /// `budget` is in bytes of memory, for rows and targets together.
    pub(super) fn new(scratch: &Path, budget: usize) -> Collecting {
        Collecting {
            rows: Sorter::new(scratch, budget / 2),
            targets: Sorter::new(scratch, budget / 2),
            sieve: Sieve::default(),
            targeted: BTreeSet::new(),
            types: Types::new(),
            bytes: 0,
        }
    }

    pub(super) fn push(&mut self, found: &Found<'_>, belonging: &Belonging) -> io::Result<()> {
        let Found { origin, id, changed, recorded, fingerprint, payload } = *found;
        self.bytes += payload.len();
        let mut value = Vec::new();
        put_origin(&mut value, origin);
        let mut key = Vec::new();
        if !belonging.patients.is_empty() {
            start_key(&mut key, self.types.number(ResourceType::PROVENANCE), id.as_bytes(), HOME);
            put_list(&mut value, &belonging.patients);
            self.targets.push(&key, &value)?;
            value.truncate(ORIGIN);
        }
        value.extend_from_slice(id.as_bytes());
        for target in &belonging.targets {
            let (name, id_of_target) = split_name(target)?;
            let resource_type = parse_type(name)?;
            start_key(&mut key, self.types.number(resource_type), id_of_target, TARGET);
            self.sieve.insert(&key[..key.len() - 2]);
            put_newest_first(&mut key, [recorded.unwrap_or(Instant::MIN), changed], id);
            self.targets.push(&key, &value)?;
            self.targeted.insert(resource_type);
        }
        let row = Row { origin, fingerprint, belongs: 0, changed, flags: 0, lists: &[], payload };
        let mut encoded = Vec::new();
        row.encode(&mut encoded);
        value.clear();
        put_list(&mut value, &belonging.patients);
        put_list(&mut value, &belonging.supporting);
        put_list(&mut value, &belonging.named);
        value.extend_from_slice(&encoded);
        key.clear();
        put_row_name(&mut key, id.as_bytes(), origin);
        key.push(ROW);
        self.rows.push(&key, &value)
    }

    pub(super) fn finish(self, into: &mut Collected) -> io::Result<()> {
        into.rows.push(self.rows.finish()?);
        into.targets.push(self.targets.finish()?);
        into.sieve.join(self.sieve);
        into.targeted.extend(self.targeted);
        into.bytes += self.bytes;
        Ok(())
    }
}

const ORIGIN: usize = 12;

fn put_origin(out: &mut Vec<u8>, origin: Origin) {
    out.extend_from_slice(&origin.unit.to_be_bytes());
    out.extend_from_slice(&origin.line.to_be_bytes());
}

fn take_origin(rest: &mut &[u8]) -> io::Result<Origin> {
    let unit = u32::from_be_bytes(fixed(rest)?);
    Ok(Origin { unit, line: u64::from_be_bytes(fixed(rest)?) })
}

/// `type, id, 0x00, kind`.
fn start_key(key: &mut Vec<u8>, type_number: u8, id: &[u8], kind: u8) {
    key.clear();
    key.push(type_number);
    key.extend_from_slice(id);
    key.extend_from_slice(&[0, kind]);
}

/// `id, 0x00, origin`.
fn put_row_name(key: &mut Vec<u8>, id: &[u8], origin: Origin) {
    key.extend_from_slice(id);
    key.push(0);
    put_origin(key, origin);
}

/// By `recorded`, then by when it changed, then by id, the greatest first.
fn put_newest_first(key: &mut Vec<u8>, moments: [Instant; 2], id: &str) {
    for moment in moments {
        let rising = (moment.nanos() as u64) ^ (1 << 63);
        key.extend_from_slice(&(!rising).to_be_bytes());
    }
    key.extend(id.bytes().map(|byte| !byte));
    key.push(u8::MAX);
}

fn split_name(key: &[u8]) -> io::Result<(&[u8], &[u8])> {
    let end = memchr::memchr(0, key).ok_or(io::ErrorKind::InvalidData)?;
    Ok((&key[..end], &key[end + 1..]))
}

fn parse_type(name: &[u8]) -> io::Result<ResourceType> {
    let name = std::str::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData)?;
    name.parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// What the join works with.
pub(super) struct Join<'a> {
    pub(super) scratch: &'a Path,
    /// Bytes of memory for what it sorts.
    pub(super) budget: usize,
    pub(super) resolved: &'a Resolved,
    pub(super) dead: &'a HashSet<u32>,
    /// The lane of a type's rows that belong to patients, as this generation has it.
    pub(super) lane: &'a dyn Fn(ResourceType) -> io::Result<Option<Arc<LaneFile>>>,
}

/// What becomes of a row.
#[derive(PartialEq, Eq)]
enum Lot {
    Stands,
    /// It is deleted by the lake's own word: whose it was is told.
    Buried,
    LeftOut,
}

impl Join<'_> {
    /// The rows of Provenance as rows of lanes, sorted.
    pub(super) fn run(&self, collected: Collected) -> io::Result<Sorted> {
        let Collected { rows, mut targets, sieve, targeted, .. } = collected;
        // Of the three sorts at most two hold records in memory at a time.
        let sorter = || Sorter::new(self.scratch, self.budget / 2);
        let mut homes = sorter();
        for resource_type in targeted.iter().filter(|of| **of != ResourceType::PROVENANCE) {
            if let Some(lane) = (self.lane)(*resource_type)? {
                find_homes(*resource_type, &lane, &sieve, &mut homes)?;
            }
        }
        drop(sieve);
        targets.push(homes.finish()?);
        let mut located = sorter();
        self.locate(Merged::new(targets)?, &mut located)?;
        let mut sequences = rows;
        sequences.push(located.finish()?);
        let mut out = sorter();
        self.assemble(Merged::new(sequences)?, &mut out)?;
        out.finish()
    }

    fn lot(&self, origin: Origin) -> Lot {
        if self.dead.contains(&origin.unit) {
            return Lot::LeftOut;
        }
        match (self.resolved.losers.contains(origin), self.resolved.buried.contains(origin)) {
            (false, _) => Lot::Stands,
            (true, true) => Lot::Buried,
            (true, false) => Lot::LeftOut,
        }
    }

    /// Brings targets and their homes together, in order of targets.
    fn locate(&self, mut targets: Merged, located: &mut Sorter) -> io::Result<()> {
        let mut target = Vec::new();
        let mut patients = Vec::new();
        let mut has_newest = false;
        let (mut found_key, mut found) = (Vec::new(), Vec::new());
        while let Some((key, mut value)) = targets.next()? {
            let end = 1 + memchr::memchr(0, &key[1..]).ok_or(io::ErrorKind::InvalidData)?;
            if key[..end] != target {
                target = key[..end].to_vec();
                (patients, has_newest) = (Vec::new(), false);
            }
            let origin = take_origin(&mut value)?;
            let lot = if origin == NO_ORIGIN { Lot::Stands } else { self.lot(origin) };
            match (key.get(end + 1), lot) {
                (Some(&HOME), Lot::Stands) => patients = take_list(&mut value)?,
                (Some(&TARGET), lot @ (Lot::Stands | Lot::Buried)) => {
                    let is_newest = lot == Lot::Stands && !std::mem::replace(&mut has_newest, true);
                    found_key.clear();
                    put_row_name(&mut found_key, value, origin);
                    found_key.push(FOUND);
                    found_key.extend_from_slice(&target);
                    found.clear();
                    found.push(u8::from(is_newest));
                    put_list(&mut found, &patients);
                    located.push(&found_key, &found)?;
                }
                (Some(&(HOME | TARGET)), _) => {}
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Ok(())
    }

    /// Brings rows and their targets together and pushes them as rows of lanes.
    fn assemble(&self, mut merged: Merged, out: &mut Sorter) -> io::Result<()> {
        let types = Types::new();
        let mut open: Option<Assembling> = None;
        while let Some((key, mut value)) = merged.next()? {
            let id_end = memchr::memchr(0, key).ok_or(io::ErrorKind::InvalidData)?;
            let name_end = id_end + 1 + ORIGIN;
            let origin = take_origin(&mut key.get(id_end + 1..).unwrap_or_default())?;
            match key.get(name_end..) {
                Some([ROW]) => {
                    open.take().map_or(Ok(()), |row| row.push(&types, out))?;
                    if self.lot(origin) != Lot::LeftOut {
                        let (patients, supporting) = (take_list(&mut value)?, take_list(&mut value)?);
                        let named = take_list(&mut value)?;
                        let (id, row, targets) = (key[..id_end].to_vec(), value.to_vec(), Vec::new());
                        open = Some(Assembling { id, patients, named, supporting, targets, row });
                    }
                }
                Some([FOUND, number, id @ ..]) => {
                    let row = open.as_mut().ok_or(io::ErrorKind::InvalidData)?;
                    row.take_target(types.of(*number)?, id, value)?;
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        open.map_or(Ok(()), |row| row.push(&types, out))
    }
}

/// Stands for rows of lanes, of which it is settled that they stand.
const NO_ORIGIN: Origin = Origin { unit: u32::MAX, line: u64::MAX };

/// Whose the rows of a lane are that may be targeted.
fn find_homes(
    resource_type: ResourceType,
    lane: &LaneFile,
    sieve: &Sieve,
    homes: &mut Sorter,
) -> io::Result<()> {
    let number = Types::new().number(resource_type);
    let (mut key, mut value) = (Vec::new(), Vec::new());
    for block in lane.blocks.iter().filter(|block| block.homes > 0) {
        let directory = lane.directory(block)?;
        for entry in directory.entries.iter().filter(|entry| !entry.is_link()) {
            let patient = patient_of(directory.key(entry));
            let id = directory.key(entry).get(patient.len() + 1..).ok_or(io::ErrorKind::InvalidData)?;
            start_key(&mut key, number, id, HOME);
            if !sieve.may_have(&key[..key.len() - 2]) {
                continue;
            }
            value.clear();
            put_origin(&mut value, NO_ORIGIN);
            if entry.flags & SEVERAL == 0 {
                put_list(&mut value, &[patient.to_vec()]);
            } else {
                let patients = directory.patients(entry)?;
                put_varint(&mut value, patients.len() as u64);
                for patient in patients {
                    put_varint(&mut value, patient.len() as u64);
                    value.extend_from_slice(patient);
                }
            }
            homes.push(&key, &value)?;
        }
    }
    Ok(())
}

/// A Provenance whose targets are coming in.
struct Assembling {
    id: Vec<u8>,
    patients: Vec<Vec<u8>>,
    /// Patients that it names without being about them.
    named: Vec<Vec<u8>>,
    supporting: Vec<Vec<u8>>,
    /// As the directory has them.
    targets: Vec<Vec<u8>>,
    /// Encoded.
    row: Vec<u8>,
}

impl Assembling {
    fn take_target(&mut self, resource_type: ResourceType, id: &[u8], mut found: &[u8]) -> io::Result<()> {
        let is_newest = take(&mut found, 1)?[0] != 0;
        let patients = take_list(&mut found)?;
        // Nothing comes because it is associated with a Provenance.
        if resource_type != ResourceType::PROVENANCE {
            let home = patients.first().map_or(&[][..], Vec::as_slice);
            let resource_type = resource_type.name().as_bytes();
            self.targets.push(Located { is_newest, resource_type, home, id }.encode());
        } else {
            // One step only: whose the other's targets are is not followed, so that it cannot be told.
            self.named.push(Vec::new());
        }
        self.patients.extend(patients);
        Ok(())
    }

    fn push(mut self, types: &Types, out: &mut Sorter) -> io::Result<()> {
        let mut row = Row::decode(&self.row)?;
        self.patients.sort_unstable();
        self.patients.dedup();
        let mut lists = Vec::new();
        put_list(&mut lists, &self.patients);
        row.belongs = xxh3_64(&lists);
        if self.patients.len() > 1 {
            row.flags |= SEVERAL;
        } else {
            lists.clear();
            if self.patients.is_empty() && !self.named.is_empty() {
                row.flags |= SEVERAL;
                put_list(&mut lists, &self.named);
            }
        }
        for (flag, list) in [(REFERENCES, &self.supporting), (TARGETS, &self.targets)] {
            if !list.is_empty() {
                row.flags |= flag;
                put_list(&mut lists, list);
            }
        }
        row.lists = &lists;
        let section = if self.patients.is_empty() { Section::Standalone } else { Section::Compartment };
        let lane = [types.number(ResourceType::PROVENANCE), section_number(section)];
        let (mut key, mut value) = (Vec::new(), Vec::new());
        row_key(&mut key, lane, self.patients.first(), &self.id);
        row.encode(&mut value);
        out.push(&key, &value)?;
        if let Some((least, others)) = self.patients.split_first() {
            Row { flags: 0, lists: &[], payload: Payload::Link(least), ..row }.encode(&mut value);
            for other in others {
                row_key(&mut key, lane, Some(other), &self.id);
                out.push(&key, &value)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sieve_says_yes_to_all_that_is_in_it_and_to_little_else() {
        let mut sieve = Sieve::default();
        assert!(!sieve.may_have(b"x"));
        let key = |n: u32| [&b"k"[..], &n.to_le_bytes()].concat();
        let mut other = Sieve::default();
        (0..5_000).for_each(|n| if n % 2 == 0 { sieve.insert(&key(n)) } else { other.insert(&key(n)) });
        sieve.join(other);
        assert!((0..5_000).all(|n| sieve.may_have(&key(n))));
        let wrong = (5_000..105_000).filter(|n| sieve.may_have(&key(*n))).count();
        assert!(wrong < 10, "{wrong}");
        let mut empty = Sieve::default();
        empty.join(sieve);
        assert!(empty.may_have(&key(1)));
    }

    #[test]
    fn the_newest_comes_first() {
        let key = |recorded: i64, changed: i64, id: &str| {
            let mut key = Vec::new();
            put_newest_first(&mut key, [Instant::from_nanos(recorded), Instant::from_nanos(changed)], id);
            key
        };
        let rising = [
            key(i64::MIN, 9, "z"),
            key(-1, 9, "z"),
            key(0, -9, "z"),
            key(0, 1, "a"),
            key(0, 1, "ab"),
            key(0, 1, "b"),
            key(0, 2, "a"),
            key(1, 0, ""),
        ];
        assert!(rising.iter().rev().is_sorted());
    }

    #[test]
    fn what_a_directory_says_of_a_target_comes_back() {
        for (is_newest, home) in [(true, &b"p1"[..]), (false, b"")] {
            let item = Located { is_newest, resource_type: b"Observation", home, id: b"o.1" }.encode();
            let back = Located::decode(&item).unwrap();
            assert_eq!(
                (back.is_newest, back.resource_type, back.home, back.id),
                (is_newest, &b"Observation"[..], home, &b"o.1"[..])
            );
        }
        assert!(Located::decode(b"").is_err() && Located::decode(b"\x01Observation\0p").is_err());
    }
}
