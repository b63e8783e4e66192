//! Compression in segments.
//!
//! A file at rest is one gzip member (RFC 1952) whose deflate stream is made of independent runs: each starts
//! with an empty window and ends on a full flush, so runs can be compressed apart, copied and joined. The
//! member's CRC-32 is combined from those of its runs; an empty final block closes the stream. Every client
//! reads it, which is not so for several members after each other.

use std::io;

use flate2::{Compress, Compression, FlushCompress, Status};

/// Deflate level of what is compressed on its way out. On real FHIR data level 2 of zlib-rs gives 83 to 87 % of the
/// ratio of level 6 at 50 to 70 % of its cost; level 1 gives 62 % of it, level 3 costs more for 5 % less size.
pub const DEFLATE_LEVEL: u32 = 2;
/// Deflate level of a lake's ordered copy: compressed once, stored and sent many times. 10 % smaller than level 2, and
/// faster to expand, for a fifth more of work.
pub const LAKE_LEVEL: u32 = 4;
/// zstd level: smaller and cheaper than gzip at any level on FHIR data.
pub const ZSTD_LEVEL: i32 = 1;

const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// A final block with no data, fixed Huffman codes.
pub(crate) const FINAL_BLOCK: [u8; 2] = [0x03, 0x00];

/// What a full flush, and with it every run, ends with: an empty stored block behind its header bits.
pub(crate) const FLUSHED: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// Compresses runs, reusing its state.
pub struct DeflateRuns {
    compress: Compress,
}

impl Default for DeflateRuns {
    fn default() -> Self {
        DeflateRuns::with_level(DEFLATE_LEVEL)
    }
}

impl DeflateRuns {
    /// A compressor of this level.
    pub fn with_level(level: u32) -> DeflateRuns {
        DeflateRuns { compress: Compress::new(Compression::new(level), false) }
    }

    /// Appends `plain` to `out` as one run. An empty input gives an empty run.
    pub fn append(&mut self, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        if plain.is_empty() {
            return Ok(());
        }
        self.compress.reset();
        let mut consumed = 0;
        loop {
            out.reserve((plain.len() - consumed) / 8 + 1024);
            let before = self.compress.total_in();
            let room_before = out.capacity() - out.len();
            let len_before = out.len();
            let status = self
                .compress
                .compress_vec(&plain[consumed..], out, FlushCompress::Full)
                .map_err(|error| io::Error::other(format!("deflate: {error}")))?;
            consumed += (self.compress.total_in() - before) as usize;
            let room_left = room_before - (out.len() - len_before);
            // The flush is complete when all input is taken and room was left over.
            if consumed == plain.len() && room_left > 0 {
                return Ok(());
            }
            if status == Status::StreamEnd {
                return Err(io::Error::other("deflate: stream ended early"));
            }
        }
    }
}

/// The parts of one gzip member around and between its runs.
pub struct GzipMember {
    crc: crc32fast::Hasher,
    raw_len: u64,
}

impl Default for GzipMember {
    fn default() -> Self {
        GzipMember { crc: crc32fast::Hasher::new(), raw_len: 0 }
    }
}

impl GzipMember {
    /// What the file starts with.
    pub fn header() -> &'static [u8] {
        &GZIP_HEADER
    }

    /// Accounts for a run of plain bytes.
    pub fn add_plain(&mut self, plain: &[u8]) {
        self.crc.update(plain);
        self.raw_len += plain.len() as u64;
    }

    /// Accounts for a run that was compressed elsewhere.
    pub fn add_run(&mut self, crc32: u32, raw_len: u64) {
        self.crc.combine(&crc32fast::Hasher::new_with_initial_len(crc32, raw_len));
        self.raw_len += raw_len;
    }

    /// What the file ends with.
    pub fn trailer(self) -> [u8; 10] {
        let mut trailer = [0; 10];
        trailer[..2].copy_from_slice(&FINAL_BLOCK);
        trailer[2..6].copy_from_slice(&self.crc.finalize().to_le_bytes());
        trailer[6..].copy_from_slice(&(self.raw_len as u32).to_le_bytes());
        trailer
    }
}

/// Expands one run (or several joined ones) to exactly `raw_len` bytes.
pub fn inflate_runs(deflated: &[u8], raw_len: usize, out: &mut Vec<u8>) -> io::Result<()> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("damaged segment: {what}"));
    let mut inflate = flate2::Decompress::new(false);
    let start = out.len();
    out.reserve_exact(raw_len);
    while out.len() - start < raw_len {
        let consumed = inflate.total_in() as usize;
        let before = out.len();
        inflate
            .decompress_vec(&deflated[consumed..], out, flate2::FlushDecompress::None)
            .map_err(|_| damaged("not deflate"))?;
        if out.len() == before && inflate.total_in() as usize == consumed {
            return Err(damaged("too short"));
        }
    }
    if out.len() - start == raw_len { Ok(()) } else { Err(damaged("too long")) }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn joined_runs_are_one_gzip_member(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3_000), 0..12),
            copied in any::<u16>(),
        ) {
            let mut runs = DeflateRuns::default();
            let mut member = GzipMember::default();
            let mut file = GzipMember::header().to_vec();
            for (index, chunk) in chunks.iter().enumerate() {
                let mut run = Vec::new();
                runs.append(chunk, &mut run).unwrap();
                let mut back = Vec::new();
                inflate_runs(&run, chunk.len(), &mut back).unwrap();
                prop_assert_eq!(&back, chunk);
                if copied & (1 << index) == 0 {
                    member.add_plain(chunk);
                } else {
                    member.add_run(crc32fast::hash(chunk), chunk.len() as u64);
                }
                file.extend_from_slice(&run);
            }
            file.extend_from_slice(&member.trailer());
            let mut single = flate2::bufread::GzDecoder::new(file.as_slice());
            let mut plain = Vec::new();
            single.read_to_end(&mut plain).unwrap();
            prop_assert_eq!(plain, chunks.concat());
            prop_assert!(single.into_inner().is_empty(), "something follows the member");
        }
    }

    #[test]
    fn truncated_runs_are_errors() {
        let mut run = Vec::new();
        DeflateRuns::default().append(&vec![7; 100_000], &mut run).unwrap();
        for cut in [0, 1, run.len() / 2] {
            assert!(inflate_runs(&run[..cut], 100_000, &mut Vec::new()).is_err());
        }
    }
}
