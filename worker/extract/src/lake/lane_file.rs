//! One lane of the ordered copy: a file of blocks.
//!
//! ```text
//! block*  : raw deflate runs (full flush), then zstd(directory), then zstd(hash u64le of each entry's row)
//! index   : zstd( block entry* )
//! footer  : index offset u64le, stored length u64le, plain length u64le, CRC-32 u32le, magic "FBLN0002"
//! entry   : list(first key, last key), flags u8, varint home rows, varint offset,
//!           varint runs, (varint plain length, varint stored length, CRC-32 u32le)*,
//!           directory: varint stored length, varint plain length, CRC-32 u32le, hashes: the same,
//!           fingerprint u128le, of home rows: least and greatest lastUpdated i64le, least and greatest moment since
//!           when they are known i64le
//! ```
//!
//! A block holds whole rows of about a megabyte in one run, or one longer row alone in several. Everything
//! read is checked against its CRC-32, and what does not hold is remembered: such a file is not built upon. The hashes are for the next generation only (`former`). Knows nothing of what is asked of the rows: `read` does.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use flatbed_types::Instant;

use super::directory::Directory;
use super::disk::{is_damage, read_at, undamaged};
use crate::keylist::{put_varint, take, take_varint};
use crate::segment::inflate_runs;
use crate::source::Change;

pub(super) const MAGIC: &[u8; 8] = b"FBLN0002";
const FOOTER: usize = 8 + 8 + 8 + 4 + 8;
/// The block is one row in several runs. Other flags are those of the directory's entries, joined.
pub(super) const LONG: u8 = 8;

/// A deflate run.
pub(super) struct Run {
    pub(super) raw_len: u64,
    pub(super) stored_len: u64,
    pub(super) crc32: u32,
}

/// A part of a block that is compressed by itself.
#[derive(Default)]
pub(super) struct Part {
    pub(super) stored_len: u64,
    pub(super) plain_len: u64,
    pub(super) crc32: u32,
}

impl Part {
    /// A part whose stored length is not known yet.
    pub(super) fn of(plain: &[u8]) -> Part {
        Part { stored_len: 0, plain_len: plain.len() as u64, crc32: crc32fast::hash(plain) }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.stored_len);
        put_varint(out, self.plain_len);
        out.extend_from_slice(&self.crc32.to_le_bytes());
    }

    fn decode(rest: &mut &[u8]) -> io::Result<Part> {
        let (stored_len, plain_len) = (take_varint(rest)?, take_varint(rest)?);
        Ok(Part { stored_len, plain_len, crc32: u32::from_le_bytes(fixed(rest)?) })
    }
}

/// What the index says of a block.
pub(super) struct Block {
    pub(super) first: Vec<u8>,
    pub(super) last: Vec<u8>,
    pub(super) flags: u8,
    /// Rows whose bytes stand here.
    pub(super) homes: u64,
    pub(super) offset: u64,
    pub(super) runs: Vec<Run>,
    pub(super) directory: Part,
    pub(super) hashes: Part,
    /// Sum of the fingerprints of the home rows.
    pub(super) fingerprint: u128,
    /// Of the home rows; in reverse order where there is none.
    pub(super) first_changed: Change,
    pub(super) last_changed: Change,
}

impl Block {
    pub(super) fn is_long(&self) -> bool {
        self.flags & LONG != 0
    }

    pub(super) fn raw_len(&self) -> u64 {
        self.runs.iter().map(|run| run.raw_len).sum()
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for key in [&self.first, &self.last] {
            put_varint(out, key.len() as u64);
            out.extend_from_slice(key);
        }
        out.push(self.flags);
        put_varint(out, self.homes);
        put_varint(out, self.offset);
        put_varint(out, self.runs.len() as u64);
        for run in &self.runs {
            put_varint(out, run.raw_len);
            put_varint(out, run.stored_len);
            out.extend_from_slice(&run.crc32.to_le_bytes());
        }
        self.directory.encode(out);
        self.hashes.encode(out);
        out.extend_from_slice(&self.fingerprint.to_le_bytes());
        let (first, last) = (self.first_changed, self.last_changed);
        for moment in [first.stated, last.stated, first.known, last.known] {
            out.extend_from_slice(&moment.nanos().to_le_bytes());
        }
    }

    fn decode(rest: &mut &[u8]) -> io::Result<Block> {
        let mut key = || -> io::Result<Vec<u8>> {
            let len = take_varint(rest)? as usize;
            Ok(take(rest, len)?.to_vec())
        };
        let (first, last) = (key()?, key()?);
        let flags = take(rest, 1)?[0];
        let homes = take_varint(rest)?;
        let offset = take_varint(rest)?;
        let count = take_varint(rest)?;
        let mut runs = Vec::new();
        for _ in 0..count {
            let (raw_len, stored_len) = (take_varint(rest)?, take_varint(rest)?);
            runs.push(Run { raw_len, stored_len, crc32: u32::from_le_bytes(fixed(rest)?) });
        }
        let (directory, hashes) = (Part::decode(rest)?, Part::decode(rest)?);
        let fingerprint = u128::from_le_bytes(fixed(rest)?);
        let mut moment = || Ok::<_, io::Error>(Instant::from_nanos(i64::from_le_bytes(fixed(rest)?)));
        let (first_stated, last_stated, first_known, last_known) =
            (moment()?, moment()?, moment()?, moment()?);
        Ok(Block {
            first,
            last,
            flags,
            homes,
            offset,
            runs,
            directory,
            hashes,
            fingerprint,
            first_changed: Change { stated: first_stated, known: first_known },
            last_changed: Change { stated: last_stated, known: last_known },
        })
    }
}

/// Takes a number of fixed size off the front.
pub(super) fn fixed<const N: usize>(rest: &mut &[u8]) -> io::Result<[u8; N]> {
    take(rest, N)?.try_into().map_err(|_| damaged("number"))
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("damaged lane file: {what}"))
}

/// A lane file opened for reading; its index is in memory.
pub(super) struct LaneFile {
    /// None for a lane without rows.
    file: Option<File>,
    pub(super) blocks: Vec<Block>,
    is_damaged: AtomicBool,
}

impl LaneFile {
    pub(super) fn open(path: &Path) -> io::Result<LaneFile> {
        undamaged(LaneFile::open_checked(path))
    }

    fn open_checked(path: &Path) -> io::Result<LaneFile> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let footer_at = size.checked_sub(FOOTER as u64).ok_or_else(|| damaged("too short"))?;
        let footer = read_at(&file, footer_at, FOOTER)?;
        let mut rest = footer.as_slice();
        let offset = u64::from_le_bytes(fixed(&mut rest)?);
        let stored = u64::from_le_bytes(fixed(&mut rest)?);
        let plain = u64::from_le_bytes(fixed(&mut rest)?);
        let crc32 = u32::from_le_bytes(fixed(&mut rest)?);
        if rest != MAGIC || offset.checked_add(stored) != Some(footer_at) {
            return Err(damaged("footer"));
        }
        let index = unpack(&read_at(&file, offset, stored as usize)?, plain, crc32)?;
        let mut rest = index.as_slice();
        let mut blocks = Vec::new();
        while !rest.is_empty() {
            blocks.push(Block::decode(&mut rest)?);
        }
        Ok(LaneFile { file: Some(file), blocks, is_damaged: AtomicBool::new(false) })
    }

    /// A lane without rows.
    pub(super) fn empty() -> LaneFile {
        LaneFile { file: None, blocks: Vec::new(), is_damaged: AtomicBool::new(false) }
    }

    /// Whether something that was read of it was not what was written.
    pub(super) fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::Acquire)
    }

    fn checked<T>(&self, result: io::Result<T>) -> io::Result<T> {
        let result = undamaged(result);
        if result.as_ref().is_err_and(is_damage) {
            self.is_damaged.store(true, Ordering::Release);
        }
        result
    }

    fn read(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let file = self.file.as_ref().ok_or_else(|| damaged("a block in an empty lane"))?;
        self.checked(read_at(file, offset, len as usize))
    }

    /// The directory of a block.
    pub(super) fn directory(&self, block: &Block) -> io::Result<Directory> {
        let part = &block.directory;
        let stored = self.read(Self::directory_at(block), part.stored_len)?;
        self.checked(unpack(&stored, part.plain_len, part.crc32).and_then(Directory::parse))
    }

    /// The hash of the row of each entry of a block's directory.
    pub(super) fn hashes(&self, block: &Block) -> io::Result<Vec<u64>> {
        let part = &block.hashes;
        let stored = self.read(Self::directory_at(block) + block.directory.stored_len, part.stored_len)?;
        let plain = self.checked(unpack(&stored, part.plain_len, part.crc32))?;
        let (hashes, rest) = plain.as_chunks::<8>();
        if rest.is_empty() {
            Ok(hashes.iter().copied().map(u64::from_le_bytes).collect())
        } else {
            self.checked(Err(damaged("hashes")))
        }
    }

    fn directory_at(block: &Block) -> u64 {
        block.offset + block.runs.iter().map(|run| run.stored_len).sum::<u64>()
    }

    /// A run as it is stored.
    pub(super) fn stored_run(&self, block: &Block, index: usize) -> io::Result<Vec<u8>> {
        let before: u64 = block.runs[..index].iter().map(|run| run.stored_len).sum();
        self.read(block.offset + before, block.runs[index].stored_len)
    }

    /// The plain bytes of a run.
    pub(super) fn plain_run(&self, block: &Block, index: usize) -> io::Result<Vec<u8>> {
        let run = &block.runs[index];
        let mut plain = Vec::new();
        self.checked(inflate_runs(&self.stored_run(block, index)?, run.raw_len as usize, &mut plain))?;
        if crc32fast::hash(&plain) != run.crc32 {
            return self.checked(Err(damaged("checksum of a block")));
        }
        Ok(plain)
    }

    /// The plain bytes of a block that is not long.
    pub(super) fn plain(&self, block: &Block) -> io::Result<Vec<u8>> {
        match block.runs.len() {
            0 => Ok(Vec::new()),
            1 => self.plain_run(block, 0),
            _ => Err(damaged("several runs in a block of several rows")),
        }
    }

    /// The plain bytes of a block of one long row.
    pub(super) fn long_row(&self, block: &Block) -> io::Result<Vec<u8>> {
        let mut plain = Vec::with_capacity(block.raw_len() as usize);
        for run in 0..block.runs.len() {
            plain.extend_from_slice(&self.plain_run(block, run)?);
        }
        Ok(plain)
    }

    /// The only block in which this key may stand.
    pub(super) fn block_of(&self, key: &[u8]) -> Option<usize> {
        let index = self.blocks.partition_point(|block| block.last.as_slice() < key);
        (self.blocks.get(index)?.first.as_slice() <= key).then_some(index)
    }
}

fn unpack(stored: &[u8], plain_len: u64, crc32: u32) -> io::Result<Vec<u8>> {
    let plain = zstd::bulk::decompress(stored, plain_len as usize)?;
    if plain.len() as u64 == plain_len && crc32fast::hash(&plain) == crc32 {
        Ok(plain)
    } else {
        Err(damaged("checksum of an index"))
    }
}
