//! From the ledger to the files of the result. Nothing else is asked: no listing, no marker, no name.

use std::collections::BTreeSet;

use flatbed_types::job::{JobRecord, Volume};
use flatbed_types::layout::{Writer, output_object};
use flatbed_types::manifest::{Manifest, ManifestEntry};
use flatbed_types::task::{CommitRecord, OutputKind};
use flatbed_types::{Instant, Position};

/// A ledger that contradicts itself: a defect, never published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokenLedger {
    /// Two outputs have the same name.
    #[error("two commits name the same object")]
    SharedObject,
    /// A commit says it wrote rows that its outputs do not hold.
    #[error("a commit's rows and its outputs differ")]
    RowsDiffer,
}

/// The manifest of these commits, and what it amounts to.
pub fn assemble<'a>(
    record: &JobRecord,
    transaction_time: Instant,
    root: &str,
    commits: impl IntoIterator<Item = &'a CommitRecord>,
) -> Result<(Manifest, Volume), BrokenLedger> {
    let mut files: Vec<(u32, Position, ManifestEntry)> = Vec::new();
    let mut nonces = BTreeSet::new();
    for commit in commits {
        let mut data_lines = 0;
        for output in &commit.outputs {
            if !nonces.insert(output.nonce) {
                return Err(BrokenLedger::SharedObject);
            }
            match output.kind {
                OutputKind::References => continue,
                OutputKind::Data => data_lines += output.lines,
                OutputKind::Outcome => {}
            }
            let entry = ManifestEntry {
                kind: output.kind,
                resource_type: output.resource_type,
                file: output.nonce,
                key: output_object(root, Writer::from(commit), output, record.codec),
                lines: output.lines,
                raw_bytes: output.raw_bytes,
                stored_bytes: output.stored_bytes,
                sha256: output.sha256,
            };
            files.push((commit.round, commit.range.lo.clone(), entry));
        }
        if data_lines != commit.rows.written {
            return Err(BrokenLedger::RowsDiffer);
        }
    }
    files.sort_by(|(round_a, lo_a, a), (round_b, lo_b, b)| {
        let order = (a.kind, a.resource_type, round_a, lo_a);
        order.cmp(&(b.kind, b.resource_type, round_b, lo_b)).then(a.file.cmp(&b.file))
    });
    let entries: Vec<ManifestEntry> = files.into_iter().map(|(_, _, entry)| entry).collect();
    let data = entries.iter().filter(|entry| entry.kind == OutputKind::Data);
    let volume = data.fold(Volume::default(), |sum, entry| Volume {
        rows: sum.rows + entry.lines,
        bytes: sum.bytes + entry.raw_bytes,
    });
    Ok((Manifest { transaction_time, codec: record.codec, entries }, volume))
}
