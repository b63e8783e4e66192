//! Decompression on the way out, in bounded memory: input is taken in small pieces, so that one step yields
//! about a buffer, and the next step happens when the reader asks for it.

use std::io::{self, Write};
use std::ops::Range;

use bytes::{Buf, Bytes};
use flatbed_types::Codec;
use flate2::write::MultiGzDecoder;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use zstd::stream::raw::{InBuffer, Operation, OutBuffer};

/// Input of one step. Deflate expands at most about 1000 times, so that a step yields 4 MiB at worst.
const STEP_INPUT: usize = 4 << 10;

/// Output of one step, where the decoder lets us bound it.
const STEP_OUTPUT: usize = 128 << 10;

/// A decoder of one file.
pub(super) enum Decoding {
    /// Plain bytes.
    None,
    /// One or more gzip members.
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    /// One or more zstd frames.
    Zstd(Zstd),
}

/// A zstd decoder and whether it stands between two frames.
pub(super) struct Zstd {
    decoder: zstd::stream::raw::Decoder<'static>,
    between_frames: bool,
}

impl Decoding {
    pub fn new(codec: Codec) -> io::Result<Decoding> {
        Ok(match codec {
            Codec::None => Decoding::None,
            Codec::Gzip => Decoding::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            Codec::Zstd => {
                let decoder = zstd::stream::raw::Decoder::new()?;
                Decoding::Zstd(Zstd { decoder, between_frames: false })
            }
        })
    }

    /// Takes some of the input, which is not empty, and gives what comes out; that may be nothing yet.
    fn step(&mut self, input: &mut Bytes) -> io::Result<Bytes> {
        match self {
            Decoding::None => Ok(std::mem::take(input)),
            Decoding::Gzip(decoder) => {
                let piece = &input[..input.len().min(STEP_INPUT)];
                let taken = decoder.write(piece)?;
                if taken == 0 {
                    return Err(damaged());
                }
                input.advance(taken);
                Ok(std::mem::take(decoder.get_mut()).into())
            }
            Decoding::Zstd(zstd) => {
                let (taken, output) = zstd.run(input)?;
                if taken == 0 && output.is_empty() {
                    return Err(damaged());
                }
                input.advance(taken);
                Ok(output)
            }
        }
    }

    /// What is left when there is no more input; called until it is empty. Fails when the input was cut off
    /// or its checksum is wrong.
    fn finish(&mut self) -> io::Result<Bytes> {
        match self {
            Decoding::None => Ok(Bytes::new()),
            Decoding::Gzip(decoder) => {
                decoder.try_finish()?;
                Ok(std::mem::take(decoder.get_mut()).into())
            }
            Decoding::Zstd(zstd) => {
                if zstd.between_frames {
                    return Ok(Bytes::new());
                }
                let (_, output) = zstd.run(&[])?;
                if output.is_empty() && !zstd.between_frames { Err(damaged()) } else { Ok(output) }
            }
        }
    }
}

impl Zstd {
    fn run(&mut self, input: &[u8]) -> io::Result<(usize, Bytes)> {
        let mut output = vec![0; STEP_OUTPUT];
        let mut source = InBuffer::around(input);
        let mut target = OutBuffer::around(output.as_mut_slice());
        let hint = self.decoder.run(&mut source, &mut target)?;
        self.between_frames = hint == 0;
        let (taken, written) = (source.pos(), target.pos());
        output.truncate(written);
        Ok((taken, output.into()))
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a stored file is damaged")
}

struct Walk {
    input: BoxStream<'static, io::Result<Bytes>>,
    decoding: Decoding,
    pending: Bytes,
    input_ended: bool,
    /// Bytes decoded so far.
    at: u64,
    part: Range<u64>,
    total: u64,
}

/// The bytes `part` of the decoded input, which has `total` bytes. The last bytes of the whole come out only
/// after its end has been checked, so that a damaged file never looks complete.
pub(super) fn decoded(
    input: BoxStream<'static, io::Result<Bytes>>,
    decoding: Decoding,
    part: Range<u64>,
    total: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let walk = Walk { input, decoding, pending: Bytes::new(), input_ended: false, at: 0, part, total };
    stream::try_unfold(walk, |mut walk| async move { Ok(walk.next().await?.map(|chunk| (chunk, walk))) })
}

impl Walk {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while self.at < self.part.end {
            let mut chunk = self.decode().await?;
            if chunk.is_empty() {
                return Err(damaged());
            }
            let start = self.at;
            self.at += chunk.len() as u64;
            if self.at > self.total {
                return Err(damaged());
            }
            if self.at == self.total && !self.decode().await?.is_empty() {
                return Err(damaged());
            }
            let end = self.part.end.saturating_sub(start).min(chunk.len() as u64) as usize;
            chunk.truncate(end);
            chunk.advance(self.part.start.saturating_sub(start).min(end as u64) as usize);
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
            // Skipping to a part far behind must not keep the thread from other requests.
            tokio::task::consume_budget().await;
        }
        Ok(None)
    }

    /// The next decoded bytes; empty at the end.
    async fn decode(&mut self) -> io::Result<Bytes> {
        loop {
            while !self.pending.is_empty() {
                let output = self.decoding.step(&mut self.pending)?;
                if !output.is_empty() {
                    return Ok(output);
                }
            }
            if self.input_ended {
                return self.decoding.finish();
            }
            match self.input.next().await {
                Some(chunk) => self.pending = chunk?,
                None => self.input_ended = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;
    use proptest::prelude::*;

    fn encode(codec: Codec, data: &[u8], parts: usize) -> Vec<u8> {
        // Several members and frames after each other are one valid stream.
        let pieces = data.chunks(data.len().div_ceil(parts).max(1));
        let coded = pieces.map(|piece| match codec {
            Codec::None => piece.to_vec(),
            Codec::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(piece).unwrap();
                encoder.finish().unwrap()
            }
            Codec::Zstd => {
                let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
                encoder.include_checksum(true).unwrap();
                encoder.write_all(piece).unwrap();
                encoder.finish().unwrap()
            }
        });
        coded.flatten().collect()
    }

    fn read(codec: Codec, coded: &[u8], chunk: usize, part: Range<u64>, total: usize) -> io::Result<Vec<u8>> {
        let chunks: Vec<_> = coded.chunks(chunk).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let out = decoded(stream::iter(chunks).boxed(), Decoding::new(codec)?, part, total as u64);
        let chunks: Vec<Bytes> = wait(out.try_collect())?;
        Ok(chunks.concat())
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn any_codec() -> impl Strategy<Value = Codec> {
        prop_oneof![Just(Codec::None), Just(Codec::Gzip), Just(Codec::Zstd)]
    }

    proptest! {
        #[test]
        fn a_part_equals_the_slice(
            seed in proptest::collection::vec(any::<u8>(), 1..400),
            copies in 1..400_usize,
            codec in any_codec(),
            parts in 1..4_usize,
            chunk in 1..9_000_usize,
            (a, b) in (0.0..1.0_f64, 0.0..1.0_f64),
        ) {
            let data = seed.repeat(copies);
            let place = |share: f64| (share * data.len() as f64) as u64;
            let (start, end) = (place(a.min(b)), place(a.max(b)).max(place(a.min(b)) + 1));
            let coded = encode(codec, &data, parts);
            let out = read(codec, &coded, chunk, start..end, data.len()).unwrap();
            prop_assert_eq!(out, data[start as usize..end as usize].to_vec());
            let all = read(codec, &coded, chunk, 0..data.len() as u64, data.len()).unwrap();
            prop_assert_eq!(all, data);
        }

        #[test]
        fn a_damaged_file_never_looks_complete(
            at in 0.0..1.0_f64, cut in any::<bool>(), codec in prop_oneof![Just(Codec::Gzip), Just(Codec::Zstd)],
        ) {
            let data: Vec<u8> = (0..60_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
            let mut coded = encode(codec, &data, 1);
            let place = (at * coded.len() as f64) as usize;
            if cut { coded.truncate(place) } else { coded[place] ^= 0x55 }
            // What is not noticed has not changed a byte that is delivered (a header field without meaning).
            if let Ok(out) = read(codec, &coded, 4_096, 0..data.len() as u64, data.len()) {
                prop_assert!(!cut && out == data);
            }
        }
    }

    #[test]
    fn a_file_of_another_length_is_refused() {
        for codec in [Codec::None, Codec::Gzip, Codec::Zstd] {
            let coded = encode(codec, b"0123456789", 1);
            assert!(read(codec, &coded, 5, 0..9, 9).is_err(), "{codec}");
            assert!(read(codec, &coded, 5, 0..11, 11).is_err(), "{codec}");
        }
    }

    #[test]
    fn a_step_over_highly_compressible_input_stays_small() {
        let data = vec![b' '; 64 << 20];
        for codec in [Codec::Gzip, Codec::Zstd] {
            let coded = Bytes::from(encode(codec, &data, 1));
            let input = stream::iter([Ok(coded)]).boxed();
            let out = decoded(input, Decoding::new(codec).unwrap(), 0..data.len() as u64, data.len() as u64);
            let sizes: Vec<usize> = wait(out.map_ok(|chunk| chunk.len()).try_collect()).unwrap();
            assert_eq!(sizes.iter().sum::<usize>(), data.len());
            assert!(sizes.iter().all(|size| *size <= 4 << 20), "{codec}: {:?}", sizes.iter().max());
        }
    }
}
