//! Records of the two external sorts that every build has.
//!
//! Rows: sorted into lanes. `type, section, key in the lane` → where the row comes from, what the directory
//! needs of it, and its bytes (or where in the spool they are, or under which patient they stand).
//!
//! Rows of Provenance are sorted apart until their patients are known (`provenance`).
//!
//! Identities: sorted to find duplicates. `type, id, 0x00, then newest first` → fingerprint of the bytes; nothing for
//! a deletion that the lake carries.

use std::io;

use flatbed_types::{Instant, ResourceType, Section};

use super::disk::Spooled;
use super::lane_file::fixed;
use crate::keylist::{put_varint, take, take_varint};

/// Where a row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Origin {
    /// The reading of a file: twice its number, and one more for the second try.
    pub(super) unit: u32,
    /// The line, from 1.
    pub(super) line: u64,
}

impl Origin {
    /// The number of the file in the listing.
    pub(super) fn file(self) -> usize {
        self.unit as usize / 2
    }
}

/// The bytes of a row.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    Line(&'a [u8]),
    /// In the spool of this collector.
    Spooled(u32, Spooled),
    /// Under this patient, the least of the row.
    Link(&'a [u8]),
}

impl Payload<'_> {
    /// Bytes of the row that stand here.
    pub(super) fn len(&self) -> u64 {
        match self {
            Payload::Line(line) => line.len() as u64,
            Payload::Spooled(_, place) => place.len,
            Payload::Link(_) => 0,
        }
    }
}

/// A row as it is sorted. Holds patient data: no `Debug`.
pub(super) struct Row<'a> {
    pub(super) origin: Origin,
    pub(super) fingerprint: u128,
    /// Hash of the patients, where they do not follow from the row's bytes; else 0.
    pub(super) belongs: u64,
    pub(super) changed: Instant,
    /// Which lists there are, as in the directory.
    pub(super) flags: u8,
    pub(super) lists: &'a [u8],
    pub(super) payload: Payload<'a>,
}

const LINE: u8 = 0;
const SPOOLED: u8 = 1;
const LINK: u8 = 2;

impl Row<'_> {
    /// What the next generation knows the row by: it is the same row as long as its bytes and its patients are.
    pub(super) fn hash(&self) -> u64 {
        self.fingerprint as u64 ^ self.belongs
    }

    /// The value of the sort record, into a buffer that is emptied before.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.origin.unit.to_le_bytes());
        out.extend_from_slice(&self.origin.line.to_le_bytes());
        out.extend_from_slice(&self.fingerprint.to_le_bytes());
        put_varint(out, self.belongs);
        out.extend_from_slice(&self.changed.nanos().to_le_bytes());
        out.push(self.flags);
        put_varint(out, self.lists.len() as u64);
        out.extend_from_slice(self.lists);
        match self.payload {
            Payload::Line(line) => {
                out.push(LINE);
                out.extend_from_slice(line);
            }
            Payload::Spooled(spool, place) => {
                out.push(SPOOLED);
                out.extend_from_slice(&spool.to_le_bytes());
                out.extend_from_slice(&place.offset.to_le_bytes());
                out.extend_from_slice(&place.len.to_le_bytes());
            }
            Payload::Link(home) => {
                out.push(LINK);
                out.extend_from_slice(home);
            }
        }
    }

    /// Reads the value of a sort record.
    pub(super) fn decode(mut rest: &[u8]) -> io::Result<Row<'_>> {
        let unit = u32::from_le_bytes(fixed(&mut rest)?);
        let line = u64::from_le_bytes(fixed(&mut rest)?);
        let fingerprint = u128::from_le_bytes(fixed(&mut rest)?);
        let belongs = take_varint(&mut rest)?;
        let changed = Instant::from_nanos(i64::from_le_bytes(fixed(&mut rest)?));
        let flags = take(&mut rest, 1)?[0];
        let lists_len = take_varint(&mut rest)? as usize;
        let lists = take(&mut rest, lists_len)?;
        let payload = match take(&mut rest, 1)?[0] {
            LINE => Payload::Line(rest),
            SPOOLED => {
                let spool = u32::from_le_bytes(fixed(&mut rest)?);
                let offset = u64::from_le_bytes(fixed(&mut rest)?);
                Payload::Spooled(spool, Spooled { offset, len: u64::from_le_bytes(fixed(&mut rest)?) })
            }
            _ => Payload::Link(rest),
        };
        Ok(Row { origin: Origin { unit, line }, fingerprint, belongs, changed, flags, lists, payload })
    }
}

/// Resource types as one byte, in order of their names.
pub(super) struct Types(Vec<ResourceType>);

impl Types {
    pub(super) fn new() -> Types {
        Types(ResourceType::all().collect())
    }

    pub(super) fn number(&self, resource_type: ResourceType) -> u8 {
        // Every type is in the list of all types, which is sorted.
        self.0.partition_point(|other| *other < resource_type) as u8
    }

    pub(super) fn of(&self, number: u8) -> io::Result<ResourceType> {
        self.0.get(usize::from(number)).copied().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// Section as one byte.
pub(super) fn section_number(section: Section) -> u8 {
    u8::from(section == Section::Standalone)
}

/// The key of an identity, into a buffer that is emptied before: equal (type, id) lie together, the one that
/// wins first.
pub(super) fn identity_key(
    out: &mut Vec<u8>,
    type_number: u8,
    id: &str,
    changed: Instant,
    version: Option<&str>,
    origin: Origin,
) {
    put_identity(out, type_number, id, changed, origin, |out| put_version(out, version));
}

/// The same for a deletion: before rows that state the same moment, for what is deleted was there.
pub(super) fn deletion_key(out: &mut Vec<u8>, type_number: u8, id: &str, deleted: Instant, origin: Origin) {
    /// Behind all versions.
    const DELETION: u8 = 3;
    put_identity(out, type_number, id, deleted, origin, |out| out.push(DELETION));
}

fn put_identity(
    out: &mut Vec<u8>,
    type_number: u8,
    id: &str,
    changed: Instant,
    origin: Origin,
    version: impl FnOnce(&mut Vec<u8>),
) {
    out.clear();
    out.push(type_number);
    out.extend_from_slice(id.as_bytes());
    out.push(0);
    let newest_first = out.len();
    out.extend_from_slice(&((changed.nanos() as u64) ^ (1 << 63)).to_be_bytes());
    version(out);
    out.extend_from_slice(&origin.unit.to_be_bytes());
    out.extend_from_slice(&origin.line.to_be_bytes());
    for byte in &mut out[newest_first..] {
        *byte = !*byte;
    }
}

/// Versions in order: none, then texts, then numbers. No encoding is the start of another one.
fn put_version(out: &mut Vec<u8>, version: Option<&str>) {
    /// FHIR ids have 64 characters; what is longer is compared by its start.
    const MAX_VERSION: usize = 64;
    match version {
        None => out.push(0),
        Some(number) if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => {
            let digits = number.trim_start_matches('0').as_bytes();
            let kept = digits.len().min(MAX_VERSION);
            out.push(2);
            out.push(kept as u8);
            out.extend_from_slice(&digits[..kept]);
        }
        Some(text) => {
            out.push(1);
            let kept = text.len().min(MAX_VERSION);
            out.extend(text.as_bytes()[..kept].iter().map(|byte| (*byte).max(1)));
            out.push(0);
        }
    }
}

/// An identity's key, taken apart.
pub(super) struct Identified<'a> {
    pub(super) type_number: u8,
    pub(super) id: &'a [u8],
    pub(super) changed: Instant,
    pub(super) origin: Origin,
}

/// The parts of an identity's key.
pub(super) fn identity_parts(key: &[u8]) -> io::Result<Identified<'_>> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let (number, rest) = key.split_first().ok_or_else(invalid)?;
    let end = memchr::memchr(0, rest).ok_or_else(invalid)?;
    let mut time = &rest[end + 1..];
    let time = !u64::from_be_bytes(fixed(&mut time)?) ^ (1 << 63);
    let tail_at = rest.len().checked_sub(12).ok_or_else(invalid)?;
    let mut tail = &rest[tail_at..];
    let unit = !u32::from_be_bytes(fixed(&mut tail)?);
    let line = !u64::from_be_bytes(fixed(&mut tail)?);
    let changed = Instant::from_nanos(time as i64);
    Ok(Identified { type_number: *number, id: &rest[..end], changed, origin: Origin { unit, line } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_winner_comes_first() {
        let key = |changed: i64, version: Option<&str>, unit: u32, line: u64| {
            let mut out = Vec::new();
            identity_key(&mut out, 3, "id", Instant::from_nanos(changed), version, Origin { unit, line });
            out
        };
        // From the least to the winner.
        let rising = [
            key(-5, Some("9"), 9, 9),
            key(1, None, 9, 9),
            key(1, Some("a"), 9, 9),
            key(1, Some("ab"), 9, 9),
            key(1, Some("b"), 0, 0),
            key(1, Some("2"), 9, 9),
            key(1, Some("010"), 9, 9),
            key(1, Some("11"), 0, 7),
            key(1, Some("11"), 0, 8),
            key(1, Some("11"), 1, 1),
            key(2, None, 0, 0),
        ];
        let mut deletion = Vec::new();
        deletion_key(&mut deletion, 3, "id", Instant::from_nanos(1), Origin { unit: 0, line: 0 });
        assert!(deletion < rising[9] && deletion > rising[10], "it wins over rows of its moment");
        assert!(rising.iter().rev().is_sorted());
        let Identified { type_number, id, changed, origin } = identity_parts(&rising[7]).unwrap();
        assert_eq!((type_number, id, origin), (3, &b"id"[..], Origin { unit: 0, line: 7 }));
        assert_eq!(changed, Instant::from_nanos(1));
        assert_eq!(identity_parts(&rising[0]).unwrap().changed, Instant::from_nanos(-5));
    }

    #[test]
    fn types_are_numbered_in_order() {
        let types = Types::new();
        for resource_type in ResourceType::all() {
            assert_eq!(types.of(types.number(resource_type)).unwrap(), resource_type);
        }
        assert!(types.of(255).is_err());
    }
}
