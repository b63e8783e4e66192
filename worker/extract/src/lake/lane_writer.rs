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
use super::lane_file::{Block, LONG, MAGIC, Run};
use crate::segment::{DeflateRuns, LAKE_LEVEL, ZSTD_LEVEL};

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
}

struct Job {
    plain: Vec<u8>,
    directory: Vec<u8>,
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

    fn send(&self, plain: Vec<u8>, directory: Vec<u8>) -> io::Result<Receiver<io::Result<Packed>>> {
        let (reply, answer) = sync_channel(1);
        let job = Job { plain, directory, reply };
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
        let _ = job.reply.send(pack(&mut deflate, &job));
    }
}

fn pack(deflate: &mut DeflateRuns, job: &Job) -> io::Result<Packed> {
    let mut deflated = Vec::with_capacity(job.plain.len() / 6);
    deflate.append(&job.plain, &mut deflated)?;
    Ok(Packed {
        deflated,
        crc32: crc32fast::hash(&job.plain),
        directory: zstd::bulk::compress(&job.directory, ZSTD_LEVEL)?,
    })
}

/// A row as the writer takes it. Holds patient data: no `Debug`.
pub(super) struct HomeRow<'a> {
    pub(super) key: &'a [u8],
    pub(super) changed: Instant,
    pub(super) flags: u8,
    /// The lists that `flags` announces, encoded.
    pub(super) lists: &'a [u8],
    pub(super) fingerprint: u128,
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

    /// A link under another patient to the row under its least one.
    pub(super) fn link(&mut self, key: &[u8], changed: Instant, home: &[u8]) -> io::Result<()> {
        if self.directory.len() >= DIRECTORY_LIMIT {
            self.end_block()?;
        }
        self.enter(key, LINK);
        self.directory.link(key, changed, home);
        Ok(())
    }

    fn enter(&mut self, key: &[u8], flags: u8) {
        if self.directory.len() == 0 {
            self.block.first = key.to_vec();
        }
        self.block.last.clear();
        self.block.last.extend_from_slice(key);
        self.block.flags |= flags;
    }

    fn enter_home(&mut self, row: &HomeRow<'_>) {
        self.enter(row.key, row.flags);
        self.directory.home(row.key, row.changed, row.flags, row.len, row.lists);
        let block = &mut self.block;
        block.homes += 1;
        block.fingerprint = block.fingerprint.wrapping_add(row.fingerprint);
        block.first_changed = block.first_changed.min(row.changed);
        block.last_changed = block.last_changed.max(row.changed);
    }

    /// A row that is a block of its own, in several runs.
    fn long(&mut self, row: &HomeRow<'_>, line: &mut dyn Read) -> io::Result<()> {
        self.end_block()?;
        self.enter_home(row);
        let mut block = std::mem::replace(&mut self.block, empty_block());
        block.flags |= LONG;
        let directory = self.directory.take();
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
            let packed = wait(&self.packer.send(plain, Vec::new())?)?;
            block.runs.push(Run { raw_len, stored_len: packed.deflated.len() as u64, crc32: packed.crc32 });
            self.write(&packed.deflated)?;
        }
        describe_directory(&mut block, &directory);
        let stored = zstd::bulk::compress(&directory, ZSTD_LEVEL)?;
        self.finish_block(block, &stored)
    }

    fn end_block(&mut self) -> io::Result<()> {
        if self.directory.len() == 0 {
            return Ok(());
        }
        let mut block = std::mem::replace(&mut self.block, empty_block());
        let plain = std::mem::take(&mut self.plain);
        let directory = self.directory.take();
        describe_directory(&mut block, &directory);
        if !plain.is_empty() {
            // What is only known after compression is filled in by `write_oldest`.
            block.runs.push(Run { raw_len: plain.len() as u64, stored_len: 0, crc32: 0 });
        }
        while self.pending.len() >= self.packer.ahead {
            self.write_oldest()?;
        }
        let answer = self.packer.send(plain, directory)?;
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
        self.finish_block(block, &packed.directory)
    }

    fn finish_block(&mut self, mut block: Block, directory: &[u8]) -> io::Result<()> {
        block.directory_len = directory.len() as u64;
        self.write(directory)?;
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

fn describe_directory(block: &mut Block, directory: &[u8]) {
    block.directory_plain_len = directory.len() as u64;
    block.directory_crc32 = crc32fast::hash(directory);
}

fn empty_block() -> Block {
    Block {
        first: Vec::new(),
        last: Vec::new(),
        flags: 0,
        homes: 0,
        offset: 0,
        runs: Vec::new(),
        directory_len: 0,
        directory_plain_len: 0,
        directory_crc32: 0,
        fingerprint: 0,
        first_changed: Instant::from_nanos(i64::MAX),
        last_changed: Instant::from_nanos(i64::MIN),
    }
}
