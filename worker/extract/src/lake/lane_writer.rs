//! Writes a lane file: cuts the ordered rows into blocks, which are compressed on other threads and written in
//! order. Memory: the open block, and the few that are being compressed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use flatbed_types::Instant;
use flatbed_types::caps::DEFLATE_SEGMENT;

use super::directory::{DirectoryWriter, LINK};
use super::lane_file::{Block, LONG, MAGIC, Part, Run};
use crate::segment::{DeflateRuns, LAKE_LEVEL, ZSTD_LEVEL};
use crate::source::Change;

/// Bytes of directory at which a block ends though its rows are small: a reader holds a directory whole.
const DIRECTORY_LIMIT: usize = 256 << 10;
/// Blocks in compression for each thread: enough to keep it busy.
const AHEAD: usize = 2;
/// Bytes buffered before a write.
const WRITE_BUFFER: usize = 1 << 20;

struct Packed {
    deflated: Vec<u8>,
    crc32: u32,
    directory: Vec<u8>,
    hashes: Vec<u8>,
}

/// What a block is made of, before compression.
#[derive(Default)]
struct Parts {
    plain: Vec<u8>,
    directory: Vec<u8>,
    hashes: Vec<u8>,
}

struct Job {
    parts: Parts,
    reply: SyncSender<io::Result<Packed>>,
}

/// Threads that compress blocks.
pub(super) struct Packer {
    jobs: SyncSender<Job>,
    ahead: usize,
}

impl Packer {
    /// Starts the threads; they end when the packer is dropped.
    pub(super) fn start<'scope, 'env: 'scope>(
        scope: &'scope std::thread::Scope<'scope, 'env>,
        queue: &'env JobQueue,
        threads: usize,
    ) -> Packer {
        let (jobs, receiver) = sync_channel(threads * AHEAD);
        *queue.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(receiver);
        for _ in 0..threads {
            scope.spawn(|| pack_jobs(queue));
        }
        Packer { jobs, ahead: threads * AHEAD }
    }

    fn send(&self, parts: Parts) -> io::Result<Receiver<io::Result<Packed>>> {
        let (reply, answer) = sync_channel(1);
        let job = Job { parts, reply };
        self.jobs.send(job).map_err(|_| io::Error::other("the compressing threads ended"))?;
        Ok(answer)
    }
}

/// Where the threads of a [`Packer`] take their work from.
#[derive(Default)]
pub(super) struct JobQueue(Mutex<Option<Receiver<Job>>>);

fn pack_jobs(queue: &JobQueue) {
    let mut deflate = DeflateRuns::with_level(LAKE_LEVEL);
    loop {
        // Holding the lock while waiting is the hand-over: whoever has it takes the next job.
        let next = match &*queue.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(receiver) => receiver.recv(),
            None => return,
        };
        let Ok(job) = next else { return };
        // The writer may have given up; then nobody waits for the answer.
        let _ = job.reply.send(pack(&mut deflate, &job.parts));
    }
}

fn pack(deflate: &mut DeflateRuns, parts: &Parts) -> io::Result<Packed> {
    let mut deflated = Vec::with_capacity(parts.plain.len() / 6);
    deflate.append(&parts.plain, &mut deflated)?;
    Ok(Packed {
        deflated,
        crc32: crc32fast::hash(&parts.plain),
        directory: zstd::bulk::compress(&parts.directory, ZSTD_LEVEL)?,
        hashes: zstd::bulk::compress(&parts.hashes, ZSTD_LEVEL)?,
    })
}

/// A row as the writer takes it. Holds patient data: no `Debug`.
pub(super) struct HomeRow<'a> {
    pub(super) key: &'a [u8],
    pub(super) changed: Change,
    pub(super) flags: u8,
    /// The lists that `flags` announces, encoded.
    pub(super) lists: &'a [u8],
    pub(super) fingerprint: u128,
    /// What the next generation knows the row by.
    pub(super) hash: u64,
    /// Length of the line without `\n`.
    pub(super) len: u64,
}

/// Writes one lane.
pub(super) struct LaneWriter<'p> {
    packer: &'p Packer,
    out: BufWriter<File>,
    offset: u64,
    index: Vec<u8>,
    pending: VecDeque<(Block, Receiver<io::Result<Packed>>)>,
    plain: Vec<u8>,
    directory: DirectoryWriter,
    hashes: Vec<u8>,
    block: Block,
}

impl<'p> LaneWriter<'p> {
    pub(super) fn create(path: &Path, packer: &'p Packer) -> io::Result<LaneWriter<'p>> {
        Ok(LaneWriter {
            packer,
            out: BufWriter::with_capacity(WRITE_BUFFER, File::create(path)?),
            offset: 0,
            index: Vec::new(),
            pending: VecDeque::new(),
            plain: Vec::new(),
            directory: DirectoryWriter::default(),
            hashes: Vec::new(),
            block: empty_block(),
        })
    }

    /// A row whose bytes come from `line`.
    pub(super) fn home(&mut self, row: &HomeRow<'_>, line: &mut dyn Read) -> io::Result<()> {
        if row.len >= DEFLATE_SEGMENT as u64 {
            return self.long(row, line);
        }
        let len = row.len as usize;
        if self.plain.len() + len + 1 > DEFLATE_SEGMENT || self.directory.len() >= DIRECTORY_LIMIT {
            self.end_block()?;
        }
        let start = self.plain.len();
        self.plain.resize(start + len, 0);
        line.read_exact(&mut self.plain[start..])?;
        self.plain.push(b'\n');
        self.enter_home(row);
        Ok(())
    }

    /// A link under another patient to the row under its least one. Of the row its key, change and hash count.
    pub(super) fn link(&mut self, row: &HomeRow<'_>, home: &[u8]) -> io::Result<()> {
        if self.directory.len() >= DIRECTORY_LIMIT {
            self.end_block()?;
        }
        self.enter(row.key, LINK, row.hash);
        self.directory.link(row.key, row.changed, home);
        Ok(())
    }

    fn enter(&mut self, key: &[u8], flags: u8, hash: u64) {
        if self.directory.len() == 0 {
            self.block.first = key.to_vec();
        }
        self.block.last.clear();
        self.block.last.extend_from_slice(key);
        self.block.flags |= flags;
        self.hashes.extend_from_slice(&hash.to_le_bytes());
    }

    fn enter_home(&mut self, row: &HomeRow<'_>) {
        self.enter(row.key, row.flags, row.hash);
        self.directory.home(row.key, row.changed, row.flags, row.len, row.lists);
        let block = &mut self.block;
        block.homes += 1;
        block.fingerprint = block.fingerprint.wrapping_add(row.fingerprint);
        let (first, last, row) = (&mut block.first_changed, &mut block.last_changed, row.changed);
        *first = Change { stated: first.stated.min(row.stated), known: first.known.min(row.known) };
        *last = Change { stated: last.stated.max(row.stated), known: last.known.max(row.known) };
    }

    /// A row that is a block of its own, in several runs.
    fn long(&mut self, row: &HomeRow<'_>, line: &mut dyn Read) -> io::Result<()> {
        self.end_block()?;
        self.enter_home(row);
        let mut block = std::mem::replace(&mut self.block, empty_block());
        block.flags |= LONG;
        let (directory, hashes) = (self.directory.take(), std::mem::take(&mut self.hashes));
        while !self.pending.is_empty() {
            self.write_oldest()?;
        }
        block.offset = self.offset;
        let mut left = row.len + 1;
        while left > 0 {
            let mut plain = vec![0; left.min(DEFLATE_SEGMENT as u64) as usize];
            left -= plain.len() as u64;
            let from_line = plain.len() - usize::from(left == 0);
            line.read_exact(&mut plain[..from_line])?;
            plain[from_line..].fill(b'\n');
            let raw_len = plain.len() as u64;
            let packed = wait(&self.packer.send(Parts { plain, ..Parts::default() })?)?;
            block.runs.push(Run { raw_len, stored_len: packed.deflated.len() as u64, crc32: packed.crc32 });
            self.write(&packed.deflated)?;
        }
        (block.directory, block.hashes) = (Part::of(&directory), Part::of(&hashes));
        let stored = zstd::bulk::compress(&directory, ZSTD_LEVEL)?;
        self.finish_block(block, &stored, &zstd::bulk::compress(&hashes, ZSTD_LEVEL)?)
    }

    fn end_block(&mut self) -> io::Result<()> {
        if self.directory.len() == 0 {
            return Ok(());
        }
        let mut block = std::mem::replace(&mut self.block, empty_block());
        let plain = std::mem::take(&mut self.plain);
        let (directory, hashes) = (self.directory.take(), std::mem::take(&mut self.hashes));
        (block.directory, block.hashes) = (Part::of(&directory), Part::of(&hashes));
        if !plain.is_empty() {
            // What is only known after compression is filled in by `write_oldest`.
            block.runs.push(Run { raw_len: plain.len() as u64, stored_len: 0, crc32: 0 });
        }
        while self.pending.len() >= self.packer.ahead {
            self.write_oldest()?;
        }
        let answer = self.packer.send(Parts { plain, directory, hashes })?;
        self.pending.push_back((block, answer));
        Ok(())
    }

    fn write_oldest(&mut self) -> io::Result<()> {
        let Some((mut block, answer)) = self.pending.pop_front() else { return Ok(()) };
        let packed = wait(&answer)?;
        block.offset = self.offset;
        if let Some(run) = block.runs.first_mut() {
            run.stored_len = packed.deflated.len() as u64;
            run.crc32 = packed.crc32;
        }
        self.write(&packed.deflated)?;
        self.finish_block(block, &packed.directory, &packed.hashes)
    }

    fn finish_block(&mut self, mut block: Block, directory: &[u8], hashes: &[u8]) -> io::Result<()> {
        block.directory.stored_len = directory.len() as u64;
        block.hashes.stored_len = hashes.len() as u64;
        self.write(directory)?;
        self.write(hashes)?;
        block.encode(&mut self.index);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.offset += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Writes what is left, the index and the footer, and makes the file durable.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.end_block()?;
        while !self.pending.is_empty() {
            self.write_oldest()?;
        }
        let index = zstd::bulk::compress(&self.index, ZSTD_LEVEL)?;
        let offset = self.offset;
        self.write(&index)?;
        self.write(&offset.to_le_bytes())?;
        self.write(&(index.len() as u64).to_le_bytes())?;
        self.write(&(self.index.len() as u64).to_le_bytes())?;
        self.write(&crc32fast::hash(&self.index).to_le_bytes())?;
        self.write(MAGIC)?;
        self.out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

fn wait(answer: &Receiver<io::Result<Packed>>) -> io::Result<Packed> {
    answer.recv().map_err(|_| io::Error::other("the compressing threads ended"))?
}

fn empty_block() -> Block {
    Block {
        first: Vec::new(),
        last: Vec::new(),
        flags: 0,
        homes: 0,
        offset: 0,
        runs: Vec::new(),
        directory: Part::default(),
        hashes: Part::default(),
        fingerprint: 0,
        first_changed: Instant::MAX.into(),
        last_changed: Instant::MIN.into(),
    }
}
