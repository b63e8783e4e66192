//! Increments of a lake that changes: what they bring, and what they say was deleted.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use flatbed_types::{Instant, Section};

use super::SETTLE_MILLIS;
use super::catalog::{Catalog, Generation};
use super::testing::{NOW, TestLake, lane, lanes, read, scan, set_time};
use crate::KeyList;
use crate::source::{DeletionsKnown, Select, Snapshot, Source, Tombstone, Window};

thread_local! {
    static CLOCK: Cell<i64> = const { Cell::new(NOW.millis()) };
}

pub(super) fn now() -> Instant {
    Instant::from_millis(CLOCK.get())
}

pub(super) fn pass(millis: i64) {
    CLOCK.set(CLOCK.get() + millis);
}

pub(super) fn lake() -> TestLake {
    CLOCK.set(NOW.millis());
    let mut lake = TestLake::new();
    lake.options.now = now;
    lake
}

/// The transaction time of a look at the lake now.
pub(super) fn present() -> Instant {
    now().plus_millis(-SETTLE_MILLIS)
}

pub(super) fn row(kind: &str, id: &str, changed: Option<Instant>, patients: &[&str], mark: u32) -> String {
    let meta = changed.map_or(String::new(), |changed| format!(r#","meta":{{"lastUpdated":"{changed}"}}"#));
    let references: Vec<String> =
        patients.iter().map(|p| format!(r#"{{"reference":"Patient/{p}"}}"#)).collect();
    let element = if kind == "Observation" { "performer" } else { "target" };
    let references = references.join(",");
    format!(r#"{{"resourceType":"{kind}","id":"{id}"{meta},"{element}":[{references}],"mark":{mark}}}"#)
}

pub(super) fn deletion(urls: &[&str], moment: Option<Instant>) -> String {
    let entries: Vec<String> =
        urls.iter().map(|url| format!(r#"{{"request":{{"method":"DELETE","url":"{url}"}}}}"#)).collect();
    let meta = moment.map_or(String::new(), |moment| format!(r#""meta":{{"lastUpdated":"{moment}"}},"#));
    format!(r#"{{"resourceType":"Bundle",{meta}"type":"transaction","entry":[{}]}}"#, entries.join(","))
}

fn since(moment: Instant) -> Window {
    Window { since: Some(moment), until: None }
}

pub(super) fn output(snapshot: &dyn Snapshot, window: Window, group: Option<&BTreeSet<&str>>) -> Vec<String> {
    let mut lines = Vec::new();
    for lane in lanes(snapshot) {
        let mut asked = scan(lane);
        asked.window = window;
        if let Some(group) = group {
            if lane.section == Section::Standalone {
                continue;
            }
            let list = KeyList::from_keys(group.iter().map(|id| id.as_bytes())).unwrap();
            asked.select = Select::Members(Arc::new(list));
        }
        lines.extend(read(snapshot, &asked).lines.into_iter().map(|line| String::from_utf8(line).unwrap()));
    }
    lines.sort();
    lines
}

pub(super) fn deletions(snapshot: &dyn Snapshot, window: Window) -> (Vec<Tombstone>, DeletionsKnown) {
    let mut all = Vec::new();
    let known = snapshot.deletions(&window, &mut |tombstone| {
        all.push(tombstone);
        Ok(())
    });
    (all, known.unwrap())
}

fn deleted(snapshot: &dyn Snapshot, window: Window) -> Vec<String> {
    let all = deletions(snapshot, window).0;
    let patients = |of: &Option<Vec<String>>| of.as_ref().map_or("?".to_owned(), |all| all.join(","));
    all.iter().map(|one| format!("{}/{} {}", one.resource_type, one.id, patients(&one.patients))).collect()
}

#[test]
fn what_comes_late_is_in_the_next_increment_and_only_there() {
    let lake = lake();
    let old = NOW.plus_millis(-1_000_000_000);
    let first_row = row("Observation", "a", Some(old), &[], 0);
    lake.write("a.ndjson", &first_row);
    let first = lake.snapshot();
    assert_eq!(first.time(), present());
    assert_eq!(output(&*first, since(old.plus_millis(-1)), None), std::slice::from_ref(&first_row));
    assert!(output(&*first, since(old), None).is_empty(), "strictly after (PM-08)");

    // The lake stands for a while: the last transaction time is what counts, not when the index was made.
    pass(60_000);
    let again = lake.snapshot();
    assert_eq!(again.fingerprint(), first.fingerprint());
    let (before, inside, behind) =
        (first.time().plus_millis(30_000), again.time(), again.time().plus_millis(1));
    pass(60_000);
    let rows = [("b", before), ("c", inside), ("d", behind)]
        .map(|(id, at)| row("Observation", id, Some(at), &[], 0));
    lake.write("b.ndjson", rows.join("\n"));
    let second = lake.snapshot();
    assert_ne!(second.fingerprint(), first.fingerprint());
    assert_eq!(output(&*second, since(again.time()), None), rows);
    assert_eq!(output(&*second, since(behind), None), rows[..2], "on time as stated, late when found");
    assert!(output(&*second, since(second.time()), None).is_empty());
    // What a row states still counts for everything else.
    let until = Window { since: None, until: Some(inside) };
    assert_eq!(output(&*second, until, None), [first_row, rows[0].clone()]);
    assert!(deleted(&*second, since(first.time())).is_empty());
}

#[test]
fn rows_from_the_future_are_neither_lost_nor_there_for_ever() {
    let lake = lake();
    let (soon, never): (Instant, Instant) =
        (NOW.plus_millis(3_600_000), "9999-01-01T00:00:00Z".parse().unwrap());
    let rows = [("never", never), ("soon", soon)].map(|(id, at)| row("Observation", id, Some(at), &[], 0));
    lake.write("a.ndjson", rows.join("\n"));
    let first = lake.snapshot();
    assert_eq!(output(&*first, Window::default(), None), rows);
    assert_eq!(output(&*first, since(present().plus_millis(-1)), None), rows);
    assert_eq!(output(&*first, since(first.time()), None), rows[1..], "until its time has come");
    pass(3_700_000);
    assert!(output(&*lake.snapshot(), since(present()), None).is_empty());
}

#[test]
fn a_file_that_is_written_anew_with_the_same_rows_changes_nothing() {
    let lake = lake();
    let rows = ["a", "b"].map(|id| row("Observation", id, None, &["p"], 0));
    lake.write("a.ndjson", rows.join("\n"));
    let first = lake.snapshot();
    assert_eq!(output(&*first, since(Instant::from_millis(1_699_999_999_999)), None), rows);
    pass(10_000);
    std::fs::remove_file(lake.path().join("a.ndjson")).unwrap();
    lake.write("sub/b.ndjson", &rows[1]);
    lake.write("c.ndjson", &rows[0]);
    set_time(&lake.path().join("c.ndjson"), 1_790_000_000);
    let second = lake.snapshot();
    assert_ne!(second.fingerprint(), first.fingerprint());
    assert!(output(&*second, since(first.time()), None).is_empty());
    assert!(deleted(&*second, since(first.time())).is_empty());
    let until = Window { since: None, until: Some(Instant::from_millis(1_790_000_000_000)) };
    assert_eq!(output(&*second, until, None), rows[1..], "a row that says nothing changed when its file did");
}

#[test]
fn what_vanishes_was_deleted_with_its_patients_until_it_is_there_again() {
    let lake = lake();
    let old = Some(NOW.plus_millis(-1_000_000));
    let rows = [
        row("Patient", "p", old, &[], 0),
        row("Provenance", "linked", old, &["q", "p"], 0),
        row("Provenance", "moves", old, &["p"], 0),
    ];
    lake.write("rows.ndjson", rows.join("\n"));
    lake.write("Organization.ndjson", row("Organization", "o", old, &[], 0));
    let first = lake.snapshot();
    assert_eq!(
        deletions(&*first, since(first.time())).1,
        DeletionsKnown { from: Some(first.time()), undecided: 0 }
    );
    pass(10_000);
    let moved = row("Provenance", "moves", old, &[], 1);
    lake.write("rows.ndjson", &moved);
    std::fs::remove_file(lake.path().join("Organization.ndjson")).unwrap();
    let second = lake.snapshot();
    let expected = ["Organization/o ", "Patient/p p", "Provenance/linked p,q"];
    assert_eq!(deleted(&*second, since(first.time())), expected);
    assert!(deleted(&*second, since(second.time())).is_empty());
    assert_eq!(output(&*second, since(first.time()), None), std::slice::from_ref(&moved));
    let until = Window { since: Some(first.time()), until: Some(second.time()) };
    assert!(deleted(&*second, until).is_empty());

    // Other types change meanwhile; then one of them is back, as old as it was.
    pass(10_000);
    lake.write("Location.ndjson", row("Location", "l", old, &[], 0));
    assert_eq!(deleted(&*lake.snapshot(), since(first.time())), expected);
    pass(10_000);
    lake.write("rows.ndjson", [rows[0].clone(), moved].join("\n"));
    let third = lake.snapshot();
    assert_eq!(deleted(&*third, since(first.time())), [expected[0], expected[2]], "MF-28");
    assert_eq!(output(&*third, since(second.time()), None).len(), 2, "the location and the patient");
    assert!(output(&*third, since(second.time()), None).contains(&rows[0]));

    // The state before is still what it was, also for another process.
    assert_eq!(deleted(&*lake.source().reopen(second.fingerprint()).unwrap(), since(first.time())), expected);
}

/// A row that comes to stand under a patient who had its link is there, and gone from nowhere.
#[test]
fn a_row_that_moves_to_where_its_link_was_is_not_deleted() {
    let lake = lake();
    let of = |patients: &[&str], mark: u32| row("Observation", "o", Some(NOW), patients, mark) + "\n";
    lake.write("Observation.ndjson", of(&["a", "b"], 0));
    let first = lake.source().snapshot(&crate::source::NoProgress).unwrap();
    let before = first.time();
    for (mark, patients) in [&["b"][..], &["b", "c"], &["c"], &["a", "c"], &["c"]].into_iter().enumerate() {
        pass(60_000);
        lake.write("Observation.ndjson", of(patients, 1 + mark as u32));
        let snapshot = lake.source().snapshot(&crate::source::NoProgress).unwrap();
        assert_eq!(output(&*snapshot, since(before), None).len(), 1, "{patients:?}");
        assert_eq!(deleted(&*snapshot, since(before)), [""; 0], "{patients:?}");
    }
}

#[test]
fn a_lake_that_returns_to_an_earlier_state_tells_the_way_back() {
    let lake = lake();
    let old = Some(NOW.plus_millis(-1_000_000));
    let [a, b] = ["a", "b"].map(|id| row("Observation", id, old, &[], 0));
    lake.write("x.ndjson", &a);
    let first = lake.snapshot();
    pass(10_000);
    lake.write("x.ndjson", &b);
    set_time(&lake.path().join("x.ndjson"), 1_700_000_001);
    let second = lake.snapshot();
    pass(10_000);
    lake.write("x.ndjson", &a);
    let third = lake.snapshot();
    assert_eq!(output(&*third, since(second.time()), None), [a]);
    assert_eq!(deleted(&*third, since(second.time())), ["Observation/b "]);
    assert_ne!(third.fingerprint(), first.fingerprint());
}

#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_read_was_not_deleted() {
    let lake = lake();
    let old = Some(NOW.plus_millis(-1_000_000));
    let rows = ["a", "b"].map(|id| row("Observation", id, old, &["p", "q"], 0));
    lake.write("a.ndjson", &rows[0]);
    lake.write("b.ndjson", &rows[1]);
    let first = lake.snapshot();
    let hide = |name: &str| {
        std::fs::remove_file(lake.path().join(name)).unwrap();
        // Opens, and answers EIO to a read at its start.
        symlink("/proc/self/mem", lake.path().join(name)).unwrap();
    };
    let show = |name: &str, content: &str| {
        std::fs::remove_file(lake.path().join(name)).unwrap();
        lake.write(name, content);
    };
    pass(10_000);
    hide("b.ndjson");
    let second = lake.snapshot();
    assert_eq!(output(&*second, Window::default(), None), rows[..1]);
    let (told, known) = deletions(&*second, since(first.time()));
    assert!(told.is_empty() && known.undecided == 1);
    // Still hidden, while another file changes; then it is there again.
    pass(10_000);
    lake.write("c.ndjson", row("Observation", "c", old, &[], 0));
    assert_eq!(deletions(&*lake.snapshot(), since(first.time())).1.undecided, 1);
    pass(10_000);
    show("b.ndjson", &rows[1]);
    let third = lake.snapshot();
    assert!(output(&*third, since(second.time()), None).iter().all(|line| line.contains(r#""id":"c""#)));
    let group = BTreeSet::from(["q"]);
    assert!(output(&*third, since(first.time()), Some(&group)).is_empty(), "nor as a link");
    assert_eq!(deletions(&*third, since(first.time())).1.undecided, 0);

    // A place that cannot be looked into; it is gone with the file that was behind it.
    pass(10_000);
    std::fs::remove_file(lake.path().join("b.ndjson")).unwrap();
    symlink(lake.path().join("nowhere"), lake.path().join("d.ndjson")).unwrap();
    let fourth = lake.snapshot();
    assert_eq!(
        (deleted(&*fourth, since(third.time())).len(), deletions(&*fourth, since(NOW)).1.undecided),
        (0, 1)
    );
    pass(10_000);
    std::fs::remove_file(lake.path().join("d.ndjson")).unwrap();
    let fifth = lake.snapshot();
    assert_eq!(deleted(&*fifth, since(fourth.time())), ["Observation/b p,q"]);
    assert_eq!(deletions(&*fifth, since(NOW)).1.undecided, 0);

    // A damaged file: what stands behind the damage is not known.
    lake.write("c.ndjson.zst", zstd::bulk::compress(row("Basic", "x", old, &[], 0).as_bytes(), 1).unwrap());
    let sixth = lake.snapshot();
    pass(10_000);
    lake.write("c.ndjson.zst", "no zstd any more");
    assert!(deleted(&*lake.snapshot(), since(sixth.time())).is_empty());
    pass(10_000);
    std::fs::remove_file(lake.path().join("c.ndjson.zst")).unwrap();
    assert_eq!(deleted(&*lake.snapshot(), since(sixth.time())), ["Basic/x "]);
}

#[test]
fn deletions_that_the_lake_carries() {
    let lake = lake();
    let [long_ago, old, recent] = [-3_000_000, -2_000_000, -1_000_000].map(|back| NOW.plus_millis(back));
    let rows = [
        row("Provenance", "older", Some(long_ago), &["p", "q"], 0),
        row("Provenance", "same", Some(old), &["p"], 0),
        row("Provenance", "newer", Some(recent), &["p"], 0),
    ];
    lake.write("full/Provenance.1.ndjson", rows.join("\n"));
    let urls =
        ["Provenance/older", "Provenance/same", "Provenance/newer", "Provenance/unknown", "Patient/p", "x"];
    lake.write("next/Bundle.1.ndjson", deletion(&urls, Some(old)));
    let first = lake.snapshot();
    assert_eq!(output(&*first, Window::default(), None), rows[2..]);
    let all = ["Patient/p ?", "Provenance/older p,q", "Provenance/same p", "Provenance/unknown ?"];
    assert_eq!(deleted(&*first, since(long_ago)), all);
    assert!(deleted(&*first, since(old)).is_empty());
    let told: Vec<String> = super::testing::problems(&*first).into_iter().map(|p| p.message).collect();
    assert_eq!(told, ["next/Bundle.1.ndjson:1: 1 entries of the Bundle are not the deletion of a Type/id"]);

    // One that comes late deletes from now on; a row that is written again is there.
    pass(10_000);
    lake.write("later/deleted.ndjson", deletion(&["Provenance/newer"], Some(recent.plus_millis(1))));
    let again = row("Provenance", "older", Some(recent), &["p", "q"], 1);
    lake.write("later/Provenance.1.ndjson", &again);
    let second = lake.snapshot();
    assert_eq!(deleted(&*second, since(first.time())), ["Provenance/newer p"]);
    assert_eq!(output(&*second, since(first.time()), None), std::slice::from_ref(&again));
    // Without a time of its own it is as old as its file.
    pass(10_000);
    lake.write("later/deleted.2.ndjson", deletion(&["Provenance/older"], None));
    assert_eq!(output(&*lake.snapshot(), Window::default(), None), [again]);
    set_time(&lake.path().join("later/deleted.2.ndjson"), NOW.millis() as u64 / 1000);
    assert!(output(&*lake.snapshot(), Window::default(), None).is_empty());
    assert_eq!(deleted(&*lake.snapshot(), since(second.time())), ["Provenance/older p,q"]);
}

#[test]
fn long_bundles_of_deletions_go_through() {
    let lake = lake();
    let urls: Vec<String> = (0..60_000).map(|n| format!("Observation/observation-number-{n:06}")).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let line = deletion(&urls, Some(NOW.plus_millis(-10_000)));
    assert!(line.len() > flatbed_types::caps::LONG_LINE);
    lake.write("deleted/all.ndjson", line);
    lake.write(
        "o.ndjson",
        row("Observation", "observation-number-000007", Some(NOW.plus_millis(-20_000)), &["p"], 0),
    );
    let snapshot = lake.snapshot();
    let all = deleted(&*snapshot, since(NOW.plus_millis(-10_001)));
    assert_eq!((all.len(), all[7].as_str()), (60_000, "Observation/observation-number-000007 p"));
    assert!(super::testing::problems(&*snapshot).is_empty());
}

#[test]
fn a_build_that_died_and_an_index_of_another_version_lose_nothing_but_history() {
    let lake = lake();
    let old = Some(NOW.plus_millis(-1_000_000));
    let [a, b] = ["a", "b"].map(|id| row("Observation", id, old, &[], 0));
    lake.write("x.ndjson", &a);
    let first = lake.snapshot();
    let catalog = lake.index_folder().join("catalog.json");
    let before = std::fs::read(&catalog).unwrap();
    let seen = std::fs::read(lake.index_folder().join("seen")).unwrap();
    pass(10_000);
    lake.write("x.ndjson", [&b, "", &a][..1].join("\n"));
    drop(lake.snapshot());
    // As if it had died before its last step.
    std::fs::write(&catalog, before).unwrap();
    std::fs::write(lake.index_folder().join("seen"), seen).unwrap();
    pass(10_000);
    let second = lake.snapshot();
    assert_eq!(second.time(), present());
    assert_eq!(output(&*second, since(first.time()), None), std::slice::from_ref(&b));
    assert_eq!(deleted(&*second, since(first.time())), ["Observation/a "]);

    // Another version is built anew: everything counts as known, and from when on deletions are is told.
    let text = String::from_utf8(std::fs::read(&catalog).unwrap()).unwrap();
    std::fs::write(&catalog, text.replacen(r#""format":"#, r#""format":9"#, 1)).unwrap();
    pass(10_000);
    let third = lake.snapshot();
    assert!(output(&*third, since(first.time()), None).is_empty());
    let (told, known) = deletions(&*third, since(first.time()));
    assert!(told.is_empty() && known.from == Some(third.time()));
    assert!(lake.index_files().iter().filter(|name| name.ends_with(".gone")).count() == 0);
}

#[test]
fn the_time_that_was_given_out_is_kept_and_never_goes_back() {
    let lake = lake();
    lake.write("x.ndjson", row("Observation", "a", None, &[], 0));
    let first = lake.snapshot();
    // The clock goes back: what is new is known later than what was given out all the same.
    pass(-5_000);
    assert_eq!(lake.snapshot().time(), first.time());
    let b = row("Observation", "b", Some(NOW.plus_millis(-20_000)), &[], 0);
    lake.write("y.ndjson", &b);
    let second = lake.snapshot();
    assert_eq!(output(&*second, since(first.time()), None), [b]);
    let folder = lake.index_folder();
    let catalog = Catalog::load(&folder, &lake.source().address()).unwrap();
    assert!(catalog.seen(&folder, present()).unwrap() >= first.time());
    assert!(!Generation::is_partial(&catalog.generations[0].files, &[]));
}

#[test]
fn an_unchanged_type_keeps_its_files() {
    let lake = lake();
    lake.write("a.ndjson", row("Observation", "a", None, &["p"], 0));
    lake.write("b.ndjson", row("Basic", "b", None, &[], 0));
    lake.snapshot();
    pass(1_000);
    lake.write("b.ndjson", row("Basic", "other", None, &[], 0));
    lake.snapshot();
    let folder = lake.index_folder();
    let catalog = Catalog::load(&folder, &lake.source().address()).unwrap();
    let [first, second] = catalog.generations.as_slice() else { panic!("two generations") };
    let file = |generation: &Generation, kind: &str| {
        let lane = lane(kind, Section::Standalone);
        generation.lanes.iter().find(|entry| entry.lane().unwrap() == lane).map(|entry| entry.file.clone())
    };
    assert_eq!(file(first, "Observation"), file(second, "Observation"));
    assert_ne!(file(first, "Basic"), file(second, "Basic"));
    assert_eq!(second.gone.len(), 1);
}
