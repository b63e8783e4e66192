//! What the lake's tests share: a lake in a temporary folder, and ways to read all of it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flatbed_types::{Instant, Lane, Position, Section};

use super::{LakeOptions, LakeSource};
use crate::piece::{Body, Piece, line_fingerprint};
use crate::segment::{GzipMember, inflate_runs};
use crate::source::{NoProgress, Problem, Scan, Snapshot, Source, Window};

/// The moment that the tests' clock shows.
pub(super) const NOW: Instant = Instant::from_millis(1_800_000_000_000);

pub(super) struct TestLake {
    folder: tempfile::TempDir,
    pub(super) options: LakeOptions,
}

impl TestLake {
    pub(super) fn new() -> TestLake {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("lake")).unwrap();
        let options = LakeOptions {
            index: folder.path().join("index"),
            scratch: folder.path().join("scratch"),
            max_line: flatbed_types::caps::DEFAULT_MAX_LINE,
            threads: 2,
            sort_budget: 64 << 20,
            beyond_the_definition: true,
            now: || NOW,
        };
        TestLake { folder, options }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("lake")
    }

    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        // A fixed time, so that rows without lastUpdated have a known one.
        set_time(&path, 1_700_000_000);
    }

    pub(super) fn source(&self) -> LakeSource {
        LakeSource::open(&self.path(), self.options.clone()).unwrap()
    }

    pub(super) fn snapshot(&self) -> Arc<dyn Snapshot> {
        self.source().snapshot(&NoProgress).unwrap()
    }

    /// The folder in which this lake's ordered copy is.
    pub(super) fn index_folder(&self) -> PathBuf {
        self.source().folder
    }

    /// The one file of the index whose name starts like this.
    pub(super) fn index_file(&self, start: &str) -> PathBuf {
        let names: Vec<String> =
            self.index_files().into_iter().filter(|name| name.starts_with(start)).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        self.index_folder().join(&names[0])
    }

    /// The names of the index's files.
    pub(super) fn index_files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.index_folder()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

pub(super) fn set_time(path: &Path, seconds: u64) {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

pub(super) fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// A scan of everything in a lane.
pub(super) fn scan(lane: Lane) -> Scan {
    Scan::whole(lane)
}

/// Lanes that the survey names.
pub(super) fn lanes(snapshot: &dyn Snapshot) -> Vec<Lane> {
    snapshot.survey(&Window::default()).unwrap().into_iter().map(|survey| survey.lane).collect()
}

pub(super) fn plain(piece: &Piece) -> Vec<u8> {
    match &piece.body {
        Body::Plain(bytes) => bytes.to_vec(),
        Body::Deflated { bytes, raw_len, crc32 } => {
            let mut plain = Vec::new();
            inflate_runs(bytes, *raw_len as usize, &mut plain).unwrap();
            assert_eq!(crc32fast::hash(&plain), *crc32);
            let mut member = GzipMember::default();
            member.add_run(*crc32, *raw_len);
            plain
        }
    }
}

/// What a scan gave.
#[derive(Default, Debug, PartialEq)]
pub(super) struct Given {
    pub(super) lines: Vec<Vec<u8>>,
    pub(super) references: Vec<Vec<u8>>,
    pub(super) filtered: u64,
    pub(super) withheld: u64,
    pub(super) excluded: u64,
    pub(super) pieces: usize,
    pub(super) deflated: usize,
}

/// Reads a scan to its end, checking that each piece is what it says it is. Stops after the first sealable
/// piece that is number `stop` or later; gives the place to go on from then.
pub(super) fn read_until(snapshot: &dyn Snapshot, scan: &Scan, stop: usize) -> (Given, Option<Position>) {
    let mut reader = snapshot.read(scan.clone()).unwrap();
    let mut given = Given::default();
    let mut text: Vec<u8> = Vec::new();
    let (mut rows, mut fingerprint) = (0, 0_u128);
    let mut last = None;
    while let Some(piece) = reader.next().unwrap() {
        assert!(piece.body.raw_len() <= 4 << 20 || piece.rows == 1);
        let bytes = plain(&piece);
        assert_eq!(bytes.len() as u64, piece.body.raw_len());
        text.extend_from_slice(&bytes);
        given.pieces += 1;
        given.deflated += usize::from(matches!(piece.body, Body::Deflated { .. }));
        given.filtered += piece.filtered;
        given.withheld += piece.withheld;
        given.excluded += piece.excluded;
        given.references.extend(piece.references.clone());
        rows += piece.rows;
        fingerprint = fingerprint.wrapping_add(piece.fingerprint);
        if let Some(next) = piece.next {
            assert!(text.is_empty() || text.ends_with(b"\n"), "a sealable piece ends a row");
            let onward = last.as_ref().is_none_or(|last| *last <= next) && next >= scan.range.lo;
            assert!(scan.range.is_empty() || (onward && next <= scan.range.hi));
            last = Some(next);
            if given.pieces >= stop && last.as_ref() != Some(&scan.range.hi) {
                break;
            }
        }
    }
    given.lines = text.split_inclusive(|byte| *byte == b'\n').map(|l| l[..l.len() - 1].to_vec()).collect();
    assert_eq!(given.lines.len() as u64, rows);
    let sum = given.lines.iter().fold(0_u128, |sum, line| sum.wrapping_add(line_fingerprint(line)));
    assert_eq!(sum, fingerprint);
    given.references.sort();
    given.references.dedup();
    let at_end = last.as_ref() == Some(&scan.range.hi);
    assert!(at_end || given.pieces >= stop, "the last piece ends at the end of the range");
    (given, last.filter(|_| !at_end))
}

pub(super) fn read(snapshot: &dyn Snapshot, scan: &Scan) -> Given {
    read_until(snapshot, scan, usize::MAX).0
}

/// Reads a scan starting anew after each piece: must be the same rows.
pub(super) fn read_restarting(snapshot: &dyn Snapshot, scan: &Scan) -> Given {
    let mut all = Given::default();
    let mut rest = scan.clone();
    loop {
        let (given, next) = read_until(snapshot, &rest, 1);
        all.lines.extend(given.lines);
        all.references.extend(given.references);
        all.filtered += given.filtered;
        all.withheld += given.withheld;
        all.excluded += given.excluded;
        match next {
            Some(next) => rest.range.lo = next,
            None => break,
        }
    }
    all.references.sort();
    all.references.dedup();
    all
}

/// All lines of all lanes, sorted.
pub(super) fn all_lines(snapshot: &dyn Snapshot) -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> =
        lanes(snapshot).into_iter().flat_map(|lane| read(snapshot, &scan(lane)).lines).collect();
    lines.sort();
    lines
}

pub(super) fn problems(snapshot: &dyn Snapshot) -> Vec<Problem> {
    let mut all = Vec::new();
    snapshot
        .problems(&mut |problem| {
            all.push(problem);
            Ok(())
        })
        .unwrap();
    all
}

pub(super) fn lane(name: &str, section: Section) -> Lane {
    Lane { resource_type: name.parse().unwrap(), section }
}
