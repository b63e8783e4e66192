//! From pieces to the bytes of one file.

use std::collections::VecDeque;
use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
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

/// Chunks below this are gathered in blocks: a file of many small allocations would leave holes in memory.
const SMALL: usize = 256 << 10;
/// Bytes of such a block.
const BLOCK: usize = 1 << 20;

/// Stored bytes on their way out. Large chunks are passed on as they are, small ones are copied together.
#[derive(Default)]
pub struct Chunks {
    chunks: VecDeque<Bytes>,
    block: BytesMut,
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
        if chunk.len() < SMALL {
            return self.push_slice(&chunk);
        }
        self.len += chunk.len();
        self.end_block();
        self.chunks.push_back(chunk);
    }

    /// Appends a copy of bytes.
    pub fn push_slice(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.block.len() == self.block.capacity() {
                self.end_block();
                self.block = BytesMut::with_capacity(BLOCK);
            }
            let (fits, more) = rest.split_at(rest.len().min(self.block.capacity() - self.block.len()));
            self.block.extend_from_slice(fits);
            rest = more;
        }
    }

    fn end_block(&mut self) {
        if !self.block.is_empty() {
            self.chunks.push_back(self.block.split().freeze());
        }
    }

    /// Takes the first `len` bytes, or all if there are fewer.
    pub fn take(&mut self, len: usize) -> Vec<Bytes> {
        self.end_block();
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

/// One gzip member in the making, with buffers that are used again for each run.
#[derive(Default)]
struct Gzip {
    runs: DeflateRuns,
    member: GzipMember,
    pending: Vec<u8>,
    run: Vec<u8>,
}

impl Gzip {
    /// Compresses what is pending to one run.
    fn flush(&mut self) -> io::Result<&[u8]> {
        self.run.clear();
        self.member.add_plain(&self.pending);
        self.runs.append(&self.pending, &mut self.run)?;
        self.pending.clear();
        Ok(&self.run)
    }
}

enum Coder {
    Plain,
    Gzip(Box<Gzip>),
    Zstd(Box<zstd::Encoder<'static, Vec<u8>>>),
}

/// What has come out so far.
#[derive(Default)]
pub(crate) struct Account {
    hash: Sha256,
    stored_bytes: u64,
}

impl Account {
    /// Gives a chunk out.
    pub(crate) fn pass(&mut self, bytes: Bytes, out: &mut Chunks) {
        self.hash.update(&bytes);
        self.stored_bytes += bytes.len() as u64;
        out.push(bytes);
    }

    /// Gives a copy of bytes out.
    pub(crate) fn copy(&mut self, bytes: &[u8], out: &mut Chunks) {
        self.hash.update(bytes);
        self.stored_bytes += bytes.len() as u64;
        out.push_slice(bytes);
    }

    /// The file is complete.
    pub(crate) fn summary(self, raw_bytes: u64) -> FileSummary {
        let Account { hash, stored_bytes } = self;
        FileSummary { raw_bytes, stored_bytes, sha256: hash.finalize().into() }
    }
}

/// Encodes one file. Bytes come out as they become ready; nothing but a compressor's own window is held back.
pub struct FileEncoder {
    coder: Coder,
    account: Account,
    raw_bytes: u64,
}

impl FileEncoder {
    /// Starts a file; its header goes to `out`.
    pub fn new(codec: Codec, out: &mut Chunks) -> io::Result<FileEncoder> {
        let mut account = Account::default();
        let coder = match codec {
            Codec::None => Coder::Plain,
            Codec::Gzip => {
                account.copy(GzipMember::header(), out);
                Coder::Gzip(Box::default())
            }
            Codec::Zstd => {
                let mut encoder = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Coder::Zstd(Box::new(encoder))
            }
        };
        Ok(FileEncoder { coder, account, raw_bytes: 0 })
    }

    /// Bytes before compression so far.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// Adds the bytes of a piece; what becomes ready goes to `out`.
    pub fn add(&mut self, body: Body, out: &mut Chunks) -> io::Result<()> {
        self.raw_bytes += body.raw_len();
        match (&mut self.coder, body) {
            (Coder::Plain, Body::Plain(bytes)) => self.account.pass(bytes, out),
            (Coder::Gzip(gzip), Body::Plain(bytes)) => {
                gzip.pending.extend_from_slice(&bytes);
                if gzip.pending.len() >= caps::DEFLATE_SEGMENT {
                    self.account.copy(gzip.flush()?, out);
                }
            }
            (Coder::Gzip(gzip), Body::Deflated { bytes, raw_len, crc32 }) => {
                self.account.copy(gzip.flush()?, out);
                gzip.member.add_run(crc32, raw_len);
                self.account.pass(bytes, out);
            }
            (Coder::Zstd(encoder), Body::Plain(bytes)) => {
                encoder.write_all(&bytes)?;
                self.account.copy(encoder.get_ref(), out);
                encoder.get_mut().clear();
            }
            (Coder::Plain | Coder::Zstd(_), Body::Deflated { bytes, raw_len, .. }) => {
                let mut plain = Vec::new();
                let len = usize::try_from(raw_len).map_err(io::Error::other)?;
                crate::segment::inflate_runs(&bytes, len, &mut plain)?;
                self.raw_bytes -= raw_len;
                self.add(Body::Plain(plain.into()), out)?;
            }
        }
        Ok(())
    }

    /// Ends the file; its last bytes go to `out`.
    pub fn finish(self, out: &mut Chunks) -> io::Result<FileSummary> {
        let FileEncoder { coder, mut account, raw_bytes } = self;
        match coder {
            Coder::Plain => {}
            Coder::Gzip(mut gzip) => {
                account.copy(gzip.flush()?, out);
                account.copy(&gzip.member.trailer(), out);
            }
            Coder::Zstd(encoder) => account.copy(&encoder.finish()?, out),
        }
        Ok(account.summary(raw_bytes))
    }
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
