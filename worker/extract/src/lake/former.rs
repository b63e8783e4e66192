//! What the generation before had, lane by lane in order of keys, beside the rows of the one that is being made.
//!
//! A row that stands under the same key with the same hash is the same row, of the same patients: of most rows these
//! follow from the bytes, since the settings are the same too, and of the others they are in the hash. Rows that were absent because a part of the lake could not be read stand among the others. Memory: one
//! directory.

use std::cmp::Ordering;
use std::io;
use std::sync::Arc;

use flatbed_types::position::patient_of;
use flatbed_types::{Instant, Section};

use super::directory::{Directory, Entry, SEVERAL};
use super::gone::{Gone, GoneReader};
use super::lane_file::LaneFile;

/// What is known of a row of the generation before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) since: Instant,
    pub(super) hash: u64,
    /// Only a link stood there: the row itself stood under a lesser patient.
    pub(super) is_link: bool,
}

struct Current {
    directory: Directory,
    hashes: Vec<u64>,
    at: usize,
}

/// A lane of the generation before.
pub(super) struct FormerLane {
    section: Section,
    lane: Option<Arc<LaneFile>>,
    next_block: usize,
    current: Option<Current>,
    absent: GoneReader,
    next_absent: Option<Gone>,
}

impl FormerLane {
    /// Rows of `lane` and of `absent`, which have no key in common.
    pub(super) fn new(
        section: Section,
        lane: Option<Arc<LaneFile>>,
        mut absent: GoneReader,
    ) -> io::Result<FormerLane> {
        let next_absent = absent.next()?;
        Ok(FormerLane { section, lane, next_block: 0, current: None, absent, next_absent })
    }

    /// Goes on to a key, which grows from call to call: gives out what stood before it, and what is known of the row
    /// that stood under it.
    pub(super) fn find(
        &mut self,
        key: &[u8],
        gone: &mut dyn FnMut(Gone) -> io::Result<()>,
    ) -> io::Result<Option<Known>> {
        let absent = self.find_absent(Some(key), gone)?;
        let lane = self.find_in_lane(Some(key), gone)?;
        Ok(lane.or(absent))
    }

    /// Gives out what is left.
    pub(super) fn finish(mut self, gone: &mut dyn FnMut(Gone) -> io::Result<()>) -> io::Result<()> {
        self.find_absent(None, gone)?;
        self.find_in_lane(None, gone)?;
        Ok(())
    }

    fn find_absent(
        &mut self,
        key: Option<&[u8]>,
        gone: &mut dyn FnMut(Gone) -> io::Result<()>,
    ) -> io::Result<Option<Known>> {
        while let Some(absent) = &self.next_absent {
            let order = key.map_or(Ordering::Less, |key| absent.key.as_slice().cmp(key));
            if order == Ordering::Greater {
                return Ok(None);
            }
            let known = Known { since: absent.moment, hash: absent.hash, is_link: absent.is_link };
            let next = self.absent.next()?;
            let passed = std::mem::replace(&mut self.next_absent, next);
            if order == Ordering::Equal {
                return Ok(Some(known));
            }
            passed.map_or(Ok(()), &mut *gone)?;
        }
        Ok(None)
    }

    fn find_in_lane(
        &mut self,
        key: Option<&[u8]>,
        gone: &mut dyn FnMut(Gone) -> io::Result<()>,
    ) -> io::Result<Option<Known>> {
        while self.enter()? {
            let Some(current) = &mut self.current else { break };
            let (directory, at) = (&current.directory, current.at);
            let entry = &directory.entries[at];
            let order = key.map_or(Ordering::Less, |key| directory.key(entry).cmp(key));
            if order == Ordering::Greater {
                return Ok(None);
            }
            current.at += 1;
            let known =
                Known { since: entry.changed.known, hash: current.hashes[at], is_link: entry.is_link() };
            if order == Ordering::Equal {
                return Ok(Some(known));
            }
            gone(gone_row(self.section, directory, entry, known)?)?;
        }
        Ok(None)
    }

    /// Goes to the next entry; false after the last.
    fn enter(&mut self) -> io::Result<bool> {
        loop {
            if self.current.as_ref().is_some_and(|current| current.at < current.directory.entries.len()) {
                return Ok(true);
            }
            let Some(lane) = &self.lane else { return Ok(false) };
            let Some(block) = lane.blocks.get(self.next_block) else { return Ok(false) };
            self.next_block += 1;
            let (directory, hashes) = (lane.directory(block)?, lane.hashes(block)?);
            if directory.entries.len() != hashes.len() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "damaged lane file: hashes of a block",
                ));
            }
            self.current = Some(Current { directory, hashes, at: 0 });
        }
    }
}

fn gone_row(section: Section, directory: &Directory, entry: &Entry, known: Known) -> io::Result<Gone> {
    let key = directory.key(entry);
    let patients = if entry.is_link() {
        None
    } else if section == Section::Standalone {
        // A list there is of patients that the row only names.
        Some(Vec::new())
    } else if entry.flags & SEVERAL != 0 {
        Some(directory.patients(entry)?.into_iter().map(<[u8]>::to_vec).collect())
    } else {
        Some(vec![patient_of(key).to_vec()])
    };
    let (moment, hash) = (known.since, known.hash);
    Ok(Gone { key: key.to_vec(), moment, hash, is_link: entry.is_link(), patients })
}
