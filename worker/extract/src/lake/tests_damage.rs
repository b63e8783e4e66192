//! Files of the index that are not what was written: each is noticed, told, and made anew with the next look at the lake;
//! what that costs is history at most, and never a row.

use std::path::Path;
use std::sync::Arc;

use flatbed_types::{ErrorCode, Instant, Section};

use super::LakeSource;
use super::testing::{TestLake, lane, problems, read, scan};
use super::tests_increments::{deletions, lake, output, pass, present, row};
use crate::source::{NoProgress, Snapshot, Source, SourceError, Window};

const OLD: Instant = Instant::from_millis(1_700_000_000_000);

fn since(moment: Instant) -> Window {
    Window { since: Some(moment), until: None }
}

fn look(source: &LakeSource) -> Arc<dyn Snapshot> {
    source.snapshot(&NoProgress).unwrap()
}

fn told(snapshot: &dyn Snapshot) -> Result<(), SourceError> {
    snapshot.problems(&mut |_| Ok(()))
}

/// Changes a bit in the middle, cuts the end off, or leaves nothing.
fn damage(path: &Path, how: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    match how {
        0 => bytes[middle] ^= 0x10,
        1 => bytes.truncate(middle),
        _ => bytes.clear(),
    }
    std::fs::write(path, bytes).unwrap();
}

fn index_file(lake: &TestLake, ending: &str) -> std::path::PathBuf {
    let names: Vec<String> = lake.index_files().into_iter().filter(|name| name.ends_with(ending)).collect();
    assert!(!names.is_empty(), "no {ending}");
    lake.index_folder().join(names.last().unwrap())
}

/// Two rows and a line that is none; then one of the rows vanishes.
fn with_history() -> (TestLake, Instant, [String; 2]) {
    let lake = lake();
    let rows = ["a", "b"].map(|id| row("Observation", id, Some(OLD), &[], 0));
    lake.write("x.ndjson", format!("{}\nno json\n", rows.join("\n")));
    let first = lake.snapshot().time();
    pass(10_000);
    lake.write("x.ndjson", format!("{}\nno json\n", rows[0]));
    drop(lake.snapshot());
    pass(10_000);
    (lake, first, rows)
}

#[test]
fn a_damaged_list_of_problems_is_made_anew_and_nothing_else_is_lost() {
    for how in 0..3 {
        let (lake, first, rows) = with_history();
        let source = lake.source();
        let before = look(&source);
        let expected = problems(&*before);
        assert_eq!(expected.len(), 1);
        damage(&index_file(&lake, ".problems"), how);
        let error = told(&*before).unwrap_err();
        assert!(error.code == ErrorCode::StorageFailed && error.message.contains("made anew"), "{error}");
        let after = look(&source);
        assert_eq!(problems(&*after), expected);
        assert_eq!(after.fingerprint(), before.fingerprint(), "tasks of running jobs go on");
        assert_eq!(output(&*after, Window::default(), None), rows[..1]);
        assert!(output(&*after, since(first), None).is_empty(), "no row is told again");
        let (deleted, known) = deletions(&*after, since(first));
        assert_eq!((deleted.len(), known), (1, deletions(&*before, since(first)).1));
        told(&*look(&lake.source())).unwrap();
    }
}

#[test]
fn a_list_of_problems_that_is_damaged_when_the_lake_changes_costs_a_reading_only() {
    let (lake, first, rows) = with_history();
    damage(&index_file(&lake, ".problems"), 0);
    let new = row("Observation", "c", None, &[], 0);
    lake.write("y.ndjson", &new);
    let after = lake.snapshot();
    assert_eq!(problems(&*after).len(), 1);
    assert_eq!(output(&*after, Window::default(), None), [rows[0].clone(), new.clone()]);
    assert_eq!(output(&*after, since(first), None), [new]);
    assert_eq!(deletions(&*after, since(first)).0.len(), 1);
}

#[test]
fn damaged_deletions_are_given_up_and_that_is_told() {
    for is_noticed_by_a_build in [false, true] {
        let (lake, first, rows) = with_history();
        let source = lake.source();
        let before = look(&source);
        damage(&index_file(&lake, ".gone"), 0);
        if is_noticed_by_a_build {
            lake.write("y.ndjson", row("Observation", "c", Some(OLD), &[], 0));
        } else {
            let error = before.deletions(&since(first), &mut |_| Ok(())).unwrap_err();
            assert_eq!(error.code, ErrorCode::StorageFailed, "{error}");
        }
        let after = look(&source);
        assert_ne!(after.fingerprint(), before.fingerprint());
        // What a client may lack is not known: it gets everything once.
        let all = output(&*after, Window::default(), None);
        assert_eq!(all.len(), 1 + usize::from(is_noticed_by_a_build));
        assert!(all.contains(&rows[0]));
        assert_eq!(output(&*after, since(before.time()), None), all);
        assert!(output(&*after, since(after.time().plus_millis(1)), None).is_empty());
        let (deleted, known) = deletions(&*after, since(first));
        assert!(deleted.is_empty() && known.from == Some(after.time()), "{known:?}");
    }
}

#[test]
fn a_damaged_lane_fails_the_export_that_reads_it_and_is_made_anew_for_the_next() {
    let (lake, _, rows) = with_history();
    let source = lake.source();
    let before = look(&source);
    let scan = scan(lane("Observation", Section::Standalone));
    let path = index_file(&lake, ".lane");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3] ^= 0x20;
    std::fs::write(&path, bytes).unwrap();
    let error = before.read(scan.clone()).unwrap().next().err().unwrap();
    assert!(error.code == ErrorCode::SourceFailed && error.message.contains("anew"), "{error}");
    let after = look(&source);
    assert_eq!(read(&*after, &scan).lines, [rows[0].clone().into_bytes()]);
    assert_eq!(output(&*after, since(before.time()), None), rows[..1]);
    assert_eq!(problems(&*after).len(), 1);
    // One that cannot even be opened.
    std::fs::write(index_file(&lake, ".lane"), b"").unwrap();
    assert_eq!(read(&*look(&lake.source()), &scan).lines, [rows[0].clone().into_bytes()]);
}

#[test]
fn a_damaged_note_of_the_last_transaction_time_lets_nothing_be_missed() {
    for note in [&b"\xff\xfe"[..], b"", b"12", b"1 00000000\n"] {
        let (lake, _, rows) = with_history();
        let before = lake.snapshot();
        std::fs::write(lake.index_folder().join("seen"), note).unwrap();
        let late = row("Observation", "late", Some(OLD), &[], 0);
        lake.write("y.ndjson", &late);
        let after = lake.snapshot();
        assert_eq!(output(&*after, since(before.time()), None), std::slice::from_ref(&late));
        assert_eq!(output(&*after, Window::default(), None), [rows[0].clone(), late]);
        assert!(after.time() <= present());
        drop(lake.snapshot());
    }
}

#[test]
fn a_damaged_catalogue_costs_history_and_no_row() {
    let (lake, first, rows) = with_history();
    damage(&lake.index_folder().join("catalog.json"), 1);
    let after = lake.snapshot();
    assert_eq!(output(&*after, since(first), None), rows[..1]);
    assert_eq!(deletions(&*after, since(first)).1.from, Some(after.time()));
}
