//! Immutable sorted lists of keys, of any size: rosters of patients, keys of supporting resources.
//!
//! A list is one object: zstd blocks of sorted keys, then an index of the blocks' first keys, then a footer. It
//! is read by blocks, so that a task of a national export touches only the slice of its range.
//!
//! ```text
//! block*  : zstd( (varint shared, varint rest, rest bytes)* )      keys, prefix-coded, about 64 KiB plain
//! index   : zstd( (varint len, first key, varint offset, varint stored length, varint keys)* )
//! footer  : index offset u64le, index stored length u32le, keys u64le, magic "FBKL0001"
//! ```

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::sort::Sorter;

const MAGIC: &[u8; 8] = b"FBKL0001";
const FOOTER: usize = 8 + 4 + 8 + 8;
/// Plain bytes of a block.
const BLOCK: usize = 64 << 10;
/// Largest index that is believed: 131,072 blocks of 64 KiB hold 8 GiB of keys.
const MAX_INDEX: usize = 64 << 20;

/// Where the bytes of a list are. Reads block.
pub trait BlockRead: Send + Sync {
    /// Size of the whole object.
    fn size(&self) -> u64;
    /// Exactly the bytes `[offset, offset + len)`.
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;
}

impl BlockRead for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let start = usize::try_from(offset).map_err(|_| damaged("offset"))?;
        let end = start.checked_add(len).ok_or_else(|| damaged("length"))?;
        self.get(start..end).map(<[u8]>::to_vec).ok_or_else(|| damaged("range"))
    }
}

impl BlockRead for std::fs::File {
    fn size(&self) -> u64 {
        // A file of which nothing is known is no list, which opening it finds out.
        self.metadata().map_or(0, |meta| meta.len())
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        std::os::unix::fs::FileExt::read_exact_at(self, &mut bytes, offset)?;
        Ok(bytes)
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("damaged key list: {what}"))
}

/// The keys of a block, decoded.
type Block = Arc<Vec<Vec<u8>>>;

struct BlockEntry {
    first: Vec<u8>,
    offset: u64,
    stored: usize,
    keys: u64,
}

/// A list opened for reading. Holds its index and two blocks in memory, whatever its size.
pub struct KeyList {
    bytes: Box<dyn BlockRead>,
    blocks: Vec<BlockEntry>,
    len: u64,
    cache: Mutex<Vec<(usize, Block)>>,
}

impl KeyList {
    /// Opens a list; reads its footer and index.
    pub fn open(bytes: Box<dyn BlockRead>) -> io::Result<KeyList> {
        let size = bytes.size();
        let footer_at = size.checked_sub(FOOTER as u64).ok_or_else(|| damaged("too short"))?;
        let footer = bytes.read_at(footer_at, FOOTER)?;
        if footer.len() != FOOTER || &footer[20..] != MAGIC {
            return Err(damaged("footer"));
        }
        let word = |at: usize| u64::from_le_bytes(footer[at..at + 8].try_into().unwrap_or_default());
        let index_at = word(0);
        let index_len = u32::from_le_bytes(footer[8..12].try_into().unwrap_or_default()) as usize;
        let index = zstd::bulk::decompress(&bytes.read_at(index_at, index_len)?, MAX_INDEX)?;
        let mut blocks = Vec::new();
        let mut rest = index.as_slice();
        while !rest.is_empty() {
            let len = take_varint(&mut rest)? as usize;
            let first = take(&mut rest, len)?.to_vec();
            let offset = take_varint(&mut rest)?;
            let stored = take_varint(&mut rest)? as usize;
            let keys = take_varint(&mut rest)?;
            blocks.push(BlockEntry { first, offset, stored, keys });
        }
        Ok(KeyList { bytes, blocks, len: word(12), cache: Mutex::new(Vec::new()) })
    }

    /// A list of these keys in memory, in any order, repeats allowed.
    pub fn from_keys<K: Into<Vec<u8>>>(keys: impl IntoIterator<Item = K>) -> io::Result<KeyList> {
        let mut sorted: Vec<Vec<u8>> = keys.into_iter().map(Into::into).collect();
        sorted.sort_unstable();
        let mut writer = KeyListWriter::new(Vec::new());
        for key in &sorted {
            writer.push(key)?;
        }
        KeyList::open(Box::new(writer.finish()?.0))
    }

    /// How many keys.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the key is in the list.
    pub fn contains(&self, key: &[u8]) -> io::Result<bool> {
        let after = self.blocks.partition_point(|block| block.first.as_slice() <= key);
        let Some(index) = after.checked_sub(1) else { return Ok(false) };
        let block = self.block(index)?;
        Ok(block.binary_search_by(|probe| probe.as_slice().cmp(key)).is_ok())
    }

    /// The least key that is not less than this one.
    pub fn first_at_or_after(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let after = self.blocks.partition_point(|block| block.first.as_slice() <= key);
        if let Some(index) = after.checked_sub(1) {
            let block = self.block(index)?;
            let at = block.partition_point(|probe| probe.as_slice() < key);
            if let Some(found) = block.get(at) {
                return Ok(Some(found.clone()));
            }
        }
        Ok(self.blocks.get(after).map(|block| block.first.clone()))
    }

    /// All keys in order, a block at a time.
    pub fn iter(&self) -> impl Iterator<Item = io::Result<Vec<u8>>> + '_ {
        (0..self.blocks.len()).flat_map(move |index| match self.decode(index) {
            Ok(keys) => keys.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        })
    }

    /// Places at which the list can be cut into parts of about `keys` keys each, without the start: for
    /// planning.
    pub fn cuts(&self, keys: u64) -> Vec<(Vec<u8>, u64)> {
        let mut cuts = Vec::new();
        let mut since = 0;
        for block in &self.blocks {
            if since >= keys {
                cuts.push((block.first.clone(), since));
                since = 0;
            }
            since += block.keys;
        }
        cuts
    }

    fn block(&self, index: usize) -> io::Result<Block> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = cache.iter().position(|(cached, _)| *cached == index) {
            return Ok(cache[at].1.clone());
        }
        let keys = Arc::new(self.decode(index)?);
        if cache.len() >= 2 {
            cache.remove(0);
        }
        cache.push((index, keys.clone()));
        Ok(keys)
    }

    fn decode(&self, index: usize) -> io::Result<Vec<Vec<u8>>> {
        let entry = &self.blocks[index];
        // A block holds at most BLOCK bytes and one key more, and a key is far below 64 KiB.
        let plain = zstd::bulk::decompress(&self.bytes.read_at(entry.offset, entry.stored)?, 4 * BLOCK)?;
        let mut rest = plain.as_slice();
        let mut keys: Vec<Vec<u8>> = Vec::new();
        while !rest.is_empty() {
            let shared = take_varint(&mut rest)? as usize;
            let len = take_varint(&mut rest)? as usize;
            let tail = take(&mut rest, len)?;
            let mut key = match keys.last() {
                Some(previous) => previous.get(..shared).ok_or_else(|| damaged("prefix"))?.to_vec(),
                None => Vec::new(),
            };
            key.extend_from_slice(tail);
            keys.push(key);
        }
        Ok(keys)
    }
}

/// Writes a list from keys that come in order. Repeats are dropped.
pub struct KeyListWriter<W: Write> {
    out: W,
    offset: u64,
    block: Vec<u8>,
    block_first: Vec<u8>,
    block_keys: u64,
    last: Option<Vec<u8>>,
    index: Vec<u8>,
    len: u64,
}

impl<W: Write> KeyListWriter<W> {
    /// A writer of an empty list.
    pub fn new(out: W) -> KeyListWriter<W> {
        KeyListWriter {
            out,
            offset: 0,
            block: Vec::new(),
            block_first: Vec::new(),
            block_keys: 0,
            last: None,
            index: Vec::new(),
            len: 0,
        }
    }

    /// Adds a key, not less than the one before.
    pub fn push(&mut self, key: &[u8]) -> io::Result<()> {
        let shared = match &self.last {
            Some(last) if last.as_slice() == key => return Ok(()),
            Some(last) if last.as_slice() > key => return Err(damaged("keys out of order")),
            Some(last) if self.block_keys > 0 => last.iter().zip(key).take_while(|(a, b)| a == b).count(),
            _ => 0,
        };
        if self.block_keys == 0 {
            self.block_first = key.to_vec();
        }
        put_varint(&mut self.block, shared as u64);
        put_varint(&mut self.block, (key.len() - shared) as u64);
        self.block.extend_from_slice(&key[shared..]);
        self.block_keys += 1;
        self.len += 1;
        self.last = Some(key.to_vec());
        if self.block.len() >= BLOCK { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> io::Result<()> {
        if self.block_keys == 0 {
            return Ok(());
        }
        let stored = zstd::bulk::compress(&self.block, 1)?;
        self.out.write_all(&stored)?;
        put_varint(&mut self.index, self.block_first.len() as u64);
        self.index.extend_from_slice(&self.block_first);
        put_varint(&mut self.index, self.offset);
        put_varint(&mut self.index, stored.len() as u64);
        put_varint(&mut self.index, self.block_keys);
        self.offset += stored.len() as u64;
        self.block.clear();
        self.block_keys = 0;
        Ok(())
    }

    /// Writes what is left, the index and the footer. Gives back the writer and the number of keys.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.end_block()?;
        let index = zstd::bulk::compress(&self.index, 1)?;
        self.out.write_all(&index)?;
        self.out.write_all(&self.offset.to_le_bytes())?;
        self.out.write_all(&(index.len() as u32).to_le_bytes())?;
        self.out.write_all(&self.len.to_le_bytes())?;
        self.out.write_all(MAGIC)?;
        self.out.flush()?;
        Ok((self.out, self.len))
    }
}

/// Builds a list from keys in any order in bounded memory.
pub struct KeyListBuilder {
    sorter: Sorter,
}

impl KeyListBuilder {
    /// Sorts in `scratch`, holding at most `budget` bytes in memory.
    pub fn new(scratch: &Path, budget: usize) -> KeyListBuilder {
        KeyListBuilder { sorter: Sorter::new(scratch, budget) }
    }

    /// Adds a key.
    pub fn push(&mut self, key: &[u8]) -> io::Result<()> {
        self.sorter.push(key, &[])
    }

    /// Writes the list; each key once. Gives back the writer and the number of keys.
    pub fn write<W: Write>(self, out: W) -> io::Result<(W, u64)> {
        let mut writer = KeyListWriter::new(out);
        let mut sorted = self.sorter.finish()?;
        while let Some((key, _)) = sorted.next()? {
            writer.push(key)?;
        }
        writer.finish()
    }
}

/// Appends an LEB128 number.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes an LEB128 number off the front.
pub fn take_varint(rest: &mut &[u8]) -> io::Result<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, tail) = rest.split_first().ok_or_else(|| damaged("number"))?;
        *rest = tail;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(damaged("number"))
}

/// Takes this many bytes off the front.
pub fn take<'a>(rest: &mut &'a [u8], len: usize) -> io::Result<&'a [u8]> {
    if len > rest.len() {
        return Err(damaged("length"));
    }
    let (head, tail) = rest.split_at(len);
    *rest = tail;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_list_answers_like_the_set_it_was_made_from(
            keys in proptest::collection::vec("[ab]{0,6}|[a-z0-9\\x00]{1,40}", 0..400),
            probes in proptest::collection::vec("[a-z0-9\\x00]{0,8}", 20),
        ) {
            let set: BTreeSet<Vec<u8>> = keys.iter().map(|k| k.clone().into_bytes()).collect();
            let scratch = tempfile::tempdir().unwrap();
            let mut builder = KeyListBuilder::new(scratch.path(), 2_000);
            for key in &keys {
                builder.push(key.as_bytes()).unwrap();
            }
            let (bytes, len) = builder.write(Vec::new()).unwrap();
            let list = KeyList::open(Box::new(bytes)).unwrap();
            prop_assert_eq!(len, set.len() as u64);
            prop_assert_eq!(list.iter().map(Result::unwrap).collect::<Vec<_>>(),
                set.iter().cloned().collect::<Vec<_>>());
            for probe in probes.iter().map(|p| p.as_bytes().to_vec()).chain(set.iter().cloned()) {
                prop_assert_eq!(list.contains(&probe).unwrap(), set.contains(&probe));
                prop_assert_eq!(list.first_at_or_after(&probe).unwrap(), set.range(probe..).next().cloned());
            }
        }
    }

    #[test]
    fn many_blocks_are_found_by_the_index_and_can_be_cut() {
        let keys: Vec<Vec<u8>> = (0..100_000).map(|n| format!("patient-{n:08}").into_bytes()).collect();
        let list = KeyList::from_keys(keys.clone()).unwrap();
        assert!(list.blocks.len() > 3);
        assert!(list.contains(&keys[77_777]).unwrap());
        assert_eq!(list.first_at_or_after(b"patient-00050000!").unwrap().as_ref(), Some(&keys[50_001]));
        let cuts = list.cuts(20_000);
        assert!(!cuts.is_empty() && cuts.iter().all(|(_, keys)| *keys >= 20_000));
    }

    #[test]
    fn damage_is_an_error_not_a_panic() {
        let list = KeyListWriter::new(Vec::new());
        let (good, _) = list.finish().unwrap();
        assert!(KeyList::open(Box::new(good.clone())).unwrap().is_empty());
        for cut in 0..good.len() {
            assert!(KeyList::open(Box::new(good[..cut].to_vec())).is_err());
        }
    }
}
