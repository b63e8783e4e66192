//! External merge sort of byte records in bounded memory.
//!
//! Records are `(key, value)`, ordered by key as bytes; records with equal keys keep the order in which they
//! came. When the buffer is full it is sorted and written out as a run; runs are merged in groups until one
//! merge can read them all within the budget. Memory goes to the buffer or to the merge, never to both.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Runs that one merge reads, whatever the budget: fewer make too many rounds, more are too many open files.
const LEAST_FAN_IN: usize = 4;
const MOST_FAN_IN: usize = 64;
/// Bytes buffered for each run that is being read.
const RUN_BUFFER: usize = 64 << 10;
/// How far back compression looks in a run, as a power of two. Each run that is being read holds as much.
const RUN_WINDOW_LOG: u32 = 17;
/// Memory of a run that is being read: the buffer, and the decompressor with its state, the window and three
/// blocks of 128 KiB.
const RUN_COST: usize = RUN_BUFFER + (160 << 10) + (1 << RUN_WINDOW_LOG) + 3 * (128 << 10);

#[derive(Clone, Copy)]
struct Slot {
    start: usize,
    key_len: u32,
    value_len: u32,
}

/// Takes records in any order.
pub struct Sorter {
    scratch: PathBuf,
    budget: usize,
    arena: Vec<u8>,
    slots: Vec<Slot>,
    runs: Vec<File>,
}

impl Sorter {
    /// Sorts with at most about `budget` bytes of records in memory and the rest in unnamed files of
    /// `scratch`.
    pub fn new(scratch: &Path, budget: usize) -> Sorter {
        Sorter {
            scratch: scratch.to_path_buf(),
            budget,
            arena: Vec::new(),
            slots: Vec::new(),
            runs: Vec::new(),
        }
    }

    /// Adds a record. Keys and values are below 4 GiB each.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let held = self.arena.len() + self.slots.len() * size_of::<Slot>();
        if held + key.len() + value.len() > self.budget && !self.slots.is_empty() {
            self.spill()?;
        }
        let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "record over 4 GiB");
        let slot = Slot {
            start: self.arena.len(),
            key_len: u32::try_from(key.len()).map_err(too_long)?,
            value_len: u32::try_from(value.len()).map_err(too_long)?,
        };
        self.arena.extend_from_slice(key);
        self.arena.extend_from_slice(value);
        self.slots.push(slot);
        Ok(())
    }

    fn sort(&mut self) {
        let arena = &self.arena;
        let key = |slot: &Slot| &arena[slot.start..slot.start + slot.key_len as usize];
        // An empty record starts where its successor does; it came first.
        let arrival = |slot: &Slot| (slot.start, slot.key_len + slot.value_len > 0);
        self.slots.sort_unstable_by(|a, b| key(a).cmp(key(b)).then(arrival(a).cmp(&arrival(b))));
    }

    fn spill(&mut self) -> io::Result<()> {
        self.sort();
        let mut run = RunWriter::new(&self.scratch)?;
        for slot in &self.slots {
            let value_at = slot.start + slot.key_len as usize;
            let value_end = value_at + slot.value_len as usize;
            run.push(&self.arena[slot.start..value_at], &self.arena[value_at..value_end])?;
        }
        self.runs.push(run.finish()?);
        self.arena.clear();
        self.slots.clear();
        Ok(())
    }

    fn fan_in(&self) -> usize {
        (self.budget / RUN_COST).clamp(LEAST_FAN_IN, MOST_FAN_IN)
    }

    /// All records in order.
    pub fn finish(mut self) -> io::Result<Sorted> {
        if self.runs.is_empty() {
            self.sort();
            return Ok(Sorted(Inner::Memory { arena: self.arena, slots: self.slots, next: 0 }));
        }
        if !self.slots.is_empty() {
            self.spill()?;
        }
        self.arena = Vec::new();
        self.slots = Vec::new();
        let fan_in = self.fan_in();
        let mut runs = self.runs;
        while runs.len() > fan_in {
            // Merging neighbours keeps records with equal keys in the order in which they came.
            let mut merged = Vec::new();
            let mut rest = runs.into_iter().peekable();
            while rest.peek().is_some() {
                let mut merge = Merge::new(rest.by_ref().take(fan_in).collect())?;
                let mut run = RunWriter::new(&self.scratch)?;
                while merge.advance()? {
                    run.push(&merge.key, &merge.value)?;
                }
                merged.push(run.finish()?);
            }
            runs = merged;
        }
        Ok(Sorted(Inner::Runs(runs)))
    }
}

/// Sorted records.
pub struct Sorted(Inner);

enum Inner {
    Memory {
        arena: Vec<u8>,
        slots: Vec<Slot>,
        next: usize,
    },
    /// Not asked for anything yet, so that sorts that wait for others take no memory.
    Runs(Vec<File>),
    Merge(Box<Merge>),
}

impl Sorted {
    /// The next record, key and value.
    #[allow(clippy::should_implement_trait)] // lends from itself, which Iterator cannot
    pub fn next(&mut self) -> io::Result<Option<(&[u8], &[u8])>> {
        if let Inner::Runs(runs) = &mut self.0 {
            self.0 = Inner::Merge(Box::new(Merge::new(std::mem::take(runs))?));
        }
        match &mut self.0 {
            Inner::Runs(_) => Ok(None),
            Inner::Memory { arena, slots, next } => {
                let Some(slot) = slots.get(*next) else { return Ok(None) };
                *next += 1;
                let value_at = slot.start + slot.key_len as usize;
                let value_end = value_at + slot.value_len as usize;
                Ok(Some((&arena[slot.start..value_at], &arena[value_at..value_end])))
            }
            Inner::Merge(merge) => {
                if merge.advance()? {
                    Ok(Some((&merge.key, &merge.value)))
                } else {
                    Ok(None)
                }
            }
        }
    }
}

struct RunWriter {
    out: zstd::Encoder<'static, BufWriter<File>>,
}

impl RunWriter {
    fn new(scratch: &Path) -> io::Result<RunWriter> {
        let file = tempfile::tempfile_in(scratch)?;
        let mut out = zstd::Encoder::new(BufWriter::with_capacity(RUN_BUFFER, file), 1)?;
        out.window_log(RUN_WINDOW_LOG)?;
        Ok(RunWriter { out })
    }

    fn push(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.out.write_all(&(key.len() as u32).to_le_bytes())?;
        self.out.write_all(&(value.len() as u32).to_le_bytes())?;
        self.out.write_all(key)?;
        self.out.write_all(value)
    }

    fn finish(self) -> io::Result<File> {
        self.out.finish()?.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

struct RunReader {
    input: zstd::Decoder<'static, BufReader<File>>,
    order: usize,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl RunReader {
    fn new(mut file: File, order: usize) -> io::Result<RunReader> {
        io::Seek::rewind(&mut file)?;
        let input = zstd::Decoder::with_buffer(BufReader::with_capacity(RUN_BUFFER, file))?;
        Ok(RunReader { input, order, key: Vec::new(), value: Vec::new() })
    }

    fn advance(&mut self) -> io::Result<bool> {
        let mut lengths = [0_u8; 8];
        let mut filled = 0;
        while filled < lengths.len() {
            match self.input.read(&mut lengths[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        let length = |at: usize| u32::from_le_bytes(lengths[at..at + 4].try_into().unwrap_or_default());
        self.key.resize(length(0) as usize, 0);
        self.input.read_exact(&mut self.key)?;
        self.value.resize(length(4) as usize, 0);
        self.input.read_exact(&mut self.value)?;
        Ok(true)
    }
}

impl PartialEq for RunReader {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for RunReader {}

impl PartialOrd for RunReader {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RunReader {
    /// Reversed: the heap gives out its greatest, and the least key is wanted.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key.cmp(&self.key).then(other.order.cmp(&self.order))
    }
}

struct Merge {
    heap: BinaryHeap<RunReader>,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Merge {
    fn new(runs: Vec<File>) -> io::Result<Merge> {
        let mut heap = BinaryHeap::new();
        for (order, file) in runs.into_iter().enumerate() {
            let mut run = RunReader::new(file, order)?;
            if run.advance()? {
                heap.push(run);
            }
        }
        Ok(Merge { heap, key: Vec::new(), value: Vec::new() })
    }

    fn advance(&mut self) -> io::Result<bool> {
        let Some(mut least) = self.heap.peek_mut() else { return Ok(false) };
        std::mem::swap(&mut self.key, &mut least.key);
        std::mem::swap(&mut self.value, &mut least.value);
        if !least.advance()? {
            std::collections::binary_heap::PeekMut::pop(least);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_a_stable_sort_in_memory(
            records in proptest::collection::vec(("[a-c]{0,3}", "[a-z]{0,30}"), 0..600),
            budget in 100_usize..5_000,
        ) {
            let scratch = tempfile::tempdir().unwrap();
            let mut sorter = Sorter::new(scratch.path(), budget);
            for (key, value) in &records {
                sorter.push(key.as_bytes(), value.as_bytes()).unwrap();
            }
            let mut sorted = sorter.finish().unwrap();
            let mut expected = records.clone();
            expected.sort_by(|a, b| a.0.cmp(&b.0));
            for (key, value) in expected {
                let (got_key, got_value) = sorted.next().unwrap().unwrap();
                prop_assert_eq!(got_key, key.as_bytes());
                prop_assert_eq!(got_value, value.as_bytes());
            }
            prop_assert!(sorted.next().unwrap().is_none());
        }
    }
}
