//! From the ledger to the files of the result. Nothing else is asked: no listing, no marker, no name.
//!
//! Files that a merge has joined are left out; the joined file stands where the first of them stood. A ledger that
//! contradicts itself makes no manifest. A page lists files of some commits, and never one that was joined.

use std::collections::{BTreeMap, BTreeSet};

use flatbed_types::job::{JobRecord, Volume};
use flatbed_types::layout::{Writer, output_object};
use flatbed_types::manifest::{Manifest, ManifestEntry};
use flatbed_types::task::{CommitRecord, OutputKind, OutputObject};
use flatbed_types::{Codec, Instant, Nonce, Position};

/// A ledger that contradicts itself: a defect, never published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokenLedger {
    /// Two outputs have the same name.
    #[error("two commits name the same object")]
    SharedObject,
    /// A commit says it wrote rows that its outputs do not hold.
    #[error("a commit's rows and its outputs differ")]
    RowsDiffer,
    /// A merge replaces something that is no file of the result.
    #[error("a merge replaces a file that no commit names")]
    UnknownReplaced,
    /// Two merges replace the same file.
    #[error("two merges replace the same file")]
    ReplacedTwice,
    /// A job whose pages are published has joined files that they list.
    #[error("a merge in a job that publishes pages")]
    MergedPage,
    /// A page of a job whose moment is not known.
    #[error("a planned job has no transaction time")]
    NoTime,
    /// A merged file differs in its type or number of lines from the files in whose place it stands.
    #[error("a merged file and the files that it replaces differ")]
    MergeDiffers,
}

/// A file with its place among those of its kind and type.
struct Placed {
    round: u32,
    lo: Position,
    entry: ManifestEntry,
    replaced: bool,
}

/// A commit that joined files.
struct Merged {
    /// The joined file.
    file: Nonce,
    replaces: Vec<Nonce>,
}

/// The manifest of these commits, in the order of their numbers, and what it amounts to.
pub fn assemble(
    record: &JobRecord,
    transaction_time: Instant,
    root: &str,
    commits: impl IntoIterator<Item = CommitRecord>,
) -> Result<(Manifest, Volume), BrokenLedger> {
    let mut files = BTreeMap::new();
    let mut sidecars = BTreeSet::new();
    let mut merges = Vec::new();
    for commit in commits {
        let mut data_lines = 0_u64;
        for output in &commit.outputs {
            if files.contains_key(&output.nonce) || sidecars.contains(&output.nonce) {
                return Err(BrokenLedger::SharedObject);
            }
            match output.kind {
                OutputKind::References => {
                    sidecars.insert(output.nonce);
                    continue;
                }
                OutputKind::Data => data_lines = output.lines.saturating_add(data_lines),
                OutputKind::Outcome | OutputKind::Deleted => {}
            }
            files.insert(output.nonce, placed(root, record.codec, &commit, output));
        }
        if data_lines != commit.rows.written {
            return Err(BrokenLedger::RowsDiffer);
        }
        if !commit.replaces.is_empty() {
            let [output] = commit.outputs.as_slice() else { return Err(BrokenLedger::MergeDiffers) };
            merges.push(Merged { file: output.nonce, replaces: commit.replaces });
        }
    }
    for merged in &merges {
        replace(&mut files, merged)?;
    }
    Ok(in_order(record, transaction_time, files))
}

fn placed(root: &str, codec: Codec, commit: &CommitRecord, output: &OutputObject) -> Placed {
    let entry = ManifestEntry {
        kind: output.kind,
        resource_type: output.resource_type,
        file: output.nonce,
        key: output_object(root, Writer::from(commit), output, codec),
        lines: output.lines,
        raw_bytes: output.raw_bytes,
        stored_bytes: output.stored_bytes,
        sha256: output.sha256,
    };
    Placed { round: commit.round, lo: commit.range.lo.clone(), entry, replaced: false }
}

/// Which of a commit's files a page lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// All that a manifest lists.
    All,
    /// Those of rows, and of what was deleted.
    Rows,
    /// OperationOutcomes.
    Outcomes,
}

impl Listed {
    fn has(self, kind: OutputKind) -> bool {
        match kind {
            OutputKind::Data | OutputKind::Deleted => self != Listed::Outcomes,
            OutputKind::Outcome => self != Listed::Rows,
            OutputKind::References => false,
        }
    }
}

/// A page of the manifest: these files of these commits, in the order of a manifest.
pub fn page(
    record: &JobRecord,
    transaction_time: Instant,
    root: &str,
    commits: impl IntoIterator<Item = (Listed, CommitRecord)>,
) -> Result<Manifest, BrokenLedger> {
    let mut files = BTreeMap::new();
    for (listed, commit) in commits {
        if !commit.replaces.is_empty() {
            return Err(BrokenLedger::MergedPage);
        }
        for output in commit.outputs.iter().filter(|output| listed.has(output.kind)) {
            let file = placed(root, record.codec, &commit, output);
            if files.insert(output.nonce, file).is_some() {
                return Err(BrokenLedger::SharedObject);
            }
        }
    }
    Ok(in_order(record, transaction_time, files).0)
}

/// Takes the joined files out and puts the file that has their rows in their place.
fn replace(files: &mut BTreeMap<Nonce, Placed>, merged: &Merged) -> Result<(), BrokenLedger> {
    let Some(Placed { entry, .. }) = files.get(&merged.file) else {
        return Err(BrokenLedger::UnknownReplaced);
    };
    let (kind, resource_type, mut missing) = (entry.kind, entry.resource_type, entry.lines);
    let mut first: Option<(u32, Position)> = None;
    for nonce in &merged.replaces {
        let file = files.get_mut(nonce).ok_or(BrokenLedger::UnknownReplaced)?;
        if std::mem::replace(&mut file.replaced, true) {
            return Err(BrokenLedger::ReplacedTwice);
        }
        if (file.entry.kind, file.entry.resource_type) != (kind, resource_type) || *nonce == merged.file {
            return Err(BrokenLedger::MergeDiffers);
        }
        missing = missing.checked_sub(file.entry.lines).ok_or(BrokenLedger::MergeDiffers)?;
        let place = (file.round, file.lo.clone());
        first = Some(first.map_or(place.clone(), |first| first.min(place)));
    }
    if missing != 0 {
        return Err(BrokenLedger::MergeDiffers);
    }
    if let (Some(file), Some(place)) = (files.get_mut(&merged.file), first) {
        (file.round, file.lo) = place;
    }
    Ok(())
}

fn in_order(
    record: &JobRecord,
    transaction_time: Instant,
    files: BTreeMap<Nonce, Placed>,
) -> (Manifest, Volume) {
    let mut files: Vec<Placed> = files.into_values().filter(|file| !file.replaced).collect();
    files.sort_by(|a, b| {
        let order = (a.entry.kind, a.entry.resource_type, a.round, &a.lo);
        order
            .cmp(&(b.entry.kind, b.entry.resource_type, b.round, &b.lo))
            .then(a.entry.file.cmp(&b.entry.file))
    });
    let entries: Vec<ManifestEntry> = files.into_iter().map(|file| file.entry).collect();
    let data = entries.iter().filter(|entry| entry.kind == OutputKind::Data);
    let volume = data.fold(Volume::default(), |sum, entry| Volume {
        rows: sum.rows.saturating_add(entry.lines),
        bytes: sum.bytes.saturating_add(entry.raw_bytes),
    });
    (Manifest { transaction_time, codec: record.codec, entries }, volume)
}

#[cfg(test)]
mod tests {
    use flatbed_types::job::JobRecord;
    use flatbed_types::task::{OutputObject, RowCounts};
    use flatbed_types::{
        AttemptId, ClientId, Epoch, ExportRequest, JobId, KeyRange, Level, ResourceType, TaskId,
    };

    use super::*;

    const NOW: Instant = Instant::from_millis(1);

    fn output(nonce: u64, kind: OutputKind, lines: u64) -> OutputObject {
        let (raw_bytes, stored_bytes) = (lines * 10, lines * 3);
        let resource_type = ResourceType::PATIENT;
        OutputObject {
            kind,
            resource_type,
            nonce: Nonce(nonce),
            lines,
            raw_bytes,
            stored_bytes,
            sha256: [0; 32],
        }
    }

    fn commit(nonce: u64, lines: u64, lo: u8, replaces: &[u64]) -> CommitRecord {
        CommitRecord {
            task: TaskId(1),
            attempt: AttemptId::new(Epoch(1), 1).unwrap(),
            segment: nonce as u32,
            round: 0,
            range: KeyRange { lo: Position::At(vec![lo]), hi: Position::End },
            outputs: vec![output(nonce, OutputKind::Data, lines)],
            rows: RowCounts { written: lines, ..RowCounts::default() },
            fingerprint: 0,
            replaces: replaces.iter().copied().map(Nonce).collect(),
        }
    }

    fn assembled(commits: &[CommitRecord]) -> Result<(Vec<u64>, Volume), BrokenLedger> {
        let request = ExportRequest::everything(Level::Patient);
        let record = JobRecord::new(JobId(1), ClientId::open(), request, Codec::Gzip, NOW);
        let (manifest, volume) = assemble(&record, NOW, "root", commits.to_vec())?;
        Ok((manifest.entries.iter().map(|entry| entry.file.0).collect(), volume))
    }

    #[test]
    fn a_merged_file_stands_where_the_first_of_its_inputs_stood() {
        let mut commits = vec![commit(10, 1, 0, &[]), commit(30, 3, 2, &[]), commit(20, 2, 1, &[])];
        let before = assembled(&commits).unwrap();
        assert_eq!(before, (vec![10, 20, 30], Volume { rows: 6, bytes: 60 }));
        commits.push(commit(40, 5, 0, &[20, 30]));
        commits.push(commit(50, 4, 3, &[]));
        let after = assembled(&commits).unwrap();
        assert_eq!(after, (vec![10, 40, 50], Volume { rows: 10, bytes: 100 }));
    }

    #[test]
    fn a_page_lists_what_it_is_told_to_of_its_commits() {
        let request = ExportRequest::everything(Level::Patient);
        let record = JobRecord::new(JobId(1), ClientId::open(), request, Codec::Gzip, NOW);
        let listed = |commits: Vec<(Listed, CommitRecord)>| {
            let page = page(&record, NOW, "root", commits)?;
            Ok(page.entries.iter().map(|entry| entry.file.0).collect::<Vec<u64>>())
        };
        let both = |nonce: u64, lo| {
            let mut commit = commit(nonce, 2, lo, &[]);
            commit.outputs.push(output(nonce + 1, OutputKind::Outcome, 1));
            commit.outputs.push(output(nonce + 2, OutputKind::References, 1));
            commit.outputs.push(output(nonce + 3, OutputKind::Deleted, 1));
            commit
        };
        let commits =
            vec![(Listed::Outcomes, both(10, 9)), (Listed::All, both(20, 5)), (Listed::Rows, both(30, 2))];
        assert_eq!(listed(commits), Ok(vec![30, 20, 21, 11, 33, 23]));
        let twice = vec![(Listed::Rows, both(10, 1)), (Listed::Rows, both(10, 1))];
        assert_eq!(listed(twice), Err(BrokenLedger::SharedObject));
        let merge = vec![(Listed::All, commit(10, 1, 0, &[7]))];
        assert_eq!(listed(merge), Err(BrokenLedger::MergedPage));
        assert_eq!(listed(Vec::new()), Ok(Vec::new()));
    }

    #[test]
    fn a_ledger_that_contradicts_itself_makes_no_manifest() {
        let base = [commit(1, 1, 0, &[]), commit(2, 2, 1, &[]), commit(3, 3, 2, &[])];
        let with = |more: &[CommitRecord]| assembled(&[&base[..], more].concat()).unwrap_err();
        assert_eq!(with(&[commit(2, 2, 3, &[])]), BrokenLedger::SharedObject);
        assert_eq!(with(&[commit(4, 3, 0, &[1, 9])]), BrokenLedger::UnknownReplaced);
        assert_eq!(with(&[commit(4, 2, 0, &[1, 1])]), BrokenLedger::ReplacedTwice);
        let twice = [commit(4, 3, 0, &[1, 2]), commit(5, 5, 0, &[2, 3])];
        assert_eq!(with(&twice), BrokenLedger::ReplacedTwice);
        assert_eq!(with(&[commit(4, 4, 0, &[1, 2])]), BrokenLedger::MergeDiffers);
        assert_eq!(with(&[commit(4, 2, 0, &[1, 2])]), BrokenLedger::MergeDiffers);
        assert_eq!(with(&[commit(4, 4, 0, &[4])]), BrokenLedger::MergeDiffers);
        let mut other_type = commit(4, 3, 0, &[1, 2]);
        other_type.outputs[0].resource_type = ResourceType::GROUP;
        assert_eq!(with(&[other_type]), BrokenLedger::MergeDiffers);
        let mut sidecar = commit(4, 0, 3, &[]);
        sidecar.outputs = vec![output(6, OutputKind::References, 1)];
        let replaces_a_sidecar = [sidecar, commit(5, 2, 0, &[1, 6])];
        assert_eq!(with(&replaces_a_sidecar), BrokenLedger::UnknownReplaced);
        let mut more_rows = commit(4, 1, 3, &[]);
        more_rows.rows.written = 2;
        assert_eq!(with(&[more_rows]), BrokenLedger::RowsDiffer);
    }
}
