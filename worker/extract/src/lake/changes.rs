//! What changes from one generation to the next, noted while the rows are put into order, and the moments that go
//! with it. What becomes of it is the business of `history`.
//!
//! The rule (`decisions.md` 11): whoever has an export of an earlier generation has it with a transaction time of at
//! most [`Moments::seen`], and asks for what is known since later. So everything that this generation has and the one
//! before had not, or had otherwise, is known since later than that: since the moment that it states, where that is
//! later, else since [`Moments::late`].

use std::io;
use std::path::Path;

use flatbed_types::{Instant, ResourceType, Section};

use super::directory::put_list;
use super::gone::{Gone, take_list};
use super::lane_file::fixed;
use super::record::{Types, section_number};
use crate::sort::{Sorted, Sorter};

/// How far ahead of the transaction time a `lastUpdated` is still believed: clocks differ, and local times are written
/// as if they were UTC. A row that states more would be in every increment until then.
const AHEAD_MILLIS: i64 = 86_400_000;
/// Memory for what changed before it goes to scratch files.
const BUDGET: usize = 8 << 20;

/// The moments that decide since when something is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moments {
    /// No export of an earlier generation has a later transaction time. `None` where there is none before.
    pub(super) seen: Option<Instant>,
    /// The transaction time of this generation.
    pub(super) time: Instant,
}

impl Moments {
    /// Since when something is known that came late, or does not say when.
    pub(super) fn late(&self) -> Instant {
        let next = |seen: Instant| Instant::from_nanos(seen.nanos().saturating_add(1));
        self.seen.map_or(self.time, |seen| self.time.max(next(seen)))
    }

    /// Since when something is known that is new in this generation.
    pub(super) fn known(&self, stated: Instant) -> Instant {
        let came_late = self.seen.is_some_and(|seen| stated <= seen);
        if came_late || stated > self.time.plus_millis(AHEAD_MILLIS) { self.late() } else { stated }
    }
}

/// One thing that was noted of an id. The order counts: the first decides.
pub(super) enum Note {
    /// A row stands in a place where none stood.
    Present,
    /// A row of this section stands no more where it stood.
    Gone(Section, Gone),
    /// The lake says that it was deleted then.
    Deleted(Instant),
    /// It would be there but for that; it has these patients.
    Buried(Vec<Vec<u8>>),
}

const PRESENT: u8 = 1;
const GONE: u8 = 2;
const DELETED: u8 = 3;
const BURIED: u8 = 4;

/// Takes notes. Memory is bounded.
pub(super) struct Changes {
    notes: Sorter,
    types: Types,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Changes {
    pub(super) fn new(scratch: &Path) -> Changes {
        let notes = Sorter::new(scratch, BUDGET);
        Changes { notes, types: Types::new(), key: Vec::new(), value: Vec::new() }
    }

    pub(super) fn note(&mut self, resource_type: ResourceType, id: &[u8], note: Note) -> io::Result<()> {
        self.key.clear();
        self.value.clear();
        self.key.push(self.types.number(resource_type));
        self.key.extend_from_slice(id);
        self.key.push(0);
        match note {
            Note::Present => self.key.push(PRESENT),
            Note::Gone(section, gone) => {
                self.key.extend_from_slice(&[GONE, section_number(section)]);
                self.key.extend_from_slice(&gone.key);
                gone.encode(&mut self.value);
            }
            Note::Deleted(moment) => {
                self.key.push(DELETED);
                self.value.extend_from_slice(&moment.nanos().to_le_bytes());
            }
            Note::Buried(patients) => {
                self.key.push(BURIED);
                put_list(&mut self.value, &patients);
            }
        }
        self.notes.push(&self.key, &self.value)
    }

    pub(super) fn finish(self) -> io::Result<Notes> {
        Ok(Notes { sorted: self.notes.finish()?, types: self.types, next: None })
    }
}

/// What was noted of one id.
#[derive(Default)]
pub(super) struct Noted {
    pub(super) id: Vec<u8>,
    pub(super) is_present: bool,
    pub(super) gone: Vec<(Section, Gone)>,
    pub(super) deleted: Option<Instant>,
    pub(super) buried: Option<Vec<Vec<u8>>>,
}

/// All notes, by type and id.
pub(super) struct Notes {
    sorted: Sorted,
    types: Types,
    next: Option<(ResourceType, Vec<u8>, Note)>,
}

impl Notes {
    /// The next id of a type. Types come in order.
    pub(super) fn next_of(&mut self, resource_type: ResourceType) -> io::Result<Option<Noted>> {
        let mut noted: Option<Noted> = None;
        loop {
            if self.next.is_none() {
                self.next = self.read()?;
            }
            let Some((kind, id, _)) = &self.next else { return Ok(noted) };
            if *kind != resource_type || noted.as_ref().is_some_and(|noted| noted.id != *id) {
                return Ok(noted);
            }
            let Some((_, id, note)) = self.next.take() else { return Ok(noted) };
            let noted = noted.get_or_insert_with(|| Noted { id, ..Noted::default() });
            match note {
                Note::Present => noted.is_present = true,
                Note::Gone(section, gone) => noted.gone.push((section, gone)),
                Note::Deleted(moment) => noted.deleted = Some(moment),
                Note::Buried(patients) => noted.buried = Some(patients),
            }
        }
    }

    fn read(&mut self) -> io::Result<Option<(ResourceType, Vec<u8>, Note)>> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let Some((key, mut value)) = self.sorted.next()? else { return Ok(None) };
        let (number, rest) = key.split_first().ok_or_else(invalid)?;
        let end = memchr::memchr(0, rest).ok_or_else(invalid)?;
        let (id, kind) = (rest[..end].to_vec(), &rest[end + 1..]);
        let note = match kind {
            [PRESENT] => Note::Present,
            [GONE, section, key @ ..] => {
                let section = if *section == 0 { Section::Compartment } else { Section::Standalone };
                Note::Gone(section, Gone::decode(key.to_vec(), value)?)
            }
            [DELETED] => Note::Deleted(Instant::from_nanos(i64::from_le_bytes(fixed(&mut value)?))),
            [BURIED] => Note::Buried(take_list(&mut value)?),
            _ => return Err(invalid()),
        };
        Ok(Some((self.types.of(*number)?, id, note)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_known_since_later_than_any_export_before() {
        let at = Instant::from_millis;
        let day = AHEAD_MILLIS;
        let first = Moments { seen: None, time: at(1_000) };
        for (stated, known) in [(0, 0), (1_000, 1_000), (1_000 + day, 1_000 + day), (1_001 + day, 1_000)] {
            assert_eq!(first.known(at(stated)), at(known), "{stated}");
        }
        let later = Moments { seen: Some(at(1_000)), time: at(3_000) };
        for (stated, known) in
            [(0, 3_000), (1_000, 3_000), (1_001, 1_001), (3_000 + day, 3_000 + day), (3_001 + day, 3_000)]
        {
            assert_eq!(later.known(at(stated)), at(known), "{stated}");
        }
        // A clock that stands still or went back.
        for time in [1_000, 500] {
            let stuck = Moments { seen: Some(at(1_000)), time: at(time) };
            assert_eq!(stuck.known(at(0)), Instant::from_nanos(at(1_000).nanos() + 1));
        }
    }
}
