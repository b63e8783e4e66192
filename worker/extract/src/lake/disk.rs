//! Files of the index: reads at a place, and writes that survive a power cut.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::source::SourceError;

/// Bytes read at once from what was put aside.
const READ_AHEAD: usize = 64 << 10;

/// Exactly the bytes `[offset, offset + len)` of a file.
pub(super) fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// What a file of the index gave, where an error of a decoder says that it is damaged: it becomes `InvalidData`. Errors of
/// the system stay as they are.
pub(super) fn undamaged<T>(result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| match error.raw_os_error() {
        Some(_) => error,
        None => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
    })
}

/// Whether an error says that a file of the index is damaged.
pub(super) fn is_damage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

/// The error for something that the index could not do on its own disk.
pub(super) fn disk_error(error: &io::Error) -> SourceError {
    SourceError::io(
        "the lake's index could not be written (is there room in the index and scratch folders?)",
        error,
    )
}

/// A scratch file for lines that are too long for memory. It has no name, so nothing is left of it.
pub(super) struct Spool {
    file: Arc<File>,
    len: u64,
}

impl Spool {
    pub(super) fn new(scratch: &Path) -> io::Result<Spool> {
        Ok(Spool { file: Arc::new(tempfile::tempfile_in(scratch)?), len: 0 })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what was appended after this length.
    pub(super) fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        self.len = len;
        Ok(())
    }

    pub(super) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// A line of it without the white space around it.
    pub(super) fn trimmed(&self, start: u64, end: u64) -> io::Result<Spooled> {
        let mut line = Spooled { offset: start, len: end - start };
        while line.len > 0 {
            let head = read_at(&self.file, line.offset, line.len.min(READ_AHEAD as u64) as usize)?;
            let white = head.iter().take_while(|byte| is_white(**byte)).count();
            line.offset += white as u64;
            line.len -= white as u64;
            if white < head.len() {
                break;
            }
        }
        while line.len > 0 {
            let len = line.len.min(READ_AHEAD as u64) as usize;
            let tail = read_at(&self.file, line.offset + line.len - len as u64, len)?;
            let white = tail.iter().rev().take_while(|byte| is_white(**byte)).count();
            line.len -= white as u64;
            if white < tail.len() {
                break;
            }
        }
        Ok(line)
    }
}

/// A line in a [`Spool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spooled {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Spooled {
    /// Reads the line from its file.
    pub(super) fn open(self, file: &Arc<File>) -> RangeReader {
        RangeReader { file: file.clone(), offset: self.offset, left: self.len, buffer: Vec::new(), at: 0 }
    }
}

/// White space around a line that is not part of its resource.
pub(super) fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

/// Reads a range of a file that others read at the same time.
pub(super) struct RangeReader {
    file: Arc<File>,
    offset: u64,
    left: u64,
    buffer: Vec<u8>,
    at: usize,
}

impl BufRead for RangeReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.buffer.len() && self.left > 0 {
            self.buffer.resize(self.left.min(READ_AHEAD as u64) as usize, 0);
            self.file.read_exact_at(&mut self.buffer, self.offset)?;
            self.offset += self.buffer.len() as u64;
            self.left -= self.buffer.len() as u64;
            self.at = 0;
        }
        Ok(&self.buffer[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for RangeReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let buffer = self.fill_buf()?;
        let len = buffer.len().min(into.len());
        into[..len].copy_from_slice(&buffer[..len]);
        self.consume(len);
        Ok(len)
    }
}

/// Replaces a file so that a crash leaves the old one or the new one.
pub(super) fn replace(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, folder.join(name))?;
    sync_folder(folder)
}
