//! Files of rows that a lake had and has no more: tombstones of one type, by id; and rows whose lot is not decided
//! because a part of the lake cannot be read (`absent`), by their key in the lane.
//!
//! ```text
//! file   : zstd with checksum ( (varint key length, key, varint body length, body)* )
//! body   : flags u8, moment i64le, hash u64le, [list of patients]
//! ```

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use flatbed_types::Instant;

use super::directory::put_list;
use super::disk::{RangeReader, Spooled, undamaged};
use super::lane_file::fixed;
use crate::keylist::{put_varint, take, take_varint};
use crate::segment::ZSTD_LEVEL;

const LINK: u8 = 1;
const PATIENTS: u8 = 2;
/// Longer parts of a record are no row's: patients of one row, of some seventy bytes each.
const MOST_BYTES: u64 = 1 << 30;

/// A row that is no more. Holds patient data: no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Gone {
    /// The id of a tombstone; else the key in the lane.
    pub(super) key: Vec<u8>,
    /// When it was deleted; of an absent row, since when it was known.
    pub(super) moment: Instant,
    /// Of its bytes, where it is absent.
    pub(super) hash: u64,
    /// It stood here for the row under its least patient.
    pub(super) is_link: bool,
    /// The patients that it belonged to, sorted; `None` where that is not known, and of links.
    pub(super) patients: Option<Vec<Vec<u8>>>,
}

impl Gone {
    /// The record without its key, into a buffer that is emptied before.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.push(if self.is_link { LINK } else { 0 } | if self.patients.is_some() { PATIENTS } else { 0 });
        out.extend_from_slice(&self.moment.nanos().to_le_bytes());
        out.extend_from_slice(&self.hash.to_le_bytes());
        if let Some(patients) = &self.patients {
            put_list(out, patients);
        }
    }

    pub(super) fn decode(key: Vec<u8>, mut body: &[u8]) -> io::Result<Gone> {
        let flags = take(&mut body, 1)?[0];
        let moment = Instant::from_nanos(i64::from_le_bytes(fixed(&mut body)?));
        let hash = u64::from_le_bytes(fixed(&mut body)?);
        let patients = if flags & PATIENTS == 0 { None } else { Some(take_list(&mut body)?) };
        Ok(Gone { key, moment, hash, is_link: flags & LINK != 0, patients })
    }
}

/// Takes a list of byte strings off the front.
pub(super) fn take_list(rest: &mut &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let count = take_varint(rest)?;
    (0..count)
        .map(|_| {
            let len = take_varint(rest)? as usize;
            Ok(take(rest, len)?.to_vec())
        })
        .collect()
}

/// Writes a file; none where nothing is pushed.
pub(super) struct GoneWriter<'a> {
    path: &'a Path,
    out: Option<zstd::Encoder<'static, BufWriter<File>>>,
    record: Vec<u8>,
    body: Vec<u8>,
}

impl<'a> GoneWriter<'a> {
    pub(super) fn new(path: &'a Path) -> GoneWriter<'a> {
        GoneWriter { path, out: None, record: Vec::new(), body: Vec::new() }
    }

    /// Adds a record, behind those of lesser keys. Gives its bytes before compression.
    pub(super) fn push(&mut self, gone: &Gone) -> io::Result<u64> {
        gone.encode(&mut self.body);
        self.record.clear();
        put_varint(&mut self.record, gone.key.len() as u64);
        self.record.extend_from_slice(&gone.key);
        put_varint(&mut self.record, self.body.len() as u64);
        self.record.extend_from_slice(&self.body);
        let out = match &mut self.out {
            Some(out) => out,
            None => {
                let file = BufWriter::new(File::create(self.path)?);
                let mut out = zstd::Encoder::new(file, ZSTD_LEVEL)?;
                out.include_checksum(true)?;
                self.out.insert(out)
            }
        };
        out.write_all(&self.record)?;
        Ok(self.record.len() as u64)
    }

    /// Makes the file durable; whether there is one.
    pub(super) fn finish(self) -> io::Result<bool> {
        let Some(out) = self.out else { return Ok(false) };
        out.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok(true)
    }
}

/// Reads a file from its start. Others may read it at the same time.
pub(super) struct GoneReader(Option<BufReader<zstd::Decoder<'static, RangeReader>>>);

impl GoneReader {
    pub(super) fn new(file: Option<&Arc<File>>) -> io::Result<GoneReader> {
        let Some(file) = file else { return Ok(GoneReader(None)) };
        let whole = Spooled { offset: 0, len: file.metadata()?.len() };
        Ok(GoneReader(Some(BufReader::new(zstd::Decoder::with_buffer(whole.open(file))?))))
    }

    /// The next record. `InvalidData` where the file is damaged.
    pub(super) fn next(&mut self) -> io::Result<Option<Gone>> {
        undamaged(self.take_next())
    }

    fn take_next(&mut self) -> io::Result<Option<Gone>> {
        let Some(input) = &mut self.0 else { return Ok(None) };
        if io::BufRead::fill_buf(input)?.is_empty() {
            return Ok(None);
        }
        let key = take_part(input)?;
        let body = take_part(input)?;
        Gone::decode(key, &body).map(Some)
    }
}

fn take_part(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let (mut len, mut shift) = (0_u64, 0);
    loop {
        let mut byte = [0];
        input.read_exact(&mut byte)?;
        len |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            break;
        }
        shift += 7;
        if shift > 56 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    if len > MOST_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut part = Vec::new();
    if input.take(len).read_to_end(&mut part)? as u64 == len {
        Ok(part)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_damage_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gone");
        let patients = [None, Some(Vec::new()), Some(vec![b"a".to_vec(), vec![b'b'; 300]])];
        let records: Vec<Gone> = (0..3000_usize)
            .map(|n| Gone {
                key: format!("{n:06}").into_bytes(),
                moment: Instant::from_nanos(n as i64 - 1500),
                hash: (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
                is_link: n % 2 == 1,
                patients: patients[n % 3].clone(),
            })
            .collect();
        let mut writer = GoneWriter::new(&path);
        for record in &records {
            writer.push(record).unwrap();
        }
        assert!(writer.finish().unwrap());
        let read = || -> io::Result<Vec<Gone>> {
            let mut reader = GoneReader::new(Some(&Arc::new(File::open(&path)?)))?;
            std::iter::from_fn(|| reader.next().transpose()).collect()
        };
        assert!(read().unwrap() == records);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        assert!(read().is_err());
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        assert!(read().is_err());

        let none = folder.path().join("none.gone");
        assert!(!GoneWriter::new(&none).finish().unwrap() && !none.exists());
        assert!(GoneReader::new(None).unwrap().next().unwrap().is_none());
    }
}
