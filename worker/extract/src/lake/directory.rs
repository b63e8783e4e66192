//! The directory of a block: what is known of each of its rows without looking at the rows.
//!
//! ```text
//! entry : varint shared key bytes, varint rest, rest bytes      (against the entry before)
//!         flags u8, varint zigzag(lastUpdated - that of the entry before),
//!         [varint zigzag(known since - lastUpdated)]
//!         home row : varint line length (without \n), [list of patients], [list of references], [list of targets]
//!         link     : varint len, least patient of the row
//! list  : varint count, (varint len, bytes)*
//! ```

use std::io;
use std::ops::Range;

use flatbed_types::Instant;

use crate::keylist::{put_varint, take, take_varint};
use crate::source::Change;

/// The entry is a link: the row's bytes stand under its least patient.
pub(super) const LINK: u8 = 1;
/// The row has several patients, which are listed; or it has none and names some, which are listed.
pub(super) const SEVERAL: u8 = 2;
/// The row refers to supporting resources, which are listed.
pub(super) const REFERENCES: u8 = 4;
/// The row is known since another moment than it states, which follows.
const LATE: u8 = 16;
/// An attachment of the row has a relative reference to a Binary for its URL. (8 is a flag of blocks.)
pub(super) const NAMES_BINARY: u8 = 32;
/// The row is a Provenance, and what it targets is listed (`provenance`).
pub(super) const TARGETS: u8 = 64;

/// Appends a list of byte strings.
pub(super) fn put_list(out: &mut Vec<u8>, items: &[Vec<u8>]) {
    put_varint(out, items.len() as u64);
    for item in items {
        put_varint(out, item.len() as u64);
        out.extend_from_slice(item);
    }
}

/// Writes the entries of one block.
#[derive(Default)]
pub(super) struct DirectoryWriter {
    bytes: Vec<u8>,
    last_key: Vec<u8>,
    last_changed: i64,
}

impl DirectoryWriter {
    /// A home row; `lists` are its lists as `flags` announces them, encoded.
    pub(super) fn home(&mut self, key: &[u8], changed: Change, flags: u8, len: u64, lists: &[u8]) {
        self.start(key, changed, flags);
        put_varint(&mut self.bytes, len);
        self.bytes.extend_from_slice(lists);
    }

    /// A link to the row under its least patient.
    pub(super) fn link(&mut self, key: &[u8], changed: Change, home: &[u8]) {
        self.start(key, changed, LINK);
        put_varint(&mut self.bytes, home.len() as u64);
        self.bytes.extend_from_slice(home);
    }

    fn start(&mut self, key: &[u8], changed: Change, flags: u8) {
        let Change { stated, known } = changed;
        let shared = self.last_key.iter().zip(key).take_while(|(a, b)| a == b).count();
        put_varint(&mut self.bytes, shared as u64);
        put_varint(&mut self.bytes, (key.len() - shared) as u64);
        self.bytes.extend_from_slice(&key[shared..]);
        self.bytes.push(if known == stated { flags } else { flags | LATE });
        put_difference(&mut self.bytes, self.last_changed, stated);
        if known != stated {
            put_difference(&mut self.bytes, stated.nanos(), known);
        }
        self.last_changed = stated.nanos();
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The encoded entries; the writer starts anew.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(self).bytes
    }
}

fn put_difference(out: &mut Vec<u8>, from: i64, to: Instant) {
    let delta = to.nanos().wrapping_sub(from);
    put_varint(out, ((delta << 1) ^ (delta >> 63)) as u64);
}

fn take_difference(rest: &mut &[u8], from: i64) -> io::Result<i64> {
    let zigzag = take_varint(rest)?;
    Ok(from.wrapping_add((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64)))
}

/// One entry, in ranges of its directory.
pub(super) struct Entry {
    key: Range<usize>,
    pub(super) changed: Change,
    pub(super) flags: u8,
    /// Where its line starts in the plain bytes of the block.
    pub(super) start: u64,
    /// Length of its line without `\n`; 0 for a link.
    pub(super) len: u64,
    home: Range<usize>,
    patients: Range<usize>,
    references: Range<usize>,
    targets: Range<usize>,
}

impl Entry {
    pub(super) fn is_link(&self) -> bool {
        self.flags & LINK != 0
    }

    /// Its bytes with `\n` in the plain bytes of a block that is in memory.
    pub(super) fn span(&self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize + 1
    }
}

/// A directory in memory.
pub(super) struct Directory {
    bytes: Vec<u8>,
    keys: Vec<u8>,
    pub(super) entries: Vec<Entry>,
}

impl Directory {
    pub(super) fn parse(bytes: Vec<u8>) -> io::Result<Directory> {
        let mut keys = Vec::new();
        let mut entries: Vec<Entry> = Vec::new();
        let mut stated = 0_i64;
        let mut start = 0;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let shared = take_varint(&mut rest)? as usize;
            let len = take_varint(&mut rest)? as usize;
            let tail = take(&mut rest, len)?;
            let before = entries.last().map_or(0..0, |entry| entry.key.clone());
            if shared > before.len() {
                return Err(damaged());
            }
            let key_at = keys.len();
            keys.extend_from_within(before.start..before.start + shared);
            keys.extend_from_slice(tail);
            let flags = take(&mut rest, 1)?[0];
            stated = take_difference(&mut rest, stated)?;
            let known = if flags & LATE == 0 { stated } else { take_difference(&mut rest, stated)? };
            let len_or_home = take_varint(&mut rest)?;
            let mut entry = Entry {
                key: key_at..keys.len(),
                changed: Change { stated: Instant::from_nanos(stated), known: Instant::from_nanos(known) },
                flags,
                start,
                len: 0,
                home: 0..0,
                patients: 0..0,
                references: 0..0,
                targets: 0..0,
            };
            let offset = |rest: &[u8]| bytes.len() - rest.len();
            if entry.is_link() {
                let at = offset(rest);
                take(&mut rest, len_or_home as usize)?;
                entry.home = at..offset(rest);
            } else {
                entry.len = len_or_home;
                start += len_or_home + 1;
                for (flag, list) in [
                    (SEVERAL, &mut entry.patients),
                    (REFERENCES, &mut entry.references),
                    (TARGETS, &mut entry.targets),
                ] {
                    if flags & flag != 0 {
                        let at = offset(rest);
                        skip_list(&mut rest)?;
                        *list = at..offset(rest);
                    }
                }
            }
            entries.push(entry);
        }
        Ok(Directory { bytes, keys, entries })
    }

    pub(super) fn key(&self, entry: &Entry) -> &[u8] {
        &self.keys[entry.key.clone()]
    }

    /// The least patient of the row that a link stands for.
    pub(super) fn home(&self, entry: &Entry) -> &[u8] {
        &self.bytes[entry.home.clone()]
    }

    /// The patients of a home row with several; empty where it has only the one in its key.
    pub(super) fn patients(&self, entry: &Entry) -> io::Result<Vec<&[u8]>> {
        self.list(entry.patients.clone())
    }

    /// The supporting resources that a home row refers to.
    pub(super) fn references(&self, entry: &Entry) -> io::Result<Vec<&[u8]>> {
        self.list(entry.references.clone())
    }

    /// What a home row targets, as `provenance` writes it.
    pub(super) fn targets(&self, entry: &Entry) -> io::Result<Vec<&[u8]>> {
        self.list(entry.targets.clone())
    }

    fn list(&self, range: Range<usize>) -> io::Result<Vec<&[u8]>> {
        let mut items = Vec::new();
        let mut rest = &self.bytes[range];
        if rest.is_empty() {
            return Ok(items);
        }
        for _ in 0..take_varint(&mut rest)? {
            let len = take_varint(&mut rest)? as usize;
            items.push(take(&mut rest, len)?);
        }
        Ok(items)
    }

    /// The entry with this key.
    pub(super) fn find(&self, key: &[u8]) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|entry| self.key(entry).cmp(key)).ok()?;
        self.entries.get(at)
    }
}

fn skip_list(rest: &mut &[u8]) -> io::Result<()> {
    for _ in 0..take_varint(rest)? {
        let len = take_varint(rest)? as usize;
        take(rest, len)?;
    }
    Ok(())
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "damaged block directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_and_damage_is_an_error() {
        let mut writer = DirectoryWriter::default();
        let mut lists = Vec::new();
        put_list(&mut lists, &[b"a".to_vec(), b"b".to_vec()]);
        put_list(&mut lists, &[b"Device\0d".to_vec()]);
        writer.home(b"a\0one", Instant::from_nanos(i64::MAX).into(), SEVERAL | REFERENCES, 10, &lists);
        let late = Change { stated: Instant::from_nanos(i64::MIN), known: Instant::from_nanos(i64::MAX) };
        writer.link(b"a\0two", late, b"A");
        writer.home(b"b\0one", Instant::from_millis(7).into(), 0, 5, &[]);
        let bytes = writer.take();
        let directory = Directory::parse(bytes.clone()).unwrap();
        let [first, link, last] = directory.entries.as_slice() else { panic!("three entries") };
        assert_eq!(directory.key(first), b"a\0one");
        assert_eq!(first.changed, Instant::from_nanos(i64::MAX).into());
        assert_eq!(directory.patients(first).unwrap(), [b"a", b"b"]);
        assert_eq!(directory.references(first).unwrap(), [b"Device\0d"]);
        assert!(link.is_link() && directory.home(link) == b"A" && link.changed == late);
        assert_eq!((last.start, last.len, last.span()), (11, 5, 11..17));
        assert!(directory.patients(last).unwrap().is_empty());
        assert_eq!(directory.find(b"a\0two").unwrap().changed, link.changed);
        assert!(directory.find(b"a\0twp").is_none());
        let complete = [0, bytes.len()];
        for cut in 1..bytes.len() {
            if let Ok(part) = Directory::parse(bytes[..cut].to_vec()) {
                assert!(part.entries.len() < 3 && !complete.contains(&cut));
            }
        }
    }
}
