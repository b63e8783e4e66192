//! What a reader gives out.

use bytes::Bytes;
use flatbed_types::Position;

/// The bytes of a piece.
#[derive(Clone)]
pub enum Body {
    /// NDJSON as it is. Complete lines, each with its `\n`, unless the piece does not end a row.
    Plain(Bytes),
    /// The same, already compressed: a raw deflate run that starts with an empty window and ends on a full
    /// flush, so that it can be joined with others into one gzip member.
    Deflated {
        /// The raw deflate bytes.
        bytes: Bytes,
        /// Length of the plain bytes.
        raw_len: u64,
        /// CRC-32 of the plain bytes.
        crc32: u32,
    },
}

impl Body {
    /// Length of the plain bytes.
    pub fn raw_len(&self) -> u64 {
        match self {
            Body::Plain(bytes) => bytes.len() as u64,
            Body::Deflated { raw_len, .. } => *raw_len,
        }
    }

    /// Bytes that the piece holds in memory.
    pub fn memory(&self) -> usize {
        match self {
            Body::Plain(bytes) | Body::Deflated { bytes, .. } => bytes.len(),
        }
    }
}

/// Some rows of a scan, in order; or a part of one very long row. Holds patient data: no `Debug`.
#[derive(Clone)]
pub struct Piece {
    /// The bytes; empty where rows were read but none is wanted.
    pub body: Body,
    /// Lines that end in this piece.
    pub rows: u64,
    /// Wrapping sum of [`line_fingerprint`] over the lines that end in this piece.
    pub fingerprint: u128,
    /// Where the scan goes on: every row of the range below this place has been given or left out. `None`
    /// inside a long row, where the output cannot be sealed.
    pub next: Option<Position>,
    /// The most bytes that may still come before the output can be sealed: 0 where `next` is told, `u64::MAX` where
    /// the source does not know.
    pub more: u64,
    /// Of a scan that keeps patients apart: whose rows these are, and whose were left out. `None` where the piece says
    /// only how far the scan has come.
    pub patient: Option<Vec<u8>>,
    /// Keys (`type ‖ 0x00 ‖ id`) of supporting resources that rows of this piece refer to, in no order,
    /// repeats allowed; only when the scan collects them.
    pub references: Vec<Vec<u8>>,
    /// Rows left out because the request does not ask for them.
    pub filtered: u64,
    /// Rows left out because one of their patients is not among those asked for.
    pub withheld: u64,
    /// Rows left out because one of their patients must be ([`Select::Without`](crate::source::Select::Without)).
    pub excluded: u64,
}

impl Piece {
    /// A piece without rows that says how far the scan has come.
    pub fn empty(next: Position) -> Piece {
        Piece {
            body: Body::Plain(Bytes::new()),
            rows: 0,
            fingerprint: 0,
            next: Some(next),
            more: 0,
            patient: None,
            references: Vec::new(),
            filtered: 0,
            withheld: 0,
            excluded: 0,
        }
    }
}

/// The fingerprint of one line (without its `\n`): XXH3-128. Sums of it compare sets of lines whatever their
/// order.
pub fn line_fingerprint(line: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(line)
}
