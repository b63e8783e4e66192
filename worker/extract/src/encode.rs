//! From pieces to the bytes of one file.

use std::collections::VecDeque;
use std::io::{self, Write};

use bytes::Bytes;
use flatbed_types::{Codec, caps};
use sha2::{Digest, Sha256};

use crate::piece::Body;
use crate::segment::{DeflateRuns, GzipMember, ZSTD_LEVEL};

/// What a finished file amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSummary {
    /// Bytes before compression.
    pub raw_bytes: u64,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// SHA-256 of the stored bytes.
    pub sha256: [u8; 32],
}

/// Stored bytes on their way out, in chunks that are never copied together.
#[derive(Default)]
pub struct Chunks {
    chunks: VecDeque<Bytes>,
    len: usize,
}

impl Chunks {
    /// Bytes held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a chunk.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.len += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// Takes the first `len` bytes, or all if there are fewer.
    pub fn take(&mut self, len: usize) -> Vec<Bytes> {
        let mut taken = Vec::new();
        let mut left = len;
        while left > 0
            && let Some(chunk) = self.chunks.front_mut()
        {
            let part = chunk.split_to(left.min(chunk.len()));
            left -= part.len();
            self.len -= part.len();
            taken.push(part);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        taken
    }
}

enum Coder {
    Plain,
    Gzip { runs: Box<DeflateRuns>, member: GzipMember, pending: Vec<u8> },
    Zstd(Box<zstd::Encoder<'static, Vec<u8>>>),
}

/// Encodes one file. Bytes come out as they become ready; nothing but a compressor's own window is held back.
pub struct FileEncoder {
    coder: Coder,
    hash: Sha256,
    raw_bytes: u64,
    stored_bytes: u64,
}

impl FileEncoder {
    /// Starts a file; its header goes to `out`.
    pub fn new(codec: Codec, out: &mut Chunks) -> io::Result<FileEncoder> {
        let coder = match codec {
            Codec::None => Coder::Plain,
            Codec::Gzip => {
                Coder::Gzip { runs: Box::default(), member: GzipMember::default(), pending: Vec::new() }
            }
            Codec::Zstd => {
                let mut encoder = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Coder::Zstd(Box::new(encoder))
            }
        };
        let mut encoder = FileEncoder { coder, hash: Sha256::new(), raw_bytes: 0, stored_bytes: 0 };
        if codec == Codec::Gzip {
            encoder.emit(Bytes::from_static(GzipMember::header()), out);
        }
        Ok(encoder)
    }

    /// Bytes before compression so far.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    fn emit(&mut self, bytes: Bytes, out: &mut Chunks) {
        self.hash.update(&bytes);
        self.stored_bytes += bytes.len() as u64;
        out.push(bytes);
    }

    /// Adds the bytes of a piece; what becomes ready goes to `out`.
    pub fn add(&mut self, body: Body, out: &mut Chunks) -> io::Result<()> {
        self.raw_bytes += body.raw_len();
        match (&mut self.coder, body) {
            (Coder::Plain, Body::Plain(bytes)) => self.emit(bytes, out),
            (Coder::Gzip { runs, member, pending }, Body::Plain(bytes)) => {
                // A piece that is a run by itself is not copied first.
                let mut run = Vec::new();
                if pending.is_empty() && bytes.len() >= caps::DEFLATE_SEGMENT {
                    member.add_plain(&bytes);
                    runs.append(&bytes, &mut run)?;
                } else {
                    pending.extend_from_slice(&bytes);
                    if pending.len() >= caps::DEFLATE_SEGMENT {
                        flush(runs, member, pending, &mut run)?;
                    }
                }
                self.emit(run.into(), out);
            }
            (Coder::Gzip { runs, member, pending }, Body::Deflated { bytes, raw_len, crc32 }) => {
                let mut run = Vec::new();
                flush(runs, member, pending, &mut run)?;
                member.add_run(crc32, raw_len);
                self.emit(run.into(), out);
                self.emit(bytes, out);
            }
            (Coder::Zstd(encoder), Body::Plain(bytes)) => {
                encoder.write_all(&bytes)?;
                let ready = std::mem::take(encoder.get_mut());
                self.emit(ready.into(), out);
            }
            (Coder::Plain | Coder::Zstd(_), Body::Deflated { bytes, raw_len, .. }) => {
                let mut plain = Vec::new();
                let len = usize::try_from(raw_len).map_err(io::Error::other)?;
                crate::segment::inflate_runs(&bytes, len, &mut plain)?;
                self.raw_bytes -= raw_len;
                return self.add(Body::Plain(plain.into()), out);
            }
        }
        Ok(())
    }

    /// Ends the file; its last bytes go to `out`.
    pub fn finish(mut self, out: &mut Chunks) -> io::Result<FileSummary> {
        let mut last = Vec::new();
        match std::mem::replace(&mut self.coder, Coder::Plain) {
            Coder::Plain => {}
            Coder::Gzip { mut runs, mut member, mut pending } => {
                flush(&mut runs, &mut member, &mut pending, &mut last)?;
                last.extend_from_slice(&member.trailer());
            }
            Coder::Zstd(encoder) => last = encoder.finish()?,
        }
        self.emit(last.into(), out);
        let FileEncoder { hash, raw_bytes, stored_bytes, .. } = self;
        Ok(FileSummary { raw_bytes, stored_bytes, sha256: hash.finalize().into() })
    }
}

fn flush(
    runs: &mut DeflateRuns,
    member: &mut GzipMember,
    pending: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    member.add_plain(pending);
    runs.append(pending, out)?;
    pending.clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    fn decode(codec: Codec, stored: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        match codec {
            Codec::None => plain.extend_from_slice(stored),
            Codec::Gzip => {
                let mut reader = flate2::bufread::GzDecoder::new(stored);
                reader.read_to_end(&mut plain).unwrap();
                assert!(reader.into_inner().is_empty());
            }
            Codec::Zstd => plain = zstd::decode_all(stored).unwrap(),
        }
        plain
    }

    proptest! {
        #[test]
        fn every_coding_gives_back_the_bytes_of_its_pieces(
            pieces in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..9_000), any::<bool>()), 0..20),
            take in 0_usize..20_000,
        ) {
            for codec in [Codec::None, Codec::Gzip, Codec::Zstd] {
                let mut out = Chunks::default();
                let mut encoder = FileEncoder::new(codec, &mut out).unwrap();
                let mut plain = Vec::new();
                for (bytes, deflated) in &pieces {
                    plain.extend_from_slice(bytes);
                    let body = if *deflated {
                        let mut run = Vec::new();
                        DeflateRuns::default().append(bytes, &mut run).unwrap();
                        Body::Deflated { bytes: run.into(), raw_len: bytes.len() as u64, crc32: crc32fast::hash(bytes) }
                    } else {
                        Body::Plain(bytes.clone().into())
                    };
                    encoder.add(body, &mut out).unwrap();
                }
                let summary = encoder.finish(&mut out).unwrap();
                let mut stored = out.take(take).concat();
                prop_assert!(stored.len() == take.min(stored.len() + out.len()));
                stored.extend(out.take(usize::MAX).concat());
                prop_assert!(out.is_empty());
                let out = stored;
                prop_assert_eq!(decode(codec, &out), plain.clone());
                prop_assert_eq!(summary.raw_bytes, plain.len() as u64);
                prop_assert_eq!(summary.stored_bytes, out.len() as u64);
                let sha256: [u8; 32] = Sha256::digest(&out).into();
                prop_assert_eq!(summary.sha256, sha256);
            }
        }
    }
}
