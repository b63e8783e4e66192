//! The manifest of a complete job as a record. The gateway gives it the form of a dialect.

use crate::job::ObjectPointer;
use crate::task::OutputKind;
use crate::{Codec, Instant, Nonce, ResourceType};

/// One file of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestEntry {
    /// What it holds; never `References`.
    pub kind: OutputKind,
    /// The type of its rows.
    pub resource_type: ResourceType,
    /// Identifies the file within the job.
    pub file: Nonce,
    /// The object's key below the output root.
    pub key: String,
    /// Rows.
    pub lines: u64,
    /// Bytes before compression.
    pub raw_bytes: u64,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// SHA-256 of the bytes as stored.
    pub sha256: [u8; 32],
}

/// The files of a complete job. Built from the ledger only, never from a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The moment exported.
    pub transaction_time: Instant,
    /// How the files rest.
    pub codec: Codec,
    /// The files, ordered by type, then by position.
    pub entries: Vec<ManifestEntry>,
}

/// A page of a manifest that may be read while its job runs: never changed, and gone only with the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRecord {
    /// The object: a [`Manifest`] of the files of this page.
    pub object: ObjectPointer,
    /// The number of the first commit whose files are on this page.
    pub first: u64,
    /// The number behind that of the last: where the next page goes on. The last page may have no commits.
    pub behind: u64,
    /// Files of rows on it.
    pub files: u64,
}
