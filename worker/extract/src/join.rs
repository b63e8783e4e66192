//! Several finished files of one coding joined into one, without decoding or encoding anything again.
//!
//! Plain NDJSON is put behind each other as it is, and so are zstd frames. Of gzip files the deflate runs are put
//! behind each other in one member (`segment`): clients exist that read only the first of several members.
//!
//! Every file is checked against its summary while it streams through; what comes out must not be used before
//! [`Joiner::finish`] has succeeded. It does not know where the bytes come from.

use std::io;

use bytes::Bytes;
use flatbed_types::Codec;
use sha2::{Digest, Sha256};

use crate::encode::{Account, Chunks, FileSummary};
use crate::segment::{FINAL_BLOCK, FLUSHED, GzipMember};

/// Bytes of a gzip file of ours before its runs.
const HEAD: usize = 10;
/// Bytes behind them: the final block, CRC-32 and length.
const TAIL: usize = 10;

/// A file that is coming in.
struct Incoming {
    expected: FileSummary,
    hash: Sha256,
    /// Bytes that have come.
    at: u64,
    head: [u8; HEAD],
    tail: [u8; TAIL],
    /// The last bytes of the runs.
    last: [u8; FLUSHED.len()],
}

/// Joins files, at least one; bytes come out as they come in.
pub struct Joiner {
    gzip: Option<GzipMember>,
    account: Account,
    raw_bytes: u64,
    incoming: Option<Incoming>,
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a file to be joined is damaged: {what}"))
}

impl Joiner {
    /// Starts a file of this coding; its header goes to `out`.
    pub fn new(codec: Codec, out: &mut Chunks) -> Joiner {
        let mut account = Account::default();
        let gzip = (codec == Codec::Gzip).then(|| {
            account.copy(GzipMember::header(), out);
            GzipMember::default()
        });
        Joiner { gzip, account, raw_bytes: 0, incoming: None }
    }

    /// Bytes before compression of the files that are complete.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// The next bytes belong to a file that must amount to this.
    ///
    /// # Errors
    /// When the file before is not complete.
    pub fn begin(&mut self, expected: FileSummary) -> io::Result<()> {
        if self.incoming.is_some() {
            return Err(damaged("it did not end"));
        }
        if self.gzip.is_some() && expected.stored_bytes < (HEAD + TAIL) as u64 {
            return Err(damaged("too short"));
        }
        let (hash, head, tail, last) = (Sha256::new(), [0; HEAD], [0; TAIL], [0; FLUSHED.len()]);
        self.incoming = Some(Incoming { expected, hash, at: 0, head, tail, last });
        Ok(())
    }

    /// Bytes of the present file, in order; what can go on goes to `out`.
    ///
    /// # Errors
    /// When there are more than there should be.
    pub fn push(&mut self, bytes: Bytes, out: &mut Chunks) -> io::Result<()> {
        let incoming = self.incoming.as_mut().ok_or_else(|| damaged("bytes of no file"))?;
        incoming.hash.update(&bytes);
        let from = incoming.at;
        incoming.at += bytes.len() as u64;
        let end = incoming.expected.stored_bytes;
        if incoming.at > end {
            return Err(damaged("too long"));
        }
        if self.gzip.is_none() {
            self.account.pass(bytes, out);
            return Ok(());
        }
        // Places of the file as places in `bytes`.
        let place = |at: u64| at.saturating_sub(from).min(bytes.len() as u64) as usize;
        let (runs_from, runs_to) = (place(HEAD as u64), place(end - TAIL as u64));
        overlay(&mut incoming.head, from, &bytes[..runs_from]);
        let tail_from = (from + runs_to as u64).saturating_sub(end - TAIL as u64);
        overlay(&mut incoming.tail, tail_from, &bytes[runs_to..]);
        let runs = bytes.slice(runs_from..runs_to.max(runs_from));
        for byte in &runs[runs.len().saturating_sub(FLUSHED.len())..] {
            incoming.last.rotate_left(1);
            incoming.last[FLUSHED.len() - 1] = *byte;
        }
        self.account.pass(runs, out);
        Ok(())
    }

    /// The present file is complete.
    ///
    /// # Errors
    /// When it is not what it should be.
    pub fn end(&mut self) -> io::Result<()> {
        let Incoming { expected, hash, at, head, tail, last } =
            self.incoming.take().ok_or_else(|| damaged("the end of no file"))?;
        if at != expected.stored_bytes {
            return Err(damaged("too short"));
        }
        let sha256: [u8; 32] = hash.finalize().into();
        if sha256 != expected.sha256 {
            return Err(damaged("its checksum is another"));
        }
        self.raw_bytes += expected.raw_bytes;
        let Some(member) = &mut self.gzip else { return Ok(()) };
        let [crc @ .., l0, l1, l2, l3] = &tail[FINAL_BLOCK.len()..] else {
            return Err(damaged("no trailer"));
        };
        let crc32 = u32::from_le_bytes(crc.try_into().map_err(|_| damaged("no trailer"))?);
        let has_runs = expected.stored_bytes > (HEAD + TAIL) as u64;
        let is_ours = head == GzipMember::header()
            && tail.starts_with(&FINAL_BLOCK)
            && u32::from_le_bytes([*l0, *l1, *l2, *l3]) == expected.raw_bytes as u32
            && (last == FLUSHED || !has_runs);
        if !is_ours {
            return Err(damaged("it is no member of flushed runs"));
        }
        member.add_run(crc32, expected.raw_bytes);
        Ok(())
    }

    /// Ends the joined file; its last bytes go to `out`.
    ///
    /// # Errors
    /// When the last file is not complete.
    pub fn finish(mut self, out: &mut Chunks) -> io::Result<FileSummary> {
        if self.incoming.is_some() {
            return Err(damaged("it did not end"));
        }
        if let Some(member) = self.gzip.take() {
            self.account.copy(&member.trailer(), out);
        }
        Ok(self.account.summary(self.raw_bytes))
    }
}

/// Copies bytes to a place of a fixed part of a file; a place at or behind its end takes none.
fn overlay(part: &mut [u8], at: u64, bytes: &[u8]) {
    let at = usize::try_from(at).unwrap_or(usize::MAX).min(part.len());
    let len = bytes.len().min(part.len() - at);
    part[at..at + len].copy_from_slice(&bytes[..len]);
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;
    use crate::encode::FileEncoder;
    use crate::piece::Body;

    const CODECS: [Codec; 3] = [Codec::None, Codec::Gzip, Codec::Zstd];

    fn file(codec: Codec, pieces: &[Vec<u8>]) -> (Vec<u8>, FileSummary) {
        let mut out = Chunks::default();
        let mut encoder = FileEncoder::new(codec, &mut out).unwrap();
        for piece in pieces {
            encoder.add(Body::Plain(piece.clone().into()), &mut out).unwrap();
        }
        let summary = encoder.finish(&mut out).unwrap();
        (out.take(usize::MAX).concat(), summary)
    }

    fn decode(codec: Codec, stored: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        match codec {
            Codec::None => plain.extend_from_slice(stored),
            Codec::Gzip => {
                // Reads one member, as curl does.
                let mut reader = flate2::bufread::GzDecoder::new(stored);
                reader.read_to_end(&mut plain).unwrap();
                assert!(reader.into_inner().is_empty(), "something follows the member");
            }
            Codec::Zstd => plain = zstd::decode_all(stored).unwrap(),
        }
        plain
    }

    fn join(
        codec: Codec,
        files: &[(Vec<u8>, FileSummary)],
        step: usize,
    ) -> io::Result<(Vec<u8>, FileSummary)> {
        let mut out = Chunks::default();
        let mut joiner = Joiner::new(codec, &mut out);
        for (stored, summary) in files {
            joiner.begin(*summary)?;
            for chunk in stored.chunks(step) {
                joiner.push(Bytes::copy_from_slice(chunk), &mut out)?;
            }
            joiner.end()?;
        }
        let summary = joiner.finish(&mut out)?;
        Ok((out.take(usize::MAX).concat(), summary))
    }

    proptest! {
        #[test]
        fn joined_files_hold_what_their_parts_held(
            files in proptest::collection::vec(
                proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..4_000), 0..4),
                1..6,
            ),
            step in prop_oneof![1_usize..40, 40_usize..20_000],
        ) {
            for codec in CODECS {
                let encoded: Vec<_> = files.iter().map(|pieces| file(codec, pieces)).collect();
                let (joined, summary) = join(codec, &encoded, step).unwrap();
                let plain: Vec<u8> = files.concat().concat();
                prop_assert_eq!(decode(codec, &joined), plain.clone());
                let sha256: [u8; 32] = Sha256::digest(&joined).into();
                let (raw_bytes, stored_bytes) = (plain.len() as u64, joined.len() as u64);
                prop_assert_eq!(summary, FileSummary { raw_bytes, stored_bytes, sha256 });
                // A joined file can be joined again.
                let twice = [(joined.clone(), summary), (joined, summary)];
                let (joined, _) = join(codec, &twice, step).unwrap();
                prop_assert_eq!(decode(codec, &joined), [plain.clone(), plain].concat());
            }
        }

        #[test]
        fn no_change_of_a_file_goes_unseen(at in any::<proptest::sample::Index>(), bit in 0_u8..8, longer in any::<bool>()) {
            for codec in CODECS {
                let (mut stored, summary) = file(codec, &[b"{\"resourceType\":\"Patient\"}\n".to_vec()]);
                let good = stored.clone();
                stored[at.index(good.len())] ^= 1_u8 << bit;
                prop_assert!(join(codec, &[(stored, summary)], 7).is_err());
                let resized = if longer { [&good[..], b"x"].concat() } else { good[..good.len() - 1].to_vec() };
                prop_assert!(join(codec, &[(resized, summary)], 7).is_err());
            }
        }
    }

    /// Whoever wrote such a file, its checksums are right: joined as if it were ours, it would not be one stream.
    #[test]
    fn gzip_of_others_is_refused() {
        let mut encoder = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut encoder, &b"{}\n".repeat(10_000)).unwrap();
        let stored = encoder.finish().unwrap();
        let summary = FileSummary {
            raw_bytes: 30_000,
            stored_bytes: stored.len() as u64,
            sha256: Sha256::digest(&stored).into(),
        };
        let error = join(Codec::Gzip, &[(stored, summary)], 1_000).unwrap_err();
        assert!(error.to_string().contains("no member of flushed runs"), "{error}");
    }
}
