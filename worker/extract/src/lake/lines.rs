//! Cuts a file of the lake into lines in bounded memory, whatever stands in it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flatbed_types::caps::LONG_LINE;
use xxhash_rust::xxh3::Xxh3;

use super::disk::{Spool, Spooled, is_white, read_at};
use super::list::Coding;

/// Bytes read from a file, and decompressed, at once.
const READ_BUFFER: usize = 256 << 10;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A line that is not blank, without the white space around it.
pub(super) enum Line<'a> {
    Short(&'a [u8]),
    /// Longer than `caps::LONG_LINE`: in the spool.
    Long(Spooled),
    /// Longer than is taken.
    TooLong,
}

/// Why the lines ended early.
pub(super) enum Stop {
    /// The file cannot be read on, after this many lines.
    Damaged(io::Error, u64),
    /// Whoever takes the lines, or the spool, failed.
    Fatal(io::Error),
}

/// Who hears of the bytes that are read from a file, as they stand on disk.
pub(super) struct Heard {
    /// How many were read, of all files.
    pub(super) count: Arc<AtomicU64>,
    /// What was read, of this file.
    pub(super) content: Arc<Mutex<Xxh3>>,
}

struct Counted<R> {
    inner: R,
    heard: Heard,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.heard.count.fetch_add(read as u64, Ordering::Relaxed);
        self.heard.content.lock().unwrap_or_else(PoisonError::into_inner).update(&into[..read]);
        Ok(read)
    }
}

/// The plain bytes of a file: all members of gzip, all frames of zstd.
pub(super) fn open_plain(file: File, coding: Coding, heard: Heard) -> io::Result<Box<dyn BufRead>> {
    let input = BufReader::with_capacity(READ_BUFFER, Counted { inner: file, heard });
    Ok(match coding {
        Coding::Plain => Box::new(input),
        Coding::Gzip => {
            Box::new(BufReader::with_capacity(READ_BUFFER, flate2::bufread::MultiGzDecoder::new(input)))
        }
        Coding::Zstd => Box::new(BufReader::with_capacity(READ_BUFFER, zstd::Decoder::with_buffer(input)?)),
    })
}

enum Held {
    /// The start of a line, in memory.
    Memory,
    /// The start of a line is in the spool from here on.
    Spool(u64),
    /// The rest of the line is of no use.
    Skip,
}

/// The lines of one file.
pub(super) struct Lines<'a> {
    pub(super) input: Box<dyn BufRead>,
    pub(super) max_line: u64,
    pub(super) spool: &'a mut Spool,
}

impl Lines<'_> {
    /// Gives each line that is not blank to `each`, with its number from 1.
    pub(super) fn each(
        mut self,
        each: &mut dyn FnMut(u64, Line<'_>, &Spool) -> io::Result<()>,
    ) -> Result<(), Stop> {
        let mut memory = Vec::new();
        let mut held = Held::Memory;
        let mut number = 0;
        let mut ended = false;
        while !ended {
            let buffer = match self.input.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    if let Held::Spool(start) = held {
                        self.spool.truncate(start).map_err(Stop::Fatal)?;
                    }
                    return Err(Stop::Damaged(error, number));
                }
            };
            let newline = memchr::memchr(b'\n', buffer);
            let part = &buffer[..newline.unwrap_or(buffer.len())];
            ended = buffer.is_empty();
            let consumed = part.len() + usize::from(newline.is_some());
            if newline.is_some() && memory.is_empty() && matches!(held, Held::Memory) {
                // The usual case: a whole line lies in the buffer.
                number += 1;
                short(part, number, self.max_line, self.spool, each).map_err(Stop::Fatal)?;
                self.input.consume(consumed);
                continue;
            }
            hold(part, &mut memory, &mut held, self.spool, self.max_line).map_err(Stop::Fatal)?;
            self.input.consume(consumed);
            if newline.is_some() || ended {
                number += 1;
                self.end_line(&memory, &held, number, each).map_err(Stop::Fatal)?;
                memory.clear();
                held = Held::Memory;
            }
        }
        Ok(())
    }

    fn end_line(
        &mut self,
        memory: &[u8],
        held: &Held,
        number: u64,
        each: &mut dyn FnMut(u64, Line<'_>, &Spool) -> io::Result<()>,
    ) -> io::Result<()> {
        let start = match held {
            Held::Memory => return short(memory, number, self.max_line, self.spool, each),
            Held::Skip => return each(number, Line::TooLong, self.spool),
            Held::Spool(start) => *start,
        };
        let mark =
            number == 1 && read_at(&self.spool.file(), start, BYTE_ORDER_MARK.len())? == BYTE_ORDER_MARK;
        let content = start + if mark { BYTE_ORDER_MARK.len() as u64 } else { 0 };
        let line = self.spool.trimmed(content, self.spool.len())?;
        if line.len == 0 {
            return self.spool.truncate(start);
        }
        if line.len > self.max_line {
            self.spool.truncate(start)?;
            return each(number, Line::TooLong, self.spool);
        }
        each(number, Line::Long(line), self.spool)
    }
}

/// Adds a part of a line to what is held of it.
fn hold(
    part: &[u8],
    memory: &mut Vec<u8>,
    held: &mut Held,
    spool: &mut Spool,
    max_line: u64,
) -> io::Result<()> {
    match held {
        Held::Skip => {}
        Held::Memory if memory.len() + part.len() <= LONG_LINE => memory.extend_from_slice(part),
        Held::Memory => {
            let start = spool.len();
            spool.append(memory)?;
            spool.append(part)?;
            memory.clear();
            *held = Held::Spool(start);
        }
        Held::Spool(start) if spool.len() - *start + part.len() as u64 > max_line => {
            spool.truncate(*start)?;
            *held = Held::Skip;
        }
        Held::Spool(_) => spool.append(part)?,
    }
    Ok(())
}

fn short(
    line: &[u8],
    number: u64,
    max_line: u64,
    spool: &Spool,
    each: &mut dyn FnMut(u64, Line<'_>, &Spool) -> io::Result<()>,
) -> io::Result<()> {
    let unmarked = if number == 1 { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line) } else { line };
    let line = trim(unmarked);
    if line.is_empty() {
        Ok(())
    } else if line.len() as u64 > max_line {
        each(number, Line::TooLong, spool)
    } else {
        each(number, Line::Short(line), spool)
    }
}

fn trim(mut line: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = line
        && is_white(*first)
    {
        line = rest;
    }
    while let [rest @ .., last] = line
        && is_white(*last)
    {
        line = rest;
    }
    line
}
